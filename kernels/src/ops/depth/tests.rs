use std::sync::Arc;

use super::cases::{SMALL, Shape};
use super::*;
use crate::case::{Case, Check, Cost};
use crate::driver::Arch;
use crate::driver::dry;
use crate::ops::rope::{Rope, Style};
use crate::ops::sample::{self, Settings};
use crate::ops::testing::{check_emulator, devices};
use crate::quantized::Bits;
use crate::tolerance::Tolerance;

/// What `shape` draws, on `device`.
fn drawn(shape: &Shape, device: &Device, dtype: DType, seed: u64) -> Result<(Depth, Tensor)> {
    let mut inputs = vec![crate::case::Input::normal("h", [shape.batch, shape.dim])];
    inputs.extend(shape.weights());
    let case = Case {
        label: String::new(),
        dtype,
        inputs,
        outputs: vec![("none", Check::Ignore)],
        run: Box::new(|_| Ok(Vec::new())),
        cost: Cost::default(),
        bench: false,
    };
    let tensors = case.upload(device, &case.draw(seed), false)?;
    Ok((shape.depth(dtype, &tensors[1..])?, tensors[0].copy()?))
}

fn samplers(shape: &Shape, device: &Device) -> Result<Vec<Sampler>> {
    let settings = |k: usize| {
        let row = |b: usize| Settings { temperature: [0.8, 0.0, 1.5][b % 3], top_k: 6, seed: b as u64, sequence: k as u32 };
        (0..shape.batch).map(row).collect::<Vec<_>>()
    };
    (0..shape.steps).map(|k| Sampler::new(device, &settings(k))).collect()
}

/// Several frames with the same state, on the emulator of an old and of a new GPU, beside the operations on the same device: logits of
/// the same ids, draws from these logits, and in f32, where no two logits are so close, draws from theirs.
#[test]
fn one_launch_says_what_the_operations_say() -> Result<()> {
    let (four, eight) = (Some((Bits::Four, 32, true)), Some((Bits::Eight, 32, false)));
    for device in devices()?.into_iter().filter(|device| *device != Device::Cpu) {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            for (codes, batch) in [(None, 1), (None, 3), (eight, 3), (four, 1)] {
                let shape = Shape { batch, codes, sets: 2, norm: batch == 3, ..SMALL };
                equals_the_operations(&shape, &device, dtype)?;
            }
            for (turned, batch, layers) in [(Style::HalfSplit, 1, 2), (Style::Interleaved, 3, 2), (Style::HalfSplit, 2, 1)] {
                let csm = Shape { batch, layers, h_first: true, sets: 1, inputs: 1, kv_heads: 2, norm: true, card: 41, ..SMALL };
                equals_the_operations(&Shape { turned: Some(turned), ..csm }, &device, dtype)?;
            }
        }
    }
    Ok(())
}

/// Passes over four streams, and what is left of them; the most steps that a launch has room for.
#[test]
fn many_streams_and_steps_say_what_the_operations_say() -> Result<()> {
    let device = Device::open("emulator")?;
    for batch in [5, 7, 9, 16] {
        equals_the_operations(&Shape { batch, norm: true, bias: true, ..SMALL }, &device, DType::F32)?;
    }
    for h_first in [false, true] {
        let shape = Shape { steps: MOST_STEPS, sets: 1, inputs: 1, layers: 1, h_first, turned: Some(Style::HalfSplit), ..SMALL };
        equals_the_operations(&shape, &device, DType::F32)?;
    }
    Ok(())
}

