"""`xai_compare.compare` on small models: the numbers, what is shared, what fails alone, and what is left as found."""

import random
import weakref
from collections import Counter
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
import torch
from captum import attr
from captum.attr import InputXGradient, Saliency
from torch import nn
from toy_models import tiny_vit

import quantus_metrics
from captum_ext import CDAM
from quantus_metrics import box_sensitivity, class_discrimination, compactness, soft_average_drop
from xai_compare import compare

COLUMNS = ["sample", "target", "method", "metric", "score", "error", "seconds"]
BOXES = {"box-sensitivity": {"num_boxes": 4, "box_sizes": [2, 5]}}


PERTURBED = Counter()  # images that passed a Net without gradients, as when scores perturb them


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features, self.head = nn.Conv2d(1, 6, 3, padding=1), nn.Linear(6, 4)
        self.activation = nn.ReLU()  # a layer, as rules of backpropagation need

    def forward(self, x):
        PERTURBED["images"] += len(x) * (not torch.is_grad_enabled())
        return self.head(self.activation(self.features(x)).mean((2, 3)))


@pytest.fixture
def model():
    return Net().eval()


@pytest.fixture
def images():
    return torch.randn(5, 1, 12, 12)


@pytest.fixture
def run(model, images, tmp_path):
    """compare() with what is cheap, into a folder of its own each time unless it is named."""
    count = iter(range(100))

    def run(methods=("ixg",), metrics=("compactness",), model=model, data=images, folder="", **settings):
        out = tmp_path / (folder or f"run{next(count)}")
        cheap = {"gallery": 0, "resamples": 100, "batch_size": 2}
        return compare(model, data, out=out, methods=methods, metrics=metrics, **(cheap | settings))

    return run


def score_of(comparison, method, metric):
    rows = comparison.scores().query("method == @method and metric == @metric")
    return rows.set_index("sample").score


class Attributes:
    """An explanation: the image itself. Subclasses do something wrong."""

    def __init__(self, model):
        del model

    def attribute(self, inputs, target):
        return inputs.detach()


def failing_for(image, error=RuntimeError):
    class Failing(Attributes):
        def attribute(self, inputs, target):
            if any(torch.equal(one, image) for one in inputs):
                raise error("not this one")
            return inputs.detach()

    return Failing


@pytest.mark.slow
def test_scores_are_those_computed_by_hand(run, model, images):
    metrics = ["soft-average-drop", "box-sensitivity", "compactness", "class-discrimination"]
    found = run(["ixg", "saliency"], metrics, options=BOXES)
    scores = found.scores()
    assert list(scores) == COLUMNS
    assert len(scores) == 5 * 2 * 4
    assert scores.error.isna().all()
    assert (scores.seconds > 0).all()
    box = quantus_metrics.BoxSensitivity([2, 5], 4)
    for i, x in enumerate(images.split(1)):
        ordered = model(x)[0].argsort(descending=True)
        y, other = ordered[:1], ordered[1:2]
        assert set(scores.target[scores["sample"] == i]) == {int(y)}
        for name, method in (("ixg", InputXGradient(model)), ("saliency", Saliency(model))):
            a, wrong = (method.attribute(x.clone().requires_grad_(), target=t).detach() for t in (y, other))
            by_hand = [
                soft_average_drop(model, x, y, a),
                box_sensitivity(model, x, y, a, box_sizes=[2, 5], num_boxes=4),
                compactness(a=a),
                class_discrimination(model, x, y, a, wrong, metric=box),
            ]
            for metric, score in zip(metrics, by_hand, strict=True):
                assert score_of(found, name, metric)[i] == pytest.approx(float(score), abs=1e-5)


CAPTUMS = {
    "ig": attr.IntegratedGradients,
    "guided-backprop": attr.GuidedBackprop,
    "deconvolution": attr.Deconvolution,
    "deep-lift": attr.DeepLift,
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Setting")  # Captum's, of the hooks it sets
@pytest.mark.parametrize("name", CAPTUMS)
def test_captums_methods_are_captums(run, name):
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 5), nn.ReLU(), nn.Linear(5, 4))
    images = torch.randn(5, 3, 8, 8)
    found = score_of(run([name], model=net.eval(), data=images), name, "compactness")
    maps = CAPTUMS[name](net).attribute(images.requires_grad_(), target=net(images).argmax(1))
    assert np.allclose(found, compactness(a=maps.sum(1)).detach(), atol=1e-5)
    assert found.between(0.01, 0.99).all()


