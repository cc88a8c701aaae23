//! gRPC: methods, statuses, streams and what they share with HTTP.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::connections;
use crate::http::Lines;
use crate::support::fake::{Gate, MAX_LENGTH, Model};
use crate::support::server::{Server, TestApp};
use axum::body::{Body, Bytes};
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, Request as HttpRequest, Version};
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::stream::{self, Stream, StreamExt};
use http_body_util::BodyExt;
use prost::Message;
use rerankd::config::{ApiKeys, Config, PathPrefix, Value as _};
use rerankd::http::state::AppState;
use rerankd::shutdown::{Phase, Stopped};
use rerankd_grpc::METHODS;
use rerankd_grpc::frame::framed;
use rerankd_grpc::proto::health::health_check_response::ServingStatus;
use rerankd_grpc::proto::health::{HealthCheckRequest, HealthCheckResponse};
use rerankd_grpc::proto::inference::infer_parameter::ParameterChoice;
use rerankd_grpc::proto::inference::model_infer_request::{
    InferInputTensor, InferRequestedOutputTensor,
};
use rerankd_grpc::proto::inference::{
    InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse,
    ModelMetadataRequest, ModelMetadataResponse, ModelReadyRequest, ModelReadyResponse,
    ServerLiveRequest, ServerLiveResponse, ServerMetadataRequest, ServerMetadataResponse,
    ServerReadyRequest, ServerReadyResponse,
};
use rerankd_grpc::proto::tei::{
    DecodeRequest, DecodeResponse, EncodeRequest, EncodeResponse, InfoRequest, InfoResponse,
    ModelType, PredictPairRequest, PredictRequest, PredictResponse, Rank, RerankRequest,
    RerankResponse, RerankStreamRequest,
};
use tonic::client::Grpc;
use tonic::codec::CompressionEncoding;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, IntoRequest, Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};
use tonic_types::StatusExt;

const RERANK: &str = "/tei.v1.Rerank/Rerank";
const RERANK_STREAM: &str = "/tei.v1.Rerank/RerankStream";
const PREDICT_PAIR: &str = "/tei.v1.Predict/PredictPair";
const PREDICT_PAIR_STREAM: &str = "/tei.v1.Predict/PredictPairStream";
const TOKENIZE: &str = "/tei.v1.Tokenize/Tokenize";
const DECODE: &str = "/tei.v1.Tokenize/Decode";
const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";
const CHECK: &str = "/grpc.health.v1.Health/Check";
const WATCH: &str = "/grpc.health.v1.Health/Watch";

/// A client on a connection of its own.
struct Client(Grpc<Channel>);

impl Client {
    async fn of(server: &Server) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{}", server.address)).unwrap();
        Self(Grpc::new(endpoint.connect().await.unwrap()))
    }

    async fn call<Req, Res>(
        &mut self,
        path: &'static str,
        request: impl IntoRequest<Req>,
    ) -> Result<Response<Res>, Status>
    where
        Req: Message + Send + Sync + 'static,
        Res: Message + Default + Send + Sync + 'static,
    {
        self.0.ready().await.unwrap();
        let path = PathAndQuery::from_static(path);
        let request = request.into_request();
        self.0.unary(request, path, ProstCodec::default()).await
    }

    async fn stream<Req, Res>(
        &mut self,
        path: &'static str,
        messages: impl Stream<Item = Req> + Send + 'static,
    ) -> Result<Streaming<Res>, Status>
    where
        Req: Message + Send + Sync + 'static,
        Res: Message + Default + Send + Sync + 'static,
    {
        self.0.ready().await.unwrap();
        let path = PathAndQuery::from_static(path);
        let answer = self
            .0
            .streaming(Request::new(messages), path, ProstCodec::default())
            .await;
        answer.map(Response::into_inner)
    }

    async fn rerank(
        &mut self,
        request: impl IntoRequest<RerankRequest>,
    ) -> Result<RerankResponse, Status> {
        self.call(RERANK, request).await.map(Response::into_inner)
    }
}

async fn started(config: Config) -> (Server, Client) {
    let server = Server::start(Model::default(), config).await;
    let client = Client::of(&server).await;
    (server, client)
}

fn rerank(texts: &[&str]) -> RerankRequest {
    RerankRequest {
        query: "q".into(),
        texts: texts.iter().map(|&text| text.into()).collect(),
        truncate: true,
        raw_scores: true,
        ..RerankRequest::default()
    }
}

fn pair(text: &str) -> PredictPairRequest {
    PredictPairRequest {
        inputs: vec!["q".into(), text.into()],
        truncate: true,
        raw_scores: true,
        ..PredictPairRequest::default()
    }
}

fn ranks(response: &RerankResponse) -> Vec<(u32, f32)> {
    let ranks = response.ranks.iter();
    ranks.map(|rank| (rank.index, rank.score)).collect()
}

// Methods.

