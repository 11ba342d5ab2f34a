//! What the store keeps of a tenant: `tenants/by-name/<name>`, JSON. Keys themselves are nowhere; their digests are.

use std::collections::BTreeMap;

use janus_wire::v1;
use serde::{Deserialize, Serialize};

use crate::schedule::Share;

/// A tenant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Stored {
    pub(super) operator: bool,
    pub(super) weight: u32,
    #[serde(default)]
    pub(super) quotas: Quotas,
    #[serde(default)]
    pub(super) output_roots: Vec<String>,
    pub(super) created_unix_ms: u64,
    /// By the SHA-256 of the key, in hex: when it ends, milliseconds since the Unix epoch.
    pub(super) keys: BTreeMap<String, Option<u64>>,
}

/// Limits; 0 is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Quotas {
    pub(crate) in_flight: u32,
    pub(crate) rows_per_second: u32,
    pub(crate) queued: u32,
    pub(crate) pictures_per_day: u64,
}

impl Stored {
    pub(super) fn share(&self) -> Share {
        Share { weight: self.weight.max(1), most_waiting: self.quotas.queued as usize }
    }

    /// As operators see it.
    pub(super) fn shown(&self, name: &str) -> v1::Tenant {
        let role = if self.operator { v1::TenantRole::Operator } else { v1::TenantRole::User };
        let Quotas { in_flight, rows_per_second, queued, pictures_per_day } = self.quotas;
        v1::Tenant {
            name: name.to_owned(),
            role: role.into(),
            weight: self.weight,
            quotas: Some(v1::Quotas { in_flight, rows_per_second, queued, pictures_per_day }),
            output_roots: self.output_roots.clone(),
            created_unix_ms: self.created_unix_ms,
            revoked: self.keys.is_empty(),
        }
    }

    /// Takes over what operators may set.
    pub(super) fn set(&mut self, tenant: &v1::Tenant) {
        let quotas = tenant.quotas.unwrap_or_default();
        self.operator = tenant.role() == v1::TenantRole::Operator;
        self.weight = tenant.weight.max(1);
        self.quotas = Quotas {
            in_flight: quotas.in_flight,
            rows_per_second: quotas.rows_per_second,
            queued: quotas.queued,
            pictures_per_day: quotas.pictures_per_day,
        };
        self.output_roots.clone_from(&tenant.output_roots);
    }
}
