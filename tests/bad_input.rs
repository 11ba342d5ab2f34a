//! What a user or a stranger's checkpoint can get wrong: exit code 2, one message that names the thing, nothing written.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "harness/served.rs"]
mod served;
mod support;

use std::path::Path;

use serde_json::json;
use support::checkpoint::{Checkpoint, Safetensors, with_header};
use support::{janus, listing, text, tiny};
use tempfile::{TempDir, tempdir};
use zip::CompressionMethod;

/// Runs the program in `dir` and asserts that it refuses, naming `names`, and leaves the folder as it was.
fn refuses(dir: &Path, args: &[&str], names: &[&str]) {
    let before = listing(dir);
    let run = janus(dir, args);
    let said = run.stderr.as_str();
    assert_eq!(run.code, Some(2), "{args:?}: {run:?}");
    for name in names {
        assert!(said.to_lowercase().contains(&name.to_lowercase()), "{args:?} does not name {name:?}: {said}");
    }
    for internal in ["panicked", "backtrace", "RUST_", ".rs:", "internal error", "Error {"] {
        assert!(!said.contains(internal), "{args:?}: {said}");
    }
    assert!(said.len() < 1000, "{args:?} says too much: {said}");
    assert_eq!(run.stdout, "", "{args:?}");
    assert_eq!(listing(dir), before, "{args:?} wrote something");
}

/// A folder to work in, with a picture in it.
fn work() -> TempDir {
    let dir = tempdir().unwrap();
    std::fs::copy(tiny("golden/images/rgb_64x64.png"), dir.path().join("in.png")).unwrap();
    dir
}

const PAINT: &[&str] = &["generate", "a red boat", "-o", "out.png"];
const LOOK: &[&str] = &["ask", "what is it?", "--image", "in.png", "--max-tokens", "1"];
const INSPECT: &[&str] = &["inspect"];

fn refuses_model(verb: &[&str], checkpoint: &Checkpoint, names: &[&str]) {
    let dir = work();
    refuses(dir.path(), &[verb, &["--model", &text(checkpoint.path())]].concat(), names);
}

fn with(verb: &[&'static str], more: &[&'static str]) -> Vec<&'static str> {
    [verb, more].concat()
}

/// A tiny checkpoint's arguments, for complaints about everything else.
fn refuses_args(dir: &Path, args: &[&str], names: &[&str]) {
    refuses(dir, &[args, &["--model", &text(&tiny("transformers"))]].concat(), names);
}

#[test]
fn a_checkpoint_that_is_not_there() {
    let dir = work();
    let paint = |model: &str, names: &[&str]| refuses(dir.path(), &[PAINT, &["--model", model]].concat(), names);
    paint("nowhere/at-all", &["nowhere/at-all", "no such"]);
    paint("in.png", &["in.png", "not a directory"]);
    paint("", &["--model"]);
    let empty = tempdir().unwrap();
    paint(&text(empty.path()), &["config.json"]);
    for (form, file) in [
        ("transformers", "config.json"),
        ("transformers", "tokenizer.json"),
        ("original-bin", "preprocessor_config.json"),
        ("transformers", "model.safetensors"),
        ("original-bin", "pytorch_model.bin"),
    ] {
        let copy = Checkpoint::copy(form);
        copy.remove(file);
        refuses_model(PAINT, &copy, &[file]);
    }
}

#[test]
fn broken_json_and_tokenisers() {
    for (file, content) in [
        ("config.json", "{\"model_type\": \"janus\""),
        ("config.json", "\u{0}\u{1}\u{2}"),
        ("config.json", "[]"),
        ("generation_config.json", "{]"),
        ("processor_config.json", "no"),
        ("tokenizer_config.json", "{\"a\" 1}"),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "{\"version\": \"1.0\"}"),
        ("tokenizer.json", ""),
    ] {
        let copy = Checkpoint::copy("transformers");
        copy.write(file, content);
        refuses_model(PAINT, &copy, &[file]);
    }
    let copy = Checkpoint::copy("transformers");
    copy.write("config.json", format!("{}1{}", "[".repeat(200_000), "]".repeat(200_000)));
    refuses_model(INSPECT, &copy, &["config.json"]);
}

