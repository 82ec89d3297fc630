//! Published Mimi checkpoints: the names of `moshi`, as first released and as saved since, and those of `transformers`.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::json;
use swara_kernels::case::SplitMix;
use swara_kernels::ops::codebook;
use swara_kernels::quantized::{Bits, Panels};
use swara_kernels::{Device, Shape, Tensor};
use swara_loader::quantized::transposed;
use swara_loader::weights;

use super::convert::{Converted, Named, Naming as Published, in_order};
use super::{Coded, Rounded, fold, read_as, weight_normed};
use crate::codec::mimi::{self, Config};
use crate::codec::model::{Layer, Layout, Model, TensorSpec};
use crate::codec::quantizer::{Quantizer, Rvq, SPLIT, USAGE_EPSILON, split_tensors};
use crate::rounding::Loss;
use crate::transformer::Block;
use crate::weights::{Weights, quantize};
use crate::{Error, Result};

const ROWS: usize = Panels::ROWS;

/// Whose names a file has, and what stands before each of them.
pub struct Naming<'a> {
    prefix: &'a str,
    pub hugging_face: bool,
}

impl<'a> Naming<'a> {
    /// None if this is no Mimi.
    pub fn of(file: &'a weights::Weights) -> Option<Naming<'a>> {
        let prefix = |end: &str| file.names().find_map(|name| name.strip_suffix(end));
        let marks =
            [(false, "quantizer.rvq_first.input_proj.weight"), (true, "quantizer.semantic_residual_vector_quantizer.input_proj.weight")];
        marks.into_iter().find_map(|(hugging_face, mark)| Some(Naming { prefix: prefix(mark)?, hugging_face }))
    }

    fn published(&self, name: &str) -> String {
        let name = if self.hugging_face { Cow::Owned(hugging_face(name)) } else { Cow::Borrowed(name) };
        format!("{}{name}", self.prefix)
    }
}

/// What `transformers` calls a tensor that `moshi` calls `name`.
fn hugging_face(name: &str) -> String {
    const PARTS: [(&str, &str); 19] = [
        (".conv.conv.conv.", ".conv."),
        (".conv.conv.", ".conv."),
        (".convtr.convtr.convtr.", ".conv."),
        (".convtr.convtr.", ".conv."),
        ("coder.model.", "coder.layers."),
        ("_transformer.transformer.", "_transformer."),
        (".norm1.", ".input_layernorm."),
        (".norm2.", ".post_attention_layernorm."),
        (".out_proj.", ".o_proj."),
        (".linear1.", ".mlp.fc1."),
        (".linear2.", ".mlp.fc2."),
        (".layer_scale_1.", ".self_attn_layer_scale."),
        (".layer_scale_2.", ".mlp_layer_scale."),
        (".rvq_first.", ".semantic_residual_vector_quantizer."),
        (".rvq_rest.", ".acoustic_residual_vector_quantizer."),
        (".vq.layers.", ".layers."),
        ("._codebook.", ".codebook."),
        (".embedding_sum", ".embed_sum"),
        ("._initialized", ".initialized"),
    ];
    PARTS.iter().fold(name.to_owned(), |name, (theirs, ours)| name.replace(theirs, ours))
}

/// Tensors of the file that make one of the model's.
struct Source {
    spec: TensorSpec,
    parts: Vec<(String, Vec<usize>)>,
    /// Heads whose rows are halves instead of pairs, and rows of each; in the parts that are queries and keys.
    halves: Option<usize>,
}

/// Where the tensors of a Mimi are in its file, in `moshi`'s names.
struct Found {
    config: Config,
    model: Model,
    sources: Vec<Source>,
    /// Rows and columns of the tensors that the file has in panels.
    panels: BTreeMap<String, [usize; 2]>,
    books: [Vec<Codebook>; 2],
}

/// `config` is the file's, if it has one.
fn find(file: &weights::Weights, naming: &Naming, config: Option<Config>) -> Result<Found> {
    let config = match config {
        Some(config) => config,
        None => Config { num_quantizers: quantizers(file, naming), ..Config::default() },
    };
    let model = mimi::model(&config)?;
    let blocks: Vec<&Block> = blocks(&model).collect();
    let mut specs = model.tensors(true);
    specs.extend(split_tensors(config.hidden_size, config.codebook_dim));
    let mut panels = model.matrices();
    panels.retain(|name, _| file.contains(&beside(&naming.published(name), "panels")));
    specs.retain(|spec| !panels.contains_key(&spec.name));
    let sources: Vec<Source> = specs.iter().flat_map(|spec| source(file, naming, &blocks, spec)).collect();
    let branch = |branch: &str, count: usize| -> Vec<Codebook> {
        (0..count).map(|k| Codebook::new(file, naming, &config, &format!("{branch}.vq.layers.{k}"))).collect()
    };
    let books = [branch(SPLIT[0], 1), branch(SPLIT[1], config.acoustic())];
    let flags = books.iter().flatten().filter_map(|book| book.flag.clone());
    let averages = books.iter().flatten().flat_map(|book| [&book.usage, &book.sum]).map(|spec| (spec.name.clone(), spec.published.clone()));
    let coded = panels.iter().flat_map(|(name, &[rows, columns])| {
        let part = |part: &str, inner: [usize; 2]| (beside(&naming.published(name), part), vec![rows / ROWS, inner[0], inner[1]]);
        [part("panels", [columns, ROWS]), part("scales", [1, ROWS])]
    });
    check(file, naming.prefix, sources.iter().flat_map(|s| s.parts.iter().cloned()).chain(flags).chain(averages).chain(coded))?;
    Ok(Found { config, model, sources, panels, books })
}

impl Found {
    /// What the file has weight-normed is folded.
    fn folded(&self, file: &weights::Weights, device: &Device) -> Result<Weights> {
        let tensors = self.sources.iter().map(|s| Ok((s.spec.name.clone(), s.read(file, device)?))).collect::<Result<_>>()?;
        fold(self.sources.iter().map(|source| &source.spec), tensors)
    }

