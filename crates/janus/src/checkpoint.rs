//! Opening the model a verb was asked to use: a directory, or `shapes`, which is part of this program.

use std::path::Path;

use janus_spec::Files;

use crate::failure::{Failure, Outcome};

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
        dir => Ok(Files::open_dir(Path::new(dir))?),
    }
}
