//! The layout of keys. Everything of a cluster is below `/janus/<cluster>/`.
//!
//! | key | value | lease | written by | read by |
//! |---|---|---|---|---|
//! | `members/<id>` | [`crate::Member`], JSON | of that process | that node alone | all nodes |
//! | `election/leader` | [`crate::Candidate`] and its epoch, JSON | of the leader | coordinators | all nodes |
//! | `epoch` | the fencing epoch, decimal | - | coordinators, by compare-and-swap | all nodes |
//! | `plan` | who runs which layers | - | the leader ([`crate::guard`]) | all nodes |
//! | `requests/<request>` | an admitted request | - | the leader | coordinators |
//! | `logs/<pipeline>` | token logs of a pipeline, now and then | - | the leader | coordinators |
//! | `tenants/...`, `jobs/...` | reserved | - | coordinators | coordinators |
//!
//! So with etcd's roles a worker named `w1` needs `readwrite` on the one key `members/w1`, and `read` on the prefix
//! `members/`, the prefix `election/` and the keys `epoch` and `plan`; a coordinator needs `readwrite` on
//! `/janus/<cluster>/`. Names of nodes and clusters contain no `/`, so no name is a prefix of another's keys.

use crate::Error;

/// Keys of one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    root: String,
}

impl Keys {
    /// Keys of the cluster with this name: 1 to 63 of `a-z A-Z 0-9 . _ -`.
    ///
    /// # Errors
    /// [`Error::BadConfig`] if the name is something else.
    pub fn new(cluster: &str) -> Result<Keys, Error> {
        check_name("cluster", cluster)?;
        Ok(Keys { root: format!("/janus/{cluster}/") })
    }

    /// Prefix of everything.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// Prefix of all member records.
    pub fn members(&self) -> String {
        format!("{}members/", self.root)
    }

    /// Record of one member.
    pub fn member(&self, id: &str) -> String {
        format!("{}members/{id}", self.root)
    }

    /// Prefix of the election.
    pub fn election(&self) -> String {
        format!("{}election/", self.root)
    }

    /// The leader, as long as its lease lives.
    pub fn leader(&self) -> String {
        format!("{}election/leader", self.root)
    }

    /// The fencing epoch's counter.
    pub fn epoch(&self) -> String {
        format!("{}epoch", self.root)
    }

    /// The plan.
    pub fn plan(&self) -> String {
        format!("{}plan", self.root)
    }

    /// The numerics id that the cluster went over to, if it ever did.
    pub fn numerics(&self) -> String {
        format!("{}numerics", self.root)
    }

    /// Prefix of admitted requests.
    pub fn requests(&self) -> String {
        format!("{}requests/", self.root)
    }

    /// One admitted request.
    pub fn request(&self, id: &str) -> String {
        format!("{}requests/{id}", self.root)
    }

    /// Prefix of the token logs.
    pub fn logs(&self) -> String {
        format!("{}logs/", self.root)
    }

    /// The token logs of one pipeline.
    pub fn log(&self, pipeline: &str) -> String {
        format!("{}logs/{pipeline}", self.root)
    }

    /// Prefix of tenants.
    pub fn tenants(&self) -> String {
        format!("{}tenants/", self.root)
    }

    /// Prefix of jobs.
    pub fn jobs(&self) -> String {
        format!("{}jobs/", self.root)
    }
}

/// Checks a name that becomes part of a key: 1 to 63 of `a-z A-Z 0-9 . _ -`.
///
/// # Errors
/// [`Error::BadConfig`], which says whose name it is (`what`) and what is wrong.
pub fn check_name(what: &str, name: &str) -> Result<(), Error> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if (1..=63).contains(&name.len()) && name.bytes().all(legal) {
        return Ok(());
    }
    Err(Error::BadConfig { what: format!("{name:?} is no name for a {what}: 1 to 63 characters of a-z A-Z 0-9 . _ - are") })
}
