//! The layers of a language model over audio codes, with their weights.

use std::sync::Arc;

use swara_kernels::cpu::parallel;
use swara_kernels::ops::attention::Kept;
use swara_kernels::ops::depth;
use swara_kernels::ops::embedding::{self, Ids, Tables};
use swara_kernels::ops::layer_norm;
use swara_kernels::ops::linear::{self, Fused, Weight as Matrix};
use swara_kernels::quantized::{Bits, Quantized};
use swara_kernels::{DType, Device, Tensor, release_idle};

use super::Format;
use super::conditions::ReadyConditioner;
use super::config::{Conditioner, Config, Shape};
use crate::transformer::{Block, Norm, ReadyBlock, ReadyNorm};
use crate::weights::{Reader, as_type, quantized, values_dtype};
use crate::{Error, Result};

/// Of the norm behind an embedding.
const EMBEDDING_EPSILON: f64 = 1e-5;

/// Rows for ids, of low rank or full.
pub(super) struct Embedding {
    name: String,
    /// A row that is another's as well.
    as_well: Option<[usize; 2]>,
    rows: usize,
    rank: Option<usize>,
    width: usize,
    norm: bool,
    /// Whether an id is of two texts: there are two tables then, of the first and of the second.
    muxed: bool,
}

impl Embedding {
    /// Rows of each of its tables.
    fn sizes(&self) -> impl Iterator<Item = usize> {
        std::iter::repeat_n(self.rows, if self.muxed { 2 } else { 1 })
    }

    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let name = &self.name;
        let mut tensors = vec![(format!("{name}.weight"), vec![self.rows, self.rank.unwrap_or(self.width)])];
        if self.norm {
            tensors.extend(Norm::Layer.tensors(&format!("{name}.norm"), self.rank.unwrap_or(self.width)));
        }
        tensors.extend(self.rank.map(|rank| (format!("{name}.low_rank.weight"), vec![self.width, rank])));
        if self.muxed {
            let shape = vec![self.width, self.rank.unwrap_or(self.width)];
            tensors.extend(["out1", "out2"].map(|part| (format!("{name}.{part}.weight"), shape.clone())));
        }
        tensors
    }

    /// Whether its rows are those of a tensor, but for one that is another's.
    pub(super) fn is_plain(&self) -> bool {
        !self.norm && self.rank.is_none() && !self.muxed
    }

    pub(super) fn weight(&self) -> String {
        format!("{}.weight", self.name)
    }

    /// Rows as codes of 8 bits, where they are kept so.
    fn codes(&self, from: &mut Reader) -> Result<Option<Quantized>> {
        let found = if self.is_plain() { from.table(&self.weight())? } else { None };
        let Some(mut found) = found else { return Ok(None) };
        if let Some([from, to]) = self.as_well {
            for part in [&mut found.codes, &mut found.scales] {
                let width = part.shape().last_dim();
                let row = part.part(from * width, [1, width])?;
                part.write_rows(to, &row)?;
            }
        }
        Ok(Some(found))
    }

    /// Rows `[rows, width]` as they are kept: what follows an embedding is the same for every id.
    fn read(&self, from: &mut Reader) -> Result<Tensor> {
        let name = &self.name;
        if self.is_plain() && self.as_well.is_none() {
            return from.weight(&self.weight())?.into_tensor();
        }
        let mut rows = from.parameter(&self.weight())?;
        if self.norm {
            let [weight, bias] = ["weight", "bias"].map(|part| from.parameter(&format!("{name}.norm.{part}")));
            rows = layer_norm::forward(&rows, &weight?, &bias?, EMBEDDING_EPSILON)?;
        }
        if let Some([from, to]) = self.as_well {
            let width = rows.shape().last_dim();
            let row = rows.part(from * width, [1, width])?;
            rows.write_rows(to, &row)?;
        }
        // moshi has a projection of low rank beside those of two texts, and does not use it.
        let parts: &[&str] = match (self.muxed, self.rank) {
            (true, _) => &["out1", "out2"],
            (false, Some(_)) => &["low_rank"],
            (false, None) => return as_type(rows, from.dtype()),
        };
        let mut tables = Tensor::empty(&rows.device(), from.dtype(), [parts.len() * self.rows, self.width])?;
        for (i, part) in parts.iter().enumerate() {
            let widen = Matrix::for_product(&from.parameter(&format!("{name}.{part}.weight"))?, linear::Product::Tiles)?;
            tables.write_rows(i * self.rows, &as_type(linear::forward(&rows, &widen, Fused::default())?, from.dtype())?)?;
        }
        Ok(tables)
    }
}

