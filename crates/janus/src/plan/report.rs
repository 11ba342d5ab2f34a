//! A plan for people and for programs.

use janus_cluster::plan::{Estimate, NextNode, Plan, Problem, bytes_text};
use serde::Serialize;

use crate::failure::Outcome;
use crate::output;

/// A plan, what it was made from, and what it does.
pub(crate) struct Report<'a> {
    /// The model in words.
    pub(crate) model: &'a str,
    pub(crate) problem: &'a Problem,
    pub(crate) plan: &'a Plan,
    pub(crate) estimate: &'a Estimate,
    /// What one node more would bring, if it would find a place.
    pub(crate) next: Option<&'a NextNode>,
}

#[derive(Serialize)]
struct Json<'a> {
    model: &'a str,
    layers: usize,
    kv_positions: usize,
    plan: &'a Plan,
    estimate: &'a Estimate,
    next: Option<Next<'a>>,
}

#[derive(Serialize)]
struct Next<'a> {
    like: &'a str,
    pace_ms: f64,
    step_ms: f64,
    pictures_per_hour: f64,
}

/// Prints a plan on stdout, as a table or as one line of JSON.
pub(crate) fn report(said: &Report<'_>, json: bool) -> Outcome {
    if json {
        return output::print_json(&as_json(said));
    }
    output::print_line(table(said).trim_end());
    Ok(())
}

fn offered(said: &Report<'_>, id: &str) -> u64 {
    said.estimate.memory.iter().find(|memory| memory.node == id).map_or(0, |memory| memory.offered_bytes)
}

fn as_json<'a>(said: &Report<'a>) -> Json<'a> {
    Json {
        model: said.model,
        layers: said.problem.model.layers(),
        kv_positions: said.problem.options.kv_positions,
        plan: said.plan,
        estimate: said.estimate,
        next: said.next.map(|next| Next {
            like: &next.like,
            pace_ms: next.estimate.pipelines.first().map_or(0.0, |p| p.pace_ms),
            step_ms: next.estimate.pipelines.first().map_or(0.0, |p| p.step_ms),
            pictures_per_hour: next.estimate.pictures_per_hour,
        }),
    }
}

fn table(said: &Report<'_>) -> String {
    let options = &said.problem.options;
    let mut text =
        format!("{}: {} layers, cache for {} positions\n", said.model, said.problem.model.layers(), options.kv_positions);
    let nodes = said.plan.pipelines.iter().flat_map(|p| &p.stages).map(|s| s.node.len());
    let width = nodes.max().unwrap_or(0).max("node".len());
    for (i, (pipeline, costs)) in said.plan.pipelines.iter().zip(&said.estimate.pipelines).enumerate() {
        text += &format!("\npipeline {} ({})\n", i + 1, pipeline.numerics);
        text += &format!("  stage  {:width$}  layers   {:>10}  {:>10}  {:>8}\n", "node", "memory", "of", "ms");
        for (place, stage) in pipeline.stages.iter().enumerate() {
            text += &format!(
                "  {:>5}  {:width$}  {:7}  {:>10}  {:>10}  {:>8.2}\n",
                place + 1,
                stage.node,
                stage.layers.to_string(),
                bytes_text(stage.memory_bytes),
                bytes_text(offered(said, &stage.node)),
                stage.ms,
            );
        }
        text += &format!("  one picture alone: {:.2} ms a token, {:.1} s in all\n", costs.step_ms, costs.picture_s);
        text += &match costs.pictures {
            0 => "  the cache has no room for a picture: raise kv_positions\n".to_owned(),
            n => format!(
                "  {n} at a time: {:.2} ms for a token of each, busiest {:.2} ms, {:.1} pictures per hour\n",
                costs.full_step_ms, costs.pace_ms, costs.pictures_per_hour
            ),
        };
    }
    text.push('\n');
    for spare in &said.plan.spares {
        text += &format!("spare {} loads layers {} in advance\n", spare.node, spare.preload);
    }
    let missing = options.spares.saturating_sub(said.plan.spares.len());
    if missing > 0 {
        text += &format!("{missing} of {} spares are missing: no more nodes can be kept free\n", options.spares);
    }
    for (id, reason) in &said.plan.unused {
        text += &format!("{id} is not used: {reason}\n");
    }
    let total = said.estimate.pictures_per_hour;
    text += &format!("all together: {total:.1} pictures per hour\n");
    if let Some(next) = said.next {
        let more = next.estimate.pictures_per_hour;
        let gain = if total > 0.0 { format!(" ({:+.0} %)", (more / total - 1.0) * 100.0) } else { String::new() };
        text += &format!("with one more node like {}: {more:.1} pictures per hour{gain}\n", next.like);
    }
    text
}
