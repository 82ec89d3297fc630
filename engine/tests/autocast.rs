//! Training whose products take bf16: PyTorch's losses and gradients under the same roundings (verify/reference/autocast.py), runs beside
//! those in f32, and what is kept of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use swara_engine::codec::{Config, QuantizerKind, mimi};
use swara_engine::tape::{Compute, Tape, Var};
use swara_engine::train::{
    Adversarial, AdversarialRule, CodebookRules, DiscriminatorConfig, LossWeights, Losses, Optimizer, Schedule, StftConfig, TrainConfig,
    Trainer,
};
use swara_kernels::case::SplitMix;
use swara_kernels::ops::{conv_transpose1d, conv1d, conv2d};
use swara_kernels::tolerance::Tolerance;
use swara_kernels::{DType, Device, Shape, Tensor};
use swara_loader::weights::{TensorRef, Weights, save};

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../verify/golden").join(path).with_extension("safetensors")
}

/// Those of codec/hybrid, without what it computed.
fn parameters(path: &Path) -> PathBuf {
    let dump = Weights::open(golden("codec/hybrid")).unwrap();
    let parameter = |name: &&str| ["coder", "quantizer"].iter().any(|part| name.split('.').next().unwrap().contains(part));
    let names: Vec<&str> = dump.names().filter(parameter).collect();
    let values: Vec<_> = names.iter().map(|name| (dump.view(name).unwrap().shape.to_vec(), dump.to_f32(name).unwrap())).collect();
    let refs: Vec<TensorRef> = names.iter().zip(&values).map(|(name, (shape, v))| TensorRef::f32(name, shape, v)).collect();
    save(path, &refs, &BTreeMap::new()).unwrap();
    path.to_owned()
}

/// What a dump starts from: a configuration, its weights, and an input.
fn start(case: &str, compute: Compute) -> (TrainConfig, Weights, Vec<f32>) {
    let dir = tempfile::tempdir().unwrap();
    let (weights, input) = match case {
        "hybrid" => (parameters(&dir.path().join("model.safetensors")), golden("codec/hybrid")),
        _ => (golden("mimi/weights/kyutai"), golden("gradients/mimi")),
    };
    let (weights, input) = (Weights::open(weights).unwrap(), Weights::open(input).unwrap());
    let shape = input.view("input").unwrap().shape.to_vec();
    let mut config = TrainConfig::new(case, None);
    match case {
        "hybrid" => {
            let facts: serde_json::Value = serde_json::from_str(&input.metadata()["case"]).unwrap();
            config.codec = Some(Config::from_json(&facts["config"].to_string()).unwrap());
        }
        _ => config.mimi = Some(mimi::Config::from_json(&weights.metadata()["config"]).unwrap()),
    }
    let hop = config.architecture().unwrap().model().unwrap().format.hop;
    config.train = Schedule { batch: shape[0], crop_frames: shape[2] / hop, compute, ..Schedule::default() };
    let commitment = if case == "hybrid" { 1.0 } else { 0.5 };
    config.loss = LossWeights { mel: 0.0, mel_scales: vec![(5, 32)], wave: 10.0, commitment, ..LossWeights::default() };
    config.codebook = CodebookRules { start: 0, kmeans_batches: 1, expire_below: 0.0, dropout: 0.0, ..CodebookRules::default() };
    (config, weights, input.to_f32("input").unwrap().into_owned())
}

