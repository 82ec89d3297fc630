use std::ops::Range;

use swara_kernels::ops::attention::{Kept, KvCache, Positions};
use swara_kernels::ops::depth;
use swara_kernels::ops::embedding::NONE;
use swara_kernels::ops::sample::{self, Sampler, Settings};
use swara_kernels::ops::{elementwise, pad};
use swara_kernels::{Device, Tensor, span};

use super::draft::Drafting;
use super::{Csm, Draft, Drafted, Llama};
use crate::graph::{Outcome, Recorder};
use crate::{Error, Result};

/// `batch` streams through a model, each masked out or begun anew as it comes.
///
/// All state is allocated here, once, on the device. A masked stream (u8 0 in `mask [B]`) changes nothing of its own and nothing of
/// others'. A stream that has taken more than `max_position_embeddings` rows sees the last so many.
///
/// On CUDA steps with a mask, and those without, are recorded as a graph when two of the kind come in a row, and are a launch and a copy for every tensor
/// of [`Step`] from then on; where no graph can be had ([`Session::no_graph`]), every kernel is launched by itself. The results are the same.
/// So they are with [`Session::draft`], but for what [`Session::plain_depth`] says.
pub struct Session<'a> {
    csm: &'a Csm,
    batch: usize,
    streams: Streams,
    recorder: Recorder<Step>,
    drafting: Option<Drafting>,
}

/// What the streams remember.
pub(super) struct Streams {
    positions: Positions,
    caches: Vec<KvCache>,
    depth_caches: Vec<KvCache>,
    /// Of the first two rows of a frame, then of each further one.
    depth_positions: Vec<Positions>,
    /// Of the depth decoder as one launch, where it can be.
    depth_state: Option<depth::State>,
    plain_depth: bool,
    /// Of each code.
    pub samplers: Vec<Sampler>,
    /// i32 `[B, K + 1]`: the frame at work, as a row.
    pub said: Tensor,
}

/// What a step gave.
pub struct Step {
    /// i32 `[B, K + 1]`: the next frame, as a row to be fed.
    pub said: Tensor,
    /// `[B, vocab_size]` of each code.
    pub logits: Vec<Tensor>,
}

impl Outcome for Step {
    fn copy(&self) -> Result<Step> {
        Ok(Step { said: self.said.copy()?, logits: self.logits.iter().map(Tensor::copy).collect::<swara_kernels::Result<_>>()? })
    }
}

impl<'a> Session<'a> {
    /// Rows of a prompt that the layers take at a time: bounds memory, and the weights are read once for so many.
    const PROMPT_ROWS: usize = 64;

