//! The best ranges of layers for one pipeline, by dynamic programming.
//!
//! A cell is (nodes used, last node, layers done). Layers are added a stage at a time, and a cell keeps the best way to reach
//! it. For up to [`EXACT`] nodes "nodes used" is a set, so every subset and every order is tried; for more it is a
//! position in a given order, of which any nodes may be left out.
//!
//! Two passes, because the best pace does not tell which prefix is best: the first finds the pace, the second the
//! cheapest layout with no pool slower than that. Costs of the second pass only ever add up, so its prefixes are optimal.
//!
//! Where several nodes share a pool, what the pool has done so far decides what it may still do, so a cell keeps every way that
//! is not worse in all respects, up to [`WAYS`]. A cell that would need more keeps those of best rank, and then the result
//! is good but not proven to be the best. Without shared pools one way is enough and the result is exact.

use super::Layers;
use super::cost::{Field, StageCost};

/// Most nodes for which all subsets and orders are tried.
pub(super) const EXACT: usize = 8;
/// Most ways that a cell keeps.
const WAYS: usize = 32;
/// Most ways where the best of every subset is asked for, which cannot leave out what is too slow.
const WAYS_OF_SUBSETS: usize = 8;
/// Pools with several of [`EXACT`] nodes.
const SHARED: usize = EXACT / 2;

/// Which nodes in which order.
#[derive(Debug, Clone)]
pub(super) enum Space {
    /// Every order of every subset of these; at most [`EXACT`].
    Subsets(Vec<usize>),
    /// These in this order, any of them left out; nodes of one pool stand together.
    Order(Vec<usize>),
}

/// What is compared when the pace is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aim {
    /// The busiest pool.
    Pace,
    /// Time of one microbatch, then bytes to load, then evenness; no pool busier than this.
    Latency(u64),
    /// Bytes to load, then time of one microbatch, then evenness; no pool busier than this.
    Load(u64),
    /// Bytes of memory that are missing; nothing else matters.
    Shortage,
}

/// A layout and its rank under the aim it was found with.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    /// Nodes and their layers, in order.
    pub(super) stages: Vec<(usize, Layers)>,
    /// Smaller is better.
    pub(super) rank: Rank,
}

/// What ways are compared by, the most important first.
pub(super) type Rank = [u128; 3];

/// One way to reach a cell.
#[derive(Debug, Clone, Copy)]
struct Way {
    rank: Rank,
    /// Busy time of the shared pools; in an order, that of the current pool alone.
    busy: [u64; SHARED],
    /// Where it comes from: cell and way. `None` for the first stage.
    from: Option<(usize, usize)>,
}

/// The cells of one search.
struct Table<'a> {
    field: &'a Field<'a>,
    nodes: &'a [usize],
    in_order: bool,
    aim: Aim,
    /// By position in `nodes`: where its pool stands in `busy`, if it is shared.
    seat: Vec<Option<usize>>,
    /// Stages are counted in cells of an order up to this many; 0: not counted.
    counted: usize,
    /// Ways with a busier pool lead nowhere.
    most: u64,
    ways: usize,
    cells: Vec<Vec<Way>>,
}

/// The best layout of each set of positions in the nodes of [`Space::Subsets`] that uses all of the set.
pub(super) fn by_subset(field: &Field<'_>, nodes: &[usize], aim: Aim) -> Vec<Option<Layout>> {
    let mut table = Table::new(field, nodes, false, aim);
    table.ways = WAYS_OF_SUBSETS;
    table.fill();
    (0..1_usize << nodes.len())
        .map(|set| {
            let stages = set.count_ones() as usize;
            let keys = (0..nodes.len()).map(|key| set * nodes.len() + key);
            if stages_allowed(field, stages) { table.best(keys) } else { None }
        })
        .collect()
}

/// The best layout in a space; `None` if there is none, or with [`Aim::Pace`] none as good as `most`.
pub(super) fn best(field: &Field<'_>, space: &Space, aim: Aim, most: u64) -> Option<Layout> {
    let (nodes, in_order) = match space {
        Space::Subsets(nodes) => (nodes, false),
        Space::Order(nodes) => (nodes, true),
    };
    let mut table = Table::new(field, nodes, in_order, aim);
    table.most = table.most.min(most);
    table.fill();
    let keys = (0..table.keys()).filter(|&key| table.counted_stages(key).is_none_or(|n| stages_allowed(field, n)));
    table.best(keys)
}

/// Whether the options allow so many stages.
pub(super) fn stages_allowed(field: &Field<'_>, stages: usize) -> bool {
    let options = field.options();
    options.stages.is_none_or(|exact| stages == exact) && options.max_stages.is_none_or(|most| stages <= most)
}

