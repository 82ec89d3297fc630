//! Published codecs from the command line: tiny ones with random weights (verify/golden).

mod common;

use common::{Room, samples, wav};
use swara_loader::weights::Weights;

fn golden(name: &str) -> String {
    format!("{}/../verify/golden/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn a_codec_of_several_rates_decodes_level_by_level() {
    let (room, snac) = (Room::new(), golden("snac/weights/24khz"));
    wav(&room, "in.wav", 24000, 1, &samples(1000));
    let with = |args: &[&'static str]| -> Vec<String> {
        let more = ["--model", &snac, "--device", "cpu"].map(str::to_owned);
        args.iter().map(|a| (*a).to_owned()).chain(more).collect()
    };
    let works = |args: &[&'static str]| room.works(&with(args).iter().map(String::as_str).collect::<Vec<_>>());
    works(&["encode", "in.wav", "c.safetensors"]);
    let file = Weights::open(room.path("c.safetensors")).unwrap();
    // 96 samples a frame: 11, which have 1, 2 and 4 codes.
    for (k, frames) in [11, 22, 44].into_iter().enumerate() {
        assert_eq!(file.view(&format!("codes_{k}")).unwrap().shape, [frames]);
    }
    assert!(room.works(&["inspect", "c.safetensors"]).contains("3 levels of [11, 22, 44] frames"));
    let wave = |name: &str| std::fs::read(room.path(name)).unwrap();
    for (levels, codes, out) in [("1", "c1.safetensors", "1.wav"), ("2", "c2.safetensors", "2.wav"), ("3", "c3.safetensors", "3.wav")] {
        works(&["encode", "in.wav", codes, "--levels", levels]);
        works(&["decode", codes, out]);
        works(&["decode", "c.safetensors", "some.wav", "--levels", levels]);
        assert_eq!(wave("some.wav"), wave(out), "{levels} levels");
        assert_eq!(hound::WavReader::open(room.path(out)).unwrap().duration(), 1000);
    }
    assert_ne!(wave("1.wav"), wave("2.wav"));
    works(&["roundtrip", "in.wav", "r.wav"]);
    assert_eq!(wave("r.wav"), wave("3.wav"));
    let report =
        room.json(&with(&["roundtrip", "in.wav", "r.wav", "--json", "--levels", "2"]).iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!((&report["bitrate_kbps"], &report["codebooks"]), (&3.0.into(), &2.into()), "{report}");

    let refuses = |args: &[&'static str], code, says| room.refuses(&with(args).iter().map(String::as_str).collect::<Vec<_>>(), code, says);
    refuses(&["decode", "c1.safetensors", "x.wav", "--levels", "2"], 2, "expected 1 to 1");
    refuses(&["encode", "in.wav", "x.safetensors", "--levels", "4"], 2, "expected 1 to 3");
    refuses(&["encode", "in.wav", "x.safetensors", "--stream"], 2, "not causal");
    refuses(&["decode", "c.safetensors", "x.wav", "--stream"], 2, "not causal");
    let other = golden("snac/weights/32khz");
    room.refuses(&["decode", "c.safetensors", "x.wav", "--model", &other, "--device", "cpu"], 1, "expected 32000");
}

#[test]
fn a_dac_is_taken_from_its_folder() {
    let (room, dac) = (Room::new(), golden("dac/weights/16khz"));
    wav(&room, "in.wav", 16000, 1, &samples(1000));
    room.works(&["encode", "in.wav", "c.safetensors", "--codebooks", "3", "--model", &dac, "--device", "cpu"]);
    let file = Weights::open(room.path("c.safetensors")).unwrap();
    assert_eq!(file.view("codes").unwrap().shape, [3, 9]);
    room.works(&["decode", "c.safetensors", "out.wav", "--model", &dac, "--device", "cpu"]);
    // Its odd strides lose 48 of 1080 samples.
    assert_eq!(hound::WavReader::open(room.path("out.wav")).unwrap().duration(), 1000);
}

#[test]
fn inspect_names_the_codec_and_what_it_misses() {
    let room = Room::new();
    for (model, says) in [
        ("dac/weights/44khz", ["complete, not causal (DAC, in the names of transformers)", "44100 Hz"]),
        ("snac/weights/32khz", ["complete, not causal (SNAC)", "codes a frame [1, 2, 4, 8]"]),
        ("mimi/weights/hf", ["complete, causal (Mimi, in the names of transformers)", "24000 Hz"]),
    ] {
        let text = room.works(&["inspect", &golden(model)]);
        assert!(says.iter().all(|s| text.contains(s)), "{text}");
    }
    // Without its configuration.
    let text = room.works(&["inspect", &golden("snac/weights/24khz/pytorch_model.bin")]);
    assert!(text.contains("codec (SNAC) that does not run") && text.contains("config.json"), "{text}");
    // Of another size than the configuration says.
    std::fs::create_dir(room.path("model")).unwrap();
    let config = std::fs::read_to_string(golden("dac/weights/16khz/config.json")).unwrap();
    room.write("model/config.json", config.replace("\"n_codebooks\": 12", "\"n_codebooks\": 13").as_bytes());
    std::fs::copy(golden("dac/weights/16khz/model.safetensors"), room.path("model/model.safetensors")).unwrap();
    let text = room.works(&["inspect", "model"]);
    assert!(text.contains("does not run") && text.contains("quantizer.quantizers.12.codebook.weight"), "{text}");
}

#[test]
fn an_encodec_in_pieces_keeps_the_loudness_of_each() {
    let (room, stereo, mono) = (Room::new(), golden("encodec/weights/48khz"), golden("encodec/weights/24khz"));
    wav(&room, "in.wav", 48000, 1, &samples(1000));
    wav(&room, "low.wav", 24000, 1, &samples(1000));
    room.works(&["encode", "in.wav", "c.safetensors", "--model", &stereo, "--device", "cpu"]);
    // Pieces of 240 samples, every 228: 6 frames each, the last of 88.
    let file = Weights::open(room.path("c.safetensors")).unwrap();
    assert_eq!((file.view("codes").unwrap().shape, file.view("scales").unwrap().shape), (&[6, 27][..], &[5][..]));
    room.works(&["decode", "c.safetensors", "out.wav", "--model", &stereo, "--device", "cpu"]);
    room.works(&["roundtrip", "in.wav", "again.wav", "--model", &stereo, "--device", "cpu"]);
    assert_eq!(std::fs::read(room.path("out.wav")).unwrap(), std::fs::read(room.path("again.wav")).unwrap());
    let reader = hound::WavReader::open(room.path("out.wav")).unwrap();
    assert_eq!((reader.duration(), reader.spec().channels), (1000, 1));
    room.works(&["roundtrip", "low.wav", "low_out.wav", "--model", &mono, "--device", "cpu", "--codebooks", "2"]);
    assert_eq!(hound::WavReader::open(room.path("low_out.wav")).unwrap().duration(), 1000);
    room.refuses(&["roundtrip", "low.wav", "x.wav", "--model", &mono, "--stream", "--device", "cpu"], 2, "not causal");
    let text = room.works(&["inspect", &stereo]);
    assert!(text.contains("complete, not causal (EnCodec, in the names of transformers): 48000 Hz, 2 channels"), "{text}");
}
