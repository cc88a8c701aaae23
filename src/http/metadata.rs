//! What the head of a call of gRPC says about it.

use std::time::Duration;

use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, Version, header};
use rerankd_core::RerankError;

/// How long the client waits: up to eight digits, and a unit.
const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Whether a request is a call: no other one has this type, and calls need HTTP/2.
pub fn is_call(version: Version, headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE);
    let rest = content_type.and_then(|value| value.as_bytes().strip_prefix(b"application/grpc"));
    let rest = rest.map(|rest| rest.strip_prefix(b"+proto").unwrap_or(rest));
    version == Version::HTTP_2 && matches!(rest, Some([] | [b';' | b' ', ..]))
}

/// How long the client of a call waits; `None` where it does not say, or the request is no call.
///
/// # Errors
/// When the header is not a time.
pub fn timeout(head: &Parts) -> Result<Option<Duration>, RerankError> {
    let value = head.headers.get(TIMEOUT);
    let Some(value) = value.filter(|_| is_call(head.version, &head.headers)) else {
        return Ok(None);
    };
    let timeout = value.to_str().ok().and_then(|text| {
        let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let is_number =
            (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
        let number: u64 = is_number.then(|| digits.parse().ok())??;
        Some(match unit {
            "H" => Duration::from_secs(number * 3600),
            "M" => Duration::from_secs(number * 60),
            "S" => Duration::from_secs(number),
            "m" => Duration::from_millis(number),
            "u" => Duration::from_micros(number),
            "n" => Duration::from_nanos(number),
            _ => return None,
        })
    });
    timeout.map(Some).ok_or_else(|| {
        RerankError::invalid(
            "`grpc-timeout` is not a time; send up to eight digits and one of `H`, `M`, `S`, `m`, `u`, `n`",
        )
    })
}
