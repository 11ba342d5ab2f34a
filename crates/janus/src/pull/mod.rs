//! `janus pull`: a model from the hub, into the cache that the hub's own library uses, or into a folder; all of it, or what one
//! stage needs.

mod archive;
mod cache;
mod fetch;
mod hub;
mod part;
mod settings;

use std::fs;
use std::path::{Path, PathBuf};

use indicatif::ProgressBar;
use janus_model::Checkpoint;
use janus_spec::{Files, ModelSpec};
use serde::Serialize;

use crate::args::Pull;
use crate::failure::{Failure, Outcome};
use crate::{output, session, terminal};
use cache::{Repo, Shelf, cannot};
use hub::{Commit, Hub, RepoFile};
use settings::Settings;

/// Files beside the weights that a checkpoint may have. Nothing else of a repository is fetched.
const SMALL: [&str; 10] = [
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
];

/// What a run did.
#[derive(Serialize)]
struct Report {
    model: String,
    revision: String,
    commit: String,
    path: PathBuf,
    /// Bytes of weights that came over the network.
    fetched_bytes: u64,
}

pub(crate) fn run(args: Pull) -> Outcome {
    let (repo, settings) = check(&args)?;
    let shelf = Shelf::of(&settings::cache()?, &repo);
    let report = match settings.offline {
        true => offline(&args, &shelf)?,
        false => {
            let hub = Hub::new(settings)?;
            session::runtime()?.block_on(online(&args, &repo, &hub, shelf))?
        }
    };
    if args.json {
        return output::print_json(&report);
    }
    output::print_line(&report.path.display().to_string());
    Ok(())
}

/// What is asked for, and by which settings; the hub is not asked.
pub(crate) fn check(args: &Pull) -> Outcome<(Repo, Settings)> {
    let repo = Repo::parse(&args.model).ok_or_else(|| {
        Failure::mistake(format!("`{}` is no name of a model; expected ORG/NAME, like deepseek-ai/Janus-Pro-1B", args.model))
    })?;
    cache::check_revision(&args.revision)?;
    Ok((repo, Settings::read()?))
}

/// What the cache has already.
fn offline(args: &Pull, shelf: &Shelf) -> Outcome<Report> {
    let absent = |why: &str| {
        Failure::mistake(format!("HF_HUB_OFFLINE is set, and {}@{} is not in the cache: {why}", args.model, args.revision))
    };
    if args.to.is_some() {
        return Err(Failure::mistake("--to fetches from the hub, but HF_HUB_OFFLINE is set"));
    }
    let commit = shelf.commit(&args.revision).ok_or_else(|| absent("it was never fetched"))?;
    let path = shelf.snapshot(&commit);
    Files::open_dir(&path)
        .map_err(janus_model::Error::from)
        .and_then(Checkpoint::open)
        .map_err(|e| absent(&e.to_string()))?;
    Ok(Report { model: args.model.clone(), revision: args.revision.clone(), commit, path, fetched_bytes: 0 })
}

async fn online(args: &Pull, repo: &Repo, hub: &Hub, shelf: Shelf) -> Outcome<Report> {
    let commit = hub.commit(repo, &args.revision).await?;
    let (path, fetched_bytes) = match (&args.to, part::Choice::of(args)) {
        (Some(dir), Some(choice)) => (dir.clone(), part::pull(hub, &commit, dir, choice).await?),
        (Some(dir), None) => (dir.clone(), pull_all(hub, &commit, &Place::Dir(dir.clone())).await?),
        (None, _) => {
            let path = shelf.snapshot(&commit.id);
            let place = Place::Shelf(shelf);
            let bytes = pull_all(hub, &commit, &place).await?;
            // At the end: a name that is found is whole.
            if let Place::Shelf(shelf) = &place {
                shelf.set_commit(&args.revision, &commit.id)?;
            }
            (path, bytes)
        }
    };
    Ok(Report { model: args.model.clone(), revision: args.revision.clone(), commit: commit.id, path, fetched_bytes })
}

/// Everything that a checkpoint consists of.
async fn pull_all(hub: &Hub, commit: &Commit, place: &Place) -> Outcome<u64> {
    let mut fetched = pull_small(hub, commit, place).await?;
    // Before gigabytes come: whether it is a model for us at all.
    ModelSpec::load(&Files::open_dir(place.folder(commit))?)?;
    for name in pull_index(hub, commit, place, &mut fetched).await? {
        fetched += place.take(hub, commit, &hub.file(commit, &name).await?).await?;
    }
    Ok(fetched)
}

async fn pull_small(hub: &Hub, commit: &Commit, place: &Place) -> Outcome<u64> {
    let present = commit.names();
    if !present.contains(&"config.json") {
        return Err(Failure::mistake(format!("{} has no config.json: it is no checkpoint of Janus", commit.repo)));
    }
    let mut fetched = 0;
    for name in SMALL.into_iter().filter(|name| present.contains(name)) {
        fetched += place.take(hub, commit, &hub.file(commit, name).await?).await?;
    }
    Ok(fetched)
}

