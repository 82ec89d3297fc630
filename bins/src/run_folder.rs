//! The folder of a training run, as far as it can be read: any of its files may be half written, or somebody else's.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use swara_engine::codec::Config;
use swara_engine::metrics::{Alarm, Discriminator, Signs, Verdict};
use swara_engine::train::TrainConfig;
use swara_loader::input;

use crate::commands::train::read_config;
use crate::failure::{Failure, Result};
use crate::picture::Panel;

/// Of a longer log its first line and so many bytes of its end are read.
const MAX_LOG: u64 = 1 << 26;
/// Longest first line, bytes.
const MAX_HEADER: u64 = 1 << 16;
/// Lines of it that are looked at, the latest: what they become takes at most some 200 bytes each.
const MAX_LINES: usize = 100_000;
/// Points of a curve: more than a picture has columns.
const MAX_POINTS: usize = 5000;
/// Most files that are looked at among the samples.
const MAX_FILES: usize = 20_000;

/// What a folder says of its run.
pub struct RunFolder {
    pub dir: PathBuf,
    pub config: TrainConfig,
    pub sizes: Vec<usize>,
    pub log: Table,
    pub validation: Option<Table>,
}

/// A verdict is of the medians of so many lines: a batch of silence is no failure.
const RECENT: usize = 5;

/// A line of the log and what it means.
pub struct Line {
    pub step: u64,
    pub verdict: Verdict,
    /// Of the last line alone.
    pub alarms: Vec<Alarm>,
}

impl RunFolder {
    pub fn open(dir: &Path) -> Result<RunFolder> {
        let log = Table::read(&dir.join("log.csv"))?;
        if log.rows.is_empty() {
            return Err(Failure::file("cannot diagnose", "nothing has been logged yet", &dir.join("log.csv")));
        }
        let config = read_config(&dir.join("config.toml"))?;
        let sizes = config.architecture()?.model()?.format.codebook_sizes;
        Ok(RunFolder { dir: dir.to_owned(), config, sizes, log, validation: validation(dir)? })
    }

    /// Every line of the log.
    pub fn lines(&self) -> Vec<Line> {
        let numbers = |name: &str| self.log.numbers(name);
        let (step, rho, amplitude, mel) = (numbers("step"), numbers("rho"), numbers("amplitude"), numbers("mel"));
        let discriminators = self.discriminators();
        let known = self.config.crop().is_ok_and(|crop| self.config.loss.is_mel_distance(crop));
        let recent = |values: &[f64], i: usize| median(&values[(i + 1).saturating_sub(RECENT)..=i]);
        (0..self.log.rows.len())
            .map(|i| {
                let perplexities = self.log.cell(i, "perplexities").map(perplexities).unwrap_or_default();
                let codebooks: Vec<(f64, usize)> = perplexities.iter().copied().zip(self.sizes.iter().copied()).collect();
                let signs = Signs {
                    rho: recent(&rho, i),
                    amplitude: recent(&amplitude, i),
                    mel_distance: Some(recent(&mel, i)).filter(|mel| known && mel.is_finite()),
                    codebooks: &codebooks,
                    discriminator: discriminators[i],
                };
                let verdict = if rho[i].is_finite() && amplitude[i].is_finite() { signs.verdict() } else { Verdict::Diverged };
                let alarms = if i + 1 == self.log.rows.len() { signs.alarms().collect() } else { Vec::new() };
                Line { step: step[i] as u64, verdict, alarms }
            })
            .collect()
    }

    /// Of the codebooks in the last line.
    pub fn perplexities(&self) -> Vec<f64> {
        let last = self.log.rows.len().checked_sub(1);
        last.and_then(|last| self.log.cell(last, "perplexities")).map(perplexities).unwrap_or_default()
    }

