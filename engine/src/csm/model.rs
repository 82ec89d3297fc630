//! The layers of a CSM, with their weights.

use std::sync::Arc;

use swara_kernels::ops::attention::Kept;
use swara_kernels::ops::depth;
use swara_kernels::ops::linear::{self, Fused, Product, Weight as Matrix};
use swara_kernels::ops::rope::Style;
use swara_kernels::{DType, Device, Tensor, release_idle};

use super::{Config, Drafted, Llama};
use crate::Result;
use crate::lm::Format;
use crate::lm::model::{Dense, Rows, in_one, ready};
use crate::transformer::{Block, Norm, ReadyBlock, ReadyNorm};
use crate::weights::{Reader, as_type, values_dtype};

/// Tensors by our names, those of layers as [`Block`] has them. What checkpoints stack is taken apart here:
///
/// | tensor                    | shape                      |                                                      |
/// |---------------------------|----------------------------|------------------------------------------------------|
/// | `text_emb.weight`         | `[text_vocab_size, width]` |                                                      |
/// | `audio_emb.weight`        | `[K vocab_size, width]`    | one codebook's table below the other                 |
/// | `depth_emb.N.weight`      | `[vocab_size, width]`      | table `N` that the depth decoder reads, `N < K - 1`  |
/// | `depth_in.weight`         | `[depth width, width]`     |                                                      |
/// | `heads.0.weight`          | `[vocab_size, width]`      | of the backbone                                      |
/// | `heads.N.weight`          | `[vocab_size, depth width]`| code `N` of a frame                                  |
pub(super) fn tensors(config: &Config) -> Vec<(String, Vec<usize>)> {
    let (vocab, width, depth) = (config.vocab_size, config.backbone.hidden_size, config.depth.hidden_size);
    let mut tensors = vec![
        ("text_emb.weight".to_owned(), vec![config.text_vocab_size, width]),
        ("audio_emb.weight".to_owned(), vec![config.num_codebooks * vocab, width]),
        ("depth_in.weight".to_owned(), vec![depth, width]),
        ("heads.0.weight".to_owned(), vec![vocab, width]),
    ];
    tensors.extend((1..config.num_codebooks).map(|k| (format!("heads.{k}.weight"), vec![vocab, depth])));
    tensors.extend((1..config.num_codebooks).map(|k| (format!("depth_emb.{}.weight", k - 1), vec![vocab, width])));
    // The style has no say in shapes.
    for (name, llama) in [("backbone", &config.backbone), ("decoder", &config.depth)] {
        tensors.extend(llama.blocks(name, Style::HalfSplit, None).iter().flat_map(Block::tensors));
        tensors.extend(Norm::Rms.tensors(&format!("{name}.norm"), llama.hidden_size));
    }
    tensors
}

/// Layers and the norm behind them.
pub(super) struct Transformer {
    pub blocks: Vec<ReadyBlock>,
    norm: ReadyNorm,
    epsilon: f64,
}

impl Transformer {
    fn read(llama: &Llama, name: &str, style: Style, window: Option<usize>, device: &Device, from: &mut Reader) -> Result<Transformer> {
        let blocks = ready(&llama.blocks(name, style, window), device, from)?;
        release_idle();
        Ok(Transformer { blocks, norm: ReadyNorm::new(Norm::Rms, &format!("{name}.norm"), from)?, epsilon: llama.rms_norm_eps })
    }

    fn bytes(&self) -> usize {
        self.blocks.iter().map(ReadyBlock::bytes).sum()
    }

    pub fn norm(&self, x: &Tensor) -> Result<Tensor> {
        self.norm.run(x, self.epsilon)
    }
}

/// The backbone and what is around it.
pub(super) struct Backbone {
    /// Of the codes, then of the text: in this order they are added up.
    pub fed: Rows,
    pub transformer: Transformer,
    pub head: Dense,
}

impl Backbone {
    /// Of the matrices, each of which a step reads once.
    pub fn bytes(&self) -> usize {
        self.transformer.bytes() + self.head.bytes()
    }

    /// Keys and values of a row, in bytes.
    pub fn remembered(&self, kept: Kept) -> usize {
        self.transformer.blocks.iter().map(|block| 2 * block.layer.kv_heads * kept.bytes(block.layer.head_dim)).sum()
    }
}

/// The depth decoder and what is around it.
pub(super) struct Depth {
    pub input: Dense,
    /// Of each code but the last, projected: what the projection makes of an embedding is the same for every id.
    pub said: Vec<Rows>,
    pub transformer: Transformer,
    /// Of each code but the first.
    pub heads: Vec<Dense>,
    /// All of it as one launch a frame, or why there is none.
    pub in_one: std::result::Result<depth::Depth, String>,
}

