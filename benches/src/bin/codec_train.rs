//! Times one training step, beside which `benches/peers/codec_train.py` times the same in PyTorch: same shape, batch and losses.
//!
//! `codec_train [BATCH] [SECONDS] [STEPS] [THREADS] [DEVICE] [--adversarial] [--checkpoint FILE]`: one JSON line with the median, p10 and
//! p90 in milliseconds, the losses of the first step, and what memory the process holds before it and at most.
//!
//! With `--adversarial` the codec is trained against narrow discriminators of spectra and periods. FILE becomes what the first step starts
//! from, so that the peer may start there as well. `--release FILE` writes the model, untrained, and times nothing.
//!
//! `codec_train crops DATASET`: what it costs to draw a crop of a second, by what is done to it, and to hear its prosody: time on a
//! processor, whoever else wants it (Linux). One JSON object a line.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::json;
use swara_benches::timing::Samples;
use swara_engine::train::{
    Adversarial, AdversarialRule, CodebookRules, Decayed, DiscriminatorConfig, LossWeights, Optimizer, PeriodConfig, PeriodRules,
    ProsodyFeatures, Schedule, StftConfig, TrainConfig, Trainer,
};
use swara_kernels::Device;
use swara_kernels::case::SplitMix;
use swara_loader::dataset::{Augmentation, Dataset, Echo, Gain, Kind, Loudness, Noise, Phase, Reverb, Sampler, SamplerOptions, Target};

/// Steps that are not timed: pools fill, codebooks settle.
const WARMUP: usize = 3;

/// EnCodec's and HiFi-GAN's, of few channels, and EnCodec's losses. The peer has the same.
fn adversarial() -> Adversarial {
    let (stft, period) = (StftConfig { windows: vec![1024, 512, 256], filters: 8, ..StftConfig::default() }, PeriodConfig::default());
    Adversarial {
        start: 0,
        every: 1,
        rule: AdversarialRule::ENCODEC,
        discriminators: DiscriminatorConfig {
            period: Some(PeriodConfig { rules: PeriodRules::HifiGan, channels: vec![8, 16, 32, 32], ..period }),
            stft: Some(stft),
            ..DiscriminatorConfig::default()
        },
        optimizer: Optimizer { learning_rate: 1e-4, warmup: 0, final_rate: 1.0, decayed: Decayed::All, ..Optimizer::default() },
    }
}

/// Memory that this process holds, and held at most, in MiB. `None` where the system does not say.
fn memory() -> Option<[f64; 2]> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)?.split_whitespace().next()?.parse::<f64>().ok());
    Some([kib("VmRSS:")? / 1024.0, kib("VmHWM:")? / 1024.0])
}

/// Everything at once, quiet enough for no peak to pass full scale, of noise the kinds that are given.
fn everything(kinds: Vec<Kind>) -> Augmentation {
    let probability = 1.0;
    Augmentation {
        target: Target::Clean,
        gain: Some(Gain { probability, db: (-12.0, -6.0) }),
        phase: Some(Phase { probability, radians: (-3.0, 3.0) }),
        reverb: Some(Reverb { probability, rt60: (0.1, 0.4), direct_db: (3.0, 12.0) }),
        echo: Some(Echo { probability, delay_ms: (100.0, 300.0), gain: (0.0, 0.2) }),
        noise: Some(Noise { probability, snr_db: (3.0, 12.0), kinds, folder: None }),
    }
}

/// Seconds that this thread has had a processor.
fn busy() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").context("/proc/thread-self/schedstat")?;
    Ok(text.split(' ').next().unwrap_or_default().parse::<f64>().context("/proc/thread-self/schedstat")? / 1e9)
}

