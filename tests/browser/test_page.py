"""What somebody does with the page, and what it has to show for it."""

import json
import os
import re
import subprocess

import pytest
from axe_playwright_python.sync_playwright import Axe

from conftest import MAX_DOCUMENTS, post

QUERY = "A man is eating food."
DOCUMENTS = [
    "A monkey is playing the drums.",
    "The girl is carrying a baby.",
    "Somebody eats a meal.",
    "A man is eating a piece of bread.",
]
LONG = "A man is eating a piece of bread. " * 120


def write(page, query, documents):
    page.get_by_label("Query").fill(query)
    page.get_by_label("Documents", exact=True).fill("\n".join(documents))


def rank(page, query=QUERY, documents=DOCUMENTS):
    write(page, query, documents)
    with page.expect_response("**/rerank"):
        page.locator("#run").click()
    page.locator("#ranking:not([aria-busy=true])").wait_for()


def shown(page):
    """The rows, from the top: place before, place after, text, score, width of the bar in percent."""
    return page.locator("#rows > li").evaluate_all(
        """rows => rows.map(row => [
            Number(row.querySelector(".before").textContent),
            Number(row.querySelector(".move b").textContent),
            row.querySelector(".text").textContent,
            row.querySelector(".score").textContent,
            100 * row.querySelector(".fill").offsetWidth / row.querySelector(".track").offsetWidth,
        ])"""
    )


def check_rows(page, results, documents):
    """The rows are `results`, in their order, with bars as long as the scores are high."""
    rows = shown(page)
    assert [row[:3] for row in rows] == [
        [result["index"] + 1, after, documents[result["index"]]]
        for after, result in enumerate(results, 1)
    ]
    for (_, _, _, score, width), result in zip(rows, results, strict=True):
        # Batches move a score by 1e-5 at most; the fourth digit may turn over.
        assert float(score) == pytest.approx(result["relevance_score"], abs=1.1e-4)
        assert width == pytest.approx(100 * result["relevance_score"], abs=1)


def accessible(page):
    result = Axe().run(page, options={"resultTypes": ["violations", "passes"]})
    assert result.response["violations"] == [], result.generate_report()
    assert len(result.response["passes"]) > 15


def fits(page, width):
    """Nothing has to be scrolled sideways, and nothing that can be used is outside."""
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = page.locator("button:visible, input:visible, textarea:visible, a:visible").evaluate_all(
        """(all, width) => all.filter(one => !one.matches(".skip"))
            .map(one => [one.outerHTML.slice(0, 60), one.getBoundingClientRect()])
            .filter(([, box]) => box.left < 0 || box.right > width).map(([name]) => name)""",
        width,
    )
    assert outside == []


def test_the_example_is_ranked_as_the_server_ranks_it(open_page, url):
    page = open_page()
    with page.expect_request("**/rerank") as sent:
        page.get_by_role("button", name="Run an example").click()
    page.locator("#rows > li").first.wait_for()
    body = sent.value.post_data_json
    results = post(f"{url}/rerank", body)["results"]
    # An order that stayed would prove nothing.
    assert [result["index"] for result in results] != list(range(len(results)))
    check_rows(page, results, body["documents"])
    assert re.match(r"8 documents · \d+ tokens · [\d.]+ ms", page.locator("#timing").inner_text())
    moved = sum(result["index"] > after for after, result in enumerate(results))
    assert page.locator("#slope path").count() == 8
    assert page.locator("#slope path.up").count() == moved


def test_the_command_gives_what_the_page_gives(open_page):
    page = open_page()
    documents = ["It's $HOME, `id` and \"quotes\" \\ back", "Ein Mann ißt 🍞 <b>Brot</b>", *DOCUMENTS]
    page.locator("#top").fill("5")
    rank(page, "What's $(eaten)?", documents)
    command = page.locator("#curl").inner_text()
    said = subprocess.run(["bash", "-c", command], capture_output=True, check=True, text=True)
    results = json.loads(said.stdout)["results"]
    assert len(results) == 5
    check_rows(page, results, documents)


def test_copying_gives_the_command(open_page):
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    rank(page)
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.strip() == page.locator("#curl").inner_text().strip()
    assert "curl -s" in copied and QUERY in copied


def test_where_the_clipboard_is_kept_from_a_page_the_command_is_selected(open_page):
    page = open_page()
    rank(page)
    # So it is for a page that came over plain HTTP from another machine.
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Selected").wait_for()
    selected = page.evaluate("getSelection().toString()")
    assert selected.strip() == page.locator("#curl").inner_text().strip()


