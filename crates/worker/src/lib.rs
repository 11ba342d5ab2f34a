//! The roles that compute: [`stage`] runs a range of the language model's layers, [`encoder`] looks at pictures,
//! [`decoder`] paints ids. Each is a gRPC service over a compute thread of its own, fed by a bounded queue: the async
//! side never computes, and the compute side never waits for the network longer than its queue is full.

pub mod decoder;
pub mod encoder;
mod error;
mod sight;
pub mod stage;
mod thread;

pub use error::Error;
pub use thread::ComputeThread;

use janus_kernels::{KERNEL_VERSION, KvDtype, WeightFormat};

/// The numerics id of CPU nodes: processes with equal ids compute equal bits. All CPUs of one weight format and KV type
/// share one; it names the kernel version, so it changes whenever bits may.
pub fn cpu_numerics(weights: WeightFormat, kv: KvDtype) -> String {
    format!("cpu-k{KERNEL_VERSION}-{}-kv-{}", weights.name(), kv.name())
}
