//! Row-exact CPU kernels: every result has one definition, down to the bit, that no number of rows, threads, blocks or
//! vector lanes can change. Where to find what:
//!
//! * [`linear()`] over [`Packed`] weights (`packed`, `linear`): each output one fused-multiply-add chain over the inputs.
//! * [`attention()`] over [`KvSlots`] (`kv`, `attention`), [`RopeTable`] (`rope`).
//! * [`conv2d`] and [`group_norm_swish`] for the VQ coder (`conv`, `group_norm`).
//! * Per-row kernels: norms, activations, guidance (`rows`), [`sample()`] (`sample`).
//! * [`Pool`]: the process's compute threads. [`Isa`]: which instruction set. [`measure`]: this machine's floors.
//!
//! `model` calls all of them; nothing here knows what a model is. The crate depends on none of ours and is the only
//! one with `unsafe`: raw SIMD and disjoint writes by pool tasks.

#![allow(unsafe_code)]
// Tile loops index several register arrays by one constant range; iterators over them hide which.
#![allow(clippy::needless_range_loop)]

mod aligned;
mod attention;
mod conv;
mod error;
mod gemm;
mod group_norm;
mod isa;
mod kv;
mod linear;
pub mod math;
pub mod measure;
mod packed;
mod pool;
mod rope;
mod rows;
mod sample;
mod simd;
mod table;

pub use attention::{AttnRow, Rows, attention, attention_full};
pub use conv::{ConvSpec, PackedConv, Pad, conv2d};
pub use error::Error;
pub use group_norm::group_norm_swish;
pub use isa::{Isa, assert_float_env, check_cpu, check_float_env, choose_isa, force_isa, isa, widen_first};
pub use kv::{KvDtype, KvSlots};
pub use linear::linear;
pub use packed::{Packed, PackedBuilder, WeightFormat, bf16_to_f32, f32_to_bf16};
pub use pool::{CpuTimes, Pool, default_threads};
pub use rope::RopeTable;
pub use rows::{add_assign, add_rms_norm, gelu_erf, guidance, layer_norm, nearest_code, rms_norm, silu_mul, softmax, swish};
pub use sample::{argmax, philox, sample, uniform};
pub use table::Table;

/// Bumped whenever bits may change; part of every numerics id. By format of the weights, so that a change of one does not keep
/// clusters of another from being upgraded while they run.
pub const fn kernel_version(weights: WeightFormat) -> u32 {
    match weights {
        // Its weights have had nine bits, and activations sixteen, since 2.
        WeightFormat::Q8 => 2,
        WeightFormat::F32 | WeightFormat::Bf16 | WeightFormat::Q4 => 1,
    }
}
