"""Several models as an axis of a run: the same samples, scores by model, tests between models."""

import gc
import weakref

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import nn

from xai_compare import Comparison, compare
from xai_compare.cli import main

IMAGES = torch.randn(7, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def linear(seed, classes=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, classes)).eval()


def run(model, folder, methods=("ixg", "saliency"), metrics=("compactness", "deletion"), images=IMAGES, **settings):
    cheap = {"gallery": 2, "resamples": 100, "batch_size": 3}
    return compare(model, images, out=folder, methods=methods, metrics=metrics, **(cheap | settings))


def frame(table, **chosen):
    for name, value in chosen.items():
        table = table[table[name] == value].drop(columns=name)
    return table.drop(columns=[c for c in table if c.endswith("seconds")]).reset_index(drop=True)


@pytest.mark.slow
def test_each_model_has_the_rows_that_it_has_alone(tmp_path):
    both = run({"First": linear(0), "second": linear(1, 4)}, tmp_path / "both")
    assert list(both.run["models"]) == ["first", "second"]
    assert both.run["model"] == "First, second"
    for name, model in (("first", linear(0)), ("second", linear(1, 4))):
        alone = run(model, tmp_path / name)
        for table in ("scores", "explanations", "summary", "tests"):
            expected = frame(getattr(alone, table)())
            assert "model" not in expected
            pd.testing.assert_frame_equal(frame(getattr(both, table)(), model=name), expected, check_exact=True)
    assert both.explanations().groupby("model").target.nunique().min() > 1


@pytest.mark.slow
def test_models_are_told_apart_by_paired_tests_over_the_same_samples(tmp_path):
    both = run({"a": linear(0), "b": linear(1)}, tmp_path / "both")
    tests, scores = both.model_tests(), both.scores()
    assert tests[["metric", "method"]].to_numpy().tolist() == [
        [metric, method] for method in ("ixg", "saliency") for metric in ("compactness", "deletion")
    ]
    for row in tests.itertuples():
        of = scores[(scores.metric == row.metric) & (scores.method == row.method)]
        a, b = (of[of.model == name].set_index("sample").score for name in (row.model_a, row.model_b))
        assert row.n == 7
        assert row.median_difference == pytest.approx((a - b).median())
        assert row.p == pytest.approx(stats.wilcoxon(a - b).pvalue)
        others = sorted(tests.p[tests.metric == row.metric])
        assert row.p_holm == pytest.approx(min(1, max(2 * others[0], row.p if row.p > others[0] else 0)))


@pytest.mark.slow
def test_models_are_added_to_a_run_and_only_what_is_missing_is_computed(tmp_path):
    models = {"a": linear(0), "b": linear(1)}
    whole = run(models, tmp_path / "whole")
    run({"a": models["a"]}, tmp_path / "grown", ["ixg"])
    before = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "grown" / "scores.parquet").iterdir()}
    run({"b": models["b"]}, tmp_path / "grown", ["ixg"])
    after = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "grown" / "scores.parquet").iterdir()}
    assert before.items() < after.items()
    grown = run(models, tmp_path / "grown")
    for table in ("scores", "summary", "model_tests"):
        frames = [frame(getattr(one, table)()) for one in (whole, grown)]
        keys = [name for name in ("model", "sample", "method", "metric") if name in frames[0]]
        frames = [one.sort_values(keys).reset_index(drop=True) for one in frames]
        pd.testing.assert_frame_equal(*frames, check_exact=True)
    with pytest.raises(ValueError, match=r"models\.a\.weights was .*a name of its own"):
        run({"a": linear(2)}, tmp_path / "grown")


@pytest.mark.slow
def test_a_method_that_fits_one_model_only_is_left_out_for_the_other(tmp_path):
    conv = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    found = run({"flat": linear(0), "conv": conv}, tmp_path / "run", ["gradcam", "ixg"])
    assert found.scores().groupby("model").method.unique().map(list).to_dict() == {
        "conv": ["gradcam", "ixg"],
        "flat": ["ixg"],
    }
    assert list(found.run["models"]["flat"]["unfit"]) == ["gradcam"]
    assert "No target layer is found" in found.run["models"]["flat"]["unfit"]["gradcam"]
    assert found.scores().error.isna().all()
    again = run({"flat": linear(0), "conv": conv}, tmp_path / "run", ["gradcam", "ixg"])
    pd.testing.assert_frame_equal(again.scores(), found.scores())
    with pytest.raises(ValueError, match=r"1 of 2 methods fit none of the 2 models.*\n- cdam: "):
        run({"flat": linear(0), "conv": conv}, tmp_path / "refused", ["cdam", "ixg"])


