//! `janus eval`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::Compute;
use super::values::{count, guidance, not_negative, parallel, positive};

#[derive(Debug, Args)]
pub(crate) struct Eval {
    #[command(subcommand)]
    pub(crate) suite: Suite,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Suite {
    /// Coloured shapes: pictures are scored by looking at their pixels, answers by exact match
    Shapes(EvalShapes),
    /// Paint GenEval's prompts into the folders that its scorer reads
    Geneval(EvalPaint),
    /// Paint COCO's captions, MJHQ's prompts or a prompt a line into folders of pictures, for FID
    Pictures(EvalPaint),
    /// Answer POPE's questions (JSONL)
    Pope(EvalAsk),
    /// Answer MME's questions (a folder of tables)
    Mme(EvalAsk),
    /// Answer VQAv2's questions (JSON)
    Vqav2(EvalAsk),
}

/// Benchmarks of questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asking {
    Pope,
    Mme,
    Vqav2,
}

#[derive(Debug, Args)]
pub(crate) struct EvalPaint {
    /// The benchmark's file
    pub(crate) prompts: PathBuf,
    #[command(flatten)]
    pub(crate) compute: Compute,
    /// Where the pictures go; those that are there already are not painted again
    #[arg(long, value_name = "DIR")]
    pub(crate) to: PathBuf,
    /// Pictures of each prompt; picture i uses seed S + i [default: 4 for geneval, else 1]
    #[arg(short = 'n', value_name = "COUNT", value_parser = count)]
    pub(crate) count: Option<usize>,
    /// Only the first N prompts
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) limit: Option<usize>,
    /// Seed of the first picture of each prompt
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Sampling temperature [default: the checkpoint's]
    #[arg(long, value_name = "T", value_parser = not_negative)]
    pub(crate) temperature: Option<f32>,
    /// Weight of classifier-free guidance [default: the checkpoint's]
    #[arg(long, value_name = "W", value_parser = guidance)]
    pub(crate) cfg_weight: Option<f32>,
    /// Requests at once [default: 4 in this process, a job at an endpoint that keeps jobs]
    #[arg(long, value_name = "N", value_parser = parallel)]
    pub(crate) parallel: Option<usize>,
    /// Print one JSON object on stdout
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct EvalAsk {
    /// The benchmark's file, or folder of files
    pub(crate) questions: PathBuf,
    #[command(flatten)]
    pub(crate) compute: Compute,
    /// The folder of the benchmark's pictures
    #[arg(long, value_name = "DIR")]
    pub(crate) images: PathBuf,
    /// Where the answers go; an interrupted run goes on
    #[arg(long, value_name = "PATH")]
    pub(crate) to: PathBuf,
    /// Only the first N questions
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) limit: Option<usize>,
    /// Longest answer in tokens
    #[arg(long, value_name = "N", default_value = "16", value_parser = positive)]
    pub(crate) max_tokens: usize,
    /// A line that follows every question, like "Answer the question using a single word or phrase."
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) suffix: String,
    /// Requests at once [default: 4 in this process, a job at an endpoint that keeps jobs]
    #[arg(long, value_name = "N", value_parser = parallel)]
    pub(crate) parallel: Option<usize>,
    /// Print one JSON object on stdout
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct EvalShapes {
    #[command(flatten)]
    pub(crate) compute: Compute,
    /// Prompts per category and questions per kind [default: all held-out ones]
    #[arg(long, allow_hyphen_values = true, value_name = "N", value_parser = positive)]
    pub(crate) limit: Option<usize>,
    /// Seed of the first picture
    #[arg(long, allow_hyphen_values = true, value_name = "S", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Sampling temperature [default: the checkpoint's]
    #[arg(long, allow_hyphen_values = true, value_name = "T", value_parser = not_negative)]
    pub(crate) temperature: Option<f32>,
    /// Weight of classifier-free guidance [default: the checkpoint's]
    #[arg(long, allow_hyphen_values = true, value_name = "W", value_parser = guidance)]
    pub(crate) cfg_weight: Option<f32>,
    /// Print one JSON object on stdout
    #[arg(long)]
    pub(crate) json: bool,
}
