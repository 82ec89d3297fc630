//! Folders of many formats with broken files among them, prepared by a process that is killed half way and started again.
//!
//! Five minutes of audio by default; `SWARA_PREPARE_SECONDS=18000 cargo test --release -p swara --test prepare -- --nocapture`
//! makes five hours of it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const SECONDS: f64 = 300.0;
/// Of a file.
const LENGTH: f64 = 3.0;
/// Of so many files, one is broken.
const BROKEN: usize = 100;

/// A hum with syllables, unlike for each `n`.
fn voice(n: usize, rate: u32) -> Vec<i16> {
    let step = (70.0 + (n % 97) as f64) / f64::from(rate);
    let level = 6000.0 + (n % 13) as f64 * 500.0;
    let sample = |t: usize| {
        let (phase, syllable) = ((t as f64 * step).fract(), (t as f64 * 4.0 / f64::from(rate)).fract());
        ((2.0 * phase - 1.0) * level * if syllable < 0.8 { 1.0 } else { 0.05 }) as i16
    };
    (0..(LENGTH * f64::from(rate)) as usize).map(sample).collect()
}

fn wav(rate: u32, channels: u16, samples: &[i16]) -> Vec<u8> {
    let data = samples.len() as u32 * 2 * u32::from(channels);
    let mut out = Vec::with_capacity(44 + data as usize);
    out.extend([&b"RIFF"[..], &(36 + data).to_le_bytes(), b"WAVEfmt ", &16_u32.to_le_bytes(), &1_u16.to_le_bytes()].concat());
    out.extend([&channels.to_le_bytes()[..], &rate.to_le_bytes(), &(rate * 2 * u32::from(channels)).to_le_bytes()].concat());
    out.extend([&(2 * channels).to_le_bytes()[..], &16_u16.to_le_bytes(), b"data", &data.to_le_bytes()].concat());
    samples.iter().for_each(|v| (0..channels).for_each(|_| out.extend(v.to_le_bytes())));
    out
}

fn aiff(rate: u32, samples: &[i16]) -> Vec<u8> {
    let (count, data) = (samples.len() as u32, samples.len() as u32 * 2);
    // The rate is a float of 80 bits.
    let exponent = 31 - rate.leading_zeros();
    let mantissa = u64::from(rate) << (63 - exponent);
    let mut out = [&b"FORM"[..], &(46 + data).to_be_bytes(), b"AIFFCOMM", &18_u32.to_be_bytes(), &1_u16.to_be_bytes()].concat();
    out.extend([&count.to_be_bytes()[..], &16_u16.to_be_bytes(), &(16383 + exponent as u16).to_be_bytes()].concat());
    out.extend([&mantissa.to_be_bytes()[..], b"SSND", &(8 + data).to_be_bytes(), &[0; 8]].concat());
    samples.iter().for_each(|v| out.extend(v.to_be_bytes()));
    out
}

fn crc(bytes: &[u8], polynomial: u32, bits: u32) -> u32 {
    let (top, mask) = (1 << (bits - 1), ((1_u64 << bits) - 1) as u32);
    bytes.iter().fold(0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte) << (bits - 8), |crc, _| mask & (crc << 1 ^ if crc & top > 0 { polynomial } else { 0 }))
    })
}

/// 16 kHz, blocks of 4096 samples as they are.
fn flac(samples: &[i16]) -> Vec<u8> {
    const BLOCK: usize = 4096;
    let info = 16_000_u64 << 44 | 15 << 36 | samples.len() as u64;
    let mut out = [&b"fLaC\x80\0\0\x22"[..], &[(BLOCK >> 8) as u8, 0, (BLOCK >> 8) as u8, 0, 0, 0, 0, 0, 0, 0]].concat();
    out.extend(info.to_be_bytes());
    out.extend([0; 16]);
    for (n, block) in samples.chunks(BLOCK).enumerate() {
        // 16 bits of length; rate and sample size of the stream; one channel.
        let mut frame = vec![0xff, 0xf8, 0x70, 0x00, n as u8];
        assert!(n < 128);
        frame.extend((block.len() as u16 - 1).to_be_bytes());
        frame.push(crc(&frame, 0x07, 8) as u8);
        frame.push(0x02);
        block.iter().for_each(|v| frame.extend(v.to_be_bytes()));
        frame.extend((crc(&frame, 0x8005, 16) as u16).to_be_bytes());
        out.extend(frame);
    }
    out
}

/// What nobody can read, and an extension for it.
fn broken(n: usize) -> (&'static str, Vec<u8>) {
    let noise: Vec<u8> = (0..4000_usize).map(|i| ((i * i * 31 + i * 7 + n) >> 3) as u8 & 0x7f).collect();
    let whole = wav(16_000, 1, &voice(n, 16_000));
    let patched = |at: usize, bytes: &[u8]| {
        let mut wav = whole.clone();
        wav[at..at + bytes.len()].copy_from_slice(bytes);
        wav
    };
    match n % 10 {
        0 => ("wav", Vec::new()),
        1 => ("g722", Vec::new()),
        2 => ("wav", whole[..30].to_vec()),
        3 => ("flac", flac(&voice(n, 16_000))[..20].to_vec()),
        4 => ("wav", noise),
        5 => ("mp3", [b"\x89PNG\r\n\x1a\n".to_vec(), vec![0; 2000]].concat()),
        6 => ("ogg", b"A text about a recording.\n".repeat(50)),
        // No samples a second; 65535 channels; samples of 65535 bits.
        7 => ("wav", patched(24, &[0; 4])),
        8 => ("wav", patched(22, &[0xff; 2])),
        _ => ("wav", patched(34, &[0xff; 2])),
    }
}

