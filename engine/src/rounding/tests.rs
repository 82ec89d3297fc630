use std::path::Path;

use swara_kernels::case::SplitMix;
use swara_loader::weights::Weights;

use super::*;

const FOUR: Target = Target { bits: Bits::Four, group: 32, f16_scales: true };

/// Inputs `[n, columns]` that are mixtures of a few, some columns larger than others; the mixing is that of `seed`.
fn inputs(columns: usize, n: usize, seed: u64, draw: u64) -> Vec<f32> {
    let few = columns / 4;
    let mut rng = SplitMix(seed);
    let mix: Vec<f64> = (0..few * columns).map(|_| rng.uniform() - 0.5).collect();
    let large: Vec<f64> = (0..columns).map(|_| (4.0 * (rng.uniform() - 0.7)).exp()).collect();
    let mut rng = SplitMix(draw);
    let row = |_| {
        let of: Vec<f64> = (0..few).map(|_| rng.uniform() - 0.5).collect();
        let noise: Vec<f64> = (0..columns).map(|_| 0.1 * (rng.uniform() - 0.5)).collect();
        let value = |c: usize| ((0..few).map(|i| of[i] * mix[i * columns + c]).sum::<f64>() + noise[c]) * large[c];
        (0..columns).map(|c| value(c) as f32).collect::<Vec<_>>()
    };
    (0..n).flat_map(row).collect()
}

fn values(rows: usize, columns: usize, seed: u64) -> Vec<f32> {
    let mut rng = SplitMix(seed);
    (0..rows * columns).map(|_| (rng.uniform() + rng.uniform() + rng.uniform() - 1.5) as f32).collect()
}

/// Relative error of outputs over inputs that were not seen.
fn unseen(codes: &Quantized, by: Option<&[f32]>, values: &[f32], inputs: &[f32]) -> f64 {
    let measure = Moments::new(codes.columns(), inputs).unwrap().measure().unwrap();
    let error = difference(&codes.dequantize(), values, by);
    (measure.outputs(&error).unwrap() / measure.outputs(values).unwrap()).sqrt()
}

#[test]
fn calibrated_codes_have_less_error_in_outputs_seen_and_unseen() {
    let (rows, columns) = (48, 128);
    for seed in 0..3 {
        let w = values(rows, columns, 100 + seed);
        let [seen, held_out] = [1, 2].map(|draw| inputs(columns, 600, seed, 10 * seed + draw));
        let matrix = Observed { target: FOUR, columns, values: w.clone(), inputs: Arc::new(seen) };
        let norm = Norm { tensors: vec![vec![0.7; columns]], dtype: Dtype::F32 };
        let find = |method, norm: Option<&Norm>| {
            let found = round(method, std::slice::from_ref(&matrix), norm).unwrap();
            let (codes, loss) = &found.matrices[0];
            let by: Option<Vec<f32>> = found.norm.map(|new| new.tensors[0].iter().map(|v| 0.7 / v).collect());
            (loss.relative_outputs().unwrap(), unseen(codes, by.as_deref(), &w, &held_out), loss.relative())
        };
        let nearest = find(Method::Nearest, Some(&norm));
        let found = [find(Method::Gptq, Some(&norm)), find(Method::Awq, None), find(Method::Awq, Some(&norm))];
        println!("outputs seen, unseen, values: nearest {nearest:.4?}, gptq, clipped, awq {found:.4?}");
        for (&(here, there, _), share) in found.iter().zip([0.8, 0.99, 0.9]) {
            assert!(here < share * nearest.0 && there < share * nearest.1, "{nearest:?} {found:?}");
        }
    }
}

/// Of uncorrelated inputs of one size.
fn plain(columns: usize) -> Moments {
    let second = (0..columns * columns).map(|at| if at / columns == at % columns { 1.0 } else { 0.0 }).collect();
    Moments::of(second, vec![1.0; columns]).unwrap()
}

#[test]
fn without_correlations_gptq_gives_the_nearest_codes() {
    for (bits, group) in [(Bits::Four, 32), (Bits::Four, 96), (Bits::Eight, 96)] {
        let (target, w) = (Target { bits, group, f16_scales: bits == Bits::Four }, values(19, 96, 5));
        let factor = gptq::Factor::new(plain(96)).unwrap();
        assert_eq!(gptq::round(target, &w, &factor).unwrap(), nearest(target, 96, &w).unwrap(), "{target:?}");
    }
}

#[test]
fn a_norm_of_half_precision_keeps_what_it_can() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        let norm = Norm { tensors: vec![vec![1.5, 0.0, 1e-38, -2.0], vec![0.25; 4]], dtype };
        let (new, by) = fold(&norm, &[3.0, 3.0, 1e30, 0.7]).unwrap();
        assert_eq!((new.tensors[0][0], by[0]), (0.5, 3.0));
        assert_eq!((new.tensors[0][1], by[1], new.tensors[0][2], by[2]), (0.0, 1.0, 1e-38, 1.0), "{dtype:?}");
        let exact = new.tensors[0][3] * by[3];
        assert!((exact + 2.0).abs() < 1e-6, "{dtype:?}: {exact}");
        assert_eq!(new.tensors[1][1], 0.25);
        assert!((new.tensors[1][0] * 3.0 - 0.25).abs() < 2e-3, "{dtype:?}: {}", new.tensors[1][0]);
    }
    assert!(fold(&Norm { tensors: vec![vec![1.0]], dtype: Dtype::F64 }, &[1.0]).is_none());
}

