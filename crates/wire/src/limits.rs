//! What may come in, in one place: every bound on connections, headers, messages and patience.
//!
//! Bounds on what a message says stand with what they protect: prompts and pictures of a request in
//! `janus_coordinator` (`params`, `images`), pixels and frames of a picture file in `janus_model::image`, units of a
//! frame in `janus_worker::stage`.

use std::time::Duration;

/// Largest message between nodes: a prefill chunk of the widest model is 2 MiB, a picture's features 9 MiB.
pub const MAX_NODE_MESSAGE: usize = 64 << 20;

/// Largest message from a client: pictures come inside.
pub const MAX_CLIENT_MESSAGE: usize = 72 << 20;

/// Largest set of headers of one call, as HTTP/2 counts it. Bearer keys and trace context take a few hundred bytes.
pub const MAX_HEADERS: u32 = 16 << 10;

/// Calls at once on one connection; a gateway carries those of many clients on one.
pub const MAX_STREAMS: u32 = 1024;

/// Streams that a client may reset before they were looked at; more is an attack (CVE-2023-44487) and ends the connection.
pub const MAX_PENDING_RESETS: usize = 32;

/// Streams that we had to reset for a client's faults before its connection ends.
pub const MAX_FAULTY_STREAMS: usize = 256;

/// Connections to one port.
pub const MAX_CONNECTIONS: usize = 4096;

/// Connections to one port from one address (an IPv6 network of 64 bits counts as one); clients behind a gateway or a
/// load balancer share one.
pub const MAX_CONNECTIONS_OF_ONE: usize = 1024;

/// New connections from one address: so many at once...
pub const CONNECTION_BURST: u32 = 1024;

/// ...and so many in a second after that.
pub const CONNECTIONS_A_SECOND: u32 = 256;

/// A TLS handshake takes no longer.
pub const HANDSHAKE: Duration = Duration::from_secs(10);

/// The first bytes of HTTP come within this, or the connection is cut. After them, HTTP/2 pings find out who is silent.
pub const FIRST_WORDS: Duration = Duration::from_secs(10);

/// A request that is being sent pauses no longer than this between two pieces.
pub const PAUSE_IN_REQUEST: Duration = Duration::from_secs(30);

/// A caller that takes nothing of an answer for so long has left.
pub const UNREAD: Duration = Duration::from_secs(120);
