//! Why there is no plan.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::NodeId;

/// Memory that one node lacks in the layout that comes closest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shortage {
    /// Which node.
    pub node: NodeId,
    /// Bytes it lacks.
    pub missing_bytes: u64,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// Memory is missing.
    #[error("{}", DoesNotFitText(self))]
    DoesNotFit {
        /// Nodes that may run stages.
        nodes: usize,
        /// Their memory together, in bytes.
        offered_bytes: u64,
        /// What the model needs, in bytes, KV cache of all pipelines included.
        needed_bytes: u64,
        /// Positions of the KV cache that were counted.
        kv_positions: usize,
        /// Pipelines that were asked for.
        pipelines: usize,
        /// The fewest bytes that would have to be added, over all layouts.
        missing_bytes: u64,
        /// Where they are missing in the layout that needs the fewest.
        shortages: Vec<Shortage>,
    },
    /// More stages are asked for than nodes or layers exist.
    #[error(
        "no plan: {wanted} or more stages are needed, and there are {nodes} nodes of one numerics id that run stages and \
         {layers} layers; add nodes or ask for fewer"
    )]
    TooFewNodes {
        /// Stages of all pipelines together.
        wanted: usize,
        /// Nodes that may run stages.
        nodes: usize,
        /// Layers of the model.
        layers: usize,
    },
    /// Pins and forbidden links leave no layout, however much memory there is.
    #[error("no plan: the pinned stages and forbidden links leave no layout for {nodes} nodes; loosen them")]
    Contradiction {
        /// Nodes that may run stages.
        nodes: usize,
    },
    /// The problem makes no sense.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// Whether the same call may succeed when nodes have joined.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Error::DoesNotFit { .. } | Error::TooFewNodes { .. })
    }
}

/// Bytes for people, in binary units.
pub fn bytes_text(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match UNITS.iter().find(|(size, _)| bytes >= *size) {
        Some((size, unit)) => format!("{:.1} {unit}", bytes as f64 / *size as f64),
        None => format!("{bytes} bytes"),
    }
}

struct DoesNotFitText<'a>(&'a Error);

impl fmt::Display for DoesNotFitText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Error::DoesNotFit { nodes, offered_bytes, needed_bytes, kv_positions, pipelines, missing_bytes, shortages } =
            self.0
        else {
            return Ok(());
        };
        let (offer, copies) =
            (if *nodes == 1 { "node offers" } else { "nodes offer" }, if *pipelines > 1 { "s" } else { "" });
        write!(
            f,
            "no plan that fits: {nodes} {offer} {}, {pipelines} pipeline{copies} with KV for {kv_positions} positions \
             need{} {}; {} missing",
            bytes_text(*offered_bytes),
            if *pipelines > 1 { "" } else { "s" },
            bytes_text(*needed_bytes),
            bytes_text(*missing_bytes),
        )?;
        for (i, shortage) in shortages.iter().enumerate() {
            let before = if i == 0 { " (" } else { ", " };
            write!(f, "{before}{} lacks {}", shortage.node, bytes_text(shortage.missing_bytes))?;
        }
        if shortages.is_empty() { Ok(()) } else { f.write_str(")") }
    }
}
