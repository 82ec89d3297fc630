//! Small language models (verify/reference/moshi_lm.py) against LMGen of moshi: tokens, logits, layouts, streams.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use swara_engine::lm::{Config, Drawing, Drawn, Format, Lm, Session, Widths};
use swara_kernels::case::SplitMix;
use swara_kernels::driver::{Arch, dry};
use swara_kernels::ops::attention::Kept;
use swara_kernels::ops::delay::UNGENERATED;
use swara_kernels::{DType, Device, Tensor};
use swara_loader::weights::{TensorRef, Weights, save};

const CASES: [&str; 4] = ["moshi", "shared", "plain", "listener"];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../verify/golden/moshi_lm").join(name)
}

struct Case {
    file: Weights,
    batch: usize,
    steps: usize,
}

impl Case {
    fn open(name: &str) -> Case {
        let file = Weights::open(golden(name).with_extension("safetensors")).unwrap();
        let shape = file.view("user").unwrap().shape.to_vec();
        Case { file, batch: shape[0], steps: shape[1] }
    }

    /// Step `step` of a tensor `[B, S, ..]`.
    fn ids(&self, name: &str, step: usize) -> Vec<i32> {
        let (width, values) = (self.file.view(name).unwrap().shape[2], self.file.to_i32(name).unwrap());
        (0..self.batch).flat_map(|b| values[(b * self.steps + step) * width..][..width].to_vec()).collect()
    }

    fn f32(&self, name: &str, step: usize) -> Vec<f32> {
        let (shape, values) = (self.file.view(name).unwrap().shape.to_vec(), self.file.to_f32(name).unwrap());
        let width: usize = shape[2..].iter().product();
        (0..self.batch).flat_map(|b| values[(b * self.steps + step) * width..][..width].to_vec()).collect()
    }

    fn heard(&self, device: &Device, step: usize) -> Tensor {
        let ids = self.ids("user", step);
        Tensor::from_slice(device, &ids, [self.batch, ids.len() / self.batch]).unwrap()
    }
}

fn deviation(values: &[f32]) -> f32 {
    let mean = values.iter().sum::<f32>() / values.len() as f32;
    (values.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / values.len() as f32).sqrt()
}

/// The largest difference over the spread of what is expected.
fn distance(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / deviation(expected)
}

fn equals_moshi(device: &Device, name: &str, bound: f32) {
    let case = Case::open(name);
    let lm = Lm::open(&golden("weights").join(name), device, DType::F32).unwrap();
    let mut session = Session::new(&lm, &vec![Drawing::GREEDY; case.batch]).unwrap();
    let mut worst: f32 = 0.0;
    for step in 0..case.steps {
        let found = session.step(&case.heard(device, step), None).unwrap();
        worst = worst.max(distance(&found.text_logits.to_vec().unwrap(), &case.f32("text_logits", step)));
        assert_eq!(found.said.to_vec::<i32>().unwrap(), case.ids("said", step), "{name}: said in step {step}");
        assert_eq!(found.complete.to_vec::<i32>().unwrap(), case.ids("out", step), "{name}: complete in step {step}");
        if case.file.contains("heads") {
            let heads: Vec<Vec<f32>> = found.heads.iter().map(|h| h.to_vec().unwrap()).collect();
            let expected = case.f32("heads", step);
            let width = expected.len() / heads.len() / case.batch;
            let found: Vec<f32> = (0..case.batch).flat_map(|b| heads.iter().flat_map(move |h| h[b * width..][..width].to_vec())).collect();
            worst = worst.max(distance(&found, &expected));
        }
    }
    println!("{name} on {device:?}: {} steps, logits within {worst:.1e} of their spread", case.steps);
    assert!(worst < bound, "{name}: logits are off by {worst} of their spread");
}

#[test]
fn tokens_and_logits_equal_moshi() {
    for name in CASES {
        equals_moshi(&Device::Cpu, name, 1e-5);
    }
}

#[test]
fn the_emulator_says_the_same() {
    for name in CASES {
        equals_moshi(&Device::open("emulator").unwrap(), name, 1e-5);
    }
}

type Tensors = Vec<(String, Vec<usize>, Vec<f32>)>;

fn tensors(name: &str) -> Tensors {
    let file = Weights::open(golden("weights").join(name)).unwrap();
    let shape = |n: &str| file.view(n).unwrap().shape.to_vec();
    file.names().map(|n| (n.to_owned(), shape(n), file.to_f32(n).unwrap().into_owned())).collect()
}

/// Matrices one below the other, each on its own.
fn split((name, shape, values): &(String, Vec<usize>, Vec<f32>), sets: usize) -> Tensors {
    let (rows, width) = (shape[0] / sets, shape[1]);
    values.chunks(rows * width).map(|part| (name.clone(), vec![rows, width], part.to_vec())).collect()
}

