"""The page that has several models side by side."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from reports import embedded
from torch import nn

from xai_compare import compare
from xai_compare._report import Picture
from xai_compare._report_models import overview

METHODS = {"ig": {"title": "Integrated Gradients"}, "cam": {"title": "CAM"}}
METRICS = {"up": {"title": "Up", "direction": "higher"}, "down": {"title": "Down", "direction": "lower"}}
RUN = {
    "models": {"a": {"title": "Model A"}, "b": {"title": "Model <B>"}},
    "methods": METHODS,
    "metrics": METRICS | {"size": {"title": "Size", "direction": ""}},
    "unfit": [{"method": "cam", "model": "Model <B>", "error": "no convolution"}],
    "samples": 9,
    "finished": 9,
}


def summary(means):
    rows = [(metric, method, mean) for metric, by_method in means.items() for method, mean in by_method.items()]
    found = pd.DataFrame(rows, columns=["metric", "method", "mean"])
    return found.assign(n=9, failed=0, ci_low=found["mean"] - 0.1, ci_high=found["mean"] + 0.1)


SUMMARIES = {
    "a": summary({"up": {"ig": 0.9, "cam": 0.3}, "down": {"ig": 0.5, "cam": 0.2}, "size": {"ig": 1.0, "cam": 1.0}}),
    "b": summary({"up": {"ig": 0.4, "cam": 0.6}, "down": {"ig": 0.1, "cam": 0.25}, "size": {"ig": 2.0, "cam": 3.0}}),
}


def made_tests(rows):
    columns = ["metric", "method", "model_a", "model_b", "n", "median_difference", "effect", "effect_low"]
    columns += ["effect_high", "p", "p_holm"]
    return pd.DataFrame(
        [(metric, method, "a", "b", 9, sign * 0.4, sign, sign, sign, p, p) for metric, method, sign, p in rows],
        columns=columns,
    )


TESTS = made_tests(
    [
        ("up", "ig", 1, 0.01),  # a has more, which is better
        ("up", "cam", -1, 0.3),
        ("down", "ig", 1, 0.02),  # a has more, which is worse
        ("down", "cam", -1, 0.04),  # a has less, which is better
        ("size", "ig", -1, 0.001),  # no direction is better
        ("size", "cam", -1, 0.001),
    ]
)


def page_of(pictures=None, same=(9, 9)):
    return overview(RUN, SUMMARIES, TESTS, pictures or {"a": [], "b": []}, same)


def cells_of(page, metric):
    """Of a metric's table, by method the value and mark of each model."""
    (table,) = re.findall(rf"<table class=\"scores\"><caption><b>{metric}</b>.*?</table>", page, re.DOTALL)
    found = {}
    for head, row in re.findall(r"<tr><th scope=\"row\">(.*?)</th>(.*?)</tr>", table, re.DOTALL):
        found[head] = re.findall(r"<td class=\"(\w*)\".*?<span class=\"value\">(.*?)</span>", row, re.DOTALL)
    return found


def test_it_counts_in_which_comparisons_a_model_is_significantly_better():
    assert (
        "Of 4 comparisons by a method and a metric, Model A is significantly better in 2, Model &lt;B&gt; is "
        "significantly better in 1, and neither in 1." in page_of()
    )


def test_tables_hold_the_means_of_all_models_and_mark_the_best_for_each_method():
    page = page_of()
    assert cells_of(page, "Up") == {
        "Integrated Gradients": [("best", "0.900"), ("", "0.400")],
        "CAM": [("close", "0.300"), ("best", "0.600")],
    }
    assert cells_of(page, "Down") == {
        "Integrated Gradients": [("", "0.500"), ("best", "0.100")],
        "CAM": [("best", "0.200"), ("", "0.250")],
    }
    assert {mark for row in cells_of(page, "Size").values() for mark, _ in row} == {""}


def test_it_says_what_does_not_fit_what_is_explained_and_links_to_each_model():
    page = page_of(same=(6, 9))
    assert "All models explain the same class on 6 of 9 images; on the others each explains its own." in page
    assert '<a href="#unfit">1 method left out</a>: it does not fit a model.' in page
    assert "no convolution" in page
    assert '<a href="report-a.html">Model A</a>, <a href="report-b.html">Model &lt;B&gt;</a>' in page
    assert "All models explain the same class on every image." in page_of()
    (table,) = re.findall(r"id=\"model-pairs\">.*?</table>", page, re.DOTALL)
    first = re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", table.split("<tbody>")[1])[:5]
    assert first == ["Up", "Integrated Gradients", "Model A", "Model &lt;B&gt;", "9"]


