"""What scores remember of a model: shared between explanations, bounded, and never stale."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from score_derivations import WRONG, A, H, W, X, Y, counted, make, net, score
from torch import nn


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


@pytest.mark.slow
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
