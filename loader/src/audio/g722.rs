//! ITU-T G.722 at 64 kbit/s: two sub-bands of 8 kHz, each coded by adaptive differential PCM (6 bits low, 2 bits high),
//! joined by a 24-tap quadrature mirror filter. All arithmetic is the recommendation's 16-bit fixed point, so that the output
//! is the reference decoder's, bit for bit. Names follow its block diagrams.

use std::io::Read;

use super::{Block, Source, Warning};
use crate::AudioError;

pub const RATE: u32 = 16_000;

const QM2: [i32; 4] = [-7408, -1616, 7408, 1616];
const QM4: [i32; 16] = [0, -20456, -12896, -8968, -6288, -4240, -2584, -1200, 20456, 12896, 8968, 6288, 4240, 2584, 1200, 0];
const QM6: [i32; 64] = [
    -136, -136, -136, -136, -24808, -21904, -19008, -16704, -14984, -13512, -12280, -11192, -10232, -9360, -8576, -7856, -7192, -6576,
    -6000, -5456, -4944, -4464, -4008, -3576, -3168, -2776, -2400, -2032, -1688, -1360, -1040, -728, 24808, 21904, 19008, 16704, 14984,
    13512, 12280, 11192, 10232, 9360, 8576, 7856, 7192, 6576, 6000, 5456, 4944, 4464, 4008, 3576, 3168, 2776, 2400, 2032, 1688, 1360, 1040,
    728, 432, 136, -432, -136,
];
/// Logarithmic step of the low band's quantiser, by its 4 leading bits.
const STEP_LOW: [i32; 16] = [-60, 3042, 1198, 538, 334, 172, 58, -30, 3042, 1198, 538, 334, 172, 58, -30, -60];
const STEP_HIGH: [i32; 4] = [798, -214, 798, -214];
/// 2048 * 2^(i/32).
const INVERSE_LOG: [i32; 32] = [
    2048, 2093, 2139, 2186, 2233, 2282, 2332, 2383, 2435, 2489, 2543, 2599, 2656, 2714, 2774, 2834, 2896, 2960, 3025, 3091, 3158, 3228,
    3298, 3371, 3444, 3520, 3597, 3676, 3756, 3838, 3922, 4008,
];
const QMF: [i32; 12] = [3, -11, 12, 32, -210, 951, 3876, -805, 362, -156, 53, -11];

fn saturate(x: i32) -> i32 {
    x.clamp(-32768, 32767)
}

/// One sub-band: the adaptive quantiser's scale and the two-pole, six-zero predictor.
struct Band {
    /// Predicted signal.
    s: i32,
    sz: i32,
    /// Reconstructed signal and its partial form, this one and the two before it.
    r: [i32; 3],
    p: [i32; 3],
    /// Poles and zeros.
    a: [i32; 2],
    b: [i32; 6],
    /// Quantised differences.
    d: [i32; 7],
    log_scale: i32,
    scale: i32,
}

impl Band {
    fn new(scale: i32) -> Self {
        Self { s: 0, sz: 0, r: [0; 3], p: [0; 3], a: [0; 2], b: [0; 6], d: [0; 7], log_scale: 0, scale }
    }

    fn rescale(&mut self, step: i32, max: i32, shift: i32) {
        self.log_scale = (((self.log_scale * 127) >> 7) + step).clamp(0, max);
        let mantissa = INVERSE_LOG[((self.log_scale >> 6) & 31) as usize];
        let shift = shift - (self.log_scale >> 11);
        self.scale = if shift < 0 { mantissa << -shift } else { mantissa >> shift } << 2;
    }

