//! What is seen of a call: a span, log lines that name its request, how long it took and how it ended.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Task, Poll, ready};
use std::time::Instant;

use janus_wire::v1::{self, RequestHeader, chat_event, generate_image_event};
use opentelemetry::metrics::{Counter, Histogram, UpDownCounter};
use opentelemetry::{KeyValue, global};
use tokio_stream::Stream;
use tonic::{Code, Request, Response, Status};
use tracing::{Span, error_span, field::Empty};

use super::Events;
use crate::auth::Caller;
use crate::sight::{SCOPE, WAITS};

/// Seconds between two ids: the convention's bounds, and slower ones for machines without accelerators.
const PACES: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5];
/// Longest request id that is valid.
const ID: usize = 128;

/// Counts of all calls.
pub(super) struct Calls {
    model: KeyValue,
    duration: Histogram<f64>,
    first: Histogram<f64>,
    pace: Histogram<f64>,
    ended: Counter<u64>,
    open: UpDownCounter<i64>,
    restarted: Counter<u64>,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Paint,
    Chat,
    Tokenize,
    Detokenize,
}

/// One call; what happens to it is counted when it ends, however it ends.
pub(super) struct Seen {
    calls: Arc<Calls>,
    operation: Operation,
    span: Span,
    begun: Instant,
    /// When its first and its latest id came, and how many ids that were.
    ids: Option<(Instant, Instant, u64, u64)>,
    done: bool,
}

/// What an event says of a call.
pub(super) enum Mark {
    /// So many ids are known.
    Known(u64),
    /// One more id is known.
    Another,
    Done,
    Else,
}

/// Events that say how far a call is.
pub(super) trait Marks {
    fn mark(&self) -> Mark;
}

/// A stream of events that is watched on its way to the caller.
pub struct Watched<T> {
    events: Events<T>,
    seen: Seen,
}

impl Calls {
    pub(super) fn new(model: &str) -> Self {
        let meter = global::meter(SCOPE);
        let seconds = |name, about, bounds: &[f64]| {
            meter.f64_histogram(name).with_unit("s").with_description(about).with_boundaries(bounds.to_vec()).build()
        };
        let ended = meter.u64_counter("janus.requests").with_description("Requests that have ended");
        let begun_again = "Requests that began again under other numerics";
        let open = meter.i64_up_down_counter("janus.requests.open").with_description("Requests that are being answered");
        Calls {
            model: KeyValue::new("gen_ai.request.model", model.to_owned()),
            duration: seconds("gen_ai.server.request.duration", "From the call to the last event", &WAITS),
            first: seconds("gen_ai.server.time_to_first_token", "From the call to the first id", &WAITS),
            pace: seconds("gen_ai.server.time_per_output_token", "Between ids, after the first", &PACES),
            ended: ended.build(),
            restarted: meter.u64_counter("janus.requests.restarted").with_description(begun_again).build(),
            open: open.build(),
        }
    }

    pub(super) fn restarted(&self, requests: u64) {
        self.restarted.add(requests, &[]);
    }
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Operation::Paint => "generate_content",
            Operation::Chat => "chat",
            Operation::Tokenize => "tokenize",
            Operation::Detokenize => "detokenize",
        }
    }

    /// Errors are told to whoever logs errors alone, and they name the request.
    fn span(self, request: &str, tenant: &str) -> Span {
        macro_rules! span {
            ($name:literal) => {
                error_span!($name, request, tenant, otel.kind = "server", outcome = Empty, otel.status_code = Empty)
            };
        }
        match self {
            Operation::Paint => span!("GenerateImage"),
            Operation::Chat => span!("Chat"),
            Operation::Tokenize => span!("Tokenize"),
            Operation::Detokenize => span!("Detokenize"),
        }
    }
}

impl Seen {
    /// A call begins, in its caller's trace if it has one.
    pub(super) fn begin<T>(
        calls: &Arc<Calls>,
        operation: Operation,
        request: &Request<T>,
        header: Option<&RequestHeader>,
    ) -> Self {
        let id = header.map_or("", |header| header.request_id.as_str());
        let valid = id.len() <= ID && id.bytes().all(|b| b.is_ascii_graphic());
        let _theirs = janus_wire::trace::received(request.metadata()).attach();
        let span = operation.span(if valid { id } else { "invalid" }, &Caller::of(request).tenant);
        calls.open.add(1, &[KeyValue::new("operation", operation.name())]);
        Seen { calls: calls.clone(), operation, span, begun: Instant::now(), ids: None, done: false }
    }

    pub(super) fn span(&self) -> Span {
        self.span.clone()
    }

    /// The end of a call that has one answer.
    pub(super) fn answered<T>(mut self, answer: Result<Response<T>, Status>) -> Result<Response<T>, Status> {
        self.end(answer.as_ref().err());
        answer
    }

