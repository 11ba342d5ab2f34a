//! Parity with the reference implementations: every item of tests/data/tiny-a/README.md, in each form of the checkpoint.
#![allow(clippy::unwrap_used)]

mod common;

use common::{FORMS, Golden, Llm, assert_close, checkpoint, data, to_hwc, understanding_input};
use janus_kernels::{Pool, argmax, guidance};
use janus_model::image;
use janus_model::siglip::VisionEncoder;
use janus_model::vq::{VqDecoder, VqEncoder};
use janus_spec::Tokenizer;

/// Largest error of hidden states, features and logits as a fraction of the tensor's largest value.
const CLOSE: f32 = 1e-4;
/// The same for guided logits, whose difference of branches is multiplied by the weight.
const CLOSE_GUIDED: f32 = 5e-4;
/// The same for pixels.
const CLOSE_PIXELS: f32 = 1e-3;

#[test]
fn vision_tower_and_aligner() {
    let golden = Golden::open("vision");
    let pool = Pool::new(2);
    for form in FORMS {
        let checkpoint = checkpoint(form);
        let tower = VisionEncoder::load(&checkpoint, checkpoint.native_format()).unwrap();
        let pixels = golden.f32("pixel_values");
        let pictures = pixels.len() / 2;
        for picture in 0..2 {
            let input = to_hwc(&pixels[picture * pictures..(picture + 1) * pictures], 3);
            let trace = tower.trace(&pool, &input).unwrap();
            let check = |name: &str, ours: &[f32]| {
                let all = golden.f32(name);
                let half = all.len() / 2;
                assert_close(
                    &format!("{form} picture {picture} {name}"),
                    ours,
                    &all[picture * half..(picture + 1) * half],
                    CLOSE,
                );
            };
            check("embeddings", &trace.embeddings);
            for (i, layer) in trace.layers.iter().enumerate() {
                check(&format!("layer_{i}"), layer);
            }
            check("last_hidden_state", &trace.last_hidden_state);
            check("aligned", &trace.aligned);
        }
    }
}

/// Feeds a prompt, compares whatever the golden file holds, then decodes greedily and compares ids and logits.
fn check_text(form: &str, name: &str, pictures: &[usize]) {
    let golden = Golden::open(name);
    let checkpoint = checkpoint(form);
    // One stage per layer, so that what leaves each stage is a hidden state of the reference.
    let mut llm = Llm::load(&checkpoint, &[1, 2, 3, 4]);
    let ids = golden.ids("input_ids");
    let x = understanding_input(form, &llm, &ids, pictures);
    let expected = golden.ids("greedy_ids");
    llm.open(0, ids.len() + expected.len());

    let span = janus_model::llama::Span { slot: 0, start: 0, rows: ids.len() };
    let layers = llm.forward(&[span], x.clone());
    if name.contains("pro") && !name.contains("multi_turn") {
        assert_close(&format!("{form} {name} embeddings"), &x, &golden.f32("inputs_embeds"), CLOSE);
        for (i, layer) in layers.iter().enumerate() {
            assert_close(&format!("{form} {name} layer {i}"), layer, &golden.f32(&format!("hidden_after_layer_{i}")), CLOSE);
        }
        assert_close(
            &format!("{form} {name} final norm"),
            llm.heads.normed(&layers[3]),
            &golden.f32("hidden_after_final_norm"),
            CLOSE,
        );
    }
    let tail = &layers[3][(ids.len() - 16) * llm.hidden..];
    let logits = llm.heads.text_logits(&llm.pool, tail).to_vec();
    assert_close(&format!("{form} {name} logits"), &logits, &golden.f32("logits_last_16_positions"), CLOSE);

    let vocab = checkpoint.spec.llm.vocab;
    let reference = golden.f32("greedy_logits");
    let mut row = logits[15 * vocab..].to_vec();
    for (step, &id) in expected.iter().enumerate() {
        assert_close(
            &format!("{form} {name} greedy step {step}"),
            &row,
            &reference[step * vocab..(step + 1) * vocab],
            CLOSE,
        );
        assert_eq!(argmax(&row), id, "{form} {name}: greedy id {step}");
        let x = llm.text(&[id]);
        let last = llm.feed(0, x);
        row = llm.heads.text_logits(&llm.pool, &last).to_vec();
    }
}

#[test]
fn understanding_one_picture() {
    FORMS.iter().for_each(|form| check_text(form, "lm_understand_pro_1", &[0]));
}

#[test]
fn understanding_two_pictures() {
    FORMS.iter().for_each(|form| check_text(form, "lm_understand_two_images", &[0, 1]));
}

#[test]
fn text_without_a_picture() {
    FORMS.iter().for_each(|form| check_text(form, "lm_text_only_pro", &[]));
}

