use swara_kernels::ops::attention::{Kept, KvCache, MAX_HEAD_DIM, Positions, Sinks};
use swara_kernels::ops::delay::{self, Tokens, UNGENERATED};
use swara_kernels::ops::depth;
use swara_kernels::ops::rope::{self, Rope, Style};
use swara_kernels::ops::sample::{self, Sampler, Settings};
use swara_kernels::ops::{elementwise, embedding};
use swara_kernels::{DType, Device, Tensor, span};

use super::Lm;
use super::conditions::{Conditions, FusedConditions, fuse};
use super::config::{Config, Drawn, Shape, Sines};
use super::model::Depth;
use super::prompt::Prompt;
use crate::graph::{Outcome, Recorder};
use crate::transformer::{ReadyBlock, Source};
use crate::{Error, Result};

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

/// What the streams remember. The model has a row for each of them, `R = B`; where they are led, those under the other conditions are
/// behind them, `R = 2 B`.
pub(crate) struct Streams {
    context: Context,
    led: Option<Led>,
    tokens: Tokens,
    positions: Positions,
    caches: Vec<KvCache>,
    depth_caches: Vec<KvCache>,
    /// Of each step of the depth transformer.
    depth_positions: Vec<Positions>,
    /// Of the depth transformer as one launch, where it can be.
    depth_state: Option<depth::State>,
    plain_depth: bool,
    samplers: Vec<Sampler>,
    /// i32 `[B, 1 + dep_q]`: of the step that runs.
    said: Tensor,
}

/// What goes into every step.
struct Context {
    /// `[R, 1, dim]`: what conditions add to what is fed.
    onto: Option<Tensor>,
    /// What the rows of each block attend to.
    sources: Vec<Option<Source>>,
    sines: Option<Turned>,
}

/// Sines of positions, in as many pieces as a row has that can be turned at once.
struct Turned {
    /// Of as many frequencies each.
    ropes: Vec<Rope>,
    /// What is turned: `[R, 1, 1, 2 pairs]`, all in the first half.
    row: Tensor,
}

impl Turned {
    fn new(device: &Device, dtype: DType, sines: Sines, width: usize, rows: usize) -> Result<Turned> {
        let half = width / 2;
        let pairs = (1..=(MAX_HEAD_DIM / 2).min(half)).rev().find(|pairs| half.is_multiple_of(*pairs)).unwrap_or(1);
        let row: Vec<f32> = (0..2 * pairs).map(|i| if i < pairs { sines.scale as f32 } else { 0.0 }).collect();
        let row = Tensor::from_slice(device, &row.repeat(rows), [rows, 1, 1, 2 * pairs])?;
        let rope = |of: &[f64]| Rope::with_frequencies(device, of, Style::HalfSplit);
        Ok(Turned {
            ropes: sines.frequencies(width).chunks_exact(pairs).map(rope).collect::<swara_kernels::Result<_>>()?,
            row: elementwise::convert(&row, dtype)?,
        })
    }

    /// `[R, 1, width]`: cosines, then sines.
    fn at(&self, positions: &Positions) -> Result<Tensor> {
        let (pieces, rows, width) = (self.ropes.len(), self.row.shape()[0], self.row.shape().last_dim());
        if let [rope] = &self.ropes[..] {
            return Ok(rope::forward(&self.row, rope, positions)?.reshape([rows, 1, width])?);
        }
        let mut all = Tensor::empty(&self.row.device(), self.row.dtype(), [1, pieces, rows * width])?;
        for (piece, rope) in self.ropes.iter().enumerate() {
            all.write_rows(piece, &rope::forward(&self.row, rope, positions)?.reshape([1, rows * width])?)?;
        }
        // [piece, row, half, pair] to [row, half, piece, pair].
        let all = elementwise::transpose(&all)?.reshape([2 * rows, width / 2, pieces])?;
        Ok(elementwise::transpose(&all)?.reshape([rows, 1, pieces * width])?)
    }
}

/// Classifier-free guidance, away from other conditions.
struct Led {
    factor: f64,
    /// Of all rows.
    positions: Positions,
}

