use swara_kernels::ops::{codebook, elementwise, matmul, rvq_search};
use swara_kernels::tolerance::Tolerance;
use swara_kernels::{Device, Tensor};

use super::{Dump, Error, Result, SAME};
use crate::Outcome;

/// Smallest usage that an embedding is divided by (Mimi).
const EPSILON: f64 = 1e-5;

pub fn euclidean(dump: &Dump, device: &Device, outcome: &mut Outcome) -> Result {
    match dump.name() {
        "ema_update" | "expire" => updates(dump, device, outcome),
        "kmeans" => kmeans(dump, device, outcome),
        _ => search(dump, device, outcome),
    }
}

/// Codes and quantised sum of the search over all stages.
fn search(dump: &Dump, device: &Device, outcome: &mut Outcome) -> Result {
    let (z, shape) = dump.values("z", &[0, 2, 1])?;
    let rows = [shape[0] * shape[1], shape[2]];
    let z = Tensor::from_f64(device, swara_kernels::DType::F32, &z, rows)?;
    let mut tables = Vec::new();
    while dump.has(&format!("{}.embedding_sum", tables.len())) {
        let k = tables.len();
        let sum = dump.tensor(&format!("{k}.embedding_sum"), SAME, device)?;
        let usage = dump.tensor(&format!("{k}.cluster_usage"), SAME, device)?;
        tables.push(codebook::embedding(&usage, &sum, EPSILON)?);
    }
    let tables: Vec<&Tensor> = tables.iter().collect();
    let (codes, _) = rvq_search::search(&z, &tables)?;
    let (expected, _) = dump.values("codes", &[0, 2, 1])?;
    let (margin, _) = dump.values("margin", &[0, 2, 1])?;
    let found = codes.to_f64()?;
    // Once a stage differs, the later ones search another residual.
    for (row, (f, e)) in found.chunks(tables.len()).zip(expected.chunks(tables.len())).enumerate() {
        if let Some(k) = f.iter().zip(e).position(|(f, e)| f != e) {
            let gap = margin[row * tables.len() + k];
            if gap > 1e-5 {
                outcome.fail(format!("row {row}, stage {k}: code {}, expected {} by a margin of {gap:.1e}", f[k], e[k]));
            }
        }
    }
    let q = rvq_search::decode(&codes, &tables)?.reshape([shape[0], shape[1], shape[2]])?;
    dump.check(outcome, "q", &[0, 2, 1], &q, Tolerance::accumulate(tables.len()))
}

fn updates(dump: &Dump, device: &Device, outcome: &mut Outcome) -> Result {
    let mut sum = dump.tensor("embedding_sum", SAME, device)?;
    let mut usage = dump.tensor("cluster_usage", SAME, device)?;
    let rows = dump.tensor("rows", SAME, device)?;
    let codes = dump.tensor("codes", SAME, device)?;
    if dump.has("expired") {
        let expired: Vec<i32> =
            dump.values("expired", SAME)?.0.iter().enumerate().filter(|(_, e)| **e != 0.0).map(|(k, _)| k as i32).collect();
        let (values, width) = (rows.to_vec::<f32>()?, rows.shape()[1]);
        let picks = dump.values("sample_indices", SAME)?.0;
        let samples: Vec<f32> = expired
            .iter()
            .flat_map(|&k| {
                let row = picks[k as usize] as usize;
                values[row * width..(row + 1) * width].to_vec()
            })
            .collect();
        let used = usage.to_f64()?;
        let mean = used.iter().sum::<f64>() / used.len() as f64;
        let threshold = dump.number("threshold")? * mean;
        if used.iter().enumerate().any(|(k, &u)| (u < threshold) != expired.contains(&(k as i32))) {
            return Err(Error::Unsupported("the dump's expired codes do not follow from its usage".into()));
        }
        let samples = Tensor::from_slice(device, &samples, [expired.len(), width])?;
        let expired = Tensor::from_slice(device, &expired, [expired.len()])?;
        codebook::replace_rows(&mut sum, &mut usage, &expired, &samples, mean)?;
        dump.check(outcome, "embedding_sum.replaced", SAME, &sum, Tolerance::accumulate(2))?;
        dump.check(outcome, "cluster_usage.replaced", SAME, &usage, Tolerance::accumulate(used.len()))?;
    }
    let (counts, sums) = codebook::statistics(&rows, &codes, usage.elements())?;
    codebook::ema_update(&mut usage, &mut sum, &counts, &sums, dump.number("decay")?)?;
    dump.check(outcome, "embedding_sum.after", SAME, &sum, Tolerance::accumulate(rows.shape()[0]))?;
    dump.check(outcome, "cluster_usage.after", SAME, &usage, Tolerance::accumulate(rows.shape()[0]))
}

