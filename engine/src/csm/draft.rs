//! Codes of a frame that are guessed, and looked over several at a time.
//!
//! The depth decoder reads its layers once for every code of a frame after the first. Of codes that are guessed one pass reads them once:
//! each code is then drawn as ever, of its own logits and with its own random numbers, and while it is the one that was guessed, the row
//! behind it was the right one. The first that is not ends the pass; the rows behind it are written over. What is said is bit for bit
//! what the decoder's kernels, launched one by one, say without guesses, sampled or not, since no row's results depend on the others
//! (`ops::linear`, `ops::attention`).
//!
//! ```text
//! guess_k = argmax(guessed logits_k / temperature + gumbel_k)    said_k = argmax(logits_k / temperature + gumbel_k)    of the same gumbel_k
//! ```
//! Two such draws agree with a probability of at least `(1 - d) / (1 + d)`, `d` the total variation between both distributions, and the
//! argmax of one is hit as often as its probability: so what is guessed from should be likely as a whole, not in its largest alone.
//!
//! | [`Draft::layers`] | what is guessed from                                      | what it costs                                          |
//! |-------------------|-----------------------------------------------------------|--------------------------------------------------------|
//! | 0                 | the logits of the same code in the frame before           | a draw                                                 |
//! | L                 | the decoder's own head behind its first L layers          | a head; the layers are not read again for the same row |
//!
//! Sources: Leviathan et al., arXiv 2211.17192; guesses by layers of the model: Zhang et al., 2309.08168, Elhoushi et al., 2404.16710; draws
//! with the same noise: Daliri et al., 2408.07978.

use swara_kernels::Tensor;
use swara_kernels::ops::sample;

use super::session::Streams;
use super::{Config, Csm};
use crate::{Error, Result};

/// How codes are guessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draft {
    /// Most that a pass looks over; at least 1.
    pub codes: usize,
    /// The first layers of the depth decoder that guess, not all of them; 0: the frame before.
    pub layers: usize,
}

impl Draft {
    /// That a model of this configuration can guess so.
    ///
    /// # Errors
    /// No codes, or all layers of the depth decoder.
    pub fn check(&self, config: &Config) -> Result<()> {
        let most = config.depth.num_hidden_layers.saturating_sub(1);
        if self.codes == 0 || self.layers > most {
            let why = format!("a draft of {} codes by {} layers, expected 1 or more codes by 0 to {most}", self.codes, self.layers);
            return Err(Error::Argument(why));
        }
        Ok(())
    }
}

/// What became of guesses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drafted {
    pub frames: u64,
    /// Over the layers that do not guess.
    pub passes: u64,
    /// That the layers that guess took one by one; those of the first pass of a frame are two at once.
    pub rows: u64,
    /// Of each code: how often a guess was looked at, as all before it in its pass were right, and how often it was right itself.
    pub compared: Vec<u64>,
    pub right: Vec<u64>,
}

impl Drafted {
    /// Right guesses of a pass.
    pub fn right_per_pass(&self) -> f64 {
        self.right.iter().sum::<u64>() as f64 / self.passes.max(1) as f64
    }

    pub fn passes_per_frame(&self) -> f64 {
        self.passes as f64 / self.frames.max(1) as f64
    }

    /// Of each code; None of those whose guesses were never looked at.
    pub fn acceptance(&self) -> Vec<Option<f64>> {
        let share = |(&right, &compared): (&u64, &u64)| (compared > 0).then(|| right as f64 / compared as f64);
        self.right.iter().zip(&self.compared).map(share).collect()
    }
}

/// Guesses at work.
pub(super) struct Drafting {
    draft: Draft,
    pub tally: Drafted,
    /// Of each code of the frame before; nothing with layers that guess.
    last: Vec<Tensor>,
    /// All codes of the next frame, in place of what would be guessed.
    given: Option<Vec<i32>>,
}

impl Drafting {
    pub fn new(csm: &Csm, batch: usize, draft: Draft) -> Result<Drafting> {
        if batch != 1 {
            return Err(Error::Argument(format!(
                "guesses for {batch} streams at once: how many are right differs, so there can be but one"
            )));
        }
        draft.check(&csm.config)?;
        let none = vec![0; csm.config.num_codebooks];
        let tally = Drafted { compared: none.clone(), right: none, ..Drafted::default() };
        Ok(Drafting { draft, tally, last: Vec::new(), given: None })
    }

