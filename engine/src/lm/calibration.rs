//! A model shown conversations, layer by layer, for what its matrices are multiplied with.
//!
//! One block's weights are in memory at a time, in f32, and what goes into its matrices at every step: for Moshi of 7 billion
//! parameters 0.8 GB, and 0.1 MB a step. Every layer has the inputs that it has in the model as it is stored.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use swara_kernels::ops::attention::{KvCache, Positions};
use swara_kernels::ops::delay::{self, Tokens};
use swara_kernels::{DType, Device, Tensor};
use swara_loader::weights::{Dtype, Weights};

use super::checkpoint::{self, Part, Place, Published, part};
use super::config::{Config, Shape};
use super::model::{Dense, DepthLayers, Embedding, Layers, Rows};
use super::{Drawing, Lm, Session};
use crate::rounding::Norm;
use crate::transformer::{self, Block, ReadyBlock, ReadyNorm};
use crate::weights::{Reader, Source};
use crate::{Error, Result};

/// Steps that go through a block at once.
const CHUNK: usize = 32;

/// What a model hears and says in a conversation, step by step.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversation {
    steps: usize,
    /// `[steps, n_q - dep_q]`
    heard: Vec<i32>,
    /// `[steps, 1 + dep_q]`
    said: Vec<i32>,
}

impl Conversation {
    /// Of frames: `text [T]` and `codes [n_q, T]`, the model's own before those that it hears.
    ///
    /// # Errors
    /// No frames; other lengths; tokens that the model does not know.
    pub fn of_frames(config: &Config, text: &[i32], codes: &[i32]) -> Result<Conversation> {
        let (steps, initial) = (text.len(), config.initial());
        if steps == 0 || codes.len() != config.n_q.saturating_mul(steps) {
            return Err(Error::Argument(format!(
                "{} codes beside {steps} of text, the model has {} columns of codes",
                codes.len(),
                config.n_q
            )));
        }
        known("text", text, steps, config.text_outputs().min(config.text_card))?;
        known("code", codes, steps, config.card)?;
        let frame = |column: usize, t: usize| if column == 0 { text[t] } else { codes[(column - 1) * steps + t] };
        // What is said of frame t in a column that is `delay` late is said at step t + delay.
        let said = |at: usize| {
            let (step, column) = (at / (1 + config.dep_q), at % (1 + config.dep_q));
            step.checked_sub(config.delays[column]).map_or(initial[column], |t| frame(column, t))
        };
        let heard = |at: usize| frame(1 + config.dep_q + at % config.heard(), at / config.heard());
        Ok(Conversation {
            steps,
            heard: (0..steps * config.heard()).map(heard).collect(),
            said: (0..steps * (1 + config.dep_q)).map(said).collect(),
        })
    }

    /// Of what a model hears, `codes [n_q - dep_q, T]`, and says to it, drawn as its configuration has it.
    ///
    /// # Errors
    /// As [`of_frames`](Self::of_frames).
    pub fn with(lm: &Lm, codes: &[i32], seed: u64) -> Result<Conversation> {
        let heard = lm.config.heard();
        let steps = codes.len().checked_div(heard).unwrap_or(0);
        if steps == 0 || codes.len() != heard * steps {
            return Err(Error::Argument(format!("{} codes, the model hears {heard} a frame", codes.len())));
        }
        known("code", codes, steps, lm.config.card)?;
        let codes: Vec<i32> = (0..codes.len()).map(|at| codes[at % heard * steps + at / heard]).collect();
        let mut session = Session::new(lm, &[Drawing::seeded(&lm.config.lm_gen_config, seed)])?;
        let mut said = Vec::with_capacity(steps * (1 + lm.config.dep_q));
        for frame in codes.chunks_exact(heard) {
            said.extend(session.step(&Tensor::from_slice(&lm.device, frame, [1, heard])?, None)?.said.to_vec::<i32>()?);
        }
        Ok(Conversation { steps, heard: codes, said })
    }

    pub fn steps(&self) -> usize {
        self.steps
    }

