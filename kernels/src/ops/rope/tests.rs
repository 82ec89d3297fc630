use super::*;
use crate::ops::testing::{check_gradient, normal, tensor};

const CPU: Device = Device::Cpu;

#[test]
fn pairs_are_turned_as_the_definition_says() -> Result<()> {
    let (batch, tokens, heads, dim, theta) = (2, 3, 2, 6, 10_000f64);
    let x = normal([batch, tokens, heads, dim], 1);
    let seen = [0, 40];
    let v = x.to_f64()?;
    for style in [Style::Interleaved, Style::HalfSplit] {
        let y = forward(&x, &Rope::new(&CPU, dim, theta, style)?, &Positions::at(&CPU, &seen)?)?.to_f64()?;
        for (row, (y, x)) in y.chunks(dim).zip(v.chunks(dim)).enumerate() {
            let position = seen[row / (tokens * heads)] as usize + row / heads % tokens;
            for i in 0..dim / 2 {
                let (a, b) = if style == Style::Interleaved { (2 * i, 2 * i + 1) } else { (i, i + dim / 2) };
                let (sin, cos) = (position as f64 * theta.powf(-2.0 * i as f64 / dim as f64)).sin_cos();
                assert!((y[a] - (x[a] * cos - x[b] * sin)).abs() < 1e-13, "{style:?} row {row} pair {i}");
                assert!((y[b] - (x[a] * sin + x[b] * cos)).abs() < 1e-13, "{style:?} row {row} pair {i}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_phase_is_as_exact_after_years_as_at_the_start() -> Result<()> {
    // A third and an odd 2^-40th of a turn: their multiples are known without rounding.
    let third = std::f64::consts::TAU / 3.0;
    let rope = Rope::with_frequencies(&CPU, &[third, std::f64::consts::TAU * (12_345_677.0 * 2f64.powi(-40))], Style::Interleaved)?;
    let x = tensor(&[1.0, 0.0, 1.0, 0.0], [1, 1, 1, 4]);
    for position in [0, 1, 2_147_483_646, 2_000_000_011] {
        let y = forward(&x, &rope, &Positions::at(&CPU, &[position])?)?.to_f64()?;
        let slow = (position as u64 * 12_345_677) % (1 << 40);
        let expected = [(position % 3) as f64 * third, slow as f64 * 2f64.powi(-40) * std::f64::consts::TAU];
        for (i, angle) in expected.into_iter().enumerate() {
            // 2^31 times the rounding of a frequency in f64.
            assert!((y[2 * i] - angle.cos()).abs() < 1e-6 && (y[2 * i + 1] - angle.sin()).abs() < 1e-6, "{position}: {y:?}");
        }
        assert!((y[2] - expected[1].cos()).abs() < 1e-13);
    }
    Ok(())
}

#[test]
fn the_gradient_turns_back() -> Result<()> {
    for style in [Style::Interleaved, Style::HalfSplit] {
        let rope = Rope::new(&CPU, 8, 100.0, style)?;
        let positions = Positions::at(&CPU, &[3, 1000])?;
        check_gradient(
            &[normal([2, 5, 3, 8], 2)],
            |i| forward(&i[0], &rope, &positions),
            |_, dy| Ok(vec![Some(backward(dy, &rope, &positions)?)]),
        );
    }
    Ok(())
}
