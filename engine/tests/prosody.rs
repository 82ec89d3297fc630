//! A codec whose decoder is modulated by prosody that it hears in the codes: as it is without where it begins, over streams as whole, from
//! its file, and learning.

mod common;

use std::path::Path;

use swara_engine::codec::{Codec, Config, METADATA_CONFIG, Naming, ProsodyConfig, QuantizerKind, convert};
use swara_engine::train::{CodebookRules, LossWeights, Losses, Optimizer, ProsodyRules, Schedule, TrainConfig, Trainer};
use swara_kernels::case::SplitMix;
use swara_kernels::{DType, Device};
use swara_loader::weights::{TensorRef, Weights, save};

fn tiny(prosody: Option<ProsodyRules>, quantizer: QuantizerKind) -> TrainConfig {
    let codec = Config {
        sample_rate: 8000,
        encoder_widths: vec![4, 8, 12],
        decoder_widths: vec![12, 8, 4],
        strides: vec![8, 10],
        dilations: vec![1],
        latent: 16,
        causal: true,
        quantizer,
        codebook_dim: 8,
        codebook_sizes: vec![32, 16],
        transformer: None,
        prosody: None,
    };
    TrainConfig {
        train: Schedule { steps: 200, batch: 2, crop_frames: 24, ..Schedule::default() },
        optimizer: Optimizer { learning_rate: 3e-3, warmup: 10, ..Optimizer::default() },
        loss: LossWeights { mel: 1.0, wave: 10.0, mel_scales: vec![(5, 32), (20, 128)], ..LossWeights::default() },
        codebook: CodebookRules { start: 5, kmeans_batches: 1, kmeans_iterations: 5, dropout: 0.0, ..CodebookRules::default() },
        prosody,
        ..TrainConfig::new("tiny", Some(codec))
    }
}

fn rules() -> ProsodyRules {
    ProsodyRules { width: 12, units: 1, ..ProsodyRules::default() }
}

/// Harmonics of a pitch, or nothing, by turns.
fn batch(config: &TrainConfig, seed: u64) -> Vec<f32> {
    let crop = config.crop().unwrap();
    let mut rng = SplitMix(seed);
    let mut samples = Vec::new();
    for _ in 0..config.train.batch {
        let (pitch, loud, breath) = (90.0 + 200.0 * rng.uniform(), 0.05 + 0.4 * rng.uniform(), crop / 4 + (rng.next() % 500) as usize);
        for i in 0..crop {
            let angle = std::f64::consts::TAU * pitch * i as f64 / 8000.0;
            let tone = (1..6).map(|h| (angle * h as f64).sin() / h as f64).sum::<f64>();
            samples.push((if i > breath { loud * tone } else { 0.02 * (rng.uniform() - 0.5) }) as f32);
        }
    }
    samples
}

