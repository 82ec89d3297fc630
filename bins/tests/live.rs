//! `swara-live` with a small language model and a small Mimi of random weights (verify/golden).

mod common;

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{Room, golden, samples, vocabulary, wav};
use swara_engine::codec::{Codec, Session as CodecSession};
use swara_engine::lm::{Drawing, Lm, Session};
use swara_kernels::{DType, Device, Tensor};
use swara_loader::audio::to_s16;
use swara_loader::weights::{TensorRef, save};

/// Samples of a frame of the small Mimi.
const HOP: usize = 96;

fn models() -> (String, String) {
    (golden("moshi_lm/weights/moshi"), golden("mimi/weights/kyutai.safetensors"))
}

/// `swara-live` of these models, greedy, on the CPU.
fn live(room: &Room, more: &[&str], input: &[u8]) -> Output {
    let (model, mimi) = models();
    let fixed = ["--model", &model, "--mimi", &mimi, "--greedy", "--device", "cpu"];
    room.live(&[&fixed[..], more].concat(), input)
}

#[track_caller]
fn works(output: Output) -> (Vec<u8>, String) {
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{error}");
    (output.stdout, error)
}

fn s16(samples: &[f32]) -> Vec<u8> {
    samples.iter().flat_map(|&x| to_s16(x).to_le_bytes()).collect()
}

