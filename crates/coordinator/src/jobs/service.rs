//! The public service: making jobs, looking at them, taking their results.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use janus_cluster::Txn;
use janus_wire::status::{self, exhausted, invalid};
use janus_wire::v1::jobs_server::{Jobs as JobsService, JobsServer};
use janus_wire::v1::{self, JobHeader, JobItem, create_job_request};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::objects::Objects;
use super::record::{JobRecord, Status as Stands, new_id};
use super::spool::{self, Refusal, Spool, Spooled};
use super::state::{Shared, Tracked};
use super::{Error, Jobs, MANIFEST, RETRY, blobs, item, manifest};
use crate::auth::Caller;
use crate::params::now_unix_ms;

/// Largest message of a caller: some thousand items, or a piece of a blob.
const MESSAGE: usize = 8 << 20;
/// A caller that sends has this long for its next message.
const NEXT: Duration = Duration::from_secs(60);
/// All jobs together.
const MAX_JOBS: usize = 10_000;
/// Jobs of one tenant that have not ended.
const MAX_UNFINISHED: usize = 1_000;
/// Words of a caller about its job.
const MAX_METADATA: (usize, usize) = (32, 4096);
/// Files that a job is made of.
const MAX_FILES: usize = 16;
/// Longest key and output.
const MAX_TEXT: usize = 1024;
/// Jobs of a page: unless said otherwise, and at most.
const PAGE: (usize, usize) = (100, 1000);
/// A watcher hears of a job at most this often.
const CALM: Duration = Duration::from_millis(100);
/// Bytes of a picture in one message.
const PIECE: usize = 1 << 20;
/// Messages that wait for a slow reader.
const EVENTS: usize = 4;

type Stream<T> = ReceiverStream<Result<T, Status>>;

impl Jobs {
    /// As a tonic service.
    pub fn server(self) -> JobsServer<Self> {
        server(self)
    }

    /// Makes a job of a tenant's messages, as [`JobsService::create`] does.
    ///
    /// # Errors
    /// Those of the service.
    pub async fn make(
        &self,
        tenant: &Arc<str>,
        mut messages: impl futures_util::Stream<Item = Result<v1::CreateJobRequest, Status>> + Send + Unpin,
    ) -> Result<v1::Job, Status> {
        let shared = &self.0;
        let Some(create_job_request::Part::Header(header)) = next(&mut messages).await?.and_then(|first| first.part) else {
            return Err(invalid("header", "must be the first message"));
        };
        let interactive = check_header(&header)?;
        let _place = shared.creating.try_acquire().map_err(|_| exhausted("too many jobs are being made", RETRY))?;
        let mut named = Named::default();
        if let Some(job) = shared.keyed(tenant, &header.key).await? {
            let mut spool = Spool::new(None, shared.options.segment);
            shared.take_in(tenant, &mut messages, &mut spool, &mut named).await?;
            return the_same(&job, &header, &spool.finish().await.map_err(ours)?).await;
        }
        shared.check_room(tenant, &header.output).await?;
        if !header.files.is_empty() {
            named.hold = Some(shared.blobs.read().await);
            shared.check_files(tenant, &header.files).await?;
        }
        let created = now_unix_ms();
        let id = new_id(created);
        let output = shared.output(tenant, &id, &header.output).map_err(ours)?;
        if !header.output.is_empty() {
            output.probe().await.map_err(ours)?;
            if output.has(MANIFEST).await.map_err(ours)? {
                let text = format!("header.output: {} has the results of another job", output.url());
                return Err(Status::failed_precondition(text));
            }
        }

        let folder = shared.folder(&id);
        let mut spool = Spool::new(Some(folder.clone()), shared.options.segment);
        let taken = match shared.take_in(tenant, &mut messages, &mut spool, &mut named).await {
            Ok(()) => spool.finish().await.map_err(ours),
            Err(status) => Err(status),
        };
        // What is still being written would outlive its folder.
        spool.stop().await;
        let discard = async || {
            // Whatever stays is found later.
            let _ = shared.objects.delete_all(&format!("jobs/{id}")).await;
        };
        let spooled = match taken {
            Ok(spooled) => spooled,
            Err(status) => {
                discard().await;
                return Err(status);
            }
        };
        let record = JobRecord {
            id: id.clone(),
            tenant: tenant.clone(),
            key: header.key.clone(),
            items: janus_wire::hello::hex(&spooled.digest),
            interactive,
            output: header.output.clone(),
            metadata: header.metadata.clone().into_iter().collect::<BTreeMap<_, _>>(),
            model: shared.model.clone(),
            total: spooled.total,
            segments: spooled.segments,
            blobs: !named.seen.is_empty(),
            files: header.files.clone(),
            status: Stands::Queued,
            error: String::new(),
            sealed: 0,
            succeeded: 0,
            failed: 0,
            cancelled: 0,
            bytes: 0,
            created,
            started: 0,
            ended: 0,
            deleting: false,
        };
        if !shared.write_down(&record).await.map_err(ours)? {
            discard().await;
            return match shared.keyed(tenant, &header.key).await? {
                Some(job) => the_same(&job, &header, &spooled).await,
                None => Err(status::unavailable("another job was made with this key at the same time", RETRY)),
            };
        }
        tracing::info!(job = id, %tenant, items = spooled.total, segments = spooled.segments, "a job is made");
        let job = Tracked::new(record);
        shared.all().insert((tenant.clone(), id), job.clone());
        shared.wake.notify_one();
        Ok(job.shown())
    }
}

