//! Checkpoints of a run, and the model that it releases.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use swara_kernels::ops::elementwise;
use swara_kernels::{DType, Device, Shape, Tensor};
use swara_loader::weights::{self, Dtype, TensorRef};

use super::{TrainConfig, Trainer};
use crate::codec::model::TensorSpec;
use crate::codec::{METADATA_CONFIG, METADATA_MODEL, embedding_spec, quantizer, read};
use crate::{Error, Result};

const STEP: &str = "step";
const RUN: &str = "run";
/// What a checkpoint stores of a parameter: prefix of its name.
const PARTS: [&str; 4] = ["value", "first_moment", "second_moment", "average"];

impl Trainer {
    /// Writes everything that [`Trainer::resume`] needs, whole or not at all.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = Vec::new();
        let mut add = |name: String, spec: &TensorSpec, tensor: &Tensor| -> Result<()> {
            tensors.push((name, spec.published.clone(), spec.export(&elementwise::convert(tensor, DType::F32)?.to_vec::<f32>()?)));
            Ok(())
        };
        for p in self.parameters() {
            for (part, tensor) in PARTS.iter().zip([&*p.value, &p.first_moment, &p.second_moment, &p.average]) {
                add(format!("{part}.{}", p.spec.name), &p.spec, tensor)?;
            }
        }
        for (pair, book) in quantizer::codebook_tensors(&self.codec).chunks_exact(2).zip(self.codebooks()) {
            add(pair[0].name.clone(), &pair[0], &book.usage)?;
            add(pair[1].name.clone(), &pair[1], &book.sum)?;
        }
        let run = serde_json::to_string(self.config()).map_err(|e| Error::Config(e.to_string()))?;
        let metadata = BTreeMap::from([(STEP.to_owned(), self.step().to_string()), (RUN.to_owned(), run)]);
        let refs: Vec<TensorRef> = tensors.iter().map(|(name, shape, values)| TensorRef::f32(name, shape, values)).collect();
        Ok(weights::save(path, &refs, &metadata)?)
    }

    /// Continues from a checkpoint. `config` may change how long and how fast, not what is trained.
    pub fn resume(path: &Path, config: TrainConfig, device: &Device) -> Result<Trainer> {
        let file = weights::Weights::open(path)?;
        let fail = |why: String| Error::File { path: path.to_owned(), why };
        let metadata = |key| file.metadata().get(key).ok_or_else(|| fail(format!("no {key:?} in its metadata: not a training checkpoint")));
        let step = metadata(STEP)?.parse().map_err(|e| fail(format!("step: {e}")))?;
        let before: TrainConfig = serde_json::from_str(metadata(RUN)?).map_err(|e| fail(format!("run: {e}")))?;
        if before.codec()? != config.codec()? {
            return Err(fail("was trained with another codec configuration".into()));
        }
        let mut trainer = Trainer::new(config, device)?;
        let mut expected: Vec<(String, Vec<usize>)> = Vec::new();
        for p in trainer.parameters() {
            expected.extend(PARTS.iter().map(|part| (format!("{part}.{}", p.spec.name), p.spec.published.clone())));
        }
        let books = quantizer::codebook_tensors(&trainer.codec);
        expected.extend(books.iter().map(|s| (s.name.clone(), s.published.clone())));
        file.check(expected)?;
        let part = |prefix: &str, spec: &TensorSpec| -> Result<Tensor> {
            let values = spec.import(&file.to_f32(&format!("{prefix}.{}", spec.name))?);
            Ok(Tensor::from_slice(device, &values, Shape::try_from(&spec.shape()[..])?)?)
        };
        for p in &mut trainer.parameters {
            p.value = Rc::new(part(PARTS[0], &p.spec)?);
            p.first_moment = part(PARTS[1], &p.spec)?;
            p.second_moment = part(PARTS[2], &p.spec)?;
            p.average = part(PARTS[3], &p.spec)?;
        }
        for (pair, book) in books.chunks_exact(2).zip(&mut trainer.codebooks) {
            book.usage = read(&file, &pair[0], device)?;
            book.sum = read(&file, &pair[1], device)?;
        }
        // Before k-means, nothing has been used.
        trainer.initialised = match trainer.codebooks.first() {
            Some(book) => book.usage.to_f64()?.iter().any(|&u| u > 0.0),
            None => false,
        };
        trainer.step = step;
        Ok(trainer)
    }

    /// Starts from a model instead of from noise: weights with or without weight norm, codebooks as averages or embeddings. The
    /// optimiser starts anew.
    pub fn initialise_from(&mut self, file: &weights::Weights) -> Result<()> {
        let folded = !file.names().any(|n| n.ends_with(".weight_g"));
        let released = file.names().any(|n| n.ends_with(".codebook.embedding"));
        let mut expected = self.model.tensors(folded);
        expected.extend(quantizer::parameter_tensors(&self.codec, folded));
        let averages = quantizer::codebook_tensors(&self.codec);
        let embeddings: Vec<TensorSpec> =
            self.codec.codebook_sizes.iter().enumerate().map(|(k, &size)| embedding_spec(k, size, self.codec.codebook_dim)).collect();
        expected.extend(if released { embeddings.iter() } else { averages.iter() }.cloned());
        file.check(expected.iter().map(|s| (s.name.clone(), s.published.clone())))?;
        let (device, dtype) = (self.device.clone(), self.dtype());
        let load = |spec: &TensorSpec| -> Result<Tensor> { Ok(elementwise::convert(&read(file, spec, &device)?, dtype)?) };
        let directions: BTreeMap<String, TensorSpec> =
            self.parameters.iter().filter(|p| p.spec.name.ends_with(".weight_v")).map(|p| (p.spec.name.clone(), p.spec.clone())).collect();
        for p in &mut self.parameters {
            let layer = p.spec.name.strip_suffix(".weight_g").or(p.spec.name.strip_suffix(".weight_v"));
            p.value = Rc::new(match layer {
                Some(layer) if folded => {
                    let v = &directions[&format!("{layer}.weight_v")];
                    let weight = load(&TensorSpec { name: format!("{layer}.weight"), ..v.clone() })?;
                    match p.spec.name.ends_with(".weight_v") {
                        true => weight,
                        false => Tensor::from_f64(&device, dtype, &v.norms(&weight.to_f64()?), p.value.shape())?,
                    }
                }
                _ => load(&p.spec)?,
            });
            p.average = p.value.copy()?;
            p.first_moment.set_zero()?;
            p.second_moment.set_zero()?;
        }
        for (k, book) in self.codebooks.iter_mut().enumerate() {
            if released {
                // As if every codeword had been used alike.
                book.sum = load(&embeddings[k])?;
                book.usage = Tensor::from_f64(&device, dtype, &vec![1.0; book.usage.elements()], book.usage.shape())?;
            } else {
                book.usage = load(&averages[2 * k])?;
                book.sum = load(&averages[2 * k + 1])?;
            }
        }
        self.initialised = true;
        Ok(())
    }

    /// Writes the model as others load it: averaged weights, weight norm folded, embeddings in place of their averages;
    /// convolutions in bf16, what is searched or scales a whole channel in f32.
    pub fn release(&self, path: &Path) -> Result<()> {
        let (weights, codebooks) = self.released()?;
        let mut specs = self.model.tensors(true);
        specs.extend(quantizer::parameter_tensors(&self.codec, true));
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
        for (k, book) in codebooks.iter().enumerate() {
            add(&embedding_spec(k, book.shape()[0], book.shape()[1]), book)?;
        }
        let config = serde_json::to_string(&self.codec).map_err(|e| Error::Config(e.to_string()))?;
        let metadata = BTreeMap::from([
            (METADATA_CONFIG.to_owned(), config),
            (METADATA_MODEL.to_owned(), self.config.model.clone()),
            (STEP.to_owned(), self.step().to_string()),
        ]);
        let refs: Vec<TensorRef> =
            tensors.iter().map(|(name, shape, dtype, bytes)| TensorRef { name, dtype: *dtype, shape, bytes }).collect();
        Ok(weights::save(path, &refs, &metadata)?)
    }
}
