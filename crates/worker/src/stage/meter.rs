//! What a stage shows of itself: how long its steps take, what it holds, how much of the machine's memory bandwidth it
//! uses, and spans of the steps that are traced. Steps report from the compute thread; gauges are read when somebody asks.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime};

use janus_wire::v1::FrameBody;
use opentelemetry::metrics::{Counter, Histogram, Meter as Instruments};
use opentelemetry::{Context, KeyValue, global};

use super::{Applied, Compute, StageCore};
use crate::sight::{SCOPE, SECONDS, trace};

/// Steps over which the used bandwidth is averaged.
const SMOOTH: f64 = 16.0;

/// Counts for one stage.
pub(super) struct Meter {
    node: KeyValue,
    steps: Histogram<f64>,
    busy: Counter<f64>,
    rows: Counter<u64>,
    read: Counter<u64>,
    refused: Counter<u64>,
    held: Arc<Held>,
}

/// What a stage holds. Fractions and speeds are the bits of an `f64`.
#[derive(Default)]
struct Held {
    first: AtomicU64,
    end: AtomicU64,
    slots: AtomicU64,
    open: AtomicU64,
    positions: AtomicU64,
    kv_bytes: AtomicU64,
    weight_bytes: AtomicU64,
    /// Bytes per second that this machine reads; 0 if nobody measured.
    bandwidth: AtomicU64,
    fraction: AtomicU64,
}

/// A step that has begun.
pub(super) struct Step {
    begun: Instant,
    /// Of steps that are traced.
    traced: Option<(SystemTime, Context)>,
    refused: u64,
}

impl Meter {
    /// Counts for the stage of this node, which has room for so many units.
    pub(super) fn new(node: &str, slots: usize) -> Self {
        let meter = global::meter(SCOPE);
        let (node, held) = (KeyValue::new("node", node.to_owned()), Arc::new(Held::default()));
        held.slots.store(slots as u64, Ordering::Relaxed);
        let seconds = meter.f64_histogram("janus.stage.step").with_unit("s").with_boundaries(SECONDS.to_vec());
        let busy = meter.f64_counter("janus.stage.busy").with_unit("s");
        let read = meter.u64_counter("janus.stage.weights_read").with_unit("By");
        gauges(&meter, &node, &held);
        let refused = meter.u64_counter("janus.stage.refused").with_description("Frames and units that did not fit").build();
        // The first refusal must be seen as a change.
        ["frame", "unit"].into_iter().for_each(|what| refused.add(0, &[node.clone(), KeyValue::new("what", what)]));
        Meter {
            steps: seconds.with_description("Computing one microbatch").build(),
            busy: busy.with_description("Time spent computing").build(),
            rows: meter.u64_counter("janus.stage.rows").with_description("Rows computed").build(),
            read: read.with_description("Weights of layers that steps had to read, once for each step").build(),
            refused,
            node,
            held,
        }
    }

    /// This machine reads so many bytes per second.
    pub(super) fn bandwidth(&self, bytes_per_second: f64) {
        self.held.bandwidth.store(bytes_per_second.to_bits(), Ordering::Relaxed);
    }

    /// A frame did not fit its link.
    pub(super) fn refused_frame(&self) {
        self.refused.add(1, &[self.node.clone(), KeyValue::new("what", "frame")]);
    }

    /// A step begins.
    pub(super) fn begin<C: Compute>(&self, core: &StageCore<C>, body: &FrameBody) -> Step {
        let traced = janus_wire::trace::context(&body.traceparent).map(|context| (SystemTime::now(), context));
        Step { begun: Instant::now(), traced, refused: refused(core) }
    }

