use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use swara::codec::BUNDLED;
pub use swara::common::{Common, Conditioning, Embeddings, Format, Memory, Sampling, draft, joined, kept, same_target, share, temperature};
use swara::dialogue::Persona;
use swara_engine::csm::Draft;
use swara_engine::teacher::State;
use swara_kernels::driver::emulator::Schedule;
use swara_kernels::ops::attention::Kept;
use swara_loader::dataset::{IdRule, Loudness};

/// Frames that share a number of codebooks, unless told otherwise.
pub const HOLD: u8 = 4;

/// Neural audio codecs on handwritten kernels.
#[derive(Parser)]
#[command(name = "swara", version, arg_required_else_help = true, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    pub common: Common,
    // Not global, because `bench` takes a file: every other command has the flag itself.
    /// Results as JSON on standard output
    #[arg(long)]
    pub json: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Encode and decode a file and report what is left of it; without arguments, the bundled clip
    Roundtrip(Roundtrip),
    /// Audio to codes
    Encode(Encode),
    /// Codes to audio
    Decode(Decode),
    /// A full-duplex conversation over a file: one reply frame for each frame heard
    Talk(Talk),
    /// Text to speech by CSM, in the voice of a conversation so far
    Speak(Speak),
    /// Train a model
    #[command(subcommand)]
    Train(Train),
    /// Check every operation against its f64 oracle, and layers and models against stored reference outputs
    Verify(Verify),
    /// Turn folders of audio into a normalised, segmented training set split by speaker
    Prepare(Prepare),
    /// Say what is wrong with a decoded signal, or with a training run
    Diagnose(Diagnose),
    /// Show what is in a file: weights, codes, audio, or a prepared dataset
    Inspect(Inspect),
    /// Time kernels or the codec beside what this machine can do at most
    #[command(subcommand)]
    Bench(Bench),
    /// Round a language model's matrices to few bits: to the nearest codes, or by what goes into them
    Quantize(Quantize),
    /// Write a codec as others read it
    Convert(Convert),
    /// See what a kernel is made of and where the time goes: compiler reports, Nsight, timelines
    Profile(Profile),
    /// Say what works on this machine, and what to do about the rest
    Doctor(Report),
}

impl Command {
    /// Whether the result is wanted as JSON instead of text.
    pub fn json(&self) -> bool {
        let report = match self {
            Command::Roundtrip(args) => &args.report,
            Command::Encode(args) => &args.report,
            Command::Decode(args) => &args.report,
            Command::Talk(args) => &args.report,
            Command::Speak(args) => &args.report,
            Command::Train(Train::Codec(args)) => &args.report,
            Command::Verify(args) => &args.report,
            Command::Prepare(args) => &args.report,
            Command::Diagnose(args) => &args.report,
            Command::Inspect(args) => &args.report,
            Command::Profile(args) => &args.report,
            Command::Quantize(args) => &args.report,
            Command::Convert(args) => &args.report,
            Command::Doctor(report) => report,
            Command::Bench(_) => return false,
        };
        report.json
    }
}

/// How a command reports.
#[derive(Args)]
pub struct Report {
    /// One JSON object on standard output instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct Roundtrip {
    #[command(flatten)]
    pub report: Report,
    /// Audio file; the bundled clip by default
    pub input: Option<PathBuf>,
    /// WAV to write; out.wav, with a picture beside it, by default
    pub output: Option<PathBuf>,
    /// Bundled name, file, or folder
    #[arg(long, default_value = BUNDLED, value_name = "M")]
    pub model: String,
    /// Use only the first N codebooks, or levels of a codec of several rates
    #[arg(long, visible_alias = "levels", value_name = "N")]
    pub codebooks: Option<usize>,
    /// Frame by frame, as a live stream would be; times every frame
    #[arg(long)]
    pub stream: bool,
    /// Write waveforms and spectrograms of input and output
    #[arg(long, value_name = "P.png")]
    pub plot: Option<PathBuf>,
}

