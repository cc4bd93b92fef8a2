"""Scores against plain loops, numbers by hand, and what is undefined."""

import functools
import re
import warnings

import numpy as np
import pytest
import torch
from score_derivations import (
    SCORES,
    WRONG,
    A,
    H,
    W,
    X,
    Y,
    close,
    every_score,
    f,
    function,
    make,
    net,
    p,
    score,
    tensors,
)
from torch import nn

import quantus_metrics as qm
from quantus_metrics._blur import blurred
from quantus_metrics.box_sensitivity import _corners


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", [name for name in SCORES if name != "class"])
def test_score_is_that_of_plain_loops(name):
    model, (_, derivation, options) = net(), SCORES[name]
    expected = [derivation(model, *sample, **options) for sample in zip(X, Y, A, strict=True)]
    assert len(set(expected)) > 1
    close(function(name)(model, *tensors(X, Y, A), **options), expected)
    signed = name.startswith(("LIF", "MIF", "box", "compactness"))  # the map as it is, not its range
    close(score(name, model, a=A[:, None] * 5 + 3 * (not signed), batch_size=3), expected)
    close(score(name, model, a=np.stack([A - WRONG, WRONG], 1)), expected)  # channels are summed
    if "answer" in derivation.__code__.co_varnames:
        options = options | {"answer": p}
        expected = [derivation(model, *sample, **options) for sample in zip(X, Y, A, strict=True)]
        close(score(name, model, softmax=True), expected)


@pytest.mark.parametrize("inner", ["box", "LIF-MIF"])
def test_class_discrimination_is_a_difference_of_scores_of_one_class(inner):
    model, metric = net(), qm.ClassDiscrimination(make(inner), disable_warnings=True)
    expected = np.subtract(score(inner, model), score(inner, model, a=WRONG))
    close(qm.class_discrimination(model, *tensors(X, Y, A, WRONG), metric=make(inner)), expected)
    close(metric(model, X, Y, A, wrong_a_batch=WRONG, batch_size=2), expected)
    assert metric(model, X, Y, A, wrong_a_batch=A) == [0.0] * 5
    close(metric(model, X, Y, A, wrong_a_batch=0 * A), np.add(expected, score(inner, model, a=WRONG)))
    assert metric.undefined == [0, 1, 2, 3, 4]

    def explain(inputs, targets, **_):
        return np.stack([x[0] + y * x[1] for x, y in zip(inputs, targets, strict=True)])

    likeliest = [max({0, 1, 2, 3} - {y}, key=f(model, x).__getitem__) for x, y in zip(X, Y, strict=True)]
    for other, given in ((likeliest, {}), ((Y + 1) % 4, {"wrong_y_batch": (Y + 1) % 4})):
        expected = metric(model, X, Y, explain(X, Y), wrong_a_batch=explain(X, other))
        close(metric(model, X, Y, explain_func=explain, batch_size=2, **given), expected)


@pytest.mark.parametrize(("pad_id", "relative"), [(None, True), (0, True), (0, False)])
@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.0, 1.0])
def test_tokens_are_masked_as_in_plain_loops(fraction, relative, pad_id):
    parts, masks = nn.Sequential(nn.Embedding(30, 4), nn.Tanh(), nn.Flatten(), nn.Linear(40, 3)).double(), []
    ids, classes, maps, expected = torch.randint(1, 29, (4, 10)), [0, 1, 2, 0], torch.randn(4, 10).double(), []
    ids[1, 6:], ids[2, 1:], maps[1, 6:] = 0, 0, 9.0  # padding would be the most salient
    for x, y, a in zip(ids, classes, maps, strict=True):
        real = [t for t in range(10) if pad_id is None or x[t] != pad_id]
        top = sorted(real, key=lambda t, a=a: -a[t])[: int(np.ceil(round(fraction * len(real), 9)))]
        before, after = p(parts, x.numpy())[y], p(parts, np.array([29 if t in top else x[t] for t in range(10)]))[y]
        expected.append(max(0, before - after) / (before if relative else 1))

    def model(x, **options):
        masks.append(options.get("attention_mask"))
        return parts(x)

    options = {"mask_id": 29, "pad_id": pad_id, "fraction": fraction, "relative": relative}
    close(qm.removal_drop(model, ids, classes, maps, **options), expected)
    assert pad_id is None or torch.equal(torch.cat(masks), (ids != 0).long().repeat(2, 1))
    close(qm.RemovalDrop(**options)(model, ids.numpy(), classes, maps.numpy(), batch_size=3), expected)
    assert all((mask is None) == (pad_id is None) for mask in masks)


def test_the_options_of_quantus_are_followed_sample_by_sample():
    own = {"normalise": True, "normalise_func": lambda one, share: one - share * one.mean(), "abs": True}
    own["normalise_func_kwargs"] = {"share": 0.5}
    prepared = abs(A - 0.5 * A.mean((1, 2), keepdims=True))
    for name in ("compactness", "box"):
        close(make(name, **own)(net(), X, Y, A, batch_size=2), score(name, net(), a=prepared))
        assert score(name, net(), metric=make(name, return_aggregate=True)) == [np.mean(score(name, net()))]
    lower = [name for name in SCORES if make(name).score_direction.value == "lower"]
    assert lower == ["AD", "deletion", "deletion, blurred", "MIF"]


