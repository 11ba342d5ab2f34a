//! What the planner is asked: sizes, nodes, wishes.

use std::collections::{BTreeMap, BTreeSet};

use janus_spec::{KvStorage, ModelSpec, WeightStorage};
use serde::{Deserialize, Serialize};

use super::Layers;

/// Name of a node, unique in its cluster.
pub type NodeId = String;

/// Sizes of a model as the stages hold it, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSizes {
    /// Weights of each layer; as many entries as the model has layers.
    pub layer_bytes: Vec<u64>,
    /// Weights that only the first stage holds.
    pub embedding_bytes: u64,
    /// Weights that only the last stage holds.
    pub head_bytes: u64,
    /// Keys and values of one position of one row in one layer.
    pub kv_bytes_per_position: u64,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Ids of one picture.
    pub image_tokens: usize,
}

/// What a node can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Runs layers of the language model.
    Stage,
    /// Sees pictures.
    Encoder,
    /// Paints pictures from ids.
    Decoder,
}

/// One node as it describes itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSpec {
    /// Its name.
    pub id: NodeId,
    /// Where it stands. Links between zones are taken for slow unless they were measured.
    pub zone: String,
    /// Memory for weights and KV cache, in bytes.
    pub memory_bytes: u64,
    /// Time of one layer for one guided picture (two rows), in milliseconds.
    pub ms_per_layer: f64,
    /// Extra time of the first stage for two rows, in milliseconds.
    pub ms_embed: f64,
    /// Extra time of the last stage for two rows (heads, guidance, sampling), in milliseconds.
    pub ms_head: f64,
    /// Numerics id: nodes with equal ids compute equal bits.
    pub numerics: String,
    /// What it can do; only nodes with [`Role::Stage`] get layers.
    pub roles: BTreeSet<Role>,
    /// Measured round trips to other nodes (and to the coordinator), in milliseconds.
    pub round_trips: BTreeMap<NodeId, f64>,
    /// Layers that it has loaded already. With the first layer go the embeddings, with the last one the heads.
    pub holds: Option<Layers>,
    /// Compute pool: nodes with the same pool share cores, so their times add up. `None`: a pool of its own.
    pub pool: Option<String>,
}

/// A stage that the operator fixed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// Which node.
    pub node: NodeId,
    /// Its layers; no other node runs any of them.
    pub layers: Layers,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Pipelines; `None`: as many as give the most throughput, the fewer of equals.
    pub pipelines: Option<usize>,
    /// Stages of each pipeline, exactly; `None`: as many as help.
    pub stages: Option<usize>,
    /// Stages of each pipeline at most.
    pub max_stages: Option<usize>,
    /// Nodes to keep free so that each can replace any stage. Fewer are kept if the nodes allow no more.
    pub spares: usize,
    /// Positions, over all rows, that every stage keeps room for in its KV cache.
    pub kv_positions: usize,
    /// Only nodes with this numerics id: work that runs never moves to another one.
    pub numerics: Option<String>,
    /// Stages that are fixed. Only pinned nodes may stand in a pipeline of another numerics id.
    pub pinned: Vec<Pin>,
    /// Nodes that get no layers.
    pub forbidden_nodes: BTreeSet<NodeId>,
    /// Pairs of nodes that are never neighbours; the order within a pair is of no importance.
    pub forbidden_links: BTreeSet<(NodeId, NodeId)>,
    /// Compare bytes to load before the time of one microbatch.
    pub prefer_held: bool,
    /// The node that the coordinator is known as in the members' round trips; its two links count if it is given.
    pub coordinator: Option<NodeId>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            pipelines: Some(1),
            stages: None,
            max_stages: None,
            spares: 0,
            kv_positions: 0,
            numerics: None,
            pinned: Vec::new(),
            forbidden_nodes: BTreeSet::new(),
            forbidden_links: BTreeSet::new(),
            prefer_held: false,
            coordinator: None,
        }
    }
}

/// Everything a plan depends on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Problem {
    /// The model.
    pub model: ModelSizes,
    /// The nodes, in any order.
    pub nodes: Vec<NodeSpec>,
    /// The wishes.
    pub options: Options,
}

impl ModelSizes {
    /// The sizes of a model whose stages keep linear layers as `weights` and their cache as `kv`.
    pub fn of(spec: &ModelSpec, weights: WeightStorage, kv: KvStorage) -> ModelSizes {
        let sizes = spec.stage_sizes(weights, kv);
        ModelSizes {
            layer_bytes: vec![sizes.layer; spec.llm.layers],
            embedding_bytes: sizes.embeddings,
            head_bytes: sizes.heads,
            kv_bytes_per_position: sizes.kv_per_position,
            hidden: spec.llm.hidden,
            image_tokens: spec.image_tokens(),
        }
    }

    /// Layers.
    pub fn layers(&self) -> usize {
        self.layer_bytes.len()
    }

    /// Bytes of a stage with these layers: weights, embeddings or heads, and KV cache for `kv_positions` positions.
    pub fn stage_bytes(&self, layers: Layers, kv_positions: usize) -> u64 {
        self.weight_bytes(layers).saturating_add(self.kv_bytes(layers.len(), kv_positions))
    }

    /// Bytes of the weights of a stage with these layers.
    pub fn weight_bytes(&self, layers: Layers) -> u64 {
        let all = self.layer_bytes.get(layers.first..layers.end).unwrap_or_default();
        let first = if layers.first == 0 { self.embedding_bytes } else { 0 };
        let last = if layers.end == self.layers() { self.head_bytes } else { 0 };
        all.iter().fold(first.saturating_add(last), |sum, &bytes| sum.saturating_add(bytes))
    }

    /// Bytes of the KV cache of `layers` layers.
    pub fn kv_bytes(&self, layers: usize, kv_positions: usize) -> u64 {
        self.kv_bytes_per_position.saturating_mul(layers as u64).saturating_mul(kv_positions as u64)
    }
}
