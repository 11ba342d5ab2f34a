//! The store: leases, the election, the plan, requests and token logs; only the newest leader may write.

use std::collections::BTreeMap;

use janus_cluster::Member;
use janus_cluster::plan::PipelinePlan;

use crate::network::{Process, Time};

/// What is written down of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Admitted {
    pub(crate) at: Time,
    pub(crate) numerics: &'static str,
    pub(crate) restarted: u32,
}

/// Token logs by their names, with the numerics under which they were drawn.
type Logs = (&'static str, Vec<(String, Vec<u32>)>);

#[derive(Default)]
pub(crate) struct Store {
    pub(crate) process: Process,
    /// Grows with every change of the members.
    pub(crate) version: u64,
    members: BTreeMap<String, (Member, Time)>,
    /// Coordinator and incarnation, its epoch, and when its lease ends.
    leader: Option<((usize, u64), Time)>,
    pub(crate) epoch: u64,
    pub(crate) plans: Vec<PipelinePlan>,
    /// The id that the cluster went over to.
    pub(crate) numerics: Option<&'static str>,
    requests: BTreeMap<usize, Admitted>,
    pub(crate) logs: BTreeMap<usize, Logs>,
    /// Writes of coordinators that had been deposed.
    pub(crate) fenced: u64,
}

impl Store {
    pub(crate) fn register(&mut self, member: Member, until: Time) {
        let id = member.id.clone();
        if self.members.insert(id, (member.clone(), until)).is_none_or(|(old, _)| old != member) {
            self.version += 1;
        }
    }

    pub(crate) fn remove(&mut self, id: &str) {
        if self.members.remove(id).is_some() {
            self.version += 1;
        }
    }

    pub(crate) fn sweep(&mut self, now: Time) {
        let before = self.members.len();
        self.members.retain(|_, (_, until)| *until > now);
        self.version += u64::from(self.members.len() != before);
        self.leader = self.leader.filter(|(_, until)| *until > now);
    }

    pub(crate) fn lose_lease(&mut self, member: Option<&str>) {
        match member {
            Some(id) => self.remove(id),
            None => self.leader = None,
        }
    }

    pub(crate) fn members(&self) -> BTreeMap<String, Member> {
        self.members.iter().map(|(id, (member, _))| (id.clone(), member.clone())).collect()
    }

    /// The epoch under which `me` leads, if it does.
    pub(crate) fn campaign(&mut self, me: (usize, u64), until: Time) -> Option<u64> {
        match &mut self.leader {
            Some((leader, lease)) if *leader == me => *lease = until,
            Some(_) => return None,
            None => {
                self.epoch += 1;
                self.leader = Some((me, until));
            }
        }
        Some(self.epoch)
    }

    fn ours(&mut self, fence: u64) -> bool {
        self.fenced += u64::from(fence != self.epoch);
        fence == self.epoch
    }

    pub(crate) fn write_plans(&mut self, fence: u64, plans: Vec<PipelinePlan>) -> bool {
        let ours = self.ours(fence);
        if ours {
            self.plans = plans;
        }
        ours
    }

    pub(crate) fn admit(&mut self, fence: u64, request: usize, admitted: Admitted) -> bool {
        let ours = self.ours(fence);
        if ours {
            self.requests.insert(request, admitted);
        }
        ours
    }

    pub(crate) fn write_numerics(&mut self, fence: u64, numerics: &'static str) -> bool {
        let ours = self.ours(fence);
        if ours {
            self.numerics = Some(numerics);
        }
        ours
    }

    pub(crate) fn forget(&mut self, fence: u64, request: usize) -> bool {
        let ours = self.ours(fence);
        if ours {
            self.requests.remove(&request);
        }
        ours
    }

    pub(crate) fn write_logs(&mut self, fence: u64, pipeline: usize, numerics: &'static str, logs: Vec<(String, Vec<u32>)>) {
        if self.ours(fence) {
            self.logs.insert(pipeline, (numerics, logs));
        }
    }

    /// In the order in which clocks say they were admitted.
    pub(crate) fn admitted(&self) -> Vec<(usize, Admitted)> {
        let mut all: Vec<(usize, Admitted)> = self.requests.iter().map(|(request, how)| (*request, *how)).collect();
        all.sort_by_key(|(request, how)| (how.at, *request));
        all
    }
}
