"""The page of `xai-discern app` in a browser: what a user sees, does and downloads, and that nothing is kept."""

import io
import json
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from apps import files_below, png, saved_clip, scene_png, served
from browsing import each, js, move_to, press
from PIL import Image

from captum_ext import CDAM, ConceptTarget, TextTarget
from xai_compare import digit_vit
from xai_discern import _app_page
from xai_discern._app_samples import samples
from xai_discern.app import build

pytestmark = pytest.mark.slow


@pytest.fixture
def page():
    return build(["digits", "timm:vit_tiny_patch16_224"])


@pytest.fixture
def opened(browser, page, tmp_path):
    """The page, opened; what it wrote to the console or asked of other hosts is an error."""
    with served(page) as url:
        browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
        sized(browser, 1280)
        browser.get(url)
        until(browser, "document.querySelectorAll('#xd-samples button[aria-label^=Sample]').length")
        yield browser
        asked = js(browser, "performance.getEntriesByType('resource').map(e => e.name)")
        assert [one for one in asked if not one.startswith((url, "data:", "blob:"))] == []
        assert len(asked) > 10
        browser.get("about:blank")
    said = [one["message"] for one in browser.get_log("browser")]
    assert [one for one in said if "Method not implemented." not in one] == []  # Gradio's own warning of each upload


def sized(browser, width):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def until(browser, code, *arguments):
    """Wait for a true value; a page of many scripts on a busy machine takes a while."""
    end = time.monotonic() + 60
    while not (found := js(browser, code, *arguments)):
        assert time.monotonic() < end, (code, js(browser, "document.body.innerText"))
        time.sleep(0.05)
    return found


def sample(browser, name):
    js(browser, "document.querySelector(`#xd-samples button[aria-label='Sample: ${arguments[0]}']`).click()", name)


def choose(browser, words):
    """Click the box whose label begins so."""
    code = """[...document.querySelectorAll('label')].filter(e => e.querySelector('input[type=checkbox]')
        && e.innerText.trim().startsWith(arguments[0]))[0].querySelector('input').click()"""
    js(browser, code, words)


def button(browser, words):
    js(
        browser,
        "[...document.querySelectorAll('button')].filter(e => e.innerText.includes(arguments[0]))[0].click()",
        words,
    )


def titles(browser):
    return each(browser, ".xd-map figcaption", "e.innerText")


def maps_of(browser, *wanted):
    until(
        browser,
        "[...document.querySelectorAll('.xd-map figcaption')].map(e => e.innerText).join() === arguments[0]",
        ",".join(wanted),
    )


def point(browser, at, x, y):
    """Move the mouse to parts of a map; the value that is shown."""
    frame = js(browser, "document.querySelectorAll('.xd-frame')[arguments[0]]", at)
    move_to(browser, frame, x, y)
    at = "Math.abs(arguments[0].dataset.x - arguments[1]) + Math.abs(arguments[0].dataset.y - arguments[2]) < .01"
    until(browser, at, frame, x, y)
    return [float(one) for one in each(browser, ".xd-value", "e.dataset.value")]


def expected(upload, *classes):
    x = torch.as_tensor(np.asarray(upload.opened().convert("L").resize((48, 48))) / np.float32(255))[None, None]
    return [CDAM(digit_vit.load()).attribute(x, number)[0, 0] for number in classes]


def downloaded(folder, name):
    end = time.monotonic() + 60
    while not (folder / name).exists():
        assert time.monotonic() < end, list(folder.iterdir())
        time.sleep(0.05)
    return folder / name


