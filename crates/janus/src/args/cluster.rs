//! What makes, runs and asks a cluster.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{Credentials, Door, Here, KeepJobs, Kv, Sight, Tls, Weights, positive, threads};

/// The store that a cluster shares.
#[derive(Debug, Clone, Args)]
pub(crate) struct Store {
    /// Name of the cluster
    #[arg(long, value_name = "NAME", default_value = "janus")]
    pub(crate) cluster: String,
    /// Where etcd is
    #[arg(long, value_name = "URL[,..]", value_delimiter = ',', default_value = "http://127.0.0.1:2379")]
    pub(crate) etcd: Vec<String>,
    /// PEM of the authority that signed etcd's certificate
    #[arg(long, value_name = "FILE")]
    pub(crate) etcd_ca: Option<PathBuf>,
    /// PEM of our certificate for etcd
    #[arg(long, value_name = "FILE", requires = "etcd_key", requires = "etcd_ca")]
    pub(crate) etcd_cert: Option<PathBuf>,
    /// PEM of its key
    #[arg(long, value_name = "FILE", requires = "etcd_cert")]
    pub(crate) etcd_key: Option<PathBuf>,
    /// User of etcd
    #[arg(long, value_name = "NAME", requires = "etcd_password_file")]
    pub(crate) etcd_user: Option<String>,
    /// File with that user's password
    #[arg(long, value_name = "FILE", requires = "etcd_user")]
    pub(crate) etcd_password_file: Option<PathBuf>,
    /// Seconds after which whoever is silent is taken for gone
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(2..=3600))]
    pub(crate) ttl: u64,
}

/// What every process of a cluster is told.
#[derive(Debug, Args)]
pub(crate) struct Node {
    #[command(flatten)]
    pub(crate) store: Store,
    /// Checkpoint directory, name of a model that `janus pull` fetched, or `shapes`; the same on every node, which reads only
    /// what it is asked to hold
    #[arg(long, value_name = "DIR|NAME|shapes", default_value = "shapes")]
    pub(crate) model: String,
    /// Weight format of the language model, the same on every node [default: as stored]
    #[arg(long, value_enum)]
    pub(crate) weights: Option<Weights>,
    /// Element type of the KV cache, the same on every node
    #[arg(long, value_enum, default_value = "f32")]
    pub(crate) kv: Kv,
    /// The address that others are told [default: where it listens]
    #[arg(long, value_name = "ADDR")]
    pub(crate) advertise: Option<String>,
    /// Answer probes here, over plain gRPC health: live, started, ready
    #[arg(long, value_name = "ADDR")]
    pub(crate) health: Option<String>,
    /// Listen beyond this machine without encryption
    #[arg(long)]
    pub(crate) insecure: bool,
    #[command(flatten)]
    pub(crate) tls: Tls,
    /// Its name, the same when it is started again [default: what it is, and its port]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) sight: Sight,
}

#[derive(Debug, Args)]
pub(crate) struct Coordinator {
    #[command(flatten)]
    pub(crate) node: Node,
    /// Where clients connect
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7070")]
    pub(crate) listen: String,
    /// Pipelines
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = positive)]
    pub(crate) pipelines: usize,
    /// Stages of each pipeline [default: as many as make it faster]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) stages: Option<usize>,
    /// Workers that stand by with loaded layers
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) spares: usize,
    /// Positions of KV memory that every stage keeps room for; a guided picture of 576 ids takes about 1200
    #[arg(long, value_name = "N", default_value_t = 16384, value_parser = positive)]
    pub(crate) kv_positions: usize,
    /// Seconds between two records of the token logs
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) log_every: u64,
    /// Seconds that what runs may take after SIGTERM, where no other coordinator can take it over
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(crate) grace: u64,
    /// Seconds for which the answer to a finished request can be read again
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub(crate) keep_results: u64,
    /// When no node is left that computes as the running requests began, but nodes of another weight format or KV type are: wait
    /// for nodes of the first kind, or begin again from the seeds
    #[arg(long, value_enum, default_value = "park")]
    pub(crate) other_numerics: OtherNumerics,
    #[command(flatten)]
    pub(crate) keep: KeepJobs,
    #[command(flatten)]
    pub(crate) credentials: Credentials,
}

/// What becomes of requests that no node is left for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OtherNumerics {
    /// They wait
    Park,
    /// They begin again
    Restart,
}

impl OtherNumerics {
    /// As on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            OtherNumerics::Park => "park",
            OtherNumerics::Restart => "restart",
        }
    }
}

/// What a worker can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Roles {
    Stage,
    Encoder,
    Decoder,
}

