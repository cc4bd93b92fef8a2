"""Scores: each against plain loops; what is shared, independent and left as found; bad input; Quantus around them."""

import copy
import functools
import pickle
import re
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import quantus
import torch
from captum.attr import IntegratedGradients, LayerAttribution, LayerGradCam, LayerIntegratedGradients
from contracts import Breaks, left_as_found
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from toy_models import tiny_vit

import quantus_metrics as qm
from quantus_metrics import explain_func
from quantus_metrics._blur import blurred
from quantus_metrics.box_sensitivity import _corners

H, W = 9, 7  # not square, and not a multiple of the numbers of steps
DRAW = np.random.default_rng(36)  # for which every score has samples above 0
X, Y = DRAW.normal(size=(5, 2, H, W)), np.array([0, 1, 2, 3, 1])
A, WRONG = DRAW.integers(-5, 4, (2, 5, H, W)) / 4  # many pixels are equal, and some are just at the thresholds
A *= np.array([4, 1, 0.5, 8, 0.25])[:, None, None]  # maps of different ranges
BOXES, INSERTION = {"box_sizes": [2, 3, 6], "num_boxes": 12}, {"steps": 10, "blur_sigma": 1.5}
TWO_THIRDS = {"threshold": 2 / 3}


def net(*last, inner=()):
    torch.manual_seed(1)
    layers = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), *inner, nn.Dropout(0.5), nn.Flatten(), nn.Linear(105, 4)
    return nn.Sequential(*layers, *last).double().eval()


def f(model, x):
    return model(torch.from_numpy(x)[None])[0].detach().numpy()


def p(model, x):
    return np.exp(f(model, x)) / np.exp(f(model, x)).sum()


def unit(a):
    return (a - a.min()) / (a.max() - a.min())


def blur(x, sigma=None):
    return blurred(torch.from_numpy(x)[None], sigma)[0].numpy()


def each(value):
    return np.array([[[value(c, i, j) for j in range(W)] for i in range(H)] for c in range(2)])


def kept(model, x, y, a):
    return p(model, x)[y], p(model, each(lambda c, i, j: x[c, i, j] * unit(a)[i, j]))[y]


def sad(model, x, y, a):
    faded = each(lambda c, i, j: x[c, i, j] * (1 - unit(a)[i, j]) + x[c].mean() * unit(a)[i, j])
    return max(0, 1 - p(model, faded)[y] / p(model, x)[y])


def removal(model, x, y, a, threshold=0.5, fill=0.0):
    fill = np.zeros_like(x) + (np.reshape(fill, (-1, 1, 1)) if np.ndim(fill) == 1 else fill)
    rest = each(lambda c, i, j: (fill if unit(a)[i, j] > threshold else x)[c, i, j])
    return max(0, 1 - p(model, rest)[y] / p(model, x)[y])


def ead(model, x, y, a, area_threshold=0.2, **options):
    area = sum(m > area_threshold for m in unit(a).flat) / (H * W)
    return 5 * area / (1 + 256 * area**5) * removal(model, x, y, a, **options)


def exchange(model, start, end, y, a, steps, sign=-1, answer=p):
    places, values = sorted(np.ndindex(H, W), key=lambda place: sign * a[place]), []
    for step in range(steps + 1):
        there = places[: round(step * H * W / steps)]
        values.append(answer(model, each(lambda c, i, j, there=there: (end if (i, j) in there else start)[c, i, j]))[y])
    return (sum(values) - values[0] / 2 - values[-1] / 2) / steps


def deletion(model, x, y, a, steps, fill=0.0, blur_sigma=None):
    return exchange(model, x, np.full_like(x, fill) if blur_sigma is None else blur(x, blur_sigma), y, a, steps)


def fidelity(model, x, y, a, steps, order="LIF-MIF", blur_sigma=None, answer=f):
    signs = {"LIF": [1], "MIF": [-1], "LIF-MIF": [1, -1]}[order]
    areas = [100 * exchange(model, x, blur(x, blur_sigma), y, a, steps, sign, answer) for sign in signs]
    return areas[0] - sum(areas[1:])