#[derive(Args)]
pub struct Encode {
    #[command(flatten)]
    pub report: Report,
    /// Audio file
    #[arg(value_name = "IN")]
    pub input: PathBuf,
    /// Codes to write
    #[arg(value_name = "OUT.safetensors")]
    pub output: PathBuf,
    /// Bundled name, file, or folder
    #[arg(long, default_value = BUNDLED, value_name = "M")]
    pub model: String,
    /// Use only the first N codebooks, or levels of a codec of several rates
    #[arg(long, visible_alias = "levels", value_name = "N")]
    pub codebooks: Option<usize>,
    /// Follow the B best paths through the codebooks, not the nearest codeword of each: nearer codes, slower; on the CPU
    #[arg(long, value_name = "B", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub beam: u8,
    /// Give each frame its own number of codebooks, where they lower the mel distance most, within a mean of X kbit/s, those numbers
    /// included; for recordings of up to an hour
    #[arg(long, value_name = "X", conflicts_with = "error", group = "by_frame", value_parser = positive)]
    pub target_kbps: Option<f64>,
    /// Give each frame as few codebooks as leave at most the share TAU of its latents' energy; on the CPU
    #[arg(long, value_name = "TAU", group = "by_frame", value_parser = share)]
    pub error: Option<f64>,
    /// Frames that share a number of codebooks (4)
    #[arg(long, value_name = "N", requires = "by_frame", value_parser = clap::value_parser!(u8).range(1..=64))]
    pub hold: Option<u8>,
    /// Frame by frame
    #[arg(long)]
    pub stream: bool,
}

#[derive(Args)]
pub struct Talk {
    #[command(flatten)]
    pub report: Report,
    /// What the model hears
    #[arg(value_name = "IN.wav", required_unless_present = "user_codes", conflicts_with = "user_codes")]
    pub input: Option<PathBuf>,
    /// What it says
    #[arg(value_name = "OUT.wav", required_unless_present = "dump")]
    pub output: Option<PathBuf>,
    /// Language model: a folder with its config.json, or a file
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Low-rank updates of its matrices, as moshi-finetune saves them; by default those that its config.json names
    #[arg(long, value_name = "FILE")]
    pub lora: Option<PathBuf>,
    /// Codec of what is heard and said; by default the one in the model's folder that its config.json names (mimi_name)
    #[arg(long, value_name = "FILE")]
    pub mimi: Option<String>,
    /// Of its weights; what the file has as codes stays so. By default --dtype, else f32. What is no codes beside int8 or int4: --dtype, else bf16
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<Format>,
    /// Vocabulary of its words, a sentencepiece .model; by default the one in the model's folder, which its config.json names (tokenizer_name)
    /// or which is the only one
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    #[command(flatten)]
    pub persona: Persona,
    #[command(flatten)]
    pub memory: Memory,
    #[command(flatten)]
    pub sampling: Sampling,
    #[command(flatten)]
    pub conditioning: Conditioning,
    /// Codes of what the model hears, in place of IN.wav
    #[arg(long, value_name = "IN.safetensors")]
    pub user_codes: Option<PathBuf>,
    /// Launch every kernel by itself, not a frame as one graph: stages are timed then
    #[arg(long)]
    pub no_graph: bool,
    /// Launch the kernels of the depth transformer by themselves, not all of a frame as one cooperative kernel
    #[arg(long)]
    pub plain_depth: bool,
    /// Programmatic dependent launch: kernels of a step start before the one before has ended and wait for it, weights asked for (sm_90
    /// and later). Not yet run or timed on a GPU
    #[arg(long)]
    pub pdl: bool,
    /// Write text, codes and the first text logits
    #[arg(long, value_name = "OUT.safetensors")]
    pub dump: Option<PathBuf>,
}

