//! Runs whose crops are changed on the way, judged by a speaker encoder too.

use std::ops::ControlFlow;
use std::path::Path;

use swara_engine::train::{Event, Examples, Start, TrainConfig, Trainer, run};
use swara_kernels::Device;
use swara_kernels::case::SplitMix;
use swara_loader::audio::{WavFormat, write};
use swara_loader::dataset::{self, Kind, Loudness, Options, Target};

const CONFIG: &str = r#"
model = "tiny"

[codec]
sample_rate = 16000
encoder_widths = [4, 6, 8]
decoder_widths = [8, 6, 4]
strides = [4, 8]
dilations = [1]
latent = 8
causal = true
quantizer = "ema"
codebook_dim = 4
codebook_sizes = [16, 8]

[train]
steps = 8
batch = 2
crop_frames = 60
loudness = "lufs:-16"
log_every = 1
checkpoint_every = 4
validate_every = 100

[loss]
mel_scales = [[10, 64], [20, 128]]

[codebook]
start = 2
kmeans_batches = 1

[balancer]

[speaker]
encoder = "ENCODER"
weight = 0.5
start = 3

[augment]
target = "clean"
gain = { probability = 0.5, db = [-12.0, 3.0] }
phase = { probability = 0.5 }
reverb = { probability = 0.5, rt60 = [0.05, 0.2] }
echo = { probability = 0.5, delay_ms = [20.0, 60.0], gain = [0.0, 0.2] }
noise = { probability = 0.9, snr_db = [5.0, 20.0], kinds = ["white", "pink", "brown", "babble"] }
"#;

fn config() -> TrainConfig {
    let encoder = concat!(env!("CARGO_MANIFEST_DIR"), "/../verify/golden/speaker/encoder.safetensors");
    TrainConfig::from_toml(&CONFIG.replace("ENCODER", encoder)).unwrap()
}

fn samples(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = SplitMix(seed);
    (0..n).map(|i| (0.3 * (i as f64 / 2000.0).sin().abs() * (rng.uniform() * 2.0 - 1.0)) as f32).collect()
}

fn data(dir: &Path) {
    for speaker in ["a", "b"] {
        std::fs::create_dir_all(dir.join("raw").join(speaker)).unwrap();
        for n in 0..2 {
            write(dir.join(format!("raw/{speaker}/{n}.wav")), &samples(9000 + 1000 * n, n as u64), 16_000, WavFormat::S16).unwrap();
        }
    }
    dataset::prepare(&[dir.join("raw")], dir.join("data"), &Options::default(), |_| {}).unwrap();
}

#[test]
fn a_run_that_stops_and_resumes_is_bit_exact() {
    let dir = tempfile::tempdir().unwrap();
    data(dir.path());
    let train = |out: &str, start: Start, stop: u64| {
        let observe = |event: Event| match event {
            Event::Step(report) if report.step == stop => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        };
        run(config(), &dir.path().join("data"), &dir.path().join(out), start, &Device::Cpu, observe).unwrap();
    };
    train("whole", Start::Fresh, 100);
    train("parts", Start::Fresh, 3);
    train("parts", Start::Resume, 6);
    train("parts", Start::Resume, 100);
    let read = |run: &str, file: &str| std::fs::read(dir.path().join(run).join(file)).unwrap();
    for file in ["checkpoint.safetensors", "model.safetensors", "log.csv"] {
        assert!(read("whole", file) == read("parts", file), "{file} differs");
    }
    // The encoder joins at its step.
    let log = String::from_utf8(read("whole", "log.csv")).unwrap();
    let column = log.lines().next().unwrap().split(',').position(|name| name == "speaker").unwrap();
    let speaker: Vec<f64> = log.lines().skip(1).map(|line| line.split(',').nth(column).unwrap().parse().unwrap()).collect();
    assert!(speaker[..3].iter().all(|&loss| loss == 0.0) && speaker[3..].iter().all(|&loss| loss > 0.0 && loss <= 1.0), "{speaker:?}");
}

/// Noise that is nowhere is found missing before there is a run: what fails so does not go on from other weights than it was to.
#[test]
fn a_start_that_fails_leaves_nothing_to_resume() {
    let dir = tempfile::tempdir().unwrap();
    data(dir.path());
    let mut config = config();
    let noise = config.augment.as_mut().unwrap().noise.as_mut().unwrap();
    (noise.kinds, noise.folder) = (vec![Kind::Recorded], Some(dir.path().join("nowhere")));
    let out = dir.path().join("out");
    let error = |start| {
        let result = run(config.clone(), &dir.path().join("data"), &out, start, &Device::Cpu, |_| ControlFlow::Continue(()));
        result.map(drop).unwrap_err().to_string()
    };
    assert!(error(Start::Fresh).contains("nowhere"));
    assert!(!out.exists());
    // As an interrupted run of an earlier version leaves it.
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("config.toml"), "").unwrap();
    assert!(error(Start::Resume).contains("holds no run"));
}

