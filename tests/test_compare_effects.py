"""Effect sizes of paired differences, against Walsh averages, scipy's tests and scipy's bootstrap."""

from itertools import combinations_with_replacement

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from xai_compare._statistics import effect, effect_interval, pairwise


def by_sorting(difference, axis=-1):
    """The definition, of untied rows without zeros."""
    ranks = stats.rankdata(np.abs(difference), axis=axis)
    return (np.sign(difference) * ranks).sum(axis) / ranks.sum(axis)


def of_one(difference):
    """The definition in plain Python, with ties and zeros."""
    changed = [one for one in difference if one]
    ranks = [sum(abs(o) < abs(d) for o in changed) + (sum(abs(o) == abs(d) for o in changed) + 1) / 2 for d in changed]
    plus = sum(rank for rank, d in zip(ranks, changed, strict=True) if d > 0)
    return (2 * plus - sum(ranks)) / sum(ranks) if changed else 0.0


@pytest.mark.parametrize(
    ("difference", "expected"),
    [
        ([1, 2, 3, 4, -5], (10 - 5) / 15),
        ([2, -2, 2, 0, 0], (4 - 2) / 6),  # the three that are tied have the rank 2
        ([1, -2, -2, 5], (1 + 4 - 2.5 - 2.5) / 10),
        ([3, 1], 1),
        ([-3, -1, 0], -1),
        ([0, 0], 0),
        ([-7], -1),
    ],
)
def test_effects_by_hand(difference, expected):
    assert effect(np.array(difference, float)) == pytest.approx(expected, abs=1e-15)


def test_without_a_difference_there_is_no_effect_and_with_one_no_interval():
    assert np.isnan(effect(np.array([])))
    assert np.isnan(effect_interval(np.array([]), 100, 0)).all()
    assert np.isnan(effect_interval(np.array([2.0]), 100, 0)).all()
    assert effect_interval(np.zeros(5), 100, 0) == (0, 0)
    assert effect_interval(np.ones(5), 100, 0) == (1, 1)


@pytest.mark.parametrize("count", [4, 11, 60])
def test_the_effect_is_that_of_walsh_averages_and_of_scipys_statistic(count):
    difference = np.random.default_rng(count).normal(0.3, 1, count)
    walsh = [(a + b) / 2 for a, b in combinations_with_replacement(difference, 2)]
    assert effect(difference) == pytest.approx(np.mean(np.sign(walsh)), abs=1e-12)
    smaller = stats.wilcoxon(difference).statistic  # of W+ and W-
    assert abs(effect(difference)) == pytest.approx(1 - 4 * smaller / (count * (count + 1)), abs=1e-12)


@pytest.mark.parametrize("count", [2, 7, 40])
def test_intervals_without_ties_in_the_data_are_scipys_bootstrap(count):
    difference = np.random.default_rng(count).normal(0.2, 1, count)
    settings = {"n_resamples": 300, "method": "percentile", "rng": np.random.default_rng(6)}
    expected = stats.bootstrap((difference,), by_sorting, vectorized=True, batch=300, **settings).confidence_interval
    assert effect_interval(difference, 300, 6) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_intervals_of_ties_and_zeros_are_those_of_plain_resampling():
    difference = np.array([0, 1, 1, -1, 2, -3, 0, 3, 3, 0.5, -0.5, 4])
    drawn = np.random.default_rng(8).integers(0, 12, (200, 12))  # the same resamples
    expected = np.percentile([of_one(difference[rows]) for rows in drawn], [2.5, 97.5])
    assert effect_interval(difference, 200, 8) == pytest.approx(tuple(expected), abs=1e-12)


def test_resamples_that_do_not_fit_the_cache_at_once_are_the_same(monkeypatch):
    difference = np.random.default_rng(1).normal(0.2, 1, 25).round(1)
    expected = effect_interval(difference, 200, 3)
    monkeypatch.setattr("xai_compare._statistics._IN_CACHE", 30)
    assert effect_interval(difference, 200, 3) == expected


def test_pairs_have_effects_of_the_samples_that_both_have_positive_where_the_first_is_higher():
    draw = np.random.default_rng(5)
    scores = {"a": draw.normal(1, 1, 30), "b": draw.normal(0, 1, 30), "c": draw.normal(0.5, 1, 30)}
    scores["b"][[3, 4]] = np.nan
    rows = [(i, method, "m", value) for method, values in scores.items() for i, value in enumerate(values)]
    table = pd.DataFrame(rows, columns=["sample", "method", "metric", "score"])
    found = pairwise(table, ["m"], list(scores), 150, 2).set_index(["method_a", "method_b"])
    assert found.effect["a", "b"] > 0.5
    assert found.effect["b", "c"] < -0.2
    for a, b in found.index:
        both = (scores[a] - scores[b])[~np.isnan(scores[a] - scores[b])]
        row = found.loc[(a, b)]
        assert row.effect == pytest.approx(by_sorting(both), abs=1e-12)
        assert (row.effect_low, row.effect_high) == effect_interval(both, 150, 2)
        assert row.effect_low < row.effect < row.effect_high
