//! A depth transformer, Moshi's or CSM's: the codes of a frame drawn one after the other, each from what was said before it.
//!
//! ```text
//! Moshi: step k   x = inputs h + said[id of column k]
//! CSM: first      x = input h,  step k   x = said[id of column k]
//!          x += out attention(turn(project norm1(x))),  x += narrow (silu(u) v), [u; v] = widen norm2(x)      for each layer
//!          logits = linear norm(x) + bias,  id of column k + 1 = a draw from them                            for each step
//! ```
//! Norms are [`rms_norm`](super::rms_norm), products [`linear`](super::linear), draws [`sample`](super::sample); attention is over the
//! rows of the frame so far, whose heads are turned by their place in it or not at all. Each step has one of several sets of layers.
//!
//! | tensor   | shape                                            |                                                              |
//! |----------|--------------------------------------------------|--------------------------------------------------------------|
//! | `h`      | `[B, dim]`                                       | f32, bf16 or f16 on CUDA, f32 or f64 on the CPU              |
//! | `said`   | `[B, columns > steps]`                           | i32; columns 1 to steps are drawn, or given as `drawn` says  |
//! | `drawn`  | `[B]` for each step                              | optional, u8: streams whose flag is zero keep id and counter |
//! | logits   | `[B, card]` for each step                        | as `h`                                                       |
//! | matrices | as [`Step`] and [`Block`] say, of any [`Weight`] | on CUDA of the type of `h`, or codes                         |
//!
//! On CUDA a frame is one cooperative launch (`depth.cu`), on devices that have such, for up to [`MOST_STREAMS`] streams and [`MOST_STEPS`]
//! steps, rows of whole vectors of 16 bytes, and heads of 1 to 32 of those, a power of two; what it does not take is an
//! [`Error::Argument`], and then the operations remain. It rounds where they store, and its products are theirs bit for bit. On the CPU it
//! is those operations.
//! Sources: Défossez et al. 2024 (Moshi), `LMModel.forward_depformer` of the package `moshi`; Sesame's `csm`.

mod cases;
mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::case::Op;
use crate::driver::{Source, source::ALL_ARCHS};
use crate::ops::check;
use crate::ops::linear::Weight;
use crate::ops::rope::Rope;
use crate::ops::sample::Sampler;
use crate::{DType, Device, Error, Result, Tensor, span};

pub static SOURCE: Source = Source { path: "ops/depth/depth.cu", text: include_str!("depth.cu"), archs: ALL_ARCHS };
pub static OP: Op = Op { name: NAME, sources: &[&SOURCE], cases: cases::cases };

const NAME: &str = "depth";
/// Of a launch.
pub const MOST_STREAMS: usize = 16;

/// Why `batch` streams are no launch.
pub fn too_many(batch: usize) -> String {
    format!("{batch} streams, more than the {MOST_STREAMS} of one launch")
}

/// As in depth.cu.
pub const MOST_STEPS: usize = 32;

/// A layer.
pub struct Block {
    /// `[width]`: before attention, before the gate.
    pub norms: [Arc<Tensor>; 2],
    /// `[(heads + 2 kv_heads) head_dim, width]`: queries, keys, values.
    pub project: Arc<Weight>,
    /// `[width, heads head_dim]`.
    pub out: Arc<Weight>,
    /// `[2 hidden, width]`.
    pub widen: Arc<Weight>,
    /// `[width, hidden]`.
    pub narrow: Arc<Weight>,
}

/// What a step has of its own, and which of the others it takes.
pub struct Step {
    /// `[ids, width]`: a row for each id of its column.
    pub said: Arc<Tensor>,
    /// Of [`Layers::inputs`]; of no consequence where `h` comes first.
    pub input: usize,
    pub set: usize,
    /// `[width]`, before the logits.
    pub norm: Option<Arc<Tensor>>,
    /// `[card, width]`.
    pub linear: Arc<Weight>,
    /// `[card]`.
    pub bias: Option<Arc<Tensor>>,
}

