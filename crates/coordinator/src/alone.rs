//! What operators can ask where everything runs in one process: the same questions as of a cluster, so that whoever shows
//! one can show the other.

use std::sync::Arc;

use janus_wire::v1::cluster_server::{Cluster, ClusterServer};
use janus_wire::v1::{self, MemberStatus, StatusResponse};
use tonic::{Request, Response, Status};

use crate::DriverHandle;
use crate::auth::Caller;
use crate::conduct::Standing;
use crate::front::{pipeline, requests};

/// The cluster of one process. Cheap to clone.
#[derive(Clone)]
pub struct Alone(Arc<Inner>);

struct Inner {
    name: String,
    address: String,
    drivers: Vec<DriverHandle>,
    members: Vec<MemberStatus>,
}

impl Alone {
    /// The process `name`, serving at `address`; `members` are its parts.
    pub fn new(name: String, address: String, drivers: Vec<DriverHandle>, members: Vec<MemberStatus>) -> Self {
        Alone(Arc::new(Inner { name, address, drivers, members }))
    }

    /// As a tonic service.
    pub fn server(self) -> ClusterServer<Self> {
        ClusterServer::new(self)
    }
}

/// The pipeline of a driver that has its own places.
fn standing(driver: &DriverHandle) -> Standing {
    let stages = driver.placed().map(|placed| placed.stages.iter().map(|s| (s.node.clone(), s.layers.clone())).collect());
    let reason = driver.trouble().borrow().clone().unwrap_or_default();
    let (ready, begun) = (*driver.ready().borrow(), driver.proven());
    Standing { epoch: driver.history().0, ready, begun, busy: true, reason, stages: stages.unwrap_or_default() }
}

#[tonic::async_trait]
impl Cluster for Alone {
    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let Inner { name, address, drivers, members } = &*self.0;
        Ok(Response::new(StatusResponse {
            epoch: 0,
            leader: name.clone(),
            leader_address: address.clone(),
            members: members.clone(),
            pipelines: drivers.iter().zip(1..).map(|(driver, id)| pipeline(id, &standing(driver), driver)).collect(),
            requests: Some(requests(drivers)),
            store_reachable: true,
        }))
    }

    async fn drain(&self, request: Request<v1::DrainRequest>) -> Result<Response<v1::DrainResponse>, Status> {
        Caller::of(&request).operator()?;
        let node = request.into_inner().node;
        match self.0.members.iter().any(|m| m.id == node) {
            true => Err(Status::failed_precondition(format!(
                "{node} runs in the one process of this server, so its work has nowhere to go"
            ))),
            false => Err(Status::not_found(format!("there is no node `{node}`"))),
        }
    }

    async fn describe_problem(
        &self,
        _: Request<v1::DescribeProblemRequest>,
    ) -> Result<Response<v1::DescribeProblemResponse>, Status> {
        Err(Status::failed_precondition("everything runs in one process; there is nothing to place"))
    }
}
