//! Shapes, sizes and values that no sane caller passes: each is a typed error or a defined result, on every device, and never a
//! panic.

use swara_kernels::ops::conv1d::{self, Fused, Prologue, Ring};
use swara_kernels::ops::rvq_search::{self, Metric};
use swara_kernels::ops::{
    activation::{self, Activation},
    adamw,
    attention::{self, KvCache, Mask, Positions},
    codebook, conv_transpose1d, elementwise, layer_norm, linear, loss, lstm, matmul, pad, reduce, rms_norm,
    rope::{self, Rope, Style},
    snake, stft,
    weight_norm::{self, Axis},
};
use swara_kernels::{DType, Device, Error, Result, Shape, Tensor};

const HUGE: [usize; 4] = [1 << 31, 1 << 40, 1 << 63, usize::MAX];

/// The CPU, and the emulator where there is one.
fn devices() -> Vec<Device> {
    let emulator = Device::open("emulator").map_err(|e| println!("skipped: the emulator, {e}"));
    [Some(Device::Cpu), emulator.ok()].into_iter().flatten().collect()
}

fn zeros(device: &Device, shape: impl Into<Shape>) -> Tensor {
    Tensor::zeros(device, DType::F32, shape).unwrap()
}

#[track_caller]
fn refused<T>(result: Result<T>) {
    assert!(result.is_err(), "accepted");
}

#[test]
fn more_memory_than_there_is_is_an_error() {
    for shape in [[1 << 46, 1], [1 << 60, 4], [1 << 40, 1 << 40]] {
        refused(Tensor::empty(&Device::Cpu, DType::F32, shape));
        refused(Tensor::zeros(&Device::Cpu, DType::F64, shape));
    }
    let (a, b) = (zeros(&Device::Cpu, [1 << 24, 0]), zeros(&Device::Cpu, [0, 1 << 24]));
    assert!(matches!(matmul::forward(&a, &b, Default::default()), Err(Error::Driver { .. })));
}

#[test]
fn convolutions_without_channels_are_errors_and_without_time_or_batch_are_empty() {
    for d in devices() {
        let g = conv1d::Geometry { pad_left: 2, ..Default::default() };
        for (cin, cout) in [(0, 3), (3, 0), (0, 0)] {
            let (x, w, dy) = (zeros(&d, [2, 9, cin]), zeros(&d, [3, cin, cout]), zeros(&d, [2, 9, cout]));
            refused(conv1d::forward(&x, &w, &g, Fused::default()));
            refused(conv1d::backward_input(&dy, &w, &g, 9));
            refused(conv1d::backward_weight(&dy, &x, &g, 3));
            let t = conv_transpose1d::Geometry::causal(3, 1);
            refused(conv_transpose1d::forward(&x, &w, &t, Default::default()));
            refused(conv_transpose1d::backward_input(&dy, &w, &t, 9));
            refused(conv_transpose1d::backward_weight(&dy, &x, &t, 3));
        }
        for (batch, time) in [(0, 9), (2, 0), (0, 0)] {
            let (x, w) = (zeros(&d, [batch, time, 4]), zeros(&d, [3, 4, 5]));
            let y = conv1d::forward(&x, &w, &g, Fused::default()).unwrap();
            assert_eq!(*y.shape(), [batch, time, 5]);
            assert_eq!(*conv1d::backward_input(&y, &w, &g, time).unwrap().shape(), [batch, time, 4]);
            assert_eq!(conv1d::backward_weight(&y, &x, &g, 3).unwrap().to_f64().unwrap(), [0.0; 60]);
            let t = conv_transpose1d::Geometry::causal(6, 2);
            let w = zeros(&d, [6, 4, 5]);
            let y = conv_transpose1d::forward(&x, &w, &t, Default::default()).unwrap();
            assert_eq!(*y.shape(), [batch, 2 * time, 5]);
            assert_eq!(*conv_transpose1d::backward_input(&y, &w, &t, time).unwrap().shape(), [batch, time, 4]);
            assert_eq!(conv_transpose1d::backward_weight(&y, &x, &t, 6).unwrap().to_f64().unwrap(), [0.0; 120]);
        }
    }
}

