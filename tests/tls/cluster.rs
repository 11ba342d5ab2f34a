//! A whole cluster under mutual TLS, etcd included.

use std::path::PathBuf;

use janus_wire::Security;
use serde_json::{Value, json};
use tempfile::tempdir;

use super::*;
use support::json as answer;
use up::{Up, ready};

/// A picture, an answer about a picture, and a picture's ids: all roles have a part in them.
fn everything(dir: &Path, endpoint: &[&str]) -> Vec<Value> {
    let ask = |args: &[&str]| answer(dir, &[args, endpoint, &["--json"]].concat());
    let mut answers = vec![
        ask(&["generate", "a red circle left of a blue square", "-o", "a.png"]),
        ask(&["ask", "What is in the picture?", "--image", "a.png", "--max-tokens", "12"]),
        ask(&["tokenize", "a.png"]),
    ];
    for answer in &mut answers {
        ["request", "resumed", "restarted", "model"]
            .iter()
            .for_each(|key| drop(answer.as_object_mut().unwrap().remove(*key)));
    }
    let pixels = image::open(dir.join("a.png")).unwrap().into_rgb8().into_raw();
    std::fs::remove_file(dir.join("a.png")).unwrap();
    answers.push(json!(pixels));
    answers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_role_paints_the_same_picture_under_mutual_tls_and_nobody_is_heard_without() {
    let dir = tempdir().unwrap();
    let expected = everything(dir.path(), &[]);
    let up = Up::start(&["--tls", "--stages", "2", "--coordinators", "2"]);
    let tls: PathBuf = up.dir().join("state/tls");
    let file = |name: &str| support::text(&tls.join(name));
    let ca = file("ca.pem");
    let answers = everything(dir.path(), &["--endpoint", &up.endpoints, "--tls-ca", &ca]);
    assert!(answers == expected, "{}", up.tail());

    // The environment says it as well as flags do; with a certificate servers are known by their role.
    let mut command = std::process::Command::new(support::binary());
    command.args(["status", "--json", "--endpoint", &up.endpoints]).env("JANUS_TLS_CA", &ca);
    command.env("JANUS_TLS_CERT", file("client.pem")).env("JANUS_TLS_KEY", file("client.key"));
    let output = command.output().unwrap();
    let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}\n{}", up.tail()));
    assert!(ready(&status), "{status:#}");
    let members = status["members"].as_array().unwrap();
    assert_eq!(members.len(), 4, "{status:#}");

    // What every client knows opens no worker, nor does a certificate of a client.
    let anonymous = papers::security(Files { authority: tls.join("ca.pem"), own: None });
    let own = Some((tls.join("client.pem"), tls.join("client.key")));
    let client = papers::security(Files { authority: tls.join("ca.pem"), own });
    for member in members {
        let address = member["address"].as_str().unwrap();
        assert!(janus_wire::connect(address, &anonymous).await.is_err(), "{member}");
        assert!(janus_wire::connect(address, &client).await.is_err(), "{member}");
    }
    // Nobody says anything to who speaks no TLS, etcd included.
    let etcd = up.etcd().await;
    let etcd = etcd.strip_prefix("https://").unwrap();
    let ports = members.iter().map(|m| m["address"].as_str().unwrap()).chain(up.endpoints.split(',')).chain([etcd]);
    for address in ports {
        let heard = match janus_wire::connect(address, &Security::Plain).await {
            Err(_) => false,
            Ok(channel) => {
                let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
                let request = tonic_health::pb::HealthCheckRequest::default();
                let answer = health.check(request).await;
                answer.is_ok() || answer.is_err_and(|status| status.code() == tonic::Code::Unimplemented)
            }
        };
        assert!(!heard, "{address} speaks without TLS");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_stage_comes_back_under_mutual_tls() {
    let up = Up::start(&["--tls", "--stages", "2", "--ttl", "2"]);
    let ca = support::text(&up.dir().join("state/tls/ca.pem"));
    let pid = up.pid("stage-1").await;
    up::signal(pid, "KILL");
    let dir = tempdir().unwrap();
    let args = ["generate", "a green triangle", "--endpoint", &up.endpoints, "--tls-ca", &ca, "--json", "-o", "b.png"];
    let painted = answer(dir.path(), &args);
    let alone = answer(dir.path(), &["generate", "a green triangle", "--json", "-o", "c.png"]);
    assert_eq!(painted["images"][0]["sha256"], alone["images"][0]["sha256"], "{painted} {alone}");
    assert_ne!(up.pid("stage-1").await, pid);
}
