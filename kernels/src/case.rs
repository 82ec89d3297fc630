//! Cases: what `verify`, `bench` and `profile` run. One table an op, next to the op.
//!
//! A case draws its inputs in f64 from a seed, rounds them to its storage type, and runs one closure twice: on the device
//! under test in that type, and on the CPU in f64. The second is the oracle.

use std::any::Any;
use std::ops::Deref;
use std::sync::OnceLock;

use crate::tolerance::Tolerance;
use crate::{DType, Device, Error, Result, Shape, Tensor};

/// How an input is drawn.
#[derive(Clone, Debug)]
pub enum Fill {
    /// Normal with this standard deviation.
    Normal(f64),
    /// Uniform between two bounds.
    Uniform(f64, f64),
    /// Uniform integers below the bound.
    Below(usize),
    /// These values, cycled.
    Values(Vec<f64>),
}

/// One operand of a case.
#[derive(Clone, Debug)]
pub struct Input {
    pub name: &'static str,
    pub shape: Shape,
    pub fill: Fill,
    /// `None`: the case's dtype (f64 for the oracle).
    pub dtype: Option<DType>,
}

impl Input {
    pub fn new(name: &'static str, shape: impl Into<Shape>, fill: Fill) -> Input {
        Input { name, shape: shape.into(), fill, dtype: None }
    }

    /// Normal with unit variance.
    pub fn normal(name: &'static str, shape: impl Into<Shape>) -> Input {
        Input::new(name, shape, Fill::Normal(1.0))
    }

    /// Stored as f32 on the device whatever the case's dtype is (parameters, statistics); f64 for the oracle.
    pub fn f32(mut self) -> Input {
        self.dtype = Some(DType::F32);
        self
    }

    /// An integer tensor, the same for device and oracle.
    pub fn integer(mut self, dtype: DType) -> Input {
        self.dtype = Some(dtype);
        self
    }
}

/// How one output is judged.
#[derive(Clone, Debug)]
pub enum Check {
    Within(Tolerance),
    /// Bit-equal values.
    Exact,
    /// Integers that may differ only where the oracle's output number `margin` (same shape, relative gap between best and
    /// second best) is below `epsilon`.
    Index {
        margin: usize,
        epsilon: f64,
    },
    /// Not compared; exists for another output's sake.
    Ignore,
}

/// Memory traffic and arithmetic of one run, from the shape alone.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    pub bytes: usize,
    pub flops: usize,
}

/// Runs an op on its inputs and returns its outputs in the order of [`Case::outputs`].
pub type Run = Box<dyn Fn(&Inputs) -> Result<Vec<Tensor>> + Send + Sync>;

/// What a case runs on: its tensors, and what is made of them once, before the runs that are timed.
pub struct Inputs {
    tensors: Vec<Tensor>,
    prepared: OnceLock<Box<dyn Any + Send + Sync>>,
}

impl Inputs {
    /// What `prepare` makes of the tensors: made by the first run, kept for the others. There is one such thing.
    ///
    /// # Errors
    /// Those of `prepare`, and another type than before.
    pub fn once<P: Any + Send + Sync>(&self, prepare: impl FnOnce(&[Tensor]) -> Result<P>) -> Result<&P> {
        if self.prepared.get().is_none() {
            let prepared = prepare(&self.tensors)?;
            self.prepared.get_or_init(|| Box::new(prepared));
        }
        let kept = self.prepared.get().and_then(|prepared| prepared.downcast_ref());
        kept.ok_or_else(|| Error::argument("case", "prepares two things of different types"))
    }
}

impl Deref for Inputs {
    type Target = [Tensor];
    fn deref(&self) -> &[Tensor] {
        &self.tensors
    }
}

impl From<Vec<Tensor>> for Inputs {
    fn from(tensors: Vec<Tensor>) -> Inputs {
        Inputs { tensors, prepared: OnceLock::new() }
    }
}

/// One line of the table.
pub struct Case {
    /// Shape and variant, e.g. `2x500x33 stride 2`; unique within the op together with `dtype`.
    pub label: String,
    pub dtype: DType,
    pub inputs: Vec<Input>,
    pub outputs: Vec<(&'static str, Check)>,
    pub run: Run,
    pub cost: Cost,
    /// Large enough to time; left out of `verify` on the emulator.
    pub bench: bool,
}

/// An operation as the tools see it.
pub struct Op {
    /// Name of its folder.
    pub name: &'static str,
    pub sources: &'static [&'static crate::driver::Source],
    pub cases: fn() -> Vec<Case>,
}

impl Case {
    /// Input values in f64, already rounded to the storage type that the device will see.
    pub fn draw(&self, seed: u64) -> Vec<Vec<f64>> {
        let mut rng = SplitMix(seed);
        self.inputs
            .iter()
            .map(|input| {
                let dtype = input.dtype.unwrap_or(self.dtype);
                (0..input.shape.elements()).map(|i| round_to(dtype, draw(&mut rng, &input.fill, i))).collect()
            })
            .collect()
    }

    /// Uploads drawn values; `oracle` replaces every floating type by f64.
    pub fn upload(&self, device: &Device, values: &[Vec<f64>], oracle: bool) -> Result<Inputs> {
        let tensors = self.inputs.iter().zip(values).map(|(input, values)| {
            let dtype = input.dtype.unwrap_or(self.dtype);
            let dtype = if oracle && dtype.is_float() { DType::F64 } else { dtype };
            Tensor::from_f64(device, dtype, values, input.shape)
        });
        tensors.collect::<Result<Vec<_>>>().map(Inputs::from)
    }

    /// Inputs for a run whose results do not matter: given values where the case gives them, zeros elsewhere.
    pub fn blank(&self, device: &Device) -> Result<Inputs> {
        let blank = |input: &Input| {
            let dtype = input.dtype.unwrap_or(self.dtype);
            match &input.fill {
                Fill::Values(values) => {
                    let values: Vec<f64> = values.iter().copied().cycle().take(input.shape.elements()).collect();
                    Tensor::from_f64(device, dtype, &values, input.shape)
                }
                _ => Tensor::zeros(device, dtype, input.shape),
            }
        };
        self.inputs.iter().map(blank).collect::<Result<Vec<_>>>().map(Inputs::from)
    }
}

fn draw(rng: &mut SplitMix, fill: &Fill, index: usize) -> f64 {
    match fill {
        Fill::Normal(std) => std * (-2.0 * (1.0 - rng.uniform()).ln()).sqrt() * (std::f64::consts::TAU * rng.uniform()).cos(),
        Fill::Uniform(low, high) => low + (high - low) * rng.uniform(),
        Fill::Below(bound) => (rng.next() % (*bound).max(1) as u64) as f64,
        Fill::Values(values) => values[index % values.len()],
    }
}

fn round_to(dtype: DType, v: f64) -> f64 {
    match dtype {
        DType::F32 => v as f32 as f64,
        DType::BF16 => half::bf16::from_f64(v).to_f64(),
        DType::F16 => half::f16::from_f64(v).to_f64(),
        _ => v,
    }
}

/// SplitMix64: a counter through a mixer. Small, and the same on every platform.
pub struct SplitMix(pub u64);

impl SplitMix {
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `[0, 1)`.
    pub fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}
