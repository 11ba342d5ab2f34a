//! Text to ids and back. Prompts are built in [`crate::prompt`], on top of this.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use sha2::{Digest, Sha256};
use tokenizers::DecoderWrapper;

use crate::special::Texts;
use crate::{Error, Family, Files, ModelSpec, Result, SpecialIds, TextStream};

const FILE: &str = "tokenizer.json";

/// The tokeniser of one checkpoint, with what its model says about prompts.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special: SpecialIds,
    family: Family,
    digest: [u8; 32],
    /// Texts that become special tokens wherever they stand.
    reserved: Vec<String>,
    /// Bytes of the longest token: text of n bytes has at least n / longest tokens.
    longest: usize,
    pub(crate) texts: Texts,
    pub(crate) image_tokens: usize,
    pub(crate) max_positions: usize,
    pub(crate) system_prompt: bool,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("family", &self.family).field("special", &self.special).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads `tokenizer.json` and the files beside it that name the special tokens.
    ///
    /// # Errors
    /// A file is missing or broken, a token that prompts need does not exist, an id lies beyond the model's vocabulary,
    /// or the tokeniser is not a byte-level one.
    pub fn load(files: &Files, spec: &ModelSpec) -> Result<Tokenizer> {
        let bytes = files.require(FILE)?;
        let mut inner = parse(&bytes)?;
        // A stored truncation or padding would change prompts in silence.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| unusable(e.to_string()))?;
        if !matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_))) {
            return Err(unusable("the decoder is not ByteLevel, which is the only one supported"));
        }

        let mut texts = Texts::read(files, spec.layout)?;
        let (special, family) = texts.resolve(spec, |token| inner.token_to_id(token))?;
        let vocab = inner.get_vocab(true);
        check_ids(vocab.values().copied().max().unwrap_or(0), &special, spec)?;

        let added = inner.get_added_tokens_decoder();
        let mut reserved: Vec<String> = added.values().filter(|t| t.special).map(|t| t.content.clone()).collect();
        let t = &texts;
        reserved.extend([&t.bos, &t.eos, &t.begin_of_image, &t.end_of_image, &t.image_placeholder].map(String::clone));
        if family == Family::JanusPro {
            reserved.extend([texts.user.to_string(), texts.assistant.to_string()]);
        }
        reserved.retain(|token| !token.is_empty());
        reserved.sort();
        reserved.dedup();

        Ok(Tokenizer {
            // A byte-level token has one character for every byte; an added one is itself.
            longest: vocab.keys().map(String::len).max().unwrap_or(1).max(1),
            digest: Sha256::digest(&bytes).into(),
            image_tokens: spec.image_tokens(),
            max_positions: spec.llm.max_positions,
            system_prompt: spec.system_prompt,
            inner,
            special,
            family,
            reserved,
            texts,
        })
    }

    /// Ids of a text, with exactly one BOS in front. Texts of special tokens become those tokens.
    ///
    /// # Errors
    /// The text cannot be tokenised, or is so long that it cannot fit the model.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        // Before tokenising, which takes time and memory in proportion.
        let least = text.len() / self.longest;
        if least > self.max_positions {
            return Err(Error::PromptTooLong { prompt: least, to_come: 0, limit: self.max_positions });
        }
        // Whether a post-processor adds BOS differs between checkpoints, so it is not asked.
        let encoding = self.inner.encode_fast(text, false).map_err(|e| unusable(e.to_string()))?;
        let bos = self.special.bos;
        let tokens = encoding.get_ids();
        let start = tokens.iter().take_while(|id| **id == bos).count();
        let mut ids = Vec::with_capacity(tokens.len() + 1);
        ids.push(bos);
        ids.extend_from_slice(&tokens[start..]);
        Ok(ids)
    }

    /// Text of ids. Bytes that are no UTF-8 become U+FFFD; ids without a token are left out, special ones on request.
    ///
    /// # Errors
    /// The tokeniser cannot decode; a byte-level one always can.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner.decode(ids, skip_special).map_err(|e| unusable(e.to_string()))
    }

    /// A decoder for an answer that is shown while it is made; special tokens are left out.
    pub fn stream_decoder(&self) -> TextStream {
        TextStream::new()
    }

    /// Ids of the special tokens.
    pub fn special(&self) -> &SpecialIds {
        &self.special
    }

    /// How roles are written.
    pub fn family(&self) -> Family {
        self.family
    }

    /// SHA-256 of `tokenizer.json`.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// Refuses text from a user that would become a special token: it could forge a turn, or a picture's place.
    pub(crate) fn refuse_special(&self, text: &str) -> Result<()> {
        match self.reserved.iter().find(|token| text.contains(token.as_str())) {
            Some(token) => Err(Error::SpecialInText { token: token.clone() }),
            None => Ok(()),
        }
    }
}

fn unusable(message: impl Into<String>) -> Error {
    Error::Tokenizer { message: message.into() }
}

/// The library reports most broken files as errors and panics on a few.
fn parse(bytes: &[u8]) -> Result<tokenizers::Tokenizer> {
    match catch_unwind(AssertUnwindSafe(|| tokenizers::Tokenizer::from_bytes(bytes))) {
        Ok(parsed) => parsed.map_err(|e| unusable(e.to_string())),
        Err(_) => Err(unusable("the file cannot be parsed")),
    }
}

/// Every id must have a row in the embedding, and the placeholder must be the one config.json means.
fn check_ids(largest: u32, special: &SpecialIds, spec: &ModelSpec) -> Result<()> {
    let vocab = spec.llm.vocab;
    let largest = largest.max(special.pad);
    if largest as usize >= vocab {
        return Err(unusable(format!("token id {largest} is beyond the model's vocab_size {vocab}")));
    }
    match spec.image_token_id {
        Some(id) if id != special.image_placeholder => Err(unusable(format!(
            "the image placeholder has id {}, config.json says image_token_id {id}",
            special.image_placeholder
        ))),
        _ => Ok(()),
    }
}
