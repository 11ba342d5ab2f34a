//! How events reach a caller: at its own pace, until its deadline, and not for ever if it does not read.

use janus_wire::limits::UNREAD;
use tokio_stream::StreamExt;
use tokio_stream::adapters::Chain;
use tokio_stream::wrappers::ReceiverStream;

use super::*;

/// Events that wait for a slow reader; its task waits then, nobody else.
const EVENTS: usize = 16;
/// How often a reader is looked at.
const LOOK: Duration = Duration::from_secs(10);

/// What was sent, and then the error that ended it, if one did.
pub(super) type Events<T> = Chain<ReceiverStream<Result<T, Status>>, ReceiverStream<Result<T, Status>>>;

/// Waits until the deadline, or for ever.
async fn deadline(left: Option<Duration>) -> Status {
    match left {
        Some(left) => {
            tokio::time::sleep(left).await;
            Status::deadline_exceeded("the deadline passed before the answer was complete")
        }
        None => std::future::pending().await,
    }
}

/// The outcome of `work`, unless the deadline comes first.
pub(super) async fn within<T>(left: Option<Duration>, work: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    tokio::select! {
        biased;
        outcome = work => outcome,
        status = deadline(left) => Err(status),
    }
}

/// Runs a reader's task: events until the end, an error, the deadline, or until nobody listens.
pub(super) fn stream<T, F>(
    over: CancellationToken,
    place: Arc<()>,
    left: Option<Duration>,
    run: impl FnOnce(mpsc::Sender<Result<T, Status>>) -> F,
) -> Response<Events<T>>
where
    T: Send + 'static,
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    let (events, stream) = mpsc::channel(EVENTS);
    // An end has its own place: it must not wait for a reader who takes nothing.
    let (last, ending) = mpsc::channel(1);
    let task = run(events.clone());
    let follow = async move {
        let end = tokio::select! {
            biased;
            end = task => end,
            status = deadline(left) => Err(status),
            () = over.cancelled() => Err(status::unavailable("this coordinator does not lead any more", RETRY)),
            () = events.closed() => Ok(()),
            status = unread(&events) => Err(status),
        };
        if let Err(status) = end {
            let _ = last.try_send(Err(status));
        }
        drop(place);
    };
    tokio::spawn(follow.in_current_span());
    Response::new(ReceiverStream::new(stream).chain(ReceiverStream::new(ending)))
}

/// Waits until a reader has taken nothing for too long, although there is something.
async fn unread<T>(events: &mpsc::Sender<T>) -> Status {
    loop {
        // The place of the next event: whoever reads makes one.
        match tokio::time::timeout(UNREAD, events.reserve()).await {
            Ok(place) => drop(place),
            Err(_) => {
                let text = format!("nothing of the answer was read for {} s", UNREAD.as_secs());
                return Status::deadline_exceeded(text);
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The answer to a send to somebody who is gone: the task ends without an error of its own.
pub(super) fn gone<E>(_: E) -> Status {
    Status::cancelled("the caller is gone")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn a_reader_who_takes_nothing_is_cut_and_one_who_is_slow_is_not() {
        let begun = Instant::now();
        for (pause, read) in [(2 * UNREAD, EVENTS), (UNREAD / 4, 3 * EVENTS)] {
            let place = Arc::new(());
            let held = Arc::downgrade(&place);
            let send = |out: mpsc::Sender<Result<usize, Status>>| async move {
                for event in 0..3 * EVENTS {
                    out.send(Ok(event)).await.map_err(gone)?;
                }
                Ok(())
            };
            let mut events = stream(CancellationToken::new(), place, None, send).into_inner();
            let mut taken = 0;
            let end = loop {
                tokio::time::sleep(pause).await;
                // The task is over although nobody has read what it sent.
                assert!(pause < UNREAD || held.upgrade().is_none());
                match events.next().await {
                    Some(Ok(event)) => {
                        assert_eq!(event, taken);
                        taken += 1;
                    }
                    end => break end,
                }
            };
            assert_eq!(taken, read, "after {:?}", begun.elapsed());
            assert_eq!(end.is_some_and(|end| end.unwrap_err().code() == tonic::Code::DeadlineExceeded), pause > UNREAD);
        }
    }
}
