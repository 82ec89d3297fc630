use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;
use swara_engine::codec::{self, Codec};
use swara_engine::{csm, lm};
use swara_kernels::{DType, Device};
use swara_loader::audio::{AudioReader, EXTENSIONS};
use swara_loader::codes::Codes;
use swara_loader::dataset::{Dataset, Description, Split};
use swara_loader::weights::Weights;

use crate::cli::{Common, Inspect};
use crate::failure::Result;
use crate::terminal;

pub fn run(common: &Common, args: &Inspect) -> Result {
    let path = args.path.as_path();
    if path.join("dataset.json").is_file() {
        return dataset(common, path);
    }
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    if path.is_file() && (EXTENSIONS.contains(&extension.as_str()) || looks_like_audio(path)) {
        return audio(common, path);
    }
    let weights = Weights::open(path)?;
    if (weights.contains("codes") || weights.contains("codes_0")) && weights.metadata().contains_key("frame_rate") {
        return codes(common, &weights);
    }
    tensors(common, &weights)
}

/// By its first bytes; a safetensors file begins with the length of its header instead.
fn looks_like_audio(path: &Path) -> bool {
    let mut head = [0u8; 4];
    let read = std::fs::File::open(path).and_then(|mut f| std::io::Read::read(&mut f, &mut head));
    read.is_ok() && matches!(&head, b"RIFF" | b"fLaC" | b"OggS" | b"FORM" | b"RIFX")
}

fn audio(common: &Common, path: &Path) -> Result {
    let mut reader = AudioReader::open(path, None)?;
    let (mut samples, mut peak, mut energy) = (0u64, 0.0f32, 0.0f64);
    for piece in &mut reader {
        let piece = piece?;
        samples += piece.len() as u64;
        peak = piece.iter().fold(peak, |peak, v| peak.max(v.abs()));
        energy += piece.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
    }
    reader.warnings().iter().for_each(|w| terminal::warn(format!("{w} ({})", path.display())));
    let (rate, channels) = (reader.source_rate(), reader.channels());
    let seconds = samples as f64 / f64::from(rate);
    let dbfs = |v: f64| 20.0 * v.max(1e-10).log10();
    let (rms, peak) = (dbfs((energy / samples.max(1) as f64).sqrt()), dbfs(f64::from(peak)));
    if common.json {
        return terminal::say_json(&json!({
            "kind": "audio", "sample_rate": rate, "channels": channels, "samples": samples, "seconds": seconds,
            "rms_dbfs": rms, "peak_dbfs": peak,
        }));
    }
    terminal::say(format!("audio: {seconds:.3} s, {samples} samples at {rate} Hz, {channels} channel(s)"))?;
    terminal::say(format!("downmixed: rms {rms:.1} dBFS, peak {peak:.1} dBFS"))
}

fn codes(common: &Common, weights: &Weights) -> Result {
    let codes = Codes::from_weights(weights)?;
    let largest: Vec<i32> = (0..codes.codebooks).map(|k| codes.codebook(k).iter().copied().max().unwrap_or(0)).collect();
    let frames = codes.frames();
    let mean = codes.stages.as_ref().map(|stages| stages.mean(frames));
    if common.json {
        return terminal::say_json(&json!({
            "kind": "codes", "model": codes.model, "codebooks": codes.codebooks, "frames": codes.frames(), "levels": codes.levels,
            "sample_rate": codes.sample_rate, "frame_rate": codes.frame_rate, "samples": codes.samples, "largest": largest,
            "mean_codebooks": mean,
        }));
    }
    let seconds = codes.samples as f64 / f64::from(codes.sample_rate);
    let shape = match &codes.levels {
        None => {
            let mean = mean.map_or_else(String::new, |mean| format!("{mean:.2} of "));
            format!("{mean}{} codebooks x {frames} frames at {} Hz", codes.codebooks, codes.frame_rate)
        }
        Some(levels) => format!("{} levels of {levels:?} frames, the first at {} Hz", levels.len(), codes.frame_rate),
    };
    terminal::say(format!("codes of {}: {shape}", codes.model))?;
    terminal::say(format!("{seconds:.3} s, {} samples at {} Hz; largest codes {largest:?}", codes.samples, codes.sample_rate))
}