    /// Of folded weights.
    fn specs(&self) -> impl Iterator<Item = TensorSpec> {
        self.model.tensors(true).into_iter().chain(split_tensors(self.config.hidden_size, self.config.codebook_dim))
    }

    /// By their names in `moshi`.
    fn codebooks(&self) -> impl Iterator<Item = (String, &Codebook)> {
        SPLIT
            .iter()
            .zip(&self.books)
            .flat_map(|(branch, books)| books.iter().enumerate().map(move |(k, book)| (format!("{branch}.vq.layers.{k}._codebook"), book)))
    }

    fn without_codes(self, file: &weights::Weights, why: &str) -> Result<Found> {
        match self.panels.keys().next() {
            Some(name) => Err(Error::File { path: file.path().to_owned(), why: format!("tensor {name} has codes{why}") }),
            None => Ok(self),
        }
    }
}

fn blocks(model: &Model) -> impl Iterator<Item = &Block> {
    model.layers().filter_map(|layer| if let Layer::Block(block) = layer { Some(block) } else { None })
}

/// A tensor beside the weight called `name`.
fn beside(name: &str, part: &str) -> String {
    name.strip_suffix("weight").unwrap_or(name).to_owned() + part
}

/// Reads a Mimi. `config` is the file's, if it has one.
pub fn load<'a>(
    file: &'a weights::Weights,
    naming: &Naming,
    config: Option<Config>,
    device: &Device,
) -> Result<(Model, Coded<'a>, Quantizer)> {
    let found = find(file, naming, config)?;
    let mut coded = Coded { tensors: found.folded(file, device)?, panels: BTreeMap::new() };
    let Found { model, panels, books, .. } = found;
    let layouts: BTreeMap<String, TensorSpec> = model.tensors(true).into_iter().map(|spec| (spec.name.clone(), spec)).collect();
    for (name, shape) in panels {
        let Some(found) = file.panels(&naming.published(&name), None)? else { return Err(Error::MissingTensor(name)) };
        let fail = |why: String| Error::File { path: file.path().to_owned(), why: format!("tensor {name}: {why}") };
        if [found.rows(), found.columns()] != shape || found.group() != shape[1] || found.mins().is_some() {
            return Err(fail(format!("codes {:?}, expected {shape:?}, with one scale a row", [found.rows(), found.columns()])));
        }
        if *device == Device::Cpu {
            coded.panels.insert(name, found);
            continue;
        }
        let values = found.to_rows().map_err(|why| fail(why.to_string()))?.dequantize();
        let Some(spec) = layouts.get(&name) else { return Err(Error::MissingTensor(name)) };
        let values = if spec.layout == Layout::Plain { values } else { transposed(&values, shape[0], shape[1]) };
        coded.tensors.insert(name, Tensor::from_slice(device, &values, Shape::try_from(&spec.shape()[..])?)?);
    }
    let branch = |name: &str, books: &[Codebook]| -> Result<Box<Rvq>> {
        let books = books.iter().map(|book| book.read(file, device)).collect::<Result<Vec<_>>>()?;
        Ok(Box::new(Rvq::new(&coded.tensors, name, books)?))
    };
    let quantizer = Quantizer::Split { semantic: branch(SPLIT[0], &books[0])?, acoustic: branch(SPLIT[1], &books[1])? };
    Ok((model, coded, quantizer))
}

