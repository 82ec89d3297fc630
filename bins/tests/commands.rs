//! What the commands give when all is well.

mod common;

use common::{CONFIG, Room, model, samples, wav};

fn room() -> Room {
    let room = Room::new();
    model(&room);
    wav(&room, "in.wav", 16000, 1, &samples(5000));
    room
}

const MODEL: [&str; 4] = ["--model", "tiny.safetensors", "--device", "cpu"];

fn with<'a>(args: &[&'a str]) -> Vec<&'a str> {
    args.iter().copied().chain(MODEL).collect()
}

#[test]
fn a_roundtrip_writes_sound_and_picture_and_reports_every_key() {
    let room = room();
    let report = room.json(&with(&["roundtrip", "in.wav", "out.wav", "--plot", "out.png", "--stream", "--json"]));
    for key in [
        "model",
        "device",
        "dtype",
        "codebooks",
        "seconds",
        "bitrate_kbps",
        "si_sdr_db",
        "rho",
        "amplitude",
        "mel_distance",
        "real_time_factor",
        "frame_ms",
    ] {
        assert!(!report[key].is_null(), "{key} in {report}");
    }
    for key in ["encode_p50", "encode_p99", "decode_p50", "decode_p99"] {
        assert!(report["frame_ms"][key].as_f64().unwrap() > 0.0, "{key} in {report}");
    }
    assert_eq!(report["codebooks"], 3);
    assert_eq!(report["seconds"], 5000.0 / 16000.0);
    assert_eq!(report["bitrate_kbps"], 5.0);
    assert_eq!(hound::WavReader::open(room.path("out.wav")).unwrap().duration(), 5000);
    assert!(std::fs::read(room.path("out.png")).unwrap().starts_with(b"\x89PNG"));
    let text = room.works(&with(&["roundtrip", "in.wav", "out.wav", "--codebooks", "1"]));
    assert!(text.contains("1 codebooks x 500 Hz") && text.contains("verdict"), "{text}");
}

#[test]
fn the_bundled_codec_follows_the_bundled_clip() {
    let room = Room::new();
    let report = room.json(&["roundtrip", "--device", "cpu", "--json"]);
    let value = |key: &str| report[key].as_f64().unwrap_or_else(|| panic!("{key} in {report}"));
    assert_eq!((&report["model"], value("bitrate_kbps")), (&"swara-te50".into(), 6.0));
    assert!(value("stoi") > 0.8 && value("rho") > 0.85 && value("si_sdr_db") > 5.0 && value("mel_distance") < 2.2, "{report}");
    assert!((75.0..=115.0).contains(&value("amplitude")), "{report}");
    assert!(room.path("out.wav").is_file() && room.path("out.png").is_file());
}

#[test]
fn streaming_and_offline_give_the_same_files() {
    let room = room();
    room.works(&with(&["encode", "in.wav", "a.safetensors"]));
    room.works(&with(&["encode", "in.wav", "b.safetensors", "--stream"]));
    assert_eq!(std::fs::read(room.path("a.safetensors")).unwrap(), std::fs::read(room.path("b.safetensors")).unwrap());
    room.works(&with(&["decode", "a.safetensors", "a.wav", "--float"]));
    room.works(&with(&["decode", "b.safetensors", "b.wav", "--float", "--stream"]));
    assert_eq!(std::fs::read(room.path("a.wav")).unwrap(), std::fs::read(room.path("b.wav")).unwrap());
    room.works(&with(&["roundtrip", "in.wav", "c.wav"]));
    let c = room.json(&["diagnose", "a.wav", "c.wav", "--json"]);
    assert_eq!(c["lag"], 0);
    assert!(c["snr_db"].as_f64().unwrap() > 40.0, "16-bit rounding alone: {c}");
}

#[test]
fn codes_written_without_the_bundled_model_need_to_be_told_the_model() {
    let room = room();
    room.works(&with(&["encode", "in.wav", "a.safetensors"]));
    let codes = room.json(&["inspect", "a.safetensors", "--json"]);
    assert_eq!((&codes["model"], &codes["frames"], &codes["samples"]), (&"tiny".into(), &157.into(), &5000.into()));
    room.refuses(&["decode", "a.safetensors", "o.wav", "--device", "cpu"], 1, "");
}

