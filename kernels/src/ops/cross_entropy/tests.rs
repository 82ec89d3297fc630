use super::*;
use crate::ops::testing::{check_emulator, check_gradient, normal, tensor};

const CPU: Device = Device::Cpu;

fn integers(values: &[i32]) -> Tensor {
    Tensor::from_slice(&CPU, values, [values.len()]).unwrap()
}

fn loss(logits: &Tensor, targets: &[i32], weights: &[f64]) -> f64 {
    let weights = tensor(weights, [weights.len()]);
    forward(logits, &integers(targets), &weights).unwrap().loss.to_f64().unwrap()[0]
}

#[test]
fn the_loss_is_the_weighted_mean_of_the_surprise() {
    let logits = tensor(&[0.25f64, 0.5, 0.25, 0.1, 0.1, 0.8].map(f64::ln), [2, 3]);
    let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-14, "{found} {expected}");
    near(loss(&logits, &[1, 2], &[1.0, 1.0]), -(0.5f64 * 0.8).ln() / 2.0);
    near(loss(&logits, &[1, 0], &[3.0, 1.0]), -(0.5f64.powi(3) * 0.1).ln() / 4.0);
    near(loss(&logits, &[1, -1], &[3.0, 1.0]), -(0.5f64).ln());
    near(loss(&logits, &[0, 2], &[0.0, 0.5]), -(0.8f64).ln());
    assert!(loss(&logits, &[-1, 2], &[1.0, 0.0]).is_nan());
}

#[test]
fn logits_of_any_size_give_what_their_differences_give() {
    let small = normal([2, 5], 1);
    for offset in [1e4, -1e4] {
        let shifted: Vec<f64> = small.to_f64().unwrap().iter().map(|x| x + offset).collect();
        let (a, b) = (loss(&small, &[0, 4], &[1.0, 2.0]), loss(&tensor(&shifted, [2, 5]), &[0, 4], &[1.0, 2.0]));
        assert!((a - b).abs() < 1e-10, "{a} {b}");
    }
}

#[test]
fn the_gradient_matches_differences() -> Result<()> {
    let (targets, weights) = (integers(&[2, -1, 0, 6, 3]), tensor(&[1.0, 2.0, 0.0, 0.5, 100.0], [5]));
    check_gradient(
        &[normal([5, 7], 3)],
        |i| Ok(forward(&i[0], &targets, &weights)?.loss),
        |i, dy| {
            let found = forward(&i[0], &targets, &weights)?;
            Ok(vec![Some(backward(&found, &i[0], &targets, &weights, dy.to_f64()?[0])?)])
        },
    );
    Ok(())
}

/// Whatever is in the logits of a row that does not count.
#[test]
fn rows_that_do_not_count_have_no_part() -> Result<()> {
    let logits = tensor(&[1.0, 2.0, f64::NAN, f64::INFINITY, f64::NAN, 0.0], [3, 2]);
    let (targets, weights) = (integers(&[0, -1, 1]), tensor(&[1.0, 1.0, 0.0], [3]));
    let found = forward(&logits, &targets, &weights)?;
    let dx = backward(&found, &logits, &targets, &weights, 1.0)?.to_f64()?;
    assert!((found.loss.to_f64()?[0] - (1.0 + 1f64.exp()).ln()).abs() < 1e-14);
    assert!((dx[0] + dx[1]).abs() < 1e-15 && dx[1] > 0.5);
    assert_eq!(dx[2..], [0.0; 4]);
    Ok(())
}

#[test]
fn what_does_not_fit_is_an_error() -> Result<()> {
    let (logits, targets, weights) = (normal([2, 3], 1), integers(&[0, 1]), normal([2], 2));
    assert!(forward(&logits, &targets, &weights).is_ok());
    for stray in [3, -2, i32::MAX, i32::MIN] {
        assert!(forward(&logits, &integers(&[0, stray]), &weights).is_err(), "{stray}");
    }
    for shape in [[2, 0], [3, 3], [1, 3]] {
        assert!(forward(&normal(shape, 1), &targets, &weights).is_err(), "{shape:?}");
    }
    assert!(forward(&normal([6], 1), &targets, &weights).is_err());
    assert!(forward(&logits, &integers(&[0]), &weights).is_err());
    assert!(forward(&logits, &normal([2], 1), &weights).is_err());
    assert!(forward(&logits, &targets, &normal([3], 1)).is_err());
    assert!(forward(&logits, &targets, &integers(&[1, 1])).is_err());
    assert!(forward(&integers(&[1, 1]).reshape([2, 1])?, &targets, &weights).is_err());
    let found = forward(&normal([3, 3], 1), &integers(&[0, 1, 2]), &normal([3], 2))?;
    assert!(backward(&found, &logits, &targets, &weights, 1.0).is_err());
    let none = forward(&normal([0, 3], 1), &integers(&[]), &normal([0], 2))?;
    assert!(none.loss.to_f64()?[0].is_nan());
    Ok(())
}

#[test]
fn the_emulator_computes_the_same() {
    check_emulator(&OP);
}
