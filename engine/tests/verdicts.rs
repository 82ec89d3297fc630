//! Short runs that fail, each in its own way, are called by their names, and one that goes well by none.

use swara_engine::metrics::{Signs, Verdict, waveform};
use swara_engine::train::{TrainConfig, Trainer};
use swara_kernels::Device;
use swara_kernels::case::SplitMix;

fn tiny() -> TrainConfig {
    TrainConfig::from_toml(CONFIG).unwrap()
}

const CONFIG: &str = r#"
model = "tiny"

[codec]
sample_rate = 16000
encoder_widths = [8, 16, 24]
decoder_widths = [24, 16, 8]
strides = [4, 2]
dilations = [1, 3]
latent = 16
causal = true
quantizer = "ema"
codebook_dim = 8
codebook_sizes = [32, 16]

[train]
steps = 60
batch = 2
crop_frames = 80

[loss]
mel = 1.0
wave = 10.0
mel_scales = [[5, 32], [10, 64], [20, 128], [40, 256]]

[codebook]
start = 5
kmeans_batches = 1
kmeans_iterations = 5
dropout = 0.0
"#;

/// Harmonics of a gliding pitch, with an envelope.
fn batch(config: &TrainConfig, seed: u64) -> Vec<f32> {
    let crop = config.crop().unwrap();
    let mut rng = SplitMix(seed);
    (0..config.train.batch)
        .flat_map(|_| {
            let (pitch, glide, phase) = (100.0 + 150.0 * rng.uniform(), 1.0 + rng.uniform(), rng.uniform());
            (0..crop).map(move |i| {
                let t = i as f64 / 16000.0;
                let angle = std::f64::consts::TAU * (pitch * t * (1.0 + glide * t) + phase);
                let envelope = 0.3 + 0.2 * (std::f64::consts::TAU * 8.0 * t).sin();
                (envelope * (1..6).map(|h| (angle * h as f64).sin() / h as f64).sum::<f64>() * 0.5) as f32
            })
        })
        .collect()
}

/// The verdict of every step, as a line of a log would have it. `heard`: what k-means hears of a batch.
fn verdicts(config: TrainConfig, batch: impl Fn(u64) -> Vec<f32>, heard: impl Fn(Vec<f32>) -> Vec<f32>) -> Vec<Verdict> {
    let sizes = config.architecture().unwrap().model().unwrap().format.codebook_sizes;
    let mut trainer = Trainer::new(config, &Device::Cpu).unwrap();
    let mut found = Vec::new();
    while trainer.step() < trainer.config().train.steps {
        if trainer.needs_codebooks() {
            trainer.initialise_codebooks([heard(batch(0))]).unwrap();
        }
        let samples = batch(trainer.step());
        let step = trainer.train(&samples).unwrap();
        let wave = waveform(&samples, &step.output.to_vec::<f32>().unwrap());
        let codebooks: Vec<(f64, usize)> = trainer.perplexities().unwrap().into_iter().zip(sizes.iter().copied()).collect();
        let losses = step.losses().unwrap();
        let discriminator = trainer.config().adversarial.as_ref().and_then(|a| a.judged(losses.discriminator?));
        let mel_distance = Some(losses.mel);
        let signs = Signs { rho: wave.rho, amplitude: wave.amplitude, mel_distance, codebooks: &codebooks, discriminator };
        let name = signs.verdict().name();
        println!("{:3} {name:18} rho {:.3} amplitude {:.1} {codebooks:.1?} {discriminator:?}", step.number, wave.rho, wave.amplitude);
        found.push(signs.verdict());
    }
    found
}

#[test]
fn a_healthy_run_raises_no_alarm_at_any_line() {
    let config = tiny();
    let found = verdicts(config.clone(), |step| batch(&config, step), |x| x);
    assert!(found.iter().all(|verdict| !verdict.fails()), "{found:?}");
    assert_eq!(found.last(), Some(&Verdict::Ok));
}

/// Codebooks that k-means made from much louder sound have but one entry near what comes; with nothing to revive the others it stays so.
#[test]
fn a_dead_codebook_is_a_codebook_collapse() {
    let mut config = tiny();
    config.train.steps = 25;
    config.codebook.expire_below = 0.0;
    config.codebook.decay = 0.5;
    let found = verdicts(config.clone(), |step| batch(&config, step), |x| x.into_iter().map(|v| 200.0 * v).collect());
    assert!(found[10..].iter().all(|&verdict| verdict == Verdict::CodebookCollapse), "{found:?}");
    // Before there were codebooks, nothing was wrong with them.
    assert!(found[..5].iter().all(|&verdict| verdict == Verdict::Ok), "{found:?}");
}

/// One bit for every 4 ms of noise says next to nothing about it.
#[test]
fn codes_that_carry_too_little_are_starved() {
    let mut config = tiny();
    let codec = config.codec.as_mut().unwrap();
    (codec.strides, codec.codebook_sizes) = (vec![8, 8], vec![2]);
    (config.train.crop_frames, config.codebook.start) = (20, 0);
    (config.loss.mel, config.train.steps) = (0.0, 40);
    let crop = config.train.batch * config.crop().unwrap();
    let noise = |step: u64| {
        let mut rng = SplitMix(step + 100);
        (0..crop).map(|_| (0.6 * rng.uniform() - 0.3) as f32).collect::<Vec<_>>()
    };
    let found = verdicts(config, noise, |x| x);
    assert!(found[20..].iter().all(|&verdict| verdict == Verdict::Starved), "{found:?}");
}

/// Samples as whole numbers, not within -1 to 1: the output cannot be as loud.
#[test]
fn samples_that_were_not_scaled_are_a_gain_collapse() {
    let mut config = tiny();
    config.train.steps = 30;
    let loud = |step: u64| batch(&config, step).into_iter().map(|v| 8.0 * v).collect::<Vec<_>>();
    let found = verdicts(config.clone(), loud, |x| x);
    assert!(found[20..].iter().all(|&verdict| verdict == Verdict::GainCollapse), "{found:?}");
}

/// The tiny codec against discriminators of its spectra, and both learning rates.
fn contest(codec: f64, discriminators: f64) -> TrainConfig {
    let mut config = TrainConfig::from_toml(&format!("{CONFIG}{AGAINST}")).unwrap();
    (config.train.steps, config.optimizer.learning_rate) = (80, codec);
    config.adversarial.as_mut().unwrap().optimizer.learning_rate = discriminators;
    config
}

const AGAINST: &str = r#"
[adversarial]
rule = { form = "hinge", reduction = "mean" }
optimizer = { warmup = 0, final_rate = 1.0 }

[adversarial.discriminators]
stft = { windows = [128, 64], filters = 16 }
"#;

#[test]
fn discriminators_that_a_codec_keeps_up_with_have_not_won() {
    let config = contest(1e-3, 5e-4);
    let found = verdicts(config.clone(), |step| batch(&config, step), |x| x);
    assert!(found.iter().all(|verdict| !verdict.fails()), "{found:?}");
}

/// A codec that hardly moves is soon known.
#[test]
fn discriminators_that_learn_far_faster_than_the_codec_have_won() {
    let config = contest(1e-7, 5e-3);
    let found = verdicts(config.clone(), |step| batch(&config, step), |x| x);
    assert!(found[..5].iter().all(|verdict| !verdict.fails()), "{found:?}");
    assert!(found[40..].iter().all(|&verdict| verdict == Verdict::DiscriminatorWon), "{found:?}");
}
