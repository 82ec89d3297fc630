//! The operations that a frame is made of, one after the other.

use super::Depth;
use crate::ops::attention::{self, KvCache, Positions};
use crate::ops::embedding::{self, Tables};
use crate::ops::linear::{self, Activation, Fused};
use crate::ops::rms_norm;
use crate::ops::rope::{self, Rope, Style};
use crate::ops::sample::{self, Sampler};
use crate::{Result, Tensor};

/// On any device: the tests compare it with the launch.
pub fn say<'m>(
    depth: &Depth,
    h: &Tensor,
    said: &mut Tensor,
    samplers: &mut [Sampler],
    drawn: impl Fn(usize) -> Option<&'m Tensor>,
) -> Result<Vec<Tensor>> {
    let (layers, extents, device) = (&depth.layers, &depth.extents, h.device());
    let batch = h.shape().rows();
    let h = h.copy()?.reshape([batch, 1, extents.dim])?;
    let still;
    let rope = match &layers.rope {
        Some(rope) => &**rope,
        None => {
            still = Rope::with_frequencies(&device, &vec![0.0; extents.head_dim / 2], Style::Interleaved)?;
            &still
        }
    };
    let cache = |_| KvCache::new(&device, h.dtype(), batch, layers.kv_heads, extents.positions, extents.head_dim);
    let mut caches: Vec<KvCache> = (0..extents.layers).map(cache).collect::<Result<_>>()?;
    let mut run = |mut x: Tensor, set: usize, position: usize| -> Result<Tensor> {
        let positions = Positions::at(&device, &vec![position as i32; batch])?;
        for (block, cache) in layers.sets[set].iter().zip(&mut caches) {
            let normed = rms_norm::forward(&x, &block.norms[0], layers.epsilon)?;
            let q = rope::append(&linear::forward(&normed, &block.project, Fused::default())?, rope, cache, &positions, None)?;
            let seen = attention::step(&q, cache, &positions, None, None)?;
            x = linear::forward(&seen, &block.out, Fused { residual: Some(&x), ..Default::default() })?;
            let normed = rms_norm::forward(&x, &block.norms[1], layers.epsilon)?;
            let wide = linear::forward(&normed, &block.widen, Fused { activation: Activation::SiluGate, ..Default::default() })?;
            x = linear::forward(&wide, &block.narrow, Fused { residual: Some(&x), ..Default::default() })?;
        }
        Ok(x)
    };
    let first = usize::from(layers.h_first);
    if layers.h_first {
        run(linear::forward(&h, &layers.inputs[0], Fused::default())?, layers.steps[0].set, 0)?;
    }
    let mut logits = Vec::with_capacity(layers.steps.len());
    for (k, (step, sampler)) in layers.steps.iter().zip(samplers).enumerate() {
        let tables = Tables::new(&device, &[step.said.shape()[0]])?;
        let row = embedding::forward(&step.said, &tables, (said, k), None)?.reshape([batch, 1, extents.width])?;
        let x = match layers.h_first {
            true => row,
            false => linear::forward(&h, &layers.inputs[step.input], Fused { residual: Some(&row), ..Default::default() })?,
        };
        let mut x = run(x, step.set, first + k)?;
        if let Some(norm) = &step.norm {
            x = rms_norm::forward(&x, norm, layers.last_epsilon)?;
        }
        let found = linear::forward(&x, &step.linear, Fused { bias: step.bias.as_deref(), ..Default::default() })?;
        let found = found.reshape([batch, extents.card])?;
        sample::draw(said, k + 1, &found, sampler, drawn(k))?;
        logits.push(found);
    }
    Ok(logits)
}
