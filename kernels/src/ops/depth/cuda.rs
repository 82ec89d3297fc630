//! The list of phases, the frame that a launch is told of, and its shape.

use super::{Depth, Extents, Layers, MOST_STEPS, MOST_STREAMS, NAME, SOURCE};
use crate::device::Arg;
use crate::driver::Launch;
use crate::ops::launch::{index, kernel_name};
use crate::ops::linear::{Stored, Weight};
use crate::ops::sample::Sampler;
use crate::quantized::Bits;
use crate::{Cuda, DType, Device, Error, Result, Tensor};

/// As in depth.cu.
const THREADS: usize = 256;
const ROWS: usize = 4;
/// Rows of x that a pass takes, of one stream and of several.
const PASSES: [usize; 2] = [1, 4];
/// No less than the kernels' own shared memory.
const STATIC_BYTES: usize = 8 << 10;

/// As in depth.cu.
#[derive(Clone, Copy, PartialEq)]
enum Work {
    Input,
    Project,
    Attend,
    Widen,
    Narrow,
    Logits,
    Draw,
}

/// `Phase` of depth.cu.
const PHASE_WORDS: usize = 12;
type Phase = [u64; PHASE_WORDS];

/// What every frame runs through.
pub struct Program {
    /// i32 `[phases, 2 PHASE_WORDS]`: pointers into what the layers hold.
    pub phases: Tensor,
    count: usize,
    /// Of the longest rows of x.
    row_bytes: usize,
    /// That all have something to do.
    blocks: usize,
}

fn pair(low: i32, high: i32) -> u64 {
    u64::from(low as u32) | u64::from(high as u32) << 32
}

/// What a phase has beside its matrix.
#[derive(Clone, Copy, Default)]
struct Beside<'a> {
    norm: Option<(&'a Tensor, f64)>,
    bias: Option<&'a Tensor>,
    /// Where a step's x begins: with the rows of its ids, and which of the inputs.
    said: Option<&'a Tensor>,
    input: usize,
}

struct List<'a> {
    layers: &'a Layers,
    phases: Vec<Phase>,
    longest: usize,
    blocks: usize,
}

impl List<'_> {
    fn product(&mut self, work: Work, (step, layer): (usize, usize), weight: &Weight, beside: Beside) -> Result<()> {
        let (outputs, inputs, dtype) = (weight.outputs(), weight.inputs(), self.layers.dtype);
        let lanes = 16 / dtype.bytes();
        let stored = weight.few_rows(dtype).filter(|_| inputs.is_multiple_of(lanes));
        let Some((stored, group)) = stored else {
            return Err(Error::argument(NAME, format!("a matrix [{outputs}, {inputs}] that is not made of whole vectors of {dtype}")));
        };
        let (pointers, scaled, bits) = match stored {
            Stored::Values(values) => ([values.device_ptr(), 0, 0], 1, 0),
            Stored::Codes(codes) => {
                let bits = if codes.bits == Bits::Four { 4 } else { 8 };
                let mins = codes.mins.as_ref().map_or(0, Tensor::device_ptr);
                ([codes.codes.device_ptr(), codes.scales.device_ptr(), mins], inputs / codes.scales.shape().last_dim(), bits)
            }
        };
        let pointer = |tensor: Option<&Tensor>| tensor.map_or(0, Tensor::device_ptr);
        let int = |n| index(NAME, n);
        // No index of what a frame computes overflows, either.
        int(outputs.saturating_mul(MOST_STREAMS))?;
        self.phases.push([
            pointers[0],
            pointers[1],
            pointers[2],
            pointer(beside.bias),
            pointer(beside.norm.map(|(norm, _)| norm)),
            pointer(beside.said),
            pair(work as i32, int(step)?),
            pair(int(layer)?, int(outputs)?),
            pair(int(inputs)?, int(scaled)?),
            pair(bits, int(group)?),
            pair(int(beside.said.map_or(0, |said| said.shape()[0]))?, int(beside.input)?),
            u64::from((beside.norm.map_or(0.0, |(_, epsilon)| epsilon) as f32).to_bits()) | 1 << 32,
        ]);
        let (columns, own) = if work == Work::Widen { (outputs / 2, ROWS / 2) } else { (outputs, ROWS) };
        self.blocks = self.blocks.max(columns.div_ceil(own).div_ceil(THREADS / group));
        self.longest = self.longest.max(inputs);
        Ok(())
    }

    fn draw(&mut self, step: usize, card: usize) -> Result<()> {
        let int = |n| index(NAME, n);
        let mut phase = [0; PHASE_WORDS];
        phase[6] = pair(Work::Draw as i32, int(step)?);
        phase[7] = pair(0, int(card)?);
        phase[11] = 1 << 32;
        self.phases.push(phase);
        Ok(())
    }
}

