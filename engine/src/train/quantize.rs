//! Quantisation while training: straight-through gradients, commitment, and what keeps codebooks alive.

mod drawn;
mod ervq;
#[cfg(test)]
mod tests;

use std::rc::Rc;

use swara_kernels::Tensor;
use swara_kernels::case::SplitMix;
use swara_kernels::ops::matmul::{self, Transpose};
use swara_kernels::ops::rvq_search::Metric;
use swara_kernels::ops::{codebook, elementwise, reduce, rvq_search};

pub use self::drawn::Drawn;
use self::ervq::{Anchor, Rows};
use super::architecture::Branch;
use super::recording::Recording;
use super::{CodebookRules, DropoutOf, LossWeights, Revival};
use crate::Result;
use crate::codec::quantizer::{LAPLACE_EPSILON, USAGE_EPSILON};
use crate::tape::{Tape, Var};

/// Moving averages of one stage.
pub struct Codebook {
    pub usage: Tensor,
    pub sum: Tensor,
    pub averaging: Averaging,
}

/// By what sums are divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Averaging {
    /// `max(usage, epsilon)` (Mimi).
    Plain,
    /// `(usage + e) / (total + K e) total` (EnCodec).
    Smoothed,
}

impl Codebook {
    pub fn embedding(&self) -> Result<Tensor> {
        match self.averaging {
            Averaging::Plain => Ok(codebook::embedding(&self.usage, &self.sum, USAGE_EPSILON)?),
            Averaging::Smoothed => Ok(codebook::embedding(&smoothed(&self.usage)?, &self.sum, f64::from(f32::MIN_POSITIVE))?),
        }
    }
}

/// [`quantizer::smoothed`](crate::codec::quantizer::smoothed), on the device.
fn smoothed(usage: &Tensor) -> Result<Tensor> {
    let size = usage.elements();
    let epsilon = Tensor::from_f64(&usage.device(), usage.dtype(), &[LAPLACE_EPSILON], [1])?;
    let raised = elementwise::add_row(&usage.copy()?.reshape([size, 1])?, &epsilon)?;
    let total = reduce::sum(usage)?.reshape([1, 1])?;
    let factor = codebook::embedding(&reduce::sum(&raised)?, &total, f64::from(f32::MIN_POSITIVE))?;
    Ok(matmul::forward(&raised, &factor, Transpose::default())?.reshape([size])?)
}

/// Inputs `[N, D]` and codes i32 `[N]` of every stage.
pub type Stages = Vec<(Tensor, Tensor)>;

/// What a step draws.
pub trait Draws {
    /// Row numbers below `rows`, `count` of them: different ones if there are as many.
    fn rows(&mut self, rows: usize, count: usize) -> Vec<i32>;

    /// From 0 to 1.
    fn uniform(&mut self) -> f64;
}

/// Draws that a seed decides.
pub struct Seeded(SplitMix);

impl Seeded {
    pub fn new(seed: u64) -> Seeded {
        Seeded(SplitMix(seed))
    }
}

impl Draws for Seeded {
    fn rows(&mut self, rows: usize, count: usize) -> Vec<i32> {
        let rng = &mut self.0;
        if rows < count {
            return (0..count).map(|_| (rng.next() % rows.max(1) as u64) as i32).collect();
        }
        let mut all: Vec<i32> = (0..rows as i32).collect();
        for i in 0..count {
            all.swap(i, i + (rng.next() % (rows - i) as u64) as usize);
        }
        all.truncate(count);
        all
    }

    fn uniform(&mut self) -> f64 {
        self.0.uniform()
    }
}

/// How the items of a step's batch are quantised.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Stages of each item that the decoder sees.
    pub used: Vec<usize>,
    /// Items that the decoder sees unquantised.
    pub raw: Vec<bool>,
    /// Stages that run.
    pub run: usize,
    /// Stages that the decoder sees of an item, the mean over all items of the step.
    pub mean: f64,
}

