//! A whole cluster in this process: stages, encoder, decoder and coordinator, speaking the real protocol over
//! loopback. Verbs without `--endpoint` and `janus serve` run on it.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use janus_coordinator::jobs::{Jobs, Setup};
use janus_coordinator::ledger::write_logs;
use janus_coordinator::schedule::Limits;
use janus_coordinator::{Alone, Coordinator, Driver, DriverHandle, Ledger, Model, Parts, Places, StageNode, Tenants};
use janus_model::llama::Workspace;
use janus_model::{Checkpoint, KvDtype, Pool, WeightFormat};
use janus_spec::Tokenizer;
use janus_wire::tls::Door;
use janus_wire::v1::MemberStatus;
use janus_wire::v1::blobs_server::BlobsServer;
use janus_wire::v1::cluster_server::ClusterServer;
use janus_wire::v1::files_server::FilesServer;
use janus_wire::v1::inference_server::InferenceServer;
use janus_wire::v1::jobs_server::JobsServer;
use janus_wire::v1::tenants_server::TenantsServer;
use janus_wire::{DESCRIPTORS, Identity, Listener, Pace, Security};
use janus_worker::Device;
use janus_worker::decoder::DecoderService;
use janus_worker::encoder::EncoderService;
use janus_worker::stage::{ModelCompute, StageService};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::server::Router;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tonic_reflection::server::{v1, v1alpha};

use crate::certs;
use crate::failure::{Failure, Outcome};
use crate::jobs::kept::{self, Kept};
use crate::worker::read_bandwidth;

/// What the cluster inside one process is called.
const CLUSTER: &str = "local";
/// Units open at once in one pipeline. So many rows are bound by arithmetic on any machine: more of them would all be slower, and
/// none would be done earlier.
pub(crate) const SLOTS: usize = 64;
/// Slots that may hold prompts of ended units, for units that begin with the same.
pub(crate) const KEPT: usize = SLOTS / 4;
/// Units that may wait.
pub(crate) const QUEUE: usize = 1024;
/// Decode rows that fill a microbatch: from about here on, a step is bound by arithmetic and no longer by memory.
pub(crate) const ROWS: usize = 16;
/// Encoder features kept at the first stage.
pub(crate) const FEATURE_BYTES: usize = 256 << 20;
/// How often token logs of jobs are written down, where there is a place.
const LOG_EVERY: Duration = Duration::from_secs(10);
/// How long a pipeline in this process may take from its weights to its first id.
const READY_WITHIN: Duration = Duration::from_secs(120);
/// How long a lost encoder or decoder of this process is tried again.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long the last events may take to their readers.
const FLUSH: Duration = Duration::from_secs(5);

/// How to run a model in this process.
pub(crate) struct Options {
    /// Where clients connect, `host:port`.
    pub(crate) listen: String,
    /// Its name.
    pub(crate) model: String,
    pub(crate) stages: usize,
    pub(crate) threads: Option<usize>,
    pub(crate) device: Device,
    pub(crate) weights: Option<WeightFormat>,
    pub(crate) kv: KvDtype,
    /// What is loaded now; the rest waits until it is first needed.
    pub(crate) needs: Needs,
    /// Of the public port; if it is encrypted, so is what the parts say to each other.
    pub(crate) security: Security,
    /// Somebody looks at its metrics.
    pub(crate) counts: bool,
    /// The operator's key: with one, everybody needs a key.
    pub(crate) operator: Option<String>,
    /// How jobs are kept; `None` if there are to be none.
    pub(crate) jobs: Option<kept::Here>,
}

/// The parts beside the language model that are surely used, so that a damaged one is known before any work.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Needs {
    /// SigLIP and aligner.
    pub(crate) vision: bool,
    /// The VQ encoder.
    pub(crate) vq_encoder: bool,
    /// The VQ decoder.
    pub(crate) vq_decoder: bool,
    /// What its codes look like by themselves.
    pub(crate) previews: bool,
}

