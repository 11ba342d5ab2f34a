//! What can be wrong with a connection or with what came over it.

/// Errors of the wire.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is not `host:port`.
    #[error("`{address}` is not an address: {reason}")]
    Address {
        /// As given.
        address: String,
        /// Why not.
        reason: String,
    },
    /// The port cannot be had.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// As given.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The peer cannot be reached.
    #[error("cannot connect to {address}: {reason}")]
    Connect {
        /// As given.
        address: String,
        /// What the system said.
        reason: String,
    },
    /// The peer belongs elsewhere.
    #[error("{peer} refused: its {what} is {theirs}, ours is {ours}")]
    Hello {
        /// The peer's node name.
        peer: String,
        /// Which value differs.
        what: &'static str,
        /// Its value.
        theirs: String,
        /// Our value.
        ours: String,
    },
    /// A certificate or key cannot be used.
    #[error("{file}: {reason}")]
    Certificate {
        /// Which file.
        file: String,
        /// Why not.
        reason: String,
    },
    /// A frame is damaged or not the next one.
    #[error("frame refused: {0}")]
    Frame(String),
}

impl Error {
    /// Whether trying again may help.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Error::Connect { .. })
    }
}