/// The names that moshi saves since 2025.
fn saved_since(tensors: Tensors, sets: usize) -> Tensors {
    let resave = |tensor: (String, Vec<usize>, Vec<f32>)| {
        let stem = ["in_proj_weight", "out_proj.weight"].iter().find_map(|end| Some((tensor.0.strip_suffix(end)?, &end[..end.len() - 7])));
        let Some((stem, part)) = stem else { return vec![tensor] };
        let sets = if stem.starts_with("depformer.") { sets } else { 1 };
        let name = |i: usize| format!("{stem}{part}s.{i}.weight");
        split(&tensor, sets).into_iter().enumerate().map(|(i, (_, shape, values))| (name(i), shape, values)).collect()
    };
    tensors.into_iter().flat_map(resave).collect()
}

/// A depth transformer for every step, as the Rust moshi has it.
fn per_step(tensors: Tensors, schedule: &[usize]) -> Tensors {
    let sets = schedule.iter().max().unwrap() + 1;
    let mut out = Tensors::new();
    for tensor in tensors {
        let name = tensor.0.clone();
        let copies = |part: &dyn Fn(usize) -> (String, Vec<usize>, Vec<f32>)| (0..schedule.len()).map(part).collect::<Tensors>();
        let renamed = |name: String| (name, tensor.1.clone(), tensor.2.clone());
        let number = |prefix: &str| -> Option<(usize, String)> {
            let (n, rest) = name.strip_prefix(prefix)?.split_once('.')?;
            Some((n.parse().ok()?, rest.to_owned()))
        };
        if let Some((layer, rest)) = number("depformer.layers.") {
            let parts = if rest.contains("_proj") { split(&tensor, sets) } else { Tensors::new() };
            out.extend((0..schedule.len()).filter_map(|k| {
                let to = |rest: &str| format!("depformer.{k}.transformer.layers.{layer}.{rest}");
                if let Some(part) = parts.get(schedule[k]) {
                    return Some((to(&rest), part.1.clone(), part.2.clone()));
                }
                match rest.strip_prefix("gating.").and_then(|gate| gate.split_once('.')) {
                    Some((set, part)) => (set.parse() == Ok(schedule[k])).then(|| renamed(to(&format!("gating.{part}")))),
                    None => Some(renamed(to(&rest))),
                }
            }));
        } else if let Some((i, part)) = number("depformer_in.") {
            let all = copies(&|k| renamed(format!("depformer.{k}.linear_in.{part}")));
            out.extend(all.into_iter().enumerate().filter(|(k, _)| schedule[*k] == i).map(|(_, tensor)| tensor));
        } else if let Some((k, part)) = number("linears.") {
            out.push(renamed(format!("depformer.{k}.linear_out.{part}")));
        } else if let Some((k, part)) = number("depformer_emb.") {
            out.push(renamed(format!("depformer.{}.emb.{part}", k + 1)));
        } else if let Some(part) = name.strip_prefix("depformer_text_emb.") {
            out.push(renamed(format!("depformer.0.emb.{part}")));
        } else {
            out.push(tensor);
        }
    }
    out
}

fn write(dir: &Path, name: &str, tensors: &Tensors) {
    let refs: Vec<TensorRef> = tensors.iter().map(|(n, s, v)| TensorRef::f32(n, s, v)).collect();
    save(dir.join("model.safetensors"), &refs, &BTreeMap::new()).unwrap();
    std::fs::copy(golden("weights").join(name).join("config.json"), dir.join("config.json")).unwrap();
}

#[test]
fn every_published_layout_says_the_same() {
    for (name, schedule) in [("moshi", &[0, 1, 2, 3][..]), ("shared", &[0, 1, 1, 2, 1])] {
        let case = Case::open(name);
        let sets = schedule.iter().max().unwrap() + 1;
        for (layout, tensors) in [("since", saved_since(tensors(name), sets)), ("candle", per_step(tensors(name), schedule))] {
            let dir = tempfile::tempdir().unwrap();
            write(dir.path(), name, &tensors);
            let lm = Lm::open(dir.path(), &Device::Cpu, DType::F32).unwrap_or_else(|e| panic!("{name} {layout}: {e}"));
            let mut session = Session::new(&lm, &vec![Drawing::GREEDY; case.batch]).unwrap();
            for step in 0..40 {
                let found = session.step(&case.heard(&Device::Cpu, step), None).unwrap();
                assert_eq!(found.said.to_vec::<i32>().unwrap(), case.ids("said", step), "{name} {layout}: step {step}");
            }
        }
    }
}

