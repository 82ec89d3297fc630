use swara_kernels::ops::attention::{Kept, KvCache, Positions};
use swara_kernels::ops::delay::{self, Tokens, UNGENERATED};
use swara_kernels::ops::sample::{self, Sampler, Settings};
use swara_kernels::{DType, Tensor, span};

use super::Lm;
use super::config::{Drawn, Shape};
use super::model::Depth;
use crate::{Error, Result};

/// `batch` streams through a model, step by step, each masked out or begun anew as it comes.
///
/// All state is allocated here, once, on the device. A masked stream (u8 0 in `mask [B]`) changes nothing of its own and nothing of
/// others'.
pub struct Session<'a> {
    lm: &'a Lm,
    batch: usize,
    tokens: Tokens,
    positions: Positions,
    caches: Vec<KvCache>,
    depth_caches: Vec<KvCache>,
    /// Of each step of the depth transformer.
    depth_positions: Vec<Positions>,
    samplers: Vec<Sampler>,
    /// i32 `[B, 1 + dep_q]`: of the step that runs.
    said: Tensor,
}

/// How the text and how the codes of one stream are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drawing {
    pub text: Settings,
    pub codes: Settings,
}

impl Drawing {
    pub const GREEDY: Drawing = Drawing { text: Settings::GREEDY, codes: Settings::GREEDY };

    /// As a model's configuration says.
    pub fn seeded(how: &Drawn, seed: u64) -> Drawing {
        let settings = |temperature, top_k| Settings { temperature, top_k, seed, sequence: 0 };
        Drawing { text: settings(how.temp_text, how.top_k_text), codes: settings(how.temp, how.top_k) }
    }
}

/// What streams are made to say in a step.
///
/// Its tokens are those of [`Step::said`]: what is said of a frame in a column that is `delay` late is said `delay` steps later.
pub struct Given {
    /// i32 `[B, 1 + dep_q]`: 0 where a token is drawn.
    said: Tensor,
    /// Of each column, u8 `[B]`: the streams that run and draw it. None: all are drawn, as the step's mask has it.
    drawn: Vec<Option<Tensor>>,
}

impl Given {
    /// `said [B, 1 + dep_q]`: tokens, or [`UNGENERATED`] for those that are drawn; `runs [B]`: what the mask of the step is, if it
    /// has one.
    ///
    /// # Errors
    /// Lengths that are not a multiple of that; a token that the model does not know.
    pub fn new(lm: &Lm, said: &[i32], runs: Option<&[u8]>) -> Result<Given> {
        let config = &lm.config;
        let width = 1 + config.dep_q;
        let batch = said.len() / width;
        if batch == 0 || said.len() != batch * width || runs.is_some_and(|runs| runs.len() != batch) {
            return Err(Error::Argument(format!("{} tokens are given, the model says {width} a step", said.len())));
        }
        let known = |column: usize| if column == 0 { config.text_card } else { config.card };
        let free = |token: i32| token == UNGENERATED;
        if let Some(at) = said.iter().enumerate().position(|(at, &t)| !free(t) && !(0..=known(at % width) as i32).contains(&t)) {
            let (column, most) = (at % width, known(at % width));
            return Err(Error::Argument(format!("token {} is given in column {column}, expected 0 to {most}", said[at])));
        }
        let drawn = |column: usize| -> Result<Option<Tensor>> {
            let stream = |b: usize| free(said[b * width + column]) && runs.is_none_or(|runs| runs[b] != 0);
            let drawn: Vec<u8> = (0..batch).map(|b| u8::from(stream(b))).collect();
            let all = (0..batch).all(|b| free(said[b * width + column]));
            (!all).then(|| Ok(Tensor::from_slice(&lm.device, &drawn, [batch])?)).transpose()
        };
        let tokens: Vec<i32> = said.iter().map(|&t| if free(t) { 0 } else { t }).collect();
        Ok(Given { said: Tensor::from_slice(&lm.device, &tokens, [batch, width])?, drawn: (0..width).map(drawn).collect::<Result<_>>()? })
    }
}

/// What a step gave.
pub struct Step {
    /// i32 `[B, 1 + dep_q]`: the text and the codes of the frame `max delay` steps ago, which are now complete;
    /// [`UNGENERATED`] where there is none yet.
    pub complete: Tensor,
    /// i32 `[B, 1 + dep_q]`: what was drawn, or given, in this step.
    pub said: Tensor,
    /// `[B, text outputs]`.
    pub text_logits: Tensor,
    /// `[B, card]` for each code.
    pub logits: Vec<Tensor>,
    /// `[B, n]` for each of the model's extra heads.
    pub heads: Vec<Tensor>,
}

