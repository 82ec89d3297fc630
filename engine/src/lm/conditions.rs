//! What streams are conditioned on: words, and rows such as those of a voice. They are added to what is fed at every step, or the
//! temporal transformer attends to them.
//!
//! | tensor, behind `condition_provider.conditioners.NAME.` | shape             |                                                       |
//! |--------------------------------------------------------|-------------------|-------------------------------------------------------|
//! | `embed.weight`                                         | `[bins + 1, width]` | of words; the last row is of no word                |
//! | `output_proj.weight`                                   | `[dim, width]`    | unless `width` is `dim` and no projection is asked for |
//! | `learnt_padding`                                       | `[1, 1, dim]`     | where nothing is; without it zero                     |
//!
//! Source: `BaseConditioner`, `TensorCondition` and `ConditionFuser` of moshi's `conditioners/base.py`, `NoopTokenizer` of its `text.py`.

use std::collections::BTreeMap;

use half::{bf16, f16};
use sha2::{Digest, Sha256};
use swara_kernels::ops::elementwise;
use swara_kernels::ops::linear::{self, Fused, Product, Weight as Matrix};
use swara_kernels::{DType, Device, Tensor};

use super::Lm;
use super::config::{Conditioner, Kind, Sines};
use super::model::room;
use crate::weights::Reader;
use crate::{Error, Result};

/// Of the sines of positions of rows that are attended to.
const PERIOD: f64 = 10_000.0;

/// What a stream is conditioned on, by name; nothing for those that are not there.
pub type Conditions = BTreeMap<String, Condition>;

#[derive(Clone, Debug, PartialEq)]
pub enum Condition {
    Word(String),
    Rows(ConditionRows),
}

impl From<&str> for Condition {
    fn from(word: &str) -> Condition {
        Condition::Word(word.to_owned())
    }
}

impl Condition {
    /// That it is: one, of a word.
    pub(super) fn rows(&self) -> usize {
        match self {
            Condition::Word(_) => 1,
            Condition::Rows(rows) => rows.there.len(),
        }
    }
}

/// Rows `[T, width]`, some of which may not be there.
#[derive(Clone, Debug, PartialEq)]
pub struct ConditionRows {
    values: Vec<f32>,
    width: usize,
    there: Vec<bool>,
}

impl ConditionRows {
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// Most rows of one condition.
    pub const MOST: usize = 1 << 14;

    /// How many rows of `width` so many values are, with a mask of so many, if there is one.
    ///
    /// # Errors
    /// As [`new`](Self::new), before there are values.
    pub fn check(values: usize, width: usize, mask: Option<usize>) -> Result<usize> {
        let rows = values.checked_div(width).unwrap_or(0);
        if rows == 0 || rows > Self::MOST || values != rows * width || mask.is_some_and(|mask| mask != rows) {
            let mask = mask.map_or(String::new(), |mask| format!(" and a mask of {mask}"));
            return Err(Error::Argument(format!("{values} values{mask}, expected 1 to {} rows of {width}", Self::MOST)));
        }
        Ok(rows)
    }

    /// `there [T]`; by default all are.
    ///
    /// # Errors
    /// No rows, or more than [`Self::MOST`]; lengths that do not fit; values that are not finite.
    pub fn new(values: Vec<f32>, width: usize, there: Option<Vec<bool>>) -> Result<ConditionRows> {
        let rows = Self::check(values.len(), width, there.as_ref().map(Vec::len))?;
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            return Err(Error::Argument(format!("value {} of row {} of a condition is {}", at % width, at / width, values[at])));
        }
        Ok(ConditionRows { there: there.unwrap_or_else(|| vec![true; rows]), values, width })
    }
}

impl Conditioner {
    fn tensor(&self, part: &str) -> String {
        format!("condition_provider.conditioners.{}.{part}", self.name)
    }