def test_a_sample_is_explained_another_class_and_why_not(opened, tmp_path):
    upload = samples(["digits"])[0]
    a, b = expected(upload, 5, 4)
    sample(opened, upload.name)
    maps_of(opened, "5", "4")
    assert each(opened, ".xd-top li", "e.innerText.split('\\n')[0]")[:2] == ["5", "4"]
    assert point(opened, 0, 0.3, 0.1) == pytest.approx([float(a[1, 3]), float(b[1, 3])], rel=1e-4)
    shown = each(opened, ".xd-value", "e.innerText")[0].replace("\u2212", "-")
    assert float(shown.split()[0]) == pytest.approx(float(a[1, 3]), rel=0.01)
    js(opened, "document.querySelector('.xd-frame').focus()")
    press(opened, "\ue014")  # arrow right
    until(opened, "Math.abs(document.querySelector('.xd-value').dataset.value - arguments[0]) < 1e-4", float(a[1, 4]))
    choose(opened, "7")
    maps_of(opened, "5", "4", "7")
    choose(opened, "7")
    maps_of(opened, "5", "4")
    choose(opened, "Why 5, and not 4")
    maps_of(opened, "5, not 4")
    assert point(opened, 0, 0.3, 0.1)[0] == pytest.approx(float(a[1, 3] - b[1, 3]), rel=1e-3)
    choose(opened, "GradCAM")
    maps_of(opened, "5, not 4", "5, not 4")
    for words, name in (("Save picture", "4-and-5.maps.png"), ("Save JSON", "explanation.json")):
        button(opened, words)
        downloaded(tmp_path, name)
    facts = json.loads((tmp_path / "explanation.json").read_text())
    assert [one["method"] for one in facts["images"][0]["maps"]] == ["cdam", "gradcam"]
    assert Image.open(tmp_path / "4-and-5.maps.png").size[0] > 600
    button(opened, "trusted?")
    until(opened, "document.querySelector('.xd-verdict')")
    assert "There is no check of this method." in js(opened, "document.getElementById('xd-checks').innerText")


def test_an_upload_is_read_and_forgotten_and_a_wrong_one_is_refused(opened, page, tmp_path):
    folder = Path(page._folder.name)
    before = set(files_below(folder))
    data, digits = scene_png()
    (tmp_path / "mine.png").write_bytes(data)
    (tmp_path / "no.png").write_bytes(b"no picture")
    drop = opened.find_element("css selector", "input[type=file]")
    drop.send_keys(str(tmp_path / "no.png"))
    until(opened, "document.querySelector('#xd-status [role=alert]')")
    assert "no.png is none of these" in js(opened, "document.getElementById('xd-status').innerText")
    until(opened, "document.querySelector('input[type=file]')")
    opened.find_element("css selector", "input[type=file]").send_keys(str(tmp_path / "mine.png"))
    until(opened, "document.querySelectorAll('.xd-map').length === 2")
    assert sorted(titles(opened)) == sorted(map(str, digits))
    assert set(files_below(folder)) == before
    assert len(page.state_holder.session_data) == 1
    opened.get("about:blank")
    end = time.monotonic() + 60
    while page.state_holder.session_data:
        assert time.monotonic() < end
        time.sleep(0.1)
    opened.get(page.local_url)
    until(opened, "document.querySelectorAll('#xd-samples button[aria-label^=Sample]').length")


def test_too_large_a_file_is_refused_by_the_server(browser, monkeypatch, tmp_path):
    monkeypatch.setattr(_app_page, "BYTES", 1000)
    (tmp_path / "large.png").write_bytes(png())
    with served(build()) as url:
        sized(browser, 1280)
        browser.get(url)
        until(browser, "document.querySelector('input[type=file]')")
        browser.find_element("css selector", "input[type=file]").send_keys(str(tmp_path / "large.png"))
        until(browser, "/maximum|exceed|large/i.test(document.body.innerText)")
        browser.get("about:blank")
    browser.get_log("browser")  # that the server refused it


def test_the_page_is_usable_on_a_phone_and_its_parts_have_names(opened):
    sized(opened, 390)
    sample(opened, samples(["digits"])[1].name)
    until(opened, "document.querySelectorAll('.xd-map').length === 2")
    assert js(opened, "document.documentElement.scrollWidth") <= 390
    assert max(each(opened, ".xd-result, .xd-maps, .xd-frame, button, label", "e.getBoundingClientRect().right")) <= 390
    nameless = """[...document.querySelectorAll('input:not([type=hidden]), button, textarea, [role=img], select')]
        .filter(e => e.checkVisibility() && !e.ariaLabel && !e.title && !e.labels?.length && !e.innerText?.trim()
            && !e.getAttribute('aria-labelledby')).map(e => e.outerHTML.slice(0, 200))"""
    assert js(opened, nameless) == []


