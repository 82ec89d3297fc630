//! Layouts of small language models (verify/reference/moshi_lm.py), LoRAs, names of transformers, types, and what does not fit.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use half::bf16;

use common::lm::{Case, distance, golden};
use swara_engine::codec::Codec;
use swara_engine::lm::{Drawing, Format, Given, Layout, Lm, Session, matrices};
use swara_kernels::{DType, Device, Tensor};
use swara_loader::weights::{Dtype, TensorRef, Weights, save};

/// The weights of the case moshi in the names of transformers say what they say in moshi's, and what transformers says.
#[test]
fn the_names_of_transformers_are_the_same_model() {
    let folder = golden("../moshi_hf");
    let case = Case::open("moshi");
    let ours = Lm::open(&golden("weights/moshi"), &Device::Cpu, DType::F32).unwrap();
    let lm = Lm::open(&folder, &Device::Cpu, DType::F32).unwrap();
    let (theirs, config) = (lm.config(), ours.config());
    assert_eq!((theirs.hidden_scale * 32.0) as usize, (config.hidden_scale * 32.0) as usize);
    assert_eq!((&theirs.delays, theirs.context, theirs.n_q, theirs.dep_q), (&config.delays, config.context, config.n_q, config.dep_q));
    let mut session = Session::new(&lm, &vec![Drawing::GREEDY; case.batch]).unwrap();
    for step in 0..case.steps {
        let found = session.step(&case.heard(&Device::Cpu, step), None).unwrap();
        assert_eq!(found.said.to_vec::<i32>().unwrap(), case.ids("said", step), "said in step {step}");
    }

    let forced = Weights::open(folder.join("forced.safetensors")).unwrap();
    let shape = forced.view("codes").unwrap().shape.to_vec();
    let (batch, n_q, steps, said) = (shape[0], shape[1], shape[2], 1 + lm.config().dep_q);
    let [text, codes, given] = ["text", "codes", "said"].map(|name| forced.to_i32(name).unwrap());
    let [text_logits, logits] = ["text_logits", "logits"].map(|name| forced.to_f32(name).unwrap());
    let mut session = Session::new(&lm, &vec![Drawing::GREEDY; batch]).unwrap();
    let mut worst: f32 = 0.0;
    // The main decoder is fed at step s what was said at step s - 1; the depth decoder is given other tokens, so its logits are
    // those of a session in which the last step alone says them.
    for last in [0, 1, 7, steps - 1] {
        session.reset(&Tensor::from_slice(&Device::Cpu, &vec![1u8; batch], [batch]).unwrap()).unwrap();
        for step in 0..=last {
            let column = |b: usize, k: usize, at: usize| if k == 0 { text[b * steps + at] } else { codes[(b * n_q + k - 1) * steps + at] };
            let delays = &lm.config().delays;
            let heard: Vec<i32> = (0..batch)
                .flat_map(|b| (said..=n_q).map(move |k| (b, k)))
                .map(|(b, k)| column(b, k, (step + delays[k]).min(steps - 1)))
                .collect();
            let next = |b: usize, k: usize| match step == last {
                true => given[(b * steps + step) * said + k],
                false => column(b, k, step + 1),
            };
            let now: Vec<i32> = (0..batch).flat_map(|b| (0..said).map(move |k| (b, k))).map(|(b, k)| next(b, k)).collect();
            let heard = Tensor::from_slice(&Device::Cpu, &heard, [batch, n_q + 1 - said]).unwrap();
            let found = session.step_given(&heard, &Given::new(&lm, &now, None).unwrap()).unwrap();
            let row = |all: &[f32], width: usize| -> Vec<f32> {
                (0..batch).flat_map(|b| all[(b * steps + step) * width..][..width].to_vec()).collect()
            };
            worst = worst.max(distance(&found.text_logits.to_vec().unwrap(), &row(&text_logits, text_logits.len() / batch / steps)));
            if step == last {
                let all = row(&logits, logits.len() / batch / steps);
                let vocab = logits.len() / batch / steps / (said - 1);
                for (k, found) in found.logits.iter().enumerate() {
                    let expected: Vec<f32> = (0..batch).flat_map(|b| all[(b * (said - 1) + k) * vocab..][..vocab].to_vec()).collect();
                    worst = worst.max(distance(&found.to_vec().unwrap(), &expected));
                }
            }
        }
    }
    println!("transformers: logits within {worst:.1e} of their spread");
    assert!(worst < 1e-4, "logits are off by {worst} of their spread");
}

