import random
import shutil
import socket

import numpy as np
import pytest
import torch

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
NO_BROWSER = "there is no browser"

torch.set_num_threads(1)  # the models are so small that threads wait for one another, and each worker has a core


def pytest_ignore_collect(collection_path, config):
    """Files of slow tests alone are not imported where these are left out."""
    left_out = "not slow" in config.option.markexpr and collection_path.suffix == ".py"
    return True if left_out and "\npytestmark = pytest.mark.slow\n" in collection_path.read_text("utf-8") else None


@pytest.hookimpl(tryfirst=True)  # before `-m` is applied
def pytest_collection_modifyitems(items):
    """Marks as slow all but N cases, spread evenly, of each test that is marked `sampled(N)`."""
    cases = {}
    for item in items:
        mark = item.get_closest_marker("sampled")
        if mark is not None:
            cases.setdefault((item.path, item.originalname, mark.args[0]), []).append(item)
    for (_, _, count), found in cases.items():
        kept = {i * len(found) // count for i in range(count)}
        for item in (item for i, item in enumerate(found) if i not in kept):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, request):
    """None but, for tests in a browser or with a server, to these on this machine."""
    local = ("127.0.0.1", "::1", "localhost") if {"browser", "folder", "s3"} & {*request.fixturenames} else ()
    connect = socket.socket.connect

    def refuse(self, address):
        if address[0] not in local:
            raise RuntimeError("tests reach no network")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if not (shutil.which(CHROMIUM) and shutil.which(DRIVER)):
        pytest.skip(NO_BROWSER)
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for name in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "force-device-scale-factor=1",
        f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(f"--{name}")
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
        browser.report = path.as_uri()
        browser.get(browser.report)
        return browser

    yield opened
    assert browser.get_log("browser") == []


def pytest_terminal_summary(terminalreporter):
    """Says in a line that tests were skipped as there is no browser; without it the report is not tested."""
    skipped = [one for one in terminalreporter.getreports("skipped") if one.longrepr[2].endswith(NO_BROWSER)]
    if skipped:
        advice = "apt-get install chromium chromium-driver"
        terminalreporter.write_line(f"{len(skipped)} tests were skipped as {NO_BROWSER}: {advice}", yellow=True)
