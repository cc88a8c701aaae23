"""The real server with its embedded model, started once for all clients."""

import json
import pathlib
import sys
import urllib.request

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "support"))
from instance import ROOT, TARGET, started  # noqa: E402, F401

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


@pytest.fixture(scope="session")
def url():
    server = started("--max-documents", str(MAX_DOCUMENTS))
    yield server.url
    server.end()


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


def check(expected, ranking):
    """Same order, same scores."""
    ranking = list(ranking)
    assert [index for index, _ in ranking] == [index for index, _ in expected[: len(ranking)]]
    for (_, score), (_, wanted) in zip(ranking, expected):
        assert score == pytest.approx(wanted, abs=1e-6)
