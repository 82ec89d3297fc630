//! Training as a whole: it learns, it is the same on every device, and stopping it changes nothing.

use swara_engine::codec::{Config, QuantizerKind};
use swara_engine::metrics;
use swara_engine::train::{CodebookRules, LossWeights, Losses, Optimizer, Schedule, TrainConfig, Trainer};
use swara_kernels::Device;
use swara_kernels::case::SplitMix;

fn tiny(quantizer: QuantizerKind) -> TrainConfig {
    let codec = Config {
        sample_rate: 16000,
        encoder_widths: vec![8, 16, 24],
        decoder_widths: vec![24, 16, 8],
        strides: vec![4, 2],
        dilations: vec![1, 3],
        latent: 16,
        causal: true,
        quantizer,
        codebook_dim: 8,
        codebook_sizes: vec![32, 16],
        transformer: None,
        prosody: None,
    };
    TrainConfig {
        train: Schedule { steps: 300, batch: 2, crop_frames: 80, ..Schedule::default() },
        optimizer: Optimizer { learning_rate: 3e-3, warmup: 10, ..Optimizer::default() },
        loss: LossWeights { mel: 1.0, wave: 10.0, mel_scales: vec![(5, 32), (10, 64), (20, 128), (40, 256)], ..LossWeights::default() },
        codebook: CodebookRules { start: 5, kmeans_batches: 1, kmeans_iterations: 5, dropout: 0.0, ..CodebookRules::default() },
        ..TrainConfig::new("tiny", Some(codec))
    }
}

/// Speech-like: harmonics of a gliding pitch, with an envelope.
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

fn train(trainer: &mut Trainer, steps: u64, seeds: impl Fn(u64) -> u64) -> Vec<Losses> {
    let until = trainer.step() + steps;
    let mut losses = Vec::new();
    while trainer.step() < until {
        if trainer.needs_codebooks() {
            let first = batch(trainer.config(), seeds(0));
            trainer.initialise_codebooks([first]).unwrap();
        }
        let samples = batch(trainer.config(), seeds(trainer.step()));
        losses.push(trainer.train(&samples).unwrap().losses().unwrap());
    }
    losses
}

#[test]
fn an_untrained_codec_is_in_phase_with_its_input() {
    let own = |causal| {
        let mut config = tiny(QuantizerKind::Ema);
        config.codec.as_mut().unwrap().causal = causal;
        config
    };
    // Latents that are as many as frames, and two or three a frame, which single channels are repeated for.
    let mimi = |between: usize| {
        let toml = format!(
            "sampling_rate = 16000\nframe_rate = {:?}\nupsampling_ratios = [2, 4]\nnum_filters = 8\nhidden_size = 48\ncodebook_dim = 16\ncodebook_size = 16\n\
             num_quantizers = 2\nnum_hidden_layers = 1\nintermediate_size = 16\nnum_attention_heads = 2\nnum_key_value_heads = 2",
            2000.0 / between as f64
        );
        let mimi = TrainConfig::from_toml(&format!("model = \"tiny\"\n[mimi]\n{toml}")).unwrap().mimi;
        TrainConfig { codec: None, mimi, ..tiny(QuantizerKind::Ema) }
    };
    for (name, config) in [("causal", own(true)), ("symmetric", own(false)), ("1", mimi(1)), ("2", mimi(2)), ("3", mimi(3))] {
        let trainer = Trainer::new(config.clone(), &Device::Cpu).unwrap();
        let samples = batch(&config, 1);
        let (step, _, _) = trainer.gradients(&samples).unwrap();
        let wave = metrics::waveform(&samples, &step.output.to_vec::<f32>().unwrap());
        println!("{name}: rho {:.3}, amplitude {:.1} %", wave.rho, wave.amplitude);
        assert!(wave.rho > 0.8, "{name}: rho {}", wave.rho);
    }
    // Too narrow for a transform: no copy of it, and not near silence either.
    let mut narrow = mimi(8);
    narrow.mimi.as_mut().unwrap().hidden_size = 4;
    let samples = batch(&narrow, 1);
    let (step, _, _) = Trainer::new(narrow, &Device::Cpu).unwrap().gradients(&samples).unwrap();
    let wave = metrics::waveform(&samples, &step.output.to_vec::<f32>().unwrap());
    println!("narrow: amplitude {:.1} %", wave.amplitude);
    assert!(wave.amplitude > 2.0, "amplitude {} %", wave.amplitude);
}

#[test]
fn one_batch_is_learnt_by_heart() {
    for quantizer in [QuantizerKind::Ema, QuantizerKind::Factorised] {
        let config = tiny(quantizer);
        let mut trainer = Trainer::new(config.clone(), &Device::Cpu).unwrap();
        let losses = train(&mut trainer, 300, |_| 1);
        let samples = batch(&config, 1);
        let output = trainer.train(&samples).unwrap().output.to_vec::<f32>().unwrap();
        let wave = metrics::waveform(&samples, &output);
        let (first, last) = (losses[0].mel, losses[losses.len() - 1].mel);
        println!("{quantizer:?}: mel {first:.3} -> {last:.3}, amplitude {:.1} %, rho {:.3}", wave.amplitude, wave.rho);
        assert!(last * 3.0 < first, "{quantizer:?}: mel loss {first} -> {last}");
        assert!((85.0..=115.0).contains(&wave.amplitude), "{quantizer:?}: amplitude {}", wave.amplitude);
    }
}

