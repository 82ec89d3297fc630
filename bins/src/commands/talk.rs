use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;
use swara_engine::codec::{Codec, Session as CodecSession};
use swara_engine::lm::{self, Drawing, Drawn, Lm, Session};
use swara_kernels::ops::elementwise;
use swara_kernels::{DType, Device, Tensor};
use swara_loader::audio::{AudioReader, WavFormat, WavWriter};
use swara_loader::tokenizer::{TextStream, Tokenizer};
use swara_loader::weights::{TensorRef, Weights, save};

use crate::cli::{Common, Dtype, Format, Talk};
use crate::codec::{self, Times};
use crate::commands::peak_rss_mb;
use crate::failure::{Failure, Result};
use crate::terminal;

/// Steps whose text logits are dumped.
const DUMPED_LOGITS: usize = 10;

pub fn run(common: &Common, args: &Talk) -> Result {
    let device = common.open_device()?;
    let format = match (args.format, common.dtype) {
        (Some(format), Some(Dtype::Int8)) => format.of(None)?, // --dtype is the codec's
        (Some(format), _) => format.of(common.dtype()?)?,
        (None, Some(Dtype::Int8)) => lm::Format::int8(DType::F32),
        (None, Some(Dtype::Of(dtype))) => dtype.into(),
        (None, None) => DType::F32.into(),
    };
    let lm = Lm::open(&args.model, &device, format)?;
    if lm.config().dep_q == 0 || lm.config().heard() == 0 {
        return Err(Failure::file("cannot talk", "a model that does not both hear and speak", &args.model));
    }
    let codec = args.mimi.as_deref().map(|mimi| codec::open(common, mimi)).transpose()?;
    codec.as_ref().map_or(Ok(()), |codec| check_codec(codec, &lm, args))?;
    let tokenizer = tokenizer(args, &lm)?;
    let mut heard = Heard::open(args, &lm, codec.as_ref())?;
    let drawing = match args.greedy {
        true => Drawing::GREEDY,
        false => Drawing::seeded(&drawn(args, &lm.config().lm_gen_config), args.seed),
    };
    let mut talk = Dialogue {
        lm: &lm,
        session: Session::new(&lm, &[drawing])?,
        voice: match (&codec, &args.output) {
            (Some(codec), Some(output)) => Some(Voice::new(codec, &lm, output)?),
            _ => None,
        },
        words: tokenizer.as_ref().map(|tokenizer| (tokenizer, TextStream::default())),
        to_stdout: !common.json,
        lm_times: Times::default(),
        total_times: Times::default(),
        dump: args.dump.as_ref().map(|_| Dump::default()),
        steps: 0,
        first_audio: None,
        began: Instant::now(),
    };
    let bar = terminal::progress(heard.frames(), "talk");
    while let Some(frame) = heard.next()? {
        talk.step(&mut heard, &frame)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    heard.warnings().iter().for_each(|w| terminal::warn(w.clone()));
    talk.finish(common, args, &heard)
}

/// How to draw: as is asked, else as the model's configuration has it.
fn drawn(args: &Talk, default: &Drawn) -> Drawn {
    Drawn {
        temp: args.temp.unwrap_or(default.temp),
        temp_text: args.text_temp.unwrap_or(default.temp_text),
        top_k: args.top_k.unwrap_or(default.top_k),
        top_k_text: args.text_top_k.unwrap_or(default.top_k_text),
    }
}

/// Codebooks of what is said: of those that are generated as many as are heard, the rest being for others.
fn voice_codebooks(lm: &Lm) -> usize {
    lm.config().dep_q.min(lm.config().heard())
}

fn check_codec(codec: &Codec, lm: &Lm, args: &Talk) -> Result {
    let (format, config) = (codec.format(), lm.config());
    let needed = voice_codebooks(lm).max(config.heard());
    let why = if !format.causal || format.channels != 1 || format.multi_rate() {
        "is no causal codec of one channel and one rate".to_owned()
    } else if codec.codebooks() < needed {
        format!("has {} codebooks, the model wants {needed}", codec.codebooks())
    } else if let Some(size) = format.codebook_sizes[..needed].iter().find(|&&size| size != config.card) {
        format!("has codebooks of {size}, the model wants {}", config.card)
    } else {
        return Ok(());
    };
    Err(Failure::file("cannot talk", format!("{} {why}", codec.name()), Path::new(args.mimi.as_deref().unwrap_or_default())))
}

/// The one asked for, else the only `.model` beside the weights.
fn tokenizer(args: &Talk, lm: &Lm) -> Result<Option<Tokenizer>> {
    let path = match &args.tokenizer {
        Some(path) => path.clone(),
        None => match beside(&args.model) {
            Some(path) => path,
            None => return Ok(None),
        },
    };
    let tokenizer = Tokenizer::open(&path)?;
    match tokenizer.size() == lm.config().text_card {
        true => Ok(Some(tokenizer)),
        false => {
            let why = format!("{} pieces, the model has {}", tokenizer.size(), lm.config().text_card);
            Err(Failure::file("cannot use tokenizer", why, &path))
        }
    }
}

fn beside(model: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(model).ok()?.flatten().map(|entry| entry.path());
    let mut found = entries.filter(|path| path.extension().is_some_and(|e| e == "model"));
    found.next().filter(|_| found.next().is_none())
}

/// What the model hears, frame by frame.
enum Heard<'a> {
    Audio(Box<Ear<'a>>),
    Codes { device: Device, rows: std::vec::IntoIter<Vec<i32>> },
}

/// From a file of audio to codes.
struct Ear<'a> {
    codec: &'a Codec,
    session: CodecSession<'a>,
    reader: AudioReader,
    codebooks: usize,
    pending: Vec<f32>,
    done: bool,
    times: Times,
}

