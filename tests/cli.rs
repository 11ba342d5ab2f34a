//! The command line as scripts know it: names, JSON, files, and the reference's own numbers through the front door.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use support::checkpoint::Checkpoint;
use support::{FORMS, binary, golden_f32, golden_ids, golden_json, ids, janus, json, names, prompt, text, tiny};
use tempfile::tempdir;

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

fn model(form: &str) -> String {
    text(&tiny(form))
}

fn pixels(path: &Path) -> Vec<u8> {
    image::open(path).unwrap().into_rgb8().into_raw()
}

/// Asserts that two pictures differ by at most one step of 255 anywhere.
fn assert_same_picture(ours: &[u8], reference: &[u8]) {
    assert_eq!(ours.len(), reference.len());
    assert!(ours.iter().zip(reference).all(|(a, b)| a.abs_diff(*b) <= 1), "pixels differ");
}

/// SHA-256 over ids as little-endian u16.
fn sha256(ids: &[u64]) -> String {
    let bytes: Vec<u8> = ids.iter().flat_map(|&id| u16::try_from(id).unwrap().to_le_bytes()).collect();
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// A PNG of 64 x 64 pixels from golden `[3, 64, 64]` values in [-1, 1].
fn write_png(path: &Path, chw: &[f32]) {
    let byte = |v: f32| ((v + 1.0) / 2.0 * 255.0).round() as u8;
    let hwc: Vec<u8> = (0..64 * 64).flat_map(|p| (0..3).map(move |c| byte(chw[c * 64 * 64 + p]))).collect();
    image::RgbImage::from_raw(64, 64, hwc).unwrap().save(path).unwrap();
}

#[test]
fn greedy_pictures_are_the_references_in_every_form() {
    let dir = tempdir().unwrap();
    for (name, text_of, weight) in [
        ("generate_pro_1_cfg1", "generate_pro_1", "1"),
        ("generate_pro_1_cfg2", "generate_pro_1", "2"),
        ("generate_pro_1_cfg5", "generate_pro_1", "5"),
        ("generate_pro_2_cfg5", "generate_pro_2", "5"),
        ("generate_1_3b_cfg5", "generate_1_3b", "5"),
    ] {
        let (prompt, _) = prompt(text_of);
        let expected = golden_ids(name, "image_ids");
        for form in FORMS {
            let model = model(form);
            let flags = ["--model", &model, "--temperature", "0", "--cfg-weight", weight, "-o", "x.png", "--json"];
            let answer = json(dir.path(), &[&["generate", "--raw-prompt", &prompt][..], &flags].concat());
            assert_eq!(keys(&answer), ["images", "model", "prompt_tokens"]);
            assert_eq!(answer["model"], json!(model));
            assert_eq!(ids(&answer["prompt_tokens"]), golden_ids(name, "cond_ids"), "{name} {form}");
            let image = &answer["images"][0];
            assert_eq!(keys(image), ["path", "seed", "sha256", "tokens"]);
            assert_eq!(ids(&image["tokens"]), expected, "{name} {form}");
            assert_eq!(image["sha256"], json!(sha256(&expected)));
            assert_eq!(image["path"], json!("x.png"));
            let reference = tiny("golden").join(format!("{name}.png"));
            if reference.exists() {
                assert_same_picture(&pixels(&dir.path().join("x.png")), &pixels(&reference));
            }
        }
    }
}

#[test]
fn greedy_answers_are_the_references_in_every_form() {
    let dir = tempdir().unwrap();
    let greedy = golden_json("lm_text.json");
    let batch = &greedy["batch_left_padded"]["greedy_ids"];
    // The reference's own input, which is already as large as the model wants it.
    let (wide, tall) = ("wide.png", "tall.png");
    for (name, picture) in [wide, tall].into_iter().zip(golden_f32("vision", "pixel_values").chunks(3 * 64 * 64)) {
        write_png(&dir.path().join(name), picture);
    }
    for (name, expected, pictures) in [
        ("understand_pro_1", &greedy["understand_pro_1"]["greedy_ids"], &[wide][..]),
        ("understand_two_images", &greedy["understand_two_images"]["greedy_ids"], &[wide, tall]),
        ("text_only_pro", &greedy["text_only_pro"]["greedy_ids"], &[]),
        ("multi_turn_pro", &greedy["multi_turn_pro"]["greedy_ids"], &[wide]),
        ("understand_pro_1", &batch[0], &[wide]),
        ("understand_pro_2", &batch[1], &[tall]),
    ] {
        let (prompt, prompt_ids) = prompt(name);
        let pictures: Vec<&str> = pictures.iter().flat_map(|picture| ["--image", picture]).collect();
        for form in FORMS {
            let model = model(form);
            let flags = ["--model", &model, "--max-tokens", "24", "--json"];
            let answer = json(dir.path(), &[&["ask", "--raw-prompt", &prompt][..], &pictures, &flags].concat());
            assert_eq!(keys(&answer), ["model", "prompt_tokens", "text", "tokens"]);
            assert_eq!(ids(&answer["prompt_tokens"]), prompt_ids, "{name} {form}");
            assert_eq!(&answer["tokens"], expected, "{name} {form}");
            if let Some(said) = greedy[name]["text"].as_str().filter(|_| &greedy[name]["greedy_ids"] == expected) {
                assert_eq!(answer["text"].as_str().unwrap(), said.trim(), "{name} {form}");
            }
        }
    }
}

#[test]
fn plain_words_are_put_into_the_template() {
    let dir = tempdir().unwrap();
    for form in FORMS {
        let model = model(form);
        let painted = json(
            dir.path(),
            &[
                "generate",
                " A close-up photo of a small house beside a river ",
                "--model",
                &model,
                "--temperature",
                "0",
                "--json",
            ],
        );
        assert_eq!(ids(&painted["prompt_tokens"]), prompt("generate_pro_1").1);
        // Guidance weight 5 is the default.
        assert_eq!(ids(&painted["images"][0]["tokens"]), golden_ids("generate_pro_1_cfg5", "image_ids"));

        let short = ["--model", &model, "--max-tokens", "1", "--json"];
        let asked = json(dir.path(), &[&["ask", "hello, how many boats are there? 12 or 4?"][..], &short].concat());
        assert_eq!(ids(&asked["prompt_tokens"]), prompt("text_only_pro").1);
        let picture = text(&tiny("golden/images/rgb_97x61.png"));
        let seen = json(dir.path(), &[&["ask", "--image", &picture, "What is in the picture?"][..], &short].concat());
        assert_eq!(ids(&seen["prompt_tokens"]), prompt("understand_pro_1").1);
        let (unicode, unicode_ids) = prompt("unicode");
        let raw = json(dir.path(), &[&["ask", "--raw-prompt", &unicode][..], &short].concat());
        assert_eq!(ids(&raw["prompt_tokens"]), unicode_ids);
    }
}

#[test]
fn an_answer_alone_is_on_stdout() {
    let dir = tempdir().unwrap();
    let run = janus(
        dir.path(),
        &["ask", "hello, how many boats are there? 12 or 4?", "--model", &model("transformers"), "--max-tokens", "24"],
    );
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""));
    let said = golden_json("lm_text.json")["text_only_pro"]["text"].as_str().unwrap().trim().to_owned();
    assert_eq!(run.stdout, format!("{said}\n"));
    assert_eq!(names(dir.path()), [""; 0]);
}

