"""Clients of gRPC: Triton's, and grpcio with messages made here from the published numbers of their fields."""

import grpc
import numpy
import pytest
import tritonclient.grpc
from conftest import DOCUMENTS, MAX_DOCUMENTS, QUERY, TOO_MANY, check, started
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

TYPES = {"string": Field.TYPE_STRING, "bool": Field.TYPE_BOOL, "float": Field.TYPE_FLOAT}
TYPES |= {"uint32": Field.TYPE_UINT32}
# As Text Embeddings Inference publishes them; a list has its type in brackets.
TEI = {
    "RerankRequest": {1: ("query", "string"), 2: ("texts", ["string"]), 3: ("truncate", "bool")}
    | {4: ("raw_scores", "bool"), 5: ("return_text", "bool")},
    "RerankStreamRequest": {1: ("query", "string"), 2: ("text", "string"), 3: ("truncate", "bool")}
    | {4: ("raw_scores", "bool"), 5: ("return_text", "bool")},
    "Rank": {1: ("index", "uint32"), 2: ("text", "string"), 3: ("score", "float")},
    "RerankResponse": {1: ("ranks", ["Rank"])},
    "PredictPairRequest": {1: ("inputs", ["string"]), 2: ("truncate", "bool")},
    "Prediction": {1: ("score", "float"), 2: ("label", "string")},
    "PredictResponse": {1: ("predictions", ["Prediction"])},
    "EncodeRequest": {1: ("inputs", "string"), 2: ("add_special_tokens", "bool")},
    "SimpleToken": {1: ("id", "uint32"), 2: ("text", "string"), 3: ("special", "bool")},
    "EncodeResponse": {1: ("tokens", ["SimpleToken"])},
    "DecodeRequest": {1: ("ids", ["uint32"]), 2: ("skip_special_tokens", "bool")},
    "DecodeResponse": {1: ("text", "string")},
}


def messages(package, definitions):
    """A class for each definition."""
    file = descriptor_pb2.FileDescriptorProto(name="test.proto", package=package, syntax="proto3")
    for name, fields in definitions.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in fields.items():
            label = Field.LABEL_REPEATED if isinstance(kind, list) else Field.LABEL_OPTIONAL
            kind = kind[0] if isinstance(kind, list) else kind
            added = message.field.add(name=field, number=number, label=label)
            added.type = TYPES.get(kind, Field.TYPE_MESSAGE)
            if kind not in TYPES:
                added.type_name = f".{package}.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    find = pool.FindMessageTypeByName
    return {
        name: message_factory.GetMessageClass(find(f"{package}.{name}")) for name in definitions
    }


T = messages("tei.v1", TEI)


@pytest.fixture(scope="module")
def address(url):
    return url.removeprefix("http://")


@pytest.fixture(scope="module")
def channel(address):
    with grpc.insecure_channel(address) as channel:
        yield channel


def method(channel, kind, path, request, response):
    return getattr(channel, kind)(
        path,
        request_serializer=T[request].SerializeToString,
        response_deserializer=T[response].FromString,
    )


@pytest.fixture(scope="module")
def rerank(channel):
    return method(
        channel, "unary_unary", "/tei.v1.Rerank/Rerank", "RerankRequest", "RerankResponse"
    )


def request(texts, **options):
    return T["RerankRequest"](query=QUERY, texts=texts, truncate=True, **options)


def pairs(response):
    return [(rank.index, rank.score) for rank in response.ranks]


# Text Embeddings Inference.


@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip])
def test_rerank(rerank, logits, compression):
    response = rerank(request(DOCUMENTS, raw_scores=True), compression=compression)
    check(logits, pairs(response))
    best = rerank(request(DOCUMENTS, return_text=True)).ranks[0]
    assert best.text == DOCUMENTS[logits[0][0]] and 0 < best.score < 1


def test_rerank_stream(channel, logits):
    path = "/tei.v1.Rerank/RerankStream"
    call = method(channel, "stream_unary", path, "RerankStreamRequest", "RerankResponse")
    one = T["RerankStreamRequest"]
    texts = (one(query=QUERY, text=text, truncate=True, raw_scores=True) for text in DOCUMENTS)
    check(logits, pairs(call(texts)))


def test_predict_pair_stream(channel, rerank):
    """Far more messages than the server reads ahead, in their order."""
    path = "/tei.v1.Predict/PredictPairStream"
    call = method(channel, "stream_stream", path, "PredictPairRequest", "PredictResponse")
    one = T["PredictPairRequest"]
    texts = DOCUMENTS * 40
    answers = call(one(inputs=[QUERY, text], truncate=True) for text in texts)
    scores = [answer.predictions[0].score for answer in answers]
    expected = dict(pairs(rerank(request(DOCUMENTS))))
    assert scores == pytest.approx([expected[n % len(DOCUMENTS)] for n in range(len(texts))], abs=1e-6)