impl Needs {
    pub(crate) const ALL: Needs = Needs { vision: true, vq_encoder: true, vq_decoder: true, previews: false };
    pub(crate) const NONE: Needs = Needs { vision: false, vq_encoder: false, vq_decoder: false, previews: false };
}

/// A running cluster.
pub(crate) struct Local {
    pub(crate) address: SocketAddr,
    driver: DriverHandle,
    coordinator: Coordinator,
    draining: CancellationToken,
    /// Ends the public server when its calls are answered.
    closing: CancellationToken,
    serving: JoinHandle<()>,
    shutdown: CancellationToken,
    /// What is removed at the end.
    _forgotten: Option<tempfile::TempDir>,
}

/// Layers of stage `i` of `n`: contiguous, sizes differing by one at most.
pub(crate) fn share(layers: usize, i: usize, n: usize) -> Range<usize> {
    i * layers / n..(i + 1) * layers / n
}

impl Local {
    /// Loads everything and waits until a canary token went through all stages.
    pub(crate) async fn start(checkpoint: Checkpoint, options: Options) -> Outcome<Self> {
        janus_model::check_cpu()?;
        let layers = checkpoint.spec.llm.layers;
        if options.stages > layers {
            let stages = options.stages;
            return Err(Failure::mistake(format!(
                "--stages {stages}: the model has {layers} layers, so at most {layers} stages"
            )));
        }
        // Ports first: a taken one is known before minutes of loading.
        let public = Listener::bind(&options.listen).await.map_err(Failure::mistake)?;
        let address = public.address();
        let kept = match &options.jobs {
            Some(alone) => Some(alone.open(CLUSTER).await?),
            None => None,
        };

        let weights = options.weights.unwrap_or_else(|| checkpoint.native_format());
        let pool = Arc::new(Pool::new(options.threads.unwrap_or_else(janus_model::default_threads)));
        let tokenizer = Tokenizer::load(&checkpoint.files, &checkpoint.spec)?;
        let (digest, _) = checkpoint.digests(pool.threads())?;
        let identity = Identity {
            cluster: CLUSTER.to_owned(),
            numerics: options.device.numerics(weights, options.kv),
            model: digest.0,
            node: format!("local-{}", std::process::id()),
        };
        let security = match options.security.encrypts() {
            true => certs::within(CLUSTER)?,
            false => Security::Plain,
        };
        let shutdown = CancellationToken::new();
        let checkpoint = Arc::new(checkpoint);

        let (mut stages, mut encoders, mut decoders) = (Vec::new(), Vec::new(), Vec::new());
        let workspace = Arc::new(Workspace::default());
        let bandwidth = options.counts.then(|| read_bandwidth(&pool)).flatten();
        for i in 0..options.stages {
            let range = share(layers, i, options.stages);
            let node = format!("stage-{i}");
            let compute = ModelCompute::load(&checkpoint, pool.clone(), range.clone(), weights, options.kv, SLOTS)?
                .sharing(workspace.clone());
            let service = StageService::start(
                Identity { node: node.clone(), ..identity.clone() },
                security.clone(),
                compute,
                SLOTS,
                FEATURE_BYTES,
                shutdown.clone(),
            )
            .map_err(broken)?;
            bandwidth.into_iter().for_each(|bytes| service.bandwidth(bytes));
            let address = spawn(&security, |server| server.add_service(service.server()), &shutdown).await?;
            stages.push(StageNode { node, address: address.to_string(), layers: range });
        }
        let needs = options.needs;
        let named = |node: &str| Identity { node: node.to_owned(), ..identity.clone() };
        let encoder = EncoderService::start(
            named("encoder-0"),
            security.clone(),
            checkpoint.clone(),
            pool.clone(),
            weights,
            (needs.vision, needs.vq_encoder),
        );
        let encoder = encoder.map_err(Failure::mistake)?;
        encoders.push(spawn(&security, |server| server.add_service(encoder.server()), &shutdown).await?.to_string());
        let decoder = DecoderService::start(named("decoder-0"), checkpoint.clone(), pool.clone(), weights, needs.vq_decoder);
        let decoder = decoder.map_err(Failure::mistake)?;
        if needs.previews {
            decoder.prepare().await;
        }
        decoders.push(spawn(&security, |server| server.add_service(decoder.server()), &shutdown).await?.to_string());

        let stages_here = stages.clone();
        let special = tokenizer.special();
        let per_position = checkpoint.spec.kv_bytes_per_position(options.kv.size()).max(1);
        let driver = Driver {
            identity: identity.clone(),
            security: security.clone(),
            pipeline: 1,
            places: Places::Fixed(stages),
            limits: Limits {
                slots: SLOTS,
                kv_positions: usize::try_from(kv_budget() / per_position)
                    .unwrap_or(usize::MAX)
                    .max(checkpoint.spec.llm.max_positions),
                queue: QUEUE,
                pools: 1,
                rows: ROWS,
                kept: KEPT,
            },
            canary: vec![special.bos, special.begin_of_image],
        };
        let driver = driver.start(shutdown.clone()).map_err(broken)?;
        let draining = CancellationToken::new();
        let parts_here = members(&stages_here, &encoders, &decoders, &identity, options.device);
        let alone = Alone::new(identity.node.clone(), address.to_string(), vec![driver.clone()], parts_here);
        let model = Model { name: options.model, spec: checkpoint.spec.clone(), tokenizer };
        let ours = identity.clone();
        let tenants = match &kept {
            Some(kept) => {
                let operator = options.operator.as_deref();
                Tenants::start(kept.store.clone(), kept.keys.clone(), operator, shutdown.clone())
            }
            None => Tenants::open(),
        };
        let parts = Parts {
            identity,
            security: security.clone(),
            drivers: vec![driver.clone()],
            encoders: watch::channel(encoders).1,
            decoders: watch::channel(decoders).1,
            patience: PATIENCE,
            ledger: None,
            tenants: tenants.clone(),
            restart: false,
            keep: janus_coordinator::request::KEEP,
            draining: draining.clone(),
            over: shutdown.clone(),
        };
        let coordinator = Coordinator::new(model, parts);
        let seen = driver.clone();
        janus_coordinator::observe_drivers(move || vec![seen.clone()]);
        tenants.observe();
        let (jobs, forgotten) = match kept {
            Some(kept) => keep_jobs(kept, &coordinator, &driver, &tenants, &ours, &shutdown).await?,
            None => (None, None),
        };

        let (health, health_service) = tonic_health::server::health_reporter();
        let mut services = vec![InferenceServer::<Coordinator>::NAME, ClusterServer::<Alone>::NAME];
        services.push(TenantsServer::<Tenants>::NAME);
        services.extend(
            jobs.iter().flat_map(|_| [JobsServer::<Jobs>::NAME, BlobsServer::<Jobs>::NAME, FilesServer::<Jobs>::NAME]),
        );
        report(&health, &services, false).await;
        let (reflection, older) = reflection(&services)?;
        let mut router = janus_wire::server(&options.security).map_err(Failure::mistake)?.layer(Pace);
        let router = router
            .add_service(InterceptedService::new(coordinator.clone().server(), tenants.clone()))
            .add_service(InterceptedService::new(alone.server(), tenants.clone()))
            .add_service(InterceptedService::new(tenants.clone().server(), tenants.clone()))
            .add_optional_service(jobs.clone().map(|jobs| InterceptedService::new(jobs.blobs(), tenants.clone())))
            .add_optional_service(jobs.clone().map(|jobs| InterceptedService::new(jobs.files(), tenants.clone())))
            .add_optional_service(jobs.map(|jobs| InterceptedService::new(jobs.server(), tenants)));
        let router = router.add_service(health_service).add_service(reflection).add_service(older);
        let closing = CancellationToken::new();
        let until = closing.clone();
        let incoming = public.behind(&options.security, Door::Public);
        let serving = tokio::spawn(async move {
            if let Err(error) = router.serve_with_incoming_shutdown(incoming, until.cancelled_owned()).await {
                tracing::error!(%error, "the public server ended");
            }
        });

        // Health follows readiness: a canary, or nothing.
        let (mut ready, drain, reporter, all) = (driver.ready(), draining.clone(), health.clone(), services.clone());
        tokio::spawn(async move {
            loop {
                let serving = *ready.borrow_and_update() && !drain.is_cancelled();
                report(&reporter, &all, serving).await;
                tokio::select! {
                    changed = ready.changed() => if changed.is_err() { break },
                    () = drain.cancelled(), if !drain.is_cancelled() => {}
                }
            }
        });

        let _forgotten = forgotten;
        let local = Local { address, driver, coordinator, draining, closing, serving, shutdown, _forgotten };
        local.ready().await?;
        // Whoever is told that we are ready must find us healthy.
        report(&health, &services, true).await;
        Ok(local)
    }

