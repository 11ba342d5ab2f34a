//! Random losses under load, for as long as one likes; nothing grows.

use std::time::{Duration, Instant};

use janus_wire::v1::DescribeRequest;
use janus_wire::v1::stage_client::StageClient;
use serde_json::Value;

use crate::asks::{begin, end, mixed, undisturbed};
use crate::up::{Up, ready, signal};
use crate::{numbers, seconds};

/// Resident kB and open handles of a process.
fn held(pid: u32) -> (u64, usize) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
    let handles = std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    (resident.trim().trim_end_matches(" kB").parse().unwrap_or(0), handles)
}

/// A quarter of the slots may keep the prompts of units that ended: two rows of at most 96 positions, each of 1,536 bytes in a
/// layer.
const KEPT: u64 = 16 * 2 * 96 * 1536;

/// Stages that hold more than that, with their open slots and bytes of KV memory.
async fn slots(status: &Value) -> Vec<(String, u32, u64)> {
    let mut found = Vec::new();
    for member in status["members"].as_array().unwrap() {
        if !member["roles"].as_array().unwrap().iter().any(|role| role == "stage") {
            continue;
        }
        let address = member["address"].as_str().unwrap();
        let channel = janus_wire::connect(address, &janus_wire::Security::Plain).await.unwrap();
        let seen = StageClient::new(channel).describe(DescribeRequest {}).await.unwrap().into_inner();
        let layers = u64::from(seen.end_layer - seen.first_layer);
        if seen.open_slots > 0 || seen.kv_bytes > layers * KEPT {
            found.push((member["id"].to_string(), seen.open_slots, seen.kv_bytes));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_losses_under_load_leave_nothing_behind() {
    let length = seconds("JANUS_SOAK_SECONDS", 120);
    let mut random = numbers("soak");
    let asks = mixed();
    let expected = undisturbed(&asks).await;
    let args = ["--stages", "3", "--spares", "1", "--coordinators", "2", "--painters", "2"];
    let up = Up::start(&[&args[..], &["--test", "--test-step-delay-ms", "10"]].concat());
    let began = Instant::now();
    let (mut blows, mut pictures, mut sizes) = (Vec::new(), 0, Vec::new());
    let mut said = vec![(0, up_log(&up))];
    // Parts that nobody hurts show what grows: etcd, and from the first third on, whoever leads then.
    let mut leader = None;
    while began.elapsed() < length {
        if leader.is_none() && began.elapsed() > length / 3 {
            leader = up.status().await["leader"].as_str().map(str::to_owned);
        }
        let callers = [begin(&up.endpoints, &asks), begin(&up.endpoints, &asks)];
        tokio::time::sleep(Duration::from_millis(200 + random.below(1500))).await;
        let parts = up.parts();
        let names: Vec<&String> = parts.keys().filter(|name| *name != "etcd" && leader.as_ref() != Some(name)).collect();
        let name = names[random.below(names.len() as u64) as usize].clone();
        let freeze = random.below(4) == 0;
        if freeze {
            signal(parts[&name], "STOP");
            tokio::time::sleep(Duration::from_millis(500 + random.below(4000))).await;
            signal(parts[&name], "CONT");
        } else {
            signal(parts[&name], "KILL");
        }
        blows.push(format!("{name} {}", if freeze { "frozen" } else { "killed" }));
        for callers in callers {
            pictures += end(callers, &expected, &format!("{blows:?}")).await.len();
        }
        if let Some(leader) = &leader {
            let now = up.parts();
            sizes.push(["etcd", leader.as_str()].map(|name| held(now[name])));
        }
        said.push((blows.len(), up_log(&up)));
    }
    let status = up
        .until("nothing runs any more", |s| {
            let idle = |key: &str| s["requests"][key] == 0;
            ready(s) && idle("running") && idle("queued") && idle("parked")
        })
        .await;
    let until = Instant::now() + Duration::from_secs(20);
    let mut left = slots(&status).await;
    while !left.is_empty() && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(200)).await;
        left = slots(&up.status().await).await;
    }
    println!("{} blows, {pictures} requests in {:.0} s: {blows:?}", blows.len(), began.elapsed().as_secs_f64());
    assert!(left.is_empty(), "slots are still held: {left:?}");
    let leader = leader.unwrap();
    assert_eq!(status["leader"], leader.as_str(), "whoever was spared should still lead");
    for (i, name) in ["etcd", leader.as_str()].iter().enumerate() {
        let (early, late) = (sizes[0][i], sizes[sizes.len() - 1][i]);
        let series: Vec<(u64, usize)> = sizes.iter().map(|s| s[i]).collect();
        println!("{name}, kB and handles after each blow: {series:?}");
        assert!(late.0 <= early.0 * 3 / 2 + 16_384, "{name} grows: {series:?}");
        assert!(late.1 <= early.1 * 3 / 2 + 16, "{name} keeps handles: {series:?}");
    }
    // Words for each loss, and no more of them later than at first.
    let words = |from: usize, to: usize| (said[to].1 - said[from].1) / (to - from).max(1);
    let (early, late) = (words(0, said.len() / 2), words(said.len() / 2, said.len() - 1));
    println!("{early} bytes of log for each blow at first, {late} later");
    assert!(late <= early * 3 + 8_192, "the log grows: {said:?}");
}

fn up_log(up: &Up) -> usize {
    std::fs::metadata(up.dir().join("up.log")).map_or(0, |meta| meta.len() as usize)
}
