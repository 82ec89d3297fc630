use super::{Activation, Fused, Product, Weight};
use crate::case::{Case, Check, Cost, Fill, Input};
use crate::ops::elementwise;
use crate::quantized::{Bits, Quantized};
use crate::tolerance::{ROUNDOFF, Tolerance};
use crate::{DType, Result, Tensor};

/// A layer, and what is fused behind it.
#[derive(Clone, Copy)]
struct Layer {
    rows: usize,
    n: usize,
    k: usize,
    activation: Activation,
    bias: bool,
    scale: bool,
    residual: bool,
    product: Product,
    codes: Option<Codes>,
}

/// Weights of few bits, in so many groups along K.
#[derive(Clone, Copy)]
struct Codes {
    bits: Bits,
    groups: usize,
    mins: bool,
}

const fn plain(rows: usize, n: usize, k: usize) -> Layer {
    Layer { rows, n, k, activation: Activation::None, bias: false, scale: false, residual: false, product: Product::FewRows, codes: None }
}

const fn tiles(rows: usize, n: usize, k: usize) -> Layer {
    Layer { product: Product::Tiles, ..plain(rows, n, k) }
}

const fn tf32(rows: usize, n: usize, k: usize) -> Layer {
    Layer { product: Product::Tf32x3, ..plain(rows, n, k) }
}

const fn wgmma(rows: usize, n: usize, k: usize) -> Layer {
    Layer { product: Product::Wgmma, ..plain(rows, n, k) }
}

const fn codes(bits: Bits, groups: usize, mins: bool, layer: Layer) -> Layer {
    Layer { codes: Some(Codes { bits, groups, mins }), ..layer }
}

