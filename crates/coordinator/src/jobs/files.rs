//! Files: blobs with a name and words of their tenant. They are kept for a day, and as long as there is a job that was made of
//! them. Their records are in the store, so whoever leads knows them all, and a tenant has a bounded number of them.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use janus_cluster::Txn;
use janus_wire::hello::hex;
use janus_wire::status::{exhausted, invalid};
use janus_wire::v1;
use janus_wire::v1::files_server::{Files as FilesService, FilesServer};
use serde::{Deserialize, Serialize};
use tonic::{Request, Response, Status};

use super::record::decode;
use super::service::ours;
use super::state::{Shared, patiently};
use super::sweep::GRACE;
use super::{Error, Jobs, RETRY, blobs};
use crate::auth::Caller;
use crate::params::now_unix_ms;

/// Files of one tenant.
const MOST: usize = 1_000;
/// Words of a caller about its file: how many, and their bytes together.
const WORDS: (usize, usize) = (16, 2048);
/// Longest id.
const MAX_ID: usize = 128;
/// Files of a page: unless said otherwise, and at most.
const PAGE: (usize, usize) = (100, MOST);

/// A file, as the store has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct FileRecord {
    id: String,
    /// Of its blob, hexadecimal.
    sha256: String,
    size: u64,
    /// Milliseconds since the Unix epoch.
    created: u64,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
}

impl FileRecord {
    fn end(&self) -> u64 {
        self.created + GRACE.as_millis() as u64
    }

    fn shown(self, held: bool) -> v1::File {
        v1::File {
            expires_unix_ms: if held { 0 } else { self.end() },
            sha256: blobs::unhex(&self.sha256).unwrap_or_default().into(),
            size: self.size,
            created_unix_ms: self.created,
            metadata: self.metadata.into_iter().collect(),
            id: self.id,
        }
    }
}

impl Jobs {
    /// Its files as a tonic service.
    pub fn files(self) -> FilesServer<Self> {
        FilesServer::new(self)
    }
}

fn unknown(id: &str) -> Status {
    let shown: String = id.chars().take(MAX_ID).collect();
    Status::not_found(format!("id: there is no file `{shown}`"))
}

/// Whether it may stand in a key.
fn is_id(id: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=MAX_ID).contains(&id.len()) && !id.starts_with('.') && id.bytes().all(legal)
}

impl Shared {
    async fn file(&self, tenant: &str, id: &str) -> Result<Option<FileRecord>, Error> {
        if !is_id(id) {
            return Ok(None);
        }
        let entry = self.store.get(&self.keys.file(tenant, id)).await?;
        entry.map(|entry| decode(&entry)).transpose()
    }

    /// A tenant's files, newest first.
    async fn files(&self, tenant: &str) -> Result<Vec<FileRecord>, Error> {
        let listing = self.store.list(&self.keys.files_of(tenant)).await?;
        let mut files: Vec<FileRecord> = listing.entries.iter().map(decode).collect::<Result<_, _>>()?;
        files.sort_by(|a, b| (b.created, &b.id).cmp(&(a.created, &a.id)));
        Ok(files)
    }

    /// Ids of the files that a tenant's jobs were made of.
    async fn held(&self, tenant: &str) -> HashSet<String> {
        let all: Vec<_> =
            self.all().iter().filter(|((owner, _), _)| **owner == *tenant).map(|(_, job)| job.clone()).collect();
        let mut held = HashSet::new();
        for job in all {
            held.extend(job.record().await.files);
        }
        held
    }

    /// Refuses a job of files that are not there. Nobody may be deleting any meanwhile.
    pub(super) async fn check_files(&self, tenant: &str, files: &[String]) -> Result<(), Status> {
        for (at, id) in files.iter().enumerate() {
            if self.file(tenant, id).await.map_err(ours)?.is_none() {
                return Err(invalid(&format!("header.files[{at}]"), unknown(id).message()));
            }
        }
        Ok(())
    }

