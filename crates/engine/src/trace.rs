//! What a request goes through, and when: for `Server-Timing`, for its log line, and for traces.

use std::future::Future;
use std::str::FromStr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use opentelemetry::global::BoxedTracer;
use opentelemetry::trace::{
    Link, Span, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags,
    TraceId, TraceState, Tracer,
};
use opentelemetry::{Context, KeyValue};

/// Part of the way of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Deciding whether there is room for it.
    Admission,
    /// Tokenising its texts, the wait for a thread included.
    Tokenize,
    /// Waiting for the first of its sequences to be taken.
    Queue,
    /// From then on to its last logits.
    Inference,
}

impl Step {
    /// Every step, in order.
    pub const ALL: [Self; 4] = [
        Self::Admission,
        Self::Tokenize,
        Self::Queue,
        Self::Inference,
    ];

    /// Its name in traces and in `Server-Timing`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Admission => "admission",
            Self::Tokenize => "tokenize",
            Self::Queue => "queue",
            Self::Inference => "inference",
        }
    }
}

/// Where spans go; nowhere until a collector is named.
static TRACER: OnceLock<BoxedTracer> = OnceLock::new();

/// Sends spans of this process with `tracer` from here on. The first one counts.
pub fn send_with(tracer: BoxedTracer) {
    // A second one is one too many: the process has one collector.
    let _ = TRACER.set(tracer);
}

/// Whether spans are sent.
pub fn is_on() -> bool {
    TRACER.get().is_some()
}

/// A request on its way. A cheap handle; the default one is of no request and keeps nothing.
#[derive(Debug, Clone, Default)]
pub struct Timeline(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    spent: Mutex<[Duration; Step::ALL.len()]>,
    /// When the first of its sequences was taken from the queue.
    taken: OnceLock<Instant>,
    /// Holds the request's span; of the caller's where none is sent.
    context: Context,
}

tokio::task_local! {
    static CURRENT: Timeline;
}

impl Timeline {
    /// A request that begins now; `caller` is the span that it is a part of.
    pub fn begin(name: String, caller: Option<SpanContext>) -> Self {
        let parent = match caller {
            Some(caller) => Context::new().with_remote_span_context(caller),
            None => Context::new(),
        };
        let context = match TRACER.get() {
            None => parent,
            Some(tracer) => {
                let span = SpanBuilder::from_name(name).with_kind(SpanKind::Server);
                parent.with_span(tracer.build_with_context(span, &parent))
            }
        };
        Self(Some(Arc::new(Inner {
            spent: Mutex::default(),
            taken: OnceLock::new(),
            context,
        })))
    }

