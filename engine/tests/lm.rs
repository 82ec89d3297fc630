//! Small language models (verify/reference/moshi_lm.py) against LMGen of moshi: tokens, logits, layouts, streams.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use half::bf16;

use swara_engine::codec::Codec;
use swara_engine::lm::{
    Condition, ConditionRows, Conditions, Config, Drawing, Drawn, Format, Given, Layout, Lm, Session, Step, Widths, matrices,
};
use swara_kernels::case::SplitMix;
use swara_kernels::driver::{Arch, dry};
use swara_kernels::ops::attention::Kept;
use swara_kernels::ops::delay::UNGENERATED;
use swara_kernels::{DType, Device, Tensor};
use swara_loader::weights::{Dtype, TensorRef, Weights, save};

const CASES: [&str; 15] = [
    "moshi",
    "shared",
    "plain",
    "sines",
    "conditioned",
    "listener",
    "voice",
    "crossed",
    "muxed",
    "wide",
    "relu",
    "elu",
    "gelu",
    "mish",
    "identity",
];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../verify/golden/moshi_lm").join(name)
}

struct Case {
    file: Weights,
    batch: usize,
    steps: usize,
}

impl Case {
    fn open(name: &str) -> Case {
        let file = Weights::open(golden(name).with_extension("safetensors")).unwrap();
        let shape = file.view("user").unwrap().shape.to_vec();
        Case { file, batch: shape[0], steps: shape[1] }
    }

    /// Greedy, under the conditions of the case.
    fn session<'a>(&self, lm: &'a Lm) -> Session<'a> {
        let facts: serde_json::Value = serde_json::from_str(&self.file.metadata()["case"]).unwrap();
        let drawing = vec![Drawing::GREEDY; self.batch];
        let words = |of: &serde_json::Value| -> Conditions {
            of.as_object().unwrap().iter().filter_map(|(name, word)| Some((name.clone(), word.as_str()?.into()))).collect()
        };
        let [given, against] = ["conditions", "against"].map(|key| Some(facts[key].as_array()?.iter().map(words).collect::<Vec<_>>()));
        let Some(mut given) = given else { return Session::new(lm, &drawing).unwrap() };
        for tensor in self.file.names().filter(|name| name.starts_with("condition.") && !name.ends_with(".mask")) {
            let (name, b) = tensor["condition.".len()..].split_once('.').unwrap();
            let (shape, there) = (self.file.view(tensor).unwrap().shape, self.file.to_i32(&format!("{tensor}.mask")).unwrap());
            let there = there.iter().map(|&there| there != 0).collect();
            let rows = ConditionRows::new(self.file.to_f32(tensor).unwrap().into_owned(), shape[1], Some(there)).unwrap();
            given[b.parse::<usize>().unwrap()].insert(name.to_owned(), Condition::Rows(rows));
        }
        let against = facts["cfg_coef"].as_f64().zip(against.as_deref());
        Session::conditioned(lm, &drawing, &given, against).unwrap()
    }

    /// A step in which what the case hears and is given arrives.
    fn step(&self, session: &mut Session, lm: &Lm, step: usize) -> Step {
        let heard = self.heard(lm.device(), step);
        match self.file.contains("given") {
            true => session.step_given(&heard, &Given::new(lm, &self.ids("given", step), None).unwrap()).unwrap(),
            false => session.step(&heard, None).unwrap(),
        }
    }

    /// Step `step` of a tensor `[B, S, ..]`.
    fn ids(&self, name: &str, step: usize) -> Vec<i32> {
        let (width, values) = (self.file.view(name).unwrap().shape[2], self.file.to_i32(name).unwrap());
        (0..self.batch).flat_map(|b| values[(b * self.steps + step) * width..][..width].to_vec()).collect()
    }

    fn f32(&self, name: &str, step: usize) -> Vec<f32> {
        let (shape, values) = (self.file.view(name).unwrap().shape.to_vec(), self.file.to_f32(name).unwrap());
        let width: usize = shape[2..].iter().product();
        (0..self.batch).flat_map(|b| values[(b * self.steps + step) * width..][..width].to_vec()).collect()
    }

    fn heard(&self, device: &Device, step: usize) -> Tensor {
        let ids = self.ids("user", step);
        Tensor::from_slice(device, &ids, [self.batch, ids.len() / self.batch]).unwrap()
    }
}

