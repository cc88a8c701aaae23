//! Requests in every dialect, through the whole router, to a model that counts words.
//!
//! An input is a path and a line end, then a body. Whatever the body, the server answers in JSON and
//! never with its own failure.
#![no_main]

use std::sync::{LazyLock, Mutex};

use axum::body::Body;
use axum::http::Request;
use libfuzzer_sys::{Corpus, fuzz_target};
use rerankd::config::Config;
use tokio::runtime::Runtime;

use support::fake::Model;
use support::server::TestApp;

#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../../tests/support"]
mod support {
    pub mod fake;
    pub mod real;
    pub mod server;
}

/// The fake model remembers what it scored: a server is replaced after so many requests.
const REQUESTS: usize = 5000;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());
static APP: Mutex<Option<(TestApp, usize)>> = Mutex::new(None);

fuzz_target!(|data: &[u8]| -> Corpus {
    let mut parts = data.splitn(2, |byte| *byte == b'\n');
    let (Some(path), Some(body)) = (parts.next(), parts.next()) else {
        return Corpus::Reject;
    };
    let Ok(request) = Request::post(path).body(Body::from(body.to_vec())) else {
        return Corpus::Reject;
    };
    let _entered = RUNTIME.enter();
    let mut app = APP.lock().unwrap();
    if app.as_ref().is_none_or(|(_, sent)| *sent == REQUESTS) {
        *app = Some((TestApp::new(Model::default(), Config::default()), 0));
    }
    let (app, sent) = app.as_mut().unwrap();
    *sent += 1;
    let answer = RUNTIME.block_on(app.send(request));
    assert!(!answer.status.is_server_error(), "{answer:?}");
    if !answer.body.is_empty() {
        answer.json();
    }
    Corpus::Keep
});