fn f32s(samples: &[f32]) -> Vec<u8> {
    samples.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// What s16 keeps of samples.
fn kept(samples: &[f32]) -> Vec<f32> {
    samples.iter().map(|&x| f32::from(to_s16(x)) / 32768.0).collect()
}

/// The same with the sessions themselves: codes frame by frame `[T][K]`, and what is said.
fn expected(device: &Device, samples: &[f32], live: bool) -> (Vec<Vec<i32>>, Vec<f32>) {
    let (model, mimi) = models();
    let lm = Lm::open(Path::new(&model), device, DType::F32).unwrap();
    let codec = Codec::open(Path::new(&mimi), device, DType::F32).unwrap();
    let mut mouth = CodecSession::new(&codec, 1).unwrap();
    let mut ear = CodecSession::new(&codec, 1).unwrap();
    let mut mind = Session::new(&lm, &[Drawing::GREEDY]).unwrap();
    let (mut codes, mut said) = (Vec::new(), Vec::new());
    for (t, frame) in samples.chunks(HOP).enumerate() {
        let mut frame = frame.to_vec();
        frame.resize(HOP, 0.0);
        let heard = ear.encode(&codec.signal(&frame, 1).unwrap(), 4, None).unwrap().reshape([1, 4]).unwrap();
        if t == 0 && live {
            ear = CodecSession::new(&codec, 1).unwrap();
        }
        codes.push(heard.to_vec::<i32>().unwrap());
        let complete = mind.step(&heard, None).unwrap().complete.to_vec::<i32>().unwrap();
        match complete[0] {
            ..0 => said.resize(said.len() + HOP, 0.0),
            _ => {
                let spoken = Tensor::from_slice(device, &complete[1..], [1, 1, 4]).unwrap();
                said.extend(codec.samples(&mouth.decode(&spoken, None).unwrap()).unwrap());
            }
        }
    }
    said.truncate(samples.len());
    (codes, said)
}

#[test]
fn its_reply_is_bit_for_bit_that_of_the_sessions() {
    let room = Room::new();
    let heard = samples(40 * HOP);
    for name in ["cpu", "emulator"] {
        let device = Device::open(name).unwrap();
        let (codes, said) = expected(&device, &heard, true);
        assert_eq!(said[..HOP], [0.0; HOP], "nothing is complete in the first step");
        assert!(said[HOP..].iter().any(|x| x.abs() > 1e-3));
        assert_ne!(codes, expected(&device, &heard, false).0, "the first frame is in the past");
        let (model, mimi) = models();
        let args = ["--model", &model, "--mimi", &mimi, "--greedy", "--device", name, "--format", "f32"];
        let (found, notes) = works(room.live(&args, &f32s(&heard)));
        assert_eq!(found, f32s(&said), "{name}");
        assert!(notes.contains("40 frames answered") && notes.contains("0 dropped"), "{notes}");
        // All but the one in the past.
        let graphs = if name == "cpu" { 0 } else { 39 };
        assert!(notes.contains(&format!("{graphs} of them one graph each")) && !notes.contains("warning"), "{notes}");
    }
    let (_, said) = expected(&Device::Cpu, &kept(&heard), true);
    assert_eq!(works(live(&room, &[], &s16(&heard))).0, s16(&said), "s16 by default");
}

#[test]
fn it_says_what_talk_says_to_the_same_codes() {
    let room = Room::new();
    let heard = samples(30 * HOP);
    let (codes, _) = expected(&Device::Cpu, &heard, true);
    let by_codebook: Vec<i32> = (0..4).flat_map(|k| codes.iter().map(move |row| row[k])).collect();
    save(room.path("user.safetensors"), &[TensorRef::i32("codes", &[4, 30], &by_codebook)], &Default::default()).unwrap();
    room.write("words.model", &vocabulary((0..40).map(|i| (format!("\u{2581}w{i}"), 1))));
    // `talk` with codes has no WAV, so its text and codes are compared, through a codec of their own.
    let (model, mimi) = models();
    let drawn = ["--temp", "0.9", "--top-k", "20", "--text-temp", "1.1", "--text-top-k", "30", "--seed", "7"];
    for how in [&["--greedy"][..], &drawn] {
        let both = [&["--model", &model, "--tokenizer", "words.model", "--device", "cpu"], how].concat();
        let words = room.works(&[&["talk", "--user-codes", "user.safetensors", "--dump", "d.safetensors"], &both[..]].concat());
        let dump = swara_loader::weights::Weights::open(room.path("d.safetensors")).unwrap();
        let spoken = dump.to_i32("codes").unwrap();
        let codec = Codec::open(Path::new(&mimi), &Device::Cpu, DType::F32).unwrap();
        let rows: Vec<i32> = (0..29).flat_map(|t| spoken.iter().skip(t).step_by(29).copied()).collect();
        let rows = Tensor::from_slice(&Device::Cpu, &rows, [1, 29, 4]).unwrap();
        let said = codec.samples(&CodecSession::new(&codec, 1).unwrap().decode(&rows, None).unwrap()).unwrap();
        let args = [&["--mimi", &mimi, "--format", "f32"], &both[..]].concat();
        let (found, notes) = works(room.live(&args, &f32s(&heard)));
        assert_eq!(found[4 * HOP..], f32s(&said), "{how:?}");
        assert!(notes.starts_with(words.trim_end()) && words.split_whitespace().count() > 3, "{words:?} in {notes:?}");
    }
}

#[test]
fn the_end_may_come_at_any_byte() {
    let room = Room::new();
    let heard = samples(3 * HOP);
    let whole = f32s(&heard);
    for bytes in [0, 1, 3, 4, 5, 4 * HOP - 4, 4 * HOP - 1, 4 * HOP, 4 * HOP + 2, 9 * HOP + 3] {
        let (found, notes) = works(live(&room, &["--format", "f32"], &whole[..bytes]));
        let real = bytes / 4;
        assert_eq!(found, f32s(&expected(&Device::Cpu, &heard[..real], true).1), "{bytes} bytes");
        let warned = notes.contains(&format!("warning: {} bytes at the end are no whole sample", bytes % 4));
        assert_eq!(warned, bytes % 4 > 0, "{notes}");
        assert!(notes.contains(&format!("{} frames answered", real.div_ceil(HOP))), "{notes}");
    }
    let (found, _) = works(live(&room, &["-q"], &s16(&heard)[..2 * HOP + 21]));
    assert_eq!(found, s16(&expected(&Device::Cpu, &kept(&heard[..HOP + 10]), true).1));
}

#[test]
fn what_is_no_sample_is_heard_as_silence_and_said_so() {
    let room = Room::new();
    let mut heard = samples(8 * HOP);
    for (i, bad) in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN].into_iter().enumerate() {
        heard[200 + i] = bad;
    }
    (heard[300], heard[301]) = (f32::MAX, -3.0);
    let (found, notes) = works(live(&room, &["--format", "f32"], &f32s(&heard)));
    heard[200..204].fill(0.0);
    (heard[300], heard[301]) = (1.0, -1.0);
    assert_eq!(found, f32s(&expected(&Device::Cpu, &heard, true).1));
    assert!(notes.contains("warning: 4 samples were no finite numbers") && notes.contains("warning: 2 samples were beyond"), "{notes}");
}

