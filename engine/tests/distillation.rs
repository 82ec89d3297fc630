//! A teacher in training: PyTorch's losses and gradients (verify/reference/distillation.py), runs that are interrupted, and what is learnt.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::rc::Rc;

use serde_json::Value;
use swara_engine::codec::Config;
use swara_engine::tape::{Tape, Var};
use swara_engine::train::{
    CodebookRules, Distillation, Examples, LossWeights, Optimizer, Recording, Schedule, Start, Teacher, TrainConfig, Trainer, run,
};
use swara_kernels::case::SplitMix;
use swara_kernels::ops::elementwise;
use swara_kernels::{DType, Device, Shape, Tensor};
use swara_loader::audio::{WavFormat, write};
use swara_loader::dataset::{self, Dataset, TeacherCache, TeacherOutput, TeacherRows};
use swara_loader::weights::Weights;

/// Values that were stored as two numbers of f32.
fn exact(dump: &Weights, name: &str) -> Vec<f64> {
    let (high, low) = (dump.to_f32(name).unwrap(), dump.to_f32(&format!("{name}.low")).unwrap());
    high.iter().zip(low.iter()).map(|(&high, &low)| f64::from(high) + f64::from(low)).collect()
}

fn distance(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let error: f64 = found.iter().zip(expected).map(|(a, b)| (a - b) * (a - b)).sum();
    (error / expected.iter().map(|e| e * e).sum::<f64>()).sqrt()
}

#[test]
fn losses_and_gradients_are_those_of_pytorch() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../verify/golden/distillation");
    let mut count = 0;
    for entry in std::fs::read_dir(golden).unwrap() {
        let dump = Weights::open(entry.unwrap().path()).unwrap();
        let case: Value = serde_json::from_str(&dump.metadata()["case"]).unwrap();
        let (teacher, pool): (Teacher, _) = (serde_json::from_value(case["teacher"].clone()).unwrap(), case["pool"].as_u64().unwrap());
        let rows = match dump.contains("labels") {
            true => TeacherRows::Labels(dump.to_i32("labels").unwrap().into_owned()),
            false => TeacherRows::Features(dump.to_f32("features").unwrap().into_owned()),
        };
        for (dtype, bound) in [(DType::F64, 1e-10), (DType::F32, 1e-5)] {
            let tape = Tape::new();
            let leaf = |name: &str| {
                let shape = Shape::try_from(dump.view(name).unwrap().shape).unwrap();
                let x = Tensor::from_slice(&Device::Cpu, &dump.to_f32(name).unwrap(), shape).unwrap();
                tape.leaf(Rc::new(elementwise::convert(&x, dtype).unwrap()))
            };
            let q = leaf("q");
            let parameters = BTreeMap::from([("teacher.weight".to_owned(), leaf("weight")), ("teacher.bias".to_owned(), leaf("bias"))]);
            let recording = Recording { tape: &tape, parameters: &parameters };
            let found: Var = teacher.record(&recording, &q, pool as usize, &rows, None, 1.0).unwrap().unwrap();
            let mut worst = distance(&found.value().to_f64().unwrap(), &exact(&dump, "value"));
            let mut gradients = tape.backward().unwrap();
            for (name, leaf) in [("dq", &q), ("dweight", &parameters["teacher.weight"]), ("dbias", &parameters["teacher.bias"])] {
                worst = worst.max(distance(&gradients.take(leaf).unwrap().to_f64().unwrap(), &exact(&dump, name)));
            }
            println!("{} {dtype}: off by {worst:.1e}", case["name"]);
            assert!(worst < bound, "{} {dtype}: off by {worst:.1e}", case["name"]);
            count += 1;
        }
    }
    assert_eq!(count, 12);
}