#[tokio::test]
async fn rerank_gives_what_it_gives_over_http() {
    let (server, mut client) = started(Config::default()).await;
    let texts = ["a", "a b c", "a b"];
    let response = client.rerank(rerank(&texts)).await.unwrap();
    assert_eq!(ranks(&response), [(1, 3.0), (2, 2.0), (0, 1.0)]);
    let metadata = response.metadata.unwrap();
    let body = r#"{"query":"q","documents":["a","a b c","a b"]}"#;
    let usage = server.request("POST", "/rerank", body).await.json()["usage"].clone();
    assert_eq!(usage["total_tokens"], metadata.compute_tokens);
    assert_eq!(metadata.compute_chars, 3 + 1 + 5 + 3);
    let steps = metadata.tokenization_time_ns + metadata.queue_time_ns + metadata.inference_time_ns;
    assert!(steps > 0 && metadata.total_time_ns >= steps, "{metadata:?}");
    let with_text = RerankRequest {
        return_text: true,
        raw_scores: false,
        ..rerank(&texts)
    };
    let response = client.rerank(with_text).await.unwrap();
    assert_eq!(response.ranks[0].text.as_deref(), Some("a b c"));
    assert!(response.ranks.iter().all(|rank: &Rank| rank.score < 1.0));
}

#[tokio::test]
async fn a_ranking_may_come_in_many_messages() {
    let (_server, mut client) = started(Config::default()).await;
    let message = |text: &str| RerankStreamRequest {
        query: "q".into(),
        text: text.into(),
        truncate: true,
        raw_scores: true,
        ..RerankStreamRequest::default()
    };
    let mut call = async |messages: Vec<RerankStreamRequest>| {
        client.0.ready().await.unwrap();
        let path = PathAndQuery::from_static(RERANK_STREAM);
        let request = Request::new(stream::iter(messages));
        let codec = ProstCodec::<_, RerankResponse>::default();
        client.0.client_streaming(request, path, codec).await
    };
    let messages = ["a", "a b c", "a b"].map(message).to_vec();
    let response = call(messages).await.unwrap().into_inner();
    assert_eq!(ranks(&response), [(1, 3.0), (2, 2.0), (0, 1.0)]);
    let other = RerankStreamRequest {
        query: "another".into(),
        ..message("b")
    };
    let error = call(vec![message("a"), other]).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("differ in `query`"), "{error}");
    let error = call(Vec::new()).await.unwrap_err();
    assert_eq!(error.message(), "`texts` is empty; send at least one item");
}

