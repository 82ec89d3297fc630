//! Teachers of what is said: WavLM (Chen et al. 2021, arXiv 2110.13900) and HuBERT (Hsu et al. 2021, arXiv 2106.07447), forward only, from
//! folders as `transformers` saves them.
//!
//! Convolutions make a row of every 20 ms of a wave at 16 kHz, a transformer that sees all of them makes as many hidden states as it has
//! layers, and one more before the first. They run on the device's kernels in f32.

mod checkpoint;
mod config;
mod layers;

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use swara_kernels::ops::elementwise;
use swara_kernels::{DType, Device, Tensor};

pub use config::{Config, Kind};

use crate::{Error, Result};
use layers::Model;

/// What teachers compute in.
const DTYPE: DType = DType::F32;
/// Hz, of what a teacher hears.
pub const SAMPLE_RATE: u32 = 16_000;
/// Seconds that it hears at a time.
const SECONDS: usize = 30;
/// Seconds at the end of such a window that the next one hears as well: a half of their rows is taken from either.
const SHARED: usize = 2;
/// Of the variance that a wave is brought to one by.
const VARIANCE_EPSILON: f64 = 1e-7;

/// Which hidden state is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// What the model gives.
    Last,
    /// 0: before the first layer; `n`: after layer `n`. As `hidden_states` of `transformers`.
    Layer(usize),
    /// Of all of them, as SpeechTokenizer has it.
    Mean,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            State::Last => f.write_str("last"),
            State::Layer(n) => write!(f, "{n}"),
            State::Mean => f.write_str("mean"),
        }
    }
}

impl FromStr for State {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<State, String> {
        match text {
            "last" => Ok(State::Last),
            "mean" => Ok(State::Mean),
            n => n.parse().map(State::Layer).map_err(|_| format!("{n:?} is neither last nor mean nor the number of a layer")),
        }
    }
}

pub struct Teacher {
    config: Config,
    model: Model,
    device: Device,
    /// Whether a wave loses its mean and has unit variance before it is heard.
    normalise: bool,
    digest: String,
}

