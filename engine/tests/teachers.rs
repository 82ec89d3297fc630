//! WavLM and HuBERT beside `transformers` (verify/reference/teachers.py).

use std::fs;
use std::path::{Path, PathBuf};

use swara_engine::Result;
use swara_engine::teacher::{Config, SAMPLE_RATE, State, Teacher};
use swara_kernels::case::SplitMix;
use swara_kernels::{Device, Tensor};
use swara_loader::weights::{TensorRef, Weights, save};

const CASES: [&str; 4] = ["wavlm_base", "wavlm_large", "hubert_base", "hubert_large"];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../verify/golden/teachers").join(name)
}

fn open(case: &str, device: &Device) -> Teacher {
    Teacher::open(&golden("weights").join(case), device).unwrap()
}

struct Dump(Weights);

impl Dump {
    fn new(case: &str) -> Dump {
        Dump(Weights::open(golden(case).with_extension("safetensors")).unwrap())
    }

    fn values(&self, name: &str) -> Vec<f32> {
        self.0.to_f32(name).unwrap().into_owned()
    }

    fn tensor(&self, name: &str, device: &Device) -> Tensor {
        let shape = self.0.view(name).unwrap().shape;
        Tensor::from_slice(device, &self.values(name), [shape[0], shape[1]]).unwrap()
    }
}

/// The largest difference, over the deviation of what is expected.
fn error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let n = expected.len() as f64;
    let mean = expected.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
    let spread = (expected.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n).sqrt();
    found.iter().zip(expected).map(|(f, e)| f64::from((f - e).abs())).fold(0.0, f64::max) / spread
}

fn every_state_is_that_of_transformers(case: &str, input: &str, device: &Device) -> Vec<Vec<f32>> {
    let (teacher, dump) = (open(case, device), Dump::new(case));
    let layers = teacher.config().num_hidden_layers;
    let mut states = Vec::new();
    let waves = dump.tensor(input, device);
    teacher
        .hidden_states(&waves, layers, |n, x| {
            let (found, expected) = (x.to_vec::<f32>()?, dump.values(&format!("{input}.{n}")));
            let error = error(&found, &expected);
            assert!(error < 1e-5, "{case}, {input}: state {n} is off by {error:.1e} of its spread");
            states.push(found);
            Ok(())
        })
        .unwrap();
    assert_eq!(states.len(), layers + 1);
    states
}

#[test]
fn every_hidden_state_is_that_of_transformers() {
    for case in CASES {
        for input in ["input", "short"] {
            every_state_is_that_of_transformers(case, input, &Device::Cpu);
        }
    }
}

#[test]
fn the_kernels_give_the_states_of_transformers() {
    let device = Device::open("emulator").expect("the emulator needs a C++ compiler");
    for case in ["wavlm_base", "hubert_large"] {
        every_state_is_that_of_transformers(case, "short", &device);
    }
}

#[test]
fn the_last_state_one_of_them_and_their_mean_can_be_had() {
    let states = every_state_is_that_of_transformers("hubert_base", "input", &Device::Cpu);
    let (teacher, waves) = (open("hubert_base", &Device::Cpu), Dump::new("hubert_base").tensor("input", &Device::Cpu));
    let of = |state| teacher.forward(&waves, state).unwrap();
    assert_eq!(*of(State::Last).shape(), [2, 41, 24]);
    assert_eq!(of(State::Last).to_vec::<f32>().unwrap(), states[3]);
    for (n, state) in states.iter().enumerate() {
        assert_eq!(of(State::Layer(n)).to_vec::<f32>().unwrap(), *state);
    }
    let mean: Vec<f32> = (0..states[0].len()).map(|i| states.iter().map(|s| s[i]).sum::<f32>() / 4.0).collect();
    assert!(error(&of(State::Mean).to_vec::<f32>().unwrap(), &mean) < 1e-6);
    let refused = teacher.forward(&waves, State::Layer(4)).unwrap_err().to_string();
    assert_eq!(refused, "the teacher has no layer 4, only 3");
    let short = Tensor::from_slice(&Device::Cpu, &[0.0f32; 399], [1, 399]).unwrap();
    assert!(teacher.forward(&short, State::Last).unwrap_err().to_string().contains("one of 400"));
    assert!(["last", "mean", "7"].map(str::parse::<State>).iter().all(|state| state.is_ok()) && "-1".parse::<State>().is_err());
}

fn features(teacher: &Teacher, state: State, samples: &[f32], piece: usize) -> Vec<f32> {
    teacher.features(state, || Ok(samples.chunks(piece).map(|piece| Result::Ok(piece.to_vec())))).unwrap()
}

