//! What a coordinator process serves, whether it leads or stands by: a standby says who leads.

use std::ops::Range;
use std::sync::Arc;

use janus_cluster::{Candidate, Members};
use janus_wire::status::unavailable;
use janus_wire::v1::blobs_server::{Blobs as BlobsService, BlobsServer};
use janus_wire::v1::cluster_server::{Cluster, ClusterServer};
use janus_wire::v1::files_server::{Files as FilesService, FilesServer};
use janus_wire::v1::inference_server::{Inference, InferenceServer};
use janus_wire::v1::jobs_server::{Jobs as JobsService, JobsServer};
use janus_wire::v1::{self, MemberStatus, PipelineStatus, RequestCounts, StagePlace};
use janus_wire::{LEADER, MAX_CLIENT_MESSAGE};
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};

use crate::auth::Caller;
use crate::conduct::Standing;
use crate::conduct::run::View;
use crate::jobs::{self, Jobs};
use crate::lead::Reign;
use crate::sight;
use crate::{Coordinator, DriverHandle};

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

    /// Registers what metrics say of the cluster. Once in a process.
    pub fn observe(&self) {
        let (reigning, seen) = (self.0.clone(), self.0.clone());
        sight::observe_drivers(move || reigning.reign.borrow().as_ref().map(|r| r.drivers.clone()).unwrap_or_default());
        sight::observe_cluster(move || {
            let epoch = seen.leader.borrow().as_ref().map_or(0, |(_, epoch)| *epoch);
            sight::Outlook { leads: seen.reign.borrow().is_some(), epoch, view: seen.view() }
        });
    }

    /// For clients.
    pub fn inference(self) -> InferenceServer<Self> {
        InferenceServer::new(self)
            .max_decoding_message_size(MAX_CLIENT_MESSAGE)
            .max_encoding_message_size(MAX_CLIENT_MESSAGE)
    }

    /// For operators.
    pub fn cluster(self) -> ClusterServer<Self> {
        ClusterServer::new(self)
    }

    /// For work that nobody waits for.
    pub fn jobs(self) -> JobsServer<Self> {
        jobs::server(self)
    }

    /// For clients that read blobs back.
    pub fn blobs(self) -> BlobsServer<Self> {
        BlobsServer::new(self)
    }

    /// For clients that name their blobs.
    pub fn files(self) -> FilesServer<Self> {
        FilesServer::new(self)
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

    fn kept_jobs(&self) -> Result<Jobs, Status> {
        let none =
            || Status::failed_precondition("this cluster keeps no jobs: its coordinators were started without --jobs");
        self.reign()?.jobs.ok_or_else(none)
    }
}

