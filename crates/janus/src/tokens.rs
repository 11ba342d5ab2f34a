//! `janus tokenize` and `janus detokenize`: pictures to VQ codebook ids and back.

use std::fs::File;
use std::io::Read;

use serde::{Deserialize, Serialize};

use crate::args::{Detokenize, Tokenize};
use crate::failure::{Failure, Outcome};
use crate::local::Needs;
use crate::session::Session;
use crate::{output, terminal};

/// Largest ids file we read; 576 ids need a few kilobytes.
const MAX_IDS_FILE: u64 = 16 << 20;

#[derive(Serialize, Deserialize)]
struct Ids {
    tokens: Vec<u32>,
}

#[derive(Serialize)]
struct Written {
    path: String,
}

pub(crate) fn tokenize(args: Tokenize) -> Outcome {
    let picture = output::read_picture(&args.image)?;
    let mut session = Session::open(&args.compute, Needs { vq_encoder: true, ..Needs::NONE })?;
    // Ids are data for another program either way; `--json` is accepted so that scripts can say what they mean.
    let tokens = session.tokenize(picture)?;
    output::print_json(&Ids { tokens })
}

pub(crate) fn detokenize(args: Detokenize) -> Outcome {
    output::check_writable(&args.output)?;
    let refuse = |reason: String| Failure::mistake(format!("{}: {reason}", args.ids.display()));
    let mut text = Vec::new();
    let file = File::open(&args.ids).map_err(|e| refuse(format!("cannot be opened: {e}")))?;
    file.take(MAX_IDS_FILE + 1).read_to_end(&mut text).map_err(|e| refuse(format!("cannot be read: {e}")))?;
    if text.len() as u64 > MAX_IDS_FILE {
        return Err(refuse(format!("is larger than {MAX_IDS_FILE} bytes")));
    }
    let ids: Ids = serde_json::from_slice(&text)
        .map_err(|e| refuse(format!("is not a file of ids ({e}); expected {{\"tokens\":[..]}}")))?;
    let mut session = Session::open(&args.compute, Needs { vq_decoder: true, ..Needs::NONE })?;
    let picture = session.detokenize(ids.tokens).map_err(|e| match e {
        Failure::Mistake(reason) => refuse(reason),
        broken => broken,
    })?;
    output::write_picture(&args.output, &picture)?;
    terminal::preview(&picture);
    let path = args.output.display().to_string();
    if args.json {
        return output::print_json(&Written { path });
    }
    output::print_line(&path);
    Ok(())
}