/// All of a depth transformer. What it shares with others stays where it is.
pub struct Layers {
    /// Of `h`.
    pub dtype: DType,
    pub heads: usize,
    pub kv_heads: usize,
    /// Of the norms of layers, and of those before the logits.
    pub epsilon: f64,
    pub last_epsilon: f64,
    /// `[width, dim]`.
    pub inputs: Vec<Arc<Weight>>,
    /// Whether what the first of `inputs` makes of `h` is a row by itself, before those of the steps; else each begins with its own.
    pub h_first: bool,
    /// Turns queries and keys.
    pub rope: Option<Arc<Rope>>,
    pub sets: Vec<Vec<Block>>,
    pub steps: Vec<Step>,
}

/// The extents that all parts agree in.
#[derive(Clone, Copy)]
struct Extents {
    dim: usize,
    width: usize,
    projected: usize,
    head_dim: usize,
    /// Of the widest.
    hidden: usize,
    layers: usize,
    /// Rows of a frame.
    positions: usize,
    card: usize,
}

/// A depth transformer, ready to run.
pub struct Depth {
    layers: Layers,
    extents: Extents,
    device: Device,
    program: Option<cuda::Program>,
}

/// What frames of so many streams are computed in, allocated once.
pub struct State {
    batch: usize,
    scratch: Option<cuda::Scratch>,
}

impl Depth {
    /// # Errors
    /// Parts that do not fit each other; on CUDA what one launch cannot do.
    pub fn new(layers: Layers) -> Result<Depth> {
        let extents = layers.extents()?;
        let device = layers.inputs[0].device().clone();
        let program = match &device {
            Device::Cpu => None,
            Device::Cuda(gpu) => Some(cuda::Program::new(gpu, &layers, &extents)?),
        };
        Ok(Depth { layers, extents, device, program })
    }

    /// # Errors
    /// On CUDA more than [`MOST_STREAMS`] streams; no memory.
    pub fn state(&self, batch: usize) -> Result<State> {
        let scratch = self.program.as_ref().map(|_| cuda::Scratch::new(self, batch)).transpose()?;
        Ok(State { batch, scratch })
    }

    /// Fills the columns of `said` from 1 to the number of steps, by the samplers of each, and gives the logits of each step.
    ///
    /// # Errors
    /// Operands that do not fit; on the CPU an id outside its table.
    pub fn say<'m>(
        &self,
        state: &mut State,
        h: &Tensor,
        said: &mut Tensor,
        samplers: &mut [Sampler],
        drawn: impl Fn(usize) -> Option<&'m Tensor>,
    ) -> Result<Vec<Tensor>> {
        let _span = span::op("depth.say");
        let (batch, steps) = (state.batch, self.layers.steps.len());
        if h.shape().rows() != batch || h.shape().last_dim() != self.extents.dim {
            return Err(Error::shape(NAME, "h", format!("[{batch}, {}]", self.extents.dim), h.shape()));
        }
        if h.dtype() != self.layers.dtype {
            return Err(Error::dtype(NAME, "h", self.layers.dtype.name(), h.dtype()));
        }
        if said.shape().len() != 2 || said.shape()[0] != batch || said.shape()[1] <= steps {
            return Err(Error::shape(NAME, "said", format!("[{batch}, more than {steps}]"), said.shape()));
        }
        if said.dtype() != DType::I32 {
            return Err(Error::dtype(NAME, "said", "i32", said.dtype()));
        }
        if samplers.len() != steps || samplers.iter().any(|sampler| sampler.counters.shape()[0] != batch) {
            return Err(Error::argument(NAME, format!("{} samplers, expected {steps} of {batch} streams", samplers.len())));
        }
        let on = |operand, tensor: &Tensor| match tensor.device() == self.device {
            true => Ok(()),
            false => Err(Error::DeviceMismatch { op: NAME, operand }),
        };
        on("h", h)?;
        on("said", said)?;
        samplers.iter().try_for_each(|sampler| on("sampler", &sampler.counters))?;
        (0..steps).try_for_each(|k| check::mask(NAME, &self.device, batch, drawn(k)))?;
        match (&self.device, &self.program, &mut state.scratch) {
            (Device::Cuda(gpu), Some(program), Some(scratch)) => {
                scratch.check(self, batch)?;
                let logits =
                    (0..steps).map(|_| Tensor::empty(&self.device, h.dtype(), [batch, self.extents.card])).collect::<Result<Vec<_>>>()?;
                if batch > 0 {
                    cuda::say(gpu, self, program, scratch, cuda::Frame { h, said, samplers, logits: &logits }, drawn)?;
                }
                Ok(logits)
            }
            (Device::Cpu, ..) => cpu::say(self, h, said, samplers, drawn),
            _ => Err(Error::DeviceMismatch { op: NAME, operand: "state" }),
        }
    }
}