#[test]
fn a_picture_is_the_same_alone_and_in_company() {
    let dir = tempdir().unwrap();
    let model = model("transformers");
    let paint =
        |more: &[&str]| json(dir.path(), &[&["generate", "a red boat", "--model", &model, "--json"][..], more].concat());
    let three = paint(&["--seed", "7", "-n", "3"]);
    assert_eq!(names(dir.path()), ["janus-7.png", "janus-8.png", "janus-9.png"]);
    let mut seen = Vec::new();
    for (i, image) in three["images"].as_array().unwrap().iter().enumerate() {
        let seed = 7 + i as u64;
        assert_eq!((image["seed"].as_u64(), image["path"].as_str().unwrap()), (Some(seed), &*format!("janus-{seed}.png")));
        let alone = paint(&["--seed", &seed.to_string(), "-o", "alone.png", "--threads", "1"]);
        assert_eq!(alone["images"][0]["tokens"], image["tokens"]);
        assert_eq!(alone["images"][0]["sha256"], image["sha256"]);
        let file = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
        assert_eq!(file("alone.png"), file(&format!("janus-{seed}.png")));
        seen.push(ids(&image["tokens"]));
    }
    assert!(seen[0] != seen[1] && seen[1] != seen[2], "seeds must matter");
    // Other settings, other pictures; one candidate leaves no choice.
    let greedy = paint(&["--temperature", "0", "-o", "g.png"]);
    assert_eq!(paint(&["--top-k", "1", "-o", "g.png"])["images"][0]["tokens"], greedy["images"][0]["tokens"]);
    assert_eq!(paint(&["--top-p", "1e-6", "-o", "g.png"])["images"][0]["tokens"], greedy["images"][0]["tokens"]);
    assert_ne!(paint(&["--seed", "7", "--cfg-weight", "1", "-o", "g.png"])["images"][0]["tokens"], json!(seen[0]));
}

