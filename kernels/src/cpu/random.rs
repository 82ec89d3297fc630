//! Random numbers by counter, and what sampling makes of them: `cuda/rng.cuh` on the CPU, bit for bit.

/// Philox4x32-10 (Salmon et al., SC 2011): 128 bits that look random, of a 128-bit counter and a 64-bit key.
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let [a, b, c, d] = counter;
        let (first, second) = (0xd251_1f53 * u64::from(a), 0xcd9e_8d57 * u64::from(c));
        counter = [(second >> 32) as u32 ^ b ^ key[0], second as u32, (first >> 32) as u32 ^ d ^ key[1], first as u32];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    counter
}

/// The logarithm of a positive normal number, to 2 units in the last place, by operations that round the same everywhere.
pub fn log_exact(x: f32) -> f32 {
    let exponent = x.to_bits().wrapping_sub(0x3f2a_aaab) & 0xff80_0000;
    let f = f32::from_bits(x.to_bits().wrapping_sub(exponent)) - 1.0;
    let coefficients = [0.139_844_66, -0.121_842_6, 0.140_058_62, -0.166_804_88, 0.200_104_06, -0.249_997_97, 0.333_332_15, -0.5];
    let q = coefficients.into_iter().fold(-0.128_916_87f32, |q, c| q.mul_add(f, c));
    const LN_2: f32 = std::f32::consts::LN_2 / (1 << 23) as f32;
    (exponent as i32 as f32).mul_add(LN_2, (f * f).mul_add(q, f))
}

/// `-log(-log(u))` for a `u` in (0, 1) made of `bits`: `argmax(log p_i + gumbel_i)` is `i` with probability `p_i`.
pub fn gumbel(bits: u32) -> f32 {
    let v = (bits as f32).mul_add(2f32.powi(-32), 2f32.powi(-33)).min(1.0 - 2f32.powi(-24));
    let y = 1.0 - v;
    -log_exact((v - (1.0 - y)) / y - log_exact(y))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tolerance::ROUNDOFF;

    /// The known answers of Random123 (`kat_vectors`).
    #[test]
    fn philox_gives_the_published_bits() {
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        for (counter, key, expected) in [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (pi, [0xa409_3822, 0x299f_31d0], [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]),
        ] {
            assert_eq!(philox(counter, key), expected);
        }
    }

    #[test]
    fn logarithms_are_those_of_the_standard_library_to_two_units() {
        let mut worst = 0f64;
        for bits in (f32::MIN_POSITIVE.to_bits()..f32::INFINITY.to_bits()).step_by(1009) {
            let x = f32::from_bits(bits);
            let expected = f64::from(x).ln();
            let unit = 2f64.powi((expected.abs().max(1e-38).log2().floor()) as i32 - 23);
            worst = worst.max((f64::from(log_exact(x)) - expected).abs() / unit);
        }
        assert!(worst < 2.0, "{worst}");
        assert_eq!(log_exact(1.0), 0.0);
    }

    #[test]
    fn gumbel_numbers_are_those_of_the_formula() {
        let ends = (0..1000).chain(u32::MAX - 100_000..u32::MAX - 1000);
        for bits in ends.chain((0..u32::MAX - 1000).step_by(40_009)) {
            let v = (f64::from(bits) + 0.5) / 2f64.powi(32);
            let exponential = -(-v).ln_1p();
            let expected = -exponential.ln();
            // What v's rounding makes of it, and those of the logarithms.
            let allowed = ROUNDOFF * (v / ((1.0 - v) * exponential) + 8.0 * expected.abs().max(1.0));
            let error = (f64::from(gumbel(bits)) - expected).abs();
            assert!(error <= allowed, "{bits}: {error}, allowed {allowed}");
        }
        assert!((-2.9..-2.7).contains(&gumbel(u32::MAX)));
    }
}