impl Layers {
    fn extents(&self) -> Result<Extents> {
        let refuse = |what: String| Err(Error::argument(NAME, what));
        let (Some(input), Some(first), Some(step)) =
            (self.inputs.first(), self.sets.first().and_then(|set| set.first()), self.steps.first())
        else {
            return refuse("no inputs, layers or steps".to_owned());
        };
        let (width, projected, layers) = (input.outputs(), first.project.outputs(), self.sets[0].len());
        let heads = self.heads.saturating_add(self.kv_heads.saturating_mul(2));
        if self.heads == 0 || self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) || !projected.is_multiple_of(heads) {
            return refuse(format!("{} heads beside {} of keys in {projected} rows", self.heads, self.kv_heads));
        }
        if !(self.epsilon >= 0.0 && self.epsilon.is_finite() && self.last_epsilon >= 0.0 && self.last_epsilon.is_finite()) {
            return refuse(format!("norms with an epsilon of {} and {}", self.epsilon, self.last_epsilon));
        }
        let device = input.device();
        let statistics = check::statistics_dtype(self.dtype);
        let matrix = |name: &'static str, weight: &Weight, outputs: usize, inputs: usize| {
            if weight.outputs() != outputs || weight.inputs() != inputs {
                let what = format!("{name} is [{}, {}], expected [{outputs}, {inputs}]", weight.outputs(), weight.inputs());
                return Err(Error::argument(NAME, what));
            }
            if weight.device() == device { Ok(()) } else { Err(Error::DeviceMismatch { op: NAME, operand: name }) }
        };
        let vector = |name: &'static str, vector: &Tensor, extent: usize| {
            if *vector.shape() != [extent] {
                return Err(Error::shape(NAME, name, format!("[{extent}]"), vector.shape()));
            }
            if vector.dtype() != statistics {
                return Err(Error::dtype(NAME, name, statistics.name(), vector.dtype()));
            }
            if vector.device() == *device { Ok(()) } else { Err(Error::DeviceMismatch { op: NAME, operand: name }) }
        };
        let (dim, card, head_dim) = (input.inputs(), step.linear.outputs(), projected / heads);
        let mut hidden = 0;
        self.inputs.iter().try_for_each(|input| matrix("an input", input, width, dim))?;
        for set in &self.sets {
            if set.len() != layers {
                return refuse(format!("sets of {layers} and of {} layers", set.len()));
            }
            for block in set {
                let own = block.narrow.inputs();
                hidden = hidden.max(own);
                block.norms.iter().try_for_each(|norm| vector("a norm", norm, width))?;
                matrix("project", &block.project, projected, width)?;
                matrix("out", &block.out, width, self.heads * head_dim)?;
                matrix("widen", &block.widen, own.saturating_mul(2), width)?;
                matrix("narrow", &block.narrow, width, own)?;
            }
        }
        for step in &self.steps {
            if step.input >= self.inputs.len() || step.set >= self.sets.len() {
                return refuse(format!("a step takes input {} and set {}, which are not there", step.input, step.set));
            }
            if step.said.shape().len() != 2 || step.said.shape()[1] != width {
                return Err(Error::shape(NAME, "said", format!("[ids, {width}]"), step.said.shape()));
            }
            if step.said.device() != *device {
                return Err(Error::DeviceMismatch { op: NAME, operand: "said" });
            }
            step.norm.as_ref().map_or(Ok(()), |norm| vector("the last norm", norm, width))?;
            matrix("linear", &step.linear, card, width)?;
            step.bias.as_ref().map_or(Ok(()), |bias| vector("bias", bias, card))?;
        }
        if let Some(rope) = self.rope.as_ref().filter(|rope| rope.head_dim() != head_dim) {
            return refuse(format!("heads of {head_dim}, and turns of {}", rope.head_dim()));
        }
        let positions = usize::from(self.h_first) + self.steps.len();
        Ok(Extents { dim, width, projected, head_dim, hidden, layers, positions, card })
    }
}
