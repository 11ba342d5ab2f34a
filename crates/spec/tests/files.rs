//! Directories and embedded files.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::PathBuf;

use common::{Checkpoint, tiny};
use janus_spec::{Error, Files};

/// A fresh directory under the build's own.
fn scratch(name: &str) -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("spec-files-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

#[test]
fn a_directory_and_its_embedded_copy_read_the_same() {
    let dir = Files::open_dir(tiny("transformers")).unwrap();
    let embedded = Checkpoint::tiny("transformers").files();
    for name in ["config.json", "tokenizer.json", "not-there.json"] {
        assert_eq!(dir.read(name).unwrap(), embedded.read(name).unwrap());
    }
    let mut names = dir.names().unwrap();
    names.retain(|n| !n.ends_with(".safetensors"));
    assert_eq!(names, embedded.names().unwrap());
    assert!(dir.path("config.json").unwrap().is_some_and(|p| p.ends_with("config.json")));
    assert_eq!((dir.path("nothing").unwrap(), embedded.path("config.json").unwrap()), (None, None));
    assert_eq!(embedded.display(), "embedded");
}

#[test]
fn what_is_missing_is_named() {
    let dir = scratch("missing");
    assert!(matches!(Files::open_dir(dir.join("nowhere")), Err(Error::MissingDir { dir }) if dir.ends_with("nowhere")));
    std::fs::write(dir.join("plain"), "x").unwrap();
    assert!(matches!(Files::open_dir(dir.join("plain")), Err(Error::NotADir { .. })));
    let error = Files::open_dir(&dir).unwrap_err().to_string();
    assert!(error.starts_with("config.json is missing in ") && error.ends_with(&dir.display().to_string()), "{error}");
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn names_cannot_lead_out() {
    let dir = Files::open_dir(tiny("transformers")).unwrap();
    for name in ["../README.md", "/etc/hostname", "a/b", "..", "", "c:x", "a\\b"] {
        assert!(matches!(dir.read(name), Err(Error::FileName { .. })), "{name}");
        assert!(matches!(dir.path(name), Err(Error::FileName { .. })), "{name}");
    }
}

#[test]
fn only_regular_files_of_a_sane_size_are_read() {
    let dir = scratch("size");
    std::fs::create_dir(dir.join("config.json")).unwrap();
    let files = Files::open_dir(&dir).unwrap();
    assert!(matches!(files.read("config.json"), Err(Error::NotAFile { .. })));
    // Sparse: it takes no room.
    std::fs::File::create(dir.join("tokenizer.json")).unwrap().set_len((64 << 20) + 1).unwrap();
    assert!(matches!(files.read("tokenizer.json"), Err(Error::TooLarge { .. })));
    std::fs::remove_dir_all(dir).unwrap();
}
