//! What being seen, previews and the bookkeeping of jobs cost in throughput: the same pictures with and without, in turns, by
//! servers that are processes of their own.
//!
//! ```console
//! $ cargo bench --bench costs -- seen
//! $ cargo bench --bench costs -- previews --layers 4
//! $ cargo bench --bench costs -- jobs --layers 4
//! ```
//!
//! Without `--layers` the model inside paints. With it, so many layers of Janus-Pro-1B's widths do, with its codebook and VQ decoder
//! and random weights: a step takes milliseconds then. Every round has a turn of each way to paint, in rotating order. What is
//! printed are medians and quartiles of each round's ratio to its plain turn, of the time and of the processor time that the server
//! took, which other programs disturb less. `nothing` is a second plain turn: what the machine's own unrest amounts to.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use janus_benches::node;
use janus_model::Checkpoint;
use janus_spec::{Files, Layout, ModelSpec};
use janus_wire::v1::inference_client::InferenceClient;
use janus_wire::v1::jobs_client::JobsClient;
use janus_wire::v1::{
    CreateJobRequest, GenerateImageRequest, Job, JobHeader, JobItem, JobItems, JobStatus, PaintItem, RequestHeader,
    WatchJobRequest, create_job_request, generate_image_event::Event, job_item,
};
use janus_wire::{MAX_CLIENT_MESSAGE, Security};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{MetricsService, MetricsServiceServer};
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::Channel;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// What being seen and previews may cost, and what a job may cost beside its pictures.
const BARS: (f64, f64) = (0.02, 0.03);
/// What is painted.
const PROMPT: &str = "a red circle left of a blue square";
/// How often a server that is seen is scraped: oftener than anybody does.
const SCRAPES: Duration = Duration::from_secs(5);

/// How a program is asked to measure.
struct Asked {
    what: String,
    layers: Option<usize>,
    pictures: u32,
    rounds: usize,
}

fn asked() -> Asked {
    let (mut what, mut layers, mut pictures, mut rounds) = (None, None, None, None);
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    while let Some(word) = words.next() {
        let mut number =
            || Some(words.next().and_then(|word| word.parse().ok()).filter(|n| *n > 0).unwrap_or_else(|| usage()));
        match word.as_str() {
            "seen" | "previews" | "jobs" => what = Some(word),
            "--layers" => layers = number(),
            "--pictures" => pictures = number(),
            "--rounds" => rounds = number(),
            _ => usage(),
        }
    }
    // A picture of the model inside takes a hundredth of the other's.
    let (few, many) = if layers.is_some() { (2, 12) } else { (8, 60) };
    let (pictures, rounds) = (pictures.unwrap_or(few) as u32, rounds.unwrap_or(many));
    Asked { what: what.unwrap_or_else(|| usage()), layers, pictures, rounds }
}

fn usage() -> ! {
    eprintln!("usage: cargo bench --bench costs -- seen|previews|jobs [--layers N] [--pictures N] [--rounds N]");
    std::process::exit(2)
}

fn main() {
    let asked = asked();
    let model = asked.layers.map(model);
    let model: Vec<&str> = model.iter().flat_map(|dir| ["--model", dir.to_str().unwrap()]).collect();
    let what = asked.layers.map_or("the model inside".to_owned(), |n| format!("{n} layers of Janus-Pro-1B's widths"));
    println!("{what}, {} pictures at once, {} rounds", asked.pictures, asked.rounds);
    let within = node("costs", 1).block_on(async {
        match asked.what.as_str() {
            "seen" => seen(&asked, &model).await,
            "jobs" => jobs(&asked, &model).await,
            _ => previews(&asked, &model).await,
        }
    });
    std::process::exit(if within { 0 } else { 1 });
}

/// A way to paint: by which server, and what is asked beside the pictures.
struct Way {
    title: &'static str,
    server: usize,
    ids: bool,
    partials: u32,
    /// The pictures are items of a job.
    job: bool,
    /// What it may cost is said in the documents.
    bound: bool,
}

const PLAIN: Way = Way { title: "plain", server: 0, ids: false, partials: 0, job: false, bound: false };
const NOTHING: Way = Way { title: "nothing", ..PLAIN };

async fn seen(asked: &Asked, model: &[&str]) -> bool {
    let collector = collector();
    let flags = [model, &["--metrics", "127.0.0.1:0", "--otlp", &collector]].concat();
    let servers = [Server::start(model).await, Server::start(&flags).await];
    let metrics = servers[1].lines.iter().find_map(|line| line.strip_prefix("metrics ")).unwrap().to_owned();
    tokio::spawn(async move {
        loop {
            let page = scrape(&metrics).await;
            assert!(page.contains("janus_pipeline_step"), "nothing is counted:\n{page}");
            tokio::time::sleep(SCRAPES).await;
        }
    });
    compare(asked, &servers, &[PLAIN, NOTHING, Way { title: "being seen", server: 1, bound: true, ..PLAIN }]).await
}

