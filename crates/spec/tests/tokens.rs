//! Special ids by text, BOS, decoding and streams.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Checkpoint, read_json};
use janus_spec::{Error, TextStream, Tokenizer};
use serde_json::{Value, json};

const CONFIG: &str = "tokenizer_config.json";
const MAP: &str = "special_tokens_map.json";

#[test]
fn special_ids_are_the_references() {
    let golden = read_json("golden/prompts.json");
    let id = |token: &str| u32::try_from(golden["special_ids"][token].as_u64().unwrap()).unwrap();
    for form in ["transformers", "original-safetensors", "original-bin"] {
        let tokenizer = Checkpoint::tiny(form).tokenizer();
        let special = tokenizer.special();
        assert_eq!((special.bos, special.eos), (id("<｜begin▁of▁sentence｜>"), id("<｜end▁of▁sentence｜>")));
        assert_eq!((special.pad, special.image_placeholder), (id("<｜▁pad▁｜>"), id("<image_placeholder>")));
        assert_eq!((special.begin_of_image, special.end_of_image), (id("<begin_of_image>"), id("<end_of_image>")));
        assert_eq!((special.user, special.assistant), (Some(id("<|User|>")), Some(id("<|Assistant|>"))));
    }
}

#[test]
fn ids_follow_the_text_wherever_it_moves() {
    // Pad and image start change places.
    let file = "tokenizer.json";
    let moved = Checkpoint::tiny("original-bin")
        .replace(file, "<｜▁pad▁｜>", "<swap>")
        .replace(file, "<begin_of_image>", "<｜▁pad▁｜>")
        .replace(file, "<swap>", "<begin_of_image>")
        .tokenizer();
    assert_eq!((moved.special().pad, moved.special().begin_of_image), (515, 514));
}

#[test]
fn the_pad_is_the_one_the_reference_would_take() {
    let eos = json!("<｜end▁of▁sentence｜>");
    // Original: by the processor's tag, whatever the tokeniser calls its pad.
    let original = Checkpoint::tiny("original-bin").set(MAP, "pad_token", eos.clone());
    assert_eq!(original.tokenizer().special().pad, 514);
    assert_eq!(original.clone().set("processor_config.json", "pad_tag", json!("<|ref|>")).tokenizer().special().pad, 518);
    // Without such a token, the tokeniser's.
    assert_eq!(original.replace("tokenizer.json", "<｜▁pad▁｜>", "<no_pad>").tokenizer().special().pad, 513);
    // Transformers: generation_config.json, then the tokeniser's, then the published text.
    let ported = Checkpoint::tiny("transformers");
    let by_id = ported.clone().set("generation_config.json", "pad_token_id", json!(518));
    assert_eq!(by_id.tokenizer().special().pad, 518);
    let by_text = ported.set("generation_config.json", "pad_token_id", json!(null)).set(
        CONFIG,
        "pad_token",
        json!({"content": "<|det|>"}),
    );
    assert_eq!(by_text.tokenizer().special().pad, 520);
    assert_eq!(by_text.set(CONFIG, "pad_token", json!(null)).tokenizer().special().pad, 514);
}

#[test]
fn the_map_overrules_unless_the_configuration_lists_its_tokens() {
    let base = Checkpoint::tiny("original-bin").set(MAP, "eos_token", json!("<|ref|>"));
    assert_eq!(base.tokenizer().special().eos, 518);
    assert_eq!(base.set(CONFIG, "added_tokens_decoder", json!({"512": {}})).tokenizer().special().eos, 513);
}

#[test]
fn there_is_exactly_one_bos() {
    for form in ["transformers", "original-bin"] {
        let tokenizer = Checkpoint::tiny(form).tokenizer();
        let bos = "<｜begin▁of▁sentence｜>";
        let plain = tokenizer.encode("a red boat").unwrap();
        assert_eq!(plain.iter().filter(|id| **id == 512).count(), 1);
        assert_eq!(plain[0], 512);
        assert_eq!(tokenizer.encode(&format!("{bos}a red boat")).unwrap(), plain);
        assert_eq!(tokenizer.encode(&format!("{bos}{bos}a red boat")).unwrap(), plain);
        assert_eq!(tokenizer.encode("").unwrap(), [512]);
    }
}

#[test]
fn a_stored_truncation_or_padding_is_not_applied() {
    let truncation = json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
    let padding = json!({"strategy": {"Fixed": 64}, "direction": "Left", "pad_to_multiple_of": null, "pad_id": 514,
        "pad_type_id": 0, "pad_token": "<｜▁pad▁｜>"});
    let plain = Checkpoint::tiny("transformers");
    let set = plain.clone().set("tokenizer.json", "truncation", truncation).set("tokenizer.json", "padding", padding);
    let text = "a rather longer prompt about a boat";
    assert_eq!(set.tokenizer().encode(text).unwrap(), plain.tokenizer().encode(text).unwrap());
}

