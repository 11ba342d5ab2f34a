//! `janus serve`: a cluster in one process and an HTTP door to it, for clients on this machine or, if you say so, elsewhere.

use std::net::ToSocketAddrs;
use std::time::Duration;

use janus_model::{Checkpoint, KvDtype, WeightFormat};
use janus_wire::Security;

use crate::args::{Serve, Tls};
use crate::coordinator::driver_gone;
use crate::failure::{Failure, Outcome};
use crate::jobs::kept::Here;
use crate::local::{Local, Needs, Options};
use crate::telemetry::Telemetry;
use crate::{checkpoint, gateway, output, session};

pub(crate) fn run(args: Serve, telemetry: &Telemetry) -> Outcome {
    let (security, operator) = check(&args)?;
    let (keyed, lasting, grace) = (operator.is_some(), args.state.is_some(), Duration::from_secs(args.grace));
    let checkpoint = Checkpoint::open(checkpoint::files(&args.here.model)?)?;
    let options = Options {
        listen: args.listen,
        model: args.here.model,
        stages: args.here.stages,
        threads: args.here.threads,
        device: args.here.device,
        weights: args.here.weights.map(WeightFormat::from),
        kv: KvDtype::from(args.here.kv),
        needs: Needs { previews: true, ..Needs::ALL },
        security: security.clone(),
        counts: args.sight.counts(),
        operator,
        jobs: Some(Here { state: args.state, keep: args.keep, anywhere: None }),
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
                let gateway = gateway::open(local.address.to_string(), args.door, security.clone())?;
                let gateway = gateway::counted(gateway, telemetry);
                let door = gateway::Running::start(gateway, listener, security.clone());
                output::print_line(&format!("http {}", door.address));
                Some(door)
            }
            Err(error) => {
                eprintln!("janus: no HTTP: {error}; choose another address with --http");
                None
            }
        };
        telemetry.announce();
        tell(keyed, lasting);
        tokio::select! {
            () = signals.any() => {}
            () = local.broken() => return Err(driver_gone()),
        }
        eprintln!("janus: finishing what runs; a second signal ends it at once");
        let finish = async {
            door.iter().for_each(gateway::Running::close);
            local.stop(grace).await;
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

/// What is wrong with the flags is known before minutes of loading. How connections are protected, and the operator's key.
pub(crate) fn check(args: &Serve) -> Outcome<(Security, Option<String>)> {
    let security = check_door(&args.listen, args.insecure, &args.tls)?;
    let operator = args.credentials.load()?;
    check_credentials(&args.listen, args.insecure, operator.as_deref())?;
    if let Some(http) = &args.http {
        gateway::check(http, args.insecure, &security)?;
    }
    gateway::open(args.listen.clone(), args.door.clone(), security.clone())?;
    Ok((security, operator))
}

/// How a port for everybody is protected.
pub(crate) fn check_door(listen: &str, insecure: bool, tls: &Tls) -> Outcome<Security> {
    let security = tls.security()?;
    check_listen(listen, insecure, &security)?;
    // An authority alone is enough to ask with, and not to be asked.
    janus_wire::server(&security).map_err(Failure::mistake)?;
    Ok(security)
}

/// What is said on a network can be read there, so anything but loopback without TLS must be meant.
pub(crate) fn check_listen(listen: &str, insecure: bool, security: &Security) -> Outcome {
    let addresses =
        listen.to_socket_addrs().map_err(|e| Failure::mistake(format!("--listen {listen}: {e}; expected host:port")))?;
    let open = addresses.into_iter().find(|a| !a.ip().is_loopback());
    match open {
        Some(address) if !insecure && !security.encrypts() => Err(Failure::mistake(format!(
            "--listen {listen}: {} is reachable from other machines and there is no encryption; give certificates (--tls-ca, \
             --tls-cert, --tls-key), say --insecure if the network is trusted, or listen on 127.0.0.1",
            address.ip()
        ))),
        _ => Ok(()),
    }
}

/// Who has no key can be anybody, so a port that others reach asks for one, unless that is meant.
pub(crate) fn check_credentials(listen: &str, insecure: bool, key: Option<&str>) -> Outcome {
    let addresses =
        listen.to_socket_addrs().map_err(|e| Failure::mistake(format!("--listen {listen}: {e}; expected host:port")))?;
    match addresses.into_iter().find(|a| !a.ip().is_loopback()) {
        Some(address) if !insecure && key.is_none() => Err(Failure::mistake(format!(
            "--listen {listen}: {} is reachable from other machines and nobody would need a key; give the operator's \
             (--operator-key-file, JANUS_OPERATOR_KEY), say --insecure if everybody there is trusted, or listen on 127.0.0.1",
            address.ip()
        ))),
        _ => Ok(()),
    }
}

/// Says what follows from having no key and no place, where an operator reads it.
fn tell(operator: bool, state: bool) {
    if !operator {
        tracing::warn!("no keys are asked for: whoever is on this machine may do everything");
    }
    if !state {
        tracing::warn!("jobs are forgotten when this process ends; --state DIR keeps them");
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
    use janus_wire::Security;

    #[test]
    fn only_loopback_is_open_by_default() {
        let check_listen = |listen, insecure| check_listen(listen, insecure, &Security::Plain);
        assert!(check_listen("127.0.0.1:7070", false).is_ok());
        assert!(check_listen("[::1]:7070", false).is_ok());
        assert!(check_listen("0.0.0.0:7070", true).is_ok());
        let refused = check_listen("0.0.0.0:7070", false).unwrap_err().to_string();
        assert!(refused.contains("--insecure") && refused.contains("0.0.0.0"));
        let encrypted = crate::certs::within("a").unwrap();
        assert!(super::check_listen("0.0.0.0:7070", false, &encrypted).is_ok());
        assert!(check_listen("nonsense", false).unwrap_err().to_string().contains("host:port"));
    }
}
