//! Configurations that must not be answered with something else than they ask for.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Checkpoint, janus_pro_7b};
use janus_spec::Error;
use serde_json::{Value, json};

const CONFIG: &str = "config.json";

/// The message must name the file, the last part of the key, and the value.
fn refuses(form: &str, file: &str, key: &str, value: Value) -> String {
    let message = match Checkpoint::tiny(form).set(file, key, value.clone()).load() {
        Ok(_) => panic!("{form}: {file} {key} = {value} was accepted"),
        Err(error) => error.to_string(),
    };
    let leaf = key.rsplit('.').next().unwrap();
    assert!(message.contains(file), "{message}: does not name {file}");
    assert!(message.contains(leaf), "{message}: does not name {key}");
    assert!(message.contains(&value.to_string()), "{message}: does not show {value}");
    message
}

#[test]
fn what_changes_the_maths_is_refused_by_name() {
    let llama = [
        ("hidden_act", json!("gelu")),
        ("attention_bias", json!(true)),
        ("mlp_bias", json!(true)),
        ("use_qk_norm", json!(true)),
        ("sliding_window", json!(4096)),
        ("pretraining_tp", json!(2)),
        ("partial_rotary_factor", json!(0.5)),
        ("num_local_experts", json!(8)),
        ("model_type", json!("qwen2")),
        ("quantization_config", json!({"bits": 4})),
    ];
    for (key, value) in &llama {
        for (form, section) in [("transformers", "text_config"), ("original-bin", "language_config")] {
            let message = refuses(form, CONFIG, &format!("{section}.{key}"), value.clone());
            assert!(message.contains("not supported"), "{message}");
        }
    }
    let ported = [
        ("quantization_config", json!({"bits": 4})),
        ("model_type", json!("janus_flow")),
        ("architectures", json!(["JanusModel"])),
        ("dtype", json!("float8_e4m3fn")),
        ("vision_config.hidden_act", json!("gelu_pytorch_tanh")),
        ("vision_config.attention_bias", json!(false)),
        ("vision_config.use_qk_norm", json!(true)),
        ("vision_config.num_channels", json!(1)),
        ("vision_config.image_size", json!([64, 32])),
        ("vq_config.hidden_act", json!("relu")),
        ("vq_config.double_latent", json!(true)),
        ("vq_config.in_channels", json!(1)),
        ("vq_config.out_channels", json!(4)),
        ("vq_config.attn_resolutions", json!([16])),
    ];
    for (key, value) in ported {
        refuses("transformers", CONFIG, key, value);
    }
    let original = [
        ("architectures", json!(["LlavaForCausalLM"])),
        ("vision_config.cls", json!("HybridVisionTower")),
        ("vision_config.params.model_name", json!("siglip_so400m_patch14_384")),
        ("vision_config.params.select_layer", json!(-2)),
        ("vision_config.params.select_feature", json!("patch")),
        ("aligner_config.cls", json!("Linear")),
        ("aligner_config.params.projector_type", json!("linear")),
        ("gen_aligner_config.params.projector_type", json!("low_high_hybrid_split_mlp_gelu")),
        ("gen_head_config.cls", json!("other_head")),
        ("gen_vision_config.cls", json!("VQ-8")),
        ("gen_vision_config.params.codebook_l2_norm", json!(false)),
        ("gen_vision_config.params.decoder_ch_mult", json!([1, 2])),
    ];
    for (key, value) in original {
        refuses("original-bin", CONFIG, key, value);
    }
}

#[test]
fn every_scaled_rope_is_refused() {
    for value in
        [json!({"type": "linear", "factor": 2.0}), json!({"rope_type": "llama3", "factor": 8.0}), json!({"factor": 4.0})]
    {
        for key in ["text_config.rope_scaling", "text_config.rope_parameters"] {
            let error = Checkpoint::tiny("transformers").set(CONFIG, key, value.clone()).load().unwrap_err().to_string();
            assert!(error.contains(key) && error.contains("not supported"), "{error}");
        }
    }
    refuses("transformers", CONFIG, "text_config.rope_parameters.rope_type", json!("yarn"));
    refuses("transformers", CONFIG, "text_config.rope_parameters.factor", json!(2.0));
    refuses("transformers", CONFIG, "text_config.rope_parameters.partial_rotary_factor", json!(0.25));
    // Both forms at once, and they disagree.
    Checkpoint::tiny("transformers").set(CONFIG, "text_config.rope_theta", json!(500.0)).load().unwrap_err();
}

