//! The rim of the conductor: asks nodes, has them load, tells drivers, writes the plan down.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use janus_cluster::plan::{ModelSizes, PipelinePlan, Problem};
use janus_cluster::{Error, Keys, Member, Members, Store, Txn, guard};
use janus_wire::v1::node_client::NodeClient;
use janus_wire::v1::{DescribeRequest, DrainNodeRequest, PrepareRequest, Role};
use janus_wire::{Identity, Security, status};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{Action, Conductor, Event, Standing, Wishes};
use crate::drive::{News, Report};
use crate::pipeline::{Placement, stage_client};

/// A node that answers does it within this; the question goes through its compute thread.
const ANSWER: Duration = Duration::from_secs(1);
/// Loading layers may take this long; a node that dies meanwhile is noticed sooner.
const LOAD: Duration = Duration::from_secs(1800);
const TICK: Duration = Duration::from_millis(100);
/// How long a drained node's layers may take to find a new place.
const DRAIN: Duration = Duration::from_secs(60);

/// What a conductor works with.
pub struct Setup {
    /// Who we are.
    pub identity: Identity,
    /// How we connect.
    pub security: Security,
    /// Where the plan is written.
    pub store: Arc<dyn Store>,
    /// Its keys.
    pub keys: Keys,
    /// Our fencing epoch.
    pub fence: u64,
    /// Who is there.
    pub members: watch::Receiver<Members>,
    /// What is asked for.
    pub wishes: Wishes,
    /// The model.
    pub sizes: ModelSizes,
    /// To the drivers.
    pub places: Vec<watch::Sender<Option<Arc<Placement>>>>,
    /// From the drivers; their pipelines are numbered from 1.
    pub reports: mpsc::UnboundedReceiver<Report>,
    /// Epochs that were given under this fence before, if the cluster went over to other numerics.
    pub before: Option<u64>,
    /// Called when a pipeline has no nodes.
    pub parked: Arc<dyn Fn(usize) + Send + Sync>,
}

/// What can be seen of a conductor.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Members and their states.
    pub members: Vec<(Member, &'static str)>,
    /// Pipelines, in order.
    pub pipelines: Vec<Standing>,
    /// The store cannot be heard.
    pub stale: bool,
}

/// A running conductor. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    view: watch::Receiver<View>,
    drains: mpsc::Sender<(String, oneshot::Sender<Result<(), Status>>)>,
    questions: mpsc::Sender<oneshot::Sender<Problem>>,
    restart: watch::Receiver<Option<Restart>>,
}

/// Everything is to begin again under other numerics, and that is written down.
#[derive(Debug, Clone, PartialEq)]
pub struct Restart {
    /// Their id.
    pub numerics: String,
    /// Epochs that were given under this fence.
    pub placements: u64,
}

impl Handle {
    /// Set when nothing is left that could go on as it began.
    pub fn restart(&self) -> watch::Receiver<Option<Restart>> {
        self.restart.clone()
    }

    /// How everything stands.
    pub fn view(&self) -> watch::Receiver<View> {
        self.view.clone()
    }

    /// What the planner is asked now; none at the end of a reign.
    pub async fn question(&self) -> Option<Problem> {
        let (reply, answer) = oneshot::channel();
        self.questions.send(reply).await.ok()?;
        answer.await.ok()
    }

    /// Moves a node's work elsewhere.
    ///
    /// # Errors
    /// NOT_FOUND, UNAVAILABLE if it does not answer, FAILED_PRECONDITION if its layers have nowhere to go.
    pub async fn drain(&self, node: &str) -> Result<(), Status> {
        let (reply, answer) = oneshot::channel();
        let gone = || Status::unavailable("this coordinator does not lead any more");
        self.drains.send((node.to_owned(), reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())??;
        let mut view = self.view();
        let done = view.wait_for(|view| !view.pipelines.iter().any(|p| p.stages.iter().any(|(name, _)| name == node)));
        match tokio::time::timeout(DRAIN, done).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(gone()),
            Err(_) => {
                let view = self.view.borrow();
                let reason =
                    view.pipelines.iter().map(|p| p.reason.as_str()).find(|r| !r.is_empty()).unwrap_or("no reason given");
                Err(Status::failed_precondition(format!(
                    "{node} stays in its pipeline until its layers have another place: {reason}"
                )))
            }
        }
    }
}

/// The numerics id that the cluster went over to, if it did.
///
/// # Errors
/// The store's.
pub async fn read_numerics(store: &dyn Store, keys: &Keys) -> Result<Option<String>, Error> {
    let entry = store.get(&keys.numerics()).await?;
    Ok(entry.and_then(|entry| String::from_utf8(entry.value.to_vec()).ok()))
}

