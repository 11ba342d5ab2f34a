//! What a person at a terminal sees while waiting: a bar with the time left, then the picture itself. All of it
//! on stderr, and nothing at all when stderr is not a terminal.

use std::env;
use std::io::{IsTerminal, Write};

use base64::Engine as _;
use indicatif::{ProgressBar, ProgressStyle};
use janus_model::image::Rgb8;

/// Widest preview in character cells.
const PREVIEW_COLUMNS: usize = 48;

/// A bar over `steps` steps; hidden unless stderr is a terminal.
pub(crate) fn bar(steps: usize, what: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(steps as u64);
    let template = "{msg} [{bar:32}] {pos}/{len}  {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(what.to_owned());
    bar
}

/// A bar over so many bytes that come from elsewhere; hidden unless stderr is a terminal.
pub(crate) fn bytes(total: u64, what: &str) -> ProgressBar {
    let bar = bar(usize::try_from(total).unwrap_or(usize::MAX), what);
    if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:32}] {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

/// How a terminal can show pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Kitty,
    Iterm,
    HalfBlocks,
}

fn protocol() -> Protocol {
    let var = |name: &str| env::var(name).unwrap_or_default();
    let program = var("TERM_PROGRAM");
    if var("TERM").contains("kitty") || program == "ghostty" || env::var_os("KITTY_WINDOW_ID").is_some() {
        Protocol::Kitty
    } else if matches!(program.as_str(), "iTerm.app" | "WezTerm" | "vscode") {
        Protocol::Iterm
    } else {
        Protocol::HalfBlocks
    }
}

/// Shows the picture if stderr is a terminal.
pub(crate) fn preview(picture: &Rgb8) {
    let stderr = std::io::stderr();
    if !stderr.is_terminal() || env::var("TERM").is_ok_and(|t| t == "dumb") {
        return;
    }
    if let Some(text) = render(picture, protocol()) {
        let _ = stderr.lock().write_all(text.as_bytes());
    }
}

fn render(picture: &Rgb8, protocol: Protocol) -> Option<String> {
    let png =
        || janus_model::image::encode_png(picture).ok().map(|png| base64::engine::general_purpose::STANDARD.encode(png));
    match protocol {
        Protocol::Kitty => png().map(|data| kitty(&data)),
        Protocol::Iterm => png().map(|data| format!("\x1b]1337;File=inline=1;preserveAspectRatio=1:{data}\x07\n")),
        Protocol::HalfBlocks => Some(half_blocks(picture)),
    }
}

/// Kitty graphics protocol: base64 PNG in chunks of at most 4096 bytes.
fn kitty(data: &str) -> String {
    let chunks: Vec<&str> = data.as_bytes().chunks(4096).filter_map(|c| std::str::from_utf8(c).ok()).collect();
    let mut text = String::new();
    for (i, chunk) in chunks.iter().enumerate() {
        let control = if i == 0 { "a=T,f=100," } else { "" };
        let more = u8::from(i + 1 < chunks.len());
        text.push_str(&format!("\x1b_G{control}m={more};{chunk}\x1b\\"));
    }
    text.push('\n');
    text
}

/// Two pixels a cell: the upper half block in the colour of one, on the colour of the other.
fn half_blocks(picture: &Rgb8) -> String {
    let columns = picture.width.min(PREVIEW_COLUMNS);
    let rows = (picture.height * columns / picture.width.max(1)) & !1;
    let pixel = |column: usize, row: usize| {
        let (x, y) = (column * picture.width / columns, row * picture.height / rows.max(1));
        let at = 3 * (y * picture.width + x);
        (picture.data[at], picture.data[at + 1], picture.data[at + 2])
    };
    let mut text = String::new();
    for row in (0..rows).step_by(2) {
        for column in 0..columns {
            let ((r, g, b), (u, v, w)) = (pixel(column, row), pixel(column, row + 1));
            text.push_str(&format!("\x1b[38;2;{r};{g};{b};48;2;{u};{v};{w}m\u{2580}"));
        }
        text.push_str("\x1b[0m\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_blocks_hold_every_row_of_a_small_picture() {
        let picture = Rgb8 { width: 2, height: 2, data: vec![1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12] };
        let text = half_blocks(&picture);
        assert_eq!(text, "\x1b[38;2;1;2;3;48;2;7;8;9m\u{2580}\x1b[38;2;4;5;6;48;2;10;11;12m\u{2580}\x1b[0m\n");
    }

    #[test]
    fn kitty_chunks_end_with_a_final_one() {
        let text = kitty(&"A".repeat(5000));
        assert!(text.starts_with("\x1b_Ga=T,f=100,m=1;"));
        assert!(text.contains("\x1b_Gm=0;"));
    }
}
