//! Checkpoints for the tests: the tiny one's small files, changed at will, and the published configurations.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use janus_spec::{Error, Files, ModelSpec, Tokenizer};
use serde_json::Value;

/// A path inside the tiny checkpoint's folder.
pub fn tiny(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/tiny-a").join(path)
}

pub fn read_json(path: &str) -> Value {
    serde_json::from_slice(&std::fs::read(tiny(path)).unwrap()).unwrap()
}

/// The small files of a checkpoint, in memory.
#[derive(Clone, Default)]
pub struct Checkpoint(BTreeMap<String, Vec<u8>>);

impl Checkpoint {
    /// The tiny checkpoint in one of its forms: `transformers`, `original-safetensors`, `original-bin`.
    pub fn tiny(form: &str) -> Checkpoint {
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(tiny(form)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "json" || e == "jinja") {
                files.insert(path.file_name().unwrap().to_str().unwrap().to_string(), std::fs::read(&path).unwrap());
            }
        }
        Checkpoint(files)
    }

    pub fn file(mut self, name: &str, content: impl AsRef<[u8]>) -> Checkpoint {
        self.0.insert(name.into(), content.as_ref().to_vec());
        self
    }

    pub fn without(mut self, name: &str) -> Checkpoint {
        self.0.remove(name).unwrap();
        self
    }

    /// Sets `key.key.key` of a JSON file, making objects on the way.
    pub fn set(mut self, name: &str, key: &str, value: Value) -> Checkpoint {
        let bytes = self.0.get(name).cloned().unwrap_or_else(|| b"{}".to_vec());
        let mut root: Value = serde_json::from_slice(&bytes).unwrap();
        let mut at = &mut root;
        for part in key.split('.') {
            if !at.is_object() {
                *at = serde_json::json!({});
            }
            at = at.as_object_mut().unwrap().entry(part).or_insert(Value::Null);
        }
        *at = value;
        self.0.insert(name.into(), serde_json::to_vec(&root).unwrap());
        self
    }

    /// Replaces a text in a file; it must be there.
    pub fn replace(mut self, name: &str, from: &str, to: &str) -> Checkpoint {
        let text = String::from_utf8(self.0[name].clone()).unwrap();
        assert!(text.contains(from), "{name} has no {from}");
        self.0.insert(name.into(), text.replace(from, to).into_bytes());
        self
    }

    /// As the binary embeds them.
    pub fn files(&self) -> Files {
        let list: Vec<(&'static str, &'static [u8])> =
            self.0.iter().map(|(n, b)| (&*n.clone().leak(), &*b.clone().leak())).collect();
        Files::Embedded(list.leak())
    }

    pub fn load(&self) -> Result<ModelSpec, Error> {
        ModelSpec::load(&self.files())
    }

    pub fn spec(&self) -> ModelSpec {
        self.load().unwrap()
    }

    pub fn load_tokenizer(&self) -> Result<Tokenizer, Error> {
        Tokenizer::load(&self.files(), &self.load()?)
    }

    pub fn tokenizer(&self) -> Tokenizer {
        self.load_tokenizer().unwrap()
    }
}

/// The original layout's configuration as deepseek-ai publishes it, `hidden` wide, with this `language_config`.
pub fn published(hidden: usize, language: Value) -> Checkpoint {
    let aligner = |input: usize| {
        serde_json::json!({"cls": "MlpProjector", "model_type": "aligner",
            "params": {"depth": 2, "input_dim": input, "n_embed": hidden, "projector_type": "mlp_gelu"}})
    };
    let config = serde_json::json!({
        "aligner_config": aligner(1024),
        "architectures": ["MultiModalityCausalLM"],
        "gen_aligner_config": aligner(8),
        "gen_head_config": {"cls": "vision_head", "model_type": "gen_head",
            "params": {"image_token_embed": hidden, "image_token_size": 16384, "n_embed": hidden}},
        "gen_vision_config": {"cls": "VQ-16", "model_type": "gen_vision", "params": {"image_token_size": 16384, "n_embed": 8}},
        "language_config": language,
        "model_type": "multi_modality",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.33.1",
        "vision_config": {"cls": "CLIPVisionTower", "model_type": "vision",
            "params": {"image_size": 384, "model_name": "siglip_large_patch16_384", "select_feature": "same", "select_layer": -1}},
    });
    let preprocessor = serde_json::json!({
        "background_color": [127, 127, 127], "do_normalize": true, "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "VLMImageProcessor", "image_size": 384, "image_std": [0.5, 0.5, 0.5],
        "min_size": 14, "processor_class": "VLChatProcessor", "rescale_factor": 0.00392156862745098,
    });
    let processor = serde_json::json!({
        "add_special_token": false, "ignore_id": -100, "image_tag": "<image_placeholder>", "mask_prompt": true,
        "num_image_tokens": 576, "processor_class": "VLChatProcessor", "sft_format": "deepseek",
    });
    Checkpoint::default()
        .file("config.json", config.to_string())
        .file("preprocessor_config.json", preprocessor.to_string())
        .file("processor_config.json", processor.to_string())
}

pub fn janus_1_3b() -> Checkpoint {
    published(
        2048,
        serde_json::json!({"_attn_implementation": "flash_attention_2", "hidden_size": 2048, "intermediate_size": 5632,
            "max_position_embeddings": 16384, "model_type": "llama", "num_attention_heads": 16, "num_hidden_layers": 24,
            "num_key_value_heads": 16, "torch_dtype": "bfloat16", "vocab_size": 102400}),
    )
}

pub fn janus_pro_1b() -> Checkpoint {
    published(
        2048,
        serde_json::json!({"hidden_size": 2048, "intermediate_size": 5632, "max_position_embeddings": 16384, "model_type": "llama",
            "num_attention_heads": 16, "num_hidden_layers": 24, "num_key_value_heads": 16, "torch_dtype": "bfloat16",
            "vocab_size": 102400}),
    )
}

pub fn janus_pro_7b() -> Checkpoint {
    published(
        4096,
        serde_json::json!({"max_position_embeddings": 16384, "model_type": "llama", "num_hidden_layers": 30,
            "torch_dtype": "bfloat16", "vocab_size": 102400}),
    )
}

/// Janus-Pro-1B as the conversion script writes it: everything that is a default is left out.
pub fn janus_pro_1b_ported() -> Checkpoint {
    let config = serde_json::json!({
        "architectures": ["JanusForConditionalGeneration"], "image_token_id": 100581, "model_type": "janus",
        "text_config": {"hidden_size": 2048, "intermediate_size": 5632, "max_position_embeddings": 16384, "model_type": "llama",
            "num_attention_heads": 16, "num_hidden_layers": 24, "num_key_value_heads": 16, "vocab_size": 102400},
        "torch_dtype": "bfloat16", "vision_config": {"model_type": "janus_vision_model"}, "vq_config": {"model_type": "janus_vqgan"},
    });
    let preprocessor = serde_json::json!({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
        "image_processor_type": "JanusImageProcessor", "size": {"height": 384, "width": 384}});
    Checkpoint::default().file("config.json", config.to_string()).file("preprocessor_config.json", preprocessor.to_string())
}
