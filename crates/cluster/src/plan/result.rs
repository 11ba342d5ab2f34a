//! What the planner answers.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::NodeId;

/// A range of layers, the end excluded; in JSON `[first, end]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "(usize, usize)", into = "(usize, usize)")]
pub struct Layers {
    /// The first layer.
    pub first: usize,
    /// The layer after the last one.
    pub end: usize,
}

impl Layers {
    /// How many layers.
    pub fn len(self) -> usize {
        self.end.saturating_sub(self.first)
    }

    /// The layers, to iterate over.
    pub fn range(self) -> Range<usize> {
        self.first..self.end
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Whether all of `other` is in here.
    pub fn covers(self, other: Layers) -> bool {
        self.first <= other.first && other.end <= self.end
    }

    /// Whether a layer is in both.
    pub fn overlaps(self, other: Layers) -> bool {
        self.first.max(other.first) < self.end.min(other.end)
    }

    /// Whether this layer is in here.
    pub fn contains(self, layer: usize) -> bool {
        (self.first..self.end).contains(&layer)
    }
}

impl From<(usize, usize)> for Layers {
    fn from((first, end): (usize, usize)) -> Self {
        Layers { first, end }
    }
}

impl From<Layers> for (usize, usize) {
    fn from(layers: Layers) -> Self {
        (layers.first, layers.end)
    }
}

impl From<Range<usize>> for Layers {
    fn from(range: Range<usize>) -> Self {
        Layers { first: range.start, end: range.end }
    }
}

impl From<Layers> for Range<usize> {
    fn from(layers: Layers) -> Self {
        layers.first..layers.end
    }
}

impl fmt::Display for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.first, self.end)
    }
}

/// One stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StagePlan {
    /// Who runs it.
    pub node: NodeId,
    /// Which layers.
    pub layers: Layers,
    /// Its numerics id.
    pub numerics: String,
    /// Bytes it will hold: weights and KV cache.
    pub memory_bytes: u64,
    /// Time of one guided picture's step (two rows), in milliseconds, links not counted.
    pub ms: f64,
}

/// One pipeline: every layer exactly once, in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PipelinePlan {
    /// Stages in the order of their layers.
    pub stages: Vec<StagePlan>,
    /// Numerics id of every stage; with pins of several ids, `id[first,end)` of each, joined by `+`.
    pub numerics: String,
    /// Time of one microbatch of two rows through all stages and links, in milliseconds.
    pub step_ms: f64,
    /// Busy time of the busiest compute pool, in milliseconds: one microbatch of two rows leaves per so long.
    pub pace_ms: f64,
}

/// A node that is kept free.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spare {
    /// Who.
    pub node: NodeId,
    /// What it should load in advance; it has room for these and for the KV cache of any stage among them.
    pub preload: Layers,
}

/// Why a node has nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unused {
    /// It does not run stages.
    NotAStage,
    /// The options forbid it.
    Forbidden,
    /// Its numerics id is another one.
    OtherNumerics,
    /// It has no room for a single layer.
    TooSmall,
    /// The plan would be no faster with it, or as many stages as were asked for are there.
    NotNeeded,
}

impl fmt::Display for Unused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unused::NotAStage => "it does not run stages",
            Unused::Forbidden => "the options forbid it",
            Unused::OtherNumerics => "its numerics id is another one",
            Unused::TooSmall => "it has no room for a single layer",
            Unused::NotNeeded => "it would make nothing faster",
        })
    }
}

/// Who computes which layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The pipelines, the one with the best pace first.
    pub pipelines: Vec<PipelinePlan>,
    /// Nodes kept free; perhaps fewer than were asked for.
    pub spares: Vec<Spare>,
    /// Everybody else, and why.
    pub unused: Vec<(NodeId, Unused)>,
}

/// How a pipeline was repaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Remedy {
    /// Nothing was lost.
    Unchanged,
    /// Nodes that held the lost layers already stand in for the lost ones; all other stages are as before.
    Spares,
    /// The layers were divided anew.
    Repartitioned,
}

/// A pipeline after a loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Replan {
    /// The new pipeline.
    pub pipeline: PipelinePlan,
    /// How it came about.
    pub remedy: Remedy,
    /// Bytes of weights that some node has to load.
    pub load_bytes: u64,
}