impl Plan {
    /// Of a step on `items` items, with `stages` stages, of which `bandwidths` are numbers that make bitrates.
    pub fn new(rules: &CodebookRules, items: usize, stages: usize, bandwidths: &[usize], seed: u64, step: u64) -> Plan {
        let mut rng = SplitMix(mix(seed, step, 0xd0));
        let below = |rng: &mut SplitMix, n: usize| (rng.next() % n.max(1) as u64) as usize;
        let draw = |rng: &mut SplitMix| match rules.dropout_of {
            DropoutOf::Bandwidths => bandwidths.get(below(rng, bandwidths.len())).map_or(stages, |&n| n.clamp(1, stages.max(1))),
            _ => 1 + below(rng, stages),
        };
        let (used, run) = match rules.dropout_of {
            DropoutOf::Items => {
                let dropped = (items as f64 * rules.dropout) as usize;
                ((0..items).map(|item| if item < dropped { draw(&mut rng) } else { stages }).collect(), stages)
            }
            DropoutOf::Batch | DropoutOf::Stages | DropoutOf::Bandwidths => {
                let used = if rng.uniform() < rules.dropout { draw(&mut rng) } else { stages };
                (vec![used; items], if rules.dropout_of == DropoutOf::Batch { stages } else { used })
            }
        };
        let mut rng = SplitMix(mix(seed, step, 0xd2));
        let raw = (0..items).map(|_| rng.uniform() < rules.no_quantization_rate).collect();
        let mean = used.iter().sum::<usize>() as f64 / items.max(1) as f64;
        Plan { used, raw, run, mean }
    }

    /// The plan of some of the items.
    pub fn of(self, items: std::ops::Range<usize>) -> Plan {
        Plan { used: self.used[items.clone()].to_vec(), raw: self.raw[items].to_vec(), ..self }
    }

    /// Of every item the first `used` of all that run.
    pub fn whole(items: usize, used: usize, run: usize) -> Plan {
        Plan { used: vec![used; items], raw: vec![false; items], run, mean: used as f64 }
    }

    /// Whether all items have as many stages.
    fn even(&self) -> Option<usize> {
        let first = *self.used.first()?;
        self.used.iter().all(|&used| used == first).then_some(first)
    }

    /// 1 in the rows `[items * rows, width]` of items of which `chosen` is true, else 0.
    fn mask(&self, like: &Tensor, chosen: impl Fn(usize) -> bool) -> Result<Tensor> {
        let shape = like.shape();
        let each = shape.elements() / self.used.len().max(1);
        let values: Vec<f64> = (0..self.used.len()).flat_map(|i| std::iter::repeat_n(f64::from(u8::from(chosen(i))), each)).collect();
        Ok(Tensor::from_f64(&like.device(), like.dtype(), &values, shape)?)
    }
}

/// What one step of quantisation leaves behind.
pub struct Quantised {
    /// `[B, T, latent]`
    pub z: Var,
    /// Unweighted commitment, and codebook loss if there is one.
    pub commitment: Var,
    pub codebook: Option<Var>,
    /// What the first stage makes of the latents, straight-through, in the space of its codewords; of a split quantiser, the first branch.
    pub semantic: Option<Var>,
    /// For the moving averages.
    pub stages: Stages,
}

/// `ema` quantisation of `z`: the stages that run learn, as many as the plan of their branch says reach the decoder.
pub fn ema(
    recording: &Recording,
    z: &Var,
    codebooks: &[Codebook],
    branches: &[(Branch, Plan)],
    weights: &LossWeights,
    rules: &CodebookRules,
) -> Result<Quantised> {
    let (mut sum, mut commitment, mut stages): (Option<Var>, Option<Tensor>, _) = (None, None, Vec::with_capacity(codebooks.len()));
    let items = z.value().shape()[0];
    // The mean is over the stages of all branches.
    let used = branches.iter().map(|(_, plan)| plan.mean).sum::<f64>();
    let mut semantic = None;
    for (branch, plan) in branches {
        let Some(books) = codebooks.get(branch.stages.clone()) else { return Err(unplanned(plan, items, codebooks.len())) };
        if plan.used.len() != items || plan.used.iter().any(|used| !(1..=plan.run).contains(used)) || plan.run > books.len() {
            return Err(unplanned(plan, items, books.len()));
        }
        let x = project(recording, z, branch, "input_proj")?;
        let before = stages.len();
        let (quantised, loss) = residual(recording.tape, &x, books, plan, used, weights.commitment, rules, &mut stages)?;
        if before == 0 {
            let first = if branches.len() > 1 { plan.run } else { 1 };
            semantic = Some(first_stages(recording.tape, &x, &books[..first], &stages)?);
        }
        accumulate(&mut commitment, loss)?;
        let y = project(recording, &recording.tape.straight_through(&x, quantised), branch, "output_proj")?;
        sum = Some(match sum {
            Some(sum) => recording.tape.add(&sum, &y)?,
            None => y,
        });
    }
    let (Some(z), Some(commitment)) = (sum, commitment) else { return Err(crate::Error::Argument("nothing to quantise with".into())) };
    Ok(Quantised { z, commitment: commitment.into(), codebook: None, semantic, stages })
}

