//! The roles that compute: [`stage`] runs a range of the language model's layers, [`encoder`] looks at pictures,
//! [`decoder`] paints ids; [`weights`] gives what is on the disk to nodes that have nothing there. Each is a gRPC service over a compute thread of its own, fed by a bounded queue: the async
//! side never computes, and the compute side never waits for the network longer than its queue is full.

pub mod decoder;
mod device;
pub mod encoder;
mod error;
mod sight;
pub mod stage;
mod thread;
pub mod weights;

pub use device::Device;
pub use error::Error;
pub use thread::ComputeThread;
