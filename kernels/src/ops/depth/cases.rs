use std::sync::Arc;

use super::{Block, Depth, Layers, MOST_STREAMS, Step};
use crate::case::{Case, Check, Cost, Fill, Input};
use crate::ops::elementwise;
use crate::ops::linear::Weight;
use crate::ops::rope::{Rope, Style};
use crate::ops::sample::{Sampler, Settings};
use crate::quantized::{Bits, Quantized};
use crate::tolerance::Tolerance;
use crate::{DType, Error, Result, Tensor};

/// Of a depth transformer whose sets and inputs the steps take by turns.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub batch: usize,
    pub steps: usize,
    pub sets: usize,
    pub inputs: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub dim: usize,
    pub width: usize,
    pub hidden: usize,
    pub card: usize,
    /// Bits, groups of so many columns, and whether there are minima.
    pub codes: Option<(Bits, usize, bool)>,
    /// Before the logits, and behind them.
    pub norm: bool,
    pub bias: bool,
    /// As a CSM.
    pub h_first: bool,
    pub turned: Option<Style>,
}

pub(super) const SMALL: Shape = Shape {
    batch: 1,
    steps: 3,
    sets: 3,
    inputs: 3,
    layers: 2,
    heads: 4,
    kv_heads: 4,
    head_dim: 16,
    dim: 96,
    width: 64,
    hidden: 96,
    card: 40,
    codes: None,
    norm: false,
    bias: false,
    h_first: false,
    turned: None,
};

impl Shape {
    /// `[N, K]` of the matrices: inputs, blocks, and those of the logits.
    fn matrices(&self) -> Vec<[usize; 2]> {
        let &Shape { width, hidden, head_dim, heads, kv_heads, .. } = self;
        let block = [[(heads + 2 * kv_heads) * head_dim, width], [width, heads * head_dim], [2 * hidden, width], [width, hidden]];
        let mut all = vec![[width, self.dim]; self.inputs];
        (0..self.sets * self.layers).for_each(|_| all.extend(block));
        all.extend(vec![[self.card, width]; self.steps]);
        all
    }

    /// Rows of each table: what is drawn, and one more.
    fn ids(&self) -> usize {
        self.card + 1
    }

    /// In the order of [`Shape::depth`].
    pub fn weights(&self) -> Vec<Input> {
        let mut inputs = Vec::new();
        for [n, k] in self.matrices() {
            let deviation = (k as f64).powf(-0.5);
            let Some((bits, group, mins)) = self.codes else {
                inputs.push(Input::new("weight", [n, k], Fill::Normal(deviation)));
                continue;
            };
            let (steps, mean) = if bits == Bits::Four { (4.8, 7.5) } else { (77.0, 0.0) };
            let scale = deviation / steps;
            inputs.push(Input::new("codes", [n, bits.bytes(k)], Fill::Below(256)).integer(DType::U8));
            inputs.push(Input::new("scales", [n, k / group], Fill::Uniform(0.5 * scale, 1.5 * scale)).f32());
            if mins {
                inputs.push(Input::new("mins", [n, k / group], Fill::Uniform((mean - 1.0) * scale, (mean + 1.0) * scale)).f32());
            }
        }
        let norms = 2 * self.sets * self.layers + if self.norm { self.steps } else { 0 };
        inputs.extend((0..norms).map(|_| Input::new("norm", [self.width], Fill::Uniform(0.5, 1.5)).f32()));
        inputs.extend((0..self.steps).map(|_| Input::normal("said rows", [self.ids(), self.width])));
        if self.bias {
            inputs.extend((0..self.steps).map(|_| Input::new("bias", [self.card], Fill::Uniform(-0.5, 0.5)).f32()));
        }
        inputs
    }

