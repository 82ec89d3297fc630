use std::path::Path;

use serde_json::json;
use swara_engine::metrics::{Alarm, Comparison};
use swara_loader::audio::AudioReader;
use swara_loader::output;

use crate::cli::{Common, Diagnose};
use crate::failure::{Failure, Result};
use crate::picture::{self, Sound};
use crate::run_folder::{self, RunFolder};
use crate::{page, terminal};

pub fn run(common: &Common, args: &Diagnose) -> Result {
    args.plot.as_deref().map_or(Ok(()), picture::check_name)?;
    match &args.test {
        Some(_) if args.out.is_some() => Err(Failure::usage("--out: is for the report of a run, of two files there is none")),
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
        ("STFT distance", or_dash(c.stft_distance)),
        ("PESQ", or_dash(c.pesq)),
        ("STOI", or_dash(c.stoi)),
        ("F0 error", c.prosody.f0_rmse_cents.map_or_else(|| "-".to_owned(), |v| format!("{v:.1} cents"))),
        ("voicing F1", or_dash(c.prosody.voicing_f1)),
        ("energy corr.", or_dash(c.prosody.energy_correlation)),
        ("verdict", format!("{}: {}", c.verdict(), c.verdict().advice())),
    ];
    lines.into_iter().try_for_each(|(what, value)| terminal::say(format!("{what:<14}{value}")))
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
    let run = RunFolder::open(&args.reference)?;
    let lines = run.lines();
    let Some(last) = lines.last() else { return Err(Failure::file("cannot diagnose", "nothing has been logged yet", &run.dir)) };
    // How long it has been so.
    let since = lines.iter().rev().take_while(|line| line.verdict == last.verdict).last().map_or(last.step, |line| line.step);
    let report = args.out.clone().unwrap_or_else(|| run.dir.join("report.html"));
    if args.plot.as_ref() == Some(&report) {
        return Err(Failure::usage("--plot and the report are the same file"));
    }
    // The verdict is said even where nothing can be written.
    let write = || -> Result {
        if args.out.is_none() && std::fs::symlink_metadata(&report).is_ok_and(|found| !found.is_file()) {
            return Err(Failure::file("cannot write report", "something that is no file is in its place", &report).hint("--out FILE.html"));
        }
        args.plot.as_ref().map_or(Ok(()), |plot| plot_run(&run.dir, plot))?;
        let page = page::page(&run, &lines, since)?;
        output::write(&report, page.as_bytes()).map_err(|e| Failure::from(e).hint("--out FILE.html writes it elsewhere"))
    };
    let written = write();
    let (verdict, perplexities, sizes) = (last.verdict, run.perplexities(), &run.sizes);
    if common.json {
        terminal::say_json(&json!({
            "step": last.step, "mel": run.last("mel"), "snr_db": run.last("snr_db"), "rho": run.last("rho"),
            "amplitude": run.last("amplitude"), "perplexities": perplexities, "codebook_sizes": sizes, "verdict": verdict,
            "since": since, "advice": verdict.advice(), "alarms": last.alarms.iter().map(Alarm::to_string).collect::<Vec<_>>(),
            "diverged": run.diverged(), "report": written.is_ok().then_some(&report),
        }))?;
        return written;
    }
    let shown = |name: &str| run.last(name).map_or_else(|| "-".to_owned(), |v| format!("{v:.3}"));
    terminal::say(format!(
        "step {}: mel {}, SNR {} dB, rho {}, amplitude {} %",
        last.step,
        shown("mel"),
        shown("snr_db"),
        shown("rho"),
        shown("amplitude")
    ))?;
    if perplexities.iter().all(|&p| p == 0.0) {
        terminal::say("codebooks: not initialised yet")?;
    }
    for (k, (p, size)) in perplexities.iter().zip(sizes).enumerate().filter(|(_, (p, _))| **p > 0.0) {
        terminal::say(format!("codebook {k}: perplexity {p:.1} of {size} ({:.0} %)", 100.0 * p / *size as f64))?;
    }
    terminal::say(format!("verdict: {verdict} since step {since}: {}", verdict.advice()))?;
    last.alarms.iter().try_for_each(|a| terminal::say(format!("alarm: {a}")))?;
    if run.diverged() {
        terminal::say(format!("alarm: {}", page::DIVERGED))?;
    }
    written?;
    terminal::say(format!("report: {}", report.display()))
}

/// The curves of a run as a picture.
pub fn plot_run(dir: &Path, picture: &Path) -> Result {
    picture::curves(picture, &format!("training in {}", dir.display()), "step", &run_folder::curves_of(dir)?)
}