    fn predict(&mut self, d: i32) {
        self.d[0] = d;
        self.r[0] = saturate(self.s + d);
        self.p[0] = saturate(self.sz + d);

        let sign = |x: i32| x >> 15;
        let [p0, p1, p2] = self.p.map(sign);
        let slope = saturate(self.a[0] << 2);
        let slope = if p0 == p1 { saturate(-slope) } else { slope };
        let a2 = (slope >> 7) + if p0 == p2 { 128 } else { -128 } + ((self.a[1] * 32512) >> 15);
        let a2 = a2.clamp(-12288, 12288);
        let a1 = saturate(if p0 == p1 { 192 } else { -192 } + ((self.a[0] * 32640) >> 15));
        let limit = saturate(15360 - a2);
        self.a = [a1.clamp(-limit, limit), a2];

        let step = if d == 0 { 0 } else { 128 };
        for (b, &older) in self.b.iter_mut().zip(&self.d[1..]) {
            let step = if sign(older) == sign(d) { step } else { -step };
            *b = saturate(step + ((*b * 32640) >> 15));
        }

        self.d.copy_within(0..6, 1);
        self.r.copy_within(0..2, 1);
        self.p.copy_within(0..2, 1);

        let pole = |a: i32, r: i32| (a * saturate(2 * r)) >> 15;
        let sp = saturate(pole(self.a[0], self.r[1]) + pole(self.a[1], self.r[2]));
        self.sz = saturate(self.b.iter().zip(&self.d[1..]).map(|(&b, &d)| (b * saturate(2 * d)) >> 15).sum());
        self.s = saturate(sp + self.sz);
    }
}

pub struct Decoder {
    low: Band,
    high: Band,
    qmf: [i32; 24],
}

impl Default for Decoder {
    fn default() -> Self {
        Self { low: Band::new(32), high: Band::new(8), qmf: [0; 24] }
    }
}

impl Decoder {
    /// One byte to two samples at 16 kHz. Any byte is valid.
    pub fn decode(&mut self, byte: u8) -> [i16; 2] {
        let (low, high) = (&mut self.low, &mut self.high);
        let code = usize::from(byte & 63);
        let r_low = (low.s + ((low.scale * QM6[code]) >> 15)).clamp(-16384, 16383);
        let d_low = (low.scale * QM4[code >> 2]) >> 15;
        low.rescale(STEP_LOW[code >> 2], 18432, 8);
        low.predict(d_low);

        let code = usize::from(byte >> 6);
        let d_high = (high.scale * QM2[code]) >> 15;
        let r_high = (high.s + d_high).clamp(-16384, 16383);
        high.rescale(STEP_HIGH[code], 22528, 10);
        high.predict(d_high);

        self.qmf.copy_within(2.., 0);
        self.qmf[22] = r_low + r_high;
        self.qmf[23] = r_low - r_high;
        let (mut odd, mut even) = (0, 0);
        for i in 0..12 {
            even += self.qmf[2 * i] * QMF[i];
            odd += self.qmf[2 * i + 1] * QMF[11 - i];
        }
        [odd, even].map(|x| saturate(x >> 11) as i16)
    }
}

pub(super) struct G722<R> {
    reader: R,
    decoder: Decoder,
    bytes: Vec<u8>,
    done: bool,
}

impl<R: Read> G722<R> {
    pub fn new(reader: R) -> Self {
        Self { reader, decoder: Decoder::default(), bytes: vec![0; super::BLOCK / 2], done: false }
    }
}

impl<R: Read + Send> Source for G722<R> {
    fn rate(&self) -> u32 {
        RATE
    }

    fn channels(&self) -> usize {
        1
    }

    fn frames(&self) -> Option<u64> {
        None
    }

    fn next(&mut self, out: &mut Block) -> Result<bool, AudioError> {
        out.clear();
        if self.done {
            return Ok(false);
        }
        let got = super::wav::fill(&mut self.reader, &mut self.bytes).map_err(super::damaged)?;
        self.done = got < self.bytes.len();
        for &byte in &self.bytes[..got] {
            out.extend(self.decoder.decode(byte).map(|x| f32::from(x) / 32768.0));
        }
        Ok(got > 0)
    }

    fn warnings(&mut self) -> Vec<Warning> {
        Vec::new()
    }
}
