//! Models: tensors on a tape, layers, codecs, language models over their codes, streaming sessions, training.

pub mod codec;
mod config;
pub mod csm;
pub mod dialogue;
mod error;
mod graph;
pub mod lm;
pub mod metrics;
mod piece;
pub mod rounding;
pub mod tape;
pub mod teacher;
pub mod train;
pub mod transformer;
pub mod weights;

pub use error::{Error, Result};
