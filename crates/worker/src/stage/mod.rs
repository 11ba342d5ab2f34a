//! A pipeline stage.
//!
//! [`core`] decides, without I/O, what a frame does to the slots; [`compute`] is the seam to the model; [`features`]
//! keeps encoder features until prompts use them; [`service`] is the gRPC side with the links to the neighbours.

pub mod compute;
pub mod core;
pub mod features;
pub mod service;

pub use compute::{Compute, ModelCompute, SampleJob};
pub use core::{Applied, StageCore};
pub use features::Features;
pub use service::StageService;
