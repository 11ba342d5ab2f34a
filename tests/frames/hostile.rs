//! A peer that is let in and means harm: its frames are well made and say anything, its calls carry any bytes. What others
//! paint meanwhile is the reference's picture.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::client::Numbers;
use crate::stage::{Node, soon};
use janus_wire::v1::{
    ConfigureRequest, FeatureSpan, Hello, Image, Input, Piece, PrepareRequest, PutFeaturesRequest, SlotOp, Unit, piece,
};
use tonic::codegen::http::uri::PathAndQuery;

/// A number that is small, or one that tries to overflow something.
fn number(random: &mut Numbers) -> u32 {
    match random.below(4) {
        0 => [u32::MAX, i32::MAX as u32, 1 << 16, 65, 64][random.below(5) as usize],
        _ => random.below(12) as u32,
    }
}

fn input(random: &mut Numbers) -> Input {
    let piece = |random: &mut Numbers| {
        let ids = |random: &mut Numbers| janus_wire::v1::Ids {
            ids: (0..random.below(6))
                .map(|_| if random.below(9) == 0 { number(random) } else { random.below(500) as u32 })
                .collect(),
        };
        let piece = match random.below(4) {
            0 => Some(piece::Piece::Text(ids(random))),
            1 => Some(piece::Piece::Image(ids(random))),
            2 => {
                let handle = Bytes::from(vec![random.below(4) as u8]);
                Some(piece::Piece::Features(FeatureSpan { handle, first: number(random), count: number(random) }))
            }
            _ => None,
        };
        Piece { piece }
    };
    Input { pieces: (0..random.below(3)).map(|_| piece(random)).collect() }
}

/// A unit of any slot but 0. Some of them are right.
fn unit(random: &mut Numbers) -> Unit {
    let slot = 1 + number(random) % 80;
    let generation = random.below(3) as u32;
    if random.below(3) == 0 {
        let ids: Vec<u32> = (0..1 + random.below(8)).map(|_| random.below(500) as u32).collect();
        return rows(slot, generation, Mode::Prefill, 0, vec![text(&ids), text(&ids)], Some(number(random)));
    }
    Unit {
        slot,
        generation,
        kind: random.below(5) as i32,
        mode: random.below(5) as i32,
        start: number(random),
        positions: number(random),
        inputs: (0..random.below(4)).map(|_| input(random)).collect(),
        sample: (random.below(2) == 0).then(|| number(random)),
        refused: if random.below(9) == 0 { "so it says".to_owned() } else { String::new() },
        held: (0..random.below(4)).map(|_| number(random)).collect(),
    }
}

fn operation(random: &mut Numbers) -> SlotOp {
    let (slot, generation) = (1 + number(random) % 80, random.below(3) as u32);
    match random.below(6) {
        4 => copy(slot, generation, number(random) % 3, (number(random) % 80, random.below(3) as u32), number(random)),
        5 => keep(slot, generation, number(random)),
        0 => close(slot, generation),
        1 => truncate(slot, generation, number(random)),
        2 => open(slot, generation, Kind::Pair, number(random)),
        _ => open(slot, generation, Kind::try_from(random.below(4) as i32).unwrap(), 64),
    }
}

fn many<T>(random: &mut Numbers, most: u64, make: impl Fn(&mut Numbers) -> T) -> Vec<T> {
    (0..random.below(most)).map(|_| make(random)).collect()
}

#[tokio::test]
async fn well_made_frames_that_say_anything_spoil_no_other_sequence_and_leave_nothing() {
    let golden = Golden::new();
    let mut line = Line::start(&[0..2, 2..4]).await;
    let mut hand = line.connect(1).await;
    let mut random = Numbers(7);
    hand.step(vec![golden.open(0, 1)], vec![golden.prefill(0, 1)]).await;
    let mut alone = Vec::new();
    for node in &mut line.0 {
        alone.push(node.describe().await.kv_bytes);
    }
    for i in 1..golden.ids.len() {
        for _ in 0..40 {
            let (slots, units) = (many(&mut random, 8, operation), many(&mut random, 6, unit));
            let (count, passed) = (units.len(), units.iter().filter(|unit| !unit.refused.is_empty()).count());
            let results = hand.step(slots, units).await;
            assert_eq!(results.len(), count);
            assert!(results.iter().filter(|result| !result.refused.is_empty()).count() >= passed);
        }
        assert_eq!(id(&hand.step(vec![], vec![golden.decode(0, 1, i)]).await), golden.ids[i], "id {i}");
    }
    let refused = line.refused().await;
    assert!(refused[0].1 > 1000 && refused.iter().all(|(frames, _)| *frames == 0), "{refused:?}");
    // Everything that it opened can be closed, and nothing is left of it.
    let closes = (1..stage::SLOTS as u32).flat_map(|slot| (0..3).map(move |generation| close(slot, generation)));
    hand.step(closes.collect(), vec![]).await;
    for (node, alone) in line.0.iter_mut().zip(alone) {
        let seen = node.describe().await;
        assert_eq!((seen.open_slots, seen.kv_bytes), (1, alone));
    }
}

