//! What a coordinator process serves, whether it leads or stands by: a standby says who leads.

use std::sync::Arc;

use janus_cluster::{Candidate, Members};
use janus_wire::status::unavailable;
use janus_wire::v1::cluster_server::{Cluster, ClusterServer};
use janus_wire::v1::inference_server::{Inference, InferenceServer};
use janus_wire::v1::{self, MemberStatus, PipelineStatus, RequestCounts, StagePlace};
use janus_wire::{LEADER, MAX_CLIENT_MESSAGE};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use crate::Coordinator;
use crate::auth::Caller;
use crate::lead::Reign;

/// When to ask a standby again, or a coordinator without a leader.
const RETRY: std::time::Duration = std::time::Duration::from_millis(500);

/// The services of a coordinator process. Cheap to clone.
#[derive(Clone)]
pub struct Front(Arc<Shared>);

struct Shared {
    reign: watch::Receiver<Option<Reign>>,
    leader: watch::Receiver<Option<(Candidate, u64)>>,
    members: watch::Receiver<Members>,
}

impl Front {
    /// Serves the present reign, if there is one; says who leads, if not.
    pub fn new(
        reign: watch::Receiver<Option<Reign>>,
        leader: watch::Receiver<Option<(Candidate, u64)>>,
        members: watch::Receiver<Members>,
    ) -> Self {
        Front(Arc::new(Shared { reign, leader, members }))
    }

    /// For clients, with the credentials of `tenants`.
    pub fn inference(self) -> InferenceServer<Self> {
        InferenceServer::new(self)
            .max_decoding_message_size(MAX_CLIENT_MESSAGE)
            .max_encoding_message_size(MAX_CLIENT_MESSAGE)
    }

    /// For operators.
    pub fn cluster(self) -> ClusterServer<Self> {
        ClusterServer::new(self)
    }

    fn reign(&self) -> Result<Reign, Status> {
        if let Some(reign) = self.0.reign.borrow().clone() {
            return Ok(reign);
        }
        match self.0.leader.borrow().as_ref() {
            Some((leader, _)) => {
                let text = format!("this coordinator stands by; {} leads, at {}", leader.id, leader.address);
                let mut status = unavailable(text, RETRY);
                if let Ok(address) = leader.address.parse() {
                    status.metadata_mut().insert(LEADER, address);
                }
                Err(status)
            }
            None => Err(unavailable("no coordinator leads at the moment", RETRY)),
        }
    }

    fn coordinator(&self) -> Result<Coordinator, Status> {
        self.reign().map(|reign| reign.coordinator)
    }
}

#[tonic::async_trait]
impl Inference for Front {
    type GenerateImageStream = <Coordinator as Inference>::GenerateImageStream;
    type ChatStream = <Coordinator as Inference>::ChatStream;

    async fn generate_image(
        &self,
        request: Request<v1::GenerateImageRequest>,
    ) -> Result<Response<Self::GenerateImageStream>, Status> {
        self.coordinator()?.generate_image(request).await
    }

    async fn chat(&self, request: Request<v1::ChatRequest>) -> Result<Response<Self::ChatStream>, Status> {
        self.coordinator()?.chat(request).await
    }

    async fn tokenize(&self, request: Request<v1::TokenizeRequest>) -> Result<Response<v1::TokenizeResponse>, Status> {
        self.coordinator()?.tokenize(request).await
    }

    async fn detokenize(&self, request: Request<v1::DetokenizeRequest>) -> Result<Response<v1::DetokenizeResponse>, Status> {
        self.coordinator()?.detokenize(request).await
    }

    async fn cancel(&self, request: Request<v1::CancelRequest>) -> Result<Response<v1::CancelResponse>, Status> {
        self.coordinator()?.cancel(request).await
    }

    async fn describe(
        &self,
        request: Request<v1::DescribeModelRequest>,
    ) -> Result<Response<v1::DescribeModelResponse>, Status> {
        self.coordinator()?.describe(request).await
    }
}

