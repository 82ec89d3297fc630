//! Checkpoints of language models: published names and layouts.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::bf16;
use swara_kernels::quantized::{Panels, Quantized};
use swara_kernels::{DType, Device, Shape, Tensor};
use swara_loader::weights;

use super::lora::Merged;
use super::model::{Embedding, Layers};
use super::{Config, Format, Lm, Widths};
use crate::piece::{self, Piece, packed};
use crate::weights::{Source, as_type};
use crate::{Error, Result};

/// What stands before the names of a codec beside a model in the names of transformers.
const CODEC: &str = "audio_encoder.";

pub(super) fn open(path: &Path, lora: Option<&Path>, device: &Device, format: Format) -> Result<Lm> {
    let file = weights::Weights::open(path)?;
    let name = path.file_stem().map_or_else(|| "lm".into(), |s| s.to_string_lossy().into_owned());
    let (config, published) = Published::open(&file, device)?;
    // moshi merges the one that a configuration names.
    let named = if lora.is_none() { named_lora(path, &config)? } else { None };
    match lora.or(named.as_deref()) {
        None => Lm::assemble(name, config, &published, device, format),
        Some(lora) => {
            let lora = weights::Weights::open(lora)?;
            let merged = Merged::new(&published, &lora, &config)?;
            Lm::assemble(name, config, &merged, device, format)
        }
    }
}

/// The LoRA that the configuration of a model names, beside it.
///
/// # Errors
/// One that is not there.
pub fn named_lora(path: &Path, config: &Config) -> Result<Option<PathBuf>> {
    let Some(name) = config.lora_name.as_ref().filter(|name| !name.is_empty()) else { return Ok(None) };
    let folder = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new("")) };
    let lora = folder.join(name);
    match Path::new(name).file_name() == Some(name.as_ref()) && lora.is_file() {
        true => Ok(Some(lora)),
        false => Err(Error::Config(format!("lora_name is {name:?}, which is no file beside the model"))),
    }
}

/// The configuration of the model that a file holds, every tensor of which is there, of its shape, and no other.
pub fn check(file: &weights::Weights) -> Result<Config> {
    find(file).map(|(config, ..)| config)
}

/// What a matrix of a language model is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Temporal,
    Depth,
    /// Gives logits.
    Head,
    /// Rows of the tokens that the temporal transformer is fed.
    Table,
}

/// The matrices that rows are multiplied by, by the names that a file has for them; not its tables.
///
/// # Errors
/// As [`check`].
pub fn matrices(file: &weights::Weights) -> Result<BTreeMap<String, Part>> {
    let (_, places) = find(file)?;
    let matrices = places.iter().filter_map(|(name, (shape, places))| Some((part(name, shape)?, places)));
    Ok(matrices
        .flat_map(|(part, places)| places.iter().flat_map(|place| &place.pieces).map(move |piece| (piece.name.clone(), part)))
        .collect())
}

/// The tables that may be codes in a file, by the names that it has for them: of what the temporal transformer is fed, those whose rows
/// are taken as they are.
///
/// # Errors
/// As [`check`].
pub fn tables(file: &weights::Weights) -> Result<Vec<String>> {
    let (config, places) = find(file)?;
    let plain = Layers::new(&config)?.fed.into_iter().filter(Embedding::is_plain);
    let pieces = plain.filter_map(|table| places.get(&table.weight())).flat_map(|(_, places)| places).flat_map(|place| &place.pieces);
    Ok(pieces.map(|piece| piece.name.clone()).collect())
}

/// That no matrix lies in several tensors.
pub(super) fn whole_matrices(file: &weights::Weights) -> Result<()> {
    match Layout::of(file) {
        Some(layout @ Layout::HuggingFace) => {
            let why = format!("{}, whose matrices are not looked at one by one", layout.name());
            Err(Error::File { path: file.path().to_owned(), why })
        }
        _ => Ok(()),
    }
}

/// Of a tensor of ours; none if it is no matrix, or a table.
pub(super) fn part(name: &str, shape: &[usize]) -> Option<Part> {
    match name.split('.').next()? {
        _ if shape.len() != 2 => None,
        "transformer" => Some(Part::Temporal),
        "depformer" | "depformer_in" => Some(Part::Depth),
        "text_linear" | "linears" | "extra_heads" => Some(Part::Head),
        _ => None,
    }
}

/// Shape and places of every tensor of ours.
type Places = BTreeMap<String, (Vec<usize>, Vec<Place>)>;