/// The sum of the codewords of the first `books.len()` stages of `x [B, T, D]`.
fn first_stages(tape: &Tape, x: &Var, books: &[Codebook], stages: &[(Tensor, Tensor)]) -> Result<Var> {
    let mut sum = None;
    for (book, (_, codes)) in books.iter().zip(stages) {
        accumulate(&mut sum, rvq_search::gather(&book.embedding()?, codes)?)?;
    }
    let sum = sum.ok_or_else(|| crate::Error::Argument("no stage has run".into()))?;
    Ok(tape.straight_through(x, sum.reshape(x.value().shape())?))
}

fn unplanned(plan: &Plan, items: usize, stages: usize) -> crate::Error {
    crate::Error::Argument(format!("{plan:?} for {items} items and {stages} stages"))
}

/// Stages over `x [B, T, D]`, and their commitment: the mean is over `all` stages of an item.
#[allow(clippy::too_many_arguments)]
fn residual(
    tape: &Tape,
    x: &Var,
    codebooks: &[Codebook],
    plan: &Plan,
    all: f64,
    weight: f64,
    rules: &CodebookRules,
    stages: &mut Stages,
) -> Result<(Tensor, Tensor)> {
    let items = x.value().shape()[0];
    let shape = x.value().shape();
    let (rows, dim) = (shape.rows(), shape.last_dim());
    let mut residual = x.value().copy()?.reshape([rows, dim])?;
    let mut quantised: Option<Tensor> = None;
    // A stage's input minus its codeword is the next residual r, the codeword is detached, and every stage's input has the
    // identity as its gradient in x: the commitment mean |r|^2 pulls x by 2 r / n, per stage.
    let mut pull: Option<Tensor> = None;
    let mut commitment: Option<Tensor> = None;
    let n = (rows * dim) as f64 * all;
    let mut similar = Similarity::default();
    for (k, book) in codebooks[..plan.run].iter().enumerate() {
        let embedding = book.embedding()?;
        let (codes, next) = rvq_search::stage(&residual, &embedding)?;
        let left = match plan.even() {
            Some(used) => (k < used).then(|| next.copy()).transpose()?,
            None => Some(elementwise::mul(&next, &plan.mask(&next, |item| k < plan.used[item])?)?),
        };
        if let Some(left) = left {
            accumulate(&mut pull, elementwise::scale(&left, 2.0 / n)?)?;
            accumulate(&mut commitment, elementwise::scale(&reduce::sum_squares(&left)?, 1.0 / n)?)?;
        }
        match plan.even() {
            Some(used) if used == k + 1 => {
                let flat = x.value().copy()?.reshape([rows, dim])?;
                quantised = Some(elementwise::sub(&flat, &next)?.reshape(shape)?);
            }
            Some(_) => {}
            None => {
                let word = elementwise::sub(&residual, &next)?;
                accumulate(&mut quantised, elementwise::mul(&word, &plan.mask(&word, |item| k < plan.used[item])?)?)?;
            }
        }
        if rules.balance > 0.0 {
            let (inputs, words) = (residual.to_f64()?, embedding.to_f64()?);
            let (loss, gradient) = ervq::balance(Rows { values: &inputs, width: dim }, Rows { values: &words, width: dim });
            known(tape, x, loss, &gradient, rules.balance / plan.run as f64)?;
        }
        if rules.similarity > 0.0 {
            similar.follow(elementwise::sub(&residual, &next)?.to_f64()?, items, dim);
        }
        stages.push((std::mem::replace(&mut residual, next), codes));
    }
    if let Some((loss, gradient)) = similar.mean() {
        known(tape, x, loss, &gradient, rules.similarity)?;
    }
    let (Some(mut quantised), Some(pull), Some(commitment)) = (quantised, pull, commitment) else {
        return Err(crate::Error::Argument(format!("{plan:?} of {} stages", codebooks.len())));
    };
    quantised = quantised.reshape(shape)?;
    if plan.raw.contains(&true) {
        let quantised_items = elementwise::mul(&quantised, &plan.mask(&quantised, |item| !plan.raw[item])?)?;
        let raw_items = elementwise::mul(x.value(), &plan.mask(x.value(), |item| plan.raw[item])?)?;
        quantised = elementwise::add(&quantised_items, &raw_items)?;
    }
    tape.known_loss(x, commitment.copy()?, pull.reshape(shape)?, weight);
    Ok((quantised, commitment))
}