#[test]
fn results_go_to_pipes_and_devices_as_well() {
    let room = room();
    room.works(&with(&["encode", "in.wav", "/dev/null"]));
    let swara = env!("CARGO_BIN_EXE_swara");
    room.works(&with(&["encode", "in.wav", "a.safetensors"]));
    let command = format!("{swara} decode a.safetensors /dev/stdout --model tiny.safetensors --device cpu -q --json | head -c 4");
    let output = std::process::Command::new("sh").args(["-c", &command]).current_dir(room.path("")).output().unwrap();
    assert_eq!(output.stdout, b"RIFF");
}

#[test]
fn diagnose_tells_a_delay_from_a_loss() {
    let room = room();
    let x = samples(32_000);
    wav(&room, "x.wav", 16000, 1, &x);
    let late: Vec<f32> = std::iter::repeat_n(0.0, 137).chain(x.iter().map(|v| v * 0.3)).collect();
    wav(&room, "late.wav", 16000, 1, &late);
    let report = room.json(&["diagnose", "x.wav", "late.wav", "--json", "--plot", "p.png"]);
    assert_eq!(report["lag"], 137);
    assert_eq!(report["verdict"], "gain-collapse");
    assert!((report["amplitude"].as_f64().unwrap() - 30.0).abs() < 1e-3);
    let other: Vec<f32> = samples(64_000)[32_000..].to_vec();
    wav(&room, "other.wav", 16000, 1, &other);
    assert_eq!(room.json(&["diagnose", "x.wav", "other.wav", "--json"])["verdict"], "starved");
}

#[test]
fn speech_is_prepared_and_trained_on_and_the_run_is_diagnosed_and_resumed() {
    let room = room();
    for (folder, n) in [("a/en", 3), ("b/en", 2)] {
        std::fs::create_dir_all(room.path("raw").join(folder)).unwrap();
        (0..n).for_each(|i| drop(wav(&room, &format!("raw/{folder}/{i}.wav"), 16000, 1, &samples(20_000 + 1000 * i))));
    }
    let prepared = room.json(&["prepare", "raw", "data", "--validation-speaker", "b", "--json"]);
    assert_eq!(prepared["dataset"]["utterances"], 5);
    assert_eq!(room.json(&["inspect", "data", "--json"])["utterances"]["validation"], 2);

    room.write("config.toml", CONFIG.as_bytes());
    let train = ["train", "codec", "--config", "config.toml", "--data", "data", "--out", "run", "--device", "cpu", "--json"];
    assert_eq!(room.json(&train)["steps"], 12);
    for file in ["checkpoint.safetensors", "model.safetensors", "log.csv", "training.png"] {
        assert!(room.path("run").join(file).is_file(), "{file}");
    }
    room.refuses(&train[..train.len() - 1], 1, "--resume");
    // As a version wrote it that did not know PESQ.
    let validation = |name: &str| std::fs::read_to_string(room.path(name)).unwrap();
    let known = validation("run/validation.csv");
    assert!(known.starts_with("step,utterances,mel_distance,stoi,si_sdr_db,rho,amplitude,pesq\n6,2,"), "{known}");
    let before: String = known.lines().map(|line| format!("{}\n", line.rsplit_once(',').unwrap().0)).collect();
    room.write("run/validation.csv", before.as_bytes());
    assert_eq!(room.json(&["diagnose", "run", "--json"])["step"], 12);
    room.write("config.toml", CONFIG.replace("steps = 12", "steps = 18").as_bytes());
    let resumed = room.json(&[&train[..], &["--resume"]].concat());
    assert_eq!(resumed["steps"], 18);
    let lines = validation("run/validation.csv");
    let opinions: Vec<&str> = lines.lines().map(|line| line.split(',').nth(7).unwrap()).collect();
    assert_eq!(opinions[..3], ["pesq", "", ""]);
    let opinion: f64 = opinions[3].parse().unwrap();
    assert!((1.0..4.65).contains(&opinion) && (opinion - resumed["validation"]["pesq"].as_f64().unwrap()).abs() < 1e-3, "{lines}");
    let kept: Vec<String> =
        room.contents().into_keys().filter_map(|path| Some(path.to_str()?.split_once("samples/")?.1.to_owned())).collect();
    let pictures: Vec<&String> = kept.iter().filter(|name| name.ends_with(".png")).collect();
    assert_eq!((kept.len(), pictures.len()), (3 * 2 * 3, 3 * 2), "{kept:?}");
    for picture in pictures {
        let size = std::fs::metadata(room.path("run/samples").join(picture)).unwrap().len();
        assert!((10_000..2_000_000).contains(&size), "{picture}: {size} bytes");
    }

    let diagnosis = room.json(&["diagnose", "run", "--plot", "run.png", "--json"]);
    assert_eq!(diagnosis["step"], 18);
    assert_eq!(diagnosis["perplexities"].as_array().unwrap().len(), 3);
    assert!(room.path("run.png").is_file());
    let codec = room.works(&["inspect", "run/model.safetensors"]);
    assert!(codec.contains("codec tiny, complete"), "{codec}");
    room.works(&["roundtrip", "in.wav", "o.wav", "--model", "run/model.safetensors", "--device", "cpu"]);
}

