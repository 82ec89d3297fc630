//! `swara-live`: a live full-duplex conversation with Moshi, from standard input to standard output.

mod pcm;
mod queue;

use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::{Value, json};
use swara::codec::{self, Times};
use swara::common::{Common, Conditioning, Format, Memory, Sampling};
use swara::dialogue::{self, Heard, Persona, Spoken};
use swara::failure::{Failure, Result, exit};
use swara::process::{Cpus, keep_freed_memory, lock_memory, peak_rss_mb, release_freed_memory};
use swara::terminal;
use swara_engine::codec::Codec;
use swara_engine::lm::Lm;
use swara_kernels::Device;
use swara_loader::output::AtomicFile;

use pcm::{Damage, Frames, Pcm};
use queue::{Overload, Queue};

/// A live full-duplex conversation: mono PCM in 80 ms frames on standard input, as much of the reply on standard output, its words on standard
/// error. Where there is no reply yet, it is silence. At the end of its input it says how long frames took.
#[derive(Parser)]
#[command(name = "swara-live", version)]
struct Live {
    #[command(flatten)]
    common: Common,
    /// Language model: a folder with its config.json, or a file
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Low-rank updates of its matrices, as moshi-finetune saves them; by default those that its config.json names
    #[arg(long, value_name = "FILE")]
    lora: Option<PathBuf>,
    /// Codec of what is heard and said: a file, or a folder; by default the one in the model's folder that its config.json names (mimi_name)
    #[arg(long, value_name = "FILE")]
    mimi: Option<PathBuf>,
    /// Of its weights; what the file has as codes stays so. By default --dtype, else f32. What is no codes beside int8 or int4: --dtype, else bf16
    #[arg(long, value_name = "FORMAT")]
    weights: Option<Format>,
    /// Vocabulary of its words, a sentencepiece .model; by default the one in the model's folder, which its config.json names (tokenizer_name)
    /// or which is the only one
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Of what comes and goes, in Hz; it must be the codec's
    #[arg(long, value_name = "HZ", default_value_t = 24000)]
    rate: u32,
    /// Of the samples that come and go, little-endian; what is beyond full scale is clipped, what is not finite is silence
    #[arg(long, value_name = "PCM", default_value = "s16")]
    format: Pcm,
    #[command(flatten)]
    persona: Persona,
    #[command(flatten)]
    memory: Memory,
    #[command(flatten)]
    sampling: Sampling,
    #[command(flatten)]
    conditioning: Conditioning,
    /// Input comes as it is spoken: a frame that finds the queue full drops the one that has waited longest, whose reply is silence, so that
    /// lag never grows; without this flag input waits and nothing is dropped, as is right for files
    #[arg(long)]
    realtime: bool,
    /// Frames that may wait for the model: with --realtime, lag is at most that of so many and of the one that is worked on
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1024))]
    queue: u16,
    /// Run on these CPUs alone, such as 0,2-3
    #[arg(long, value_name = "CPUS")]
    affinity: Option<Cpus>,
    /// Keep all memory from being paged out
    #[arg(long)]
    mlock: bool,
    /// Launch every kernel by itself, not a frame as one graph: stages are timed then
    #[arg(long)]
    no_graph: bool,
    /// Launch the kernels of the depth transformer by themselves, not all of a frame as one cooperative kernel
    #[arg(long)]
    plain_depth: bool,
    /// Programmatic dependent launch: kernels of a step start before the one before has ended and wait for it, weights asked for (sm_90
    /// and later). Not yet run or timed on a GPU
    #[arg(long)]
    pdl: bool,
    /// Write what is said at the end as one JSON object
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let began = Instant::now();
    exit(match Live::try_parse() {
        Ok(live) => run(&live, began),
        Err(error) => terminal::usage(&error, "swara-live --help"),
    })
}

