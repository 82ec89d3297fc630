//! The depth transformer of Moshi as one launch a step, beside its kernels one by one.

mod common;

use common::lm::{golden, tiny_moshi};
use swara_engine::lm::{Conditions, Config, Drawing, Drawn, Format, Fuser, Given, Lm, Session, Widths};
use swara_kernels::driver::{Arch, dry};
use swara_kernels::ops::delay::UNGENERATED;
use swara_kernels::tolerance::Tolerance;
use swara_kernels::{Cuda, DType, Device, Tensor};

/// A schedule of weights, tables of low rank, a norm before the logits and biases behind them, sets of several widths.
fn scheduled() -> Config {
    Config {
        depformer_weights_per_step_schedule: Some(vec![0, 1, 1, 2]),
        depformer_low_rank_embeddings: Some(16),
        depformer_dim_feedforward: Some(Widths::Each(vec![96, 144, 48])),
        depformer_norm: Some("rms_norm".into()),
        bias_proj: true,
        ..tiny_moshi()
    }
}

fn cuda(device: &Device) -> &Cuda {
    let Device::Cuda(cuda) = device else { unreachable!("the emulator is a CUDA device") };
    cuda
}

fn heard(device: &Device, batch: usize, step: usize) -> Tensor {
    let ids: Vec<i32> = (0..batch * 4).map(|i| ((7 * step + 5 * i) % 32) as i32).collect();
    Tensor::from_slice(device, &ids, [batch, 4]).unwrap()
}

/// Launches, tokens and logits, of streams that are masked and of tokens that are given. Beside narrow types the other session is given
/// what this one says: where two logits are as close as they round, one or the other is drawn.
fn equals_its_kernels(config: &Config, format: Format, batch: usize) {
    let device = Device::open("emulator").unwrap();
    let lm = Lm::random(config.clone(), &device, format).unwrap();
    assert_eq!(lm.plain_depth(), None);
    let drawing: Vec<Drawing> = (0..batch as u64)
        .map(|seed| if seed == 1 { Drawing::GREEDY } else { Drawing::seeded(&Drawn { temp: 0.9, ..Drawn::default() }, seed) })
        .collect();
    let [mut whole, mut plain] = [(); 2].map(|()| Session::new(&lm, &drawing).unwrap());
    plain.plain_depth(true);
    [&mut whole, &mut plain].into_iter().for_each(|session| session.graphs(false));
    // Eight roundings a layer, and four around them, on either side.
    let tolerance = Tolerance::accumulate(1000).via(format.dtype, 2 * (8 * 2 + 4)).then_round_to(format.dtype);
    let mut worst: f64 = 0.0;
    for step in 0..8 {
        let codes = heard(&device, batch, step);
        let runs: Vec<u8> = (0..batch).map(|b| u8::from(step < 4 || b != 2)).collect();
        let mask = (step > 3).then(|| Tensor::from_slice(&device, &runs, [batch]).unwrap());
        let mut said = vec![UNGENERATED; batch * 5];
        (said[0], said[2]) = (5, 7);
        let runs = mask.as_ref().map(|_| &runs[..]);
        let given = (step % 3 == 2).then(|| Given::new(&lm, &said, runs).unwrap());
        let run = |session: &mut Session, given: Option<&Given>| {
            let before = cuda(&device).kernels();
            let step = match given {
                Some(given) => session.step_given(&codes, given).unwrap(),
                None => session.step(&codes, mask.as_ref()).unwrap(),
            };
            (step, cuda(&device).kernels() - before)
        };
        let (found, one) = run(&mut whole, given.as_ref());
        let forced = (format.dtype != DType::F32).then(|| Given::new(&lm, &found.said.to_vec::<i32>().unwrap(), runs).unwrap());
        let (expected, several) = run(&mut plain, forced.as_ref().or(given.as_ref()));
        // Of a step an embedding, the input, perhaps a norm, logits and a draw; of a layer norms, products, rotation and attention.
        let step_kernels = 4 + u64::from(config.depformer_norm.is_some()) + 2 * 8;
        assert_eq!(several - one, 4 * step_kernels - 1, "kernels of step {step}");
        assert_eq!(found.said.to_vec::<i32>().unwrap(), expected.said.to_vec::<i32>().unwrap(), "said in step {step}");
        assert_eq!(found.complete.to_vec::<i32>().unwrap(), expected.complete.to_vec::<i32>().unwrap(), "complete in step {step}");
        assert_eq!(found.text_logits.to_f64().unwrap(), expected.text_logits.to_f64().unwrap());
        for (found, expected) in found.logits.iter().zip(&expected.logits) {
            let comparison = tolerance.compare(&found.to_f64().unwrap(), &expected.to_f64().unwrap());
            worst = worst.max(comparison.budget_used);
            assert!(comparison.holds(), "step {step}: {:?}", comparison.worst);
        }
    }
    println!("{format:?}, {batch} streams: logits within {worst:.2} of their tolerance");
}

#[test]
fn one_launch_says_what_its_kernels_say() {
    for config in [tiny_moshi(), scheduled(), Config { depformer_pos_emb: "rope".into(), ..tiny_moshi() }] {
        for batch in [1, 3] {
            let few_bits =
                [Format::int8(DType::F32), Format::int8(DType::BF16), Format::int4_all(DType::F32), Format::int4_all(DType::BF16)];
            for format in [DType::F32.into(), DType::BF16.into(), DType::F16.into()].into_iter().chain(few_bits) {
                equals_its_kernels(&config, format, batch);
            }
        }
    }
}

