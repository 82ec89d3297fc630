use super::augment::{Augmentation, Augmenter};
use super::{Dataset, Loudness, Split};
use crate::{DatasetError, Error, Result, loudness};

/// How crops are drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerOptions {
    pub split: Split,
    pub seed: u64,
    /// Crops in a batch.
    pub batch: usize,
    /// Samples in a crop.
    pub crop: usize,
    /// Speakers are drawn in proportion to (their hours)^(1/temperature): 1 draws all audio alike, infinity all speakers.
    pub temperature: f64,
    /// What each crop is brought to; where a peak passes full scale, down to that again (audiotools' `VolumeNorm`, `RescaleAudio`).
    pub loudness: Loudness,
    /// Each crop is then changed by a gain drawn evenly from this range, dB; full scale is never passed.
    pub gain_db: Option<(f64, f64)>,
    pub augment: Option<Augmentation>,
    /// Fill up a crop from a short utterance with more of the same speaker, else with silence.
    pub concatenate: bool,
}

impl Default for SamplerOptions {
    fn default() -> Self {
        Self {
            split: Split::Train,
            seed: 0,
            batch: 8,
            crop: 16_000,
            temperature: 2.0,
            loudness: Loudness::Unchanged,
            gain_db: None,
            augment: None,
            concatenate: true,
        }
    }
}

#[derive(Debug)]
struct Speaker {
    utterances: Vec<usize>,
    /// Samples up to and with each utterance.
    ends: Vec<u64>,
}

/// Random crops of a dataset. Which ones a step sees is a function of the seed and the step alone, so that a resumed training
/// run sees what an uninterrupted one would have seen.
#[derive(Debug)]
pub struct Sampler<'a> {
    dataset: &'a Dataset,
    options: SamplerOptions,
    speakers: Vec<Speaker>,
    /// Probability up to and with each speaker; ends at 1.
    cumulative: Vec<f64>,
    augmenter: Option<Augmenter<'a>>,
}

/// `[batch, crop]`, what the crops are to become, and the utterance that each begins in.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    pub samples: Vec<f32>,
    /// Without what is to be taken away; `samples` but for a [`Target::Clean`](super::Target::Clean).
    pub targets: Vec<f32>,
    pub utterances: Vec<usize>,
    /// What each crop is made of, end to end.
    pub pieces: Vec<Vec<Piece>>,
}

/// Samples `start .. start + samples` of an utterance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    pub utterance: usize,
    pub start: usize,
    pub samples: usize,
}

impl<'a> Sampler<'a> {
    pub fn new(dataset: &'a Dataset, options: SamplerOptions) -> Result<Self> {
        let fail = |why| Error::Dataset { path: dataset.path().to_owned(), why };
        let refuse = |option, why: String| Err(fail(DatasetError::Option { option, why }));
        if options.batch == 0 || options.crop == 0 || options.batch.checked_mul(options.crop).is_none() {
            return refuse("batch", format!("{} crops of {} samples", options.batch, options.crop));
        }
        if options.temperature.is_nan() || options.temperature <= 0.0 {
            return refuse("temperature", format!("{}, expected more than 0", options.temperature));
        }
        if let Some((low, high)) = options.gain_db.filter(|(low, high)| !(low <= high && high - low < 200.0)) {
            return refuse("gain_db", format!("{low} to {high}"));
        }
        let mut by_name = std::collections::BTreeMap::<&str, Speaker>::new();
        for (i, u) in dataset.split(options.split) {
            let speaker = by_name.entry(&u.speaker).or_insert_with(|| Speaker { utterances: Vec::new(), ends: Vec::new() });
            speaker.utterances.push(i);
            speaker.ends.push(speaker.ends.last().unwrap_or(&0) + u.samples);
        }
        if by_name.is_empty() {
            return Err(fail(DatasetError::EmptySplit(options.split.to_string())));
        }
        let speakers: Vec<_> = by_name.into_values().collect();
        let weights: Vec<f64> =
            speakers.iter().map(|s| (s.ends.last().copied().unwrap_or(0) as f64).powf(1.0 / options.temperature)).collect();
        let total: f64 = weights.iter().sum();
        let mut sum = 0.0;
        let cumulative = weights
            .iter()
            .map(|w| {
                sum += w / total;
                sum
            })
            .collect();
        let augmenter = options.augment.clone().map(|augment| Augmenter::new(augment, dataset, options.split)).transpose()?;
        Ok(Self { dataset, options, speakers, cumulative, augmenter })
    }