#[test]
fn safetensors_that_are_cut_or_lie() {
    let name = "model.safetensors";
    for length in [0, 4, 8, 5000, 4_700_000] {
        let copy = Checkpoint::copy("transformers");
        copy.cut(name, length);
        refuses_model(PAINT, &copy, &[name]);
    }
    let tensor = |shape: &str, begin: u64, end: u64| {
        format!(r#"{{"x": {{"dtype": "BF16", "shape": {shape}, "data_offsets": [{begin}, {end}]}}}}"#)
    };
    let twice = r#"{"x": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "x": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}"#;
    for (header, named) in [
        (tensor("[4]", 0, 6), "`x`"),
        (tensor("[4]", 8, 0), "`x`"),
        (tensor("[4]", 8, 16), "`x`"),
        (tensor("[100]", 0, 200), "`x`"),
        (tensor("[-4]", 0, 8), "`x`"),
        (tensor("[4294967296, 4294967296]", 0, 8), "`x`"),
        (tensor("[9223372036854775808, 2]", 0, 8), "`x`"),
        (tensor("[1.5]", 0, 8), "`x`"),
        (tensor("[4]", 0, u64::MAX), "`x`"),
        (twice.to_owned(), "`x` appears twice"),
        (tensor("[4]", 4, 12), "`x`"),
        ("{\"x\": 1}".to_owned(), "header"),
        ("{".to_owned(), "header"),
        ("[]".to_owned(), "header"),
        ("{}".to_owned(), "embed_tokens"),
    ] {
        let copy = Checkpoint::copy("transformers");
        copy.write(name, with_header(&header, &[0; 16]));
        refuses_model(PAINT, &copy, &[named]);
    }
    for length in [u64::MAX, 1 << 40, 99_999_999, 17] {
        let copy = Checkpoint::copy("transformers");
        copy.write(name, [&length.to_le_bytes()[..], b"{}              "].concat());
        refuses_model(PAINT, &copy, &[name, "header"]);
    }
}

#[test]
fn tensors_that_do_not_fit_the_configuration() {
    let name = "model.language_model.layers.2.mlp.up_proj.weight";
    let change = |edit: fn(&mut Safetensors, &str), names: &[&str]| {
        let copy = Checkpoint::copy("transformers");
        copy.edit_safetensors(|file| edit(file, name));
        refuses_model(PAINT, &copy, &[&[name][..], names].concat());
        refuses_model(INSPECT, &copy, &[&[name][..], names].concat());
    };
    change(|file, name| file.header[name]["shape"] = json!([64, 176]), &["[64, 176]", "[176, 64]"]);
    change(|file, name| file.header[name]["shape"] = json!([176 * 64]), &["shape"]);
    change(|file, name| file.header[name]["dtype"] = json!("I16"), &["I16"]);
    change(
        |file, name| {
            let tensor = file.header.remove(name).unwrap();
            file.header.insert("renamed".to_owned(), tensor);
        },
        &["no tensor"],
    );
}

#[test]
fn weights_that_are_no_numbers() {
    let (nan, infinite) = (0x7fc0, 0xff80);
    for (tensor, bits, verb) in [
        ("model.language_model.embed_tokens.weight", nan, PAINT),
        ("model.language_model.layers.3.self_attn.k_proj.weight", infinite, PAINT),
        ("model.language_model.layers.0.input_layernorm.weight", nan, LOOK),
        ("model.language_model.norm.weight", infinite, LOOK),
        ("lm_head.weight", nan, LOOK),
        ("model.generation_head.vision_head.bias", infinite, PAINT),
        ("model.vqmodel.decoder.conv_out.weight", nan, PAINT),
        ("model.vqmodel.quantize.embedding.weight", infinite, PAINT),
        ("model.vqmodel.encoder.conv_in.bias", nan, &["tokenize", "in.png"]),
        ("model.vision_model.encoder.layers.1.mlp.fc1.weight", nan, LOOK),
        ("model.aligner.fc1.bias", infinite, LOOK),
        ("model.vqmodel.decoder.conv_out.weight", nan, INSPECT),
    ] {
        let copy = Checkpoint::copy("transformers");
        copy.edit_safetensors(|file| file.set(tensor, 0, bits));
        refuses_model(verb, &copy, &[tensor, if bits == nan { "nan" } else { "inf" }]);
    }
}

#[test]
fn weights_that_are_numbers_but_too_large() {
    // The largest bf16, and the smallest that is refused at once.
    for (tensor, bits, verb, named) in [
        ("model.language_model.embed_tokens.weight", 0x7f7f, PAINT, "3.38"),
        ("model.language_model.layers.2.mlp.down_proj.weight", 0xda00, PAINT, "-9.0"),
        ("lm_head.weight", 0x7f7f, LOOK, "3.38"),
        ("model.vqmodel.decoder.conv_out.weight", 0x7f7f, PAINT, "3.38"),
        ("model.vqmodel.quantize.embedding.weight", 0x7f7f, &["tokenize", "in.png"], "3.38"),
        ("model.vision_model.encoder.layers.1.mlp.fc1.weight", 0x5a00, LOOK, "9.0"),
        ("model.aligner.fc1.bias", 0x7f7f, INSPECT, "3.38"),
    ] {
        let copy = Checkpoint::copy("transformers");
        copy.edit_safetensors(|file| file.set(tensor, 0, bits));
        refuses_model(verb, &copy, &[tensor, named, "overflow"]);
    }
}

#[test]
fn weights_whose_results_overflow_together() {
    let tokenize = &["tokenize", "in.png"][..];
    let guided = with(PAINT, &["--cfg-weight", "1e6"]);
    // Each one passes alone (about 4e15); one after the other they overflow.
    for (part, tensors, verb, named) in [
        ("language_model.layers.3.mlp", &["gate_proj", "up_proj", "down_proj"][..], PAINT, "logit"),
        ("generation_head", &["proj_out", "vision_head"], &guided, "logit"),
        ("vqmodel.decoder.mid.attn_1", &["norm", "q", "k"], PAINT, "pixel"),
        ("vision_model", &["post_layernorm"], LOOK, "feature"),
        ("vqmodel.encoder", &["norm_out", "conv_out"], tokenize, "latent"),
    ] {
        let copy = Checkpoint::copy("transformers");
        copy.edit_safetensors(|file| {
            let mut fill = |tensor: &str| file.fill(&format!("model.{tensor}.weight"), 0x5970);
            tensors.iter().for_each(|tensor| fill(&format!("{part}.{tensor}")));
            match named {
                "feature" => ["aligner.fc1", "aligner.hidden_layers.0"].iter().for_each(|tensor| fill(tensor)),
                "latent" => fill("vqmodel.quant_conv"),
                _ => {}
            }
        });
        refuses_model(verb, &copy, &[named, "weights", "too large"]);
    }
}

#[test]
fn an_index_that_leads_elsewhere() {
    let outside = tempdir().unwrap();
    std::fs::copy(tiny("transformers/model.safetensors"), outside.path().join("model.safetensors")).unwrap();
    let absolute = text(&outside.path().join("model.safetensors"));
    for (index, named) in [
        (json!({ "weight_map": { "a": absolute } }), absolute.as_str()),
        (json!({ "weight_map": { "a": "../model.safetensors" } }), "../model.safetensors"),
        (json!({ "weight_map": { "a": ".." } }), "`..`"),
        (json!({ "weight_map": { "a": "model-00001-of-00002.safetensors" } }), "model-00001-of-00002.safetensors"),
        (json!({ "weight_map": { "a": 7 } }), "weight_map.a"),
        (json!({ "weight_map": {} }), "no files"),
        (json!({}), "weight_map"),
        (json!("text"), "weight_map"),
    ] {
        let copy = Checkpoint::copy("transformers");
        copy.remove("model.safetensors");
        copy.write("model.safetensors.index.json", index.to_string());
        refuses_model(PAINT, &copy, &["model.safetensors.index.json", named]);
    }
    // The same tensors in two shards.
    let copy = Checkpoint::copy("transformers");
    let weights = std::fs::read(copy.file("model.safetensors")).unwrap();
    copy.remove("model.safetensors");
    copy.write("a.safetensors", &weights);
    copy.write("b.safetensors", &weights);
    copy.write(
        "model.safetensors.index.json",
        json!({ "weight_map": { "x": "a.safetensors", "y": "b.safetensors" } }).to_string(),
    );
    refuses_model(PAINT, &copy, &["b.safetensors", "twice"]);
}

#[test]
fn pickles_that_are_no_archive() {
    let name = "pytorch_model.bin";
    for length in [0, 3, 100, 1_000_000, 5_082_500] {
        let copy = Checkpoint::copy("original-bin");
        copy.cut(name, length);
        refuses_model(PAINT, &copy, &[name]);
    }
    for content in [
        &b"\x80\x02}q\x00."[..],
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        b"PK\x05\x06",
        &[b'P'; 4096],
    ] {
        let copy = Checkpoint::copy("original-bin");
        copy.write(name, content);
        refuses_model(PAINT, &copy, &[name]);
    }
}

#[test]
fn pickles_that_are_hostile() {
    let marker = tempdir().unwrap();
    let command = format!("touch {}", text(&marker.path().join("ran")));
    let call =
        [b"\x80\x02cposix\nsystem\nX", &(command.len() as u32).to_le_bytes()[..], command.as_bytes(), b"\x85R."].concat();
    // Sixty doublings of a tuple, and a tuple in a tuple in a tuple.
    let doubling = [&b"\x80\x02)q\x00"[..], &b"h\x00\x86q\x00".repeat(60), b"."].concat();
    let deep = [&b"\x80\x02)"[..], &[0x85; 3_000_000], b"."].concat();
    for (pickle, named) in [
        (call, "posix.system"),
        (doubling, "objects"),
        (deep, "deep"),
        (b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00}\x94.".to_vec(), "opcode 0x95"),
        (b"\x80\x02X\xff\xff\xff\xffabc".to_vec(), "truncated"),
        (b"\x80\x02}".to_vec(), "truncated"),
        (b"\x80\x02RRRR.".to_vec(), "stack"),
        (b"\x80\x02}q\x00.".to_vec(), "no tensor"),
        // A tensor without arguments, which candle would stumble over.
        (b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n)Rs.".to_vec(), "pytorch_model.bin"),
    ] {
        let copy = Checkpoint::copy("original-bin");
        copy.set_pickle(&pickle);
        refuses_model(PAINT, &copy, &[named]);
    }
    assert!(!marker.path().join("ran").exists(), "the pickle was executed");
}

#[test]
fn archives_without_their_numbers() {
    let name = "pytorch_model.bin";
    let without = |missing: &'static str| {
        let copy = Checkpoint::copy("original-bin");
        copy.edit_archive(CompressionMethod::Stored, |entry, bytes| (!entry.ends_with(missing)).then_some(bytes));
        copy
    };
    refuses_model(PAINT, &without("data.pkl"), &[name, "data.pkl"]);
    refuses_model(INSPECT, &without("data/100"), &[name]);
    let short = Checkpoint::copy("original-bin");
    short.edit_archive(CompressionMethod::Stored, |entry, mut bytes| {
        if entry.contains("/data/") {
            bytes.truncate(bytes.len() / 2);
        }
        Some(bytes)
    });
    refuses_model(PAINT, &short, &[name, "tensor `"]);
    let nan = Checkpoint::copy("original-bin");
    nan.edit_archive(CompressionMethod::Stored, |entry, bytes| {
        Some(if entry.contains("/data/") { [0xc0, 0x7f].repeat(bytes.len() / 2) } else { bytes })
    });
    refuses_model(PAINT, &nan, &["tensor `", "NaN"]);
}

