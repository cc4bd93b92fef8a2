"""What the documents and examples promise: code that runs, a model that reads, a demo that writes."""

import doctest
import importlib
import itertools
import re
import sys

import pandas as pd
import pytest
import torch
from captum.attr import LayerAttribution
from paths import FILES, ROOT

from captum_ext import CDAM


def code_of(path):
    return re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(), re.DOTALL)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Captum's and Quantus'
def test_the_readmes_code_runs_and_its_shapes_are_right():
    scope = {}
    first, captum, grad_cam, scores = code_of("README.md")
    exec(first, scope)
    assert scope["heat"].shape == (2, 1, 14, 14)
    assert scope["heat"].std() > 0
    exec(captum, scope)
    model, images = scope["model"], scope["images"]
    apart = CDAM(model).attribute(images, 3) - CDAM(model).attribute(images, 7)
    torch.testing.assert_close(scope["why_not"], apart, rtol=1e-3, atol=1e-7)
    assert scope["delta"].abs().max() < 1e-3
    assert scope["stability"].shape == (2,)
    exec(grad_cam, scope)
    assert scope["maps"].shape == (2, 224, 224)
    exec(scores, scope)
    assert len(scope["drop"]) == 2


def test_the_links_of_the_readme_and_of_the_documents_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.slow
def test_the_code_of_the_tour_runs_and_its_shapes_are_right():
    scope = {}
    methods, texts, answers = code_of("docs/tour.md")
    exec(methods, scope)
    assert scope["maps"].shape == (2, 3, 14, 14)
    assert scope["delta"].shape == (2,)
    exec(texts, scope)
    assert scope["maps"].shape == (2, 2, 7, 7)
    assert scope["maps"].std() > 0
    exec(answers, scope)
    assert scope["maps"].scores.shape == (1, 4)
    assert scope["run"].per_token.shape == (1, 3, 4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Quantus' and those of random models
def test_the_code_on_scores_runs():
    scope = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "scores.md").read_text(), re.DOTALL):
        exec(block, scope)
        if scope["scores"] and "judge" not in scope:
            assert set(scope["scores"]) == {"CDAM", "IG", "Grad-CAM"}
            assert all(set(row) == {"SAD", "Box", "Discrimination", "Sparseness"} for row in scope["scores"].values())
    assert len(scope["scores"]) == 3
    assert scope["values"].shape == (4,)
    assert scope["values"].max() > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Quantus'
def test_the_code_on_comparisons_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {}
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "compare.md").read_text(), re.DOTALL)
    exec(block, scope)
    assert len(scope["results"].scores()) == 4 * 2 * 2
    assert (tmp_path / "RUN" / "report.html").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of random models
@pytest.mark.parametrize("name", ["ca-stream", "mhex", "mhex-segmentation", "mhex-graphs"])
def test_the_code_on_wrappers_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / f"{name}.md").read_text()
    for library in ("segmentation_models_pytorch", "monai", "torch_geometric"):
        if f"import {library}" in text or f"from {library}" in text:
            pytest.importorskip(library)
    scopes = []
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        scopes.append({})
        exec(block, scopes[-1])
    if name == "ca-stream":
        (scope,) = scopes
        assert torch.equal(scope["heat"][:, 0], scope["maps"][-1])
        assert all(0 <= picture.min() < 0.5 < picture.max() <= 1 for picture in scope["pictures"])
        assert torch.equal(scope["again"].stream.query, scope["model"].stream.query)
    elif name == "mhex":
        assert all(0 <= picture.min() < 0.5 < picture.max() <= 1 for picture in scopes[0]["pictures"])
        assert scopes[1]["saliency"][1, 5:].eq(0).all()
    elif name == "mhex-segmentation":
        first, volumes = scopes
        assert first["heat"].shape == first["thing"].shape == first["place"].shape == (2, 1, 64, 64)
        assert torch.equal(first["each"][0], first["thing"][0])
        assert all(picture.max() > 0.9 for picture in first["pictures"])
        assert volumes["heat"].shape == volumes["part"].shape == (1, 1, 16, 16, 16)
        assert volumes["part"].count_nonzero() < volumes["heat"].count_nonzero()
    else:
        graphs, nodes = scopes
        assert graphs["saliency"].shape == (7,)
        assert graphs["saliency"].std() > 0
        assert graphs["explanation"].node_mask.max() == 1
        assert nodes["explanation"].node_mask.shape == (5, 1)
        assert not nodes["explanation"].node_mask[3:].any()


@pytest.mark.filterwarnings("ignore")  # of random models
def test_the_code_on_detectors_runs():
    scope = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "detection.md").read_text(), re.DOTALL):
        exec(block, scope)
    assert scope["heat"].shape == scope["why"].shape == scope["road"].shape == (2, 1, 2, 3)
    assert scope["maps"].shape == (2, 64, 96)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of random models
def test_the_code_on_effects_of_tokens_runs():
    scope = {}
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "token-effects.md").read_text(), re.DOTALL)
    exec(block, scope)
    assert scope["effects"].shape == scope["values"].shape == scope["errors"].shape == (2, 1, 4, 4)
    assert [len(share.unique()) for share in scope["shares"]] == [2, 2]
    exact = scope["token_faithfulness"](
        scope["model"], scope["images"], [3, 7], scope["effects"].repeat_interleave(16, 2).repeat_interleave(16, 3)
    )
    assert exact.tolist() == pytest.approx([1, 1])
    assert scope["scores"].shape == (2,)