async fn previews(asked: &Asked, model: &[&str]) -> bool {
    let server = Server::start(model).await;
    // It is worked out once, before the first preview.
    let describe = janus_wire::v1::DescribeModelRequest { palette: true };
    let told = server.client.clone().describe(describe).await.unwrap().into_inner();
    assert!(!told.palette.is_empty(), "there is no palette");
    let ways = [
        PLAIN,
        NOTHING,
        Way { title: "row by row", ids: true, bound: true, ..PLAIN },
        Way { title: "and 3 partial pictures", ids: true, partials: 3, bound: true, ..PLAIN },
    ];
    compare(asked, &[server], &ways).await
}

async fn jobs(asked: &Asked, model: &[&str]) -> bool {
    let state = std::env::temp_dir().join(format!("janus-costs-{}", std::process::id()));
    let flags = [model, &["--state", state.to_str().unwrap()]].concat();
    let server = Server::start(&flags).await;
    let within = compare(asked, &[server], &[PLAIN, NOTHING, Way { title: "a job", job: true, bound: true, ..PLAIN }]).await;
    let _ = std::fs::remove_dir_all(state);
    within
}

/// Takes turns, prints a table, and says whether what is bounded is within the bar.
async fn compare(asked: &Asked, servers: &[Server], ways: &[Way]) -> bool {
    let mut ratios = vec![(Vec::new(), Vec::new()); ways.len()];
    let (mut seconds, mut partials) = (Vec::new(), vec![0; ways.len()]);
    // The first round warms up.
    for round in 0..=asked.rounds {
        let mut turns = vec![(0.0, 0.0); ways.len()];
        for i in 0..ways.len() {
            let at = (i + round) % ways.len();
            let (took, processor, seen) = servers[ways[at].server].turn(&ways[at], asked.pictures).await;
            (turns[at], partials[at]) = ((took, processor), partials[at] + seen);
        }
        if round > 0 {
            seconds.push(turns[0].0);
            for (ratio, turn) in ratios.iter_mut().zip(&turns) {
                ratio.0.push(turn.0 / turns[0].0 - 1.0);
                ratio.1.push(turn.1 / turns[0].1 - 1.0);
            }
        }
    }
    let bar = if ways.iter().any(|way| way.job) { BARS.1 } else { BARS.0 };
    println!("a plain turn takes {:.2} s\n", quartiles(&mut seconds)[1]);
    println!("{:<24} {:>28} {:>32}", "costs", "time, median (quartiles)", "processor time, median (quartiles)");
    let mut within = true;
    for ((way, (time, processor)), partials) in ways.iter().zip(&mut ratios).zip(&partials).skip(1) {
        let shown = |[low, middle, high]: [f64; 3]| {
            format!("{:+.1} % ({:+.1} to {:+.1})", 100.0 * middle, 100.0 * low, 100.0 * high)
        };
        let (time, processor) = (quartiles(time), quartiles(processor));
        let beside = if way.partials > 0 { format!("  {partials} came") } else { String::new() };
        println!("{:<24} {:>28} {:>32}{beside}", way.title, shown(time), shown(processor));
        within &= !way.bound || time[1] < bar;
    }
    println!("\nbar: less than {:.0} % of the time: {}", 100.0 * bar, if within { "ok" } else { "FAILS" });
    within
}

fn quartiles(samples: &mut [f64]) -> [f64; 3] {
    samples.sort_by(f64::total_cmp);
    [0.25, 0.5, 0.75].map(|share| samples[((samples.len() - 1) as f64 * share).round() as usize])
}

/// A `janus serve` that ends with this program.
struct Server {
    child: Child,
    lines: Vec<String>,
    channel: Channel,
    client: InferenceClient<Channel>,
}

