//! Hosts as network namespaces on one switch, with processes inside and rules between them.
#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Runs a command that must succeed.
fn must(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {said} (these tests need root, iproute2 and iptables)", args.join(" "));
}

/// A switch; it and all hosts on it go when this is dropped.
pub struct Switch {
    name: String,
    hosts: Vec<String>,
}

/// A host: a namespace with one address.
#[derive(Clone)]
pub struct Host {
    pub namespace: String,
    pub ip: String,
}

impl Switch {
    pub fn new() -> Switch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("jn{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        must("ip", &["netns", "add", &name]);
        let switch = Switch { name, hosts: Vec::new() };
        switch.inside(&["ip", "link", "add", "br0", "type", "bridge"]);
        switch.inside(&["ip", "link", "set", "br0", "up"]);
        switch
    }

    fn inside(&self, command: &[&str]) {
        must("ip", &[&["netns", "exec", &self.name], command].concat());
    }

    pub fn host(&mut self, number: u8) -> Host {
        let host = Host { namespace: format!("{}h{number}", self.name), ip: format!("10.77.0.{number}") };
        must("ip", &["netns", "add", &host.namespace]);
        self.hosts.push(host.namespace.clone());
        let port = format!("p{number}");
        let link = ["ip", "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &host.namespace];
        self.inside(&link);
        self.inside(&["ip", "link", "set", &port, "master", "br0", "up"]);
        host.run(&["ip", "address", "add", &format!("{}/24", host.ip), "dev", "eth0"]);
        host.run(&["ip", "link", "set", "eth0", "up"]);
        host.run(&["ip", "link", "set", "lo", "up"]);
        host
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        for namespace in self.hosts.iter().chain([&self.name]) {
            let _ = Command::new("ip").args(["netns", "del", namespace]).output();
        }
    }
}

impl Host {
    fn run(&self, command: &[&str]) {
        must("ip", &[&["netns", "exec", &self.namespace], command].concat());
    }

    /// A command that runs on this host and ends with the test.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "ip", "netns", "exec", &self.namespace]).arg(program);
        command.stdin(Stdio::null());
        command
    }

    /// Nothing that comes from `other` arrives here.
    pub fn hears_nothing_of(&self, other: &Host) {
        self.run(&["iptables", "-A", "INPUT", "-s", &other.ip, "-j", "DROP"]);
    }

    /// One packet in fifty is lost on its way here.
    pub fn loses_packets(&self) {
        let lost = ["-m", "statistic", "--mode", "random", "--probability", "0.02", "-j", "DROP"];
        self.run(&[&["iptables", "-A", "INPUT"], &lost[..]].concat());
    }

    /// All is well again.
    pub fn heals(&self) {
        self.run(&["iptables", "-F"]);
    }
}

/// Both cannot hear each other.
pub fn part(a: &Host, b: &Host) {
    a.hears_nothing_of(b);
    b.hears_nothing_of(a);
}

/// A process on a host.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    pub fn start(host: &Host, log: PathBuf, program: &Path, args: &[&str]) -> Process {
        let said = File::create(&log).unwrap();
        let mut command = host.command(program);
        command.args(args).env("JANUS_LOG", "info").stdout(said.try_clone().unwrap()).stderr(said);
        Process { child: command.spawn().unwrap(), log }
    }

    pub fn said(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits until it has said `text`.
    pub fn says(&self, text: &str, most: Duration) {
        let until = Instant::now() + most;
        while !self.said().contains(text) {
            assert!(Instant::now() < until, "`{text}` was never said by {}:\n{}", self.log.display(), self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let said = self.said();
            let lines: Vec<&str> = said.lines().collect();
            eprintln!("--- {}\n{}", self.log.display(), lines[lines.len().saturating_sub(25)..].join("\n"));
        }
    }
}
