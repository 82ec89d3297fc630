use std::path::{Path, PathBuf};

use serde_json::json;
use swara_engine::teacher::{SAMPLE_RATE, State, Teacher};
use swara_loader::audio::Resampler;
use swara_loader::dataset::{self, Dataset, Options, TeacherCache, TeacherOutput, TeacherRows};
use swara_loader::{DatasetError, Error};

use crate::cli::{Common, Prepare};
use crate::failure::{Failure, Result};
use crate::terminal;

pub fn run(common: &Common, args: &Prepare) -> Result {
    let Some((out, inputs)) = args.dirs.split_last().filter(|(_, inputs)| !inputs.is_empty() || args.teacher.is_some()) else {
        return Err(Failure::usage("IN_DIR and OUT_DIR are needed"));
    };
    if let Some(flag) = flag_of_preparing(args).filter(|_| inputs.is_empty()) {
        return Err(Failure::usage(format!("{flag}: is for folders of audio, here a teacher hears a dataset that is there")));
    }
    // What cannot be is said before hours of work.
    let teacher = args.teacher.as_ref().map(|model| open(common, model, args.teacher_layer)).transpose()?;
    let cache = out.join("teacher");
    if !inputs.is_empty() && cache.exists() {
        return Err(Failure::file("cannot prepare", "a teacher has heard what is to be replaced: remove this folder first", &cache));
    }
    let prepared = if inputs.is_empty() { None } else { Some(prepare(args, inputs, out)?) };
    let heard = teacher.map(|teacher| hear(&teacher, args.teacher_layer, out)).transpose()?;
    if common.json {
        let mut report = json!({ "out": out });
        if let Some(report_of) = &prepared {
            report["dataset"] = json!(report_of.description);
            report["unreadable"] = json!(report_of.unreadable.len());
        }
        if let Some(heard) = &heard {
            report["teacher"] = json!({ "name": heard.name, "utterances": heard.utterances, "kept": heard.kept });
        }
        return terminal::say_json(&report);
    }
    if let Some(report) = &prepared {
        say(report, out)?;
    }
    heard.map_or(Ok(()), |heard| {
        terminal::say(format!("teacher: {} utterances, {} were there ({})", heard.utterances, heard.kept, heard.name))
    })
}

/// The first flag that says how folders become a dataset.
fn flag_of_preparing(args: &Prepare) -> Option<&'static str> {
    let given = [
        ("--rate", args.rate.is_some()),
        ("--loudness", args.loudness.is_some()),
        ("--speaker-depth", args.speaker_depth.is_some()),
        ("--language-depth", args.language_depth.is_some()),
        ("--test-speaker", !args.test_speaker.is_empty()),
        ("--validation-speaker", !args.validation_speaker.is_empty()),
        ("--id-rule", !args.id_rule.is_empty()),
        ("--test-fraction", args.test_fraction.is_some()),
        ("--max-seconds", args.max_seconds.is_some()),
        ("--min-seconds", args.min_seconds.is_some()),
    ];
    given.into_iter().find_map(|(flag, given)| given.then_some(flag))
}

/// Turns folders of audio into a dataset.
fn prepare(args: &Prepare, inputs: &[PathBuf], out: &Path) -> Result<dataset::Report> {
    let default = Options::default();
    let options = Options {
        sample_rate: args.rate.unwrap_or(default.sample_rate),
        loudness: args.loudness.unwrap_or(default.loudness),
        speaker_depth: args.speaker_depth.unwrap_or(default.speaker_depth),
        language_depth: args.language_depth.unwrap_or(default.language_depth),
        test_speakers: args.test_speaker.clone(),
        validation_speakers: args.validation_speaker.clone(),
        id_rules: args.id_rule.clone(),
        test_fraction: args.test_fraction.unwrap_or(default.test_fraction),
        max_seconds: args.max_seconds.unwrap_or(default.max_seconds),
        min_seconds: args.min_seconds.unwrap_or(default.min_seconds),
        ..default
    };
    let bar = terminal::progress(Some(0), "prepare");
    let result = dataset::prepare(inputs, out, &options, |at| {
        bar.set_length(at.files as u64);
        bar.set_position(at.done as u64);
        bar.set_message(at.file.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default());
    });
    bar.finish_and_clear();
    let report = result.map_err(|e| match e {
        Error::Dataset { why: why @ DatasetError::Option { .. }, .. } => Failure::usage(format!("prepare: {why}")),
        e => e.into(),
    })?;
    for error in &report.unreadable {
        terminal::warn(error.to_string());
    }
    for (path, warning) in &report.warnings {
        terminal::warn(format!("{warning} ({})", path.display()));
    }
    Ok(report)
}

