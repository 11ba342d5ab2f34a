//! One pipeline, as its conductor sees it.

use std::collections::BTreeSet;
use std::ops::Range;

use janus_cluster::plan::PipelinePlan;

use super::Now;
use crate::pipeline::Placement;

/// What its driver was told last.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) plan: PipelinePlan,
    pub(super) placement: Placement,
    ready: bool,
    lost: bool,
}

/// A plan whose nodes are loading.
#[derive(Debug)]
pub(super) struct Next {
    pub(super) plan: PipelinePlan,
    pub(super) epoch: u64,
    pub(super) waiting: BTreeSet<String>,
}

#[derive(Debug, Default)]
pub(super) struct Pipeline {
    pub(super) placed: Option<Placed>,
    pub(super) next: Option<Next>,
    /// Nodes of a lost placement whose answers are awaited.
    pub(super) checking: BTreeSet<String>,
    /// Neighbours whose link may be at fault.
    pub(super) doubt: Option<(String, String)>,
    /// It was ready once.
    pub(super) begun: bool,
    /// What a predecessor had planned.
    pub(super) inherited: Option<PipelinePlan>,
    /// Losses since it was ready last.
    pub(super) losses: u32,
    /// There are no nodes for it.
    pub(super) parked: bool,
    /// Why it does not run.
    pub(super) reason: String,
    /// When it changed last.
    pub(super) since: Now,
}

/// How a pipeline stands, for people.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Standing {
    /// Its epoch; 0 before the first placement.
    pub epoch: u64,
    /// Canary passed, not lost since.
    pub ready: bool,
    /// It was ready before.
    pub begun: bool,
    /// Nodes are loading, or being asked.
    pub busy: bool,
    /// Why it does not run.
    pub reason: String,
    /// Nodes and their layers.
    pub stages: Vec<(String, Range<usize>)>,
}

impl Pipeline {
    /// Its canary went through; false if that is not news.
    pub(super) fn ready(&mut self, epoch: u64) -> bool {
        if let Some(placed) = self.placed.as_mut().filter(|p| p.placement.epoch == epoch && !p.lost) {
            placed.ready = true;
            self.begun = true;
            self.losses = 0;
            self.reason.clear();
            return true;
        }
        false
    }

    /// The placement of this epoch is over; its nodes, which are to be asked. None if it was known, or is an old one.
    pub(super) fn lost(&mut self, epoch: u64, reason: String) -> Option<Vec<String>> {
        let placed = self.placed.as_mut().filter(|p| p.placement.epoch == epoch && !p.lost)?;
        (placed.lost, placed.ready) = (true, false);
        let nodes: Vec<String> = placed.placement.stages.iter().map(|s| s.node.clone()).collect();
        self.reason = reason;
        self.next = None;
        self.losses += 1;
        self.checking = nodes.iter().cloned().collect();
        Some(nodes)
    }

    /// One of its nodes is gone, whatever its driver says.
    pub(super) fn fail(&mut self, reason: String) {
        if let Some(placed) = &mut self.placed {
            (placed.lost, placed.ready) = (true, false);
            self.next = None;
            self.reason = reason;
        }
    }

    pub(super) fn is_lost(&self) -> bool {
        self.placed.as_ref().is_some_and(|p| p.lost)
    }

    /// Placed and not lost.
    pub(super) fn is_running(&self) -> bool {
        self.placed.as_ref().is_some_and(|p| !p.lost)
    }

    pub(super) fn previous(&self) -> Option<&PipelinePlan> {
        self.placed.as_ref().map(|p| &p.plan).or(self.inherited.as_ref())
    }

    pub(super) fn holds(&self, node: &str) -> bool {
        self.placed.as_ref().is_some_and(|p| p.placement.stages.iter().any(|s| s.node == node))
    }

    pub(super) fn layers_of(&self, node: &str) -> Option<Range<usize>> {
        let placed = self.placed.as_ref()?;
        placed.placement.stages.iter().find(|s| s.node == node).map(|s| s.layers.clone())
    }

    /// Nodes it has, and nodes it is about to have; while it is parked it has none.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &String> {
        let placed = self.placed.iter().filter(|_| !self.parked).flat_map(|p| p.placement.stages.iter().map(|s| &s.node));
        placed.chain(self.next.iter().flat_map(|n| n.plan.stages.iter().map(|s| &s.node)))
    }

    pub(super) fn begin(&mut self, plan: PipelinePlan, epoch: u64) {
        let waiting = plan.stages.iter().map(|s| s.node.clone()).collect();
        self.next = Some(Next { plan, epoch, waiting });
        self.parked = false;
    }

    pub(super) fn placed_as(&mut self, plan: PipelinePlan, placement: Placement) {
        self.checking.clear();
        self.placed = Some(Placed { plan, placement, ready: false, lost: false });
    }

    pub(super) fn standing(&self) -> Standing {
        let placed = self.placed.as_ref();
        Standing {
            epoch: placed.map_or(0, |p| p.placement.epoch),
            ready: placed.is_some_and(|p| p.ready),
            begun: self.begun,
            busy: self.next.is_some() || !self.checking.is_empty() || self.is_running(),
            reason: self.reason.clone(),
            stages: placed
                .map(|p| p.placement.stages.iter().map(|s| (s.node.clone(), s.layers.clone())).collect())
                .unwrap_or_default(),
        }
    }
}
