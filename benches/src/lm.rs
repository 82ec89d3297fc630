//! Steps of a language model, one at a time, as a conversation makes them.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use swara_engine::codec::Codec;
use swara_engine::csm::{self, Csm, Draft, Drafted};
use swara_engine::dialogue::{Dialogue, Heard};
use swara_engine::lm::{Drawing, Drawn, Lm, Session};
use swara_engine::{Error, Result};
use swara_kernels::case::SplitMix;
use swara_kernels::ops::attention::Kept;
use swara_kernels::ops::embedding::NONE;
use swara_kernels::ops::sample::Settings;
use swara_kernels::{Device, Tensor};

use crate::ceilings::{Ceilings, Reading};
use crate::timing::Samples;

/// Wall times of one step of `batch` streams, from codes in host memory to codes in host memory: both transformers and every draw. With a
/// codec, of one frame of one stream, from samples to samples. On the CPU, 256 MiB of other memory are read between steps: no step finds
/// in a cache what the one before left there.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    pub config: String,
    pub format: String,
    pub device: String,
    pub batch: usize,
    /// Steps that attention sees at most.
    pub context: usize,
    /// What keys and values are kept as.
    #[serde(default)]
    pub kv: String,
    /// Of these steps, the first of the stream.
    #[serde(default)]
    pub sinks: usize,
    /// Of the tables that a Moshi's temporal transformer is fed from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table_bytes: Option<usize>,
    pub step_ms_p50: f64,
    pub step_ms_p99: f64,
    pub step_ms_max: f64,
    /// The median's 95 % confidence interval.
    pub step_ms_low: f64,
    pub step_ms_high: f64,
    pub steps: usize,
    /// Of the matrices that a step multiplies by, each as often as it does, and of keys and values half-way through the steps.
    pub bytes_per_step: usize,
    /// What hears and speaks, if anything does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub codec: Option<String>,
    /// How codes are guessed, if they are: most of a pass, and layers that guess.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draft: Option<String>,
    /// The share of guesses that were made right, if they were not the draft's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub right: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guesses: Option<Guesses>,
    /// Whether steps on CUDA may be graphs.
    #[serde(default = "yes")]
    pub graphs: bool,
    /// Whether the depth transformer is launched kernel by kernel where it may be one launch.
    #[serde(default)]
    pub plain_depth: bool,
    /// Whether kernels start before the one before has ended where they may.
    #[serde(default)]
    pub pdl: bool,
    /// Kernels and graphs that the host queues for a step, beside copies; none on the CPU.
    pub launches_per_step: Option<u64>,
    /// The kernels in it.
    #[serde(default)]
    pub kernels_per_step: Option<u64>,
    /// The time to read these bytes at the measured bandwidth, divided by the median.
    pub share_of_ceiling: f64,
    /// The same by what reading took right after each step, the median of steps: what the bandwidth was then, not at its best. On the CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share_of_reading: Option<f64>,
    pub ceiling_gb_s: f64,
    /// By how much the ceilings moved.
    pub drift: f64,
    /// Most memory of the process in MiB since the model was begun.
    pub peak_rss_mb: Option<f64>,
    /// The same since the model was there.
    #[serde(default)]
    pub steps_peak_rss_mb: Option<f64>,
}

/// What became of guesses, those of the steps before the timed ones among them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Guesses {
    /// Of each code, how many of those looked at were right.
    pub acceptance: Vec<Option<f64>>,
    pub right_per_pass: f64,
    pub passes_per_step: f64,
    /// To the median without guesses, of steps in turns.
    pub time_ratio: f64,
}

fn yes() -> bool {
    true
}

/// What makes steps.
pub enum Model {
    Moshi(Box<Lm>),
    Csm(Box<Csm>),
}

impl Model {
    pub fn device(&self) -> &Device {
        match self {
            Model::Moshi(lm) => lm.device(),
            Model::Csm(csm) => csm.device(),
        }
    }

    /// Codebooks that it hears.
    fn heard(&self) -> usize {
        match self {
            Model::Moshi(lm) => lm.config().heard(),
            Model::Csm(_) => 0,
        }
    }

    /// Steps that attention sees at most.
    fn context(&self) -> usize {
        match self {
            Model::Moshi(lm) => lm.config().context.unwrap_or(1),
            Model::Csm(csm) => csm.config().max_position_embeddings,
        }
    }

    fn kept(&self) -> Kept {
        match self {
            Model::Moshi(lm) => lm.kept(),
            Model::Csm(csm) => csm.kept(),
        }
    }

