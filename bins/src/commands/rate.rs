//! `bench rate`: what a codec makes of recordings at each bitrate.

use std::time::{Duration, Instant};

use serde::Serialize;
use swara_engine::codec::{Codec, Codes, rate};
use swara_engine::metrics::mel_distance;
use swara_loader::audio::AudioReader;
use swara_loader::output;

use crate::cli::{BenchRate, Common};
use crate::codec::{self, UnpackedClip};
use crate::failure::{Failure, Result};
use crate::terminal;

/// Longest recording that is compared.
const MOST_SECONDS: usize = 600;

/// One way to choose codes, over all recordings.
#[derive(Serialize)]
struct Row {
    codebooks: String,
    beam: u8,
    /// Of the codes and of how many there are.
    kbps: f64,
    /// Share of the latents' energy that the codes leave.
    latent_error: f64,
    mel_distance: f64,
    /// Encoder and search.
    encode_ms_per_second: f64,
}

/// Codebooks of every frame, or a mean bitrate within which each has its own number.
#[derive(Clone, Copy)]
enum Choice {
    Fixed(usize),
    /// By what is heard of each frame, or by what is left of its latents.
    Within {
        bitrate: f64,
        hold: usize,
        loudness: Option<f64>,
    },
}

/// A recording, its codes of all codebooks, what each leaves, and what is heard of that.
struct Coded {
    samples: Vec<f32>,
    codes: Codes,
    left: Vec<f32>,
    heard: Vec<f32>,
}

pub fn run(common: &Common, args: &BenchRate) -> Result {
    let mut codec = codec::open(common, &args.model)?;
    let format = codec.format().clone();
    if format.multi_rate() || format.chunks.is_some() || format.channels != 1 {
        return Err(Failure::usage(format!("--model: {} has no codebooks that a frame could do without", codec.name())));
    }
    codec.check_measured().map_err(|why| Failure::usage(format!("--device: {why}")))?;
    for &beam in &args.beam {
        codec.set_beam(beam.into()).map_err(|why| Failure::usage(format!("--beam: {why}")))?;
    }
    let recordings = recordings(args, &codec)?;
    let all = codec.codebooks();
    let mut rows = Vec::new();
    let bar = terminal::progress(Some((args.beam.len() * recordings.len()) as u64), "rate");
    for &beam in &args.beam {
        codec.set_beam(beam.into())?;
        let (mut time, mut coded) = (Duration::ZERO, Vec::new());
        for samples in &recordings {
            let start = Instant::now();
            let (codes, left) = codec.encode_measured(samples, all)?;
            time += start.elapsed();
            let heard = rate::heard(&codec, samples, &codes, || ())?;
            coded.push(Coded { samples: samples.clone(), codes, left, heard });
            bar.inc(1);
        }
        let fixed = (1..=all).map(Choice::Fixed);
        let each = |n: usize| {
            let bitrate = format.bitrate(n);
            let choice = move |(hold, loudness)| Choice::Within { bitrate, hold, loudness };
            let by = || std::iter::once(None).chain(args.loudness.iter().copied().map(Some));
            args.hold.iter().flat_map(move |&hold| by().map(move |by| (usize::from(hold), by))).map(choice)
        };
        for choice in fixed.chain((1..all).flat_map(each)) {
            rows.push(row(&codec, choice, beam, &coded, time)?);
        }
    }
    bar.finish_and_clear();
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&rows).map_err(|e| Failure::work(e.to_string()))? + "\n";
        return if path.as_os_str() == "-" { terminal::write(&text) } else { Ok(output::write(path, text.as_bytes())?) };
    }
    let head = ["codebooks", "beam", "kbit/s", "latent error", "mel distance", "encode ms/s"];
    let cells = |r: &Row| {
        let numbers = [(r.kbps, 3), (r.latent_error, 4), (r.mel_distance, 4), (r.encode_ms_per_second, 1)];
        let numbers = numbers.map(|(value, digits)| format!("{value:.digits$}"));
        [r.codebooks.clone(), r.beam.to_string()].into_iter().chain(numbers).collect()
    };
    terminal::say(terminal::table(&head, &rows.iter().map(cells).collect::<Vec<Vec<String>>>()))
}

fn recordings(args: &BenchRate, codec: &Codec) -> Result<Vec<Vec<f32>>> {
    let rate = codec.format().sample_rate;
    let clip = args.files.is_empty().then(UnpackedClip::new).transpose()?;
    let files = clip.iter().map(|clip| &clip.path).chain(&args.files);
    let read = |path: &std::path::PathBuf| {
        let mut samples = Vec::new();
        for piece in &mut AudioReader::open(path, Some(rate))? {
            samples.extend(piece?);
            if samples.len() > MOST_SECONDS * rate as usize {
                return Err(Failure::file("cannot compare", format!("longer than {MOST_SECONDS} s"), path));
            }
        }
        Ok(samples)
    };
    files.map(read).collect()
}

/// Means over all recordings, weighted by their length.
fn row(codec: &Codec, choice: Choice, beam: u8, coded: &[Coded], time: Duration) -> Result<Row> {
    let (format, all) = (codec.format(), codec.codebooks());
    let (mut seconds, mut bits, mut before, mut after) = (0.0, 0.0, 0.0, 0.0);
    let (mut mel, mut compared) = (0.0, 0.0);
    for Coded { samples, codes, left, heard } in coded {
        let frames = codes.frames;
        let length = samples.len() as f64 / f64::from(format.sample_rate);
        let stages = match choice {
            Choice::Fixed(n) => rate::Stages { of: vec![n as u8; frames], hold: 1 },
            Choice::Within { bitrate, hold, loudness: None } => rate::within(heard, format, all, hold, bitrate, 0.0)?,
            Choice::Within { bitrate, hold, loudness: Some(g) } => rate::within(left, format, all, hold, bitrate, g)?,
        };
        let bitrate = match choice {
            Choice::Fixed(n) => format.bitrate(n),
            Choice::Within { .. } => rate::bitrate(&stages, format, all, frames),
        };
        let mut rows = format.by_frame(&codes.values, all);
        stages.drop_others(&mut rows, all);
        let mut decoded = codec.decode(&Codes { values: format.by_codebook(&rows, all), ..codes.clone() })?;
        decoded.truncate(samples.len());
        if let Some(distance) = mel_distance(&samples[..decoded.len()], &decoded, format.sample_rate) {
            mel += length * distance;
            compared += length;
        }
        bits += length * bitrate;
        seconds += length;
        for (frame, left) in left.chunks_exact(all + 1).enumerate() {
            before += f64::from(left[0]);
            after += f64::from(left[stages.at(frame)]);
        }
    }
    let codebooks = match choice {
        Choice::Fixed(n) => n.to_string(),
        Choice::Within { hold, loudness: None, .. } => format!("as heard, hold {hold}"),
        Choice::Within { hold, loudness: Some(g), .. } => format!("by latents, hold {hold}, loudness {g}"),
    };
    Ok(Row {
        codebooks,
        beam,
        kbps: bits / seconds / 1e3,
        latent_error: after / before,
        mel_distance: mel / compared,
        encode_ms_per_second: 1e3 * time.as_secs_f64() / seconds,
    })
}
