//! Special tokens: their texts by the checkpoint's own files, their ids by text. Ids differ between the published
//! checkpoints (the pad id, for one), so none is written down here.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::json::{self, Section};
use crate::{Error, Files, Layout, ModelSpec, Result};

/// How the roles of a conversation are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// `User` and `Assistant`, plain words: Janus-1.3B.
    Janus,
    /// `<|User|>` and `<|Assistant|>`, single tokens: Janus-Pro.
    JanusPro,
}

/// Ids of the tokens that prompts are built with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SpecialIds {
    /// First of every prompt.
    pub bos: u32,
    /// End of an answer.
    pub eos: u32,
    /// What the unconditional prompt is made of; it is attended like any token.
    pub pad: u32,
    /// Opens a picture.
    pub begin_of_image: u32,
    /// Closes a picture that is looked at; never fed after a painted one.
    pub end_of_image: u32,
    /// Stands for one patch of a picture.
    pub image_placeholder: u32,
    /// `<|User|>`, where the tokeniser has it.
    pub user: Option<u32>,
    /// `<|Assistant|>`, where the tokeniser has it.
    pub assistant: Option<u32>,
}

/// Texts of the tokens that prompts are built with.
#[derive(Debug, Clone)]
pub(crate) struct Texts {
    pub(crate) bos: String,
    pub(crate) eos: String,
    pub(crate) begin_of_image: String,
    pub(crate) end_of_image: String,
    pub(crate) image_placeholder: String,
    pub(crate) user: &'static str,
    pub(crate) assistant: &'static str,
    pad: String,
    /// Looked for if the tokeniser has no `pad`.
    second_pad: String,
}

const BOS: &str = "<｜begin▁of▁sentence｜>";
const EOS: &str = "<｜end▁of▁sentence｜>";
const PAD: &str = "<｜▁pad▁｜>";
const USER: &str = "<|User|>";
const ASSISTANT: &str = "<|Assistant|>";

impl Texts {
    /// The texts by tokenizer_config.json, special_tokens_map.json and processor_config.json, else the published ones.
    pub(crate) fn read(files: &Files, layout: Layout) -> Result<Texts> {
        let (config, map, processor) = ("tokenizer_config.json", "special_tokens_map.json", "processor_config.json");
        let values = [object(files, config)?, object(files, map)?, object(files, processor)?];
        let config = &Section::root(config, &values[0])?;
        let map = &Section::root(map, &values[1])?;
        let processor = Section::root(processor, &values[2])?;

        // transformers lets the map overrule, unless the configuration lists its added tokens itself.
        let token = |key: &str| -> Result<Option<String>> {
            let (first, second) = if config.get("added_tokens_decoder").is_some() { (config, map) } else { (map, config) };
            Ok(first.find_token(key)?.or(second.find_token(key)?))
        };
        let or = |text: Option<String>, default: &str| text.unwrap_or_else(|| default.to_string());
        let tokeniser_pad = or(token("pad_token")?, PAD);
        let (boi, eoi, image, pad) = match layout {
            // The original processor looks its pad up by this tag, whatever the tokeniser calls its pad.
            Layout::Original => (
                processor.find_token("image_start_tag")?,
                processor.find_token("image_end_tag")?,
                processor.find_token("image_tag")?,
                or(processor.find_token("pad_tag")?, PAD),
            ),
            Layout::Transformers => (token("boi_token")?, token("eoi_token")?, token("image_token")?, tokeniser_pad.clone()),
        };
        Ok(Texts {
            bos: or(token("bos_token")?, BOS),
            eos: or(token("eos_token")?, EOS),
            begin_of_image: or(boi, "<begin_of_image>"),
            end_of_image: or(eoi, "<end_of_image>"),
            image_placeholder: or(image, "<image_placeholder>"),
            user: "User",
            assistant: "Assistant",
            pad,
            second_pad: tokeniser_pad,
        })
    }

    /// Looks every text up; chooses the roles by what the tokeniser has.
    pub(crate) fn resolve(&mut self, spec: &ModelSpec, id_of: impl Fn(&str) -> Option<u32>) -> Result<(SpecialIds, Family)> {
        let find = |token: &str, purpose| id_of(token).ok_or_else(|| Error::MissingToken { token: token.into(), purpose });
        let (user, assistant) = (id_of(USER), id_of(ASSISTANT));
        let family = if user.is_some() && assistant.is_some() { Family::JanusPro } else { Family::Janus };
        if family == Family::JanusPro {
            (self.user, self.assistant) = (USER, ASSISTANT);
        }
        let pad = spec.generation.pad_token_id.or_else(|| id_of(&self.pad)).or_else(|| id_of(&self.second_pad));
        let no_pad = || Error::MissingToken { token: self.pad.clone(), purpose: "the unconditional prompt" };
        let ids = SpecialIds {
            bos: find(&self.bos, "start of every prompt")?,
            eos: find(&self.eos, "end of an answer")?,
            pad: pad.ok_or_else(no_pad)?,
            begin_of_image: find(&self.begin_of_image, "start of a picture")?,
            end_of_image: find(&self.end_of_image, "end of a picture")?,
            image_placeholder: find(&self.image_placeholder, "place of a picture")?,
            user,
            assistant,
        };
        Ok((ids, family))
    }
}

/// A file's JSON, or an empty object if the checkpoint has no such file.
fn object(files: &Files, name: &str) -> Result<Value> {
    let value = files.read(name)?.map(|bytes| json::parse(name, &bytes)).transpose()?;
    Ok(value.unwrap_or_else(|| Value::Object(Map::new())))
}