/// Any implementation, with the limits of this one.
pub(crate) fn server<T: JobsService>(service: T) -> JobsServer<T> {
    JobsServer::new(service).max_decoding_message_size(MESSAGE)
}

/// The next message of a caller who may have stopped to send.
async fn next<T>(messages: &mut (impl futures_util::Stream<Item = Result<T, Status>> + Unpin)) -> Result<Option<T>, Status> {
    match tokio::time::timeout(NEXT, messages.next()).await {
        Ok(message) => message.transpose(),
        Err(_) => Err(Status::deadline_exceeded(format!("nothing came for {} seconds", NEXT.as_secs()))),
    }
}

/// What callers are told of our own failures.
pub(super) fn ours(error: Error) -> Status {
    match error {
        Error::Differs { .. } => Status::failed_precondition(error.to_string()),
        Error::Place { .. } => invalid("header.output", error.to_string()),
        Error::Deposed => status::unavailable(error.to_string(), RETRY),
        error if error.is_retryable() => status::unavailable(error.to_string(), RETRY),
        error => Status::internal(error.to_string()),
    }
}

fn check_header(header: &JobHeader) -> Result<bool, Status> {
    let printable = |text: &str| text.len() <= MAX_TEXT && !text.chars().any(char::is_control);
    if !printable(&header.key) {
        return Err(invalid("header.key", format!("must be at most {MAX_TEXT} bytes without control characters")));
    }
    if !printable(&header.output) {
        return Err(invalid("header.output", format!("must be at most {MAX_TEXT} bytes without control characters")));
    }
    let bytes: usize = header.metadata.iter().map(|(name, value)| name.len() + value.len()).sum();
    if header.metadata.len() > MAX_METADATA.0 || bytes > MAX_METADATA.1 {
        let (entries, bytes) = MAX_METADATA;
        return Err(invalid("header.metadata", format!("takes at most {entries} entries of {bytes} bytes together")));
    }
    if header.files.len() > MAX_FILES {
        return Err(invalid("header.files", format!("takes at most {MAX_FILES} files")));
    }
    match v1::Priority::try_from(header.priority) {
        Ok(priority) => Ok(priority == v1::Priority::Interactive),
        Err(_) => Err(invalid("header.priority", format!("{} is unknown", header.priority))),
    }
}

impl Shared {
    fn not_found(id: &str) -> Status {
        let shown: String = id.chars().take(64).collect();
        Status::not_found(format!("job: `{shown}` is unknown"))
    }

    /// A caller's job that is not being deleted.
    async fn job(&self, tenant: &Arc<str>, id: &str) -> Result<(Arc<Tracked>, JobRecord), Status> {
        let job = self.find(tenant, id).ok_or_else(|| Self::not_found(id))?;
        let record = job.record().await;
        match record.deleting {
            true => Err(Self::not_found(id)),
            false => Ok((job, record)),
        }
    }

    /// The job that a tenant's key names.
    async fn keyed(&self, tenant: &Arc<str>, key: &str) -> Result<Option<Arc<Tracked>>, Status> {
        if key.is_empty() {
            return Ok(None);
        }
        let entry = self.store.get(&self.keys.key(tenant, key)).await.map_err(|error| ours(error.into()))?;
        let id = entry.map(|entry| String::from_utf8_lossy(&entry.value).into_owned());
        Ok(id.and_then(|id| self.find(tenant, &id)))
    }