fn crops(data: &str) -> Result<()> {
    const BATCH: usize = 16;
    const BATCHES: u64 = 10;
    let data = Dataset::open(data)?;
    let rate = data.sample_rate();
    let all = || everything(vec![Kind::White, Kind::Pink, Kind::Brown, Kind::Babble]);
    let noise = |kind| Some(Augmentation { noise: everything(vec![kind]).noise, target: Target::Clean, ..Augmentation::default() });
    let cases = [
        ("nothing", Loudness::Unchanged, None),
        ("loudness", Loudness::Lufs(-16.0), None),
        ("phase", Loudness::Unchanged, Some(Augmentation { phase: all().phase, ..Augmentation::default() })),
        ("reverb", Loudness::Unchanged, Some(Augmentation { reverb: all().reverb, ..Augmentation::default() })),
        ("white", Loudness::Unchanged, noise(Kind::White)),
        ("pink", Loudness::Unchanged, noise(Kind::Pink)),
        ("babble", Loudness::Unchanged, noise(Kind::Babble)),
        ("everything", Loudness::Lufs(-16.0), Some(all())),
    ];
    let say = |what: &str, seconds: f64| {
        let each = (seconds * 1e6 / (BATCHES * BATCH as u64) as f64).round();
        println!("{}", json!({ "crop": what, "samples": rate, "microseconds": each }));
    };
    for (name, loudness, augment) in cases {
        let options = SamplerOptions { crop: rate as usize, batch: BATCH, loudness, augment, ..SamplerOptions::default() };
        let sampler = Sampler::new(&data, options)?;
        drop(sampler.batch(0));
        let begun = busy()?;
        (1..=BATCHES).for_each(|step| drop(std::hint::black_box(sampler.batch(step))));
        say(name, busy()? - begun);
    }
    let sampler = Sampler::new(&data, SamplerOptions { crop: rate as usize, batch: BATCH, ..SamplerOptions::default() })?;
    let mut spent = 0.0;
    for step in 0..BATCHES {
        let batch = sampler.batch(step);
        let begun = busy()?;
        drop(std::hint::black_box(ProsodyFeatures::of(&batch.targets, rate as usize, rate as usize / 50, rate)));
        spent += busy()? - begun;
    }
    say("prosody", spent);
    Ok(())
}

fn main() -> Result<()> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    if let [command, data] = &args[..]
        && command == "crops"
    {
        return crops(data);
    }
    let against = args.iter().position(|a| a == "--adversarial").map(|at| args.remove(at)).is_some();
    let mut file = |flag: &str| match args.iter().position(|a| a == flag) {
        Some(at) if at + 1 < args.len() => Ok(args.drain(at..at + 2).nth(1)),
        Some(_) => Err(anyhow::anyhow!("{flag} FILE")),
        None => Ok(None),
    };
    let (checkpoint, release) = (file("--checkpoint")?, file("--release")?);
    let number =
        |i: usize, default: usize| args.get(i).map_or(Ok(default), |a| a.parse().with_context(|| format!("{a:?} is not a number")));
    let (batch, seconds, steps, threads) = (number(0, 8)?, number(1, 1)?, number(2, 10)?.max(1), number(3, 2)?);
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    let config = TrainConfig {
        train: Schedule { batch, crop_frames: 50 * seconds, ..Schedule::default() },
        loss: LossWeights { commitment: 1.0, ..LossWeights::default() },
        codebook: CodebookRules { start: 0, kmeans_iterations: 2, dropout: 0.0, ..CodebookRules::default() },
        adversarial: against.then(adversarial),
        ..TrainConfig::new("te50-small", None)
    };
    let device = Device::open(args.get(4).map_or("cpu", String::as_str))?;
    let mut trainer = Trainer::new(config, &device)?;
    let mut rng = SplitMix(0);
    let samples: Vec<f32> = (0..batch * seconds * 16000).map(|_| (rng.uniform() - 0.5) as f32).collect();
    trainer.initialise_codebooks([samples.clone()])?;
    if let Some(path) = release {
        return Ok(trainer.release(Path::new(&path))?);
    }
    if let Some(path) = checkpoint {
        trainer.save(Path::new(&path))?;
    }
    let rest = memory();
    let mut first = None;
    let mut times = Vec::with_capacity(steps);
    for i in 0..WARMUP + steps {
        let start = Instant::now();
        let step = trainer.train(&samples)?;
        let losses = step.losses()?;
        first.get_or_insert(losses);
        if i >= WARMUP {
            times.push(start.elapsed().as_secs_f64());
        }
    }
    let times = Samples::new(times).context("no steps to time")?;
    let ms = |share: f64| times.quantile(share) * 1e3;
    let parameters: usize = trainer.parameters().iter().map(|p| p.value.elements()).sum();
    let first = first.context("no step")?;
    println!(
        "{}",
        json!({ "bench": if against { "codec_train_step_adversarial" } else { "codec_train_step" }, "peer": "swara", "device": device.name(), "threads": threads, "dtype": "f32", "parameters": parameters,
            "batch": batch, "samples": seconds * 16000, "runs": steps, "ms_median": ms(0.5), "ms_p10": ms(0.1), "ms_p90": ms(0.9),
            "audio_seconds_per_second": (batch * seconds) as f64 * 1e3 / ms(0.5),
            "memory_at_rest_mib": rest.map(|[now, _]| now), "memory_peak_mib": memory().map(|[_, most]| most),
            "first": { "mel": first.mel, "wave": first.wave, "adversarial": first.adversarial, "feature": first.feature,
                "commitment": first.commitment, "discriminator": first.discriminator } })
    );
    Ok(())
}
