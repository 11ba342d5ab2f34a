//! A cluster as a YAML file describes it. Every key is known or refused; a mistake is named with its line.

use std::collections::{BTreeMap, BTreeSet};

use janus_cluster::plan::{Layers, Load, ModelSizes, NodeSpec, Options, Pin, Problem, Role, RowCost};
use janus_spec::{KvStorage, ModelSpec, WeightStorage};
use serde::Deserialize;

use crate::args::{Kv, Weights};
use crate::checkpoint;

use super::size::Size;

/// Pictures for whose keys and values every stage keeps room, where the file does not say.
const PICTURES: usize = 8;
/// The cache of a row is kept in panels of so many positions.
const PANEL: usize = 32;
/// Rows of a guided picture.
const ROWS: f64 = 2.0;

/// What is known after reading.
#[derive(Debug)]
pub(super) struct Described {
    /// Name and formats, for people.
    pub(super) model: String,
    pub(super) problem: Problem,
    pub(super) load: Load,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cluster {
    /// A published model, or `shapes`.
    model: Option<Model>,
    /// Or its sizes.
    sizes: Option<Sizes>,
    weights: Option<Weights>,
    kv: Option<Kv>,
    pipelines: Option<Count>,
    stages: Option<usize>,
    max_stages: Option<usize>,
    #[serde(default)]
    spares: usize,
    /// Pictures under way in each pipeline.
    pictures: Option<usize>,
    /// Positions of the cache, over all rows; else room for `pictures`.
    kv_positions: Option<usize>,
    prompt_tokens: Option<usize>,
    rows: Option<RowCost>,
    vq_decode_ms: Option<f64>,
    decoders: Option<usize>,
    numerics: Option<String>,
    coordinator: Option<String>,
    nodes: Vec<Node>,
    #[serde(default)]
    links: Vec<Link>,
    #[serde(default)]
    pinned: Vec<Pin>,
    #[serde(default)]
    forbidden_nodes: BTreeSet<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
enum Model {
    #[serde(rename = "janus-1.3b")]
    Janus1_3b,
    #[serde(rename = "janus-pro-1b")]
    JanusPro1b,
    #[serde(rename = "janus-pro-7b")]
    JanusPro7b,
    #[serde(rename = "shapes")]
    Shapes,
}

/// A model that is nobody's yet.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sizes {
    layers: usize,
    layer: Size,
    embeddings: Size,
    heads: Size,
    /// Keys and values of one position in one layer.
    kv_per_position: Size,
    hidden: usize,
    image_tokens: usize,
}

/// A number, or as many as are best.
#[derive(Debug, Clone, Copy)]
enum Count {
    Auto,
    Of(usize),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Node {
    id: String,
    #[serde(default)]
    zone: String,
    memory: Size,
    /// Measured, or from what the machine reads and computes.
    ms_per_layer: Option<f64>,
    ms_embed: Option<f64>,
    ms_head: Option<f64>,
    read_gb_s: Option<f64>,
    gflops: Option<f64>,
    numerics: Option<String>,
    roles: Option<BTreeSet<Role>>,
    holds: Option<Layers>,
    pool: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Link {
    between: (String, String),
    round_trip_ms: Option<f64>,
    #[serde(default)]
    forbidden: bool,
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct CountVisitor;
        impl serde::de::Visitor<'_> for CountVisitor {
            type Value = Count;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("`auto` or a whole number")
            }

            fn visit_u64<E: serde::de::Error>(self, count: u64) -> Result<Count, E> {
                usize::try_from(count).map(Count::Of).map_err(E::custom)
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Count, E> {
                if text == "auto" {
                    Ok(Count::Auto)
                } else {
                    Err(E::custom(format!("`{text}` is neither `auto` nor a whole number")))
                }
            }
        }
        deserializer.deserialize_any(CountVisitor)
    }
}

/// The model's numbers, however they were given.
struct Known {
    /// `None` for sizes alone.
    name: Option<String>,
    sizes: ModelSizes,
    weights: WeightStorage,
    kv: KvStorage,
    /// Bytes of the image head, which every step of a picture reads.
    image_head: u64,
}

/// Reads a description; `model` takes the place of the one in the file.
pub(super) fn parse(text: &str, model: Option<(String, ModelSpec)>) -> Result<Described, String> {
    let cluster: Cluster = serde_saphyr::from_str(text).map_err(|e| in_one_line(&e))?;
    let known = known(&cluster, model)?;
    let guess = cluster.pictures.unwrap_or(PICTURES);
    let prompt_tokens = cluster.prompt_tokens.unwrap_or(Load::default().prompt_tokens);
    let row = prompt_tokens.saturating_add(known.sizes.image_tokens).checked_next_multiple_of(PANEL).unwrap_or(usize::MAX);
    let positions = guess.saturating_mul(2).saturating_mul(row);
    let mut nodes = Vec::new();
    for node in &cluster.nodes {
        nodes.push(node_spec(node, &known)?);
    }
    let mut forbidden_links = BTreeSet::new();
    for link in &cluster.links {
        read_link(link, cluster.coordinator.as_deref(), &mut nodes, &mut forbidden_links)?;
    }
    for id in &cluster.forbidden_nodes {
        if !nodes.iter().any(|node| node.id == *id) {
            return Err(format!("forbidden_nodes names {id}, which is no node"));
        }
    }
    let load = Load {
        pictures: cluster.pictures,
        prompt_tokens,
        rows: cluster.rows.or_else(|| row_cost(&cluster.nodes, &known)),
        vq_decode_ms: not_negative("vq_decode_ms", cluster.vq_decode_ms.unwrap_or(0.0))?,
        decoders: cluster.decoders.unwrap_or(1),
    };
    if let Some(rows) = load.rows {
        not_negative("rows.floor", rows.floor)?;
        not_negative("rows.per_row", rows.per_row)?;
    }
    let options = Options {
        pipelines: match cluster.pipelines {
            Some(Count::Auto) => None,
            Some(Count::Of(count)) => Some(count),
            None => Some(1),
        },
        stages: cluster.stages,
        max_stages: cluster.max_stages,
        spares: cluster.spares,
        kv_positions: cluster.kv_positions.unwrap_or(positions),
        numerics: cluster.numerics,
        pinned: cluster.pinned,
        forbidden_nodes: cluster.forbidden_nodes,
        forbidden_links,
        prefer_held: false,
        coordinator: cluster.coordinator,
    };
    let model = match known.name {
        Some(name) => format!("{name}, {} weights, {} cache", lower(known.weights), lower(known.kv)),
        None => "a model of these sizes".to_owned(),
    };
    Ok(Described { model, problem: Problem { model: known.sizes, nodes, options }, load })
}

/// The parser's message without the excerpt of the file: line, and what is wrong.
fn in_one_line(error: &serde_saphyr::Error) -> String {
    let said = error.without_snippet().render_with_formatter(&serde_saphyr::UserMessageFormatter);
    let message = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
    match error.location() {
        Some(at) if !message.contains("line ") => format!("line {}: {message}", at.line()),
        _ => message,
    }
}

fn lower(name: impl std::fmt::Debug) -> String {
    format!("{name:?}").to_lowercase()
}

fn known(cluster: &Cluster, given: Option<(String, ModelSpec)>) -> Result<Known, String> {
    let weights = cluster.weights.map_or(WeightStorage::Bf16, storage);
    let kv = match cluster.kv {
        None | Some(Kv::Bf16) => KvStorage::Bf16,
        Some(Kv::F32) => KvStorage::F32,
    };
    let named = match (given, cluster.model, &cluster.sizes) {
        (None, Some(_), Some(_)) => return Err("has both `model` and `sizes`; keep one".to_owned()),
        (Some(given), ..) => given,
        (None, Some(model), None) => published(model)?,
        (None, None, Some(sizes)) => return Ok(from_sizes(sizes, weights, kv)),
        (None, None, None) => {
            return Err("names no model: add `model: janus-pro-1b`, `sizes:`, or say --model DIR".to_owned());
        }
    };
    let (name, spec) = named;
    let head = &spec.gen_head;
    let image_head = weights.matrix_bytes(head.embed, spec.llm.hidden) + weights.matrix_bytes(head.vocab, head.embed);
    Ok(Known { name: Some(name), sizes: ModelSizes::of(&spec, weights, kv), weights, kv, image_head })
}

fn storage(weights: Weights) -> WeightStorage {
    match weights {
        Weights::Bf16 => WeightStorage::Bf16,
        Weights::Q8 => WeightStorage::Q8,
        Weights::Q4 => WeightStorage::Q4,
        Weights::F32 => WeightStorage::F32,
    }
}

fn published(model: Model) -> Result<(String, ModelSpec), String> {
    let (name, spec) = match model {
        Model::Janus1_3b => ("janus-1.3b", ModelSpec::janus_1_3b()),
        Model::JanusPro1b => ("janus-pro-1b", ModelSpec::janus_pro_1b()),
        Model::JanusPro7b => ("janus-pro-7b", ModelSpec::janus_pro_7b()),
        Model::Shapes => {
            let files = checkpoint::files("shapes").map_err(|e| e.to_string())?;
            ("shapes", ModelSpec::load(&files).map_err(|e| e.to_string())?)
        }
    };
    Ok((name.to_owned(), spec))
}

fn from_sizes(sizes: &Sizes, weights: WeightStorage, kv: KvStorage) -> Known {
    let model = ModelSizes {
        // More are refused by the planner, so there is no need to list them all.
        layer_bytes: vec![sizes.layer.0; sizes.layers.min(100_000)],
        embedding_bytes: sizes.embeddings.0,
        head_bytes: sizes.heads.0,
        kv_bytes_per_position: sizes.kv_per_position.0,
        hidden: sizes.hidden,
        image_tokens: sizes.image_tokens,
    };
    Known { name: None, sizes: model, weights, kv, image_head: sizes.heads.0 }
}

/// A node with its times: those it was given, or what reading the weights once and computing two rows take.
fn node_spec(node: &Node, known: &Known) -> Result<NodeSpec, String> {
    let speed = |what: &str, value: Option<f64>| match value {
        Some(x) if !(x.is_finite() && x > 0.0) => Err(format!("{what} of {} is {x}; it has to be above 0", node.id)),
        other => Ok(other),
    };
    let (read, compute) = (speed("read_gb_s", node.read_gb_s)?, speed("gflops", node.gflops)?);
    let derived = |bytes: u64| {
        let read = read.map(|gb_s| bytes as f64 / gb_s / 1e6);
        let compute = compute.map(|gflops| row_ms(bytes, known, gflops) * ROWS);
        read.into_iter().chain(compute).reduce(f64::max)
    };
    let layer = known.sizes.layer_bytes.first().copied().unwrap_or(0);
    let ms_per_layer = node.ms_per_layer.or_else(|| derived(layer)).ok_or_else(|| {
        format!("node {} has no speed: give it ms_per_layer, or read_gb_s and gflops (`janus bench` measures them)", node.id)
    })?;
    Ok(NodeSpec {
        id: node.id.clone(),
        zone: node.zone.clone(),
        memory_bytes: node.memory.0,
        ms_per_layer,
        ms_embed: node.ms_embed.unwrap_or(0.0),
        ms_head: node.ms_head.or_else(|| derived(known.image_head)).unwrap_or(0.0),
        numerics: node.numerics.clone().unwrap_or_else(|| "cpu".to_owned()),
        roles: node.roles.clone().unwrap_or_else(|| BTreeSet::from([Role::Stage])),
        round_trips: BTreeMap::new(),
        holds: node.holds,
        pool: node.pool.clone(),
    })
}

/// Milliseconds of arithmetic of one row through weights of so many bytes.
fn row_ms(bytes: u64, known: &Known, gflops: f64) -> f64 {
    // A block of 32 x 32 weights says how many bytes a weight takes.
    let weights = bytes as f64 * 1024.0 / known.weights.matrix_bytes(32, 32) as f64;
    2.0 * weights / gflops / 1e6
}

/// How rows share a step, if every node says what it reads and computes: by the node where they share least.
fn row_cost(nodes: &[Node], known: &Known) -> Option<RowCost> {
    let mut worst = RowCost { floor: 0.0, per_row: 0.0 };
    let bytes = known.sizes.layer_bytes.first().copied()?;
    for node in nodes {
        let read = bytes as f64 / node.read_gb_s? / 1e6;
        let row = row_ms(bytes, known, node.gflops?);
        let two = read.max(ROWS * row);
        worst = RowCost { floor: worst.floor.max(read / two), per_row: worst.per_row.max(row / two) };
    }
    Some(worst)
}

fn read_link(
    link: &Link,
    coordinator: Option<&str>,
    nodes: &mut [NodeSpec],
    forbidden: &mut BTreeSet<(String, String)>,
) -> Result<(), String> {
    let (a, b) = &link.between;
    for id in [a, b] {
        if !nodes.iter().any(|node| node.id == *id) && coordinator != Some(id.as_str()) {
            return Err(format!("a link names {id}, which is no node"));
        }
    }
    if link.forbidden {
        forbidden.insert((a.clone(), b.clone()));
    }
    match link.round_trip_ms {
        None if !link.forbidden => return Err(format!("the link between {a} and {b} says nothing; give it round_trip_ms")),
        None => {}
        Some(ms) => {
            for (from, to) in [(a, b), (b, a)] {
                if let Some(node) = nodes.iter_mut().find(|node| node.id == *from) {
                    node.round_trips.insert(to.clone(), ms);
                }
            }
        }
    }
    Ok(())
}

fn not_negative(what: &str, value: f64) -> Result<f64, String> {
    if value.is_finite() && value >= 0.0 { Ok(value) } else { Err(format!("{what} is {value}; it has to be at least 0")) }
}