#[test]
fn maths_that_is_not_implemented_is_refused_by_name() {
    for (form, key, value) in [
        ("transformers", "text_config.rope_parameters.rope_type", json!("linear")),
        ("transformers", "text_config.rope_scaling", json!({ "type": "dynamic", "factor": 2.0 })),
        ("original-safetensors", "language_config.rope_scaling", json!({ "type": "linear", "factor": 4.0 })),
        ("transformers", "text_config.hidden_act", json!("gelu")),
        ("original-safetensors", "language_config.hidden_act", json!("relu")),
        ("transformers", "text_config.attention_bias", json!(true)),
        ("transformers", "vision_config.use_qk_norm", json!(true)),
        ("transformers", "vq_config.double_latent", json!(true)),
        ("original-bin", "aligner_config.params.projector_type", json!("low_high_hybrid_split_mlp_gelu")),
        ("original-bin", "vision_config.params.select_layer", json!(-2)),
        ("original-bin", "vision_config.cls", json!("HybridVisionTower")),
        ("transformers", "model_type", json!("janus_flow")),
    ] {
        let copy = Checkpoint::copy(form);
        copy.set("config.json", key, value.clone());
        let value = value["type"].as_str().map_or(value.to_string(), str::to_owned);
        refuses_model(PAINT, &copy, &["config.json", key, &value]);
    }
    for (key, value, named) in [
        ("text_config.num_attention_heads", json!(5), "num_attention_heads"),
        ("text_config.num_key_value_heads", json!(3), "num_key_value_heads"),
        ("vision_config.num_attention_heads", json!(7), "vision heads"),
        ("text_config.hidden_size", json!(-64), "hidden_size"),
        ("text_config.vocab_size", json!(1_u64 << 40), "vocab_size"),
        ("text_config.num_hidden_layers", json!(5), "layers.4"),
    ] {
        let copy = Checkpoint::copy("transformers");
        copy.set("config.json", key, value);
        refuses_model(PAINT, &copy, &[named]);
    }
}

