//! A run: batches from a dataset into a trainer, with a log, checkpoints and validation, in one folder.
//!
//! | file                      | what                                                          |
//! |---------------------------|---------------------------------------------------------------|
//! | `checkpoint.safetensors`  | everything `--resume` needs; replaced whole                   |
//! | `config.toml`             | what was asked for                                            |
//! | `log.csv`                 | one line per `log_every` steps                                |
//! | `validation.csv`          | one line per validation                                       |
//! | `model.safetensors`       | the codec as it stands                                        |
//! | `config.json`             | its configuration, as published models have it, of an EnCodec or a SNAC |
//! | `samples/STEP-NAME-input.wav`, `..-output.wav` | utterances of a validation, before and after     |
//! | `samples/STEP-NAME.png`   | their spectrograms, from who watches the run                  |

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use swara_kernels::Device;
use swara_loader::audio::{self, WavFormat};
use swara_loader::dataset::{Batch, Dataset, Sampler, SamplerOptions, Split, TeacherCache, TeacherRows};
use swara_loader::output::{self, AtomicFile};
use swara_loader::weights::Weights;

use super::{Examples, Losses, Step, TrainConfig, Trainer};
use crate::metrics::{self, Comparison, Signs, Verdict};
use crate::{Error, Result};

/// One line of `log.csv`.
#[derive(Clone, Debug)]
pub struct Report {
    pub step: u64,
    pub steps: u64,
    pub learning_rate: f64,
    pub losses: Losses,
    pub snr_db: f64,
    pub rho: f64,
    /// Percent.
    pub amplitude: f64,
    /// Of each codebook, if they are moving averages.
    pub perplexities: Vec<f64>,
    pub verdict: Verdict,
    /// Codebooks whose perplexity is near 1.
    pub collapsed: Vec<usize>,
    /// Wall time of the steps since the last report.
    pub elapsed: Duration,
}

/// Means over the validation utterances, all codebooks.
#[derive(Clone, Copy, Debug)]
pub struct Validation {
    pub step: u64,
    pub utterances: usize,
    pub mel_distance: f64,
    pub stoi: f64,
    pub si_sdr_db: f64,
    pub rho: f64,
    pub amplitude: f64,
    /// Over those that [`metrics::pesq`] says something of.
    pub pesq: Option<f64>,
}

/// An utterance of a validation that was kept.
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    pub step: u64,
    pub id: &'a str,
    /// Both files, less `-input.wav` and `-output.wav`.
    pub path: &'a Path,
    pub input: &'a [f32],
    pub output: &'a [f32],
    pub sample_rate: u32,
}

/// What a run begins with.
#[derive(Clone, Copy, Debug)]
pub enum Start<'a> {
    Fresh,
    /// The weights of this model (see [`Trainer::initialise_from`]), a fresh optimiser and schedule.
    Model(&'a Path),
    /// The checkpoint in the run's own folder.
    Resume,
}

