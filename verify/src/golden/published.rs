//! Whole models in published layouts, against the code they were published with.

use std::path::PathBuf;

use swara_engine::codec::model::Layer;
use swara_engine::codec::{Codec, Noise, Session, Stored};
use swara_kernels::tolerance::Tolerance;
use swara_kernels::{DType, Device, Tensor};

use super::{Dump, Error, Result, SAME, SWAP, pieces};
use crate::{CodeMatch, Outcome};

/// Below this gap between the nearest codeword and the next, relative to the distance, either may be found.
pub const TIE: f64 = 1e-4;
/// Of all codes, ties and what follows from them among them.
pub const AGREEMENT: f64 = 0.999;
/// Of the largest sample.
pub const WAVE: f64 = 1e-4;
/// Snake turns an error e into (1 + sin 2 a x) e: by this much more, squared, where phases are spread.
const SNAKE_GAIN: f64 = 1.5;
/// Products whose roundings come to those of a Snake: 9 roundoffs / a (kernels/src/ops/snake/cases.rs) beside 2 sqrt(n), a = 1.
const SNAKE: f64 = 20.25;

/// Twice the deviation that codes of eight bits give a weight, of the weights' own: the largest of some thousands in a row is four times
/// that, a step the 127th of it, and an error of up to half a step has a deviation of its `12^-1/2`.
const CODE: f64 = 2.0 * 4.0 / 127.0 * 0.288_675;

/// [`codec_in`] f32.
pub fn codec(dump: &Dump, device: &Device, outcome: &mut Outcome) -> Result {
    codec_in(dump, device, DType::F32.into(), outcome)
}

/// A codec: the output of every layer, codes, and waves of all or some codebooks, for each layout that lies in the folder of its
/// weights. As a stream if it can, else the whole signal at once; or else the first of its pieces layer by layer, and all of them.
/// In a type narrower than the reference's f32, how many codes agree is reported, not judged.
pub fn codec_in(dump: &Dump, device: &Device, stored: Stored, outcome: &mut Outcome) -> Result {
    let mut layouts = layouts(dump)?;
    layouts.sort();
    for path in layouts {
        let mut codec = Codec::open(&path, device, stored)?;
        codec.set_noise(Noise::Silent);
        let case = Case::new(dump, &codec)?;
        let layout = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        case.encode(outcome, &layout)?;
        case.decode(outcome, &layout)?;
        if codec.format().chunks.is_some() {
            pieces::compare(dump, &codec, outcome, &layout)?;
        }
        if dump.has("wave.noise") {
            let given = (0..).map(|n| format!("noise.{n}")).take_while(|name| dump.has(name));
            codec.set_noise(Noise::Given(given.map(|name| dump.tensor(&name, SWAP, device)).collect::<Result<_>>()?));
            Case::new(dump, &codec)?.wave(outcome, &layout, "codes", codec.codebooks(), "wave.noise", false)?;
        }
    }
    Ok(())
}

fn layouts(dump: &Dump) -> Result<Vec<PathBuf>> {
    let folder = dump.fact("weights")?.as_str().ok_or_else(|| dump.wrong("weights", "the name of a folder"))?;
    let folder = dump.path.with_file_name(folder);
    let fail = |e: std::io::Error| dump.broken(format!("{}: {e}", folder.display()));
    if folder.join("config.json").is_file() {
        return Ok(vec![folder]);
    }
    let entries = std::fs::read_dir(&folder).map_err(fail)?.collect::<Result<Vec<_>, _>>().map_err(fail)?;
    match entries.len() {
        0 => Err(dump.broken(format!("{}: no weights", folder.display()))),
        _ => Ok(entries.iter().map(std::fs::DirEntry::path).collect()),
    }
}

struct Case<'a> {
    dump: &'a Dump,
    codec: &'a Codec,
    batch: usize,
    /// Samples, filled up.
    samples: usize,
    codebooks: usize,
    frames: usize,
    /// Modules of the published code that the dump has the output of.
    modules: Vec<String>,
}