    async fn ready(&self) -> Outcome {
        let (mut ready, mut trouble) = (self.driver.ready(), self.driver.trouble());
        tokio::select! {
            ready = ready.wait_for(|ready| *ready) => if ready.is_ok() { return Ok(()) },
            reason = trouble.wait_for(Option::is_some) => {
                // Nothing but the weights can be at fault here: the prompt is two special ids.
                if let Some(reason) = reason.ok().and_then(|r| r.clone()) {
                    return Err(Failure::mistake(format!("the model cannot draw a first id: {reason}")));
                }
            }
            () = tokio::time::sleep(READY_WITHIN) => {}
        }
        Err(Failure::Broken("no token came through the pipeline; run with JANUS_LOG=info to see why".to_owned()))
    }

    /// Waits until nothing can be computed any more: the driver's thread has panicked.
    pub(crate) async fn broken(&self) {
        self.driver.ended().await;
    }

    /// Stops admitting, waits until what runs is done (at most `grace`), then ends every stream and server.
    pub(crate) async fn stop(mut self, grace: Duration) {
        self.draining.cancel();
        let deadline = tokio::time::Instant::now() + grace;
        while self.coordinator.running() > 0 && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // Last events are still on their way; a client that only watches our health is not waited for.
        self.closing.cancel();
        let _ = tokio::time::timeout(FLUSH, &mut self.serving).await;
        self.shutdown.cancel();
    }
}