#[test]
fn inputs_are_normalised_where_the_folder_says_so() {
    for case in CASES {
        let (teacher, dump) = (open(case, &Device::Cpu), Dump::new(case));
        let wave = dump.values("input");
        let found = features(&teacher, State::Last, &wave[..wave.len() / 2], 1000);
        let error = error(&found, &dump.values("features"));
        assert!(error < 2e-5, "{case}: {error:.1e}");
    }
}

#[test]
fn a_long_recording_is_heard_in_windows_that_share_two_seconds() {
    let teacher = open("hubert_base", &Device::Cpu);
    let (config, mut rng) = (teacher.config(), SplitMix(3));
    let samples: Vec<f32> = (0..SAMPLE_RATE as usize * 61).map(|_| rng.uniform() as f32 - 0.5).collect();
    let found = features(&teacher, State::Layer(1), &samples, 100_003);
    let (dim, window, step) = (teacher.dim(), 1499, 1399);
    assert_eq!(found.len(), config.rows(samples.len()) * dim);
    let heard = |samples: &[f32]| {
        let wave = Tensor::from_slice(&Device::Cpu, samples, [1, samples.len()]).unwrap();
        teacher.forward(&wave, State::Layer(1)).unwrap().to_vec::<f32>().unwrap()
    };
    let [whole, next] = [config.samples(window), step * config.hop()];
    let parts = [heard(&samples[..whole]), heard(&samples[next..][..whole]), heard(&samples[2 * next..])];
    let expected = [&parts[0][..1449 * dim], &parts[1][50 * dim..1449 * dim], &parts[2][50 * dim..]].concat();
    assert!(found == expected, "windows are not put together as they are");
    // How the recording is cut into pieces makes no difference, nor is there a window more where the first one holds all.
    let one = &samples[..whole];
    assert!(features(&teacher, State::Layer(1), one, 479_999) == parts[0]);
    assert!(features(&teacher, State::Last, &samples[..399], 1).is_empty());
}

#[test]
fn biases_go_by_the_published_buckets() {
    let (dump, json) = (Dump::new("buckets"), r#"{"model_type":"wavlm","num_buckets":24,"max_bucket_distance":30}"#);
    for (name, json) in [("published", r#"{"model_type":"wavlm"}"#), ("small", json)] {
        let config = Config::from_json(json).unwrap();
        let expected = dump.0.to_i32(name).unwrap();
        let most = expected.len() as isize / 2;
        for (distance, &expected) in (-most..).zip(expected.iter()) {
            assert_eq!(config.bucket(distance), expected as usize, "{name}, distance {distance}");
        }
    }
}

/// A folder with another's files, changed.
fn changed(case: &str, change: impl Fn(&str, Vec<u8>) -> Vec<u8>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(golden("weights").join(case)).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let bytes = change(&name, fs::read(entry.path()).unwrap());
        if !bytes.is_empty() {
            fs::write(dir.path().join(name), bytes).unwrap();
        }
    }
    dir
}

/// The same tensors by other names; those without one are left out.
fn renamed(case: &str, name: impl Fn(&str) -> Option<String>) -> tempfile::TempDir {
    rewritten(case, |n, _| name(n))
}

fn rewritten(case: &str, edit: impl Fn(&str, &mut [f32]) -> Option<String>) -> tempfile::TempDir {
    let dir = changed(case, |file, bytes| if file.ends_with(".json") { bytes } else { Vec::new() });
    let file = Weights::open(golden("weights").join(case)).unwrap();
    let tensor = |n: &str| {
        let mut values = file.to_f32(n).unwrap().into_owned();
        Some((edit(n, &mut values)?, file.view(n).unwrap().shape.to_vec(), values))
    };
    let tensors: Vec<(String, Vec<usize>, Vec<f32>)> = file.names().filter_map(tensor).collect();
    let refs: Vec<TensorRef> = tensors.iter().map(|(n, s, v)| TensorRef::f32(n, s, v)).collect();
    save(dir.path().join("model.safetensors"), &refs, &Default::default()).unwrap();
    dir
}

#[test]
fn every_layout_gives_the_same_rows() {
    let [old, new] = ["weight_", "parametrizations.weight.original"];
    let since = |n: &str| n.replace("weight_g", &format!("{new}0")).replace("weight_v", &format!("{new}1"));
    let before = |n: &str| n.replace(&format!("{new}0"), &format!("{old}g")).replace(&format!("{new}1"), &format!("{old}v"));
    for (case, names) in [
        ("hubert_base", Box::new(move |n: &str| Some(since(n))) as Box<dyn Fn(&str) -> Option<String>>),
        ("hubert_base", Box::new(|n: &str| n.strip_prefix("hubert.").map(str::to_owned))),
        ("wavlm_base", Box::new(move |n: &str| Some(format!("wavlm.{}", before(n))))),
    ] {
        let (published, dir) = (open(case, &Device::Cpu), renamed(case, names));
        let found = Teacher::open(dir.path(), &Device::Cpu).unwrap();
        let wave = Dump::new(case).tensor("short", &Device::Cpu);
        let of = |teacher: &Teacher| teacher.forward(&wave, State::Last).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(of(&found), of(&published), "{case}");
        assert_eq!(found.digest(), published.digest());
    }
}

#[test]
fn a_digest_is_of_what_makes_rows_otherwise() {
    let digest = |file: &'static str, from: &'static str, to: &'static str| {
        let dir = changed("wavlm_large", move |name, bytes| match name == file {
            true => String::from_utf8(bytes).unwrap().replacen(from, to, 1).into_bytes(),
            false => bytes,
        });
        Teacher::open(dir.path(), &Device::Cpu).unwrap().digest().to_owned()
    };
    let published = open("wavlm_large", &Device::Cpu).digest().to_owned();
    assert_eq!(digest("config.json", "\"vocab_size\": 5", "\"vocab_size\": 6"), published);
    for (file, from, to) in [
        ("config.json", "{", "{\"layer_norm_eps\": 1e-4,"),
        ("config.json", "\"max_bucket_distance\": 30", "\"max_bucket_distance\": 31"),
        ("config.json", "\"do_stable_layer_norm\": true", "\"do_stable_layer_norm\": false"),
        ("config.json", "\"num_attention_heads\": 4", "\"num_attention_heads\":  4"),
        ("preprocessor_config.json", "true", "false"),
    ] {
        // Of the values, not of how they are written.
        assert_eq!(digest(file, from, to) == published, to.ends_with("  4"), "{to}");
    }
    let other = rewritten("wavlm_large", |n, values| {
        values[0] += if n.ends_with("layers.2.final_layer_norm.bias") { 1e-3 } else { 0.0 };
        Some(n.to_owned())
    });
    assert_ne!(Teacher::open(other.path(), &Device::Cpu).unwrap().digest(), published);
}

