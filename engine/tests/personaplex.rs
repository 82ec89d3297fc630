//! A small PersonaPlex (verify/reference/personaplex.py) against NVIDIA's LMGen: what it says after a prompt, and where its weights may lie.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use swara_engine::codec::Codec;
use swara_engine::dialogue::{Dialogue, Heard};
use swara_engine::lm::{Config, Drawing, Format, Lm, Prompt, Quiet, Session, unread};
use swara_kernels::{DType, Device, Tensor};
use swara_loader::weights::{TensorRef, Weights, save};

/// Sets of weights that are stored, and those that are used.
const STORED: usize = 16;
const USED: usize = 8;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../verify/golden/personaplex").join(name)
}

struct Case(Weights);

impl Case {
    fn open() -> Case {
        Case(Weights::open(golden("prompted.safetensors")).unwrap())
    }

    fn ids(&self, name: &str) -> Vec<i32> {
        self.0.to_i32(name).unwrap().into_owned()
    }

    fn quiet(&self) -> Quiet {
        Quiet { said: self.ids("silence"), heard: self.ids("sine"), frames: 6 }
    }

    fn prompt(&self, lm: &Lm) -> Prompt {
        let prompt = Prompt::new(lm.config(), &self.quiet(), &self.ids("voice"), &self.ids("text")).unwrap();
        assert_eq!(prompt.frames(), 9 + 6 + 7 + 6);
        prompt
    }

    /// Codes that are heard, and what is to be said to them.
    fn frames(&self) -> Vec<(Vec<i32>, Vec<i32>)> {
        let (user, said) = (self.ids("user"), self.ids("said"));
        let frames: Vec<_> = user.chunks_exact(USED).zip(said.chunks_exact(1 + USED)).map(|(u, s)| (u.to_vec(), s.to_vec())).collect();
        assert!(frames.len() >= 60);
        frames
    }
}

/// NVIDIA's ring of keys takes the oldest for one to come once it is full: of a context of 24 steps 23 are seen.
fn open(dir: &Path, device: &Device) -> Lm {
    Lm::open(dir, device, Format { context: Some(23), ..DType::F32.into() }).unwrap()
}

#[track_caller]
fn says_the_same(lm: &Lm) {
    let case = Case::open();
    let mut dialogue = Dialogue::new(lm, None, Drawing::GREEDY).unwrap();
    dialogue.prompt(&case.prompt(lm)).unwrap();
    for (t, (user, said)) in case.frames().into_iter().enumerate() {
        assert_eq!(dialogue.step(Heard::Codes(&user)).unwrap().said, Some(said), "frame {t} after the prompt");
    }
}

#[test]
fn after_a_prompt_it_says_what_nvidias_does() {
    for device in [Device::Cpu, Device::open("emulator").unwrap()] {
        says_the_same(&open(&golden("weights"), &device));
    }
}