/// Lloyd steps; an empty cluster restarts at the row that the dump names.
fn kmeans(dump: &Dump, device: &Device, outcome: &mut Outcome) -> Result {
    let rows = dump.tensor("rows", SAME, device)?;
    let (values, width) = (rows.to_vec::<f32>()?, rows.shape()[1]);
    let row = |i: f64| values[i as usize * width..][..width].to_vec();
    let first = dump.values("first", SAME)?.0;
    let k = first.len();
    let mut means: Vec<f32> = first.iter().flat_map(|&i| row(i)).collect();
    let resample = dump.values("resample", SAME)?.0;
    let mut counts = Vec::new();
    for restart in resample.chunks(k) {
        let (c, sums) = codebook::kmeans_step(&rows, &Tensor::from_slice(device, &means, [k, width])?)?;
        counts = c.to_f64()?;
        let sums = sums.to_vec::<f32>()?;
        means = (0..k)
            .flat_map(|j| match counts[j] {
                0.0 => row(restart[j]),
                n => sums[j * width..(j + 1) * width].iter().map(|v| v / n as f32).collect(),
            })
            .collect();
    }
    counts.iter_mut().for_each(|c| *c = c.max(1.0));
    let counts = Tensor::from_f64(device, swara_kernels::DType::F32, &counts, [k])?;
    dump.check(outcome, "counts", SAME, &counts, Tolerance::accumulate(1))?;
    let means = Tensor::from_slice(device, &means, [k, width])?;
    dump.check(outcome, "means", SAME, &means, Tolerance::accumulate(rows.shape()[0]))
}

/// Codes and quantised sum of DAC's stages, each with its projections; gradients are compared with those of whole codecs.
pub fn cosine(dump: &Dump, device: &Device, outcome: &mut Outcome) -> Result {
    let (x, shape) = dump.values("x", &[0, 2, 1])?;
    let (n, channels) = (shape[0] * shape[1], shape[2]);
    let mut residual = Tensor::from_f64(device, swara_kernels::DType::F32, &x, [n, channels])?;
    let keep = dump.has("keep").then(|| dump.values("keep", SAME)).transpose()?.map(|(values, _)| values);
    let stages = (0..).take_while(|k| dump.has(&format!("{k}.codebook"))).count();
    let (expected, margin) = (dump.values("codes", &[1, 0, 2])?.0, dump.values("margin", &[1, 0, 2])?.0);
    let mut total = vec![0.0f32; n * channels];
    for k in 0..stages {
        let project = |x: &Tensor, name: &str| -> Result<Tensor> {
            let (weight, shape) = dump.values(&format!("{k}.{name}.weight"), &[1, 0, 2])?;
            let weight = Tensor::from_f64(device, swara_kernels::DType::F32, &weight, [shape[0], shape[1]])?;
            let y = matmul::forward(x, &weight, matmul::Transpose::default())?;
            Ok(elementwise::add_row(&y, &dump.tensor(&format!("{k}.{name}.bias"), SAME, device)?)?)
        };
        let book = dump.tensor(&format!("{k}.codebook"), SAME, device)?;
        let codes = rvq_search::nearest(&project(&residual, "in_proj")?, &book, rvq_search::Metric::Cosine)?;
        for (i, code) in codes.to_f64()?.into_iter().enumerate() {
            let (expected, gap) = (expected[k * n + i], margin[k * n + i]);
            if code != expected {
                outcome.fail(format!("row {i}, stage {k}: code {code}, expected {expected} by a margin of {gap:.1e}"));
            }
        }
        let quantised = project(&rvq_search::gather(&book, &codes)?, "out_proj")?;
        for (i, (sum, q)) in total.iter_mut().zip(quantised.to_vec::<f32>()?).enumerate() {
            let item = i / (channels * shape[1]);
            let kept = keep.as_ref().is_none_or(|keep| (k as f64) < keep[item]);
            *sum += if kept { q } else { 0.0 };
        }
        residual = elementwise::sub(&residual, &quantised)?;
    }
    let total = Tensor::from_slice(device, &total, [shape[0], shape[1], channels])?;
    dump.check(outcome, "z_q", &[0, 2, 1], &total, Tolerance::accumulate(stages * channels))
}