#[test]
fn convolution_geometry_beyond_any_signal_is_an_error() {
    for d in devices() {
        let (x, w, dy) = (zeros(&d, [1, 4, 2]), zeros(&d, [3, 2, 2]), zeros(&d, [1, 4, 2]));
        let base = conv1d::Geometry::default();
        let mut geometries = vec![
            conv1d::Geometry { stride: 0, ..base },
            conv1d::Geometry { dilation: 0, ..base },
            conv1d::Geometry { groups: 0, ..base },
            conv1d::Geometry { groups: 3, ..base },
            conv1d::Geometry { groups: usize::MAX, ..base },
        ];
        for n in HUGE {
            geometries.push(conv1d::Geometry { stride: n, ..base });
            geometries.push(conv1d::Geometry { dilation: n, ..base });
            geometries.push(conv1d::Geometry { pad_left: n, ..base });
            geometries.push(conv1d::Geometry { pad_right: n, ..base });
            geometries.push(conv1d::Geometry { dilation: n, pad_left: n, pad_right: n, ..base });
            geometries.push(conv1d::Geometry::causal(3, 1, n));
            geometries.push(conv1d::Geometry::causal(n, 2, n));
        }
        for g in geometries {
            refused(conv1d::forward(&x, &w, &g, Fused::default()));
            refused(conv1d::backward_input(&dy, &w, &g, 4));
            refused(conv1d::backward_weight(&dy, &x, &g, 3));
            g.output_len(usize::MAX, usize::MAX);
        }
        for shape in [[0, 2, 2], [3, 0, 2], [3, 2, 0]] {
            refused(conv1d::Weight::new(&zeros(&d, shape), &base));
            refused(conv_transpose1d::Weight::new(&zeros(&d, shape), &conv_transpose1d::Geometry::causal(3, 1)));
        }
        for groups in [0, 3, usize::MAX] {
            refused(conv1d::Weight::new(&w, &conv1d::Geometry { groups, ..base }));
            let g = conv_transpose1d::Geometry { groups, ..conv_transpose1d::Geometry::causal(3, 1) };
            refused(conv_transpose1d::Weight::new(&w, &g));
            refused(conv_transpose1d::forward(&x, &w, &g, Default::default()));
            refused(conv_transpose1d::backward_input(&dy, &w, &g, 4));
            refused(conv_transpose1d::backward_weight(&dy, &x, &g, 3));
        }
        let mut geometries = vec![conv_transpose1d::Geometry { stride: 0, crop_left: 0, crop_right: 0, groups: 1 }];
        for n in HUGE {
            geometries.push(conv_transpose1d::Geometry { stride: n, crop_left: 0, crop_right: 0, groups: 1 });
            geometries.push(conv_transpose1d::Geometry { stride: n, crop_left: n, crop_right: isize::MAX, groups: 1 });
            geometries.push(conv_transpose1d::Geometry { stride: 1, crop_left: 0, crop_right: -((n >> 1) as isize), groups: 1 });
            geometries.push(conv_transpose1d::Geometry::padded(2, 0, n));
        }
        for g in geometries.iter().filter(|g| g.crop_right != -(1 << 30)) {
            refused(conv_transpose1d::forward(&x, &w, g, Default::default()));
            refused(conv_transpose1d::backward_input(&dy, &w, g, 4));
            refused(conv_transpose1d::backward_weight(&dy, &x, g, 3));
            g.output_len(usize::MAX, usize::MAX);
        }
        for n in HUGE {
            refused(conv1d::backward_input(&dy, &w, &base, n));
            refused(conv1d::backward_weight(&dy, &x, &base, n));
            refused(Ring::new(&d, DType::F32, 1, n, 1, &base));
            refused(Ring::new(&d, DType::F32, n, 3, n, &base));
            refused(conv_transpose1d::ring(&d, DType::F32, 1, n, 1, 1));
        }
        let mut ring = Ring::new(&d, DType::F32, 1, 3, 2, &base).unwrap();
        let t = conv_transpose1d::Geometry::causal(3, 1);
        for stride in [0, 5, usize::MAX] {
            refused(conv1d::step(&x, &mut ring, &w, &conv1d::Geometry { stride, ..base }, Fused::default(), None));
            refused(conv_transpose1d::step(&x, &mut ring, &w, &conv_transpose1d::Geometry { stride, ..t }, Default::default(), None));
        }
    }
}