/// A frame before it is codes.
enum Frame {
    Samples(Vec<f32>),
    Codes(Vec<i32>),
}

impl<'a> Heard<'a> {
    fn open(args: &Talk, lm: &Lm, codec: Option<&'a Codec>) -> Result<Heard<'a>> {
        let codebooks = lm.config().heard();
        match (&args.user_codes, &args.input, codec) {
            (Some(path), ..) => {
                Ok(Heard::Codes { device: lm.device().clone(), rows: read_codes(path, codebooks, lm.config().card)?.into_iter() })
            }
            (None, Some(path), Some(codec)) => Ok(Heard::Audio(Box::new(Ear {
                codec,
                session: codec::warm_session(codec, codebooks)?,
                reader: AudioReader::open(path, Some(codec.format().sample_rate))?,
                codebooks,
                pending: Vec::new(),
                done: false,
                times: Times::default(),
            }))),
            _ => Err(Failure::usage("talk: IN.wav and --mimi, or --user-codes")),
        }
    }

    fn frames(&self) -> Option<u64> {
        match self {
            Heard::Audio(ear) => ear.reader.expected_samples().map(|n| n.div_ceil(ear.codec.format().hop as u64)),
            Heard::Codes { rows, .. } => Some(rows.len() as u64),
        }
    }

    /// The end is padded with silence to a whole frame.
    fn next(&mut self) -> Result<Option<Frame>> {
        match self {
            Heard::Codes { rows, .. } => Ok(rows.next().map(Frame::Codes)),
            Heard::Audio(ear) => {
                let Ear { codec, reader, pending, done, .. } = &mut **ear;
                let hop = codec.format().hop;
                while pending.len() < hop && !*done {
                    match reader.next() {
                        Some(samples) => pending.extend(samples?),
                        None => *done = true,
                    }
                }
                if pending.is_empty() {
                    return Ok(None);
                }
                let mut frame: Vec<f32> = pending.drain(..pending.len().min(hop)).collect();
                frame.resize(hop, 0.0);
                Ok(Some(Frame::Samples(frame)))
            }
        }
    }

    /// i32 `[1, K]`.
    fn codes(&mut self, frame: &Frame) -> Result<Tensor> {
        match (self, frame) {
            (Heard::Codes { device, .. }, Frame::Codes(codes)) => Ok(Tensor::from_slice(device, codes, [1, codes.len()])?),
            (Heard::Audio(ear), Frame::Samples(samples)) => {
                let Ear { codec, session, codebooks, times, .. } = &mut **ear;
                times.time(codec.device(), || {
                    let codes = session.encode(&codec.signal(samples, 1)?, *codebooks, None)?;
                    Ok(codes.reshape([1, *codebooks])?)
                })
            }
            _ => Err(Failure::work("a frame of another source")),
        }
    }

    fn warnings(&self) -> Vec<String> {
        match self {
            Heard::Audio(ear) => ear.reader.warnings().iter().map(ToString::to_string).collect(),
            Heard::Codes { .. } => Vec::new(),
        }
    }
}

/// Rows of the first `codebooks` codebooks of a codes file.
fn read_codes(path: &Path, codebooks: usize, size: usize) -> Result<Vec<Vec<i32>>> {
    let file = Weights::open(path)?;
    let codes = file.to_i32("codes")?;
    let frames = match *file.view("codes")?.shape {
        [k, frames] if k >= codebooks => frames,
        ref shape => return Err(Failure::file("cannot use codes", format!("{shape:?}, expected at least {codebooks} codebooks"), path)),
    };
    let row = |t: usize| -> Result<Vec<i32>> {
        let row: Vec<i32> = (0..codebooks).map(|k| codes[k * frames + t]).collect();
        match row.iter().position(|&code| usize::try_from(code).map_or(true, |code| code >= size)) {
            Some(k) => {
                Err(Failure::file("cannot use codes", format!("code {} of codebook {k}, frame {t}, is not below {size}", row[k]), path))
            }
            None => Ok(row),
        }
    };
    (0..frames).map(row).collect()
}

/// From codes to the file of what is said.
struct Voice<'a> {
    codec: &'a Codec,
    session: CodecSession<'a>,
    codebooks: usize,
    wav: WavWriter,
    times: Times,
}

