//! `janus status` and `janus drain`: what operators ask a coordinator.

use std::future::Future;

use janus_wire::v1::cluster_client::ClusterClient;
use janus_wire::v1::{DrainRequest, MemberStatus, StagePlace, StatusRequest, StatusResponse};
use janus_wire::{LEADER, Security};
use serde::Serialize;
use tonic::transport::Channel;
use tonic::{Code, Response};

use crate::args::{Drain, Status as Args};
use crate::credential::signed;
use crate::failure::{Failure, Outcome};
use crate::{output, session};

#[derive(Serialize)]
struct Answer<'a> {
    epoch: u64,
    leader: &'a str,
    members: Vec<Member<'a>>,
    pipelines: Vec<Pipeline<'a>>,
    requests: Requests,
    store_reachable: bool,
}

#[derive(Serialize)]
struct Member<'a> {
    id: &'a str,
    pid: u32,
    roles: &'a [String],
    address: &'a str,
    state: &'a str,
    layers: Option<[u32; 2]>,
    zone: &'a str,
    memory_bytes: u64,
    ms_per_layer: f64,
    numerics: &'a str,
    version: &'a str,
}

#[derive(Serialize)]
struct Pipeline<'a> {
    id: u64,
    epoch: u64,
    state: &'a str,
    reason: &'a str,
    stages: Vec<Stage<'a>>,
    failures: u64,
    recovery_seconds: f64,
    microbatches: u64,
}

#[derive(Serialize)]
struct Stage<'a> {
    node: &'a str,
    layers: [u32; 2],
}

#[derive(Serialize)]
struct Requests {
    running: u64,
    queued: u64,
    parked: u64,
}

pub(crate) fn run(args: Args) -> Outcome {
    let security = args.tls.security()?;
    let answer = session::runtime()?.block_on(cluster(&args.endpoint, &security))?;
    if args.json {
        return output::print_json(&json(&answer));
    }
    output::print_line(&text(&answer));
    Ok(())
}

pub(crate) fn drain(args: Drain) -> Outcome {
    let node = args.node.clone();
    let security = args.tls.security()?;
    session::runtime()?.block_on(asked(&args.endpoint, &security, |mut client: ClusterClient<Channel>| {
        let node = node.clone();
        async move { client.drain(signed(DrainRequest { node })).await }
    }))?;
    output::print_line(&format!("{} is drained: it can be stopped", args.node));
    Ok(())
}

/// What the leader says. A standby knows the members alone, and is believed only if no leader answers.
pub(crate) async fn cluster(endpoints: &str, security: &Security) -> Outcome<StatusResponse> {
    let ask = |mut client: ClusterClient<Channel>| async move { client.status(signed(StatusRequest {})).await };
    let mut addresses: Vec<String> = addresses(endpoints);
    let (mut standby, mut last, mut at) = (None, Failure::mistake("--endpoint is empty: give host:port"), 0);
    while let Some(address) = addresses.get(at).cloned() {
        at += 1;
        match asked(&address, security, ask).await {
            Ok(answer) if !answer.pipelines.is_empty() => return Ok(answer),
            Ok(answer) => {
                if !answer.leader_address.is_empty() && !addresses.contains(&answer.leader_address) {
                    addresses.push(answer.leader_address.clone());
                }
                standby = Some(answer);
            }
            Err(error) => last = error,
        }
    }
    standby.ok_or(last)
}

fn addresses(endpoints: &str) -> Vec<String> {
    endpoints.split(',').map(str::trim).filter(|a| !a.is_empty()).map(str::to_owned).collect()
}

