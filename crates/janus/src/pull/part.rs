//! What one stage needs, by ranges: the header of each weight file, then the bytes of the stage's tensors and no others.
//!
//! The files are rebuilt with holes in a folder of their own, where they have their real size and every tensor its real
//! place; the checkpoint's reader then takes the tensors out, and only those become `model.safetensors`. The hub's checksum
//! is of whole files, so the tensors are compared with the model's digest when a worker opens them, not here.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use indicatif::ProgressBar;
use janus_model::Checkpoint;
use janus_model::weights::{Part, Storage, TensorDecl, inventory};
use janus_spec::{Files, ModelSpec};
use reqwest::StatusCode;

use super::archive::Archive;
use super::cache::cannot;
use super::hub::{Commit, Hub, RepoFile, Trouble, chain, rest, starts_at};
use super::{Place, SMALL, bar, pull_index, pull_small};
use crate::args::Pull;
use crate::failure::{Failure, Outcome};
use crate::local::{broken, share};

/// Longest header, directory or pickle that is asked for.
const MAX_HEADER: u64 = 100_000_000;
/// Ranges closer than this are asked for as one.
const GAP: u64 = 64 << 10;
/// What is fetched while the header's length is not known yet.
const GUESS: u64 = 128 << 10;

/// Layers, as they were asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Choice {
    /// First and end.
    Layers(usize, usize),
    /// Which one of how many equal stages, from 0.
    Stage(usize, usize),
}

impl Choice {
    pub(crate) fn of(args: &Pull) -> Option<Choice> {
        let layers = args.layers.map(|(first, end)| Choice::Layers(first, end));
        layers.or_else(|| args.stage.map(|(i, n)| Choice::Stage(i, n)))
    }

    fn range(self, layers: usize) -> Outcome<Range<usize>> {
        match self {
            Choice::Layers(first, end) if end <= layers => Ok(first..end),
            Choice::Layers(first, end) => {
                Err(Failure::mistake(format!("--layers {first}:{end}: the model has {layers} layers")))
            }
            Choice::Stage(i, n) if n <= layers => Ok(share(layers, i, n)),
            Choice::Stage(i, n) => Err(Failure::mistake(format!("--stage {i}/{n}: the model has only {layers} layers"))),
        }
    }
}

/// What a stage of these layers loads.
fn wanted(spec: &ModelSpec, layers: &Range<usize>) -> Vec<TensorDecl> {
    let needed = |part: Part| match part {
        Part::Layer(i) => layers.contains(&i),
        Part::Embeddings => layers.start == 0,
        Part::Heads => layers.end == spec.llm.layers,
        _ => false,
    };
    inventory(spec).into_iter().filter(|tensor| needed(tensor.part)).collect()
}

/// Bytes of one file, in its order.
struct Piece {
    file: usize,
    bytes: Range<u64>,
}

/// Brings the tensors that `choice` needs to the folder `to`. Gives back how many bytes came over the network.
pub(crate) async fn pull(hub: &Hub, commit: &Commit, to: &Path, choice: Choice) -> Outcome<u64> {
    fs::create_dir_all(to).map_err(|e| cannot(to, &e))?;
    let name = match choice {
        Choice::Layers(first, end) => format!("layers-{first}-{end}"),
        Choice::Stage(i, n) => format!("stage-{i}-{n}"),
    };
    let work = to.join(format!(".incomplete-{}-{name}", &commit.id[..12]));
    let place = Place::Dir(work.clone());
    let mut fetched = pull_small(hub, commit, &place).await?;
    let files = Files::open_dir(&work)?;
    let spec = ModelSpec::load(&files)?;
    let wanted = wanted(&spec, &choice.range(spec.llm.layers)?);
    if already(to, &wanted)? {
        fs::remove_dir_all(&work).map_err(|e| cannot(&work, &e))?;
        return Ok(0);
    }

    let (mut weights, mut archives) = (Vec::new(), Vec::new());
    for name in pull_index(hub, commit, &place, &mut fetched).await? {
        let file = hub.file(commit, &name).await?;
        let (archive, came) = frame(hub, commit, &file, &work).await?;
        fetched += came;
        weights.push(file);
        archives.push(archive);
    }
    let checkpoint = Checkpoint::open_part(files)?;
    let pieces = pieces(&checkpoint, &wanted, &weights, &archives)?;
    fetched += fill(hub, commit, &weights, &pieces, &work).await?;

    let out = work.join("out");
    fs::create_dir_all(&out).map_err(|e| cannot(&out, &e))?;
    checkpoint.save_some(&out, spec.layout, &wanted)?;
    // The weights last: with them, the folder is whole.
    for name in SMALL.into_iter().filter(|name| work.join(name).exists()) {
        fs::rename(work.join(name), to.join(name)).map_err(|e| cannot(&to.join(name), &e))?;
    }
    let path = to.join("model.safetensors");
    fs::rename(out.join("model.safetensors"), &path).map_err(|e| cannot(&path, &e))?;
    fs::remove_dir_all(&work).map_err(|e| cannot(&work, &e))?;
    Ok(fetched)
}