def picture(model, image, target, value, index=3):
    heat = np.full((2, 2), value)
    return Picture("seen.png", image, target, {target: f"class {target}"}, {target: {"ig": heat}}, index)


IMAGE = np.random.default_rng(0).integers(0, 255, (8, 8, 3)).astype(np.uint8)


def test_maps_of_models_that_saw_the_same_lie_beside_each_other():
    pictures = {"a": [picture("a", IMAGE, 1, 0.5)], "b": [picture("b", IMAGE ^ 1, 2, -0.25)]}
    (found,) = embedded(page_of(pictures))["pictures"]
    assert found["classes"] == [[1, "class 1 (Model A)"], [2, "class 2 (Model <B>)"]]
    assert {cls: list(maps) for cls, maps in found["maps"].items()} == {"1": ["ig@a"], "2": ["ig@b"]}
    titles = dict(embedded(page_of(pictures))["methods"])
    assert titles == {"ig@a": "Integrated Gradients, Model A", "ig@b": "Integrated Gradients, Model <B>"}
    pictures["b"] = [picture("b", IMAGE, 1, -0.25)]
    (found,) = embedded(page_of(pictures))["pictures"]
    assert found["classes"] == [[1, "class 1 (all models)"]]
    assert list(found["maps"]["1"]) == ["ig@a", "ig@b"]


@pytest.mark.parametrize("other", [IMAGE[::-1].copy(), np.zeros((4, 4, 3), np.uint8)])
def test_maps_of_models_that_saw_other_parts_of_a_sample_lie_each_on_what_its_model_saw(other):
    later = picture("a", IMAGE[:, ::-1].copy(), 1, 0.5, index=9)
    pictures = {"a": [picture("a", IMAGE, 1, 0.5), later], "b": [picture("b", other, 1, -0.25)]}
    *found, last = embedded(page_of(pictures))["pictures"]
    assert [one["sample"] for one in found] == ["seen.png", "seen.png (Model <B>)"]
    assert last["sample"] == "seen.png"  # of another index
    assert [list(one["maps"]["1"]) for one in found] == [["ig@a"], ["ig@b"]]
    assert [one["size"] for one in found] == [list(one.shape[1::-1]) for one in (IMAGE, other)]


@pytest.mark.slow
def test_maps_that_only_another_model_has_leave_no_gap(show):
    pictures = {"a": [picture("a", IMAGE, 1, 0.5)], "b": [picture("b", IMAGE[::-1].copy(), 1, -0.25)]}
    browser = show(page_of(pictures))
    for at, model in enumerate(("Model A", "Model <B>")):
        browser.execute_script(f"document.querySelectorAll('#pictures input')[{at}].click()")
        browser.execute_async_script("setTimeout(arguments[0], 400)")
        shown = [one.text for one in browser.find_elements("css selector", "#maps h3")][1:]
        assert shown == [f"Integrated Gradients, {model}"]


@pytest.mark.slow
def test_the_page_of_a_run_of_signals_works_in_a_browser(tmp_path, show):
    torch.manual_seed(0)
    nets = {
        name: nn.Sequential(nn.Conv1d(2, 4, 5), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, classes))
        for name, classes in (("small", 2), ("large", 3))
    }
    few = {"methods": ["ixg", "gradcam"], "metrics": ["compactness"], "gallery": 2, "resamples": 100}
    run = compare(nets, torch.randn(5, 2, 40), out=tmp_path / "run", **few)
    browser = show(run.report().read_text("utf-8"), width=390)
    assert "large" in browser.find_element("id", "models-title").find_element("xpath", "..").text
    browser.execute_async_script("setTimeout(arguments[0], 500)")
    shown = [one.text for one in browser.find_elements("css selector", "#maps h3")]
    assert shown[1:] == [f"{m}, {n}" for m in ("Input x Gradient", "GradCAM") for n in ("small", "large")]
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