    /// Of what [`Shape::weights`] draws. `dtype` is that of `h`.
    pub fn depth(&self, dtype: DType, tensors: &[Tensor]) -> Result<Depth> {
        let rope = match (self.turned, tensors.first()) {
            (Some(style), Some(first)) => Some(Arc::new(Rope::new(&first.device(), self.head_dim, 20.0, style)?)),
            _ => None,
        };
        let mut tensors = tensors.iter();
        let mut next = || tensors.next().ok_or_else(|| Error::argument("depth", "too few inputs"));
        let mut matrices = Vec::new();
        for _ in self.matrices() {
            matrices.push(Arc::new(match self.codes {
                None => Weight::new(next()?)?,
                Some((bits, _, mins)) => {
                    let codes = next()?.copy()?;
                    // The oracle's are f64.
                    let scales = elementwise::convert(next()?, DType::F32)?;
                    let mins = if mins { Some(elementwise::convert(next()?, DType::F32)?) } else { None };
                    Weight::quantized(&Quantized { bits, codes, scales, mins })?
                }
            }));
        }
        let mut vector = || Ok::<_, Error>(Arc::new(next()?.copy()?));
        let mut norms = (0..2 * self.sets * self.layers).map(|_| vector()).collect::<Result<Vec<_>>>()?.into_iter();
        let last = (0..self.steps).map(|_| if self.norm { vector().map(Some) } else { Ok(None) }).collect::<Result<Vec<_>>>()?;
        let said = (0..self.steps).map(|_| vector()).collect::<Result<Vec<_>>>()?;
        let biases = (0..self.steps).map(|_| if self.bias { vector().map(Some) } else { Ok(None) }).collect::<Result<Vec<_>>>()?;
        let mut matrices = matrices.into_iter();
        let mut matrix = || matrices.next().ok_or_else(|| Error::argument("depth", "too few matrices"));
        let inputs = (0..self.inputs).map(|_| matrix()).collect::<Result<Vec<_>>>()?;
        let mut sets = Vec::new();
        for _ in 0..self.sets {
            let mut set = Vec::new();
            for _ in 0..self.layers {
                let mut norm = || norms.next().ok_or_else(|| Error::argument("depth", "too few norms"));
                let norms = [norm()?, norm()?];
                set.push(Block { norms, project: matrix()?, out: matrix()?, widen: matrix()?, narrow: matrix()? });
            }
            sets.push(set);
        }
        let mut steps = Vec::new();
        for (k, ((said, norm), bias)) in said.into_iter().zip(last).zip(biases).enumerate() {
            steps.push(Step { said, input: k % self.inputs, set: k % self.sets, norm, linear: matrix()?, bias });
        }
        let (heads, kv_heads) = (self.heads, self.kv_heads);
        Depth::new(Layers { dtype, heads, kv_heads, epsilon: 1e-5, last_epsilon: 1e-4, inputs, h_first: self.h_first, rope, sets, steps })
    }

    fn positions(&self) -> usize {
        self.steps + usize::from(self.h_first)
    }

    /// Bytes of the matrices, each once: the least that there is, where what steps have in common stays in the L2 cache.
    fn weight_bytes(&self, dtype: DType) -> usize {
        let bytes = |[n, k]: [usize; 2]| match self.codes {
            None => n * k * dtype.bytes(),
            Some((bits, group, mins)) => n * (bits.bytes(k) + 4 * k / group * if mins { 2 } else { 1 }),
        };
        self.matrices().into_iter().map(bytes).sum()
    }

    /// Products of one row of x.
    fn products(&self) -> usize {
        let all = self.matrices();
        let block: usize = all[self.inputs..][..4].iter().map(|[n, k]| n * k).sum();
        self.inputs * self.width * self.dim + self.positions() * self.layers * block + self.steps * self.card * self.width
    }
}

