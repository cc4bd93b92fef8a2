"""Captum's perturbation methods by name, on patches, against closed forms, enumerations and regressions by hand."""

import itertools
import math
import random

import numpy as np
import pytest
import torch
import torchvision
from captum import attr
from torch import nn

from xai_compare._captum import patches, shuffled
from xai_compare._methods import methods
from xai_compare._seeding import seeded_for

BY_PATCHES = ("feature-ablation", "shapley-sampling", "kernel-shap", "lime")
NAMES = (*BY_PATCHES, "gradient-shap", "deep-lift-shap")
FEW = {"shapley-sampling": {"n_samples": 2}, "kernel-shap": {"n_samples": 40}, "lime": {"n_samples": 40}}
FEW |= {"gradient-shap": {"n_samples": 5}, "deep-lift-shap": {"n_baselines": 3}}


def by_name(name, model, x, targets=(1,), seed=0, **options):
    explain = methods()[name].explain(FEW.get(name, {}) | options, 16)
    with seeded_for(seed, "test", 0):
        return torch.as_tensor(explain(model, x, torch.tensor(targets))[:, 0])


def linear(channels=3, side=16, classes=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * side**2, classes)).eval()


def of_patches(values, side):
    """A value for each square as a map: sums of squares of pixels."""
    return values.unfold(1, side, side).unfold(2, side, side).sum((3, 4))


def contributions(model, x, side, target=1):
    """What each square adds to a linear model's logit, (batch, rows, columns)."""
    weights = model[1].weight[target].reshape(x.shape[1:])
    return of_patches((weights * x).sum(1).detach(), side)


class Game(nn.Module):
    """Four pixels that are worth something together only."""

    def forward(self, x):
        a, b, c, d = x.flatten(1).T
        value = a * b + 3 * b * c * d + 2 * a * d - c
        return torch.stack([value, 2 * value], 1)


def shapley_by_enumeration(model, x, target=1):
    def worth(shown):
        kept = torch.zeros_like(x).flatten()
        kept[list(shown)] = x.flatten()[list(shown)]
        return float(model(kept.reshape(x.shape))[0, target])

    count, values = x.numel(), []
    for player in range(count):
        others = [one for one in range(count) if one != player]
        value = 0.0
        for size in range(count):
            share = math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count)
            sets = itertools.combinations(others, size)
            value += sum(share * (worth({*shown, player}) - worth(shown)) for shown in sets)
        values.append(value)
    return torch.tensor(values).reshape(x.shape[1:])


@pytest.mark.parametrize(
    ("shape", "side", "count"),
    [
        ((224, 224), 28, 64),
        ((48, 48), 6, 64),
        ((28, 28), 4, 49),
        ((224, 300), 33, 70),
        ((64, 500), 23, 66),
        ((5, 4), 1, 20),
        ((500,), 62, 9),
        ((64, 64, 64), 16, 64),
        ((16, 24, 24), 6, 48),
    ],
)
def test_patches_are_about_64_squares_stretches_and_cubes(shape, side, count):
    found = patches(torch.rand(2, 3, *shape))
    assert found.shape == (1, 1, *shape)
    assert found.unique().tolist() == list(range(count))
    numbers = itertools.product(*[range(math.ceil(one / side)) for one in shape])
    for number, corner in enumerate(numbers):
        block = found[0, 0][tuple(slice(side * one, side * (one + 1)) for one in corner)]
        assert (block == number).all()


def test_tables_have_no_patches():
    with pytest.raises(ValueError, match=r"volumes.*which have patches, got \(2, 7\)\. Pass the features"):
        patches(torch.rand(2, 7))


@pytest.mark.parametrize("name", ["feature-ablation", "shapley-sampling", "kernel-shap"])
def test_of_a_linear_model_each_patch_gets_what_it_adds(name):
    model, x = linear(), torch.randn(2, 3, 16, 16)
    options = {"n_samples": 200} if name == "kernel-shap" else {}
    found = by_name(name, model, x, (1, 1), **options)
    wanted = contributions(model, x, 2).repeat_interleave(2, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-3)  # KernelSHAP weighs its ends by a million


