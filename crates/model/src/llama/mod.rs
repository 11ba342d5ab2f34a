//! The language model as a range of layers with KV slots: what a pipeline stage owns.
//!
//! [`Embeddings`] belong to the first stage, [`Heads`] to the last, [`LlamaRange`] to every stage. Rows of many
//! sequences go through together; each row's bits depend on that row's history alone.

mod embeddings;
mod heads;
mod range;

pub use embeddings::Embeddings;
pub use heads::Heads;
pub use range::{Layer, LlamaRange, SlotId, Span, Workspace};
