//! Authentication by API key, and which web pages may send requests.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, PoisonError, RwLock};

use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use subtle::{Choice, ConstantTimeEq};

use crate::config::{ApiKeys, HttpConfig, MAX_KEY_BYTES};
use rerankd_core::Tenant;

/// Where keys are besides `Authorization`: most servers' own habit, and Azure's and Pinecone's.
const KEY_HEADERS: [HeaderName; 2] = [
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("api-key"),
];

/// The name of the API key that a request shows, for its log line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyName(pub Arc<str>);

/// The API keys that are valid now.
#[derive(Default)]
pub struct Keys {
    valid: RwLock<Arc<Vec<Key>>>,
    /// Hashes keys to tenants. It stays the same for the life of the process, so that a tenant
    /// survives every reload of the keys; it is random, so that a tenant tells nothing of its key.
    hasher: RandomState,
}

struct Key {
    owner: Owner,
    key: Padded,
}

/// Whose key a request shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) name: KeyName,
    pub(super) tenant: Tenant,
}

impl Keys {
    /// Makes `keys` the valid ones, and no others.
    ///
    /// The tenant follows from the key alone: neither its name nor its place in the list may move a
    /// share of the machine or of the cache from one client to another.
    pub fn replace(&self, keys: &ApiKeys) {
        let keys = keys.keys().iter().map(|key| Key {
            owner: Owner {
                name: KeyName(key.name.as_str().into()),
                tenant: Tenant(self.hasher.hash_one(&key.key)),
            },
            key: Padded::of(key.key.as_bytes()).expect("settings limit the length of keys"),
        });
        let keys = Arc::new(keys.collect());
        *self.valid.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    fn valid(&self) -> Arc<Vec<Key>> {
        self.valid
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Whether requests need no key.
    pub fn open(&self) -> bool {
        self.valid().is_empty()
    }

    /// Whose key `shown` is. Compares all of every key, so that the time tells nothing.
    pub(super) fn owner(&self, shown: &[u8]) -> Option<Owner> {
        let shown = Padded::of(shown)?;
        let mut owner = None;
        for key in self.valid().iter() {
            if bool::from(shown.ct_eq(&key.key)) {
                owner = Some(key.owner.clone());
            }
        }
        owner
    }
}

/// A key, padded to one length, and its own length.
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
    let authorization = headers
        .get(header::AUTHORIZATION)
        .map(HeaderValue::as_bytes);
    let authorization = authorization.map(<[u8]>::trim_ascii);
    let others = || KEY_HEADERS.iter().find_map(|name| headers.get(name));
    // Last, since clients whose key is elsewhere send things like `undefined` there.
    authorization
        .and_then(bearer)
        .or_else(|| Some(others()?.as_bytes()))
        .or_else(|| authorization.and_then(bare))
        .map(<[u8]>::trim_ascii)
}

/// The key after `Bearer`.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let end = value.iter().position(u8::is_ascii_whitespace)?;
    let (scheme, key) = value.split_at(end);
    scheme.eq_ignore_ascii_case(b"bearer").then_some(key)
}

/// A key without a scheme, as some clients send it.
fn bare(value: &[u8]) -> Option<&[u8]> {
    let is_scheme = value.eq_ignore_ascii_case(b"bearer");
    let spaced = value.iter().any(u8::is_ascii_whitespace);
    (!is_scheme && !spaced && !value.is_empty()).then_some(value)
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
    fn only_a_whole_key_is_valid() {
        let keys = Keys::default();
        assert!(keys.open());
        keys.replace(&ApiKeys::parse("search: sixteen-letters!, bulk: other-key-of-two").unwrap());
        assert!(!keys.open());
        let owner = |key: &str| Some(keys.owner(key.as_bytes())?.name.0.to_string());
        assert_eq!(owner("sixteen-letters!").as_deref(), Some("search"));
        assert_eq!(owner("other-key-of-two").as_deref(), Some("bulk"));
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
    fn a_tenant_is_its_key_whatever_the_order_and_the_names() {
        let keys = Keys::default();
        let owner = |key: &str| keys.owner(key.as_bytes()).unwrap();
        keys.replace(&ApiKeys::parse("first-key-of-two, second-key-of-two").unwrap());
        let (first, second) = (owner("first-key-of-two"), owner("second-key-of-two"));
        assert_ne!(first.tenant, second.tenant);
        keys.replace(&ApiKeys::parse("second-key-of-two").unwrap());
        assert_eq!(owner("second-key-of-two"), second);
        keys.replace(&ApiKeys::parse("search: second-key-of-two").unwrap());
        assert_eq!(owner("second-key-of-two").tenant, second.tenant);
    }

    #[test]
    fn a_key_comes_in_three_headers_or_bare() {
        let key = |name: &str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(HeaderName::try_from(name).unwrap(), value.parse().unwrap());
            shown(&headers).map(|key| String::from_utf8(key.to_vec()).unwrap())
        };
        assert_eq!(key("authorization", "Bearer abc").as_deref(), Some("abc"));
        assert_eq!(key("authorization", "bearer  abc ").as_deref(), Some("abc"));
        assert_eq!(key("x-api-key", "abc").as_deref(), Some("abc"));
        assert_eq!(key("authorization", "Basic abc"), None);
        assert_eq!(key("api-key", "abc").as_deref(), Some("abc"));
        assert_eq!(key("authorization", "abc").as_deref(), Some("abc"));
        assert_eq!(key("authorization", "Bearer"), None);
        assert_eq!(key("authorization", ""), None);
        let both = |authorization: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("authorization", authorization.parse().unwrap());
            headers.insert("x-api-key", "abc".parse().unwrap());
            shown(&headers).map(|key| String::from_utf8(key.to_vec()).unwrap())
        };
        assert_eq!(both("undefined").as_deref(), Some("abc"));
        assert_eq!(both("Bearer def").as_deref(), Some("def"));
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