impl Program {
    pub fn new(gpu: &Cuda, layers: &Layers, extents: &Extents) -> Result<Program> {
        let refuse = |what: String| Err(Error::argument(NAME, what));
        let (dtype, steps) = (layers.dtype, layers.steps.len());
        if steps > MOST_STEPS {
            return refuse(format!("{steps} steps, at most {MOST_STEPS}"));
        }
        if !matches!(dtype, DType::F32 | DType::BF16 | DType::F16) {
            return Err(Error::dtype(NAME, "h", "f32, bf16 or f16 on CUDA", dtype));
        }
        let lanes = 16 / dtype.bytes();
        let vectors = extents.head_dim / lanes;
        if !extents.head_dim.is_multiple_of(lanes) || !vectors.is_power_of_two() || vectors > 32 {
            return refuse(format!("heads of {}, expected 1 to 32 vectors of {lanes}, a power of two", extents.head_dim));
        }
        if !extents.card.is_multiple_of(lanes) || extents.card > crate::ops::sample::MAX_LOGITS {
            return refuse(format!("{} logits, expected whole vectors of {lanes}", extents.card));
        }
        if let Some(step) = layers.steps.iter().find(|step| step.said.dtype() != dtype || step.said.device() != *layers.inputs[0].device())
        {
            return Err(Error::dtype(NAME, "said", dtype.name(), step.said.dtype()));
        }
        let mut list = List { layers, phases: Vec::new(), longest: 0, blocks: 1 };
        for (input, weight) in layers.inputs.iter().enumerate() {
            list.product(Work::Input, (0, 0), weight, Beside { input, ..Default::default() })?;
        }
        // They read h alone.
        let inputs = list.phases.len();
        list.phases[..inputs - 1].iter_mut().for_each(|phase| phase[11] = 0);
        for (k, step) in layers.steps.iter().enumerate() {
            for (layer, block) in layers.sets[step.set].iter().enumerate() {
                let at = (k, layer);
                let [before, between] = [0, 1].map(|i: usize| Some((&*block.norms[i], layers.epsilon)));
                let said = (layer == 0).then_some(&*step.said);
                list.product(Work::Project, at, &block.project, Beside { norm: before, said, input: step.input, ..Default::default() })?;
                list.product(Work::Attend, at, &block.out, Beside::default())?;
                list.product(Work::Widen, at, &block.widen, Beside { norm: between, ..Default::default() })?;
                list.product(Work::Narrow, at, &block.narrow, Beside::default())?;
            }
            let norm = step.norm.as_ref().map(|norm| (&**norm, layers.last_epsilon));
            list.product(Work::Logits, (k, 0), &step.linear, Beside { norm, bias: step.bias.as_deref(), ..Default::default() })?;
            list.draw(k, extents.card)?;
        }
        if let Some(last) = list.phases.last_mut() {
            last[11] = 0;
        }
        let row_bytes = list.longest.saturating_mul(dtype.bytes());
        let room = gpu.driver().limits().max_shared_bytes as usize;
        if row_bytes.saturating_add(STATIC_BYTES) > room {
            return refuse(format!("rows of {row_bytes} bytes, shared memory of {room}"));
        }
        let words: Vec<i32> = list.phases.iter().flatten().flat_map(|&word| [word as i32, (word >> 32) as i32]).collect();
        let count = list.phases.len();
        Ok(Program {
            phases: Tensor::from_slice(&Device::Cuda(gpu.clone()), &words, [count, 2 * PHASE_WORDS])?,
            count,
            row_bytes,
            blocks: list.blocks,
        })
    }
}

/// What the blocks of a launch exchange.
pub struct Scratch {
    x: Tensor,
    wide: Tensor,
    qkv: Tensor,
    sums: Tensor,
    barrier: Tensor,
}

