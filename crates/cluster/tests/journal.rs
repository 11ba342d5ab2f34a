//! The journal of a real process: kill -9 in the middle of commits, restarts, a second process, damage. What a power
//! cut leaves (torn and missing writes) is simulated beside the journal's code.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use janus_cluster::{Committed, Error, Store, StoreConfig, Txn};

/// Set in the child: the directory of the journal.
const CHILD: &str = "JANUS_TEST_JOURNAL";

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().unwrap()
}

async fn open(dir: &Path) -> Result<Arc<dyn Store>, Error> {
    StoreConfig::Journal { dir: dir.to_owned() }.connect().await
}

/// This test binary again, running the test `name` only, as a child.
fn child(name: &str, dir: &Path) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads", "1"])
        .env(CHILD, dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Four writers that commit two keys at a time, and print each number once its commit is acknowledged.
fn commit_for_ever(dir: &Path) -> ! {
    runtime().block_on(async {
        let store = open(dir).await.unwrap();
        let begin = store.list("a/").await.unwrap().entries.len();
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let store = store.clone();
                tokio::spawn(async move {
                    for i in (begin..).map(|i| i * 4 + writer) {
                        let value = vec![u8::try_from(i % 251).unwrap(); 300];
                        let txn = Txn::new().if_absent(format!("a/{i}"));
                        let txn = txn.put(format!("a/{i}"), value.clone()).put(format!("b/{i}"), value);
                        if let Committed::Done { .. } = store.commit(txn).await.unwrap() {
                            println!("done {i}");
                        }
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.await.unwrap();
        }
        unreachable!("writers do not end");
    })
}

/// Kills a child after at least `count` acknowledged commits; gives back all it acknowledged.
fn killed_after(count: usize, dir: &Path) -> Vec<usize> {
    let mut child = child("what_was_acknowledged_survives_kill_9_in_the_middle_of_commits", dir);
    let mut acknowledged = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if let Some((_, number)) = line.split_once("done ") {
            acknowledged.push(number.parse().unwrap());
        }
        if acknowledged.len() == count {
            child.kill().unwrap();
        }
    }
    assert!(!child.wait().unwrap().success());
    assert!(acknowledged.len() >= count, "the child ended by itself after {}", acknowledged.len());
    acknowledged
}

#[test]
fn what_was_acknowledged_survives_kill_9_in_the_middle_of_commits() {
    if let Some(dir) = std::env::var_os(CHILD) {
        commit_for_ever(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let mut all = Vec::new();
    let mut revision = 0;
    for round in 0..4 {
        all.extend(killed_after(60 + 37 * round, dir.path()));
        runtime().block_on(async {
            let store = open(dir.path()).await.unwrap();
            let (a, b) = (store.list("a/").await.unwrap(), store.list("b/").await.unwrap());
            let halves = |listing: &janus_cluster::Listing| -> Vec<(String, u64)> {
                listing.entries.iter().map(|entry| (entry.key[2..].to_owned(), entry.version)).collect()
            };
            assert_eq!(halves(&a), halves(&b), "half a transaction");
            for number in &all {
                let there = a.entries.iter().any(|entry| entry.key == format!("a/{number}"));
                assert!(there, "{number} was acknowledged and is lost");
            }
            assert!(a.revision > revision, "the revision went back");
            revision = a.revision;
        });
    }
}

#[test]
fn leases_survive_a_restart_and_then_end_in_their_time() {
    let dir = tempfile::tempdir().unwrap();
    let lease = runtime().block_on(async {
        let store = open(dir.path()).await.unwrap();
        let lease = store.grant(Duration::from_secs(2)).await.unwrap();
        store.commit(Txn::new().put_leased("a", "1", lease).put("b", "1")).await.unwrap();
        lease
    });
    runtime().block_on(async {
        let store = open(dir.path()).await.unwrap();
        assert_eq!(store.get("a").await.unwrap().unwrap().lease, Some(lease));
        store.keep_alive(lease).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2500)).await;
        assert_eq!(store.get("a").await.unwrap(), None);
        assert!(store.get("b").await.unwrap().is_some());
        assert!(store.grant(Duration::from_secs(2)).await.unwrap() > lease, "a lease's number is not used again");
    });
    runtime().block_on(async {
        let store = open(dir.path()).await.unwrap();
        assert_eq!(store.get("a").await.unwrap(), None, "the lease's end is in the journal too");
    });
}

#[test]
fn two_handles_in_one_process_are_one_store_and_another_process_is_refused() {
    if let Some(dir) = std::env::var_os(CHILD) {
        let refused = runtime().block_on(open(Path::new(&dir))).map(|store| store.describe());
        println!("said {}", refused.unwrap_err());
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let (one, two) = (open(dir.path()).await.unwrap(), open(&dir.path().join(".")).await.unwrap());
        one.commit(Txn::new().put("a", "1")).await.unwrap();
        assert!(two.get("a").await.unwrap().is_some());
        let child = child("two_handles_in_one_process_are_one_store_and_another_process_is_refused", dir.path());
        let output = tokio::task::spawn_blocking(|| child.wait_with_output().unwrap()).await.unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.contains("another process uses it"), "{said}");
    });
}

#[test]
fn a_damaged_journal_is_an_error_that_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("store.redb");
    for content in [vec![0x5a; 100_000], vec![]] {
        std::fs::write(&file, &content).unwrap();
        match runtime().block_on(open(dir.path())) {
            Ok(_) => assert!(content.is_empty(), "nonsense was read as a journal"),
            Err(error) => {
                let said = error.to_string();
                assert!(matches!(error, Error::Journal { .. }) && said.contains("backup"), "{said}");
                assert!(said.contains(&dir.path().display().to_string()), "{said}");
            }
        }
    }
    let no_directory = runtime().block_on(open(&file.join("below")));
    assert!(matches!(no_directory.map(|_| ()), Err(Error::Journal { .. })));
}
