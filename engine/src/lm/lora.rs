//! Low-rank updates of a model's matrices, merged as they are read: `W + scaling B A`, in f32.
//!
//! | tensor                                                    | shape               |                                             |
//! |-----------------------------------------------------------|---------------------|---------------------------------------------|
//! | `LINEAR.lora_A.weight`, `LINEAR.lora_B.weight`            | `[r, in]`, `[out, r]` | of a linear layer of moshi's               |
//! | those of `self_attn.in_proj` and `self_attn.out_proj`     | `[n r, in]`, `[n out, r]` | of all sets of weights, one below the other |
//! | `LINEAR.frozen_W.weight`, and any other tensor of the model | as the model has it | in place of the model's own                 |
//!
//! Source: `LoRALinear` of moshi's `modules/lora.py`; `get_lora_moshi` of its `models/loaders.py`.

use std::collections::BTreeMap;

use swara_kernels::ops::elementwise;
use swara_kernels::ops::linear::{self, Fused, Product, Weight};
use swara_kernels::quantized::{Panels, Quantized};
use swara_kernels::{DType, Device, Tensor};
use swara_loader::weights::Weights;

use super::checkpoint::{Layout, Published, moshi_names, part};
use super::config::Config;
use crate::weights::{Source, as_type};
use crate::{Error, Result};

/// A model with the updates of a file.
pub(super) struct Merged<'a> {
    base: &'a Published<'a>,
    file: &'a Weights,
    scaling: f32,
    updates: BTreeMap<String, Update>,
}

/// What a file has for one of our tensors.
#[derive(Default)]
struct Update {
    /// In place of the model's.
    instead: Option<String>,
    /// Two factors, which hold that of `count` tensors, of which this is the `nth`.
    factors: Option<([String; 2], usize, usize)>,
}

impl<'a> Merged<'a> {
    /// # Errors
    /// A tensor that is not for a matrix of the model, is not of its shape, or lacks the other factor.
    pub fn new(base: &'a Published, file: &'a Weights, config: &Config) -> Result<Merged<'a>> {
        let fail = |why: String| Error::File { path: file.path().to_owned(), why };
        if Layout::of(base.file()) == Some(Layout::HuggingFace) {
            // Rows of queries and keys are in another order there.
            return Err(fail("a LoRA of moshi beside a model in the names of transformers".into()));
        }
        let (mut updates, mut expected) = (BTreeMap::new(), BTreeMap::new());
        for (name, shape) in base.tensors() {
            let (own, stacked) = moshi_names(config, name);
            let mut update = Update::default();
            let linear = part(name, shape).is_some()
                || [".low_rank.weight", ".out1.weight", ".out2.weight", ".output_proj.weight"].iter().any(|end| name.ends_with(end));
            let module = own.strip_suffix(".weight").filter(|_| linear);
            let frozen = module.map(|module| format!("{module}.frozen_W.weight"));
            if let Some(instead) = frozen.into_iter().chain([own.clone()]).find(|name| file.contains(name)) {
                // Factors of norms are [1, 1, width].
                let published = if name.ends_with(".alpha") { [&[1, 1], shape].concat() } else { shape.to_vec() };
                expected.insert(instead.clone(), published);
                update.instead = Some(instead);
            }
            let all = stacked.as_ref().map(|(all, nth, count)| (all.trim_end_matches("weight").trim_end_matches(['.', '_']), *nth, *count));
            for (module, nth, count) in module.map(|module| (module, 0, 1)).into_iter().chain(all) {
                let names = ["A", "B"].map(|factor| format!("{module}.lora_{factor}.weight"));
                let found = names.iter().find_map(|name| Some((name, file.info(name)?.1)));
                let (first, rows, columns) = match found {
                    None => continue,
                    Some((name, &[rows, columns])) => (*name == names[0], rows, columns),
                    Some((name, shape)) => return Err(fail(format!("tensor {name} has shape {shape:?}, expected two axes"))),
                };
                if update.factors.is_some() {
                    return Err(fail(format!("tensor {} beside that of one set of weights alone", names[0])));
                }
                // The first factor says what the rank is; without it the second does.
                let rank = if first { rows / count.max(1) } else { columns };
                if rank > shape[0].max(shape[1]) {
                    return Err(fail(format!("tensor {} is of rank {rank} for a matrix {shape:?}", names[0])));
                }
                if rank == 0 || config.lora_rank.is_some_and(|expected| expected != rank) {
                    let wanted = config.lora_rank.map_or("1 or more".to_owned(), |rank| rank.to_string());
                    return Err(fail(format!("tensor {} is of rank {rank}, expected {wanted}", names[0])));
                }
                expected.insert(names[0].clone(), vec![count * rank, shape[1]]);
                expected.insert(names[1].clone(), vec![count * shape[0], rank]);
                update.factors = Some((names, nth, count));
            }
            if update.instead.is_some() || update.factors.is_some() {
                updates.insert(name.to_owned(), update);
            }
        }
        file.check(expected)?;
        match updates.is_empty() {
            true => Err(fail("no LoRA of this model".into())),
            false => Ok(Merged { base, file, scaling: config.lora_scaling as f32, updates }),
        }
    }

    /// Rows `nth` of `count` equal parts.
    fn factor(&self, name: &str, nth: usize, count: usize) -> Result<Tensor> {
        let shape = self.file.view(name)?.shape.to_vec();
        let (rows, columns) = (shape[0] / count, shape[1]);
        let values = self.file.to_f32_rows(name, nth * rows..(nth + 1) * rows)?;
        self.tensor(name, &values, &[rows, columns])
    }

    fn tensor(&self, name: &str, values: &[f32], shape: &[usize]) -> Result<Tensor> {
        match values.iter().position(|v| !v.is_finite()) {
            None => Ok(Tensor::from_slice(self.base.device(), values, swara_kernels::Shape::try_from(shape)?)?),
            Some(at) => {
                let why = format!("element {at} of tensor {name} is {}", values[at]);
                Err(Error::File { path: self.file.path().to_owned(), why })
            }
        }
    }
}

