//! Flags that commands share.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::Args;
use swara_engine::codec::Stored;
use swara_engine::csm::Draft;
use swara_engine::lm::{self, Condition, ConditionRows, Conditions, Drawing, Drawn, Lm};
use swara_kernels::ops::attention::Kept;
use swara_kernels::{DType, Device};
use swara_loader::weights::Weights;

use crate::failure::{Failure, Result};
use crate::terminal;

/// More threads than this are a mistake, and starting them may take all memory.
const MAX_THREADS: u64 = 1024;

#[derive(Args)]
pub struct Common {
    #[arg(long, global = true, default_value = "auto", value_name = "DEVICE", help = "auto, cpu, cuda[:N] or emulator[:sm_XX]")]
    device: String,
    /// Storage type of weights and activations: f32, bf16 or f16; on the CPU f32, or bf16 for the weights alone; int8 there for those
    /// of a codec, and of a language model beside it
    #[arg(long, global = true, value_name = "TYPE", value_parser = dtype)]
    pub dtype: Option<Dtype>,
    /// CPU threads; all cores by default
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=MAX_THREADS as i64))]
    pub threads: Option<u16>,
    /// Whether results are wanted as JSON on standard output; commands have that flag themselves.
    #[arg(skip)]
    pub json: bool,
    /// Errors and results only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// More; may be repeated
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Take CUDA text from this checkout's `kernels` folder instead of from the binary
    #[arg(long, global = true, value_name = "DIR")]
    kernels: Option<PathBuf>,
}

/// One argument of a flag and its value, which may start with a dash.
pub fn joined(flag: &str, value: impl AsRef<OsStr>) -> OsString {
    let mut argument = OsString::from(flag);
    argument.push(value);
    argument
}

/// A type of `--dtype`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    Of(DType),
    /// Codes of eight bits with a scale an output.
    Int8,
}

impl Dtype {
    pub fn name(self) -> &'static str {
        match self {
            Dtype::Of(dtype) => dtype.name(),
            Dtype::Int8 => Stored::INT8.name(),
        }
    }
}

fn dtype(text: &str) -> std::result::Result<Dtype, String> {
    let known = [DType::F32, DType::BF16, DType::F16].map(Dtype::Of).into_iter().chain([Dtype::Int8]);
    known.into_iter().find(|dtype| dtype.name() == text).ok_or_else(|| "expected f32, bf16, f16 or int8".to_owned())
}

impl Common {
    /// What holds for the whole process.
    pub fn apply(&self) -> Result {
        terminal::set_verbosity(self.quiet, self.verbose);
        let asked = std::env::var("RAYON_NUM_THREADS").ok().and_then(|n| n.parse::<u64>().ok());
        if let Some(n) = asked.filter(|&n| self.threads.is_none() && n > MAX_THREADS) {
            return Err(Failure::usage(format!("RAYON_NUM_THREADS: {n}, expected at most {MAX_THREADS}")));
        }
        // Always, because rayon panics where the threads that it starts unasked cannot be had.
        rayon::ThreadPoolBuilder::new()
            .num_threads(self.threads.map_or(0, usize::from))
            .build_global()
            .map_err(|e| Failure::work(format!("cannot start threads: {e}")))?;
        if let Some(dir) = &self.kernels {
            if !dir.join("src/ops").is_dir() || !dir.join("cuda").is_dir() {
                return Err(Failure::usage(format!("--kernels: no src/ops and cuda in it ({})", dir.display())));
            }
            swara_kernels::driver::source::use_directory(dir.clone());
        }
        Ok(())
    }

    /// The type of `--dtype`, where codes are none.
    pub fn dtype(&self) -> Result<Option<DType>> {
        match self.dtype {
            None => Ok(None),
            Some(Dtype::Of(dtype)) => Ok(Some(dtype)),
            Some(Dtype::Int8) => Err(Failure::usage("--dtype: int8 is for the weights of models, on the CPU".to_owned())),
        }
    }

