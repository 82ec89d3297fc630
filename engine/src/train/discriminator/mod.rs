//! Discriminators: what tells real waves from made ones, and by what they see in both a generator learns.
//!
//! Each is a stack of convolutions over a view of the wave - rows of a period, the wave averaged down, or its complex spectrum.
//! Its feature maps are what comes out of every layer, the last being the logits. Tensors are named as the published modules
//! name them, one index running over periods, scales, bands' windows and spectra in that order.
//!
//! Sources: HiFi-GAN (`models.py`); DAC (`dac/model/discriminator.py`); EnCodec (`encodec/msstftd.py`, audiocraft's sizes).

mod config;
mod loss;

use std::collections::BTreeMap;

use swara_kernels::Tensor;
use swara_kernels::case::SplitMix;
use swara_kernels::ops::weight_norm::Axis;
use swara_kernels::ops::{conv1d, conv2d};
use swara_kernels::span;

pub use self::config::{BandConfig, DiscriminatorConfig, PeriodConfig, PeriodRules, ScaleConfig, StftConfig};
pub use self::loss::{AdversarialForm, AdversarialRule, Reduction, adversarial_loss, discriminator_loss, feature_loss};
use super::quantize::mix;
use super::recording::Recording;
use crate::codec::model::{Layout, TensorSpec};
use crate::tape::{Tape, Var};
use crate::{Error, Result};

/// Peak of a normalised wave.
const LEVEL: f64 = 0.8;

#[derive(Clone, Copy, Debug)]
enum Geometry {
    Wave { taps: usize, geometry: conv1d::Geometry },
    Image(conv2d::Geometry),
}

#[derive(Debug)]
struct Conv {
    name: String,
    cin: usize,
    cout: usize,
    geometry: Geometry,
    /// Whether the weight is a direction and a gain.
    normed: bool,
}

impl Conv {
    fn image(name: String, [cin, cout]: [usize; 2], geometry: conv2d::Geometry) -> Conv {
        Conv { name, cin, cout, geometry: Geometry::Image(geometry), normed: true }
    }

    /// `[out, in, taps..]`
    fn published(&self) -> Vec<usize> {
        match self.geometry {
            Geometry::Wave { taps, geometry } => vec![self.cout, self.cin / geometry.groups, taps],
            Geometry::Image(g) => vec![self.cout, self.cin, g.kernel[0], g.kernel[1]],
        }
    }

    fn tensors(&self) -> Vec<TensorSpec> {
        let published = self.published();
        let mut gain = vec![1; published.len()];
        gain[0] = self.cout;
        let spec = |part: &str, layout, published| TensorSpec { name: format!("{}.{part}", self.name), layout, published };
        let bias = spec("bias", Layout::Plain, vec![self.cout]);
        if self.normed {
            vec![bias, spec("weight_g", Layout::Gain, gain), spec("weight_v", Layout::Conv, published)]
        } else {
            vec![bias, spec("weight", Layout::Conv, published)]
        }
    }

    fn record(&self, recording: &Recording, x: &Var, slope: f64) -> Result<Var> {
        let _span = span::layer(&self.name);
        let weight = recording.weight(&self.name, Axis::Out)?;
        let bias = recording.parameter(&format!("{}.bias", self.name))?;
        match self.geometry {
            Geometry::Image(geometry) => Ok(recording.tape.conv2d(x, &weight, Some(bias), geometry, slope)?),
            Geometry::Wave { geometry, .. } => {
                let y = recording.tape.conv1d(x, &weight, Some(bias), None, geometry)?;
                if slope == 1.0 { Ok(y) } else { Ok(recording.tape.leaky_relu(&y, slope)?) }
            }
        }
    }
}

/// What a discriminator looks at.
#[derive(Debug)]
enum View {
    Period {
        period: usize,
        rules: PeriodRules,
    },
    /// The wave averaged down by 2 so many times.
    Scale {
        halvings: usize,
    },
    /// Of frames as many as hops, in bands from one bin to before another.
    Bands {
        window: usize,
        bins: Vec<[usize; 2]>,
    },
    /// Of whole frames.
    Spectrum {
        window: usize,
    },
}

#[derive(Debug)]
struct Discriminator {
    view: View,
    slope: f64,
    /// One for each band; one alone for everything else.
    stacks: Vec<Vec<Conv>>,
    last: Conv,
}

