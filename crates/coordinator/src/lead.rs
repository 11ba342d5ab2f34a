//! A coordinator's reign: what it reads of its predecessor's, what it starts, and what ends with it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use janus_cluster::plan::{ModelSizes, PipelinePlan};
use janus_cluster::{Keys, Members, Role as MemberRole, Store};
use janus_spec::{ModelSpec, Tokenizer};
use janus_wire::v1::{LogsRequest, Role};
use janus_wire::{Identity, Security};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::conduct::Wishes;
use crate::conduct::run::{self, Handle, Setup};
use crate::jobs::{self, Jobs};
use crate::ledger::{self, Ledger, Logs};
use crate::pipeline::stage_client;
use crate::schedule::Limits;
use crate::{Coordinator, Driver, DriverHandle, Model, Parts, Places, Tenants};

/// A first stage that has its token logs gives them within this.
const LOGS: Duration = Duration::from_secs(1);
/// Pause before the store is asked again.
const RETRY: Duration = Duration::from_millis(500);

/// What every reign of this process has in common.
#[derive(Clone)]
pub struct Realm {
    /// Name of the model.
    pub name: String,
    /// Its configuration.
    pub spec: ModelSpec,
    /// Who we are.
    pub identity: Identity,
    /// How we connect.
    pub security: Security,
    /// The store.
    pub store: Arc<dyn Store>,
    /// Its keys.
    pub keys: Keys,
    /// Who is there.
    pub members: watch::Receiver<Members>,
    /// What is asked of the placement.
    pub wishes: Wishes,
    /// Sizes of the model's parts, for the planner.
    pub sizes: ModelSizes,
    /// Limits of each pipeline.
    pub limits: Limits,
    /// How long encoding and decoding may look for a node.
    pub patience: Duration,
    /// Token logs are written this often.
    pub log_every: Duration,
    /// Who may do how much.
    pub tenants: Tenants,
    /// Stops admissions.
    pub draining: CancellationToken,
    /// Where jobs are kept and how they are run; `None` if there are none.
    pub jobs: Option<(jobs::Objects, jobs::Options)>,
}

/// One reign. Cheap to clone.
#[derive(Clone)]
pub struct Reign {
    /// The public service.
    pub coordinator: Coordinator,
    /// Places and replaces stages.
    pub conductor: Handle,
    /// Work that nobody waits for, if this cluster keeps any.
    pub jobs: Option<Jobs>,
    /// One for each pipeline.
    pub drivers: Vec<DriverHandle>,
    /// Whether any pipeline is ready.
    pub ready: watch::Receiver<bool>,
    /// The fencing epoch.
    pub epoch: u64,
}

impl Realm {
    /// Begins to lead under `epoch`, until `over`. Returns when everything that was admitted is taken on.
    ///
    /// # Errors
    /// If no thread can be had.
    pub async fn lead(&self, epoch: u64, tokenizer: Tokenizer, over: CancellationToken) -> std::io::Result<Option<Reign>> {
        let Some((plans, admitted, mut logs)) = self.read(&over).await else { return Ok(None) };
        self.ask_for_logs(&plans, epoch, &mut logs).await;
        tracing::info!(epoch, requests = admitted.len(), logs = logs.len(), "leading");

        let (reports, inbox) = mpsc::unbounded_channel();
        let (mut places, mut drivers) = (Vec::new(), Vec::new());
        let canary = vec![tokenizer.special().bos, tokenizer.special().begin_of_image];
        for pipeline in 1..=self.wishes.pipelines as u64 {
            let (place, placed) = watch::channel(None);
            let driver = Driver {
                identity: self.identity.clone(),
                security: self.security.clone(),
                pipeline,
                places: Places::Led(placed, reports.clone()),
                limits: self.limits,
                canary: canary.clone(),
            };
            places.push(place);
            drivers.push(driver.start(over.clone())?);
        }
        let ledger = Ledger::start(self.store.clone(), self.keys.clone(), &self.identity.cluster, epoch, over.clone());
        let parts = Parts {
            identity: self.identity.clone(),
            security: self.security.clone(),
            drivers: drivers.clone(),
            encoders: self.addresses(MemberRole::Encoder, &over),
            decoders: self.addresses(MemberRole::Decoder, &over),
            patience: self.patience,
            ledger: Some(ledger),
            tenants: self.tenants.clone(),
            draining: self.draining.clone(),
            over: over.clone(),
        };
        let model = Model { name: self.name.clone(), spec: self.spec.clone(), tokenizer };
        let coordinator = Coordinator::new(model, parts);

        let (evacuating, runtime) = (coordinator.clone(), tokio::runtime::Handle::current());
        let setup = Setup {
            identity: self.identity.clone(),
            security: self.security.clone(),
            store: self.store.clone(),
            keys: self.keys.clone(),
            fence: epoch,
            members: self.members.clone(),
            wishes: self.wishes.clone(),
            sizes: self.sizes.clone(),
            places,
            reports: inbox,
            parked: Arc::new(move |pipeline| {
                let coordinator = evacuating.clone();
                runtime.spawn(async move { coordinator.evacuate(pipeline).await });
            }),
        };
        let conductor = run::start(setup, plans, over.clone());
        coordinator.restore(admitted, &logs).await;
        let jobs = self.jobs(&coordinator, epoch, logs, &over).await;
        tokio::spawn(self.clone().keep_logs(epoch, drivers.clone(), over.clone()));
        if let Err(error) = self.tenants.trim_audit().await {
            tracing::warn!(%error, "the log of what operators did is not shortened");
        }
        let (tenants, measured, kept) = (self.tenants.clone(), drivers.clone(), jobs.clone());
        let (fence, every) = (Some((self.identity.cluster.clone(), epoch)), self.log_every);
        tokio::spawn(async move { over.run_until_cancelled(tenants.measure(measured, kept, fence, every)).await });
        let ready = any_ready(&drivers);
        Ok(Some(Reign { coordinator, conductor, jobs, drivers, ready, epoch }))
    }

