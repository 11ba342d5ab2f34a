//! What the cluster's store holds of a job: one small record, whatever the number of its items.

use std::collections::BTreeMap;
use std::sync::Arc;

use janus_cluster::{Entry, Keys};
use janus_wire::v1;
use serde::{Deserialize, Serialize};

use super::Error;
use super::course::{End, Tally};

/// How a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Nothing was started.
    Queued,
    /// Units are being made.
    Running,
    /// Cancel was asked for.
    Cancelling,
    /// Every item is done.
    Succeeded,
    /// The job as a whole could not go on.
    Failed,
    /// Some items were not wanted any more.
    Cancelled,
}

impl Status {
    /// Whether nothing more happens.
    pub fn is_end(self) -> bool {
        matches!(self, Status::Succeeded | Status::Failed | Status::Cancelled)
    }
}

/// A job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRecord {
    /// Its name: the time it was made, and chance.
    pub id: String,
    /// Whose it is.
    #[serde(with = "shared_text")]
    pub tenant: Arc<str>,
    /// The caller's idempotency key; empty for none.
    #[serde(default)]
    pub key: String,
    /// SHA-256 over the items, hexadecimal.
    pub items: String,
    /// Somebody waits for it.
    #[serde(default)]
    pub interactive: bool,
    /// Where results go; empty for the job's own folder.
    #[serde(default)]
    pub output: String,
    /// Words of the caller.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// Digest of the model that it was made for, hexadecimal.
    pub model: String,
    /// Number of items.
    pub total: u64,
    /// Number of segments that they are spooled in.
    pub segments: u32,
    /// Some items name blobs.
    #[serde(default)]
    pub blobs: bool,
    /// Ids of the files that it was made of.
    #[serde(default)]
    pub files: Vec<String>,
    /// How it stands.
    pub status: Status,
    /// Why it failed as a whole.
    #[serde(default)]
    pub error: String,
    /// Segments that are sealed: the first ones.
    #[serde(default)]
    pub sealed: u32,
    /// Items of sealed segments that succeeded.
    #[serde(default)]
    pub succeeded: u64,
    /// Items of sealed segments that failed.
    #[serde(default)]
    pub failed: u64,
    /// Items that were not wanted any more.
    #[serde(default)]
    pub cancelled: u64,
    /// Bytes of the results in sealed segments.
    #[serde(default)]
    pub bytes: u64,
    /// Milliseconds since the Unix epoch.
    pub created: u64,
    /// The same; 0 before.
    #[serde(default)]
    pub started: u64,
    /// The same; 0 before.
    #[serde(default)]
    pub ended: u64,
    /// It is being deleted: nobody sees it any more.
    #[serde(default)]
    pub deleting: bool,
}

impl JobRecord {
    /// Items of sealed segments.
    pub fn tally(&self) -> Tally {
        Tally { succeeded: self.succeeded, failed: self.failed }
    }

    /// As callers see it, with the items that have ended by now.
    pub fn shown(&self, tally: Tally) -> v1::Job {
        let status = match self.status {
            Status::Queued => v1::JobStatus::Queued,
            Status::Running => v1::JobStatus::Running,
            Status::Cancelling => v1::JobStatus::Cancelling,
            Status::Succeeded => v1::JobStatus::Succeeded,
            Status::Failed => v1::JobStatus::Failed,
            Status::Cancelled => v1::JobStatus::Cancelled,
        };
        let priority = if self.interactive { v1::Priority::Interactive } else { v1::Priority::Batch };
        v1::Job {
            id: self.id.clone(),
            status: status.into(),
            total: self.total,
            succeeded: tally.succeeded,
            failed: tally.failed,
            cancelled: self.cancelled,
            created_unix_ms: self.created,
            started_unix_ms: self.started,
            ended_unix_ms: self.ended,
            key: self.key.clone(),
            priority: priority.into(),
            output: self.output.clone(),
            metadata: self.metadata.clone().into_iter().collect(),
            error: self.error.clone(),
        }
    }

    /// As it is stored.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it cannot be written as JSON.
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        serde_json::to_vec(self)
            .map_err(|error| Error::Damaged { what: format!("job {}", self.id), reason: error.to_string() })
    }
}

/// What a unit became, as it is committed: its place names its item and index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitResult {
    /// It is there, or cannot be made.
    pub succeeded: bool,
    /// SHA-256 of a picture's ids or of an answer's text, hexadecimal; empty if it failed.
    #[serde(default)]
    pub sha256: String,
    /// The answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The answer is long, and in an object of its own.
    #[serde(default)]
    pub aside: bool,
    /// Why it cannot be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Bytes of the picture's file or of the answer.
    #[serde(default)]
    pub bytes: u64,
    /// How an answer ended, and what it took.
    #[serde(default, flatten, skip_serializing_if = "Option::is_none")]
    pub told: Option<Told>,
}