fn deviation(values: &[f32]) -> f32 {
    let mean = values.iter().sum::<f32>() / values.len() as f32;
    (values.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / values.len() as f32).sqrt()
}

/// The largest difference over the spread of what is expected.
fn distance(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / deviation(expected)
}

fn equals_moshi(device: &Device, name: &str, bound: f32) {
    let case = Case::open(name);
    let lm = Lm::open(&golden("weights").join(name), device, DType::F32).unwrap();
    let mut session = case.session(&lm);
    let mut worst: f32 = 0.0;
    for step in 0..case.steps {
        let found = case.step(&mut session, &lm, step);
        worst = worst.max(distance(&found.text_logits.to_vec().unwrap(), &case.f32("text_logits", step)));
        assert_eq!(found.said.to_vec::<i32>().unwrap(), case.ids("said", step), "{name}: said in step {step}");
        assert_eq!(found.complete.to_vec::<i32>().unwrap(), case.ids("out", step), "{name}: complete in step {step}");
        if case.file.contains("heads") {
            let heads: Vec<Vec<f32>> = found.heads.iter().map(|h| h.to_vec().unwrap()).collect();
            let expected = case.f32("heads", step);
            let width = expected.len() / heads.len() / case.batch;
            let found: Vec<f32> = (0..case.batch).flat_map(|b| heads.iter().flat_map(move |h| h[b * width..][..width].to_vec())).collect();
            worst = worst.max(distance(&found, &expected));
        }
    }
    println!("{name} on {device:?}: {} steps, logits within {worst:.1e} of their spread", case.steps);
    assert!(worst < bound, "{name}: logits are off by {worst} of their spread");
}

#[test]
fn tokens_and_logits_equal_moshi() {
    for name in CASES {
        equals_moshi(&Device::Cpu, name, 1e-5);
    }
}

#[test]
fn the_emulator_says_the_same() {
    for name in CASES {
        equals_moshi(&Device::open("emulator").unwrap(), name, 1e-5);
    }
}

/// `[B, S]` of `[B, .., S]` codes as LMModel.forward has them: late, behind what begins each column.
fn delayed(codes: &[i32], delays: &[usize], initial: &[i32], steps: usize) -> impl Fn(usize, usize, usize) -> i32 {
    let (codes, delays, initial) = (codes.to_vec(), delays.to_vec(), initial.to_vec());
    let columns = delays.len();
    move |b, column, step| match step.checked_sub(delays[column]) {
        Some(at) if at < steps => codes[(b * columns + column) * steps + at],
        _ => initial[column],
    }
}

/// What is given is said, and the logits of every step are those of LMModel.forward, teacher-forced.
#[test]
fn logits_of_given_tokens_equal_moshi() {
    for device in [Device::Cpu, Device::open("emulator").unwrap()] {
        for name in ["moshi", "shared", "plain", "sines", "crossed", "muxed", "wide", "relu", "elu", "gelu", "mish", "identity"] {
            let case = Case::open(name);
            let file = &case.file;
            let lm = Lm::open(&golden("weights").join(name), &device, DType::F32).unwrap();
            let config = lm.config();
            let shape = file.view("codes").unwrap().shape.to_vec();
            let (batch, steps, said) = (shape[0], shape[2], 1 + config.dep_q);
            let codes = file.to_i32("codes").unwrap();
            let initial: Vec<i32> = (0..=config.n_q).map(|k| if k == 0 { config.text_card } else { config.card } as i32).collect();
            let at = delayed(&codes, &config.delays, &initial, steps);
            let mut session = case.session(&lm);
            let find = |name: &str| (file.to_f32(name).unwrap(), file.view(name).unwrap().shape.to_vec());
            let (text, logits, masks) = (find("forced.text_logits"), find("forced.logits"), file.to_i32("forced.mask").unwrap());
            let mut worst: f32 = 0.0;
            for step in 0..steps {
                // LMModel.forward has what is heard a step later than LMGen.
                let heard: Vec<i32> = (0..batch)
                    .flat_map(|b| (said..=config.n_q).map(move |q| (b, q)))
                    .map(|(b, q)| codes[(b * shape[1] + q) * steps + step.saturating_sub(1)])
                    .collect();
                let given: Vec<i32> = (0..batch).flat_map(|b| (0..said).map(move |k| (b, k))).map(|(b, k)| at(b, k, step)).collect();
                let given_now = Given::new(&lm, &given, None).unwrap();
                let heard = Tensor::from_slice(&device, &heard, [batch, config.heard()]).unwrap();
                let found = session.step_given(&heard, &given_now).unwrap();
                assert_eq!(found.said.to_vec::<i32>().unwrap(), given);
                // Frame `at` of a column is said `delay` steps later.
                for (column, logits, masks, found) in std::iter::once((0, &text, None, &found.text_logits))
                    .chain(found.logits.iter().enumerate().map(|(k, found)| (k + 1, &logits, Some(&masks), found)))
                {
                    let Some(frame) = step.checked_sub(config.delays[column]) else { continue };
                    let (vocab, columns) = (logits.1[3], logits.1[1]);
                    let found = found.to_vec::<f32>().unwrap();
                    for b in 0..batch {
                        let row = (b * columns + column.saturating_sub(1)) * steps + frame;
                        assert!(masks.is_none_or(|masks| masks[row] == 1));
                        worst = worst.max(distance(&found[b * vocab..][..vocab], &logits.0[row * vocab..][..vocab]));
                    }
                }
            }
            println!("{name} on {device:?}, given tokens: logits within {worst:.1e} of their spread");
            assert!(worst < 1e-4, "{name}: logits are off by {worst} of their spread");
        }
    }
}

