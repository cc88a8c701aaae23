"""Clients as their users call them: each ranks real documents and meets one error of its own."""

import asyncio

import cohere
import dashscope
import haystack
import httpx
import infinity_client
import litellm
import mixedbread
import numpy
import pinecone
import pytest
import tritonclient.http
import voyageai
import xinference_client
import zeroentropy
from conftest import DOCUMENTS, QUERY, TOO_MANY, check
from haystack_integrations.components.rankers.cohere import CohereRanker as HaystackCohere
from haystack_integrations.components.rankers.jina import JinaRanker as HaystackJina
from infinity_client.api.default import rerank as infinity_rerank
from infinity_client.models import RerankInput, ReRankResult
from langchain_cohere import CohereRerank
from langchain_core.documents import Document
from langchain_nvidia_ai_endpoints import NVIDIARerank as LangChainNvidia
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.postprocessor.jinaai_rerank import JinaRerank
from llama_index.postprocessor.nvidia_rerank import NVIDIARerank
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference
from rerankers.models.api_rankers import APIRanker

MODEL = "any-name"
KEY = "no-key"
NODES = [NodeWithScore(node=TextNode(text=text)) for text in DOCUMENTS]


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
    "voyage": "/voyage/v1",
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


def test_litellm_voyage_at_the_plain_url(url, expected):
    """Its body has none of Voyage's keys unless it asks for so many."""
    for options in [{}, {"top_n": 2}]:
        answer = litellm.rerank(
            model=f"voyage/{MODEL}",
            query=QUERY,
            documents=DOCUMENTS,
            api_base=f"{url}/v1",
            api_key=KEY,
            **options,
        )
        results = answer.results
        assert len(results) == options.get("top_n", len(DOCUMENTS))
        check(expected, [(item["index"], item["relevance_score"]) for item in results])


def test_litellm_nvidia(url, logits):
    answer = litellm.rerank(
        model=f"nvidia_nim/{MODEL}",
        query=QUERY,
        documents=DOCUMENTS,
        api_base=url,
        api_key=KEY,
    )
    check(logits, [(item["index"], item["relevance_score"]) for item in answer.results])


def test_litellm_deepinfra(url, expected):
    def ask(documents):
        return litellm.rerank(
            model=f"deepinfra/{MODEL}",
            query=QUERY,
            documents=documents,
            api_base=f"{url}/v1",
            api_key=KEY,
            num_retries=0,
        )

    scores = [(item["index"], item["relevance_score"]) for item in ask(DOCUMENTS).results]
    assert [index for index, _ in scores] == list(range(len(DOCUMENTS)))
    check(expected, sorted(scores, key=lambda item: -item[1]))
    with pytest.raises(Exception, match="the limit is 8"):
        ask(TOO_MANY)


# Haystack.


def test_haystack_cohere(url, expected, monkeypatch):
    monkeypatch.setenv("CO_API_KEY", KEY)
    ranker = HaystackCohere(model=MODEL, api_base_url=url, top_k=3)
    documents = [haystack.Document(content=text) for text in DOCUMENTS]
    ranked = ranker.run(query=QUERY, documents=documents)["documents"]
    assert len(ranked) == 3
    check(expected, [(DOCUMENTS.index(item.content), item.score) for item in ranked])
    many = [haystack.Document(content=text) for text in TOO_MANY]
    with pytest.raises(cohere.BadRequestError, match="the limit is 8"):
        ranker.run(query=QUERY, documents=many)


def test_haystack_jina(url, expected, monkeypatch):
    monkeypatch.setenv("JINA_API_KEY", KEY)
    ranker = HaystackJina(model=MODEL, base_url=f"{url}/v1/rerank")
    documents = [haystack.Document(content=text) for text in DOCUMENTS]
    ranked = ranker.run(query=QUERY, documents=documents)["documents"]
    check(expected, [(DOCUMENTS.index(item.content), item.score) for item in ranked])
    many = [haystack.Document(content=text) for text in TOO_MANY]
    with pytest.raises(Exception, match="the limit is 8"):
        ranker.run(query=QUERY, documents=many)


# LangChain for NVIDIA.