@pytest.mark.slow
def test_a_transformers_cdam_and_quantus_own_scores(run):
    vit, x = tiny_vit(embed_dim=16, depth=2), torch.randn(3, 3, 32, 32)
    found = run(
        ["cdam"], ["sparseness", "relevance-mass-accuracy"], vit, [(one, 2, one[0] > 0) for one in x], targets="label"
    )
    for i, one in enumerate(x.split(1)):
        heat = nn.functional.interpolate(CDAM(vit).attribute(one, 2), (32, 32), mode="bilinear").flatten()
        ordered, rank = heat.abs().sort().values, torch.arange(1, 1025)
        gini = float((ordered * (2 * rank - 1025)).sum() / (1024 * ordered.sum()))
        assert score_of(found, "cdam", "sparseness")[i] == pytest.approx(gini, abs=1e-4)
        share = float(heat[(one[0, 0] > 0).flatten()].sum() / heat.sum())  # the mask arrives
        assert score_of(found, "cdam", "relevance-mass-accuracy")[i] == pytest.approx(share, abs=1e-4)


@pytest.mark.slow
def test_labels_or_predictions_are_explained(run, model, images):
    labels = [0, 1, 2, 3, 0]
    of = {targets: run(data=(images, labels), targets=targets).explanations() for targets in ("label", "predicted", "")}
    assert of["label"].target.tolist() == labels
    assert of["predicted"].target.tolist() == of[""].target.tolist() == model(images).argmax(1).tolist()


@pytest.mark.slow
def test_digit_scenes_are_explained_by_label_whether_named_or_not(tmp_path):
    few = {"methods": ["random"], "metrics": ["compactness"], "limit": 3, "gallery": 0, "resamples": 100}
    bare, named = (
        compare(*arguments, out=tmp_path / str(len(arguments)), **few) for arguments in ((), ("digits", "digits"))
    )
    from xai_compare.digit_scenes import make_scenes

    assert bare.explanations().target.tolist() == make_scenes(3).labels[:, 0].tolist()
    assert bare.run["identity"] == named.run["identity"]


@pytest.mark.slow
def test_costs_are_in_forward_passes(run):
    found = run(["ixg", "ig", "random"], options={"ig": {"n_steps": 10}})
    forwards = found.run["forwards"]
    assert forwards["ixg"] == pytest.approx(2, abs=0.1)  # forward, and back to the image
    assert forwards["ig"] == pytest.approx(10 * forwards["ixg"], rel=0.1)
    assert forwards["random"] == 0
    summary = found.summary().set_index("method")
    assert summary.explain_forwards.to_dict() == pytest.approx(forwards)
    seconds = found.explanations().groupby("method").seconds.mean()
    assert summary.explain_seconds.to_dict() == pytest.approx(seconds.to_dict())


@pytest.mark.slow
def test_ten_methods_share_the_perturbed_predictions_of_one(run):
    metrics = ["box-sensitivity", "class-discrimination", "compactness"]

    def rows(count):
        before = PERTURBED.total()
        run({f"ixg {i}": "ixg" for i in range(count)}, metrics, options={"box-sensitivity": {"num_boxes": 25}})
        return PERTURBED.total() - before

    one, ten = rows(1), rows(10)
    assert 5 * 25 * 7 < one < 1.3 * 5 * 25 * 7  # all boxes once, for both scores of boxes
    assert ten <= 1.3 * one