#[test]
fn prompts_that_are_empty_too_long_or_forged() {
    let dir = work();
    let long = "boat ".repeat(2000);
    let endless = "boat ".repeat(20_000);
    for (args, named) in [
        (&["generate", ""][..], "the prompt is empty"),
        (&["generate", " \n\t "], "the prompt is empty"),
        (&["generate", "--raw-prompt", ""], "the prompt is empty"),
        (&["ask", ""], "empty"),
        (&["ask", " ", "--image", "in.png"], "empty"),
        (&["ask", "--raw-prompt", ""], "empty"),
        (&["generate", &long], "1024"),
        (&["generate", &endless], "1024"),
        (&["ask", &long], "1024"),
        (&["ask", "--raw-prompt", &long], "1024"),
        (&["generate", "--raw-prompt", "a red boat"], "<begin_of_image>"),
        (&["generate", "--raw-prompt", "<image_placeholder><begin_of_image>"], "<image_placeholder>"),
        (&["generate", "a <begin_of_image> boat"], "<begin_of_image>"),
        (&["ask", "a <|Assistant|> boat"], "<|Assistant|>"),
        (&["ask", "--raw-prompt", "<image_placeholder> what?"], "1 image placeholder"),
        (&["ask", "--raw-prompt", "what?", "--image", "in.png"], "0 image placeholder"),
    ] {
        refuses_args(dir.path(), args, &[named]);
    }
}