#[tokio::test]
async fn every_label_of_a_pair_is_predicted() {
    let model = Model {
        labels: 2,
        ..Model::default()
    };
    let server = Server::start(model, Config::default()).await;
    let mut client = Client::of(&server).await;
    let response: PredictResponse = client
        .call(PREDICT_PAIR, pair("a b"))
        .await
        .unwrap()
        .into_inner();
    let scores: Vec<f32> = response.predictions.iter().map(|p| p.score).collect();
    assert_eq!(scores, [3.0, 2.0]);
    assert_ne!(response.predictions[0].label, response.predictions[1].label);
    let error = client.rerank(rerank(&["a"])).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    let info: InfoResponse = client
        .call("/tei.v1.Info/Info", InfoRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(info.model_type(), ModelType::Classifier);
    assert_eq!(info.max_input_length as usize, MAX_LENGTH);
}

#[tokio::test]
async fn tokens_are_shown_as_over_http() {
    let (server, mut client) = started(Config::default()).await;
    let request = EncodeRequest {
        inputs: "hello world".into(),
        add_special_tokens: true,
        prompt_name: None,
    };
    let encoded: EncodeResponse = client.call(TOKENIZE, request).await.unwrap().into_inner();
    assert!(encoded.tokens[0].special && encoded.tokens[0].start.is_none());
    assert_eq!(encoded.tokens[1].start, Some(0));
    let ids: Vec<u32> = encoded.tokens.iter().map(|token| token.id).collect();
    let body = format!(r#"{{"ids":{ids:?},"skip_special_tokens":false}}"#);
    let over_http = server.request("POST", "/decode", &body).await.json();
    let request = DecodeRequest {
        ids,
        skip_special_tokens: false,
    };
    let decoded: DecodeResponse = client.call(DECODE, request).await.unwrap().into_inner();
    assert_eq!(over_http, serde_json::json!([decoded.text]));
    let named = EncodeRequest {
        prompt_name: Some("query".into()),
        ..EncodeRequest::default()
    };
    let error = client
        .call::<_, EncodeResponse>(TOKENIZE, named)
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
}

fn tensor(name: &str, texts: &[&str]) -> InferInputTensor {
    InferInputTensor {
        name: name.into(),
        datatype: "BYTES".into(),
        shape: vec![texts.len() as i64],
        contents: Some(InferTensorContents {
            bytes_contents: texts.iter().map(|text| text.as_bytes().to_vec()).collect(),
            ..InferTensorContents::default()
        }),
        ..InferInputTensor::default()
    }
}

fn inference() -> ModelInferRequest {
    ModelInferRequest {
        id: "7".into(),
        inputs: vec![
            tensor("query", &["q"]),
            tensor("documents", &["a", "a b c", "a b"]),
        ],
        ..ModelInferRequest::default()
    }
}

/// The same request with its texts in `raw_input_contents`.
fn raw(mut request: ModelInferRequest) -> ModelInferRequest {
    for tensor in &mut request.inputs {
        let texts = tensor.contents.take().unwrap().bytes_contents;
        let texts = texts.iter().flat_map(|text| {
            let length = u32::try_from(text.len()).unwrap().to_le_bytes();
            [&length, text.as_slice()].concat()
        });
        request.raw_input_contents.push(texts.collect());
    }
    request
}

#[tokio::test]
async fn an_inference_is_answered_in_the_form_that_it_came_in() {
    let (_server, mut client) = started(Config::default()).await;
    let response: ModelInferResponse = client.call(INFER, inference()).await.unwrap().into_inner();
    assert_eq!((&*response.id, &*response.model_name), ("7", "fake"));
    let output = &response.outputs[0];
    assert_eq!((&*output.name, &*output.datatype), ("scores", "FP32"));
    assert_eq!(output.shape, [3]);
    let contents = output.contents.as_ref().unwrap();
    assert_eq!(contents.fp32_contents, [1.0, 3.0, 2.0]);
    assert!(response.raw_output_contents.is_empty());

    let response: ModelInferResponse = client
        .call(INFER, raw(inference()))
        .await
        .unwrap()
        .into_inner();
    assert!(response.outputs[0].contents.is_none());
    let scores = [1.0_f32, 3.0, 2.0].map(f32::to_le_bytes).concat();
    assert_eq!(response.raw_output_contents, [scores]);
}

/// A request for the output of this name.
fn output(name: &str) -> InferRequestedOutputTensor {
    InferRequestedOutputTensor {
        name: name.into(),
        ..InferRequestedOutputTensor::default()
    }
}

#[tokio::test]
async fn an_inference_that_does_not_fit_together_is_refused() {
    let (_server, mut client) = started(Config::default()).await;
    let mut check = async |change: fn(&mut ModelInferRequest), expected: &str| {
        let mut request = inference();
        change(&mut request);
        let error = client
            .call::<_, ModelInferResponse>(INFER, request)
            .await
            .unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains(expected), "{error}");
    };
    assert_eq!(output("scores").name, "scores");
    check(|r| r.inputs[1].shape = vec![2], "`shape`").await;
    check(|r| r.inputs[1].shape = vec![-3], "`shape`").await;
    check(|r| r.inputs[1].shape = vec![i64::MAX, 3], "`shape`").await;
    check(|r| r.inputs[0].datatype = "INT64".into(), "datatype").await;
    check(|r| r.inputs[0].contents = None, "`query` has no `contents`").await;
    check(|r| r.inputs[0].name = "texts".into(), "another name").await;
    check(|r| r.inputs[0].name = "documents".into(), "two tensors").await;
    check(|r| drop(r.inputs.remove(0)), "no tensor `query`").await;
    check(|r| r.inputs[1] = tensor("documents", &[]), "is empty").await;
    let not_text = |r: &mut ModelInferRequest| {
        let contents = r.inputs[1].contents.as_mut().unwrap();
        contents.bytes_contents[2] = vec![0xff];
    };
    check(not_text, "`bytes_contents[2]` is not UTF-8").await;
    let breaks_off = |r: &mut ModelInferRequest| {
        *r = raw(r.clone());
        r.raw_input_contents[1].pop();
    };
    check(breaks_off, "breaks off inside a text").await;
    let too_few = |r: &mut ModelInferRequest| {
        *r = raw(r.clone());
        r.raw_input_contents.pop();
    };
    check(too_few, "`raw_input_contents` has 1 items and `inputs` 2").await;
    let both = |r: &mut ModelInferRequest| r.raw_input_contents = vec![Vec::new(); 2];
    check(both, "both `contents` and `raw_input_contents`").await;
    let other_output = |r: &mut ModelInferRequest| {
        r.outputs = vec![output("logits")];
    };
    check(other_output, "`outputs` names").await;
    let no_flag = |r: &mut ModelInferRequest| {
        let parameter_choice = Some(ParameterChoice::Int64Param(1));
        let parameter = InferParameter { parameter_choice };
        r.parameters.insert("raw_scores".into(), parameter);
    };
    check(no_flag, "`parameters.raw_scores`").await;
    let mut request = inference();
    request.outputs = vec![output("scores")];
    let response = client.call::<_, ModelInferResponse>(INFER, request).await;
    assert_eq!(response.unwrap().into_inner().outputs[0].name, "scores");
}

#[tokio::test]
async fn the_open_inference_protocol_describes_server_and_model() {
    let mut config = Config::default();
    config.http.strict_model_name = true;
    let server = Server::of(TestApp::starting(config)).await;
    let mut client = Client::of(&server).await;
    let service = "/inference.GRPCInferenceService/";
    assert!(
        METHODS
            .iter()
            .any(|method| method.path.starts_with(service))
    );
    let mut ready = async |name: &str| {
        let request = ModelReadyRequest {
            name: name.into(),
            ..ModelReadyRequest::default()
        };
        let path = "/inference.GRPCInferenceService/ModelReady";
        let response: ModelReadyResponse = client.call(path, request).await.unwrap().into_inner();
        let path = "/inference.GRPCInferenceService/ServerReady";
        let all: ServerReadyResponse = client
            .call(path, ServerReadyRequest {})
            .await
            .unwrap()
            .into_inner();
        (all.ready, response.ready)
    };
    assert_eq!(ready("").await, (false, false));
    let model = crate::support::fake::reranker(Model::default(), &server.state);
    server.state.install(model);
    assert_eq!(ready("").await, (true, true));
    assert_eq!(ready("fake").await, (true, true));
    assert_eq!(ready("other").await, (true, false));
    let live: ServerLiveResponse = client
        .call(
            "/inference.GRPCInferenceService/ServerLive",
            ServerLiveRequest {},
        )
        .await
        .unwrap()
        .into_inner();
    assert!(live.live);
    let about: ServerMetadataResponse = client
        .call(
            "/inference.GRPCInferenceService/ServerMetadata",
            ServerMetadataRequest {},
        )
        .await
        .unwrap()
        .into_inner();
    assert_eq!(about.name, "rerankd");
    let path = "/inference.GRPCInferenceService/ModelMetadata";
    let model: ModelMetadataResponse = client
        .call(path, ModelMetadataRequest::default())
        .await
        .unwrap()
        .into_inner();
    let names: Vec<&str> = model.inputs.iter().map(|input| &*input.name).collect();
    assert_eq!(names, ["query", "documents"]);
    assert_eq!(model.outputs[0].shape, [-1]);
    let other = ModelMetadataRequest {
        name: "other".into(),
        ..ModelMetadataRequest::default()
    };
    let error = client
        .call::<_, ModelMetadataResponse>(path, other)
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
}

// Statuses.

#[tokio::test]
async fn errors_have_a_status_and_the_text_of_http() {
    let mut config = Config::default();
    config.http.max_documents = 2;
    config.http.strict_model_name = true;
    let (server, mut client) = started(config).await;
    let error = client.rerank(rerank(&["a", "b", "c"])).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    let body = r#"{"query":"q","texts":["a","b","c"]}"#;
    let over_http = server.request("POST", "/rerank", body).await;
    assert_eq!(over_http.json()["error"], error.message());

    let long = "a ".repeat(2 * MAX_LENGTH);
    let uncut = RerankRequest {
        truncate: false,
        ..rerank(&[&long])
    };
    let error = client.rerank(uncut).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("`texts[0]` is "), "{error}");

    let mut named = Request::new(rerank(&["a"]));
    named
        .metadata_mut()
        .insert("model", "other".parse().unwrap());
    let error = client.rerank(named).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    assert!(error.message().contains("`other` is not served"), "{error}");

    let mut urgent = Request::new(rerank(&["a"]));
    urgent
        .metadata_mut()
        .insert("x-priority", "1000".parse().unwrap());
    let error = client.rerank(urgent).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("`x-priority`"), "{error}");

    let single = PredictRequest {
        inputs: "one text".into(),
        ..PredictRequest::default()
    };
    let error = client
        .call::<_, PredictResponse>("/tei.v1.Predict/Predict", single)
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("`PredictPair`"), "{error}");
    let inputs = vec!["a".to_owned(); 3];
    let three = PredictPairRequest {
        inputs,
        ..pair("a")
    };
    let error = client
        .call::<_, PredictResponse>(PREDICT_PAIR, three)
        .await
        .unwrap_err();
    assert_eq!(
        error.message(),
        "`inputs` has 3 items; send exactly two strings"
    );
}