@pytest.mark.slow
def test_what_is_drawn_depends_on_nothing_that_runs_beside(run):
    options = BOXES | {"smoothgrad": {"nt_samples": 3}, "faithfulness-correlation": {"nr_runs": 5, "subset_size": 20}}
    metrics = ["faithfulness-correlation", "compactness"]
    alone = run(["smoothgrad"], metrics, options={k: options[k] for k in ("smoothgrad", metrics[0])})
    beside = run(["random", "ixg", "smoothgrad"], ["box-sensitivity", *metrics[::-1]], options=options)
    other = run(["smoothgrad"], metrics, options={k: options[k] for k in ("smoothgrad", metrics[0])}, seed=1)
    for metric in metrics:
        scores = [score_of(one, "smoothgrad", metric) for one in (alone, beside, other)]
        pd.testing.assert_series_equal(scores[0], scores[1], check_exact=True)
        assert not np.allclose(scores[0], scores[2])


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_batches_decide_no_score_that_draws_nothing(run, batch_size):
    metrics = ["box-sensitivity", "class-discrimination", "sparseness"]
    one, other = (run(["ixg"], metrics, options=BOXES, batch_size=size).scores() for size in (2, batch_size))
    both = one.merge(other, on=["sample", "target", "method", "metric"])
    assert len(both) == len(one) == len(other)
    assert np.allclose(both.score_x, both.score_y, atol=1e-5)


@pytest.mark.slow
def test_a_method_that_fails_for_one_sample_costs_its_cells_only(run, images):
    found = run({"failing": failing_for(images[3]), "ixg": "ixg"}, ["compactness", "class-discrimination"], options={})
    failed = found.scores().dropna(subset=["error"])
    assert failed[["sample", "method"]].drop_duplicates().to_numpy().tolist() == [[3, "failing"]]
    assert set(failed.error) == {"RuntimeError: not this one"}
    assert failed.score.isna().all()
    alone = run({"fine": Attributes})
    assert np.allclose(
        score_of(found, "failing", "compactness").drop(3), score_of(alone, "fine", "compactness").drop(3)
    )
    summary = found.summary().set_index(["method", "metric"])
    assert summary.loc[("failing", "compactness"), ["n", "failed"]].tolist() == [4, 1]
    assert summary.loc[("ixg", "compactness"), ["n", "failed"]].tolist() == [5, 0]


@pytest.mark.slow
def test_maps_that_are_none_are_recorded(run, images):
    class Nan(Attributes):
        def attribute(self, inputs, target):
            return (
                torch.where((inputs == images[1]).all(), torch.nan, inputs.detach()) if len(inputs) == 1 else inputs / 0
            )

    class Mean(Attributes):
        def attribute(self, inputs, target):
            return inputs.detach()[:1] if len(inputs) > 1 else inputs.detach()

    found = run({"nan": Nan, "mean": Mean}, batch_size=1).scores()
    assert found.query("error.notna()")[["sample", "method"]].to_numpy().tolist() == [[1, "nan"]]
    assert found.error.dropna().iloc[0] == "ValueError: the map holds NaN or infinity"
    found = run({"mean": Mean, "ixg": "ixg"})  # fewer maps than images: each image is asked for alone
    assert found.scores().error.isna().all()
    assert np.allclose(score_of(found, "mean", "compactness"), compactness(a=images))


class Broken(quantus_metrics.Compactness):
    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def __call__(self, *args, x_batch, **kwargs):
        if isinstance(self.answer, Exception):
            raise self.answer
        return [self.answer] * len(x_batch)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "error"),
    [(MemoryError("full"), "MemoryError: full"), (np.inf, "the score is inf"), (np.nan, "the score is nan")],
)
def test_a_metric_that_fails_costs_its_cells_only(run, answer, error):
    found = run(metrics={"broken": Broken(answer), "fine": quantus_metrics.Compactness()})
    scores = found.scores().set_index("metric")
    assert set(scores.error["broken"]) == {error}
    assert scores.score["broken"].isna().all()
    assert scores.error["fine"].isna().all()
    assert found.summary().set_index("metric").loc["broken", ["n", "failed"]].tolist() == [0, 5]


def test_scores_of_another_number_are_refused_with_their_shape(run, monkeypatch):
    monkeypatch.setattr(quantus_metrics.Compactness, "__call__", lambda *_, **__: [1.0] * 7)
    with pytest.raises(ValueError, match=r"1 of 1 metrics give no number(.|\n)*one for each sample, got shape \(7,\)"):
        run()


@pytest.mark.slow
def test_channels_may_be_kept_beside_failures(run, images):
    colours = images.expand(-1, 3, -1, -1).clone()
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    found = run({"f": failing_for(colours[1])}, model=model, data=colours, options={"f": {"channels": "keep"}})
    assert found.scores().error.notna().tolist() == [False, True, False, False, False]


