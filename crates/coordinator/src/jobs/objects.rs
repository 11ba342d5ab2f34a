//! A folder of objects: on this machine, or in S3, GCS or Azure. Everything that is large goes there: items, results,
//! blobs. An object that is created is never changed; whoever creates it again must bring the same bytes.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt, TryStreamExt};
use janus_cluster::{Committed, Keys, Store, Txn};
use object_store::buffered::BufWriter;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, ObjectStoreScheme, PutMode, PutOptions, PutPayload};
use tokio::io::AsyncWriteExt;
use url::Url;

use super::Error;

/// Names the folder that a cluster's coordinators share.
const MARKER: &str = "janus-jobs";
/// Bytes that a writer gathers before it sends them.
const WRITE: usize = 8 << 20;

/// Environment of the process: where credentials of clouds come from.
pub type Environment = Vec<(String, String)>;

/// A folder of objects. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Objects {
    store: Arc<dyn ObjectStore>,
    base: Path,
    url: String,
    /// Where it is, if it is on this machine.
    folder: Option<PathBuf>,
}

/// How an object came to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// This call created it.
    Now,
    /// It was there, with these bytes.
    Before,
}

/// Where a URL leads.
enum Place {
    Here(PathBuf),
    Cloud(Path),
}

fn place(url: &Url) -> Result<Place, Error> {
    let bad = |reason: String| Error::Place { url: shown(url), reason };
    if url.query().is_some() || url.fragment().is_some() || url.password().is_some() || !url.username().is_empty() {
        return Err(bad("a folder's URL has no user, no query and no fragment".to_owned()));
    }
    let (scheme, base) = ObjectStoreScheme::parse(url).map_err(|error| bad(error.to_string()))?;
    match scheme {
        ObjectStoreScheme::Local => {
            url.to_file_path().map(Place::Here).map_err(|()| bad("is no path on this machine".to_owned()))
        }
        ObjectStoreScheme::AmazonS3 | ObjectStoreScheme::GoogleCloudStorage | ObjectStoreScheme::MicrosoftAzure => {
            Ok(Place::Cloud(base))
        }
        _ => Err(bad("results are kept below file://, s3://, gs:// or az://".to_owned())),
    }
}

impl Objects {
    /// The folder at `url`: `file:///..`, `s3://bucket/..`, `gs://bucket/..` or `az://container/..`. A local folder is
    /// made if it is absent.
    ///
    /// # Errors
    /// [`Error::Place`] if there can be no such folder.
    pub fn open(url: &Url, environment: &Environment) -> Result<Objects, Error> {
        let bad = |reason: String| Error::Place { url: shown(url), reason };
        match place(url)? {
            Place::Here(folder) => {
                std::fs::create_dir_all(&folder).map_err(|error| bad(format!("cannot be made: {error}")))?;
                let folder = folder.canonicalize().map_err(|error| bad(error.to_string()))?;
                let store = LocalFileSystem::new_with_prefix(&folder).map_err(|error| bad(error.to_string()))?;
                let store = Arc::new(store.with_fsync(true));
                Ok(Objects { store, base: Path::default(), url: shown(url), folder: Some(folder) })
            }
            Place::Cloud(base) => {
                let options = environment.iter().map(|(key, value)| (key.as_str(), value.as_str()));
                let (store, _) = object_store::parse_url_opts(url, options).map_err(|error| bad(error.to_string()))?;
                Ok(Objects { store: store.into(), base, url: shown(url), folder: None })
            }
        }
    }

