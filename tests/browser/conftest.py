"""The real server with its embedded model, and a real browser that looks at it."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request

import pytest
from playwright.sync_api import sync_playwright

ROOT = pathlib.Path(__file__).parents[2]
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
# What keeps the port of each server, by its process.
HELD: dict[int, socket.socket] = {}


def binary() -> str:
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return os.environ.get("RERANKD_BIN", str(target / "debug" / "rerankd"))


def start(*flags: str, **settings: str) -> tuple[subprocess.Popen, str]:
    # Bound without listening until the server has ended: nobody else is given this port.
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{held.getsockname()[1]}"
    library = ROOT / "target" / "onnxruntime" / "libonnxruntime.so"
    # The name of the binary is no setting of the server.
    given = {name: value for name, value in os.environ.items() if name != "RERANKD_BIN"}
    environment = {"ORT_DYLIB_PATH": str(library), **given, **settings}
    server = subprocess.Popen([binary(), "serve", "--listen", address, *flags], env=environment)
    HELD[server.pid] = held
    for _ in range(600):
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with {server.returncode}")
        try:
            urllib.request.urlopen(f"http://{address}/ready", timeout=1).close()
            return server, f"http://{address}"
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    server.kill()
    raise RuntimeError("the server did not become ready in a minute")


def stop(server: subprocess.Popen) -> None:
    server.terminate()
    try:
        assert server.wait(60) == 0
    finally:
        HELD.pop(server.pid).close()


def post(url: str, body: dict, headers: dict | None = None) -> dict:
    request = urllib.request.Request(url, json.dumps(body).encode(), headers or {})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


@pytest.fixture(scope="session")
def url():
    server, address = start("--max-documents", str(MAX_DOCUMENTS))
    yield address
    stop(server)


@pytest.fixture
def keyed():
    """A server that answers those who have a key: its address, and the key."""
    key = "k-0123456789abcdef0123456789abcdef"
    server, address = start(RERANKD_API_KEYS=f"browser: {key}")
    yield address, key
    stop(server)


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
