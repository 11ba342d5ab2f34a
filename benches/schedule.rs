//! What the coordinator adds to a step: the scheduler alone, and the whole loop from a result that leaves the last stage
//! to the next frame at the first one, with and without 64 callers who stream. `cargo bench --bench schedule`.
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use janus_benches::{ToyStage, bound, head, identity, node, row, serve};
use janus_coordinator::schedule::{Action, Band, Event, Limits, Scheduler, Share, UnitSpec};
use janus_coordinator::{Coordinator, Driver, Model, Parts, Places, StageNode, Tenants};
use janus_spec::{Files, ModelSpec, Tokenizer};
use janus_wire::v1::inference_client::InferenceClient;
use janus_wire::v1::stage_client::StageClient;
use janus_wire::v1::{
    ChatRequest, FrameBody, Ids, Kind, LinkMessage, Message, Mode, Part, Piece, RequestHeader, Role, Sampling, StepResult,
    Unit, UnitResult, chat_event, link_message, part, piece, result_message,
};
use janus_wire::{Security, frame};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

/// Callers of the public service.
const CALLERS: usize = 64;
/// Each loop is watched for this long.
const WATCH: Duration = Duration::from_secs(8);
/// What a stage takes for a step of a small model; it sleeps, so that the cores are the coordinator's and the callers'.
const STEP: Duration = Duration::from_millis(10);

