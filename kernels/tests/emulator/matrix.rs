//! `ldmatrix` and `mma` against their definitions, and a whole product made of them.

use std::time::Instant;

use swara_kernels::driver::emulator::Schedule;
use swara_kernels::driver::source::ALL_ARCHS;
use swara_kernels::driver::{Launch, Source};
use swara_kernels::{DType, Device, Tensor, args};

use super::{emulator, launch, shape, upload, values};

static SOURCE: Source = Source { path: "matrix.cu", text: include_str!("matrix.cu"), archs: ALL_ARCHS };

fn product(a: &[f32], b: &[f32], c: &[f32], n: usize, k: usize) -> Vec<f32> {
    let entry = |i: usize| (0..k).map(|j| a[i / n * k + j] * b[j * n + i % n]).sum::<f32>() + c[i];
    (0..c.len()).map(entry).collect()
}

#[test]
fn every_mma_multiplies_as_the_fragment_maps_say() {
    for arch in [75, 80, 120] {
        for schedule in Schedule::ALL {
            let device = emulator(arch, schedule);
            for (kernel, k) in [("book_f16_short", 8), ("book_bf16", 16), ("book_f16", 16), ("book_tf32", 8)] {
                if arch == 75 && kernel != "book_f16_short" {
                    continue;
                }
                // Eighths up to 4: exact in every type, and so are all sums.
                let (a, b) = (values(16 * k), values(500)[500 - 8 * k..].to_vec());
                let c = values(128);
                let y = upload(&device, &c);
                launch(&device, &SOURCE, kernel, shape(1, 32), args![&y, &upload(&device, &a), &upload(&device, &b)]).unwrap();
                assert_eq!(y.to_vec::<f32>().unwrap(), product(&a, &b, &c, 8, k), "{kernel} on sm_{arch}");
            }
        }
    }
}

#[test]
fn every_ldmatrix_gives_each_lane_its_pair() {
    let straight = |lane: i32, m: i32| (64 * m + lane / 4 * 8 + lane % 4 * 2, 1);
    let transposed = |lane: i32, m: i32| (64 * m + lane % 4 * 16 + lane / 4, 8);
    for arch in [75, 90] {
        let device = emulator(arch, Schedule::Descending);
        let y = Tensor::empty(&device, DType::I32, [32 * 14]).unwrap();
        launch(&device, &SOURCE, "load_matrices", shape(1, 32), args![&y]).unwrap();
        let y = y.to_vec::<i32>().unwrap();
        for lane in 0..32 {
            let matrices = [0, 0, 1, 0, 1, 2, 3];
            let expected = matrices.map(|m| straight(lane, m)).into_iter().chain(matrices.map(|m| transposed(lane, m)));
            let expected: Vec<i32> = expected.map(|(first, step)| first | (first + step) << 16).collect();
            assert_eq!(y[lane as usize * 14..][..14], expected, "lane {lane}");
        }
    }
}

fn gemm(device: &Device, m: usize, n: usize, k: usize) -> (Vec<f32>, f64) {
    let a = Tensor::from_f64(device, DType::BF16, &values(m * k).iter().map(|&v| v as f64).collect::<Vec<_>>(), [m, k]).unwrap();
    let b = Tensor::from_f64(device, DType::BF16, &values(k * n).iter().map(|&v| v as f64).collect::<Vec<_>>(), [k, n]).unwrap();
    let mut best = f64::INFINITY;
    let mut result = Vec::new();
    for _ in 0..10 {
        let mut c = Tensor::empty(device, DType::F32, [m, n]).unwrap();
        let grid = [n as u32 / 64, m as u32 / 64, 1];
        let tile = Launch { grid, block: [128, 1, 1], shared_bytes: 2 * 2 * (64 * 40 + 32 * 72), cooperative: false };
        let start = Instant::now();
        launch(device, &SOURCE, "gemm_bf16", tile, args![&mut c, &a, &b, n as i32, k as i32]).unwrap();
        best = best.min(start.elapsed().as_secs_f64() * 1e3);
        result = c.to_vec::<f32>().unwrap();
    }
    (result, best)
}

#[test]
fn a_product_of_tiles_is_exact_and_takes_less_than_100_ms() {
    let (m, n, k) = (128, 128, 256);
    // Products of eighths are multiples of 1/64 below 16; their sums stay far inside 24 bits, in any order.
    let expected = product(&values(m * k), &values(k * n), &vec![0.0; m * n], n, k);
    for schedule in Schedule::ALL {
        let (result, milliseconds) = gemm(&emulator(90, schedule), m, n, k);
        assert_eq!(result, expected);
        println!("{m}x{n}x{k} bf16 mma product, {schedule}: {milliseconds:.1} ms on two host threads (best of 10)");
        assert!(milliseconds < 100.0);
    }
}