pub enum Event<'a> {
    Step(&'a Report),
    Kept(Sample<'a>),
    Validated(&'a Validation),
    Saved(u64),
}

const CONFIG: &str = "config.toml";
/// Longest line of a log that is continued, bytes.
const MAX_LINE: u64 = 1 << 16;
const LOG_HEADER: &str = "step,learning_rate,mel,wave,spectrum,adversarial,feature,speaker,commitment,codebook,discriminator,gradient_norm,snr_db,rho,amplitude,verdict,perplexities,msspec,teacher,f0,voicing,energy\n";
const VALIDATION_HEADER: &str = "step,utterances,mel_distance,stoi,si_sdr_db,rho,amplitude,pesq\n";
/// Utterances a validation decodes at most, spread over the split.
const VALIDATION_UTTERANCES: usize = 12;

/// Of these so many are kept to be listened to.
const SAMPLES: usize = 3;

/// Trains until the schedule ends or `observe` breaks; either way the last state is saved.
///
/// A fresh run refuses a folder that holds one already; [`Start::Resume`] continues it. Killing the process at any moment costs at most
/// the steps since the last checkpoint.
pub fn run(
    mut config: TrainConfig,
    data: &Path,
    out: &Path,
    start: Start,
    device: &Device,
    mut observe: impl FnMut(Event) -> ControlFlow<()>,
) -> Result<Trainer> {
    let file = |path: &Path, why: String| Error::File { path: path.to_owned(), why };
    let dataset = Dataset::open(data)?;
    let rate = config.architecture()?.model()?.format.sample_rate;
    if dataset.sample_rate() != rate {
        return Err(file(data, format!("is at {} Hz, the model at {rate} Hz", dataset.sample_rate())));
    }
    let cache = config.teacher.as_ref().map(|_| TeacherCache::open(&dataset)).transpose()?;
    if let (Some(cache), Some(teacher)) = (&cache, &mut config.teacher) {
        *teacher = teacher.of(cache.description())?;
        let lacking = missing(cache, &dataset)?;
        if let Some(id) = lacking.first() {
            return Err(file(data, format!("the teacher says nothing of {} utterances, such as {id}", lacking.len())));
        }
    }
    let folder = Folder { dir: out.to_owned() };
    let checkpoint = folder.path("checkpoint.safetensors");
    let mut trainer = match start {
        Start::Resume if checkpoint.exists() => Trainer::resume(&checkpoint, config.clone(), device)?,
        Start::Resume => return Err(file(out, "holds no run to resume".into())),
        _ if checkpoint.exists() => return Err(file(out, "already holds a run; --resume continues it".into())),
        Start::Fresh => Trainer::new(config.clone(), device)?,
        Start::Model(model) => {
            let mut trainer = Trainer::new(config.clone(), device)?;
            trainer.initialise_from(&Weights::open(model)?)?;
            trainer
        }
    };
    let t = &config.train;
    let options = SamplerOptions {
        split: Split::Train,
        seed: t.seed,
        batch: t.batch * t.accumulate,
        crop: config.crop()?,
        loudness: t.loudness,
        gain_db: (t.gain_db != (0.0, 0.0)).then_some(t.gain_db),
        augment: config.augment.clone(),
        ..SamplerOptions::default()
    };
    let sampler = Sampler::new(&dataset, options)?;
    let text = toml::to_string(&config).map_err(|e| Error::Config(e.to_string()))?;
    // All that can be wrong has been looked at: from here on there is a run to resume, whatever it began with.
    fs::create_dir_all(out).map_err(|e| file(out, e.to_string()))?;
    if !matches!(start, Start::Resume) {
        trainer.save(&checkpoint)?;
    }
    output::write(folder.path(CONFIG), text.as_bytes())?;
    folder.truncate_log("log.csv", LOG_HEADER, trainer.step())?;
    folder.truncate_log("validation.csv", VALIDATION_HEADER, trainer.step())?;
    let said = |trainer: &Trainer, batch: &Batch| -> Result<Option<TeacherRows>> {
        let asked = cache.as_ref().zip(trainer.teacher_frames());
        Ok(asked.map(|(cache, [frames, hop])| cache.crops(&batch.pieces, frames, hop)).transpose()?)
    };
    if let Some(mut rows) = trainer.needs_clusters() {
        for i in 0..config.codebook.kmeans_batches as u64 {
            if let Some(TeacherRows::Features(more)) = said(&trainer, &sampler.batch(u64::MAX / 2 + i))? {
                rows.extend(&more);
            }
        }
        trainer.initialise_clusters(rows)?;
    }
    let mut clock = Instant::now();
    while trainer.step() < t.steps {
        if trainer.needs_codebooks() {
            // Batches from beyond the schedule: what k-means sees, no step has trained on.
            let first = u64::MAX / 2;
            trainer.initialise_codebooks((0..config.codebook.kmeans_batches as u64).map(|i| sampler.batch(first + i).samples))?;
        }
        let batch = sampler.batch(trainer.step());
        let rows = said(&trainer, &batch)?;
        let examples = Examples { samples: &batch.samples, targets: &batch.targets, rows: rows.as_ref() };
        let step = trainer.train_on(examples)?;
        let done = trainer.step();
        let last = done == t.steps;
        let mut stop = false;
        if done.is_multiple_of(t.log_every) || last {
            let report = report(&trainer, &step, &batch.targets, clock.elapsed())?;
            clock = Instant::now();
            folder.append("log.csv", &report.line())?;
            stop |= observe(Event::Step(&report)).is_break();
        }
        if done.is_multiple_of(t.validate_every) || last {
            let validation = validate(&trainer, &dataset, &folder, |sample| stop |= observe(Event::Kept(sample)).is_break())?;
            if let Some(validation) = validation {
                folder.append("validation.csv", &validation.line())?;
                stop |= observe(Event::Validated(&validation)).is_break();
            }
            clock = Instant::now();
        }
        if done.is_multiple_of(t.checkpoint_every) || last || stop {
            finite(&step)?;
            // The checkpoint last: when it stands, everything of its step does.
            if trainer.has_codebooks() {
                trainer.release(&folder.path("model.safetensors"))?;
            }
            trainer.save(&checkpoint)?;
            stop |= observe(Event::Saved(done)).is_break();
        }
        if stop {
            break;
        }
    }
    Ok(trainer)
}

/// Utterances that are trained on and not in the cache.
fn missing<'a>(cache: &TeacherCache, dataset: &'a Dataset) -> Result<Vec<&'a str>> {
    let mut lacking = Vec::new();
    for (index, utterance) in dataset.split(Split::Train) {
        if !cache.path(index)?.is_file() {
            lacking.push(&*utterance.id);
        }
    }
    Ok(lacking)
}