    /// How a language model beside a codec keeps its matrices: as asked, or as --dtype says of both.
    pub fn lm_format(&self, asked: Option<Format>) -> Result<lm::Format> {
        match (asked, self.dtype) {
            (Some(format), Some(Dtype::Int8)) => format.of(None), // --dtype is the codec's
            (Some(format), _) => format.of(self.dtype()?),
            (None, Some(Dtype::Int8)) => Format::Int8.of(None),
            (None, _) => Ok(self.dtype()?.unwrap_or(DType::F32).into()),
        }
    }

    /// What --dtype int8 says of a language model beside a codec.
    pub fn lm_int8(&self) -> Option<Format> {
        (self.dtype == Some(Dtype::Int8)).then_some(Format::Int8)
    }

    /// As given on the command line.
    pub fn device_spec(&self) -> &str {
        &self.device
    }

    /// As given on the command line, for a process that is to do the same.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut arguments = Vec::new();
        if let Some(dtype) = self.dtype {
            arguments.push(format!("--dtype={}", dtype.name()).into());
        }
        if let Some(threads) = self.threads {
            arguments.push(format!("--threads={threads}").into());
        }
        if let Some(kernels) = &self.kernels {
            arguments.push(joined("--kernels=", kernels));
        }
        arguments
    }

    pub fn kernels(&self) -> Option<&Path> {
        self.kernels.as_deref()
    }

    pub fn open_device(&self) -> Result<Device> {
        let spec = self.device.as_str();
        let known =
            matches!(spec.split_once(':').map_or((spec, None), |(k, n)| (k, Some(n))), ("auto" | "cpu", None) | ("cuda" | "emulator", _));
        if !known {
            return Err(Failure::usage(format!("--device: {spec:?}, expected auto, cpu, cuda[:N] or emulator[:sm_XX]")));
        }
        let device = Device::open(spec).map_err(|e| match e {
            swara_kernels::Error::Argument { .. } => Failure::usage(format!("--device: {e}")),
            e => e.into(),
        })?;
        if spec == "auto" {
            terminal::note(format!("device: {}", device.name()));
        }
        Ok(device)
    }
}

/// How a language model keeps its matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    F32,
    Bf16,
    F16,
    /// 8 bits, a scale a row
    Int8,
    /// The temporal transformer in 4 bits, a scale for every 64; the depth transformer and what gives logits in 8
    Int4,
    /// The depth transformer in 4 bits as well
    Int4All,
}

impl Format {
    pub fn name(self) -> String {
        clap::ValueEnum::to_possible_value(&self).map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// What is no codes: `dtype`, bf16 by default.
    pub fn of(self, dtype: Option<DType>) -> Result<lm::Format> {
        let beside = dtype.unwrap_or(DType::BF16);
        let own = match self {
            Format::Int8 => return Ok(lm::Format::int8(beside)),
            Format::Int4 => return Ok(lm::Format::int4(beside)),
            Format::Int4All => return Ok(lm::Format::int4_all(beside)),
            Format::F32 => DType::F32,
            Format::Bf16 => DType::BF16,
            Format::F16 => DType::F16,
        };
        match dtype.filter(|&dtype| dtype != own) {
            Some(dtype) => Err(Failure::usage(format!("--dtype {dtype} beside {}: they contradict each other", self.name()))),
            None => Ok(own.into()),
        }
    }
}

/// Whether two files to be written are one.
pub fn same_target(a: &Path, b: &Path) -> bool {
    let place = |path: &Path| {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Some((std::fs::canonicalize(folder).ok()?, path.file_name()?.to_owned()))
    };
    a == b || place(a).is_some_and(|a| place(b) == Some(a))
}

/// What a language model remembers.
#[derive(Args)]
pub struct Memory {
    /// Keys and values that a language model remembers: int8 with a scale for every step and head, or a type, on the CPU f32 or bf16; by
    /// default the type that it computes in
    #[arg(long, value_name = "TYPE", value_parser = kept)]
    pub kv: Option<Kept>,
    /// Steps that it remembers at most, instead of its configuration's
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub context: Option<u32>,
    /// Of these, the first of the conversation that it remembers for good (attention sinks; StreamingLLM has 4); by default none, as in
    /// moshi
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    pub sinks: u32,
    /// Of the tables of tokens that it is fed: int8, with a scale a row; by default as what is no codes
    #[arg(long, value_name = "FORMAT")]
    pub embeddings: Option<Embeddings>,
}

/// Tables of tokens in fewer bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Embeddings {
    /// Codes of 8 bits with a scale a row.
    Int8,
}

