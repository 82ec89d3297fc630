//! Checkpoints of a run, and the model that it releases.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use serde_json::{Map, Value};
use swara_kernels::ops::elementwise;
use swara_kernels::{DType, Device, Shape, Tensor};
use swara_loader::output;
use swara_loader::weights::{self, Dtype, TensorRef};

use super::teacher::{self, CENTROIDS, Teacher};
use super::{Architecture, Initialisation, Parameter, TrainConfig, Trainer};
use crate::codec::dac::PROSODY;
use crate::codec::model::{Layer, Layout, Model, TensorSpec};
use crate::codec::{
    Config, METADATA_CONFIG, METADATA_MODEL, embedding_spec, encodec_to_train, frequencies, mimi_to_train, quantizer, read, snac_to_train,
};
use crate::weights::Weights;
use crate::{Error, Result};

const STEP: &str = "step";
const RUN: &str = "run";
const BALANCER: &str = "balancer";
/// What a checkpoint stores of a parameter: prefix of its name.
const PARTS: [&str; 3] = ["value", "first_moment", "second_moment"];
const AVERAGE: &str = "average";
/// Keys that do not say what is trained; the first are the codec's shape, prosody's among it, which is compared as a whole.
const FREE: [&str; 25] = [
    "model",
    "codec",
    "mimi",
    "encodec",
    "snac",
    "prosody",
    "train.steps",
    "train.batch",
    "train.accumulate",
    "train.crop_frames",
    "train.compute",
    "train.average",
    "train.log_every",
    "train.checkpoint_every",
    "train.validate_every",
    "optimizer",
    "loss",
    "adversarial.optimizer",
    "speaker.weight",
    "teacher.weight",
    "teacher.cosine_weight",
    "codebook.kmeans_batches",
    "codebook.kmeans_iterations",
    // Where things lie.
    "augment.noise.folder",
    "speaker.encoder",
];

impl Trainer {
    /// The codec's, then the discriminators'.
    fn all_parameters(&self) -> impl Iterator<Item = &Parameter> {
        self.parameters.iter().chain(self.adversary.iter().flat_map(|a| &a.parameters))
    }