fn distance(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let error: f64 = found.iter().zip(expected).map(|(a, b)| (a - b) * (a - b)).sum();
    (error / expected.iter().map(|e| e * e).sum::<f64>().max(1e-16)).sqrt()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// In f64 nothing rounds but what is said to: the same values in bf16, and so the same codes and gradients but for the dump's own rounding to
/// f32. In f32 a few values that are near the middle of two in bf16 are rounded the other way, and near ties are other codes, of which one
/// changes gradients by more than any rounding: there the losses are ten times nearer than without roundings, and every product is compared below.
#[test]
fn losses_and_gradients_are_those_of_pytorch_with_the_same_roundings() {
    for case in ["hybrid", "mimi"] {
        let dump = Weights::open(golden(&format!("autocast/{case}"))).unwrap();
        for dtype in [DType::F64, DType::F32] {
            let distances = |compute| {
                let (config, weights, samples) = start(case, compute);
                let mut trainer = Trainer::with_dtype(config, &Device::Cpu, dtype).unwrap();
                trainer.initialise_from(&weights).unwrap();
                let (step, gradients, stages) = trainer.gradients(&samples).unwrap();
                let mut far = Vec::new();
                for (parameter, gradient) in trainer.parameters().iter().zip(&gradients) {
                    let name = format!("grad.{}", parameter.spec.name);
                    if !dump.contains(&name) {
                        continue;
                    }
                    let expected = dump.to_f32(&name).unwrap();
                    let order: Vec<f32> = (0..expected.len()).map(|i| i as f32).collect();
                    let expected: Vec<f64> = parameter.spec.import(&order).iter().map(|&i| f64::from(expected[i as usize])).collect();
                    far.push((name, distance(&gradient.to_f64().unwrap(), &expected)));
                }
                (step.losses().unwrap(), stages, far)
            };
            let (losses, stages, far) = distances(Compute::Bf16);
            assert_eq!(far.len(), dump.names().filter(|name| name.starts_with("grad.")).count());
            let shape = dump.view("codes").unwrap().shape.to_vec();
            let (codes, stride) = (dump.to_i32("codes").unwrap(), shape[1] * shape[2]);
            let mut others = 0;
            for (k, (_, found)) in stages.iter().enumerate() {
                let expected = (0..shape[0]).flat_map(|item| &codes[item * stride + k * shape[2]..][..shape[2]]);
                others += found.to_vec::<i32>().unwrap().iter().zip(expected).filter(|(found, expected)| found != expected).count();
            }
            let off = |losses: &Losses| {
                let given = |name: &str| f64::from(dump.to_f32(name).unwrap()[0]);
                [(losses.wave, "loss.l1"), (losses.commitment, "loss.commitment")].map(|(found, name)| (found / given(name) - 1.0).abs())
            };
            if dtype == DType::F32 {
                let (near, full) = (off(&losses), off(&distances(Compute::F32).0));
                println!(
                    "{case}: {others} of {} codes are others in f32; losses off by {near:?}, without roundings by {full:?}",
                    codes.len()
                );
                assert!(others * 100 <= codes.len(), "{case}: {others} of {} codes are others", codes.len());
                assert!(near.iter().zip(full).all(|(near, full)| near * 10.0 < full), "{case}: losses off by {near:?}, {full:?} without");
                continue;
            }
            assert_eq!(others, 0, "{case}: codes");
            assert!(off(&losses).iter().all(|off| *off < 1e-6), "{case}: losses {:?}", off(&losses));
            let worst = far.iter().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
            let middle = |far: &[(String, f64)]| median(far.iter().map(|(_, far)| *far).collect());
            let full = middle(&distances(Compute::F32).2);
            let given = |kind: &str| {
                let of = |(name, _): &(String, f64)| f64::from(dump.to_f32(&name.replacen("grad", kind, 1)).unwrap()[0]);
                median(far.iter().map(of).collect())
            };
            println!("{case}: {} gradients off by {:.1e} at most ({})", far.len(), worst.1, worst.0);
            println!(
                "without roundings off by {full:.1e} in the median, PyTorch's {:.1e}, its autocast {:.1e}",
                given("f32"),
                given("autocast")
            );
            assert!(worst.1 < 1e-6, "{case}: {} is off by {:.1e} of its norm", worst.0, worst.1);
            // The roundings make a difference, the same as PyTorch's.
            assert!(full > 1e-3 && (full / given("f32") - 1.0).abs() < 0.1, "{case}: {full}");
        }
    }
}

/// Values that are no bf16.
fn drawn(shape: &[usize], seed: u64) -> Vec<f64> {
    let mut rng = SplitMix(seed);
    (0..shape.iter().product()).map(|_| f64::from(rng.uniform() as f32 - 0.5)).collect()
}

fn rounded(values: &[f64]) -> Vec<f64> {
    values.iter().map(|&v| half::bf16::from_f32(v as f32).to_f64()).collect()
}

type Record = fn(&Tape, &Var, &Var, &Var) -> swara_kernels::Result<Var>;

/// What `record` makes of `x`, `weight` and `bias`, and their gradients of `probe`.
fn run(tape: Tape, device: &Device, dtype: DType, record: Record, inputs: [(&[f64], &[usize]); 3], probe: &[f64]) -> [Vec<f64>; 4] {
    let tensor = |values: &[f64], shape: &[usize]| Tensor::from_f64(device, dtype, values, Shape::try_from(shape).unwrap()).unwrap();
    let leaves = inputs.map(|(values, shape)| tape.leaf(Rc::new(tensor(values, shape))));
    let y = record(&tape, &leaves[0], &leaves[1], &leaves[2]).unwrap();
    tape.pull(&y, tensor(&probe[..y.value().elements()], &y.value().shape()));
    let mut gradients = tape.backward().unwrap();
    let [x, weight, bias] = leaves.map(|leaf| gradients.take(&leaf).unwrap().to_f64().unwrap());
    [y.value().to_f64().unwrap(), x, weight, bias]
}

/// What is rounded to bf16 is the nearest, or where the sum is near the middle of two, of which there are few, the next; sums of weights and
/// biases are as near as sums in f32 are.
#[test]
fn every_product_is_of_rounded_operands_forward_and_backward_on_every_device() {
    let products: [(&str, [&[usize]; 3], Record); 6] = [
        ("conv1d", [&[2, 33, 20], &[3, 20, 24], &[24]], |tape, x, weight, bias| {
            tape.conv1d(x, weight, Some(bias), None, conv1d::Geometry { stride: 2, pad_left: 2, ..Default::default() })
        }),
        // Added behind what is rounded, and here taken off again.
        ("conv1d with a residual", [&[2, 33, 20], &[3, 20, 24], &[24]], |tape, x, weight, bias| {
            let residual = drawn(&[2, 17, 24], 5);
            let residual = Var::from(Tensor::from_f64(&x.value().device(), x.value().dtype(), &residual, [2, 17, 24])?);
            let geometry = conv1d::Geometry { stride: 2, pad_left: 2, ..Default::default() };
            tape.add(&tape.conv1d(x, weight, Some(bias), Some(&residual), geometry)?, &tape.scale(&residual, -1.0)?)
        }),
        ("conv_transpose1d", [&[2, 17, 24], &[4, 24, 20], &[20]], |tape, x, weight, bias| {
            tape.conv_transpose1d(x, weight, Some(bias), conv_transpose1d::Geometry::causal(4, 2))
        }),
        ("conv2d", [&[2, 9, 11, 6], &[9, 6, 10], &[10]], |tape, x, weight, bias| {
            tape.conv2d(x, weight, Some(bias), conv2d::Geometry::same([3, 3], [1, 2], [1, 1]), 1.0)
        }),
        // A power of two, so that rounding before it is rounding behind it.
        ("conv2d with a slope", [&[2, 9, 11, 6], &[9, 6, 10], &[10]], |tape, x, weight, bias| {
            tape.conv2d(x, weight, Some(bias), conv2d::Geometry::same([3, 3], [1, 2], [1, 1]), 0.25)
        }),
        ("linear", [&[3, 21, 32], &[40, 32], &[40]], |tape, x, weight, bias| tape.add_row(&tape.linear(x, weight)?, bias)),
    ];
    let emulator = Device::open("emulator").expect("the emulator needs a C++ compiler");
    for (name, shapes, record) in products {
        let values = [0, 1, 2].map(|i| drawn(shapes[i], 7 + i as u64));
        let probe = drawn(&[8000], 3);
        // A linear layer's bias is no operand of its product.
        let bias = if name == "linear" { vec![0.0; values[2].len()] } else { values[2].clone() };
        let exact = [rounded(&values[0]), rounded(&values[1]), rounded(&bias)];
        let given = [values[0].clone(), values[1].clone(), bias];
        let call = |tape, device: &Device, dtype, of: &[Vec<f64>; 3], probe: &[f64]| {
            run(tape, device, dtype, record, [0, 1, 2].map(|i| (&of[i][..], shapes[i])), probe)
        };
        let expected = call(Tape::new(), &Device::Cpu, DType::F64, &exact, &rounded(&probe));
        let sums = call(Tape::new(), &Device::Cpu, DType::F64, &given, &probe);
        // What nobody rounded, but for the signs that a slope goes by.
        let [.., biases] = call(Tape::new(), &Device::Cpu, DType::F64, &exact, &probe);
        for device in [&Device::Cpu, &emulator] {
            let found = call(Tape::computing(Compute::Bf16), device, DType::F32, &given, &probe);
            for (i, part) in ["y", "dx"].into_iter().enumerate() {
                let (nearest, mut others) = (rounded(&expected[i]), 0);
                for (&found, &near) in found[i].iter().zip(&nearest) {
                    others += usize::from((found - near).abs() > 1e-6);
                    assert!((found - near).abs() <= near.abs() / 128.0 + 1e-6, "{name} {part}: {found}, expected {near}");
                }
                assert!(others * 500 <= nearest.len() + 500, "{name} {part}: {others} of {} are others", nearest.len());
            }
            // Of weights and biases, unrounded sums.
            for (i, expected) in [(2, &expected[2]), (3, &biases)] {
                let rows = found[0].len() / values[2].len();
                let comparison = Tolerance::accumulate(rows).compare(&found[i], expected);
                assert!(comparison.holds(), "{name} {i}: {comparison:?}");
            }
            let wide = distance(&found[2], &sums[2]);
            assert!(wide > 1e-4, "{name}: operands are not rounded");
        }
    }
}

fn tiny(compute: Compute) -> TrainConfig {
    let codec = Config {
        sample_rate: 16000,
        encoder_widths: vec![8, 16, 24],
        decoder_widths: vec![24, 16, 8],
        strides: vec![4, 2],
        dilations: vec![1, 3],
        latent: 16,
        causal: true,
        quantizer: QuantizerKind::Ema,
        codebook_dim: 8,
        codebook_sizes: vec![32, 16],
        transformer: None,
        prosody: None,
    };
    TrainConfig {
        train: Schedule { steps: 200, batch: 2, crop_frames: 40, compute, ..Schedule::default() },
        optimizer: Optimizer { learning_rate: 3e-3, warmup: 10, ..Optimizer::default() },
        loss: LossWeights { mel: 1.0, wave: 10.0, mel_scales: vec![(5, 32), (10, 64), (20, 128)], ..LossWeights::default() },
        codebook: CodebookRules { start: 5, kmeans_batches: 1, kmeans_iterations: 5, dropout: 0.0, ..CodebookRules::default() },
        ..TrainConfig::new("tiny", Some(codec))
    }
}

fn against_discriminators(compute: Compute) -> TrainConfig {
    let stft = StftConfig { windows: vec![64], filters: 4, ..StftConfig::default() };
    let discriminators = DiscriminatorConfig { stft: Some(stft), ..DiscriminatorConfig::default() };
    let optimizer = Optimizer { learning_rate: 1e-4, warmup: 0, ..Optimizer::default() };
    let adversarial = Adversarial { start: 1, every: 1, rule: AdversarialRule::ENCODEC, discriminators, optimizer };
    let mut config = TrainConfig { adversarial: Some(adversarial), ..tiny(compute) };
    config.optimizer.learning_rate = 2e-4;
    config
}

fn batch(config: &TrainConfig, seed: u64) -> Vec<f32> {
    let mut rng = SplitMix(seed);
    let (pitch, glide) = (150.0 + 100.0 * rng.uniform(), rng.uniform());
    // Bands that hold nothing would be filled by what rounding leaves there.
    let wave = |i: usize| {
        let t = i as f64 / 16000.0;
        let angle = std::f64::consts::TAU * pitch * t * (1.0 + glide * t);
        (0.3 * angle.sin() + 0.1 * (3.0 * angle).cos() + 0.02 * (rng.uniform() - 0.5)) as f32
    };
    (0..config.train.batch * config.crop().unwrap()).map(wave).collect()
}

fn train(trainer: &mut Trainer, until: u64) -> Vec<Losses> {
    let mut losses = Vec::new();
    while trainer.step() < until {
        if trainer.needs_codebooks() {
            trainer.initialise_codebooks([batch(trainer.config(), 0)]).unwrap();
        }
        let samples = batch(trainer.config(), trainer.step() % 4);
        losses.push(trainer.train(&samples).unwrap().losses().unwrap());
    }
    losses
}

#[test]
fn two_hundred_steps_end_near_those_of_f32() {
    let mut ends = [0.0; 2];
    for seed in [1, 2, 3] {
        for (end, compute) in ends.iter_mut().zip([Compute::F32, Compute::Bf16]) {
            let mut config = tiny(compute);
            config.train.seed = seed;
            let losses = train(&mut Trainer::new(config, &Device::Cpu).unwrap(), 200);
            assert!(losses.iter().all(|l| [l.mel, l.wave, l.commitment, l.gradient_norm].iter().all(|v| v.is_finite())), "{compute:?}");
            let last = losses[180..].iter().map(|l| l.mel).sum::<f64>() / 20.0;
            println!("seed {seed}, {compute:?}: mel {:.3} to {last:.3}", losses[0].mel);
            assert!(last * 4.0 < losses[0].mel, "{compute:?}: mel {} to {last}", losses[0].mel);
            *end += last / 3.0;
        }
    }
    // Measured: 3 to 10 % above, with room.
    assert!((ends[1] / ends[0] - 1.0).abs() < 0.15, "{ends:?}");
}

/// Discriminators and all: bit for bit, from masters that are no bf16.
#[test]
fn a_run_resumes_bit_for_bit_and_may_go_on_in_f32() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("checkpoint.safetensors");
    let config = against_discriminators(Compute::Bf16);
    let mut whole = Trainer::new(config.clone(), &Device::Cpu).unwrap();
    train(&mut whole, 7);
    whole.save(&path).unwrap();
    let mut resumed = Trainer::resume(&path, config.clone(), &Device::Cpu).unwrap();
    assert_eq!(train(&mut whole, 10), train(&mut resumed, 10));
    for (a, b) in whole.parameters().iter().zip(resumed.parameters()) {
        let [a, b] = [a, b].map(|p| [&*p.value, &p.first_moment, &p.second_moment].map(|t| t.to_vec::<f32>().unwrap()));
        assert_eq!(a, b);
    }
    let file = Weights::open(&path).unwrap();
    for part in ["value", "first_moment", "second_moment", "average"] {
        let kept = file.names().filter(|name| name.starts_with(part)).flat_map(|name| file.to_f32(name).unwrap().into_owned());
        let kept: Vec<f32> = kept.filter(|v| *v != 0.0).collect();
        let wide = kept.iter().filter(|v| v.to_bits() & 0xffff != 0).count();
        assert!(wide * 10 > kept.len() * 9, "{part}: {wide} of {} have more bits than bf16", kept.len());
    }
    // It says how a step is computed, not what is trained.
    let mut full = Trainer::resume(&path, against_discriminators(Compute::F32), &Device::Cpu).unwrap();
    assert_ne!(train(&mut full, 8)[0], train(&mut Trainer::resume(&path, config, &Device::Cpu).unwrap(), 8)[0]);
}