    /// The discriminators' loss in every line in which they learnt.
    fn discriminators(&self) -> Vec<Option<Discriminator>> {
        let losses = self.log.numbers("discriminator");
        let judged = |loss: f64| self.config.adversarial.as_ref()?.judged(loss);
        let at = |i: usize| {
            judged(losses[i])?;
            judged(median(&losses[(i + 1).saturating_sub(RECENT)..=i].iter().copied().filter(|l| judged(*l).is_some()).collect::<Vec<_>>()))
        };
        (0..losses.len()).map(at).collect()
    }

    /// Whether the last line has what is no finite number.
    pub fn diverged(&self) -> bool {
        self.log
            .rows
            .last()
            .is_some_and(|row| self.log.text[row.clone()].split(',').any(|v| v.parse::<f64>().is_ok_and(|v| !v.is_finite())))
    }

    /// A number of the last line.
    pub fn last(&self, name: &str) -> Option<f64> {
        self.log.cell(self.log.rows.len().checked_sub(1)?, name)?.parse().ok()
    }

    pub fn panels(&self) -> Vec<Panel> {
        panels(&self.log, self.validation.as_ref())
    }

    /// Outputs that a validation kept, the latest of each name, latest first.
    pub fn samples(&self) -> Vec<Sample> {
        let dir = self.dir.join("samples");
        let Ok(entries) = std::fs::read_dir(&dir) else { return Vec::new() };
        let mut latest: BTreeMap<String, (u64, String)> = BTreeMap::new();
        // Neither links, which may lead anywhere, nor pipes, which may never end.
        let plain = |path: &Path| std::fs::symlink_metadata(path).is_ok_and(|found| found.is_file());
        let files = entries.take(MAX_FILES).flatten().filter(|entry| plain(&entry.path()));
        for file in files.filter_map(|entry| entry.file_name().into_string().ok()) {
            let Some((step, name)) = file.strip_suffix("-output.wav").and_then(|stem| stem.split_once('-')) else { continue };
            let Ok(number) = step.parse::<u64>() else { continue };
            if latest.get(name).is_none_or(|(before, _)| *before < number) {
                latest.insert(name.to_owned(), (number, step.to_owned()));
            }
        }
        let path = |step: &str, name: &str, part: &str| dir.join(format!("{step}-{name}-{part}.wav"));
        let mut samples: Vec<Sample> = latest
            .into_iter()
            .map(|(name, (step, digits))| Sample {
                input: Some(path(&digits, &name, "input")).filter(|path| plain(path)),
                output: path(&digits, &name, "output"),
                step,
                name,
            })
            .collect();
        samples.sort_by_key(|sample| std::cmp::Reverse(sample.step));
        samples
    }
}

/// NaN of nothing.
fn median(values: &[f64]) -> f64 {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|v| !v.is_nan()).collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What a validation made of an utterance.
pub struct Sample {
    pub name: String,
    pub step: u64,
    pub input: Option<PathBuf>,
    pub output: PathBuf,
}

fn validation(dir: &Path) -> Result<Option<Table>> {
    let path = dir.join("validation.csv");
    path.is_file().then(|| Table::read(&path)).transpose()
}

/// The curves of a run that may have no configuration yet.
pub fn curves_of(dir: &Path) -> Result<Vec<Panel>> {
    Ok(panels(&Table::read(&dir.join("log.csv"))?, validation(dir)?.as_ref()))
}