    /// Writes everything that [`Trainer::resume`] needs, whole or not at all.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = Vec::new();
        let mut add = |name: String, spec: &TensorSpec, tensor: &Tensor| -> Result<()> {
            tensors.push((name, spec.published.clone(), spec.export(&elementwise::convert(tensor, DType::F32)?.to_vec::<f32>()?)));
            Ok(())
        };
        for p in self.all_parameters() {
            for (part, tensor) in PARTS.iter().zip([&*p.value, &p.first_moment, &p.second_moment]) {
                add(format!("{part}.{}", p.spec.name), &p.spec, tensor)?;
            }
        }
        for (p, average) in self.parameters().iter().zip(&self.averages) {
            add(format!("{AVERAGE}.{}", p.spec.name), &p.spec, average)?;
        }
        for (pair, book) in self.architecture.averages().iter().zip(self.codebooks()) {
            add(pair[0].name.clone(), &pair[0], &book.usage)?;
            add(pair[1].name.clone(), &pair[1], &book.sum)?;
        }
        if let Some([classes, dim]) = self.config().teacher.as_ref().and_then(Teacher::clusters) {
            let spec = TensorSpec::new(CENTROIDS.into(), Layout::Plain, [classes, dim]);
            let none = Tensor::zeros(&self.device, DType::F32, [classes, dim])?;
            add(CENTROIDS.into(), &spec, self.centroids.as_ref().unwrap_or(&none))?;
        }
        let run = serde_json::to_string(self.config()).map_err(|e| Error::Config(e.to_string()))?;
        let balancer = serde_json::to_string(&self.balancer.averages).map_err(|e| Error::Config(e.to_string()))?;
        let metadata = BTreeMap::from([(STEP.to_owned(), self.step().to_string()), (RUN.to_owned(), run), (BALANCER.to_owned(), balancer)]);
        let refs: Vec<TensorRef> = tensors.iter().map(|(name, shape, values)| TensorRef::f32(name, shape, values)).collect();
        Ok(weights::save(path, &refs, &metadata)?)
    }

    /// Continues from a checkpoint. `config` may change how long and how fast, not what is trained: of `train` all but `seed`, `loudness`
    /// and `gain_db`, optimisers, what losses weigh, how long k-means takes, and where noise and the speaker encoder lie.
    ///
    /// # Errors
    /// What is no checkpoint, or one of another configuration; the first key that differs is named with both values.
    pub fn resume(path: &Path, config: TrainConfig, device: &Device) -> Result<Trainer> {
        let file = weights::Weights::open(path)?;
        let fail = |why: String| Error::File { path: path.to_owned(), why };
        let metadata = |key| file.metadata().get(key).ok_or_else(|| fail(format!("no {key:?} in its metadata: not a training checkpoint")));
        let step: u64 = metadata(STEP)?.parse().map_err(|e| fail(format!("step: {e}")))?;
        let before: TrainConfig = serde_json::from_str(metadata(RUN)?).map_err(|e| fail(format!("run: {e}")))?;
        if before.architecture().map_err(|e| fail(e.to_string()))? != config.architecture()? {
            return Err(fail("was trained with another codec configuration".into()));
        }
        let table = |config: &TrainConfig| serde_json::to_value(config).map_err(|e| Error::Config(e.to_string()));
        if let Some(changed) = changed("", &table(&before)?, &table(&config)?) {
            return Err(fail(format!("was trained with {changed}")));
        }
        let mut trainer = Trainer::new(config, device)?;
        let mut expected: Vec<(String, Vec<usize>)> = Vec::new();
        for p in trainer.all_parameters() {
            expected.extend(PARTS.iter().map(|part| (format!("{part}.{}", p.spec.name), p.spec.published.clone())));
        }
        expected.extend(trainer.parameters().iter().map(|p| (format!("{AVERAGE}.{}", p.spec.name), p.spec.published.clone())));
        let books = trainer.architecture.averages();
        expected.extend(books.iter().flatten().map(|s| (s.name.clone(), s.published.clone())));
        let clusters = trainer.config.teacher.as_ref().and_then(Teacher::clusters);
        expected.extend(clusters.map(|shape| (CENTROIDS.to_owned(), shape.to_vec())));
        file.check(expected)?;
        let part = |prefix: &str, spec: &TensorSpec| -> Result<Tensor> {
            let values = spec.import(&file.to_f32(&format!("{prefix}.{}", spec.name))?);
            Ok(Tensor::from_slice(device, &values, Shape::try_from(&spec.shape()[..])?)?)
        };
        for p in trainer.parameters.iter_mut().chain(trainer.adversary.iter_mut().flat_map(|a| &mut a.parameters)) {
            p.value = Rc::new(part(PARTS[0], &p.spec)?);
            p.first_moment = part(PARTS[1], &p.spec)?;
            p.second_moment = part(PARTS[2], &p.spec)?;
        }
        for (p, average) in trainer.parameters.iter().zip(&mut trainer.averages) {
            *average = part(AVERAGE, &p.spec)?;
        }
        if let Some(averages) = file.metadata().get(BALANCER) {
            trainer.balancer.averages = serde_json::from_str(averages).map_err(|e| fail(format!("balancer: {e}")))?;
        }
        for (pair, book) in books.iter().zip(&mut trainer.codebooks) {
            book.usage = read(&file, &pair[0], device)?;
            book.sum = read(&file, &pair[1], device)?;
        }
        // Before k-means, nothing has been used.
        trainer.initialised = match trainer.codebooks.first() {
            Some(book) => book.usage.to_f64()?.iter().any(|&u| u > 0.0),
            None => false,
        };
        if let Some(shape) = clusters {
            let centroids = file.to_f32(CENTROIDS)?;
            // Before k-means, all are zero.
            if centroids.iter().any(|&v| v != 0.0) {
                trainer.centroids = Some(Tensor::from_slice(device, &centroids, shape)?);
            }
        }
        trainer.step = step;
        trainer.made = (step.saturating_sub(trainer.config.codebook.start) as usize).min(trainer.longest());
        Ok(trainer)
    }

    /// Starts from a model instead of from noise: weights with or without weight norm, codebooks as averages or embeddings; of a Mimi, an
    /// EnCodec or a SNAC any file that is published. The optimiser starts anew.
    pub fn initialise_from(&mut self, file: &weights::Weights) -> Result<()> {
        if self.config.codebook.initialise == Initialisation::Stepwise {
            return Err(Error::Config("initialise = \"stepwise\" makes codebooks that a model has already".into()));
        }
        let (device, dtype) = (self.device.clone(), self.dtype());
        let (found, books) = match &self.architecture {
            Architecture::Own(config) => own(file, config, &self.model, &device)?,
            Architecture::Mimi(config) => mimi_to_train(file, config, &device)?,
            Architecture::EnCodec(config) => encodec_to_train(file, config, &device)?,
            Architecture::Snac(config) => (snac_to_train(file, config, &device)?, Vec::new()),
        };
        // Modulation starts as none at all: a model may do without its weights.
        let without = !found.keys().any(|name| name.starts_with(PROSODY));
        let find = |name: &str| found.get(name).ok_or_else(|| Error::MissingTensor(name.to_owned()));
        let directions: BTreeMap<String, TensorSpec> =
            self.parameters.iter().filter(|p| p.spec.name.ends_with(".weight_v")).map(|p| (p.spec.name.clone(), p.spec.clone())).collect();
        for (p, average) in self.parameters.iter_mut().zip(&mut self.averages).filter(|(p, _)| !teacher::owns(p)) {
            if without && p.spec.name.starts_with(PROSODY) {
                continue;
            }
            let layer = p.spec.name.strip_suffix(".weight_g").or(p.spec.name.strip_suffix(".weight_v"));
            let value = match (found.get(&p.spec.name), layer) {
                (Some(value), _) => value.copy()?,
                (None, Some(layer)) => {
                    let weight = find(&format!("{layer}.weight"))?;
                    let (spec, filters) = (&directions[&format!("{layer}.weight_v")], weight.to_f64()?);
                    let is_direction = p.spec.name.ends_with(".weight_v");
                    let values = if is_direction { spec.directions(filters) } else { spec.norms(&filters) };
                    Tensor::from_f64(&device, DType::F32, &values, p.value.shape())?
                }
                (None, None) => find(&p.spec.name)?.copy()?,
            };
            p.value = Rc::new(elementwise::convert(&value, dtype)?);
            *average = p.value.copy()?;
            p.first_moment.set_zero()?;
            p.second_moment.set_zero()?;
        }
        for (book, [usage, sum]) in self.codebooks.iter_mut().zip(books) {
            book.usage = Tensor::from_f64(&device, dtype, &usage.to_f64()?, usage.shape())?;
            book.sum = Tensor::from_f64(&device, dtype, &sum.to_f64()?, sum.shape())?;
        }
        self.initialised = true;
        Ok(())
    }

    /// Writes the model as others load it: averaged weights, weight norm folded, embeddings in place of their averages;
    /// convolutions in bf16, what is searched or scales a whole channel in f32. An EnCodec or a SNAC as its package has it, all in f32 and
    /// weight-normed, with its `config.json` beside it.
    pub fn release(&self, path: &Path) -> Result<()> {
        if let Architecture::EnCodec(_) | Architecture::Snac(_) = &self.architecture {
            return self.publish(path);
        }
        let (weights, codebooks) = self.released()?;
        let mut specs = self.model.tensors(true);
        match &self.architecture {
            Architecture::Own(config) => specs.extend(quantizer::parameter_tensors(config, true)),
            Architecture::Mimi(config) => specs.extend(quantizer::split_tensors(config.hidden_size, config.codebook_dim)),
            Architecture::EnCodec(_) | Architecture::Snac(_) => {}
        }
        let mut tensors: Vec<(String, Vec<usize>, Dtype, Vec<u8>)> = Vec::new();
        let mut add = |spec: &TensorSpec, tensor: &Tensor| -> Result<()> {
            let values = spec.export(&elementwise::convert(tensor, DType::F32)?.to_vec::<f32>()?);
            let (dtype, bytes) = match spec.published.len() == 3 && spec.name.ends_with(".weight") {
                true => (Dtype::Bf16, values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect()),
                false => (Dtype::F32, values.iter().flat_map(|v| v.to_le_bytes()).collect()),
            };
            tensors.push((spec.name.clone(), spec.published.clone(), dtype, bytes));
            Ok(())
        };
        for spec in &specs {
            add(spec, weights.get(&spec.name).ok_or_else(|| Error::MissingTensor(spec.name.clone()))?)?;
        }
        match &self.architecture {
            Architecture::Own(_) => {
                for (k, book) in codebooks.iter().enumerate() {
                    add(&embedding_spec(k, book.shape()[0], book.shape()[1]), book)?;
                }
            }
            // As `moshi` has them: averages, and that they hold something.
            Architecture::Mimi(_) => {
                for ([usage, sum], book) in self.architecture.averages().iter().zip(&self.codebooks) {
                    add(usage, &book.usage)?;
                    add(sum, &book.sum)?;
                    let name = usage.name.replace("cluster_usage", "_initialized");
                    add(&TensorSpec::new(name, Layout::Plain, [1]), &Tensor::from_slice(&Device::Cpu, &[1.0f32], [1])?)?;
                }
            }
            Architecture::EnCodec(_) | Architecture::Snac(_) => {}
        }
        let metadata = BTreeMap::from([
            (METADATA_CONFIG.to_owned(), self.architecture.json()?),
            (METADATA_MODEL.to_owned(), self.config.model.clone()),
            (STEP.to_owned(), self.step().to_string()),
        ]);
        let refs: Vec<TensorRef> =
            tensors.iter().map(|(name, shape, dtype, bytes)| TensorRef { name, dtype: *dtype, shape, bytes }).collect();
        Ok(weights::save(path, &refs, &metadata)?)
    }

    fn publish(&self, path: &Path) -> Result<()> {
        let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = Vec::new();
        let values = |tensor: &Tensor| -> Result<Vec<f32>> { Ok(elementwise::convert(tensor, DType::F32)?.to_vec::<f32>()?) };
        let snac = matches!(self.architecture, Architecture::Snac(_));
        for (p, average) in self.parameters.iter().zip(&self.averages).filter(|(p, _)| !teacher::owns(p)) {
            // As PyTorch calls gain and direction since 2.0.
            let name = match (snac, p.spec.name.strip_suffix(".weight_g"), p.spec.name.strip_suffix(".weight_v")) {
                (true, Some(layer), _) => format!("{layer}.parametrizations.weight.original0"),
                (true, _, Some(layer)) => format!("{layer}.parametrizations.weight.original1"),
                _ => p.spec.name.clone(),
            };
            tensors.push((name, p.spec.published.clone(), p.spec.export(&values(average)?)));
        }
        for (k, book) in self.codebooks.iter().enumerate() {
            let (shape, sizes) = (book.sum.shape().to_vec(), book.usage.shape().to_vec());
            let mut add = |part: &str, shape: &[usize], values| {
                tensors.push((format!("quantizer.layers.{k}.codebook.{part}"), shape.to_vec(), values))
            };
            add("embed", &shape, values(&book.embedding()?)?);
            add("embed_avg", &shape, values(&book.sum)?);
            add("cluster_size", &sizes, values(&book.usage)?);
            add("inited", &[1], vec![1.0]);
        }
        for layer in self.model.layers() {
            let Layer::Windowed(windowed) = layer else { continue };
            let (name, shape) = frequencies(windowed);
            let turn = |i: usize| windowed.theta.powf(-2.0 * i as f64 / windowed.head_dim as f64) as f32;
            tensors.push((name, shape, (0..windowed.head_dim / 2).map(turn).collect()));
        }
        let config = self.architecture.json()?;
        let metadata = BTreeMap::from([
            ("format".to_owned(), "pt".to_owned()),
            (METADATA_CONFIG.to_owned(), config.clone()),
            (METADATA_MODEL.to_owned(), self.config.model.clone()),
            (STEP.to_owned(), self.step().to_string()),
        ]);
        let refs: Vec<TensorRef> = tensors.iter().map(|(name, shape, values)| TensorRef::f32(name, shape, values)).collect();
        output::write(path.with_file_name("config.json"), config.as_bytes())?;
        Ok(weights::save(path, &refs, &metadata)?)
    }
}

