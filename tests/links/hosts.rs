//! The software of the hosts: two replicas of each of two stages, a decoder, and a coordinator with a small conductor.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use janus_coordinator::schedule::Limits;
use janus_coordinator::{Coordinator, Driver, Model, News, Parts, Placement, Places, Report, StageNode, Tenants};
use janus_spec::{Files, ModelSpec, Tokenizer};
use janus_wire::v1::decoder_server::{Decoder, DecoderServer};
use janus_wire::v1::{DecodeRequest, DecodeResponse, PaletteRequest, PaletteResponse};
use janus_wire::{Guarded, Identity, Pace};
use janus_worker::stage::StageService;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::dice::Dice;
use crate::network::{Host, address};
use crate::seen::{Reign, Seen, Watched};
use crate::toy::{LAYERS, NUMERICS};

pub(crate) const COORDINATOR: &str = "coordinator";
pub(crate) const DECODER: &str = "decoder";
pub(crate) const CALLER: &str = "caller";
/// By what they hold.
pub(crate) const STAGES: [[&str; 2]; 2] = [["front-a", "front-b"], ["back-a", "back-b"]];

const HALF: usize = LAYERS / 2;
/// Units that a stage can hold at once.
const SLOTS: usize = 6;

/// What a seed says about a whole history.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setting {
    pub(crate) seed: u64,
    /// Prompts that stay for others that begin with the same.
    pub(crate) kept: usize,
    /// Milliseconds that a stage takes for a frame.
    pub(crate) step: u64,
}

pub(crate) fn identity(node: &str) -> Identity {
    Identity { cluster: "links".to_owned(), numerics: NUMERICS[0].to_owned(), model: [7; 32], node: node.to_owned() }
}

/// What is served: the configuration and the tokeniser of tiny-a.
pub(crate) fn model() -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tiny-a/transformers");
    let files = Files::open_dir(path).unwrap();
    let spec = ModelSpec::load(&files).unwrap();
    let tokenizer = Tokenizer::load(&files, &spec).unwrap();
    Model { name: "tiny-a".to_owned(), spec, tokenizer }
}

/// A stage, until its host crashes.
pub(crate) async fn stage(node: &'static str, half: usize, setting: Setting, seen: Arc<Seen>) -> turmoil::Result {
    let host = Host::start(node, &seen);
    let compute = Watched::new(half * HALF..(half + 1) * HALF, seen);
    let (security, over) = (host.security(), CancellationToken::new());
    let service = StageService::start_here(identity(node), security.clone(), compute, SLOTS, 1 << 20, over)?;
    service.delay(Duration::from_millis(setting.step));
    let router = janus_wire::server(&security)?.add_service(service.server());
    host.run(async { Ok(router.serve_with_incoming(host.listen().await?).await?) }).await
}

/// A decoder whose pictures are their ids.
pub(crate) async fn decoder(seen: Arc<Seen>) -> turmoil::Result {
    let host = Host::start(DECODER, &seen);
    let router = janus_wire::server(&host.security())?.add_service(Guarded(DecoderServer::new(Painter)));
    host.run(async { Ok(router.serve_with_incoming(host.listen().await?).await?) }).await
}

struct Painter;

#[tonic::async_trait]
impl Decoder for Painter {
    async fn decode(&self, request: Request<DecodeRequest>) -> Result<Response<DecodeResponse>, Status> {
        let rgb: Vec<u8> = request.into_inner().ids.into_iter().map(|id| id as u8).collect();
        Ok(Response::new(DecodeResponse { width: rgb.len() as u32, height: 1, rgb: rgb.into() }))
    }

    async fn palette(&self, _: Request<PaletteRequest>) -> Result<Response<PaletteResponse>, Status> {
        Err(Status::unimplemented("nobody asks for it"))
    }
}

/// A coordinator, until its host crashes: the next one has a higher fencing epoch and knows nothing of this one's requests.
pub(crate) async fn coordinator(setting: Setting, seen: Arc<Seen>) -> turmoil::Result {
    let (host, fence) = (Host::start(COORDINATOR, &seen), seen.next_fence());
    let (model, security, over) = (model(), host.security(), CancellationToken::new());
    let special = model.tokenizer.special();
    let (places, coming) = watch::channel(None);
    let (reports, heard) = mpsc::unbounded_channel();
    let driver = Driver {
        identity: identity(COORDINATOR),
        security: security.clone(),
        pipeline: 1,
        places: Places::Led(coming, reports),
        limits: Limits { slots: SLOTS, kv_positions: 700, queue: 64, pools: 2, rows: 4, kept: setting.kept },
        canary: vec![special.bos, special.begin_of_image],
    };
    let (driver, running) = driver.here(over.clone());
    tokio::task::spawn_local(running);
    let dice = Dice::new(setting.seed << 8 | fence);
    tokio::spawn(conduct(dice, fence, places, heard, seen.clone()));
    let parts = Parts {
        identity: identity(COORDINATOR),
        security: security.clone(),
        drivers: vec![driver.clone()],
        encoders: watch::channel(Vec::new()).1,
        decoders: watch::channel(vec![address(DECODER)]).1,
        patience: Duration::from_secs(60),
        ledger: None,
        tenants: Tenants::open(),
        restart: false,
        keep: janus_coordinator::request::KEEP,
        draining: CancellationToken::new(),
        over,
    };
    let coordinator = Coordinator::new(model, parts);
    seen.reigns(Reign { coordinator: coordinator.clone(), driver });
    let router = janus_wire::server(&security)?.layer(Pace).add_service(coordinator.server());
    host.run(async { Ok(router.serve_with_incoming(host.listen().await?).await?) }).await
}

/// Answers every loss with a placement over other replicas, and now and then changes what runs.
async fn conduct(
    mut dice: Dice,
    fence: u64,
    places: watch::Sender<Option<Arc<Placement>>>,
    mut heard: mpsc::UnboundedReceiver<Report>,
    seen: Arc<Seen>,
) {
    let mut replicas = [dice.index(2), dice.index(2)];
    for count in 1.. {
        let epoch = fence << 32 | count;
        let stage = |half: usize| {
            let node = STAGES[half][replicas[half]];
            StageNode { node: node.to_owned(), address: address(node), layers: half * HALF..(half + 1) * HALF }
        };
        let placement = Placement { epoch, stages: (0..2).map(stage).collect(), pools: 2 };
        seen.note(format_args!("{fence}.{count} over {replicas:?}"));
        seen.count(|counts| counts.placements += 1);
        places.send_replace(Some(Arc::new(placement)));
        let content = Duration::from_millis(dice.within(1_000..12_000));
        let blamed = loop {
            match tokio::time::timeout(content, heard.recv()).await {
                Ok(Some(report)) if report.epoch != epoch => {}
                Ok(Some(Report { news: News::Ready, .. })) => {
                    seen.note(format_args!("{fence}.{count} is ready"));
                    seen.count(|counts| counts.ready += 1);
                }
                Ok(Some(Report { news: News::Lost { reason, stage }, .. })) => {
                    seen.note(format_args!("{fence}.{count} is lost at {stage:?}: {reason}"));
                    break stage;
                }
                Ok(None) => return seen.fault("the driver ended"),
                Err(_) if seen.calm() => {}
                Err(_) => break None,
            }
        };
        match blamed {
            Some(half) => replicas[half] ^= 1,
            None => replicas = [dice.index(2), dice.index(2)],
        }
        tokio::time::sleep(Duration::from_millis(dice.within(1..400))).await;
    }
}
