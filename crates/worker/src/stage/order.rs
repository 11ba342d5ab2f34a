//! Whom a stage obeys, and which frame is the next one of a link.

use std::sync::atomic::{AtomicU64, Ordering};

use janus_wire::frame;
use janus_wire::v1::{Frame, FrameBody};

use crate::Error;

/// Only the newest coordinator may change anything: its fencing epoch is the upper half of a pipeline's epoch.
#[derive(Debug, Default)]
pub struct Fence(AtomicU64);

impl Fence {
    /// Lets a coordinator in that comes with `epoch`, and keeps older ones out from then on.
    ///
    /// # Errors
    /// [`Error::Fenced`] if a newer one was here.
    pub fn enter(&self, epoch: u64) -> Result<(), Error> {
        let asked = epoch >> 32;
        let current = self.0.fetch_max(asked, Ordering::SeqCst);
        match asked < current {
            true => Err(Error::Fenced { asked, current }),
            false => Ok(()),
        }
    }
}

/// The frames of one link, in order.
#[derive(Debug, Clone)]
pub struct Order {
    pipeline: u64,
    epoch: u64,
    next: u64,
}

impl Order {
    /// Nothing came yet over the link of `pipeline` in `epoch`.
    pub fn new(pipeline: u64, epoch: u64) -> Self {
        Order { pipeline, epoch, next: 0 }
    }

    /// Opens the next frame.
    ///
    /// # Errors
    /// If it is damaged, of another epoch, or not the next one: the link must end.
    pub fn open(&mut self, frame: &Frame) -> Result<FrameBody, janus_wire::Error> {
        let body = frame::open(frame)?;
        for (what, found, wanted) in [
            ("pipeline", body.pipeline, self.pipeline),
            ("epoch", body.epoch, self.epoch),
            ("sequence number", body.sequence, self.next),
        ] {
            if found != wanted {
                return Err(janus_wire::Error::Frame(format!("its {what} is {found}, expected {wanted}")));
            }
        }
        self.next += 1;
        Ok(body)
    }
}
