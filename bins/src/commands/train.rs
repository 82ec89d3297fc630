use std::ops::ControlFlow;
use std::path::Path;

use serde_json::json;
use swara_engine::metrics::Verdict;
use swara_engine::train::{self, Event, Losses, Sample, Start, TrainConfig};
use swara_loader::input;

use crate::cli::{Common, TrainCodec};
use crate::failure::{Failure, Result};
use crate::picture::{self, Sound};
use crate::terminal;

/// Longest configuration that is read.
const MAX_CONFIG: u64 = 1 << 20;

pub fn codec(common: &Common, args: &TrainCodec) -> Result {
    let config = read_config(&args.config)?;
    let device = common.open_device()?;
    let steps = config.train.steps;
    let bar = terminal::progress_above_message(steps, "train");
    let mut last = None;
    let start = match &args.init {
        Some(model) => Start::Model(model),
        None if args.resume => Start::Resume,
        None => Start::Fresh,
    };
    let result = train::run(config, &args.data, &args.out, start, &device, |event| {
        match event {
            Event::Step(r) => {
                bar.set_position(r.step);
                bar.set_message(brief(r.verdict, r.rho, &r.losses));
                let seconds = r.elapsed.as_secs_f64();
                let l = &r.losses;
                let learnt = l.discriminator.map(|d| format!("discriminator {d:.4}  ")).unwrap_or_default();
                let against = match l.feature + l.adversarial.abs() {
                    0.0 => learnt,
                    _ => format!("adversarial {:.4}  feature {:.4}  {learnt}", l.adversarial, l.feature),
                };
                terminal::detail(format!(
                    "step {}  mel {:.4}  wave {:.4}  {against}commitment {:.4}  rho {:.3}  amplitude {:.0}%  {}  {seconds:.2} s",
                    r.step, l.mel, l.wave, l.commitment, r.rho, r.amplitude, r.verdict
                ));
                for k in &r.collapsed {
                    bar.suspend(|| terminal::warn(format!("step {}: codebook {k} has collapsed", r.step)));
                }
            }
            Event::Kept(sample) => {
                // Pictures are beside what a run is for.
                if let Err(failure) = draw(&sample) {
                    bar.suspend(|| terminal::warn(failure.to_string()));
                }
            }
            Event::Validated(v) => {
                bar.suspend(|| {
                    let pesq = v.pesq.map(|p| format!(", PESQ {p:.2}")).unwrap_or_default();
                    terminal::note(format!(
                        "step {}: validation mel {:.3}, STOI {:.3}, SI-SDR {:.2} dB, rho {:.3}, amplitude {:.0}%{pesq}",
                        v.step, v.mel_distance, v.stoi, v.si_sdr_db, v.rho, v.amplitude
                    ));
                });
                last = Some(*v);
            }
            Event::Saved(step) => terminal::detail(format!("step {step}: saved")),
        }
        ControlFlow::Continue(())
    });
    bar.finish_and_clear();
    let trainer = result?;
    let picture = args.out.join("training.png");
    super::diagnose::plot_run(&args.out, &picture)?;
    if common.json {
        let validation = last.map(|v| {
            json!({ "step": v.step, "utterances": v.utterances, "mel_distance": v.mel_distance, "stoi": v.stoi,
                    "si_sdr_db": v.si_sdr_db, "rho": v.rho, "amplitude": v.amplitude, "pesq": v.pesq })
        });
        return terminal::say_json(&json!({ "steps": trainer.step(), "out": args.out, "validation": validation }));
    }
    terminal::say(format!("{} steps; model, checkpoint, log and picture in {}", trainer.step(), args.out.display()))
}

/// A step in 80 columns, of what may be off only what is on. The verdict is first: what is cut is at the end.
fn brief(verdict: Verdict, rho: f64, losses: &Losses) -> String {
    let short = |v: f64| match v.abs() {
        small if small < 10.0 => format!("{v:.2}"),
        some if some < 1000.0 => format!("{v:.0}"),
        _ => format!("{v:.0e}"),
    };
    let on = |v: f64| Some(v).filter(|v| *v != 0.0);
    let [f0, voicing, energy] = losses.prosody;
    let others = [
        ("adv", on(losses.adversarial)),
        ("feat", on(losses.feature)),
        ("disc", losses.discriminator),
        ("teacher", losses.teacher),
        ("f0", f0),
        ("voicing", voicing),
        ("energy", energy),
    ];
    let others = others.into_iter().filter_map(|(name, v)| Some(format!(" {name} {}", short(v?))));
    format!("{verdict} rho {rho:.2} mel {}", short(losses.mel)) + &others.collect::<String>()
}

/// The spectrograms of an utterance before and after the codec, beside its sounds.
fn draw(sample: &Sample) -> Result {
    let title = format!("{}, step {}", sample.id, sample.step);
    let sounds = [Sound { title: "input", samples: sample.input }, Sound { title: "output", samples: sample.output }];
    let mut path = sample.path.as_os_str().to_owned();
    path.push(".png");
    picture::sounds(path.as_ref(), &title, sample.sample_rate, &sounds)
}

pub fn read_config(path: &Path) -> Result<TrainConfig> {
    let text = input::read_text(path, "read configuration", MAX_CONFIG)?;
    TrainConfig::from_toml(&text).map_err(|e| Failure::file("cannot read configuration", e, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_told_within_a_terminal() {
        let plain = Losses { mel: 1.234, wave: 0.05, ..Losses::default() };
        assert_eq!(brief(Verdict::Ok, 0.912, &plain), "ok rho 0.91 mel 1.23");
        let all = Losses { adversarial: -1.256, feature: 0.127, discriminator: Some(0.041), teacher: Some(123.4), mel: 1.2e5, ..plain };
        let text = brief(Verdict::DiscriminatorWon, 0.5, &all);
        assert_eq!(text, "discriminator-won rho 0.50 mel 1e5 adv -1.26 feat 0.13 disc 0.04 teacher 123");
        assert!(text.len() < 80);
        let heard = Losses { prosody: [None, Some(0.693), Some(1.25)], ..plain };
        assert_eq!(brief(Verdict::Ok, 0.912, &heard), "ok rho 0.91 mel 1.23 voicing 0.69 energy 1.25");
    }
}
