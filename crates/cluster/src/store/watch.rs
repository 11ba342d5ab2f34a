//! A watch as its reader sees it.

use tokio::sync::watch;

use super::Event;

/// Events below a prefix, in order, without gaps: a gap shows as a new [`Event::Snapshot`]. Never ends by itself.
pub struct Watch {
    away: watch::Receiver<Option<String>>,
}

impl Watch {
    /// The next event. Safe to cancel: no event is lost.
    pub async fn next(&mut self) -> Event {
        todo!()
    }

    /// Why the store cannot be heard at present; `None` while all is well.
    pub fn away(&self) -> watch::Receiver<Option<String>> {
        self.away.clone()
    }
}
