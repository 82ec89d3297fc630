use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::WeightsError;
use crate::weights::{Dtype, TensorRef, Weights, save};

fn golden(name: &str) -> Weights {
    Weights::open(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../verify/golden/quantized")).join(name)).unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// A scale of -0 is not one of 0.
fn same(a: &Quantized, b: &Quantized) -> bool {
    a == b && bits(a.scales()) == bits(b.scales())
}

fn matrix(weights: &Weights, name: &str) -> ([usize; 2], Vec<f32>) {
    let shape = weights.info(name).unwrap().1.try_into().unwrap();
    (shape, weights.to_f32(name).unwrap().into_owned())
}

#[test]
fn rounding_gives_the_blocks_of_ggml() {
    let weights = golden("ggml.safetensors");
    let (shape, x) = matrix(&weights, "x");
    let blocks = |dtype, name| Quantized::from_blocks(dtype, shape, weights.view(name).unwrap().bytes).unwrap();
    assert!(same(&Quantized::q8_0(shape, &x).unwrap(), &blocks(Dtype::Q8_0, "q8_0")));
    assert!(same(&Quantized::q4_0(shape, &x).unwrap(), &blocks(Dtype::Q4_0, "q4_0")));
    // And so are their bytes.
    let (eight, four) = (Quantized::q8_0(shape, &x).unwrap(), Quantized::q4_0(shape, &x).unwrap());
    assert!(eight.to_blocks(Dtype::Q8_0).unwrap() == weights.view("q8_0").unwrap().bytes);
    assert!(four.to_blocks(Dtype::Q4_0).unwrap() == weights.view("q4_0").unwrap().bytes);
    let int4 = Quantized::int4(shape, 64, &x).unwrap();
    for (matrix, dtype) in [(&eight, Dtype::Q4_0), (&four, Dtype::Q8_0), (&four, Dtype::Q4K), (&int4, Dtype::Q4_0)] {
        assert!(matches!(matrix.to_blocks(dtype), Err(QuantizedError::Unfit { .. })), "{dtype:?}");
    }
    // Scales that f16 has not.
    assert!(Quantized::int4([1, 32], 32, &[0.1; 32]).unwrap().to_blocks(Dtype::Q4_0).is_err());
}

#[test]
fn blocks_of_q4_k_hold_the_nearest_codes() {
    let mut x: Vec<f32> = (0..3 * 512).map(|i| ((i * 37 % 101) as f32 - 40.0) * [1e-3, 0.7, 0.0, 5.0][i / 32 % 4]).collect();
    x[512..544].fill(3.0);
    x[544..576].fill(-3.0);
    let blocks = Quantized::q4_k_blocks([3, 512], &x).unwrap();
    let found = Quantized::from_blocks(Dtype::Q4K, [3, 512], &blocks).unwrap();
    let (scales, mins) = (found.scales(), found.mins().unwrap());
    for (at, values) in x.chunks_exact(256).enumerate() {
        // Half a 63rd of the greatest, that a scale or a minimum may be off by.
        let unit = |of: &[f32]| of[at * 8..][..8].iter().fold(0.0f32, |a, &b| a.max(b)) / 63.0;
        let off = 0.502 * (15.0 * unit(scales) + unit(mins)) + 0.002 * mins[at * 8..][..8].iter().fold(0.0f32, |a, &b| a.max(b));
        for (i, (v, q)) in values.iter().zip(&found.dequantize()[at * 256..]).enumerate() {
            assert!((v - q).abs() <= 0.502 * scales[at * 8 + i / 32] + off, "{at}, {i}: {v} {q}");
        }
    }
    let (error, energy) = x.iter().zip(found.dequantize()).fold((0.0, 0.0), |(e, n), (v, q)| (e + (v - q).powi(2), n + v * v));
    // Uniform from -40 to 60, by 15ths: 100 / (15 sqrt(12)) of 30.5.
    assert!((error / energy).sqrt() < 0.065, "{error} {energy}");
    assert_eq!(
        Quantized::from_blocks(Dtype::Q4K, [1, 256], &Quantized::q4_k_blocks([1, 256], &[0.0; 256]).unwrap()).unwrap().dequantize(),
        [0.0; 256]
    );
    assert!(matches!(Quantized::q4_k_blocks([1, 32], &[0.0; 32]), Err(QuantizedError::Columns { .. })));
    assert!(matches!(Quantized::q4_k_blocks([1, 256], &[f32::NAN; 256]), Err(QuantizedError::NonFinite { .. })));
    assert!(matches!(Quantized::q4_k_blocks([1, 256], &[1e30; 256]), Err(QuantizedError::NonFinite { .. })));
}

#[test]
fn bitsandbytes_matrices_are_read_and_made_as_the_package_does() {
    let weights = golden("bitsandbytes.safetensors");
    let found = weights.quantized("layer.weight").unwrap().unwrap();
    let (shape, x) = matrix(&weights, "x");
    assert_eq!(([found.rows(), found.columns()], found.bits(), found.group(), found.mins()), (shape, Bits::Eight, shape[1], None));
    let values = found.dequantize();
    assert_eq!(bits(&values), bits(&weights.to_f32("values").unwrap()));
    let far = values.iter().zip(&*weights.to_f32("dequantised").unwrap()).map(|(a, b)| a.to_bits().abs_diff(b.to_bits())).max();
    assert!(far <= Some(2), "{far:?} ulp");
    assert!(same(&Quantized::int8(shape, shape[1], &x).unwrap(), &found));
    // Plain tensors are none.
    assert_eq!(weights.quantized("x").unwrap(), None);
    assert!(weights.quantized("y.weight").unwrap_err().to_string().contains("no tensor y.weight"));
}

#[test]
fn some_rows_are_those_of_the_whole() {
    for (file, names) in [("ggml.safetensors", &["x"][..]), ("bitsandbytes.safetensors", &["layer.weight", "x", "values"])] {
        let weights = golden(file);
        for name in names {
            let (rows, all) = (weights.info(name).unwrap().1[0], weights.to_f32(name).unwrap());
            let whole = weights.quantized(name).unwrap();
            for part in [0..rows, 0..0, 1..rows, rows - 1..rows] {
                let columns = all.len() / rows;
                let expected = &all[part.start * columns..part.end * columns];
                assert_eq!(bits(&weights.to_f32_rows(name, part.clone()).unwrap()), bits(expected), "{name} {part:?}");
                let codes = weights.quantized_rows(name, part.clone()).unwrap();
                assert_eq!(codes.is_some(), whole.is_some());
                if let (Some(codes), Some(whole)) = (codes, &whole) {
                    assert_eq!(codes.rows(), part.len());
                    assert_eq!(bits(&codes.dequantize()), bits(&whole.dequantize()[part.start * columns..part.end * columns]));
                }
            }
            assert!(weights.to_f32_rows(name, 0..rows + 1).unwrap_err().to_string().contains("rows"), "{name}");
            assert!(weights.to_f32_rows(name, 1..usize::MAX).is_err());
        }
    }
    let weights = golden("bitsandbytes.safetensors");
    let rows = weights.info("layer.weight").unwrap().1[0];
    assert!(weights.quantized_rows("layer.weight", 1..rows + 1).unwrap_err().to_string().contains("rows"));
}

/// Matrices of both kinds of codes, with minima and without.
fn some_of_each(rows: usize, columns: usize) -> Vec<Quantized> {
    let x: Vec<f32> = (0..rows * columns).map(|i| ((i * 37 % 101) as f32 - 40.0) * [1e-3, 0.7, 5.0][i / 32 % 3]).collect();
    let shape = [rows, columns];
    let mut all = vec![
        Quantized::int8(shape, columns, &x).unwrap(),
        Quantized::int8(shape, 32, &x).unwrap(),
        Quantized::int4(shape, 64, &x).unwrap(),
        Quantized::int4(shape, columns, &x).unwrap(),
    ];
    let minima = |of: &Quantized| {
        let mins = of.scales().iter().enumerate().map(|(i, scale)| scale * i as f32).collect();
        Quantized::new(shape, of.bits(), of.group(), of.scales().to_vec(), Some(mins), of.codes().to_vec()).unwrap()
    };
    let with: Vec<Quantized> = all.iter().map(minima).collect();
    all.extend(with);
    all
}

#[test]
fn panels_hold_what_rows_do() {
    for matrix in some_of_each(64, 192) {
        let panels = matrix.to_panels().unwrap();
        assert!(same(&panels.to_rows().unwrap(), &matrix));
        assert_eq!((panels.rows(), panels.columns(), panels.bits(), panels.group()), (64, 192, matrix.bits(), matrix.group()));
        // Row 37 is the sixth of the second panel; of 4 bits rows 5 and 21 share a byte.
        let (k, code) = (99, |row: usize, k: usize| match matrix.bits() {
            Bits::Eight => matrix.codes()[row * 192 + k],
            Bits::Four => matrix.codes()[row * 96 + k / 2] >> (4 * (k % 2)) & 15,
        });
        match matrix.bits() {
            Bits::Eight => assert_eq!(panels.codes()[(192 + k) * 32 + 5], code(37, k)),
            Bits::Four => assert_eq!(panels.codes()[(192 + k) * 16 + 5], code(37, k) | code(53, k) << 4),
        }
    }
    let odd = &some_of_each(48, 192)[0];
    assert_eq!(odd.to_panels(), Err(QuantizedError::Rows { found: 48, multiple: 32 }));
}

type Tensors = Vec<(String, Dtype, Vec<usize>, Vec<u8>)>;

/// Files of a matrix in panels, spoilt by `change`.
fn panel_file(matrix: &Quantized, change: impl FnOnce(&mut Tensors)) -> Weights {
    let panels = matrix.to_panels().unwrap();
    let bytes = |of: &[f32]| of.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let [rows, columns, groups] = [matrix.rows(), matrix.columns(), matrix.columns() / matrix.group()];
    let mut tensors = vec![
        ("a.panels".to_owned(), Dtype::U8, vec![rows / 32, columns, matrix.bits().bytes(32)], panels.codes().to_vec()),
        ("a.scales".to_owned(), Dtype::F32, vec![rows / 32, groups, 32], bytes(panels.scales())),
    ];
    tensors.extend(panels.mins().map(|mins| ("a.mins".to_owned(), Dtype::F32, vec![rows / 32, groups, 32], bytes(mins))));
    change(&mut tensors);
    let refs: Vec<_> = tensors.iter().map(|(name, dtype, shape, bytes)| TensorRef { name, dtype: *dtype, shape, bytes }).collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("panels.safetensors");
    save(&path, &refs, &BTreeMap::new()).unwrap();
    Weights::from_bytes("panels.safetensors", &std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn panels_are_read_from_files_all_or_some() {
    for matrix in some_of_each(96, 128) {
        let file = panel_file(&matrix, |_| {});
        assert!(same(&file.quantized("a.weight").unwrap().unwrap(), &matrix));
        let some = file.panels("a.weight", Some(&(32..96))).unwrap().unwrap().to_rows().unwrap();
        assert_eq!(bits(&some.dequantize()), bits(&matrix.dequantize()[32 * 128..]));
        assert!(file.panels("a.weight", Some(&(8..40))).unwrap().is_none(), "no whole panels");
        assert!(file.panels("a.weight", Some(&(32..128))).unwrap_err().to_string().contains("rows"));
        assert!(file.panels("b.weight", None).unwrap().is_none());
    }
}

#[test]
fn panels_that_do_not_fit_are_refused() {
    let matrices = some_of_each(64, 64);
    let refused = |which: usize, change: &dyn Fn(&mut Tensors), why: &str| {
        let error = panel_file(&matrices[which], |tensors| change(tensors)).quantized("a.weight").unwrap_err().to_string();
        assert!(error.contains(why), "{error}, expected {why}");
    };
    refused(0, &|t| t[0].2 = vec![2, 32, 64], "is not that of panels");
    refused(0, &|t| t[0].2 = vec![4096], "is not that of panels");
    refused(0, &|t| t[0].1 = Dtype::I8, "is not that of panels");
    refused(2, &|t| (t[0].2, t[0].3) = (vec![0, 64, 16], Vec::new()), "rows");
    refused(0, &|t| t[1].2 = vec![2, 32, 1], "is not that of panels");
    refused(0, &|t| (t[1].2, t[1].3) = (vec![1, 1, 32], vec![0; 128]), "rows");
    refused(0, &|t| (t[1].2, t[1].3) = (vec![2, 0, 32], Vec::new()), "groups of 0 columns");
    refused(1, &|t| (t[1].2, t[1].3) = (vec![2, 3, 32], vec![0; 768]), "groups of 21 columns");
    refused(2, &|t| t[1].3[132..136].copy_from_slice(&f32::NAN.to_le_bytes()), "scale in row 33, group 0");
    refused(0, &|t| t[1].3[..4].copy_from_slice(&3e38f32.to_le_bytes()), "value in row 0");
    refused(5, &|t| (t[2].2, t[2].3) = (vec![2, 1, 32], vec![0; 256]), "minima");
    refused(0, &|t| drop(t.remove(1)), "no tensor a.scales");
}

#[test]
fn codes_want_a_scale_for_every_row() {
    let dir = tempfile::tempdir().unwrap();
    for scales in [0, 2, 4, 5] {
        let path = dir.path().join(format!("{scales}.safetensors"));
        let (codes, scb, shape) = ([1i8; 12], vec![1f32; scales], [scales]);
        let tensors = [
            TensorRef { name: "x", dtype: Dtype::I8, shape: &[3, 4], bytes: bytemuck::cast_slice(&codes) },
            TensorRef::f32("x_scb", &shape, &scb),
        ];
        save(&path, &tensors, &Default::default()).unwrap();
        let error = Weights::open(&path).unwrap().quantized("x").unwrap_err().to_string();
        assert!(error.contains("scales"), "{scales}: {error}");
    }
}

#[test]
fn packed_layers_are_found_and_read_exactly() {
    for method in ["gptq", "awq"] {
        let weights = golden(&format!("{method}.safetensors"));
        for (layer, group) in [("layer", 32), ("symmetric", 64)] {
            let found = weights.quantized(&format!("{layer}.weight")).unwrap().unwrap();
            let (shape, values) = matrix(&weights, &format!("{layer}.values"));
            assert_eq!(([found.rows(), found.columns()], found.group()), (shape, group), "{method}");
            assert_eq!(found.mins().is_none(), layer == "symmetric", "{method}");
            // The sign of zero is not theirs to choose.
            assert_eq!(found.dequantize(), values, "{method}.{layer}");
        }
    }
}

#[test]
fn packed_layers_that_do_not_fit_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let words = [0_i32; 32];
    let scales = [1.0_f32; 32];
    let why = |tensors: &[TensorRef]| {
        save(&path, tensors, &BTreeMap::new()).unwrap();
        match Weights::open(dir.path()).unwrap().quantized("weight") {
            Err(crate::Error::Weights { why: WeightsError::Quantized { why, .. }, .. }) => why,
            other => panic!("{other:?}"),
        }
    };
    // 16 columns, 8 rows, groups of 8.
    let good = [
        TensorRef::i32("qweight", &[2, 8], &words[..16]),
        TensorRef::i32("qzeros", &[2, 1], &words[..2]),
        TensorRef::f32("scales", &[2, 8], &scales[..16]),
    ];
    save(&path, &good, &BTreeMap::new()).unwrap();
    let matrix = Weights::open(dir.path()).unwrap().quantized("weight").unwrap().unwrap();
    assert_eq!((matrix.rows(), matrix.columns(), matrix.group(), matrix.dequantize()), (8, 16, 8, vec![-1.0; 128]));

    let order: Vec<i32> = (0..16).map(|i| i % 2).collect();
    let act_order = TensorRef::i32("g_idx", &[16], &order);
    assert_eq!(why(&[&good[..], &[act_order]].concat()), QuantizedError::ActOrder { column: 1, found: 1, expected: 0 });
    let negative = TensorRef::i32("g_idx", &[16], &[-1; 16]);
    assert_eq!(why(&[&good[..], &[negative]].concat()), QuantizedError::ActOrder { column: 0, found: -1, expected: 0 });
    let short = TensorRef::i32("g_idx", &[4], &words[..4]);
    assert_eq!(why(&[&good[..], &[short]].concat()), QuantizedError::Length { what: "elements of g_idx", expected: 16, found: 4 });
    let with = |i: usize, tensor| {
        let mut tensors = good;
        tensors[i] = tensor;
        why(&tensors)
    };
    assert!(matches!(with(0, TensorRef::i32("qweight", &[16], &words[..16])), QuantizedError::Layout { .. }));
    assert!(matches!(with(0, TensorRef::i32("qweight", &[4, 4], &words[..16])), QuantizedError::Layout { .. }));
    assert!(matches!(with(0, TensorRef::i32("qweight", &[0, 8], &[])), QuantizedError::Columns { found: 0, .. }));
    assert!(matches!(with(1, TensorRef::i32("qzeros", &[2, 2], &words[..4])), QuantizedError::Length { what: "words of qzeros", .. }));
    assert!(matches!(with(2, TensorRef::f32("scales", &[3, 8], &scales[..24])), QuantizedError::Group { .. }));
    assert!(matches!(with(2, TensorRef::f32("scales", &[0, 8], &[])), QuantizedError::Group { group: 0, .. }));
    assert!(matches!(with(2, TensorRef::f32("scales", &[2, 8], &[f32::NAN; 16])), QuantizedError::NonFinite { what: "scale", .. }));
    let rows = [
        TensorRef::i32("qweight", &[2, 4], &words[..8]),
        TensorRef::i32("qzeros", &[2, 0], &[]),
        TensorRef::f32("scales", &[2, 4], &scales[..8]),
    ];
    assert_eq!(why(&rows), QuantizedError::Rows { found: 4, multiple: 8 });

    std::fs::write(dir.path().join("config.json"), r#"{"quantization_config":{"checkpoint_format":"gptq_v2"}}"#).unwrap();
    assert_eq!(why(&good), QuantizedError::CheckpointFormat("gptq_v2".into()));
    let incomplete = save(&path, &good[..2], &BTreeMap::new()).and_then(|()| Weights::open(&path)?.quantized("weight"));
    assert!(incomplete.unwrap_err().to_string().contains("no tensor scales"));
}

#[test]
fn rows_become_columns() {
    assert_eq!(transposed(&[0, 1, 2, 3, 4, 5], 2, 3), [0, 3, 1, 4, 2, 5]);
    let values: Vec<usize> = (0..37 * 50).collect();
    let turned = transposed(&values, 37, 50);
    assert!((0..values.len()).all(|at| turned[at] == at % 37 * 50 + at / 37));
    assert!(transposed::<u8>(&[], 0, 5).is_empty());
}

#[test]
fn codes_of_eight_bits_are_rounded_to_even() {
    // A scale of one.
    let ties: Vec<f32> = (-254..=254).flat_map(|k| [k as f32 / 2.0, (k as f32 / 2.0).next_up(), (k as f32 / 2.0).next_down()]).collect();
    let values: Vec<f32> = ties.into_iter().map(|v| v.clamp(-127.0, 127.0)).collect();
    let matrix = Quantized::int8([1, values.len()], values.len(), &values).unwrap();
    let scale = 127.0 / 127.0f32;
    for (&code, v) in matrix.codes().iter().zip(values) {
        assert_eq!(code as i8, (v * scale).round_ties_even() as i8, "{v}");
    }
    assert_eq!(Quantized::int8([1, 2], 2, &[0.0, 1e-45]).unwrap().codes(), [0, 127]);
}

#[test]
fn what_does_not_fit_is_named() {
    use QuantizedError::*;
    let new =
        |shape, bits, group, scales: &[f32], codes| Quantized::new(shape, bits, group, scales.to_vec(), None, vec![0; codes]).unwrap_err();
    assert_eq!(new([2, 0], Bits::Eight, 1, &[], 0), Columns { found: 0, multiple: 1 });
    assert_eq!(new([usize::MAX, 2], Bits::Eight, 1, &[], 0), Overflow { shape: [usize::MAX, 2] });
    for (bits, group) in [(Bits::Eight, 0), (Bits::Eight, 4), (Bits::Eight, 12), (Bits::Four, 3), (Bits::Four, 4)] {
        assert_eq!(new([1, 6], bits, group, &[1.0; 2], 6), Group { group, columns: 6 });
    }
    assert_eq!(new([2, 6], Bits::Four, 6, &[1.0; 2], 12), Length { what: "bytes of codes", expected: 6, found: 12 });
    assert_eq!(new([2, 6], Bits::Eight, 3, &[1.0; 3], 12), Length { what: "scales", expected: 4, found: 3 });
    let infinite = [1.0, 1.0, 1.0, f32::INFINITY];
    assert_eq!(new([2, 6], Bits::Eight, 3, &infinite, 12), NonFinite { what: "scale", row: 1, group: 1, value: f32::INFINITY });
    let mins = |mins: Vec<f32>| Quantized::new([1, 2], Bits::Four, 2, vec![1.0], Some(mins), vec![0]).unwrap_err();
    assert_eq!(mins(vec![]), Length { what: "minima", expected: 1, found: 0 });
    assert!(matches!(mins(vec![f32::NAN]), NonFinite { what: "minimum", row: 0, group: 0, .. }));

    assert_eq!(Quantized::from_blocks(Dtype::F32, [1, 1], &[0; 4]), Err(NoBlocks { dtype: "F32" }));
    assert_eq!(Quantized::from_blocks(Dtype::Q8_0, [1, 33], &[0; 34]), Err(Columns { found: 33, multiple: 32 }));
    assert!(matches!(Quantized::from_blocks(Dtype::Q4K, [2, 256], &[0; 144]), Err(Length { expected: 288, found: 144, .. })));
    assert!(matches!(Quantized::from_bitsandbytes([2, 2], &[0; 4], &[0.0]), Err(Length { what: "scales", .. })));
    assert!(matches!(Quantized::q8_0([1, 32], &[f32::NAN; 32]), Err(NonFinite { what: "value", .. })));
    assert!(matches!(Quantized::q8_0([1, 32], &[1e30; 32]), Err(NonFinite { what: "scale", .. })));
    assert!(matches!(Quantized::int4([1, 32], 32, &[0.0; 31]), Err(Length { what: "values", .. })));
    assert!(matches!(Quantized::int8([usize::MAX, 4], 4, &[]), Err(Overflow { .. })));
}

#[test]
fn safetensors_hold_no_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let tensor = TensorRef { name: "w", dtype: Dtype::Q8_0, shape: &[1], bytes: &[0; 34] };
    let error = save(dir.path().join("w"), &[tensor], &BTreeMap::new()).unwrap_err().to_string();
    assert!(error.contains("tensor w: dtype Q8_0, expected one of safetensors"), "{error}");
    let header = br#"{"w":{"dtype":"Q8_0","shape":[32],"data_offsets":[0,34]}}"#;
    let file = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 34]].concat();
    assert!(Weights::from_bytes("w", &file).unwrap_err().to_string().contains("unknown dtype Q8_0"));
}

#[test]
fn a_minimum_is_subtracted_with_one_rounding() {
    let four = Quantized::new([1, 4], Bits::Four, 2, vec![0.1, 2.0], Some(vec![0.3, -1.0]), vec![0x73, 0x0f]).unwrap();
    assert_eq!(four.dequantize(), [0.1_f32.mul_add(3.0, -0.3), 0.1_f32.mul_add(7.0, -0.3), 31.0, 1.0]);
    let eight = Quantized::new([1, 2], Bits::Eight, 2, vec![0.5], Some(vec![4.0]), vec![0x80, 127]).unwrap();
    assert_eq!(eight.dequantize(), [-68.0, 59.5]);
}

#[test]
fn packed_matrices_are_read_as_they_were() {
    let values: Vec<f32> = (0..16 * 64).map(|i| ((i * 37 % 101) as f32 - 50.0) * if i < 64 { 1e-3 } else { 0.7 }).collect();
    let eight = Quantized::int8([16, 64], 64, &values).unwrap();
    let (codes, scb) = eight.to_bitsandbytes().unwrap();
    assert_eq!(Quantized::from_bitsandbytes([16, 64], bytemuck::cast_slice(codes), &scb).unwrap(), eight);
    let four = Quantized::q4_0([16, 64], &values).unwrap();
    let Gptq { qweight, qzeros, scales } = four.to_gptq().unwrap();
    let scales: Vec<f32> = scales.iter().map(|scale| scale.to_f32()).collect();
    assert_eq!(Quantized::from_gptq([16, 64], 32, &qweight, &qzeros, &scales, None).unwrap(), four);
    assert!(four.to_bitsandbytes().is_err() && eight.to_gptq().is_err());
    assert!(Quantized::int8([16, 64], 32, &values).unwrap().to_bitsandbytes().is_err());
    assert!(matches!(Quantized::int4([4, 64], 32, &values[..256]).unwrap().to_gptq(), Err(QuantizedError::Rows { found: 4, .. })));
    let huge = Quantized::int4([8, 32], 32, &[1e30; 256]).unwrap();
    assert!(matches!(huge.to_gptq(), Err(QuantizedError::NonFinite { what: "scale", .. })));
}

proptest! {
    #[test]
    fn values_come_back_to_half_a_step(
        values in proptest::collection::vec(-1e3..1e3_f32, 256),
        group in prop::sample::select(vec![2_usize, 32, 64, 128]),
    ) {
        let (int8, int4) = (Quantized::int8([2, 128], group, &values).unwrap(), Quantized::int4([2, 128], group, &values).unwrap());
        for (i, v) in values.iter().enumerate() {
            let (step8, step4) = (int8.scales()[i / group], int4.scales()[i / group]);
            // What mirrors the greatest is clipped, by a step at most.
            let bound = if v / step4 > 7.0 { 1.001 } else { 0.501 };
            prop_assert!((int8.dequantize()[i] - v).abs() <= 0.501 * step8);
            prop_assert!((int4.dequantize()[i] - v).abs() <= bound * step4.abs());
        }
    }

    #[test]
    fn any_bytes_are_blocks_or_an_error(
        bytes in proptest::collection::vec(any::<u8>(), 0..600),
        dtype in prop::sample::select(vec![Dtype::Q8_0, Dtype::Q4_0, Dtype::Q4K]),
    ) {
        let blocks = bytes.len() / dtype.size();
        let shape = [blocks, dtype.block()];
        if let Ok(matrix) = Quantized::from_blocks(dtype, shape, &bytes[..blocks * dtype.size()]) {
            prop_assert_eq!(matrix.dequantize().len(), blocks * dtype.block());
            prop_assert!(matrix.dequantize().iter().all(|v| v.is_finite()));
        }
    }
}
