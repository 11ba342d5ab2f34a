//! The one error type of this crate: every variant names the file, the key or the text that is wrong.

/// Why a checkpoint or a prompt was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The checkpoint's directory does not exist.
    #[error("no such model directory: {dir}")]
    MissingDir {
        /// The directory asked for.
        dir: String,
    },
    /// The checkpoint's path is something else than a directory.
    #[error("not a directory: {dir}")]
    NotADir {
        /// The path asked for.
        dir: String,
    },
    /// A file that every checkpoint must have is absent.
    #[error("{file} is missing in {place}")]
    MissingFile {
        /// The file's name.
        file: String,
        /// The checkpoint, as [`crate::Files::display`] names it.
        place: String,
    },
    /// The operating system refused to read.
    #[error("cannot read {file}: {source}")]
    Io {
        /// The path.
        file: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not a regular file.
    #[error("{file} is not a regular file")]
    NotAFile {
        /// The path.
        file: String,
    },
    /// A small file (JSON, tokeniser) is too large to be what it claims.
    #[error("{file} is larger than {limit} bytes")]
    TooLarge {
        /// The path.
        file: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// A file name that would lead out of the checkpoint.
    #[error("{name:?} is not a plain file name")]
    FileName {
        /// The name as it was given.
        name: String,
    },
    /// A file is not JSON.
    #[error("{file}, line {line}, column {column}: {message}")]
    Json {
        /// The file's name.
        file: String,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What the parser said.
        message: String,
    },
    /// A required key is absent.
    #[error("{file}: {key} is missing")]
    MissingKey {
        /// The file's name.
        file: String,
        /// The key's path inside the file, parts joined by dots.
        key: String,
    },
    /// A value that cannot be: wrong type, out of range, or in contradiction to another value.
    #[error("{file}: {key} is {value}, expected {expected}")]
    BadValue {
        /// The file's name.
        file: String,
        /// The key's path.
        key: String,
        /// The value found, as JSON.
        value: String,
        /// What it should have been.
        expected: String,
    },
    /// A value that is legal but changes the maths in a way this engine does not compute.
    #[error("{file}: {key} = {value} is not supported (supported: {supported})")]
    Unsupported {
        /// The file's name.
        file: String,
        /// The key's path.
        key: String,
        /// The value found, as JSON.
        value: String,
        /// What is computed instead.
        supported: String,
    },
    /// `tokenizer.json` cannot be used.
    #[error("tokenizer.json: {message}")]
    Tokenizer {
        /// What is wrong with it.
        message: String,
    },
    /// The tokeniser has no such token, but prompts need it.
    #[error("tokenizer.json has no token {token:?} ({purpose})")]
    MissingToken {
        /// The token's text.
        token: String,
        /// What it is needed for.
        purpose: &'static str,
    },
    /// Nothing was asked.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// Text from a user holds the text of a special token.
    #[error("the text contains the special token {token:?}; a raw prompt may contain it, a plain one may not")]
    SpecialInText {
        /// The token's text.
        token: String,
    },
    /// A raw prompt for a picture does not end where a picture begins.
    #[error("a raw prompt for a picture must end with {token:?}")]
    NoImageStart {
        /// The text of the token that opens a picture.
        token: String,
    },
    /// A prompt for a picture holds an image placeholder.
    #[error("a prompt for a picture cannot contain {token:?}")]
    ImageInGeneration {
        /// The placeholder's text.
        token: String,
    },
    /// The prompt does not fit.
    #[error("the prompt has {prompt} tokens{}, the model has room for {limit}", follow(.to_come))]
    PromptTooLong {
        /// Tokens of the prompt, pictures expanded (a lower bound if the text was too long to be tokenised at all).
        prompt: usize,
        /// Image tokens to be painted after it; 0 for text.
        to_come: usize,
        /// `max_position_embeddings`.
        limit: usize,
    },
    /// The number of pictures given is not the number of placeholders.
    #[error("the prompt has {placeholders} image placeholder(s), but {images} image(s) were given")]
    ImageCount {
        /// Placeholders in the prompt.
        placeholders: usize,
        /// Pictures given.
        images: usize,
    },
    /// The messages do not make a conversation.
    #[error("message {index}: {problem}")]
    Conversation {
        /// Index of the message, from 0.
        index: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
}

fn follow(to_come: &usize) -> String {
    if *to_come == 0 { String::new() } else { format!(" and {to_come} image tokens follow") }
}

impl Error {
    /// Whether the same call may succeed later: only reading can.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Error::Io { .. })
    }
}
