//! Decoding an answer while it is made: a character may take several tokens, so its bytes wait until it is whole.

use crate::{Result, Tokenizer};

/// The text of a growing list of ids. The pieces, put together, are [`Tokenizer::decode`] of all ids, special ones left out.
#[derive(Debug, Clone, Default)]
pub struct TextStream {
    /// Ids whose text is not finished.
    pending: Vec<u32>,
    /// Bytes of the pending ids' text that were handed out.
    given: usize,
}

impl TextStream {
    /// An empty stream.
    pub fn new() -> TextStream {
        TextStream::default()
    }

    /// Takes the next id; returns the text that became certain, if any did.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<Option<String>> {
        self.pending.push(id);
        let text = tokenizer.decode(&self.pending, true)?;
        // A last U+FFFD may be the beginning of a character; one that stands earlier cannot change any more.
        let certain = text.strip_suffix(char::REPLACEMENT_CHARACTER).unwrap_or(&text).len();
        let piece = text.get(self.given..certain).unwrap_or_default().to_string();
        self.given += piece.len();
        if certain == text.len() {
            self.pending.clear();
            self.given = 0;
        }
        Ok(Some(piece).filter(|piece| !piece.is_empty()))
    }

    /// What is left at the end: bytes that never became a character, as U+FFFD; usually nothing.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(self, tokenizer: &Tokenizer) -> Result<String> {
        let text = tokenizer.decode(&self.pending, true)?;
        Ok(text.get(self.given..).unwrap_or_default().to_string())
    }
}
