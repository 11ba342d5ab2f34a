//! What a worker's roles show of themselves: durations, and spans of the work that is traced.

use std::time::{Instant, SystemTime};

use opentelemetry::metrics::Histogram;
use opentelemetry::trace::{Span, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue, global};

/// Seconds of computing: from a step of a tiny model to a picture on a slow machine.
pub(crate) const SECONDS: [f64; 14] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0];

/// The name under which instruments and spans are known.
pub(crate) const SCOPE: &str = "janus";

/// One kind of work that a node does.
#[derive(Clone)]
pub(crate) struct Work {
    name: &'static str,
    seconds: Histogram<f64>,
    labels: Vec<KeyValue>,
}

impl Work {
    /// Work of a node, counted under `instrument` with `labels`; `name` is that of its spans.
    pub(crate) fn new(name: &'static str, instrument: &'static str, about: &'static str, labels: Vec<KeyValue>) -> Self {
        let meter = global::meter(SCOPE);
        let seconds = meter.f64_histogram(instrument).with_unit("s").with_description(about);
        Work { name, seconds: seconds.with_boundaries(SECONDS.to_vec()).build(), labels }
    }

    /// Does it, as a part of `parent`.
    pub(crate) fn time<R>(&self, parent: &Context, work: impl FnOnce() -> R) -> R {
        let (at, begun) = (SystemTime::now(), Instant::now());
        let done = work();
        self.seconds.record(begun.elapsed().as_secs_f64(), &self.labels);
        trace(self.name, at, parent, self.labels.clone());
        done
    }
}

/// A span that began at `at` and ends now, if `parent` is traced.
pub(crate) fn trace(name: &'static str, at: SystemTime, parent: &Context, attributes: Vec<KeyValue>) {
    if !parent.span().span_context().is_sampled() {
        return;
    }
    let tracer = global::tracer(SCOPE);
    let span = tracer.span_builder(name).with_start_time(at).with_attributes(attributes);
    span.start_with_context(&tracer, parent).end();
}
