//! Checkpoints of CSM: published names and layouts.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use swara_kernels::ops::rope::Style;
use swara_kernels::quantized::{Panels, Quantized};
use swara_kernels::{DType, Device, Shape, Tensor};
use swara_loader::quantized::transposed;
use swara_loader::weights;

use super::{Config, Csm, model};
use crate::lm::{Format, Part};
use crate::piece::{self, Piece};
use crate::weights::{Source, as_type};
use crate::{Error, Result};

/// What stands before the names of a codec beside the model.
const CODEC: &str = "codec_model.";

pub(super) fn open(path: &Path, device: &Device, format: Format) -> Result<Csm> {
    let file = weights::Weights::open(path)?;
    let name = path.file_stem().map_or_else(|| "csm".into(), |s| s.to_string_lossy().into_owned());
    let (layout, config, places) = find(&file)?;
    Csm::assemble(name, config, layout, &Published { file: &file, places, device }, device, format)
}

/// The configuration of the model that a file holds, every tensor of which is there, of its shape, and no other but a codec's; and
/// whether there is a codec.
///
/// # Errors
/// What is no CSM, or not all of one.
pub fn check(file: &weights::Weights) -> Result<(Config, bool)> {
    let codec = file.names().any(|name| name.starts_with(CODEC));
    find(file).map(|(_, config, _)| (config, codec))
}

/// The matrices of both transformers' layers and of the backbone's head, by the names that a file has for them. The depth decoder's heads
/// are one tensor, of columns.
///
/// # Errors
/// As [`check`].
pub fn matrices(file: &weights::Weights) -> Result<BTreeMap<String, Part>> {
    let (.., places) = find(file)?;
    let part = |name: &str| match name.split('.').next()? {
        "backbone" => Some(Part::Temporal),
        "decoder" => Some(Part::Depth),
        "heads" => Some(Part::Head),
        _ => None,
    };
    let matrices = places.iter().filter(|(_, place)| place.shape.len() == 2 && !place.transposed);
    Ok(matrices
        .filter_map(|(name, place)| Some((part(name)?, place)))
        .flat_map(|(part, place)| place.pieces.iter().map(move |piece| (piece.name.clone(), part)))
        .collect())
}

/// Whose names a file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `transformers`: rows of queries and keys in the order of [`Style::HalfSplit`].
    HuggingFace,
    /// Sesame's, with torchtune's layers: [`Style::Interleaved`].
    Original,
}

impl Layout {
    /// None if this is no CSM.
    pub fn of(file: &weights::Weights) -> Option<Layout> {
        let has = |prefix: &str| file.names().any(|name| name.starts_with(prefix));
        match (has("backbone_model.layers."), has("backbone.layers.") && has("decoder.layers.")) {
            (true, _) => Some(Layout::HuggingFace),
            (_, true) => Some(Layout::Original),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Layout::HuggingFace => "CSM, in the names of transformers",
            Layout::Original => "CSM, in its original names",
        }
    }

    pub(super) fn style(self) -> Style {
        match self {
            Layout::HuggingFace => Style::HalfSplit,
            Layout::Original => Style::Interleaved,
        }
    }