#[test]
fn stages_and_threads_change_no_bit() {
    let dir = tempdir().unwrap();
    let model = model("transformers");
    let answers = |verb: &[&str]| {
        ["1", "2", "3", "4"]
            .map(|n| json(dir.path(), &[verb, &["--model", &model, "--stages", n, "--threads", n, "--json"]].concat()))
    };
    for verb in [
        &["generate", "a red boat", "--seed", "11", "-n", "3", "-o", "x.png"][..],
        &["generate", "a red boat", "--cfg-weight", "1", "-o", "x.png"],
        &["ask", "what is it?", "--temperature", "1", "--seed", "4", "--max-tokens", "12"],
    ] {
        let answers = answers(verb);
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{verb:?}: {answers:?}");
    }
}

#[test]
fn paths_are_printed_and_numbered() {
    let dir = tempdir().unwrap();
    let model = model("transformers");
    for (flags, files) in [
        (&["-n", "2", "-o", "x.png"][..], &["x-0.png", "x-1.png"][..]),
        (&["--seed", "5"], &["janus-5.png"]),
        (&["-o", "one.png"], &["one.png"]),
    ] {
        let run =
            janus(dir.path(), &[&["generate", "a red boat", "--model", &model, "--temperature", "0"][..], flags].concat());
        assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""));
        assert_eq!(run.stdout.lines().collect::<Vec<_>>(), files);
        for file in files {
            assert_eq!(image::open(dir.path().join(file)).unwrap().into_rgb8().dimensions(), (64, 64));
        }
    }
    assert_eq!(names(dir.path()), ["janus-5.png", "one.png", "x-0.png", "x-1.png"]);
}

#[test]
fn defaults_come_from_the_checkpoint() {
    let dir = tempdir().unwrap();
    let copy = Checkpoint::copy("transformers");
    copy.set("generation_config.json", "guidance_scale", json!(2.0));
    copy.set("generation_config.json", "temperature", json!(0.0));
    let (prompt, _) = prompt("generate_pro_1");
    let answer = json(dir.path(), &["generate", "--raw-prompt", &prompt, "--model", &text(copy.path()), "--json"]);
    assert_eq!(ids(&answer["images"][0]["tokens"]), golden_ids("generate_pro_1_cfg2", "image_ids"));
}

#[test]
fn pictures_become_the_references_ids_and_ids_its_pictures() {
    let dir = tempdir().unwrap();
    let (seen, decoded) = (golden_f32("vq", "pixels"), golden_f32("vq", "decoded"));
    let (encode_ids, decode_ids) = (golden_ids("vq", "ids_l2_normalised"), golden_ids("vq", "decode_ids"));
    for form in FORMS {
        let model = model(form);
        for (picture, expected) in seen.chunks(3 * 64 * 64).zip(encode_ids.chunks(16)) {
            write_png(&dir.path().join("in.png"), picture);
            let answer = json(dir.path(), &["tokenize", "in.png", "--model", &model, "--json"]);
            assert_eq!(keys(&answer), ["tokens"]);
            assert_eq!(ids(&answer["tokens"]), expected, "{form}");
        }
        for (tokens, expected) in decode_ids.chunks(16).zip(decoded.chunks(3 * 64 * 64)) {
            std::fs::write(dir.path().join("ids.json"), json!({ "tokens": tokens }).to_string()).unwrap();
            let run = janus(dir.path(), &["detokenize", "ids.json", "--model", &model, "-o", "out.png"]);
            assert_eq!((run.code, run.stdout.as_str(), run.stderr.as_str()), (Some(0), "out.png\n", ""));
            let clipped: Vec<f32> = expected.iter().map(|v| v.clamp(-1.0, 1.0)).collect();
            write_png(&dir.path().join("reference.png"), &clipped);
            assert_same_picture(&pixels(&dir.path().join("out.png")), &pixels(&dir.path().join("reference.png")));
        }
    }
}

