"""The page about an answer in a browser: tokens that light up what is evidence for them."""

import re

import numpy as np
import pytest
import torch
from answers_by_hand import NUMBERS, PLACE_SCALE, TOKENS, WORD_SCALE, by_hand, words_only
from browsing import each, js, press, wait_for
from PIL import Image
from tiny_vlms import FAMILIES, build, pictures

from adapters.prompts import image_tokens
from captum_ext import CDAM, signed_overlay

slow = pytest.mark.slow
IMAGE = torch.linspace(0, 1, 3 * 8 * 8).reshape(3, 8, 8)
PAPERS = """(window.papers = e => {
    const found = [];
    for (; e; e = e.parentElement) found.push(getComputedStyle(e).backgroundColor);
    return found;
}, true)"""  # what lies behind an element
SHOWN = [at for at in range(1, len(TOKENS)) if at not in NUMBERS]


def tints(browser):
    """The signed opacity of each word: positive for red, negative for blue."""
    found = []
    for text in each(browser, ".word", "getComputedStyle(e).backgroundColor"):
        red, _, blue, *opacity = map(float, re.findall(r"[\d.]+", text))
        found.append((1 if red > blue else -1) * (opacity[0] if opacity else 1.0))
    return found


def drawn(browser):
    """The pixels of the first picture as it is shown."""
    code = """(() => { const i = document.querySelector("img[data-picture]");
        const c = document.createElement("canvas"); c.width = i.naturalWidth; c.height = i.naturalHeight;
        const x = c.getContext("2d"); x.drawImage(i, 0, 0);
        return [c.height, c.width, [...x.getImageData(0, 0, c.width, c.height).data]]; })()"""
    wait_for(browser, "document.querySelector('img[data-picture]').complete")
    height, width, data = js(browser, code)
    return np.array(data, float).reshape(height, width, 4)[..., :3] / 255


def expects(browser, view, maps):
    """Words and picture are those of a view, on the page's scales."""
    scores = maps.scores[0] / 2 if view == 0 else maps.per_token[0, view - 1]
    expected = (scores[SHOWN] / WORD_SCALE).clamp(-1, 1)
    np.testing.assert_allclose(tints(browser), expected, atol=0.005)
    heat = maps.images[0][0] / 2 if view == 0 else maps.images_per_token[0][0, view - 1]
    pixels = IMAGE.repeat_interleave(32, 1).repeat_interleave(32, 2)
    np.testing.assert_allclose(drawn(browser), signed_overlay(pixels, heat, PLACE_SCALE), atol=0.04)


@slow
def test_pointing_at_a_token_shows_its_words_and_places(show):
    from selenium.webdriver import ActionChains

    maps = by_hand()
    browser = show(maps.html([IMAGE]))
    expects(browser, 0, maps)
    buttons = browser.find_elements("css selector", "#tokens button")
    for view in (1, 2):
        ActionChains(browser).move_to_element(buttons[view]).perform()
        expects(browser, view, maps)
        assert each(browser, "button", "e.classList.contains('shown')").index(True) == view
    ActionChains(browser).move_to_element(browser.find_element("css selector", "#facts")).perform()
    expects(browser, 0, maps)
    buttons[2].click()
    ActionChains(browser).move_to_element(buttons[1]).perform()
    expects(browser, 1, maps)
    js(browser, "document.activeElement.blur()")
    ActionChains(browser).move_to_element(browser.find_element("css selector", "#facts")).perform()
    expects(browser, 2, maps)