#[test]
fn operands_of_other_shapes_types_or_devices_are_errors() {
    for d in devices() {
        let (x, w) = (zeros(&d, [2, 4, 2]), zeros(&d, [3, 2, 2]));
        let g = conv1d::Geometry::causal(3, 1, 1);
        let t = conv_transpose1d::Geometry::causal(3, 1);
        let mut ring = Ring::new(&d, DType::F32, 2, 3, 2, &g).unwrap();
        for other in devices().into_iter().chain([Device::Cpu]).filter(|other| *other != d) {
            let mask = Tensor::from_slice(&other, &[1u8, 0], [2]).unwrap();
            assert!(matches!(ring.reset(&mask), Err(Error::DeviceMismatch { .. })));
            let step = conv1d::step(&x, &mut ring, &w, &g, Fused::default(), Some(&mask));
            assert!(matches!(step, Err(Error::DeviceMismatch { .. })));
            let step = conv_transpose1d::step(&x, &mut ring, &w, &t, Default::default(), Some(&mask));
            assert!(matches!(step, Err(Error::DeviceMismatch { .. })));
            let (y, v) = (zeros(&other, [2, 4, 2]), zeros(&other, [2]));
            refused(elementwise::add(&x, &y));
            refused(elementwise::add_row(&x, &v));
            refused(conv1d::forward(&x, &w, &g, Fused { residual: Some(&y), ..Fused::default() }));
            refused(conv1d::forward(&x, &w, &g, Fused { prologue: Prologue::Snake(&v), ..Fused::default() }));
            refused(snake::forward(&x, &v));
            refused(loss::l1(&x, &y));
            refused(activation::backward(Activation::Elu, &x, &y));
            refused(rvq_search::nearest(&zeros(&d, [3, 2]), &zeros(&other, [5, 2]), Metric::Cosine));
            refused(matmul::forward(&zeros(&d, [3, 2]), &zeros(&other, [2, 5]), Default::default()));
            refused(stft::magnitude_backward(&zeros(&other, [3]), &zeros(&d, [3, 2])));
            refused(adamw::ema(&mut zeros(&d, [3]), &zeros(&other, [3]), 0.9));
        }
        for mask in [Tensor::zeros(&d, DType::U8, [3]), Tensor::zeros(&d, DType::U8, [2, 1]), Tensor::zeros(&d, DType::F32, [2])] {
            let mask = mask.unwrap();
            refused(ring.reset(&mask));
            refused(ring.prime(&x, Some(&mask)));
            refused(conv1d::step(&x, &mut ring, &w, &g, Fused::default(), Some(&mask)));
        }
        for shape in [[1, 4, 2], [2, 4, 1]] {
            refused(conv1d::step(&zeros(&d, shape), &mut ring, &w, &g, Fused::default(), None));
            refused(ring.prime(&zeros(&d, shape), None));
        }
        let half = Tensor::zeros(&d, DType::F16, [2, 4, 2]).unwrap();
        refused(conv1d::forward(&half, &w, &g, Fused::default()));
        refused(elementwise::add(&x, &half));
        refused(reduce::sum(&Tensor::zeros(&d, DType::I32, [3]).unwrap()));
        refused(snake::forward(&x, &zeros(&d, [3])));
        refused(weight_norm::forward(&w, &zeros(&d, [2, 1]), Axis::Out));
    }
}

