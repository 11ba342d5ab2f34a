//! How long a frame takes from one node to the next over the real link on loopback: sealed, sent, received, opened, its
//! rows read. `cargo bench --bench hop`.
#![allow(clippy::unwrap_used)]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use janus_benches::{ToyStage, bound, encrypted, head, identity, node, row, serve_by};
use janus_wire::v1::stage_client::StageClient;
use janus_wire::v1::{FrameBody, LinkMessage, Mode, Role, Unit, link_message};
use janus_wire::{MAX_NODE_MESSAGE, Security, frame};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Of Janus-Pro-1B.
const HIDDEN: usize = 2048;
/// Frames of each size.
const FRAMES: u64 = 2000;
/// Both nodes are idle this long between two frames, as they are while others compute.
const IDLE: Duration = Duration::from_millis(1);

fn main() -> ExitCode {
    head("one hop, idle for 1 ms between frames");
    let plain = hops("", &Security::Plain);
    let encrypted = hops("TLS: ", &encrypted());
    if plain && encrypted { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether the bounds hold.
fn hops(how: &str, security: &Security) -> bool {
    let (sender, receiver) = (node("sender", 2), node("receiver", 2));
    let (stage, mut arrived) = ToyStage::new(24, Duration::ZERO);
    let address = serve_by(security, &receiver, |server| server.add_service(stage.clone().server()));
    let frames = sender.block_on(async {
        let channel = janus_wire::connect(&address, security).await.unwrap();
        let (frames, stream) = mpsc::channel(4);
        let hello = identity().hello(Role::Stage, 1, 1, 0..24);
        frames.send(LinkMessage { message: Some(link_message::Message::Hello(hello)) }).await.unwrap();
        let mut client = StageClient::new(channel).max_encoding_message_size(MAX_NODE_MESSAGE);
        let mut answers = client.link(ReceiverStream::new(stream)).await.unwrap().into_inner();
        answers.message().await.unwrap().unwrap();
        // Kept with the frames: a dropped answer would end the link.
        (frames, answers)
    });

    let mut holds = true;
    let mut sequence = 0;
    for (what, rows) in
        [("ids of a step, no rows", 0), ("2 rows: one pair", 2), ("16 rows: eight pairs", 16), ("64 rows: prefill", 64)]
    {
        let activations = vec![0.5_f32; rows * HIDDEN];
        let mut sent = Vec::new();
        sender.block_on(async {
            for _ in 0..FRAMES {
                tokio::time::sleep(IDLE).await;
                let unit = Unit { mode: Mode::Prefill.into(), positions: rows as u32, ..Unit::default() };
                let body = FrameBody { pipeline: 1, epoch: 1, sequence, units: vec![unit; 8], ..FrameBody::default() };
                sent.push((sequence, Instant::now()));
                sequence += 1;
                let sealed = frame::seal(&body, frame::to_bytes(&activations));
                frames.0.send(LinkMessage { message: Some(link_message::Message::Frame(sealed)) }).await.unwrap();
                arrived.recv().await.unwrap();
            }
        });
        let seen = stage.take();
        let mut hops: Vec<Duration> = sent.iter().skip(100).map(|(number, at)| seen.arrivals[number] - *at).collect();
        let what = format!("{how}{what} ({} KiB)", 4 * rows * HIDDEN / 1024);
        let p99 = row(&what, &mut hops);
        holds &= rows > 16 || bound("hop", p99, Duration::from_micros(300), Duration::from_millis(1));
    }
    holds
}