/// By the device's own kernels in bf16. Sums in another order round a few values the other way, which every layer after them makes more of, up
/// to what rounding itself does: products are compared one by one above. A code at a near tie would do more; so of plain autoencoding.
#[test]
fn steps_are_the_same_on_the_cpu_and_on_the_emulator() {
    let run = |device: &str, compute| {
        let device = Device::open(device).expect("the emulator needs a C++ compiler");
        let mut config = against_discriminators(compute);
        config.codebook.start = 100;
        train(&mut Trainer::new(config, &device).unwrap(), 3)
    };
    let (cpu, emulator, full) = (run("cpu", Compute::Bf16), run("emulator", Compute::Bf16), run("cpu", Compute::F32));
    let apart = |a: &[Losses], b: &[Losses]| {
        let of = |l: &Losses| [l.mel, l.wave, l.adversarial, l.feature, l.discriminator.unwrap_or(0.0), l.gradient_norm];
        let pairs = a.iter().zip(b).flat_map(|(a, b)| of(a).into_iter().zip(of(b)));
        pairs.map(|(a, b)| (a - b).abs() / a.abs().max(1e-3)).fold(0.0, f64::max)
    };
    println!("losses differ by {:.1e} at most, by {:.1e} from f32", apart(&cpu, &emulator), apart(&cpu, &full));
    assert!(apart(&cpu, &emulator) * 2.0 < apart(&cpu, &full));
}