impl<'a> Case<'a> {
    fn new(dump: &'a Dump, codec: &'a Codec) -> Result<Case<'a>> {
        let format = codec.format();
        let &[batch, _, samples] = &dump.values("input", SAME)?.1[..] else { return Err(dump.broken("input is not [B, C, T]".into())) };
        let samples = format.chunks.map_or(samples, |chunks| samples.min(chunks.samples)).next_multiple_of(format.pad_to);
        let (codebooks, frames) = (codec.codebooks(), samples.div_ceil(format.hop));
        let modules = dump.fact("layers")?.as_array().into_iter().flatten().filter_map(|name| Some(name.as_str()?.to_owned())).collect();
        Ok(Case { dump, codec, batch, samples, codebooks, frames, modules })
    }

    fn session(&self) -> Result<Session<'a>, swara_engine::Error> {
        Session::with_frames(self.codec, self.batch, self.frames)
    }

    /// Compares what a module made, if the dump has it and `name` is its last layer.
    fn layer(&self, outcome: &mut Outcome, budget: &Budget, name: &str, found: &Tensor) -> Result<(), swara_engine::Error> {
        let mut layers = self.codec.layers().skip_while(|layer| layer.name() != name).skip(1);
        let within = |name: &str, module: &str| name.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        let Some(module) = self.modules.iter().find(|module| within(name, module)) else { return Ok(()) };
        if !outcome.pass || layers.next().is_some_and(|next| within(next.name(), module)) {
            return Ok(());
        }
        let order = if name.contains("_transformer.") { SAME } else { SWAP };
        // Part of the last convolution here, a module of its own there.
        let tanh = matches!(self.codec.layers().find(|layer| layer.name() == name), Some(Layer::Conv(conv)) if conv.tanh);
        let then: fn(f64) -> f64 = if tanh { f64::tanh } else { |v| v };
        let compared = self.dump.check_mapped(outcome, module, order, then, found, budget.tolerance(self.codec.stored()));
        match compared {
            Ok(()) if outcome.pass => {}
            Ok(()) => outcome.fail(format!("first layer at fault: {name}")),
            Err(error) => outcome.fail(error.to_string()),
        }
        Ok(())
    }

    fn encode(&self, outcome: &mut Outcome, layout: &str) -> Result {
        let (input, shape) = self.dump.values("input", SWAP)?;
        let scales = if self.codec.format().chunks.is_some() { self.dump.values("scales", SAME)?.0 } else { vec![1.0; self.batch] };
        let filled = |(item, scale): (&[f64], &f64)| {
            let mut item: Vec<f32> = item.iter().map(|&v| (v / scale) as f32).collect();
            item.resize(self.samples * shape[2], 0.0);
            item
        };
        let input: Vec<f32> = input.chunks(shape[1] * shape[2]).zip(&scales).flat_map(filled).collect();
        let x = self.codec.signal(&input, self.batch)?;
        let mut budget = Budget::default();
        let mut observe = |name: &str, found: &Tensor| {
            budget.pass(self, name, found);
            self.layer(outcome, &budget, name, found)
        };
        let found = match self.codec.format().causal {
            true => self.session()?.encode_observed(&x, self.codebooks, None, &mut observe)?,
            false => self.codec.encode_whole(&x, self.codebooks, &mut observe)?,
        };
        let found = found.to_vec::<i32>()?;
        let (expected, margin) = (self.by_frame("codes", self.codebooks)?, self.by_frame("margin", self.codebooks)?);
        let columns = self.codec.format().columns(self.codebooks);
        if self.codec.stored() != DType::F32.into() {
            let agreeing = |k: usize| {
                let of_codebook = found.iter().zip(&expected).skip(k).step_by(columns);
                of_codebook.filter(|&(&found, &expected)| f64::from(found) == expected).count()
            };
            outcome.codes.push(CodeMatch {
                layout: layout.to_owned(),
                codes: self.batch * self.frames,
                agreeing: (0..columns).map(agreeing).collect(),
            });
            return Ok(());
        }
        let clear = |margin: &[f64]| margin.iter().all(|&gap| gap > TIE);
        for (i, frame) in found.chunks(columns).enumerate() {
            let (expected, margin) = (&expected[i * columns..], &margin[i * columns..]);
            let Some(k) = (0..columns).find(|&k| f64::from(frame[k]) != expected[k]) else { continue };
            // The first codebook stands alone, each of the others on those between.
            if clear(&margin[k.min(1)..=k]) {
                let (item, t) = (i / self.frames, i % self.frames);
                outcome.fail(format!("{layout}, item {item}, frame {t}, code {k}: another code, by a clear margin"));
            }
        }
        let same = found.iter().zip(&expected).filter(|&(&found, &expected)| f64::from(found) == expected).count();
        if (same as f64) < AGREEMENT * found.len() as f64 {
            outcome.fail(format!("{layout}: {same} of {} codes agree", found.len()));
        }
        let missed = 1.0 - same as f64 / found.len().max(1) as f64;
        self.dump.check_number(outcome, &format!("{layout} codes"), 1.0 - missed, 1.0, 1.0 - AGREEMENT);
        Ok(())
    }

    fn decode(&self, outcome: &mut Outcome, layout: &str) -> Result {
        self.wave(outcome, layout, "codes", self.codebooks, "wave", true)?;
        for k in 1..self.codebooks {
            let wave = format!("wave.{k}");
            if self.dump.has(&wave) {
                self.wave(outcome, layout, "codes", k, &wave, false)?;
            }
        }
        if self.dump.has("given.wave") {
            self.wave(outcome, layout, "given.codes", self.codebooks, "given.wave", false)?;
        }
        Ok(())
    }

    fn wave(&self, outcome: &mut Outcome, layout: &str, codes: &str, codebooks: usize, wave: &str, layers: bool) -> Result {
        let codes: Vec<i32> = self.by_frame(codes, codebooks)?.into_iter().map(|code| code as i32).collect();
        let columns = self.codec.format().columns(codebooks);
        let codes = Tensor::from_slice(self.codec.device(), &codes, [self.batch, self.frames, columns])?;
        let mut budget = Budget::default();
        let mut observe = |name: &str, found: &Tensor| {
            budget.pass(self, name, found);
            if layers { self.layer(outcome, &budget, name, found) } else { Ok(()) }
        };
        let y = match self.codec.format().causal {
            true => self.session()?.decode_observed(&codes, None, &mut observe)?,
            false => self.codec.decode_whole(&codes, codebooks, &mut observe)?,
        };
        let y = self.codec.samples(&y)?;
        if self.codec.format().chunks.is_some() {
            // Of all pieces there is one.
            return Ok(());
        }
        let (expected, shape) = self.dump.values(wave, SWAP)?;
        if y.len() != expected.len() {
            outcome.fail(format!("{layout}: {wave} has {} samples, expected {shape:?}", y.len()));
            return Ok(());
        }
        let peak = expected.iter().fold(0.0, |peak: f64, v| peak.max(v.abs()));
        let found: Vec<f64> = y.iter().map(|&v| f64::from(v)).collect();
        let tolerance = match self.codec.stored() {
            stored if stored == DType::F32.into() => Tolerance::EXACT.plus(WAVE * peak),
            stored => budget.tolerance(stored),
        };
        outcome.add(&format!("{layout} {wave}"), tolerance.compare(&found, &expected));
        Ok(())
    }

    /// `[B, K, F]`, or `[B, F_k]` of each level `<tensor>_<k>`, of the first codebooks as codecs have them, `[B, F, columns]`.
    fn by_frame(&self, tensor: &str, codebooks: usize) -> Result<Vec<f64>> {
        let format = self.codec.format();
        let per_frame = &format.codes_per_frame[..codebooks];
        let mut levels = Vec::with_capacity(codebooks);
        match format.multi_rate() {
            false => {
                let (values, mut shape) = self.dump.values(tensor, SAME)?;
                if self.codec.format().chunks.is_some() {
                    // Of the first piece.
                    shape.remove(0);
                }
                self.fits(tensor, &shape, &[self.batch, self.codebooks, self.frames])?;
                let codebook = |k: usize| {
                    let item = |b: usize| &values[(b * self.codebooks + k) * self.frames..][..self.frames];
                    (0..self.batch).flat_map(item).copied().collect()
                };
                levels.extend((0..codebooks).map(codebook));
            }
            true => {
                for (k, &codes) in per_frame.iter().enumerate() {
                    let name = format!("{tensor}_{k}");
                    let (values, shape) = self.dump.values(&name, SAME)?;
                    self.fits(&name, &shape, &[self.batch, self.frames * codes])?;
                    levels.push(values);
                }
            }
        }
        let frame = |t: usize| levels.iter().zip(per_frame).flat_map(move |(level, &codes)| &level[t * codes..][..codes]);
        Ok((0..self.batch * self.frames).flat_map(frame).copied().collect())
    }

    fn fits(&self, tensor: &str, found: &[usize], expected: &[usize]) -> Result {
        match found == expected {
            true => Ok(()),
            false => Err(Error::Dump { path: self.dump.path.clone(), why: format!("{tensor} has shape {found:?}, expected {expected:?}") }),
        }
    }
}

