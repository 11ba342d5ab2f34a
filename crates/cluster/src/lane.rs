//! A thread with a runtime of its own, for work that must go on while everything else computes.

use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;

use crate::Error;

/// How long an orderly end may take.
const GRACE: Duration = Duration::from_secs(5);

/// What the owner wants; the worker's end of a [`Lane`].
#[derive(Clone)]
pub(crate) struct Orders {
    leave: watch::Receiver<bool>,
}

/// How the work is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// In order: take back what is in the store.
    Leave,
    /// At once, as if the process had died.
    Abandon,
}

impl Orders {
    /// Waits for the end.
    pub(crate) async fn ending(&mut self) -> Ending {
        match self.leave.wait_for(|leave| *leave).await {
            Ok(_) => Ending::Leave,
            Err(_) => Ending::Abandon,
        }
    }
}

/// The owner's end. Dropping it abandons the work.
pub(crate) struct Lane {
    leave: watch::Sender<bool>,
    /// Closed when the work has ended.
    ended: watch::Receiver<()>,
}

impl Lane {
    /// The owner's end, and the work with the worker's end in it. Nothing runs yet.
    pub(crate) fn new<F, Fut>(work: F) -> (Lane, impl Future<Output = ()> + Send + 'static)
    where
        F: FnOnce(Orders) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let (leave, orders) = watch::channel(false);
        let (running, ended) = watch::channel(());
        let work = work(Orders { leave: orders });
        let work = async move {
            work.await;
            drop(running);
        };
        (Lane { leave, ended }, work)
    }

    /// Asks for an orderly end and waits for it, a few seconds at most.
    pub(crate) async fn leave(mut self) {
        self.leave.send_replace(true);
        let ended = async { while self.ended.changed().await.is_ok() {} };
        let _ = tokio::time::timeout(GRACE, ended).await;
    }
}

/// Runs `work` on a new thread with a runtime for it alone.
pub(crate) fn on_own_thread(name: &str, work: impl Future<Output = ()> + Send + 'static) -> Result<(), Error> {
    let failed = |error: std::io::Error| Error::System { what: "starting a thread", reason: error.to_string() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    std::thread::Builder::new().name(name.to_owned()).spawn(move || runtime.block_on(work)).map_err(failed)?;
    Ok(())
}
