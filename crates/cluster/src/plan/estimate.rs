//! What a plan costs: time of a step, pictures per hour, and what one node more would bring.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::cost::Pool;
use super::{Error, NodeId, NodeSpec, PipelinePlan, Plan, Problem, Result, StagePlan};

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
    /// Pictures under way in each pipeline at a time; `None`: one per microbatch in flight. Never more than the KV cache
    /// has room for, if the options give it a size.
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
    /// Busy time of the busiest pool for one picture's step, in milliseconds; what other pipelines do there included.
    pub pace_ms: f64,
    /// Distinct compute pools.
    pub pools: usize,
    /// Microbatches in flight.
    pub microbatches: usize,
    /// Pictures under way; 0 if the KV cache has no room for one.
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
    /// Memory of each node that has a stage.
    pub memory: Vec<NodeMemory>,
}

/// Memory of a node with a stage, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeMemory {
    /// Which node.
    pub node: NodeId,
    /// What its stage holds.
    pub used_bytes: u64,
    /// What it offers.
    pub offered_bytes: u64,
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

/// What `plan` does under `load`. The plan is one of the problem's.
///
/// A stage takes its published time, times [`RowCost`] for more than a guided picture's two rows. With `m` microbatches under
/// way, each gets its next token once per `max(stages and links in a row, m * busiest pool)`. Prompts are read beside the
/// tokens and take the busiest pool's time; VQ decoding overlaps with both and only limits how many pictures leave.
pub fn estimate(problem: &Problem, plan: &Plan, load: &Load) -> Estimate {
    let busy = busy(problem, plan);
    let pipelines: Vec<_> = plan.pipelines.iter().map(|p| pipeline_estimate(problem, p, &busy, load)).collect();
    let sum: f64 = pipelines.iter().map(|p| p.pictures_per_hour).sum();
    let painted = if load.decoders > 0 && load.vq_decode_ms > 0.0 {
        sum.min(load.decoders as f64 * HOUR_MS / load.vq_decode_ms)
    } else {
        sum
    };
    let stages = plan.pipelines.iter().flat_map(|p| &p.stages);
    let offered = |id: &str| problem.nodes.iter().find(|node| node.id == id).map_or(0, |node| node.memory_bytes);
    let memory = |stage: &StagePlan| NodeMemory {
        node: stage.node.clone(),
        used_bytes: stage.memory_bytes,
        offered_bytes: offered(&stage.node),
    };
    let memory = stages.map(memory).collect();
    Estimate { pipelines, pictures_per_hour: painted, memory }
}

/// What one node more would bring, like the middle one of those that have a stage. If an exact number of stages is asked for,
/// one stage more is.
///
/// # Errors
/// As [`plan()`](super::plan()), and [`Error::Invalid`] if the plan has no stage of this problem.
pub fn next_node(problem: &Problem, plan: &Plan, load: &Load) -> Result<NextNode> {
    let used = |node: &&NodeSpec| plan.pipelines.iter().flat_map(|p| &p.stages).any(|s| s.node == node.id);
    let mut nodes: Vec<&NodeSpec> = problem.nodes.iter().filter(used).collect();
    nodes.sort_by(|a, b| a.ms_per_layer.total_cmp(&b.ms_per_layer).then_with(|| a.id.cmp(&b.id)));
    let like =
        nodes.get(nodes.len() / 2).ok_or_else(|| Error::Invalid("the plan has no node of this problem".to_owned()))?;
    let mut id = "next".to_owned();
    while problem.nodes.iter().any(|node| node.id == id) {
        id.push('\'');
    }
    let mut longer = problem.clone();
    longer.nodes.push(NodeSpec { id, holds: None, pool: None, ..(*like).clone() });
    longer.options.stages = problem.options.stages.map(|stages| stages + 1);
    longer.options.max_stages = problem.options.max_stages.map(|stages| stages + 1);
    let plan = super::plan(&longer)?;
    let estimate = estimate(&longer, &plan, load);
    Ok(NextNode { like: like.id.clone(), plan, estimate })
}

const HOUR_MS: f64 = 3.6e6;
/// Rows of a guided picture.
const ROWS: f64 = 2.0;

impl Load {
    /// Time of a step of so many rows, relative to two.
    fn cost(&self, rows: f64) -> f64 {
        match self.rows {
            Some(cost) => cost.floor.max(cost.per_row * rows),
            None => rows / ROWS,
        }
    }
}

/// The pool of a node.
fn pool<'a>(problem: &'a Problem, id: &'a str) -> Pool<'a> {
    problem.nodes.iter().find(|node| node.id == id).map_or(Pool::Own(id), Pool::of)
}

/// Busy time of every pool for one step of each pipeline, in milliseconds.
fn busy<'a>(problem: &'a Problem, plan: &'a Plan) -> BTreeMap<Pool<'a>, f64> {
    let mut busy = BTreeMap::new();
    for stage in plan.pipelines.iter().flat_map(|p| &p.stages) {
        *busy.entry(pool(problem, &stage.node)).or_default() += stage.ms;
    }
    busy
}

fn pipeline_estimate(
    problem: &Problem,
    pipeline: &PipelinePlan,
    busy: &BTreeMap<Pool<'_>, f64>,
    load: &Load,
) -> PipelineEstimate {
    let pools: BTreeSet<Pool<'_>> = pipeline.stages.iter().map(|stage| pool(problem, &stage.node)).collect();
    let pace_ms = pools.iter().filter_map(|pool| busy.get(pool)).copied().fold(0.0, f64::max);
    let computing: f64 = pipeline.stages.iter().map(|stage| stage.ms).sum();
    let links = (pipeline.step_ms - computing).max(0.0);
    let tokens = problem.model.image_tokens as f64;
    let positions = 2 * (load.prompt_tokens + problem.model.image_tokens);
    let wanted = load.pictures.unwrap_or(pools.len() + 1);
    let room = problem.options.kv_positions / positions.max(1);
    let pictures = if problem.options.kv_positions == 0 { wanted } else { wanted.min(room) };
    let microbatches = pictures.clamp(1, pools.len() + 1);
    // Microbatches are equal in rows, or differ by one picture.
    let (each, larger) = (pictures.max(1) / microbatches, pictures.max(1) % microbatches);
    let cost = |pictures: usize| load.cost(ROWS * pictures as f64);
    let largest = cost(each + usize::from(larger > 0));
    let all = larger as f64 * cost(each + 1) + (microbatches - larger) as f64 * cost(each);
    let full_step_ms = (computing * largest + links).max(pace_ms * all);
    let (prompt, prompt_links) =
        if load.prompt_tokens == 0 { (0.0, 0.0) } else { (load.cost(ROWS * load.prompt_tokens as f64), links) };
    let decode = if load.decoders == 0 { load.vq_decode_ms } else { 0.0 };
    let round = tokens * full_step_ms + pictures as f64 * (pace_ms * prompt + decode);
    let alone = computing * prompt + prompt_links + tokens * pipeline.step_ms + load.vq_decode_ms;
    PipelineEstimate {
        step_ms: pipeline.step_ms,
        pace_ms,
        pools: pools.len(),
        microbatches,
        pictures,
        full_step_ms,
        picture_s: alone / 1e3,
        pictures_per_hour: if round > 0.0 { pictures as f64 * HOUR_MS / round } else { 0.0 },
    }
}

impl Default for Load {
    fn default() -> Self {
        Load { pictures: None, prompt_tokens: 32, rows: None, vq_decode_ms: 0.0, decoders: 1 }
    }
}
