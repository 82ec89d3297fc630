use std::path::Path;

use swara_loader::quantized::Bits;
use swara_loader::weights::{TensorRef, save};

use super::*;
use crate::rounding::{Loss, Method, Moments, Observed, Target, round};

const MODELS: [&str; 4] = ["moshi", "plain", "shared", "listener"];

fn golden(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../verify/golden/moshi_lm/weights").join(name)
}

/// A model that says what is most probable.
fn greedy(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(golden(name).join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    config["lm_gen_config"] = serde_json::json!({ "temp": 0.0, "temp_text": 0.0 });
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    std::fs::copy(golden(name).join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    dir
}

/// Codes `[heard, steps]` that come in runs.
fn heard(config: &Config, steps: usize, seed: usize) -> Vec<i32> {
    let code = |at: usize| ((at % steps / 3 * 7 + at / steps * 5 + seed * 11) * (seed + at % 4) % config.card) as i32;
    (0..config.heard() * steps).map(code).collect()
}

fn sites(file: &Weights, conversations: &[Conversation]) -> Vec<Site> {
    let mut sites = Vec::new();
    observe(file, conversations, |site| {
        sites.push(site);
        Ok(())
    })
    .unwrap();
    sites
}

/// Row `step` of the inputs times the matrix.
fn logits(seen: &Seen, step: usize) -> Vec<f64> {
    let x = &seen.inputs[step * seen.columns..][..seen.columns];
    seen.values.chunks_exact(seen.columns).map(|w| w.iter().zip(x).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()).collect()
}

fn best(logits: &[f64]) -> i32 {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as i32
}

#[test]
fn matrices_are_observed_with_what_a_session_multiplies_them_with() {
    const STEPS: usize = 45;
    for name in MODELS {
        let dir = greedy(name);
        let lm = Lm::open(dir.path(), &Device::Cpu, DType::F32).unwrap();
        let config = lm.config();
        if config.heard() == 0 {
            continue;
        }
        let codes = heard(config, STEPS, 1);
        let conversation = Conversation::with(&lm, &codes, 0).unwrap();
        let file = Weights::open(dir.path()).unwrap();
        let sites = sites(&file, &[conversation.clone(), conversation.clone()]);
        let find = |tensor: &str| sites.iter().flat_map(|site| &site.matrices).find(|seen| seen.places[0].0 == tensor);
        let mut session = Session::new(&lm, &[Drawing::GREEDY]).unwrap();
        let width = 1 + config.dep_q;
        for step in 0..STEPS {
            let frame: Vec<i32> = (0..config.heard()).map(|k| codes[k * STEPS + step]).collect();
            let given = Tensor::from_slice(&Device::Cpu, &frame, [1, frame.len()]).unwrap();
            let found = session.step(&given, None).unwrap();
            assert_eq!(found.said.to_vec::<i32>().unwrap(), conversation.said[step * width..][..width], "{name}, step {step}");
            // The second conversation begins anew.
            for step in [step, STEPS + step] {
                let text = logits(find("text_linear.weight").unwrap(), step);
                if !config.bias_proj {
                    for (a, b) in text.iter().zip(found.text_logits.to_vec::<f32>().unwrap()) {
                        assert!((a - f64::from(b)).abs() < 1e-4, "{name}, step {step}: {a} {b}");
                    }
                }
                for k in (0..config.dep_q).filter(|_| !config.bias_proj) {
                    let codes = logits(find(&format!("linears.{k}.weight")).unwrap(), step);
                    assert_eq!(best(&codes), found.said.to_vec::<i32>().unwrap()[1 + k], "{name}, step {step}, code {k}");
                }
            }
        }
        // All matrices, each with the rows that it has, once.
        let mut rows: BTreeSet<(String, usize, usize)> = BTreeSet::new();
        for seen in sites.iter().flat_map(|site| &site.matrices) {
            assert_eq!(seen.inputs.len() % seen.columns, 0);
            assert!(seen.places.iter().all(|(name, part)| rows.insert((name.clone(), part.start, part.end))), "{name}");
        }
        for (name, part) in super::super::matrices(&file).unwrap() {
            let own: Vec<_> = rows.iter().filter(|(of, ..)| *of == name).collect();
            let covered: usize = own.iter().map(|(_, start, end)| end - start).sum();
            assert_eq!(covered, file.info(&name).unwrap().1[0], "{name}, {part:?}");
        }
    }
}

#[test]
fn frames_are_what_a_conversation_completes() {
    const STEPS: usize = 30;
    let dir = greedy("moshi");
    let lm = Lm::open(dir.path(), &Device::Cpu, DType::F32).unwrap();
    let (config, late) = (lm.config(), 1);
    let codes = heard(config, STEPS, 2);
    let spoken = Conversation::with(&lm, &codes, 0).unwrap();
    let width = 1 + config.dep_q;
    let said = |column: usize, frame: usize| spoken.said[(frame + config.delays[column]) * width + column];
    let frames = STEPS - late;
    let text: Vec<i32> = (0..frames).map(|t| said(0, t)).collect();
    let own = (1..width).flat_map(|k| (0..frames).map(move |t| (k, t))).map(|(k, t)| said(k, t));
    let theirs = (0..config.heard()).flat_map(|k| codes[k * STEPS..][..frames].to_vec());
    let found = Conversation::of_frames(config, &text, &own.chain(theirs).collect::<Vec<_>>()).unwrap();
    assert_eq!(found.heard[..], spoken.heard[..frames * config.heard()]);
    for (at, (a, b)) in found.said.iter().zip(&spoken.said).enumerate() {
        // What is said before a late column begins is said to nobody.
        let begins = at / width >= config.delays[at % width];
        assert_eq!(*a, if begins { *b } else { config.initial()[at % width] }, "step {}, column {}", at / width, at % width);
    }
}

#[test]
fn calibrated_matrices_have_less_error_in_conversations_seen_and_unseen() {
    let dir = greedy("moshi");
    let lm = Lm::open(dir.path(), &Device::Cpu, DType::F32).unwrap();
    let file = Weights::open(dir.path()).unwrap();
    let talk = |seed: usize| Conversation::with(&lm, &heard(lm.config(), 250, seed), 0).unwrap();
    let seen = sites(&file, &[talk(1), talk(2), talk(3)]);
    let unseen = sites(&file, &[talk(4), talk(5)]);
    let mut errors = Vec::new();
    for method in [Method::Nearest, Method::Gptq, Method::Awq] {
        let (mut here, mut there) = (Loss::default(), Loss::default());
        for (site, other) in seen.iter().zip(&unseen) {
            let observed: Vec<Observed> = site.matrices.iter().map(observed).collect();
            let norm = site.norm.as_ref().map(|(norm, _)| norm);
            let rounded = round(method, &observed, norm).unwrap();
            let by: Option<Vec<f32>> =
                rounded.norm.as_ref().map(|new| norm.unwrap().tensors[0].iter().zip(&new.tensors[0]).map(|(old, new)| old / new).collect());
            for ((codes, loss), other) in rounded.matrices.iter().zip(&other.matrices) {
                here.add(loss);
                let by = |at: usize| by.as_ref().map_or(1.0, |by| by[at % other.columns]);
                let error: Vec<f32> = codes.dequantize().iter().zip(&other.values).enumerate().map(|(at, (q, v))| q / by(at) - v).collect();
                let measure = Moments::new(other.columns, &other.inputs).unwrap().measure().unwrap();
                there.output_energy += measure.outputs(&other.values).unwrap();
                there.output_error += measure.outputs(&error).unwrap();
            }
        }
        errors.push([here.relative_outputs().unwrap(), there.relative_outputs().unwrap(), here.relative()]);
    }
    println!("outputs seen, unseen, values: nearest, GPTQ, AWQ {errors:.4?}");
    for found in &errors[1..] {
        assert!(found[0] < 0.95 * errors[0][0] && found[1] < 0.97 * errors[0][1], "{errors:?}");
    }
}

/// 4 bits.
fn observed(seen: &Seen) -> Observed {
    let group = if seen.columns.is_multiple_of(32) { 32 } else { seen.columns };
    let target = Target { bits: Bits::Four, group, f16_scales: true };
    Observed { target, columns: seen.columns, values: seen.values.clone(), inputs: seen.inputs.clone() }
}

#[test]
fn conversations_that_are_none_are_errors() {
    let lm = Lm::open(&golden("moshi"), &Device::Cpu, DType::F32).unwrap();
    let config = lm.config();
    let refused = |found: Result<Conversation>, says: &str| {
        let error = found.err().unwrap().to_string();
        assert!(error.contains(says), "{error}");
    };
    refused(Conversation::with(&lm, &[], 0), "0 codes");
    refused(Conversation::with(&lm, &[0; 5], 0), "hears 4 a frame");
    refused(Conversation::with(&lm, &[0, 0, 32, 0], 0), "code 32 of codebook 2, frame 0, expected 0 to 31");
    refused(Conversation::of_frames(config, &[], &[]), "0 codes");
    refused(Conversation::of_frames(config, &[1, 1], &[0; 8]), "8 codes beside 2");
    refused(Conversation::of_frames(config, &[40], &[0; 8]), "text 40, frame 0, expected 0 to 39");
    refused(Conversation::of_frames(config, &[1], &[0, 0, 0, -1, 0, 0, 0, 0]), "code -1 of codebook 3");
}

#[test]
fn values_that_grow_beyond_all_bounds_are_an_error() {
    let dir = greedy("moshi");
    let file = Weights::open(dir.path()).unwrap();
    let lm = Lm::open(dir.path(), &Device::Cpu, DType::F32).unwrap();
    let conversation = Conversation::with(&lm, &heard(lm.config(), 4, 1), 0).unwrap();
    let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> =
        file.names().map(|name| (name.to_owned(), file.info(name).unwrap().1.to_vec(), file.to_f32(name).unwrap().into_owned())).collect();
    for (name, _, values) in &mut tensors {
        if name.contains("gating.linear_in") {
            values.iter_mut().for_each(|v| *v *= 1e30);
        }
    }
    let refs: Vec<TensorRef> = tensors.iter().map(|(name, shape, values)| TensorRef::f32(name, shape, values)).collect();
    save(dir.path().join("model.safetensors"), &refs, &Default::default()).unwrap();
    let error = observe(&Weights::open(dir.path()).unwrap(), &[conversation], |_| Ok(())).unwrap_err().to_string();
    assert!(error.contains("not finite") && error.contains("linear_out"), "{error}");
}