/// The first key that a resumed run has otherwise and may not, and its values.
fn changed(at: &str, before: &Value, now: &Value) -> Option<String> {
    if before == now || FREE.contains(&at) {
        return None;
    }
    let (Value::Object(before), Value::Object(now)) = (before, now) else { return Some(format!("{at} = {before}, not {now}")) };
    let value = |table: &Map<String, Value>, key: &String| table.get(key).cloned().unwrap_or_default();
    let key = |key: &String| changed(&[at, key].join(if at.is_empty() { "" } else { "." }), &value(before, key), &value(now, key));
    before.keys().chain(now.keys()).find_map(key)
}

/// Whether a model's configuration has prosody, whatever tensors it has.
fn says_prosody(file: &weights::Weights) -> Result<bool> {
    let Some(config) = file.metadata().get(METADATA_CONFIG) else { return Ok(false) };
    let fail = |e: serde_json::Error| Error::File { path: file.path().to_owned(), why: format!("{METADATA_CONFIG}: {e}") };
    let config: Value = serde_json::from_str(config).map_err(fail)?;
    Ok(config.get("prosody").is_some_and(|prosody| !prosody.is_null()))
}

/// Weights of a file of swara's own, with or without weight norm, and usage and sum of every codebook.
fn own(file: &weights::Weights, config: &Config, model: &Model, device: &Device) -> Result<(Weights, Vec<[Tensor; 2]>)> {
    let folded = !file.names().any(|n| n.ends_with(".weight_g"));
    let mut specs = model.tensors(folded);
    specs.extend(quantizer::parameter_tensors(config, folded));
    if !file.names().any(|name| name.starts_with(PROSODY)) && !says_prosody(file)? {
        specs.retain(|spec| !spec.name.starts_with(PROSODY));
    }
    let averages = quantizer::codebook_tensors(config);
    let embeddings: Vec<TensorSpec> =
        config.codebook_sizes.iter().enumerate().map(|(k, &size)| embedding_spec(k, size, config.codebook_dim)).collect();
    let released = file.names().any(|n| n.ends_with(".codebook.embedding"));
    let books = if released { &embeddings } else { &averages };
    file.check(specs.iter().chain(books).map(|s| (s.name.clone(), s.published.clone())))?;
    let load = |spec: &TensorSpec| read(file, spec, device);
    let weights = specs.iter().map(|spec| Ok((spec.name.clone(), load(spec)?))).collect::<Result<_>>()?;
    let books = match released {
        // As if every codeword had been used alike.
        true => {
            let alike = |spec: &TensorSpec| {
                let ones = Tensor::from_slice(device, &vec![1.0f32; spec.published[0]], [spec.published[0]])?;
                Ok([ones, load(spec)?])
            };
            embeddings.iter().map(alike).collect::<Result<_>>()?
        }
        false => averages.chunks_exact(2).map(|pair| Ok([load(&pair[0])?, load(&pair[1])?])).collect::<Result<_>>()?,
    };
    Ok((weights, books))
}