fn equals_the_operations(shape: &Shape, device: &Device, dtype: DType) -> Result<()> {
    let Device::Cuda(gpu) = device else { unreachable!("no launches") };
    let &Shape { batch, codes, layers, .. } = shape;
    let (depth, h) = drawn(shape, device, dtype, 5)?;
    let mut state = depth.state(batch)?;
    let [mut mine, mut twins, mut plain, mut idle] = [(); 4].map(|()| samplers(shape, device).unwrap());
    let ids: Vec<i32> = (1..=shape.steps as i32 + 1).chain([-1]).collect();
    let [mut said, mut again, mut expected] = [(); 3].map(|()| Tensor::from_slice(device, &ids.repeat(batch), [batch, ids.len()]).unwrap());
    let flags = |f: fn(usize) -> bool| Tensor::from_slice(device, &(0..batch).map(|b| u8::from(f(b))).collect::<Vec<_>>(), [batch]);
    let (some, none) = (flags(|b| b != 1)?, flags(|_| false)?);
    // Those of both.
    let tolerance = Tolerance::accumulate(2000).via(dtype, 2 * (9 * layers + 4)).then_round_to(dtype);
    let mut worst: f64 = 0.0;
    for frame in 0..3 {
        let drawn = |k: usize| (frame > 0 && k == 1).then_some(&some);
        let what = format!("{dtype}, {codes:?}, {batch} streams, frame {frame}");
        let before = gpu.kernels();
        let found = depth.say(&mut state, &h, &mut said, &mut mine, drawn)?;
        assert_eq!(gpu.kernels() - before, 1, "launches of a frame");
        for (k, (logits, twin)) in found.iter().zip(&mut twins).enumerate() {
            sample::draw(&mut again, k + 1, logits, twin, drawn(k))?;
            assert_eq!(mine[k].counters()?, twin.counters()?, "{what}");
        }
        assert_eq!(said.to_vec::<i32>()?, again.to_vec::<i32>()?, "{what}");
        if dtype == DType::F32 {
            cpu::say(&depth, &h, &mut expected, &mut plain, drawn)?;
            assert_eq!(said.to_vec::<i32>()?, expected.to_vec::<i32>()?, "{what}");
        }
        let logits = cpu::say(&depth, &h, &mut said.copy()?, &mut idle, |_| Some(&none))?;
        for (found, logits) in found.iter().zip(&logits) {
            let [found, logits] = [found.to_f64()?, logits.to_f64()?];
            assert!(found.iter().all(|logit| logit.is_finite()), "{what}");
            let comparison = tolerance.compare(&found, &logits);
            worst = worst.max(comparison.budget_used);
            assert!(comparison.holds(), "{what}: {:?}", comparison.worst);
        }
    }
    println!("{dtype}, {codes:?}, {batch} streams: logits within {worst:.2} of their tolerance");
    Ok(())
}

/// With layers that add nothing logits are what the inputs and the last matrices make.
#[test]
fn products_are_those_of_the_operations_bit_for_bit() -> Result<()> {
    let codes = [None, Some((Bits::Eight, 32, true)), Some((Bits::Four, 32, false)), Some((Bits::Four, 32, true))];
    for device in devices()?.into_iter().filter(|device| *device != Device::Cpu) {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            // The last are widths that are no multiple of what a group of threads takes at once, and passes that are not full.
            let few = codes.into_iter().flat_map(|codes| [1, 3].map(|batch| (codes, batch, 1056)));
            let many = [(None, 5, 2080), (codes[1], 7, 2080), (codes[3], 9, 1056), (None, 16, 1056)];
            for (codes, batch, dim) in few.chain(many.into_iter().filter(|_| dtype == DType::BF16)) {
                let shape = Shape { batch, codes, steps: 2, layers: 1, dim, width: 544, hidden: 32, bias: true, ..SMALL };
                let (Depth { mut layers, .. }, h) = drawn(&shape, &device, dtype, 8)?;
                for Block { out, narrow, .. } in layers.sets.iter_mut().flatten() {
                    for matrix in [out, narrow] {
                        *matrix = Arc::new(Weight::new(&Tensor::zeros(&device, dtype, [matrix.outputs(), matrix.inputs()])?)?);
                    }
                }
                let depth = Depth::new(layers)?;
                let none = Tensor::zeros(&device, DType::U8, [batch])?;
                let mut said = Tensor::from_slice(&device, &[1, 2, 3].repeat(batch), [batch, 3])?;
                let mut samplers = samplers(&shape, &device)?;
                let found = depth.say(&mut depth.state(batch)?, &h, &mut said, &mut samplers, |_| Some(&none))?;
                let expected = cpu::say(&depth, &h, &mut said, &mut samplers, |_| Some(&none))?;
                for (found, expected) in found.iter().zip(&expected) {
                    let bits = |logits: &Tensor| Ok::<_, Error>(logits.to_f64()?.into_iter().map(f64::to_bits).collect::<Vec<_>>());
                    assert_eq!(bits(found)?, bits(expected)?, "{dtype}, {codes:?}, {batch} streams of {dim}");
                }
            }
        }
    }
    Ok(())
}

/// A stream's logits do not depend on those beside it.
#[test]
fn streams_are_as_if_alone() -> Result<()> {
    let device = Device::open("emulator")?;
    let shape = Shape { batch: 6, norm: true, ..SMALL };
    let (depth, h) = drawn(&shape, &device, DType::BF16, 3)?;
    let say = |h: &Tensor, ids: &[i32]| -> Result<(Vec<i32>, Vec<Vec<f64>>)> {
        let batch = h.shape()[0];
        let mut said = Tensor::from_slice(&device, ids, [batch, 4])?;
        let mut samplers = samplers(&Shape { batch, ..shape }, &device)?;
        let logits = depth.say(&mut depth.state(batch)?, h, &mut said, &mut samplers, |_| None)?;
        Ok((said.to_vec()?, logits.iter().map(|logits| logits.to_f64()).collect::<Result<_>>()?))
    };
    let ids: Vec<i32> = (0..6).flat_map(|b| [b, 0, 0, 0]).collect();
    let (said, logits) = say(&h, &ids)?;
    let (first, alone) = say(&h.part(0, [1, shape.dim])?, &ids[..4])?;
    assert_eq!(said[..4], first);
    for (all, alone) in logits.iter().zip(&alone) {
        assert_eq!(all[..shape.card], alone[..]);
    }
    Ok(())
}

