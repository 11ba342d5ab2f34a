//! The chart: what Helm's own library and the schemas of Kubernetes say of it, and whether the pods that it renders are a
//! cluster.
//!
//! `tests/python/chart.py` holds the rendered objects to their promises; `tests/python/pods.py` runs them as containers of
//! the image that `deploy/Dockerfile` makes. The latter takes root, for namespaces, and a container engine: `tests/run`
//! fetches one and says in `JANUS_DOCKER` where it is.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use support::{binary, janus, names, repository, text};

/// An interpreter with what chart-requirements.txt names, kept between runs.
fn python() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("chart");
        succeed(Command::new("timeout").args(["120", "python3", "-m", "venv"]).arg(&dir));
        let python = dir.join("bin/python");
        let list = repository().join("tests/python/chart-requirements.txt");
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"];
        succeed(Command::new("timeout").arg("240").arg(&python).args(pip).arg(list));
        python
    })
}

/// Runs a program, whose words are shown; fails with them if it does.
fn succeed(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}\n{said}");
    print!("{said}");
}

fn script(name: &str) -> PathBuf {
    repository().join("tests/python").join(name)
}

#[test]
fn the_chart_keeps_its_promises() {
    succeed(Command::new("timeout").arg("400").arg(python()).arg(script("chart.py")).env("JANUS", binary()));
}

#[test]
fn the_pods_that_the_chart_renders_are_a_cluster() {
    let said = |name: &str| {
        let folder = std::env::var_os(name).map(PathBuf::from).filter(|folder| folder.is_dir());
        folder.unwrap_or_else(|| panic!("{name} names no folder; tests/run fetches what it should hold"))
    };
    // Everything that the engine starts ends with its namespaces, however this test ends.
    let mut command = Command::new("setpriv");
    command.args([
        "--pdeathsig",
        "KILL",
        "--",
        "unshare",
        "--net",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]);
    command.args(["timeout", "600"]).arg(python()).arg(script("pods.py"));
    command.env("JANUS", binary()).env("JANUS_DOCKER", said("JANUS_DOCKER")).env("JANUS_ETCD", said("JANUS_ETCD"));
    succeed(&mut command);
}

/// `janus config check` on what `args` would be.
fn check(dir: &Path, args: &[&str]) -> support::Run {
    janus(dir, &[&["config", "check", "--"][..], args].concat())
}

#[test]
fn a_command_line_is_checked_before_anything_runs_it() {
    let dir = tempfile::tempdir().unwrap();
    let fine = check(dir.path(), &["worker", "--role", "stage", "--name", "stage-0", "--memory", "1GiB"]);
    assert_eq!((fine.code, fine.stderr.as_str()), (Some(0), ""));
    assert!(fine.stdout.starts_with("worker: "), "{}", fine.stdout);

    let password = text(&dir.path().join("no-password"));
    let no_pem = dir.path().join("ca.pem");
    std::fs::write(&no_pem, "nothing").unwrap();
    let no_pem = text(&no_pem);
    let wrong: [(&[&str], &[&str]); 12] = [
        (&["worker", "--rolle", "stage"], &["--rolle"]),
        (&["worker", "--role", "painter"], &["--role", "painter"]),
        (&["worker", "--memory", "lots"], &["--memory", "16GiB"]),
        (&["worker", "--listen", "0.0.0.0:7070"], &["--insecure"]),
        (&["worker", "--health", "nowhere"], &["--health nowhere", "host:port"]),
        (&["worker", "--advertise", "$(POD_IP):7070"], &["--advertise $(POD_IP):7070", "host:port"]),
        (&["worker", "--name", "$(POD_NAME)"], &["--name"]),
        (&["coordinator", "--etcd", "https://etcd:2379"], &["--etcd https://etcd:2379", "--etcd-ca"]),
        (&["coordinator", "--etcd", "http://etcd:2379", "--etcd-ca", &no_pem], &["--etcd http://etcd:2379", "--etcd-ca"]),
        (&["coordinator", "--etcd", "https://etcd:2379", "--etcd-ca", &no_pem], &["ca.pem", "PEM"]),
        (&["coordinator", "--etcd-user", "u", "--etcd-password-file", &password], &["no-password"]),
        (&["coordinator", "--model", "/nowhere/at/all"], &["/nowhere/at/all"]),
    ];
    for (args, words) in wrong {
        let run = check(dir.path(), args);
        assert_eq!((run.code, run.stdout.as_str()), (Some(2), ""), "{args:?}: {}", run.stderr);
        assert_eq!(run.stderr.trim().lines().count(), 1, "{args:?}: {}", run.stderr);
        assert!(words.iter().all(|word| run.stderr.contains(word)), "{args:?}: {}", run.stderr);
    }
    assert_eq!(names(dir.path()), ["ca.pem"], "a check leaves nothing behind");
}