/// The plans a predecessor wrote down.
///
/// # Errors
/// The store's.
pub async fn read_plans(store: &dyn Store, keys: &Keys) -> Result<Vec<PipelinePlan>, janus_cluster::Error> {
    let Some(entry) = store.get(&keys.plan()).await? else { return Ok(Vec::new()) };
    Ok(serde_json::from_slice(&entry.value).unwrap_or_else(|error| {
        tracing::warn!(%error, "the plan in the store cannot be read; planning anew");
        Vec::new()
    }))
}

/// Starts a conductor that goes on with `plans`, until `shutdown`.
pub fn start(setup: Setup, plans: Vec<PipelinePlan>, shutdown: CancellationToken) -> Handle {
    let (view, watching) = watch::channel(View::default());
    let (drains, draining) = mpsc::channel(16);
    let (questions, asked) = mpsc::channel(16);
    let mut conductor = Conductor::new(setup.wishes.clone(), setup.sizes.clone(), setup.fence);
    if let Some(placements) = setup.before {
        conductor = conductor.after(placements);
    }
    conductor.inherit(plans);
    let (restarting, restart) = watch::channel(None);
    let (news, inbox) = mpsc::unbounded_channel();
    let run = Run {
        setup,
        conductor,
        addresses: BTreeMap::new(),
        started: Instant::now(),
        news,
        view,
        planned: watch::channel(Vec::new()).0,
        restarting: Arc::new(restarting),
    };
    tokio::spawn(run.forever(inbox, draining, asked, shutdown));
    Handle { view: watching, drains, questions, restart }
}

struct Run {
    setup: Setup,
    conductor: Conductor,
    /// Also of those that are gone from the store.
    addresses: BTreeMap<String, String>,
    started: Instant,
    news: mpsc::UnboundedSender<Event>,
    view: watch::Sender<View>,
    planned: watch::Sender<Vec<PipelinePlan>>,
    restarting: Arc<watch::Sender<Option<Restart>>>,
}

