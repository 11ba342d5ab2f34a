//! Losing each part in the middle of pictures: killed, and frozen for a while.

use std::time::{Duration, Instant};

use serde_json::Value;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::asks::{IDS, begin, end, guided, mixed, question, undisturbed};
use crate::caller::{Caller, Course};
use crate::client::{Answer, Ask, Numbers};
use crate::up::{Up, alive, count, ready, signal, stages};
use crate::{numbers, seconds};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Victim {
    First,
    Middle,
    Last,
    Encoder,
    Decoder,
    Coordinator,
    Etcd,
}

const VICTIMS: [Victim; 7] =
    [Victim::First, Victim::Middle, Victim::Last, Victim::Encoder, Victim::Decoder, Victim::Coordinator, Victim::Etcd];

impl Victim {
    fn is_stage(self) -> bool {
        matches!(self, Victim::First | Victim::Middle | Victim::Last)
    }

    /// The name of its process.
    fn name(self, status: &Value) -> String {
        let stages = stages(status);
        match self {
            Victim::First => stages[0].clone(),
            Victim::Middle => stages[1].clone(),
            Victim::Last => stages[stages.len() - 1].clone(),
            Victim::Encoder => "encoder-0".to_owned(),
            Victim::Decoder => "decoder-0".to_owned(),
            Victim::Coordinator => status["leader"].as_str().unwrap().to_owned(),
            Victim::Etcd => "etcd".to_owned(),
        }
    }
}