/// What a step measured, all of it numbers: before anything is replaced by what came of it.
fn finite(step: &Step) -> Result<Losses> {
    let l = step.losses()?;
    let all = [l.mel, l.wave, l.spectrum, l.msspec, l.adversarial, l.feature, l.speaker, l.commitment, l.codebook, l.gradient_norm];
    match all.iter().chain(&l.discriminator).chain(&l.teacher).chain(l.prosody.iter().flatten()).all(|v| v.is_finite()) {
        true => Ok(l),
        false => Err(Error::Argument(format!("training diverged at step {}: {l:?}; lower the learning rate or the clip", step.number))),
    }
}

fn report(trainer: &Trainer, step: &Step, targets: &[f32], elapsed: Duration) -> Result<Report> {
    let losses = finite(step)?;
    let output: Vec<f32> = step.output.to_f64()?.into_iter().map(|v| v as f32).collect();
    // A decoder may fall short of a crop, and a step's last batch may be but a part of it.
    let [items, t] = [step.output.shape()[0], step.output.shape()[1]];
    let wanted: Vec<f32> = targets[targets.len() - items * trainer.crop()..]
        .chunks_exact(trainer.crop())
        .flat_map(|item| item[..t.min(item.len())].iter().copied())
        .collect();
    let wave = metrics::waveform(&wanted, &output);
    let perplexities = trainer.perplexities()?;
    let collapsed = perplexities.iter().enumerate().filter(|(_, p)| **p > 0.0 && **p < 1.5).map(|(k, _)| k).collect();
    let codebooks: Vec<(f64, usize)> = perplexities.iter().copied().zip(trainer.codebook_sizes().iter().copied()).collect();
    let signs = Signs {
        rho: wave.rho,
        amplitude: wave.amplitude,
        mel_distance: trainer.config().loss.is_mel_distance(trainer.crop()).then_some(losses.mel),
        codebooks: &codebooks,
        discriminator: trainer.config().adversarial.as_ref().and_then(|a| a.judged(losses.discriminator?)),
    };
    Ok(Report {
        step: trainer.step(),
        steps: trainer.config().train.steps,
        learning_rate: step.learning_rate,
        losses,
        snr_db: wave.snr_db,
        rho: wave.rho,
        amplitude: wave.amplitude,
        verdict: signs.verdict(),
        perplexities,
        collapsed,
        elapsed,
    })
}