/// As an embedding by itself: NaN for the stream whose id is in no table, here until its next column is given.
#[test]
fn an_id_outside_its_table_is_a_row_of_nan() -> Result<()> {
    let device = Device::open("emulator")?;
    let shape = Shape { batch: 3, ..SMALL };
    let (depth, h) = drawn(&shape, &device, DType::F32, 3)?;
    let none = Tensor::zeros(&device, DType::U8, [3])?;
    let last = shape.card as i32;
    let mut said = Tensor::from_slice(&device, &[last + 1, 0, 0, 0, last, 0, 0, 0, -2, 0, 0, 0], [3, 4])?;
    let logits = depth.say(&mut depth.state(3)?, &h, &mut said, &mut samplers(&shape, &device)?, |_| Some(&none))?;
    let first = logits[0].to_f64()?;
    let row = |b: usize| &first[b * shape.card..][..shape.card];
    assert!([0, 2].iter().all(|&b| row(b).iter().all(|logit| logit.is_nan())) && row(1).iter().all(|logit| logit.is_finite()));
    Ok(())
}

/// What README and depth.cu say.
#[test]
fn a_frame_of_moshi_meets_208_times_and_one_of_csm_571() -> Result<()> {
    let shape = Shape { steps: 8, sets: 8, inputs: 8, layers: 6, ..SMALL };
    let csm = Shape { steps: 31, sets: 1, inputs: 1, layers: 4, h_first: true, turned: Some(Style::HalfSplit), ..SMALL };
    for (shape, meetings) in [(shape, 208), (csm, 571)] {
        let (depth, _) = drawn(&shape, &Device::open("emulator")?, DType::BF16, 1)?;
        let phases = depth.program.map(|program| program.phases.to_vec::<i32>()).transpose()?.unwrap_or_default();
        assert_eq!(phases.chunks(26).filter(|phase| phase[25] != 0).count(), meetings);
    }
    let (device, notes) = dry::open(Arch(90));
    let (depth, h) = drawn(&shape, &device, DType::BF16, 1)?;
    let mut state = depth.state(1)?;
    let mut said = Tensor::zeros(&device, DType::I32, [1, 9])?;
    let mut samplers = samplers(&shape, &device)?;
    notes.take();
    depth.say(&mut state, &h, &mut said, &mut samplers, |_| None)?;
    let launches = notes.take();
    assert!(launches.len() == 1 && launches[0].launch.cooperative && launches[0].kernel == "depth_1_bf16");
    Ok(())
}

#[test]
fn there_are_no_more_blocks_than_are_resident_or_have_something_to_do() -> Result<()> {
    for (multiprocessors, blocks) in [(1, 1), (3, 3), (1000, 6)] {
        let (device, notes) = dry::open_with(Arch(90), |limits| limits.multiprocessors = multiprocessors);
        let shape = Shape { hidden: 384, ..SMALL };
        let (depth, h) = drawn(&shape, &device, DType::F32, 1)?;
        let mut said = Tensor::zeros(&device, DType::I32, [1, 4])?;
        let mut samplers = samplers(&shape, &device)?;
        notes.take();
        depth.say(&mut depth.state(1)?, &h, &mut said, &mut samplers, |_| None)?;
        assert_eq!(notes.take()[0].launch.grid, [blocks, 1, 1], "{multiprocessors} multiprocessors");
    }
    let (device, _) = dry::open_with(Arch(90), |limits| limits.cooperative = false);
    match drawn(&SMALL, &device, DType::F32, 1) {
        Err(Error::Argument { op: NAME, what }) => assert!(what.contains("no cooperative launches"), "{what}"),
        other => panic!("{:?}", other.err()),
    }
    Ok(())
}

