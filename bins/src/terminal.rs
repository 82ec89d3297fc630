//! Results go to standard output; everything else to standard error. A reader that goes away is not an error.

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use clap::error::ErrorKind;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use swara_kernels::Device;

use crate::failure::{Failure, Result};

static VERBOSITY: AtomicU8 = AtomicU8::new(1);

/// 0 says errors and results only, 1 adds notes and progress, 2 details.
pub fn set_verbosity(quiet: bool, verbose: u8) {
    VERBOSITY.store(if quiet { 0 } else { 1 + verbose }, Ordering::Relaxed);
}

fn verbosity() -> u8 {
    VERBOSITY.load(Ordering::Relaxed)
}

/// `text` with what could steer a terminal made visible; names in files may hold anything.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

/// A result.
pub fn say(text: impl AsRef<str>) -> Result {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", printable(text.as_ref())).and_then(|()| out.flush()).map_err(|e| Failure::stdout(&e))
}

/// Help goes to standard output; a usage error becomes one line and a hint.
pub fn usage(error: &clap::Error, hint: &str) -> Result {
    let text = error.to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => say(text.trim_end()),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            Err(Failure::usage("no command given").hint("swara --help lists the commands"))
        }
        _ => {
            let first = text.split("\n\n").next().unwrap_or_default();
            let message = first.strip_prefix("error: ").unwrap_or(first).lines().map(str::trim).collect::<Vec<_>>().join(" ");
            Err(Failure::usage(message).hint(hint))
        }
    }
}

/// A part of a result, shown at once.
pub fn write(text: &str) -> Result {
    let mut out = std::io::stdout().lock();
    write!(out, "{}", printable(text)).and_then(|()| out.flush()).map_err(|e| Failure::stdout(&e))
}

/// A result for machines: one JSON object on one line.
pub fn say_json(value: &impl Serialize) -> Result {
    say(serde_json::to_string(value).map_err(|e| Failure::work(format!("cannot write JSON: {e}")))?)
}

/// Something the user should know.
pub fn note(text: impl AsRef<str>) {
    if verbosity() >= 1 {
        let _ = writeln!(std::io::stderr(), "{}", printable(text.as_ref()));
    }
}

/// A part of a note.
pub fn murmur(text: &str) {
    if verbosity() >= 1 {
        let _ = write!(std::io::stderr(), "{}", printable(text));
    }
}

/// A warning is a note that `-q` does not silence.
pub fn warn(text: impl AsRef<str>) {
    let _ = writeln!(std::io::stderr(), "warning: {}", printable(&text.as_ref().replace('\n', " ")));
}

/// Reasons that have been said.
struct Said(Mutex<BTreeSet<String>>);

impl Said {
    const fn nothing() -> Said {
        Said(Mutex::new(BTreeSet::new()))
    }

    /// Whether `why` is new.
    fn is_new(&self, why: &str) -> bool {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        !said.contains(why) && said.insert(why.to_owned())
    }
}

/// Warns, once for every reason, why steps are no graphs where they were to be.
pub fn warn_without_graph(why: Option<&str>) {
    static SAID: Said = Said::nothing();
    if let Some(why) = why.filter(|why| SAID.is_new(why)) {
        warn(format!("steps are launched kernel by kernel, not as graphs: {why}"));
    }
}

/// Warns, once for every reason, why the depth transformer is not one launch where it was to be.
pub fn warn_with_plain_depth(why: Option<&str>) {
    static SAID: Said = Said::nothing();
    if let Some(why) = why.filter(|why| SAID.is_new(why)) {
        warn(format!("the depth transformer is launched kernel by kernel: {why}"));
    }
}

/// Lets kernels start before the one before has ended. Where that cannot be had, it warns, and says so.
pub fn dependent_launches(device: &Device) -> bool {
    match device.dependent_launches(true) {
        Ok(()) => {
            warn("--pdl was neither run nor timed on a GPU yet");
            true
        }
        Err(why) => {
            warn(format!("--pdl is without effect: {why}"));
            false
        }
    }
}

pub fn detail(text: impl AsRef<str>) {
    if verbosity() >= 2 {
        let _ = writeln!(std::io::stderr(), "{}", printable(text.as_ref()));
    }
}

/// A bar that shows itself on a terminal only.
pub fn progress(length: Option<u64>, what: &str) -> ProgressBar {
    let shown = verbosity() >= 1 && std::io::stderr().is_terminal();
    let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(length, target);
    let template = match length {
        Some(_) => "{prefix:>10} {bar:40} {percent:>3}% {elapsed} of {duration} {wide_msg}",
        None => "{prefix:>10} {spinner} {elapsed} {wide_msg}",
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_prefix(what.to_owned());
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// As [`progress`] of a known length; below the bar its message has a line to itself, as much of it as the terminal is wide.
pub fn progress_above_message(length: u64, what: &str) -> ProgressBar {
    let bar = progress(Some(length), what);
    if let Ok(style) = ProgressStyle::with_template("{prefix:>10} {bar:40} {percent:>3}% {elapsed} of {duration}\n{wide_msg}") {
        bar.set_style(style);
    }
    bar
}

/// Columns of text, each as wide as its widest cell; the first is flushed left, the others right.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for (i, (cell, &width)) in cells.zip(&widths).enumerate() {
            let pad = " ".repeat(width.saturating_sub(cell.chars().count()));
            match i {
                0 => text.push_str(&format!("{cell}{pad}")),
                _ => text.push_str(&format!("  {pad}{cell}")),
            }
        }
        text.trim_end().to_owned()
    };
    let mut lines = vec![line(&mut header.iter().copied())];
    lines.extend(rows.iter().map(|row| line(&mut row.iter().map(String::as_str))));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_said_once() {
        let said = Said::nothing();
        assert_eq!(["guidance", "17 streams", "guidance", "17 streams"].map(|why| said.is_new(why)), [true, true, false, false]);
    }
}