/// Names of the files that hold the weights, in the order of preference that [`Checkpoint::open`] has; an index is fetched.
async fn pull_index(hub: &Hub, commit: &Commit, place: &Place, fetched: &mut u64) -> Outcome<Vec<String>> {
    let present = commit.names();
    for single in ["model.safetensors", "pytorch_model.bin"] {
        if present.contains(&single) {
            return Ok(vec![single.to_owned()]);
        }
        let index = format!("{single}.index.json");
        if !present.contains(&index.as_str()) {
            continue;
        }
        *fetched += place.take(hub, commit, &hub.file(commit, &index).await?).await?;
        let files = Files::open_dir(place.folder(commit))?;
        let names =
            shards(&files.require(&index)?).map_err(|e| Failure::mistake(format!("{}: {index} {e}", commit.repo)))?;
        return Ok(names);
    }
    Err(Failure::mistake(format!(
        "{} has no weights: expected model.safetensors or pytorch_model.bin, or their index",
        commit.repo
    )))
}

/// Files that an index names.
fn shards(index: &[u8]) -> Result<Vec<String>, String> {
    let index: serde_json::Value = serde_json::from_slice(index).map_err(|e| format!("is not JSON: {e}"))?;
    let map = index["weight_map"].as_object().ok_or("has no object `weight_map`")?;
    let mut names: Vec<String> = map.values().filter_map(|name| Some(name.as_str()?.to_owned())).collect();
    names.sort();
    names.dedup();
    match names.iter().find(|name| name.is_empty() || name.contains(['/', '\\']) || name.starts_with('.')) {
        Some(name) => Err(format!("names `{name}`, which is not a plain file name")),
        None => Ok(names),
    }
}

/// Where files go.
enum Place {
    Shelf(Shelf),
    Dir(PathBuf),
}

impl Place {
    fn folder(&self, commit: &Commit) -> PathBuf {
        match self {
            Place::Shelf(shelf) => shelf.snapshot(&commit.id),
            Place::Dir(dir) => dir.clone(),
        }
    }

    /// Brings a file there unless it is there. Gives back how many bytes came over the network.
    async fn take(&self, hub: &Hub, commit: &Commit, file: &RepoFile) -> Outcome<u64> {
        match self {
            Place::Dir(dir) => {
                fs::create_dir_all(dir).map_err(|e| cannot(dir, &e))?;
                let path = dir.join(&file.name);
                if fetch::is_there(&path, file) {
                    return Ok(0);
                }
                bring(hub, commit, file, &dir.join(format!(".{}.incomplete", file.name)), &path).await
            }
            Place::Shelf(shelf) => {
                let blob = shelf.blob(file.sum.etag());
                let there = || fs::metadata(&blob).is_ok_and(|meta| meta.len() == file.size);
                let mut came = 0;
                if !there() {
                    let _alone = shelf.lock(file.sum.etag())?;
                    // Whoever held the lock may have brought it.
                    if !there() {
                        let parent = blob.parent().unwrap_or(&blob);
                        fs::create_dir_all(parent).map_err(|e| cannot(parent, &e))?;
                        let partial = parent.join(format!("{}.incomplete", file.sum.etag()));
                        came = bring(hub, commit, file, &partial, &blob).await?;
                    }
                }
                shelf.link(&commit.id, &file.name, file.sum.etag())?;
                Ok(came)
            }
        }
    }
}

/// Through `partial`, which stays if we are interrupted.
async fn bring(hub: &Hub, commit: &Commit, file: &RepoFile, partial: &Path, to: &Path) -> Outcome<u64> {
    let bar = bar(file.size, &file.name);
    let came = fetch::fetch(hub, commit, file, partial, &bar).await?;
    bar.finish_and_clear();
    fs::rename(partial, to).map_err(|e| cannot(to, &e))?;
    Ok(came)
}

fn bar(bytes: u64, what: &str) -> ProgressBar {
    terminal::bytes(bytes, what)
}

/// The folder of a model that was fetched before, if `model` is a name of one: `org/name`, or `org/name@revision`.
///
/// # Errors
/// It is such a name and not there: the message says how to get it.
pub(crate) fn find(model: &str) -> Outcome<Option<PathBuf>> {
    let (name, revision) = model.split_once('@').unwrap_or((model, "main"));
    let Some(repo) = Repo::parse(name) else { return Ok(None) };
    cache::check_revision(revision)?;
    let cache = settings::cache()?;
    let shelf = Shelf::of(&cache, &repo);
    let found = shelf.commit(revision).map(|commit| shelf.snapshot(&commit));
    let flag = if revision == "main" { String::new() } else { format!(" --revision {revision}") };
    match found.filter(|path| has_weights(path)) {
        Some(path) => Ok(Some(path)),
        None => Err(Failure::mistake(format!(
            "no such model directory: {model}; nor is all of a model of that name in the cache at {}: \
             `janus pull {name}{flag}` fetches it",
            cache.display()
        ))),
    }
}

fn has_weights(snapshot: &Path) -> bool {
    ["model.safetensors", "pytorch_model.bin"]
        .iter()
        .any(|single| snapshot.join(single).exists() || snapshot.join(format!("{single}.index.json")).exists())
}

#[cfg(test)]
mod tests {
    use super::shards;

    #[test]
    fn shards_are_plain_files() {
        let index = |name: &str| format!(r#"{{"weight_map":{{"a":"x-1","b":"{name}","c":"x-1"}}}}"#);
        assert_eq!(shards(index("x-2").as_bytes()).unwrap(), ["x-1", "x-2"]);
        for bad in ["../x", "/etc/passwd", "", ".x"] {
            assert!(shards(index(bad).as_bytes()).is_err(), "{bad}");
        }
        assert!(shards(b"{}").unwrap_err().contains("weight_map"));
    }
}
