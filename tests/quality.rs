//! What 8 and 4 bits cost a trained model: scores of `janus eval shapes` against bf16's.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use support::json;

/// A small version of the suite; README has the whole one.
fn score(dir: &std::path::Path, weights: &str) -> (f64, f64) {
    let report = json(dir, &["eval", "shapes", "--limit", "10", "--weights", weights, "--json"]);
    let pictures = report["pictures"]["overall"].as_f64().unwrap();
    (pictures, report["answers"]["overall"]["score"].as_f64().unwrap())
}

#[test]
fn eight_and_four_bits_keep_the_score() {
    let dir = tempfile::tempdir().unwrap();
    let (pictures, answers) = score(dir.path(), "bf16");
    assert!(pictures > 0.8 && answers > 0.8, "bf16: {pictures} {answers}");
    for (weights, kept) in [("q8", 0.98), ("q4", 0.95)] {
        let (p, a) = score(dir.path(), weights);
        assert!(p >= kept * pictures && a >= kept * answers, "{weights}: {p} {a}; bf16: {pictures} {answers}");
    }
}
