//! `janus inspect`: what a checkpoint is, without computing with it.

use janus_model::Checkpoint;
use janus_model::weights::{Part, inventory};
use janus_spec::{Layout, Tokenizer};
use serde::Serialize;

use crate::args::Inspect;
use crate::failure::{Failure, Outcome};
use crate::{checkpoint, output};

#[derive(Serialize)]
struct Report {
    model: String,
    layout: Layout,
    digest: String,
    weights: String,
    parameters: u64,
    bytes: PartBytes,
    kv_bytes_per_position: u64,
    image: Image,
    special_ids: janus_spec::SpecialIds,
    spec: janus_spec::ModelSpec,
}

/// Bytes of weights as stored, by who loads them.
#[derive(Default, Serialize)]
struct PartBytes {
    embeddings: u64,
    per_layer: u64,
    layers: u64,
    heads: u64,
    vision: u64,
    vq_encoder: u64,
    vq_decoder: u64,
    codebook: u64,
}

#[derive(Serialize)]
struct Image {
    size: usize,
    tokens: usize,
    codebook: usize,
}

pub(crate) fn run(args: Inspect) -> Outcome {
    let checkpoint = Checkpoint::open(checkpoint::files(&args.model)?)?;
    let tokenizer = Tokenizer::load(&checkpoint.files, &checkpoint.spec)?;
    let (digest, _) = checkpoint.digests(janus_model::default_threads())?;
    if let Some(expected) = args.digest.filter(|expected| *expected != digest.to_string()) {
        return Err(Failure::mistake(format!(
            "--digest {expected}: the checkpoint in {} is another one, {digest}",
            args.model
        )));
    }
    let spec = checkpoint.spec.clone();
    let mut bytes = PartBytes::default();
    let mut parameters = 0;
    for tensor in inventory(&spec) {
        let count = tensor.shape.iter().product::<usize>() as u64;
        parameters += count;
        let size = count * checkpoint.dtype_of(&tensor.name).map_or(4, |d| d.size()) as u64;
        *match tensor.part {
            Part::Embeddings => &mut bytes.embeddings,
            Part::Layer(_) => &mut bytes.layers,
            Part::Heads => &mut bytes.heads,
            Part::Vision => &mut bytes.vision,
            Part::VqEncoder => &mut bytes.vq_encoder,
            Part::VqDecoder => &mut bytes.vq_decoder,
            Part::Codebook => &mut bytes.codebook,
        } += size;
    }
    bytes.per_layer = bytes.layers / spec.llm.layers as u64;
    let report = Report {
        model: args.model,
        layout: spec.layout,
        digest: digest.to_string(),
        weights: checkpoint.native_format().name().to_owned(),
        parameters,
        bytes,
        kv_bytes_per_position: spec.kv_bytes_per_position(4),
        image: Image { size: spec.vq.image_size, tokens: spec.image_tokens(), codebook: spec.vq.codebook },
        special_ids: *tokenizer.special(),
        spec,
    };
    if args.json {
        return output::print_json(&report);
    }
    let (llm, vq, vision) = (&report.spec.llm, &report.spec.vq, &report.spec.vision);
    let megabytes = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
    let parts = &report.bytes;
    output::print_line(&format!(
        "{model}: {layout:?} layout, {parameters:.1} million parameters, stored as {weights}\n\
         digest          {digest}\n\
         language model  {layers} layers of {per_layer}, hidden {hidden}, {heads} heads, vocabulary {vocab}, context {context}\n\
         embeddings      {embeddings}\n\
         heads           {heads_bytes}\n\
         vision          {vision_bytes}: SigLIP, {size}x{size} pixels, {vision_tokens} tokens\n\
         pictures        {vq_size}x{vq_size} pixels, {tokens} ids of {codebook}; VQ encoder {encoder}, decoder {decoder}\n\
         KV cache        {kv} bytes a position (f32)",
        model = report.model,
        layout = report.layout,
        parameters = report.parameters as f64 / 1e6,
        weights = report.weights,
        digest = report.digest,
        layers = llm.layers,
        per_layer = megabytes(parts.per_layer),
        hidden = llm.hidden,
        heads = llm.heads,
        vocab = llm.vocab,
        context = llm.max_positions,
        embeddings = megabytes(parts.embeddings),
        heads_bytes = megabytes(parts.heads),
        vision_bytes = megabytes(parts.vision),
        size = vision.image_size,
        vision_tokens = vision.tokens(),
        vq_size = vq.image_size,
        tokens = report.image.tokens,
        codebook = vq.codebook,
        encoder = megabytes(parts.vq_encoder),
        decoder = megabytes(parts.vq_decoder),
        kv = report.kv_bytes_per_position,
    ));
    Ok(())
}