#[tokio::test]
async fn methods_that_are_not_there_are_unimplemented() {
    let (_server, mut client) = started(Config::default()).await;
    for path in ["/tei.v1.Embed/Embed", "/nobody/Nothing"] {
        let error = client
            .call::<_, RerankResponse>(path, rerank(&["a"]))
            .await
            .unwrap_err();
        assert_eq!(error.code(), Code::Unimplemented, "{path}");
        assert!(error.message().starts_with("not found"), "{error}");
    }
}

#[tokio::test]
async fn a_refusal_says_when_a_retry_can_succeed() {
    let gate = Gate::new();
    let model = Model {
        gate: Some(gate.clone()),
        ..Model::default()
    };
    let mut config = Config::default();
    config.batching.max_queue_tokens = 1;
    let server = Server::start(model, config).await;
    let (mut first, mut second) = (Client::of(&server).await, Client::of(&server).await);
    let held = tokio::spawn(async move { first.rerank(rerank(&["a"])).await });
    gate.entered().await;
    let error = second.rerank(rerank(&["b"])).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    let retry = error.get_details_retry_info().expect("RetryInfo");
    assert!(retry.retry_delay.unwrap() > Duration::ZERO);
    assert!(error.metadata().contains_key("retry-after"));
    gate.open_for_good();
    held.await.unwrap().unwrap();
    let route = format!(r#"rerankd_requests_total{{route="{RERANK}",status="429"}}"#);
    assert_eq!(server.metric(&route).await, 1.0);
}

#[tokio::test]
async fn the_timeout_of_a_call_is_the_deadline_of_its_request() {
    let gate = Gate::new();
    let model = Model {
        gate: Some(gate.clone()),
        ..Model::default()
    };
    let server = Server::start(model, Config::default()).await;
    let mut first = Client::of(&server).await;
    let held = tokio::spawn(async move { first.rerank(rerank(&["a"])).await });
    gate.entered().await;
    // Sent by hand: a client of tonic gives up by itself.
    let request = HttpRequest::post(RERANK)
        .version(Version::HTTP_2)
        .header("content-type", "application/grpc")
        .header("grpc-timeout", "20m")
        .body(Body::from(framed(&rerank(&["b"]).encode_to_vec())))
        .unwrap();
    let (status, message) = status(&server.state, request).await;
    assert_eq!(status, Code::DeadlineExceeded, "{message}");
    gate.open_for_good();
    held.await.unwrap().unwrap();
}

#[tokio::test]
async fn keys_are_asked_for_and_probes_are_open() {
    let mut config = Config::default();
    config.http.api_keys = ApiKeys::parse("search: a-key-of-somebody").unwrap();
    let (_server, mut client) = started(config).await;
    let error = client.rerank(rerank(&["a"])).await.unwrap_err();
    assert_eq!(error.code(), Code::Unauthenticated);
    for (name, value, valid) in [
        ("authorization", "Bearer a-key-of-somebody", true),
        ("x-api-key", "a-key-of-somebody", true),
        ("authorization", "Bearer a-key-of-nobody", false),
    ] {
        let mut request = Request::new(rerank(&["a"]));
        request.metadata_mut().insert(name, value.parse().unwrap());
        let answered = client.rerank(request).await;
        match answered {
            Ok(_) => assert!(valid, "{value}"),
            Err(error) => assert!(!valid && error.code() == Code::Unauthenticated, "{error}"),
        }
    }
    let health: HealthCheckResponse = client
        .call(CHECK, HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(health.status(), ServingStatus::Serving);
    let service = "tei.v1.Embed".to_owned();
    let error = client
        .call::<_, HealthCheckResponse>(CHECK, HealthCheckRequest { service })
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
}

/// The status of a call that is sent as it is.
async fn status(state: &AppState, request: HttpRequest<Body>) -> (Code, String) {
    let app = rerankd::http::router::build(state.clone());
    let response = tower::ServiceExt::oneshot(app, request).await.unwrap();
    assert_eq!(response.status(), 200);
    let (head, body) = response.into_parts();
    let collected = body.collect().await.unwrap();
    let trailers = collected.trailers().cloned().unwrap_or_default();
    let of = |headers: &HeaderMap| Status::from_header_map(headers);
    let status = of(&head.headers).or_else(|| of(&trailers)).unwrap();
    (status.code(), status.message().to_owned())
}

fn sent(path: &str, encoding: Option<&str>, body: Vec<u8>) -> HttpRequest<Body> {
    let mut request = HttpRequest::post(path)
        .version(Version::HTTP_2)
        .header("content-type", "application/grpc");
    if let Some(encoding) = encoding {
        request = request.header("grpc-encoding", encoding);
    }
    request.body(Body::from(body)).unwrap()
}

#[tokio::test]
async fn malformed_messages_are_refused_and_never_internal() {
    let (server, _) = started(Config::default()).await;
    for (path, body) in [
        (RERANK, vec![]),
        (RERANK, b"\0\0\0".to_vec()),
        (RERANK, b"\0\0\0\0\x09abc".to_vec()),
        (RERANK, b"\x07\0\0\0\0".to_vec()),
        (RERANK, framed(b"\x0a\xff")),
        (RERANK, framed(b"\x0a\x02\xff\xfe")),
        (RERANK, framed(b"\x08\x01")),
        (RERANK, framed(b"\x1a\x01a")),
        (RERANK, framed(&rerank(&["a"]).encode_to_vec()).repeat(2)),
        (INFER, framed(b"\x2a\x02\x2a\x05")),
        (INFER, framed(b"\x22\x01\xff")),
        (PREDICT_PAIR_STREAM, framed(b"\x0a\xff")),
        (PREDICT_PAIR_STREAM, b"\0\0\0\0\x09abc".to_vec()),
        (CHECK, framed(b"\x0a\x01\xff")),
        (WATCH, b"\0".to_vec()),
    ] {
        let (code, message) = status(&server.state, sent(path, None, body.clone())).await;
        assert_eq!(code, Code::InvalidArgument, "{path} {body:?}: {message}");
        assert!(message.contains("; "), "it says what to do: {message}");
    }
}

fn gzip(message: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    std::io::Write::write_all(&mut encoder, message).unwrap();
    let mut frame = framed(&encoder.finish().unwrap());
    frame[0] = 1;
    frame
}

#[tokio::test]
async fn compressed_messages_count_by_their_expanded_size() {
    let mut config = Config::default();
    config.http.max_body_bytes = 64 * 1024;
    let (server, mut client) = started(config).await;
    client.0 = client.0.send_compressed(CompressionEncoding::Gzip);
    let response = client.rerank(rerank(&["a", "a b"])).await.unwrap();
    assert_eq!(ranks(&response), [(1, 2.0), (0, 1.0)]);

    let large = "a".repeat(65 * 1024);
    let bomb = gzip(&rerank(&[&large]).encode_to_vec());
    assert!(bomb.len() < 1024);
    let pair_bomb = gzip(&pair(&large).encode_to_vec());
    for (path, bomb) in [
        (RERANK, bomb.clone()),
        (RERANK_STREAM, gzip(&vec![0; 40 * 1024]).repeat(2)),
        (PREDICT_PAIR_STREAM, pair_bomb),
        (CHECK, gzip(&[0; 8 * 1024])),
    ] {
        let (code, message) = status(&server.state, sent(path, Some("gzip"), bomb)).await;
        assert_eq!(code, Code::ResourceExhausted, "{path}: {message}");
    }
    assert_eq!(server.state.bodies().held(), 0);
    for (encoding, expected) in [
        (None, Code::InvalidArgument),
        (Some("identity"), Code::InvalidArgument),
        (Some("zstd"), Code::Unimplemented),
        (Some("deflate"), Code::InvalidArgument),
    ] {
        for path in [RERANK, PREDICT_PAIR_STREAM] {
            let request = sent(path, encoding, gzip(b""));
            let (code, message) = status(&server.state, request).await;
            assert_eq!(code, expected, "{path} {encoding:?}: {message}");
        }
    }
}

/// Fields that repeat take much more memory than bytes; what is over the limit is counted only.
#[tokio::test]
async fn a_list_that_is_too_long_is_only_counted() {
    let (_server, mut client) = started(Config::default()).await;
    let many = RerankRequest {
        texts: vec![String::new(); 1_000_000],
        ..rerank(&[])
    };
    let error = client.rerank(many).await.unwrap_err();
    assert_eq!(
        error.message(),
        "`texts` has 1000000 items; the limit is 1000"
    );
    let many = ModelInferRequest {
        inputs: vec![InferInputTensor::default(); 100_000],
        ..inference()
    };
    let error = client
        .call::<_, ModelInferResponse>(INFER, many)
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn requests_that_are_no_calls_are_told_so() {
    let app = TestApp::default();
    let message = app.post(RERANK, "{}").await.error(415, "not_grpc");
    assert!(message.contains("`Content-Type: application/grpc`"));
    let request = |content_type: &str| {
        let request = HttpRequest::post(RERANK).version(Version::HTTP_2);
        let request = request.header("content-type", content_type);
        app.send(request.body(Body::empty()).unwrap())
    };
    for content_type in [
        "application/json",
        "application/grpc-web",
        "application/grpc+json",
    ] {
        request(content_type).await.error(415, "not_grpc");
    }
    for content_type in [
        "application/grpc",
        "application/grpc+proto",
        "application/grpc;a=b",
    ] {
        assert_eq!(request(content_type).await.status, 200, "{content_type}");
    }
    app.get(RERANK).await.error(405, "method_not_allowed");
}

// Streams.

#[tokio::test]
async fn a_stream_is_answered_in_order_up_to_its_first_failure() {
    let (server, mut client) = started(Config::default()).await;
    let texts = ["a", "a b c", "a b", "d e f g"];
    let messages = stream::iter(texts.map(pair));
    let mut answers = client
        .stream::<_, PredictResponse>(PREDICT_PAIR_STREAM, messages)
        .await
        .unwrap();
    let mut scores = Vec::new();
    while let Some(answer) = answers.message().await.unwrap() {
        scores.push(answer.predictions[0].score);
    }
    assert_eq!(scores, [1.0, 3.0, 2.0, 4.0]);

    let broken = PredictPairRequest {
        inputs: vec!["q".into()],
        ..pair("a")
    };
    let messages = stream::iter([pair("a"), broken, pair("a b")]);
    let mut answers = client
        .stream::<_, PredictResponse>(PREDICT_PAIR_STREAM, messages)
        .await
        .unwrap();
    assert!(answers.message().await.unwrap().is_some());
    let error = answers.message().await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    server.idle().await;
    let counted = |status: u16| {
        let route = PREDICT_PAIR_STREAM;
        format!(r#"rerankd_requests_total{{route="{route}",status="{status}"}}"#)
    };
    assert_eq!(server.metric(&counted(200)).await, 1.0);
    assert_eq!(server.metric(&counted(400)).await, 1.0);
    assert_eq!(server.state.bodies().held(), 0);
}

/// The client sends as much as it may, and reads nothing. In the end, its connection is closed.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_is_not_read_from() {
    let mut config = Config::default();
    config.http.header_timeout = Duration::from_secs(2);
    let server = Server::start(Model::default(), config).await;
    let mut client = Client::of(&server).await;
    let taken = Arc::new(AtomicUsize::new(0));
    let counted = taken.clone();
    let long = EncodeRequest {
        inputs: "hello world ".repeat(1000),
        ..EncodeRequest::default()
    };
    let messages = stream::repeat_with(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        long.clone()
    });
    let path = "/tei.v1.Tokenize/TokenizeStream";
    let mut answers = client
        .stream::<_, EncodeResponse>(path, messages.take(10_000))
        .await
        .unwrap();
    // A first answer, then time for the client to fill every buffer on the way.
    assert!(answers.message().await.unwrap().is_some());
    let mut before = usize::MAX;
    while before != taken.load(Ordering::Relaxed) {
        before = taken.load(Ordering::Relaxed);
        for _ in 0..20 {
            let body = r#"{"query":"q","documents":["a"]}"#;
            assert_eq!(server.request("POST", "/rerank", body).await.status, 200);
        }
    }
    // HTTP/2 lets a client send 1 MiB that nobody has read; of it, the server has taken little.
    assert!(before < 1000, "{before} messages were taken");
    let held = server.state.bodies().held();
    assert!(held < 64 * 1024, "{held} bytes are held");
    server.idle().await;
    assert_eq!(server.state.bodies().held(), 0);
}

#[tokio::test]
async fn a_call_that_is_dropped_drops_its_request() {
    let gate = Gate::new();
    let model = Model {
        gate: Some(gate.clone()),
        ..Model::default()
    };
    let seen = model.seen.clone();
    let server = Server::start(model, Config::default()).await;
    let (mut first, mut second) = (Client::of(&server).await, Client::of(&server).await);
    let held = tokio::spawn(async move { first.rerank(rerank(&["a"])).await });
    gate.entered().await;
    let dropped = tokio::spawn(async move { second.rerank(rerank(&["never scored"])).await });
    server.until(|state| state.in_flight() == 2).await;
    dropped.abort();
    server.until(|state| state.in_flight() == 1).await;
    gate.open_for_good();
    held.await.unwrap().unwrap();
    server.idle().await;
    assert_eq!(seen.pairs(), 1);
}

/// What a stream has sent is answered, then the call ends.
#[tokio::test]
async fn a_stream_is_answered_when_the_server_stops() {
    let gate = Gate::new();
    let model = Model {
        gate: Some(gate.clone()),
        ..Model::default()
    };
    let server = Server::start(model, Config::default()).await;
    let mut client = Client::of(&server).await;
    let messages = stream::iter([pair("a b")]).chain(stream::pending());
    let mut answers = client
        .stream::<_, PredictResponse>(PREDICT_PAIR_STREAM, messages)
        .await
        .unwrap();
    gate.entered().await;
    server.signals.send(()).await.unwrap();
    server.state.lifecycle().reached(Phase::Draining).await;
    gate.open_for_good();
    let answer = answers.message().await.unwrap().expect("an answer");
    assert_eq!(answer.predictions[0].score, 2.0);
    let error = answers.message().await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().contains("stopping"), "{error}");
    assert_eq!(server.stopped.await.unwrap(), Stopped::Clean);
}

// Health and reflection.

#[tokio::test]
async fn health_follows_the_life_of_the_server() {
    let mut config = Config::default();
    config.shutdown.grace = Duration::from_millis(300);
    let server = Server::of(TestApp::starting(config)).await;
    let mut client = Client::of(&server).await;
    let watch = |service: &str| HealthCheckRequest {
        service: service.into(),
    };
    let mut watched = async |service: &str| {
        client.0.ready().await.unwrap();
        let path = PathAndQuery::from_static(WATCH);
        let codec = ProstCodec::<_, HealthCheckResponse>::default();
        let request = Request::new(watch(service));
        let answer = client.0.server_streaming(request, path, codec).await;
        answer.unwrap().into_inner()
    };
    let mut server_watch = watched("").await;
    let mut service_watch = watched("tei.v1.Rerank").await;
    let mut unknown_watch = watched("tei.v1.Embed").await;
    let next = async |watch: &mut Streaming<HealthCheckResponse>| {
        watch.message().await.unwrap().unwrap().status()
    };
    assert_eq!(next(&mut server_watch).await, ServingStatus::NotServing);
    assert_eq!(next(&mut service_watch).await, ServingStatus::NotServing);
    assert_eq!(
        next(&mut unknown_watch).await,
        ServingStatus::ServiceUnknown
    );
    let model = crate::support::fake::reranker(Model::default(), &server.state);
    server.state.install(model);
    assert_eq!(next(&mut server_watch).await, ServingStatus::Serving);
    assert_eq!(next(&mut service_watch).await, ServingStatus::Serving);
    server.signals.send(()).await.unwrap();
    assert_eq!(next(&mut server_watch).await, ServingStatus::NotServing);
    assert_eq!(next(&mut service_watch).await, ServingStatus::NotServing);
    let error = server_watch.message().await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert_eq!(server.stopped.await.unwrap(), Stopped::Clean);
}

#[tokio::test]
async fn reflection_lists_every_service() {
    let (server, _) = started(Config::default()).await;
    let endpoint = Endpoint::from_shared(format!("http://{}", server.address)).unwrap();
    let mut client = ServerReflectionClient::new(endpoint.connect().await.unwrap());
    let ask = |message_request| ServerReflectionRequest {
        host: String::new(),
        message_request: Some(message_request),
    };
    let symbol = "inference.GRPCInferenceService.ModelInfer".to_owned();
    let asked = [
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol(symbol)),
    ];
    let answers = client.server_reflection_info(stream::iter(asked)).await;
    let mut answers = answers.unwrap().into_inner();
    let mut next = async || {
        let answer: ServerReflectionResponse = answers.message().await.unwrap().unwrap();
        answer.message_response.unwrap()
    };
    let MessageResponse::ListServicesResponse(list) = next().await else {
        panic!("a list");
    };
    let listed: Vec<String> = list.service.into_iter().map(|s| s.name).collect();
    for method in METHODS {
        let is_alpha = method.service().contains("v1alpha");
        let is_listed = listed.iter().any(|name| name == method.service());
        assert!(
            is_listed || is_alpha,
            "{} is not in {listed:?}",
            method.path
        );
    }
    let MessageResponse::FileDescriptorResponse(files) = next().await else {
        panic!("a file");
    };
    assert!(!files.file_descriptor_proto.is_empty());
}