/// A loss and its gradient, both from the host.
fn known(tape: &Tape, x: &Var, loss: f64, gradient: &[f64], weight: f64) -> Result<()> {
    let (device, dtype) = (x.value().device(), x.value().dtype());
    let gradient = Tensor::from_f64(&device, dtype, gradient, x.value().shape())?;
    tape.known_loss(x, Tensor::from_f64(&device, dtype, &[loss], [1])?, gradient, weight);
    Ok(())
}

/// Similarity of what each stage quantises with what the next one does, item by item.
#[derive(Default)]
struct Similarity {
    before: Option<Vec<f64>>,
    sum: f64,
    pairs: usize,
    gradient: Vec<f64>,
}

impl Similarity {
    fn follow(&mut self, words: Vec<f64>, items: usize, width: usize) {
        let each = words.len() / items.max(1);
        self.gradient.resize(words.len(), 0.0);
        if let Some(before) = &self.before {
            let images = before.chunks_exact(each.max(1)).zip(words.chunks_exact(each.max(1)));
            for ((a, b), gradient) in images.zip(self.gradient.chunks_exact_mut(each.max(1))) {
                let (value, da, db) = ervq::ssim(Rows { values: a, width }, Rows { values: b, width });
                self.sum += value;
                self.pairs += 1;
                gradient.iter_mut().zip(da.iter().zip(&db)).for_each(|(g, (a, b))| *g += a + b);
            }
        }
        self.before = Some(words);
    }

    fn mean(self) -> Option<(f64, Vec<f64>)> {
        let n = self.pairs as f64;
        (self.pairs > 0).then(|| (self.sum / n, self.gradient.into_iter().map(|g| g / n).collect()))
    }
}

/// The projections of an `ema` quantiser with nothing between them: what trains before there are codebooks.
pub fn pass_through(recording: &Recording, z: &Var, branches: &[Branch]) -> Result<Var> {
    let mut sum: Option<Var> = None;
    for branch in branches {
        let y = project(recording, &project(recording, z, branch, "input_proj")?, branch, "output_proj")?;
        sum = Some(match sum {
            Some(sum) => recording.tape.add(&sum, &y)?,
            None => y,
        });
    }
    sum.ok_or_else(|| crate::Error::Argument("no codebooks to come".into()))
}

/// `x` through `{branch}.{name}`, if there is one.
pub fn project(recording: &Recording, x: &Var, branch: &Branch, name: &str) -> Result<Var> {
    if !branch.projected {
        return Ok(x.clone());
    }
    let weight = recording.parameter(&format!("{}.{name}.weight", branch.name))?;
    Ok(recording.tape.conv1d(x, weight, None, None, Default::default())?)
}

fn accumulate(sum: &mut Option<Tensor>, term: Tensor) -> Result<()> {
    match sum {
        Some(sum) => elementwise::add_assign(sum, &term)?,
        None => *sum = Some(term),
    }
    Ok(())
}

