//! Whatever is wrong with the input: one line that says what, the right exit code, and nothing left behind.

mod common;

use common::{Room, model, samples, wav};

/// A room with a model, a good clip and codes of it.
fn room() -> Room {
    let room = Room::new();
    model(&room);
    wav(&room, "good.wav", 16000, 1, &samples(1000));
    room.works(&["encode", "good.wav", "good.safetensors", "--model", "tiny.safetensors", "--device", "cpu"]);
    room
}

fn encode<'a>(input: &'a str, output: &'a str) -> [&'a str; 7] {
    ["encode", input, output, "--model", "tiny.safetensors", "--device", "cpu"]
}

fn decode<'a>(input: &'a str, output: &'a str) -> [&'a str; 7] {
    ["decode", input, output, "--model", "tiny.safetensors", "--device", "cpu"]
}

#[test]
fn audio_that_is_none_is_refused() {
    let room = room();
    room.write("empty.wav", b"");
    room.write("text.wav", b"this is no audio, however it is called, and long enough to have a header");
    let good = std::fs::read(room.path("good.wav")).unwrap();
    room.write("header.wav", &good[..30]);
    wav(&room, "none.wav", 16000, 1, &[]);
    std::fs::create_dir(room.path("folder.wav")).unwrap();
    for (input, says) in [
        ("empty.wav", "empty"),
        ("text.wav", "not audio"),
        ("header.wav", "(header.wav)"),
        ("none.wav", "0 samples"),
        ("folder.wav", "directory"),
        ("missing.wav", "no such file"),
    ] {
        room.refuses(&encode(input, "o.safetensors"), 1, says);
        room.refuses(&["roundtrip", input, "o.wav", "--model", "tiny.safetensors", "--device", "cpu"], 1, says);
        room.refuses(&["diagnose", input, "good.wav"], 1, says);
    }
}

#[test]
fn samples_that_are_no_numbers_are_refused() {
    let room = room();
    for (name, bad) in [("nan.wav", f32::NAN), ("inf.wav", f32::INFINITY)] {
        let mut x = samples(50_000);
        x[49_000] = bad;
        wav(&room, name, 16000, 1, &x);
        room.refuses(&encode(name, "o.safetensors"), 1, "sample 49000");
        room.refuses(&["roundtrip", name, "o.wav", "--model", "tiny.safetensors", "--device", "cpu", "--stream"], 1, name);
        room.refuses(&["diagnose", "good.wav", name], 1, name);
    }
}

#[test]
fn a_truncated_file_gives_what_it_has_and_a_warning() {
    let room = room();
    let good = std::fs::read(room.path("good.wav")).unwrap();
    room.write("cut.wav", &good[..good.len() / 2]);
    let output = room.swara(encode("cut.wav", "cut.safetensors"));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{error}");
    assert!(error.starts_with("warning: the header claims 1000 frames"), "{error}");
    let samples = room.json(&["inspect", "cut.safetensors", "--json"])["samples"].as_u64().unwrap();
    assert!((480..500).contains(&samples), "{samples}");
}

#[test]
fn eight_channels_at_192_khz_are_downmixed_and_resampled() {
    let room = room();
    wav(&room, "wide.wav", 192_000, 8, &samples(19_200));
    let result = room.json(&["encode", "wide.wav", "o.safetensors", "--model", "tiny.safetensors", "--device", "cpu", "--json"]);
    assert_eq!(result["seconds"], 0.1);
    assert_eq!(result["frames"], 50);
}

/// A safetensors file from its header and the length of its data.
fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

