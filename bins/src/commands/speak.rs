use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use serde_json::json;
use swara_engine::codec::{Codec, Session as CodecSession};
use swara_engine::csm::{self, Config, Csm, Session};
use swara_kernels::ops::embedding::NONE;
use swara_kernels::ops::sample::Settings;
use swara_kernels::{Device, Tensor};
use swara_loader::audio::{AudioReader, WavFormat, WavWriter};
use swara_loader::output;
use swara_loader::tokenizer_json::TokenizerJson;
use swara_loader::weights::{TensorRef, Weights, save};

use crate::cli::{Common, Format, Speak, same_target};
use crate::codec::{self, Times, warm_session};
use crate::failure::{Failure, Result};
use crate::process::{peak_rss_mb, peak_vram_mb};
use crate::terminal;

/// 90 s, as Sesame's generator has it.
const MOST_FRAMES: usize = 1125;

/// What Llama 3 has around a text.
const BEGIN: &str = "<|begin_of_text|>";
const END: &str = "<|end_of_text|>";

pub fn run(common: &Common, args: &Speak) -> Result {
    let context = args.context.iter().map(|segment| Segment::parse(segment)).collect::<Result<Vec<_>>>()?;
    if args.text.as_deref().is_some_and(|text| text.trim().is_empty()) {
        return Err(Failure::usage("--text: nothing to say"));
    }
    if let (Some(dump), Some(output)) = (&args.dump, &args.output)
        && same_target(dump, output)
    {
        return Err(Failure::usage("--dump: the same file as OUT.wav"));
    }
    let format = swara_engine::lm::Format { kept: args.kv, ..common.lm_format(args.format)? };
    let device = common.open_device()?;
    // What is asked for, before gigabytes are read.
    let (config, own_codec) = csm::check(&Weights::open(&args.model)?)?;
    args.draft.map_or(Ok(()), |draft| draft.check(&config)).map_err(|why| Failure::usage(format!("--draft: {why}")))?;
    args.dump.as_ref().map_or(Ok(()), output::check)?;
    let needed = args.output.is_some() || !context.is_empty();
    let words = args.text.as_ref().map(|_| Prompt::new(args, &config)).transpose()?;
    let codec = if needed { Some(open_codec(common, args, &device, &config, own_codec)?) } else { None };
    let rows = match (&args.prompt_ids, &words) {
        (Some(path), _) => read_rows(path, &config)?,
        (None, Some(words)) => words.rows(args, &context, codec.as_ref())?,
        (None, None) => return Err(Failure::usage("--text: nothing to say")),
    };
    let prompt = rows.len() / (config.num_codebooks + 1);
    let most = most_frames(args, &config, prompt)?;
    let voice = match (&codec, &args.output) {
        (Some(codec), Some(output)) => Some(Voice::new(codec, &config, output)?),
        _ => None,
    };
    let mut csm = Csm::open(&args.model, &device, format)?;
    // A file may allow any length.
    csm.limit(prompt + most);
    let settings = Settings { temperature: args.temp, top_k: args.top_k, seed: args.seed, sequence: 0 };
    let settings = if args.greedy { Settings::GREEDY } else { settings };
    let mut session = Session::new(&csm, &[settings])?;
    session.draft(args.draft)?;
    session.plain_depth(args.plain_depth);
    terminal::warn_with_plain_depth(session.plain_depth_why().as_deref());
    let mut speech = Speech { csm: &csm, session, voice, codes: Vec::new(), times: Default::default() };
    speech.say(&rows, most)?;
    speech.finish(common, args)
}

/// Something that was said, and its words.
struct Segment<'a> {
    wav: &'a Path,
    words: &'a str,
}

impl<'a> Segment<'a> {
    fn parse(text: &'a str) -> Result<Segment<'a>> {
        match text.split_once('=') {
            Some((wav, words)) if !wav.is_empty() && !words.trim().is_empty() => Ok(Segment { wav: Path::new(wav), words }),
            _ => Err(Failure::usage(format!("--context: {text:?}, expected WAV=TEXT"))),
        }
    }

    /// Whether the words say who says them: `[N]` before them.
    fn named(&self) -> bool {
        let name = self.words.strip_prefix('[').and_then(|rest| rest.split_once(']'));
        name.is_some_and(|(name, _)| !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit()))
    }
}

