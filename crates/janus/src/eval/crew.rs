//! Many requests at once: sessions to one cluster, each with a thread of its own, and results in the order they come.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

use crate::failure::{Failure, Outcome};
use crate::session::Session;

/// Does `work` on every item with up to `parallel` sessions. `done` hears of each result, on this thread. The first failure
/// ends it; what is under way then is finished.
pub(crate) fn each<T: Sync, R: Send>(
    session: &mut Session,
    parallel: usize,
    items: &[T],
    work: impl Fn(&mut Session, &T) -> Outcome<R> + Sync,
    mut done: impl FnMut(usize, R) -> Outcome,
) -> Outcome {
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let mut twins = (1..parallel.min(items.len())).map(|_| session.twin()).collect::<Outcome<Vec<_>>>()?;
    let (tell, told) = mpsc::sync_channel(parallel);
    let run = |session: &mut Session, tell: &mpsc::SyncSender<(usize, Outcome<R>)>| {
        while !stop.load(Ordering::Relaxed) {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(i) else { return };
            if tell.send((i, work(session, item))).is_err() {
                return;
            }
        }
    };
    std::thread::scope(|scope| {
        for session in twins.iter_mut().chain([session]) {
            let tell = tell.clone();
            let run = &run;
            scope.spawn(move || run(session, &tell));
        }
        drop(tell);
        let mut failed: Option<Failure> = None;
        for (i, result) in told {
            if let (Err(failure), None) = (result.and_then(|result| done(i, result)), &failed) {
                stop.store(true, Ordering::Relaxed);
                failed = Some(failure);
            }
        }
        failed.map_or(Ok(()), Err)
    })
}