impl<'a> Table<'a> {
    fn new(field: &'a Field<'a>, nodes: &'a [usize], in_order: bool, aim: Aim) -> Self {
        let pool = |node: usize| field.nodes[node].pool;
        let mut shared: Vec<usize> = nodes.iter().map(|&node| pool(node)).collect();
        shared.sort_unstable();
        let count = |of: usize| shared.iter().filter(|&&p| p == of).count();
        let mut several: Vec<usize> = shared.iter().copied().filter(|&p| count(p) > 1).collect();
        several.dedup();
        let seat = |&node: &usize| several.iter().position(|&p| p == pool(node)).map(|seat| if in_order { 0 } else { seat });
        let options = field.options();
        let counted = match (in_order, options.stages.or(options.max_stages)) {
            (true, Some(most)) => most.min(nodes.len()).min(field.layers()) + 1,
            _ => 0,
        };
        let most = match aim {
            Aim::Latency(most) | Aim::Load(most) => most,
            Aim::Pace | Aim::Shortage => u64::MAX,
        };
        let seat = nodes.iter().map(seat).collect();
        let mut table = Table { field, nodes, in_order, aim, seat, counted, most, ways: WAYS, cells: Vec::new() };
        table.cells = vec![Vec::new(); table.keys() * table.width()];
        table
    }

    /// Combinations of used and last nodes.
    fn keys(&self) -> usize {
        if self.in_order { self.nodes.len() * self.counted.max(1) } else { self.nodes.len() << self.nodes.len() }
    }

    fn width(&self) -> usize {
        self.field.layers() + 1
    }

    /// Position of the last node. Later ones have smaller keys: of equal ways the first one found stays, and in that one nodes
    /// stand in the order of their ids.
    fn last(&self, key: usize) -> usize {
        if self.in_order { key / self.counted.max(1) } else { self.nodes.len() - 1 - key % self.nodes.len() }
    }

    fn counted_stages(&self, key: usize) -> Option<usize> {
        match (self.in_order, self.counted) {
            (false, _) => Some((key / self.nodes.len()).count_ones() as usize),
            (true, 0) => None,
            (true, counted) => Some(key % counted),
        }
    }

    /// The key after a stage on the node at `next`, from `key` or from the start; `None` if it may not come next.
    fn after(&self, key: Option<usize>, next: usize) -> Option<usize> {
        if self.in_order {
            let (past, stages) = match key {
                Some(key) => (self.last(key) < next, key % self.counted.max(1) + 1),
                None => (true, 1),
            };
            let stages = if self.counted == 0 { 0 } else { stages };
            (past && stages < self.counted.max(1)).then_some(next * self.counted.max(1) + stages)
        } else {
            let used = key.map_or(0, |key| key / self.nodes.len());
            (used >> next & 1 == 0).then_some((used | 1 << next) * self.nodes.len() + self.nodes.len() - 1 - next)
        }
    }

    fn fill(&mut self) {
        for next in 0..self.nodes.len() {
            if let Some(key) = self.after(None, next) {
                let start = Way { rank: [0; 3], busy: [0; SHARED], from: None };
                self.extend(&[start], None, 0, next, key);
            }
        }
        // A key is always larger than those it comes from.
        for key in 0..self.keys() {
            for done in 1..self.field.layers() {
                let cell = key * self.width() + done;
                if self.cells[cell].is_empty() {
                    continue;
                }
                let ways = std::mem::take(&mut self.cells[cell]);
                for next in 0..self.nodes.len() {
                    if let Some(to) = self.after(Some(key), next) {
                        self.extend(&ways, Some(cell), done, next, to);
                    }
                }
                self.cells[cell] = ways;
            }
        }
    }

    /// Adds a stage on the node at `next` to ways that have done the layers before `done`.
    fn extend(&mut self, ways: &[Way], cell: Option<usize>, done: usize, next: usize, key: usize) {
        let node = self.nodes[next];
        let before = cell.map(|cell| self.last(cell / self.width()));
        let way_in = match before {
            None => Some(self.field.to_coordinator(node)),
            Some(last) => self.field.link(self.nodes[last], node),
        };
        let Some(way_in) = way_in else { return };
        let same_pool = before.is_some_and(|last| self.field.nodes[self.nodes[last]].pool == self.field.nodes[node].pool);
        for end in done + 1..=self.field.layers() {
            let Some(stage) = self.field.stage(node, Layers { first: done, end }) else { continue };
            // More layers never need less.
            if self.aim != Aim::Shortage && stage.bytes > self.field.nodes[node].limit {
                break;
            }
            let way_out = if end == self.field.layers() { self.field.to_coordinator(node) } else { 0 };
            let wire = way_in.saturating_add(way_out);
            for (i, way) in ways.iter().enumerate() {
                let Some(mut longer) = self.longer(way, next, stage, wire, same_pool) else { continue };
                if self.leads_on(&longer, key, end) {
                    longer.from = cell.map(|cell| (cell, i));
                    keep(&mut self.cells[key * (self.field.layers() + 1) + end], longer, self.ways);
                }
            }
        }
    }

