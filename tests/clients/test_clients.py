"""Clients as their users call them: each ranks real documents and meets one error of its own."""

import asyncio

import cohere
import httpx
import infinity_client
import litellm
import mixedbread
import numpy
import pytest
import tritonclient.http
import voyageai
from conftest import DOCUMENTS, QUERY, TOO_MANY
from infinity_client.api.default import rerank as infinity_rerank
from infinity_client.models import RerankInput, ReRankResult
from langchain_cohere import CohereRerank
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.postprocessor.jinaai_rerank import JinaRerank
from llama_index.postprocessor.nvidia_rerank import NVIDIARerank
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

MODEL = "any-name"
KEY = "no-key"
NODES = [NodeWithScore(node=TextNode(text=text)) for text in DOCUMENTS]


def check(expected, ranking):
    """Same order, same scores."""
    ranking = list(ranking)
    assert [index for index, _ in ranking] == [index for index, _ in expected[: len(ranking)]]
    for (_, score), (_, wanted) in zip(ranking, expected):
        assert score == pytest.approx(wanted, abs=1e-6)


def pairs(results):
    return [(result.index, result.relevance_score) for result in results]


# Cohere's own clients.


@pytest.mark.parametrize("client", [cohere.Client, cohere.ClientV2])
def test_cohere(url, expected, client):
    client = client(api_key=KEY, base_url=url)
    answer = client.rerank(model=MODEL, query=QUERY, documents=DOCUMENTS)
    check(expected, pairs(answer.results))
    assert answer.meta.billed_units.search_units == 1
    answer = client.rerank(model=MODEL, query=QUERY, documents=DOCUMENTS, top_n=2)
    assert len(answer.results) == 2
    with pytest.raises(cohere.BadRequestError, match="the limit is 8"):
        client.rerank(model=MODEL, query=QUERY, documents=TOO_MANY)


@pytest.mark.parametrize("client", [cohere.AsyncClient, cohere.AsyncClientV2])
def test_cohere_async(url, expected, client):
    async def ask():
        asked = client(api_key=KEY, base_url=url)
        answer = await asked.rerank(model=MODEL, query=QUERY, documents=DOCUMENTS)
        check(expected, pairs(answer.results))
        with pytest.raises(cohere.BadRequestError, match="the limit is 8"):
            await asked.rerank(model=MODEL, query=QUERY, documents=TOO_MANY)

    asyncio.run(ask())


def test_cohere_v1_objects(url, expected):
    client = cohere.Client(api_key=KEY, base_url=url)
    documents = [{"title": text, "number": str(n)} for n, text in enumerate(DOCUMENTS)]
    answer = client.rerank(
        query=QUERY, documents=documents, rank_fields=["title"], return_documents=True
    )
    check(expected, pairs(answer.results))
    best = answer.results[0]
    assert best.document.dict()["number"] == str(best.index)


def test_langchain_cohere(url, expected):
    ranker = CohereRerank(base_url=url, cohere_api_key=KEY, model=MODEL, top_n=3)
    documents = [Document(page_content=text) for text in DOCUMENTS]
    ranked = ranker.compress_documents(documents, QUERY)
    found = [
        (DOCUMENTS.index(document.page_content), document.metadata["relevance_score"])
        for document in ranked
    ]
    assert len(found) == 3
    check(expected, found)
    with pytest.raises(cohere.BadRequestError, match="the limit is 8"):
        ranker.rerank(TOO_MANY, QUERY)


# LiteLLM, one provider after the other.

PROVIDERS = {
    "cohere": "",
    "jina_ai": "",
    "infinity": "/infinity",
    "hosted_vllm": "",
    "huggingface": "",
}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_litellm(url, expected, provider):
    def ask(documents, **options):
        return litellm.rerank(
            model=f"{provider}/{MODEL}",
            query=QUERY,
            documents=documents,
            api_base=url + PROVIDERS[provider],
            api_key=KEY,
            num_retries=0,
            **options,
        )

    answer = ask(DOCUMENTS, top_n=len(DOCUMENTS))
    check(expected, [(item["index"], item["relevance_score"]) for item in answer.results])
    assert len(ask(DOCUMENTS, top_n=2).results) == 2
    with pytest.raises(Exception, match="the limit is 8") as error:
        ask(TOO_MANY, top_n=1)
    # Whatever the provider, the failure is told apart from one of the network.
    assert error.value.__class__.__module__.startswith("litellm")


# LlamaIndex.


