//! How long a step may take: what is alive but stuck breaks no stream, so only time tells.

use std::collections::BTreeMap;
use std::time::Duration;

use janus_wire::frame;
use janus_wire::v1::FrameBody;

use super::core::Now;

/// No step is overdue before this.
const LEAST: Duration = Duration::from_secs(2);
/// Before the first step of an epoch has come back: weights may still be cold.
const FIRST: Duration = Duration::from_secs(30);
/// A step may take this many times what is usual for its rows.
const PATIENCE: f64 = 8.0;
/// Steps that make the running median.
const REMEMBERED: usize = 65;

/// The steps of one epoch that are on their way, and how fast the latest ones were.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Microbatch, rows, and when it was its turn.
    flying: BTreeMap<u64, (usize, Now)>,
    /// Seconds per row of the latest steps, in a ring, and their median.
    seconds: Vec<f64>,
    median: Option<f64>,
    next: usize,
}

impl Pace {
    pub(super) fn sent(&mut self, now: Now, body: &FrameBody) {
        let rows = body.units.iter().map(frame::rows).sum::<usize>().max(1);
        self.flying.insert(body.microbatch, (rows, now));
    }

    pub(super) fn came(&mut self, now: Now, microbatch: u64) {
        let Some((rows, at)) = self.flying.remove(&microbatch) else { return };
        let seconds = now.saturating_sub(at).as_secs_f64() / rows as f64;
        match self.seconds.len() < REMEMBERED {
            true => self.seconds.push(seconds),
            false => self.seconds[self.next % REMEMBERED] = seconds,
        }
        self.next += 1;
        let mut sorted = self.seconds.clone();
        let middle = sorted.len() / 2;
        self.median = Some(*sorted.select_nth_unstable_by(middle, f64::total_cmp).1);
        // The others were waiting behind it.
        self.flying.values_mut().for_each(|(_, since)| *since = now);
    }

    /// When the oldest step is overdue; none while nothing is on its way.
    pub(super) fn deadline(&self) -> Option<Now> {
        let (rows, since) = self.flying.values().next()?;
        Some(*since + self.allowed(*rows))
    }

    fn allowed(&self, rows: usize) -> Duration {
        match self.median {
            None => FIRST,
            Some(median) => LEAST.max(Duration::from_secs_f64((PATIENCE * median * rows as f64).min(3600.0))),
        }
    }

    pub(super) fn overdue(&self, now: Now) -> String {
        let waited = self.flying.values().next().map_or(0.0, |(_, since)| now.saturating_sub(*since).as_secs_f64());
        format!("a step is overdue: no answer for {waited:.1} s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use janus_wire::v1::Unit;

    fn body(microbatch: u64, positions: u32) -> FrameBody {
        FrameBody { microbatch, units: vec![Unit { positions, ..Unit::default() }], ..FrameBody::default() }
    }

    fn ms(ms: u64) -> Now {
        Now::from_millis(ms)
    }

    #[test]
    fn a_step_is_overdue_by_what_is_usual() {
        let mut pace = Pace::default();
        assert_eq!(pace.deadline(), None);
        pace.sent(ms(0), &body(0, 1));
        assert_eq!(pace.deadline(), Some(FIRST));
        pace.came(ms(500), 0);
        pace.sent(ms(500), &body(1, 1));
        assert_eq!(pace.deadline(), Some(ms(4500)));
        pace.sent(ms(500), &body(2, 64));
        pace.came(ms(1500), 1);
        assert!(pace.deadline() > Some(ms(201_500)));
        pace.came(ms(1500), 2);
        assert_eq!(pace.deadline(), None);
    }

    #[test]
    fn fast_steps_still_have_two_seconds() {
        let mut pace = Pace::default();
        pace.sent(ms(7), &body(0, 1));
        pace.came(ms(7), 0);
        pace.sent(ms(7), &body(1, 2));
        assert_eq!(pace.deadline(), Some(ms(7) + LEAST));
    }
}