#[derive(Args)]
pub struct Speak {
    #[command(flatten)]
    pub report: Report,
    /// What is said
    #[arg(value_name = "OUT.wav", required_unless_present = "dump")]
    pub output: Option<PathBuf>,
    /// CSM: a folder with its config.json, or a file
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Codec of what is said and heard; by default the one in the model's own files
    #[arg(long, value_name = "FILE")]
    pub mimi: Option<String>,
    /// Of its weights. By default --dtype, which is else the type of what is no codes: bf16
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<Format>,
    /// Keys and values that it remembers: int8 with a scale for every row and head, or a type, on the CPU f32 or bf16; by default the type
    /// that it computes in
    #[arg(long, value_name = "TYPE", value_parser = kept)]
    pub kv: Option<Kept>,
    /// Vocabulary of its text; by default the tokenizer.json in the model's folder
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// What to say
    #[arg(long, required_unless_present = "prompt_ids")]
    pub text: Option<String>,
    /// Who says it
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub speaker: u32,
    /// What was said before, and its words; may be repeated. Words that begin with [N] are of speaker N, others of --speaker
    #[arg(long, value_name = "WAV=TEXT")]
    pub context: Vec<String>,
    /// Most frames of 80 ms; by default 90 s, or what the model's memory has room for
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1125))]
    pub frames: Option<u16>,
    /// The most probable code every time
    #[arg(long, conflicts_with_all = ["temp", "top_k", "seed"])]
    pub greedy: bool,
    /// Temperature
    #[arg(long, value_name = "T", default_value_t = 0.9, value_parser = temperature)]
    pub temp: f32,
    /// Draw from the K most probable; 0 for all
    #[arg(long, value_name = "K", default_value_t = 50)]
    pub top_k: usize,
    /// Seed of what is drawn
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Guess up to N codes of a frame and look them over at once: by what was said in the frame before, or by the first LAYERS of the depth
    /// decoder. What is said is what --plain-depth says
    #[arg(long, value_name = "N[:LAYERS]", value_parser = draft)]
    pub draft: Option<Draft>,
    /// Launch the kernels of the depth decoder by themselves, not all of a frame as one cooperative kernel
    #[arg(long)]
    pub plain_depth: bool,
    /// Rows of a prompt in place of text and context: `ids` i32 [R, K + 1], codes and then text, and `mask` u8, which of them are there
    #[arg(long, value_name = "IN.safetensors", conflicts_with_all = ["text", "context", "speaker", "tokenizer"])]
    pub prompt_ids: Option<PathBuf>,
    /// Write the codes
    #[arg(long, value_name = "OUT.safetensors")]
    pub dump: Option<PathBuf>,
}

#[derive(Args)]
pub struct Decode {
    #[command(flatten)]
    pub report: Report,
    /// Codes
    #[arg(value_name = "IN.safetensors")]
    pub input: PathBuf,
    /// WAV to write
    #[arg(value_name = "OUT.wav")]
    pub output: PathBuf,
    /// Bundled name, file, or folder; by default the bundled codec, if it made the codes
    #[arg(long, value_name = "M")]
    pub model: Option<String>,
    /// Use only the first N codebooks, or levels of a codec of several rates
    #[arg(long, visible_alias = "levels", value_name = "N")]
    pub codebooks: Option<usize>,
    /// 32-bit float samples instead of 16-bit integers
    #[arg(long)]
    pub float: bool,
    /// Frame by frame
    #[arg(long)]
    pub stream: bool,
}

#[derive(Subcommand)]
pub enum Train {
    /// A codec, from prepared speech
    Codec(TrainCodec),
}

#[derive(Args)]
pub struct TrainCodec {
    #[command(flatten)]
    pub report: Report,
    /// What to train, and how
    #[arg(long, value_name = "FILE.toml")]
    pub config: PathBuf,
    /// A dataset that `swara prepare` wrote
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Where checkpoints, logs and the model go
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Continue the run in --out
    #[arg(long, conflicts_with = "init")]
    pub resume: bool,
    /// Start from the weights of a trained or published model
    #[arg(long, value_name = "MODEL")]
    pub init: Option<PathBuf>,
}

#[derive(Args)]
pub struct Verify {
    #[command(flatten)]
    pub report: Report,
    /// Operations, layers or models; everything by default
    pub names: Vec<String>,
    /// Also compare with the reference outputs stored in DIR (a checkout's verify/golden)
    #[arg(long, value_name = "DIR")]
    pub golden: Option<PathBuf>,
    /// Only cases whose description contains TEXT, such as 2x500 or backward
    #[arg(long, value_name = "TEXT")]
    pub shapes: Option<String>,
    /// Seed of the fresh inputs that each case is run with, beside its fixed ones; another one every time by default
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Emulator: ascending, descending or random:SEED; all three by default
    #[arg(long, value_name = "ORDER")]
    pub schedule: Option<Schedule>,
    /// Emulator: watch every access, so that races, accesses out of bounds and reads of what was never written are found exactly;
    /// and report the memory traffic of kernels whose name contains KERNEL (all: of every kernel)
    #[arg(long, value_name = "KERNEL")]
    pub trace: Option<String>,
    /// Make every barrier, wait, bound, offset and accumulator of the kernels wrong, one at a time, and fail if a mistake goes
    /// unnoticed; on the emulator, whatever --device says
    #[arg(long, conflicts_with_all = ["golden", "shapes", "seed", "schedule", "trace", "large"])]
    pub mutants: bool,
    /// Large cases too
    #[arg(long)]
    pub large: bool,
}