#[test]
fn a_resumed_run_may_not_train_anything_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("checkpoint.safetensors");
    Trainer::new(config(), &Device::Cpu).unwrap().save(&path).unwrap();
    let resumed = |change: &dyn Fn(&mut TrainConfig)| {
        let mut config = config();
        change(&mut config);
        Trainer::resume(&path, config, &Device::Cpu).map(drop).map_err(|e| e.to_string())
    };
    type Change = fn(&mut TrainConfig);
    let changes: [(&str, Change); 12] = [
        ("train.seed", |c| c.train.seed = 7),
        ("train.loudness", |c| c.train.loudness = Loudness::Unchanged),
        ("train.gain_db", |c| c.train.gain_db = (-3.0, 0.0)),
        ("codebook.start", |c| c.codebook.start = 3),
        ("codebook.dropout", |c| c.codebook.dropout = 0.25),
        ("balancer", |c| c.balancer = None),
        ("balancer.total_norm", |c| c.balancer.as_mut().unwrap().total_norm = 2.0),
        ("speaker", |c| c.speaker = None),
        ("speaker.start", |c| c.speaker.as_mut().unwrap().start = 77),
        ("augment", |c| c.augment = None),
        ("augment.target", |c| c.augment.as_mut().unwrap().target = Target::Noisy),
        ("augment.noise.snr_db", |c| c.augment.as_mut().unwrap().noise.as_mut().unwrap().snr_db = (0.0, 20.0)),
    ];
    for (key, change) in changes {
        let error = resumed(&change).unwrap_err();
        assert!(error.contains(&format!("was trained with {key} = ")) && error.contains(", not "), "{key}: {error}");
    }
    resumed(&|_| ()).unwrap();
    let longer = |c: &mut TrainConfig| {
        (c.train.steps, c.train.batch, c.train.accumulate, c.train.log_every) = (99, 1, 2, 7);
        (c.optimizer.learning_rate, c.codebook.kmeans_batches) = (1e-4, 2);
        c.augment.as_mut().unwrap().noise.as_mut().unwrap().folder = Some("elsewhere".into());
        c.speaker.as_mut().unwrap().weight = 0.1;
    };
    resumed(&longer).unwrap();
}

#[test]
fn what_comes_out_is_compared_with_the_target() {
    let mut config = config();
    (config.speaker, config.balancer) = (None, None);
    let n = config.train.batch * config.crop().unwrap();
    let (heard, clean) = (samples(n, 1), samples(n, 2));
    let step = |targets: &[f32]| {
        let mut trainer = Trainer::new(config.clone(), &Device::Cpu).unwrap();
        let step = trainer.train_on(Examples { samples: &heard, targets, rows: None }).unwrap();
        (step.losses().unwrap(), step.output.to_vec::<f32>().unwrap())
    };
    let ((own, same), (towards, output)) = (step(&heard), step(&clean));
    // The codec hears the same; the losses are those beside what it should have said.
    assert_eq!(same, output);
    let l1 = |x: &[f32]| output.iter().zip(x).map(|(a, b)| f64::from((a - b).abs())).sum::<f64>() / n as f64;
    assert!((own.wave - l1(&heard)).abs() < 1e-5 && (towards.wave - l1(&clean)).abs() < 1e-5, "{} {}", own.wave, towards.wave);
    assert!((own.wave - towards.wave).abs() > 1e-3);
    let mut trainer = Trainer::new(config, &Device::Cpu).unwrap();
    assert!(trainer.train_on(Examples { samples: &heard, targets: &clean[1..], rows: None }).is_err());
}

#[test]
fn tables_that_cannot_be_meant_are_refused() {
    for (good, bad, says) in [
        ("\"lufs:-16\"", "\"peak:-1\"", "peak:-1"),
        ("weight = 0.5", "weight = -1.0", "speaker.weight"),
        ("snr_db = [5.0, 20.0]", "snr_db = [20.0, 5.0]", "noise.snr_db"),
        ("\"babble\"]", "\"babel\"]", "babel"),
        ("\"babble\"]", "\"recorded\"]", "noise.folder"),
        ("rt60 = [0.05, 0.2]", "rt60 = [0.05, inf]", "reverb.rt60"),
    ] {
        let error = TrainConfig::from_toml(&CONFIG.replace(good, bad)).unwrap_err().to_string();
        assert!(error.contains(says), "{bad}: {error}");
    }
    let encoder = TrainConfig::from_toml(CONFIG).unwrap();
    assert!(Trainer::new(encoder, &Device::Cpu).err().unwrap().to_string().contains("ENCODER"));
}
