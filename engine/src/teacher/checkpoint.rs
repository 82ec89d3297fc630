//! A folder of `transformers`: tensors by published names in memory layout, weight norm folded.

use std::path::Path;

use sha2::{Digest, Sha256};
use swara_kernels::{Device, Tensor};
use swara_loader::{input, weights};

use super::SAMPLE_RATE;
use super::config::{Config, Kind};
use crate::weights::Weights;
use crate::{Error, Result};

const CONFIG: &str = "config.json";
const PREPROCESSOR: &str = "preprocessor_config.json";
const MAX_CONFIG: u64 = 1 << 20;
/// By which a model is known.
const MARK: &str = "feature_extractor.conv_layers.0.conv.weight";
pub(super) const POSITIONS: &str = "encoder.pos_conv_embed.conv";
/// Gain and direction, by PyTorch's names of before and since 2.0.
const NORMED: [[&str; 2]; 2] = [["weight_g", "weight_v"], ["parametrizations.weight.original0", "parametrizations.weight.original1"]];

/// The configuration, whether waves are normalised, and the tensors with their digest.
pub(super) fn open(path: &Path, device: &Device) -> Result<(Config, bool, Weights, String)> {
    let fail = |why: String| Error::File { path: path.to_owned(), why };
    let file = path.join(CONFIG);
    if !file.is_file() {
        return Err(fail(format!("no folder of a teacher as transformers saves one: it has no {CONFIG}")));
    }
    let config = Config::from_json(&input::read_text(&file, "read config", MAX_CONFIG)?)
        .map_err(|e| Error::File { path: file, why: e.to_string() })?;
    let normalise = preprocessor(&path.join(PREPROCESSOR))?;
    let file = weights::Weights::open(path)?;
    let prefix = ["", config.kind()?.prefix()].into_iter().find(|prefix| file.contains(&format!("{prefix}{MARK}")));
    let prefix = prefix.ok_or_else(|| fail(format!("no teacher: there is no tensor {MARK}")))?;
    let normed = NORMED.into_iter().find(|[_, v]| file.contains(&format!("{prefix}{POSITIONS}.{v}")));

    let specs = tensors(&config, normed)?;
    let mut mismatch = file.compare(specs.iter().map(|(name, shape)| (format!("{prefix}{name}"), shape.clone())));
    // Heads and masks are of no consequence.
    mismatch.unknown.retain(|(name, _)| ["encoder.", "feature_"].iter().any(|part| name.starts_with(&format!("{prefix}{part}"))));
    if !mismatch.is_empty() {
        return Err(swara_loader::Error::Mismatch { path: path.to_owned(), mismatch }.into());
    }
    let (mut tensors, mut digest) = (Weights::new(), Sha256::new());
    digest.update(format!("{config:?} {normalise}"));
    let read = |name: &str| -> Result<Vec<f32>> {
        let name = format!("{prefix}{name}");
        let values = file.to_f32(&name)?.into_owned();
        match values.iter().position(|v| !v.is_finite()) {
            Some(at) => Err(fail(format!("element {at} of tensor {name} is {}", values[at]))),
            None => Ok(values),
        }
    };
    for (name, shape) in &specs {
        let mut values = read(name)?;
        values.chunks(4096).for_each(|some| digest.update(some.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()));
        let (name, shape) = match normed {
            Some([g, v]) if *name == format!("{POSITIONS}.{v}") => {
                if let Some(tap) = fold(&mut values, &read(&format!("{POSITIONS}.{g}"))?) {
                    return Err(fail(format!("tap {tap} of tensor {prefix}{name} is all zeros, which no gain can scale")));
                }
                (format!("{POSITIONS}.weight"), shape)
            }
            Some([g, _]) if *name == format!("{POSITIONS}.{g}") => continue,
            _ => (name.clone(), shape),
        };
        let tensor = match shape[..] {
            [cout, cin, taps] => Tensor::from_slice(device, &taps_first(&values, [cout, cin, taps]), [taps, cin, cout])?,
            [rows, columns] => Tensor::from_slice(device, &values, [rows, columns])?,
            _ => Tensor::from_slice(device, &values, [values.len()])?,
        };
        tensors.insert(name, tensor);
    }
    let digest = digest.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect();
    Ok((config, normalise, tensors, digest))
}

