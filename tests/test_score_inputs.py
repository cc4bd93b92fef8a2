"""Scores of signals and volumes, of functions of the output, and what a model's softmax modules cost."""

import gc
import weakref

import numpy as np
import pytest
import torch
from score_derivations import SCORES, A, X, Y, close, function, make, net, score, tensors
from torch import nn

import quantus_metrics as qm
from quantus_metrics._blur import blurred
from quantus_metrics.box_sensitivity import _corners

OPTIONS = {
    "insertion": {"steps": 6, "blur_sigma": 1.5},
    "deletion": {"steps": 6},
    "LIF-MIF": {"steps": 5, "blur_sigma": 1.5},
}
PIXELWISE = ["SAD", "removal", "EAD", "AD", "AG", "AI", "deletion", "compactness"]


def linear(*shape):
    generator = torch.Generator().manual_seed(4)
    return torch.randn(3, *shape, generator=generator).double(), torch.randn(
        4, *shape, generator=generator
    ).double() / 5


def model_of(weights):
    return lambda x: (x.flatten(1) @ weights.flatten(1).T).tanh() * 2


@pytest.mark.parametrize("shape", [(2, 24), (2, 4, 3, 2), (1, 2, 2, 6)])
@pytest.mark.parametrize("name", PIXELWISE)
def test_scores_of_pixels_do_not_ask_how_these_are_arranged(name, shape):
    (x, weights), y = linear(*shape), [0, 3, 1]
    a = linear(*shape[1:])[0]
    options = OPTIONS.get(name, {})
    as_image = x.view(3, shape[0], -1, 1), y, a.view(3, -1, 1)
    expected = function(name)(model_of(weights), *as_image, **options)
    close(function(name)(model_of(weights), x, y, a, **options), expected)
    close(function(name)(model_of(weights), x, y, a[:, None], **options), expected)
    metric = make(name) if name != "deletion" else qm.Deletion(**options)
    close(metric(model_of(weights), x.numpy(), np.array(y), a.numpy(), batch_size=2), expected)
    last = x.movedim(1, -1).numpy()
    close(metric(model_of(weights), last, np.array(y), a.numpy(), channel_first=False), expected)


@pytest.mark.parametrize(("name", "start"), [("insertion", "blur"), ("LIF-MIF", "image")])
def test_blurred_signals_are_those_of_images_of_one_column(name, start):
    x, weights = linear(2, 24)
    a = linear(24)[0]
    given = function(name)(model_of(weights), x, [0, 1, 2], a, **OPTIONS[name])
    close(given, function(name)(model_of(weights), x[..., None], [0, 1, 2], a[..., None], **OPTIONS[name]))
    wide = x.repeat_interleave(30, 2)
    close(blurred(wide)[..., None], blurred(wide[..., None], 14 / 224 * 720))  # in proportion to the length


@pytest.mark.parametrize("shape", [(2, 24), (2, 7, 6, 8)])
def test_boxes_of_signals_and_volumes_by_loops(shape):
    (x, weights), sizes = linear(*shape), [2, 3, 5]
    a, model, expected = linear(*shape[1:])[0], model_of(weights), []
    for image, heat in zip(x, a, strict=True):
        smooth, curve = blurred(image[None], 1.0)[0], []
        for size in sizes:
            sums, changes = [], []
            for corner in _corners(size, shape[1:], 15, 3).tolist():
                inside = tuple(slice(i, i + size) for i in corner)
                one = image.clone()
                one[(slice(None), *inside)] = smooth[(slice(None), *inside)]
                sums.append(heat[inside].sum().item())
                changes.append((model(image[None]) - model(one[None]))[0, 2].item())
            curve.append(np.corrcoef(sums, changes)[0, 1])
        expected.append(np.trapezoid(curve, sizes) / 3)
    options = {"box_sizes": sizes, "num_boxes": 15, "seed": 3}
    close(qm.box_sensitivity(model, x, [2, 2, 2], a, blur_sigma=1.0, **options), expected)
    assert qm.BoxSensitivity(num_boxes=10).passes(shape) == 10 * len(
        {max(1, round(k * min(shape[1:]) / 14)) for k in range(1, 9)}
    )


def test_colours_fill_the_channels_of_volumes():
    x, weights = linear(2, 3, 3, 3)
    found = qm.removal_drop(model_of(weights), x, [0, 1, 2], x[:, 0], fill=[1.0, -1.0])
    m = x[:, 0] - x[:, 0].amin((1, 2, 3), keepdim=True)
    gone = (m > 0.5 * m.amax((1, 2, 3), keepdim=True))[:, None].expand_as(x)
    rest = torch.where(gone, torch.tensor([1.0, -1.0]).double().view(1, 2, 1, 1, 1), x)
    p = [model_of(weights)(one).softmax(1)[range(3), range(3)] for one in (x, rest)]
    close(found, (1 - p[1] / p[0]).clamp(min=0))


