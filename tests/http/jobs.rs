//! A cluster whose jobs are done as soon as somebody has looked twice, and whose first download breaks off.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use janus_wire::v1::blobs_server::{Blobs, BlobsServer};
use janus_wire::v1::files_server::{Files, FilesServer};
use janus_wire::v1::inference_server::InferenceServer;
use janus_wire::v1::jobs_server::{Jobs, JobsServer};
use janus_wire::v1::{self, JobStatus, create_job_request, job_item};
use janus_wire::{Listener, Security};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::fake::Fake;

/// A prompt that no model has room for.
const TOO_LONG: usize = 10_000;
/// Any time after 1970.
const NOW: u64 = 1_800_000_000_000;

#[derive(Clone, Default)]
pub struct FakeJobs(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    blobs: HashMap<Vec<u8>, Bytes>,
    files: Vec<v1::File>,
    jobs: Vec<Made>,
    broke: bool,
}

struct Made {
    job: v1::Job,
    items: Vec<v1::JobItem>,
    looks: u32,
}

impl Made {
    fn fails(item: &v1::JobItem) -> bool {
        matches!(&item.work, Some(job_item::Work::Paint(paint)) if paint.prompt.len() > TOO_LONG)
    }

    fn end(&mut self, status: JobStatus) {
        self.job.set_status(status);
        self.job.ended_unix_ms = NOW + 1000;
        let failed = self.items.iter().filter(|item| Self::fails(item)).count() as u64;
        match status {
            JobStatus::Cancelled => self.job.cancelled = self.job.total,
            _ => (self.job.failed, self.job.succeeded) = (failed, self.job.total - failed),
        }
    }

    /// What its items became: lines, and the bytes of pictures.
    fn results(&self) -> Vec<(String, Bytes)> {
        let mut results = Vec::new();
        for item in &self.items {
            let count = match &item.work {
                Some(job_item::Work::Paint(paint)) => paint.n.max(1),
                _ => 1,
            };
            for index in 0..count {
                let (status, error) = match (self.job.status(), Self::fails(item)) {
                    (JobStatus::Cancelled, _) => ("cancelled", None),
                    (_, true) => ("failed", Some("prompt: is too long")),
                    _ => ("succeeded", None),
                };
                let mut line = json!({ "id": item.id, "index": index, "status": status, "error": error });
                let mut picture = Vec::new();
                match &item.work {
                    Some(job_item::Work::Paint(paint)) => {
                        line["seed"] = json!(paint.seed + u64::from(index));
                        if status == "succeeded" {
                            picture.extend(b"\x89PNG\r\n\x1a\n");
                            picture.extend(format!("{} {index} ", item.id).repeat(20_000).bytes());
                        }
                    }
                    _ => line["text"] = json!(" red"),
                }
                results.push((line.to_string(), picture.into()));
            }
        }
        results
    }
}

impl FakeJobs {
    pub async fn serve(&self) -> String {
        let listener = Listener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.address().to_string();
        let mut server = janus_wire::server(&Security::Plain).unwrap();
        let router = server
            .add_service(InferenceServer::new(Fake::new([])))
            .add_service(JobsServer::new(self.clone()))
            .add_service(BlobsServer::new(self.clone()))
            .add_service(FilesServer::new(self.clone()));
        tokio::spawn(router.serve_with_incoming(listener.incoming()));
        address
    }

    /// Whether a download was broken off.
    pub fn broke(&self) -> bool {
        self.lock().broke
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn with<R>(&self, id: &str, act: impl FnOnce(&mut Made) -> R) -> Result<R, Status> {
        let mut state = self.lock();
        let made = state.jobs.iter_mut().find(|made| made.job.id == id);
        made.map(act).ok_or_else(|| Status::not_found("job: is unknown"))
    }
}

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn messages<T: Send + 'static>(messages: Vec<Result<T, Status>>) -> Messages<T> {
    Box::pin(tokio_stream::iter(messages))
}

