//! `janus worker`: a node of a cluster. It registers, loads what coordinators ask for, and computes.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use janus_cluster::{Member, Probe, Registration, RegistrationState, Role as MemberRole, StoreConfig, random_incarnation};
use janus_model::llama::{Layer, LlamaRange, Span};
use janus_model::{Checkpoint, KvDtype, Pool, WeightFormat};
use janus_wire::tls::{self, Door};
use janus_wire::v1::node_client::NodeClient;
use janus_wire::v1::node_server::{Node, NodeServer};
use janus_wire::v1::{DrainNodeRequest, DrainNodeResponse, IdentifyRequest, IdentifyResponse};
use janus_wire::{Guarded, Identity, Listener, Security};
use janus_worker::decoder::DecoderService;
use janus_worker::encoder::EncoderService;
use janus_worker::stage::{Fence, ModelLoader, StageService};
use janus_worker::weights::WeightsService;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::args::{Roles, Worker};
use crate::failure::{Failure, Outcome};
use crate::local::{FEATURE_BYTES, SLOTS, broken};
use crate::probes::Probes;
use crate::serve::{Signal, Signals, check_listen};
use crate::session;
use crate::telemetry::Telemetry;

/// A process that has a name answers within this, if it lives.
const PROBE: Duration = Duration::from_secs(1);
/// Round trips to other members are measured this often.
const ROUND_TRIPS: Duration = Duration::from_secs(30);

/// Bytes of weights that layers are measured with: more than caches hold.
const WALK: u64 = 512 << 20;
/// Memory that must be free before half a gigabyte is taken to measure with.
const ROOM: u64 = 2 << 30;

/// What it speaks with; its certificate has to be one of a node of this cluster with all of its roles.
pub(crate) fn security(args: &Worker) -> Outcome<Security> {
    let security = args.node.tls.security()?;
    check_listen(&args.listen, args.node.insecure, &security)?;
    let roles = args.role.iter().map(|role| role.certified()).collect::<Vec<_>>();
    security.suits(&args.node.store.cluster, tls::Roles::of(&roles)).map_err(Failure::mistake)?;
    Ok(security)
}

pub(crate) fn run(args: Worker, telemetry: &Telemetry) -> Outcome {
    let security = security(&args)?;
    if args.test_step_delay_ms > 0 && !args.test {
        return Err(Failure::mistake("--test-step-delay-ms slows every step down; it is for tests alone: add --test"));
    }
    janus_model::check_cpu()?;
    let store = args.node.store.config()?;
    let runtime = session::runtime()?;
    let ended = runtime.block_on(async {
        let mut signals = Signals::new()?;
        let worker = tokio::select! {
            worker = Running::start(args, security, store) => worker?,
            () = signals.any() => return Ok(()),
        };
        telemetry.announce();
        // An interrupt ends it at once, a termination when its work has gone elsewhere.
        if signals.which().await == Signal::Terminate {
            eprintln!("janus: handing over; an interrupt ends it at once");
            tokio::select! {
                () = worker.drain() => {}
                () = signals.interrupted() => {}
            }
        }
        worker.leave().await;
        Ok(())
    });
    // Layers that are still being fetched are not waited for; what has come is on the disk.
    runtime.shutdown_background();
    ended
}

struct Running {
    registration: Arc<Registration>,
    held: Option<tokio::sync::watch::Receiver<std::ops::Range<usize>>>,
    shutdown: CancellationToken,
    grace: Duration,
}

