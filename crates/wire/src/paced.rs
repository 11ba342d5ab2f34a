//! Requests that are being sent and then are not: a caller who pauses too long in the middle of one is told so, and what he
//! holds is free again. For public servers; streams between nodes are silent for as long as there is no work.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Request;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Sleep;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use crate::limits::PAUSE_IN_REQUEST;

/// The layer of a public server.
#[derive(Debug, Clone, Copy)]
pub struct Pace;

impl<S> Layer<S> for Pace {
    type Service = Paced<S>;

    fn layer(&self, inner: S) -> Paced<S> {
        Paced(inner)
    }
}

/// A service whose requests come without long pauses.
#[derive(Debug, Clone)]
pub struct Paced<S>(S);

impl<S: Service<Request<Body>>> Service<Request<Body>> for Paced<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> S::Future {
        self.0.call(request.map(|body| Body::new(Patient { body, patience: None })))
    }
}

/// A body, and until when its next piece is waited for, while it is.
struct Patient {
    body: Body,
    patience: Option<Pin<Box<Sleep>>>,
}

impl HttpBody for Patient {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if let Poll::Ready(piece) = Pin::new(&mut this.body).poll_frame(context) {
            this.patience = None;
            return Poll::Ready(piece);
        }
        let patience = this.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(PAUSE_IN_REQUEST)));
        ready!(patience.as_mut().poll(context));
        let text = format!("nothing more of the request came for {} s", PAUSE_IN_REQUEST.as_secs());
        Poll::Ready(Some(Err(Status::deadline_exceeded(text))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::time::Duration;

    /// Pieces that come so long after each other.
    struct Drops(Duration, usize, Pin<Box<Sleep>>);

    impl HttpBody for Drops {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            let this = self.get_mut();
            if this.1 == 0 {
                return Poll::Ready(None);
            }
            ready!(this.2.as_mut().poll(context));
            this.2 = Box::pin(tokio::time::sleep(this.0));
            this.1 -= 1;
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"x")))))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_request_is_waited_for_and_one_that_stopped_is_not() {
        for (pause, comes) in [(PAUSE_IN_REQUEST / 2, 5), (2 * PAUSE_IN_REQUEST, 0)] {
            let drops = Drops(pause, 5, Box::pin(tokio::time::sleep(pause)));
            let mut body = Patient { body: Body::new(drops), patience: None };
            let mut came = 0;
            let end = loop {
                match poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
                    Some(Ok(_)) => came += 1,
                    end => break end,
                }
            };
            assert_eq!(came, comes);
            assert_eq!(end.is_some_and(|e| e.unwrap_err().message().contains("for 30 s")), comes == 0);
        }
    }
}