def test_what_the_server_spent_its_time_on_is_told(open_page):
    page = open_page()

    def timed(route):
        said = 'queue;dur=1.5;desc="a wait", cache, inference;dur=20'
        answer = route.fetch()
        route.fulfill(response=answer, headers={**answer.headers, "server-timing": said})

    page.route("**/rerank", timed)
    rank(page)
    assert "queue 1.5 ms · inference 20 ms" in page.locator("#timing").inner_text()


def test_a_full_server_says_when_to_come_back(open_page, complaints):
    page = open_page()
    full = {"error_type": "overloaded", "message": "the queue is full"}
    page.route(
        "**/rerank",
        lambda route: route.fulfill(status=429, json=full, headers={"retry-after": "3"}),
    )
    rank(page)
    told = page.get_by_role("alert").inner_text()
    assert "429 overloaded" in told and "Try again in 3 s." in told
    assert len(complaints) == 1 and "429" in complaints.pop()


def test_raw_scores_have_bars_too(open_page, url):
    page = open_page()
    page.get_by_label("Raw scores").check()
    rank(page)
    results = post(f"{url}/rerank", {"query": QUERY, "documents": DOCUMENTS, "raw_scores": True})
    scores = [result["relevance_score"] for result in results["results"]]
    assert scores[-1] < 0
    rows = shown(page)
    assert [float(row[3]) for row in rows] == pytest.approx(scores, abs=1e-3)
    widths = [row[4] for row in rows]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] == pytest.approx(100, abs=1) and widths[-1] == pytest.approx(2, abs=1)


def test_documents_are_lines_paragraphs_or_json(open_page):
    page = open_page()
    count = page.locator("#count")
    field = page.get_by_label("Documents", exact=True)
    field.fill("one\n\n  two \nthree")
    assert count.inner_text() == "3 documents"
    page.get_by_label("Blank line between").check()
    assert count.inner_text() == "2 documents"
    rank(page, QUERY, ["A man", "eats.", "", "", "A monkey", "drums."])
    assert {row[2] for row in shown(page)} == {"A man\neats.", "A monkey\ndrums."}
    field.fill(json.dumps(["a\n\nb", {"text": "c"}]))
    assert count.inner_text() == "2 documents, from JSON"
    field.fill("[not json]")
    assert count.inner_text() == "1 document"


def test_what_was_cut_is_marked(open_page):
    page = open_page()
    rank(page, QUERY, [DOCUMENTS[0], LONG, DOCUMENTS[2]])
    marked = page.locator("#rows > li:has(.cut)")
    assert marked.count() == 1
    assert marked.locator(".before").inner_text() == "2"
    assert "512 tokens" in marked.locator(".cut").inner_text()
    # Three lines are shown; the rest is there for those who want it.
    text = marked.locator(".text")
    folded = text.evaluate("one => one.clientHeight")
    marked.get_by_role("button", name="more").click()
    assert text.evaluate("one => one.clientHeight") > 2 * folded
    marked.get_by_role("button", name="less").click()
    assert text.evaluate("one => one.clientHeight") == folded


def test_markup_in_a_text_is_text(open_page):
    page = open_page()
    hostile = "<img src=x onerror=alert(1)><script>alert(1)</script>"
    rank(page, hostile, [hostile, DOCUMENTS[0]])
    assert hostile in [row[2] for row in shown(page)]
    assert page.locator("#rows img, #rows script").count() == 0


def test_a_refusal_says_what_to_change(open_page, complaints):
    page = open_page()
    page.get_by_label("Cut what is too long").uncheck()
    rank(page, QUERY, [LONG])
    problem = page.get_by_role("alert")
    assert "400 invalid request" in problem.inner_text()
    assert "512" in problem.inner_text()
    assert re.search(r"Request [0-9a-f-]{36}", problem.inner_text())
    # The browser itself reports every status of 400 and above.
    assert len(complaints) == 1 and "400" in complaints.pop()
    page.get_by_label("Cut what is too long").check()
    rank(page)
    assert problem.is_hidden()
    assert page.locator("#rows > li").count() == len(DOCUMENTS)


def test_what_is_missing_is_asked_for_before_the_server_is(open_page):
    page = open_page()
    asked = []
    page.on("request", lambda request: asked.append(request.method))
    page.locator("#run").click()
    assert "No query" in page.get_by_role("alert").inner_text()
    assert page.locator("#query").evaluate("one => one === document.activeElement")
    page.get_by_label("Query").fill(QUERY)
    page.locator("#run").click()
    assert "No documents" in page.get_by_role("alert").inner_text()
    assert "POST" not in asked


