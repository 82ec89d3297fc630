//! How good is a codec on speech it has not seen?
//!
//! `codec_quality MODEL.safetensors DATASET [UTTERANCES]`: encodes and decodes the test split with 1, 2, 4, ... codebooks and
//! prints the means by group (unseen speakers, unseen sentences of seen speakers; each language), the perplexity of every codebook,
//! and - where ffmpeg with libopus is installed - the same figures for Opus at 6 kbit/s. One JSON object a line.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::json;
use swara_engine::codec::Codec;
use swara_engine::metrics::{Comparison, Usage};
use swara_kernels::{DType, Device};
use swara_loader::audio::{self, WavFormat};
use swara_loader::dataset::{Dataset, Split};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (model, data, limit) = match &args[..] {
        [model, data] => (model, data, usize::MAX),
        [model, data, limit] => (model, data, limit.parse().context("UTTERANCES")?),
        _ => bail!("usage: codec_quality MODEL.safetensors DATASET [UTTERANCES]"),
    };
    let codec = Codec::open(Path::new(model), &Device::Cpu, DType::F32)?;
    let dataset = Dataset::open(data)?;
    let trained: Vec<&str> = dataset.split(Split::Train).map(|(_, u)| u.speaker.as_str()).collect();
    let test: Vec<(usize, [String; 2])> = dataset
        .split(Split::Test)
        .map(|(i, u)| {
            let speakers = if trained.contains(&u.speaker.as_str()) { "seen speakers" } else { "unseen speakers" };
            (i, [speakers.to_owned(), format!("language {}", u.language)])
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
    let mut usage: Vec<Usage> = codec.format().codebook_sizes.iter().map(|&size| Usage::new(size)).collect();
    for &codebooks in &stages {
        let mut means = Means::default();
        for (index, groups) in &test {
            let samples = dataset.samples(*index);
            let codes = codec.encode(&samples, codebooks)?;
            if codebooks == codec.codebooks() {
                usage.iter_mut().zip(codes.values.chunks(codes.frames.max(1))).for_each(|(usage, codes)| usage.add(codes));
            }
            let mut decoded = codec.decode(&codes)?;
            decoded.truncate(samples.len());
            means.add(groups, &Comparison::new(&samples, &decoded, codec.format().sample_rate, 0));
        }
        means.print(&format!("{} {:.2} kbit/s", codec.name(), codec.format().bitrate(codebooks) / 1e3), codebooks);
    }
    let perplexities: Vec<f64> = usage.iter().map(|u| (u.perplexity() * 10.0).round() / 10.0).collect();
    let shares: Vec<f64> = usage.iter().map(|u| (u.perplexity() / u.size() as f64 * 1e3).round() / 1e3).collect();
    println!("{}", json!({ "perplexity": perplexities, "share_of_size": shares }));

    let mut opus = Means::default();
    for (index, groups) in &test {
        let samples = dataset.samples(*index);
        match opus_roundtrip(&samples, codec.format().sample_rate)? {
            Some(decoded) => opus.add(groups, &Comparison::new(&samples, &decoded, codec.format().sample_rate, 640)),
            None => {
                eprintln!("SKIPPED: Opus at 6 kbit/s: install ffmpeg with libopus");
                return Ok(());
            }
        }
    }
    opus.print("opus 6 kbit/s", 0);
    Ok(())
}

/// Sums per group: PESQ, STOI, SI-SDR, rho, amplitude, mel distance, STFT distance, count.
#[derive(Default)]
struct Means(BTreeMap<String, [f64; 8]>);

impl Means {
    /// Utterances that a measure has nothing to say of are left out of all.
    fn add(&mut self, groups: &[String], c: &Comparison) {
        let (Some(pesq), Some(stoi), Some(mel), Some(stft)) = (c.pesq, c.stoi, c.mel_distance, c.stft_distance) else { return };
        let values = [pesq, stoi, c.waveform.si_sdr_db, c.waveform.rho, c.waveform.amplitude, mel, stft, 1.0];
        for group in groups {
            let sums = self.0.entry(group.clone()).or_default();
            sums.iter_mut().zip(values).for_each(|(sum, v)| *sum += v);
        }
    }

    fn print(&self, codec: &str, codebooks: usize) {
        for (group, sums) in &self.0 {
            let [pesq, stoi, si_sdr, rho, amplitude, mel, stft, _] = sums.map(|s| s / sums[7]);
            let round = |v: f64| (v * 1e3).round() / 1e3;
            let line = json!({ "codec": codec, "codebooks": codebooks, "group": group, "utterances": sums[7], "pesq": round(pesq), "stoi": round(stoi),
                "mel_distance": round(mel), "stft_distance": round(stft), "si_sdr_db": round(si_sdr), "rho": round(rho), "amplitude": round(amplitude) });
            println!("{line}");
        }
    }
}

/// Through `libopus` at 6 kbit/s in a temporary folder; `None` without ffmpeg.
fn opus_roundtrip(samples: &[f32], rate: u32) -> Result<Option<Vec<f32>>> {
    let dir = std::env::temp_dir().join(format!("codec_quality-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let (wav, opus, back) = (dir.join("x.wav"), dir.join("x.opus"), dir.join("y.wav"));
    audio::write(&wav, samples, rate, WavFormat::S16)?;
    let ffmpeg = |args: &[&std::ffi::OsStr]| {
        Command::new("ffmpeg").args(["-y", "-loglevel", "error"]).args(args).stdin(Stdio::null()).status().is_ok_and(|s| s.success())
    };
    let rate_text = rate.to_string();
    let done =
        ffmpeg(&["-i".as_ref(), wav.as_os_str(), "-c:a".as_ref(), "libopus".as_ref(), "-b:a".as_ref(), "6k".as_ref(), opus.as_os_str()])
            && ffmpeg(&["-i".as_ref(), opus.as_os_str(), "-ar".as_ref(), rate_text.as_ref(), back.as_os_str()]);
    let decoded = if done { Some(audio::read(&back, Some(rate))?.samples) } else { None };
    std::fs::remove_dir_all(&dir)?;
    Ok(decoded)
}
