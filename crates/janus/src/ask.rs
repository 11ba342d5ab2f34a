//! `janus ask`: a question, about pictures or without, answered in text.

use std::io::{IsTerminal, Write};

use janus_wire::v1;
use serde::Serialize;

use crate::args::Ask;
use crate::failure::{Failure, Outcome};
use crate::local::Needs;
use crate::output;
use crate::session::{Heard, Session};

#[derive(Serialize)]
struct Answer<'a> {
    model: &'a str,
    prompt_tokens: &'a [u32],
    tokens: &'a [u32],
    text: &'a str,
    /// From a server: the request's id, and how often it went on after a loss.
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resumed: Option<u32>,
    /// How often it began again under other numerics.
    #[serde(skip_serializing_if = "Option::is_none")]
    restarted: Option<u32>,
}

pub(crate) fn run(args: Ask) -> Outcome {
    let mut images = Vec::new();
    for path in &args.images {
        images.push(v1::Image { data: output::read_picture(path)?.into(), ..v1::Image::default() });
    }
    if args.question.trim().is_empty() {
        return Err(Failure::mistake("the question is empty"));
    }
    let mut session = Session::open(&args.compute, Needs { vision: !images.is_empty(), ..Needs::NONE })?;
    let mut request = v1::ChatRequest {
        max_tokens: args.max_tokens.map(|n| n as u32),
        temperature: Some(args.temperature),
        seed: args.seed,
        ..v1::ChatRequest::default()
    };
    if args.raw_prompt {
        request.raw_prompt = args.question;
        request.raw_images = images;
    } else {
        request.messages = vec![question(args.question, images)];
    }

    // On a terminal the answer appears as it is made.
    let live = !args.json && std::io::stdout().is_terminal();
    let mut shown = 0;
    let (prompt, done, course) = session.ask(request, |heard| {
        let text = match heard {
            Heard::Text(text) => {
                shown += text.len();
                text
            }
            Heard::Void => {
                let before = std::mem::take(&mut shown);
                if before > 0 { "\n" } else { "" }
            }
        };
        if live {
            let mut stdout = std::io::stdout().lock();
            let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
        }
    })?;
    let text = done.text.trim();
    if args.json {
        let (model, remote) = (&session.model.model, args.compute.endpoint.is_some());
        output::print_json(&Answer {
            model,
            prompt_tokens: &prompt,
            tokens: &done.tokens,
            text,
            request: remote.then_some(course.request.as_str()),
            resumed: remote.then_some(course.resumed),
            restarted: remote.then_some(course.restarted),
        })?;
    } else {
        // The end of an answer may come with its last event alone.
        output::print_line(if live { done.text.get(shown..).unwrap_or_default() } else { text });
    }
    Ok(())
}

/// Pictures come first, one placeholder each, then the question, as in the reference.
pub(crate) fn question(text: String, images: Vec<v1::Image>) -> v1::Message {
    let mut parts: Vec<v1::Part> = images.into_iter().map(|i| v1::Part { part: Some(v1::part::Part::Image(i)) }).collect();
    parts.push(v1::Part { part: Some(v1::part::Part::Text(text)) });
    v1::Message { role: "user".to_owned(), parts }
}
