//! Steps of a language model, one at a time, as a conversation makes them.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use swara_engine::lm::{Drawing, Drawn, Lm, Session};
use swara_engine::{Error, Result};
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

/// Steps that are not timed.
const WARMUP: usize = 5;

/// Seconds of `steps` steps of a model, and what the host launched in one.
pub struct Times {
    batch: usize,
    steps: Samples,
    launches: Option<u64>,
}

impl Times {
    pub fn take(lm: &Lm, batch: usize, steps: usize) -> Result<Times> {
        let drawing: Vec<Drawing> = (0..batch as u64).map(|stream| Drawing::seeded(&Drawn::default(), stream)).collect();
        let mut session = Session::new(lm, &drawing)?;
        let (heard, card) = (lm.config().heard(), lm.config().card);
        let launched = || match lm.device() {
            Device::Cpu => None,
            Device::Cuda(cuda) => Some(cuda.launches()),
        };
        let (mut seconds, mut before) = (Vec::with_capacity(steps), launched());
        for step in 0..WARMUP + steps {
            if step == WARMUP {
                before = launched();
            }
            let codes: Vec<i32> = (0..batch * heard).map(|i| ((step * 31 + i * 17) % card) as i32).collect();
            let start = Instant::now();
            let codes = Tensor::from_slice(lm.device(), &codes, [batch, heard])?;
            session.step(&codes, None)?.complete.to_vec::<i32>()?;
            if step >= WARMUP {
                seconds.push(start.elapsed().as_secs_f64());
            }
        }
        let launches = before.zip(launched()).map(|(before, after)| (after - before) / steps.max(1) as u64);
        let steps = Samples::new(seconds).ok_or_else(|| Error::Argument("no steps to time".into()))?;
        Ok(Times { batch, steps, launches })
    }

    pub fn row(&self, lm: &Lm, config: &str, format: &str, ceilings: &Ceilings, peak_rss_mb: Option<f64>) -> Row {
        let Times { batch, steps, launches } = self;
        let remembered = lm.bytes_per_step(WARMUP + steps.len() / 2) - lm.bytes_per_step(0);
        let bytes = lm.bytes_per_step(0) + batch * remembered;
        let (low, high) = steps.median_interval(1.96);
        Row {
            config: config.to_owned(),
            format: format.to_owned(),
            device: lm.device().name(),
            batch: *batch,
            context: lm.config().context.unwrap_or(1),
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