/// All discriminators of a configuration.
#[derive(Debug)]
pub struct Discriminators {
    normalise: bool,
    members: Vec<Discriminator>,
}

fn period(name: &str, period: usize, config: &PeriodConfig) -> Discriminator {
    let suffix = if config.rules == PeriodRules::Dac { ".0" } else { "" };
    let mut cin = 1;
    let layer = |(i, &cout): (usize, &usize)| {
        let stride = if i + 1 < config.channels.len() { 3 } else { 1 };
        let geometry = conv2d::Geometry::same([5, 1], [stride, 1], [1, 1]);
        Conv::image(format!("{name}.convs.{i}{suffix}"), [std::mem::replace(&mut cin, cout), cout], geometry)
    };
    let convs: Vec<Conv> = config.channels.iter().enumerate().map(layer).collect();
    let last = Conv::image(format!("{name}.conv_post"), [cin, 1], conv2d::Geometry::same([3, 1], [1, 1], [1, 1]));
    let view = View::Period { period, rules: config.rules };
    Discriminator { view, slope: config.negative_slope, stacks: vec![convs], last }
}

fn scale(name: &str, halvings: usize, config: &ScaleConfig) -> Discriminator {
    let conv = |name: String, [cin, cout]: [usize; 2], [taps, stride, groups]: [usize; 3]| {
        let geometry = conv1d::Geometry { stride, groups, pad_left: taps / 2, pad_right: taps / 2, ..conv1d::Geometry::default() };
        Conv { name, cin, cout, geometry: Geometry::Wave { taps, geometry }, normed: true }
    };
    let mut cin = 1;
    let layer = |(i, &[cout, taps, stride, groups]): (usize, &[usize; 4])| {
        conv(format!("{name}.convs.{i}"), [std::mem::replace(&mut cin, cout), cout], [taps, stride, groups])
    };
    let convs: Vec<Conv> = config.layers.iter().enumerate().map(layer).collect();
    let last = conv(format!("{name}.conv_post"), [cin, 1], [3, 1, 1]);
    Discriminator { view: View::Scale { halvings }, slope: config.negative_slope, stacks: vec![convs], last }
}

fn bands(name: &str, window: usize, config: &BandConfig) -> Discriminator {
    let n = config.channels;
    let same = |kernel, across| conv2d::Geometry::same(kernel, [1, across], [1, 1]);
    let stack = |band: usize| {
        let conv = |i: usize, cin, geometry| Conv::image(format!("{name}.band_convs.{band}.{i}.0"), [cin, n], geometry);
        let strided = (1..4).map(|i| conv(i, n, same([3, 9], 2)));
        std::iter::once(conv(0, 2, same([3, 9], 1))).chain(strided).chain([conv(4, n, same([3, 3], 1))]).collect()
    };
    let view = View::Bands { window, bins: config.bins(window) };
    let last = Conv::image(format!("{name}.conv_post"), [n, 1], same([3, 3], 1));
    Discriminator { view, slope: config.negative_slope, stacks: (0..config.bands.len()).map(stack).collect(), last }
}

fn spectrum(name: &str, window: usize, config: &StftConfig) -> Discriminator {
    let n = config.filters;
    let conv = |i: usize, cin, geometry| Conv::image(format!("{name}.convs.{i}.conv"), [cin, n], geometry);
    let first = Conv { normed: false, ..conv(0, 2, conv2d::Geometry::same([3, 9], [1, 1], [1, 1])) };
    let dilated = |(i, &dilation): (usize, &usize)| conv(i + 1, n, conv2d::Geometry::same([3, 9], [1, 2], [dilation, 1]));
    let square = conv2d::Geometry::same([3, 3], [1, 1], [1, 1]);
    let last = Conv::image(format!("{name}.conv_post.conv"), [n, 1], square);
    let dilated = config.dilations.iter().enumerate().map(dilated);
    let convs = std::iter::once(first).chain(dilated).chain([conv(config.dilations.len() + 1, n, square)]).collect();
    Discriminator { view: View::Spectrum { window }, slope: config.negative_slope, stacks: vec![convs], last }
}

impl Discriminators {
    /// Those of `config`, for waves of any rate: what they look at is counted in samples.
    ///
    /// # Errors
    /// Those of [`DiscriminatorConfig::check`].
    pub fn new(config: &DiscriminatorConfig) -> Result<Self> {
        config.check()?;
        Ok(Self::layout(config))
    }