/// Folded weights, and usage and sum of every codebook.
pub fn to_train(file: &weights::Weights, naming: &Naming, config: &Config, device: &Device) -> Result<(Weights, Vec<[Tensor; 2]>)> {
    let found = find(file, naming, Some(config.clone()))?.without_codes(file, ", which are not learnt")?;
    let read = |book: &Codebook| Ok([super::read(file, &book.usage, device)?, super::read(file, &book.sum, device)?]);
    Ok((found.folded(file, device)?, found.books.iter().flatten().map(read).collect::<Result<_>>()?))
}

/// See [`super::rounded_mimi`].
pub fn rounded(file: &weights::Weights, naming: &Naming, config: Option<Config>) -> Result<BTreeMap<String, Rounded>> {
    let found = find(file, naming, config)?.without_codes(file, " already")?;
    let matrices = found.model.matrices();
    let mut tensors = found.folded(file, &Device::Cpu)?;
    let mut rounded = BTreeMap::new();
    for spec in found.specs() {
        let Some(tensor) = tensors.remove(&spec.name) else { return Err(Error::MissingTensor(spec.name)) };
        let values = tensor.as_slice::<f32>()?;
        let made = match matrices.get(&spec.name).filter(|[rows, _]| rows.is_multiple_of(ROWS)) {
            Some(&shape) => {
                let rows = if spec.layout == Layout::Plain { Cow::Borrowed(values) } else { transposed(values, shape[1], shape[0]).into() };
                let codes = quantize(&spec.name, shape, Bits::Eight, &rows)?;
                Rounded::Codes { loss: Loss::of_values(&rows, &codes.dequantize()), codes }
            }
            None => Rounded::Values { shape: spec.published.clone(), values: spec.export(values) },
        };
        rounded.insert(spec.name, made);
    }
    for (name, book) in found.codebooks() {
        for (part, spec) in [("cluster_usage", &book.usage), ("embedding_sum", &book.sum)] {
            let values = super::read(file, spec, &Device::Cpu)?.to_vec()?;
            rounded.insert(format!("{name}.{part}"), Rounded::Values { shape: spec.published.clone(), values });
        }
    }
    Ok(rounded)
}

/// A Mimi in the names of `moshi`, as first released, or of `transformers`.
pub fn convert(file: &weights::Weights, naming: &Naming, config: Option<Config>, to: Published) -> Result<Converted> {
    let found = find(file, naming, config)?.without_codes(file, ": only weights are converted")?;
    let (config, hugging) = (&found.config, to == Published::HuggingFace);
    if hugging && config.codebook_dim == config.hidden_size {
        let why = "codebooks as wide as the latents, which transformers does not project".to_owned();
        return Err(Error::File { path: file.path().to_owned(), why });
    }
    let tensors = found.folded(file, &Device::Cpu)?;
    let name = |name: String| if hugging { hugging_face(&name) } else { name };
    let mut named = Vec::new();
    for spec in found.specs() {
        let tensor = in_order(&spec, name(spec.name.clone()), &tensors)?;
        let block = spec.name.strip_suffix(".self_attn.in_proj_weight").and_then(|block| blocks(&found.model).find(|b| b.name == block));
        match block.filter(|_| hugging) {
            Some(block) => named.extend(separate(&tensor, block)),
            None => named.push(tensor),
        }
    }
    for (book, read) in found.codebooks() {
        for (part, spec) in [("cluster_usage", &read.usage), ("embedding_sum", &read.sum)] {
            let values = super::read(file, spec, &Device::Cpu)?.to_vec()?;
            named.push(Named { name: name(format!("{book}.{part}")), shape: spec.published.clone(), values });
        }
        named.push(Named { name: name(format!("{book}._initialized")), shape: vec![1], values: vec![1.0] });
    }
    let rate = f64::from(config.sampling_rate) / found.model.format.hop as f64;
    let invalid = |e: serde_json::Error| Error::Config(e.to_string());
    let mut json =
        serde_json::to_value(Config { frame_rate: Some(rate), frame_rate_since: Some(rate), ..config.clone() }).map_err(invalid)?;
    json["architectures"] = json!(["MimiModel"]);
    json["model_type"] = json!("mimi");
    json["upsample_groups"] = json!(config.hidden_size);
    json["vector_quantization_hidden_dimension"] = json!(config.codebook_dim);
    json["head_dim"] = json!(config.hidden_size / config.num_attention_heads);
    let preprocessor = json!({
        "feature_extractor_type": "EncodecFeatureExtractor",
        "feature_size": 1,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": true,
        "sampling_rate": config.sampling_rate,
    });
    Ok(Converted { config: json, preprocessor, tensors: named })
}

