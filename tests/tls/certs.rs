//! `janus certs`, and what the program says of certificates that do not fit.

use std::os::unix::fs::PermissionsExt;

use serde_json::Value;
use tempfile::tempdir;

use crate::papers::Authority;
use crate::support::{Run, janus, json, names};

fn refused(run: &Run, words: &str) {
    assert_eq!((run.code, run.stdout.as_str()), (Some(2), ""), "{run:?}");
    assert!(run.stderr.contains(words) && run.stderr.lines().count() == 1, "{words}: {}", run.stderr);
}

#[test]
fn an_authority_and_a_certificate_for_every_role_are_made_and_nothing_is_written_over() {
    let dir = tempdir().unwrap();
    let made = json(dir.path(), &["certs", "--out", "papers", "--cluster", "c", "--json"]);
    assert_eq!(made["ca"], "papers/ca.pem");
    let said: Vec<&str> = made["certificates"].as_array().unwrap().iter().map(|c| c["names"][0].as_str().unwrap()).collect();
    let roles = ["coordinator", "stage", "encoder", "decoder", "gateway", "client"];
    assert_eq!(said, roles.map(|role| format!("janus://c/{role}/{role}")));
    let papers = dir.path().join("papers");
    assert_eq!(names(&papers).len(), 14);
    for name in names(&papers) {
        let mode = std::fs::metadata(papers.join(&name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, if name.ends_with(".key") { 0o600 } else { 0o644 }, "{name}");
    }
    let before = crate::support::listing(&papers);
    refused(
        &janus(dir.path(), &["certs", "--out", "papers", "--cluster", "c"]),
        "is there already; nothing is written over",
    );
    assert_eq!(crate::support::listing(&papers), before);
}

#[test]
fn one_more_certificate_is_signed_by_the_authority_that_is_there() {
    let dir = tempdir().unwrap();
    let first = ["certs", "--out", "p", "--role", "stage,decoder", "--name", "w-0", "--host", "w-0.example,10.0.0.1"];
    let text = janus(dir.path(), &first);
    assert_eq!(text.code, Some(0), "{text:?}");
    assert!(text.stdout.contains("janus://janus/stage/w-0,janus://janus/decoder/w-0 p/w-0.pem p/w-0.key"), "{text:?}");
    let ca = std::fs::read(dir.path().join("p/ca.pem")).unwrap();
    let second = json(dir.path(), &["certs", "--out", "p", "--role", "client", "--json"]);
    assert_eq!(second["certificates"][0]["cert"], Value::from("p/client.pem"));
    assert_eq!(std::fs::read(dir.path().join("p/ca.pem")).unwrap(), ca);
    refused(&janus(dir.path(), &["certs", "--out", "p", "--role", "client", "--name", "ca"]), "that is the authority's");
    let outside = janus(dir.path(), &["certs", "--out", "p", "--role", "gateway", "--name", "../x"]);
    assert!(outside.code == Some(2) && outside.stderr.contains("a-z A-Z 0-9"), "{outside:?}");
}

#[test]
fn certificates_that_do_not_fit_are_refused_before_anything_starts() {
    let dir = tempdir().unwrap();
    for args in [&["certs", "--out", "p"][..], &["certs", "--out", "q", "--cluster", "q"]] {
        assert_eq!(janus(dir.path(), args).code, Some(0));
    }
    let old = Authority::new(&dir.path().join("old"));
    old.expired("stage", &["janus://janus/stage/s"]);
    let start = |verb: &'static str, ca: &str, cert: &str, key: &str| {
        let args = [verb, "--listen", "127.0.0.1:0", "--tls-ca", ca, "--tls-cert", cert, "--tls-key", key];
        janus(dir.path(), &args)
    };
    std::fs::write(dir.path().join("empty.pem"), "").unwrap();
    for (run, words) in [
        (start("worker", "p/ca.pem", "p/stage.pem", "p/stage.key"), "what runs here is also encoder, decoder"),
        (start("coordinator", "p/ca.pem", "p/stage.pem", "p/stage.key"), "what runs here is also coordinator"),
        (start("coordinator", "q/ca.pem", "q/coordinator.pem", "q/coordinator.key"), "of another cluster than `janus`"),
        (start("worker", "old/ca.pem", "old/stage.pem", "old/stage.key"), "old/stage.pem: expired on"),
        (start("serve", "p/ca.pem", "p/stage.pem", "p/client.key"), "p/client.key: is not the key of p/stage.pem"),
        (start("serve", "p/ca.pem", "p/stage.key", "p/stage.key"), "p/stage.key: holds no certificate"),
        (start("serve", "p/ca.pem", "p/stage.pem", "p/stage.pem"), "p/stage.pem: holds no private key"),
        (start("serve", "none.pem", "p/stage.pem", "p/stage.key"), "none.pem: No such file"),
        (start("serve", "empty.pem", "p/stage.pem", "p/stage.key"), "empty.pem: holds no certificate"),
        (janus(dir.path(), &["worker", "--tls-ca", "p/ca.pem"]), "a server needs a certificate"),
        (janus(dir.path(), &["serve", "--listen", "127.0.0.1:0", "--tls-ca", "p/ca.pem"]), "a server needs a certificate"),
        (janus(dir.path(), &["serve", "--tls-ca", "p/ca.pem", "--tls-key", "p/stage.key"]), "--tls-key without --tls-cert"),
        (janus(dir.path(), &["status", "--tls-cert", "p/client.pem", "--tls-key", "p/client.key"]), "without --tls-ca"),
        (janus(dir.path(), &["generate", "x", "--tls-ca", "p/ca.pem"]), "are for --endpoint"),
        (janus(dir.path(), &["serve", "--listen", "0.0.0.0:0"]), "there is no encryption"),
        (janus(dir.path(), &["status", "--endpoint", "https://127.0.0.1:1"]), "https needs the authority's certificate"),
        (
            janus(dir.path(), &["status", "--endpoint", "http://127.0.0.1:1", "--tls-ca", "p/ca.pem"]),
            "http is not encrypted, and TLS was asked for",
        ),
    ] {
        refused(&run, words);
    }
    // A check says what the run would.
    for verb in ["serve", "gateway"] {
        let alone = [verb, "--listen", "127.0.0.1:0", "--tls-ca", "p/ca.pem"];
        let (run, check) =
            (janus(dir.path(), &alone), janus(dir.path(), &[&["config", "check", "--"][..], &alone].concat()));
        refused(&check, "a server needs a certificate");
        assert_eq!(run.stderr, check.stderr, "{verb}");
    }
    let check = |args: &[&str]| janus(dir.path(), &[&["config", "check", "--"][..], args].concat());
    let coordinator = ["coordinator", "--etcd", "http://127.0.0.1:2379"];
    let folder = format!("file://{}", dir.path().join("jobs").display());
    for (args, words) in [
        (&["serve", "--operator-key-file", "missing"][..], "--operator-key-file missing"),
        (&["serve", "--otlp", "nonsense"], "--otlp nonsense"),
        (&["gateway", "--metrics", "nonsense"], "--metrics nonsense"),
        (
            &["gateway", "--listen", "127.0.0.1:8080", "--metrics", "127.0.0.1:8080"],
            "--metrics: port 8080 is that of --listen",
        ),
        (&["gateway", "--allow-host", "a/b"], "--allow-host"),
        (&[&coordinator[..], &["--jobs", "ftp://a/b"]].concat(), "--jobs ftp://a/b"),
        (&[&coordinator[..], &["--jobs", "s3:/x"]].concat(), "--jobs s3:/x"),
        (&[&coordinator[..], &["--health", "127.0.0.1:7070"]].concat(), "--health: port 7070 is that of --listen"),
        (&["certs", "--host", "a b"], "must be a host's name or an address"),
    ] {
        refused(&check(args), words);
    }
    let sound = check(&[&coordinator[..], &["--jobs", &folder, "--otlp", "http://collector:4317"]].concat());
    assert!(sound.code == Some(0) && !dir.path().join("jobs").exists(), "{sound:?}");
}
