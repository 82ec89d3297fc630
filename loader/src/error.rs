use std::io;
use std::path::{Path, PathBuf};

use crate::weights::Mismatch;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, why, and in which file. Prints as one line: `what: why (file)`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {action}: {} ({})", reason(source), path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot read audio: {why} ({})", path.display())]
    Audio { path: PathBuf, why: AudioError },
    #[error("cannot read weights: {why} ({})", path.display())]
    Weights { path: PathBuf, why: WeightsError },
    #[error("weights do not fit the model: {mismatch} ({})", path.display())]
    Mismatch { path: PathBuf, mismatch: Mismatch },
    #[error("cannot use codes: {why} ({})", path.display())]
    Codes { path: PathBuf, why: CodesError },
    #[error("cannot use dataset: {why} ({})", path.display())]
    Dataset { path: PathBuf, why: DatasetError },
    #[error("cannot use tokenizer: {why} ({})", path.display())]
    Tokenizer { path: PathBuf, why: String },
    #[error("cannot write: {why} ({})", path.display())]
    Output { path: PathBuf, why: String },
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }

    /// The file or directory at fault.
    pub fn path(&self) -> &Path {
        match self {
            Self::Io { path, .. }
            | Self::Audio { path, .. }
            | Self::Weights { path, .. }
            | Self::Mismatch { path, .. }
            | Self::Codes { path, .. }
            | Self::Dataset { path, .. }
            | Self::Tokenizer { path, .. }
            | Self::Output { path, .. } => path,
        }
    }
}

