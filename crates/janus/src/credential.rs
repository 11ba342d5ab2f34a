//! The API key that verbs show to a cluster: from `--api-key-file`, or JANUS_API_KEY. Never from an argument, which
//! everybody on the machine can read.

use std::path::Path;
use std::sync::OnceLock;

use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};

use crate::failure::{Failure, Outcome};

/// One for the process: it talks to one cluster.
static KEY: OnceLock<MetadataValue<Ascii>> = OnceLock::new();

/// Reads the key, if there is one.
pub(crate) fn load(file: Option<&Path>) -> Outcome {
    let key = match file {
        Some(file) => Some(read(file, "--api-key-file")?),
        None => std::env::var("JANUS_API_KEY").ok().filter(|key| !key.trim().is_empty()),
    };
    let Some(key) = key else { return Ok(()) };
    show(key.trim())
}

/// Shows this key, unless the user said another one.
pub(crate) fn show(key: &str) -> Outcome {
    let value = format!("Bearer {key}").parse();
    let mut value: MetadataValue<Ascii> = value.map_err(|_| Failure::mistake("a key has characters that no key has"))?;
    value.set_sensitive(true);
    let _ = KEY.set(value);
    Ok(())
}

/// A secret in a file.
pub(crate) fn read(file: &Path, flag: &str) -> Outcome<String> {
    let text = std::fs::read_to_string(file).map_err(|e| Failure::mistake(format!("{flag} {}: {e}", file.display())))?;
    match text.trim() {
        "" => Err(Failure::mistake(format!("{flag} {}: it is empty", file.display()))),
        key => Ok(key.to_owned()),
    }
}

/// A message with the key.
pub(crate) fn signed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(key) = KEY.get() {
        request.metadata_mut().insert("authorization", key.clone());
    }
    request
}