#[test]
fn searches_of_nothing_are_errors_and_of_no_numbers_find_the_first_code() {
    for d in devices() {
        refused(rvq_search::search(&zeros(&d, [3, 2]), &[]));
        refused(rvq_search::search(&zeros(&d, [3, 2]), &[&zeros(&d, [4, 2]), &zeros(&d, [4, 3])]));
        for (x, book) in [([3, 2], [0, 2]), ([3, 0], [4, 0]), ([3, 2], [4, 3])] {
            refused(rvq_search::nearest(&zeros(&d, x), &zeros(&d, book), Metric::Euclidean));
        }
        let none = rvq_search::search(&zeros(&d, [0, 2]), &[&zeros(&d, [4, 2])]).unwrap();
        assert_eq!((none.0.shape(), none.1.shape()), (Shape::from([0, 1]), Shape::from([0, 2])));
        let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -f32::MAX];
        let rows: Vec<f32> = bad.iter().flat_map(|&a| bad.iter().flat_map(move |&b| [a, b])).collect();
        let x = Tensor::from_slice(&d, &rows, [25, 2]).unwrap();
        for book in [vec![f32::NAN; 66], vec![f32::INFINITY; 66], rows.clone(), vec![0.0; 66]] {
            let k = book.len() / 2;
            let book = Tensor::from_slice(&d, &book, [k, 2]).unwrap();
            for metric in [Metric::Euclidean, Metric::Cosine] {
                let codes = rvq_search::nearest(&x, &book, metric).unwrap().to_vec::<i32>().unwrap();
                assert!(codes.iter().all(|&c| (0..k as i32).contains(&c)), "{codes:?}");
                assert_eq!(codes[0], 0);
            }
            let codes = rvq_search::search(&x, &[&book; 9]).unwrap().0.to_vec::<i32>().unwrap();
            assert!(codes.iter().all(|&c| (0..k as i32).contains(&c)), "{codes:?}");
        }
        let book = zeros(&d, [4, 2]);
        let codes = |values: &[i32]| Tensor::from_slice(&d, values, [values.len(), 1]).unwrap();
        for bad in [-1, 4, i32::MIN, i32::MAX] {
            match rvq_search::decode(&codes(&[0, bad]), &[&book]) {
                Ok(y) => assert!(d != Device::Cpu && y.to_f64().unwrap()[2..].iter().all(|v| v.is_nan())),
                Err(_) => assert!(d == Device::Cpu),
            }
        }
        refused(rvq_search::decode(&codes(&[0]), &[]));
        refused(rvq_search::decode(&Tensor::zeros(&d, DType::I32, [3, 0]).unwrap(), &[&book]));
        refused(rvq_search::gather(&book, &codes(&[0])));
    }
}

#[test]
fn clusters_without_end_or_columns_are_handled() {
    for d in devices() {
        let codes = Tensor::from_slice(&d, &[0, 1, 1], [3]).unwrap();
        for k in HUGE {
            refused(codebook::statistics(&zeros(&d, [3, 2]), &codes, k));
            refused(codebook::statistics(&zeros(&d, [3, 0]), &codes, k));
        }
        let (counts, sums) = codebook::statistics(&zeros(&d, [3, 0]), &codes, 2).unwrap();
        assert_eq!((counts.to_f64().unwrap(), sums.elements()), (vec![1.0, 2.0], 0));
        let (mut sum, mut usage) = (zeros(&d, [4, 2]), zeros(&d, [4]));
        for rows in [[0, 0], [0, 4], [-1, 0], [i32::MIN, i32::MAX]] {
            let rows = Tensor::from_slice(&d, &rows, [2]).unwrap();
            refused(codebook::replace_rows(&mut sum, &mut usage, &rows, &zeros(&d, [2, 2]), 1.0));
        }
        refused(codebook::embedding(&zeros(&d, [3]), &zeros(&d, [4, 2]), 1e-5));
    }
}

#[test]
fn transforms_of_impossible_sizes_are_errors() {
    for d in devices() {
        let x = zeros(&d, [1, 64]);
        let sizes = HUGE.into_iter().chain([0, 1, 3, 130, 128]);
        for window in sizes {
            refused(stft::forward(&x, window, 16));
            refused(stft::backward(&zeros(&d, [0, 1, 2, 2]), usize::MAX, window, 1));
        }
        refused(stft::forward(&x, 32, 0));
        for samples in HUGE {
            refused(stft::backward(&zeros(&d, [0, 1, 2, 2]), samples, 2, 1));
            refused(stft::backward(&zeros(&d, [1, 1, 2, 2]), samples, 2, usize::MAX));
        }
        assert_eq!(*stft::forward(&x, 32, usize::MAX).unwrap().shape(), [1, 1, 17, 2]);
        assert_eq!(*stft::forward(&zeros(&d, [0, 64]), 32, 16).unwrap().shape(), [0, 5, 17, 2]);
        refused(stft::magnitude(&zeros(&d, [3])));
        assert_eq!(*stft::magnitude(&zeros(&d, [0, 2])).unwrap().shape(), [0]);
    }
}

