//! What can go wrong between a checkpoint on disk and a picture.

/// Errors of the engine. Every variant names the thing that is wrong, so that the message alone tells what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration or the tokeniser refuses the checkpoint, or the prompt cannot be built.
    #[error(transparent)]
    Spec(#[from] janus_spec::Error),
    /// A weight file is missing, truncated or not what its header says.
    #[error("{file}: {reason}")]
    WeightFile {
        /// File name within the checkpoint.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor the architecture needs is not in the checkpoint.
    #[error("the checkpoint has no tensor `{name}`; is it complete, and does config.json belong to it?")]
    MissingTensor {
        /// Name in the checkpoint's own layout.
        name: String,
    },
    /// A tensor has another shape than config.json implies.
    #[error("tensor `{name}` has shape {found:?}, but config.json asks for {expected:?}")]
    Shape {
        /// Name in the checkpoint's own layout.
        name: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape the configuration implies.
        expected: Vec<usize>,
    },
    /// A tensor's element type is not one that weights are stored in.
    #[error("tensor `{name}` is stored as {found}; expected F32, F16 or BF16")]
    Dtype {
        /// Name in the checkpoint's own layout.
        name: String,
        /// Element type in the file.
        found: String,
    },
    /// A weight is NaN or infinite.
    #[error("tensor `{name}` holds {value} at element {index}; the checkpoint is damaged")]
    NotFinite {
        /// Name in the checkpoint's own layout.
        name: String,
        /// The offending value.
        value: f32,
        /// Its flat index.
        index: usize,
    },
    /// Picture input or output failed.
    #[error(transparent)]
    Image(#[from] crate::image::Error),
    /// A kernel refused its input or the processor.
    #[error(transparent)]
    Kernel(#[from] janus_kernels::Error),
    /// The caller's parameters make no sense.
    #[error("{0}")]
    Argument(String),
    /// A weight is so large that sums over it overflow.
    #[error(
        "tensor `{name}` holds {value:e} at element {index}, beyond {limit:e}: sums over it overflow; the checkpoint is damaged"
    )]
    TooLarge {
        /// Name in the checkpoint's own layout.
        name: String,
        /// The offending value.
        value: f32,
        /// Its flat index.
        index: usize,
        /// The largest that is taken.
        limit: f32,
    },
    /// What was computed is NaN or infinite, though every weight is a number.
    #[error("{what} came out as {value}; weights of the checkpoint are too large to compute with, or damaged")]
    Diverged {
        /// What was computed.
        what: &'static str,
        /// What came out.
        value: f32,
    },
    /// A KV slot was used out of turn.
    #[error("KV slot {slot}: {reason}")]
    Slot {
        /// Which slot.
        slot: usize,
        /// What was wrong.
        reason: String,
    },
}

/// Refuses results that are NaN or infinite.
pub(crate) fn finite(what: &'static str, values: &[f32]) -> Result<()> {
    match values.iter().find(|x| !x.is_finite()) {
        Some(&value) => Err(Error::Diverged { what, value }),
        None => Ok(()),
    }
}

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
