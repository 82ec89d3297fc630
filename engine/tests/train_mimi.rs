//! A Mimi in training: PyTorch's gradients and moving averages, and files that others load.

use std::path::{Path, PathBuf};

use swara_engine::codec::{Codec, mimi};
use swara_engine::metrics;
use swara_engine::train::{
    Adversarial, AdversarialRule, BalancerRules, CodebookRules, DiscriminatorConfig, DropoutOf, LossWeights, Optimizer, Schedule,
    StftConfig, TrainConfig, Trainer,
};
use swara_kernels::case::SplitMix;
use swara_kernels::{DType, Device};
use swara_loader::weights::Weights;

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../verify/golden").join(path)
}

/// The shape of the stored Mimi, one loss on the wave, and none of what is drawn.
fn config() -> TrainConfig {
    let weights = Weights::open(golden("mimi/weights/kyutai.safetensors")).unwrap();
    TrainConfig {
        mimi: Some(mimi::Config::from_json(&weights.metadata()["config"]).unwrap()),
        train: Schedule { batch: 2, crop_frames: 30, ..Schedule::default() },
        optimizer: Optimizer { learning_rate: 3e-3, warmup: 10, ..Optimizer::default() },
        loss: LossWeights { mel: 0.0, mel_scales: vec![(5, 32), (10, 64)], wave: 10.0, commitment: 0.5, ..LossWeights::default() },
        codebook: CodebookRules { start: 2, kmeans_batches: 1, expire_below: 0.0, dropout: 0.0, ..CodebookRules::default() },
        ..TrainConfig::new("tiny", None)
    }
}

fn distance(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let error: f64 = found.iter().zip(expected).map(|(a, b)| (a - b) * (a - b)).sum();
    // A direction in one dimension has a gradient of zero, and of rounding.
    (error / expected.iter().map(|e| e * e).sum::<f64>().max(1e-16)).sqrt()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| v as f64).collect()
}

#[test]
fn losses_gradients_and_averages_are_those_of_moshi() {
    let dump = Weights::open(golden("gradients/mimi.safetensors")).unwrap();
    let samples = dump.to_f32("input").unwrap();
    for (dtype, bound) in [(DType::F64, 1e-6), (DType::F32, 1e-4)] {
        let mut trainer = Trainer::with_dtype(config(), &Device::Cpu, dtype).unwrap();
        trainer.initialise_from(&Weights::open(golden("mimi/weights/kyutai.safetensors")).unwrap()).unwrap();
        let (step, gradients, stages) = trainer.gradients(&samples).unwrap();
        let codes = dump.to_i32("codes").unwrap();
        let (items, frames) = (dump.view("codes").unwrap().shape[0], dump.view("codes").unwrap().shape[2]);
        for (k, (_, found)) in stages.iter().enumerate() {
            let expected = (0..items).flat_map(|item| &codes[(item * stages.len() + k) * frames..][..frames]);
            assert!(found.to_vec::<i32>().unwrap().iter().eq(expected), "codes of stage {k}");
        }
        let losses = step.losses().unwrap();
        for (found, name) in [(losses.wave, "loss.l1"), (losses.commitment, "loss.commitment")] {
            let expected = dump.to_f32(name).unwrap()[0] as f64;
            assert!((found / expected - 1.0).abs() < bound, "{dtype} {name}: {found}, expected {expected}");
        }
        let mut worst = (0.0, String::new());
        for (parameter, gradient) in trainer.parameters().iter().zip(&gradients) {
            let found = gradient.to_f64().unwrap().iter().map(|&v| v as f32).collect::<Vec<_>>();
            let expected = dump.to_f32(&format!("grad.{}", parameter.spec.name)).unwrap();
            let far = distance(&wide(&parameter.spec.export(&found)), &wide(&expected));
            if far > worst.0 {
                worst = (far, parameter.spec.name.clone());
            }
        }
        println!("{dtype}: {} gradients, the worst off by {:.1e} of its norm ({})", gradients.len(), worst.0, worst.1);
        assert!(worst.0 < bound, "{dtype}: the gradient of {} is off by {:.1e} of its norm", worst.1, worst.0);

        trainer.train(&samples).unwrap();
        for ([usage, sum], book) in trainer.architecture().averages().iter().zip(trainer.codebooks()) {
            for (spec, found) in [(usage, &book.usage), (sum, &book.sum)] {
                let far = distance(&found.to_f64().unwrap(), &wide(&dump.to_f32(&format!("after.{}", spec.name)).unwrap()));
                assert!(far < bound, "{dtype} {}: off by {far:.1e} of its norm", spec.name);
            }
        }
    }
}