#[test]
fn a_bias_that_would_become_infinite_keeps_its_factor() {
    let norm = Norm { tensors: vec![vec![1.0, 1.0], vec![60000.0, 1.0]], dtype: Dtype::F16 };
    let (new, by) = fold(&norm, &[0.5, 0.5]).unwrap();
    assert_eq!((new.tensors, by), (vec![vec![1.0, 2.0], vec![60000.0, 2.0]], vec![1.0, 0.5]));
}

#[test]
fn matrices_and_norms_of_other_columns_are_errors() {
    let of = |columns: usize| Observed { target: FOUR, columns, values: values(8, columns, 1), inputs: Arc::new(vec![1.0; 2 * columns]) };
    let norm = |n: usize| Norm { tensors: vec![vec![1.0; n]], dtype: Dtype::F32 };
    for method in [Method::Nearest, Method::Gptq, Method::Awq] {
        assert!(round(method, &[of(64), of(32)], None).is_err());
        assert!(round(method, &[of(64)], Some(&norm(32))).is_err());
        assert!(round(method, &[of(64)], Some(&norm(64))).is_ok());
    }
}

#[test]
fn inputs_that_are_none_or_not_finite_are_errors() {
    let observed = |inputs: Vec<f32>| Observed { target: FOUR, columns: 32, values: values(8, 32, 1), inputs: Arc::new(inputs) };
    for method in [Method::Nearest, Method::Gptq, Method::Awq] {
        for (inputs, says) in
            [(vec![], "no inputs"), (vec![1.0; 33], "no inputs"), (vec![f32::NAN; 32], "finite"), (vec![1e30; 32], "finite")]
        {
            let error = round(method, &[observed(inputs)], None).err().unwrap().to_string();
            assert!(error.contains(says), "{method:?}: {error}");
        }
        let wrong = Observed { columns: 48, ..observed(vec![1.0; 96]) };
        assert!(round(method, &[wrong], None).err().unwrap().to_string().contains("groups of 32"));
        // Columns that are always 0, and few inputs.
        let found = round(method, &[observed([1.0; 16].into_iter().chain([0.0; 16]).collect())], None).unwrap();
        assert!(found.matrices[0].1.relative_outputs().unwrap() < 0.2);
        assert!(round(method, &[observed(vec![0.0; 64])], None).unwrap().matrices[0].1.relative_outputs().is_none());
    }
}

/// One code a value, as the reference has them.
fn codes(matrix: &Quantized) -> Vec<i32> {
    match matrix.bits() {
        Bits::Four => matrix.codes().iter().flat_map(|&q| [q & 15, q >> 4]).map(i32::from).collect(),
        Bits::Eight => matrix.codes().iter().map(|&q| i32::from(q as i8)).collect(),
    }
}

#[test]
fn codes_are_those_of_the_reference() {
    let case = Weights::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("../verify/golden/rounding/small.safetensors")).unwrap();
    let f32s = |name: &str| case.to_f32(name).unwrap().into_owned();
    let (w, x) = (f32s("w"), f32s("x"));
    let &[_, columns] = case.view("w").unwrap().shape else { panic!("w is [rows, columns]") };
    let factor = gptq::Factor::new(Moments::new(columns, &x).unwrap()).unwrap();
    let found = gptq::round(FOUR, &w, &factor).unwrap();
    assert_eq!((codes(&found), found.scales()), (case.to_i32("four").unwrap().into_owned(), &f32s("four_scales")[..]));
    // As they are written, they are what was chosen.
    let shape = [found.rows(), columns];
    let packed = found.to_gptq().unwrap();
    let scales: Vec<f32> = packed.scales.iter().map(|scale| scale.to_f32()).collect();
    assert_eq!(Quantized::from_gptq(shape, 32, &packed.qweight, &packed.qzeros, &scales, None).unwrap(), found);

    let eight = Target { bits: Bits::Eight, group: columns, f16_scales: false };
    let found = gptq::round(eight, &w, &factor).unwrap();
    assert_eq!(codes(&found), *case.to_i32("eight").unwrap());
    let (written, greatest) = found.to_bitsandbytes().unwrap();
    let written: Vec<i8> = written.iter().map(|&q| q as i8).collect();
    assert_eq!(Quantized::from_bitsandbytes(shape, &written, &greatest).unwrap(), found);

    let moments = Moments::new(columns, &x).unwrap();
    let measure = moments.measure().unwrap();
    let s = awq::factors(&[awq::Behind { target: FOUR, values: &w, moments: &moments, measure: &measure }]).unwrap();
    for (found, expected) in s.iter().zip(f32s("factors")) {
        assert!((found / expected - 1.0).abs() < 1e-5, "{found} {expected}");
    }
    assert!(s.iter().any(|&s| s > 1.2));
    let s = f32s("factors");
    let found = awq::clipped(FOUR, &awq::multiplied(&w, &s), &moments.divided(&s)).unwrap();
    assert_eq!((codes(&found), found.scales()), (case.to_i32("awq").unwrap().into_owned(), &f32s("awq_scales")[..]));
}
