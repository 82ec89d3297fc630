//! Codecs that code a signal in pieces which overlap: all of it, one signal after the other.

use swara_engine::codec::{Codec, Codes};
use swara_kernels::tolerance::Tolerance;

use super::published::{AGREEMENT, TIE, WAVE};
use super::{Dump, Result, SAME, SWAP};
use crate::Outcome;

/// Loudnesses, codes, and waves of all or some codebooks.
pub fn compare(dump: &Dump, codec: &Codec, outcome: &mut Outcome, layout: &str) -> Result {
    let (input, shape) = dump.values("input", SWAP)?;
    let (codes, codes_shape) = dump.values("codes", SAME)?;
    let (margin, scales) = (dump.values("margin", SAME)?.0, dump.values("scales", SAME)?.0);
    let &[pieces, batch, codebooks, full] = &codes_shape[..] else { return Err(dump.broken(format!("codes have shape {codes_shape:?}"))) };
    let unused = dump.count("last_frame_pad_length")?;
    let all = Expected { pieces, batch, codebooks, full, unused };
    let (mut same, mut total) = (0, 0);
    for (b, x) in input.chunks(shape[1] * shape[2]).enumerate() {
        let x: Vec<f32> = x.iter().map(|&v| v as f32).collect();
        let found = codec.encode(&x, codebooks)?;
        let loudness: Vec<f64> = found.scales.iter().map(|&s| f64::from(s)).collect();
        let expected: Vec<f64> = scales.iter().skip(b).step_by(batch).copied().collect();
        // A mean in f64, rounded once; the published code adds the small number in another place.
        outcome.add(&format!("{layout} loudness"), Tolerance::roundings(2).plus(1e-8).compare(&loudness, &expected));
        let (expected, margin) = (all.of(&codes, b, codebooks), all.of(&margin, b, codebooks));
        if found.values.len() != expected.len() {
            outcome.fail(format!("{layout}, item {b}: {} codes, expected {}", found.values.len(), expected.len()));
            continue;
        }
        for t in 0..found.frames {
            let differs = (0..codebooks).map(|k| k * found.frames + t).find(|&i| f64::from(found.values[i]) != expected[i]);
            if let Some(i) = differs.filter(|&i| margin[i] > TIE) {
                outcome.fail(format!("{layout}, item {b}, frame {t}, code {}: another code, by a clear margin", i / found.frames));
            }
        }
        same += found.values.iter().zip(&expected).filter(|&(&found, &expected)| f64::from(found) == expected).count();
        total += expected.len();
    }
    let share = same as f64 / total.max(1) as f64;
    if share < AGREEMENT {
        outcome.fail(format!("{layout}: {same} of {total} codes agree"));
    }
    dump.check_number(outcome, &format!("{layout} codes of all pieces"), share, 1.0, 1.0 - AGREEMENT);

    let given = dump.values("given.codes", SAME)?.0;
    let mut waves = vec![("wave".to_owned(), &codes, codebooks), ("given.wave".to_owned(), &given, codebooks)];
    waves.extend((1..codebooks).map(|k| (format!("wave.{k}"), &codes, k)).filter(|(wave, ..)| dump.has(wave)));
    for (wave, codes, k) in waves {
        let expected = dump.values(&wave, SWAP)?.0;
        let mut found = Vec::with_capacity(expected.len());
        for b in 0..batch {
            let values: Vec<i32> = all.of(codes, b, k).into_iter().map(|code| code as i32).collect();
            let scales = scales.iter().skip(b).step_by(batch).map(|&s| s as f32).collect();
            found.extend(codec.decode(&Codes { codebooks: k, frames: values.len() / k, values, scales })?.into_iter().map(f64::from));
        }
        let peak = expected.iter().fold(0.0, |peak: f64, v| peak.max(v.abs()));
        outcome.add(&format!("{layout} {wave}"), Tolerance::EXACT.plus(WAVE * peak).compare(&found, &expected));
    }
    Ok(())
}

/// The extents of a dump's codes `[pieces, B, K, F]`, of the last of which so many frames are none.
struct Expected {
    pieces: usize,
    batch: usize,
    codebooks: usize,
    full: usize,
    unused: usize,
}

impl Expected {
    /// One signal's, one codebook after the other.
    fn of(&self, values: &[f64], item: usize, codebooks: usize) -> Vec<f64> {
        let row = |k: usize, n: usize| {
            let used = self.full - if n + 1 == self.pieces { self.unused } else { 0 };
            &values[((n * self.batch + item) * self.codebooks + k) * self.full..][..used]
        };
        (0..codebooks).flat_map(|k| (0..self.pieces).flat_map(move |n| row(k, n))).copied().collect()
    }
}
