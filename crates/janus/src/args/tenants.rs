//! Tenants: the key that everything begins with, and what operators do with them.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::Tls;
use crate::credential;
use crate::failure::Outcome;

/// Who is let in.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Credentials {
    /// File with the operator's key: then everybody needs a key, and `janus tenants` makes them. Without one, only callers
    /// of this machine are let in, and need none [env: JANUS_OPERATOR_KEY, the key itself]
    #[arg(long, value_name = "FILE")]
    pub(crate) operator_key_file: Option<PathBuf>,
}

/// Shorter keys could be guessed.
const SHORTEST: usize = 16;

impl Credentials {
    /// The operator's key, if there is one. This process shows it too, when it asks others.
    pub(crate) fn load(&self) -> Outcome<Option<String>> {
        let key = match &self.operator_key_file {
            Some(file) => Some(credential::read(file, "--operator-key-file")?),
            None => std::env::var("JANUS_OPERATOR_KEY").ok().map(|key| key.trim().to_owned()).filter(|key| !key.is_empty()),
        };
        if let Some(key) = &key {
            if key.len() < SHORTEST {
                return Err(crate::failure::Failure::mistake(format!(
                    "the operator's key has {} characters, at least {SHORTEST} are needed: `openssl rand -hex 32` makes one",
                    key.len()
                )));
            }
            credential::show(key)?;
        }
        Ok(key)
    }
}

#[derive(Debug, Args)]
pub(crate) struct Tenants {
    #[command(subcommand)]
    pub(crate) deed: TenantsDeed,
    /// Coordinators; several addresses are tried in turn
    #[arg(long, global = true, value_name = "ADDR|URL[,..]", default_value = "127.0.0.1:7070")]
    pub(crate) endpoint: String,
    #[command(flatten)]
    pub(crate) tls: Tls,
    /// Print one JSON object on stdout
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TenantsDeed {
    /// Make a tenant and print its API key, which nobody can see again
    Create(Terms),
    /// Change a tenant's role, weight, quotas and folders: what is not given goes back to its default
    Update(Terms),
    /// List tenants
    List,
    /// Print a new key; the old one ends
    Rotate {
        /// Its name
        name: String,
        /// The old key lives for so many seconds more
        #[arg(long, value_name = "SECONDS", default_value_t = 0)]
        grace: u64,
    },
    /// End all keys of a tenant; its jobs are kept
    Revoke {
        /// Its name
        name: String,
    },
    /// Say what tenants have used
    Usage {
        /// Its name [default: all]
        name: Option<String>,
        /// Print comma-separated values with a header line
        #[arg(long)]
        csv: bool,
    },
    /// Say what operators did, the newest first
    Audit {
        /// So many entries
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        last: u32,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TenantRole {
    User,
    Operator,
}

#[derive(Debug, Args)]
pub(crate) struct Terms {
    /// Its name: 1 to 63 of a-z A-Z 0-9 . _ -
    pub(crate) name: String,
    /// Operators also drain nodes and manage tenants
    #[arg(long, value_enum, default_value = "user")]
    pub(crate) role: TenantRole,
    /// Its share beside other tenants that want work at the same time
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) weight: u32,
    /// Requests that may be unfinished at once; 0 for no limit
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) in_flight: u32,
    /// Rows computed a second, over a minute; a guided picture takes 1152; 0 for no limit
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) rows_per_second: u32,
    /// Pictures and answers that may wait; 0 for no limit
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) queued: u32,
    /// Pictures a day (UTC); 0 for no limit
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) pictures_per_day: u64,
    /// Folder that its jobs may write to; repeat it for several
    #[arg(long = "output-root", value_name = "URL")]
    pub(crate) output_roots: Vec<String>,
}
