//! The hub's cache on disk, as its Python library lays it out, so that each reads what the other fetched:
//!
//! ```text
//! models--org--name/refs/main                      the commit that `main` was
//! models--org--name/snapshots/<commit>/config.json -> ../../blobs/<etag>
//! models--org--name/blobs/<etag>                   named by SHA-256 (large files) or git's SHA-1
//! .locks/models--org--name/<etag>.lock             held while a blob is fetched
//! ```

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::failure::{Failure, Outcome};

/// A model on the hub: `org/name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Repo(String);

impl fmt::Display for Repo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Repo {
    /// `org/name`, both of letters, digits and `._-`.
    pub(crate) fn parse(text: &str) -> Option<Repo> {
        let (org, name) = text.split_once('/')?;
        let plain = |part: &str| {
            let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
            (1..=96).contains(&part.len()) && part.chars().all(legal) && !part.starts_with(['.', '-'])
        };
        (plain(org) && plain(name)).then(|| Repo(text.to_owned()))
    }
}

/// A branch, tag or commit: a path below `refs`, which must not lead out of it.
pub(crate) fn check_revision(revision: &str) -> Outcome {
    let plain = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.contains(['\\', '\0', ' ']);
    match revision.split('/').all(plain) && revision.len() <= 200 {
        true => Ok(()),
        false => Err(Failure::mistake(format!("--revision `{revision}` is no name of a branch, tag or commit"))),
    }
}

/// Whether it names a commit rather than something that moves.
pub(crate) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

/// One model's folder in the cache.
pub(crate) struct Shelf {
    root: PathBuf,
    locks: PathBuf,
}

impl Shelf {
    pub(crate) fn of(cache: &Path, repo: &Repo) -> Shelf {
        let name = format!("models--{}", repo.0.replace('/', "--"));
        Shelf { locks: cache.join(".locks").join(&name), root: cache.join(name) }
    }

    /// The commit a revision was when it was fetched.
    pub(crate) fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let text = fs::read_to_string(self.root.join("refs").join(revision)).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// Where a commit's files are.
    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// Where the content with this etag is, or will be.
    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(etag)
    }

    /// Waits until nobody else fetches this content.
    pub(crate) fn lock(&self, etag: &str) -> Outcome<File> {
        let path = self.locks.join(format!("{etag}.lock"));
        let locked = fs::create_dir_all(&self.locks).and_then(|()| {
            let file = File::options().create(true).write(true).truncate(false).open(&path)?;
            file.lock().map(|()| file)
        });
        locked.map_err(|e| cannot(&path, &e))
    }

    /// Makes a blob the file `name` of a commit.
    pub(crate) fn link(&self, commit: &str, name: &str, etag: &str) -> Outcome {
        let snapshot = self.snapshot(commit);
        let path = snapshot.join(name);
        let target = Path::new("../../blobs").join(etag);
        fs::create_dir_all(&snapshot).map_err(|e| cannot(&snapshot, &e))?;
        if fs::read_link(&path).is_ok_and(|now| now == target) {
            return Ok(());
        }
        // Beside it first: a reader never finds the name missing.
        let fresh = snapshot.join(format!(".{name}.{}", std::process::id()));
        let _ = fs::remove_file(&fresh);
        let linked = std::os::unix::fs::symlink(&target, &fresh).and_then(|()| fs::rename(&fresh, &path));
        linked.map_err(|e| cannot(&path, &e))
    }

    /// Writes down what a revision is now.
    pub(crate) fn set_commit(&self, revision: &str, commit: &str) -> Outcome {
        if is_commit(revision) {
            return Ok(());
        }
        let path = self.root.join("refs").join(revision);
        let parent = path.parent().unwrap_or(&self.root);
        fs::create_dir_all(parent).map_err(|e| cannot(parent, &e))?;
        let fresh = parent.join(format!(".fresh.{}", std::process::id()));
        let written = fs::write(&fresh, commit).and_then(|()| fs::rename(&fresh, &path));
        written.map_err(|e| cannot(&path, &e))
    }
}

/// A place on this machine that cannot be used.
pub(crate) fn cannot(path: &Path, error: &std::io::Error) -> Failure {
    Failure::mistake(format!("{}: cannot be written: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_an_organisation_and_a_name() {
        assert_eq!(Repo::parse("deepseek-ai/Janus-Pro-1B").unwrap().to_string(), "deepseek-ai/Janus-Pro-1B");
        for not in ["Janus", "a/b/c", "./x", "../x", "/x", "x/", "~/x", "a/.b", "a b/c", "a/b\\c"] {
            assert_eq!(Repo::parse(not), None, "{not}");
        }
    }

    #[test]
    fn a_revision_stays_below_refs() {
        for good in ["main", "refs/pr/1", "v1.0", &"a".repeat(40)] {
            check_revision(good).unwrap();
        }
        for bad in ["", "../main", "a//b", "/main", "a/..", "a b"] {
            assert!(check_revision(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_was_fetched_is_found_by_its_revision() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::of(dir.path(), &Repo::parse("a/b").unwrap());
        let commit = "0123456789abcdef0123456789abcdef01234567";
        assert_eq!(shelf.commit("main"), None);
        let blob = shelf.blob("e1");
        fs::create_dir_all(blob.parent().unwrap()).unwrap();
        fs::write(&blob, "content").unwrap();
        (0..2).for_each(|_| shelf.link(commit, "config.json", "e1").unwrap());
        shelf.set_commit("refs/pr/1", commit).unwrap();
        assert_eq!(shelf.commit("refs/pr/1").as_deref(), Some(commit));
        assert_eq!(
            fs::read_to_string(dir.path().join("models--a--b/snapshots").join(commit).join("config.json")).unwrap(),
            "content"
        );
    }
}
