//! Whether a problem makes sense. Members and files may lie.

use std::collections::BTreeSet;

use super::{Error, Layers, NodeSpec, Problem, Result, Role};

/// The search takes quadratic time in the layers; the largest published language models have about half of these.
const MOST_LAYERS: usize = 256;
/// A day for one layer.
const MOST_MS: f64 = 8.64e7;

/// Refuses what makes no sense.
pub(super) fn check(problem: &Problem) -> Result<()> {
    let (model, options) = (&problem.model, &problem.options);
    if !(1..=MOST_LAYERS).contains(&model.layers()) {
        return invalid(format!("the model has {} layers; 1 to {MOST_LAYERS} can be planned", model.layers()));
    }
    let mut ids = BTreeSet::new();
    for node in &problem.nodes {
        if node.id.is_empty() {
            return invalid("a node has an empty id".to_owned());
        }
        if !ids.insert(node.id.as_str()) {
            return invalid(format!("two nodes are called {}", node.id));
        }
        check_node(node, model.layers())?;
    }
    for (what, wish) in [("pipelines", options.pipelines), ("stages", options.stages), ("max_stages", options.max_stages)] {
        if wish == Some(0) {
            return invalid(format!("{what} is 0; ask for at least 1"));
        }
    }
    if let (Some(stages), Some(most)) = (options.stages, options.max_stages)
        && stages > most
    {
        return invalid(format!("stages is {stages} and max_stages is {most}; ask for one or the other"));
    }
    for pin in &options.pinned {
        if !ids.contains(pin.node.as_str()) {
            return invalid(format!("layers are pinned to {}, which is no node", pin.node));
        }
        check_range(&format!("the layers pinned to {}", pin.node), pin.layers, model.layers())?;
        if options.pinned.iter().filter(|other| other.node == pin.node).count() > 1 {
            return invalid(format!("{} is pinned twice; a node has one stage", pin.node));
        }
    }
    Ok(())
}

/// The nodes that may run stages.
pub(super) fn runners(problem: &Problem) -> Vec<&NodeSpec> {
    let options = &problem.options;
    let pinned = |node: &NodeSpec| options.pinned.iter().any(|pin| pin.node == node.id);
    let fits = |node: &&NodeSpec| {
        node.roles.contains(&Role::Stage)
            && !options.forbidden_nodes.contains(&node.id)
            && (pinned(node) || options.numerics.as_ref().is_none_or(|id| *id == node.numerics))
    };
    problem.nodes.iter().filter(fits).collect()
}

fn check_node(node: &NodeSpec, layers: usize) -> Result<()> {
    let times = [("ms_per_layer", node.ms_per_layer), ("ms_embed", node.ms_embed), ("ms_head", node.ms_head)];
    for (what, ms) in times {
        if !(0.0..=MOST_MS).contains(&ms) {
            return invalid(format!("{what} of {} is {ms}; it has to be 0 to {MOST_MS} milliseconds", node.id));
        }
    }
    for (other, ms) in &node.round_trips {
        if !(0.0..=MOST_MS).contains(ms) {
            return invalid(format!("the round trip from {} to {other} is {ms} ms; it has to be 0 to {MOST_MS}", node.id));
        }
    }
    node.holds.map_or(Ok(()), |held| check_range(&format!("what {} holds", node.id), held, layers))
}

fn check_range(what: &str, range: Layers, layers: usize) -> Result<()> {
    if range.is_empty() || range.end > layers {
        return invalid(format!("{what}, {range}, is no range of the model's {layers} layers"));
    }
    Ok(())
}

fn invalid<T>(message: String) -> Result<T> {
    Err(Error::Invalid(message))
}
