"""Clients of other services choose between several models by the name that they send."""

import json
import urllib.request

import cohere
import litellm
import numpy
import pytest
import tritonclient.http
import voyageai
from conftest import DOCUMENTS, QUERY, check, rank
from instance import ROOT, started

KEY = "no-key"
SMALL = ROOT / "tests" / "reference" / "models" / "tiny-bert"


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    file = tmp_path_factory.mktemp("models") / "rerankd.toml"
    # The first is the built-in one.
    file.write_text(
        f"""
        strict_model_name = true

        [[models]]
        name = "large"
        aliases = ["rerank-english-v3.0"]

        [[models]]
        name = "small"
        source = "{SMALL}"
        aliases = ["small-too"]
        """
    )
    server = started("--config", str(file))
    yield server.url
    server.end()


@pytest.fixture(scope="module", params=["large", "small"])
def model(request, url):
    """A name, an alias of it, and the ranking of that model."""
    alias = {"large": "rerank-english-v3.0", "small": "small-too"}[request.param]
    return request.param, alias, rank(url, model=request.param)


def test_models_differ(url):
    large, small = dict(rank(url, model="large")), dict(rank(url, model="small"))
    assert dict(rank(url)) == large
    assert all(abs(large[index] - small[index]) > 1e-3 for index in large)


def test_cohere(url, model):
    client = cohere.ClientV2(api_key=KEY, base_url=url)
    for name in model[:2]:
        answer = client.rerank(model=name, query=QUERY, documents=DOCUMENTS)
        check(model[2], [(item.index, item.relevance_score) for item in answer.results])
    with pytest.raises(cohere.NotFoundError, match="ask for `large`, `small`"):
        client.rerank(model="other", query=QUERY, documents=DOCUMENTS)


def test_litellm(url, model):
    answer = litellm.rerank(
        model=f"jina_ai/{model[0]}", query=QUERY, documents=DOCUMENTS, api_base=url, api_key=KEY, num_retries=0
    )
    check(model[2], [(item["index"], item["relevance_score"]) for item in answer.results])


def test_voyageai(url, model):
    client = voyageai.Client(api_key=KEY, base_url=f"{url}/voyage/v1")
    answer = client.rerank(QUERY, DOCUMENTS, model=model[1])
    check(model[2], [(item.index, item.relevance_score) for item in answer.results])


def test_triton(url, model):
    client = tritonclient.http.InferenceServerClient(url.removeprefix("http://"))
    assert client.is_model_ready(model[0]) and not client.is_model_ready("other")
    inputs = []
    for name, texts in [("query", [QUERY]), ("documents", DOCUMENTS)]:
        tensor = tritonclient.http.InferInput(name, [len(texts)], "BYTES")
        tensor.set_data_from_numpy(numpy.array(texts, dtype=object))
        inputs.append(tensor)
    scores = client.infer(model[0], inputs).as_numpy("scores")
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    check(model[2], [(index, float(scores[index])) for index in order])


def test_models_are_listed(url):
    with urllib.request.urlopen(f"{url}/v1/models") as answer:
        assert [model["id"] for model in json.load(answer)["data"]] == ["large", "small"]
