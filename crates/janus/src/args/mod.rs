//! The command line: a contract that scripts rely on.

mod cluster;
mod eval;
mod gateway;
mod jobs;
mod sight;
mod tenants;
mod tls;
mod values;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

pub(crate) use cluster::Node;
pub(crate) use cluster::{Coordinator, Drain, OtherNumerics, Roles, Status, Store, Tether, Top, Up, Worker};
pub(crate) use eval::{Asking, Eval, EvalAsk, EvalPaint, EvalShapes, Suite};
pub(crate) use gateway::{Door, Gateway};
pub(crate) use jobs::{Deed, Jobs, KeepJobs, List as JobsList, Server as JobsServer, Submit, Urgency};
pub(crate) use sight::{LogFormat, Sight};
pub(crate) use tenants::{Credentials, TenantRole, Tenants, TenantsDeed, Terms};
pub(crate) use tls::{Certs, Tls};
pub(crate) use values::{Arch, Kv, Phase, Weights};
use values::{count, fraction, guidance, instruction_set, layer_range, not_negative, positive, sha256, stage_of, threads};

/// Paint pictures and ask about pictures with Janus, on one machine or many.
#[derive(Debug, Parser)]
#[command(name = "janus", version, about, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) verb: Verb,
    /// File with the API key of a cluster that asks for one [env: JANUS_API_KEY, the key itself]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) api_key_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Paint a picture from a description
    Generate(Generate),
    /// Ask a question, about pictures or without
    Ask(Ask),
    /// Turn a picture into its VQ codebook ids
    Tokenize(Tokenize),
    /// Turn VQ codebook ids into a picture
    Detokenize(Detokenize),
    /// Say what a checkpoint is: sizes, special ids, digest
    Inspect(Inspect),
    /// Serve a model over gRPC and HTTP
    Serve(Serve),
    /// Open an HTTP door, as OpenAI's, in front of a cluster
    Gateway(Gateway),
    /// Lead a cluster, or stand by until the leader is gone
    Coordinator(Coordinator),
    /// Hand in work that nobody waits for, and see what becomes of it
    Jobs(Jobs),
    /// Say who may use a cluster, and how much of it
    Tenants(Tenants),
    /// Be a node of a cluster: run layers, encode and decode pictures
    Worker(Worker),
    /// Say what is wrong with a command line, before anything runs it
    #[command(subcommand)]
    Config(Config),
    /// Start a whole cluster on this machine, one process for each part, and keep it running
    Up(Up),
    /// Say who is in a cluster and how it is
    Status(Status),
    /// Watch a cluster live
    Top(Top),
    /// Move a node's work elsewhere, so that it can be stopped
    Drain(Drain),
    /// Make an authority and certificates, for TLS in a cluster
    Certs(Certs),
    /// Runs a program that ends with its parent
    #[command(hide = true)]
    Tether(Tether),
    /// Say who would compute what in a cluster, and how fast it would be
    Plan(Plan),
    /// Measure how fast this machine computes, phase by phase, against its own limits
    Bench(Bench),
    /// Measure how well a model paints and answers
    Eval(Eval),
    /// Fetch a model from the hub
    Pull(Pull),
}

/// What this process computes with.
#[derive(Debug, Clone, Args)]
pub(crate) struct Here {
    /// Checkpoint directory (deepseek-ai or transformers layout), name of a model that `janus pull` fetched, or `shapes`, the
    /// small model inside this program
    #[arg(long, value_name = "DIR|NAME|shapes", default_value = "shapes")]
    pub(crate) model: String,
    /// Threads to compute with [default: the cores this process may use]
    #[arg(long, allow_hyphen_values = true, value_name = "N", value_parser = threads)]
    pub(crate) threads: Option<usize>,
    /// What to compute on; this program has `cpu`
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub(crate) device: janus_worker::Device,
    /// Pipeline stages to spread the layers over
    #[arg(long, allow_hyphen_values = true, value_name = "N", default_value_t = 1, value_parser = positive)]
    pub(crate) stages: usize,
    /// Weight format of the language model; towers and tables stay as stored under q8 and q4 [default: as stored]
    #[arg(long, value_enum)]
    pub(crate) weights: Option<Weights>,
    /// Element type of the KV cache
    #[arg(long, value_enum, default_value = "f32")]
    pub(crate) kv: Kv,
}

/// Where to compute; shared by every verb that computes.
#[derive(Debug, Clone, Args)]
pub(crate) struct Compute {
    #[command(flatten)]
    pub(crate) here: Here,
    /// Ask a coordinator that runs elsewhere; several addresses are tried in turn
    #[arg(long, value_name = "ADDR|URL[,..]", conflicts_with_all = ["model", "threads", "device", "stages", "weights", "kv"])]
    pub(crate) endpoint: Option<String>,
    #[command(flatten)]
    pub(crate) tls: Tls,
}