    /// Room for one more job.
    async fn check_room(&self, tenant: &Arc<str>, output: &str) -> Result<(), Status> {
        let all: Vec<_> = self.all().iter().map(|((owner, _), job)| (owner.clone(), job.clone())).collect();
        if all.len() >= MAX_JOBS {
            return Err(exhausted(format!("{MAX_JOBS} jobs are kept here already; delete old ones"), RETRY));
        }
        let mut unfinished = 0;
        for (_, job) in all.iter().filter(|(owner, _)| owner == tenant) {
            let record = job.record().await;
            unfinished += usize::from(!record.status.is_end());
            if !output.is_empty() && !record.status.is_end() && record.output == output {
                return Err(Status::failed_precondition(format!("header.output: job {} writes there", record.id)));
            }
        }
        match unfinished >= MAX_UNFINISHED {
            true => Err(exhausted(format!("{MAX_UNFINISHED} jobs of yours have not ended"), RETRY)),
            false => Ok(()),
        }
    }

    /// Takes items in until the caller's last message.
    async fn take_in<'a>(
        &'a self,
        tenant: &str,
        messages: &mut (impl futures_util::Stream<Item = Result<v1::CreateJobRequest, Status>> + Unpin),
        spool: &mut Spool,
        named: &mut Named<'a>,
    ) -> Result<(), Status> {
        while let Some(message) = next(messages).await? {
            let Some(create_job_request::Part::Items(items)) = message.part else {
                return Err(invalid("part", "the first message alone is the header, all others carry items"));
            };
            for item in &items.items {
                self.check_blobs(tenant, item, spool.total(), named).await?;
                spool.push(item).await.map_err(|refusal| match refusal {
                    Refusal::Item(status) => status,
                    Refusal::Broken(error) => ours(error),
                })?;
            }
        }
        if spool.total() == 0 {
            return Err(invalid("items", "a job has at least one item"));
        }
        Ok(())
    }

    async fn check_blobs<'a>(
        &'a self,
        tenant: &str,
        item: &JobItem,
        number: u64,
        named: &mut Named<'a>,
    ) -> Result<(), Status> {
        for (at, digest) in item::blobs(item).enumerate() {
            if named.hold.is_none() {
                named.hold = Some(self.blobs.read().await);
            }
            let mut short = [0; 16];
            let Some(head) = digest.get(..16) else { continue };
            short.copy_from_slice(head);
            if named.seen.contains(&short) {
                continue;
            }
            if !self.objects.has(&blobs::name(tenant, digest)).await.map_err(ours)? {
                let (field, hex) = (format!("items[{number}].images[{at}]"), janus_wire::hello::hex(digest));
                return Err(invalid(&field, format!("item `{}`: there is no blob {hex}; put it first", item.id)));
            }
            named.seen.insert(short);
        }
        Ok(())
    }

    /// Writes a new job down. False if another one has its key meanwhile.
    async fn write_down(&self, record: &JobRecord) -> Result<bool, Error> {
        let key = self.keys.record(&record.tenant, &record.id);
        let value = record.encode()?;
        super::state::patiently("a new job", || async {
            let mut txn = Txn::new().if_absent(&key).put(&key, value.clone());
            if !record.key.is_empty() {
                let key = self.keys.key(&record.tenant, &record.key);
                txn = txn.if_absent(&key).put(&key, record.id.clone());
            }
            if self.commit(txn).await? {
                return Ok(true);
            }
            // An answer that never came is no conflict.
            Ok(self.store.get(&key).await?.is_some_and(|entry| entry.value == value))
        })
        .await
    }
}

/// Blobs that a new job names.
#[derive(Default)]
struct Named<'a> {
    seen: std::collections::HashSet<[u8; 16]>,
    /// None of them is deleted meanwhile, and no file that the job is made of.
    hold: Option<tokio::sync::RwLockReadGuard<'a, ()>>,
}

/// The same key may be used again for the same items alone.
async fn the_same(job: &Tracked, header: &JobHeader, spooled: &Spooled) -> Result<v1::Job, Status> {
    let record = job.record().await;
    let same = record.items == janus_wire::hello::hex(&spooled.digest) && record.output == header.output;
    match same && !record.deleting {
        true => Ok(job.shown()),
        false => Err(Status::already_exists(format!("header.key: `{}` is in use with other items", header.key))),
    }
}

