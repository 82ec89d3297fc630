//! A small Mimi (verify/reference/mimi.py): published layouts, streams, hostile files. What it computes is compared in swara-verify.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use swara_engine::codec::{Codec, Codes, Rounded, Session, Stored, rounded_mimi};
use swara_kernels::{DType, Device, Tensor};
use swara_loader::quantized::Quantized;
use swara_loader::weights::{Dtype, TensorRef, Weights, save};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../verify/golden/mimi").join(name)
}

fn open(name: &str, device: &Device) -> Codec {
    open_in(DType::F32, name, device)
}

fn open_in(stored: impl Into<Stored>, name: &str, device: &Device) -> Codec {
    Codec::open(&golden("weights").join(name), device, stored).unwrap()
}

fn emulator() -> Device {
    Device::open("emulator").expect("the emulator needs a C++ compiler")
}

struct Case {
    file: Weights,
    batch: usize,
    samples: usize,
    codebooks: usize,
    frames: usize,
}

impl Case {
    fn open(name: &str) -> Case {
        let file = Weights::open(golden(name).with_extension("safetensors")).unwrap();
        let (input, codes) = (file.view("input").unwrap().shape.to_vec(), file.view("codes").unwrap().shape.to_vec());
        Case { batch: input[0], samples: input[2], codebooks: codes[1], frames: codes[2], file }
    }

    fn f32(&self, name: &str) -> Vec<f32> {
        self.file.to_f32(name).unwrap().into_owned()
    }
}

#[test]
fn every_published_layout_gives_the_same_model() {
    let file = Weights::open(golden("weights/kyutai.safetensors")).unwrap();
    let config = file.metadata()["config"].clone();
    let tensors: Vec<(String, Vec<usize>, Vec<f32>)> = file
        .names()
        .map(|name| (name.to_owned(), file.view(name).unwrap().shape.to_vec(), file.to_f32(name).unwrap().into_owned()))
        .collect();
    let case = Case::open("one");
    let expected = open("kyutai.safetensors", &Device::Cpu).encode(&case.f32("input"), case.codebooks).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let variant = |name: &str, tensors: Vec<(String, Vec<usize>, Vec<f32>)>| {
        let path = dir.path().join(name);
        let refs: Vec<TensorRef> = tensors.iter().map(|(n, s, v)| TensorRef::f32(n, s, v)).collect();
        save(&path, &refs, &BTreeMap::from([("config".to_owned(), config.clone())])).unwrap();
        let codec = Codec::open(&path, &Device::Cpu, DType::F32).unwrap();
        assert_eq!(codec.encode(&case.f32("input"), case.codebooks).unwrap(), expected, "{name}");
    };
    let renamed = |f: &dyn Fn(&str) -> String| tensors.iter().map(|(n, s, v)| (f(n), s.clone(), v.clone())).collect::<Vec<_>>();
    variant("prefixed", renamed(&|n| format!("model.{n}")));
    let since = |n: &str| n.replace("in_proj_weight", "in_projs.0.weight").replace("out_proj.weight", "out_projs.0.weight");
    variant("resaved", renamed(&since));
    let older =
        |n: &str| n.replace("_initialized", "inited").replace("cluster_usage", "cluster_size").replace("embedding_sum", "embed_sum");
    variant("older", renamed(&older));
    let normed = tensors.iter().flat_map(|(name, shape, values)| match name.strip_suffix(".weight") {
        Some(layer) if name.contains("coder.model") => {
            // Twice the direction, and the gain that undoes it.
            let norms = values.chunks(values.len() / shape[0]).map(|row| row.iter().map(|v| v * v).sum::<f32>().sqrt()).collect();
            let doubled = values.iter().map(|v| 2.0 * v).collect();
            vec![(format!("{layer}.weight_g"), vec![shape[0], 1, 1], norms), (format!("{layer}.weight_v"), shape.clone(), doubled)]
        }
        _ => vec![(name.clone(), shape.clone(), values.clone())],
    });
    variant("weight-normed", normed.collect());
}

#[test]
fn a_stream_equals_the_whole_past_the_attention_window() {
    // 160 frames are 320 keys, the window has 9.
    for stored in [DType::F32.into(), DType::BF16.into(), Stored::INT8] {
        assert_eq!(common::streaming_error(&open_in(stored, "kyutai.safetensors", &Device::Cpu), 160), 0.0, "{stored:?}");
    }
}

