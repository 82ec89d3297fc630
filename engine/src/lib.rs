//! Models: tensors on a tape, layers, codecs, streaming sessions, training.

pub mod codec;
mod error;
pub mod metrics;
pub mod tape;
pub mod train;

pub use error::{Error, Result};