/// The codec asked for, else the one beside the model.
fn open_codec(common: &Common, args: &Speak, device: &Device, config: &Config, own: bool) -> Result<Codec> {
    let codec = match &args.mimi {
        Some(mimi) => codec::open_on(common, device, mimi)?,
        None if own => codec::open_file(common, device, &args.model)?,
        None => return Err(Failure::file("cannot speak", "no codec beside the model", &args.model).hint("--mimi FILE")),
    };
    let path = args.mimi.as_ref().map_or(args.model.as_path(), Path::new);
    let checked = codec.check_voice(config.num_codebooks, 1..=config.vocab_size);
    checked.map_err(|why| Failure::file("cannot speak", why, path))?;
    Ok(codec)
}

/// How many frames may be said after a prompt of so many rows.
fn most_frames(args: &Speak, config: &Config, rows: usize) -> Result<usize> {
    let context = config.max_position_embeddings;
    let room = context.saturating_sub(rows);
    let why = match args.frames.map(usize::from) {
        _ if room == 0 => "no frame".to_owned(),
        Some(asked) if asked > room => format!("{room} frames, not for {asked}"),
        asked => return Ok(asked.unwrap_or(MOST_FRAMES.min(room))),
    };
    Err(Failure::work(format!("cannot speak: a prompt of {rows} rows leaves room for {why} in a memory of {context}")))
}

/// Rows of ids `[K + 1]`: those of the file whose mask is not zero.
fn read_rows(path: &Path, config: &Config) -> Result<Vec<i32>> {
    let file = Weights::open(path)?;
    let fail = |why: String| Failure::file("cannot use prompt", why, path);
    let width = config.num_codebooks + 1;
    let shape = file.view("ids")?.shape.to_vec();
    if !matches!(shape[..], [rows, w] if rows > 0 && w == width) {
        return Err(fail(format!("ids are {shape:?}, expected [1 or more, {width}]")));
    }
    let mask = file.view("mask")?;
    let there =
        mask.to_f32().filter(|_| mask.shape == shape).ok_or_else(|| fail(format!("mask is {:?}, expected {shape:?}", mask.shape)))?;
    let ids = file.to_i32("ids")?;
    if let Some(at) = (0..ids.len()).find(|&at| there[at] != 0.0 && ids[at] < 0) {
        return Err(fail(format!("id {} of row {}, column {}", ids[at], at / width, at % width)));
    }
    let rows: Vec<i32> = ids.iter().zip(&*there).map(|(&id, &there)| if there != 0.0 { id } else { NONE }).collect();
    config.check_rows(&rows).map_err(|why| fail(why.to_string()))?;
    Ok(rows)
}

/// Makes rows of text and sound.
struct Prompt<'a> {
    config: &'a Config,
    tokenizer: TokenizerJson,
    around: [i32; 2],
}

