//! Real etcd for tests: processes with free ports and a directory of their own, which die with the test, even if the
//! test is killed. Other packages use this file by `#[path]`.
//!
//! `JANUS_ETCD_34` and `JANUS_ETCD_35` name the programs; without them `etcd` on the `PATH` is used. `tests/run`
//! fetches both and sets the variables. A test that needs etcd and finds none fails.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, unreachable_pub)]

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

use janus_cluster::{Store, StoreConfig};

/// Which etcd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Debian's 3.4.
    V34,
    /// 3.5 or newer.
    V35,
}

impl Version {
    /// The program.
    pub fn program(self) -> PathBuf {
        let name = match self {
            Version::V34 => "JANUS_ETCD_34",
            Version::V35 => "JANUS_ETCD_35",
        };
        if let Some(program) = std::env::var_os(name).map(PathBuf::from) {
            assert!(program.is_file(), "{name}={} is no file; tests/run sets it", program.display());
            return program;
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .map(|dir| dir.join("etcd"))
            .find(|program| program.is_file())
            .unwrap_or_else(|| panic!("this test needs etcd: set {name} (tests/run does), or put etcd on the PATH"))
    }
}

/// Certificates for TLS, as etcd's flags want them.
#[derive(Debug, Clone)]
pub struct ServerTls {
    pub ca: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// One member. Killed when dropped.
pub struct Etcd {
    version: Version,
    name: String,
    dir: PathBuf,
    client_port: u16,
    peer_port: u16,
    /// `name=peer URL` of all members.
    cluster: String,
    extra: Vec<String>,
    tls: Option<ServerTls>,
    child: Option<Child>,
    /// Goes with the last member.
    _root: std::sync::Arc<tempfile::TempDir>,
}

impl Etcd {
    /// A cluster of one, which answers already.
    pub async fn start(version: Version) -> Etcd {
        Etcd::start_with(version, &[], None).await
    }

    /// The same with more flags, or with TLS for clients.
    pub async fn start_with(version: Version, extra: &[&str], tls: Option<ServerTls>) -> Etcd {
        let mut member = Etcd::members(version, 1, extra, tls.clone()).remove(0);
        member.spawn();
        if tls.is_none() {
            ready(&member.config()).await;
        }
        member
    }

    /// A cluster of `count`, which answers already.
    pub async fn start_cluster(version: Version, count: usize) -> Vec<Etcd> {
        let mut members = Etcd::members(version, count, &[], None);
        for member in &mut members {
            member.spawn();
        }
        for member in &members {
            ready(&member.config()).await;
        }
        members
    }

    fn members(version: Version, count: usize, extra: &[&str], tls: Option<ServerTls>) -> Vec<Etcd> {
        let root = std::sync::Arc::new(tempfile::Builder::new().prefix("janus-etcd-").tempdir().unwrap());
        let ports: Vec<(u16, u16)> = (0..count).map(|_| (free_port(), free_port())).collect();
        let url = |(index, (_, peer)): (usize, &(u16, u16))| format!("m{index}=http://127.0.0.1:{peer}");
        let cluster = ports.iter().enumerate().map(url).collect::<Vec<_>>().join(",");
        let member = |(index, (client_port, peer_port)): (usize, &(u16, u16))| Etcd {
            version,
            name: format!("m{index}"),
            dir: root.path().join(format!("m{index}")),
            client_port: *client_port,
            peer_port: *peer_port,
            cluster: cluster.clone(),
            extra: extra.iter().map(ToString::to_string).collect(),
            tls: tls.clone(),
            child: None,
            _root: root.clone(),
        };
        ports.iter().enumerate().map(member).collect()
    }

    /// `127.0.0.1:port` for clients.
    pub fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.client_port)
    }

    /// How to reach it, without TLS and without a user.
    pub fn config(&self) -> StoreConfig {
        StoreConfig::etcd([self.endpoint()])
    }

