//! Doors for people who know OpenAI's: HTTP and a web page, a client of the coordinator.
//!
//! [`Gateway`] is what every handler works with and what `janus gateway` and `janus serve` run. [`Gateway::router`] is
//! the map of all paths; [`serve`](Gateway::serve) answers connections and gives none of them more time than it may have.

mod asker;
mod connection;
mod error;
mod gateway;
mod health;
mod page;
mod problem;

pub use asker::Asker;
pub use error::Error;
pub use gateway::{Gateway, Options};
pub use problem::Problem;
