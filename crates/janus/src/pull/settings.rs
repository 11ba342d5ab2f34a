//! What the hub's own variables say: where it is, who we are, where its cache is. The Python library reads the same ones.

use std::env;
use std::path::PathBuf;

use crate::failure::{Failure, Outcome};

/// Where models are, unless HF_ENDPOINT names another place.
const ENDPOINT: &str = "https://huggingface.co";

/// The hub as this process's environment has it.
pub(crate) struct Settings {
    /// URL without a slash at its end.
    pub(crate) endpoint: String,
    /// Who we are, if we said so.
    pub(crate) token: Option<String>,
    /// Nothing is asked over the network.
    pub(crate) offline: bool,
}

fn var(name: &str) -> Option<String> {
    env::var(name).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn yes(name: &str) -> bool {
    var(name).is_some_and(|text| ["1", "ON", "YES", "TRUE"].contains(&text.to_uppercase().as_str()))
}

impl Settings {
    /// Reads HF_ENDPOINT, HF_TOKEN (or the file that `hf auth login` writes) and HF_HUB_OFFLINE.
    pub(crate) fn read() -> Outcome<Settings> {
        let endpoint = var("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            return Err(Failure::mistake(format!("HF_ENDPOINT is `{endpoint}`; expected a URL like {ENDPOINT}")));
        }
        let token = var("HF_TOKEN").or_else(|| var("HUGGING_FACE_HUB_TOKEN")).or_else(stored_token);
        Ok(Settings { endpoint, token, offline: yes("HF_HUB_OFFLINE") })
    }
}

/// The token of a login, unless it may not be sent by itself.
fn stored_token() -> Option<String> {
    if yes("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
        return None;
    }
    let file = folder("HF_TOKEN_PATH").or_else(|| Some(home()?.join("token")))?;
    let text = std::fs::read_to_string(file).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// A folder that a variable names; `~` is the user's, as the hub's library has it.
fn folder(name: &str) -> Option<PathBuf> {
    let named = PathBuf::from(var(name)?);
    match named.strip_prefix("~") {
        Ok(rest) => Some(PathBuf::from(var("HOME")?).join(rest)),
        Err(_) => Some(named),
    }
}

/// HF_HOME, else `huggingface` in the user's cache.
fn home() -> Option<PathBuf> {
    let cache = || folder("XDG_CACHE_HOME").or_else(|| Some(PathBuf::from(var("HOME")?).join(".cache")));
    folder("HF_HOME").or_else(|| Some(cache()?.join("huggingface")))
}

/// The folder that models are kept in: HF_HUB_CACHE, else `hub` in HF_HOME.
pub(crate) fn cache() -> Outcome<PathBuf> {
    let named = folder("HF_HUB_CACHE").or_else(|| folder("HUGGINGFACE_HUB_CACHE"));
    let found = named.or_else(|| Some(home()?.join("hub")));
    found.ok_or_else(|| Failure::mistake("no place for models: set HF_HOME or HF_HUB_CACHE (there is no HOME either)"))
}