impl Server {
    async fn start(flags: &[&str]) -> Server {
        let janus = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("janus");
        assert!(janus.is_file(), "{} is missing: cargo build --release", janus.display());
        let mut command = Command::new(janus);
        command.args(["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]).args(flags);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        let expected = if flags.contains(&"--metrics") { 3 } else { 2 };
        let lines: Vec<String> = said.lines().take(expected).map(|line| line.unwrap()).collect();
        let address = lines[0].strip_prefix("ready ").unwrap();
        let channel = janus_wire::connect(address, &Security::Plain).await.unwrap();
        let client = InferenceClient::new(channel.clone()).max_decoding_message_size(MAX_CLIENT_MESSAGE);
        Server { child, lines, channel, client }
    }

    /// Paints; seconds, seconds of processor time, and partial pictures that came.
    async fn turn(&self, way: &Way, pictures: u32) -> (f64, f64, usize) {
        static TURNS: AtomicUsize = AtomicUsize::new(0);
        let id = format!("turn-{}", TURNS.fetch_add(1, Ordering::Relaxed));
        if way.job {
            return self.job_turn(pictures).await;
        }
        let request = GenerateImageRequest {
            header: Some(RequestHeader { request_id: id, ..RequestHeader::default() }),
            prompt: PROMPT.to_owned(),
            n: pictures,
            seed: 1,
            stream_ids: way.ids,
            partial_images: way.partials,
            ..GenerateImageRequest::default()
        };
        let (began, before) = (Instant::now(), self.processor());
        let mut events = self.client.clone().generate_image(request).await.unwrap().into_inner();
        let (mut done, mut partials) = (0, 0);
        while let Some(event) = events.message().await.unwrap() {
            match event.event {
                Some(Event::Image(_)) => done += 1,
                Some(Event::Partial(_)) => partials += 1,
                _ => {}
            }
        }
        assert_eq!(done, pictures);
        (began.elapsed().as_secs_f64(), self.processor() - before, partials)
    }

    /// The same pictures, kept; seconds until the manifest is there.
    async fn job_turn(&self, pictures: u32) -> (f64, f64, usize) {
        let item = |seed: u32| {
            let prompt = PROMPT.to_owned();
            let paint = PaintItem { prompt, n: 1, seed: 1 + u64::from(seed), ..PaintItem::default() };
            JobItem { id: seed.to_string(), work: Some(job_item::Work::Paint(paint)) }
        };
        let items = JobItems { items: (0..pictures).map(item).collect() };
        let parts = [create_job_request::Part::Header(JobHeader::default()), create_job_request::Part::Items(items)];
        let parts = parts.map(|part| CreateJobRequest { part: Some(part) });
        let (began, before) = (Instant::now(), self.processor());
        let mut jobs = JobsClient::new(self.channel.clone());
        let job = jobs.create(tokio_stream::iter(parts)).await.unwrap().into_inner().id;
        let mut events = jobs.watch(WatchJobRequest { job }).await.unwrap().into_inner();
        let mut last = Job::default();
        while let Some(job) = events.message().await.unwrap() {
            last = job;
        }
        assert_eq!((last.status(), last.succeeded), (JobStatus::Succeeded, pictures.into()), "{}", last.error);
        (began.elapsed().as_secs_f64(), self.processor() - before, 0)
    }

    /// Seconds that its threads have computed.
    fn processor(&self) -> f64 {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let of = |thread: std::fs::DirEntry| -> Option<f64> {
            let told = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
            told.split(' ').next()?.parse().ok()
        };
        threads.filter_map(|thread| of(thread.ok()?)).sum::<f64>() / 1e9
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn scrape(address: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("GET /metrics HTTP/1.0\r\nhost: {address}\r\n\r\n").as_bytes()).await.unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).await.unwrap();
    page
}

/// A checkpoint with so many layers, made once.
fn model(layers: usize) -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let small = here.join("../crates/janus/shapes/checkpoint");
    let dir = std::env::current_exe().unwrap().ancestors().nth(3).unwrap().join(format!("costs-{layers}"));
    if dir.join("done").exists() {
        return dir;
    }
    std::fs::create_dir_all(&dir).unwrap();
    for entry in std::fs::read_dir(small).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.join(path.file_name().unwrap())).unwrap();
    }
    widen(&dir, "config.json", |config| {
        put(
            &mut config["text_config"],
            json!({"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 16, "num_key_value_heads": 16,
                   "head_dim": 128, "num_hidden_layers": layers}),
        );
        put(
            &mut config["vision_config"],
            json!({"image_size": 384, "patch_size": 16, "num_image_tokens": 576, "projection_dim": 2048}),
        );
        put(
            &mut config["vq_config"],
            json!({"base_channels": 128, "channel_multiplier": [1, 1, 2, 2, 4], "latent_channels": 256, "num_res_blocks": 2,
                   "image_token_embed_dim": 2048, "num_embeddings": 16384, "num_patches": 24, "projection_dim": 2048}),
        );
    });
    let size = json!({"size": {"height": 384, "width": 384}});
    widen(&dir, "preprocessor_config.json", |config| put(config, size.clone()));
    widen(&dir, "processor_config.json", |config| {
        put(config, json!({"num_image_tokens": 576}));
        put(&mut config["image_processor"], size.clone());
    });
    let spec = ModelSpec::load(&Files::open_dir(&dir).unwrap()).unwrap();
    Checkpoint::random(spec, 1).save_weights(&dir, Layout::Transformers).unwrap();
    std::fs::write(dir.join("done"), "").unwrap();
    dir
}

fn widen(dir: &Path, file: &str, change: impl FnOnce(&mut Value)) {
    let path = dir.join(file);
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(path, config.to_string()).unwrap();
}

fn put(into: &mut Value, values: Value) {
    let Value::Object(values) = values else { return };
    into.as_object_mut().unwrap().extend(values);
}

/// Hears everything and keeps nothing.
struct Collector;

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(&self, _: Request<ExportTraceServiceRequest>) -> Result<Response<ExportTraceServiceResponse>, Status> {
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        _: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

/// Starts a collector; its URL.
fn collector() -> String {
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("http://{}", incoming.local_addr().unwrap());
    let router = tonic::transport::Server::builder()
        .add_service(TraceServiceServer::new(Collector))
        .add_service(MetricsServiceServer::new(Collector));
    tokio::spawn(router.serve_with_incoming(incoming));
    url
}
