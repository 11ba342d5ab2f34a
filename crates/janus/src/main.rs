//! `janus`: the one binary. Each verb has its module; this file is the life of the process: parse, run, report.
//!
//! Data goes to stdout, everything else to stderr. A user's mistake exits with 2 and one message; a failure that
//! is not the user's exits with 1.

mod args;
mod ask;
mod bench;
mod certs;
mod checkpoint;
mod config;
mod coordinator;
mod credential;
mod eval;
mod failure;
mod gateway;
mod generate;
mod inspect;
mod jobs;
mod local;
mod output;
mod plan;
mod probes;
mod pull;
mod serve;
mod session;
mod status;
mod store;
mod telemetry;
mod tenants;
mod terminal;
mod tls;
mod tokens;
mod top;
mod up;
mod worker;

use std::panic::PanicHookInfo;
use std::process::ExitCode;
use std::sync::Mutex;

use clap::Parser;

use crate::args::{Cli, LogFormat, Verb};
use crate::failure::{Failure, Outcome};

/// Where the latest panic happened, for [`main`] to report.
static PANIC: Mutex<String> = Mutex::new(String::new());

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Clients of clouds take the process's choice; there is none but this.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // Readers of hostile files catch panics and say what is wrong with the file; only what they don't catch is ours.
    std::panic::set_hook(Box::new(remember));
    let result = std::panic::catch_unwind(|| run(cli)).unwrap_or_else(|_| {
        let place = PANIC.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Err(Failure::Broken(format!("internal error, please report it: {place}")))
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("janus: {failure}");
            failure.exit_code()
        }
    }
}

fn run(cli: Cli) -> Outcome {
    // One TLS for everything that speaks it; none is chosen by default.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // A verb that ends says itself how; only a server has a story to tell on the way.
    let telemetry = match (cli.verb.sight(), &cli.verb) {
        (Some((sight, service, name)), _) => telemetry::start(sight, "warn", service, name)?,
        // Its parts are seen; it is nothing but their parent.
        (None, Verb::Up(args)) => telemetry::log(args.sight.log_format, "warn"),
        (None, _) => telemetry::log(LogFormat::Text, "error"),
    };
    // `top` has a terminal to put back in order.
    let itself = matches!(cli.verb, Verb::Up(_) | Verb::Tether(_) | Verb::Top(_));
    if cli.verb.sight().is_none() && !itself {
        leave_on_signals();
    }
    credential::load(cli.api_key_file.as_deref())?;
    match cli.verb {
        Verb::Generate(args) => generate::run(args),
        Verb::Ask(args) => ask::run(args),
        Verb::Tokenize(args) => tokens::tokenize(args),
        Verb::Detokenize(args) => tokens::detokenize(args),
        Verb::Inspect(args) => inspect::run(args),
        Verb::Serve(args) => serve::run(args, &telemetry),
        Verb::Gateway(args) => gateway::run(args, &telemetry),
        Verb::Coordinator(args) => coordinator::run(args, &telemetry),
        Verb::Jobs(args) => jobs::run(args),
        Verb::Tenants(args) => tenants::run(args),
        Verb::Worker(args) => worker::run(args, &telemetry),
        Verb::Config(args) => config::run(args),
        Verb::Up(args) => up::run(args),
        Verb::Status(args) => status::run(args),
        Verb::Top(args) => top::run(args),
        Verb::Drain(args) => status::drain(args),
        Verb::Certs(args) => certs::run(args),
        Verb::Tether(args) => up::tether(args),
        Verb::Plan(args) => plan::run(args),
        Verb::Bench(args) => bench::run(args),
        Verb::Eval(args) => eval::run(args),
        Verb::Pull(args) => pull::run(args),
    }
}

/// SIGINT and SIGTERM end the process at once, with 128 and the signal's number, unless a file is being written: the
/// temporary one would stay.
fn leave_on_signals() {
    use tokio::signal::unix::{SignalKind, signal};
    let wait = async {
        let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            return;
        };
        let code = tokio::select! {
            _ = interrupt.recv() => 130,
            _ = terminate.recv() => 143,
        };
        output::leave(code)
    };
    // Without the thread or the runtime, signals do what they always did.
    if let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() {
        let _ = std::thread::Builder::new().name("signals".to_owned()).spawn(move || runtime.block_on(wait));
    }
}

fn remember(panic: &PanicHookInfo<'_>) {
    let text = panic.payload_as_str().unwrap_or("no message");
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    *PANIC.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = format!("{place}: {text}");
}
