"""The report of a comparison: its numbers, and the page in a real browser."""

import base64
import hashlib
import io
import json
import math
import re
import shutil
import socket
from functools import cache
from itertools import combinations

import matplotlib
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import rankdata, wilcoxon
from sklearn.datasets import load_digits

from xai_compare._report import Curve, Picture, render

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
METRICS = {
    "fidelity": ("Fidelity", "higher"),
    "box": ("Box sensitivity", "higher"),
    "sad": ("Soft Average Drop", "higher"),
    "ad": ("Average Drop", "lower"),
    "insertion": ("Insertion", "higher"),
    "deletion": ("Deletion", "lower"),
    "discrimination": ("Class discrimination", "higher"),
    "compactness": ("Compactness", ""),
}
METHODS = {
    "cdam": ("CDAM", "captum_ext.CDAM"),
    "smooth": ("Smooth CDAM", "captum_ext.SmoothCDAM"),
    "integrated": ("Integrated CDAM", "captum_ext.IntegratedCDAM"),
    "attention": ("Last attention", "captum_ext.RawAttention"),
    "ig": ("Integrated Gradients", "captum.attr.IntegratedGradients"),
    "ixg": ("Input x Gradient", "captum.attr.InputXGradient"),
    "smoothgrad": ("SmoothGrad", "captum.attr.NoiseTunnel"),
    "gradcam": ("Grad-CAM", "pytorch_grad_cam.GradCAM"),
    "hirescam": ("HiResCAM", "pytorch_grad_cam.HiResCAM"),
    "random": ("Random", "xai_compare.random_map"),
}
SUMMARY = ["metric", "direction", "method", "n", "failed", "mean", "ci_low", "ci_high", "mean_rank"]
SUMMARY += ["seconds", "explain_seconds", "explain_forwards"]
TESTS = ["metric", "method_a", "method_b", "n", "median_difference", "p", "p_holm"]
CURVES = {
    "fidelity": ("MIF", "LIF", "blurred pixels in percent", 100.0),
    "box": ("correlation", "box size in pixels", 56.0),
    "insertion": ("probability", "fraction of pixels in insertion", 1.0),
    "deletion": ("probability", "fraction of pixels in deletion", 1.0),
}


