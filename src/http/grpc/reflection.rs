//! Server reflection: the definitions of the services, for clients that have none.

use std::convert::Infallible;

use axum::BoxError;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::Response;
use axum::routing::{MethodRouter, post};
use futures_util::StreamExt;
use rerankd_grpc::{DESCRIPTORS, Reflection};
use tonic::codegen::Service;
use tonic_reflection::server::Builder;

use super::super::state::AppState;
use crate::shutdown::Phase;

/// Longest request: the name of a symbol or a file.
const MAX_MESSAGE_BYTES: usize = 16 * 1024;

/// What answers a stream of questions about the services.
pub fn handler(version: Reflection) -> MethodRouter<AppState> {
    let builder = Builder::configure().register_encoded_file_descriptor_set(DESCRIPTORS);
    let known = "the descriptors come from the compiler of the definitions";
    match version {
        Reflection::V1 => {
            let service = builder.build_v1().expect(known);
            answering(service.max_decoding_message_size(MAX_MESSAGE_BYTES))
        }
        Reflection::V1Alpha => {
            let service = builder.build_v1alpha().expect(known);
            answering(service.max_decoding_message_size(MAX_MESSAGE_BYTES))
        }
    }
}

/// Tools keep their stream open; for `service` it ends when the server drains.
fn answering<S, B>(service: S) -> MethodRouter<AppState>
where
    S: Service<Request, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    post(
        async move |State(state): State<AppState>, request: Request| {
            let (head, body) = request.into_parts();
            let draining = state.lifecycle().reached(Phase::Draining);
            let body = Body::from_stream(body.into_data_stream().take_until(Box::pin(draining)));
            let mut service = service.clone();
            match service.call(Request::from_parts(head, body)).await {
                Ok(response) => response.map(Body::new),
                Err(never) => match never {},
            }
        },
    )
}
