//! Published codecs beside Mimi (verify/reference/published_*.py): layouts, refusals, levels. What they compute is compared in swara-verify.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use swara_engine::codec::{Codec, Codes, Naming, Noise, Session, convert, family};
use swara_kernels::{DType, Device, Tensor};
use swara_loader::weights::{TensorRef, Weights, save};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../verify/golden").join(name)
}

fn open(name: &str) -> Codec {
    Codec::open(&golden(name), &Device::Cpu, DType::F32).unwrap()
}

type Tensors = Vec<(String, Vec<usize>, Vec<f32>)>;

fn tensors(name: &str) -> Tensors {
    let file = Weights::open(golden(name)).unwrap();
    let tensor = |name: &str| (name.to_owned(), file.view(name).unwrap().shape.to_vec(), file.to_f32(name).unwrap().into_owned());
    file.names().map(tensor).collect()
}

fn input(case: &str) -> Vec<f32> {
    let file = Weights::open(golden(case).with_extension("safetensors")).unwrap();
    let (values, shape) = (file.to_f32("input").unwrap(), file.view("input").unwrap().shape.to_vec());
    values[..shape[1] * shape[2]].to_vec()
}

/// A folder of weights.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new(tensors: &Tensors, metadata: &[(&str, &str)], config: Option<&str>) -> Folder {
        let dir = tempfile::tempdir().unwrap();
        let refs: Vec<TensorRef> = tensors.iter().map(|(n, s, v)| TensorRef::f32(n, s, v)).collect();
        let metadata: BTreeMap<String, String> = metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        save(dir.path().join("model.safetensors"), &refs, &metadata).unwrap();
        if let Some(config) = config {
            std::fs::write(dir.path().join("config.json"), config).unwrap();
        }
        Folder(dir)
    }

    fn open(&self) -> swara_engine::Result<Codec> {
        Codec::open(self.0.path(), &Device::Cpu, DType::F32)
    }
}

fn config(name: &str) -> String {
    std::fs::read_to_string(golden(name).join("config.json")).unwrap()
}

/// Each convolution's weight as gain and direction, the direction of another length.
fn weight_normed(tensors: &Tensors, [gain, direction]: [&str; 2]) -> Tensors {
    let split = |(name, shape, values): &(String, Vec<usize>, Vec<f32>)| match name.strip_suffix(".weight") {
        Some(layer) if shape.len() == 3 => {
            let norm = |row: &[f32]| row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt() as f32;
            let norms: Vec<f32> = values.chunks(values.len() / shape[0]).map(norm).collect();
            let longer = values.iter().map(|v| v * 4.0).collect();
            vec![(format!("{layer}.{gain}"), vec![shape[0], 1, 1], norms), (format!("{layer}.{direction}"), shape.clone(), longer)]
        }
        _ => vec![(name.clone(), shape.clone(), values.clone())],
    };
    tensors.iter().flat_map(split).collect()
}

const SINCE: [&str; 2] = ["parametrizations.weight.original0", "parametrizations.weight.original1"];

/// A tensor's original name, for four blocks.
fn original(name: &str) -> String {
    let mut name = name.to_owned();
    for block in (0..4).rev() {
        for (side, list, first, conv) in [("encoder", "block", 0, "4"), ("decoder", "model", 2, "1")] {
            let (here, there) = (format!("{side}.block.{block}."), format!("{side}.{list}.{}.block.", block + 1));
            let Some(rest) = name.strip_prefix(&here) else { continue };
            let mut rest = rest.replace("conv_t1.", &format!("{conv}."));
            if let Some((unit, part)) = rest.strip_prefix("res_unit").and_then(|r| r.split_once('.')) {
                let unit = unit.parse::<usize>().unwrap() - 1 + first;
                let part = part.replace("snake1.", "0.").replace("conv1.", "1.").replace("snake2.", "2.").replace("conv2.", "3.");
                rest = format!("{unit}.block.{part}");
            }
            let snake = if side == "encoder" { "3." } else { "0." };
            return format!("{there}{}", rest.replace("snake1.", snake).replace("conv1.", &format!("{conv}.")));
        }
    }
    for (side, list) in [("encoder", "block"), ("decoder", "model")] {
        for (here, at) in [("conv1", 0), ("snake1", 5), ("conv2", 6)] {
            name = name.replace(&format!("{side}.{here}."), &format!("{side}.{list}.{at}."));
        }
    }
    name
}