impl Teacher {
    /// A folder with `config.json`, weights, and `preprocessor_config.json`, without which waves are normalised.
    ///
    /// # Errors
    /// What is no such folder; another architecture; tensors that are missing, of another shape, or not finite.
    pub fn open(path: &Path, device: &Device) -> Result<Teacher> {
        let (config, normalise, weights, digest) = checkpoint::open(path, device)?;
        let model = Model::new(&config, &weights, device)?;
        Ok(Teacher { config, model, device: device.clone(), normalise, digest })
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Of all weights.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Values of a row.
    pub fn dim(&self) -> usize {
        self.config.hidden_size
    }

    /// Rows a second.
    pub fn rate(&self) -> f64 {
        f64::from(SAMPLE_RATE) / self.config.hop() as f64
    }

    /// That there is such a state.
    pub fn check(&self, state: State) -> Result<()> {
        let layers = self.config.num_hidden_layers;
        match state {
            State::Layer(n) if n > layers => Err(Error::Argument(format!("the teacher has no layer {n}, only {layers}"))),
            _ => Ok(()),
        }
    }

    /// The state `[B, T, dim]` of waves `[B, N]` as they are, not normalised; `T` is [`Config::rows`] of `N`.
    ///
    /// # Errors
    /// No such state; waves shorter than one row needs.
    pub fn forward(&self, waves: &Tensor, state: State) -> Result<Tensor> {
        self.check(state)?;
        let layers = self.config.num_hidden_layers;
        let upto = if let State::Layer(n) = state { n } else { layers };
        let mut kept: Option<Tensor> = None;
        self.hidden_states(waves, upto, |n, x| {
            match (&mut kept, state) {
                (Some(sum), State::Mean) => elementwise::add_assign(sum, x)?,
                (empty, State::Mean) => *empty = Some(x.copy()?),
                (empty, _) if n == upto => *empty = Some(x.copy()?),
                _ => {}
            }
            Ok(())
        })?;
        let kept = kept.ok_or_else(|| Error::Argument("the teacher gave no hidden state".into()))?;
        Ok(if state == State::Mean { elementwise::scale(&kept, 1.0 / (layers + 1) as f64)? } else { kept })
    }

    /// Shows the states `0..=upto` in order.
    pub fn hidden_states(&self, waves: &Tensor, upto: usize, observe: impl FnMut(usize, &Tensor) -> Result<()>) -> Result<()> {
        let &[batch, samples] = &*waves.shape() else { return Err(Error::Argument(format!("{waves:?} is not waves [B, N]"))) };
        if batch == 0 || self.config.rows(samples) == 0 {
            let why = format!("{batch} waves of {samples} samples, the teacher needs one of {}", self.config.reach());
            return Err(Error::Argument(why));
        }
        self.model.run(waves.copy()?.reshape([batch, samples, 1])?, upto, observe)
    }

    /// Rows of a recording at [`SAMPLE_RATE`] of any length, which `pieces` gives in order, every time it is asked.
    ///
    /// What is longer than 30 s is heard in windows of that, which share 2 s with the one before: of the rows that both have, each gives
    /// the half that is nearer to its middle. The mean and the variance are those of the whole recording.
    pub fn features<P>(&self, state: State, pieces: impl Fn() -> Result<P>) -> Result<Vec<f32>>
    where
        P: Iterator<Item = Result<Vec<f32>>>,
    {
        let (mean, scale) = if self.normalise { moments(pieces()?)? } else { (0.0, 1.0) };
        let windows = Windows::new(&self.config);
        let (mut rest, mut pieces, mut ended) = (Vec::new(), pieces()?, false);
        let (mut features, mut first) = (Vec::new(), true);
        loop {
            // One row more than a window has tells that it is not the last.
            while !ended && rest.len() < self.config.samples(windows.rows + 1) {
                match pieces.next() {
                    Some(piece) => rest.extend(piece?.iter().map(|&x| ((f64::from(x) - mean) * scale) as f32)),
                    None => ended = true,
                }
            }
            let rows = self.config.rows(rest.len());
            let last = rows <= windows.rows;
            if rows == 0 {
                return Ok(features);
            }
            let rows = rows.min(windows.rows);
            // All of the end, as norms over time take in samples that fill no row.
            let wave = if last { &rest[..] } else { &rest[..self.config.samples(rows)] };
            let found = self.forward(&Tensor::from_slice(&self.device, wave, [1, wave.len()])?, state)?;
            let half = windows.shared / 2;
            let from = if first { 0 } else { half };
            let to = if last { rows } else { rows - (windows.shared - half) };
            features.extend_from_slice(&found.to_vec::<f32>()?[from * self.dim()..to * self.dim()]);
            if last {
                return Ok(features);
            }
            rest.drain(..(windows.rows - windows.shared) * self.config.hop());
            first = false;
        }
    }
}

/// Rows of what is heard at a time.
struct Windows {
    rows: usize,
    shared: usize,
}

impl Windows {
    fn new(config: &Config) -> Windows {
        let rows = config.rows(SECONDS * SAMPLE_RATE as usize).max(1);
        Windows { rows, shared: (SHARED * SAMPLE_RATE as usize / config.hop()).min(rows / 2) }
    }
}

/// The mean, and what brings the variance to one.
fn moments(pieces: impl Iterator<Item = Result<Vec<f32>>>) -> Result<(f64, f64)> {
    let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
    for piece in pieces {
        for x in piece?.into_iter().map(f64::from) {
            count += 1.0;
            sum += x;
            squares += x * x;
        }
    }
    let mean = sum / f64::max(count, 1.0);
    let variance = f64::max(squares / f64::max(count, 1.0) - mean * mean, 0.0);
    Ok((mean, (variance + VARIANCE_EPSILON).sqrt().recip()))
}
