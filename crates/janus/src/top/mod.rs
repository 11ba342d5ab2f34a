//! `janus top`: a cluster live in a terminal. What is shown is in [`watch`], how in [`view`]; here are the terminal, the
//! keys, and a question to the coordinator every second.

mod view;
mod watch;

use std::io::IsTerminal;
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

use janus_wire::Security;
use janus_wire::v1::StatusResponse;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tokio::signal::unix::{SignalKind, signal};

use crate::args::Top as Args;
use crate::failure::{Failure, Outcome};
use crate::{output, session, status};
use watch::Watch;

/// Between an answer and the next question.
const PAUSE: Duration = Duration::from_secs(1);

/// What the screen waits for.
enum News {
    Key(KeyEvent),
    Resized,
    Status(Outcome<StatusResponse>),
    /// SIGTERM.
    End,
}

pub(crate) fn run(args: Args) -> Outcome {
    if !std::io::stdout().is_terminal() {
        return Err(Failure::mistake("top draws on a terminal, and there is none; `janus status --json` is for programs"));
    }
    let security = args.tls.security()?;
    let runtime = session::runtime()?;
    // Before the screen is taken, so that a wrong address is an ordinary message.
    let first = runtime.block_on(status::cluster(&args.endpoint, &security))?;
    let broken = |e: std::io::Error| Failure::Broken(format!("the terminal cannot be used: {e}"));
    let (tell, told) = mpsc::channel();
    runtime.spawn(ask(args.endpoint, security, tell.clone()));
    runtime.spawn(terminated(tell.clone()));
    let mut terminal = ratatui::try_init().map_err(broken)?;
    std::thread::spawn(move || listen(&tell));
    let shown = show(&mut terminal, Watch::new(first), &told).map_err(broken);
    ratatui::restore();
    match shown? {
        Asked::Quit => Ok(()),
        Asked::Terminate => output::leave(143),
    }
}

/// Who wants it to end.
enum Asked {
    Quit,
    Terminate,
}

fn show(terminal: &mut DefaultTerminal, mut watch: Watch, told: &mpsc::Receiver<News>) -> std::io::Result<Asked> {
    let (begun, colours) = (Instant::now(), std::env::var_os("NO_COLOR").is_none());
    loop {
        terminal.draw(|frame| view::draw(frame, &watch, colours))?;
        // The threads that tell live as long as the process.
        let Ok(news) = told.recv() else { return Ok(Asked::Quit) };
        match news {
            News::Key(key) => match key.code {
                KeyCode::Char('q') | KeyCode::Esc => return Ok(Asked::Quit),
                KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Ok(Asked::Quit),
                KeyCode::Down | KeyCode::Char('j') => watch.scroll(1),
                KeyCode::Up | KeyCode::Char('k') => watch.scroll(-1),
                _ => {}
            },
            News::Resized => {}
            News::Status(Ok(answer)) => watch.hear(begun.elapsed(), answer),
            News::Status(Err(failure)) => watch.miss(failure.to_string()),
            News::End => return Ok(Asked::Terminate),
        }
    }
}

/// Asks the coordinators, again and again.
async fn ask(endpoint: String, security: Security, tell: Sender<News>) {
    loop {
        tokio::time::sleep(PAUSE).await;
        let answer = match tokio::time::timeout(10 * PAUSE, status::cluster(&endpoint, &security)).await {
            Ok(answer) => answer,
            Err(_) => Err(Failure::Broken("no answer for 10 s".to_owned())),
        };
        if tell.send(News::Status(answer)).is_err() {
            return;
        }
    }
}

async fn terminated(tell: Sender<News>) {
    if let Ok(mut terminate) = signal(SignalKind::terminate()) {
        terminate.recv().await;
        let _ = tell.send(News::End);
    }
}

/// Reads keys until the terminal is gone, which is an end too.
fn listen(tell: &Sender<News>) {
    loop {
        let news = match event::read() {
            Ok(Event::Key(key)) if key.kind != KeyEventKind::Release => News::Key(key),
            Ok(Event::Resize(..)) => News::Resized,
            Ok(_) => continue,
            Err(_) => News::End,
        };
        let last = matches!(news, News::End);
        if tell.send(news).is_err() || last {
            return;
        }
    }
}
