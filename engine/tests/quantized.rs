//! Language models whose matrices are codes: what they say is what the values of these codes say, in every layout, on every device.

use std::path::Path;

use swara_engine::lm::{Config, Drawing, Drawn, Format, Lm, Session};
use swara_kernels::ops::attention::Kept;
use swara_kernels::{DType, Device, Tensor};
use swara_loader::quantized::Quantized;
use swara_loader::weights::{Dtype, TensorRef, Weights, save};

/// As moshi's config.json has it; every row of a matrix is a multiple of 32 wide.
const CONFIG: &str = r#"{
    "card": 60, "text_card": 90, "dim": 64, "num_heads": 4, "num_layers": 2, "hidden_scale": 3.0, "context": 12,
    "norm": "rms_norm_f32", "gating": "silu", "positional_embedding": "rope", "n_q": 4, "dep_q": 2, "delays": [0, 0, 1, 0, 1],
    "depformer_dim": 32, "depformer_num_heads": 2, "depformer_num_layers": 2, "depformer_dim_feedforward": 96,
    "depformer_weights_per_step": true, "depformer_multi_linear": true, "depformer_pos_emb": "none"
}"#;

/// A tensor as a file has it.
struct Stored {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Stored {
    fn f32(name: &str, shape: &[usize], values: &[f32]) -> Stored {
        Stored {
            name: name.to_owned(),
            dtype: Dtype::F32,
            shape: shape.to_vec(),
            bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    }
}

/// Names, shapes and values of moshi's tensors, those of a depth transformer stacked as it first had them.
fn tensors() -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let mut rng = swara_kernels::case::SplitMix(11);
    let mut tensors = Vec::new();
    let mut add = |name: String, shape: &[usize]| {
        let count: usize = shape.iter().product();
        let factor = name.ends_with(".alpha");
        let bound = (3.0 / *shape.last().unwrap() as f64).sqrt() * 0.6;
        let values = (0..count).map(|_| if factor { 0.5 + rng.uniform() } else { bound * (2.0 * rng.uniform() - 1.0) } as f32).collect();
        tensors.push((name, shape.to_vec(), values));
    };
    let mut block = |name: &str, gates: &[String], width: usize, hidden: usize, sets: usize| {
        add(format!("{name}.norm1.alpha"), &[1, 1, width]);
        add(format!("{name}.norm2.alpha"), &[1, 1, width]);
        add(format!("{name}.self_attn.in_proj_weight"), &[sets * 3 * width, width]);
        add(format!("{name}.self_attn.out_proj.weight"), &[sets * width, width]);
        for gate in gates {
            add(format!("{name}.{gate}.linear_in.weight"), &[2 * hidden, width]);
            add(format!("{name}.{gate}.linear_out.weight"), &[width, hidden]);
        }
    };
    for layer in 0..2 {
        block(&format!("transformer.layers.{layer}"), &["gating".into()], 64, 128, 1);
        block(&format!("depformer.layers.{layer}"), &[0, 1].map(|set| format!("gating.{set}")), 32, 64, 2);
    }
    for k in 0..4 {
        add(format!("emb.{k}.weight"), &[61, 64]);
    }
    for (name, shape) in
        [("text_emb", [91, 64]), ("text_linear", [90, 64]), ("depformer_text_emb", [91, 32]), ("depformer_emb.0", [61, 32])]
    {
        add(format!("{name}.weight"), &shape);
    }
    for k in 0..2 {
        add(format!("depformer_in.{k}.weight"), &[32, 64]);
        add(format!("linears.{k}.weight"), &[60, 32]);
    }
    add("out_norm.alpha".into(), &[1, 1, 64]);
    tensors
}

/// Whether moshi keeps it as codes when it is asked to: embeddings stay.
fn is_matrix(name: &str) -> bool {
    !name.contains("emb") && !name.ends_with(".alpha")
}

fn temporal(name: &str) -> bool {
    name.starts_with("transformer.")
}

/// Every tensor as `stored` has it, or as it is where that says nothing.
fn open(stored: impl Fn(&str, [usize; 2], &[f32]) -> Option<Vec<Stored>>, format: Format, device: &Device) -> Lm {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), stored);
    Lm::open(dir.path(), device, format).unwrap()
}