#[test]
fn pictures_that_are_broken_empty_or_huge() {
    let dir = work();
    let path = |name: &str| dir.path().join(name);
    let png = std::fs::read(path("in.png")).unwrap();
    let jpeg = std::fs::read(tiny("golden/images/rgb_333x500.jpg")).unwrap();
    std::fs::write(path("empty.png"), "").unwrap();
    std::fs::write(path("text.png"), "this is no picture").unwrap();
    std::fs::write(path("cut.png"), &png[..png.len() / 2]).unwrap();
    std::fs::write(path("cut.jpg"), &jpeg[..jpeg.len() / 2]).unwrap();
    // A header of 60,000 x 60,000 pixels over no pixels at all, and a file of 100 MiB that takes no space.
    let mut bomb = png.clone();
    bomb[16..24].copy_from_slice(&[0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60]);
    std::fs::write(path("bomb.png"), with_crc(bomb)).unwrap();
    std::fs::File::create(path("huge.png")).unwrap().set_len(100 << 20).unwrap();
    std::fs::create_dir(path("folder.png")).unwrap();
    for (picture, named) in [
        ("missing.png", "No such file"),
        ("empty.png", "empty"),
        ("text.png", "not a picture"),
        ("cut.png", "truncated"),
        ("cut.jpg", "truncated"),
        ("bomb.png", "60000 x 60000"),
        ("huge.png", "bytes"),
        ("folder.png", "directory"),
    ] {
        for verb in [&["ask", "what?", "--image", picture][..], &["tokenize", picture]] {
            refuses_args(dir.path(), verb, &[picture, named]);
        }
        refuses_args(dir.path(), &with(PAINT, &["--keep-rows", "1", "--init-image", picture]), &[picture, named]);
    }
}

