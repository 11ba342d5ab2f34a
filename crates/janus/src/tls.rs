//! Transport security, as flags and the environment say it.

use std::path::PathBuf;

use janus_wire::Security;
use janus_wire::tls::Files;

use crate::args::Tls;
use crate::failure::{Failure, Outcome};

impl Tls {
    /// What connections are made with.
    pub(crate) fn security(&self) -> Outcome<Security> {
        let said = |flag: &Option<PathBuf>, variable: &str| {
            let set = || std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
            flag.clone().or_else(set)
        };
        let files = (
            said(&self.tls_ca, "JANUS_TLS_CA"),
            said(&self.tls_cert, "JANUS_TLS_CERT"),
            said(&self.tls_key, "JANUS_TLS_KEY"),
        );
        let (authority, own) = match files {
            (None, None, None) => return Ok(Security::Plain),
            (Some(authority), None, None) => (authority, None),
            (Some(authority), Some(certificate), Some(key)) => (authority, Some((certificate, key))),
            (None, ..) => {
                return Err(Failure::mistake(
                    "--tls-cert without --tls-ca: give the authority's certificate too, it says whom to believe",
                ));
            }
            (_, Some(_), None) => return Err(Failure::mistake("--tls-cert without --tls-key: give both")),
            (_, None, Some(_)) => return Err(Failure::mistake("--tls-key without --tls-cert: give both")),
        };
        Security::files(Files { authority, own }).map_err(Failure::mistake)
    }

    /// Whether a flag asks for TLS.
    pub(crate) fn asked(&self) -> bool {
        self.tls_ca.is_some() || self.tls_cert.is_some() || self.tls_key.is_some()
    }
}
