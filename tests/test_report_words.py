"""What the report says of each metric before its table: who is best, and whether tests say so."""

import pandas as pd
import pytest
from reports import METHODS, METRICS, TESTS, fake_run, fake_scores, summary_of

from xai_compare._report import render
from xai_compare._report_table import score_columns
from xai_compare._report_table import test_table as table_of_tests
from xai_compare._report_words import Finding, findings, in_short

NAMES = {name: name.upper() for name in "abcdefg"}


def found_of(means, tests, direction="higher"):
    """What is said of one metric: means by method, (method, method, effect, p) of tests."""
    scores = summary_of(*(("m", direction, name, 9, 0, mean, mean, mean) for name, mean in means.items()))
    rows = [("m", a, b, 9, effect, effect, -1, 1, p, p) for a, b, effect, p in tests]
    pairs = pd.DataFrame(rows, columns=TESTS).to_dict("records")
    methods = {name: NAMES[name] for name in means}
    return findings(score_columns({}, scores.to_dict("records"), pairs, methods, {"m": "M"}), pairs, methods)


NAN = float("nan")
CONTRARY = "sample by sample B scored significantly better"
WINS, NOBODY = "is significantly better than", "no method is significantly better than all others"
FAR, NEAR = 0.01, 0.4


@pytest.mark.parametrize(
    ("means", "tests", "expected"),
    [
        (
            {"a": 3, "b": 1, "c": 2},
            [("a", "b", 1, FAR), ("a", "c", 1, FAR)],
            f"A {WINS} all others.",
        ),
        ({"a": 1, "b": 3}, [("a", "b", -1, FAR)], f"B {WINS} A."),
        (
            {"a": 3, "b": 1, "c": 2},
            [("a", "b", 1, FAR), ("a", "c", 1, NEAR)],
            f"{NOBODY}; A has the best mean, not significantly different from C.",
        ),
        ({"a": 3, "b": 1}, [], "A has the best mean; no test compares it with B."),
        ({"a": 3, "b": 1}, [("a", "b", 1, NAN)], "A has the best mean; no test compares it with B."),
        # the mean of a is higher, but the test says that b is
        (
            {"a": 3, "b": 1},
            [("a", "b", -1, FAR)],
            "A has the best mean; sample by sample B scored significantly better.",
        ),
        (
            {"a": 3, "b": 1, "c": 2},
            [("a", "b", -1, FAR), ("a", "c", 1, NEAR)],
            f"A has the best mean, not significantly different from C; {CONTRARY}.",
        ),
        ({"a": 3, "b": 3, "c": 1}, [("a", "c", 1, FAR), ("b", "c", 1, FAR)], "A and B share the best mean."),
        ({"a": 3, "b": NAN}, [], "only A has scores."),
        ({"a": NAN, "b": NAN}, [], "no method has a score."),
    ],
)
def test_what_is_said_of_a_metric(means, tests, expected):
    (found,) = found_of(means, tests)
    assert (found.title, found.text) == ("M", expected)
    assert bool(found.winner) == (WINS in expected and NOBODY not in expected)


def test_a_lower_score_is_better_where_the_metric_says_so():
    assert found_of({"a": 1, "b": 3}, [("a", "b", -1, FAR)], "lower")[0].winner == "A"
    assert "sample by sample B scored" in found_of({"a": 1, "b": 3}, [("b", "a", -1, FAR)], "lower")[0].text


def test_of_many_methods_that_are_close_the_first_are_named_and_the_others_counted():
    means = dict(zip("abcdefg", range(7, 0, -1), strict=True))
    close = [("a", other, 1, NEAR) for other in "bcdefg"]
    assert found_of(means, close)[0].text.endswith("different from B, C, D and 3 others.")
    assert found_of(means, [*close[:4], ("a", "f", 1, FAR), ("a", "g", 1, FAR)])[0].text.endswith("from B, C, D and E.")


def test_metrics_without_a_direction_and_single_methods_are_not_judged():
    assert found_of({"a": 1, "b": 2}, [], "") == []
    assert found_of({"a": 1}, []) == []


def test_in_short_each_winner_is_counted_the_most_frequent_first():
    won = [Finding("", "", winner) for winner in ("B", "A", "", "A", "")]
    expected = "Significantly better than all others, of 5 metrics: A in 2, B in 1, no method in 2."
    assert in_short(won) == expected


@pytest.mark.slow
def test_what_is_said_of_plausible_scores_is_what_their_tests_say():
    summary, tests = fake_scores()
    titles = {name: title for name, (title, _) in METHODS.items()}
    metrics = {name: title for name, (title, _) in METRICS.items()}
    pairs = tests.to_dict("records")
    columns = score_columns(fake_run(), summary.to_dict("records"), pairs, titles, metrics)
    found = {one.title: one for one in findings(columns, pairs, titles)}
    assert list(found) == [title for title, direction in METRICS.values() if direction]
    for metric, (title, direction) in METRICS.items():
        if not direction:
            continue
        means = summary[summary.metric == metric].set_index("method")["mean"]
        best = means.idxmax() if direction == "higher" else means.idxmin()
        own = tests[(tests.metric == metric) & ((tests.method_a == best) | (tests.method_b == best))].dropna()
        assert titles[best] in found[title].text
        assert found[title].winner == (titles[best] if (own.p_holm < 0.05).all() else "")


def with_metrics(count):
    rows = [
        (f"m{i}", "higher", method, 9, 0, i + mean, 0, 1) for i in range(count) for method, mean in (("a", 1), ("b", 2))
    ]
    tests = pd.DataFrame([(f"m{i}", "a", "b", 9, -1, -1, -1, -1, FAR, FAR) for i in range(count)], columns=TESTS)
    return render({}, summary_of(*rows), tests, [], [])


def test_the_page_lists_what_is_said_and_folds_more_than_six_lines():
    for count in (1, 6, 7):
        page = with_metrics(count)
        assert page.index("<li><b>m0</b>: b is significantly better than a.</li>") < page.index('id="scores-title"')
        assert page.count("is significantly better than a.</li>") == count
        assert ('<details id="findings"><summary>Significantly better' in page) == (count > 6)
    assert "of 7 metrics: b in 7." in with_metrics(7)


def test_the_table_of_tests_shows_effects_with_intervals_and_dashes_where_there_are_none():
    rows = [("m", "a", "b", 9, -0.25, -0.5, -0.75, 0.125, 0.0002, 0.04), ("m", "a", "c", 0, *[NAN] * 6)]
    shown = table_of_tests(pd.DataFrame(rows, columns=TESTS).to_dict("records"), NAMES, {"m": "M"})
    minus, dash = "\u2212", "\u2013"
    first = ("M", "A", "B", 9, f"{minus}0.250", f"{minus}0.50", f"{minus}0.75 to 0.12", "< 0.001", "0.040")
    assert shown.rows == [first, ("M", "A", "C", 0, *[dash] * 5)]
    assert len(shown.heads) == len(first)
