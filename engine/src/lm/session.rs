use swara_kernels::ops::attention::{Kept, KvCache, Positions};
use swara_kernels::ops::delay::{self, Tokens};
use swara_kernels::ops::sample::{self, Sampler, Settings};
use swara_kernels::{DType, Tensor, span};

use super::Lm;
use super::config::{Config, Drawn, Shape};
use super::model::Depth;
use crate::Result;
use crate::graph::{Given, Recorder};

/// `batch` streams through a model, step by step, each masked out or begun anew as it comes.
///
/// All state is allocated here, once, on the device. A masked stream (u8 0 in `mask [B]`) changes nothing of its own and nothing of
/// others'.
///
/// On CUDA a step is recorded as a graph once the one before it had a mask as well, or none as well, and is a single launch from then
/// on; where no graph can be had ([`Session::no_graph`]), every kernel is launched by itself. The results are the same.
pub struct Session<'a> {
    lm: &'a Lm,
    streams: Streams,
    recorder: Recorder<Step>,
}

/// What the streams remember.
pub(crate) struct Streams {
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

/// What a step gave.
pub struct Step {
    /// i32 `[B, 1 + dep_q]`: the text and the codes of the frame `max delay` steps ago, which are now complete;
    /// [`delay::UNGENERATED`] where there is none yet.
    pub complete: Tensor,
    /// i32 `[B, 1 + dep_q]`: what was drawn in this step.
    pub said: Tensor,
    /// `[B, text outputs]`.
    pub text_logits: Tensor,
    /// `[B, n]` for each of the model's extra heads.
    pub heads: Vec<Tensor>,
}

impl Given for Step {
    fn copy(&self) -> Result<Step> {
        Ok(Step {
            complete: self.complete.copy()?,
            said: self.said.copy()?,
            text_logits: self.text_logits.copy()?,
            heads: self.heads.iter().map(Tensor::copy).collect::<swara_kernels::Result<_>>()?,
        })
    }
}

impl<'a> Session<'a> {
    /// Streams that draw as `drawing` says, one entry for each.
    pub fn new(lm: &'a Lm, drawing: &[Drawing]) -> Result<Session<'a>> {
        Ok(Session { lm, streams: Streams::new(lm, drawing)?, recorder: Recorder::default() })
    }

    pub fn batch(&self) -> usize {
        self.streams.batch()
    }

    /// One step, in which the codes `heard` (i32 `[B, n_q - dep_q]`) arrive.
    ///
    /// # Errors
    /// A shape that is not that; on the CPU a code that the model does not know, in the step that reads it.
    pub fn step(&mut self, heard: &Tensor, mask: Option<&Tensor>) -> Result<Step> {
        let _span = span::step("lm");
        let (lm, streams) = (self.lm, &mut self.streams);
        self.recorder.run(&lm.device, heard, 0, mask, |heard, mask| streams.step(lm, heard, mask))
    }

    /// Whether steps become graphs, as they do by default.
    pub fn graphs(&mut self, wanted: bool) {
        self.recorder.want(wanted);
    }

    /// Why steps are no graphs where they were to be.
    pub fn no_graph(&self) -> Option<&str> {
        self.recorder.refused()
    }

    /// Starts the streams whose `mask` (u8 `[B]`) is not zero anew.
    pub fn reset(&mut self, mask: &Tensor) -> Result<()> {
        self.streams.reset(mask)
    }
}

impl Streams {
    pub fn new(lm: &Lm, drawing: &[Drawing]) -> Result<Streams> {
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
        Ok(Streams {
            tokens: Tokens::new(device, batch, &config.delays, &config.initial(), 1 + config.dep_q)?,
            positions: Positions::new(device, batch)?,
            caches: caches(&config.temporal()?, config.context.unwrap_or(1), lm.kept())?,
            depth_caches,
            depth_positions,
            samplers: (0..=config.dep_q).map(sampler).collect::<Result<_>>()?,
            said: Tensor::zeros(device, DType::I32, [batch, 1 + config.dep_q])?,
        })
    }

    fn batch(&self) -> usize {
        self.said.shape()[0]
    }

    pub fn step(&mut self, lm: &Lm, heard: &Tensor, mask: Option<&Tensor>) -> Result<Step> {
        lm.device.step(|| {
            let ids = delay::feed(&mut self.tokens, heard, &self.positions, mask)?;
            let mut x = lm.temporal.fed.sum((&ids, 0))?;
            for (block, cache) in lm.temporal.blocks.iter().zip(&mut self.caches) {
                x = block.run(&x, cache, &self.positions, mask)?;
            }
            let h = lm.temporal.norm(&x)?;
            let text_logits = self.draw(0, lm.temporal.text.run(&h, None)?, mask)?;
            if let Some(depth) = &lm.depth {
                self.say(&lm.config, depth, &h, mask)?;
            }
            let complete = delay::take(&mut self.tokens, &self.said, &self.positions, mask)?;
            self.positions.advance(1, mask)?;
            let heads = lm.temporal.heads.iter().map(|head| rows(head.run(&h, None)?)).collect::<Result<_>>()?;
            Ok(Step { complete, said: self.said.copy()?, text_logits, heads })
        })
    }

    /// Draws the codes of a step one after the other.
    fn say(&mut self, config: &Config, depth: &Depth, h: &Tensor, mask: Option<&Tensor>) -> Result<()> {
        for k in 0..config.dep_q {
            let said = depth.said[k].sum((&self.said, k))?;
            let mut y = depth.inputs[config.input(k)].run(h, Some(&said))?;
            for (block, cache) in depth.blocks[config.set(k)].iter().zip(&mut self.depth_caches) {
                y = block.run(&y, cache, &self.depth_positions[k], None)?;
            }
            self.draw(k + 1, depth.logits(k, &y)?, mask)?;
        }
        Ok(())
    }

    /// Draws column `column`, and gives its logits `[B, V]`.
    fn draw(&mut self, column: usize, logits: Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let logits = rows(logits)?;
        sample::draw(&mut self.said, column, &logits, &mut self.samplers[column], mask)?;
        Ok(logits)
    }

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