fn train(trainer: &mut Trainer, steps: u64) -> Vec<Losses> {
    let until = trainer.step() + steps;
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

/// Output and losses of a first step, quantised.
fn first(prosody: Option<ProsodyRules>, quantizer: QuantizerKind) -> (Vec<u32>, Losses) {
    let mut trainer = Trainer::new(tiny(prosody, quantizer), &Device::Cpu).unwrap();
    let samples = batch(trainer.config(), 1);
    if quantizer == QuantizerKind::Ema {
        trainer.initialise_codebooks([samples.clone()]).unwrap();
    }
    let step = trainer.train(&samples).unwrap();
    (step.output.to_vec::<f32>().unwrap().iter().map(|v| v.to_bits()).collect(), step.losses().unwrap())
}

#[test]
fn a_run_starts_as_one_without() {
    for quantizer in [QuantizerKind::Ema, QuantizerKind::Factorised] {
        let [plain, modulated] = [None, Some(rules())].map(|prosody| first(prosody, quantizer));
        assert_eq!(plain.0, modulated.0);
        assert_eq!(plain.1.mel.to_bits(), modulated.1.mel.to_bits());
        assert!(plain.1.prosody == [None; 3] && modulated.1.prosody.iter().all(|loss| loss.is_some_and(|l| l > 0.0)));
    }
}

/// Two hundred steps, of which the last twenty are better than the first five; without its losses, hearing does not improve.
#[test]
fn prosody_is_learnt_where_it_is_supervised() {
    let mean = |losses: &[Losses]| {
        let mut mean = [0.0; 3];
        losses.iter().for_each(|l| mean.iter_mut().zip(l.prosody).for_each(|(m, l)| *m += l.unwrap() / losses.len() as f64));
        mean
    };
    let ran = |rules: ProsodyRules| {
        let mut trainer = Trainer::new(tiny(Some(rules), QuantizerKind::Ema), &Device::Cpu).unwrap();
        let losses = train(&mut trainer, 200);
        assert!(losses.iter().all(|l| l.gradient_norm.is_finite() && l.prosody.iter().flatten().all(|l| l.is_finite())));
        (mean(&losses[..5]), mean(&losses[180..]), trainer)
    };
    let (first, last, trainer) = ran(rules());
    let (_, deaf, _) = ran(ProsodyRules { f0: 0.0, voicing: 0.0, energy: 0.0, ..rules() });
    println!("f0, voicing, energy: {first:.3?} became {last:.3?}, unsupervised {deaf:.3?}");
    for i in 0..3 {
        assert!(last[i] < 0.75 * first[i] && last[i] < 0.75 * deaf[i], "{i}: {first:?} became {last:?}, unsupervised {deaf:?}");
    }

    // What was learnt modulates, and is in the file.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    trainer.release(&path).unwrap();
    let gamma = Weights::open(&path).unwrap().to_f32("decoder.prosody.gamma.weight").unwrap().iter().map(|v| v.abs()).fold(0.0, f32::max);
    assert!(gamma > 1e-3, "{gamma}");
    for device in [Device::Cpu, Device::open("emulator").unwrap()] {
        let codec = Codec::open(&path, &device, DType::F32).unwrap();
        assert_eq!(codec.layers().filter(|layer| layer.name() == "decoder.prosody").count(), 1);
        assert_eq!(common::streaming_error(&codec, 23), 0.0, "on {device:?}");
    }
    refused_by_others(&path);
    lies_are_refused(&path);
    resumes(&trainer, dir.path());
    starts_from_models(&path);
}

fn refused_by_others(path: &Path) {
    let error = convert(&Weights::open(path).unwrap(), Naming::HuggingFace).err().unwrap().to_string();
    assert!(error.contains("modulated by prosody") && error.contains("model.safetensors") && !error.contains('\n'), "{error}");
}

/// Files whose tensors are not those of what they say, and shapes that no file may ask for.
fn lies_are_refused(path: &Path) {
    type Tensors = Vec<(String, Vec<usize>, Vec<f32>)>;
    let file = Weights::open(path).unwrap();
    let tensor = |name: &str| (name.to_owned(), file.view(name).unwrap().shape.to_vec(), file.to_f32(name).unwrap().into_owned());
    let tensors: Tensors = file.names().map(tensor).collect();
    let lie = path.with_file_name("lie.safetensors");
    let write = |tensors: &Tensors, said: [&str; 2]| {
        let refs: Vec<TensorRef> = tensors.iter().map(|(n, s, v)| TensorRef::f32(n, s, v)).collect();
        let mut metadata = file.metadata().clone();
        let config = metadata.get_mut(METADATA_CONFIG).unwrap();
        assert!(config.contains(said[0]), "{config}");
        *config = config.replace(said[0], said[1]);
        save(&lie, &refs, &metadata).unwrap();
    };
    let start = |prosody| {
        let mut trainer = Trainer::new(tiny(prosody, QuantizerKind::Ema), &Device::Cpu).unwrap();
        trainer.initialise_from(&Weights::open(&lie).unwrap()).err().map(|e| e.to_string())
    };
    let refused = |error: String, why: &str| {
        assert!(error.contains(why) && error.contains("lie.safetensors") && !error.contains('\n'), "{why}: {error}");
    };
    let open = || Codec::open(&lie, &Device::Cpu, DType::F32).err().unwrap().to_string();
    let (truth, of) = (["sample_rate"; 2], |name: &str| name.starts_with("decoder.prosody."));
    let without: Tensors = tensors.iter().filter(|(name, ..)| !of(name)).cloned().collect();
    let one_less: Tensors = tensors.iter().filter(|(name, ..)| name != "decoder.prosody.beta.weight").cloned().collect();
    let mut narrow = tensors.clone();
    let (_, shape, values) = narrow.iter_mut().find(|(name, ..)| name == "decoder.prosody.predict.features.weight").unwrap();
    *shape = vec![3, shape[1], shape[2]];
    values.truncate(shape.iter().product());
    for (tensors, why) in [(&without, "decoder.prosody."), (&one_less, "decoder.prosody.beta.weight"), (&narrow, "predict.features.weight")]
    {
        write(tensors, truth);
        refused(open(), why);
        refused(start(Some(rules())).unwrap(), why);
    }
    for (said, why) in [
        (["\"units\":1", "\"units\":7"], "prosody.units"),
        (["\"width\":12", "\"width\":18446744073709551615"], "prosody.width"),
        (["\"width\":12", "\"width\":0"], "prosody.width"),
        (["\"width\":12", "\"width\":-1"], "-1"),
    ] {
        write(&tensors, said);
        let error = open();
        assert!(error.contains(why) && !error.contains('\n'), "{why}: {error}");
    }
    // Nor is what a run has no use for passed over.
    write(&tensors, truth);
    assert_eq!(start(Some(rules())), None);
    refused(start(None).unwrap(), "decoder.prosody.");
}

fn resumes(trainer: &Trainer, dir: &Path) {
    let path = dir.join("checkpoint.safetensors");
    trainer.save(&path).unwrap();
    let again = Trainer::resume(&path, trainer.config().clone(), &Device::Cpu).unwrap();
    for (a, b) in trainer.parameters().iter().zip(again.parameters()) {
        assert_eq!(a.value.to_f64().unwrap(), b.value.to_f64().unwrap(), "{}", a.spec.name);
    }
    let weights = Some(ProsodyRules { f0: 1.0, voicing: 0.0, energy: 2.0, ..rules() });
    Trainer::resume(&path, TrainConfig { prosody: weights, ..trainer.config().clone() }, &Device::Cpu).unwrap();
    let config = TrainConfig { prosody: Some(ProsodyRules { width: 13, ..rules() }), ..trainer.config().clone() };
    assert!(Trainer::resume(&path, config, &Device::Cpu).err().unwrap().to_string().contains("another codec"));
    let config = TrainConfig { prosody: None, ..trainer.config().clone() };
    assert!(Trainer::resume(&path, config, &Device::Cpu).err().unwrap().to_string().contains("another codec"));
}

/// Of either kind: what has no modulation has one that does nothing, until it learns.
fn starts_from_models(modulated: &Path) {
    let samples = batch(&tiny(None, QuantizerKind::Ema), 3);
    let decoded = |path: &Path, config: TrainConfig| {
        let mut trainer = Trainer::new(config, &Device::Cpu).unwrap();
        trainer.initialise_from(&Weights::open(path).unwrap()).unwrap();
        let codec = trainer.codec().unwrap();
        codec.decode(&codec.encode(&samples, 2).unwrap()).unwrap()
    };
    let published = Codec::open(modulated, &Device::Cpu, DType::F32).unwrap();
    let expected = published.decode(&published.encode(&samples, 2).unwrap()).unwrap();
    let found = decoded(modulated, tiny(Some(rules()), QuantizerKind::Ema));
    let worst = expected.iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-5, "{worst}");

    let mut plain = Trainer::new(tiny(None, QuantizerKind::Ema), &Device::Cpu).unwrap();
    train(&mut plain, 8);
    let path = modulated.with_file_name("plain.safetensors");
    plain.release(&path).unwrap();
    let text = std::fs::read(&path).unwrap();
    assert!(!text.windows(7).any(|part| part == b"prosody"), "a model without modulation says something of it");
    let [without, with] = [None, Some(rules())].map(|prosody| decoded(&path, tiny(prosody, QuantizerKind::Ema)));
    assert_eq!(without, with);
}