def box(model, x, y, a, box_sizes, num_boxes, blur_sigma=None, seed=0, normalise_area=True, answer=f):
    correlations = []
    for size in box_sizes:
        sums, changes = [], []
        for i, j in _corners(size, H, W, num_boxes, seed).tolist():
            image, inside = x.copy(), np.s_[..., i : i + size, j : j + size]
            image[inside] = blur(x, blur_sigma)[inside]
            sums.append(a[inside].sum())
            changes.append(answer(model, x)[y] - answer(model, image)[y])
        correlations.append(np.corrcoef(sums, changes)[0, 1])
    return np.trapezoid(correlations, box_sizes) / (box_sizes[-1] - box_sizes[0] if normalise_area else 1)


SCORES = {  # class, derivation, arguments
    "SAD": (qm.SoftAverageDrop, sad, {}),
    "removal": (qm.RemovalDrop, removal, {}),
    "removal, colour": (qm.RemovalDrop, removal, {"threshold": 0.25, "fill": [0.5, -1.0]}),
    "removal, image": (qm.RemovalDrop, removal, {"fill": DRAW.normal(size=(2, H, W))}),
    "EAD": (qm.EffectiveAverageDrop, ead, {}),
    "EAD, other": (qm.EffectiveAverageDrop, ead, {"threshold": 0.625, "area_threshold": 0.75, "fill": 1.0}),
    "AD": (qm.AverageDrop, lambda *args: max(0, 1 - kept(*args)[1] / kept(*args)[0]), {}),
    "AG": (qm.AverageGain, lambda *args: max(0, 1 - (1 - kept(*args)[1]) / (1 - kept(*args)[0])), {}),
    "AI": (qm.AverageIncrease, lambda *args: float(kept(*args)[1] > kept(*args)[0]), {}),
    "insertion": (qm.Insertion, lambda m, x, y, a, **_: exchange(m, blur(x, 1.5), x, y, a, 10), INSERTION),
    "deletion": (qm.Deletion, deletion, {"steps": 11, "fill": 0.3}),
    "deletion, blurred": (qm.Deletion, deletion, {"steps": 4, "blur_sigma": 1.0}),
    "LIF-MIF": (qm.Fidelity, fidelity, {"steps": 10}),
    "LIF": (qm.Fidelity, fidelity, {"steps": 9, "order": "LIF", "blur_sigma": 1.0}),
    "MIF": (qm.Fidelity, fidelity, {"steps": 8, "order": "MIF"}),
    "box": (qm.BoxSensitivity, box, BOXES),
    "box, raw": (qm.BoxSensitivity, box, BOXES | {"normalise_area": False, "seed": 3, "blur_sigma": 2.0}),
    "compactness": (qm.Compactness, lambda _, x, y, a: np.mean([abs(m) <= 0.05 * a.max() for m in a.flat]), {}),
    "compactness, 2/3": (qm.Compactness, lambda _, x, y, a, **__: np.mean(abs(a) <= 2 / 3 * a.max()), TWO_THIRDS),
    "class": (qm.ClassDiscrimination, None, {}),
}
every_score = pytest.mark.parametrize("name", SCORES)
one_of_each = pytest.mark.parametrize("name", ["SAD", "insertion", "LIF-MIF", "box", "class"])


def make(name, **options):
    inner = {"metric": make("box")} if name == "class" else {}
    return SCORES[name][0](**SCORES[name][2], **inner, **{"disable_warnings": True} | options)


def score(name, model, x=X, y=Y, a=A, wrong=WRONG, metric=None, **call):
    return (metric or make(name))(model, x, y, a, **call | ({"wrong_a_batch": wrong} if name == "class" else {}))


def function(name):
    return getattr(qm, re.sub("(?<!^)([A-Z])", r"_\1", SCORES[name][0].__name__).lower())


def tensors(*values):
    return [torch.tensor(value) for value in values]


def close(actual, expected, tolerance=1e-10):
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=0, atol=tolerance)


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
    corners, counts = _corners(3, 6, 8, 24_000, 5), np.zeros((4, 6), int)
    np.add.at(counts, tuple(corners.T.numpy()), 1)  # an error outside
    assert abs(counts - 1000).max() < 160  # five standard deviations
    assert torch.equal(corners, _corners(3, 6, 8, 24_000, 5))
    assert not torch.equal(corners, _corners(3, 6, 8, 24_000, 6))
    assert not torch.equal(_corners(2, 6, 8, 50, 5), _corners(3, 7, 9, 50, 5))  # in the same range


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