#[test]
fn several_turns() {
    FORMS.iter().for_each(|form| check_text(form, "lm_multi_turn_pro", &[0]));
}

/// The reference pads the shorter prompt on the left and masks the padding; we never pad.
#[test]
fn a_batch_of_unequal_prompts() {
    let golden = Golden::open("lm_batch_left_padded");
    for form in FORMS {
        let checkpoint = checkpoint(form);
        let special = Tokenizer::load(&checkpoint.files, &checkpoint.spec).unwrap().special().to_owned();
        let mut llm = Llm::load(&checkpoint, &[2, 4]);
        let (ids, mask) = (golden.ids("input_ids"), golden.ids("attention_mask"));
        let width = ids.len() / 2;
        let vocab = checkpoint.spec.llm.vocab;
        let prompts: Vec<Vec<u32>> =
            (0..2).map(|r| (r * width..(r + 1) * width).filter(|&i| mask[i] == 1).map(|i| ids[i]).collect()).collect();
        let expected = golden.ids("greedy_ids");
        let steps = expected.len() / 2;

        // Both prompts in one forward pass, ragged.
        let mut x = Vec::new();
        let mut spans = Vec::new();
        for (slot, prompt) in prompts.iter().enumerate() {
            llm.open(slot, prompt.len() + steps);
            x.extend(understanding_input(form, &llm, prompt, &pictures_in(prompt, special.image_placeholder, slot)));
            spans.push(janus_model::llama::Span { slot, start: 0, rows: prompt.len() });
        }
        let out = llm.forward(&spans, x).pop().unwrap();
        let mut rows = Vec::new();
        let mut end = 0;
        for prompt in &prompts {
            end += prompt.len() * llm.hidden;
            rows.extend_from_slice(&out[end - llm.hidden..end]);
        }
        let mut logits = llm.heads.text_logits(&llm.pool, &rows).to_vec();
        assert_close(&format!("{form} last logits"), &logits, &golden.f32("last_logits_unpadded_single"), CLOSE);
        assert_close(&format!("{form} last logits, padded"), &logits, &golden.f32("last_logits"), CLOSE);

        let mut done = [false; 2];
        for step in 0..steps {
            let mut x = Vec::new();
            let mut spans = Vec::new();
            for slot in 0..2 {
                let id = argmax(&logits[slot * vocab..(slot + 1) * vocab]);
                let want = expected[slot * steps + step];
                if !done[slot] {
                    assert_eq!(id, want, "{form}: row {slot}, step {step}");
                }
                done[slot] |= id == special.eos;
                x.extend(llm.text(&[want]));
                spans.push(janus_model::llama::Span { slot, start: llm.stages[0].length(slot), rows: 1 });
            }
            let out = llm.forward(&spans, x).pop().unwrap();
            logits = llm.heads.text_logits(&llm.pool, &out).to_vec();
        }
    }
}

/// Pictures are taken in the order of the batch.
fn pictures_in(prompt: &[u32], placeholder: u32, slot: usize) -> Vec<usize> {
    let any = prompt.contains(&placeholder);
    if any { vec![slot.min(1)] } else { vec![] }
}

