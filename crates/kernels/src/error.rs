//! The one error type of this crate. Shape mistakes inside hot kernels are bugs of the caller and panic;
//! what depends on the machine or on a checkpoint is an [`Error`].

use crate::WeightFormat;

/// What can go wrong before a kernel runs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The CPU has no fused multiply-add in hardware, so the canonical sums would crawl. Named, never run slowly.
    #[error("this CPU ({cpu}) has no fused multiply-add (AVX2 + FMA, AVX-512 or NEON); janus needs it")]
    NoFma {
        /// Model name as the operating system gives it.
        cpu: String,
    },
    /// The floating point environment flushes denormals or rounds other than to nearest.
    #[error("the floating point environment is altered ({what}); results would differ between machines")]
    FloatEnvironment {
        /// Which setting is off.
        what: &'static str,
    },
    /// A tensor's length doesn't match its declared shape.
    #[error("{what}: expected {expected} values, got {got}")]
    Shape {
        /// The tensor or dimension.
        what: &'static str,
        /// Length the shape asks for.
        expected: usize,
        /// Length that came.
        got: usize,
    },
    /// A weight that can't be represented in the wanted format, for example not finite in q8.
    #[error("weight row {row} holds a value that {format:?} cannot represent")]
    NotRepresentable {
        /// Output row of the weight.
        row: usize,
        /// Wanted format.
        format: WeightFormat,
    },
    /// A KV slot index outside the table.
    #[error("no KV slot {slot}: the table has {slots}")]
    NoSuchSlot {
        /// Asked slot.
        slot: usize,
        /// Slots in the table.
        slots: usize,
    },
    /// A KV slot is in use already.
    #[error("KV slot {slot} is in use")]
    SlotInUse {
        /// Asked slot.
        slot: usize,
    },
    /// A position beyond what was written (a hole) or beyond a slot's capacity.
    #[error("KV slot {slot}: position {position} outside length {len}, capacity {capacity}")]
    Position {
        /// Asked slot.
        slot: usize,
        /// Asked position.
        position: usize,
        /// Positions written so far.
        len: usize,
        /// Positions the slot can hold.
        capacity: usize,
    },
}

impl Error {
    /// Whether trying again could help: never, all of these are facts about the machine or the caller.
    pub fn is_retryable(&self) -> bool {
        false
    }
}
