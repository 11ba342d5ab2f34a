//! Doors for people who know OpenAI's: HTTP and a web page, a client of the coordinator.
