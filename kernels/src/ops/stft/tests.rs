use super::*;
use crate::case::SplitMix;

fn random(rng: &mut SplitMix, n: usize) -> Vec<f64> {
    (0..n).map(|_| (rng.uniform() - 0.5) as f32 as f64).collect()
}

fn tensor(dtype: DType, values: &[f64], shape: impl Into<Shape>) -> Tensor {
    Tensor::from_f64(&Device::Cpu, dtype, values, shape).unwrap()
}

const SIZES: [(usize, usize, usize, usize); 6] =
    [(1, 2, 2, 1), (2, 17, 32, 8), (3, 127, 64, 16), (1, 500, 30, 7), (2, 333, 100, 1), (1, 600, 1024, 400)];

#[test]
fn spectra_match_the_definition() {
    let mut rng = SplitMix(1);
    for (batch, samples, n, hop) in SIZES {
        let values = random(&mut rng, batch * samples);
        let spectra = forward(&tensor(DType::F64, &values, [batch, samples]), n, hop).unwrap();
        assert_eq!(spectra.shape()[..], [batch, samples / hop + 1, n / 2 + 1, 2]);
        let found = spectra.to_f64().unwrap();
        let padded = |b: usize, j: usize| {
            let period = 2 * (samples as i64 - 1);
            let i = (j as i64 - n as i64 / 2).rem_euclid(period);
            values[b * samples + i.min(period - i) as usize]
        };
        for (row, z) in found.chunks(2).enumerate().step_by(7) {
            let (k, f, b) = (row % (n / 2 + 1), row / (n / 2 + 1) % (samples / hop + 1), row / (n / 2 + 1) / (samples / hop + 1));
            let (mut re, mut im) = (0.0, 0.0);
            for j in 0..n {
                let angle = std::f64::consts::TAU * (j * k % n) as f64 / n as f64;
                let v = padded(b, f * hop + j) * (0.5 - 0.5 * (std::f64::consts::TAU * j as f64 / n as f64).cos());
                re += v * angle.cos();
                im -= v * angle.sin();
            }
            assert!((z[0] - re).abs() < 1e-11 && (z[1] - im).abs() < 1e-11, "window {n} item {b} frame {f} bin {k}");
        }
    }
}

#[test]
fn backward_is_the_adjoint_of_forward() {
    let mut rng = SplitMix(2);
    for (batch, samples, n, hop) in SIZES {
        let x = tensor(DType::F64, &random(&mut rng, batch * samples), [batch, samples]);
        let spectra = forward(&x, n, hop).unwrap();
        let cotangent = tensor(DType::F64, &random(&mut rng, spectra.elements()), spectra.shape());
        let dx = backward(&cotangent, samples, n, hop).unwrap();
        let dot = |a: &Tensor, b: &Tensor| a.to_f64().unwrap().iter().zip(b.to_f64().unwrap()).map(|(a, b)| a * b).sum::<f64>();
        let (left, right) = (dot(&spectra, &cotangent), dot(&x, &dx));
        assert!((left - right).abs() < 1e-11 * (1.0 + left.abs()), "window {n}: {left} {right}");
    }
}

#[test]
fn f32_stays_within_its_budget_of_f64() {
    for case in cases().iter().filter(|c| !c.bench) {
        let values = case.draw(7);
        let run = |oracle| {
            let inputs = case.upload(&Device::Cpu, &values, oracle).unwrap();
            (case.run)(&inputs).unwrap()[0].to_f64().unwrap()
        };
        let Check::Within(tolerance) = &case.outputs[0].1 else { unreachable!() };
        let comparison = tolerance.compare(&run(false), &run(true));
        assert!(comparison.holds(), "{}: {comparison:?}", case.label);
    }
}