#[derive(Debug, Args)]
pub(crate) struct Serve {
    #[command(flatten)]
    pub(crate) here: Here,
    /// Where clients connect
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7070")]
    pub(crate) listen: String,
    /// Where HTTP clients connect [default: 127.0.0.1:8080, unless that is taken]
    #[arg(long, value_name = "ADDR")]
    pub(crate) http: Option<String>,
    #[command(flatten)]
    pub(crate) door: Door,
    /// Listen beyond this machine without encryption
    #[arg(long)]
    pub(crate) insecure: bool,
    #[command(flatten)]
    pub(crate) tls: Tls,
    #[command(flatten)]
    pub(crate) sight: Sight,
    /// Seconds that requests under way may take after SIGTERM
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(crate) grace: u64,
    /// Where jobs and their state are kept; with the same directory they go on where they were [default: forgotten at the
    /// end]
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) keep: KeepJobs,
    #[command(flatten)]
    pub(crate) credentials: Credentials,
}

#[derive(Debug, Args)]
pub(crate) struct Generate {
    /// What to paint
    pub(crate) prompt: String,
    #[command(flatten)]
    pub(crate) compute: Compute,
    /// How many pictures; picture i uses seed S + i
    #[arg(short = 'n', allow_hyphen_values = true, value_name = "COUNT", default_value_t = 1, value_parser = count)]
    pub(crate) count: usize,
    /// Seed of the first picture
    #[arg(long, allow_hyphen_values = true, value_name = "S", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Sampling temperature; 0 takes the likeliest id [default: the checkpoint's, else 1]
    #[arg(long, allow_hyphen_values = true, value_name = "T", value_parser = not_negative)]
    pub(crate) temperature: Option<f32>,
    /// Weight of classifier-free guidance; 1 paints without guidance [default: the checkpoint's, else 5]
    #[arg(long, allow_hyphen_values = true, value_name = "W", value_parser = guidance)]
    pub(crate) cfg_weight: Option<f32>,
    /// Sample among the K likeliest ids [default: the checkpoint's, else all]
    #[arg(long, allow_hyphen_values = true, value_name = "K", value_parser = positive)]
    pub(crate) top_k: Option<usize>,
    /// Sample among the likeliest ids whose probabilities sum to P [default: the checkpoint's, else all]
    #[arg(long, allow_hyphen_values = true, value_name = "P", value_parser = fraction)]
    pub(crate) top_p: Option<f32>,
    /// Keep the upper rows of this picture and paint the rest
    #[arg(long, value_name = "FILE", requires = "keep_rows")]
    pub(crate) init_image: Option<PathBuf>,
    /// How many rows of codebook ids of the initial picture to keep
    #[arg(long, allow_hyphen_values = true, value_name = "R", requires = "init_image")]
    pub(crate) keep_rows: Option<usize>,
    /// Fail unless this is the SHA-256 of the first picture's ids
    #[arg(long, value_name = "SHA256", value_parser = sha256)]
    pub(crate) expect: Option<String>,
    /// Give PROMPT to the tokeniser as it is (write `<begin_of_image>` yourself)
    #[arg(long)]
    pub(crate) raw_prompt: bool,
    /// Where to write the PNG; with -n, a number is put before the extension [default: janus-<seed>.png]
    #[arg(short = 'o', long = "output", value_name = "PATH")]
    pub(crate) output: Option<PathBuf>,
    /// Print one JSON object on stdout
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Ask {
    /// The question
    pub(crate) question: String,
    /// A picture to ask about; repeat it for several
    #[arg(long = "image", value_name = "FILE")]
    pub(crate) images: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) compute: Compute,
    /// Stop after this many tokens
    #[arg(long, allow_hyphen_values = true, value_name = "N", value_parser = positive)]
    pub(crate) max_tokens: Option<usize>,
    /// Sampling temperature; 0 takes the likeliest token
    #[arg(long, allow_hyphen_values = true, value_name = "T", default_value = "0", value_parser = not_negative)]
    pub(crate) temperature: f32,
    /// Seed, for temperatures above 0
    #[arg(long, allow_hyphen_values = true, value_name = "S", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Give QUESTION to the tokeniser as it is (write `<image_placeholder>` yourself, once per picture)
    #[arg(long)]
    pub(crate) raw_prompt: bool,
    /// Print one JSON object on stdout
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Tokenize {
    /// The picture; it is cropped to a centred square and resized
    pub(crate) image: PathBuf,
    #[command(flatten)]
    pub(crate) compute: Compute,
    /// Print one JSON object on stdout
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Detokenize {
    /// A file `{"tokens":[..]}`
    pub(crate) ids: PathBuf,
    #[command(flatten)]
    pub(crate) compute: Compute,
    /// Where to write the PNG
    #[arg(short = 'o', long = "output", value_name = "PATH")]
    pub(crate) output: PathBuf,
    /// Print one JSON object on stdout
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// Checkpoint directory, name of a model that `janus pull` fetched, or `shapes`
    #[arg(long, value_name = "DIR|NAME|shapes", default_value = "shapes")]
    pub(crate) model: String,
    /// Fail unless this is the checkpoint's digest
    #[arg(long, value_name = "SHA256", value_parser = sha256)]
    pub(crate) digest: Option<String>,
    /// Print one JSON object on stdout
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Read a command line with its environment and files as the process would; start nothing
    Check(Check),
}

#[derive(Debug, Args)]
pub(crate) struct Check {
    /// The command line, without the program's name
    #[arg(last = true, required = true, value_name = "VERB ARGS")]
    pub(crate) command: Vec<std::ffi::OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct Plan {
    /// A file that describes the cluster (YAML; deploy/examples/three-nodes.yaml is one)
    #[arg(value_name = "CLUSTER.yaml", required_unless_present = "endpoint")]
    pub(crate) cluster: Option<PathBuf>,
    /// Ask a running cluster instead; several addresses are tried in turn
    #[arg(long, value_name = "ADDR|URL[,..]", conflicts_with_all = ["cluster", "model"])]
    pub(crate) endpoint: Option<String>,
    #[command(flatten)]
    pub(crate) tls: Tls,
    /// Take the sizes from this checkpoint instead of the file's model
    #[arg(long, value_name = "DIR|shapes")]
    pub(crate) model: Option<String>,
    /// Print one JSON object on stdout
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// Which model's sizes to compute with, on random weights
    #[arg(long, value_enum, default_value = "janus-pro-1b")]
    pub(crate) arch: Arch,
    /// Compute with this checkpoint instead
    #[arg(long, value_name = "DIR", conflicts_with = "arch")]
    pub(crate) model: Option<String>,
    /// Weight format of the language model [default: as stored]
    #[arg(long, value_enum)]
    pub(crate) weights: Option<Weights>,
    /// Element type of the KV cache
    #[arg(long, value_enum, default_value = "bf16")]
    pub(crate) kv: Kv,
    /// Rows of a step; a guided picture has two
    #[arg(long, value_name = "ROWS", value_delimiter = ',', default_value = "2,8,16", value_parser = positive)]
    pub(crate) rows: Vec<usize>,
    /// Phases to measure [default: all]
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) phase: Vec<Phase>,
    /// Pictures painted at once, for each measurement of whole pictures
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,4", value_parser = positive)]
    pub(crate) pictures: Vec<usize>,
    /// Ranges of layers to go through
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = positive)]
    pub(crate) stages: usize,
    /// Threads to compute with [default: the cores this process may use]
    #[arg(long, allow_hyphen_values = true, value_name = "N", value_parser = threads)]
    pub(crate) threads: Option<usize>,
    /// What to compute on; this program has `cpu`
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub(crate) device: janus_worker::Device,
    /// Write the random weights to DIR/original and DIR/transformers, measure nothing: for benches/vs_peers.py
    #[arg(long, value_name = "DIR", hide = true, conflicts_with = "model")]
    pub(crate) save: Option<PathBuf>,
    /// Instruction set to compute with; every one gives the same bits [default: the best this machine has]
    #[arg(long, value_name = "NAME", value_parser = instruction_set)]
    pub(crate) isa: Option<janus_model::Isa>,
    /// Print one JSON object on stdout
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// Its name on the hub, like deepseek-ai/Janus-Pro-1B
    #[arg(value_name = "ORG/NAME")]
    pub(crate) model: String,
    /// Branch, tag or commit
    #[arg(long, value_name = "REVISION", default_value = "main")]
    pub(crate) revision: String,
    /// Only what stage I of N needs, counted from 0
    #[arg(long, value_name = "I/N", value_parser = stage_of, requires = "to", conflicts_with = "layers")]
    pub(crate) stage: Option<(usize, usize)>,
    /// Only what a stage of these layers needs, the second one excluded
    #[arg(long, value_name = "A:B", value_parser = layer_range, requires = "to")]
    pub(crate) layers: Option<(usize, usize)>,
    /// Into this folder [default: the hub's cache, see HF_HOME and HF_HUB_CACHE]
    #[arg(long, value_name = "DIR")]
    pub(crate) to: Option<PathBuf>,
    /// Print one JSON object on stdout
    #[arg(long)]
    pub(crate) json: bool,
}

impl Verb {
    /// What a server lets be seen, its kind, and its name if it was told one; none for other verbs.
    pub(crate) fn sight(&self) -> Option<(&Sight, &'static str, Option<&str>)> {
        match self {
            Verb::Serve(args) => Some((&args.sight, "janus-serve", None)),
            Verb::Gateway(args) => Some((&args.sight, "janus-gateway", None)),
            Verb::Coordinator(Coordinator { node, .. }) => Some((&node.sight, "janus-coordinator", node.name.as_deref())),
            Verb::Worker(Worker { node, .. }) => Some((&node.sight, "janus-worker", node.name.as_deref())),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
