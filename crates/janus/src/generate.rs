//! `janus generate`: text to pictures.

use janus_wire::v1;
use serde::Serialize;

use crate::args::Generate;
use crate::failure::{Failure, Outcome};
use crate::local::Needs;
use crate::session::{Painted, Session};
use crate::{output, terminal};

/// Pictures of one request; more are asked for in several.
const BATCH: usize = 64;

#[derive(Serialize)]
struct Answer<'a> {
    model: &'a str,
    prompt_tokens: &'a [u32],
    images: Vec<Picture<'a>>,
    /// From a server: ids of the requests it took, and how often they went on after a loss.
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resumed: Option<u32>,
    /// How often they began again under other numerics.
    #[serde(skip_serializing_if = "Option::is_none")]
    restarted: Option<u32>,
}

#[derive(Serialize)]
struct Picture<'a> {
    path: String,
    seed: u64,
    tokens: &'a [u32],
    sha256: &'a str,
}

pub(crate) fn run(args: Generate) -> Outcome {
    let paths = output::picture_paths(args.output.as_deref(), args.count, args.seed)?;
    let init_image = match &args.init_image {
        Some(path) => Some(v1::Image { data: output::read_picture(path)?.into(), ..v1::Image::default() }),
        None => None,
    };
    let needs = Needs { vq_encoder: init_image.is_some(), vq_decoder: true, ..Needs::NONE };
    let mut session = Session::open(&args.compute, needs)?;
    let keep_rows = args.keep_rows.unwrap_or(0);
    let grid = session.model.grid as usize;
    if keep_rows > grid {
        return Err(Failure::mistake(format!("--keep-rows {keep_rows}: a picture of this model has {grid} rows of ids")));
    }

    let total = (grid * grid) as u32;
    let bar = terminal::bar(args.count * total as usize, "painting");
    let (mut prompt_tokens, mut pictures) = (Vec::new(), Vec::new());
    let (mut requests, mut resumed, mut restarted) = (Vec::new(), 0, 0);
    for first in (0..args.count).step_by(BATCH) {
        let count = BATCH.min(args.count - first);
        let request = v1::GenerateImageRequest {
            prompt: args.prompt.clone(),
            raw_prompt: args.raw_prompt,
            n: count as u32,
            seed: args.seed.wrapping_add(first as u64),
            temperature: args.temperature,
            cfg_weight: args.cfg_weight,
            top_k: args.top_k.map(|k| k as u32),
            top_p: args.top_p,
            init_image: init_image.clone(),
            keep_rows: keep_rows as u32,
            ..v1::GenerateImageRequest::default()
        };
        let mut known = vec![0; count];
        let (prompt, painted, course) = session.paint(request, |picture, ids| {
            known[picture as usize] = ids;
            bar.set_position(u64::from(total) * first as u64 + known.iter().map(|&k| u64::from(k)).sum::<u64>());
        })?;
        prompt_tokens = prompt;
        requests.push(course.request);
        resumed += course.resumed;
        restarted += course.restarted;
        for picture in painted {
            finish(&picture, &paths[pictures.len()], args.json)?;
            pictures.push(picture);
        }
    }
    bar.finish_and_clear();

    let first = pictures.first().map_or("none", |picture| &picture.sha256);
    if let Some(expected) = args.expect.filter(|expected| expected != first) {
        return Err(Failure::Broken(format!("--expect {expected}: the first picture's ids have {first}")));
    }
    if args.json {
        let remote = args.compute.endpoint.is_some();
        let images = paths.iter().zip(&pictures).map(|(path, picture)| Picture {
            path: path.display().to_string(),
            seed: picture.seed,
            tokens: &picture.tokens,
            sha256: &picture.sha256,
        });
        output::print_json(&Answer {
            model: &session.model.model,
            prompt_tokens: &prompt_tokens,
            images: images.collect(),
            request: remote.then(|| requests.join(",")),
            resumed: remote.then_some(resumed),
            restarted: remote.then_some(restarted),
        })?;
    }
    Ok(())
}

fn finish(picture: &Painted, path: &std::path::Path, json: bool) -> Outcome {
    output::write_picture(path, &picture.picture)?;
    terminal::preview(&picture.picture);
    if !json {
        output::print_line(&path.display().to_string());
    }
    Ok(())
}
