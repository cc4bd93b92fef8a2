"""A folder belongs to one run: what goes on in it, what is refused, and what is read from it."""

import json
from functools import partial

import pandas as pd
import pytest
import torch
from captum.attr import InputXGradient, Saliency
from torch import nn

import quantus_metrics
from xai_compare import Comparison, compare
from xai_compare._storage import Storage

pytestmark = pytest.mark.slow


def linear(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 3))


@pytest.fixture
def run(tmp_path):
    images = torch.randn(5, 1, 6, 6)

    def run(methods, folder, **settings):
        cheap = {"metrics": ["compactness"], "gallery": 0, "resamples": 100, "batch_size": 2}
        return compare(linear(), images, out=tmp_path / folder, methods=methods, **(cheap | settings))

    return run


class Interrupting:
    left = 0

    def __init__(self, model):
        del model

    def attribute(self, inputs, target):
        Interrupting.left -= 1
        if Interrupting.left == 0:
            raise KeyboardInterrupt
        return torch.randn_like(inputs)


def test_ctrl_c_keeps_what_is_finished_and_the_run_goes_on(run, tmp_path, monkeypatch):
    methods = {"ixg": "ixg", "interrupting": Interrupting}
    Interrupting.left = 6  # three of the check, one a batch, as no metric asks for other classes
    with pytest.raises(KeyboardInterrupt):
        run(methods, "stopped")
    left = pd.read_parquet(tmp_path / "stopped" / "scores.parquet")
    assert left[left.method == "ixg"]["sample"].tolist() == [0, 1, 2, 3, 4]  # also of the batch that was stopped
    assert left[left.method == "interrupting"]["sample"].tolist() == [0, 1, 2, 3]
    resumed = run(methods, "stopped").scores()
    whole = run(methods, "whole").scores()
    pd.testing.assert_frame_equal(resumed.drop(columns="seconds"), whole.drop(columns="seconds"), check_exact=True)
    device = Comparison(tmp_path / "whole").run["device"]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    run(methods, "whole")  # what is finished is not interrupted, only reported again
    assert Comparison(tmp_path / "whole").run["device"] == device
    for folder, count in (("stopped", 1), ("whole", 0)):
        found = Comparison(tmp_path / folder)
        assert found.run["interruptions"] == count
        assert (", with 1 interruption." in found.report().read_text()) == count


def test_a_run_with_anything_else_is_refused_and_named(tmp_path):
    class Own:
        def __init__(self, model):
            del model

        def attribute(self, inputs, target):
            return inputs.detach()

    def make(seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 3))

    images, labels = torch.rand(4, 1, 6, 6), [0, 1, 2, 0]
    same = {
        "model": make(0),
        "data": (images, labels),
        "methods": {"own": Own, "ixg": partial(InputXGradient)},
        "metrics": {"size": quantus_metrics.Compactness(0.05)},
        "gallery": 0,
        "resamples": 100,
        "options": {"ixg": {"channels": "keep"}},
        "out": tmp_path / "run",
    }
    before = compare(**same).scores()
    changes = {
        "weights": {"model": make(1)},
        "samples": {"data": (images.flip(0), labels)},
        "settings.targets": {"targets": "label"},
        "methods.own.source": {"methods": {"own": Saliency, "ixg": partial(InputXGradient)}},
        "methods.ixg.source": {"methods": {"own": Own, "ixg": partial(Saliency)}},
        "metrics.size.threshold": {"metrics": {"size": quantus_metrics.Compactness(0.06)}},
        "settings.seed": {"seed": 1},
        "settings.batch_size": {"batch_size": 3},
        "settings.dtype": {"dtype": "float64"},
        "methods.ixg.options.channels": {"options": {"ixg": {"channels": "sum"}}},
    }
    for what, change in changes.items():
        with pytest.raises(ValueError, match=rf"holds another run: .*{what} was") as refusal:
            compare(**(same | change))
        assert str(refusal.value).count(" was ") <= 2  # nothing else differs
    with pytest.raises(ValueError, match="samples was"):  # one label in the middle
        compare(**(same | {"data": (images, [0, 2, 2, 0])}))
    pd.testing.assert_frame_equal(compare(**same).scores(), before)


