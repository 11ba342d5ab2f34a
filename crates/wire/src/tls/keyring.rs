//! Certificates and keys, from files that change while we run. A keyring reads its files again every second: by name, so
//! that it does not matter whether they were written over or a link was put in their place. What cannot be used is said
//! and left aside; what was there before stays.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::Peer;
use crate::Error;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Largest file of certificates.
const MAX_FILE: u64 = 1 << 20;

/// Where certificates and keys are, as PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// Certificates of the authorities that peers' certificates are signed by.
    pub authority: PathBuf,
    /// Our certificate, with what stands between it and the authority, and its key.
    pub own: Option<(PathBuf, PathBuf)>,
}

/// The same, read.
#[derive(Clone, PartialEq, Eq)]
pub struct Pem {
    /// Certificates of authorities.
    pub authority: Vec<u8>,
    /// Our certificate and its key.
    pub own: Option<(Vec<u8>, Vec<u8>)>,
}

/// Ready to be used.
pub(crate) struct Loaded {
    pub(crate) roots: Arc<RootCertStore>,
    pub(crate) own: Option<Own>,
}

/// Our certificate.
pub(crate) struct Own {
    pub(crate) key: Arc<CertifiedKey>,
    /// Who it says we are; why it does not, if it does not.
    pub(crate) peer: Result<Peer, String>,
}

/// What connections are made with. Dropping the last reference ends its thread.
pub struct Keyring {
    current: RwLock<Arc<Loaded>>,
    /// What messages call our own certificate.
    title: String,
    _end: Option<Sender<()>>,
}

/// The cryptography of all connections.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

impl Keyring {
    /// Reads the files, and reads them again for as long as this is there.
    ///
    /// # Errors
    /// [`Error::Certificate`] naming the file at fault.
    pub(crate) fn open(files: Files) -> Result<Arc<Keyring>, Error> {
        let pem = files.read()?;
        let loaded = Loaded::from(&pem, &files)?;
        let (end, ended) = channel();
        let title = files.own.as_ref().map_or_else(String::new, |(certificate, _)| certificate.display().to_string());
        let ring = Arc::new(Keyring { current: RwLock::new(Arc::new(loaded)), title, _end: Some(end) });
        let weak = Arc::downgrade(&ring);
        let named = files.authority.display().to_string();
        let thread = std::thread::Builder::new().name("certificates".to_owned());
        let started = thread.spawn(move || follow(&weak, &files, pem, &ended));
        started.map_err(|e| Error::Certificate { file: named, reason: format!("no thread to watch it: {e}") })?;
        Ok(ring)
    }

    /// Certificates that no file holds; they stay as they are.
    ///
    /// # Errors
    /// [`Error::Certificate`].
    pub(crate) fn fixed(pem: &Pem) -> Result<Arc<Keyring>, Error> {
        let inside = PathBuf::from("of this process");
        let files = Files { authority: inside.clone(), own: Some((inside.clone(), inside)) };
        let current = RwLock::new(Arc::new(Loaded::from(pem, &files)?));
        Ok(Arc::new(Keyring { current, title: "of this process".to_owned(), _end: None }))
    }

    /// What holds now.
    pub(crate) fn current(&self) -> Arc<Loaded> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn title(&self) -> &str {
        &self.title
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring").field("certificate", &self.title).finish_non_exhaustive()
    }
}

/// Takes over what changes, until the keyring is gone.
fn follow(ring: &Weak<Keyring>, files: &Files, mut seen: Pem, ended: &Receiver<()>) {
    // Files are replaced one after the other: only what is still wrong a moment later is worth a word, and only once.
    let (mut wrong, mut said) = (String::new(), false);
    while ended.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
        let Some(ring) = ring.upgrade() else { return };
        let read = match files.read() {
            Ok(pem) if pem == seen => {
                wrong.clear();
                continue;
            }
            Ok(pem) => Loaded::from(&pem, files).map(|loaded| (loaded, pem)),
            Err(error) => Err(error),
        };
        match read {
            Ok((loaded, pem)) => {
                *ring.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(loaded);
                seen = pem;
                wrong.clear();
                tracing::info!(certificate = ring.title, "certificates changed; new connections use them");
            }
            Err(error) => {
                let text = error.to_string();
                if wrong == text && !said {
                    tracing::warn!(error = text, "certificates changed and cannot be used; the old ones stay");
                }
                said = wrong == text;
                wrong = text;
            }
        }
    }
}

impl Files {
    fn read(&self) -> Result<Pem, Error> {
        let own = match &self.own {
            Some((certificate, key)) => Some((read(certificate)?, read(key)?)),
            None => None,
        };
        Ok(Pem { authority: read(&self.authority)?, own })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let wrong = |reason: String| Error::Certificate { file: path.display().to_string(), reason };
    let size = std::fs::metadata(path).map_err(|e| wrong(e.to_string()))?.len();
    if size > MAX_FILE {
        return Err(wrong(format!("{size} bytes are no certificate")));
    }
    std::fs::read(path).map_err(|e| wrong(e.to_string()))
}

impl Loaded {
    fn from(pem: &Pem, files: &Files) -> Result<Loaded, Error> {
        let wrong = |path: &Path, reason: String| Error::Certificate { file: path.display().to_string(), reason };
        let chain = |bytes: &[u8], path: &Path| -> Result<Vec<CertificateDer<'static>>, Error> {
            let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
            let read = read.map_err(|e| wrong(path, format!("is not PEM: {e}")))?;
            if read.is_empty() {
                return Err(wrong(path, "holds no certificate".to_owned()));
            }
            Ok(read)
        };
        let mut roots = RootCertStore::empty();
        for authority in chain(&pem.authority, &files.authority)? {
            roots.add(authority).map_err(|e| wrong(&files.authority, format!("holds what is no authority: {e}")))?;
        }
        let own = match (&pem.own, &files.own) {
            (Some((certificate, key)), Some((certificate_file, key_file))) => {
                let chain = chain(certificate, certificate_file)?;
                in_force(&chain[0]).map_err(|reason| wrong(certificate_file, reason))?;
                let key = PrivateKeyDer::from_pem_slice(key);
                let key = key.map_err(|e| wrong(key_file, format!("holds no private key: {e}")))?;
                let peer = Peer::of(&chain[0]);
                let key = CertifiedKey::from_der(chain, key, &provider()).map_err(|e| match e {
                    rustls::Error::InconsistentKeys(_) => {
                        wrong(key_file, format!("is not the key of {}", certificate_file.display()))
                    }
                    other => wrong(key_file, other.to_string()),
                })?;
                Some(Own { key: Arc::new(key), peer })
            }
            _ => None,
        };
        Ok(Loaded { roots: Arc::new(roots), own })
    }
}

/// Whether a certificate has not expired. One that is not valid yet may be a clock's fault, and becomes valid.
fn in_force(certificate: &CertificateDer<'_>) -> Result<(), String> {
    let parsed = x509_parser::parse_x509_certificate(certificate);
    let (_, parsed) = parsed.map_err(|e| format!("holds a certificate that cannot be read: {e}"))?;
    let end = parsed.validity().not_after;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    match end.timestamp() < i64::try_from(now.as_secs()).unwrap_or(i64::MAX) {
        true => Err(format!("expired on {end}; issue another")),
        false => Ok(()),
    }
}
