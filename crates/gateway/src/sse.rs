//! Server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use axum::http::StatusCode;
use axum::response::sse::{self, KeepAlive, Sse};
use futures_util::stream::{self, Stream};
use serde::Serialize;

use crate::Problem;

/// A stream without news says so this often: proxies keep it open, and a client that left is noticed.
const BEAT: Duration = Duration::from_secs(10);

/// An event.
pub(crate) struct Event(sse::Event);

impl Event {
    /// A named event.
    pub(crate) fn new(name: &str, data: &impl Serialize) -> Result<Self, Problem> {
        Event::of(sse::Event::default().event(name), data)
    }

    /// An event without a name, as those of chats.
    pub(crate) fn nameless(data: &impl Serialize) -> Result<Self, Problem> {
        Event::of(sse::Event::default(), data)
    }

    fn of(event: sse::Event, data: &impl Serialize) -> Result<Self, Problem> {
        let broken = |error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, format!("an event: {error}"));
        event.json_data(data).map(Event).map_err(broken)
    }

    /// An event of plain words.
    pub(crate) fn word(word: &str) -> Self {
        Event(sse::Event::default().data(word))
    }
}

/// A response of what `next` makes of its state, until it makes nothing; a problem is the last event. The client's leaving
/// drops the state.
pub(crate) fn stream<S, F>(
    state: S,
    next: impl Fn(S) -> F + Send + 'static,
) -> Sse<impl Stream<Item = Result<sse::Event, Infallible>> + Send>
where
    S: Send + 'static,
    F: Future<Output = Option<(Result<Event, Problem>, Option<S>)>> + Send + 'static,
{
    let events = stream::unfold(Some(state), move |state| {
        let coming = state.map(&next);
        async move {
            let (event, rest) = coming?.await?;
            let event = match event {
                Ok(event) => event,
                Err(problem) => Event::new("error", &problem.body()).unwrap_or_else(|_| Event::word("error")),
            };
            Some((Ok(event.0), rest))
        }
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(BEAT))
}
