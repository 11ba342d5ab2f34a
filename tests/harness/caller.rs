//! A caller that does not give up: when its connection breaks, or who answers does not lead, it goes on elsewhere under
//! the same request id.
#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::time::{Duration, Instant};

use janus_wire::v1::{chat_event, generate_image_event};
use janus_wire::{LEADER, Security};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::{Code, Status};

use crate::client::{Answer, Ask, Events, client};

/// A request without any news for so long has failed.
const PATIENCE: Duration = Duration::from_secs(100);

/// How a request went.
#[derive(Debug, Clone, Default)]
pub struct Course {
    pub answer: Answer,
    /// How often it went on: told by the server, or seen as a broken stream.
    pub resumed: u32,
    /// How often it began again under other numerics.
    pub restarted: u32,
    /// Whether its first acknowledgement said so.
    pub durable: bool,
    /// The longest time between two ids of the first picture, whatever happened meanwhile.
    pub silence: Duration,
}

/// A running request.
pub struct Caller {
    known: watch::Receiver<u32>,
    task: JoinHandle<Result<Course, String>>,
}

impl Caller {
    /// Begins a request under an id of its own.
    pub fn begin(endpoints: &str, ask: &Ask) -> Caller {
        let endpoints: Vec<String> = endpoints.split(',').map(str::to_owned).collect();
        let (known, knowing) = watch::channel(0);
        Caller { known: knowing, task: tokio::spawn(follow(endpoints, fresh(ask), known)) }
    }

    /// Ids that are known of the first picture, or of the answer.
    pub fn known(&self) -> u32 {
        *self.known.borrow()
    }

    /// Waits until so many are known.
    pub async fn reaches(&mut self, ids: u32) {
        let waited = tokio::time::timeout(PATIENCE, self.known.wait_for(|known| *known >= ids)).await;
        let came = waited.is_ok_and(|heard| heard.is_ok());
        assert!(came, "id {ids} never came; {} are known", self.known());
    }

    pub fn is_finished(&self) -> bool {
        self.task.is_finished()
    }

    /// Its end, which must be a good one.
    pub async fn end(self) -> Course {
        self.task.await.unwrap().unwrap_or_else(|error| panic!("a request failed: {error}"))
    }
}

/// The same request under an id that no other run of this program uses.
pub fn fresh(ask: &Ask) -> Ask {
    let mut ask = ask.again();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let header = match &mut ask {
        Ask::Paint(request) => &mut request.header,
        Ask::Chat(request) => &mut request.header,
    };
    let id = &mut header.as_mut().unwrap().request_id;
    *id = format!("{id}-{}-{}", std::process::id(), now.as_nanos());
    ask
}

async fn follow(mut endpoints: Vec<String>, ask: Ask, known: watch::Sender<u32>) -> Result<Course, String> {
    let (mut course, mut heard, mut accepted) = (Course::default(), Instant::now(), false);
    let mut news = None;
    loop {
        let before = *known.borrow();
        let mut begun = false;
        let status = match attempt(&endpoints[0], &ask, &mut course, &mut begun, &mut accepted, &mut news, &known).await {
            Ok(()) => return Ok(course),
            Err(status) => status,
        };
        if *known.borrow() > before {
            heard = Instant::now();
        }
        if status.code() != Code::Unavailable && std::error::Error::source(&status).is_none() {
            return Err(format!("{}: {status:?}", ask.id()));
        }
        if heard.elapsed() > PATIENCE {
            return Err(format!("{}: no news for {PATIENCE:?}; last: {status:?}", ask.id()));
        }
        course.resumed += u32::from(begun);
        match status.metadata().get(LEADER).and_then(|leader| leader.to_str().ok()).map(str::to_owned) {
            Some(leader) => {
                endpoints.retain(|known| *known != leader);
                endpoints.insert(0, leader);
            }
            None => endpoints.rotate_left(1),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What was known is void, once.
fn begins_again(course: &mut Course, known: &watch::Sender<u32>, count: u32) {
    if count > std::mem::replace(&mut course.restarted, count) {
        known.send_replace(0);
    }
}

#[allow(clippy::too_many_arguments)]
async fn attempt(
    endpoint: &str,
    ask: &Ask,
    course: &mut Course,
    begun: &mut bool,
    accepted: &mut bool,
    news: &mut Option<Instant>,
    known: &watch::Sender<u32>,
) -> Result<(), Status> {
    let unconnected = |error: janus_wire::Error| Status::unavailable(error.to_string());
    let mut client = client(janus_wire::connect(endpoint, &Security::Plain).await.map_err(unconnected)?);
    let mut events = ask.clone().begin(&mut client).await?;
    let mut answer = Answer::default();
    let mut tokens = 0;
    loop {
        let ended = || Status::unavailable("the stream ended before the answer was complete");
        let mut accept = |durable: bool, course: &mut Course| {
            *begun = true;
            if !*accepted {
                (course.durable, *accepted) = (durable, true);
            }
        };
        let mut more = |ids: u32, course: &mut Course| {
            if known.send_if_modified(|known| ids > std::mem::replace(known, ids.max(*known))) {
                let silence = news.replace(Instant::now()).map_or(Duration::ZERO, |before| before.elapsed());
                course.silence = course.silence.max(silence);
            }
        };
        match &mut events {
            Events::Paint(events) => match events.message().await?.ok_or_else(ended)?.event {
                Some(generate_image_event::Event::Accepted(a)) => accept(a.durable, course),
                Some(generate_image_event::Event::Started(started)) => answer.prompt = started.prompt_tokens,
                Some(generate_image_event::Event::Progress(p)) if p.index == 0 => more(p.known, course),
                Some(generate_image_event::Event::Resumed(r)) => course.resumed = course.resumed.max(r.count),
                Some(generate_image_event::Event::Restarted(r)) => begins_again(course, known, r.count),
                Some(generate_image_event::Event::Image(image)) => {
                    let most = answer.tokens.len().max(image.index as usize + 1);
                    answer.tokens.resize(most, Vec::new());
                    answer.sha256.resize(most, Vec::new());
                    answer.rgb.resize(most, Vec::new());
                    let at = image.index as usize;
                    (answer.tokens[at], answer.sha256[at]) = (image.tokens, image.sha256.to_vec());
                    answer.rgb[at] = image.rgb.to_vec();
                }
                Some(generate_image_event::Event::Done(done)) => {
                    answer.numerics = done.numerics;
                    course.answer = answer;
                    return Ok(());
                }
                _ => {}
            },
            Events::Chat(events) => match events.message().await?.ok_or_else(ended)?.event {
                Some(chat_event::Event::Accepted(a)) => accept(a.durable, course),
                Some(chat_event::Event::Started(started)) => answer.prompt = started.prompt_tokens,
                Some(chat_event::Event::Token(_)) => {
                    tokens += 1;
                    more(tokens, course);
                }
                Some(chat_event::Event::Resumed(r)) => course.resumed = course.resumed.max(r.count),
                Some(chat_event::Event::Restarted(r)) => begins_again(course, known, r.count),
                Some(chat_event::Event::Done(done)) => {
                    answer.tokens = vec![done.tokens];
                    answer.text = done.text;
                    answer.numerics = done.done.unwrap_or_default().numerics;
                    course.answer = answer;
                    return Ok(());
                }
                _ => {}
            },
        }
    }
}