@pytest.mark.parametrize(("name", "curve"), [("box", "correlation"), ("MIF", "MIF"), ("insertion", "probability")])
def test_a_score_is_the_area_under_its_curve(name, curve):
    metric = make(name)
    scores, points = metric(net(), X, Y, A, batch_size=2), metric.axis[1]
    areas = np.trapezoid(metric.curves[curve], points, axis=1)
    close(scores, areas / (4 if name == "box" else 1))


def test_boxes_lie_anywhere_inside_and_depend_on_seed_and_size():
    corners, counts = _corners(3, (6, 8), 24_000, 5), np.zeros((4, 6), int)
    np.add.at(counts, tuple(corners.T.numpy()), 1)  # an error outside
    assert abs(counts - 1000).max() < 160  # five standard deviations
    assert torch.equal(corners, _corners(3, (6, 8), 24_000, 5))
    assert not torch.equal(corners, _corners(3, (6, 8), 24_000, 6))
    assert not torch.equal(_corners(2, (6, 8), 50, 5), _corners(3, (7, 9), 50, 5))  # in the same range


def test_defaults_are_those_of_the_papers():
    x, y, a = torch.randn(1, 2, 28, 42).double(), torch.tensor([1]), torch.randn(1, 28, 42).double()
    model = nn.Sequential(nn.Conv2d(2, 3, 5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(312, 4)).double()
    said = {"box_sizes": [2, 4, 6, 8, 10, 12, 14, 16], "blur_sigma": 14 * 28 / 224, "num_boxes": 100, "seed": 0}
    close(qm.box_sensitivity(model, x, y, a), qm.box_sensitivity(model, x, y, a, **said), 0)
    kernel = np.exp(-0.5 * (np.arange(-7, 8) / 1.75) ** 2)
    mirrored = np.pad(x[0].numpy(), ((0, 0), (7, 7), (7, 7)), mode="symmetric")
    windows = np.lib.stride_tricks.sliding_window_view(mirrored, (15, 15), axis=(1, 2))
    close(blurred(x)[0], np.einsum("chwij,i,j->chw", windows, kernel, kernel) / kernel.sum() ** 2)
    weight = qm.area_weight(torch.linspace(0, 1, 1001).double())
    assert (weight[0], weight[250], weight.argmax(), weight[1000]) == (0, 1, 250, 5 / 257)


def test_the_exact_attribution_of_a_linear_model_is_sensitive_and_faithful():
    weights, x, y = torch.randn(2, 3, 32, 32).double(), torch.randn(3, 3, 32, 32).double(), torch.tensor([0, 1, 1])
    model = functools.partial(torch.einsum, "kchw,bchw->bk", weights)
    assert (qm.box_sensitivity(model, x, y, weights[y] * x) > 0.97).all()
    assert (qm.fidelity(model, x, y, weights[y] * x) > 0).all()
    close(qm.box_sensitivity(model, x, y, -weights[y] * (x - blurred(x))), [-1] * 3)


def told(name, *args, **kwargs):
    """Scores, undefined samples and what was said."""
    metric = make(name, disable_warnings=kwargs.pop("disable_warnings", False))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return score(name, *args, metric=metric, **kwargs), metric.undefined, [str(w.message) for w in caught]


@pytest.mark.sampled(6)
@every_score
def test_a_constant_map_is_undefined_counted_and_said_once(name):
    maps = np.stack([A[0], A[1], np.full((H, W), 0.1)])
    data = {"x": X[:3], "y": Y[:3], "a": maps, "wrong": maps}
    scores, undefined, said = told(name, net(), **data, batch_size=2)
    alone, *rest = told(name, net(), **{key: value[:2] for key, value in data.items()})
    close(scores[:2], alone)
    assert (undefined, *rest) == ([2], [], [])
    assert scores[2] == 0 or name not in ("SAD", "removal", "EAD", "box", "LIF-MIF", "class")
    assert told(name, net(), **data, batch_size=2, disable_warnings=True) == (scores, [2], [])
    assert [re.search(".. of .", one).group() for one in said] == [" 1 of 3"]


@pytest.mark.parametrize("name", [name for name in SCORES if not name.startswith("compactness")])
def test_a_constant_response_has_a_defined_score(name):
    model, y, certain = net(), np.array([0, 1, 2, 3, 0]), np.array([1, 0, 0, 0, 1])
    nn.init.zeros_(model[-1].weight)
    areas = {**dict.fromkeys(("insertion", "deletion", "deletion, blurred"), 1), "LIF": 1e5, "MIF": 1e5}.get(name, 0)
    undefined = {0: name.startswith(("SAD", "removal", "EAD", "AD")), 1: name == "AG"}  # by p
    for logit, probability in ((0, np.full(5, 0.25)), (1000, certain)):
        model[-1].bias.data = torch.tensor([logit, 0, 0, 0]).double()
        scores, samples, _ = told(name, model, y=y)
        close(scores, areas * (probability if areas < 2 else certain * (logit > 0)) + np.zeros(5))
        constant = name.startswith(("box", "class"))
        assert samples == [i for i in range(5) if constant or (logit and undefined[certain[i]])]


@pytest.mark.parametrize("sizes", [[2], [2, 4, 6]])
def test_equal_sums_in_all_boxes_of_a_size_are_undefined(sizes):
    metric = qm.BoxSensitivity(sizes, disable_warnings=True)
    assert metric(net(), X, Y, np.tile([[0.1, 0.7], [0.3, 1.1]], (5, 5, 4))[:, :H, :W]) == [0.0] * 5  # a tiled map
    assert metric.undefined == [0, 1, 2, 3, 4]