fn find(file: &weights::Weights) -> Result<(Config, Places)> {
    let Some(layout) = Layout::of(file) else {
        return Err(Error::File { path: file.path().to_owned(), why: "names that are no language model's".into() });
    };
    let mut config = match file.config()? {
        Some(json) => Config::from_json(&json.to_string())?,
        None => Config::moshi(),
    };
    if layout == Layout::HuggingFace && config.positional_embedding == "rope" {
        // Rows of queries and keys are in the order of halves there.
        config.positional_embedding = "rope_concat".into();
    }
    if let (Layout::HuggingFace, Some(Widths::Each(each))) = (layout, &config.depformer_dim_feedforward)
        && each.iter().any(|wide| *wide != each[0])
    {
        return Err(Error::Config(format!("depformer_dim_feedforward is {each:?}, and all of a layer are in one tensor")));
    }
    let layers = Layers::new(&config)?;
    let (mut tensors, mut expected) = (Places::new(), BTreeMap::new());
    for (name, shape) in layers.tensors(&config)? {
        let places = layout.places(&config, file, &name, &shape);
        expected.extend(places.iter().flat_map(|place| &place.pieces).flat_map(|piece| piece.stored(file)));
        tensors.insert(name, (shape, places));
    }
    // What moshi makes of a model that does not speak, and nobody uses.
    if config.dep_q == 0 && file.contains("depformer_in.0.weight") {
        expected.insert("depformer_in.0.weight".to_owned(), vec![config.depformer_dim, config.dim]);
    }
    let mut mismatch = file.compare(expected);
    mismatch.unknown.retain(|(name, _)| layout != Layout::HuggingFace || !name.starts_with(CODEC));
    let stored = layout.stored(&config, file);
    mismatch.unknown.retain(|(name, _)| !layout.is_beyond(&config, stored, name));
    match mismatch.is_empty() {
        true => Ok((config, tensors)),
        false => Err(Error::Loader(swara_loader::Error::Mismatch { path: file.path().to_owned(), mismatch })),
    }
}

/// Rows that are read of tensors that have more of them, or are not read at all: sets of weights of the depth transformer for steps that a
/// model does not take, because they would draw what is heard (PersonaPlex).
///
/// # Errors
/// As [`check`].
pub fn unread(file: &weights::Weights) -> Result<BTreeMap<String, usize>> {
    let (config, places) = find(file)?;
    let Some(layout) = Layout::of(file) else { return Ok(BTreeMap::new()) };
    let stored = layout.stored(&config, file);
    let beyond = file.names().filter(|name| layout.is_beyond(&config, stored, name)).map(|name| (name.to_owned(), 0));
    let mut found: BTreeMap<String, usize> = beyond.collect();
    let pieces = places.values().flat_map(|(_, places)| places).flat_map(|place| &place.pieces);
    for piece in pieces.filter(|piece| stored > config.dep_q && piece.shape.len() == 2) {
        if let Some(rows) = &piece.rows {
            let read = found.entry(piece.name.clone()).or_default();
            *read = rows.end.max(*read);
        }
    }
    found.retain(|name, read| file.info(name).and_then(|(_, shape)| shape.first()).is_some_and(|rows| *read < *rows));
    Ok(found)
}

/// Whose names a file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The package `moshi`, as first released and as saved since.
    Moshi,
    /// The Rust `moshi`: a depth transformer for every step.
    Candle,
    /// `transformers`: queries, keys and values apart, all of a step of the depth transformer in one tensor.
    HuggingFace,
}

/// Where a tensor lies in a file: in one piece, or several, one below the other.
pub(super) struct Place {
    pub pieces: Vec<Piece>,
}

impl Place {
    fn whole(name: String, shape: &[usize]) -> Place {
        // Factors of a norm of root mean squares.
        let published = if name.ends_with(".alpha") { [&[1, 1], shape].concat() } else { shape.to_vec() };
        Piece { name, shape: published, rows: None }.into()
    }

    /// The `nth` of `count` matrices of this shape, one below the other.
    fn stacked(name: String, shape: &[usize], nth: usize, count: usize) -> Place {
        let rows = shape[0];
        Piece { name, shape: vec![count * rows, shape[1]], rows: Some(nth * rows..(nth + 1) * rows) }.into()
    }

    /// The name that a file has for the first piece.
    pub fn name(&self) -> &str {
        self.pieces.first().map_or("", |piece| &piece.name)
    }

    /// Rows of the first piece, if not all.
    pub fn rows(&self) -> Option<&Range<usize>> {
        self.pieces.first()?.rows.as_ref()
    }
}