    /// A call that is answered by a stream ends with it.
    pub(super) fn streaming<T>(
        mut self,
        answer: Result<Response<Events<T>>, Status>,
    ) -> Result<Response<Watched<T>>, Status> {
        match answer {
            Ok(response) => Ok(response.map(|events| Watched { events, seen: self })),
            Err(status) => {
                self.end(Some(&status));
                Err(status)
            }
        }
    }

    fn mark(&mut self, mark: Mark) {
        match mark {
            Mark::Known(known) => self.know(known),
            Mark::Another => self.know(self.ids.map_or(1, |(.., ids)| ids + 1)),
            Mark::Done => self.end(None),
            Mark::Else => {}
        }
    }

    fn know(&mut self, known: u64) {
        let now = Instant::now();
        match &mut self.ids {
            Some((_, latest, _, ids)) => (*latest, *ids) = (now, known),
            none => *none = Some((now, now, known, known)),
        }
    }

    /// It ended, in this error or well.
    fn end(&mut self, status: Option<&Status>) {
        if std::mem::replace(&mut self.done, true) {
            return;
        }
        let error = status.map(Status::code);
        let (calls, operation) = (&self.calls, KeyValue::new("operation", self.operation.name()));
        let (seconds, outcome) = (self.begun.elapsed().as_secs_f64(), outcome(error, self.ids.is_some()));
        calls.open.add(-1, std::slice::from_ref(&operation));
        calls.ended.add(1, &[operation, KeyValue::new("outcome", outcome)]);
        if matches!(self.operation, Operation::Paint | Operation::Chat) {
            let mut labels = vec![
                KeyValue::new("gen_ai.operation.name", self.operation.name()),
                KeyValue::new("gen_ai.provider.name", "janus"),
                calls.model.clone(),
            ];
            if let Some((first, latest, from, to)) = self.ids {
                calls.first.record((first - self.begun).as_secs_f64(), &labels);
                if error.is_none() && to > from {
                    calls.pace.record((latest - first).as_secs_f64() / (to - from) as f64, &labels);
                }
            }
            labels.extend(error.map(|code| KeyValue::new("error.type", error_type(code))));
            calls.duration.record(seconds, &labels);
        }
        let _entered = self.span.enter();
        self.span.record("outcome", outcome);
        match (outcome, status) {
            ("failed", Some(status)) => {
                self.span.record("otel.status_code", "ERROR");
                tracing::warn!(outcome, seconds, error = status.message(), "request ended");
            }
            (_, Some(status)) => tracing::info!(outcome, seconds, reason = status.message(), "request ended"),
            (_, None) => tracing::info!(outcome, seconds, "request ended"),
        }
    }
}

impl Drop for Seen {
    fn drop(&mut self) {
        // Nobody listened to the end.
        self.end(Some(&Status::cancelled("nobody listens any more")));
    }
}

impl<T: Marks + Unpin> Stream for Watched<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Option<Self::Item>> {
        let next = ready!(Pin::new(&mut self.events).poll_next(task));
        match &next {
            Some(Ok(event)) => self.seen.mark(event.mark()),
            Some(Err(status)) => self.seen.end(Some(status)),
            None => {}
        }
        Poll::Ready(next)
    }
}

impl Marks for v1::GenerateImageEvent {
    fn mark(&self) -> Mark {
        match &self.event {
            // The pictures of a request are drawn together: one stands for all.
            Some(generate_image_event::Event::Progress(progress)) if progress.index == 0 => {
                Mark::Known(progress.known.into())
            }
            Some(generate_image_event::Event::Done(_)) => Mark::Done,
            _ => Mark::Else,
        }
    }
}

impl Marks for v1::ChatEvent {
    fn mark(&self) -> Mark {
        match &self.event {
            Some(chat_event::Event::Token(_)) => Mark::Another,
            Some(chat_event::Event::Done(_)) => Mark::Done,
            _ => Mark::Else,
        }
    }
}

/// How a call ended, for people who look at rates.
fn outcome(error: Option<Code>, begun: bool) -> &'static str {
    match error {
        None => "ok",
        Some(Code::Cancelled) => "cancelled",
        Some(Code::InvalidArgument | Code::NotFound | Code::AlreadyExists | Code::OutOfRange) => "invalid",
        Some(Code::Unavailable) if begun => "moved",
        Some(Code::ResourceExhausted | Code::Unavailable | Code::Unauthenticated | Code::PermissionDenied) => "refused",
        Some(Code::DeadlineExceeded) => "deadline",
        Some(_) => "failed",
    }
}

/// A code's name as metrics spell it.
fn error_type(code: Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.extend(letter.to_lowercase());
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unavailable_answer_is_a_refusal_only_before_the_first_id() {
        assert_eq!(outcome(Some(Code::Unavailable), false), "refused");
        assert_eq!(outcome(Some(Code::Unavailable), true), "moved");
        assert_eq!(outcome(None, true), "ok");
        assert_eq!(outcome(Some(Code::DataLoss), true), "failed");
        assert_eq!(error_type(Code::ResourceExhausted), "resource_exhausted");
    }
}
