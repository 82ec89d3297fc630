use super::*;
use crate::case::SplitMix;

fn tensor(values: &[f64], shape: impl Into<crate::Shape>) -> Tensor {
    Tensor::from_f64(&Device::Cpu, DType::F64, values, shape).unwrap()
}

fn indices(values: &[i32]) -> Tensor {
    Tensor::from_slice(&Device::Cpu, values, [values.len()]).unwrap()
}

#[test]
fn statistics_count_and_sum_each_cluster() {
    let x = tensor(&[1.0, 10.0, 2.0, 20.0, 4.0, 40.0], [3, 2]);
    let (counts, sums) = statistics(&x, &indices(&[2, 0, 2]), 4).unwrap();
    assert_eq!(counts.to_f64().unwrap(), [1.0, 0.0, 2.0, 0.0]);
    assert_eq!(sums.to_f64().unwrap(), [2.0, 20.0, 0.0, 0.0, 5.0, 50.0, 0.0, 0.0]);
}

#[test]
fn the_average_decays_and_the_embedding_divides_by_usage() {
    let (mut usage, mut sum) = (tensor(&[1.0, 0.0], [2]), tensor(&[3.0, 0.5], [2, 1]));
    ema_update(&mut usage, &mut sum, &tensor(&[3.0, 0.0], [2]), &tensor(&[5.0, 0.0], [2, 1]), 0.75).unwrap();
    assert_eq!(usage.to_f64().unwrap(), [1.5, 0.0]);
    assert_eq!(sum.to_f64().unwrap(), [3.5, 0.375]);
    assert_eq!(embedding(&usage, &sum, 0.25).unwrap().to_f64().unwrap(), [3.5 / 1.5, 1.5]);
}

#[test]
fn replaced_rows_embed_as_their_samples() {
    let (mut usage, mut sum) = (tensor(&[1.0, 2.0, 4.0], [3]), tensor(&[1.0; 6], [3, 2]));
    replace_rows(&mut sum, &mut usage, &indices(&[2, 0]), &tensor(&[5.0, 6.0, 7.0, 8.0], [2, 2]), 0.5).unwrap();
    assert_eq!(embedding(&usage, &sum, 1e-5).unwrap().to_f64().unwrap(), [7.0, 8.0, 0.5, 0.5, 5.0, 6.0]);
    assert_eq!(usage.to_f64().unwrap(), [0.5, 2.0, 0.5]);
}

#[test]
fn kmeans_finds_separated_clusters_after_empty_ones_are_replaced() {
    let mut rng = SplitMix(2);
    let centres = [[-4.0, 0.0], [4.0, 0.0], [0.0, 5.0]];
    let x: Vec<f64> = (0..300).flat_map(|i| centres[i % 3].map(|c| c + 0.1 * (rng.uniform() - 0.5))).collect();
    let x = tensor(&x, [300, 2]);
    // Two of the three starting means are out of reach of every sample.
    let mut means = tensor(&[0.0, 0.0, 99.0, 99.0, -99.0, 99.0], [3, 2]);
    for _ in 0..10 {
        let (mut counts, mut sums) = kmeans_step(&x, &means).unwrap();
        let empty: Vec<i32> = (0..3).filter(|&k| counts.as_slice::<f64>().unwrap()[k as usize] == 0.0).collect();
        let picks: Vec<f64> = (0..empty.len())
            .flat_map(|_| x.as_slice::<f64>().unwrap().chunks(2).nth((rng.next() % 300) as usize).unwrap())
            .copied()
            .collect();
        replace_rows(&mut sums, &mut counts, &indices(&empty), &tensor(&picks, [empty.len(), 2]), 1.0).unwrap();
        means = embedding(&counts, &sums, 1e-5).unwrap();
    }
    let means = means.to_f64().unwrap();
    for centre in centres {
        assert!(means.chunks(2).any(|m| (m[0] - centre[0]).hypot(m[1] - centre[1]) < 0.1), "{centre:?} not in {means:?}");
    }
}

#[test]
fn bad_operands_are_named() {
    let x = tensor(&[0.0; 6], [3, 2]);
    let message = |e: Error| e.to_string();
    assert_eq!(message(statistics(&x, &indices(&[0, 1, 4]), 4).err().unwrap()), "codebook: code 4 is not below 4");
    assert!(statistics(&x, &indices(&[0, -1, 0]), 4).is_err());
    assert!(statistics(&x, &indices(&[0, 1]), 4).is_err());
    assert!(statistics(&x, &tensor(&[0.0; 3], [3]), 4).is_err());
    assert!(statistics(&x, &indices(&[0, 0, 0]), usize::MAX).is_err());
    let (mut usage, mut sum) = (tensor(&[1.0; 3], [3]), tensor(&[1.0; 6], [3, 2]));
    let sample = tensor(&[0.0; 4], [2, 2]);
    assert_eq!(
        message(replace_rows(&mut sum, &mut usage, &indices(&[1, 1]), &sample, 1.0).err().unwrap()),
        "codebook: row 1 is replaced twice"
    );
    assert_eq!(
        message(replace_rows(&mut sum, &mut usage, &indices(&[0, 3]), &sample, 1.0).err().unwrap()),
        "codebook: row 3 is not below 3"
    );
    assert!(replace_rows(&mut sum, &mut usage, &indices(&[0]), &sample, 1.0).is_err());
    assert!(embedding(&usage, &x.copy().unwrap().reshape([2, 3]).unwrap(), 1e-5).is_err());
}