/// Everybody is here: three stages, a spare that has loaded, encoder and decoder, and two coordinators.
async fn whole(up: &Up) -> Value {
    let until = Instant::now() + crate::up::LONG;
    while up.parts().len() < 9 {
        assert!(Instant::now() < until, "these are all parts: {:?}\n{}", up.parts(), up.tail());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let parts = up.parts();
    up.until("all members are here, three stages run, one stands by", |status| {
        let present = |m: &Value| parts.get(m["id"].as_str().unwrap()).is_some_and(|pid| m["pid"] == *pid);
        let members = status["members"].as_array().unwrap();
        members.len() == 6
            && members.iter().all(present)
            && ready(status)
            && stages(status).len() == 3
            && count(status, "serving") == 5
            && count(status, "spare") == 1
    })
    .await
}

async fn is_serving(endpoint: &str) -> Option<bool> {
    let request = HealthCheckRequest { service: "janus.v1.Inference".to_owned() };
    let ask = async {
        let channel = janus_wire::connect(endpoint, &janus_wire::Security::Plain).await.ok()?;
        let answer = HealthClient::new(channel).check(request).await.ok()?;
        Some(answer.into_inner().status() == ServingStatus::Serving)
    };
    tokio::time::timeout(Duration::from_secs(2), ask).await.ok().flatten()
}

/// Waits for a random id of the first request, strikes, and asserts that it fell between the first and the last one.
async fn strike(callers: &mut [Caller], random: &mut Numbers, blow: impl FnOnce()) -> u32 {
    let at = 3 + random.below(u64::from(IDS) * 2 / 3) as u32;
    callers[0].reaches(at).await;
    blow();
    let known = callers[0].known();
    assert!(known > 0 && known < IDS, "the blow fell after the last id: {known}");
    known
}

fn recovery(status: &Value) -> f64 {
    status["pipelines"][0]["recovery_seconds"].as_f64().unwrap()
}

fn failures(status: &Value) -> u64 {
    status["pipelines"][0]["failures"].as_u64().unwrap()
}

/// Prints how long the first request's caller heard nothing, and the pipeline's own figure, which begins when the loss
/// is noticed and which only the loss of a stage renews.
fn tell(what: &str, course: &Course, recovery: Option<f64>) {
    let recovery = recovery.map_or(String::new(), |seconds| format!(", recovery_seconds {seconds:.2}"));
    println!("{what}: longest silence {:.2} s{recovery}, resumed {}", course.silence.as_secs_f64(), course.resumed);
}

fn resumed_once(resumed: &[u32], expected: bool, what: &str) {
    let right = |times: &u32| *times == u32::from(expected);
    assert!(resumed.iter().all(right), "{what}: resumed {resumed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_any_part_changes_no_bit_and_fails_no_request() {
    let mut random = numbers("kills");
    let asks = mixed();
    let expected = undisturbed(&asks).await;
    let up = Up::slow(3, &["--spares", "1", "--coordinators", "2"]);
    for victim in VICTIMS {
        let status = whole(&up).await;
        let name = victim.name(&status);
        let pid = up.pid(&name).await;
        let mut callers = begin(&up.endpoints, &asks[..3]);
        let at = strike(&mut callers, &mut random, || signal(pid, "KILL")).await;
        // The answer of an encoder that is not there yet, beside the pictures.
        let late = begin(&up.endpoints, &asks[3..]);
        let what = format!("{victim:?} ({name}) killed at id {at}");
        let courses = end(callers, &expected, &what).await;
        let late = end(late, &expected[3..], &what).await;
        let after = up.status().await;
        tell(&what, &courses[0], victim.is_stage().then(|| recovery(&after)));
        let resumed: Vec<u32> = courses.iter().map(|c| c.resumed).collect();
        resumed_once(&resumed, victim.is_stage() || victim == Victim::Coordinator, &what);
        assert!(late.iter().all(|course| course.resumed <= 1), "{what}: {late:?}");
        if victim.is_stage() {
            // The promise is 2 s; the machine may be busy.
            assert!(courses[0].silence < Duration::from_secs(10), "{what}: {:?}", courses[0].silence);
        }
        if victim == Victim::Etcd || victim == Victim::Encoder || victim == Victim::Decoder {
            assert_eq!((failures(&status), &status["leader"]), (failures(&after), &after["leader"]), "{what}");
        }
        assert!(!alive(pid));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_stage_is_replaced_and_what_it_says_later_is_refused() {
    frozen(&[Victim::First, Victim::Middle, Victim::Last]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_coordinator_etcd_encoder_or_decoder_costs_time_alone() {
    frozen(&[Victim::Coordinator, Victim::Etcd, Victim::Encoder, Victim::Decoder]).await;
}

async fn frozen(victims: &[Victim]) {
    let mut random = numbers("freezes");
    let pause = seconds("JANUS_STOP_SECONDS", 10);
    let asks = mixed();
    let expected = undisturbed(&asks).await;
    let up = Up::slow(3, &["--spares", "1", "--coordinators", "2"]);
    for &victim in victims {
        let status = whole(&up).await;
        let name = victim.name(&status);
        let pid = up.pid(&name).await;
        let leader = up.endpoints.split(',').nth(usize::from(status["leader"] == "coordinator-1")).unwrap();
        let mut callers = begin(&up.endpoints, &asks);
        let at = strike(&mut callers, &mut random, || signal(pid, "STOP")).await;
        let what = format!("{victim:?} ({name}) frozen at id {at} for {pause:?}");
        let struck = Instant::now();
        if victim.is_stage() {
            // A step has max(2 s, 8 x the usual); then the leader says so at once.
            while is_serving(leader).await != Some(false) {
                assert!(struck.elapsed() < Duration::from_secs(6), "{what}: still ready after {:?}", struck.elapsed());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            println!("{what}: not ready after {:.2} s", struck.elapsed().as_secs_f64());
        }
        // Requests that begin meanwhile are served as well.
        let meanwhile = begin(&up.endpoints, &asks[1..]);
        tokio::time::sleep(pause.saturating_sub(struck.elapsed())).await;
        let before = up.try_status();
        signal(pid, "CONT");
        let courses = end(callers, &expected, &what).await;
        end(meanwhile, &expected[1..], &what).await;
        let after = up.status().await;
        tell(&what, &courses[0], victim.is_stage().then(|| recovery(&after)));
        if victim.is_stage() {
            let resumed: Vec<u32> = courses[..3].iter().map(|c| c.resumed).collect();
            resumed_once(&resumed, true, &what);
            // The promise is 2 s for the step, and 2 s more.
            assert!(courses[0].silence < Duration::from_secs(12), "{what}: {:?}", courses[0].silence);
            // What it still had to say did not disturb those who took its place.
            let after = whole(&up).await;
            let before = before.unwrap();
            assert_eq!((failures(&before), stages(&before)), (failures(&after), stages(&after)), "{what}");
            assert!(!stages(&after).contains(&name), "{what}: {after:#}");
            assert!(alive(pid), "{what}: it ended");
        }
        if victim == Victim::Coordinator {
            // Just awake, the old one may still take itself for the leader; everybody refuses what it says.
            let other = |s: &Value| s["leader"] != status["leader"] && s["epoch"].as_u64() > status["epoch"].as_u64();
            up.until("another one leads", other).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn losing_the_replacement_and_two_stages_at_once_changes_no_bit() {
    let mut random = numbers("twice");
    let asks = vec![guided("a red circle left of a blue square", 2, 0), guided("a green triangle", 1, 7)];
    let expected = undisturbed(&asks).await;
    let up = Up::slow(3, &["--spares", "1", "--coordinators", "2"]);

    // The replacement, too.
    let status = whole(&up).await;
    let first = Victim::Middle.name(&status);
    let mut callers = begin(&up.endpoints, &asks);
    callers[0].reaches(5 + random.below(10) as u32).await;
    signal(up.pid(&first).await, "KILL");
    let replaced = up.until("it is replaced", |s| ready(s) && failures(s) > failures(&status)).await;
    let second = stages(&replaced).into_iter().find(|node| !stages(&status).contains(node));
    let second = second.unwrap_or_else(|| Victim::Middle.name(&replaced));
    let known = callers[0].known();
    callers[0].reaches(known + 2).await;
    let pid = up.pid(&second).await;
    signal(pid, "KILL");
    assert!(callers[0].known() < IDS, "the second blow fell too late");
    let what = format!("{first} and then {second} killed");
    let courses = end(callers, &expected, &what).await;
    assert!(courses.iter().all(|c| c.resumed == 2), "{what}: {:?}", courses.iter().map(|c| c.resumed).collect::<Vec<_>>());
    tell(&what, &courses[0], Some(recovery(&up.status().await)));

    // Two at once; there is one spare.
    let status = whole(&up).await;
    let names = [Victim::First.name(&status), Victim::Last.name(&status)];
    let pids = [up.pid(&names[0]).await, up.pid(&names[1]).await];
    let mut callers = begin(&up.endpoints, &asks);
    let at = strike(&mut callers, &mut random, || pids.iter().for_each(|pid| signal(*pid, "KILL"))).await;
    let what = format!("{names:?} killed at id {at}");
    let courses = end(callers, &expected, &what).await;
    assert!(courses.iter().all(|c| (1..=2).contains(&c.resumed)), "{what}: {courses:?}");
    let after = up.status().await;
    tell(&what, &courses[0], Some(recovery(&after)));
    assert!(courses[0].silence < Duration::from_secs(15), "{what}: {:?}", courses[0].silence);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_encoder_or_a_decoder_that_dies_with_work_in_its_hands_is_replaced() {
    let asks: Vec<Ask> = vec![guided("a red circle", 1, 1), question()];
    let expected: Vec<Answer> = undisturbed(&asks).await;
    let up = Up::start(&["--stages", "2"]);
    for (name, ask, expected) in [("decoder-0", &asks[..1], &expected[..1]), ("encoder-0", &asks[1..], &expected[1..])] {
        let pid = up.pid(name).await;
        // It takes the work, and does nothing.
        signal(pid, "STOP");
        let mut callers = begin(&up.endpoints, ask);
        match name {
            "decoder-0" => callers[0].reaches(IDS).await,
            _ => tokio::time::sleep(Duration::from_millis(500)).await,
        }
        if callers[0].is_finished() {
            let courses = end(callers, expected, "before its end").await;
            panic!("{name} was not needed: {courses:?}");
        }
        signal(pid, "KILL");
        let courses = end(callers, expected, &format!("{name} killed at work")).await;
        assert_eq!(courses[0].resumed, 0);
        assert_ne!(up.pid(name).await, pid);
    }
}