impl Running {
    async fn start(args: Worker, security: Security, store: StoreConfig) -> Outcome<Self> {
        let checkpoint = Arc::new(crate::weights::open(&args, &store, &security).await?);
        let listener = Listener::bind(&args.listen).await.map_err(Failure::mistake)?;
        let probes = Probes::serve(args.node.health.as_deref()).await?;
        let address = args.node.advertise.clone().unwrap_or_else(|| listener.address().to_string());
        let name = args.node.name.clone().unwrap_or_else(|| format!("worker-{}", listener.address().port()));
        let weights = args.node.weights.map_or_else(|| checkpoint.native_format(), WeightFormat::from);
        let kv = KvDtype::from(args.node.kv);
        let pool = Arc::new(Pool::new(args.threads.unwrap_or_else(janus_model::default_threads)));
        let (digest, tensors) = checkpoint.digests(pool.threads())?;
        let identity = Identity {
            cluster: args.node.store.cluster.clone(),
            numerics: args.device.numerics(weights, kv),
            model: digest.0,
            node: name.clone(),
        };
        let shutdown = CancellationToken::new();
        let has = |role: Roles| args.role.contains(&role);
        let mut router = janus_wire::server(&security).map_err(broken)?;
        let drain = CancellationToken::new();
        let incarnation = random_incarnation().map_err(broken)?;
        let node = NodeService {
            id: name.clone(),
            incarnation: incarnation.clone(),
            identity: identity.clone(),
            drain: drain.clone(),
            fence: Arc::default(),
        };
        let given = WeightsService::new(&identity.cluster, &args.node.model, checkpoint.clone(), digest, &tensors);
        let mut router = router.add_service(Guarded(NodeServer::new(node))).add_service(given.map_err(broken)?.server());

        let (mut pace, mut held) = (Pace::default(), None);
        if has(Roles::Stage) {
            // Any numbers of the model's sizes take as long; its own may not be here.
            let sample = args.cache.is_some().then(|| Checkpoint::random(checkpoint.spec.clone(), 0));
            pace = calibrate(sample.as_ref().unwrap_or(&checkpoint), &pool, weights, kv)?;
            let delay = Duration::from_millis(args.test_step_delay_ms);
            pace.layer += args.test_step_delay_ms as f64 / checkpoint.spec.llm.layers as f64;
            let loader = Arc::new(ModelLoader::new(checkpoint.clone(), pool.clone(), weights, kv, SLOTS));
            let stage = StageService::start_empty(
                identity.clone(),
                security.clone(),
                loader,
                SLOTS,
                FEATURE_BYTES,
                shutdown.clone(),
            );
            let stage = stage.map_err(broken)?;
            stage.delay(delay);
            if args.node.sight.counts() {
                read_bandwidth(&pool).into_iter().for_each(|bytes| stage.bandwidth(bytes));
            }
            held = Some(stage.held());
            router = router.add_service(stage.server());
        }
        if has(Roles::Encoder) {
            let eager = (true, true);
            let (identity, security) = (identity.clone(), security.clone());
            let (checkpoint, pool) = (checkpoint.clone(), pool.clone());
            let load = move || EncoderService::start(identity, security, checkpoint, pool, weights, eager);
            router = router.add_service(loaded(load).await?.server());
        }
        if has(Roles::Decoder) {
            let (identity, checkpoint, pool) = (identity.clone(), checkpoint.clone(), pool.clone());
            let load = move || DecoderService::start(identity, checkpoint, pool, weights, true);
            let decoder = loaded(load).await?;
            decoder.prepare().await;
            router = router.add_service(decoder.server());
        }
        let until = shutdown.clone();
        let incoming = listener.behind(&security, Door::Nodes);
        tokio::spawn(async move { router.serve_with_incoming_shutdown(incoming, until.cancelled_owned()).await });

        let member = Member {
            id: name.clone(),
            incarnation,
            roles: args.role.iter().map(|role| role.member()).collect(),
            address: address.clone(),
            zone: args.zone.clone().unwrap_or_default(),
            device: args.device.to_string(),
            machine: machine(),
            memory_bytes: args.memory.unwrap_or_else(available_memory),
            threads: pool.threads(),
            ms_per_layer: pace.layer,
            ms_per_embed: pace.embed,
            ms_per_head: pace.head,
            model: janus_wire::hello::hex(&digest.0),
            numerics: identity.numerics.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            ..Member::default()
        };
        let ttl = Duration::from_secs(args.node.store.ttl);
        let registration = Registration::start(store, &args.node.store.cluster, member, ttl, probe(&security));
        let registration = Arc::new(registration.map_err(Failure::mistake)?);
        probes.started().await;
        tokio::spawn(probes.follow_registration(registration.state(), drain.clone()));
        tokio::spawn(tell(registration.state(), name.clone()));

        if let Some(mut held) = held.clone() {
            let registration = registration.clone();
            tokio::spawn(async move {
                while held.changed().await.is_ok() {
                    let layers = held.borrow_and_update().clone();
                    registration.update(|m| m.layers = (!layers.is_empty()).then_some([layers.start, layers.end]));
                }
            });
        }
        let drained = registration.clone();
        tokio::spawn(async move {
            drain.cancelled().await;
            drained.update(|m| m.draining = true);
        });
        tokio::spawn(measure_round_trips(
            args.node.store.config()?,
            args.node.store.cluster.clone(),
            name.clone(),
            registration.clone(),
            security.to(tls::Roles::WORKERS),
        ));
        // Whoever starts workers may wait for this line.
        crate::output::print_line(&format!("worker {name} {address}"));
        Ok(Running { registration, held, shutdown, grace: Duration::from_secs(args.grace) })
    }

