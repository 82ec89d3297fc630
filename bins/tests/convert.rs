//! Codecs in the names of others: tiny ones with random weights (verify/golden).

mod common;

use std::path::Path;

use common::{Room, model, samples, wav};
use swara_engine::codec::{Codec, Codes};
use swara_engine::train::{TrainConfig, Trainer};
use swara_kernels::{DType, Device};
use swara_loader::weights::Weights;

fn golden(name: &str) -> String {
    format!("{}/../verify/golden/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Names, shapes and bits; which may be left out of either file.
fn same(found: &Path, expected: &str, extra: &[&str]) {
    let (found, expected) = (Weights::open(found).unwrap(), Weights::open(expected).unwrap());
    let names = |file: &Weights| {
        let mut names: Vec<String> = file.names().filter(|n| !extra.iter().any(|e| n.ends_with(e))).map(str::to_owned).collect();
        names.sort();
        names
    };
    assert_eq!(names(&found), names(&expected));
    for name in names(&found) {
        assert_eq!(found.view(&name).unwrap().shape, expected.view(&name).unwrap().shape, "{name}");
        let bits = |file: &Weights| file.to_f32(&name).unwrap().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert!(bits(&found) == bits(&expected), "{name}");
    }
}

#[test]
fn a_mimi_goes_to_transformers_and_back() {
    let room = Room::new();
    let (kyutai, hf) = (golden("mimi/weights/kyutai.safetensors"), golden("mimi/weights/hf"));
    room.works(&["convert", &kyutai, "hf", "--layout", "hf"]);
    same(&room.path("hf"), &hf, &["initialized"]);
    let json = |path: &Path| serde_json::from_str::<serde_json::Value>(&std::fs::read_to_string(path).unwrap()).unwrap();
    let (ours, theirs) = (json(&room.path("hf/config.json")), json(&Path::new(&hf).join("config.json")));
    for (key, value) in ours.as_object().unwrap() {
        assert!(theirs.get(key).is_none_or(|v| v == value || v.is_null()), "{key}: {value}, {}", theirs[key]);
    }
    assert_eq!(json(&room.path("hf/preprocessor_config.json"))["sampling_rate"], theirs["sampling_rate"]);
    room.works(&["convert", "hf", "back.safetensors", "--layout", "kyutai"]);
    same(&room.path("back.safetensors"), &kyutai, &["initialized"]);
    room.works(&["convert", "back.safetensors", "again.safetensors", "--layout", "kyutai"]);
    assert_eq!(std::fs::read(room.path("back.safetensors")).unwrap(), std::fs::read(room.path("again.safetensors")).unwrap());
}

#[test]
fn a_dac_goes_to_transformers() {
    let (room, dac) = (Room::new(), golden("dac/weights/16khz"));
    wav(&room, "in.wav", 16000, 1, &samples(1000));
    room.works(&["convert", &dac, "hf", "--layout", "hf"]);
    for (model, out) in [(dac.as_str(), "a.safetensors"), ("hf", "b.safetensors")] {
        room.works(&["encode", "in.wav", out, "--model", model, "--device", "cpu"]);
    }
    same(&room.path("a.safetensors"), room.path("b.safetensors").to_str().unwrap(), &[]);
}

/// The files are those that `transformers` saved.
#[test]
fn an_encodec_goes_to_transformers() {
    for kind in ["24khz", "48khz"] {
        let (room, encodec) = (Room::new(), golden(&format!("encodec/weights/{kind}")));
        room.works(&["convert", &encodec, "hf", "--layout", "hf"]);
        same(&room.path("hf"), &encodec, &[]);
        let json = |path: &Path| serde_json::from_str::<serde_json::Value>(&std::fs::read_to_string(path).unwrap()).unwrap();
        let (ours, theirs) = (json(&room.path("hf/config.json")), json(&Path::new(&encodec).join("config.json")));
        for (key, value) in theirs.as_object().unwrap() {
            let unset = key == "codebook_dim" && ours[key] == serde_json::Value::Null;
            assert!(unset || ours[key] == *value, "{key}: {}, {value}", ours[key]);
        }
        assert_eq!(json(&room.path("hf/preprocessor_config.json"))["feature_size"], theirs["audio_channels"]);
    }
}

/// The recipe of DAC, narrow: its rules, its optimisers, its kinds of discriminators.
#[test]
fn a_dac_that_was_trained_here_goes_to_transformers_too() {
    let room = Room::new();
    let recipe = std::fs::read_to_string(format!("{}/train/recipes/dac.toml", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let mut config = TrainConfig::from_toml(&recipe).unwrap();
    let codec = config.codec.as_mut().unwrap();
    (codec.encoder_widths, codec.decoder_widths) = (vec![2, 4, 8, 16, 32], vec![32, 16, 8, 4, 2]);
    // The latent's width is one of its own.
    (codec.latent, codec.codebook_dim, codec.codebook_sizes) = (24, 4, vec![16; 3]);
    (config.train.batch, config.train.crop_frames) = (2, 8);
    let judges = &mut config.adversarial.as_mut().unwrap().discriminators;
    judges.period.as_mut().unwrap().channels = vec![2, 3];
    let bands = judges.band.as_mut().unwrap();
    (bands.windows, bands.channels) = (vec![64], 2);
    let batch = samples(config.train.batch * config.crop().unwrap());
    let mut trainer = Trainer::new(config, &Device::Cpu).unwrap();
    for _ in 0..2 {
        let losses = trainer.train(&batch).unwrap().losses().unwrap();
        assert!(losses.discriminator.is_some() && losses.feature > 0.0);
    }
    trainer.release(&room.path("own.safetensors")).unwrap();
    room.works(&["convert", "own.safetensors", "hf", "--layout", "hf"]);
    wav(&room, "in.wav", 24000, 1, &samples(5000));
    for (model, name) in [("own.safetensors", "a"), ("hf", "b")] {
        let [codes, sound] = ["safetensors", "wav"].map(|kind| format!("{name}.{kind}"));
        room.works(&["encode", "in.wav", &codes, "--model", model, "--device", "cpu"]);
        room.works(&["decode", &codes, &sound, "--model", model, "--device", "cpu"]);
    }
    same(&room.path("a.safetensors"), room.path("b.safetensors").to_str().unwrap(), &[]);
    let [a, b] = ["a.wav", "b.wav"].map(|name| std::fs::read(room.path(name)).unwrap());
    assert!(a == b && a.len() > 2 * 4500, "samples differ, or there are none");
}

/// `transformers` read what convert makes of it, all of it (verify/reference/bundled.py).
#[test]
fn the_bundled_codec_is_what_transformers_makes_of_it() {
    let room = Room::new();
    let bundled = format!("{}/data/swara-te50.safetensors", env!("CARGO_MANIFEST_DIR"));
    room.works(&["convert", &bundled, "hf", "--layout", "hf"]);
    let case = Weights::open(Path::new(&golden("bundled/transformers.safetensors"))).unwrap();
    let theirs: Vec<i32> = case.view("codes").unwrap().bytes.chunks(4).map(|b| i32::from_le_bytes(b.try_into().unwrap())).collect();
    let (clean, decoded) = (case.to_f32("clean").unwrap(), case.to_f32("decoded").unwrap());
    for path in [Path::new(&bundled), &room.path("hf")] {
        let codec = Codec::open(path, &Device::Cpu, DType::F32).unwrap();
        let codes = codec.encode(&clean, codec.codebooks()).unwrap();
        // A codeword may be as near as another to the last bits.
        let other = codes.values.iter().zip(&theirs).filter(|(a, b)| a != b).count();
        assert!(codes.values.len() == theirs.len() && 50 * other <= theirs.len(), "{other} codes of {} differ", theirs.len());
        let ours = codec.decode(&Codes { values: theirs.clone(), ..codes }).unwrap();
        let off = ours.iter().zip(decoded.iter()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(ours.len() == decoded.len() && off < 1e-4, "samples off by {off}");
    }
}

#[test]
fn what_others_do_not_have_is_refused() {
    let room = Room::new();
    let own = model(&room).to_str().unwrap().to_owned();
    room.refuses(&["convert", &own, "x", "--layout", "hf"], 1, "transformers has DAC alone");
    room.refuses(&["convert", &own, "x", "--layout", "kyutai"], 1, "no Mimi");
    room.refuses(&["convert", &golden("snac/weights/24khz"), "x", "--layout", "hf"], 1, "no SNAC");
    room.refuses(&["convert", "nothing", "x", "--layout", "hf"], 1, "no such file");
    room.refuses(&["convert", &own, "x", "--layout", "gguf"], 2, "--layout");
    assert!(!room.path("x").exists());
    std::fs::copy(golden("mimi/weights/kyutai.safetensors"), room.path("k.safetensors")).unwrap();
    let before = std::fs::read(room.path("k.safetensors")).unwrap();
    room.refuses(&["convert", "k.safetensors", "k.safetensors", "--layout", "kyutai"], 2, "OUT: is what IN is read from");
    std::fs::create_dir(room.path("own")).unwrap();
    std::fs::copy(room.path("k.safetensors"), room.path("own/weights.safetensors")).unwrap();
    room.refuses(&["convert", "own/weights.safetensors", "own", "--layout", "hf"], 2, "OUT: is what IN is read from");
    assert_eq!(std::fs::read(room.path("k.safetensors")).unwrap(), before);
}
