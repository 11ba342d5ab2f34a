//! What whoever watches this process asks it: `grpc.health.v1` in plain text on a port of its own, because a kubelet that
//! probes over gRPC speaks no TLS. Nothing else is served there.
//!
//! - `live`: the event loop answers; that says nothing about etcd or peers, so that their absence restarts nobody.
//! - `started`: what takes long at the start, reading the checkpoint, is over.
//! - `ready` (and the empty name): it does its part. A coordinator leads with a pipeline through which a canary went, or
//!   stands by behind a leader; a worker is registered and was not asked to leave.

use janus_cluster::{Candidate, RegistrationState};
use janus_coordinator::Reign;
use janus_wire::{Listener, Security};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::failure::{Failure, Outcome};
use crate::local::broken;

/// Answers probes, if an address was given for that.
#[derive(Clone)]
pub(crate) struct Probes(Option<HealthReporter>);

impl Probes {
    /// Listens from now on, alive and not started.
    pub(crate) async fn serve(address: Option<&str>) -> Outcome<Probes> {
        let Some(address) = address else { return Ok(Probes(None)) };
        let listener = Listener::bind(address).await.map_err(|e| Failure::mistake(format!("--health: {e}")))?;
        let (reporter, service) = tonic_health::server::health_reporter();
        let probes = Probes(Some(reporter));
        probes.say("live", true).await;
        probes.say("started", false).await;
        probes.ready(false).await;
        let router = janus_wire::server(&Security::Plain).map_err(broken)?.add_service(service);
        tokio::spawn(router.serve_with_incoming(listener.incoming()));
        Ok(probes)
    }

    /// The checkpoint is read.
    pub(crate) async fn started(&self) {
        self.say("started", true).await;
    }

    /// Whether it does its part.
    pub(crate) async fn ready(&self, ready: bool) {
        self.say("ready", ready).await;
        self.say("", ready).await;
    }

    async fn say(&self, service: &str, fine: bool) {
        let Some(reporter) = &self.0 else { return };
        reporter.set_service_status(service, if fine { ServingStatus::Serving } else { ServingStatus::NotServing }).await;
    }

    /// A coordinator's part, for as long as it runs.
    pub(crate) async fn follow_standing(
        self,
        mut reign: watch::Receiver<Option<Reign>>,
        mut leader: watch::Receiver<Option<(Candidate, u64)>>,
        me: String,
        draining: CancellationToken,
    ) {
        loop {
            let mut ready = reign.borrow_and_update().clone().map(|reign| reign.ready);
            let behind = leader.borrow_and_update().as_ref().is_some_and(|(leader, _)| leader.id != me);
            let fit = ready.as_mut().map_or(behind, |ready| *ready.borrow_and_update());
            self.ready(fit && !draining.is_cancelled()).await;
            let changes = async {
                let changed = match &mut ready {
                    Some(ready) => ready.changed().await.is_ok(),
                    None => false,
                };
                // A reign that is over is followed by another.
                if !changed {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                changed = reign.changed() => if changed.is_err() { return },
                changed = leader.changed() => if changed.is_err() { return },
                () = changes => {}
                () = draining.cancelled(), if !draining.is_cancelled() => {}
            }
        }
    }

    /// A worker's part, for as long as it runs. A store that is away takes nothing from who was registered.
    pub(crate) async fn follow_registration(self, mut state: watch::Receiver<RegistrationState>, drain: CancellationToken) {
        loop {
            let known =
                matches!(&*state.borrow_and_update(), RegistrationState::Registered | RegistrationState::Away { .. });
            self.ready(known && !drain.is_cancelled()).await;
            tokio::select! {
                changed = state.changed() => if changed.is_err() { return },
                () = drain.cancelled(), if !drain.is_cancelled() => {}
            }
        }
    }
}