/// Streams that sit out at random and begin anew say, bit for bit, what each says alone.
#[test]
fn streams_of_a_batch_are_as_if_alone() {
    for device in [Device::Cpu, Device::open("emulator").unwrap()] {
        let case = Case::open("shared");
        let lm = Lm::open(&golden("weights/shared"), &device, DType::F32).unwrap();
        let drawing: Vec<Drawing> = (0..4).map(|seed| Drawing::seeded(&Drawn::default(), seed)).collect();
        let heard = |b: usize, t: usize| case.ids("user", (t + 7 * b) % case.steps)[..lm.config().heard()].to_vec();
        let alone = |b: usize| {
            let mut session = Session::new(&lm, &drawing[b..=b]).unwrap();
            let mut said = Vec::new();
            for t in 0..24 {
                if t == 15 {
                    session.reset(&Tensor::from_slice(&device, &[1u8], [1]).unwrap()).unwrap();
                }
                let heard = heard(b, t);
                let step = session.step(&Tensor::from_slice(&device, &heard, [1, heard.len()]).unwrap(), None).unwrap();
                said.push((step.complete.to_vec::<i32>().unwrap(), step.text_logits.to_vec::<f32>().unwrap()));
            }
            said
        };
        let expected: Vec<_> = (0..4).map(alone).collect();
        let mut session = Session::new(&lm, &drawing).unwrap();
        let mut rng = SplitMix(9);
        let mut at = [0usize; 4];
        while at.iter().any(|&t| t < 24) {
            let runs: Vec<u8> = at.iter().map(|&t| u8::from(t < 24 && rng.uniform() < 0.6)).collect();
            let anew: Vec<u8> = (0..4).map(|b| u8::from(runs[b] == 1 && at[b] == 15)).collect();
            session.reset(&Tensor::from_slice(&device, &anew, [4]).unwrap()).unwrap();
            let ids: Vec<i32> = (0..4).flat_map(|b| heard(b, at[b])).collect();
            let mask = Tensor::from_slice(&device, &runs, [4]).unwrap();
            let step = session.step(&Tensor::from_slice(&device, &ids, [4, ids.len() / 4]).unwrap(), Some(&mask)).unwrap();
            let (complete, logits) = (step.complete.to_vec::<i32>().unwrap(), step.text_logits.to_vec::<f32>().unwrap());
            for b in 0..4 {
                let row = &complete[b * complete.len() / 4..][..complete.len() / 4];
                if runs[b] == 0 {
                    assert!(row.iter().all(|&id| id == UNGENERATED));
                    continue;
                }
                let (complete, alone) = &expected[b][at[b]];
                assert_eq!(row, complete, "stream {b} at step {} on {device:?}", at[b]);
                assert_eq!(&logits[b * alone.len()..][..alone.len()], alone, "logits of stream {b} at step {}", at[b]);
                at[b] += 1;
            }
        }
    }
}

/// With masks, resets and without, past the context.
#[test]
fn steps_as_graphs_equal_steps_launched_kernel_by_kernel() {
    let opened = |name: &'static str, dtype: DType| move |device: &Device| Lm::open(&golden("weights").join(name), device, dtype).unwrap();
    // Codes on CUDA are of 32 columns at a time.
    let few_bits = |device: &Device| {
        let config = Config {
            dim: 64,
            num_heads: 2,
            num_layers: 2,
            hidden_scale: 3.0,
            n_q: 8,
            dep_q: 4,
            card: 32,
            text_card: 40,
            context: Some(24),
            delays: vec![0, 0, 1, 1, 1, 0, 1, 1, 1],
            depformer_dim: 64,
            depformer_num_heads: Some(2),
            depformer_num_layers: Some(2),
            depformer_dim_feedforward: Some(Widths::All(96)),
            ..Config::moshi()
        };
        Lm::random(config, device, Format { kept: Some(Kept::Int8), ..Format::int4_all(DType::BF16) }).unwrap()
    };
    type Open<'a> = &'a dyn Fn(&Device) -> Lm;
    let models: [(&str, &str, Open); 4] = [
        ("moshi", "f32", &opened("moshi", DType::F32)),
        ("shared", "bf16", &opened("shared", DType::BF16)),
        ("listener", "f16", &opened("listener", DType::F16)),
        ("moshi", "few bits", &few_bits),
    ];
    for (case, name, open) in models {
        let device = Device::open("emulator").unwrap();
        let Device::Cuda(cuda) = &device else { unreachable!() };
        let (case, lm, batch) = (Case::open(case), open(&device), 2);
        let drawing: Vec<Drawing> = (0..batch as u64).map(|seed| Drawing::seeded(&Drawn::default(), seed)).collect();
        let [mut replayed, mut launched] = [(); 2].map(|()| Session::new(&lm, &drawing).unwrap());
        launched.graphs(false);
        let (mut rng, heard, mut kernels) = (SplitMix(3), lm.config().heard(), 0);
        for step in 0..30 {
            let ids: Vec<i32> = case.ids("user", step % case.steps).into_iter().cycle().take(batch * heard).collect();
            let ids = Tensor::from_slice(&device, &ids, [batch, heard]).unwrap();
            let runs = [1, u8::from(!(10..20).contains(&step) || rng.uniform() < 0.5)];
            let mask = (10..20).contains(&step).then(|| Tensor::from_slice(&device, &runs, [batch]).unwrap());
            if step == 15 {
                let second = Tensor::from_slice(&device, &[0u8, 1], [batch]).unwrap();
                for session in [&mut replayed, &mut launched] {
                    session.reset(&second).unwrap();
                }
            }
            let before = [cuda.launches(), cuda.kernels()];
            let found = replayed.step(&ids, mask.as_ref()).unwrap();
            let counts = [cuda.launches() - before[0], cuda.kernels() - before[1]];
            match step {
                // Of another size than the one before.
                0 | 10 | 20 => assert_eq!(counts[0], counts[1], "{name}: step {step}"),
                _ => assert_eq!(counts, [1, kernels], "{name}: step {step}"),
            }
            let before = cuda.launches();
            let expected = launched.step(&ids, mask.as_ref()).unwrap();
            kernels = cuda.launches() - before;
            let same = |what: &str, a: &Tensor, b: &Tensor| {
                let [a, b] = [a, b].map(|t| t.to_f64().unwrap());
                let rows = if runs[1] == 1 { a.len() } else { a.len() / 2 };
                assert_eq!(a[..rows], b[..rows], "{name}: {what} in step {step}");
            };
            same("complete", &found.complete, &expected.complete);
            same("said", &found.said, &expected.said);
            same("logits", &found.text_logits, &expected.text_logits);
            assert_eq!(found.heads.len(), expected.heads.len());
            found.heads.iter().zip(&expected.heads).for_each(|(a, b)| same("a head", a, b));
        }
        assert_eq!(replayed.no_graph(), None);
        println!("{name}: {kernels} kernels a step, one launch as a graph");
    }
}

