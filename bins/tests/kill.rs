//! A run that is killed over and over ends where one that was left alone ends, bit for bit.

mod common;

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{CONFIG, Room, samples, wav};
use swara_kernels::case::SplitMix;

const KILLS: usize = 20;

fn start(room: &Room, out: &str, resume: bool) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_swara"));
    command.args(["train", "codec", "--config", "config.toml", "--data", "data", "--device", "cpu", "--quiet", "--out", out]);
    command.args(resume.then_some("--resume")).current_dir(room.path("")).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn finish(child: Child) {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_run_killed_twenty_times_ends_bit_exact() {
    let room = Room::new();
    for (folder, n) in [("a/en", 3), ("b/en", 1)] {
        std::fs::create_dir_all(room.path("raw").join(folder)).unwrap();
        (0..n).for_each(|i| drop(wav(&room, &format!("raw/{folder}/{i}.wav"), 16000, 1, &samples(20_000 + 1000 * i))));
    }
    room.works(&["prepare", "raw", "data", "--validation-speaker", "b"]);
    let config = CONFIG
        .replace("steps = 12", "steps = 400")
        .replace("checkpoint_every = 6", "checkpoint_every = 4")
        .replace("validate_every = 6", "validate_every = 20")
        .replace("start = 4", "start = 30");
    room.write("config.toml", config.as_bytes());

    let begun = Instant::now();
    finish(start(&room, "whole", false));
    let whole = begun.elapsed();

    let mut rng = SplitMix(std::process::id() as u64);
    let mut kills = 0;
    while kills < KILLS {
        let run = format!("killed{kills}");
        let begun = kills;
        loop {
            let moment = whole.mul_f64(rng.uniform() / 12.0);
            if kills == KILLS || outlives(&room, &run, kills > begun, moment) {
                break;
            }
            kills += 1;
        }
        // Also where the run had ended by itself: then there is nothing left to do.
        finish(start(&room, &run, true));
        for file in ["checkpoint.safetensors", "model.safetensors", "log.csv", "validation.csv", "config.toml"] {
            let [whole, killed] = ["whole", &run].map(|run| std::fs::read(room.path(run).join(file)).unwrap());
            assert!(whole == killed, "{file} differs after {} kills", kills - begun);
        }
        let names =
            |run: &str| -> BTreeSet<_> { std::fs::read_dir(room.path(run)).unwrap().map(|entry| entry.unwrap().file_name()).collect() };
        assert_eq!(names(&run), names("whole"), "something was left behind");
        println!("{} kills; left alone, a run takes {:.1} s", kills - begun, whole.as_secs_f64());
    }
}

/// Starts or resumes the run and kills it after `moment`, unless it ends before.
fn outlives(room: &Room, run: &str, resume: bool, moment: Duration) -> bool {
    let begun = Instant::now();
    let mut child = start(room, run, resume);
    // Nothing can be resumed before there is a folder to resume in.
    while begun.elapsed() < moment || !room.path(run).join("config.toml").exists() {
        if child.try_wait().unwrap().is_some() {
            finish(child);
            return true;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    false
}
