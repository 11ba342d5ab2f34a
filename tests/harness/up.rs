//! `janus up`, and single parts of a cluster, as processes that can be hurt and that never outlive their test.
#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::collections::BTreeMap;
use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Condvar, Mutex, mpsc};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::etcd_process::Version;
use crate::support::binary;

/// How long anything may take on a busy machine before its test gives up.
pub const LONG: Duration = Duration::from_secs(90);
/// Clusters that run at once.
const PLACES: usize = 4;

static TAKEN: Mutex<usize> = Mutex::new(0);
static LEFT: Condvar = Condvar::new();

/// A place among the clusters that run at once.
pub struct Place(());

impl Place {
    pub fn take() -> Place {
        let mut taken = TAKEN.lock().unwrap();
        while *taken >= PLACES {
            taken = LEFT.wait(taken).unwrap();
        }
        *taken += 1;
        Place(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *TAKEN.lock().unwrap() -= 1;
        LEFT.notify_one();
    }
}

/// A process that runs until it is dropped. What it says is kept in a file.
pub struct Part {
    child: Child,
    log: PathBuf,
    title: String,
    first: mpsc::Receiver<String>,
}

impl Part {
    /// `janus ARGS`, its words kept in `dir`.
    pub fn start<A: AsRef<str>>(dir: &Path, title: &str, args: &[A]) -> Part {
        Part::of(&binary(), dir, title, args)
    }

    /// The same with another program.
    pub fn of<A: AsRef<str>>(program: &Path, dir: &Path, title: &str, args: &[A]) -> Part {
        let log = dir.join(format!("{title}.log"));
        let said = File::options().create(true).append(true).open(&log).unwrap();
        // Ends with the thread that started it, and so with the test, even if that is killed.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program).args(args.iter().map(AsRef::as_ref));
        command.env("PATH", path_with_etcd(dir)).env("JANUS_LOG", "info").env("MALLOC_ARENA_MAX", "2");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(said).process_group(0);
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (tell, first) = mpsc::channel();
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| drop(tell.send(line))));
        Part { child, log, title: title.to_owned(), first }
    }

    /// The next line of its standard output.
    pub fn line(&self) -> String {
        self.first.recv_timeout(LONG).unwrap_or_else(|_| panic!("{} says nothing.\n{}", self.title, self.tail()))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn said(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Its last words, for messages.
    pub fn tail(&self) -> String {
        let said = self.said();
        let lines: Vec<&str> = said.lines().collect();
        let tail = lines[lines.len().saturating_sub(40)..].join("\n");
        format!("--- last words of {}\n{tail}\n---", self.title)
    }

    /// Waits until it has said `text`.
    pub async fn says(&self, text: &str) {
        let until = Instant::now() + LONG;
        while !self.said().contains(text) {
            assert!(Instant::now() < until, "`{text}` was never said.\n{}", self.tail());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    pub async fn ends(&mut self, most: Duration) -> ExitStatus {
        let until = Instant::now() + most;
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(Instant::now() < until, "it still runs after {most:?}.\n{}", self.tail());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        signal_group(self.child.id());
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}", self.tail());
        }
    }
}

/// Sends a signal, by its name, to a process that is there.
pub fn signal(pid: u32, name: &str) {
    let output = Command::new("kill").args([&format!("-{name}"), "--", &pid.to_string()]).output().unwrap();
    assert!(output.status.success(), "kill -{name} {pid}: {}", String::from_utf8_lossy(&output.stderr));
}

fn signal_group(pid: u32) {
    for name in ["-KILL", "-CONT"] {
        let _ = Command::new("kill").args([name, "--", &format!("-{pid}")]).output();
    }
}

/// A folder that holds etcd under its name, in front of the PATH.
fn path_with_etcd(dir: &Path) -> String {
    let bin = dir.join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    let _ = std::os::unix::fs::symlink(Version::V34.program(), bin.join("etcd"));
    format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default())
}

/// Two free ports in a row, below those that the system gives to outgoing connections.
pub fn free_ports() -> u16 {
    static TAKEN: Mutex<Vec<u16>> = Mutex::new(Vec::new());
    let mut taken = TAKEN.lock().unwrap();
    loop {
        let port = 10_000 + u16::try_from(RandomState::new().build_hasher().finish() % 10_000).unwrap() * 2;
        let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if !taken.contains(&port) && free(port) && free(port + 1) {
            taken.push(port);
            return port;
        }
    }
}

/// A cluster of `janus up`.
pub struct Up {
    part: Part,
    dir: TempDir,
    args: Vec<String>,
    /// All coordinators.
    pub endpoints: String,
    _place: Place,
}

impl Up {
    /// Starts it and waits until it is ready.
    pub fn start(args: &[&str]) -> Up {
        let place = Place::take();
        let dir = tempfile::Builder::new().prefix("janus-up-").tempdir().unwrap();
        let listen = format!("127.0.0.1:{}", free_ports());
        let state = dir.path().join("state").to_str().unwrap().to_owned();
        let mut all = vec!["up".to_owned(), "--listen".to_owned(), listen, "--state".to_owned(), state];
        all.extend(args.iter().map(ToString::to_string));
        let part = Part::start(dir.path(), "up", &all);
        let endpoints = part.line().strip_prefix("ready ").unwrap().to_owned();
        Up { part, dir, args: all, endpoints, _place: place }
    }