fn main() -> ExitCode {
    head("the scheduler alone, per step");
    let mut holds = true;
    for (what, units, kind, pools) in [
        ("64 pairs, 1 machine", 64, Kind::Pair, 1),
        ("256 answers, 1 machine", 256, Kind::Text, 1),
        ("256 pairs, 1 machine", 256, Kind::Pair, 1),
        ("256 pairs, 4 machines", 256, Kind::Pair, 4),
    ] {
        let p99 = row(what, &mut scheduler_alone(units, kind, pools));
        holds &= bound("scheduler", p99, Duration::from_micros(200), Duration::from_micros(200));
    }

    head("from a result to the next frame");
    let mut bare = bare_loop();
    row("two hops, nothing between them", &mut bare);
    // The median of what the hops take anyway: what is left over it counts against the coordinator.
    let hops = bare[bare.len() / 2];
    row("1 caller, a step of 10 ms", &mut whole_loop(1, STEP).0);
    let (mut turns, tokens) = whole_loop(CALLERS, STEP);
    let p99 = row("64 callers, a step of 10 ms", &mut turns);
    println!("  {tokens:.0} tokens a second reached the callers");
    let added = p99.saturating_sub(hops);
    holds &= bound("the coordinator's part", added, Duration::from_micros(500), Duration::from_millis(1));
    let (mut turns, tokens) = whole_loop(CALLERS, Duration::ZERO);
    row("64 callers, a step of 0 ms", &mut turns);
    println!("  {tokens:.0} tokens a second reached the callers");
    if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A unit of `target` ids after a prompt of 12.
fn spec(id: u64, kind: Kind, target: usize) -> UnitSpec {
    let branch = || vec![Piece { piece: Some(piece::Piece::Text(Ids { ids: (0..12).collect() })) }];
    let branches = if kind == Kind::Pair { vec![branch(), branch()] } else { vec![branch()] };
    let (sampling, keep) = (Sampling::default(), Vec::new());
    UnitSpec {
        id,
        kind,
        sampling,
        branches,
        prompt: 12,
        keep,
        target,
        end: None,
        band: Band::Interactive,
        tenant: "local".into(),
        share: Share::default(),
        log: Vec::new(),
        key: String::new(),
        admitted: false,
    }
}

/// Time of each step in which all units decode.
fn scheduler_alone(units: u64, kind: Kind, pools: usize) -> Vec<Duration> {
    let limits = Limits { slots: 512, kv_positions: 1 << 24, queue: 1024, pools, rows: 16, kept: 4 };
    let mut scheduler = Scheduler::new(limits);
    (1..=units).for_each(|id| drop(scheduler.step(Event::Submit(Box::new(spec(id, kind, 576))))));
    let mut flying = VecDeque::new();
    let mut steps = Vec::new();
    let mut actions = scheduler.step(Event::PipelineUp { pools, copies: true });
    loop {
        flying.extend(
            actions.into_iter().filter_map(|action| if let Action::Send(body) = action { Some(body) } else { None }),
        );
        let Some(body) = flying.pop_front() else { return steps };
        let answer = |unit: &Unit| UnitResult {
            slot: unit.slot,
            generation: unit.generation,
            length: unit.start + unit.positions,
            id: unit.sample.map(|_| 65),
            ..UnitResult::default()
        };
        let steady = body.units.iter().all(|unit| unit.mode() == Mode::Decode);
        let units = body.units.iter().map(answer).collect();
        let result = Event::Result(StepResult { microbatch: body.microbatch, units, ..StepResult::default() });
        let begun = Instant::now();
        actions = scheduler.step(result);
        let took = begun.elapsed();
        if steady && actions.iter().any(|action| matches!(action, Action::Send(_))) {
            steps.push(took);
        }
    }
}

/// A node that answers every result with a frame at once: what the two hops take without a coordinator.
fn bare_loop() -> Vec<Duration> {
    let (stages, driver) = (node("stage", 2), node("driver", 1));
    let (stage, _heard) = ToyStage::new(4, STEP);
    let address = serve(&stages, |server| server.add_service(stage.clone().server()));
    driver.block_on(async {
        let hello = || identity().hello(Role::Coordinator, 1, 1, 0..4);
        let mut client = StageClient::new(janus_wire::connect(&address, &Security::Plain).await.unwrap());
        let mut results = client.results(hello()).await.unwrap().into_inner();
        let (frames, stream) = mpsc::channel(4);
        frames.send(LinkMessage { message: Some(link_message::Message::Hello(hello())) }).await.unwrap();
        let _answers = client.link(ReceiverStream::new(stream)).await.unwrap();
        let end = Instant::now() + WATCH;
        let mut sequence = 0;
        while Instant::now() < end {
            let unit = Unit { mode: Mode::Decode.into(), positions: 1, start: sequence as u32, ..Unit::default() };
            let units = (0..32).map(|slot| Unit { slot, ..unit.clone() }).collect();
            let body = FrameBody { pipeline: 1, epoch: 1, sequence, units, ..FrameBody::default() };
            let sealed = frame::seal(&body, Bytes::new());
            frames.send(LinkMessage { message: Some(link_message::Message::Frame(sealed)) }).await.unwrap();
            sequence += 1;
            while !matches!(results.message().await.unwrap().unwrap().message, Some(result_message::Message::Result(_))) {}
        }
    });
    stage.take().turns
}

/// The real coordinator between `callers` and a stage that takes `step`; gives back the turns and the tokens a second.
fn whole_loop(callers: usize, step: Duration) -> (Vec<Duration>, f64) {
    let files = Files::open_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/tiny-a/transformers")).unwrap();
    let spec = ModelSpec::load(&files).unwrap();
    let tokenizer = Tokenizer::load(&files, &spec).unwrap();
    let layers = spec.llm.layers;

    let (nodes, public, elsewhere) = (node("stage", 2), node("public", 2), node("callers", 2));
    let (stage, _heard) = ToyStage::new(layers, step);
    let address = serve(&nodes, |server| server.add_service(stage.clone().server()));
    let stages = vec![StageNode { node: "toy".to_owned(), address, layers: 0..layers }];
    let shutdown = CancellationToken::new();
    let driver = Driver {
        identity: identity(),
        security: Security::Plain,
        pipeline: 1,
        places: Places::Fixed(stages),
        limits: Limits { slots: 512, kv_positions: 1 << 20, queue: 1024, pools: 1, rows: 16, kept: 4 },
        canary: vec![tokenizer.special().bos, tokenizer.special().begin_of_image],
    };
    let driver = driver.start(shutdown.clone()).unwrap();
    let model = Model { name: "toy".to_owned(), spec, tokenizer };
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
        draining: CancellationToken::new(),
        over: shutdown.clone(),
    };
    let coordinator = Coordinator::new(model, parts);
    let address = serve(&public, |server| server.add_service(coordinator.server()));
    public.block_on(async { driver.ready().wait_for(|ready| *ready).await.unwrap().to_owned() });

    let tokens = Arc::new(AtomicU64::new(0));
    for caller in 0..callers {
        let (address, tokens) = (address.clone(), tokens.clone());
        elsewhere.spawn(async move {
            let mut client = InferenceClient::new(janus_wire::connect(&address, &Security::Plain).await.unwrap());
            for turn in 0.. {
                let mut events = client.chat(question(format!("{caller}-{turn}"))).await.unwrap().into_inner();
                while let Ok(Some(event)) = events.message().await {
                    if let Some(chat_event::Event::Token(_)) = event.event {
                        tokens.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
    }
    // All callers are there before anything counts.
    std::thread::sleep(WATCH / 8);
    drop(stage.take());
    let (begun, before) = (Instant::now(), tokens.load(Ordering::Relaxed));
    std::thread::sleep(WATCH);
    let (turns, heard) = (stage.take().turns, tokens.load(Ordering::Relaxed) - before);
    let rate = heard as f64 / begun.elapsed().as_secs_f64();
    shutdown.cancel();
    for runtime in [elsewhere, public, nodes] {
        runtime.shutdown_timeout(Duration::from_secs(1));
    }
    (turns, rate)
}

fn question(id: String) -> ChatRequest {
    let text = Part { part: Some(part::Part::Text("What is a river?".to_owned())) };
    ChatRequest {
        header: Some(RequestHeader { request_id: id, ..RequestHeader::default() }),
        messages: vec![Message { role: "user".to_owned(), parts: vec![text] }],
        max_tokens: Some(900),
        ..ChatRequest::default()
    }
}