fn say(report: &dataset::Report, out: &Path) -> Result {
    let d = &report.description;
    let seconds = d.samples as f64 / f64::from(d.sample_rate);
    terminal::say(format!("{} utterances, {:.2} h at {} Hz ({})", d.utterances, seconds / 3600.0, d.sample_rate, out.display()))?;
    let dropped = &d.dropped;
    terminal::say(format!(
        "dropped: {} unreadable, {} silent, {} clipped, {} short",
        dropped.unreadable, dropped.silent, dropped.clipped, dropped.short
    ))?;
    terminal::say(super::inspect::hours(d))
}

fn open(common: &Common, model: &Path, state: State) -> Result<Teacher> {
    let teacher = Teacher::open(model, &common.open_device()?)?;
    teacher.check(state).map_err(|e| Failure::usage(format!("--teacher-layer: {e}")))?;
    Ok(teacher)
}

/// What a teacher left beside a dataset.
struct Heard {
    name: String,
    utterances: usize,
    /// Those that were there before.
    kept: usize,
}

/// Keeps what the teacher hears in every utterance of the dataset in `out` that has nothing of it yet.
fn hear(teacher: &Teacher, state: State, out: &Path) -> Result<Heard> {
    let data = Dataset::open(out)?;
    let name = format!("{}, layer {state}, weights {}", teacher.config().model_type, teacher.digest());
    let cache = TeacherCache::create(&data, &name, teacher.rate(), TeacherOutput::Dim(teacher.dim()))?;
    let missing = cache.missing()?;
    let bar = terminal::progress(Some(missing.len() as u64), "teacher");
    let result = missing.iter().try_for_each(|&index| -> Result {
        bar.set_message(data.utterances()[index].id.clone());
        let samples = data.samples(index);
        let features = teacher.features(state, || Pieces::new(&samples, data.sample_rate()))?;
        cache.write(index, &TeacherRows::Features(features))?;
        bar.inc(1);
        Ok(())
    });
    bar.finish_and_clear();
    result?;
    let utterances = data.utterances().len();
    Ok(Heard { name, utterances, kept: utterances - missing.len() })
}

/// Samples by and by, at the rate that teachers hear.
struct Pieces<'a> {
    samples: std::slice::Chunks<'a, f32>,
    /// None: they are at that rate, or all was given.
    resampler: Option<Resampler>,
}

impl<'a> Pieces<'a> {
    const SAMPLES: usize = 1 << 16;

    fn new(samples: &'a [f32], rate: u32) -> swara_engine::Result<Pieces<'a>> {
        let resampler =
            (rate != SAMPLE_RATE).then(|| Resampler::new(rate, SAMPLE_RATE)).transpose().map_err(swara_engine::Error::Argument)?;
        Ok(Pieces { samples: samples.chunks(Self::SAMPLES), resampler })
    }
}

impl Iterator for Pieces<'_> {
    type Item = swara_engine::Result<Vec<f32>>;

    fn next(&mut self) -> Option<Self::Item> {
        let piece = self.samples.next();
        let Some(resampler) = &mut self.resampler else { return Some(Ok(piece?.to_vec())) };
        let mut out = Vec::new();
        let result = match piece {
            Some(piece) => resampler.feed(piece, &mut out),
            None => resampler.finish(&mut out),
        };
        if piece.is_none() {
            self.resampler = None;
        }
        Some(result.map(|()| out).map_err(swara_engine::Error::Argument))
    }
}
