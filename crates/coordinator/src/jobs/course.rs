//! How one job runs: `step(event) -> actions`, without I/O, without a clock.
//!
//! Units (pictures and answers) start in order within a window, end in any order, are committed in batches, and their
//! segments are sealed in order. A core that is made again from what was committed and sealed does what is left: it
//! remembers nothing that the store does not.

use std::collections::{BTreeMap, VecDeque};

/// Segments that are open at once: the window goes on beside a slow unit. Only these can have results that are committed
/// and not sealed.
pub const OPEN: u32 = 3;
/// Results of one commit.
pub const BATCH: usize = 48;

/// A unit of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct At {
    /// Its segment.
    pub segment: u32,
    /// Its number within the segment.
    pub unit: u32,
}

/// How a unit or an item ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It is there.
    Succeeded,
    /// It cannot be made, however often it is tried.
    Failed,
}

/// Items by how they ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// All their units are there.
    pub succeeded: u64,
    /// At least one unit cannot be made.
    pub failed: u64,
}

/// What happens to a job.
#[derive(Debug)]
pub enum Event {
    /// The first one: begin.
    Begin,
    /// A segment was read: units of each of its items, and the units that are committed already.
    Opened {
        /// Which one.
        segment: u32,
        /// Units of each item.
        items: Vec<u32>,
        /// What an earlier run committed.
        committed: Vec<(u32, End)>,
    },
    /// A unit was made, or cannot be made.
    Ended(At, End),
    /// The batch under way is committed.
    Committed,
    /// The segment under way is sealed.
    Sealed,
    /// What is not done yet is not wanted any more.
    Cancel,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Read a segment and what is committed of it.
    Open(u32),
    /// Make a unit.
    Start(At),
    /// Give up every unit that was started and has not ended.
    Stop,
    /// Commit the results of these units together.
    Commit(Vec<At>),
    /// Seal a segment; with it, so many items of the job have ended.
    Seal(u32, Tally),
    /// Nothing is left to do; the job was cancelled, or is complete.
    Finish,
}

#[derive(Debug)]
struct Segment {
    /// Of each unit, its item and how it ended, once that is committed.
    units: Vec<(u32, Option<End>)>,
    /// Of each item, units that are not committed, and whether one failed.
    items: Vec<(u32, bool)>,
    /// Units before this one were started.
    started: usize,
    tally: Tally,
    /// Units that are not committed.
    left: usize,
}

/// One job under way.
#[derive(Debug)]
pub struct Course {
    window: usize,
    segments: u32,
    /// Segments before this one are sealed...
    sealed: u32,
    /// ...before this one are read or being read...
    next: u32,
    /// ...and before this one are to be done.
    until: u32,
    reading: bool,
    open: BTreeMap<u32, Segment>,
    running: usize,
    ended: VecDeque<(At, End)>,
    /// The batch that is being committed.
    committing: Vec<(At, End)>,
    sealing: bool,
    cancelled: bool,
    finished: bool,
    /// Items of sealed segments.
    tally: Tally,
}

impl Course {
    /// A job of so many segments, of which the first `sealed` are done with `tally`. At most `window` units run at once.
    pub fn new(segments: u32, sealed: u32, tally: Tally, window: usize) -> Self {
        Course {
            window: window.max(1),
            segments,
            sealed,
            next: sealed,
            until: segments,
            reading: false,
            open: BTreeMap::new(),
            running: 0,
            ended: VecDeque::new(),
            committing: Vec::new(),
            sealing: false,
            cancelled: false,
            finished: false,
            tally,
        }
    }

    /// Items that have ended, those of open segments included.
    pub fn tally(&self) -> Tally {
        self.open.values().fold(self.tally, |sum, segment| Tally {
            succeeded: sum.succeeded + segment.tally.succeeded,
            failed: sum.failed + segment.tally.failed,
        })
    }

