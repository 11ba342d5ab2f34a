//! The store in etcd.
//!
//! `etcd-client` speaks the protocol and nothing more; here is what a long life needs: [`connection`] goes on with the
//! next endpoint when one fails and puts a limit on every call, [`status`] decides what an error means, [`watch`] lists
//! again whenever a watch breaks.

mod connection;
mod status;
mod watch;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{Compare, CompareOp, DeleteOptions, GetOptions, KeyValue, PutOptions, TxnOp};

use super::local::whole_seconds;
use super::{Check, Committed, Entry, LeaseId, Listing, Store, Txn, Watch, Write};
use crate::Error;
pub(super) use connection::Access;
use connection::{Connection, Kind};
use status::Verdict;

/// Entries of one page of a listing.
const PAGE: i64 = 500;
/// How often a listing begins anew because its revision was compacted under it.
const LISTING_ATTEMPTS: usize = 5;

/// A handle to etcd.
pub(super) struct EtcdStore {
    connection: Arc<Connection>,
    /// How long each of our leases lives when renewed; etcd-client does not pass that on.
    ttls: Mutex<BTreeMap<LeaseId, Duration>>,
}

impl EtcdStore {
    /// Finds an endpoint that works.
    pub(super) async fn connect(access: Access) -> Result<EtcdStore, Error> {
        let connection = Connection::new(access)?;
        connection.first().await?;
        Ok(EtcdStore { connection: Arc::new(connection), ttls: Mutex::default() })
    }

    fn remember(&self, lease: LeaseId, ttl: Duration) {
        self.ttls.lock().unwrap_or_else(PoisonError::into_inner).insert(lease, ttl);
    }

    fn remembered(&self, lease: LeaseId) -> Option<Duration> {
        self.ttls.lock().unwrap_or_else(PoisonError::into_inner).get(&lease).copied()
    }

    fn forget(&self, lease: LeaseId) {
        self.ttls.lock().unwrap_or_else(PoisonError::into_inner).remove(&lease);
    }

    /// The lease of a request belongs into the error, which the answer does not name.
    fn about(error: Error, lease: Option<LeaseId>) -> Error {
        match (error, lease) {
            (Error::LeaseGone { store, .. }, Some(lease)) => Error::LeaseGone { store, lease },
            (error, _) => error,
        }
    }
}