fn run(args: &Live, began: Instant) -> Result {
    let common = &args.common;
    for (stream, is_terminal) in [("input", std::io::stdin().is_terminal()), ("output", std::io::stdout().is_terminal())] {
        if is_terminal {
            return Err(Failure::usage(format!("standard {stream} is a terminal, and samples are no text")));
        }
    }
    keep_freed_memory();
    // Before there are threads, which inherit it.
    args.affinity.as_ref().map_or(Ok(()), Cpus::bind)?;
    common.apply()?;
    args.persona.check()?;
    let report = args.json.as_ref().map(AtomicFile::create).transpose()?;
    let device = common.open_device()?;
    if args.pdl {
        terminal::dependent_launches(&device);
    }
    let mimi = dialogue::mimi(args.mimi.as_deref(), &args.model)?.ok_or_else(|| Failure::usage("--mimi: wants a codec"))?;
    let config = dialogue::config(&args.model)?;
    args.memory.check(&config)?;
    let conditions = args.conditioning.of(&config)?;
    let tokenizer = dialogue::tokenizer(args.tokenizer.as_deref(), &args.model, &config)?;
    args.persona.check_for(&config, tokenizer.as_ref())?;
    let (codec, lm) = open(args, &mimi, &device)?;
    dialogue::check_codec(&codec, lm.config(), &mimi)?;
    if args.rate != codec.format().sample_rate {
        return Err(Failure::usage(format!("--rate: {} Hz, the codec has {}", args.rate, codec.format().sample_rate)));
    }
    let queue = listen(args, &codec)?;
    let drawing = args.sampling.of(&lm);
    let dialogue = Spoken::new(&lm, Some(&codec), tokenizer.as_ref(), drawing, &conditions)?
        .graphs(!args.no_graph)
        .plain_depth(args.plain_depth)
        .live()?;
    let dialogue = dialogue.prompt(&args.persona, &args.persona.heard(Some(&codec))?)?;
    release_freed_memory();
    if args.mlock {
        lock_memory()?;
    }
    let mut conversation = Conversation::new(args, &codec, dialogue, began);
    conversation.run(&queue)?;
    conversation.finish(args, &queue, report)
}

/// Both models, on the CPU side by side.
fn open(args: &Live, mimi: &Path, device: &Device) -> Result<(Codec, Lm)> {
    let format = args.memory.of(args.common.lm_format(args.weights)?);
    let codec = || codec::open_file(&args.common, device, mimi);
    let lm = || dialogue::open_lm(&args.model, args.lora.as_deref(), device, format);
    std::thread::scope(|scope| {
        let other = match device {
            Device::Cpu => std::thread::Builder::new().spawn_scoped(scope, codec).ok(),
            Device::Cuda(_) => None,
        };
        let Some(other) = other else { return Ok((codec()?, lm()?)) };
        let lm = lm();
        let codec = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((codec?, lm?))
    })
}

/// Starts to read standard input into a queue.
fn listen(args: &Live, codec: &Codec) -> Result<Arc<Queue>> {
    let overload = if args.realtime { Overload::DropOldest } else { Overload::Wait };
    let queue = Arc::new(Queue::new(args.queue.into(), overload));
    let (filled, pcm, hop) = (queue.clone(), args.format, codec.format().hop);
    // Left alone when the process ends: it may never come back from reading.
    std::thread::Builder::new()
        .name("listen".to_owned())
        .spawn(move || {
            let mut frames = Frames::new(std::io::stdin().lock(), pcm, hop);
            filled.end(loop {
                match frames.next() {
                    Ok(Some(frame)) => filled.push(frame),
                    Ok(None) => break Ok(frames.damage),
                    Err(e) => break Err(e),
                }
            });
        })
        .map_err(|e| Failure::work(format!("cannot start threads: {e}")))?;
    Ok(queue)
}

/// One stream, what is written of it and how long that took.
struct Conversation<'a> {
    dialogue: Spoken<'a>,
    pcm: Pcm,
    /// A frame lasts.
    period: Duration,
    bytes: Vec<u8>,
    realtime: bool,
    frames: u64,
    /// Frames whose reply was written more than a frame after they had come; without --realtime, after they were taken.
    late: u64,
    /// From when a frame had come to when its reply was written.
    lag: Times,
    began: Instant,
    ready: Duration,
    first_reply: Option<Duration>,
}

/// Writes so many samples of silence, however many were missed.
fn silence(out: &mut impl Write, samples: usize, pcm: Pcm) -> std::io::Result<()> {
    std::io::copy(&mut std::io::repeat(0).take((samples as u64).saturating_mul(pcm.bytes() as u64)), out).map(drop)
}

