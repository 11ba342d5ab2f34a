//! What is read from the configurations of both layouts.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Checkpoint, janus_1_3b, janus_pro_1b, janus_pro_1b_ported, janus_pro_7b, tiny};
use janus_spec::{Files, Layout, ModelSpec, SizeRule, StoredDtype};
use serde_json::json;

#[test]
fn published_configurations_are_the_presets() {
    assert_eq!(janus_1_3b().spec(), ModelSpec::janus_1_3b());
    assert_eq!(janus_pro_1b().spec(), ModelSpec::janus_pro_1b());
    assert_eq!(janus_pro_7b().spec(), ModelSpec::janus_pro_7b());
    for spec in [ModelSpec::janus_1_3b(), ModelSpec::janus_pro_1b(), ModelSpec::janus_pro_7b()] {
        spec.validate().unwrap();
        assert_eq!((spec.image_tokens(), spec.vq.tokens(), spec.vq.factor()), (576, 576, 16));
    }
}

#[test]
fn the_7b_lives_on_llama_defaults() {
    let llm = janus_pro_7b().spec().llm;
    assert_eq!(
        (llm.hidden, llm.layers, llm.heads, llm.kv_heads, llm.head_dim, llm.intermediate),
        (4096, 30, 32, 32, 128, 11008)
    );
    assert_eq!((llm.rms_eps, llm.rope_theta, llm.vocab, llm.max_positions), (1e-6, 10000.0, 102_400, 16384));
}

#[test]
fn llama_defaults_reach_every_key() {
    let llm = janus_pro_7b().set("config.json", "language_config", json!({})).spec().llm;
    assert_eq!((llm.layers, llm.vocab, llm.max_positions), (32, 32000, 2048));
}

#[test]
fn a_ported_configuration_without_defaults_is_the_same_model() {
    let (ported, original) = (janus_pro_1b_ported().spec(), ModelSpec::janus_pro_1b());
    assert_eq!((ported.layout, ported.preprocess.rounding), (Layout::Transformers, SizeRule::HalfEven));
    assert_eq!((&ported.llm, &ported.vision, &ported.vq), (&original.llm, &original.vision, &original.vq));
    assert_eq!((&ported.aligner, &ported.gen_aligner), (&original.aligner, &original.gen_aligner));
    assert_eq!(ported.gen_head, original.gen_head);
    assert_eq!((ported.image_token_id, ported.tie_word_embeddings), (Some(100_581), true));
    assert!(!original.tie_word_embeddings);
}

#[test]
fn the_tiny_checkpoint_is_one_model_in_every_form() {
    let open = |form: &str| ModelSpec::load(&Files::open_dir(tiny(form)).unwrap()).unwrap();
    let (ported, tensors, pickle) = (open("transformers"), open("original-safetensors"), open("original-bin"));
    assert_eq!(tensors, pickle);
    assert_eq!((&ported.llm, &ported.vision, &ported.vq), (&tensors.llm, &tensors.vision, &tensors.vq));
    assert_eq!(
        (&ported.aligner, &ported.gen_aligner, &ported.gen_head),
        (&tensors.aligner, &tensors.gen_aligner, &tensors.gen_head)
    );
    assert_eq!(ported.generation.pad_token_id, Some(514));
    assert_eq!((ported.dtype, tensors.dtype), (StoredDtype::BF16, StoredDtype::BF16));
    assert_eq!((tensors.layout, tensors.preprocess.rounding), (Layout::Original, SizeRule::Truncate));
    assert_eq!((ported.vision.tokens(), ported.vq.grid, ported.vq.multipliers.len()), (16, 4, 5));
    assert_eq!((ported.llm.head_dim, ported.vision.head_dim(), ported.vision.mlp), (16, 12, 192));
}

#[test]
fn transformers_4_and_5_write_the_same_model() {
    let five = Checkpoint::tiny("transformers");
    let four = five.clone().file("config.json", std::fs::read(tiny("transformers/config.transformers-4.json")).unwrap());
    assert_eq!(four.spec(), five.spec());
    let theta = json!({"rope_type": "default", "rope_theta": 50000.0});
    assert_eq!(five.set("config.json", "text_config.rope_parameters", theta).spec().llm.rope_theta, 50000.0);
    assert_eq!(four.set("config.json", "text_config.rope_theta", json!(50000)).spec().llm.rope_theta, 50000.0);
}

#[test]
fn vq_depth_is_read_under_both_names() {
    let five = Checkpoint::tiny("transformers").set("config.json", "vq_config.num_hidden_layers", json!(3));
    assert_eq!(five.spec().gen_aligner.depth, 3);
    let four =
        five.set("config.json", "vq_config.num_hidden_layers", json!(null)).set("config.json", "vq_config.depth", json!(4));
    assert_eq!(four.spec().gen_aligner.depth, 4);
}

