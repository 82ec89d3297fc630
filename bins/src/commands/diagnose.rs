use std::path::Path;

use serde_json::json;
use swara_engine::codec::Config;
use swara_engine::metrics::{Alarm, Comparison, Verdict};
use swara_loader::audio::AudioReader;
use swara_loader::input;

use crate::cli::{Common, Diagnose};
use crate::failure::{Failure, Result};
use crate::picture::{self, Panel, Sound};
use crate::terminal;

pub fn run(common: &Common, args: &Diagnose) -> Result {
    args.plot.as_deref().map_or(Ok(()), picture::check_name)?;
    match &args.test {
        Some(test) => signals(common, args, test),
        None if args.reference.is_dir() => folder(common, args),
        None => {
            Err(Failure::usage(format!("diagnose: TEST.wav is missing, and this is no folder of a run ({})", args.reference.display())))
        }
    }
}

/// Two audio files. The second is brought to the first one's rate.
fn signals(common: &Common, args: &Diagnose, test: &Path) -> Result {
    /// Beyond this rate nothing is heard and every measure takes longer.
    const MAX_RATE: u32 = 48_000;
    /// So that memory stays bounded: a small file may unpack to days of silence.
    const MAX_SECONDS: usize = 600;
    let own_rate = AudioReader::open(&args.reference, None)?.source_rate();
    let rate = own_rate.min(MAX_RATE);
    let read = |path: &Path| -> Result<Vec<f32>> {
        let mut reader = AudioReader::open(path, Some(rate))?;
        let (mut samples, most) = (Vec::new(), MAX_SECONDS * rate as usize);
        while let Some(piece) = reader.next().filter(|_| samples.len() < most) {
            samples.extend(piece?);
        }
        reader.warnings().iter().for_each(|w| terminal::warn(format!("{w} ({})", path.display())));
        if samples.len() >= most {
            samples.truncate(most);
            terminal::warn(format!("only the first {MAX_SECONDS} s are compared ({})", path.display()));
        }
        Ok(samples)
    };
    let (x, y) = (read(&args.reference)?, read(test)?);
    let c = Comparison::new(&x, &y, rate, args.max_lag as usize);
    if let Some(plot) = &args.plot {
        let title = format!("{}: rho {:.3}, amplitude {:.0} %", c.verdict(), c.waveform.rho, c.waveform.amplitude);
        let sounds = [
            Sound { title: &format!("reference: {}", args.reference.display()), samples: &x },
            Sound { title: &format!("test: {}", test.display()), samples: &y },
        ];
        picture::sounds(plot, &title, rate, &sounds)?;
    }
    if common.json {
        let mut value = serde_json::to_value(c).map_err(|e| Failure::work(format!("cannot write JSON: {e}")))?;
        value["sample_rate"] = json!(rate);
        value["verdict"] = json!(c.verdict());
        value["label"] = json!(label(c.waveform.snr_db));
        value["advice"] = json!(c.verdict().advice());
        return terminal::say_json(&value);
    }
    let (w, or_dash) = (&c.waveform, |v: Option<f64>| v.map_or_else(|| "-".to_owned(), |v| format!("{v:.3}")));
    let lines = [
        ("compared", format!("{:.2} s at {rate} Hz, the test {} samples late", c.samples as f64 / f64::from(rate), c.lag)),
        ("SNR", format!("{:.2} dB ({})", w.snr_db, label(w.snr_db))),
        ("SI-SDR", format!("{:.2} dB", w.si_sdr_db)),
        ("rho", format!("{:.3}", w.rho)),
        ("amplitude", format!("{:.1} %", w.amplitude)),
        ("best gain", format!("{:.3}", w.gain)),
        ("mel distance", or_dash(c.mel_distance)),
        ("STOI", or_dash(c.stoi)),
        ("verdict", format!("{}: {}", c.verdict(), c.verdict().advice())),
    ];
    lines.into_iter().try_for_each(|(what, value)| terminal::say(format!("{what:<13}{value}")))
}

/// Names for levels of SNR; speech codecs at low rates are "poor" by this measure however good they sound.
fn label(snr_db: f64) -> &'static str {
    match snr_db {
        s if s > 20.0 => "excellent",
        s if s > 15.0 => "good",
        s if s < 10.0 => "poor",
        _ => "fair",
    }
}

