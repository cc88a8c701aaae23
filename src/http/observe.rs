//! One log line and one count a request, whatever became of it.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll, ready};
use std::time::Instant;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use http_body::Frame;
use opentelemetry::Context;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry_http::HeaderExtractor;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use rerankd_engine::trace::Timeline;
use tracing::Instrument;

use super::auth::KeyName;
use super::error::{Failure, Refused};
use super::notes::{AnsweredBy, AnsweredIn, Cost, LoggedStatus, attach};
use super::progress::{Outcome, Streamed};
use super::route::{self, CLIENT_LEFT};
use super::state::AppState;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Longest request id that is taken over from a client: ids end up in every log line.
const REQUEST_ID_CHARS: usize = 128;

/// Names one request in its answer and in every log line it causes.
#[derive(Debug, Clone)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// The client's own id where it is short and printable, a new one otherwise.
    fn of(headers: &HeaderMap) -> Self {
        let own = headers
            .get(X_REQUEST_ID)
            .and_then(|value| value.to_str().ok())
            .filter(|text| (1..=REQUEST_ID_CHARS).contains(&text.len()))
            .filter(|text| text.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        match own {
            Some(text) => Self(text.into()),
            None => Self(uuid::Uuid::new_v4().to_string().into()),
        }
    }

    /// The id.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn header(&self) -> HeaderValue {
        HeaderValue::from_str(&self.0).expect("ids are printable ASCII")
    }
}

impl FromRequestParts<AppState> for RequestId {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, Infallible> {
        Ok(parts
            .extensions
            .get()
            .cloned()
            .unwrap_or_else(|| Self::of(&parts.headers)))
    }
}

/// The timeline of `request`, as part of its caller's trace.
fn timeline(request: &Request, route: &str) -> Timeline {
    Timeline::begin(
        format!("{} {route}", request.method()),
        caller(request.headers()),
    )
}

/// The W3C trace context of the caller; empty if there is none or it is malformed.
fn caller(headers: &HeaderMap) -> Context {
    let traceparent = headers
        .get(TRACEPARENT)
        .and_then(|value| value.to_str().ok());
    if traceparent.is_some_and(is_well_formed) {
        TraceContextPropagator::new()
            .extract_with_context(&Context::new(), &HeaderExtractor(headers))
    } else {
        Context::new()
    }
}

/// Checks the fields of a `traceparent`: the propagator also accepts ids that are too short, or have a
/// sign.
fn is_well_formed(traceparent: &str) -> bool {
    let is_hex = |digit: u8| matches!(digit, b'0'..=b'9' | b'a'..=b'f');
    let mut fields = traceparent.trim().split('-');
    [2, 32, 16, 2].iter().all(|&digits| {
        let field = fields.next().unwrap_or_default();
        field.len() == digits && field.bytes().all(is_hex)
    })
}

/// Names the request, then logs and counts it when it ends.
pub async fn observe(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    let id = RequestId::of(request.headers());
    let route = request.extensions().get::<MatchedPath>();
    let in_flight = Arc::new(state.enter());
    // What has a body is accepted when it has been read.
    if request.body().is_end_stream() {
        in_flight.accept();
    }
    let record = Record {
        id: id.clone(),
        method: request.method().clone(),
        // Never the raw path: it is the client's text, and as a label it has no bound.
        route: route.map_or_else(|| "other".to_owned(), |path| path.as_str().to_owned()),
        timeline: timeline(&request, route.map_or("other", MatchedPath::as_str)),
        start: Instant::now(),
        answered: false,
        state,
    };
    let span = tracing::info_span!("request", request_id = id.as_str());
    request.extensions_mut().insert(id.clone());
    request.extensions_mut().insert(in_flight.clone());
    let answering = next.run(request).instrument(span);
    let mut response = record.timeline.scope(answering).await;
    let headers = response.headers_mut();
    headers.insert(X_REQUEST_ID, id.header());
    headers.insert(SERVER_TIMING, record.server_timing());
    if let Some(span) = record.timeline.traceparent() {
        headers.insert(
            TRACEPARENT,
            HeaderValue::from_str(&span).expect("hexadecimal digits"),
        );
    }
    let response = match response.extensions_mut().remove::<Streamed>() {
        None => {
            record.answered(&response);
            response
        }
        // The line of a stream comes at its end.
        Some(streamed) => {
            let notes = Notes::of(&response);
            let record = Some((record, notes));
            response.map(|body| {
                Body::new(Recorded {
                    body,
                    streamed,
                    record,
                })
            })
        }
    };
    attach(response, in_flight)
}

/// The body of a stream, whose record ends with it.
struct Recorded {
    body: Body,
    streamed: Streamed,
    record: Option<(Record, Notes)>,
}

impl HttpBody for Recorded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        let is_last = frame
            .as_ref()
            .is_none_or(|frame| frame.as_ref().is_ok_and(Frame::is_trailers));
        if is_last && let Some((mut record, mut notes)) = self.record.take() {
            record.answered = true;
            let Outcome {
                pairs,
                tokens,
                failure,
            } = self.streamed.outcome();
            notes.cost = Some(Cost { pairs, tokens });
            let status = match &failure {
                None => StatusCode::OK.as_u16(),
                Some(Failure::BodyEnded) => CLIENT_LEFT,
                Some(failure) => failure.kind().0.as_u16(),
            };
            notes.refused = failure.map(Refused);
            record.end(status, notes);
        }
        Poll::Ready(frame)
    }
}

