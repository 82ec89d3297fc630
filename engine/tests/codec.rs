//! Whole tiny codecs against PyTorch: codes, waves, losses and the gradient of every parameter (verify/reference/codec.py).

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use swara_engine::codec::{Codec, Codes, METADATA_CONFIG, QuantizerKind};
use swara_engine::train::{CodebookRules, LossWeights, Schedule, TrainConfig, Trainer};
use swara_kernels::{DType, Device, Tensor};
use swara_loader::weights::{TensorRef, Weights, save};

struct Golden {
    file: Weights,
    case: serde_json::Value,
    config: swara_engine::codec::Config,
    /// The parameters alone, as a checkpoint.
    checkpoint: PathBuf,
    _dir: tempfile::TempDir,
}

impl Golden {
    fn open(name: &str) -> Golden {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../verify/golden/codec").join(name).with_extension("safetensors");
        let file = Weights::open(&path).unwrap();
        let case: serde_json::Value = serde_json::from_str(&file.metadata()["case"]).unwrap();
        let config = swara_engine::codec::Config::from_json(&case["config"].to_string()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = dir.path().join("tiny.safetensors");
        let parameters: Vec<(String, Vec<usize>, Vec<f32>)> = file
            .names()
            .filter(|n| ["encoder", "decoder", "quantizer."].iter().any(|p| n.starts_with(p)))
            .map(|n| (n.to_owned(), file.view(n).unwrap().shape.to_vec(), file.to_f32(n).unwrap().into_owned()))
            .collect();
        let refs: Vec<TensorRef> = parameters.iter().map(|(n, s, v)| TensorRef::f32(n, s, v)).collect();
        save(&checkpoint, &refs, &BTreeMap::from([(METADATA_CONFIG.to_owned(), case["config"].to_string())])).unwrap();
        Golden { file, case, config, checkpoint, _dir: dir }
    }

    fn values(&self, name: &str) -> Vec<f64> {
        self.file.to_f32(name).unwrap().iter().map(|&v| v as f64).collect()
    }

    fn trainer(&self, dtype: DType) -> Trainer {
        let scales = self.case["mel_scales"].as_array().unwrap();
        let mel_scales = scales.iter().map(|s| (s[0].as_u64().unwrap() as usize, s[1].as_u64().unwrap() as usize)).collect();
        let commitment = if self.config.quantizer == QuantizerKind::Ema { 1.0 } else { 0.25 };
        let batch = self.file.view("input").unwrap().shape.to_vec();
        let config = TrainConfig {
            train: Schedule { batch: batch[0], crop_frames: batch[2] / self.config.hop(), ..Schedule::default() },
            loss: LossWeights { mel_scales, commitment, spectrum: 0.0, ..LossWeights::default() },
            codebook: CodebookRules { start: 0, dropout: 0.0, ..CodebookRules::default() },
            ..TrainConfig::new("tiny", Some(self.config.clone()))
        };
        let mut trainer = Trainer::with_dtype(config, &Device::Cpu, dtype).unwrap();
        trainer.initialise_from(&Weights::open(&self.checkpoint).unwrap()).unwrap();
        trainer
    }
}

const CASES: [&str; 6] =
    ["ema_causal", "ema_causal_odd_stride", "factorised_causal", "factorised_symmetric", "ema_symmetric_odd_stride", "hybrid"];

fn distance(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let error: f64 = found.iter().zip(expected).map(|(a, b)| (a - b) * (a - b)).sum();
    let energy: f64 = expected.iter().map(|b| b * b).sum();
    (error / energy.max(1e-30)).sqrt()
}

#[test]
fn codes_and_waves_equal_pytorch() {
    for name in CASES {
        let golden = Golden::open(name);
        let codec = Codec::open(&golden.checkpoint, &Device::Cpu, DType::F32).unwrap();
        let input = golden.file.view("input").unwrap();
        let codes = golden.file.to_i32("codes").unwrap();
        let (samples, wave) = (golden.file.to_f32("input").unwrap(), golden.file.to_f32("wave").unwrap());
        let (items, k) = (input.shape[0], codec.codebooks());
        for item in 0..items {
            let x = &samples[item * samples.len() / items..][..samples.len() / items];
            let found = codec.encode(x, k).unwrap();
            let expected = &codes[item * codes.len() / items..][..codes.len() / items];
            assert_eq!(found.values, expected, "{name}: codes of item {item}");
            let decoded =
                codec.decode(&Codes { codebooks: k, frames: found.frames, values: expected.to_vec(), scales: Vec::new() }).unwrap();
            let y = &wave[item * wave.len() / items..][..wave.len() / items];
            let worst = decoded.iter().zip(y).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert_eq!(decoded.len(), y.len(), "{name}");
            assert!(worst < 2e-6, "{name}: wave of item {item} is off by {worst}");
        }
    }
}

#[test]
fn losses_and_every_gradient_equal_pytorch() {
    for (dtype, bound) in [(DType::F64, 2e-6), (DType::F32, 2e-3)] {
        for name in CASES {
            let golden = Golden::open(name);
            let trainer = golden.trainer(dtype);
            let (step, gradients, _) = trainer.gradients(&golden.file.to_f32("input").unwrap()).unwrap();
            let losses = step.losses().unwrap();
            let mut worst: (f64, &str) = (0.0, "");
            for (found, key) in [(losses.mel, "loss.mel"), (losses.wave, "loss.l1"), (losses.commitment, "loss.commitment")] {
                let expected = golden.values(key)[0];
                assert!((found - expected).abs() <= bound * expected.abs(), "{name} {key}: {found}, expected {expected}");
            }
            for (parameter, gradient) in trainer.parameters().iter().zip(&gradients) {
                let spec = &parameter.spec;
                let found = spec.export(&gradient.to_f64().unwrap().iter().map(|&v| v as f32).collect::<Vec<_>>());
                let found: Vec<f64> = found.iter().map(|&v| v as f64).collect();
                let d = distance(&found, &golden.values(&format!("grad.{}", spec.name)));
                if d > worst.0 {
                    worst = (d, &spec.name);
                }
            }
            println!("{name} {dtype}: worst gradient {:.1e} ({})", worst.0, worst.1);
            assert!(worst.0 < bound, "{name} {dtype}: gradient of {} is off by {:.2e} of its norm", worst.1, worst.0);
        }
    }
}

#[test]
fn a_tensor_of_another_shape_is_refused_by_name() {
    let golden = Golden::open("ema_causal");
    let mut config = golden.config.clone();
    config.latent += 1;
    let file = Weights::open(&golden.checkpoint).unwrap();
    let run = TrainConfig { train: Schedule { crop_frames: 4, ..Schedule::default() }, ..TrainConfig::new("tiny", Some(config)) };
    let error = Trainer::new(run, &Device::Cpu).unwrap().initialise_from(&file).unwrap_err().to_string();
    assert!(error.contains("encoder.conv2"), "{error}");
}

fn streaming_error(device: &Device, frames: usize) -> f32 {
    let golden = Golden::open("ema_causal_odd_stride");
    common::streaming_error(&Codec::open(&golden.checkpoint, device, DType::F32).unwrap(), frames)
}

#[test]
fn streaming_equals_offline_on_the_cpu() {
    assert_eq!(streaming_error(&Device::Cpu, 200), 0.0);
}

#[test]
fn streaming_equals_offline_on_the_emulator() {
    let error = streaming_error(&Device::open("emulator").expect("the emulator needs a C++ compiler"), 40);
    println!("samples differ by {error:.1e} at most");
    assert!(error <= 1e-5, "samples differ by {error}");
}

#[test]
fn frames_as_graphs_equal_frames_launched_one_by_one() {
    let emulator = Device::open("emulator").expect("the emulator needs a C++ compiler");
    let golden = Golden::open("ema_causal_odd_stride");
    common::replayed_frames_equal_launched_ones(&Codec::open(&golden.checkpoint, &emulator, DType::F32).unwrap(), 16);
}

#[test]
fn a_codec_in_bf16_sounds_like_the_same_in_f32() {
    let golden = Golden::open("ema_causal");
    let emulator = Device::open("emulator").expect("the emulator needs a C++ compiler");
    let open = |device, dtype| Codec::open(&golden.checkpoint, device, dtype).unwrap();
    let (wide, narrow) = (open(&Device::Cpu, DType::F32), open(&emulator, DType::BF16));
    let samples = golden.file.view("input").unwrap().shape[2];
    let input: Vec<f32> = golden.values("input")[..samples].iter().map(|&v| v as f32).collect();
    let codes = wide.encode(&input, wide.codebooks()).unwrap();
    let wave = |codec: &Codec| codec.decode(&codes).unwrap().into_iter().map(f64::from).collect::<Vec<_>>();
    // Some ten layers, each of which rounds its input to 2^-8.
    let error = distance(&wave(&narrow), &wave(&wide));
    println!("waves differ by {error:.4} of their rms");
    assert!(error > 0.0 && error < 10.0 / 256.0, "{error}");
    assert_eq!(narrow.encode(&input, 1).unwrap().values.len(), codes.frames);
}

#[test]
fn a_reset_stream_starts_anew_and_leaves_the_others_alone() {
    let golden = Golden::open("ema_causal");
    let codec = Codec::open(&golden.checkpoint, &Device::Cpu, DType::F32).unwrap();
    let (hop, k) = (codec.format().hop, codec.codebooks());
    let x: Vec<f32> = (0..2 * 12 * hop).map(|i| (i as f32 * 0.7).sin()).collect();
    let chunk = codec.signal(&x, 2).unwrap();
    let mut session = swara_engine::codec::Session::new(&codec, 2).unwrap();
    let first = session.encode(&chunk, k, None).unwrap().to_vec::<i32>().unwrap();
    session.reset(&Tensor::from_slice(&Device::Cpu, &[1u8, 0], [2]).unwrap()).unwrap();
    let second = session.encode(&chunk, k, None).unwrap().to_vec::<i32>().unwrap();
    let half = first.len() / 2;
    assert_eq!(second[..half], first[..half]);
    assert_ne!(second[half..], first[half..], "the other stream should remember");
}
