//! The list of phases, the frame that a launch is told of, and its shape.

use super::{Depth, Extents, Layers, MOST_STEPS, MOST_STREAMS, NAME, SOURCE};
use crate::device::Arg;
use crate::driver::Launch;
use crate::ops::attention::Positions;
use crate::ops::launch::index;
use crate::ops::linear::{Stored, Weight};
use crate::ops::rope::{self, Rope, Style};
use crate::ops::sample::Sampler;
use crate::quantized::Bits;
use crate::{Cuda, DType, Device, Error, Result, Tensor};

/// As in depth.cu.
const THREADS: usize = 256;
const ROWS: usize = 4;
/// Rows of x that a pass takes, of one stream and of several.
const PASSES: [usize; 2] = [1, 4];
/// As `__launch_bounds__` in depth.cu: each makes every phase's input for itself.
const BLOCKS_A_MULTIPROCESSOR: u32 = 1;
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
const PHASE_WORDS: usize = 13;
type Phase = [u64; PHASE_WORDS];
/// Whether all blocks meet behind it.
const LAST_WORD: usize = PHASE_WORDS - 1;
const MEETS: u64 = 1 << 32;

/// What every frame runs through.
pub struct Program {
    /// i32 `[phases, 2 PHASE_WORDS]`: pointers into what the layers hold.
    pub phases: Tensor,
    count: usize,
    /// `[1, positions, 1, head_dim]` f32: cosine and sine for each pair of a head, where it has them.
    turns: Option<Tensor>,
    passes: Vec<Pass>,
}

/// A kernel that the device runs.
struct Pass {
    rows: usize,
    shared_bytes: u32,
    /// All resident at once, and none without something to do.
    blocks: u32,
}

fn pair(low: i32, high: i32) -> u64 {
    u64::from(low as u32) | u64::from(high as u32) << 32
}

/// What a phase has beside its matrix.
#[derive(Clone, Copy, Default)]
struct Beside<'a> {
    norm: Option<(&'a Tensor, f64)>,
    bias: Option<&'a Tensor>,
    begin: Option<Begin<'a>>,
}

/// What x is the sum of where it begins.
#[derive(Clone, Copy, Default)]
struct Begin<'a> {
    /// Rows of ids.
    said: Option<&'a Tensor>,
    input: Option<usize>,
}

/// Of a phase.
#[derive(Clone, Copy, Default)]
struct At {
    step: usize,
    position: usize,
    layer: usize,
}

struct List<'a> {
    layers: &'a Layers,
    phases: Vec<Phase>,
    longest: usize,
    blocks: usize,
}

impl List<'_> {
    fn product(&mut self, work: Work, at: At, weight: &Weight, beside: Beside) -> Result<()> {
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
        let Begin { said, input } = beside.begin.unwrap_or_default();
        // No index of what a frame computes overflows, either.
        int(outputs.saturating_mul(MOST_STREAMS))?;
        self.phases.push([
            pointers[0],
            pointers[1],
            pointers[2],
            pointer(beside.bias),
            pointer(beside.norm.map(|(norm, _)| norm)),
            pointer(said),
            pair(work as i32, int(at.step)?),
            pair(int(at.layer)?, int(outputs)?),
            pair(int(inputs)?, int(scaled)?),
            pair(bits, int(group)?),
            pair(int(said.map_or(0, |said| said.shape()[0]))?, input.map_or(Ok(-1), int)?),
            pair(int(at.position)?, beside.begin.is_some().into()),
            u64::from((beside.norm.map_or(0.0, |(_, epsilon)| epsilon) as f32).to_bits()) | MEETS,
        ]);
        let (columns, own) = if work == Work::Widen { (outputs / 2, ROWS / 2) } else { (outputs, ROWS) };
        self.blocks = self.blocks.max(columns.div_ceil(own).div_ceil(THREADS / group));
        self.longest = self.longest.max(inputs);
        Ok(())
    }

    /// A row through the layers of a set; if it is only `seen` by later ones, as far as they see it.
    fn row(&mut self, at: At, set: usize, begin: Begin, seen: bool) -> Result<()> {
        let layers = self.layers;
        let last = layers.sets[set].len() - 1;
        for (layer, block) in layers.sets[set].iter().enumerate() {
            let at = At { layer, ..at };
            let [before, between] = [0, 1].map(|i: usize| Some((&*block.norms[i], layers.epsilon)));
            let begin = (layer == 0).then_some(begin);
            self.product(Work::Project, at, &block.project, Beside { norm: before, begin, ..Default::default() })?;
            if seen && layer == last {
                return Ok(());
            }
            self.product(Work::Attend, at, &block.out, Beside::default())?;
            self.product(Work::Widen, at, &block.widen, Beside { norm: between, ..Default::default() })?;
            self.product(Work::Narrow, at, &block.narrow, Beside::default())?;
        }
        Ok(())
    }

    fn draw(&mut self, step: usize, card: usize) -> Result<()> {
        let int = |n| index(NAME, n);
        let mut phase = [0; PHASE_WORDS];
        phase[6] = pair(Work::Draw as i32, int(step)?);
        phase[7] = pair(0, int(card)?);
        phase[LAST_WORD] = MEETS;
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
        if extents.card > crate::ops::sample::MAX_LOGITS {
            return refuse(format!("{} logits", extents.card));
        }
        let half_split = layers.rope.as_ref().is_some_and(|rope| rope.style() == Style::HalfSplit);
        if half_split && vectors < 2 {
            return refuse(format!("heads of {}, expected a vector of {lanes} of each half", extents.head_dim));
        }
        if !gpu.driver().limits().cooperative {
            return refuse("the device has no cooperative launches".to_owned());
        }
        if let Some(step) = layers.steps.iter().find(|step| step.said.dtype() != dtype) {
            return Err(Error::dtype(NAME, "said", dtype.name(), step.said.dtype()));
        }
        let mut list = List { layers, phases: Vec::new(), longest: 0, blocks: 1 };
        let h_first = usize::from(layers.h_first);
        for (input, weight) in layers.inputs.iter().enumerate().take(if layers.h_first { 1 } else { usize::MAX }) {
            let begin = Some(Begin { said: None, input: Some(input) });
            list.product(Work::Input, At::default(), weight, Beside { begin, ..Default::default() })?;
        }
        // They read h alone.
        let inputs = list.phases.len();
        list.phases[..inputs - 1].iter_mut().for_each(|phase| phase[LAST_WORD] = 0);
        if layers.h_first {
            list.row(At::default(), layers.steps[0].set, Begin { said: None, input: Some(0) }, true)?;
        }
        for (k, step) in layers.steps.iter().enumerate() {
            let at = At { step: k, position: h_first + k, layer: 0 };
            let begin = Begin { said: Some(&step.said), input: (!layers.h_first).then_some(step.input) };
            list.row(at, step.set, begin, false)?;
            let norm = step.norm.as_ref().map(|norm| (&**norm, layers.last_epsilon));
            list.product(Work::Logits, at, &step.linear, Beside { norm, bias: step.bias.as_deref(), ..Default::default() })?;
            list.draw(k, extents.card)?;
        }
        if let Some(last) = list.phases.last_mut() {
            last[LAST_WORD] = 0;
        }
        let row_bytes = list.longest.saturating_mul(dtype.bytes());
        let passes = Pass::all(gpu, dtype, row_bytes, list.blocks)?;
        let turns = layers.rope.as_ref().map(|rope| turns(rope, layers.inputs[0].device(), extents)).transpose()?;
        let words: Vec<i32> = list.phases.iter().flatten().flat_map(|&word| [word as i32, (word >> 32) as i32]).collect();
        let count = list.phases.len();
        Ok(Program { phases: Tensor::from_slice(&Device::Cuda(gpu.clone()), &words, [count, 2 * PHASE_WORDS])?, count, turns, passes })
    }
}

