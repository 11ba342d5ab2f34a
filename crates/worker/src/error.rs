//! Why a worker refuses.

use janus_wire::status;
use std::time::Duration;
use tonic::Status;

/// Errors of workers.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The peer belongs elsewhere, or cannot be reached, or its frame is damaged.
    #[error(transparent)]
    Wire(#[from] janus_wire::Error),
    /// The model refuses.
    #[error(transparent)]
    Model(#[from] janus_model::Error),
    /// A request of an older epoch than the worker has seen.
    #[error("epoch {asked} of pipeline {pipeline} is over; this stage is in epoch {current}")]
    OldEpoch {
        /// Which pipeline.
        pipeline: u64,
        /// What was asked for.
        asked: u64,
        /// What is current.
        current: u64,
    },
    /// A coordinator that another one has replaced.
    #[error("coordinator epoch {asked} is over; this node follows epoch {current}")]
    Fenced {
        /// Its epoch.
        asked: u64,
        /// The newest coordinator's.
        current: u64,
    },
    /// The layers someone believes this stage to hold are not the ones it holds.
    #[error("this stage holds layers {held:?}, not {asked:?}")]
    Layers {
        /// What it holds.
        held: std::ops::Range<usize>,
        /// What was asked for.
        asked: std::ops::Range<usize>,
    },
    /// The stage has not been told its place in a pipeline, or its stream is taken.
    #[error("{0}")]
    NotReady(String),
    /// The compute thread is gone or a computation panicked.
    #[error("the computation failed: {0}")]
    Compute(String),
    /// A finished picture waits, or nobody does.
    #[error("an unfinished picture gave way")]
    GaveWay,
    /// What came is not what it says.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// Whether trying again, perhaps elsewhere, may help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Error::Wire(e) => e.is_retryable(),
            Error::NotReady(_) | Error::Compute(_) => true,
            _ => false,
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::Wire(janus_wire::Error::Connect { .. }) => status::unavailable(text, Duration::from_secs(1)),
            Error::Wire(_) | Error::OldEpoch { .. } | Error::Fenced { .. } | Error::Layers { .. } | Error::NotReady(_) => {
                Status::failed_precondition(text)
            }
            Error::Model(janus_model::Error::Diverged { .. }) => Status::data_loss(text),
            Error::Model(_) | Error::Invalid(_) => Status::invalid_argument(text),
            Error::GaveWay => Status::aborted(text),
            Error::Compute(_) => Status::internal(text),
        }
    }
}