impl Scratch {
    pub fn new(depth: &Depth, batch: usize) -> Result<Scratch> {
        if batch > MOST_STREAMS {
            return Err(Error::argument(NAME, format!("{batch} streams, at most {MOST_STREAMS}")));
        }
        let ([x, wide, qkv, sums], device) = (Scratch::shapes(depth, batch), &depth.device);
        let values = |shape: [usize; 2]| Tensor::empty(device, depth.layers.dtype, shape);
        Ok(Scratch {
            x: values(x)?,
            wide: values(wide)?,
            qkv: values(qkv)?,
            sums: Tensor::empty(device, DType::F32, sums)?,
            barrier: Tensor::zeros(device, DType::I32, [1])?,
        })
    }

    /// Of `x`, `wide`, `qkv` and `sums`.
    fn shapes(Depth { layers, extents: e, .. }: &Depth, batch: usize) -> [[usize; 2]; 4] {
        let slots = e.layers * layers.steps.len() * batch;
        [[batch, e.width], [batch, e.hidden], [slots, e.projected], [layers.inputs.len() * batch, e.width]]
    }

    /// That it was made for such frames.
    pub fn check(&self, depth: &Depth, batch: usize) -> Result<()> {
        let own = [&self.x, &self.wide, &self.qkv, &self.sums];
        let alike = own.iter().zip(Scratch::shapes(depth, batch)).all(|(tensor, shape)| *tensor.shape() == shape);
        match alike && self.x.dtype() == depth.layers.dtype && self.x.device() == depth.device {
            true => Ok(()),
            false => Err(Error::argument(NAME, "a state of another depth transformer")),
        }
    }
}

/// What a launch reads and writes beside the layers and its scratch.
pub struct Frame<'a> {
    pub h: &'a Tensor,
    pub said: &'a mut Tensor,
    pub samplers: &'a mut [Sampler],
    pub logits: &'a [Tensor],
}

pub fn say<'m>(
    gpu: &Cuda,
    depth: &Depth,
    program: &Program,
    scratch: &mut Scratch,
    frame: Frame,
    drawn: impl Fn(usize) -> Option<&'m Tensor>,
) -> Result<()> {
    let Frame { h, said, samplers, logits } = frame;
    let (layers, e, batch) = (&depth.layers, &depth.extents, said.shape()[0]);
    let limits = gpu.driver().limits();
    let fits = |rows: usize| (rows * program.row_bytes).saturating_add(STATIC_BYTES) <= limits.max_shared_bytes as usize;
    let pass = PASSES.into_iter().rev().find(|&rows| (rows == 1 || batch > 1) && fits(rows)).unwrap_or(1);
    let mut words = vec![
        program.phases.device_ptr(),
        scratch.barrier.device_ptr(),
        h.device_ptr(),
        scratch.x.device_ptr(),
        scratch.wide.device_ptr(),
        scratch.qkv.device_ptr(),
        scratch.sums.device_ptr(),
        said.device_ptr(),
    ];
    let slots = |words: &mut Vec<u64>, of: &dyn Fn(usize) -> u64| {
        words.extend((0..MOST_STEPS).map(|k| if k < layers.steps.len() { of(k) } else { 0 }));
    };
    slots(&mut words, &|k| logits[k].device_ptr());
    slots(&mut words, &|k| drawn(k).map_or(0, Tensor::device_ptr));
    slots(&mut words, &|k| samplers[k].counters.device_ptr());
    slots(&mut words, &|k| samplers[k].settings.device_ptr());
    let int = |n| index(NAME, n);
    words.extend([
        pair(int(program.count)?, int(batch)?),
        pair(int(said.shape()[1])?, int(layers.steps.len())?),
        pair(int(e.width)?, int(layers.heads)?),
        pair(int(layers.kv_heads)?, int(e.head_dim)?),
    ]);
    let launch = Launch {
        grid: [limits.multiprocessors.min(int(program.blocks)? as u32).max(1), 1, 1],
        block: [THREADS as u32, 1, 1],
        shared_bytes: (pass * program.row_bytes) as u32,
        cooperative: true,
    };
    let kernel = gpu.kernel(&SOURCE, &kernel_name(NAME, &format!("depth_{pass}"), h)?)?;
    // SAFETY: `Frame` of depth.cu. `Layers::extents` has checked every matrix that the phases name, and the depth transformer holds
    // them; `say` the operands; the scratch is of its batch. There is no more than one block a multiprocessor, so all are resident.
    unsafe { kernel.launch(launch, &mut [Arg::from(&words[..])]) }
}
