//! Fewer bits for what is heard: beams, numbers of codebooks by frame, and what they are measured with.

mod common;

use common::{Room, golden, model, samples, wav};
use swara_loader::codes::Codes;

fn room() -> Room {
    let room = Room::new();
    model(&room);
    wav(&room, "in.wav", 16000, 1, &samples(5000));
    room
}

/// Encodes to `a.safetensors`: the report, and the codes.
fn encoded(room: &Room, more: &[&str]) -> (serde_json::Value, Codes) {
    let encode = ["encode", "in.wav", "a.safetensors", "--model", "tiny.safetensors", "--device", "cpu", "--json"];
    let report = room.json(&[&encode[..], more].concat());
    assert!(report["real_time_factor"].as_f64().unwrap() > 0.0, "{report}");
    (report, Codes::read(room.path("a.safetensors")).unwrap())
}

#[test]
fn a_beam_finds_other_codes() {
    let room = room();
    let (_, nearest) = encoded(&room, &[]);
    let (report, best) = encoded(&room, &["--beam", "8"]);
    assert_eq!((&report["beam"], &report["bitrate_kbps"]), (&8.into(), &5.0.into()));
    assert_eq!((best.codes.len(), best.stages.is_none()), (nearest.codes.len(), true));
    assert_ne!(best.codes, nearest.codes);
    assert_eq!(encoded(&room, &["--beam", "8", "--stream"]).1, best);
}

#[test]
fn frames_have_as_many_codebooks_as_fit_or_as_they_need() {
    let room = room();
    let (report, codes) = encoded(&room, &["--target-kbps", "3.5"]);
    let (kbps, mean) = (report["bitrate_kbps"].as_f64().unwrap(), report["mean_codebooks"].as_f64().unwrap());
    assert!(kbps <= 3.5 && (1.0..2.0).contains(&mean), "{report}");
    let stages = codes.stages.unwrap();
    assert_eq!((stages.hold, stages.of.len()), (4, 157usize.div_ceil(4)));
    assert_eq!(room.json(&["inspect", "a.safetensors", "--json"])["mean_codebooks"], mean);
    let decode = |output: &str, more: &[&str]| {
        let decode = ["decode", "a.safetensors", output, "--model", "tiny.safetensors", "--device", "cpu", "--float"];
        room.works(&[&decode[..], more].concat());
        std::fs::read(room.path(output)).unwrap()
    };
    assert_eq!(decode("whole.wav", &[]), decode("streamed.wav", &["--stream"]));
    assert_eq!(encoded(&room, &["--target-kbps", "3.5", "--hold", "8"]).1.stages.unwrap().of.len(), 157usize.div_ceil(8));
    // More than there is, and less.
    assert!(encoded(&room, &["--target-kbps", "99"]).0["mean_codebooks"].as_f64().unwrap() >= mean);
    let least = ["encode", "in.wav", "b.safetensors", "--model", "tiny.safetensors", "--device", "cpu", "--target-kbps", "1"];
    let output = room.swara(least);
    assert!(output.status.success());
    assert!(String::from_utf8(output.stderr).unwrap().contains("--target-kbps 1: one codebook for every frame"));

    let mean = |error: &str| encoded(&room, &["--error", error]).0["mean_codebooks"].as_f64().unwrap();
    let means = ["1", "0.5", "0.2", "0"].map(mean);
    assert!(means.is_sorted() && means[0] < means[3] && means[3] == 3.0, "{means:?}");
}

#[test]
fn what_cannot_be_is_refused_by_its_flag_before_it_is_tried() {
    let room = room();
    // An hour and a second.
    wav(&room, "long.wav", 1000, 1, &vec![0.1; 3_601_000]);
    let snac = golden("snac/weights/24khz");
    let refuses = |input: &str, more: &[&str], says: &str| {
        room.refuses(&[&["encode", input, "a.safetensors"], more].concat(), 2, says);
    };
    let tiny = |input: &str, more: &[&str], says: &str| refuses(input, &[&["--model", "tiny.safetensors"], more].concat(), says);
    tiny("in.wav", &["--beam", "0"], "--beam");
    tiny("in.wav", &["--beam", "65"], "--beam");
    tiny("in.wav", &["--beam", "2", "--device", "emulator"], "--beam: a beam on");
    tiny("in.wav", &["--error", "0.1", "--device", "emulator"], "--error: what stages leave is measured on the CPU only");
    tiny("in.wav", &["--error", "1.5", "--device", "cpu"], "--error");
    tiny("in.wav", &["--error", "0.1", "--target-kbps", "3", "--device", "cpu"], "cannot be used with");
    tiny("in.wav", &["--target-kbps", "0", "--device", "cpu"], "--target-kbps");
    tiny("in.wav", &["--hold", "4", "--device", "cpu"], "--error <TAU>");
    tiny("in.wav", &["--error", "0.1", "--hold", "65", "--device", "cpu"], "--hold");
    tiny("long.wav", &["--target-kbps", "3", "--device", "cpu"], "--target-kbps: a recording of more than 3600 s");
    for (flag, value) in [("--beam", "2"), ("--error", "0.1"), ("--target-kbps", "1")] {
        refuses("in.wav", &["--model", &snac, "--device", "cpu", flag, value], flag);
    }
    room.refuses(&["bench", "rate", "in.wav", "--model", &snac, "--device", "cpu"], 2, "--model");
    room.refuses(&["bench", "rate", "in.wav", "--model", "tiny.safetensors", "--device", "emulator"], 2, "--device");
    room.refuses(&["bench", "rate", "gone.wav", "--model", "tiny.safetensors", "--device", "cpu"], 1, "gone.wav");
}

#[test]
fn rates_are_compared() {
    let room = room();
    let rate = ["bench", "rate", "in.wav", "--model", "tiny.safetensors", "--device", "cpu"];
    let rows = room.json(&[&rate[..], &["--beam", "1", "--beam", "4", "--loudness", "0.5", "--json", "-"]].concat());
    let rows = rows.as_array().unwrap();
    // Of each beam three fixed numbers, and for all but the last as heard and by what is left.
    let names =
        ["1", "2", "3", "as heard, hold 4", "by latents, hold 4, loudness 0.5", "as heard, hold 4", "by latents, hold 4, loudness 0.5"];
    assert_eq!(rows.iter().map(|row| row["codebooks"].as_str().unwrap()).collect::<Vec<_>>(), names.repeat(2));
    let of = |row: usize, key: &str| rows[row][key].as_f64().unwrap_or_else(|| panic!("{key} in {rows:?}"));
    for (beam, first) in [(1.0, 0), (4.0, 7)] {
        assert_eq!([0, 1, 2].map(|n| of(first + n, "kbps")), [2.0, 3.5, 5.0]);
        // One codebook is the least, and the numbers count as well.
        assert!((3..7).all(|n| of(first + n, "kbps") <= [2.3, 3.5][(n - 3) / 2]) && (0..7).all(|n| of(first + n, "beam") == beam));
        let [one, two, three] = [0, 1, 2].map(|n| of(first + n, "latent_error"));
        assert!(three < two && two < one && one < 1.0, "{one} {two} {three}");
        assert!((0..7).all(|n| of(first + n, "mel_distance") > 0.0 && of(first + n, "encode_ms_per_second") > 0.0));
    }
    assert!(of(9, "latent_error") < of(2, "latent_error"), "a beam of 4 leaves less");
    let text = room.works(&[&rate[..], &["--hold", "2"]].concat());
    assert!(text.contains("kbit/s") && text.contains("as heard, hold 2"), "{text}");
}
