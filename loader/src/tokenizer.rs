//! The pieces of a sentencepiece model, for turning what a language model says into text as it comes.

use std::path::{Path, PathBuf};

use prost::Message;

use crate::{Error, Result};

/// Files of this kind have about one megabyte.
const MAX_BYTES: u64 = 64 << 20;

/// The messages of `sentencepiece_model.proto`, as far as they are of use here.
#[derive(Message)]
struct Proto {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<ProtoPiece>,
}

#[derive(Message)]
struct ProtoPiece {
    #[prost(string, optional, tag = "1")]
    piece: Option<String>,
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
}

const NORMAL: i32 = 1;
const USER_DEFINED: i32 = 4;
const BYTE: i32 = 6;

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
        let proto = Proto::decode(bytes).map_err(|e| fail(path, format!("no sentencepiece model: {e}")))?;
        if proto.pieces.is_empty() {
            return Err(fail(path, "no sentencepiece model: no pieces".into()));
        }
        let piece = |(id, proto): (usize, ProtoPiece)| {
            let text = proto.piece.unwrap_or_default();
            match proto.kind.unwrap_or(NORMAL) {
                NORMAL | USER_DEFINED => Ok(Piece::Text(text.replace('\u{2581}', " "))),
                BYTE => {
                    let digits = text.strip_prefix("<0x").and_then(|t| t.strip_suffix('>')).filter(|t| t.len() == 2);
                    let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
                    byte.map(Piece::Byte).ok_or_else(|| fail(path, format!("piece {id} is no byte: {text:?}")))
                }
                _ => Ok(Piece::Silent),
            }
        };
        let pieces = proto.pieces.into_iter().enumerate().map(piece).collect::<Result<_>>()?;
        Ok(Tokenizer { path: path.to_owned(), pieces })
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

    fn tokenizer(pieces: &[(&str, i32)]) -> Tokenizer {
        let piece = |&(piece, kind): &(&str, i32)| ProtoPiece { piece: Some(piece.to_owned()), kind: Some(kind) };
        let bytes = Proto { pieces: pieces.iter().map(piece).collect() }.encode_to_vec();
        Tokenizer::parse(Path::new("test.model"), &bytes).unwrap()
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
        let byte = Proto { pieces: vec![ProtoPiece { piece: Some("<0xZZ>".into()), kind: Some(6) }] }.encode_to_vec();
        for bytes in [&b""[..], b"\x0a\xff\xff\xff\xff\x0f", b"{\"json\": 1}", &byte, &[0x0a; 4096]] {
            assert!(matches!(parse(bytes), Err(Error::Tokenizer { .. })), "{:?}", &bytes[..bytes.len().min(8)]);
        }
    }
}
