"""The real server with its embedded model, and a real browser that looks at it."""

import json
import os
import pathlib
import shutil
import sys
import urllib.request

import pytest
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "support"))
from instance import ROOT, started  # noqa: E402, F401

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
# Chromium's own traffic would only fail where nothing but this machine is reached.
FLAGS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
if os.geteuid() == 0:
    FLAGS.append("--no-sandbox")

# Low enough to be exceeded, high enough for a ranking of more rows than are drawn at first.
MAX_DOCUMENTS = 80


def post(url: str, body: dict, headers: dict | None = None) -> dict:
    request = urllib.request.Request(url, json.dumps(body).encode(), headers or {})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


@pytest.fixture(scope="session")
def url():
    server = started("--max-documents", str(MAX_DOCUMENTS))
    yield server.url
    server.end()


@pytest.fixture
def keyed():
    """A server that answers those who have a key: its address, and the key."""
    key = "k-0123456789abcdef0123456789abcdef"
    server = started(RERANKD_API_KEYS=f"browser: {key}")
    yield server.url, key
    server.end()


@pytest.fixture(scope="session")
def browser():
    if CHROMIUM is None:
        pytest.fail("no Chromium: install Debian's `chromium`, or name one with CHROMIUM=/path")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def complaints():
    """What the browser complained of. A test that provokes a complaint takes it out again."""
    found = []
    yield found
    assert found == []


@pytest.fixture
def open_page(browser, url, complaints):
    """Opens pages that may complain of nothing, and that may ask nobody but the server."""
    contexts = []

    def open_page(path="/", width=1280, height=900, theme="light", base=None, ready=True, **options):
        base = base or url
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=theme, **options
        )
        contexts.append(context)
        context.set_default_timeout(20_000)
        page = context.new_page()
        page.on(
            "console",
            lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None,
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))

        def asked(request):
            if not request.url.startswith((base + "/", "data:")):
                complaints.append(f"asked {request.url}")

        page.on("request", asked)
        page.goto(base + path)
        if ready:
            page.locator("#state[data-state=ready]").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