fn lora_tensors() -> Tensors {
    let file = Weights::open(golden("lora/lora.safetensors")).unwrap();
    file.names().map(|n| (n.to_owned(), file.view(n).unwrap().shape.to_vec(), file.to_f32(n).unwrap().into_owned())).collect()
}

/// `b a`, for `[rows, rank]` and `[rank, columns]`.
fn product(b: &[f32], a: &[f32], rank: usize) -> Vec<f64> {
    let columns = a.len() / rank;
    let element = |i: usize, j: usize| (0..rank).map(|r| f64::from(b[i * rank + r]) * f64::from(a[r * columns + j])).sum();
    (0..b.len() / rank).flat_map(|i| (0..columns).map(move |j| (i, j))).map(|(i, j)| element(i, j)).collect()
}

/// A LoRA says what moshi's own merge of it says, in both its forms, and what `W + scaling B A` says.
#[test]
fn a_lora_is_merged_as_moshi_merges_it() {
    let case = Case::open("lora/said");
    let dir = tempfile::tempdir().unwrap();
    let base = saved_since(tensors("moshi"), 4);
    write(dir.path(), "moshi", &base);
    let config: String = std::fs::read_to_string(dir.path().join("config.json")).unwrap();
    let config =
        config.replacen('{', "{\"lora\": true, \"lora_scaling\": 1.5, \"lora_rank\": 2, \"lora_name\": \"adapter.safetensors\",", 1);
    std::fs::write(dir.path().join("config.json"), &config).unwrap();
    let lora = lora_tensors();
    let path = dir.path().join("one.safetensors");
    let store = |path: &Path, tensors: &Tensors| {
        let refs: Vec<TensorRef> = tensors.iter().map(|(n, s, v)| TensorRef::f32(n, s, v)).collect();
        save(path, &refs, &BTreeMap::new()).unwrap();
    };
    let says = |lm: &Lm, what: &str| {
        let mut session = Session::new(lm, &vec![Drawing::GREEDY; case.batch]).unwrap();
        let mut worst: f32 = 0.0;
        for step in 0..case.steps {
            let found = session.step(&case.heard(lm.device(), step), None).unwrap();
            worst = worst.max(distance(&found.text_logits.to_vec().unwrap(), &case.f32("text_logits", step)));
            assert_eq!(found.said.to_vec::<i32>().unwrap(), case.ids("said", step), "{what}: said in step {step}");
        }
        println!("{what}: logits within {worst:.1e} of their spread");
        assert!(worst < 1e-4, "{what}: logits are off by {worst} of their spread");
    };
    let open = |device: &Device| Lm::open_with_lora(dir.path(), &path, device, DType::F32).unwrap_or_else(|e| panic!("{e}"));
    store(&path, &lora);
    says(&open(&Device::Cpu), "as saved since");
    says(&open(&Device::open("emulator").unwrap()), "on the emulator");

    // Sets of weights one below the other, and the frozen matrices within: the model's own do not count.
    let mut stacked: BTreeMap<String, (Vec<usize>, Vec<f32>)> = BTreeMap::new();
    for (name, shape, values) in &lora {
        let parts: Vec<&str> = name.split('.').collect();
        let name = match parts.iter().position(|part| *part == "in_projs" || *part == "out_projs") {
            Some(at) => [&parts[..at], &[parts[at].trim_end_matches('s')], &parts[at + 2..]].concat().join("."),
            None => name.clone(),
        };
        let entry = stacked.entry(name).or_insert((vec![0, shape[1]], Vec::new()));
        entry.0[0] += shape[0];
        entry.1.extend(values);
    }
    let mut stacked: Tensors = stacked.into_iter().map(|(name, (shape, values))| (name, shape, values)).collect();
    let frozen = base.iter().filter(|t| t.0.starts_with("linears.") || t.0.contains("projs"));
    stacked.extend(frozen.map(|(name, shape, values)| (name.replace(".weight", ".frozen_W.weight"), shape.clone(), values.clone())));
    store(&path, &stacked);
    let mut other = base.clone();
    other.iter_mut().filter(|t| t.0.starts_with("linears.") || t.0.contains("projs")).for_each(|t| t.2.iter_mut().for_each(|v| *v += 1.0));
    write(dir.path(), "moshi", &other);
    std::fs::write(dir.path().join("config.json"), &config).unwrap();
    says(&open(&Device::Cpu), "stacked, with what was frozen");

    // The one that the configuration names.
    write(dir.path(), "moshi", &base);
    std::fs::write(dir.path().join("config.json"), &config).unwrap();
    store(&dir.path().join("adapter.safetensors"), &lora);
    says(&Lm::open(dir.path(), &Device::Cpu, DType::F32).unwrap(), "by its name in the configuration");
    std::fs::remove_file(dir.path().join("adapter.safetensors")).unwrap();
    let error = Lm::open(dir.path(), &Device::Cpu, DType::F32).err().unwrap().to_string();
    assert!(error.contains("lora_name is \"adapter.safetensors\""), "{error}");

    // A checkpoint merged by hand says the same.
    let find = |name: &str| lora.iter().find(|t| t.0 == name);
    let merged: Tensors = base
        .iter()
        .map(|(name, shape, values)| {
            let factor = |part: &str| find(&name.replace(".weight", &format!(".lora_{part}.weight")));
            let Some((a, b)) = factor("A").zip(factor("B")) else { return (name.clone(), shape.clone(), values.clone()) };
            let values = values.iter().zip(product(&b.2, &a.2, a.1[0])).map(|(&w, d)| (f64::from(w) + 1.5 * d) as f32);
            (name.clone(), shape.clone(), values.collect())
        })
        .collect();
    assert!(merged.iter().zip(&base).filter(|(a, b)| a.2 != b.2).count() > 40);
    write(dir.path(), "moshi", &merged);
    says(&Lm::open(dir.path(), &Device::Cpu, DType::F32).unwrap(), "merged by hand");
    let by_hand = Lm::open(dir.path(), &Device::Cpu, Format::int8(DType::F32)).unwrap();

    // With an embedding and a norm that were trained beside it, and rounded once it is merged.
    let whole = |name: &str| merged.iter().find(|t| t.0 == name).unwrap().clone();
    let mut beside = lora.clone();
    beside.extend(["emb.3.weight", "out_norm.alpha"].map(|name| {
        let (name, shape, values) = whole(name);
        (name, shape, values.iter().map(|v| v + 0.5).collect())
    }));
    store(&path, &beside);
    write(dir.path(), "moshi", &base);
    std::fs::write(dir.path().join("config.json"), &config).unwrap();
    let with_all = Lm::open_with_lora(dir.path(), &path, &Device::Cpu, DType::F32).unwrap();
    let mut other = merged.clone();
    other
        .iter_mut()
        .filter(|t| ["emb.3.weight", "out_norm.alpha"].contains(&&t.0[..]))
        .for_each(|t| t.2.iter_mut().for_each(|v| *v += 0.5));
    store(&path, &lora);
    let rounded = Lm::open_with_lora(dir.path(), &path, &Device::Cpu, Format::int8(DType::F32)).unwrap();
    write(dir.path(), "moshi", &other);
    let other = Lm::open(dir.path(), &Device::Cpu, DType::F32).unwrap();
    for (found, expected, bound) in [(with_all, other, 1e-4), (rounded, by_hand, 0.05)] {
        let [found, expected] = [&found, &expected].map(|lm| {
            let mut session = Session::new(lm, &vec![Drawing::GREEDY; case.batch]).unwrap();
            session.step(&case.heard(&Device::Cpu, 0), None).unwrap().text_logits.to_vec::<f32>().unwrap()
        });
        assert!(distance(&found, &expected) < bound, "{}", distance(&found, &expected));
        assert!(distance(&found, &case.f32("text_logits", 0)) > 1e-3, "it is another model");
    }
}

