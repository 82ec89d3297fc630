//! What is profiled, ready to be run: cases of operations, or frames of a codec. The same runs under every tool.

use swara_engine::codec::{Codec, Session};
use swara_kernels::case::{Case, Inputs, Op};
use swara_kernels::{DType, Device, span};

use super::Subject;
use crate::cli::{Common, Profile};
use crate::codec::{self, BUNDLED};
use crate::failure::{Failure, Result};

pub enum Work {
    Ops { device: Device, cases: Vec<(&'static Op, Case)> },
    Codec(Box<Codec>),
}

/// Frames until pools, caches and clocks have settled.
const WARM_FRAMES: usize = 20;

impl Work {
    pub fn open(common: &Common, args: &Profile, subject: &Subject) -> Result<Work> {
        let ops = match subject {
            Subject::Ops(ops) => ops,
            Subject::Codec => {
                let codec = codec::open(common, args.model.as_deref().unwrap_or(BUNDLED))?;
                if !codec.format().causal {
                    return Err(Failure::usage(format!("profile: {} is not causal and has no frames", codec.name())));
                }
                return Ok(Work::Codec(Box::new(codec)));
            }
        };
        let device = common.open_device()?;
        // The emulator would take minutes over the large ones.
        let large = !device.name().starts_with("emulator");
        let chosen = |case: &Case| match &args.case {
            Some(text) => case.label.contains(text.as_str()),
            None => case.bench == large,
        };
        let runs_here = |case: &Case| device != Device::Cpu || !matches!(case.dtype, DType::BF16 | DType::F16);
        let dtype = common.dtype()?;
        let wanted = |case: &Case| dtype.is_none_or(|dtype| dtype == case.dtype) && chosen(case) && runs_here(case);
        let cases = |op: &'static Op| (op.cases)().into_iter().filter(wanted).map(move |case| (op, case));
        let cases: Vec<_> = ops.iter().flat_map(|op| cases(op)).collect();
        if cases.is_empty() {
            return Err(
                Failure::usage("profile: no case is left to run").hint("--case and --dtype leave some out; the CPU computes in f32 only")
            );
        }
        Ok(Work::Ops { device, cases })
    }

    pub fn device(&self) -> &Device {
        match self {
            Work::Ops { device, .. } => device,
            Work::Codec(codec) => codec.device(),
        }
    }

    /// Warms up, runs everything `runs` times inside `around`, and waits for the device. Gives the number of runs.
    pub fn repeat(&self, runs: u32, around: impl FnOnce(&mut dyn FnMut() -> Result<usize>) -> Result<usize>) -> Result<usize> {
        match self {
            Work::Ops { device, cases } => {
                let prepare = |(op, case): &'_ (&'static Op, Case)| -> Result<(String, Inputs)> {
                    let inputs = case.upload(device, &case.draw(1), false)?;
                    (case.run)(&inputs)?;
                    Ok((format!("{} {} {}", op.name, case.label, case.dtype), inputs))
                };
                let prepared = cases.iter().map(prepare).collect::<Result<Vec<_>>>()?;
                device.synchronize()?;
                around(&mut || {
                    for ((_, case), (name, inputs)) in cases.iter().zip(&prepared) {
                        for _ in 0..runs {
                            let _span = span::step(name);
                            (case.run)(inputs)?;
                        }
                    }
                    device.synchronize()?;
                    Ok(cases.len() * runs as usize)
                })
            }
            Work::Codec(codec) => {
                let mut session = Session::new(codec, 1)?;
                for frame in 0..WARM_FRAMES {
                    one(codec, &mut session, frame)?;
                }
                around(&mut || {
                    for frame in 0..runs as usize {
                        let _span = span::step(&format!("frame {frame}"));
                        one(codec, &mut session, WARM_FRAMES + frame)?;
                    }
                    codec.device().synchronize()?;
                    Ok(runs as usize)
                })
            }
        }
    }

    /// As [`Work::repeat`], with a profiler's window around the runs.
    pub fn in_a_window(&self, runs: u32) -> Result<usize> {
        self.repeat(runs, |run| match self.device() {
            Device::Cpu => run(),
            Device::Cuda(cuda) => {
                let mut outcome = Ok(0);
                cuda.profiled(|| {
                    outcome = run();
                    Ok(())
                })?;
                outcome
            }
        })
    }
}

/// One frame there and back. Never silence: denormals and zeros are not what speech costs.
fn one(codec: &Codec, session: &mut Session, frame: usize) -> Result<()> {
    let hop = codec.format().hop;
    let sample = |i: usize| 0.3 * ((frame * hop + i) as f32 * 0.037).sin() * (i as f32 * 0.0011).cos();
    let samples: Vec<f32> = (0..hop).map(sample).collect();
    let codes = session.encode(&codec.signal(&samples, 1)?, codec.codebooks(), None)?;
    codec.samples(&session.decode(&codes, None)?)?;
    Ok(())
}