/// The system's words without its number.
fn reason(source: &io::Error) -> String {
    let text = source.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_lowercase(),
        None => text,
    }
}

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AudioError {
    #[error("is a directory")]
    Directory,
    #[error("the file is empty")]
    Empty,
    #[error("not audio in a known format (wav, flac, mp3, ogg vorbis, aiff, g722)")]
    NotAudio,
    #[error("the file ends before its first sample")]
    Truncated,
    #[error("0 samples")]
    NoSamples,
    #[error("sample {index} of channel {channel} is {value}")]
    NonFinite { index: u64, channel: usize, value: f32 },
    #[error("sample rate {0} Hz, expected {min} to {max}", min = crate::audio::MIN_RATE, max = crate::audio::MAX_RATE)]
    Rate(u32),
    #[error("{0} channels, expected 1 to {max}", max = crate::audio::MAX_CHANNELS)]
    Channels(usize),
    #[error("unsupported: {0}")]
    Unsupported(String),
    #[error("damaged: {0}")]
    Damaged(String),
}

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum WeightsError {
    #[error("is a directory without weights (model.safetensors, pytorch_model.bin, or one of another name)")]
    NoModelInDirectory,
    #[error("is a directory with several weights ({}), name one", .0.join(", "))]
    SeveralInDirectory(Vec<String>),
    #[error(transparent)]
    Torch(#[from] TorchError),
    #[error(transparent)]
    Gguf(#[from] GgufError),
    #[error("{found} bytes, too short for a safetensors header")]
    TooShort { found: u64 },
    #[error("header of {claimed} bytes, expected at most {available}")]
    HeaderLength { claimed: u64, available: u64 },
    #[error("header is not valid: {0}")]
    Header(String),
    #[error("tensor {0} appears twice")]
    Duplicate(String),
    #[error("tensor {tensor}: unknown dtype {found}")]
    UnknownDtype { tensor: String, found: String },
    #[error("tensor {tensor}: shape {shape:?} overflows")]
    ShapeOverflow { tensor: String, shape: Vec<u64> },
    #[error("tensor {tensor}: offsets {begin}..{end} lie outside the {available} bytes of data")]
    OffsetRange { tensor: String, begin: u64, end: u64, available: u64 },
    #[error("tensor {tensor}: shape and dtype need {expected} bytes, offsets span {found}")]
    ByteCount { tensor: String, expected: u64, found: u64 },
    #[error("tensors {first} and {second} overlap")]
    Overlap { first: String, second: String },
    #[error("{bytes} bytes at offset {at} belong to no tensor")]
    Unused { at: u64, bytes: u64 },
    #[error("no tensor {0}")]
    NoTensor(String),
    #[error("tensor {tensor}: dtype {found}, expected {expected}")]
    Dtype { tensor: String, expected: &'static str, found: &'static str },
    #[error("it names {found:?}, expected the plain name of a file beside it")]
    ShardName { found: String },
    #[error("index places tensor {tensor} in {shard}, which does not have it")]
    NotInShard { tensor: String, shard: String },
    #[error("tensor {tensor}: {why}")]
    Quantized { tensor: String, why: QuantizedError },
    #[error("tensor {tensor}: shape {shape:?} needs {expected} bytes, got {found}")]
    SaveSize { tensor: String, shape: Vec<usize>, expected: u64, found: u64 },
}

/// What is wrong in a file that `torch.save` wrote, or seems to have written.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TorchError {
    #[error("damaged zip archive: {0}")]
    Archive(String),
    #[error("a zip archive without data.pkl, not one of PyTorch")]
    NoPickle,
    #[error("entry {entry} is kept by {method}, expected stored or deflated")]
    Method { entry: String, method: String },
    #[error("{entry} has {found} bytes, expected {expected}")]
    EntrySize { entry: String, expected: u64, found: u64 },
    #[error("entry {entry}: {why}")]
    Inflate { entry: String, why: String },
    #[error("its tensors take more than the {limit} bytes allowed for a file of this size")]
    TooLarge { limit: u64 },
    #[error("written on a big-endian machine")]
    ByteOrder,
    #[error("damaged pickle, byte {at}: {why}")]
    Pickle { at: u64, why: String },
    #[error("it calls for {0}, which builds no tensor: refused, nothing was executed")]
    Refused(String),
    #[error("no tensors in it, but {0}")]
    NoTensors(String),
    #[error("the names of its tensors are too long, or no text")]
    Names,
    #[error("tensor {tensor}: {why}")]
    Tensor { tensor: String, why: String },
    #[error("no storage {0}")]
    NoStorage(String),
    #[error("storage {key} is cut: {available} bytes are left")]
    StorageEnd { key: String, available: u64 },
}

/// What is wrong in a GGUF file.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GgufError {
    #[error("GGUF of version {0}, expected 2 or 3")]
    Version(u32),
    #[error("GGUF for big-endian machines")]
    ByteOrder,
    #[error("its header, which may have {limit} bytes, ends in {field} at byte {at}")]
    Truncated { field: &'static str, at: usize, limit: usize },
    #[error("{field} at byte {at} is no UTF-8 text")]
    Text { field: &'static str, at: usize },
    #[error("metadata field {0} appears twice")]
    DuplicateKey(String),
    #[error("metadata field {key}: unknown type {found}")]
    ValueType { key: String, found: u32 },
    #[error("metadata field {key}: arrays more than {max} deep")]
    Nested { key: String, max: usize },
    #[error("general.alignment is {0}, expected a power of two of 32 bits")]
    Alignment(String),
    #[error("tensor {tensor}: {found} dimensions, expected at most {max}")]
    Rank { tensor: String, found: u32, max: u32 },
    #[error("tensor {tensor}: rows of shape {shape:?} are no whole blocks of {block}")]
    Blocks { tensor: String, shape: Vec<usize>, block: usize },
    #[error("tensor {tensor}: offset {offset} is no multiple of {alignment}")]
    Misaligned { tensor: String, offset: u64, alignment: u64 },
}

/// Why codes and scales are no [`Quantized`](crate::quantized::Quantized) matrix.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum QuantizedError {
    #[error("shape {shape:?} overflows")]
    Overflow { shape: [usize; 2] },
    #[error("{found} columns, expected a multiple of {multiple} above 0")]
    Columns { found: usize, multiple: usize },
    #[error("{found} rows, expected a multiple of {multiple}")]
    Rows { found: usize, multiple: usize },
    #[error("groups of {group} columns, expected a divisor of {columns}, even for 4 bits")]
    Group { group: usize, columns: usize },
    #[error("{found} {what}, expected {expected}")]
    Length { what: &'static str, expected: usize, found: usize },
    #[error("{what} in row {row}, group {group} is {value}")]
    NonFinite { what: &'static str, row: usize, group: usize, value: f32 },
    #[error("codes that {layout}'s layout does not have: of other bits, in other groups, or with minima")]
    Unfit { layout: &'static str },
    #[error("{dtype} has no blocks, expected Q8_0, Q4_0 or Q4_K")]
    NoBlocks { dtype: &'static str },
    #[error("column {column} is of group {found}, expected {expected}: permuted columns (desc_act) are not supported")]
    ActOrder { column: usize, found: i32, expected: usize },
    #[error("qweight of shape {qweight:?} and scales of {scales:?} are neither AutoGPTQ's nor AutoAWQ's of 4 bits")]
    Layout { qweight: Vec<usize>, scales: Vec<usize> },
    #[error("shape {shape:?} or type is not that of panels: U8 [panels, columns, 32 or 16], scales and minima F32 [panels, groups, 32]")]
    Panels { shape: Vec<usize> },
    #[error("checkpoint format {0}, expected gptq")]
    CheckpointFormat(String),
}

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CodesError {
    #[error("no tensor `codes`, nor `codes_0`")]
    NoCodes,
    #[error("`{name}` has dtype {found}, expected I32")]
    Dtype { name: String, found: &'static str },
    #[error("`codes` has shape {0:?}, expected [codebooks, frames] with at least one of each")]
    Shape(Vec<usize>),
    #[error("`{name}` has shape {found:?}, expected [frames]")]
    LevelShape { name: String, found: Vec<usize> },
    #[error("levels of {0:?} frames, expected each a multiple of the one before it")]
    Levels(Vec<usize>),
    #[error("`scales` has dtype {0}, expected F32")]
    ScalesDtype(&'static str),
    #[error("`scales` of shape {0:?}, expected [pieces] with at least one, all of them above 0")]
    Scales(Vec<usize>),
    #[error("`stages` is {dtype} {shape:?}, expected U8 [runs of frames]")]
    StagesTensor { dtype: &'static str, shape: Vec<usize> },
    #[error("numbers of codes for {runs} runs of {hold} frames, expected 1 to {codebooks} for each of {frames} frames of one rate")]
    Stages { runs: usize, hold: usize, frames: usize, codebooks: usize },
    #[error("codebook {codebook}, frame {frame}: code {found} in a frame of {stages} codes")]
    Stray { codebook: usize, frame: usize, found: i32, stages: usize },
    #[error("no metadata field `{0}`")]
    NoField(&'static str),
    #[error("metadata field `{field}` is {found:?}, expected {expected}")]
    Field { field: &'static str, found: String, expected: &'static str },
    #[error("{samples} samples need {expected:.2} frames, found {found}")]
    Length { samples: u64, expected: f64, found: usize },
    #[error("{found} codebooks, the model has {expected}")]
    Codebooks { expected: usize, found: usize },
    #[error("codebook {codebook}, frame {frame}: code {found}, expected 0 to {}", size.saturating_sub(1))]
    Range { codebook: usize, frame: usize, found: i32, size: usize },
}

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum DatasetError {
    #[error("not a prepared dataset: no dataset.json (never prepared, or interrupted)")]
    NotPrepared,
    #[error("no such directory")]
    NoInput,
    #[error("no audio file found")]
    NoAudio,
    #[error("nothing left: every one of the {0} files was dropped")]
    NothingLeft(usize),
    #[error("dataset.json: {0}")]
    Description(String),
    #[error("manifest.jsonl line {line}: {why}")]
    Manifest { line: usize, why: String },
    #[error("audio.s16 has {found} bytes, expected {expected}")]
    AudioBytes { expected: u64, found: u64 },
    #[error("manifest.jsonl is not the one that dataset.json describes")]
    ManifestChanged,
    #[error("option {option}: {why}")]
    Option { option: &'static str, why: String },
    #[error("split {0} is empty")]
    EmptySplit(String),
    #[error("no teacher's features: no teacher.json")]
    NoTeacher,
    #[error("teacher: {0}")]
    Teacher(String),
}
