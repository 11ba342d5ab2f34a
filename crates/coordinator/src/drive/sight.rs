//! What is seen of a pipeline: its steps counted by mode and tenant, and the steps that are traced.
//!
//! A picture has hundreds of steps over several stages, so a trace has some of them: the first of each unit, every
//! [`EVERY`]th, and those that rebuild it after a loss. Such a frame carries the step's context to the stages. A frame
//! has rows of many units; the step belongs to the trace of one and is linked with the others.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, SystemTime};

use janus_wire::frame;
use janus_wire::v1::{FrameBody, Mode, SlotOp, Unit, slot_op::Op};
use opentelemetry::global::{self, BoxedSpan};
use opentelemetry::metrics::{Counter, Histogram};
use opentelemetry::trace::{Link, Span, SpanContext, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue};
use tokio::time::Instant;

use crate::schedule::UnitId;
use crate::sight::{OTHER, SCOPE, STEPS, TENANTS, WAITS};

/// One in so many steps of a traced unit is in its trace.
const EVERY: u64 = 64;
/// Other traces that a step names.
const LINKS: usize = 16;

/// What is seen of one pipeline.
pub(super) struct Sight {
    pipeline: KeyValue,
    modes: [KeyValue; 3],
    microbatches: Counter<u64>,
    steps: Histogram<f64>,
    rows: Counter<u64>,
    tenant_rows: Counter<u64>,
    prefix_hits: Counter<u64>,
    prefix_positions: Counter<u64>,
    failovers: Counter<u64>,
    recovery: Histogram<f64>,
    tenants: BTreeSet<String>,
    /// Units that are traced.
    traces: HashMap<String, Trace>,
    keys: HashMap<UnitId, String>,
    seats: HashMap<u32, Seat>,
    flying: BTreeMap<u64, Flight>,
}

struct Trace {
    context: Context,
    /// Since when it waits for its slot.
    since: Option<SystemTime>,
}

/// Whose slot it is.
struct Seat {
    generation: u32,
    /// None for the canary.
    tenant: Option<KeyValue>,
    trace: Option<Context>,
    steps: u64,
    copied: bool,
}

/// A frame on its way.
struct Flight {
    sent: Instant,
    /// By mode.
    rows: [u64; 3],
    by_tenant: Vec<(KeyValue, u64)>,
    /// Ends with it.
    span: Option<BoxedSpan>,
}

impl Sight {
    pub(super) fn new(pipeline: u64) -> Self {
        let meter = global::meter(SCOPE);
        let steps = meter.f64_histogram("janus.pipeline.step").with_unit("s").with_boundaries(STEPS.to_vec());
        let recovery = meter.f64_histogram("janus.pipeline.recovery").with_unit("s").with_boundaries(WAITS.to_vec());
        let rows = meter.u64_counter("janus.pipeline.rows").with_description("Rows computed");
        let microbatches = meter.u64_counter("janus.pipeline.microbatches");
        let failovers = meter.u64_counter("janus.pipeline.failovers");
        let tenant_rows = meter.u64_counter("janus.tenant.rows");
        let pipeline = KeyValue::new("pipeline", pipeline as i64);
        let failovers = failovers.with_description("Times the pipeline was lost").build();
        let prefix_hits = meter.u64_counter("janus.prefix.hits");
        let prefix_hits = prefix_hits.with_description("Units that copied the beginning of their prompt").build();
        let prefix_positions = meter.u64_counter("janus.prefix.positions");
        let prefix_positions = prefix_positions.with_description("Positions that were copied, not computed").build();
        // The first one must be seen as a change.
        for counter in [&failovers, &prefix_hits, &prefix_positions] {
            counter.add(0, std::slice::from_ref(&pipeline));
        }
        Sight {
            pipeline,
            modes: ["prefill", "decode", "replay"].map(|mode| KeyValue::new("mode", mode)),
            microbatches: microbatches.with_description("Microbatches that came back").build(),
            steps: steps.with_description("A microbatch's way through all stages").build(),
            rows: rows.build(),
            tenant_rows: tenant_rows.with_description("Rows computed for a tenant").build(),
            prefix_hits,
            prefix_positions,
            failovers,
            recovery: recovery.with_description("From a loss to the next id").build(),
            tenants: BTreeSet::new(),
            traces: HashMap::new(),
            keys: HashMap::new(),
            seats: HashMap::new(),
            flying: BTreeMap::new(),
        }
    }

    /// A unit waits; `key` names its log, `context` is its request's.
    pub(super) fn submitted(&mut self, unit: UnitId, key: &str, context: &Context) {
        if context.span().span_context().is_sampled() && !key.is_empty() {
            self.keys.insert(unit, key.to_owned());
            self.traces.insert(key.to_owned(), Trace { context: context.clone(), since: Some(SystemTime::now()) });
        }
    }

