"""Every score by plain loops, and the data on which they are compared."""

import re

import numpy as np
import pytest
import torch
from torch import nn

import quantus_metrics as qm
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
        for i, j in _corners(size, (H, W), num_boxes, seed).tolist():
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


def counted(model):
    """The sizes of the batches that a model sees from now on."""
    seen = []
    model.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    return seen
