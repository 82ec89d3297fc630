//! What a teacher hears is kept beside a dataset.

mod common;

use common::{Room, samples};
use swara_kernels::case::SplitMix;
use swara_loader::audio::{self, WavFormat, resampled_len};
use swara_loader::dataset::{Dataset, TeacherCache, TeacherOutput, TeacherRows};
use swara_loader::weights::{TensorRef, Weights, save};

const WIDTH: usize = 8;
const LAYERS: usize = 2;

/// A HuBERT of two layers in the folder `name`.
fn teacher(room: &Room, name: &str, seed: u64) {
    let dir = room.path(name);
    std::fs::create_dir_all(&dir).unwrap();
    let config = r#"{"model_type": "hubert", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12,
        "conv_dim": [4, 4, 4, 4, 4, 4, 4], "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}"#;
    std::fs::write(dir.join("config.json"), config).unwrap();
    let kernels = [10, 3, 3, 3, 3, 2, 2];
    let mut shapes: Vec<(String, Vec<usize>)> = Vec::new();
    let mut both = |name: String, weight: &[usize]| {
        shapes.push((format!("{name}.weight"), weight.to_vec()));
        shapes.push((format!("{name}.bias"), vec![weight[0]]));
    };
    both("feature_extractor.conv_layers.0.layer_norm".into(), &[4]);
    both("feature_projection.layer_norm".into(), &[4]);
    both("feature_projection.projection".into(), &[WIDTH, 4]);
    both("encoder.layer_norm".into(), &[WIDTH]);
    both("encoder.pos_conv_embed.conv".into(), &[WIDTH, WIDTH / 2, 4]);
    for layer in 0..LAYERS {
        let name = |part: &str| format!("encoder.layers.{layer}.{part}");
        ["q_proj", "k_proj", "v_proj", "out_proj"].iter().for_each(|p| both(name(&format!("attention.{p}")), &[WIDTH, WIDTH]));
        both(name("feed_forward.intermediate_dense"), &[12, WIDTH]);
        both(name("feed_forward.output_dense"), &[WIDTH, 12]);
        ["layer_norm", "final_layer_norm"].iter().for_each(|p| both(name(p), &[WIDTH]));
    }
    let conv = |i: usize| (format!("feature_extractor.conv_layers.{i}.conv.weight"), vec![4, if i == 0 { 1 } else { 4 }, kernels[i]]);
    shapes.extend((0..7).map(conv));
    let mut rng = SplitMix(seed);
    let values: Vec<Vec<f32>> =
        shapes.iter().map(|(_, shape)| (0..shape.iter().product()).map(|_| rng.uniform() as f32 - 0.4).collect()).collect();
    let tensors: Vec<TensorRef> = shapes.iter().zip(&values).map(|((name, shape), values)| TensorRef::f32(name, shape, values)).collect();
    save(dir.join("model.safetensors"), &tensors, &Default::default()).unwrap();
}

/// Four utterances at 24 kHz.
fn raw(room: &Room) {
    std::fs::create_dir_all(room.path("raw/a/en")).unwrap();
    for i in 0..4 {
        let path = room.path(&format!("raw/a/en/{i}.wav"));
        audio::write(path, &samples(20_000 + 3000 * i), 24_000, WavFormat::S16).unwrap();
    }
}

const PREPARE: [&str; 6] = ["prepare", "raw", "data", "--rate", "24000", "--json"];
const HEAR: [&str; 7] = ["prepare", "data", "--teacher", "hubert", "--device", "cpu", "--json"];

