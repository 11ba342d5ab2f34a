//! `janus coordinator`: leads a cluster, or stands by until the leader is gone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use janus_cluster::plan::ModelSizes;
use janus_cluster::{Candidate, Election, Keys, Leadership, watch_members};
use janus_coordinator::conduct::Wishes;
use janus_coordinator::schedule::Limits;
use janus_coordinator::{DriverHandle, Front, Realm, Reign, Tenants};
use janus_model::{Checkpoint, KvDtype, WeightFormat};
use janus_spec::{KvStorage, ModelSpec, Tokenizer, WeightStorage};
use janus_wire::tls::{Door, Role};
use janus_wire::v1::DescribeModelRequest;
use janus_wire::v1::blobs_server::BlobsServer;
use janus_wire::v1::cluster_server::ClusterServer;
use janus_wire::v1::files_server::FilesServer;
use janus_wire::v1::inference_client::InferenceClient;
use janus_wire::v1::inference_server::InferenceServer;
use janus_wire::v1::jobs_server::JobsServer;
use janus_wire::v1::tenants_server::TenantsServer;
use janus_wire::{Identity, Listener, Pace, Security};
use janus_worker::Device;
use janus_worker::weights::WeightsService;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService;
use tonic::service::interceptor::InterceptedService;

use crate::args::{Coordinator as Args, OtherNumerics};
use crate::credential::signed;
use crate::failure::{Failure, Outcome};
use crate::jobs::kept::{self, prove};
use crate::local::{KEPT, QUEUE, ROWS, SLOTS, broken, reflection, report};
use crate::probes::Probes;
use crate::serve::{Signals, check_credentials, check_listen};
use crate::telemetry::Telemetry;
use crate::{checkpoint, output, session};

/// How long encoding and decoding may look for a node.
const PATIENCE: Duration = Duration::from_secs(120);
const RETRY: Duration = Duration::from_millis(500);
/// What clients call.
const SERVICES: [&str; 6] = [
    InferenceServer::<Front>::NAME,
    JobsServer::<Front>::NAME,
    BlobsServer::<Front>::NAME,
    FilesServer::<Front>::NAME,
    ClusterServer::<Front>::NAME,
    TenantsServer::<Tenants>::NAME,
];
/// A leader says within this what it serves.
const DESCRIBE: Duration = Duration::from_secs(5);

/// What it speaks with; its certificate has to be one of a coordinator of this cluster.
pub(crate) fn security(args: &Args) -> Outcome<Security> {
    let security = args.node.tls.security()?;
    check_listen(&args.listen, args.node.insecure, &security)?;
    security.suits(&args.node.store.cluster, Role::Coordinator).map_err(Failure::mistake)?;
    Ok(security)
}