#[test]
fn the_gradient_of_the_magnitude_is_its_central_difference_and_zero_at_zero() {
    let mut rng = SplitMix(4);
    let mut values = random(&mut rng, 2 * 33);
    let dmag = random(&mut rng, 33);
    let value = |v: &[f64]| {
        let m = magnitude(&tensor(DType::F64, v, [33, 2])).unwrap().to_f64().unwrap();
        m.iter().zip(&dmag).map(|(m, d)| m * d).sum::<f64>()
    };
    let found = magnitude_backward(&tensor(DType::F64, &dmag, [33]), &tensor(DType::F64, &values, [33, 2])).unwrap().to_f64().unwrap();
    for i in 0..values.len() {
        let (h, v) = (1e-6, values[i]);
        values[i] = v + h;
        let above = value(&values);
        values[i] = v - h;
        let below = value(&values);
        values[i] = v;
        let expected = (above - below) / (2.0 * h);
        assert!((found[i] - expected).abs() < 1e-6 * expected.abs().max(1e-2), "{i}: {} {expected}", found[i]);
    }
    let zero = magnitude_backward(&tensor(DType::F32, &[1.0], [1]), &tensor(DType::F32, &[0.0, 0.0], [1, 2])).unwrap();
    assert_eq!(zero.to_f64().unwrap(), [0.0, 0.0]);
}

#[test]
fn mel_filters_have_unit_area_in_hertz() {
    for (rate, n, mels) in [(16000, 2048, 80), (24000, 1024, 40)] {
        let filters = mel_filters(rate, n, mels);
        assert_eq!(filters.len(), (n / 2 + 1) * mels);
        for mel in mels / 2..mels {
            let area = filters.iter().skip(mel).step_by(mels).map(|&w| w as f64).sum::<f64>() * rate as f64 / n as f64;
            assert!((area - 1.0).abs() < 0.02, "band {mel} of {mels}: {area}");
        }
    }
}

#[test]
fn bad_operands_are_named() {
    let x = tensor(DType::F32, &[0.0; 32], [2, 16]);
    let message = |r: Result<Tensor>| r.err().unwrap().to_string();
    assert_eq!(message(forward(&x, 32, 8)), "stft: 16 samples are too few to reflect 16 at each end");
    assert!(forward(&x, 15, 4).is_err() && forward(&x, 0, 4).is_err() && forward(&x, 8, 0).is_err());
    assert!(forward(&tensor(DType::F32, &[0.0; 4], [4]), 4, 1).is_err());
    let spectra = forward(&x, 8, 4).unwrap();
    assert!(backward(&spectra, 15, 8, 2).is_err() && backward(&x, 16, 8, 4).is_err() && backward(&spectra, usize::MAX, 8, 4).is_err());
    assert!(magnitude(&x).is_err());
    assert!(magnitude_backward(&x, &spectra).is_err());
    assert_eq!(forward(&tensor(DType::F32, &[], [0, 16]), 8, 4).unwrap().shape()[..], [0, 5, 5, 2]);
}

#[test]
fn throughput_is_reported() {
    let mut rng = SplitMix(6);
    let (batch, samples) = (4, 9600);
    let x = tensor(DType::F32, &random(&mut rng, batch * samples), [batch, samples]);
    let mut total = 0.0;
    for n in [32, 64, 128, 256, 512, 1024, 2048] {
        let best = (0..10).map(|_| {
            let start = std::time::Instant::now();
            let spectra = forward(&x, n, n / 4).unwrap();
            let m = magnitude(&spectra).unwrap();
            let middle = start.elapsed().as_secs_f64();
            backward(&magnitude_backward(&m, &spectra).unwrap(), samples, n, n / 4).unwrap();
            (middle, start.elapsed().as_secs_f64() - middle)
        });
        let (there, back) = best.fold((f64::INFINITY, f64::INFINITY), |a, b| (a.0.min(b.0), a.1.min(b.1)));
        total += there + back;
        println!("window {n}: forward {:.2} ms, backward {:.2} ms", 1e3 * there, 1e3 * back);
    }
    println!("all scales: {:.2} ms", 1e3 * total);
}