#[test]
fn one_stream_is_prompted_beside_another_that_is_not() {
    let lm = open(&golden("weights"), &Device::Cpu);
    let case = Case::open();
    let mut session = Session::new(&lm, &[Drawing::GREEDY; 2]).unwrap();
    let mut alone = Session::new(&lm, &[Drawing::GREEDY]).unwrap();
    session.prompt(&case.prompt(&lm), Some(&[0, 1])).unwrap();
    for (user, said) in case.frames() {
        let both = session.step(&Tensor::from_slice(&Device::Cpu, &user.repeat(2), [2, USED]).unwrap(), None).unwrap();
        let one = alone.step(&Tensor::from_slice(&Device::Cpu, &user, [1, USED]).unwrap(), None).unwrap();
        let complete = both.complete.to_vec::<i32>().unwrap();
        assert_eq!(complete[..=USED], one.complete.to_vec::<i32>().unwrap());
        assert_eq!(complete[1 + USED..], said);
    }
    assert!(session.prompt(&case.prompt(&lm), Some(&[1])).is_err());
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn tensors() -> Tensors {
    let file = Weights::open(golden("weights")).unwrap();
    let tensor = |name: &str| (name.to_owned(), (file.info(name).unwrap().1.to_vec(), file.to_f32(name).unwrap().into_owned()));
    file.names().map(tensor).collect()
}

/// With another folder's configuration, changed.
fn write(tensors: &Tensors, change: impl FnOnce(&mut serde_json::Value)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let refs: Vec<TensorRef> = tensors.iter().map(|(name, (shape, values))| TensorRef::f32(name, shape, values)).collect();
    save(dir.path().join("model.safetensors"), &refs, &BTreeMap::new()).unwrap();
    let mut config = serde_json::from_slice(&std::fs::read(golden("weights/config.json")).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

/// The first `sets` of a tensor that has them all, one by one.
fn parts((shape, values): &(Vec<usize>, Vec<f32>), sets: usize) -> Vec<(Vec<usize>, Vec<f32>)> {
    let part = [shape[0] / STORED, shape[1]];
    values.chunks_exact(part[0] * part[1]).take(sets).map(|values| (part.to_vec(), values.to_vec())).collect()
}

/// What a tensor is called once every set is a tensor of its own.
fn apart(name: &str, k: usize) -> String {
    name.replace("in_proj_weight", &format!("in_projs.{k}.weight")).replace("out_proj.weight", &format!("out_projs.{k}.weight"))
}

/// Names of the Rust moshi, of this step.
fn candle(name: &str, k: usize) -> Option<String> {
    let numbered = |prefix: &str, k: usize| name.strip_prefix(&format!("{prefix}{k}."));
    let to = |what: &str, rest: &str| Some(format!("depformer.{k}.{what}.{rest}"));
    if let Some(rest) = name.strip_prefix("depformer.layers.") {
        let (layer, rest) = rest.split_once('.').unwrap();
        let mine = match rest.strip_prefix("gating.") {
            Some(gate) => gate.strip_prefix(&format!("{k}.")).map(|part| format!("gating.{part}")),
            None => Some(rest.to_owned()),
        };
        return mine.map(|rest| format!("depformer.{k}.transformer.layers.{layer}.{rest}"));
    }
    numbered("depformer_in.", k)
        .and_then(|rest| to("linear_in", rest))
        .or_else(|| numbered("linears.", k).and_then(|rest| to("linear_out", rest)))
        .or_else(|| k.checked_sub(1).and_then(|before| numbered("depformer_emb.", before)).and_then(|rest| to("emb", rest)))
        .or_else(|| name.strip_prefix("depformer_text_emb.").filter(|_| k == 0).and_then(|rest| to("emb", rest)))
}

#[test]
fn weights_of_steps_that_draw_what_is_heard_may_be_there_or_not() {
    let all = tensors();
    let stacked = |name: &str| name.starts_with("depformer.") && name.contains("_proj");
    let beyond = |name: &str| {
        let number = |prefix: &str| name.split_once(prefix).and_then(|(_, rest)| rest.split('.').next()?.parse::<usize>().ok());
        number("gating.").or(number("linears.")).or(number("depformer_in.")).or(number("depformer_emb.").map(|k| k + 1)) >= Some(USED)
    };
    let mut few: Tensors = all.iter().filter(|(name, _)| !beyond(name)).map(|(n, t)| (n.clone(), t.clone())).collect();
    for (_, tensor) in few.iter_mut().filter(|(name, _)| stacked(name)) {
        *tensor = ([USED * tensor.0[0] / STORED, tensor.0[1]].to_vec(), tensor.1[..tensor.1.len() / 2].to_vec());
    }
    let mut since: Tensors = all.iter().filter(|(name, _)| !stacked(name)).map(|(n, t)| (n.clone(), t.clone())).collect();
    let mut rust: Tensors = all
        .iter()
        .filter(|(name, _)| !name.starts_with("depformer") && !name.starts_with("linears"))
        .map(|(n, t)| (n.clone(), t.clone()))
        .collect();
    for (name, tensor) in &all {
        let parts = if stacked(name) { parts(tensor, STORED) } else { vec![tensor.clone(); STORED] };
        if stacked(name) {
            since.extend(parts.iter().enumerate().map(|(k, part)| (apart(name, k), part.clone())));
        }
        rust.extend(parts.into_iter().enumerate().filter_map(|(k, part)| Some((candle(name, k)?, part))));
    }
    let one_side = |config: &mut serde_json::Value| {
        config["model_type"] = "moshi".into();
        config["dep_q"] = USED.into();
    };
    for (layout, tensors) in [("as published", &all), ("without", &few), ("one by one", &since), ("by steps", &rust)] {
        let dir = write(tensors, |_| ());
        says_the_same(&open(dir.path(), &Device::Cpu));
        says_the_same(&open(write(tensors, one_side).path(), &Device::Cpu));
        let unread = unread(&Weights::open(dir.path()).unwrap()).unwrap();
        assert_eq!(unread.is_empty(), layout == "without", "{layout}: {unread:?}");
        // Gates of both layers, what goes in, what comes out, and codes that are fed on; and, where they are stacked, halves.
        let (none, some) = unread.values().partition::<Vec<usize>, _>(|&&rows| rows == 0);
        let expected = match layout {
            "as published" => (8 * 7, 2 * 2),
            "one by one" => (8 * 11, 0),
            "by steps" => (8 * 15, 0),
            _ => (0, 0),
        };
        assert_eq!((none.len(), some.len()), expected, "{layout}");
    }
}

#[test]
fn other_tensors_are_still_errors() {
    let refused = |change: &dyn Fn(&mut Tensors), why: &str| {
        let mut tensors = tensors();
        change(&mut tensors);
        let error = Lm::open(write(&tensors, |_| ()).path(), &Device::Cpu, DType::F32).err().unwrap().to_string();
        assert!(error.contains(why), "{error}");
    };
    let twin = |from: &'static str, to: &'static str| move |t: &mut Tensors| drop(t.insert(to.into(), t[from].clone()));
    refused(&twin("linears.0.weight", "linears.16.weight"), "linears.16.weight");
    refused(&twin("linears.0.weight", "linear.9.weight"), "linear.9.weight");
    refused(&|t| drop(t.remove("linears.3.weight")), "linears.3.weight");
    // Of sets in which some are missing none is taken for another.
    refused(&|t| drop(t.remove("linears.12.weight")), "self_attn.in_proj_weight");
}

#[test]
fn a_prompt_is_for_a_model_that_says_as_much_as_it_hears_and_comes_first() {
    let lm = open(&golden("weights"), &Device::Cpu);
    let case = Case::open();
    let mut dialogue = Dialogue::new(&lm, None, Drawing::GREEDY).unwrap();
    assert!(dialogue.codes(&[0.0; 4]).is_err());
    dialogue.prompt(&case.prompt(&lm)).unwrap();
    let again = dialogue.prompt(&case.prompt(&lm)).unwrap_err().to_string();
    assert!(again.contains("has begun"), "{again}");
    let other = Lm::open(&golden("../moshi_lm/weights/moshi"), &Device::Cpu, DType::F32).unwrap();
    let error = Dialogue::new(&other, None, Drawing::GREEDY).unwrap().prompt(&case.prompt(&lm)).unwrap_err().to_string();
    assert!(error.contains("another model"), "{error}");
}

/// On the emulator the frames after it are graphs, live and not.
#[test]
fn a_voice_is_encoded_as_it_would_be_heard_and_frames_become_graphs() {
    let quiet = Case::open().quiet();
    for name in ["cpu", "emulator"] {
        let device = Device::open(name).unwrap();
        let codec = Codec::open(&golden("../mimi/weights/kyutai.safetensors"), &device, DType::F32).unwrap();
        let lm = Lm::open(&golden("../moshi_lm/weights/moshi"), &device, DType::F32).unwrap();
        let quiet = Quiet { said: quiet.said[..4].to_vec(), heard: quiet.heard[..4].to_vec(), frames: 2 };
        let hop = codec.format().hop;
        let wave: Vec<f32> = (0..20 * hop).map(|i| 0.3 * (i as f32 * 0.37).sin()).collect();
        let answers = |live: bool| {
            let mut dialogue = Dialogue::new(&lm, Some(&codec), Drawing::GREEDY).unwrap();
            if live {
                dialogue = dialogue.live().unwrap();
            }
            let codes = dialogue.codes(&wave[..5 * hop + 1]).unwrap();
            assert_eq!(codes.len(), 6 * 4);
            dialogue.prompt(&Prompt::new(lm.config(), &quiet, &codes, &[1, 2]).unwrap()).unwrap();
            let turns: Vec<_> = wave.chunks_exact(hop).map(|frame| dialogue.step(Heard::Samples(frame)).unwrap()).collect();
            let graphs = turns.iter().filter(|turn| turn.took.is_none()).count();
            assert_eq!(graphs, if name == "cpu" { 0 } else { 19 + usize::from(live) }, "{:?}", dialogue.no_graph());
            (codes, turns.into_iter().map(|turn| (turn.said.unwrap(), turn.samples.unwrap())).collect::<Vec<_>>())
        };
        let (codes, turns) = answers(false);
        assert_eq!(answers(true), (codes.clone(), turns));
        let heard = codec.encode(&wave[..5 * hop + 1], 4).unwrap();
        let expected: Vec<i32> = (0..4 * heard.frames).map(|at| heard.values[at % 4 * heard.frames + at / 4]).collect();
        assert_eq!(codes, expected);
    }
}

#[test]
fn the_published_configuration_is_moshis() {
    let config = Config::from_json(r#"{"model_type": "personaplex", "version": "7b-v1"}"#).unwrap();
    Prompt::new(&config, &Quiet::personaplex(), &[0; 8], &[31_999]).unwrap();
}
