//! One file's bytes onto the disk: what is there already is kept, a cut is mended, and the whole is compared with its
//! checksum before anybody sees it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use indicatif::ProgressBar;
use reqwest::StatusCode;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::cache::cannot;
use super::hub::{Commit, Hub, RepoFile, Sum, Trouble, chain, rest, starts_at};
use crate::failure::Outcome;
use crate::local::broken;

/// A checksum in the making.
enum Hash {
    Sha256(Sha256),
    Git(Sha1),
}

impl Hash {
    fn new(file: &RepoFile) -> Hash {
        match file.sum {
            Sum::Sha256(_) => Hash::Sha256(Sha256::new()),
            // git hashes a header that tells the length before the content.
            Sum::Git(_) => Hash::Git(Sha1::new_with_prefix(format!("blob {}\0", file.size))),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Hash::Sha256(hash) => hash.update(bytes),
            Hash::Git(hash) => hash.update(bytes),
        }
    }

    fn finish(self) -> String {
        match self {
            Hash::Sha256(hash) => janus_wire::hello::hex(&hash.finalize()),
            Hash::Git(hash) => janus_wire::hello::hex(&hash.finalize()),
        }
    }
}

/// Whether the file at `path` has this content already.
pub(crate) fn is_there(path: &Path, file: &RepoFile) -> bool {
    let Ok(mut found) = File::open(path) else { return false };
    let right_size = found.metadata().is_ok_and(|meta| meta.is_file() && meta.len() == file.size);
    let mut hash = Hash::new(file);
    right_size && feed(&mut found, &mut hash).is_ok() && hash.finish() == file.sum.etag()
}

fn feed(file: &mut File, hash: &mut Hash) -> std::io::Result<u64> {
    let (mut buffer, mut total) = (vec![0; 1 << 20], 0);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(total),
            count => hash.update(&buffer[..count]),
        }
        total = file.stream_position()?;
    }
}

/// A file that fills up.
struct Partial<'a> {
    path: &'a Path,
    file: File,
    length: u64,
    hash: Hash,
}

impl<'a> Partial<'a> {
    /// Goes on with what is there.
    fn open(path: &'a Path, file: &RepoFile) -> std::io::Result<Partial<'a>> {
        let mut there = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut hash = Hash::new(file);
        let mut length = feed(&mut there, &mut hash)?;
        if length > file.size {
            there.set_len(0)?;
            (length, hash) = (0, Hash::new(file));
        }
        there.seek(SeekFrom::Start(length))?;
        Ok(Partial { path, file: there, length, hash })
    }

    fn restart(&mut self, file: &RepoFile) -> std::io::Result<()> {
        (self.length, self.hash) = (0, Hash::new(file));
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0)).map(drop)
    }

    fn push(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all(bytes)?;
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }
}

/// Brings all of `file` to `path`, verified. Gives back how many bytes came over the network.
pub(crate) async fn fetch(hub: &Hub, commit: &Commit, file: &RepoFile, path: &Path, bar: &ProgressBar) -> Outcome<u64> {
    let mut partial = Partial::open(path, file).map_err(|e| cannot(path, &e))?;
    let mut came = 0;
    // What was there before may be damaged; what we have brought ourselves was sent like that.
    let mut inherited = partial.length > 0;
    loop {
        bar.set_position(partial.length);
        came += fill(hub, commit, file, &mut partial, bar).await?;
        let found = std::mem::replace(&mut partial.hash, Hash::new(file)).finish();
        if found == file.sum.etag() {
            partial.file.sync_all().map_err(|e| cannot(path, &e))?;
            return Ok(came);
        }
        partial.restart(file).map_err(|e| cannot(path, &e))?;
        if !std::mem::take(&mut inherited) {
            return Err(broken(format!(
                "{} of {} has checksum {found}, but the hub says {}: it was damaged on its way, or is not what it says; start \
                 again to fetch it anew",
                file.name,
                commit.repo,
                file.sum.etag()
            )));
        }
        tracing::info!(file = file.name, "what was there did not fit; all of it is fetched again");
    }
}

/// Asks for what is missing until nothing is.
async fn fill(hub: &Hub, commit: &Commit, file: &RepoFile, partial: &mut Partial<'_>, bar: &ProgressBar) -> Outcome<u64> {
    let (mut failed, mut came) = (0, 0);
    while partial.length < file.size {
        let before = partial.length;
        let attempt = stream(hub, commit, file, partial, bar).await;
        let brought = partial.length.saturating_sub(before);
        came += brought;
        if let Err(trouble) = attempt {
            // A line that is cut every now and then brings us to the end all the same.
            failed = if brought > 0 { 1 } else { failed + 1 };
            rest(trouble, failed).await?;
        }
    }
    Ok(came)
}

/// One answer, as far as it goes.
async fn stream(
    hub: &Hub,
    commit: &Commit,
    file: &RepoFile,
    partial: &mut Partial<'_>,
    bar: &ProgressBar,
) -> Result<(), Trouble> {
    let disk = |path: &Path, e: std::io::Error| Trouble::Final(cannot(path, &e));
    let passing = |reason: String| Trouble::Passing { reason: format!("{}: {reason}", file.name), pause: None };
    let mut response = hub.open(commit, file, partial.length, None).await?;
    match response.status() {
        StatusCode::PARTIAL_CONTENT if starts_at(response.headers()) == Some(partial.length) => {}
        // It sends everything, whatever we asked for.
        StatusCode::OK => partial.restart(file).map_err(|e| disk(partial.path, e))?,
        other => {
            partial.restart(file).map_err(|e| disk(partial.path, e))?;
            return Err(passing(format!("the answer ({other}) is not the range that was asked for")));
        }
    }
    while let Some(chunk) = response.chunk().await.map_err(|e| passing(chain(&e)))? {
        if partial.length + chunk.len() as u64 > file.size {
            let reason = format!("{} of {} is longer than the {} bytes it should have", file.name, commit.repo, file.size);
            return Err(Trouble::Final(broken(reason)));
        }
        partial.push(&chunk).map_err(|e| disk(partial.path, e))?;
        bar.set_position(partial.length);
    }
    match partial.length == file.size {
        true => Ok(()),
        false => Err(passing(format!("the answer ended at byte {} of {}", partial.length, file.size))),
    }
}