#[test]
fn an_absent_select_layer_means_minus_two() {
    let error =
        Checkpoint::tiny("original-bin").set(CONFIG, "vision_config.params.select_layer", json!(null)).load().unwrap_err();
    assert!(error.to_string().contains("select_layer"), "{error}");
}

#[test]
fn an_absent_image_size_means_336() {
    let error = janus_pro_7b().set(CONFIG, "vision_config.params.image_size", json!(null)).load().unwrap_err().to_string();
    assert!(error.contains("image_size 336"), "{error}");
}

#[test]
fn pictures_prepared_otherwise_are_refused() {
    let file = "preprocessor_config.json";
    for (key, value) in [
        ("resample", json!(2)),
        ("do_resize", json!(false)),
        ("do_rescale", json!(false)),
        ("do_pad", json!(false)),
        ("do_center_crop", json!(true)),
        ("image_processor_type", json!("CLIPImageProcessor")),
        ("image_mean", json!([0.5, 0.5])),
        ("rescale_factor", json!("1/255")),
        ("do_normalize", json!("yes")),
        ("image_size", json!(0)),
    ] {
        refuses("original-bin", file, key, value);
    }
    refuses("original-bin", file, "image_mean", json!([2.0, 0.5, 0.5]));
    let nested = "processor_config.json";
    refuses("transformers", nested, "image_processor.resample", json!(0));
    refuses("transformers", nested, "image_processor.size", json!({"height": 64, "width": 32}));
}

#[test]
fn decoding_that_is_not_implemented_is_refused() {
    for (key, value) in [
        ("num_beams", json!(4)),
        ("repetition_penalty", json!(1.2)),
        ("min_p", json!(0.1)),
        ("temperature", json!(-1.0)),
        ("top_p", json!(1.5)),
        ("top_k", json!(-3)),
        ("guidance_scale", json!("five")),
    ] {
        refuses("transformers", "generation_config.json", key, value);
    }
}

#[test]
fn prompts_built_otherwise_are_refused() {
    refuses("original-bin", "processor_config.json", "add_special_token", json!(true));
    refuses("original-bin", "processor_config.json", "sft_format", json!("plain"));
    for form in ["original-bin", "transformers"] {
        refuses(form, "processor_config.json", "num_image_tokens", json!(576));
    }
}

#[test]
fn numbers_that_do_not_fit_are_refused() {
    let ported = [
        ("text_config.num_attention_heads", json!(5)),
        ("text_config.num_key_value_heads", json!(3)),
        ("text_config.head_dim", json!(15)),
        ("text_config.max_position_embeddings", json!(17)),
        ("text_config.rms_norm_eps", json!(0)),
        ("text_config.rms_norm_eps", json!(-1)),
        ("text_config.rope_parameters.rope_theta", json!(0)),
        ("vision_config.num_image_tokens", json!(576)),
        ("vision_config.layer_norm_eps", json!(2)),
        ("vision_config.mlp_ratio", json!(-4.0)),
        ("vq_config.image_token_embed_dim", json!(32)),
    ];
    for (key, value) in ported {
        refuses("transformers", CONFIG, key, value);
    }
    for (key, value, says) in [
        ("vision_config.num_attention_heads", json!(5), "vision heads"),
        ("vision_config.projection_dim", json!(65), "aligner output width"),
        ("vq_config.projection_dim", json!(65), "generation aligner output width"),
        ("vq_config.base_channels", json!(33), "multiple of 32"),
        ("vq_config.channel_multiplier", json!([1, 2]), "VQ grid"),
        ("vq_config.channel_multiplier", json!([]), "VQ levels"),
        ("vq_config.channel_multiplier", json!([1, 1, 1, 1, 1, 1, 1, 1, 1, 1]), "VQ levels"),
        ("vq_config.num_embeddings", json!(65_537), "codebook size"),
        ("vision_config.patch_size", json!(24), "patch_size"),
    ] {
        let mut tiny = Checkpoint::tiny("transformers").set(CONFIG, key, value);
        if key == "vision_config.patch_size" {
            tiny = tiny.set(CONFIG, "vision_config.num_image_tokens", json!(4));
        }
        let error = tiny.load().unwrap_err().to_string();
        assert!(error.contains(says), "{key}: {error}");
    }
    for (key, value) in [
        ("aligner_config.params.input_dim", json!(47)),
        ("gen_aligner_config.params.n_embed", json!(63)),
        ("gen_head_config.params.n_embed", json!(63)),
        ("gen_head_config.params.image_token_size", json!(63)),
    ] {
        let error = Checkpoint::tiny("original-bin").set(CONFIG, key, value.clone()).load().unwrap_err().to_string();
        assert!(error.contains(&value.to_string()), "{key}: {error}");
    }
}

