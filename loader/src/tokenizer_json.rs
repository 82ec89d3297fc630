//! Text to ids by a `tokenizer.json` of `transformers`: Llama 3's among them.

use std::path::{Path, PathBuf};

use crate::guard::caught;
use crate::{Error, Result};

/// Files of this kind have about ten megabytes.
const MAX_BYTES: u64 = 64 << 20;

/// A vocabulary and how text is cut into its tokens.
pub struct TokenizerJson {
    path: PathBuf,
    inner: tokenizers::Tokenizer,
}

impl TokenizerJson {
    /// # Errors
    /// What cannot be read; what is no such file.
    pub fn open(path: impl AsRef<Path>) -> Result<TokenizerJson> {
        let path = path.as_ref();
        let bytes = crate::input::read(path, "open tokenizer", MAX_BYTES)?;
        let mut inner = guarded(path, || tokenizers::Tokenizer::from_bytes(&bytes))?;
        // Neither is `transformers`' default, one cuts text and the other may take any memory.
        inner.with_padding(None);
        guarded(path, || inner.with_truncation(None).map(drop))?;
        // A few that replace `a` by `aa` would take any memory; Llama's has none.
        if inner.get_normalizer().is_some() {
            return Err(fail(path, "a tokenizer.json with a normalizer, which is not known".into()));
        }
        Ok(TokenizerJson { path: path.to_owned(), inner })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every id is below this.
    pub fn size(&self) -> usize {
        self.inner.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1)
    }

    /// The id of a token, special ones included.
    pub fn id(&self, token: &str) -> Option<i32> {
        i32::try_from(self.inner.token_to_id(token)?).ok()
    }

    /// The ids of `text`, with nothing before or after it: `add_special_tokens=False` of `transformers`. Names of special tokens
    /// within it are those tokens.
    ///
    /// # Errors
    /// A file that contradicts itself: an id that is none of a token's, an unknown token where there is none for that.
    pub fn encode(&self, text: &str) -> Result<Vec<i32>> {
        let encoding = guarded(&self.path, || self.inner.encode(text, false))?;
        let id = |&id: &u32| i32::try_from(id).map_err(|_| fail(&self.path, format!("an id of {id}")));
        encoding.get_ids().iter().map(id).collect()
    }
}

/// The package panics at some files that no trainer writes.
fn guarded<T>(path: &Path, work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match caught(work) {
        Some(Ok(value)) => Ok(value),
        Some(Err(why)) => Err(fail(path, format!("no tokenizer.json: {}", shorten(&why.to_string())))),
        None => Err(fail(path, "a tokenizer.json that contradicts itself".into())),
    }
}

/// One line.
fn shorten(why: &str) -> String {
    why.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect()
}

fn fail(path: &Path, why: String) -> Error {
    Error::Tokenizer { path: path.to_owned(), why }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../verify/golden/csm").join(name)
    }

    /// Of `PreTrainedTokenizerFast`: verify/reference/csm.py.
    #[test]
    fn ids_equal_those_of_transformers() {
        let tokenizer = TokenizerJson::open(golden("weights/tokenizer.json")).unwrap();
        assert_eq!((tokenizer.size(), tokenizer.id("<|begin_of_text|>"), tokenizer.id("nothing")), (400, Some(396), None));
        let texts: serde_json::Value = serde_json::from_slice(&std::fs::read(golden("texts.json")).unwrap()).unwrap();
        let texts = texts.as_array().unwrap();
        assert!(texts.len() >= 20);
        for case in texts {
            let expected: Vec<i32> = serde_json::from_value(case["ids"].clone()).unwrap();
            assert_eq!(tokenizer.encode(case["text"].as_str().unwrap()).unwrap(), expected, "{}", case["text"]);
        }
    }

    #[test]
    fn what_is_no_such_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        for text in ["", "{}", "[]", "\u{fffd}", r#"{"model": {"type": "BPE", "vocab": {}, "merges": ["a b"]}}"#] {
            std::fs::write(&path, text).unwrap();
            let error = TokenizerJson::open(&path).err().unwrap_or_else(|| panic!("{text} is no error")).to_string();
            assert!(error.contains("tokenizer.json") && !error.contains('\n'), "{error}");
        }
        assert!(TokenizerJson::open(dir.path().join("nowhere")).is_err());
    }

    #[test]
    fn what_would_cut_or_fill_up_a_text_has_no_say() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        let whole: serde_json::Value = serde_json::from_slice(&std::fs::read(golden("weights/tokenizer.json")).unwrap()).unwrap();
        let with = |key: &str, value: serde_json::Value| {
            let mut other = whole.clone();
            other[key] = value;
            std::fs::write(&path, other.to_string()).unwrap();
            TokenizerJson::open(&path)
        };
        let text = "a text of more than a few ids, and of fewer than a billion";
        let expected = TokenizerJson::open(golden("weights/tokenizer.json")).unwrap().encode(text).unwrap();
        let pad = serde_json::json!({ "strategy": { "Fixed": 4000000000u32 }, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "x" });
        let cut = serde_json::json!({ "direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0 });
        for (key, value) in [("padding", pad), ("truncation", cut)] {
            assert_eq!(with(key, value).unwrap().encode(text).unwrap(), expected, "{key}");
        }
        let error = with("normalizer", serde_json::json!({ "type": "Lowercase" })).err().unwrap().to_string();
        assert!(error.contains("normalizer"), "{error}");
    }

    #[test]
    fn damaged_files_end_in_ids_or_one_line_of_error() {
        let whole = std::fs::read(golden("weights/tokenizer.json")).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        let mut state = 9u64;
        let mut next = |below: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % below
        };
        for _ in 0..200 {
            let mut bytes = whole.clone();
            for _ in 0..1 + next(3) {
                let at = next(bytes.len());
                match next(3) {
                    0 => bytes[at] = b"\"{}[],:0919tfn\\"[next(15)],
                    1 => drop(bytes.remove(at)),
                    _ => drop(bytes.drain(at..(at + next(400)).min(bytes.len()))),
                }
            }
            std::fs::write(&path, bytes).unwrap();
            let found = TokenizerJson::open(&path).and_then(|tokenizer| tokenizer.encode("[0]Hello \u{c24}<|AUDIO|>\n"));
            if let Err(error) = found {
                assert!(!error.to_string().contains('\n'), "{error}");
            }
        }
    }
}
