//! What a request may claim of the machine, from its head.

use std::time::Duration;

use axum::http::HeaderName;
use axum::http::request::Parts;
use rerankd_core::{Claim, Deadline, DeadlineBy, RerankError, Tenant};
use tokio::time::Instant;

use super::auth::KeyName;
use crate::config::BatchSettings;

/// Milliseconds after which the client does not want the answer any more.
pub const X_REQUEST_TIMEOUT_MS: HeaderName = HeaderName::from_static("x-request-timeout-ms");

/// Longer than anybody waits, and short enough to be added to any time.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// The claim of a request whose head has just arrived. Each key is a tenant.
///
/// # Errors
/// When the header is no number of milliseconds.
pub fn of_head(head: &Parts, config: &BatchSettings) -> Result<Claim, RerankError> {
    let (timeout, by) = match head.headers.get(X_REQUEST_TIMEOUT_MS) {
        Some(value) => {
            let number = value
                .to_str()
                .ok()
                .and_then(|text| text.trim().parse().ok());
            let milliseconds: u64 = number.filter(|&ms| ms > 0).ok_or_else(|| {
                RerankError::invalid(
                    "`x-request-timeout-ms` is no whole number of milliseconds from 1; send \
                     one, or leave it out",
                )
            })?;
            (
                Some(Duration::from_millis(milliseconds)),
                DeadlineBy::Client,
            )
        }
        None => {
            let default = config.request_timeout;
            ((!default.is_zero()).then_some(default), DeadlineBy::Server)
        }
    };
    let now = Instant::now().into_std();
    let tenant = match head.extensions.get::<KeyName>() {
        Some(KeyName(name)) => Tenant::named(name),
        None => Tenant::default(),
    };
    Ok(Claim {
        tenant,
        deadline: timeout.map(|timeout| Deadline {
            at: now + timeout.min(LONGEST),
            by,
        }),
        ..Claim::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::Request;

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
        let claim = of_head(&head(header), &config).unwrap();
        let now = Instant::now().into_std();
        claim.deadline.map(|d| ((d.at - now).as_millis(), d.by))
    }

    #[tokio::test(start_paused = true)]
    async fn the_client_comes_before_the_settings() {
        let (never, default) = (Duration::ZERO, Duration::from_secs(5));
        assert_eq!(deadline(None, never), None);
        assert_eq!(deadline(None, default), Some((5000, DeadlineBy::Server)));
        let own = deadline(Some(" 250 "), default);
        assert_eq!(own, Some((250, DeadlineBy::Client)));
        let longest = deadline(Some("18446744073709551615"), never);
        assert_eq!(longest, Some((LONGEST.as_millis(), DeadlineBy::Client)));
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in ["", "0", "-5", "1.5", "soon", "99999999999999999999"] {
            let error = of_head(&head(Some(text)), &BatchSettings::default()).unwrap_err();
            assert!(error.message().contains("`x-request-timeout-ms`"), "{text}");
        }
    }

    #[test]
    fn each_key_is_a_tenant() {
        let tenant = |key: Option<&str>| {
            let mut head = head(None);
            if let Some(key) = key {
                head.extensions.insert(KeyName(key.into()));
            }
            of_head(&head, &BatchSettings::default()).unwrap().tenant
        };
        assert_eq!(tenant(None), Tenant::default());
        assert_eq!(tenant(Some("search")), tenant(Some("search")));
        assert_ne!(tenant(Some("search")), tenant(Some("bulk")));
    }
}
