//! Authorities and certificates for tests: as they should be, and as they should not.
#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use janus_wire::Security;
use janus_wire::tls::Files;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};

/// As long as any test.
pub const LONG_LIFE: Duration = Duration::from_secs(86_400);

/// Signs certificates; everything is in one folder.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    dir: PathBuf,
}

impl Authority {
    /// A new one with its files in `dir`.
    pub fn new(dir: &Path) -> Authority {
        std::fs::create_dir_all(dir).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, dir.display().to_string());
        let key = KeyPair::generate().unwrap();
        std::fs::write(dir.join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Authority { issuer: Issuer::new(params, key), dir: dir.to_owned() }
    }

    pub fn ca(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// Of 127.0.0.1 and these URIs, for so long; the files carry `name`.
    pub fn issue(&self, name: &str, uris: &[&str], life: Duration) -> Files {
        self.issue_until(name, uris, SystemTime::now() + life)
    }

    /// One that was good until an hour ago.
    pub fn expired(&self, name: &str, uris: &[&str]) -> Files {
        self.issue_until(name, uris, SystemTime::now() - Duration::from_secs(3600))
    }

    fn issue_until(&self, name: &str, uris: &[&str], end: SystemTime) -> Files {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        params.subject_alt_names.extend(uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())));
        (params.not_before, params.not_after) = ((end - 2 * LONG_LIFE).into(), end.into());
        let key = KeyPair::generate().unwrap();
        let (cert, secret) = (self.dir.join(format!("{name}.pem")), self.dir.join(format!("{name}.key")));
        // Key first: whoever reads in between has two that do not fit, and waits.
        std::fs::write(&secret, key.serialize_pem()).unwrap();
        std::fs::write(&cert, params.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        Files { authority: self.ca(), own: Some((cert, secret)) }
    }

    /// Of a node of cluster `janus` in this role.
    pub fn role(&self, role: &str) -> Files {
        self.issue(role, &[&format!("janus://janus/{role}/{role}-0")], LONG_LIFE)
    }

    /// Without a certificate of one's own.
    pub fn anonymous(&self) -> Security {
        security(Files { authority: self.ca(), own: None })
    }
}

pub fn security(files: Files) -> Security {
    Security::files(files).unwrap()
}

/// As flags of the program.
pub fn flags(files: &Files) -> Vec<String> {
    let mut flags = vec!["--tls-ca".to_owned(), files.authority.to_str().unwrap().to_owned()];
    if let Some((cert, key)) = &files.own {
        for (flag, file) in [("--tls-cert", cert), ("--tls-key", key)] {
            flags.extend([flag.to_owned(), file.to_str().unwrap().to_owned()]);
        }
    }
    flags
}