/// What is told of an answer beside its text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// `stop` or `length`.
    pub finish_reason: String,
    /// Tokens of the prompt.
    pub input_tokens: u64,
    /// Tokens drawn.
    pub output_tokens: u64,
}

impl UnitResult {
    /// How it ended.
    pub fn end(&self) -> End {
        if self.succeeded { End::Succeeded } else { End::Failed }
    }
}

/// Reads a record.
///
/// # Errors
/// [`Error::Damaged`] if its value is not one.
pub(super) fn decode<T: for<'a> Deserialize<'a>>(entry: &Entry) -> Result<T, Error> {
    serde_json::from_slice(&entry.value)
        .map_err(|error| Error::Damaged { what: format!("the record at {}", entry.key), reason: error.to_string() })
}

/// Text that many hold, as text.
mod shared_text {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(text: &Arc<str>, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Arc<str>, D::Error> {
        String::deserialize(input).map(Arc::from)
    }
}

/// Keys below `jobs/`.
#[derive(Debug, Clone)]
pub(super) struct JobKeys {
    pub(super) root: String,
    /// The fencing epoch.
    pub(super) epoch: String,
}

impl JobKeys {
    pub(super) fn new(keys: &Keys) -> Self {
        JobKeys { root: keys.jobs(), epoch: keys.epoch() }
    }

    /// Prefix of all records.
    pub(super) fn records(&self) -> String {
        format!("{}records/", self.root)
    }

    pub(super) fn record(&self, tenant: &str, id: &str) -> String {
        format!("{}records/{tenant}/{id}", self.root)
    }

    /// Where a caller's key leads to a job's id. Keys are free text, so their digest stands here.
    pub(super) fn key(&self, tenant: &str, key: &str) -> String {
        use sha2::Digest;
        format!("{}keys/{tenant}/{}", self.root, janus_wire::hello::hex(&sha2::Sha256::digest(key)))
    }

    /// Prefix of all files.
    pub(super) fn files(&self) -> String {
        format!("{}files/", self.root)
    }

    /// Prefix of a tenant's files.
    pub(super) fn files_of(&self, tenant: &str) -> String {
        format!("{}{tenant}/", self.files())
    }

    pub(super) fn file(&self, tenant: &str, id: &str) -> String {
        format!("{}{id}", self.files_of(tenant))
    }

    /// Whose file has this key.
    pub(super) fn owner_of_file<'a>(&self, key: &'a str) -> Option<&'a str> {
        key.strip_prefix(&self.files())?.split_once('/').map(|(tenant, _)| tenant)
    }

    /// Prefix of a job's results that are not sealed.
    pub(super) fn results(&self, id: &str) -> String {
        format!("{}results/{id}/", self.root)
    }

    /// Prefix of those of one segment.
    pub(super) fn segment(&self, id: &str, segment: u32) -> String {
        format!("{}{segment:06}/", self.results(id))
    }

    pub(super) fn result(&self, id: &str, segment: u32, unit: u32) -> String {
        format!("{}{unit:04}", self.segment(id, segment))
    }
}

/// A name for a new job, later than all before: milliseconds since the Unix epoch, and chance.
pub(super) fn new_id(now_unix_ms: u64) -> String {
    format!("job-{now_unix_ms:011x}-{}", random_hex(5))
}

/// When the job of this name was made.
pub(super) fn made_at(id: &str) -> Option<u64> {
    u64::from_str_radix(id.strip_prefix("job-")?.split('-').next()?, 16).ok()
}

/// So many random bytes, hexadecimal.
pub(crate) fn random_hex(bytes: usize) -> String {
    let mut random = vec![0; bytes];
    if getrandom::fill(&mut random).is_err() {
        // Without the system's random numbers there is the clock; a name that is taken is refused by the store.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos();
        random.iter_mut().zip(now.to_le_bytes()).for_each(|(byte, clock)| *byte = clock);
    }
    janus_wire::hello::hex(&random)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_jobs_have_later_names() {
        let names: Vec<String> = [1, 255, 256, 1_700_000_000_000, 1_800_000_000_000].map(new_id).to_vec();
        assert!(names.windows(2).all(|pair| pair[0] < pair[1]), "{names:?}");
        assert_eq!(made_at(&names[3]), Some(1_700_000_000_000));
        assert_eq!(made_at("x"), None);
    }
}
