//! A lease that is renewed, and granted anew when it is gone.

use std::time::Duration;

use crate::{Error, LeaseId, Store};

/// The lease of one record.
pub(crate) struct Lease {
    ttl: Duration,
    id: Option<LeaseId>,
}

impl Lease {
    /// None is granted yet.
    pub(crate) fn new(ttl: Duration) -> Self {
        Lease { ttl, id: None }
    }

    /// Its number, if it was granted and is not known to be gone.
    pub(crate) fn id(&self) -> Option<LeaseId> {
        self.id
    }

    /// It is gone, and its keys with it.
    pub(crate) fn gone(&mut self) {
        self.id = None;
    }

    /// A lease that lives now: the one there is, renewed, or a new one.
    pub(crate) async fn living(&mut self, store: &dyn Store) -> Result<LeaseId, Error> {
        if let Some(lease) = self.id {
            match store.keep_alive(lease).await {
                Ok(_) => return Ok(lease),
                Err(Error::LeaseGone { .. }) => self.gone(),
                Err(error) => return Err(error),
            }
        }
        let lease = store.grant(self.ttl).await?;
        self.id = Some(lease);
        Ok(lease)
    }
}
