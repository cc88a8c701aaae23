"""Takes the picture of the page: `picture.py FILE`. What it shows is what the server measured.

The release binary is asked for two minutes, by as many clients as it has threads, with a pause that
leaves the line of the live view something to show.
"""

import os
import pathlib
import random
import sys
import threading
import time

from playwright.sync_api import sync_playwright

from conftest import CHROMIUM, FLAGS, ROOT, post, started

SECONDS = 125
SENTENCES = [
    "A man is eating a piece of bread.",
    "Two men pushed carts through the woods, and a third one told them where to go.",
    "A cheetah is running behind its prey.",
    "The girl is carrying a baby while her brother plays the drums in the room next door.",
]


def sentence(chance: random.Random) -> str:
    """Four in five are new to the server; the rest it has scored before."""
    known = chance.random() < 0.2
    return chance.choice(SENTENCES) if known else f"{chance.choice(SENTENCES)} {chance.randrange(10**6)}"


def client(url: str, ends: float, number: int) -> None:
    chance = random.Random(number)
    while time.monotonic() < ends:
        documents = [sentence(chance) for _ in range(chance.randint(4, 60))]
        post(f"{url}/rerank", {"query": "A man is eating food.", "documents": documents})
        time.sleep(chance.uniform(0, 0.6))


def main(file: pathlib.Path) -> None:
    os.environ.setdefault("RERANKD_BIN", str(ROOT / "target" / "release" / "rerankd"))
    server = started("--log-level", "error")
    url = server.url
    ends = time.monotonic() + SECONDS
    clients = [threading.Thread(target=client, args=(url, ends, number)) for number in range(3)]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 860}, color_scheme="light")
        page.goto(url)
        for one in clients:
            one.start()
        page.wait_for_timeout((SECONDS - 5) * 1000)
        page.get_by_role("button", name="Run an example").click()
        page.locator("#rows > li").first.wait_for()
        page.locator("#run").focus()
        page.wait_for_timeout(2500)
        page.screenshot(path=file, full_page=True)
        browser.close()
    for one in clients:
        one.join()
    server.end()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
