//! `janus`: the one binary. Each verb has its module; this file is the life of the process: parse, run, report.
//!
//! Data goes to stdout, everything else to stderr. A user's mistake exits with 2 and one message; a failure that
//! is not the user's exits with 1.

mod args;
mod ask;
mod checkpoint;
// mod eval;
mod failure;
mod generate;
mod inspect;
mod output;
mod terminal;
mod tokens;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Verb};

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Generate(args) => generate::run(args),
        Verb::Ask(args) => ask::run(args),
        Verb::Tokenize(args) => tokens::tokenize(args),
        Verb::Detokenize(args) => tokens::detokenize(args),
        Verb::Inspect(args) => inspect::run(args),
        Verb::Eval(_) => Ok(()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("janus: {failure}");
            failure.exit_code()
        }
    }
}
