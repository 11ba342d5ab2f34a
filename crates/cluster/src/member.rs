//! The record of one node, as everybody sees it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Error;

/// What a node can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Role {
    /// Runs a range of the language model's layers.
    Stage,
    /// Turns pictures into features.
    Encoder,
    /// Turns codes into pictures.
    Decoder,
    /// A role this version does not know: ignore the node for it.
    #[serde(other)]
    Unknown,
}

/// A node's record. JSON in the store; unknown fields are ignored and missing ones take their defaults, so that
/// versions N and N+1 read each other's records.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Member {
    /// The node's name, unique in the cluster; survives restarts.
    pub id: String,
    /// Random for every start of the process ([`random_incarnation`]): tells a node from its ghost.
    pub incarnation: String,
    /// What it can do.
    pub roles: Vec<Role>,
    /// `host:port` where peers reach it.
    pub address: String,
    /// Failure domain, free text; empty if not said.
    pub zone: String,
    /// Whose cores it computes with: processes of one machine share them. Empty: nobody else's.
    pub machine: String,
    /// Device class, for example `cpu`.
    pub device: String,
    /// Memory it offers, in bytes.
    pub memory_bytes: u64,
    /// Threads of its compute pool.
    pub threads: usize,
    /// Measured milliseconds for one layer in a step of one guided pair; 0 if not measured.
    pub ms_per_layer: f64,
    /// Milliseconds for embedding the ids that are fed in such a step; 0 if not measured.
    pub ms_per_embed: f64,
    /// Milliseconds for the heads in such a step; 0 if not measured.
    pub ms_per_head: f64,
    /// Measured round trips to other members, by their id, in milliseconds.
    pub round_trips: BTreeMap<String, f64>,
    /// Digest of the loaded model in hex; empty if there is none yet.
    pub model: String,
    /// Numerics id: results are equal bits only between equal ids.
    pub numerics: String,
    /// Version of the software.
    pub version: String,
    /// Process id on its host.
    pub pid: u32,
    /// Layers it holds, first and end (excluded).
    pub layers: Option<[usize; 2]>,
    /// Whether it is about to leave and wants no new work.
    pub draining: bool,
}

impl Member {
    /// The record as stored.
    ///
    /// # Errors
    /// [`Error::BadConfig`] if a number in it is not finite: JSON has no word for that.
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        let finite = |number: &f64| number.is_finite();
        let times = [self.ms_per_layer, self.ms_per_embed, self.ms_per_head];
        if !(times.iter().all(finite) && self.round_trips.values().all(finite)) {
            return Err(Error::BadConfig { what: format!("a measured time of member {} is not finite", self.id) });
        }
        serde_json::to_vec(self)
            .map_err(|error| Error::BadConfig { what: format!("member {} cannot be encoded: {error}", self.id) })
    }

    /// Reads a record found at `key`.
    ///
    /// # Errors
    /// [`Error::BadRecord`] if it is not one.
    pub fn decode(key: &str, value: &[u8]) -> Result<Member, Error> {
        serde_json::from_slice(value).map_err(|error| Error::BadRecord { key: key.to_owned(), reason: error.to_string() })
    }
}

/// A new incarnation: 32 random hex digits.
///
/// # Errors
/// [`Error::System`] if the operating system has no random bytes.
pub fn random_incarnation() -> Result<String, Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::System { what: "reading random bytes", reason: error.to_string() })?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
