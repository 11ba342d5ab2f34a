//! A coordinator that does what a test tells it.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use janus_wire::v1::inference_server::{Inference, InferenceServer};
use janus_wire::v1::{self, chat_event};
use janus_wire::{Listener, Security};
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// What becomes of the next chat.
pub enum Turn {
    /// It is refused.
    Refuse(Status),
    /// It says these pieces and is done.
    Say(&'static [&'static str]),
    /// It began again under other numerics, says these pieces and is done.
    Restart(&'static [&'static str]),
    /// It says these pieces, and then its stream breaks like this.
    Break(&'static [&'static str], Status),
    /// It says these pieces and nothing more, for as long as somebody listens.
    Hang(&'static [&'static str]),
}

/// A call as it came in.
#[derive(Debug, Clone)]
pub struct Call {
    pub authorization: Option<String>,
    pub request: v1::ChatRequest,
}

#[derive(Clone)]
pub struct Fake {
    turns: Arc<Mutex<VecDeque<Turn>>>,
    pub calls: Arc<Mutex<Vec<Call>>>,
    /// Callers that listen.
    listening: Arc<watch::Sender<usize>>,
    /// It says what it is to those alone who show a key.
    pub keyed: bool,
}

type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Fake {
    pub fn new(turns: impl IntoIterator<Item = Turn>) -> Fake {
        let turns = Arc::new(Mutex::new(turns.into_iter().collect()));
        Fake { turns, calls: Arc::default(), listening: Arc::new(watch::channel(0).0), keyed: false }
    }

    /// Serves; returns its address.
    pub async fn serve(&self) -> String {
        let listener = Listener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.address().to_string();
        let (health, service) = tonic_health::server::health_reporter();
        health.set_service_status("", tonic_health::ServingStatus::Serving).await;
        let mut server = janus_wire::server(&Security::Plain).unwrap();
        let router = server.add_service(InferenceServer::new(self.clone())).add_service(service);
        tokio::spawn(router.serve_with_incoming(listener.incoming()));
        address
    }

    /// Waits until so many callers listen.
    pub async fn heard_by(&self, count: usize) {
        let mut listening = self.listening.subscribe();
        listening.wait_for(|now| *now == count).await.unwrap();
    }
}

/// Somebody listens.
struct Listening(Arc<watch::Sender<usize>>);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

#[tonic::async_trait]
impl Inference for Fake {
    type GenerateImageStream = Events<v1::GenerateImageEvent>;
    type ChatStream = Events<v1::ChatEvent>;

    async fn generate_image(
        &self,
        _: Request<v1::GenerateImageRequest>,
    ) -> Result<Response<Self::GenerateImageStream>, Status> {
        panic!("nobody told this coordinator how to paint")
    }

    async fn chat(&self, request: Request<v1::ChatRequest>) -> Result<Response<Self::ChatStream>, Status> {
        let authorization = request.metadata().get("authorization").map(|value| value.to_str().unwrap().to_owned());
        self.calls.lock().unwrap().push(Call { authorization, request: request.into_inner() });
        let turn = self.turns.lock().unwrap().pop_front().expect("one call more than there are turns");
        let restarted = matches!(turn, Turn::Restart(_));
        let (pieces, end) = match turn {
            Turn::Refuse(status) => return Err(status),
            Turn::Say(pieces) | Turn::Restart(pieces) => (pieces, Some(Ok(()))),
            Turn::Break(pieces, status) => (pieces, Some(Err(status))),
            Turn::Hang(pieces) => (pieces, None),
        };
        let (out, events) = mpsc::channel(64);
        let event = |event| Ok(v1::ChatEvent { event: Some(event) });
        self.listening.send_modify(|count| *count += 1);
        let listening = Listening(self.listening.clone());
        tokio::spawn(async move {
            let _listening = listening;
            let _ = out.send(event(chat_event::Event::Accepted(v1::Accepted { durable: true }))).await;
            if restarted {
                let restarted = v1::Restarted { count: 1, numerics: "another".to_owned() };
                let _ = out.send(event(chat_event::Event::Restarted(restarted))).await;
            }
            for (id, text) in (0..).zip(pieces) {
                let token = v1::ChatToken { id, text: (*text).to_owned() };
                let _ = out.send(event(chat_event::Event::Token(token))).await;
            }
            let last = match end {
                None => return out.closed().await,
                Some(Err(status)) => Err(status),
                Some(Ok(())) => {
                    let usage = Some(v1::Usage { input_tokens: 3, output_tokens: pieces.len() as u64 });
                    let numerics = if restarted { "another" } else { "fake" }.to_owned();
                    let done = Some(v1::Done { numerics, usage });
                    let (tokens, text) = ((0..pieces.len() as u32).collect(), pieces.concat());
                    let finish_reason = v1::FinishReason::Stop.into();
                    event(chat_event::Event::Done(v1::ChatDone { tokens, text, finish_reason, done }))
                }
            };
            let _ = out.send(last).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(events))))
    }

    async fn tokenize(&self, _: Request<v1::TokenizeRequest>) -> Result<Response<v1::TokenizeResponse>, Status> {
        Err(Status::unimplemented("tokenize"))
    }

    async fn detokenize(&self, _: Request<v1::DetokenizeRequest>) -> Result<Response<v1::DetokenizeResponse>, Status> {
        Err(Status::unimplemented("detokenize"))
    }

    async fn cancel(&self, _: Request<v1::CancelRequest>) -> Result<Response<v1::CancelResponse>, Status> {
        Err(Status::unimplemented("cancel"))
    }

    async fn describe(
        &self,
        request: Request<v1::DescribeModelRequest>,
    ) -> Result<Response<v1::DescribeModelResponse>, Status> {
        if self.keyed && !request.metadata().contains_key("authorization") {
            return Err(Status::unauthenticated("which key?"));
        }
        let (model, numerics) = ("fake".to_owned(), "fake".to_owned());
        Ok(Response::new(v1::DescribeModelResponse { model, numerics, image_size: 64, grid: 8, ..Default::default() }))
    }
}
