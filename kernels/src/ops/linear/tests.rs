use super::*;
use crate::case::SplitMix;
use crate::ops::elementwise;
use crate::ops::testing::{normal, tensor};
use crate::quantized::Bits;

fn devices() -> Vec<(Device, DType)> {
    let mut devices = vec![(Device::Cpu, DType::F32)];
    match Device::open("emulator") {
        Ok(emulator) => devices.extend([DType::F32, DType::BF16, DType::F16].map(|dtype| (emulator.clone(), dtype))),
        Err(e) => println!("skipped: the emulator, {e}"),
    }
    devices
}

#[test]
fn the_other_rows_change_no_bit() {
    for (device, dtype) in devices() {
        let on = |values: &[f64], shape: [usize; 2]| Tensor::from_f64(&device, dtype, values, shape).unwrap();
        let layers = [(33, 64), (70, 500), (31, 77), (7, 2_056)];
        let products = [Product::FewRows, Product::Tiles, Product::Tf32x3, Product::Wgmma];
        for ((n, k), product) in layers.into_iter().flat_map(|layer| products.map(|product| (layer, product))) {
            let weight = Weight::for_product(&on(&normal([n, k], 2).to_f64().unwrap(), [n, k]), product).unwrap();
            same_rows(&device, dtype, &weight, &format!("{product:?}"));
        }
        let (four, eight) = (Bits::Four, Bits::Eight);
        for (n, k, groups, bits) in
            [(31, 96, 3, four), (18, 4_160, 5, four), (9, 17_408, 17, four), (33, 2_112, 3, eight), (6, 16_512, 3, eight)]
        {
            let Quantized { codes, scales, mins, .. } = quantized(bits, n, k, groups, true).0;
            let there = |t: &Tensor| Tensor::from_slice(&device, &t.to_vec::<f32>().unwrap(), t.shape()).unwrap();
            let codes = Tensor::from_slice(&device, &codes.to_vec::<u8>().unwrap(), codes.shape()).unwrap();
            let codes = Quantized { bits, codes, scales: there(&scales), mins: mins.as_ref().map(there) };
            same_rows(&device, dtype, &Weight::quantized(&codes).unwrap(), &format!("{bits:?} bits"));
        }
    }
}

/// Rows of a product, some at a time, are those of all.
fn same_rows(device: &Device, dtype: DType, weight: &Weight, what: &str) {
    let (rows, n, k) = (53, weight.outputs(), weight.inputs());
    let x = normal([rows, k], 1).to_f64().unwrap();
    let on = |values: &[f64], shape: [usize; 2]| Tensor::from_f64(device, dtype, values, shape).unwrap();
    let run = |first: usize, count: usize| {
        forward(&on(&x[first * k..][..count * k], [count, k]), weight, Fused::default()).unwrap().to_f64().unwrap()
    };
    let whole = run(0, rows);
    for (first, count) in [(0, 1), (3, 2), (50, 3), (7, 5), (1, 16), (20, 17)] {
        assert_eq!(run(first, count), whole[first * n..][..count * n], "{dtype} {n}x{k} {what}: rows {first}.. of {count}");
    }
}

#[test]
fn weights_in_bf16_beside_f32_are_those_values() {
    for (rows, n, k) in [(1, 33, 500), (2, 500, 127), (31, 1, 33), (127, 31, 1)] {
        let on = |dtype, seed, shape| elementwise::convert(&normal(shape, seed), dtype).unwrap();
        let (x, halves) = (on(DType::F32, 1, [rows, k]), on(DType::BF16, 2, [n, k]));
        let whole = elementwise::convert(&halves, DType::F32).unwrap();
        let [found, expected] = [&halves, &whole].map(|w| forward(&x, &Weight::new(w).unwrap(), Fused::default()).unwrap());
        assert_eq!(found.to_vec::<f32>().unwrap(), expected.to_vec::<f32>().unwrap());
        let error = forward(&normal([rows, k], 1), &Weight::new(&halves).unwrap(), Fused::default());
        assert!(matches!(error, Err(Error::DType { operand: "weight", .. })));
    }
}

