"""The Python client against a server that answers as it is told to."""

import email.utils
import http.server
import json
import sys
import threading
import time

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "python"))
from rerankd import Client, Error, Result  # noqa: E402

RANKED = (200, {}, {"results": [{"index": 1, "relevance_score": 0.5}]})
BUSY = {"error": "busy"}


@pytest.fixture
def scripted():
    """Starts servers that give the answers listed, in order, and note what they are asked."""
    running = []

    def start(*answers):
        waiting, asked = list(answers), []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                asked.append((self.path, dict(self.headers), body))
                status, headers, answer = waiting.pop(0)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode())

            def log_message(self, *_):
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        running.append(server)
        return f"http://127.0.0.1:{server.server_port}", asked

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def test_fields_and_key_are_sent(scripted):
    url, asked = scripted(RANKED)
    assert Client(url + "/", api_key="secret").rerank("q", ("a", "b"), top_n=1) == [Result(1, 0.5)]
    path, headers, body = asked[0]
    assert (path, body) == ("/rerank", {"query": "q", "documents": ["a", "b"], "top_n": 1})
    assert headers["Authorization"] == "Bearer secret"


def test_retry_after_is_waited_for(scripted):
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    url, asked = scripted((429, {"Retry-After": "7"}, BUSY), (503, {"Retry-After": date}, BUSY), (503, {}, BUSY), RANKED)
    waits = []
    Client(url, sleep=waits.append).rerank("q", ["a"])
    assert waits[0] == 7 and 25 < waits[1] <= 30 and waits[2] == 2
    assert len(asked) == 4


def test_the_last_refusal_is_the_error(scripted):
    url, asked = scripted(*[(429, {"Retry-After": "0"}, BUSY)] * 3)
    with pytest.raises(Error, match="status 429: busy") as caught:
        Client(url, retries=2, sleep=lambda _: None).rerank("q", ["a"])
    assert caught.value.status == 429 and len(asked) == 3


def test_a_wait_beyond_the_timeout_is_an_error_at_once(scripted):
    url, asked = scripted((429, {"Retry-After": "61"}, BUSY))
    with pytest.raises(Error, match="busy"):
        Client(url, timeout=60).rerank("q", ["a"])
    assert len(asked) == 1


@pytest.mark.parametrize("status", [400, 401, 500])
def test_other_errors_are_not_retried(scripted, status):
    url, asked = scripted((status, {}, {"error": {"message": "no"}}))
    with pytest.raises(Error, match=f"status {status}: no"):
        Client(url).rerank("q", ["a"])
    assert len(asked) == 1


def test_a_server_that_is_away_is_tried_again(scripted):
    url, _ = scripted()
    waits = []
    # Nothing listens on port 1 of this machine.
    with pytest.raises(Error, match="cannot be reached") as caught:
        Client("http://127.0.0.1:1", retries=2, sleep=waits.append).rerank("q", ["a"])
    assert waits == [0.5, 1.0] and caught.value.status is None


def test_types_are_checked():
    import mypy.api

    output, _, status = mypy.api.run(["--strict", "--cache-dir=/dev/null", str(ROOT / "python/rerankd")])
    assert status == 0, output
