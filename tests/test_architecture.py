"""Rules of the code base that a reader relies on."""

import ast
import subprocess
import sys
import warnings

import pytest
from paths import FILES, PACKAGES, ROOT, TESTS

ROOMS = {
    "models": 0,
    "prompts": 1,
    "recording": 1,
    "wrappers": 2,
    "grad_cam": 3,
}  # of adapters; each imports only earlier ones
OPTIONAL = {"timm", "torchvision", "transformers", "quantus", "pytorch_grad_cam", "sklearn", "pandas"} | {
    "segmentation_models_pytorch",
    "monai",
    "torch_geometric",
}
ALLOWED = {
    "adapters": set(),
    "captum_ext": {"adapters", "torch_geometric"},  # MHEXExplainer, imported when it is asked for
    "quantus_metrics": {"quantus", "adapters"},
    "xai_compare": {*PACKAGES[:3], *OPTIONAL},
    "xai_discern": {"adapters", "captum_ext", "xai_compare", "transformers"},
}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way_and_files_and_functions_stay_short(path):
    names, package = set(imported(path)), path.relative_to(ROOT).parts[0]
    assert not names & (OPTIONAL - ALLOWED[package])
    assert not names & (set(PACKAGES) - ALLOWED[package] - {package})
    assert len(path.read_text().splitlines()) <= 350
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            code = [one for one in node.body if not isinstance(getattr(one, "value", None), ast.Constant)]
            assert not code or code[-1].end_lineno - code[0].lineno < 50, node.name


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name in ROOMS], ids=lambda path: path.name)
def test_rooms_of_adapters_import_only_earlier_ones(path):
    own = ROOMS[path.parent.name]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 2:
            assert ROOMS.get(node.module.split(".")[0], -1) < own


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_of_tests_stay_short_and_import_no_tests(path):
    assert len(path.read_text().splitlines()) <= 400
    assert not [name for name in imported(path) if name.startswith("test_")]


@pytest.mark.slow
def test_importing_the_packages_imports_no_optional_library():
    code = f"import sys\nfrom captum_ext import *\nimport adapters\nprint(sorted({OPTIONAL} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("package", ["adapters", "captum_ext"])
def test_a_star_imports_what_is_imported_when_it_is_asked_for_too(package):
    names: dict[str, object] = {}
    exec(f"from {package} import *", names)
    assert {"MHEXCAM", "RawAttention" if package == "captum_ext" else "CAStream"} <= names.keys()
    assert "typing" not in names


def test_public_names_are_documented():
    import adapters
    import captum_ext

    readme = (ROOT / "docs" / "classes.md").read_text()
    for name in dir(captum_ext):
        if not name.startswith("_") and callable(getattr(captum_ext, name)):
            assert getattr(captum_ext, name).__doc__
            assert name in readme
    for name in ("CAStream", "MHEX", "RawAttentionCAM", "MHEXCAM", "collaboration", "deep_supervision_loss"):
        assert getattr(adapters, name).__doc__
        assert f"adapters.{name}" in readme or f"`{name}`" in readme
    assert adapters.reshape_transform_for.__doc__
    assert all((ROOT / package / "py.typed").exists() for package in PACKAGES)


def test_the_other_distribution_named_adapters_is_warned_about(monkeypatch):
    import importlib
    import importlib.metadata

    import adapters

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.reload(adapters)  # it is not installed here
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "1.3.0")
    with pytest.warns(UserWarning, match="xai-discern.*and `adapters` \\(the add-on"):
        importlib.reload(adapters)