#[derive(Subcommand)]
pub enum Bench {
    /// Every operation's large cases: device time with cold caches, bandwidth, arithmetic, share of the ceiling
    Kernels(BenchKernels),
    /// Frames through a codec, one at a time: median and 99th percentile
    Codec(BenchCodec),
    /// Steps of a language model, one at a time: median and 99th percentile
    Lm(BenchLm),
    /// What a codec makes of recordings at each bitrate: the first codebooks of every frame, as many as each frame needs, the best of a
    /// beam
    Rate(BenchRate),
    /// Which sounds a codec keeps apart, by words that differ in one of them
    Phones(BenchPhones),
    /// Say what became slower from one result file, or build, to another; exit code 1 if anything did
    Compare(BenchCompare),
    /// Draw a result file: kernels under their ceilings, or a codec's latencies
    Plot(BenchPlot),
}

#[derive(Args)]
pub struct BenchKernels {
    /// Operations; all by default
    #[arg(value_name = "OP")]
    pub names: Vec<String>,
    #[command(flatten)]
    pub results: Results,
    // Takes samples as `bench compare --run` asks for them.
    #[arg(long, hide = true, conflicts_with_all = ["results_json", "save"])]
    pub in_turns: bool,
}

/// Where the rows go.
#[derive(Args)]
pub struct Results {
    /// One JSON array to FILE (- for standard output) instead of a table
    #[arg(long = "json", id = "results_json", value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// One JSON array into DIR/DEVICE/, beside the table
    #[arg(long, value_name = "DIR", num_args = 0..=1, default_missing_value = "benches/results")]
    pub save: Option<PathBuf>,
}

#[derive(Args)]
pub struct BenchPhones {
    /// Pairs of words that differ in one sound, each said twice: DIR/CONTRAST/NAME_a.wav, NAME_b.wav, NAME_a_x.wav, NAME_b_x.wav
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Bundled name, file, or folder
    #[arg(long, default_value = BUNDLED, value_name = "M")]
    pub model: String,
    /// Codebooks, or levels of a codec of several rates; all by default; may be repeated
    #[arg(long, value_name = "N")]
    pub codebooks: Vec<usize>,
    /// One JSON array to FILE (- for standard output) instead of a table
    #[arg(long = "json", id = "results_json", value_name = "FILE")]
    pub json: Option<PathBuf>,
}

#[derive(Args)]
pub struct BenchRate {
    /// Audio files; the bundled clip by default
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Bundled name, file, or folder
    #[arg(long, default_value = BUNDLED, value_name = "M")]
    pub model: String,
    /// Paths through the codebooks; may be repeated
    #[arg(long, value_name = "B", default_value = "1", value_parser = clap::value_parser!(u8).range(1..=64))]
    pub beam: Vec<u8>,
    /// Frames that share a number of codebooks; may be repeated
    #[arg(long, value_name = "N", default_values_t = [HOLD], value_parser = clap::value_parser!(u8).range(1..=64))]
    pub hold: Vec<u8>,
    /// Also by what is left of the latents: 0 weighs it by the frame's energy, 1 all frames alike; may be repeated
    #[arg(long, value_name = "G", value_parser = share)]
    pub loudness: Vec<f64>,
    /// One JSON array to FILE (- for standard output) instead of a table
    #[arg(long = "json", id = "results_json", value_name = "FILE")]
    pub json: Option<PathBuf>,
}

fn positive(text: &str) -> std::result::Result<f64, String> {
    text.parse().ok().filter(|x: &f64| x.is_finite() && *x > 0.0).ok_or_else(|| "expected a number above 0".to_owned())
}

#[derive(Args)]
pub struct BenchCompare {
    /// Rows of `swara bench kernels` or `codec`
    pub old: PathBuf,
    /// The same, later
    pub new: PathBuf,
    /// With --run, operations; all by default
    #[arg(value_name = "OP", requires = "run")]
    pub names: Vec<String>,
    /// OLD and NEW are two builds of swara: run both and time them in turns, which finds 5 % on a machine that others use too
    #[arg(long)]
    pub run: bool,
    /// Less than this is no difference
    #[arg(long, value_name = "PERCENT", default_value_t = 5.0, value_parser = percent)]
    pub margin: f64,
    /// Exit code 0 even if something is slower
    #[arg(long)]
    pub allow_slower: bool,
    /// One JSON array to FILE (- for standard output) instead of a table
    #[arg(long = "json", id = "results_json", value_name = "FILE")]
    pub json: Option<PathBuf>,
}

