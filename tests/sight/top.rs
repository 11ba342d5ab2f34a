//! `janus top` in a terminal.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::{binary, janus};
use crate::up::{LONG, Up, signal};

/// A program on a terminal of 80 columns and 24 lines, which `script` gives it.
struct Terminal {
    child: Child,
    shown: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    fn start(arguments: &str) -> Terminal {
        let line = format!("stty rows 24 cols 80; exec {} {arguments}", binary().display());
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "script", "-qec", &line, "/dev/null"]).env("TERM", "xterm-256color");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (mut output, shown) = (child.stdout.take().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let seen = shown.clone();
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut piece) {
                seen.lock().unwrap().extend(&piece[..length]);
            }
        });
        Terminal { child, shown }
    }

    /// Everything that was written to the screen.
    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned()
    }

    async fn shows(&self, text: &str) {
        let until = Instant::now() + LONG;
        while !self.shown().contains(text) {
            assert!(Instant::now() < until, "`{text}` was never shown: {:?}", self.shown());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn press(&mut self, keys: &str) {
        let input = self.child.stdin.as_mut().unwrap();
        input.write_all(keys.as_bytes()).unwrap();
        input.flush().unwrap();
    }

    async fn ends(&mut self) -> Option<i32> {
        let until = Instant::now() + LONG;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < until, "it does not end: {:?}", self.shown());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a terminal is told when a program takes the whole screen, and when it gives it back.
const TAKES: &str = "\u{1b}[?1049h";
const GIVES_BACK: &str = "\u{1b}[?1049l";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn top_shows_the_cluster_follows_it_and_leaves_the_terminal_as_it_was() {
    let up = Up::start(&["--stages", "2"]);
    let mut top = Terminal::start(&format!("top --endpoint {}", up.endpoints));
    // Single words: what stands between them may be a jump of the cursor.
    for word in [TAKES, "coordinator-0", "stage-1", "serving", "quit"] {
        top.shows(word).await;
    }
    // Whatever happens is drawn: here, that nobody answers any more.
    let coordinator = up.pid("coordinator-0").await;
    signal(coordinator, "STOP");
    top.shows("answer:").await;
    signal(coordinator, "CONT");
    top.press("q");
    assert_eq!(top.ends().await, Some(0));
    assert!(top.shown().contains(GIVES_BACK));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_terminal_or_an_answer_top_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let piped = janus(dir.path(), &["top"]);
    assert_eq!(piped.code, Some(2), "{piped:?}");
    assert!(piped.stderr.contains("janus status --json"), "{piped:?}");
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut top = Terminal::start(&format!("top --endpoint {gone}"));
    assert_eq!(top.ends().await, Some(1));
    assert!(top.shown().contains(&gone.to_string()) && !top.shown().contains(TAKES), "{:?}", top.shown());
}
