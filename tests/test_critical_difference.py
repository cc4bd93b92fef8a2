"""Mean ranks, groups that no test tells apart, and the Friedman test."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from xai_compare._critical_difference import _groups, rankings
from xai_compare._statistics import pairwise


def rows_of(scores, metric="m"):
    rows = [(i, method, metric, value) for method, values in scores.items() for i, value in enumerate(values)]
    return pd.DataFrame(rows, columns=["sample", "method", "metric", "score"])


def ranked(scores, direction="higher"):
    rows = rows_of(scores)
    return rankings(rows, {"m": direction}, pairwise(rows, ["m"], list(scores), 20, 0))


def paired_tests(order, apart):
    """Tests of which these pairs are significant."""
    rows = [(a, b, 0.01 if {a, b} in apart else 0.5) for a, b in combinations(sorted(order), 2)]
    return pd.DataFrame(rows, columns=["method_a", "method_b", "p_holm"])


@pytest.mark.parametrize(
    ("apart", "expected"),
    [
        ("", ["abcd"]),
        ("ad", ["abc", "bcd"]),
        ("ac bd ad", ["ab", "bc", "cd"]),
        ("ab ac ad", ["bcd"]),
        ("ac ad bc bd", ["ab", "cd"]),
        ("bc", ["ab", "cd"]),  # a and d are not told apart, but between them b and c are
        ("ab bc cd", []),
        ("ab ac ad bc bd cd", []),
        ("bd", ["abc", "cd"]),
    ],
)
def test_groups_are_the_longest_runs_in_which_no_pair_differs(apart, expected):
    pairs = [set(pair) for pair in apart.split()]
    assert _groups(list("abcd"), paired_tests("abcd", pairs)) == [list(group) for group in expected]


def test_groups_are_all_maximal_runs_found_by_trying_every_run():
    draw = np.random.default_rng(0)
    for _ in range(50):
        order = [str(one) for one in draw.permutation(6)]
        apart = [set(pair) for pair in combinations(order, 2) if draw.random() < 0.3]
        runs = [order[i:j] for i in range(6) for j in range(i + 2, 7)]
        tied = [run for run in runs if not any(set(pair) in apart for pair in combinations(run, 2))]
        maximal = [run for run in tied if not any(set(run) < set(other) for other in tied)]
        assert _groups(order, paired_tests(order, apart)) == maximal


def test_a_p_value_of_exactly_five_percent_is_not_significant():
    tests = pd.DataFrame([("a", "b", 0.05)], columns=["method_a", "method_b", "p_holm"])
    assert _groups(["b", "a"], tests) == [["b", "a"]]


def test_order_ranks_groups_and_friedman_of_scores_that_are_told_apart():
    draw = np.random.default_rng(1)
    base = draw.normal(size=40)
    scores = {"low": base - 3, "x": base + draw.normal(0, 0.1, 40), "y": base + draw.normal(0, 0.1, 40)}
    (found,) = ranked(scores)
    ranks = stats.rankdata([-scores[name] for name in scores], axis=0).mean(1)
    expected = sorted(zip(scores, ranks, strict=True), key=lambda one: one[1])
    assert [name for name, _ in found.order] == [name for name, _ in expected]
    assert [rank for _, rank in found.order] == pytest.approx([rank for _, rank in expected])
    assert found.order[-1] == ("low", 3)
    assert [set(group) for group in found.groups] == [{"x", "y"}]
    # Friedman's chi square of ranks without ties: 12 n / (k (k + 1)) times the squared deviations from the mean rank
    statistic = 12 * 40 / (3 * 4) * ((ranks - 2) ** 2).sum()
    assert found.p == pytest.approx(stats.chi2.sf(statistic, 2), rel=1e-9)
    assert (found.metric, found.n) == ("m", 40)


def test_a_lower_score_is_the_first_where_lower_is_better():
    scores = {"a": [1.0, 2, 3, 4, 5, 6], "b": [2.0, 3, 4, 5, 6, 7]}
    assert ranked(scores, "lower")[0].order == [("a", 1), ("b", 2)]
    assert ranked(scores, "higher")[0].order == [("b", 1), ("a", 2)]


def test_only_samples_that_all_methods_have_count_and_methods_without_scores_are_left_out():
    scores = {"a": [3.0, 3, 3, 0], "b": [2.0, 2, 2, 9], "c": [1.0, 1, np.nan, np.nan], "gone": [np.nan] * 4}
    (found,) = ranked(scores)
    assert found.order == [("a", 1), ("b", 2), ("c", 3)]
    assert found.n == 2


def test_two_methods_have_no_friedman_test_and_equal_scores_the_probability_one():
    assert np.isnan(ranked({"a": [1.0, 2, 3], "b": [2.0, 1, 0]})[0].p)
    assert np.isnan(ranked({"a": [1.0], "b": [2.0], "c": [3.0]})[0].p)
    same = ranked({method: [1.0, 2, 3] for method in "abc"})[0]
    assert same.p == 1
    assert same.groups == [["a", "b", "c"]]
    assert same.order == [("a", 2), ("b", 2), ("c", 2)]


def test_metrics_without_a_direction_a_second_method_or_shared_samples_have_no_ranks():
    assert ranked({"a": [1.0, 2], "b": [2.0, 1]}, "") == []
    assert ranked({"a": [1.0, 2]}) == []
    assert ranked({"a": [1.0, np.nan], "b": [np.nan, 1.0]}) == []
    assert ranked({"a": [1.0, np.nan], "b": [np.nan, np.nan]}) == []
