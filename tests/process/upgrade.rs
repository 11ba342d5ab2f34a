//! Every part of a cluster is replaced by that of another version, one after the other, while requests come all the time.
//!
//! `JANUS_OTHER` names the other version's program; `tests/run` builds it from an earlier commit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::asks::{guided, mixed, undisturbed};
use crate::caller::Caller;
use crate::client::{Answer, Ask};
use crate::etcd_process::{Etcd, Version};
use crate::support::binary;
use crate::up::{LONG, Part, Place, count, free_ports, member, ready, stages};

const STAGES: [&str; 3] = ["stage-0", "stage-1", "stage-2"];
const PAINTERS: [&str; 2] = ["encoder", "decoder"];
const COORDINATORS: [&str; 2] = ["coordinator-0", "coordinator-1"];
const GATEWAYS: [&str; 2] = ["gateway-0", "gateway-1"];
/// A gateway that is about to end is sent nothing new from so long before: the chart's `preStop`.
const PRE_STOP: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_part_is_replaced_by_another_version_and_back_under_load() {
    let mut asks = mixed();
    // Through the gateways.
    asks.extend([guided("a green triangle", 1, 8), guided("a yellow square", 1, 9)]);
    let expected = undisturbed(&asks).await;
    let (ours, other) = (binary(), other());
    let mut cluster = Cluster::start(&other).await;
    let mut load = Load::begin(&cluster, &asks, &expected);
    load.goes_on().await;

    let forth = [&STAGES[..], &PAINTERS, &COORDINATORS, &GATEWAYS].concat();
    let back: Vec<&str> = forth.iter().rev().copied().collect();
    let mut blows = Vec::new();
    for (program, order) in [(&ours, forth), (&other, back)] {
        for name in order {
            let struck = Instant::now();
            cluster.replace(name, program).await;
            blows.push((format!("{name} by {}", program.display()), struck));
            println!("{name} was replaced by {} within {:.1} s", program.display(), struck.elapsed().as_secs_f64());
            load.goes_on().await;
        }
        assert!(cluster.programs().values().all(|runs| runs == program), "{:?}", cluster.programs());
    }

    let done = load.end().await;
    let resumed: u32 = done.iter().map(|request| request.resumed).sum();
    println!("{} requests while {} parts were replaced; they were resumed {resumed} times", done.len(), blows.len());
    for (what, struck) in blows {
        let ran = |request: &Done| request.begun < struck && struck < request.ended;
        assert!(done.iter().any(ran), "nothing ran when {what} came");
    }
    assert!(resumed > 0, "no request met a part that left");
}

/// The other version.
fn other() -> PathBuf {
    let Some(other) = std::env::var_os("JANUS_OTHER").map(PathBuf::from) else {
        panic!("this test needs another version's program: set JANUS_OTHER (tests/run builds one)");
    };
    let path = other.canonicalize().unwrap_or_else(|e| panic!("JANUS_OTHER={}: {e}", other.display()));
    assert_ne!(std::fs::read(&path).unwrap(), std::fs::read(binary()).unwrap(), "JANUS_OTHER is the program under test");
    path
}

/// Three stage workers of which one is a spare, an encoder, a decoder, two coordinators and two gateways.
struct Cluster {
    etcd: Etcd,
    dir: TempDir,
    parts: BTreeMap<&'static str, Part>,
    /// Of coordinators and gateways, by name.
    addresses: BTreeMap<&'static str, String>,
    service: Service,
    _place: Place,
}

impl Cluster {
    async fn start(program: &Path) -> Cluster {
        let place = tokio::task::spawn_blocking(Place::take).await.unwrap();
        let etcd = Etcd::start(Version::V34).await;
        let dir = tempfile::Builder::new().prefix("janus-upgrade-").tempdir().unwrap();
        let address = |name| (name, format!("127.0.0.1:{}", free_ports()));
        let addresses: BTreeMap<_, _> = COORDINATORS.into_iter().chain(GATEWAYS).map(address).collect();
        let service = Arc::new(Mutex::new(GATEWAYS.map(|name| addresses[name].clone()).to_vec()));
        let mut cluster = Cluster { etcd, dir, parts: BTreeMap::new(), addresses, service, _place: place };
        let all = [&STAGES[..], &PAINTERS, &COORDINATORS, &GATEWAYS].concat();
        all.iter().for_each(|name| cluster.run(name, program));
        for name in all {
            cluster.is_there(name).await;
        }
        cluster
    }

    /// Starts a part of this version, under the name and at the address that it always has.
    fn run(&mut self, name: &'static str, program: &Path) {
        let etcd = format!("http://{}", self.etcd.endpoint());
        let address = self.addresses.get(name).map_or("", String::as_str);
        let endpoints = self.coordinators();
        let args: Vec<&str> = match name.split('-').next().unwrap() {
            "stage" => vec!["worker", "--role", "stage", "--test", "--test-step-delay-ms", "10"],
            "coordinator" => vec!["coordinator", "--listen", address, "--stages", "2", "--spares", "1"],
            "gateway" => vec!["gateway", "--listen", address, "--endpoint", &endpoints],
            role => vec!["worker", "--role", role],
        };
        let of_the_store = ["--name", name, "--etcd", &etcd];
        let of_the_store = if name.starts_with("gateway") { &[] } else { &of_the_store[..] };
        self.parts.insert(name, Part::of(program, self.dir.path(), name, &[&args[..], of_the_store].concat()));
    }

