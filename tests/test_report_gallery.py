"""The report's maps in a browser: colours, scales, pictures, values under the pointer."""

import numpy as np
import pytest
from browsing import click, each, js, pixel, point_at, press, shown, values, wait_for
from reports import fake_pictures, full_page, one_picture, small

pytestmark = pytest.mark.slow

SPOTS = np.zeros((4, 4))
SPOTS[0, 0], SPOTS[0, 3], SPOTS[3, 0] = 1.0, -1.0, 0.5


def test_maps_are_red_and_blue_on_one_scale_for_all_methods_and_classes(show):
    louder = {"loud": 100 * SPOTS, "weak": 0.5 * SPOTS}
    browser = show(small([one_picture({0: {"cdam": SPOTS, **louder}, 1: {"cdam": -0.5 * SPOTS, "weak": SPOTS}})]))
    shown(browser)
    clear = pixel(browser, "cdam", 0.6, 0.6)
    assert clear[0] == clear[1] == clear[2] > 150  # black, made pale
    assert pixel(browser, "cdam", 0.1, 0.1) == pixel(browser, "loud", 0.1, 0.1) == [230, 26, 26]
    assert pixel(browser, "cdam", 0.9, 0.1) == pixel(browser, "loud", 0.9, 0.1) == [26, 77, 242]
    half = [(one + ink) / 2 for one, ink in zip(clear, (230, 26, 26), strict=True)]
    assert pixel(browser, "cdam", 0.1, 0.9) == pytest.approx(half, abs=2)
    assert pixel(browser, "weak", 0.1, 0.1) == pytest.approx(half, abs=2)  # class 1 has its largest value
    click(browser, "#classes input", 1)
    shown(browser, 0, 1)
    half = [(one + ink) / 2 for one, ink in zip(clear, (26, 77, 242), strict=True)]
    assert pixel(browser, "cdam", 0.1, 0.1) == pytest.approx(half, abs=2)  # class 0 has its largest value
    assert pixel(browser, "weak", 0.1, 0.1) == [230, 26, 26]
    assert each(browser, ".tile", "e.innerText.trim()")[2] == "loud\nno map"


def test_raw_values_are_on_one_scale(show):
    browser = show(small([one_picture({0: {"cdam": 2 * SPOTS, "loud": 4 * SPOTS}})]))
    shown(browser)
    ends = "['low', 'high'].map(id => document.getElementById(id).innerText.replace('\\u2212', '-'))"
    assert js(browser, ends) == ["-1", "1"]
    js(browser, "document.getElementById('scale').focus()")
    press(browser, "\ue015")  # arrow down
    shown(browser, scale="raw")
    assert pixel(browser, "loud", 0.1, 0.1) == [230, 26, 26]
    assert pixel(browser, "cdam", 0.1, 0.1) == pytest.approx(pixel(browser, "loud", 0.1, 0.9), abs=2)
    assert list(map(float, js(browser, ends))) == [-4, 4]


def test_pictures_are_chosen_by_thumbnail_button_and_key(show):
    browser = show(full_page())
    pictures = fake_pictures()
    title = "document.querySelector('.tile h3').innerText"
    shown(browser)
    before = js(browser, "document.querySelector('.tile[data-method=cdam] canvas').toDataURL()")
    assert each(browser, ".frame.none", "e.parentElement.innerText.trim()") == ["Last attention\nno map"]
    click(browser, "#pictures input", 3)
    shown(browser, 3)
    assert js(browser, title) == "scenes/3.png"
    assert js(browser, "document.querySelector('.tile[data-method=cdam] canvas').toDataURL()") != before
    labels = js(browser, "document.getElementById('classes').innerText").split("\n")
    assert labels[0] == f"digit {pictures[3].target} (target)"
    assert len(labels) == 2
    click(browser, "#next")
    shown(browser, 4)
    for _ in range(5):
        click(browser, "#previous")
    shown(browser, 7)
    js(browser, "document.querySelector('#pictures input:checked').focus()")
    press(browser, "\ue012")  # arrow left
    shown(browser, 6)
    assert js(browser, title) == "scenes/6.png"


def test_pointing_at_one_map_shows_the_values_of_all_there(show):
    draw = np.random.default_rng(0)
    maps = {
        "cdam": draw.normal(size=(14, 14)),
        "fine": 1e-4 * draw.normal(size=(56, 56)),
        "tall": draw.normal(size=(7, 3)),
    }
    browser = show(small([one_picture({0: maps})]))
    shown(browser)
    for x, y in ((0.4, 0.7), (0.98, 0.02)):
        point_at(browser, "fine", x, y)
        found = values(browser)
        for method, heat in maps.items():
            here = heat[int(y * heat.shape[0]), int(x * heat.shape[1])]
            assert found[method][0] == pytest.approx(here, abs=0.01 * np.abs(heat).max())
            assert found[method][1] == pytest.approx(here / np.abs(heat).max(), abs=0.01)
    places = each(browser, ".frame .down", "e.offsetLeft / e.parentElement.offsetWidth")
    assert places == pytest.approx([0.98] * 4, abs=0.02)


def test_arrow_keys_move_the_cursor_and_say_what_is_there(show):
    heat = np.arange(16.0).reshape(4, 4)
    browser = show(small([one_picture({0: {"cdam": heat, "coarse": heat[::2, ::2]}})]))
    shown(browser)
    js(browser, "document.getElementById('maps').focus()")
    press(browser, "\ue015")  # down: the cursor appears in the middle
    assert values(browser)["cdam"][0] == pytest.approx(heat[2, 2], abs=0.1)
    press(browser, "\ue012", "\ue013")  # left, up
    assert values(browser)["cdam"][0] == pytest.approx(heat[1, 1], abs=0.1)
    press(browser, "\ue013", "\ue013", "\ue013", "\ue014", "\ue014")  # up against the edge; right, right
    assert values(browser)["cdam"][0] == pytest.approx(heat[0, 3], abs=0.1)
    assert values(browser)["coarse"][0] == pytest.approx(heat[0, 2], abs=0.1)
    said = wait_for(browser, "document.getElementById('live').textContent")
    assert said.startswith("Column 8 of 8, row 2 of 8: cdam 3.0")
