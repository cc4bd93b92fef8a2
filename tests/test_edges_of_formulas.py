"""Formulas where a wrong default or axis is easily overlooked: numbers by hand, or by plain autograd."""

import math

import numpy as np
import pytest
import quantus
import torch
from torch import nn
from torch.nn import functional as F

import quantus_metrics as qm
from captum_ext import CDAM, ConceptTarget, IntegratedCDAM, SmoothCDAM, signed_overlay

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
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    torch.testing.assert_close(found, (x * gradient).sum(1), rtol=1e-12, atol=1e-15)


def test_a_concept_of_examples_with_further_arguments_of_their_own():
    examples, factors = torch.randn(5, 3), torch.randn(5)
    concept = ConceptTarget.from_examples(
        lambda x, factor, shift: x * factor[:, None] + shift,
        examples,
        additional_forward_args=(factors, 2.0),
        batch_size=2,
    )
    torch.testing.assert_close(concept.vector, (examples.T @ factors) / 5 + 2)


def test_maps_that_are_given_to_quantus_evaluate_need_those_of_the_wrong_class():
    x, a = image_and_map()
    with pytest.raises(TypeError, match="wrong class's maps"):
        qm.ClassDiscrimination()(nn.Identity(), x.numpy(), [0], a.numpy(), explain_func=quantus.explain)


def test_overlays_are_opaque_from_the_given_scale_on():
    drawn = signed_overlay(torch.full((2, 2), 0.5), torch.full((2, 2, 2), -3.0), scale=2.0)
    assert drawn == pytest.approx(np.broadcast_to([0.1, 0.3, 0.95], (2, 2, 2, 3)))


class Past(nn.Module):
    """The first class reads the squares of a layer's output, the second one a parameter; or none reads the layer."""

    def __init__(self, reads):
        super().__init__()
        self.layer, self.constant, self.reads = nn.Identity(), nn.Parameter(torch.ones(2)), reads

    def forward(self, x):
        tokens = self.layer(x)
        return torch.stack([(tokens if self.reads else x).square().sum((1, 2)) * self.constant, 2 * self.constant], 1)


def test_a_class_that_no_token_speaks_for_is_an_error():
    x, model, past = torch.randn(2, 3, 4), Past(reads=True), Past(reads=False)
    found = CDAM(model, model.layer).attribute(x, 0, return_tokens=True)
    torch.testing.assert_close(found, 2 * x.square().sum(2))
    for explainer, targets in ((CDAM(model, model.layer), [0, 1]), (CDAM(past, past.layer), [0])):
        with pytest.raises(ValueError, match="No patch token has a gradient"):
            explainer.attribute_targets(x, targets, return_tokens=True)
