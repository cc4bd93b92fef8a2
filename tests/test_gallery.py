import ast
import json
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GALLERY = ROOT / "docs" / "gallery"
SCRIPTS = sorted(GALLERY.glob("plot_*.py"))
OURS = "adapters|captum_ext|quantus_metrics|xai_compare|xai_discern"
CLOSING = "What this shows, and what it does not"

each_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)


def introduction(script):
    """The title of a page, and what stands below it."""
    title, line, text = ast.get_docstring(ast.parse(script.read_text("utf-8"))).split("\n", 2)
    assert line == "=" * len(title)
    return title, text


def imported(script):
    """The modules that a script imports, by their first names."""
    found = set()
    for node in ast.walk(ast.parse(script.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    return found


def test_the_gallery_is_neither_empty_nor_endless():
    assert 12 <= len(SCRIPTS) <= 18
    assert (GALLERY / "GALLERY_HEADER.rst").exists()


@each_script
def test_a_page_has_a_title_and_says_what_it_shows_and_what_it_does_not(script):
    title, text = introduction(script)
    sentences = re.findall(r"[.?!:](?:\s|$)", text)
    assert 5 < len(title) < 60
    assert len(sentences) >= 2
    assert f"# {CLOSING}\n# {'-' * len(CLOSING)}\n" in script.read_text("utf-8")


@each_script
def test_a_page_needs_nothing_that_is_not_installed_with_the_package(script):
    beside = {path.stem for folder in ("examples", "tests", "benchmarks") for path in (ROOT / folder).glob("*.py")}
    assert not imported(script) & (beside | {"examples", "tests", "benchmarks"})


@each_script
def test_photographs_are_named_with_their_licence(script):
    if "skimage" in imported(script):
        assert re.search(r"CC0|public domain", script.read_text("utf-8"))


def as_notebook(script):
    """What sphinx-gallery offers for download, with a cell in front that forgets the names of the page before."""
    gallery = pytest.importorskip("sphinx_gallery.gen_gallery", reason="sphinx-gallery is not installed")
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    from sphinx_gallery.notebook import jupyter_notebook
    from sphinx_gallery.py_source_parser import split_code_and_text_blocks

    _, blocks = split_code_and_text_blocks(str(script))
    notebook = jupyter_notebook(blocks, gallery.DEFAULT_GALLERY_CONF, str(script.parent))
    notebook = nbformat.reads(json.dumps(notebook), as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
    return notebook


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """One for all pages, as most of their time would be that of the same imports."""
    client = pytest.importorskip("jupyter_client", reason="jupyter_client is not installed")
    pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    folder = tmp_path_factory.mktemp("kernel")
    ours = {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(folder), "OMP_NUM_THREADS": "1"}
    manager = client.KernelManager(kernel_name="python3")
    manager.start_kernel(env={**os.environ, **ours}, cwd=str(folder))
    yield manager
    manager.shutdown_kernel(now=True)


@pytest.mark.slow
@each_script
def test_a_page_runs_as_a_notebook_and_has_a_picture(script, kernel):
    notebook = as_notebook(script)
    import nbclient

    nbclient.NotebookClient(notebook, km=kernel, timeout=240).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    errors = "".join(output.text for output in outputs if output.get("name") == "stderr")
    assert not re.search(rf"/(?:{OURS})/\S+:\d+: \w*Warning", errors), errors
    assert "Traceback" not in errors
