//! A number of stages for each frame: as few as serve it.
//!
//! [`Codec::encode_measured`] says what every stage leaves of a frame's latents, [`heard`] what is heard of that. From the first [`until`]
//! decides frame by frame, as they come; from either [`within`] over a whole signal, so that a mean bitrate holds. The codes of the other
//! stages become [`NONE`], which adds nothing when decoded.

pub use swara_loader::codes::{MAX_HOLD, NONE, Stages};

use super::{Codec, Codes, Format};
use crate::metrics::mel_distance_by_run;
use crate::{Error, Result};

/// Most stages that a number of them is kept for.
pub const MAX_STAGES: usize = 64;
/// Share of the mean energy below which a frame's own does not make it weigh more.
const SILENCE: f64 = 1e-3;
/// Halvings in a search for a price.
const HALVINGS: usize = 60;

/// Mean bits a second of `frames` frames, of which each could have `most` stages: of their codes and of the numbers themselves.
pub fn bitrate(stages: &Stages, format: &Format, most: usize, frames: usize) -> f64 {
    let bits = bits(format, most);
    let codes: f64 = (0..frames).map(|frame| bits[stages.at(frame).min(most)]).sum();
    (codes + stages.of.len() as f64 * side_bits(most)) / frames.max(1) as f64 * format.frame_rate()
}

/// Bits of a frame by its number of stages, 0 to `stages`.
fn bits(format: &Format, stages: usize) -> Vec<f64> {
    let each = format.codebook_sizes.iter().take(stages).map(|&size| (size as f64).log2().ceil());
    let sums = each.scan(0.0, |sum, bits| {
        *sum += bits;
        Some(*sum)
    });
    std::iter::once(0.0).chain(sums).collect()
}

/// Of a number from 1 to `stages`.
fn side_bits(stages: usize) -> f64 {
    (stages as f64).log2().ceil()
}

/// Stages until at most the share `error` of the energy of `hold` frames is left, or all; `left [frames, stages + 1]`.
pub fn until(left: &[f32], stages: usize, hold: usize, error: f64) -> Result<Stages> {
    check(stages, hold)?;
    let sums = runs(left, stages, hold, |_| 1.0);
    let enough = |run: &Vec<f64>| (1..stages).find(|&n| run[n] <= error * run[0]).unwrap_or(stages) as u8;
    Ok(Stages { of: sums.iter().map(enough).collect(), hold })
}

/// Stages that leave least at a mean of at most `bitrate` bits a second, the numbers themselves among them; one for each frame where that
/// is more already.
///
/// What is left of a frame of energy e counts as its share of `e ^ loudness`: 0 minimises the squared error of the signal, which is that
/// of its loud frames, 1 the mean of what is left of each, loud or not. As squared errors add up, one price of a bit for all frames finds
/// the least sum (Lagrange).
pub fn within(left: &[f32], format: &Format, stages: usize, hold: usize, bitrate: f64, loudness: f64) -> Result<Stages> {
    check(stages, hold)?;
    let frames = left.len() / (stages + 1);
    let mean = left.iter().step_by(stages + 1).map(|&e| f64::from(e)).sum::<f64>() / frames.max(1) as f64;
    let sums = runs(left, stages, hold, |energy| (energy + SILENCE * mean).max(f64::MIN_POSITIVE).powf(-loudness));
    let bits = bits(format, stages);
    let length = |run: usize| hold.min(frames - run * hold) as f64;
    let at = |price: f64| {
        let cost = |run: usize, n: usize| sums[run][n] + price * length(run) * bits[n];
        let least = |run: usize| (2..=stages).fold(1, |best, n| if cost(run, n) < cost(run, best) { n } else { best }) as u8;
        Stages { of: (0..sums.len()).map(least).collect(), hold }
    };
    let fits = |found: &Stages| self::bitrate(found, format, stages, frames) <= bitrate;
    let mut found = at(0.0);
    if fits(&found) {
        return Ok(found);
    }
    // Beyond this no further stage pays.
    let mut high = sums.iter().map(|run| run[1]).fold(f64::MIN_POSITIVE, f64::max);
    let mut low = high * 1e-12;
    found = at(high);
    for _ in 0..HALVINGS {
        let middle = (low * high).sqrt();
        let candidate = at(middle);
        if fits(&candidate) {
            (high, found) = (middle, candidate);
        } else {
            low = middle;
        }
    }
    Ok(found)
}

/// What each frame adds to the mel distance of `samples` with every number of stages of `codes`, `[frames, stages + 1]`: for [`within`], in
/// place of what is left of the latents, with a loudness of 0. Decodes the codes once for every stage, and says so by `decoded`; no stage
/// counts as one.
///
/// # Errors
/// Those of [`check_heard`]; codes that are not the codec's.
pub fn heard(codec: &Codec, samples: &[f32], codes: &Codes, mut decoded: impl FnMut()) -> Result<Vec<f32>> {
    check_heard(codec)?;
    let (format, stages, frames) = (codec.format(), codes.codebooks, codes.frames);
    let mut heard = vec![0.0; frames * (stages + 1)];
    for n in 1..=stages {
        let values = codes.values.get(..n * frames).unwrap_or_default().to_vec();
        let output = codec.decode(&Codes { codebooks: n, values, ..codes.clone() })?;
        decoded();
        let distances = mel_distance_by_run(samples, &output, format.sample_rate, format.hop);
        for (row, distance) in heard.chunks_exact_mut(stages + 1).zip(distances) {
            row[n] = distance as f32;
            if n == 1 {
                row[0] = row[1];
            }
        }
    }
    Ok(heard)
}

/// That frames of a codec can be heard by themselves.
///
/// # Errors
/// Why they cannot.
pub fn check_heard(codec: &Codec) -> Result<()> {
    let format = codec.format();
    if format.channels != 1 || format.multi_rate() || format.chunks.is_some() {
        return Err(Error::Argument(format!("{}, and frames are heard of codecs of one channel, one rate and one piece", codec.name())));
    }
    Ok(())
}

/// Sums over runs of frames of what is left of each, by the weight that its energy has.
fn runs(left: &[f32], stages: usize, hold: usize, weight: impl Fn(f64) -> f64) -> Vec<Vec<f64>> {
    let sum = |run: &[f32]| {
        let mut sum = vec![0.0; stages + 1];
        for frame in run.chunks_exact(stages + 1) {
            let weight = weight(frame[0].into());
            sum.iter_mut().zip(frame).for_each(|(sum, &left)| *sum += weight * f64::from(left));
        }
        sum
    };
    left.chunks(hold * (stages + 1)).map(sum).collect()
}

fn check(stages: usize, hold: usize) -> Result<()> {
    if (1..=MAX_STAGES).contains(&stages) && (1..=MAX_HOLD).contains(&hold) {
        return Ok(());
    }
    Err(Error::Argument(format!("{stages} stages and {hold} frames, expected up to {MAX_STAGES} and {MAX_HOLD}")))
}
