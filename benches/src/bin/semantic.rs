//! What do the first codebook's codes say of phones?
//!
//! `semantic labels DATASET LAB_DIR`: writes the phones of `LAB_DIR/NAME.lab` (festvox: end in seconds, a number, phone) into the dataset's
//! teacher cache, 50 a second, for utterances whose file is called NAME; pauses have no label, and neither has an utterance without a file.
//!
//! `semantic probe MODEL.safetensors DATASET [TRIPLES]`: a linear phone probe on one-hot codes of the first codebook, learnt on the training
//! split and tested on the test split; ABX error over triples of phones of the test split, one speaker at a time, by dynamic time warping
//! of the cosine distances of codewords; the mel distance with all codebooks. One JSON object.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::json;
use swara_engine::codec::Codec;
use swara_engine::metrics::Comparison;
use swara_engine::metrics::semantic::{Codewords, Probe, Segment, abx, segments};
use swara_kernels::{DType, Device};
use swara_loader::dataset::{Dataset, Piece, Split, TeacherCache, TeacherOutput, TeacherRows};
use swara_loader::input;
use swara_loader::weights::Weights;

/// Labels a second.
const RATE: f64 = 50.0;
/// Longest .lab file.
const MAX_LAB: u64 = 1 << 20;
const PAUSES: [&str; 4] = ["pau", "#", "sil", "SIL"];
const TRIPLES: usize = 100_000;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match &args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["labels", data, labels] => write_labels(data, Path::new(labels)),
        ["probe", model, data] => probe(Path::new(model), data, TRIPLES),
        ["probe", model, data, triples] => probe(Path::new(model), data, triples.parse().context("TRIPLES")?),
        _ => bail!("usage: semantic labels DATASET LAB_DIR | semantic probe MODEL.safetensors DATASET [TRIPLES]"),
    }
}

/// Phones of a language, and more.
const MOST_CLASSES: usize = 4096;

/// `(end in seconds, phone)` of every line after the header.
fn phones(path: &Path) -> Result<Vec<(f64, String)>> {
    let text = input::read_text(path, "read labels", MAX_LAB)?;
    let line = |line: &str| {
        let mut fields = line.split_whitespace();
        let (end, phone) = (fields.next()?.parse::<f64>().ok()?, fields.nth(1)?);
        end.is_finite().then(|| (end, phone.to_owned()))
    };
    let lines = text.lines().skip_while(|line| line.trim() != "#").skip(1).filter(|line| !line.trim().is_empty());
    lines.map(|text| line(text).with_context(|| format!("{}: {text:?} is no end, number and phone", path.display()))).collect()
}

fn write_labels(data: &str, labels: &Path) -> Result<()> {
    let dataset = Dataset::open(data)?;
    let mut found = BTreeMap::new();
    for (index, u) in dataset.utterances().iter().enumerate() {
        let name = Path::new(&u.source).file_stem().unwrap_or_default();
        let path = labels.join(format!("{}.lab", name.to_string_lossy()));
        if path.is_file() {
            found.insert(index, phones(&path)?);
        }
    }
    let names: BTreeSet<&str> = found.values().flatten().map(|(_, phone)| &**phone).filter(|phone| !PAUSES.contains(phone)).collect();
    let classes: BTreeMap<&str, i32> = names.iter().copied().zip(0..).collect();
    if classes.is_empty() {
        bail!("{}: no label of an utterance of {data}", labels.display());
    }
    let cache = TeacherCache::create(&dataset, "phones", RATE, TeacherOutput::Classes(classes.len()))?;
    for (index, u) in dataset.utterances().iter().enumerate() {
        let rate = f64::from(dataset.sample_rate());
        let rows = (u.samples as f64 / rate * RATE) as usize;
        let phones = found.get(&index).map_or(&[][..], |phones| phones);
        let label = |t: usize| {
            let middle = u.start as f64 / rate + (t as f64 + 0.5) / RATE;
            let (_, phone) = phones.get(phones.partition_point(|(end, _)| *end <= middle))?;
            classes.get(&**phone).copied()
        };
        cache.write(index, &TeacherRows::Labels((0..rows).map(|t| label(t).unwrap_or(-1)).collect()))?;
    }
    println!("{}", json!({ "utterances": found.len(), "of": dataset.utterances().len(), "phones": names }));
    Ok(())
}

