//! `janus generate`: text to pictures.

use janus_model::{ImageSampling, PaintRequest, image, sha256_of_ids};
use serde::Serialize;

use crate::args::Generate;
use crate::failure::{Failure, Outcome};
use crate::{checkpoint, output, terminal};

#[derive(Serialize)]
struct Answer<'a> {
    model: &'a str,
    prompt_tokens: &'a [u32],
    images: Vec<Picture<'a>>,
}

#[derive(Serialize)]
struct Picture<'a> {
    path: String,
    seed: u64,
    tokens: &'a [u32],
    sha256: String,
}

pub(crate) fn run(args: Generate) -> Outcome {
    let paths = output::picture_paths(args.output.as_deref(), args.count, args.seed)?;
    let init = match &args.init_image {
        Some(path) => Some(image::open(path, &image::Limits::default())?),
        None => None,
    };
    let mut engine = checkpoint::engine(&args.compute)?;
    let prompt = engine.tokenizer().generation_prompt(&args.prompt, args.raw_prompt)?;
    let grid = engine.spec().vq.grid;
    let keep = match (&init, args.keep_rows) {
        (Some(_), Some(rows)) if rows > grid => {
            return Err(Failure::mistake(format!("--keep-rows {rows}: a picture of this model has {grid} rows of ids")));
        }
        (Some(picture), Some(rows)) => engine.encode_ids(picture)?[..rows * grid].to_vec(),
        _ => Vec::new(),
    };

    let defaults = engine.spec().generation.clone();
    let requests: Vec<PaintRequest> = (0..args.count as u64)
        .map(|i| PaintRequest {
            prompt: prompt.clone(),
            keep: keep.clone(),
            cfg_weight: args.cfg_weight.unwrap_or(defaults.cfg_weight),
            sampling: ImageSampling {
                temperature: args.temperature.unwrap_or(defaults.temperature),
                top_k: args.top_k.or(defaults.top_k),
                top_p: args.top_p.or(defaults.top_p),
                seed: args.seed.wrapping_add(i),
            },
        })
        .collect();

    let bar = terminal::bar(engine.spec().image_tokens(), "painting");
    bar.set_position(keep.len() as u64);
    let painted = engine.paint(&requests, |_| bar.inc(1))?;
    bar.finish_and_clear();

    let mut pictures = Vec::new();
    for ((path, request), tokens) in paths.iter().zip(&requests).zip(&painted) {
        let picture = engine.decode_ids(tokens)?;
        output::write_picture(path, &picture)?;
        terminal::preview(&picture);
        if !args.json {
            output::print_line(&path.display().to_string());
        }
        let path = path.display().to_string();
        pictures.push(Picture { path, seed: request.sampling.seed, tokens, sha256: sha256_of_ids(tokens) });
    }
    if args.json {
        output::print_json(&Answer { model: &args.compute.model, prompt_tokens: &prompt.cond, images: pictures })?;
    }
    Ok(())
}
