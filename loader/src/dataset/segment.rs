//! Cuts a stream of samples into utterances.

use super::Options;

/// Frame on which silence is judged, seconds.
const FRAME: f64 = 0.02;
/// Silence kept at either end, seconds.
const MARGIN: f64 = 0.1;

/// Takes samples as they come and gives pieces of at most `max_seconds`, never holding more than one and a bit.
pub(super) struct Segmenter {
    max: usize,
    frame: usize,
    held: Vec<f32>,
    /// Sample index of `held[0]`.
    start: u64,
}

impl Segmenter {
    pub fn new(options: &Options) -> Self {
        let rate = f64::from(options.sample_rate);
        Self { max: (options.max_seconds * rate) as usize, frame: ((FRAME * rate) as usize).max(1), held: Vec::new(), start: 0 }
    }

    /// Calls `give(start, piece)` for each complete piece.
    pub fn feed(&mut self, samples: &[f32], mut give: impl FnMut(u64, &[f32])) {
        self.held.extend_from_slice(samples);
        while self.held.len() > self.max {
            let cut = self.quietest();
            give(self.start, &self.held[..cut]);
            self.held.drain(..cut);
            self.start += cut as u64;
        }
    }

    pub fn finish(self, mut give: impl FnMut(u64, &[f32])) {
        if !self.held.is_empty() {
            give(self.start, &self.held);
        }
    }

    /// Middle of the quietest frame in the last two thirds.
    fn quietest(&self) -> usize {
        let frames = self.max / self.frame;
        let energy = |i: &usize| power(&self.held[i * self.frame..(i + 1) * self.frame]);
        let best = (frames / 3..frames).min_by(|a, b| energy(a).total_cmp(&energy(b))).unwrap_or(frames - 1);
        best * self.frame + self.frame / 2
    }
}

fn power(samples: &[f32]) -> f64 {
    samples.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / samples.len().max(1) as f64
}

/// Why a piece was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unfit {
    Silent,
    Clipped,
    Short,
}

/// The range of `samples` without the silence at its ends, or why it is of no use.
pub(super) fn trim(samples: &[f32], options: &Options) -> Result<std::ops::Range<usize>, Unfit> {
    let rate = f64::from(options.sample_rate);
    let least = (options.min_seconds * rate) as usize;
    if samples.len() < least {
        return Err(Unfit::Short);
    }
    let frame = ((FRAME * rate) as usize).max(1);
    let db = |s: &[f32]| 10.0 * power(s).log10();
    let levels: Vec<f64> = samples.chunks(frame).map(db).collect();
    let loudest = levels.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if loudest < options.silence_dbfs {
        return Err(Unfit::Silent);
    }
    let clipped = samples.iter().filter(|x| x.abs() >= 0.9999).count();
    if clipped as f64 > options.max_clipped * samples.len() as f64 {
        return Err(Unfit::Clipped);
    }
    let heard = |level: &f64| *level > (loudest - options.trim_db).max(options.silence_dbfs - 20.0);
    let first = levels.iter().position(heard).unwrap_or(0);
    let last = levels.iter().rposition(heard).unwrap_or(levels.len() - 1);
    let margin = (MARGIN * rate) as usize;
    let range = (first * frame).saturating_sub(margin)..((last + 1) * frame + margin).min(samples.len());
    if range.len() < least { Err(Unfit::Short) } else { Ok(range) }
}
