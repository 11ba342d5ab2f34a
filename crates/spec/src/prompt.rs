//! From messages to ids: the chat template (conversation.py and processing_vlm.py of the original code; transformers' template
//! gives the same text), the expansion of pictures, and the pair of prompts that a picture is painted from.

use std::ops::Range;

use crate::{Error, Result, Tokenizer};

/// What a conversation starts with, unless told otherwise. Prompts for pictures have none.
pub const DEFAULT_SYSTEM_PROMPT: &str = "You are a helpful language and vision assistant. \
    You are able to understand the visual content that the user provides, \
    and assist the user with a variety of tasks using natural language.";

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Instructions before the conversation; only the first message.
    System,
    /// The one who asks.
    User,
    /// The model.
    Assistant,
}

/// A piece of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Words.
    Text(String),
    /// A picture; which one is known by its order.
    Image,
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said, in order.
    pub parts: Vec<Part>,
}

impl Message {
    /// A message of words only.
    pub fn text(role: Role, text: impl Into<String>) -> Message {
        Message { role, parts: vec![Part::Text(text.into())] }
    }
}

/// Ids to feed for an answer in text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// All ids, pictures expanded to image start, one placeholder per patch, image end.
    pub ids: Vec<u32>,
    /// Positions of the placeholders of each picture; its features replace their embeddings.
    pub images: Vec<Range<usize>>,
}

impl Prompt {
    /// Checks the number of pictures.
    ///
    /// # Errors
    /// [`Error::ImageCount`] if `images` is not the number of placeholders.
    pub fn expect_images(&self, images: usize) -> Result<()> {
        let placeholders = self.images.len();
        if placeholders == images { Ok(()) } else { Err(Error::ImageCount { placeholders, images }) }
    }
}

/// The two rows a guided picture is painted from; they have the same length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenerationPrompt {
    /// The prompt: BOS, text, image start.
    pub cond: Vec<u32>,
    /// The same with every id but the first and the last replaced by pad; pads are attended.
    pub uncond: Vec<u32>,
}

impl Tokenizer {
    /// The prompt for a picture. `raw` text goes to the tokeniser as it is and must end with image start itself.
    ///
    /// # Errors
    /// The text is empty, holds special tokens (only raw text may), or does not fit with the picture that follows.
    pub fn generation_prompt(&self, text: &str, raw: bool) -> Result<GenerationPrompt> {
        if strip(text).is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let t = &self.texts;
        let cond = if raw {
            self.encode(text)?
        } else {
            self.refuse_special(text)?;
            self.encode(&format!("{}: {}\n\n{}:{}", t.user, strip(text), t.assistant, t.begin_of_image))?
        };
        if cond.contains(&self.special().image_placeholder) {
            return Err(Error::ImageInGeneration { token: t.image_placeholder.clone() });
        }
        if cond.len() < 2 || cond.last() != Some(&self.special().begin_of_image) {
            return Err(Error::NoImageStart { token: t.begin_of_image.clone() });
        }
        if cond.len() + self.image_tokens > self.max_positions {
            return Err(Error::PromptTooLong { prompt: cond.len(), to_come: self.image_tokens, limit: self.max_positions });
        }
        let mut uncond = cond.clone();
        let last = uncond.len() - 1;
        uncond[1..last].fill(self.special().pad);
        Ok(GenerationPrompt { cond, uncond })
    }