    /// Goes on with the jobs that are there.
    async fn jobs(&self, coordinator: &Coordinator, epoch: u64, logs: Logs, over: &CancellationToken) -> Option<Jobs> {
        let (objects, options) = self.jobs.clone()?;
        let setup = jobs::Setup {
            store: self.store.clone(),
            keys: self.keys.clone(),
            cluster: self.identity.cluster.clone(),
            epoch,
            objects,
            options,
            engine: coordinator.units(logs),
            model: self.identity.model,
        };
        Jobs::start(setup, over.clone()).await
    }

    /// What a predecessor left in the store; waits for the store, and for the first word about members.
    async fn read(
        &self,
        over: &CancellationToken,
    ) -> Option<(Vec<PipelinePlan>, Vec<janus_wire::v1::AdmittedRequest>, Logs)> {
        loop {
            let read = async {
                let plans = run::read_plans(self.store.as_ref(), &self.keys).await?;
                let (admitted, logs) = Ledger::read(self.store.as_ref(), &self.keys).await?;
                self.tenants.read_usage().await?;
                Ok::<_, janus_cluster::Error>((plans, admitted, logs))
            };
            tokio::select! {
                () = over.cancelled() => return None,
                found = read => match found {
                    Ok(found) => {
                        let mut members = self.members.clone();
                        let known = members.wait_for(|members| members.known);
                        let _ = tokio::time::timeout(Duration::from_secs(2), known).await;
                        return Some(found);
                    }
                    Err(error) => tracing::warn!(%error, "cannot read what the last leader left"),
                },
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Running first stages have newer logs than the store.
    async fn ask_for_logs(&self, plans: &[PipelinePlan], epoch: u64, logs: &mut Logs) {
        for stage in plans.iter().filter_map(|plan| plan.stages.first()) {
            let address = self.members.borrow().by_id.get(&stage.node).map(|m| m.address.clone());
            let Some(address) = address else { continue };
            let hello = self.identity.hello(Role::Coordinator, 0, epoch << 32, 0..0);
            let ask = async {
                let mut client = stage_client(&address, &self.security).await.ok()?;
                client.logs(LogsRequest { hello: Some(hello) }).await.ok()
            };
            match tokio::time::timeout(LOGS, ask).await {
                Ok(Some(answer)) => answer.into_inner().logs.into_iter().for_each(|log| logs.add(log.key, log.ids)),
                _ => tracing::info!(node = stage.node, "no token logs from the first stage; older ones will do"),
            }
        }
    }

    /// Addresses of the members with a role, as they come and go.
    fn addresses(&self, role: MemberRole, over: &CancellationToken) -> watch::Receiver<Vec<String>> {
        let (sender, receiver) = watch::channel(Vec::new());
        let (mut members, wishes, over) = (self.members.clone(), self.wishes.clone(), over.clone());
        tokio::spawn(async move {
            loop {
                let now: Vec<String> = {
                    let members = members.borrow_and_update();
                    let fits = |m: &&janus_cluster::Member| {
                        m.roles.contains(&role) && m.numerics == wishes.numerics && m.model == wishes.model && !m.draining
                    };
                    members.by_id.values().filter(fits).map(|m| m.address.clone()).collect()
                };
                sender.send_if_modified(|old| std::mem::replace(old, now.clone()) != now);
                tokio::select! {
                    changed = members.changed() => if changed.is_err() { return },
                    () = over.cancelled() => return,
                }
            }
        });
        receiver
    }

    /// Writes the token logs down now and then, and has the store forget what they replace.
    async fn keep_logs(self, epoch: u64, drivers: Vec<DriverHandle>, over: CancellationToken) {
        let mut written: Vec<BTreeMap<String, Vec<u32>>> = vec![BTreeMap::new(); drivers.len()];
        loop {
            tokio::select! {
                () = over.cancelled() => return,
                () = tokio::time::sleep(self.log_every) => {}
            }
            for (i, driver) in drivers.iter().enumerate() {
                let logs = driver.logs().await;
                if logs == written[i] {
                    continue;
                }
                let cluster = &self.identity.cluster;
                let write = ledger::write_logs(self.store.as_ref(), &self.keys, cluster, epoch, i as u64 + 1, logs.clone());
                match write.await {
                    Ok(()) => written[i] = logs,
                    Err(error) => tracing::info!(%error, "token logs are not written down"),
                }
            }
            if let Ok(listing) = self.store.list(&self.keys.plan()).await {
                let _ = self.store.compact(listing.revision).await;
            }
        }
    }
}

/// True while at least one pipeline is ready.
fn any_ready(drivers: &[DriverHandle]) -> watch::Receiver<bool> {
    let (any, ready) = watch::channel(false);
    let any = Arc::new(any);
    for driver in drivers {
        let (any, drivers, mut changes) = (any.clone(), drivers.to_vec(), driver.ready());
        tokio::spawn(async move {
            loop {
                changes.borrow_and_update();
                any.send_replace(drivers.iter().any(|d| *d.ready().borrow()));
                if changes.changed().await.is_err() {
                    return;
                }
            }
        });
    }
    ready
}