def test_another_model_sees_the_same_picture_and_random_weights_are_said(opened):
    sample(opened, "cat")
    until(opened, "document.querySelectorAll('.xd-map').length === 2")
    assert not js(opened, "document.querySelector('.xd-loud')")
    field = opened.find_element("css selector", "input[aria-label='Model']")
    js(opened, "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", field)
    field.click()
    until(opened, "document.querySelectorAll('[role=option]').length === 2")
    opened.find_elements("css selector", "[role=option]")[1].click()
    loud = until(opened, "document.querySelector('.xd-loud')?.innerText")
    assert loud.startswith("RANDOM WEIGHTS: these maps say nothing of the image.")
    assert js(opened, "document.querySelector('.xd-frame').dataset.rows") == "14"


def test_a_concept_by_uploaded_pictures_and_its_arrays(opened, tmp_path):
    examples = [(tmp_path / f"{number}.png", *scene_png(seed=number)) for number in range(2)]
    for path, data, _ in examples:
        path.write_bytes(data)
    sample(opened, samples(["digits"])[0].name)
    maps_of(opened, "5", "4")
    button(opened, "A concept, by example pictures")
    field = until(opened, "document.querySelectorAll('input[type=file]')[1]")
    field.send_keys("\n".join(str(path) for path, *_ in examples))
    until(opened, "document.querySelectorAll('.xd-map').length === 3")
    assert "concept" in titles(opened)[-1]
    model = digit_vit.load()
    inputs = [
        torch.as_tensor(np.asarray(Image.open(path).convert("L").resize((48, 48))) / np.float32(255))[None]
        for path, *_ in examples
    ]
    target = ConceptTarget.from_examples(model, torch.stack(inputs), similarity="cosine")
    upload = samples(["digits"])[0]
    x = torch.as_tensor(np.asarray(upload.opened().convert("L").resize((48, 48))) / np.float32(255))[None, None]
    heat = CDAM(model).attribute(x, target)[0, 0]
    button(opened, "Save arrays")
    with zipfile.ZipFile(downloaded(tmp_path, "4-and-5.arrays.zip")) as archive:
        saved = [np.load(io.BytesIO(archive.read(name))) for name in sorted(archive.namelist())]
    assert len(saved) == 3
    assert any(np.allclose(one, heat, rtol=1e-3, atol=1e-6) for one in saved)
    button(opened, "Remove the concept")
    maps_of(opened, "5", "4")


def test_texts_are_written_and_compared(browser, tmp_path):
    clip, processor = saved_clip(tmp_path / "clip")
    photo = tmp_path / "photo.png"
    photo.write_bytes(png())
    with served(build([str(tmp_path / "clip")])) as url:
        sized(browser, 1280)
        browser.get(url)
        until(browser, "document.querySelector('input[type=file]')")
        browser.find_element("css selector", "input[type=file]").send_keys(str(photo))
        until(browser, "document.querySelector('#xd-status').innerText.includes('text')")
        field = browser.find_element("css selector", "textarea")
        field.send_keys("the cat\ue007a dog")  # with enter between them
        js(browser, "arguments[0].blur()", field)
        maps_of(browser, '"the cat"', '"a dog"')
        x = processor(images=Image.open(photo).convert("RGB"), return_tensors="pt")["pixel_values"]
        for at, text in enumerate(("the cat", "a dog")):
            heat = CDAM(clip.get_image_features).attribute(x, TextTarget(clip, processor, text))[0, 0]
            shown = js(browser, "document.querySelectorAll('.xd-frame')[arguments[0]]", at)
            move_to(browser, shown, 0.5, 0.5)
            code = "Math.abs(document.querySelectorAll('.xd-value')[arguments[0]].dataset.value - arguments[1]) < 1e-5"
            until(browser, code, at, float(heat[1, 1]))
        browser.get("about:blank")
    browser.get_log("browser")
