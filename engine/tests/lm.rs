//! Small language models (verify/reference/moshi_lm.py) against LMGen of moshi: tokens, logits, streams.

mod common;

use common::lm::{Case, distance, golden, tiny_moshi};
use swara_engine::lm::{Condition, ConditionRows, Conditions, Config, Drawing, Drawn, Format, Given, Lm, Session, Step};
use swara_kernels::case::SplitMix;
use swara_kernels::driver::{Arch, dry};
use swara_kernels::ops::attention::Kept;
use swara_kernels::ops::delay::UNGENERATED;
use swara_kernels::{DType, Device, Tensor};

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

fn equals_moshi(device: &Device, name: &str, bound: f32) {
    says_the_case(&Case::open(name), &Lm::open(&golden("weights").join(name), device, DType::F32).unwrap(), name, bound);
}

fn says_the_case(case: &Case, lm: &Lm, name: &str, bound: f32) {
    let device = lm.device();
    let mut session = case.session(lm);
    let mut worst: f32 = 0.0;
    for step in 0..case.steps {
        let found = case.step(&mut session, lm, step);
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

/// Attention sinks, past thrice the context (verify/reference/moshi_sinks.py).
#[test]
fn tokens_and_logits_equal_streaming_llm() {
    for device in [Device::Cpu, Device::open("emulator").unwrap()] {
        for name in ["moshi", "plain", "shared"] {
            let case = Case::open(&format!("sinks/{name}"));
            let facts: serde_json::Value = serde_json::from_str(&case.file.metadata()["case"]).unwrap();
            let format = Format { sinks: facts["sinks"].as_u64().unwrap() as usize, ..DType::F32.into() };
            let lm = Lm::open(&golden("weights").join(name), &device, format).unwrap();
            says_the_case(&case, &lm, name, 1e-5);
        }
    }
    let open = |format: Format| Lm::open(&golden("weights/moshi"), &Device::Cpu, format);
    let whole = Format { sinks: 24, ..DType::F32.into() };
    assert!(open(whole).err().unwrap().to_string().contains("24 sinks of a context of 24"));
    assert!(open(Format { context: Some(25), ..whole }).is_ok());
}

/// What the temporal transformer is fed, of every kind of table.
#[test]
fn tables_of_codes_are_near_their_values() {
    let emulator = Device::open("emulator").unwrap();
    for name in ["moshi", "shared", "conditioned", "muxed", "wide"] {
        let case = Case::open(name);
        let open = |device: &Device, int8_tables: bool| {
            Lm::open(&golden("weights").join(name), device, Format { int8_tables, ..DType::F32.into() }).unwrap()
        };
        let models = [open(&Device::Cpu, false), open(&Device::Cpu, true), open(&emulator, true)];
        let [exact, codes, emulated] = models.each_ref().map(|lm| {
            let mut session = case.session(lm);
            (0..3).flat_map(|step| case.step(&mut session, lm, step).text_logits.to_vec::<f32>().unwrap()).collect::<Vec<_>>()
        });
        let first = exact.len() / 3;
        let [rounded, devices] = [distance(&codes[..first], &exact[..first]), distance(&emulated, &codes)];
        println!("{name}: off by {rounded:.1e} of the spread of its logits, devices by {devices:.1e}");
        assert!(rounded > 1e-4 && rounded < 0.1 && devices < 1e-5, "{name}: {rounded} {devices}");
        let width = models[0].config().dim;
        assert_eq!(models[1].table_bytes() * 4 * width, models[0].table_bytes() * (width + 4));
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
        // Bits of logits, what is said and what is complete, of each stream.
        let told = |step: &Step| -> Vec<Vec<i64>> {
            let bits = step.text_logits.to_vec::<f32>().unwrap().iter().map(|v| v.to_bits().into()).collect::<Vec<i64>>();
            let ids = |t: &Tensor| t.to_vec::<i32>().unwrap().into_iter().map(i64::from).collect::<Vec<i64>>();
            let (said, complete) = (ids(&step.said), ids(&step.complete));
            let part = |all: &[i64], b: usize, batch: usize| all[b * (all.len() / batch)..][..all.len() / batch].to_vec();
            let batch = step.said.shape()[0];
            (0..batch).map(|b| [&bits, &said, &complete].into_iter().flat_map(|all| part(all, b, batch)).collect()).collect()
        };
        let alone: Vec<Vec<Vec<i64>>> = (0..2)
            .map(|b| {
                let against = Some((1.7, &against[b..=b]));
                let mut session = Session::conditioned(&lm, &drawing[b..=b], &given[b..=b], against).unwrap();
                let step = |t: usize| {
                    if t == 7 {
                        session.reset(&mask(&[1])).unwrap();
                    }
                    let heard = Tensor::from_slice(&device, &heard(b, t), [1, 2]).unwrap();
                    told(&session.step(&heard, None).unwrap()).remove(0)
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
            let told = told(&found);
            for b in (0..2).filter(|&b| runs[b] == 1) {
                assert_eq!(told[b], alone[b][at[b]], "stream {b} at step {}", at[b]);
                at[b] += 1;
            }
        }
        assert_eq!(at, [12, 12]);
    }
}

/// Streams that sit out at random and begin anew say, bit for bit, what each says alone.
#[test]
fn streams_of_a_batch_are_as_if_alone() {
    let sinks = Format { context: Some(7), sinks: 3, ..DType::F32.into() };
    let coded = Format { kept: Some(Kept::Int8), int8_tables: true, ..sinks };
    for device in [Device::Cpu, Device::open("emulator").unwrap()] {
        for format in [DType::F32.into(), sinks, coded] {
            batch_is_as_if_alone(&device, format);
        }
    }
}

fn batch_is_as_if_alone(device: &Device, format: Format) {
    let case = Case::open("shared");
    let lm = Lm::open(&golden("weights/shared"), device, format).unwrap();
    let drawing: Vec<Drawing> = (0..4).map(|seed| Drawing::seeded(&Drawn::default(), seed)).collect();
    let heard = |b: usize, t: usize| case.ids("user", (t + 7 * b) % case.steps)[..lm.config().heard()].to_vec();
    let alone = |b: usize| {
        let mut session = Session::new(&lm, &drawing[b..=b]).unwrap();
        let mut said = Vec::new();
        for t in 0..24 {
            if t == 15 {
                session.reset(&Tensor::from_slice(device, &[1u8], [1]).unwrap()).unwrap();
            }
            let heard = heard(b, t);
            let step = session.step(&Tensor::from_slice(device, &heard, [1, heard.len()]).unwrap(), None).unwrap();
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
        session.reset(&Tensor::from_slice(device, &anew, [4]).unwrap()).unwrap();
        let ids: Vec<i32> = (0..4).flat_map(|b| heard(b, at[b])).collect();
        let mask = Tensor::from_slice(device, &runs, [4]).unwrap();
        let step = session.step(&Tensor::from_slice(device, &ids, [4, ids.len() / 4]).unwrap(), Some(&mask)).unwrap();
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

/// With masks, resets and without, past the context.
#[test]
fn steps_as_graphs_equal_steps_launched_kernel_by_kernel() {
    let opened = |name: &'static str, dtype: DType| move |device: &Device| Lm::open(&golden("weights").join(name), device, dtype).unwrap();
    // Codes on CUDA are of 32 columns at a time.
    let few_bits = |device: &Device| {
        let config = Config { num_layers: 2, context: Some(24), ..tiny_moshi() };
        Lm::random(config, device, Format { kept: Some(Kept::Int8), ..Format::int4_all(DType::BF16) }).unwrap()
    };
    type Open<'a> = &'a dyn Fn(&Device) -> Lm;
    let sinks = |device: &Device| {
        let format = Format { context: Some(9), sinks: 4, kept: Some(Kept::Int8), int8_tables: true, ..DType::BF16.into() };
        Lm::open(&golden("weights/moshi"), device, format).unwrap()
    };
    let models: [(&str, &str, Open); 9] = [
        ("moshi", "sinks", &sinks),
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