def test_too_many_documents_show_before_and_after_sending(open_page, complaints):
    page = open_page()
    documents = [f"Document {number}." for number in range(MAX_DOCUMENTS + 1)]
    write(page, QUERY, documents)
    assert f"this server takes {MAX_DOCUMENTS} at a time" in page.locator("#count").inner_text()
    rank(page, QUERY, documents)
    assert str(MAX_DOCUMENTS) in page.get_by_role("alert").inner_text()
    assert len(complaints) == 1 and "400" in complaints.pop()


def test_a_long_ranking_is_drawn_in_two_steps(open_page):
    page = open_page()
    documents = [f"A man is eating {number} apples." for number in range(MAX_DOCUMENTS)]
    rank(page, QUERY, documents)
    assert page.locator("#rows > li").count() == 50
    page.get_by_role("button", name=f"Show all {MAX_DOCUMENTS}").click()
    assert page.locator("#rows > li").count() == MAX_DOCUMENTS
    assert page.locator("#rows > li").nth(50).evaluate("one => one === document.activeElement")


def test_a_server_that_is_gone_is_told_of(open_page, complaints):
    page = open_page()
    page.route("**/rerank", lambda route: route.abort())
    write(page, QUERY, DOCUMENTS)
    page.locator("#run").click()
    page.get_by_role("alert").filter(has_text="No answer").wait_for()
    assert len(complaints) == 1 and "ERR_FAILED" in complaints.pop()


def test_a_request_can_be_cancelled(open_page):
    page = open_page()
    # Held until the page gives up.
    page.route("**/rerank", lambda route: None)
    write(page, QUERY, DOCUMENTS)
    page.locator("#run").click()
    with page.expect_event("requestfailed"):
        page.get_by_role("button", name="Cancel").click()
    assert "Cancelled" in page.get_by_role("alert").inner_text()
    assert page.locator("#run").inner_text().startswith("Rank")


def test_the_keyboard_is_enough(open_page):
    page = open_page()
    press = page.keyboard.press
    here = lambda: page.evaluate("document.activeElement.id || document.activeElement.textContent")
    press("Tab")
    assert here() == "Skip to the ranking"
    visited = []
    while here() != "query":
        press("Tab")
        visited.append(here())
    assert visited == ["API", "Metrics", "theme", "query"]
    page.keyboard.type(QUERY)
    press("Tab")
    page.keyboard.type("\n".join(DOCUMENTS))
    press("Control+Enter")
    page.locator("#rows > li").first.wait_for()
    visited = []
    while here() != "copy":
        press("Tab")
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", here()
        visited.append(here())
    assert visited == [
        "split-line", "top", "raw", "cut", "run", "example", "The same with curl", "copy"
    ]  # fmt: skip
    press("Shift+Tab")
    press("Enter")
    page.locator("#curl").wait_for(state="hidden")


def test_the_theme_is_the_systems_until_one_is_chosen(open_page):
    paper = lambda page: page.evaluate("getComputedStyle(document.body).backgroundColor")
    light, page = paper(open_page(theme="light")), open_page(theme="dark")
    dark = paper(page)
    assert light != dark
    button = page.get_by_role("button", name="Theme")
    assert button.inner_text() == "Theme: system"
    button.click()
    assert (button.inner_text(), paper(page)) == ("Theme: light", light)
    page.reload()
    assert (button.inner_text(), paper(page)) == ("Theme: light", light)
    button.click()
    assert (button.inner_text(), paper(page)) == ("Theme: dark", dark)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(open_page, complaints, theme):
    page = open_page(theme=theme)
    accessible(page)
    rank(page, QUERY, [*DOCUMENTS, LONG])
    page.get_by_text("What came back").click()
    page.locator("#cells:not(.off) .line").first.wait_for(state="attached")
    accessible(page)
    page.get_by_label("Cut what is too long").uncheck()
    rank(page, QUERY, [LONG])
    accessible(page)
    assert len(complaints) == 1 and "400" in complaints.pop()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_small_screen_is_enough(open_page, theme):
    page = open_page(width=400, height=800, theme=theme)
    fits(page, 400)
    rank(page, QUERY, [*DOCUMENTS, LONG, "a" * 400, "https://example.org/" + "b" * 200])
    page.get_by_text("What came back").click()
    fits(page, 400)
    accessible(page)
    page.set_viewport_size({"width": 320, "height": 800})
    fits(page, 320)


