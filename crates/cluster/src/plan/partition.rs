//! The best ranges of layers for one pipeline.
