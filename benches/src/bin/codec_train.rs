//! Times one training step, beside which `benches/peers/codec_train.py` times the same in PyTorch: same shape, batch and losses.
//!
//! `codec_train [BATCH] [SECONDS] [STEPS] [THREADS] [DEVICE]`: one JSON line with the median, p10 and p90 in milliseconds.

use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::json;
use swara_benches::timing::Samples;
use swara_engine::train::{CodebookRules, LossWeights, Schedule, TrainConfig, Trainer};
use swara_kernels::Device;
use swara_kernels::case::SplitMix;

/// Steps that are not timed: pools fill, codebooks settle.
const WARMUP: usize = 3;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number =
        |i: usize, default: usize| args.get(i).map_or(Ok(default), |a| a.parse().with_context(|| format!("{a:?} is not a number")));
    let (batch, seconds, steps, threads) = (number(0, 8)?, number(1, 1)?, number(2, 10)?.max(1), number(3, 2)?);
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    let config = TrainConfig {
        train: Schedule { batch, crop_frames: 50 * seconds, ..Schedule::default() },
        loss: LossWeights { commitment: 1.0, ..LossWeights::default() },
        codebook: CodebookRules { start: 0, kmeans_iterations: 2, dropout: 0.0, ..CodebookRules::default() },
        ..TrainConfig::new("te50-small", None)
    };
    let device = Device::open(args.get(4).map_or("cpu", String::as_str))?;
    let mut trainer = Trainer::new(config, &device)?;
    let mut rng = SplitMix(0);
    let samples: Vec<f32> = (0..batch * seconds * 16000).map(|_| (rng.uniform() - 0.5) as f32).collect();
    trainer.initialise_codebooks([samples.clone()])?;
    let mut times = Vec::with_capacity(steps);
    for i in 0..WARMUP + steps {
        let start = Instant::now();
        let step = trainer.train(&samples)?;
        step.losses()?;
        if i >= WARMUP {
            times.push(start.elapsed().as_secs_f64());
        }
    }
    let times = Samples::new(times).context("no steps to time")?;
    let ms = |share: f64| times.quantile(share) * 1e3;
    let parameters: usize = trainer.parameters().iter().map(|p| p.value.elements()).sum();
    println!(
        "{}",
        json!({ "bench": "codec_train_step", "peer": "swara", "device": device.name(), "threads": threads, "dtype": "f32", "parameters": parameters,
            "batch": batch, "samples": seconds * 16000, "runs": steps, "ms_median": ms(0.5), "ms_p10": ms(0.1), "ms_p90": ms(0.9),
            "audio_seconds_per_second": (batch * seconds) as f64 * 1e3 / ms(0.5) })
    );
    Ok(())
}