def test_lime_is_the_ridge_regression_on_what_is_shown():
    model, x = linear(), torch.randn(1, 3, 16, 16)
    found = by_name("lime", model, x, n_samples=300)[0, ::2, ::2].flatten()
    with seeded_for(0, "test", 0):
        seed = int(torch.randint(2**31, ()))
    with seeded_for(seed, "sample", 0):
        shown = torch.cat([torch.bernoulli(torch.full((1, 64), 0.5)) for _ in range(300)]).double().numpy()
    added = contributions(model, x, 2)[0].flatten().double().numpy()
    y = shown @ added
    weights = np.exp(-((1 - np.sqrt(shown.mean(1))) ** 2) / (2 * 0.25**2))
    z, y = shown - np.average(shown, 0, weights), y - np.average(y, 0, weights)
    ridge = np.linalg.solve(z.T @ (weights[:, None] * z) + np.eye(64), z.T @ (weights * y))
    np.testing.assert_allclose(found, ridge, atol=1e-4)
    assert np.corrcoef(found, added)[0, 1] > 0.999
    plain = by_name("lime", model, x, n_samples=300, alpha=1e-6)[0, ::2, ::2].flatten()
    np.testing.assert_allclose(plain, added, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("shapley-sampling", 1500), ("kernel-shap", 3000)])
def test_a_small_games_shapley_values_are_those_of_all_sets(name, count):
    model, x = Game(), torch.tensor([[[[1.0, 2.0], [-1.0, 0.5]]]])
    wanted = shapley_by_enumeration(model, x)
    assert float(wanted.sum()) == pytest.approx(float(model(x)[0, 1] - model(0 * x)[0, 1]))
    found = by_name(name, model, x, n_samples=count)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.25)
    assert float(found.sum()) == pytest.approx(float(wanted.sum()), abs=1e-3)


def test_shapley_sampling_adds_patches_in_the_orders_that_are_drawn():
    model, x = Game(), torch.tensor([[[[1.0, 2.0], [-1.0, 0.5]]]])
    found = by_name("shapley-sampling", model, x, n_samples=3).flatten()
    with seeded_for(0, "test", 0):
        seed = int(torch.randint(2**31, ()))
    wanted = torch.zeros(4)
    with seeded_for(seed, "sample", 0):
        orders = [torch.randperm(4).tolist() for _ in range(3)]
    for order in orders:
        shown = torch.zeros(4)
        for player in order:
            before = model(shown[None])[0, 1]
            shown[player] = x.flatten()[player]
            wanted[player] += (model(shown[None])[0, 1] - before) / 3
    torch.testing.assert_close(found, wanted)


class Squares(nn.Module):
    def forward(self, x):
        value = x.square().flatten(1).sum(1)
        return torch.stack([value, 3 * value], 1)


def test_gradient_shap_averages_gradients_at_random_points_from_shuffled_copies():
    x = torch.randn(1, 2, 6, 6)
    found = by_name("gradient-shap", Squares(), x, n_samples=5, n_baselines=4)
    with seeded_for(0, "test", 0):
        seed = int(torch.randint(2**31, ()))
    with seeded_for(seed, "sample", 0):
        copies = shuffled(x, 4)
        baselines = copies[np.random.choice(4, 5).tolist()]
        at = torch.tensor(np.random.uniform(0, 1, 5), dtype=torch.float32)[:, None, None, None]
    points = at * x + (1 - at) * baselines
    wanted = ((x - baselines) * 6 * points).mean(0).sum(0)
    torch.testing.assert_close(found[0], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Setting", "ignore:Input")  # Captum's, of the hooks and gradients it sets
def test_deep_lift_shap_is_the_mean_of_deep_lifts_from_the_copies():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    x = torch.randn(1, 2, 6, 6)
    found = by_name("deep-lift-shap", model, x, n_baselines=4)
    with seeded_for(0, "test", 0):
        seed = int(torch.randint(2**31, ()))
    with seeded_for(seed, "sample", 0):
        copies = shuffled(x, 4)
    maps = [attr.DeepLift(model).attribute(x, copy[None], target=1) for copy in copies]
    torch.testing.assert_close(found, torch.stack(maps).mean(0).sum(1).detach(), rtol=1e-4, atol=1e-5)
    gap = model(x)[0, 1] - model(copies)[:, 1].mean()
    assert float(found.sum()) == pytest.approx(gap.item(), abs=1e-4)


def test_shuffled_copies_hold_the_images_pixels_elsewhere():
    x = torch.arange(24.0).reshape(1, 2, 3, 4)
    copies = shuffled(x, 3)
    pairs = copies.flatten(2).transpose(1, 2)
    assert all({tuple(pixel) for pixel in copy.tolist()} == {(i, i + 12) for i in range(12)} for copy in pairs)
    assert len({tuple(copy.flatten().tolist()) for copy in copies}) == 3


def small_net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)).eval()