    /// Takes one event and says what to do.
    pub fn step(&mut self, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Begin => {}
            Event::Opened { segment, items, committed } => {
                self.reading = false;
                self.open.insert(segment, Segment::new(&items, &committed));
            }
            // A unit that was given up may have ended just before.
            Event::Ended(..) if self.cancelled => {}
            Event::Ended(at, end) => {
                self.running -= 1;
                self.ended.push_back((at, end));
            }
            Event::Committed => {
                for (at, end) in std::mem::take(&mut self.committing) {
                    if let Some(segment) = self.open.get_mut(&at.segment) {
                        segment.commit(at.unit as usize, end);
                    }
                }
            }
            Event::Sealed => {
                self.sealing = false;
                if let Some(segment) = self.open.remove(&self.sealed) {
                    self.tally.succeeded += segment.tally.succeeded;
                    self.tally.failed += segment.tally.failed;
                }
                self.sealed += 1;
            }
            Event::Cancel if self.cancelled => {}
            Event::Cancel => {
                self.cancelled = true;
                // Nothing can be committed in later ones.
                self.until = self.segments.min(self.sealed.saturating_add(OPEN));
                self.running = 0;
                actions.push(Action::Stop);
            }
        }
        self.go_on(&mut actions);
        actions
    }

    fn go_on(&mut self, actions: &mut Vec<Action>) {
        if self.finished {
            return;
        }
        if !self.reading && self.next < self.until && (self.open.len() as u32) < OPEN {
            self.reading = true;
            actions.push(Action::Open(self.next));
            self.next += 1;
        }
        if !self.cancelled {
            self.start(actions);
        }
        if self.committing.is_empty() && !self.ended.is_empty() {
            let count = self.ended.len().min(BATCH);
            self.committing = self.ended.drain(..count).collect();
            actions.push(Action::Commit(self.committing.iter().map(|(at, _)| *at).collect()));
        }
        if self.ready_to_seal()
            && let Some(segment) = self.open.get(&self.sealed)
        {
            self.sealing = true;
            let tally = Tally {
                succeeded: self.tally.succeeded + segment.tally.succeeded,
                failed: self.tally.failed + segment.tally.failed,
            };
            actions.push(Action::Seal(self.sealed, tally));
        }
        if self.sealed >= self.until {
            self.finished = true;
            actions.push(Action::Finish);
        }
    }

    fn start(&mut self, actions: &mut Vec<Action>) {
        for (number, segment) in &mut self.open {
            while self.running < self.window && segment.started < segment.units.len() {
                let unit = segment.started;
                segment.started += 1;
                if segment.units[unit].1.is_none() {
                    self.running += 1;
                    actions.push(Action::Start(At { segment: *number, unit: unit as u32 }));
                }
            }
        }
    }

    fn ready_to_seal(&self) -> bool {
        let complete = self.open.get(&self.sealed).is_some_and(|segment| segment.left == 0);
        // Of a cancelled job as it is, when nothing more can come.
        let as_it_is =
            self.cancelled && self.committing.is_empty() && self.ended.is_empty() && self.open.contains_key(&self.sealed);
        !self.sealing && (complete || as_it_is)
    }

    /// What must hold between any two events; names the first violation.
    pub fn violated(&self) -> Option<&'static str> {
        if self.open.len() as u32 > OPEN || self.next > self.sealed.saturating_add(OPEN) {
            return Some("too many segments are open");
        }
        if self.running > self.window {
            return Some("too many units run");
        }
        if self.open.keys().any(|segment| *segment < self.sealed) {
            return Some("a sealed segment is open");
        }
        None
    }
}

impl Segment {
    fn new(items: &[u32], committed: &[(u32, End)]) -> Self {
        let of = |(item, units): (u32, &u32)| std::iter::repeat_n((item, None), *units as usize);
        let units: Vec<_> = (0..).zip(items).flat_map(of).collect();
        let mut segment = Segment {
            left: units.len(),
            units,
            items: items.iter().map(|units| (*units, false)).collect(),
            started: 0,
            tally: Tally::default(),
        };
        committed.iter().for_each(|(unit, end)| segment.commit(*unit as usize, *end));
        segment
    }

