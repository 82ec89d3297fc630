//! A small CSM (verify/reference/csm.py) against transformers: frames, logits, layouts, streams.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use swara_engine::csm::{Config, Csm, Draft, Drafted, Session, Step};
use swara_engine::lm::Format;
use swara_kernels::case::SplitMix;
use swara_kernels::driver::{Arch, dry};
use swara_kernels::ops::embedding::NONE;
use swara_kernels::ops::sample::Settings;
use swara_kernels::{DType, Device, Tensor};
use swara_loader::weights::{TensorRef, Weights, save};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../verify/golden/csm").join(name)
}

/// The rows of the prompt, and what is said after it.
struct Case {
    file: Weights,
    /// Ids of a row.
    width: usize,
    prompt: Vec<i32>,
    frames: usize,
}

impl Case {
    fn open() -> Case {
        let file = Weights::open(golden("frames.safetensors")).unwrap();
        let (ids, mask) = (file.to_i32("ids").unwrap(), file.to_i32("mask").unwrap());
        let prompt = ids.iter().zip(&*mask).map(|(&id, &there)| if there == 1 { id } else { NONE }).collect();
        let [width, frames] = [file.view("ids").unwrap().shape[1], file.view("codes").unwrap().shape[0]];
        Case { file, width, prompt, frames }
    }

    fn codes(&self, frame: usize) -> Vec<i32> {
        self.file.to_i32("codes").unwrap()[frame * (self.width - 1)..][..self.width - 1].to_vec()
    }

    /// Of every code of a frame.
    fn logits(&self, frame: usize) -> Vec<Vec<f32>> {
        let vocab = self.file.view("logits").unwrap().shape[2];
        let all = self.file.to_f32("logits").unwrap();
        all[frame * (self.width - 1) * vocab..][..(self.width - 1) * vocab].chunks(vocab).map(<[f32]>::to_vec).collect()
    }

    /// The rows before the last, and that.
    fn parts(&self) -> (&[i32], &[i32]) {
        self.prompt.split_at(self.prompt.len() - self.width)
    }
}

fn open(path: &Path, device: &Device, format: impl Into<Format>) -> Csm {
    Csm::open(path, device, format).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn row(device: &Device, ids: &[i32], width: usize) -> Tensor {
    Tensor::from_slice(device, ids, [ids.len() / width, width]).unwrap()
}

/// Frames of one stream after the prompt, taken `rows` rows at a time.
fn greedy(csm: &Csm, case: &Case, rows: usize, frames: usize, mut seen: impl FnMut(usize, &Step)) -> Vec<Vec<i32>> {
    let mut session = Session::new(csm, &[Settings::GREEDY]).unwrap();
    let (before, last) = case.parts();
    before.chunks(rows * case.width).for_each(|part| session.prompt(part, None).unwrap());
    let mut next = row(csm.device(), last, case.width);
    let frame = |frame| {
        let step = session.step(&next, None).unwrap();
        seen(frame, &step);
        let said = step.said.to_vec::<i32>().unwrap();
        assert_eq!(said[case.width - 1], NONE, "no text is said");
        next = step.said;
        said[..case.width - 1].to_vec()
    };
    (0..frames).map(frame).collect()
}

/// The largest difference over the spread of what is expected.
fn distance(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let mean = expected.iter().sum::<f32>() / expected.len() as f32;
    let spread = (expected.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / expected.len() as f32).sqrt();
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / spread
}

#[test]
fn frames_and_logits_equal_transformers_on_the_cpu_and_on_the_emulator() {
    let case = Case::open();
    for device in [Device::Cpu, Device::open("emulator").unwrap()] {
        let csm = open(&golden("weights"), &device, DType::F32);
        let mut worst = [0.0f32; 2];
        let said = greedy(&csm, &case, 1000, case.frames, |frame, step| {
            for (k, (found, expected)) in step.logits.iter().zip(case.logits(frame)).enumerate() {
                let off = distance(&found.to_vec::<f32>().unwrap(), &expected);
                worst[k.min(1)] = worst[k.min(1)].max(off);
            }
        });
        let [backbone, depth] = worst;
        println!(
            "{device:?}: {} frames, logits within {backbone:.1e} (backbone) and {depth:.1e} (depth decoder) of their spread",
            said.len()
        );
        for (frame, said) in said.iter().enumerate() {
            assert_eq!(*said, case.codes(frame), "frame {frame} on {device:?}");
        }
        assert!(worst.iter().all(|&w| w < 5e-5), "{device:?}: logits are off by {worst:?} of their spread");
    }
}

#[test]
fn a_prompt_in_pieces_is_the_whole_prompt() {
    let case = Case::open();
    for device in [Device::Cpu, Device::open("emulator").unwrap()] {
        let csm = open(&golden("weights"), &device, DType::F32);
        for rows in [1, 3, 20] {
            greedy(&csm, &case, rows, 6, |frame, step| {
                assert_eq!(step.said.to_vec::<i32>().unwrap()[..case.width - 1], case.codes(frame), "{rows} rows at a time");
                let off = distance(&step.logits[0].to_vec::<f32>().unwrap(), &case.logits(frame)[0]);
                assert!(off < 2e-5, "{rows} rows at a time: {off}");
            });
        }
    }
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn tensors() -> Tensors {
    let file = Weights::open(golden("weights")).unwrap();
    let tensor = |name: &str| (file.view(name).unwrap().shape.to_vec(), file.to_f32(name).unwrap().into_owned());
    file.names().map(|name| (name.to_owned(), tensor(name))).collect()
}

fn config() -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(golden("weights/config.json")).unwrap()).unwrap()
}

