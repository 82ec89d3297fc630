//! Steps of a language model, one at a time, as a conversation makes them.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use swara_engine::codec::Codec;
use swara_engine::csm::{self, Csm};
use swara_engine::dialogue::{Dialogue, Heard};
use swara_engine::lm::{Drawing, Drawn, Lm, Session};
use swara_engine::{Error, Result};
use swara_kernels::ops::attention::Kept;
use swara_kernels::ops::embedding::NONE;
use swara_kernels::ops::sample::Settings;
use swara_kernels::{Device, Tensor};

use crate::ceilings::Ceilings;
use crate::timing::Samples;

/// Wall times of one step of `batch` streams, from codes in host memory to codes in host memory: both transformers and every draw. With a
/// codec, of one frame of one stream, from samples to samples.
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
    /// Whether steps on CUDA may be graphs.
    #[serde(default = "yes")]
    pub graphs: bool,
    /// Whether the depth transformer is launched kernel by kernel where it may be one launch.
    #[serde(default)]
    pub plain_depth: bool,
    /// Kernels and graphs that the host queues for a step, beside copies; none on the CPU.
    pub launches_per_step: Option<u64>,
    /// The kernels in it.
    #[serde(default)]
    pub kernels_per_step: Option<u64>,
    /// The time to read these bytes at the measured bandwidth, divided by the median.
    pub share_of_ceiling: f64,
    pub ceiling_gb_s: f64,
    /// By how much the ceilings moved.
    pub drift: f64,
    /// Most memory of the process in MiB since the model was begun.
    pub peak_rss_mb: Option<f64>,
    /// The same since the model was there.
    #[serde(default)]
    pub steps_peak_rss_mb: Option<f64>,
}

fn yes() -> bool {
    true
}

/// What makes steps.
pub enum Model {
    Moshi(Lm),
    Csm(Csm),
}

