//! The head of a call: how its messages are compressed, and what they have no fields for.

use axum::extract::Request;
use rerankd_core::{Priority, RerankError};

use super::super::body::Coding;
use super::super::error::Failure;
use super::super::metadata::is_call;

/// What the head of a call says besides its hints.
pub(super) struct CallHead {
    /// How messages that are marked as compressed are compressed; `None` where it is not supported.
    pub(super) coding: Option<Coding>,
    /// The model that is asked for.
    pub(super) model: Option<String>,
    /// The weight of its requests.
    pub(super) priority: Priority,
}

/// The method's model, where messages have no field for it.
const MODEL: &str = "model";
/// The priority of all requests of the call.
const PRIORITY: &str = "x-priority";

impl CallHead {
    /// That of `request`.
    ///
    /// # Errors
    /// When it is not a call, or its metadata are malformed.
    pub(super) fn of(request: &Request) -> Result<Self, Failure> {
        let headers = request.headers();
        if !is_call(request.version(), headers) {
            return Err(Failure::NotGrpc);
        }
        let text = |name: &str| headers.get(name).map(|value| value.to_str());
        let model = text(MODEL).transpose().map_err(|_| {
            RerankError::invalid("`model` in the metadata is not ASCII; use an alias that is")
        })?;
        let priority = match text(PRIORITY) {
            None => Priority::default(),
            Some(text) => {
                let number = text.ok().and_then(|text| text.trim().parse().ok());
                number.and_then(Priority::new).ok_or_else(|| {
                    RerankError::invalid(format!(
                        "`{PRIORITY}` in the metadata is not a whole number up to {}; send one, or leave it out",
                        Priority::MAX
                    ))
                })?
            }
        };
        Ok(Self {
            coding: match text("grpc-encoding") {
                None | Some(Ok("identity")) => Some(Coding::Plain),
                Some(Ok("gzip")) => Some(Coding::Gzip),
                Some(Ok("deflate")) => Some(Coding::Deflate),
                Some(_) => None,
            },
            model: model.filter(|name| !name.is_empty()).map(str::to_owned),
            priority,
        })
    }
}