    /// What is wrong with a URL and the environment, as far as it can be known without making a folder or asking anybody.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn check(url: &Url, environment: &Environment) -> Result<(), Error> {
        match place(url)? {
            Place::Here(_) => Ok(()),
            Place::Cloud(_) => Self::open(url, environment).map(drop),
        }
    }

    /// Any store of objects, for tests and simulations.
    pub fn of(store: Arc<dyn ObjectStore>, url: &str) -> Objects {
        Objects { store, base: Path::default(), url: url.trim_end_matches('/').to_owned(), folder: None }
    }

    /// A folder in this one.
    pub fn below(&self, folder: &str) -> Objects {
        Objects {
            store: self.store.clone(),
            base: self.at(folder),
            url: format!("{}/{folder}", self.url),
            folder: self.folder.as_ref().map(|own| own.join(folder)),
        }
    }

    /// Which folder it is, for messages.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Names are ours: segments of `a-z A-Z 0-9 . _ - =` that are not `.` or `..`.
    fn at(&self, name: &str) -> Path {
        name.split('/').filter(|part| !part.is_empty()).fold(self.base.clone(), |path, part| path.join(part))
    }

    fn failed(&self, name: &str) -> impl Fn(object_store::Error) -> Error + use<> {
        let object = format!("{}/{name}", self.url);
        move |error| {
            let passing = !matches!(
                error,
                object_store::Error::NotFound { .. }
                    | object_store::Error::InvalidPath { .. }
                    | object_store::Error::NotSupported { .. }
                    | object_store::Error::NotImplemented { .. }
                    | object_store::Error::PermissionDenied { .. }
                    | object_store::Error::Unauthenticated { .. }
                    | object_store::Error::UnknownConfigurationKey { .. }
            );
            Error::Object { object: object.clone(), reason: error.to_string(), passing }
        }
    }

    /// Creates an object, unless it is there with the same bytes.
    ///
    /// # Errors
    /// [`Error::Differs`] if it is there with others; [`Error::Object`].
    pub async fn create(&self, name: &str, bytes: Bytes) -> Result<Created, Error> {
        let options = PutOptions::from(PutMode::Create);
        match self.store.put_opts(&self.at(name), PutPayload::from_bytes(bytes.clone()), options).await {
            Ok(_) => Ok(Created::Now),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                match self.read(name).await? {
                    Some(there) if there == bytes => Ok(Created::Before),
                    Some(_) => Err(Error::Differs { object: format!("{}/{name}", self.url) }),
                    None => Err(Error::Object {
                        object: format!("{}/{name}", self.url),
                        reason: "it was there, and is gone again".to_owned(),
                        passing: true,
                    }),
                }
            }
            Err(error) => Err(self.failed(name)(error)),
        }
    }

    /// A whole object; `None` if it is not there.
    ///
    /// # Errors
    /// [`Error::Object`].
    pub async fn read(&self, name: &str) -> Result<Option<Bytes>, Error> {
        match self.store.get(&self.at(name)).await {
            Ok(found) => found.bytes().await.map(Some).map_err(self.failed(name)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed(name)(error)),
        }
    }

    /// An object that must be there.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it is not; [`Error::Object`].
    pub async fn expect(&self, name: &str) -> Result<Bytes, Error> {
        let gone = || Error::Damaged { what: format!("{}/{name}", self.url), reason: "it is gone".to_owned() };
        self.read(name).await?.ok_or_else(gone)
    }

    /// An object's bytes, piece by piece; `None` if it is not there.
    ///
    /// # Errors
    /// [`Error::Object`].
    pub async fn stream(&self, name: &str) -> Result<Option<BoxStream<'static, Result<Bytes, Error>>>, Error> {
        match self.store.get(&self.at(name)).await {
            Ok(found) => Ok(Some(found.into_stream().map_err(self.failed(name)).boxed())),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed(name)(error)),
        }
    }

    /// Whether an object is there.
    ///
    /// # Errors
    /// [`Error::Object`].
    pub async fn has(&self, name: &str) -> Result<bool, Error> {
        Ok(self.size(name).await?.is_some())
    }

    /// Bytes of an object; `None` if it is not there.
    ///
    /// # Errors
    /// [`Error::Object`].
    pub async fn size(&self, name: &str) -> Result<Option<u64>, Error> {
        match self.store.head(&self.at(name)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed(name)(error)),
        }
    }

    /// Writes a large object, in place of what is there: it is whole, or not there. The first error of `pieces` ends it.
    ///
    /// # Errors
    /// That of `pieces`; [`Error::Object`].
    pub async fn write<E: From<Error>>(
        &self,
        name: &str,
        mut pieces: impl Stream<Item = Result<Bytes, E>> + Unpin,
    ) -> Result<(), E> {
        let mut writer = BufWriter::with_capacity(self.store.clone(), self.at(name), WRITE).with_max_concurrency(2);
        let failed = |error: std::io::Error| Error::Object {
            object: format!("{}/{name}", self.url),
            reason: error.to_string(),
            passing: true,
        };
        let sent = async {
            while let Some(bytes) = pieces.try_next().await? {
                writer.write_all(&bytes).await.map_err(failed)?;
            }
            Ok::<(), E>(())
        };
        if let Err(error) = sent.await {
            // Parts that were sent would stay, and cost.
            let _ = writer.abort().await;
            return Err(error);
        }
        // A writer that is being shut down cannot be aborted any more.
        Ok(writer.shutdown().await.map_err(failed)?)
    }

    /// Gives an object another name.
    ///
    /// # Errors
    /// [`Error::Object`].
    pub async fn rename(&self, from: &str, to: &str) -> Result<(), Error> {
        self.store.rename(&self.at(from), &self.at(to)).await.map_err(self.failed(to))
    }

    /// Deletes an object; no error if it is not there.
    ///
    /// # Errors
    /// [`Error::Object`].
    pub async fn delete(&self, name: &str) -> Result<(), Error> {
        match self.store.delete(&self.at(name)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed(name)(error)),
        }
    }

    /// Deletes everything below a folder.
    ///
    /// # Errors
    /// [`Error::Object`].
    pub async fn delete_all(&self, folder: &str) -> Result<(), Error> {
        let found = self.store.list(Some(&self.at(folder))).map_ok(|meta| meta.location).boxed();
        let mut gone = self.store.delete_stream(found);
        while let Some(deleted) = gone.next().await {
            match deleted {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(self.failed(folder)(error)),
            }
        }
        if let Some(own) = &self.folder {
            // What is left of a local folder is empty folders and the beginnings of files.
            let _ = std::fs::remove_dir_all(own.join(folder));
        }
        Ok(())
    }

    /// All objects below a folder.
    pub fn list(&self, folder: &str) -> BoxStream<'static, Result<ObjectMeta, Error>> {
        self.store.list(Some(&self.at(folder))).map_err(self.failed(folder)).boxed()
    }

    /// Names of the folders in a folder.
    ///
    /// # Errors
    /// [`Error::Object`].
    pub async fn folders(&self, folder: &str) -> Result<Vec<String>, Error> {
        let found = self.store.list_with_delimiter(Some(&self.at(folder))).await.map_err(self.failed(folder))?;
        Ok(found.common_prefixes.iter().filter_map(|path| path.filename().map(str::to_owned)).collect())
    }

    /// Removes what processes that were killed left half-written in a local folder. Nobody may be writing there.
    pub fn tidy(&self, folder: &str) {
        let Some(own) = &self.folder else { return };
        let Ok(entries) = std::fs::read_dir(own.join(folder)) else { return };
        for entry in entries.flatten() {
            // No name of ours has a `#`; half-written files are named `NAME#NUMBER`.
            let half = entry
                .file_name()
                .to_str()
                .and_then(|name| name.rsplit_once('#'))
                .is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()));
            if half {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    /// Proves that two who create one object do not both succeed.
    ///
    /// # Errors
    /// [`Error::Place`] if they do, or if the place cannot be used at all.
    pub async fn probe(&self) -> Result<(), Error> {
        let bad = |reason: String| Error::Place { url: self.url.clone(), reason };
        let name = format!("probe-{}", super::record::random_hex(8));
        let first = self.create(&name, Bytes::from_static(b"first")).await;
        let second = self.create(&name, Bytes::from_static(b"second")).await;
        self.delete(&name).await.map_err(|error| bad(format!("cannot be used: {error}")))?;
        match (first, second) {
            (Ok(Created::Now), Err(Error::Differs { .. })) => Ok(()),
            (Err(error), _) => Err(bad(format!("cannot be written: {error}"))),
            _ => Err(bad("this store overwrites objects where it was told not to (no conditional put): results would \
                          not be safe here"
                .to_owned())),
        }
    }

    /// Proves that this is the folder that the cluster's other coordinators have, and not one of the same name elsewhere.
    ///
    /// # Errors
    /// [`Error::Place`] if it is another one; the store's.
    pub async fn claim(&self, store: &dyn Store, keys: &Keys) -> Result<(), Error> {
        let mine = super::record::random_hex(16);
        let mark = match self.create(MARKER, Bytes::from(mine.clone())).await {
            Ok(_) => mine,
            Err(Error::Differs { .. }) => String::from_utf8_lossy(&self.expect(MARKER).await?).into_owned(),
            Err(error) => return Err(error),
        };
        let key = format!("{}place", keys.jobs());
        if let Committed::Done { .. } = store.commit(Txn::new().if_absent(&key).put(&key, mark.clone())).await? {
            return Ok(());
        }
        match store.get(&key).await? {
            Some(entry) if entry.value == mark.as_bytes() => Ok(()),
            _ => Err(Error::Place {
                url: self.url.clone(),
                reason: format!(
                    "is not the folder that this cluster's jobs are in: that one is marked otherwise. Give every coordinator \
                     the same shared folder or bucket, or delete the store's key {key} if those jobs are to be forgotten"
                ),
            }),
        }
    }
}