#[test]
fn grouped_queries_and_pixel_norm_are_honoured() {
    let grouped = Checkpoint::tiny("original-bin").set("config.json", "language_config.num_key_value_heads", json!(2));
    assert_eq!((grouped.spec().llm.heads, grouped.spec().llm.kv_heads), (4, 2));
    let normed = grouped.set("config.json", "vision_config.params.pixel_mean", json!([0.1, 0.2, 0.3]));
    // As in the code, one alone does nothing.
    assert_eq!(normed.spec().vision.pixel_norm, None);
    let normed = normed.set("config.json", "vision_config.params.pixel_std", json!([1, 2, 3]));
    assert_eq!(normed.spec().vision.pixel_norm, Some(([0.1, 0.2, 0.3], [1.0, 2.0, 3.0])));
}

#[test]
fn old_copies_without_normalisation_stay_without() {
    let file = "preprocessor_config.json";
    let spec = janus_1_3b().set(file, "do_normalize", json!(false)).spec();
    assert!(!spec.preprocess.do_normalize);
    assert_ne!(spec.fingerprint(), ModelSpec::janus_1_3b().fingerprint());
}

#[test]
fn omitted_statistics_are_clips_and_colour_the_padding() {
    let file = "preprocessor_config.json";
    let pixels = janus_1_3b().set(file, "image_mean", json!(null)).set(file, "image_std", json!(null)).spec().preprocess;
    assert_eq!(pixels.background, [122, 116, 104]);
    assert_eq!(pixels.mean[0], 0.481_454_66);
    assert_eq!(pixels.std[2], 0.275_777_1);
}

#[test]
fn transformers_5_may_nest_the_image_processor() {
    let nested = Checkpoint::tiny("transformers");
    let alone = nested.clone().without("preprocessor_config.json");
    assert_eq!(alone.spec(), nested.spec());
    let changed = nested.set("processor_config.json", "image_processor.min_size", json!(7));
    assert_eq!(changed.spec().preprocess.min_size, 7);
    assert_eq!(changed.without("processor_config.json").spec().preprocess.min_size, 14);
}

#[test]
fn generation_defaults_are_the_originals_unless_the_file_speaks() {
    let file = "generation_config.json";
    let silent = Checkpoint::tiny("original-bin").spec().generation;
    assert_eq!((silent.cfg_weight, silent.temperature, silent.top_k, silent.top_p), (5.0, 1.0, None, None));
    assert_eq!((silent.text_temperature, silent.text_max_tokens), (0.0, 512));
    let spoken = Checkpoint::tiny("transformers")
        .set(file, "guidance_scale", json!(2))
        .set(file, "temperature", json!(0.7))
        .set(file, "top_k", json!(50))
        .set(file, "top_p", json!(0.9))
        .set(file, "max_new_tokens", json!(32))
        .set(file, "do_sample", json!(true));
    let read = spoken.spec().generation;
    assert_eq!(
        (read.cfg_weight, read.temperature, read.top_k, read.top_p, read.text_max_tokens),
        (2.0, 0.7, Some(50), Some(0.9), 32)
    );
    let off = spoken
        .set(file, "top_k", json!(0))
        .set(file, "top_p", json!(1.0))
        .set(file, "do_sample", json!(false))
        .spec()
        .generation;
    assert_eq!((off.top_k, off.top_p, off.temperature), (None, None, 0.0));
}

#[test]
fn unknown_keys_are_ignored() {
    let plain = Checkpoint::tiny("transformers");
    let noisy = plain.clone().set("config.json", "text_config.a_new_switch", json!(7)).set(
        "config.json",
        "_name_or_path",
        json!("x"),
    );
    assert_eq!(noisy.spec(), plain.spec());
}

#[test]
fn the_fingerprint_follows_the_maths_only() {
    let plain = Checkpoint::tiny("transformers");
    let print = plain.spec().fingerprint();
    let cooler =
        plain.clone().set("generation_config.json", "temperature", json!(0.5)).set("config.json", "dtype", json!("float32"));
    assert_eq!(cooler.spec().fingerprint(), print);
    assert_ne!(plain.set("config.json", "text_config.rms_norm_eps", json!(1e-5)).spec().fingerprint(), print);
}

#[test]
fn sizes_agree_with_the_published_totals() {
    assert_eq!(ModelSpec::janus_pro_1b().parameters(), 2_076_636_811);
    assert_eq!(ModelSpec::janus_pro_7b().parameters(), 7_407_773_323);
    assert_eq!(Checkpoint::tiny("transformers").spec().parameters(), 2_373_451);
    assert_eq!(ModelSpec::janus_pro_1b().kv_bytes_per_position(2), 196_608);
    assert_eq!(ModelSpec::janus_pro_7b().kv_bytes_per_position(2), 491_520);
    let spec = ModelSpec::janus_pro_1b();
    assert_eq!(spec.llm.kv_bytes(6, 2) * 4, spec.kv_bytes_per_position(2));
    assert_eq!(spec.layer_bytes(2), 2 * (4 * 2048 * 2048 + 3 * 2048 * 5632 + 2 * 2048));
    let parts = spec.parts();
    assert_eq!(parts.gen_embedding, 16384 * 8);
    let vq = parts.vq_encoder + parts.vq_codebook + parts.vq_decoder;
    let millions = |n: u64| (n + 500_000) / 1_000_000;
    assert_eq!((millions(parts.vision), millions(vq), millions(parts.gen_head)), (304, 72, 38));
}