fn written(tensors: &Tensors, config: &serde_json::Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let refs: Vec<TensorRef> = tensors.iter().map(|(name, (shape, values))| TensorRef::f32(name, shape, values)).collect();
    save(dir.path().join("model.safetensors"), &refs, &BTreeMap::new()).unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

/// Rows of queries and keys as pairs: what transformers' script of conversion permutes, the other way.
fn pairs(values: &[f32], head_dim: usize, width: usize) -> Vec<f32> {
    let head = |head: &[f32]| -> Vec<f32> {
        (0..head_dim).flat_map(|i| head[(i % 2 * head_dim / 2 + i / 2) * width..][..width].to_vec()).collect()
    };
    values.chunks(head_dim * width).flat_map(head).collect()
}

/// The names and the order of rows of the original.
fn original(tensors: Tensors) -> Tensors {
    let names = [
        ("backbone_model.embed_tokens.embed_audio_tokens", "audio_embeddings"),
        ("embed_text_tokens", "text_embeddings"),
        ("depth_decoder.model.inputs_embeds_projector", "projection"),
        ("depth_decoder.codebooks_head.weight", "audio_head"),
        ("lm_head", "codebook0_head"),
        ("backbone_model.norm.weight", "backbone.norm.scale"),
        ("depth_decoder.model.norm.weight", "decoder.norm.scale"),
        ("backbone_model.", "backbone."),
        ("depth_decoder.model.", "decoder."),
        ("self_attn.o_proj", "attn.output_proj"),
        ("self_attn.", "attn."),
        ("mlp.gate_proj", "mlp.w1"),
        ("mlp.down_proj", "mlp.w2"),
        ("mlp.up_proj", "mlp.w3"),
        ("input_layernorm.weight", "sa_norm.scale"),
        ("post_attention_layernorm.weight", "mlp_norm.scale"),
    ];
    let rename = |(name, (shape, values)): (String, (Vec<usize>, Vec<f32>))| {
        let turned = name.contains(".q_proj.") || name.contains(".k_proj.");
        // Both transformers have heads of 12.
        let values = if turned { pairs(&values, 12, shape[1]) } else { values };
        (names.iter().fold(name, |name, (theirs, ours)| name.replace(theirs, ours)), (shape, values))
    };
    tensors.into_iter().map(rename).collect()
}

#[test]
fn every_published_layout_says_the_same() {
    let case = Case::open();
    let says = |tensors: &Tensors, config: &serde_json::Value| {
        let dir = written(tensors, config);
        greedy(&open(dir.path(), &Device::Cpu, DType::F32), &case, 1000, 20, |_, _| {})
    };
    let expected: Vec<Vec<i32>> = (0..20).map(|frame| case.codes(frame)).collect();
    assert!(original(tensors()).contains_key("backbone.layers.1.attn.output_proj.weight"));
    assert_eq!(says(&original(tensors()), &config()), expected);
    // The scaling as Sesame writes it.
    let mut rewritten = config();
    for (key, value) in [("low_freq_factor", 1.0), ("high_freq_factor", 4.0), ("original_max_position_embeddings", 64.0)] {
        rewritten["rope_scaling"][key] = value.into();
    }
    assert_eq!(says(&original(tensors()), &rewritten), expected);
    // The tied table by its other name, as `save_pretrained` has it; by both, of which that one holds; and a codec beside.
    let table = tensors()["backbone_model.embed_tokens.embed_audio_tokens.weight"].clone();
    let mut more = tensors();
    more.insert("codec_model.anything".to_owned(), (vec![1], vec![0.0]));
    let backbone = "backbone_model.embed_tokens.embed_audio_tokens.weight".to_owned();
    let other = || (table.0.clone(), vec![0.5; table.1.len()]);
    more.remove(&backbone);
    more.insert("depth_decoder.model.embed_tokens.weight".to_owned(), table.clone());
    assert_eq!(says(&more, &config()), expected);
    more.insert(backbone.clone(), other());
    assert_eq!(says(&more, &config()), expected);
    more.insert(backbone, table.clone());
    more.insert("depth_decoder.model.embed_tokens.weight".to_owned(), other());
    assert_ne!(says(&more, &config()), expected);
    let mut untied = config();
    untied["tie_codebooks_embeddings"] = false.into();
    assert_ne!(says(&more, &untied), expected);
    more.insert("depth_decoder.model.embed_tokens.weight".to_owned(), table);
    assert_eq!(says(&more, &untied), expected);
}

#[test]
fn without_its_scaling_or_its_order_of_rows_a_model_says_something_else() {
    let case = Case::open();
    let says = |tensors: &Tensors, config: &serde_json::Value| {
        let dir = written(tensors, config);
        greedy(&open(dir.path(), &Device::Cpu, DType::F32), &case, 1000, 20, |_, _| {})
    };
    let expected: Vec<Vec<i32>> = (0..20).map(|frame| case.codes(frame)).collect();
    for pointer in ["/rope_scaling", "/depth_decoder_config/rope_scaling"] {
        let mut unscaled = config();
        *unscaled.pointer_mut(pointer).unwrap() = serde_json::Value::Null;
        assert_ne!(says(&tensors(), &unscaled), expected, "{pointer}");
    }
    let mut turned = tensors();
    let (shape, values) = turned["backbone_model.layers.0.self_attn.q_proj.weight"].clone();
    turned.insert("backbone_model.layers.0.self_attn.q_proj.weight".to_owned(), (shape.clone(), pairs(&values, 12, shape[1])));
    assert_ne!(says(&turned, &config()), expected);
}

/// Streams that sit out at random and begin anew say, bit for bit, what each says alone.
#[test]
fn streams_of_a_batch_are_as_if_alone() {
    let case = Case::open();
    let (before, last) = case.parts();
    for device in [Device::Cpu, Device::open("emulator").unwrap()] {
        let csm = open(&golden("weights"), &device, DType::F32);
        let drawing: Vec<Settings> = (0..3).map(|seed| Settings { temperature: 0.9, top_k: 20, seed, sequence: 0 }).collect();
        const FRAMES: usize = 10;
        let begins = |b: usize| &before[b * 5 * case.width..];
        let one = |values: &[u8]| Tensor::from_slice(&device, values, [values.len()]).unwrap();
        let alone = |b: usize| {
            let mut session = Session::new(&csm, &drawing[b..=b]).unwrap();
            let (mut said, mut next) = (Vec::new(), Vec::new());
            for t in 0..FRAMES {
                if t == 0 || t == 6 {
                    session.reset(&one(&[1])).unwrap();
                    session.prompt(begins(b), None).unwrap();
                    next = last.to_vec();
                }
                let step = session.step(&row(&device, &next, case.width), None).unwrap();
                next = step.said.to_vec().unwrap();
                said.push((next.clone(), step.logits[3].to_vec::<f32>().unwrap()));
            }
            said
        };
        let expected: Vec<_> = (0..3).map(alone).collect();
        assert!(expected[0] != expected[1], "seeds differ");
        let mut session = Session::new(&csm, &drawing).unwrap();
        let (mut rng, mut at, mut next) = (SplitMix(9), [0usize; 3], vec![vec![NONE; case.width]; 3]);
        while at.iter().any(|&t| t < FRAMES) {
            let runs: Vec<u8> = at.iter().map(|&t| u8::from(t < FRAMES && rng.uniform() < 0.6)).collect();
            for b in (0..3).filter(|&b| runs[b] == 1 && matches!(at[b], 0 | 6)) {
                let only: Vec<u8> = (0..3).map(|other| u8::from(other == b)).collect();
                session.reset(&one(&only)).unwrap();
                session.prompt(&begins(b).repeat(3), Some(&one(&only))).unwrap();
                next[b] = last.to_vec();
            }
            let step = session.step(&row(&device, &next.concat(), case.width), Some(&one(&runs))).unwrap();
            let (said, logits) = (step.said.to_vec::<i32>().unwrap(), step.logits[3].to_vec::<f32>().unwrap());
            for b in (0..3).filter(|&b| runs[b] == 1) {
                next[b] = said[b * case.width..][..case.width].to_vec();
                let (said, alone) = &expected[b][at[b]];
                assert_eq!(next[b], *said, "stream {b}, frame {} on {device:?}", at[b]);
                assert_eq!(&logits[b * alone.len()..][..alone.len()], alone, "logits of stream {b}, frame {}", at[b]);
                at[b] += 1;
            }
        }
    }
}

/// A prompt that the layers take in two pieces, and one that its memory is no larger than.
#[test]
fn long_prompts_are_taken_piece_by_piece() {
    let case = Case::open();
    let (before, last) = case.parts();
    let rows: Vec<i32> = before.iter().copied().cycle().take(100 * case.width).collect();
    for device in [Device::Cpu, Device::open("emulator").unwrap()] {
        let mut csm = open(&golden("weights"), &device, DType::F32);
        let says = |csm: &Csm, rows_at_once: usize| {
            let mut session = Session::new(csm, &[Settings::GREEDY]).unwrap();
            rows.chunks(rows_at_once * case.width).for_each(|part| session.prompt(part, None).unwrap());
            let mut next = row(&device, last, case.width);
            let mut said = Vec::new();
            for _ in 0..5 {
                let step = session.step(&next, None).unwrap();
                said.push((step.said.to_vec::<i32>().unwrap(), step.logits[0].to_vec::<f32>().unwrap()));
                next = step.said;
            }
            said
        };
        let [whole, single] = [100, 1].map(|rows_at_once| says(&csm, rows_at_once));
        for ((codes, logits), (expected, alone)) in whole.iter().zip(&single) {
            assert_eq!(codes, expected, "{device:?}");
            assert!(distance(logits, alone) < 5e-5, "{device:?}");
        }
        csm.limit(105);
        assert_eq!(says(&csm, 100), whole, "{device:?}");
        csm.limit(50);
        assert!(distance(&says(&csm, 100)[0].1, &whole[0].1) > 1e-3, "rows beyond the memory are seen on {device:?}");
    }
}

/// With masks, a reset and a prompt among them.
#[test]
fn frames_as_graphs_equal_frames_launched_kernel_by_kernel() {
    let (device, case) = (Device::open("emulator").unwrap(), Case::open());
    let Device::Cuda(cuda) = &device else { unreachable!() };
    let csm = open(&golden("weights"), &device, DType::F32);
    let drawing = [4, 5].map(|seed| Settings { temperature: 0.9, top_k: 5, seed, sequence: 0 });
    let [mut replayed, mut launched] = [(); 2].map(|()| Session::new(&csm, &drawing).unwrap());
    launched.graphs(false);
    let (before, last) = case.parts();
    let mut next = row(&device, &last.repeat(2), case.width);
    let streams = |values: [u8; 2]| Tensor::from_slice(&device, &values, [2]).unwrap();
    for session in [&mut replayed, &mut launched] {
        session.prompt(&before.repeat(2), None).unwrap();
    }
    for frame in 0..12 {
        let runs = [1, u8::from(!(4..8).contains(&frame) || frame % 2 == 0)];
        let mask = (4..8).contains(&frame).then(|| streams(runs));
        if frame == 6 {
            for session in [&mut replayed, &mut launched] {
                session.reset(&streams([0, 1])).unwrap();
                session.prompt(&before[case.width..].repeat(2), Some(&streams([0, 1]))).unwrap();
            }
        }
        let count = cuda.launches();
        let found = replayed.step(&next, mask.as_ref()).unwrap();
        let launches = cuda.launches() - count;
        let expected = launched.step(&next, mask.as_ref()).unwrap();
        let kernels = cuda.launches() - count - launches;
        assert_eq!(launches, if frame == 0 || frame == 4 { kernels } else { 1 }, "frame {frame}");
        let same = |a: &Tensor, b: &Tensor| {
            let [a, b] = [a, b].map(|t| t.to_f64().unwrap());
            let rows = if runs[1] == 1 { a.len() } else { a.len() / 2 };
            assert_eq!(a[..rows], b[..rows], "frame {frame}");
        };
        same(&found.said, &expected.said);
        assert_eq!(found.logits.len(), expected.logits.len());
        found.logits.iter().zip(&expected.logits).for_each(|(a, b)| same(a, b));
        // One that sat out hears anything.
        let said = found.said.to_vec::<i32>().unwrap();
        let second = if runs[1] == 1 { &said[case.width..] } else { last };
        next = row(&device, &[&said[..case.width], second].concat(), case.width);
    }
    assert_eq!(replayed.no_graph(), None);
}

#[test]
fn a_frame_of_zeros_ends_it() {
    let case = Case::open();
    let mut silent = tensors();
    for name in ["lm_head.weight", "depth_decoder.codebooks_head.weight"] {
        silent.get_mut(name).unwrap().1.fill(0.0);
    }
    let dir = written(&silent, &config());
    let csm = open(dir.path(), &Device::Cpu, DType::F32);
    let said = greedy(&csm, &case, 1000, 1, |_, _| {});
    assert!(csm.ends(&said[0]));
    let (drafted, _) = says(&csm, Settings::GREEDY, Some(Draft { codes: 3, layers: 1 }), 1, |_, _| {});
    assert!(csm.ends(&drafted[0].0[..6]));
    assert!(!csm.ends(&[0, 0, 0, 0, 0, 1]) && !csm.ends(&[1, 0, 0, 0, 0, 0]));
    assert!((0..case.frames).all(|frame| !csm.ends(&case.codes(frame))));
}

#[test]
fn few_bits_and_bf16_run_on_the_cpu() {
    let (case, mut known) = (Case::open(), Vec::new());
    for format in [DType::BF16.into(), Format::int8(DType::F32), Format::int4(DType::F32), Format::int4_all(DType::F32)] {
        let csm = open(&golden("weights"), &Device::Cpu, format);
        let mut off = 0.0f32;
        greedy(&csm, &case, 1000, 1, |_, step| off = distance(&step.logits[0].to_vec::<f32>().unwrap(), &case.logits(0)[0]));
        println!("{format:?}: logits of the first code within {off:.1e} of their spread");
        assert!(off > 0.0 && off < if format.temporal.is_none() { 0.05 } else { 1.5 }, "{format:?}: {off}");
        known.push(csm.bytes_per_step(0));
    }
    assert!(known.is_sorted_by(|more, less| more > less), "{known:?}");
}

/// The stored model with rows of multiples of 32, as kernels of codes take them.
fn in_groups() -> Config {
    let mut config = config();
    for (pointer, width) in [
        ("/hidden_size", 64),
        ("/intermediate_size", 96),
        ("/head_dim", 16),
        ("/depth_decoder_config/hidden_size", 32),
        ("/depth_decoder_config/backbone_hidden_size", 64),
        ("/depth_decoder_config/intermediate_size", 64),
        ("/depth_decoder_config/head_dim", 16),
    ] {
        *config.pointer_mut(pointer).unwrap() = width.into();
    }
    Config::from_json(&config.to_string()).unwrap()
}

#[test]
fn few_bits_are_the_same_on_the_emulator() {
    let case = Case::open();
    let config = in_groups();
    for format in [Format::int8(DType::F32), Format::int4(DType::F32), Format::int4_all(DType::F32)] {
        let says = |device: &Device| {
            let csm = Csm::random(config.clone(), device, format).unwrap();
            let mut logits = Vec::new();
            let said = greedy(&csm, &case, 1000, 4, |_, step| logits.extend(step.logits.iter().map(|l| l.to_vec::<f32>().unwrap())));
            (said, logits)
        };
        let (said, logits) = says(&Device::Cpu);
        let (again, others) = says(&Device::open("emulator").unwrap());
        let worst = logits.iter().zip(&others).map(|(a, b)| distance(b, a)).fold(0.0, f32::max);
        println!("{format:?}: logits on the emulator within {worst:.1e} of the spread of those on the CPU");
        assert!(said == again && worst < 1e-4, "{format:?}: {worst}");
    }
}

/// Launches, codes and logits of frames whose depth decoder is one launch, and of the same kernel by kernel: with a mask, and as graphs.
#[test]
fn a_depth_decoder_in_one_launch_says_what_its_kernels_say() {
    let (device, case) = (Device::open("emulator").unwrap(), Case::open());
    let Device::Cuda(cuda) = &device else { unreachable!() };
    let (before, last) = case.parts();
    for format in [DType::F32.into(), Format::int8(DType::F32), Format::int4_all(DType::F32)] {
        for drawing in [&[DRAWN][..], &[DRAWN, Settings::GREEDY, Settings { seed: 8, ..DRAWN }]] {
            let csm = Csm::random(in_groups(), &device, format).unwrap();
            assert_eq!(csm.plain_depth(), None);
            let batch = drawing.len();
            let [mut whole, mut plain] = [(); 2].map(|()| Session::new(&csm, drawing).unwrap());
            plain.plain_depth(true);
            for session in [&mut whole, &mut plain] {
                session.graphs(false);
                session.prompt(&before.repeat(batch), None).unwrap();
            }
            let (mut next, mut worst) = (row(&device, &last.repeat(batch), case.width), 0.0f32);
            for frame in 0..7 {
                whole.graphs(frame > 3);
                let runs: Vec<u8> = (0..batch).map(|b| u8::from(b != 2)).collect();
                let mask = (frame == 2).then(|| Tensor::from_slice(&device, &runs, [batch]).unwrap());
                let count = cuda.kernels();
                let found = whole.step(&next, mask.as_ref()).unwrap();
                let one = cuda.kernels() - count;
                let expected = plain.step(&next, mask.as_ref()).unwrap();
                let several = cuda.kernels() - count - one;
                // Of a code an embedding, two layers, a norm, logits, a draw; of the first also the input, and two rows made one and parted.
                assert_eq!(several - one, 5 * (1 + 2 * 8 + 3) + 5 - 1, "kernels of frame {frame}");
                assert_eq!(found.said.to_vec::<i32>().unwrap(), expected.said.to_vec::<i32>().unwrap(), "frame {frame}");
                assert_eq!(found.logits.len(), expected.logits.len());
                for (found, expected) in found.logits.iter().zip(&expected.logits) {
                    worst = worst.max(distance(&found.to_vec::<f32>().unwrap(), &expected.to_vec::<f32>().unwrap()));
                }
                next = found.said;
            }
            println!("{format:?}, {batch} streams: logits within {worst:.1e} of their spread");
            assert!(worst < 5e-5, "{format:?}, {batch} streams: {worst}");
            assert_eq!(whole.no_graph(), None);
        }
    }
}

#[test]
fn a_frame_of_the_published_layers_is_1120_launches_less() {
    let (device, notes) = dry::open(Arch(90));
    let mut config = in_groups();
    config.num_codebooks = 32;
    (config.backbone.num_hidden_layers, config.depth.num_hidden_layers) = (16, 4);
    let csm = Csm::random(config, &device, DType::BF16).unwrap();
    let launched = |batch: usize, plain: bool| {
        let mut session = Session::new(&csm, &vec![Settings::GREEDY; batch]).unwrap();
        session.plain_depth(plain);
        notes.take();
        session.step(&row(&device, &vec![0; batch * 33], 33), None).unwrap();
        let all = notes.take();
        (all.len(), all.iter().filter(|launch| launch.launch.cooperative).count())
    };
    let (one, several) = (launched(1, false), launched(1, true));
    println!("launches of a frame: {} in one, {} kernel by kernel", one.0, several.0);
    assert_eq!((one.1, several.1, several.0 - one.0), (1, 0, 1120));
    assert_eq!([16, 17].map(|batch| launched(batch, false).1), [1, 0]);
    let why = |batch: usize| Session::new(&csm, &vec![Settings::GREEDY; batch]).unwrap().plain_depth_why();
    assert_eq!([why(16), why(17)], [None, Some("17 streams, more than the 16 of one launch".to_owned())]);
    let by_kernels = open(&golden("weights"), &Device::open("emulator").unwrap(), DType::F32);
    assert!(by_kernels.plain_depth().is_some_and(|why| why.contains("heads of 12")), "{:?}", by_kernels.plain_depth());
    let (device, _) = dry::open_with(Arch(90), |limits| limits.cooperative = false);
    let by_kernels = Csm::random(in_groups(), &device, DType::BF16).unwrap();
    assert!(by_kernels.plain_depth().is_some_and(|why| why.contains("no cooperative launches")), "{:?}", by_kernels.plain_depth());
}

/// Codes and logits of `frames` frames after the prompt, drafted or not; before each, `each` has the session.
fn says(csm: &Csm, drawing: Settings, draft: Option<Draft>, frames: usize, each: impl Fn(&mut Session, usize)) -> (Vec<Said>, Drafted) {
    let case = Case::open();
    let mut session = Session::new(csm, &[drawing]).unwrap();
    // What is drafted is launched kernel by kernel.
    session.plain_depth(true);
    session.draft(draft).unwrap();
    let (before, last) = case.parts();
    session.prompt(before, None).unwrap();
    let mut next = row(csm.device(), last, case.width);
    let mut said = Vec::new();
    for frame in 0..frames {
        each(&mut session, frame);
        let step = session.step(&next, None).unwrap();
        said.push((step.said.to_vec().unwrap(), step.logits.iter().map(|l| l.to_f64().unwrap()).collect()));
        next = step.said;
    }
    let drafted = session.drafted().cloned().unwrap_or_default();
    (said, drafted)
}

/// Codes as a row, and the logits of each.
type Said = (Vec<i32>, Vec<Vec<f64>>);

const DRAWN: Settings = Settings { temperature: 0.9, top_k: 12, seed: 3, sequence: 0 };

/// Drafted or not, the same codes of the same logits, bit for bit, so that a draw's probabilities are not another's either.
#[test]
fn what_is_drafted_is_said_as_without_a_draft() {
    let emulator = Device::open("emulator").unwrap();
    let stored = |device: &Device, format: Format| open(&golden("weights"), device, format);
    let int4 = Format::int4_all(DType::F32);
    let mut models: Vec<Csm> =
        [DType::F32.into(), DType::BF16.into(), Format::int8(DType::F32), int4].map(|format| stored(&Device::Cpu, format)).into();
    models.extend([DType::F32, DType::BF16].map(|dtype| stored(&emulator, dtype.into())));
    models.extend([Format::int8(DType::F32), int4].map(|format| Csm::random(in_groups(), &emulator, format).unwrap()));
    for csm in &models {
        let all = [(1, 1), (3, 0), (2, 1), (1, 0), (100, 0), (100, 1)];
        let (frames, drafts) = if *csm.device() == Device::Cpu { (12, &all[..]) } else { (3, &all[1..3]) };
        for drawing in [Settings::GREEDY, DRAWN] {
            let (expected, _) = says(csm, drawing, None, frames, |_, _| {});
            for &(codes, layers) in drafts {
                let (said, drafted) = says(csm, drawing, Some(Draft { codes, layers }), frames, |_, _| {});
                let what = format!("{codes} codes by {layers} layers, {drawing:?}, {:?} on {:?}", csm.format(), csm.device());
                assert_eq!(
                    said.iter().map(|(codes, _)| codes).collect::<Vec<_>>(),
                    expected.iter().map(|(codes, _)| codes).collect::<Vec<_>>(),
                    "{what}"
                );
                assert!(said == expected, "logits of {what}");
                let right: u64 = drafted.right.iter().sum();
                assert_eq!(drafted.passes + right, drafted.frames * 5, "a pass gives a code more than it found right: {what}");
            }
        }
    }
}

#[test]
fn the_more_guesses_are_right_the_fewer_passes_there_are() {
    for device in [Device::Cpu, Device::open("emulator").unwrap()] {
        let csm = open(&golden("weights"), &device, DType::F32);
        const FRAMES: usize = 6;
        let (expected, _) = says(&csm, DRAWN, None, FRAMES, |_, _| {});
        // Wrong from code `wrong` on.
        let guessed = |draft: Draft, wrong: usize| {
            let give = |session: &mut Session, frame: usize| {
                let off = |(k, &code): (usize, &i32)| if k < wrong { code } else { (code + 1) % csm.config().vocab_size as i32 };
                let codes: Vec<i32> = expected[frame].0[..6].iter().enumerate().map(off).collect();
                session.guess(&codes).unwrap();
            };
            let (said, drafted) = says(&csm, DRAWN, Some(draft), FRAMES, give);
            assert!(said == expected, "{draft:?}, wrong from code {wrong} on");
            assert_eq!(drafted.frames, FRAMES as u64);
            drafted
        };
        for layers in [0, 1] {
            for (codes, wrong, passes, right) in
                [(100, 6, 1, 4), (4, 6, 1, 4), (2, 6, 2, 3), (1, 6, 3, 2), (4, 0, 5, 0), (1, 1, 5, 0), (4, 3, 3, 2)]
            {
                let found = guessed(Draft { codes, layers }, wrong);
                let what = format!("{codes} codes by {layers} layers, wrong from code {wrong} on: {found:?}");
                assert_eq!(found.passes, passes * FRAMES as u64, "{what}");
                assert_eq!(found.right.iter().sum::<u64>(), right * FRAMES as u64, "{what}");
                assert!(found.right.iter().zip(&found.compared).all(|(right, compared)| right <= compared), "{what}");
                assert_eq!((found.compared[0], found.compared[5]), (0, 0), "the first code and the last are not guessed: {what}");
            }
        }
    }
}

/// A guess is drawn with the noise of the draw itself: of the same logits it is always right.
#[test]
fn guesses_of_the_same_logits_are_right() {
    let models = [Device::Cpu, Device::open("emulator").unwrap()].map(|device| {
        let mut idle = tensors();
        let (mut changed, last) = (0, "depth_decoder.model.layers.1.");
        for (name, (_, values)) in idle.iter_mut().filter(|(name, _)| name.starts_with(last)) {
            if name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight") {
                values.fill(0.0);
                changed += 1;
            }
        }
        assert_eq!(changed, 2);
        let mut alike = tensors();
        alike.get_mut("depth_decoder.codebooks_head.weight").unwrap().1.fill(0.0);
        [(idle, 1), (alike, 0)].map(|(tensors, layers)| (open(written(&tensors, &config()).path(), &device, DType::F32), layers))
    });
    for (csm, layers) in models.iter().flatten() {
        for drawing in [DRAWN, Settings { top_k: 0, ..DRAWN }, Settings::GREEDY] {
            let (expected, _) = says(csm, drawing, None, 8, |_, _| {});
            let (said, drafted) = says(csm, drawing, Some(Draft { codes: 4, layers: *layers }), 8, |_, _| {});
            assert!(said == expected, "{layers} layers, {drawing:?}");
            // There is nothing before the first frame.
            let frames = if *layers == 0 { 7 } else { 8 };
            assert_eq!(drafted.compared[1..5], [frames; 4], "{layers} layers, {drawing:?}");
            assert_eq!(drafted.right, drafted.compared, "{layers} layers, {drawing:?}");
            assert_eq!(drafted.acceptance()[..2], [None, Some(1.0)]);
        }
    }
}