impl<'a> Conversation<'a> {
    fn new(args: &Live, codec: &Codec, dialogue: Spoken<'a>, began: Instant) -> Conversation<'a> {
        let format = codec.format();
        Conversation {
            dialogue,
            pcm: args.format,
            period: Duration::from_secs_f64(format.hop as f64 / f64::from(format.sample_rate)),
            bytes: Vec::new(),
            realtime: args.realtime,
            frames: 0,
            late: 0,
            lag: Times::default(),
            began,
            ready: began.elapsed(),
            first_reply: None,
        }
    }

    fn run(&mut self, queue: &Queue) -> Result {
        while let Some(next) = queue.pop() {
            let since = if self.realtime { next.since } else { Instant::now() };
            let turn = self.dialogue.step(Heard::Samples(&next.frame.samples))?;
            self.bytes.clear();
            let mut missed = next.missed;
            match &turn.samples {
                Some(samples) => self.pcm.write(&samples[..next.frame.real], &mut self.bytes),
                None => missed += next.frame.real,
            }
            let mut out = std::io::stdout().lock();
            let written = silence(&mut out, missed, self.pcm).and_then(|()| out.write_all(&self.bytes)).and_then(|()| out.flush());
            written.map_err(|e| Failure::stdout(&e))?;
            drop(out);
            if turn.samples.is_some() {
                self.first_reply.get_or_insert(self.began.elapsed());
            }
            let lag = since.elapsed();
            self.lag.push(lag);
            self.late += u64::from(lag > self.period);
            self.frames += 1;
            terminal::murmur(&turn.words);
        }
        Ok(())
    }

    fn finish(mut self, args: &Live, queue: &Queue, report: Option<AtomicFile>) -> Result {
        if let Some(words) = self.dialogue.last_words() {
            terminal::murmur(&words);
        }
        let (end, dropped) = queue.finish();
        terminal::note(self.summary(dropped));
        if let Some(mut file) = report {
            file.write(format!("{}\n", self.json(args, dropped)).as_bytes())?;
            file.commit()?;
        }
        let Damage { stray, not_finite, clipped } = end.map_err(|e| Failure::work(format!("cannot read: {e} (standard input)")))?;
        for (count, what) in [
            (stray as u64, "bytes at the end are no whole sample and were not heard"),
            (not_finite, "samples were no finite numbers and were heard as silence"),
            (clipped, "samples were beyond full scale and were clipped"),
        ] {
            if count > 0 {
                terminal::warn(format!("{count} {what}"));
            }
        }
        Ok(())
    }

    /// Kinds of work, and their times.
    fn times(&self) -> Vec<(&'static str, &Times)> {
        self.dialogue.times.rows().into_iter().chain([("lag", &self.lag)]).collect()
    }

    fn summary(&self, dropped: u64) -> String {
        let ms = |t: Option<Duration>| t.map_or("-".to_owned(), |t| format!("{:.0} ms", t.as_secs_f64() * 1e3));
        let row = |(what, times): (&str, &Times)| {
            let figures = [times.percentile_ms(0.5), times.percentile_ms(0.99), times.max_ms()];
            [what.to_owned()].into_iter().chain(figures.iter().map(|ms| format!("{ms:.2}"))).collect::<Vec<_>>()
        };
        let rows: Vec<_> = self.times().into_iter().map(row).collect();
        let (frames, late) = (self.frames, self.late);
        format!(
            "{}\n{frames} frames answered, {} of them one graph each, {late} late, {dropped} dropped; ready {} after the start, first reply {}",
            terminal::table(&["ms a frame", "p50", "p99", "max"], &rows),
            self.dialogue.times.graphs,
            ms(Some(self.ready)),
            ms(self.first_reply),
        )
    }

    fn json(&self, args: &Live, dropped: u64) -> Value {
        let times = self.times().into_iter().flat_map(|(what, times)| {
            let figures = [("p50", times.percentile_ms(0.5)), ("p99", times.percentile_ms(0.99)), ("max", times.max_ms())];
            figures.map(|(share, ms)| (format!("{what}_{share}"), ms.into()))
        });
        json!({
            "frames": self.frames, "prompt_steps": self.dialogue.prompted, "graphs": self.dialogue.times.graphs, "late": self.late, "dropped": dropped, "realtime": args.realtime, "queue": args.queue,
            "ready_ms": self.ready.as_secs_f64() * 1e3, "first_reply_ms": self.first_reply.map(|t| t.as_secs_f64() * 1e3),
            "frame_ms": times.collect::<serde_json::Map<String, Value>>(), "peak_rss_mb": peak_rss_mb(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_takes_no_memory() {
        let mut full = [1u8; 4096];
        let refused = silence(&mut &mut full[..], usize::MAX, Pcm::F32).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::WriteZero);
        assert_eq!(full, [0; 4096]);
        let mut some = Vec::new();
        silence(&mut some, 5, Pcm::S16).unwrap();
        assert_eq!(some, [0; 10]);
    }
}
