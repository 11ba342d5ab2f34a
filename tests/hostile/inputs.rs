//! What a hostile caller sends to a method: bodies, headers and fields that are wrong in every way we could think of.

use std::time::Duration;

use axum::body::Body as Bytes;
use janus_wire::v1::{self, *};
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic::codegen::{Body as _, Service as _};
use tonic_prost::prost::Message;

use crate::client::{Numbers, header};
use crate::served::Served;

/// Every public method. What a single process does not serve has to say so.
pub const METHODS: [&str; 32] = [
    "janus.v1.Inference/GenerateImage",
    "janus.v1.Inference/Chat",
    "janus.v1.Inference/Tokenize",
    "janus.v1.Inference/Detokenize",
    "janus.v1.Inference/Cancel",
    "janus.v1.Inference/Describe",
    "janus.v1.Jobs/PutBlob",
    "janus.v1.Jobs/Create",
    "janus.v1.Jobs/Get",
    "janus.v1.Jobs/List",
    "janus.v1.Jobs/Cancel",
    "janus.v1.Jobs/Delete",
    "janus.v1.Jobs/Watch",
    "janus.v1.Jobs/Results",
    "janus.v1.Blobs/Get",
    "janus.v1.Blobs/Delete",
    "janus.v1.Files/Create",
    "janus.v1.Files/Get",
    "janus.v1.Files/List",
    "janus.v1.Files/Delete",
    "janus.v1.Tenants/Create",
    "janus.v1.Tenants/Update",
    "janus.v1.Tenants/List",
    "janus.v1.Tenants/Rotate",
    "janus.v1.Tenants/Revoke",
    "janus.v1.Tenants/Usage",
    "janus.v1.Tenants/Audit",
    "janus.v1.Cluster/Status",
    "janus.v1.Cluster/Drain",
    "janus.v1.Cluster/DescribeProblem",
    "grpc.health.v1.Health/Check",
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
];

/// Those that can be asked without saying anything, so that nonsense that nobody reads is no mistake.
pub const UNASKED: [&str; 10] = [
    "janus.v1.Inference/Describe",
    "janus.v1.Jobs/List",
    "janus.v1.Files/List",
    "janus.v1.Tenants/List",
    "janus.v1.Tenants/Usage",
    "janus.v1.Tenants/Audit",
    "janus.v1.Cluster/Status",
    "janus.v1.Cluster/DescribeProblem",
    "grpc.health.v1.Health/Check",
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
];

/// No answer takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// One call.
pub struct Input {
    pub what: &'static str,
    path: String,
    headers: HeaderMap,
    body: Vec<u8>,
}

/// What came of it.
#[derive(Debug)]
pub enum Answer {
    Ok,
    /// A status and its words.
    Status(i32, String),
    /// An answer that is not gRPC's.
    Http(u16),
    /// The call itself was refused: the connection or the stream ended.
    Refused(String),
}

impl Answer {
    pub fn kind(&self) -> String {
        match self {
            Answer::Ok => "ok".to_owned(),
            Answer::Status(code, _) => format!("{:?}", tonic::Code::from(*code)),
            Answer::Http(code) => format!("HTTP {code}"),
            Answer::Refused(_) => "reset".to_owned(),
        }
    }

    /// Whether somebody who did this by mistake learns what was wrong. What a method of no parameters is sent need not be.
    pub fn is_clear(&self, method: &str) -> bool {
        match self {
            Answer::Ok => UNASKED.contains(&method),
            Answer::Status(code, words) => {
                use tonic::Code::*;
                let code = tonic::Code::from(*code);
                let said = !words.is_empty() || code == Unimplemented;
                said && !matches!(code, Unknown | Cancelled | Unavailable | DataLoss) && !words.contains("panic")
            }
            Answer::Http(code) => (400..500).contains(code),
            Answer::Refused(words) => !words.is_empty(),
        }
    }
}

/// A message in gRPC's frame.
fn framed(message: &[u8]) -> Vec<u8> {
    [&[0], &(message.len() as u32).to_be_bytes()[..], message].concat()
}

fn noise(random: &mut Numbers, length: u64) -> Vec<u8> {
    (0..length).map(|_| random.below(256) as u8).collect()
}