/// Steps with a mask, without, drafted and as graphs go on from each other.
#[test]
fn a_stream_may_be_drafted_now_and_then() {
    for device in [Device::Cpu, Device::open("emulator").unwrap()] {
        let csm = open(&golden("weights"), &device, DType::F32);
        let (expected, _) = says(&csm, DRAWN, None, 16, |_, _| {});
        let case = Case::open();
        let drafts = [None, Some(Draft { codes: 2, layers: 1 }), Some(Draft { codes: 3, layers: 0 })];
        let masks = [0u8, 1].map(|runs| Tensor::from_slice(&device, &[runs], [1]).unwrap());
        let mut session = Session::new(&csm, &[DRAWN]).unwrap();
        for _ in 0..2 {
            let (before, last) = case.parts();
            session.prompt(before, None).unwrap();
            let mut next = row(&device, last, case.width);
            for (frame, (codes, _)) in expected.iter().enumerate() {
                if frame % 3 == 0 {
                    session.draft(drafts[frame / 3 % 3]).unwrap();
                    let waits = frame / 3 % 3 > 0 && device != Device::Cpu;
                    assert_eq!(session.no_graph().is_some(), waits, "frame {frame} on {device:?}");
                }
                if frame % 5 == 4 {
                    session.step(&next, Some(&masks[0])).unwrap();
                }
                let step = session.step(&next, (frame % 4 == 3).then_some(&masks[1])).unwrap();
                assert_eq!(step.said.to_vec::<i32>().unwrap(), *codes, "frame {frame} on {device:?}");
                next = step.said;
            }
            session.reset(&masks[1]).unwrap();
        }
    }
}

