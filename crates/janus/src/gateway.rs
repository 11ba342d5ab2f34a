//! `janus gateway`: OpenAI-style HTTP in front of a cluster; and the same door in `janus serve`.

use std::net::SocketAddr;
use std::time::Duration;

use janus_gateway::{Gateway, Options};
use janus_wire::{Error, Listener, Security};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::args::{Door, Gateway as Args};
use crate::failure::{Failure, Outcome};
use crate::serve::{Signals, check_listen};
use crate::telemetry::Telemetry;
use crate::{output, session};

/// Where the door of `janus serve` is if nobody says otherwise.
const USUAL: &str = "127.0.0.1:8080";
/// How long requests may take after a signal.
const GRACE: Duration = Duration::from_secs(60);
/// How long their last bytes may take, once what answers them is gone.
const FLUSH: Duration = Duration::from_secs(5);

pub(crate) fn run(args: Args, telemetry: &Telemetry) -> Outcome {
    let security = args.tls.security()?;
    check_listen(&args.listen, args.insecure, &security)?;
    let gateway = open(args.endpoint, args.door, security.clone(), telemetry)?;
    session::runtime()?.block_on(async {
        let mut signals = Signals::new()?;
        let listener = Listener::bind(&args.listen).await.map_err(Failure::mistake)?;
        let running = Running::start(gateway, listener, security);
        output::print_line(&format!("http {}", running.address));
        telemetry.announce();
        signals.any().await;
        tokio::select! {
            () = running.stop(GRACE) => {}
            () = signals.any() => {}
        }
        Ok(())
    })
}

/// A gateway with what the command line says.
pub(crate) fn open(endpoints: String, door: Door, security: Security, telemetry: &Telemetry) -> Outcome<Gateway> {
    let Door { image_hosts, public_url } = door;
    let options = Options { endpoints, security, image_hosts, public_url, private_images: false };
    let gateway = Gateway::new(options).map_err(|error| match error {
        janus_gateway::Error::Wire(error) => Failure::mistake(format!("--endpoint: {error}")),
        error @ janus_gateway::Error::ImageHost { .. } => Failure::mistake(format!("--image-host: {error}")),
        error @ janus_gateway::Error::PublicUrl { .. } => Failure::mistake(format!("--public-url: {error}")),
    })?;
    Ok(match telemetry.scrape() {
        Some(scrape) => gateway.metrics(scrape),
        None => gateway,
    })
}

/// The port of the door beside another server: `wanted`, or the usual one unless that is taken.
pub(crate) async fn listen(wanted: Option<&str>, insecure: bool, security: &Security) -> Outcome<Option<Listener>> {
    let address = wanted.unwrap_or(USUAL);
    check(address, insecure, security)?;
    match (Listener::bind(address).await, wanted) {
        (Ok(listener), _) => Ok(Some(listener)),
        (Err(error), Some(_)) => Err(Failure::mistake(format!("--http: {error}"))),
        (Err(error @ Error::Listen { .. }), None) => {
            eprintln!("janus: no HTTP: {error}; choose another address with --http");
            Ok(None)
        }
        (Err(error), None) => Err(Failure::mistake(error)),
    }
}

/// As for any server, but it is another flag that says so.
pub(crate) fn check(address: &str, insecure: bool, security: &Security) -> Outcome {
    let checked = check_listen(address, insecure, security);
    checked.map_err(|failure| Failure::mistake(failure.to_string().replace("--listen", "--http")))
}

/// A gateway that answers.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    over: CancellationToken,
    serving: JoinHandle<()>,
}

impl Running {
    pub(crate) fn start(gateway: Gateway, listener: Listener, security: Security) -> Self {
        let (address, over) = (listener.address(), CancellationToken::new());
        let serving = tokio::spawn(gateway.serve(listener, security, over.clone()));
        Running { address, over, serving }
    }

    /// Takes nothing new from now on.
    pub(crate) fn close(&self) {
        self.over.cancel();
    }

    /// Takes nothing new and finishes what it has, within `grace`.
    pub(crate) async fn stop(mut self, grace: Duration) {
        self.close();
        let _ = tokio::time::timeout(grace, &mut self.serving).await;
        self.serving.abort();
    }

    /// The end of [`stop`](Self::stop), when there is nobody left to wait for.
    pub(crate) async fn flush(self) {
        self.stop(FLUSH).await;
    }
}