impl<'a> Session<'a> {
    /// Streams that draw as `drawing` says, one entry for each.
    pub fn new(lm: &'a Lm, drawing: &[Drawing]) -> Result<Session<'a>> {
        let (config, device, batch) = (&lm.config, &lm.device, drawing.len());
        let caches = |shape: &Shape, capacity: usize, kept: Kept| -> Result<Vec<KvCache>> {
            let cache = |_| Ok(KvCache::new(device, kept, batch, shape.kv_heads, capacity, shape.head_dim())?);
            (0..shape.layers).map(cache).collect()
        };
        let (mut depth_caches, mut depth_positions) = (Vec::new(), Vec::new());
        if lm.depth.is_some() {
            depth_caches = caches(&config.depth()?, config.dep_q, lm.values().into())?;
            let at = |k: usize| Ok(Positions::at(device, &vec![k as i32; batch])?);
            depth_positions = (0..config.dep_q).map(at).collect::<Result<_>>()?;
        }
        let sampler = |column: usize| {
            let settings = |d: &Drawing| Settings { sequence: column as u32, ..if column == 0 { d.text } else { d.codes } };
            Ok(Sampler::new(device, &drawing.iter().map(settings).collect::<Vec<_>>())?)
        };
        Ok(Session {
            lm,
            batch,
            tokens: Tokens::new(device, batch, &config.delays, &config.initial(), 1 + config.dep_q)?,
            positions: Positions::new(device, batch)?,
            caches: caches(&config.temporal()?, config.context.unwrap_or(1), lm.kept())?,
            depth_caches,
            depth_positions,
            samplers: (0..=config.dep_q).map(sampler).collect::<Result<_>>()?,
            said: Tensor::zeros(device, DType::I32, [batch, 1 + config.dep_q])?,
        })
    }

    pub fn batch(&self) -> usize {
        self.batch
    }

    /// One step, in which the codes `heard` (i32 `[B, n_q - dep_q]`) arrive.
    ///
    /// # Errors
    /// A shape that is not that; on the CPU a code that the model does not know, in the step that reads it.
    pub fn step(&mut self, heard: &Tensor, mask: Option<&Tensor>) -> Result<Step> {
        self.run(heard, None, mask)
    }

    /// A step in which streams say what is `given`: a prompt, or what another speaker said.
    ///
    /// # Errors
    /// As [`step`](Self::step); another number of streams.
    pub fn step_given(&mut self, heard: &Tensor, given: &Given, mask: Option<&Tensor>) -> Result<Step> {
        self.said.copy_from(&given.said)?;
        self.run(heard, Some(given), mask)
    }

    fn run(&mut self, heard: &Tensor, given: Option<&Given>, mask: Option<&Tensor>) -> Result<Step> {
        let _span = span::step("lm");
        let drawn = |column: usize| given.and_then(|given| given.drawn[column].as_ref()).or(mask);
        let lm = self.lm;
        lm.device.step(|| {
            let ids = delay::feed(&mut self.tokens, heard, &self.positions, mask)?;
            let mut x = lm.temporal.fed.sum((&ids, 0))?;
            for (block, cache) in lm.temporal.blocks.iter().zip(&mut self.caches) {
                x = block.run(&x, cache, &self.positions, mask)?;
            }
            let h = lm.temporal.norm(&x)?;
            let text_logits = self.draw(0, lm.temporal.text.run(&h, None)?, drawn(0))?;
            let logits = match &lm.depth {
                Some(depth) => self.say(depth, &h, drawn)?,
                None => Vec::new(),
            };
            let complete = delay::take(&mut self.tokens, &self.said, &self.positions, mask)?;
            self.positions.advance(1, mask)?;
            let heads = lm.temporal.heads.iter().map(|head| rows(head.run(&h, None)?)).collect::<Result<_>>()?;
            Ok(Step { complete, said: self.said.copy()?, text_logits, logits, heads })
        })
    }

    /// Draws the codes of a step one after the other, each in the streams that `drawn` gives for its column, and gives their logits.
    fn say<'m>(&mut self, depth: &Depth, h: &Tensor, drawn: impl Fn(usize) -> Option<&'m Tensor>) -> Result<Vec<Tensor>> {
        let config = &self.lm.config;
        let mut logits = Vec::with_capacity(config.dep_q);
        for k in 0..config.dep_q {
            let said = depth.said[k].sum((&self.said, k))?;
            let mut y = depth.inputs[config.input(k)].run(h, Some(&said))?;
            for (block, cache) in depth.blocks[config.set(k)].iter().zip(&mut self.depth_caches) {
                y = block.run(&y, cache, &self.depth_positions[k], None)?;
            }
            logits.push(self.draw(k + 1, depth.logits(k, &y)?, drawn(k + 1))?);
        }
        Ok(logits)
    }

    /// Draws column `column`, and gives its logits `[B, V]`.
    fn draw(&mut self, column: usize, logits: Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let logits = rows(logits)?;
        sample::draw(&mut self.said, column, &logits, &mut self.samplers[column], mask)?;
        Ok(logits)
    }

    /// Starts the streams whose `mask` (u8 `[B]`) is not zero anew.
    pub fn reset(&mut self, mask: &Tensor) -> Result<()> {
        self.samplers.iter_mut().try_for_each(|sampler| sampler.reset(mask))?;
        Ok(self.positions.reset(mask)?)
    }
}

/// `[B, 1, V]` as `[B, V]`.
fn rows(x: Tensor) -> Result<Tensor> {
    let (batch, width) = (x.shape()[0], x.shape().last_dim());
    Ok(x.reshape([batch, width])?)
}
