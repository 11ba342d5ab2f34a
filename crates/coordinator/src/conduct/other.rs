//! When nothing of our numerics id is left: the id under which everything begins again.

use std::time::Duration;

use janus_cluster::plan::{ModelSizes, Options, Problem};
use janus_cluster::{Member, Role};

use super::{Conductor, Now};

/// What is lost may come back within this; then it is given up. Longer than a lease and a suspicion.
pub const GIVEN_UP: Duration = Duration::from_secs(10);

impl Conductor {
    /// The numerics id to go over to, once: when work had begun, and for [`GIVEN_UP`] no members of ours could run it,
    /// not even those that do not answer at the moment.
    pub(super) fn other_numerics(&mut self, now: Now) -> Option<String> {
        if self.wishes.others.is_empty() || self.restarting {
            return None;
        }
        let idle = self.pipelines.iter().all(|p| p.parked && !p.is_running() && p.next.is_none() && p.checking.is_empty());
        if !idle || !self.worked || self.could_run(&self.wishes.numerics.clone(), &self.sizes.clone()) {
            self.hopeless = None;
            return None;
        }
        let since = *self.hopeless.get_or_insert(now);
        if now < since + GIVEN_UP {
            return None;
        }
        let found = self.wishes.others.clone().into_iter().find(|(id, sizes)| self.could_run(id, sizes));
        self.restarting = found.is_some();
        found.map(|(id, _)| id)
    }

    /// Whether the members of a numerics id could run a pipeline, and look at and paint pictures beside it.
    fn could_run(&mut self, numerics: &str, sizes: &ModelSizes) -> bool {
        let ours = |m: &&Member| m.numerics == numerics && m.model == self.wishes.model && !m.draining;
        let has = |role: Role| self.members.values().filter(ours).any(|m| m.roles.contains(&role));
        if ![Role::Encoder, Role::Decoder].into_iter().all(has) && numerics != self.wishes.numerics {
            return false;
        }
        let stages = self.members.values().filter(ours).filter(|m| m.roles.contains(&Role::Stage));
        let options = Options {
            pipelines: Some(1),
            kv_positions: self.wishes.kv_positions,
            numerics: Some(numerics.to_owned()),
            ..Options::default()
        };
        let nodes = stages.map(|m| self.node(m)).collect();
        self.one(Problem { model: sizes.clone(), nodes, options }).is_ok()
    }
}
