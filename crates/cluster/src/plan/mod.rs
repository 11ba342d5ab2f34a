//! Placement: who computes which layers, and what that costs.
//!
//! Everything here is a pure function of its arguments, so two coordinators that see the same members make the same
//! plan, whatever the order they see them in. `janus plan` prints what the coordinator would do.
//!
//! - [`Problem`]: the model's sizes, the nodes, what is asked for.
//! - [`plan()`]: the [`Plan`], or [`Error::DoesNotFit`] with the bytes that are missing.
//! - [`replan()`]: one pipeline after some of its nodes were lost.
//! - [`estimate()`] and [`next_node()`]: time of a step, pictures per hour, what one node more would bring.
//!
//! What a pipeline is worth: a stage is busy for its layers (plus embeddings or heads), the stages of one compute pool take
//! turns, and the busiest pool sets the pace. So [`plan()`] minimises, in this order,
//!
//! 1. the busy time of the busiest pool: one microbatch leaves the pipeline per so many milliseconds;
//! 2. the time of one microbatch through all stages and links;
//! 3. bytes to load (first of all three with [`replan()`], within 5 % of the best pace);
//! 4. the sum of squares of the stages' times, which makes equals equal.
//!
//! Times are compared in whole nanoseconds, so equal plans are equal and ties go to the node whose id comes first.

mod check;
mod cost;
mod error;
mod estimate;
mod many;
mod order;
mod partition;
mod pipelines;
mod problem;
mod replan;
mod result;
mod shortage;
mod small;
mod spares;

pub use error::{Error, Shortage, bytes_text};
pub use estimate::{Estimate, Load, NextNode, NodeMemory, PipelineEstimate, RowCost, estimate, next_node};
pub use pipelines::plan;
pub use problem::{ModelSizes, NodeId, NodeSpec, Options, Pin, Problem, Role};
pub use replan::replan;
pub use result::{Layers, PipelinePlan, Plan, Remedy, Replan, Spare, StagePlan, Unused};

/// `Result` with this module's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
