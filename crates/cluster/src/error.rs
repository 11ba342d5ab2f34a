//! What can be wrong with the store, with a record in it, or with its configuration.

use crate::store::LeaseId;

/// Errors of this crate. `store` fields hold [`crate::Store::describe`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nobody answered in time. Nothing was changed.
    #[error("{store} cannot be reached: {reason}")]
    Unreachable {
        /// Which store.
        store: String,
        /// What the last attempt said.
        reason: String,
    },
    /// A change was sent and no answer came: it may have happened or not. Read before trying again.
    #[error("{store} did not answer a change, which may or may not have happened: {reason}")]
    Uncertain {
        /// Which store.
        store: String,
        /// What the attempt said.
        reason: String,
    },
    /// Somebody else changed what this change was based on; see [`crate::Committed::done`].
    #[error("{what} was changed by somebody else meanwhile: read it again")]
    Conflict {
        /// What was to be changed.
        what: String,
    },
    /// The lease expired or was revoked, and its keys are deleted.
    #[error("{store}: lease {lease} is gone, and its keys with it")]
    LeaseGone {
        /// Which store.
        store: String,
        /// The lease.
        lease: LeaseId,
    },
    /// The store does not accept the name and password, or they do not allow this.
    #[error("{store} refused access: {reason}; check user, password and the role's permissions")]
    AuthRefused {
        /// Which store.
        store: String,
        /// What it said.
        reason: String,
    },
    /// The configuration cannot work, whatever the store does.
    #[error("the store's configuration is wrong: {what}")]
    BadConfig {
        /// What is wrong and where.
        what: String,
    },
    /// The request itself cannot work: too large, a key twice, a revision of the future. Nothing was changed.
    #[error("{store} refused the request: {reason}")]
    Refused {
        /// Which store.
        store: String,
        /// Why not.
        reason: String,
    },
    /// The journal cannot be read or written.
    #[error("local journal in {dir}: {reason}")]
    Journal {
        /// Its directory.
        dir: String,
        /// What is wrong.
        reason: String,
    },
    /// A record is not what its key promises.
    #[error("the record at {key} cannot be read: {reason}; a newer version may have written it, otherwise delete the key")]
    BadRecord {
        /// Its key.
        key: String,
        /// What the parser said.
        reason: String,
    },
    /// The operating system refused something the crate needs.
    #[error("{what}: {reason}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        reason: String,
    },
}

impl Error {
    /// Whether the same call may succeed later without anybody changing the configuration. After [`Error::Uncertain`],
    /// [`Error::Conflict`] and [`Error::LeaseGone`] read or register again first.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Error::Unreachable { .. } | Error::Uncertain { .. } | Error::Conflict { .. } | Error::LeaseGone { .. }
        )
    }
}
