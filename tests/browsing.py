"""What a user sees and does on a page in a browser."""

import json
import re


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
    move_to(browser, js(browser, "document.querySelector(`.tile[data-method='${arguments[0]}'] canvas`)", method), x, y)


def move_to(browser, element, x, y):
    """Move the mouse to fractions of an element."""
    js(browser, "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
    left, top, width, height = js(
        browser, "(({x, y, width, height}) => [x, y, width, height])(arguments[0].getBoundingClientRect())", element
    )
    event = {"type": "mouseMoved", "x": left + x * width, "y": top + y * height}
    browser.execute_cdp_cmd("Input.dispatchMouseEvent", event)