/// Asks one coordinator after the other, and the leader that one of them names.
pub(crate) async fn asked<R, F>(
    endpoints: &str,
    security: &Security,
    call: impl Fn(ClusterClient<Channel>) -> F,
) -> Outcome<R>
where
    F: Future<Output = Result<Response<R>, tonic::Status>>,
{
    let mut addresses = addresses(endpoints);
    let mut last = Failure::mistake("--endpoint is empty: give host:port");
    let mut at = 0;
    while let Some(address) = addresses.get(at).cloned() {
        at += 1;
        let channel = match janus_wire::connect(&address, security).await {
            Ok(channel) => channel,
            Err(error @ janus_wire::Error::Address { .. }) => return Err(Failure::mistake(format!("--endpoint: {error}"))),
            Err(error) => {
                last = Failure::Broken(format!("--endpoint: {error}"));
                continue;
            }
        };
        match call(ClusterClient::new(channel)).await {
            Ok(answer) => return Ok(answer.into_inner()),
            Err(status) => {
                let leader = status.metadata().get(LEADER).and_then(|l| l.to_str().ok()).map(str::to_owned);
                addresses.extend(leader.filter(|leader| !addresses.contains(leader)));
                last = match status.code() {
                    Code::Unimplemented => Failure::mistake(format!(
                        "--endpoint: {address} is a single process (`janus serve`), not a cluster's coordinator"
                    )),
                    Code::FailedPrecondition => Failure::mistake(status.message()),
                    _ => session::failure(status),
                };
            }
        }
    }
    Err(last)
}

fn json<'a>(answer: &'a StatusResponse) -> Answer<'a> {
    let layers = |first: u32, end: u32| (end > first).then_some([first, end]);
    let member = |m: &'a MemberStatus| Member {
        id: &m.id,
        pid: m.pid,
        roles: &m.roles,
        address: &m.address,
        state: &m.state,
        layers: layers(m.first_layer, m.end_layer),
        zone: &m.zone,
        memory_bytes: m.memory_bytes,
        ms_per_layer: m.ms_per_layer,
        numerics: &m.numerics,
        version: &m.version,
    };
    let stage = |s: &StagePlace| [s.first_layer, s.end_layer];
    let pipelines = answer.pipelines.iter().map(|p| Pipeline {
        id: p.id,
        epoch: p.epoch,
        state: &p.state,
        reason: &p.reason,
        stages: p.stages.iter().map(|s| Stage { node: &s.node, layers: stage(s) }).collect(),
        failures: p.failures,
        recovery_seconds: p.recovery_seconds,
        microbatches: p.microbatches,
    });
    let requests = answer.requests.unwrap_or_default();
    Answer {
        epoch: answer.epoch,
        leader: &answer.leader,
        members: answer.members.iter().map(member).collect(),
        pipelines: pipelines.collect(),
        requests: Requests { running: requests.running, queued: requests.queued, parked: requests.parked },
        store_reachable: answer.store_reachable,
    }
}

fn text(answer: &StatusResponse) -> String {
    let mut lines = vec![match answer.leader.is_empty() {
        true => "no leader".to_owned(),
        false => format!("{} at {} leads, epoch {}", answer.leader, answer.leader_address, answer.epoch),
    }];
    if !answer.store_reachable {
        lines.push("the store cannot be reached: work goes on, new requests are not durable".to_owned());
    }
    for p in &answer.pipelines {
        let reason = if p.reason.is_empty() { String::new() } else { format!(": {}", p.reason) };
        lines.push(format!("pipeline {} is {}{reason}", p.id, p.state));
    }
    let wide = answer.members.iter().map(|m| m.id.len()).max().unwrap_or(0);
    for m in &answer.members {
        let layers = match m.end_layer > m.first_layer {
            true => format!("layers {}..{}", m.first_layer, m.end_layer),
            false => String::new(),
        };
        lines.push(format!("{:wide$}  {:8}  {:22}  {:21}  {layers}", m.id, m.state, m.roles.join(","), m.address));
    }
    let requests = answer.requests.unwrap_or_default();
    lines.push(format!("{} running, {} queued, {} parked", requests.running, requests.queued, requests.parked));
    lines.join("\n")
}