/// Curves of losses, likeness of the output, codebook perplexities, and validation where there is some: of very many lines, of some.
fn panels(log: &Table, validation: Option<&Table>) -> Vec<Panel> {
    let series = |table: &Table, names: &[&str]| -> Vec<(String, Vec<(f64, f64)>)> {
        let number = |row: usize, name: &str| table.cell(row, name).and_then(|v| v.parse().ok()).unwrap_or(f64::NAN);
        let points = |name: &str| table.some_rows().map(|row| (number(row, "step"), number(row, name))).collect::<Vec<_>>();
        let known = |name: &str, points: &[(f64, f64)]| name == "step" || points.iter().any(|(_, y)| y.is_finite() && *y != 0.0);
        names.iter().map(|name| ((*name).to_owned(), points(name))).filter(|(name, points)| known(name, points)).collect()
    };
    let panel = |table: &Table, title: &str, names: &[&str]| Panel { title: title.to_owned(), series: series(table, names) };
    let mut panels = vec![
        panel(log, "mel loss", &["mel"]),
        panel(log, "other losses, unweighted", &["wave", "spectrum", "msspec", "speaker", "commitment", "codebook"]),
        panel(log, "discriminators", &["adversarial", "feature", "discriminator"]),
        panel(log, "distillation, unweighted", &["teacher"]),
        panel(log, "prosody, unweighted", &["f0", "voicing", "energy"]),
        panel(log, "rho", &["rho"]),
        panel(log, "amplitude, %", &["amplitude"]),
        panel(log, "SNR, dB", &["snr_db"]),
    ];
    let step = |row: usize| log.cell(row, "step").and_then(|v| v.parse().ok()).unwrap_or(f64::NAN);
    let cells: Vec<(f64, Vec<f64>)> =
        log.some_rows().map(|row| (step(row), log.cell(row, "perplexities").map(perplexities).unwrap_or_default())).collect();
    let stages = cells.iter().map(|(_, cell)| cell.len()).max().unwrap_or(0);
    let stage = |k: usize| cells.iter().filter_map(|(step, cell)| Some((*step, *cell.get(k)?))).collect();
    panels.push(Panel { title: "perplexity".into(), series: (0..stages).map(|k| (format!("codebook {k}"), stage(k))).collect() });
    panels.push(panel(log, "norm of the gradient", &["gradient_norm"]));
    panels.push(panel(log, "learning rate", &["learning_rate"]));
    if let Some(table) = validation {
        panels.push(panel(table, "validation", &["stoi", "rho"]));
        panels.push(panel(table, "validation", &["mel_distance", "si_sdr_db", "pesq"]));
    }
    panels.retain(|p| p.series.iter().flat_map(|(_, points)| points).any(|(_, y)| y.is_finite()));
    panels
}

fn perplexities(cell: &str) -> Vec<f64> {
    cell.split(';').take(Config::MAX_CODEBOOKS).filter_map(|v| v.parse().ok()).collect()
}

const MAX_COLUMNS: usize = 256;

/// The first line of a file, and whole lines of its last `most` bytes.
fn ends(path: &Path, most: u64) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut bytes = Vec::new();
    BufReader::new(&file).take(MAX_HEADER).read_until(b'\n', &mut bytes)?;
    let header = bytes.len();
    file.seek(SeekFrom::End(-i64::try_from(most).unwrap_or(i64::MAX)))?;
    file.take(most).read_to_end(&mut bytes)?;
    let first = bytes[header..].iter().position(|b| *b == b'\n').map_or(bytes.len(), |end| header + end + 1);
    bytes.drain(header..first);
    String::from_utf8(bytes).map_err(|_| std::io::Error::other("not UTF-8 text"))
}

/// A CSV file without quotes. Columns are found by their names, whatever others there are.
pub struct Table {
    text: String,
    header: Vec<String>,
    rows: Vec<Range<usize>>,
}

impl Table {
    pub fn read(path: &Path) -> Result<Table> {
        Self::read_end(path, MAX_LOG)
    }