#[test]
fn every_layout_of_a_dac_gives_the_same_codes() {
    let (folder, json) = ("dac/weights/16khz", config("dac/weights/16khz"));
    let (codec, samples) = (open(folder), input("dac/16khz"));
    let expected = codec.encode(&samples, codec.codebooks()).unwrap();
    let published = tensors(folder);
    let renamed: Tensors = published.iter().map(|(n, s, v)| (original(n), s.clone(), v.clone())).collect();
    let kwargs = r#"{"kwargs":{"encoder_dim":2,"encoder_rates":[2,4,5,3],"latent_dim":null,"decoder_dim":16,"decoder_rates":[3,5,4,2],
        "n_codebooks":12,"codebook_size":16,"codebook_dim":4,"quantizer_dropout":0.5,"sample_rate":16000}}"#;
    for (what, found) in [
        ("weight norm", Folder::new(&weight_normed(&published, ["weight_g", "weight_v"]), &[("format", "pt")], Some(&json))),
        ("weight norm as saved since", Folder::new(&weight_normed(&published, SINCE), &[], Some(&json))),
        ("original names", Folder::new(&weight_normed(&renamed, ["weight_g", "weight_v"]), &[("metadata", kwargs)], None)),
        ("original names, folded", Folder::new(&renamed, &[("metadata", kwargs)], None)),
    ] {
        assert_eq!(found.open().unwrap().encode(&samples, 12).unwrap(), expected, "{what}");
    }
}

#[test]
fn codecs_are_known_by_their_names() {
    let of = |name: &str| family(&Weights::open(golden(name)).unwrap());
    assert_eq!(of("dac/weights/44khz"), Some("DAC, in the names of transformers"));
    assert_eq!(of("snac/weights/24khz"), Some("SNAC"));
    assert_eq!(of("snac/weights/32khz"), Some("SNAC"));
    assert_eq!(of("mimi/weights/hf"), Some("Mimi, in the names of transformers"));
    assert_eq!(of("encodec/weights/48khz"), Some("EnCodec, in the names of transformers"));
    assert_eq!(of("conv1d/pointwise.safetensors"), None);
}

#[test]
fn what_is_missing_is_said() {
    let published = tensors("dac/weights/16khz");
    let error = Folder::new(&published, &[], None).open().err().unwrap().to_string();
    assert!(error.contains("config.json"), "{error}");
    let (json, mut fewer) = (config("dac/weights/16khz"), published.clone());
    fewer.retain(|(name, ..)| name != "decoder.conv2.bias");
    let error = Folder::new(&fewer, &[], Some(&json)).open().err().unwrap().to_string();
    assert!(error.contains("decoder.conv2.bias"), "{error}");
    let json = json.replace("\"n_codebooks\": 12", "\"n_codebooks\": 13");
    let error = Folder::new(&published, &[], Some(&json)).open().err().unwrap().to_string();
    assert!(error.contains("quantizer.quantizers.12.codebook.weight"), "{error}");
    let (json, mut nan) = (config("snac/weights/24khz"), tensors("snac/weights/24khz"));
    nan.iter_mut().find(|(name, ..)| name == "decoder.model.0.bias").unwrap().2[1] = f32::NAN;
    let error = Folder::new(&nan, &[], Some(&json)).open().err().unwrap().to_string();
    assert!(error.contains("element 1 of tensor decoder.model.0.bias is NaN"), "{error}");
}

#[test]
fn codecs_that_are_not_causal_do_not_stream() {
    for name in ["dac/weights/16khz", "snac/weights/24khz", "snac/weights/32khz", "encodec/weights/24khz", "encodec/weights/48khz"] {
        let codec = open(name);
        let error = Session::new(&codec, 1).err().unwrap().to_string();
        assert!(error.contains("not causal and cannot stream"), "{error}");
    }
}

