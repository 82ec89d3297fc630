//! Small models that hear and speak through a small Mimi (verify/golden): frames as graphs against the sessions by themselves.

use std::path::{Path, PathBuf};

use swara_engine::codec::{Codec, Session as CodecSession, mimi};
use swara_engine::dialogue::{Dialogue, Heard};
use swara_engine::lm::{Config, Drawing, Drawn, Lm, Session};
use swara_kernels::case::SplitMix;
use swara_kernels::driver::{Arch, dry};
use swara_kernels::{DType, Device, Tensor};

/// Past the 24 steps that the models see.
const FRAMES: usize = 30;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../verify/golden").join(name)
}

fn models(name: &str, device: &Device) -> (Lm, Codec) {
    let lm = Lm::open(&golden("moshi_lm/weights").join(name), device, DType::F32).unwrap();
    (lm, Codec::open(&golden("mimi/weights/kyutai.safetensors"), device, DType::F32).unwrap())
}

fn drawing() -> Drawing {
    Drawing::seeded(&Drawn::default(), 3)
}

fn heard(frames: usize, hop: usize) -> Vec<Vec<f32>> {
    let mut rng = SplitMix(11);
    (0..frames).map(|_| (0..hop).map(|_| rng.uniform() as f32 - 0.5).collect()).collect()
}

#[derive(Debug, PartialEq)]
struct Frame {
    said: Option<Vec<i32>>,
    samples: Option<Vec<f32>>,
    text_logits: Vec<f32>,
}

/// Each piece by itself. If `live`, the codec begins anew after it has heard the first frame.
fn apart(lm: &Lm, codec: &Codec, frames: &[Vec<f32>], live: bool) -> Vec<Frame> {
    let device = lm.device();
    let [mut ear, mut mouth] = [(); 2].map(|()| CodecSession::new(codec, 1).unwrap());
    let mut mind = Session::new(lm, &[drawing()]).unwrap();
    mind.graphs(false);
    let mut none = |_: &str, _: &Tensor| Ok(());
    let k = lm.config().heard();
    let mut frame = |(t, samples): (usize, &Vec<f32>)| {
        let codes = ear.encode_observed(&codec.signal(samples, 1).unwrap(), k, None, &mut none).unwrap().reshape([1, k]).unwrap();
        if t == 0 && live {
            ear = CodecSession::new(codec, 1).unwrap();
        }
        let step = mind.step(&codes, None).unwrap();
        let said = Some(step.complete.to_vec::<i32>().unwrap()).filter(|said| said[0] >= 0);
        let samples = said.as_ref().map(|said| {
            let voice = k.min(lm.config().dep_q);
            let codes = Tensor::from_slice(device, &said[1..=voice], [1, 1, voice]).unwrap();
            codec.samples(&mouth.decode_observed(&codes, None, &mut none).unwrap()).unwrap()
        });
        Frame { said, samples, text_logits: step.text_logits.to_vec().unwrap() }
    };
    frames.iter().enumerate().map(&mut frame).collect()
}

#[test]
fn a_conversation_is_its_pieces_bit_for_bit_and_on_cuda_a_launch_a_frame() {
    for device in [Device::Cpu, Device::open("emulator").unwrap()] {
        for name in ["moshi", "shared"] {
            let (lm, codec) = models(name, &device);
            let frames = heard(FRAMES, codec.format().hop);
            let delay = lm.config().delays.iter().copied().max().unwrap();
            let expected = [true, false].map(|live| apart(&lm, &codec, &frames, live));
            assert_ne!(expected[0], expected[1], "the first frame is in the past");
            for (expected, live) in expected.iter().zip([true, false]) {
                let dialogue = Dialogue::new(&lm, Some(&codec), drawing()).unwrap();
                let mut dialogue = if live { dialogue.live().unwrap() } else { dialogue };
                let launched = || if let Device::Cuda(cuda) = &device { [cuda.launches(), cuda.kernels()] } else { [0; 2] };
                for (t, (frame, expected)) in frames.iter().zip(expected).enumerate() {
                    let before = launched();
                    let turn = dialogue.step(Heard::Samples(frame)).unwrap();
                    let counts: [u64; 2] = std::array::from_fn(|i| launched()[i] - before[i]);
                    let text_logits = dialogue.text_logits().unwrap().to_vec().unwrap();
                    let found = Frame { said: turn.said, samples: turn.samples, text_logits };
                    assert_eq!(found, *expected, "{name} on {device:?}, live: {live}, frame {t}");
                    assert_eq!(found.said.is_some(), t >= delay);
                    // The second of a kind is recorded; a live one was before.
                    let graph = device != Device::Cpu && t >= if live { delay.max(1) } else { delay + 1 };
                    assert_eq!(turn.took.is_none(), graph, "{name}, live: {live}, frame {t}");
                    if graph {
                        assert!(counts[0] == 1 && counts[1] > 50, "{counts:?} in frame {t}");
                    }
                    if t + 1 == FRAMES && graph {
                        println!("{name}: a frame of {} kernels is one launch", counts[1]);
                    }
                }
                assert_eq!(dialogue.no_graph(), None);
            }
        }
    }
}