impl Depth {
    /// Of the matrices that a frame reads: the layers once for every code but the first.
    pub fn bytes(&self) -> usize {
        self.input.bytes() + self.heads.len() * self.transformer.bytes() + self.heads.iter().map(Dense::bytes).sum::<usize>()
    }

    fn layers(&self, dtype: DType) -> std::result::Result<depth::Layers, String> {
        let Transformer { blocks, norm, epsilon } = &self.transformer;
        let Some(first) = blocks.first() else { return Err("no layers".to_owned()) };
        let norm = norm.rms().ok_or("norms that centre")?;
        let step = |(said, head): (&Rows, &Dense)| {
            let said = said.values().ok_or("tables of codes")?;
            let (linear, norm) = (Arc::clone(&head.weight), Some(Arc::clone(&norm)));
            Ok(depth::Step { said, input: 0, set: 0, norm, linear, bias: None })
        };
        Ok(depth::Layers {
            dtype,
            heads: first.layer.heads,
            kv_heads: first.layer.kv_heads,
            epsilon: first.layer.epsilon,
            last_epsilon: *epsilon,
            inputs: vec![Arc::clone(&self.input.weight)],
            h_first: true,
            rope: first.turns(),
            sets: vec![blocks.iter().map(ReadyBlock::in_one_launch).collect::<std::result::Result<_, &str>>()?],
            steps: self.said.iter().zip(&self.heads).map(step).collect::<std::result::Result<_, &str>>()?,
        })
    }

    /// The same where the first `guessing` layers guess: they are read, and with them a head, for every row but the last of a pass, and
    /// the other layers once a pass.
    pub fn bytes_drafted(&self, guessing: usize, drafted: &Drafted) -> usize {
        let of = |blocks: &[ReadyBlock]| blocks.iter().map(ReadyBlock::bytes).sum::<usize>() as f64;
        let (first, others) = self.transformer.blocks.split_at(guessing);
        let heads = self.heads.iter().map(Dense::bytes).sum::<usize>() as f64;
        let [passes, rows] = [drafted.passes, drafted.rows].map(|n| n as f64 / drafted.frames.max(1) as f64);
        let guesses = if guessing > 0 { (rows - passes) / self.heads.len() as f64 } else { 0.0 };
        self.input.bytes() + (rows * of(first) + passes * of(others) + (1.0 + guesses) * heads) as usize
    }
}

/// All layers with their weights.
pub(super) fn read(config: &Config, style: Style, device: &Device, format: Format, mut from: Reader) -> Result<(Backbone, Depth)> {
    let from = &mut from;
    let fed = fed(config, device, from)?;
    let said = said(config, device, from)?;
    release_idle();
    from.bits = format.temporal;
    let backbone = Transformer::read(&config.backbone, "backbone", style, Some(config.max_position_embeddings), device, from)?;
    from.bits = format.depth;
    let depth = Transformer::read(&config.depth, "decoder", style, None, device, from)?;
    let input = Dense::read("depth_in", false, from)?;
    from.bits = format.heads;
    let mut heads = (0..config.num_codebooks).map(|k| Dense::read(&format!("heads.{k}"), false, from)).collect::<Result<Vec<_>>>()?;
    let head = heads.remove(0);
    let mut depth = Depth { input, said, transformer: depth, heads, in_one: Err(String::new()) };
    depth.in_one = in_one(device, || depth.layers(values_dtype(device, format.dtype)))?;
    release_idle();
    Ok((Backbone { fed, transformer: backbone, head }, depth))
}

fn fed(config: &Config, device: &Device, from: &mut Reader) -> Result<Rows> {
    let tables = ["audio_emb.weight", "text_emb.weight"].into_iter();
    Rows::stacked(&config.table_sizes(), tables.map(|name| from.weight(name)?.into_tensor()), device)
}

fn said(config: &Config, device: &Device, from: &mut Reader) -> Result<Vec<Rows>> {
    let project = Matrix::for_product(&from.parameter("depth_in.weight")?, Product::Tiles)?;
    let table = |k: usize| {
        let rows = linear::forward(&from.parameter(&format!("depth_emb.{k}.weight"))?, &project, Fused::default())?;
        Rows::stacked(&[config.vocab_size], std::iter::once(as_type(rows, from.dtype())), device)
    };
    (0..config.num_codebooks - 1).map(table).collect()
}
