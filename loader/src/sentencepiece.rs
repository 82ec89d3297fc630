//! Text to ids as the package sentencepiece makes them: normalisation, then the most probable pieces (unigram) or merges (BPE).
//!
//! Source: `normalizer.cc`, `unigram_model.cc`, `bpe_model.cc` and `sentencepiece_processor.cc` of sentencepiece 0.2. All is done on bytes,
//! as there, in its order, with its rounding: of two ways to cut a text that are as probable, the same is taken.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use prost::Message;

/// The messages of `sentencepiece_model.proto`, as far as they are of use here.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Model {
    #[prost(message, repeated, tag = "1")]
    pub pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    pub trainer: Option<Trainer>,
    #[prost(message, optional, tag = "3")]
    pub normalizer: Option<Normalization>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Piece {
    #[prost(string, optional, tag = "1")]
    pub text: Option<String>,
    #[prost(float, optional, tag = "2")]
    pub score: Option<f32>,
    #[prost(int32, optional, tag = "3", default = "1")]
    pub kind: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Trainer {
    #[prost(int32, optional, tag = "3", default = "1")]
    pub model_type: Option<i32>,
    #[prost(bool, optional, tag = "24")]
    pub treat_whitespace_as_suffix: Option<bool>,
    #[prost(bool, optional, tag = "35")]
    pub byte_fallback: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Normalization {
    #[prost(bytes = "vec", optional, tag = "2")]
    pub precompiled_charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3", default = "true")]
    pub add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4", default = "true")]
    pub remove_extra_whitespaces: Option<bool>,
    #[prost(bool, optional, tag = "5", default = "true")]
    pub escape_whitespaces: Option<bool>,
}

pub(crate) const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
pub(crate) const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
pub(crate) const BYTE: i32 = 6;

/// Bytes of a text, of a text that is normalised, and of a piece, at most: what a model can make of a text is bounded by that.
const MOST_TEXT: usize = 1 << 16;
const MOST_NORMALISED: usize = 1 << 18;
const MOST_PIECE: usize = 1 << 10;

/// What an unknown character costs beside the least probable piece.
const UNKNOWN_PENALTY: f32 = 10.0;

const SPACE: &[u8] = "\u{2581}".as_bytes();

impl Piece {
    fn bytes(&self) -> &[u8] {
        self.text().as_bytes()
    }

    /// The byte that a piece of that kind stands for.
    pub fn byte(&self) -> Option<u8> {
        let digits = self.text().strip_prefix("<0x")?.strip_suffix('>')?;
        (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
    }
}

/// Cuts text into pieces of a vocabulary.
pub(crate) struct Encoder<'m> {
    pieces: &'m [Piece],
    normalizer: Normalizer<'m>,
    bpe: bool,
    /// Pieces that text is cut into, and those that it is not.
    known: Lookup<'m>,
    reserved: Lookup<'m>,
    unknown: i32,
    /// Ids of all bytes, where unknown characters are written in them.
    bytes: Option<Vec<i32>>,
}

impl<'m> Encoder<'m> {
    /// # Errors
    /// What the model lacks.
    pub fn new(model: &'m Model) -> Result<Encoder<'m>, String> {
        let trainer = model.trainer.clone().unwrap_or_default();
        let bpe = match trainer.model_type() {
            1 => false,
            2 => true,
            other => return Err(format!("a sentencepiece model of type {other}, expected 1 (unigram) or 2 (BPE), to encode text")),
        };
        let pieces = &model.pieces[..];
        if let Some(id) = pieces.iter().position(|piece| piece.bytes().is_empty() || piece.bytes().len() > MOST_PIECE) {
            return Err(format!("piece {id} has {} bytes, expected 1 to {MOST_PIECE}", pieces[id].bytes().len()));
        }
        if let Some(id) = pieces.iter().position(|piece| !piece.score().is_finite()) {
            return Err(format!("piece {id} has a score that is not finite"));
        }
        let of = |kinds: &'static [i32], wanted: bool| {
            let pieces = pieces.iter().enumerate().filter(move |(_, piece)| kinds.contains(&piece.kind()) == wanted);
            Lookup::new(pieces.map(|(id, piece)| (piece.bytes(), id as i32)))
        };
        let mut unknown = pieces.iter().enumerate().filter(|(_, piece)| piece.kind() == UNKNOWN).map(|(id, _)| id as i32);
        let (Some(unknown), None) = (unknown.next(), unknown.next()) else { return Err("not one piece for what is unknown".to_owned()) };
        Ok(Encoder {
            pieces,
            normalizer: Normalizer::new(model, of(&[USER_DEFINED], true)?)?,
            bpe,
            known: of(&[NORMAL, USER_DEFINED, UNUSED], true)?,
            reserved: of(&[NORMAL, USER_DEFINED, UNUSED], false)?,
            unknown,
            bytes: if trainer.byte_fallback() { Some(byte_ids(pieces)?) } else { None },
        })
    }

    /// # Errors
    /// A text that is too long, or becomes that.
    pub fn encode(&self, text: &str) -> Result<Vec<i32>, String> {
        if text.len() > MOST_TEXT {
            return Err(format!("a text of {} bytes, at most {MOST_TEXT} are encoded", text.len()));
        }
        let text = self.normalizer.normalize(text.as_bytes())?;
        let found = if self.bpe { self.merged(&text) } else { self.most_probable(&text) };
        let (mut ids, mut unknown_before) = (Vec::with_capacity(found.len()), false);
        for (piece, id) in found {
            let unknown = id == self.unknown;
            match &self.bytes {
                Some(bytes) if unknown => ids.extend(piece.iter().map(|&byte| bytes[usize::from(byte)])),
                // What is unknown in a row is one.
                _ if unknown && unknown_before => {}
                _ => ids.push(id),
            }
            unknown_before = unknown;
        }
        Ok(ids)
    }

    fn score(&self, id: i32) -> f32 {
        self.pieces.get(id as usize).map_or(0.0, Piece::score)
    }

    fn is(&self, id: i32, kind: i32) -> bool {
        self.pieces.get(id as usize).is_some_and(|piece| piece.kind() == kind)
    }

    /// Viterbi's: the pieces whose scores have the greatest sum.
    fn most_probable<'t>(&self, text: &'t [u8]) -> Vec<(&'t [u8], i32)> {
        /// The last piece of the best way to a place.
        #[derive(Clone, Copy)]
        struct Way {
            score: f32,
            from: usize,
            id: i32,
        }
        let normal = || self.pieces.iter().filter(|piece| piece.kind() == NORMAL).map(|piece| piece.score());
        let least = normal().fold(f32::MAX, f32::min) - UNKNOWN_PENALTY;
        // The smallest positive number is what sentencepiece begins with.
        let greatest = normal().fold(f32::MIN_POSITIVE, f32::max);
        let mut ways: Vec<Option<Way>> = vec![None; text.len() + 1];
        let better = |way: &mut Option<Way>, score: f64, from: usize, id: i32| {
            if way.is_none_or(|way| score > f64::from(way.score)) {
                *way = Some(Way { score: score as f32, from, id });
            }
        };
        let mut from = 0;
        while from < text.len() {
            let here = ways[from].map_or(0.0, |way| way.score);
            let (character, mut covered) = (character(&text[from..]), false);
            self.known.prefixes(&text[from..], |length, id| {
                if self.is(id, UNUSED) {
                    return;
                }
                let score = match self.is(id, USER_DEFINED) {
                    true => f64::from(length as f32 * greatest) - 0.1 + f64::from(here),
                    // Of single precision, unless it stands beside the other.
                    false => f64::from(self.score(id)) + f64::from(here),
                };
                better(&mut ways[from + length], score, from, id);
                covered |= length == character;
            });
            if !covered {
                better(&mut ways[from + character], f64::from(least + here), from, self.unknown);
            }
            from += character;
        }
        let (mut found, mut end) = (Vec::new(), text.len());
        while let Some(Way { from, id, .. }) = ways[end].filter(|_| end > 0) {
            found.push((&text[from..end], id));
            end = from;
        }
        found.reverse();
        found
    }

    /// Merges of neighbours, those of the greatest score first.
    fn merged<'t>(&self, text: &'t [u8]) -> Vec<(&'t [u8], i32)> {
        let mut symbols: Vec<Symbol> = Vec::new();
        let mut at = 0;
        while at < text.len() {
            let defined = self.normalizer.defined.longest(&text[at..]);
            let end = at + defined.unwrap_or_else(|| character(&text[at..]));
            let after = (end < text.len()).then_some(symbols.len() + 1);
            symbols.push(Symbol { start: at, end, fixed: defined.is_some(), before: symbols.len().checked_sub(1), after });
            at = end;
        }
        // Of pieces that are not used: the length of what was merged first.
        let mut taken_apart: HashMap<&[u8], usize> = HashMap::new();
        let mut agenda = BinaryHeap::new();
        let mut propose = |symbols: &[Symbol], agenda: &mut BinaryHeap<Merge>, left: Option<usize>, right: Option<usize>| {
            let (Some(left), Some(right)) = (left, right) else { return };
            let (first, second) = (symbols[left], symbols[right]);
            let piece = &text[first.start..second.end];
            let Some(id) = self.known.find(piece).filter(|_| !first.fixed && !second.fixed) else { return };
            agenda.push(Merge { score: self.score(id), left, right, length: piece.len() });
            if self.is(id, UNUSED) {
                taken_apart.insert(piece, first.end - first.start);
            }
        };
        (1..symbols.len()).for_each(|right| propose(&symbols, &mut agenda, Some(right - 1), Some(right)));
        while let Some(Merge { left, right, length, .. }) = agenda.pop() {
            let (first, second) = (symbols[left], symbols[right]);
            if first.start == first.end || second.start == second.end || first.end - first.start + second.end - second.start != length {
                continue;
            }
            (symbols[left].end, symbols[left].after) = (second.end, second.after);
            if let Some(after) = second.after {
                symbols[after].before = Some(left);
            }
            symbols[right].end = second.start;
            propose(&symbols, &mut agenda, first.before, Some(left));
            propose(&symbols, &mut agenda, Some(left), second.after);
        }
        let mut found = Vec::new();
        for symbol in symbols.iter().filter(|symbol| symbol.start < symbol.end) {
            let mut pending = vec![&text[symbol.start..symbol.end]];
            while let Some(piece) = pending.pop() {
                let id = self.reserved.find(piece).or_else(|| self.known.find(piece)).unwrap_or(self.unknown);
                match taken_apart.get(piece).filter(|_| self.is(id, UNUSED)) {
                    Some(&first) => pending.extend([&piece[first..], &piece[..first]]),
                    None => found.push((piece, id)),
                }
            }
        }
        found
    }
}