/// Encodes and decodes utterances of the validation split; `None` while there is nothing to quantise with, or no such split.
fn validate(trainer: &Trainer, dataset: &Dataset, folder: &Folder, mut kept: impl FnMut(Sample)) -> Result<Option<Validation>> {
    let indices: Vec<usize> = dataset.split(Split::Validation).map(|(i, _)| i).collect();
    if indices.is_empty() || !trainer.has_codebooks() {
        return Ok(None);
    }
    let codec = trainer.codec()?;
    let stride = indices.len().div_ceil(VALIDATION_UTTERANCES);
    let mut sum = [0.0; 5];
    let mut count = 0;
    let mut opinions = Vec::new();
    for (n, &index) in indices.iter().step_by(stride).enumerate() {
        let samples = dataset.samples(index);
        let mut decoded = codec.decode(&codec.encode(&samples, codec.codebooks())?)?;
        decoded.truncate(samples.len());
        if n < SAMPLES {
            let (step, id) = (trainer.step(), &*dataset.utterances()[index].id);
            let path = folder.sample(step, id);
            let sample = Sample { step, id, path: &path, input: &samples, output: &decoded, sample_rate: codec.format().sample_rate };
            folder.keep(&sample)?;
            kept(sample);
        }
        let c = Comparison::new(&samples, &decoded, codec.format().sample_rate, 0);
        let (Some(mel), Some(stoi)) = (c.mel_distance, c.stoi) else { continue };
        let values = [mel, stoi, c.waveform.si_sdr_db, c.waveform.rho, c.waveform.amplitude];
        sum.iter_mut().zip(values).for_each(|(sum, v)| *sum += v);
        opinions.extend(c.pesq);
        count += 1;
    }
    let pesq = (!opinions.is_empty()).then(|| opinions.iter().sum::<f64>() / opinions.len() as f64);
    let [mel_distance, stoi, si_sdr_db, rho, amplitude] = sum.map(|s| s / count.max(1) as f64);
    let step = trainer.step();
    Ok((count > 0).then_some(Validation { step, utterances: count, mel_distance, stoi, si_sdr_db, rho, amplitude, pesq }))
}

impl Report {
    fn line(&self) -> String {
        let l = &self.losses;
        let perplexities: Vec<String> = self.perplexities.iter().map(|p| format!("{p:.1}")).collect();
        format!(
            "{},{:.3e},{:.5},{:.5},{:.5},{:.5},{:.5},{:.5},{:.5},{:.5},{},{:.4},{:.3},{:.4},{:.2},{},{},{:.5},{},{}\n",
            self.step,
            self.learning_rate,
            l.mel,
            l.wave,
            l.spectrum,
            l.adversarial,
            l.feature,
            l.speaker,
            l.commitment,
            l.codebook,
            l.discriminator.map(|d| format!("{d:.4e}")).unwrap_or_default(),
            l.gradient_norm,
            self.snr_db,
            self.rho,
            self.amplitude,
            self.verdict.name(),
            perplexities.join(";"),
            l.msspec,
            l.teacher.map(|t| format!("{t:.5}")).unwrap_or_default(),
            l.prosody.map(|loss| loss.map(|v| format!("{v:.5}")).unwrap_or_default()).join(",")
        )
    }
}

impl Validation {
    fn line(&self) -> String {
        format!(
            "{},{},{:.4},{:.4},{:.3},{:.4},{:.2},{}\n",
            self.step,
            self.utterances,
            self.mel_distance,
            self.stoi,
            self.si_sdr_db,
            self.rho,
            self.amplitude,
            self.pesq.map(|p| format!("{p:.3}")).unwrap_or_default()
        )
    }
}

struct Folder {
    dir: PathBuf,
}