    pub fn options(&self) -> &SamplerOptions {
        &self.options
    }

    /// The crops of one step.
    pub fn batch(&self, step: u64) -> Batch {
        let crop = self.options.crop;
        let mut samples = vec![0.0; self.options.batch * crop];
        let pieces: Vec<Vec<Piece>> = samples.chunks_exact_mut(crop).enumerate().map(|(i, out)| self.fill(step, i, out)).collect();
        let utterances: Vec<usize> = pieces.iter().filter_map(|crop| Some(crop.first()?.utterance)).collect();
        let mut targets = samples.clone();
        if let Some(augmenter) = &self.augmenter {
            let items = samples.chunks_exact_mut(crop).zip(targets.chunks_exact_mut(crop)).zip(&utterances).enumerate();
            for (i, ((samples, target), &utterance)) in items {
                augmenter.apply(samples, target, utterance, &mut Draws::new(self.options.seed ^ AUGMENT, step, i as u64));
            }
        }
        Batch { samples, targets, utterances, pieces }
    }

    fn fill(&self, step: u64, item: usize, out: &mut [f32]) -> Vec<Piece> {
        let mut draws = Draws::new(self.options.seed, step, item as u64);
        let x = draws.unit();
        let speaker = &self.speakers[self.cumulative.partition_point(|&c| c <= x).min(self.speakers.len() - 1)];
        let at = draws.below(speaker.ends.last().copied().unwrap_or(1));
        let mut nth = speaker.ends.partition_point(|&end| end <= at);
        let first = speaker.utterances[nth];

        let audio = self.dataset.s16(first);
        let spare = audio.len().saturating_sub(out.len());
        let start = draws.below(spare as u64 + 1) as usize;
        let mut filled = 0;
        let mut pieces = Vec::with_capacity(1);
        let (mut audio, mut piece) = (&audio[start..], Piece { utterance: first, start, samples: 0 });
        loop {
            let n = audio.len().min(out.len() - filled);
            pieces.push(Piece { samples: n, ..piece });
            for (o, &x) in out[filled..].iter_mut().zip(&audio[..n]) {
                *o = super::from_s16(x);
            }
            filled += n;
            if filled == out.len() || !self.options.concatenate {
                break;
            }
            nth = (nth + 1) % speaker.utterances.len();
            piece = Piece { utterance: speaker.utterances[nth], start: 0, samples: 0 };
            audio = self.dataset.s16(piece.utterance);
        }
        let drawn = self.options.gain_db.map_or(0.0, |range| draws.within(range));
        if drawn != 0.0 || self.options.loudness != Loudness::Unchanged {
            let db = self.options.loudness.gain_db(out, self.dataset.sample_rate()) + drawn;
            let peak = f64::from(loudness::peak(out)).max(1e-9);
            let gain = 10_f64.powf(db / 20.0).min(1.0 / peak) as f32;
            out.iter_mut().for_each(|x| *x *= gain);
        }
        pieces
    }
}

/// Tells the draws of augmentations from those of crops.
const AUGMENT: u64 = 0x6175_676d_656e_7400;

/// Random numbers from a counter: a hash of (seed, step, item, draw), no state to save.
pub(super) struct Draws {
    key: u64,
    count: u64,
}

impl Draws {
    pub fn new(seed: u64, step: u64, item: u64) -> Self {
        Self { key: mix(mix(mix(seed) ^ step) ^ item), count: 0 }
    }

    fn next(&mut self) -> u64 {
        self.count += 1;
        mix(self.key ^ self.count)
    }

    pub fn unit(&mut self) -> f64 {
        unit(self.next())
    }

    /// Draws of its own, however many are made.
    pub fn fork(&mut self) -> Self {
        Self { key: self.next(), count: 0 }
    }

    pub fn happens(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    pub fn within(&mut self, (low, high): (f64, f64)) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Even on 0..n, but for a bias of n / 2^64.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }
}

/// Finaliser of splitmix64 (Steele, Lea, Flood 2014) over a Weyl step.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// To [0, 1).
pub(super) fn unit(x: u64) -> f64 {
    (x >> 11) as f64 / (1_u64 << 53) as f64
}

pub(super) fn hash_text(text: &str) -> u64 {
    text.bytes().fold(mix(text.len() as u64), |hash, byte| mix(hash ^ u64::from(byte)))
}