#[derive(Debug, Args)]
pub(crate) struct Worker {
    #[command(flatten)]
    pub(crate) node: Node,
    /// What it does
    #[arg(long, value_enum, value_delimiter = ',', default_value = "stage,encoder,decoder")]
    pub(crate) role: Vec<Roles>,
    /// Where others connect
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    pub(crate) listen: String,
    /// Where it stands, for placement: stages of one pipeline are kept in one zone
    #[arg(long, value_name = "NAME")]
    pub(crate) zone: Option<String>,
    /// Memory for layers and KV, like 16GiB [default: what is free]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) memory: Option<u64>,
    /// Fetch what its layers need from other nodes into this folder, and keep it there; --model is then the name or digest of
    /// the cluster's model, or a folder with a part of it (`janus pull --layers`)
    #[arg(long, value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
    /// Threads to compute with [default: the cores this process may use]
    #[arg(long, allow_hyphen_values = true, value_name = "N", value_parser = threads)]
    pub(crate) threads: Option<usize>,
    /// What to compute on; this program has `cpu`
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub(crate) device: janus_worker::Device,
    /// Seconds that a hand-over may take after SIGTERM
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(crate) grace: u64,
    /// Allows what is for tests alone
    #[arg(long, hide = true)]
    pub(crate) test: bool,
    /// Takes so much longer for every frame
    #[arg(long, hide = true, value_name = "MS", default_value_t = 0)]
    pub(crate) test_step_delay_ms: u64,
}

#[derive(Debug, Args)]
pub(crate) struct Up {
    #[command(flatten)]
    pub(crate) here: Here,
    /// Workers that stand by with loaded layers
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) spares: usize,
    /// Pipelines of `--stages` stages each
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = positive)]
    pub(crate) pipelines: usize,
    /// Coordinators; all but one stand by
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = positive)]
    pub(crate) coordinators: usize,
    /// Encoder and decoder processes, each
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = positive)]
    pub(crate) painters: usize,
    /// When no node is left that computes as the running requests began, but nodes of another weight format or KV type are: wait
    /// for nodes of the first kind, or begin again from the seeds
    #[arg(long, value_enum, default_value = "park")]
    pub(crate) other_numerics: OtherNumerics,
    /// Where the cluster's state is kept; with the same directory it goes on where it was [default: forgotten at the end]
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// Where clients connect; further coordinators take the ports after it
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7070")]
    pub(crate) listen: String,
    /// Where HTTP clients connect [default: there is no gateway]
    #[arg(long, value_name = "ADDR")]
    pub(crate) http: Option<String>,
    #[command(flatten)]
    pub(crate) door: Door,
    /// Listen beyond this machine without encryption
    #[arg(long)]
    pub(crate) insecure: bool,
    /// Encrypt everything, with certificates made now and kept in tls/ below the state: clients need tls/ca.pem
    #[arg(long)]
    pub(crate) tls: bool,
    /// Seconds after which whoever is silent is taken for gone
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(2..=3600))]
    pub(crate) ttl: u64,
    #[command(flatten)]
    pub(crate) sight: Sight,
    #[command(flatten)]
    pub(crate) keep: KeepJobs,
    #[command(flatten)]
    pub(crate) credentials: Credentials,
    /// Allows what is for tests alone
    #[arg(long, hide = true)]
    pub(crate) test: bool,
    /// Passed on to the stages
    #[arg(long, hide = true, value_name = "MS", default_value_t = 0)]
    pub(crate) test_step_delay_ms: u64,
}

/// Whom operators ask.
#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Coordinators; several addresses are tried in turn
    #[arg(long, value_name = "ADDR|URL[,..]", default_value = "127.0.0.1:7070")]
    pub(crate) endpoint: String,
    #[command(flatten)]
    pub(crate) tls: Tls,
    /// Print one JSON object on stdout
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Top {
    /// Coordinators; several addresses are tried in turn
    #[arg(long, value_name = "ADDR|URL[,..]", default_value = "127.0.0.1:7070")]
    pub(crate) endpoint: String,
    #[command(flatten)]
    pub(crate) tls: Tls,
}

#[derive(Debug, Args)]
pub(crate) struct Drain {
    /// Its name
    pub(crate) node: String,
    /// Coordinators; several addresses are tried in turn
    #[arg(long, value_name = "ADDR|URL[,..]", default_value = "127.0.0.1:7070")]
    pub(crate) endpoint: String,
    #[command(flatten)]
    pub(crate) tls: Tls,
}

#[derive(Debug, Args)]
pub(crate) struct Tether {
    /// The parent's process id: if it is another one by now, nothing is started
    pub(crate) parent: u32,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<std::ffi::OsString>,
}

fn size(text: &str) -> Result<u64, String> {
    let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("GB", 1_000_000_000), ("MB", 1_000_000), ("", 1)];
    let parsed = units.iter().find_map(|(unit, bytes)| {
        let number: f64 = text.trim().strip_suffix(unit)?.trim().parse().ok()?;
        (number > 0.0 && number.is_finite()).then_some((number * f64::from(*bytes)) as u64)
    });
    parsed.ok_or_else(|| "must be a size like 16GiB, 500MB or a number of bytes".to_owned())
}