/// `other + factor (logits - other)` of rows `[logits; other]`, if they are led.
fn lead(led: Option<&Led>, all: Tensor) -> Result<Tensor> {
    let Some(led) = led else { return Ok(all) };
    let [logits, other] = [half(&all, 0)?, half(&all, 1)?];
    Ok(elementwise::add(&other, &elementwise::scale(&elementwise::sub(&logits, &other)?, led.factor)?)?)
}

/// The first or the second half of rows `[2 B, ..]`.
fn half(x: &Tensor, which: usize) -> Result<Tensor> {
    let mut shape = x.shape().to_vec();
    shape[0] /= 2;
    Ok(x.part(which * (x.elements() / 2), swara_kernels::Shape::try_from(&shape[..])?)?)
}

/// Rows `[B, ..]`, and once more the same.
fn twice(x: &Tensor) -> Result<Tensor> {
    let mut shape = x.shape().to_vec();
    shape[0] *= 2;
    let mut y = Tensor::empty(&x.device(), x.dtype(), swara_kernels::Shape::try_from(&shape[..])?)?;
    y.write_bytes(0, x)?;
    y.write_bytes(x.bytes(), x)?;
    Ok(y)
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
    /// Of each column, u8 `[B]`: the streams that run and draw it. None: all that run.
    drawn: Vec<Option<Tensor>>,
    /// u8 `[B]`: the streams that run.
    mask: Option<Tensor>,
}

impl Given {
    /// `said [B, 1 + dep_q]`: tokens, or [`UNGENERATED`] for those that are drawn, or [`NONE`](embedding::NONE) for those that say nothing
    /// (moshi's `zero_token_id`); `runs [B]`: the mask of the step, if it has one.
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
        let known = |column: usize| if column == 0 { config.texts() - 1 } else { config.card };
        let free = |token: i32| token == UNGENERATED;
        if let Some(at) =
            said.iter().enumerate().position(|(at, &t)| !free(t) && !(embedding::NONE..=known(at % width) as i32).contains(&t))
        {
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
    /// is one: the model has two rows for each stream then.
    ///
    /// # Errors
    /// Conditions or words that the model does not know; a number of entries that is not that of `drawing`; a model without conditions
    /// that is to be led.
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

    /// Whether the depth transformer is launched kernel by kernel. By default it is one launch a step on CUDA, for up to
    /// [`depth::MOST_STREAMS`] streams without guidance, where its layers are such ([`Lm::plain_depth`]): those of Moshi are. The two round
    /// alike but for the order of sums in norms and attention, and so say the same unless two logits are as close as that.
    pub fn plain_depth(&mut self, wanted: bool) {
        self.streams.plain_depth(wanted);
        self.recorder.forget();
    }

    /// Why the depth transformer is launched kernel by kernel where it was to be one launch.
    pub fn plain_depth_why(&self) -> Option<String> {
        self.streams.plain_depth_why(self.lm)
    }

    /// Starts the streams whose `mask` (u8 `[B]`) is not zero anew.
    pub fn reset(&mut self, mask: &Tensor) -> Result<()> {
        self.streams.reset(mask)
    }
}

impl Streams {
    pub fn new(lm: &Lm, drawing: &[Drawing]) -> Result<Streams> {
        Streams::conditioned(lm, drawing, &vec![lm.config.usual()?.0; drawing.len()], None)
    }

