//! How long a step may take: what is alive but stuck breaks no stream, so only time tells.

use std::collections::BTreeMap;
use std::time::Duration;

use janus_wire::v1::FrameBody;
use tokio::time::Instant;

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
pub(crate) struct Pace {
    /// Microbatch, rows, and when it was its turn.
    flying: BTreeMap<u64, (usize, Instant)>,
    /// Seconds per row of the latest steps, in a ring.
    seconds: Vec<f64>,
    next: usize,
}

impl Pace {
    pub(crate) fn sent(&mut self, body: &FrameBody) {
        let rows = body.units.iter().map(|unit| unit.positions as usize).sum::<usize>().max(1);
        self.flying.insert(body.microbatch, (rows, Instant::now()));
    }

    pub(crate) fn came(&mut self, microbatch: u64) {
        let Some((rows, at)) = self.flying.remove(&microbatch) else { return };
        let now = Instant::now();
        let seconds = (now - at).as_secs_f64() / rows as f64;
        match self.seconds.len() < REMEMBERED {
            true => self.seconds.push(seconds),
            false => self.seconds[self.next % REMEMBERED] = seconds,
        }
        self.next += 1;
        // The others were waiting behind it.
        self.flying.values_mut().for_each(|(_, since)| *since = now);
    }

    /// When the oldest step is overdue; none while nothing is on its way.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let (rows, since) = self.flying.values().next()?;
        Some(*since + self.allowed(*rows))
    }

    fn allowed(&self, rows: usize) -> Duration {
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f64::total_cmp);
        match sorted.get(sorted.len() / 2) {
            None => FIRST,
            Some(median) => LEAST.max(Duration::from_secs_f64((PATIENCE * median * rows as f64).min(3600.0))),
        }
    }

    pub(crate) fn overdue(&self) -> String {
        let waited = self.flying.values().next().map_or(0.0, |(_, since)| since.elapsed().as_secs_f64());
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

    #[tokio::test(start_paused = true)]
    async fn a_step_is_overdue_by_what_is_usual() {
        let mut pace = Pace::default();
        assert_eq!(pace.deadline(), None);
        pace.sent(&body(0, 1));
        assert_eq!(pace.deadline(), Some(Instant::now() + FIRST));
        tokio::time::advance(Duration::from_millis(500)).await;
        pace.came(0);
        pace.sent(&body(1, 1));
        assert_eq!(pace.deadline(), Some(Instant::now() + Duration::from_secs(4)));
        pace.sent(&body(2, 64));
        tokio::time::advance(Duration::from_secs(1)).await;
        pace.came(1);
        assert!(pace.deadline() > Some(Instant::now() + Duration::from_secs(200)));
        pace.came(2);
        assert_eq!(pace.deadline(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn fast_steps_still_have_two_seconds() {
        let mut pace = Pace::default();
        pace.sent(&body(0, 1));
        pace.came(0);
        pace.sent(&body(1, 2));
        assert_eq!(pace.deadline(), Some(Instant::now() + LEAST));
    }
}
