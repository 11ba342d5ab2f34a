//! Test data: pictures rendered by `shapes/drawing.py`, and what its scorer finds in them.

use std::path::Path;

use janus_model::image::{Limits, Rgb8, open};
use serde::Deserialize;

use super::scene::{Colour, Object, Shape};

/// One line of a list beside the pictures.
#[derive(Debug, Deserialize)]
struct Line {
    file: String,
    #[serde(default)]
    objects: Vec<Object>,
    #[serde(default)]
    seen: Vec<Theirs>,
}

/// An object as `find_objects` of `drawing.py` describes it.
#[derive(Debug, Deserialize)]
pub(crate) struct Theirs {
    pub(crate) shape: Option<Shape>,
    pub(crate) colour: Option<Colour>,
    pub(crate) cx: f64,
    pub(crate) cy: f64,
    pub(crate) iou: f64,
}

/// A picture with what was drawn or what is to be seen in it.
pub(crate) struct Scene {
    pub(crate) file: String,
    pub(crate) objects: Vec<Object>,
    pub(crate) seen: Vec<Theirs>,
    pub(crate) picture: Rgb8,
}

pub(crate) fn scenes(list: &str) -> Vec<Scene> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/shapes");
    let text = std::fs::read_to_string(dir.join(list)).expect("the list");
    let lines = text.lines().map(|line| serde_json::from_str::<Line>(line).expect("a line of the list"));
    let scene = |line: Line| Scene {
        picture: open(&dir.join(&line.file), &Limits::default()).expect("a picture"),
        file: line.file,
        objects: line.objects,
        seen: line.seen,
    };
    lines.map(scene).collect()
}
