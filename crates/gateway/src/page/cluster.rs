//! The cluster, as it is now.

use axum::Json;
use axum::extract::State;
use janus_wire::LEADER;
use janus_wire::v1::cluster_client::ClusterClient;
use janus_wire::v1::{MemberStatus, PipelineStatus, RequestCounts, StatusRequest, StatusResponse};
use serde::Serialize;
use tonic::Status;

use super::PATIENCE;
use crate::{Asker, Gateway, Problem};

#[derive(Serialize)]
pub(super) struct Cluster {
    epoch: u64,
    leader: String,
    leader_address: String,
    store_reachable: bool,
    members: Vec<Member>,
    pipelines: Vec<Pipeline>,
    requests: Requests,
}

#[derive(Serialize)]
struct Member {
    id: String,
    /// Another one under the same name is another process.
    pid: u32,
    roles: Vec<String>,
    address: String,
    state: String,
    layers: [u32; 2],
    zone: String,
    device: String,
    memory_bytes: u64,
    ms_per_layer: f64,
}

#[derive(Serialize)]
struct Pipeline {
    id: u64,
    /// Epochs fill 64 bits, numbers of JavaScript 53.
    epoch: String,
    state: String,
    reason: String,
    stages: Vec<Stage>,
    failures: u64,
    recovery_seconds: f64,
    microbatches: u64,
}

#[derive(Serialize)]
struct Stage {
    node: String,
    layers: [u32; 2],
}

#[derive(Serialize)]
struct Requests {
    running: u64,
    queued: u64,
    parked: u64,
}

pub(super) async fn status(State(gateway): State<Gateway>, asker: Asker) -> Result<Json<Cluster>, Problem> {
    let mut told = ask(&gateway, &asker).await?;
    // A standby answers too, but only the leader knows the pipelines.
    if told.pipelines.is_empty() && !told.leader_address.is_empty() {
        let mut elsewhere = Status::unavailable("it stands by");
        if let Ok(leader) = told.leader_address.parse() {
            elsewhere.metadata_mut().insert(LEADER, leader);
        }
        let lead = gateway.coordinators().lead().await?;
        gateway.coordinators().lost(&lead, &elsewhere).await;
        told = ask(&gateway, &asker).await?;
    }
    Ok(Json(told.into()))
}

async fn ask(gateway: &Gateway, asker: &Asker) -> Result<StatusResponse, Status> {
    let call = gateway.coordinators().call(PATIENCE, |channel| {
        let request = asker.request(StatusRequest {});
        async move { ClusterClient::new(channel).status(request).await }
    });
    call.await
}

impl From<StatusResponse> for Cluster {
    fn from(told: StatusResponse) -> Self {
        let RequestCounts { running, queued, parked } = told.requests.unwrap_or_default();
        Cluster {
            epoch: told.epoch,
            leader: told.leader,
            leader_address: told.leader_address,
            store_reachable: told.store_reachable,
            members: told.members.into_iter().map(Member::from).collect(),
            pipelines: told.pipelines.into_iter().map(Pipeline::from).collect(),
            requests: Requests { running, queued, parked },
        }
    }
}

impl From<MemberStatus> for Member {
    fn from(told: MemberStatus) -> Self {
        Member {
            id: told.id,
            pid: told.pid,
            roles: told.roles,
            address: told.address,
            state: told.state,
            layers: [told.first_layer, told.end_layer],
            zone: told.zone,
            device: told.device,
            memory_bytes: told.memory_bytes,
            ms_per_layer: told.ms_per_layer,
        }
    }
}

impl From<PipelineStatus> for Pipeline {
    fn from(told: PipelineStatus) -> Self {
        let stages = told.stages.into_iter();
        Pipeline {
            id: told.id,
            epoch: told.epoch.to_string(),
            state: told.state,
            reason: told.reason,
            stages: stages.map(|s| Stage { node: s.node, layers: [s.first_layer, s.end_layer] }).collect(),
            failures: told.failures,
            recovery_seconds: told.recovery_seconds,
            microbatches: told.microbatches,
        }
    }
}