    /// Streams that draw as `drawing` says, one entry for each; the codes of a frame are told apart by [`Settings::sequence`].
    ///
    /// # Errors
    /// A temperature that is no number; no memory.
    pub fn new(csm: &'a Csm, drawing: &[Settings]) -> Result<Session<'a>> {
        let (config, device, batch) = (&csm.config, &csm.device, drawing.len());
        let caches = |llama: &Llama, capacity: usize, kept: Kept| -> Result<Vec<KvCache>> {
            let cache = |_| Ok(KvCache::new(device, kept, batch, llama.num_key_value_heads, capacity, llama.head_dim)?);
            (0..llama.num_hidden_layers).map(cache).collect()
        };
        let at = |row: usize| Ok(Positions::at(device, &vec![row as i32; batch])?);
        let sampler = |k: usize| {
            let settings: Vec<Settings> = drawing.iter().map(|d| Settings { sequence: k as u32, ..*d }).collect();
            Ok(Sampler::new(device, &settings)?)
        };
        let width = config.num_codebooks + 1;
        let depth_state = match csm.depth.in_one.as_ref().ok().filter(|_| batch <= depth::MOST_STREAMS) {
            Some(whole) => Some(whole.state(batch)?),
            None => None,
        };
        let streams = Streams {
            positions: Positions::new(device, batch)?,
            caches: caches(&config.backbone, config.max_position_embeddings + Self::PROMPT_ROWS - 1, csm.kept())?,
            depth_caches: caches(&config.depth, config.num_codebooks, csm.values().into())?,
            depth_positions: [0].into_iter().chain(2..config.num_codebooks).map(at).collect::<Result<_>>()?,
            depth_state,
            plain_depth: false,
            samplers: (0..config.num_codebooks).map(sampler).collect::<Result<_>>()?,
            said: Tensor::from_slice(device, &vec![NONE; batch * width], [batch, width])?,
        };
        Ok(Session { csm, batch, streams, recorder: Recorder::default(), drafting: None })
    }

    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Takes the rows `ids` (i32 `[T, K + 1]` of each stream in turn) before the one that [`Session::step`] is given first. In one
    /// call or several, they leave the same behind but for the order of sums.
    ///
    /// # Errors
    /// A number of ids that is not that; an id that the model does not know.
    pub fn prompt(&mut self, ids: &[i32], mask: Option<&Tensor>) -> Result<()> {
        let _span = span::step("prompt");
        let (csm, batch, width) = (self.csm, self.batch, self.csm.config.num_codebooks + 1);
        if batch == 0 || !ids.len().is_multiple_of(batch * width) {
            return Err(Error::Argument(format!("{} ids are not rows of {width} of each of {batch} streams", ids.len())));
        }
        csm.config.check_rows(ids)?;
        let rows = ids.len() / (batch * width);
        for first in (0..rows).step_by(Self::PROMPT_ROWS) {
            let count = Self::PROMPT_ROWS.min(rows - first);
            let of = |stream: usize| &ids[(stream * rows + first) * width..][..count * width];
            let part: Vec<i32> = (0..batch).flat_map(of).copied().collect();
            let part = Tensor::from_slice(&csm.device, &part, [batch * count, width])?;
            csm.device.step(|| {
                let x = csm.backbone.fed.sum((&part, 0))?.reshape([batch, count, csm.config.backbone.hidden_size])?;
                self.streams.think(csm, x, mask).map(drop)
            })?;
            self.streams.positions.advance(count, mask)?;
        }
        Ok(())
    }

    /// The next frame of every stream, after `row` (i32 `[B, K + 1]`): the last of the prompt, then [`Step::said`].
    ///
    /// # Errors
    /// A shape that is not that; on the CPU an id that the model does not know.
    pub fn step(&mut self, row: &Tensor, mask: Option<&Tensor>) -> Result<Step> {
        let _span = span::step("csm");
        let csm = self.csm;
        if *row.shape() != [self.batch, csm.config.num_codebooks + 1] {
            return Err(Error::Argument(format!("a row of ids is {row:?}, expected [{}, {}]", self.batch, csm.config.num_codebooks + 1)));
        }
        let streams = &mut self.streams;
        match &mut self.drafting {
            Some(drafting) if mask.is_none() => streams.step(csm, row, None, Some(drafting)),
            _ => self.recorder.run(&csm.device, row, 0, mask, |row, mask| streams.step(csm, row, mask, None)),
        }
    }

    /// From here on steps without a mask guess codes and look them over several at a time, or do not: what is said is the same, bit for
    /// bit, as by [`Session::plain_depth`]. They wait for the device after every code, and are no graphs.
    ///
    /// # Errors
    /// More than one stream; no codes, or all layers of the depth decoder.
    pub fn draft(&mut self, draft: Option<Draft>) -> Result<()> {
        self.drafting = draft.map(|draft| Drafting::new(self.csm, self.batch, draft)).transpose()?;
        Ok(())
    }

    /// What is guessed of the next frame, all `K` codes of it, in place of what the draft would guess.
    ///
    /// # Errors
    /// No [`Session::draft`]; another number of codes; one that the model does not know.
    pub fn guess(&mut self, codes: &[i32]) -> Result<()> {
        match &mut self.drafting {
            Some(drafting) => drafting.give(self.csm, codes),
            None => Err(Error::Argument("codes are guessed where nothing is drafted".to_owned())),
        }
    }

    /// What became of guesses since [`Session::draft`].
    pub fn drafted(&self) -> Option<&Drafted> {
        self.drafting.as_ref().map(|drafting| &drafting.tally)
    }

    /// Whether steps become graphs, as they do by default.
    pub fn graphs(&mut self, wanted: bool) {
        self.recorder.want(wanted);
    }

    /// Why steps are no graphs where they were to be.
    pub fn no_graph(&self) -> Option<&str> {
        match (&self.drafting, &self.csm.device) {
            (Some(_), Device::Cuda(_)) => Some("the host compares what is drafted"),
            _ => self.recorder.refused(),
        }
    }

    /// Whether the depth decoder is launched kernel by kernel, as it always is where codes are guessed. By default it is one launch a frame
    /// on CUDA, for up to [`depth::MOST_STREAMS`] streams, where its layers are such ([`Csm::plain_depth`]): those of CSM are. The two round
    /// alike but for the order of sums in norms and attention, and so say the same unless two logits are as close as that.
    pub fn plain_depth(&mut self, wanted: bool) {
        self.streams.plain_depth = wanted;
        self.recorder.forget();
    }

    /// Why the depth decoder is launched kernel by kernel where it was to be one launch; guesses ask for it.
    pub fn plain_depth_why(&self) -> Option<String> {
        if self.streams.plain_depth || self.drafting.is_some() || self.csm.device == Device::Cpu {
            return None;
        }
        let many = || self.streams.depth_state.is_none().then(|| depth::too_many(self.batch));
        self.csm.plain_depth().map(str::to_owned).or_else(many)
    }

    /// Starts the streams whose `mask` (u8 `[B]`) is not zero anew.
    pub fn reset(&mut self, mask: &Tensor) -> Result<()> {
        self.streams.reset(mask)
    }
}

impl Streams {
    fn step(&mut self, csm: &Csm, row: &Tensor, mask: Option<&Tensor>, drafting: Option<&mut Drafting>) -> Result<Step> {
        csm.device.step(|| {
            let x = csm.backbone.fed.sum((row, 0))?;
            let x = self.think(csm, x, mask)?;
            self.positions.advance(1, mask)?;
            let h = csm.backbone.transformer.norm(&x)?;
            let mut logits = vec![self.draw(0, csm.backbone.head.run(&h, None)?, mask)?];
            match drafting {
                Some(drafting) => drafting.say(self, csm, &h, &mut logits)?,
                None => self.say(csm, &h, &mut logits, mask)?,
            }
            Ok(Step { said: self.said.copy()?, logits })
        })
    }