    /// What the model is fed at each step, `[steps, 1 + n_q]`, and what it says, `[steps, 1 + dep_q]`.
    fn tokens(&self, config: &Config) -> Result<[Tensor; 2]> {
        let device = &Device::Cpu;
        let (said, heard) = (1 + config.dep_q, config.heard());
        let mut tokens = Tokens::new(device, 1, &config.delays, &config.initial(), said)?;
        let (mut positions, mut fed) = (Positions::new(device, 1)?, Vec::with_capacity(self.steps * (1 + config.n_q)));
        for step in 0..self.steps {
            let given = Tensor::from_slice(device, &self.heard[step * heard..][..heard], [1, heard])?;
            fed.extend(delay::feed(&mut tokens, &given, &positions, None)?.to_vec::<i32>()?);
            let row = Tensor::from_slice(device, &self.said[step * said..][..said], [1, said])?;
            delay::take(&mut tokens, &row, &positions, None)?;
            positions.advance(1, None)?;
        }
        Ok([Tensor::from_slice(device, &fed, [self.steps, 1 + config.n_q])?, Tensor::from_slice(device, &self.said, [self.steps, said])?])
    }
}

fn known(what: &str, tokens: &[i32], steps: usize, size: usize) -> Result<()> {
    match tokens.iter().position(|&token| usize::try_from(token).map_or(true, |token| token >= size)) {
        None => Ok(()),
        Some(at) => {
            let place = if what == "code" { format!(" of codebook {}", at / steps) } else { String::new() };
            Err(Error::Argument(format!("{what} {}{place}, frame {}, expected 0 to {}", tokens[at], at % steps, size.saturating_sub(1))))
        }
    }
}

/// Matrices that are behind one norm, or behind none.
pub struct Site {
    /// The norm, and the tensors of the file that hold it: of each of its tensors all copies.
    pub norm: Option<(Norm, Vec<Vec<String>>)>,
    pub matrices: Vec<Seen>,
}

/// A matrix, and what it was multiplied with.
pub struct Seen {
    pub part: Part,
    /// Tensors of the file that hold it, and where: all alike.
    pub places: Vec<(String, Range<usize>)>,
    pub columns: usize,
    /// `[rows, columns]`
    pub values: Vec<f32>,
    /// `[n, columns]`; matrices with the same inputs share them.
    pub inputs: Arc<Vec<f32>>,
}

/// Shows the model of a file conversations, and `visit` every matrix of [`matrices`](super::matrices).
///
/// # Errors
/// Those of [`check`](super::check) and of `visit`; values within the model that are not finite.
pub fn observe(file: &Weights, conversations: &[Conversation], visit: impl FnMut(Site) -> Result<()>) -> Result<()> {
    let (config, from) = Published::open(file, &Device::Cpu)?;
    checkpoint::whole_matrices(file)?;
    let layers = Layers::new(&config)?;
    let depth = if layers.depth.is_some() { config.depth()?.sines } else { None };
    if !layers.conditioners.is_empty() || depth.or(config.temporal()?.sines).is_some() || config.demux_second_text_stream {
        return Err(Error::Config("a model with conditions, with positions as sines, or with two texts in one, is not calibrated".into()));
    }
    let mut observer = Observer { config: &config, from: &from, visit };
    let tokens = conversations.iter().map(|c| c.tokens(&config)).collect::<Result<Vec<_>>>()?;
    let h = observer.temporal(&layers, &tokens)?;
    match &layers.depth {
        Some(depth) => observer.depth(depth, &tokens, &h),
        None => Ok(()),
    }
}

struct Observer<'a, V> {
    config: &'a Config,
    from: &'a Published<'a>,
    visit: V,
}