def test_tokens(channel):
    encode = method(
        channel, "unary_unary", "/tei.v1.Tokenize/Tokenize", "EncodeRequest", "EncodeResponse"
    )
    decode = method(
        channel, "unary_unary", "/tei.v1.Tokenize/Decode", "DecodeRequest", "DecodeResponse"
    )
    tokens = encode(T["EncodeRequest"](inputs="hello world", add_special_tokens=True)).tokens
    assert tokens[0].special and not tokens[1].special
    ids = [token.id for token in tokens]
    assert decode(T["DecodeRequest"](ids=ids, skip_special_tokens=True)).text == "hello world"


def test_errors(rerank, channel):
    with pytest.raises(grpc.RpcError) as refused:
        rerank(request(TOO_MANY))
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    expected = f"`texts` has {len(TOO_MANY)} items; the limit is {MAX_DOCUMENTS}"
    assert refused.value.details() == expected
    embed = method(
        channel, "unary_unary", "/tei.v1.Embed/Embed", "EncodeRequest", "EncodeResponse"
    )
    with pytest.raises(grpc.RpcError) as missing:
        embed(T["EncodeRequest"](inputs="hello"))
    assert missing.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_keys():
    server = started(RERANKD_API_KEYS="a-key-of-somebody")
    try:
        with grpc.insecure_channel(server.url.removeprefix("http://")) as channel:
            path = "/tei.v1.Rerank/Rerank"
            rerank = method(channel, "unary_unary", path, "RerankRequest", "RerankResponse")
            with pytest.raises(grpc.RpcError) as refused:
                rerank(request(DOCUMENTS))
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
            key = [("authorization", "Bearer a-key-of-somebody")]
            assert len(rerank(request(DOCUMENTS), metadata=key).ranks) == len(DOCUMENTS)
    finally:
        server.end()


# KServe and Triton.


def test_triton(address, expected):
    client = tritonclient.grpc.InferenceServerClient(address)
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("any-name")
    assert client.get_server_metadata().name == "rerankd"
    described = client.get_model_metadata("any-name")
    assert [tensor.name for tensor in described.inputs] == ["query", "documents"]

    def ask(documents):
        inputs = []
        for name, texts in [("query", [QUERY]), ("documents", documents)]:
            tensor = tritonclient.grpc.InferInput(name, [len(texts)], "BYTES")
            tensor.set_data_from_numpy(numpy.array(texts, dtype=object))
            inputs.append(tensor)
        outputs = [tritonclient.grpc.InferRequestedOutput("scores")]
        answer = client.infer("any-name", inputs, request_id="7", outputs=outputs)
        assert answer.get_response().id == "7"
        return answer.as_numpy("scores")

    scores = ask(DOCUMENTS)
    assert scores.dtype == numpy.float32 and scores.shape == (len(DOCUMENTS),)
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    check(expected, [(index, float(scores[index])) for index in order])
    with pytest.raises(tritonclient.utils.InferenceServerException, match="the limit is 8"):
        ask(TOO_MANY)


# Health and reflection.


def test_health(channel):
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ["", "tei.v1.Rerank", "inference.GRPCInferenceService"]:
        asked = health_pb2.HealthCheckRequest(service=service)
        assert stub.Check(asked).status == health_pb2.HealthCheckResponse.SERVING
    watch = stub.Watch(health_pb2.HealthCheckRequest())
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()
    with pytest.raises(grpc.RpcError) as unknown:
        stub.Check(health_pb2.HealthCheckRequest(service="tei.v1.Embed"))
    assert unknown.value.code() == grpc.StatusCode.NOT_FOUND


def test_reflection(channel, expected):
    """A client that knows nothing asks for the services, then calls one."""
    database = ProtoReflectionDescriptorDatabase(channel)
    assert "tei.v1.Rerank" in database.get_services()
    pool = descriptor_pool.DescriptorPool(database)
    found = pool.FindServiceByName("tei.v1.Rerank").FindMethodByName("Rerank")
    asked = message_factory.GetMessageClass(found.input_type)
    answered = message_factory.GetMessageClass(found.output_type)
    call = channel.unary_unary(
        "/tei.v1.Rerank/Rerank",
        request_serializer=asked.SerializeToString,
        response_deserializer=answered.FromString,
    )
    response = call(asked(query=QUERY, texts=DOCUMENTS, truncate=True))
    assert [rank.index for rank in response.ranks] == [index for index, _ in expected]
    assert response.metadata.compute_tokens > 0