/// Tools keep their stream open while they run.
#[tokio::test]
async fn an_open_stream_of_reflection_does_not_hold_up_a_stop() {
    let (server, _) = started(Config::default()).await;
    let endpoint = Endpoint::from_shared(format!("http://{}", server.address)).unwrap();
    let mut client = ServerReflectionClient::new(endpoint.connect().await.unwrap());
    let asked = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let asked = stream::iter([asked]).chain(stream::pending());
    let answers = client.server_reflection_info(asked).await;
    let mut answers = answers.unwrap().into_inner();
    assert!(answers.message().await.unwrap().is_some());
    server.signals.send(()).await.unwrap();
    assert!(answers.message().await.unwrap().is_none());
    assert_eq!(server.stopped.await.unwrap(), Stopped::Clean);
}

// What the edge does.

#[tokio::test]
async fn methods_are_at_their_own_path_whatever_the_prefix() {
    let mut config = Config::default();
    config.http.path_prefix = PathPrefix::parse("/search").unwrap();
    let (server, mut client) = started(config).await;
    client.rerank(rerank(&["a"])).await.unwrap();
    let body = || framed(&rerank(&["a"]).encode_to_vec());
    let below = sent("/search/tei.v1.Rerank/Rerank", None, body());
    assert_eq!(status(&server.state, below).await.0, Code::Ok);
    let other = sent("/other/tei.v1.Rerank/Rerank", None, body());
    assert_eq!(status(&server.state, other).await.0, Code::Unimplemented);
}