#[test]
fn what_a_teacher_hears_is_kept_beside_a_dataset_and_an_interrupted_run_goes_on() {
    let room = Room::new();
    raw(&room);
    teacher(&room, "hubert", 1);
    let report = room.json(&[&PREPARE[..], &["--teacher", "hubert", "--teacher-layer", "mean", "--device", "cpu"]].concat());
    assert_eq!(report["dataset"]["utterances"], 4);
    assert_eq!((report["teacher"]["utterances"].as_u64(), report["teacher"]["kept"].as_u64()), (Some(4), Some(0)), "{report}");

    let all = room.contents();
    let data = Dataset::open(room.path("data")).unwrap();
    let cache = TeacherCache::open(&data).unwrap();
    assert_eq!(cache.description().output, TeacherOutput::Dim(WIDTH));
    assert_eq!(cache.description().rate, 50.0);
    assert!(cache.description().name.starts_with("hubert, layer mean, weights "), "{:?}", cache.description());
    for (index, utterance) in data.utterances().iter().enumerate() {
        let TeacherRows::Features(rows) = cache.read(index).unwrap() else { panic!("labels") };
        let heard = resampled_len(utterance.samples, 24_000, 16_000);
        assert_eq!(rows.len() as u64, ((heard - 400) / 320 + 1) * WIDTH as u64);
        let spread = rows.iter().fold(0.0f32, |most, v| most.max((v - rows[0]).abs()));
        assert!(spread > 0.1 && rows.iter().all(|v| v.is_finite()), "{spread}");
    }

    // One is gone and one half written: both are heard again, with the same result, and the others are left alone.
    let paths: Vec<_> = (0..4).map(|index| cache.path(index).unwrap()).collect();
    std::fs::remove_file(&paths[1]).unwrap();
    std::fs::write(&paths[2], &all[&paths[2]][..60]).unwrap();
    let before = std::fs::metadata(&paths[0]).unwrap().modified().unwrap();
    let again = room.json(&[&HEAR[..], &["--teacher-layer", "mean"]].concat());
    assert_eq!((again["teacher"]["kept"].as_u64(), again.get("dataset")), (Some(2), None), "{again}");
    assert!(room.contents() == all);
    assert_eq!(std::fs::metadata(&paths[0]).unwrap().modified().unwrap(), before);

    // What a dataset is made by says nothing of one that is there.
    for (flag, value) in [
        ("--rate", "16000"),
        ("--loudness", "none"),
        ("--speaker-depth", "1"),
        ("--language-depth", "1"),
        ("--test-speaker", "a"),
        ("--validation-speaker", "a"),
        ("--id-rule", "a=test:0"),
        ("--test-fraction", "0.5"),
        ("--max-seconds", "5"),
        ("--min-seconds", "1"),
    ] {
        room.refuses(&[&HEAR[..HEAR.len() - 1], &[flag, value]].concat(), 2, &format!("{flag}: is for folders of audio"));
    }

    // Another layer, and another teacher's weights, are not mixed with these.
    room.refuses(&HEAR[..HEAR.len() - 1], 1, "remove the folder first");
    teacher(&room, "hubert", 2);
    room.refuses(&[&HEAR[..HEAR.len() - 1], &["--teacher-layer", "mean"]].concat(), 1, "remove the folder first");
}

#[test]
fn what_is_no_teacher_is_refused_before_anything_is_written() {
    let room = Room::new();
    raw(&room);
    teacher(&room, "hubert", 1);
    let with = |teacher: &'static str, layer: &'static str| {
        ["prepare", "raw", "data", "--device", "cpu", "--teacher", teacher, "--teacher-layer", layer]
    };
    room.refuses(&with("hubert", "3"), 2, "no layer 3, only 2");
    room.refuses(&with("hubert", "first"), 2, "neither last nor mean");
    room.refuses(&with("raw", "last"), 1, "config.json");
    room.refuses(&with("nowhere", "last"), 1, "config.json");
    room.refuses(&["prepare", "raw", "data", "--teacher-layer", "1"], 2, "--teacher");
    room.refuses(&["prepare", "raw", "--teacher", "hubert", "--device", "cpu"], 1, "dataset.json");
    let config = std::fs::read_to_string(room.path("hubert/config.json")).unwrap();
    room.write("hubert/config.json", config.replace("hubert", "wav2vec2").as_bytes());
    room.refuses(&with("hubert", "last"), 1, "model_type is \"wav2vec2\"");
    room.write("hubert/config.json", config.replace("hubert", "wavlm").as_bytes());
    room.refuses(&with("hubert", "last"), 1, "gru_rel_pos_const");
    room.write("hubert/config.json", config.replace("\"hidden_size\": 8", "\"hidden_size\": 800000000").as_bytes());
    room.refuses(&with("hubert", "last"), 1, "hidden_size");
    room.write("hubert/config.json", config.as_bytes());
    let mut bytes = std::fs::read(room.path("hubert/model.safetensors")).unwrap();
    let at = bytes.len() - 4;
    bytes[at..].copy_from_slice(&f32::NAN.to_le_bytes());
    room.write("hubert/model.safetensors", &bytes);
    assert!(Weights::open(room.path("hubert")).is_ok());
    room.refuses(&with("hubert", "last"), 1, "is NaN");
}