#[test]
fn inspect_says_what_is_in_files_of_pytorch_and_in_folders() {
    let room = Room::new();
    let data = |name: &str| std::fs::read(format!("{}/../loader/tests/data/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    room.write("codec.pth", &data("codec.pth"));
    let text = room.works(&["inspect", "codec.pth"]);
    for part in ["0.weight_v ", "F32  [3, 2, 3]", "metadata metadata: {\"kwargs\":", "encoder_rates", "PyTorch zip archive, 15 tensors"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    room.write("old.th", &data("layouts-legacy.pt"));
    assert!(room.works(&["inspect", "old.th"]).contains("PyTorch file of before 1.6, 33 tensors"));
    std::fs::create_dir(room.path("model")).unwrap();
    room.write("model/pytorch_model.bin", &data("codec.bin"));
    room.write("model/config.json", br#"{"sampling_rate":24000}"#);
    let found = room.json(&["inspect", "model", "--json"]);
    assert_eq!(found["config"]["sampling_rate"], 24000);
    assert_eq!(found["metadata"]["version"], "1.3.0");
    assert_eq!(found["tensors"].as_array().unwrap().len(), 15);
    room.write("model/config.json", b"[");
    room.refuses(&["inspect", "model"], 1, "config.json");
}

#[test]
fn verify_passes_on_the_cpu_and_says_what_it_left_out() {
    let room = room();
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../verify/golden");
    let report = room.json(&["verify", "conv1d", "--device", "cpu", "--golden", golden, "--json"]);
    assert_eq!(report["failed"], 0);
    let cases = report["cases"].as_array().unwrap();
    assert_eq!(report["passed"], cases.len());
    for key in ["op", "case", "dtype", "device", "nmse", "max_abs", "max_ulp", "budget_used", "pass"] {
        assert!(cases.iter().all(|c| !c[key].is_null()), "{key}");
    }
    assert!(report["skipped"].as_array().unwrap().iter().any(|s| s["what"].as_str().unwrap().contains("bf16")));
    room.refuses(&["verify", "conv1d", "--golden", "nowhere"], 1, "nowhere");
}

#[test]
fn bench_gives_every_key_and_refuses_what_cannot_be_timed() {
    let room = room();
    let rows = room.json(&["bench", "kernels", "snake", "--device", "cpu", "--json", "-"]);
    let rows = rows.as_array().unwrap();
    assert!(!rows.is_empty());
    for key in [
        "op",
        "case",
        "dtype",
        "device",
        "median_us",
        "p10_us",
        "p90_us",
        "bytes",
        "flops",
        "gb_s",
        "gflop_s",
        "share_of_ceiling",
        "batch_us",
    ] {
        assert!(rows.iter().all(|row| !row[key].is_null()), "{key} in {rows:?}");
    }
    // A share far above one would mean a wrong cost or a wrong ceiling; caches and noise allow a little.
    assert!(rows.iter().all(|row| (0.001..1.5).contains(&row["share_of_ceiling"].as_f64().unwrap())), "{rows:?}");
    room.works(&[
        "bench",
        "codec",
        "tiny.safetensors",
        "--device",
        "cpu",
        "--frames",
        "5",
        "--batch",
        "1",
        "--batch",
        "3",
        "--json",
        "b.json",
    ]);
    let rows: serde_json::Value = serde_json::from_slice(&std::fs::read(room.path("b.json")).unwrap()).unwrap();
    assert_eq!((&rows[0]["batch"], &rows[1]["batch"], &rows[1]["frames"]), (&1.into(), &3.into(), &5.into()));
    for key in ["model", "device", "dtype", "encode_ms_p50", "encode_ms_p99", "decode_ms_p50", "decode_ms_p99", "share_of_ceiling"] {
        assert!(!rows[0][key].is_null(), "{key} in {rows}");
    }
    // Also before the command, as the other common flags.
    assert_eq!(room.json(&["--json", "bench", "codec", "tiny.safetensors", "--device", "cpu", "--frames", "5"])[0]["frames"], 5);
    assert!(room.json(&["--json", "inspect", "in.wav"]).is_object());
    let table = room.works(&["bench", "codec", "tiny.safetensors", "--device", "cpu", "--frames", "5"]);
    assert!(table.contains("ceilings measured on cpu"), "{table}");
    room.refuses(&["bench", "kernels", "--device", "emulator"], 2, "emulator");
    room.refuses(&["bench", "kernels", "no_such_op", "--device", "cpu"], 2, "no_such_op");
}

/// A result file of one kernel.
fn kernel_rows(median: f64, share: f64) -> String {
    let (low, high) = (0.99 * median, 1.01 * median);
    let rows = serde_json::json!([{"op": "conv1d", "case": "forward 1x8", "dtype": "f32", "device": "cpu", "median_us": median,
        "median_low_us": low, "median_high_us": high, "p10_us": low, "p90_us": high, "batch_us": median, "samples": 20, "throttled": 0,
        "bytes": 1000, "flops": 4000, "gb_s": 1e-3 * 1000.0 / median, "gflop_s": 1e-3 * 4000.0 / median, "share_of_ceiling": share,
        "ceiling_gb_s": 50.0, "ceiling_gflop_s": 400.0, "drift": 0.01}]);
    rows.to_string()
}

#[test]
fn bench_compare_judges_rows_and_exits_with_1_if_one_is_slower() {
    let room = Room::new();
    room.write("old.json", kernel_rows(100.0, 0.5).as_bytes());
    room.write("same.json", kernel_rows(101.0, 0.495).as_bytes());
    room.write("slow.json", kernel_rows(112.0, 0.4464).as_bytes());
    room.write("other.json", kernel_rows(100.0, 0.5).replace("conv1d", "matmul").as_bytes());
    assert_eq!(room.json(&["bench", "compare", "old.json", "same.json", "--json", "-"])[0]["verdict"], "same");
    assert_eq!(room.json(&["bench", "compare", "slow.json", "old.json", "--json", "-"])[0]["verdict"], "faster");
    let slower = room.swara(["bench", "compare", "old.json", "slow.json"]);
    assert_eq!((slower.status.code(), slower.stderr), (Some(1), Vec::new()));
    let text = String::from_utf8(slower.stdout).unwrap();
    assert!(text.contains("1.120") && text.contains("1 slower"), "{text}");
    room.works(&["bench", "compare", "old.json", "slow.json", "--allow-slower"]);
    room.works(&["bench", "compare", "old.json", "slow.json", "--margin", "30"]);
    // Nothing in common is no success.
    room.refuses(&["bench", "compare", "old.json", "other.json"], 1, "nothing is in both");
}

#[test]
fn two_builds_are_timed_in_turns() {
    let room = Room::new();
    let swara = env!("CARGO_BIN_EXE_swara");
    let args = ["bench", "compare", swara, swara, "conv_transpose1d", "--run", "--device", "cpu", "--allow-slower", "--json", "-"];
    let rows = room.json(&args);
    let rows = rows.as_array().unwrap();
    assert!(rows.len() == 1, "{rows:?}");
    for row in rows {
        // One build is itself, whatever else runs on this machine; that the verdict holds is what `planted` counts.
        assert!((0.7..1.4).contains(&row["ratio"].as_f64().unwrap()), "{row}");
        assert!(row["low"].as_f64() <= row["ratio"].as_f64() && row["ratio"].as_f64() <= row["high"].as_f64(), "{row}");
        assert_eq!((&row["op"], &row["device"]), (&"conv_transpose1d".into(), &"cpu".into()));
    }
    #[cfg(unix)]
    {
        room.refuses(&["bench", "compare", "/bin/true", swara, "--run", "--device", "cpu"], 1, "/bin/true: it ended");
        room.refuses(&["bench", "compare", swara, "nowhere", "--run", "--device", "cpu"], 1, "nowhere");
        room.refuses(&["bench", "compare", swara, swara, "no_such_op", "--run", "--device", "cpu"], 1, "no_such_op");
    }
}

#[test]
fn results_are_drawn_and_kept_by_device() {
    let room = room();
    room.write("k.json", kernel_rows(100.0, 0.5).as_bytes());
    room.works(&["bench", "codec", "tiny.safetensors", "--device", "cpu", "--frames", "20", "--streams", "8", "--json", "c.json"]);
    let rows: serde_json::Value = serde_json::from_slice(&std::fs::read(room.path("c.json")).unwrap()).unwrap();
    let rows = rows.as_array().unwrap();
    assert_eq!(rows[0]["batch"], 1);
    for row in rows {
        let number = |key: &str| row[key].as_f64().unwrap_or_else(|| panic!("{key} in {row}"));
        assert!(number("total_ms_p50") <= number("total_ms_p99") && number("total_ms_p99") <= number("total_ms_max"), "{row}");
        assert!(number("encode_ms_low") <= number("encode_ms_p50") && number("encode_ms_p50") <= number("encode_ms_high"), "{row}");
        assert!(row["launches_per_frame"].is_null() && row["in_time"].is_boolean(), "{row}");
    }
    for (file, says) in [("k.json", "conv1d forward"), ("c.json", "tiny on cpu")] {
        room.works(&["bench", "plot", file, "p.svg"]);
        let svg = std::fs::read_to_string(room.path("p.svg")).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>") && svg.contains(says), "{svg}");
        room.works(&["bench", "plot", file, "p.png"]);
        assert!(std::fs::read(room.path("p.png")).unwrap().starts_with(b"\x89PNG"));
    }
    room.works(&["bench", "codec", "tiny.safetensors", "--device", "cpu", "--frames", "5", "--save", "kept"]);
    let kept: Vec<_> = room.contents().into_keys().filter(|path| path.ends_with("bench-codec.json")).collect();
    assert!(kept.len() == 1 && kept[0].starts_with(room.path("kept")), "{kept:?}");
}

#[test]
fn doctor_names_every_device_and_what_to_do() {
    let room = room();
    let facts = room.json(&["doctor", "--json"]);
    let items: Vec<&str> = facts["facts"].as_array().unwrap().iter().map(|f| f["item"].as_str().unwrap()).collect();
    for item in ["CPU", "CUDA driver", "NVRTC", "kernel cache", "emulator"] {
        assert!(items.contains(&item), "{item} in {items:?}");
    }
}

#[test]
fn help_lists_the_commands_that_work() {
    let room = room();
    let help = room.works(&["--help"]);
    for command in ["roundtrip", "encode", "decode", "prepare", "train", "diagnose", "verify", "inspect", "doctor"] {
        assert!(help.contains(command), "{help}");
        room.works(&[command, "--help"]);
    }
}
