//! The life of a cluster that `janus up` runs: parts come back, all of them end with it, and it goes on where it was.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::asks::{IDS, begin, end, guided, mixed, undisturbed};
use crate::membership::Hand;
use crate::support::{binary, janus, json, names};
use crate::up::{Part, Up, alive, free_ports, member, ready, signal};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_killed_in_the_middle_and_started_again_the_callers_get_their_pictures() {
    let asks = mixed();
    let expected = undisturbed(&asks).await;
    let mut up = Up::slow(3, &["--spares", "1", "--coordinators", "2"]);
    let dir = tempfile::tempdir().unwrap();
    // The program waits as callers do.
    let mut painting = Command::new(binary());
    painting.args(["generate", "a red circle left of a blue square", "-n", "2", "--json", "-o", "x.png"]);
    painting.args(["--endpoint", &up.endpoints]).current_dir(dir.path()).stdin(Stdio::null());
    let painting = painting.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut callers = begin(&up.endpoints, &asks);
    callers[0].reaches(20).await;
    up.kill_all();
    let known = callers[0].known();
    assert!((1..IDS).contains(&known), "all was done already");
    up.start_again();
    let began = Instant::now();
    let courses = end(callers, &expected, "everything killed").await;
    println!("everything killed at id {known}: done {:.1} s after the new start", began.elapsed().as_secs_f64());
    assert!(courses[..3].iter().all(|c| c.resumed >= 1 && c.durable), "{courses:?}");
    let painted = painting.wait_with_output().unwrap();
    assert!(painted.status.success(), "{}\n{}", String::from_utf8_lossy(&painted.stderr), up.tail());
    let painted: Value = serde_json::from_slice(&painted.stdout).unwrap();
    let sums: Vec<&str> = painted["images"].as_array().unwrap().iter().map(|i| i["sha256"].as_str().unwrap()).collect();
    let expected: Vec<String> = expected[0].sha256.iter().map(|sum| janus_wire::hello::hex(sum)).collect();
    assert_eq!(sums, expected);
    assert!(painted["resumed"].as_u64() >= Some(1), "{painted}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_come_back_under_their_names_and_end_with_their_parent() {
    let mut up = Up::start(&["--stages", "2", "--coordinators", "2"]);
    let before = up.parts();
    let expected =
        ["coordinator-0", "coordinator-1", "decoder-0", "encoder-0", "etcd", "stage-0", "stage-1"].map(str::to_owned);
    assert_eq!(before.keys().cloned().collect::<Vec<_>>(), expected);
    // All in one process group, so that a shell can end them.
    let group = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit(") ").next().unwrap().split(' ').nth(2).unwrap().to_owned()
    };
    let own = up.part().pid();
    assert!(before.values().all(|pid| group(*pid) == own.to_string()), "{before:?}");
    for name in ["stage-0", "encoder-0"] {
        signal(before[name], "KILL");
        let status = up.until("it is back", |s| member(s, name)["pid"] != before[name] && ready(s)).await;
        assert_eq!(member(&status, name)["pid"], up.pid(name).await);
    }
    // A standby knows who leads, and the program follows it.
    let status = up.status().await;
    let standby = up.endpoints.split(',').nth(usize::from(status["leader"] == "coordinator-0")).unwrap();
    let asked = crate::up::status(standby).unwrap();
    assert_eq!((&asked["leader"], &asked["epoch"]), (&status["leader"], &status["epoch"]));
    let dir = tempfile::tempdir().unwrap();
    let args = ["generate", "a red circle", "--json", "--endpoint", standby];
    let there = crate::support::json(dir.path(), &args);
    let here = crate::support::json(dir.path(), &args[..3]);
    assert_eq!(there["images"], here["images"]);

    let after: Vec<u32> = up.parts().into_values().collect();
    signal(own, "KILL");
    let killed = Instant::now();
    while after.iter().any(|pid| alive(*pid)) {
        assert!(killed.elapsed() < Duration::from_secs(5), "parts outlive their parent");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn without_etcd_on_the_path_the_way_out_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(binary());
    let output = command.arg("up").env("PATH", dir.path()).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("janus serve") && said.contains("etcd-server"), "{said}");
    assert!(output.stdout.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_cannot_reach_etcd_says_so_keeps_trying_and_goes_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let nowhere = format!("http://127.0.0.1:{}", free_ports());
    let listen = format!("127.0.0.1:{}", free_ports());
    let worker = Part::start(dir.path(), "worker", &["worker", "--name", "w", "--etcd", &nowhere]);
    let args = ["coordinator", "--name", "c", "--listen", &listen, "--etcd", &nowhere];
    let coordinator = Part::start(dir.path(), "coordinator", &args);
    for mut part in [worker, coordinator] {
        part.says(nowhere.trim_start_matches("http://")).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(part.ended(), None, "{}", part.tail());
        part.signal("INT");
        assert_eq!(part.ends(Duration::from_secs(10)).await.code(), Some(0), "{}", part.tail());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_leaves_by_drain_or_by_sigterm_and_no_request_fails() {
    let asks = vec![guided("a red circle left of a blue square", 2, 0), guided("a green triangle", 1, 7)];
    let expected = undisturbed(&asks).await;
    let up = Up::slow(2, &["--spares", "1"]);
    let status = up.until("the spare is ready", |s| crate::up::count(s, "spare") == 1).await;
    let leaver = crate::up::stages(&status)[0].clone();
    let mut callers = begin(&up.endpoints, &asks);
    callers[0].reaches(10).await;
    // Somebody who is not there.
    let drain = |node: &str| {
        let mut command = Command::new("timeout");
        let command = command.arg("80").arg(binary()).args(["drain", node, "--endpoint", &up.endpoints]);
        command.output().unwrap()
    };
    let unknown = drain("stage-9");
    let said = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(unknown.status.code() == Some(2) && said.contains("stage-9"), "{said}");
    let drained = drain(&leaver);
    assert!(drained.status.success(), "{}\n{}", String::from_utf8_lossy(&drained.stderr), up.tail());
    assert!(callers[0].known() < IDS, "the pictures were over before the drain was");
    let status = up.until("it is out", |s| ready(s) && !crate::up::stages(s).contains(&leaver)).await;
    assert_eq!(member(&status, &leaver)["state"], "draining");
    // Now it can be stopped; it is started again, and comes as a new one.
    let pid = up.pid(&leaver).await;
    signal(pid, "TERM");
    let status = up.until("it is back", |s| ready(s) && member(s, &leaver)["state"] != "draining").await;
    assert_ne!(member(&status, &leaver)["pid"], pid);
    end(callers, &expected, "drained").await;

    // A termination alone does the same.
    let status = up.until("a spare is ready", |s| crate::up::count(s, "spare") == 1).await;
    let leaver = crate::up::stages(&status)[1].clone();
    let pid = up.pid(&leaver).await;
    let mut callers = begin(&up.endpoints, &asks);
    callers[0].reaches(10).await;
    signal(pid, "TERM");
    assert!(callers[0].known() < IDS);
    let courses = end(callers, &expected, "terminated").await;
    println!("{leaver} terminated: resumed {:?}", courses.iter().map(|c| c.resumed).collect::<Vec<_>>());
    let failures = |s: &Value| s["pipelines"][0]["failures"].as_u64().unwrap();
    let after = up.status().await;
    assert_eq!(failures(&status), failures(&after), "its layers moved before it went: {after:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_keeps_no_jobs_is_evaluated_by_requests() {
    let mut hand = Hand::start(&["--stages", "1"]).await;
    hand.worker("all", &[]);
    hand.until("it is ready", ready).await;
    let (dir, endpoint) = (tempfile::tempdir().unwrap(), hand.endpoint.clone());
    let lines = ["a red circle", "two blue squares"].map(|prompt| serde_json::json!({ "prompt": prompt }).to_string());
    std::fs::write(dir.path().join("metadata.jsonl"), lines.join("\n")).unwrap();
    let evaluated = tokio::task::spawn_blocking(move || {
        let none = janus(dir.path(), &["jobs", "list", "--endpoint", &endpoint]);
        assert!(none.code == Some(1) && none.stderr.contains("keeps no jobs"), "{none:?}");
        let geneval = ["eval", "geneval", "metadata.jsonl", "-n", "2", "--json"];
        for way in [&["--to", "here"][..], &["--to", "there", "--endpoint", &endpoint]] {
            // Nothing is said of a job.
            let report = json(dir.path(), &[&geneval, way].concat());
            assert_eq!((&report["total"], &report["made"]), (&4.into(), &4.into()), "{report}");
        }
        for picture in
            ["00000/samples/0000.png", "00000/samples/0001.png", "00001/samples/0000.png", "00001/samples/0001.png"]
        {
            let painted = |folder: &str| std::fs::read(dir.path().join(folder).join(picture)).unwrap();
            assert!(painted("here") == painted("there"), "{picture}");
        }
        assert_eq!(names(&dir.path().join("there")), ["00000", "00001", "janus-eval.json"]);
    });
    evaluated.await.unwrap();
}