#[test]
fn under_load_the_reply_is_as_long_as_what_was_heard() {
    let room = Room::new();
    let heard = f32s(&samples(400 * HOP - 7));
    let (found, _) = works(live(&room, &["--format", "f32", "--realtime", "--queue", "1", "--json", "r.json"], &heard));
    assert_eq!(found.len(), heard.len());
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(room.path("r.json")).unwrap()).unwrap();
    assert!(report["dropped"].as_u64().unwrap() > 0, "400 frames at once do not wait for the model: {report}");
    assert_eq!(report["frames"].as_u64().unwrap() + report["dropped"].as_u64().unwrap(), 400, "{report}");
    let (found, _) = works(live(&room, &["--format", "f32", "--queue", "1", "--json", "r.json"], &heard));
    assert_eq!(found.len(), heard.len());
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(room.path("r.json")).unwrap()).unwrap();
    assert_eq!((&report["frames"], &report["dropped"], &report["realtime"]), (&400.into(), &0.into(), &false.into()));
    for what in ["encode", "lm", "decode", "total", "lag"] {
        let ms = ["p50", "p99", "max"].map(|share| report["frame_ms"][format!("{what}_{share}")].as_f64().unwrap());
        assert!(0.0 < ms[0] && ms[0] <= ms[1] && ms[1] <= ms[2], "{report}");
    }
    assert!(0.0 < report["ready_ms"].as_f64().unwrap() && report["ready_ms"].as_f64() < report["first_reply_ms"].as_f64(), "{report}");
}

#[test]
fn a_listener_that_leaves_ends_it_and_a_full_disk_is_an_error() {
    let (model, mimi) = models();
    let start = |stdout: Stdio| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_swara-live"));
        command.args(["--model", &model, "--mimi", &mimi, "--greedy", "--device", "cpu"]);
        command.stdin(Stdio::piped()).stdout(stdout).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut child = start(Stdio::piped());
    drop(child.stdout.take());
    let mut stdin = child.stdin.take().unwrap();
    // It ends although its input does not.
    stdin.write_all(&s16(&samples(4 * HOP))).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap().as_str()), (Some(0), ""));
    drop(stdin);

    let mut child = start(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap().into());
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&s16(&samples(4 * HOP))).unwrap();
    let output = child.wait_with_output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && error.starts_with("error: cannot write: ") && error.lines().count() == 1, "{error}");
}

