//! `janus serve` as a process of its own.
#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use janus_wire::Security;
use tonic::transport::Channel;

use crate::support::binary;

/// A served model; the process ends when this is dropped.
pub struct Served {
    child: Child,
    /// `host:port`, as it said itself.
    pub address: String,
    /// What it says after that.
    lines: mpsc::Receiver<String>,
}

impl Served {
    /// Starts it on a free port and waits for the line that says it is ready.
    pub fn start(args: &[&str]) -> Self {
        let mut command = Command::new(binary());
        // What is resident is what is held, not what each thread of the allocator kept back.
        command.env("MALLOC_ARENA_MAX", "2");
        // Of the usual HTTP port there is only one on a machine.
        command.args(["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let said = BufReader::new(child.stdout.take().unwrap()).lines();
        let (tell, lines) = mpsc::channel();
        std::thread::spawn(move || said.map_while(Result::ok).for_each(|line| drop(tell.send(line))));
        // Whatever happens from here on, the process ends with this value.
        let mut served = Served { child, address: String::new(), lines };
        served.address = served.line().strip_prefix("ready ").unwrap().to_owned();
        served
    }

    /// The URL of its HTTP door. It says this once.
    pub fn http(&self) -> String {
        format!("http://{}", self.line().strip_prefix("http ").unwrap())
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(Duration::from_secs(60)).unwrap()
    }

    pub async fn channel(&self) -> Channel {
        janus_wire::connect(&self.address, &Security::Plain).await.unwrap()
    }

    /// The names of its threads, and the CPUs that each may use, as Linux lists them.
    pub fn threads(&self) -> Vec<(String, String)> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let read = |dir: std::path::PathBuf| {
            let name = std::fs::read_to_string(dir.join("comm")).ok()?.trim().to_owned();
            let status = std::fs::read_to_string(dir.join("status")).ok()?;
            let cpus = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
            Some((name, cpus.trim().to_owned()))
        };
        tasks.filter_map(|task| read(task.unwrap().path())).collect()
    }

    /// Resident memory in kB.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        assert!(Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap().success());
    }

    /// Waits for its end.
    pub fn wait(&mut self, most: Duration) -> ExitStatus {
        let until = Instant::now() + most;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < until, "it still runs");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