    pub fn conditioned(lm: &Lm, drawing: &[Drawing], conditions: &[Conditions], against: Option<(f64, &[Conditions])>) -> Result<Streams> {
        let (config, device, batch) = (&lm.config, &lm.device, drawing.len());
        for (what, streams) in [("", Some(conditions)), (" against", against.map(|(_, against)| against))] {
            if let Some(streams) = streams.filter(|streams| streams.len() != batch) {
                return Err(Error::Argument(format!("conditions{what} for {} streams of {batch}", streams.len())));
            }
        }
        if let Some((factor, against)) = against {
            against.iter().try_for_each(|against| config.check_guidance(factor, against))?;
        }
        let streams: Vec<&Conditions> = conditions.iter().chain(against.iter().flat_map(|(_, against)| *against)).collect();
        let rows = streams.len();
        let FusedConditions { onto, source } = fuse(lm, &streams)?;
        let source = |block: &ReadyBlock| source.as_ref().map_or(Ok(None), |source| block.source(source));
        let caches = |shape: &Shape, capacity: usize, sinks: usize, kept: Kept| -> Result<Vec<KvCache>> {
            let (heads, dim) = (shape.kv_heads, shape.head_dim());
            let cache = |_| match sinks {
                0 => Ok(KvCache::new(device, kept, rows, heads, capacity, dim)?),
                steps => Ok(KvCache::with_sinks(device, kept, rows, heads, Sinks { steps, context: capacity }, 1, dim)?),
            };
            (0..shape.layers).map(cache).collect()
        };
        let (mut depth_caches, mut depth_positions) = (Vec::new(), Vec::new());
        if lm.depth.is_some() {
            depth_caches = caches(&config.depth()?, config.dep_q, 0, lm.values().into())?;
            let at = |k: usize| Ok(Positions::at(device, &vec![k as i32; rows])?);
            depth_positions = (0..config.dep_q).map(at).collect::<Result<_>>()?;
        }
        let whole = lm.depth.as_ref().and_then(|depth| depth.in_one.as_ref().ok());
        let depth_state = match whole.filter(|_| against.is_none() && batch <= depth::MOST_STREAMS) {
            Some(whole) => Some(whole.state(batch)?),
            None => None,
        };
        let sampler = |column: usize| {
            let settings = |d: &Drawing| Settings { sequence: column as u32, ..if column == 0 { d.text } else { d.codes } };
            Ok(Sampler::new(device, &drawing.iter().map(settings).collect::<Vec<_>>())?)
        };
        let led = |(factor, _)| Ok::<_, Error>(Led { factor, positions: Positions::new(device, rows)? });
        let sines = config.temporal()?.sines.map(|sines| Turned::new(device, lm.values(), sines, config.dim, rows)).transpose()?;
        Ok(Streams {
            context: Context { onto, sources: lm.temporal.blocks.iter().map(source).collect::<Result<_>>()?, sines },
            led: against.map(led).transpose()?,
            tokens: Tokens::new(device, batch, &config.delays, &config.initial(), 1 + config.dep_q)?,
            positions: Positions::new(device, batch)?,
            caches: caches(&config.temporal()?, config.context.unwrap_or(1), lm.format.sinks, lm.kept())?,
            depth_caches,
            depth_positions,
            depth_state,
            plain_depth: false,
            samplers: (0..=config.dep_q).map(sampler).collect::<Result<_>>()?,
            said: Tensor::zeros(device, DType::I32, [batch, 1 + config.dep_q])?,
        })
    }

    pub fn plain_depth(&mut self, wanted: bool) {
        self.plain_depth = wanted;
    }

    pub fn plain_depth_why(&self, lm: &Lm) -> Option<String> {
        if self.plain_depth || lm.depth.is_none() || lm.device == Device::Cpu {
            return None;
        }
        match (lm.plain_depth(), &self.depth_state, &self.led) {
            (Some(why), ..) => Some(why.to_owned()),
            (None, Some(_), _) => None,
            (None, None, Some(_)) => Some("guidance runs its layers twice".to_owned()),
            (None, None, None) => Some(depth::too_many(self.batch())),
        }
    }

    pub fn batch(&self) -> usize {
        self.said.shape()[0]
    }

