//! Steps of a language model, one at a time, as a conversation makes them.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use swara_engine::csm::{self, Csm};
use swara_engine::lm::{Drawing, Drawn, Lm, Session};
use swara_engine::{Error, Result};
use swara_kernels::ops::attention::Kept;
use swara_kernels::ops::embedding::NONE;
use swara_kernels::ops::sample::Settings;
use swara_kernels::{Device, Tensor};

use crate::ceilings::Ceilings;
use crate::timing::Samples;

/// Wall times of one step of `batch` streams, from codes in host memory to codes in host memory: both transformers and every draw.
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
    /// What the host queues for a step; none on the CPU.
    pub launches_per_step: Option<u64>,
    /// The time to read these bytes at the measured bandwidth, divided by the median.
    pub share_of_ceiling: f64,
    pub ceiling_gb_s: f64,
    /// By how much the ceilings moved.
    pub drift: f64,
    /// Of the process, since the model was begun.
    pub peak_rss_mb: Option<f64>,
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
    fn streams(&self, batch: usize) -> Result<Streams<'_>> {
        Ok(match self {
            Model::Moshi(lm) => {
                let drawing: Vec<Drawing> = (0..batch as u64).map(|stream| Drawing::seeded(&Drawn::default(), stream)).collect();
                Streams::Moshi(lm, Box::new(Session::new(lm, &drawing)?))
            }
            Model::Csm(csm) => {
                let settings = |seed| Settings { temperature: 0.9, top_k: 50, seed, sequence: 0 };
                let drawing: Vec<Settings> = (0..batch as u64).map(settings).collect();
                Streams::Csm(csm, Box::new(csm::Session::new(csm, &drawing)?))
            }
        })
    }
}

enum Streams<'a> {
    Moshi(&'a Lm, Box<Session<'a>>),
    Csm(&'a Csm, Box<csm::Session<'a>>),
}

impl Streams<'_> {
    /// One step of codes made up, from host memory to host memory; its seconds.
    fn step(&mut self, batch: usize, step: usize) -> Result<f64> {
        let codes = |width: usize, card: usize| -> Vec<i32> { (0..batch * width).map(|i| ((step * 31 + i * 17) % card) as i32).collect() };
        match self {
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
    launches: Option<u64>,
}

impl Times {
    pub fn take(model: &Model, batch: usize, steps: usize) -> Result<Times> {
        let mut streams = model.streams(batch)?;
        let launched = || match model.device() {
            Device::Cpu => None,
            Device::Cuda(cuda) => Some(cuda.launches()),
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
        let launches = before.zip(launched()).map(|(before, after)| (after - before) / steps.max(1) as u64);
        let steps = Samples::new(seconds).ok_or_else(|| Error::Argument("no steps to time".into()))?;
        Ok(Times { batch, steps, launches })
    }

    pub fn row(&self, lm: &Model, config: &str, format: &str, ceilings: &Ceilings, peak_rss_mb: Option<f64>) -> Row {
        let Times { batch, steps, launches } = self;
        let remembered = lm.bytes_per_step(WARMUP + steps.len() / 2) - lm.bytes_per_step(0);
        let bytes = lm.bytes_per_step(0) + batch * remembered;
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
            launches_per_step: *launches,
            share_of_ceiling: bytes as f64 / ceilings.bytes / steps.median(),
            ceiling_gb_s: ceilings.bytes * 1e-9,
            drift: ceilings.drift,
            peak_rss_mb,
        }
    }
}
