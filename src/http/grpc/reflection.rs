//! Server reflection: the definitions of the services, for clients that have none.

use axum::routing::{MethodRouter, post_service};
use rerankd_grpc::{DESCRIPTORS, Reflection};
use tonic_reflection::server::Builder;

use super::super::state::AppState;

/// Longest request: the name of a symbol or a file.
const MAX_MESSAGE_BYTES: usize = 16 * 1024;

/// What answers a stream of questions about the services.
pub fn handler(version: Reflection) -> MethodRouter<AppState> {
    let builder = Builder::configure().register_encoded_file_descriptor_set(DESCRIPTORS);
    let known = "the descriptors come from the compiler of the definitions";
    match version {
        Reflection::V1 => post_service(
            builder
                .build_v1()
                .expect(known)
                .max_decoding_message_size(MAX_MESSAGE_BYTES),
        ),
        Reflection::V1Alpha => post_service(
            builder
                .build_v1alpha()
                .expect(known)
                .max_decoding_message_size(MAX_MESSAGE_BYTES),
        ),
    }
}
