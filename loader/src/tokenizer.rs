//! A sentencepiece model: text to ids, and what a language model says into text as it comes.

use std::path::{Path, PathBuf};

use prost::Message;

use crate::sentencepiece::{BYTE, Encoder, Model, NORMAL, Piece as Published, USER_DEFINED};
use crate::{Error, Result};

/// Files of this kind have about one megabyte.
const MAX_BYTES: u64 = 16 << 20;
/// Pieces of a vocabulary, at most.
const MAX_PIECES: usize = 1 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Byte(u8),
    /// Control, unknown, unused.
    Silent,
}

/// A vocabulary, read from a `.model` file.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    path: PathBuf,
    pieces: Vec<Piece>,
    model: Model,
}

impl Tokenizer {
    /// # Errors
    /// What cannot be read; what is no sentencepiece model.
    pub fn open(path: impl AsRef<Path>) -> Result<Tokenizer> {
        let path = path.as_ref();
        let bytes = crate::input::read(path, "open tokenizer", MAX_BYTES)?;
        Tokenizer::parse(path, &bytes)
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Tokenizer> {
        let model = Model::decode(bytes).map_err(|e| fail(path, format!("no sentencepiece model: {e}")))?;
        if model.pieces.is_empty() || model.pieces.len() > MAX_PIECES {
            return Err(fail(path, format!("no sentencepiece model: {} pieces, expected 1 to {MAX_PIECES}", model.pieces.len())));
        }
        let piece = |(id, published): (usize, &Published)| {
            let text = published.text();
            match published.kind() {
                NORMAL | USER_DEFINED => Ok(Piece::Text(text.replace('\u{2581}', " "))),
                BYTE => published.byte().map(Piece::Byte).ok_or_else(|| fail(path, format!("piece {id} is no byte: {text:?}"))),
                _ => Ok(Piece::Silent),
            }
        };
        let pieces = model.pieces.iter().enumerate().map(piece).collect::<Result<_>>()?;
        Ok(Tokenizer { path: path.to_owned(), pieces, model })
    }

    /// The ids of `text`, with nothing before or after it: `encode` of the package sentencepiece.
    ///
    /// # Errors
    /// A model that is neither unigram nor BPE, or contradicts itself; a text of more than 65536 bytes.
    pub fn encode(&self, text: &str) -> Result<Vec<i32>> {
        Encoder::new(&self.model).and_then(|encoder| encoder.encode(text)).map_err(|why| fail(&self.path, why))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many ids there are.
    pub fn size(&self) -> usize {
        self.pieces.len()
    }
}

fn fail(path: &Path, why: String) -> Error {
    Error::Tokenizer { path: path.to_owned(), why }
}

/// Ids in, text out: whole characters only, however their bytes are spread over ids.
#[derive(Debug, Default)]
pub struct TextStream {
    /// Of a character that is not complete.
    bytes: Vec<u8>,
}

impl TextStream {
    /// The text that `id` completes. An id without a piece, and bytes that are no UTF-8, are U+FFFD.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: i32) -> String {
        let piece = usize::try_from(id).ok().and_then(|id| tokenizer.pieces.get(id));
        if let Some(Piece::Byte(byte)) = piece {
            self.bytes.push(*byte);
            return self.take(false);
        }
        let mut text = self.take(true);
        match piece {
            Some(Piece::Text(piece)) => text.push_str(piece),
            Some(_) => {}
            None => text.push(char::REPLACEMENT_CHARACTER),
        }
        text
    }

    /// What is left of an incomplete character.
    pub fn finish(&mut self) -> String {
        self.take(true)
    }

    /// The bytes so far as text, an incomplete character at their end only if it is the `end`.
    fn take(&mut self, end: bool) -> String {
        let mut text = String::new();
        let mut bytes = std::mem::take(&mut self.bytes);
        loop {
            match std::str::from_utf8(&bytes) {
                Ok(valid) => {
                    text.push_str(valid);
                    return text;
                }
                Err(error) => {
                    let valid = error.valid_up_to();
                    text.push_str(&String::from_utf8_lossy(&bytes[..valid]));
                    let skipped = match error.error_len() {
                        None if !end => {
                            self.bytes = bytes.split_off(valid);
                            return text;
                        }
                        None => bytes.len() - valid,
                        Some(n) => n,
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    bytes.drain(..valid + skipped);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published(text: &str, kind: i32) -> Published {
        Published { text: Some(text.to_owned()), score: None, kind: Some(kind) }
    }

    fn tokenizer(pieces: &[(&str, i32)]) -> Tokenizer {
        let model = Model { pieces: pieces.iter().map(|&(text, kind)| published(text, kind)).collect(), ..Model::default() };
        Tokenizer::parse(Path::new("test.model"), &model.encode_to_vec()).unwrap()
    }

    #[test]
    fn pieces_become_text_as_they_come() {
        let t = tokenizer(&[("<unk>", 2), ("<s>", 3), ("\u{2581}swara", 1), ("m", 4), ("<0xE0>", 6), ("<0xB0>", 6), ("<0x95>", 6)]);
        let mut stream = TextStream::default();
        let texts: Vec<String> = [2, 3, 1, 0, 4, 5, 6, 2].into_iter().map(|id| stream.push(&t, id)).collect();
        assert_eq!(texts, [" swara", "m", "", "", "", "", "క", " swara"]);
        assert_eq!(t.size(), 7);
    }

    #[test]
    fn what_is_no_text_is_said_so() {
        let t = tokenizer(&[("a", 1), ("<0xE0>", 6), ("<0xFF>", 6), ("<0x41>", 6)]);
        let mut stream = TextStream::default();
        let texts: Vec<String> = [1, 0, 2, 3, 1, 3, -2, 99].into_iter().map(|id| stream.push(&t, id)).collect();
        assert_eq!(texts, ["", "\u{fffd}a", "\u{fffd}", "A", "", "\u{fffd}A", "\u{fffd}", "\u{fffd}"]);
        stream.push(&t, 1);
        assert_eq!(stream.finish(), "\u{fffd}");
        assert_eq!(stream.finish(), "");
    }

    #[test]
    fn other_files_are_refused() {
        let parse = |bytes: &[u8]| Tokenizer::parse(Path::new("x"), bytes);
        let byte = Model { pieces: vec![published("<0xZZ>", BYTE)], ..Model::default() }.encode_to_vec();
        for bytes in [&b""[..], b"\x0a\xff\xff\xff\xff\x0f", b"{\"json\": 1}", &byte, &[0x0a; 4096]] {
            assert!(matches!(parse(bytes), Err(Error::Tokenizer { .. })), "{:?}", &bytes[..bytes.len().min(8)]);
        }
    }
}