#[tokio::test]
async fn calls_have_the_headers_and_the_counts_of_http() {
    let (server, mut client) = started(Config::default()).await;
    let mut request = Request::new(rerank(&["a"]));
    request
        .metadata_mut()
        .insert("x-request-id", "id-1".parse().unwrap());
    let response = client.call::<RerankRequest, RerankResponse>(RERANK, request);
    let response = response.await.unwrap();
    let metadata = response.metadata();
    assert_eq!(metadata.get("x-request-id").unwrap(), "id-1");
    assert!(metadata.contains_key("server-timing"));
    let counted = format!(r#"rerankd_requests_total{{route="{RERANK}",status="200"}}"#);
    assert_eq!(server.metric(&counted).await, 1.0);
    // Those that never happened are counted, too.
    for method in METHODS.iter().filter(|method| method.scores()) {
        let path = method.path;
        let counted = format!(r#"rerankd_requests_total{{route="{path}",status="500"}}"#);
        assert_eq!(server.metric(&counted).await, 0.0);
    }
}

#[tokio::test]
async fn one_line_a_call_with_the_status_of_http_and_never_the_texts() {
    let app = TestApp::default();
    let request = |path, message: Vec<u8>| sent(path, None, framed(&message));
    let lines = Lines::of(async {
        let one = rerank(&["secret one"]).encode_to_vec();
        status(&app.state, request(RERANK, one)).await;
        let none = rerank(&[]).encode_to_vec();
        status(&app.state, request(RERANK, none)).await;
        let two = [pair("secret"), pair("secret two")].map(|pair| framed(&pair.encode_to_vec()));
        let broken = framed(b"\x0a\xff");
        let stream = [two.concat(), broken].concat();
        status(&app.state, sent(PREDICT_PAIR_STREAM, None, stream)).await;
        status(&app.state, request("/secret/Secret", Vec::new())).await;
        status(&app.state, request(CHECK, Vec::new())).await;
    })
    .await;
    let told = lines.iter().map(|line| {
        let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        (
            text("route"),
            line["status"].as_u64().unwrap(),
            text("dialect"),
        )
    });
    let expected = [
        (RERANK, 200, "tei_grpc"),
        (RERANK, 400, "tei_grpc"),
        (PREDICT_PAIR_STREAM, 400, "tei_grpc"),
        ("other", 404, "native"),
    ];
    let expected = expected.map(|(route, status, dialect)| (route.into(), status, dialect.into()));
    assert_eq!(told.collect::<Vec<_>>(), expected);
    assert_eq!(lines[0]["pairs"], 1);
    assert_eq!(lines[2]["pairs"], 2, "those before the failure");
}

#[tokio::test]
async fn calls_come_over_tls_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let root = connections::certificate(dir.path(), "localhost");
    let tls = Arc::new(connections::load(dir.path()).unwrap());
    let server = connections::behind_tls(tls, Config::default()).await;
    let stream = connections::connect(&server, &root, &[b"h2"])
        .await
        .unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = HttpRequest::post("https://localhost/tei.v1.Rerank/Rerank")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let (answer, mut body) = client.send_request(request, false).unwrap();
    let message = framed(&rerank(&["a", "a b"]).encode_to_vec());
    body.send_data(Bytes::from(message), true).unwrap();
    let mut body = answer.await.unwrap().into_body();
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        bytes.extend_from_slice(&data.unwrap());
    }
    let response = RerankResponse::decode(&bytes[5..]).unwrap();
    assert_eq!(ranks(&response), [(1, 2.0), (0, 1.0)]);
    let trailers = body.trailers().await.unwrap().unwrap();
    assert_eq!(trailers["grpc-status"], "0");
}