impl From<Piece> for Place {
    fn from(piece: Piece) -> Place {
        Place { pieces: vec![piece] }
    }
}

impl Layout {
    /// None if this is no language model.
    pub fn of(file: &weights::Weights) -> Option<Layout> {
        let has = |name: &str| file.contains(name) || packed(file, name);
        if has("decoder.model.embed_tokens.weight") && has("depth_decoder.text_embed_tokens.weight") {
            return Some(Layout::HuggingFace);
        }
        if !has("text_emb.weight") || !has("text_linear.weight") {
            return None;
        }
        let candle = has("depformer.0.linear_in.weight");
        Some(if candle { Layout::Candle } else { Layout::Moshi })
    }

    pub fn name(self) -> &'static str {
        match self {
            Layout::Moshi => "language model, in the names of moshi",
            Layout::Candle => "language model, in the names of the Rust moshi",
            Layout::HuggingFace => "language model, in the names of transformers",
        }
    }

    /// Steps that a file has a depth transformer for: `dep_q`, or more, up to one for every column.
    fn stored(self, config: &Config, file: &weights::Weights) -> usize {
        let head = |k: usize| match self {
            Layout::Moshi => format!("linears.{k}.weight"),
            Layout::Candle => format!("depformer.{k}.linear_out.weight"),
            Layout::HuggingFace => String::new(),
        };
        let has = |k: usize| file.contains(&head(k)) || packed(file, &head(k));
        // Steps that share weights by a schedule say nothing of more of them.
        let may = config.dep_q > 0 && config.depformer_weights_per_step && config.depformer_weights_per_step_schedule.is_none();
        (config.dep_q..config.n_q).find(|&k| !may || !has(k)).unwrap_or(config.n_q)
    }

    /// Whether a tensor is of a step from `dep_q` on, of those that are `stored`.
    fn is_beyond(self, config: &Config, stored: usize, name: &str) -> bool {
        let steps = config.dep_q..stored;
        let nth = |rest: &str| rest.split('.').next().and_then(|number| number.parse::<usize>().ok());
        let of = |prefix: &str| name.strip_prefix(prefix).and_then(nth);
        let is = |found: Option<usize>| found.is_some_and(|k| steps.contains(&k));
        if self == Layout::Candle {
            return is(of("depformer."));
        }
        let per_set = ["gating.", "self_attn.in_projs.", "self_attn.out_projs."];
        let block = name.strip_prefix("depformer.layers.").and_then(|rest| rest.split_once('.'));
        let in_block = block.and_then(|(_, rest)| per_set.iter().find_map(|prefix| rest.strip_prefix(prefix)).and_then(nth));
        let inputs = of("depformer_in.").filter(|_| config.depformer_multi_linear);
        // The code of a step is fed to the next.
        let fed = of("depformer_emb.").map(|code| code + 1);
        [of("linears."), inputs, fed, of("depformer_norms."), in_block].into_iter().any(is)
    }

    /// The places that hold a tensor of ours, all alike.
    fn places(self, config: &Config, file: &weights::Weights, name: &str, shape: &[usize]) -> Vec<Place> {
        match self {
            Layout::Moshi => vec![moshi(config, file, name, shape, self.stored(config, file))],
            Layout::Candle => candle(config, name).into_iter().map(|name| Place::whole(name, shape)).collect(),
            Layout::HuggingFace => vec![hugging_face(config, name, shape)],
        }
    }
}

/// Set of weights, layer and the rest of a name of the depth transformer's.
fn depth(name: &str) -> Option<(usize, &str, &str)> {
    let (set, rest) = name.strip_prefix("depformer.")?.split_once(".layers.")?;
    let (layer, rest) = rest.split_once('.')?;
    Some((set.parse().ok()?, layer, rest))
}

/// What a tensor of ours is called on its own, and what those of all sets are, the `nth` of `count` being this, where they are stacked.
pub(super) fn moshi_names(config: &Config, name: &str) -> (String, Option<(String, usize, usize)>) {
    let (base, set, sets, rest) = match depth(name) {
        Some((set, layer, rest)) => (format!("depformer.layers.{layer}."), set, config.sets(), rest),
        None => match name.split_once(".self_attn.").or_else(|| name.split_once(".cross_attention.")) {
            Some((base, _)) => (format!("{base}."), 0, 1, &name[base.len() + 1..]),
            None => return (name.to_owned(), None),
        },
    };
    let since = match rest.split_once('.') {
        Some((attention @ ("self_attn" | "cross_attention"), "in_proj_weight")) => format!("{base}{attention}.in_projs.{set}.weight"),
        Some((attention @ ("self_attn" | "cross_attention"), "out_proj.weight")) => format!("{base}{attention}.out_projs.{set}.weight"),
        _ => {
            let gate = rest.strip_prefix("gating.").filter(|_| config.depformer_weights_per_step);
            return (gate.map_or(format!("{base}{rest}"), |part| format!("{base}gating.{set}.{part}")), None);
        }
    };
    (since, Some((format!("{base}{rest}"), set, sets)))
}

