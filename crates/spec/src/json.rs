//! Reading JSON configuration so that every complaint names file, key and value.
//!
//! A [`Section`] is one JSON object at a known place. `null` counts as absent, as in Python's `config.get(key, None)`.

use serde_json::{Map, Value};

use crate::{Error, Result};

/// Largest width, height, count or vocabulary that is believed; keeps products of four of them inside a `u64` with room.
pub(crate) const MAX_DIM: usize = 1 << 20;

/// Parses a file, or says at which line and column it stops being JSON.
pub(crate) fn parse(file: &str, bytes: &[u8]) -> Result<Value> {
    serde_json::from_slice(bytes).map_err(|e| {
        let message = e.to_string();
        let at = message.rfind(" at line ").unwrap_or(message.len());
        Error::Json { file: file.into(), line: e.line(), column: e.column(), message: message[..at].to_string() }
    })
}

/// A value that means "this feature is not used".
#[derive(Clone, Copy)]
pub(crate) enum Neutral {
    /// Absent, null, false, 0 or empty.
    Off,
    /// Absent, null or true.
    On,
    /// Absent, null or this number.
    Number(f64),
    /// Absent, null or one of these texts.
    Text(&'static [&'static str]),
}

/// One JSON object of a configuration file.
pub(crate) struct Section<'a> {
    file: &'a str,
    path: String,
    map: &'a Map<String, Value>,
}