    /// `[B, T, width]` through the backbone's layers.
    fn think(&mut self, csm: &Csm, mut x: Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        for (block, cache) in csm.backbone.transformer.blocks.iter().zip(&mut self.caches) {
            x = block.run(&x, cache, &self.positions, mask)?;
        }
        Ok(x)
    }

    /// Draws the codes of a frame after its first, one after the other.
    fn say(&mut self, csm: &Csm, h: &Tensor, logits: &mut Vec<Tensor>, mask: Option<&Tensor>) -> Result<()> {
        let depth = &csm.depth;
        if let (Ok(whole), Some(state), false) = (&depth.in_one, &mut self.depth_state, self.plain_depth) {
            logits.extend(whole.say(state, h, &mut self.said, &mut self.samplers[1..], |_| mask)?);
            return Ok(());
        }
        for (k, head) in depth.heads.iter().enumerate() {
            let y = self.read(csm, h, k)?;
            let mut y = self.depth_layers(csm, 0..depth.transformer.blocks.len(), y, k)?;
            if k == 0 {
                y = pad::reflect(&y, -1, 0)?;
            }
            let drawn = self.draw(k + 1, head.run(&depth.transformer.norm(&y)?, None)?, mask)?;
            logits.push(drawn);
        }
        Ok(())
    }

    /// What the depth decoder reads after code `k`, `[B, 1, width]`; with the first code, what the backbone said before it.
    pub(super) fn read(&self, csm: &Csm, h: &Tensor, k: usize) -> Result<Tensor> {
        let said = csm.depth.said[k].sum((&self.said, k))?;
        Ok(match k {
            // Two rows at once, so that the weights are read once; a single row is padded with zeros.
            0 => elementwise::add(&pad::reflect(&csm.depth.input.run(h, None)?, 0, 1)?, &pad::reflect(&said, 1, 0)?)?,
            _ => said,
        })
    }

    /// Some of the depth decoder's layers over rows of which the first is read after code `k`.
    pub(super) fn depth_layers(&mut self, csm: &Csm, layers: Range<usize>, mut y: Tensor, k: usize) -> Result<Tensor> {
        for (block, cache) in csm.depth.transformer.blocks[layers.clone()].iter().zip(&mut self.depth_caches[layers]) {
            y = block.run(&y, cache, &self.depth_positions[k], None)?;
        }
        Ok(y)
    }

    /// Draws code `k`, and gives its logits `[B, V]`.
    pub(super) fn draw(&mut self, k: usize, logits: Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let width = logits.shape().last_dim();
        let logits = logits.reshape([self.said.shape()[0], width])?;
        sample::draw(&mut self.said, k, &logits, &mut self.samplers[k], mask)?;
        Ok(logits)
    }

    fn reset(&mut self, mask: &Tensor) -> Result<()> {
        self.samplers.iter_mut().try_for_each(|sampler| sampler.reset(mask))?;
        Ok(self.positions.reset(mask)?)
    }
}