#[test]
fn weights_in_bf16_on_the_cpu_are_half_the_bytes_and_computed_with_in_f32() {
    let [whole, half] = [DType::F32, DType::BF16].map(|dtype| open_in(dtype, "kyutai.safetensors", &Device::Cpu));
    // Codebooks and what is no matrix stay as they are.
    let (books, all) = (whole.bytes(32) - whole.bytes(1), whole.bytes(1));
    assert_eq!(half.bytes(32) - half.bytes(1), books);
    assert!(half.bytes(1) < all * 2 / 3, "{} of {all} bytes", half.bytes(1));
    // Samples are not rounded on their way in.
    let case = Case::open("one");
    let samples = case.f32("input");
    assert_eq!(half.samples(&half.signal(&samples, 1).unwrap()).unwrap(), samples);
    assert_eq!(half.encode(&samples, case.codebooks).unwrap().frames, case.frames);
}

#[test]
fn weights_in_codes_of_eight_bits_are_for_the_cpu() {
    let [whole, coded] = [DType::F32.into(), Stored::INT8].map(|stored| open_in(stored, "kyutai.safetensors", &Device::Cpu));
    let (all, few) = (whole.bytes(1), coded.bytes(1));
    assert!(few < all * 2 / 3, "{few} of {all} bytes");
    let error = Codec::open(&golden("weights/kyutai.safetensors"), &emulator(), Stored::INT8).err().expect("no codes on CUDA");
    assert!(error.to_string().contains("8 bits"), "{error}");
}

/// The values of codes `[out, taps in]`, as published: `[out, in, taps]`, or `[in, out, taps]` of transposed convolutions.
fn published(name: &str, codes: &Quantized, file: &Weights) -> (Vec<usize>, Vec<f32>) {
    let (values, depth) = (codes.dequantize(), codes.columns());
    let shape = file.info(name).unwrap().1.to_vec();
    let [a, b, taps] = shape[..] else { return (shape, values) };
    let at = |i: usize| (i / (b * taps), i / taps % b, i % taps);
    let transposed = name.contains(".convtr.");
    let place = |(x, y, tap): (usize, usize, usize)| if transposed { y * depth + tap * a + x } else { x * depth + tap * b + y };
    let values = (0..a * b * taps).map(|i| values[place(at(i))]).collect();
    (shape, values)
}

