//! What the nodes of a cluster agree on.
//!
//! - [`plan`]: who computes which layers, and what that costs. Pure: no I/O, no clock, no randomness.

pub mod plan;
