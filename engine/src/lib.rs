//! Models: tensors on a tape, layers, codecs, streaming sessions, training.

pub mod codec;
mod error;
pub mod metrics;
pub mod tape;
pub mod train;
pub mod transformer;
pub mod weights;

pub use error::{Error, Result};