#[test]
fn levels_lie_one_after_the_other_and_the_first_of_them_are_codes_too() {
    let (codec, samples) = (open("snac/weights/24khz"), input("snac/24khz"));
    let all = codec.encode(&samples, 3).unwrap();
    assert_eq!((all.frames, all.values.len()), (4, 4 + 8 + 16));
    for levels in 1..3 {
        let some = codec.encode(&samples, levels).unwrap();
        assert_eq!(some.values, all.values[..some.values.len()], "{levels} levels");
        assert_eq!(some.frames, all.frames);
        assert_eq!(codec.decode(&some).unwrap().len(), 384);
    }
    let mut outside = all.clone();
    outside.values[4 + 7] = 16;
    let error = codec.decode(&outside).unwrap_err().to_string();
    assert!(error.contains("code 16 of codebook 1, frame 3"), "{error}");
    let short = Codes { values: all.values[..27].to_vec(), ..all };
    assert!(codec.decode(&short).unwrap_err().to_string().contains("27 codes are not 7 x 4"));
}

#[test]
fn noise_is_the_same_every_time_and_may_be_left_out() {
    let (mut codec, samples) = (open("snac/weights/24khz"), input("snac/24khz"));
    let codes = codec.encode(&samples, 3).unwrap();
    let seeded = codec.decode(&codes).unwrap();
    assert_eq!(codec.decode(&codes).unwrap(), seeded);
    codec.set_noise(Noise::Seeded(1));
    assert_ne!(codec.decode(&codes).unwrap(), seeded);
    codec.set_noise(Noise::Silent);
    let silent = codec.decode(&codes).unwrap();
    assert_ne!(silent, seeded);
    // Given noise has to fit.
    for noise in [vec![], vec![Tensor::zeros(&Device::Cpu, DType::F32, [1, 47, 1]).unwrap()]] {
        codec.set_noise(Noise::Given(noise));
        assert!(codec.decode(&codes).unwrap_err().to_string().contains("noise"));
    }
}

#[test]
fn codes_that_do_not_fill_a_window_of_attention_are_refused() {
    let codec = open("snac/weights/32khz");
    let codes = codec.encode(&input("snac/32khz"), 4).unwrap();
    assert_eq!(codes.frames, 2);
    codec.decode(&codes).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&config("snac/weights/32khz")).unwrap();
    json["attn_window_size"] = 16.into();
    let wide = Folder::new(&tensors("snac/weights/32khz"), &[], Some(&json.to_string())).open().unwrap();
    let one = Codes { codebooks: 1, frames: 1, values: vec![0], scales: Vec::new() };
    assert!(wide.decode(&one).unwrap_err().to_string().contains("whole windows of 16"));
    // The end is filled up to whole windows.
    assert_eq!(wide.encode(&[0.1; 97], 1).unwrap().frames, 4);
}

/// A tensor's name as EnCodec was first published.
fn first_published(name: &str) -> String {
    if let Some(rest) = name.strip_prefix("quantizer.layers.") {
        return format!("quantizer.vq.layers.{}", rest.replace(".codebook.", "._codebook."));
    }
    let name = name.replace(".layers.", ".model.");
    // Of the tiny model: 3, 6 and 9 of the decoder are transposed.
    match ["decoder.model.3.", "decoder.model.6.", "decoder.model.9."].iter().any(|at| name.starts_with(at)) {
        true => name.replace(".conv.", ".convtr.convtr.").replace(".norm.", ".convtr.norm."),
        false => name.replace(".conv.", ".conv.conv.").replace(".norm.", ".conv.norm."),
    }
}

#[test]
fn every_layout_of_an_encodec_gives_the_same_sound() {
    for case in ["24khz", "48khz"] {
        let folder = format!("encodec/weights/{case}");
        let (codec, published, json) = (open(&folder), tensors(&folder), config(&folder));
        let samples: Vec<f32> = input(&format!("encodec/{case}")).iter().flat_map(|&v| [v; 2]).take(500).collect();
        let expected = codec.encode(&samples, codec.codebooks()).unwrap();
        let sound = codec.decode(&expected).unwrap();
        let original: Tensors = published.iter().map(|(n, s, v)| (first_published(n), s.clone(), v.clone())).collect();
        let since: Tensors = published
            .iter()
            .map(|(n, s, v)| (n.replace("weight_g", SINCE[0]).replace("weight_v", SINCE[1]), s.clone(), v.clone()))
            .collect();
        // The moving averages say nothing.
        let bare: Tensors =
            published.iter().filter(|(n, ..)| !["inited", "embed_avg"].iter().any(|end| n.ends_with(end))).cloned().collect();
        for (what, tensors) in [("original names", original), ("as saved since", since), ("without averages", bare)] {
            let found = Folder::new(&tensors, &[], Some(&json)).open().unwrap();
            assert_eq!(found.encode(&samples, codec.codebooks()).unwrap(), expected, "{case}, {what}");
            assert_eq!(found.decode(&expected).unwrap(), sound, "{case}, {what}");
        }
    }
}

