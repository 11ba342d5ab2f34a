//! Why a gateway cannot start.

/// Errors of a gateway as a whole; what is wrong with a request is a [`Problem`](crate::Problem).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Coordinators' addresses.
    #[error(transparent)]
    Wire(#[from] janus_wire::Error),
    /// An entry of the hosts that pictures may come from.
    #[error("image host `{host}`: {reason}")]
    ImageHost {
        /// As given.
        host: String,
        /// Why it cannot be one.
        reason: String,
    },
    /// An entry of the names that clients may ask by.
    #[error("allowed host `{host}`: expected a host's name, without port or wildcards")]
    AllowHost {
        /// As given.
        host: String,
    },
    /// Where clients are told to fetch pictures.
    #[error("public URL `{url}`: expected http://host or https://host, with or without a path")]
    PublicUrl {
        /// As given.
        url: String,
    },
}

impl Error {
    /// Whether trying again may help.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Error::Wire(error) if error.is_retryable())
    }
}