impl Source for Merged<'_> {
    fn read(&self, name: &str, dtype: DType) -> Result<Tensor> {
        let Some(update) = self.updates.get(name) else { return self.base.read(name, dtype) };
        let own = match &update.instead {
            Some(instead) => self.tensor(instead, &self.file.to_f32(instead)?, self.base.places(name)?.0)?,
            None => self.base.read(name, DType::F32)?,
        };
        let Some(([down, up], nth, count)) = &update.factors else { return as_type(own, dtype) };
        let (down, up) = (self.factor(down, *nth, *count)?, self.factor(up, *nth, *count)?);
        let columns = own.shape().last_dim();
        let scale = Tensor::from_slice(self.base.device(), &vec![self.scaling; columns], [columns])?;
        let rank = down.shape()[0];
        let down = elementwise::transpose(&down.reshape([1, rank, columns])?)?.reshape([columns, rank])?;
        let down = Weight::for_product(&down, Product::Tiles)?;
        let merged = linear::forward(&up, &down, Fused { scale: Some(&scale), residual: Some(&own), ..Default::default() })?;
        drop(own);
        let finite = match merged.device() {
            Device::Cpu => merged.as_slice::<f32>()?.iter().all(|v| v.is_finite()),
            Device::Cuda(_) => merged.to_vec::<f32>()?.iter().all(|v| v.is_finite()),
        };
        if !finite {
            return Err(Error::File { path: self.file.path().to_owned(), why: format!("tensor {name} is not finite once merged") });
        }
        as_type(merged, dtype)
    }

    /// Values that are merged are no codes any more.
    fn quantized(&self, name: &str) -> Result<Option<Quantized>> {
        if self.updates.contains_key(name) { Ok(None) } else { self.base.quantized(name) }
    }

    fn panels(&self, name: &str) -> Result<Option<Panels>> {
        if self.updates.contains_key(name) { Ok(None) } else { self.base.panels(name) }
    }
}