#[test]
fn where_no_graph_can_be_had_steps_are_launched_and_say_why() {
    let (device, notes) = dry::open(Arch(90));
    let lm = Lm::open(&golden("weights/moshi"), &device, DType::F32).unwrap();
    let mut session = Session::new(&lm, &[Drawing::GREEDY]).unwrap();
    let heard = Tensor::from_slice(&device, &[0; 4], [1, 4]).unwrap();
    notes.take();
    let steps = [(); 4].map(|()| {
        session.step(&heard, None).unwrap();
        notes.take().len()
    });
    assert!(steps[0] > 20 && steps == [steps[0]; 4], "{steps:?}");
    assert!(session.no_graph().is_some_and(|why| why.contains("nothing to capture")), "{:?}", session.no_graph());
}

#[test]
fn what_does_not_fit_is_an_error() {
    let refused = |change: &dyn Fn(&mut Tensors), why: &str| {
        let dir = tempfile::tempdir().unwrap();
        let mut tensors = tensors("moshi");
        change(&mut tensors);
        write(dir.path(), "moshi", &tensors);
        let error = Lm::open(dir.path(), &Device::Cpu, DType::F32).err().expect(why).to_string();
        assert!(error.contains(why), "{error}");
    };
    let named = |tensors: &Tensors, name: &str| tensors.iter().position(|t| t.0 == name).unwrap();
    refused(&|t| t.retain(|t| t.0 != "linears.2.weight"), "linears.2.weight");
    refused(&|t| t.push(("linears.9.weight".into(), vec![1], vec![0.0])), "linears.9.weight");
    refused(&|t| t.retain(|t| t.0 != "text_emb.weight"), "no language model");
    refused(
        &|t| {
            let i = named(t, "depformer.layers.1.self_attn.in_proj_weight");
            t[i].1 = vec![t[i].1[0] / 2, t[i].1[1] * 2];
        },
        "depformer.layers.1.self_attn.in_proj_weight",
    );
    refused(
        &|t| {
            let i = named(t, "out_norm.alpha");
            t[i].2[3] = f32::NAN;
        },
        "element 3 of tensor out_norm.alpha",
    );
    let lm = Lm::open(&golden("weights/moshi"), &Device::Cpu, DType::F32).unwrap();
    let mut session = Session::new(&lm, &[Drawing::GREEDY]).unwrap();
    let ids = |ids: &[i32]| Tensor::from_slice(&Device::Cpu, ids, [1, ids.len()]).unwrap();
    assert!(session.step(&ids(&[0; 3]), None).is_err(), "a code too few");
    assert!(session.step(&ids(&[0; 4]), None).is_ok());
    assert!(session.step(&ids(&[99, 0, 0, 0]), None).is_err(), "a code beyond its table");
    assert!(Lm::open(&golden("weights/moshi"), &Device::Cpu, DType::F16).is_err());
}
