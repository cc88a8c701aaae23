//! What clients and machines ask about the server and its models. None of it waits for a model.

use axum::extract::Request;
use axum::response::Response;
use prost::Message;
use rerankd_core::RerankError;
use rerankd_engine::service::Reranker;
use rerankd_grpc::frame::Messages;
use rerankd_grpc::proto::tei::{InfoResponse, ModelType};
use rerankd_grpc::tei::small;
use rerankd_grpc::{Call, Method, inference};
use rerankd_wire::open_inference::Model;

use super::super::admin;
use super::super::error::Failure;
use super::super::state::AppState;
use super::head::CallHead;
use super::{health, short, status};

/// The answer of `method`.
pub(super) async fn tell(
    state: &AppState,
    request: Request,
    method: &'static Method,
) -> Result<Response, Failure> {
    let head = CallHead::of(&request)?;
    let bytes = short::message(&head, request, state).await?;
    let messages = Messages::of(&bytes);
    let message = match &method.call {
        Call::Live => inference::ready(true),
        Call::Ready => inference::ready(admin::readiness(state).is_ok()),
        Call::ModelReady => {
            let name = inference::model_name(messages)?;
            let is_ready = admin::readiness(state).is_ok() && state.model(name).is_ok();
            inference::ready(is_ready)
        }
        Call::Server => inference::server(),
        Call::Model => {
            let name = inference::model_name(messages)?;
            let reranker = state.model(name.or(head.model.as_deref()))?;
            let info = reranker.info();
            inference::model(&Model::new(&info.id, info.labels.len()))
        }
        Call::Check => health::check(state, rerankd_grpc::health::service(messages)?)?,
        Call::Info => info(state, &*state.model(head.model.as_deref())?),
        Call::Scores(_)
        | Call::ScoresAll(_)
        | Call::ScoresEach(_)
        | Call::Tokenizes(_)
        | Call::TokenizesEach(_)
        | Call::Watch
        | Call::Reflection(_) => {
            return Err(
                RerankError::internal(format!("{} is answered elsewhere", method.path)).into(),
            );
        }
    };
    Ok(status::message(&message))
}

/// What TEI's clients learn about the server.
fn info(state: &AppState, reranker: &Reranker) -> Vec<u8> {
    let (model, config) = (reranker.info(), state.config());
    let model_type = match model.labels.len() {
        1 => ModelType::Reranker,
        _ => ModelType::Classifier,
    };
    let info = InfoResponse {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        model_id: model.id.clone(),
        model_dtype: admin::dtype(model.precision).to_owned(),
        model_type: model_type.into(),
        max_concurrent_requests: small(config.batching.max_queue_tokens),
        max_input_length: small(model.max_length),
        max_batch_tokens: small(model.batch_tokens),
        max_client_batch_size: small(config.http.max_documents),
        tokenization_workers: small(model.threads),
        ..InfoResponse::default()
    };
    info.encode_to_vec()
}
