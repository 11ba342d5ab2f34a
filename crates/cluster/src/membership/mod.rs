//! Who is there: this node's own record, kept alive ([`Registration`]), and the view of all records ([`watch_members`]).

mod registration;
mod view;

use std::time::Duration;

pub use registration::{PROBE_TIMEOUT, Probe, Registration, RegistrationState};
pub use view::{Members, watch_members};

/// Time to live of a member's lease, unless said otherwise.
pub const DEFAULT_TTL: Duration = Duration::from_secs(5);