/// What the model is made of, by name and shape.
pub(super) struct Layers {
    /// Text, then the audio columns: in this order they are added up.
    pub fed: Vec<Embedding>,
    pub temporal: Vec<Block>,
    pub depth: Option<DepthLayers>,
    pub conditioners: Vec<Conditioner>,
}

pub(super) struct DepthLayers {
    /// Of the text, then of the codes but the last.
    pub said: Vec<Embedding>,
    /// Of each set of weights.
    pub blocks: Vec<Vec<Block>>,
    pub norm: Option<(Norm, f64)>,
}

impl Layers {
    pub fn new(config: &Config) -> Result<Layers> {
        let embedding = |name: String, rows: usize, width, rank| Embedding {
            muxed: config.demux_second_text_stream && name.ends_with("text_emb"),
            name,
            as_well: None,
            rows: rows + 1,
            rank,
            width,
            norm: config.norm_emb,
        };
        let mut fed = vec![embedding("text_emb".into(), config.text_card, config.dim, None)];
        // Hibiki says now and then that its text ends when it does not: moshi feeds it padding then.
        fed[0].as_well = (config.model_type == "hibiki" && config.text_card >= 3).then_some([3, 2]);
        fed.extend((0..config.n_q).map(|k| embedding(format!("emb.{k}"), config.card, config.dim, None)));
        let depth = match config.dep_q {
            0 => None,
            steps => {
                let code = |k: usize| {
                    let (name, rows) = match k {
                        0 => ("depformer_text_emb".into(), config.text_card),
                        _ => (format!("depformer_emb.{}", k - 1), config.card),
                    };
                    embedding(name, rows, config.depformer_dim, config.depformer_low_rank_embeddings)
                };
                let shape = config.depth()?;
                let set =
                    |set: usize| blocks(&shape, config.depth_hidden(set), None, false, |layer| format!("depformer.{set}.layers.{layer}"));
                Some(DepthLayers {
                    said: (0..steps).map(code).collect(),
                    blocks: (0..config.sets()).map(set).collect(),
                    norm: config.depth_norm()?,
                })
            }
        };
        let name = |layer| format!("transformer.layers.{layer}");
        let temporal = blocks(&config.temporal()?, config.hidden(), config.context, config.cross_attention, name);
        Ok(Layers { fed, temporal, depth, conditioners: config.conditioners()? })
    }

    /// Tensors by the names of moshi, but for the depth transformer, whose sets of weights are `depformer.SET.layers.LAYER`.
    pub fn tensors(&self, config: &Config) -> Result<Vec<(String, Vec<usize>)>> {
        let dense = |name: String, outputs: usize, inputs: usize, bias: bool| {
            let bias = bias.then(|| (format!("{name}.bias"), vec![outputs]));
            [(format!("{name}.weight"), vec![outputs, inputs])].into_iter().chain(bias)
        };
        let mut tensors: Vec<_> = self.fed.iter().flat_map(Embedding::tensors).collect();
        tensors.extend(self.temporal.iter().flat_map(Block::tensors));
        tensors.extend(config.temporal()?.norm.tensors("out_norm", config.dim));
        tensors.extend(dense("text_linear".into(), config.text_outputs(), config.dim, config.bias_proj));
        for k in 0..config.extra_heads_num_heads {
            tensors.extend(dense(format!("extra_heads.{k}"), config.extra_heads_dim, config.dim, false));
        }
        tensors.extend(self.conditioners.iter().flat_map(|conditioner| conditioner.tensors(config.dim)));
        if let Some(depth) = &self.depth {
            let width = config.depformer_dim;
            tensors.extend(depth.said.iter().flat_map(Embedding::tensors));
            tensors.extend(depth.blocks.iter().flatten().flat_map(Block::tensors));
            tensors.extend((0..config.inputs()).flat_map(|i| dense(format!("depformer_in.{i}"), width, config.dim, false)));
            for k in 0..config.dep_q {
                tensors.extend(depth.norm.iter().flat_map(|(norm, _)| norm.tensors(&format!("depformer_norms.{k}"), width)));
                tensors.extend(dense(format!("linears.{k}"), config.card, width, config.bias_proj));
            }
        }
        Ok(tensors)
    }
}