/// Codes `[n, k]` of `groups`, and the values that they stand for, by the definition.
fn quantized(bits: Bits, n: usize, k: usize, groups: usize, mins: bool) -> (Quantized, Tensor) {
    let mut rng = SplitMix(n as u64);
    let codes: Vec<u8> = (0..n * bits.bytes(k)).map(|_| rng.next() as u8).collect();
    let mut random = |least: f64| -> Vec<f32> { (0..n * groups).map(|_| (least + rng.uniform()) as f32).collect() };
    let (scales, minima) = (random(0.5), mins.then(|| random(-0.5)));
    let value = |at: usize| {
        let (row, column) = (at / k, at % k);
        let group = row * groups + column / (k / groups);
        let code = match bits {
            Bits::Eight => f32::from(codes[at] as i8),
            Bits::Four => f32::from(codes[row * k / 2 + column / 2] >> (4 * (column % 2)) & 15),
        };
        let min = minima.as_ref().map_or(scales[group] * bits.zero() as f32, |minima| minima[group]);
        code.mul_add(scales[group], -min)
    };
    let on_cpu = |values: &[f32], shape: [usize; 2]| Tensor::from_slice(&Device::Cpu, values, shape).unwrap();
    let values = on_cpu(&(0..n * k).map(value).collect::<Vec<f32>>(), [n, k]);
    let codes = Tensor::from_slice(&Device::Cpu, &codes, [n, bits.bytes(k)]).unwrap();
    let mins = minima.as_ref().map(|minima| on_cpu(minima, [n, groups]));
    (Quantized { bits, codes, scales: on_cpu(&scales, [n, groups]), mins }, values)
}

#[test]
fn codes_are_multiplied_as_the_values_they_stand_for() {
    for (rows, n, k, groups) in [(1, 1, 2, 1), (1, 33, 500, 1), (2, 500, 126, 3), (31, 16, 34, 17), (127, 31, 64, 2), (7, 17, 96, 3)] {
        for (bits, mins) in [Bits::Four, Bits::Eight].into_iter().flat_map(|bits| [(bits, false), (bits, true)]) {
            let x = elementwise::convert(&normal([rows, k], 1), DType::F32).unwrap();
            let (codes, values) = quantized(bits, n, k, groups, mins);
            let run = |x: &Tensor, weight: &Weight| forward(x, weight, Fused::default()).unwrap().to_f64().unwrap();
            let weight = Weight::quantized(&codes).unwrap();
            assert_eq!(run(&x, &weight), run(&x, &Weight::new(&values).unwrap()), "{bits:?} {rows} {n}x{k} in {groups}");
            let wide = |t: &Tensor| elementwise::convert(t, DType::F64).unwrap();
            assert_eq!(run(&wide(&x), &weight), run(&wide(&x), &Weight::new(&wide(&values)).unwrap()));
        }
    }
}

#[test]
fn codes_that_do_not_fit_are_errors() {
    let changed = |change: fn(&mut Quantized)| {
        let (mut weight, _) = quantized(Bits::Four, 6, 64, 2, true);
        change(&mut weight);
        Weight::quantized(&weight).err()
    };
    fn zeros(dtype: DType, shape: &[usize]) -> Tensor {
        Tensor::zeros(&Device::Cpu, dtype, Shape::try_from(shape).unwrap()).unwrap()
    }
    assert!(changed(|_| {}).is_none());
    assert!(matches!(changed(|w| w.codes = zeros(DType::U8, &[6 * 32])), Some(Error::Shape { operand: "codes", .. })));
    assert!(matches!(changed(|w| w.codes = zeros(DType::U8, &[6, 0])), Some(Error::Shape { .. })));
    assert!(matches!(changed(|w| w.codes = zeros(DType::I32, &[6, 32])), Some(Error::DType { operand: "codes", .. })));
    assert!(matches!(changed(|w| w.scales = zeros(DType::F32, &[6, 3])), Some(Error::Shape { operand: "scales", .. })));
    assert!(matches!(changed(|w| w.scales = zeros(DType::F32, &[6, 0])), Some(Error::Shape { operand: "scales", .. })));
    assert!(matches!(changed(|w| w.scales = zeros(DType::F32, &[5, 2])), Some(Error::Shape { operand: "scales", .. })));
    assert!(matches!(changed(|w| w.mins = Some(zeros(DType::F32, &[6, 1]))), Some(Error::Shape { operand: "mins", .. })));
    assert!(matches!(changed(|w| w.mins = Some(zeros(DType::F16, &[6, 2]))), Some(Error::DType { operand: "mins", .. })));
}

