use super::*;
use crate::case::SplitMix;
use crate::ops::testing::devices;

fn random(rng: &mut SplitMix, n: usize) -> Vec<f64> {
    (0..n).map(|_| (rng.uniform() + rng.uniform() - 1.0) as f32 as f64).collect()
}

fn tensor(dtype: DType, values: &[f64], shape: [usize; 2]) -> Tensor {
    Tensor::from_f64(&Device::Cpu, dtype, values, shape).unwrap()
}

/// The definition, one row and one codeword at a time.
fn argmin(x: &[f64], codebook: &[f64], d: usize, metric: Metric) -> Vec<i32> {
    let norm = |v: &[f64]| v.iter().map(|a| a * a).sum::<f64>().sqrt().max(1e-12);
    let score = |a: &[f64], b: &[f64]| match metric {
        Metric::Euclidean => a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>(),
        Metric::Cosine => -a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>() / norm(a) / norm(b),
    };
    let nearest = |row: &[f64]| {
        let scores: Vec<f64> = codebook.chunks(d).map(|c| score(row, c)).collect();
        (0..scores.len()).min_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap() as i32
    };
    x.chunks(d).map(nearest).collect()
}

#[test]
fn the_nearest_codeword_is_found_at_odd_sizes() {
    let mut rng = SplitMix(3);
    for (n, k, d) in [(1, 1, 1), (31, 33, 8), (127, 500, 31), (405, 129, 64), (5, 17, 3)] {
        let (x, codebook) = (random(&mut rng, n * d), random(&mut rng, k * d));
        for metric in [Metric::Euclidean, Metric::Cosine] {
            let expected = argmin(&x, &codebook, d, metric);
            for dtype in [DType::F32, DType::F64] {
                let (x, codebook) = (tensor(dtype, &x, [n, d]), tensor(dtype, &codebook, [k, d]));
                let found = nearest(&x, &codebook, metric).unwrap().to_vec::<i32>().unwrap();
                let margins = margin(&x, &codebook, metric).unwrap().to_f64().unwrap();
                for i in 0..n {
                    let excused = dtype == DType::F32 && margins[i] < code_epsilon(d, 1);
                    assert!(found[i] == expected[i] || excused, "{n}x{d} in {k} {metric:?} {dtype} row {i}: {} {}", found[i], expected[i]);
                }
            }
        }
    }
}

#[test]
fn ties_go_to_the_lowest_index_in_every_lane() {
    let d = 3;
    for k in [2, 16, 17, 40, 257] {
        for first in [0, 1, k / 2, k - 1] {
            // Codewords `first` and all after it are the same point, the ones before it are far away.
            let codebook: Vec<f64> = (0..k * d).map(|i| if i / d < first { 9.0 } else { 0.25 * (1 + i % d) as f64 }).collect();
            let x = [0.25, 0.5, 0.75].repeat(5);
            for metric in [Metric::Euclidean, Metric::Cosine] {
                let codes = nearest(&tensor(DType::F32, &x, [5, d]), &tensor(DType::F32, &codebook, [k, d]), metric).unwrap();
                assert_eq!(codes.to_vec::<i32>().unwrap(), [first as i32; 5], "{metric:?} of {k}");
            }
        }
    }
}

#[test]
fn rows_do_not_depend_on_how_many_there_are() {
    let mut rng = SplitMix(9);
    let (n, k, d) = (403, 300, 16);
    let (x, codebook) = (random(&mut rng, n * d), random(&mut rng, k * d));
    let codebook = tensor(DType::F32, &codebook, [k, d]);
    let together = search(&tensor(DType::F32, &x, [n, d]), &[&codebook, &codebook]).unwrap();
    let (codes, residual) = (together.0.to_vec::<i32>().unwrap(), together.1.to_vec::<f32>().unwrap());
    for i in [0, 1, 2, 3, 200, 402] {
        let (code, rest) = search(&tensor(DType::F32, &x[i * d..][..d], [1, d]), &[&codebook, &codebook]).unwrap();
        assert_eq!(code.to_vec::<i32>().unwrap(), codes[2 * i..][..2]);
        assert_eq!(rest.to_vec::<f32>().unwrap(), residual[i * d..][..d]);
    }
}

