//! The coordinator: takes requests from clients, turns them into units of work, and keeps the pipeline full.
//!
//! [`schedule`] decides, without I/O, which rows go into the next microbatch; [`pipeline`] connects stages, encoders
//! and decoders; [`drive`] runs the scheduler against a pipeline on a thread of its own, away from public traffic;
//! [`request`] holds what is known of every request; [`service`] is the public gRPC. There is no tensor here.

pub mod drive;
mod images;
mod params;
pub mod pipeline;
pub mod request;
pub mod schedule;
pub mod service;

pub use drive::{Driver, DriverHandle};
pub use params::MAX_CFG_WEIGHT;
pub use pipeline::{Nodes, StageNode};
pub use service::{Coordinator, Model};