/// Tokens that are given to some streams and columns leave the others what they are without.
#[test]
fn what_is_not_given_is_drawn() {
    let case = Case::open("moshi");
    let lm = Lm::open(&golden("weights/moshi"), &Device::Cpu, DType::F32).unwrap();
    let said = 1 + lm.config().dep_q;
    let drawing: Vec<Drawing> = (0..2).map(|seed| Drawing::seeded(&Drawn::default(), seed)).collect();
    let mut free = Session::new(&lm, &drawing).unwrap();
    let mut session = Session::new(&lm, &drawing).unwrap();
    for step in 0..20 {
        let heard = case.heard(&Device::Cpu, step);
        let expected = free.step(&heard, None).unwrap().said.to_vec::<i32>().unwrap();
        // Stream 0 is given its text and third code; the second draws all.
        let mut given = vec![UNGENERATED; 2 * said];
        (given[0], given[3]) = (5, 7);
        let found = session.step_given(&heard, &Given::new(&lm, &given, None).unwrap()).unwrap().said.to_vec::<i32>().unwrap();
        assert_eq!((found[0], found[3]), (5, 7));
        assert_eq!(found[said..], expected[said..], "stream 1 at step {step}");
        assert!((0..said).all(|k| found[k] >= 0));
    }
    let refused = |given: &[i32]| Given::new(&lm, given, None).err().unwrap().to_string();
    assert!(refused(&[0; 3]).contains("3 tokens"));
    assert!(refused(&[0, 0, 99, 0, 0]).contains("token 99 is given in column 2, expected 0 to 32"));
    assert!(refused(&[-3; 5]).contains("token -3"));
}

/// A stream that sits out a step in which another is given a text changes nothing of its own.
#[test]
fn a_masked_stream_is_given_nothing() {
    let (case, lm) = (Case::open("moshi"), Lm::open(&golden("weights/moshi"), &Device::Cpu, DType::F32).unwrap());
    let drawing: Vec<Drawing> = (0..2).map(|seed| Drawing::seeded(&Drawn::default(), seed)).collect();
    let [mut given, mut plain] = [(); 2].map(|()| Session::new(&lm, &drawing).unwrap());
    let mask = Tensor::from_slice(&Device::Cpu, &[1u8, 0], [2]).unwrap();
    let width = 1 + lm.config().dep_q;
    for step in 0..12 {
        let heard = case.ids("user", step).into_iter().cycle().take(2 * lm.config().heard()).collect::<Vec<_>>();
        let heard = Tensor::from_slice(&Device::Cpu, &heard, [2, heard.len() / 2]).unwrap();
        if step == 5 {
            let mut said = vec![UNGENERATED; 2 * width];
            said[0] = 7;
            let first = given.step_given(&heard, &Given::new(&lm, &said, Some(&[1, 0])).unwrap()).unwrap();
            assert_eq!(first.said.to_vec::<i32>().unwrap()[0], 7);
            plain.step(&heard, Some(&mask)).unwrap();
            continue;
        }
        let [a, b] = [&mut given, &mut plain].map(|session| session.step(&heard, None).unwrap().said.to_vec::<i32>().unwrap());
        assert_eq!(a[width..], b[width..], "the stream that sat out, step {step}");
        if step == 6 {
            assert_ne!(a[..width], b[..width], "the text that was given is known");
        }
    }
}

