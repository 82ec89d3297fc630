use std::collections::BTreeMap;

use swara_kernels::ops::attention::{Kept, KvCache, Positions};
use swara_kernels::ops::delay::{self, Tokens, UNGENERATED};
use swara_kernels::ops::elementwise;
use swara_kernels::ops::rope::{self, Rope, Style};
use swara_kernels::ops::sample::{self, Sampler, Settings};
use swara_kernels::{DType, Tensor, span};

use super::Lm;
use super::config::{Config, Drawn, Shape};
use super::model::Depth;
use super::prompt::Prompt;
use crate::graph::{Outcome, Recorder};
use crate::{Error, Result};

/// Of Hibiki, and what moshi asks it for.
const DESCRIPTION: &str = "description";
const BEST: &str = "very_good";

/// `batch` streams through a model, step by step, each masked out or begun anew as it comes.
///
/// All state is allocated here, once, on the device. A masked stream (u8 0 in `mask [B]`) changes nothing of its own and nothing of
/// others'.
///
/// On CUDA steps with a mask, and those without, are recorded as a graph when two of the kind come in a row, and are a launch and a copy for every tensor
/// of [`Step`] from then on; where no graph can be had ([`Session::no_graph`]), every kernel is launched by itself. The results are the same.
pub struct Session<'a> {
    lm: &'a Lm,
    streams: Streams,
    recorder: Recorder<Step>,
}

/// What the streams remember.
pub(crate) struct Streams {
    /// `[B, 1, dim]`: what conditions add to what is fed.
    onto: Option<Tensor>,
    /// Sines of positions: what is turned to them, `[B, 1, 1, dim]`.
    sines: Option<(Rope, Tensor)>,
    against: Option<Against>,
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

/// The same streams under other conditions, away from which they are led.
struct Against {
    factor: f64,
    onto: Option<Tensor>,
    caches: Vec<KvCache>,
    depth_caches: Vec<KvCache>,
}

impl Against {
    /// `other + factor (logits - other)`.
    fn lead(&self, logits: &Tensor, other: &Tensor) -> Result<Tensor> {
        Ok(elementwise::add(other, &elementwise::scale(&elementwise::sub(logits, other)?, self.factor)?)?)
    }
}

/// The word for each condition of a stream, by its name; none for those that are not there.
pub type Conditions = BTreeMap<String, String>;

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
    /// Of each column, u8 `[B]`: the streams that run and draw it. None: all that run.
    drawn: Vec<Option<Tensor>>,
    /// u8 `[B]`: the streams that run.
    mask: Option<Tensor>,
}