impl<'a> Prompt<'a> {
    fn new(args: &Speak, config: &'a Config) -> Result<Prompt<'a>> {
        let path = args.tokenizer.clone().unwrap_or_else(|| match args.model.is_dir() {
            true => args.model.join("tokenizer.json"),
            false => args.model.with_file_name("tokenizer.json"),
        });
        let tokenizer = TokenizerJson::open(&path)?;
        let fail = |why: String| Failure::file("cannot use tokenizer", why, &path);
        let known = config.text_vocab_size;
        if tokenizer.size() > known {
            return Err(fail(format!("{} tokens, the model has {known}", tokenizer.size())));
        }
        let id = |token: &str| tokenizer.id(token).ok_or_else(|| fail(format!("no token {token}: not of Llama 3")));
        let around = [id(BEGIN)?, id(END)?];
        Ok(Prompt { config, tokenizer, around })
    }

    fn rows(&self, args: &Speak, context: &[Segment], codec: Option<&Codec>) -> Result<Vec<i32>> {
        let mut rows = Vec::new();
        for segment in context {
            let speaker = if segment.named() { String::new() } else { format!("[{}]", args.speaker) };
            self.text(&mut rows, &format!("{speaker}{}", segment.words))?;
            if let Some(codec) = codec {
                self.sound(&mut rows, codec, segment.wav)?;
            }
        }
        self.text(&mut rows, &format!("[{}]{}", args.speaker, args.text.as_deref().unwrap_or_default()))?;
        self.config.check_rows(&rows)?;
        Ok(rows)
    }

    fn text(&self, rows: &mut Vec<i32>, text: &str) -> Result {
        let [begin, end] = self.around;
        for id in [&[begin], &self.tokenizer.encode(text)?[..], &[end]].concat() {
            rows.extend(std::iter::repeat_n(NONE, self.config.num_codebooks));
            rows.push(id);
        }
        Ok(())
    }

    /// A row for each frame, and one that ends them.
    fn sound(&self, rows: &mut Vec<i32>, codec: &Codec, path: &Path) -> Result {
        let (config, hop) = (self.config, codec.format().hop);
        let mut reader = AudioReader::open(path, Some(codec.format().sample_rate))?;
        let mut samples = Vec::new();
        for piece in &mut reader {
            samples.extend(piece?);
            if samples.len() / hop >= config.max_position_embeddings {
                let why = format!("longer than the model's memory of {} frames", config.max_position_embeddings);
                return Err(Failure::file("cannot use context", why, path));
            }
        }
        if samples.is_empty() {
            return Err(Failure::file("cannot use context", "no sound", path));
        }
        reader.warnings().iter().for_each(|w| terminal::warn(format!("{w} ({})", path.display())));
        let codes = codec.encode(&samples, config.num_codebooks)?;
        for frame in 0..codes.frames {
            rows.extend((0..config.num_codebooks).map(|k| codes.values[k * codes.frames + frame]));
            rows.push(NONE);
        }
        rows.extend(std::iter::repeat_n(config.codebook_eos_token_id, config.num_codebooks));
        rows.push(NONE);
        Ok(())
    }
}

/// Codes to sound, frame by frame, into a file.
struct Voice<'a> {
    codec: &'a Codec,
    session: CodecSession<'a>,
    wav: WavWriter,
    /// Codes that no codeword is for.
    strange: usize,
}

impl<'a> Voice<'a> {
    fn new(codec: &'a Codec, config: &Config, output: &Path) -> Result<Voice<'a>> {
        let session = warm_session(codec, config.num_codebooks)?;
        Ok(Voice { codec, session, wav: WavWriter::create(output, codec.format().sample_rate, WavFormat::S16)?, strange: 0 })
    }

    /// A model may draw a few codes more than its codec has; the first stands for them.
    fn say(&mut self, codes: &[i32]) -> Result {
        let known = |(&code, &size): (&i32, &usize)| usize::try_from(code).is_ok_and(|code| code < size).then_some(code);
        let codes: Vec<Option<i32>> = codes.iter().zip(&self.codec.format().codebook_sizes).map(known).collect();
        self.strange += codes.iter().filter(|code| code.is_none()).count();
        let codes: Vec<i32> = codes.into_iter().map(Option::unwrap_or_default).collect();
        let codes = Tensor::from_slice(self.codec.device(), &codes, [1, 1, codes.len()])?;
        let samples = self.codec.samples(&self.session.decode(&codes, None)?)?;
        Ok(self.wav.write(&samples)?)
    }
}

#[derive(Default)]
struct Clocks {
    prompt: Times,
    lm: Times,
    decode: Times,
    total: Times,
    first_audio: Option<f64>,
    seconds: f64,
    prompt_rows: usize,
    /// Whether the model said that it had said everything.
    ended: bool,
}

struct Speech<'a> {
    csm: &'a Csm,
    session: Session<'a>,
    voice: Option<Voice<'a>>,
    /// Frame by frame.
    codes: Vec<i32>,
    times: Clocks,
}