#[tonic::async_trait]
impl JobsService for Jobs {
    type WatchStream = Stream<v1::Job>;
    type ResultsStream = Stream<v1::ResultsResponse>;

    async fn put_blob(
        &self,
        request: Request<Streaming<v1::PutBlobRequest>>,
    ) -> Result<Response<v1::PutBlobResponse>, Status> {
        let shared = &self.0;
        let tenant = Caller::of(&request).tenant;
        let _place = shared.uploads.try_acquire().map_err(|_| exhausted("too many blobs are being sent", RETRY))?;
        let mut messages = request.into_inner();
        let first = next(&mut messages).await?.unwrap_or_default();
        let begun = futures_util::stream::iter([Ok(first.data)]);
        let rest = futures_util::stream::unfold(messages, |mut messages| async move {
            let message = next(&mut messages).await.transpose()?;
            Some((message.map(|message| message.data), messages))
        });
        let digest = blobs::receive(&shared.objects, &tenant, first.size, begun.chain(rest).boxed()).await?;
        Ok(Response::new(v1::PutBlobResponse { sha256: digest.to_vec().into() }))
    }

    async fn create(&self, request: Request<Streaming<v1::CreateJobRequest>>) -> Result<Response<v1::Job>, Status> {
        let tenant = Caller::of(&request).tenant;
        self.make(&tenant, request.into_inner()).await.map(Response::new)
    }

    async fn get(&self, request: Request<v1::GetJobRequest>) -> Result<Response<v1::Job>, Status> {
        let tenant = Caller::of(&request).tenant;
        let (job, _) = self.0.job(&tenant, &request.get_ref().job).await?;
        Ok(Response::new(job.shown()))
    }

    async fn list(&self, request: Request<v1::ListJobsRequest>) -> Result<Response<v1::ListJobsResponse>, Status> {
        let tenant = Caller::of(&request).tenant;
        let request = request.into_inner();
        let size = match request.page_size as usize {
            0 => PAGE.0,
            size => size.min(PAGE.1),
        };
        let mine: Vec<(String, Arc<Tracked>)> = {
            let all = self.0.all();
            let mine = all.iter().rev().filter(|((owner, _), _)| *owner == tenant);
            let after = mine.skip_while(|((_, id), _)| !request.page_token.is_empty() && *id >= request.page_token);
            after.map(|((_, id), job)| (id.clone(), job.clone())).collect()
        };
        let mut jobs: Vec<v1::Job> = Vec::new();
        let mut next_page_token = String::new();
        for (_, job) in mine {
            if jobs.len() == size {
                next_page_token = jobs.last().map(|job| job.id.clone()).unwrap_or_default();
                break;
            }
            if !job.record().await.deleting {
                jobs.push(job.shown());
            }
        }
        Ok(Response::new(v1::ListJobsResponse { jobs, next_page_token }))
    }

    async fn cancel(&self, request: Request<v1::CancelJobRequest>) -> Result<Response<v1::Job>, Status> {
        let tenant = Caller::of(&request).tenant;
        let (job, record) = self.0.job(&tenant, &request.get_ref().job).await?;
        if !record.status.is_end() {
            let change = |record: &mut JobRecord| {
                if !record.status.is_end() {
                    record.status = Stands::Cancelling;
                }
            };
            self.0.amend(&job, |txn| txn, change).await.map_err(ours)?;
            job.cancel.cancel();
        }
        Ok(Response::new(job.shown()))
    }

    async fn delete(&self, request: Request<v1::DeleteJobRequest>) -> Result<Response<v1::DeleteJobResponse>, Status> {
        let tenant = Caller::of(&request).tenant;
        let (job, record) = self.0.job(&tenant, &request.get_ref().job).await?;
        if !record.status.is_end() {
            let text = format!("job: {} has not ended; cancel it first", record.id);
            return Err(Status::failed_precondition(text));
        }
        self.0.amend(&job, |txn| txn, |record| record.deleting = true).await.map_err(ours)?;
        self.0.sweep.notify_one();
        Ok(Response::new(v1::DeleteJobResponse {}))
    }