    pub fn step(&mut self, lm: &Lm, heard: &Tensor, given: Option<&Given>, mask: Option<&Tensor>) -> Result<Step> {
        if let Some(given) = given {
            self.said.copy_from(&given.said)?;
        }
        let drawn = |column: usize| given.and_then(|given| given.drawn[column].as_ref()).or(mask);
        lm.device.step(|| {
            let ids = delay::feed(&mut self.tokens, heard, &self.positions, mask)?;
            let h = match &mut self.led {
                Some(led) => {
                    let mask = mask.map(twice).transpose()?;
                    let h = hidden(lm, &twice(&ids)?, &self.context, &mut self.caches, &led.positions, mask.as_ref())?;
                    led.positions.advance(1, mask.as_ref())?;
                    h
                }
                None => hidden(lm, &ids, &self.context, &mut self.caches, &self.positions, mask)?,
            };
            let text_logits = lead(self.led.as_ref(), lm.temporal.text.run(&h, None)?)?;
            let text_logits = self.draw(0, text_logits, drawn(0))?;
            let logits = match &lm.depth {
                Some(depth) => self.say(&lm.config, depth, &h, drawn)?,
                None => Vec::new(),
            };
            let complete = delay::take(&mut self.tokens, &self.said, &self.positions, mask)?;
            self.positions.advance(1, mask)?;
            let own = if self.led.is_some() { &half(&h, 0)? } else { &h };
            let heads = lm.temporal.heads.iter().map(|head| rows(head.run(own, None)?)).collect::<Result<_>>()?;
            Ok(Step { complete, said: self.said.copy()?, text_logits, logits, heads })
        })
    }

    /// Draws the codes of a step one after the other, each in the streams that `drawn` gives for its column, and gives their logits.
    fn say<'m>(&mut self, config: &Config, depth: &Depth, h: &Tensor, drawn: impl Fn(usize) -> Option<&'m Tensor>) -> Result<Vec<Tensor>> {
        if let (Ok(whole), Some(state), false) = (&depth.in_one, &mut self.depth_state, self.plain_depth) {
            return Ok(whole.say(state, h, &mut self.said, &mut self.samplers[1..], |k| drawn(k + 1))?);
        }
        let mut logits = Vec::with_capacity(config.dep_q);
        for k in 0..config.dep_q {
            let mut said = depth.said[k].sum((&self.said, k))?;
            if self.led.is_some() {
                said = twice(&said)?;
            }
            let mut y = depth.first(config, k, h, &said)?;
            for (block, cache) in depth.blocks[config.set(k)].iter().zip(&mut self.depth_caches) {
                y = block.run(&y, cache, &self.depth_positions[k], None)?;
            }
            let found = lead(self.led.as_ref(), depth.logits(k, &y)?)?;
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
        if let Some(led) = &mut self.led {
            led.positions.reset(&twice(mask)?)?;
        }
        Ok(self.positions.reset(mask)?)
    }
}

/// What the temporal transformer gives, `[R, 1, dim]`.
fn hidden(
    lm: &Lm,
    ids: &Tensor,
    context: &Context,
    caches: &mut [KvCache],
    positions: &Positions,
    mask: Option<&Tensor>,
) -> Result<Tensor> {
    let mut x = lm.temporal.fed.sum_onto((ids, 0), context.onto.as_ref())?;
    if let Some(sines) = &context.sines {
        elementwise::add_assign(&mut x, &sines.at(positions)?)?;
    }
    for ((block, source), cache) in lm.temporal.blocks.iter().zip(&context.sources).zip(caches) {
        x = block.run_beside(&x, source.as_ref(), cache, positions, mask)?;
    }
    lm.temporal.norm(&x)
}

/// `[B, 1, V]` as `[B, V]`.
fn rows(x: Tensor) -> Result<Tensor> {
    let (batch, width) = (x.shape()[0], x.shape().last_dim());
    Ok(x.reshape([batch, width])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the pieces of a row.
    #[test]
    fn sines_of_wide_rows_are_those_of_their_positions() {
        let sines = Sines { period: 700.0, scale: 0.8 };
        for device in [Device::Cpu, Device::open("emulator").unwrap()] {
            for width in [4, 126, 128, 130, 136, 194, 256, 262] {
                let at = [0, 1, 77, 1000];
                let turned = Turned::new(&device, DType::F32, sines, width, at.len()).unwrap();
                let found = turned.at(&Positions::at(&device, &at).unwrap()).unwrap();
                assert_eq!(*found.shape(), [at.len(), 1, width]);
                let expected: Vec<f32> = at.iter().flat_map(|&at| sines.row(width, at as usize)).collect();
                let worst = found.to_vec::<f32>().unwrap().iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst < 1e-6, "{device:?}: {width} wide, off by {worst}");
            }
        }
    }
}
