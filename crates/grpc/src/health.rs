//! `grpc.health.v1`: whether services are ready.

use prost::Message;
use rerankd_core::RerankError;

pub use crate::proto::health::health_check_response::ServingStatus;

use crate::fields::Fields;
use crate::frame::Messages;
use crate::proto::health::HealthCheckResponse;

/// The name of the service that is asked about; empty for the whole server.
///
/// # Errors
/// When the request is not one.
pub fn service(messages: Messages<'_>) -> Result<&str, RerankError> {
    let mut service = "";
    for field in Fields::of(messages.only()?) {
        if let (1, value) = field? {
            service = value.text("service")?;
        }
    }
    Ok(service)
}

/// The message that tells `status`.
pub fn response(status: ServingStatus) -> Vec<u8> {
    let status = status.into();
    HealthCheckResponse { status }.encode_to_vec()
}