#[tonic::async_trait]
impl Cluster for Front {
    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        let reign = self.0.reign.borrow().clone();
        let leader = self.0.leader.borrow().clone();
        let (leader, epoch) = leader.unwrap_or_default();
        let view = match &reign {
            Some(reign) => reign.conductor.view().borrow().clone(),
            None => {
                let members = self.0.members.borrow();
                let unknown = members.by_id.values().map(|m| (m.clone(), "unknown")).collect();
                crate::conduct::run::View { members: unknown, pipelines: Vec::new(), stale: members.stale }
            }
        };
        let drivers = reign.map(|r| r.drivers).unwrap_or_default();
        let layers_of = |id: &str| {
            let mut stages = view.pipelines.iter().flat_map(|p| &p.stages);
            stages.find(|(node, _)| node == id).map_or(0..0, |(_, layers)| layers.clone())
        };
        let members = view.members.iter().map(|(m, state)| MemberStatus {
            id: m.id.clone(),
            pid: m.pid,
            roles: m.roles.iter().map(|role| format!("{role:?}").to_lowercase()).collect(),
            address: m.address.clone(),
            state: (*state).to_owned(),
            first_layer: layers_of(&m.id).start as u32,
            end_layer: layers_of(&m.id).end as u32,
            zone: m.zone.clone(),
            device: m.device.clone(),
            memory_bytes: m.memory_bytes,
            ms_per_layer: m.ms_per_layer,
            numerics: m.numerics.clone(),
            version: m.version.clone(),
        });
        let pipelines = view.pipelines.iter().zip(&drivers).zip(1..).map(|((p, driver), id)| {
            let (_, microbatches, failures) = driver.history();
            let state = match (p.ready, p.begun, p.busy) {
                (true, ..) => "ready",
                (_, true, true) => "recovering",
                (_, true, false) => "parked",
                _ => "forming",
            };
            PipelineStatus {
                id,
                epoch: p.epoch,
                state: state.to_owned(),
                reason: p.reason.clone(),
                stages: p
                    .stages
                    .iter()
                    .map(|(node, layers)| StagePlace {
                        node: node.clone(),
                        first_layer: layers.start as u32,
                        end_layer: layers.end as u32,
                    })
                    .collect(),
                failures,
                recovery_seconds: driver.recovery().map_or(0.0, |d| d.as_secs_f64()),
                microbatches,
            }
        });
        let mut requests = RequestCounts::default();
        for driver in &drivers {
            let (queued, running) = driver.counts();
            requests.running += running as u64;
            requests.queued += queued as u64;
            requests.parked += driver.parked() as u64;
        }
        Ok(Response::new(v1::StatusResponse {
            epoch,
            leader: leader.id,
            leader_address: leader.address,
            members: members.collect(),
            pipelines: pipelines.collect(),
            requests: Some(requests),
            store_reachable: !view.stale,
        }))
    }

    async fn describe_problem(
        &self,
        _: Request<v1::DescribeProblemRequest>,
    ) -> Result<Response<v1::DescribeProblemResponse>, Status> {
        let reign = self.reign()?;
        let problem = reign.conductor.question().await;
        let problem = problem.ok_or_else(|| unavailable("this coordinator does not lead any more", RETRY))?;
        let problem_json = serde_json::to_string(&problem).map_err(|e| Status::internal(e.to_string()))?;
        Ok(Response::new(v1::DescribeProblemResponse { model: reign.coordinator.model_name(), problem_json }))
    }

    async fn drain(&self, request: Request<v1::DrainRequest>) -> Result<Response<v1::DrainResponse>, Status> {
        Caller::of(&request).operator()?;
        let node = request.into_inner().node;
        self.reign()?.conductor.drain(&node).await?;
        Ok(Response::new(v1::DrainResponse {}))
    }
}