    /// The prompt for an answer to a conversation, which ends with the user's turn. `system` replaces the checkpoint's
    /// system prompt, an empty one leaves it out; a first message of [`Role::System`] does the same.
    ///
    /// # Errors
    /// The messages make no conversation, one has neither text nor picture, a text holds special tokens, or the prompt does
    /// not fit.
    pub fn chat_prompt(&self, messages: &[Message], system: Option<&str>) -> Result<Prompt> {
        let (own_system, turns) = split_system(messages)?;
        let first = messages.len() - turns.len();
        let default = if self.system_prompt { DEFAULT_SYSTEM_PROMPT } else { "" };
        let system = own_system.as_deref().or(system).unwrap_or(default);
        self.refuse_special(system)?;

        let mut text = String::new();
        if !system.is_empty() {
            text.push_str(system);
            text.push_str("\n\n");
        }
        let mut images = 0;
        for (i, message) in turns.iter().enumerate() {
            let index = first + i;
            let (role, end) = match message.role {
                Role::System => {
                    return Err(Error::Conversation { index, problem: "a system message comes first or not at all" });
                }
                Role::User => (self.texts.user, "\n\n"),
                Role::Assistant => (self.texts.assistant, self.texts.eos.as_str()),
            };
            let content = self.content(message)?;
            if strip(&content).is_empty() {
                return Err(if turns.len() == 1 {
                    Error::EmptyPrompt
                } else {
                    Error::Conversation { index, problem: "it is empty" }
                });
            }
            text.push_str(&format!("{role}: {}{end}", strip(&content)));
            images += message.parts.iter().filter(|part| **part == Part::Image).count();
        }
        match turns.last() {
            None => return Err(Error::EmptyPrompt),
            Some(last) if last.role != Role::User => {
                return Err(Error::Conversation {
                    index: messages.len() - 1,
                    problem: "the last message must be the user's",
                });
            }
            Some(_) => {}
        }
        text.push_str(&format!("{}:", self.texts.assistant));

        let prompt = self.expand(&self.encode(strip(&text))?)?;
        prompt.expect_images(images)?;
        Ok(prompt)
    }

    /// The prompt for an answer to a text that goes to the tokeniser as it is; every image placeholder in it is expanded.
    ///
    /// # Errors
    /// The text is empty, or the prompt does not fit.
    pub fn raw_prompt(&self, text: &str) -> Result<Prompt> {
        if strip(text).is_empty() {
            return Err(Error::EmptyPrompt);
        }
        self.expand(&self.encode(text)?)
    }

    /// A message's text. A picture is its placeholder and a line break, as in both programs.
    fn content(&self, message: &Message) -> Result<String> {
        let mut content = String::new();
        // Texts that touch are checked as one: the halves of a special token are one too.
        let mut run = String::new();
        for part in &message.parts {
            match part {
                Part::Text(text) => run.push_str(text),
                Part::Image => {
                    self.refuse_special(&run)?;
                    content.push_str(&std::mem::take(&mut run));
                    content.push_str(&self.texts.image_placeholder);
                    content.push('\n');
                }
            }
        }
        self.refuse_special(&run)?;
        content.push_str(&run);
        Ok(content)
    }

    /// Puts image start, placeholders and image end in the place of every placeholder.
    fn expand(&self, ids: &[u32]) -> Result<Prompt> {
        let special = self.special();
        let count = ids.iter().filter(|id| **id == special.image_placeholder).count();
        let length = ids.len() + count * (self.image_tokens + 1);
        if length > self.max_positions {
            return Err(Error::PromptTooLong { prompt: length, to_come: 0, limit: self.max_positions });
        }
        let mut prompt = Prompt { ids: Vec::with_capacity(length), images: Vec::with_capacity(count) };
        for &id in ids {
            if id != special.image_placeholder {
                prompt.ids.push(id);
                continue;
            }
            prompt.ids.push(special.begin_of_image);
            let start = prompt.ids.len();
            prompt.ids.resize(start + self.image_tokens, special.image_placeholder);
            prompt.images.push(start..start + self.image_tokens);
            prompt.ids.push(special.end_of_image);
        }
        Ok(prompt)
    }
}

/// Separates a first system message, which holds words only.
fn split_system(messages: &[Message]) -> Result<(Option<String>, &[Message])> {
    let Some((first, turns)) = messages.split_first().filter(|(first, _)| first.role == Role::System) else {
        return Ok((None, messages));
    };
    let mut text = String::new();
    for part in &first.parts {
        match part {
            Part::Text(words) => text.push_str(words),
            Part::Image => return Err(Error::Conversation { index: 0, problem: "a system message cannot hold a picture" }),
        }
    }
    Ok((Some(text), turns))
}

/// Python's `str.strip()`, which the original template applies: Unicode white space and four control characters.
fn strip(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c))
}
