//! A pipeline stage.
//!
//! [`core`] decides, without I/O, what a frame does to the slots; [`compute`] is the seam to the model, [`loader`]
//! fetches its layers; [`features`] keeps encoder features until prompts use them; `order` knows whom to obey and which frame is next;
//! `meter` counts; [`service`] is the gRPC side with the links to the neighbours.

pub mod compute;
pub mod core;
pub mod features;
pub mod loader;
mod meter;
mod order;
pub mod service;

pub use compute::{Compute, Loader, ModelCompute, SampleJob};
pub use core::{Applied, StageCore};
pub use features::Features;
pub use loader::ModelLoader;
pub use order::{Fence, Order};
pub use service::StageService;
