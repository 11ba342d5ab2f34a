//! What the nodes agree on: a small store with leases and watches, who is a member, who leads.
//!
//! [`store`] is the seam: etcd, or its twin in this process with or without a journal. [`keys`] says which key means
//! what and who writes it. [`membership`] keeps this node's [`Member`] record alive and follows everybody else's;
//! [`election`] picks the coordinator that leads and numbers its reign. [`plan`]
//! divides layers among nodes: pure, without I/O, clock or chance. Workers, coordinators and the binary use all of it.

pub mod election;
mod error;
pub mod keys;
mod lane;
mod lease;
mod member;
pub mod membership;
pub mod plan;
pub mod store;

pub use election::{Candidate, Election, Leadership, guard};
pub use error::Error;
pub use keys::Keys;
pub use member::{Member, Role, random_incarnation};
pub use membership::{Members, Probe, Registration, RegistrationState, watch_members};
pub use store::{Committed, Entry, Event, LeaseId, Listing, MemoryStore, Store, StoreConfig, Tls, Txn, Watch};
