//! The cluster's store, as flags say it.

use janus_cluster::{StoreConfig, Tls};

use crate::args::Store;
use crate::failure::{Failure, Outcome};

impl Store {
    /// What to connect to.
    pub(crate) fn config(&self) -> Outcome<StoreConfig> {
        let password = match &self.etcd_password_file {
            Some(file) => Some(
                std::fs::read_to_string(file)
                    .map_err(|e| Failure::mistake(format!("--etcd-password-file {}: {e}", file.display())))?,
            ),
            None => None,
        };
        let auth = self.etcd_user.clone().zip(password.map(|text| text.trim_end().to_owned()));
        let tls = self.etcd_ca.clone().map(|ca| Tls {
            ca,
            identity: self.etcd_cert.clone().zip(self.etcd_key.clone()),
            server_name: None,
        });
        let timeout = janus_cluster::store::DEFAULT_TIMEOUT;
        Ok(StoreConfig::Etcd { endpoints: self.etcd.clone(), tls, auth, timeout })
    }
}