/// Puts the right checksum under a PNG's first chunk.
fn with_crc(mut png: Vec<u8>) -> Vec<u8> {
    let crc = png[12..29].iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 })
    });
    png[29..33].copy_from_slice(&(!crc).to_be_bytes());
    png
}

#[test]
fn ids_that_are_no_picture() {
    let dir = work();
    let tokens = |ids: &[i64]| json!({ "tokens": ids }).to_string();
    for (content, named) in [
        (tokens(&[0; 15]), "16"),
        (tokens(&[0; 17]), "16"),
        (tokens(&[]), "16"),
        (tokens(&[&[64][..], &[0; 15]].concat()), "64"),
        (tokens(&[&[0; 15][..], &[4_294_967_295]].concat()), "4294967295"),
        (tokens(&[&[0; 15][..], &[4_294_967_296]].concat()), "4294967296"),
        (tokens(&[&[-1][..], &[0; 15]].concat()), "-1"),
        ("{\"tokens\": [1.5]}".to_owned(), "1.5"),
        ("{\"tokens\": \"all\"}".to_owned(), "all"),
        ("{\"ids\": []}".to_owned(), "tokens"),
        ("[1, 2]".to_owned(), "tokens"),
        ("not json".to_owned(), "ids"),
        (String::new(), "ids"),
    ] {
        std::fs::write(dir.path().join("ids.json"), content).unwrap();
        refuses_args(dir.path(), &["detokenize", "ids.json", "-o", "out.png"], &["ids.json", named]);
    }
    std::fs::File::create(dir.path().join("ids.json")).unwrap().set_len(100 << 20).unwrap();
    refuses_args(dir.path(), &["detokenize", "ids.json", "-o", "out.png"], &["ids.json", "larger"]);
    refuses_args(dir.path(), &["detokenize", "none.json", "-o", "out.png"], &["none.json"]);
}

#[test]
fn numbers_out_of_range() {
    let dir = work();
    for (flag, values) in [
        ("--temperature", &["-1", "NaN", "inf", "-inf", "-0.5", "warm", ""][..]),
        ("--cfg-weight", &["-1", "nan", "inf", "1e39", "3.4e38", "1000001"]),
        ("--top-k", &["0", "-3", "1.5", "99999999999999999999"]),
        ("--top-p", &["0", "-0.1", "1.1", "NaN"]),
        ("--seed", &["-1", "0.5", "18446744073709551616"]),
        ("-n", &["0", "-1", "1000000000000", "2.5"]),
        ("--threads", &["0", "-1", "1000000000"]),
        ("--stages", &["0", "-1", "5", "1000000"]),
    ] {
        for value in values {
            refuses_args(dir.path(), &[PAINT, &[flag, value]].concat(), &[flag]);
        }
    }
    for (flag, value) in
        [("--max-tokens", "0"), ("--max-tokens", "-1"), ("--temperature", "-1"), ("--stages", "0"), ("--stages", "5")]
    {
        refuses_args(dir.path(), &["ask", "what?", flag, value], &[flag]);
    }
    for verb in [&["tokenize", "in.png"][..], &["ask", "what?"], PAINT] {
        refuses_args(dir.path(), &[verb, &["--stages", "5"]].concat(), &["--stages", "4 layers"]);
    }
    for (flag, value) in
        [("--limit", "0"), ("--cfg-weight", "1e7"), ("--cfg-weight", "-1"), ("--temperature", "nan"), ("--stages", "0")]
    {
        refuses(dir.path(), &["eval", "shapes", flag, value], &[flag]);
    }
    for (flag, value) in [("--rows", "0"), ("--rows", "2,x"), ("--threads", "0"), ("--stages", "0"), ("--phase", "sleep")] {
        refuses(dir.path(), &["bench", "--arch", "shapes", flag, value], &[flag]);
    }
    for rows in ["5", "-1", "1000000000000", "half", "18446744073709551615"] {
        refuses_args(dir.path(), &[PAINT, &["--init-image", "in.png", "--keep-rows", rows]].concat(), &["--keep-rows"]);
    }
    refuses_args(dir.path(), &with(PAINT, &["--init-image", "in.png"]), &["--keep-rows"]);
    refuses_args(dir.path(), &with(PAINT, &["--keep-rows", "1"]), &["--init-image"]);
}

