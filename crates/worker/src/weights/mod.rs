//! Checkpoints that travel: a node that has one gives it away tensor by tensor ([`WeightsService`]), and a node without takes
//! what its layers need, keeps it, and verifies it ([`obtain`]).
//!
//! A digest names a checkpoint, and it is computed from the configuration, the tokeniser and one digest per tensor. So a
//! manifest (those files and that list) proves itself, and each tensor is proved by the manifest: whoever sent it need not
//! be trusted, only asked elsewhere if it does not fit.

mod disk;
mod fetch;
mod manifest;
mod obtain;
mod serve;

pub use fetch::Peers;
pub use obtain::{Wanted, obtain};
pub use serve::WeightsService;
