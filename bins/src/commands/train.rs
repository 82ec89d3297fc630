use std::ops::ControlFlow;
use std::path::Path;

use serde_json::json;
use swara_engine::train::{self, Event, Start, TrainConfig};
use swara_loader::input;

use crate::cli::{Common, TrainCodec};
use crate::failure::{Failure, Result};
use crate::terminal;

/// Longest configuration that is read.
const MAX_CONFIG: u64 = 1 << 20;

pub fn codec(common: &Common, args: &TrainCodec) -> Result {
    let config = read_config(&args.config)?;
    let device = common.open_device()?;
    let steps = config.train.steps;
    let bar = terminal::progress(Some(steps), "train");
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
                bar.set_message(format!("mel {:.3}  rho {:.3}  {}", r.losses.mel, r.rho, r.verdict));
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
            Event::Validated(v) => {
                bar.suspend(|| {
                    terminal::note(format!(
                        "step {}: validation mel {:.3}, STOI {:.3}, SI-SDR {:.2} dB, rho {:.3}, amplitude {:.0}%",
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
                    "si_sdr_db": v.si_sdr_db, "rho": v.rho, "amplitude": v.amplitude })
        });
        return terminal::say_json(&json!({ "steps": trainer.step(), "out": args.out, "validation": validation }));
    }
    terminal::say(format!("{} steps; model, checkpoint, log and picture in {}", trainer.step(), args.out.display()))
}

pub fn read_config(path: &Path) -> Result<TrainConfig> {
    let text = input::read_text(path, "read configuration", MAX_CONFIG)?;
    TrainConfig::from_toml(&text).map_err(|e| Failure::file("cannot read configuration", e, path))
}