    fn sinks(&self) -> usize {
        match self {
            Model::Moshi(lm) => lm.format().sinks,
            Model::Csm(_) => 0,
        }
    }

    fn table_bytes(&self) -> Option<usize> {
        match self {
            Model::Moshi(lm) => Some(lm.table_bytes()),
            Model::Csm(_) => None,
        }
    }

    fn bytes_per_step(&self, seen: usize, guessed: Option<(Draft, &Drafted)>) -> usize {
        match (self, guessed) {
            (Model::Moshi(lm), _) => lm.bytes_per_step(seen),
            (Model::Csm(csm), None) => csm.bytes_per_step(seen),
            (Model::Csm(csm), Some((draft, drafted))) => csm.bytes_per_drafted_step(seen, draft, drafted),
        }
    }

    /// The steps of so many streams, which draw as they do by default.
    fn streams<'a>(&'a self, batch: usize, how: How<'a>) -> Result<Streams<'a>> {
        if how.draft.is_some() && !matches!(self, Model::Csm(_)) {
            return Err(Error::Argument(
                "only the depth decoder of a CSM is drafted: that of a Moshi has other weights for every code".into(),
            ));
        }
        let mut streams = match (self, how.codec) {
            (Model::Moshi(lm), Some(codec)) if batch == 1 => {
                let mut dialogue = Dialogue::new(lm, Some(codec), Drawing::seeded(&Drawn::default(), 0))?;
                dialogue.graphs(how.graphs);
                dialogue.plain_depth(how.plain_depth);
                return Ok(Streams::Frames(codec, Box::new(dialogue.live()?)));
            }
            (_, Some(_)) => return Err(Error::Argument("frames are of one stream of a model that hears and speaks".into())),
            (Model::Moshi(lm), None) => {
                let drawing: Vec<Drawing> = (0..batch as u64).map(|stream| Drawing::seeded(&Drawn::default(), stream)).collect();
                Streams::Moshi(lm, Box::new(Session::new(lm, &drawing)?))
            }
            (Model::Csm(csm), None) => {
                let settings = |seed| Settings { temperature: 0.9, top_k: 50, seed, sequence: 0 };
                let drawing: Vec<Settings> = (0..batch as u64).map(settings).collect();
                let mut session = csm::Session::new(csm, &drawing)?;
                session.draft(how.draft)?;
                Streams::Csm(csm, Box::new(session))
            }
        };
        match &mut streams {
            Streams::Moshi(_, session) => {
                session.graphs(how.graphs);
                session.plain_depth(how.plain_depth);
            }
            Streams::Csm(_, session) => {
                session.graphs(how.graphs);
                session.plain_depth(how.plain_depth);
            }
            Streams::Frames(..) => {}
        }
        Ok(streams)
    }
}

/// What is timed.
#[derive(Clone, Copy)]
pub struct How<'a> {
    /// Whether steps may be graphs.
    pub graphs: bool,
    /// Whether the depth transformer is launched kernel by kernel where it may be one launch.
    pub plain_depth: bool,
    /// Whether kernels start before the one before has ended where they may.
    pub pdl: bool,
    /// Frames from samples to samples through it, not steps from codes to codes.
    pub codec: Option<&'a Codec>,
    /// How a CSM guesses codes.
    pub draft: Option<Draft>,
    /// Not the draft's own guesses: with this probability what is said, else something else.
    pub right: Option<f64>,
}

enum Streams<'a> {
    Frames(&'a Codec, Box<Dialogue<'a>>),
    Moshi(&'a Lm, Box<Session<'a>>),
    Csm(&'a Csm, Box<csm::Session<'a>>),
}