#[tonic::async_trait]
impl Blobs for FakeJobs {
    type GetStream = Messages<v1::GetBlobResponse>;

    async fn get(&self, request: Request<v1::GetBlobRequest>) -> Result<Response<Self::GetStream>, Status> {
        let blob = self.lock().blobs.get(&request.get_ref().sha256[..]).cloned();
        let blob = blob.ok_or_else(|| Status::not_found("sha256: is unknown"))?;
        let pieces = blob.chunks(1 << 16).map(|piece| Ok(v1::GetBlobResponse { data: piece.to_vec().into() }));
        Ok(Response::new(messages(pieces.collect())))
    }

    async fn delete(&self, request: Request<v1::DeleteBlobRequest>) -> Result<Response<v1::DeleteBlobResponse>, Status> {
        let gone = self.lock().blobs.remove(&request.get_ref().sha256[..]);
        gone.map(|_| Response::new(v1::DeleteBlobResponse {})).ok_or_else(|| Status::not_found("sha256: is unknown"))
    }
}

#[tonic::async_trait]
impl Files for FakeJobs {
    async fn create(&self, request: Request<v1::CreateFileRequest>) -> Result<Response<v1::File>, Status> {
        let v1::CreateFileRequest { id, sha256, metadata } = request.into_inner();
        let mut state = self.lock();
        let size = state.blobs[&sha256[..]].len() as u64;
        let created_unix_ms = NOW + 1000 * state.files.len() as u64;
        let file = v1::File { id, sha256, size, created_unix_ms, expires_unix_ms: NOW + 1_000_000, metadata };
        state.files.push(file.clone());
        Ok(Response::new(file))
    }

    async fn get(&self, request: Request<v1::GetFileRequest>) -> Result<Response<v1::File>, Status> {
        let file = self.lock().files.iter().find(|file| file.id == request.get_ref().id).cloned();
        file.map(Response::new).ok_or_else(|| Status::not_found("id: is unknown"))
    }

    /// Two of a page, so that there are pages.
    async fn list(&self, request: Request<v1::ListFilesRequest>) -> Result<Response<v1::ListFilesResponse>, Status> {
        let from: usize = request.get_ref().page_token.parse().unwrap_or(0);
        let files = self.lock().files.clone();
        let next_page_token = if from + 2 < files.len() { (from + 2).to_string() } else { String::new() };
        let files = files.into_iter().rev().skip(from).take(2).collect();
        Ok(Response::new(v1::ListFilesResponse { files, next_page_token }))
    }

    async fn delete(&self, request: Request<v1::DeleteFileRequest>) -> Result<Response<v1::DeleteFileResponse>, Status> {
        let mut state = self.lock();
        let at = state.files.iter().position(|file| file.id == request.get_ref().id);
        state.files.remove(at.ok_or_else(|| Status::not_found("id: is unknown"))?);
        Ok(Response::new(v1::DeleteFileResponse {}))
    }
}

#[tonic::async_trait]
impl Jobs for FakeJobs {
    type WatchStream = Messages<v1::Job>;
    type ResultsStream = Messages<v1::ResultsResponse>;

    async fn put_blob(
        &self,
        request: Request<Streaming<v1::PutBlobRequest>>,
    ) -> Result<Response<v1::PutBlobResponse>, Status> {
        let mut stream = request.into_inner();
        let (mut size, mut bytes) = (None, Vec::new());
        while let Some(message) = stream.message().await? {
            size.get_or_insert(message.size);
            bytes.extend_from_slice(&message.data);
        }
        assert_eq!(size, Some(bytes.len() as u64));
        let digest = Sha256::digest(&bytes).to_vec();
        self.lock().blobs.insert(digest.clone(), bytes.into());
        Ok(Response::new(v1::PutBlobResponse { sha256: digest.into() }))
    }

