//! What is fed with bytes that nobody vouches for: one function for each kind, which returns whatever they are. It panics
//! only if something is wrong with us. [`TARGETS`] says where each begins.
//!
//! `fuzz_targets` hand them to libFuzzer; `tests/fuzz.rs` includes this file and mutates the seeds by itself.
#![allow(clippy::unwrap_used, unreachable_pub, dead_code)]

mod stage;

use std::io::{Cursor, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use janus_cluster::plan::PipelinePlan;
use janus_cluster::{Candidate, Member};
use janus_model::{Checkpoint, image};
use janus_spec::{Files, ModelSpec, Tokenizer};
use janus_wire::v1::{AdmittedRequest, PipelineLogs};
use prost::Message;
use zip::CompressionMethod;
use zip::write::SimpleFileOptions;

pub use stage::frames;

/// A target: its name, its entry point, and valid inputs to begin with.
pub type Target = (&'static str, fn(&[u8]), fn() -> Vec<Vec<u8>>);

/// All targets.
pub const TARGETS: [Target; 7] = [
    ("frames", frames, stage::seeds),
    ("checkpoint", checkpoint, checkpoint_seeds),
    ("config", config, config_seeds),
    ("pictures", pictures, picture_seeds),
    ("tokens", tokens, token_seeds),
    ("records", records, record_seeds),
    ("lines", lines, line_seeds),
];

/// The reference data of the tests.
fn tiny() -> PathBuf {
    // From this package or from the one that includes this file.
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    [here.join("data/tiny-a"), here.join("../tests/data/tiny-a")].into_iter().find(|dir| dir.is_dir()).unwrap()
}

fn read(path: &str) -> Vec<u8> {
    std::fs::read(tiny().join(path)).unwrap()
}

/// A checkpoint in a folder in memory, in which one file is written anew.
struct Folder(tempfile::TempDir);

impl Folder {
    /// The configuration of a layout of the reference data, without weights.
    fn of(layout: &str) -> Folder {
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        for name in ["config.json", "preprocessor_config.json", "processor_config.json"] {
            std::fs::write(dir.path().join(name), read(&format!("{layout}/{name}"))).unwrap();
        }
        Folder(dir)
    }

    fn put(&self, name: &str, data: &[u8]) -> Files {
        std::fs::write(self.0.path().join(name), data).unwrap();
        Files::open_dir(self.0.path()).unwrap()
    }
}

thread_local! {
    static TRANSFORMERS: Folder = Folder::of("transformers");
    static ORIGINAL: Folder = Folder::of("original-bin");
}

/// Headers of weights: the first byte says whether of safetensors, of a zip archive, or the pickle in a sound one.
pub fn checkpoint(data: &[u8]) {
    if let Some(Ok(checkpoint)) = open(data) {
        // Whatever is opened has tensors that are what the configuration says, or not.
        drop(checkpoint.f32("model.language_model.norm.weight", &[64]));
    }
}

/// What is found of a checkpoint.
pub fn open(data: &[u8]) -> Option<Result<Checkpoint, janus_model::Error>> {
    let (which, data) = data.split_first()?;
    let opened = match which % 3 {
        0 => TRANSFORMERS.with(|folder| Checkpoint::open(folder.put("model.safetensors", data))),
        1 => ORIGINAL.with(|folder| Checkpoint::open(folder.put("pytorch_model.bin", data))),
        _ => ORIGINAL.with(|folder| Checkpoint::open(folder.put("pytorch_model.bin", &archive(data)))),
    };
    Some(opened)
}

const PICKLE: &str = "pytorch_model/data.pkl";

/// An archive of a pickle, as PyTorch makes them.
fn archive(pickle: &[u8]) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    archive.start_file(PICKLE, SimpleFileOptions::default().compression_method(CompressionMethod::Stored)).unwrap();
    archive.write_all(pickle).unwrap();
    archive.finish().unwrap().into_inner()
}

fn checkpoint_seeds() -> Vec<Vec<u8>> {
    let weights = read("transformers/model.safetensors");
    let header = 8 + u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    // Headers are what is believed or not; the numbers after them are cut off, and so this one is refused.
    let tensors: &[u8] = br#"{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"__metadata__":{"format":"pt"}}"#;
    let small = [&[0], &(tensors.len() as u64).to_le_bytes()[..], tensors, &[0; 16]].concat();
    let mut original = zip::ZipArchive::new(Cursor::new(read("original-bin/pytorch_model.bin"))).unwrap();
    let index = (0..original.len()).find(|i| original.by_index(*i).unwrap().name_raw().ends_with(b"data.pkl")).unwrap();
    let mut pickle = Vec::new();
    original.by_index(index).unwrap().read_to_end(&mut pickle).unwrap();
    let tagged = |which: u8, data: &[u8]| [&[which], data].concat();
    vec![tagged(0, &weights[..header]), small, tagged(1, &archive(b"}.")), tagged(2, &pickle)]
}

/// config.json of either layout.
pub fn config(data: &[u8]) {
    drop(specs(data));
}

/// What a configuration says beside the other files of each layout.
pub fn specs(data: &[u8]) -> [Result<ModelSpec, janus_spec::Error>; 2] {
    [&TRANSFORMERS, &ORIGINAL].map(|layout| {
        let spec = layout.with(|folder| {
            let before = std::fs::read(folder.0.path().join("config.json")).unwrap();
            let spec = ModelSpec::load(&folder.put("config.json", data));
            folder.put("config.json", &before);
            spec
        })?;
        let _ = (spec.fingerprint(), spec.parts(), spec.image_tokens());
        Ok(spec)
    })
}

fn config_seeds() -> Vec<Vec<u8>> {
    ["transformers/config.json", "original-bin/config.json", "transformers/config.transformers-4.json"].map(read).into()
}

/// Picture files.
pub fn pictures(data: &[u8]) {
    // What a fuzzer has memory and time for; the limits of the service are checked by the same code.
    let limits = image::Limits { max_bytes: 1 << 20, max_pixels: 1 << 20, max_side: 4096 };
    for orientation in [image::Orientation::Apply, image::Orientation::Ignore] {
        if let Ok(picture) = image::decode(data, orientation, &limits) {
            assert_eq!(picture.data.len(), 3 * picture.width * picture.height);
            assert!(picture.width * picture.height <= 1 << 20);
        }
    }
}

fn picture_seeds() -> Vec<Vec<u8>> {
    let names =
        ["rgb_1x1.png", "rgb_small_9x7.png", "palette_48x80.png", "graya_40x30.png", "exif6_90x60.jpg", "cmyk_64x48.jpg"];
    let mut seeds: Vec<_> = names.map(|name| read(&format!("golden/images/{name}"))).into();
    // One pixel as a GIF and as a bitmap.
    seeds.push(
        b"GIF89a\x01\0\x01\0\x80\0\0\xff\0\0\0\0\0!\xf9\x04\x01\0\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;".to_vec(),
    );
    seeds.push(b"BM\x3a\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0\x01\0\0\0\x01\0\0\0\x01\0\x18\0\0\0\0\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\xff\0\0\0".to_vec());
    seeds
}

/// Text for the tokeniser, and ids for the way back.
pub fn tokens(data: &[u8]) {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    let tokenizer = TOKENIZER.get_or_init(|| {
        let files = Files::open_dir(tiny().join("transformers")).unwrap();
        Tokenizer::load(&files, &ModelSpec::load(&files).unwrap()).unwrap()
    });
    let text = String::from_utf8_lossy(data);
    let _ = tokenizer.generation_prompt(&text, data.len() % 2 == 0);
    if let Ok(ids) = tokenizer.encode(&text) {
        // What was read can be said again.
        tokenizer.decode(&ids, false).unwrap();
    }
    let ids: Vec<u32> = data.chunks(3).map(|c| c.iter().fold(0, |id, b| id << 8 | u32::from(*b))).collect();
    let _ = tokenizer.decode(&ids, data.len() % 3 == 0);
    let mut stream = tokenizer.stream_decoder();
    ids.iter().take(512).for_each(|id| drop(stream.push(tokenizer, *id)));
}

fn token_seeds() -> Vec<Vec<u8>> {
    [
        "a red circle left of a blue square",
        "<begin_of_image><image_placeholder>\n\nUser: x",
        "e\u{301}\u{1f468}\u{200d}\u{1f469} \0 \u{feff}",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}

/// What is found in the store, whoever wrote it: the first byte says which kind of record is expected.
pub fn records(data: &[u8]) {
    let Some((which, data)) = data.split_first() else { return };
    match which % 5 {
        0 => drop(Member::decode("members/m", data).map(|member| member.encode())),
        1 => drop(serde_json::from_slice::<Candidate>(data)),
        2 => drop(serde_json::from_slice::<Vec<PipelinePlan>>(data)),
        3 => drop(AdmittedRequest::decode(data).map(|record| AdmittedRequest::decode(&record.encode_to_vec()[..]).unwrap())),
        _ => drop(PipelineLogs::decode(data).map(|record| record.encode_to_vec())),
    }
}

fn record_seeds() -> Vec<Vec<u8>> {
    let tagged = |which: u8, bytes: Vec<u8>| [&[which], &bytes[..]].concat();
    let member = Member { id: "m".to_owned(), address: "127.0.0.1:1".to_owned(), layers: Some([0, 4]), ..Member::default() };
    let candidate = Candidate { id: "c".to_owned(), address: "127.0.0.1:1".to_owned() };
    let image = janus_wire::v1::GenerateImageRequest { prompt: "a red circle".to_owned(), n: 2, ..Default::default() };
    let admitted = AdmittedRequest {
        tenant: "t".to_owned(),
        request: Some(janus_wire::v1::admitted_request::Request::Image(image)),
        ..AdmittedRequest::default()
    };
    let log = janus_wire::v1::StoredLog { key: "t/r#0".to_owned(), ids: vec![1, 2, 300] };
    vec![
        tagged(0, member.encode().unwrap()),
        tagged(1, serde_json::to_vec(&candidate).unwrap()),
        tagged(2, b"[]".to_vec()),
        tagged(3, admitted.encode_to_vec()),
        tagged(4, PipelineLogs { logs: vec![log], ..PipelineLogs::default() }.encode_to_vec()),
    ]
}

/// JSONL: a batch's file, for whichever endpoint.
pub fn lines(data: &[u8]) {
    for line in data.split(|byte| *byte == b'\n') {
        for path in ["/v1/images/generations", "/v1/chat/completions"] {
            if let Err(problem) = janus_gateway::check_line(path, 384, line) {
                assert!(problem.is_callers() && !problem.message().is_empty(), "{problem:?}");
            }
        }
    }
}

fn line_seeds() -> Vec<Vec<u8>> {
    let paint = br#"{"custom_id":"a/1","method":"POST","url":"/v1/images/generations","body":{"prompt":"a red circle","n":2,"size":"384x384","seed":7,"guidance":5.0,"response_format":"b64_json"}}"#;
    let ask = br#"{"custom_id":"b","method":"POST","url":"/v1/chat/completions","body":{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,AA=="}},{"type":"text","text":"What is it?"}]}],"max_tokens":16,"temperature":0.5,"stop":["."]}}"#;
    vec![paint.to_vec(), ask.to_vec(), [&paint[..], b"\n", ask, b"\n"].concat()]
}