    /// Of sizes that are bounded.
    fn layout(config: &DiscriminatorConfig) -> Self {
        let mut members = Vec::new();
        let mut add = |make: &dyn Fn(&str) -> Discriminator| members.push(make(&format!("discriminators.{}", members.len())));
        if let Some(c) = &config.period {
            c.periods.iter().for_each(|&p| add(&|name| period(name, p, c)));
        }
        if let Some(c) = &config.scale {
            (0..c.scales).for_each(|halvings| add(&|name| scale(name, halvings, c)));
        }
        if let Some(c) = &config.band {
            c.windows.iter().for_each(|&window| add(&|name| bands(name, window, c)));
        }
        if let Some(c) = &config.stft {
            c.windows.iter().for_each(|&window| add(&|name| spectrum(name, window, c)));
        }
        Discriminators { normalise: config.normalise, members }
    }

    fn convs(&self) -> impl Iterator<Item = &Conv> {
        self.members.iter().flat_map(|member| member.stacks.iter().flatten().chain([&member.last]))
    }

    /// How many numbers the tensors hold.
    fn parameters(&self) -> usize {
        let numbers = |spec: TensorSpec| spec.published.iter().fold(1usize, |product, &n| product.saturating_mul(n));
        self.convs().flat_map(Conv::tensors).map(numbers).fold(0, usize::saturating_add)
    }

    /// Every tensor, by published name and layout.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        self.convs().flat_map(Conv::tensors).collect()
    }

    /// Values of [`Discriminators::tensors`] before training, in memory order, as PyTorch draws them: weights and biases uniform up to
    /// `1 / sqrt(inputs of an output)`; gains are the norms of their weights.
    pub fn initial(&self, seed: u64) -> BTreeMap<String, Vec<f64>> {
        let mut values = BTreeMap::new();
        for conv in self.convs() {
            let bound = (conv.published()[1..].iter().product::<usize>() as f64).powf(-0.5);
            for spec in conv.tensors().into_iter().filter(|spec| spec.layout != Layout::Gain) {
                let mut rng = SplitMix(spec.name.bytes().fold(seed, |h, b| mix(h, b as u64, 2)));
                let n = spec.published.iter().product();
                let drawn: Vec<f64> = (0..n).map(|_| f64::from((bound * (2.0 * rng.uniform() - 1.0)) as f32)).collect();
                if let Some(layer) = spec.name.strip_suffix(".weight_v") {
                    let norms = spec.norms(&drawn).into_iter().map(|n| f64::from(n as f32)).collect();
                    values.insert(format!("{layer}.weight_g"), norms);
                }
                values.insert(spec.name, drawn);
            }
        }
        values
    }

    /// Feature maps of every discriminator for `wave [B, T, 1]`, the last of each being its logits.
    ///
    /// # Errors
    /// A wave that is too short for a view; parameters that are missing or of other shapes.
    pub fn maps(&self, recording: &Recording, wave: &Var) -> Result<Vec<Vec<Var>>> {
        let shape = wave.value().shape();
        let &[batch, samples, 1] = &*shape else { return Err(Error::Argument(format!("a wave of shape {shape:?}, expected [B, T, 1]"))) };
        let normalised;
        let wave = if self.normalise {
            let rows = recording.tape.reshape(wave, [batch, samples])?;
            normalised = recording.tape.reshape(&recording.tape.peak_norm(&rows, LEVEL)?, [batch, samples, 1])?;
            &normalised
        } else {
            wave
        };
        self.members.iter().map(|member| member.maps(recording, wave, [batch, samples])).collect()
    }
}

fn too_short(samples: usize, what: &str) -> Error {
    Error::Argument(format!("a wave of {samples} samples is too short for a discriminator of {what}"))
}

impl Discriminator {
    fn maps(&self, recording: &Recording, wave: &Var, extents: [usize; 2]) -> Result<Vec<Var>> {
        let views = self.view.record(recording, wave, extents)?;
        let mut maps = Vec::new();
        let mut ends = Vec::new();
        for (mut x, stack) in views.into_iter().zip(&self.stacks) {
            for conv in stack {
                x = conv.record(recording, &x, self.slope)?;
                maps.push(x.clone());
            }
            ends.push(x);
        }
        let joined = match &ends[..] {
            [only] => only.clone(),
            bands => across(recording, bands)?,
        };
        maps.push(self.last.record(recording, &joined, 1.0)?);
        Ok(maps)
    }
}