def test_langchain_nvidia(url, logits):
    ranker = LangChainNvidia(base_url=f"{url}/v1", model=MODEL, api_key=KEY, top_n=3)
    documents = [Document(page_content=text) for text in DOCUMENTS]
    ranked = ranker.compress_documents(documents, QUERY)
    found = [
        (DOCUMENTS.index(document.page_content), document.metadata["relevance_score"])
        for document in ranked
    ]
    assert len(found) == 3
    check(logits, found)


# `rerankers`, whose providers are bodies of one client.

RERANKERS = {
    "cohere": "/v1/rerank",
    "jina": "/v1/rerank",
    "voyage": "/v1/rerank",
    "mixedbread.ai": "/v1/reranking",
    "pinecone": "/rerank",
    "text-embeddings-inference": "/rerank",
}


@pytest.mark.parametrize("provider", RERANKERS)
def test_rerankers(url, expected, provider):
    ranker = APIRanker(MODEL, KEY, provider, url=url + RERANKERS[provider])
    ranked = ranker.rank(QUERY, DOCUMENTS)
    check(expected, [(DOCUMENTS.index(item.document.text), item.score) for item in ranked])


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


# Pinecone, DashScope, ZeroEntropy, Xinference.


def test_pinecone(url, expected):
    client = pinecone.Pinecone(api_key=KEY, host=url)
    answer = client.inference.rerank(model=MODEL, query=QUERY, documents=DOCUMENTS)
    check(expected, [(item.index, item.score) for item in answer.data])
    assert answer.data[0].document["text"] == DOCUMENTS[answer.data[0].index]
    assert answer.usage.rerank_units == 1
    documents = [{"id": str(n), "title": text} for n, text in enumerate(DOCUMENTS)]
    answer = client.inference.rerank(
        model=MODEL, query=QUERY, documents=documents, rank_fields=["title"], top_n=2
    )
    check(expected, [(int(item.document["id"]), item.score) for item in answer.data])
    with pytest.raises(pinecone.errors.exceptions.ApiError, match="the limit is 8"):
        client.inference.rerank(model=MODEL, query=QUERY, documents=TOO_MANY)


def test_dashscope(url, expected, monkeypatch):
    monkeypatch.setattr(dashscope, "base_http_api_url", f"{url}/api/v1")

    def ask(documents, **options):
        return dashscope.TextReRank.call(
            model=MODEL, query=QUERY, documents=documents, api_key=KEY, **options
        )

    answer = ask(DOCUMENTS, return_documents=True)
    assert answer.status_code == 200
    check(expected, pairs(answer.output.results))
    best = answer.output.results[0]
    # The attribute of this name is the default of its class.
    assert best["document"]["text"] == DOCUMENTS[best.index]
    assert answer.usage.total_tokens > 0
    assert len(ask(DOCUMENTS, top_n=2).output.results) == 2
    refused = ask(TOO_MANY)
    assert (refused.status_code, refused.code) == (400, "InvalidParameter")
    assert "the limit is 8" in refused.message


def test_zeroentropy(url, expected):
    client = zeroentropy.ZeroEntropy(api_key=KEY, base_url=f"{url}/v1")
    answer = client.models.rerank(model=MODEL, query=QUERY, documents=DOCUMENTS)
    check(expected, pairs(answer.results))
    assert answer.total_tokens > 0
    answer = client.models.rerank(model=MODEL, query=QUERY, documents=DOCUMENTS, top_n=2)
    assert len(answer.results) == 2
    with pytest.raises(zeroentropy.BadRequestError, match="the limit is 8"):
        client.models.rerank(model=MODEL, query=QUERY, documents=TOO_MANY)


def test_xinference(url, expected):
    model = xinference_client.RESTfulClient(url).get_model(MODEL)
    answer = model.rerank(DOCUMENTS, QUERY, return_documents=True, return_len=True)
    found = [(item["index"], item["relevance_score"]) for item in answer["results"]]
    check(expected, found)
    assert answer["results"][0]["document"]["text"] == DOCUMENTS[found[0][0]]
    assert answer["meta"]["tokens"]["input_tokens"] > 0
    assert model.rerank(DOCUMENTS, QUERY, top_n=1)["results"][0]["document"] is None
    with pytest.raises(RuntimeError, match="the limit is 8"):
        model.rerank(TOO_MANY, QUERY)