#[test]
fn twenty_steps_are_the_same_on_the_cpu_and_on_the_emulator() {
    for quantizer in [QuantizerKind::Ema, QuantizerKind::Factorised] {
        let mut config = tiny(quantizer);
        config.train.crop_frames = 40;
        // The first steps of Adam are as large for a gradient that is all rounding as for any other. At 5e-4 and above that
        // grows until a code flips at a near-tie, within the 20 steps; and one code moves a loss by more than 1e-4.
        config.optimizer.learning_rate = 2e-4;
        let mut runs = ["cpu", "emulator"].map(|device| {
            let device = Device::open(device).expect("the emulator needs a C++ compiler");
            train(&mut Trainer::new(config.clone(), &device).unwrap(), 20, |step| step)
        });
        let emulator = runs[1].split_off(0);
        let mut worst: f64 = 0.0;
        for (step, (cpu, emulator)) in runs[0].iter().zip(&emulator).enumerate() {
            for (a, b) in [(cpu.mel, emulator.mel), (cpu.wave, emulator.wave), (cpu.commitment, emulator.commitment)] {
                let difference = (a - b).abs() / a.abs().max(1e-6);
                worst = worst.max(difference);
                assert!(difference < 1e-4, "{quantizer:?} step {step}: {a} on the CPU, {b} on the emulator");
            }
        }
        println!("{quantizer:?}: losses differ by {worst:.1e} at most");
    }
}

#[test]
fn a_resumed_run_is_bit_exact() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("checkpoint.safetensors");
    let config = tiny(QuantizerKind::Ema);
    let mut whole = Trainer::new(config.clone(), &Device::Cpu).unwrap();
    let expected = train(&mut whole, 24, |step| step);
    let mut first = Trainer::new(config.clone(), &Device::Cpu).unwrap();
    // Once before there are codebooks, once after.
    for stop in [3, 13] {
        let steps = stop - first.step();
        train(&mut first, steps, |step| step);
        first.save(&path).unwrap();
        first = Trainer::resume(&path, config.clone(), &Device::Cpu).unwrap();
    }
    let rest = 24 - first.step();
    let found = train(&mut first, rest, |step| step);
    assert_eq!(found[..], expected[13..]);
    for (a, b) in whole.parameters().iter().zip(first.parameters()) {
        assert_eq!(a.value.to_vec::<f32>().unwrap(), b.value.to_vec::<f32>().unwrap(), "{}", a.spec.name);
    }
}

#[test]
fn a_released_model_loads_and_decodes_what_it_encodes() {
    use swara_engine::codec::Codec;
    use swara_kernels::DType;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    for quantizer in [QuantizerKind::Ema, QuantizerKind::Factorised] {
        let config = tiny(quantizer);
        let mut trainer = Trainer::new(config.clone(), &Device::Cpu).unwrap();
        train(&mut trainer, 8, |step| step);
        trainer.release(&path).unwrap();
        let (codec, kept) = (Codec::open(&path, &Device::Cpu, DType::F32).unwrap(), trainer.codec().unwrap());
        let samples = batch(&config, 3);
        let codes = kept.encode(&samples, 2).unwrap();
        let (found, expected) = (codec.decode(&codes).unwrap(), kept.decode(&codes).unwrap());
        let wave = metrics::waveform(&expected, &found);
        // Released weights are rounded to bf16.
        assert!(wave.snr_db > 30.0, "{quantizer:?}: {} dB", wave.snr_db);
    }
}

#[test]
fn what_is_added_counts_more() {
    let of = |mel_added: f64| {
        let mut config = tiny(QuantizerKind::Ema);
        config.loss.mel_added = mel_added;
        let samples = batch(&config, 1);
        let (step, gradients, _) = Trainer::new(config, &Device::Cpu).unwrap().gradients(&samples).unwrap();
        (step.losses().unwrap().mel, gradients.iter().map(|g| g.to_f64().unwrap()).collect::<Vec<_>>())
    };
    let (plain, more) = (of(1.0), of(2.0));
    assert!(plain.0 < more.0 && more.0 < 2.0 * plain.0, "{} and {}", plain.0, more.0);
    assert_ne!(plain.1, more.1);

    let weights = |mel_added| LossWeights { mel_added, ..LossWeights::default() };
    assert!(weights(1.0).is_mel_distance(4096) && !weights(2.0).is_mel_distance(4096));
    let config = |key: &str, value: &str| TrainConfig::from_toml(&format!("model = \"te50\"\n[loss]\n{key} = {value}"));
    assert_eq!(config("mel_added", "2.0").unwrap().loss.mel_added, 2.0);
    for key in ["mel_added", "mel_floor"] {
        for wrong in ["0.0", "-1.0", "nan", "inf", "1e39", "1e-46"] {
            assert!(config(key, wrong).unwrap_err().to_string().contains(key), "{key} = {wrong}");
        }
    }
}