/// The Mimi of a file with its matrices in panels, or the values of these codes.
fn rounded(path: &Path, panels: bool) -> tempfile::TempDir {
    let file = Weights::open(path).unwrap();
    let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let mut tensors = Vec::new();
    for (name, tensor) in rounded_mimi(&file).unwrap() {
        match tensor {
            Rounded::Values { shape, values } => tensors.push((name, Dtype::F32, shape, bytes(&values))),
            Rounded::Codes { codes, .. } if !panels => {
                let (shape, values) = published(&name, &codes, &file);
                tensors.push((name, Dtype::F32, shape, bytes(&values)));
            }
            Rounded::Codes { codes, .. } => {
                let (panels, layer) = (codes.to_panels().unwrap(), name.strip_suffix("weight").unwrap());
                let count = panels.rows() / 32;
                tensors.push((format!("{layer}panels"), Dtype::U8, vec![count, panels.columns(), 32], panels.codes().to_vec()));
                tensors.push((format!("{layer}scales"), Dtype::F32, vec![count, 1, 32], bytes(panels.scales())));
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let refs: Vec<TensorRef> = tensors.iter().map(|(name, dtype, shape, bytes)| TensorRef { name, dtype: *dtype, shape, bytes }).collect();
    save(dir.path().join("model.safetensors"), &refs, file.metadata()).unwrap();
    if let Some(config) = file.config().unwrap() {
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    }
    dir
}

#[test]
fn a_mimi_in_panels_is_the_one_rounded_as_it_is_read() {
    let case = Case::open("one");
    for layout in ["kyutai.safetensors", "hf"] {
        let path = golden("weights").join(layout);
        let dir = rounded(&path, true);
        let file = Weights::open(dir.path()).unwrap();
        assert!(file.names().filter(|name| name.ends_with(".panels")).count() > 4, "{layout}");
        let whole = open_in(Stored::INT8, layout, &Device::Cpu);
        // In whatever it is opened.
        for stored in [Stored::INT8, DType::F32.into()] {
            let found = Codec::open(dir.path(), &Device::Cpu, stored).unwrap();
            assert_eq!((found.stored(), found.bytes(1)), (Stored::INT8, whole.bytes(1)));
            let codes = whole.encode(&case.f32("input"), case.codebooks).unwrap();
            assert_eq!(found.encode(&case.f32("input"), case.codebooks).unwrap(), codes, "{layout}");
            assert_eq!(found.decode(&codes).unwrap(), whole.decode(&codes).unwrap(), "{layout}");
        }
        // Elsewhere by the values of the codes.
        if layout == "kyutai.safetensors" {
            let values = rounded(&path, false);
            let [panels, values] = [&dir, &values].map(|dir| Codec::open(dir.path(), &emulator(), DType::F32).unwrap());
            let codes = values.encode(&case.f32("input"), case.codebooks).unwrap();
            assert_eq!(panels.encode(&case.f32("input"), case.codebooks).unwrap(), codes);
            assert_eq!(panels.decode(&codes).unwrap(), values.decode(&codes).unwrap());
            assert_ne!(values.decode(&codes).unwrap(), open(layout, &emulator()).decode(&codes).unwrap());
        }
        assert!(rounded_mimi(&file).err().unwrap().to_string().contains("has codes already"));
    }
}

#[test]
fn a_stream_on_the_emulator_equals_the_whole_there() {
    assert_eq!(common::streaming_error(&open("kyutai.safetensors", &emulator()), 20), 0.0);
}

#[test]
fn frames_as_graphs_equal_frames_launched_one_by_one() {
    common::replayed_frames_equal_launched_ones(&open("kyutai.safetensors", &emulator()), 16);
}

#[test]
fn a_batch_with_masks_equals_streams_by_themselves_bit_for_bit() {
    let (case, codec) = (Case::open("batch"), open("kyutai.safetensors", &Device::Cpu));
    let signal = case.f32("input");
    let alone: Vec<Codes> = signal.chunks(case.samples).map(|x| codec.encode(x, case.codebooks).unwrap()).collect();
    let x = codec.signal(&signal, case.batch).unwrap();
    let together = Session::new(&codec, case.batch).unwrap().encode(&x, case.codebooks, None).unwrap().to_vec::<i32>().unwrap();
    let waves: Vec<f32> = alone.iter().flat_map(|codes| codec.decode(codes).unwrap()).collect();
    for (b, codes) in alone.iter().enumerate() {
        let row = |t: usize| (0..codes.codebooks).map(move |k| codes.values[k * codes.frames + t]);
        let expected: Vec<i32> = (0..codes.frames).flat_map(row).collect();
        assert_eq!(together[b * expected.len()..][..expected.len()], expected, "codes of stream {b}");
    }
    let codes = Tensor::from_slice(&Device::Cpu, &together, [case.batch, case.frames, case.codebooks]).unwrap();
    let y = codec.samples(&Session::new(&codec, case.batch).unwrap().decode(&codes, None).unwrap()).unwrap();
    assert_eq!(y, waves);
}

#[test]
fn a_tensor_that_is_missing_or_of_another_shape_is_named() {
    let file = Weights::open(golden("weights/kyutai.safetensors")).unwrap();
    let config = file.metadata()["config"].clone();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cut.safetensors");
    let values: Vec<(String, Vec<usize>, Vec<f32>)> = file
        .names()
        .filter(|n| *n != "encoder_transformer.transformer.layers.1.norm2.bias")
        .map(|n| (n.to_owned(), file.view(n).unwrap().shape.to_vec(), file.to_f32(n).unwrap().into_owned()))
        .map(|(n, s, v)| if n == "decoder.model.14.conv.conv.bias" { (n, vec![2], vec![0.0; 2]) } else { (n, s, v) })
        .collect();
    let refs: Vec<TensorRef> = values.iter().map(|(n, s, v)| TensorRef::f32(n, s, v)).collect();
    save(&path, &refs, &BTreeMap::from([("config".to_owned(), config)])).unwrap();
    let error = Codec::open(&path, &Device::Cpu, DType::F32).err().expect("a model that is not whole").to_string();
    assert!(error.contains("layers.1.norm2.bias") && error.contains("decoder.model.14.conv.conv.bias [2], expected [1]"), "{error}");
}
