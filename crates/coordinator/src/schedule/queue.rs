//! Units that wait, and whose turn it is.
//!
//! Inside a band, tenants share by the rows that were computed for them: each has a counter, the one with the lowest is
//! served next, and who comes back after a while does not bring old credit along (the virtual token counter of Sheng et
//! al., "Fairness in Serving Large Language Models", OSDI 2024, algorithm 2, with rows for tokens). Between two tenants
//! that both have units waiting, counters differ by a constant whatever they send.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::unit::{Band, UnitId, Waiting};

/// A row at weight 1, in the units of the counters: weights divide it without loss that would matter.
const ROW: u64 = 1 << 16;

/// All waiting units.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Had a slot until the pipeline or their features were lost; they were admitted once and go before everybody.
    returning: VecDeque<Waiting>,
    lines: BTreeMap<(Band, Arc<str>), VecDeque<Waiting>>,
    counters: BTreeMap<(Band, Arc<str>), u64>,
    /// The counter of the tenant that was served last, of each band.
    reached: BTreeMap<Band, u64>,
    waiting: usize,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.waiting
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Waiting> {
        self.returning.iter().chain(self.lines.values().flatten())
    }

    /// Whether one more unit of this tenant finds room in a queue for `limit`. A full queue turns away whoever holds most
    /// of it, so that nobody can keep the others out; it never grows beyond twice its limit.
    pub(super) fn has_room(&self, tenant: &str, limit: usize) -> bool {
        if self.waiting < limit {
            return true;
        }
        let mut held: BTreeMap<&str, usize> = BTreeMap::new();
        for ((_, owner), line) in &self.lines {
            *held.entry(owner).or_default() += line.len();
        }
        let mine = held.get(tenant).copied().unwrap_or_default();
        self.waiting < 2 * limit && held.values().any(|held| *held > mine + 1)
    }

    /// Units of a tenant that wait.
    pub(super) fn held(&self, tenant: &str) -> usize {
        let mine = self.lines.iter().filter(|((_, owner), _)| &**owner == tenant);
        mine.map(|(_, line)| line.len()).sum()
    }

    /// Appends a unit to its tenant's line; how many go before it, if nobody else comes.
    pub(super) fn push(&mut self, unit: Waiting) -> usize {
        let key = unit.line();
        self.join(&key);
        let before: usize = self.lines.range(..(key.0, "".into())).map(|(_, line)| line.len()).sum();
        let mine = self.lines.get(&key).map_or(0, VecDeque::len);
        // The others of its band take turns with its own tenant.
        let others: usize =
            self.band(key.0).filter(|(other, _)| **other != key).map(|(_, line)| line.len().min(mine + 1)).sum();
        self.lines.entry(key).or_default().push_back(unit);
        self.waiting += 1;
        self.returning.len() + before + mine + others
    }

    /// Puts a unit that had to make room before all others of its tenant.
    pub(super) fn push_front(&mut self, unit: Waiting) {
        let key = unit.line();
        self.join(&key);
        self.lines.entry(key).or_default().push_front(unit);
        self.waiting += 1;
    }

    /// Puts a unit that lost its slot through no doing of its own before everybody.
    pub(super) fn push_returning(&mut self, unit: Waiting) {
        self.returning.push_front(unit);
        self.waiting += 1;
    }

    /// Whose turn it is.
    pub(super) fn front(&self) -> Option<&Waiting> {
        match self.returning.front() {
            Some(unit) => Some(unit),
            None => self.lines.get(&self.turn()?)?.front(),
        }
    }

    pub(super) fn pop_front(&mut self) -> Option<Waiting> {
        let unit = match self.returning.pop_front() {
            Some(unit) => Some(unit),
            None => {
                let key = self.turn()?;
                let unit = self.lines.get_mut(&key).and_then(VecDeque::pop_front);
                self.leave(&key);
                unit
            }
        };
        self.waiting -= usize::from(unit.is_some());
        unit
    }

    pub(super) fn remove(&mut self, id: UnitId) {
        self.returning.retain(|unit| unit.spec.id != id);
        self.lines.values_mut().for_each(|line| line.retain(|unit| unit.spec.id != id));
        let empty: Vec<_> = self.lines.iter().filter(|(_, line)| line.is_empty()).map(|(key, _)| key.clone()).collect();
        empty.iter().for_each(|key| self.leave(key));
        self.waiting = self.iter().count();
    }

    pub(super) fn take_all(&mut self) -> impl Iterator<Item = Waiting> + use<> {
        self.waiting = 0;
        std::mem::take(&mut self.returning).into_iter().chain(std::mem::take(&mut self.lines).into_values().flatten())
    }

    /// Counts `rows` that were computed for a tenant.
    pub(super) fn charge(&mut self, band: Band, tenant: &Arc<str>, rows: usize, weight: u32) {
        let counter = self.counters.entry((band, tenant.clone())).or_default();
        *counter += rows as u64 * ROW / u64::from(weight.max(1));
    }

    /// How much more than the second tenant the first has had, in rows at weight 1.
    pub(super) fn ahead(&self, band: Band, first: &Arc<str>, second: &Arc<str>) -> u64 {
        let counter = |tenant: &Arc<str>| self.counters.get(&(band, tenant.clone())).copied().unwrap_or_default();
        counter(first).saturating_sub(counter(second)) / ROW
    }

    fn band(&self, band: Band) -> impl Iterator<Item = (&(Band, Arc<str>), &VecDeque<Waiting>)> {
        self.lines.iter().filter(move |((of, _), _)| *of == band)
    }

    /// The line of the first band that has one whose tenant had least.
    fn turn(&self) -> Option<(Band, Arc<str>)> {
        let band = self.lines.keys().next()?.0;
        let had = |key: &(Band, Arc<str>)| self.counters.get(key).copied().unwrap_or_default();
        self.band(band).map(|(key, _)| key).min_by_key(|key| had(key)).cloned()
    }

    /// A tenant's line begins: it gets no credit for the time it was away.
    fn join(&mut self, key: &(Band, Arc<str>)) {
        if self.lines.contains_key(key) {
            return;
        }
        let had = |key: &(Band, Arc<str>)| self.counters.get(key).copied().unwrap_or_default();
        let least = self.band(key.0).map(|(key, _)| had(key)).min();
        let least = least.or_else(|| self.reached.get(&key.0).copied()).unwrap_or_default();
        let counter = self.counters.entry(key.clone()).or_default();
        *counter = (*counter).max(least);
    }

    /// A tenant's line may have ended.
    fn leave(&mut self, key: &(Band, Arc<str>)) {
        if self.lines.get(key).is_some_and(VecDeque::is_empty) {
            self.lines.remove(key);
            self.reached.insert(key.0, self.counters.get(key).copied().unwrap_or_default());
        }
    }
}
