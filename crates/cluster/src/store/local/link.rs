//! The way from a handle to the local store, which tests and simulations can cut.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

use crate::Error;

const CUT: &str = "the way to it is cut";

/// Whole, or cut.
pub(super) struct Link {
    away: watch::Sender<Option<String>>,
    /// How often it was cut, so that a watch notices a cut that was mended before it looked.
    cuts: AtomicU64,
}

impl Default for Link {
    fn default() -> Link {
        Link { away: watch::Sender::new(None), cuts: AtomicU64::new(0) }
    }
}

impl Link {
    pub(super) fn cut(&self) {
        self.cuts.fetch_add(1, Ordering::SeqCst);
        self.away.send_replace(Some(CUT.to_owned()));
    }

    pub(super) fn mend(&self) {
        self.away.send_replace(None);
    }

    pub(super) fn cuts(&self) -> u64 {
        self.cuts.load(Ordering::SeqCst)
    }

    pub(super) fn is_cut(&self) -> bool {
        self.away.borrow().is_some()
    }

    pub(super) fn away(&self) -> watch::Receiver<Option<String>> {
        self.away.subscribe()
    }

    pub(super) fn check(&self, store: &str) -> Result<(), Error> {
        match self.away.borrow().as_ref() {
            None => Ok(()),
            Some(reason) => Err(Error::Unreachable { store: store.to_owned(), reason: reason.clone() }),
        }
    }
}
