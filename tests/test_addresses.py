"""What a package index shows: links of README and project URLs, once the project has an address."""

import importlib.util
import re
import shutil
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WHERE, TAG = "https://example.org/someone/xai-discern", "v0.1.0"

if not (ROOT / "release").is_dir() or "[project.urls]" in (ROOT / "pyproject.toml").read_text("utf-8"):
    pytest.skip("this is a release, which has its address", allow_module_level=True)

spec = importlib.util.spec_from_file_location("addresses", ROOT / "release" / "addresses.py")
addresses = importlib.util.module_from_spec(spec)
spec.loader.exec_module(addresses)


def test_links_of_the_readme_lead_to_files_of_that_tag(tmp_path):
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    addresses.main(str(tmp_path), WHERE + "/", TAG)
    text = (tmp_path / "README.md").read_text("utf-8")
    targets = re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)\)", text)
    assert len(targets) > 20
    for picture, target in targets:
        if target.startswith(WHERE):
            kind, tag, path = target.removeprefix(f"{WHERE}/").split("/", 2)
            assert (kind, tag) == ("raw" if picture else "blob", TAG)
            assert (ROOT / path.partition("#")[0]).exists(), target
        else:
            assert target.startswith(("https://", "#")), target
    assert any(picture for picture, _ in targets)
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["urls"]["Repository"] == WHERE
    assert project["urls"]["Changelog"] == f"{WHERE}/blob/{TAG}/CHANGELOG.md"
    assert (
        project["optional-dependencies"]
        == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    )


def test_other_links_stay_and_files_with_urls_are_refused():
    text = "[a](https://b.c/d) [e](#f) [g](mailto:h@i) ![j](k/l.png) [m](n.md#o)"
    assert addresses.absolute(text, WHERE, TAG) == (
        f"[a](https://b.c/d) [e](#f) [g](mailto:h@i) ![j]({WHERE}/raw/{TAG}/k/l.png) [m]({WHERE}/blob/{TAG}/n.md#o)"
    )
    with pytest.raises(ValueError, match=r"without \[project.urls\]"):
        addresses.with_urls("[project.urls]\n[project.optional-dependencies]", WHERE, TAG)
