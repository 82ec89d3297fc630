use super::*;
use crate::ops::testing::{check_emulator, devices, float_types, normal, tensor};

const CPU: Device = Device::Cpu;

fn settings(temperature: f32, top_k: usize, seed: u64, rows: usize) -> Vec<Settings> {
    (0..rows).map(|row| Settings { temperature, top_k, seed, sequence: row as u32 }).collect()
}

/// `steps` draws of each of `rows` rows of the same logits, step after step.
fn draws(logits: &[f64], rows: usize, steps: usize, sampler: &mut Sampler) -> Vec<Vec<i32>> {
    let logits = tensor(&logits.repeat(rows), [rows, logits.len()]);
    let mut ids = Tensor::zeros(&CPU, DType::I32, [rows, 1]).unwrap();
    let mut step = || {
        draw(&mut ids, 0, &logits, sampler, None).unwrap();
        ids.to_vec().unwrap()
    };
    (0..steps).map(|_| step()).collect()
}

/// What temperature and top-k leave of the logits, as PyTorch does it.
fn probabilities(logits: &[f64], temperature: f64, top_k: usize) -> Vec<f64> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    let mut p = vec![0.0; logits.len()];
    let k = if top_k == 0 { logits.len() } else { top_k.min(logits.len()) };
    order[..k].iter().for_each(|&i| p[i] = (logits[i] / temperature).exp());
    let sum: f64 = p.iter().sum();
    p.iter().map(|p| p / sum).collect()
}

/// Asserts that `counts` are those of `n` draws with these probabilities: Pearson's statistic, five standard deviations above its mean.
fn check_counts(counts: &[usize], p: &[f64], what: &str) {
    let n: usize = counts.iter().sum();
    let possible = || p.iter().zip(counts).filter(|(p, _)| **p > 0.0);
    let statistic: f64 = possible().map(|(p, &c)| (c as f64 - n as f64 * p).powi(2) / (n as f64 * p)).sum();
    let freedom = (possible().count() - 1) as f64;
    assert!(p.iter().zip(counts).all(|(p, c)| *p > 0.0 || *c == 0), "{what}: {counts:?}");
    assert!(statistic <= freedom + 5.0 * (2.0 * freedom).sqrt() + 4.0, "{what}: {statistic} of {freedom} degrees: {counts:?}");
}

const LOGITS: [f64; 12] = [0.3, -1.0, 2.0, 0.3, -0.2, 1.4, -3.0, 0.0, 1.1, 0.3, -0.7, 0.9];

#[test]
fn a_hundred_thousand_draws_have_the_probabilities_of_the_formula() {
    for (seed, (temperature, top_k)) in [(1.0, 0), (0.7, 5), (0.8, 12), (3.0, 0), (2.0, 7), (1.0, 1), (0.3, 250)].into_iter().enumerate() {
        let mut sampler = Sampler::new(&CPU, &settings(temperature, top_k, seed as u64, 100)).unwrap();
        let mut counts = [0; LOGITS.len()];
        draws(&LOGITS, 100, 1000, &mut sampler).concat().iter().for_each(|&id| counts[id as usize] += 1);
        check_counts(&counts, &probabilities(&LOGITS, temperature as f64, top_k), &format!("temperature {temperature}, top {top_k}"));
    }
}

/// Pairs of draws of neighbouring rows, of following steps, and of the same row and step with another seed.
#[test]
fn draws_of_rows_steps_and_seeds_are_independent() {
    let (rows, steps) = (100, 1000);
    let logits = &LOGITS[..4];
    let run = |seed| draws(logits, rows, steps, &mut Sampler::new(&CPU, &settings(1.0, 0, seed, rows)).unwrap());
    let (first, other) = (run(1), run(2));
    let p = probabilities(logits, 1.0, 0);
    let of_pairs: Vec<f64> = p.iter().flat_map(|a| p.iter().map(move |b| a * b)).collect();
    let check = |what: &str, pair: &dyn Fn(usize, usize) -> Option<(i32, i32)>| {
        let mut counts = [0; 16];
        let pairs = (0..steps).flat_map(|step| (0..rows).filter_map(move |row| pair(step, row)));
        pairs.for_each(|(a, b)| counts[(a * 4 + b) as usize] += 1);
        check_counts(&counts, &of_pairs, what);
    };
    check("rows", &|step, row| (row % 2 == 0).then(|| (first[step][row], first[step][row + 1])));
    check("steps", &|step, row| (step % 2 == 0).then(|| (first[step][row], first[step + 1][row])));
    check("seeds", &|step, row| Some((first[step][row], other[step][row])));
}

