//! Opening the model a verb was asked to use: a directory, one that was fetched from the hub, or `shapes`, which is part of
//! this program.

use std::path::Path;

use janus_spec::Files;

use crate::failure::{Failure, Outcome};
use crate::pull;

macro_rules! embedded {
    ($($name:literal),+ $(,)?) => {
        &[$(($name, include_bytes!(concat!("../shapes/checkpoint/", $name)) as &[u8])),+]
    };
}

/// The default model; trained by `shapes/train.py`.
static SHAPES: &[(&str, &[u8])] = embedded![
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
];

/// The files behind `--model NAME`.
pub(crate) fn files(model: &str) -> Outcome<Files> {
    match model {
        "shapes" => Ok(Files::Embedded(SHAPES)),
        "" => Err(Failure::mistake("--model is empty: give a checkpoint directory, or `shapes`")),
        // A folder of that name comes first: what is written out is meant.
        name if !Path::new(name).exists() => match pull::find(name)? {
            Some(dir) => Ok(Files::open_dir(dir)?),
            None => Ok(Files::open_dir(Path::new(name))?),
        },
        dir => Ok(Files::open_dir(Path::new(dir))?),
    }
}
