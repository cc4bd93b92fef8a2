"""The report's matrix of agreement, and its links into the gallery."""

import numpy as np
import pandas as pd
import pytest
from browsing import click, each, js, shown
from reports import METHODS, PAIRS, fake_agreement, fake_pictures, full_page, small

from xai_compare._report_agreement import matrix

NAN = float("nan")


def by_pair(*rows):
    return pd.DataFrame([(*row, row[3] - 0.1, row[3] + 0.1) for row in rows], columns=PAIRS)


def by_sample(*rows):
    return pd.DataFrame(rows, columns=["sample", "name", "agreement"])


def test_the_matrix_is_symmetric_and_leaves_out_methods_without_a_pair():
    pairs = by_pair(("a", "b", 5, 0.5), ("a", "gone", 0, NAN), ("b", "gone", 0, NAN), ("a", "c", 4, -0.25))
    found = matrix(pairs, None, {"a": "A", "b": "B", "gone": "Gone", "c": "C"}, [])
    expected = {"a": [NAN, 0.5, -0.25], "b": [0.5, NAN, NAN], "c": [-0.25, NAN, NAN]}
    assert list(found.rows) == list(expected)
    assert np.array(list(found.rows.values())) == pytest.approx(np.array(list(expected.values())), nan_ok=True)
    assert found.words == "Mean of all pairs: 0.12. Most alike: A and B (0.50). Least alike: A and C (\u22120.25)."
    shown = [("A", "B", 5, "0.50", "0.40 to 0.60"), ("A", "C", 4, "\u22120.25", "\u22120.35 to \u22120.15")]
    assert found.pairs.rows == shown
    assert found.lowest == []


def test_the_lowest_images_come_first_with_their_place_in_the_gallery():
    samples = by_sample((4, "z", 0.5), (3, "y", NAN), (7, "x", -0.5), *((i, str(i), 0.9) for i in range(10, 30)))
    found = matrix(by_pair(("a", "b", 5, 0.5)), samples, {"a": "A", "b": "B"}, [None, 7, 5])
    assert found.lowest[:3] == [("x", "\u22120.50", 1), ("z", "0.50", None), ("10", "0.90", None)]
    assert len(found.lowest) == 10
    assert found.among == 22
    assert found.words == "Mean of all pairs: 0.50."


def test_an_image_with_the_number_zero_is_linked_too():
    found = matrix(by_pair(("a", "b", 1, 0.5)), by_sample((0, "x", 0.5)), {"a": "A", "b": "B"}, [0])
    assert found.lowest == [("x", "0.50", 0)]


@pytest.mark.parametrize("pairs", [None, by_pair(), by_pair(("a", "b", 0, NAN))])
def test_without_a_pair_there_is_no_matrix(pairs):
    assert matrix(pairs, by_sample((0, "x", 0.5)), {"a": "A", "b": "B"}, []) is None


@pytest.mark.slow
def test_cells_hold_the_numbers_of_their_row_and_column_and_are_coloured_by_them(show):
    browser, (pairs, _) = show(full_page()), fake_agreement()
    known = {(row.method_a, row.method_b): row.mean for row in pairs.itertuples()}
    cells = each(browser, "#agreement tbody tr", "[...e.cells].slice(1).map(c => c.innerText)")
    titles = [title for title, _ in METHODS.values()]
    assert each(browser, "#agreement tbody th", "e.innerText") == titles
    assert each(browser, "#agreement thead th", "e.innerText") == titles
    for i, a in enumerate(METHODS):
        for j, b in enumerate(METHODS):
            value = known.get((a, b), known.get((b, a)))
            assert cells[i][j] == ("" if value is None else f"{value:.2f}".replace("-", "\u2212"))
    colours = each(browser, "#agreement td", "[e.innerText, getComputedStyle(e).backgroundColor]")
    shares = {text: colour for text, colour in colours if text}
    for text, colour in shares.items():
        value = float(text.replace("\u2212", "-"))
        red, green, blue, *alpha = (float(one) for one in colour[colour.index("(") + 1 : -1].split(","))
        assert (red, green, blue) == ((213, 94, 0) if value < 0 else (0, 114, 178))
        assert (alpha or [1])[0] == pytest.approx(abs(value) / 2, abs=0.01)


@pytest.mark.slow
def test_links_of_the_lowest_images_choose_their_pictures(show):
    browser, (_, samples) = show(full_page()), fake_agreement()
    lowest = samples.head(10)
    assert each(browser, "#disagreed tbody th", "e.innerText") == lowest["name"].tolist()
    inside = [int(at) for at in lowest["sample"] if at < len(fake_pictures())]
    assert len(inside) > 1
    assert each(browser, "#disagreed a", "e.hash") == [f"#picture-{at}" for at in inside]
    click(browser, "#disagreed a", 1)
    shown(browser, inside[1])
    assert js(browser, "document.querySelector('.tile h3').innerText") == f"scenes/{inside[1]}.png"
    assert js(browser, "[...document.querySelectorAll('#pictures input')].findIndex(e => e.checked)") == inside[1]
    click(browser, "#next")
    shown(browser, inside[1] + 1)
    click(browser, "#disagreed a", 1)  # whose address is there already
    shown(browser, inside[1])
    at = js(browser, f"document.getElementById('picture-{inside[1]}').getBoundingClientRect()")
    assert 0 <= at["top"] <= 900


@pytest.mark.slow
@pytest.mark.parametrize(("address", "picture"), [("#picture-3", 3), ("#picture-99", 0), ("#%", 0), ("", 0)])
def test_the_address_chooses_a_picture_if_it_is_there(show, address, picture):
    browser = show(full_page())
    browser.get("about:blank")
    browser.get(browser.report + address)
    shown(browser, picture)


@pytest.mark.slow
def test_without_agreement_and_ranks_their_sections_are_hidden(show):
    browser = show(small())
    assert each(browser, "h2", "e.offsetHeight && e.innerText")[:4] == ["Scores", 0, 0, 0]
