//! `config.json` of `WavLMModel` and `HubertModel`.

use serde::Deserialize;
use swara_kernels::ops::attention::MAX_HEAD_DIM;

use super::{SAMPLE_RATE, SECONDS};
use crate::config::check_ranges;
use crate::{Error, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Attention has a bias by distance, gated by what is attended with.
    WavLm,
    Hubert,
}

impl Kind {
    /// Of the tensors of a model with a head.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Kind::WavLm => "wavlm.",
            Kind::Hubert => "hubert.",
        }
    }
}

/// Most numbers that a layer of convolutions makes of a window; the base models make half of that.
const MOST_NUMBERS: usize = 1 << 27;

/// Samples: 5 ms.
const LEAST_HOP: usize = 80;

/// What a file leaves out is as in the base models; what it has beyond these is of no consequence here.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct Config {
    pub model_type: String,
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub intermediate_size: usize,
    pub hidden_act: String,
    pub layer_norm_eps: f64,
    pub feat_extract_norm: String,
    pub feat_extract_activation: String,
    pub feat_proj_layer_norm: bool,
    pub conv_dim: Vec<usize>,
    pub conv_stride: Vec<usize>,
    pub conv_kernel: Vec<usize>,
    pub conv_bias: bool,
    pub num_conv_pos_embeddings: usize,
    pub num_conv_pos_embedding_groups: usize,
    pub conv_pos_batch_norm: bool,
    pub do_stable_layer_norm: bool,
    pub add_adapter: bool,
    pub num_buckets: usize,
    pub max_bucket_distance: usize,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            model_type: String::new(),
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: "gelu".into(),
            layer_norm_eps: 1e-5,
            feat_extract_norm: "group".into(),
            feat_extract_activation: "gelu".into(),
            feat_proj_layer_norm: true,
            conv_dim: vec![512; 7],
            conv_stride: vec![5, 2, 2, 2, 2, 2, 2],
            conv_kernel: vec![10, 3, 3, 3, 3, 2, 2],
            conv_bias: false,
            num_conv_pos_embeddings: 128,
            num_conv_pos_embedding_groups: 16,
            conv_pos_batch_norm: false,
            do_stable_layer_norm: false,
            add_adapter: false,
            num_buckets: 320,
            max_bucket_distance: 800,
        }
    }
}

impl Config {
    pub fn from_json(text: &str) -> Result<Config> {
        let config: Config = serde_json::from_str(text).map_err(|e| Error::Config(e.to_string()))?;
        config.check()?;
        Ok(config)
    }

    pub fn kind(&self) -> Result<Kind> {
        match self.model_type.as_str() {
            "wavlm" => Ok(Kind::WavLm),
            "hubert" => Ok(Kind::Hubert),
            found => Err(Error::Config(format!("model_type is {found:?}, expected \"wavlm\" or \"hubert\""))),
        }
    }

    /// Whether every convolution has a layer norm, not the first one a norm of each channel over time.
    pub fn norms_layers(&self) -> bool {
        self.feat_extract_norm == "layer"
    }

    /// Samples from one row to the next.
    pub fn hop(&self) -> usize {
        self.conv_stride.iter().product()
    }

    /// Samples that a row sees of the wave.
    pub fn reach(&self) -> usize {
        self.samples(1)
    }

    /// Samples that make so many rows, no fewer and no more than needed.
    pub fn samples(&self, rows: usize) -> usize {
        let layers = self.conv_kernel.iter().zip(&self.conv_stride).rev();
        layers.fold(rows, |n, (kernel, stride)| if n == 0 { 0 } else { (n - 1).saturating_mul(*stride).saturating_add(*kernel) })
    }

    /// Rows that so many samples make.
    pub fn rows(&self, samples: usize) -> usize {
        let layers = self.conv_kernel.iter().zip(&self.conv_stride);
        layers.fold(samples, |n, (kernel, stride)| if n < *kernel { 0 } else { (n - kernel) / stride + 1 })
    }