#[derive(Args)]
pub struct BenchPlot {
    /// Rows of `swara bench kernels` or `codec`
    #[arg(value_name = "FILE")]
    pub results: PathBuf,
    /// Picture to write
    #[arg(value_name = "OUT.svg|OUT.png")]
    pub output: PathBuf,
}

fn percent(text: &str) -> std::result::Result<f64, String> {
    text.parse().ok().filter(|p| (0.1..=100.0).contains(p)).ok_or_else(|| "expected 0.1 to 100".to_owned())
}

#[derive(Args)]
pub struct BenchCodec {
    /// Bundled names, files, or folders
    #[arg(value_name = "MODEL", default_value = BUNDLED)]
    pub models: Vec<String>,
    /// Streams that advance together; may be repeated
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub batch: Vec<u16>,
    /// Find how many streams, up to N, keep 99 of 100 frames within the time that a frame lasts
    #[arg(long, value_name = "N", conflicts_with = "batch", num_args = 0..=1, default_missing_value = "256", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub streams: Option<u16>,
    /// Use only the first N codebooks, or levels of a codec of several rates
    #[arg(long, visible_alias = "levels", value_name = "N")]
    pub codebooks: Option<usize>,
    /// Frames to time
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub frames: u32,
    #[command(flatten)]
    pub results: Results,
}