def test_shapes_that_are_nothing_are_named():
    with pytest.raises(
        ValueError, match=r"images \(batch, channels, height, width\), signals.*volumes.*got inputs of shape \(5, 7\)"
    ):
        qm.soft_average_drop(net(), torch.rand(5, 7), [0] * 5, torch.rand(5, 7))
    with pytest.raises(ValueError, match=r"inputs have shape \(2, 12, 50\), maps \(2, 49\)"):
        qm.soft_average_drop(net(), torch.rand(2, 12, 50), [0, 1], torch.rand(2, 49))


FUNCTIONS = ["SAD", "removal", "EAD", "AD", "AG", "AI", "insertion", "deletion", "LIF-MIF", "box"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_that_selects_a_class_is_that_class(name):
    each = [lambda out, c=c: out[c] for c in range(4)]
    functions, model = [each[c] for c in Y], net()
    expected = score(name, model)
    close(function(name)(model, *tensors(X), functions, *tensors(A), **SCORES[name][2]), expected)
    close(score(name, model, y=functions, batch_size=2), expected)
    close(score(name, model, y=each[1]), score(name, model, y=np.ones(5, int)))
    metric = make(name)
    again = [score(name, model, y=chosen, metric=metric) for chosen in (functions, functions[::-1], functions)]
    assert again[0] == again[2] != again[1]
    score(name, model, y=lambda out: out.mul_(2)[1], metric=metric)  # it may change what it is given


def test_probabilities_of_masks_are_those_of_each_pixel():
    torch.manual_seed(0)
    model = nn.Conv2d(2, 3, 3, padding=1).double()
    area = lambda out: out[1, 2:5].mean()  # noqa: E731
    for activation, p in (("softmax", lambda z: z.softmax(1)), ("sigmoid", torch.sigmoid), ("identity", lambda z: z)):
        before, after = (p(model(x))[:, 1, 2:5].mean((1, 2)) for x in tensors(X, 0.5 * X))
        found = qm.deletion(model, torch.tensor(X), area, torch.tensor(A), steps=1, activation=activation)
        empty = p(model(torch.zeros(1, 2, 9, 7).double()))[:, 1, 2:5].mean()
        close(found, ((before + empty) / 2).detach())
        assert after.shape == before.shape
    one = nn.Conv2d(2, 1, 3, padding=1).double()  # a mask of one channel: the sigmoid
    found = qm.deletion(one, torch.tensor(X), lambda out: out.mean(), torch.tensor(A), steps=1)
    ends = one(torch.tensor(X)).sigmoid().mean((1, 2, 3)), one(torch.zeros(1, 2, 9, 7).double()).sigmoid().mean()
    close(found, (sum(ends) / 2).detach())


def test_detections_are_scored_by_functions():
    parts = net()
    model = lambda x: [{"scores": z.sigmoid(), "labels": torch.arange(4)} for z in parts(x)]  # noqa: E731
    found = qm.soft_average_drop(model, torch.tensor(X), lambda one: one["scores"][2], torch.tensor(A))
    close(found, qm.soft_average_drop(parts, torch.tensor(X), [2] * 5, torch.tensor(A), activation="sigmoid"))


def test_class_discrimination_of_functions_needs_the_maps():
    each = [lambda out, c=c: out[c] for c in Y]
    close(score("class", net(), y=each), score("class", net()))
    with pytest.raises(TypeError, match=r"a function of the output has no likeliest other one.*wrong_a_batch"):
        make("class")(net(), X, each, A, explain_func=lambda **_: A)


def test_outputs_that_classes_do_not_fit_are_named():
    with pytest.raises(
        ValueError, match=r"logits \(5, classes\), got \(5, 3, 9, 7\).*pass functions of one sample's output"
    ):
        qm.soft_average_drop(nn.Conv2d(2, 3, 3, padding=1).double(), *tensors(X, Y, A))
    with pytest.raises(ValueError, match=r"one number.*of shape \(4,\); got shape \(2,\)"):
        qm.soft_average_drop(net(), torch.tensor(X), lambda out: out[:2], torch.tensor(A))


def test_a_function_is_given_to_the_explanation():
    given = []

    def explain(inputs, targets, **_):
        given.extend(targets)
        return A[: len(inputs)]

    area = lambda out: out[0]  # noqa: E731
    make("SAD")(net(), X, area, explain_func=explain, batch_size=5)
    assert given == [area] * 5


class Attending(nn.Module):
    """Many softmax modules, of which none makes the output."""

    def __init__(self):
        super().__init__()
        self.softmaxes = nn.ModuleList([nn.Softmax(-1) for _ in range(12)])
        self.alive = []

    def forward(self, x):
        kept = []
        for softmax in self.softmaxes:
            scores = x.flatten(1) @ x.flatten(1).T
            kept.append(weakref.ref(scores))
            x = x + softmax(scores).sum() * 0
            del scores
        gc.collect()
        self.alive.append(sum(one() is not None for one in kept))
        return x.flatten(1)[:, :4]


@pytest.mark.slow
def test_of_softmax_modules_inside_nothing_is_kept():
    model = Attending()
    qm.soft_average_drop(model, *tensors(X, Y, A))
    assert set(model.alive) == {0}