impl<'a> Voice<'a> {
    fn new(codec: &'a Codec, lm: &Lm, output: &Path) -> Result<Voice<'a>> {
        let codebooks = voice_codebooks(lm);
        let session = codec::warm_session(codec, codebooks)?;
        let wav = WavWriter::create(output, codec.format().sample_rate, WavFormat::S16)?;
        Ok(Voice { codec, session, codebooks, wav, times: Times::default() })
    }

    fn say(&mut self, codes: &[i32]) -> Result {
        let (codec, session) = (self.codec, &mut self.session);
        let codes = Tensor::from_slice(codec.device(), &codes[..self.codebooks], [1, 1, self.codebooks])?;
        let samples = self.times.time(codec.device(), || Ok(codec.samples(&session.decode(&codes, None)?)?))?;
        Ok(self.wav.write(&samples)?)
    }
}

#[derive(Default)]
struct Dump {
    text: Vec<i32>,
    /// Frame by frame.
    codes: Vec<i32>,
    text_logits: Vec<f32>,
}

impl Dump {
    fn write(&self, path: &Path, codebooks: usize, text_outputs: usize) -> Result {
        let frames = self.text.len();
        let codes: Vec<i32> = (0..codebooks).flat_map(|k| (0..frames).map(move |t| self.codes[t * codebooks + k])).collect();
        let (shape, logits) = ([codebooks, frames], [self.text_logits.len() / text_outputs, text_outputs]);
        let tensors = [
            TensorRef::i32("text", &shape[1..], &self.text),
            TensorRef::i32("codes", &shape, &codes),
            TensorRef::f32("text_logits", &logits, &self.text_logits),
        ];
        Ok(save(path, &tensors, &BTreeMap::new())?)
    }
}

/// One stream, heard and answered.
struct Dialogue<'a> {
    lm: &'a Lm,
    session: Session<'a>,
    voice: Option<Voice<'a>>,
    words: Option<(&'a Tokenizer, TextStream)>,
    /// Words; to standard error if not.
    to_stdout: bool,
    lm_times: Times,
    total_times: Times,
    dump: Option<Dump>,
    steps: usize,
    first_audio: Option<f64>,
    began: Instant,
}

impl Dialogue<'_> {
    fn step(&mut self, heard: &mut Heard, frame: &Frame) -> Result {
        let start = Instant::now();
        let codes = heard.codes(frame)?;
        let session = &mut self.session;
        let step = self.lm_times.time(self.lm.device(), || Ok(session.step(&codes, None)?))?;
        let complete = step.complete.to_vec::<i32>()?;
        let (text, codes) = (complete[0], &complete[1..]);
        let speaks = text >= 0;
        if speaks && let Some(voice) = &mut self.voice {
            voice.say(codes)?;
            self.first_audio.get_or_insert(self.began.elapsed().as_secs_f64());
        }
        self.total_times.push(start.elapsed());
        if let Some(dump) = &mut self.dump {
            if self.steps < DUMPED_LOGITS {
                dump.text_logits.extend(elementwise::convert(&step.text_logits, DType::F32)?.to_vec::<f32>()?);
            }
            if speaks {
                dump.text.push(text);
                dump.codes.extend(codes);
            }
        }
        self.steps += 1;
        let config = self.lm.config();
        let padding = [config.existing_text_padding_id, config.existing_text_end_padding_id];
        if let Some((tokenizer, stream)) = &mut self.words
            && speaks
            && !padding.contains(&text)
        {
            let words = stream.push(tokenizer, text);
            self.print(&words)?;
        }
        Ok(())
    }