    /// It has ended.
    pub(super) fn end<C: Compute>(&self, step: Step, core: &StageCore<C>, applied: &Applied) {
        let node = std::slice::from_ref(&self.node);
        let refused = refused(core) - step.refused;
        if refused > 0 {
            self.refused.add(refused, &[self.node.clone(), KeyValue::new("what", "unit")]);
        }
        let rows = applied.rows.len() / core.compute().hidden().max(1);
        if rows > 0 {
            let (seconds, bytes) = (step.begun.elapsed().as_secs_f64(), core.compute().layer_bytes() as u64);
            self.steps.record(seconds, node);
            self.busy.add(seconds, node);
            self.rows.add(rows as u64, node);
            self.read.add(bytes, node);
            self.held.used(bytes as f64 / seconds.max(1e-9));
        }
        if let Some((at, context)) = step.traced {
            let layers = core.compute().layers();
            let about = [
                ("janus.first_layer", layers.start as i64),
                ("janus.end_layer", layers.end as i64),
                ("janus.rows", rows as i64),
            ];
            let about = about.into_iter().map(|(key, value)| KeyValue::new(key, value));
            let node = KeyValue::new("janus.node", self.node.value.clone());
            trace("stage", at, &context, about.chain([node]).collect());
        }
        self.holds(Some(core));
    }

    /// What it holds from now on.
    pub(super) fn holds<C: Compute>(&self, core: Option<&StageCore<C>>) {
        let Some(core) = core else { return self.held.set(0..0, [0; 4]) };
        let compute = core.compute();
        let sizes = [core.open_slots(), core.positions(), compute.kv_bytes(), compute.weight_bytes()];
        self.held.set(compute.layers(), sizes);
    }
}

impl Held {
    fn set(&self, layers: Range<usize>, [open, positions, kv_bytes, weight_bytes]: [usize; 4]) {
        let fields = [&self.first, &self.end, &self.open, &self.positions, &self.kv_bytes, &self.weight_bytes];
        let values = [layers.start, layers.end, open, positions, kv_bytes, weight_bytes];
        fields.into_iter().zip(values).for_each(|(field, value)| field.store(value as u64, Ordering::Relaxed));
    }

    /// A step read its weights at this speed.
    fn used(&self, bytes_per_second: f64) {
        let most = f64::from_bits(self.bandwidth.load(Ordering::Relaxed));
        if most > 0.0 {
            let average = f64::from_bits(self.fraction.load(Ordering::Relaxed));
            let next = average + (bytes_per_second / most - average) / SMOOTH;
            self.fraction.store(next.to_bits(), Ordering::Relaxed);
        }
    }
}

fn refused<C: Compute>(core: &StageCore<C>) -> u64 {
    let counters = core.counters();
    counters.refused_units + counters.refused_ops
}

/// Name, unit, meaning, and where it is.
type Gauge = (&'static str, &'static str, &'static str, fn(&Held) -> &AtomicU64);

fn gauges(meter: &Instruments, node: &KeyValue, held: &Arc<Held>) {
    let numbers: [Gauge; 7] = [
        ("janus.stage.first_layer", "", "First layer it holds", |h| &h.first),
        ("janus.stage.end_layer", "", "Layer after the last one it holds", |h| &h.end),
        ("janus.stage.slots", "", "Units it has room for", |h| &h.slots),
        ("janus.stage.slots_open", "", "Units it has", |h| &h.open),
        ("janus.stage.kv_positions", "", "Positions in KV memory, over all rows", |h| &h.positions),
        ("janus.stage.kv", "By", "KV memory reserved", |h| &h.kv_bytes),
        ("janus.stage.weight", "By", "Weights held", |h| &h.weight_bytes),
    ];
    for (name, unit, about, field) in numbers {
        let (node, held) = (node.clone(), held.clone());
        let gauge = meter.u64_observable_gauge(name).with_unit(unit).with_description(about);
        let read = move || field(&held).load(Ordering::Relaxed);
        gauge.with_callback(move |to| to.observe(read(), std::slice::from_ref(&node))).build();
    }
    let fractions: [Gauge; 2] = [
        ("janus.stage.bandwidth_fraction", "", "Weights read per second of computing, over what the machine reads", |h| {
            &h.fraction
        }),
        ("janus.machine.read_bandwidth", "By/s", "What this machine reads, measured at the start", |h| &h.bandwidth),
    ];
    for (name, unit, about, field) in fractions {
        let (node, held) = (node.clone(), held.clone());
        let gauge = meter.f64_observable_gauge(name).with_unit(unit).with_description(about);
        gauge
            .with_callback(move |to| {
                if held.bandwidth.load(Ordering::Relaxed) > 0 {
                    to.observe(f64::from_bits(field(&held).load(Ordering::Relaxed)), std::slice::from_ref(&node));
                }
            })
            .build();
    }
}
