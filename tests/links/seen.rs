//! What a simulation has seen: its history, and what must never happen.

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, MutexGuard};

use janus_coordinator::{Coordinator, DriverHandle};
use janus_model::llama::Span;
use janus_wire::v1::Input;
use janus_worker::stage::{Compute, Features, SampleJob};
use tokio_util::sync::CancellationToken;

use crate::dice::mix;
use crate::toy::{NUMERICS, Toy};

/// Shared by all hosts of one simulation.
#[derive(Default)]
pub(crate) struct Seen(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    /// In order, with the time and the sum of every read and write before it.
    lines: Vec<String>,
    sum: u64,
    faults: Vec<String>,
    /// What was drawn at an index of a unit, by the unit's seed.
    drawn: BTreeMap<(u64, u32), u32>,
    /// How often each request ended.
    ends: BTreeMap<usize, u64>,
    counts: Counts,
    reign: Option<Reign>,
    /// What kills each host.
    alive: BTreeMap<&'static str, CancellationToken>,
    calm: bool,
}

/// What came of it, in numbers.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) reigns: u64,
    pub(crate) placements: u64,
    pub(crate) ready: u64,
    pub(crate) again: u64,
    pub(crate) resumed: u64,
}

/// The coordinator that was started last.
#[derive(Clone)]
pub(crate) struct Reign {
    pub(crate) coordinator: Coordinator,
    pub(crate) driver: DriverHandle,
}

impl Seen {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// A byte of the history that nobody reads.
    pub(crate) fn mark(&self, what: u64) {
        let at = turmoil::sim_elapsed().unwrap_or_default().as_millis() as u64;
        let mut inner = self.inner();
        inner.sum = mix(inner.sum ^ mix(at << 3 | what));
    }

    pub(crate) fn note(&self, what: impl std::fmt::Display) {
        let at = turmoil::sim_elapsed().unwrap_or_default();
        let mut inner = self.inner();
        let line = format!("{:8.3} s {:016x} {what}", at.as_secs_f64(), inner.sum);
        inner.lines.push(line);
    }

    /// What must not happen has happened.
    pub(crate) fn fault(&self, what: impl std::fmt::Display) {
        self.note(format_args!("FAULT {what}"));
        self.inner().faults.push(what.to_string());
    }

    pub(crate) fn faults(&self) -> Vec<String> {
        self.inner().faults.clone()
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.inner().lines.clone()
    }

    pub(crate) fn counts(&self) -> Counts {
        self.inner().counts
    }

    pub(crate) fn count(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.inner().counts);
    }

    /// A host starts; what it will hear of its end.
    pub(crate) fn alive(&self, host: &'static str) -> CancellationToken {
        let token = CancellationToken::new();
        self.inner().alive.insert(host, token.clone());
        token
    }

    pub(crate) fn kill(&self, host: &str) {
        let token = self.inner().alive.remove(host);
        token.iter().for_each(CancellationToken::cancel);
    }

    /// The fencing epoch of a coordinator that starts.
    pub(crate) fn next_fence(&self) -> u64 {
        let mut inner = self.inner();
        inner.counts.reigns += 1;
        inner.counts.reigns
    }

    pub(crate) fn reigns(&self, reign: Reign) {
        self.inner().reign = Some(reign);
    }

    pub(crate) fn reign(&self) -> Option<Reign> {
        self.inner().reign.clone()
    }

    /// From now on nothing breaks any more.
    pub(crate) fn calm_down(&self) {
        self.inner().calm = true;
    }

    pub(crate) fn calm(&self) -> bool {
        self.inner().calm
    }

    pub(crate) fn ended(&self, request: usize) {
        let mut inner = self.inner();
        let times = inner.ends.entry(request).or_default();
        *times += 1;
        if *times > 1 {
            inner.faults.push(format!("request {request} ended twice"));
        }
    }

    /// An id was drawn: the same as ever at its place.
    fn drew(&self, job: &SampleJob, id: u32) {
        let place = (job.sampling.seed, job.index);
        let before = *self.inner().drawn.entry(place).or_insert(id);
        if before != id {
            self.fault(format_args!("{before} was drawn for {place:?}, and now {id}"));
        }
    }
}

/// The model of hashes, watched: it panics when rows come twice, late or out of order, and a panic in a stage would only
/// end a link.
pub(crate) struct Watched {
    toy: Toy,
    seen: Arc<Seen>,
}

impl Watched {
    pub(crate) fn new(layers: Range<usize>, seen: Arc<Seen>) -> Self {
        Watched { toy: Toy::new(NUMERICS[0], layers), seen }
    }

    fn watch<R>(&mut self, work: impl FnOnce(&mut Toy) -> R) -> R {
        match catch_unwind(AssertUnwindSafe(|| work(&mut self.toy))) {
            Ok(done) => done,
            Err(panic) => {
                let words = panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "the model panicked".to_owned());
                self.seen.fault(words);
                resume_unwind(panic)
            }
        }
    }

    /// The rows of a pair come together: whoever has none left to feed has copied them.
    fn check_pairs(&self, spans: &[Span]) {
        for span in spans {
            let (mine, other) = (self.toy.length(span.slot), self.toy.length(span.slot ^ 1));
            let (Some(mine), Some(other)) = (mine, other) else { continue };
            let both = spans.iter().any(|s| s.slot == span.slot ^ 1);
            if (both && mine != other) || mine > other {
                self.seen.fault(format_args!("half a pair: rows {mine} and {other} in slot {}", span.slot / 2));
            }
        }
    }
}

impl Compute for Watched {
    fn hidden(&self) -> usize {
        self.toy.hidden()
    }

    fn layers(&self) -> Range<usize> {
        self.toy.layers()
    }

    fn total_layers(&self) -> usize {
        self.toy.total_layers()
    }

    fn open(&mut self, row_slot: usize, capacity: usize) -> Result<(), String> {
        self.watch(|toy| toy.open(row_slot, capacity))
    }

    fn close(&mut self, row_slot: usize) {
        self.watch(|toy| toy.close(row_slot));
    }

    fn truncate(&mut self, row_slot: usize, length: usize) -> Result<(), String> {
        self.watch(|toy| toy.truncate(row_slot, length))
    }

    fn copy(&mut self, from: usize, to: usize, length: usize) -> Result<(), String> {
        self.watch(|toy| toy.copy(from, to, length))
    }

    fn shrink(&mut self, row_slot: usize, length: usize) -> Result<(), String> {
        self.watch(|toy| toy.shrink(row_slot, length))
    }

    fn embed(&mut self, input: &Input, features: &Features, out: &mut Vec<f32>) -> Result<(), String> {
        self.watch(|toy| toy.embed(input, features, out))
    }

    fn forward(&mut self, spans: &[Span], x: &mut [f32]) -> Result<(), String> {
        let done = self.watch(|toy| toy.forward(spans, x));
        self.check_pairs(spans);
        done
    }

    fn sample(&mut self, jobs: &[SampleJob], rows: &[f32], out: &mut Vec<Result<u32, String>>) {
        let before = out.len();
        self.watch(|toy| toy.sample(jobs, rows, out));
        for (job, id) in jobs.iter().zip(&out[before..]) {
            match id {
                // The canary is nobody's.
                Ok(id) if job.sampling.seed > 0 => self.seen.drew(job, *id),
                Ok(_) => {}
                Err(reason) => self.seen.fault(reason),
            }
        }
    }

    fn weight_bytes(&self) -> usize {
        self.toy.weight_bytes()
    }

    fn kv_bytes(&self) -> usize {
        self.toy.kv_bytes()
    }
}
