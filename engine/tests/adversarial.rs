//! Training against discriminators: whose gradients go where, in which order, and that stopping changes nothing.

use swara_engine::codec::{Config, QuantizerKind};
use swara_engine::train::{
    Adversarial, AdversarialRule, BalancerRules, BandConfig, CodebookRules, DiscriminatorConfig, LossWeights, Losses, Optimizer,
    PeriodConfig, Schedule, StftConfig, TrainConfig, Trainer,
};
use swara_kernels::case::SplitMix;
use swara_kernels::{DType, Device};

fn discriminators() -> DiscriminatorConfig {
    DiscriminatorConfig {
        normalise: true,
        period: Some(PeriodConfig { periods: vec![2, 3], channels: vec![4, 8], ..PeriodConfig::default() }),
        band: Some(BandConfig { windows: vec![64], channels: 4, ..BandConfig::default() }),
        ..DiscriminatorConfig::default()
    }
}

fn spectra() -> DiscriminatorConfig {
    DiscriminatorConfig { stft: Some(StftConfig { windows: vec![64, 32], filters: 4, ..StftConfig::default() }), ..Default::default() }
}

fn config(rule: AdversarialRule, discriminators: DiscriminatorConfig) -> TrainConfig {
    let codec = Config {
        sample_rate: 16000,
        encoder_widths: vec![4, 6, 8],
        decoder_widths: vec![8, 6, 4],
        strides: vec![4, 2],
        dilations: vec![1],
        latent: 8,
        causal: true,
        quantizer: QuantizerKind::Ema,
        codebook_dim: 4,
        codebook_sizes: vec![16, 8],
        transformer: None,
        prosody: None,
    };
    let optimizer = Optimizer { learning_rate: 1e-3, warmup: 0, final_rate: 1.0, ..Optimizer::default() };
    TrainConfig {
        train: Schedule { steps: 100, batch: 2, crop_frames: 40, ..Schedule::default() },
        optimizer: optimizer.clone(),
        loss: LossWeights { mel: 1.0, mel_scales: vec![(5, 32), (10, 64)], ..LossWeights::default() },
        codebook: CodebookRules { start: 2, kmeans_batches: 1, kmeans_iterations: 3, ..CodebookRules::default() },
        adversarial: Some(Adversarial { start: 0, every: 1, rule, discriminators, optimizer }),
        ..TrainConfig::new("tiny", Some(codec))
    }
}

fn batch(config: &TrainConfig, seed: u64) -> Vec<f32> {
    let mut rng = SplitMix(seed);
    let samples = config.train.batch * config.train.accumulate * config.crop().unwrap();
    let pitch = 150.0 + 100.0 * rng.uniform();
    let noise: Vec<f64> = (0..samples).map(|_| rng.uniform() - 0.5).collect();
    let wave = |i: usize| 0.3 * (std::f64::consts::TAU * pitch * i as f64 / 16000.0).sin() + 0.05 * noise[i];
    (0..samples).map(|i| wave(i) as f32).collect()
}

fn train(trainer: &mut Trainer, until: u64) -> Vec<Losses> {
    let mut losses = Vec::new();
    while trainer.step() < until {
        if trainer.needs_codebooks() {
            trainer.initialise_codebooks([batch(trainer.config(), 0)]).unwrap();
        }
        let samples = batch(trainer.config(), trainer.step());
        losses.push(trainer.train(&samples).unwrap().losses().unwrap());
    }
    losses
}

/// The weighted sum that the codec learns from, before there are codebooks, whose straight-through gradients are no differences.
fn total(config: &TrainConfig, losses: &Losses) -> f64 {
    let w = &config.loss;
    w.wave * losses.wave + w.adversarial * losses.adversarial + w.feature * losses.feature
}

#[test]
fn gradients_through_discriminators_are_differences() {
    for (rule, discriminators) in [(AdversarialRule::DAC, discriminators()), (AdversarialRule::ENCODEC, spectra())] {
        let mut config = config(rule, discriminators);
        // Its kinks are tested elsewhere.
        config.loss.mel = 0.0;
        let samples = batch(&config, 3);
        let mut trainer = Trainer::with_dtype(config.clone(), &Device::Cpu, DType::F64).unwrap();
        let (_, gradients, _) = trainer.gradients(&samples).unwrap();
        let mut rng = SplitMix(9);
        for (n, gradient) in gradients.iter().enumerate() {
            // Along a random direction of one parameter.
            let shape = trainer.parameters()[n].value.shape();
            let before = trainer.parameters()[n].value.to_f64().unwrap();
            let direction: Vec<f64> = before.iter().map(|_| rng.uniform() - 0.5).collect();
            let slope: f64 = gradient.to_f64().unwrap().iter().zip(&direction).map(|(g, d)| g * d).sum();
            let step = 1e-7;
            let mut at = |sign: f64| {
                let moved: Vec<f64> = before.iter().zip(&direction).map(|(v, d)| v + sign * step * d).collect();
                trainer.set_parameter(n, &moved).unwrap();
                assert_eq!(trainer.parameters()[n].value.shape(), shape);
                total(&config, &trainer.gradients(&samples).unwrap().0.losses().unwrap())
            };
            let difference = (at(1.0) - at(-1.0)) / (2.0 * step);
            trainer.set_parameter(n, &before).unwrap();
            let name = &trainer.parameters()[n].spec.name;
            assert!((difference - slope).abs() < 1e-4 * (1.0 + slope.abs()), "{name}: {slope}, by differences {difference}");
        }
    }
}

