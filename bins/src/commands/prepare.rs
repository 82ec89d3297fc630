use serde_json::json;
use swara_loader::dataset::{self, Options};
use swara_loader::{DatasetError, Error};

use crate::cli::{Common, Prepare};
use crate::failure::{Failure, Result};
use crate::terminal;

pub fn run(common: &Common, args: &Prepare) -> Result {
    let Some((out, inputs)) = args.dirs.split_last() else { return Err(Failure::usage("IN_DIR and OUT_DIR are needed")) };
    let options = Options {
        sample_rate: args.rate,
        loudness: args.loudness,
        speaker_depth: args.speaker_depth,
        language_depth: args.language_depth,
        test_speakers: args.test_speaker.clone(),
        validation_speakers: args.validation_speaker.clone(),
        id_rules: args.id_rule.clone(),
        test_fraction: args.test_fraction,
        max_seconds: args.max_seconds,
        min_seconds: args.min_seconds,
        ..Options::default()
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
    let d = &report.description;
    if common.json {
        return terminal::say_json(&json!({ "out": out, "dataset": d, "unreadable": report.unreadable.len() }));
    }
    let seconds = d.samples as f64 / f64::from(d.sample_rate);
    terminal::say(format!("{} utterances, {:.2} h at {} Hz ({})", d.utterances, seconds / 3600.0, d.sample_rate, out.display()))?;
    let dropped = &d.dropped;
    terminal::say(format!(
        "dropped: {} unreadable, {} silent, {} clipped, {} short",
        dropped.unreadable, dropped.silent, dropped.clipped, dropped.short
    ))?;
    terminal::say(super::inspect::hours(d))
}