    pub(super) fn tensors(&self, dim: usize) -> Vec<(String, Vec<usize>)> {
        let mut tensors = Vec::new();
        if let Kind::Words { bins, .. } = self.kind {
            tensors.push((self.tensor("embed.weight"), vec![bins + 1, self.width]));
        }
        tensors.extend(self.projected.then(|| (self.tensor("output_proj.weight"), vec![dim, self.width])));
        tensors.extend(self.padded.then(|| (self.tensor("learnt_padding"), vec![1, 1, dim])));
        tensors
    }
}

/// A conditioner with its tensors.
pub(super) struct ReadyConditioner {
    conditioner: Conditioner,
    /// `[words, width]`, where there are words.
    words: Option<Tensor>,
    project: Option<Matrix>,
    /// `[dim]`: what stands where nothing is.
    none: Vec<f32>,
}

impl ReadyConditioner {
    pub fn read(conditioner: &Conditioner, dim: usize, from: &mut Reader) -> Result<ReadyConditioner> {
        let name = |part: &str| conditioner.tensor(part);
        let none = match conditioner.padded {
            true => elementwise::convert(&from.parameter(&name("learnt_padding"))?, DType::F32)?.to_vec()?,
            false => vec![0.0; dim],
        };
        let project = match conditioner.projected {
            true => Some(Matrix::for_product(&from.parameter(&name("output_proj.weight"))?, Product::Tiles)?),
            false => None,
        };
        let words = match conditioner.kind {
            Kind::Words { .. } => Some(from.parameter(&name("embed.weight"))?),
            Kind::Rows => None,
        };
        Ok(ReadyConditioner { conditioner: conditioner.clone(), words, project, none })
    }

    pub fn name(&self) -> &str {
        &self.conditioner.name
    }

    fn projected(&self, rows: Tensor) -> Result<Vec<f32>> {
        let rows = match &self.project {
            Some(project) => linear::forward(&rows, project, Fused::default())?,
            None => rows,
        };
        Ok(elementwise::convert(&rows, DType::F32)?.to_vec()?)
    }

    /// Puts what a condition becomes, `[length, dim]`, behind `rows`: padding where it is not, or is no longer. It was checked.
    fn push(&self, rows: &mut Vec<f32>, condition: Option<&Condition>, length: usize, device: &Device) -> Result<()> {
        let (width, dim) = (self.conditioner.width, self.none.len());
        let end = rows.len() + length * dim;
        match (condition, &self.words) {
            (Some(Condition::Word(word)), Some(words)) => {
                let at = self.conditioner.kind.number(word).unwrap_or(0);
                rows.extend(self.projected(words.part(at * width, [1, width])?)?);
            }
            (Some(Condition::Rows(given)), _) => {
                let values = self.projected(Tensor::from_slice(device, &given.values, [given.there.len(), width])?)?;
                for (row, &there) in values.chunks_exact(dim).zip(&given.there) {
                    rows.extend(if there { row } else { &self.none });
                }
            }
            _ => {}
        }
        while rows.len() < end {
            rows.extend(&self.none);
        }
        Ok(())
    }
}

impl Kind {
    /// Row of a word that it knows.
    fn number(&self, word: &str) -> Option<usize> {
        match self {
            // Of words that are there twice, moshi's dictionary has the last.
            Kind::Words { known: Some(words), .. } => words.iter().rposition(|known| known == word),
            Kind::Words { known: None, bins } => Some(number(word, *bins)),
            Kind::Rows => None,
        }
    }
}

/// What stands for a word of no list: SHA-256 of it, modulo `bins`.
fn number(word: &str, bins: usize) -> usize {
    Sha256::digest(word).iter().fold(0, |rest, &byte| (rest * 256 + usize::from(byte)) % bins)
}

/// What conditions are for the rows of a batch.
pub(super) struct FusedConditions {
    /// `[B, 1, dim]`: what they add to what is fed.
    pub onto: Option<Tensor>,
    /// `[B, T, dim]`: what is attended to.
    pub source: Option<Tensor>,
}

