//! A whole cluster in this process, whose insides can be counted.
#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::sync::Arc;
use std::time::Duration;

use janus_coordinator::schedule::Limits;
use janus_coordinator::{Coordinator, Driver, DriverHandle, Model, Parts, Places, StageNode, Tenants};
use janus_model::Pool;
use janus_spec::Tokenizer;
use janus_wire::Security;
use janus_worker::decoder::DecoderService;
use janus_worker::encoder::EncoderService;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::client::{Client, client};
use crate::stage::{Line, identity, serve, soon, tiny_a};

/// A cluster on tiny-a; it ends when this is dropped.
pub struct Cluster {
    pub address: String,
    pub driver: DriverHandle,
    pub coordinator: Coordinator,
    pub encoder: String,
    pub decoder: String,
    /// Ends the driver alone.
    pub driving: CancellationToken,
    stages: Line,
    _shutdown: DropGuard,
}

impl Cluster {
    /// Two stages whose queue takes `queue` units. They hold nothing when nothing is open.
    pub async fn start(queue: usize) -> Self {
        Self::keeping(queue, 0).await
    }

    /// Two stages that keep so many prompts of units that have ended.
    pub async fn keeping(queue: usize, kept: usize) -> Self {
        let shutdown = CancellationToken::new();
        let stages = Line::start(&[0..2, 2..4]).await;
        let checkpoint = Arc::new(tiny_a());
        let (pool, format) = (Arc::new(Pool::new(1)), checkpoint.native_format());
        let encoder =
            EncoderService::start(identity(), Security::Plain, checkpoint.clone(), pool.clone(), format, (true, true))
                .unwrap();
        let decoder = DecoderService::start(identity(), checkpoint.clone(), pool, format, true).unwrap();
        let stage =
            |n: &crate::stage::Node| StageNode { node: String::new(), address: n.address.clone(), layers: n.layers.clone() };
        let encoders = vec![serve(|server| server.add_service(encoder.server()), &shutdown).await];
        let decoders = vec![serve(|server| server.add_service(decoder.server()), &shutdown).await];
        let tokenizer = Tokenizer::load(&checkpoint.files, &checkpoint.spec).unwrap();
        let limits = Limits { slots: crate::stage::SLOTS, kv_positions: 1 << 20, queue, pools: 1, rows: 16, kept };
        let driver = Driver {
            identity: identity(),
            security: Security::Plain,
            pipeline: crate::stage::PIPELINE,
            places: Places::Fixed(stages.0.iter().map(stage).collect()),
            limits,
            canary: vec![tokenizer.special().bos, tokenizer.special().begin_of_image],
        };
        let driving = shutdown.child_token();
        let driver = driver.start(driving.clone()).unwrap();
        let model = Model { name: "tiny-a".to_owned(), spec: checkpoint.spec.clone(), tokenizer };
        let (encoder, decoder) = (encoders[0].clone(), decoders[0].clone());
        let parts = Parts {
            identity: identity(),
            security: Security::Plain,
            drivers: vec![driver.clone()],
            encoders: watch::channel(encoders).1,
            decoders: watch::channel(decoders).1,
            patience: Duration::from_secs(2),
            ledger: None,
            tenants: Tenants::open(),
            restart: false,
            keep: janus_coordinator::request::KEEP,
            draining: CancellationToken::new(),
            over: shutdown.clone(),
        };
        let coordinator = Coordinator::new(model, parts);
        let address = serve(|server| server.add_service(coordinator.clone().server()), &shutdown).await;
        soon(driver.ready().wait_for(|ready| *ready)).await.unwrap();
        Cluster { address, driver, coordinator, encoder, decoder, driving, stages, _shutdown: shutdown.drop_guard() }
    }

    pub async fn client(&self) -> Client {
        client(janus_wire::connect(&self.address, &Security::Plain).await.unwrap())
    }

    /// What is held: calls, requests that are not finished, units that wait and that are open, and slots of each stage.
    pub async fn held(&mut self) -> Vec<usize> {
        let (waiting, open) = self.driver.counts();
        let mut held = vec![self.coordinator.running(), self.coordinator.requests().0, waiting, open];
        for node in &mut self.stages.0 {
            let seen = node.describe().await;
            held.extend([seen.open_slots as usize, seen.kv_bytes as usize]);
        }
        held
    }

    /// Waits until nothing is held; what is left is said.
    pub async fn is_empty_soon(&mut self) {
        self.is_empty_but_for_soon(0).await;
    }

    /// Waits until nothing is held but so many bytes of prompts at each stage.
    pub async fn is_empty_but_for_soon(&mut self, kept: usize) {
        let mut held = Vec::new();
        for _ in 0..500 {
            held = self.held().await;
            let memory = |at: usize| at >= 4 && at % 2 == 1;
            if held.iter().enumerate().all(|(at, count)| *count <= if memory(at) { kept } else { 0 }) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("still held: {held:?}");
    }
}
