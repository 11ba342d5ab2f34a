//! One pipeline after some of its nodes were lost.

use super::{Error, NodeId, PipelinePlan, Problem, Replan, Result};

/// The pipeline `previous` without the nodes `lost`. The problem's nodes are those that may be used: what is left of the
/// pipeline, spares, and nodes that are free; not those of other pipelines.
///
/// # Errors
/// As [`plan()`](super::plan()).
pub fn replan(problem: &Problem, previous: &PipelinePlan, lost: &[NodeId]) -> Result<Replan> {
    let _ = (problem, previous, lost);
    Err(Error::Invalid("not written yet".to_owned()))
}