def test_the_networks_of_the_document_are_those_that_are_tested():
    from ca_stream_cases import CASES

    table = (ROOT / "docs" / "ca-stream.md").read_text().split("## Which networks")[1].split("Refused")[0]
    cells = [row.split("|")[3] for row in table.splitlines() if row.startswith("| ") and "cases" not in row]
    named = {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}
    assert named <= set(CASES)
    assert len(named) > 40


def test_the_documented_models_are_those_that_are_tested():
    import real_models

    table = (ROOT / "docs" / "which-models.md").read_text()
    named = {name for row in table.splitlines() if row.startswith("|") for name in re.findall(r"`([a-z0-9-]+)`", row)}
    assert {"timm", "torchvision", "hf-vit", "hf-bert", "dino"} <= named
    assert named <= set(real_models.CASES)


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstring_examples_run_and_what_is_exported_has_one(path):
    if path.name.startswith("__"):
        return
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    result = doctest.testmod(importlib.import_module(name))
    whole = importlib.import_module(name.split(".")[0])
    package = {key: getattr(whole, key) for key in dir(whole)}  # also what is imported when it is asked for
    names = (key for key in package if not key.startswith("__"))
    exported = [key for key in names if callable(package[key]) and package[key].__module__ == name]
    assert result.failed == 0
    assert result.attempted > 0 or not exported or exported == ["Comparison"]  # which compare() returns, and shows


@pytest.mark.slow
def test_the_bundled_model_reads_unseen_scenes():
    from xai_compare import digit_vit
    from xai_compare.digit_scenes import make_scenes

    found = digit_vit.top_digits_found(digit_vit.load(), make_scenes(500, "test", digits=2, seed=11))
    assert found.float().mean() >= 0.85
    assert digit_vit.WEIGHTS.stat().st_size < 2_000_000


def test_handwriting_of_the_splits_is_disjoint():
    from xai_compare.digit_scenes import load_split

    counts = {split: len(load_split(split)[0]) for split in ("train", "validation", "test")}
    assert sum(counts.values()) == 1797
    seen = [{image.numpy().tobytes() for image in load_split(split)[0]} for split in counts]
    assert not any(left & right for left, right in itertools.combinations(seen, 2))


@pytest.mark.slow
def test_each_digits_map_stands_out_on_that_digit():
    """The share of positive relevance in the box of the digit asked for is larger than in the other digit's box."""
    from xai_compare import digit_vit
    from xai_compare.digit_scenes import make_scenes

    scenes = make_scenes(60, "test", digits=2, seed=21)
    maps = CDAM(digit_vit.load()).attribute_targets(scenes.images, [scenes.labels[:, 0], scenes.labels[:, 1]])
    pixels = LayerAttribution.interpolate(maps, (48, 48)).clamp(min=0)
    for asked in (0, 1):
        inside = [(pixels[:, asked] * scenes.mask(digit)[:, 0]).sum((1, 2)) for digit in (asked, 1 - asked)]
        assert (inside[0] > inside[1]).float().mean() > 0.8  # chance is a half


def run(monkeypatch, *arguments):
    import demo

    monkeypatch.setattr(sys, "argv", ["demo.py", *map(str, arguments)])
    demo.main()


@pytest.mark.slow
def test_the_demo_writes_its_picture_and_one_score_for_each_cell(monkeypatch, tmp_path, capsys):
    run(monkeypatch, "--scenes", 2, "--out", tmp_path)
    scores = pd.read_csv(tmp_path / "scores.csv")
    assert len(scores) == 2 * 2 * 7 * 8
    assert scores.score.notna().all()
    assert (scores[(scores.metric == "class discrimination") & (scores.method == "Attention")].score == 0).all()
    shares = scores[scores.metric == "location: share in digit"].score
    assert shares.between(0, 1).all()
    assert shares.nunique() > 20
    assert (tmp_path / "digits.png").stat().st_size > 20_000
    assert "above CDAM" in capsys.readouterr().out


@pytest.mark.slow
def test_the_demo_explains_an_image_of_the_user(monkeypatch, tmp_path):
    from PIL import Image

    Image.new("RGB", (60, 40), "teal").save(tmp_path / "pond.png")
    with pytest.warns(UserWarning, match="weights are random, so the maps mean nothing"):
        run(monkeypatch, "--image", tmp_path / "pond.png", "--out", tmp_path, "--model", "vit_tiny_patch16_224")
    assert (tmp_path / "pond_vit_tiny_patch16_224.png").exists()


@pytest.mark.slow
def test_training_resumes_to_the_same_weights(monkeypatch, tmp_path):
    import train_digit_vit

    def train(out, *arguments):
        monkeypatch.setattr(sys, "argv", ["train", "--steps", "4", "--batch-size", "2", "--out", str(out), *arguments])
        train_digit_vit.main()

    monkeypatch.setattr(train_digit_vit, "CHECKPOINT", tmp_path / "checkpoint.pt")
    monkeypatch.setattr(train_digit_vit, "SAVE_EVERY", 2)
    monkeypatch.setattr(train_digit_vit, "accuracy", lambda *_: {})
    train(tmp_path / "whole.safetensors")
    (tmp_path / "checkpoint.pt").unlink()

    batches = []
    make = train_digit_vit.batch

    def interrupted(*arguments, **options):
        batches.append(1)
        if len(batches) == 4:
            raise KeyboardInterrupt
        return make(*arguments, **options)

    monkeypatch.setattr(train_digit_vit, "batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "never.safetensors")
    monkeypatch.setattr(train_digit_vit, "batch", make)
    train(tmp_path / "resumed.safetensors", "--resume")
    assert (tmp_path / "resumed.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