/// `[B, H, W1 + W2 + .., C]` of `[B, H, W1, C]`, `[B, H, W2, C]`, ..
fn across(recording: &Recording, bands: &[Var]) -> Result<Var> {
    let mut size = [0, 0, 0, 0];
    let mut lines = Vec::with_capacity(bands.len());
    for band in bands {
        let shape = band.value().shape();
        let &[batch, height, width, channels] = &*shape else { return Err(Error::Argument(format!("a map of shape {shape:?}"))) };
        size = [batch, height, size[2] + width, channels];
        lines.push(recording.tape.reshape(band, [batch * height, width, channels])?);
    }
    Ok(recording.tape.reshape(&recording.tape.concat(&lines)?, size)?)
}

impl View {
    /// What the stacks see of `wave [batch, samples, 1]`.
    fn record(&self, recording: &Recording, wave: &Var, [batch, samples]: [usize; 2]) -> Result<Vec<Var>> {
        let tape = recording.tape;
        match *self {
            View::Period { period, rules } => {
                let more = match rules {
                    PeriodRules::Dac => period - samples % period,
                    PeriodRules::HifiGan => samples.next_multiple_of(period) - samples,
                };
                if more >= samples {
                    return Err(too_short(samples, &format!("period {period}")));
                }
                let padded = tape.pad(wave, 0, more as isize)?;
                Ok(vec![tape.reshape(&padded, [batch, (samples + more) / period, period, 1])?])
            }
            View::Scale { halvings } => {
                let like = wave.value();
                let quarters = Var::from(Tensor::from_f64(&like.device(), like.dtype(), &[0.25; 4], [4, 1, 1])?);
                let geometry = conv1d::Geometry { stride: 2, pad_left: 2, pad_right: 2, ..conv1d::Geometry::default() };
                let mut x = wave.clone();
                for _ in 0..halvings {
                    x = tape.conv1d(&x, &quarters, None, None, geometry)?;
                }
                Ok(vec![x])
            }
            View::Bands { window, ref bins } => {
                let (hop, width) = (window / 4, window / 2 + 1);
                let (each, more) = ((window - hop) / 2, samples.next_multiple_of(hop) - samples);
                if each + more >= samples {
                    return Err(too_short(samples, &format!("window {window}")));
                }
                let padded = tape.pad(wave, each as isize, (each + more) as isize)?;
                let frames = (samples + more) / hop;
                let spectrum = whole_frames(tape, &padded, batch, window, frames)?;
                let lines = tape.reshape(&spectrum, [batch * frames, width, 2])?;
                let band = |&[low, high]: &[usize; 2]| {
                    let band = tape.pad(&lines, -(low as isize), high as isize - width as isize)?;
                    Ok(tape.reshape(&band, [batch, frames, high - low, 2])?)
                };
                bins.iter().map(band).collect()
            }
            View::Spectrum { window } => {
                if samples < window {
                    return Err(too_short(samples, &format!("window {window}")));
                }
                let frames = (samples - window) / (window / 4) + 1;
                let spectrum = whole_frames(tape, wave, batch, window, frames)?;
                // Over the norm of the window.
                let scaled = tape.scale(&spectrum, (window as f64 * 3.0 / 8.0).powf(-0.5))?;
                Ok(vec![tape.reshape(&scaled, [batch, frames, window / 2 + 1, 2])?])
            }
        }
    }
}

/// Spectra `[B, frames, bins 2]` of the frames of `wave [B, T, 1]` that begin at whole hops of a quarter window: those of a transform
/// whose frames are centred there, without the first two, which begin before the wave.
pub(super) fn whole_frames(tape: &Tape, wave: &Var, batch: usize, window: usize, frames: usize) -> Result<Var> {
    let samples = wave.value().shape()[1];
    let spectrum = tape.stft(&tape.reshape(wave, [batch, samples])?, window, window / 4)?;
    let all = spectrum.value().shape()[1];
    let flat = tape.reshape(&spectrum, [batch, all, (window / 2 + 1) * 2])?;
    Ok(tape.pad(&flat, -2, frames as isize + 2 - all as isize)?)
}
