//! Blobs: files that a tenant sent so that items can name them by their digest. A tenant sees its own alone.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use janus_wire::hello::hex;
use janus_wire::status::{self, invalid};
use janus_wire::v1;
use sha2::{Digest, Sha256};
use tonic::Status;

use super::Error;
use super::objects::Objects;
use super::record::random_hex;

/// Largest blob: a picture's file.
pub(super) const MAX_BYTES: u64 = 64 << 20;

/// The folder of all blobs.
pub(super) const FOLDER: &str = "blobs";

/// The object of a blob. Tenants' names are checked where they are made; nothing else ever becomes a folder.
pub(super) fn name(tenant: &str, digest: &[u8]) -> String {
    named(tenant, &hex(digest))
}

/// The same, of a digest that is hexadecimal already.
pub(super) fn named(tenant: &str, digest: &str) -> String {
    format!("{FOLDER}/{tenant}/{digest}")
}

/// Bytes that are written as hexadecimal digits.
pub(super) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| char::from(c).to_digit(16).map(|d| d as u8);
    text.as_bytes().chunks(2).map(|pair| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?)).collect()
}

/// Bytes of all blobs, by tenant.
pub(super) async fn bytes(objects: &Objects) -> Result<BTreeMap<String, u64>, Error> {
    let (mut bytes, mut found) = (BTreeMap::new(), objects.list(FOLDER));
    while let Some(meta) = found.try_next().await? {
        if let Some(tenant) = meta.location.as_ref().rsplit('/').nth(1) {
            *bytes.entry(tenant.to_owned()).or_default() += meta.size;
        }
    }
    Ok(bytes)
}

/// A blob as a picture of a question.
pub(super) async fn image(objects: &Objects, tenant: &str, digest: &Bytes) -> Result<v1::Image, Status> {
    let unavailable = |error: Error| status::unavailable(error.to_string(), super::RETRY);
    match objects.read(&name(tenant, digest)).await.map_err(unavailable)? {
        Some(data) => Ok(v1::Image { data, sha256: digest.clone() }),
        None => Err(Status::not_found(format!("images: there is no blob {}", hex(digest)))),
    }
}

/// Why a blob is not taken.
struct Refused(Status);

impl From<Status> for Refused {
    fn from(status: Status) -> Self {
        Refused(status)
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Refused(status::unavailable(format!("the blob cannot be kept: {error}"), super::RETRY))
    }
}

/// Takes a blob in: all `pieces`, of `size` bytes together. Returns its digest.
pub(super) async fn receive(
    objects: &Objects,
    tenant: &str,
    size: u64,
    pieces: BoxStream<'_, Result<Bytes, Status>>,
) -> Result<[u8; 32], Status> {
    if size == 0 || size > MAX_BYTES {
        return Err(invalid("size", format!("must be from 1 to {MAX_BYTES} bytes")));
    }
    let temporary = format!("{FOLDER}/{tenant}/incoming-{}", random_hex(8));
    let (mut hash, mut left) = (Sha256::new(), size);
    let counted = pieces.map(|piece| {
        let data = piece?;
        let length = data.len() as u64;
        if length > left {
            return Err(Refused(invalid("data", format!("there are more than the {size} bytes that were announced"))));
        }
        left -= length;
        hash.update(&data);
        Ok(data)
    });
    let received = objects.write(&temporary, counted).await;
    let whole = received.and_then(|()| match left {
        0 => Ok(()),
        left => Err(Refused(invalid("data", format!("{left} of {size} bytes are missing")))),
    });
    if let Err(Refused(status)) = whole {
        let _ = objects.delete(&temporary).await;
        return Err(status);
    }
    let digest: [u8; 32] = hash.finalize().into();
    // The same bytes have the same name: whoever was there before is replaced by its like.
    match objects.rename(&temporary, &name(tenant, &digest)).await {
        Ok(()) => Ok(digest),
        Err(error) => {
            let _ = objects.delete(&temporary).await;
            Err(status::unavailable(error.to_string(), super::RETRY))
        }
    }
}