/// The parts of this process, for people: they share its memory and cores, so it is not said whose is what.
fn members(
    stages: &[StageNode],
    encoders: &[String],
    decoders: &[String],
    identity: &Identity,
    device: Device,
) -> Vec<MemberStatus> {
    let member = |id: String, role: &str, address: &str, layers: Range<usize>| MemberStatus {
        id,
        pid: std::process::id(),
        roles: vec![role.to_owned()],
        address: address.to_owned(),
        state: "serving".to_owned(),
        first_layer: layers.start as u32,
        end_layer: layers.end as u32,
        device: device.to_string(),
        numerics: identity.numerics.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..MemberStatus::default()
    };
    let stages = stages.iter().map(|s| member(s.node.clone(), "stage", &s.address, s.layers.clone()));
    let encoders = encoders.iter().enumerate().map(|(i, at)| member(format!("encoder-{i}"), "encoder", at, 0..0));
    let decoders = decoders.iter().enumerate().map(|(i, at)| member(format!("decoder-{i}"), "decoder", at, 0..0));
    stages.chain(encoders).chain(decoders).collect()
}

/// Starts the jobs of a cluster in one process. What is to outlive it is written down now and then.
async fn keep_jobs(
    kept: Kept,
    coordinator: &Coordinator,
    driver: &DriverHandle,
    tenants: &Tenants,
    identity: &Identity,
    over: &CancellationToken,
) -> Outcome<(Option<Jobs>, Option<tempfile::TempDir>)> {
    let Kept { store, keys, epoch, objects, options, forgotten } = kept;
    let options = kept::for_tenants(options, tenants.clone());
    tenants.read_usage().await.map_err(Failure::mistake)?;
    tenants.trim_audit().await.map_err(Failure::mistake)?;
    let (numerics, model) = (identity.numerics.clone(), identity.model);
    let (_, logs) = Ledger::read(store.as_ref(), &keys, &numerics).await.map_err(Failure::mistake)?;
    let setup = Setup {
        store: store.clone(),
        keys: keys.clone(),
        cluster: CLUSTER.to_owned(),
        epoch,
        objects,
        options,
        engine: coordinator.units(logs),
        model,
    };
    let jobs = Jobs::start(setup, over.clone()).await;
    let (counted, drivers, measured) = (tenants.clone(), vec![driver.clone()], jobs.clone());
    let fence = Some((CLUSTER.to_owned(), epoch));
    let counting = async move { counted.measure(drivers, measured, fence, LOG_EVERY).await };
    let ended = over.clone();
    tokio::spawn(async move { ended.run_until_cancelled(counting).await });
    let (driver, until) = (driver.clone(), over.clone());
    let lasting = forgotten.is_none();
    let write = async move {
        loop {
            tokio::time::sleep(LOG_EVERY).await;
            if lasting {
                let written = write_logs(store.as_ref(), &keys, CLUSTER, epoch, 1, &numerics, driver.logs().await).await;
                if let Err(error) = written {
                    tracing::warn!(%error, "token logs are not written down");
                }
            }
            if let Ok(listing) = store.list(&keys.epoch()).await {
                let _ = store.compact(listing.revision).await;
            }
        }
    };
    tokio::spawn(async move { until.run_until_cancelled(write).await });
    Ok((jobs, forgotten))
}