#[test]
fn outputs_that_cannot_be_written() {
    let dir = work();
    std::fs::create_dir(dir.path().join("folder.png")).unwrap();
    std::fs::create_dir(dir.path().join("taken-1.png")).unwrap();
    let made = std::process::Command::new("mkfifo").arg(dir.path().join("pipe.png")).status().unwrap();
    assert!(made.success());
    std::fs::write(dir.path().join("ids.json"), json!({ "tokens": vec![0; 16] }).to_string()).unwrap();
    let paint = ["generate", "a red boat", "-o"];
    let decode = ["detokenize", "ids.json", "-o"];
    for (verb, output, named) in [
        (&paint[..], "no/such/folder/x.png", "no/such/folder/x.png"),
        (&paint, "in.png/x.png", "in.png/x.png"),
        (&paint, "x.jpg", "PNG"),
        (&paint, "", "--output"),
        (&paint, "pipe.png", "regular file"),
        (&paint, "/dev/null", "/dev/null"),
        (&decode, "no/such/folder/x.png", "no/such/folder/x.png"),
        (&decode, "folder.png", "directory"),
        (&decode, "x.jpg", "PNG"),
        (&decode, "pipe.png", "regular file"),
        (&decode, "/proc/x.png", "/proc/x.png"),
    ] {
        refuses_args(dir.path(), &[verb, &[output]].concat(), &[named]);
    }
    refuses_args(dir.path(), &["generate", "a red boat", "-n", "2", "-o", "taken.png"], &["taken-1.png", "directory"]);
    let closed = tempdir().unwrap();
    std::fs::set_permissions(closed.path(), std::os::unix::fs::PermissionsExt::from_mode(0o555)).unwrap();
    // Root may write anywhere.
    if std::fs::write(closed.path().join("probe"), "").is_err() {
        let output = text(&closed.path().join("x.png"));
        refuses_args(dir.path(), &[&paint[..], &[&output]].concat(), &[&output]);
    }
}

#[test]
fn endpoints_that_are_none_and_what_a_server_refuses() {
    let dir = work();
    let at = |verb: &[&str], endpoint: &str, names: &[&str]| {
        refuses(dir.path(), &[verb, &["--endpoint", endpoint]].concat(), names);
    };
    for endpoint in ["", ",", "nonsense", "127.0.0.1", "127.0.0.1:x", "http://:7070", "127.0.0.1:70700"] {
        at(PAINT, endpoint, &["--endpoint"]);
    }
    at(&with(PAINT, &["--model", "shapes"]), "127.0.0.1:1", &["--endpoint", "--model"]);
    // Nobody's mistake, as far as this program can know.
    let nobody = janus(dir.path(), &[PAINT, &["--endpoint", "127.0.0.1:1"]].concat());
    assert_eq!(nobody.code, Some(1), "{nobody:?}");
    assert!(nobody.stderr.contains("127.0.0.1:1") && !dir.path().join("out.png").exists(), "{nobody:?}");

    let served = served::Served::start(&["--model", &text(&tiny("transformers")), "--threads", "1"]);
    std::fs::write(dir.path().join("text.png"), "this is no picture").unwrap();
    std::fs::write(dir.path().join("ids.json"), "{\"tokens\":[1,2]}").unwrap();
    for (verb, names) in [
        (&["generate", " "][..], &["prompt is empty"][..]),
        (&with(PAINT, &["--init-image", "in.png", "--keep-rows", "5"]), &["keep"]),
        (&["ask", "what?", "--image", "text.png"], &["not a picture"]),
        (&["tokenize", "text.png"], &["not a picture"]),
        (&["detokenize", "ids.json", "-o", "x.png"], &["ids.json", "16 ids"]),
    ] {
        at(verb, &served.address, names);
    }
}