    /// What a file calls a tensor of ours, but for those that are parts of one, or made of several.
    fn published(self, name: &str) -> String {
        /// Ours, transformers', the original.
        const NAMES: [[&str; 3]; 8] = [
            ["text_emb.weight", "embed_text_tokens.weight", "text_embeddings.weight"],
            ["audio_emb.weight", "backbone_model.embed_tokens.embed_audio_tokens.weight", "audio_embeddings.weight"],
            ["depth_in.weight", "depth_decoder.model.inputs_embeds_projector.weight", "projection.weight"],
            ["heads.0.weight", "lm_head.weight", "codebook0_head.weight"],
            ["heads", "depth_decoder.codebooks_head.weight", "audio_head"],
            ["depth_emb.weight", "depth_decoder.model.embed_tokens.weight", "audio_embeddings.weight"],
            ["backbone.norm.alpha", "backbone_model.norm.weight", "backbone.norm.scale"],
            ["decoder.norm.alpha", "depth_decoder.model.norm.weight", "decoder.norm.scale"],
        ];
        const PARTS: [[&str; 3]; 11] = [
            ["backbone.layers.", "backbone_model.layers.", "backbone.layers."],
            ["decoder.layers.", "depth_decoder.model.layers.", "decoder.layers."],
            [".self_attn.out_proj.", ".self_attn.o_proj.", ".attn.output_proj."],
            [".self_attn.q.", ".self_attn.q_proj.", ".attn.q_proj."],
            [".self_attn.k.", ".self_attn.k_proj.", ".attn.k_proj."],
            [".self_attn.v.", ".self_attn.v_proj.", ".attn.v_proj."],
            [".gating.linear_out.", ".mlp.down_proj.", ".mlp.w2."],
            [".gating.gate.", ".mlp.gate_proj.", ".mlp.w1."],
            [".gating.up.", ".mlp.up_proj.", ".mlp.w3."],
            [".norm1.alpha", ".input_layernorm.weight", ".sa_norm.scale"],
            [".norm2.alpha", ".post_attention_layernorm.weight", ".mlp_norm.scale"],
        ];
        let which = match self {
            Layout::HuggingFace => 1,
            Layout::Original => 2,
        };
        match NAMES.iter().find(|names| names[0] == name) {
            Some(names) => names[which].to_owned(),
            None => PARTS.iter().fold(name.to_owned(), |name, part| name.replace(part[0], part[which])),
        }
    }

    /// Where a tensor of ours of this shape lies.
    fn place(self, config: &Config, name: &str, shape: &[usize]) -> Place {
        let piece = |name: &str, shape: &[usize]| Piece { name: self.published(name), shape: shape.to_vec(), rows: None };
        let number = |prefix: &str| name.strip_prefix(prefix)?.strip_suffix(".weight")?.parse::<usize>().ok();
        let (mut pieces, mut transposed) = (Vec::new(), false);
        if let Some(k) = number("heads.").filter(|&k| k > 0) {
            let (rows, columns) = (shape[1], shape[0]);
            let rows = Some((k - 1) * rows..k * rows);
            pieces.push(Piece { rows, ..piece("heads", &[config.num_codebooks - 1, shape[1], columns]) });
            transposed = true;
        } else if let Some(k) = number("depth_emb.") {
            let name = if config.tie_codebooks_embeddings { "audio_emb.weight" } else { "depth_emb.weight" };
            pieces
                .push(Piece { rows: Some(k * shape[0]..(k + 1) * shape[0]), ..piece(name, &[config.num_codebooks * shape[0], shape[1]]) });
        } else if let Some(layer) = name.strip_suffix(".self_attn.in_proj_weight") {
            let llama = if layer.starts_with("backbone.") { &config.backbone } else { &config.depth };
            let kv = llama.num_key_value_heads * llama.head_dim;
            for (part, rows) in [("q", shape[0] - 2 * kv), ("k", kv), ("v", kv)] {
                pieces.push(piece(&format!("{layer}.self_attn.{part}.weight"), &[rows, shape[1]]));
            }
        } else if let Some(layer) = name.strip_suffix(".gating.linear_in.weight") {
            pieces.extend(["gate", "up"].map(|part| piece(&format!("{layer}.gating.{part}.weight"), &[shape[0] / 2, shape[1]])));
        } else {
            pieces.push(piece(name, shape));
        }
        Place { shape: shape.to_vec(), pieces, transposed }
    }
}

/// Where one of our tensors lies in a file: pieces one below the other.
struct Place {
    shape: Vec<usize>,
    pieces: Vec<Piece>,
    /// Whether the file has it `[columns, rows]`.
    transposed: bool,
}

type Places = BTreeMap<String, Place>;