#[test]
fn empty_operands_have_empty_results() {
    for d in devices() {
        for shape in [[0, 3], [3, 0], [0, 0]] {
            let (x, v) = (zeros(&d, shape), zeros(&d, [shape[1]]));
            assert_eq!(snake::forward(&x, &v).unwrap().elements(), 0);
            assert_eq!(snake::backward(&x, &x, &v).unwrap().1.to_f64().unwrap(), vec![0.0; shape[1]]);
            assert_eq!(elementwise::add_row(&x, &v).unwrap().elements(), 0);
            assert_eq!(elementwise::add(&x, &x).unwrap().elements(), 0);
            assert_eq!(activation::forward(Activation::Gelu, &x).unwrap().elements(), 0);
            assert_eq!(reduce::sum(&x).unwrap().to_f64().unwrap(), [0.0]);
            assert!(reduce::mean(&x).unwrap().to_f64().unwrap()[0].is_nan());
            assert_eq!(reduce::sum_rows(&x).unwrap().to_f64().unwrap(), vec![0.0; shape[1]]);
            assert!(loss::mse(&x, &x).unwrap().to_f64().unwrap()[0].is_nan());
            assert_eq!(loss::mse_backward(&x, &x, 1.0).unwrap().elements(), 0);
            adamw::ema(&mut zeros(&d, shape), &x, 0.5).unwrap();
            let [m, n] = shape;
            assert_eq!(elementwise::transpose(&zeros(&d, [2, m, n])).unwrap().elements(), 0);
            assert_eq!(weight_norm::forward(&zeros(&d, [2, m, n]), &zeros(&d, [n]), Axis::Out).unwrap().elements(), 0);
            assert_eq!(weight_norm::forward(&zeros(&d, [2, m, n]), &zeros(&d, [m]), Axis::In).unwrap().elements(), 0);
            let product = matmul::forward(&zeros(&d, [2, m]), &zeros(&d, [m, n]), Default::default()).unwrap();
            assert_eq!(product.to_f64().unwrap(), vec![0.0; 2 * n]);
            let turned = matmul::Transpose { a: true, b: true };
            assert_eq!(matmul::forward(&zeros(&d, [m, 2]), &zeros(&d, [n, m]), turned).unwrap().to_f64().unwrap(), vec![0.0; 2 * n]);
        }
    }
}

#[test]
fn norms_of_nothing_are_empty_and_of_no_channels_too() {
    for d in devices() {
        for shape in [[0, 5], [5, 0], [0, 0]] {
            let (x, w) = (zeros(&d, shape), zeros(&d, [shape[1]]));
            assert_eq!(*layer_norm::forward(&x, &w, &w, 1e-5).unwrap().shape(), shape);
            assert_eq!(*rms_norm::add_forward(&x, &x, &w, 1e-5).unwrap().1.shape(), shape);
            let (dx, dw, db) = layer_norm::backward(&x, &x, &w, 1e-5).unwrap();
            assert_eq!(*dx.shape(), shape);
            assert!([dw, db].iter().all(|d| d.to_f64().unwrap().iter().all(|&v| v == 0.0)));
        }
        let (x, w) = (zeros(&d, [2, 3]), zeros(&d, [3]));
        for epsilon in [-1.0, f64::NAN, f64::INFINITY] {
            refused(layer_norm::forward(&x, &w, &w, epsilon));
            refused(rms_norm::backward(&x, &x, &w, epsilon));
        }
        refused(rms_norm::forward(&x, &zeros(&d, [3, 1]), 1e-5));
        refused(layer_norm::add_forward(&x, &zeros(&d, [3, 2]), &w, &w, 1e-5));
        refused(layer_norm::forward(&x, &Tensor::zeros(&d, DType::I32, [3]).unwrap(), &w, 0.0));
    }
}