    fn commit(&mut self, unit: usize, end: End) {
        let Some((item, known)) = self.units.get_mut(unit).filter(|(_, known)| known.is_none()) else { return };
        *known = Some(end);
        self.left -= 1;
        let Some((left, failed)) = self.items.get_mut(*item as usize) else { return };
        *left -= 1;
        *failed |= end == End::Failed;
        match (*left, *failed) {
            (0, true) => self.tally.failed += 1,
            (0, false) => self.tally.succeeded += 1,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(segment: u32, unit: u32) -> At {
        At { segment, unit }
    }

    #[test]
    fn units_start_within_the_window_and_segments_are_sealed_in_order() {
        let mut course = Course::new(2, 0, Tally::default(), 2);
        assert_eq!(course.step(Event::Begin), [Action::Open(0)]);
        let opened = |segment| Event::Opened { segment, items: vec![1, 1], committed: vec![] };
        assert_eq!(course.step(opened(0)), [Action::Open(1), Action::Start(at(0, 0)), Action::Start(at(0, 1))]);
        assert_eq!(course.step(opened(1)), []);
        assert_eq!(
            course.step(Event::Ended(at(0, 1), End::Succeeded)),
            [Action::Start(at(1, 0)), Action::Commit(vec![at(0, 1)])]
        );
        assert_eq!(course.step(Event::Ended(at(1, 0), End::Failed)), [Action::Start(at(1, 1))]);
        assert_eq!(course.step(Event::Ended(at(1, 1), End::Succeeded)), []);
        assert_eq!(course.step(Event::Committed), [Action::Commit(vec![at(1, 0), at(1, 1)])]);
        assert_eq!(course.step(Event::Committed), []);
        assert_eq!(course.tally(), Tally { succeeded: 2, failed: 1 });
        assert_eq!(course.step(Event::Ended(at(0, 0), End::Succeeded)), [Action::Commit(vec![at(0, 0)])]);
        assert_eq!(course.step(Event::Committed), [Action::Seal(0, Tally { succeeded: 2, failed: 0 })]);
        assert_eq!(course.step(Event::Sealed), [Action::Seal(1, Tally { succeeded: 3, failed: 1 })]);
        assert_eq!(course.step(Event::Sealed), [Action::Finish]);
    }

    #[test]
    fn what_was_committed_before_is_not_started_again() {
        let mut course = Course::new(1, 0, Tally::default(), 8);
        course.step(Event::Begin);
        let committed = vec![(0, End::Succeeded), (2, End::Failed)];
        let actions = course.step(Event::Opened { segment: 0, items: vec![2, 1], committed });
        assert_eq!(actions, [Action::Start(at(0, 1))]);
        assert_eq!(course.tally(), Tally { succeeded: 0, failed: 1 });
    }

    #[test]
    fn a_cancelled_job_commits_what_was_made_and_starts_nothing() {
        let mut course = Course::new(9, 0, Tally::default(), 1);
        course.step(Event::Begin);
        course.step(Event::Opened { segment: 0, items: vec![3], committed: vec![] });
        course.step(Event::Opened { segment: 1, items: vec![1], committed: vec![] });
        course.step(Event::Ended(at(0, 0), End::Succeeded));
        assert_eq!(course.step(Event::Cancel), [Action::Stop]);
        assert_eq!(course.step(Event::Cancel), []);
        // The third one is still being read; nothing can be known of it before.
        assert_eq!(course.step(Event::Committed), [Action::Seal(0, Tally::default())]);
        assert_eq!(course.step(Event::Sealed), [Action::Seal(1, Tally::default())]);
        assert_eq!(course.step(Event::Sealed), []);
        let third = Event::Opened { segment: 2, items: vec![1], committed: vec![(0, End::Succeeded)] };
        assert_eq!(course.step(third), [Action::Seal(2, Tally { succeeded: 1, failed: 0 })]);
        assert_eq!(course.step(Event::Sealed), [Action::Finish]);
    }
}
