//! An EnCodec and a SNAC in training: a step's losses, gradients and moving averages are PyTorch's (verify/reference/training_step.py),
//! and what is released is read again.

use std::path::{Path, PathBuf};

use swara_engine::codec::{Codec, Noise, encodec, snac};
use swara_engine::metrics;
use swara_engine::train::{
    CodebookRules, Distillation, DropoutOf, Examples, LossWeights, Optimizer, Schedule, Teacher, TrainConfig, Trainer,
};
use swara_kernels::case::SplitMix;
use swara_kernels::{DType, Device, Tensor};
use swara_loader::dataset::TeacherRows;
use swara_loader::weights::Weights;

const BOUNDS: [(DType, f64); 2] = [(DType::F64, 1e-8), (DType::F32, 1e-4)];

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../verify/golden").join(path)
}

/// A dump in doubles.
struct Dump(Weights);

impl Dump {
    fn open(name: &str) -> Dump {
        Dump(Weights::open(golden(&format!("gradients/{name}.safetensors"))).unwrap())
    }

    fn shape(&self, name: &str) -> Vec<usize> {
        self.0.view(name).unwrap().shape.to_vec()
    }

    fn values(&self, name: &str) -> Vec<f64> {
        self.0.view(name).unwrap().bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn input(&self) -> Vec<f32> {
        self.0.to_f32("input").unwrap().into_owned()
    }
}

fn distance(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let error: f64 = found.iter().zip(expected).map(|(a, b)| (a - b) * (a - b)).sum();
    match expected.iter().map(|e| e * e).sum::<f64>().sqrt() {
        // A direction in one dimension has a gradient of zero, and of rounding.
        norm if norm < 1e-12 => error.sqrt(),
        norm => error.sqrt() / norm,
    }
}

/// Small models of the shapes that are stored.
fn shape(family: &str, case: &str) -> TrainConfig {
    let text = std::fs::read_to_string(golden(&format!("{family}/weights/{case}/config.json"))).unwrap();
    let mut config = TrainConfig::new("small", None);
    match family {
        "encodec" => config.encodec = Some(encodec::Config::from_json(&text).unwrap()),
        _ => config.snac = Some(snac::Config::from_json(&text).unwrap()),
    }
    config
}

/// As the dumps have it: nothing is drawn.
fn config(family: &str, case: &str, samples: usize) -> TrainConfig {
    let shape = shape(family, case);
    let hop = shape.architecture().unwrap().model().unwrap().format.hop;
    let mut config = TrainConfig {
        train: Schedule { batch: 2, crop_frames: samples / hop, ..Schedule::default() },
        optimizer: Optimizer { learning_rate: 1e-3, warmup: 10, ..Optimizer::default() },
        loss: LossWeights { mel: 0.0, mel_scales: vec![(5, 32)], wave: 10.0, msspec: 2.0, commitment: 0.25, ..LossWeights::default() },
        ..shape
    };
    config.codebook.dropout = 0.0;
    if family == "encodec" {
        config.loss.commitment = 0.5;
        config.codebook = CodebookRules { start: 0, kmeans_batches: 1, expire_below: 0.0, dropout: 0.0, ..CodebookRules::default() };
    }
    config
}

fn loss(dtype: DType, bound: f64, dump: &Dump, name: &str, found: f64) {
    let expected = dump.values(name)[0];
    assert!((found / expected - 1.0).abs() < bound, "{dtype} {name}: {found}, expected {expected}");
}

/// How many gradients the dump has; all must be there.
fn gradients(dtype: DType, bound: f64, dump: &Dump, trainer: &Trainer, found: &[Tensor]) -> usize {
    let (mut worst, mut count) = ((0.0, String::new()), 0);
    for (parameter, gradient) in trainer.parameters().iter().zip(found) {
        let name = format!("grad.{}", parameter.spec.name);
        if !dump.0.contains(&name) {
            continue;
        }
        // The dump's order is the published one.
        let expected = dump.values(&name);
        let order: Vec<f32> = (0..expected.len()).map(|i| i as f32).collect();
        let expected: Vec<f64> = parameter.spec.import(&order).iter().map(|&i| expected[i as usize]).collect();
        let far = distance(&gradient.to_f64().unwrap(), &expected);
        count += 1;
        if far > worst.0 {
            worst = (far, name);
        }
    }
    println!("{dtype}: {count} gradients, the worst off by {:.1e} of its norm ({})", worst.0, worst.1);
    assert!(worst.0 < bound, "{dtype}: {} is off by {:.1e} of its norm", worst.1, worst.0);
    assert_eq!(count, dump.0.names().filter(|name| name.starts_with("grad.")).count());
    count
}

#[test]
fn a_step_of_an_encodec_is_that_of_its_package() {
    let dump = Dump::open("encodec_step");
    let samples = dump.input();
    let used = dump.shape("codes")[1];
    let file = Weights::open(golden("encodec/weights/24khz")).unwrap();
    for (dtype, bound) in BOUNDS {
        let mut config = config("encodec", "24khz", dump.shape("input")[2]);
        // One bitrate of all is always drawn: that of the dump.
        let shape = config.encodec.as_mut().unwrap();
        let (bandwidths, stages) = (shape.target_bandwidths.clone(), shape.bandwidths());
        config.codebook = CodebookRules { dropout: 1.0, dropout_of: DropoutOf::Bandwidths, ..config.codebook };
        let at = stages.iter().position(|&n| n == used).unwrap();
        config.encodec.as_mut().unwrap().target_bandwidths =
            vec![bandwidths[at]; 7].into_iter().chain(bandwidths.last().copied()).collect();
        let mut trainer = Trainer::with_dtype(config, &Device::Cpu, dtype).unwrap();
        trainer.initialise_from(&file).unwrap();
        let (step, found, stages) = trainer.gradients(&samples).unwrap();
        let codes = dump.0.to_i32("codes").unwrap();
        let [items, _, frames] = dump.shape("codes")[..] else { panic!() };
        assert_eq!(stages.len(), used);
        for (k, (_, found)) in stages.iter().enumerate() {
            let expected = (0..items).flat_map(|item| &codes[(item * used + k) * frames..][..frames]);
            assert!(found.to_vec::<i32>().unwrap().iter().eq(expected), "codes of stage {k}");
        }
        let losses = step.losses().unwrap();
        loss(dtype, bound, &dump, "loss.l1", losses.wave);
        loss(dtype, bound, &dump, "loss.msspec", losses.msspec);
        loss(dtype, bound, &dump, "loss.commitment", losses.commitment);
        assert_eq!(gradients(dtype, bound, &dump, &trainer, &found), trainer.parameters().len());

        trainer.train(&samples).unwrap();
        for (k, book) in trainer.codebooks().iter().enumerate() {
            let embedding = book.embedding().unwrap();
            for (part, found) in [("cluster_size", &book.usage), ("embed_avg", &book.sum), ("embed", &embedding)] {
                let far = distance(&found.to_f64().unwrap(), &dump.values(&format!("after.quantizer.layers.{k}.codebook.{part}")));
                assert!(far < bound, "{dtype} {part} of stage {k}: off by {far:.1e} of its norm");
            }
        }
    }
}

#[test]
fn a_step_of_a_snac_is_that_of_its_package() {
    for case in ["24khz", "32khz"] {
        let dump = Dump::open(&format!("snac_step.{case}"));
        let samples = dump.input();
        for (dtype, bound) in BOUNDS {
            let mut trainer = Trainer::with_dtype(config("snac", case, dump.shape("input")[2]), &Device::Cpu, dtype).unwrap();
            trainer.initialise_from(&Weights::open(golden(&format!("snac/weights/{case}"))).unwrap()).unwrap();
            let noise = (0..).map_while(|n| {
                let name = format!("noise.{n}");
                let shape = dump.0.contains(&name).then(|| dump.shape(&name))?;
                Some(Tensor::from_slice(&Device::Cpu, &dump.0.to_f32(&name).unwrap(), [shape[0], shape[2], 1]).unwrap())
            });
            trainer.set_noise(Noise::Given(noise.collect()));
            let (step, found, stages) = trainer.gradients(&samples).unwrap();
            for (k, (_, found)) in stages.iter().enumerate() {
                assert_eq!(found.to_vec::<i32>().unwrap()[..], dump.0.to_i32(&format!("codes_{k}")).unwrap()[..], "codes of stage {k}");
            }
            let losses = step.losses().unwrap();
            loss(dtype, bound, &dump, "loss.l1", losses.wave);
            loss(dtype, bound, &dump, "loss.msspec", losses.msspec);
            loss(dtype, bound, &dump, "loss.commitment", losses.commitment);
            loss(dtype, bound, &dump, "loss.codebook", losses.codebook);
            let count = gradients(dtype, bound, &dump, &trainer, &found);
            assert!(case != "24khz" || count == trainer.parameters().len());
        }
    }
}

fn batch(trainer: &Trainer, seed: u64) -> Vec<f32> {
    let mut rng = SplitMix(seed);
    let samples = trainer.config().train.batch * trainer.config().train.accumulate * trainer.crop();
    let pitch = 200.0 + 100.0 * rng.uniform();
    let wave = |i: usize| {
        let angle = std::f64::consts::TAU * pitch * i as f64 / f64::from(trainer.sample_rate());
        (0.3 * angle.sin() + 0.1 * (3.0 * angle).cos()) as f32
    };
    (0..samples).map(wave).collect()
}

fn train(trainer: &mut Trainer, until: u64) {
    while trainer.step() < until {
        if trainer.needs_codebooks() {
            trainer.initialise_codebooks([batch(trainer, 0)]).unwrap();
        }
        let samples = batch(trainer, trainer.step() % 3);
        let labels = trainer.teacher_frames().map(|[frames, _]| {
            let labels = samples.len() / trainer.crop() * frames;
            TeacherRows::Labels((0..labels as i32).map(|i| i % 4 - 1).collect())
        });
        let taught = trainer.train_on(Examples { samples: &samples, targets: &samples, rows: labels.as_ref() }).unwrap();
        assert!(taught.losses().unwrap().teacher.is_none_or(|loss| loss > 0.0));
    }
}

/// What `shape` trains to is one of its kind to others, and a run that was stopped goes on as if it had not been: whatever is drawn.
fn trains(family: &str, case: &str) {
    let samples = if case == "32khz" { 6 * 64 } else { 960 };
    let mut config = config(family, case, samples);
    config.codebook.dropout = 1.0;
    // A teacher's projection is not published.
    let rate = 2.0 * f64::from(Trainer::new(config.clone(), &Device::Cpu).unwrap().sample_rate()) / samples as f64;
    config.teacher = Some(Teacher { classes: Some(3), rate: Some(rate), ..Teacher::new(Distillation::Clusters) });
    config.codebook.dropout_of = if family == "encodec" { DropoutOf::Bandwidths } else { DropoutOf::Items };
    if family == "encodec" {
        config.codebook = CodebookRules { expire_count: 0.5, check_every: 1, ..config.codebook };
    }
    let config = TrainConfig::from_toml(&toml::to_string(&config).unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (model, checkpoint) = (dir.path().join("model.safetensors"), dir.path().join("checkpoint.safetensors"));
    let mut trainer = Trainer::new(config.clone(), &Device::Cpu).unwrap();
    train(&mut trainer, 5);
    trainer.save(&checkpoint).unwrap();
    let mut resumed = Trainer::resume(&checkpoint, config.clone(), &Device::Cpu).unwrap();
    train(&mut trainer, 8);
    train(&mut resumed, 8);
    for (a, b) in trainer.parameters().iter().zip(resumed.parameters()) {
        assert_eq!(a.value.to_vec::<f32>().unwrap(), b.value.to_vec::<f32>().unwrap(), "{family} {case} {}", a.spec.name);
    }

    trainer.release(&model).unwrap();
    std::fs::remove_file(&checkpoint).unwrap();
    let kept = trainer.codec().unwrap();
    // By its metadata, or by the configuration that others read.
    for path in [&model, dir.path()] {
        let found = Codec::open(path, &Device::Cpu, DType::F32).unwrap();
        let samples = batch(&trainer, 3);
        let codes = kept.encode(&samples, kept.codebooks()).unwrap();
        assert_eq!(found.encode(&samples, found.codebooks()).unwrap(), codes, "{family} {case}");
        let wave = metrics::waveform(&kept.decode(&codes).unwrap(), &found.decode(&codes).unwrap());
        assert!(wave.snr_db > 90.0, "{family} {case}: {} dB", wave.snr_db);
    }
    let mut again = Trainer::new(config, &Device::Cpu).unwrap();
    again.initialise_from(&Weights::open(&model).unwrap()).unwrap();
    assert!(again.has_codebooks());
    let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-5 * b.abs().max(1e-3));
    for (a, b) in again.codebooks().iter().zip(trainer.codebooks()) {
        let [a, b] = [a, b].map(|book| book.embedding().unwrap().to_vec::<f32>().unwrap());
        assert!(near(&a, &b), "{family} {case}");
    }
    train(&mut again, 1);
}

#[test]
fn what_was_trained_is_published_and_resumes_bit_for_bit() {
    trains("encodec", "24khz");
    trains("snac", "24khz");
    trains("snac", "32khz");
}

#[test]
fn noise_is_drawn_anew_for_every_step_and_item_and_is_the_same_again() {
    let mut config = config("snac", "24khz", 960);
    config.optimizer.learning_rate = 0.0;
    config.train.average = 0.0;
    let trainer = || {
        let mut trainer = Trainer::new(config.clone(), &Device::Cpu).unwrap();
        trainer.initialise_from(&Weights::open(golden("snac/weights/24khz")).unwrap()).unwrap();
        trainer
    };
    let (mut a, mut b) = (trainer(), trainer());
    let one = batch(&a, 1)[..960].to_vec();
    let samples = one.repeat(2);
    let run = |trainer: &mut Trainer| trainer.train(&samples).unwrap().output.to_vec::<f32>().unwrap();
    let (first, second) = (run(&mut a), run(&mut a));
    assert_ne!(first[..960], first[960..]);
    assert_ne!(first, second);
    assert_eq!(first, run(&mut b));
    // A second part of a step goes on where the first ended.
    config.train.batch = 1;
    config.train.accumulate = 2;
    let mut parts = Trainer::new(config.clone(), &Device::Cpu).unwrap();
    parts.initialise_from(&Weights::open(golden("snac/weights/24khz")).unwrap()).unwrap();
    assert_eq!(parts.train(&samples).unwrap().output.to_vec::<f32>().unwrap(), first[960..]);
}

#[test]
fn configurations_that_cannot_be_trained_are_refused() {
    for (toml, why) in [
        ("model = \"m\"\n[encodec]\nnorm_type = \"time_group_norm\"", "has no gradient"),
        ("model = \"m\"\n[encodec]\naudio_channels = 2", "audio_channels = 1"),
        ("model = \"m\"\n[encodec]\nnum_filter = 3", "encodec: unknown key \"num_filter\""),
        ("model = \"m\"\n[snac]\nencoder_dims = 3", "snac: unknown key \"encoder_dims\""),
        ("model = \"m\"\n[encodec]\n[snac]", "one of them"),
        ("model = \"m\"\n[snac]\n[train]\ncrop_frames = 3", "whole windows"),
        ("model = \"m\"\n[snac]\nattn_window_size = 0\n[train]\ncrop_frames = 2\n[codebook]\nstart = 3", "learnt by gradient"),
        ("model = \"te50\"\n[codebook]\ndropout_of = \"bandwidths\"", "bandwidths"),
        ("model = \"encodec\"\n[codebook]\nexpire_count = -1.0", "expire_count"),
        ("model = \"encodec\"\n[loss]\nmsspec = -1.0", "loss weights"),
    ] {
        let error = TrainConfig::from_toml(toml).unwrap_err().to_string();
        assert!(error.contains(why) && !error.contains('\n'), "{toml}: {error}");
    }
    let windowless = TrainConfig::from_toml("model = \"m\"\n[snac]\nattn_window_size = 0").unwrap();
    assert_eq!(windowless.snac.as_ref().unwrap().attn_window_size, None);
    assert_eq!(TrainConfig::from_toml(&toml::to_string(&windowless).unwrap()).unwrap(), windowless);
    assert!(TrainConfig::from_toml("model = \"encodec\"").is_ok());
}