#[test]
fn a_draft_that_does_not_fit_is_an_error() {
    let csm = open(&golden("weights"), &Device::Cpu, DType::F32);
    let refused = |result: swara_engine::Result<()>, why: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    };
    let draft = |codes, layers| Some(Draft { codes, layers });
    let mut two = Session::new(&csm, &[Settings::GREEDY; 2]).unwrap();
    refused(two.draft(draft(1, 0)), "2 streams");
    let mut session = Session::new(&csm, &[Settings::GREEDY]).unwrap();
    refused(session.guess(&[0; 6]), "nothing is drafted");
    for (codes, layers) in [(0, 0), (1, 2), (1, usize::MAX)] {
        refused(session.draft(draft(codes, layers)), "expected 1 or more codes by 0 to 1");
    }
    session.draft(draft(usize::MAX, 0)).unwrap();
    for codes in [&[][..], &[0; 5], &[0; 7]] {
        refused(session.guess(codes), "for a frame of 6");
    }
    for strange in [-1, csm.config().vocab_size as i32, i32::MIN, i32::MAX] {
        refused(session.guess(&[0, 1, strange, 0, 0, 0]), &format!("a guess of {strange}"));
    }
    let case = Case::open();
    session.step(&row(&Device::Cpu, case.parts().1, case.width), None).unwrap();
}