pub(super) fn cases() -> Vec<Case> {
    let small = [
        plain(0, 5, 7),
        plain(1, 1, 1),
        plain(1, 33, 31),
        plain(2, 127, 500),
        plain(5, 64, 33),
        plain(16, 31, 64),
        plain(17, 40, 96),
        plain(33, 12, 1032),
        plain(1, 96, 512),
        plain(1, 16, 17_000), // several chunks of one row
        plain(3, 18, 4_104),  // of four
        plain(16, 6, 2_051),  // of sixteen, of single elements
        Layer { bias: true, ..plain(2, 36, 40) },
        Layer { activation: Activation::Gelu, ..plain(2, 129, 64) },
        Layer { activation: Activation::Silu, bias: true, ..plain(7, 31, 65) },
        Layer { scale: true, residual: true, ..plain(2, 64, 256) },
        Layer { activation: Activation::SiluGate, ..plain(1, 66, 128) },
        Layer { activation: Activation::SiluGate, bias: true, scale: true, residual: true, ..plain(20, 14, 72) },
        Layer { activation: Activation::Gelu, bias: true, scale: true, residual: true, ..plain(3, 34, 1_024) },
        tiles(1, 1, 1),
        tiles(5, 33, 31),
        tiles(16, 208, 272),
        tiles(18, 128, 256),
        tiles(500, 128, 48),
        tiles(500, 129, 33), // the largest tiles, on the emulator's few processors
        Layer { activation: Activation::Gelu, bias: true, ..tiles(65, 68, 40) },
        Layer { activation: Activation::Silu, ..tiles(33, 64, 72) },
        Layer { activation: Activation::SiluGate, ..tiles(3, 62, 64) },
        Layer { activation: Activation::SiluGate, bias: true, scale: true, residual: true, ..tiles(70, 80, 36) },
        Layer { scale: true, residual: true, ..tiles(127, 100, 48) },
    ];
    let wgmma = [
        wgmma(1, 1, 8),
        wgmma(5, 33, 31), // rows that no copy can take
        wgmma(129, 257, 72),
        wgmma(500, 300, 520), // more tiles than the emulator has processors, more steps than stages
        wgmma(640, 128, 64),  // likewise, of whole steps
        Layer { activation: Activation::Gelu, bias: true, ..wgmma(65, 68, 40) },
        Layer { activation: Activation::Silu, bias: true, ..wgmma(33, 144, 272) },
        Layer { activation: Activation::SiluGate, ..wgmma(3, 62, 64) },
        Layer { activation: Activation::SiluGate, bias: true, scale: true, residual: true, ..wgmma(200, 320, 144) },
        Layer { scale: true, residual: true, ..wgmma(127, 112, 48) },
    ];
    let tf32 = [
        tf32(1, 1, 1),
        tf32(5, 33, 31),
        tf32(16, 208, 272),
        tf32(18, 128, 264),
        tf32(500, 129, 33),
        tf32(64, 64, 2_048),
        Layer { activation: Activation::Gelu, bias: true, ..tf32(65, 68, 40) },
        Layer { activation: Activation::SiluGate, bias: true, scale: true, residual: true, ..tf32(70, 80, 36) },
        Layer { scale: true, residual: true, ..tf32(500, 128, 48) },
    ];
    let (four, eight) = (Bits::Four, Bits::Eight);
    let low_bit = [
        codes(four, 1, false, plain(1, 1, 32)),
        codes(four, 4, false, plain(1, 33, 256)),
        codes(four, 5, true, plain(2, 127, 480)),
        codes(four, 544, true, plain(1, 16, 17_408)), // several chunks of one row
        codes(four, 65, false, plain(3, 18, 4_160)),  // of four
        codes(four, 33, true, plain(16, 6, 2_112)),   // of sixteen
        codes(four, 3, false, plain(33, 12, 96)),
        Layer { activation: Activation::SiluGate, bias: true, scale: true, residual: true, ..codes(four, 2, true, plain(20, 14, 128)) },
        codes(eight, 1, false, plain(1, 1, 32)),
        codes(eight, 1, false, plain(1, 31, 1_088)),
        codes(eight, 8, true, plain(2, 127, 512)),
        codes(eight, 129, true, plain(1, 16, 16_512)),
        codes(eight, 65, false, plain(3, 18, 4_160)),
        codes(eight, 33, true, plain(16, 6, 2_112)),
        codes(eight, 1, true, plain(33, 12, 96)),
        Layer { activation: Activation::SiluGate, bias: true, scale: true, residual: true, ..codes(eight, 1, false, plain(5, 66, 160)) },
    ];
    let mut cases = Vec::new();
    for dtype in [DType::BF16, DType::F16] {
        cases.extend(wgmma.map(|layer| case(layer, dtype, false)));
        cases.push(case(Layer { product: Product::Wgmma, ..tiles(4096, 1024, 1024) }, dtype, true));
    }
    cases.extend(tf32.map(|layer| case(layer, DType::F32, false)));
    cases.push(case(Layer { product: Product::Tf32x3, ..tiles(4096, 1024, 1024) }, DType::F32, true));
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        cases.extend(small.into_iter().chain(low_bit).map(|layer| case(layer, dtype, false)));
        cases.push(case(codes(four, 32, false, plain(1, 4096, 4096)), dtype, true));
        cases.push(case(codes(eight, 1, false, plain(1, 4096, 4096)), dtype, true));
        cases.push(case(plain(1, 4096, 4096), dtype, true));
        cases.push(case(tiles(4096, 1024, 1024), dtype, true));
        cases.push(case(Layer { activation: Activation::Gelu, ..plain(2, 2048, 512) }, dtype, true));
        cases.push(case(Layer { scale: true, residual: true, ..plain(16, 4096, 4096) }, dtype, true));
    }
    cases
}

/// Sums have deviation 1: their error is judged by that. An activation has a slope of at most 1.13, and its own error of up to 29
/// roundoffs (activation/cases.rs) of values up to 6; a gate multiplies two of them. `y` may be smaller than any of its terms.
/// A product of tf32 errs by up to 2^-21, of either sign.
fn tolerance(layer: &Layer, dtype: DType) -> Tolerance {
    let product = if layer.product == Product::Tf32x3 { 8.0 * ROUNDOFF } else { 0.0 };
    let sum = 2.0 * (layer.k as f64 + 1.0).sqrt() * ROUNDOFF + product;
    let bound = match layer.activation {
        Activation::None => return Tolerance::accumulate(layer.k + 4).via_errors(product, 1).then_round_to(dtype),
        Activation::Gelu | Activation::Silu => 1.13 * sum,
        Activation::SiluGate => 2.0 * 1.13 * sum,
    };
    Tolerance::roundings(29).plus(6.0 * bound).then_round_to(dtype)
}

