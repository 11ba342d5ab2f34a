//! A watch as its reader sees it.

use async_trait::async_trait;
use tokio::sync::watch;

use super::Event;

/// Events a watch keeps for a slow reader; when there are more, they are dropped and a snapshot takes their place.
pub(super) const BUFFERED_EVENTS: usize = 1024;

/// Where a watch's events come from. `next` must be safe to cancel.
#[async_trait]
pub(super) trait Source: Send {
    async fn next(&mut self) -> Event;
}

/// Events below a prefix, in order, without gaps: a gap shows as a new [`Event::Snapshot`]. Never ends by itself.
pub struct Watch {
    source: Box<dyn Source>,
    away: watch::Receiver<Option<String>>,
}

impl Watch {
    pub(super) fn new(source: impl Source + 'static, away: watch::Receiver<Option<String>>) -> Watch {
        Watch { source: Box::new(source), away }
    }

    /// The next event. Safe to cancel: no event is lost.
    pub async fn next(&mut self) -> Event {
        self.source.next().await
    }

    /// Why the store cannot be heard at present; `None` while all is well.
    pub fn away(&self) -> watch::Receiver<Option<String>> {
        self.away.clone()
    }
}
