//! `janus config check`: reads a command line as the process would, with its environment and its files, says what is wrong
//! with it, and starts nothing. Whoever installs a cluster finds a mistake before a pod does.

use std::net::ToSocketAddrs;
use std::path::Path;

use clap::Parser;
use janus_model::Checkpoint;

use crate::args::{Check, Cli, Config, Node, Verb};
use crate::failure::{Failure, Outcome};
use crate::serve::{self, check_credentials, check_door};
use crate::{checkpoint, coordinator, gateway, output, pull, telemetry, worker};

pub(crate) fn run(args: Config) -> Outcome {
    let Config::Check(Check { command }) = args;
    let line = std::iter::once("janus".into()).chain(command);
    let cli = Cli::try_parse_from(line).map_err(|e| Failure::mistake(words(&e)))?;
    log_filter()?;
    if let Some((sight, ..)) = cli.verb.sight() {
        telemetry::check(sight)?;
    }
    let what = match cli.verb {
        Verb::Coordinator(args) => {
            coordinator::security(&args)?;
            args.keep.check()?;
            apart(&[
                ("--listen", Some(&args.listen)),
                ("--health", args.node.health.as_ref()),
                ("--metrics", args.node.sight.metrics.as_ref()),
            ])?;
            node(&args.node)?;
            let operator = args.credentials.load()?;
            check_credentials(&args.listen, args.node.insecure, operator.as_deref())?;
            "coordinator"
        }
        Verb::Worker(args) => {
            worker::security(&args)?;
            apart(&[
                ("--listen", Some(&args.listen)),
                ("--health", args.node.health.as_ref()),
                ("--metrics", args.node.sight.metrics.as_ref()),
            ])?;
            node(&args.node)?;
            "worker"
        }
        Verb::Serve(args) => {
            serve::check(&args)?;
            model(&args.here.model)?;
            "serve"
        }
        Verb::Gateway(args) => {
            let security = check_door(&args.listen, args.insecure, &args.tls)?;
            addresses("--endpoint", &args.endpoint)?;
            apart(&[("--listen", Some(&args.listen)), ("--metrics", args.sight.metrics.as_ref())])?;
            gateway::open(args.endpoint, args.door, security)?;
            "gateway"
        }
        Verb::Pull(args) => {
            pull::check(&args)?;
            "pull"
        }
        // Its hosts and names are checked while parsing, its folder when it writes.
        Verb::Certs(_) => "certs",
        Verb::Inspect(args) => {
            model(&args.model)?;
            "inspect"
        }
        Verb::Generate(args) => {
            match &args.compute.endpoint {
                Some(endpoints) => {
                    args.compute.tls.security()?;
                    addresses("--endpoint", endpoints)?;
                }
                None => model(&args.compute.here.model)?,
            }
            "generate"
        }
        _ => {
            return Err(Failure::mistake(
                "config check knows coordinator, worker, gateway, serve, inspect, generate, pull and certs",
            ));
        }
    };
    output::print_line(&format!("{what}: the command line, the environment and the files are sound"));
    Ok(())
}

/// What coordinators and workers share.
fn node(node: &Node) -> Outcome {
    janus_cluster::Keys::new(&node.store.cluster).map_err(Failure::mistake)?;
    let janus_cluster::StoreConfig::Etcd { endpoints, tls, .. } = node.store.config()? else { return Ok(()) };
    for url in &endpoints {
        addresses("--etcd", url)?;
        let encrypted = url.starts_with("https://");
        if encrypted != tls.is_some() {
            return Err(Failure::mistake(match encrypted {
                true => format!("--etcd {url}: it is https, so say with --etcd-ca who signed its certificate"),
                false => format!("--etcd {url}: it is not https, and --etcd-ca would not be used"),
            }));
        }
    }
    if let Some(tls) = &tls {
        let (certificate, key) = tls.identity.as_ref().map_or((None, None), |(c, k)| (Some(c), Some(k)));
        [Some(&tls.ca), certificate, key].into_iter().flatten().try_for_each(|file| pem(file))?;
    }
    if let Some(advertise) = &node.advertise {
        addresses("--advertise", advertise)?;
    }
    if let Some(health) = &node.health {
        health.to_socket_addrs().map_err(|e| Failure::mistake(format!("--health {health}: {e}; expected host:port")))?;
    }
    if node.name.as_ref().is_some_and(|name| name.is_empty() || name.contains(['/', '$', ' '])) {
        return Err(Failure::mistake("--name: must not be empty, nor contain `/`, `$` or a space"));
    }
    model(&node.model)
}

/// Two of a process's doors on one port: the second could not be opened.
fn apart(doors: &[(&str, Option<&String>)]) -> Outcome {
    let port =
        |address: &str| address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok()).filter(|port| *port > 0);
    let mut taken = std::collections::BTreeMap::new();
    for (flag, address) in doors {
        let Some(port) = address.and_then(|address| port(address)) else { continue };
        if let Some(other) = taken.insert(port, flag) {
            return Err(Failure::mistake(format!("{flag}: port {port} is that of {other}")));
        }
    }
    Ok(())
}

fn pem(file: &Path) -> Outcome {
    let text = std::fs::read_to_string(file).map_err(|e| Failure::mistake(format!("{}: {e}", file.display())))?;
    match text.contains("-----BEGIN ") {
        true => Ok(()),
        false => Err(Failure::mistake(format!("{}: is no PEM file", file.display()))),
    }
}

fn model(model: &str) -> Outcome {
    let checkpoint = Checkpoint::open(checkpoint::files(model)?)?;
    janus_spec::Tokenizer::load(&checkpoint.files, &checkpoint.spec)?;
    Ok(())
}

/// Whether these read as addresses; the names in them need not be known here.
fn addresses(flag: &str, list: &str) -> Outcome {
    for address in list.split(',') {
        let rest = address.split_once("://").map_or(address, |(_, rest)| rest).trim_end_matches('/');
        let sound = rest.rsplit_once(':').is_some_and(|(host, port)| {
            let name = |b: u8| b.is_ascii_alphanumeric() || b".-_[]:".contains(&b);
            !host.is_empty() && host.bytes().all(name) && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
        if !sound {
            return Err(Failure::mistake(format!("{flag} {address}: expected host:port")));
        }
    }
    Ok(())
}

/// A process with a filter that cannot be read runs with its default, and nobody sees what they asked for.
fn log_filter() -> Outcome {
    let Ok(filter) = std::env::var("JANUS_LOG") else { return Ok(()) };
    let parsed = tracing_subscriber::EnvFilter::try_new(&filter);
    parsed.map(drop).map_err(|e| Failure::mistake(format!("JANUS_LOG={filter}: {e}")))
}

/// clap's message without its usage lines.
fn words(error: &clap::Error) -> String {
    let text = error.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let kept = text.lines().take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"));
    kept.map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::addresses;

    #[test]
    fn addresses_have_a_host_and_a_port() {
        for good in ["a:1", "10.0.0.1:7070", "[::1]:7070", "http://etcd-0.etcd.paint.svc:2379", "a:1,https://b:2"] {
            assert!(addresses("--x", good).is_ok(), "{good}");
        }
        for bad in ["", "a", "a:", ":1", "a:0", "a:70000", "$(POD_IP):7070", "a:1,", "a b:1"] {
            let said = addresses("--x", bad).unwrap_err().to_string();
            assert!(said.starts_with("--x ") && said.contains("host:port"), "{bad}: {said}");
        }
    }
}
