//! Jobs on a server that speaks S3 (moto, installed by pip): conditional puts, and a whole job.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use janus_coordinator::jobs::{Created, Environment, Error, Objects};
use serde_json::{Value, json};
use tempfile::tempdir;

use crate::support::{binary, janus, repository};

const BUCKET: &str = "janus-test";

struct Server {
    child: Child,
    url: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}; Debian: python3 and python3-venv"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Server {
    /// Installs it in `dir`, starts it, and makes a bucket.
    async fn start(dir: &Path) -> Server {
        let venv = dir.join("venv");
        run(Command::new("timeout").args(["120", "python3", "-m", "venv"]).arg(&venv));
        let python = venv.join("bin/python");
        let pip = ["240", python.to_str().unwrap(), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"];
        run(Command::new("timeout").args(pip).arg(repository().join("tests/python/s3.txt")));
        let port = crate::up::free_ports();
        let said = std::fs::File::create(dir.join("moto.log")).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(venv.join("bin/moto_server"));
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]).stdin(Stdio::null());
        command.stdout(said.try_clone().unwrap()).stderr(said);
        let server = Server { child: command.spawn().unwrap(), url: format!("http://127.0.0.1:{port}") };
        let make = "import sys, boto3\nboto3.client('s3', endpoint_url=sys.argv[1], region_name='us-east-1', \
                    aws_access_key_id='k', aws_secret_access_key='s').create_bucket(Bucket=sys.argv[2])";
        let until = Instant::now() + Duration::from_secs(60);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            let log = std::fs::read_to_string(dir.join("moto.log")).unwrap();
            assert!(Instant::now() < until, "it does not listen: {log}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        run(Command::new(python).args(["-c", make, &server.url, BUCKET]));
        server
    }

    fn environment(&self) -> Environment {
        let set = [
            ("AWS_ACCESS_KEY_ID", "k"),
            ("AWS_SECRET_ACCESS_KEY", "s"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ENDPOINT_URL", &self.url),
            ("AWS_ALLOW_HTTP", "true"),
        ];
        set.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
    }

    fn open(&self, path: &str) -> Objects {
        let url = format!("s3://{BUCKET}/{path}").parse().unwrap();
        Objects::open(&url, &self.environment()).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_live_in_s3() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path()).await;

    // Of eight who create one object with other bytes each, one does, and all others are told.
    let objects = server.open("race");
    objects.probe().await.unwrap();
    for round in 0..8 {
        let name = format!("a/{round}.png");
        let create = |who: u8| {
            let (objects, name) = (objects.clone(), name.clone());
            tokio::spawn(async move { objects.create(&name, Bytes::from(vec![who; 1000])).await })
        };
        let mut won = Vec::new();
        for (who, racer) in (0..8).map(create).collect::<Vec<_>>().into_iter().enumerate() {
            match racer.await.unwrap() {
                Ok(Created::Now) => won.push(who as u8),
                Err(Error::Differs { object }) => assert!(object.ends_with(&name), "{object}"),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(won.len(), 1, "round {round}");
        assert_eq!(objects.read(&name).await.unwrap().unwrap(), vec![won[0]; 1000]);
        assert_eq!(objects.create(&name, Bytes::from(vec![won[0]; 1000])).await.unwrap(), Created::Before);
    }

    // A job whose items and results are there.
    let prompts = ["a red circle", "a blue square", "a green triangle"];
    let item = |i: usize| json!({ "id": format!("p {i}"), "prompt": prompts[i % 3], "seed": i }).to_string();
    std::fs::write(dir.path().join("items.jsonl"), (0..6).map(item).collect::<Vec<_>>().join("\n")).unwrap();
    let expected = janus(dir.path(), &["jobs", "submit", "items.jsonl", "--out", "here"]);
    assert_eq!(expected.code, Some(0), "{expected:?}");
    let place = |path: &str| format!("s3://{BUCKET}/{path}");
    let serve = |extra: &[(&str, &str)]| {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(binary());
        command.args(["serve", "--listen", "127.0.0.1:0", "--state"]).arg(dir.path().join("state"));
        command.args(["--jobs", &place("jobs"), "--jobs-output", &place("outputs")]);
        command.envs(server.environment()).envs(extra.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let refused = serve(&[("AWS_CONDITIONAL_PUT", "disabled")]).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains(&place("jobs")), "{said}");

    let mut child = serve(&[]).stderr(Stdio::inherit()).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    let served = Server { child, url: first.trim().strip_prefix("ready ").unwrap().to_owned() };
    let (run, outside) = (place("outputs/run-1"), place("elsewhere/run-1"));
    let submit =
        |out: &str| janus(dir.path(), &["jobs", "submit", "items.jsonl", "--wait", "--endpoint", &served.url, "--out", out]);
    let refused = submit(&outside);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.stderr.contains("header.output: "), "{refused:?}");
    let done = submit(&run);
    assert_eq!(done.code, Some(0), "{done:?}");
    let job: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!((&job["status"], &job["succeeded"]), (&json!("succeeded"), &json!(6)), "{job}");
    let output = server.open("outputs/run-1");
    let here = dir.path().join("here");
    let manifest = std::fs::read(here.join("manifest.jsonl")).unwrap();
    assert_eq!(output.read("manifest.jsonl").await.unwrap().unwrap(), manifest);
    for line in std::str::from_utf8(&manifest).unwrap().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let path = line["path"].as_str().unwrap();
        assert_eq!(output.read(path).await.unwrap().unwrap(), std::fs::read(here.join(path)).unwrap(), "{path}");
    }
    let id = job["job"].as_str().unwrap();
    let got = janus(dir.path(), &["jobs", "results", id, "--endpoint", &served.url, "--out", "got"]);
    assert_eq!(got.code, Some(0), "{got:?}");
    assert_eq!(std::fs::read(dir.path().join("got/manifest.jsonl")).unwrap(), manifest);
}
