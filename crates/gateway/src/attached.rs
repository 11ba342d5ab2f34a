//! Requests that outlive the coordinator they were sent to: whoever leads next is asked for the same request id, and what
//! was heard before is not passed on again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::BoxFuture;
use janus_wire::MAX_CLIENT_MESSAGE;
use janus_wire::client::{self, Lead};
use janus_wire::v1::inference_client::InferenceClient;
use janus_wire::v1::{self, chat_event, generate_image_event};
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Response, Status, Streaming};

use crate::body::Room;
use crate::{Asker, Gateway};

/// How long a request that nobody has admitted yet looks for a coordinator.
const FIRST: Duration = Duration::from_secs(10);
/// How long an admitted one may go without news, while its cluster recovers.
const PATIENCE: Duration = Duration::from_secs(120);

/// A client of `channel` that takes pictures.
pub(crate) fn inference(channel: Channel) -> InferenceClient<Channel> {
    InferenceClient::new(channel).max_decoding_message_size(MAX_CLIENT_MESSAGE).max_encoding_message_size(MAX_CLIENT_MESSAGE)
}

/// The answer to an opening call.
pub(crate) type Opened<E> = BoxFuture<'static, Result<Response<Streaming<E>>, Status>>;

/// A request and its events so far. Dropping it cancels the request.
pub(crate) struct Attached<R, E> {
    gateway: Gateway,
    asker: Asker,
    /// As it is sent to the next coordinator.
    pub(crate) request: R,
    open: fn(Channel, tonic::Request<R>) -> Opened<E>,
    events: Option<(Lead, Streaming<E>)>,
    admitted: bool,
    heard: Instant,
    _room: Room,
}

impl<R: Clone, E> Attached<R, E> {
    /// Begins when it is first asked for something.
    pub(crate) fn new(
        gateway: Gateway,
        asker: Asker,
        request: R,
        room: Room,
        open: fn(Channel, tonic::Request<R>) -> Opened<E>,
    ) -> Self {
        Attached { gateway, asker, request, open, events: None, admitted: false, heard: Instant::now(), _room: room }
    }

    /// Asks whoever leads, until somebody does. True if the events begin again.
    pub(crate) async fn open(&mut self) -> Result<bool, Status> {
        let mut opened = false;
        while self.events.is_none() {
            let lead = match self.gateway.coordinators().lead().await {
                Ok(lead) => lead,
                Err(status) => {
                    self.wait(status).await?;
                    continue;
                }
            };
            match (self.open)(lead.channel.clone(), self.asker.request(self.request.clone())).await {
                Ok(events) => {
                    self.events = Some((lead, events.into_inner()));
                    self.admitted = true;
                    opened = true;
                }
                Err(status) if client::is_lost(&status) => {
                    self.gateway.coordinators().lost(&lead, &status).await;
                    self.wait(status).await?;
                }
                Err(status) => return Err(status),
            }
        }
        Ok(opened)
    }

    /// The next event, and whether it is the first one (again); an end is a loss.
    async fn event(&mut self) -> Result<(bool, E), Status> {
        loop {
            if let (first, Some(event)) = self.event_or_end().await? {
                return Ok((first, event));
            }
            let early = Status::unavailable("the coordinator ended the stream too early");
            if let Some((lead, _)) = self.events.take() {
                self.gateway.coordinators().lost(&lead, &early).await;
            }
            self.wait(early).await?;
        }
    }

    /// The next event or the end of all, and whether the events began (again).
    pub(crate) async fn event_or_end(&mut self) -> Result<(bool, Option<E>), Status> {
        let mut first = false;
        loop {
            first |= self.open().await?;
            let Some((lead, events)) = &mut self.events else { continue };
            let status = match events.message().await {
                Ok(event) => return Ok((first, event)),
                Err(status) if client::is_lost(&status) => status,
                Err(status) => return Err(status),
            };
            tracing::info!(
                request = self.asker.id(),
                error = status.message(),
                "the coordinator is lost; looking for its successor"
            );
            self.gateway.coordinators().lost(lead, &status).await;
            self.events = None;
            self.wait(status).await?;
        }
    }

    /// News: patience begins again.
    pub(crate) fn news(&mut self) {
        self.heard = Instant::now();
    }

    /// A pause before the next attempt, unless it has been too long.
    async fn wait(&self, status: Status) -> Result<(), Status> {
        let patience = if self.admitted { PATIENCE } else { FIRST };
        match self.heard.elapsed() + client::PAUSE > patience {
            true => Err(status),
            false => {
                tokio::time::sleep(client::PAUSE).await;
                Ok(())
            }
        }
    }
}

/// Pictures on their way.
pub(crate) struct Painting {
    attached: Attached<v1::GenerateImageRequest, v1::GenerateImageEvent>,
    /// Ids of the prompt, once they are known.
    pub(crate) prompt: u64,
    resumed: u32,
    restarted: u32,
    known: BTreeMap<u32, u32>,
    partials: BTreeSet<(u32, u32)>,
    images: BTreeSet<u32>,
}

/// What happens to pictures; everything once.
pub(crate) enum Painted {
    /// So many units are before it.
    Queued(u32),
    /// It went on after a loss, so many times by now.
    Resumed(u32),
    /// It began again under other numerics: everything before is void, finished pictures too.
    Restarted(u32),
    Progress(v1::ImageProgress),
    Partial(v1::ImagePartial),
    Image(v1::ImageDone),
    Done(v1::Done),
}