def test_the_live_view_shows_what_the_server_does(open_page, url):
    page = open_page()
    cell = lambda name: page.locator(f"[data-cell={name}]")
    cell("queue").locator("b", has_text="0").wait_for()
    pairs = 0
    for turn in range(3):
        # Of their own, or they would be known already and go through no batch.
        documents = [f"{text} {turn}.{copy}" for copy in range(4) for text in DOCUMENTS]
        post(f"{url}/rerank", {"query": QUERY, "documents": documents})
        pairs += len(documents)
    cell("throughput").locator("b", has_text=re.compile("[1-9]")).wait_for()
    figure = lambda name: float(cell(name).locator("b").inner_text())
    assert 0 < figure("throughput") <= pairs
    assert 0 < figure("latency")
    assert 1 <= figure("batches") <= 16
    assert "median" in cell("latency").inner_text()
    assert "in the model" in cell("batches").inner_text()
    assert "requests/s" in cell("throughput").inner_text()
    assert re.search(r"[\d.]+ m?s of work · a pair waited [\d.]+ m?s", cell("queue").inner_text())
    # The same again is known.
    post(f"{url}/rerank", {"query": QUERY, "documents": documents})
    cell("throughput").get_by_text(re.compile(r"[1-9]\d* % known")).wait_for()
    label = cell("throughput").locator("svg").get_attribute("aria-label")
    assert re.match(r"Throughput over two minutes: highest [\d.]+ pairs/s", label)


def test_metrics_that_are_elsewhere_are_told_of(open_page, complaints):
    page = open_page()
    page.locator("#cells:not(.off) .line").first.wait_for(state="attached")
    page.route("**/metrics", lambda route: route.fulfill(status=404, body="no"))
    page.locator("#live-note", has_text="answered 404").wait_for()
    assert page.locator("[data-cell=queue] b").inner_text() == "–"
    accessible(page)
    # The playground does not need them.
    rank(page)
    assert page.locator("#rows > li").count() == len(DOCUMENTS)
    page.close()
    assert complaints and all("404" in said for said in complaints)
    complaints.clear()


def test_a_server_that_loads_is_waited_for(open_page, complaints):
    page = open_page()
    loading = {"error_type": "not_ready", "message": "the model is loading"}
    page.route(
        re.compile("/(ready|info)$"), lambda route: route.fulfill(status=503, json=loading)
    )
    page.reload()
    page.locator("#state", has_text="loading").wait_for()
    assert page.locator("#model").inner_text() == ""
    page.unroute_all()
    page.locator("#state", has_text="ready").wait_for()
    page.locator("#model", has_text="minilm-l6-rank").wait_for()
    page.close()
    assert complaints and all("503" in said for said in complaints)
    complaints.clear()


def test_a_key_is_asked_for_and_never_stored(open_page, keyed, complaints):
    address, key = keyed
    page = open_page(base=address)
    field = page.get_by_label("API key")
    # What the page is told of the model needs a key already.
    field.wait_for()
    accessible(page)
    write(page, QUERY, DOCUMENTS)
    page.locator("#run").click()
    field.fill("wrong")
    field.press("Enter")
    page.get_by_text("did not accept this key").wait_for()
    accessible(page)
    assert page.locator("#rows > li").count() == 0
    field.fill(key)
    field.press("Enter")
    # What was asked for goes on by itself.
    page.locator("#rows > li").first.wait_for()
    results = post(
        f"{address}/rerank",
        {"query": QUERY, "documents": DOCUMENTS},
        {"authorization": f"Bearer {key}"},
    )
    check_rows(page, results["results"], DOCUMENTS)
    assert field.is_hidden()
    page.locator("#model", has_text="minilm-l6-rank").wait_for()
    command = page.locator("#curl").inner_text()
    environment = {**os.environ, "RERANKD_API_KEY": key}
    said = subprocess.run(
        ["bash", "-c", command], capture_output=True, check=True, text=True, env=environment
    )
    check_rows(page, json.loads(said.stdout)["results"], DOCUMENTS)
    kept = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie])")
    assert key not in kept and key not in page.content()
    page.reload()
    field.wait_for()
    assert field.input_value() == ""
    page.close()
    assert complaints and all("401" in said for said in complaints)
    complaints.clear()


def test_the_page_of_the_description_works(open_page):
    page = open_page("/docs/", ready=False)
    page.locator(".opblock").first.wait_for()
    block = page.locator("#operations-health-get_health")
    block.locator(".opblock-summary-control").click()
    block.get_by_role("button", name="Try it out").click()
    block.get_by_role("button", name="Execute").click()
    live = block.locator(".live-responses-table .response .response-col_status").first
    live.wait_for()
    assert live.inner_text().startswith("200")
