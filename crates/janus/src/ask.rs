//! `janus ask`: a question, about pictures or without, answered in text.

use std::io::{IsTerminal, Write};

use janus_model::{AskRequest, ImageSampling, image};
use janus_spec::{Message, Part, Role};
use serde::Serialize;

use crate::args::Ask;
use crate::failure::{Failure, Outcome};
use crate::{checkpoint, output};

#[derive(Serialize)]
struct Answer<'a> {
    model: &'a str,
    prompt_tokens: &'a [u32],
    tokens: &'a [u32],
    text: &'a str,
}

pub(crate) fn run(args: Ask) -> Outcome {
    let limits = image::Limits::default();
    let images = args.images.iter().map(|path| image::open(path, &limits)).collect::<Result<Vec<_>, _>>()?;
    let mut engine = checkpoint::engine(&args.compute)?;
    let prompt = if args.raw_prompt {
        engine.tokenizer().raw_prompt(&args.question)?
    } else {
        if args.question.trim().is_empty() {
            return Err(Failure::mistake("the question is empty"));
        }
        // Pictures come first, one placeholder each, then the question, as in the reference.
        let mut parts: Vec<Part> = images.iter().map(|_| Part::Image).collect();
        parts.push(Part::Text(args.question.clone()));
        engine.tokenizer().chat_prompt(&[Message { role: Role::User, parts }], None)?
    };
    let request = AskRequest {
        max_tokens: args.max_tokens.unwrap_or(engine.spec().generation.text_max_tokens),
        sampling: ImageSampling { temperature: args.temperature, top_k: None, top_p: None, seed: args.seed },
        prompt,
    };

    // On a terminal the answer appears as it is made.
    let live = !args.json && std::io::stdout().is_terminal();
    let tokens = engine.ask(&request, &images, |text| {
        if live {
            let mut stdout = std::io::stdout().lock();
            let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
        }
    })?;
    let text = engine.tokenizer().decode(&tokens, true)?;
    let text = text.trim();
    if args.json {
        output::print_json(&Answer { model: &args.compute.model, prompt_tokens: &request.prompt.ids, tokens: &tokens, text })?;
    } else {
        output::print_line(if live { "" } else { text });
    }
    Ok(())
}