#[test]
fn a_graph_of_one_launch_says_the_same() {
    let device = Device::open("emulator").unwrap();
    let lm = Lm::random(tiny_moshi(), &device, DType::F32).unwrap();
    let drawing: Vec<Drawing> = (0..2).map(|seed| Drawing::seeded(&Drawn::default(), seed)).collect();
    let [mut replayed, mut launched] = [(); 2].map(|()| Session::new(&lm, &drawing).unwrap());
    launched.graphs(false);
    let mut launches = Vec::new();
    for step in 0..9 {
        if step == 6 {
            // A graph of the other way is no graph of this one.
            replayed.plain_depth(true);
        }
        let before = [cuda(&device).launches(), cuda(&device).kernels()];
        let [found, expected] = [&mut replayed, &mut launched].map(|session| session.step(&heard(&device, 2, step), None).unwrap());
        launches.push([cuda(&device).launches() - before[0], cuda(&device).kernels() - before[1]]);
        assert_eq!(found.said.to_vec::<i32>().unwrap(), expected.said.to_vec::<i32>().unwrap(), "step {step}");
        if step < 6 {
            for (found, expected) in found.logits.iter().zip(&expected.logits) {
                assert_eq!(found.to_f64().unwrap(), expected.to_f64().unwrap(), "step {step}");
            }
        }
    }
    // A step of the launched, and of the replayed: as many, then one.
    let [both, kernels] = launches[0];
    assert!(both == kernels && launches[1..6].iter().all(|counts| *counts == [both / 2 + 1, kernels]), "{launches:?}");
    assert!(launches[6][0] > both && launches[7] == [both / 2 + 1, launches[6][1]], "{launches:?}");
    assert_eq!(replayed.no_graph(), None);
}

#[test]
fn what_one_launch_does_not_compute_is_launched_by_its_kernels_and_says_why() {
    let device = Device::open("emulator").unwrap();
    let open = |name: &str, dtype: DType| Lm::open(&golden("weights").join(name), &device, dtype).unwrap();
    assert_eq!(open("moshi", DType::F32).plain_depth(), None);
    assert_eq!(open("listener", DType::F32).plain_depth(), None);
    for (name, dtype, why) in [
        ("plain", DType::F32, "norms that centre"),
        ("sines", DType::F32, "sines of positions"),
        ("shared", DType::F32, "scaled layers"),
        ("moshi", DType::BF16, "[16, 44] that is not made of whole vectors of bf16"),
    ] {
        let lm = open(name, dtype);
        assert!(lm.plain_depth().is_some_and(|found| found.contains(why)), "{name}: {:?}", lm.plain_depth());
    }
    let centred = Config { depformer_norm: Some("layer_norm".into()), ..tiny_moshi() };
    let ungated = Config { depformer_gating: Some("none".into()), depformer_weights_per_step: false, ..tiny_moshi() };
    let other = Config { depformer_gating: Some("gelu".into()), ..tiny_moshi() };
    for (config, why) in [(centred, "norms that centre"), (ungated, "without a gate"), (other, "other than SiLU")] {
        let lm = Lm::random(config, &device, DType::F32).unwrap();
        assert!(lm.plain_depth().is_some_and(|found| found.contains(why)), "{:?}", lm.plain_depth());
    }
    assert_eq!(Lm::open(&golden("weights/plain"), &Device::Cpu, DType::F32).unwrap().plain_depth(), None);
}

/// Guidance runs the layers twice, and more streams than a launch takes are no error.
#[test]
fn guided_and_many_streams_are_launched_by_their_kernels() {
    let (device, notes) = dry::open(Arch(90));
    let lut = serde_json::json!({
        "n_bins": 2, "dim": 64, "tokenizer": "noop", "possible_values": ["fast"], "force_linear": false, "learn_padding": false
    });
    let conditioners = [("speed".to_owned(), serde_json::json!({"type": "lut", "lut": lut}))].into_iter().collect();
    let fuser = Some(Fuser { sum: vec!["speed".to_owned()], ..Fuser::default() });
    let lm = Lm::random(Config { conditioners, fuser, ..tiny_moshi() }, &device, DType::BF16).unwrap();
    assert_eq!(lm.plain_depth(), None);
    let launched = |mut session: Session, batch: usize| {
        notes.take();
        session.step(&heard(&device, batch, 0), None).unwrap();
        (notes.take().iter().filter(|launch| launch.launch.cooperative).count(), session.plain_depth_why())
    };
    let streams = |batch: usize| Session::new(&lm, &vec![Drawing::GREEDY; batch]).unwrap();
    assert_eq!([1, 16].map(|batch| launched(streams(batch), batch)), [(1, None), (1, None)]);
    assert_eq!(launched(streams(17), 17), (0, Some("17 streams, more than the 16 of one launch".to_owned())));
    let mut asked = streams(17);
    asked.plain_depth(true);
    assert_eq!(asked.plain_depth_why(), None);
    let none = [Conditions::new()];
    let guided = Session::conditioned(&lm, &[Drawing::GREEDY], &none, Some((1.5, &none))).unwrap();
    let (launches, why) = launched(guided, 1);
    assert!(launches == 0 && why.as_ref().is_some_and(|why| why.contains("guidance")), "{why:?}");
}