impl Streams<'_> {
    /// Why steps are no graphs where they were to be.
    fn no_graph(&self) -> Option<&str> {
        match self {
            Streams::Frames(_, dialogue) => dialogue.no_graph(),
            Streams::Moshi(_, session) => session.no_graph(),
            Streams::Csm(_, session) => session.no_graph(),
        }
    }

    /// Why the depth transformer is launched kernel by kernel where it was to be one launch.
    fn plain_depth_why(&self) -> Option<String> {
        match self {
            Streams::Frames(_, dialogue) => dialogue.plain_depth_why(),
            Streams::Moshi(_, session) => session.plain_depth_why(),
            Streams::Csm(_, session) => session.plain_depth_why(),
        }
    }

    /// One step of codes made up, from host memory to host memory: its seconds, and the codes that were said, of frames none.
    fn step(&mut self, batch: usize, step: usize) -> Result<(f64, Vec<i32>)> {
        let codes = |width: usize, card: usize| -> Vec<i32> { (0..batch * width).map(|i| ((step * 31 + i * 17) % card) as i32).collect() };
        match self {
            Streams::Frames(codec, dialogue) => {
                let hop = codec.format().hop;
                // Never silence: denormals and zeros are not what speech costs.
                let sample = |i: usize| 0.3 * ((step * hop + i) as f32 * 0.037).sin() * (i as f32 * 0.0011).cos();
                let samples: Vec<f32> = (0..hop).map(sample).collect();
                let start = Instant::now();
                dialogue.step(Heard::Samples(&samples))?;
                Ok((start.elapsed().as_secs_f64(), Vec::new()))
            }
            Streams::Moshi(lm, session) => {
                let (heard, card) = (lm.config().heard(), lm.config().card);
                let codes = codes(heard, card);
                let start = Instant::now();
                let codes = Tensor::from_slice(lm.device(), &codes, [batch, heard])?;
                let said = session.step(&codes, None)?.complete.to_vec::<i32>()?;
                Ok((start.elapsed().as_secs_f64(), said))
            }
            Streams::Csm(csm, session) => {
                let width = csm.config().num_codebooks + 1;
                let mut row = codes(width, csm.config().vocab_size);
                row.iter_mut().skip(width - 1).step_by(width).for_each(|text| *text = NONE);
                let start = Instant::now();
                let row = Tensor::from_slice(csm.device(), &row, [batch, width])?;
                let said = session.step(&row, None)?.said.to_vec::<i32>()?;
                Ok((start.elapsed().as_secs_f64(), said))
            }
        }
    }
    /// What became of guesses.
    fn drafted(&self) -> Option<&Drafted> {
        match self {
            Streams::Csm(_, session) => session.drafted(),
            _ => None,
        }
    }

    /// Guesses what is `said` next, each code with the probability `right`, else another.
    fn guess(&mut self, said: &[i32], right: f64, rng: &mut SplitMix) -> Result<()> {
        let Streams::Csm(csm, session) = self else { return Ok(()) };
        let (codebooks, vocab) = (csm.config().num_codebooks, csm.config().vocab_size as i32);
        let guess = |&code: &i32| if rng.uniform() < right { code } else { (code + 1) % vocab };
        session.guess(&said[..codebooks].iter().map(guess).collect::<Vec<_>>())
    }
}

/// Steps that are not timed.
const WARMUP: usize = 5;

/// Seconds of `steps` steps of a model, and what the host launched in one.
pub struct Times {
    batch: usize,
    steps: Samples,
    /// Seconds that a byte took to be read after each step, by those of the step.
    readings: Option<Samples>,
    /// Launches and kernels of a step.
    launches: Option<[u64; 2]>,
    graphs: bool,
    plain_depth: bool,
    pdl: bool,
    codec: Option<String>,
    /// Of the codec's weights.
    codec_bytes: usize,
    drafted: Option<(Draft, Drafted)>,
    right: Option<f64>,
    /// Why steps were no graphs where they were to be.
    pub no_graph: Option<String>,
    /// Why the depth transformer was launched kernel by kernel where it was to be one launch.
    pub plain_depth_why: Option<String>,
}

/// One way to make steps, at work.
struct Lane<'a> {
    how: How<'a>,
    streams: Streams<'a>,
    seconds: Vec<f64>,
    readings: Vec<f64>,
    launches: [u64; 2],
}

impl Times {
    /// Steps made in several ways, in turns, since what disturbs the machine then disturbs all. All say the same: a step that differs from
    /// the first way's, from which guesses are made that are to be right, is an error.
    pub fn take(model: &Model, batch: usize, steps: usize, hows: &[How]) -> Result<Vec<Times>> {
        let lane =
            |&how| Ok(Lane { how, streams: model.streams(batch, how)?, seconds: Vec::new(), readings: Vec::new(), launches: [0; 2] });
        let mut lanes = hows.iter().map(lane).collect::<Result<Vec<_>>>()?;
        let launched = || match model.device() {
            Device::Cpu => None,
            Device::Cuda(cuda) => Some([cuda.launches(), cuda.kernels()]),
        };
        let reading = matches!(model.device(), Device::Cpu).then(Reading::new).transpose()?;
        let mut rng = SplitMix(1);
        for step in 0..WARMUP + steps {
            let mut first: Option<Vec<i32>> = None;
            for Lane { how, streams, seconds, readings, launches } in &mut lanes {
                if let (Some(right), Some(said)) = (how.right, &first) {
                    streams.guess(said, right, &mut rng)?;
                }
                let before = launched();
                // What a graph is made of is decided when it is recorded, in one of the first steps.
                model.device().dependent_launches(how.pdl)?;
                let stepped = streams.step(batch, step);
                model.device().dependent_launches(false)?;
                let (taken, said) = stepped?;
                if step >= WARMUP {
                    seconds.push(taken);
                    if let Some(reading) = &reading {
                        readings.push(reading.now()? / taken);
                    }
                    if let Some((before, after)) = before.zip(launched()) {
                        *launches = std::array::from_fn(|i| launches[i] + after[i] - before[i]);
                    }
                }
                if *first.get_or_insert_with(|| said.clone()) != said {
                    let why = how.draft.map_or_else(|| "--pdl".to_owned(), |draft| format!("{draft:?}"));
                    return Err(Error::Argument(format!("step {step} says other codes with {why} than without")));
                }
            }
        }
        lanes.into_iter().map(|lane| Times::of(lane, model, batch)).collect()
    }