#[async_trait]
impl Store for EtcdStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        let response = self.connection.call(Kind::Read, |session| async move { session.kv().get(key, None).await }).await?;
        Ok(response.kvs().first().and_then(entry))
    }

    async fn list(&self, prefix: &str) -> Result<Listing, Error> {
        list(&self.connection, prefix).await
    }

    async fn commit(&self, txn: Txn) -> Result<Committed, Error> {
        txn.validate().map_err(|reason| Error::Refused { store: self.describe(), reason })?;
        let lease = txn.writes.iter().find_map(|write| match write {
            Write::Put { lease, .. } => *lease,
            _ => None,
        });
        let request = request(&txn);
        let response = self
            .connection
            .call(Kind::Change, |session| {
                let request = request.clone();
                async move { session.kv().txn(request).await }
            })
            .await
            .map_err(|error| EtcdStore::about(error, lease))?;
        if !response.succeeded() {
            return Ok(Committed::Conflict);
        }
        let revision = response.header().map_or(0, |header| header.revision().cast_unsigned());
        Ok(Committed::Done { revision })
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, Error> {
        let seconds = whole_seconds(ttl).as_secs().cast_signed();
        // A lease that is granted twice because its answer was lost costs nothing: it ends by itself.
        let response = self
            .connection
            .call(Kind::Read, |session| async move { session.client.lease_client().grant(seconds, None).await })
            .await?;
        let lease = LeaseId(response.id());
        self.remember(lease, Duration::from_secs(response.ttl().max(1).cast_unsigned()));
        Ok(lease)
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, Error> {
        let known = self.remembered(lease);
        let ttl = self
            .connection
            .call(Kind::Read, |session| async move {
                let mut leases = session.client.lease_client();
                leases.keep_alive(lease.0).await?;
                match known {
                    Some(ttl) => Ok(ttl),
                    None => {
                        let granted = leases.time_to_live(lease.0, None).await?.granted_ttl();
                        Ok(Duration::from_secs(granted.max(0).cast_unsigned()))
                    }
                }
            })
            .await
            .map_err(|error| EtcdStore::about(error, Some(lease)));
        match &ttl {
            Ok(ttl) => self.remember(lease, *ttl),
            Err(Error::LeaseGone { .. }) => self.forget(lease),
            Err(_) => {}
        }
        ttl
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), Error> {
        self.forget(lease);
        let ended = self
            .connection
            .call(Kind::Read, |session| async move { session.client.lease_client().revoke(lease.0).await })
            .await;
        match ended {
            Ok(_) | Err(Error::LeaseGone { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn watch(&self, prefix: &str) -> Result<Watch, Error> {
        Ok(watch::start(self.connection.clone(), prefix))
    }

    async fn compact(&self, revision: u64) -> Result<(), Error> {
        if revision == 0 {
            return Ok(());
        }
        let revision = revision.cast_signed();
        self.connection
            .call(Kind::Read, |session| async move {
                match session.kv().compact(revision, None).await {
                    Err(error) if status::judge(&error) == Verdict::Compacted => Ok(()),
                    done => done.map(|_| ()),
                }
            })
            .await
    }

    fn describe(&self) -> String {
        self.connection.describe()
    }
}

/// Reads everything below a prefix at one revision, page by page.
async fn list(connection: &Connection, prefix: &str) -> Result<Listing, Error> {
    for _ in 0..LISTING_ATTEMPTS {
        let mut entries = Vec::new();
        let mut revision = 0;
        let mut from = if prefix.is_empty() { vec![0] } else { prefix.as_bytes().to_vec() };
        let done = loop {
            let (start, end) = (from.clone(), prefix_end(prefix));
            let options = GetOptions::new().with_range(end).with_limit(PAGE).with_revision(revision);
            let page = connection
                .call(Kind::Read, |session| {
                    let (start, options) = (start.clone(), options.clone());
                    async move {
                        match session.kv().get(start, Some(options)).await {
                            Err(error) if status::judge(&error) == Verdict::Compacted => Ok(None),
                            page => page.map(Some),
                        }
                    }
                })
                .await?;
            let Some(page) = page else { break false };
            if revision == 0 {
                revision = page.header().map_or(0, |header| header.revision());
            }
            entries.extend(page.kvs().iter().filter_map(entry));
            match page.kvs().last() {
                Some(last) if page.more() => from = [last.key(), &[0]].concat(),
                _ => break true,
            }
        };
        if done {
            return Ok(Listing { entries, revision: revision.cast_unsigned() });
        }
    }
    Err(Error::Unreachable {
        store: connection.describe(),
        reason: format!("compacted {LISTING_ATTEMPTS} times while {prefix:?} was being listed"),
    })
}

/// Where the keys that begin with `prefix` end; for no prefix etcd's word for "all".
fn prefix_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    match end.last_mut() {
        // The last byte of UTF-8 is never 255.
        Some(last) => *last += 1,
        None => end.push(0),
    }
    end
}

/// `None` for keys that are not text: they are not ours.
fn entry(kv: &KeyValue) -> Option<Entry> {
    let key = kv.key_str().ok()?.to_owned();
    Some(Entry {
        key,
        value: Bytes::copy_from_slice(kv.value()),
        version: kv.mod_revision().cast_unsigned(),
        lease: (kv.lease() != 0).then_some(LeaseId(kv.lease())),
    })
}

fn request(txn: &Txn) -> etcd_client::Txn {
    let checks: Vec<Compare> = txn
        .checks
        .iter()
        .map(|check| match check {
            Check::Absent(key) => Compare::create_revision(key.as_str(), CompareOp::Equal, 0),
            Check::Exists(key) => Compare::create_revision(key.as_str(), CompareOp::Greater, 0),
            Check::Version(key, version) => Compare::mod_revision(key.as_str(), CompareOp::Equal, version.cast_signed()),
            Check::Value(key, value) => Compare::value(key.as_str(), CompareOp::Equal, value.to_vec()),
        })
        .collect();
    let writes: Vec<TxnOp> = txn
        .writes
        .iter()
        .map(|write| match write {
            Write::Put { key, value, lease } => {
                let options = lease.map(|lease| PutOptions::new().with_lease(lease.0));
                TxnOp::put(key.as_str(), value.to_vec(), options)
            }
            Write::Delete(key) => TxnOp::delete(key.as_str(), None),
            Write::DeletePrefix(prefix) => {
                TxnOp::delete(prefix.as_str(), Some(DeleteOptions::new().with_range(prefix_end(prefix))))
            }
        })
        .collect();
    etcd_client::Txn::new().when(checks).and_then(writes)
}