/// Of what `transformers` saved, whatever it was called or lacks in between.
#[test]
fn every_layout_of_an_encodec_becomes_that_of_transformers() {
    const BUFFERS: [&str; 3] = ["inited", "embed_avg", "cluster_size"];
    for case in ["24khz", "48khz"] {
        let folder = format!("encodec/weights/{case}");
        let (published, json) = (tensors(&folder), config(&folder));
        let converted = |tensors: &Tensors| {
            let folder = Folder::new(tensors, &[], Some(&json));
            let found = convert(&Weights::open(folder.0.path()).unwrap(), Naming::HuggingFace).unwrap();
            let tensors = found.tensors.into_iter().map(|t| (t.name, (t.shape, t.values))).collect::<BTreeMap<_, _>>();
            (tensors, found.config, found.preprocessor)
        };
        let expected: BTreeMap<_, _> = published.iter().map(|(n, s, v)| (n.clone(), (s.clone(), v.clone()))).collect();
        let renamed =
            |name: &dyn Fn(&str) -> String| -> Tensors { published.iter().map(|(n, s, v)| (name(n), s.clone(), v.clone())).collect() };
        let original = renamed(&first_published);
        let since = renamed(&|n| n.replace("weight_g", SINCE[0]).replace("weight_v", SINCE[1]));
        for tensors in [&published, &original, &since] {
            let (found, config, preprocessor) = converted(tensors);
            assert!(found == expected, "{case}");
            let theirs: serde_json::Value = serde_json::from_str(&json).unwrap();
            for (key, value) in theirs.as_object().unwrap() {
                assert!(config[key] == *value, "{case}: {key} is {}, expected {value}", config[key]);
            }
            assert_eq!(preprocessor["feature_size"], theirs["audio_channels"]);
        }

        // What is made of codewords and how much each was used is what the file says of these.
        let bare: Tensors =
            published.iter().filter(|(n, ..)| !["inited", "embed_avg"].iter().any(|end| n.ends_with(end))).cloned().collect();
        let (found, ..) = converted(&bare);
        for (name, (_, sums)) in found.iter().filter(|(name, _)| name.ends_with("embed_avg")) {
            let part = |part: &str| &found[&name.replace("embed_avg", part)];
            let ((shape, words), usage) = (part("embed"), &part("cluster_size").1);
            assert!(usage == &expected[&name.replace("embed_avg", "cluster_size")].1);
            // The quotient that transformers makes of them.
            let total: f32 = usage.iter().sum();
            for ((sums, words), used) in sums.chunks_exact(shape[1]).zip(words.chunks_exact(shape[1])).zip(usage) {
                let used = (used + 1e-5) / (total + usage.len() as f32 * 1e-5) * total;
                assert!(sums.iter().zip(words).all(|(s, w)| (s / used - w).abs() < 1e-4 * w.abs() + 1e-6), "{name}");
            }
        }

        // Folded, one filter of either kind silent, and codebooks alone.
        let silent = ["encoder.layers.0.conv", "decoder.layers.3.conv"];
        let mut folded: Tensors = Vec::new();
        for (name, shape, values) in published.iter().filter(|(n, ..)| !BUFFERS.iter().any(|b| n.ends_with(b)) && !n.ends_with("weight_g"))
        {
            let Some(layer) = name.strip_suffix(".weight_v") else {
                folded.push((name.clone(), shape.clone(), values.clone()));
                continue;
            };
            let (each, gains) = (shape[1] * shape[2], &expected[&format!("{layer}.weight_g")].1);
            let row = |(row, gain): (&[f32], &f32)| {
                let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt();
                row.iter().map(|v| v * gain / norm).collect::<Vec<_>>()
            };
            let mut filters: Vec<f32> = values.chunks_exact(each).zip(gains).flat_map(row).collect();
            if silent.contains(&layer) {
                filters[..each].fill(0.0);
            }
            folded.push((format!("{layer}.weight"), shape.clone(), filters));
        }
        let found = converted(&folded).0;
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        for (name, (shape, values)) in &found {
            assert_eq!(*shape, expected[name].0, "{name}");
            if name.ends_with("weight_g") {
                let first = usize::from(silent.iter().any(|layer| name.strip_suffix(".weight_g") == Some(layer)));
                assert!(values[..first].iter().all(|gain| *gain == 0.0), "{name}");
                let far = values.iter().zip(&expected[name].1).skip(first).map(|(a, b)| (a - b.abs()).abs()).fold(0.0, f32::max);
                assert!(far < 1e-5, "{name}: gains off by {far}");
            }
        }
        let whole: Tensors = found.into_iter().map(|(n, (s, v))| (n, s, v)).collect();
        let [a, b] = [&whole, &folded].map(|tensors| Folder::new(tensors, &[], Some(&json)).open().unwrap());
        let samples: Vec<f32> = input(&format!("encodec/{case}")).iter().flat_map(|&v| [v; 2]).take(500).collect();
        let codes = a.encode(&samples, a.codebooks()).unwrap();
        assert_eq!(codes, b.encode(&samples, b.codebooks()).unwrap());
        assert!(a.decode(&codes).unwrap().iter().all(|v| v.is_finite()));

        let without =
            json.replace("\"num_lstm_layers\": 2", "\"num_lstm_layers\": 0").replace("\"num_lstm_layers\": 1", "\"num_lstm_layers\": 0");
        assert!(without != json);
        let folder = Folder::new(&published, &[], Some(&without));
        let error = convert(&Weights::open(folder.0.path()).unwrap(), Naming::HuggingFace).err().unwrap().to_string();
        assert!(
            error.contains("num_lstm_layers") && error.contains(&folder.0.path().display().to_string()) && !error.contains('\n'),
            "{error}"
        );
    }
}