def test_llama_index_tei(url, expected):
    ranker = TextEmbeddingInference(base_url=url, top_n=3)
    ranked = ranker.postprocess_nodes(NODES, QueryBundle(QUERY))
    check(expected, [(DOCUMENTS.index(node.text), node.score) for node in ranked])
    many = [NodeWithScore(node=TextNode(text=text)) for text in TOO_MANY]
    with pytest.raises(Exception):
        ranker.postprocess_nodes(many, QueryBundle(QUERY))


def test_llama_index_jina(url, expected):
    ranker = JinaRerank(base_url=f"{url}/v1", api_key=KEY, model=MODEL, top_n=3)
    ranked = ranker.postprocess_nodes(NODES, QueryBundle(QUERY))
    check(expected, [(DOCUMENTS.index(node.text), node.score) for node in ranked])
    many = [NodeWithScore(node=TextNode(text=text)) for text in TOO_MANY]
    with pytest.raises(RuntimeError, match="the limit is 8"):
        ranker.postprocess_nodes(many, QueryBundle(QUERY))


def test_llama_index_nvidia(url, logits):
    ranker = NVIDIARerank(base_url=f"{url}/v1", api_key=KEY, top_n=3)
    ranked = ranker.postprocess_nodes(NODES, QueryBundle(QUERY))
    check(logits, [(DOCUMENTS.index(node.text), node.score) for node in ranked])
    many = [NodeWithScore(node=TextNode(text=text)) for text in TOO_MANY]
    with pytest.raises(httpx.HTTPStatusError, match="400"):
        ranker.postprocess_nodes(many, QueryBundle(QUERY))


# The Open Inference Protocol.


@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
def test_triton(url, expected, binary):
    client = tritonclient.http.InferenceServerClient(url.removeprefix("http://"))
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready(MODEL)
    described = client.get_model_metadata(MODEL)
    assert [tensor["name"] for tensor in described["inputs"]] == ["query", "documents"]

    def ask(documents):
        inputs = []
        for name, texts in [("query", [QUERY]), ("documents", documents)]:
            tensor = tritonclient.http.InferInput(name, [len(texts)], "BYTES")
            tensor.set_data_from_numpy(numpy.array(texts, dtype=object), binary_data=binary)
            inputs.append(tensor)
        output = tritonclient.http.InferRequestedOutput("scores", binary_data=binary)
        answer = client.infer(MODEL, inputs, request_id="7", outputs=[output])
        assert answer.get_response()["id"] == "7"
        return answer.as_numpy("scores")

    scores = ask(DOCUMENTS)
    assert scores.dtype == numpy.float32
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    check(expected, [(index, float(scores[index])) for index in order])
    with pytest.raises(tritonclient.utils.InferenceServerException, match="the limit is 8"):
        ask(TOO_MANY)


# Voyage, Mixedbread, infinity.


def test_voyageai(url, expected):
    client = voyageai.Client(api_key=KEY, base_url=f"{url}/v1")
    answer = client.rerank(QUERY, DOCUMENTS, model=MODEL)
    check(expected, pairs(answer.results))
    assert answer.total_tokens > 0
    assert len(client.rerank(QUERY, DOCUMENTS, model=MODEL, top_k=2).results) == 2
    with pytest.raises(voyageai.error.InvalidRequestError, match="the limit is 8"):
        client.rerank(QUERY, TOO_MANY, model=MODEL)


def test_mixedbread(url, expected):
    client = mixedbread.Mixedbread(api_key=KEY, base_url=url)
    answer = client.rerank(model=MODEL, query=QUERY, input=DOCUMENTS, return_input=True)
    check(expected, [(item.index, item.score) for item in answer.data])
    assert answer.data[0].input == DOCUMENTS[answer.data[0].index]
    with pytest.raises(mixedbread.BadRequestError, match="the limit is 8"):
        client.rerank(model=MODEL, query=QUERY, input=TOO_MANY)


def test_infinity_client(url, expected):
    client = infinity_client.Client(base_url=url, raise_on_unexpected_status=True)
    with client as client:
        body = RerankInput(query=QUERY, documents=DOCUMENTS, return_documents=True)
        answer = infinity_rerank.sync(client=client, body=body)
        assert isinstance(answer, ReRankResult)
        check(expected, pairs(answer.results))
        assert answer.results[0].document == DOCUMENTS[answer.results[0].index]
        body = RerankInput(query=QUERY, documents=TOO_MANY)
        with pytest.raises(infinity_client.errors.UnexpectedStatus, match="the limit is 8"):
            infinity_rerank.sync(client=client, body=body)
