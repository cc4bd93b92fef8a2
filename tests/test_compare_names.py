"""Names of methods and metrics: the user's own, third parties', and such that look like numbers."""

import importlib.metadata
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import quantus_metrics
from xai_compare import compare
from xai_compare.cli import main


@pytest.mark.slow
def test_names_that_look_like_numbers_or_nothing_stay_names(tmp_path):
    names = ["1", "null", "NA", "1e3", "true"]
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), torch.rand(3, 1, 6, 6)
    metrics = {name: quantus_metrics.Compactness() for name in ("2", "nan")}
    methods = dict.fromkeys(names, "ixg")
    found = compare(model, images, out=tmp_path / "run", methods=methods, metrics=metrics, gallery=0, resamples=100)
    summary, tests = found.summary(), found.tests()
    assert summary.method.tolist() == 2 * [name.lower() for name in names]
    assert summary.metric.unique().tolist() == ["2", "nan"]
    assert summary.direction.tolist() == 10 * ["higher"]
    assert summary["mean"].dtype == summary.n.astype(float).dtype == float
    assert tests[["metric", "method_a", "method_b"]].to_numpy()[0].tolist() == ["2", "1", "null"]
    assert tests.p.dtype == float


class Theirs(quantus_metrics.Compactness):
    """A third party's score."""


@pytest.mark.slow
def test_third_parties_add_methods_and_metrics(monkeypatch, capsys, tmp_path):
    points = [
        importlib.metadata.EntryPoint("Their Method", "captum.attr:Saliency", "xai_compare.methods"),
        importlib.metadata.EntryPoint("their_metric", f"{__name__}:Theirs", "xai_compare.metrics"),
    ]
    real = importlib.metadata.entry_points
    ours = {"xai_compare.methods": points[:1], "xai_compare.metrics": points[1:]}
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **by: ours.get(by.get("group")) or real(**by))
    main(["--list"])
    listed = capsys.readouterr().out
    assert "their-method" in listed
    assert "their-metric" in listed
    for name in ("soft-average-drop", "smooth-cdam", "gradcam", "ig", "faithfulness-correlation", "captum_ext: "):
        assert name in listed
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), torch.rand(2, 1, 6, 6)
    names = {"methods": ["their-method", "saliency"], "metrics": ["their-metric", "compactness"]}
    found = compare(model, images, out=tmp_path / "run", gallery=0, resamples=100, **names)
    scores = found.scores().pivot(index="sample", columns=["method", "metric"], values="score")
    assert scores.notna().all(axis=None)
    assert (scores["their-method"].to_numpy() == scores["saliency"].to_numpy()).all()
    points[0] = importlib.metadata.EntryPoint("broken", "no_such_module:Method", "xai_compare.methods")
    ours["xai_compare.methods"] = points[:1]
    with pytest.raises(ValueError, match=r"'broken', which .* no_such_module:Method, cannot be loaded"):
        compare(model, images, out=tmp_path / "other", **names)


def test_own_names_have_options_of_their_own(tmp_path):
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), torch.rand(3, 1, 6, 6)
    few = {"out": tmp_path / "run", "metrics": ["compactness"], "gallery": 0, "resamples": 100}
    options = {"twice": {"n_steps": 20}, "ig": {"n_steps": 10}}
    forwards = compare(model, images, methods="ig, twice=ig", options=options, **few).run["forwards"]
    assert forwards["twice"] == pytest.approx(2 * forwards["ig"], rel=0.1)


@pytest.mark.slow
def test_methods_that_stand_for_the_same_have_titles_of_their_own(tmp_path):
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), torch.rand(3, 1, 6, 6)
    few = {"out": tmp_path / "run", "gallery": 1, "resamples": 100}
    names = {"methods": ["ixg", "x2=ixg", "saliency"], "metrics": ["compactness", "again=compactness"]}
    facts = compare(model, images, **names, **few).run
    assert [one["title"] for one in facts["methods"].values()] == [
        "Input x Gradient (ixg)",
        "Input x Gradient (x2)",
        "Saliency",
    ]
    assert len({one["title"] for one in facts["metrics"].values()}) == 2


@pytest.mark.parametrize("name", ["", "!!!", "\u00c4", "\u65b9\u6cd5"])
def test_names_of_which_nothing_is_left_are_refused(tmp_path, name):
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), torch.rand(2, 1, 6, 6)
    said = f"Expected names with a letter from a to z or a digit, got '{name}': rename it"
    with pytest.raises(ValueError, match=said):
        compare(model, images, out=tmp_path / "run", methods={name: "ixg"}, metrics=["compactness"])
    with pytest.raises(ValueError, match=said):
        compare(model, images, out=tmp_path / "run", methods=["ixg"], metrics={name: quantus_metrics.Compactness()})
    with pytest.raises(TypeError, match="Expected names as text, got 5"):
        compare(model, images, out=tmp_path / "run", methods={5: "ixg"}, metrics=["compactness"])


@pytest.mark.parametrize(("group", "name"), [("methods", "GradCAM"), ("metrics", "compactness")])
def test_third_parties_do_not_replace_what_is_there(monkeypatch, tmp_path, group, name):
    point = importlib.metadata.EntryPoint(name, "captum.attr:Saliency", f"xai_compare.{group}")
    real = importlib.metadata.entry_points
    ours = {f"xai_compare.{group}": [point]}
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **by: ours.get(by.get("group")) or real(**by))
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), torch.rand(2, 1, 6, 6)
    with pytest.raises(ValueError, match=f"'{name}', which .* offers .*, is also the name of another one here"):
        compare(model, images, out=tmp_path / "run", methods=["ixg"], metrics=["compactness"])


@pytest.mark.slow
def test_methods_have_the_same_fingerprint_in_every_process():
    """By which a run is resumed; sets of names, for one, have another order in each."""
    code = (
        "import json; from xai_compare._methods import methods; from xai_compare._fingerprint import fingerprint; "
        "print(json.dumps({name: fingerprint(method.make) for name, method in methods().items()}))"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    ]
    assert said[0] == said[1]
    assert b"guided-backprop" in said[0]
    assert b"0x" not in said[0]


@pytest.mark.parametrize("name", ["..", ".", "++", "\u00e4"])
def test_names_without_letters_and_digits_are_refused_as_files_are_called_by_them(tmp_path, name):
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), torch.rand(3, 1, 6, 6)
    for given in ({"methods": {name: "ixg"}}, {"model": {name: model}}):
        with pytest.raises(ValueError, match="a letter from a to z or a digit"):
            compare(**({"model": model, "data": images, "out": tmp_path, "metrics": ["compactness"]} | given))
    assert list(tmp_path.iterdir()) == []
