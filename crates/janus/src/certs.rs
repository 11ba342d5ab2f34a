//! `janus certs`: an authority of one's own and certificates signed by it, for development and for clusters whose platform
//! has none. `janus up --tls` and a single process with TLS make theirs with the same.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use janus_wire::Security;
use janus_wire::tls::{Files, Peer, Pem, Role, Roles};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use serde::Serialize;

use crate::args::Certs as Args;
use crate::failure::{Failure, Outcome};
use crate::output;

const DAY: Duration = Duration::from_secs(86_400);
/// Clocks differ; a certificate is valid a little before it is made.
const EARLIER: Duration = Duration::from_secs(3600);
/// An authority lives as long as ten of its certificates.
const AUTHORITY_DAYS: u32 = 3650;

#[derive(Serialize)]
struct Issued {
    ca: PathBuf,
    certificates: Vec<Paper>,
}

#[derive(Serialize)]
struct Paper {
    names: Vec<String>,
    cert: PathBuf,
    key: PathBuf,
}

pub(crate) fn run(args: Args) -> Outcome {
    let roles = Roles::of(&args.role);
    let bearers: Vec<(String, Roles)> = match args.role[..] {
        [] => Role::ALL.into_iter().map(|role| (role.name().to_owned(), role.into())).collect(),
        _ => {
            let joined = || args.role.iter().map(|role| role.name()).collect::<Vec<_>>().join("-");
            vec![(args.name.clone().unwrap_or_else(joined), roles)]
        }
    };
    // Everything that may be there already is looked for before anything is written.
    let files = |name: &str| (args.out.join(format!("{name}.pem")), args.out.join(format!("{name}.key")));
    for (name, _) in &bearers {
        if name == "ca" {
            return Err(Failure::mistake("--name ca: that is the authority's"));
        }
        for file in [files(name).0, files(name).1] {
            if file.exists() {
                return Err(Failure::mistake(format!("{} is there already; nothing is written over", file.display())));
            }
        }
    }
    std::fs::create_dir_all(&args.out).map_err(|e| Failure::mistake(format!("--out {}: {e}", args.out.display())))?;
    let authority = Authority::of(&args.out, &args.cluster)?;
    let mut certificates = Vec::new();
    for (name, roles) in bearers {
        let (cert, key) = files(&name);
        let peer = Peer { cluster: args.cluster.clone(), roles, name };
        let (certificate, secret) = authority.issue(Some(&peer), &args.host, args.days)?;
        write(&key, &secret, 0o600)?;
        write(&cert, &certificate, 0o644)?;
        // What cannot be used is better known now.
        let own = Some((cert.clone(), key.clone()));
        let security = Security::files(Files { authority: args.out.join("ca.pem"), own });
        security.and_then(|security| security.suits(&args.cluster, roles)).map_err(Failure::mistake)?;
        certificates.push(Paper { names: peer.uris(), cert, key });
    }
    let issued = Issued { ca: args.out.join("ca.pem"), certificates };
    if args.json {
        return output::print_json(&issued);
    }
    output::print_line(&format!("authority {}", issued.ca.display()));
    for paper in &issued.certificates {
        output::print_line(&format!("{} {} {}", paper.names.join(","), paper.cert.display(), paper.key.display()));
    }
    Ok(())
}

/// Signs certificates.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate, PEM.
    pub(crate) pem: String,
}

impl Authority {
    /// A new one, whose key is nowhere else.
    pub(crate) fn new(cluster: &str) -> Outcome<Authority> {
        let key = KeyPair::generate().map_err(crypto)?;
        let params = authority_params(cluster);
        let pem = params.self_signed(&key).map_err(crypto)?.pem();
        Ok(Authority { issuer: Issuer::new(params, key), pem })
    }

    /// The one in `dir`, made if there is none.
    fn of(dir: &Path, cluster: &str) -> Outcome<Authority> {
        let (certificate, key) = (dir.join("ca.pem"), dir.join("ca.key"));
        if !certificate.exists() && !key.exists() {
            let made = Authority::new(cluster)?;
            write(&key, &made.issuer.key().serialize_pem(), 0o600)?;
            write(&certificate, &made.pem, 0o644)?;
            return Ok(made);
        }
        let read =
            |path: &Path| std::fs::read_to_string(path).map_err(|e| Failure::mistake(format!("{}: {e}", path.display())));
        let pem = read(&certificate)?;
        let pair = KeyPair::from_pem(&read(&key)?)
            .map_err(|e| Failure::mistake(format!("{}: is no private key: {e}", key.display())))?;
        Ok(Authority { issuer: Issuer::new(authority_params(cluster), pair), pem })
    }