/// A URL as it is shown: without what may be secret, without a last slash.
fn shown(url: &Url) -> String {
    let mut url = url.clone();
    let _ = url.set_password(None);
    url.as_str().trim_end_matches('/').to_owned()
}

/// The folder `output` if it is below one of `roots`: the same place, and a path that begins with the root's, segment by
/// segment.
pub(super) fn below_a_root(output: &str, roots: &[Url]) -> Option<Url> {
    let url = Url::parse(output).ok()?;
    // A parser resolves dots; what is meant must be what is written.
    let plain = |part: &str| {
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'=' | b'+' | b'@' | b',');
        !part.is_empty() && part != "." && part != ".." && part.bytes().all(legal)
    };
    let written = output.split_once("://")?.1;
    let written = written.split_once('/').map_or("", |(_, path)| path);
    let written: Vec<&str> = written.trim_end_matches('/').split('/').collect();
    if !written.iter().all(|part| plain(part)) || url.query().is_some() || url.fragment().is_some() {
        return None;
    }
    let same_place = |root: &&Url| {
        (root.scheme(), root.host_str(), root.port(), root.username()) == (url.scheme(), url.host_str(), url.port(), "")
            && url.username().is_empty()
            && url.password().is_none()
    };
    let holds = |root: &&Url| {
        let base: Vec<&str> = root.path().trim_matches('/').split('/').filter(|part| !part.is_empty()).collect();
        written.len() > base.len() && written[..base.len()] == base[..]
    };
    roots.iter().filter(same_place).any(|root| holds(&root)).then_some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_escapes_its_root() {
        let roots = [Url::parse("s3://bucket/tenants/a").unwrap(), Url::parse("file:///srv/out/").unwrap()];
        let inside = |output: &str| below_a_root(output, &roots).is_some();
        for good in ["s3://bucket/tenants/a/run-1", "s3://bucket/tenants/a/x/y/", "file:///srv/out/x"] {
            assert!(inside(good), "{good}");
        }
        for bad in [
            "s3://bucket/tenants/a",
            "s3://bucket/tenants/ab/x",
            "s3://bucket/tenants/a/../b",
            "s3://bucket/tenants/a/%2e%2e/b",
            "s3://bucket/tenants/a/x%2f..%2f..",
            "s3://bucket/tenants/a//x",
            "s3://bucket/tenants/a/./x",
            "s3://other/tenants/a/x",
            "s3a://bucket/tenants/a/x",
            "s3://user@bucket/tenants/a/x",
            "s3://bucket/tenants/a/x?versionId=1",
            "s3://bucket/tenants/a/x#y",
            "s3://bucket:81/tenants/a/x",
            "file:///srv/out",
            "file:///srv/out/../../etc/x",
            "file:///srv/outside/x",
            "file://host/srv/out/x",
            "file:/srv/out/x",
            "/srv/out/x",
            "http://bucket/tenants/a/x",
            "file:///srv/out/a\\b",
            "",
        ] {
            assert!(!inside(bad), "{bad}");
        }
        assert!(below_a_root("s3://bucket/x", &[]).is_none());
    }

    #[tokio::test]
    async fn who_creates_second_must_bring_the_same_bytes() {
        let objects = Objects::of(Arc::new(object_store::memory::InMemory::new()), "memory:///x");
        assert_eq!(objects.create("a/b", Bytes::from_static(b"1")).await.unwrap(), Created::Now);
        assert_eq!(objects.create("a/b", Bytes::from_static(b"1")).await.unwrap(), Created::Before);
        assert!(matches!(objects.create("a/b", Bytes::from_static(b"2")).await, Err(Error::Differs { .. })));
        assert_eq!(objects.below("a").read("b").await.unwrap().unwrap(), "1");
        objects.probe().await.unwrap();
    }

    #[tokio::test]
    async fn a_folder_of_the_same_name_elsewhere_is_refused() {
        let (store, keys) = (janus_cluster::StoreConfig::Memory(Default::default()), Keys::new("c").unwrap());
        let store = store.connect().await.unwrap();
        let here = Objects::of(Arc::new(object_store::memory::InMemory::new()), "memory:///x");
        let there = Objects::of(Arc::new(object_store::memory::InMemory::new()), "memory:///x");
        here.claim(store.as_ref(), &keys).await.unwrap();
        here.claim(store.as_ref(), &keys).await.unwrap();
        let refused = there.claim(store.as_ref(), &keys).await.unwrap_err().to_string();
        assert!(refused.contains("same shared folder"), "{refused}");
    }
}
