//! Forgetting: jobs that were deleted or are older than they are kept, what was spooled for jobs that never came to be, and
//! files and blobs that no job names.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use janus_cluster::Txn;
use tokio::time::{Instant, sleep_until};

use super::blobs;
use super::record::{JobRecord, made_at};
use super::state::{Shared, Tracked, patiently};
use super::{Error, item, manifest, spool};
use crate::params::now_unix_ms;

/// How often it is looked for what is too old.
const EVERY: Duration = Duration::from_secs(3600);
/// A blob that nothing names and a file that no job was made of are kept for this long, and so is what was spooled for a job that never came to be.
pub(super) const GRACE: Duration = Duration::from_secs(24 * 3600);

/// Forgets what is to be forgotten, until the reign is over.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut look = Instant::now();
    loop {
        let due = Instant::now() >= look;
        if due {
            look = Instant::now() + EVERY;
        }
        if let Err(error) = round(&shared, due).await {
            tracing::warn!(%error, "what nobody wants any more is still there");
            if matches!(error, Error::Deposed) {
                return;
            }
        }
        tokio::select! {
            () = shared.sweep.notified() => {}
            () = sleep_until(look) => {}
        }
    }
}

async fn round(shared: &Shared, due: bool) -> Result<(), Error> {
    let (all, now) = (shared.all().values().cloned().collect::<Vec<_>>(), now_unix_ms());
    for job in all {
        let record = job.record().await;
        let old = shared.options.keep.is_some_and(|keep| record.ended > 0 && now > record.ended + keep.as_millis() as u64);
        if record.deleting || (old && record.status.is_end()) {
            delete(shared, &job, record).await?;
        }
    }
    if due {
        orphans(shared, now).await?;
        unnamed(shared, now).await?;
    }
    Ok(())
}

/// Deletes a job that has ended: its objects first, so that what is left after a crash is found again.
async fn delete(shared: &Shared, job: &Tracked, record: JobRecord) -> Result<(), Error> {
    if !record.deleting {
        shared.amend(job, |txn| txn, |record| record.deleting = true).await?;
    }
    let folder = shared.folder(&record.id);
    if !record.output.is_empty() {
        match shared.output(&record.tenant, &record.id, &record.output) {
            Ok(output) => {
                output.delete(manifest::MANIFEST).await?;
                let mut lines = manifest::lines(&folder, 0, record.sealed, record.sealed);
                while let Some(bytes) = lines.try_next().await? {
                    for path in String::from_utf8_lossy(&bytes).lines().filter_map(item::path_of) {
                        output.delete(&path).await?;
                    }
                }
            }
            // The operator took the folder away from the tenant: what is there is not ours to touch any more.
            Err(error) => tracing::warn!(job = record.id, %error, "results stay where they are"),
        }
    }
    shared.objects.delete_all(&format!("jobs/{}", record.id)).await?;
    let mut txn = Txn::new().delete(shared.keys.record(&record.tenant, &record.id));
    txn = txn.delete_prefix(shared.keys.results(&record.id));
    if !record.key.is_empty() {
        txn = txn.delete(shared.keys.key(&record.tenant, &record.key));
    }
    patiently("a deleted job", || shared.commit(txn.clone())).await?;
    shared.all().remove(&(record.tenant.clone(), record.id.clone()));
    tracing::info!(job = record.id, tenant = %record.tenant, "a job is forgotten");
    Ok(())
}

/// What was spooled for jobs whose caller, or whose coordinator, went away before they were made.
async fn orphans(shared: &Shared, now: u64) -> Result<(), Error> {
    let known: HashSet<String> = shared.all().keys().map(|(_, id)| id.clone()).collect();
    for id in shared.objects.folders("jobs").await? {
        let old = made_at(&id).is_some_and(|made| now > made + GRACE.as_millis() as u64);
        if old && !known.contains(&id) {
            shared.objects.delete_all(&format!("jobs/{id}")).await?;
            tracing::info!(job = id, "the items of a job that was never made are deleted");
        }
    }
    Ok(())
}

/// Files that are old and that no job was made of, and blobs that are old and that neither a job nor a file names.
pub(super) async fn unnamed(shared: &Shared, now: u64) -> Result<(), Error> {
    let old = |millis: i64| now > u64::try_from(millis).unwrap_or(0) + GRACE.as_millis() as u64;
    let mut candidates: HashSet<String> = HashSet::new();
    let mut found = shared.objects.list(blobs::FOLDER);
    while let Some(meta) = found.try_next().await? {
        let mut parts: Vec<&str> = meta.location.as_ref().rsplit('/').take(2).collect();
        parts.reverse();
        if old(meta.last_modified.timestamp_millis()) {
            candidates.insert(format!("{}/{}", blobs::FOLDER, parts.join("/")));
        }
    }
    // No job may come to name one of them meanwhile.
    let _alone = shared.blobs.write().await;
    let of_files = shared.forget_files(now).await?;
    candidates.retain(|name| !of_files.contains(name));
    if candidates.is_empty() {
        return Ok(());
    }
    let all: Vec<_> = shared.all().values().cloned().collect();
    for job in all {
        let record = job.record().await;
        // Whoever has ended asks for nothing any more.
        if !record.blobs || record.status.is_end() {
            continue;
        }
        let folder = shared.folder(&record.id);
        for segment in record.sealed..record.segments {
            for item in spool::read(&folder, segment).await? {
                for digest in item::blobs(&item) {
                    candidates.remove(&blobs::name(&record.tenant, digest));
                }
            }
        }
    }
    for name in candidates {
        shared.objects.delete(&name).await?;
    }
    Ok(())
}