#[test]
fn damaged_weights_and_codes_are_refused() {
    let room = room();
    let meta = r#""__metadata__":{"model":"tiny","sample_rate":"16000","frame_rate":"500","samples":"32"}"#;
    let file = |tensors: &str, data: usize| safetensors(&format!("{{{meta},{tensors}}}"), data);
    let huge = 1u64 << 63;
    let cases: [(&str, Vec<u8>, &str); 8] = [
        ("empty", Vec::new(), "too short"),
        ("short", vec![8, 0, 0], "too short"),
        ("truncated", u64::MAX.to_le_bytes().to_vec(), "header"),
        ("json", safetensors("{\"codes\":", 0), "header is not valid"),
        (
            "overlap",
            file(
                r#""codes":{"dtype":"I32","shape":[1,1],"data_offsets":[0,4]},"more":{"dtype":"I32","shape":[1,1],"data_offsets":[0,4]}"#,
                4,
            ),
            "overlap",
        ),
        ("huge", file(&format!(r#""codes":{{"dtype":"I32","shape":[{huge},2],"data_offsets":[0,4]}}"#), 4), "codes"),
        ("dtype", file(r#""codes":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}"#, 4), "F32"),
        ("outside", file(r#""codes":{"dtype":"I32","shape":[1,1],"data_offsets":[0,4]}"#, 0), "outside"),
    ];
    for (name, bytes, says) in &cases {
        let name = format!("{name}.safetensors");
        room.write(&name, bytes);
        room.refuses(&decode(&name, "o.wav"), 1, says);
        if !says.contains("F32") {
            room.refuses(&["encode", "good.wav", "o.safetensors", "--model", &name, "--device", "cpu"], 1, says);
            room.refuses(&["inspect", &name], 1, says);
        }
    }
}

#[test]
fn pytorch_files_that_do_more_than_hold_tensors_are_refused() {
    let room = room();
    let data = |name: &str| std::fs::read(format!("{}/../loader/tests/data/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    for (name, says) in [("command.pt", "posix.system"), ("command-legacy.pt", "posix.system"), ("tensor.pt", "without a name")] {
        room.write(name, &data(name));
        room.refuses(&["inspect", name], 1, says);
        room.refuses(&["encode", "good.wav", "o.safetensors", "--model", name, "--device", "cpu"], 1, says);
    }
    room.write("cut.pth", &data("codec.pth")[..9000]);
    room.refuses(&["inspect", "cut.pth"], 1, "damaged zip archive");
}

#[test]
fn codes_of_several_rates_are_not_for_a_codec_of_one() {
    let room = room();
    let meta = r#""__metadata__":{"model":"tiny","sample_rate":"16000","frame_rate":"500","samples":"64"}"#;
    let levels =
        r#""codes_0":{"dtype":"I32","shape":[2],"data_offsets":[0,8]},"codes_1":{"dtype":"I32","shape":[4],"data_offsets":[8,24]}"#;
    room.write("levels.safetensors", &safetensors(&format!("{{{meta},{levels}}}"), 24));
    room.refuses(&decode("levels.safetensors", "o.wav"), 1, "codes of other rates");
    assert!(room.works(&["inspect", "levels.safetensors"]).contains("2 levels of [2, 4] frames"));
}

/// Rewrites the header of the tiny model.
fn edited(room: &Room, edit: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>)) -> Vec<u8> {
    let bytes = std::fs::read(room.path("tiny.safetensors")).unwrap();
    let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&bytes[8..end]).unwrap();
    edit(header.as_object_mut().unwrap());
    let mut out = safetensors(&header.to_string(), 0);
    out.extend_from_slice(&bytes[end..]);
    out
}

#[test]
fn a_model_with_missing_extra_or_misshapen_tensors_names_them() {
    let room = room();
    let renamed = edited(&room, |h| {
        let tensor = h.remove("decoder.conv1.bias").unwrap();
        h.insert("decoder.conv9.bias".into(), tensor);
    });
    room.write("renamed.safetensors", &renamed);
    let reshaped = edited(&room, |h| {
        let shape = &mut h.get_mut("encoder.conv1.weight").unwrap()["shape"];
        *shape = serde_json::json!([7, 1, 4]);
    });
    room.write("reshaped.safetensors", &reshaped);
    let args = |model| ["encode", "good.wav", "o.safetensors", "--device", "cpu", "--model", model];
    for says in ["decoder.conv1.bias", "decoder.conv9.bias", "missing", "unknown"] {
        room.refuses(&args("renamed.safetensors"), 1, says);
    }
    room.refuses(&args("reshaped.safetensors"), 1, "encoder.conv1.weight [7, 1, 4]");
    let bare = edited(&room, |h| drop(h.remove("__metadata__")));
    room.write("bare.safetensors", &bare);
    room.refuses(&args("bare.safetensors"), 1, "not a codec");
    room.refuses(&args("nowhere.safetensors"), 1, "no such file");
    room.refuses(&args("."), 1, "directory");
}

#[test]
fn codes_that_the_model_cannot_have_made_are_refused() {
    let room = room();
    let good = std::fs::read(room.path("good.safetensors")).unwrap();
    for bad in [16i32, -1, i32::MAX] {
        let mut bytes = good.clone();
        // The first frame of the first codebook is the first of 3 x 32 codes.
        let at = bytes.len() - 3 * 32 * 4;
        bytes[at..at + 4].copy_from_slice(&bad.to_le_bytes());
        room.write("bad.safetensors", &bytes);
        room.refuses(&decode("bad.safetensors", "o.wav"), 1, &format!("codebook 0, frame 0: code {bad}, expected 0 to 15"));
    }
    let text = String::from_utf8_lossy(&good).into_owned();
    assert!(text.contains("\"16000\""));
    let at = good.windows(7).position(|w| w == b"\"16000\"").unwrap();
    let mut bytes = good.clone();
    bytes[at..at + 7].copy_from_slice(b"\"24000\"");
    room.write("rate.safetensors", &bytes);
    room.refuses(&decode("rate.safetensors", "o.wav"), 1, "(rate.safetensors)");
    room.refuses(&decode("good.wav", "o.wav"), 1, "(good.wav)");
}

#[test]
fn more_codebooks_than_the_model_has_is_bad_usage() {
    let room = room();
    for n in ["0", "4", "99999999999"] {
        let args = ["encode", "good.wav", "o.safetensors", "--model", "tiny.safetensors", "--device", "cpu", "--codebooks", n];
        room.refuses(&args, 2, "expected 1 to 3");
    }
    room.refuses(&["encode", "good.wav", "o.safetensors", "--model", "tiny.safetensors", "--codebooks", "many"], 2, "many");
}

#[test]
fn bad_usage_is_one_line_and_exit_code_2() {
    let room = room();
    room.refuses(&["encode", "good.wav"], 2, "OUT.safetensors");
    room.refuses(&["fly"], 2, "fly");
    room.refuses(&[], 2, "no command");
    room.refuses(&["roundtrip", "--device", "tpu"], 2, "tpu");
    room.refuses(&["roundtrip", "--plot", "picture.jpg"], 2, "PNG");
    room.refuses(&["roundtrip", "good.wav", "--model", "tiny.safetensors", "--device", "cpu", "--dtype", "f16"], 2, "bf16");
    room.refuses(&["bench", "lm", "--random", "--dtype", "int8"], 2, "int8");
    room.refuses(&["bench", "lm", "--random", "--format", "f32", "--dtype", "bf16"], 2, "contradict");
    room.refuses(&["bench", "lm", "--random", "--right", "0.5"], 2, "--draft");
    for draft in ["0", "-1", "3:", "3:1:1", ":", "1000", "x"] {
        room.refuses(&["speak", "--model", ".", "--text", "x", "o.wav", &format!("--draft={draft}")], 2, "--draft");
    }
    room.refuses(&["verify", "no_such_op"], 2, "no_such_op");
    room.refuses(&["doctor", "--threads", "0"], 2, "0");
    room.refuses(&["doctor", "--kernels", "."], 2, "--kernels");
    room.refuses(&["diagnose", "good.wav"], 2, "TEST.wav");
    room.refuses(&["prepare", "one"], 2, "IN_DIR");
    room.refuses(&["prepare", ".", "data", "--max-seconds", "nan"], 2, "max_seconds");
    room.refuses(&["roundtrip", "good.wav", "o.png", "--plot", "o.png"], 2, "--plot");
    room.refuses(&["diagnose", "good.wav", "good.wav", "--max-lag", "99999999"], 2, "--max-lag");
    for device in ["cuda:-1", "cuda:99999999999999999999", "emulator:", "emulator:sm_9"] {
        let args = ["encode", "good.wav", "o.safetensors", "--model", "tiny.safetensors", "--device", device];
        room.refuses(&args, 2, "--device");
    }
}

#[test]
fn a_gpu_that_is_not_there_is_an_error_with_a_reason() {
    let room = room();
    // Where there is one, asking for the hundredth is as good.
    let args = ["encode", "good.wav", "o.safetensors", "--model", "tiny.safetensors", "--device", "cuda:99"];
    room.refuses(&args, 1, "cuda");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_and_a_closed_pipe_are_not_mistaken_for_success() {
    let room = room();
    room.refuses(&encode("good.wav", "/dev/full"), 1, "no space left on device (/dev/full)");
    room.refuses(&decode("good.safetensors", "/dev/full"), 1, "no space left on device (/dev/full)");
    let swara = env!("CARGO_BIN_EXE_swara");
    let shell = |command: String| std::process::Command::new("sh").args(["-c", &command]).output().unwrap();
    let full = shell(format!("{swara} doctor > /dev/full"));
    assert_eq!(full.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&full.stderr).starts_with("error: cannot write"));
    let closed = shell(format!("{{ {swara} --help; echo $? >&2; }} | true"));
    assert_eq!(String::from_utf8_lossy(&closed.stderr).trim(), "0");
    let silent = shell(format!("{swara} doctor --device cpu >/dev/null 2>&-; echo $?"));
    assert_eq!(String::from_utf8_lossy(&silent.stdout).trim(), "0");
}

#[test]
fn output_where_none_can_be_is_refused() {
    let room = room();
    std::fs::create_dir(room.path("taken")).unwrap();
    room.refuses(&encode("good.wav", "taken"), 1, "directory");
    room.refuses(&decode("good.safetensors", "taken"), 1, "directory");
    room.refuses(&decode("good.safetensors", "no/such/folder.wav"), 1, "no such file");
    room.refuses(&["prepare", "taken", "out"], 1, "no audio");
    room.refuses(&["train", "codec", "--config", "good.wav", "--data", "taken", "--out", "out"], 1, "(good.wav)");
    // Root may write anywhere, but not where the system has nothing to write to.
    room.refuses(&decode("good.safetensors", "/proc/none.wav"), 1, "(/proc/none.wav)");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let folder = room.path("locked");
        std::fs::create_dir(&folder).unwrap();
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o555)).unwrap();
        if std::fs::write(folder.join("probe"), b"").is_err() {
            room.refuses(&decode("good.safetensors", "locked/o.wav"), 1, "permission denied");
        } else {
            let _ = std::fs::remove_file(folder.join("probe"));
            println!("skipped: a read-only folder, since this user may write to it; run as another user");
        }
    }
}

#[test]
fn an_interrupted_output_keeps_the_old_file() {
    let room = room();
    room.write("o.safetensors", b"old");
    let mut x = samples(50_000);
    x[49_000] = f32::NAN;
    wav(&room, "late.wav", 16000, 1, &x);
    room.refuses(&encode("late.wav", "o.safetensors"), 1, "sample 49000");
    room.write("o.wav", b"old");
    room.refuses(&["roundtrip", "late.wav", "o.wav", "--model", "tiny.safetensors", "--device", "cpu"], 1, "sample 49000");
    assert_eq!(std::fs::read(room.path("o.wav")).unwrap(), b"old");
}

#[test]
fn a_decoder_that_panics_says_one_line() {
    let room = room();
    // AIFF at 0 Hz: one channel, 4 frames of 16 bits.
    let common = [&b"COMM"[..], &18u32.to_be_bytes(), &[0, 1, 0, 0, 0, 4, 0, 16], &[0; 10]].concat();
    let sound = [&b"SSND"[..], &16u32.to_be_bytes(), &[0; 16]].concat();
    let size = (4 + common.len() + sound.len()) as u32;
    room.write("zero.aiff", &[b"FORM", &size.to_be_bytes()[..], b"AIFF", &common, &sound].concat());
    room.refuses(&encode("zero.aiff", "o.safetensors"), 1, "(zero.aiff)");
}

#[test]
fn weights_that_are_no_numbers_are_refused() {
    let room = room();
    let mut bytes = std::fs::read(room.path("tiny.safetensors")).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    room.write("nan.safetensors", &bytes);
    room.refuses(&["encode", "good.wav", "o.safetensors", "--model", "nan.safetensors", "--device", "cpu"], 1, "is NaN");
}

#[test]
fn names_in_files_do_not_steer_the_terminal() {
    let room = room();
    let header = r#"{"a\u001b[31m\u0007":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
    room.write("red.safetensors", &safetensors(header, 1));
    let text = room.works(&["inspect", "red.safetensors"]);
    assert!(text.contains("a\u{fffd}[31m\u{fffd}") && !text.contains('\u{1b}'), "{text:?}");
}

#[test]
fn a_comparison_reads_ten_minutes_at_most() {
    let room = Room::new();
    wav(&room, "long.wav", 1000, 1, &samples(601_000));
    let output = room.swara(["diagnose", "long.wav", "long.wav", "--json"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("only the first 600 s"));
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["samples"], 600_000);
}

#[cfg(target_os = "linux")]
#[test]
fn endless_files_and_too_many_threads_are_errors() {
    let room = room();
    room.refuses(&["train", "codec", "--config", "/dev/zero", "--data", ".", "--out", "run"], 1, "not a regular file");
    room.refuses(&["inspect", "/dev/zero"], 1, "not a regular file");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_swara")).arg("doctor").env("RAYON_NUM_THREADS", "9999").output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.starts_with("error: RAYON_NUM_THREADS: 9999, ") && error.lines().count() == 1, "{error}");
}

#[test]
fn result_files_that_are_none_are_refused() {
    let room = Room::new();
    let row = |op: &str, rest: &str| format!(r#"{{"op":{op},"case":"c","dtype":"f32","device":"cpu","median_us":1.0{rest}}}"#);
    let deep = "[".repeat(100_000);
    let many = format!("[{}]", vec!["{\"op\":\"x\"}"; 501].join(","));
    for (name, text, says) in [
        ("empty.json", "", "bench --json"),
        ("text.json", "results", "bench --json"),
        ("object.json", "{}", "bench --json"),
        ("none.json", "[]", "no rows"),
        ("deep.json", &deep, "bench --json"),
        ("numbers.json", "[1,2]", "bench --json"),
        ("other.json", r#"[{"loss":1}]"#, "no benchmark"),
        ("huge.json", r#"[{"op":"a","case":"c","dtype":"f32","device":"cpu","median_us":1e999}]"#, "bench --json"),
        ("zero.json", r#"[{"op":"a","case":"c","dtype":"f32","device":"cpu","median_us":0}]"#, "row 1: `median_us`"),
        ("twice.json", &format!("[{0},{0}]", row("\"a\"", "")), "row 2: the same case"),
        ("name.json", &format!("[{}]", row("[1]", "")), "row 1: `op`"),
    ] {
        room.write(name, text.as_bytes());
        room.refuses(&["bench", "compare", name, name], 1, says);
    }
    room.write("many.json", many.as_bytes());
    room.refuses(&["bench", "plot", "many.json", "p.svg"], 1, "501 rows");
    room.write("row.json", format!("[{}]", row("\"a\"", "")).as_bytes());
    room.refuses(&["bench", "plot", "row.json", "p.svg"], 1, "row 1: missing field");
    room.refuses(&["bench", "plot", "row.json", "p.pdf"], 2, ".svg or .png");
    room.refuses(&["bench", "plot", "nowhere.json", "p.svg"], 1, "no such file");
    room.refuses(&["bench", "compare", "/dev/zero", "row.json"], 1, "not a regular file");
    room.refuses(&["bench", "compare", "row.json", "row.json", "--margin", "0"], 2, "--margin");
    room.refuses(&["bench", "compare", "row.json", "row.json", "conv1d"], 2, "--run");
    // A name of 300000 characters and with an escape, and a row whose numbers have no logarithm.
    let long = format!("\"{}\\u001b[31m\"", "x".repeat(300_000));
    room.write("long.json", format!("[{}]", row(&long, "")).as_bytes());
    let text = room.works(&["bench", "compare", "long.json", "long.json"]);
    assert!(text.len() < 2000 && !text.contains('\u{1b}'), "{}", text.len());
    let rest = r#","median_low_us":1,"median_high_us":1,"p10_us":1,"p90_us":1,"batch_us":1,"samples":1,"throttled":0,"bytes":18446744073709551615,
        "flops":1,"gb_s":-1,"gflop_s":1e-300,"share_of_ceiling":1e300,"ceiling_gb_s":0,"ceiling_gflop_s":-5,"drift":0"#;
    room.write("wild.json", format!("[{}]", row(&long, rest)).as_bytes());
    for picture in ["p.svg", "p.png"] {
        room.works(&["bench", "plot", "wild.json", picture]);
    }
}
