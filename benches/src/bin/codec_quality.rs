//! How good is a codec on speech it has not seen?
//!
//! `codec_quality MODEL.safetensors DATASET [UTTERANCES [BEAM]]`: encodes and decodes the test split with 1, 2, 4, ... codebooks, and with
//! all of them by the best of BEAM paths, and prints the means by group (all; unseen speakers, unseen sentences of seen speakers; each
//! language), each over the utterances that the measure
//! says something of (`left_out`: the others), the perplexity of every codebook,
//! and - where ffmpeg with libopus is installed - the same figures for Opus at 6 kbit/s. One JSON object a line.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use swara_engine::codec::Codec;
use swara_engine::metrics::{Comparison, Usage};
use swara_kernels::{DType, Device};
use swara_loader::audio::{self, WavFormat};
use swara_loader::dataset::{Dataset, Split};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (model, data, limit, beam) = match &args[..] {
        [model, data] => (model, data, usize::MAX, 1),
        [model, data, limit] => (model, data, limit.parse().context("UTTERANCES")?, 1),
        [model, data, limit, beam] => (model, data, limit.parse().context("UTTERANCES")?, beam.parse().context("BEAM")?),
        _ => bail!("usage: codec_quality MODEL.safetensors DATASET [UTTERANCES [BEAM]]"),
    };
    let mut codec = Codec::open(Path::new(model), &Device::Cpu, DType::F32)?;
    // Refused before anything is measured.
    codec.set_beam(beam)?;
    let dataset = Dataset::open(data)?;
    let trained: Vec<&str> = dataset.split(Split::Train).map(|(_, u)| u.speaker.as_str()).collect();
    let test: Vec<(usize, [String; 3])> = dataset
        .split(Split::Test)
        .map(|(i, u)| {
            let speakers = if trained.contains(&u.speaker.as_str()) { "seen speakers" } else { "unseen speakers" };
            (i, ["all".to_owned(), speakers.to_owned(), format!("language {}", u.language)])
        })
        .collect();
    if test.is_empty() {
        bail!("{data}: no test split");
    }
    let stride = test.len().div_ceil(limit.max(1));
    let test: Vec<_> = test.into_iter().step_by(stride).collect();

    let mut stages = vec![codec.codebooks()];
    stages.extend((0..).map(|i| 1 << i).take_while(|&n| n < codec.codebooks()));
    stages.sort_unstable();
    let mut stages: Vec<(usize, usize)> = stages.into_iter().map(|codebooks| (codebooks, 1)).collect();
    if beam > 1 {
        stages.push((codec.codebooks(), beam));
    }
    let mut usage: Vec<Usage> = codec.format().codebook_sizes.iter().map(|&size| Usage::new(size)).collect();
    for &(codebooks, beam) in &stages {
        codec.set_beam(beam)?;
        let mut means = Means::default();
        for (index, groups) in &test {
            let samples = dataset.samples(*index);
            let codes = codec.encode(&samples, codebooks)?;
            if codebooks == codec.codebooks() && beam == 1 {
                usage.iter_mut().zip(codes.values.chunks(codes.frames.max(1))).for_each(|(usage, codes)| usage.add(codes));
            }
            let mut decoded = codec.decode(&codes)?;
            decoded.truncate(samples.len());
            means.add(groups, &Comparison::new(&samples, &decoded, codec.format().sample_rate, 0));
        }
        let paths = if beam > 1 { format!(", the best of {beam} paths") } else { String::new() };
        means.print(&format!("{} {:.2} kbit/s{paths}", codec.name(), codec.format().bitrate(codebooks) / 1e3), codebooks);
    }
    let perplexities: Vec<f64> = usage.iter().map(|u| (u.perplexity() * 10.0).round() / 10.0).collect();
    let shares: Vec<f64> = usage.iter().map(|u| (u.perplexity() / u.size() as f64 * 1e3).round() / 1e3).collect();
    println!("{}", json!({ "perplexity": perplexities, "share_of_size": shares }));

    let (mut opus, mut bits, mut seconds) = (Means::default(), 0.0, 0.0);
    for (index, groups) in &test {
        let samples = dataset.samples(*index);
        match opus_roundtrip(&samples, codec.format().sample_rate)? {
            Some((decoded, bytes)) => {
                bits += 8.0 * bytes as f64;
                seconds += samples.len() as f64 / f64::from(codec.format().sample_rate);
                opus.add(groups, &Comparison::new(&samples, &decoded, codec.format().sample_rate, 640));
            }
            None => {
                eprintln!("SKIPPED: Opus at 6 kbit/s: install ffmpeg with libopus");
                return Ok(());
            }
        }
    }
    opus.print(&format!("opus 6 kbit/s ({:.2} in files)", bits / seconds / 1e3), 0);
    Ok(())
}

