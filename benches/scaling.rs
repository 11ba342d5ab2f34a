//! What N stages bring: the real coordinator, links and stage services, whose computing is a timed wait.
//! `cargo bench --bench scaling`.
#![allow(clippy::unwrap_used)]

use std::ops::Range;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use janus_benches::{identity, node, serve};
use janus_coordinator::schedule::Limits;
use janus_coordinator::{Coordinator, Driver, Model, Parts, Placement, Places, StageNode, Tenants};
use janus_model::llama::Span;
use janus_spec::{Files, ModelSpec, Tokenizer};
use janus_wire::Security;
use janus_wire::v1::inference_client::InferenceClient;
use janus_wire::v1::{GenerateImageRequest, Input, RequestHeader};
use janus_worker::stage::{Compute, Features, SampleJob, StageService};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Stages at most.
const STAGES: usize = 8;
/// They divide by every number of stages.
const LAYERS: usize = 840;
/// Of Janus-Pro-1B.
const HIDDEN: usize = 2048;
/// Of all layers, for one row: what a step of 16 rows of Janus-Pro-1B takes, by the row. So a full microbatch costs what
/// was measured, and company makes nothing cheaper: N stages can be N times as fast, and no faster.
const ROW: Duration = Duration::from_micros(153_000 / 16);
/// Pictures for each stage: so many that one microbatch more than there are stages is under way.
const PICTURES: usize = 9;
/// What is drawn in this time counts.
const WATCH: Duration = Duration::from_secs(15);
/// Units that a stage has open at most.
const SLOTS: usize = PICTURES * STAGES;
const BAR: f64 = 0.95;

