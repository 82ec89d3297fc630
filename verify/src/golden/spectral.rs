use swara_engine::metrics;
use swara_kernels::ops::{loss, matmul, stft};
use swara_kernels::tolerance::Tolerance;
use swara_kernels::{DType, Device, Tensor};

use super::{Dump, Result, SAME};
use crate::Outcome;

pub fn stft(dump: &Dump, device: &Device, outcome: &mut Outcome) -> Result {
    let (window, hop) = (dump.count("window")?, dump.count("hop")?);
    let x = dump.tensor("x", SAME, device)?;
    let spectrum = stft::forward(&x, window, hop)?;
    let (re, im) = split(&spectrum)?;
    // The file has [B, F, frames].
    dump.check(outcome, "re", &[0, 2, 1], &re, Tolerance::fourier(window))?;
    dump.check(outcome, "im", &[0, 2, 1], &im, Tolerance::fourier(window))?;
    let (dre, _) = dump.values("dre", &[0, 2, 1])?;
    let (dim, _) = dump.values("dim", &[0, 2, 1])?;
    let joined: Vec<f32> = dre.iter().zip(&dim).flat_map(|(&r, &i)| [r as f32, i as f32]).collect();
    let dspec = Tensor::from_slice(device, &joined, spectrum.shape())?;
    let dx = stft::backward(&dspec, x.shape()[1], window, hop)?;
    dump.check(outcome, "dx", SAME, &dx, Tolerance::fourier(window).via(DType::F32, window.div_ceil(hop) + 2))
}

/// `[.., 2]` to its two halves.
fn split(spectrum: &Tensor) -> Result<(Tensor, Tensor)> {
    let shape = spectrum.shape();
    let values = spectrum.to_vec::<f32>()?;
    let half = |offset: usize| values.iter().skip(offset).step_by(2).copied().collect::<Vec<_>>();
    let to = [shape[0], shape[1], shape[2]];
    Ok((Tensor::from_slice(&Device::Cpu, &half(0), to)?, Tensor::from_slice(&Device::Cpu, &half(1), to)?))
}

/// What the phases' errors make of the waveform's gradient. A magnitude's gradient is the phase, and a transform errs by a share
/// of the spectrum's rms in every bin: in a quiet one that is a large angle. A sample sums the bins of all frames that have
/// it, four for a hop of a quarter; four standard deviations are allowed in the frame that suffers most.
fn phase_noise(dmagnitude: &Tensor, spectrum: &Tensor, window: usize) -> Result<f64> {
    let (dmagnitude, spectrum) = (dmagnitude.to_f64()?, spectrum.to_f64()?);
    let rms = (spectrum.iter().map(|v| v * v).sum::<f64>() / spectrum.len().max(1) as f64).sqrt();
    let error = Tolerance::fourier(window).budget(0.0, rms) / 4.0;
    let angle = |z: &[f64]| (error / z[0].hypot(z[1])).min(1.0);
    let bins = window / 2 + 1;
    let frames = dmagnitude.chunks(bins).zip(spectrum.chunks(2 * bins));
    let variance = |(d, z): (&[f64], &[f64])| d.iter().zip(z.chunks(2)).map(|(d, z)| (d * angle(z)).powi(2)).sum::<f64>();
    Ok(4.0 * (4.0 * frames.map(variance).fold(0.0, f64::max)).sqrt())
}

/// Every scale's loss and gradient through the ops that training uses. Where the two log mels nearly agree the gradient's
/// sign is undecided, so each scale's gradient is checked only if its closest pair is further apart than f32 can err.
pub fn mel(dump: &Dump, device: &Device, outcome: &mut Outcome) -> Result {
    const FLOOR: f64 = 1e-5;
    let rate = dump.count("sample_rate")? as u32;
    let (x, y) = (dump.tensor("x", SAME, device)?, dump.tensor("y", SAME, device)?);
    for (bands, window) in metrics::MEL_SCALES.into_iter().filter(|(_, w)| dump.has(&format!("loss.{w}"))) {
        let bins = window / 2 + 1;
        let filters = Tensor::from_slice(device, &stft::mel_filters(rate, window, bands), [bins, bands])?;
        if dump.has(&format!("filterbank.{window}")) {
            dump.check(outcome, &format!("filterbank.{window}"), &[1, 0], &filters, Tolerance::accumulate(1))?;
        }
        let mel = |wave: &Tensor| -> Result<(Tensor, Tensor)> {
            let spectrum = stft::forward(wave, window, window / 4)?;
            let mel = matmul::forward(&stft::magnitude(&spectrum)?, &filters, matmul::Transpose::default())?;
            Ok((spectrum, mel))
        };
        let ((spectrum, mel_x), (_, mel_y)) = (mel(&x)?, mel(&y)?);
        let value = loss::log_l1(&mel_x, &mel_y, FLOOR, 1.0)?.to_f64()?[0];
        let expected = dump.values(&format!("loss.{window}"), SAME)?.0[0];
        // Relative errors of the mels become absolute ones of their logarithms.
        dump.check_number(outcome, &format!("loss.{window}"), value, expected, 1e-5 * expected.abs().max(1e-2));
        let closest = dump.values(&format!("closest.{window}"), SAME)?.0[0];
        if closest > 1e-5 {
            let dmel = loss::log_l1_backward(&mel_x, &mel_y, FLOOR, 1.0, 1.0)?;
            let dmagnitude = matmul::forward(&dmel, &filters, matmul::Transpose { a: false, b: true })?;
            let dspectrum = stft::magnitude_backward(&dmagnitude, &spectrum)?;
            let dx = stft::backward(&dspectrum, x.shape()[1], window, window / 4)?;
            let tolerance = Tolerance::accumulate(4 * bins).plus(phase_noise(&dmagnitude, &spectrum, window)?);
            dump.check(outcome, &format!("dx.{window}"), SAME, &dx, tolerance)?;
        }
    }
    Ok(())
}