/// What products keep is half as large; what stands between them is not.
#[test]
fn a_step_takes_less_memory() {
    let [narrow, wide] = [Compute::Bf16, Compute::F32].map(|compute| {
        let device = Device::open("emulator").expect("the emulator needs a C++ compiler");
        let mut config = tiny(compute);
        (config.train.batch, config.train.crop_frames, config.loss.mel) = (8, 160, 0.0);
        let mut trainer = Trainer::new(config, &device).unwrap();
        train(&mut trainer, 1);
        let Device::Cuda(cuda) = &device else { panic!() };
        cuda.reserved_bytes()
    });
    println!("{narrow} bytes instead of {wide}: {:.2}", narrow as f64 / wide as f64);
    assert!(narrow * 10 < wide * 9, "{narrow} bytes, {wide} in f32");
}

#[test]
fn an_unknown_type_is_one_line_of_error() {
    let config = |compute: &str| TrainConfig::from_toml(&format!("model = \"te50\"\n[train]\ncompute = {compute}"));
    assert_eq!(config("\"bf16\"").unwrap().train.compute, Compute::Bf16);
    for wrong in ["\"fp8\"", "\"BF16\"", "16", "\"\""] {
        let error = config(wrong).unwrap_err().to_string();
        println!("{error}");
        assert!(!error.contains('\n') && (wrong == "16" || error.contains("bf16")), "{error}");
    }
    let config = config("\"bf16\"").unwrap();
    assert_eq!(TrainConfig::from_toml(&toml::to_string(&config).unwrap()).unwrap(), config);
}