fn find(file: &weights::Weights) -> Result<(Layout, Config, Places)> {
    let Some(layout) = Layout::of(file) else {
        return Err(Error::File { path: file.path().to_owned(), why: "names that are no CSM's".into() });
    };
    let mut config = match file.config()? {
        Some(json) => Config::from_json(&json.to_string())?,
        None => Config::csm_1b(),
    };
    // There is but one table in the original.
    config.tie_codebooks_embeddings |= layout == Layout::Original;
    if layout == Layout::Original {
        // Sesame's configuration does not say what all its transformers have.
        for llama in [&mut config.backbone, &mut config.depth] {
            llama.rope_scaling.get_or_insert(super::config::SCALING);
        }
    }
    let mut places: Places =
        model::tensors(&config).into_iter().map(|(name, shape)| (name.clone(), layout.place(&config, &name, &shape))).collect();
    // Of two tied tables a file may have either name, or both; `transformers` ties the backbone's to the depth decoder's.
    let names = ["audio_emb.weight", "depth_emb.weight"].map(|name| layout.published(name));
    let [table, depth] = &names;
    if config.tie_codebooks_embeddings && file.contains(depth) {
        places.values_mut().flat_map(|place| &mut place.pieces).filter(|p| p.name == *table).for_each(|p| p.name.clone_from(depth));
    }
    let mut expected: BTreeMap<String, Vec<usize>> =
        places.values().flat_map(|place| &place.pieces).flat_map(|piece| piece.stored(file)).collect();
    for name in names.into_iter().filter(|name| file.contains(name)) {
        expected.insert(name, vec![config.num_codebooks * config.vocab_size, config.backbone.hidden_size]);
    }
    let mut mismatch = file.compare(expected);
    mismatch.unknown.retain(|(name, _)| !name.starts_with(CODEC));
    match mismatch.is_empty() {
        true => Ok((layout, config, places)),
        false => Err(Error::Loader(swara_loader::Error::Mismatch { path: file.path().to_owned(), mismatch })),
    }
}

/// Tensors of a file.
struct Published<'a> {
    file: &'a weights::Weights,
    places: Places,
    device: &'a Device,
}

impl Published<'_> {
    fn place(&self, name: &str) -> Result<&Place> {
        self.places.get(name).ok_or_else(|| Error::MissingTensor(name.to_owned()))
    }
}

impl Source for Published<'_> {
    fn read(&self, name: &str, dtype: DType) -> Result<Tensor> {
        let place = self.place(name)?;
        let pieces = place.pieces.iter().map(|piece| piece.values(self.file)).collect::<Result<Vec<_>>>()?;
        let values = match &pieces[..] {
            [whole] if place.transposed => Cow::Owned(transposed(whole, whole.len() / place.shape[0].max(1), place.shape[0])),
            [whole] => Cow::Borrowed(&whole[..]),
            _ => Cow::Owned(pieces.concat()),
        };
        let tensor = Tensor::from_slice(self.device, &values, Shape::try_from(&place.shape[..])?)?;
        drop(values);
        as_type(tensor, dtype)
    }

    fn quantized(&self, name: &str) -> Result<Option<Quantized>> {
        let place = self.place(name)?;
        if place.transposed { Ok(None) } else { piece::quantized(&place.pieces, self.file, self.device) }
    }

    fn panels(&self, name: &str) -> Result<Option<Panels>> {
        let place = self.place(name)?;
        if place.transposed { Ok(None) } else { piece::panels(&place.pieces, self.file, self.device) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_the_published_ones() {
        for (ours, transformers, original) in [
            (
                "backbone.layers.3.self_attn.q.weight",
                "backbone_model.layers.3.self_attn.q_proj.weight",
                "backbone.layers.3.attn.q_proj.weight",
            ),
            ("decoder.layers.0.gating.up.weight", "depth_decoder.model.layers.0.mlp.up_proj.weight", "decoder.layers.0.mlp.w3.weight"),
            (
                "decoder.layers.0.norm2.alpha",
                "depth_decoder.model.layers.0.post_attention_layernorm.weight",
                "decoder.layers.0.mlp_norm.scale",
            ),
            ("backbone.norm.alpha", "backbone_model.norm.weight", "backbone.norm.scale"),
            ("heads", "depth_decoder.codebooks_head.weight", "audio_head"),
        ] {
            assert_eq!(Layout::HuggingFace.published(ours), transformers);
            assert_eq!(Layout::Original.published(ours), original);
        }
    }
}
