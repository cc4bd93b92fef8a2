"""Formulas where a wrong default, axis or mask is easily overlooked: numbers by hand, or by plain autograd."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import quantus_metrics as qm
from captum_ext import CDAM, AttentionMap, AttentionRollout, IntegratedCDAM, SmoothCDAM

RANK = 74  # of the pixel that the model reads, of 100


def reads_one_pixel(x):
    """Two logits: 3 times the pixel in the second row and third column, and 0."""
    return torch.stack([3 * x[:, 0, 1, 2], 0 * x[:, 0, 1, 2]], 1)


def image_and_map():
    """A lone pixel, which a wide blur spreads over all 100, and a map in which it has its rank."""
    saliency = torch.arange(100.0, 0.0, -1.0).double().view(1, 10, 10)
    saliency[0, 1, 2], saliency[0, 7, 4] = saliency[0, 7, 4].item(), saliency[0, 1, 2].item()
    return F.pad(torch.ones(1, 1, 1, 1), (2, 7, 1, 8)).double(), saliency


def sigmoid(logit):
    return 1 / (1 + math.exp(-logit))


def test_defaults_of_curves_are_a_hundred_steps_and_zeros_for_what_is_gone():
    """With a pixel in each step, the answer jumps in the middle of the step that takes the pixel that is read."""
    x, a = image_and_map()
    there, spread, gone, before = sigmoid(3), sigmoid(3 / 100), 1 / 2, (RANK + 0.5) / 100
    given = {"blur_sigma": 50.0}  # spreads it evenly, up to 1e-5
    expected = {
        "insertion": ({}, before * spread + (1 - before) * there),
        "deletion": ({"blur_sigma": None}, before * there + (1 - before) * gone),
        "fidelity": ({}, 100 * (1 - 2 * before) * (3 - 3 / 100)),
    }
    for name, (options, value) in expected.items():
        found = getattr(qm, name)(reads_one_pixel, x, [0], a, **given | options)
        assert found.tolist() == pytest.approx([value], rel=1e-4), name
        metric = getattr(qm, name.capitalize())(**given | options)
        model = nn.Module()
        model.forward = reads_one_pixel
        assert metric(model, x.numpy(), [0], a.numpy()) == pytest.approx([value], rel=1e-4), name


class TwoClassTokens(nn.Module):
    """One attention with a mask of its own for each query; the output reads the first two rows, with other weights."""

    def __init__(self, mask):
        super().__init__()
        self.qkv = nn.Linear(6, 18)
        self.first, self.second = nn.Linear(6, 3), nn.Linear(6, 3)
        self.mask = mask

    def operands(self, x):
        return self.qkv(x).unflatten(2, (3, 2, 3)).permute(2, 0, 3, 1, 4).unbind(0)

    def forward(self, x):
        mixed = F.scaled_dot_product_attention(*self.operands(x), attn_mask=self.mask).transpose(1, 2).flatten(2)
        return (self.first(mixed[:, 0]) + self.second(mixed[:, 1])) / 2


def masks():
    allowed = torch.rand(5, 5) > 0.3
    allowed[:, 3] = allowed[0, 4] = True
    allowed[1, 4] = allowed[0, 0] = False  # the class tokens do not see the same
    for_each = torch.randn(2, 1, 5, 5).double()
    return {"booleans": allowed, "numbers": torch.randn(5, 5).double(), "for each sample": for_each}


def gradient(model, x, target):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(model(x)[:, target].sum(), x)[0]


@pytest.mark.parametrize("kind", ["booleans", "numbers", "for each sample"])
def test_each_of_two_class_tokens_has_its_own_row_of_the_mask(kind, monkeypatch):
    monkeypatch.setattr("captum_ext.integrated_cdam.integrated_relevance", None)  # the general way is not gone
    monkeypatch.setattr("captum_ext.smooth_cdam.smooth_relevance", None)
    model, x = TwoClassTokens(masks()[kind]).double(), torch.randn(2, 5, 6).double()
    scores = IntegratedCDAM(model).attribute(x, 2, n_steps=3, return_tokens=True)
    steps = sum(gradient(model, x * k / 3, 2) for k in (1, 2, 3)) / 3
    torch.testing.assert_close(scores, (x * steps).sum(2), rtol=1e-9, atol=1e-12)
    noise, generator = torch.empty(3, 5, 6).double(), torch.Generator().manual_seed(4)
    noisy = [x + 0.3 * one.normal_(generator=generator) for one in noise]
    smooth = SmoothCDAM(model).attribute(
        x, 2, nt_samples=3, stdevs=0.3, generator=torch.Generator().manual_seed(4), return_tokens=True
    )
    expected = sum((one * gradient(model, one, 2)).sum(2) for one in noisy) / 3
    torch.testing.assert_close(smooth, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["booleans", "numbers", "for each sample"])
def test_of_two_class_tokens_maps_of_weights_are_the_first_ones(kind):
    mask = masks()[kind]
    model, x = TwoClassTokens(mask).double(), torch.randn(2, 5, 6).double()
    query, key, _ = model.operands(x)
    added = torch.where(mask, 0.0, -math.inf) if kind == "booleans" else mask
    first = ((query @ key.mT) / math.sqrt(3) + added).exp()[:, :, 0]
    row = (first / first.sum(2, keepdim=True)).mean(1)
    torch.testing.assert_close(AttentionMap(model).attribute(x), row, rtol=1e-9, atol=1e-12)
    own = F.one_hot(torch.tensor(0), 5)
    torch.testing.assert_close(AttentionRollout(model).attribute(x), (row + own) / 2, rtol=1e-9, atol=1e-12)


class Quartic(nn.Module):
    """Passes `tokens` unchanged; `f_c = (c + 1) sum_i w_i (prod_j T_ij)^2`, of which each token has twice J shares.

    By hand, with J channels: `sum_j T_ij df_c/dT_ij = 2 J (c + 1) w_i (prod_j T_ij)^2`.
    """

    def __init__(self, channels):
        super().__init__()
        self.tokens, self.channels = nn.Identity(), channels

    def forward(self, x):
        squares = self.tokens(x).prod(self.channels).square().reshape(len(x), -1)
        score = (squares * torch.arange(1.0, squares.shape[1] + 1)).sum(1)
        return torch.stack([score, 2 * score], 1)


SHAPES = {  # of the tokens, and the axis of their channels
    "one channel": ((2, 3, 1), 2),
    "one token": ((2, 1, 3), 2),
    "vectors": ((2, 3), 1),
    "vectors of one number": ((2, 1), 1),
    "one sample of one token": ((1, 1, 2), 2),
    "a map of one channel": ((2, 1, 2, 3), 1),
    "a map of one place": ((2, 3, 1, 1), 1),
    "a map of one row": ((2, 3, 1, 2), 1),
    "a map of one column": ((1, 2, 3, 1), 1),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_layer_with_one_token_or_one_channel(name):
    shape, channels = SHAPES[name]
    x, model = torch.rand(shape).double() + 0.5, Quartic(channels)
    squares = x.prod(channels).square().reshape(len(x), -1)
    number = shape[channels]
    share = 2 * squares * torch.arange(1.0, squares.shape[1] + 1)  # of class 1
    given = {"target": 1, "return_tokens": True}
    found = CDAM(model, model.tokens).attribute(x, **given)
    torch.testing.assert_close(found, 2 * number * share, rtol=1e-12, atol=0)
    # Along the path the gradient grows with the power 2 J - 1 of alpha: its mean over the two steps 1/2 and 1.
    found = IntegratedCDAM(model, model.tokens).attribute(x, **given, n_steps=2)
    torch.testing.assert_close(found, number * share * (1 + 0.5 ** (2 * number - 1)), rtol=1e-12, atol=0)
    noise, generator = torch.empty(2, *shape[1:]).double(), torch.Generator().manual_seed(7)
    noisy = [x + 0.25 * one.normal_(generator=generator) for one in noise]
    expected = sum(one.prod(channels).square().reshape(len(x), -1) for one in noisy) / 2 * share / squares * 2 * number
    found = SmoothCDAM(model, model.tokens).attribute(
        x, **given, nt_samples=2, stdevs=0.25, generator=torch.Generator().manual_seed(7)
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_layer_read_by_a_convolution_has_its_channels_in_front(channels):
    layer, convolution = nn.Identity(), nn.Conv1d(channels, 3, 2).double()
    model = nn.Sequential(layer, convolution, nn.Tanh(), nn.Flatten(), nn.Linear(9, 2).double())
    x = torch.randn(2, channels, 4).double()
    found = CDAM(model, layer).attribute(x, 1, return_tokens=True)
    torch.testing.assert_close(found, (x * gradient(model, x, 1)).sum(1), rtol=1e-12, atol=1e-15)