/// Queries, keys and values as `transformers` has them, heads' rows in halves, of `tensor`, which has them in one, in pairs.
fn separate(tensor: &Named, block: &Block) -> Vec<Named> {
    let mut first = 0;
    let parts = [("q", block.heads, true), ("k", block.kv_heads, true), ("v", block.kv_heads, false)];
    let part = |(which, heads, turned): (&str, usize, bool)| {
        let rows = &tensor.values[first * block.width..][..heads * block.head_dim * block.width];
        first += heads * block.head_dim;
        let values = if turned { halves_from_pairs(rows, block.head_dim, block.width) } else { rows.to_vec() };
        let name = tensor.name.replace(".in_proj_weight", &format!(".{which}_proj.weight"));
        Named { name, shape: vec![heads * block.head_dim, block.width], values }
    };
    parts.into_iter().map(part).collect()
}

/// A Mimi of random weights.
pub fn random(config: &Config, device: &Device) -> Result<(Model, Weights, Quantizer)> {
    let model = mimi::model(config)?;
    let mut rng = SplitMix(1);
    let mut values = |shape: &[usize], inputs: usize| -> Result<Tensor> {
        let largest = (3.0 / inputs.max(1) as f64).sqrt();
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| ((2.0 * rng.uniform() - 1.0) * largest) as f32).collect();
        Ok(Tensor::from_slice(device, &values, Shape::try_from(shape)?)?)
    };
    let mut weights = Weights::new();
    for spec in model.tensors(true).into_iter().chain(split_tensors(config.hidden_size, config.codebook_dim)) {
        let tensor = match &spec.published[..] {
            [_] | [_, 1] => Tensor::from_slice(device, &vec![0.1f32; spec.published[0]], Shape::try_from(&spec.shape()[..])?)?,
            published => values(&spec.shape(), published[1..].iter().product())?,
        };
        weights.insert(spec.name, tensor);
    }
    let mut branch = |name: &str, count: usize| -> Result<Box<Rvq>> {
        let books = (0..count).map(|_| values(&[config.codebook_size, config.codebook_dim], 1)).collect::<Result<_>>()?;
        Ok(Box::new(Rvq::new(&weights, name, books)?))
    };
    let quantizer = Quantizer::Split { semantic: branch(SPLIT[0], 1)?, acoustic: branch(SPLIT[1], config.acoustic())? };
    Ok((model, weights, quantizer))
}

/// How many codebooks a file without a configuration has.
fn quantizers(file: &weights::Weights, naming: &Naming) -> usize {
    let most = crate::codec::Config::MAX_CODEBOOKS;
    let has = |k: &usize| {
        let codebook = naming.published(&format!("{}.vq.layers.{k}.", SPLIT[1]));
        file.names().any(|name| name.starts_with(&codebook))
    };
    1 + (0..most - 1).take_while(has).count()
}

fn check(file: &weights::Weights, prefix: &str, expected: impl Iterator<Item = (String, Vec<usize>)>) -> Result<()> {
    let mut mismatch = file.compare(expected);
    // A larger model's file, of which this is a part.
    mismatch.unknown.retain(|(name, _)| name.starts_with(prefix));
    match mismatch.is_empty() {
        true => Ok(()),
        false => Err(Error::Loader(swara_loader::Error::Mismatch { path: file.path().to_owned(), mismatch })),
    }
}

/// One tensor of the model, or its weight-normed two.
fn source(file: &weights::Weights, naming: &Naming, blocks: &[&Block], spec: &TensorSpec) -> Vec<Source> {
    let name = naming.published(&spec.name);
    let whole = |spec: TensorSpec, name: String| Source { parts: vec![(name, spec.published.clone())], spec, halves: None };
    if let Some(parts) = weight_normed(file, spec, &name) {
        return parts.map(|(spec, name)| whole(spec, name)).into();
    }
    if let Some(attention) = spec.name.strip_suffix(".self_attn.in_proj_weight")
        && naming.hugging_face
        && let Some(block) = blocks.iter().find(|block| block.name == attention)
    {
        let part = |which: &str, heads: usize| {
            (name.replace(".in_proj_weight", &format!(".{which}_proj.weight")), vec![heads * block.head_dim, block.width])
        };
        let parts = vec![part("q", block.heads), part("k", block.kv_heads), part("v", block.kv_heads)];
        return vec![Source { spec: spec.clone(), parts, halves: Some(block.head_dim) }];
    }
    // As saved since 2025.
    let since = name.replace(".in_proj_weight", ".in_projs.0.weight").replace(".out_proj.weight", ".out_projs.0.weight");
    let name = if file.contains(&since) { since } else { name };
    vec![whole(spec.clone(), name)]
}

