//! The documents' commands do what the documents say, and both README commands are the ones that CI runs.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use support::{binary, repository, tiny};
use tempfile::{TempDir, tempdir};

const COMMAND_ONE: &str = r#"cargo run --release -- generate "a red circle left of a blue square""#;

fn document(name: &str) -> String {
    std::fs::read_to_string(repository().join(name)).unwrap()
}

/// Bodies of the blocks fenced as `language`.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut open: Option<String> = None;
    for line in text.lines() {
        match &mut open {
            None if line.strip_prefix("```") == Some(language) => open = Some(String::new()),
            None => {}
            Some(_) if line == "```" => blocks.extend(open.take()),
            Some(body) => body.push_str(&format!("{line}\n")),
        }
    }
    blocks
}

/// Whether every command of a block is the program itself, which takes seconds.
fn is_cheap(block: &str) -> bool {
    let commands = block.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    commands.clone().count() > 0
        && commands.clone().all(|line| line.starts_with("cargo run --release -- ") || line.starts_with("janus "))
}

/// A folder where `janus` and `cargo run --release --` are the program that is built already, and the published
/// checkpoint that the documents speak of is the tiny one. The repository's examples are where they are in it.
fn desk() -> TempDir {
    let dir = tempdir().unwrap();
    let bin = dir.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    symlink(binary(), bin.join("janus")).unwrap();
    let cargo = "#!/bin/sh\n[ \"$1 $2 $3\" = 'run --release --' ] || exit 9\nshift 3\nexec janus \"$@\"\n";
    std::fs::write(bin.join("cargo"), cargo).unwrap();
    std::fs::set_permissions(bin.join("cargo"), std::fs::Permissions::from_mode(0o755)).unwrap();
    // `janus up` starts an etcd that it finds on the PATH.
    if let Some(etcd) = std::env::var_os("JANUS_ETCD_35") {
        symlink(etcd, bin.join("etcd")).unwrap();
    }
    symlink(tiny("original-bin"), dir.path().join("Janus-Pro-1B")).unwrap();
    symlink(repository().join("deploy"), dir.path().join("deploy")).unwrap();
    dir
}

fn run(dir: &Path, script: &str) {
    let path = format!("{}:{}", dir.join("bin").display(), std::env::var("PATH").unwrap());
    let output = Command::new("sh").args(["-euc", script]).current_dir(dir).env("PATH", path).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}\n{said}");
    assert_eq!(said, "", "{script}");
}

#[test]
fn commands_of_the_documents_run_as_written() {
    let dir = desk();
    let mut ran = 0;
    for name in ["README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "docs/install.md", "docs/sizing.md"] {
        for block in blocks(&document(name), "sh").iter().filter(|block| is_cheap(block)) {
            run(dir.path(), block);
            ran += block.lines().count();
        }
    }
    assert!(ran >= 6, "only {ran} commands were found");
}

/// Sessions of the README that need this machine alone: those with a server, at the ports that it has by default.
#[test]
fn sessions_of_the_readme_go_as_written() {
    let text = document("README.md");
    let sessions = blocks(&text, "console").into_iter().filter(|block| Session::serves(block) && !block.contains("10.0.0."));
    let mut played = 0;
    for session in sessions {
        // Two sessions want the same ports, and so would a server that runs here.
        for port in [7070, 7071] {
            drop(TcpListener::bind(("127.0.0.1", port)).unwrap_or_else(|e| panic!("port {port}: {e}")));
        }
        Session { dir: desk(), servers: Vec::new(), learnt: Vec::new() }.play(&session);
        played += 1;
    }
    assert!(played >= 3, "only {played} sessions were found");
}

/// What stands in a block fenced as `console`: after `$` a command, and below it what it prints, with `...` for anything.
struct Session {
    dir: TempDir,
    servers: Vec<Child>,
    /// What was printed where the document has `...`, for the commands that follow.
    learnt: Vec<(String, String)>,
}

impl Session {
    fn serves(block: &str) -> bool {
        block.lines().any(|line| Self::server(line.trim_start_matches("$ ")))
    }

    fn server(command: &str) -> bool {
        command.starts_with("janus serve") || command.starts_with("janus up")
    }