    /// Whether both are of one request.
    pub fn is(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Some(own), Some(other)) => Arc::ptr_eq(own, other),
            _ => false,
        }
    }

    /// The request that the running task answers.
    pub fn current() -> Self {
        CURRENT.try_with(Self::clone).unwrap_or_default()
    }

    /// Runs `task` for this request.
    pub fn scope<F: Future>(&self, task: F) -> impl Future<Output = F::Output> + use<F> {
        CURRENT.scope(self.clone(), task)
    }

    /// The span that this process sends for it, or else that of the caller.
    fn span(&self) -> Option<SpanContext> {
        let context = &self.0.as_ref()?.context;
        let span = context.span().span_context().clone();
        span.is_valid().then_some(span)
    }

    /// Identifies its trace, where it has one.
    pub fn trace_id(&self) -> Option<String> {
        self.span().map(|span| span.trace_id().to_string())
    }

    /// What a caller is told of the span that this process sends.
    pub fn traceparent(&self) -> Option<String> {
        let span = self.span().filter(|span| !span.is_remote())?;
        let (trace, id, flags) = (span.trace_id(), span.span_id(), span.trace_flags().to_u8());
        Some(format!("00-{trace}-{id}-{flags:02x}"))
    }

    /// Notes that a step took from `started` to `ended`.
    pub fn record(&self, step: Step, started: Instant, ended: Instant) {
        let Some(inner) = &self.0 else {
            return;
        };
        let mut spent = inner.spent.lock().unwrap_or_else(PoisonError::into_inner);
        spent[step as usize] += ended.saturating_duration_since(started);
        drop(spent);
        if let Some(tracer) = TRACER.get()
            && inner.context.span().is_recording()
        {
            let span = SpanBuilder::from_name(step.name()).with_start_time(at(started));
            let mut span = tracer.build_with_context(span, &inner.context);
            span.end_with_timestamp(at(ended));
        }
    }

    /// Notes that a sequence was taken at `now`, of a request that was queued at `queued`.
    pub fn take(&self, queued: Instant, now: Instant) {
        if let Some(inner) = &self.0
            && inner.taken.set(now).is_ok()
        {
            self.record(Step::Queue, queued, now);
        }
    }

    /// Notes that all logits of a request are there that was queued at `queued`. One that had them all
    /// from others was never taken: it has waited until now.
    pub fn complete(&self, queued: Instant, now: Instant) {
        match self.0.as_ref().and_then(|inner| inner.taken.get()) {
            Some(&taken) => self.record(Step::Inference, taken, now),
            None => self.record(Step::Queue, queued, now),
        }
    }

    /// What each step has taken, without those that were not reached.
    pub fn spent(&self) -> Vec<(Step, Duration)> {
        let Some(inner) = &self.0 else {
            return Vec::new();
        };
        let spent = *inner.spent.lock().unwrap_or_else(PoisonError::into_inner);
        let steps = Step::ALL.into_iter().zip(spent);
        steps.filter(|(_, spent)| !spent.is_zero()).collect()
    }

    /// Ends the request's span with what became of it.
    pub fn end(&self, method: &str, route: &str, status: u16, request_id: &str) {
        let Some(inner) = &self.0 else {
            return;
        };
        let span = inner.context.span();
        if span.is_recording() {
            span.set_attributes([
                KeyValue::new("http.request.method", method.to_owned()),
                KeyValue::new("http.route", route.to_owned()),
                KeyValue::new("http.response.status_code", i64::from(status)),
                KeyValue::new("rerankd.request_id", request_id.to_owned()),
            ]);
            if status >= 500 {
                span.set_status(Status::error(""));
            }
            span.end();
        }
    }
}

/// A batch that was scored: what was in it, and for whom.
#[derive(Debug)]
pub struct BatchRecord<'a> {
    /// Requests that had a sequence in it.
    pub requests: &'a [Timeline],
    /// When the model began.
    pub started: Instant,
    /// When it had answered.
    pub ended: Instant,
    /// Sequences.
    pub pairs: usize,
    /// Tokens.
    pub tokens: usize,
}

impl BatchRecord<'_> {
    /// Sends the batch as a part of the first traced request, with links to all that are. Nothing is
    /// sent where none is.
    pub fn send(&self) {
        let Some(tracer) = TRACER.get() else {
            return;
        };
        let sampled = self.requests.iter().filter_map(Timeline::span);
        let links: Vec<Link> = sampled
            .filter(|span| span.is_sampled() && !span.is_remote())
            .map(|span| Link::new(span, Vec::new(), 0))
            .collect();
        let Some(first) = links.first() else {
            return;
        };
        // Not a trace of its own: the sampler would decide on it anew, and leave it out where those
        // that it links to are sent.
        let parent = Context::new().with_remote_span_context(first.span_context.clone());
        let pairs = i64::try_from(self.pairs).unwrap_or(i64::MAX);
        let tokens = i64::try_from(self.tokens).unwrap_or(i64::MAX);
        let batch = SpanBuilder::from_name("batch")
            .with_kind(SpanKind::Internal)
            .with_start_time(at(self.started))
            .with_attributes([
                KeyValue::new("rerankd.pairs", pairs),
                KeyValue::new("rerankd.tokens", tokens),
            ])
            .with_links(links);
        let mut batch = tracer.build_with_context(batch, &parent);
        batch.end_with_timestamp(at(self.ended));
    }
}

