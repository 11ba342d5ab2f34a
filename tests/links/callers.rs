//! Callers of the public service: what they ask for, what they must hear, and that some leave before the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use janus_coordinator::Model;
use janus_coordinator::schedule::{Band, Share, UnitSpec};
use janus_wire::client::{PAUSE, is_lost};
use janus_wire::v1::inference_client::InferenceClient;
use janus_wire::v1::stage_client::StageClient;
use janus_wire::v1::{
    CancelRequest, ChatRequest, DescribeRequest, GenerateImageRequest, Ids, Kind, Piece, Priority, RequestHeader, Sampling,
    chat_event, generate_image_event, piece,
};
use janus_wire::{Coordinators, MAX_CLIENT_MESSAGE, Security};
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::dice::Dice;
use crate::hosts::{CALLER, COORDINATOR, STAGES, Setting};
use crate::network::{Host, address};
use crate::seen::{Reign, Seen};
use crate::toy::{NUMERICS, alone};

/// After the last blow everything is over within this.
const PATIENCE: Duration = Duration::from_secs(60);

enum Ask {
    Paint(GenerateImageRequest),
    Chat(ChatRequest),
}

/// One request, and what becomes of it.
pub(crate) struct Wish {
    number: usize,
    id: String,
    ask: Ask,
    comes: Duration,
    /// When its caller has had enough, after it came, and whether he says so or just goes.
    leaves: Option<(Duration, bool)>,
    /// Ids of each picture, or of the answer.
    ids: Vec<Vec<u32>>,
}

const WORDS: [&str; 8] = ["a red circle", "left of", "a blue square", "over", "two stars", "in the rain", "and", "nothing"];

impl Wish {
    /// Somebody's wish, within the first `time` milliseconds.
    pub(crate) fn new(number: usize, time: u64, model: &Model, dice: &mut Dice) -> Self {
        let long = if dice.chance(15) { 25 } else { 4 };
        let words: Vec<&str> = (0..=dice.index(long)).map(|_| WORDS[dice.index(WORDS.len())]).collect();
        let (id, text, seed) = (format!("wish-{number}"), words.join(" "), 1_000 * (number as u64 + 1));
        let priority = if dice.chance(25) { Priority::Batch } else { Priority::Interactive };
        let header = Some(RequestHeader { request_id: id.clone(), priority: priority.into(), ..RequestHeader::default() });
        let comes = Duration::from_millis(dice.within(0..time));
        let leaves = dice.chance(20).then(|| (Duration::from_millis(dice.within(0..4_000)), dice.chance(50)));
        let branch = |ids: &[u32]| vec![Piece { piece: Some(piece::Piece::Text(Ids { ids: ids.to_vec() })) }];
        let (ask, branches, count, target) = if dice.chance(30) {
            let target = 1 + dice.index(24);
            let prompt = model.tokenizer.raw_prompt(&text).unwrap();
            let ask = ChatRequest {
                header,
                raw_prompt: text,
                max_tokens: Some(target as u32),
                temperature: Some(1.0),
                seed,
                ..ChatRequest::default()
            };
            (Ask::Chat(ask), vec![branch(&prompt.ids)], 1, target)
        } else {
            let prompt = model.tokenizer.generation_prompt(&text, false).unwrap();
            let (alone, n) = (dice.chance(30), 1 + dice.roll(3) as u32);
            let ask = GenerateImageRequest {
                header,
                prompt: text,
                n,
                seed,
                cfg_weight: Some(if alone { 1.0 } else { 5.0 }),
                stream_ids: true,
                ..GenerateImageRequest::default()
            };
            let branches = [&prompt.cond, &prompt.uncond].into_iter().take(if alone { 1 } else { 2 });
            (Ask::Paint(ask), branches.map(|ids| branch(ids)).collect(), n as usize, model.spec.image_tokens())
        };
        let kind = match (&ask, branches.len()) {
            (Ask::Chat(_), _) => Kind::Text,
            (_, 1) => Kind::Unguided,
            _ => Kind::Pair,
        };
        let positions = |branch: &Vec<Piece>| match &branch[0].piece {
            Some(piece::Piece::Text(ids)) => ids.ids.len(),
            _ => 0,
        };
        let unit = |i: u64| UnitSpec {
            id: 0,
            kind,
            sampling: Sampling { seed: seed + i, ..Sampling::default() },
            prompt: positions(&branches[0]),
            branches: branches.clone(),
            keep: Vec::new(),
            target,
            end: None,
            band: Band::Interactive,
            tenant: "".into(),
            share: Share::default(),
            log: Vec::new(),
            key: String::new(),
            admitted: false,
        };
        let ids = (0..count as u64).map(|i| alone(NUMERICS[0], &unit(i)).0).collect();
        Wish { number, id, ask, comes, leaves, ids }
    }
}