def test_settings_from_tensors_and_functions_make_a_run_too(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    same = {"methods": ["ig"], "metrics": ["compactness"], "gallery": 0, "resamples": 100, "out": tmp_path / "run"}
    images = torch.rand(2, 1, 6, 6)
    compare(model, images, options={"ig": {"baselines": torch.zeros(1, 1, 6, 6)}}, **same)
    with pytest.raises(ValueError, match=r"methods.ig.options.baselines was"):
        compare(model, images, options={"ig": {"baselines": torch.ones(1, 1, 6, 6)}}, **same)


def test_random_weights_are_those_of_the_seed(tmp_path):
    few = {"methods": ["random"], "metrics": ["compactness"], "gallery": 0, "resamples": 100, "limit": 1}
    options = {"model": {"img_size": 48, "in_chans": 1, "embed_dim": 12, "depth": 1, "num_heads": 1, "num_classes": 10}}

    def weights(seed, name):
        name = tmp_path / name
        return compare("timm:vit_tiny_patch16_224", "digits", out=name, seed=seed, options=options, **few).run[
            "weights"
        ]

    state = torch.get_rng_state()
    first = weights(0, "a")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert weights(0, "b") == first
    assert weights(1, "c") != first


def test_results_are_read_from_the_folder(run, tmp_path):
    run(["ixg", "saliency"], "read", gallery=2)
    found = Comparison(tmp_path / "read")
    summary = found.summary()
    assert summary.method.tolist() == ["ixg", "saliency"]
    assert summary["mean"].tolist() == pytest.approx(found.scores().groupby("method").score.mean().tolist())
    assert found.tests()[["method_a", "method_b", "n"]].to_numpy().tolist() == [["ixg", "saliency", 5]]
    assert found.run["seed"] == 0
    assert found.run["versions"]["torch"] == torch.__version__.split("+")[0]
    assert found.run["settings"]["batch_size"] == 2
    assert len(found.run["weights"]) == 64
    assert "<html" in found.report().read_text()
    assert len(found.explanations()) == 10
    with pytest.raises(ValueError, match="holds no run"):
        Comparison(tmp_path)


def test_images_at_once_may_change_only_where_scores_do_not_draw_by_them(run):
    for forward_batch in (64, 2):
        run(["ixg"], "ours", forward_batch=forward_batch)
    options = {"faithfulness-correlation": {"nr_runs": 5, "subset_size": 6}}
    theirs = {"metrics": ["faithfulness-correlation"], "options": options}
    run(["ixg"], "theirs", **theirs)
    with pytest.raises(ValueError, match=r"metrics\.faithfulness-correlation\.forward_batch was 64 and is 2"):
        run(["ixg"], "theirs", forward_batch=2, **theirs)


def test_a_disk_that_fills_up_ends_the_run_which_goes_on_later(run, tmp_path, monkeypatch):
    write = Storage.write

    def full(self, name, content):
        if name == "scores.parquet/part-0000000002.parquet":
            raise OSError(28, "No space left on device")
        write(self, name, content)

    monkeypatch.setattr(Storage, "write", full)
    with pytest.raises(OSError, match="No space left"):
        run(["ixg"], "run")
    monkeypatch.undo()
    assert pd.read_parquet(tmp_path / "run" / "scores.parquet")["sample"].tolist() == [0, 1]
    found, whole = (run(["ixg"], name) for name in ("run", "whole"))
    for table in ("scores", "explanations"):  # nothing twice
        rows = [getattr(one, table)().drop(columns="seconds") for one in (found, whole)]
        pd.testing.assert_frame_equal(*rows, check_exact=True)


def test_a_run_begun_with_other_versions_is_finished_with_them_only(run, tmp_path):
    run(["ixg"], "run")
    facts = tmp_path / "run" / "run.json"
    old = json.loads(facts.read_text())
    old["versions"]["torch"] = "2.8.0"
    facts.write_text(json.dumps(old))
    assert run(["ixg"], "run").run["versions"]["torch"] == "2.8.0"  # nothing was left to do
    next((tmp_path / "run" / "scores.parquet").glob("part-*")).unlink()
    with pytest.raises(
        ValueError, match=r"was begun with torch 2\.8\.0; here is torch .*, with which numbers may differ"
    ):
        run(["ixg"], "run")