/// Bytes of a text that are not merged any more; empty once they are another symbol's.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    end: usize,
    fixed: bool,
    before: Option<usize>,
    after: Option<usize>,
}

/// The greatest score is first, and of those the leftmost.
struct Merge {
    score: f32,
    left: usize,
    right: usize,
    length: usize,
}

impl Ord for Merge {
    fn cmp(&self, other: &Merge) -> Ordering {
        // Scores are finite: of zeros both signs are one.
        self.score.partial_cmp(&other.score).unwrap_or(Ordering::Equal).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Merge {
    fn partial_cmp(&self, other: &Merge) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Merge {
    fn eq(&self, other: &Merge) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Merge {}

fn byte_ids(pieces: &[Piece]) -> Result<Vec<i32>, String> {
    let mut ids = vec![None; 256];
    for (id, piece) in pieces.iter().enumerate().filter(|(_, piece)| piece.kind() == BYTE) {
        if let Some(byte) = piece.byte() {
            ids[usize::from(byte)] = Some(id as i32);
        }
    }
    let missing = ids.iter().position(Option::is_none);
    ids.into_iter().collect::<Option<_>>().ok_or_else(|| format!("no piece for byte {}", missing.unwrap_or(0)))
}

/// Length of the character that a text begins with, by its first byte alone.
fn character(text: &[u8]) -> usize {
    let length = match text.first().map_or(0, |byte| byte >> 4) {
        12 | 13 => 2,
        14 => 3,
        15 => 4,
        _ => 1,
    };
    length.min(text.len())
}

/// Strings of bytes in order.
struct Lookup<'m>(Vec<(&'m [u8], i32)>);

impl<'m> Lookup<'m> {
    fn new(entries: impl Iterator<Item = (&'m [u8], i32)>) -> Result<Lookup<'m>, String> {
        let mut entries: Vec<_> = entries.collect();
        entries.sort_unstable();
        match entries.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            Some(pair) => Err(format!("pieces {} and {} are the same", pair[0].1, pair[1].1)),
            None => Ok(Lookup(entries)),
        }
    }

    fn find(&self, text: &[u8]) -> Option<i32> {
        self.0.binary_search_by_key(&text, |entry| entry.0).ok().map(|at| self.0[at].1)
    }

    /// Length and id of all that a text begins with, shorter ones first.
    fn prefixes(&self, text: &[u8], mut each: impl FnMut(usize, i32)) {
        let mut within = &self.0[..];
        for (depth, byte) in text.iter().enumerate() {
            // All begin as the text does; the one that ends here is the first.
            let before = within.partition_point(|(key, _)| key.get(depth).is_none_or(|b| b < byte));
            let until = within.partition_point(|(key, _)| key.get(depth).is_none_or(|b| b <= byte));
            within = &within[before..until];
            match within.first() {
                None => return,
                Some(&(key, id)) if key.len() == depth + 1 => each(depth + 1, id),
                Some(_) => {}
            }
        }
    }

    fn longest(&self, text: &[u8]) -> Option<usize> {
        let mut longest = None;
        self.prefixes(text, |length, _| longest = Some(length));
        longest
    }
}

/// What is done to a text before it is cut.
struct Normalizer<'m> {
    rules: Option<Rules<'m>>,
    /// Pieces that no rule touches.
    defined: Lookup<'m>,
    prefix: bool,
    suffix: bool,
    trimmed: bool,
    space: &'static [u8],
}

impl<'m> Normalizer<'m> {
    fn new(model: &'m Model, defined: Lookup<'m>) -> Result<Normalizer<'m>, String> {
        let spec = model.normalizer.as_ref();
        let flag = |flag: fn(&Normalization) -> bool| spec.is_none_or(flag);
        let charsmap = spec.map_or(&[][..], Normalization::precompiled_charsmap);
        let dummy = flag(Normalization::add_dummy_prefix);
        let suffix = model.trainer.as_ref().is_some_and(Trainer::treat_whitespace_as_suffix);
        Ok(Normalizer {
            rules: if charsmap.is_empty() { None } else { Some(Rules::new(charsmap)?) },
            defined,
            prefix: dummy && !suffix,
            suffix: dummy && suffix,
            trimmed: flag(Normalization::remove_extra_whitespaces),
            space: if flag(Normalization::escape_whitespaces) { SPACE } else { b" " },
        })
    }

    fn normalize(&self, mut text: &[u8]) -> Result<Vec<u8>, String> {
        let mut found = Vec::with_capacity(2 * text.len());
        if self.trimmed {
            while let Some((b" ", length)) = self.first(text)? {
                text = &text[length..];
            }
        }
        if text.is_empty() {
            return Ok(found);
        }
        if self.prefix {
            found.extend_from_slice(self.space);
        }
        let mut after_space = self.trimmed;
        while let Some((mut piece, length)) = self.first(text)? {
            while after_space && let [b' ', rest @ ..] = piece {
                piece = rest;
            }
            for byte in piece {
                match byte {
                    b' ' => found.extend_from_slice(self.space),
                    byte => found.push(*byte),
                }
            }
            if found.len() > MOST_NORMALISED {
                return Err(format!("a text of more than {MOST_NORMALISED} bytes when it is normalised"));
            }
            after_space = self.trimmed && piece.last().map_or(after_space, |&byte| byte == b' ');
            text = &text[length..];
        }
        while self.trimmed && found.ends_with(self.space) {
            found.truncate(found.len() - self.space.len());
        }
        if self.suffix {
            found.extend_from_slice(self.space);
        }
        Ok(found)
    }

    /// What a text begins with, normalised, and the length of that in the text.
    fn first<'t>(&'t self, text: &'t [u8]) -> Result<Option<(&'t [u8], usize)>, String> {
        if text.is_empty() {
            return Ok(None);
        }
        if let Some(length) = self.defined.longest(text) {
            return Ok(Some((&text[..length], length)));
        }
        let replaced = self.rules.as_ref().map_or(Ok(None), |rules| rules.longest(text))?;
        let length = character(text);
        Ok(Some(replaced.unwrap_or((&text[..length], length))))
    }
}