fn batch(config: &TrainConfig, seed: u64) -> Vec<f32> {
    let mut rng = SplitMix(seed);
    let samples = config.train.batch * config.train.accumulate * config.crop().unwrap();
    let (pitch, glide) = (200.0 + 100.0 * rng.uniform(), rng.uniform());
    let wave = move |i: usize| {
        let t = i as f64 / 24000.0;
        let angle = std::f64::consts::TAU * pitch * t * (1.0 + glide * t);
        (0.3 * angle.sin() + 0.1 * (3.0 * angle).cos()) as f32
    };
    (0..samples).map(wave).collect()
}

fn train(trainer: &mut Trainer, until: u64) {
    while trainer.step() < until {
        if trainer.needs_codebooks() {
            trainer.initialise_codebooks([batch(trainer.config(), 0)]).unwrap();
        }
        let samples = batch(trainer.config(), trainer.step() % 3);
        trainer.train(&samples).unwrap();
    }
}

#[test]
fn a_mimi_that_was_trained_is_a_mimi_to_others_and_resumes_bit_for_bit() {
    let mut config = config();
    config.loss.mel = 1.0;
    config.codebook = CodebookRules { dropout: 0.5, no_quantization_rate: 0.5, expire_below: 0.1, ..config.codebook };
    let dir = tempfile::tempdir().unwrap();
    let (model, checkpoint) = (dir.path().join("model.safetensors"), dir.path().join("checkpoint.safetensors"));
    let mut trainer = Trainer::new(config.clone(), &Device::Cpu).unwrap();
    train(&mut trainer, 6);
    trainer.save(&checkpoint).unwrap();
    let mut resumed = Trainer::resume(&checkpoint, config.clone(), &Device::Cpu).unwrap();
    train(&mut trainer, 9);
    train(&mut resumed, 9);
    for (a, b) in trainer.parameters().iter().zip(resumed.parameters()) {
        assert_eq!(a.value.to_vec::<f32>().unwrap(), b.value.to_vec::<f32>().unwrap(), "{}", a.spec.name);
    }

    trainer.release(&model).unwrap();
    let (found, kept) = (Codec::open(&model, &Device::Cpu, DType::F32).unwrap(), trainer.codec().unwrap());
    let samples = batch(&config, 3);
    let codes = kept.encode(&samples, kept.codebooks()).unwrap();
    let wave = metrics::waveform(&kept.decode(&codes).unwrap(), &found.decode(&codes).unwrap());
    // Filters of three axes are rounded to bf16.
    assert!(wave.snr_db > 30.0, "{} dB", wave.snr_db);
    // What was released is trained on.
    let mut again = Trainer::new(config, &Device::Cpu).unwrap();
    again.initialise_from(&Weights::open(&model).unwrap()).unwrap();
    assert!(again.has_codebooks());
}

#[test]
fn one_batch_is_learnt_by_heart() {
    let mut config = config();
    config.loss.mel = 1.0;
    let mut trainer = Trainer::new(config.clone(), &Device::Cpu).unwrap();
    let samples = batch(&config, 1);
    let mut losses = Vec::new();
    while trainer.step() < 200 {
        if trainer.needs_codebooks() {
            trainer.initialise_codebooks([samples.clone()]).unwrap();
        }
        losses.push(trainer.train(&samples).unwrap().losses().unwrap());
    }
    let (first, last) = (losses[3].wave, losses[losses.len() - 1].wave);
    println!("wave {first:.4} -> {last:.4}, mel {:.3} -> {:.3}", losses[3].mel, losses[losses.len() - 1].mel);
    assert!(last * 2.0 < first, "wave loss {first} -> {last}");
}

