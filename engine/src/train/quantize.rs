//! Quantisation while training: straight-through gradients, commitment, and what keeps codebooks alive.

use std::rc::Rc;

use swara_kernels::Tensor;
use swara_kernels::case::SplitMix;
use swara_kernels::ops::rvq_search::Metric;
use swara_kernels::ops::{codebook, elementwise, reduce, rvq_search};

use super::CodebookRules;
use super::architecture::Branch;
use super::recording::Recording;
use crate::Result;
use crate::codec::Config;
use crate::codec::quantizer::USAGE_EPSILON;
use crate::tape::{Tape, Var};

/// Moving averages of one stage (Mimi's rules).
pub struct Codebook {
    pub usage: Tensor,
    pub sum: Tensor,
}

impl Codebook {
    pub fn embedding(&self) -> Result<Tensor> {
        Ok(codebook::embedding(&self.usage, &self.sum, USAGE_EPSILON)?)
    }
}

/// Inputs `[N, D]` and codes i32 `[N]` of every stage.
pub type Stages = Vec<(Tensor, Tensor)>;

/// What one step of quantisation leaves behind.
pub struct Quantised {
    /// `[B, T, latent]`
    pub z: Var,
    /// Unweighted terms of the commitment, and of the codebook loss if there is one.
    pub commitment: Vec<Var>,
    pub codebook: Vec<Var>,
    /// For the moving averages.
    pub stages: Stages,
}

/// What a step draws for its quantiser.
#[derive(Clone, Copy, Debug)]
pub struct Draws {
    /// Stages that reach the decoder.
    pub used: usize,
    pub no_quantization_rate: f64,
    pub seed: u64,
}

/// `ema` quantisation of `z`: every stage runs and learns, some of them reach the decoder.
pub fn ema(recording: &Recording, z: &Var, codebooks: &[Codebook], branches: &[Branch], draws: Draws, weight: f64) -> Result<Quantised> {
    let mut whole = Quantised { z: z.clone(), commitment: Vec::new(), codebook: Vec::new(), stages: Vec::new() };
    let mut sum: Option<Var> = None;
    for (n, branch) in branches.iter().enumerate() {
        // Those of the branches before all reach it, and one of each after.
        let used = (draws.used - (branches.len() - 1 - n)).saturating_sub(branch.stages.start).clamp(1, branch.stages.len());
        let x = project(recording, z, branch.name, "input_proj")?;
        let (quantised, commitment) =
            residual(recording.tape, &x, &codebooks[branch.stages.clone()], used, draws, weight, &mut whole.stages)?;
        whole.commitment.push(commitment);
        let quantised = spared(&x, quantised, draws, n)?;
        let y = project(recording, &recording.tape.straight_through(&x, quantised), branch.name, "output_proj")?;
        sum = Some(match sum {
            Some(sum) => recording.tape.add(&sum, &y)?,
            None => y,
        });
    }
    whole.z = sum.ok_or_else(|| crate::Error::Argument("no codebooks to quantise with".into()))?;
    Ok(whole)
}

/// Residual stages over `x [B, T, D]`, `used` of which are summed up; the commitment is a share of a mean over all that are.
fn residual(
    tape: &Tape,
    x: &Var,
    codebooks: &[Codebook],
    used: usize,
    draws: Draws,
    weight: f64,
    stages: &mut Stages,
) -> Result<(Tensor, Var)> {
    let shape = x.value().shape();
    let (rows, dim) = (shape.rows(), shape.last_dim());
    let mut residual = x.value().copy()?.reshape([rows, dim])?;
    let mut quantised: Option<Tensor> = None;
    // A stage's input minus its codeword is the next residual r, the codeword is detached, and every stage's input has the
    // identity as its gradient in x: the commitment mean |r|^2 pulls x by 2 r / n, per stage.
    let mut pull: Option<Tensor> = None;
    let mut commitment: Option<Tensor> = None;
    let n = (rows * dim * draws.used) as f64;
    for (k, book) in codebooks.iter().enumerate() {
        let (codes, next) = rvq_search::stage(&residual, &book.embedding()?)?;
        if k < used {
            accumulate(&mut pull, elementwise::scale(&next, 2.0 / n)?)?;
            accumulate(&mut commitment, elementwise::scale(&reduce::sum_squares(&next)?, 1.0 / n)?)?;
        }
        if k + 1 == used {
            let flat = x.value().copy()?.reshape([rows, dim])?;
            quantised = Some(elementwise::sub(&flat, &next)?.reshape(shape)?);
        }
        stages.push((std::mem::replace(&mut residual, next), codes));
    }
    let (Some(quantised), Some(pull), Some(commitment)) = (quantised, pull, commitment) else {
        return Err(crate::Error::Argument(format!("{used} stages of {} used", codebooks.len())));
    };
    Ok((quantised, tape.known_loss(x, commitment, pull.reshape(shape)?, weight)))
}