#[test]
fn conditions_that_are_not_the_models_are_errors() {
    let lm = Lm::open(&golden("weights/conditioned"), &Device::Cpu, DType::F32).unwrap();
    let one = |name: &str, word: &str| vec![Conditions::from([(name.to_owned(), word.into())])];
    let greedy = [Drawing::GREEDY];
    let refused = |given: &[Conditions], against: Option<(f64, &[Conditions])>| {
        Session::conditioned(&lm, &greedy, given, against).err().unwrap().to_string()
    };
    assert!(refused(&one("mood", "good"), None).contains("condition mood is none"));
    assert!(refused(&one("speed", "good"), None).contains("expected one of slow, fast"));
    assert!(refused(&[], None).contains("conditions for 0 streams of 1"));
    assert!(refused(&one("speed", "fast"), Some((2.0, &one("speed", "late")))).contains("late"));
    assert!(refused(&one("speed", "fast"), Some((f64::NAN, &one("speed", "slow")))).contains("guidance"));
    // Nobody asks Hibiki for less than its best, and what it is led away from with no force does not show.
    let case = Case::open("conditioned");
    let heard = |step: usize| Tensor::from_slice(&Device::Cpu, &case.ids("user", step)[..2], [1, 2]).unwrap();
    let (best, slow) = (one("description", "very_good"), one("speed", "slow"));
    let mut sessions = [
        Session::new(&lm, &greedy).unwrap(),
        Session::conditioned(&lm, &greedy, &best, None).unwrap(),
        Session::conditioned(&lm, &greedy, &best, Some((1.0, &slow))).unwrap(),
        Session::conditioned(&lm, &greedy, &slow, None).unwrap(),
    ];
    let mut differ = false;
    for step in 0..20 {
        let said: Vec<Vec<i32>> = sessions.iter_mut().map(|s| s.step(&heard(step), None).unwrap().said.to_vec().unwrap()).collect();
        assert!(said[0] == said[1] && said[1] == said[2], "step {step}: {said:?}");
        differ |= said[0] != said[3];
    }
    assert!(differ);
    let plain = Lm::open(&golden("weights/moshi"), &Device::Cpu, DType::F32).unwrap();
    assert!(Session::conditioned(&plain, &greedy, &one("speed", "fast"), None).is_err());
    let none = [Conditions::new()];
    assert!(Session::conditioned(&plain, &greedy, &none, Some((2.0, &none))).err().unwrap().to_string().contains("has no conditions"));

    let lm = Lm::open(&golden("weights/crossed"), &Device::Cpu, DType::F32).unwrap();
    let rows = |name: &str, values: usize, width: usize| {
        let rows = ConditionRows::new(vec![0.5; values], width, None).unwrap();
        [Conditions::from([(name.to_owned(), Condition::Rows(rows))])]
    };
    let refused = |given: &[Conditions]| Session::conditioned(&lm, &greedy, given, None).err().unwrap().to_string();
    assert!(refused(&rows("speaker", 10, 5)).contains("condition speaker is rows of 5, expected of 6"));
    assert!(refused(&rows("mood", 6, 3)).contains("condition mood is 2 rows"));
    assert!(refused(&rows("genre", 3, 3)).contains("condition genre is rows, expected a word"));
    assert!(refused(&one("speaker", "me")).contains("condition speaker is \"me\", expected rows of 6"));
    assert!(refused(&rows("singer", 6, 3)).contains("condition singer is none of the model's: which are genre, melody, mood, speaker"));
}