/// The quality measures; no device is involved.
pub fn metrics(dump: &Dump, _: &Device, outcome: &mut Outcome) -> Result {
    let rate = dump.count("sample_rate")? as u32;
    let read = |name: &str| -> Result<Vec<f32>> { Ok(dump.values(name, SAME)?.0.into_iter().map(|v| v as f32).collect()) };
    let (x, y) = (read("clean")?, read("degraded")?);
    let w = metrics::waveform(&x, &y);
    let mut number = |what: &str, found: f64, absolute: f64| -> Result {
        dump.check_number(outcome, what, found, dump.number(what)?, absolute);
        Ok(())
    };
    number("snr", w.snr_db, 1e-6)?;
    number("rho", w.rho, 1e-9)?;
    number("amplitude", w.amplitude, 1e-6)?;
    number("si_sdr", w.si_sdr_db, 1e-6)?;
    number("mel", metrics::mel_distance(&x, &y, rate).unwrap_or(f64::NAN), 1e-6)?;
    number("stft", metrics::stft_distance(&x, &y).unwrap_or(f64::NAN), 1e-6)?;
    number("stoi", metrics::stoi(&x, &y, rate).unwrap_or(f64::NAN), 1e-6)
}

/// Wideband PESQ of a clip that is degraded here as `verify/reference/pesq_clip.py` degraded it; no device is involved.
pub fn pesq(dump: &Dump, _: &Device, outcome: &mut Outcome) -> Result {
    /// What a prediction may differ by: a fiftieth of what listeners agree to.
    const OPINION: f64 = 0.01;
    let rate = dump.count("sample_rate")? as u32;
    let clean = dump.values("clean", SAME)?.0;
    let codec = dump.values("codec", SAME)?.0;
    let Some(scores) = dump.fact("scores")?.as_object() else { return Err(dump.wrong("scores", "an object")) };
    if clean.len() < 20_000 || codec.len() != clean.len() {
        return Err(dump.broken("clean and codec are not two signals of one length, 20000 samples or more".into()));
    }
    let noise: Vec<f64> = std::iter::successors(Some(1u32), |state| Some(state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223)))
        .skip(1)
        .map(|state| f64::from(state) / f64::from(1u32 << 31) - 1.0)
        .take(clean.len())
        .collect();
    let noisy = |level: f64| clean.iter().zip(&noise).map(|(v, u)| v + level * u).collect::<Vec<_>>();
    let hiss = noisy(0.01);
    let pause = |n: usize| vec![0.0; n];
    let pair = |name: &str| -> Option<(Vec<f64>, Vec<f64>)> {
        let x = || clean.clone();
        Some(match name {
            "copy" => (x(), x()),
            "noisy" => (x(), hiss.clone()),
            "loud_noise" => (x(), noisy(0.1)),
            "quiet" => (x(), hiss.iter().map(|v| 0.25 * v).collect()),
            "late" => (x(), [pause(1234), hiss.clone()].concat()),
            "early" => (x(), hiss[777..].to_vec()),
            "clipped" => (x(), clean.iter().map(|v| v.clamp(-0.05, 0.05)).collect()),
            "low_pass" => (x(), (0..clean.len()).map(|t| (0..8.min(t + 1)).map(|k| clean[t - k]).sum::<f64>() / 8.0).collect()),
            "lost" => (x(), clean.iter().enumerate().map(|(t, &v)| if (14_000..17_000).contains(&t) { 0.0 } else { v }).collect()),
            "cut" => (x(), [&hiss[..16_000], &hiss[16_700..]].concat()),
            "stretched" => ([x(), pause(8000), x()].concat(), [hiss.clone(), pause(8800), hiss.clone()].concat()),
            "long" => ([x(), pause(8000)].concat().repeat(8), [hiss.clone(), pause(8000)].concat().repeat(8)),
            "short" => (clean[8000..13_000].to_vec(), hiss[8000..13_000].to_vec()),
            "codec" => (x(), codec.clone()),
            _ => return None,
        })
    };
    for (name, expected) in scores {
        let (Some((x, y)), Some(expected)) = (pair(name), expected.as_f64()) else { return Err(dump.wrong(name, "a known degradation")) };
        let single = |wave: Vec<f64>| wave.into_iter().map(|v| v as f32).collect::<Vec<_>>();
        let found = metrics::pesq(&single(x), &single(y), rate).unwrap_or(f64::NAN);
        dump.check_number(outcome, name, found, expected, OPINION);
    }
    Ok(())
}