    fn spawn(&mut self) {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let client = format!("{scheme}://{}", self.endpoint());
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log()).unwrap();
        // `setpriv` ends etcd when the test process ends, however that comes about.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(self.version.program());
        command.args(["--name", &self.name, "--initial-cluster", &self.cluster, "--initial-cluster-state", "new"]);
        command.arg("--data-dir").arg(&self.dir);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        if let Some(tls) = &self.tls {
            command.arg("--trusted-ca-file").arg(&tls.ca).arg("--cert-file").arg(&tls.certificate);
            command.arg("--key-file").arg(&tls.key).arg("--client-cert-auth");
        }
        command.args(&self.extra).env_clear().stdin(Stdio::null()).process_group(0);
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(spawn_from_lasting_thread(command));
    }

    fn log(&self) -> PathBuf {
        self.dir.with_extension("log")
    }

    /// What it has said so far.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// SIGKILL; its data stays.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            signal("KILL", &child);
            let _ = child.wait();
        }
    }

    /// SIGSTOP: connected, and silent from the moment this returns.
    pub fn freeze(&self) {
        let child = self.child.as_ref().expect("it runs");
        signal("STOP", child);
        let started = Instant::now();
        while !all_threads_stopped(child.id()) {
            assert!(started.elapsed() < Duration::from_secs(10), "etcd does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        signal("CONT", self.child.as_ref().expect("it runs"));
    }

    /// Starts it again with its data and its ports. Does not wait.
    pub fn start_again(&mut self) {
        assert!(self.child.is_none(), "it runs");
        self.spawn();
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let said = self.said();
            let tail: Vec<&str> = said.lines().rev().take(5).collect();
            eprintln!("etcd {} at {} said last: {tail:#?}", self.name, self.endpoint());
        }
        self.kill();
    }
}

/// To its whole process group, which is its own.
fn signal(name: &str, child: &Child) {
    let status = Command::new("kill").args([&format!("-{name}"), "--", &format!("-{}", child.id())]).status();
    assert!(status.expect("kill runs").success() || name == "KILL", "kill -{name}");
}

/// The signal is sent before every thread has stopped.
fn all_threads_stopped(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    threads.filter_map(Result::ok).all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        // pid (name) state ...; the name may hold anything.
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T'))
    })
}

/// Waits until a store answers.
pub async fn ready(config: &StoreConfig) -> std::sync::Arc<dyn Store> {
    let started = Instant::now();
    loop {
        match config.connect().await {
            Ok(store) => return store,
            Err(error) if started.elapsed() > Duration::from_secs(40) => panic!("etcd does not start: {error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// The parent's death is told when the thread that spawned ends, so that thread must outlive every test.
fn spawn_from_lasting_thread(command: Command) -> Child {
    type Order = (Command, mpsc::Sender<std::io::Result<Child>>);
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<Order>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, received) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in received {
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(orders)
    });
    let (answer, answered) = mpsc::channel();
    spawner.lock().unwrap().send((command, answer)).unwrap();
    answered.recv().unwrap().expect("setpriv (Debian: util-linux) starts etcd")
}

/// A port below those that the system gives to outgoing connections, so that it is still free after a restart.
fn free_port() -> u16 {
    static TAKEN: Mutex<Vec<u16>> = Mutex::new(Vec::new());
    let mut taken = TAKEN.lock().unwrap();
    loop {
        let random = RandomState::new().build_hasher().finish();
        let port = 10_000 + u16::try_from(random % 20_000).unwrap();
        if !taken.contains(&port) && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            taken.push(port);
            return port;
        }
    }
}

/// A certificate authority and what it signed, as PEM files in `dir`.
pub struct Certificates {
    /// The authority.
    pub ca: PathBuf,
    /// For etcd at 127.0.0.1.
    pub server: ServerTls,
    /// For a client: certificate and key.
    pub client: (PathBuf, PathBuf),
}

impl Certificates {
    /// Makes them.
    pub fn make(dir: &Path) -> Certificates {
        use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
        let write = |name: &str, pem: String| {
            let path = dir.join(name);
            std::fs::write(&path, pem).unwrap();
            path
        };
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_key = KeyPair::generate().unwrap();
        let ca = write("ca.pem", params.self_signed(&ca_key).unwrap().pem());
        let issuer = Issuer::new(params, ca_key);
        let signed = |name: &str| {
            let key = KeyPair::generate().unwrap();
            let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
            let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
            (write(&format!("{name}.pem"), certificate.pem()), write(&format!("{name}.key"), key.serialize_pem()))
        };
        let (certificate, key) = signed("server");
        Certificates { ca: ca.clone(), server: ServerTls { ca, certificate, key }, client: signed("client") }
    }
}