    fn read_end(path: &Path, most: u64) -> Result<Table> {
        let mut text = match std::fs::metadata(path) {
            Ok(found) if found.is_file() && found.len() > most => {
                ends(path, most).map_err(|e| Failure::file("cannot read log", e, path))?
            }
            _ => input::read_text(path, "read log", most)?,
        };
        // The last line may be half written.
        text.truncate(text.rfind('\n').map_or(0, |end| end + 1));
        let header: Vec<String> = text.lines().next().unwrap_or_default().split(',').map(str::to_owned).collect();
        let base = text.as_ptr() as usize;
        let place = |line: &str| line.as_ptr() as usize - base..line.as_ptr() as usize - base + line.len();
        let skipped = text.lines().count().saturating_sub(MAX_LINES).max(1);
        if header.len() > MAX_COLUMNS {
            return Err(Failure::file("cannot read log", format!("more than {MAX_COLUMNS} columns"), path));
        }
        let rows = text.lines().skip(skipped).filter(|line| line.split(',').count() == header.len()).map(place).collect();
        Ok(Table { header, rows, text })
    }

    fn cell(&self, row: usize, name: &str) -> Option<&str> {
        let column = self.header.iter().position(|h| h == name)?;
        self.text.get(self.rows.get(row)?.clone())?.split(',').nth(column)
    }

    /// At most [`MAX_POINTS`] of the rows, evenly, the last among them.
    fn some_rows(&self) -> impl Iterator<Item = usize> {
        let (rows, every) = (self.rows.len(), self.rows.len().div_ceil(MAX_POINTS).max(1));
        (0..rows).filter(move |row| (rows - 1 - row).is_multiple_of(every))
    }

    /// A column's numbers; NaN where there is none.
    pub fn numbers(&self, name: &str) -> Vec<f64> {
        (0..self.rows.len()).map(|row| self.cell(row, name).and_then(|v| v.parse().ok()).unwrap_or(f64::NAN)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_very_long_logs_the_latest_lines_count_and_curves_have_some() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.csv");
        let lines = MAX_LINES + 50;
        let text: String = (0..lines).map(|step| format!("{step},{},1;2\n", step as f64 / 2.0)).collect();
        std::fs::write(&path, format!("step,mel,perplexities\n{text}half,a")).unwrap();
        let table = Table::read(&path).unwrap();
        assert_eq!((table.rows.len(), table.numbers("step")[0]), (MAX_LINES, 50.0));
        let panels = panels(&table, None);
        let mel = &panels[0].series[0].1;
        assert!((MAX_POINTS / 2..=MAX_POINTS).contains(&mel.len()), "{}", mel.len());
        assert_eq!(mel.last(), Some(&((lines - 1) as f64, (lines - 1) as f64 / 2.0)));
        assert!(panels.iter().flat_map(|panel| &panel.series).all(|(_, points)| points.len() <= MAX_POINTS));
        let few = Table { rows: table.rows[..3].to_vec(), ..table };
        assert_eq!(few.some_rows().collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(Table { rows: Vec::new(), ..few }.some_rows().count(), 0);
        // More than is read at once: its end.
        let end = Table::read_end(&path, 1000).unwrap();
        assert_eq!(end.header, ["step", "mel", "perplexities"]);
        let steps = end.numbers("step");
        assert!((40..100).contains(&steps.len()) && steps.iter().rev().zip((0..lines).rev()).all(|(a, b)| *a == b as f64), "{steps:?}");
        File::options().write(true).open(&path).unwrap().set_len(MAX_LOG + 100).unwrap();
        assert_eq!(Table::read(&path).unwrap().numbers("step").last(), Some(&((lines - 1) as f64)));
    }

    #[test]
    fn alarms_are_of_the_last_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.csv");
        std::fs::write(&path, "step,mel,rho,amplitude,perplexities\n".to_owned() + &"1,1,0.9,90,1.1;1.2\n".repeat(50)).unwrap();
        let log = Table::read(&path).unwrap();
        let config = TrainConfig::new("te50-small", None);
        let lines = RunFolder { dir: folder.path().to_owned(), config, sizes: vec![8, 8], log, validation: None }.lines();
        let (last, before) = lines.split_last().unwrap();
        assert!(last.alarms.len() == 2 && before.len() == 49 && before.iter().all(|line| line.alarms.is_empty()));
        assert!(lines.iter().all(|line| line.verdict == Verdict::CodebookCollapse));
    }
}