impl Shared {
    /// The conductor's view, or what a standby knows.
    fn view(&self) -> View {
        if let Some(reign) = self.reign.borrow().as_ref() {
            return reign.conductor.view().borrow().clone();
        }
        let members = self.members.borrow();
        let unknown = members.by_id.values().map(|m| (m.clone(), "unknown")).collect();
        View { members: unknown, pipelines: Vec::new(), stale: members.stale }
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
impl BlobsService for Front {
    type GetStream = <Jobs as BlobsService>::GetStream;

    async fn get(&self, request: Request<v1::GetBlobRequest>) -> Result<Response<Self::GetStream>, Status> {
        BlobsService::get(&self.kept_jobs()?, request).await
    }

    async fn delete(&self, request: Request<v1::DeleteBlobRequest>) -> Result<Response<v1::DeleteBlobResponse>, Status> {
        BlobsService::delete(&self.kept_jobs()?, request).await
    }
}

#[tonic::async_trait]
impl FilesService for Front {
    async fn create(&self, request: Request<v1::CreateFileRequest>) -> Result<Response<v1::File>, Status> {
        FilesService::create(&self.kept_jobs()?, request).await
    }

    async fn get(&self, request: Request<v1::GetFileRequest>) -> Result<Response<v1::File>, Status> {
        FilesService::get(&self.kept_jobs()?, request).await
    }

    async fn list(&self, request: Request<v1::ListFilesRequest>) -> Result<Response<v1::ListFilesResponse>, Status> {
        FilesService::list(&self.kept_jobs()?, request).await
    }

    async fn delete(&self, request: Request<v1::DeleteFileRequest>) -> Result<Response<v1::DeleteFileResponse>, Status> {
        FilesService::delete(&self.kept_jobs()?, request).await
    }
}

#[tonic::async_trait]
impl Cluster for Front {
    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        let reign = self.0.reign.borrow().clone();
        let leader = self.0.leader.borrow().clone();
        let (leader, epoch) = leader.unwrap_or_default();
        let view = self.0.view();
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
        let pipelines =
            view.pipelines.iter().zip(&drivers).zip(1..).map(|((standing, driver), id)| pipeline(id, standing, driver));
        Ok(Response::new(v1::StatusResponse {
            epoch,
            leader: leader.id,
            leader_address: leader.address,
            members: members.collect(),
            pipelines: pipelines.collect(),
            requests: Some(requests(&drivers)),
            store_reachable: !view.stale,
        }))
    }

    async fn describe_problem(
        &self,
        request: Request<v1::DescribeProblemRequest>,
    ) -> Result<Response<v1::DescribeProblemResponse>, Status> {
        Caller::of(&request).operator()?;
        let reign = self.reign()?;
        let problem = reign.conductor.question().await;
        let problem = problem.ok_or_else(|| unavailable("this coordinator does not lead any more", RETRY))?;
        let problem_json = serde_json::to_string(&problem).map_err(|e| Status::internal(e.to_string()))?;
        Ok(Response::new(v1::DescribeProblemResponse { model: reign.coordinator.model_name(), problem_json }))
    }

    async fn drain(&self, request: Request<v1::DrainRequest>) -> Result<Response<v1::DrainResponse>, Status> {
        let caller = Caller::of(&request);
        caller.operator()?;
        let (node, reign) = (request.into_inner().node, self.reign()?);
        let told = reign.coordinator.tenants().audit(&caller.tenant, "drained", &node).await;
        told.map_err(|error| unavailable(format!("the store: {error}"), RETRY))?;
        reign.conductor.drain(&node).await?;
        Ok(Response::new(v1::DrainResponse {}))
    }
}

/// A pipeline, for people.
pub(crate) fn pipeline(id: u64, standing: &Standing, driver: &DriverHandle) -> PipelineStatus {
    let (_, microbatches, failures) = driver.history();
    let state = match (standing.ready, standing.begun, standing.busy) {
        (true, ..) => "ready",
        (_, true, true) => "recovering",
        (_, true, false) => "parked",
        _ => "forming",
    };
    let place = |(node, layers): &(String, Range<usize>)| StagePlace {
        node: node.clone(),
        first_layer: layers.start as u32,
        end_layer: layers.end as u32,
    };
    PipelineStatus {
        id,
        epoch: standing.epoch,
        state: state.to_owned(),
        reason: standing.reason.clone(),
        stages: standing.stages.iter().map(place).collect(),
        failures,
        recovery_seconds: driver.recovery().map_or(0.0, |d| d.as_secs_f64()),
        microbatches,
    }
}

/// What all pipelines have to do.
pub(crate) fn requests(drivers: &[DriverHandle]) -> RequestCounts {
    let mut requests = RequestCounts::default();
    for driver in drivers {
        let (queued, running) = driver.counts();
        requests.running += running as u64;
        requests.queued += queued as u64;
        requests.parked += driver.parked() as u64;
    }
    requests
}

#[tonic::async_trait]
impl JobsService for Front {
    type WatchStream = <Jobs as JobsService>::WatchStream;
    type ResultsStream = <Jobs as JobsService>::ResultsStream;

    async fn put_blob(
        &self,
        request: Request<Streaming<v1::PutBlobRequest>>,
    ) -> Result<Response<v1::PutBlobResponse>, Status> {
        self.kept_jobs()?.put_blob(request).await
    }

    async fn create(&self, request: Request<Streaming<v1::CreateJobRequest>>) -> Result<Response<v1::Job>, Status> {
        JobsService::create(&self.kept_jobs()?, request).await
    }

    async fn get(&self, request: Request<v1::GetJobRequest>) -> Result<Response<v1::Job>, Status> {
        JobsService::get(&self.kept_jobs()?, request).await
    }

    async fn list(&self, request: Request<v1::ListJobsRequest>) -> Result<Response<v1::ListJobsResponse>, Status> {
        JobsService::list(&self.kept_jobs()?, request).await
    }

    async fn cancel(&self, request: Request<v1::CancelJobRequest>) -> Result<Response<v1::Job>, Status> {
        self.kept_jobs()?.cancel(request).await
    }

    async fn delete(&self, request: Request<v1::DeleteJobRequest>) -> Result<Response<v1::DeleteJobResponse>, Status> {
        JobsService::delete(&self.kept_jobs()?, request).await
    }

    async fn watch(&self, request: Request<v1::WatchJobRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.kept_jobs()?.watch(request).await
    }

    async fn results(&self, request: Request<v1::ResultsRequest>) -> Result<Response<Self::ResultsStream>, Status> {
        self.kept_jobs()?.results(request).await
    }
}
