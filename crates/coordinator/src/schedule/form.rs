//! Which rows go into the next microbatch.

use janus_wire::frame::MAX_PREFILL;
use janus_wire::v1::FrameBody;

use super::{Action, Active, Scheduler, UnitId};

impl Scheduler {
    /// Sends microbatches while there are units that are not in flight and room for another one.
    ///
    /// Each microbatch reads every weight again, so rows fill a microbatch (up to `limits.rows`) before another one
    /// opens, and there are never more than the pools plus one. Open ones are kept equal in rows; when all are open, they
    /// grow beyond `limits.rows` together.
    pub(super) fn send(&mut self, actions: &mut Vec<Action>) {
        loop {
            let rows: usize = self.active.values().map(|u| u.spec.rows()).sum();
            let wanted = rows.div_ceil(self.limits.rows).clamp(1, self.limits.pools + 1);
            if self.flying.len() >= wanted {
                break;
            }
            let members = self.choose(rows.div_ceil(wanted));
            if members.is_empty() && self.ops.is_empty() {
                break;
            }
            let (microbatch, idle) = (self.next_microbatch, members.is_empty());
            self.next_microbatch += 1;
            self.clock += 1;
            let mut body = FrameBody { microbatch, slots: std::mem::take(&mut self.ops), ..FrameBody::default() };
            let mut seats = Vec::with_capacity(members.len());
            for (id, most) in members {
                let Some(unit) = self.active.get_mut(&id) else { continue };
                let rows = unit.next(most);
                unit.flying = rows.positions as usize;
                unit.served = self.clock;
                // What was copied, or is computed once more, is free.
                let (end, paid) = (unit.fed + unit.flying, unit.fed.max(unit.charged));
                let fresh: usize =
                    unit.held[..unit.spec.rows()].iter().map(|held| end.saturating_sub(paid.max(*held))).sum();
                unit.charged = unit.charged.max(end);
                if fresh > 0 {
                    self.waiting.charge(unit.spec.band, &unit.spec.tenant, fresh, unit.spec.share.weight);
                    *self.served.entry(unit.spec.tenant.clone()).or_default() += fresh as u64;
                }
                seats.push((id, rows.slot, rows.generation));
                body.units.push(rows);
            }
            self.flying.insert(microbatch, seats);
            actions.push(Action::Send(body));
            if idle {
                break;
            }
        }
    }

    /// The units of a microbatch of about `rows` decode rows, with the most positions each may feed. Those served
    /// longest ago come first. Prompts share one chunk of positions, so that a long one delays a step by no more.
    fn choose(&self, rows: usize) -> Vec<(UnitId, usize)> {
        let mut ready: Vec<&Active> = self.active.values().filter(|u| u.flying == 0 && u.follows.is_none()).collect();
        ready.sort_by_key(|u| (u.served, u.spec.id));
        let (mut room, mut chunk) = (rows, MAX_PREFILL);
        let mut members = Vec::new();
        for unit in ready {
            let missing = unit.missing();
            if missing == 1 && room > 0 {
                room = room.saturating_sub(unit.spec.rows());
                members.push((unit.spec.id, 1));
            } else if missing > 1 && chunk > 0 {
                let positions = missing.min(chunk);
                chunk -= positions;
                members.push((unit.spec.id, positions));
            }
        }
        members
    }
}
