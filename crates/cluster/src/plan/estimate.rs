//! What a plan costs: time of a step, pictures per hour, and what one node more would bring.

use serde::{Deserialize, Serialize};

use super::{NodeId, NodeSpec, Plan, Problem, Result};

/// Time of a step by its rows, relative to the step of two rows that nodes publish: `max(floor, per_row * rows)`, the
/// time to read the weights or the time to compute with them, whichever is longer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowCost {
    /// Reading the weights, however few rows there are.
    pub floor: f64,
    /// Arithmetic of one row.
    pub per_row: f64,
}

/// What the pipelines are given to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Load {
    /// Pictures under way in each pipeline at a time; `None`: one per microbatch in flight.
    pub pictures: Option<usize>,
    /// Positions of a prompt.
    pub prompt_tokens: usize,
    /// How rows share a step; `None`: they don't, each costs as much as the first.
    pub rows: Option<RowCost>,
    /// VQ decoding of one picture, in milliseconds.
    pub vq_decode_ms: f64,
    /// Decoders beside the pipelines. 0: the last stages decode, and do nothing else meanwhile.
    pub decoders: usize,
}

/// What one pipeline does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PipelineEstimate {
    /// Time of one token of one picture alone, in milliseconds.
    pub step_ms: f64,
    /// Busy time of the busiest pool for one picture's step, in milliseconds.
    pub pace_ms: f64,
    /// Distinct compute pools.
    pub pools: usize,
    /// Microbatches in flight.
    pub microbatches: usize,
    /// Pictures under way.
    pub pictures: usize,
    /// Time until each picture under way has one token more, in milliseconds.
    pub full_step_ms: f64,
    /// Time of one picture alone, prompt and VQ decoding included, in seconds.
    pub picture_s: f64,
    /// Pictures per hour with that many under way.
    pub pictures_per_hour: f64,
}

/// What a plan does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// One per pipeline, in the plan's order.
    pub pipelines: Vec<PipelineEstimate>,
    /// Pictures per hour of all of them, VQ decoding included.
    pub pictures_per_hour: f64,
    /// Bytes of each node that has a stage.
    pub memory: Vec<(NodeId, u64)>,
}

/// What one node more would bring.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NextNode {
    /// The node it is like: the middle one of those in use, by speed.
    pub like: NodeId,
    /// The plan with it.
    pub plan: Plan,
    /// What that one does.
    pub estimate: Estimate,
}

/// What `plan` does under `load`. `nodes` are the problem's.
pub fn estimate(problem: &Problem, plan: &Plan, load: &Load) -> Estimate {
    let _ = (problem, plan, load);
    Estimate { pipelines: Vec::new(), pictures_per_hour: 0.0, memory: Vec::new() }
}

/// What one node more would bring.
///
/// # Errors
/// As [`plan()`](super::plan()).
pub fn next_node(problem: &Problem, plan: &Plan, load: &Load) -> Result<NextNode> {
    let _: (&Problem, &Plan, &Load, Option<&NodeSpec>) = (problem, plan, load, None);
    Err(super::Error::Invalid("not written yet".to_owned()))
}

impl Default for Load {
    fn default() -> Self {
        Load { pictures: None, prompt_tokens: 32, rows: None, vq_decode_ms: 0.0, decoders: 1 }
    }
}