    /// The way with one stage more; `None` if it is worse than the aim allows.
    fn longer(&self, way: &Way, next: usize, stage: StageCost, wire: u64, same_pool: bool) -> Option<Way> {
        let mut busy = way.busy;
        if self.in_order && !same_pool {
            busy = [0; SHARED];
        }
        let pool_ns = match self.seat[next] {
            Some(seat) => {
                busy[seat] = busy[seat].saturating_add(stage.ns);
                busy[seat]
            }
            None => stage.ns,
        };
        if pool_ns > self.most && self.aim != Aim::Shortage {
            return None;
        }
        let [a, b, c] = way.rank;
        let even = u128::from(stage.ns).saturating_mul(u128::from(stage.ns));
        let latency = u128::from(stage.ns) + u128::from(wire);
        let rank = match self.aim {
            Aim::Pace => [a.max(u128::from(pool_ns)), 0, 0],
            Aim::Latency(_) => [a + latency, b + u128::from(stage.load), c.saturating_add(even)],
            Aim::Load(_) => [a + u128::from(stage.load), b + latency, c.saturating_add(even)],
            Aim::Shortage => {
                busy = [0; SHARED];
                let missing = stage.bytes.saturating_sub(self.field.nodes[self.nodes[next]].limit);
                [a + u128::from(missing), 0, 0]
            }
        };
        Some(Way { rank, busy, from: None })
    }

    /// Whether the nodes that are left have time for the layers that are left. Asked only where pools are shared, because only
    /// there a cell has many ways.
    fn leads_on(&self, way: &Way, key: usize, end: usize) -> bool {
        if self.in_order || self.most == u64::MAX || self.seat.iter().all(Option::is_none) {
            return true;
        }
        let used = key / self.nodes.len();
        let mut room = 0_u64;
        let mut fastest = [u64::MAX; SHARED];
        for (place, &node) in self.nodes.iter().enumerate().filter(|(place, _)| used >> place & 1 == 0) {
            let layer = self.field.nodes[node].layer_ns().max(1);
            match self.seat[place] {
                Some(seat) => fastest[seat] = fastest[seat].min(layer),
                None => room = room.saturating_add(self.most / layer),
            }
        }
        for (busy, layer) in way.busy.iter().zip(fastest) {
            room = room.saturating_add(self.most.saturating_sub(*busy) / layer);
        }
        room >= (self.field.layers() - end) as u64
    }

    /// The best complete way among these keys.
    fn best(&self, keys: impl Iterator<Item = usize>) -> Option<Layout> {
        let layers = self.field.layers();
        let mut best: Option<(Rank, usize, usize)> = None;
        for key in keys {
            let cell = key * self.width() + layers;
            for (i, way) in self.cells[cell].iter().enumerate() {
                if best.is_none_or(|(rank, ..)| way.rank < rank) {
                    best = Some((way.rank, cell, i));
                }
            }
        }
        let (rank, mut cell, mut way) = best?;
        let mut stages = Vec::new();
        loop {
            let (key, end) = (cell / self.width(), cell % self.width());
            let from = self.cells[cell][way].from;
            let first = from.map_or(0, |(cell, _)| cell % self.width());
            stages.push((self.nodes[self.last(key)], Layers { first, end }));
            match from {
                Some((before, index)) => (cell, way) = (before, index),
                None => break,
            }
        }
        stages.reverse();
        Some(Layout { stages, rank })
    }
}

/// Keeps a way unless one that is there is as good in all respects; drops those that are now worse in all.
fn keep(cell: &mut Vec<Way>, way: Way, ways: usize) {
    let as_good = |a: &Way, b: &Way| a.rank <= b.rank && a.busy.iter().zip(&b.busy).all(|(a, b)| a <= b);
    if cell.iter().any(|there| as_good(there, &way)) {
        return;
    }
    cell.retain(|there| !as_good(&way, there));
    let place = cell.partition_point(|there| there.rank <= way.rank);
    cell.insert(place, way);
    cell.truncate(ways);
}