#[test]
fn the_largest_wins_and_of_equals_the_first() -> Result<()> {
    let inf = f64::INFINITY;
    for (row, expected) in [
        ([1.0, 3.0, 2.0, 3.0], 1),
        ([-0.0, 0.0, -1.0, 0.0], 0),
        ([f64::NAN, -inf, -2.0, f64::NAN], 2),
        ([f64::NAN, -inf, -inf, f64::NAN], 0),
        ([f64::NAN; 4], 0),
        ([-inf; 4], 0),
        ([1.0, inf, inf, f64::NAN], 1),
        ([-5.0, -4.0, -4.0, -6.0], 1),
    ] {
        // Also where a draw is asked for but one is all that is kept, or nothing can be drawn.
        for setting in [Settings::GREEDY, Settings { temperature: -1.0, ..Settings::GREEDY }, settings(2.0, 1, 3, 1)[0]] {
            assert_eq!(draws(&row, 1, 1, &mut Sampler::new(&CPU, &[setting])?), [[expected]], "{row:?} {setting:?}");
        }
    }
    Ok(())
}

/// Of seven equal logits the first five are kept, and each is drawn.
#[test]
fn ties_at_the_threshold_are_cut_by_index() -> Result<()> {
    let logits = [0.5, 0.5, -1.0, 0.5, 0.5, 0.5, 0.5, 0.5];
    let mut counts = [0; 8];
    let mut sampler = Sampler::new(&CPU, &settings(1.0, 5, 9, 100))?;
    draws(&logits, 100, 100, &mut sampler).concat().iter().for_each(|&id| counts[id as usize] += 1);
    check_counts(&counts, &[0.2, 0.2, 0.0, 0.2, 0.2, 0.2, 0.0, 0.0], "ties");
    Ok(())
}

/// A stream draws the same in another row and beside others; its counter says where it is.
#[test]
fn draws_depend_on_seed_sequence_and_counter_alone() -> Result<()> {
    let alone = Settings { temperature: 1.0, top_k: 0, seed: 77, sequence: 3 };
    let expected = draws(&LOGITS, 1, 20, &mut Sampler::new(&CPU, &[alone])?).concat();
    let among = [Settings::GREEDY, settings(2.0, 0, 5, 1)[0], alone];
    let mut sampler = Sampler::new(&CPU, &among)?;
    assert!(draws(&LOGITS, 3, 20, &mut sampler).iter().zip(&expected).all(|(row, id)| row[2] == *id));
    assert_eq!(sampler.counters()?, [20; 3]);
    let mut resumed = Sampler::at(&CPU, &[alone], &[11])?;
    assert_eq!(draws(&LOGITS, 1, 9, &mut resumed).concat(), expected[11..]);
    sampler.reset(&Tensor::from_slice(&CPU, &[0u8, 0, 1], [3])?)?;
    assert_eq!(sampler.counters()?, [20, 20, 0]);
    assert_eq!(draws(&LOGITS, 3, 1, &mut sampler)[0][2], expected[0]);
    let late = [u32::MAX as u64, u64::MAX];
    let mut sampler = Sampler::at(&CPU, &settings(1.0, 0, 1, 2), &late)?;
    draws(&LOGITS, 2, 1, &mut sampler);
    assert_eq!(sampler.counters()?, [1 << 32, 0]);
    Ok(())
}

#[test]
fn ids_are_the_same_on_every_device() -> Result<()> {
    for (rows, n) in [(6, 7), (3, 500), (2, 2048), (1, 9000)] {
        let values = normal([rows, n], n as u64);
        let mut expected: Option<Vec<i32>> = None;
        for device in devices()? {
            for &dtype in float_types(&device) {
                // Values that all types have.
                let values: Vec<f64> = values.to_f64()?.iter().map(|v| (v * 16.0).round() / 16.0).collect();
                let logits = Tensor::from_f64(&device, dtype, &values, [rows, n])?;
                let kinds = [(0.7, 25), (0.8, 250), (1.0, 0), (0.0, 0), (5.0, 3), (1e-30, 2)];
                let setting = |(row, &(temperature, top_k)): (usize, &(f32, usize))| Settings {
                    temperature,
                    top_k,
                    seed: u64::MAX - 5,
                    sequence: row as u32,
                };
                let mut sampler = Sampler::new(&device, &kinds.iter().enumerate().map(setting).collect::<Vec<_>>()[..rows])?;
                let mut ids = Tensor::zeros(&device, DType::I32, [rows, 20])?;
                (0..20).try_for_each(|column| draw(&mut ids, column, &logits, &mut sampler, None))?;
                let found = ids.to_vec()?;
                assert_eq!(&found, expected.get_or_insert(found.clone()), "{device:?} {dtype} {rows}x{n}");
            }
        }
    }
    Ok(())
}