impl Pass {
    /// Those that the device has room for, the most rows last.
    fn all(gpu: &Cuda, dtype: DType, row_bytes: usize, blocks: usize) -> Result<Vec<Pass>> {
        let limits = gpu.driver().limits();
        let mut passes = Vec::new();
        for rows in PASSES {
            let shared_bytes = rows.saturating_mul(row_bytes);
            if shared_bytes.saturating_add(STATIC_BYTES) > limits.max_shared_bytes as usize {
                break;
            }
            let kernel = gpu.kernel(&SOURCE, &format!("depth_{rows}_{dtype}"))?;
            let resident = kernel.resident_blocks(THREADS as u32, shared_bytes as u32)?.min(BLOCKS_A_MULTIPROCESSOR);
            let blocks = resident.saturating_mul(limits.multiprocessors).min(index(NAME, blocks)? as u32);
            if blocks > 0 {
                passes.push(Pass { rows, shared_bytes: shared_bytes as u32, blocks });
            }
        }
        match passes.is_empty() {
            true => Err(Error::argument(NAME, format!("rows of {row_bytes} bytes, shared memory of {}", limits.max_shared_bytes))),
            false => Ok(passes),
        }
    }
}

/// As [`Program::turns`]: what becomes of (1, 0).
fn turns(rope: &Rope, device: &Device, extents: &Extents) -> Result<Tensor> {
    let &Extents { positions, head_dim, .. } = extents;
    let first = |i: usize| match rope.style() {
        Style::Interleaved => i.is_multiple_of(2),
        Style::HalfSplit => i < head_dim / 2,
    };
    let row: Vec<f32> = (0..head_dim).map(|i| f32::from(u8::from(first(i)))).collect();
    let ones = Tensor::from_slice(device, &row.repeat(positions), [1, positions, 1, head_dim])?;
    rope::forward(&ones, rope, &Positions::at(device, &[0])?)
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
        let slots = e.layers * e.positions * batch;
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
    let pass = program.passes.iter().rev().find(|pass| pass.rows == 1 || batch > 1);
    let Some(pass) = pass else { return Err(Error::argument(NAME, "no kernel")) };
    let mut words = vec![
        program.phases.device_ptr(),
        scratch.barrier.device_ptr(),
        h.device_ptr(),
        scratch.x.device_ptr(),
        scratch.wide.device_ptr(),
        scratch.qkv.device_ptr(),
        scratch.sums.device_ptr(),
        said.device_ptr(),
        program.turns.as_ref().map_or(0, Tensor::device_ptr),
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
        pair(int(said.shape()[1])?, int(e.positions)?),
        pair(int(layers.heads)?, int(layers.kv_heads)?),
        pair(int(e.head_dim)?, layers.rope.as_ref().is_some_and(|rope| rope.style() == Style::HalfSplit).into()),
    ]);
    let launch = Launch { grid: [pass.blocks, 1, 1], block: [THREADS as u32, 1, 1], shared_bytes: pass.shared_bytes, cooperative: true };
    let kernel = gpu.kernel(&SOURCE, &format!("depth_{}_{}", pass.rows, layers.dtype))?;
    // SAFETY: `Frame` of depth.cu. `Layers::extents` has checked every matrix that the phases name, and the depth transformer holds
    // them; `say` the operands; the scratch is of its batch. All blocks are resident: `Pass::all`.
    unsafe { kernel.launch(launch, &mut [Arg::from(&words[..])]) }
}
