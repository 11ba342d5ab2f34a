//! `janus serve`: a cluster in one process and an HTTP door to it, for clients on this machine or, if you say so, elsewhere.

use std::net::ToSocketAddrs;
use std::time::Duration;

use janus_model::{Checkpoint, KvDtype, WeightFormat};
use janus_wire::Security;

use crate::args::Serve;
use crate::failure::{Failure, Outcome};
use crate::local::{Local, Needs, Options};
use crate::{checkpoint, gateway, output, session};

/// How long running requests may take after a signal.
const GRACE: Duration = Duration::from_secs(60);

pub(crate) fn run(args: Serve) -> Outcome {
    check_listen(&args.listen, args.insecure)?;
    if let Some(http) = &args.http {
        gateway::check(http, args.insecure)?;
    }
    // What is wrong with its flags is known before minutes of loading.
    gateway::open(args.listen.clone(), args.door.clone(), Security::Plain)?;
    let checkpoint = Checkpoint::open(checkpoint::files(&args.here.model)?)?;
    let options = Options {
        listen: args.listen,
        model: args.here.model,
        stages: args.here.stages,
        threads: args.here.threads,
        weights: args.here.weights.map(WeightFormat::from),
        kv: KvDtype::from(args.here.kv),
        needs: Needs::ALL,
    };
    session::runtime()?.block_on(async {
        let mut signals = Signals::new()?;
        let http = gateway::listen_or_not(args.http.as_deref()).await?;
        let local = tokio::select! {
            local = Local::start(checkpoint, options) => local?,
            () = signals.any() => return Ok(()),
        };
        output::print_line(&format!("ready {}", local.address));
        let door = match http {
            Ok(listener) => {
                let gateway = gateway::open(local.address.to_string(), args.door, Security::Plain)?;
                let door = gateway::Running::start(gateway, listener);
                output::print_line(&format!("http {}", door.address));
                Some(door)
            }
            Err(error) => {
                eprintln!("janus: no HTTP: {error}; choose another address with --http");
                None
            }
        };
        signals.any().await;
        eprintln!("janus: finishing what runs; a second signal ends it at once");
        let finish = async {
            door.iter().for_each(gateway::Running::close);
            local.stop(GRACE).await;
            if let Some(door) = door {
                door.flush().await;
            }
        };
        tokio::select! {
            () = finish => {}
            () = signals.any() => {}
        }
        Ok(())
    })
}

/// Anybody who reaches the port can use it, so anything but loopback must be meant.
pub(crate) fn check_listen(listen: &str, insecure: bool) -> Outcome {
    let addresses =
        listen.to_socket_addrs().map_err(|e| Failure::mistake(format!("--listen {listen}: {e}; expected host:port")))?;
    let open = addresses.into_iter().find(|a| !a.ip().is_loopback());
    match open {
        Some(address) if !insecure => Err(Failure::mistake(format!(
            "--listen {listen}: {} is reachable from other machines and there is no encryption; say --insecure if the network is \
             trusted, or listen on 127.0.0.1",
            address.ip()
        ))),
        _ => Ok(()),
    }
}

/// One of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    Interrupt,
    Terminate,
}

/// SIGINT and SIGTERM.
pub(crate) struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    pub(crate) fn new() -> Outcome<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let wait = |kind| signal(kind).map_err(|e| Failure::Broken(format!("signals cannot be awaited: {e}")));
        Ok(Signals { interrupt: wait(SignalKind::interrupt())?, terminate: wait(SignalKind::terminate())? })
    }

    pub(crate) async fn interrupted(&mut self) {
        self.interrupt.recv().await;
    }

    /// Which of them comes first.
    pub(crate) async fn which(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::Interrupt,
            _ = self.terminate.recv() => Signal::Terminate,
        }
    }

    pub(crate) async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::check_listen;

    #[test]
    fn only_loopback_is_open_by_default() {
        assert!(check_listen("127.0.0.1:7070", false).is_ok());
        assert!(check_listen("[::1]:7070", false).is_ok());
        assert!(check_listen("0.0.0.0:7070", true).is_ok());
        let refused = check_listen("0.0.0.0:7070", false).unwrap_err().to_string();
        assert!(refused.contains("--insecure") && refused.contains("0.0.0.0"));
        assert!(check_listen("nonsense", false).unwrap_err().to_string().contains("host:port"));
    }
}