def test_methods_that_do_not_fit_are_refused_with_reasons_before_any_work(run, tmp_path):
    with pytest.raises(ValueError, match=r"2 of 3 methods do not fit this Net.*\n- cdam: .*convolution.*\n- odd: no"):
        run({"cdam": "cdam", "ixg": "ixg", "odd": failing_first(ValueError("no"))}, folder="kept")
    assert not list((tmp_path / "kept").rglob("part-*"))
    assert len(run(folder="kept").scores()) == 5  # the folder is not spoilt


def failing_first(error):
    class Failing(Attributes):
        def attribute(self, inputs, target):
            raise error

    return Failing


@pytest.mark.slow
def test_a_method_that_always_breaks_is_recorded_cell_by_cell(run):
    with pytest.warns(UserWarning, match="breaks failed on the first sample: RuntimeError: out of order"):
        found = run({"breaks": failing_first(RuntimeError("out of order")), "ixg": "ixg"})
    errors = found.scores().set_index("method").error
    assert set(errors["breaks"]) == {"RuntimeError: out of order"}
    assert errors["ixg"].isna().all()
    assert np.isnan(found.run["forwards"]["breaks"])


@pytest.mark.slow
@pytest.mark.parametrize("error", [None, KeyboardInterrupt("stop"), ValueError("broken")])
def test_the_users_model_and_random_state_are_left_as_found(run, model, images, error):
    model.train()
    model.head.eval()
    model.features.weight.requires_grad_(False)
    model.head(torch.ones(1, 6)).sum().backward()
    hook = model.head.register_forward_hook(lambda *_: None)
    gradient, weights = model.head.weight.grad.clone(), {k: v.clone() for k, v in model.state_dict().items()}
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    few = BOXES | {"max-sensitivity": {"nr_samples": 2}}
    methods = ["ixg", "guided-backprop", "deconvolution", "deep-lift", "gradcam", "smoothgrad", "random"]
    methods = {name: name for name in methods} | ({"fails": failing_first(error)} if error else {})
    with pytest.raises(BaseException, match=str(error)) if error else nullcontext():
        run(methods, ["box-sensitivity", "max-sensitivity"], options=few, dtype="float64")
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()
    assert states[2] == random.getstate()
    assert (model.training, model.features.training, model.head.training) == (True, True, False)
    assert not model.features.weight.requires_grad
    assert model.head.weight.requires_grad
    assert model.features.weight.grad is None
    assert torch.equal(model.head.weight.grad, gradient)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert model.head.weight.dtype == torch.float32
    assert list(model.head._forward_hooks) == [hook.id]
    assert not any((m._forward_hooks or m._backward_hooks or m._forward_pre_hooks) for m in (model, model.features))
    assert not images.requires_grad


@pytest.mark.slow
def test_number_types(run):
    found = {
        dtype: score_of(run(dtype=dtype), "ixg", "compactness") for dtype in ("", "float32", "float64", "bfloat16")
    }
    assert found[""].equals(found["float32"])
    assert np.allclose(found["float64"], found["float32"], atol=0.02)
    assert np.allclose(found["bfloat16"], found["float32"], atol=0.05)
    assert not found["bfloat16"].equals(found["float32"])
    scores = {
        dtype: run(["ixg"], ["box-sensitivity"], dtype=dtype, options=BOXES)
        for dtype in ("float32", "float64", "bfloat16")
    }
    scores = {dtype: score_of(one, "ixg", "box-sensitivity") for dtype, one in scores.items()}
    assert np.allclose(scores["float64"], scores["float32"], atol=1e-3)
    assert not scores["float64"].equals(scores["float32"])  # it was computed otherwise
    assert (scores["bfloat16"] - scores["float32"]).abs().median() < 0.1
    assert not np.allclose(scores["bfloat16"], scores["float32"], atol=1e-3)


@pytest.mark.slow
def test_samples_are_not_kept(run):
    class Data:
        def __init__(self):
            self.alive, self.most = weakref.WeakSet(), 0

        def __len__(self):
            return 40

        def __getitem__(self, index):
            image = torch.randn(1, 12, 12, generator=torch.Generator().manual_seed(index))
            self.alive.add(image)
            self.most = max(self.most, len(self.alive))
            return image

    data = Data()
    assert len(run(data=data).scores()) == 40
    assert data.most <= 5  # a batch of two, and one that is read
