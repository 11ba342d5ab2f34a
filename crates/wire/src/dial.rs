//! What carries connections instead of this machine's sockets: the network of a simulation.

use std::{fmt, io};

use tokio::io::{AsyncRead, AsyncWrite};

/// Bytes in both directions.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Makes connections. What a host's name means is its own business.
#[tonic::async_trait]
pub trait Dial: fmt::Debug + Send + Sync {
    /// A connection to `port` of `host`.
    async fn dial(&self, host: &str, port: u16) -> io::Result<Box<dyn Stream>>;
}