    /// Refuses what is neither, and shapes that no file should be able to ask for.
    fn check(&self) -> Result<()> {
        let kind = self.kind()?;
        let fail = |what: String| Err(Error::Config(what));
        let only = |key, found: &dyn std::fmt::Debug, expected: &str| fail(format!("{key} is {found:?}, expected {expected}"));
        match self {
            c if c.hidden_act != "gelu" => return only("hidden_act", &c.hidden_act, "\"gelu\""),
            c if c.feat_extract_activation != "gelu" => return only("feat_extract_activation", &c.feat_extract_activation, "\"gelu\""),
            c if !["group", "layer"].contains(&c.feat_extract_norm.as_str()) => {
                return only("feat_extract_norm", &c.feat_extract_norm, "\"group\" or \"layer\"");
            }
            c if c.conv_pos_batch_norm => return only("conv_pos_batch_norm", &true, "false"),
            c if c.add_adapter => return only("add_adapter", &true, "false"),
            c if !(0.0..=1.0).contains(&c.layer_norm_eps) => return only("layer_norm_eps", &c.layer_norm_eps, "0 to 1"),
            c if c.conv_dim.len() != c.conv_stride.len() || c.conv_dim.len() != c.conv_kernel.len() => {
                let lengths = [c.conv_dim.len(), c.conv_stride.len(), c.conv_kernel.len()];
                return only("the length of conv_dim, conv_stride and conv_kernel", &lengths, "the same of all");
            }
            _ => {}
        }
        let ranges = [
            ("hidden_size", self.hidden_size, 1, 8192),
            ("num_hidden_layers", self.num_hidden_layers, 1, 128),
            ("num_attention_heads", self.num_attention_heads, 1, 256),
            ("intermediate_size", self.intermediate_size, 1, 1 << 16),
            ("conv_dim's length", self.conv_dim.len(), 1, 16),
            ("num_conv_pos_embeddings", self.num_conv_pos_embeddings, 1, 1024),
            ("num_conv_pos_embedding_groups", self.num_conv_pos_embedding_groups, 1, self.hidden_size),
            ("num_buckets", self.num_buckets, 4, 1 << 16),
            ("max_bucket_distance", self.max_bucket_distance, self.num_buckets / 4 + 1, 1 << 20),
        ];
        check_ranges(&ranges)?;
        for (key, values, most) in
            [("conv_dim", &self.conv_dim, 1024), ("conv_stride", &self.conv_stride, 64), ("conv_kernel", &self.conv_kernel, 64)]
        {
            values.iter().try_for_each(|&value| check_ranges(&[(key, value, 1, most)]))?;
        }
        // Attention looks from every row of a window of sound to every other.
        let hop = self.conv_stride.iter().fold(1usize, |hop, &stride| hop.saturating_mul(stride));
        check_ranges(&[("conv_stride's product", hop, LEAST_HOP, SAMPLE_RATE as usize)])?;
        let window = SECONDS * SAMPLE_RATE as usize;
        check_ranges(&[("the samples that a row sees", self.reach(), 1, window)])?;
        let mut rows = window;
        for ((&dim, &stride), &kernel) in self.conv_dim.iter().zip(&self.conv_stride).zip(&self.conv_kernel) {
            rows = rows.saturating_sub(kernel) / stride + 1;
            check_ranges(&[("numbers that a convolution makes of a window", rows * dim, 1, MOST_NUMBERS)])?;
        }
        if !self.hidden_size.is_multiple_of(self.num_conv_pos_embedding_groups) {
            return only("hidden_size", &self.hidden_size, &format!("a multiple of {} groups", self.num_conv_pos_embedding_groups));
        }
        let head = self.hidden_size / self.num_attention_heads;
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) || (kind == Kind::Hubert && head > MAX_HEAD_DIM) {
            let what = format!("{} heads of at most {MAX_HEAD_DIM} each", self.num_attention_heads);
            return only("hidden_size", &self.hidden_size, &what);
        }
        Ok(())
    }

    /// The row of the table of biases for a key so far behind a query.
    pub fn bucket(&self, distance: isize) -> usize {
        let buckets = self.num_buckets / 2;
        let (exact, far) = (buckets / 2, distance.unsigned_abs());
        let ahead = if distance > 0 { buckets } else { 0 };
        if far < exact {
            return ahead + far;
        }
        // In f32, as the published code rounds.
        let log = (far as f32 / exact as f32).ln() / ((self.max_bucket_distance as f64 / exact as f64).ln() as f32);
        let bucket = exact + (log * (buckets - exact) as f32) as usize;
        ahead + bucket.min(buckets - 1)
    }
}