/// What is not given is as if nothing of it were there, and as many rows of nothing are as one, where positions do not count.
#[test]
fn what_is_not_there_is_padding() {
    let (case, device) = (Case::open("voice"), Device::Cpu);
    let lm = Lm::open(&golden("weights/voice"), &device, DType::F32).unwrap();
    let nothing = |rows: usize| {
        let rows = ConditionRows::new(vec![0.5; rows * 6], 6, Some(vec![false; rows])).unwrap();
        Conditions::from([("speaker".to_owned(), Condition::Rows(rows))])
    };
    let sessions = [Conditions::new(), nothing(1), nothing(9)];
    let mut sessions = sessions.map(|given| Session::conditioned(&lm, &[Drawing::GREEDY], &[given], None).unwrap());
    for step in 0..12 {
        let heard = Tensor::from_slice(&device, &case.ids("user", step)[..0], [1, 0]).unwrap();
        let [a, b, c] = sessions.each_mut().map(|session| session.step(&heard, None).unwrap().text_logits.to_vec::<f32>().unwrap());
        assert_eq!(a, b);
        assert!(distance(&c, &a) < 1e-5);
    }
}

/// Queries, keys and values of cross attention are one matrix in a file, and apart in memory, as codes as well.
#[test]
fn codes_of_cross_attention_are_near_its_values() {
    let case = Case::open("voice");
    let open = |format: Format| Lm::open(&golden("weights/voice"), &Device::Cpu, format).unwrap();
    let (exact, rounded) = (open(DType::F32.into()), open(Format::int8(DType::F32)));
    let [a, b] = [&exact, &rounded].map(|lm| case.step(&mut case.session(lm), lm, 0).text_logits.to_vec::<f32>().unwrap());
    let distance = distance(&b, &a);
    assert!(distance > 0.0 && distance < 0.1, "{distance}");
    assert!(rounded.bytes_per_step(0) < exact.bytes_per_step(0));
}

/// Streams under guidance sit out and begin anew as they do without.
#[test]
fn streams_that_are_led_are_as_if_alone() {
    for device in [Device::Cpu, Device::open("emulator").unwrap()] {
        let lm = Lm::open(&golden("weights/conditioned"), &device, DType::F32).unwrap();
        let drawing: Vec<Drawing> = (0..2).map(|seed| Drawing::seeded(&Drawn::default(), seed)).collect();
        let words = |words: [&str; 2]| words.map(|word| Conditions::from([("description".to_owned(), word.into())]));
        let (given, against) = (words(["very_good", "good"]), words(["very_bad", "very_good"]));
        let case = Case::open("conditioned");
        let heard = |b: usize, t: usize| case.ids("user", t)[b * 2..][..2].to_vec();
        let mask = |runs: &[u8]| Tensor::from_slice(&device, runs, [runs.len()]).unwrap();
        let alone: Vec<Vec<Vec<f32>>> = (0..2)
            .map(|b| {
                let against = Some((1.7, &against[b..=b]));
                let mut session = Session::conditioned(&lm, &drawing[b..=b], &given[b..=b], against).unwrap();
                let step = |t: usize| {
                    if t == 7 {
                        session.reset(&mask(&[1])).unwrap();
                    }
                    let heard = Tensor::from_slice(&device, &heard(b, t), [1, 2]).unwrap();
                    session.step(&heard, None).unwrap().text_logits.to_vec::<f32>().unwrap()
                };
                (0..12).map(step).collect()
            })
            .collect();
        let mut session = Session::conditioned(&lm, &drawing, &given, Some((1.7, &against))).unwrap();
        let mut at = [0usize; 2];
        for round in 0..30 {
            let runs = [round % 3 != 1, round % 2 == 0].map(u8::from);
            let runs = [0, 1].map(|b| if at[b] < 12 { runs[b] } else { 0 });
            session.reset(&mask(&[0, 1].map(|b| u8::from(runs[b] == 1 && at[b] == 7)))).unwrap();
            let ids: Vec<i32> = (0..2).flat_map(|b| heard(b, at[b].min(11))).collect();
            let found = session.step(&Tensor::from_slice(&device, &ids, [2, 2]).unwrap(), Some(&mask(&runs))).unwrap();
            let logits = found.text_logits.to_vec::<f32>().unwrap();
            for b in (0..2).filter(|&b| runs[b] == 1) {
                assert_eq!(logits[b * 40..][..40], alone[b][at[b]], "stream {b} at step {}", at[b]);
                at[b] += 1;
            }
        }
        assert_eq!(at, [12, 12]);
    }
}

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