impl<V: FnMut(Site) -> Result<()>> Observer<'_, V> {
    fn reader(&self) -> Reader<'_> {
        Reader::new(self.from, &Device::Cpu, DType::F32)
    }

    /// Gives `[steps, dim]` of each conversation, behind the last norm.
    fn temporal(&mut self, layers: &Layers, tokens: &[[Tensor; 2]]) -> Result<Vec<Vec<f32>>> {
        let (config, width) = (self.config, self.config.dim);
        let fed = Rows::read(&layers.fed, &Device::Cpu, &mut self.reader())?;
        let sum = |[fed_ids, _]: &[Tensor; 2]| fed.sum((fed_ids, 0))?.to_vec::<f32>().map_err(Error::from);
        let mut x = tokens.iter().map(sum).collect::<Result<Vec<_>>>()?;
        drop(fed);
        let shape = config.temporal()?;
        for block in &layers.temporal {
            let ready = ReadyBlock::new(block, &Device::Cpu, &mut self.reader())?;
            let mut seen = Inputs::default();
            for x in &mut x {
                through(&ready, &shape, config.context, width, x, &mut seen)?;
            }
            drop(ready);
            self.block(&[(block, seen)])?;
        }
        let (norm, epsilon) = (ReadyNorm::new(shape.norm, "out_norm", &mut self.reader())?, shape.epsilon);
        let h = |x: &Vec<f32>| norm.run(&tensor(x, width)?, epsilon)?.to_vec::<f32>().map_err(Error::from);
        let h = x.iter().map(h).collect::<Result<Vec<_>>>()?;
        let inputs = Arc::new(h.concat());
        let heads = (0..config.extra_heads_num_heads).map(|k| format!("extra_heads.{k}.weight"));
        let inner = (0..if config.dep_q > 0 { config.inputs() } else { 0 }).map(|i| format!("depformer_in.{i}.weight"));
        let names = ["text_linear.weight".to_owned()].into_iter().chain(heads).chain(inner);
        let matrices = names.map(|name| self.seen(&name, &inputs)).collect::<Result<Vec<_>>>()?;
        (self.visit)(Site { norm: None, matrices })?;
        Ok(h)
    }

    /// `h`: of each conversation, what the temporal transformer gives.
    fn depth(&mut self, depth: &DepthLayers, tokens: &[[Tensor; 2]], h: &[Vec<f32>]) -> Result<()> {
        let (config, shape) = (self.config, self.config.depth()?);
        let mut y = Vec::new();
        for k in 0..config.dep_q {
            y.push(self.first(&depth.said[k], k, tokens, h)?);
        }
        for layer in 0..shape.layers {
            let blocks: Vec<&Block> = depth.blocks.iter().map(|set| &set[layer]).collect();
            let ready = blocks.iter().map(|block| ReadyBlock::new(block, &Device::Cpu, &mut self.reader()));
            let ready = ready.collect::<Result<Vec<_>>>()?;
            let mut seen: Vec<Inputs> = blocks.iter().map(|_| Inputs::default()).collect();
            for at in 0..tokens.len() {
                let steps = y[0][at].shape()[0];
                let mut cache = KvCache::new(&Device::Cpu, DType::F32, steps, shape.kv_heads, config.dep_q, shape.head_dim())?;
                for (k, y) in y.iter_mut().enumerate() {
                    let (set, positions) = (config.set(k), Positions::at(&Device::Cpu, &vec![k as i32; steps])?);
                    y[at] = ready[set].observed(&y[at], &mut cache, &positions, None, |place, x| seen[set].add(place, x))?;
                }
            }
            drop(ready);
            let all: Vec<_> = blocks.into_iter().zip(seen).collect();
            // Sets that share a norm in the file are rounded together.
            let mut rest = &all[..];
            while let Some((block, _)) = rest.first() {
                let home = |block: &Block| Ok::<_, Error>(self.from.places(&norm_tensors(block, 1)[0].0)?.1[0].name().to_owned());
                let first = home(block)?;
                let alike = rest.iter().take_while(|(block, _)| home(block).is_ok_and(|home| home == first)).count().max(1);
                let (together, others) = rest.split_at(alike);
                self.block(together)?;
                rest = others;
            }
        }
        for (k, y) in y.iter().enumerate() {
            let matrices = vec![self.seen(&format!("linears.{k}.weight"), &Arc::new(self.last(depth, k, y)?))?];
            (self.visit)(Site { norm: None, matrices })?;
        }
        Ok(())
    }

    /// What step `k` of the depth transformer begins with in each conversation, `[steps, 1, width]`.
    fn first(&self, said: &Embedding, k: usize, tokens: &[[Tensor; 2]], h: &[Vec<f32>]) -> Result<Vec<Tensor>> {
        let from = &mut self.reader();
        let said = Rows::read(std::slice::from_ref(said), &Device::Cpu, from)?;
        let dense = Dense::read(&format!("depformer_in.{}", self.config.input(k)), false, from)?;
        let first = |([_, ids], h): (&[Tensor; 2], &Vec<f32>)| {
            let h = Tensor::from_slice(&Device::Cpu, h, [ids.shape()[0], 1, self.config.dim])?;
            dense.run(&h, Some(&said.sum((ids, k))?))
        };
        tokens.iter().zip(h).map(first).collect()
    }

    /// What step `k` of the depth transformer ends with in all conversations.
    fn last(&self, depth: &DepthLayers, k: usize, y: &[Tensor]) -> Result<Vec<f32>> {
        let norm = |(norm, epsilon)| Ok::<_, Error>((ReadyNorm::new(norm, &format!("depformer_norms.{k}"), &mut self.reader())?, epsilon));
        let (norm, mut all) = (depth.norm.map(norm).transpose()?, Vec::new());
        for y in y {
            all.extend(match &norm {
                Some((norm, epsilon)) => norm.run(y, *epsilon)?.to_vec::<f32>()?,
                None => y.to_vec()?,
            });
        }
        Ok(all)
    }

    /// The matrices of blocks that share their norms, if there are several.
    fn block(&mut self, blocks: &[(&Block, Inputs)]) -> Result<()> {
        for place in 0..transformer::PLACES {
            let seen = |(block, inputs): &(&Block, Inputs)| self.seen(&block.matrices()[place], &inputs.0[place]);
            let matrices = blocks.iter().map(seen).collect::<Result<Vec<_>>>()?;
            let norm = match (transformer::norm_before(place), blocks.first()) {
                (Some(which), Some((block, _))) => Some(self.norm(&norm_tensors(block, which))?),
                _ => None,
            };
            (self.visit)(Site { norm, matrices })?;
        }
        Ok(())
    }

    fn seen(&self, name: &str, inputs: &Arc<Vec<f32>>) -> Result<Seen> {
        let (shape, places) = self.from.places(name)?;
        let columns = shape.last().copied().unwrap_or(1);
        if let Some(at) = inputs.iter().position(|v| !v.is_finite()) {
            let why = format!("the inputs of {name} are not finite: {} in column {}", inputs[at], at % columns);
            return Err(Error::File { path: self.from.file().path().to_owned(), why });
        }
        let home = |p: &Place| (p.name().to_owned(), p.rows().cloned().unwrap_or(0..shape[0]));
        Ok(Seen {
            part: part(name, shape).unwrap_or(Part::Head),
            places: places.iter().map(home).collect(),
            columns,
            values: self.from.read(name, DType::F32)?.to_vec()?,
            inputs: inputs.clone(),
        })
    }

    fn norm(&self, names: &[(String, Vec<usize>)]) -> Result<(Norm, Vec<Vec<String>>)> {
        let (mut tensors, mut homes, mut dtypes) = (Vec::new(), Vec::new(), BTreeSet::new());
        for (name, _) in names {
            let (_, places) = self.from.places(name)?;
            tensors.push(self.from.read(name, DType::F32)?.to_vec()?);
            homes.push(places.iter().map(|p| p.name().to_owned()).collect::<Vec<_>>());
            dtypes.extend(places.iter().filter_map(|p| self.from.file().info(p.name())).map(|(dtype, _)| dtype));
        }
        // One type for all, or none that anything could be folded into.
        let dtype = dtypes.first().copied().filter(|_| dtypes.len() == 1).unwrap_or(Dtype::U8);
        Ok((Norm { tensors, dtype }, homes))
    }
}

