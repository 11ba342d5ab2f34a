//! A store and objects that fail, hesitate, and stop for good at a chosen step: what a process that is killed there
//! leaves behind is what it had done before.

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use janus_cluster::{Committed, Entry, Error, LeaseId, Listing, Store, Txn, Watch};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result,
};
use tokio::sync::Notify;

/// A seeded sequence of numbers (SplitMix64).
#[derive(Debug, Clone)]
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end.max(1)
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// One process: it lives for so many steps.
#[derive(Debug)]
pub struct Life {
    left: AtomicI64,
    pub over: Notify,
    dice: Mutex<Dice>,
    /// Percentage of calls that fail.
    trouble: u64,
}

impl Life {
    pub fn new(steps: i64, trouble: u64, seed: u64) -> Arc<Life> {
        Arc::new(Life { left: AtomicI64::new(steps), over: Notify::new(), dice: Mutex::new(Dice(seed)), trouble })
    }

    fn roll(&self, percent: u64) -> bool {
        self.dice.lock().unwrap().chance(percent)
    }

    /// One step; the last one never ends.
    pub async fn step(&self) {
        let hesitates = self.dice.lock().unwrap().below(4);
        for _ in 0..hesitates {
            tokio::task::yield_now().await;
        }
        if self.left.fetch_sub(1, Ordering::SeqCst) <= 1 {
            self.over.notify_one();
            std::future::pending::<()>().await;
        }
    }

    /// Whether this call fails.
    fn fails(&self) -> bool {
        self.roll(self.trouble)
    }
}

/// The cluster's store as one process sees it.
pub struct ShakyStore {
    pub inner: Arc<dyn Store>,
    pub life: Arc<Life>,
}

fn unreachable() -> Error {
    Error::Unreachable { store: "simulated".into(), reason: "chance".into() }
}

#[async_trait]
impl Store for ShakyStore {
    async fn get(&self, key: &str) -> std::result::Result<Option<Entry>, Error> {
        self.life.step().await;
        if self.life.fails() { Err(unreachable()) } else { self.inner.get(key).await }
    }

    async fn list(&self, prefix: &str) -> std::result::Result<Listing, Error> {
        self.life.step().await;
        if self.life.fails() { Err(unreachable()) } else { self.inner.list(prefix).await }
    }

    async fn commit(&self, txn: Txn) -> std::result::Result<Committed, Error> {
        self.life.step().await;
        if self.life.fails() {
            return Err(unreachable());
        }
        let committed = self.inner.commit(txn).await;
        self.life.step().await;
        match self.life.fails() {
            true => Err(Error::Uncertain { store: "simulated".into(), reason: "chance".into() }),
            false => committed,
        }
    }

    async fn grant(&self, ttl: Duration) -> std::result::Result<LeaseId, Error> {
        self.inner.grant(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> std::result::Result<Duration, Error> {
        self.inner.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> std::result::Result<(), Error> {
        self.inner.revoke(lease).await
    }

    async fn watch(&self, prefix: &str) -> std::result::Result<Watch, Error> {
        self.inner.watch(prefix).await
    }

    async fn compact(&self, revision: u64) -> std::result::Result<(), Error> {
        self.inner.compact(revision).await
    }

    fn describe(&self) -> String {
        "simulated".to_owned()
    }
}

/// Objects as one process sees them.
#[derive(Debug)]
pub struct ShakyObjects {
    pub inner: Arc<dyn ObjectStore>,
    pub life: Arc<Life>,
}

impl fmt::Display for ShakyObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("simulated objects")
    }
}

impl ShakyObjects {
    async fn before(&self) -> Result<()> {
        self.life.step().await;
        self.chance()
    }

    fn chance(&self) -> Result<()> {
        match self.life.fails() {
            true => Err(object_store::Error::Generic { store: "simulated", source: "chance".into() }),
            false => Ok(()),
        }
    }

    async fn after<T>(&self, done: T) -> Result<T> {
        self.life.step().await;
        self.chance().map(|()| done)
    }
}

#[async_trait]
impl ObjectStore for ShakyObjects {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.before().await?;
        let done = self.inner.put_opts(location, payload, opts).await?;
        // Done, and its answer lost.
        self.after(done).await
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.before().await?;
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.before().await?;
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (life, inner) = (self.life.clone(), self.inner.clone());
        let stepped = locations.then(move |location| {
            let life = life.clone();
            async move {
                life.step().await;
                location
            }
        });
        inner.delete_stream(stepped.boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.before().await?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.before().await?;
        self.inner.copy_opts(from, to, options).await
    }
}
