//! The recipes that come with the program, on a small scale: few channels, one crop, and codebooks and rates from near the start.

use std::path::Path;

use swara_engine::codec::{encodec, mimi, snac};
use swara_engine::train::{Architecture, Examples, TrainConfig, Trainer};
use swara_kernels::Device;
use swara_kernels::case::SplitMix;
use swara_loader::dataset::TeacherRows;

const STEPS: u64 = 200;

fn recipes() -> Vec<(String, TrainConfig)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bins/train/recipes");
    let mut found: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let config = TrainConfig::from_toml(&std::fs::read_to_string(&path).unwrap());
            (path.file_stem().unwrap().to_str().unwrap().to_owned(), config.unwrap_or_else(|e| panic!("{}: {e}", path.display())))
        })
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

/// The same losses, optimisers and rules of codebooks.
fn small(mut config: TrainConfig) -> TrainConfig {
    match config.architecture().unwrap() {
        Architecture::Own(mut codec) => {
            // Filters of the fastest rate alone keep their strides.
            codec.strides.truncate(2);
            codec.encoder_widths = vec![4, 6, 8];
            codec.decoder_widths = vec![8, 6, 4];
            codec.dilations.truncate(2);
            codec.latent = 8;
            codec.codebook_dim = 4;
            codec.codebook_sizes.truncate(3);
            codec.codebook_sizes.fill(16);
            if let Some(t) = &mut codec.transformer {
                (t.layers, t.heads, t.hidden, t.window) = (1, 2, 12, 20);
            }
            config.codec = Some(codec);
        }
        Architecture::Mimi(full) => {
            config.mimi = Some(mimi::Config {
                hidden_size: 16,
                num_filters: 2,
                upsampling_ratios: vec![3, 2],
                codebook_size: 16,
                codebook_dim: 4,
                num_quantizers: 4,
                num_hidden_layers: 1,
                intermediate_size: 24,
                num_attention_heads: 2,
                num_key_value_heads: 2,
                ..full
            });
        }
        Architecture::EnCodec(full) => {
            config.encodec = Some(encodec::Config {
                hidden_size: 8,
                num_filters: 2,
                upsampling_ratios: vec![3, 2],
                codebook_size: 16,
                target_bandwidths: vec![16.0, 32.0, 64.0],
                ..full
            });
        }
        Architecture::Snac(full) => {
            config.snac = Some(snac::Config {
                encoder_dim: 4,
                encoder_rates: vec![2, 3],
                decoder_dim: 16,
                decoder_rates: vec![3, 2],
                codebook_size: 16,
                codebook_dim: 4,
                ..full
            });
        }
    }
    let hop = config.architecture().unwrap().model().unwrap().format.hop;
    // One crop that the longest window of the discriminators fits in.
    (config.train.batch, config.train.crop_frames) = (1, 2048_usize.div_ceil(hop));
    config.train.accumulate = config.train.accumulate.min(2);
    config.codebook.start = config.codebook.start.min(20);
    config.codebook.kmeans_batches = 1;
    // A schedule of its beginning.
    let a = config.adversarial.as_mut().unwrap();
    for optimizer in [&mut config.optimizer, &mut a.optimizer] {
        optimizer.warmup = optimizer.warmup.min(20);
    }
    if let Some(teacher) = &mut config.teacher {
        (teacher.rate, teacher.dim) = (Some(50.0), Some(6));
    }
    let d = &mut a.discriminators;
    if let Some(period) = &mut d.period {
        period.channels = vec![4, 8];
    }
    if let Some(band) = &mut d.band {
        band.channels = 4;
    }
    if let Some(stft) = &mut d.stft {
        stft.filters = 4;
    }
    config
}

fn batch(trainer: &Trainer, step: u64) -> Vec<f32> {
    let config = trainer.config();
    let mut rng = SplitMix(step);
    let samples = config.train.batch * config.train.accumulate * trainer.crop();
    let pitch = (100.0 + 200.0 * rng.uniform()) / f64::from(trainer.sample_rate());
    let noise: Vec<f64> = (0..samples).map(|_| 0.02 * (rng.uniform() - 0.5)).collect();
    let wave = |i: usize| (1..6).map(|h| (std::f64::consts::TAU * pitch * (h * i) as f64).sin() / h as f64).sum::<f64>();
    (0..samples).map(|i| (0.2 * wave(i) + noise[i]) as f32).collect()
}

/// What a teacher says of a batch; the same of each.
fn features(trainer: &Trainer) -> Option<TeacherRows> {
    let [frames, _] = trainer.teacher_frames()?;
    let mut rng = SplitMix(7);
    let crops = trainer.config().train.batch * trainer.config().train.accumulate;
    Some(TeacherRows::Features((0..crops * frames * 6).map(|_| (rng.uniform() - 0.5) as f32).collect()))
}

#[test]
fn every_recipe_trains_for_two_hundred_steps() {
    let recipes = recipes();
    assert!(recipes.len() >= 10, "{} recipes", recipes.len());
    std::thread::scope(|scope| {
        for (name, config) in &recipes {
            scope.spawn(move || {
                let mut trainer = Trainer::new(small(config.clone()), &Device::Cpu).unwrap();
                let mut first = None;
                while trainer.step() < STEPS {
                    if trainer.needs_codebooks() {
                        trainer.initialise_codebooks([batch(&trainer, 0)]).unwrap();
                    }
                    let samples = batch(&trainer, trainer.step());
                    let l = trainer
                        .train_on(Examples { samples: &samples, targets: &samples, rows: features(&trainer).as_ref() })
                        .unwrap()
                        .losses()
                        .unwrap();
                    let judged = [l.adversarial, l.feature, l.discriminator.unwrap(), l.gradient_norm];
                    let all = [l.mel, l.msspec, l.wave, l.commitment, l.codebook].into_iter().chain(judged).collect::<Vec<_>>();
                    assert!(l.teacher.is_some_and(|l| l.is_finite() && l > 0.0) == config.teacher.is_some(), "{name}: {l:?}");
                    assert!(all.iter().all(|v| v.is_finite()), "{name}, step {}: {l:?}", trainer.step());
                    assert!(l.feature > 0.0, "{name}: no discriminators took part: {l:?}");
                    first.get_or_insert(l);
                    if trainer.step() == STEPS {
                        let first = first.unwrap();
                        println!("{name}: mel {:.3} -> {:.3}, discriminators {:?}", first.mel, l.mel, l.discriminator);
                        // Those that learn from it hear the spectrum come nearer.
                        assert!(config.loss.mel == 0.0 || l.mel < 0.9 * first.mel, "{name}: mel {} -> {}", first.mel, l.mel);
                        assert!(
                            config.loss.msspec == 0.0 || l.msspec < 0.9 * first.msspec,
                            "{name}: msspec {} -> {}",
                            first.msspec,
                            l.msspec
                        );
                    }
                }
                assert!(trainer.has_codebooks(), "{name}");
                let untrained = Trainer::new(trainer.config().clone(), &Device::Cpu).unwrap();
                let moved = trainer.parameters().iter().zip(untrained.parameters());
                assert!(moved.filter(|(a, b)| a.value.to_f64().unwrap() != b.value.to_f64().unwrap()).count() > 10, "{name}");
                assert!(trainer.parameters().iter().all(|p| p.value.to_f64().unwrap().iter().all(|v| v.is_finite())), "{name}");
            });
        }
    });
}