/// `quantised`, but for the items that are drawn to stay as `x` has them.
fn spared(x: &Var, mut quantised: Tensor, draws: Draws, branch: usize) -> Result<Tensor> {
    let [items, t, dim] = x.value().shape()[..] else { return Ok(quantised) };
    for item in 0..items {
        if SplitMix(mix(draws.seed, item as u64, branch as u64)).uniform() < draws.no_quantization_rate {
            quantised.write_rows(item * t, &x.value().part(item * t * dim, [t, dim])?)?;
        }
    }
    Ok(quantised)
}

/// The projections of an `ema` quantiser with nothing between them: what trains before there are codebooks.
pub fn pass_through(recording: &Recording, z: &Var, branches: &[Branch]) -> Result<Var> {
    let mut sum: Option<Var> = None;
    for branch in branches {
        let y = project(recording, &project(recording, z, branch.name, "input_proj")?, branch.name, "output_proj")?;
        sum = Some(match sum {
            Some(sum) => recording.tape.add(&sum, &y)?,
            None => y,
        });
    }
    sum.ok_or_else(|| crate::Error::Argument("no codebooks to come".into()))
}

/// `x` through `{branch}.{name}`.
pub fn project(recording: &Recording, x: &Var, branch: &str, name: &str) -> Result<Var> {
    let weight = recording.parameter(&format!("{branch}.{name}.weight"))?;
    Ok(recording.tape.conv1d(x, weight, None, None, Default::default())?)
}

fn accumulate(sum: &mut Option<Tensor>, term: Tensor) -> Result<()> {
    match sum {
        Some(sum) => elementwise::add_assign(sum, &term)?,
        None => *sum = Some(term),
    }
    Ok(())
}

/// DAC's factorised quantisation: a projection in and out of every stage, cosine codes, codebooks by gradient.
pub fn factorised(
    recording: &Recording,
    z: &Var,
    config: &Config,
    used: usize,
    commitment_weight: f64,
    codebook_weight: f64,
) -> Result<Quantised> {
    use swara_kernels::ops::weight_norm::Axis;
    let tape: &Tape = recording.tape;
    let shape = z.value().shape();
    let (rows, dim) = (shape.rows(), config.codebook_dim);
    let mut residual = z.clone();
    let mut sum: Option<Var> = None;
    let (mut commitment, mut codebook, mut stages) = (Vec::new(), Vec::new(), Vec::new());
    for k in 0..config.codebook_sizes.len() {
        let stage = format!("quantizer.quantizers.{k}");
        let projection = |name: &str, x: &Var| -> Result<Var> {
            let layer = format!("{stage}.{name}");
            let weight = recording.weight(&layer, Axis::Out)?;
            Ok(tape.conv1d(x, &weight, Some(recording.parameter(&format!("{layer}.bias"))?), None, Default::default())?)
        };
        let encoded = projection("in_proj", &residual)?;
        let flat = tape.reshape(&encoded, [rows, dim])?;
        let book = recording.parameter(&format!("{stage}.codebook.weight"))?;
        let codes = Rc::new(rvq_search::nearest(flat.value(), book.value(), Metric::Cosine)?);
        let words = tape.gather(book, &codes)?;
        if k < used {
            commitment.push(tape.mse_loss(&flat, &words.detached(), commitment_weight)?);
            codebook.push(tape.mse_loss(&words, &flat.detached(), codebook_weight)?);
        }
        let through = tape.straight_through(&encoded, words.value().copy()?.reshape(encoded.value().shape())?);
        let decoded = projection("out_proj", &through)?;
        residual = tape.sub(&residual, &decoded)?;
        if k < used {
            sum = Some(match sum {
                Some(sum) => tape.add(&sum, &decoded)?,
                None => decoded,
            });
        }
        stages.push((flat.value().copy()?, codes.copy()?));
    }
    let Some(z) = sum else { return Err(crate::Error::Argument(format!("{used} stages used"))) };
    Ok(Quantised { z, commitment, codebook, stages })
}

/// The stages of several batches as those of one.
pub fn concatenated(mut batches: Vec<Stages>) -> Result<Stages> {
    if batches.len() == 1 {
        return Ok(batches.remove(0));
    }
    let join = |parts: &[&Tensor], width: usize| -> Result<Tensor> {
        let rows = parts.iter().map(|part| part.shape()[0]).sum::<usize>();
        let mut whole = Tensor::empty(&parts[0].device(), parts[0].dtype(), [rows, width])?;
        let mut first = 0;
        for part in parts {
            let part_rows = part.shape()[0];
            whole.write_rows(first, &part.copy()?.reshape([part_rows, width])?)?;
            first += part_rows;
        }
        Ok(whole)
    };
    let stages = batches.first().map_or(0, Vec::len);
    let stage = |k: usize| {
        let (inputs, codes): (Vec<&Tensor>, Vec<&Tensor>) = batches.iter().map(|stages| (&stages[k].0, &stages[k].1)).unzip();
        let codes = join(&codes, 1)?;
        let rows = codes.shape()[0];
        Ok((join(&inputs, inputs[0].shape().last_dim())?, codes.reshape([rows])?))
    };
    (0..stages).map(stage).collect()
}