/// `do_normalize`, which is the published default where nothing is said.
fn preprocessor(path: &Path) -> Result<bool> {
    if !path.exists() {
        return Ok(true);
    }
    let fail = |why: String| Error::File { path: path.to_owned(), why };
    let json: serde_json::Value =
        serde_json::from_str(&input::read_text(path, "read config", MAX_CONFIG)?).map_err(|e| fail(e.to_string()))?;
    match json.get("sampling_rate") {
        None => {}
        Some(rate) if rate.as_u64() == Some(u64::from(SAMPLE_RATE)) => {}
        Some(rate) => return Err(fail(format!("sampling_rate is {rate}, expected {SAMPLE_RATE}"))),
    }
    match json.get("do_normalize") {
        None => Ok(true),
        Some(found) => found.as_bool().ok_or_else(|| fail(format!("do_normalize is {found}, expected true or false"))),
    }
}

/// Names and published shapes.
fn tensors(c: &Config, normed: Option<[&str; 2]>) -> Result<Vec<(String, Vec<usize>)>> {
    let mut tensors: Vec<(String, Vec<usize>)> = Vec::new();
    let mut add = |name: String, shape: &[usize]| tensors.push((name, shape.to_vec()));
    let mut cin = 1;
    for (i, (&cout, &taps)) in c.conv_dim.iter().zip(&c.conv_kernel).enumerate() {
        let name = |part: &str| format!("feature_extractor.conv_layers.{i}.{part}");
        add(name("conv.weight"), &[cout, cin, taps]);
        if c.conv_bias {
            add(name("conv.bias"), &[cout]);
        }
        if c.norms_layers() || i == 0 {
            ["weight", "bias"].iter().for_each(|part| add(name(&format!("layer_norm.{part}")), &[cout]));
        }
        cin = cout;
    }
    let width = c.hidden_size;
    if c.feat_proj_layer_norm || c.kind()? == Kind::WavLm {
        ["weight", "bias"].iter().for_each(|part| add(format!("feature_projection.layer_norm.{part}"), &[cin]));
    }
    add("feature_projection.projection.weight".into(), &[width, cin]);
    add("feature_projection.projection.bias".into(), &[width]);
    let (groups, taps) = (c.num_conv_pos_embedding_groups, c.num_conv_pos_embeddings);
    match normed {
        Some([g, v]) => {
            add(format!("{POSITIONS}.{g}"), &[1, 1, taps]);
            add(format!("{POSITIONS}.{v}"), &[width, width / groups, taps]);
        }
        None => add(format!("{POSITIONS}.weight"), &[width, width / groups, taps]),
    }
    add(format!("{POSITIONS}.bias"), &[width]);
    ["weight", "bias"].iter().for_each(|part| add(format!("encoder.layer_norm.{part}"), &[width]));
    for i in 0..c.num_hidden_layers {
        let name = |part: &str| format!("encoder.layers.{i}.{part}");
        let linears = [
            ("attention.q_proj", width, width),
            ("attention.k_proj", width, width),
            ("attention.v_proj", width, width),
            ("attention.out_proj", width, width),
            ("feed_forward.intermediate_dense", c.intermediate_size, width),
            ("feed_forward.output_dense", width, c.intermediate_size),
        ];
        for (part, rows, columns) in linears {
            add(name(&format!("{part}.weight")), &[rows, columns]);
            add(name(&format!("{part}.bias")), &[rows]);
        }
        for part in ["layer_norm.weight", "layer_norm.bias", "final_layer_norm.weight", "final_layer_norm.bias"] {
            add(name(part), &[width]);
        }
        if c.kind()? == Kind::WavLm {
            let heads = c.num_attention_heads;
            add(name("attention.gru_rel_pos_const"), &[1, heads, 1, 1]);
            add(name("attention.gru_rel_pos_linear.weight"), &[8, width / heads]);
            add(name("attention.gru_rel_pos_linear.bias"), &[8]);
            if i == 0 {
                add(name("attention.rel_attn_embed.weight"), &[c.num_buckets, heads]);
            }
        }
    }
    Ok(tensors)
}

/// `v [Cout, Cin, K]` becomes `g[k] v / |v|`, the norm of each tap; or the first tap that has no direction.
fn fold(v: &mut [f32], g: &[f32]) -> Option<usize> {
    let mut squares = vec![0.0; g.len()];
    v.iter().enumerate().for_each(|(i, v)| squares[i % g.len()] += f64::from(*v).powi(2));
    for (i, v) in v.iter_mut().enumerate() {
        let k = i % g.len();
        *v = (f64::from(g[k]) / squares[k].sqrt() * f64::from(*v)) as f32;
    }
    squares.iter().position(|&s| s == 0.0)
}

/// `[Cout, Cin, K]` to `[K, Cin, Cout]`.
fn taps_first(values: &[f32], [cout, cin, taps]: [usize; 3]) -> Vec<f32> {
    let mut out = vec![0.0; values.len()];
    for (i, v) in values.iter().enumerate() {
        let (o, c, k) = (i / taps / cin, i / taps % cin, i % taps);
        out[(k * cin + c) * cout + o] = *v;
    }
    out
}