/// What a file has in bf16 is taken as it lies, in rows and parts of tensors as well.
#[test]
fn files_in_bf16_are_the_values_that_they_hold() {
    for (name, weights) in [("moshi", golden("weights/moshi")), ("moshi", golden("../moshi_hf"))] {
        let case = Case::open(name);
        let file = Weights::open(&weights).unwrap();
        let config = std::fs::read(weights.join("config.json")).unwrap();
        let stored = |dtype: Dtype, change: &dyn Fn(&str, &mut [bf16])| {
            let dir = tempfile::tempdir().unwrap();
            let bytes = |name: &str| -> Vec<u8> {
                let mut values: Vec<bf16> = file.to_f32(name).unwrap().iter().map(|&v| bf16::from_f32(v)).collect();
                change(name, &mut values);
                match dtype {
                    Dtype::Bf16 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
                    _ => values.iter().flat_map(|v| v.to_f32().to_le_bytes()).collect(),
                }
            };
            let bytes: Vec<(&str, Vec<u8>)> = file.names().map(|name| (name, bytes(name))).collect();
            let refs: Vec<TensorRef> =
                bytes.iter().map(|(name, bytes)| TensorRef { name, dtype, shape: file.view(name).unwrap().shape, bytes }).collect();
            save(dir.path().join("model.safetensors"), &refs, &BTreeMap::new()).unwrap();
            std::fs::write(dir.path().join("config.json"), &config).unwrap();
            Lm::open(dir.path(), &Device::Cpu, DType::BF16)
        };
        let [half, single] = [Dtype::Bf16, Dtype::F32].map(|dtype| stored(dtype, &|_, _| {}).unwrap());
        let [mut half, mut single] = [&half, &single].map(|lm| Session::new(lm, &vec![Drawing::GREEDY; case.batch]).unwrap());
        for step in 0..10 {
            let heard = case.heard(&Device::Cpu, step);
            let [a, b] = [&mut half, &mut single].map(|session| session.step(&heard, None).unwrap());
            assert_eq!(a.said.to_vec::<i32>().unwrap(), b.said.to_vec::<i32>().unwrap(), "step {step}");
            assert_eq!(a.text_logits.to_vec::<f32>().unwrap(), b.text_logits.to_vec::<f32>().unwrap(), "step {step}");
        }
        let table = file.names().find(|name| name.ends_with("text_emb.weight") || name.ends_with("text_embed_tokens.weight")).unwrap();
        let broken = stored(Dtype::Bf16, &|name, values| {
            if name == table {
                values[7] = bf16::INFINITY
            }
        })
        .err()
        .unwrap()
        .to_string();
        assert!(broken.contains(&format!("element 7 of tensor {table} is inf")), "{broken}");
    }
}