/// Gradients of two batches that are averaged are those of one of twice the size, whatever is drawn for its items, and with discriminators.
#[test]
fn batches_that_are_accumulated_are_one() {
    let mut config = config();
    config.codebook.no_quantization_rate = 0.5;
    let spectra = StftConfig { windows: vec![64], filters: 3, ..StftConfig::default() };
    config.adversarial = Some(Adversarial {
        start: 0,
        every: 1,
        rule: AdversarialRule::ENCODEC,
        discriminators: DiscriminatorConfig { stft: Some(spectra), ..DiscriminatorConfig::default() },
        optimizer: config.optimizer.clone(),
    });
    accumulated(&config, 1e-9);
    // DAC's: the first items, here those of the first part, have fewer stages.
    let rules = CodebookRules { dropout: 0.5, dropout_of: DropoutOf::Items, ..config.codebook.clone() };
    accumulated(&TrainConfig { codebook: rules, ..config.clone() }, 1e-8);
    // A balancer's averages move a part at a time: nearly the same.
    config.balancer = Some(BalancerRules::default());
    accumulated(&config, 0.3);
}

fn accumulated(config: &TrainConfig, bound: f64) {
    let at_once = TrainConfig { train: Schedule { batch: 4, ..config.train.clone() }, ..config.clone() };
    let in_parts = TrainConfig { train: Schedule { batch: 2, accumulate: 2, ..config.train.clone() }, ..config.clone() };
    let file = Weights::open(golden("mimi/weights/kyutai.safetensors")).unwrap();
    let samples = batch(&at_once, 5);
    let [whole, parts] = [at_once, in_parts].map(|config| {
        let mut trainer = Trainer::with_dtype(config, &Device::Cpu, DType::F64).unwrap();
        trainer.initialise_from(&file).unwrap();
        let losses = trainer.train(&samples).unwrap().losses().unwrap();
        (trainer, losses)
    });
    let ((whole, at_once), (parts, in_parts)) = (whole, parts);
    // Of all parts, not of the last.
    for (a, b) in [(at_once.wave, in_parts.wave), (at_once.mel, in_parts.mel), (at_once.commitment, in_parts.commitment)] {
        assert!((a / b - 1.0).abs() < 1e-9, "{at_once:?}, {in_parts:?}");
    }
    let discriminators = [at_once, in_parts].map(|l| l.discriminator.unwrap());
    assert!((discriminators[0] / discriminators[1] - 1.0).abs() < 1e-9, "{discriminators:?}");
    for (a, b) in whole.parameters().iter().zip(parts.parameters()) {
        let far = distance(&a.first_moment.to_f64().unwrap(), &b.first_moment.to_f64().unwrap());
        assert!(far < bound, "{}: off by {far:.1e}", a.spec.name);
    }
    for (a, b) in whole.codebooks().iter().zip(parts.codebooks()) {
        assert!(distance(&a.sum.to_f64().unwrap(), &b.sum.to_f64().unwrap()) < 1e-12);
    }
}

#[test]
fn keys_that_a_mimi_has_not_are_refused() {
    for (toml, why) in [
        ("model = \"m\"\n[mimi]\nnum_filter = 3", "num_filter"),
        ("model = \"m\"\n[mimi]\nnum_quantizers = 1", "num_quantizers"),
        ("model = \"mimi\"\n[codebook]\nno_quantization_rate = 1.5", "no_quantization_rate"),
        ("model = \"mimi\"\n[train]\naccumulate = 0", "accumulate"),
        ("model = \"mimi\"\n[balancer]\ndecay = 1.0", "balancer"),
        ("model = \"mimi\"\n[optimizer]\nbeta1 = 1.0", "betas"),
        ("model = \"m\"\n[mimi]\nhidden_size = 8192\nintermediate_size = 65536\nnum_hidden_layers = 128", "parameters, expected"),
        ("model = \"te50\"\n[train]\nbatch = 2048\naccumulate = 1024\ncrop_frames = 1024", "2^26"),
        ("model = \"te50\"\n[train]\ngain_db = [5.0, -5.0]", "gain_db"),
        ("model = \"te50\"\n[loss]\nmel = 0.0\nwave = 0.0\n[balancer]", "balancer: no loss"),
        (
            "model = \"te50\"\n[train]\ncrop_frames = 4\n[adversarial]\nrule = { form = \"hinge\", reduction = \"mean\" }\n\
             [adversarial.discriminators]\nstft = { windows = [2048] }",
            "discriminators want 2048",
        ),
    ] {
        let error = TrainConfig::from_toml(toml).unwrap_err().to_string();
        assert!(error.contains(why) && !error.contains('\n'), "{toml}: {error}");
    }
    assert!(TrainConfig::from_toml("model = \"mimi\"\n[mimi]\nnum_quantizers = 8\nframe_rate = 12.5").is_ok());
}