#[test]
fn what_one_launch_cannot_do_is_refused() -> Result<()> {
    let device = Device::open("emulator")?;
    let new = |shape: Shape, dtype: DType| drawn(&shape, &device, dtype, 1).map(|(depth, _)| depth);
    let refused = |shape: Shape, dtype: DType, why: &str| match new(shape, dtype) {
        Err(Error::Argument { op: NAME, what }) => assert!(what.contains(why), "{what}"),
        other => panic!("{why}: {:?}", other.err()),
    };
    refused(Shape { head_dim: 24, ..SMALL }, DType::BF16, "heads of 24");
    refused(Shape { head_dim: 12, width: 48, ..SMALL }, DType::BF16, "heads of 12");
    refused(Shape { head_dim: 8, turned: Some(Style::HalfSplit), ..SMALL }, DType::BF16, "heads of 8, expected a vector of 8 of each half");
    refused(Shape { dim: 99, ..SMALL }, DType::F32, "[64, 99]");
    refused(Shape { steps: 33, sets: 1, inputs: 1, layers: 1, ..SMALL }, DType::F32, "33 steps");
    refused(Shape { layers: 0, ..SMALL }, DType::F32, "no inputs, layers or steps");
    refused(Shape { kv_heads: 3, ..SMALL }, DType::F32, "4 heads beside 3");
    refused(Shape { dim: 65_536, width: 8, heads: 1, kv_heads: 1, head_dim: 8, hidden: 8, ..SMALL }, DType::F32, "shared memory");
    let depth = new(Shape { batch: 2, ..SMALL }, DType::F32)?;
    assert!(matches!(depth.state(MOST_STREAMS + 1), Err(Error::Argument { .. })));
    Ok(())
}

#[test]
fn what_does_not_fit_is_an_error() -> Result<()> {
    for device in [Device::Cpu, Device::open("emulator")?] {
        let shape = Shape { batch: 2, ..SMALL };
        let (depth, h) = drawn(&shape, &device, DType::F32, 1)?;
        let zeros = |dtype, shape: [usize; 2]| Tensor::zeros(&device, dtype, shape);
        let mut said = zeros(DType::I32, [2, 4])?;
        let mut few = samplers(&Shape { steps: 2, ..shape }, &device)?;
        let mut others = samplers(&Shape { batch: 3, ..shape }, &device)?;
        let mut right = samplers(&shape, &device)?;
        let mut state = depth.state(2)?;
        let mask = Tensor::zeros(&device, DType::U8, [3])?;
        assert!(depth.say(&mut state, &h, &mut said, &mut few, |_| None).is_err());
        assert!(depth.say(&mut state, &h, &mut said, &mut others, |_| None).is_err());
        assert!(depth.say(&mut state, &h, &mut said, &mut right, |_| Some(&mask)).is_err());
        assert!(depth.say(&mut state, &h, &mut zeros(DType::I32, [2, 3])?, &mut right, |_| None).is_err());
        assert!(depth.say(&mut state, &h, &mut zeros(DType::F32, [2, 4])?, &mut right, |_| None).is_err());
        assert!(depth.say(&mut state, &zeros(DType::F32, [2, 95])?, &mut said, &mut right, |_| None).is_err());
        assert!(depth.say(&mut state, &zeros(DType::F32, [3, 96])?, &mut said, &mut right, |_| None).is_err());
        assert!(depth.say(&mut depth.state(3)?, &h, &mut said, &mut right, |_| None).is_err());
        if device != Device::Cpu {
            // What it computes in would be too small.
            let (fewer, _) = drawn(&Shape { steps: 2, ..shape }, &device, DType::F32, 1)?;
            assert!(depth.say(&mut fewer.state(2)?, &h, &mut said, &mut right, |_| None).is_err());
        }
        assert!(depth.say(&mut state, &h, &mut said, &mut right, |_| None).is_ok());
        let wrong = |change: fn(&mut Layers)| {
            let (Depth { mut layers, .. }, _) = drawn(&shape, &device, DType::F32, 1).unwrap();
            change(&mut layers);
            assert!(Depth::new(layers).is_err());
        };
        wrong(|layers| layers.steps[1].set = 3);
        wrong(|layers| layers.steps[1].input = 3);
        wrong(|layers| layers.epsilon = f64::NAN);
        wrong(|layers| layers.last_epsilon = -1.0);
        wrong(|layers| layers.sets[1].truncate(1));
        wrong(|layers| layers.sets[0][0].out = Arc::clone(&layers.sets[0][0].narrow));
        wrong(|layers| layers.sets[0][0].norms[1] = Arc::clone(&layers.steps[0].said));
        wrong(|layers| layers.steps[0].linear = Arc::clone(&layers.inputs[0]));
        let (Depth { mut layers, .. }, _) = drawn(&shape, &device, DType::F32, 1)?;
        let other = if device == Device::Cpu { Device::open("emulator")? } else { Device::Cpu };
        layers.steps[1].said = Arc::new(Tensor::zeros(&other, DType::F32, layers.steps[1].said.shape())?);
        assert!(matches!(Depth::new(layers), Err(Error::DeviceMismatch { operand: "said", .. })));
        wrong(|layers| layers.rope = Some(Arc::new(Rope::new(layers.inputs[0].device(), 8, 10.0, Style::Interleaved).unwrap())));
        wrong(|layers| layers.steps.clear());
    }
    Ok(())
}

#[test]
fn the_emulator_says_the_same() {
    check_emulator(&OP);
}
