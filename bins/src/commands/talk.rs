use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;
use swara_engine::lm::{Config, Lm};
use swara_kernels::ops::elementwise;
use swara_kernels::{DType, Tensor};
use swara_loader::audio::{AudioReader, WavFormat, WavWriter};
use swara_loader::output;
use swara_loader::weights::{TensorRef, Weights, save};

use crate::cli::{Common, Format, Talk, same_target};
use crate::codec::{self, Times};
use crate::dialogue::{self, Heard, Spoken, Turn};
use crate::failure::{Failure, Result};
use crate::process::{peak_rss_mb, peak_vram_mb};
use crate::terminal;

/// Steps whose text logits are dumped.
const DUMPED_LOGITS: usize = 10;

pub fn run(common: &Common, args: &Talk) -> Result {
    args.persona.check()?;
    let format = args.memory.of(common.lm_format(args.format)?);
    if let (Some(dump), Some(output)) = (&args.dump, &args.output)
        && same_target(dump, output)
    {
        return Err(Failure::usage("--dump: the same file as OUT.wav"));
    }
    let sound = args.input.is_some() || args.output.is_some() || args.persona.voice.is_some();
    let mimi = match &args.mimi {
        Some(asked) => Some(PathBuf::from(asked)),
        None if sound => dialogue::mimi(None, &args.model)?,
        None => None,
    };
    if sound && mimi.is_none() {
        return Err(Failure::usage("talk: sound wants --mimi, a codec"));
    }
    let device = common.open_device()?;
    if args.pdl {
        terminal::dependent_launches(&device);
    }
    let config = dialogue::config(&args.model)?;
    args.memory.check(&config)?;
    let conditions = args.conditioning.of(&config)?;
    let tokenizer = dialogue::tokenizer(args.tokenizer.as_deref(), &args.model, &config)?;
    args.persona.check_for(&config, tokenizer.as_ref())?;
    // What is asked for, before gigabytes are read.
    args.dump.as_ref().map_or(Ok(()), output::check)?;
    let codec = match (&args.mimi, &mimi) {
        (Some(asked), _) => Some(codec::open_on(common, &device, asked)?),
        (None, Some(named)) => Some(codec::open_file(common, &device, named)?),
        (None, None) => None,
    };
    if let (Some(codec), Some(path)) = (&codec, &mimi) {
        dialogue::check_codec(codec, &config, path)?;
    }
    let mut source = Source::open(args, &config, codec.as_ref().map(|codec| (codec.format().sample_rate, codec.format().hop)))?;
    let voice = args.persona.heard(codec.as_ref())?;
    let wav = match (&codec, &args.output) {
        (Some(codec), Some(output)) => Some(WavWriter::create(output, codec.format().sample_rate, WavFormat::S16)?),
        _ => None,
    };
    let lm = dialogue::open_lm(&args.model, args.lora.as_deref(), &device, format)?;
    let drawing = args.sampling.of(&lm);
    let dialogue =
        Spoken::new(&lm, codec.as_ref(), tokenizer.as_ref(), drawing, &conditions)?.graphs(!args.no_graph).plain_depth(args.plain_depth);
    let dialogue = if args.output.is_some() { dialogue } else { dialogue.silent() }.prompt(&args.persona, &voice)?;
    let mut talk = Conversation {
        lm: &lm,
        dialogue,
        wav,
        to_stdout: !common.json,
        dump: args.dump.as_ref().map(|_| Dump::default()),
        steps: 0,
        first_audio: None,
        began: Instant::now(),
    };
    let bar = terminal::progress(source.frames(), "talk");
    while let Some(frame) = source.next()? {
        talk.step(&frame)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    source.warnings().iter().for_each(|w| terminal::warn(w.clone()));
    talk.finish(common, args)
}

/// Where what the model hears comes from, frame by frame.
enum Source {
    Audio { reader: Box<AudioReader>, hop: usize, pending: Vec<f32>, done: bool },
    Codes(std::vec::IntoIter<Vec<i32>>),
}

enum Frame {
    Samples(Vec<f32>),
    Codes(Vec<i32>),
}

impl Source {
    /// `codec`: its rate in Hz and its hop.
    fn open(args: &Talk, config: &Config, codec: Option<(u32, usize)>) -> Result<Source> {
        match (&args.user_codes, &args.input, codec) {
            (Some(path), ..) => Ok(Source::Codes(read_codes(path, config.heard(), config.card)?.into_iter())),
            (None, Some(path), Some((rate, hop))) => {
                Ok(Source::Audio { reader: Box::new(AudioReader::open(path, Some(rate))?), hop, pending: Vec::new(), done: false })
            }
            _ => Err(Failure::usage("talk: IN.wav and --mimi, or --user-codes")),
        }
    }

    fn frames(&self) -> Option<u64> {
        match self {
            Source::Audio { reader, hop, .. } => reader.expected_samples().map(|n| n.div_ceil(*hop as u64)),
            Source::Codes(rows) => Some(rows.len() as u64),
        }
    }

    /// The end is padded with silence to a whole frame.
    fn next(&mut self) -> Result<Option<Frame>> {
        match self {
            Source::Codes(rows) => Ok(rows.next().map(Frame::Codes)),
            Source::Audio { reader, hop, pending, done } => {
                while pending.len() < *hop && !*done {
                    match reader.next() {
                        Some(samples) => pending.extend(samples?),
                        None => *done = true,
                    }
                }
                if pending.is_empty() {
                    return Ok(None);
                }
                let mut frame: Vec<f32> = pending.drain(..pending.len().min(*hop)).collect();
                frame.resize(*hop, 0.0);
                Ok(Some(Frame::Samples(frame)))
            }
        }
    }

    fn warnings(&self) -> Vec<String> {
        match self {
            Source::Audio { reader, .. } => reader.warnings().iter().map(ToString::to_string).collect(),
            Source::Codes(_) => Vec::new(),
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

#[derive(Default)]
struct Dump {
    text: Vec<i32>,
    /// Frame by frame.
    codes: Vec<i32>,
    text_logits: Vec<f32>,
}

impl Dump {
    fn take(&mut self, turn: &Turn, text_logits: Option<&Tensor>, step: usize) -> Result {
        if let Some(text_logits) = text_logits.filter(|_| step < DUMPED_LOGITS) {
            self.text_logits.extend(elementwise::convert(text_logits, DType::F32)?.to_vec::<f32>()?);
        }
        if let Some([text, codes @ ..]) = turn.said.as_deref() {
            self.text.push(*text);
            self.codes.extend(codes);
        }
        Ok(())
    }

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

/// One stream, and what is written of it.
struct Conversation<'a> {
    lm: &'a Lm,
    dialogue: Spoken<'a>,
    wav: Option<WavWriter>,
    /// Words; to standard error if not.
    to_stdout: bool,
    dump: Option<Dump>,
    steps: usize,
    first_audio: Option<f64>,
    began: Instant,
}

impl Conversation<'_> {
    fn step(&mut self, frame: &Frame) -> Result {
        let turn = self.dialogue.step(match frame {
            Frame::Samples(samples) => Heard::Samples(samples),
            Frame::Codes(codes) => Heard::Codes(codes),
        })?;
        if let (Some(wav), Some(samples)) = (&mut self.wav, &turn.samples) {
            wav.write(samples)?;
            self.first_audio.get_or_insert(self.began.elapsed().as_secs_f64());
        }
        if let Some(dump) = &mut self.dump {
            dump.take(&turn, self.dialogue.text_logits(), self.steps)?;
        }
        self.steps += 1;
        if turn.words.is_empty() { Ok(()) } else { self.print(&turn.words) }
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

    fn finish(mut self, common: &Common, args: &Talk) -> Result {
        if let Some(words) = self.dialogue.last_words() {
            self.print(&words)?;
        }
        let seconds = self.began.elapsed().as_secs_f64();
        if let (Some(dump), Some(path)) = (&self.dump, &args.dump) {
            dump.write(path, self.lm.config().dep_q, self.lm.config().text_outputs())?;
        }
        if let Some(wav) = self.wav {
            wav.finish()?;
        }
        let (frames, times) = (self.steps, &self.dialogue.times);
        let total = &times.total;
        if common.json {
            // What frames that were graphs are made of has no times of its own.
            let piece = |times: &Times| (self.dialogue.times.graphs == 0).then(|| times.percentile_ms(0.5));
            return terminal::say_json(&json!({
                "model": self.lm.name(), "device": self.lm.device().name(), "dtype": self.lm.format().dtype.name(), "format": args.format.or(common.lm_int8()).map(Format::name), "seed": args.sampling.seed,
                "steps": frames, "prompt_steps": self.dialogue.prompted, "graphs": times.graphs, "seconds": seconds,
                "frame_ms": {
                    "encode_p50": piece(&times.encode), "lm_p50": piece(&times.lm), "decode_p50": piece(&times.decode),
                    "total_p50": total.percentile_ms(0.5), "total_p99": total.percentile_ms(0.99),
                },
                "first_audio_ms": self.first_audio.map(|s| s * 1e3),
                "peak_rss_mb": peak_rss_mb(), "peak_vram_mb": peak_vram_mb(self.lm.device()),
            }));
        }
        let rows = times.rows().into_iter().map(|(what, times)| format!("{what} p50 {:.2} ms", times.percentile_ms(0.5)));
        terminal::note(format!(
            "{frames} frames in {seconds:.2} s: {}, p99 {:.2} ms; {} of them one graph each",
            rows.collect::<Vec<_>>().join(", "),
            total.percentile_ms(0.99),
            times.graphs,
        ));
        Ok(())
    }
}