#[test]
fn a_lora_of_another_model_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lora.safetensors");
    let refused = |change: &dyn Fn(&mut Tensors), why: &str| {
        let mut tensors = lora_tensors();
        change(&mut tensors);
        let refs: Vec<TensorRef> = tensors.iter().map(|(n, s, v)| TensorRef::f32(n, s, v)).collect();
        save(&path, &refs, &BTreeMap::new()).unwrap();
        let error = Lm::open_with_lora(&golden("weights/moshi"), &path, &Device::Cpu, DType::F32).err().expect(why).to_string();
        assert!(error.contains(why) && !error.contains('\n'), "{error}");
    };
    let named = |tensors: &Tensors, name: &str| tensors.iter().position(|t| t.0 == name).unwrap();
    refused(&|t| t.push(("linears.9.lora_A.weight".into(), vec![2, 16], vec![0.0; 32])), "linears.9.lora_A.weight");
    refused(&|t| t.retain(|t| t.0 != "linears.2.lora_A.weight"), "linears.2.lora_A.weight");
    refused(&|t| t.retain(|t| t.0 != "linears.2.lora_B.weight"), "linears.2.lora_B.weight");
    refused(
        &|t| {
            let i = named(t, "linears.1.lora_B.weight");
            t[i].1 = vec![t[i].1[0] / 2, t[i].1[1] * 2];
        },
        "linears.1.lora_B.weight",
    );
    refused(
        &|t| {
            let i = named(t, "linears.1.lora_B.weight");
            t[i].2[5] = f32::NAN;
        },
        "element 5 of tensor linears.1.lora_B.weight",
    );
    refused(&|t| t.clear(), "no LoRA");
    let at = |t: &mut Tensors, name: &str, shape: Vec<usize>| {
        let i = named(t, name);
        t[i] = (name.to_owned(), shape.clone(), vec![0.0; shape.iter().product()]);
    };
    refused(&|t| at(t, "text_linear.lora_A.weight", vec![]), "expected two axes");
    refused(&|t| at(t, "text_linear.lora_A.weight", vec![0, 1 << 40]), "is of rank 0");
    refused(&|t| (t.retain(|t| t.0 != "text_linear.lora_A.weight"), at(t, "text_linear.lora_B.weight", vec![0, 1 << 40])).1, "is of rank");
    refused(&|t| t.push(("depformer.layers.0.self_attn.in_proj.lora_A.weight".into(), vec![8, 16], vec![0.0; 128])), "one set of weights");
    let error =
        Lm::open_with_lora(&golden("../moshi_hf"), &golden("lora/lora.safetensors"), &Device::Cpu, DType::F32).err().unwrap().to_string();
    assert!(error.contains("names of transformers"), "{error}");
}