#[test]
fn values_are_those_of_the_formula() {
    let weight = Weight::new(&tensor(&[1.0, 2.0, -1.0, 0.5, 3.0, 0.0, 0.0, 1.0], [4, 2])).unwrap();
    let (x, bias) = (tensor(&[1.0, 2.0], [1, 2]), tensor(&[1.0, 0.0, 0.5, -1.0], [4]));
    let run = |fused| forward(&x, &weight, fused).unwrap().to_f64().unwrap();
    assert_eq!(run(Fused::default()), [5.0, 0.0, 3.0, 2.0]);
    let (scale, residual) = (tensor(&[1.0, 2.0, 3.0, 4.0], [4]), tensor(&[10.0, 20.0, 30.0, 40.0], [1, 4]));
    let fused = Fused { bias: Some(&bias), scale: Some(&scale), residual: Some(&residual), ..Fused::default() };
    assert_eq!(run(fused), [16.0, 20.0, 40.5, 44.0]);
    let silu = |x: f64| x / (1.0 + (-x).exp());
    let close = |found: Vec<f64>, expected: &[f64]| {
        assert!(found.len() == expected.len() && found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 1e-14), "{found:?} {expected:?}");
    };
    close(run(Fused { activation: Activation::Silu, ..Fused::default() }), &[5.0, 0.0, 3.0, 2.0].map(silu));
    close(run(Fused { activation: Activation::SiluGate, bias: Some(&bias), ..Fused::default() }), &[silu(6.0) * 3.5, 0.0]);
    let gelu = run(Fused { activation: Activation::Gelu, ..Fused::default() });
    close(gelu[1..].to_vec(), &[0.0, 2.995_950_305_905_11, 1.954_499_736_103_642]);
}

#[test]
fn what_does_not_fit_is_an_error() {
    let (x, w) = (normal([2, 3], 1), Weight::new(&normal([5, 3], 2)).unwrap());
    let fused = Fused::default();
    assert!(matches!(Weight::new(&normal([5], 1)), Err(Error::Shape { operand: "weight", .. })));
    assert!(matches!(forward(&normal([2, 4], 1), &w, fused), Err(Error::Shape { operand: "x", .. })));
    assert!(forward(&normal([], 1), &w, fused).is_err());
    let one = normal([1], 1);
    assert!(matches!(forward(&x, &w, Fused { bias: Some(&one), ..fused }), Err(Error::Shape { operand: "bias", .. })));
    assert!(matches!(forward(&x, &w, Fused { scale: Some(&one), ..fused }), Err(Error::Shape { operand: "scale", .. })));
    assert!(matches!(forward(&x, &w, Fused { residual: Some(&one), ..fused }), Err(Error::Shape { operand: "residual", .. })));
    assert!(matches!(forward(&x, &w, Fused { activation: Activation::SiluGate, ..fused }), Err(Error::Argument { .. })));
    let narrow = Tensor::zeros(&Device::Cpu, DType::F32, [2, 3]).unwrap();
    assert!(matches!(forward(&narrow, &w, fused), Err(Error::DType { .. })));
}
