//! The timeline of a request: how long each step took, for `Server-Timing`, log lines and traces.

use std::future::Future;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use opentelemetry::global::BoxedTracer;
use opentelemetry::trace::{
    Link, Span, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt, Tracer,
};
use opentelemetry::{Context, KeyValue};

/// A step in the life of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Deciding whether the queue has room for it.
    Admission,
    /// Tokenizing its texts, including the wait for a thread.
    Tokenize,
    /// Waiting until the first of its sequences is part of a batch.
    Queue,
    /// From then until the last logits are computed.
    Inference,
}

impl Step {
    /// All steps, in order.
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

/// Records spans; unset if no collector is configured.
static TRACER: OnceLock<BoxedTracer> = OnceLock::new();

/// Records the spans of this process with `tracer` from now on. Later calls have no effect: a process
/// has one collector.
pub fn send_with(tracer: BoxedTracer) {
    let _ = TRACER.set(tracer);
}

/// Whether spans are recorded.
pub fn is_on() -> bool {
    TRACER.get().is_some()
}

/// The timeline of one request. A cheap handle; the default one belongs to no request and records
/// nothing.
#[derive(Debug, Clone, Default)]
pub struct Timeline(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    spent: Mutex<[Duration; Step::ALL.len()]>,
    /// When the first of its sequences left the queue.
    taken: OnceLock<Instant>,
    /// Holds the request's own span, or the caller's if no spans are recorded.
    context: Context,
}

tokio::task_local! {
    static CURRENT: Timeline;
}

impl Timeline {
    /// A request that begins now; `parent` holds the caller's span if there is one.
    pub fn begin(name: String, parent: Context) -> Self {
        let context = match TRACER.get() {
            None => parent,
            Some(tracer) => {
                let span = SpanBuilder::from_name(name).with_kind(SpanKind::Server);
                parent.with_span(tracer.build_with_context(span, &parent))
            }
        };
        Self::of(context)
    }

    /// A part of the request that begins now, such as a message of a stream. Its steps are its own, and its
    /// span is one inside the request's.
    pub fn part(&self, name: &'static str) -> Self {
        let context = match (&self.0, TRACER.get()) {
            (None, _) => Context::new(),
            (Some(inner), Some(tracer)) if inner.context.span().is_recording() => {
                let span = SpanBuilder::from_name(name).with_kind(SpanKind::Internal);
                let span = tracer.build_with_context(span, &inner.context);
                inner.context.with_span(span)
            }
            (Some(inner), _) => inner.context.clone(),
        };
        Self::of(context)
    }

    fn of(context: Context) -> Self {
        Self(Some(Arc::new(Inner {
            spent: Mutex::default(),
            taken: OnceLock::new(),
            context,
        })))
    }

    /// Whether both belong to the same request.
    pub fn is(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Some(own), Some(other)) => Arc::ptr_eq(own, other),
            _ => false,
        }
    }

    /// The timeline of the request that the current task serves.
    pub fn current() -> Self {
        CURRENT.try_with(Self::clone).unwrap_or_default()
    }

    /// Runs `task` with this as the current timeline.
    pub fn scope<F: Future>(&self, task: F) -> impl Future<Output = F::Output> + use<F> {
        CURRENT.scope(self.clone(), task)
    }

    /// The request's own span, or the caller's if no spans are recorded.
    fn span(&self) -> Option<SpanContext> {
        let context = &self.0.as_ref()?.context;
        let span = context.span().span_context().clone();
        span.is_valid().then_some(span)
    }

    /// The id of its trace, if it has one.
    pub fn trace_id(&self) -> Option<String> {
        self.span().map(|span| span.trace_id().to_string())
    }

    /// The `traceparent` of the request's own span, for the response.
    pub fn traceparent(&self) -> Option<String> {
        let span = self.span().filter(|span| !span.is_remote())?;
        let (trace, id, flags) = (span.trace_id(), span.span_id(), span.trace_flags().to_u8());
        Some(format!("00-{trace}-{id}-{flags:02x}"))
    }

    /// Records that a step took from `started` to `ended`.
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

    /// Records that a sequence of the request, queued at `queued`, left the queue at `now`.
    pub fn take(&self, queued: Instant, now: Instant) {
        if let Some(inner) = &self.0
            && inner.taken.set(now).is_ok()
        {
            self.record(Step::Queue, queued, now);
        }
    }

    /// Records that the request, queued at `queued`, has all its logits at `now`. If other requests
    /// computed all of them, it was in the queue until now.
    pub fn complete(&self, queued: Instant, now: Instant) {
        match self.0.as_ref().and_then(|inner| inner.taken.get()) {
            Some(&taken) => self.record(Step::Inference, taken, now),
            None => self.record(Step::Queue, queued, now),
        }
    }

    /// How long each step took, without steps that were not reached.
    pub fn spent(&self) -> Vec<(Step, Duration)> {
        let Some(inner) = &self.0 else {
            return Vec::new();
        };
        let spent = *inner.spent.lock().unwrap_or_else(PoisonError::into_inner);
        let steps = Step::ALL.into_iter().zip(spent);
        steps.filter(|(_, spent)| !spent.is_zero()).collect()
    }

    /// Notes the name of the model that the request is for.
    pub fn of_model(&self, name: &str) {
        if let Some(inner) = &self.0 {
            let span = inner.context.span();
            if span.is_recording() {
                span.set_attribute(KeyValue::new("rerankd.model", name.to_owned()));
            }
        }
    }

    /// Ends the request's span with its outcome.
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