    /// Waits until its layers have another place.
    async fn drain(&self) {
        self.registration.update(|m| m.draining = true);
        let Some(mut held) = self.held.clone() else { return };
        let _ = tokio::time::timeout(self.grace, held.wait_for(|layers| layers.is_empty())).await;
    }

    async fn leave(self) {
        let registration = Arc::into_inner(self.registration);
        // Others that still hold it are about to end; the lease does the rest.
        if let Some(registration) = registration {
            registration.leave().await;
        }
        self.shutdown.cancel();
    }
}

/// Weights may come over the network, so they are waited for where signals are still heard.
async fn loaded<T: Send + 'static>(load: impl FnOnce() -> Result<T, janus_worker::Error> + Send + 'static) -> Outcome<T> {
    let loaded = tokio::task::spawn_blocking(load).await;
    loaded.map_err(|_| broken("loading the weights panicked"))?.map_err(Failure::mistake)
}

/// Says on stderr what a person should know about the registration.
async fn tell(mut state: tokio::sync::watch::Receiver<RegistrationState>, name: String) {
    loop {
        match &*state.borrow_and_update() {
            RegistrationState::Connecting { reason } if reason.is_empty() => {}
            RegistrationState::Connecting { reason } => tracing::warn!(reason, "not registered yet; trying again"),
            RegistrationState::Registered => tracing::info!(name, "registered"),
            RegistrationState::NameTaken { by } => tracing::error!(
                name,
                by = by.address,
                pid = by.pid,
                "another living worker has this name: stop it, or start this one with another --name; waiting"
            ),
            RegistrationState::Away { reason, .. } => tracing::warn!(reason, "the store is away; work goes on"),
        }
        if state.changed().await.is_err() {
            return;
        }
    }
}

/// Whether the process of a record still answers under its incarnation.
fn probe(security: &Security) -> Probe {
    let security = security.to(tls::Roles::WORKERS);
    Arc::new(move |member: Member| {
        let security = security.clone();
        Box::pin(async move {
            let ask = async {
                let channel = janus_wire::connect(&member.address, &security).await.ok()?;
                let answer = NodeClient::new(channel).identify(IdentifyRequest {}).await.ok()?.into_inner();
                Some(answer.id == member.id && answer.incarnation == member.incarnation)
            };
            matches!(tokio::time::timeout(PROBE, ask).await, Ok(Some(true)))
        })
    })
}

/// Publishes how long a question to each other member takes.
async fn measure_round_trips(
    store: StoreConfig,
    cluster: String,
    name: String,
    registration: Arc<Registration>,
    security: Security,
) {
    let registration = Arc::downgrade(&registration);
    let Ok(keys) = janus_cluster::Keys::new(&cluster) else { return };
    let mut ticks = tokio::time::interval(ROUND_TRIPS);
    loop {
        ticks.tick().await;
        let Ok(store) = store.connect().await else { continue };
        let Ok(listing) = store.list(&keys.members()).await else { continue };
        let others = listing.entries.iter().filter_map(|e| serde_json::from_slice::<Member>(&e.value).ok());
        let mut round_trips = std::collections::BTreeMap::new();
        for other in others.filter(|m| m.id != name) {
            let Ok(channel) = janus_wire::connect(&other.address, &security).await else { continue };
            let mut client = NodeClient::new(channel);
            let mut best = f64::INFINITY;
            for _ in 0..3 {
                let asked = Instant::now();
                if client.identify(IdentifyRequest {}).await.is_ok() {
                    best = best.min(asked.elapsed().as_secs_f64() * 1e3);
                }
            }
            if best.is_finite() {
                round_trips.insert(other.id, best);
            }
        }
        let Some(registration) = registration.upgrade() else { return };
        registration.update(|m| m.round_trips = round_trips);
    }
}

#[derive(Clone)]
struct NodeService {
    id: String,
    incarnation: String,
    identity: Identity,
    drain: CancellationToken,
    fence: Arc<Fence>,
}