impl Run {
    async fn forever(
        mut self,
        mut inbox: mpsc::UnboundedReceiver<Event>,
        mut drains: mpsc::Receiver<(String, oneshot::Sender<Result<(), Status>>)>,
        mut questions: mpsc::Receiver<oneshot::Sender<Problem>>,
        shutdown: CancellationToken,
    ) {
        let writer = tokio::spawn(write_plans(
            self.setup.store.clone(),
            self.setup.keys.clone(),
            self.setup.identity.cluster.clone(),
            self.setup.fence,
            self.planned.subscribe(),
        ));
        let mut members = self.setup.members.clone();
        members.mark_changed();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let event = tokio::select! {
                () = shutdown.cancelled() => break,
                changed = members.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    let now = members.borrow_and_update().clone();
                    if !now.known {
                        continue;
                    }
                    self.addresses.extend(now.by_id.values().map(|m| (m.id.clone(), m.address.clone())));
                    Event::Members(now.by_id)
                }
                Some(report) = self.setup.reports.recv() => {
                    let (pipeline, epoch) = (report.pipeline as usize - 1, report.epoch);
                    match report.news {
                        News::Ready => Event::Ready { pipeline, epoch },
                        News::Lost { reason, stage } => Event::Lost { pipeline, epoch, reason, stage },
                    }
                }
                Some(event) = inbox.recv() => event,
                Some((node, reply)) = drains.recv() => {
                    self.drain(node, reply);
                    continue;
                }
                Some(reply) = questions.recv() => {
                    let _ = reply.send(self.conductor.question());
                    continue;
                }
                _ = ticks.tick() => Event::Tick,
            };
            if !matches!(event, Event::Tick | Event::Members(_)) {
                tracing::debug!(?event, "conductor");
            }
            let actions = self.conductor.step(self.started.elapsed(), event);
            for action in actions {
                self.act(action);
            }
            self.show();
        }
        writer.abort();
    }

    fn show(&self) {
        let members = self.setup.members.borrow();
        let state = |m: &Member| (m.clone(), self.conductor.state_of(m));
        let view = View {
            members: members.by_id.values().map(state).collect(),
            pipelines: self.conductor.standings(),
            stale: members.stale,
        };
        self.view.send_replace(view);
    }

    fn address(&self, node: &str) -> Option<String> {
        self.addresses.get(node).cloned()
    }

    fn act(&self, action: Action) {
        match action {
            Action::Ask(node) => {
                let (address, security, news) = (self.address(&node), self.setup.security.clone(), self.news.clone());
                tokio::spawn(async move {
                    let ask = async {
                        let mut client = stage_client(&address.unwrap_or_default(), &security).await.ok()?;
                        client.describe(DescribeRequest {}).await.ok()
                    };
                    let answers = matches!(tokio::time::timeout(ANSWER, ask).await, Ok(Some(_)));
                    let _ = news.send(Event::Asked { node, answers });
                });
            }
            Action::Load(node, layers, epoch) => self.load(node, layers, epoch),
            Action::Place(pipeline, placement) => {
                let stages: Vec<_> = placement.stages.iter().map(|s| format!("{} {:?}", s.node, s.layers)).collect();
                tracing::info!(pipeline = pipeline + 1, epoch = placement.epoch, ?stages, "placed");
                if let Some(place) = self.setup.places.get(pipeline) {
                    place.send_replace(Some(Arc::new(placement)));
                }
                self.planned.send_replace(self.conductor.plans());
            }
            Action::Parked(pipeline) => (self.setup.parked)(pipeline),
            Action::Restart(numerics) => self.restart(numerics),
        }
    }

    /// Whoever leads next has to know, so it is written down first.
    fn restart(&self, numerics: String) {
        tracing::warn!(from = self.setup.wishes.numerics, to = numerics, "nothing can go on as it began; beginning again");
        let (store, key, cluster, fence) =
            (self.setup.store.clone(), self.setup.keys.numerics(), self.setup.identity.cluster.clone(), self.setup.fence);
        let (restarting, placements) = (self.restarting.clone(), self.conductor.placements());
        let news = self.news.clone();
        tokio::spawn(async move {
            let Ok(txn) = guard(Txn::new().put(key, numerics.clone().into_bytes()), &cluster, fence) else { return };
            match store.commit(txn).await.and_then(|committed| committed.done("the coordinator's epoch")) {
                Ok(_) => drop(restarting.send_replace(Some(Restart { numerics, placements }))),
                // Somebody else leads.
                Err(Error::Conflict { .. }) => {}
                Err(error) => {
                    tracing::info!(%error, "the other numerics are not written down yet");
                    tokio::time::sleep(ANSWER).await;
                    let _ = news.send(Event::NotRestarted);
                }
            }
        });
    }

    fn load(&self, node: String, layers: Range<usize>, epoch: u64) {
        let hello = self.setup.identity.hello(Role::Coordinator, 0, epoch, layers.clone());
        let (address, security, news) = (self.address(&node), self.setup.security.clone(), self.news.clone());
        tokio::spawn(async move {
            let request =
                PrepareRequest { hello: Some(hello), first_layer: layers.start as u32, end_layer: layers.end as u32 };
            let load = async {
                let client = stage_client(&address.unwrap_or_default(), &security).await;
                let answer = client.map_err(|e| e.to_string())?.prepare(request).await;
                answer.map_err(|status| status.message().to_owned())
            };
            let failure = match tokio::time::timeout(LOAD, load).await {
                Ok(done) => done.err(),
                Err(_) => Some("it took too long".to_owned()),
            };
            if let Some(failure) = &failure {
                tracing::warn!(node, ?layers, failure, "layers cannot be loaded");
            }
            let _ = news.send(Event::Loaded { node, layers, failure });
        });
    }

    fn drain(&self, node: String, reply: oneshot::Sender<Result<(), Status>>) {
        let known = self.setup.members.borrow().by_id.contains_key(&node);
        let Some(address) = self.address(&node).filter(|_| known) else {
            let _ = reply.send(Err(Status::not_found(format!("no node `{}` is in this cluster", status::shown(&node)))));
            return;
        };
        let (security, identity, fence) = (self.setup.security.clone(), self.setup.identity.clone(), self.setup.fence);
        tokio::spawn(async move {
            let ask = async {
                let channel = janus_wire::connect(&address, &security.to(janus_wire::tls::Roles::WORKERS))
                    .await
                    .map_err(|e| e.to_string())?;
                let hello = identity.hello(Role::Coordinator, 0, fence << 32, 0..0);
                let request = DrainNodeRequest { hello: Some(hello) };
                NodeClient::new(channel).drain(request).await.map_err(|s| s.message().to_owned())
            };
            let answer = match tokio::time::timeout(ANSWER, ask).await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(reason)) => Err(status::unavailable(format!("{node}: {reason}"), ANSWER)),
                Err(_) => Err(status::unavailable(format!("{node} does not answer"), ANSWER)),
            };
            let _ = reply.send(answer);
        });
    }
}

/// Writes the newest plans, again and again until the store has them.
async fn write_plans(
    store: Arc<dyn Store>,
    keys: Keys,
    cluster: String,
    fence: u64,
    mut planned: watch::Receiver<Vec<PipelinePlan>>,
) {
    while planned.changed().await.is_ok() {
        loop {
            let Ok(plans) = serde_json::to_vec(&*planned.borrow_and_update()) else { break };
            let Ok(txn) = guard(Txn::new().put(keys.plan(), plans), &cluster, fence) else { break };
            match store.commit(txn).await {
                Ok(_) => break,
                Err(error) => {
                    tracing::info!(%error, "the plan is not written down yet");
                    tokio::time::sleep(ANSWER).await;
                }
            }
        }
    }
}