    /// Forgets files whose time is over and that no job was made of; names of the blobs of those that stay. Nobody may be
    /// making a job or a file meanwhile.
    pub(super) async fn forget_files(&self, now: u64) -> Result<HashSet<String>, Error> {
        let (mut stay, mut held) = (HashSet::new(), BTreeMap::<String, HashSet<String>>::new());
        for entry in self.store.list(&self.keys.files()).await?.entries {
            let Some(tenant) = self.keys.owner_of_file(&entry.key) else { continue };
            let file: FileRecord = match decode(&entry) {
                Ok(file) => file,
                Err(error) => {
                    tracing::error!(%error, "a file cannot be read");
                    continue;
                }
            };
            if file.end() < now {
                if !held.contains_key(tenant) {
                    held.insert(tenant.to_owned(), self.held(tenant).await);
                }
                if !held[tenant].contains(&file.id) {
                    let txn = Txn::new().delete(&entry.key);
                    patiently("an old file", || self.commit(txn.clone())).await?;
                    tracing::info!(file = file.id, tenant, "a file is forgotten");
                    continue;
                }
            }
            stay.insert(blobs::named(tenant, &file.sha256));
        }
        Ok(stay)
    }
}

fn check(request: &v1::CreateFileRequest) -> Result<(), Status> {
    if !is_id(&request.id) {
        let text = format!("must be 1 to {MAX_ID} characters of a-z A-Z 0-9 . _ -, the first one no dot");
        return Err(invalid("id", text));
    }
    if request.sha256.len() != 32 {
        return Err(invalid("sha256", format!("has {} bytes, not 32", request.sha256.len())));
    }
    let bytes: usize = request.metadata.iter().map(|(name, value)| name.len() + value.len()).sum();
    if request.metadata.len() > WORDS.0 || bytes > WORDS.1 {
        return Err(invalid("metadata", format!("takes at most {} entries of {} bytes together", WORDS.0, WORDS.1)));
    }
    Ok(())
}

#[tonic::async_trait]
impl FilesService for Jobs {
    async fn create(&self, request: Request<v1::CreateFileRequest>) -> Result<Response<v1::File>, Status> {
        let (shared, tenant) = (&self.0, Caller::of(&request).tenant);
        let request = request.into_inner();
        check(&request)?;
        // Its blob is not swept away meanwhile.
        let _held = shared.blobs.read().await;
        let blob = shared.objects.size(&blobs::name(&tenant, &request.sha256)).await.map_err(ours)?;
        let size = blob.ok_or_else(|| invalid("sha256", format!("there is no blob {}", hex(&request.sha256))))?;
        if shared.files(&tenant).await.map_err(ours)?.len() >= MOST
            && shared.file(&tenant, &request.id).await.map_err(ours)?.is_none()
        {
            return Err(exhausted(format!("{MOST} files are kept for you already; delete old ones"), RETRY));
        }
        let file = FileRecord {
            id: request.id,
            sha256: hex(&request.sha256),
            size,
            created: now_unix_ms(),
            metadata: request.metadata.into_iter().collect(),
        };
        let key = shared.keys.file(&tenant, &file.id);
        let value = serde_json::to_vec(&file).map_err(|error| Status::internal(error.to_string()))?;
        let file = match shared.commit(Txn::new().if_absent(&key).put(&key, value)).await.map_err(ours)? {
            true => file,
            false => {
                let there = shared.file(&tenant, &file.id).await.map_err(ours)?;
                let same = |there: &FileRecord| (&there.sha256, &there.metadata) == (&file.sha256, &file.metadata);
                there.filter(same).ok_or_else(|| Status::already_exists(format!("id: `{}` is another file", file.id)))?
            }
        };
        let held = shared.held(&tenant).await.contains(&file.id);
        Ok(Response::new(file.shown(held)))
    }