fn blocks(shape: &Shape, hidden: usize, window: Option<usize>, crossed: bool, name: impl Fn(usize) -> String) -> Vec<Block> {
    let block = |layer: usize| Block {
        name: name(layer),
        width: shape.width,
        heads: shape.heads,
        kv_heads: shape.kv_heads,
        head_dim: shape.head_dim(),
        hidden,
        window,
        rotary: shape.rotary,
        norm: shape.norm,
        epsilon: shape.epsilon,
        feed_forward: shape.feed_forward,
        scaled: shape.scaled,
        crossed,
    };
    (0..shape.layers).map(block).collect()
}

/// An empty vector for so many values.
pub(crate) fn room(values: usize) -> Result<Vec<f32>> {
    let mut room = Vec::new();
    let reserved = room.try_reserve_exact(values);
    reserved.map_err(|_| Error::Argument(format!("no memory for {values} values of a language model")))?;
    Ok(room)
}

/// Rows as values, or as codes with a scale each.
enum Table {
    Values(Arc<Tensor>),
    /// Of sums that are of this type.
    Codes(Box<Quantized>, DType),
}

/// Tables one below the other.
pub(crate) struct Rows {
    table: Table,
    tables: Tables,
    /// Rows of the first two tables, where an id names one of both.
    muxed: Option<usize>,
}

impl Rows {
    /// Of two texts in one are the first of them, if any.
    pub(super) fn read(embeddings: &[Embedding], device: &Device, from: &mut Reader) -> Result<Rows> {
        let read = embeddings.iter().map(|embedding| embedding.read(from));
        let rows = Rows::stacked(&embeddings.iter().flat_map(Embedding::sizes).collect::<Vec<_>>(), read, device)?;
        Ok(rows.muxed_as(embeddings))
    }

    fn muxed_as(self, embeddings: &[Embedding]) -> Rows {
        Rows { muxed: embeddings.first().filter(|first| first.muxed).map(|first| first.rows), ..self }
    }

    /// As [`read`](Self::read), in codes of 8 bits, to which what is none is rounded, for sums of type `values`.
    fn read_codes(embeddings: &[Embedding], device: &Device, from: &mut Reader, values: DType) -> Result<Rows> {
        let tables = Tables::new(device, &embeddings.iter().flat_map(Embedding::sizes).collect::<Vec<_>>())?;
        let (rows, width) = (tables.rows(), embeddings.first().map_or(0, |first| first.width));
        let mut codes = Tensor::empty(device, DType::U8, [rows, width])?;
        let mut scales = Tensor::empty(device, DType::F32, [rows, 1])?;
        let mut at = 0;
        for embedding in embeddings {
            let part = match embedding.codes(from)? {
                Some(codes) => codes,
                None => quantized(&embedding.name, &embedding.read(&mut from.in_f32())?, Bits::Eight)?,
            };
            codes.write_rows(at, &part.codes)?;
            scales.write_rows(at, &part.scales)?;
            at += part.codes.shape().rows();
        }
        let table = Table::Codes(Box::new(Quantized { bits: Bits::Eight, codes, scales, mins: None }), values);
        Ok(Rows { table, tables, muxed: None }.muxed_as(embeddings))
    }

    /// Tables of such `sizes`, in `parts` that are one or several whole ones.
    pub fn stacked(sizes: &[usize], mut parts: impl ExactSizeIterator<Item = Result<Tensor>>, device: &Device) -> Result<Rows> {
        let tables = Tables::new(device, sizes)?;
        let mut weight = parts.next().unwrap_or_else(|| Err(Error::Argument("tables of nothing".to_owned())))?;
        if parts.len() > 0 {
            let (mut at, first) = (weight.shape().rows(), weight);
            weight = Tensor::empty(device, first.dtype(), [tables.rows(), first.shape().last_dim()])?;
            weight.write_rows(0, &first)?;
            for part in parts {
                let part = part?;
                weight.write_rows(at, &part)?;
                at += part.shape().rows();
            }
        }
        Ok(Rows { table: Table::Values(Arc::new(weight)), tables, muxed: None })
    }