/// A caller with a wish.
struct Caller {
    wish: Wish,
    coordinators: Arc<Coordinators>,
    /// It has asked for the end.
    leaving: AtomicBool,
    seen: Arc<Seen>,
}

/// All callers, and then a look at what is left.
pub(crate) async fn callers(wishes: Vec<Wish>, setting: Setting, seen: Arc<Seen>) -> turmoil::Result {
    let security = Host::start(CALLER, &seen).security();
    let coordinators = Arc::new(Coordinators::new(&address(COORDINATOR), security.clone())?);
    let mut callers = JoinSet::new();
    for wish in wishes {
        let (coordinators, seen) = (coordinators.clone(), seen.clone());
        let caller = Caller { wish, coordinators, leaving: AtomicBool::new(false), seen };
        callers.spawn(async move { caller.live().await });
    }
    let calm = async || {
        while !seen.calm() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let patience = async {
        calm().await;
        tokio::time::sleep(PATIENCE).await;
    };
    let ended = async {
        while let Some(ended) = callers.join_next().await {
            ended?;
        }
        turmoil::Result::Ok(())
    };
    tokio::select! {
        biased;
        ended = ended => ended?,
        () = patience => seen.fault(format_args!("callers still wait; {}", held(&seen))),
    }
    calm().await;
    rest(setting, &security, &seen).await;
    Ok(())
}

impl Caller {
    async fn live(self) {
        let Wish { number, comes, leaves, .. } = self.wish;
        tokio::time::sleep(comes).await;
        let patience = async {
            match leaves {
                Some((after, says)) => {
                    tokio::time::sleep(after).await;
                    says
                }
                None => std::future::pending().await,
            }
        };
        let mut asking = Box::pin(self.ask());
        let says = tokio::select! {
            biased;
            () = &mut asking => return self.seen.ended(number),
            says = patience => says,
        };
        self.leaving.store(true, Ordering::Relaxed);
        self.seen.note(format_args!("caller {number} leaves{}", if says { " and says so" } else { "" }));
        if says {
            tokio::join!(biased; self.cancel(), asking);
        }
        self.seen.ended(number);
    }

    /// Asks until the answer is complete, or given up.
    async fn ask(&self) {
        let number = self.wish.number;
        self.seen.note(format_args!("caller {number} comes"));
        loop {
            let Ok(lead) = self.coordinators.lead().await else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let channel = lead.channel.clone();
            let answer = match &self.wish.ask {
                Ask::Paint(request) => self.paint(channel, request.clone()).await,
                Ask::Chat(request) => self.chat(channel, request.clone()).await,
            };
            let leaving = self.leaving.load(Ordering::Relaxed);
            match answer {
                Ok(()) => return self.seen.note(format_args!("caller {number} has it all")),
                Err(_) if leaving => return,
                Err(status) if is_lost(&status) => {
                    self.seen.note(format_args!("caller {number} asks again: {}", status.message()));
                    self.coordinators.lost(&lead, &status).await;
                    self.seen.count(|counts| counts.again += 1);
                }
                Err(status) => return self.seen.fault(format_args!("caller {number}: {status:?}")),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn paint(&self, channel: Channel, request: GenerateImageRequest) -> Result<(), Status> {
        use generate_image_event::Event;
        let mut events = client(channel).generate_image(request).await?.into_inner();
        let mut heard = vec![Vec::new(); self.wish.ids.len()];
        let (mut pictures, mut over) = (vec![false; heard.len()], false);
        while let Some(event) = events.message().await? {
            self.must(!over, "something follows the end");
            match event.event {
                Some(Event::Progress(progress)) => self.hears(&mut heard, progress.index as usize, &progress.ids),
                Some(Event::Image(image)) => {
                    let index = image.index as usize;
                    self.must(!std::mem::replace(&mut pictures[index], true), "a picture came twice");
                    self.must(image.tokens == self.wish.ids[index], "a picture has other ids");
                    let rgb: Vec<u8> = image.tokens.iter().map(|id| *id as u8).collect();
                    self.must(image.rgb == rgb, "a picture is another one's");
                }
                Some(Event::Resumed(_)) => self.seen.count(|counts| counts.resumed += 1),
                Some(Event::Done(_)) => over = true,
                _ => {}
            }
        }
        self.must(over && heard == self.wish.ids && !pictures.contains(&false), "the answer ended before it was complete");
        Ok(())
    }

    async fn chat(&self, channel: Channel, request: ChatRequest) -> Result<(), Status> {
        use chat_event::Event;
        let mut events = client(channel).chat(request).await?.into_inner();
        let (mut heard, mut over) = (vec![Vec::new()], false);
        while let Some(event) = events.message().await? {
            self.must(!over, "something follows the end");
            match event.event {
                Some(Event::Token(token)) => self.hears(&mut heard, 0, &[token.id]),
                Some(Event::Resumed(_)) => self.seen.count(|counts| counts.resumed += 1),
                Some(Event::Done(done)) => {
                    over = true;
                    self.must(done.tokens == self.wish.ids[0], "an answer has other ids");
                }
                _ => {}
            }
        }
        self.must(over && heard == self.wish.ids, "the answer ended before it was complete");
        Ok(())
    }

    /// Ids follow those before as they would have alone.
    fn hears(&self, heard: &mut [Vec<u32>], index: usize, ids: &[u32]) {
        heard[index].extend(ids);
        self.must(self.wish.ids[index].starts_with(&heard[index]), format_args!("ids of #{index}: {:?}", heard[index]));
    }

    /// Says that the request is not wanted any more, until somebody has heard it.
    async fn cancel(&self) {
        loop {
            let Ok(lead) = self.coordinators.lead().await else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let request = CancelRequest { request_id: self.wish.id.clone() };
            match client(lead.channel.clone()).cancel(request).await {
                Ok(_) => return,
                // It is over already, or was never heard of.
                Err(status) if status.code() == Code::NotFound => return,
                Err(status) => self.coordinators.lost(&lead, &status).await,
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn must(&self, holds: bool, otherwise: impl std::fmt::Display) {
        if !holds {
            self.seen.fault(format_args!("caller {}: {otherwise}", self.wish.number));
        }
    }
}

fn client(channel: Channel) -> InferenceClient<Channel> {
    InferenceClient::new(channel).max_decoding_message_size(MAX_CLIENT_MESSAGE)
}

/// Waits until nothing is left of any request, anywhere.
async fn rest(setting: Setting, security: &Security, seen: &Seen) {
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        let left = left(setting, security, seen).await;
        if left.is_empty() {
            return seen.note("all is over");
        }
        if tokio::time::Instant::now() > until {
            return seen.fault(format_args!("something is left: {left:?}"));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What the coordinator holds; nothing is nothing.
fn held(seen: &Seen) -> String {
    let Some(Reign { coordinator, driver }) = seen.reign() else { return "no coordinator".to_owned() };
    let ((waiting, active), parked) = (driver.counts(), driver.parked());
    let (requests, calls) = (coordinator.requests().0, coordinator.running());
    match [waiting, active, parked, requests, calls] {
        [0, 0, 0, 0, 0] => String::new(),
        _ => format!("{waiting} units wait, {active} run, {parked} parked; {requests} requests, {calls} calls"),
    }
}

/// What the coordinator and the stages hold.
async fn left(setting: Setting, security: &Security, seen: &Seen) -> Vec<String> {
    let mut left: Vec<String> = Some(held(seen)).into_iter().filter(|held| !held.is_empty()).collect();
    for node in STAGES.into_iter().flatten() {
        let Ok(channel) = janus_wire::connect(&address(node), security).await else {
            left.push(format!("{node} is away"));
            continue;
        };
        let Ok(stage) = StageClient::new(channel).describe(DescribeRequest {}).await else {
            left.push(format!("{node} says nothing"));
            continue;
        };
        let stage = stage.into_inner();
        if stage.refused_units > 0 {
            seen.fault(format_args!("{node} refused {} units", stage.refused_units));
        }
        if stage.open_slots > 0 || (setting.kept == 0 && stage.kv_bytes > 0) {
            left.push(format!("{node} holds {} slots and {} positions", stage.open_slots, stage.kv_bytes));
        }
    }
    left
}
