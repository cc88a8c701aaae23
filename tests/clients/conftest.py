"""The real server with its embedded model, started once for all clients."""

import json
import os
import pathlib
import socket
import subprocess
import time
import urllib.error
import urllib.request

import pytest

ROOT = pathlib.Path(__file__).parents[2]
QUERY = "A man is eating food."
DOCUMENTS = [
    "A monkey is playing the drums.",
    "A man is eating a piece of bread.",
    "The girl is carrying a baby.",
    "Somebody eats a meal.",
    "Two men pushed carts through the woods.",
]
# Fewer than a client would send by accident, so that one can be sent too many.
MAX_DOCUMENTS = 8
TOO_MANY = [f"Document {number}." for number in range(MAX_DOCUMENTS + 1)]


def binary() -> str:
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return os.environ.get("RERANKD_BIN", str(target / "debug" / "rerankd"))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(*flags: str) -> tuple[subprocess.Popen, str]:
    address = f"127.0.0.1:{free_port()}"
    library = ROOT / "target" / "onnxruntime" / "libonnxruntime.so"
    # The name of the binary is no setting of the server.
    given = {name: value for name, value in os.environ.items() if name != "RERANKD_BIN"}
    environment = {"ORT_DYLIB_PATH": str(library), **given}
    server = subprocess.Popen(
        [binary(), "serve", "--listen", address, *flags], env=environment
    )
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


@pytest.fixture(scope="session")
def url():
    server, address = start("--max-documents", str(MAX_DOCUMENTS))
    yield address
    server.terminate()
    assert server.wait(60) == 0


def rank(url: str, **options) -> list[tuple[int, float]]:
    """Positions and scores as the server's own format tells them, best first."""
    body = json.dumps({"query": QUERY, "documents": DOCUMENTS, **options}).encode()
    with urllib.request.urlopen(f"{url}/rerank", data=body) as answer:
        results = json.load(answer)["results"]
    return [(result["index"], result["relevance_score"]) for result in results]


@pytest.fixture(scope="session")
def expected(url):
    ranking = rank(url)
    # What is expected must be able to show a wrong order.
    assert ranking[0][0] in (1, 3) and ranking[0][1] > ranking[-1][1] + 0.1
    return ranking


@pytest.fixture(scope="session")
def logits(url):
    return rank(url, raw_scores=True)