    /// The rows, unless they are codes.
    pub fn values(&self) -> Option<Arc<Tensor>> {
        match &self.table {
            Table::Values(weight) => Some(Arc::clone(weight)),
            Table::Codes(..) => None,
        }
    }

    pub fn bytes(&self) -> usize {
        match &self.table {
            Table::Values(weight) => weight.bytes(),
            Table::Codes(codes, _) => codes.bytes(),
        }
    }

    /// `[B, 1, width]`: the rows of the ids, added up.
    pub fn sum(&self, ids: Ids) -> Result<Tensor> {
        self.sum_onto(ids, None)
    }

    /// As [`sum`](Self::sum), onto rows `[B, 1, width]`.
    pub fn sum_onto(&self, (ids, first): Ids, onto: Option<&Tensor>) -> Result<Tensor> {
        let ids = if let Some(size) = self.muxed { &embedding::split(ids, size)? } else { ids };
        let onto = onto.map(|onto| (onto, 0));
        let y = match &self.table {
            Table::Values(weight) => embedding::forward(weight, &self.tables, (ids, first), onto)?,
            Table::Codes(table, dtype) => {
                embedding::forward_codes((&table.codes, &table.scales), &self.tables, (ids, first), onto, *dtype)?
            }
        };
        let [batch, width] = [0, 1].map(|axis| y.shape()[axis]);
        Ok(y.reshape([batch, 1, width])?)
    }
}

/// `x W^T + b`.
pub(crate) struct Dense {
    pub weight: Arc<Matrix>,
    bias: Option<Arc<Tensor>>,
}

impl Dense {
    pub fn read(name: &str, bias: bool, from: &mut Reader) -> Result<Dense> {
        Ok(Dense {
            weight: Arc::new(from.matrix(&format!("{name}.weight"))?),
            bias: bias.then(|| from.parameter(&format!("{name}.bias")).map(Arc::new)).transpose()?,
        })
    }

    pub fn bytes(&self) -> usize {
        self.weight.bytes()
    }

    pub fn run(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        Ok(linear::forward(x, &self.weight, Fused { bias: self.bias.as_deref(), residual, ..Default::default() })?)
    }

    /// With another bias.
    pub fn run_with(&self, x: &Tensor, bias: Option<&Tensor>, residual: &Tensor) -> Result<Tensor> {
        Ok(linear::forward(x, &self.weight, Fused { bias, residual: Some(residual), ..Default::default() })?)
    }
}

/// The temporal transformer and what is around it.
pub(super) struct Temporal {
    pub fed: Rows,
    pub blocks: Vec<ReadyBlock>,
    norm: ReadyNorm,
    epsilon: f64,
    pub text: Dense,
    pub heads: Vec<Dense>,
    /// Of what conditions are for.
    pub conditioners: Vec<ReadyConditioner>,
}

impl Temporal {
    /// Of the matrices, each of which a step reads once.
    pub fn bytes(&self) -> usize {
        let heads = std::iter::once(&self.text).chain(&self.heads);
        self.blocks.iter().map(ReadyBlock::bytes).chain(heads.map(Dense::bytes)).sum()
    }

    /// Keys and values of a row that is attended to, in bytes.
    pub fn attended(&self, values: DType) -> usize {
        self.blocks.iter().filter(|block| block.layer.crossed).map(|block| 2 * block.layer.width * values.bytes()).sum()
    }

    /// Keys and values of a step, in bytes.
    pub fn remembered(&self, kept: Kept) -> usize {
        self.blocks.iter().map(|block| 2 * block.layer.kv_heads * kept.bytes(block.layer.head_dim)).sum()
    }

    pub fn norm(&self, x: &Tensor) -> Result<Tensor> {
        self.norm.run(x, self.epsilon)
    }
}

/// The depth transformer: what it is given and what it says, step by step.
pub(super) struct Depth {
    /// For each step.
    pub said: Vec<Rows>,
    /// Sines of the position of each step, which is the same in every frame.
    sines: Vec<Tensor>,
    inputs: Vec<Dense>,
    /// For each set of weights.
    pub blocks: Vec<Vec<ReadyBlock>>,
    norms: Vec<(ReadyNorm, f64)>,
    pub linears: Vec<Dense>,
    /// All of it as one launch a frame, or why there is none.
    pub in_one: std::result::Result<depth::Depth, String>,
}