    async fn get(&self, request: Request<v1::GetFileRequest>) -> Result<Response<v1::File>, Status> {
        let (tenant, id) = (Caller::of(&request).tenant, &request.get_ref().id);
        let file = self.0.file(&tenant, id).await.map_err(ours)?.ok_or_else(|| unknown(id))?;
        let held = self.0.held(&tenant).await.contains(id);
        Ok(Response::new(file.shown(held)))
    }

    async fn list(&self, request: Request<v1::ListFilesRequest>) -> Result<Response<v1::ListFilesResponse>, Status> {
        let tenant: Arc<str> = Caller::of(&request).tenant;
        let request = request.into_inner();
        let size = match request.page_size as usize {
            0 => PAGE.0,
            size => size.min(PAGE.1),
        };
        let mut files = self.0.files(&tenant).await.map_err(ours)?;
        if !request.page_token.is_empty() {
            let after =
                |token: &str| Some((token.split_once(' ')?.0.parse::<u64>().ok()?, token.split_once(' ')?.1.to_owned()));
            let last = after(&request.page_token).ok_or_else(|| invalid("page_token", "is none of ours"))?;
            files.retain(|file| (file.created, &file.id) < (last.0, &last.1));
        }
        let more = files.len() > size;
        files.truncate(size);
        let last = files.last().filter(|_| more);
        let next_page_token = last.map(|file| format!("{} {}", file.created, file.id)).unwrap_or_default();
        let held = self.0.held(&tenant).await;
        let shown = |file: FileRecord| {
            let held = held.contains(&file.id);
            file.shown(held)
        };
        Ok(Response::new(v1::ListFilesResponse { files: files.into_iter().map(shown).collect(), next_page_token }))
    }