    /// A stage takes so much longer for every frame that a picture of `shapes` over `stages` takes at least 5 s.
    pub fn slow(stages: usize, args: &[&str]) -> Up {
        let (stages, delay) = (stages.to_string(), (5_000 / 64 / stages + 4).to_string());
        Up::start(&[&["--stages", &stages, "--test", "--test-step-delay-ms", &delay][..], args].concat())
    }

    /// SIGKILL to every process of it at once.
    pub fn kill_all(&mut self) {
        signal_group(self.part.pid());
        let _ = self.part.child.wait();
    }

    /// Starts it again as it was started; does not wait.
    pub fn start_again(&mut self) {
        self.part = Part::start(self.dir.path(), "up", &self.args);
    }

    pub fn part(&mut self) -> &mut Part {
        &mut self.part
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What `janus status --json` says; None if nobody answers.
    pub fn try_status(&self) -> Option<Value> {
        status(&self.endpoints)
    }

    pub async fn status(&self) -> Value {
        self.until("somebody answers", |_| true).await
    }

    /// Waits for a status that fits; says the last one if that takes too long.
    pub async fn until(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        until(&self.endpoints, what, fits, || self.part.tail()).await
    }

    /// All processes of it, by their names.
    pub fn parts(&self) -> BTreeMap<String, u32> {
        children(self.part.pid())
    }

    /// A process of it that may have just been started again.
    pub async fn pid(&self, name: &str) -> u32 {
        let until = Instant::now() + LONG;
        loop {
            if let Some(pid) = self.parts().get(name) {
                return *pid;
            }
            assert!(Instant::now() < until, "there is no {name} in {:?}\n{}", self.parts(), self.part.tail());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Where its etcd is, as its arguments say.
    pub async fn etcd(&self) -> String {
        let words = command_line(self.pid("etcd").await);
        let at = words.iter().position(|word| word == "--listen-client-urls").unwrap();
        words[at + 1].clone()
    }

    pub fn tail(&self) -> String {
        self.part.tail()
    }
}

/// What `janus status --json` says.
pub fn status(endpoints: &str) -> Option<Value> {
    let mut command = Command::new("timeout");
    command.arg("20").arg(binary()).args(["status", "--endpoint", endpoints, "--json"]).stderr(Stdio::null());
    serde_json::from_slice(&command.output().unwrap().stdout).ok()
}

/// Waits for a status that fits.
pub async fn until(endpoints: &str, what: &str, fits: impl Fn(&Value) -> bool, tail: impl Fn() -> String) -> Value {
    let until = Instant::now() + LONG;
    loop {
        let (asked, endpoints) = (Instant::now(), endpoints.to_owned());
        let status = tokio::task::spawn_blocking(move || status(&endpoints)).await.unwrap();
        if let Some(status) = status.as_ref().filter(|status| fits(status)) {
            return status.clone();
        }
        assert!(asked < until, "never: {what}; the status is {status:#?}\n{}", tail());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A member of a status.
pub fn member<'a>(status: &'a Value, id: &str) -> &'a Value {
    let found = status["members"].as_array().unwrap().iter().find(|member| member["id"] == id);
    found.unwrap_or(&Value::Null)
}

/// Names of the first pipeline's stages, in order.
pub fn stages(status: &Value) -> Vec<String> {
    let stages = status["pipelines"][0]["stages"].as_array();
    stages.into_iter().flatten().map(|stage| stage["node"].as_str().unwrap().to_owned()).collect()
}

/// How many members are in a state.
pub fn count(status: &Value, state: &str) -> usize {
    status["members"].as_array().unwrap().iter().filter(|member| member["state"] == state).count()
}

/// Whether all pipelines are ready.
pub fn ready(status: &Value) -> bool {
    let pipelines = status["pipelines"].as_array().unwrap();
    !pipelines.is_empty() && pipelines.iter().all(|pipeline| pipeline["state"] == "ready")
}

pub fn command_line(pid: u32) -> Vec<String> {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes.split(|b| *b == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// Running children, by what follows `--name` (etcd is `etcd`).
fn children(parent: u32) -> BTreeMap<String, u32> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let mut after = stat.rsplit(") ").next().unwrap_or_default().split(' ');
        let (state, ppid) = (after.next().unwrap_or_default(), after.next().unwrap_or_default());
        if ppid != parent.to_string() || state == "Z" {
            continue;
        }
        let words = command_line(pid);
        // Not itself yet.
        if words.iter().any(|word| word == "tether") {
            continue;
        }
        let name = words.iter().position(|word| word == "--name").and_then(|at| words.get(at + 1));
        // There is one at most, so nobody names it.
        let name = name.or_else(|| words.get(1).filter(|word| *word == "gateway"));
        let is_etcd = words.first().is_some_and(|word| word.ends_with("/etcd"));
        let name = if is_etcd { Some("etcd".to_owned()) } else { name.cloned() };
        found.extend(name.map(|name| (name, pid)));
    }
    found
}

/// Whether a process is there and no zombie.
pub fn alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|after| !after.is_empty() && !after.starts_with(['Z', 'X']))
}