    fn play(mut self, block: &str) {
        for step in block.split("$ ").skip(1) {
            let (command, printed) = step.split_once('\n').unwrap();
            let command = self.learnt.iter().fold(command.to_owned(), |command, (shown, real)| command.replace(shown, real));
            let path = format!("{}:{}", self.dir.path().join("bin").display(), std::env::var("PATH").unwrap());
            let mut shell = Command::new("sh");
            shell.current_dir(self.dir.path()).env("PATH", path).stdin(Stdio::null());
            if Self::server(&command) {
                // The signal that ends it is for itself.
                shell.args(["-euc", &format!("exec {command}")]).stdout(Stdio::piped()).stderr(Stdio::null());
                let mut server = shell.spawn().unwrap();
                let said = BufReader::new(server.stdout.take().unwrap()).lines().map_while(Result::ok);
                self.servers.push(server);
                // It says what the document has, or at least that it is ready.
                let wanted = printed.lines().next().unwrap_or("ready ...");
                let (tell, ready) = mpsc::channel();
                let line = wanted.to_owned();
                std::thread::spawn(move || {
                    for said in said {
                        if Self::same(&line, &said).is_some() {
                            let _ = tell.send(());
                        }
                    }
                });
                ready.recv_timeout(Duration::from_secs(60)).unwrap_or_else(|e| panic!("{command}: no `{wanted}`: {e}"));
                continue;
            }
            let output = shell.args(["-euc", &command]).output().unwrap();
            assert!(output.status.success(), "{command}\n{}", String::from_utf8_lossy(&output.stderr));
            let said = String::from_utf8(output.stdout).unwrap();
            for (wanted, said) in printed.lines().zip(said.lines().chain(std::iter::repeat(""))) {
                let real = Self::same(wanted, said).unwrap_or_else(|| panic!("{command}: `{said}` is not `{wanted}`"));
                if wanted.contains("...") {
                    self.learnt.push((wanted.to_owned(), real));
                }
            }
        }
    }

    /// What was printed, if it is what the document has.
    fn same(wanted: &str, said: &str) -> Option<String> {
        let fits = match wanted.split_once("...") {
            Some((before, after)) => said.starts_with(before) && said.ends_with(after),
            None => said == wanted,
        };
        fits.then(|| said.to_owned())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        for server in &mut self.servers {
            let _ = Command::new("kill").args(["-TERM", &server.id().to_string()]).status();
            let _ = server.wait();
        }
    }
}

#[test]
fn command_one_paints_what_was_asked() {
    assert!(
        blocks(&document("README.md"), "sh").iter().any(|block| block.trim() == COMMAND_ONE),
        "README.md lost command one"
    );
    let dir = desk();
    run(dir.path(), COMMAND_ONE);
    let picture = image::open(dir.path().join("janus-0.png")).unwrap().into_rgb8();
    let circle = Blob::find(&picture, |[r, g, b]| r > 150 && g < 110 && b < 120).expect("something red");
    let square = Blob::find(&picture, |[r, g, b]| r < 110 && g < 150 && b > 150).expect("something blue");
    assert!(circle.fills(0.70, 0.88), "the red thing is no circle: {circle:?}");
    assert!(square.fills(0.92, 1.0), "the blue thing is no square: {square:?}");
    assert!(circle.right < square.left, "{circle:?} is not left of {square:?}");
}

/// Pixels of one colour: how many, and the box around them.
#[derive(Debug)]
struct Blob {
    pixels: u32,
    left: u32,
    right: u32,
    top: u32,
    bottom: u32,
}

impl Blob {
    /// Rows and columns with fewer than three such pixels are noise.
    fn find(picture: &image::RgbImage, is_it: impl Fn([u8; 3]) -> bool) -> Option<Blob> {
        let at = |x: u32, y: u32| u32::from(is_it(picture.get_pixel(x, y).0));
        let (width, height) = picture.dimensions();
        let columns: Vec<u32> = (0..width).filter(|&x| (0..height).map(|y| at(x, y)).sum::<u32>() >= 3).collect();
        let rows: Vec<u32> = (0..height).filter(|&y| (0..width).map(|x| at(x, y)).sum::<u32>() >= 3).collect();
        let (left, right, top, bottom) = (*columns.first()?, *columns.last()?, *rows.first()?, *rows.last()?);
        let pixels = (left..=right).map(|x| (top..=bottom).map(|y| at(x, y)).sum::<u32>()).sum();
        Some(Blob { pixels, left, right, top, bottom })
    }