    async fn create(&self, request: Request<Streaming<v1::CreateJobRequest>>) -> Result<Response<v1::Job>, Status> {
        let mut stream = request.into_inner();
        let (mut header, mut items) = (v1::JobHeader::default(), Vec::new());
        while let Some(message) = stream.message().await? {
            match message.part.unwrap() {
                create_job_request::Part::Header(first) => header = first,
                create_job_request::Part::Items(more) => items.extend(more.items),
            }
        }
        let mut state = self.lock();
        // Items name blobs that are there.
        for item in &items {
            if let Some(job_item::Work::Ask(ask)) = &item.work {
                assert!(!ask.question.is_empty() && ask.images.iter().all(|digest| state.blobs.contains_key(&digest[..])));
            }
        }
        let job = v1::Job {
            id: format!("job-{}", state.jobs.len()),
            status: JobStatus::Running.into(),
            total: items.len() as u64,
            created_unix_ms: NOW,
            started_unix_ms: NOW,
            key: header.key,
            metadata: header.metadata,
            ..v1::Job::default()
        };
        state.jobs.push(Made { job: job.clone(), items, looks: 0 });
        Ok(Response::new(job))
    }

    async fn get(&self, request: Request<v1::GetJobRequest>) -> Result<Response<v1::Job>, Status> {
        let job = self.with(&request.get_ref().job, |made| {
            made.looks += 1;
            if made.looks == 2 && made.job.status() == JobStatus::Running {
                made.end(JobStatus::Succeeded);
            }
            made.job.clone()
        });
        job.map(Response::new)
    }

    /// Two of a page, so that there are pages.
    async fn list(&self, request: Request<v1::ListJobsRequest>) -> Result<Response<v1::ListJobsResponse>, Status> {
        let from: usize = request.get_ref().page_token.parse().unwrap_or(0);
        let state = self.lock();
        let all: Vec<v1::Job> = state.jobs.iter().rev().map(|made| made.job.clone()).collect();
        let next_page_token = if from + 2 < all.len() { (from + 2).to_string() } else { String::new() };
        Ok(Response::new(v1::ListJobsResponse { jobs: all.into_iter().skip(from).take(2).collect(), next_page_token }))
    }

    async fn cancel(&self, request: Request<v1::CancelJobRequest>) -> Result<Response<v1::Job>, Status> {
        let job = self.with(&request.get_ref().job, |made| {
            made.end(JobStatus::Cancelled);
            made.job.clone()
        });
        job.map(Response::new)
    }

    async fn delete(&self, _: Request<v1::DeleteJobRequest>) -> Result<Response<v1::DeleteJobResponse>, Status> {
        Err(Status::unimplemented("delete"))
    }

    async fn watch(&self, _: Request<v1::WatchJobRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("watch"))
    }

    async fn results(&self, request: Request<v1::ResultsRequest>) -> Result<Response<Self::ResultsStream>, Status> {
        let request = request.into_inner();
        let results = self.with(&request.job, |made| made.results())?;
        let breaks = request.data && results.len() > 1 && !std::mem::replace(&mut self.lock().broke, true);
        let mut out = Vec::new();
        for (number, (manifest_line, picture)) in results.into_iter().enumerate().skip(request.first as usize) {
            out.push(Ok(v1::ResultsResponse {
                manifest_line,
                data: Bytes::new(),
                end: picture.is_empty() || !request.data,
            }));
            if picture.is_empty() || !request.data {
                continue;
            }
            for piece in picture.chunks(1 << 16) {
                out.push(Ok(v1::ResultsResponse { data: piece.to_vec().into(), ..v1::ResultsResponse::default() }));
                if breaks && number == 1 {
                    out.push(Err(Status::unavailable("this coordinator ends")));
                    return Ok(Response::new(messages(out)));
                }
            }
            out.push(Ok(v1::ResultsResponse { end: true, ..v1::ResultsResponse::default() }));
        }
        Ok(Response::new(messages(out)))
    }
}
