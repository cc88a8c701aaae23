"""Clients and bodies of other servers, against a causal model: its instruction reaches the prompt."""

import json
import math
import urllib.request

import cohere
import litellm
import pytest
from conftest import DOCUMENTS, QUERY, rank
from instance import ROOT, started

MODEL = ROOT / "tests" / "reference" / "models" / "causal-qwen3"
INSTRUCTION = "Find sentences about food"


@pytest.fixture(scope="module")
def causal():
    server = started("--model", str(MODEL))
    yield server.url
    server.end()


def post(url, **body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def check(results, expected, score="relevance_score", squash=True):
    """Same order, and same scores: some formats have probabilities where the model's own are logits."""
    ranking = [(item["index"], item[score]) for item in results]
    assert [index for index, _ in ranking] == [index for index, _ in expected]
    scores = [1 / (1 + math.exp(-logit)) if squash else logit for _, logit in expected]
    assert [value for _, value in ranking] == pytest.approx(scores, rel=1e-5)


def test_an_instruction_changes_the_scores(causal):
    plain, told = dict(rank(causal)), dict(rank(causal, instruction=INSTRUCTION))
    assert all(abs(plain[index] - told[index]) > 1e-3 for index in plain)


# Its release passes no instruction on, whatever the provider.
@pytest.mark.parametrize("provider", ["hosted_vllm", "cohere", "jina_ai"])
def test_litellm(causal, provider):
    answer = litellm.rerank(
        model=f"{provider}/any-name",
        query=QUERY,
        documents=DOCUMENTS,
        top_n=len(DOCUMENTS),
        api_base=causal,
        api_key="no-key",
        num_retries=0,
    )
    check(answer.results, rank(causal), squash=provider != "hosted_vllm")


def test_cohere(causal):
    client = cohere.ClientV2(api_key="no-key", base_url=causal)
    answer = client.rerank(model="any-name", query=QUERY, documents=DOCUMENTS)
    check([dict(index=item.index, relevance_score=item.relevance_score) for item in answer.results], rank(causal))


def test_bodies_of_tei_and_vllm(causal):
    check(post(f"{causal}/rerank", query=QUERY, texts=DOCUMENTS), rank(causal), "score")
    for path, field in [("/vllm/rerank", "instruction"), ("/rerank", "instruct")]:
        body = dict(query=QUERY, documents=DOCUMENTS, **{field: INSTRUCTION})
        told = rank(causal, instruction=INSTRUCTION)
        check(post(causal + path, **body)["results"], told, squash=False)