fn tensors(common: &Common, weights: &Weights) -> Result {
    let mut rows = Vec::new();
    let mut totals: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for name in weights.names() {
        let Some((dtype, shape)) = weights.info(name) else { continue };
        let (total, count) = (totals.entry(dtype.name()).or_default(), shape.iter().product::<usize>());
        total.0 += count;
        total.1 += count / dtype.block() * dtype.size();
        rows.push((name, dtype.name(), shape));
    }
    let (model, config) = (model(weights), weights.config()?);
    if common.json {
        let listed: Vec<_> = rows.iter().map(|(name, dtype, shape)| json!({ "name": name, "dtype": dtype, "shape": shape })).collect();
        return terminal::say_json(&json!({
            "kind": "weights", "format": weights.format().name(), "tensors": listed, "metadata": weights.metadata(), "config": config,
            "model": model,
        }));
    }
    let cells: Vec<Vec<String>> =
        rows.iter().map(|(name, dtype, shape)| vec![(*name).to_owned(), (*dtype).to_owned(), format!("{shape:?}")]).collect();
    terminal::say(terminal::table(&["tensor", "dtype", "shape"], &cells))?;
    for (key, value) in weights.metadata() {
        terminal::say(format!("metadata {key}: {}", shorten(value)))?;
    }
    if let Some(config) = config {
        terminal::say(format!("config.json: {}", shorten(&config.to_string())))?;
    }
    for (dtype, (elements, bytes)) in totals {
        terminal::say(format!("{dtype}: {elements} elements, {:.2} MB", bytes as f64 / 1e6))?;
    }
    terminal::say(format!("{}, {} tensors; {model}", weights.format().name(), rows.len()))
}

/// What the tensors are, and what a model would miss in them.
fn model(weights: &Weights) -> String {
    let metadata = weights.metadata();
    if metadata.contains_key("run") && metadata.contains_key("step") {
        return format!("training checkpoint at step {}", shorten(&metadata["step"]));
    }
    if let Some(layout) = lm::Layout::of(weights) {
        return match lm::check(weights) {
            Ok(c) => format!(
                "{}, complete: {} layers of {}, {} of {} codes a frame are heard and {} said, depth transformer of {}",
                layout.name(),
                c.num_layers,
                c.dim,
                c.heard(),
                c.card,
                c.dep_q,
                c.depformer_dim
            ),
            Err(error) => format!("{} that does not run: {error}", layout.name()),
        };
    }
    if let Some(layout) = csm::Layout::of(weights) {
        return match csm::check(weights) {
            Ok((c, codec)) => format!(
                "{}, complete{}: {} layers of {}, {} of {} codes a frame, depth decoder of {} layers of {}, memory of {} rows",
                layout.name(),
                if codec { ", with a codec" } else { "" },
                c.backbone.num_hidden_layers,
                c.backbone.hidden_size,
                c.num_codebooks,
                c.vocab_size,
                c.depth.num_hidden_layers,
                c.depth.hidden_size,
                c.max_position_embeddings
            ),
            Err(error) => format!("{} that does not run: {error}", layout.name()),
        };
    }
    let Some(family) = codec::family(weights) else { return "of no layout that is known".to_owned() };
    match Codec::open(weights.path(), &Device::Cpu, DType::F32) {
        Ok(codec) => {
            let c = codec.format();
            let kind = if c.causal { "causal" } else { "not causal" };
            format!(
                "codec {}, complete, {kind} ({family}): {} Hz,{} {} frames a second, codebooks {:?}{}, {:.2} kbit/s",
                codec.name(),
                c.sample_rate,
                if c.channels == 1 { String::new() } else { format!(" {} channels,", c.channels) },
                c.frame_rate(),
                c.codebook_sizes,
                if c.multi_rate() { format!(", codes a frame {:?}", c.codes_per_frame) } else { String::new() },
                c.bitrate(c.codebook_sizes.len()) / 1e3
            )
        }
        Err(error) => format!("codec ({family}) that does not run: {error}"),
    }
}

fn shorten(text: &str) -> String {
    const LONGEST: usize = 400;
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match line.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}...", &line[..at]),
        None => line,
    }
}

fn dataset(common: &Common, path: &Path) -> Result {
    let dataset = Dataset::open(path)?;
    let d = dataset.description();
    let split = |split| dataset.split(split).count();
    let counts = [Split::Train, Split::Validation, Split::Test].map(|s| (s, split(s)));
    if common.json {
        let counts: BTreeMap<String, usize> = counts.iter().map(|(s, n)| (s.to_string(), *n)).collect();
        return terminal::say_json(&json!({ "kind": "dataset", "dataset": d, "utterances": counts }));
    }
    let seconds = d.samples as f64 / f64::from(d.sample_rate);
    terminal::say(format!("dataset: {} utterances, {:.2} h at {} Hz", d.utterances, seconds / 3600.0, d.sample_rate))?;
    terminal::say(counts.map(|(s, n)| format!("{s} {n}")).join(", "))?;
    terminal::say(hours(d))
}

/// Hours per speaker and language.
pub fn hours(d: &Description) -> String {
    let listed = |map: &BTreeMap<String, f64>| map.iter().map(|(k, h)| format!("{k} {h:.3}")).collect::<Vec<_>>().join(", ");
    format!(
        "hours by split: {}\nhours by speaker: {}\nhours by language: {}",
        listed(&d.hours.split),
        listed(&d.hours.speaker),
        listed(&d.hours.language)
    )
}