    /// Nothing more will be heard of a unit.
    pub(super) fn left(&mut self, unit: UnitId) {
        if let Some(key) = self.keys.remove(&unit) {
            self.traces.remove(&key);
        }
    }

    /// A frame is about to leave. If one of its units is traced and it is time, the frame is told.
    pub(super) fn sent(&mut self, body: &mut FrameBody) {
        for op in &body.slots {
            self.slot(op);
        }
        let mut flight = Flight { sent: Instant::now(), rows: [0; 3], by_tenant: Vec::new(), span: None };
        let mut traces: Vec<Context> = Vec::new();
        for unit in &body.units {
            let rows = rows_of(unit);
            flight.rows[mode_of(unit)] += rows;
            let Some(seat) = self.seats.get_mut(&unit.slot).filter(|seat| seat.generation == unit.generation) else {
                continue;
            };
            seat.steps += 1;
            if let Some(tenant) = &seat.tenant {
                match flight.by_tenant.iter_mut().find(|(known, _)| known == tenant) {
                    Some((_, sum)) => *sum += rows,
                    None => flight.by_tenant.push((tenant.clone(), rows)),
                }
            }
            let due = seat.steps == 1 || seat.steps % EVERY == 0 || unit.mode() == Mode::Replay;
            if due {
                traces.extend(seat.trace.clone());
            }
        }
        if let Some(parent) = traces.first() {
            let span = self.span(body, parent, &traces[1..], &flight.rows);
            let context = Context::new().with_remote_span_context(span.span_context().clone());
            body.traceparent = janus_wire::trace::traceparent(&context);
            flight.span = Some(span);
        }
        self.flying.insert(body.microbatch, flight);
    }

    fn span(&self, body: &FrameBody, parent: &Context, others: &[Context], rows: &[u64; 3]) -> BoxedSpan {
        let tracer = global::tracer(SCOPE);
        let of = |context: &Context| context.span().span_context().clone();
        let mut others: Vec<SpanContext> = others.iter().map(of).filter(|other| *other != of(parent)).collect();
        others.dedup();
        let links = others.into_iter().take(LINKS).map(Link::with_context).collect();
        let attributes = [
            ("janus.pipeline.epoch", body.epoch as i64),
            ("janus.microbatch", body.microbatch as i64),
            ("janus.units", body.units.len() as i64),
            ("janus.rows", rows.iter().sum::<u64>() as i64),
            ("janus.rows.replay", rows[2] as i64),
        ];
        let attributes = attributes.into_iter().map(|(key, value)| KeyValue::new(key, value));
        let pipeline = KeyValue::new("janus.pipeline", self.pipeline.value.clone());
        let builder = tracer.span_builder("step").with_links(links).with_attributes(attributes.chain([pipeline]));
        builder.start_with_context(&tracer, parent)
    }

    fn slot(&mut self, op: &SlotOp) {
        match &op.op {
            Some(Op::Open(open)) => {
                let tenant = open.key.split_once('/').map(|(tenant, _)| self.tenant(tenant));
                let trace = self.traces.get_mut(&open.key).map(|trace| {
                    if let Some(since) = trace.since.take() {
                        let tracer = global::tracer(SCOPE);
                        tracer
                            .span_builder("queued")
                            .with_start_time(since)
                            .start_with_context(&tracer, &trace.context)
                            .end();
                    }
                    trace.context.clone()
                });
                self.seats.insert(op.slot, Seat { generation: op.generation, tenant, trace, steps: 0, copied: false });
            }
            Some(Op::Close(_) | Op::Keep(_)) => {
                if self.seats.get(&op.slot).is_some_and(|seat| seat.generation == op.generation) {
                    self.seats.remove(&op.slot);
                }
            }
            Some(Op::Copy(copy)) => {
                let pipeline = std::slice::from_ref(&self.pipeline);
                self.prefix_positions.add(copy.length.into(), pipeline);
                if let Some(seat) = self.seats.get_mut(&op.slot).filter(|seat| seat.generation == op.generation) {
                    self.prefix_hits.add(u64::from(!seat.copied), pipeline);
                    seat.copied = true;
                }
            }
            Some(Op::Truncate(_)) | None => {}
        }
    }

    /// Names are bounded, or tenants could fill a memory that is not theirs.
    fn tenant(&mut self, name: &str) -> KeyValue {
        if !self.tenants.contains(name) {
            if self.tenants.len() >= TENANTS {
                return KeyValue::new("tenant", OTHER);
            }
            self.tenants.insert(name.to_owned());
        }
        KeyValue::new("tenant", name.to_owned())
    }