struct Raw {
    broken: BTreeSet<PathBuf>,
    /// Cut off in its samples: what there is of it is used.
    cut: PathBuf,
    good: usize,
}

fn make(dir: &Path, seconds: f64) -> Raw {
    let files = (seconds / LENGTH) as usize;
    let mut raw = Raw { broken: BTreeSet::new(), cut: PathBuf::new(), good: 0 };
    for n in 0..files + files.div_ceil(BROKEN).max(10) {
        let folder = dir.join(format!("speaker{}", n % 7));
        std::fs::create_dir_all(&folder).unwrap();
        let spoilt = n >= files;
        let (extension, bytes) = match n % 6 {
            _ if spoilt => broken(n - files),
            0 => ("wav", wav(16_000, 1, &voice(n, 16_000))),
            1 => ("wav", wav(22_050, 2, &voice(n, 22_050))),
            2 => ("flac", flac(&voice(n, 16_000))),
            3 => ("aiff", aiff(16_000, &voice(n, 16_000))),
            4 => ("g722", if n % 4 == 0 { [0xfa, 0xda, 0xfa, 0xda] } else { [0xf8, 0xf8, 0xd8, 0xd8] }.repeat((LENGTH * 2000.0) as usize)),
            // By another's extension: the first bytes decide.
            _ => ("wav", flac(&voice(n, 16_000))),
        };
        // Among the others, not after them.
        let place = if spoilt { (n - files) * BROKEN % files } else { n };
        let path = folder.join(format!("{place:06}-{n}.{extension}"));
        let cut = n == 6;
        std::fs::write(&path, if cut { &bytes[..bytes.len() / 2] } else { &bytes }).unwrap();
        if cut {
            raw.cut = path.clone();
        }
        match spoilt {
            true => drop(raw.broken.insert(path)),
            false => raw.good += 1,
        }
    }
    raw
}

fn start(room: &Path, out: &str) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_swara"));
    command.args(["prepare", "raw", out, "--json"]).current_dir(room).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn finish(child: Child) -> Output {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

#[test]
fn broken_files_are_listed_and_a_killed_run_done_again_gives_the_same_bytes() {
    let seconds = std::env::var("SWARA_PREPARE_SECONDS").map_or(SECONDS, |s| s.parse().unwrap());
    let room = tempfile::tempdir().unwrap();
    let raw = make(&room.path().join("raw"), seconds);

    let begun = Instant::now();
    let output = finish(start(room.path(), "whole"));
    let whole = begun.elapsed();
    let said = String::from_utf8(output.stderr).unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let dataset = &report["dataset"];

    // Each broken file is named with a reason, and no other as broken.
    let listed: BTreeSet<PathBuf> = said
        .lines()
        .filter(|line| line.contains("cannot "))
        .map(|line| room.path().join(line.rsplit_once('(').unwrap().1.trim_end_matches(')')))
        .collect();
    assert_eq!(listed, raw.broken);
    assert!(said.lines().any(|line| line.contains(raw.cut.file_name().unwrap().to_str().unwrap())), "{said}");
    assert_eq!(report["unreadable"], raw.broken.len());
    let dropped = serde_json::json!({ "unreadable": raw.broken.len(), "silent": 0, "clipped": 0, "short": 0 });
    assert_eq!(dataset["dropped"], dropped);

    // Nothing is lost: every other file is an utterance, of its length but for the one that was cut and what is silent at its ends.
    assert_eq!(dataset["utterances"], raw.good);
    let hours = dataset["samples"].as_f64().unwrap() / 16_000.0 / 3600.0;
    let expected = (raw.good as f64 - 0.5) * LENGTH / 3600.0;
    assert!(hours <= expected * 1.001 && hours > expected * 0.93, "{hours} h of {expected} h");

    let files = |out: &str| -> Vec<(String, Vec<u8>)> {
        let entries = std::fs::read_dir(room.path().join(out)).unwrap().map(|e| e.unwrap());
        let mut files: Vec<_> = entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect();
        files.sort();
        files
    };
    let expected = files("whole");
    assert_eq!(expected.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["audio.s16", "dataset.json", "manifest.jsonl"]);
    // Killed when half of the samples are there.
    let mut child = start(room.path(), "killed");
    let partial = room.path().join("killed/.audio.s16.partial");
    let half = expected[0].1.len() as u64 / 2;
    while std::fs::metadata(&partial).map_or(0, |found| found.len()) < half {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was killed");
        std::thread::sleep(Duration::from_micros(200));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!room.path().join("killed/dataset.json").exists(), "half a dataset passes for one");
    finish(start(room.path(), "killed"));
    assert!(files("killed") == expected, "what was killed and done again differs from what an uninterrupted run made");
    let (files, broken) = (raw.good + raw.broken.len(), raw.broken.len());
    println!(
        "{files} files, {broken} of them broken: {hours:.2} h in {:.1} s; killed half way and done again, the same bytes",
        whole.as_secs_f64()
    );
}