impl Memory {
    /// What a model of this configuration can remember, before it is read.
    pub fn check(&self, config: &lm::Config) -> Result {
        self.of(DType::F32.into()).check_sinks(config).map_err(|why| Failure::usage(format!("--sinks: {why}")))
    }

    pub fn of(&self, format: lm::Format) -> lm::Format {
        lm::Format {
            kept: self.kv,
            context: self.context.map(|n| n as usize),
            sinks: self.sinks as usize,
            int8_tables: self.embeddings == Some(Embeddings::Int8),
            ..format
        }
    }
}

pub fn kept(text: &str) -> std::result::Result<Kept, String> {
    let known = [DType::F32, DType::BF16, DType::F16].into_iter().find(|dtype| dtype.name() == text).map(Kept::Values);
    known.or((text == "int8").then_some(Kept::Int8)).ok_or_else(|| "expected f32, bf16, f16 or int8".to_owned())
}

/// How tokens are drawn.
#[derive(Args)]
pub struct Sampling {
    /// The most probable token every time
    #[arg(long, conflicts_with_all = ["temp", "top_k", "text_temp", "text_top_k", "seed"])]
    pub greedy: bool,
    /// Temperature of the codes
    #[arg(long, value_name = "T", value_parser = temperature)]
    pub temp: Option<f32>,
    /// Draw codes from the K most probable; 0 for all
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Temperature of the text
    #[arg(long, value_name = "T", value_parser = temperature)]
    pub text_temp: Option<f32>,
    /// Draw text from the K most probable; 0 for all
    #[arg(long, value_name = "K")]
    pub text_top_k: Option<usize>,
    /// Seed of what is drawn
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

impl Sampling {
    /// As is asked, else as the model's configuration has it.
    pub fn of(&self, lm: &Lm) -> Drawing {
        let default = &lm.config().lm_gen_config;
        let drawn = Drawn {
            temp: self.temp.unwrap_or(default.temp),
            temp_text: self.text_temp.unwrap_or(default.temp_text),
            top_k: self.top_k.unwrap_or(default.top_k),
            top_k_text: self.text_top_k.unwrap_or(default.top_k_text),
        };
        if self.greedy { Drawing::GREEDY } else { Drawing::seeded(&drawn, self.seed) }
    }
}

/// What a model is conditioned on.
#[derive(Args)]
pub struct Conditioning {
    /// Condition it on a word, or on rows of a safetensors file (its tensor NAME, [T, D] or [1, T, D], and NAME.mask [T] if not all are
    /// there): once for each of its conditions
    #[arg(long = "condition", value_name = "NAME=WORD|FILE")]
    conditions: Vec<String>,
    /// Lead it away from other conditions by this factor (classifier-free guidance); 1 is not at all
    #[arg(long, value_name = "FACTOR", value_parser = guidance)]
    cfg: Option<f64>,
    /// As --condition: what --cfg leads away from; by default no conditions, and for Hibiki its worst description
    #[arg(long, value_name = "NAME=WORD|FILE", requires = "cfg")]
    against: Vec<String>,
}

/// Conditions, and those that a model is led away from by a factor.
pub type Conditioned = (Conditions, Option<(f64, Conditions)>);

impl Conditioning {
    /// As is asked, beside what a model is conditioned on if nobody asks: its configuration says whether it can be.
    pub fn of(&self, config: &lm::Config) -> Result<Conditioned> {
        let (usual, unusual) = config.usual()?;
        let with = |mut conditions: Conditions, flag: &str, asked: &[String]| -> Result<Conditions> {
            let mut named = Vec::new();
            for asked in asked {
                let Some((name, value)) = asked.split_once('=') else {
                    return Err(Failure::usage(format!("{flag}: {asked:?}, expected NAME=WORD or NAME=FILE")));
                };
                if named.contains(&name) {
                    return Err(Failure::usage(format!("{flag}: {name} twice")));
                }
                named.push(name);
                let file = config.takes_rows(name)?.then(|| Path::new(value));
                let condition = match file {
                    Some(path) => Condition::Rows(rows(path, name)?),
                    None => Condition::from(value),
                };
                let condition = Conditions::from([(name.to_owned(), condition)]);
                match (config.check_conditions(&condition), file) {
                    (Err(why), Some(path)) => return Err(Failure::file("cannot use condition", why, path)),
                    (checked, _) => checked?,
                }
                conditions.extend(condition);
            }
            Ok(conditions)
        };
        let conditions = with(usual, "--condition", &self.conditions)?;
        if self.cfg == Some(1.0) && !self.against.is_empty() {
            return Err(Failure::usage("--against: with --cfg 1 nothing is led away from"));
        }
        let against = with(unusual, "--against", &self.against)?;
        let against = self.cfg.filter(|&factor| factor != 1.0).map(|factor| (factor, against));
        against.iter().try_for_each(|(factor, against)| config.check_guidance(*factor, against))?;
        Ok((conditions, against))
    }
}

fn guidance(text: &str) -> std::result::Result<f64, String> {
    text.parse().ok().filter(|factor: &f64| (-100.0..=100.0).contains(factor)).ok_or_else(|| "expected -100 to 100".to_owned())
}

/// Rows of the condition `name`, from a file that holds them.
fn rows(path: &Path, name: &str) -> Result<ConditionRows> {
    let fail = |why: String| Failure::file(&format!("cannot use condition {name}"), why, path);
    let file = Weights::open(path)?;
    if !file.contains(name) {
        return Err(fail(format!("no tensor {name}")));
    }
    let (rows, width) = match *file.view(name)?.shape {
        [rows, width] | [1, rows, width] => (rows, width),
        ref shape => return Err(fail(format!("tensor {name} has shape {shape:?}, expected [T, D] or [1, T, D]"))),
    };
    let mask = format!("{name}.mask");
    let masked = file.contains(&mask).then(|| file.view(&mask)).transpose()?.map(|mask| mask.shape.iter().product());
    // Before anything is as large as the file may be.
    ConditionRows::check(rows.saturating_mul(width), width, masked).map_err(|e| fail(e.to_string()))?;
    let there = match masked {
        Some(_) => Some(file.to_f32(&mask)?.iter().map(|&there| there != 0.0).collect()),
        None => None,
    };
    ConditionRows::new(file.to_f32(name)?.into_owned(), width, there).map_err(|e| fail(e.to_string()))
}

pub fn temperature(text: &str) -> std::result::Result<f32, String> {
    text.parse().ok().filter(|t: &f32| (0.0..=100.0).contains(t)).ok_or_else(|| "expected 0 to 100".to_owned())
}

/// `N` or `N:LAYERS`.
pub fn draft(text: &str) -> std::result::Result<Draft, String> {
    let number = |text: &str| text.parse::<u8>().map_err(|_| "expected N or N:LAYERS, such as 3 or 3:1".to_owned());
    let (codes, layers) = text.split_once(':').unwrap_or((text, "0"));
    match (number(codes)?, number(layers)?) {
        (0, _) => Err("expected at least 1 code".to_owned()),
        (codes, layers) => Ok(Draft { codes: codes.into(), layers: layers.into() }),
    }
}

pub fn share(text: &str) -> std::result::Result<f64, String> {
    text.parse().ok().filter(|p| (0.0..=1.0).contains(p)).ok_or_else(|| "expected 0 to 1".to_owned())
}
