"""Looks at the built site in a headless Chromium: links, console, narrow windows, keyboard, search, contrast.

Run as `python docs/_ext/check_site.py build/site`; needs chromium and chromium-driver.
"""

import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urldefrag

from axe_selenium_python import Axe
from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.support.ui import WebDriverWait

SIZES = {"wide": (1280, 900), "narrow": (390, 844)}
RULES = ["color-contrast", "image-alt", "link-name", "button-name", "document-title", "label"]
TEXTS = "article p, article td, article li, article .sphx-glr-script-out pre"
# Tables, names, links and pictures that were not made of their source:
RAW = f"""[...document.querySelectorAll('{TEXTS}')].filter(e => {{ const own = e.cloneNode(true);
    own.querySelectorAll('code, .math').forEach(one => one.remove());
    const raw = e.tagName === 'PRE' ? /<Figure size/ : /\\|\\s+\\||\\|-{{3}}|\\{{\\{{|\\]\\([^)\\s]+\\)/;
    return raw.test(own.textContent); }}).map(e => e.textContent)"""
LINKS = "[...document.querySelectorAll('a[href]')].map(a => a.href)"


class Quiet(SimpleHTTPRequestHandler):
    """Serves files, and says nothing."""

    def log_message(self, *given: Any) -> None:
        """Nothing."""


def main(site: Path) -> int:
    """Print what is wrong; how many faults."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    root = f"http://127.0.0.1:{server.server_port}/"
    options = webdriver.ChromeOptions()
    for name in ("headless=new", "no-sandbox", "disable-gpu", "force-device-scale-factor=1"):
        options.add_argument(f"--{name}")
    options.binary_location = "/usr/bin/chromium"
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
    browser.set_script_timeout(120)
    count = 0
    try:
        for fault in faults(browser, site, root):
            print(fault, flush=True)
            count += 1
    finally:
        browser.quit()
        server.shutdown()
    print(f"{count} faults")
    return count


def faults(browser: Any, site: Path, root: str) -> Iterator[str]:
    """What is wrong on all pages."""
    pages = sorted(str(path.relative_to(site)) for path in site.rglob("*.html") if "_static" not in path.parts)
    pages.sort(key=lambda name: name != "index.html")
    anchors: dict[str, set[str]] = {}
    links: dict[str, list[str]] = {}
    for page in pages:
        for name, (width, height) in reversed(SIZES.items()):
            metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": name == "narrow"}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            browser.get(root + page)
            if browser.execute_script("return document.documentElement.scrollWidth > window.innerWidth + 1"):
                yield f"{page} ({name}): wider than the window"
            yield from (f"{page}: console: {line['message']}" for line in browser.get_log("browser"))
        anchors[page] = set(browser.execute_script("return [...document.querySelectorAll('[id]')].map(e => e.id)"))
        links[page] = browser.execute_script(f"return {LINKS}")
        yield from seen_by_axe(browser, page)
        yield from (f"{page}: not rendered: {text[:140]!r}" for text in browser.execute_script(f"return {RAW}"))
    yield from broken(root, site, links, anchors)
    yield from by_keyboard(browser, root)
    yield from searched(browser, root)
    yield from filtered(browser, root)


def seen_by_axe(browser: Any, page: str) -> Iterator[str]:
    """What axe finds wrong, contrast of AA among it."""
    Axe(browser).inject()
    run = "const done = arguments[1]; axe.run(document, {runOnly: {type: 'rule', values: arguments[0]}}).then(done)"
    found = browser.execute_async_script(run, RULES)
    for rule in found["violations"]:
        node = rule["nodes"][0]
        yield f"{page}: {rule['id']} x {len(rule['nodes'])}: {node['html'][:140]} {node['failureSummary'][:160]!r}"


def broken(root: str, site: Path, links: dict[str, list[str]], anchors: dict[str, set[str]]) -> Iterator[str]:
    """Links within the site that lead nowhere."""
    for page, found in links.items():
        for link in dict.fromkeys(found):
            if not link.startswith(root):
                continue
            address, anchor = urldefrag(link.removeprefix(root))
            target = address.partition("?")[0] or "index.html"
            if not (site / target).exists():
                yield f"{page}: broken link {target}"
            elif anchor and target in anchors and anchor not in anchors[target]:
                yield f"{page}: broken anchor {target}#{anchor}"


def by_keyboard(browser: Any, root: str) -> Iterator[str]:
    """The first link of the page's text must be reached by the tab key, and nothing is in the way."""
    browser.get(root + "index.html")
    for _ in range(120):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        if browser.execute_script("return document.activeElement.closest('article') !== null"):
            return
    yield "index.html: the text's links are not reached by the keyboard"


def searched(browser: Any, root: str) -> Iterator[str]:
    """The search works without a network."""
    browser.get(root + "search.html?q=IntegratedCDAM")
    found = "return document.querySelectorAll('#search-results li a').length"
    try:
        WebDriverWait(browser, 20).until(lambda _: browser.execute_script(found) > 0)
    except TimeoutException:
        yield "search.html: nothing was found for IntegratedCDAM"


def filtered(browser: Any, root: str) -> Iterator[str]:
    """The table of models can be searched, and an address keeps what was asked."""
    browser.get(root + "models.html?rows=timm+closed")
    last = "[...document.querySelectorAll('article table')].at(-1)"
    rows = browser.execute_script(
        f"return [...{last}.tBodies[0].rows].filter(row => !row.hidden).map(row => row.textContent.toLowerCase())"
    )
    if not rows or not all("timm" in row and "closed" in row for row in rows):
        yield f"models.html: asked for timm and closed, the table shows {len(rows)} rows: {rows[:2]}"


if __name__ == "__main__":
    sys.exit(1 if main(Path(sys.argv[1])) else 0)