#[test]
fn what_is_no_teacher_is_refused_with_its_file() {
    let refused = |dir: &Path| {
        let error = Teacher::open(dir, &Device::Cpu).err().unwrap().to_string();
        assert!(!error.contains('\n'), "{error}");
        error
    };
    let empty = tempfile::tempdir().unwrap();
    assert!(refused(empty.path()).contains("config.json"));
    assert!(refused(&golden("../encodec/weights/24khz")).contains("model_type is \"encodec\""));
    let edited = |file: &'static str, from: &'static str, to: &'static str| {
        changed("wavlm_large", move |name, bytes| match name == file {
            true => String::from_utf8(bytes).unwrap().replace(from, to).into_bytes(),
            false => bytes,
        })
    };
    for (file, from, to, why) in [
        ("config.json", "\"wavlm\"", "\"hubert\"", "gru_rel_pos_const"),
        ("config.json", "\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4", "encoder.layers.3"),
        ("config.json", "\"intermediate_size\": 40", "\"intermediate_size\": 41", "intermediate_dense"),
        ("config.json", "{", "[", "config.json"),
        ("preprocessor_config.json", "16000", "24000", "sampling_rate is 24000"),
        ("preprocessor_config.json", "true", "1", "do_normalize is 1"),
        ("preprocessor_config.json", "{", "", "preprocessor_config.json"),
    ] {
        let error = refused(edited(file, from, to).path());
        assert!(error.contains(why), "{why}: {error}");
    }
    let nothing = changed("wavlm_base", |name, bytes| if name == "model.safetensors" { Vec::new() } else { bytes });
    assert!(refused(nothing.path()).contains("a directory without weights"));
    let codec = renamed("wavlm_base", |n| Some(format!("other.{n}")));
    assert!(refused(codec.path()).contains("no tensor feature_extractor.conv_layers.0.conv.weight"));
    // Of a tap of zeros, weight norm has no direction: PyTorch's is NaN.
    let none = rewritten("wavlm_base", |n, values| {
        if n.ends_with("pos_conv_embed.conv.parametrizations.weight.original1") {
            values.iter_mut().skip(3).step_by(16).for_each(|v| *v = 0.0);
        }
        Some(n.to_owned())
    });
    let error = refused(none.path());
    assert!(error.contains("tap 3 of tensor encoder.pos_conv_embed.conv.parametrizations.weight.original1"), "{error}");
    let fewer = renamed("wavlm_base", |n| (!n.contains("rel_attn_embed")).then(|| n.to_owned()));
    assert!(refused(fewer.path()).contains("encoder.layers.0.attention.rel_attn_embed.weight"));
}