#[test]
fn a_picture_is_completed_below_the_rows_that_are_kept() {
    let dir = tempdir().unwrap();
    let (model, picture) = (model("original-safetensors"), text(&tiny("golden/images/rgb_97x61.png")));
    let all = json(dir.path(), &["tokenize", &picture, "--model", &model, "--json"]);
    let paint = |flags: &[&str]| {
        let fixed = ["generate", "a red boat", "--model", &model, "--seed", "3", "--json"];
        json(dir.path(), &[&fixed[..], flags].concat())["images"][0].clone()
    };
    let without = paint(&["-o", "without.png"]);
    for rows in 0..=4 {
        let painted = paint(&["--init-image", &picture, "--keep-rows", &rows.to_string(), "-o", "x.png"]);
        let kept = 4 * rows;
        assert_eq!(ids(&painted["tokens"])[..kept], ids(&all["tokens"])[..kept], "{rows} rows");
        match rows {
            0 => assert_eq!(painted["tokens"], without["tokens"]),
            4 => assert_eq!(painted["tokens"], all["tokens"]),
            _ => {
                assert_ne!(ids(&painted["tokens"])[kept..], ids(&all["tokens"])[kept..], "{rows} rows: nothing was painted")
            }
        }
    }
    // All rows kept: the picture is what the VQ model makes of the ids.
    std::fs::write(dir.path().join("ids.json"), all.to_string()).unwrap();
    json(dir.path(), &["detokenize", "ids.json", "--model", &model, "-o", "back.png", "--json"]);
    assert_eq!(std::fs::read(dir.path().join("x.png")).unwrap(), std::fs::read(dir.path().join("back.png")).unwrap());
}

#[test]
fn inspect_says_what_a_checkpoint_is() {
    let dir = tempdir().unwrap();
    let inspect = |model: &str| json(dir.path(), &["inspect", "--model", model, "--json"]);
    let [ported, safetensors, pickled] = FORMS.map(|form| inspect(&model(form)));
    for report in [&ported, &safetensors, &pickled] {
        assert_eq!(report["parameters"], json!(2_373_451));
        assert_eq!(report["image"], json!({ "size": 64, "tokens": 16, "codebook": 64 }));
        assert_eq!(report["special_ids"]["pad"], json!(514));
        assert_eq!(report["digest"].as_str().unwrap().len(), 64);
        for key in ["layout", "weights", "bytes", "kv_bytes_per_position", "spec"] {
            assert!(!report[key].is_null(), "{key}");
        }
    }
    assert_eq!((&ported["layout"], &pickled["layout"]), (&json!("transformers"), &json!("original")));
    assert_eq!(safetensors["digest"], pickled["digest"], "the same numbers in two containers");
    // One bit of one weight, one number of the configuration, one token: another model.
    let copy = Checkpoint::copy("original-safetensors");
    copy.edit_safetensors(|file| file.set("language_model.model.norm.weight", 0, 0x4120));
    let other = Checkpoint::copy("original-safetensors");
    other.set("config.json", "language_config.rms_norm_eps", json!(1e-5));
    let third = Checkpoint::copy("original-safetensors");
    third.write("tokenizer.json", std::fs::read_to_string(tiny("original-safetensors/tokenizer.json")).unwrap() + "\n");
    for changed in [copy, other, third] {
        assert_ne!(inspect(&text(changed.path()))["digest"], safetensors["digest"]);
    }
    let run = janus(dir.path(), &["inspect", "--model", &model("original-bin")]);
    assert!(run.stdout.contains(pickled["digest"].as_str().unwrap()) && run.stderr.is_empty(), "{run:?}");
}

