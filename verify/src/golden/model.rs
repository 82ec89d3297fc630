use std::collections::BTreeMap;

use swara_engine::codec::model::{Model, TensorSpec};
use swara_engine::codec::{Codec, Codes, Config, METADATA_CONFIG, QuantizerKind, quantizer};
use swara_engine::train::{CodebookRules, LossWeights, Schedule, TrainConfig, Trainer};
use swara_kernels::tolerance::Tolerance;
use swara_kernels::{DType, Device, Tensor};
use swara_loader::weights::{TensorRef, save};

use super::{Dump, Error, Result, SAME};
use crate::Outcome;

/// A whole codec: codes, waves of 1 to all codebooks, loss terms, and the gradient of every parameter.
///
/// The dump's tensors are written out as a checkpoint and read back, so names and layouts are compared as well.
pub fn codec(dump: &Dump, device: &Device, outcome: &mut Outcome) -> Result {
    let config = Config::from_json(&dump.fact("config")?.to_string())?;
    let (_, shape) = dump.values("input", SAME)?;
    let input: Vec<f32> = dump.values("input", SAME)?.0.into_iter().map(|v| v as f32).collect();
    let samples = shape[2];
    let folder = tempfile::tempdir().map_err(|e| dump.broken(format!("no temporary folder: {e}")))?;
    let file = folder.path().join("codec.safetensors");
    let mut specs = Model::new(&config).tensors(false);
    specs.extend(quantizer::parameter_tensors(&config, false));
    let books = quantizer::codebook_tensors(&config);
    let json = serde_json::to_string(&config).map_err(|e| dump.broken(e.to_string()))?;
    let all: Vec<(String, &TensorSpec)> = specs.iter().chain(&books).map(|s| (s.name.clone(), s)).collect();
    write(dump, &file, &all, BTreeMap::from([(METADATA_CONFIG.to_owned(), json)]))?;
    let codec = Codec::open(&file, device, DType::F32)?;
    let hop = config.hop();
    let budget = depth(&config);
    let (expected, margin) = (dump.values("codes", SAME)?.0, dump.values("margin", SAME)?.0);
    let stages = codec.codebooks();
    let frames = samples / hop;
    for (b, x) in input.chunks(samples).enumerate() {
        let codes = codec.encode(x, stages)?;
        for t in 0..frames {
            let differs = (0..stages).find(|k| f64::from(codes.values[k * frames + t]) != expected[(b * stages + k) * frames + t]);
            // Later stages search another residual once one differs.
            if let Some(k) = differs.filter(|k| margin[(b * stages + k) * frames + t] > 1e-4) {
                outcome.fail(format!("item {b}, frame {t}, codebook {k}: another code, by a clear margin"));
            }
        }
    }
    let integers: Vec<i32> = expected.iter().map(|&v| v as i32).collect();
    for k in 1..=stages {
        let mut wave = Vec::new();
        for item in integers.chunks(stages * frames) {
            wave.extend(codec.decode(&Codes { codebooks: k, frames, values: item[..k * frames].to_vec(), scales: Vec::new() })?);
        }
        let wave = Tensor::from_slice(&Device::Cpu, &wave, [shape[0], 1, wave.len() / shape[0]])?;
        dump.check(outcome, &format!("wave.{k}"), SAME, &wave, budget)?;
    }
    if !config.causal {
        // Training is of codecs that stream.
        return Ok(());
    }
    gradients(dump, device, outcome, &config, &input, &specs, &books, folder.path())
}

/// Roundings of a whole pass: those of every layer, one after the other.
fn depth(config: &Config) -> Tolerance {
    let units = config.dilations.len();
    let layer = |width: usize, taps: usize| width * taps;
    let side = |widths: &[usize]| -> usize { widths.iter().map(|&w| layer(w, 16) + units * (layer(w, 7) + layer(w, 1))).sum() };
    Tolerance::accumulate(side(&config.encoder_widths) + side(&config.decoder_widths))
}