impl Folder {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// What files of an utterance begin with.
    fn sample(&self, step: u64, id: &str) -> PathBuf {
        let name: String = id.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).take(64).collect();
        self.path("samples").join(format!("{step:07}-{name}"))
    }

    /// An utterance before and after the codec.
    fn keep(&self, sample: &Sample) -> Result<()> {
        let dir = self.path("samples");
        fs::create_dir_all(&dir).map_err(|e| Error::File { path: dir.clone(), why: e.to_string() })?;
        for (part, wave) in [("input", sample.input), ("output", sample.output)] {
            let mut path = sample.path.to_owned().into_os_string();
            path.push(format!("-{part}.wav"));
            audio::write(path, wave, sample.sample_rate, WavFormat::S16)?;
        }
        Ok(())
    }

    /// Drops lines of steps after `step`, which a resumed run is about to write again.
    fn truncate_log(&self, name: &str, header: &str, step: u64) -> Result<()> {
        let path = self.path(name);
        let mut out = AtomicFile::create(&path)?;
        out.write(header.as_bytes())?;
        if step > 0 && path.is_file() {
            let fail = |e: std::io::Error| Error::File { path: path.clone(), why: e.to_string() };
            let mut log = BufReader::new(fs::File::open(&path).map_err(fail)?);
            // Columns of this version, of a log that an earlier one began, and which of its is the step.
            let mut known: Option<(Vec<Option<usize>>, usize)> = None;
            let mut line = Vec::new();
            while log.by_ref().take(MAX_LINE).read_until(b'\n', &mut line).map_err(fail)? > 0 {
                // What is longer, no text, or was cut off is no line of a log.
                let whole = line.pop() == Some(b'\n');
                let text = str::from_utf8(&line).ok().filter(|_| whole).map(str::trim_end);
                let fields: Vec<&str> = text.map(|text| text.split(',').collect()).unwrap_or_default();
                let place = |name: &str| fields.iter().position(|f| *f == name);
                match &known {
                    None => known = Some((header.trim_end().split(',').map(place).collect(), place("step").unwrap_or(0))),
                    Some((columns, at)) if fields.get(*at).is_some_and(|s| s.parse::<u64>().is_ok_and(|s| s <= step)) => {
                        let field = |column: &Option<usize>| column.and_then(|at| fields.get(at).copied()).unwrap_or_default();
                        out.write((columns.iter().map(field).collect::<Vec<_>>().join(",") + "\n").as_bytes())?;
                    }
                    Some(_) => {}
                }
                if !whole {
                    log.skip_until(b'\n').map_err(fail)?;
                }
                line.clear();
            }
        }
        Ok(out.commit()?)
    }

    fn append(&self, name: &str, line: &str) -> Result<()> {
        let path = self.path(name);
        let append = || fs::OpenOptions::new().append(true).create(true).open(&path)?.write_all(line.as_bytes());
        append().map_err(|e: std::io::Error| Error::File { path: path.clone(), why: e.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An earlier version's columns were fewer, and in another order.
    #[test]
    fn a_log_that_goes_on_has_its_columns_by_their_names() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder { dir: dir.path().to_owned() };
        let log = folder.path("log.csv");
        let long = "1,".repeat(MAX_LINE as usize);
        fs::write(&log, format!("mel,step,gone,learning_rate\n1.5,10,x,1e-3\n1.25,20\n{long}\n1,30,y,1e-4\n1,1")).unwrap();
        folder.truncate_log("log.csv", "step,learning_rate,mel,teacher\n", 20).unwrap();
        assert_eq!(fs::read_to_string(&log).unwrap(), "step,learning_rate,mel,teacher\n10,1e-3,1.5,\n20,,1.25,\n");
        // However long it is.
        fs::File::options().write(true).open(&log).unwrap().set_len(70 << 20).unwrap();
        folder.truncate_log("log.csv", "step,mel\n", 15).unwrap();
        assert_eq!(fs::read_to_string(&log).unwrap(), "step,mel\n10,1.5\n");
        folder.truncate_log("log.csv", "step,mel\n", 0).unwrap();
        assert_eq!(fs::read_to_string(&log).unwrap(), "step,mel\n");
    }
}