    /// A certificate and its key, PEM: of `peer` if it is a node or a client of the cluster, at these hosts.
    pub(crate) fn issue(&self, peer: Option<&Peer>, hosts: &[String], days: u32) -> Outcome<(String, String)> {
        let mut params = CertificateParams::new(hosts).map_err(|e| Failure::mistake(format!("--host: {e}")))?;
        for uri in peer.map(Peer::uris).unwrap_or_default() {
            params.subject_alt_names.push(SanType::URI(uri.try_into().map_err(crypto)?));
        }
        params.distinguished_name.push(DnType::CommonName, peer.map_or("janus", |peer| &peer.name));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let now = SystemTime::now();
        (params.not_before, params.not_after) = ((now - EARLIER).into(), (now + DAY * days).into());
        let key = KeyPair::generate().map_err(crypto)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(crypto)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }
}

/// Security among the parts of one process, which nobody else has the keys of.
pub(crate) fn within(cluster: &str) -> Outcome<Security> {
    let authority = Authority::new(cluster)?;
    let peer = Peer { cluster: cluster.to_owned(), roles: Roles::NODES, name: "inside".to_owned() };
    let (certificate, key) = authority.issue(Some(&peer), &[], AUTHORITY_DAYS)?;
    let pem = Pem { authority: authority.pem.into_bytes(), own: Some((certificate.into_bytes(), key.into_bytes())) };
    Security::fixed(&pem).map_err(|e| Failure::Broken(e.to_string()))
}

/// The papers of `janus up --tls`: an authority that is forgotten with this process, and what it issued, in a folder.
pub(crate) struct Papers {
    authority: Authority,
    cluster: String,
    hosts: Vec<String>,
    dir: PathBuf,
}

impl Papers {
    /// In `dir`, in place of what was there: the authority that signed that is gone.
    pub(crate) fn new(dir: PathBuf, cluster: &str, hosts: Vec<String>) -> Outcome<Papers> {
        let broken = |e: std::io::Error| Failure::mistake(format!("{}: {e}", dir.display()));
        if dir.exists() {
            std::fs::remove_dir_all(&dir).map_err(broken)?;
        }
        std::fs::create_dir_all(&dir).map_err(broken)?;
        let authority = Authority::new(cluster)?;
        write(&dir.join("ca.pem"), &authority.pem, 0o644)?;
        Ok(Papers { authority, cluster: cluster.to_owned(), hosts, dir })
    }

    /// The authority's certificate.
    pub(crate) fn ca(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// A certificate and key for who has these roles; without any, for a server that is none of ours.
    pub(crate) fn issue(&self, name: &str, roles: Roles) -> Outcome<Files> {
        let peer = Peer { cluster: self.cluster.clone(), roles, name: name.to_owned() };
        let peer = (!roles.is_empty()).then_some(&peer);
        let (certificate, secret) = self.authority.issue(peer, &self.hosts, AUTHORITY_DAYS)?;
        let (cert, key) = (self.dir.join(format!("{name}.pem")), self.dir.join(format!("{name}.key")));
        write(&key, &secret, 0o600)?;
        write(&cert, &certificate, 0o644)?;
        Ok(Files { authority: self.ca(), own: Some((cert, key)) })
    }
}

/// The same for one cluster at any time, so that what it signs later fits what it signed first.
fn authority_params(cluster: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("Janus cluster {cluster}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = SystemTime::now();
    (params.not_before, params.not_after) = ((now - EARLIER).into(), (now + DAY * AUTHORITY_DAYS).into());
    params
}

fn crypto(error: rcgen::Error) -> Failure {
    Failure::Broken(format!("no certificate can be made: {error}"))
}

/// Writes a new file that others may read as far as `mode` says.
fn write(path: &Path, text: &str, mode: u32) -> Outcome {
    let failed = |e: std::io::Error| Failure::mistake(format!("{}: {e}", path.display()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_process_believe_each_other() {
        let security = within("local").unwrap();
        assert!(security.suits("local", Roles::NODES).is_ok());
        assert!(security.suits("other", Roles::NODES).unwrap_err().to_string().contains("of another cluster"));
        assert!(security.suits("local", Role::Gateway).unwrap_err().to_string().contains("also gateway"));
    }
}