#[test]
fn hostile_numbers_end_before_anything_is_allocated() {
    let hostile = [
        json!(0),
        json!(-1),
        json!(1.5),
        json!(u64::MAX),
        json!(1u64 << 40),
        json!("64"),
        json!([64]),
        json!(true),
        json!(1e300),
    ];
    let keys = [
        "text_config.hidden_size",
        "text_config.num_hidden_layers",
        "text_config.num_attention_heads",
        "text_config.intermediate_size",
        "text_config.vocab_size",
        "text_config.max_position_embeddings",
        "vision_config.hidden_size",
        "vision_config.num_hidden_layers",
        "vision_config.patch_size",
        "vq_config.base_channels",
        "vq_config.latent_channels",
        "vq_config.num_embeddings",
        "vq_config.num_res_blocks",
    ];
    for key in keys {
        for value in &hostile {
            refuses("transformers", CONFIG, key, value.clone());
        }
    }
    // Each alone is possible, together they are 2^50.
    let huge = Checkpoint::tiny("original-bin")
        .set(CONFIG, "language_config.intermediate_size", json!(1 << 20))
        .set(CONFIG, "language_config.vocab_size", json!(1 << 20))
        .set(CONFIG, "language_config.num_hidden_layers", json!(1024))
        .set(CONFIG, "language_config.num_attention_heads", json!(1 << 10))
        .set(CONFIG, "language_config.num_key_value_heads", json!(1 << 10))
        .set(CONFIG, "language_config.hidden_size", json!(1 << 20))
        .set(CONFIG, "aligner_config.params.n_embed", json!(1 << 20))
        .set(CONFIG, "gen_aligner_config.params.n_embed", json!(1 << 20))
        .set(CONFIG, "gen_head_config.params.n_embed", json!(1 << 20));
    let error = huge.load().unwrap_err().to_string();
    assert!(error.contains("number of parameters"), "{error}");
    let deep = Checkpoint::tiny("original-bin").file(CONFIG, format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000)));
    assert!(matches!(deep.load(), Err(Error::Json { .. })));
}

#[test]
fn broken_files_are_named_with_line_and_column() {
    for file in [CONFIG, "preprocessor_config.json", "processor_config.json", "generation_config.json"] {
        let error = Checkpoint::tiny("transformers")
            .without("processor_config.json")
            .file(file, "{\n  \"a\": ?\n}")
            .load()
            .unwrap_err();
        let message = error.to_string();
        assert!(message.starts_with(&format!("{file}, line 2, column ")), "{message}");
        assert!(!error.is_retryable());
    }
    for content in ["", "[]", "null", "{}", "\u{feff}{}", "{\"model_type\": \"janus\"", "{\"model_type\": NaN}"] {
        Checkpoint::tiny("transformers").file(CONFIG, content).load().unwrap_err();
    }
    Checkpoint::tiny("transformers").file(CONFIG, [0xff, 0xfe, 0x00]).load().unwrap_err();
}

#[test]
fn missing_sections_and_files_are_named() {
    for section in
        ["vision_config", "aligner_config", "gen_vision_config", "gen_aligner_config", "gen_head_config", "language_config"]
    {
        let error = janus_pro_7b().set(CONFIG, section, json!(null)).load().unwrap_err().to_string();
        assert!(error.contains(section) && error.contains("missing"), "{error}");
    }
    let error = janus_pro_7b().without("preprocessor_config.json").load().unwrap_err().to_string();
    assert!(error.contains("preprocessor_config.json"), "{error}");
    let error = janus_pro_7b().set(CONFIG, "model_type", json!(null)).load().unwrap_err().to_string();
    assert_eq!(error, "config.json: model_type is missing");
}

#[test]
fn a_long_value_is_shortened() {
    let error = Checkpoint::tiny("transformers").set(CONFIG, "model_type", json!("x".repeat(10_000))).load().unwrap_err();
    assert!(error.to_string().len() < 300);
}
