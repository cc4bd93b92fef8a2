"""The report's critical-difference diagrams."""

import re
import warnings

import pytest
from browsing import each, js
from reports import METHODS, METRICS, fake_rankings, full_page

from xai_compare._critical_difference import Ranking
from xai_compare._report_ranks import _columns, diagrams

NAN = float("nan")


def places(svg, what):
    """The coordinates of the first point of each element of this name."""
    parts = re.findall(rf'id="ranks0-{what}(\d+)">(.*?)</g>\n', svg, re.DOTALL)
    return {int(k): [tuple(map(float, xy)) for xy in re.findall(r"[ML] ([\d.]+) ([\d.]+)", part)] for k, part in parts}


def dots(svg):
    parts = re.findall(r'id="ranks0-dot(\d+)">.*?<use [^>]*x="([\d.]+)" y="([\d.]+)"', svg, re.DOTALL)
    return {int(k): (float(x), float(y)) for k, x, y in parts}


def test_dots_lie_at_their_ranks_and_bars_reach_from_the_first_to_the_last_of_a_group():
    order = [("a", 1.0), ("b", 1.5), ("c", 3.5), ("d", 4.0)]
    (found,) = diagrams([Ranking("m", 9, order, [["a", "b", "c"], ["c", "d"]], 0.2)], {}, {})
    at, bars = dots(found.svg), places(found.svg, "group")
    (left, top), (right, bottom) = at[0], at[3]
    for row, (_, rank) in enumerate(order):
        assert at[row][0] == pytest.approx(left + (rank - 1) / 3 * (right - left), abs=0.1)
        assert at[row][1] == pytest.approx(top + row / 3 * (bottom - top), abs=0.1)
    step = (bottom - top) / 3
    for number, (first, last) in enumerate([(0, 2), (2, 3)]):
        (x0, y0), (x1, y1) = bars[number]
        assert x0 == x1 < left
        assert (y0, y1) == pytest.approx((top + (first - 0.25) * step, top + (last + 0.25) * step), abs=0.1)
    assert bars[0][0][0] != bars[1][0][0]  # as they overlap in a row


def test_the_words_say_what_is_drawn():
    ranking = Ranking("m", 1, [("a", 1.25), ("b", 2.0), ("c", 2.75)], [["a", "b"], ["b", "c"]], 0.0421)
    titles = {"a": "A", "b": "B", "c": "C"}
    (found,) = diagrams([ranking], titles, {"m": "Metric"})
    expected = "Mean ranks, the best first: A 1.25, B 2.00, C 2.75. Not significantly different: A, B; B, C."
    assert (found.title, found.words) == ("Metric", expected)
    assert found.note == "1 image, Friedman test: p = 0.042"
    (alone,) = diagrams([Ranking("m", 7, ranking.order[:2], [], NAN)], titles, {})
    assert (alone.title, alone.note) == ("m", "7 images")
    assert alone.words.endswith("different: none.")
    (sure,) = diagrams([Ranking("m", 7, ranking.order, [], 1e-9)], titles, {})
    assert sure.note.endswith("p < 0.001")


@pytest.mark.parametrize(
    ("spans", "columns"),
    [
        ([(0, 2), (3, 4)], [0, 0]),
        ([(0, 2), (2, 3), (3, 5)], [0, 1, 0]),
        ([(0, 3), (1, 4), (2, 5)], [0, 1, 2]),
        ([], []),
    ],
)
def test_bars_that_share_a_row_lie_in_different_columns(spans, columns):
    assert [column for *_, column in _columns(spans)] == columns


def test_names_of_thirty_letters_are_whole_longer_ones_are_cut_and_no_text_is_a_formula():
    names = ["method number 00 of twenty xyz", "x" * 80, "$a_b$ and \\frac", "\u65b9\u6cd5"]
    order = [(name, float(rank)) for rank, name in enumerate(names, 1)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (found,) = diagrams([Ranking("m", 7, order, [], NAN)], {}, {})
    texts = re.findall(r"<text [^>]*>([^<]*)</text>", found.svg)
    assert names[0] in texts
    assert names[2] in texts
    assert names[3] in texts
    (cut,) = [text for text in texts if text.startswith("xx")]
    assert re.fullmatch("x{25,35}\u2026", cut)


@pytest.mark.slow
def test_each_metric_with_a_direction_has_a_diagram_that_is_drawn_inside_its_frame(show):
    for width in (1280, 390):
        browser = show(full_page(), width)
        assert each(browser, ".ranks b", "e.innerText") == [title for title, direction in METRICS.values() if direction]
        inside = """(e => { const box = e.closest('svg').getBoundingClientRect(), own = e.getBoundingClientRect();
            return own.left >= box.left - 1 && own.right <= box.right + 1 && own.bottom <= box.bottom + 1; })(e)"""
        assert all(each(browser, ".ranks text", inside))
        sizes = each(browser, ".ranks text", "e.getBoundingClientRect().height")
        assert min(sizes) > 11
        labels = each(browser, ".ranks svg", "e.getAttribute('aria-label')")
        order = [METHODS[method][0] for method, _ in fake_rankings()[0].order]
        said = labels[0].split("first: ")[1].split(". ")[0].split(", ")
        assert [one.rsplit(" ", 1)[0] for one in said] == order
        assert js(browser, "document.documentElement.scrollWidth") <= width