class Everything(nn.Module):
    """One of everything that answers may depend on."""

    def __init__(self):
        super().__init__()
        self.net, self.other = net(), net(inner=[nn.ReLU()])
        self.used, self.act = self.net, torch.tanh
        self.shift, self.scale, self.settings = torch.zeros(1).double(), 1.0, SimpleNamespace(a={"sizes": [1, 12]})
        self.array, self.half, self.hidden = np.ones(1), np.float32(0.5), [nn.Linear(4, 4).double()]
        self.signs = {"+": [1.0], "-": [-1.0]}
        self.sign = self.signs["+"]
        self.hook = self.net[2].register_forward_hook(lambda _, __, output: 2 * output)

    def forward(self, x, p=1.0, q=1.0):
        scale = q * self.scale * self.half * torch.tensor(self.array) * self.sign[0]
        return self.hidden[0](self.act(p * self.used(x + self.shift) * self.settings.a["sizes"][0])) * scale


CHANGES = {
    "weight": lambda m, *_: m.net[0].weight.data.mul_(2),
    "new weight": lambda m, *_: setattr(m.net[0], "weight", nn.Parameter(-m.net[0].weight)),
    "buffer": lambda m, *_: m.net[1].running_mean.add_(1),
    "module": lambda m, *_: m.net.__setitem__(2, nn.Sigmoid()),
    "number": lambda m, *_: setattr(m, "scale", -1.0),
    "tuple": lambda m, *_: vars(m.net[0]).update(padding=(1, 1), dilation=(2, 2)),
    "tensor": lambda m, *_: m.shift.add_(1),
    "entry": lambda m, *_: m.settings.a["sizes"].__setitem__(0, 2),
    "array": lambda m, *_: np.negative(m.array, out=m.array),
    "number of numpy": lambda m, *_: setattr(m, "half", np.float32(-0.5)),
    "digits": lambda m, *_: m.settings.a.update(sizes=[11, 2]),
    "function": lambda m, *_: setattr(m, "act", torch.relu),
    "part": lambda m, *_: setattr(m, "used", m.other),
    "hidden part": lambda m, *_: m.hidden[0].weight.data.mul_(-1),
    "other entry": lambda m, *_: setattr(m, "sign", m.signs["-"]),
    "no hook": lambda m, *_: m.hook.remove(),
    "another hook": lambda m, *_: (m.hook.remove(), m.net[2].register_forward_hook(lambda *args: args[2].cos())),
    "more hooks": lambda m, *_: m.net[2].register_forward_hook(lambda *args: args[2].cos()),
    "hook before": lambda m, *_: m.net[2].register_forward_pre_hook(lambda _, args: args[0].cos()),
    "inputs": lambda m, metric, call: call.update(x=X + 1),
    "shape": lambda m, metric, call: call.update(x=X.reshape(5, 2, W, H), a=A.reshape(5, W, H)),
    "labels": lambda m, metric, call: call.update(y=(Y + 1) % 4),
    "softmax": lambda m, metric, call: call.update(softmax=True),
    "options": lambda m, metric, call: call.update(model_predict_kwargs={"q": 2.0, "p": 3.0}),
    "box_sizes": lambda m, metric, call: setattr(metric, "box_sizes", [2, 4, 6]),
    "num_boxes": lambda m, metric, call: setattr(metric, "num_boxes", 13),
    "blur_sigma": lambda m, metric, call: setattr(metric, "blur_sigma", 3.0),
    "seed": lambda m, metric, call: setattr(metric, "seed", 9),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_noticed(change):
    model, metric, fresh, call = Everything(), make("box"), make("box"), {"model_predict_kwargs": {"p": 2.0, "q": 3.0}}
    before = score("box", model, metric=metric, **call)
    change(model, metric, call)
    vars(fresh).update({k: v for k, v in vars(metric).items() if k != "_cache"})
    after = score("box", model, metric=metric, **call)
    assert after == score("box", model, metric=fresh, **call) != before


def test_functions_in_turn_are_told_apart():
    model, metric = Everything(), make("box")
    for scale in (-1.0, -2.0, -3.0, -4.0):
        model.act = lambda x, scale=scale: (scale * x).sin()
        assert score("box", model, metric=metric) == score("box", model)


def counted(model):
    seen = []
    model.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    return seen


@pytest.mark.parametrize(("name", "first", "again"), [("box", 37, 0), ("class", 37, 0), ("SAD", 2, 1)])
def test_another_explanation_of_the_same_images_costs_no_perturbed_forwards(name, first, again):
    model, metric, x, others = Everything(), make(name), X.copy(), []
    seen = counted(model)
    for rows, maps, forwards in (
        ([0, 1, 2, 3, 4], A, first),
        ([0, 1, 2, 3, 4], WRONG, again),
        ([1, 4, 3, 0, 2], A, again),
    ):
        score(name, model, x[rows], Y[rows], maps, metric=metric)
        assert sum(seen) == 5 * forwards
        seen.clear()
        others += [(len(others), [rows])]  # and what else is in memory does not matter
    x[2] += 1  # one image
    assert score(name, model, x, metric=metric) == score(name, Everything(), x)
    assert sum(seen) == first + 4 * again


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr("quantus_metrics._metric.MEMORY", 1000)
    model, metric = net(), make("box")  # each sample has 36 answers of 8 bytes, and one
    for x in (X, X + 1, X + 2, X):
        assert score("box", model, x, metric=metric) == score("box", net(), x)
        assert sum(kept.nbytes for kept in metric._cache._predictions.values()) <= 1000


@every_score
def test_a_sample_is_scored_by_itself_and_all_is_left_as_found(name):
    model, metric, order = net(nn.Softmax(1)), make(name), [3, 1, 4, 0, 2]
    expected = np.array(score(name, net()))
    model(torch.from_numpy(X)).sum().backward()
    model.train()[1].eval()
    given = [value[order] for value in (X, Y, A, WRONG)]
    inputs = tensors(*given)
    for value in given:
        value.setflags(write=False)
    with left_as_found(model):  # also the random states
        score(name, model, X[::-1], Y, WRONG, metric=metric)
        for size in (1, 2, 64):
            close(score(name, model, *given, metric=metric, batch_size=size), expected[order])
        close([score(name, model, *(value[i : i + 1] for value in given))[0] for i in range(5)], expected[order])
        options = {"metric": make("box")} if name == "class" else SCORES[name][2]
        close(function(name)(model, *inputs[: 3 + (name == "class")], **options), expected[order])
    assert all(np.array_equal(now, value) for now, value in zip(inputs, given, strict=True))


class Calls(nn.Module):
    def __init__(self, call, *parts):
        super().__init__()
        self.call, self.parts = call, nn.ModuleList(parts)

    def forward(self, x):
        return self.call(x, *self.parts)


HALF = net().bfloat16()
SAME = {  # models, and how they are called, with the same scores
    "softmax": (net(nn.Softmax(1)), net(), {}),
    "softmax inside": (net(inner=[nn.Softmax(1)]), net(inner=[Calls(lambda x: x.softmax(1))]), {}),
    "logits": (Calls(lambda x, part: SimpleNamespace(logits=part(x)), net(nn.Softmax(1))), net(), {}),
    "bfloat16": (HALF, lambda x: HALF(x.bfloat16()), {}),
    "channels last": (net(), net(), {"x": X.transpose(0, 2, 3, 1)}),
    "wrapped": (quantus.helpers.utils.get_wrapped_model(net(), True, None), net(), {}),
}


@every_score
@pytest.mark.parametrize(("model", "plain", "call"), SAME.values(), ids=SAME)
def test_a_model_in_another_form_has_the_same_scores(model, plain, call, name):
    close(score(name, model, **call), score(name, plain), 1e-9)


def test_tensors_of_bfloat16_are_scored():
    for name in ("SAD", "removal", "AD", "insertion"):
        x, a = (value.bfloat16() for value in tensors(X, A))
        close(function(name)(HALF, x, Y, a, **SCORES[name][2]), score(name, net()), 0.03)


def bad(value, *samples):
    value = value.copy()
    value[list(samples), ..., 1] = np.nan
    return value


def breaks(inputs, **_):
    if inputs[0, 0, 0, 0] != X[0, 0, 0, 0]:
        raise RuntimeError("mine")
    return A[: len(inputs)]


BAD = {  # arguments, error, message, number of samples that are scored before
    "maps": ({"a": A[:, 1:]}, ValueError, r"\(5, 2, 9, 7\).*\(5, 8, 7\)", 0),
    "fewer maps": ({"a": A[1:]}, ValueError, r"\(5, 2, 9, 7\).*\(4, 9, 7\)", 0),
    "fewer labels": ({"y": Y[1:]}, ValueError, r"\(5, 2, 9, 7\).*\(4,\)", 0),
    "labels": ({"y": Y / 2}, TypeError, "class indices.*float64", 0),
    "class": ({"y": np.array([0, 1, 2, 4, 1]), "batch_size": 1}, ValueError, "from 0 to 3.*got 4", 3),
    "map of NaN": ({"a": bad(A, 3)}, ValueError, r"maps.*sample\(s\) \[3\]", 3),
    "map of NaN, batches": ({"a": bad(A, 3, 4), "batch_size": 2}, ValueError, r"maps.*\[3\]", 3),
    "inputs of NaN": ({"x": bad(X, 3)}, ValueError, r"inputs.*sample\(s\) \[3\]", 3),
    "both": ({"x": bad(X, 4), "a": bad(A, 2)}, ValueError, r"maps.*sample\(s\) \[2\]", 2),
    "no maps": ({"a": None}, TypeError, "explain_func", 0),
    "explain_func": ({"a": None, "explain_func": breaks, "batch_size": 2}, RuntimeError, "mine", 2),
    "batch_size": ({"batch_size": 0}, ValueError, "batch_size", 0),
    "token ids": ({"x": np.ones((5, 7), int), "a": A[:, 0], "wrong": A[:, 1]}, ValueError, r"images.*\(5, 7\)", 0),
    "typo": ({"batchsize": 2}, ValueError, "batchsize", 0),
}


@one_of_each
@pytest.mark.parametrize(("call", "error", "match", "done"), BAD.values(), ids=BAD)
def test_bad_input_is_named_and_what_was_scored_stays(call, error, match, done, name):
    model, metric = net(), make(name)
    with left_as_found(model), pytest.raises(error, match=match):
        score(name, model, metric=metric, **call)
    close(metric.evaluation_scores, score(name, net())[:done])


@one_of_each
def test_an_error_in_the_model_is_passed_on_and_what_was_scored_stays(name):
    model, metric = net(), make(name)
    model.append(Breaks(RuntimeError("in the model"), 75)).train()  # two samples of 37 boxes and one are through
    with left_as_found(model), pytest.raises(RuntimeError, match="in the model"):
        score(name, model, *(np.repeat(value, 20, 0) for value in (X, Y, A, WRONG)), metric=metric, batch_size=1)
    close(metric.evaluation_scores, np.repeat(score(name, net()), 20)[: len(metric.evaluation_scores)])
    assert metric.evaluation_scores


def test_what_makes_a_map_or_a_box_bad_is_named():
    with pytest.raises(ValueError, match=r"box of 6 pixels.*9 x 5"):
        score("box", net(), X[..., :5], a=A[..., :5])
    with pytest.raises(ValueError, match=r"classes from 0 to 3.*got 0 to 4"):
        make("class")(net(), X, np.arange(5), A, explain_func=lambda **_: A)
    metric = make("SAD", normalise=True, normalise_func=lambda one: np.where((one == A[3]).all(), np.nan, one))
    with pytest.raises(ValueError, match=r"maps.*sample\(s\) \[3\]"):
        score("SAD", net(), metric=metric)
    close(metric.evaluation_scores, score("SAD", net())[:3])


NAMES = {
    "Soft Average Drop",
    "Removal Drop",
    "Effective Average Drop",
    "Box Sensitivity",
    "Average Drop",
    "Average Gain",
}
NAMES |= {"Average Increase", "Insertion", "Deletion", "Fidelity", "Compactness", "Class Discrimination"}


def registered():
    known = {name: metric for names in quantus.AVAILABLE_METRICS.values() for name, metric in names.items()}
    lists = [name for names in quantus.available_metrics().values() for name in names]
    return {k: (known.get(k), lists.count(k), getattr(quantus, k.replace(" ", ""), None)) for k in {*NAMES, *known}}


def test_registration_is_once_and_can_be_undone():
    before = registered()
    assert {before[name] for name in NAMES} == {(metric, 1, metric) for metric, *_ in SCORES.values()}
    qm.register()
    assert registered() == before
    qm.unregister()
    qm.unregister()
    assert registered() == before | dict.fromkeys(NAMES, (None, 0, None))
    qm.register()
    assert registered() == before


@pytest.mark.parametrize("name", ["Class Discrimination", "Fidelity"])
def test_a_name_that_is_taken_is_not_overwritten(name, monkeypatch):
    qm.unregister()
    if name == "Fidelity":
        monkeypatch.setattr(quantus, name, quantus.Sparseness, raising=False)
    else:
        monkeypatch.setitem(quantus.AVAILABLE_METRICS["Localisation"], name, quantus.Sparseness)
    before = registered()
    with pytest.raises(ValueError, match=name):
        qm.register()
    assert registered() == before
    monkeypatch.undo()
    qm.register()


def direct(model, name):
    x, y = torch.from_numpy(X).requires_grad_(), torch.tensor(Y)
    if name == "IG":
        return IntegratedGradients(model).attribute(x, target=y, n_steps=3).sum(1, keepdim=True).detach()
    if name == "layer":
        maps = LayerGradCam(model, model[0]).attribute(x, target=y)
        return LayerAttribution.interpolate(maps, (H, W), "bicubic").detach()
    return GradCAM(model, [model[0], model[2]])(x, [ClassifierOutputTarget(c) for c in Y])[:, None]


EXPLAIN = {
    "IG": explain_func(IntegratedGradients, n_steps=3, batch_size=2),
    "layer": explain_func(LayerGradCam, layer="0", mode="bicubic"),
    "GradCAM": explain_func(GradCAM, target_layers=["0", "2"], batch_size=3),
}


@pytest.mark.parametrize("name", EXPLAIN)
def test_an_explain_func_is_what_its_method_computes(name):
    model, explain, expected = net(), pickle.loads(pickle.dumps(EXPLAIN[name])), direct(net(), name)
    model(torch.from_numpy(X)).sum().backward()
    model.train()
    inputs, seen = X.copy(), counted(model)
    inputs.setflags(write=False)
    with left_as_found(model):
        close(explain(model=model, inputs=inputs, targets=Y, method="Saliency", device="cpu"), expected, 1e-6)
        assert max(seen) == {"IG": 2 * 3, "layer": 5, "GradCAM": 3}[name]
        close(explain(copy.deepcopy(model), torch.tensor(X), Y.tolist(), batch_size=1), expected, 1e-6)
        close(explain(model, X.transpose(0, 2, 3, 1), Y), expected, 1e-6)  # channels last
    model.append(Breaks(RuntimeError("mine")))
    with left_as_found(model), pytest.raises(RuntimeError, match="mine"):
        explain(model, X, Y)


def test_a_layer_that_is_not_in_the_model_is_named():
    model = net()
    for layer, match in (("9", "no module '9'.*1, 2"), (model[0], "Conv2d is not a part.*Pass its name")):
        with pytest.raises(ValueError, match=match):
            explain_func(LayerGradCam, layer=layer)(net(), X, Y)
    close(explain_func(LayerGradCam, layer=model[0], mode="bicubic")(model, X, Y), direct(model, "layer"))


def test_maps_of_tokens_are_no_pictures():
    vit, explain = tiny_vit(), functools.partial(explain_func, LayerIntegratedGradients, n_steps=2)
    with pytest.raises(ValueError, match=r"\(2, 17, 32\)"):
        explain(layer="blocks.1")(vit, torch.randn(2, 3, 32, 32), [0, 1])
    text, ids = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(28, 4)), torch.randint(9, (2, 7))
    expected = LayerIntegratedGradients(text, text[0]).attribute(ids, target=torch.tensor([0, 1]), n_steps=2).sum(2)
    close(explain(layer="0")(text, ids, [0, 1]), expected.detach(), 1e-6)


@pytest.mark.filterwarnings("ignore")  # Quantus' own
def test_all_metrics_run_in_one_evaluation(capsys):
    model, x, mine = net().float(), X.astype(np.float32), {SCORES[name][0].name: name for name in SCORES}
    metrics = [quantus.PixelFlipping(features_in_step=9), quantus.SensitivityN(features_in_step=9)]
    metrics += [quantus.MaxSensitivity(nr_samples=2), quantus.RandomLogit(num_classes=4), quantus.Sparseness()]
    metrics += [quantus.MPRT(return_last_correlation=True), quantus.RelevanceMassAccuracy(), *map(make, mine.values())]
    metrics = {metric.name: metric for metric in metrics}
    results = quantus.evaluate(metrics, EXPLAIN, model, x, Y, A[:, None] > 0, explain_func_kwargs={})
    assert "Failed" not in capsys.readouterr().out
    for method, scores in results.items():
        assert scores.keys() == metrics.keys() > NAMES == mine.keys()
        for title, name in list(mine.items())[:-1]:
            close(scores[title], score(name, model, x, a=EXPLAIN[method](model, x, Y)), 1e-5)