pub(crate) fn run(args: Args, telemetry: &Telemetry) -> Outcome {
    let security = security(&args)?;
    let config = args.node.store.config()?;
    let keys = Keys::new(&args.node.store.cluster).map_err(Failure::mistake)?;
    let operator = args.credentials.load()?;
    check_credentials(&args.listen, args.node.insecure, operator.as_deref())?;
    let jobs = args.keep.open()?;
    let checkpoint = Arc::new(Checkpoint::open(checkpoint::files(&args.node.model)?)?);
    session::runtime()?.block_on(async {
        let mut signals = Signals::new()?;
        let probes = Probes::serve(args.node.health.as_deref()).await?;
        let listener = Listener::bind(&args.listen).await.map_err(Failure::mistake)?;
        let address = args.node.advertise.clone().unwrap_or_else(|| listener.address().to_string());
        let name = args.node.name.clone().unwrap_or_else(|| format!("coordinator-{}", listener.address().port()));
        let (digest, tensors) = checkpoint.digests(janus_model::default_threads())?;
        let tokenizer = || Tokenizer::load(&checkpoint.files, &checkpoint.spec);
        tokenizer()?;
        probes.started().await;
        let weights = args.node.weights.map_or_else(|| checkpoint.native_format(), WeightFormat::from);
        let kv = KvDtype::from(args.node.kv);
        let identity = Identity {
            cluster: args.node.store.cluster.clone(),
            numerics: Device::default().numerics(weights, kv),
            model: digest.0,
            node: name.clone(),
        };
        let store = tokio::select! {
            store = connected(&config) => store?,
            () = signals.any() => return Ok(()),
        };
        if let Some((objects, _)) = &jobs {
            prove(objects, store.as_ref(), &keys).await?;
        }
        let tenants = Tenants::start(store.clone(), keys.clone(), operator.as_deref(), CancellationToken::new());
        let jobs = jobs.map(|(objects, options)| (objects, kept::for_tenants(options, tenants.clone())));
        let members = watch_members(store.clone(), &args.node.store.cluster).map_err(Failure::mistake)?;
        let spec = checkpoint.spec.clone();
        let kv_positions = args.kv_positions.max(spec.llm.max_positions.min(4096));
        let draining = CancellationToken::new();
        let realm = Realm {
            name: args.node.model.clone(),
            identity: identity.clone(),
            security: security.clone(),
            store,
            keys,
            members: members.clone(),
            wishes: Wishes {
                pipelines: args.pipelines,
                stages: args.stages,
                spares: args.spares,
                kv_positions,
                numerics: identity.numerics.clone(),
                others: match args.other_numerics {
                    OtherNumerics::Park => BTreeMap::new(),
                    OtherNumerics::Restart => others(&spec, &identity.numerics),
                },
                model: janus_wire::hello::hex(&digest.0),
            },
            sizes: sizes(&spec, weights, kv),
            limits: Limits { slots: SLOTS, kv_positions, queue: QUEUE, pools: 1, rows: ROWS, kept: KEPT },
            patience: PATIENCE,
            log_every: Duration::from_secs(args.log_every),
            keep: Duration::from_secs(args.keep_results),
            tenants: tenants.clone(),
            draining: draining.clone(),
            jobs,
            spec,
        };

        let (reign, reigning) = watch::channel(None);
        let (leader, led) = watch::channel(None);
        let stale = members.clone();
        let front = Front::new(reigning.clone(), led.clone(), members);
        front.observe();
        tenants.observe();
        let (health, health_service) = tonic_health::server::health_reporter();
        report(&health, &SERVICES, false).await;
        let (reflection, older) = reflection(&SERVICES)?;
        let given = WeightsService::new(&identity.cluster, &args.node.model, checkpoint.clone(), digest, &tensors);
        let mut server = janus_wire::server(&security).map_err(broken)?.layer(Pace);
        let router = server
            .add_service(InterceptedService::new(front.clone().inference(), tenants.clone()))
            .add_service(InterceptedService::new(front.clone().jobs(), tenants.clone()))
            .add_service(InterceptedService::new(front.clone().blobs(), tenants.clone()))
            .add_service(InterceptedService::new(front.clone().files(), tenants.clone()))
            .add_service(InterceptedService::new(front.cluster(), tenants.clone()))
            .add_service(InterceptedService::new(tenants.clone().server(), tenants))
            .add_service(given.map_err(broken)?.server())
            .add_service(health_service)
            .add_service(reflection)
            .add_service(older);
        let closing = CancellationToken::new();
        let until = closing.clone();
        let incoming = listener.behind(&security, Door::Public);
        let serving =
            tokio::spawn(async move { router.serve_with_incoming_shutdown(incoming, until.cancelled_owned()).await });
        tokio::spawn(follow_readiness(reigning.clone(), health, draining.clone()));

        let standing = probes.follow_standing(reigning.clone(), led, name.clone(), draining.clone());
        tokio::spawn(standing);

        let ttl = Duration::from_secs(args.node.store.ttl);
        let candidate = Candidate { id: name.clone(), address: address.clone() };
        let election =
            Election::start(config, &args.node.store.cluster, candidate.clone(), ttl).map_err(Failure::mistake)?;
        let over = CancellationToken::new();
        let reigns = follow_election(election.leadership(), candidate, realm, tokenizer, &reign, &leader, over.clone());
        output::print_line(&format!("coordinator {name} {address}"));
        telemetry.announce();
        tokio::select! {
            ended = reigns => ended?,
            () = signals.any() => {}
        }

        // Readiness goes first. A successor takes over what runs, and callers find it by themselves; while the store is
        // away there cannot be one, so what runs is finished here.
        draining.cancel();
        if stale.borrow().stale {
            let running = || reigning.borrow().as_ref().map_or(0, |reign| reign.coordinator.running());
            let finish = async {
                while running() > 0 {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::select! {
                _ = tokio::time::timeout(Duration::from_secs(args.grace), finish) => {}
                () = signals.any() => {}
            }
        }
        election.resign().await;
        over.cancel();
        reign.send_replace(None);
        closing.cancel();
        let _ = tokio::time::timeout(Duration::from_millis(500), serving).await;
        Ok(())
    })
}

/// The store, as soon as it answers; what trying again cannot mend ends the process.
async fn connected(config: &janus_cluster::StoreConfig) -> Outcome<std::sync::Arc<dyn janus_cluster::Store>> {
    let mut told = false;
    loop {
        let opened = match config.connect().await {
            Ok(store) => match store.get("/janus/").await {
                Ok(_) => return Ok(store),
                Err(error) => error,
            },
            Err(error) => error,
        };
        if !opened.is_retryable() {
            return Err(Failure::mistake(opened));
        }
        if !told {
            eprintln!("janus: {opened}; trying again");
            told = true;
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Begins and ends reigns as the election goes.
async fn follow_election(
    mut leadership: watch::Receiver<Leadership>,
    me: Candidate,
    realm: Realm,
    tokenizer: impl Fn() -> Result<Tokenizer, janus_spec::Error>,
    reign: &watch::Sender<Option<Reign>>,
    leader: &watch::Sender<Option<(Candidate, u64)>>,
    end: CancellationToken,
) -> Outcome {
    loop {
        let now = leadership.borrow_and_update().clone();
        match now {
            Leadership::Unknown => drop(leader.send_replace(None)),
            Leadership::Follower { leader: who, epoch } => {
                leader.send_replace(Some((who.clone(), epoch)));
                tokio::select! {
                    other = another_model(&who, &realm) => return Err(other),
                    changed = leadership.changed() => if changed.is_err() { return Err(election_gone()) },
                }
                continue;
            }
            Leadership::Leader { epoch } => {
                leader.send_replace(Some((me.clone(), epoch)));
                let over = end.child_token();
                let deposed = async {
                    let still = |l: &Leadership| *l == Leadership::Leader { epoch };
                    let _ = leadership.wait_for(|l| !still(l)).await;
                };
                let ruling = async {
                    let mut placements = 0;
                    loop {
                        let ended = over.child_token();
                        let lead = realm.lead(epoch, placements, tokenizer()?, ended.clone());
                        let Some(begun) = lead.await.map_err(broken)? else { return std::future::pending().await };
                        let (mut restart, drivers) = (begun.conductor.restart(), begun.drivers.clone());
                        reign.send_replace(Some(begun));
                        let restart = tokio::select! {
                            restart = restart.wait_for(Option::is_some) => restart.ok().and_then(|restart| restart.clone()),
                            () = any_ended(&drivers) => return Err(driver_gone()),
                        };
                        // Callers come back by themselves, and find their requests begun again.
                        let Some(restart) = restart else { return std::future::pending().await };
                        ended.cancel();
                        reign.send_replace(None);
                        placements = restart.placements;
                    }
                };
                let ended: Outcome = tokio::select! {
                    () = deposed => Ok(()),
                    failed = ruling => failed,
                };
                over.cancel();
                reign.send_replace(None);
                ended?;
                tracing::warn!(epoch, "another coordinator leads now");
                continue;
            }
        }
        if leadership.changed().await.is_err() {
            return Err(election_gone());
        }
    }
}

/// Waits until a pipeline has nobody to drive it.
async fn any_ended(drivers: &[DriverHandle]) {
    let ended = drivers.iter().map(|driver| Box::pin(driver.ended()));
    futures_util::future::select_all(ended).await;
}

/// Somebody who begins anew does what it left.
pub(crate) fn driver_gone() -> Failure {
    Failure::Broken("the thread that drives a pipeline has ended; its panic is printed above".to_owned())
}

fn election_gone() -> Failure {
    Failure::Broken("the election's thread is gone".to_owned())
}

/// Asks the leader what it serves; returns only if that is another model than ours, which could never take over.
async fn another_model(leader: &Candidate, realm: &Realm) -> Failure {
    loop {
        let ask = async {
            let security = realm.security.to(Role::Coordinator);
            let channel = janus_wire::connect(&leader.address, &security).await.ok()?;
            let answer = InferenceClient::new(channel).describe(signed(DescribeModelRequest::default())).await.ok()?;
            Some(answer.into_inner())
        };
        if let Ok(Some(served)) = tokio::time::timeout(DESCRIBE, ask).await {
            if served.digest[..] == realm.identity.model[..] {
                return std::future::pending().await;
            }
            return Failure::mistake(format!(
                "cluster `{}` serves another model: its leader {} at {} has `{}`, digest {}, and this one has `{}`, digest {}; \
                 start this one with another --cluster, or with the same --model",
                realm.identity.cluster,
                leader.id,
                leader.address,
                served.model,
                janus_wire::hello::hex(&served.digest),
                realm.name,
                janus_wire::hello::hex(&realm.identity.model),
            ));
        }
        // It does not reign yet, or is gone and somebody else will be elected.
        tokio::time::sleep(RETRY).await;
    }
}

/// Ready is a leader with a pipeline through which a canary went.
async fn follow_readiness(
    mut reign: watch::Receiver<Option<Reign>>,
    health: tonic_health::server::HealthReporter,
    draining: CancellationToken,
) {
    loop {
        let now = reign.borrow_and_update().clone();
        let mut ready = now.map(|reign| reign.ready);
        let serving = ready.as_mut().is_some_and(|r| *r.borrow_and_update()) && !draining.is_cancelled();
        report(&health, &SERVICES, serving).await;
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
            () = changes => {}
            () = draining.cancelled(), if !draining.is_cancelled() => {}
        }
    }
}

/// The numerics ids of other nodes for this model, and what the planner counts under each.
fn others(spec: &ModelSpec, ours: &str) -> BTreeMap<String, ModelSizes> {
    let formats = [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Q8, WeightFormat::Q4];
    let each = formats.into_iter().flat_map(|weights| [KvDtype::F32, KvDtype::Bf16].map(|kv| (weights, kv)));
    let named = each.map(|(weights, kv)| (Device::default().numerics(weights, kv), sizes(spec, weights, kv)));
    named.filter(|(numerics, _)| numerics != ours).collect()
}

/// What the planner counts.
fn sizes(spec: &ModelSpec, weights: WeightFormat, kv: KvDtype) -> ModelSizes {
    let weights = match weights {
        WeightFormat::F32 => WeightStorage::F32,
        WeightFormat::Bf16 => WeightStorage::Bf16,
        WeightFormat::Q8 => WeightStorage::Q8,
        WeightFormat::Q4 => WeightStorage::Q4,
    };
    let kv = match kv {
        KvDtype::F32 => KvStorage::F32,
        KvDtype::Bf16 => KvStorage::Bf16,
    };
    ModelSizes::of(spec, weights, kv)
}