#[test]
fn prepared_codebooks_fill_and_decode_columns_as_others_do_all() {
    let mut rng = SplitMix(13);
    let d = 33;
    for (device, (n, sizes)) in devices()
        .unwrap()
        .iter()
        .flat_map(|device| [(1, [700, 65, 31]), (3, [2048, 1, 300]), (90, [64, 500, 33])].map(|shape| (device, shape)))
    {
        let mut random = |rows: usize| Tensor::from_f64(device, DType::F32, &random(&mut rng, rows * d), [rows, d]).unwrap();
        let books = sizes.map(&mut random);
        let x = random(n);
        let books: Vec<&Tensor> = books.iter().collect();
        let prepared = Codebooks::new(&books).unwrap();
        let zeros = || Tensor::zeros(device, DType::I32, [n, 5]).unwrap();
        let compare = || {
            for stages in 1..=3 {
                for first in 0..=5 - stages {
                    let columns = first..first + stages;
                    let (codes, residual) = search(&x, &books[..stages]).unwrap();
                    let mut found = zeros();
                    let left = prepared.search(&x, &mut found, columns.clone()).unwrap();
                    assert_eq!(left.to_vec::<f32>().unwrap(), residual.to_vec::<f32>().unwrap());
                    let rows = codes.to_vec::<i32>().unwrap();
                    for (found, codes) in found.to_vec::<i32>().unwrap().chunks(5).zip(rows.chunks(stages)) {
                        assert_eq!(&found[columns.clone()], codes);
                        assert!(found[..columns.start].iter().chain(&found[columns.end..]).all(|&code| code == 0));
                    }
                    let decoded = prepared.decode(&found, columns).unwrap().to_vec::<f32>().unwrap();
                    assert_eq!(decoded, decode(&codes, &books).unwrap().to_vec::<f32>().unwrap());
                }
            }
        };
        for threads in [1, 3] {
            rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(compare);
        }
        let mut codes = zeros();
        for columns in [0..0, 0..4, 4..6, 6..7, usize::MAX..usize::MAX] {
            assert!(prepared.decode(&codes, columns.clone()).is_err());
            assert!(prepared.search(&x, &mut codes, columns).is_err());
        }
        if *device == Device::Cpu {
            let stray = Tensor::from_slice(device, &[0, sizes[1] as i32], [1, 2]).unwrap();
            assert!(prepared.decode(&stray, 0..2).is_err());
        }
    }
}

#[test]
fn what_is_decoded_and_what_is_left_add_up_to_the_input() {
    let mut rng = SplitMix(5);
    let (n, d) = (33, 7);
    let sizes = [40, 16, 1];
    let books: Vec<Tensor> = sizes.iter().map(|&k| tensor(DType::F64, &random(&mut rng, k * d), [k, d])).collect();
    let books: Vec<&Tensor> = books.iter().collect();
    let values = random(&mut rng, n * d);
    let x = tensor(DType::F64, &values, [n, d]);
    let (codes, residual) = search(&x, &books).unwrap();
    let decoded = decode(&codes, &books).unwrap().to_f64().unwrap();
    for ((x, y), r) in values.iter().zip(decoded).zip(residual.to_f64().unwrap()) {
        assert!((x - y - r).abs() < 1e-14);
    }
    let first = tensor(DType::F64, &residual.to_f64().unwrap(), [n, d]);
    assert_eq!(
        stage(&x, books[0]).unwrap().0.to_vec::<i32>().unwrap(),
        nearest(&x, books[0], Metric::Euclidean).unwrap().to_vec::<i32>().unwrap()
    );
    assert_ne!(first.to_f64().unwrap(), values);
}