pub(super) fn cases() -> Vec<Case> {
    let (four, eight) = (Bits::Four, Bits::Eight);
    let csm = Shape { h_first: true, turned: Some(Style::HalfSplit), sets: 1, inputs: 1, kv_heads: 2, norm: true, card: 41, ..SMALL };
    let short = Shape { steps: 2, sets: 1, inputs: 1, layers: 1, ..SMALL };
    // Of all types.
    let few = [
        Shape { batch: 3, sets: 2, inputs: 1, norm: true, bias: true, kv_heads: 2, ..SMALL },
        Shape { codes: Some((eight, 32, true)), batch: 3, kv_heads: 1, norm: true, ..short },
        Shape { codes: Some((four, 32, true)), sets: 2, layers: 2, ..short },
        csm,
    ];
    let pairs = Shape { turned: Some(Style::Interleaved), batch: 2, ..short };
    let more = [
        SMALL,
        Shape { batch: MOST_STREAMS, steps: 1, card: 136, ..short },
        // Seventeen keys; heads that are not as wide as x; rows that no block, and that several, have one of.
        Shape { batch: 5, steps: 17, inputs: 2, heads: 1, kv_heads: 1, head_dim: 32, width: 32, hidden: 32, dim: 32, ..short },
        Shape { batch: 2, width: 128, heads: 2, kv_heads: 1, head_dim: 128, hidden: 544, inputs: 2, norm: true, ..short },
        Shape { codes: Some((eight, 32, false)), inputs: 2, ..short },
        Shape { codes: Some((four, 32, false)), batch: 6, dim: 1056, bias: true, ..short },
        // A row of more vectors than a block has threads.
        Shape { steps: 1, heads: 1, kv_heads: 1, width: 1056, hidden: 32, dim: 32, ..short },
    ];
    // Bytes of matrices outweigh what blocks exchange.
    let heavy = Shape { steps: 1, heads: 2, head_dim: 64, kv_heads: 2, width: 128, hidden: 256, dim: 256, card: 256, ..short };
    let moshi = Shape {
        steps: 2,
        sets: 2,
        inputs: 2,
        layers: 2,
        heads: 16,
        kv_heads: 16,
        head_dim: 64,
        width: 1024,
        hidden: 2816,
        dim: 1024,
        card: 2048,
        ..heavy
    };
    let csm_1b = Shape {
        steps: 31,
        sets: 1,
        inputs: 1,
        layers: 4,
        heads: 8,
        kv_heads: 2,
        head_dim: 128,
        dim: 2048,
        width: 1024,
        hidden: 8192,
        card: 2051,
        norm: true,
        h_first: true,
        turned: Some(Style::HalfSplit),
        ..SMALL
    };
    let mut cases = Vec::new();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        cases.extend(few.into_iter().chain([heavy, Shape { batch: 3, ..heavy }]).map(|shape| case(shape, dtype, false)));
    }
    cases.extend(more.map(|shape| case(shape, DType::F32, false)));
    cases.push(case(pairs, DType::BF16, false));
    cases.extend([DType::F32, DType::BF16].map(|dtype| case(moshi, dtype, true)));
    cases.push(case(Shape { codes: Some((eight, 1024, false)), hidden: 3072, ..moshi }, DType::BF16, true));
    let in_codes = [Some((eight, 1024, false)), Some((four, 64, true))];
    cases.extend([None].into_iter().chain(in_codes).map(|codes| case(Shape { codes, ..csm_1b }, DType::BF16, true)));
    cases
}

/// Values are rounded eight times a layer, once more where heads are turned, and so is each of what they are added to; norms keep
/// their size.
fn tolerance(shape: &Shape, dtype: DType) -> Tolerance {
    let products = shape.dim + shape.layers * (3 * shape.width + shape.hidden) + shape.width;
    let rounded = if shape.turned.is_some() { 9 } else { 8 };
    Tolerance::accumulate(products).via(dtype, rounded * shape.layers + 4).then_round_to(dtype)
}