/// `stored`: steps that the file has a depth transformer for.
fn moshi(config: &Config, file: &weights::Weights, name: &str, shape: &[usize], stored: usize) -> Place {
    match moshi_names(config, name) {
        (since, Some((stacked, nth, count))) if !file.contains(&since) && !packed(file, &since) => {
            let beyond = if depth(name).is_some() { stored - config.dep_q } else { 0 };
            Place::stacked(stacked, shape, nth, count + beyond)
        }
        (name, _) => Place::whole(name, shape),
    }
}

fn candle(config: &Config, name: &str) -> Vec<String> {
    let steps = |wanted: &dyn Fn(usize) -> bool, part: &str| -> Vec<String> {
        (0..config.dep_q).filter(|&k| wanted(k)).map(|k| format!("depformer.{k}.{part}")).collect()
    };
    let numbered = |prefix: &str| -> Option<(usize, &str)> {
        let (number, part) = name.strip_prefix(prefix)?.split_once('.')?;
        Some((number.parse().ok()?, part))
    };
    if let Some((set, layer, rest)) = depth(name) {
        return steps(&|k| config.set(k) == set, &format!("transformer.layers.{layer}.{rest}"));
    }
    if let Some((i, part)) = numbered("depformer_in.") {
        return steps(&|k| config.input(k) == i, &format!("linear_in.{part}"));
    }
    if let Some((step, part)) = numbered("linears.") {
        return steps(&|k| k == step, &format!("linear_out.{part}"));
    }
    if let Some((code, part)) = numbered("depformer_emb.") {
        return steps(&|k| k == code + 1, &format!("emb.{part}"));
    }
    match name.strip_prefix("depformer_text_emb.") {
        Some(part) => steps(&|k| k == 0, &format!("emb.{part}")),
        None => vec![name.to_owned()],
    }
}

fn hugging_face(config: &Config, name: &str, shape: &[usize]) -> Place {
    /// Of a block: ours, transformers'.
    const PARTS: [[&str; 2]; 5] = [
        ["self_attn.out_proj.weight", "self_attn.o_proj.linear.weight"],
        ["gating.linear_in.weight", "mlp.fc1.weight"],
        ["gating.linear_out.weight", "mlp.fc2.weight"],
        ["norm1.alpha", "input_layernorm.weight"],
        ["norm2.alpha", "post_attention_layernorm.weight"],
    ];
    let whole = |name: String| Piece { name, shape: shape.to_vec(), rows: None };
    // Of tensors `[count, rows, columns]`.
    let stacked = |name: String, rows: usize, nth: usize, count: usize| Piece {
        name,
        shape: vec![count, rows, shape[1]],
        rows: Some(nth * rows..(nth + 1) * rows),
    };
    let numbered = |prefix: &str| name.strip_prefix(prefix)?.strip_suffix(".weight")?.parse::<usize>().ok();
    let (base, set, rest) = match (depth(name), name.strip_prefix("transformer.layers.").and_then(|rest| rest.split_once('.'))) {
        (Some((set, layer, rest)), _) => (format!("depth_decoder.layers.{layer}."), Some(set), rest),
        (None, Some((layer, rest))) => (format!("decoder.model.layers.{layer}."), None, rest),
        (None, None) => {
            if let Some(k) = numbered("depformer_in.") {
                return stacked("depth_decoder.input_projections.weight".into(), shape[0], k, config.inputs()).into();
            }
            if let Some(k) = numbered("linears.") {
                return stacked("depth_decoder.lm_heads.weight".into(), shape[0], k, config.dep_q).into();
            }
            let of = |prefix: &str, theirs: &str| numbered(prefix).map(|k| format!("{theirs}{k}.weight"));
            let table = of("emb.", "embed_tokens.").or_else(|| of("depformer_emb.", "depth_decoder.embed_tokens."));
            return whole(table.unwrap_or_else(|| match name {
                "text_emb.weight" => "decoder.model.embed_tokens.weight".into(),
                "text_linear.weight" => "decoder.lm_head.weight".into(),
                "out_norm.alpha" => "decoder.model.norm.weight".into(),
                "depformer_text_emb.weight" => "depth_decoder.text_embed_tokens.weight".into(),
                _ => name.to_owned(),
            }))
            .into();
        }
    };
    let matrix = |part: &str, rows: usize| match set {
        Some(set) => stacked(format!("{base}{part}"), rows, set, config.sets()),
        None => Piece { shape: vec![rows, shape[1]], ..whole(format!("{base}{part}")) },
    };
    if rest == "self_attn.in_proj_weight" {
        // As many queries as there are columns.
        let kv = (shape[0] - shape[1]) / 2;
        let parts = [("q", shape[1]), ("k", kv), ("v", kv)];
        return Place { pieces: parts.map(|(part, rows)| matrix(&format!("self_attn.{part}_proj.linear.weight"), rows)).into() };
    }
    let part = PARTS.iter().find(|part| part[0] == rest).map_or(rest, |part| part[1]);
    if shape.len() == 2 { matrix(part, shape[0]) } else { whole(format!("{base}{part}")) }.into()
}