/// A prediction or a feature of zeros: PyTorch's cosine has 1e-8 in place of its norm.
#[test]
fn silence_is_like_nothing() {
    // Of two crops of three frames the first is silent, and of the other the teacher's first number.
    let q = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5, -0.1, 0.2, 0.4, -0.3, 0.6];
    let features = [0.3, -0.2, 0.5, 0.1, -0.4, 0.7, 0.0, 0.2, 0.0, -0.6, 0.0, 0.3];
    let record = |loss: Distillation, dtype: DType| {
        let tape = Tape::new();
        let leaf = |values: &[f64], shape: Shape| tape.leaf(Rc::new(Tensor::from_f64(&Device::Cpu, dtype, values, shape).unwrap()));
        let q = leaf(&q, [2, 3, 2].into());
        let parameters = BTreeMap::from([
            ("teacher.weight".to_owned(), leaf(&[1.0, 0.0, 0.0, 1.0], [2, 2].into())),
            ("teacher.bias".to_owned(), leaf(&[0.0; 2], [2].into())),
        ]);
        let rows = TeacherRows::Features(features.map(|v: f64| v as f32).to_vec());
        let recording = Recording { tape: &tape, parameters: &parameters };
        let value = Teacher::new(loss).record(&recording, &q, 1, &rows, None, 1.0).unwrap().unwrap().value().to_f64().unwrap()[0];
        (value, tape.backward().unwrap().take(&q).unwrap().to_f64().unwrap())
    };
    for loss in [Distillation::Cosine, Distillation::Mse, Distillation::SpeechtokenizerT, Distillation::SpeechtokenizerD] {
        for dtype in [DType::F64, DType::F32] {
            let (value, gradient) = record(loss, dtype);
            assert!(value.is_finite() && gradient.iter().all(|g| g.is_finite()), "{loss:?} {dtype}: {value}, {gradient:?}");
        }
    }
    for (dtype, bound) in [(DType::F64, 1e-6), (DType::F32, 1e-5)] {
        let (value, gradient) = record(Distillation::SpeechtokenizerD, dtype);
        let column = |x: &[f64], item: usize, d: usize| [0, 1, 2].map(|t| x[item * 6 + t * 2 + d]);
        let product = |a: [f64; 3], b: [f64; 3]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let [p, g] = [&q, &features].map(|x| column(&x[..], 1, 1));
        let cosine = product(p, g) / (product(p, p) * product(g, g)).sqrt();
        let expected = (3.0 * 2f64.ln() + (1.0 + (-cosine).exp()).ln()) / 4.0;
        assert!((value / expected - 1.0).abs() < bound, "{dtype}: {value}, expected {expected}");
        for d in 0..2 {
            let g = column(&features, 0, d);
            let expected = g.map(|v| -0.5 / 4.0 * v / product(g, g).sqrt() / 1e-8);
            assert!(distance(&column(&gradient, 0, d), &expected) < bound, "{dtype}: {gradient:?}");
        }
        assert_eq!(column(&gradient, 1, 0), [0.0; 3]);
    }
}

const RATE: usize = 8000;
const HOP: usize = 80;
/// Frequencies, one a class.
const TONES: [f64; 4] = [200.0, 450.0, 1000.0, 2200.0];

/// Tones that follow each other, every 0.2 s another, under loud noise of no meaning; and which one sounds, 50 times a second.
fn speech(seed: u64, seconds: usize) -> (Vec<f32>, Vec<i32>) {
    let mut rng = SplitMix(seed);
    let classes: Vec<usize> = (0..seconds * 5).map(|_| (rng.next() % 4) as usize).collect();
    let samples = (0..seconds * RATE).map(|i| {
        let phase = std::f64::consts::TAU * TONES[classes[i / (RATE / 5)]] * i as f64 / RATE as f64;
        (0.1 * phase.sin() + 0.2 * (rng.uniform() - 0.5)) as f32
    });
    let samples = samples.collect();
    (samples, (0..seconds * 50).map(|t| classes[t / 10] as i32).collect())
}

fn config(teacher: Option<Teacher>, steps: u64) -> TrainConfig {
    let codec = Config {
        strides: vec![4, 4, 5],
        encoder_widths: vec![4, 8, 8, 16],
        decoder_widths: vec![16, 8, 8, 4],
        dilations: vec![1],
        latent: 16,
        codebook_dim: 8,
        codebook_sizes: vec![8, 8],
        sample_rate: RATE as u32,
        ..Config::preset("te50-small").unwrap()
    };
    assert_eq!(codec.hop(), HOP);
    TrainConfig {
        train: Schedule { steps, batch: 2, crop_frames: 50, log_every: 1, checkpoint_every: 3, ..Schedule::default() },
        optimizer: Optimizer { learning_rate: 3e-3, warmup: 5, ..Optimizer::default() },
        loss: LossWeights { mel_scales: vec![(10, 64)], ..LossWeights::default() },
        codebook: CodebookRules { start: 3, kmeans_batches: 2, kmeans_iterations: 3, ..CodebookRules::default() },
        teacher,
        ..TrainConfig::new("small", Some(codec))
    }
}

/// Share of frames whose first code's most frequent class is theirs.
fn agreement(trainer: &Trainer) -> f64 {
    let codec = trainer.codec().unwrap();
    let mut counts = [[0_usize; 4]; 8];
    for seed in 100..104 {
        let (samples, labels) = speech(seed, 4);
        let codes = codec.encode(&samples, 1).unwrap();
        for (t, &code) in codes.values.iter().enumerate() {
            counts[code as usize][labels[(t / 2).min(labels.len() - 1)] as usize] += 1;
        }
    }
    let all: usize = counts.iter().flatten().sum();
    counts.iter().map(|c| *c.iter().max().unwrap()).sum::<usize>() as f64 / all as f64
}