/// Streams that sit out at random and begin anew say, bit for bit, what each says alone.
#[test]
fn streams_of_a_batch_are_as_if_alone() {
    for device in [Device::Cpu, Device::open("emulator").unwrap()] {
        let case = Case::open("shared");
        let lm = Lm::open(&golden("weights/shared"), &device, DType::F32).unwrap();
        let drawing: Vec<Drawing> = (0..4).map(|seed| Drawing::seeded(&Drawn::default(), seed)).collect();
        let heard = |b: usize, t: usize| case.ids("user", (t + 7 * b) % case.steps)[..lm.config().heard()].to_vec();
        let alone = |b: usize| {
            let mut session = Session::new(&lm, &drawing[b..=b]).unwrap();
            let mut said = Vec::new();
            for t in 0..24 {
                if t == 15 {
                    session.reset(&Tensor::from_slice(&device, &[1u8], [1]).unwrap()).unwrap();
                }
                let heard = heard(b, t);
                let step = session.step(&Tensor::from_slice(&device, &heard, [1, heard.len()]).unwrap(), None).unwrap();
                said.push((step.complete.to_vec::<i32>().unwrap(), step.text_logits.to_vec::<f32>().unwrap()));
            }
            said
        };
        let expected: Vec<_> = (0..4).map(alone).collect();
        let mut session = Session::new(&lm, &drawing).unwrap();
        let mut rng = SplitMix(9);
        let mut at = [0usize; 4];
        while at.iter().any(|&t| t < 24) {
            let runs: Vec<u8> = at.iter().map(|&t| u8::from(t < 24 && rng.uniform() < 0.6)).collect();
            let anew: Vec<u8> = (0..4).map(|b| u8::from(runs[b] == 1 && at[b] == 15)).collect();
            session.reset(&Tensor::from_slice(&device, &anew, [4]).unwrap()).unwrap();
            let ids: Vec<i32> = (0..4).flat_map(|b| heard(b, at[b])).collect();
            let mask = Tensor::from_slice(&device, &runs, [4]).unwrap();
            let step = session.step(&Tensor::from_slice(&device, &ids, [4, ids.len() / 4]).unwrap(), Some(&mask)).unwrap();
            let (complete, logits) = (step.complete.to_vec::<i32>().unwrap(), step.text_logits.to_vec::<f32>().unwrap());
            for b in 0..4 {
                let row = &complete[b * complete.len() / 4..][..complete.len() / 4];
                if runs[b] == 0 {
                    assert!(row.iter().all(|&id| id == UNGENERATED));
                    continue;
                }
                let (complete, alone) = &expected[b][at[b]];
                assert_eq!(row, complete, "stream {b} at step {} on {device:?}", at[b]);
                assert_eq!(&logits[b * alone.len()..][..alone.len()], alone, "logits of stream {b} at step {}", at[b]);
                at[b] += 1;
            }
        }
    }
}