@cache
def fake_scores(samples=48):
    """Plausible scores of all methods: (summary, tests)."""
    draw = np.random.default_rng(1)
    rows, pairs = [], []
    for metric, (_, direction) in METRICS.items():
        hard = draw.normal(0, 0.1, samples)
        level = {method: draw.uniform(0.2, 0.8) for method in METHODS}
        scores = {method: level[method] + hard + draw.normal(0, 0.06, samples) for method in METHODS}
        ranks = rankdata([one if direction == "lower" else -one for one in scores.values()], axis=0).mean(1)
        for (method, one), rank in zip(scores.items(), ranks, strict=True):
            mean, half = one.mean(), 1.96 * one.std() / samples**0.5
            cost = 0.0041 + 0.9 * (method in ("ig", "smoothgrad")) + 0.001 * level[method]
            interval = mean - half, mean + half
            rows.append((metric, direction, method, samples, 0, mean, *interval, rank, 0.31, cost, cost / 0.004))
        found = [(a, b, scores[a] - scores[b]) for a, b in combinations(METHODS, 2)]
        p = np.array([wilcoxon(difference).pvalue for *_, difference in found])
        order, holm = p.argsort(), np.empty(len(p))
        holm[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
        pairs += [(metric, *found[k][:2], samples, np.median(found[k][2]), p[k], holm[k]) for k in range(len(p))]
    summary = pd.DataFrame(rows, columns=SUMMARY)
    failed = (summary.metric == "discrimination") & (summary.method == "attention")
    summary.loc[failed, ["n", "failed", "mean", "ci_low", "ci_high", "mean_rank"]] = [0, 48, *[math.nan] * 4]
    return summary, pd.DataFrame(pairs, columns=TESTS)


def fake_curves():
    draw, curves = np.random.default_rng(2), []
    for metric, (*names, axis, end) in CURVES.items():
        for name in names:
            for method in METHODS:
                t = np.linspace(0, 1, 21)
                mean = 1 / (1 + np.exp(8 * (t - draw.uniform(0.2, 0.6)))) + 0.02 * draw.normal(size=21)
                mean = mean if metric != "insertion" else mean[::-1]
                curves.append(Curve(metric, method, name, axis, end * t, mean, mean - 0.05, mean + 0.05))
    return curves


def fake_pictures(count=8, side=56):
    """Scenes of two digits, and maps that find one of them, each method less well than the last."""
    digits, draw, pictures = load_digits(), np.random.default_rng(3), []
    for at in range(count):
        first, second = draw.choice(1000, 2, replace=False)
        scene = np.zeros((224, 224))
        places = {}
        for index, (top, left) in ((first, (16, 16)), (second, (112, 112))):
            scene[top : top + 96, left : left + 96] = np.kron(digits.images[index] / 16, np.ones((12, 12)))
            places[int(digits.target[index])] = (top + 48) / 224 * side
        image = np.clip(255 * (0.85 * scene + 0.1) + draw.normal(0, 6, scene.shape), 0, 255).astype(np.uint8)
        rows, columns = np.mgrid[:side, :side]
        maps = {}
        for label, centre in places.items():
            other = side - centre
            good = np.exp(-((rows - centre) ** 2 + (columns - centre) ** 2) / 90)
            bad = np.exp(-((rows - other) ** 2 + (columns - other) ** 2) / 90)
            maps[label] = {
                method: (0.7**k) * (good - 0.1 * k * bad + 0.02 * k * draw.normal(size=good.shape))
                for k, method in enumerate(METHODS)
                if not (k == 3 and at == 0)
            }
        classes = {label: f"digit {label}" for label in places}
        target = next(iter(places))
        pictures.append(Picture(f"scenes/{at}.png", np.stack([image] * 3, -1), target, classes, maps))
    return pictures


def fake_run():
    return {
        "command": "xai-compare --model digit_vit --data scenes --methods cdam,ig --seed 0 --out RUN",
        "settings": {"boxes": 25, "steps": 20, "batch_size": 16, "softmax": False, "classes": [1, 2, 3]},
        "versions": {
            "python": "3.12.1",
            "torch": "2.8.0",
            "captum": "0.8.0",
            "quantus": "0.6.0",
            "xai-discern": "0.1.0",
        },
        "seed": 0,
        "samples": 50,
        "finished": 48,
        "failed": 48,
        "errors": [
            {
                "method": "attention",
                "metric": "discrimination",
                "count": 48,
                "error": "ValueError: one map for all classes",
            }
        ],
        "skipped": [
            {"sample": f"scenes/{i}.png", "error": "UnidentifiedImageError: cannot identify"} for i in (49, 50)
        ],
        "started": "2026-03-01T12:00:00+00:00",
        "seconds": 754.2,
        "device": "cpu (2 threads)",
        "model": "digit_vit",
        "weights": "sha256:4f1c0e7bb2a94f0a8f3b0c0a3c1d5e6f",
        "data": "scenes of two digits",
        "metrics": {key: {"title": title, "direction": direction} for key, (title, direction) in METRICS.items()},
        "methods": {key: {"title": title, "source": source} for key, (title, source) in METHODS.items()},
    }


def one_picture(maps, classes=None, side=8):
    """A black image with maps by class and method."""
    classes = classes or {index: f"class {index}" for index in maps}
    return Picture("black.png", np.zeros((side, side, 3), np.uint8), next(iter(classes)), classes, maps)


def summary_of(*rows):
    """The first columns of a summary; the others are optional."""
    return pd.DataFrame(rows, columns=SUMMARY[:8])


def small(pictures=(), curves=(), **run):
    """The page of one method and one metric."""
    return render(run, summary_of(("sad", "higher", "cdam", 3, 0, 0.5, 0.4, 0.6)), pd.DataFrame(), curves, pictures)


def embedded(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


# What is embedded


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


def test_sixteen_pictures_of_ten_methods_make_a_page_below_three_megabytes():
    assert len(render(fake_run(), *fake_scores(8), [], fake_pictures(16)).encode()) < 3e6


def test_the_same_arguments_make_the_same_page_and_matplotlib_is_left_as_found():
    before = dict(matplotlib.rcParams)
    curves = fake_curves()[:4]
    assert small(curves=curves) == small(curves=curves)
    assert dict(matplotlib.rcParams) == before


def test_text_is_escaped_everywhere():
    bad = "</script><script>alert(1)</script><!--\"'&\u2028é{{ 7 * 7 }}{% raw %}"
    summary = summary_of((bad, "higher", bad, 3, 1, 0.5, 0.4, 0.6))
    tests = pd.DataFrame([(bad, bad, "b", 3, 0.1, 0.5, 0.5)], columns=TESTS)
    curve = Curve(bad, bad, bad, bad + " $x$ $", [0, 1], [0, 1], [0, 1], [0, 1])
    picture = Picture(bad, np.zeros((4, 4, 3), np.uint8), 0, {0: bad}, {0: {bad: np.ones((2, 2))}})
    run = dict.fromkeys(("command", "seed", "started", "device", "model", "weights", "data"), bad)
    run |= {"settings": {bad: [bad]}, "versions": {bad: bad}, "skipped": [{"sample": bad, "error": bad}]}
    run |= {"errors": [{"method": bad, "metric": bad, "count": 1, "error": bad}], "methods": {bad: {"title": bad}}}
    page = render(run, summary, tests, [curve], [picture])
    assert "alert(1)</script>" not in page
    assert page.count("<script") == page.count("</script>") == 2
    assert embedded(page)["methods"] == [[bad, bad]]
    assert page.count("{{ 7 * 7 }}{% raw %}") > 20  # no name is read as a part of the template


def test_the_policy_allows_the_pages_script_and_no_other():
    page = small()
    script = re.search(r"<script>(.*)</script>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert re.search(r"script-src ([^;]*);", page)[1] == f"'sha256-{digest}'"


# The page in a browser


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """As in conftest.py, but for the browser's driver on this machine."""
    connect = socket.socket.connect

    def local_only(self, address):
        if address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise RuntimeError("tests reach no network")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    for program in (CHROMIUM, DRIVER):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    names = "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    for name in [*names.split(), "disable-component-update", "disable-sync", "force-device-scale-factor=1"]:
        options.add_argument(f"--{name}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def show(browser, tmp_path):
    """Opens a page; what it wrote to the console by the end of the test is an error."""

    def opened(page, width=1280, height=900):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        path = tmp_path / "report.html"
        path.write_text(page, "utf-8")
        browser.get(path.as_uri())
        return browser

    yield opened
    assert browser.get_log("browser") == []


@pytest.fixture(scope="module")
def full():
    return render(fake_run(), *fake_scores(), fake_curves(), fake_pictures())


@pytest.fixture(scope="module")
def table():
    """The page without curves and pictures."""
    return render(fake_run(), *fake_scores(), [], [])


def js(browser, code, *arguments):
    return browser.execute_script(f"return {code}", *arguments)


def each(browser, selector, what, *arguments):
    """An expression of each element `e`."""
    return js(browser, f"[...document.querySelectorAll({json.dumps(selector)})].map(e => {what})", *arguments)


def click(browser, selector, at=0):
    js(browser, f"[...document.querySelectorAll({json.dumps(selector)})].at({at}).click()")


def heading(browser, title):
    """The place of a column, and the button that sorts by it."""
    titles = each(browser, "#scores thead button span", "e.textContent")
    at = titles.index(title)
    return at, js(browser, f"document.querySelectorAll('#scores thead button')[{at}]")


def column(browser, title):
    """What is shown in a column, from top to bottom, by method."""
    at, _ = heading(browser, title)
    texts = each(browser, "#scores tbody tr", f"[e.dataset.method, e.cells[{at}].innerText]")
    return {method: text.replace("\u2212", "-").split("\n") for method, text in texts}


def numbers(browser, title):
    return [float(lines[0].rstrip("\u2605\u2248")) for lines in column(browser, title).values()]


def press(browser, *keys):
    from selenium.webdriver import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


def wait_for(browser, code):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 5, 0.02).until(lambda _: js(browser, code))


def shown(browser, picture=0, index=0, scale="relative"):
    """Wait until the gallery shows this."""
    wait_for(browser, f"document.getElementById('maps').dataset.shown === '{picture} {index} {scale}'")


def pixel(browser, method, x, y):
    """The colour of a method's canvas at fractions of its width and height."""
    code = """(() => {
        const c = document.querySelector(`.tile[data-method="${arguments[0]}"] canvas`);
        return [...c.getContext("2d").getImageData(arguments[1] * c.width, arguments[2] * c.height, 1, 1).data];
    })()"""
    return js(browser, code, method, x, y)[:3]


def values(browser):
    """What is written under the maps: by method the value and the share."""
    texts = dict(each(browser, ".tile[data-method]", "[e.dataset.method, e.querySelector('p').innerText]"))
    found = {method: re.fullmatch(r"(\S+) \((\S+)\)", text.replace("\u2212", "-")) for method, text in texts.items()}
    return {method: (float(one[1]), float(one[2])) for method, one in found.items()}


def point_at(browser, method, x, y):
    """Move the mouse to fractions of a method's canvas."""
    canvas = js(browser, "document.querySelector(`.tile[data-method='${arguments[0]}'] canvas`)", method)
    js(browser, "arguments[0].scrollIntoView({block: 'center'})", canvas)
    left, top, width, height = js(
        browser, "(({x, y, width, height}) => [x, y, width, height])(arguments[0].getBoundingClientRect())", canvas
    )
    event = {"type": "mouseMoved", "x": left + x * width, "y": top + y * height}
    browser.execute_cdp_cmd("Input.dispatchMouseEvent", event)


@pytest.mark.parametrize(
    ("metric", "first"), [("fidelity", "descending"), ("ad", "ascending"), ("discrimination", "descending")]
)
def test_a_click_sorts_best_first_another_reverses_and_what_failed_stays_last(show, table, metric, first):
    browser, title = show(table), METRICS[metric][0]
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


def test_the_keyboard_sorts_too_and_methods_sort_by_name(show, table):
    browser = show(table)
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
def test_best_marks_and_intervals_are_those_of_the_numbers(show, table, metric):
    title, direction = METRICS[metric]
    browser, (summary, tests) = show(table), fake_scores()
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


def test_ranks_are_averaged_and_incomplete_ones_are_not_best(show, table):
    shown = column(show(table), "Mean rank")
    for method, mean in fake_scores()[0].groupby("method")["mean_rank"].mean().items():
        assert shown[method][0].rstrip("\u2605") == f"{mean:.2f}"
    ranks = [("x", "a", 1.5), ("x", "b", 2.5), ("x", "once", 1.0), ("y", "a", 1.5), ("y", "b", 1.5)]
    rows = pd.DataFrame(ranks, columns=["metric", "method", "mean_rank"])
    shown = column(show(render({}, rows, pd.DataFrame(), [], [])), "Mean rank")
    assert shown == {"a": ["1.50\u2605"], "b": ["2.00"], "once": ["1.00", "1 of 2 metrics"]}


def test_links_to_the_tests_open_them(show, full):
    browser = show(full)
    assert not js(browser, "document.getElementById('tests').open")
    click(browser, "a[href='#pairs']")
    wait_for(browser, "document.getElementById('tests').open")
    assert len(each(browser, "#tests tbody tr", "0")) == len(fake_scores()[1])


def test_plots_have_labels_and_ids_of_their_own_and_legends_hide_methods(show, full):
    browser = show(full)
    assert each(browser, "figcaption", "e.innerText") == [
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


def test_pictures_are_chosen_by_thumbnail_button_and_key(show, full):
    browser = show(full)
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


@pytest.mark.parametrize("long", ["", "a_very_long_name_without_any_space_" * 4])
def test_nothing_is_wider_than_a_phone(show, full, long):
    page = full.replace("Smooth CDAM", f"Smooth CDAM{long}").replace("scenes/0.png", f"scenes/{long}0.png")
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


def test_nothing_is_loaded_and_the_policy_forbids_it(browser, show, full):
    assert "http:" not in full
    assert "https:" not in full
    show(full)
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


def test_what_went_wrong_is_said_first(show, full):
    browser = show(full)
    notice = "document.querySelector('header .notice').innerText"
    assert js(browser, notice) == "2 images skipped. 48 scores failed and are left out of the means."
    assert "one map for all classes" in js(browser, "document.getElementById('failed').innerText")
    assert "scenes/50.png" in js(browser, "document.getElementById('skipped').innerText")
    show(small(samples=9, finished=5))
    assert js(browser, notice) == "4 images of 9 not scored: the run was not finished."