#[test]
fn a_teachers_labels_get_into_the_first_codebook() {
    let trained = |teacher: Option<Teacher>| {
        let mut trainer = Trainer::new(config(teacher, 300), &Device::Cpu).unwrap();
        let batch = |step: u64| {
            let parts: Vec<_> = (0..2).map(|item| speech(1000 + 2 * step + item, 1)).collect();
            let samples: Vec<f32> = parts.iter().flat_map(|p| p.0[..50 * HOP].to_vec()).collect();
            // Frames are twice as many as labels.
            (samples, parts.iter().flat_map(|p| (0..50).map(|t| p.1[t / 2])).collect::<Vec<_>>())
        };
        for step in 0..120 {
            if trainer.needs_codebooks() {
                trainer.initialise_codebooks((0..4).map(|i| batch(9000 + i).0)).unwrap();
            }
            let (samples, labels) = batch(step);
            let labels = TeacherRows::Labels(labels);
            let rows = trainer.config().teacher.is_some().then_some(&labels);
            trainer.train_on(Examples { samples: &samples, targets: &samples, rows }).unwrap();
        }
        agreement(&trainer)
    };
    let teacher = Teacher { classes: Some(4), rate: Some(50.0), weight: 30.0, ..Teacher::new(Distillation::Clusters) };
    let (without, with) = (trained(None), trained(Some(teacher)));
    println!("agreement {without:.3} without a teacher, {with:.3} with one");
    assert!(with > without + 0.15 && with > 0.7, "{without} without a teacher, {with} with one");
}

/// What a teacher says is dealt out as the crops are: by features, and by labels of which parts have more, fewer or none.
#[test]
fn lessons_in_accumulated_parts_are_those_of_one_batch() {
    let mut rng = SplitMix(7);
    let samples: Vec<f32> = (0..4).flat_map(|item| speech(item, 1).0[..50 * HOP].to_vec()).collect();
    let features = Teacher { dim: Some(3), rate: Some(50.0), ..Teacher::new(Distillation::Cosine) };
    let rows = TeacherRows::Features((0..4 * 25 * 3).map(|_| rng.uniform() as f32 - 0.5).collect());
    let mut cases = vec![(features, rows)];
    // Labels of the first so many frames of each crop.
    for known in [[50, 10, 0, 5], [0, 0, 50, 20]] {
        let labels = known.iter().flat_map(|&known| (0..50).map(move |t| if t < known { t % 4 } else { -1 })).collect();
        let teacher = Teacher { classes: Some(4), rate: Some(50.0), ..Teacher::new(Distillation::Clusters) };
        cases.push((teacher, TeacherRows::Labels(labels)));
    }
    for (teacher, rows) in cases {
        let [whole, parts] = [(4, 1), (2, 2)].map(|(batch, accumulate)| {
            let mut config = config(Some(teacher.clone()), 10);
            (config.train.batch, config.train.accumulate) = (batch, accumulate);
            let mut trainer = Trainer::with_dtype(config, &Device::Cpu, DType::F64).unwrap();
            let step = trainer.train_on(Examples { samples: &samples, targets: &samples, rows: Some(&rows) }).unwrap();
            (trainer, step.losses().unwrap())
        });
        let losses = [whole.1, parts.1].map(|losses| losses.teacher.unwrap());
        assert!((losses[0] / losses[1] - 1.0).abs() < 1e-9 && losses[0] > 0.0, "{losses:?}");
        for (a, b) in whole.0.parameters().iter().zip(parts.0.parameters()) {
            let far = distance(&b.first_moment.to_f64().unwrap(), &a.first_moment.to_f64().unwrap());
            assert!(far < 1e-9, "{:?}, {}: off by {far:.1e}", teacher.loss, a.spec.name);
        }
    }
}

fn dataset(dir: &Path) -> Dataset {
    for n in 0..3 {
        let path = dir.join(format!("in/a/b/{n}.wav"));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        write(path, &speech(n, 2).0, RATE as u32, WavFormat::F32).unwrap();
    }
    let options = dataset::Options { sample_rate: RATE as u32, ..Default::default() };
    dataset::prepare(&[dir.join("in")], dir.join("data"), &options, |_| {}).unwrap();
    Dataset::open(dir.join("data")).unwrap()
}