/// A scored batch.
#[derive(Debug)]
pub struct BatchRecord<'a> {
    /// Name of its model.
    pub model: &'a str,
    /// The requests that have a sequence in it.
    pub requests: &'a [Timeline],
    /// When the model started.
    pub started: Instant,
    /// When the model was done.
    pub ended: Instant,
    /// Number of sequences.
    pub pairs: usize,
    /// Number of tokens.
    pub tokens: usize,
}

impl BatchRecord<'_> {
    /// Records the batch as a child of its first sampled request, with links to all sampled ones. Does
    /// nothing if none is sampled.
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
        // A trace of its own would be sampled independently of the requests that it links to.
        let parent = Context::new().with_remote_span_context(first.span_context.clone());
        let pairs = i64::try_from(self.pairs).unwrap_or(i64::MAX);
        let tokens = i64::try_from(self.tokens).unwrap_or(i64::MAX);
        let batch = SpanBuilder::from_name("batch")
            .with_kind(SpanKind::Internal)
            .with_start_time(at(self.started))
            .with_attributes([
                KeyValue::new("rerankd.model", self.model.to_owned()),
                KeyValue::new("rerankd.pairs", pairs),
                KeyValue::new("rerankd.tokens", tokens),
            ])
            .with_links(links);
        let mut batch = tracer.build_with_context(batch, &parent);
        batch.end_with_timestamp(at(self.ended));
    }
}

/// The wall-clock time of an instant in the past.
fn at(instant: Instant) -> SystemTime {
    SystemTime::now() - instant.elapsed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry::trace::{SpanId, TraceFlags, TraceId, TraceState};

    #[test]
    fn steps_add_up_and_those_not_reached_are_left_out() {
        let timeline = Timeline::begin("POST /rerank".to_owned(), Context::new());
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
        let timeline = Timeline::begin(String::new(), Context::new());
        timeline.take(start, later(2));
        timeline.take(start, later(5));
        timeline.complete(start, later(9));
        let spent = [(Step::Queue, 2), (Step::Inference, 7)];
        assert_eq!(
            timeline.spent(),
            spent.map(|(step, ms)| (step, Duration::from_millis(ms)))
        );
        let shared = Timeline::begin(String::new(), Context::new());
        shared.complete(start, later(9));
        assert_eq!(shared.spent(), [(Step::Queue, Duration::from_millis(9))]);
    }

    #[test]
    fn the_trace_of_the_caller_is_known_although_no_spans_are_recorded() {
        let (trace, span) = (TraceId::from(7), SpanId::from(8));
        let state = TraceState::default();
        let caller = SpanContext::new(trace, span, TraceFlags::SAMPLED, true, state);
        let parent = Context::new().with_remote_span_context(caller);
        let timeline = Timeline::begin("GET /".to_owned(), parent);
        assert_eq!(timeline.trace_id(), Some(trace.to_string()));
        assert_eq!(timeline.traceparent(), None);
    }
}