/// What has been rounded on the way to a layer's output.
#[derive(Default)]
struct Budget {
    /// Products that were added up.
    depth: f64,
    /// Matrices in the narrow type that were passed: a product's weights are each rounded, which errs as one rounding of the result
    /// does. Where values are narrow too, its input and its output are rounded as well.
    narrow: usize,
}

impl Budget {
    fn pass(&mut self, case: &Case, name: &str, found: &Tensor) {
        let layer = case.codec.layers().find(|layer| layer.name() == name);
        // The quantiser, which is no layer and in f32, projects and adds up codewords.
        let quantiser = (case.codec.format().latent + case.codebooks, 0);
        let (products, snakes) = layer.map_or(quantiser, |layer| (layer.depth(), layer.snakes()));
        self.depth = (0..snakes).fold(self.depth, |depth, _| SNAKE_GAIN * depth + SNAKE) + products as f64;
        self.narrow += layer.map_or(0, |layer| layer.products() * if found.dtype() == DType::F32 { 1 } else { 3 });
    }

    fn tolerance(&self, stored: Stored) -> Tolerance {
        let tolerance = Tolerance::accumulate(self.depth.ceil() as usize);
        match stored {
            Stored { int8: true, .. } => tolerance.via_errors(CODE, self.narrow),
            Stored { dtype: DType::F32, .. } => tolerance,
            Stored { dtype, .. } => tolerance.via(dtype, self.narrow),
        }
    }
}