#[test]
fn codes_without_sound_are_graphs_too() {
    let device = Device::open("emulator").unwrap();
    let (lm, codec) = models("moshi", &device);
    let mut rng = SplitMix(2);
    let frames: Vec<Vec<i32>> = (0..12).map(|_| (0..4).map(|_| (rng.next() % 32) as i32).collect()).collect();
    let said = |graphs: bool, codec: Option<&Codec>| -> Vec<(Option<Vec<i32>>, bool)> {
        let mut dialogue = Dialogue::new(&lm, codec, drawing()).unwrap();
        dialogue.graphs(graphs);
        dialogue.aloud(false);
        let turns = frames.iter().map(|codes| dialogue.step(Heard::Codes(codes)).unwrap());
        turns.map(|turn| (turn.said, turn.took.is_none() && turn.samples.is_none())).collect()
    };
    let expected: Vec<_> = said(false, None).into_iter().enumerate().map(|(t, (said, _))| (said, t >= 1)).collect();
    assert_eq!(said(true, None), expected);
    assert_eq!(said(true, Some(&codec)), expected);
}

#[test]
fn what_is_no_frame_is_an_error_and_changes_nothing() {
    for device in [Device::Cpu, Device::open("emulator").unwrap()] {
        let (lm, codec) = models("moshi", &device);
        let frames = heard(6, codec.format().hop);
        let mut dialogue = Dialogue::new(&lm, Some(&codec), drawing()).unwrap();
        let mut undisturbed = Dialogue::new(&lm, Some(&codec), drawing()).unwrap();
        for frame in &frames {
            assert!(dialogue.step(Heard::Samples(&frame[1..])).is_err());
            assert!(dialogue.step(Heard::Codes(&[1; 3])).is_err());
            let [a, b] = [&mut dialogue, &mut undisturbed].map(|dialogue| dialogue.step(Heard::Samples(frame)).unwrap());
            assert!(a.said == b.said && a.samples == b.samples);
        }
        let mut deaf = Dialogue::new(&lm, None, drawing()).unwrap();
        assert!(deaf.step(Heard::Samples(&frames[0])).is_err());
        let (_, elsewhere) = models("moshi", &Device::open("emulator").unwrap());
        let refused = Dialogue::new(&lm, Some(&elsewhere), drawing()).err().expect("two devices").to_string();
        assert!(refused.contains("another device"), "{refused}");
    }
}

#[test]
fn where_no_graph_can_be_had_frames_are_launched_and_say_why() {
    let (device, _) = dry::open(Arch(90));
    let (lm, codec) = models("moshi", &device);
    let mut dialogue = Dialogue::new(&lm, Some(&codec), Drawing::GREEDY).unwrap().live().unwrap();
    for frame in heard(4, codec.format().hop) {
        assert!(dialogue.step(Heard::Samples(&frame)).unwrap().took.is_some());
    }
    assert!(dialogue.no_graph().is_some_and(|why| why.contains("nothing to capture")));
}

/// What a graph is instead of: the layers of the published models, of narrow rows.
#[test]
fn a_frame_of_moshi_and_mimi_is_so_many_kernels() {
    let (device, notes) = dry::open(Arch(90));
    let config = Config {
        dim: 64,
        num_heads: 2,
        depformer_dim: 64,
        depformer_num_heads: Some(2),
        depformer_dim_feedforward: None,
        card: 64,
        text_card: 64,
        context: Some(8),
        ..Config::moshi()
    };
    let lm = Lm::random(config, &device, DType::BF16).unwrap();
    let mimi = mimi::Config {
        hidden_size: 64,
        num_filters: 8,
        codebook_size: 64,
        codebook_dim: 16,
        num_quantizers: 8,
        intermediate_size: 64,
        ..Default::default()
    };
    let codec = Codec::random_mimi(&mimi, &device, DType::BF16).unwrap();
    let mut session = Session::new(&lm, &[drawing()]).unwrap();
    let mut dialogue = Dialogue::new(&lm, Some(&codec), drawing()).unwrap();
    notes.take();
    session.step(&Tensor::zeros(&device, DType::I32, [1, 8]).unwrap(), None).unwrap();
    let step = notes.take().len();
    dialogue.step(Heard::Samples(&[0.0; 1920])).unwrap();
    let frame = notes.take().len();
    println!("a step of Moshi is {step} kernels, a frame with Mimi {frame}");
    let mut plain = Session::new(&lm, &[drawing()]).unwrap();
    plain.plain_depth(true);
    notes.take();
    plain.step(&Tensor::zeros(&device, DType::I32, [1, 8]).unwrap(), None).unwrap();
    let by_kernels = notes.take().len();
    assert_eq!([step, frame, by_kernels], [264, 460, 679], "what README says of them");
}

#[test]
fn a_random_mimi_hears_and_speaks() {
    let config = mimi::Config {
        hidden_size: 16,
        num_filters: 4,
        codebook_size: 32,
        codebook_dim: 8,
        num_quantizers: 4,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 2,
        intermediate_size: 24,
        ..Default::default()
    };
    let codec = Codec::random_mimi(&config, &Device::Cpu, DType::F32).unwrap();
    let lm = Lm::open(&golden("moshi_lm/weights/moshi"), &Device::Cpu, DType::F32).unwrap();
    let mut dialogue = Dialogue::new(&lm, Some(&codec), drawing()).unwrap();
    let turns: Vec<_> = heard(3, 1920).iter().map(|frame| dialogue.step(Heard::Samples(frame)).unwrap()).collect();
    let samples = turns[2].samples.as_ref().unwrap();
    assert!(samples.len() == 1920 && samples.iter().all(|x| x.is_finite()) && samples.iter().any(|&x| x != 0.0));
}
