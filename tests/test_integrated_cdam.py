"""Integrated CDAM against its closed form on a product, and completeness."""

import itertools

import pytest
import torch
from toy_models import PAIR_TOKENS, PairModel, tiny_vit

from captum_ext import CDAM, IntegratedCDAM
from captum_ext.integrated_cdam import quadrature

TOKENS = PAIR_TOKENS.double()


def explainer():
    model = PairModel().double()
    return IntegratedCDAM(model, model.tokens)


@pytest.mark.parametrize("n", [2, 5, 50])
def test_right_riemann_sum_of_a_product(n):
    scores, delta = explainer().attribute(TOKENS, 0, n_steps=n, return_convergence_delta=True)
    share = torch.tensor([[2.0, 6.0, -4.0], [0.0, 2.0, 3.0]]).double()
    torch.testing.assert_close(scores, share * (n + 1) / n, rtol=1e-12, atol=0)
    torch.testing.assert_close(delta, share.sum(1) / n, rtol=1e-9, atol=0)


@pytest.mark.parametrize("method", ["riemann_middle", "riemann_trapezoid", "gausslegendre"])
def test_symmetric_quadratures_of_a_product(method):
    scores, delta = explainer().attribute(TOKENS, 1, n_steps=4, method=method, return_convergence_delta=True)
    share = torch.tensor([[6.0, 0.0, 20.0], [0.0, 0.0, -15.0]]).double()
    # Captum's trapezoid weights are 1/n with half ends: they sum to 3/4 for four points, not to 1.
    exact = share * (3 / 4 if method == "riemann_trapezoid" else 1)
    torch.testing.assert_close(scores, exact, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(delta, (exact - share).sum(1), rtol=1e-9, atol=1e-9)


def test_baseline_moves_the_start_of_the_path():
    """From b to t a product's integral is `(t0 - b0) (t1 + b1) / 2 + (t1 - b1) (t0 + b0) / 2 = t0 t1 - b0 b1`."""
    baseline = torch.tensor([[1.0, -1.0], [2.0, 0.5], [0.0, 3.0]]).double()
    scores = explainer().attribute(TOKENS, 0, baselines=baseline, method="gausslegendre", n_steps=3)
    weight = torch.tensor([1.0, 2.0, -1.0]).double()
    torch.testing.assert_close(scores, weight * (TOKENS.prod(-1) - baseline.prod(-1)), rtol=1e-12, atol=1e-12)


def test_number_as_baseline_fills_all_tokens():
    filled = explainer().attribute(TOKENS, 0, baselines=torch.full_like(TOKENS, 0.5))
    assert torch.equal(explainer().attribute(TOKENS, 0, baselines=0.5), filled)
    assert not torch.allclose(explainer().attribute(TOKENS, 0), filled)


def test_delta_vanishes_as_steps_grow_on_a_real_transformer():
    model, x = tiny_vit().double(), torch.randn(3, 3, 32, 32).double()
    deltas = [
        IntegratedCDAM(model).attribute(x, 2, n_steps=n, return_convergence_delta=True)[1].abs() for n in (20, 40, 80)
    ]
    for coarse, fine in itertools.pairwise(deltas):
        torch.testing.assert_close(fine / coarse, torch.full_like(fine, 0.5), rtol=0.1, atol=0)  # first order in 1/n
    assert (
        IntegratedCDAM(model)
        .attribute(x, 2, n_steps=40, method="gausslegendre", return_convergence_delta=True)[1]
        .abs()
        .max()
        < 1e-9
    )


def test_delta_of_several_targets_is_one_column_each():
    model, x = tiny_vit().double(), torch.randn(2, 3, 32, 32).double()
    integrated = IntegratedCDAM(model)
    maps, deltas = integrated.attribute_targets(x, [0, 3], n_steps=6, return_convergence_delta=True)
    for column, target in enumerate([0, 3]):
        single, delta = integrated.attribute(x, target, n_steps=6, return_convergence_delta=True)
        torch.testing.assert_close(maps[:, column : column + 1], single, rtol=1e-12, atol=0)
        torch.testing.assert_close(deltas[:, column], delta, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("internal", [None, 2, 3, 4, 100])
def test_chunk_size_does_not_change_the_result(internal):
    model, x = tiny_vit().double(), torch.randn(2, 3, 32, 32).double()
    integrated = IntegratedCDAM(model)
    expected = sum(
        CDAM(model_at(model, alpha), model.blocks[-1].norm1).attribute(x, 1, return_tokens=True) / alpha / 7
        for alpha in [k / 7 for k in range(1, 8)]
    )
    actual = integrated.attribute(x, 1, n_steps=7, internal_batch_size=internal, return_tokens=True)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-14)


def model_at(model, alpha):
    """The model with its last tokens scaled by alpha, as a function whose CDAM is alpha times the path's integrand."""

    def forward(x):
        hook = model.blocks[-1].norm1.register_forward_hook(lambda _, __, out: alpha * out, prepend=True)
        try:
            return model(x)
        finally:
            hook.remove()

    return forward


def test_small_internal_batch_warns_and_goes_on():
    with pytest.warns(UserWarning, match="less than the batch of 2"):
        explainer().attribute(TOKENS, 0, internal_batch_size=1)


def test_quadrature_points_are_captums_in_double_precision():
    from captum.attr._utils.approximation_methods import SUPPORTED_METHODS, approximation_parameters

    for method in SUPPORTED_METHODS:
        weights, points = quadrature(method, 7)
        assert weights == approximation_parameters(method)[0](7)
        assert points == pytest.approx(approximation_parameters(method)[1](7), abs=1e-7)
    assert quadrature("riemann_right", 3)[1] == [1 / 3, 2 / 3, 1.0]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"n_steps": 0}, ValueError, "`n_steps` to be at least 1"),
        ({"n_steps": 1}, ValueError, "at least 2 for 'riemann_right'"),
        ({"n_steps": 2.5}, TypeError, "`n_steps` to be an int"),
        ({"method": "simpson"}, ValueError, "got 'simpson'"),
        ({"internal_batch_size": 0}, ValueError, "`internal_batch_size` to be at least 1"),
        ({"baselines": torch.zeros(4, 2)}, ValueError, r"shape \(2, 3, 2\), got shape \(4, 2\)"),
        ({"baselines": float("nan")}, ValueError, "finite `baselines`"),
        ({"baselines": "zero"}, TypeError, "`baselines` to be a tensor"),
    ],
)
def test_wrong_arguments_are_named(options, error, words):
    with pytest.raises(error, match=words):
        explainer().attribute(TOKENS, 0, **options)