#[test]
fn signals_are_not_padded_beyond_any_length_nor_cut_beyond_their_own() {
    for d in devices() {
        let x = zeros(&d, [2, 4, 3]);
        for n in [isize::MAX, isize::MIN, 1 << 30, 1 << 31, 1 << 40, -(1 << 40)] {
            refused(pad::reflect(&x, n, 0));
            refused(pad::reflect(&x, 0, n));
            refused(pad::reflect(&x, n, n));
        }
        for (left, right) in [(-3, -2), (-5, 3), (3, -5)] {
            refused(pad::reflect(&x, left, right));
        }
        refused(pad::reflect(&zeros(&d, [2, 0, 3]), 1, 0));
        refused(pad::reflect(&zeros(&d, [2, 4]), 1, 0));
        for shape in [[0, 4, 3], [2, 4, 0]] {
            assert_eq!(*pad::reflect(&zeros(&d, shape), 2, 1).unwrap().shape(), [shape[0], 7, shape[2]]);
        }
        assert_eq!(*pad::reflect(&x, -2, -2).unwrap().shape(), [2, 0, 3]);
    }
}

#[test]
fn recurrent_layers_of_other_shapes_are_errors_and_without_time_empty() {
    for d in devices() {
        let weight = |shape: [usize; 2]| linear::Weight::new(&zeros(&d, shape)).unwrap();
        for (gates, of) in [([2, 5, 12], [12, 4]), ([2, 5, 8], [12, 3]), ([2, 5, 3], [3, 3]), ([2, 5, 0], [0, 3])] {
            refused(lstm::forward(&zeros(&d, gates), &weight(of)));
        }
        refused(lstm::forward(&zeros(&d, [2, 12]), &weight([12, 3])));
        refused(lstm::forward(&Tensor::zeros(&d, DType::I32, [2, 5, 12]).unwrap(), &weight([12, 3])));
        for shape in [[0, 5, 12], [2, 0, 12]] {
            assert_eq!(*lstm::forward(&zeros(&d, shape), &weight([12, 3])).unwrap().shape(), [shape[0], shape[1], 3]);
        }
    }
}

#[test]
fn linear_layers_without_rows_or_outputs_are_empty_and_without_inputs_errors() {
    for d in devices() {
        let fused = linear::Fused::default();
        for (rows, outputs) in [(0, 5), (5, 0)] {
            let w = linear::Weight::new(&zeros(&d, [outputs, 4])).unwrap();
            assert_eq!(*linear::forward(&zeros(&d, [rows, 4]), &w, fused).unwrap().shape(), [rows, outputs]);
        }
        refused(linear::Weight::new(&zeros(&d, [3, 0])));
        refused(linear::Weight::new(&zeros(&d, [3])));
        refused(linear::Weight::new(&zeros(&d, [3, 2, 1])));
        refused(linear::Weight::new(&Tensor::zeros(&d, DType::I32, [3, 2]).unwrap()));
        let w = linear::Weight::new(&zeros(&d, [3, 2])).unwrap();
        refused(linear::forward(&zeros(&d, [2, 3]), &w, fused));
        refused(linear::forward(&zeros(&d, []), &w, fused));
        refused(linear::forward(&zeros(&d, [1, 2]), &w, linear::Fused { activation: linear::Activation::SiluGate, ..fused }));
        refused(linear::forward(&zeros(&d, [1, 2]), &w, linear::Fused { residual: Some(&zeros(&d, [1, 2])), ..fused }));
        refused(linear::forward(&Tensor::zeros(&d, DType::I32, [1, 2]).unwrap(), &w, fused));
    }
}