#[derive(Args)]
pub struct Convert {
    #[command(flatten)]
    pub report: Report,
    /// Codec: a file, or a folder with its config.json
    #[arg(value_name = "IN")]
    pub input: PathBuf,
    /// hf: folder for config.json, preprocessor_config.json and model.safetensors; kyutai: a file of safetensors
    #[arg(value_name = "OUT")]
    pub output: PathBuf,
    /// Whose names: hf (transformers: a Mimi, a DAC, an EnCodec) or kyutai (moshi: a Mimi)
    #[arg(long, value_enum, hide_possible_values = true)]
    pub layout: ConvertLayout,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ConvertLayout {
    Hf,
    Kyutai,
}

#[derive(Args)]
pub struct Quantize {
    #[command(flatten)]
    pub report: Report,
    /// Language model, a CSM, or a Mimi (--format int8): a folder with its config.json, or a file
    #[arg(value_name = "IN")]
    pub input: PathBuf,
    /// Folder for model.safetensors or model.gguf, the configuration and the vocabulary
    #[arg(value_name = "OUT")]
    pub output: PathBuf,
    /// Of what is written
    #[arg(long)]
    pub format: QuantizeFormat,
    /// Columns that share a scale of 4 bits; in GGUF the format says
    #[arg(long, value_name = "N", default_value = "64", value_parser = group)]
    pub group: u16,
    /// In the order in which CPUs multiply: swara alone reads that, and starts several times as fast. A Mimi is always packed
    #[arg(long)]
    pub packed: bool,
    /// Of the tables of tokens that a language model is fed: int8, with a scale a row; by default they stay what they are
    #[arg(long, value_name = "FORMAT")]
    pub embeddings: Option<Embeddings>,
    /// How codes are found
    #[arg(long, value_enum, default_value = "rtn")]
    pub method: Method,
    /// Conversations that gptq and awq learn from, and that errors of outputs are measured with: a file or a folder of codes
    /// (safetensors: `codes` i32 [K, T] of all columns, the model's own first, with `text` i32 [T]; or of those that it hears, and it
    /// answers) or of audio, which it hears and answers
    #[arg(long, value_name = "FILE|DIR")]
    pub calib: Option<PathBuf>,
    /// Codec that makes codes of audio in --calib
    #[arg(long, value_name = "FILE", requires = "calib")]
    pub mimi: Option<String>,
    /// Steps of --calib at most
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub steps: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Method {
    /// Each value's nearest
    Rtn,
    /// Errors of a column are made up for by the columns after it
    Gptq,
    /// Columns with large inputs are kept finer: they are multiplied, and the norm before them divided; and groups are clipped
    Awq,
}

impl Method {
    pub fn name(self) -> &'static str {
        match self {
            Method::Rtn => "rtn",
            Method::Gptq => "gptq",
            Method::Awq => "awq",
        }
    }
}

impl From<Method> for swara_engine::rounding::Method {
    fn from(method: Method) -> Self {
        match method {
            Method::Rtn => Self::Nearest,
            Method::Gptq => Self::Gptq,
            Method::Awq => Self::Awq,
        }
    }
}

fn group(text: &str) -> std::result::Result<u16, String> {
    text.parse().ok().filter(|n| [32, 64, 128].contains(n)).ok_or_else(|| "expected 32, 64 or 128".to_owned())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum QuantizeFormat {
    /// 8 bits, a scale a row, in the layout of bitsandbytes, as moshi has it
    Int8,
    /// The temporal transformer in 4 bits, in the layout of AutoGPTQ; the depth transformer and what gives logits in 8
    Int4,
    /// The depth transformer in 4 bits as well
    Int4All,
    /// GGUF: all matrices in ggml's Q8_0
    #[value(name = "q8_0")]
    Q8_0,
    /// GGUF: the temporal transformer in Q4_0, other matrices in Q8_0
    #[value(name = "q4_0")]
    Q4_0,
    /// GGUF: the temporal transformer in Q4_K, other matrices in Q8_0; nearest codes only
    #[value(name = "q4_k")]
    Q4K,
}

impl QuantizeFormat {
    pub fn is_gguf(self) -> bool {
        matches!(self, QuantizeFormat::Q8_0 | QuantizeFormat::Q4_0 | QuantizeFormat::Q4K)
    }
}

#[derive(Args)]
#[command(group = clap::ArgGroup::new("weights").required(true).args(["model", "random"]))]
pub struct BenchLm {
    /// A folder, as for `swara talk` or `swara speak`
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Random weights of the shape --config: speed and memory need no others
    #[arg(long)]
    pub random: bool,
    /// moshi-7b, moshi-1b (rows of 1024, 24 layers), csm-1b, or a file like moshi's config.json
    #[arg(long, value_name = "NAME|FILE", default_value = "moshi-1b", conflicts_with = "model")]
    pub config: String,
    /// Of the weights; may be repeated. What a file has as codes stays so
    #[arg(long, value_name = "FORMAT", default_value = "f32")]
    pub format: Vec<Format>,
    /// Streams that advance together; may be repeated
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub batch: Vec<u16>,
    /// Whole frames of one stream, from samples to samples, through this Mimi: a file, or random weights
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "random", conflicts_with = "batch")]
    pub mimi: Option<String>,
    /// CSM: steps without and with such guesses (`swara speak --draft`), in turns; may be repeated
    #[arg(long, value_name = "N[:LAYERS]", value_parser = draft, conflicts_with = "mimi")]
    pub draft: Vec<Draft>,
    /// Not its own guesses, but such as are right with this probability: what they would be worth; may be repeated
    #[arg(long, value_name = "P", value_parser = share, requires = "draft")]
    pub right: Vec<f64>,
    /// Launch every kernel by itself, not a step as one graph
    #[arg(long)]
    pub no_graph: bool,
    /// Launch the kernels of the depth transformer by themselves, not all of a step as one cooperative kernel
    #[arg(long)]
    pub plain_depth: bool,
    /// Programmatic dependent launch: kernels of a step start before the one before has ended and wait for it, weights asked for (sm_90
    /// and later). Steps without and with it, in turns; they must say the same codes. Not yet run or timed on a GPU
    #[arg(long, conflicts_with = "mimi")]
    pub pdl: bool,
    #[command(flatten)]
    pub memory: Memory,
    /// Steps to time
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub steps: u32,
    #[command(flatten)]
    pub results: Results,
}