/// Values have a deviation of about `K^-1/2`.
fn weight_inputs(layer: &Layer) -> Vec<Input> {
    let &Layer { n, k, .. } = layer;
    let deviation = (k as f64).powf(-0.5);
    let Some(Codes { bits, groups, mins }) = layer.codes else {
        return vec![Input::new("weight", [n, k], Fill::Normal(deviation))];
    };
    let (steps, mean) = match bits {
        Bits::Four => (4.8, 7.5),
        Bits::Eight => (77.0, 0.0),
    };
    let scale = deviation / steps;
    let mut inputs = vec![
        Input::new("codes", [n, bits.bytes(k)], Fill::Below(256)).integer(DType::U8),
        Input::new("scales", [n, groups], Fill::Uniform(0.5 * scale, 1.5 * scale)).f32(),
    ];
    if mins {
        inputs.push(Input::new("mins", [n, groups], Fill::Uniform((mean - 2.0) * scale, (mean + 2.0) * scale)).f32());
    }
    inputs
}

fn weight(layer: &Layer, inputs: &[Tensor]) -> Result<Weight> {
    let Some(Codes { bits, .. }) = layer.codes else { return Weight::for_product(&inputs[0], layer.product) };
    // The oracle's are f64.
    let single = |t: &Tensor| elementwise::convert(t, DType::F32);
    let mins = inputs.get(2).map(single).transpose()?;
    Weight::quantized(&Quantized { bits, codes: inputs[0].copy()?, scales: single(&inputs[1])?, mins })
}

fn case(layer: Layer, dtype: DType, bench: bool) -> Case {
    let Layer { rows, n, k, activation, .. } = layer;
    let gate = activation == Activation::SiluGate;
    let width = if gate { n / 2 } else { n };
    let optional = [("bias", layer.bias, n), ("scale", layer.scale, width)];
    let mut inputs = vec![Input::normal("x", [rows, k])];
    inputs.extend(weight_inputs(&layer));
    let weights = inputs.len();
    let weight_bytes = match layer.codes {
        None => n * k * dtype.bytes(),
        Some(Codes { bits, groups, mins }) => n * (bits.bytes(k) + 4 * groups * if mins { 2 } else { 1 }),
    };
    for (name, _, len) in optional.into_iter().filter(|&(_, there, _)| there) {
        inputs.push(Input::new(name, [len], Fill::Uniform(-0.5, 0.5)).f32());
    }
    if layer.residual {
        inputs.push(Input::new("residual", [rows, width], Fill::Uniform(-1.0, 1.0)));
    }
    let parameters = optional.iter().filter(|(_, there, _)| *there).map(|(.., len)| 4 * len).sum::<usize>();
    let outputs = rows * width * if layer.residual { 2 } else { 1 };
    let bytes = if rows == 0 { 0 } else { (rows * k + outputs) * dtype.bytes() + weight_bytes + parameters };
    let behind: Vec<&str> = [
        (layer.bias, "bias"),
        (activation == Activation::Gelu, "gelu"),
        (activation == Activation::Silu, "silu"),
        (gate, "gate"),
        (layer.scale, "scale"),
        (layer.residual, "residual"),
        (layer.product == Product::Tiles, "by tiles"),
        (layer.product == Product::Tf32x3, "by tf32"),
        (layer.product == Product::Wgmma, "by wgmma"),
        (layer.codes.is_some_and(|codes| codes.bits == Bits::Four), "4 bits"),
        (layer.codes.is_some_and(|codes| codes.bits == Bits::Eight), "8 bits"),
        (layer.codes.is_some_and(|codes| codes.mins), "mins"),
    ]
    .into_iter()
    .filter_map(|(there, name)| there.then_some(name))
    .collect();
    Case {
        label: format!("forward {rows}x{k} to {n} {}", behind.join(" ")).trim_end().to_owned(),
        dtype,
        inputs,
        outputs: vec![("y", Check::Within(tolerance(&layer, dtype)))],
        run: Box::new(move |i| {
            let weight = i.once(|i| weight(&layer, &i[1..weights]))?;
            let mut rest = i[weights..].iter();
            let fused = Fused {
                bias: layer.bias.then(|| rest.next()).flatten(),
                activation,
                scale: layer.scale.then(|| rest.next()).flatten(),
                residual: layer.residual.then(|| rest.next()).flatten(),
            };
            Ok(vec![super::forward(&i[0], weight, fused)?])
        }),
        cost: Cost { bytes, flops: 2 * rows * n * k },
        bench,
    }
}