impl Depth {
    /// Of the matrices that step `k` reads.
    pub fn bytes(&self, config: &Config, k: usize) -> usize {
        let blocks = self.blocks[config.set(k)].iter().map(ReadyBlock::bytes).sum::<usize>();
        blocks + self.inputs[config.input(k)].bytes() + self.linears[k].bytes()
    }

    /// What step `k` begins with, after `said`.
    pub fn first(&self, config: &Config, k: usize, h: &Tensor, said: &Tensor) -> Result<Tensor> {
        self.inputs[config.input(k)].run_with(h, self.sines.get(k), said)
    }

    fn layers(&self, config: &Config, dtype: DType) -> std::result::Result<depth::Layers, String> {
        let Some(first) = self.blocks.first().and_then(|set| set.first()) else { return Err("no layers".to_owned()) };
        if !self.sines.is_empty() {
            return Err("sines of positions".to_owned());
        }
        if self.said.iter().any(|said| said.muxed.is_some()) {
            return Err("two texts in one token".to_owned());
        }
        let set = |set: &Vec<ReadyBlock>| set.iter().map(ReadyBlock::in_one_launch).collect();
        let step = |(k, linear): (usize, &Dense)| {
            let norm = match self.norms.get(k) {
                Some((norm, _)) => Some(norm.rms().ok_or("norms that centre")?),
                None => None,
            };
            let said = self.said[k].values().ok_or("tables of codes")?;
            let (linear, bias) = (Arc::clone(&linear.weight), linear.bias.clone());
            Ok(depth::Step { said, input: config.input(k), set: config.set(k), norm, linear, bias })
        };
        Ok(depth::Layers {
            dtype,
            heads: first.layer.heads,
            kv_heads: first.layer.kv_heads,
            epsilon: first.layer.epsilon,
            h_first: false,
            rope: first.turns(),
            last_epsilon: self.norms.first().map_or(0.0, |(_, epsilon)| *epsilon),
            inputs: self.inputs.iter().map(|input| Arc::clone(&input.weight)).collect(),
            sets: self.blocks.iter().map(set).collect::<std::result::Result<_, &str>>()?,
            steps: self.linears.iter().enumerate().map(step).collect::<std::result::Result<_, &str>>()?,
        })
    }

    /// Logits `[B, 1, card]` of step `k`.
    pub fn logits(&self, k: usize, y: &Tensor) -> Result<Tensor> {
        match self.norms.get(k) {
            Some((norm, epsilon)) => self.linears[k].run(&norm.run(y, *epsilon)?, None),
            None => self.linears[k].run(y, None),
        }
    }
}

/// A depth transformer as one launch a frame, or why it is none.
pub(crate) fn in_one(
    device: &Device,
    layers: impl FnOnce() -> std::result::Result<depth::Layers, String>,
) -> Result<std::result::Result<depth::Depth, String>> {
    if *device == Device::Cpu {
        return Ok(Err("the CPU launches nothing".to_owned()));
    }
    match layers().map(depth::Depth::new) {
        Ok(Ok(whole)) => Ok(Ok(whole)),
        // The plain way is still there.
        Ok(Err(refused)) => Ok(Err(refused.to_string())),
        Err(why) => Ok(Err(why)),
    }
}

/// Blocks with their weights. On the CPU each thread reads some: most of it is copying into memory that the system has yet to give.
pub(crate) fn ready(blocks: &[Block], device: &Device, from: &Reader) -> Result<Vec<ReadyBlock>> {
    let some = &|blocks: &[Block]| -> Result<Vec<ReadyBlock>> {
        let mut from = from.beside();
        blocks.iter().map(|block| ReadyBlock::new(block, device, &mut from)).collect()
    };
    let threads = if *device == Device::Cpu { parallel::threads() } else { 1 };
    let (mine, others) = blocks.split_at(blocks.len().div_ceil(threads.max(1)).min(blocks.len()));
    std::thread::scope(|scope| {
        let read = |part| std::thread::Builder::new().spawn_scoped(scope, move || some(part)).map_err(|_| part);
        // What no thread could be had for is read here.
        let others: Vec<_> = others.chunks(mine.len().max(1)).map(read).collect();
        let mut ready = some(mine)?;
        for part in others {
            ready.extend(match part {
                Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?,
                Err(part) => some(part)?,
            });
        }
        Ok(ready)
    })
}

