//! Pictures that clients send: content-addressed, so that the same picture need not be sent twice.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use janus_wire::status;
use janus_wire::v1::Image;
use sha2::{Digest, Sha256};
use tonic::Status;

/// Largest picture file.
const MAX_BYTES: usize = 64 << 20;
/// Bytes of recent pictures that can be named by digest alone.
const KEEP_BYTES: usize = 128 << 20;

/// A picture's bytes and digest.
#[derive(Debug, Clone)]
pub(crate) struct Blob {
    /// The field of the request that meant it.
    pub(crate) field: String,
    pub(crate) digest: [u8; 32],
    pub(crate) data: Bytes,
}

impl Blob {
    /// The picture by its digest alone.
    pub(crate) fn named(&self) -> Image {
        Image { data: Bytes::new(), sha256: self.digest.to_vec().into() }
    }
}

/// Recent pictures by tenant and digest.
#[derive(Clone, Default)]
pub(crate) struct Blobs(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    blobs: HashMap<(String, [u8; 32]), (Bytes, u64)>,
    bytes: usize,
    clock: u64,
}

impl Blobs {
    /// The picture that `field` of a request means.
    pub(crate) fn resolve(&self, tenant: &str, field: &str, image: &Image) -> Result<Blob, Status> {
        let named: Option<[u8; 32]> = match image.sha256.len() {
            0 => None,
            32 => image.sha256.as_ref().try_into().ok(),
            n => return Err(status::invalid(field, format!("sha256 has {n} bytes, not 32"))),
        };
        if image.data.is_empty() {
            let Some(digest) = named else { return Err(status::invalid(field, "the picture is empty")) };
            let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            inner.clock += 1;
            let clock = inner.clock;
            let found = inner.blobs.get_mut(&(tenant.to_owned(), digest)).map(|(data, used)| {
                *used = clock;
                Blob { field: field.to_owned(), digest, data: data.clone() }
            });
            let hex = janus_wire::hello::hex(&digest);
            return found.ok_or_else(|| Status::not_found(format!("{field}: no picture {hex} is here; send its bytes")));
        }
        if image.data.len() > MAX_BYTES {
            return Err(status::invalid(field, format!("{} bytes are more than {MAX_BYTES}", image.data.len())));
        }
        let digest: [u8; 32] = Sha256::digest(&image.data).into();
        if named.is_some_and(|named| named != digest) {
            return Err(status::invalid(field, "sha256 is not the digest of data"));
        }
        self.keep(tenant, digest, image.data.clone());
        Ok(Blob { field: field.to_owned(), digest, data: image.data.clone() })
    }

    fn keep(&self, tenant: &str, digest: [u8; 32], data: Bytes) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.clock += 1;
        let clock = inner.clock;
        inner.bytes += data.len();
        if let Some((old, _)) = inner.blobs.insert((tenant.to_owned(), digest), (data, clock)) {
            inner.bytes -= old.len();
        }
        while inner.bytes > KEEP_BYTES {
            let oldest = inner.blobs.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| key.clone());
            let Some((data, _)) = oldest.and_then(|key| inner.blobs.remove(&key)) else { break };
            inner.bytes -= data.len();
        }
    }
}

/// The handle under which a first stage keeps a picture's features: tenants do not share them.
pub(crate) fn feature_handle(tenant: &str, digest: &[u8; 32]) -> Bytes {
    let mut hash = Sha256::new();
    hash.update((tenant.len() as u64).to_le_bytes());
    hash.update(tenant);
    hash.update(digest);
    Bytes::from(hash.finalize().to_vec())
}
