//! Jobs: where a cluster keeps them, and what callers do with them.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use reqwest::Url;

use super::{Compute, Tls, positive};

/// Where a server keeps jobs, and how it runs them.
#[derive(Debug, Clone, Args)]
pub(crate) struct KeepJobs {
    /// Folder of all jobs, the same for all coordinators: file:///DIR, s3://BUCKET/.., gs://BUCKET/.. or az://CONTAINER/..;
    /// credentials come from the environment, as the cloud's own tools take them
    #[arg(long, value_name = "URL")]
    pub(crate) jobs: Option<Url>,
    /// Folders below which jobs of callers without credentials may write their results
    #[arg(long, value_name = "URL[,..]", value_delimiter = ',')]
    pub(crate) jobs_output: Vec<Url>,
    /// Pictures and answers of one job that are under way at once
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = positive)]
    pub(crate) jobs_window: usize,
    /// Days after which a job that has ended is forgotten with its results; 0 keeps it
    #[arg(long, value_name = "DAYS", default_value_t = 30)]
    pub(crate) jobs_keep: u64,
}

#[derive(Debug, Args)]
pub(crate) struct Jobs {
    #[command(subcommand)]
    pub(crate) deed: Deed,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Deed {
    /// Make a job of the items in a file
    Submit(Submit),
    /// List jobs, newest first
    List(List),
    /// Say how a job stands
    Get(One),
    /// Follow a job to its end
    Watch(One),
    /// End what is not done yet; what is done keeps its results
    Cancel(One),
    /// Forget a job that has ended, with its results
    Delete(One),
    /// Print what the items became, or download it
    Results(Results),
}

/// How urgent a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Urgency {
    Batch,
    Interactive,
}

#[derive(Debug, Args)]
pub(crate) struct Submit {
    /// One JSON object a line: {"id","prompt"[,"n","seed","cfg_weight","temperature"]} or {"id","question","images":[FILE]};
    /// files are looked for beside this one, then in the working directory
    #[arg(value_name = "ITEMS.jsonl")]
    pub(crate) items: PathBuf,
    #[command(flatten)]
    pub(crate) compute: Compute,
    /// Where results go: a URL that the server may write to, or a folder here, which means to wait for them. Without
    /// --endpoint, a run that was stopped goes on where it was
    #[arg(long, value_name = "URL|DIR", required_unless_present = "endpoint")]
    pub(crate) out: Option<String>,
    /// Whether somebody is waiting for it
    #[arg(long, value_enum, default_value = "batch")]
    pub(crate) priority: Urgency,
    /// Idempotency key: the same key with the same items is the same job
    #[arg(long, value_name = "K")]
    pub(crate) key: Option<String>,
    /// Wait for its end
    #[arg(long)]
    pub(crate) wait: bool,
    /// Print one JSON object on stdout, which is done anyway
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which server.
#[derive(Debug, Args)]
pub(crate) struct Server {
    /// Coordinators; several addresses are tried in turn
    #[arg(long, value_name = "ADDR|URL[,..]", default_value = "127.0.0.1:7070")]
    pub(crate) endpoint: String,
    #[command(flatten)]
    pub(crate) tls: Tls,
    /// Print JSON on stdout
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    pub(crate) server: Server,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = positive)]
    pub(crate) limit: usize,
}

#[derive(Debug, Args)]
pub(crate) struct One {
    /// Its id
    pub(crate) job: String,
    #[command(flatten)]
    pub(crate) server: Server,
}

#[derive(Debug, Args)]
pub(crate) struct Results {
    /// Its id
    pub(crate) job: String,
    #[command(flatten)]
    pub(crate) server: Server,
    /// Download pictures and manifest into this folder instead of printing the manifest; goes on where it was stopped
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Leave out results before this one
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "out")]
    pub(crate) first: u64,
}