#[tokio::test]
async fn a_frame_of_more_units_than_there_are_slots_costs_its_link_and_no_time() {
    let mut line = Line::start(&[0..4]).await;
    let mut hand = line.connect(1).await;
    // Compared with each other these would take hours.
    let body = hand.body(vec![], vec![rows(1, 1, Mode::Decode, 0, vec![], None); 1_000_000]);
    hand.send(frame::seal(&body, Bytes::new())).await;
    let status = hand.end().await;
    assert!(status.message().contains("too many for 64 slots"), "{status:?}");
    let mut hand = line.connect(2).await;
    let body = hand.body(vec![close(1, 1); 1000], vec![]);
    hand.send(frame::seal(&body, Bytes::new())).await;
    assert!(hand.end().await.message().contains("too many for 64 slots"));
    paints(&mut line.connect(3).await).await;
}

/// Calls a method with bytes that are no message of it.
async fn called(node: &Node, method: &'static str, noise: Vec<u8>) {
    let Ok(channel) = janus_wire::connect(&node.address, &janus_wire::Security::Plain).await else { return };
    let mut grpc = tonic::client::Grpc::new(channel);
    if soon(grpc.ready()).await.is_err() {
        return;
    }
    // On the wire: a field of bytes, which is not what the method takes there.
    let codec = tonic_prost::ProstCodec::<Image, Hello>::default();
    let messages = tonic::Request::new(tokio_stream::iter([Image { data: noise.into(), ..Image::default() }]));
    if let Ok(answers) = soon(grpc.streaming(messages, PathAndQuery::from_static(method), codec)).await {
        let mut answers = answers.into_inner();
        while let Ok(Some(_)) = soon(answers.message()).await {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_bytes_to_every_method_of_a_worker_disturb_no_picture() {
    let mut line = Line::start(&[0..2, 2..4]).await;
    let mut hand = line.connect(1 << 32).await;
    let over = Arc::new(AtomicBool::new(false));
    let (node, ended) = (line.0[0].another().await, over.clone());
    let attack = tokio::spawn(async move {
        let (mut node, mut random, mut calls) = (node, Numbers(11), 0);
        let methods = [
            "/janus.v1.Stage/Link",
            "/janus.v1.Stage/Results",
            "/janus.v1.Stage/Prepare",
            "/janus.v1.Stage/Configure",
            "/janus.v1.Stage/PutFeatures",
            "/janus.v1.Stage/Logs",
        ];
        while !ended.load(Ordering::Relaxed) {
            for method in methods {
                let noise = (0..random.below(300)).map(|_| random.below(256) as u8).collect();
                called(&node, method, noise).await;
                calls += 1;
            }
            // Whole messages whose hellos are not right either.
            let mut hello = node.hello(random.below(1 << 33));
            match random.below(4) {
                0 => (hello.node, hello.numerics) = ("x".repeat(100_000), "other".to_owned()),
                1 => hello.model_digest = Bytes::from(vec![1; 31]),
                2 => hello.cluster.clear(),
                _ => (hello.protocol, hello.role) = (0, 99),
            }
            let (hello, next) = (Some(hello), "127.0.0.1:1".to_owned());
            let _ = soon(node.client.configure(ConfigureRequest { hello: hello.clone(), next, ..Default::default() })).await;
            let _ = soon(node.client.prepare(PrepareRequest { hello: hello.clone(), first_layer: 9, end_layer: 3 })).await;
            let features = Bytes::from(vec![0; random.below(1000) as usize]);
            let put = PutFeaturesRequest { hello, handle: vec![1; 100].into(), rows: number(&mut random), features };
            let _ = soon(node.client.put_features(put)).await;
        }
        calls
    });
    for _ in 0..3 {
        let (golden, generation) = (Golden::new(), hand.sequence as u32 + 1);
        let first = hand.step(vec![golden.open(0, generation)], vec![golden.prefill(0, generation)]).await;
        assert_eq!(id(&first), golden.ids[0]);
        for i in 1..golden.ids.len() {
            assert_eq!(id(&hand.step(vec![], vec![golden.decode(0, generation, i)]).await), golden.ids[i], "id {i}");
        }
        hand.step(vec![close(0, generation)], vec![]).await;
    }
    over.store(true, Ordering::Relaxed);
    let calls = attack.await.unwrap();
    assert!(calls >= 6, "{calls} calls are no attack");
    let seen = line.0[0].describe().await;
    assert_eq!((seen.open_slots, seen.kv_bytes, seen.feature_entries), (0, 0, 0));
}