fn main() -> ExitCode {
    println!("stages  pictures     ids/s  times one stage's  of N");
    let (mut holds, mut one) = (true, 0.0);
    for stages in 1..=STAGES {
        let rate = rate(stages);
        if stages == 1 {
            one = rate;
        }
        let share = rate / one / stages as f64;
        println!("{stages:>6}  {:>8}  {rate:>8.1}  {:>17.2}  {share:.3}", stages * PICTURES, rate / one);
        holds &= share >= BAR;
    }
    println!("N stages and N times the pictures: at least {BAR} N: {}", if holds { "holds" } else { "FAILS" });
    if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Ids a second of `stages` stages.
fn rate(stages: usize) -> f64 {
    let files = Files::open_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/tiny-a/transformers")).unwrap();
    let tokenizer = Tokenizer::load(&files, &ModelSpec::load(&files).unwrap()).unwrap();
    let mut spec = ModelSpec::janus_pro_1b();
    spec.llm.layers = LAYERS;
    let (shutdown, drawn) = (CancellationToken::new(), Arc::new(AtomicU64::new(0)));
    // Every stage has a runtime, as it would have a process.
    let nodes: Vec<Runtime> = (0..stages).map(|_| node("stage", 2)).collect();
    let start = |(i, runtime): (usize, &Runtime)| {
        let layers = i * LAYERS / stages..(i + 1) * LAYERS / stages;
        let compute = Timed { layers: layers.clone(), drawn: drawn.clone() };
        let started = || StageService::start(identity(), Security::Plain, compute, SLOTS, 1 << 20, shutdown.clone());
        let service = runtime.block_on(async { started().unwrap() });
        StageNode { node: i.to_string(), address: serve(runtime, |server| server.add_service(service.server())), layers }
    };
    // Machines of their own, as a conductor would say it.
    let placement = Placement { epoch: 1, stages: nodes.iter().enumerate().map(start).collect(), pools: stages };
    let (_placing, placed) = watch::channel(Some(Arc::new(placement)));
    let (reports, _reported) = mpsc::unbounded_channel();
    let public = node("coordinator", 2);
    let driver = Driver {
        identity: identity(),
        security: Security::Plain,
        pipeline: 1,
        places: Places::Led(placed, reports),
        limits: Limits { slots: SLOTS, kv_positions: 1 << 20, queue: 1024, pools: stages, rows: 16, kept: 0 },
        canary: vec![tokenizer.special().bos, tokenizer.special().begin_of_image],
    };
    let driver = driver.start(shutdown.clone()).unwrap();
    let nobody = || watch::channel(Vec::new()).1;
    let parts = Parts {
        identity: identity(),
        security: Security::Plain,
        drivers: vec![driver.clone()],
        encoders: nobody(),
        decoders: nobody(),
        patience: Duration::from_secs(1),
        ledger: None,
        tenants: Tenants::open(),
        restart: false,
        keep: janus_coordinator::request::KEEP,
        draining: CancellationToken::new(),
        over: shutdown.clone(),
    };
    let coordinator = Coordinator::new(Model { name: "timed".to_owned(), spec, tokenizer }, parts);
    let address = serve(&public, |server| server.add_service(coordinator.server()));
    public.block_on(async { driver.ready().wait_for(|ready| *ready).await.unwrap().to_owned() });

    let callers = node("callers", 1);
    for caller in 0..stages {
        let address = address.clone();
        callers.spawn(async move {
            let mut client = InferenceClient::new(janus_wire::connect(&address, &Security::Plain).await.unwrap());
            let mut events = client.generate_image(pictures(caller)).await.unwrap().into_inner();
            while events.message().await.is_ok_and(|event| event.is_some()) {}
        });
    }
    // All of them have left their prompts behind.
    let all = (4 * PICTURES * stages) as u64;
    while drawn.load(Ordering::Relaxed) < all {
        std::thread::sleep(Duration::from_millis(20));
    }
    let (begun, before) = (Instant::now(), drawn.load(Ordering::Relaxed));
    std::thread::sleep(WATCH);
    let ids = drawn.load(Ordering::Relaxed) - before;
    let rate = ids as f64 / begun.elapsed().as_secs_f64();
    shutdown.cancel();
    for runtime in nodes.into_iter().chain([public, callers]) {
        runtime.shutdown_timeout(Duration::from_secs(1));
    }
    rate
}

fn pictures(caller: usize) -> GenerateImageRequest {
    GenerateImageRequest {
        header: Some(RequestHeader { request_id: format!("caller-{caller}"), ..RequestHeader::default() }),
        prompt: "a red circle left of a blue square".to_owned(),
        n: PICTURES as u32,
        ..GenerateImageRequest::default()
    }
}

/// Layers that take their time and change nothing.
struct Timed {
    layers: Range<usize>,
    drawn: Arc<AtomicU64>,
}

impl Compute for Timed {
    fn hidden(&self) -> usize {
        HIDDEN
    }

    fn layers(&self) -> Range<usize> {
        self.layers.clone()
    }

    fn total_layers(&self) -> usize {
        LAYERS
    }

    fn open(&mut self, _: usize, _: usize) -> Result<(), String> {
        Ok(())
    }

    fn close(&mut self, _: usize) {}

    fn truncate(&mut self, _: usize, _: usize) -> Result<(), String> {
        Ok(())
    }

    fn copy(&mut self, _: usize, _: usize, _: usize) -> Result<(), String> {
        Ok(())
    }

    fn shrink(&mut self, _: usize, _: usize) -> Result<(), String> {
        Ok(())
    }

    fn embed(&mut self, input: &Input, _: &Features, out: &mut Vec<f32>) -> Result<(), String> {
        use janus_wire::v1::piece::Piece;
        let ids = |piece: &janus_wire::v1::Piece| match &piece.piece {
            Some(Piece::Text(ids) | Piece::Image(ids)) => ids.ids.len(),
            _ => 0,
        };
        let rows: usize = input.pieces.iter().map(ids).sum();
        out.resize(out.len() + rows * HIDDEN, 0.5);
        Ok(())
    }

    fn forward(&mut self, spans: &[Span], _: &mut [f32]) -> Result<(), String> {
        let rows: usize = spans.iter().map(|span| span.rows).sum();
        std::thread::sleep(ROW.mul_f64((rows * self.layers.len()) as f64 / LAYERS as f64));
        Ok(())
    }

    fn sample(&mut self, jobs: &[SampleJob], _: &[f32], out: &mut Vec<Result<u32, String>>) {
        self.drawn.fetch_add(jobs.len() as u64, Ordering::Relaxed);
        out.extend(jobs.iter().map(|_| Ok(1)));
    }

    fn weight_bytes(&self) -> usize {
        0
    }

    fn kv_bytes(&self) -> usize {
        0
    }
}
