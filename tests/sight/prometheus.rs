//! A real Prometheus, and the small HTTP that asks it and the processes.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::up::LONG;

/// So many free ports in a row, below those that the system gives to outgoing connections; the first.
pub fn free_range(count: u16) -> u16 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    loop {
        let first = 20_000 + (RandomState::new().build_hasher().finish() % 10_000) as u16;
        if (first..first + count).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return first;
        }
    }
}

/// `GET path` at `address`: status and body.
pub async fn get(address: &str, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nhost: {address}\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let invalid = || std::io::Error::new(std::io::ErrorKind::InvalidData, answer.clone());
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(invalid)?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(invalid)?;
    Ok((status, body.to_owned()))
}

/// A program of the Prometheus package: below the folder in JANUS_PROMETHEUS, or on the PATH.
pub fn program(name: &str) -> PathBuf {
    match std::env::var_os("JANUS_PROMETHEUS") {
        Some(dir) => PathBuf::from(dir).join(name),
        None => PathBuf::from(name),
    }
}

/// A Prometheus that scrapes these addresses every second.
pub struct Prometheus {
    child: Child,
    address: String,
    dir: TempDir,
}

impl Prometheus {
    pub fn start(targets: &[String]) -> Prometheus {
        let dir = tempfile::tempdir().unwrap();
        let config = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\n\
             scrape_configs: [{{job_name: janus, static_configs: [{{targets: {targets:?}}}]}}]\n"
        );
        std::fs::write(dir.path().join("prometheus.yml"), config).unwrap();
        let address = format!("127.0.0.1:{}", free_range(1));
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        // Ends with the thread that started it, and so with the test.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program("prometheus")).current_dir(dir.path());
        command.args(["--config.file=prometheus.yml", "--storage.tsdb.path=data", "--log.level=warn"]);
        command.arg(format!("--web.listen-address={address}"));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Prometheus { child, address, dir }
    }

    /// What `query` gives, as one number; none while there are no samples, or no answer yet.
    pub async fn ask(&self, query: &str) -> Option<f64> {
        let encoded: String = query.bytes().map(|b| format!("%{b:02X}")).collect();
        let (status, body) = get(&self.address, &format!("/api/v1/query?query={encoded}")).await.ok()?;
        assert!(status == 200 || status == 503, "{query}: {body}");
        let answer: Value = serde_json::from_str(&body).ok()?;
        answer["data"]["result"][0]["value"][1].as_str()?.parse().ok()
    }

    /// Waits until `query` gives `expected`.
    pub async fn until(&self, query: &str, expected: f64) {
        let until = Instant::now() + LONG;
        loop {
            let found = self.ask(query).await;
            if found == Some(expected) {
                return;
            }
            let said = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            assert!(Instant::now() < until, "{query} is {found:?}, never {expected}\n{said}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