#[test]
fn the_model_inside_needs_no_files() {
    let dir = tempdir().unwrap();
    let report = json(dir.path(), &["inspect", "--json"]);
    assert_eq!(report["model"], json!("shapes"));
    let painted = json(dir.path(), &["generate", "a red circle", "--json"]);
    assert_eq!(painted["images"][0]["tokens"].as_array().unwrap().len() as u64, report["image"]["tokens"].as_u64().unwrap());
    assert_eq!(names(dir.path()), ["janus-0.png"]);
}

#[test]
fn progress_and_preview_are_for_terminals() {
    let dir = tempdir().unwrap();
    // `script` gives the program a terminal; everywhere else in these tests stderr stays empty.
    let line = format!("{} generate 'a red boat' --model {} -n 8", binary().display(), model("transformers"));
    let output =
        Command::new("script").args(["-qec", &line, "/dev/null"]).current_dir(dir.path()).stdin(Stdio::null()).output();
    let shown = String::from_utf8(output.unwrap().stdout).unwrap();
    assert!(shown.contains("painting [") && shown.contains(" left"), "no bar: {shown:?}");
    assert!(shown.contains('\u{2580}'), "no preview: {shown:?}");
    assert!(shown.contains("janus-7.png"), "no path: {shown:?}");
}

#[test]
fn an_interrupt_leaves_what_was_there() {
    let dir = tempdir().unwrap();
    std::fs::write(dir.path().join("x-0.png"), "old").unwrap();
    let mut child = Command::new(binary())
        .args(["generate", "a red circle", "-n", "500", "-o", "x.png"])
        .current_dir(dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_secs(1));
    assert!(child.try_wait().unwrap().is_none(), "it was over before it could be interrupted");
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let status = child.wait().unwrap();
    assert!(status.signal() == Some(2) || status.code() == Some(130), "{status}");
    assert_eq!(names(dir.path()), ["x-0.png"]);
    assert_eq!(std::fs::read(dir.path().join("x-0.png")).unwrap(), b"old");
}

#[test]
fn an_interrupt_while_files_are_written_leaves_whole_ones() {
    let dir = tempdir().unwrap();
    let mut child = Command::new(binary())
        .args(["generate", "a red circle", "-n", "300", "-o", "x.png"])
        .current_dir(dir.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    while names(dir.path()).iter().filter(|name| name.starts_with("x-")).count() < 5 {
        assert!(child.try_wait().unwrap().is_none(), "it was over before it could be interrupted");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let left = names(dir.path());
    assert!(left.len() < 300 && left.iter().all(|name| name.starts_with("x-") && name.ends_with(".png")), "{left:?}");
    left.iter().for_each(|name| drop(image::open(dir.path().join(name)).unwrap()));
}

#[test]
fn every_flag_of_the_contract_is_in_the_help() {
    let dir = tempdir().unwrap();
    for (verb, flags) in [
        (
            &["generate"][..],
            &[
                "--model",
                "-n",
                "--seed",
                "--temperature",
                "--cfg-weight",
                "--top-k",
                "--top-p",
                "--init-image",
                "--keep-rows",
            ][..],
        ),
        (&["generate"], &["--raw-prompt", "-o", "--json", "--threads", "--stages"]),
        (
            &["ask"],
            &["--image", "--model", "--max-tokens", "--temperature", "--raw-prompt", "--json", "--threads", "--stages"],
        ),
        (&["tokenize"], &["--model", "--json", "--threads", "--stages"]),
        (&["detokenize"], &["--model", "-o", "--threads", "--stages"]),
        (&["inspect"], &["--model", "--json"]),
        (&["plan"], &["--model", "--json"]),
        (&["eval", "shapes"], &["--json", "--threads", "--stages"]),
    ] {
        let run = janus(dir.path(), &[verb, &["--help"]].concat());
        assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""));
        for flag in flags {
            assert!(run.stdout.contains(flag), "{verb:?} {flag}");
        }
    }
}