/// A request from its head to its end. When it is dropped without an answer, the client has left:
/// the server drops the handler, and with it the work.
struct Record {
    state: AppState,
    id: RequestId,
    method: Method,
    route: String,
    timeline: Timeline,
    start: Instant,
    answered: bool,
}

/// What its answer says about a request.
#[derive(Default)]
struct Notes {
    cost: Option<Cost>,
    refused: Option<Refused>,
    dialect: Option<AnsweredIn>,
    model: Option<AnsweredBy>,
    key: Option<KeyName>,
}

impl Notes {
    fn of(response: &Response) -> Self {
        let extensions = response.extensions();
        Self {
            cost: extensions.get().copied(),
            refused: extensions.get().cloned(),
            dialect: extensions.get().copied(),
            model: extensions.get().cloned(),
            key: extensions.get().cloned(),
        }
    }
}

impl Record {
    /// How long each step has taken, in milliseconds, as browsers and clients show it.
    fn server_timing(&self) -> HeaderValue {
        let steps = self.timeline.spent().into_iter();
        let steps = steps.map(|(step, spent)| (step.name(), spent));
        let all = steps.chain([("total", self.start.elapsed())]);
        let entries: Vec<String> = all
            .map(|(name, spent)| format!("{name};dur={:.3}", spent.as_secs_f64() * 1e3))
            .collect();
        HeaderValue::from_str(&entries.join(", ")).expect("names and numbers")
    }

    fn answered(mut self, response: &Response) {
        self.answered = true;
        let notes = Notes::of(response);
        let status = match (&notes.refused, response.extensions().get::<LoggedStatus>()) {
            // The client has most likely left.
            (Some(Refused(Failure::BodyEnded)), _) => CLIENT_LEFT,
            (_, Some(logged)) => logged.0.as_u16(),
            (_, None) => response.status().as_u16(),
        };
        self.end(status, notes);
    }

    fn end(&self, status: u16, notes: Notes) {
        let cost = notes.cost;
        let cause = notes.refused.as_ref().and_then(|refused| refused.0.cause());
        let dialect = notes.dialect.map(|dialect| dialect.0.name);
        let model = notes.model.as_ref().map(|model| &*model.0);
        let key = notes.key.as_ref().map(|key| &*key.0);
        let elapsed = self.start.elapsed();
        self.timeline
            .end(self.method.as_str(), &self.route, status, self.id.as_str());
        let trace_id = self.timeline.trace_id();
        let metrics = &self.state.metrics().edge;
        metrics
            .requests
            .with_label_values(&[self.route.as_str(), &status.to_string()])
            .inc();
        metrics
            .request_seconds
            .with_label_values(&[&self.route])
            .observe(elapsed.as_secs_f64());
        // The macros want their level as a constant.
        macro_rules! line {
            ($level:ident, $message:literal) => {
                tracing::$level!(
                    method = self.method.as_str(),
                    route = self.route,
                    status,
                    latency_ms = elapsed.as_secs_f64() * 1e3,
                    request_id = self.id.as_str(),
                    trace_id,
                    pairs = cost.map(|cost| cost.pairs),
                    tokens = cost.map(|cost| cost.tokens),
                    dialect,
                    model,
                    key,
                    cause,
                    $message
                )
            };
        }
        // Some dialects have another status than 500 for a failure of the server.
        if status == StatusCode::INTERNAL_SERVER_ERROR.as_u16() || cause.is_some() {
            line!(error, "request failed");
        } else if status == CLIENT_LEFT {
            line!(info, "client left");
        } else if route::is_probe(&self.route) {
            // Probes come every few seconds and would bury the rest.
            line!(debug, "request");
        } else {
            line!(info, "request");
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.answered {
            self.end(CLIENT_LEFT, Notes::default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry::trace::TraceContextExt;

    #[test]
    fn trace_ids_of_another_length_start_a_new_trace() {
        let (trace, span) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        for (traceparent, expected) in [
            (format!("00-{trace}-{span}-01"), true),
            (format!("01-{trace}-{span}-01-later"), true),
            (format!("00-{}-{span}-01", &trace[1..]), false),
            (format!("00-{trace}0-{span}-01"), false),
            (format!("00-{trace}-{}-01", &span[1..]), false),
            (format!("00-+{}-{span}-01", &trace[1..]), false),
            (format!("00-{}-{span}-01", trace.to_uppercase()), false),
            (format!("0-{trace}-{span}-01"), false),
            (format!("00-{trace}-{span}-1"), false),
            (format!("00-{trace}-{span}"), false),
            (format!("00-{}-{span}-01", "0".repeat(32)), false),
            (String::new(), false),
        ] {
            let headers = HeaderMap::from_iter([(TRACEPARENT, traceparent.parse().unwrap())]);
            let context = caller(&headers);
            let accepted = context.span().span_context().is_valid();
            assert_eq!(accepted, expected, "{traceparent}");
        }
    }
}