fn write(dir: &Path, stored: impl Fn(&str, [usize; 2], &[f32]) -> Option<Vec<Stored>>) {
    let all: Vec<Stored> = tensors()
        .iter()
        .flat_map(|(name, shape, values)| {
            let matrix = is_matrix(name).then(|| stored(name, [shape[0], shape[1]], values)).flatten();
            matrix.unwrap_or_else(|| vec![Stored::f32(name, shape, values)])
        })
        .collect();
    let refs: Vec<TensorRef> = all.iter().map(|t| TensorRef { name: &t.name, dtype: t.dtype, shape: &t.shape, bytes: &t.bytes }).collect();
    save(dir.join("model.safetensors"), &refs, &Default::default()).unwrap();
    std::fs::write(dir.join("config.json"), CONFIG).unwrap();
}

fn values(name: &str, shape: [usize; 2], codes: &Quantized) -> Option<Vec<Stored>> {
    Some(vec![Stored::f32(name, &shape, &codes.dequantize())])
}

/// Tokens and text logits of 40 greedy steps of one stream.
fn said(lm: &Lm) -> Vec<(Vec<i32>, Vec<f32>)> {
    let mut session = Session::new(lm, &[Drawing::GREEDY]).unwrap();
    let heard = |step: usize| Tensor::from_slice(lm.device(), &[(step * 7 % 60) as i32, (step * 13 % 60) as i32], [1, 2]).unwrap();
    let step = |step: usize| {
        let step = session.step(&heard(step), None).unwrap();
        (step.said.to_vec().unwrap(), step.text_logits.to_vec().unwrap())
    };
    (0..40).map(step).collect()
}

fn int4(_: &str, shape: [usize; 2], values: &[f32]) -> Quantized {
    Quantized::int4(shape, if shape[1].is_multiple_of(64) { 64 } else { 32 }, values).unwrap()
}

fn int8(_: &str, shape: [usize; 2], values: &[f32]) -> Quantized {
    Quantized::int8(shape, shape[1], values).unwrap()
}

type Rounding = fn(&str, [usize; 2], &[f32]) -> Quantized;

#[test]
fn rounded_matrices_are_the_values_of_their_codes() {
    let formats: [(Format, Rounding); 3] = [
        (Format::int8(DType::F32), int8),
        (Format::int4(DType::F32), |name, shape, v| if temporal(name) { int4(name, shape, v) } else { int8(name, shape, v) }),
        (Format::int4_all(DType::F32), |name, shape, v| {
            let eight = name.starts_with("text_linear") || name.starts_with("linears");
            if eight { int8(name, shape, v) } else { int4(name, shape, v) }
        }),
    ];
    for (format, rounded) in formats {
        let found = said(&open(|_, _, _| None, format, &Device::Cpu));
        let by_values = |name: &str, shape, v: &[f32]| values(name, shape, &rounded(name, shape, v));
        assert_eq!(found, said(&open(by_values, DType::F32.into(), &Device::Cpu)), "{format:?}");
        assert_ne!(found, said(&open(|_, _, _| None, DType::F32.into(), &Device::Cpu)), "{format:?}");
    }
}

/// As `moshi` saves it after bitsandbytes.
fn scb(name: &str, shape: [usize; 2], codes: &Quantized) -> Option<Vec<Stored>> {
    let scb: Vec<f32> = codes.scales().iter().map(|scale| (scale * 127.0).round()).collect();
    Some(vec![
        Stored { name: name.to_owned(), dtype: Dtype::I8, shape: shape.to_vec(), bytes: codes.codes().to_vec() },
        Stored::f32(&format!("{name}_scb"), &[shape[0]], &scb),
    ])
}

/// Weights that are codes of 8 bits times the scale 3/127: of the scale of a row, that of its largest element.
fn coarse(name: &str, shape: [usize; 2], v: &[f32]) -> Quantized {
    let codes = int8(name, shape, v);
    let scale = 3.0 * (1.0 / 127.0f32);
    Quantized::new(shape, codes.bits(), codes.group(), vec![scale; codes.scales().len()], None, codes.codes().to_vec()).unwrap()
}

#[test]
fn matrices_as_bitsandbytes_has_them() {
    let found = said(&open(|name, shape, v| scb(name, shape, &coarse(name, shape, v)), DType::F32.into(), &Device::Cpu));
    let by_values = |name: &str, shape, v: &[f32]| values(name, shape, &coarse(name, shape, v));
    assert_eq!(found, said(&open(by_values, DType::F32.into(), &Device::Cpu)));
}