/// A codec beside the model is not the model's, and is found.
#[test]
fn a_codec_in_the_names_of_transformers_is_found() {
    let folder = golden("../moshi_hf");
    let read = |path: PathBuf| -> Tensors {
        let file = Weights::open(path).unwrap();
        let shape = |n: &str| file.view(n).unwrap().shape.to_vec();
        file.names().map(|n| (n.to_owned(), shape(n), file.to_f32(n).unwrap().into_owned())).collect()
    };
    let mut all = read(folder.join("model.safetensors"));
    all.extend(
        read(golden("../mimi/weights/hf")).into_iter().map(|(name, shape, values)| (format!("audio_encoder.{name}"), shape, values)),
    );
    let dir = tempfile::tempdir().unwrap();
    let save = |tensors: &Tensors| {
        let refs: Vec<TensorRef> = tensors.iter().map(|(n, s, v)| TensorRef::f32(n, s, v)).collect();
        save(dir.path().join("model.safetensors"), &refs, &BTreeMap::new()).unwrap();
    };
    save(&all);
    std::fs::copy(folder.join("config.json"), dir.path().join("config.json")).unwrap();
    let file = Weights::open(dir.path()).unwrap();
    assert_eq!(Layout::of(&file), Some(Layout::HuggingFace));
    assert!(matrices(&file).unwrap().keys().all(|name| file.contains(name) && !name.starts_with("audio_encoder.")));
    Lm::open(dir.path(), &Device::Cpu, Format::int8(DType::F32)).unwrap();
    Codec::open(dir.path(), &Device::Cpu, DType::F32).unwrap();
    for (name, why) in
        [("decoder.model.layers.1.self_attn.k_proj.linear.weight", "1 missing"), ("depth_decoder.lm_heads.weight", "1 missing")]
    {
        let tensors: Tensors = all.iter().filter(|t| t.0 != name).cloned().collect();
        save(&tensors);
        let error = Lm::open(dir.path(), &Device::Cpu, DType::F32).err().unwrap().to_string();
        assert!(error.contains(name) && error.contains(why), "{error}");
    }
    all.push(("another.weight".into(), vec![1], vec![0.0]));
    save(&all);
    assert!(Lm::open(dir.path(), &Device::Cpu, DType::F32).err().unwrap().to_string().contains("another.weight"));
}