/// Moves the averages towards what a step saw, and replaces codewords that nobody uses by samples of the batch.
pub fn update(codebooks: &mut [Codebook], stages: &[(Tensor, Tensor)], rules: &CodebookRules, step: u64, seed: u64) -> Result<()> {
    for (k, (book, (inputs, codes))) in codebooks.iter_mut().zip(stages).enumerate() {
        let size = book.usage.elements();
        let (counts, sums) = codebook::statistics(inputs, codes, size)?;
        codebook::ema_update(&mut book.usage, &mut book.sum, &counts, &sums, rules.decay)?;
        if step.is_multiple_of(rules.check_every) {
            revive(book, inputs, rules, &mut SplitMix(mix(seed, step, k as u64)))?;
        }
    }
    Ok(())
}

fn revive(book: &mut Codebook, inputs: &Tensor, rules: &CodebookRules, rng: &mut SplitMix) -> Result<()> {
    let usage = book.usage.to_f64()?;
    let mean = usage.iter().sum::<f64>() / usage.len() as f64;
    let expired: Vec<i32> = (0..usage.len() as i32).filter(|&i| usage[i as usize] < rules.expire_below * mean).collect();
    if expired.is_empty() {
        return Ok(());
    }
    let device = inputs.device();
    let picks: Vec<i32> = expired.iter().map(|_| (rng.next() % inputs.shape()[0] as u64) as i32).collect();
    let samples = rvq_search::gather(inputs, &Tensor::from_slice(&device, &picks, [picks.len()])?)?;
    let rows = Tensor::from_slice(&device, &expired, [expired.len()])?;
    Ok(codebook::replace_rows(&mut book.sum, &mut book.usage, &rows, &samples, mean.max(USAGE_EPSILON))?)
}

/// Codebooks by k-means over `x [N, D]`, stage by stage on what the stages before leave over.
pub fn kmeans(x: Tensor, sizes: &[usize], iterations: usize, seed: u64) -> Result<Vec<Codebook>> {
    let device = x.device();
    let n = x.shape()[0];
    let mut residual = x;
    let mut books = Vec::with_capacity(sizes.len());
    for (stage, &size) in sizes.iter().enumerate() {
        let mut rng = SplitMix(mix(seed, u64::MAX, stage as u64));
        let mut pick = |count: usize| -> Result<Tensor> {
            let picks: Vec<i32> = (0..count).map(|_| (rng.next() % n as u64) as i32).collect();
            Ok(rvq_search::gather(&residual, &Tensor::from_slice(&device, &picks, [count])?)?)
        };
        let mut means = pick(size)?;
        let (mut usage, mut sum) = (Tensor::zeros(&device, means.dtype(), [size])?, means.copy()?);
        for _ in 0..iterations.max(1) {
            (usage, sum) = codebook::kmeans_step(&residual, &means)?;
            let counts = usage.to_f64()?;
            let empty: Vec<i32> = (0..size as i32).filter(|&i| counts[i as usize] == 0.0).collect();
            if !empty.is_empty() {
                let rows = Tensor::from_slice(&device, &empty, [empty.len()])?;
                codebook::replace_rows(&mut sum, &mut usage, &rows, &pick(empty.len())?, 1.0)?;
            }
            means = codebook::embedding(&usage, &sum, USAGE_EPSILON)?;
        }
        // On the scale of one step, so that the averages start near where they will settle.
        let book = Codebook { usage, sum };
        residual = rvq_search::stage(&residual, &book.embedding()?)?.1;
        books.push(book);
    }
    Ok(books)
}

/// Usage and sum as one batch of `batch_rows` would have left them, from `n` rows.
pub fn rescale(book: &mut Codebook, batch_rows: usize, n: usize) -> Result<()> {
    let factor = batch_rows as f64 / n as f64;
    book.usage = elementwise::scale(&book.usage, factor)?;
    book.sum = elementwise::scale(&book.sum, factor)?;
    Ok(())
}

/// A seed for one step's draws.
pub fn mix(seed: u64, step: u64, what: u64) -> u64 {
    let mut rng = SplitMix(seed ^ step.rotate_left(24) ^ what.rotate_left(48));
    rng.next()
}