    /// A microbatch came back.
    pub(super) fn came(&mut self, microbatch: u64) {
        let Some(flight) = self.flying.remove(&microbatch) else { return };
        let pipeline = std::slice::from_ref(&self.pipeline);
        self.microbatches.add(1, pipeline);
        if flight.rows.iter().any(|rows| *rows > 0) {
            self.steps.record(flight.sent.elapsed().as_secs_f64(), pipeline);
        }
        for (rows, mode) in flight.rows.into_iter().zip(&self.modes).filter(|(rows, _)| *rows > 0) {
            self.rows.add(rows, &[self.pipeline.clone(), mode.clone()]);
        }
        for (tenant, rows) in flight.by_tenant {
            self.tenant_rows.add(rows, &[tenant]);
        }
    }

    /// The epoch is over, and with it whatever was on its way.
    pub(super) fn over(&mut self) {
        self.flying.clear();
        self.seats.clear();
    }

    /// It ended because the pipeline was lost.
    pub(super) fn lost(&self) {
        self.failovers.add(1, std::slice::from_ref(&self.pipeline));
    }

    /// Work goes on, so long after a loss.
    pub(super) fn recovered(&self, took: Duration) {
        self.recovery.record(took.as_secs_f64(), std::slice::from_ref(&self.pipeline));
    }
}

fn rows_of(unit: &Unit) -> u64 {
    frame::rows(unit) as u64
}

fn mode_of(unit: &Unit) -> usize {
    match unit.mode() {
        Mode::Decode => 1,
        Mode::Replay => 2,
        Mode::Prefill | Mode::Unspecified => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use janus_wire::v1::{Kind, slot_op};
    use opentelemetry::trace::{SpanId, TraceFlags, TraceId, TraceState};

    fn traced(n: u8) -> Context {
        let id = SpanContext::new(
            TraceId::from_bytes([n; 16]),
            SpanId::from_bytes([n; 8]),
            TraceFlags::SAMPLED,
            true,
            TraceState::NONE,
        );
        Context::new().with_remote_span_context(id)
    }

    fn frame(microbatch: u64, opens: &[(u32, &str)], units: &[(u32, Mode)]) -> FrameBody {
        let open = |(slot, key): &(u32, &str)| SlotOp {
            slot: *slot,
            generation: 1,
            op: Some(Op::Open(slot_op::Open { key: (*key).to_owned(), ..slot_op::Open::default() })),
        };
        let unit = |(slot, mode): &(u32, Mode)| Unit {
            slot: *slot,
            generation: 1,
            kind: Kind::Pair.into(),
            mode: (*mode).into(),
            positions: 1,
            ..Unit::default()
        };
        FrameBody {
            microbatch,
            slots: opens.iter().map(open).collect(),
            units: units.iter().map(unit).collect(),
            ..FrameBody::default()
        }
    }

    /// Which of the frames are traced.
    fn traced_steps(sight: &mut Sight, frames: impl IntoIterator<Item = FrameBody>) -> Vec<u64> {
        let mut found = Vec::new();
        for mut frame in frames {
            sight.sent(&mut frame);
            found.extend(sight.flying[&frame.microbatch].span.as_ref().map(|_| frame.microbatch));
            sight.came(frame.microbatch);
        }
        found
    }

    #[test]
    fn a_trace_has_the_first_step_and_every_64th_and_all_that_rebuild() {
        let mut sight = Sight::new(1);
        sight.submitted(7, "t/a#0", &traced(1));
        let steps = (0..130).map(|i| frame(i, if i == 0 { &[(3, "t/a#0")] } else { &[] }, &[(3, Mode::Decode)]));
        assert_eq!(traced_steps(&mut sight, steps), [0, 63, 127]);
        // The pipeline is lost: the unit gets a slot again, and its trace goes on.
        sight.over();
        let again = (200..204).map(|i| {
            let mode = if i < 202 { Mode::Replay } else { Mode::Decode };
            frame(i, if i == 200 { &[(0, "t/a#0")] } else { &[] }, &[(0, mode)])
        });
        assert_eq!(traced_steps(&mut sight, again), [200, 201]);
    }

    #[test]
    fn what_nobody_traces_and_what_has_left_costs_no_spans() {
        let mut sight = Sight::new(1);
        sight.submitted(7, "t/a#0", &Context::new());
        sight.submitted(8, "t/b#0", &traced(1));
        sight.left(8);
        let first = frame(0, &[(0, "t/a#0"), (1, "t/b#0")], &[(0, Mode::Prefill), (1, Mode::Prefill)]);
        assert_eq!(traced_steps(&mut sight, [first]), [0_u64; 0]);
        assert!(sight.traces.is_empty() && sight.keys.is_empty() && sight.flying.is_empty());
    }

    #[test]
    fn tenants_beyond_the_bound_share_one_name() {
        let mut sight = Sight::new(1);
        for i in 0..TENANTS {
            assert_eq!(sight.tenant(&format!("t{i}")).value.as_str(), format!("t{i}"));
        }
        assert_eq!(sight.tenant("one more").value.as_str(), OTHER);
        assert_eq!(sight.tenant("t0").value.as_str(), "t0");
    }
}