impl<'a> Section<'a> {
    pub(crate) fn root(file: &'a str, value: &'a Value) -> Result<Section<'a>> {
        match value {
            Value::Object(map) => Ok(Section { file, path: String::new(), map }),
            other => Err(Error::BadValue {
                file: file.into(),
                key: "the file".into(),
                value: brief(other),
                expected: "an object".into(),
            }),
        }
    }

    /// The value of a key, unless it is absent or null.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &'a str> {
        self.map.iter().filter(|(_, v)| !v.is_null()).map(|(k, _)| k.as_str())
    }

    pub(crate) fn section(&self, key: &str) -> Result<Section<'a>> {
        self.find_section(key)?.ok_or_else(|| self.missing(key))
    }

    pub(crate) fn find_section(&self, key: &str) -> Result<Option<Section<'a>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Section { file: self.file, path: self.name(key), map })),
            Some(_) => Err(self.bad(key, "an object")),
        }
    }

    /// A positive whole number up to [`MAX_DIM`].
    pub(crate) fn find_dim(&self, key: &str) -> Result<Option<usize>> {
        self.get(key)
            .map(|v| dim(v).ok_or_else(|| self.bad(key, &format!("a whole number from 1 to {MAX_DIM}"))))
            .transpose()
    }

    pub(crate) fn dim(&self, key: &str) -> Result<usize> {
        self.find_dim(key)?.ok_or_else(|| self.missing(key))
    }

    pub(crate) fn dim_or(&self, key: &str, default: usize) -> Result<usize> {
        Ok(self.find_dim(key)?.unwrap_or(default))
    }

    /// A side length: one number, or a pair of equal ones.
    pub(crate) fn side_or(&self, key: &str, default: usize) -> Result<usize> {
        match self.get(key) {
            Some(Value::Array(sides)) => match sides.as_slice() {
                [a, b] if a == b => dim(a).ok_or_else(|| self.bad(key, "a positive side length")),
                _ => Err(self.unsupported(key, "a square")),
            },
            _ => self.dim_or(key, default),
        }
    }

    pub(crate) fn find_dims(&self, key: &str) -> Result<Option<Vec<usize>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let list = value.as_array().and_then(|list| list.iter().map(dim).collect::<Option<Vec<usize>>>());
        list.map(Some).ok_or_else(|| self.bad(key, "a list of positive whole numbers"))
    }

    pub(crate) fn find_id(&self, key: &str) -> Result<Option<u32>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.map(Some).ok_or_else(|| self.bad(key, "a token id"))
    }

    /// A number that is finite also as `f32`.
    pub(crate) fn find_number(&self, key: &str) -> Result<Option<f64>> {
        self.get(key).map(|v| number(v).ok_or_else(|| self.bad(key, "a finite number"))).transpose()
    }

    pub(crate) fn number_or(&self, key: &str, default: f64) -> Result<f64> {
        Ok(self.find_number(key)?.unwrap_or(default))
    }

    /// Three numbers, one per colour channel.
    pub(crate) fn find_rgb(&self, key: &str) -> Result<Option<[f64; 3]>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let list = value.as_array().and_then(|list| list.iter().map(number).collect::<Option<Vec<f64>>>());
        let rgb = list.and_then(|list| <[f64; 3]>::try_from(list).ok());
        rgb.map(Some).ok_or_else(|| self.bad(key, "three finite numbers"))
    }

    pub(crate) fn find_flag(&self, key: &str) -> Result<Option<bool>> {
        self.get(key).map(|v| v.as_bool().ok_or_else(|| self.bad(key, "true or false"))).transpose()
    }

    pub(crate) fn find_text(&self, key: &str) -> Result<Option<&'a str>> {
        self.get(key).map(|v| v.as_str().ok_or_else(|| self.bad(key, "a text"))).transpose()
    }

    /// The text of a token, written as a text or as an object with `content` (how transformers stores an added token).
    pub(crate) fn find_token(&self, key: &str) -> Result<Option<String>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(Value::Object(token)) => {
                let content = token.get("content").and_then(Value::as_str);
                content.map(|text| Some(text.to_string())).ok_or_else(|| self.bad(key, "a token with a content"))
            }
            Some(_) => Err(self.bad(key, "a token's text")),
        }
    }

    /// Refuses every listed key whose value would switch something on that is not computed.
    pub(crate) fn refuse_unless(&self, rules: &[(&str, Neutral)]) -> Result<()> {
        for (key, neutral) in rules {
            let Some(value) = self.get(key) else { continue };
            let (holds, supported) = match neutral {
                Neutral::Off => (is_off(value), "off".to_string()),
                Neutral::On => (value.as_bool() == Some(true), "true".to_string()),
                Neutral::Number(n) => (number(value) == Some(*n), n.to_string()),
                Neutral::Text(texts) => (value.as_str().is_some_and(|t| texts.contains(&t)), texts.join(", ")),
            };
            if !holds {
                return Err(self.unsupported(key, &supported));
            }
        }
        Ok(())
    }

    /// As [`Section::refuse_unless`] with one text, which must be present.
    pub(crate) fn require_text(&self, key: &str, supported: &'static str) -> Result<()> {
        match self.find_text(key)? {
            None => Err(self.missing(key)),
            Some(text) if text == supported => Ok(()),
            Some(_) => Err(self.unsupported(key, supported)),
        }
    }

    pub(crate) fn missing(&self, key: &str) -> Error {
        Error::MissingKey { file: self.file.into(), key: self.name(key) }
    }

    pub(crate) fn bad(&self, key: &str, expected: &str) -> Error {
        Error::BadValue { file: self.file.into(), key: self.name(key), value: self.show(key), expected: expected.into() }
    }

    pub(crate) fn unsupported(&self, key: &str, supported: &str) -> Error {
        Error::Unsupported {
            file: self.file.into(),
            key: self.name(key),
            value: self.show(key),
            supported: supported.into(),
        }
    }

    fn name(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_string() } else { format!("{}.{key}", self.path) }
    }

    fn show(&self, key: &str) -> String {
        self.map.get(key).map_or_else(|| "absent".to_string(), brief)
    }
}

fn dim(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=MAX_DIM).contains(n))
}

fn number(value: &Value) -> Option<f64> {
    value.as_f64().filter(|n| (*n as f32).is_finite())
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(true) | Value::String(_) => false,
    }
}

/// A value as JSON, shortened: it may come from a hostile file and go to a terminal.
fn brief(value: &Value) -> String {
    const LONGEST: usize = 120;
    let text = value.to_string();
    if text.chars().count() <= LONGEST { text } else { text.chars().take(LONGEST).chain("...".chars()).collect() }
}