/// f32 draws in two streams of three, and the other, as narrower types in all, has its ids given: two devices may round those types
/// apart, and so draw others.
fn case(shape: Shape, dtype: DType, bench: bool) -> Case {
    let Shape { batch, steps, dim, width, hidden, card, .. } = shape;
    let ids = shape.ids();
    let settings = |b: usize| Settings { temperature: [0.0, 0.8][b % 2], top_k: 5, seed: 7, sequence: b as u32 };
    let words = |b: usize| {
        let Settings { temperature, top_k, seed, sequence } = settings(b);
        [temperature.to_bits() as i32, top_k as i32, sequence as i32, seed as i32, (seed >> 32) as i32].map(f64::from)
    };
    let some = dtype == DType::F32;
    let id = |at: usize| if at == 0 { -1.0 } else { (5 * (at - 1) % ids) as f64 };
    let integers = |name, columns: usize, values: Vec<f64>| Input::new(name, [batch, columns], Fill::Values(values)).integer(DType::I32);
    let flags = (0..batch).map(|b| f64::from(u8::from(some && b % 3 != 1))).collect();
    let mut inputs = vec![
        Input::normal("h", [batch, dim]),
        integers("said", 1 + steps, (0..batch * (1 + steps)).map(id).collect()),
        integers("settings", 5, (0..batch).flat_map(words).collect()),
        integers("counters", 2, (0..batch).flat_map(|b| [-2.0, b as f64]).collect()),
        Input::new("mask", [batch], Fill::Values(flags)).integer(DType::U8),
    ];
    let first = inputs.len();
    inputs.extend(shape.weights());
    let projected = (shape.heads + 2 * shape.kv_heads) * shape.head_dim;
    // Written and read; a mask is a sector.
    let exchanged = batch
        * dtype.bytes()
        * (2 * (width + hidden + shape.layers * shape.positions() * projected) + dim + steps * card * if some { 2 } else { 1 })
        + 2 * 4 * shape.inputs * batch * width;
    let phases = 104 * (shape.inputs + shape.positions() * 4 * shape.layers + 2 * steps);
    let parameters =
        4 * width * (2 * shape.sets * shape.layers + if shape.norm { steps } else { 0 }) + if shape.bias { 4 * steps * card } else { 0 };
    let turns = if shape.turned.is_some() { 4 * shape.positions() * shape.head_dim } else { 0 };
    let rows = steps * batch.min(ids) * width * dtype.bytes();
    let codes = match shape.codes {
        None => "",
        Some((Bits::Four, _, false)) => " 4 bits",
        Some((Bits::Four, _, true)) => " 4 bits mins",
        Some((Bits::Eight, _, false)) => " 8 bits",
        Some((Bits::Eight, _, true)) => " 8 bits mins",
    };
    let turned = match shape.turned {
        None => "",
        Some(Style::Interleaved) => ", turned in pairs",
        Some(Style::HalfSplit) => ", turned in halves",
    };
    let before = if shape.h_first { " and a row" } else { "" };
    let Shape { heads, kv_heads, head_dim, layers, .. } = shape;
    let outputs = (0..steps).map(|_| ("logits", Check::Within(tolerance(&shape, dtype))));
    Case {
        label: format!("{batch}x{dim} to {card}, {steps} steps{before} of {layers}x{width}, {heads}/{kv_heads}x{head_dim}{turned}{codes}"),
        dtype,
        inputs,
        outputs: outputs.chain([("said", Check::Exact), ("counters", Check::Exact)]).collect(),
        run: Box::new(move |i| {
            let depth = i.once(|i| shape.depth(i[0].dtype(), &i[first..]))?;
            let mut state = depth.state(batch)?;
            let mut samplers = Vec::new();
            for _ in 0..steps {
                samplers.push(Sampler { settings: i[2].copy()?, counters: i[3].copy()? });
            }
            let mut said = i[1].copy()?;
            let mask = |k: usize| (!some || k.is_multiple_of(2)).then_some(&i[4]);
            let mut outputs = depth.say(&mut state, &i[0], &mut said, &mut samplers, mask)?;
            outputs.extend([said, samplers.swap_remove(0).counters]);
            Ok(outputs)
        }),
        cost: Cost {
            bytes: shape.weight_bytes(dtype) + exchanged + phases + parameters + turns + rows,
            flops: 2 * batch * shape.products(),
        },
        bench,
    }
}