impl Source {
    fn read(&self, file: &weights::Weights, device: &Device) -> Result<Tensor> {
        if let ([(name, _)], None) = (&self.parts[..], self.halves) {
            return read_as(file, name, &self.spec, &file.to_f32(name)?, device);
        }
        let mut values = Vec::with_capacity(self.spec.published.iter().product());
        for (i, (name, shape)) in self.parts.iter().enumerate() {
            let part = file.to_f32(name)?;
            match self.halves {
                // Queries and keys; values are not rotated.
                Some(head_dim) if i < 2 => pairs_from_halves(&mut values, &part, head_dim, shape[1]),
                _ => values.extend_from_slice(&part),
            }
        }
        read_as(file, &self.parts[0].0, &self.spec, &values, device)
    }
}

/// Appends `rows [H * head_dim, width]`, in each head of which row `j * head_dim / 2 + i` is component `j` of pair `i`, in the
/// order of the pairs.
fn pairs_from_halves(out: &mut Vec<f32>, rows: &[f32], head_dim: usize, width: usize) {
    for head in rows.chunks_exact(head_dim * width) {
        for i in 0..head_dim / 2 {
            for j in 0..2 {
                out.extend_from_slice(&head[(j * head_dim / 2 + i) * width..][..width]);
            }
        }
    }
}

/// The inverse.
fn halves_from_pairs(rows: &[f32], head_dim: usize, width: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(rows.len());
    for head in rows.chunks_exact(head_dim * width) {
        for j in 0..2 {
            for i in 0..head_dim / 2 {
                out.extend_from_slice(&head[(2 * i + j) * width..][..width]);
            }
        }
    }
    out
}

/// Moving averages of a codebook, and the flag that it was initialised, which says nothing here.
struct Codebook {
    usage: TensorSpec,
    sum: TensorSpec,
    flag: Option<(String, Vec<usize>)>,
}

impl Codebook {
    fn new(file: &weights::Weights, naming: &Naming, config: &Config, name: &str) -> Codebook {
        let find = |names: &[&str]| {
            let published = |n: &&str| naming.published(&format!("{name}._codebook.{n}"));
            names.iter().map(published).find(|name| file.contains(name)).unwrap_or_else(|| published(&names[0]))
        };
        let (size, dim) = (config.codebook_size, config.codebook_dim);
        let flag = find(&["_initialized", "inited"]);
        Codebook {
            usage: TensorSpec::new(find(&["cluster_usage", "cluster_size"]), Layout::Plain, [size]),
            sum: TensorSpec::new(find(&["embedding_sum", "embed_sum", "embed_avg"]), Layout::Plain, [size, dim]),
            flag: file.contains(&flag).then(|| (flag, vec![1])),
        }
    }

    fn read(&self, file: &weights::Weights, device: &Device) -> Result<Tensor> {
        let read = |spec: &TensorSpec| super::read(file, spec, device);
        Ok(codebook::embedding(&read(&self.usage)?, &read(&self.sum)?, USAGE_EPSILON)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_those_of_transformers() {
        for (ours, theirs) in [
            ("encoder.model.1.block.3.conv.conv.bias", "encoder.layers.1.block.3.conv.bias"),
            ("decoder.model.2.convtr.convtr.weight", "decoder.layers.2.conv.weight"),
            ("downsample.conv.conv.conv.weight", "downsample.conv.weight"),
            ("upsample.convtr.convtr.convtr.weight", "upsample.conv.weight"),
            ("encoder_transformer.transformer.layers.7.norm2.bias", "encoder_transformer.layers.7.post_attention_layernorm.bias"),
            ("decoder_transformer.transformer.layers.0.linear1.weight", "decoder_transformer.layers.0.mlp.fc1.weight"),
            (
                "quantizer.rvq_rest.vq.layers.30._codebook.embedding_sum",
                "quantizer.acoustic_residual_vector_quantizer.layers.30.codebook.embed_sum",
            ),
        ] {
            assert_eq!(hugging_face(ours), theirs);
        }
    }

    #[test]
    fn halves_become_pairs() {
        let mut out = Vec::new();
        pairs_from_halves(&mut out, &[0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0], 4, 1);
        assert_eq!(out, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        assert_eq!(halves_from_pairs(&out, 4, 1), [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    }
}
