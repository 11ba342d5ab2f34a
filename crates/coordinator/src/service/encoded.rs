//! Which pictures a first stage is believed to hold features of, so that a picture that is asked about again is not
//! encoded again. A belief that is wrong costs a round: the stage says that they are missing, and they are encoded.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use opentelemetry::global;
use opentelemetry::metrics::Counter;

use crate::sight::SCOPE;

/// Beliefs; the oldest leaves first. A stage holds fewer of a real model's.
const MOST: usize = 1024;

/// By address of the stage and handle of the features: when it was last of use.
type Known = HashMap<(String, Vec<u8>), u64>;

pub(super) struct Encoded {
    known: Mutex<(Known, u64)>,
    hits: Counter<u64>,
}

impl Default for Encoded {
    fn default() -> Self {
        let about = "Pictures that did not have to be encoded again";
        let hits = global::meter(SCOPE).u64_counter("janus.feature.hits").with_description(about).build();
        hits.add(0, &[]);
        Encoded { known: Mutex::default(), hits }
    }
}

impl Encoded {
    /// The stage at `stage` has been given the features `handle`.
    pub(super) fn put(&self, stage: &str, handle: &[u8]) {
        let (known, clock) = &mut *self.known.lock().unwrap_or_else(PoisonError::into_inner);
        *clock += 1;
        known.insert((stage.to_owned(), handle.to_vec()), *clock);
        if known.len() > MOST {
            let oldest = known.iter().min_by_key(|(_, used)| **used).map(|(key, _)| key.clone());
            oldest.and_then(|key| known.remove(&key));
        }
    }

    /// Whether the stage is believed to hold them.
    pub(super) fn has(&self, stage: &str, handle: &[u8]) -> bool {
        let (known, clock) = &mut *self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(used) = known.get_mut(&(stage.to_owned(), handle.to_vec())) else { return false };
        *clock += 1;
        *used = *clock;
        self.hits.add(1, &[]);
        true
    }

    /// It said that it does not.
    pub(super) fn gone(&self, stage: &str, handle: &[u8]) {
        let (known, _) = &mut *self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.remove(&(stage.to_owned(), handle.to_vec()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beliefs_are_bounded_and_the_one_of_least_use_goes() {
        let encoded = Encoded::default();
        (0..MOST as u32).for_each(|i| encoded.put("a:1", &i.to_le_bytes()));
        assert!(encoded.has("a:1", &0_u32.to_le_bytes()) && !encoded.has("b:1", &0_u32.to_le_bytes()));
        encoded.put("b:1", b"new");
        assert!(encoded.has("a:1", &0_u32.to_le_bytes()) && !encoded.has("a:1", &1_u32.to_le_bytes()));
        encoded.gone("b:1", b"new");
        assert!(!encoded.has("b:1", b"new"));
    }
}