@slow
def test_a_keyboard_is_enough(show):
    from selenium.webdriver import Keys

    maps = by_hand()
    browser = show(maps.html([IMAGE]))
    press(browser, Keys.TAB, Keys.TAB)
    expects(browser, 1, maps)
    assert js(browser, "getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert each(browser, "button", "e.getAttribute('aria-pressed')") == ["true", "false", "false"]
    press(browser, Keys.ARROW_RIGHT, Keys.ENTER)
    expects(browser, 2, maps)
    assert each(browser, "button", "e.getAttribute('aria-pressed')") == ["false", "false", "true"]
    press(browser, Keys.ARROW_RIGHT)  # around to the whole answer
    expects(browser, 0, maps)
    press(browser, Keys.END, Keys.HOME, Keys.ARROW_RIGHT)
    expects(browser, 1, maps)
    press(browser, Keys.ESCAPE)
    assert each(browser, "button", "e.getAttribute('aria-pressed')") == ["true", "false", "false"]


@slow
def test_words_are_in_their_order_with_the_picture_where_its_tokens_are(show):
    browser = show(by_hand().html([IMAGE]))
    order = each(browser, "#prompt .word, #prompt img", "e.alt ? 'image' : e.textContent")
    assert order == ["<s>", "Is", "the", "image", "cat", "\u21b5\n", "?"]
    assert each(browser, ".word", "e.title")[:3] == ["31, mean 15.5", "0.2, mean 0.1", "0.2, mean 0.1"]
    js(browser, "document.querySelectorAll('button')[2].focus()")
    assert each(browser, ".word", "e.title") == ["\u22129", "0", "0.6", "0.7", "\u22120.05", "0"]
    assert js(browser, "document.getElementById('strongest').innerText") == (
        "\u201ccat\u201d \u2013 most for it: \u201ccat\u201d 0.7, \u201cthe\u201d 0.6; most against it: "
        "\u201c<s>\u201d \u22129, \u201c\u21b5\u201d \u22120.05."
    )


def text_of(page):
    text = re.sub(r"<(style|script).*?</\1>|<[^>]*>", "", page, flags=re.DOTALL)
    return " ".join(text.replace("&lt;", "<").replace("&gt;", ">").replace("&#39;", "'").split())


def test_the_page_says_what_it_shows():
    excluded = torch.tensor([[False, True] + 9 * [False]])
    maps = by_hand(excluded=excluded, score="log_prob", against_tokens=[["no", "dog"]])
    said = text_of(maps.html())
    for words in (
        "divides it into 2 tokens: a cat (ids 5, 6).",
        "no dog The maps show why the answer was preferred",
        f"{100 * float(maps.first_share[0]):.1f} % of the absolute relevance is on the first token",
        "1 token, set to 0 and struck through: <s>",
        "One scale for all tokens of the answer. Full colour of words is 0.7, the largest absolute score outside the "
        "first and special tokens; of places of images, of which there are many, 0.8, their own largest. "
        "6.4 % of the whole answer's absolute score is on images. 1 token exceeds it",
        "shown as the mean over its 2 tokens; its score is their sum",
        "CDAM, from further passes. The score of each token of the answer is the logarithm of the probability.",
        "10 tokens; 1 of padding are not shown.",
        "map of 2 \u00d7 2 places; the image itself was not given to this page",
    ):
        assert words in said
    unequal = text_of(by_hand(per_token=None, images_per_token=[], against_tokens=[["no"]]).html())
    assert "different numbers of tokens, so only their sums can be compared" in unequal
    assert "mean over" not in unequal


def test_a_sink_is_no_measure_of_the_others_unless_nothing_else_has_a_score():
    legend = r'<p class="legend"><span>\u2212(\S+)</span>'
    assert re.search(legend, by_hand().html())[1] == "0.7"
    assert re.search(legend, by_hand(special=None).html())[1] == "0.7"  # the first token is one, whatever it is
    later = words_only([1.0, 0.5, -30.0], ["a", "b", "c"])
    assert re.search(legend, later.html())[1] == "30"
    special = torch.tensor([[False, False, True]])
    assert re.search(legend, words_only([1.0, 0.5, -30.0], ["a", "b", "c"], special=special).html())[1] == "0.5"
    assert re.search(legend, words_only([7.0, 0.0], ["a", "b"]).html())[1] == "7"
    assert re.search(legend, words_only([0.0, 0.0], ["a", "b"]).html())[1] == "1"


@slow
def test_what_exceeds_the_scale_is_framed(show):
    browser = show(by_hand().html())
    assert each(browser, ".word.beyond", "e.textContent") == ["<s>"]
    assert js(browser, "getComputedStyle(document.querySelector('.beyond')).outlineStyle") == "double"
    assert max(abs(tint) for tint in tints(browser)) == 1


@slow
@pytest.mark.parametrize("width", [390, 1280])
def test_a_thousand_words_and_endless_ones_stay_on_the_page(show, width):
    from selenium.webdriver import Keys

    torch.manual_seed(0)
    tokens = [f" word{number}" for number in range(1000)] + ["endless" * 60]
    scores = torch.randn(1, 40, len(tokens)).double()
    maps = words_only(scores.sum(1)[0].tolist(), tokens)
    answer = [f"token{number}" for number in range(39)] + ["endless" * 60]
    maps = type(maps)(**vars(maps) | {"per_token": scores, "answer_tokens": [answer], "answer_ids": [list(range(40))]})
    browser = show(maps.html(), width, 844)
    assert js(browser, "document.documentElement.scrollWidth") <= width
    assert len(tints(browser)) == 1001
    press(browser, Keys.TAB, Keys.TAB)
    took = js(browser, "(() => { const t = performance.now(); show(3); return performance.now() - t; })()")
    assert took < 500
    js(browser, "scrollTo(0, 1000)")
    place = js(browser, "document.activeElement.getBoundingClientRect().top")
    assert 0 <= place < 844  # the tokens stay in sight while the prompt is read


@slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_word_can_be_read_on_its_colour(show, browser, scheme):
    steps = [number / 50 for number in range(-50, 51)]
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    try:
        show(words_only([0.0, *steps], ["<s>", *map(str, steps)]).html())
        js(browser, PAPERS)
        seen = each(browser, ".word, dt, .key, button", "[getComputedStyle(e).color, window.papers(e)]")
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert len(seen) > 100
    for color, papers in seen:
        base = np.zeros(3)
        for paper in reversed(papers):
            red, green, blue, *opacity = map(float, re.findall(r"[\d.]+", paper))
            alpha = opacity[0] if opacity else 1.0
            base = alpha * np.array([red, green, blue]) + (1 - alpha) * base
        ink = np.array([*map(float, re.findall(r"[\d.]+", color))][:3])
        light, dark = sorted((luminance(ink), luminance(base)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5


def luminance(color):
    parts = color / 255
    return np.where(parts <= 0.03928, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]


@slow
def test_hostile_words_are_shown_as_they_are_and_nothing_is_loaded(show, browser):
    bad = "<img src=x onerror=alert(1)></script><!--&quot;\"'é $y$"
    maps = words_only([1.0, 2.0], [bad, "b"], answer_tokens=[[bad]], against_tokens=[[bad]], method=bad, way=bad)
    page = maps.html()
    assert "http:" not in page
    assert "https:" not in page
    show(page)
    assert js(browser, "document.querySelector('.word').textContent") == bad
    assert each(browser, "button", "e.textContent")[1] == bad
    assert js(browser, "document.title").endswith(bad)
    assert each(browser, "img", "0") == []
    names = "performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('data:'))"
    assert js(browser, names) == []


@slow
def test_a_notebook_shows_the_page_in_a_frame(show, browser):
    show(f"<!DOCTYPE html><link rel='icon' href='data:,'>{by_hand()._repr_html_()}")
    browser.switch_to.frame(0)
    assert js(browser, "document.body.dataset.shown") == "0"
    assert len(tints(browser)) == 6
    browser.switch_to.default_content()


@slow
@pytest.mark.parametrize("name", ["llava", "llava_next"])
def test_maps_of_models_that_read_images(name, show, tmp_path):
    model, inputs = build(name)
    shown = [Image.fromarray(one.permute(1, 2, 0).numpy()) for one in pictures(FAMILIES[name].sizes)[:2]]
    maps = CDAM(model).attribute_answer(inputs, [21, 22])
    path = tmp_path / "page.html"
    page = maps.html(shown, path)
    assert path.read_text("utf-8") == page
    browser = show(page)
    width, height = FAMILIES[name].sizes[1]
    ratio = "document.querySelectorAll('img')[1].naturalWidth / document.querySelectorAll('img')[1].naturalHeight"
    assert js(browser, ratio) == pytest.approx(width / height, rel=0.03)
    words = each(browser, "#prompt .word, #prompt img", "e.alt ? 'image' : e.textContent")
    tokens = image_tokens(model, inputs)[0]
    ends = sum(len(one.numbers) - sum(part.positions.numel() for part in one.parts) for one in tokens)
    token = model.config.image_token_id
    assert words.count(str(token)) == ends
    given = inputs["input_ids"][0][inputs["attention_mask"][0].bool() & (inputs["input_ids"][0] != token)]
    assert [word for word in words if word not in ("image", str(token))] == [str(int(i)) for i in given]
    assert words.count("image") == 2
    assert text_of(maps.html(sample=1)).count("of the prompt") == 0
    assert maps.html(sample=1).count("<figure>") == 1


@pytest.mark.parametrize(
    ("maps", "arguments", "error", "words"),
    [
        (by_hand(), {"images": [IMAGE, IMAGE]}, ValueError, "Expected the 1 image\\(s\\).*got 2"),
        (by_hand(), {"images": ["cat.png"]}, TypeError, "Expected `images` of PIL, or tensors"),
        (by_hand(), {"images": [IMAGE * 2 - 1]}, ValueError, "Undo the model's normalisation"),
        (by_hand(), {"sample": 1}, ValueError, "`sample` from 0 to 0, got 1"),
        (words_only([float("nan"), 1.0], ["a", "b"]), {}, ValueError, "Expected finite scores.*sample 0"),
    ],
)
def test_what_cannot_be_shown_is_refused(maps, arguments, error, words):
    with pytest.raises(error, match=words):
        maps.html(**arguments)