    fn of(lane: Lane, model: &Model, batch: usize) -> Result<Times> {
        let Lane { how, streams, seconds, readings, launches } = lane;
        let launches = launches.map(|count| count / seconds.len().max(1) as u64);
        Ok(Times {
            batch,
            launches: matches!(model.device(), Device::Cuda(_)).then_some(launches),
            graphs: how.graphs,
            plain_depth: how.plain_depth,
            pdl: how.pdl,
            codec: how.codec.map(|codec| codec.name().to_owned()),
            codec_bytes: how.codec.map_or(0, |codec| codec.bytes(model.heard())),
            drafted: how.draft.zip(streams.drafted().cloned()),
            right: how.right,
            no_graph: streams.no_graph().map(str::to_owned),
            plain_depth_why: streams.plain_depth_why(),
            readings: Samples::new(readings),
            steps: Samples::new(seconds).ok_or_else(|| Error::Argument("no steps to time".into()))?,
        })
    }

    /// `plain` are the steps without guesses that these were in turns with.
    pub fn row(
        &self,
        plain: &Times,
        lm: &Model,
        config: &str,
        format: &str,
        ceilings: &Ceilings,
        [loading, stepping]: [Option<f64>; 2],
    ) -> Row {
        let Times { batch, steps, readings, launches, graphs, plain_depth, pdl, codec, codec_bytes, drafted, right, .. } = self;
        let drafted = drafted.as_ref().map(|(draft, drafted)| (*draft, drafted));
        let remembered = lm.bytes_per_step(WARMUP + steps.len() / 2, None) - lm.bytes_per_step(0, None);
        let bytes = lm.bytes_per_step(0, drafted) + batch * remembered + codec_bytes;
        let (low, high) = steps.median_interval(1.96);
        Row {
            config: config.to_owned(),
            format: format.to_owned(),
            device: lm.device().name(),
            batch: *batch,
            context: lm.context(),
            kv: lm.kept().name().to_owned(),
            sinks: lm.sinks(),
            table_bytes: lm.table_bytes(),
            step_ms_p50: steps.quantile(0.5) * 1e3,
            step_ms_p99: steps.quantile(0.99) * 1e3,
            step_ms_max: steps.quantile(1.0) * 1e3,
            step_ms_low: low * 1e3,
            step_ms_high: high * 1e3,
            steps: steps.len(),
            bytes_per_step: bytes,
            codec: codec.clone(),
            draft: drafted.map(|(draft, _)| format!("{}:{}", draft.codes, draft.layers)),
            right: *right,
            guesses: drafted.map(|(_, drafted)| Guesses {
                acceptance: drafted.acceptance(),
                right_per_pass: drafted.right_per_pass(),
                passes_per_step: drafted.passes_per_frame(),
                time_ratio: steps.median() / plain.steps.median(),
            }),
            graphs: *graphs,
            plain_depth: *plain_depth,
            pdl: *pdl,
            launches_per_step: launches.map(|[launches, _]| launches),
            kernels_per_step: launches.map(|[_, kernels]| kernels),
            share_of_ceiling: bytes as f64 / ceilings.bytes / steps.median(),
            share_of_reading: readings.as_ref().map(|readings| bytes as f64 * readings.median()),
            ceiling_gb_s: ceilings.bytes * 1e-9,
            drift: ceilings.drift,
            peak_rss_mb: loading.zip(stepping).map(|(loading, stepping)| loading.max(stepping)),
            steps_peak_rss_mb: stepping,
        }
    }
}
