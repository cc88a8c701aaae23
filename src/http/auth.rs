//! Who may ask: keys, and pages of which origin.

use std::sync::{Arc, PoisonError, RwLock};

use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, Uri, header};
use subtle::{Choice, ConstantTimeEq};

use crate::config::{ApiKeys, HttpConfig, MAX_KEY_BYTES};

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Whose key a request shows, travelling to the scheduler and to the log line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyName(pub Arc<str>);

/// The keys that are taken now.
#[derive(Default)]
pub struct Keys(RwLock<Arc<Vec<Key>>>);

struct Key {
    name: KeyName,
    key: Padded,
}

impl Keys {
    /// Takes `keys` from here on, and no others.
    pub fn replace(&self, keys: &ApiKeys) {
        let keys = keys.keys().iter().map(|key| Key {
            name: KeyName(key.name.as_str().into()),
            key: Padded::of(key.key.as_bytes()).expect("keys of the configuration are short"),
        });
        let keys = Arc::new(keys.collect());
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    fn now(&self) -> Arc<Vec<Key>> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Whether anybody is served.
    pub fn open(&self) -> bool {
        self.now().is_empty()
    }

    /// Whose key `shown` is. Every key is compared to its end, whichever it is.
    pub(super) fn owner(&self, shown: &[u8]) -> Option<KeyName> {
        let shown = Padded::of(shown)?;
        let mut owner = None;
        for key in self.now().iter() {
            if bool::from(shown.ct_eq(&key.key)) {
                owner = Some(key.name.clone());
            }
        }
        owner
    }
}

/// A key and its length, at a length that all keys have.
struct Padded([u8; MAX_KEY_BYTES], usize);

impl Padded {
    fn of(key: &[u8]) -> Option<Self> {
        let mut padded = [0; MAX_KEY_BYTES];
        padded.get_mut(..key.len())?.copy_from_slice(key);
        Some(Self(padded, key.len()))
    }
}

impl ConstantTimeEq for Padded {
    fn ct_eq(&self, other: &Self) -> Choice {
        self.0[..].ct_eq(&other.0[..]) & self.1.ct_eq(&other.1)
    }
}

/// The key that a request shows.
pub(super) fn shown(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked("Bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"bearer ").then_some(key)
    });
    bearer
        .or_else(|| Some(headers.get(X_API_KEY)?.as_bytes()))
        .map(<[u8]>::trim_ascii)
}

/// The origin of the page that sends a request, where the server does not answer it.
///
/// A page of any site can send requests to servers that its visitor reaches. Its own server is
/// known by an address that is a number, or `localhost`: a name could be one that the page's owner
/// points here.
pub(super) fn foreign(headers: &HeaderMap, uri: &Uri, config: &HttpConfig) -> Option<String> {
    let origin = headers.get(header::ORIGIN)?;
    let origin = String::from_utf8_lossy(origin.as_bytes()).into_owned();
    let allowed = config
        .cors_origin
        .iter()
        .any(|allowed| *allowed == origin || allowed == "*");
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok())
        .or(uri.authority().map(Authority::as_str));
    let own = host.is_some_and(|host| {
        let same = origin.split_once("://").is_some_and(|(_, of)| of == host);
        same && host.parse().is_ok_and(|host| numeric(&host))
    });
    (!allowed && !own).then_some(origin)
}

/// Whether an authority names its host by number, or as this machine.
fn numeric(host: &Authority) -> bool {
    let name = host.host();
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || bare.parse::<std::net::IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Origins, Value};

    #[test]
    fn a_key_is_known_whole_and_only_whole() {
        let keys = Keys::default();
        assert!(keys.open());
        keys.replace(&ApiKeys::parse("search: sixteen-letters!, other-key-of-two").unwrap());
        assert!(!keys.open());
        let owner = |key: &str| keys.owner(key.as_bytes()).map(|name| name.0.to_string());
        assert_eq!(owner("sixteen-letters!").as_deref(), Some("search"));
        assert_eq!(owner("other-key-of-two").as_deref(), Some("key-2"));
        let long = "x".repeat(MAX_KEY_BYTES + 1);
        for wrong in [
            "",
            "sixteen-letters",
            "sixteen-letters!!",
            "sixteen-letters!\0",
            &long,
        ] {
            assert_eq!(owner(wrong), None, "{wrong}");
        }
        keys.replace(&ApiKeys::parse("third-key-of-all").unwrap());
        assert_eq!(owner("sixteen-letters!"), None);
    }

    #[test]
    fn a_key_comes_in_two_headers() {
        let key = |name: &str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(HeaderName::try_from(name).unwrap(), value.parse().unwrap());
            shown(&headers).map(|key| String::from_utf8(key.to_vec()).unwrap())
        };
        assert_eq!(key("authorization", "Bearer abc").as_deref(), Some("abc"));
        assert_eq!(key("authorization", "bearer  abc ").as_deref(), Some("abc"));
        assert_eq!(key("x-api-key", "abc").as_deref(), Some("abc"));
        assert_eq!(key("authorization", "Basic abc"), None);
        assert_eq!(key("authorization", "Bear"), None);
    }

    #[test]
    fn an_origin_is_own_by_number_or_allowed_by_name() {
        let allowed = HttpConfig {
            cors_origin: Origins::parse("https://a.example").unwrap(),
            ..HttpConfig::default()
        };
        let refused = |origin: &str, host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ORIGIN, origin.parse().unwrap());
            headers.insert(header::HOST, host.parse().unwrap());
            foreign(&headers, &Uri::from_static("/"), &allowed).is_some()
        };
        for (origin, host, expected) in [
            ("http://127.0.0.1:80", "127.0.0.1:80", false),
            ("http://[::1]:80", "[::1]:80", false),
            ("http://localhost:80", "localhost:80", false),
            ("https://a.example", "rerank.example", false),
            ("https://b.example", "127.0.0.1:80", true),
            // A name that was pointed here.
            ("http://b.example:80", "b.example:80", true),
            ("http://127.0.0.1:81", "127.0.0.1:80", true),
            ("null", "127.0.0.1:80", true),
        ] {
            assert_eq!(refused(origin, host), expected, "{origin} at {host}");
        }
        assert!(foreign(&HeaderMap::new(), &Uri::from_static("/"), &allowed).is_none());
    }
}