/// Tensors of a file.
pub(super) struct Published<'a> {
    file: &'a weights::Weights,
    tensors: Places,
    device: &'a Device,
}

impl<'a> Published<'a> {
    /// Of the model that a file holds; its configuration and layers.
    pub fn open(file: &'a weights::Weights, device: &'a Device) -> Result<(Config, Published<'a>)> {
        let (config, tensors) = find(file)?;
        Ok((config, Published { file, tensors, device }))
    }

    pub fn file(&self) -> &weights::Weights {
        self.file
    }

    pub fn device(&self) -> &Device {
        self.device
    }

    /// Shapes of ours, by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.tensors.iter().map(|(name, (shape, _))| (&name[..], &shape[..]))
    }

    /// Shape of a tensor of ours, and where it is: at least once.
    pub fn places(&self, name: &str) -> Result<(&[usize], &[Place])> {
        let found = self.tensors.get(name).filter(|(_, places)| !places.is_empty());
        found.map(|(shape, places)| (&shape[..], &places[..])).ok_or_else(|| Error::MissingTensor(name.to_owned()))
    }

    fn place(&self, name: &str) -> Result<(&[usize], &Place)> {
        self.places(name).map(|(shape, places)| (shape, &places[0]))
    }

    /// As they lie, if they are bf16.
    fn halves(&self, place: &Place) -> Result<Option<Cow<'_, [bf16]>>> {
        let [piece] = &place.pieces[..] else { return Ok(None) };
        if !self.file.contains(&piece.name) {
            return Ok(None);
        }
        let outer = piece.shape.len().saturating_sub(1);
        let rows = piece.rows.clone().unwrap_or(0..piece.shape[..outer].iter().product());
        let values = self.file.bf16_rows(&piece.name, rows)?;
        // Of a large table, and nobody waits for where it is: chunk by chunk, so that it is as fast as reading.
        let finite = |chunk: &[bf16]| chunk.iter().fold(true, |finite, v| finite & v.is_finite());
        if let Some(values) = values.as_ref().filter(|values| !values.chunks(1 << 12).all(finite)) {
            piece.finite(self.file, values.iter().map(|v| v.to_f32()))?;
        }
        Ok(values)
    }
}

impl Source for Published<'_> {
    fn read(&self, name: &str, dtype: DType) -> Result<Tensor> {
        let (shape, place) = self.place(name)?;
        let shape = Shape::try_from(shape)?;
        if dtype == DType::BF16
            && let Some(values) = self.halves(place)?
        {
            return Ok(Tensor::from_slice(self.device, &values, shape)?);
        }
        let mut pieces = place.pieces.iter().map(|piece| piece.values(self.file));
        let mut values = pieces.next().unwrap_or_else(|| Err(Error::MissingTensor(name.to_owned())))?;
        for below in pieces {
            values.to_mut().extend_from_slice(&below?);
        }
        let tensor = Tensor::from_slice(self.device, &values, shape)?;
        drop(values);
        as_type(tensor, dtype)
    }

    fn quantized(&self, name: &str) -> Result<Option<Quantized>> {
        piece::quantized(&self.place(name)?.1.pieces, self.file, self.device)
    }

    fn panels(&self, name: &str) -> Result<Option<Panels>> {
        piece::panels(&self.place(name)?.1.pieces, self.file, self.device)
    }
}
