//! The coordinator: takes requests from clients, turns them into units of work, and keeps the pipeline full.
//!
//! [`conduct`] decides who runs which layers; [`schedule`] decides, without I/O, which rows go into the next microbatch; [`pipeline`] connects stages, encoders
//! and decoders; [`drive`] runs the scheduler against a pipeline on a thread of its own, away from public traffic;
//! [`jobs`] makes pictures and answers that nobody waits for; [`request`] holds what is known of every request; [`service`] is the public gRPC. There is no tensor here.

mod alone;
mod auth;
pub mod conduct;
pub mod drive;
mod front;
mod images;
pub mod jobs;
pub mod lead;
pub mod ledger;
mod params;
pub mod pipeline;
mod pool;
pub mod request;
pub mod schedule;
pub mod service;
mod sight;
mod tenants;

pub use alone::Alone;
pub use auth::{Caller, LOCAL};
pub use drive::{Driver, DriverHandle, News, Places, Report};
pub use front::Front;
pub use lead::{Realm, Reign};
pub use ledger::{Ledger, Logs};
pub use params::MAX_CFG_WEIGHT;
pub use pipeline::{Placement, StageNode};
pub use pool::Addresses;
pub use service::{Coordinator, Model, Parts};
pub use sight::observe_drivers;
pub use tenants::Tenants;