impl Speech<'_> {
    fn say(&mut self, rows: &[i32], most: usize) -> Result {
        let (csm, session, times) = (self.csm, &mut self.session, &mut self.times);
        let codebooks = csm.config().num_codebooks;
        let (began, bar) = (Instant::now(), terminal::progress(None, "speak"));
        times.prompt_rows = rows.len() / (codebooks + 1);
        let (before, last) = rows.split_at(rows.len() - (codebooks + 1));
        times.prompt.time(csm.device(), || Ok(session.prompt(before, None)?))?;
        let mut row = Tensor::from_slice(csm.device(), last, [1, codebooks + 1])?;
        for _ in 0..most {
            let start = Instant::now();
            let codes = times.lm.time(csm.device(), || {
                row = session.step(&row, None)?.said;
                Ok(row.to_vec::<i32>()?)
            })?;
            let codes = &codes[..codebooks];
            times.ended = csm.ends(codes);
            if times.ended {
                break;
            }
            self.codes.extend(codes);
            if let Some(voice) = &mut self.voice {
                times.decode.time(csm.device(), || voice.say(codes))?;
                times.first_audio.get_or_insert(began.elapsed().as_secs_f64());
            }
            times.total.push(start.elapsed());
            bar.inc(1);
        }
        bar.finish_and_clear();
        terminal::warn_without_graph(session.no_graph().or(self.voice.as_ref().and_then(|voice| voice.session.no_graph())));
        times.seconds = began.elapsed().as_secs_f64();
        Ok(())
    }

    fn finish(self, common: &Common, args: &Speak) -> Result {
        let (codebooks, times, csm) = (self.csm.config().num_codebooks, &self.times, self.csm);
        let frames = self.codes.len() / codebooks;
        if let Some(path) = &args.dump {
            let codes: Vec<i32> =
                (0..codebooks).flat_map(|k| (0..frames).map(move |t| (t, k))).map(|(t, k)| self.codes[t * codebooks + k]).collect();
            save(path, &[TensorRef::i32("codes", &[codebooks, frames], &codes)], &BTreeMap::new())?;
        }
        let mut rate = None;
        if let Some(voice) = self.voice {
            rate = Some(voice.codec.format().frame_rate());
            if voice.strange > 0 {
                terminal::warn(format!("{} codes have no codeword in {}; the first stood for them", voice.strange, voice.codec.name()));
            }
            voice.wav.finish()?;
        }
        if frames == 0 {
            terminal::warn("the model had nothing to say");
        }
        let spoken = rate.map(|rate| frames as f64 / rate);
        if common.json {
            return terminal::say_json(&json!({
                "model": csm.name(), "device": csm.device().name(), "dtype": csm.format().dtype.name(),
                "format": args.format.or(common.lm_int8()).map(Format::name), "seed": args.seed,
                "prompt_rows": times.prompt_rows, "steps": frames, "ended": times.ended, "seconds": times.seconds, "audio_seconds": spoken,
                "real_time_factor": spoken.filter(|&s| s > 0.0).map(|spoken| times.seconds / spoken),
                "prompt_ms": times.prompt.total().as_secs_f64() * 1e3,
                "frame_ms": {
                    "lm_p50": times.lm.percentile_ms(0.5), "decode_p50": times.decode.percentile_ms(0.5),
                    "total_p50": times.total.percentile_ms(0.5), "total_p99": times.total.percentile_ms(0.99),
                },
                "draft": args.draft.zip(self.session.drafted()).map(|(draft, drafted)| json!({
                    "codes": draft.codes, "layers": draft.layers, "passes_per_frame": drafted.passes_per_frame(),
                    "right_per_pass": drafted.right_per_pass(), "acceptance": drafted.acceptance(),
                })),
                "first_audio_ms": times.first_audio.map(|s| s * 1e3),
                "peak_rss_mb": peak_rss_mb(), "peak_vram_mb": peak_vram_mb(csm.device()),
            }));
        }
        let spoken = spoken.map_or(String::new(), |spoken| format!(", {spoken:.2} s of speech,"));
        terminal::note(format!(
            "{frames} frames{spoken} in {:.2} s: prompt of {} rows {:.0} ms, model p50 {:.2} ms, decode p50 {:.2} ms; in all p50 {:.2} ms, p99 {:.2} ms{}",
            times.seconds,
            times.prompt_rows,
            times.prompt.total().as_secs_f64() * 1e3,
            times.lm.percentile_ms(0.5),
            times.decode.percentile_ms(0.5),
            times.total.percentile_ms(0.5),
            times.total.percentile_ms(0.99),
            if times.ended { "" } else { "; it had not ended" },
        ));
        if let Some(drafted) = self.session.drafted() {
            let [passes, right] = [drafted.passes_per_frame(), drafted.right_per_pass()];
            terminal::note(format!("{passes:.1} passes of the depth decoder a frame, {right:.2} right guesses in each"));
        }
        Ok(())
    }
}