#[tonic::async_trait]
impl Node for NodeService {
    async fn identify(&self, _: Request<IdentifyRequest>) -> Result<Response<IdentifyResponse>, Status> {
        Ok(Response::new(IdentifyResponse { id: self.id.clone(), incarnation: self.incarnation.clone() }))
    }

    async fn drain(&self, request: Request<DrainNodeRequest>) -> Result<Response<DrainNodeResponse>, Status> {
        let hello = request.into_inner().hello;
        self.identity.check(hello.as_ref()).map_err(janus_worker::Error::from)?;
        self.fence.enter(hello.map_or(0, |h| h.epoch))?;
        self.drain.cancel();
        Ok(Response::new(DrainNodeResponse {}))
    }
}

/// Milliseconds of the parts of a step of one guided picture.
#[derive(Default)]
struct Pace {
    layer: f64,
    embed: f64,
    head: f64,
}

/// Measures a layer in the middle of a picture; embedding and head take as long by their bytes. The median of some steps: a
/// picture has hundreds of them, and its time is not that of the best.
fn calibrate(checkpoint: &Checkpoint, pool: &Pool, weights: WeightFormat, kv: KvDtype) -> Outcome<Pace> {
    const STEPS: usize = 15;
    let spec = &checkpoint.spec;
    let mut layers = vec![Arc::new(Layer::load(checkpoint, 0, weights)?)];
    let layer_bytes = layers[0].bytes();
    // A layer alone would stay in the caches from one step to the next.
    let room = WALK.min(available_memory() / 4) as usize;
    let count = (room / layer_bytes.max(1)).clamp(1, spec.llm.layers);
    for layer in 1..count {
        layers.push(Arc::new(Layer::load(checkpoint, layer, weights)?));
    }
    let mut range = LlamaRange::of(&spec.llm, 0, layers, kv, 2)?;
    let mut times = Vec::with_capacity(STEPS);
    let mut x = vec![0.01; 2 * spec.llm.hidden];
    let middle = spec.image_tokens() / 2;
    for slot in 0..2 {
        range.open(slot, middle + STEPS)?;
        range.pretend(slot, middle)?;
    }
    for start in middle..middle + STEPS {
        let spans = [0, 1].map(|slot| Span { slot, start, rows: 1 });
        let begun = Instant::now();
        range.forward(pool, &spans, &mut x)?;
        times.push(begun.elapsed().as_secs_f64() * 1e3 / count as f64);
        x.fill(0.01);
    }
    let (_, &mut layer, _) = times.select_nth_unstable_by(STEPS / 2, f64::total_cmp);
    let parts = spec.parts();
    let bytes = if weights == WeightFormat::F32 { 4.0 } else { 2.0 };
    let by_bytes = |parameters: u64| layer * parameters as f64 * bytes / layer_bytes.max(1) as f64;
    Ok(Pace { layer, embed: by_bytes(parts.gen_aligner), head: by_bytes(parts.gen_head) })
}

/// Bytes per second that this machine reads, where there is room to measure it.
pub(crate) fn read_bandwidth(pool: &Pool) -> Option<f64> {
    (available_memory() > ROOM).then(|| janus_model::measure::read_bandwidth_gb_s(pool) * 1e9)
}

/// What tells machines apart; processes with the same one share cores.
pub(crate) fn machine() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

/// Bytes that can be had, within the limits of a control group.
pub(crate) fn available_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kilobytes = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    let machine = kilobytes.map_or(1 << 30, |kb| kb * 1024);
    // Where the limit is in the second version of control groups, and in the first.
    let files = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let limits = files.iter().filter_map(|file| std::fs::read_to_string(Path::new(file)).ok()?.trim().parse::<u64>().ok());
    limits.fold(machine, u64::min)
}

impl Roles {
    /// As it stands in certificates.
    fn certified(self) -> tls::Role {
        match self {
            Roles::Stage => tls::Role::Stage,
            Roles::Encoder => tls::Role::Encoder,
            Roles::Decoder => tls::Role::Decoder,
        }
    }

    fn member(self) -> MemberRole {
        match self {
            Roles::Stage => MemberRole::Stage,
            Roles::Encoder => MemberRole::Encoder,
            Roles::Decoder => MemberRole::Decoder,
        }
    }
}
