//! What a Janus checkpoint says, without touching its weights.
//!
//! Everything here is read from small files and is pure afterwards: no tensors, no threads, no environment. The model crate
//! asks it for dimensions, the planner for sizes, the coordinator and the command line for prompts.
//!
//! - [`Files`]: where a checkpoint's files come from, a directory or bytes inside the binary.
//! - [`ModelSpec`]: `config.json` and its companions in both layouts (deepseek-ai's original and the transformers port),
//!   checked; what would change the maths and is not implemented is refused by name.
//! - [`PartSizes`]: parameters of every part, for `janus inspect`; [`StageSizes`]: bytes of what stages hold, for plans.
//! - [`Tokenizer`]: text to ids and back, [`SpecialIds`] looked up by text, [`TextStream`] for streamed answers.
//! - [`Message`], [`Prompt`], [`GenerationPrompt`]: the chat templates of each family.

mod config;
mod error;
mod files;
mod json;
mod presets;
mod prompt;
mod size;
mod spec;
mod special;
mod stream;
mod tokenizer;
mod validate;

pub use error::Error;
pub use files::Files;
pub use prompt::{DEFAULT_SYSTEM_PROMPT, GenerationPrompt, Message, Part, Prompt, Role};
pub use size::{KvStorage, PartSizes, StageSizes, WeightStorage};
pub use spec::{
    GenerationDefaults, ImageHeadSpec, Layout, LlamaSpec, ModelSpec, PreprocessSpec, ProjectorSpec, SiglipSpec, SizeRule,
    StoredDtype, VqSpec,
};
pub use special::{Family, SpecialIds};
pub use stream::TextStream;
pub use tokenizer::Tokenizer;

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