@pytest.mark.sampled(1)
@pytest.mark.filterwarnings("ignore:Setting")  # Captum's, of the hooks it sets
@pytest.mark.parametrize("name", NAMES)
def test_a_map_depends_on_its_sample_and_the_seed_alone(name):
    model, x, other = small_net(), torch.randn(3, 3, 16, 16), torch.randn(3, 3, 16, 16)
    random.seed(7)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    found = by_name(name, model, x, (1, 2, 0))
    torch.testing.assert_close(by_name(name, model, torch.cat([other[:1], x[1:2]]), (0, 2))[1], found[1])
    torch.testing.assert_close(by_name(name, model, x[2:], (0,))[0], found[2])
    np.random.seed(5)
    torch.manual_seed(5)
    assert torch.equal(by_name(name, model, x, (1, 2, 0)), found)
    differs = not torch.allclose(by_name(name, model, x, (1, 2, 0), seed=1), found)
    assert differs == (name != "feature-ablation")
    torch.set_rng_state(before[0])
    np.random.set_state(("MT19937", before[1], 624, 0, 0.0))
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    by_name(name, model, x, (1, 2, 0))
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()
    assert random.getstate() == before[2]


@pytest.mark.parametrize("name", BY_PATCHES)
def test_how_many_pass_at_once_changes_nothing(name):
    model, x = small_net(), torch.randn(2, 3, 16, 16)
    one, many = (by_name(name, model, x, (1, 2), perturbations_per_eval=count) for count in (1, 7))
    torch.testing.assert_close(one, many, rtol=1e-4, atol=1e-5)


def test_features_of_ones_own_replace_patches():
    model, x = linear(side=4), torch.randn(1, 3, 4, 4)
    mask = torch.arange(3).reshape(1, 3, 1, 1).expand(1, 3, 4, 4)  # one for each channel
    explain = methods()["feature-ablation"].explain({"feature_mask": mask, "channels": "keep"}, 4)
    found = torch.as_tensor(explain(model, x, [1]))
    weights = model[1].weight[1].reshape(3, 4, 4)
    torch.testing.assert_close(found[0, :, 0, 0], (weights * x[0]).sum((1, 2)).detach())


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_PATCHES[:-1])  # LIME's defaults are not Captum's
def test_of_a_resnet_equal_captums_with_the_patches_written_down(name):
    torch.manual_seed(0)
    model, x = torchvision.models.resnet18(num_classes=3).eval(), torch.randn(1, 3, 64, 64)
    rows = torch.arange(64) // 8
    mask = (8 * rows[:, None] + rows)[None, None]
    found = by_name(name, model, x)
    with seeded_for(0, "test", 0):
        seed = int(torch.randint(2**31, ()))
    cls = {"feature-ablation": attr.FeatureAblation, "shapley-sampling": attr.ShapleyValueSampling}
    cls |= {"kernel-shap": attr.KernelShap}
    with seeded_for(seed, "sample", 0):
        theirs = cls[name](model).attribute(x, target=1, feature_mask=mask, **FEW.get(name, {}))
    torch.testing.assert_close(found[0], theirs[0, 0], rtol=1e-4, atol=1e-4)