    async fn watch(&self, request: Request<v1::WatchJobRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let tenant = Caller::of(&request).tenant;
        let (job, _) = self.0.job(&tenant, &request.get_ref().job).await?;
        let (events, stream) = mpsc::channel(EVENTS);
        let over = self.0.over.clone();
        let mut changes = job.watch();
        let follow = async move {
            loop {
                let now = changes.borrow_and_update().clone();
                let ended =
                    matches!(now.status(), v1::JobStatus::Succeeded | v1::JobStatus::Failed | v1::JobStatus::Cancelled);
                if events.send(Ok(now)).await.is_err() || ended {
                    return;
                }
                tokio::time::sleep(CALM).await;
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { return },
                    () = events.closed() => return,
                    () = over.cancelled() => {
                        let _ = events.send(Err(status::unavailable("this coordinator does not lead any more", RETRY))).await;
                        return;
                    }
                }
            }
        };
        tokio::spawn(follow);
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn results(&self, request: Request<v1::ResultsRequest>) -> Result<Response<Self::ResultsStream>, Status> {
        let tenant = Caller::of(&request).tenant;
        let v1::ResultsRequest { job, first, data } = request.into_inner();
        let (_, record) = self.0.job(&tenant, &job).await?;
        let output = self.0.output(&tenant, &record.id, &record.output).map_err(ours)?;
        let (events, stream) = mpsc::channel(EVENTS);
        let (shared, over) = (self.0.clone(), self.0.over.clone());
        tokio::spawn(async move {
            let told = tokio::select! {
                told = tell(&shared, &record, &output, first, data, &events) => told,
                () = over.cancelled() => Err(status::unavailable("this coordinator does not lead any more", RETRY)),
                () = events.closed() => Ok(()),
            };
            if let Err(status) = told {
                let _ = events.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

type Out = mpsc::Sender<Result<v1::ResultsResponse, Status>>;

/// Sends what the items of a job became, from line `first` on.
async fn tell(
    shared: &Shared,
    record: &JobRecord,
    output: &Objects,
    first: u64,
    data: bool,
    out: &Out,
) -> Result<(), Status> {
    let folder = shared.folder(&record.id);
    let (segment, mut skip) = spool::find_line(&folder, first).await.map_err(ours)?;
    // A cancelled job is complete with what it has.
    let until = match record.status {
        Stands::Succeeded | Stands::Cancelled => record.segments,
        _ => record.sealed,
    };
    let mut segments = manifest::lines(&folder, segment, record.sealed, until);
    while let Some(bytes) = segments.try_next().await.map_err(ours)? {
        for line in String::from_utf8_lossy(&bytes).lines() {
            if skip > 0 {
                skip -= 1;
                continue;
            }
            send(output, line, data, out).await?;
        }
    }
    if until < record.segments && segment <= until {
        for line in begun(shared, record, until).await.map_err(ours)?.into_iter().skip(skip as usize) {
            send(output, &line, data, out).await?;
        }
    }
    Ok(())
}

/// Lines of the first segment that is not sealed, up to the first unit that is not committed.
async fn begun(shared: &Shared, record: &JobRecord, segment: u32) -> Result<Vec<String>, Error> {
    let items = spool::read(&shared.folder(&record.id), segment).await?;
    let committed: BTreeMap<_, _> = shared.committed(&record.id, segment).await?.into_iter().collect();
    let mut lines = Vec::new();
    for (unit, (number, index)) in (0..).zip(spool::units_of(&items)) {
        let Some(result) = committed.get(&unit) else { break };
        lines.push(item::line(&items[number], index, Some(result)));
    }
    Ok(lines)
}

/// One result: its line, and the bytes of its picture.
async fn send(output: &Objects, line: &str, data: bool, out: &Out) -> Result<(), Status> {
    let gone = |_| Status::cancelled("the caller is gone");
    let message = |manifest_line: String, data: Bytes, end: bool| Ok(v1::ResultsResponse { manifest_line, data, end });
    let Some(path) = item::path_of(line).filter(|_| data) else {
        return out.send(message(line.to_owned(), Bytes::new(), true)).await.map_err(gone);
    };
    let Some(mut bytes) = output.stream(&path).await.map_err(ours)? else {
        return Err(Status::data_loss(format!("{}/{path} is gone", output.url())));
    };
    out.send(message(line.to_owned(), Bytes::new(), false)).await.map_err(gone)?;
    while let Some(mut bytes) = bytes.try_next().await.map_err(ours)? {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(PIECE));
            out.send(message(String::new(), piece, false)).await.map_err(gone)?;
        }
    }
    out.send(message(String::new(), Bytes::new(), true)).await.map_err(gone)
}