/// Whether the folder has these tensors. Another part in it must not be replaced in silence.
fn already(to: &Path, wanted: &[TensorDecl]) -> Outcome<bool> {
    if !to.join("model.safetensors").exists() {
        return Ok(false);
    }
    let there = Checkpoint::open_part(Files::open_dir(to)?)?;
    match wanted.iter().all(|tensor| there.holds(tensor)) {
        true => Ok(true),
        false => Err(Failure::mistake(format!(
            "--to {}: it holds other layers already; give another folder for these",
            to.display()
        ))),
    }
}

/// Makes the file with holes that has everything but tensors.
async fn frame(hub: &Hub, commit: &Commit, file: &RepoFile, work: &Path) -> Outcome<(Option<Archive>, u64)> {
    let path = work.join(&file.name);
    let disk = |e: std::io::Error| cannot(&path, &e);
    let holes = File::options().write(true).create(true).truncate(false).open(&path).map_err(disk)?;
    holes.set_len(file.size).map_err(disk)?;
    let damaged = |reason: String| Failure::mistake(format!("{} of {} {reason}", file.name, commit.repo));
    if file.name.ends_with(".bin") {
        let (archive, came) = Archive::read(async |range| small(hub, commit, file, range).await, file.size).await?;
        // Once: by the next run, content may stand where this puts headers alone.
        let framed = work.join(format!(".{}.framed", file.name));
        if !framed.exists() {
            for (offset, bytes) in archive.frame() {
                holes.write_all_at(bytes, *offset).map_err(disk)?;
            }
            File::create(&framed).map_err(|e| cannot(&framed, &e))?;
        }
        return Ok((Some(archive), came));
    }
    let mut head = small(hub, commit, file, 0..file.size.min(GUESS)).await?;
    let Some((length, _)) = head.split_first_chunk::<8>() else {
        return Err(damaged("is too short to be a safetensors file".to_owned()));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER || length > file.size - 8 {
        return Err(damaged(format!("claims a header of {length} bytes")));
    }
    let end = 8 + length;
    if (head.len() as u64) < end {
        head.extend(small(hub, commit, file, head.len() as u64..end).await?);
    }
    head.truncate(end as usize);
    holes.write_all_at(&head, 0).map_err(disk)?;
    Ok((None, end))
}

/// A few bytes of a file.
async fn small(hub: &Hub, commit: &Commit, file: &RepoFile, range: Range<u64>) -> Outcome<Vec<u8>> {
    if range.end - range.start > MAX_HEADER {
        return Err(broken(format!("{} of {} has a header longer than {MAX_HEADER} bytes", file.name, commit.repo)));
    }
    let mut bytes = Vec::new();
    let silent = ProgressBar::hidden();
    stream(hub, commit, file, range, &silent, |_, chunk| {
        bytes.extend_from_slice(chunk);
        Ok(())
    })
    .await?;
    Ok(bytes)
}

/// Where the tensors are, in order, neighbours joined.
fn pieces(
    checkpoint: &Checkpoint,
    wanted: &[TensorDecl],
    weights: &[RepoFile],
    archives: &[Option<Archive>],
) -> Outcome<Vec<Piece>> {
    let mut found = Vec::new();
    for tensor in wanted {
        let (name, storage) = checkpoint.storage(tensor)?;
        let file = weights.iter().position(|file| file.name == name);
        let file = file.ok_or_else(|| broken(format!("`{}` is in {name}, which nobody named", tensor.name)))?;
        let bytes = match (storage, &archives[file]) {
            (Storage::Bytes(range), _) => range,
            (Storage::Entry(entry), Some(archive)) => archive.span(&entry).ok_or_else(|| {
                Failure::mistake(format!("{name} has no entry `{entry}`, where `{}` should be", tensor.name))
            })?,
            (Storage::Entry(entry), None) => {
                return Err(broken(format!("{name} is no archive, but has an entry `{entry}`")));
            }
        };
        found.push(Piece { file, bytes });
    }
    found.sort_by_key(|piece| (piece.file, piece.bytes.start));
    let mut joined: Vec<Piece> = Vec::new();
    for piece in found {
        match joined.last_mut() {
            Some(last) if last.file == piece.file && piece.bytes.start <= last.bytes.end + GAP => {
                last.bytes.end = last.bytes.end.max(piece.bytes.end);
            }
            _ => joined.push(piece),
        }
    }
    Ok(joined)
}

/// Fetches the pieces into the files with holes. How far it came stands in a file: an interrupted run goes on there.
async fn fill(hub: &Hub, commit: &Commit, weights: &[RepoFile], pieces: &[Piece], work: &Path) -> Outcome<u64> {
    let journal = work.join(".done");
    let disk = |e: std::io::Error| cannot(&journal, &e);
    let done = File::options().read(true).write(true).create(true).truncate(false).open(&journal).map_err(disk)?;
    let mut before = [0; 8];
    let mut ready = done.read_exact_at(&mut before, 0).map_or(0, |()| u64::from_le_bytes(before));
    let total: u64 = pieces.iter().map(|piece| piece.bytes.end - piece.bytes.start).sum();
    let bar = bar(total, "weights");
    let (mut skip, mut came) = (ready, 0);
    for piece in pieces {
        let length = piece.bytes.end - piece.bytes.start;
        let skipped = skip.min(length);
        skip -= skipped;
        if skipped == length {
            continue;
        }
        let file = &weights[piece.file];
        let path = work.join(&file.name);
        let holes = File::options().write(true).open(&path).map_err(|e| cannot(&path, &e))?;
        let range = piece.bytes.start + skipped..piece.bytes.end;
        bar.set_position(ready);
        came += range.end - range.start;
        stream(hub, commit, file, range, &bar, |at, chunk| {
            holes.write_all_at(chunk, at).map_err(|e| cannot(&path, &e))?;
            ready += chunk.len() as u64;
            done.write_all_at(&ready.to_le_bytes(), 0).map_err(disk)
        })
        .await?;
    }
    bar.finish_and_clear();
    Ok(came)
}

/// Every byte of a range once, in order, over as many answers as it takes.
async fn stream(
    hub: &Hub,
    commit: &Commit,
    file: &RepoFile,
    range: Range<u64>,
    bar: &ProgressBar,
    mut take: impl FnMut(u64, &[u8]) -> Outcome,
) -> Outcome {
    let (mut at, mut failed) = (range.start, 0);
    while at < range.end {
        let before = at;
        let attempt = async {
            let mut response = hub.open(commit, file, at, Some(range.end)).await?;
            // A short file may come whole.
            let all = response.status() == StatusCode::OK && at == 0 && range.end == file.size;
            let part = response.status() == StatusCode::PARTIAL_CONTENT && starts_at(response.headers()) == Some(at);
            if !all && !part {
                return Err(Trouble::Final(broken(format!(
                    "{} of {} cannot be had in parts (the answer is {}); fetch all of it, without --stage and --layers",
                    file.name,
                    commit.repo,
                    response.status()
                ))));
            }
            let passing = |reason: String| Trouble::Passing { reason: format!("{}: {reason}", file.name), pause: None };
            while let Some(chunk) = response.chunk().await.map_err(|e| passing(chain(&e)))? {
                let chunk = &chunk[..chunk.len().min((range.end - at) as usize)];
                take(at, chunk).map_err(Trouble::Final)?;
                at += chunk.len() as u64;
                bar.inc(chunk.len() as u64);
            }
            match at == range.end {
                true => Ok(()),
                false => Err(passing(format!("the answer ended at byte {at} of {}", range.end))),
            }
        };
        if let Err(trouble) = attempt.await {
            failed = if at > before { 1 } else { failed + 1 };
            rest(trouble, failed).await?;
        }
    }
    Ok(())
}