#[test]
fn scatter_add_is_the_adjoint_of_gather() {
    let mut rng = SplitMix(11);
    let (n, k, d) = (65, 9, 5);
    let codebook = tensor(DType::F64, &random(&mut rng, k * d), [k, d]);
    let dy = tensor(DType::F64, &random(&mut rng, n * d), [n, d]);
    let picks: Vec<i32> = (0..n).map(|_| (rng.next() % k as u64) as i32).collect();
    let codes = Tensor::from_slice(&Device::Cpu, &picks, [n]).unwrap();
    let dot = |a: &Tensor, b: &Tensor| a.to_f64().unwrap().iter().zip(b.to_f64().unwrap()).map(|(a, b)| a * b).sum::<f64>();
    let forward = dot(&gather(&codebook, &codes).unwrap(), &dy);
    let backward = dot(&codebook, &scatter_add(&dy, &codes, k).unwrap());
    assert!((forward - backward).abs() < 1e-12 * forward.abs().max(1.0));
}

#[test]
fn nan_rows_and_empty_batches_are_harmless() {
    let codebook = tensor(DType::F32, &[0.0; 40], [20, 2]);
    let x = tensor(DType::F32, &[f64::NAN, 1.0, f64::INFINITY, 0.0], [2, 2]);
    assert_eq!(nearest(&x, &codebook, Metric::Euclidean).unwrap().to_vec::<i32>().unwrap(), [0, 0]);
    let none = tensor(DType::F32, &[], [0, 2]);
    let (codes, residual) = search(&none, &[&codebook]).unwrap();
    assert_eq!((codes.elements(), residual.elements()), (0, 0));
}

#[test]
fn bad_operands_are_named() {
    let x = tensor(DType::F32, &[0.0; 6], [3, 2]);
    let book = tensor(DType::F32, &[0.0; 8], [4, 2]);
    let wide = tensor(DType::F32, &[0.0; 9], [3, 3]);
    let message = |r: Result<Tensor>| r.err().unwrap().to_string();
    assert_eq!(message(nearest(&x, &wide, Metric::Euclidean)), "rvq_search: x has shape [3, 2], expected [N, 3]");
    assert!(search(&x, &[]).is_err() && search(&x, &[&book, &wide]).is_err());
    assert!(nearest(&x, &tensor(DType::F64, &[0.0; 8], [4, 2]), Metric::Euclidean).is_err());
    assert!(nearest(&x, &tensor(DType::F32, &[], [0, 2]), Metric::Euclidean).is_err());
    let codes = |c: &[i32], s: usize| Tensor::from_slice(&Device::Cpu, c, [c.len() / s, s]).unwrap();
    assert_eq!(message(decode(&codes(&[0, 3, 0, 4], 2), &[&book, &book])), "rvq_search: code 4 of row 1, stage 1, is not below 4");
    assert!(decode(&codes(&[-1], 1), &[&book]).is_err());
    assert!(decode(&codes(&[0, 0], 2), &[&book]).is_err());
    assert!(decode(&x, &[&book]).is_err());
    assert!(gather(&book, &codes(&[0, 0], 2)).is_err());
}

#[test]
fn throughput_is_reported() {
    let mut rng = SplitMix(1);
    for (n, k, d) in [(400, 2048, 8), (400, 2048, 64), (1, 1024, 32)] {
        let (x, codebook) = (random(&mut rng, n * d), random(&mut rng, k * d));
        let (x, codebook) = (tensor(DType::F32, &x, [n, d]), tensor(DType::F32, &codebook, [k, d]));
        let best = (0..20).map(|_| {
            let start = std::time::Instant::now();
            nearest(&x, &codebook, Metric::Euclidean).unwrap();
            start.elapsed().as_secs_f64()
        });
        let best = best.fold(f64::INFINITY, f64::min);
        println!("{n}x{d} in {k}: {:.3} ms, {:.1} GFLOP/s", 1e3 * best, 3e-9 * (n * k * d) as f64 / best);
    }
}