const MEASURES: [&str; 10] =
    ["pesq", "stoi", "mel_distance", "stft_distance", "si_sdr_db", "rho", "amplitude", "f0_rmse_cents", "voicing_f1", "energy_correlation"];

/// The sum of each measure, and of how many utterances it is.
type Sums = [(f64, usize); MEASURES.len()];

/// Of each group the utterances and their sums.
#[derive(Default)]
struct Means(BTreeMap<String, (usize, Sums)>);

impl Means {
    /// A measure that has nothing to say of an utterance leaves it out; the others do not.
    fn add(&mut self, groups: &[String], c: &Comparison) {
        let (w, p) = (c.waveform, c.prosody);
        let waveform = [w.si_sdr_db, w.rho, w.amplitude].map(Some);
        let measured = [c.pesq, c.stoi, c.mel_distance, c.stft_distance].into_iter().chain(waveform);
        let measured: Vec<Option<f64>> = measured.chain([p.f0_rmse_cents, p.voicing_f1, p.energy_correlation]).collect();
        for group in groups {
            let (utterances, sums) = self.0.entry(group.clone()).or_default();
            *utterances += 1;
            for ((sum, count), value) in sums.iter_mut().zip(&measured) {
                if let Some(value) = value.filter(|v| v.is_finite()) {
                    (*sum, *count) = (*sum + value, *count + 1);
                }
            }
        }
    }

    fn lines(&self, codec: &str, codebooks: usize) -> Vec<Value> {
        let line = |(group, (utterances, sums)): (&String, &(usize, Sums))| {
            let mut line = json!({ "codec": codec, "codebooks": codebooks, "group": group, "utterances": utterances });
            let mut without = serde_json::Map::new();
            for (name, &(sum, count)) in MEASURES.iter().zip(sums) {
                line[*name] = (count > 0).then(|| (sum / count as f64 * 1e3).round() / 1e3).into();
                if count < *utterances {
                    without.insert((*name).to_owned(), (utterances - count).into());
                }
            }
            if !without.is_empty() {
                line["left_out"] = without.into();
            }
            line
        };
        self.0.iter().map(line).collect()
    }

    fn print(&self, codec: &str, codebooks: usize) {
        self.lines(codec, codebooks).iter().for_each(|line| println!("{line}"));
    }
}

/// Through `libopus` at 6 kbit/s in a temporary folder, and the bytes of its file; `None` without ffmpeg.
fn opus_roundtrip(samples: &[f32], rate: u32) -> Result<Option<(Vec<f32>, u64)>> {
    // Removed when it goes out of scope, whatever happens.
    let dir = tempfile::Builder::new().prefix("codec_quality-").tempdir()?;
    let [wav, opus, back] = ["x.wav", "x.opus", "y.wav"].map(|name| dir.path().join(name));
    audio::write(&wav, samples, rate, WavFormat::S16)?;
    let ffmpeg = |args: &[&std::ffi::OsStr]| {
        Command::new("ffmpeg").args(["-y", "-loglevel", "error"]).args(args).stdin(Stdio::null()).status().is_ok_and(|s| s.success())
    };
    let rate_text = rate.to_string();
    let done =
        ffmpeg(&["-i".as_ref(), wav.as_os_str(), "-c:a".as_ref(), "libopus".as_ref(), "-b:a".as_ref(), "6k".as_ref(), opus.as_os_str()])
            && ffmpeg(&["-i".as_ref(), opus.as_os_str(), "-ar".as_ref(), rate_text.as_ref(), back.as_os_str()]);
    Ok(if done { Some((audio::read(&back, Some(rate))?.samples, std::fs::metadata(&opus)?.len())) } else { None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_measure_leaves_out_the_others_have() {
        let tone: Vec<f32> = (0..8000).map(|i| (0.05 * i as f32).sin() * 0.3).collect();
        let whole = Comparison::new(&tone, &tone, 16_000, 0);
        let (one, other) = (Comparison { pesq: Some(4.0), ..whole }, Comparison { pesq: None, ..whole });
        let mut means = Means::default();
        [one, other].iter().for_each(|c| means.add(&["all".to_owned()], c));
        let line = means.lines("codec", 1).remove(0);
        assert_eq!((&line["utterances"], &line["pesq"], &line["left_out"]["pesq"]), (&json!(2), &json!(4.0), &json!(1)));
        assert_eq!((&line["rho"], &line["left_out"]["rho"]), (&json!(1.0), &Value::Null));
        let mut none = Means::default();
        none.add(&["all".to_owned()], &other);
        assert_eq!(none.lines("codec", 1)[0]["pesq"], Value::Null);
    }
}
