//! A cluster on hosts of its own: network namespaces on a switch, with partitions, losses and delays between them. Whatever
//! the network does, a picture comes out with the bits it has without a network. Needs root, iproute2 and iptables.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "net/hosts.rs"]
mod hosts;
mod support;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use hosts::{Host, Process, Switch, part};

const LONG: Duration = Duration::from_secs(60);
/// Slow enough that a blow falls in the middle of a picture.
const STEP_MS: &str = "20";
const PORT: u16 = 7080;

struct Net {
    dir: tempfile::TempDir,
    etcd: Host,
    coordinator: Host,
    stages: Vec<Host>,
    processes: Vec<Process>,
    // Last: the processes end before their hosts.
    switch: Switch,
}

fn etcd_binary() -> PathBuf {
    let named = std::env::var_os("JANUS_ETCD_35").or_else(|| std::env::var_os("JANUS_ETCD_34")).map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = || std::env::split_paths(&path).map(|dir| dir.join("etcd")).find(|file| file.is_file());
    named.or_else(found).expect("no etcd: tests/run fetches one and sets JANUS_ETCD_35")
}

impl Net {
    /// Three stages and a spare, a painter, a coordinator and etcd, each on its own host. `advertise` may say that a stage is
    /// reached elsewhere than where it listens.
    fn start(
        advertise: impl Fn(usize) -> Option<String>,
        before: impl FnOnce(&mut Switch, &[Host], &Path) -> Vec<Process>,
    ) -> Net {
        let dir = tempfile::tempdir().unwrap();
        let mut switch = Switch::new();
        let (etcd, coordinator, painter) = (switch.host(1), switch.host(2), switch.host(3));
        let stages: Vec<Host> = (11..15).map(|number| switch.host(number)).collect();
        let mut processes = before(&mut switch, &stages, dir.path());

        let url = format!("http://{}:2379", etcd.ip);
        let data = dir.path().join("etcd");
        let args = ["--data-dir", data.to_str().unwrap(), "--listen-client-urls", &url, "--advertise-client-urls", &url];
        processes.push(Process::start(&etcd, dir.path().join("etcd.log"), &etcd_binary(), &args));
        let worker = |host: &Host, name: &str, role: &str, advertise: Option<String>| {
            let listen = format!("{}:{PORT}", host.ip);
            let mut args = vec!["worker", "--name", name, "--role", role, "--etcd", &url, "--listen", &listen, "--insecure"];
            args.extend(["--threads", "1", "--memory", "1GiB", "--test"]);
            if role == "stage" {
                args.extend(["--test-step-delay-ms", STEP_MS]);
            }
            if let Some(advertise) = &advertise {
                args.extend(["--advertise", advertise]);
            }
            Process::start(host, dir.path().join(format!("{name}.log")), &support::binary(), &args)
        };
        for (i, host) in stages.iter().enumerate() {
            processes.push(worker(host, &format!("stage-{i}"), "stage", advertise(i)));
        }
        processes.push(worker(&painter, "painter", "encoder,decoder", None));
        let listen = format!("{}:7070", coordinator.ip);
        let args = [
            "coordinator",
            "--name",
            "c",
            "--etcd",
            &url,
            "--listen",
            &listen,
            "--insecure",
            "--stages",
            "3",
            "--spares",
            "1",
        ];
        processes.push(Process::start(&coordinator, dir.path().join("coordinator.log"), &support::binary(), &args));
        let net = Net { dir, etcd, coordinator, stages, processes, switch };
        net.until("the cluster is ready", |status| {
            status["pipelines"][0]["state"] == "ready" && status["members"].as_array().unwrap().len() == 5
        });
        net
    }

    /// Runs `janus ARGS --endpoint ..` on the coordinator's host.
    fn janus(&self, args: &[&str]) -> std::process::Output {
        let endpoint = format!("{}:7070", self.coordinator.ip);
        let mut command = self.coordinator.command(&support::binary());
        command.args(args).args(["--endpoint", &endpoint]).current_dir(self.dir.path());
        command.output().unwrap()
    }