fn check_generation(form: &str, name: &str, weight: Option<f32>) {
    let golden = Golden::open(name);
    let checkpoint = checkpoint(form);
    let mut llm = Llm::load(&checkpoint, &[3, 4]);
    let cond = golden.ids("cond_ids");
    let expected = golden.ids("image_ids");
    let vocab = checkpoint.spec.gen_head.vocab;
    let at = |name: &str, step: usize, width: usize| golden.f32(name)[step * width..(step + 1) * width].to_vec();

    let mut branches = vec![("cond", cond.clone())];
    if weight.is_some() {
        branches.push(("uncond", golden.ids("uncond_ids")));
    }
    let mut rows = Vec::new();
    for (slot, (_, ids)) in branches.iter().enumerate() {
        llm.open(slot, ids.len() + expected.len());
        let x = llm.text(ids);
        if slot == 0 && weight.is_some() {
            assert_close(&format!("{form} {name} prompt embeddings"), &x, &golden.f32("prompt_embeds_cond"), CLOSE);
        }
        let out = llm.feed(slot, x);
        rows.extend_from_slice(&out[out.len() - llm.hidden..]);
    }
    for (step, &want) in expected.iter().enumerate() {
        let what = |part: &str| format!("{form} {name} step {step} {part}");
        if weight.is_some() {
            let hidden = llm.hidden;
            let normed = llm.heads.normed(&rows).to_vec();
            assert_close(&what("hidden cond"), &normed[..hidden], &at("hidden_cond", step, hidden), CLOSE);
            assert_close(&what("hidden uncond"), &normed[hidden..], &at("hidden_uncond", step, hidden), CLOSE);
        }
        let logits = llm.heads.image_logits(&llm.pool, &rows).to_vec();
        assert_close(&what("cond logits"), &logits[..vocab], &at("cond_logits", step, vocab), CLOSE);
        let mut guided = logits[..vocab].to_vec();
        if let Some(weight) = weight {
            assert_close(&what("uncond logits"), &logits[vocab..], &at("uncond_logits", step, vocab), CLOSE);
            guidance(&logits[..vocab], &logits[vocab..], weight, &mut guided);
            assert_close(&what("guided logits"), &guided, &at("cfg_logits", step, vocab), CLOSE_GUIDED);
        }
        assert_eq!(argmax(&guided), want, "{}", what("id"));

        let row = llm.image(&[want]);
        if weight.is_some() {
            assert_close(&what("embedding"), &row, &at("image_token_embeds", step, llm.hidden), CLOSE);
        }
        let x: Vec<f32> = branches.iter().flat_map(|_| row.iter().copied()).collect();
        let spans: Vec<_> =
            (0..branches.len()).map(|slot| janus_model::llama::Span { slot, start: cond.len() + step, rows: 1 }).collect();
        rows = llm.forward(&spans, x).pop().unwrap();
    }
    if weight.is_some() {
        let decoder = VqDecoder::load(&checkpoint, checkpoint.native_format(), false).unwrap();
        let pixels = decoder.decode(&llm.pool, &expected).unwrap();
        assert_close(&format!("{form} {name} pixels"), &pixels, &to_hwc(&golden.f32("decoded"), 3), CLOSE_PIXELS);
        let size = checkpoint.spec.vq.image_size;
        let picture = image::from_unit_range(&pixels, size, size).unwrap();
        let reference = golden.u8("decoded_u8_truncated");
        let off = picture.data.iter().zip(&reference).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!(off <= 1, "{form} {name}: a byte is off by {off}");
        let png = std::fs::read(data("golden").join(format!("{name}.png"))).unwrap();
        let png = image::decode(&png, image::Orientation::Ignore, &image::Limits::default()).unwrap();
        assert_eq!(png.data, reference);
    }
}

#[test]
fn guided_pictures() {
    for form in FORMS {
        for (name, weight) in [
            ("generate_pro_1_cfg5", 5.0),
            ("generate_pro_2_cfg5", 5.0),
            ("generate_pro_1_cfg2", 2.0),
            ("generate_1_3b_cfg5", 5.0),
        ] {
            check_generation(form, name, Some(weight));
        }
    }
}

#[test]
fn a_picture_at_weight_one_is_the_conditional_branch_alone() {
    FORMS.iter().for_each(|form| check_generation(form, "generate_pro_1_cfg1", None));
}

#[test]
fn vq_encoder_and_decoder() {
    let golden = Golden::open("vq");
    let pool = Pool::new(2);
    for form in FORMS {
        let checkpoint = checkpoint(form);
        let format = checkpoint.native_format();
        let encoder = VqEncoder::load(&checkpoint, format).unwrap();
        let part = |name: &str, i: usize, of: usize| {
            let all = golden.f32(name);
            let one = all.len() / of;
            all[i * one..(i + 1) * one].to_vec()
        };
        for i in 0..3 {
            let trace = encoder.trace(&pool, &to_hwc(&part("pixels", i, 3), 3)).unwrap();
            let latent = checkpoint.spec.vq.latent;
            assert_close(
                &format!("{form} encoder {i}"),
                &trace.encoder_out,
                &to_hwc(&part("encoder_out", i, 3), latent),
                CLOSE,
            );
            assert_close(&format!("{form} latents {i}"), &trace.latents, &to_hwc(&part("quant_conv_out", i, 3), 8), CLOSE);
            assert_eq!(trace.ids, golden.ids("ids_l2_normalised")[16 * i..16 * (i + 1)], "{form}: ids of picture {i}");
        }
        let decoder = VqDecoder::load(&checkpoint, format, false).unwrap();
        for i in 0..2 {
            let trace = decoder.trace(&pool, &golden.ids("decode_ids")[16 * i..16 * (i + 1)]).unwrap();
            let latent = checkpoint.spec.vq.latent;
            assert_close(&format!("{form} codes {i}"), &trace.codes, &to_hwc(&part("post_quant_in", i, 2), 8), CLOSE);
            let reference = to_hwc(&part("post_quant_conv_out", i, 2), latent);
            assert_close(&format!("{form} latents {i}"), &trace.latents, &reference, CLOSE);
            assert_close(&format!("{form} pixels {i}"), &trace.pixels, &to_hwc(&part("decoded", i, 2), 3), CLOSE_PIXELS);
        }
    }
}