/// The folder of a training run.
fn folder(common: &Common, args: &Diagnose) -> Result {
    let dir = args.reference.as_path();
    let log = Table::read(&dir.join("log.csv"))?;
    let Some(last) = log.rows.last() else {
        return Err(Failure::file("cannot diagnose", "nothing has been logged yet", &dir.join("log.csv")));
    };
    let number = |name: &str| log.column(name).and_then(|c| last.get(c)).and_then(|v| v.parse::<f64>().ok());
    let (rho, amplitude) = (number("rho").unwrap_or(f64::NAN), number("amplitude").unwrap_or(f64::NAN));
    let verdict = Verdict::of(rho, amplitude, number("mel"));
    let perplexities = log.column("perplexities").and_then(|c| last.get(c)).map(|v| perplexities(v)).unwrap_or_default();
    let sizes = codebook_sizes(dir)?;
    let alarms: Vec<Alarm> = perplexities.iter().zip(&sizes).enumerate().filter_map(|(k, (&p, &size))| Alarm::of(k, size, p)).collect();
    let diverged = last.iter().any(|v| v.parse::<f64>().is_ok_and(|v| !v.is_finite()));
    if let Some(plot) = &args.plot {
        plot_run(dir, plot)?;
    }
    let step = number("step").unwrap_or(0.0) as u64;
    if common.json {
        terminal::say_json(&json!({
            "step": step, "mel": number("mel"), "snr_db": number("snr_db"), "rho": number("rho"), "amplitude": number("amplitude"),
            "perplexities": perplexities, "codebook_sizes": sizes, "verdict": verdict, "advice": verdict.advice(),
            "alarms": alarms.iter().map(Alarm::to_string).collect::<Vec<_>>(), "diverged": diverged,
        }))?;
    } else {
        let shown = |name: &str| number(name).map_or_else(|| "-".to_owned(), |v| format!("{v:.3}"));
        terminal::say(format!(
            "step {step}: mel {}, SNR {} dB, rho {}, amplitude {} %",
            shown("mel"),
            shown("snr_db"),
            shown("rho"),
            shown("amplitude")
        ))?;
        if perplexities.iter().all(|&p| p == 0.0) {
            terminal::say("codebooks: not initialised yet")?;
        }
        for (k, (p, size)) in perplexities.iter().zip(&sizes).enumerate().filter(|(_, (p, _))| **p > 0.0) {
            terminal::say(format!("codebook {k}: perplexity {p:.1} of {size} ({:.0} %)", 100.0 * p / *size as f64))?;
        }
        terminal::say(format!("verdict: {verdict}: {}", verdict.advice()))?;
        alarms.iter().try_for_each(|a| terminal::say(format!("alarm: {a}")))?;
        if diverged {
            terminal::say("alarm: a logged value is not finite: lower the learning rate or the gradient clip")?;
        }
    }
    Ok(())
}

fn perplexities(cell: &str) -> Vec<f64> {
    cell.split(';').filter_map(|v| v.parse().ok()).collect()
}

fn codebook_sizes(dir: &Path) -> Result<Vec<usize>> {
    Ok(super::train::read_config(&dir.join("config.toml"))?.codec()?.codebook_sizes)
}

/// Curves of a run: losses, likeness of the output, codebook perplexities, and validation where there is some.
pub fn plot_run(dir: &Path, picture: &Path) -> Result {
    let log = Table::read(&dir.join("log.csv"))?;
    let steps = log.numbers("step");
    let series = |names: &[&str]| -> Vec<(String, Vec<(f64, f64)>)> {
        names.iter().map(|n| ((*n).to_owned(), steps.iter().copied().zip(log.numbers(n)).collect())).collect()
    };
    let mut panels = vec![
        Panel { title: "mel loss".into(), series: series(&["mel"]) },
        Panel { title: "other losses, unweighted".into(), series: series(&["wave", "spectrum", "commitment", "codebook"]) },
        Panel { title: "SNR, dB".into(), series: series(&["snr_db"]) },
        Panel { title: "amplitude, %".into(), series: series(&["amplitude"]) },
        Panel { title: "rho".into(), series: series(&["rho"]) },
    ];
    if let Some(column) = log.column("perplexities") {
        let cells: Vec<Vec<f64>> = log.rows.iter().map(|r| r.get(column).map(|v| perplexities(v)).unwrap_or_default()).collect();
        let stages = cells.iter().map(Vec::len).max().unwrap_or(0).min(Config::MAX_CODEBOOKS);
        let stage = |k: usize| steps.iter().zip(&cells).filter_map(|(&s, c)| Some((s, *c.get(k)?))).collect();
        if stages > 0 {
            panels.push(Panel { title: "perplexity".into(), series: (0..stages).map(|k| (format!("codebook {k}"), stage(k))).collect() });
        }
    }
    let validation = dir.join("validation.csv");
    if validation.is_file() {
        let table = Table::read(&validation)?;
        let steps = table.numbers("step");
        let points = |name: &str| (name.to_owned(), steps.iter().copied().zip(table.numbers(name)).collect());
        panels.push(Panel { title: "validation".into(), series: vec![points("stoi"), points("rho")] });
        panels.push(Panel { title: "validation".into(), series: vec![points("mel_distance"), points("si_sdr_db")] });
    }
    panels.retain(|p| p.series.iter().flat_map(|(_, points)| points).any(|(_, y)| y.is_finite()));
    picture::curves(picture, &format!("training in {}", dir.display()), "step", &panels)
}

/// Longest log that is read, bytes.
const MAX_LOG: u64 = 1 << 28;

/// A CSV file without quotes.
struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn read(path: &Path) -> Result<Table> {
        let text = input::read_text(path, "read log", MAX_LOG)?;
        let mut lines = text.lines().map(|line| line.split(',').map(str::to_owned).collect::<Vec<_>>());
        let header = lines.next().unwrap_or_default();
        // The last line may be half written.
        let rows: Vec<_> = lines.filter(|row| row.len() == header.len()).collect();
        Ok(Table { header, rows })
    }

    fn column(&self, name: &str) -> Option<usize> {
        self.header.iter().position(|h| h == name)
    }

    /// A column's numbers; NaN where there is none.
    fn numbers(&self, name: &str) -> Vec<f64> {
        let column = self.column(name);
        self.rows.iter().map(|r| column.and_then(|c| r.get(c)).and_then(|v| v.parse().ok()).unwrap_or(f64::NAN)).collect()
    }
}
