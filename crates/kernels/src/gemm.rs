//! Register tiles and the two ways to walk them, under one rule: an output is one chain over `k` in order. Storing a
//! tile between blocks of `k` and loading it again doesn't change its bits, so blocking is free.
//!
//! * [`arrange`]: brings rows into the order tiles read them in.
//! * [`walk`]: all panels of a weight over some rows, blocked for the caches.
//! * [`tile`]: the inner loop, which attention shares.
//! * [`quant`]: q4 and q8 weights with integer activations.

pub(crate) mod arrange;
pub(crate) mod quant;
pub(crate) mod tile;
pub(crate) mod walk;

/// How far ahead of the current step to prefetch into the first-level cache when one pass over the weights does, in bytes.
pub(crate) const AHEAD: usize = 2048;
/// How much further ahead to ask the second-level cache: the first has too few requests under way at once to keep
/// memory busy (measured: 0.85 of its bandwidth; 0.97 with both).
pub(crate) const BEYOND: usize = 6144;
/// Rows done together: arranged, they stay in the second-level cache. Whole tiles for every instruction set.
pub(crate) const CHUNK: usize = 96;
