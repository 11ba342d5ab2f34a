//! Which store to use, and how to reach it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::etcd::{Access, EtcdStore};
use super::local;
use super::{MemoryStore, Store};
use crate::Error;

/// How long a call to etcd may take, all attempts together, unless said otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// Files for TLS to etcd, read anew for every connection, so that renewed certificates need no restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// PEM of the authority that signed etcd's certificate.
    pub ca: PathBuf,
    /// PEM of our certificate and of its key, if etcd asks for one.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Name in etcd's certificate, if it differs from the host in the endpoint.
    pub server_name: Option<String>,
}

/// Which store. Cheap to clone; every thread that needs the store connects for itself.
#[derive(Clone)]
pub enum StoreConfig {
    /// In this process, forgotten when it ends.
    Memory(MemoryStore),
    /// In this process, with every change on disk before it is acknowledged.
    Journal {
        /// Directory of the journal, made if it is absent. One process at a time.
        dir: PathBuf,
    },
    /// etcd 3.4 or newer.
    Etcd {
        /// `host:port` or `http(s)://host:port`, at least one. The first that works is used, the next one when it fails.
        endpoints: Vec<String>,
        /// TLS; plain TCP without.
        tls: Option<Tls>,
        /// User and password.
        auth: Option<(String, String)>,
        /// How long a call may take, all attempts together ([`DEFAULT_TIMEOUT`]).
        timeout: Duration,
    },
}

impl StoreConfig {
    /// etcd at these endpoints, without TLS and without a user.
    pub fn etcd<E: Into<String>>(endpoints: impl IntoIterator<Item = E>) -> StoreConfig {
        let endpoints = endpoints.into_iter().map(Into::into).collect();
        StoreConfig::Etcd { endpoints, tls: None, auth: None, timeout: DEFAULT_TIMEOUT }
    }

    /// Opens or reaches the store.
    ///
    /// # Errors
    /// [`Error::BadConfig`] and [`Error::AuthRefused`] if trying again cannot help, [`Error::Unreachable`] if it may,
    /// [`Error::Journal`] if the journal cannot be opened.
    pub async fn connect(&self) -> Result<Arc<dyn Store>, Error> {
        match self {
            StoreConfig::Memory(memory) => Ok(Arc::new(memory.handle())),
            StoreConfig::Journal { dir } => Ok(Arc::new(local::open_journal(dir).await?)),
            StoreConfig::Etcd { endpoints, tls, auth, timeout } => {
                let access =
                    Access { endpoints: endpoints.clone(), tls: tls.clone(), auth: auth.clone(), timeout: *timeout };
                Ok(Arc::new(EtcdStore::connect(access).await?))
            }
        }
    }
}

impl fmt::Debug for StoreConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreConfig::Memory(_) => f.write_str("Memory"),
            StoreConfig::Journal { dir } => f.debug_struct("Journal").field("dir", dir).finish(),
            // Not the password.
            StoreConfig::Etcd { endpoints, tls, auth, timeout } => f
                .debug_struct("Etcd")
                .field("endpoints", endpoints)
                .field("tls", tls)
                .field("user", &auth.as_ref().map(|(user, _)| user))
                .field("timeout", timeout)
                .finish(),
        }
    }
}