/// A graph counts for itself; what is set between replays holds; rows that sit out change nothing.
#[test]
fn a_replay_draws_afresh() -> Result<()> {
    let Device::Cuda(gpu) = Device::open("emulator")? else { unreachable!("the emulator is a CUDA device") };
    let device = Device::Cuda(gpu.clone());
    let start = settings(1.0, 0, 4, 3);
    let logits = LOGITS.map(|v| v as f32).repeat(3);
    let (on_gpu, on_cpu) = (Tensor::from_slice(&device, &logits, [3, 12])?, Tensor::from_slice(&CPU, &logits, [3, 12])?);
    let (mut sampler, mut twin) = (Sampler::new(&device, &start)?, Sampler::new(&CPU, &start)?);
    let (mut ids, mut expected) = (Tensor::zeros(&device, DType::I32, [3, 2])?, Tensor::zeros(&CPU, DType::I32, [3, 2])?);
    let mut mask = Tensor::from_slice(&device, &[1u8, 1, 1], [3])?;
    let (graph, ()) = gpu.capture(|| draw(&mut ids, 1, &on_gpu, &mut sampler, Some(&mask)))?;
    let mut seen = Vec::new();
    for step in 0..30 {
        if step == 20 {
            let other = [Settings::GREEDY, start[2], start[1]];
            sampler.set(&other)?;
            twin.set(&other)?;
        }
        let runs = [1u8, (step % 3 != 0) as u8, (step < 25) as u8];
        mask.write(&runs)?;
        graph.replay()?;
        draw(&mut expected, 1, &on_cpu, &mut twin, Some(&Tensor::from_slice(&CPU, &runs, [3])?))?;
        assert_eq!(ids.to_vec::<i32>()?, expected.to_vec::<i32>()?, "step {step}");
        assert_eq!(sampler.counters()?, twin.counters()?);
        seen.push(ids.to_vec::<i32>()?[1]);
    }
    assert_eq!(sampler.counters()?, [30, 20, 25]);
    assert!(seen[..20].iter().any(|id| *id != seen[0]), "every replay draws {}", seen[0]);
    assert!(seen[20..].iter().all(|&id| id == 2));
    Ok(())
}

#[test]
fn what_does_not_fit_is_an_error() -> Result<()> {
    for temperature in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert!(Sampler::new(&CPU, &settings(temperature, 0, 1, 1)).is_err(), "{temperature}");
    }
    assert!(Sampler::at(&CPU, &settings(1.0, 0, 1, 2), &[0]).is_err());
    let mut sampler = Sampler::new(&CPU, &settings(1.0, usize::MAX, u64::MAX, 2))?;
    assert!(sampler.set(&settings(1.0, 0, 1, 3)).is_err());
    assert!(sampler.set(&settings(f32::NAN, 0, 1, 2)).is_err());
    assert!(sampler.reset(&normal([2], 1)).is_err());
    let mut ids = Tensor::zeros(&CPU, DType::I32, [2, 3])?;
    let mut attempt = |logits: &Tensor, column, mask: Option<&Tensor>| draw(&mut ids, column, logits, &mut sampler, mask);
    assert!(attempt(&normal([2, 5], 1), 2, None).is_ok());
    for (shape, column) in [([2, 5], 3), ([2, 5], usize::MAX), ([3, 5], 0), ([2, 0], 0), ([0, 5], 0)] {
        assert!(attempt(&normal(shape, 1), column, None).is_err(), "{shape:?} {column}");
    }
    assert!(attempt(&Tensor::zeros(&CPU, DType::U8, [2, MAX_LOGITS + 1])?, 0, None).is_err());
    assert!(attempt(&normal([10], 1), 0, None).is_err());
    assert!(attempt(&Tensor::zeros(&CPU, DType::I32, [2, 5])?, 0, None).is_err());
    assert!(attempt(&normal([2, 5], 1), 0, Some(&Tensor::zeros(&CPU, DType::U8, [3])?)).is_err());
    assert!(attempt(&normal([2, 5], 1), 0, Some(&normal([2], 1))).is_err());
    assert!(draw(&mut normal([2, 3], 1), 0, &normal([2, 5], 1), &mut sampler, None).is_err());
    Ok(())
}

#[test]
fn the_emulator_draws_the_same() {
    check_emulator(&OP);
}
