//! The web page in a real browser. What people do is in `python/page.py`, a scene for each test; what happens to the
//! cluster meanwhile is done from here.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../crates/cluster/tests/etcd_process/mod.rs"]
mod etcd_process;
#[path = "harness/served.rs"]
mod served;
mod support;
#[path = "harness/up.rs"]
mod up;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};

use served::Served;
use support::repository;
use up::{LONG, Up, stages};

/// An interpreter with what drives the browser, made once and kept beside the build; asked for by one scene at a time.
fn python() -> PathBuf {
    let wanted = repository().join("tests/python/page-requirements.txt");
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("page-venv");
    let (python, made) = (dir.join("bin/python"), dir.join("made-of.txt"));
    if std::fs::read(&made).ok() != std::fs::read(&wanted).ok() {
        let run = |command: &mut Command| {
            let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}; Debian: python3 and python3-venv"));
            assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        };
        run(Command::new("timeout").args(["120", "python3", "-m", "venv", "--clear"]).arg(&dir));
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"];
        run(Command::new("timeout").arg("300").arg(&python).args(pip).arg(&wanted));
        std::fs::copy(&wanted, &made).unwrap();
    }
    python
}

/// One browser at a time is enough for a small machine.
static STAGE: Mutex<()> = Mutex::new(());

/// A scene that is played; it ends with this value.
struct Scene {
    child: Child,
    _alone: MutexGuard<'static, ()>,
    lines: mpsc::Receiver<String>,
    name: &'static str,
}

impl Scene {
    fn begin(url: &str, name: &'static str) -> Scene {
        let alone = STAGE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut command = Command::new("timeout");
        command.args(["--kill-after", "5", "240"]).arg(python()).arg(repository().join("tests/python/page.py"));
        command.args([url, name]).args(std::env::var_os("JANUS_SCREENSHOTS"));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (tell, said) = mpsc::channel();
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| drop(tell.send(line))));
        Scene { child, _alone: alone, lines: said, name }
    }

    /// Waits until it has said `line`.
    fn says(&mut self, line: &str) {
        let said = self.lines.recv_timeout(3 * LONG);
        assert_eq!(said.as_deref(), Ok(line), "the scene `{}` ended badly; what it saw is above", self.name);
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn play(name: &'static str) {
    let served = Served::start(&["--stages", "2"]);
    Scene::begin(&served.http(), name).says("done");
}

#[test]
fn a_picture_appears_as_it_is_painted_and_is_the_one_that_the_api_gives() {
    play("paint");
}

#[test]
fn a_dropped_picture_is_asked_about_and_the_answer_comes_in_pieces() {
    play("ask");
}

#[test]
fn the_upper_part_of_a_picture_is_kept_and_the_rest_painted() {
    play("complete");
}

#[test]
fn everything_is_done_without_a_mouse_and_has_a_name() {
    play("keyboard");
}

#[test]
fn nothing_is_wider_than_a_phone_and_everything_can_be_read() {
    play("phone");
}

#[test]
fn what_goes_wrong_is_said_in_words() {
    play("words");
}

#[test]
fn a_job_is_seen_to_its_end() {
    play("jobs");
}

#[test]
fn a_key_is_asked_for_where_one_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    let (file, key) = (dir.path().join("key"), "k".repeat(64));
    std::fs::write(&file, &key).unwrap();
    let served = Served::start(&["--operator-key-file", file.to_str().unwrap()]);
    let mut scene = Scene::begin(&served.http(), "key");
    scene.tell(&key);
    scene.says("done");
}

/// A cluster of processes whose pictures take five seconds at least; where its page is.
fn slow(stages: usize, args: &[&str]) -> (Up, String) {
    let mut up = Up::slow(stages, &[&["--http", "127.0.0.1:0"][..], args].concat());
    let url = format!("http://{}", up.part().line().strip_prefix("http ").unwrap());
    (up, url)
}

#[test]
fn something_is_seen_of_a_picture_within_an_eighth_of_its_time() {
    let (_up, url) = slow(1, &[]);
    Scene::begin(&url, "soon").says("done");
}

#[tokio::test]
async fn a_stage_dies_before_everybodys_eyes_and_the_picture_goes_on() {
    let (up, url) = slow(3, &["--spares", "1"]);
    let mut scene = Scene::begin(&url, "loss");
    scene.says("painting");
    let victim = stages(&up.status().await)[1].clone();
    up::signal(up.pid(&victim).await, "KILL");
    scene.tell(&victim);
    scene.says("done");
}