#[test]
fn a_checkpoint_with_another_digest_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let said = janus(dir.path(), &["inspect", "--json"]);
    let digest = serde_json::from_str::<serde_json::Value>(&said.stdout).unwrap()["digest"].as_str().unwrap().to_owned();
    assert_eq!(janus(dir.path(), &["inspect", "--digest", &digest]).code, Some(0));
    let other = "0".repeat(64);
    let refused = janus(dir.path(), &["inspect", "--digest", &other]);
    assert_eq!((refused.code, refused.stdout.as_str()), (Some(2), ""));
    assert!(refused.stderr.contains(&other) && refused.stderr.contains(&digest), "{}", refused.stderr);
}

#[test]
fn a_picture_that_is_not_the_expected_one_is_a_failure() {
    let dir = tempfile::tempdir().unwrap();
    let other = "0".repeat(64);
    let run = janus(dir.path(), &["generate", "a red circle", "-o", "x.png", "--expect", &other]);
    assert_eq!(run.code, Some(1));
    assert!(run.stderr.contains(&other), "{}", run.stderr);
    // The picture is there to be looked at.
    assert_eq!(names(dir.path()), ["x.png"]);
}

/// The layer of dependencies is built over sources that say nothing; cargo has to accept them in place of ours.
#[test]
fn the_image_builds_its_dependencies_first() {
    let dir = tempfile::tempdir().unwrap();
    for manifest in ["Cargo.toml", "Cargo.lock", "tests/Cargo.toml", "benches/Cargo.toml"] {
        copy(dir.path(), manifest);
    }
    for name in names(&repository().join("crates")) {
        copy(dir.path(), &format!("crates/{name}/Cargo.toml"));
    }
    succeed(Command::new(repository().join("deploy/skeleton")).current_dir(dir.path()));
    let rustc = Command::new("rustc").arg("-vV").output().unwrap();
    let host = String::from_utf8(rustc.stdout).unwrap();
    let host = host.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let mut cargo = Command::new("cargo");
    // What other platforms need was never fetched.
    cargo
        .args(["metadata", "--locked", "--offline", "--format-version", "1", "--filter-platform", host])
        .current_dir(dir.path())
        .stderr(Stdio::inherit());
    let output = cargo.output().unwrap();
    assert!(output.status.success());
    let targets = serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap();
    assert!(targets["packages"].as_array().unwrap().iter().any(|package| package["name"] == "janus"));
}

fn copy(to: &Path, file: &str) {
    let target = to.join(file);
    std::fs::create_dir_all(target.parent().unwrap()).unwrap();
    std::fs::copy(repository().join(file), target).unwrap();
}

/// What compose starts is what the program takes, and what it scrapes is there.
#[test]
fn compose_starts_what_the_program_takes() {
    let dir = tempfile::tempdir().unwrap();
    let mut lister = Command::new(python());
    lister.args(["-c", "import json, sys, yaml; print(json.dumps(yaml.safe_load(open(sys.argv[1]))))"]);
    let output = lister.arg(repository().join("deploy/docker-compose.yml")).output().unwrap();
    let compose: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut checked = 0;
    for (name, service) in compose["services"].as_object().unwrap() {
        if !service["image"].as_str().unwrap().contains("janus:") {
            continue;
        }
        let words: Vec<&str> = service["command"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
        let run = check(dir.path(), &words);
        assert_eq!(run.code, Some(0), "{name}: {}", run.stderr);
        checked += 1;
        assert_eq!(service["read_only"], true, "{name}");
    }
    assert_eq!(checked, 8);
    let scraped = std::fs::read_to_string(repository().join("deploy/prometheus/prometheus.yml")).unwrap();
    for name in compose["services"].as_object().unwrap().keys() {
        let observes = ["collector", "grafana", "prometheus"].contains(&name.as_str());
        assert_eq!(scraped.contains(&format!("\"{name}:")), !observes, "{name}");
    }
}

#[test]
fn prometheus_reads_the_alerts_and_what_it_scrapes() {
    let folder = repository().join("deploy/prometheus");
    let promtool = || Command::new(std::env::var_os("JANUS_PROMTOOL").unwrap_or_else(|| "promtool".into()));
    succeed(promtool().args(["check", "rules"]).arg(folder.join("alerts.yml")));
    // Where the rules are is said as in the container: beside it.
    succeed(promtool().args(["check", "config"]).arg(folder.join("prometheus.yml")));
    succeed(promtool().args(["test", "rules"]).arg(repository().join("tests/data/chart/alerts_test.yml")));
}