impl Painting {
    /// Begins when it is first asked for something.
    pub(crate) fn new(gateway: Gateway, asker: Asker, request: v1::GenerateImageRequest, room: Room) -> Self {
        let open =
            |channel, request| -> Opened<_> { Box::pin(async move { inference(channel).generate_image(request).await }) };
        let attached = Attached::new(gateway, asker, request, room, open);
        Painting {
            attached,
            prompt: 0,
            resumed: 0,
            restarted: 0,
            known: BTreeMap::new(),
            partials: BTreeSet::new(),
            images: BTreeSet::new(),
        }
    }

    /// Waits until the request is admitted, or refused.
    pub(crate) async fn begin(&mut self) -> Result<(), Status> {
        self.attached.open().await.map(drop)
    }

    /// What happens next; `Done` is the last.
    pub(crate) async fn next(&mut self) -> Result<Painted, Status> {
        use generate_image_event::Event;
        loop {
            let (_, event) = self.attached.event().await?;
            match event.event {
                Some(Event::Started(started)) => self.prompt = started.prompt_tokens.len() as u64,
                Some(Event::Progress(mut progress)) => {
                    let known = self.known.entry(progress.index).or_default();
                    if progress.known > *known {
                        // Ids end at the last known one; some of them may have been heard from a predecessor.
                        let new = (progress.known - *known) as usize;
                        progress.ids.drain(..progress.ids.len().saturating_sub(new));
                        *known = progress.known;
                        self.attached.news();
                        return Ok(Painted::Progress(progress));
                    }
                }
                Some(Event::Partial(partial)) => {
                    if self.partials.insert((partial.index, partial.partial)) {
                        return Ok(Painted::Partial(partial));
                    }
                }
                Some(Event::Image(image)) => {
                    if self.images.insert(image.index) {
                        self.attached.news();
                        return Ok(Painted::Image(image));
                    }
                }
                Some(Event::Done(done)) => return Ok(Painted::Done(done)),
                Some(Event::Queued(queued)) => return Ok(Painted::Queued(queued.position)),
                Some(Event::Resumed(resumed)) => {
                    if resumed.count > self.resumed {
                        self.resumed = resumed.count;
                        return Ok(Painted::Resumed(resumed.count));
                    }
                }
                Some(Event::Restarted(restarted)) => {
                    if restarted.count > self.restarted {
                        self.restarted = restarted.count;
                        self.known.clear();
                        self.partials.clear();
                        self.images.clear();
                        self.attached.news();
                        return Ok(Painted::Restarted(restarted.count));
                    }
                }
                Some(Event::Accepted(_)) | None => {}
            }
        }
    }
}

/// An answer on its way.
pub(crate) struct Answering {
    attached: Attached<v1::ChatRequest, v1::ChatEvent>,
    /// Bytes of the answer that were passed on...
    passed: usize,
    /// ...and where the present coordinator's events are.
    at: usize,
    restarted: u32,
}

/// What happens to an answer; everything once.
pub(crate) enum Answered {
    Text(String),
    /// It began again under other numerics after text had been passed on: that is void.
    Restarted,
    /// With the text that was held back until now.
    Done(v1::ChatDone, String),
}

impl Answering {
    /// Begins when it is first asked for something.
    pub(crate) fn new(gateway: Gateway, asker: Asker, request: v1::ChatRequest, room: Room) -> Self {
        let open = |channel, request| -> Opened<_> { Box::pin(async move { inference(channel).chat(request).await }) };
        Answering { attached: Attached::new(gateway, asker, request, room, open), passed: 0, at: 0, restarted: 0 }
    }

    /// Waits until the request is admitted, or refused.
    pub(crate) async fn begin(&mut self) -> Result<(), Status> {
        self.attached.open().await.map(drop)
    }

    /// What happens next; `Done` is the last.
    pub(crate) async fn next(&mut self) -> Result<Answered, Status> {
        loop {
            let (first, event) = self.attached.event().await?;
            if first {
                self.at = 0;
            }
            match event.event {
                Some(chat_event::Event::Token(token)) => {
                    let from = self.at;
                    self.at += token.text.len();
                    if self.at > self.passed {
                        // The same bits come again, so a cut within a piece is a cut between characters.
                        let new = token.text.get(self.passed.saturating_sub(from)..).unwrap_or_default().to_owned();
                        self.passed = self.at;
                        self.attached.news();
                        return Ok(Answered::Text(new));
                    }
                }
                Some(chat_event::Event::Done(done)) => {
                    let rest = done.text.get(self.passed..).unwrap_or_default().to_owned();
                    return Ok(Answered::Done(done, rest));
                }
                Some(chat_event::Event::Restarted(restarted)) => {
                    if restarted.count > self.restarted {
                        self.restarted = restarted.count;
                        self.attached.news();
                        if std::mem::take(&mut self.passed) > 0 {
                            return Ok(Answered::Restarted);
                        }
                    }
                }
                Some(
                    chat_event::Event::Accepted(_)
                    | chat_event::Event::Queued(_)
                    | chat_event::Event::Started(_)
                    | chat_event::Event::Resumed(_),
                )
                | None => {}
            }
        }
    }
}
