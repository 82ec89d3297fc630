//! What the convolutions of EnCodec and of Mimi have in common: SEANet, by the keys of `config.json` in `transformers`.

use crate::config::check_ranges;
use crate::{Error, Result};

pub(super) struct Seanet<'a> {
    pub num_filters: usize,
    pub num_residual_layers: usize,
    pub kernel_size: usize,
    pub last_kernel_size: usize,
    pub residual_kernel_size: usize,
    pub dilation_growth_rate: usize,
    pub compress: usize,
    /// Coarsest first, as the decoder has them.
    pub upsampling_ratios: &'a [usize],
}

impl Seanet<'_> {
    /// Refuses shapes that no file should be able to ask for.
    pub fn check(&self) -> Result<()> {
        check_ranges(&[
            ("num_filters", self.num_filters, 1, 1024),
            ("num_residual_layers", self.num_residual_layers, 0, 8),
            ("kernel_size", self.kernel_size, 1, 64),
            ("last_kernel_size", self.last_kernel_size, 1, 64),
            ("residual_kernel_size", self.residual_kernel_size, 1, 64),
            ("dilation_growth_rate", self.dilation_growth_rate, 1, 8),
            ("compress", self.compress, 1, 64),
            ("upsampling_ratios' length", self.upsampling_ratios.len(), 1, 8),
        ])?;
        if self.upsampling_ratios.iter().any(|r| !(1..=64).contains(r)) {
            return Err(Error::Config(format!("upsampling_ratios must lie in 1..=64: {:?}", self.upsampling_ratios)));
        }
        if self.num_filters < self.compress {
            return Err(Error::Config(format!("num_filters {} is below compress {}", self.num_filters, self.compress)));
        }
        Ok(())
    }

    /// Channels after `blocks` of the encoder's blocks.
    pub fn width(&self, blocks: usize) -> usize {
        self.num_filters << blocks
    }

    /// Elements of the largest activation of a frame that is `latents` rows after the last stride, or of what a dilated convolution
    /// looks back on.
    pub fn largest(&self, latents: usize) -> usize {
        let blocks = self.upsampling_ratios.len();
        let (mut largest, mut rows) = (0, latents);
        for (i, ratio) in self.upsampling_ratios.iter().enumerate() {
            largest = largest.max(rows.saturating_mul(self.width(blocks - i)));
            rows = rows.saturating_mul(*ratio);
        }
        let dilation = self.dilation_growth_rate.saturating_pow(self.num_residual_layers.saturating_sub(1) as u32);
        let past = self.residual_kernel_size.saturating_mul(dilation).saturating_mul(self.width(blocks - 1));
        largest.max(past).max(rows.saturating_mul(self.num_filters))
    }
}