@pytest.mark.slow
def test_checkpoints_of_one_model_are_models(tmp_path):
    for epoch in (1, 2):
        torch.save(linear(epoch).state_dict(), tmp_path / f"epoch-{epoch}.pt")
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(36, 3))\n"
    )
    name = f"python:{tmp_path / 'net.py'}:net"
    files = [str(tmp_path / "epoch-1.pt"), f"last={tmp_path / 'epoch-2.pt'}"]
    both = run(name, tmp_path / "both", checkpoint=files)
    assert list(both.run["models"]) == ["epoch-1", "last"]
    for model, epoch in (("epoch-1", 1), ("last", 2)):
        alone = run(linear(epoch), tmp_path / model)
        pd.testing.assert_frame_equal(frame(both.scores(), model=model), frame(alone.scores()), check_exact=True)
        assert both.run["models"][model]["weights"] == alone.run["weights"]
    named = run([f"one={name}", f"two={name}"], tmp_path / "named", checkpoint=[f"two={tmp_path / 'epoch-2.pt'}"])
    assert named.run["models"]["two"]["weights"] == both.run["models"]["last"]["weights"]
    assert named.run["models"]["one"]["weights"] not in {m["weights"] for m in both.run["models"].values()}
    with pytest.raises(ValueError, match=r"checkpoint of several models as NAME=FILE, where NAME is one of one, two"):
        run([f"one={name}", f"two={name}"], tmp_path / "wrong", checkpoint=files)


def test_wrong_models_are_errors_that_say_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"'Sequential' is the name of two models: pass a mapping, model=\{"):
        run([linear(0), linear(1)], tmp_path)
    with pytest.raises(ValueError, match=r"'a.1' and 'A.1' are the same name"):
        run({"a.1": linear(0), "A.1": linear(1)}, tmp_path)
    with pytest.raises(TypeError, match=r"torch.nn.Module or a name, or several of these, got <class 'int'>"):
        run({"a": linear(0), "b": 3}, tmp_path)
    with pytest.raises(ValueError, match="at least one model, got none"):
        run([], tmp_path)
    with pytest.raises(ValueError, match=r"no checkpoint='x.pt' for Sequential, a model with weights"):
        run(linear(0), tmp_path, checkpoint="x.pt")
    with pytest.raises(ValueError, match=r"no pretrained=True for Sequential"):
        run(linear(0), tmp_path, pretrained=True)
    assert list(tmp_path.iterdir()) == []


ALIVE = weakref.WeakSet()
AT_MOST = []


class Counted(nn.Sequential):
    def __init__(self, seed):
        super().__init__(nn.Flatten(), nn.Linear(36, 3))
        self.load_state_dict(linear(seed).state_dict())
        gc.collect()
        ALIVE.add(self)
        AT_MOST.append(len(ALIVE))


def counted(seed=0):
    return Counted(seed)


@pytest.mark.slow
def test_one_named_model_is_in_memory_at_a_time(tmp_path):
    options = {"b": {"seed": 1}, "model": {"seed": 0}}
    names = [f"{one}=python:test_compare_models:counted" for one in ("a", "b")]
    found = run(names, tmp_path / "run", options=options)
    assert max(AT_MOST) == 1
    assert len(AT_MOST) >= 2
    alone = run(linear(1), tmp_path / "alone")
    pd.testing.assert_frame_equal(frame(found.scores(), model="b"), frame(alone.scores()), check_exact=True)


@pytest.mark.slow
def test_data_that_can_be_read_once_are_read_for_all_models(tmp_path):
    stream = (one for one in IMAGES)
    found = run({"a": linear(0), "b": linear(1)}, tmp_path / "run", images=stream, limit=4)
    assert found.scores().groupby("model")["sample"].nunique().to_dict() == {"a": 4, "b": 4}


@pytest.mark.slow
def test_models_on_the_command_line(tmp_path, capsys):
    options = ["--option", "small.embed_dim=12", "--option", "large.embed_dim=24"]
    shared = {"img_size": 48, "in_chans": 1, "depth": 1, "num_heads": 1, "num_classes": 10}
    options += [text for name, value in shared.items() for text in ("--option", f"model.{name}={value}")]
    models = [text for name in ("small", "large") for text in ("--model", f"{name}=timm:vit_tiny_patch16_224")]
    few = ["--data", "digits", "--limit", "2", "--methods", "cdam", "--metrics", "compactness", "--resamples", "100"]
    main([*models, *options, *few, "--out", str(tmp_path / "run"), "--gallery", "1", "--targets", "label"])
    found = Comparison(tmp_path / "run")
    assert found.scores().groupby("model").size().to_dict() == {"large": 2, "small": 2}
    said = capsys.readouterr().out
    assert "small:\n" in said
    assert "4 scores, 0 failed" in said
    assert found.run["settings"]["model"] == ["small=timm:vit_tiny_patch16_224", "large=timm:vit_tiny_patch16_224"]
    assert np.isfinite(found.scores().score).all()
