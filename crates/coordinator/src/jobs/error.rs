//! What can go wrong with jobs, their records and their objects.

/// Errors of jobs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A place for objects that cannot be used, whatever is tried again.
    #[error("{url}: {reason}")]
    Place {
        /// The place.
        url: String,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// An object cannot be read or written at present.
    #[error("{object}: {reason}")]
    Object {
        /// Which one.
        object: String,
        /// What the store of objects said.
        reason: String,
        /// Trying again may help.
        passing: bool,
    },
    /// Something else is at a place where a result belongs.
    #[error("{object} is there already with other contents: results are written once; choose another output")]
    Differs {
        /// Which object.
        object: String,
    },
    /// A result of the same unit was committed with another digest.
    #[error("{unit} was committed before with another digest: {committed}, and now {now}")]
    Contradiction {
        /// Which unit.
        unit: String,
        /// The digest in the store.
        committed: String,
        /// The one that was discarded.
        now: String,
    },
    /// An object or record that was written is not what it should be.
    #[error("{what} is damaged: {reason}")]
    Damaged {
        /// Which one.
        what: String,
        /// What is wrong.
        reason: String,
    },
    /// Another coordinator leads: what this one wants to write is refused.
    #[error("another coordinator leads now")]
    Deposed,
    /// The cluster's store.
    #[error(transparent)]
    Store(#[from] janus_cluster::Error),
}

impl Error {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Error::Object { passing, .. } => *passing,
            Error::Store(error) => error.is_retryable(),
            Error::Place { .. }
            | Error::Differs { .. }
            | Error::Contradiction { .. }
            | Error::Damaged { .. }
            | Error::Deposed => false,
        }
    }
}
