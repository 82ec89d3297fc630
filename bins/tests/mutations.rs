//! Valid files with random damage: every command ends soon, in bounded memory, with a result or one line of error.
#![cfg(target_os = "linux")]

mod common;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Room, model, samples, wav};
use swara_kernels::case::SplitMix;

/// Truncates, overwrites, removes and repeats, mostly near the beginning, where headers are.
fn damage(bytes: &[u8], rng: &mut SplitMix) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let mut below = |n: usize| (rng.next() % n.max(1) as u64) as usize;
    if below(4) == 0 {
        bytes.truncate(below(bytes.len()));
    }
    for _ in 0..1 << below(4) {
        let range = if below(3) == 0 { bytes.len() } else { bytes.len().min(512) };
        let at = below(range);
        let to = (at + [1, 2, 4, 8, 100][below(5)]).min(bytes.len());
        match below(5) {
            0 => bytes[at.min(to)..to].fill([0, 1, 0x7f, 0x80, 0xff][below(5)]),
            1 => drop(bytes.drain(at.min(to)..to)),
            2 => {
                let copy = bytes[at.min(to)..to].to_vec();
                let place = below(bytes.len() + 1);
                drop(bytes.splice(place..place, copy));
            }
            _ if at < bytes.len() => bytes[at] = below(256) as u8,
            _ => {}
        }
    }
    bytes
}

#[test]
fn damaged_files_of_every_kind_end_in_a_result_or_one_line() {
    const LIMIT: Duration = Duration::from_secs(20);
    let room = Room::new();
    model(&room);
    wav(&room, "good.wav", 16000, 1, &samples(3000));
    room.works(&["encode", "good.wav", "good.safetensors", "--model", "tiny.safetensors", "--device", "cpu"]);
    let clip = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/data/clip.flac")).unwrap();
    let read = |name: &str| std::fs::read(room.path(name)).unwrap();
    room.works(&["bench", "codec", "tiny.safetensors", "--device", "cpu", "--frames", "5", "--json", "good.json"]);
    let torch = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../loader/tests/data/codec.ckpt")).unwrap();
    let kinds: [(&str, Vec<u8>, &[&str]); 9] = [
        ("x.pth", torch, &["inspect", "x.pth"]),
        ("x.wav", read("good.wav"), &["encode", "x.wav", "o", "--model", "tiny.safetensors"]),
        ("x.flac", clip[..20_000].to_vec(), &["roundtrip", "x.flac", "o", "--model", "tiny.safetensors", "--plot", "p.png"]),
        ("x.codes", read("good.safetensors"), &["decode", "x.codes", "o", "--model", "tiny.safetensors"]),
        ("x.model", read("tiny.safetensors"), &["encode", "good.wav", "o", "--model", "x.model"]),
        ("x.any", read("tiny.safetensors"), &["inspect", "x.any"]),
        ("x.json", read("good.json"), &["bench", "compare", "good.json", "x.json", "--allow-slower"]),
        ("x.json", read("good.json"), &["bench", "plot", "x.json", "o.png"]),
        ("x.toml", common::CONFIG.into(), &["train", "codec", "--config", "x.toml", "--data", "none", "--out", "run"]),
    ];
    let mut rng = SplitMix(11);
    for round in 0..12 {
        for (name, good, command) in &kinds {
            let bytes = damage(good, &mut rng);
            let path = room.write(name, &bytes);
            let limited = "ulimit -v 3000000; ulimit -c 0; exec \"$0\" \"$@\" --device cpu -q";
            let mut child = Command::new("sh")
                .args(["-c", limited, env!("CARGO_BIN_EXE_swara")])
                .args(*command)
                .current_dir(path.parent().unwrap())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let start = Instant::now();
            while child.try_wait().unwrap().is_none() {
                if start.elapsed() > LIMIT {
                    child.kill().unwrap();
                    panic!("{command:?} of round {round} does not end");
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            let output = child.wait_with_output().unwrap();
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            let says: Vec<&str> = text.lines().filter(|line| !line.starts_with("warning: ")).collect();
            match output.status.code() {
                Some(0) => assert!(says.is_empty(), "{command:?} of round {round}: {text}"),
                Some(1) => {
                    assert!(says.len() <= 2 && says[0].starts_with("error: "), "{command:?} of round {round}: {text}");
                    assert!(!room.path("o").exists(), "{command:?} of round {round} left something behind");
                }
                code => panic!("{command:?} of round {round} ended with {code:?}: {text}"),
            }
            let _ = std::fs::remove_file(room.path("o"));
        }
    }
}