    fn print(&self, words: &str) -> Result {
        match self.to_stdout {
            true => terminal::write(words),
            false => {
                terminal::murmur(words);
                Ok(())
            }
        }
    }

    fn finish(mut self, common: &Common, args: &Talk, heard: &Heard) -> Result {
        if let Some((_, stream)) = &mut self.words {
            let rest = stream.finish();
            self.print(&format!("{rest}\n"))?;
        }
        let seconds = self.began.elapsed().as_secs_f64();
        if let (Some(dump), Some(path)) = (&self.dump, &args.dump) {
            dump.write(path, self.lm.config().dep_q, self.lm.config().text_outputs())?;
        }
        let none = Times::default();
        let encode = if let Heard::Audio(ear) = heard { &ear.times } else { &none };
        let decode = match self.voice {
            Some(voice) => {
                voice.wav.finish()?;
                voice.times
            }
            None => Times::default(),
        };
        let (frames, total) = (self.steps, &self.total_times);
        if common.json {
            return terminal::say_json(&json!({
                "model": self.lm.name(), "device": self.lm.device().name(), "dtype": self.lm.format().dtype.name(), "format": args.format.map(Format::name), "seed": args.seed,
                "steps": frames, "seconds": seconds,
                "frame_ms": {
                    "encode_p50": encode.percentile_ms(0.5), "lm_p50": self.lm_times.percentile_ms(0.5),
                    "decode_p50": decode.percentile_ms(0.5),
                    "total_p50": total.percentile_ms(0.5), "total_p99": total.percentile_ms(0.99),
                },
                "first_audio_ms": self.first_audio.map(|s| s * 1e3),
                "peak_rss_mb": peak_rss_mb(), "peak_vram_mb": peak_vram_mb(self.lm.device()),
            }));
        }
        let row = |what: &str, t: &Times| format!("{what} p50 {:.2} ms", t.percentile_ms(0.5));
        terminal::note(format!(
            "{frames} frames in {seconds:.2} s: {}, {}, {}; in all p50 {:.2} ms, p99 {:.2} ms",
            row("encode", encode),
            row("model", &self.lm_times),
            row("decode", &decode),
            total.percentile_ms(0.5),
            total.percentile_ms(0.99),
        ));
        Ok(())
    }
}

fn peak_vram_mb(device: &Device) -> Option<f64> {
    match device {
        Device::Cpu => None,
        Device::Cuda(cuda) => Some(cuda.reserved_bytes() as f64 / (1 << 20) as f64),
    }
}