/// By default, prints the command lines of Nsight Compute and Nsight Systems; with a GPU, `--run` runs one.
#[derive(Args)]
#[command(group = clap::ArgGroup::new("what").args(["compiled", "run", "trace"]))]
pub struct Profile {
    #[command(flatten)]
    pub report: Report,
    /// Operations, or the codec's frames
    #[arg(value_name = "OP|codec", required = true)]
    pub names: Vec<String>,
    /// What the compiler made of the operations' kernels: registers, memory, occupancy, instructions. Needs no GPU
    #[arg(long = "static")]
    pub compiled: bool,
    /// Architecture of --static
    #[arg(long, default_value = "sm_90a", value_name = "ARCH", requires = "compiled")]
    pub arch: String,
    /// Run it instead of printing how: under a tool, or bare, as the tools do
    #[arg(long, value_enum, value_name = "ncu|nsys|bare")]
    pub run: Option<Runner>,
    /// Write a timeline for Perfetto (ui.perfetto.dev) or chrome://tracing; on any device
    #[arg(long, value_name = "OUT.json")]
    pub trace: Option<PathBuf>,
    /// Codec frames, or runs of each case; by default 1 for ncu, which repeats each launch itself, and 10 elsewhere
    #[arg(long, visible_alias = "repeat", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub frames: Option<u32>,
    /// Only cases whose name holds TEXT; the large ones by default
    #[arg(long, value_name = "TEXT")]
    pub case: Option<String>,
    /// The codec: bundled name, file, or folder
    #[arg(long, value_name = "M")]
    pub model: Option<String>,
    /// The tool's own report; without it, ncu prints and nsys numbers its files
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Runner {
    Ncu,
    Nsys,
    Bare,
}

#[derive(Args)]
pub struct Prepare {
    #[command(flatten)]
    pub report: Report,
    /// Folders of audio (wav, flac, mp3, ogg, aiff, g722), then the folder to write; with --teacher that alone, of a dataset that is there
    #[arg(required = true, num_args = 1.., value_name = "IN_DIR... OUT_DIR")]
    pub dirs: Vec<PathBuf>,
    /// Sample rate of the result in Hz [default: 16000]
    #[arg(long, value_name = "HZ")]
    pub rate: Option<u32>,
    /// rms:DB (dBFS over the utterance), lufs:DB (ITU-R BS.1770) or none [default: rms:-16]
    #[arg(long, value_name = "MEASURE")]
    pub loudness: Option<Loudness>,
    /// Which folder below IN_DIR names the speaker, from 1 [default: 1]
    #[arg(long, value_name = "N")]
    pub speaker_depth: Option<usize>,
    /// Which folder below IN_DIR names the language [default: 2]
    #[arg(long, value_name = "N")]
    pub language_depth: Option<usize>,
    /// Speakers held out whole for test
    #[arg(long, value_name = "SPEAKER")]
    pub test_speaker: Vec<String>,
    /// Speakers held out whole for validation
    #[arg(long, value_name = "SPEAKER")]
    pub validation_speaker: Vec<String>,
    /// Split by the ends of file names, e.g. `reader=test:0,validation:9`
    #[arg(long, value_name = "PREFIX=SPLIT:ENDING,...")]
    pub id_rule: Vec<IdRule>,
    /// Share of the remaining speakers that goes to test [default: 0]
    #[arg(long, value_name = "SHARE")]
    pub test_fraction: Option<f64>,
    /// Longer files are cut at their quietest places [default: 20]
    #[arg(long, value_name = "SECONDS")]
    pub max_seconds: Option<f64>,
    /// Shorter pieces are dropped [default: 0.3]
    #[arg(long, value_name = "SECONDS")]
    pub min_seconds: Option<f64>,
    /// Keep beside every utterance what this WavLM or HuBERT hears in it (a folder as transformers saves it); goes on if interrupted
    #[arg(long, value_name = "DIR")]
    pub teacher: Option<PathBuf>,
    /// Hidden state of the teacher: last, mean (of all), or N, 0 being that before the first layer
    #[arg(long, default_value_t = State::Last, requires = "teacher", value_name = "N|last|mean")]
    pub teacher_layer: State,
}

#[derive(Args)]
pub struct Diagnose {
    #[command(flatten)]
    pub report: Report,
    /// Reference audio, or the folder of a training run
    pub reference: PathBuf,
    /// Audio to be judged against the reference
    pub test: Option<PathBuf>,
    /// Write a picture
    #[arg(long, value_name = "P.png")]
    pub plot: Option<PathBuf>,
    /// The page that reports a run; report.html in its folder by default
    #[arg(long, value_name = "FILE.html")]
    pub out: Option<PathBuf>,
    /// Align within this many samples either way
    #[arg(long, default_value_t = 2000, value_name = "SAMPLES", value_parser = clap::value_parser!(u32).range(..=1 << 20))]
    pub max_lag: u32,
}

#[derive(Args)]
pub struct Inspect {
    #[command(flatten)]
    pub report: Report,
    /// Weights, codes or audio; or a folder of weights or a prepared dataset
    pub path: PathBuf,
}