    /// Asks a part to end, waits until it has, and starts it in another version.
    async fn replace(&mut self, name: &'static str, program: &Path) {
        let gateway = self.addresses.get(name).filter(|_| GATEWAYS.contains(&name)).cloned();
        if let Some(gateway) = &gateway {
            self.service.lock().unwrap().retain(|known| known != gateway);
            tokio::time::sleep(PRE_STOP).await;
        }
        let part = self.parts.get_mut(name).unwrap();
        part.signal("TERM");
        let ended = part.ends(LONG).await;
        assert!(ended.success(), "{name} ended with {ended}\n{}", part.tail());
        self.run(name, program);
        self.is_there(name).await;
        self.service.lock().unwrap().extend(gateway);
    }

    /// Waits until it does its work, and all others theirs.
    async fn is_there(&self, name: &str) {
        let tails = || self.parts.values().map(Part::tail).collect::<Vec<_>>().join("\n");
        let (whole, at) = match (name.split('-').next().unwrap(), self.addresses.get(name)) {
            ("gateway", Some(address)) => return is_ready(address).await,
            ("coordinator", Some(address)) => (false, address.clone()),
            _ => (true, self.coordinators()),
        };
        let pid = self.parts[name].pid();
        let fits = |s: &Value| {
            !whole || (ready(s) && stages(s).len() == 2 && count(s, "spare") == 1 && member(s, name)["pid"] == pid)
        };
        crate::up::until(&at, &format!("{name} is there"), fits, tails).await;
    }

    fn coordinators(&self) -> String {
        COORDINATORS.map(|name| self.addresses[name].clone()).join(",")
    }

    /// Which program every part runs.
    fn programs(&self) -> BTreeMap<&'static str, PathBuf> {
        let runs = |part: &Part| std::fs::read_link(format!("/proc/{}/exe", part.pid())).unwrap();
        self.parts.iter().map(|(name, part)| (*name, runs(part))).collect()
    }
}

async fn is_ready(address: &str) {
    let until = Instant::now() + LONG;
    let ask = || http().get(format!("http://{address}/readyz")).send();
    while !ask().await.is_ok_and(|response| response.status() == 200) {
        assert!(Instant::now() < until, "the gateway at {address} is not ready");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Gateways that are sent new requests, as a Service of Kubernetes knows them.
type Service = Arc<Mutex<Vec<String>>>;

/// A connection for each request, as a proxy in front of gateways that come and go would have it.
fn http() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).timeout(LONG).build().unwrap()
}

/// A request that went well.
#[derive(Debug, Clone, Copy)]
struct Done {
    begun: Instant,
    ended: Instant,
    /// How often it went on elsewhere, as far as its caller is told.
    resumed: u32,
}

/// Callers who ask for the same things again and again, one by each kind of request, and compare what they get.
struct Load {
    callers: JoinSet<()>,
    over: CancellationToken,
    /// What each caller has had.
    done: Vec<Arc<Mutex<Vec<Done>>>>,
}

impl Load {
    /// The last ones ask by HTTP, each at another gateway while there are two.
    fn begin(cluster: &Cluster, asks: &[Ask], expected: &[Answer]) -> Load {
        let mut load = Load { callers: JoinSet::new(), over: CancellationToken::new(), done: Vec::new() };
        let by_grpc = asks.len() - GATEWAYS.len();
        for (i, (ask, expected)) in asks.iter().zip(expected).enumerate() {
            let (ask, expected, over) = (ask.clone(), expected.clone(), load.over.clone());
            let (endpoints, service) = (cluster.coordinators(), cluster.service.clone());
            let done = Arc::new(Mutex::new(Vec::new()));
            load.done.push(done.clone());
            load.callers.spawn(async move {
                while !over.is_cancelled() {
                    let begun = Instant::now();
                    let resumed = if i >= by_grpc {
                        let gateway = {
                            let known = service.lock().unwrap();
                            known[i % known.len()].clone()
                        };
                        paint_by_http(&gateway, &ask, &expected).await;
                        0
                    } else {
                        let course = Caller::begin(&endpoints, &ask).end().await;
                        assert_eq!(course.answer, expected, "request {i}");
                        course.resumed
                    };
                    done.lock().unwrap().push(Done { begun, ended: Instant::now(), resumed });
                }
            });
        }
        load
    }

    /// Waits until every caller has had an answer to what it asked from now on.
    async fn goes_on(&mut self) {
        let (from, until) = (Instant::now(), Instant::now() + LONG);
        let later = |done: &Arc<Mutex<Vec<Done>>>| done.lock().unwrap().last().is_some_and(|last| last.begun > from);
        while !self.done.iter().all(later) {
            if let Some(failed) = self.callers.try_join_next() {
                failed.unwrap();
            }
            assert!(Instant::now() < until, "a caller waits for ever");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// All requests; a failed one, or one with another answer, fails here.
    async fn end(mut self) -> Vec<Done> {
        self.over.cancel();
        while let Some(ended) = self.callers.join_next().await {
            ended.unwrap();
        }
        self.done.iter().flat_map(|done| done.lock().unwrap().clone()).collect()
    }
}

async fn paint_by_http(gateway: &str, ask: &Ask, expected: &Answer) {
    let Ask::Paint(request) = ask else { panic!("{ask:?} is no picture") };
    let wanted = json!({ "prompt": request.prompt, "seed": request.seed });
    let url = format!("http://{gateway}/v1/images/generations");
    let response = http().post(url).json(&wanted).send().await.unwrap();
    let status = response.status();
    let painted: Value = response.json().await.unwrap();
    assert_eq!(status, 200, "{painted}");
    assert_eq!(painted["data"][0]["sha256"], janus_wire::hello::hex(&expected.sha256[0]), "{painted}");
}