impl Given {
    /// `said [B, 1 + dep_q]`: tokens, or [`UNGENERATED`] for those that are drawn; `runs [B]`: the mask of the step, if it has one.
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
        Ok(Given {
            said: Tensor::from_slice(&lm.device, &tokens, [batch, width])?,
            drawn: (0..width).map(drawn).collect::<Result<_>>()?,
            mask: runs.map(|runs| Tensor::from_slice(&lm.device, runs, [batch])).transpose()?,
        })
    }

    pub(super) fn mask(&self) -> Option<&Tensor> {
        self.mask.as_ref()
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

impl Outcome for Step {
    fn copy(&self) -> Result<Step> {
        let all = |tensors: &[Tensor]| tensors.iter().map(Tensor::copy).collect::<swara_kernels::Result<_>>();
        Ok(Step {
            complete: self.complete.copy()?,
            said: self.said.copy()?,
            text_logits: self.text_logits.copy()?,
            logits: all(&self.logits)?,
            heads: all(&self.heads)?,
        })
    }
}

impl<'a> Session<'a> {
    /// Streams that draw as `drawing` says, one entry for each, under the conditions that moshi gives if nobody asks: to Hibiki the
    /// best of its descriptions, to others none.
    pub fn new(lm: &'a Lm, drawing: &[Drawing]) -> Result<Session<'a>> {
        Ok(Session { lm, streams: Streams::new(lm, drawing)?, recorder: Recorder::default() })
    }

    /// Streams under `conditions`, one entry for each, led away from those `against` by a factor (classifier-free guidance), where there
    /// is one: each step then runs twice.
    ///
    /// # Errors
    /// Conditions or words that the model does not know; a number of entries that is not that of `drawing`.
    pub fn conditioned(
        lm: &'a Lm,
        drawing: &[Drawing],
        conditions: &[Conditions],
        against: Option<(f64, &[Conditions])>,
    ) -> Result<Session<'a>> {
        Ok(Session { lm, streams: Streams::conditioned(lm, drawing, conditions, against)?, recorder: Recorder::default() })
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
        self.recorder.run(&lm.device, heard, 0, mask, |heard, mask| streams.step(lm, heard, None, mask))
    }

    /// A step in which streams say what is `given`: a prompt, or what another speaker said. No graph.
    ///
    /// # Errors
    /// As [`step`](Self::step); another number of streams.
    pub fn step_given(&mut self, heard: &Tensor, given: &Given) -> Result<Step> {
        let _span = span::step("lm");
        self.streams.step(self.lm, heard, Some(given), given.mask())
    }

    /// Has the streams say a prompt, those that `runs [B]` is not zero for; what they say then is dropped.
    ///
    /// # Errors
    /// A prompt for another model; a number of streams that is not that.
    pub fn prompt(&mut self, prompt: &Prompt, runs: Option<&[u8]>) -> Result<()> {
        prompt.run(self.lm, &mut self.streams, runs)
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
        let mut usual = Conditions::new();
        if lm.config.model_type == "hibiki" && lm.temporal.words.iter().any(|words| words.name() == DESCRIPTION) {
            usual.insert(DESCRIPTION.to_owned(), BEST.to_owned());
        }
        Streams::conditioned(lm, drawing, &vec![usual; drawing.len()], None)
    }

    fn conditioned(lm: &Lm, drawing: &[Drawing], conditions: &[Conditions], against: Option<(f64, &[Conditions])>) -> Result<Streams> {
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
        let remembered = || caches(&config.temporal()?, config.context.unwrap_or(1), lm.kept());
        let against = match against {
            Some((factor, _)) if !factor.is_finite() => return Err(Error::Argument(format!("a guidance of {factor}"))),
            Some((factor, conditions)) => Some(Against {
                factor,
                onto: onto(lm, conditions, batch)?,
                caches: remembered()?,
                depth_caches: match &lm.depth {
                    Some(_) => caches(&config.depth()?, config.dep_q, lm.values().into())?,
                    None => Vec::new(),
                },
            }),
            None => None,
        };
        let sines = match config.temporal()?.sines {
            Some(sines) => {
                let scale = sines.scale as f32;
                let row: Vec<f32> = (0..config.dim).map(|i| if i < config.dim / 2 { scale } else { 0.0 }).collect();
                let rows = Tensor::from_slice(device, &row.repeat(batch), [batch, 1, 1, config.dim])?;
                let rope = Rope::with_frequencies(device, &sines.frequencies(config.dim), Style::HalfSplit)?;
                Some((rope, elementwise::convert(&rows, lm.values())?))
            }
            None => None,
        };
        Ok(Streams {
            onto: onto(lm, conditions, batch)?,
            sines,
            against,
            tokens: Tokens::new(device, batch, &config.delays, &config.initial(), 1 + config.dep_q)?,
            positions: Positions::new(device, batch)?,
            caches: remembered()?,
            depth_caches,
            depth_positions,
            samplers: (0..=config.dep_q).map(sampler).collect::<Result<_>>()?,
            said: Tensor::zeros(device, DType::I32, [batch, 1 + config.dep_q])?,
        })
    }

    pub fn batch(&self) -> usize {
        self.said.shape()[0]
    }

    pub fn step(&mut self, lm: &Lm, heard: &Tensor, given: Option<&Given>, mask: Option<&Tensor>) -> Result<Step> {
        if let Some(given) = given {
            self.said.copy_from(&given.said)?;
        }
        let batch = self.batch();
        let drawn = |column: usize| given.and_then(|given| given.drawn[column].as_ref()).or(mask);
        lm.device.step(|| {
            let ids = delay::feed(&mut self.tokens, heard, &self.positions, mask)?;
            let sines = match &self.sines {
                Some((rope, rows)) => Some(rope::forward(rows, rope, &self.positions)?.reshape([batch, 1, lm.config.dim])?),
                None => None,
            };
            let hidden = |onto: &Option<Tensor>, caches: &mut [KvCache]| -> Result<Tensor> {
                let mut x = lm.temporal.fed.sum_onto((&ids, 0), onto.as_ref())?;
                if let Some(sines) = &sines {
                    elementwise::add_assign(&mut x, sines)?;
                }
                for (block, cache) in lm.temporal.blocks.iter().zip(caches) {
                    x = block.run(&x, cache, &self.positions, mask)?;
                }
                lm.temporal.norm(&x)
            };
            let h = hidden(&self.onto, &mut self.caches)?;
            let mut text_logits = lm.temporal.text.run(&h, None)?;
            let other = match &mut self.against {
                Some(against) => {
                    let other = hidden(&against.onto, &mut against.caches)?;
                    text_logits = against.lead(&text_logits, &lm.temporal.text.run(&other, None)?)?;
                    Some(other)
                }
                None => None,
            };
            let text_logits = self.draw(0, text_logits, drawn(0))?;
            let logits = match &lm.depth {
                Some(depth) => self.say(&lm.config, depth, &h, other.as_ref(), drawn)?,
                None => Vec::new(),
            };
            let complete = delay::take(&mut self.tokens, &self.said, &self.positions, mask)?;
            self.positions.advance(1, mask)?;
            let heads = lm.temporal.heads.iter().map(|head| rows(head.run(&h, None)?)).collect::<Result<_>>()?;
            Ok(Step { complete, said: self.said.copy()?, text_logits, logits, heads })
        })
    }

    /// Draws the codes of a step one after the other, each in the streams that `drawn` gives for its column, and gives their logits.
    fn say<'m>(
        &mut self,
        config: &Config,
        depth: &Depth,
        h: &Tensor,
        other: Option<&Tensor>,
        drawn: impl Fn(usize) -> Option<&'m Tensor>,
    ) -> Result<Vec<Tensor>> {
        let mut logits = Vec::with_capacity(config.dep_q);
        for k in 0..config.dep_q {
            let said = depth.said[k].sum((&self.said, k))?;
            let run = |h: &Tensor, caches: &mut [KvCache]| -> Result<Tensor> {
                let mut y = depth.inputs[config.input(k)].run(h, Some(&said))?;
                for (block, cache) in depth.blocks[config.set(k)].iter().zip(caches) {
                    y = block.run(&y, cache, &self.depth_positions[k], None)?;
                }
                depth.logits(k, &y)
            };
            let mut found = run(h, &mut self.depth_caches)?;
            if let (Some(against), Some(other)) = (&mut self.against, other) {
                let other = run(other, &mut against.depth_caches)?;
                found = against.lead(&found, &other)?;
            }
            logits.push(self.draw(k + 1, found, drawn(k + 1))?);
        }
        Ok(logits)
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

/// What `conditions` of `batch` streams add to what is fed; none where the model has none.
fn onto(lm: &Lm, conditions: &[Conditions], batch: usize) -> Result<Option<Tensor>> {
    let words = &lm.temporal.words;
    if conditions.len() != batch {
        return Err(Error::Argument(format!("conditions for {} streams of {batch}", conditions.len())));
    }
    if let Some(name) = conditions.iter().flat_map(Conditions::keys).find(|name| words.iter().all(|words| words.name() != *name)) {
        return Err(Error::Argument(format!("condition {name} is none of the model's")));
    }
    if words.is_empty() {
        return Ok(None);
    }
    let dim = lm.config.dim;
    let mut rows = vec![0.0; batch * dim];
    for (row, conditions) in rows.chunks_exact_mut(dim).zip(conditions) {
        for words in words {
            let more = words.row(conditions.get(words.name()).map(String::as_str))?;
            row.iter_mut().zip(more).for_each(|(row, more)| *row += more);
        }
    }
    let rows = Tensor::from_slice(&lm.device, &rows, [batch, 1, dim])?;
    Ok(Some(elementwise::convert(&rows, lm.values())?))
}

/// `[B, 1, V]` as `[B, V]`.
fn rows(x: Tensor) -> Result<Tensor> {
    let (batch, width) = (x.shape()[0], x.shape().last_dim());
    Ok(x.reshape([batch, width])?)
}