/// As AutoGPTQ packs it, symmetric, in groups of 32.
fn gptq(name: &str, shape: [usize; 2], codes: &Quantized) -> Option<Vec<Stored>> {
    let ([rows, columns], layer) = (shape, name.strip_suffix("weight")?);
    if !rows.is_multiple_of(8) || name.ends_with("in_proj_weight") {
        return None;
    }
    let code = |n: usize, k: usize| u32::from(codes.codes()[(n * columns + k) / 2] >> (4 * (k % 2)) & 15);
    let word = |at: usize| (0..8).map(|i| code(at % rows, at / rows * 8 + i) << (4 * i)).sum::<u32>();
    let groups = columns / 32;
    let scales = (0..groups * rows).map(|at| codes.scales()[at % rows * groups + at / rows]);
    let stored =
        |part: &str, dtype, shape: [usize; 2], bytes| Stored { name: format!("{layer}{part}"), dtype, shape: shape.to_vec(), bytes };
    Some(vec![
        stored("qweight", Dtype::I32, [columns / 8, rows], (0..columns / 8 * rows).flat_map(|at| word(at).to_le_bytes()).collect()),
        stored("qzeros", Dtype::I32, [groups, rows / 8], vec![0x77; groups * rows / 2]),
        stored("scales", Dtype::F16, [groups, rows], scales.flat_map(|s| half::f16::from_f32(s).to_le_bytes()).collect()),
    ])
}

#[test]
fn matrices_as_gptq_has_them() {
    let packed = |name: &str, shape, v: &[f32]| gptq(name, shape, &Quantized::q4_0(shape, v).unwrap());
    let by_values = |name: &str, shape, v: &[f32]| {
        let codes = Quantized::q4_0(shape, v).unwrap();
        gptq(name, shape, &codes).and_then(|_| values(name, shape, &codes))
    };
    assert_eq!(said(&open(packed, DType::F32.into(), &Device::Cpu)), said(&open(by_values, DType::F32.into(), &Device::Cpu)));
}

/// In panels, where rows fill them.
fn panels(name: &str, codes: &Quantized) -> Option<Vec<Stored>> {
    let (panels, layer) = (codes.to_panels().ok()?, name.strip_suffix("weight")?);
    let (count, groups) = (panels.rows() / 32, panels.columns() / panels.group());
    let stored = |part: &str, values: &[f32]| Stored::f32(&format!("{layer}{part}"), &[count, groups, 32], values);
    let shape = vec![count, panels.columns(), panels.bits().bytes(32)];
    let mut all = vec![
        Stored { name: format!("{layer}panels"), dtype: Dtype::U8, shape, bytes: panels.codes().to_vec() },
        stored("scales", panels.scales()),
    ];
    all.extend(panels.mins().map(|mins| stored("mins", mins)));
    Some(all)
}

/// 4 bits from the least of a group on.
fn with_minima(_: &str, shape: [usize; 2], values: &[f32]) -> Quantized {
    let near = Quantized::int4(shape, 32, values).unwrap();
    let mins = near.scales().iter().map(|scale| 8.5 * scale).collect();
    Quantized::new(shape, near.bits(), 32, near.scales().to_vec(), Some(mins), near.codes().to_vec()).unwrap()
}

#[test]
fn matrices_in_panels() {
    let emulator = Device::open("emulator").unwrap();
    for rounded in [int8 as Rounding, int4, with_minima] {
        let packed = |name: &str, shape, v: &[f32]| panels(name, &rounded(name, shape, v));
        let by_values = |name: &str, shape, v: &[f32]| {
            let codes = rounded(name, shape, v);
            panels(name, &codes).and_then(|_| values(name, shape, &codes))
        };
        let found = said(&open(packed, DType::F32.into(), &Device::Cpu));
        assert_eq!(found, said(&open(by_values, DType::F32.into(), &Device::Cpu)));
        // What is in no panels is rounded as asked, what is stays.
        let rest = |name: &str, shape, v: &[f32]| {
            let codes = rounded(name, shape, v);
            if panels(name, &codes).is_some() { values(name, shape, &codes) } else { values(name, shape, &int8(name, shape, v)) }
        };
        let asked = said(&open(packed, Format::int8(DType::F32), &Device::Cpu));
        assert_eq!(asked, said(&open(rest, DType::F32.into(), &Device::Cpu)));
        for ((tokens, logits), (there, near)) in found.iter().zip(&said(&open(packed, DType::F32.into(), &emulator))) {
            assert_eq!(tokens, there);
            assert!(logits.iter().zip(near).all(|(a, b)| (a - b).abs() < 1e-4), "{logits:?} {near:?}");
        }
    }
}