#[test]
fn what_does_not_fit_is_an_error() {
    let refused = |change: &dyn Fn(&mut Tensors, &mut serde_json::Value), why: &[&str]| {
        let (mut tensors, mut config) = (tensors(), config());
        change(&mut tensors, &mut config);
        let dir = written(&tensors, &config);
        let error = Csm::open(dir.path(), &Device::Cpu, DType::F32).err().unwrap_or_else(|| panic!("{why:?} is no error")).to_string();
        assert!(why.iter().all(|why| error.contains(why)), "{error}");
    };
    let norm = "depth_decoder.model.norm.weight";
    refused(&|t, _| drop((t.remove(norm), t.remove("lm_head.weight"))), &[norm, "lm_head.weight", "2 missing"]);
    refused(&|t, _| drop(t.insert("more.weight".into(), (vec![1], vec![0.0]))), &["more.weight"]);
    refused(&|t, _| drop(t.insert(norm.into(), (vec![7], vec![0.0; 7]))), &[norm, "[7]", "[24]"]);
    refused(&|t, _| t.get_mut("lm_head.weight").unwrap().1[5] = f32::NAN, &["element 5", "lm_head.weight"]);
    refused(&|t, _| t.get_mut("depth_decoder.codebooks_head.weight").unwrap().1[7] = f32::INFINITY, &["codebooks_head.weight", "inf"]);
    refused(&|t, _| t.retain(|name, _| !name.starts_with("backbone_model.layers")), &["no CSM"]);
    refused(&|_, c| c["text_vocab_size"] = 401.into(), &["embed_text_tokens.weight", "[400, 48]", "[401, 48]"]);
    refused(&|_, c| c["num_hidden_layers"] = 3.into(), &["backbone_model.layers.2.self_attn.q_proj.weight"]);
    refused(&|_, c| c["rope_theta"] = 0.into(), &["rope_theta is 0"]);
    refused(&|_, c| c["tie_codebooks_embeddings"] = false.into(), &["depth_decoder.model.embed_tokens.weight"]);

    let csm = open(&golden("weights"), &Device::Cpu, DType::F32);
    let mut session = Session::new(&csm, &[Settings::GREEDY]).unwrap();
    let text = |id: i32| [&[NONE; 6][..], &[id]].concat();
    for (ids, why) in [(text(400), "400"), (text(-2), "-2"), (vec![35; 7], "35"), (vec![0; 6], "6 ids")] {
        let error = session.prompt(&ids, None).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    assert!(session.step(&row(&Device::Cpu, &text(400), 7), None).is_err());
    assert!(session.step(&row(&Device::Cpu, &[0; 6], 6), None).is_err());
    assert!(Session::new(&csm, &[Settings { temperature: f32::NAN, ..Settings::GREEDY }]).is_err());
}