#[test]
fn cpus_and_memory_are_as_asked() {
    let room = Room::new();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
    let first: String = allowed.chars().take_while(char::is_ascii_digit).collect();
    let heard = samples(3 * HOP);
    let reply = s16(&expected(&Device::Cpu, &kept(&heard), true).1);
    for cpus in [allowed, &first] {
        assert_eq!(works(live(&room, &["--affinity", cpus], &s16(&heard))).0, reply);
    }
    let (model, mimi) = models();
    let fixed = ["--model", &model, "--mimi", &mimi];
    for bad in ["", "x", "3-1", "0,0", "0,", "-1", "5000", "0-2000"] {
        room.live_refuses(&[&fixed[..], &[&format!("--affinity={bad}")]].concat(), 2, "--affinity");
    }
    room.live_refuses(&[&fixed[..], &["--affinity", "1023"]].concat(), 2, "--affinity");
    // Where memory may not be locked, it says so before anything is heard.
    let output = live(&room, &["--mlock"], &s16(&heard));
    match output.status.success() {
        true => assert_eq!(output.stdout, reply),
        false => {
            let error = String::from_utf8(output.stderr).unwrap();
            assert!(output.status.code() == Some(1) && error.starts_with("error: cannot lock memory: "), "{error}");
            assert!(output.stdout.is_empty());
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_heard() {
    let room = Room::new();
    let (model, mimi) = models();
    wav(&room, "in.wav", 24000, 1, &samples(200));
    room.write("few.model", &vocabulary((0..7).map(|i| (format!("p{i}"), 1))));
    room.write("none.model", b"{}");
    let codec = common::model(&room);
    let codec = codec.to_str().unwrap();
    let refuses = |args: &[&str], code, says: &str| room.live_refuses(&[&["--device", "cpu"], args].concat(), code, says);
    let with = |more: &[&'static str]| -> Vec<&str> { [&["--model", &*model, "--mimi", &*mimi], more].concat() };
    refuses(&with(&["--tokenizer", "few.model"]), 1, "7 pieces, the model has 40");
    refuses(&with(&["--tokenizer", "none.model"]), 1, "no sentencepiece model");
    refuses(&with(&["--rate", "16000"]), 2, "--rate: 16000 Hz, the codec has 24000");
    refuses(&with(&["--rate=-5"]), 2, "--rate");
    refuses(&with(&["--format", "int8"]), 2, "--format");
    refuses(&with(&["--weights", "s16"]), 2, "--weights");
    refuses(&with(&["--greedy", "--temp", "0.5"]), 2, "cannot be used with");
    refuses(&with(&["--temp", "nan"]), 2, "expected 0 to 100");
    refuses(&with(&["--queue", "0"]), 2, "--queue");
    refuses(&with(&["--json", "no/where.json"]), 1, "no/where.json");
    refuses(&with(&["--dtype", "f16"]), 2, "--dtype");
    refuses(&with(&["in.wav"]), 2, "in.wav");
    refuses(&with(&["--model", "x"]), 2, "--model");
    refuses(&["--model", &model, "--mimi", "in.wav"], 1, "in.wav");
    refuses(&["--model", &model, "--mimi", "swara-te50"], 1, "no such file");
    refuses(&["--model", &model, "--mimi", codec], 1, "has 3 codebooks, the model wants 4");
    refuses(&["--model", &model], 2, "--mimi");
    refuses(&["--mimi", &mimi], 2, "--model");
    refuses(&["--model", "nowhere", "--mimi", &mimi], 1, "no such file");
    refuses(&["--model", &mimi, "--mimi", &mimi], 1, "no language model");
    refuses(&["--model", &golden("moshi_lm/weights/listener"), "--mimi", &mimi], 1, "does not both hear and speak");
    refuses(&[], 2, "--model");
    // A folder cannot be read.
    let args = with(&["--device", "cpu"]);
    let folder = std::fs::File::open(room.path("")).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_swara-live")).args(args).stdin(folder).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && error.lines().last().unwrap().starts_with("error: cannot read: "), "{error}");
}

/// Memory in KiB that a process has.
fn resident(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().trim().parse().unwrap()
}

#[test]
fn ten_minutes_of_frames_change_neither_memory_nor_latency() {
    const FRAMES: usize = 10 * 60 * 25 / 2; // of 80 ms
    const RUN: usize = 125;
    let (model, mimi) = models();
    let fixed = ["--model", &model, "--mimi", &mimi, "--device", "cpu", "--threads", "1", "--quiet"];
    let mut live = Command::new(env!("CARGO_BIN_EXE_swara-live")).args(fixed).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut ear, mut mouth) = (live.stdin.take().unwrap(), live.stdout.take().unwrap());
    let heard = s16(&samples(FRAMES * HOP));
    let mut runs = Vec::new();
    // Frame by frame, as a call is: none waits in a pipe.
    for frames in heard.chunks(RUN * HOP * 2) {
        let began = std::time::Instant::now();
        for frame in frames.chunks(HOP * 2) {
            ear.write_all(frame).unwrap();
            mouth.read_exact(&mut vec![0; frame.len()]).unwrap();
        }
        runs.push((began.elapsed(), resident(live.id())));
    }
    drop(ear);
    let mut rest = Vec::new();
    mouth.read_to_end(&mut rest).unwrap();
    assert!(live.wait().unwrap().success());
    assert!(rest.is_empty(), "as much is said as was heard");

    let third = runs.len() / 3;
    let (first, last) = (&runs[..third], &runs[runs.len() - third..]);
    let median = |runs: &[(std::time::Duration, u64)]| {
        let mut times: Vec<_> = runs.iter().map(|&(time, _)| time).collect();
        times.sort();
        times[times.len() / 2]
    };
    println!(
        "{RUN} frames: {:?} in the first third, {:?} in the last; {} then {} KiB",
        median(first),
        median(last),
        first[third - 1].1,
        last[third - 1].1
    );
    assert!(median(last) < 2 * median(first), "{runs:?}");
    assert!(last[third - 1].1 <= first[third - 1].1 + 1024, "{runs:?}");
}
