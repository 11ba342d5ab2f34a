//! The one place that opens sockets, and everything that is said over them.
//!
//! [`v1`] is the protocol as generated from `proto/janus/v1`; [`frame`] seals and opens the frames that carry
//! microbatches; [`hello`] decides whether two nodes may talk; [`trace`] carries trace contexts; [`connect`] and
//! [`Listener`] make channels and servers whose settings (TCP_NODELAY, windows, keep-alive, TLS) are the same everywhere.
//! [`Security`] says how connections are protected, [`tls`] who is at their other end, [`Guarded`] what he may call,
//! [`limits`] how much may come.

mod admission;
mod channel;
pub mod client;
mod connection;
mod dial;
mod error;
pub mod frame;
mod guard;
pub mod hello;
pub mod limits;
mod line;
mod listener;
mod message;
mod paced;
mod security;
pub mod status;
pub mod tls;
pub mod trace;

pub use channel::{connect, connect_until};
pub use client::Coordinators;
pub use connection::{Connection, Origin};
pub use dial::{Dial, Stream};
pub use error::Error;
pub use guard::Guarded;
pub use hello::Identity;
pub use limits::{MAX_CLIENT_MESSAGE, MAX_NODE_MESSAGE};
pub use listener::{Incoming, Listener, check_loopback, server};
pub use paced::Pace;
pub use security::Security;

/// Generated messages and services of package `janus.v1`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used)]
pub mod v1 {
    tonic::include_proto!("janus.v1");
}

/// The protocol's encoded `FileDescriptorSet`, for reflection and for checks of compatibility.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/janus.v1.bin"));

/// Version of the internal protocol; stands in every hello.
pub const PROTOCOL: u32 = 1;

/// Metadata key under which a standby names the leader's address.
pub const LEADER: &str = "janus-leader";