/// Of the `streams`. As in moshi, what is attended to is as long for all of them as for the longest.
///
/// # Errors
/// Conditions and words that the model does not know; rows of another width, or several that are added.
pub(super) fn fuse(lm: &Lm, streams: &[&Conditions]) -> Result<FusedConditions> {
    let (fuser, known, dim) = (lm.config.fused()?, &lm.temporal.conditioners, lm.config.dim);
    streams.iter().try_for_each(|stream| lm.config.check_conditions(stream))?;
    let find = |name: &String| known.iter().find(|known| known.name() == name).ok_or_else(|| Error::MissingTensor(name.clone()));
    let length = |name: &str| streams.iter().map(|stream| stream.get(name).map_or(1, Condition::rows)).max().unwrap_or(1);
    let tensor = |rows: Vec<f32>, length: usize| -> Result<Tensor> {
        let most = if lm.values() == DType::F16 { f16::MAX.to_f32() } else { bf16::MAX.to_f32() };
        if !rows.iter().all(|v| v.abs() <= most) {
            return Err(Error::Argument(format!("conditions that are beyond the numbers of {}", lm.values())));
        }
        let tensor = Tensor::from_slice(&lm.device, &rows, [streams.len(), length, dim])?;
        Ok(elementwise::convert(&tensor, lm.values())?)
    };
    let mut fused = FusedConditions { onto: None, source: None };
    if !fuser.sum.is_empty() {
        let mut onto = vec![0.0; streams.len() * dim];
        for name in &fuser.sum {
            let mut rows = room(onto.len())?;
            streams.iter().try_for_each(|stream| find(name)?.push(&mut rows, stream.get(name), 1, &lm.device))?;
            onto.iter_mut().zip(&rows).for_each(|(onto, more)| *onto += more);
        }
        fused.onto = Some(tensor(onto, 1)?);
    }
    if !fuser.cross.is_empty() {
        let total: usize = fuser.cross.iter().map(|name| length(name)).sum();
        let mut rows = room(streams.len().saturating_mul(total).saturating_mul(dim))?;
        for stream in streams {
            for name in &fuser.cross {
                find(name)?.push(&mut rows, stream.get(name), length(name), &lm.device)?;
            }
        }
        if fuser.cross_attention_pos_emb {
            let sines = Sines { period: PERIOD, scale: fuser.cross_attention_pos_emb_scale };
            for (at, row) in rows.chunks_exact_mut(dim).enumerate() {
                row.iter_mut().zip(sines.row(dim, at % total)).for_each(|(value, sine)| *value += sine);
            }
        }
        fused.source = Some(tensor(rows, total)?);
    }
    Ok(fused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_of_no_list_has_the_number_that_moshi_gives_it() {
        // hash_trick of moshi's conditioners/text.py.
        for (word, bins, expected) in [("Jeff Buckley", 7, 0), ("Jeff Buckley", 4096, 3269), ("", 1000, 549), ("स्वर", 4096, 3648)]
        {
            assert_eq!(number(word, bins), expected, "{word}");
        }
    }

    #[test]
    fn what_are_no_rows_is_refused() {
        let refused = |values: &[f32], width: usize, there: Option<Vec<bool>>| {
            ConditionRows::new(values.to_vec(), width, there).unwrap_err().to_string()
        };
        assert!(refused(&[], 4, None).contains("0 values"));
        assert!(refused(&[1.0; 7], 4, None).contains("rows of 4"));
        assert!(refused(&[1.0; 8], 0, None).contains("rows of 0"));
        assert!(refused(&[1.0; 8], 4, Some(vec![true])).contains("a mask of 1"));
        assert!(refused(&[1.0, f32::NAN], 1, None).contains("row 1"));
        assert!(refused(&vec![0.0; ConditionRows::MOST + 1], 1, None).contains("1 to 16384"));
    }
}
