//! Bytes on disk to named weights, audio samples, codes and datasets, and back.
//!
//! This crate knows files. It knows no device and no model.
//!
//! | module | reads | writes |
//! |---|---|---|
//! | [`audio`] | wav, flac, mp3, ogg vorbis, aiff, raw g722; mono, any rate, bounded memory | wav (16-bit, float) |
//! | [`weights`] | safetensors, GGUF and PyTorch's zip and pickle files, memory-mapped; one file or a directory | safetensors |
//! | [`quantized`] | matrices of 8 and 4 bits as ggml, bitsandbytes, AutoGPTQ and AutoAWQ lay them out | those of bitsandbytes and AutoGPTQ |
//! | [`codes`] | codec codes | codec codes |
//! | [`dataset`] | prepared speech, random crops of it | prepared speech from folders of audio |
//! | [`tokenizer`] | a sentencepiece model: text to ids and back | |
//! | [`tokenizer_json`] | the `tokenizer.json` of `transformers` | |
//! | [`input`] | small files, whole | |
//! | [`output`] | | any file: whole, or not at all |
//!
//! Every file is taken as hostile: what it claims is checked before it is used, an [`Error`] names the file and what is
//! wrong in it, and memory is bounded by what is really there, never by what a header says.

#[cfg(target_endian = "big")]
compile_error!("swara reads and writes little-endian files in place");

pub mod audio;
pub mod codes;
pub mod dataset;
mod error;
mod guard;
pub mod input;
pub mod loudness;
pub mod output;
pub mod quantized;
mod sentencepiece;
pub mod tokenizer;
pub mod tokenizer_json;
pub mod weights;

pub use error::{AudioError, CodesError, DatasetError, Error, GgufError, QuantizedError, Result, TorchError, WeightsError};
