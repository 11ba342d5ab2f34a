//! Doors for people who know OpenAI's: HTTP and a web page, a client of the coordinator.
//!
//! [`Gateway`] is what every handler works with and what `janus gateway` and `janus serve` run. [`Gateway::router`] is
//! the map of all paths; [`serve`](Gateway::serve) answers connections and gives none of them more time than it may have.

mod asker;
mod attached;
mod batches;
mod body;
mod chat;
mod connection;
mod encode;
mod error;
mod files;
mod gateway;
mod health;
mod host;
mod images;
mod lines;
mod models;
mod openapi;
mod outcome;
mod page;
mod problem;
mod query;
mod remote;
mod results;
mod seed;
mod seen;
mod sse;

pub use asker::Asker;
pub use error::Error;
pub use gateway::{Gateway, Options};
pub use lines::check_line;
pub use problem::Problem;

/// Seconds since the Unix epoch.
fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |now| now.as_secs())
}