#[test]
fn attention_of_impossible_shapes_is_an_error() {
    for d in devices() {
        for n in HUGE {
            refused(KvCache::new(&d, DType::F32, 1, 1, n, 64));
            refused(KvCache::new(&d, DType::F32, n, 1, 64, 64));
            refused(KvCache::new(&d, DType::F32, 1, n, 64, 64));
            refused(KvCache::new(&d, DType::F32, 1, 1, 64, n));
            refused(Rope::new(&d, n, 1e4, Style::Interleaved));
            refused(Positions::new(&d, 1).unwrap().advance(n, None));
        }
        refused(Positions::new(&d, usize::MAX));
        refused(KvCache::new(&d, DType::I32, 1, 1, 64, 64));
        for (capacity, kv_heads, dim) in [(0, 1, 8), (64, 0, 8), (64, 1, 0), (64, 1, 129)] {
            refused(KvCache::new(&d, DType::F32, 1, kv_heads, capacity, dim));
        }
        for dim in [0, 7, 130] {
            refused(Rope::new(&d, dim, 1e4, Style::HalfSplit));
        }
        for theta in [f64::NAN, f64::INFINITY, 0.0, -10.0] {
            refused(Rope::new(&d, 8, theta, Style::HalfSplit));
        }
        refused(Rope::with_frequencies(&d, &[], Style::HalfSplit));
        refused(Positions::at(&d, &[1, -1]));

        let rope = Rope::new(&d, 8, 1e4, Style::Interleaved).unwrap();
        let mut positions = Positions::at(&d, &[i32::MAX, 5]).unwrap();
        let mut cache = KvCache::new(&d, DType::F32, 2, 2, 64, 8).unwrap();
        for shape in [[2, 1, 8 * 8 + 1], [2, 1, 4 * 8], [1, 1, 8 * 8], [2, 65, 8 * 8]] {
            refused(rope::append(&zeros(&d, shape), &rope, &mut cache, &positions, None));
        }
        for shape in [[2, 1, 3, 8], [2, 1, 0, 8], [2, 1, 4, 6], [1, 1, 4, 8], [2, 65, 4, 8]] {
            refused(attention::step(&zeros(&d, shape), &cache, &positions, Some(1), None));
        }
        refused(rope::forward(&zeros(&d, [2, 3, 4, 6]), &rope, &positions));
        refused(rope::forward(&zeros(&d, [3, 3, 4, 8]), &rope, &positions));
        for mask in [Tensor::zeros(&d, DType::U8, [3]), Tensor::zeros(&d, DType::F32, [2])] {
            let mask = mask.unwrap();
            refused(positions.advance(1, Some(&mask)));
            refused(positions.reset(&mask));
            refused(rope::append(&zeros(&d, [2, 1, 64]), &rope, &mut cache, &positions, Some(&mask)));
            refused(attention::step(&zeros(&d, [2, 1, 4, 8]), &cache, &positions, None, Some(&mask)));
        }
        // Past the last count there are no numbers to rely on, but neither is anything else touched.
        for _ in 0..3 {
            let q = rope::append(&zeros(&d, [2, 3, 64]), &rope, &mut cache, &positions, None).unwrap();
            attention::step(&q, &cache, &positions, Some(60), None).unwrap();
            positions.advance(3, None).unwrap();
        }
        let q = rope::append(&zeros(&d, [2, 0, 64]), &rope, &mut cache, &positions, None).unwrap();
        assert_eq!(*attention::step(&q, &cache, &positions, None, None).unwrap().shape(), [2, 0, 32]);

        let mask = Mask::default();
        for (q, k) in
            [([1, 4, 3, 8], [1, 4, 2, 8]), ([1, 4, 2, 8], [2, 4, 2, 8]), ([1, 4, 2, 8], [1, 0, 2, 8]), ([1, 4, 2, 129], [1, 4, 2, 129])]
        {
            let (q, k) = (zeros(&d, q), zeros(&d, k));
            refused(attention::forward(&q, &k, &k, mask));
        }
        let (q, k) = (zeros(&d, [1, 4, 2, 8]), zeros(&d, [1, 5, 2, 8]));
        refused(attention::forward(&q, &k, &q, mask));
        refused(attention::forward(&q, &k, &k, Mask::CAUSAL));
        refused(attention::forward(&q, &q, &q, Mask { causal: false, window: Some(2) }));
        refused(attention::forward(&q, &q, &q, Mask { causal: true, window: Some(0) }));
        let (y, logsum) = attention::forward(&q, &k, &k, mask).unwrap();
        refused(attention::backward(&k, &q, &k, &k, &y, &logsum, mask));
        refused(attention::backward(&y, &q, &k, &k, &y, &y, mask));
        let wide = Mask { causal: true, window: Some(usize::MAX) };
        attention::forward(&q, &q, &q, wide).unwrap();
        let none = zeros(&d, [1, 0, 2, 8]);
        let (y, logsum) = attention::forward(&none, &k, &k, mask).unwrap();
        let [_, dk, dv] = attention::backward(&y, &none, &k, &k, &y, &logsum, mask).unwrap();
        assert!([dk, dv].iter().all(|g| g.to_f64().unwrap() == vec![0.0; 80]));
    }
}
