"""Means, intervals, ranks and tests of `xai-compare`, against numbers obtained in another way."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from xai_compare._statistics import _wilcoxon, curve_means, holm, interval, mean_ranks, pairwise, summarise, wide


def table(scores, metric="m", seconds=0.5):
    """Long rows of {method: scores}."""
    return pd.DataFrame(
        [
            {"sample": i, "method": method, "metric": metric, "score": value, "seconds": seconds}
            for method, values in scores.items()
            for i, value in enumerate(values)
        ]
    )


def random_table(seed=0, count=20, methods=("a", "b", "c")):
    draw = np.random.default_rng(seed)
    base = draw.normal(size=count)
    return {method: base + i * 0.3 + draw.normal(size=count) for i, method in enumerate(methods)}


def test_holm_is_the_textbook_example():
    # by hand: 0.005 x 4 = 0.02; 0.01 x 3 = 0.03; 0.03 x 2 = 0.06; 0.04 x 1 = 0.04, not below 0.06
    p = pd.Series([0.01, 0.04, 0.03, 0.005], index=[7, 3, 5, 1])
    found = holm(p)
    assert found.index.tolist() == [7, 3, 5, 1]
    assert found.tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02], abs=1e-15)


def test_holm_never_exceeds_one_and_leaves_missing_tests_out_of_the_count():
    found = holm(pd.Series([0.6, np.nan, 0.02, 0.7]))
    assert np.isnan(found[1])
    assert found[[0, 2, 3]].tolist() == pytest.approx([1, 0.06, 1])


def test_paired_tests_are_scipys_of_the_samples_that_both_have():
    scores = random_table()
    scores["a"][[2, 5]] = np.nan
    scores["b"][7] = np.nan
    found = pairwise(table(scores), ["m"], list(scores), 50, 0).set_index(["method_a", "method_b"])
    assert list(found.index) == [("a", "b"), ("a", "c"), ("b", "c")]
    raw = []
    for one, other in found.index:
        both = ~np.isnan(scores[one]) & ~np.isnan(scores[other])
        x, y = scores[one][both], scores[other][both]
        row = found.loc[one, other]
        assert row.n == both.sum()
        assert row.median_difference == pytest.approx(np.median(x - y), abs=1e-15)
        raw.append(stats.wilcoxon(x, y).pvalue)
        assert row.p == pytest.approx(raw[-1], abs=1e-15)
    assert found.n.tolist() == [17, 18, 19]
    order = np.argsort(raw)  # step down, written out once more
    expected, before = {}, 0.0
    for place, i in enumerate(order):
        before = max(before, min(1, raw[i] * (3 - place)))
        expected[i] = before
    assert found.p_holm.tolist() == pytest.approx([expected[i] for i in range(3)], abs=1e-15)


def test_a_small_wilcoxon_test_by_hand():
    # differences 1, 2, 3, 4, -5: ranks against are 5 of 15; 10 of the 32 signs are as extreme on one side
    found = pairwise(table({"a": [1, 2, 3, 4, -5], "b": [0, 0, 0, 0, 0]}), ["m"], ["a", "b"], 50, 0)
    signs = np.array(np.meshgrid(*[[0, 1]] * 5)).reshape(5, -1).T
    against = (signs * [1, 2, 3, 4, 5]).sum(1)
    assert found.p[0] == pytest.approx(2 * (against <= 5).mean())
    assert found.median_difference[0] == 2


def test_tests_without_a_difference_or_a_pair():
    scores = pd.concat(
        [table({"a": [1, 2, 3], "b": [1, 2, 3], "c": [np.nan] * 3}), table({"a": [1, 2, 3], "b": [2, 4, 6]}, "other")]
    )
    found = pairwise(scores, ["m", "other"], ["a", "b", "c"], 50, 0)
    assert len(found) == 6
    assert found.n.tolist() == [3, 0, 0, 3, 0, 0]
    assert found.p[0] == 1
    assert found.p[[1, 2, 4, 5]].isna().all()
    assert found.p_holm[3] == found.p[3] == 0.25  # the only test of its metric; of three like signs 2 / 8


def test_one_method_alone_has_no_tests():
    found = pairwise(table({"a": [1, 2, 3]}), ["m"], ["a"], 50, 0)
    assert len(found) == 0
    columns = ["metric", "method_a", "method_b", "n", "median_difference", "effect", "effect_low", "effect_high"]
    assert list(found) == [*columns, "p", "p_holm"]


def test_the_correction_is_within_each_metric():
    one, other = random_table(1), random_table(2)
    both = pairwise(pd.concat([table(one, "m"), table(other, "n")]), ["m", "n"], list(one), 50, 0)
    alone = pairwise(table(other, "n"), ["n"], list(one), 50, 0)
    pd.testing.assert_frame_equal(both[both.metric == "n"].reset_index(drop=True), alone)


def test_the_interval_is_a_plain_percentile_bootstrap():
    values = np.random.default_rng(3).exponential(size=40)
    low, high = interval(values, 4000, seed=5)
    drawn = np.random.default_rng(5).integers(0, 40, (4000, 40))  # the same resamples
    assert (low, high) == pytest.approx(tuple(np.percentile(values[drawn].mean(1), [2.5, 97.5])), rel=1e-12)


@pytest.mark.slow
def test_the_interval_of_many_normal_values_is_that_of_theory():
    values = np.random.default_rng(0).normal(2, 3, size=1000)
    low, high = interval(values, 10_000, seed=0)
    half = 1.959964 * values.std() / 1000**0.5
    assert low == pytest.approx(values.mean() - half, abs=0.06 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.06 * half)


def test_intervals_of_too_few_or_equal_values():
    assert np.isnan(interval(np.array([]), 100, 0)).all()
    assert np.isnan(interval(np.array([1.0]), 100, 0)).all()
    assert interval(np.full(7, 0.25), 100, 0) == (0.25, 0.25)


def test_methods_share_the_resampled_samples():
    values = np.random.default_rng(4).normal(size=25)
    low, high = interval(values, 500, 9)
    assert interval(10 * values + 1, 500, 9) == pytest.approx((10 * low + 1, 10 * high + 1))
    assert interval(values, 500, 10) != (low, high)


def test_ranks_by_hand_with_ties_missing_samples_and_both_directions():
    scores = {"a": [3, 1, 5, 9], "b": [2, 1, 5, np.nan], "c": [1, 2, 5, 0]}
    # sample 3 lacks b. higher: a 1, 2.5, 2; b 2, 2.5, 2; c 3, 1, 2
    of_higher = mean_ranks(wide(table(scores)), "higher")
    assert of_higher.to_dict() == pytest.approx({"a": 5.5 / 3, "b": 6.5 / 3, "c": 2})
    of_lower = mean_ranks(wide(table(scores)), "lower")
    assert of_lower.to_dict() == pytest.approx({"a": 6.5 / 3, "b": 5.5 / 3, "c": 2})
    assert len(mean_ranks(wide(table(scores)), "")) == 0


def test_the_summary_counts_and_averages_what_there_is():
    scores = {"a": [3.0, 1.0, np.nan, 8.0], "b": [np.nan] * 4}
    found = summarise(table(scores, seconds=0.25), {"m": "higher"}, ["b", "a", "absent"], 200, 1).set_index("method")
    assert list(found.index) == ["b", "a", "absent"]
    assert found.n.tolist() == [0, 3, 0]
    assert found.failed.tolist() == [4, 1, 0]
    assert found["mean"]["a"] == 4
    assert (found.ci_low["a"], found.ci_high["a"]) == interval(np.array([3.0, 1.0, 8.0]), 200, 1)
    assert found.ci_low["a"] < 4 < found.ci_high["a"]
    assert found.loc["b", ["mean", "ci_low", "ci_high", "mean_rank"]].isna().all()
    assert found.seconds["a"] == 0.25


def test_summary_ranks_are_those_of_the_metrics_own_direction():
    both = pd.concat([table({"a": [2, 2], "b": [1, 1]}, "up"), table({"a": [2, 2], "b": [1, 1]}, "down")])
    found = summarise(both, {"up": "higher", "down": "lower"}, ["a", "b"], 100, 0)
    assert found.mean_rank.tolist() == [1, 2, 2, 1]


def curve_rows(curves, draw):
    """A row for each curve, shuffled, in parts of four."""
    rows = [
        {"sample": i, "method": method, "metric": metric, "curve": "c", "axis": "share", "x": np.arange(5.0), "y": one}
        for (method, metric), of_all in curves.items()
        for i, one in enumerate(of_all)
    ]
    draw.shuffle(rows)
    return [pd.DataFrame(rows[start : start + 4]) for start in range(0, len(rows), 4)]


def test_mean_curves_are_those_of_all_curves_at_once():
    draw = np.random.default_rng(6)
    curves = {key: draw.normal(3, 2, size=(90, 5)) for key in (("a", "m"), ("b", "m"), ("a", "n"))}
    found = curve_means(curve_rows(curves, draw), 4000, 0).set_index(["method", "metric"])
    assert len(found) == 3
    for key, of_all in curves.items():
        row = found.loc[key]
        assert np.allclose(row["mean"], of_all.mean(0), atol=1e-12)
        expected = stats.bootstrap(
            (of_all,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(1)
        )
        width = expected.confidence_interval.high - expected.confidence_interval.low
        assert np.abs(row.low - expected.confidence_interval.low).max() < 0.12 * width.max()
        assert np.abs(row.high - expected.confidence_interval.high).max() < 0.12 * width.max()
        assert row.x.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("count", [2, 3, 5, 12])
def test_the_interval_of_a_curve_stays_in_the_range_of_the_curves(count):
    draw = np.random.default_rng(count)
    shares = (draw.random((count, 5)) < 0.9).astype(float)  # a standard error would reach above 1
    row = curve_means(curve_rows({("a", "m"): shares}, draw), 500, 0).iloc[0]
    assert (row.low >= shares.min(0) - 1e-12).all()
    assert (row.high <= shares.max(0) + 1e-12).all()
    assert (row.low <= row["mean"]).all()
    assert (row.high >= row["mean"]).all()
    assert (row.high > row.low).any() or shares.std(0).max() == 0


def test_a_single_curve_has_an_interval_of_nothing():
    row = {"method": "a", "metric": "m", "curve": "c", "axis": "", "x": np.arange(2.0), "y": np.array([1.0, 3.0])}
    found = curve_means([pd.DataFrame([row])], 100, 0).iloc[0]
    assert found["mean"].tolist() == found.low.tolist() == found.high.tolist() == [1, 3]
    assert len(curve_means([], 100, 0)) == 0


@pytest.mark.parametrize(
    "difference", [[1.0, 1, 1], [1.0, -1, 2, 2, 0, 3], [0.5, 0.5, -0.5, 2, 2, -1, 0, 3]], ids=["equal", "zero", "mixed"]
)
def test_few_tied_differences_are_tested_exactly(difference):
    assert _wilcoxon(np.array(difference)) == pytest.approx(stats.wilcoxon(difference).pvalue, rel=1e-12)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_small_sample_has_the_probability_of_all_signs(count):
    for difference in product([-2.0, -1.0, 0.0, 1.0, 3.0], repeat=count):
        kept = np.array([one for one in difference if one])
        signs = np.array(list(product([-1, 1], repeat=len(kept))))
        sums = signs @ stats.rankdata(np.abs(kept))
        found = np.sign(kept) @ stats.rankdata(np.abs(kept))
        exact = min(1, 2 * min((sums <= found + 1e-9).mean(), (sums >= found - 1e-9).mean()))
        assert _wilcoxon(np.array(difference)) == pytest.approx(exact), difference


def test_two_samples_of_which_one_differs_are_compared():
    found = pairwise(table({"a": [1, 2], "b": [1, 5]}), ["m"], ["a", "b"], 50, 0)
    assert (found.n[0], found.p[0], found.p_holm[0]) == (2, 1, 1)
