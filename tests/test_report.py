"""The report of a comparison: what the page holds."""

import base64
import hashlib
import io
import re

import matplotlib
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from reports import (
    PAIRS,
    TESTS,
    embedded,
    fake_curves,
    fake_pictures,
    fake_run,
    fake_scores,
    one_picture,
    small,
    summary_of,
)

from xai_compare._critical_difference import Ranking
from xai_compare._report import Curve, Picture, render


@pytest.mark.parametrize("size", [1e-12, 1.0, 3e7])
def test_embedded_maps_are_within_half_a_percent_of_their_largest_value(size):
    heat = size * np.random.default_rng(0).normal(size=(7, 9))
    height, width, scale, code = embedded(small([one_picture({4: {"cdam": heat}})]))["pictures"][0]["maps"]["4"]["cdam"]
    values = scale * np.frombuffer(base64.b64decode(code), np.int8).reshape(height, width)
    assert np.abs(values - heat).max() < 0.005 * np.abs(heat).max()
    assert np.abs(values).max() == pytest.approx(np.abs(heat).max())


def test_values_that_are_not_finite_have_a_code_of_their_own_and_a_blank_map_is_zero():
    heat = np.array([[np.nan, 1.0], [np.inf, -1.0]])
    maps = embedded(small([one_picture({0: {"cdam": heat, "blank": np.zeros((2, 2))}})]))["pictures"][0]["maps"]["0"]
    assert list(np.frombuffer(base64.b64decode(maps["cdam"][3]), np.int8)) == [-128, 127, -128, -127]
    assert list(np.frombuffer(base64.b64decode(maps["blank"][3]), np.int8)) == [0, 0, 0, 0]


def test_embedded_images_are_the_images_no_larger_than_shown():
    scene = fake_pictures(1)[0].image
    large = np.zeros((600, 1200, 3), np.uint8)
    pictures = [Picture("a", scene, 0, {0: "x"}, {}), Picture("b", large, 0, {0: "x"}, {})]
    first, second = embedded(small(pictures))["pictures"]
    decoded = [Image.open(io.BytesIO(base64.b64decode(one["image"].split(",")[1]))) for one in (first, second)]
    assert np.abs(np.asarray(decoded[0]).astype(int) - scene).mean() < 3
    assert decoded[1].size == (448, 224)
    assert second["size"] == [1200, 600]


@pytest.mark.slow
def test_sixteen_pictures_of_ten_methods_make_a_page_below_three_megabytes():
    assert len(render(fake_run(), *fake_scores(8), [], fake_pictures(16)).encode()) < 3e6


@pytest.mark.slow
def test_the_same_arguments_make_the_same_page_and_matplotlib_is_left_as_found():
    before = dict(matplotlib.rcParams)
    curves = fake_curves()[:4]
    assert small(curves=curves) == small(curves=curves)
    assert dict(matplotlib.rcParams) == before


def test_text_is_escaped_everywhere():
    bad = "</script><script>alert(1)</script><!--\"'&\u2028é{{ 7 * 7 }}{% raw %}"
    summary = summary_of((bad, "higher", bad, 3, 1, 0.5, 0.4, 0.6))
    tests = pd.DataFrame([(bad, bad, "b", 3, 0.1, 0.2, 0.1, 0.3, 0.5, 0.5)], columns=TESTS)
    curve = Curve(bad, bad, bad, bad + " $x$ $", [0, 1], [0, 1], [0, 1], [0, 1])
    picture = Picture(bad, np.zeros((4, 4, 3), np.uint8), 0, {0: bad}, {0: {bad: np.ones((2, 2))}})
    run = dict.fromkeys(("command", "seed", "started", "device", "model", "weights", "data"), bad)
    run |= {"settings": {bad: [bad]}, "versions": {bad: bad}, "skipped": [{"sample": bad, "error": bad}]}
    run |= {"errors": [{"method": bad, "metric": bad, "count": 1, "error": bad}], "methods": {bad: {"title": bad}}}
    pairs = pd.DataFrame([(bad, "b", 3, 0.5, 0.4, 0.6)], columns=PAIRS)
    samples = pd.DataFrame({"sample": [0], "name": [bad], "agreement": [0.5]})
    ranking = Ranking(bad, 3, [(bad, 1.0), ("b", 2.0)], [[bad, "b"]], 0.5)
    further = {"rankings": [ranking], "by_pair": pairs, "by_sample": samples}
    page = render(run, summary, tests, [curve], [picture], **further)
    assert "alert(1)</script>" not in page
    assert page.count("<script") == page.count("</script>") == 2
    assert embedded(page)["methods"] == [[bad, bad]]
    assert page.count("{{ 7 * 7 }}{% raw %}") > 20  # no name is read as a part of the template


def test_the_policy_allows_the_pages_script_and_no_other():
    page = small()
    script = re.search(r"<script>(.*)</script>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert re.search(r"script-src ([^;]*);", page)[1] == f"'sha256-{digest}'"
