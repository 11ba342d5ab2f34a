//! Where a checkpoint's files come from. Used by everything that loads: spec, tokeniser and the model crate.

use std::borrow::Cow;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Largest small file (JSON, tokeniser, template) that is read whole, in bytes. The largest published one has 4.7 MB.
const SMALL_FILE_LIMIT: u64 = 64 << 20;

/// The files of one checkpoint.
#[derive(Debug, Clone)]
pub enum Files {
    /// A directory.
    Dir(PathBuf),
    /// Files inside the binary: name and content.
    Embedded(&'static [(&'static str, &'static [u8])]),
}

impl Files {
    /// Opens a directory as a checkpoint.
    ///
    /// # Errors
    /// The directory is missing or is none, or it holds no `config.json`.
    pub fn open_dir(path: impl AsRef<Path>) -> Result<Files> {
        let path = path.as_ref();
        let meta = std::fs::metadata(path).map_err(|source| match source.kind() {
            ErrorKind::NotFound => Error::MissingDir { dir: path.display().to_string() },
            _ => Error::Io { file: path.display().to_string(), source },
        })?;
        if !meta.is_dir() {
            return Err(Error::NotADir { dir: path.display().to_string() });
        }
        let files = Files::Dir(path.to_path_buf());
        if !path.join("config.json").exists() {
            return Err(Error::MissingFile { file: "config.json".into(), place: files.display() });
        }
        Ok(files)
    }

    /// The content of a small file, `None` if the checkpoint has no such file.
    ///
    /// # Errors
    /// The name is no plain file name, the file is larger than 64 MiB or not a regular file, or reading fails.
    pub fn read(&self, name: &str) -> Result<Option<Cow<'_, [u8]>>> {
        check_name(name)?;
        match self {
            Files::Embedded(files) => Ok(files.iter().find(|(n, _)| *n == name).map(|(_, bytes)| Cow::Borrowed(*bytes))),
            Files::Dir(dir) => Ok(read_small(&dir.join(name))?.map(Cow::Owned)),
        }
    }

    /// Like [`Files::read`], but the file must be there.
    ///
    /// # Errors
    /// As [`Files::read`], and [`Error::MissingFile`].
    pub fn require(&self, name: &str) -> Result<Cow<'_, [u8]>> {
        self.read(name)?.ok_or_else(|| Error::MissingFile { file: name.into(), place: self.display() })
    }

    /// The path of a file in a directory, for files that are mapped rather than read; `None` if embedded or absent.
    ///
    /// # Errors
    /// The name is no plain file name (names of weight shards come from an index file, which may lie).
    pub fn path(&self, name: &str) -> Result<Option<PathBuf>> {
        check_name(name)?;
        match self {
            Files::Embedded(_) => Ok(None),
            Files::Dir(dir) => Ok(Some(dir.join(name)).filter(|p| p.is_file())),
        }
    }

    /// The names of all regular files, sorted.
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub fn names(&self) -> Result<Vec<String>> {
        let mut names = match self {
            Files::Embedded(files) => files.iter().map(|(n, _)| (*n).to_string()).collect(),
            Files::Dir(dir) => list(dir).map_err(|source| Error::Io { file: dir.display().to_string(), source })?,
        };
        names.sort();
        Ok(names)
    }

    /// A name for people: the directory, or `embedded`.
    pub fn display(&self) -> String {
        match self {
            Files::Dir(dir) => dir.display().to_string(),
            Files::Embedded(_) => "embedded".into(),
        }
    }
}

/// A name with a separator or a drive would lead out of the checkpoint.
fn check_name(name: &str) -> Result<()> {
    let plain = !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', ':', '\0']);
    if plain { Ok(()) } else { Err(Error::FileName { name: name.into() }) }
}

fn read_small(path: &Path) -> Result<Option<Vec<u8>>> {
    let file = || path.display().to_string();
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::Io { file: file(), source }),
    };
    // Before opening: opening a pipe would wait for a writer.
    if !meta.is_file() {
        return Err(Error::NotAFile { file: file() });
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|f| f.take(SMALL_FILE_LIMIT + 1).read_to_end(&mut bytes))
        .map_err(|source| Error::Io { file: file(), source })?;
    if bytes.len() as u64 > SMALL_FILE_LIMIT {
        return Err(Error::TooLarge { file: file(), limit: SMALL_FILE_LIMIT });
    }
    Ok(Some(bytes))
}

fn list(dir: &Path) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        // Follows links: the hub's cache stores every file as one.
        if entry.path().is_file()
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push(name);
        }
    }
    Ok(names)
}