/// A GGUF file of F32, and of Q8_0 where `codes` says so.
fn gguf(path: &Path, tensors: &[(String, Vec<usize>, Vec<f32>)]) {
    let blocks = |name: &str, shape: &[usize], v: &[f32]| match shape {
        &[rows, columns] if is_matrix(name) && columns.is_multiple_of(32) => {
            let codes = Quantized::q8_0([rows, columns], v).unwrap();
            let blocks = codes.scales().iter().zip(codes.codes().chunks(32));
            (8u32, blocks.flat_map(|(&s, codes)| [&half::f16::from_f32(s).to_le_bytes()[..], codes].concat()).collect())
        }
        _ => (0u32, v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()),
    };
    let (mut header, mut data) = (b"GGUF".to_vec(), Vec::new());
    header.extend(3u32.to_le_bytes());
    header.extend([tensors.len() as u64, 0].map(u64::to_le_bytes).concat());
    for (name, shape, v) in tensors {
        let (kind, bytes) = blocks(name, shape, v);
        header.extend((name.len() as u64).to_le_bytes());
        header.extend(name.as_bytes());
        header.extend((shape.len() as u32).to_le_bytes());
        header.extend(shape.iter().rev().flat_map(|&n| (n as u64).to_le_bytes()));
        header.extend(kind.to_le_bytes());
        header.extend((data.len() as u64).to_le_bytes());
        data.extend(bytes);
        data.resize(data.len().next_multiple_of(32), 0);
    }
    header.resize(header.len().next_multiple_of(32), 0);
    std::fs::write(path, [header, data].concat()).unwrap();
}

#[test]
fn matrices_in_a_gguf_file() {
    let dir = tempfile::tempdir().unwrap();
    gguf(&dir.path().join("model.q8.gguf"), &tensors());
    std::fs::write(dir.path().join("config.json"), CONFIG).unwrap();
    assert!(Weights::open(dir.path()).is_ok());
    let found = said(&Lm::open(dir.path(), &Device::Cpu, DType::F32).unwrap());
    let by_values = |name: &str, shape, v: &[f32]| values(name, shape, &Quantized::q8_0(shape, v).unwrap());
    assert_eq!(found, said(&open(by_values, DType::F32.into(), &Device::Cpu)));
}

#[test]
fn the_emulator_says_the_same() {
    let emulator = Device::open("emulator").unwrap();
    let remembering = Format { kept: Some(Kept::Int8), ..DType::F32.into() };
    for format in [Format::int8(DType::F32), Format::int4_all(DType::F32), remembering] {
        let [cpu, emulated] = [&Device::Cpu, &emulator].map(|device| said(&open(|_, _, _| None, format, device)));
        for (step, ((tokens, logits), (found, near))) in cpu.iter().zip(&emulated).enumerate() {
            assert_eq!(tokens, found, "{format:?}: step {step}");
            let far = logits.iter().zip(near).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(far < 1e-4, "{format:?}: logits of step {step} are off by {far}");
        }
    }
}

#[test]
fn codes_of_another_shape_are_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let all = tensors();
    let mut stored: Vec<Stored> = all.iter().map(|(name, shape, v)| Stored::f32(name, shape, v)).collect();
    let at = all.iter().position(|t| t.0 == "text_linear.weight").unwrap();
    let codes = int8("", [90, 64], &all[at].2);
    stored.splice(at..=at, scb("text_linear.weight", [90, 64], &codes).unwrap());
    stored[at + 1].shape = vec![45, 2];
    let refs: Vec<TensorRef> =
        stored.iter().map(|t| TensorRef { name: &t.name, dtype: t.dtype, shape: &t.shape, bytes: &t.bytes }).collect();
    save(dir.path().join("model.safetensors"), &refs, &Default::default()).unwrap();
    std::fs::write(dir.path().join("config.json"), CONFIG).unwrap();
    let error = Lm::open(dir.path(), &Device::Cpu, DType::F32).err().unwrap().to_string();
    assert!(error.contains("text_linear.weight_scb"), "{error}");

    // Panels of half as many rows, and of twice as many columns.
    for (name, shape) in
        [("transformer.layers.1.gating.linear_in.weight", [128, 64]), ("depformer.layers.0.self_attn.in_proj_weight", [96, 64])]
    {
        let other = |of: &str, _: [usize; 2], _: &[f32]| {
            let codes = int8("", shape, &vec![0.5; shape[0] * shape[1]]);
            if of == name { panels(name, &codes) } else { None }
        };
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), other);
        for device in [Device::Cpu, Device::open("emulator").unwrap()] {
            let error = Lm::open(dir.path(), &device, DType::F32).err().unwrap().to_string();
            let panels = name.replace("weight", "panels");
            assert!(error.contains("expected") && (error.contains(name) || error.contains(&panels)), "{error}");
        }
    }
}