    /// Whether it is about as wide as high and fills this part of its box: pi/4 for a circle, 1 for a square.
    fn fills(&self, least: f64, most: f64) -> bool {
        let (width, height) = (self.right - self.left + 1, self.bottom - self.top + 1);
        let part = f64::from(self.pixels) / f64::from(width * height);
        width.abs_diff(height) <= 3 && width >= 10 && (least..=most).contains(&part)
    }
}

#[test]
fn the_scorer_of_command_one_tells_shapes_apart() {
    let disc = |x: f64, y: f64| x.hypot(y) <= 11.0;
    let box_ = |x: f64, y: f64| x.abs() <= 10.0 && y.abs() <= 10.0;
    let triangle = |x: f64, y: f64| y <= 10.0 && 2.0 * x.abs() <= y + 10.0;
    let draw = |inside: &dyn Fn(f64, f64) -> bool| {
        let colour =
            |x: u32, y: u32| if inside(f64::from(x) - 20.0, f64::from(y) - 30.0) { [220, 30, 45] } else { [238, 238, 244] };
        let picture = image::RgbImage::from_fn(64, 64, |x, y| image::Rgb(colour(x, y)));
        let blob = Blob::find(&picture, |[r, g, b]| r > 150 && g < 110 && b < 120).unwrap();
        (blob.fills(0.70, 0.88), blob.fills(0.92, 1.0))
    };
    assert_eq!(draw(&disc), (true, false));
    assert_eq!(draw(&box_), (false, true));
    assert_eq!(draw(&triangle), (false, false));
}

#[test]
fn ci_runs_command_two_and_nothing_else() {
    assert!(
        blocks(&document("README.md"), "sh").iter().any(|block| block.trim() == "tests/run"),
        "README.md lost command two"
    );
    let script = document(".ci/run");
    let commands: Vec<&str> = script.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(commands, ["set -e", "cd \"$(dirname \"$0\")/..\"", "tests/run"]);
    for script in ["tests/run", ".ci/run", ".cargo/protoc"] {
        assert_eq!(std::fs::metadata(repository().join(script)).unwrap().permissions().mode() & 0o111, 0o111, "{script}");
    }
}

#[test]
fn links_of_the_documents_lead_somewhere() {
    let pages = support::names(&repository().join("docs")).into_iter().filter(|name| name.ends_with(".md"));
    let pages = pages.map(|name| format!("docs/{name}"));
    let ours =
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "helm/janus/README.md"].map(str::to_owned);
    for name in pages.chain(ours) {
        let here = repository().join(&name).parent().unwrap().to_owned();
        let text = document(&name);
        let links = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
        let pictures = text.split("src=\"").skip(1).filter_map(|rest| rest.split_once('"'));
        for (target, _) in links.chain(pictures) {
            let outside = target.starts_with("https://") || target.starts_with('#');
            let file = target.split('#').next().unwrap();
            assert!(outside || here.join(file).exists(), "{name} links to {target}, which is not there");
        }
    }
}

/// ARCHITECTURE.md says so, and TCP_NODELAY, windows and keep-alive depend on it: wire sets and reads them back.
#[test]
fn wire_is_the_only_crate_that_opens_sockets() {
    let opens = ["TcpListener", "TcpStream", "TcpIncoming", "TcpSocket", "UnixListener", "UnixStream", "UdpSocket"];
    let opens = opens.iter().chain(&["Server::builder", "transport::Endpoint", "serve_with_shutdown", "connect_lazy"]);
    let mut files = 0;
    let mut folders: Vec<_> =
        std::fs::read_dir(repository().join("crates")).unwrap().map(|e| e.unwrap().path().join("src")).collect();
    folders.retain(|folder| !folder.ends_with("wire/src"));
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            files += 1;
            // A collector of traces is no part of a cluster, and takes no frames.
            if path.ends_with("telemetry/export.rs") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            // What a module's own tests dial is their business.
            let text = text.split("#[cfg(test)]").next().unwrap();
            let word = opens.clone().find(|word| text.contains(**word));
            assert_eq!(word, None, "{}: sockets are opened by janus_wire::connect and Listener", path.display());
            // Every server takes its connections from a Listener.
            let (served, taken) = (text.matches(".serve_with").count(), text.matches(".incoming()").count());
            assert!(served <= taken + text.matches(".behind(").count(), "{}", path.display());
        }
    }
    assert!(files > 50, "only {files} files were read");
}
