//! `janus pull` against a hub in this process: what it fetches, what it does when things go wrong, and that the hub's own
//! library and we read each other's cache.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "harness/hub.rs"]
mod hub;
mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hub::{COMMIT, Fault, Hub, REPO, Seen};
use janus_model::Checkpoint;
use janus_model::weights::{Part, inventory};
use janus_spec::Files;
use serde_json::{Value, json};
use support::checkpoint::Safetensors;
use support::{Run, binary, repository, text, tiny};
use tempfile::TempDir;

const WEIGHTS: &str = "model.safetensors";

/// A home without models, in front of a hub.
struct Home {
    dir: TempDir,
    endpoint: String,
}

impl Home {
    fn new(hub: &Hub) -> Home {
        Home { dir: tempfile::tempdir().unwrap(), endpoint: hub.endpoint.clone() }
    }

    fn janus(&self, args: &[&str], env: &[(&str, &str)]) -> Run {
        let mut command = Command::new("timeout");
        command.arg("120").arg(binary()).args(args).current_dir(self.dir.path()).stdin(Stdio::null());
        for name in ["HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"] {
            command.env_remove(name);
        }
        command.env("HF_ENDPOINT", &self.endpoint).env("HF_HOME", self.dir.path().join("hf")).envs(env.iter().copied());
        let output = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Run { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// A pull that must succeed; what it says of itself.
    fn pull(&self, more: &[&str]) -> Value {
        let run = self.janus(&[&["pull", REPO, "--json"], more].concat(), &[]);
        assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{run:?}");
        serde_json::from_str(&run.stdout).unwrap()
    }

    /// A pull that must not; its words.
    fn refused(&self, code: i32, env: &[(&str, &str)], more: &[&str]) -> String {
        let run = self.janus(&[&["pull", REPO], more].concat(), env);
        assert_eq!((run.code, run.stdout.as_str()), (Some(code), ""), "{run:?}");
        assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
        run.stderr
    }

    fn digest(&self, model: &str) -> String {
        let run = self.janus(&["inspect", "--json", "--model", model], &[]);
        assert_eq!(run.code, Some(0), "{run:?}");
        serde_json::from_str::<Value>(&run.stdout).unwrap()["digest"].as_str().unwrap().to_owned()
    }

    fn shelf(&self) -> PathBuf {
        self.dir.path().join("hf/hub").join(format!("models--{}", REPO.replace('/', "--")))
    }
}

/// Bytes that were sent of one large file.
fn sent(seen: &[Seen]) -> usize {
    seen.iter().filter(|seen| seen.cdn).map(|seen| seen.sent).sum()
}

/// Ranges that were asked of one large file.
fn ranges(seen: &[Seen]) -> Vec<Option<String>> {
    seen.iter().filter(|seen| seen.cdn).map(|seen| seen.range.clone()).collect()
}

#[test]
fn a_model_is_fetched_once_and_used_by_its_name() {
    for form in support::FORMS {
        let hub = Hub::of(&tiny(form));
        let home = Home::new(&hub);
        let report = home.pull(&[]);
        assert_eq!(report["commit"], COMMIT);
        let path = Path::new(report["path"].as_str().unwrap());
        assert_eq!(path, home.shelf().join("snapshots").join(COMMIT));
        assert!(!path.join("README.md").exists());
        assert_eq!(home.digest(REPO), home.digest(&text(&tiny(form))), "{form}");
        assert_eq!(home.digest(&format!("{REPO}@{COMMIT}")), home.digest(REPO));
        hub.seen();
        assert_eq!(home.pull(&[])["fetched_bytes"], 0);
        assert_eq!(hub.seen().len(), 1, "only the listing is asked for again");
        // By another name of the same commit, too.
        assert_eq!(home.pull(&["--revision", "refs/pr/1"])["fetched_bytes"], 0);
        assert_eq!(home.digest(&format!("{REPO}@refs/pr/1")), home.digest(REPO));
    }
}

#[test]
fn a_tilde_is_the_users_folder() {
    let hub = Hub::of(&tiny("transformers"));
    let home = Home::new(&hub);
    let user = home.dir.path().join("user");
    let env = [("HOME", user.to_str().unwrap()), ("HF_HOME", "~/hf")];
    let run = home.janus(&["pull", REPO], &env);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(user.join("hf/hub").is_dir() && !home.dir.path().join("~").exists(), "{run:?}");
}

#[test]
fn a_hub_that_lists_names_alone_is_asked_for_sums() {
    let hub = Hub::of(&tiny("transformers"));
    hub.inside().terse = true;
    let home = Home::new(&hub);
    home.pull(&[]);
    assert!(hub.seen().iter().any(|seen| seen.method == "HEAD"));
    assert_eq!(home.digest(REPO), home.digest(&text(&tiny("transformers"))));
}

#[test]
fn a_cut_download_goes_on_where_it_was() {
    let hub = Hub::of(&tiny("transformers"));
    let home = Home::new(&hub);
    hub.inside().faults = vec![Fault::Cut(1_000_000), Fault::Cut(2_000_000)];
    home.pull(&[]);
    let seen = hub.seen();
    assert_eq!(sent(&seen), hub.size(WEIGHTS), "every byte once");
    let [None, Some(first), Some(second)] = &ranges(&seen)[..] else { panic!("{seen:?}") };
    for (range, most) in [(first, 1_000_000), (second, 3_000_000)] {
        let from: usize = range.strip_prefix("bytes=").unwrap().trim_end_matches('-').parse().unwrap();
        assert!(from > 0 && from <= most, "{range}");
    }
    assert_eq!(home.digest(REPO), home.digest(&text(&tiny("transformers"))));
}

#[test]
fn an_abandoned_pull_goes_on_in_the_next_one() {
    let hub = Hub::of(&tiny("transformers"));
    let home = Home::new(&hub);
    hub.inside().faults = [vec![Fault::Cut(1_500_000)], vec![Fault::Cut(0); 8]].concat();
    let words = home.refused(1, &[], &[]);
    assert!(words.contains("given up after 5 attempts") && words.contains("start again to go on"), "{words}");
    // Until it is whole it has no name.
    let unknown = home.janus(&["inspect", "--model", REPO], &[]);
    assert!(unknown.code == Some(2) && unknown.stderr.contains(&format!("`janus pull {REPO}`")), "{unknown:?}");
    hub.inside().faults.clear();
    hub.seen();
    let report = home.pull(&[]);
    let kept = hub.size(WEIGHTS) - sent(&hub.seen());
    assert!(kept > 0 && kept <= 1_500_000, "{kept}");
    assert_eq!(report["fetched_bytes"], hub.size(WEIGHTS) - kept);
    assert_eq!(home.digest(REPO), home.digest(&text(&tiny("transformers"))));
}

#[test]
fn a_server_that_knows_no_ranges_starts_over() {
    let hub = Hub::of(&tiny("transformers"));
    let home = Home::new(&hub);
    hub.inside().faults = vec![Fault::Cut(1_000_000), Fault::Whole];
    home.pull(&[]);
    assert_eq!(sent(&hub.seen()), hub.size(WEIGHTS) + 1_000_000);
    assert_eq!(home.digest(REPO), home.digest(&text(&tiny("transformers"))));
}

#[test]
fn damaged_bytes_are_refused_and_fetched_anew() {
    let hub = Hub::of(&tiny("transformers"));
    let home = Home::new(&hub);
    hub.inside().faults = vec![Fault::Lie];
    let words = home.refused(1, &[], &[]);
    assert!(words.contains("model.safetensors") && words.contains("checksum") && words.contains("the hub says"), "{words}");
    assert!(home.janus(&["inspect", "--model", REPO], &[]).stderr.contains("janus pull"));
    // What an earlier run left may be damaged too, and costs no more than fetching all of it.
    let etag = hub::sha256(&std::fs::read(tiny("transformers").join(WEIGHTS)).unwrap());
    std::fs::write(home.shelf().join("blobs").join(format!("{etag}.incomplete")), vec![7; 100_000]).unwrap();
    hub.seen();
    home.pull(&[]);
    assert_eq!(sent(&hub.seen()), 2 * hub.size(WEIGHTS) - 100_000);
    assert_eq!(home.digest(REPO), home.digest(&text(&tiny("transformers"))));
}

#[test]
fn the_token_stays_with_the_hub() {
    let hub = Hub::of(&tiny("transformers"));
    hub.inside().token = Some("hf_secret".to_owned());
    let home = Home::new(&hub);
    let run = home.janus(&["pull", REPO], &[("HF_TOKEN", "hf_secret")]);
    assert_eq!(run.code, Some(0), "{run:?}");
    let seen = hub.seen();
    let (cdn, ours): (Vec<_>, Vec<_>) = seen.iter().partition(|seen| seen.cdn);
    assert!(!cdn.is_empty() && cdn.iter().all(|seen| seen.token.is_none()), "{cdn:?}");
    assert!(ours.len() > 3 && ours.iter().all(|seen| seen.token.as_deref() == Some("Bearer hf_secret")), "{ours:?}");
    // A login's file is a token, too.
    let other = Home::new(&hub);
    std::fs::create_dir_all(other.dir.path().join("hf")).unwrap();
    std::fs::write(other.dir.path().join("hf/token"), "hf_secret\n").unwrap();
    other.pull(&[]);
}

#[test]
fn refusals_say_what_to_do() {
    let hub = Hub::of(&tiny("transformers"));
    let home = Home::new(&hub);
    let answer = |status: u16, headers: &[(&'static str, &str)], times: usize| {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        hub.inside().answers = vec![(status, headers); times];
    };
    hub.inside().token = Some("hf_secret".to_owned());
    let words = home.refused(2, &[], &[]);
    assert!(words.contains("401") && words.contains("set HF_TOKEN") && words.contains(REPO), "{words}");
    let words = home.refused(2, &[("HF_TOKEN", "hf_wrong")], &[]);
    assert!(words.contains("401") && words.contains("HF_TOKEN") && !words.contains("hf_wrong"), "{words}");
    hub.inside().token = None;
    answer(403, &[("x-error-message", "you must agree to share your contact")], 1);
    let words = home.refused(2, &[], &[]);
    assert!(words.contains("403") && words.contains("you must agree") && words.contains("accept its terms"), "{words}");
    let words = home.refused(2, &[], &["--revision", "v9"]);
    assert!(words.contains("`v9`") && words.contains("check --revision"), "{words}");
    answer(404, &[("x-error-code", "RepoNotFound")], 1);
    let words = home.refused(2, &[], &[]);
    assert!(words.contains("404") && words.contains("check the name"), "{words}");
    // Who asks too often waits as long as it is told, but not for ever.
    answer(429, &[("retry-after", "0")], 3);
    home.pull(&[]);
    answer(429, &[("retry-after", "0")], 9);
    let words = home.refused(1, &[], &[]);
    assert!(words.contains("429") && words.contains("given up after 5 attempts"), "{words}");
    answer(429, &[("retry-after", "86400")], 1);
    let words = home.refused(1, &[], &[]);
    assert!(words.contains("86400 s"), "{words}");
    answer(503, &[], 1);
    home.pull(&[]);
    drop(hub);
    let words = home.refused(1, &[], &[]);
    assert!(words.contains("127.0.0.1") && words.contains("refused"), "{words}");
}

#[test]
fn what_is_no_checkpoint_costs_no_gigabytes() {
    let hub = Hub::of(&tiny("transformers"));
    let home = Home::new(&hub);
    hub.set("config.json", json!({"model_type": "gpt2"}).to_string());
    let words = home.refused(2, &[], &[]);
    assert!(words.contains("model_type"), "{words}");
    hub.remove("config.json");
    assert!(home.refused(2, &[], &[]).contains("no config.json"));
    assert_eq!(sent(&hub.seen()), 0);
    let words = home.janus(&["pull", "Janus-Pro-1B"], &[]);
    assert!(words.code == Some(2) && words.stderr.contains("ORG/NAME"), "{words:?}");
    let words = home.janus(&["pull", REPO, "--layers", "0:2"], &[]);
    assert!(words.code == Some(2) && words.stderr.contains("--to"), "{words:?}");
}

#[test]
fn offline_nothing_is_asked() {
    let hub = Hub::of(&tiny("transformers"));
    let home = Home::new(&hub);
    let offline = [("HF_HUB_OFFLINE", "1")];
    let words = home.refused(2, &offline, &[]);
    assert!(words.contains("HF_HUB_OFFLINE") && words.contains("not in the cache"), "{words}");
    home.pull(&[]);
    hub.seen();
    let run = home.janus(&["pull", REPO], &offline);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert_eq!(run.stdout.trim(), text(&home.shelf().join("snapshots").join(COMMIT)));
    assert!(hub.seen().is_empty());
}

/// The weights of the hub in two files and an index.
fn shard(hub: &Hub) {
    let whole = hub.remove(WEIGHTS);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("x"), &whole).unwrap();
    let whole = Safetensors::read(&dir.path().join("x"));
    let mut map = serde_json::Map::new();
    let names: Vec<&String> = whole.header.keys().filter(|name| *name != "__metadata__").collect();
    for (i, half) in names.chunks(names.len().div_ceil(2)).enumerate() {
        let file = format!("model-0000{}-of-00002.safetensors", i + 1);
        let mut shard = Safetensors { header: serde_json::Map::new(), data: Vec::new() };
        for name in half {
            let bytes = whole.tensor(name);
            let mut info = whole.header[*name].clone();
            info["data_offsets"] = json!([shard.data.len(), shard.data.len() + bytes.len()]);
            shard.header.insert((*name).clone(), info);
            shard.data.extend(bytes);
            map.insert((*name).clone(), json!(file));
        }
        hub.set(&file, shard.to_bytes());
    }
    hub.set("model.safetensors.index.json", json!({"metadata": {}, "weight_map": map}).to_string());
}

#[test]
fn shards_are_fetched_by_their_index() {
    let hub = Hub::of(&tiny("transformers"));
    shard(&hub);
    let home = Home::new(&hub);
    home.pull(&[]);
    assert_eq!(home.digest(REPO), home.digest(&text(&tiny("transformers"))));
    let dir = home.dir.path().join("plain");
    home.pull(&["--to", dir.to_str().unwrap()]);
    assert_eq!(home.digest(dir.to_str().unwrap()), home.digest(REPO));
    assert_eq!(home.pull(&["--to", dir.to_str().unwrap()])["fetched_bytes"], 0);
}

/// Bytes of the tensors that a stage of these layers loads, if they are those of the whole model.
fn check_part(dir: &Path, form: &str, layers: std::ops::Range<usize>) -> usize {
    let part = Checkpoint::open_part(Files::open_dir(dir).unwrap()).unwrap();
    let whole = Checkpoint::open(Files::open_dir(tiny(form)).unwrap()).unwrap();
    let total = whole.spec.llm.layers;
    let mut bytes = 0;
    for tensor in inventory(&whole.spec) {
        let needed = match tensor.part {
            Part::Layer(i) => layers.contains(&i),
            Part::Embeddings => layers.start == 0,
            Part::Heads => layers.end == total,
            _ => false,
        };
        assert_eq!(part.holds(&tensor), needed, "{form}, {layers:?}: {}", tensor.name);
        if needed {
            assert_eq!(part.tensor_digest(&tensor).unwrap(), whole.tensor_digest(&tensor).unwrap(), "{}", tensor.name);
            bytes += tensor.shape.iter().product::<usize>() * whole.dtype_of(&tensor.name).unwrap().size();
        }
    }
    bytes
}

#[test]
fn a_stage_fetches_only_its_own_tensors() {
    for form in support::FORMS.into_iter().chain(["sharded"]) {
        let (name, sharded) = if form == "sharded" { ("transformers", true) } else { (form, false) };
        let hub = Hub::of(&tiny(name));
        if sharded {
            shard(&hub);
        }
        let home = Home::new(&hub);
        for (flags, layers) in [(["--stage", "0/2"], 0..2), (["--layers", "1:3"], 1..3), (["--stage", "1/2"], 2..4)] {
            let dir = home.dir.path().join(flags[1].replace(['/', ':'], "-"));
            let to = ["--to", dir.to_str().unwrap()];
            hub.seen();
            home.pull(&[&flags[..], &to].concat());
            let seen = hub.seen();
            let needed = check_part(&dir, name, layers.clone());
            assert!(seen.iter().filter(|seen| seen.cdn).all(|seen| seen.range.is_some()), "{seen:?}");
            // Beside its tensors: headers, and small tensors between two of its own.
            let sent = sent(&seen);
            assert!(sent < needed + 400_000, "{form}, {layers:?}: {sent} bytes for {needed}");
            assert!(!support::names(&dir).iter().any(|name| name.starts_with('.')), "{:?}", support::names(&dir));
            assert_eq!(home.pull(&[&flags[..], &to].concat())["fetched_bytes"], 0);
        }
        let dir = home.dir.path().join("0-2");
        let words = home.refused(2, &[], &["--stage", "1/2", "--to", dir.to_str().unwrap()]);
        assert!(words.contains("holds other layers"), "{words}");
        let words = home.refused(2, &[], &["--layers", "0:9", "--to", "x"]);
        assert!(words.contains("the model has 4 layers"), "{words}");
    }
}

#[test]
fn an_abandoned_part_goes_on_in_the_next_run() {
    for form in ["transformers", "original-bin"] {
        let hub = Hub::of(&tiny(form));
        let home = Home::new(&hub);
        let dir = home.dir.path().join("part");
        let flags = ["--layers", "0:3", "--to", dir.to_str().unwrap()];
        hub.inside().budget = Some(350_000);
        let words = home.refused(1, &[], &flags);
        assert!(words.contains("start again to go on"), "{words}");
        assert_eq!(sent(&hub.seen()), 350_000);
        hub.inside().budget = None;
        home.pull(&flags);
        let rest = sent(&hub.seen());
        check_part(&dir, form, 0..3);
        let other = home.dir.path().join("other");
        home.pull(&["--layers", "0:3", "--to", other.to_str().unwrap()]);
        let all = sent(&hub.seen());
        // Headers are asked for again, tensors that came are not.
        assert!(rest + 100_000 < all && all < rest + 350_000, "{form}: {rest} bytes after 350000, {all} at once");
    }
}

#[test]
fn the_readmes_commands_pull_as_written() {
    let readme = std::fs::read_to_string(repository().join("README.md")).unwrap();
    let repo = "deepseek-ai/Janus-Pro-1B";
    let hub = Hub::with(repo, &tiny("original-bin"));
    let home = Home::new(&hub);
    let mut ran = 0;
    for line in readme.lines().filter(|line| line.contains(repo)) {
        let Some(words) = line.strip_prefix("$ janus ") else { continue };
        let mut args = vec![String::new()];
        let mut quoted = false;
        for letter in words.chars() {
            match letter {
                '"' => quoted = !quoted,
                ' ' if !quoted => args.push(String::new()),
                _ => args.last_mut().unwrap().push(letter),
            }
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let run = home.janus(&args, &[]);
        assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{line}");
        ran += 1;
    }
    assert_eq!(ran, 3, "README.md shows a pull, its use, and a part");
    assert!(home.dir.path().join("boat.png").is_file());
    check_part(&home.dir.path().join("stage-0"), "original-bin", 0..2);
}

/// The hub's own library, in a virtual environment in `dir`.
fn library(dir: &Path) -> PathBuf {
    let run = |command: &mut Command| {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    run(Command::new("timeout").args(["120", "python3", "-m", "venv"]).arg(dir));
    let python = dir.join("bin/python");
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"];
    let requirements = repository().join("tests/python/hub-requirements.txt");
    run(Command::new("timeout").arg("300").arg(&python).args(pip).arg(requirements));
    python
}

#[test]
fn the_hubs_library_and_we_read_each_others_cache() {
    let hub = Hub::of(&tiny("transformers"));
    let environment = tempfile::tempdir().unwrap();
    let python = library(environment.path());
    let snapshot = |home: &Home, more: &str| {
        let code = format!("from huggingface_hub import snapshot_download as s; print(s('{REPO}', {more}))");
        let mut command = Command::new("timeout");
        command.arg("120").arg(&python).args(["-c", &code]).env("HF_HUB_DISABLE_XET", "1").env_remove("HF_TOKEN");
        command.env("HF_ENDPOINT", &home.endpoint).env("HF_HOME", home.dir.path().join("hf"));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    // Ours is found without a network,
    let ours = Home::new(&hub);
    let path = ours.pull(&[])["path"].as_str().unwrap().to_owned();
    hub.seen();
    assert_eq!(snapshot(&ours, "local_files_only=True"), path);
    assert!(hub.seen().is_empty());
    // and with one nothing is fetched again but what nobody needs.
    snapshot(&ours, "");
    assert_eq!(sent(&hub.seen()), 0);
    let theirs = Home::new(&hub);
    snapshot(&theirs, "");
    assert_eq!(theirs.digest(REPO), ours.digest(REPO));
    hub.seen();
    assert_eq!(theirs.pull(&[])["fetched_bytes"], 0);
}
