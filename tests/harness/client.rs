//! A client of the public protocol.
#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use janus_wire::MAX_CLIENT_MESSAGE;
use janus_wire::v1::inference_client::InferenceClient;
use janus_wire::v1::{self, *};
use tonic::transport::Channel;
use tonic::{Status, Streaming};

pub type Client = InferenceClient<Channel>;

pub fn client(channel: Channel) -> Client {
    InferenceClient::new(channel).max_decoding_message_size(MAX_CLIENT_MESSAGE).max_encoding_message_size(MAX_CLIENT_MESSAGE)
}

/// No answer in these tests takes longer.
pub async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work).await.unwrap()
}

/// A header with an id of its own.
pub fn header() -> Option<RequestHeader> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let request_id = format!("test-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    Some(RequestHeader { request_id, ..RequestHeader::default() })
}

pub fn picture(data: Vec<u8>) -> v1::Image {
    v1::Image { data: data.into(), ..v1::Image::default() }
}

/// A seeded sequence of numbers (SplitMix64).
pub struct Numbers(pub u64);

impl Numbers {
    /// The next one below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

/// Either kind of request.
#[derive(Debug, Clone)]
pub enum Ask {
    Paint(GenerateImageRequest),
    Chat(ChatRequest),
}

/// Everything an answer must repeat bit by bit.
#[derive(Clone, Default, PartialEq)]
pub struct Answer {
    pub prompt: Vec<u32>,
    /// Ids of each picture, or of the text.
    pub tokens: Vec<Vec<u32>>,
    pub sha256: Vec<Vec<u8>>,
    pub rgb: Vec<Vec<u8>>,
    pub text: String,
    pub numerics: String,
}

/// Without pixels, which nobody can read; their sums tell pictures apart.
impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sums: Vec<u64> =
            self.rgb.iter().map(|rgb| rgb.iter().zip(1_u64..).map(|(byte, at)| u64::from(*byte) * at).sum()).collect();
        write!(
            f,
            "prompt {:?} tokens {:?} pixels {sums:?} text {:?} by {}",
            self.prompt, self.tokens, self.text, self.numerics
        )
    }
}

/// A stream of either kind.
pub enum Events {
    Paint(Streaming<GenerateImageEvent>),
    Chat(Streaming<ChatEvent>),
}

impl Ask {
    /// The same request under a new id.
    pub fn again(&self) -> Ask {
        let mut copy = self.clone();
        match &mut copy {
            Ask::Paint(request) => request.header = header(),
            Ask::Chat(request) => request.header = header(),
        }
        copy
    }

    pub fn id(&self) -> String {
        let header = match self {
            Ask::Paint(request) => &request.header,
            Ask::Chat(request) => &request.header,
        };
        header.as_ref().unwrap().request_id.clone()
    }

    pub async fn begin(self, client: &mut Client) -> Result<Events, Status> {
        Ok(match self {
            Ask::Paint(request) => Events::Paint(client.generate_image(request).await?.into_inner()),
            Ask::Chat(request) => Events::Chat(client.chat(request).await?.into_inner()),
        })
    }

    /// The whole answer; `on_event` hears of everything that comes.
    pub async fn answer(self, client: &mut Client, mut on_event: impl FnMut()) -> Result<Answer, Status> {
        let mut events = soon(self.begin(client)).await?;
        let mut answer = Answer::default();
        while soon(events.next(&mut answer)).await? {
            on_event();
        }
        Ok(answer)
    }
}

impl Events {
    /// Takes one event in; false at the end, which must be a proper one.
    pub async fn next(&mut self, answer: &mut Answer) -> Result<bool, Status> {
        match self {
            Events::Paint(events) => match events.message().await?.and_then(|e| e.event) {
                Some(generate_image_event::Event::Started(started)) => answer.prompt = started.prompt_tokens,
                Some(generate_image_event::Event::Image(image)) => {
                    let at = image.index as usize;
                    let most = answer.tokens.len().max(at + 1);
                    answer.tokens.resize(most, Vec::new());
                    answer.sha256.resize(most, Vec::new());
                    answer.rgb.resize(most, Vec::new());
                    assert!(answer.tokens[at].is_empty(), "picture {at} came twice");
                    answer.tokens[at] = image.tokens;
                    answer.sha256[at] = image.sha256.to_vec();
                    assert_eq!(image.rgb.len() as u32, 3 * image.width * image.height);
                    answer.rgb[at] = image.rgb.to_vec();
                }
                Some(generate_image_event::Event::Done(done)) => answer.numerics = done.numerics,
                Some(_) => {}
                None => {
                    assert_ne!(answer.numerics, "", "it ended before it was done");
                    return Ok(false);
                }
            },
            Events::Chat(events) => match events.message().await?.and_then(|e| e.event) {
                Some(chat_event::Event::Started(started)) => answer.prompt = started.prompt_tokens,
                Some(chat_event::Event::Done(done)) => {
                    answer.tokens = vec![done.tokens];
                    answer.text = done.text;
                    answer.numerics = done.done.unwrap().numerics;
                }
                Some(_) => {}
                None => {
                    assert_ne!(answer.numerics, "", "it ended before it was done");
                    return Ok(false);
                }
            },
        }
        Ok(true)
    }
}

/// A picture of `prompt`.
pub fn paint(prompt: &str) -> GenerateImageRequest {
    GenerateImageRequest { header: header(), prompt: prompt.to_owned(), n: 1, ..GenerateImageRequest::default() }
}

/// A question about pictures, or without any.
pub fn chat(question: &str, pictures: &[Vec<u8>], max_tokens: u32) -> ChatRequest {
    let image = |data: &Vec<u8>| Part { part: Some(part::Part::Image(picture(data.clone()))) };
    let mut parts: Vec<Part> = pictures.iter().map(image).collect();
    parts.push(Part { part: Some(part::Part::Text(question.to_owned())) });
    let messages = vec![Message { role: "user".to_owned(), parts }];
    ChatRequest { header: header(), messages, max_tokens: Some(max_tokens), ..ChatRequest::default() }
}