/// Features of which the clusters are labels, learnt in the run; stopped in the middle and gone on with.
#[test]
fn a_distilled_run_that_is_interrupted_goes_on_bit_for_bit_and_its_model_knows_no_teacher() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    let (folder, out) = (dir.path().join("data"), |name: &str| dir.path().join(name));
    let config = config(Some(Teacher { classes: Some(5), ..Teacher::new(Distillation::Clusters) }), 7);
    let go = |name: &str, start: Start, stop: u64| {
        run(config.clone(), &folder, &out(name), start, &Device::Cpu, |event| match event {
            swara_engine::train::Event::Step(report) if report.step == stop => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        })
    };
    let refused = |part: &str| {
        let error = go("none", Start::Fresh, 0).map(drop).unwrap_err().to_string();
        assert!(error.contains(part), "{part}: {error}");
    };
    refused("no teacher.json");
    let cache = TeacherCache::create(&data, "t", 50.0, TeacherOutput::Dim(3)).unwrap();
    refused("nothing of 3 utterances");
    let mut rng = SplitMix(1);
    for (index, u) in data.utterances().iter().enumerate() {
        let rows = (0..u.samples as usize * 50 / RATE * 3).map(|_| (rng.uniform() - 0.5) as f32).collect();
        cache.write(index, &TeacherRows::Features(rows)).unwrap();
    }
    go("whole", Start::Fresh, 0).unwrap();
    go("parts", Start::Fresh, 4).unwrap();
    go("parts", Start::Resume, 0).unwrap();
    for file in ["checkpoint.safetensors", "model.safetensors", "log.csv"] {
        assert!(std::fs::read(out("whole").join(file)).unwrap() == std::fs::read(out("parts").join(file)).unwrap(), "{file}");
    }
    let log = std::fs::read_to_string(out("whole").join("log.csv")).unwrap();
    let mut lines = log.lines();
    assert!(
        lines.next().unwrap().ends_with(",teacher,f0,voicing,energy")
            && lines.all(|line| line.rsplit(',').nth(3).unwrap().parse::<f64>().unwrap() > 0.0)
    );
    let (checkpoint, model) =
        (Weights::open(out("whole").join("checkpoint.safetensors")), Weights::open(out("whole").join("model.safetensors")));
    assert!(checkpoint.unwrap().names().any(|name| name == "second_moment.teacher.weight"));
    assert!(!model.unwrap().names().any(|name| name.contains("teacher")));

    let other = TrainConfig { teacher: Some(Teacher::new(Distillation::Mse)), ..config.clone() };
    let error = run(other, &folder, &out("parts"), Start::Resume, &Device::Cpu, |_| ControlFlow::Continue(())).map(drop).unwrap_err();
    assert!(error.to_string().contains("was trained with teacher."), "{error}");
}

#[test]
fn teachers_that_cannot_be_are_refused() {
    let cache = |output| dataset::TeacherDescription { name: "t".into(), rate: 50.0, output, manifest_sha256: String::new() };
    let (features, labels) = (cache(TeacherOutput::Dim(3)), cache(TeacherOutput::Classes(4)));
    let teacher = Teacher::new(Distillation::Cosine);
    assert_eq!(teacher.of(&features).unwrap().outputs().unwrap(), 3);
    assert!(teacher.of(&labels).is_err() && Teacher { rate: Some(49.0), ..teacher.clone() }.of(&features).is_err());
    assert!(Teacher { dim: Some(4), ..teacher.clone() }.of(&features).is_err());
    let clusters = Teacher::new(Distillation::Clusters);
    assert_eq!(clusters.of(&labels).unwrap().outputs().unwrap(), 4);
    assert!(clusters.of(&features).unwrap_err().to_string().contains("classes"));
    assert!(Trainer::new(config(Some(teacher.clone()), 7), &Device::Cpu).is_err(), "of no dimensions");
    // A prediction of 200 frames of a crop of 50.
    let slow = Teacher { rate: Some(0.5), dim: Some(3), ..teacher.clone() };
    let error = Trainer::new(config(Some(slow), 7), &Device::Cpu).err().unwrap().to_string();
    assert_eq!(error, "configuration: teacher: train.crop_frames is too few: crops of 4000 samples, one prediction is of 16000");
    let mut known = Trainer::new(config(Some(Teacher { rate: Some(50.0), dim: Some(3), ..teacher }), 7), &Device::Cpu).unwrap();
    let samples = vec![0.1; 2 * 50 * HOP];
    for error in [known.gradients(&samples).err().unwrap(), known.train(&samples).err().unwrap()] {
        assert!(error.to_string().contains("[teacher]"), "{error}");
    }
    let toml = |text: &str| TrainConfig::from_toml(&format!("model = \"te50-small\"\n[teacher]\n{text}"));
    assert!(toml("loss = \"cosine\"").is_ok());
    for bad in [
        "",
        "loss = \"sine\"",
        "loss = \"mse\"\nweight = -1.0",
        "loss = \"mse\"\nclasses = 3",
        "loss = \"clusters\"\nclasses = 0",
        "loss = \"mse\"\nrate = nan",
    ] {
        assert!(toml(bad).is_err(), "{bad}");
    }
}
