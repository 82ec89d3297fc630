#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use swara_engine::train::{TrainConfig, Trainer};
use swara_kernels::Device;
use swara_kernels::case::SplitMix;

/// An empty folder of its own and the files in it.
pub struct Room {
    folder: tempfile::TempDir,
}

impl Room {
    pub fn new() -> Room {
        Room { folder: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// Runs `swara` here.
    pub fn swara<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        Command::new(env!("CARGO_BIN_EXE_swara")).args(args).current_dir(self.folder.path()).output().unwrap()
    }

    /// Runs `swara-live` here, which hears `input`.
    pub fn live(&self, args: &[&str], input: &[u8]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_swara-live"));
        let command = command.args(args).current_dir(self.folder.path());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        std::thread::scope(|scope| {
            // It may end before it has heard everything.
            scope.spawn(move || drop(stdin.write_all(input)));
            child.wait_with_output().unwrap()
        })
    }

    /// Runs `swara`, which must fail with this code, saying one line that contains `says`, and change nothing here.
    #[track_caller]
    pub fn refuses(&self, args: &[&str], code: i32, says: &str) {
        let before = self.contents();
        let output = self.swara(args);
        self.refused(args, output, before, code, says);
    }

    /// As [`Room::refuses`], of `swara-live` with nothing to hear.
    #[track_caller]
    pub fn live_refuses(&self, args: &[&str], code: i32, says: &str) {
        let before = self.contents();
        let output = self.live(args, &[]);
        self.refused(args, output, before, code, says);
    }

    #[track_caller]
    fn refused(&self, args: &[&str], output: Output, before: BTreeMap<PathBuf, Vec<u8>>, code: i32, says: &str) {
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {error}");
        let lines: Vec<&str> = error.lines().filter(|l| !l.starts_with("device: ") && !l.starts_with("fresh inputs: ")).collect();
        assert!(matches!(lines.len(), 1 | 2), "{args:?}: {error}");
        assert!(lines[0].starts_with("error: ") && lines[0].contains(says), "{args:?}: {error:?} should say {says:?}");
        assert!(lines.len() == 1 || lines[1].starts_with("hint: "), "{args:?}: {error}");
        assert!(output.stdout.is_empty(), "{args:?}: {}", String::from_utf8_lossy(&output.stdout));
        assert_eq!(self.contents(), before, "{args:?} left something behind");
    }

    /// Runs `swara`, which must succeed; gives standard output.
    #[track_caller]
    pub fn works(&self, args: &[&str]) -> String {
        let output = self.swara(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        let text = self.works(args);
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?}: {e} in {text:?}"))
    }

    pub fn contents(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        files(self.folder.path())
    }
}

fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.append(&mut files(&path)),
            false => drop(found.insert(path.clone(), std::fs::read(&path).unwrap())),
        }
    }
    found
}

/// Noise with syllables, so that something has levels.
pub fn samples(n: usize) -> Vec<f32> {
    let mut rng = SplitMix(7);
    let envelope = |i: usize| (i as f64 / 2000.0).sin().abs();
    (0..n).map(|i| (0.3 * envelope(i) * (rng.uniform() * 2.0 - 1.0)) as f32).collect()
}

pub const CONFIG: &str = r#"
model = "tiny"

[codec]
sample_rate = 16000
encoder_widths = [4, 6, 8]
decoder_widths = [8, 6, 4]
strides = [4, 8]
dilations = [1]
latent = 8
causal = true
quantizer = "ema"
codebook_dim = 4
codebook_sizes = [16, 8, 8]

[train]
steps = 12
batch = 2
crop_frames = 20
log_every = 3
checkpoint_every = 6
validate_every = 6

[loss]
mel_scales = [[10, 64], [20, 128]]
spectrum_windows = []

[codebook]
start = 4
kmeans_batches = 2
"#;

/// A codec that runs, though it has learnt nothing: 16 kHz, hop 32, codebooks of 16, 8 and 8.
pub fn model(room: &Room) -> PathBuf {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    let path = room.path("tiny.safetensors");
    let bytes = BYTES.get_or_init(|| {
        let config = TrainConfig::from_toml(CONFIG).unwrap();
        let crops = config.train.batch * config.crop().unwrap();
        let mut trainer = Trainer::new(config, &Device::Cpu).unwrap();
        trainer.initialise_codebooks([samples(crops)]).unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("tiny.safetensors");
        trainer.release(&file).unwrap();
        std::fs::read(file).unwrap()
    });
    std::fs::write(&path, bytes).unwrap();
    path
}

pub fn wav(room: &Room, name: &str, rate: u32, channels: u16, samples: &[f32]) -> PathBuf {
    let path = room.path(name);
    let spec = hound::WavSpec { channels, sample_rate: rate, bits_per_sample: 32, sample_format: hound::SampleFormat::Float };
    let mut writer = hound::WavWriter::create(&path, spec).unwrap();
    for &v in samples {
        (0..channels).for_each(|_| writer.write_sample(v).unwrap());
    }
    writer.finalize().unwrap();
    path
}

/// A reference output.
pub fn golden(name: &str) -> String {
    format!("{}/../verify/golden/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A sentencepiece model with pieces of this text and kind.
pub fn vocabulary(pieces: impl Iterator<Item = (String, u8)>) -> Vec<u8> {
    let field = |tag: u8, bytes: &[u8]| [&[tag << 3 | 2, bytes.len() as u8], bytes].concat();
    pieces.flat_map(|(text, kind)| field(1, &[field(1, text.as_bytes()), vec![3 << 3, kind]].concat())).collect()
}