fn norm_tensors(block: &Block, which: usize) -> Vec<(String, Vec<usize>)> {
    block.norm.tensors(&format!("{}.norm{which}", block.name), block.width)
}

fn tensor(x: &[f32], width: usize) -> Result<Tensor> {
    Ok(Tensor::from_slice(&Device::Cpu, x, [1, x.len() / width, width])?)
}

/// The inputs of a block's matrices, in their order.
#[derive(Default)]
struct Inputs([Arc<Vec<f32>>; transformer::PLACES]);

impl Inputs {
    fn add(&mut self, place: usize, x: &Tensor) -> Result<()> {
        let (x, all) = (x.as_slice()?, Arc::make_mut(&mut self.0[place]));
        all.try_reserve(x.len()).map_err(|_| Error::Argument("no memory for the inputs of matrices".to_owned()))?;
        all.extend_from_slice(x);
        Ok(())
    }
}

/// A conversation `x [steps, width]` through a block of the temporal transformer.
fn through(ready: &ReadyBlock, shape: &Shape, window: Option<usize>, width: usize, x: &mut [f32], seen: &mut Inputs) -> Result<()> {
    // Without a window a query sees what the cache holds: one step at a time, as it is in a session.
    let chunk = window.map_or(1, |_| CHUNK);
    let capacity = window.unwrap_or(1).saturating_add(chunk - 1);
    let mut cache = KvCache::new(&Device::Cpu, DType::F32, 1, shape.kv_heads, capacity, shape.head_dim())?;
    let mut positions = Positions::new(&Device::Cpu, 1)?;
    for rows in x.chunks_mut(chunk * width) {
        let y = ready.observed(&tensor(rows, width)?, &mut cache, &positions, None, |place, x| seen.add(place, x))?;
        positions.advance(rows.len() / width, None)?;
        rows.copy_from_slice(y.as_slice()?);
    }
    Ok(())
}