#[allow(clippy::too_many_arguments, reason = "everything that describes one model")]
fn gradients(
    dump: &Dump,
    device: &Device,
    outcome: &mut Outcome,
    config: &Config,
    input: &[f32],
    specs: &[TensorSpec],
    books: &[TensorSpec],
    folder: &std::path::Path,
) -> Result {
    let scales = serde_json::from_value(dump.fact("mel_scales")?.clone()).map_err(|e| dump.broken(format!("mel_scales: {e}")))?;
    let factorised = config.quantizer == QuantizerKind::Factorised;
    let batch = dump.values("input", SAME)?.1[0];
    let train = TrainConfig {
        train: Schedule { batch, crop_frames: input.len() / batch / config.hop(), ..Schedule::default() },
        loss: LossWeights {
            mel: 15.0,
            mel_scales: scales,
            mel_floor: 1e-5,
            wave: 1.0,
            spectrum: 0.0,
            spectrum_windows: Vec::new(),
            commitment: if factorised { 0.25 } else { 1.0 },
            codebook: 1.0,
            ..LossWeights::default()
        },
        codebook: CodebookRules { start: 0, dropout: 0.0, ..CodebookRules::default() },
        ..TrainConfig::new("golden", Some(config.clone()))
    };
    let run = serde_json::to_string(&train).map_err(|e| dump.broken(e.to_string()))?;
    let metadata = BTreeMap::from([("step".to_owned(), "1".to_owned()), ("run".to_owned(), run)]);
    let parts = ["value", "first_moment", "second_moment", "average"];
    let mut all: Vec<(String, &TensorSpec)> = specs.iter().flat_map(|s| parts.map(|part| (format!("{part}.{}", s.name), s))).collect();
    all.extend(books.iter().map(|s| (s.name.clone(), s)));
    let file = folder.join("checkpoint.safetensors");
    write(dump, &file, &all, metadata)?;
    let trainer = Trainer::resume(&file, train, device)?;
    let (step, gradients, _) = trainer.gradients(input)?;
    let losses = step.losses()?;
    for (name, found) in [("mel", losses.mel), ("l1", losses.wave), ("commitment", losses.commitment), ("codebook", losses.codebook)] {
        let name = format!("loss.{name}");
        if dump.has(&name) {
            let expected = dump.values(&name, SAME)?.0[0];
            dump.check_number(outcome, &name, found, expected, 1e-5 * expected.abs());
        }
    }
    for (parameter, gradient) in trainer.parameters().iter().zip(&gradients) {
        let published = parameter.spec.export(&gradient.to_f64()?.into_iter().map(|v| v as f32).collect::<Vec<_>>());
        let rows = parameter.spec.published[0];
        let found = Tensor::from_slice(&Device::Cpu, &published, [rows, published.len() / rows])?;
        let (expected, shape) = dump.values(&format!("grad.{}", parameter.spec.name), SAME)?;
        if shape != parameter.spec.published {
            return Err(Error::Unsupported(format!("grad.{} has shape {shape:?}", parameter.spec.name)));
        }
        // Not derived: the mel loss turns the wave's error into phases (see `spectral::phase_noise`), by factors that only the
        // data tell. Eight times 1e-5 of the gradient's rms has been enough; a wrong term is off by its own size.
        let expected_rms = (expected.iter().map(|v| v * v).sum::<f64>() / expected.len().max(1) as f64).sqrt();
        let tolerance = depth(config).plus(8e-5 * expected_rms);
        outcome.add(&format!("grad.{}", parameter.spec.name), tolerance.compare(&found.to_f64()?, &expected));
    }
    Ok(())
}

/// Writes the dump's tensors under new names; a tensor's own name is that of its specification.
fn write(dump: &Dump, path: &std::path::Path, tensors: &[(String, &TensorSpec)], metadata: BTreeMap<String, String>) -> Result {
    let values = tensors
        .iter()
        .map(|(_, spec)| Ok(dump.values(&spec.name, SAME)?.0.into_iter().map(|v| v as f32).collect::<Vec<f32>>()))
        .collect::<Result<Vec<_>>>()?;
    let refs: Vec<TensorRef> =
        tensors.iter().zip(&values).map(|((name, spec), values)| TensorRef::f32(name, &spec.published, values)).collect();
    Ok(save(path, &refs, &metadata)?)
}
