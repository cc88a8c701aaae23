//! What clients and machines ask about the server and its models. None of it waits for a model.

use axum::extract::Request;
use axum::response::Response;
use prost::Message;
use rerankd_grpc::frame::Messages;
use rerankd_grpc::proto::tei::{InfoResponse, ModelType};
use rerankd_grpc::tei::saturating_u32;
use rerankd_grpc::{About, inference};
use rerankd_wire::open_inference::Model;

use super::super::admin::{self, Info};
use super::super::error::Failure;
use super::super::state::AppState;
use super::head::CallHead;
use super::{health, short, status};

/// The answer to a call that asks for `about`.
pub(super) async fn tell(
    state: &AppState,
    request: Request,
    about: About,
) -> Result<Response, Failure> {
    let head = CallHead::of(&request)?;
    let bytes = short::message(&head, request, state).await?;
    let messages = Messages::of(&bytes);
    let message = match about {
        About::Live => inference::ready(true),
        About::Ready => inference::ready(admin::readiness(state).is_ok()),
        About::ModelReady => {
            let name = inference::model_name(messages)?;
            let is_ready = admin::readiness(state).is_ok() && state.model(name).is_ok();
            inference::ready(is_ready)
        }
        About::Server => inference::server(),
        About::Model => {
            let name = inference::model_name(messages)?;
            let reranker = state.model(name.or(head.model.as_deref()))?;
            let info = reranker.info();
            inference::model(&Model::new(&info.id, info.labels.len()))
        }
        About::Check => health::check(state, rerankd_grpc::health::service(messages)?)?,
        About::Info => {
            let reranker = state.model(head.model.as_deref())?;
            info(&Info::of(reranker.info(), state.config()))
        }
    };
    Ok(status::message(&message))
}

/// What TEI's clients learn about the server.
fn info(info: &Info<'_>) -> Vec<u8> {
    let model_type = match info.model_type {
        admin::ModelType::Reranker(_) => ModelType::Reranker,
        admin::ModelType::Classifier(_) => ModelType::Classifier,
    };
    let response = InfoResponse {
        version: info.version.to_owned(),
        model_id: info.model_id.to_owned(),
        model_dtype: info.model_dtype.to_owned(),
        model_type: model_type.into(),
        max_concurrent_requests: saturating_u32(info.max_concurrent_requests),
        max_input_length: saturating_u32(info.max_input_length),
        max_batch_tokens: saturating_u32(info.max_batch_tokens),
        max_client_batch_size: saturating_u32(info.max_client_batch_size),
        tokenization_workers: saturating_u32(info.tokenization_workers),
        ..InfoResponse::default()
    };
    response.encode_to_vec()
}
