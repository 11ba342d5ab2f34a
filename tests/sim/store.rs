//! The store: leases, the election, the plan, requests and token logs; only the newest leader may write.

use std::collections::BTreeMap;

use janus_cluster::Member;
use janus_cluster::plan::PipelinePlan;

use crate::network::{Process, Time};

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
    requests: BTreeMap<usize, Time>,
    pub(crate) logs: BTreeMap<usize, Vec<(String, Vec<u32>)>>,
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

    pub(crate) fn admit(&mut self, fence: u64, request: usize, wall: Time) -> bool {
        let ours = self.ours(fence);
        if ours {
            self.requests.insert(request, wall);
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

    pub(crate) fn write_logs(&mut self, fence: u64, pipeline: usize, logs: Vec<(String, Vec<u32>)>) {
        if self.ours(fence) {
            self.logs.insert(pipeline, logs);
        }
    }

    /// In the order in which clocks say they were admitted.
    pub(crate) fn admitted(&self) -> Vec<usize> {
        let mut all: Vec<(Time, usize)> = self.requests.iter().map(|(request, at)| (*at, *request)).collect();
        all.sort();
        all.into_iter().map(|(_, request)| request).collect()
    }
}