    fn status(&self) -> Option<Value> {
        let output = self.janus(&["status", "--json"]);
        output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    fn until(&self, what: &str, holds: impl Fn(&Value) -> bool) {
        let until = Instant::now() + LONG;
        loop {
            let status = self.status();
            if status.as_ref().is_some_and(&holds) {
                return;
            }
            assert!(Instant::now() < until, "never: {what}; {status:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Hosts of the pipeline's stages, in order.
    fn placed(&self) -> Vec<Host> {
        let status = self.status().unwrap();
        let stages = status["pipelines"][0]["stages"].as_array().unwrap().clone();
        let number = |s: &Value| s["node"].as_str().unwrap().strip_prefix("stage-").unwrap().parse::<usize>().unwrap();
        stages.iter().map(|s| self.stages[number(s)].clone()).collect()
    }

    /// Paints, strikes when the picture is under way, and compares the picture with the one that nobody disturbed. Gives
    /// back how often it was resumed.
    fn painted_through(&self, what: &str, blow: impl FnOnce(&Net)) -> u64 {
        let endpoint = format!("{}:7070", self.coordinator.ip);
        let mut command = self.coordinator.command(&support::binary());
        command.args(["generate", "two green squares", "--seed", "5", "--json", "-o", "net.png", "--endpoint", &endpoint]);
        let began = Instant::now();
        let child = command.current_dir(self.dir.path()).stdout(Stdio::piped()).spawn().unwrap();
        self.until("the picture is under way", |status| status["requests"]["running"].as_u64() > Some(0));
        std::thread::sleep(Duration::from_millis(700));
        let status = self.status().unwrap();
        assert!(status["requests"]["running"].as_u64() > Some(0), "{what}: the blow came too late");
        blow(self);
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{what}: {:?}", output.status);
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(answer["images"][0]["sha256"], undisturbed(), "{what}");
        let recovery = self.status().map(|s| s["pipelines"][0]["recovery_seconds"].clone());
        println!(
            "{what}: {:.1} s in all, resumed {}, recovery {recovery:?}",
            began.elapsed().as_secs_f64(),
            answer["resumed"]
        );
        answer["resumed"].as_u64().unwrap()
    }

    /// Rules go, and everybody who was thought lost is there again.
    fn heal(&self) {
        for host in self.stages.iter().chain([&self.etcd, &self.coordinator]) {
            host.heals();
        }
        self.until("everybody is back", |status| {
            let members = status["members"].as_array().unwrap();
            status["pipelines"][0]["state"] == "ready"
                && status["pipelines"][0]["stages"].as_array().unwrap().len() == 3
                && members.len() == 5
                && members.iter().all(|m| m["state"] == "serving" || m["state"] == "spare")
        });
    }
}

/// What this process paints alone.
fn undisturbed() -> Value {
    let dir = tempfile::tempdir().unwrap();
    let run = support::janus(dir.path(), &["generate", "two green squares", "--seed", "5", "--json"]);
    let answer: Value = serde_json::from_str(&run.stdout).unwrap();
    answer["images"][0]["sha256"].clone()
}

#[test]
fn a_picture_survives_whatever_the_network_does() {
    let net = Net::start(|_| None, |_, _, _| Vec::new());
    assert_eq!(net.painted_through("nothing", |_| {}), 0);

    let resumed = net.painted_through("first and second stage cannot hear each other", |net| {
        let placed = net.placed();
        part(&placed[0], &placed[1]);
    });
    assert!(resumed > 0);
    net.heal();

    let resumed = net.painted_through("the last stage hears nothing of the one before it", |net| {
        let placed = net.placed();
        placed[2].hears_nothing_of(&placed[1]);
    });
    assert!(resumed > 0);
    net.heal();

    let resumed = net.painted_through("the coordinator cannot reach the first stage", |net| {
        part(&net.placed()[0], &net.coordinator);
    });
    assert!(resumed > 0);
    net.heal();

    // Cut off from the store alone: nothing that runs notices, even when the lease is long gone.
    let resumed = net.painted_through("a stage cannot reach etcd", |net| part(&net.placed()[1], &net.etcd));
    assert_eq!(resumed, 0);
    let cut = net.placed()[1].clone();
    net.until("its lease is gone", |status| status["members"].as_array().unwrap().len() == 4);
    assert_eq!(net.painted_through("a stage is gone from etcd", |_| {}), 0);
    assert!(net.placed().iter().any(|host| host.ip == cut.ip));
    net.heal();

    for host in net.stages.iter().chain([&net.coordinator]) {
        host.loses_packets();
    }
    net.painted_through("one packet in fifty is lost everywhere", |_| {});
    net.heal();
}

/// A relay stands before the second stage: 50 ms away, and then silent with all its connections open.
#[test]
fn a_picture_survives_a_long_way_and_a_half_open_connection() {
    let frozen = tempfile::tempdir().unwrap();
    let freeze = frozen.path().join("frozen");
    let script = support::repository().join("tests/net/relay.py");
    let relay_ip = "10.77.0.40";
    let net = Net::start(
        |i| (i == 1).then(|| format!("{relay_ip}:{PORT}")),
        |switch, stages, dir| {
            let host = switch.host(40);
            let port = PORT.to_string();
            let args = [script.to_str().unwrap(), relay_ip, &port, &stages[1].ip, &port, "50", freeze.to_str().unwrap()];
            let relay = Process::start(&host, dir.join("relay.log"), Path::new("python3"), &args);
            relay.says("relaying", LONG);
            vec![relay]
        },
    );
    // Whether it is placed or stands by is up to the measured round trips; drain one of the others to have it in.
    let spare = net.status().unwrap()["members"].as_array().unwrap().iter().find(|m| m["state"] == "spare").cloned();
    if spare.is_some_and(|m| m["id"] == "stage-1") {
        let output = net.janus(&["drain", "stage-0"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        net.until("stage-1 is in", |s| {
            s["pipelines"][0]["stages"].to_string().contains("stage-1") && s["pipelines"][0]["state"] == "ready"
        });
    }
    net.painted_through("a stage is 50 ms away", |_| {});
    let resumed = net.painted_through("its connections are open and nothing passes", |net| {
        assert!(net.placed().iter().any(|host| host.ip == net.stages[1].ip));
        std::fs::write(&freeze, "").unwrap();
    });
    assert!(resumed > 0);
    std::fs::remove_file(&freeze).unwrap();
    let _ = (&net.switch, &net.processes);
}
