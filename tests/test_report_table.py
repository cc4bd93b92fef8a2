"""The report's table and plots in a browser."""

import pandas as pd
import pytest
from browsing import click, column, each, heading, js, numbers, press, wait_for
from reports import METHODS, METRICS, fake_scores, full_page, table_page

from xai_compare._report import render

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("metric", "first"), [("fidelity", "descending"), ("ad", "ascending"), ("discrimination", "descending")]
)
def test_a_click_sorts_best_first_another_reverses_and_what_failed_stays_last(show, metric, first):
    browser, title = show(table_page()), METRICS[metric][0]
    rows = fake_scores()[0].set_index("metric").loc[metric]
    for order in (first, "ascending" if first == "descending" else "descending"):
        heading(browser, title)[1].click()
        expected = rows.sort_values("mean", ascending=order == "ascending", na_position="last")
        found = column(browser, title)
        assert list(found) == list(expected.method)
        assert each(browser, "#scores [aria-sort]", "[e.querySelector('span').innerText, e.ariaSort]") == [
            [title, order]
        ]
        assert metric != "discrimination" or list(found.values())[-1][0] == "\u2013"


def test_the_keyboard_sorts_too_and_methods_sort_by_name(show):
    browser = show(table_page())
    order = numbers(browser, "Mean rank")
    js(browser, "arguments[0].focus()", heading(browser, "Mean rank")[1])
    press(browser, "\ue007")  # Enter
    assert numbers(browser, "Mean rank") == sorted(order) != order
    press(browser, " ")
    assert numbers(browser, "Mean rank") == sorted(order, reverse=True)
    heading(browser, "Method")[1].click()
    titles = [lines[0] for lines in column(browser, "Method").values()]
    assert titles == sorted((title for title, _ in METHODS.values()), key=str.lower)


@pytest.mark.parametrize("metric", METRICS)
def test_best_marks_and_intervals_are_those_of_the_numbers(show, metric):
    title, direction = METRICS[metric]
    browser, (summary, tests) = show(table_page()), fake_scores()
    at, _ = heading(browser, title)
    marks = dict(each(browser, "#scores tbody tr", f"[e.dataset.method, e.cells[{at}].className]"))
    shown = column(browser, title)
    rows = summary[summary.metric == metric].set_index("method")
    best = {"higher": rows["mean"].idxmax(), "lower": rows["mean"].idxmin(), "": None}[direction]
    tied = tests[(tests.metric == metric) & (tests.p_holm >= 0.05)]
    close = {*tied.method_a[tied.method_b == best], *tied.method_b[tied.method_a == best]}
    assert marks == dict.fromkeys(METHODS, "") | dict.fromkeys(close, "close") | ({best: "best"} if best else {})
    for method, row in rows.iterrows():
        if row.failed:
            assert shown[method] == ["\u2013", "48 failed"]
            continue
        sign = {"best": "\u2605", "close": "\u2248", "": ""}[marks[method]]
        assert shown[method] == [f"{row['mean']:.3f}{sign}", f"{row.ci_low:.3f} to {row.ci_high:.3f}"]


def test_ranks_are_averaged_and_incomplete_ones_are_not_best(show):
    shown = column(show(table_page()), "Mean rank")
    for method, mean in fake_scores()[0].groupby("method")["mean_rank"].mean().items():
        assert shown[method][0].rstrip("\u2605") == f"{mean:.2f}"
    ranks = [("x", "a", 1.5), ("x", "b", 2.5), ("x", "once", 1.0), ("y", "a", 1.5), ("y", "b", 1.5)]
    rows = pd.DataFrame(ranks, columns=["metric", "method", "mean_rank"])
    shown = column(show(render({}, rows, pd.DataFrame(), [], [])), "Mean rank")
    assert shown == {"a": ["1.50\u2605"], "b": ["2.00"], "once": ["1.00", "1 of 2 metrics"]}


def test_links_to_the_tests_open_them(show):
    browser = show(full_page())
    assert not js(browser, "document.getElementById('tests').open")
    click(browser, "a[href='#pairs']")
    wait_for(browser, "document.getElementById('tests').open")
    assert len(each(browser, "#tests tbody tr", "0")) == len(fake_scores()[1])


def test_plots_have_labels_and_ids_of_their_own_and_legends_hide_methods(show):
    browser = show(full_page())
    assert each(browser, ".curves figcaption", "e.innerText") == [
        *("MIF, most important first", "LIF, least important first"),
        *("correlation", "probability", "probability"),
    ]
    labels = each(browser, "svg.plot", "e.getAttribute('aria-label')")
    assert labels[2].startswith("Box sensitivity, correlation: ")
    assert labels[2].endswith("against box size in pixels")
    ids = each(browser, "[id]", "e.id")
    assert len(ids) == len(set(ids))
    texts = each(browser, "svg.plot text", "e.textContent")
    assert "blurred pixels in percent" in texts
    look = "(s => s.stroke + s.strokeDasharray)(getComputedStyle(e))"
    looks = each(browser, "[id^=plot0-line]:not([id*=line2d]) > path", look)
    assert len(set(looks)) == len(looks) == len(METHODS)
    hidden = "[...document.querySelectorAll('.plot .off')].map(e => e.id).sort()"
    click(browser, "input[data-line='1']")
    assert js(browser, hidden) == sorted(f"plot{plot}-{part}1" for plot in range(5) for part in ("line", "band"))
    click(browser, "input[data-line='1']", -1)
    assert js(browser, hidden) == []
