//! What operators and probes ask. None of it waits for the model.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::SystemTime;

use axum::extract::{FromRequestParts, RawQuery, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use percent_encoding::percent_decode_str;
use rerankd_core::RerankError;
use rerankd_engine::service::ModelInfo;
use serde::Serialize;
use utoipa::ToSchema;

use super::auth::shown;
use super::error::{Failure, json};
use super::models::Models;
use super::open_inference::ModelName;
use super::state::AppState;
use crate::config::Config;
use crate::shutdown::Phase;

/// A yes.
#[derive(Serialize, ToSchema)]
pub struct Status {
    status: &'static str,
}

/// The process runs and its event loop turns.
pub async fn live() -> Response {
    json(StatusCode::OK, &Status { status: "live" })
}

/// Marks requests at `admin_listen`.
#[derive(Debug, Clone, Copy)]
pub struct ForOperators;

/// Whether the state of each model is asked for, and may be told: reasons of failures show paths, so that at
/// probes, which are open, they are for those who have a key.
pub struct Verbose(bool);

impl FromRequestParts<AppState> for Verbose {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Infallible> {
        let query = parts.uri.query().unwrap_or_default();
        let asked = query.split('&').any(|part| part == "verbose");
        let has_key = || shown(&parts.headers).is_some_and(|key| state.keys().owner(key).is_some());
        let allowed = || {
            let for_operators = parts.extensions.get::<ForOperators>().is_some();
            for_operators || state.keys().open() || has_key()
        };
        Ok(Self(asked && allowed()))
    }
}

/// New requests should be sent here.
///
/// # Errors
/// While the model loads, when every worker has failed, and from the first signal to stop.
pub async fn ready(
    State(state): State<AppState>,
    Verbose(verbose): Verbose,
) -> Result<Response, Failure> {
    readiness(&state)?;
    Ok(match verbose {
        true => json(StatusCode::OK, &ready_models(&state)),
        false => json(StatusCode::OK, &Status { status: "ready" }),
    })
}

/// Whether new requests should be sent here.
///
/// # Errors
/// Why not.
pub fn readiness(state: &AppState) -> Result<(), RerankError> {
    match state.lifecycle().phase() {
        Phase::Starting => Err(RerankError::not_ready()),
        Phase::Ready if state.models().is_some_and(|models| !can_serve(&models)) => {
            Err(RerankError::no_workers())
        }
        Phase::Ready => Ok(()),
        Phase::Grace | Phase::Draining => Err(RerankError::draining()),
    }
}

fn can_serve(models: &Models) -> bool {
    models.all().iter().all(|reranker| reranker.can_serve())
}

/// The answer to `/ready?verbose`.
#[derive(Serialize, ToSchema)]
pub struct ReadyModels {
    status: &'static str,
    models: Vec<ModelState>,
}

#[derive(Serialize, ToSchema)]
struct ModelState {
    name: String,
    /// `ready` or `failed`.
    status: &'static str,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

fn ready_models(state: &AppState) -> ReadyModels {
    let models = state.models();
    let served = models.iter().flat_map(|models| models.catalog());
    let served = served.map(|model| ModelState {
        name: model.name.clone(),
        status: "ready",
        reason: None,
    });
    let failed = models.iter().flat_map(|models| models.failed());
    let failed = failed.map(|failed| ModelState {
        name: failed.name.clone(),
        status: "failed",
        reason: Some(failed.reason.clone()),
    });
    ReadyModels {
        status: "ready",
        models: served.chain(failed).collect(),
    }
}

/// [`live`] for those who want no body.
pub async fn silent_live() -> StatusCode {
    StatusCode::NO_CONTENT
}

/// [`ready`] for those who want no body.
///
/// # Errors
/// As [`ready`].
pub async fn silent_ready(state: State<AppState>) -> Result<StatusCode, Failure> {
    ready(state, Verbose(false))
        .await
        .map(|_| StatusCode::NO_CONTENT)
}

/// The answer of [`info`]: TEI's fields, then the server's own.
#[derive(Serialize, ToSchema)]
pub struct Info<'a> {
    pub(super) model_id: &'a str,
    model_sha: Option<&'a str>,
    pub(super) model_dtype: &'a str,
    served_model_name: &'a str,
    pub(super) model_type: ModelType<'a>,
    /// Requests are bounded by their tokens, so that this is as many as there may be tokens.
    pub(super) max_concurrent_requests: usize,
    pub(super) max_input_length: usize,
    pub(super) max_batch_tokens: usize,
    max_batch_requests: Option<usize>,
    pub(super) max_client_batch_size: usize,
    auto_truncate: bool,
    pub(super) tokenization_workers: usize,
    pub(super) version: &'a str,
    sha: Option<&'a str>,
    docker_label: Option<&'a str>,
    architecture: &'a str,
    format: &'a str,
    layout: &'a str,
    labels: &'a [String],
    max_length: usize,
    activation: &'a str,
    precision: &'a str,
    /// Why it is used.
    precision_because: &'a str,
    instructions: &'a str,
    parameters: usize,
    /// Memory of the weights, which all sessions share.
    weight_bytes: usize,
    threads: usize,
    sessions: usize,
    runtime_version: &'a str,
    /// What runs the model, such as `cpu` or `cuda:0`.
    device: &'a str,
    /// Why it was taken.
    device_because: &'a str,
    /// Nodes of the graph that each provider of ONNX Runtime runs, by its own account.
    providers: &'a BTreeMap<String, usize>,
    max_documents: usize,
    max_body_bytes: usize,
    max_queue_tokens: usize,
}

impl<'a> Info<'a> {
    /// What the settings and the loaded `model` say.
    pub fn of(model: &'a ModelInfo, config: &'a Config) -> Self {
        Self {
            model_id: &model.id,
            model_sha: None,
            model_dtype: dtype(model.precision),
            served_model_name: &model.id,
            model_type: ModelType::of(&model.labels),
            max_concurrent_requests: config.batching.max_queue_tokens,
            max_input_length: model.max_length,
            max_batch_tokens: model.batch_tokens,
            max_batch_requests: None,
            max_client_batch_size: config.http.max_documents,
            auto_truncate: true,
            tokenization_workers: model.threads,
            version: env!("CARGO_PKG_VERSION"),
            sha: None,
            docker_label: None,
            architecture: &model.architecture,
            format: model.format,
            layout: model.layout,
            labels: &model.labels,
            max_length: model.max_length,
            activation: model.activation.name(),
            precision: model.precision,
            precision_because: &model.precision_because,
            instructions: model.instructions,
            parameters: model.parameters,
            weight_bytes: model.weight_bytes,
            threads: model.threads,
            sessions: model.sessions,
            runtime_version: &model.runtime_version,
            device: &model.device,
            device_because: &model.device_because,
            providers: &model.providers,
            max_documents: config.http.max_documents,
            max_body_bytes: config.http.max_body_bytes,
            max_queue_tokens: config.batching.max_queue_tokens,
        }
    }
}

/// What kind of model TEI's clients should take this one for.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum ModelType<'a> {
    Reranker(Labels<'a>),
    Classifier(Labels<'a>),
}

#[derive(Serialize, ToSchema)]
#[schema(as = ModelLabels)]
pub(super) struct Labels<'a> {
    #[schema(value_type = BTreeMap<String, String>)]
    id2label: BTreeMap<usize, &'a str>,
    label2id: BTreeMap<&'a str, usize>,
}

impl<'a> ModelType<'a> {
    fn of(labels: &'a [String]) -> Self {
        let numbered = || labels.iter().map(String::as_str).enumerate();
        let names = Labels {
            id2label: numbered().collect(),
            label2id: numbered().map(|(id, label)| (label, id)).collect(),
        };
        match labels.len() {
            1 => Self::Reranker(names),
            _ => Self::Classifier(names),
        }
    }
}

/// TEI's name of a precision.
fn dtype(precision: &str) -> &str {
    match precision {
        "fp32" => "float32",
        "fp16" => "float16",
        "bf16" => "bfloat16",
        other => other,
    }
}

/// The model that a query names.
fn model_of(query: &str) -> Option<String> {
    let name = query
        .split('&')
        .find_map(|part| part.strip_prefix("model="))?;
    let name = name.replace('+', " ");
    let name = percent_decode_str(&name).decode_utf8();
    name.ok().map(|name| name.into_owned())
}

/// What is served, how, and within which limits: the default model, or the one that the query names.
///
/// # Errors
/// While the model loads, and where names are strict and this one is not known.
pub async fn info(
    State(state): State<AppState>,
    RawQuery(query): RawQuery,
) -> Result<Response, Failure> {
    let asked = query.as_deref().and_then(model_of);
    let reranker = state.model(asked.as_deref())?;
    let info = Info::of(reranker.info(), state.config());
    Ok(json(StatusCode::OK, &info))
}

/// The answer of [`models`], in the form that OpenAI's clients read.
#[derive(Serialize, ToSchema)]
#[schema(as = Models)]
pub struct ModelList<'a> {
    object: &'a str,
    data: Vec<ModelCard<'a>>,
}