    async fn delete(&self, request: Request<v1::DeleteFileRequest>) -> Result<Response<v1::DeleteFileResponse>, Status> {
        let (shared, tenant) = (&self.0, Caller::of(&request).tenant);
        let id = &request.get_ref().id;
        if !is_id(id) {
            return Err(unknown(id));
        }
        let key = shared.keys.file(&tenant, id);
        match shared.commit(Txn::new().if_exists(&key).delete(&key)).await.map_err(ours)? {
            true => Ok(Response::new(v1::DeleteFileResponse {})),
            false => Err(unknown(id)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use janus_cluster::{Keys, MemoryStore, StoreConfig};
    use janus_wire::v1::{JobHeader, JobItem, JobItems, PaintItem, create_job_request, job_item};
    use tokio_util::sync::{CancellationToken, DropGuard};
    use tonic::Code;

    use super::super::{Answer, Engine, Objects, Options, Picture, Setup, next_epoch, sweep};
    use super::*;

    const DAY: u64 = 24 * 3600 * 1000;

    /// Never done with anything.
    struct Idle;

    #[tonic::async_trait]
    impl Engine for Idle {
        async fn paint(&self, _: &Arc<str>, _: v1::GenerateImageRequest) -> Result<Picture, Status> {
            std::future::pending().await
        }

        async fn answer(&self, _: &Arc<str>, _: v1::ChatRequest) -> Result<Answer, Status> {
            std::future::pending().await
        }
    }

    async fn kept() -> (Jobs, DropGuard) {
        let (store, keys) = (StoreConfig::Memory(MemoryStore::new()).connect().await.unwrap(), Keys::new("test").unwrap());
        let setup = Setup {
            epoch: next_epoch(store.as_ref(), &keys).await.unwrap(),
            store,
            keys,
            cluster: "test".to_owned(),
            objects: Objects::of(Arc::new(object_store::memory::InMemory::new()), "memory:///x"),
            options: Options { window: 1, segment: 4, keep: None, roots: Arc::new(|_| Vec::new()), environment: Vec::new() },
            engine: Arc::new(Idle),
            model: [0; 32],
        };
        let over = CancellationToken::new();
        (Jobs::start(setup, over.clone()).await.unwrap(), over.drop_guard())
    }

    fn of<T>(tenant: &str, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.extensions_mut().insert(Caller { tenant: tenant.into(), operator: false });
        request
    }

    async fn put(jobs: &Jobs, tenant: &str, data: &'static [u8]) -> Bytes {
        let pieces = Box::pin(tokio_stream::iter([Ok(Bytes::from_static(data))]));
        blobs::receive(&jobs.0.objects, tenant, data.len() as u64, pieces).await.unwrap().to_vec().into()
    }

    async fn create(jobs: &Jobs, tenant: &str, id: &str, sha256: &Bytes, name: &str) -> Result<v1::File, Status> {
        let metadata = [("name".to_owned(), name.to_owned())].into();
        let request = v1::CreateFileRequest { id: id.to_owned(), sha256: sha256.clone(), metadata };
        FilesService::create(jobs, of(tenant, request)).await.map(Response::into_inner)
    }

    async fn list(jobs: &Jobs, tenant: &str, page_size: u32, page_token: &str) -> (Vec<String>, String) {
        let request = v1::ListFilesRequest { page_size, page_token: page_token.to_owned() };
        let page = FilesService::list(jobs, of(tenant, request)).await.unwrap().into_inner();
        (page.files.into_iter().map(|file| file.id).collect(), page.next_page_token)
    }

    async fn get(jobs: &Jobs, tenant: &str, id: &str) -> Result<v1::File, Status> {
        FilesService::get(jobs, of(tenant, v1::GetFileRequest { id: id.to_owned() })).await.map(Response::into_inner)
    }

    async fn job(jobs: &Jobs, tenant: &str, file: &str) -> Result<v1::Job, Status> {
        let part = |part| Ok(v1::CreateJobRequest { part: Some(part) });
        let work = Some(job_item::Work::Paint(PaintItem { prompt: "x".to_owned(), ..PaintItem::default() }));
        let items = JobItems { items: vec![JobItem { id: "x".to_owned(), work }] };
        let header = JobHeader { files: vec![file.to_owned()], ..JobHeader::default() };
        let messages = [part(create_job_request::Part::Header(header)), part(create_job_request::Part::Items(items))];
        jobs.make(&tenant.into(), tokio_stream::iter(messages)).await
    }

    #[tokio::test]
    async fn a_file_is_what_its_tenant_made() {
        let (jobs, _over) = kept().await;
        let blob = put(&jobs, "ann", b"abcde").await;
        let made = create(&jobs, "ann", "a", &blob, "one").await.unwrap();
        assert_eq!((&made.sha256, made.size, &made.metadata["name"][..]), (&blob, 5, "one"));
        assert_eq!(made.expires_unix_ms, made.created_unix_ms + DAY);
        // The same again is the same; something else under its name is refused.
        assert_eq!(create(&jobs, "ann", "a", &blob, "one").await.unwrap(), made);
        assert_eq!(create(&jobs, "ann", "a", &blob, "two").await.unwrap_err().code(), Code::AlreadyExists);
        assert_eq!(get(&jobs, "ann", "a").await.unwrap(), made);
        for (id, digest, words) in [("b", &[7; 32][..], "there is no blob"), ("b", b"x", "32"), ("../a", &blob, "id: ")] {
            let refused = create(&jobs, "ann", id, &Bytes::copy_from_slice(digest), "x").await.unwrap_err();
            assert!(refused.code() == Code::InvalidArgument && refused.message().contains(words), "{refused}");
        }
        // Nobody else has it, not even by its bytes.
        assert_eq!(get(&jobs, "bob", "a").await.unwrap_err().code(), Code::NotFound);
        assert_eq!(get(&jobs, "b", "ob/a").await.unwrap_err().code(), Code::NotFound);
        assert_eq!(create(&jobs, "bob", "a", &blob, "one").await.unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(list(&jobs, "bob", 0, "").await.0, Vec::<String>::new());
        assert_eq!(job(&jobs, "bob", "a").await.unwrap_err().code(), Code::InvalidArgument);
        let delete = |tenant| FilesService::delete(&jobs, of(tenant, v1::DeleteFileRequest { id: "a".to_owned() }));
        assert_eq!(delete("bob").await.unwrap_err().code(), Code::NotFound);
        delete("ann").await.unwrap();
        assert_eq!(delete("ann").await.unwrap_err().code(), Code::NotFound);
        assert_eq!(get(&jobs, "ann", "a").await.unwrap_err().code(), Code::NotFound);
    }

    #[tokio::test]
    async fn pages_hold_every_file_once_newest_first_and_there_is_an_end_to_them() {
        let (jobs, _over) = kept().await;
        let blob = put(&jobs, "ann", b"abcde").await;
        for i in 0..MOST {
            create(&jobs, "ann", &format!("f{i:04}"), &blob, "x").await.unwrap();
        }
        let (mut all, mut token) = (Vec::new(), String::new());
        loop {
            let (page, next) = list(&jobs, "ann", 301, &token).await;
            assert!(page.len() <= 301);
            all.extend(page);
            token = next;
            if token.is_empty() {
                break;
            }
        }
        let mut expected: Vec<(u64, String)> = Vec::new();
        for id in &all {
            expected.push((get(&jobs, "ann", id).await.unwrap().created_unix_ms, id.clone()));
        }
        assert!(expected.windows(2).all(|pair| pair[0] > pair[1]), "newest first");
        assert_eq!(all.len(), MOST);
        assert_eq!(create(&jobs, "ann", "more", &blob, "x").await.unwrap_err().code(), Code::ResourceExhausted);
        create(&jobs, "ann", "f0000", &blob, "x").await.unwrap();
        let theirs = put(&jobs, "bob", b"abcde").await;
        create(&jobs, "bob", "more", &theirs, "x").await.unwrap();
    }

    #[tokio::test]
    async fn files_are_kept_for_a_day_and_as_long_as_a_job_was_made_of_them() {
        let (jobs, _over) = kept().await;
        let shared = &jobs.0;
        let (used, unused) = (put(&jobs, "ann", b"used").await, put(&jobs, "ann", b"unused").await);
        let nameless = put(&jobs, "ann", b"nameless").await;
        let made = create(&jobs, "ann", "used", &used, "x").await.unwrap();
        create(&jobs, "ann", "unused", &unused, "x").await.unwrap();
        job(&jobs, "ann", "used").await.unwrap();
        assert_eq!(get(&jobs, "ann", "used").await.unwrap().expires_unix_ms, 0);
        let has = async |blob: &Bytes| shared.objects.has(&blobs::name("ann", blob)).await.unwrap();

        sweep::unnamed(shared, made.created_unix_ms + DAY - 60_000).await.unwrap();
        assert!(has(&used).await && has(&unused).await && has(&nameless).await);
        let later = made.created_unix_ms + DAY + 60_000;
        sweep::unnamed(shared, later).await.unwrap();
        assert_eq!(list(&jobs, "ann", 0, "").await.0, ["used"]);
        assert!(has(&used).await && !has(&unused).await && !has(&nameless).await);

        // Its job is forgotten, and so is it.
        shared.all().clear();
        sweep::unnamed(shared, later).await.unwrap();
        assert_eq!(list(&jobs, "ann", 0, "").await.0, Vec::<String>::new());
        assert!(!has(&used).await);
    }

    #[tokio::test]
    async fn a_file_is_not_swept_away_while_a_job_is_made_of_it() {
        let (jobs, _over) = kept().await;
        let blob = put(&jobs, "ann", b"abcde").await;
        let made = create(&jobs, "ann", "a", &blob, "x").await.unwrap();
        let later = made.created_unix_ms + 2 * DAY;
        let held = jobs.0.blobs.read().await;
        let swept = tokio::time::timeout(Duration::from_millis(50), sweep::unnamed(&jobs.0, later)).await;
        assert!(swept.is_err(), "whoever makes a job of it comes first");
        drop(held);
        assert!(get(&jobs, "ann", "a").await.is_ok());
    }
}