#[test]
fn discriminators_learn_to_tell_and_the_codec_to_pass() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("checkpoint.safetensors");
    // The codec stands still: its discriminators come to know it.
    let mut config = config(AdversarialRule::DAC, discriminators());
    config.optimizer.learning_rate = 0.0;
    let mut trainer = Trainer::new(config.clone(), &Device::Cpu).unwrap();
    let losses = train(&mut trainer, 60);
    let (first, last) = (losses[3].discriminator.unwrap(), losses[59].discriminator.unwrap());
    println!("discriminators: {first:.3} -> {last:.3}");
    assert!(last < 0.7 * first, "{first} -> {last}");
    // Then they do, and the codec comes to please them.
    trainer.save(&path).unwrap();
    config.optimizer.learning_rate = 3e-3;
    config.adversarial.as_mut().unwrap().optimizer.learning_rate = 0.0;
    config.loss = LossWeights { mel: 0.0, wave: 0.0, feature: 0.0, ..config.loss };
    let losses = train(&mut Trainer::resume(&path, config, &Device::Cpu).unwrap(), 100);
    let (first, last) = (losses[0].adversarial, losses[39].adversarial);
    println!("codec: {first:.3} -> {last:.3}");
    assert!(last < 0.7 * first, "{first} -> {last}");
}

#[test]
fn discriminators_join_and_learn_when_they_are_told() {
    let mut config = config(AdversarialRule::ENCODEC, spectra());
    let a = config.adversarial.as_mut().unwrap();
    (a.start, a.every) = (3, 2);
    let losses = train(&mut Trainer::new(config, &Device::Cpu).unwrap(), 8);
    let learnt: Vec<bool> = losses.iter().map(|l| l.discriminator.is_some()).collect();
    let judged: Vec<bool> = losses.iter().map(|l| l.feature > 0.0).collect();
    assert_eq!(learnt, [false, false, false, true, false, true, false, true]);
    assert_eq!(judged, [false, false, false, true, true, true, true, true]);
}

#[test]
fn a_resumed_run_is_bit_exact_with_discriminators_and_a_balancer() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("checkpoint.safetensors");
    let config = TrainConfig { balancer: Some(BalancerRules::default()), ..config(AdversarialRule::ENCODEC, spectra()) };
    let mut whole = Trainer::new(config.clone(), &Device::Cpu).unwrap();
    let expected = train(&mut whole, 10);
    let mut first = Trainer::new(config.clone(), &Device::Cpu).unwrap();
    train(&mut first, 5);
    first.save(&path).unwrap();
    let mut resumed = Trainer::resume(&path, config.clone(), &Device::Cpu).unwrap();
    assert_eq!(train(&mut resumed, 10)[..], expected[5..]);
    // Parameters and moments of both, averages, the balancer's.
    let files = [&whole, &resumed].map(|trainer| {
        let path = dir.path().join("end.safetensors");
        trainer.save(&path).unwrap();
        std::fs::read(path).unwrap()
    });
    assert!(files[0] == files[1], "checkpoints differ");
    let mut other = config;
    other.adversarial.as_mut().unwrap().discriminators = discriminators();
    let error = Trainer::resume(&path, other, &Device::Cpu).err().unwrap().to_string();
    assert!(error.contains("was trained with adversarial.discriminators"), "{error}");
}

/// Weights are shares, and the whole gradient is as long as it is told.
#[test]
fn a_balanced_gradient_has_the_norm_that_it_is_told() {
    for (mel, wave) in [(1.0, 0.0), (0.0, 1.0), (3.0, 1.0)] {
        let mut config = config(AdversarialRule::DAC, discriminators());
        config.adversarial = None;
        let samples = batch(&config, 3);
        let [one, scaled, twice] = [(1.0, 1.0), (50.0, 1.0), (1.0, 2.0)].map(|(factor, total_norm)| {
            let loss = LossWeights { mel: factor * mel, wave: factor * wave, ..config.loss.clone() };
            let balancer = Some(BalancerRules { total_norm, ..BalancerRules::default() });
            let trainer = Trainer::with_dtype(TrainConfig { loss, balancer, ..config.clone() }, &Device::Cpu, DType::F64).unwrap();
            trainer.gradients(&samples).unwrap().0.losses().unwrap().gradient_norm
        });
        assert!((scaled / one - 1.0).abs() < 1e-9 && (twice / one - 2.0).abs() < 1e-9, "{one} {scaled} {twice}");
    }
}

#[test]
fn a_few_steps_are_the_same_on_the_cpu_and_on_the_emulator() {
    for (rule, discriminators) in [(AdversarialRule::DAC, discriminators()), (AdversarialRule::ENCODEC, spectra())] {
        let mut config = config(rule, discriminators);
        config.optimizer.learning_rate = 2e-4;
        config.adversarial.as_mut().unwrap().optimizer.learning_rate = 2e-4;
        let [cpu, emulator] = ["cpu", "emulator"].map(|device| {
            let device = Device::open(device).expect("the emulator needs a C++ compiler");
            train(&mut Trainer::new(config.clone(), &device).unwrap(), 4)
        });
        for (step, (a, b)) in cpu.iter().zip(&emulator).enumerate() {
            for (a, b) in [
                (a.adversarial, b.adversarial),
                (a.feature, b.feature),
                (a.discriminator.unwrap(), b.discriminator.unwrap()),
                (a.mel, b.mel),
            ] {
                assert!((a - b).abs() < 1e-4 * a.abs().max(1e-3), "step {step}: {a} on the CPU, {b} on the emulator");
            }
        }
    }
}
