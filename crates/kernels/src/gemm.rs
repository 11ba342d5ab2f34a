//! Register tiles and the two ways to walk them, under one rule: an output is one chain over `k` in order. Storing a
//! tile between blocks of `k` and loading it again doesn't change its bits, so blocking is free.
//!
//! * [`arrange`]: brings rows into the order tiles read them in.
//! * [`walk`]: all panels of a weight over some rows, blocked for the caches.
//! * [`tile`]: the inner loop, which attention shares.
//! * [`quant`]: q8 and q4 weights with int8 activations.

pub(crate) mod arrange;
pub(crate) mod quant;
pub(crate) mod tile;
pub(crate) mod walk;

/// Rows done together: arranged, they stay in the second-level cache. Whole tiles for every instruction set.
pub(crate) const CHUNK: usize = 96;
