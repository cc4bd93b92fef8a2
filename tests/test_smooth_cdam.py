"""Smooth CDAM for given noise and in the mean, against its closed form on a product."""

import pytest
import torch
from toy_models import PAIR_TOKENS, PairModel, tiny_vit

from captum_ext import CDAM, SmoothCDAM
from captum_ext.smooth_cdam import NOISE_FRACTION

TOKENS = PAIR_TOKENS.double()
WEIGHT = torch.tensor([1.0, 2.0, -1.0]).double()


def explainer():
    model = PairModel().double()
    return SmoothCDAM(model, model.tokens)


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


def test_noisy_token_multiplies_its_own_gradient():
    noise = torch.stack([torch.randn(3, 2, generator=g, dtype=torch.double) for g in [seeded()] for _ in range(4)])
    expected = (2 * WEIGHT * (TOKENS + 0.7 * noise[:, None]).prod(-1)).mean(0)
    actual = explainer().attribute(TOKENS, 0, nt_samples=4, stdevs=0.7, generator=seeded())
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_mean_of_many_samples_is_the_expectation():
    """`E[2 w (t0 + s e0)(t1 + s e1)] = 2 w t0 t1`, with a standard error known from the product of normals."""
    n, s = 20_000, 0.5
    actual = explainer().attribute(TOKENS, 0, nt_samples=n, stdevs=s, generator=seeded())
    error = 2 * WEIGHT.abs() * s * (TOKENS.square().sum(-1) + s**2).sqrt() / n**0.5
    deviations = (actual - 2 * WEIGHT * TOKENS.prod(-1)) / error
    assert deviations.abs().max() < 4
    assert deviations.abs().max() > 0.1  # the noise was there


def test_no_noise_is_cdam():
    model, x = tiny_vit().double(), torch.randn(2, 3, 32, 32).double()
    torch.testing.assert_close(
        SmoothCDAM(model).attribute(x, 1, stdevs=0.0, nt_samples=3), CDAM(model).attribute(x, 1), rtol=1e-10, atol=0
    )


def test_default_noise_is_a_fraction_of_each_samples_own_deviation():
    smooth = explainer()
    for sample in TOKENS.split(1):
        given = smooth.attribute(sample, 0, stdevs=NOISE_FRACTION * sample.std().item(), generator=seeded())
        torch.testing.assert_close(smooth.attribute(sample, 0, generator=seeded()), given, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("together", [None, 1, 2, 5, 100])
def test_chunk_size_does_not_change_the_result(together):
    model, x = tiny_vit().double(), torch.randn(2, 3, 32, 32).double()
    smooth = SmoothCDAM(model)
    singles = [smooth.attribute(x, 1, nt_samples=1, stdevs=0.4, generator=g) for g in [seeded()] for _ in range(5)]
    actual = smooth.attribute(x, 1, nt_samples=5, stdevs=0.4, nt_samples_batch_size=together, generator=seeded())
    torch.testing.assert_close(actual, sum(singles) / 5, rtol=1e-10, atol=1e-15)


def test_manual_seed_governs_the_noise_and_its_state_is_left():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = explainer().attribute(TOKENS, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(explainer().attribute(TOKENS, 0), first)
    torch.manual_seed(2)
    assert not torch.equal(explainer().attribute(TOKENS, 0), first)


def test_given_generator_advances():
    generator = seeded()
    assert not torch.equal(
        explainer().attribute(TOKENS, 0, generator=generator), explainer().attribute(TOKENS, 0, generator=generator)
    )


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"nt_samples": 0}, ValueError, "`nt_samples` to be at least 1"),
        ({"nt_samples": "many"}, TypeError, "`nt_samples` to be an int"),
        ({"nt_samples_batch_size": -1}, ValueError, "`nt_samples_batch_size` to be at least 1"),
        ({"stdevs": -0.1}, ValueError, "at least 0, got -0.1"),
        ({"stdevs": float("inf")}, ValueError, "finite"),
        ({"stdevs": (0.1, 0.2)}, TypeError, "`stdevs` to be a number"),
        ({"generator": 3}, TypeError, "`generator` to be a torch.Generator"),
    ],
)
def test_wrong_arguments_are_named(options, error, words):
    with pytest.raises(error, match=words):
        explainer().attribute(TOKENS, 0, **options)