/// A valid message of the method.
fn valid(method: &str) -> Vec<u8> {
    let image = || Some(v1::Image { data: vec![1, 2, 3].into(), ..v1::Image::default() });
    let messages = vec![v1::Message {
        role: "user".to_owned(),
        parts: vec![Part { part: Some(part::Part::Text("what?".to_owned())) }],
    }];
    match method {
        "janus.v1.Inference/GenerateImage" => {
            GenerateImageRequest { header: header(), prompt: "x".to_owned(), ..Default::default() }.encode_to_vec()
        }
        "janus.v1.Inference/Chat" => {
            ChatRequest { header: header(), messages, max_tokens: Some(1), ..Default::default() }.encode_to_vec()
        }
        "janus.v1.Inference/Tokenize" => TokenizeRequest { header: header(), image: image() }.encode_to_vec(),
        "janus.v1.Inference/Detokenize" => DetokenizeRequest { header: header(), tokens: vec![1, 2, 3] }.encode_to_vec(),
        "janus.v1.Inference/Cancel" => CancelRequest { request_id: "nobody".to_owned() }.encode_to_vec(),
        _ => Vec::new(),
    }
}

/// Fields that say impossible things.
fn absurd(method: &str, random: &mut Numbers) -> Vec<u8> {
    let number = [f32::NAN, f32::INFINITY, -1.0, f32::MAX][random.below(4) as usize];
    let wide = u32::MAX - random.below(3) as u32;
    match method {
        "janus.v1.Inference/GenerateImage" => {
            let mut request = GenerateImageRequest { header: header(), prompt: "x".to_owned(), ..Default::default() };
            match random.below(9) {
                7 => request.header.as_mut().unwrap().model = "m".repeat(1 << 20),
                8 => request.header.as_mut().unwrap().request_id = "r".repeat(1 << 20),
                0 => request.temperature = Some(if number == f32::MAX { f32::NAN } else { number }),
                1 => request.cfg_weight = Some(number),
                2 => request.n = wide,
                3 => request.top_p = Some(number),
                4 => request.prompt = "word ".repeat(300_000),
                5 => (request.keep_rows, request.init_image) = (wide, Some(v1::Image::default())),
                _ => (request.raw_prompt, request.prompt) = (true, String::new()),
            }
            request.encode_to_vec()
        }
        "janus.v1.Inference/Chat" => {
            let mut request = ChatRequest { header: header(), raw_prompt: "x".to_owned(), ..Default::default() };
            match random.below(6) {
                5 => {
                    let role = "r".repeat(1 << 20);
                    request.messages = vec![v1::Message { role, ..Default::default() }];
                }
                0 => request.temperature = Some(if number == f32::MAX { f32::NAN } else { number }),
                1 => request.stop = vec!["x".repeat(1000); 1000],
                2 => request.raw_prompt = "<image_placeholder>".repeat(1000),
                3 => request.raw_prompt = "word ".repeat(300_000),
                _ => request.raw_images = vec![v1::Image { data: noise(random, 64).into(), ..Default::default() }],
            }
            request.encode_to_vec()
        }
        "janus.v1.Inference/Tokenize" => {
            // A picture that begins well and claims to be enormous.
            let mut data = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
            data.extend(wide.to_be_bytes());
            data.extend(wide.to_be_bytes());
            data.extend(noise(random, 200));
            let image = v1::Image { data: data.into(), ..Default::default() };
            TokenizeRequest { header: header(), image: Some(image) }.encode_to_vec()
        }
        "janus.v1.Inference/Detokenize" => {
            let tokens = vec![wide; if random.below(2) == 0 { 64 } else { 1 << 20 }];
            DetokenizeRequest { header: header(), tokens }.encode_to_vec()
        }
        "janus.v1.Inference/Cancel" => CancelRequest { request_id: "x".repeat(1 << 20) }.encode_to_vec(),
        _ => noise(random, 100),
    }
}

/// Messages in messages, deeper than anybody reads.
fn nested(depth: usize) -> Vec<u8> {
    let mut inner: Vec<u8> = Vec::new();
    for _ in 0..depth {
        let mut outer = vec![0x0a];
        tonic_prost::prost::encode_length_delimiter(inner.len(), &mut outer).unwrap();
        outer.extend(inner);
        inner = outer;
    }
    inner
}