type Tensors = Vec<(String, Vec<usize>, Vec<f32>)>;

fn tensors(name: &str) -> Tensors {
    let file = Weights::open(golden("weights").join(name)).unwrap();
    let shape = |n: &str| file.view(n).unwrap().shape.to_vec();
    file.names().map(|n| (n.to_owned(), shape(n), file.to_f32(n).unwrap().into_owned())).collect()
}

/// Matrices one below the other, each on its own.
fn split((name, shape, values): &(String, Vec<usize>, Vec<f32>), sets: usize) -> Tensors {
    let (rows, width) = (shape[0] / sets, shape[1]);
    values.chunks(rows * width).map(|part| (name.clone(), vec![rows, width], part.to_vec())).collect()
}

/// The names that moshi saves since 2025.
fn saved_since(tensors: Tensors, sets: usize) -> Tensors {
    let resave = |tensor: (String, Vec<usize>, Vec<f32>)| {
        let stem = ["in_proj_weight", "out_proj.weight"].iter().find_map(|end| Some((tensor.0.strip_suffix(end)?, &end[..end.len() - 7])));
        let Some((stem, part)) = stem else { return vec![tensor] };
        let sets = if stem.starts_with("depformer.") { sets } else { 1 };
        let name = |i: usize| format!("{stem}{part}s.{i}.weight");
        split(&tensor, sets).into_iter().enumerate().map(|(i, (_, shape, values))| (name(i), shape, values)).collect()
    };
    tensors.into_iter().flat_map(resave).collect()
}

/// A depth transformer for every step, as the Rust moshi has it.
fn per_step(tensors: Tensors, schedule: &[usize]) -> Tensors {
    let sets = schedule.iter().max().unwrap() + 1;
    let mut out = Tensors::new();
    for tensor in tensors {
        let name = tensor.0.clone();
        let copies = |part: &dyn Fn(usize) -> (String, Vec<usize>, Vec<f32>)| (0..schedule.len()).map(part).collect::<Tensors>();
        let renamed = |name: String| (name, tensor.1.clone(), tensor.2.clone());
        let number = |prefix: &str| -> Option<(usize, String)> {
            let (n, rest) = name.strip_prefix(prefix)?.split_once('.')?;
            Some((n.parse().ok()?, rest.to_owned()))
        };
        if let Some((layer, rest)) = number("depformer.layers.") {
            let parts = if rest.contains("_proj") { split(&tensor, sets) } else { Tensors::new() };
            out.extend((0..schedule.len()).filter_map(|k| {
                let to = |rest: &str| format!("depformer.{k}.transformer.layers.{layer}.{rest}");
                if let Some(part) = parts.get(schedule[k]) {
                    return Some((to(&rest), part.1.clone(), part.2.clone()));
                }
                match rest.strip_prefix("gating.").and_then(|gate| gate.split_once('.')) {
                    Some((set, part)) => (set.parse() == Ok(schedule[k])).then(|| renamed(to(&format!("gating.{part}")))),
                    None => Some(renamed(to(&rest))),
                }
            }));
        } else if let Some((i, part)) = number("depformer_in.") {
            let all = copies(&|k| renamed(format!("depformer.{k}.linear_in.{part}")));
            out.extend(all.into_iter().enumerate().filter(|(k, _)| schedule[*k] == i).map(|(_, tensor)| tensor));
        } else if let Some((k, part)) = number("linears.") {
            out.push(renamed(format!("depformer.{k}.linear_out.{part}")));
        } else if let Some((k, part)) = number("depformer_emb.") {
            out.push(renamed(format!("depformer.{}.emb.{part}", k + 1)));
        } else if let Some(part) = name.strip_prefix("depformer_text_emb.") {
            out.push(renamed(format!("depformer.0.emb.{part}")));
        } else {
            out.push(tensor);
        }
    }
    out
}