/// Of silence there is no pitch, and a step is one nevertheless.
#[test]
fn silence_has_no_pitch_to_learn() {
    let mut trainer = Trainer::new(tiny(Some(rules()), QuantizerKind::Factorised), &Device::Cpu).unwrap();
    let step = trainer.train(&vec![0.0; 2 * trainer.config().crop().unwrap()]).unwrap();
    let losses = step.losses().unwrap();
    let [pitch, voicing, energy] = losses.prosody;
    assert!(pitch.is_none() && [voicing, energy].iter().all(|loss| loss.is_some_and(f64::is_finite)), "{losses:?}");
    assert!(losses.gradient_norm.is_finite());
}

#[test]
fn tables_that_mean_nothing_are_refused() {
    let codec = toml::to_string(&tiny(None, QuantizerKind::Ema)).unwrap();
    TrainConfig::from_toml(&format!("{codec}\n[prosody]\n")).unwrap();
    for (text, why) in [
        (format!("{codec}\n[prosody]\nwidth = 0\n"), "prosody.width"),
        (format!("{codec}\n[prosody]\nwidth = 100000\n"), "prosody.width"),
        (format!("{codec}\n[prosody]\nunits = 7\n"), "prosody.units"),
        (format!("{codec}\n[prosody]\nf0 = -1.0\n"), "prosody: weights"),
        (format!("{codec}\n[prosody]\nenergy = nan\n"), "prosody: weights"),
        (format!("{codec}\n[prosody]\npitch = 1.0\n"), "unknown field `pitch`"),
        // 25 ms and the longest lag.
        (format!("{}\n[prosody]\n", codec.replace("crop_frames = 24", "crop_frames = 4")), "crops of 320 samples, pitch is heard in"),
        (
            format!("{}\n[prosody]\n", codec.replace("strides = [8, 10]", "strides = [64, 1]").replace("causal = true", "causal = false")),
            "crops of 24 frames, of which the encoder makes 25",
        ),
        ("model = \"mimi\"\n[prosody]\n".into(), "of swara's own alone"),
    ] {
        let error = TrainConfig::from_toml(&text).err().unwrap().to_string();
        assert!(error.contains(why), "{text}: {error}");
    }
    let mut config = tiny(None, QuantizerKind::Ema);
    if let Some(codec) = &mut config.codec {
        codec.prosody = Some(ProsodyConfig { width: 8, units: 1 });
    }
    assert!(config.architecture().err().unwrap().to_string().contains("[prosody] says its shape"));
}