/// Factorised quantisation: a projection in and out of every stage, cosine codes of `dim` dimensions, codebooks by gradient (DAC). A code
/// of a stage stands for `stride` latents: their mean is quantised, and the codeword repeated (SNAC).
pub fn factorised(recording: &Recording, z: &Var, strides: &[usize], dim: usize, plan: &Plan, weights: &LossWeights) -> Result<Quantised> {
    use swara_kernels::ops::weight_norm::Axis;
    let tape: &Tape = recording.tape;
    let mut residual = z.clone();
    let mut sum: Option<Var> = None;
    let mut commitment: Option<Tensor> = None;
    let mut codebook_loss: Option<Tensor> = None;
    let mut stages = Vec::new();
    let mut semantic = None;
    for (k, &stride) in strides.iter().enumerate() {
        let stage = format!("quantizer.quantizers.{k}");
        let projection = |name: &str, x: &Var| -> Result<Var> {
            let layer = format!("{stage}.{name}");
            let weight = recording.weight(&layer, Axis::Out)?;
            Ok(tape.conv1d(x, &weight, Some(recording.parameter(&format!("{layer}.bias"))?), None, Default::default())?)
        };
        let encoded = projection("in_proj", &tape.mean_pool(&residual, stride)?)?;
        let flat = tape.reshape(&encoded, [encoded.value().shape().rows(), dim])?;
        let book = recording.parameter(&format!("{stage}.codebook.weight"))?;
        let codes = Rc::new(rvq_search::nearest(flat.value(), book.value(), Metric::Cosine)?);
        let words = tape.gather(book, &codes)?;
        match plan.even() {
            Some(used) if k < used => {
                let c = tape.mse_loss(&flat, &words.detached(), weights.commitment)?;
                let b = tape.mse_loss(&words, &flat.detached(), weights.codebook)?;
                accumulate(&mut commitment, c.value().copy()?)?;
                accumulate(&mut codebook_loss, b.value().copy()?)?;
            }
            Some(_) => {}
            None => {
                let gap = elementwise::sub(flat.value(), words.value())?;
                let gap = elementwise::mul(&gap, &plan.mask(&gap, |item| k < plan.used[item])?)?;
                let n = gap.elements() as f64;
                let loss = elementwise::scale(&reduce::sum_squares(&gap)?, 1.0 / n)?;
                accumulate(&mut commitment, loss.copy()?)?;
                accumulate(&mut codebook_loss, loss.copy()?)?;
                tape.known_loss(&flat, loss.copy()?, elementwise::scale(&gap, 2.0 / n)?, weights.commitment);
                tape.known_loss(&words, loss, elementwise::scale(&gap, -2.0 / n)?, weights.codebook);
            }
        }
        let through = tape.straight_through(&encoded, words.value().copy()?.reshape(encoded.value().shape())?);
        if k == 0 {
            semantic = Some(tape.repeat(&through, stride)?);
        }
        let decoded = tape.repeat(&projection("out_proj", &through)?, stride)?;
        residual = tape.sub(&residual, &decoded)?;
        let seen = match plan.even() {
            Some(used) => (k < used).then_some(decoded),
            None => {
                let mask = plan.mask(decoded.value(), |item| k < plan.used[item])?;
                Some(tape.mask(&decoded, &Rc::new(mask))?)
            }
        };
        if let Some(seen) = seen {
            sum = Some(match sum {
                Some(sum) => tape.add(&sum, &seen)?,
                None => seen,
            });
        }
        stages.push((flat.value().copy()?, codes.copy()?));
    }
    let (Some(z), Some(commitment), Some(codebook)) = (sum, commitment, codebook_loss) else {
        return Err(crate::Error::Argument(format!("{plan:?}: no stage is used")));
    };
    Ok(Quantised { z, commitment: commitment.into(), codebook: Some(codebook.into()), semantic, stages })
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
pub fn update(
    codebooks: &mut [Codebook],
    branches: &[Branch],
    stages: &[(Tensor, Tensor)],
    rules: &CodebookRules,
    step: u64,
    seed: u64,
) -> Result<()> {
    let own = |k: usize| branches.iter().find(|branch| branch.stages.contains(&k)).map_or(k, |branch| k - branch.stages.start);
    for (k, (book, (inputs, codes))) in codebooks.iter_mut().zip(stages).enumerate() {
        update_stage(book, inputs, codes, rules, rules.checks(own(k), step), &mut Seeded::new(mix(seed, step, k as u64)))?;
    }
    Ok(())
}

/// As Mimi: what has expired is replaced first, and learns from the step, too.
fn update_stage(
    book: &mut Codebook,
    inputs: &Tensor,
    codes: &Tensor,
    rules: &CodebookRules,
    check: bool,
    draws: &mut dyn Draws,
) -> Result<()> {
    if check && rules.revival == Revival::Expiry {
        revive(book, inputs, rules, draws)?;
    }
    let (counts, sums) = codebook::statistics(inputs, codes, book.usage.elements())?;
    codebook::ema_update(&mut book.usage, &mut book.sum, &counts, &sums, rules.decay)?;
    match rules.revival {
        Revival::Expiry => Ok(()),
        Revival::Closest => anchor(book, inputs, rules, Anchor::Closest, draws),
        Revival::Probable => anchor(book, inputs, rules, Anchor::Probable, draws),
    }
}

/// ERVQ's online clustering.
fn anchor(book: &mut Codebook, inputs: &Tensor, rules: &CodebookRules, anchor: Anchor, draws: &mut dyn Draws) -> Result<()> {
    let (x, words, usage) = (inputs.to_f64()?, book.embedding()?.to_f64()?, book.usage.to_f64()?);
    let width = inputs.shape().last_dim();
    let rows = |values| Rows { values, width };
    let moved = ervq::anchored(rows(&x), rows(&words), &usage, rules.decay, anchor, draws);
    let mut sum = book.sum.to_f64()?;
    for (k, place) in &moved {
        let weight = usage[*k].max(USAGE_EPSILON);
        sum[k * width..][..width].iter_mut().zip(place).for_each(|(sum, v)| *sum = weight * v);
    }
    if !moved.is_empty() {
        book.sum = Tensor::from_f64(&inputs.device(), inputs.dtype(), &sum, book.sum.shape())?;
    }
    Ok(())
}

fn revive(book: &mut Codebook, inputs: &Tensor, rules: &CodebookRules, draws: &mut dyn Draws) -> Result<()> {
    let usage = book.usage.to_f64()?;
    let mean = usage.iter().sum::<f64>() / usage.len() as f64;
    let least = (rules.expire_below * mean).max(rules.expire_count);
    let expired: Vec<i32> = (0..usage.len() as i32).filter(|&i| usage[i as usize] < least).collect();
    let drawn = draws.rows(inputs.shape()[0], usage.len());
    if expired.is_empty() {
        return Ok(());
    }
    let device = inputs.device();
    let picks: Vec<i32> = expired.iter().map(|&i| drawn[i as usize]).collect();
    let samples = rvq_search::gather(inputs, &Tensor::from_slice(&device, &picks, [picks.len()])?)?;
    let rows = Tensor::from_slice(&device, &expired, [expired.len()])?;
    Ok(codebook::replace_rows(&mut book.sum, &mut book.usage, &rows, &samples, mean.max(USAGE_EPSILON))?)
}

/// Codebooks by k-means over `x [N, D]`, stage by stage on what the stages before leave over.
pub fn kmeans(x: Tensor, sizes: &[usize], iterations: usize, seed: u64) -> Result<Vec<Codebook>> {
    let mut residual = x;
    let mut books = Vec::with_capacity(sizes.len());
    for (stage, &size) in sizes.iter().enumerate() {
        let book = kmeans_stage(&residual, size, iterations, &mut Seeded::new(mix(seed, u64::MAX, stage as u64)))?;
        residual = rvq_search::stage(&residual, &book.embedding()?)?.1;
        books.push(book);
    }
    Ok(books)
}

/// One codebook by k-means over its inputs `[N, D]`; clusters that are empty start anew in every iteration.
fn kmeans_stage(x: &Tensor, size: usize, iterations: usize, draws: &mut dyn Draws) -> Result<Codebook> {
    let device = x.device();
    let pick = |picks: &[i32]| -> Result<Tensor> { Ok(rvq_search::gather(x, &Tensor::from_slice(&device, picks, [picks.len()])?)?) };
    let mut means = pick(&draws.rows(x.shape()[0], size))?;
    let (mut usage, mut sum) = (Tensor::zeros(&device, means.dtype(), [size])?, means.copy()?);
    for _ in 0..iterations.max(1) {
        (usage, sum) = codebook::kmeans_step(x, &means)?;
        let counts = usage.to_f64()?;
        let empty: Vec<i32> = (0..size as i32).filter(|&i| counts[i as usize] == 0.0).collect();
        let drawn = draws.rows(x.shape()[0], size);
        if !empty.is_empty() {
            let rows = Tensor::from_slice(&device, &empty, [empty.len()])?;
            let picks: Vec<i32> = empty.iter().map(|&i| drawn[i as usize]).collect();
            codebook::replace_rows(&mut sum, &mut usage, &rows, &pick(&picks)?, 1.0)?;
        }
        means = codebook::embedding(&usage, &sum, USAGE_EPSILON)?;
    }
    Ok(Codebook { usage, sum, averaging: Averaging::Plain })
}

/// Mimi's initialisation: the codebook of one more `stage`, by k-means on what those before it leave of `x [N, D]`. It waits for them for
/// a step, as on the batch that they are made of they leave next to nothing. Stages to come are all zeros, and learn nonetheless.
pub fn initialise_stage(books: &mut [Codebook], x: Tensor, stage: usize, iterations: usize, draws: &mut dyn Draws) -> Result<()> {
    let mut residual = x;
    for book in &books[..stage.min(books.len())] {
        residual = rvq_search::stage(&residual, &book.embedding()?)?.1;
    }
    let Some(book) = books.get_mut(stage) else { return Ok(()) };
    *book = Codebook { averaging: book.averaging, ..kmeans_stage(&residual, book.usage.elements(), iterations, draws)? };
    if stage == 0 {
        for book in &mut books[1..] {
            book.usage = Tensor::from_f64(&book.usage.device(), book.usage.dtype(), &vec![1.0; book.usage.elements()], book.usage.shape())?;
            book.sum.set_zero()?;
        }
    }
    Ok(())
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
