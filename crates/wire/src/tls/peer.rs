//! Who a certificate says its bearer is: URIs `janus://<cluster>/<role>/<name>` among its alternative names, one for each
//! role. That is what nodes check of each other; hosts and addresses are not, for they change while a role does not.

use std::fmt;
use std::str::FromStr;

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;

/// What the bearer of a certificate may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Leads workers and serves clients.
    Coordinator,
    /// Computes layers.
    Stage,
    /// Encodes pictures.
    Encoder,
    /// Decodes pictures.
    Decoder,
    /// Speaks HTTP to clients and gRPC to coordinators.
    Gateway,
    /// Calls coordinators and serves nobody.
    Client,
}

impl Role {
    /// All of them.
    pub const ALL: [Role; 6] = [Role::Coordinator, Role::Stage, Role::Encoder, Role::Decoder, Role::Gateway, Role::Client];

    /// As it stands in certificates.
    pub const fn name(self) -> &'static str {
        match self {
            Role::Coordinator => "coordinator",
            Role::Stage => "stage",
            Role::Encoder => "encoder",
            Role::Decoder => "decoder",
            Role::Gateway => "gateway",
            Role::Client => "client",
        }
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Role, String> {
        let found = Role::ALL.into_iter().find(|role| role.name() == text);
        found.ok_or_else(|| format!("`{text}` is none of the roles {}", Roles::of(&Role::ALL)))
    }
}

/// A set of roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Roles(u8);

impl Roles {
    /// What computes.
    pub const WORKERS: Roles = Roles::of(&[Role::Stage, Role::Encoder, Role::Decoder]);
    /// What belongs to the inside of a cluster.
    pub const NODES: Roles = Roles::of(&[Role::Coordinator, Role::Stage, Role::Encoder, Role::Decoder]);
    /// What serves somebody.
    pub const SERVERS: Roles = Roles::of(&[Role::Coordinator, Role::Stage, Role::Encoder, Role::Decoder, Role::Gateway]);

    /// These roles.
    pub const fn of(roles: &[Role]) -> Roles {
        let mut set = 0;
        let mut i = 0;
        while i < roles.len() {
            set |= 1 << roles[i] as u8;
            i += 1;
        }
        Roles(set)
    }

    /// Whether `role` is among them.
    pub const fn has(self, role: Role) -> bool {
        self.0 & (1 << role as u8) != 0
    }

    /// Whether any of `others` is among them.
    pub const fn meet(self, others: Roles) -> bool {
        self.0 & others.0 != 0
    }

    /// Those of them that `others` lacks.
    pub const fn without(self, others: Roles) -> Roles {
        Roles(self.0 & !others.0)
    }

    /// Whether there are none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = Role> {
        Role::ALL.into_iter().filter(move |role| self.has(*role))
    }
}

impl From<Role> for Roles {
    fn from(role: Role) -> Roles {
        Roles::of(&[role])
    }
}

impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, role) in self.iter().enumerate() {
            write!(f, "{}{}", if i == 0 { "" } else { ", " }, role.name())?;
        }
        Ok(())
    }
}

/// The bearer of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its cluster.
    pub cluster: String,
    /// What it may be.
    pub roles: Roles,
    /// Its name: for people, nothing depends on it.
    pub name: String,
}

impl Peer {
    /// The alternative names that say so.
    pub fn uris(&self) -> Vec<String> {
        self.roles.iter().map(|role| format!("janus://{}/{}/{}", self.cluster, role.name(), self.name)).collect()
    }

    /// Who bears `certificate`.
    ///
    /// # Errors
    /// A sentence about the certificate, if it cannot be read, or has no such name, or several that differ.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Peer, String> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|e| format!("it cannot be read: {e}"))?;
        let names = parsed.subject_alternative_name().map_err(|e| format!("its names cannot be read: {e}"))?;
        let names = names.iter().flat_map(|names| &names.value.general_names);
        let mut found: Option<Peer> = None;
        for name in names {
            let GeneralName::URI(uri) = name else { continue };
            let Some(rest) = uri.strip_prefix("janus://") else { continue };
            let said: Vec<&str> = rest.split('/').collect();
            let [cluster, role, name] = said[..] else {
                return Err(format!("its name `{uri}` is not janus://cluster/role/name"));
            };
            let role: Role = role.parse().map_err(|e| format!("its name `{uri}` says no role: {e}"))?;
            let peer = found.get_or_insert_with(|| Peer {
                cluster: cluster.to_owned(),
                roles: Roles::default(),
                name: name.to_owned(),
            });
            if peer.cluster != cluster || peer.name != name {
                return Err(format!("it names both {peer} and {uri}"));
            }
            peer.roles = Roles(peer.roles.0 | Roles::from(role).0);
        }
        found.ok_or_else(|| "it has no name of the form janus://cluster/role/name".to_owned())
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uris().join(" and "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_a_set() {
        let both = Roles::of(&[Role::Stage, Role::Decoder]);
        assert!(both.has(Role::Stage) && both.has(Role::Decoder) && !both.has(Role::Encoder));
        assert!(both.meet(Roles::WORKERS) && !both.meet(Role::Coordinator.into()));
        assert_eq!(both.without(Role::Stage.into()), Role::Decoder.into());
        assert_eq!(both.to_string(), "stage, decoder");
        assert!("foreman".parse::<Role>().unwrap_err().contains("coordinator, stage"));
    }

    #[test]
    fn what_is_no_certificate_is_nobody() {
        assert!(Peer::of(&CertificateDer::from(vec![1, 2, 3])).unwrap_err().contains("cannot be read"));
    }
}