/// How far from the whole model, over first steps of many streams, while these say the same: divergence of the text's distribution
/// in nats, and how often its most probable token is another.
#[test]
fn fewer_bits_stay_near() {
    let whole = open(|_, _, _| None, DType::F32.into(), &Device::Cpu);
    let remembering = |kept| Format { kept: Some(kept), ..DType::F32.into() };
    for (format, divergence, agreement) in [
        (Format::int8(DType::F32), 1e-4, 0.97),
        (Format::int4(DType::F32), 1e-2, 0.75),
        (Format::int4_all(DType::F32), 1e-2, 0.75),
        (remembering(Kept::Int8), 1e-5, 0.97),
        (remembering(DType::BF16.into()), 1e-5, 0.97),
    ] {
        let lm = open(|_, _, _| None, format, &Device::Cpu);
        const STREAMS: usize = 64;
        let drawing: Vec<Drawing> = (0..STREAMS as u64).map(|seed| Drawing::seeded(&Drawn::default(), seed)).collect();
        let mut sessions = [&whole, &lm].map(|lm| Session::new(lm, &drawing).unwrap());
        let (mut same, mut agreed, mut seen, mut sum) = (vec![true; STREAMS], 0, 0, 0.0);
        for step in 0..12 {
            let codes: Vec<i32> = (0..2 * STREAMS).map(|i| ((i * 29 + step * 17 + i * i * 3) % 60) as i32).collect();
            let codes = Tensor::from_slice(&Device::Cpu, &codes, [STREAMS, 2]).unwrap();
            let steps = sessions.each_mut().map(|session| session.step(&codes, None).unwrap());
            let [logits, near] = steps.each_ref().map(|step| step.text_logits.to_vec::<f32>().unwrap());
            let [tokens, found] = steps.each_ref().map(|step| step.said.to_vec::<i32>().unwrap());
            for b in (0..STREAMS).filter(|&b| same[b]) {
                let row = |all: &[f32]| probabilities(&all[b * 90..][..90]);
                let (p, q) = (row(&logits), row(&near));
                sum += p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum::<f64>();
                let best = |p: &[f64]| (0..p.len()).max_by(|&i, &j| p[i].total_cmp(&p[j]));
                agreed += usize::from(best(&p) == best(&q));
                seen += 1;
            }
            (0..STREAMS).for_each(|b| same[b] &= tokens[b * 3..][..3] == found[b * 3..][..3]);
        }
        let (mean, share) = (sum / seen as f64, agreed as f64 / seen as f64);
        println!("{format:?}: divergence {mean:.2e}, {:.1} % agree, of {seen}", 100.0 * share);
        assert!(mean < divergence && share > agreement && seen > 100, "{format:?}: {mean} {share} {seen}");
    }
}

#[test]
fn keys_and_values_are_kept_as_asked_or_not_at_all() {
    let open = |kept| {
        let config = Config::from_json(CONFIG).unwrap();
        Lm::random(config, &Device::Cpu, Format { kept, ..DType::F32.into() })
    };
    // A factor for the 16 values of a head.
    let step = |kept| {
        let lm = open(kept).unwrap();
        lm.bytes_per_step(1) - lm.bytes_per_step(0)
    };
    let [values, half, codes] = [None, Some(DType::BF16.into()), Some(Kept::Int8)].map(step);
    assert_eq!((values, 8 * codes), (2 * half, 5 * half), "{values} {half} {codes}");
    for kept in [DType::F16, DType::F64, DType::I32, DType::U8] {
        let error = open(Some(kept.into())).err().unwrap().to_string();
        assert!(error.contains(&format!("keys and values in {kept}")), "{error}");
    }
}

#[test]
fn a_context_that_is_asked_for_is_that_of_the_model() {
    let config = Config::from_json(CONFIG).unwrap();
    let asked = Format { context: Some(3), ..DType::F32.into() };
    let less = Config { context: Some(3), ..config.clone() };
    let random = |config: &Config, format: Format| said(&Lm::random(config.clone(), &Device::Cpu, format).unwrap());
    assert_eq!(random(&config, asked), random(&less, DType::F32.into()));
    assert_ne!(random(&config, asked), random(&config, DType::F32.into()));
    assert!(Lm::random(config, &Device::Cpu, Format { context: Some(0), ..asked }).is_err());
}

fn probabilities(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::MIN, f32::max);
    let weights: Vec<f64> = logits.iter().map(|l| f64::from(l - most).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|w| w / sum).collect()
}
