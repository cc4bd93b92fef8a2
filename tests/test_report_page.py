"""The report as a whole in a browser: narrow, hostile, blank and large pages, and nothing loaded."""

import numpy as np
import pandas as pd
import pytest
from browsing import click, column, each, heading, js, shown, wait_for
from reports import full_page, small, summary_of

from xai_compare._report import Curve, Picture, render

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("long", ["", "a_very_long_name_without_any_space_" * 4])
def test_nothing_is_wider_than_a_phone(show, long):
    page = full_page().replace("Smooth CDAM", f"Smooth CDAM{long}").replace("scenes/0.png", f"scenes/{long}0.png")
    browser = show(page.replace("digit_vit", f"digit_vit{long}"), 390, 844)
    shown(browser)
    assert js(browser, "document.documentElement.scrollWidth") == 390
    table = "document.querySelector('.scroll')"
    assert js(
        browser, f"{table}.scrollWidth > {table}.clientWidth"
    )  # scrolls by itself, under the names of the methods
    js(browser, f"{table}.scrollTo(300, 0)")
    assert js(browser, "Math.abs(document.querySelector('#scores tbody th').getBoundingClientRect().left)") < 20
    assert js(browser, "document.querySelector('#maps').offsetWidth") <= 390


def test_nothing_is_loaded_and_the_policy_forbids_it(browser, show):
    page = full_page()
    assert "http:" not in page
    assert "https:" not in page
    show(page)
    shown(browser)
    loaded = js(
        browser, "performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('data:'))"
    )
    assert loaded == []
    refused = js(browser, "fetch('http://127.0.0.1:9/').then(() => false, () => true)")
    js(
        browser,
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.broken = 1'}))",
    )
    assert refused
    assert js(browser, "window.broken === undefined")
    said = [entry["message"] for entry in browser.get_log("browser")]
    assert len(said) >= 2
    assert all("Content Security Policy" in one for one in said)


def test_hostile_names_are_shown_as_they_are(show):
    bad = "<img src=x onerror=alert(1)></script>&quot;\"'é $y$"
    summary = summary_of(("sad", "lower", bad, 3, 0, 0.5, 0.4, 0.6))
    picture = Picture(bad, np.zeros((4, 4, 3), np.uint8), 0, {0: bad}, {0: {bad: np.ones((2, 2))}})
    curve = Curve("sad", bad, bad, bad, [0, 1], [0, 1], [0, 1], [0, 1])
    run = {"model": bad, "command": bad, "errors": [{"method": bad, "metric": "sad", "count": 1, "error": bad}]}
    browser = show(render(run, summary, pd.DataFrame(), [curve], [picture]))
    shown(browser)
    assert js(browser, "document.querySelector('#scores tbody th').innerText") == bad
    assert js(browser, "document.title").endswith(bad)
    assert js(browser, "document.getElementById('command').innerText") == bad
    assert each(browser, ".tile h3", "e.textContent") == [bad, bad]
    assert js(browser, "document.querySelector('#classes').textContent") == f"{bad} (target)"
    assert bad in each(browser, "svg.plot text", "e.textContent")
    assert each(browser, "img[src=x]", "0") == []
    click(browser, "#copy")
    wait_for(browser, "document.getElementById('copy').textContent !== 'Copy'")


def test_one_method_and_one_metric_are_enough(show):
    browser = show(small())
    assert column(browser, "sad") == {"cdam": ["0.500", "0.400 to 0.600"]}
    assert each(browser, ".best, .close, header .notice", "0") == []
    visible = [title for title in each(browser, "h2", "e.offsetHeight && e.innerText") if title]
    assert visible == ["Scores", "How this was made"]
    heading(browser, "sad")[1].click()


def test_nothing_at_all_makes_a_page(show):
    blank = Picture("no map", np.zeros((2, 3, 3), np.uint8), 0, {}, {})
    browser = show(render({}, pd.DataFrame(), pd.DataFrame(), [], [blank]))
    assert each(browser, "#scores tbody tr", "0") == []


def test_twelve_methods_and_metrics(show):
    names = [f"number {index}" for index in range(12)]
    rows = [(a, "higher", b, 9, 0, 10.0**i * j, 0, 1) for i, a in enumerate(names) for j, b in enumerate(names)]
    t = np.linspace(0, 1, 5)
    curves = [Curve(names[0], method, "p", "t", t, i * t, i * t - 1, i * t + 1) for i, method in enumerate(names)]
    browser = show(render({}, summary_of(*rows), pd.DataFrame(), curves, []), 390, 844)
    assert js(browser, "document.documentElement.scrollWidth") == 390
    assert len(each(browser, "#scores td.best", "0")) == 12
    assert len(set(each(browser, ".legend svg", "e.innerHTML + e.style.color"))) == 12


def test_what_went_wrong_is_said_first(show):
    browser = show(full_page())
    notice = "document.querySelector('header .notice').innerText"
    assert js(browser, notice) == "2 images skipped. 48 scores failed and are left out of the means."
    assert "one map for all classes" in js(browser, "document.getElementById('failed').innerText")
    assert "scenes/50.png" in js(browser, "document.getElementById('skipped').innerText")
    show(small(samples=9, finished=5))
    assert js(browser, notice) == "4 images of 9 not scored: the run was not finished."