/// Strings and what replaces them: a trie in a double array, as darts-clone has it, and the replacements, each ended by a zero.
struct Rules<'m> {
    units: Vec<u32>,
    replacements: &'m [u8],
}

impl<'m> Rules<'m> {
    fn new(charsmap: &'m [u8]) -> Result<Rules<'m>, String> {
        let broken = || "a precompiled_charsmap that is cut off".to_owned();
        let (size, rest) = charsmap.split_first_chunk().ok_or_else(broken)?;
        let (units, replacements) = rest.split_at_checked(u32::from_le_bytes(*size) as usize).ok_or_else(broken)?;
        Ok(Rules { units: units.as_chunks().0.iter().map(|unit| u32::from_le_bytes(*unit)).collect(), replacements })
    }

    /// What replaces the longest string that a text begins with, and that string's length.
    fn longest(&self, text: &[u8]) -> Result<Option<(&[u8], usize)>, String> {
        let broken = || "a precompiled_charsmap that contradicts itself".to_owned();
        let unit = |at: usize| self.units.get(at).copied().ok_or_else(broken);
        let offset = |unit: u32| ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize;
        let mut longest = None;
        let mut at = offset(unit(0)?);
        // No rule is longer, unless a table goes in a circle.
        for (depth, &byte) in text.iter().take(MOST_PIECE).enumerate() {
            at ^= usize::from(byte);
            let node = unit(at)?;
            if node & (1 << 31 | 0xff) != u32::from(byte) {
                break;
            }
            at ^= offset(node);
            if node & (1 << 8) != 0 {
                longest = Some((unit(at)? & !(1 << 31), depth + 1));
            }
        }
        let Some((start, length)) = longest else { return Ok(None) };
        let replacement = self.replacements.get(start as usize..).ok_or_else(broken)?;
        let end = replacement.iter().take(MOST_PIECE).position(|&byte| byte == 0).ok_or_else(broken)?;
        Ok(Some((&replacement[..end], length)))
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn golden(name: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../verify/golden/sentencepiece").join(name)
    }

    fn model(name: &str) -> Model {
        Model::decode(&std::fs::read(golden(&format!("{name}.model"))).unwrap()[..]).unwrap()
    }

    const CONTROL: i32 = 3;
    const MODELS: [&str; 5] = ["unigram", "nmt_nfkc", "spaces", "bpe", "suffix"];

    /// Of the package: verify/reference/sentencepiece_models.py.
    #[test]
    fn ids_equal_those_of_sentencepiece() {
        let texts: Vec<serde_json::Value> = serde_json::from_slice(&std::fs::read(golden("texts.json")).unwrap()).unwrap();
        assert!(texts.len() >= 250);
        for name in MODELS {
            let model = model(name);
            let encoder = Encoder::new(&model).unwrap();
            for case in &texts {
                let expected: Vec<i32> = serde_json::from_value(case["ids"][name].clone()).unwrap();
                assert_eq!(encoder.encode(case["text"].as_str().unwrap()).unwrap(), expected, "{name}: {}", case["text"]);
            }
        }
    }

    #[test]
    fn of_ways_as_probable_the_first_is_taken() {
        let piece = |text: &str, score: f32, kind: i32| Piece { text: Some(text.into()), score: Some(score), kind: Some(kind) };
        let normalizer = Some(Normalization { add_dummy_prefix: Some(false), ..Normalization::default() });
        let pieces = vec![piece("<unk>", 0.0, UNKNOWN), piece("a", -1.0, NORMAL), piece("aa", -2.0, NORMAL), piece("aaa", -2.0, NORMAL)];
        let mut model = Model { pieces, normalizer, trainer: None };
        assert_eq!(Encoder::new(&model).unwrap().encode("aaaa").unwrap(), [1, 3]);
        model.trainer = Some(Trainer { model_type: Some(2), ..Trainer::default() });
        // What begins on the left: two, which the third then joins.
        assert_eq!(Encoder::new(&model).unwrap().encode("aaaaa").unwrap(), [3, 2]);
        assert_eq!(Encoder::new(&model).unwrap().encode("aaa b").unwrap(), [3, 0]);
    }

    #[test]
    fn what_cannot_encode_says_why() {
        let base = model("unigram");
        let refused = |change: &dyn Fn(&mut Model), text: &str, why: &str| {
            let mut model = base.clone();
            change(&mut model);
            let error = Encoder::new(&model).and_then(|encoder| encoder.encode(text)).unwrap_err();
            assert!(error.contains(why), "{error}");
        };
        refused(&|m| m.trainer.as_mut().unwrap().model_type = Some(3), "a", "type 3");
        refused(&|m| m.pieces[20].text = None, "a", "piece 20 has 0 bytes");
        refused(&|m| m.pieces[300].text = Some("a".repeat(1025)), "a", "1025 bytes");
        refused(&|m| m.pieces[300].score = Some(f32::NAN), "a", "not finite");
        refused(&|m| m.pieces[300].text = m.pieces[301].text.clone(), "a", "pieces 300 and 301 are the same");
        refused(&|m| m.pieces[0].kind = Some(CONTROL), "a", "unknown");
        refused(&|m| m.pieces[300].kind = Some(UNKNOWN), "a", "unknown");
        refused(&|m| m.pieces.retain(|piece| piece.byte() != Some(7)), "a", "no piece for byte 7");
        refused(&|_| {}, &"a".repeat(1 + (1 << 16)), "65537 bytes");
        let charsmap = |bytes: Vec<u8>| {
            move |m: &mut Model| {
                m.normalizer = Some(Normalization { precompiled_charsmap: Some(bytes.clone()), ..Normalization::default() })
            }
        };
        refused(&charsmap(vec![1]), "a", "cut off");
        refused(&charsmap(vec![255; 9]), "a", "cut off");
        refused(&charsmap(vec![0; 8]), "a", "contradicts itself");
        refused(&charsmap([&[4, 0, 0, 0][..], &[255; 4]].concat()), "a", "contradicts itself");
    }

    #[test]
    fn damaged_models_end_in_ids_or_one_line_of_error() {
        let mut state = 3u64;
        let mut next = |below: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % below
        };
        let (mut encoded, mut refused) = (0, 0);
        for name in MODELS {
            let whole = std::fs::read(golden(&format!("{name}.model"))).unwrap();
            for _ in 0..300 {
                let mut bytes = whole.clone();
                for _ in 0..1 + next(4) {
                    let at = next(bytes.len());
                    match next(3) {
                        0 => bytes[at] = next(256) as u8,
                        1 => bytes[at] ^= 1 << next(8),
                        _ => drop(bytes.drain(at..(at + next(40)).min(bytes.len()))),
                    }
                }
                let Ok(model) = Model::decode(&bytes[..]) else { continue };
                match Encoder::new(&model).and_then(|encoder| encoder.encode("<system> ｆｕｌｌ \u{c24}\u{a0}① two words <sep>")) {
                    Ok(ids) => {
                        assert!(ids.iter().all(|&id| (id as usize) < model.pieces.len()));
                        encoded += 1;
                    }
                    Err(error) => {
                        assert!(!error.contains('\n'), "{error}");
                        refused += 1;
                    }
                }
            }
        }
        assert!(encoded > 100 && refused > 20, "{encoded} {refused}");
    }
}
