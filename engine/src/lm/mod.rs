//! Language models over audio codes: Moshi and its family, a temporal transformer over steps of 80 ms and a depth transformer over
//! the codes of each.
//!
//! Source: Défossez et al. 2024 (Moshi); `LMModel` and `LMGen` of the package `moshi`.

mod checkpoint;
mod config;
mod model;
mod session;

use std::path::Path;

pub use checkpoint::{Layout, check};
pub use config::{Config, Drawn, Widths};
pub use session::{Drawing, Session, Step};
use swara_kernels::{DType, Device};

use self::model::{Depth, Layers, Temporal};
use crate::Result;
use crate::weights::{Reader, Source, values_dtype};

/// A language model on a device, ready to run.
pub struct Lm {
    name: String,
    config: Config,
    temporal: Temporal,
    depth: Option<Depth>,
    device: Device,
    dtype: DType,
}

impl Lm {
    /// Reads a published checkpoint: a file, or a directory that holds one and its `config.json`.
    ///
    /// # Errors
    /// What cannot be read, is not known, or disagrees with its configuration - all tensors that do, by name.
    pub fn open(path: &Path, device: &Device, dtype: DType) -> Result<Lm> {
        checkpoint::open(path, device, dtype)
    }

    fn assemble(name: String, config: Config, layers: &Layers, source: &dyn Source, device: &Device, dtype: DType) -> Result<Lm> {
        model::check_dtype(device, dtype)?;
        let (temporal, depth) = model::read(layers, &config, device, Reader::new(source, device, dtype))?;
        Ok(Lm { name, config, temporal, depth, device: device.clone(), dtype })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Of the weights.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Of what is between the layers: f32 beside bf16 on the CPU.
    fn values(&self) -> DType {
        values_dtype(&self.device, self.dtype)
    }
}
