use rayon::prelude::*;
use swara_fft::{Complex, FftError, Transform};

use super::{Geometry, NAME, hann};
use crate::cpu::{parallel, vectorised};
use crate::{Device, Error, Real, Result, Tensor};

/// Samples below which a second thread costs more than it saves.
const GRAIN: usize = 1 << 14;

pub fn forward<T: Real + Transform>(x: &Tensor, g: Geometry) -> Result<Tensor> {
    let mut out = Tensor::empty(&Device::Cpu, T::DTYPE, [g.batch, g.frames(), g.bins(), 2])?;
    let (x, width) = (x.as_slice::<T>()?, 2 * g.bins());
    let (window, plan) = (window::<T>(g.window), T::forward_plan(g.window));
    let run = |first: usize, spectra: &mut [T]| {
        let mut frame = vec![T::zero(); g.window];
        let mut spectrum = plan.make_output_vec();
        let mut scratch = plan.make_scratch_vec();
        for (i, out) in spectra.chunks_exact_mut(width).enumerate() {
            let (item, f) = ((first + i) / g.frames(), (first + i) % g.frames());
            let x = &x[item * g.samples..][..g.samples];
            let start = f * g.hop;
            if start >= g.pad() && start + g.pad() <= g.samples {
                let inside = &x[start - g.pad()..][..g.window];
                frame.iter_mut().zip(inside).zip(&window).for_each(|((v, &x), &w)| *v = x * w);
            } else {
                frame.iter_mut().zip(&window).enumerate().for_each(|(j, (v, &w))| *v = x[g.reflect(start + j)] * w);
            }
            plan.process_with_scratch(&mut frame, &mut spectrum, &mut scratch).map_err(refused)?;
            for (out, z) in out.chunks_exact_mut(2).zip(&spectrum) {
                out.copy_from_slice(&[z.re, z.im]);
            }
        }
        Ok(())
    };
    let spectra = out.as_mut_slice::<T>()?;
    let per_run = (g.batch * g.frames()).div_ceil(2 * rayon::current_num_threads()).max(GRAIN.div_ceil(g.window));
    spectra.par_chunks_mut(per_run * width).enumerate().try_for_each(|(i, spectra)| run(i * per_run, spectra))?;
    Ok(out)
}

/// The adjoint: each frame's spectrum through the inverse transform, windowed, overlapped and added, and the reflected
/// ends folded back.
pub fn backward<T: Real + Transform>(dspec: &Tensor, g: Geometry) -> Result<Tensor> {
    let mut dx = Tensor::zeros(&Device::Cpu, T::DTYPE, [g.batch, g.samples])?;
    let dspec = dspec.as_slice::<T>()?;
    let (window, plan) = (window::<T>(g.window), T::inverse_plan(g.window));
    let (half, last) = (T::of(0.5), g.bins() - 1);
    let run = |item: usize, dx: &mut [T]| {
        let mut padded = vec![T::zero(); g.samples + g.window];
        let mut spectrum = plan.make_input_vec();
        let mut frame = plan.make_output_vec();
        let mut scratch = plan.make_scratch_vec();
        let spectra = dspec[item * g.frames() * g.bins() * 2..][..g.frames() * g.bins() * 2].chunks_exact(g.bins() * 2);
        for (f, dspec) in spectra.enumerate() {
            // The inverse transform counts every bin but the first and the last twice, once as its conjugate.
            for (z, d) in spectrum.iter_mut().zip(dspec.chunks_exact(2)) {
                *z = Complex::new(d[0] * half, d[1] * half);
            }
            spectrum[0] = Complex::new(dspec[0], T::zero());
            spectrum[last] = Complex::new(dspec[2 * last], T::zero());
            plan.process_with_scratch(&mut spectrum, &mut frame, &mut scratch).map_err(refused)?;
            let (padded, frame, window) = (&mut padded[f * g.hop..][..g.window], &frame[..g.window], &window[..g.window]);
            vectorised(
                #[inline(always)]
                || (0..g.window).for_each(|i| padded[i] = frame[i].mul_add(window[i], padded[i])),
            );
        }
        dx.copy_from_slice(&padded[g.pad()..][..g.samples]);
        let ends = (0..g.pad()).chain(g.pad() + g.samples..g.window + g.samples);
        ends.for_each(|j| dx[g.reflect(j)] += padded[j]);
        Ok(())
    };
    let per_item = g.samples.max(1);
    dx.as_mut_slice::<T>()?.par_chunks_mut(per_item).enumerate().try_for_each(|(item, dx)| run(item, dx))?;
    Ok(dx)
}

pub fn magnitude<T: Real>(out: &mut Tensor, spec: &Tensor) -> Result<()> {
    let spec = spec.as_slice::<T>()?;
    parallel::for_rows(out.as_mut_slice()?, 1, |first, run| {
        vectorised(
            #[inline(always)]
            || {
                for (m, z) in run.iter_mut().zip(spec[2 * first..].chunks_exact(2)) {
                    *m = (z[0] * z[0] + z[1] * z[1]).sqrt();
                }
            },
        )
    });
    Ok(())
}

pub fn magnitude_backward<T: Real>(dspec: &mut Tensor, dmag: &Tensor, spec: &Tensor) -> Result<()> {
    let (dmag, spec) = (dmag.as_slice::<T>()?, spec.as_slice::<T>()?);
    parallel::for_rows(dspec.as_mut_slice()?, 2, |first, run| {
        vectorised(
            #[inline(always)]
            || {
                let operands = dmag[first..].iter().zip(spec[2 * first..].chunks_exact(2));
                for (d, (&dm, z)) in run.chunks_exact_mut(2).zip(operands) {
                    let m = (z[0] * z[0] + z[1] * z[1]).sqrt();
                    let scale = if m > T::zero() { dm / m } else { T::zero() };
                    d[0] = z[0] * scale;
                    d[1] = z[1] * scale;
                }
            },
        )
    });
    Ok(())
}

fn window<T: Real>(n: usize) -> Vec<T> {
    (0..n).map(|i| T::of(hann(i, n))).collect()
}

fn refused(e: FftError) -> Error {
    Error::argument(NAME, e.to_string())
}
