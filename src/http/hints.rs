//! Scheduling hints from the head of a request: tenant and deadline.

use std::time::Duration;

use axum::http::HeaderName;
use axum::http::request::Parts;
use rerankd_core::{Deadline, DeadlineBy, RerankError, SchedulingHints};
use tokio::time::Instant;

use super::metadata;
use crate::config::BatchSettings;

/// How many milliseconds the client waits for the response.
pub const X_REQUEST_TIMEOUT_MS: HeaderName = HeaderName::from_static("x-request-timeout-ms");

/// Longest timeout; longer ones are cut to it, so that adding it to a time cannot overflow.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// The hints of a request whose head has just arrived. Each API key is a tenant.
///
/// # Errors
/// When the header is not a positive whole number of milliseconds, or that of gRPC not a time.
pub fn of_head(head: &Parts, config: &BatchSettings) -> Result<SchedulingHints, RerankError> {
    let own = match head.headers.get(X_REQUEST_TIMEOUT_MS) {
        Some(value) => {
            let text = value.to_str().ok();
            let number: Option<u64> = text.and_then(|text| text.trim().parse().ok());
            let milliseconds = number.filter(|&ms| ms > 0).ok_or_else(|| {
                RerankError::invalid(
                    "`x-request-timeout-ms` is not a positive whole number of milliseconds; send \
                     one, or leave the header out",
                )
            })?;
            Some(Duration::from_millis(milliseconds))
        }
        None => metadata::timeout(head)?,
    };
    let default = config.request_timeout;
    let (timeout, by) = match own {
        Some(timeout) => (Some(timeout), DeadlineBy::Client),
        None => ((!default.is_zero()).then_some(default), DeadlineBy::Server),
    };
    let now = Instant::now().into_std();
    Ok(SchedulingHints {
        tenant: head.extensions.get().copied().unwrap_or_default(),
        deadline: timeout.map(|timeout| Deadline {
            at: now + timeout.min(MAX_TIMEOUT),
            by,
        }),
        ..SchedulingHints::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::{Request, Version};
    use rerankd_core::Tenant;

    fn head(header: Option<&str>) -> Parts {
        let mut request = Request::new(());
        if let Some(text) = header {
            let value = text.parse().unwrap();
            request.headers_mut().insert(X_REQUEST_TIMEOUT_MS, value);
        }
        request.into_parts().0
    }

    fn deadline(header: Option<&str>, default: Duration) -> Option<(u128, DeadlineBy)> {
        let config = BatchSettings {
            request_timeout: default,
            ..BatchSettings::default()
        };
        let hints = of_head(&head(header), &config).unwrap();
        let now = Instant::now().into_std();
        hints.deadline.map(|d| ((d.at - now).as_millis(), d.by))
    }

    #[tokio::test(start_paused = true)]
    async fn the_header_takes_precedence_over_the_setting() {
        let (never, default) = (Duration::ZERO, Duration::from_secs(5));
        assert_eq!(deadline(None, never), None);
        assert_eq!(deadline(None, default), Some((5000, DeadlineBy::Server)));
        let own = deadline(Some(" 250 "), default);
        assert_eq!(own, Some((250, DeadlineBy::Client)));
        let longest = deadline(Some("18446744073709551615"), never);
        assert_eq!(longest, Some((MAX_TIMEOUT.as_millis(), DeadlineBy::Client)));
    }

    #[test]
    fn a_header_that_is_not_a_positive_number_is_refused() {
        for text in ["", "0", "-5", "1.5", "soon", "99999999999999999999"] {
            let error = of_head(&head(Some(text)), &BatchSettings::default()).unwrap_err();
            assert!(error.message().contains("`x-request-timeout-ms`"), "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_timeout_of_a_call_is_its_deadline() {
        let deadline = |timeout: &str| {
            let request = Request::post("/")
                .version(Version::HTTP_2)
                .header("content-type", "application/grpc")
                .header("grpc-timeout", timeout);
            let head = request.body(()).unwrap().into_parts().0;
            let deadline = of_head(&head, &BatchSettings::default())?.deadline.unwrap();
            let now = Instant::now().into_std();
            Ok::<_, RerankError>(deadline.at.duration_since(now))
        };
        for (timeout, expected) in [
            ("250m", Duration::from_millis(250)),
            ("1S", Duration::from_secs(1)),
            ("2M", Duration::from_secs(120)),
            ("1H", Duration::from_secs(3600)),
            ("5000u", Duration::from_millis(5)),
            ("1000n", Duration::from_micros(1)),
            ("0m", Duration::ZERO),
            ("99999999H", MAX_TIMEOUT),
        ] {
            assert_eq!(deadline(timeout).unwrap(), expected, "{timeout}");
        }
        for timeout in [
            "",
            "m",
            "1",
            "1s",
            "+1m",
            "-1m",
            "1.5S",
            "123456789m",
            "1mm",
            "1 m",
        ] {
            let error = deadline(timeout).unwrap_err();
            assert!(error.message().contains("`grpc-timeout`"), "{timeout}");
        }
    }

    #[test]
    fn each_key_is_a_tenant() {
        let hints = |head: &Parts| of_head(head, &BatchSettings::default()).unwrap();
        let mut head = head(None);
        assert_eq!(hints(&head).tenant, Tenant::default());
        head.extensions.insert(Tenant(7));
        assert_eq!(hints(&head).tenant, Tenant(7));
    }
}
