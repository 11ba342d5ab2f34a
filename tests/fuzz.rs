//! The entry points of `fuzz/`, fed with seeds that are mutated at random: on the stable toolchain and for a moment only,
//! JANUS_FUZZ_SECONDS for each. An input that breaks one of them is written to a file; it goes to `fuzz/known/<target>`,
//! whose files are tried first.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "harness/client.rs"]
mod client;
#[path = "../fuzz/src/lib.rs"]
mod entries;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use client::Numbers;

/// Longest input; what is longer costs time and finds nothing new.
const LONGEST: usize = 128 << 10;
/// Bytes that sizes, counts and tags like to be.
const ODD: [&[u8]; 8] = [&[0], &[0xff], &[0x7f], &[0x80], &[0xff; 4], &[0xff, 0xff, 0xff, 0x7f], &[0; 8], &[0xff; 8]];

fn below(random: &mut Numbers, end: usize) -> usize {
    random.below(end.max(1) as u64) as usize
}

/// The input, changed in a few places.
fn mutated(mut input: Vec<u8>, seeds: &[Vec<u8>], random: &mut Numbers) -> Vec<u8> {
    for _ in 0..=below(random, 6) {
        let at = below(random, input.len() + 1);
        let piece = at..at + below(random, (input.len() - at).min(64) + 1);
        match random.below(8) {
            0 if at < input.len() => input[at] ^= 1 << random.below(8),
            1 if at < input.len() => input[at] = random.below(256) as u8,
            2 => drop(input.splice(piece, ODD[below(random, ODD.len())].iter().copied())),
            3 => drop(input.drain(piece)),
            4 => {
                let again = input[piece].to_vec();
                drop(input.splice(at..at, again));
            }
            5 => input.truncate(at),
            6 => {
                let other = &seeds[below(random, seeds.len())];
                input.extend(&other[below(random, other.len())..]);
            }
            _ => input.extend((0..below(random, 32)).map(|_| random.below(256) as u8)),
        }
    }
    input.truncate(LONGEST);
    input
}

fn feed(name: &str) {
    let (_, entry, seeds) = entries::TARGETS.into_iter().find(|target| target.0 == name).unwrap();
    let seconds = std::env::var("JANUS_FUZZ_SECONDS").map_or(4, |seconds| seconds.parse().unwrap());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
    let mut random = Numbers(u64::from(now));
    let seeds = seeds();
    let attempt = |input: &[u8]| {
        if catch_unwind(AssertUnwindSafe(|| entry(input))).is_err() {
            let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{now}"));
            std::fs::write(&file, input).unwrap();
            panic!("{} breaks it", file.display());
        }
    };
    let known = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz/known").join(name);
    for file in std::fs::read_dir(known).into_iter().flatten() {
        attempt(&std::fs::read(file.unwrap().path()).unwrap());
    }
    seeds.iter().for_each(|seed| attempt(seed));
    let (begun, mut inputs) = (Instant::now(), 0_u64);
    while begun.elapsed() < Duration::from_secs(seconds) {
        let seed = seeds[below(&mut random, seeds.len())].clone();
        attempt(&mutated(seed, &seeds, &mut random));
        inputs += 1;
    }
    println!("{name}: {inputs} inputs in {seconds} s");
    assert!(inputs > 20, "{inputs} inputs in {seconds} s are none");
}

#[test]
fn no_frame_of_a_peer_breaks_a_stage_or_another_sequence() {
    feed("frames");
}

#[test]
fn what_is_mutated_is_read_to_its_end_before() {
    let seeds = |name: &str| entries::TARGETS.into_iter().find(|target| target.0 == name).unwrap().2();
    for config in seeds("config") {
        let specs = entries::specs(&config);
        assert!(specs.iter().any(Result::is_ok), "{specs:?}");
    }
    // Their numbers are missing, and nothing else.
    let ends: Vec<String> =
        seeds("checkpoint").iter().map(|seed| entries::open(seed).unwrap().err().unwrap().to_string()).collect();
    assert!(ends[0].contains("of 0 bytes of data"), "{ends:?}");
    assert!(ends[1].contains("has no tensor") && ends[2].contains("has no tensor"), "{ends:?}");
    assert!(ends[3].contains("is larger than the file"), "{ends:?}");
}

#[test]
fn no_header_of_a_checkpoint_is_believed() {
    feed("checkpoint");
}

#[test]
fn no_configuration_breaks_its_reader() {
    feed("config");
}

#[test]
fn no_picture_breaks_its_decoder() {
    feed("pictures");
}

#[test]
fn no_text_breaks_the_tokeniser() {
    feed("tokens");
}

#[test]
fn no_record_in_the_store_breaks_its_reader() {
    feed("records");
}

#[test]
fn no_line_of_a_batch_breaks_its_reader() {
    feed("lines");
}

#[test]
fn the_corpus_of_the_fuzzers_is_what_the_seeds_say() {
    for (name, _, seeds) in entries::TARGETS {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name);
        let write = std::env::var_os("JANUS_WRITE_CORPUS").is_some();
        for (i, seed) in seeds().into_iter().enumerate() {
            if write {
                std::fs::create_dir_all(&dir).unwrap();
                std::fs::write(dir.join(format!("seed-{i}")), &seed).unwrap();
            }
            let kept = std::fs::read(dir.join(format!("seed-{i}"))).unwrap_or_default();
            assert!(kept == seed, "{name}: seed {i} differs; run this with JANUS_WRITE_CORPUS=1");
        }
    }
}
