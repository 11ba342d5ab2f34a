//! Changes: all checks hold and all writes happen, or nothing does.

use bytes::Bytes;

use super::LeaseId;

/// Most checks, and most writes, of one transaction (etcd's `--max-txn-ops` default).
pub const MAX_OPERATIONS: usize = 128;
/// Most bytes of keys and values in one transaction, a little below etcd's `--max-request-bytes` default.
pub const MAX_BYTES: usize = 1_400_000;

/// A condition on one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// The key does not exist.
    Absent(String),
    /// The key exists.
    Exists(String),
    /// The key was last changed in this revision ([`super::Entry::version`]); 0 means absent.
    Version(String, u64),
    /// The key exists and has this value.
    Value(String, Bytes),
}

/// A change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Sets a key. Without a lease it stays for good, even if it had one before.
    Put {
        /// The key.
        key: String,
        /// The value.
        value: Bytes,
        /// With whom it goes.
        lease: Option<LeaseId>,
    },
    /// Deletes a key; no error if it is absent.
    Delete(String),
    /// Deletes every key that begins so.
    DeletePrefix(String),
}

/// A transaction under construction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    /// All must hold.
    pub checks: Vec<Check>,
    /// Then all of these happen, in this order, in one revision.
    pub writes: Vec<Write>,
}

impl Txn {
    /// No checks, no writes.
    pub fn new() -> Txn {
        Txn::default()
    }

    /// Only if the key does not exist.
    #[must_use]
    pub fn if_absent(mut self, key: impl Into<String>) -> Txn {
        self.checks.push(Check::Absent(key.into()));
        self
    }

    /// Only if the key was last changed in this revision; 0 means absent.
    #[must_use]
    pub fn if_version(mut self, key: impl Into<String>, version: u64) -> Txn {
        self.checks.push(Check::Version(key.into(), version));
        self
    }

    /// Only if the key exists.
    #[must_use]
    pub fn if_exists(mut self, key: impl Into<String>) -> Txn {
        self.checks.push(Check::Exists(key.into()));
        self
    }

    /// Only if the key exists and has this value.
    #[must_use]
    pub fn if_value(mut self, key: impl Into<String>, value: impl Into<Bytes>) -> Txn {
        self.checks.push(Check::Value(key.into(), value.into()));
        self
    }

    /// Sets a key.
    #[must_use]
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Bytes>) -> Txn {
        self.writes.push(Write::Put { key: key.into(), value: value.into(), lease: None });
        self
    }

    /// Sets a key that is deleted when the lease ends.
    #[must_use]
    pub fn put_leased(mut self, key: impl Into<String>, value: impl Into<Bytes>, lease: LeaseId) -> Txn {
        self.writes.push(Write::Put { key: key.into(), value: value.into(), lease: Some(lease) });
        self
    }

    /// Deletes a key.
    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Txn {
        self.writes.push(Write::Delete(key.into()));
        self
    }

    /// Deletes every key that begins so.
    #[must_use]
    pub fn delete_prefix(mut self, prefix: impl Into<String>) -> Txn {
        self.writes.push(Write::DeletePrefix(prefix.into()));
        self
    }

    /// What is wrong with it, if anything; the same on every store.
    pub(crate) fn validate(&self) -> Result<(), String> {
        if self.checks.len() > MAX_OPERATIONS || self.writes.len() > MAX_OPERATIONS {
            return Err(format!(
                "{} checks and {} writes in one transaction; at most {MAX_OPERATIONS} of each go together",
                self.checks.len(),
                self.writes.len()
            ));
        }
        let mut bytes = 0;
        let mut put = std::collections::BTreeSet::new();
        for check in &self.checks {
            let (Check::Absent(key) | Check::Exists(key) | Check::Version(key, _) | Check::Value(key, _)) = check;
            bytes += key.len() + if let Check::Value(_, value) = check { value.len() } else { 0 };
            if key.is_empty() {
                return Err("a check of the empty key".to_owned());
            }
        }
        for write in &self.writes {
            let (Write::Put { key, .. } | Write::Delete(key) | Write::DeletePrefix(key)) = write;
            bytes += key.len();
            if key.is_empty() {
                return Err("a write to the empty key or prefix".to_owned());
            }
            if let Write::Put { key, value, .. } = write {
                bytes += value.len();
                if !put.insert(key.as_str()) {
                    return Err(format!("{key} is put twice in one transaction"));
                }
            }
        }
        for write in &self.writes {
            let clash = match write {
                Write::Put { .. } => None,
                Write::Delete(key) => put.get(key.as_str()),
                Write::DeletePrefix(prefix) => {
                    put.range(prefix.as_str()..).next().filter(|key| key.starts_with(prefix.as_str()))
                }
            };
            if let Some(key) = clash {
                return Err(format!("{key} is put and deleted in one transaction"));
            }
        }
        if bytes > MAX_BYTES {
            return Err(format!("{bytes} bytes in one transaction; at most {MAX_BYTES} go together"));
        }
        Ok(())
    }
}