/// Reflection of these services and of health, as tools ask for it now and as some still do (v1alpha); the descriptors hold the
/// nodes' services too, which are not served here.
#[allow(clippy::type_complexity)]
pub(crate) fn reflection(
    services: &[&str],
) -> Outcome<(
    v1::ServerReflectionServer<impl v1::ServerReflection + use<>>,
    v1alpha::ServerReflectionServer<impl v1alpha::ServerReflection + use<>>,
)> {
    let builder = || {
        let builder = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .with_service_name("grpc.health.v1.Health");
        services.iter().fold(builder, |builder, service| builder.with_service_name(*service))
    };
    Ok((builder().build_v1().map_err(broken)?, builder().build_v1alpha().map_err(broken)?))
}

/// Health of these services, and of the process as a whole.
pub(crate) async fn report(health: &HealthReporter, services: &[&str], serving: bool) {
    let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    for service in services.iter().chain(&[""]) {
        health.set_service_status(*service, status).await;
    }
}

impl Drop for Local {
    /// The driver hears of the end before its links break, and so has nothing to complain about.
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// Serves on a free loopback port until `shutdown`.
async fn spawn(
    security: &Security,
    add: impl FnOnce(&mut tonic::transport::Server) -> Router,
    shutdown: &CancellationToken,
) -> Outcome<SocketAddr> {
    let listener = Listener::bind("127.0.0.1:0").await.map_err(broken)?;
    let address = listener.address();
    let mut server = janus_wire::server(security).map_err(broken)?;
    let router = add(&mut server);
    let until = shutdown.clone();
    let incoming = listener.behind(security, Door::Nodes);
    tokio::spawn(async move { router.serve_with_incoming_shutdown(incoming, until.cancelled_owned()).await });
    Ok(address)
}

pub(crate) fn broken(error: impl std::fmt::Display) -> Failure {
    Failure::Broken(error.to_string())
}

/// Bytes of KV memory: half of what is free, 1 GiB where that cannot be known.
fn kv_budget() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kilobytes = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kilobytes.map_or(1 << 30, |kb| kb * 1024 / 2)
}

#[cfg(test)]
mod tests {
    use super::share;

    #[test]
    fn every_layer_has_one_stage() {
        for (layers, stages) in [(4, 1), (4, 4), (24, 5), (30, 7)] {
            let ranges: Vec<_> = (0..stages).map(|i| share(layers, i, stages)).collect();
            assert_eq!(ranges.iter().flat_map(|r| r.clone()).collect::<Vec<_>>(), (0..layers).collect::<Vec<_>>());
            assert!(ranges.iter().all(|r| !r.is_empty()));
        }
    }
}