/// All layers with their weights.
pub(super) fn read(
    layers: &Layers,
    config: &Config,
    device: &Device,
    format: Format,
    mut from: Reader,
) -> Result<(Temporal, Option<Depth>)> {
    let from = &mut from;
    let shape = config.temporal()?;
    // Of a file that has tables as codes, those of codes, which are small, among them.
    let last = layers.fed.iter().rev().find(|embedding| embedding.is_plain());
    let kept = last.map(|last| from.beside().table(&last.weight())).transpose()?.flatten();
    let coded = format.int8_tables || kept.is_some();
    let fed = match coded {
        true => Rows::read_codes(&layers.fed, device, from, values_dtype(device, format.dtype))?,
        false => Rows::read(&layers.fed, device, from)?,
    };
    let used = config.used()?;
    let conditioners = used.iter().map(|conditioner| ReadyConditioner::read(conditioner, config.dim, from)).collect::<Result<_>>()?;
    release_idle();
    from.bits = format.temporal;
    let blocks = ready(&layers.temporal, device, from)?;
    release_idle();
    from.bits = format.heads;
    let temporal = Temporal {
        fed,
        conditioners,
        blocks,
        norm: ReadyNorm::new(shape.norm, "out_norm", from)?,
        epsilon: shape.epsilon,
        text: Dense::read("text_linear", config.bias_proj, from)?,
        heads: (0..config.extra_heads_num_heads).map(|k| Dense::read(&format!("extra_heads.{k}"), false, from)).collect::<Result<_>>()?,
    };
    release_idle();
    let Some(depth) = &layers.depth else { return Ok((temporal, None)) };
    let linears = (0..config.dep_q).map(|k| Dense::read(&format!("linears.{k}"), config.bias_proj, from)).collect::<Result<_>>()?;
    from.bits = format.depth;
    let mut norms = Vec::new();
    if let Some((norm, epsilon)) = depth.norm {
        for k in 0..config.dep_q {
            norms.push((ReadyNorm::new(norm, &format!("depformer_norms.{k}"), from)?, epsilon));
        }
    }
    let mut sines = Vec::new();
    if let Some(of) = config.depth()?.sines {
        for k in 0..config.dep_q {
            sines.push(from.beside_values(device, &of.row(config.depformer_dim, k))?);
        }
    }
    let mut depth = Depth {
        said: depth.said.iter().map(|e| Rows::read(std::slice::from_ref(e), device, from)).collect::<Result<_>>()?,
        sines,
        inputs: (0..config.inputs()).map(|i| Dense::read(&format!("depformer_in.{i}"), false, from)).collect::<Result<_>>()?,
        blocks: depth.blocks.iter().map(|set| ready(set, device, from)).collect::<Result<_>>()?,
        norms,
        linears,
        in_one: Err(String::new()),
    };
    depth.in_one = in_one(device, || depth.layers(config, values_dtype(device, format.dtype)))?;
    release_idle();
    Ok((temporal, Some(depth)))
}

/// What a model can be kept in on `device`.
pub(crate) fn check_format(device: &Device, format: Format) -> Result<()> {
    let dtype = format.dtype;
    match (device, dtype) {
        (Device::Cpu, DType::F32 | DType::F64 | DType::BF16) | (Device::Cuda(_), DType::F32 | DType::BF16 | DType::F16) => {}
        _ => return Err(Error::Argument(format!("a language model in {dtype} on {device:?}"))),
    }
    if format.context == Some(0) {
        return Err(Error::Argument("a language model that sees no step".to_owned()));
    }
    match format.kept {
        Some(Kept::Values(kept)) if kept != values_dtype(device, dtype) && !(*device == Device::Cpu && kept == DType::BF16) => {
            Err(Error::Argument(format!("keys and values in {kept} beside a language model in {dtype} on {device:?}")))
        }
        _ => Ok(()),
    }
}