impl Model {
    fn device(&self) -> &Device {
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

    fn bytes_per_step(&self, seen: usize) -> usize {
        match self {
            Model::Moshi(lm) => lm.bytes_per_step(seen),
            Model::Csm(csm) => csm.bytes_per_step(seen),
        }
    }

    /// The steps of so many streams, which draw as they do by default.
    fn streams<'a>(&'a self, batch: usize, how: How<'a>) -> Result<Streams<'a>> {
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
                Streams::Csm(csm, Box::new(csm::Session::new(csm, &drawing)?))
            }
        };
        match &mut streams {
            Streams::Moshi(_, session) => {
                session.graphs(how.graphs);
                session.plain_depth(how.plain_depth);
            }
            Streams::Csm(_, session) => session.graphs(how.graphs),
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
    /// Whether Moshi's depth transformer is launched kernel by kernel where it may be one launch.
    pub plain_depth: bool,
    /// Frames from samples to samples through it, not steps from codes to codes.
    pub codec: Option<&'a Codec>,
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

    /// One step of codes made up, from host memory to host memory; its seconds.
    fn step(&mut self, batch: usize, step: usize) -> Result<f64> {
        let codes = |width: usize, card: usize| -> Vec<i32> { (0..batch * width).map(|i| ((step * 31 + i * 17) % card) as i32).collect() };
        match self {
            Streams::Frames(codec, dialogue) => {
                let hop = codec.format().hop;
                // Never silence: denormals and zeros are not what speech costs.
                let sample = |i: usize| 0.3 * ((step * hop + i) as f32 * 0.037).sin() * (i as f32 * 0.0011).cos();
                let samples: Vec<f32> = (0..hop).map(sample).collect();
                let start = Instant::now();
                dialogue.step(Heard::Samples(&samples))?;
                Ok(start.elapsed().as_secs_f64())
            }
            Streams::Moshi(lm, session) => {
                let (heard, card) = (lm.config().heard(), lm.config().card);
                let codes = codes(heard, card);
                let start = Instant::now();
                let codes = Tensor::from_slice(lm.device(), &codes, [batch, heard])?;
                session.step(&codes, None)?.complete.to_vec::<i32>()?;
                Ok(start.elapsed().as_secs_f64())
            }
            Streams::Csm(csm, session) => {
                let width = csm.config().num_codebooks + 1;
                let mut row = codes(width, csm.config().vocab_size);
                row.iter_mut().skip(width - 1).step_by(width).for_each(|text| *text = NONE);
                let start = Instant::now();
                let row = Tensor::from_slice(csm.device(), &row, [batch, width])?;
                session.step(&row, None)?.said.to_vec::<i32>()?;
                Ok(start.elapsed().as_secs_f64())
            }
        }
    }
}

/// Steps that are not timed.
const WARMUP: usize = 5;

/// Seconds of `steps` steps of a model, and what the host launched in one.
pub struct Times {
    batch: usize,
    steps: Samples,
    /// Launches and kernels of a step.
    launches: Option<[u64; 2]>,
    graphs: bool,
    plain_depth: bool,
    codec: Option<String>,
    /// Of the codec's weights.
    codec_bytes: usize,
    /// Why steps were no graphs where they were to be.
    pub no_graph: Option<String>,
}

impl Times {
    pub fn take(model: &Model, batch: usize, steps: usize, how: How) -> Result<Times> {
        let mut streams = model.streams(batch, how)?;
        let launched = || match model.device() {
            Device::Cpu => None,
            Device::Cuda(cuda) => Some([cuda.launches(), cuda.kernels()]),
        };
        let (mut seconds, mut before) = (Vec::with_capacity(steps), launched());
        for step in 0..WARMUP + steps {
            if step == WARMUP {
                before = launched();
            }
            let taken = streams.step(batch, step)?;
            if step >= WARMUP {
                seconds.push(taken);
            }
        }
        let each = |(before, after): ([u64; 2], [u64; 2])| std::array::from_fn(|i| (after[i] - before[i]) / steps.max(1) as u64);
        let launches = before.zip(launched()).map(each);
        let no_graph = streams.no_graph().map(str::to_owned);
        let steps = Samples::new(seconds).ok_or_else(|| Error::Argument("no steps to time".into()))?;
        let codec = how.codec.map(|codec| codec.name().to_owned());
        let codec_bytes = how.codec.map_or(0, |codec| codec.bytes(model.heard()));
        Ok(Times { batch, steps, launches, graphs: how.graphs, plain_depth: how.plain_depth, codec, codec_bytes, no_graph })
    }

    pub fn row(&self, lm: &Model, config: &str, format: &str, ceilings: &Ceilings, [loading, stepping]: [Option<f64>; 2]) -> Row {
        let Times { batch, steps, launches, graphs, plain_depth, codec, codec_bytes, no_graph: _ } = self;
        let remembered = lm.bytes_per_step(WARMUP + steps.len() / 2) - lm.bytes_per_step(0);
        let bytes = lm.bytes_per_step(0) + batch * remembered + codec_bytes;
        let (low, high) = steps.median_interval(1.96);
        Row {
            config: config.to_owned(),
            format: format.to_owned(),
            device: lm.device().name(),
            batch: *batch,
            context: lm.context(),
            kv: lm.kept().name().to_owned(),
            step_ms_p50: steps.quantile(0.5) * 1e3,
            step_ms_p99: steps.quantile(0.99) * 1e3,
            step_ms_max: steps.quantile(1.0) * 1e3,
            step_ms_low: low * 1e3,
            step_ms_high: high * 1e3,
            steps: steps.len(),
            bytes_per_step: bytes,
            codec: codec.clone(),
            graphs: *graphs,
            plain_depth: *plain_depth,
            launches_per_step: launches.map(|[launches, _]| launches),
            kernels_per_step: launches.map(|[_, kernels]| kernels),
            share_of_ceiling: bytes as f64 / ceilings.bytes / steps.median(),
            ceiling_gb_s: ceilings.bytes * 1e-9,
            drift: ceilings.drift,
            peak_rss_mb: loading.zip(stepping).map(|(loading, stepping)| loading.max(stepping)),
            steps_peak_rss_mb: stepping,
        }
    }
}