fn probe(model: &Path, data: &str, triples: usize) -> Result<()> {
    let (codec, dataset) = (Codec::open(model, &Device::Cpu, DType::F32)?, Dataset::open(data)?);
    let cache = TeacherCache::open(&dataset)?;
    let TeacherOutput::Classes(classes) = cache.description().output else { bail!("{data}: features, not labels") };
    if codec.format().sample_rate != dataset.sample_rate() {
        bail!("{data}: at {} Hz, the codec at {} Hz", dataset.sample_rate(), codec.format().sample_rate);
    }
    let (words, width) = codewords(model)?;
    let codewords = Codewords { values: &words, width };
    let heard = |index: usize, samples: &[f32]| -> Result<[Vec<i32>; 2]> {
        let codes = codec.encode(samples, 1)?;
        let piece = Piece { utterance: index, start: 0, samples: samples.len() };
        let TeacherRows::Labels(labels) = cache.crops(&[vec![piece]], codes.frames, codec.format().hop)? else { bail!("features") };
        Ok([codes.values, labels])
    };
    if classes > MOST_CLASSES {
        bail!("{data}: {classes} classes, expected at most {MOST_CLASSES}");
    }
    let mut probe = Probe::new(codec.format().codebook_sizes.first().copied().unwrap_or(0), classes);
    for (index, _) in dataset.split(Split::Train) {
        let [codes, labels] = heard(index, &dataset.samples(index))?;
        probe.learn(&codes, &labels);
    }
    let (mut tested, mut mel, mut by_speaker) = ([0_u64; 3], Vec::new(), BTreeMap::<&str, Vec<Segment>>::new());
    for (index, u) in dataset.split(Split::Test) {
        let samples = dataset.samples(index);
        let [codes, labels] = heard(index, &samples)?;
        tested.iter_mut().zip(probe.test(&codes, &labels)).for_each(|(sum, n)| *sum += n);
        by_speaker.entry(&u.speaker).or_default().extend(segments(&codes, &labels));
        let mut decoded = codec.decode(&codec.encode(&samples, codec.codebooks())?)?;
        decoded.truncate(samples.len());
        mel.extend(Comparison::new(&samples, &decoded, codec.format().sample_rate, 0).mel_distance);
    }
    let errors: Vec<f64> = by_speaker.values().filter_map(|segments| abx(segments, codewords, triples, 1)).collect();
    let mean = |values: &[f64]| (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64);
    let [frames, right, common] = tested.map(|n| n as f64);
    println!(
        "{}",
        json!({ "codec": codec.name(), "bits_per_second": codec.format().bitrate(codec.codebooks()), "frames": frames,
            "probe_accuracy": right / frames, "chance": common / frames, "phone_information": probe.information(),
            "abx_error": mean(&errors), "speakers": errors.len(), "triples": triples, "mel_distance": mean(&mel) })
    );
    Ok(())
}

/// Codewords of the first codebook, by the name that its tensor has. A Mimi keeps sums, and how often each codeword was chosen.
fn codewords(model: &Path) -> Result<(Vec<f32>, usize)> {
    let weights = Weights::open(model)?;
    let first = |name: &&str| {
        ["quantizer.layers.0.codebook.embedding", "quantizers.0.codebook.weight"].iter().any(|end| name.ends_with(end))
            || [".embedding_sum", ".embed_sum", ".embed"].iter().any(|end| {
                let book = name.strip_suffix(end).and_then(|book| book.strip_suffix("codebook"));
                book.is_some_and(|book| {
                    book.contains("rvq_first.vq.layers.0.") || book.contains("semantic_residual_vector_quantizer.layers.0.")
                })
            })
    };
    let name = weights.names().find(first).with_context(|| format!("{}: no embedding of a first codebook", model.display()))?;
    let width = weights.view(name)?.shape.last().copied().unwrap_or(1).max(1);
    let mut rows = weights.to_f32(name)?.into_owned();
    if let Some(book) = name.strip_suffix(".embedding_sum").or(name.strip_suffix(".embed_sum")) {
        let usage = weights.to_f32(&format!("{book}.cluster_usage"))?;
        for (row, usage) in rows.chunks_mut(width).zip(usage.iter()) {
            row.iter_mut().for_each(|v| *v /= usage.max(1e-5));
        }
    }
    Ok((rows, width))
}