/// The span that `traceparent` and `tracestate` of W3C name; `None` where they name none.
pub fn caller(traceparent: &str, tracestate: Option<&str>) -> Option<SpanContext> {
    let parts: Vec<&str> = traceparent.trim().split('-').collect();
    let [version, trace, span, flags, rest @ ..] = &parts[..] else {
        return None;
    };
    let hex = |text: &str, length: usize| {
        let digits = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        text.len() == length && text.bytes().all(digits)
    };
    let known = *version == "00" && rest.is_empty();
    let later = hex(version, 2) && !matches!(*version, "00" | "ff");
    if !(known || later) || !hex(trace, 32) || !hex(span, 16) || !hex(flags, 2) {
        return None;
    }
    let sampled = u8::from_str_radix(flags, 16).ok()? & 1;
    let span = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        TraceFlags::new(sampled),
        true,
        tracestate
            .and_then(|state| TraceState::from_str(state).ok())
            .unwrap_or_default(),
    );
    span.is_valid().then_some(span)
}

/// The time of day of an instant in the past.
fn at(instant: Instant) -> SystemTime {
    SystemTime::now() - instant.elapsed()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    #[test]
    fn a_traceparent_is_read_as_w3c_wants_it() {
        let header = format!("00-{TRACE}-00f067aa0ba902b7-01");
        let span = caller(&header, Some("a=b")).unwrap();
        assert_eq!(span.trace_id().to_string(), TRACE);
        assert!(span.is_sampled() && span.is_remote());
        assert_eq!(span.trace_state().get("a"), Some("b"));
        let unsampled = caller(&format!("00-{TRACE}-00f067aa0ba902b7-00"), None).unwrap();
        assert!(!unsampled.is_sampled());
        assert!(caller(&format!("01-{TRACE}-00f067aa0ba902b7-01-more"), None).is_some());
        for wrong in [
            "",
            "00",
            TRACE,
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473é-00f067aa0ba902b7-01",
        ] {
            assert!(caller(wrong, None).is_none(), "{wrong}");
        }
    }

    #[test]
    fn steps_add_up_and_those_not_reached_are_left_out() {
        let timeline = Timeline::begin("POST /rerank".to_owned(), None);
        let start = Instant::now();
        let later = |ms| start + Duration::from_millis(ms);
        timeline.record(Step::Queue, start, later(3));
        timeline.clone().record(Step::Queue, later(5), later(6));
        timeline.record(Step::Inference, later(6), later(6));
        assert_eq!(timeline.spent(), [(Step::Queue, Duration::from_millis(4))]);
        assert_eq!(timeline.trace_id(), None);
    }

    #[test]
    fn the_first_sequence_that_is_taken_ends_the_wait() {
        let start = Instant::now();
        let later = |ms| start + Duration::from_millis(ms);
        let timeline = Timeline::begin(String::new(), None);
        timeline.take(start, later(2));
        timeline.take(start, later(5));
        timeline.complete(start, later(9));
        let spent = [(Step::Queue, 2), (Step::Inference, 7)];
        assert_eq!(
            timeline.spent(),
            spent.map(|(step, ms)| (step, Duration::from_millis(ms)))
        );
        let shared = Timeline::begin(String::new(), None);
        shared.complete(start, later(9));
        assert_eq!(shared.spent(), [(Step::Queue, Duration::from_millis(9))]);
    }

    #[test]
    fn the_trace_of_a_caller_is_known_where_no_spans_are_sent() {
        let span = caller(&format!("00-{TRACE}-00f067aa0ba902b7-01"), None);
        let timeline = Timeline::begin("GET /".to_owned(), span);
        assert_eq!(timeline.trace_id().as_deref(), Some(TRACE));
        assert_eq!(timeline.traceparent(), None);
    }
}