#[derive(Serialize, ToSchema)]
struct ModelCard<'a> {
    id: &'a str,
    object: &'a str,
    created: u64,
    owned_by: &'a str,
    capabilities: [&'a str; 1],
}

/// The models that are served, the default one first.
///
/// # Errors
/// While the models load.
pub async fn models(State(state): State<AppState>) -> Result<Response, Failure> {
    let models = state.models().ok_or_else(RerankError::not_ready)?;
    let default = &models.catalog()[models.default()];
    let others = models.catalog().iter().filter(|model| *model != default);
    let cards = std::iter::once(default)
        .chain(others)
        .map(|model| ModelCard {
            id: &model.name,
            object: "model",
            created: unix_seconds(state.started()),
            owned_by: "rerankd",
            capabilities: ["rerank"],
        });
    let list = ModelList {
        object: "list",
        data: cards.collect(),
    };
    Ok(json(StatusCode::OK, &list))
}

/// The answer of [`model`]: what OpenAI's clients read, and what Xinference's do.
#[derive(Serialize, ToSchema)]
pub struct Description<'a> {
    id: &'a str,
    object: &'a str,
    created: u64,
    owned_by: &'a str,
    model_type: &'a str,
    model_name: &'a str,
    max_tokens: usize,
}

/// The model that the path names, or the default one where any name is taken.
///
/// # Errors
/// While the model loads, and where another is asked for.
pub async fn model(
    State(state): State<AppState>,
    ModelName(asked): ModelName,
) -> Result<Response, Failure> {
    let reranker = state.model(Some(&asked))?;
    let model = reranker.info();
    let description = Description {
        id: &asked,
        object: "model",
        created: unix_seconds(state.started()),
        owned_by: "rerankd",
        model_type: "rerank",
        model_name: &model.id,
        max_tokens: model.max_length,
    };
    Ok(json(StatusCode::OK, &description))
}

/// Whether requests need a key.
#[derive(Serialize, ToSchema)]
pub struct NeedsKey {
    auth: bool,
}

/// Whether requests need a key: clients of Xinference ask before they send theirs.
pub async fn needs_key(State(state): State<AppState>) -> Response {
    let auth = !state.keys().open();
    json(StatusCode::OK, &NeedsKey { auth })
}

/// Seconds since 1970.
pub fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs())
}

/// Everything measured, in the Prometheus text format.
pub async fn metrics(State(state): State<AppState>) -> Response {
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (content_type, state.metrics().render()).into_response()
}

/// Reads the list of models again, and answers when those that are new or changed have taken over. Pages cannot ask
/// for it: the listener has no keys, and a page of any site can send requests to it.
///
/// # Errors
/// Why nothing has changed.
pub async fn reload(
    State(state): State<AppState>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    if let Some(origin) = headers.get(header::ORIGIN) {
        let origin = String::from_utf8_lossy(origin.as_bytes()).into_owned();
        return Err(Failure::ForeignOrigin(origin));
    }
    let reloaded = state.reload().await.map_err(Failure::NotReloaded)?;
    Ok(json(StatusCode::OK, &reloaded))
}