#[test]
fn an_original_encodec_needs_no_configuration_but_its_own_size() {
    let published = tensors("encodec/weights/48khz");
    let original: Tensors = published.iter().map(|(n, s, v)| (first_published(n), s.clone(), v.clone())).collect();
    // The tiny model is not of the published size, which is what is implicit.
    let error = Folder::new(&original, &[], None).open().err().unwrap().to_string();
    assert!(error.contains("decoder.model.0.conv.norm.weight [16], expected [512]"), "{error}");
    assert_eq!(family(&Weights::open(Folder::new(&original, &[], None).0.path()).unwrap()), Some("EnCodec, in its original names"));
    assert!(Folder::new(&published, &[], None).open().err().unwrap().to_string().contains("config.json"));
}

#[test]
fn pieces_need_the_loudness_of_each() {
    let codec = open("encodec/weights/48khz");
    let format = codec.format();
    assert_eq!((format.channels, format.chunks.unwrap().stride), (2, 228));
    let samples = vec![0.1; 2 * 500];
    let codes = codec.encode(&samples, 6).unwrap();
    assert_eq!((codes.frames, codes.scales.len()), (6 + 6 + 2, 3));
    assert!(codes.scales.iter().all(|s| (s - 0.1).abs() < 1e-6));
    assert_eq!(codec.decode(&codes).unwrap().len(), 2 * (2 * 228 + 80));
    for scales in [vec![], vec![1.0; 2], vec![1.0; 4], vec![1.0, f32::NAN, 1.0]] {
        let error = codec.decode(&Codes { scales, ..codes.clone() }).unwrap_err().to_string();
        assert!(error.contains("fit no signal"), "{error}");
    }
    // Silence has a loudness, too.
    let silent = codec.encode(&[0.0; 2], 6).unwrap();
    assert!(codec.decode(&silent).unwrap().iter().all(|v| v.is_finite()));
    assert!(codec.encode(&[0.0; 3], 6).unwrap_err().to_string().contains("2 channels"));
    assert_eq!(codec.encode(&[], 6).unwrap().frames, 0);
}
