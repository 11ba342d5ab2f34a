//! `janus gateway`: OpenAI-style HTTP in front of a cluster; and the same door in `janus serve`.

use std::net::SocketAddr;
use std::time::Duration;

use janus_gateway::{Gateway, Options};
use janus_wire::{Error, Listener, Security};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::args::{Door, Gateway as Args};
use crate::failure::{Failure, Outcome};
use crate::serve::{Signals, check_door, check_listen};
use crate::telemetry::Telemetry;
use crate::{output, session};

/// Where the door of `janus serve` is if nobody says otherwise.
const USUAL: &str = "127.0.0.1:8080";
/// How long their last bytes may take, once what answers them is gone.
const FLUSH: Duration = Duration::from_secs(5);

pub(crate) fn run(args: Args, telemetry: &Telemetry) -> Outcome {
    let security = check_door(&args.listen, args.insecure, &args.tls)?;
    let gateway = counted(open(args.endpoint, args.door, security.clone())?, telemetry);
    session::runtime()?.block_on(async {
        let mut signals = Signals::new()?;
        let listener = Listener::bind(&args.listen).await.map_err(Failure::mistake)?;
        let running = Running::start(gateway, listener, security);
        output::print_line(&format!("http {}", running.address));
        telemetry.announce();
        signals.any().await;
        tokio::select! {
            () = running.stop(Duration::from_secs(args.grace)) => {}
            () = signals.any() => {}
        }
        Ok(())
    })
}

/// A gateway with what the command line says.
pub(crate) fn open(endpoints: String, door: Door, security: Security) -> Outcome<Gateway> {
    let Door { image_hosts, public_url, allow_hosts } = door;
    let options = Options { endpoints, security, image_hosts, public_url, allow_hosts, private_images: false };
    Gateway::new(options).map_err(|error| match error {
        janus_gateway::Error::Wire(error) => Failure::mistake(format!("--endpoint: {error}")),
        error @ janus_gateway::Error::ImageHost { .. } => Failure::mistake(format!("--image-host: {error}")),
        error @ janus_gateway::Error::AllowHost { .. } => Failure::mistake(format!("--allow-host: {error}")),
        error @ janus_gateway::Error::PublicUrl { .. } => Failure::mistake(format!("--public-url: {error}")),
    })
}

/// The same gateway, with what is counted in this process.
pub(crate) fn counted(gateway: Gateway, telemetry: &Telemetry) -> Gateway {
    match telemetry.scrape() {
        Some(scrape) => gateway.metrics(scrape),
        None => gateway,
    }
}

/// The port that the command line names.
pub(crate) async fn listen(address: &str) -> Outcome<Listener> {
    Listener::bind(address).await.map_err(|error| Failure::mistake(format!("--http: {error}")))
}

/// The port that the command line names, or else the usual one; why there is none if that is taken.
pub(crate) async fn listen_or_not(wanted: Option<&str>) -> Outcome<Result<Listener, Error>> {
    match wanted {
        Some(address) => listen(address).await.map(Ok),
        None => Ok(Listener::bind(USUAL).await),
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