/// With masks, resets and without, past the context.
#[test]
fn steps_as_graphs_equal_steps_launched_kernel_by_kernel() {
    let opened = |name: &'static str, dtype: DType| move |device: &Device| Lm::open(&golden("weights").join(name), device, dtype).unwrap();
    // Codes on CUDA are of 32 columns at a time.
    let few_bits = |device: &Device| {
        let config = Config {
            dim: 64,
            num_heads: 2,
            num_layers: 2,
            hidden_scale: 3.0,
            n_q: 8,
            dep_q: 4,
            card: 32,
            text_card: 40,
            context: Some(24),
            delays: vec![0, 0, 1, 1, 1, 0, 1, 1, 1],
            depformer_dim: 64,
            depformer_num_heads: Some(2),
            depformer_num_layers: Some(2),
            depformer_dim_feedforward: Some(Widths::All(96)),
            ..Config::moshi()
        };
        Lm::random(config, device, Format { kept: Some(Kept::Int8), ..Format::int4_all(DType::BF16) }).unwrap()
    };
    type Open<'a> = &'a dyn Fn(&Device) -> Lm;
    let models: [(&str, &str, Open); 8] = [
        ("moshi", "f32", &opened("moshi", DType::F32)),
        ("shared", "bf16", &opened("shared", DType::BF16)),
        ("listener", "f16", &opened("listener", DType::F16)),
        ("moshi", "few bits", &few_bits),
        ("conditioned", "led", &opened("conditioned", DType::F32)),
        ("crossed", "crossed", &opened("crossed", DType::F16)),
        ("muxed", "muxed", &opened("muxed", DType::F32)),
        ("wide", "wide", &opened("wide", DType::BF16)),
    ];
    for (case, name, open) in models {
        let device = Device::open("emulator").unwrap();
        let Device::Cuda(cuda) = &device else { unreachable!() };
        let (case, lm, batch) = (Case::open(case), open(&device), 2);
        let drawing: Vec<Drawing> = (0..batch as u64).map(|seed| Drawing::seeded(&Drawn::default(), seed)).collect();
        let [mut replayed, mut launched] = [(); 2].map(|()| match name {
            "led" | "crossed" => case.session(&lm),
            _ => Session::new(&lm, &drawing).unwrap(),
        });
        launched.graphs(false);
        let (mut rng, heard, mut kernels) = (SplitMix(3), lm.config().heard(), 0);
        for step in 0..30 {
            let ids: Vec<i32> = case.ids("user", step % case.steps).into_iter().cycle().take(batch * heard).collect();
            let ids = Tensor::from_slice(&device, &ids, [batch, heard]).unwrap();
            let runs = [1, u8::from(!(10..20).contains(&step) || rng.uniform() < 0.5)];
            let mask = (10..20).contains(&step).then(|| Tensor::from_slice(&device, &runs, [batch]).unwrap());
            if step == 15 {
                let second = Tensor::from_slice(&device, &[0u8, 1], [batch]).unwrap();
                for session in [&mut replayed, &mut launched] {
                    session.reset(&second).unwrap();
                }
            }
            let before = [cuda.launches(), cuda.kernels()];
            let found = replayed.step(&ids, mask.as_ref()).unwrap();
            let counts = [cuda.launches() - before[0], cuda.kernels() - before[1]];
            match step {
                // Of another size than the one before.
                0 | 10 => assert_eq!(counts[0], counts[1], "{name}: step {step}"),
                _ => assert_eq!(counts, [1, kernels], "{name}: step {step}"),
            }
            let before = cuda.launches();
            let expected = launched.step(&ids, mask.as_ref()).unwrap();
            kernels = cuda.launches() - before;
            let same = |what: &str, a: &Tensor, b: &Tensor| {
                let [a, b] = [a, b].map(|t| t.to_f64().unwrap());
                let rows = if runs[1] == 1 { a.len() } else { a.len() / 2 };
                assert_eq!(a[..rows], b[..rows], "{name}: {what} in step {step}");
            };
            same("complete", &found.complete, &expected.complete);
            same("said", &found.said, &expected.said);
            same("logits", &found.text_logits, &expected.text_logits);
            assert_eq!([found.heads.len(), found.logits.len()], [expected.heads.len(), expected.logits.len()]);
            found.heads.iter().zip(&expected.heads).for_each(|(a, b)| same("a head", a, b));
            found.logits.iter().zip(&expected.logits).for_each(|(a, b)| same("logits of a code", a, b));
            if step == 24 {
                // A text that is given to one of them, between graphs.
                let mut said = vec![UNGENERATED; batch * (1 + lm.config().dep_q)];
                said[0] = 7;
                let given = Given::new(&lm, &said, None).unwrap();
                let [found, expected] = [&mut replayed, &mut launched].map(|session| session.step_given(&ids, &given).unwrap());
                same("said", &found.said, &expected.said);
                assert_eq!(found.said.to_vec::<i32>().unwrap()[0], 7);
            }
        }
        assert_eq!(replayed.no_graph(), None);
        println!("{name}: {kernels} kernels a step, one launch as a graph");
    }
}

#[test]
fn where_no_graph_can_be_had_steps_are_launched_and_say_why() {
    let (device, notes) = dry::open(Arch(90));
    let lm = Lm::open(&golden("weights/moshi"), &device, DType::F32).unwrap();
    let mut session = Session::new(&lm, &[Drawing::GREEDY]).unwrap();
    let heard = Tensor::from_slice(&device, &[0; 4], [1, 4]).unwrap();
    notes.take();
    let steps = [(); 4].map(|()| {
        session.step(&heard, None).unwrap();
        notes.take().len()
    });
    assert!(steps[0] > 20 && steps == [steps[0]; 4], "{steps:?}");
    assert!(session.no_graph().is_some_and(|why| why.contains("nothing to capture")), "{:?}", session.no_graph());
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