#[test]
fn published_configurations_are_taken() {
    let base = Config::from_json(r#"{"model_type":"wavlm"}"#).unwrap();
    assert_eq!((base.hop(), base.reach(), base.rows(399), base.rows(400), base.rows(16_000)), (320, 400, 0, 1, 49));
    for rows in [1, 2, 49, 1499] {
        assert_eq!([base.rows(base.samples(rows)), base.rows(base.samples(rows) - 1)], [rows, rows - 1]);
    }
    let large = r#"{"model_type":"hubert","hidden_size":1024,"num_attention_heads":16,"num_hidden_layers":24,"intermediate_size":4096,
        "feat_extract_norm":"layer","do_stable_layer_norm":true,"conv_bias":true,"unknown":[1]}"#;
    assert!(Config::from_json(large).unwrap().norms_layers());
}

#[test]
fn configurations_of_no_teacher_are_refused() {
    let huge = usize::MAX;
    for (json, why) in [
        ("{}".to_owned(), "model_type is \"\""),
        (r#"{"model_type":"wav2vec2"}"#.into(), "model_type is \"wav2vec2\""),
        (r#"{"model_type":"hubert","hidden_act":"relu"}"#.into(), "hidden_act"),
        (r#"{"model_type":"hubert","feat_extract_activation":"silu"}"#.into(), "feat_extract_activation"),
        (r#"{"model_type":"hubert","feat_extract_norm":"batch"}"#.into(), "feat_extract_norm"),
        (r#"{"model_type":"hubert","conv_pos_batch_norm":true}"#.into(), "conv_pos_batch_norm"),
        (r#"{"model_type":"wavlm","add_adapter":true}"#.into(), "add_adapter"),
        (r#"{"model_type":"wavlm","layer_norm_eps":-1}"#.into(), "layer_norm_eps"),
        (r#"{"model_type":"wavlm","conv_dim":[8]}"#.into(), "length"),
        (r#"{"model_type":"wavlm","conv_dim":[],"conv_stride":[],"conv_kernel":[]}"#.into(), "conv_dim's length"),
        (r#"{"model_type":"wavlm","conv_stride":[5,2,2,2,2,2,0]}"#.into(), "conv_stride"),
        (r#"{"model_type":"wavlm","conv_stride":[64,64,64,2,2,2,2]}"#.into(), "conv_stride's product"),
        (r#"{"model_type":"wavlm","conv_stride":[5,2,2,2,1,1,1]}"#.into(), "conv_stride's product"),
        (r#"{"model_type":"wavlm","hidden_size":770}"#.into(), "hidden_size"),
        (r#"{"model_type":"wavlm","num_attention_heads":7,"hidden_size":768}"#.into(), "heads"),
        (r#"{"model_type":"hubert","num_attention_heads":4}"#.into(), "heads"),
        (format!(r#"{{"model_type":"wavlm","hidden_size":{huge}}}"#), "hidden_size"),
        (format!(r#"{{"model_type":"wavlm","num_hidden_layers":{huge}}}"#), "num_hidden_layers"),
        (format!(r#"{{"model_type":"wavlm","num_attention_heads":{huge}}}"#), "num_attention_heads"),
        (format!(r#"{{"model_type":"wavlm","intermediate_size":{huge}}}"#), "intermediate_size"),
        (format!(r#"{{"model_type":"wavlm","num_conv_pos_embeddings":{huge}}}"#), "num_conv_pos_embeddings"),
        (format!(r#"{{"model_type":"wavlm","num_conv_pos_embedding_groups":{huge}}}"#), "num_conv_pos_embedding_groups"),
        (format!(r#"{{"model_type":"wavlm","num_buckets":{huge}}}"#), "num_buckets"),
        (format!(r#"{{"model_type":"wavlm","max_bucket_distance":{huge}}}"#), "max_bucket_distance"),
        (format!(r#"{{"model_type":"wavlm","conv_dim":[512,512,512,512,512,512,{huge}]}}"#), "conv_dim"),
        (format!(r#"{{"model_type":"wavlm","conv_kernel":[10,3,3,3,3,2,{huge}]}}"#), "conv_kernel"),
        (r#"{"model_type":"wavlm","conv_stride":[1,10,2,2,2,2,2]}"#.into(), "numbers that a convolution makes"),
        (r#"{"model_type":"wavlm","conv_stride":[5,5,5,4,4,4,2],"conv_kernel":[64,64,64,64,64,64,64]}"#.into(), "a row sees"),
        (r#"{"model_type":"wavlm","num_buckets":0}"#.into(), "num_buckets"),
        (r#"{"model_type":"wavlm","max_bucket_distance":80}"#.into(), "max_bucket_distance"),
        ("[".into(), "EOF"),
    ] {
        let error = Config::from_json(&json).unwrap_err().to_string();
        assert!(error.contains(why), "{json}: {error}");
    }
}