fn greedy(case: &Value) -> (Vec<u32>, &str) {
    let ids = case["greedy_ids"].as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect();
    (ids, case["text"].as_str().unwrap())
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut stream = tokenizer.stream_decoder();
    let mut text = String::new();
    for id in ids {
        text.push_str(&stream.push(tokenizer, *id).unwrap().unwrap_or_default());
    }
    text + &stream.finish(tokenizer).unwrap()
}

#[test]
fn answers_decode_to_the_references_text_at_once_and_streamed() {
    let golden = read_json("golden/lm_text.json");
    for form in ["transformers", "original-bin"] {
        let tokenizer = Checkpoint::tiny(form).tokenizer();
        for name in ["understand_pro_1", "understand_two_images", "text_only_pro", "multi_turn_pro"] {
            let (ids, text) = greedy(&golden[name]);
            assert_eq!(tokenizer.decode(&ids, true).unwrap(), text, "{form} {name}");
            assert_eq!(streamed(&tokenizer, &ids), text, "{form} {name}");
        }
        assert_eq!(tokenizer.decode(&[512, 340, 513], false).unwrap(), "<｜begin▁of▁sentence｜> is<｜end▁of▁sentence｜>");
    }
}

#[test]
fn a_character_is_streamed_when_it_is_whole() {
    let tokenizer = Checkpoint::tiny("transformers").tokenizer();
    let ids = tokenizer.encode("猫🦊!").unwrap();
    let mut stream = TextStream::new();
    let pieces: Vec<Option<String>> = ids[1..].iter().map(|id| stream.push(&tokenizer, *id).unwrap()).collect();
    let pieces: Vec<&str> = pieces.iter().map(|piece| piece.as_deref().unwrap_or("-")).collect();
    assert_eq!(pieces, ["-", "-", "猫", "-", "-", "-", "🦊", "!"]);
    assert_eq!(stream.finish(&tokenizer).unwrap(), "");
    let mut cut = TextStream::new();
    assert_eq!(cut.push(&tokenizer, ids[1]).unwrap(), None);
    assert_eq!(cut.finish(&tokenizer).unwrap(), "\u{fffd}");
}

#[test]
fn any_stream_adds_up_to_the_whole() {
    let tokenizer = Checkpoint::tiny("transformers").tokenizer();
    let mut state = 7_u64;
    for _ in 0..300 {
        let ids: Vec<u32> = (0..40)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                // Mostly single bytes, which seldom make whole characters; ids past 525 have no token.
                let range = if state & (1 << 20) == 0 { 256 } else { 544 };
                u32::try_from((state >> 33) % range).unwrap()
            })
            .collect();
        assert_eq!(streamed(&tokenizer, &ids), tokenizer.decode(&ids, true).unwrap(), "{ids:?}");
    }
}

#[test]
fn unusable_tokenisers_are_refused() {
    let base = Checkpoint::tiny("transformers");
    let refused = |checkpoint: &Checkpoint, says: &str| {
        let message = checkpoint.load_tokenizer().unwrap_err().to_string();
        assert!(message.contains(says), "{message}");
    };
    refused(&base.clone().without("tokenizer.json"), "tokenizer.json is missing");
    refused(&base.clone().file("tokenizer.json", "{\"version\": 1"), "tokenizer.json");
    refused(&base.clone().file("tokenizer.json", "[]"), "tokenizer.json");
    refused(&base.clone().file(CONFIG, "{"), "tokenizer_config.json, line 1");
    refused(&base.clone().set(CONFIG, "bos_token", json!(7)), "bos_token");
    refused(&base.clone().set("tokenizer.json", "decoder", json!({"type": "Fuse"})), "ByteLevel");
    refused(&base.clone().set("tokenizer.json", "decoder", json!(null)), "ByteLevel");
    refused(&base.clone().set("config.json", "text_config.vocab_size", json!(525)), "vocab_size 525");
    refused(&base.clone().set("generation_config.json", "pad_token_id", json!(544)), "token id 544");
    refused(&base.clone().set("config.json", "image_token_id", json!(517)), "image_token_id 517");
    for token in ["<image_placeholder>", "<begin_of_image>", "<end_of_image>", "<｜begin▁of▁sentence｜>"] {
        let gone = Checkpoint::tiny("original-bin").replace("tokenizer.json", token, "<gone>");
        assert!(matches!(gone.load_tokenizer(), Err(Error::MissingToken { token: t, .. }) if t == token));
    }
}

#[test]
fn the_digest_is_the_files() {
    let base = Checkpoint::tiny("original-bin");
    assert_eq!(base.tokenizer().digest(), Checkpoint::tiny("original-safetensors").tokenizer().digest());
    assert_ne!(base.tokenizer().digest(), Checkpoint::tiny("transformers").tokenizer().digest());
}