pub fn hostile(method: &str, i: usize, random: &mut Numbers) -> Input {
    let mut input = Input { what: "", path: format!("/{method}"), headers: HeaderMap::new(), body: Vec::new() };
    for (name, value) in [("content-type", "application/grpc"), ("te", "trailers")] {
        input.headers.insert(name, value.parse().unwrap());
    }
    let sound = valid(method);
    let (what, body) = match i % 15 {
        0 => ("random bytes", framed(&[&[0xff], &noise(random, 300)[..]].concat())),
        1 => ("a message that is cut off", framed(&[&sound[..sound.len() / 2], &[0x0a, 0x7f]].concat())),
        2 => ("a frame that is cut off", [&[0, 0, 0, 1, 0], &sound[..]].concat()),
        3 => ("a frame of four gigabytes", [&[0, 0xff, 0xff, 0xff, 0xff], &sound[..]].concat()),
        4 => ("a frame larger than allowed", [&[0, 5, 0, 0, 0], &vec![7; 64 << 10][..]].concat()),
        5 => ("compressed in no way", [&[1], &(sound.len() as u32).to_be_bytes()[..], &sound].concat()),
        6 => {
            input
                .headers
                .insert("grpc-encoding", ["gzip", "zstd", "deflate", "x"][random.below(4) as usize].parse().unwrap());
            ("compressed, as a bomb would be", [&[1, 0, 0, 4, 0], &noise(random, 1024)[..]].concat())
        }
        7 => ("text that is no UTF-8", framed(&[0x0a, 4, 0x0a, 2, 0xc3, 0x28, 0x12, 2, 0xff, 0xfe])),
        8 => ("fields of other types", framed(&[0x08, 1, 0x15, 0, 0, 0, 0, 0x19, 0, 0, 0, 0, 0, 0, 0, 0, 0x0d, 1, 2, 3, 4])),
        9 => ("messages within messages", framed(&nested(20_000))),
        10 => ("a flag that nobody knows", [&[7], &(sound.len() as u32).to_be_bytes()[..], &sound].concat()),
        11 => {
            for n in 0..1000 {
                let name: tonic::codegen::http::HeaderName = format!("x-flood-{n}").parse().unwrap();
                input.headers.insert(name, "y".repeat(100).parse().unwrap());
            }
            ("a thousand headers", framed(&sound))
        }
        12 => {
            input.headers.insert("content-type", "text/html".parse().unwrap());
            ("a web form", b"a=b&c=d".to_vec())
        }
        13 => {
            input.path = [format!("/{method}x"), format!("/x{method}"), "/janus.v1.Stage/Link".to_owned()]
                [random.below(3) as usize]
                .clone();
            ("a method that is not there", framed(&sound))
        }
        _ => ("absurd fields", framed(&absurd(method, random))),
    };
    (input.what, input.body) = (what, body);
    input
}

impl Input {
    /// Sends it on a connection of its own and listens to the end.
    pub async fn send(self, served: &Served) -> Answer {
        let call = async {
            let mut channel = served.channel().await;
            let mut request =
                Request::post(format!("http://x{}", self.path)).body(Body::new(Bytes::from(self.body))).unwrap();
            *request.headers_mut() = self.headers;
            std::future::poll_fn(|context| channel.poll_ready(context)).await.map_err(|e| e.to_string())?;
            let response = channel.call(request).await.map_err(|e| format!("{e}: {:?}", std::error::Error::source(&e)))?;
            listen(response).await
        };
        // Whatever it was, it is answered.
        match tokio::time::timeout(PATIENCE, call).await.unwrap() {
            Ok(answer) => answer,
            Err(words) => Answer::Refused(words),
        }
    }
}

async fn listen(response: Response<Body>) -> Result<Answer, String> {
    let (head, body) = response.into_parts();
    let said = |headers: &HeaderMap| {
        let code: i32 = headers.get("grpc-status")?.to_str().ok()?.parse().ok()?;
        let words = headers.get("grpc-message").and_then(|w| w.to_str().ok()).unwrap_or_default().to_owned();
        Some(if code == 0 { Answer::Ok } else { Answer::Status(code, words) })
    };
    if let Some(answer) = said(&head.headers) {
        return Ok(answer);
    }
    if head.status != 200 {
        return Ok(Answer::Http(head.status.as_u16()));
    }
    let mut body = std::pin::pin!(body);
    let mut last = None;
    while let Some(frame) = std::future::poll_fn(|context| body.as_mut().poll_frame(context)).await {
        let frame = frame.map_err(|e| e.to_string())?;
        last = frame.trailers_ref().and_then(said).or(last);
    }
    last.ok_or_else(|| "the answer had no status".to_owned())
}