fn write(dir: &Path, name: &str, tensors: &Tensors) {
    let refs: Vec<TensorRef> = tensors.iter().map(|(n, s, v)| TensorRef::f32(n, s, v)).collect();
    save(dir.join("model.safetensors"), &refs, &BTreeMap::new()).unwrap();
    std::fs::copy(golden("weights").join(name).join("config.json"), dir.join("config.json")).unwrap();
}

#[test]
fn every_published_layout_says_the_same() {
    for (name, schedule) in [("moshi", &[0, 1, 2, 3][..]), ("shared", &[0, 1, 1, 2, 1]), ("voice", &[0, 1, 2, 3]), ("muxed", &[0, 1])] {
        let case = Case::open(name);
        let sets = schedule.iter().max().unwrap() + 1;
        for (layout, tensors) in [("since", saved_since(tensors(name), sets)), ("candle", per_step(tensors(name), schedule))] {
            let dir = tempfile::tempdir().unwrap();
            write(dir.path(), name, &tensors);
            let lm = Lm::open(dir.path(), &Device::Cpu, DType::F32).unwrap_or_else(|e| panic!("{name} {layout}: {e}"));
            let mut session = case.session(&lm);
            for step in 0..40 {
                let found = case.step(&mut session, &lm, step);
                assert_eq!(found.said.to_vec::<i32>().unwrap(), case.ids("said", step), "{name} {layout}: step {step}");
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let refused = |change: &dyn Fn(&mut Tensors), why: &str| {
        let dir = tempfile::tempdir().unwrap();
        let mut tensors = tensors("moshi");
        change(&mut tensors);
        write(dir.path(), "moshi", &tensors);
        let error = Lm::open(dir.path(), &Device::Cpu, DType::F32).err().expect(why).to_string();
        assert!(error.contains(why), "{error}");
    };
    let named = |tensors: &Tensors, name: &str| tensors.iter().position(|t| t.0 == name).unwrap();
    refused(&|t| t.retain(|t| t.0 != "linears.2.weight"), "linears.2.weight");
    refused(&|t| t.push(("linears.9.weight".into(), vec![1], vec![0.0])), "linears.9.weight");
    refused(&|t| t.retain(|t| t.0 != "text_emb.weight"), "no language model");
    refused(
        &|t| {
            let i = named(t, "depformer.layers.1.self_attn.in_proj_weight");
            t[i].1 = vec![t[i].1[0] / 2, t[i].1[1] * 2];
        },
        "depformer.layers.1.self_attn.in_proj_weight",
    );
    refused(
        &|t| {
            let i = named(t, "out_norm.alpha");
            t[i].2[3] = f32::NAN;
        },
        "element 3 of tensor out_norm.alpha",
    );
    let lm = Lm::open(&golden("weights/moshi"), &Device::Cpu, DType::F32).unwrap();
    let mut session = Session::new(&lm, &[Drawing::GREEDY]).unwrap();
    let ids = |ids: &[i32]| Tensor::from_slice(&Device::Cpu, ids, [1, ids.len()]).unwrap();
    assert!(session.step(&ids(&[0; 3]), None).is_err(), "a code too few");
    assert!(session.step(&ids(&[0; 4]), None).is_ok());
    assert!(session.step(&ids(&[99, 0, 0, 0]), None).is_err(), "a code beyond its table");
    assert!(Lm::open(&golden("weights/moshi"), &Device::Cpu, DType::F16).is_err());
}