    pub fn give(&mut self, csm: &Csm, codes: &[i32]) -> Result<()> {
        let (codebooks, vocab) = (csm.config.num_codebooks, csm.config.vocab_size);
        if codes.len() != codebooks {
            return Err(Error::Argument(format!("{} codes are guessed for a frame of {codebooks}", codes.len())));
        }
        if let Some(code) = codes.iter().find(|&&code| usize::try_from(code).map_or(true, |code| code >= vocab)) {
            return Err(Error::Argument(format!("a guess of {code}, expected 0 to {}", vocab - 1)));
        }
        self.given = Some(codes.to_vec());
        Ok(())
    }

    /// Draws the codes of a frame after its first.
    pub fn say(&mut self, streams: &mut Streams, csm: &Csm, h: &Tensor, logits: &mut Vec<Tensor>) -> Result<()> {
        let (depth, given) = (&csm.depth, self.given.take());
        let (guessing, layers, heads) = (self.draft.layers, depth.transformer.blocks.len(), depth.heads.len());
        let guesses = guessing > 0 || given.is_some() || !self.last.is_empty();
        if guessing == 0 {
            self.guess_by_last(streams, given.as_deref())?;
        }
        let mut k = 0;
        while k < heads {
            let ahead = if guesses { self.draft.codes.min(heads - 1 - k) } else { 0 };
            let mut rows = Vec::with_capacity(ahead + 1);
            for at in k..=k + ahead {
                let row = streams.read(csm, h, at)?;
                let row = streams.depth_layers(csm, 0..guessing, row, at)?;
                if guessing > 0 && at < k + ahead {
                    let last = part(&row, row.shape().rows() - 1)?;
                    let guessed = depth.heads[at].run(&depth.transformer.norm(&last)?, None)?;
                    guess(streams, at + 1, guessed)?;
                    if let Some(given) = &given {
                        write(&mut streams.said, at + 1, &given[at + 1..at + 2])?;
                    }
                }
                rows.push(row);
            }
            let guessed = streams.said.to_vec::<i32>()?;
            let y = streams.depth_layers(csm, guessing..layers, below_each_other(rows)?, k)?;
            let y = depth.transformer.norm(&y)?;
            self.tally.passes += 1;
            self.tally.rows += ahead as u64 + 1;
            let first = y.shape().rows() - (ahead + 1);
            for row in first..=first + ahead {
                logits.push(streams.draw(k + 1, depth.heads[k].run(&part(&y, row)?, None)?, None)?);
                k += 1;
                if row == first + ahead {
                    break;
                }
                let right = streams.said.part(k, [1])?.to_vec::<i32>()? == guessed[k..k + 1];
                self.tally.compared[k] += 1;
                self.tally.right[k] += u64::from(right);
                if !right {
                    break;
                }
            }
        }
        self.tally.frames += 1;
        if guessing == 0 {
            self.last = logits.iter().map(Tensor::copy).collect::<swara_kernels::Result<_>>()?;
        }
        Ok(())
    }

    /// All codes between the first and the last, of the frame's own noise.
    fn guess_by_last(&mut self, streams: &mut Streams, given: Option<&[i32]>) -> Result<()> {
        if let Some(given) = given {
            return write(&mut streams.said, 1, &given[1..]);
        }
        let last = std::mem::take(&mut self.last).into_iter().enumerate();
        // The last code of a frame is looked over by nobody.
        let looked_over = last.len().saturating_sub(1);
        last.take(looked_over).skip(1).try_for_each(|(k, logits)| guess(streams, k, logits))
    }
}

/// Draws code `k` and does not count it.
fn guess(streams: &mut Streams, k: usize, logits: Tensor) -> Result<()> {
    let vocab = logits.shape().last_dim();
    let mut sampler = streams.samplers[k].copy()?;
    Ok(sample::draw(&mut streams.said, k, &logits.reshape([1, vocab])?, &mut sampler, None)?)
}

/// Row `row` of one stream's `[1, T, width]`.
fn part(y: &Tensor, row: usize) -> Result<Tensor> {
    let width = y.shape().last_dim();
    Ok(y.part(row * width, [1, 1, width])?)
}

fn below_each_other(mut rows: Vec<Tensor>) -> Result<Tensor> {
    if rows.len() == 1 {
        return Ok(rows.remove(0));
    }
    let (count, width) = (rows.iter().map(|row| row.shape().rows()).sum(), rows[0].shape().last_dim());
    let mut y = Tensor::empty(&rows[0].device(), rows[0].dtype(), [1, count, width])?;
    let mut at = 0;
    for row in &rows {
        y.write_rows(at, row)?;
        at += row.shape().rows();
    }
    Ok(y)
}

/// From column `k` of `said [1, K + 1]` on.
fn write(said: &mut Tensor, k: usize, codes: &[i32]) -> Result<()> {
    Ok(said.write_bytes(k * size_of::<i32>(), &Tensor::from_slice(&said.device(), codes, [codes.len()])?)?)
}
