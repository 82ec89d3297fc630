//! Fewer codes: searched by a beam, and as few a frame as it needs. On the bundled codec and clip.

use std::path::{Path, PathBuf};

use swara_engine::codec::{Codec, Codes, Session, rate};
use swara_engine::metrics::mel_distance;
use swara_kernels::ops::rvq_search::Codebooks;
use swara_kernels::{DType, Device, Tensor};
use swara_loader::audio::AudioReader;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../bins/data").join(name)
}

fn codec() -> Codec {
    Codec::open(&data("swara-te50.safetensors"), &Device::Cpu, DType::F32).unwrap()
}

/// So many seconds of the clip.
fn clip(seconds: usize) -> Vec<f32> {
    let mut samples = Vec::new();
    for piece in &mut AudioReader::open(data("clip.flac"), Some(16000)).unwrap() {
        samples.extend(piece.unwrap());
    }
    samples.truncate(seconds * 16000);
    samples
}

#[test]
fn a_beam_leaves_no_frame_of_speech_more_and_all_together_less() {
    let (mut codec, x) = (codec(), clip(2));
    let (greedy, left) = codec.encode_measured(&x, 8).unwrap();
    assert_eq!(greedy, codec.encode(&x, 8).unwrap());
    let last = |left: &[f32]| -> Vec<f64> { left.chunks(9).map(|frame| frame[8].into()).collect() };
    let greedy = last(&left);
    let mut before: f64 = greedy.iter().sum();
    for beam in [2, 8] {
        codec.set_beam(beam).unwrap();
        let found = last(&codec.encode_measured(&x, 8).unwrap().1);
        assert!(found.iter().zip(&greedy).all(|(many, one)| *many <= one * (1.0 + 1e-4)), "beam {beam}");
        let total: f64 = found.iter().sum();
        assert!(total < 0.97 * before, "beam {beam} leaves {total}, before {before}");
        before = total;
    }
    for beam in [0, 65] {
        assert!(codec.set_beam(beam).is_err());
    }
    codec.set_beam(1).unwrap();
    assert_eq!(last(&codec.encode_measured(&x, 8).unwrap().1), greedy);
}

#[test]
fn what_is_left_is_what_the_codes_lack() {
    let (codec, x) = (codec(), clip(1));
    let left = codec.encode_measured(&x, 8).unwrap().1;
    for n in [1, 3, 7] {
        let fewer = codec.encode_measured(&x, n).unwrap().1;
        for (all, fewer) in left.chunks(9).zip(fewer.chunks(n + 1)) {
            assert_eq!(&all[..=n], fewer);
        }
    }
    assert!(left.chunks(9).all(|frame| frame.iter().all(|v| v.is_finite() && *v >= 0.0)));
}

/// The codes of the first stages of each frame.
fn dropped(codec: &Codec, codes: &Codes, stages: &rate::Stages) -> Codes {
    let mut rows = codec.format().by_frame(&codes.values, codes.codebooks);
    stages.drop_others(&mut rows, codes.codebooks);
    Codes { values: codec.format().by_codebook(&rows, codes.codebooks), ..codes.clone() }
}

#[test]
fn stages_that_a_frame_does_without_add_nothing() {
    let (codec, x) = (codec(), clip(1));
    let (codes, _) = codec.encode_measured(&x, 8).unwrap();
    for n in [1, 5] {
        let stages = rate::Stages { of: vec![n; codes.frames], hold: 1 };
        let fewer = codec.decode(&dropped(&codec, &codes, &stages)).unwrap();
        assert_eq!(fewer, codec.decode(&codec.encode(&x, n.into()).unwrap()).unwrap(), "{n}");
    }
}

#[test]
fn frames_of_different_numbers_of_codes_stream_as_they_decode() {
    let (codec, x) = (codec(), clip(1));
    let (codes, left) = codec.encode_measured(&x, 8).unwrap();
    let stages = rate::within(&left, codec.format(), 8, 3, 2000.0, 0.5).unwrap();
    let codes = dropped(&codec, &codes, &stages);
    let offline = codec.decode(&codes).unwrap();
    let rows = codec.format().by_frame(&codes.values, 8);
    let mut session = Session::new(&codec, 1).unwrap();
    let mut streamed = Vec::new();
    for frame in rows.chunks(8) {
        let codes = Tensor::from_slice(&Device::Cpu, frame, [1, 1, 8]).unwrap();
        streamed.extend(session.decode(&codes, None).unwrap().to_vec::<f32>().unwrap());
    }
    assert_eq!(streamed, offline);
}

#[test]
fn numbers_of_codes_by_what_is_heard_are_nearer_at_the_same_bitrate() {
    let (codec, x) = (codec(), clip(3));
    let (codes, left) = codec.encode_measured(&x, 6).unwrap();
    let mut decoded = 0;
    let heard = rate::heard(&codec, &x, &codes, || decoded += 1).unwrap();
    assert_eq!(decoded, 6);
    assert_eq!(heard.len(), left.len());
    let mel = |codes: &Codes| mel_distance(&x, &codec.decode(codes).unwrap()[..x.len()], 16000).unwrap();
    // A Mimi's first codebook is of little use without the next.
    for n in [3, 4] {
        let whole: f64 = heard.chunks(7).map(|frame| f64::from(frame[n])).sum();
        let fixed = mel(&codec.encode(&x, n).unwrap());
        assert!((whole - fixed).abs() < 1e-4 * fixed, "{whole} {fixed}");
        let stages = rate::within(&heard, codec.format(), 6, 4, codec.format().bitrate(n), 0.0).unwrap();
        assert!(rate::bitrate(&stages, codec.format(), 6, codes.frames) <= codec.format().bitrate(n));
        let found = mel(&dropped(&codec, &codes, &stages));
        assert!(found < 0.985 * fixed, "{n} codes: {found} after {fixed}");
    }
}

#[test]
fn codes_after_those_that_a_frame_does_without_are_refused() {
    let (codec, x) = (codec(), clip(1));
    let (codes, _) = codec.encode_measured(&x, 3).unwrap();
    let with = |at: &[(usize, i32)]| {
        let mut codes = codes.clone();
        at.iter().for_each(|&(i, code)| codes.values[i] = code);
        codec.decode(&codes)
    };
    let n = codes.frames;
    with(&[(2 * n, -1), (n + 1, -1), (2 * n + 1, -1)]).unwrap();
    for at in [&[(n, -1)][..], &[(0, -1)], &[(0, -1), (n, -1), (2 * n, -1)], &[(2 * n, -2)], &[(2 * n, i32::MIN)]] {
        assert!(with(at).is_err(), "{at:?}");
    }
}

#[test]
fn the_mean_bitrate_is_kept_and_less_is_left_than_by_as_many_codes_each() {
    let (codec, x) = (codec(), clip(4));
    let (codes, left) = codec.encode_measured(&x, 8).unwrap();
    let format = codec.format();
    let total = |stages: &rate::Stages| left.chunks(9).enumerate().map(|(t, frame)| f64::from(frame[stages.at(t)])).sum::<f64>();
    for n in 2..8 {
        let bitrate = format.bitrate(n);
        let stages = rate::within(&left, format, 8, 4, bitrate, 0.0).unwrap();
        let found = rate::bitrate(&stages, format, 8, codes.frames);
        assert!(found <= bitrate && found > 0.95 * bitrate, "{n}: {found} of {bitrate}");
        let fixed = total(&rate::Stages { of: vec![n as u8; codes.frames], hold: 1 });
        assert!(total(&stages) < fixed, "{n}: {} after {fixed}", total(&stages));
    }
    let least = rate::within(&left, format, 8, 1, 1.0, 0.5).unwrap();
    assert!(least.of.iter().all(|&n| n == 1));
    let most = rate::within(&left, format, 8, 1, 1e9, 0.5).unwrap();
    assert!(total(&most) <= total(&rate::Stages { of: vec![8; codes.frames], hold: 1 }));
    let until = rate::until(&left, 8, 1, 0.2).unwrap();
    for (t, frame) in left.chunks(9).enumerate() {
        let n = until.at(t);
        assert!(n == 8 || frame[n] <= 0.2 * frame[0]);
        assert!(n == 1 || frame[n - 1] > 0.2 * frame[0]);
    }
    assert!(rate::until(&left, 8, 0, 0.2).is_err() && rate::until(&left, 0, 1, 0.2).is_err());
}

/// Of a DAC, whose stages have projections with biases of their own.
#[test]
fn factorised_codes_that_are_not_there_add_nothing_on_any_device() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../verify/golden/dac/weights/16khz");
    let open = |device: &Device| Codec::open(&golden, device, DType::F32).unwrap();
    let (on_cpu, on_emulator) = (open(&Device::Cpu), open(&Device::open("emulator").unwrap()));
    let all = on_cpu.codebooks();
    let codes = on_cpu.encode(&clip(1)[..4000], all).unwrap();
    // Frame by frame another number, all of them among these; and frames alike.
    let of: Vec<u8> = (0..codes.frames).map(|frame| (1 + frame % all) as u8).collect();
    let mixed = dropped(&on_cpu, &codes, &rate::Stages { of, hold: 1 });
    let [expected, found] = [&on_cpu, &on_emulator].map(|codec| codec.decode(&mixed).unwrap());
    let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let largest = expected.iter().map(|v| v.abs()).fold(0.0, f32::max);
    assert!(worst < 1e-4 * largest && largest > 0.0, "off by {worst} of {largest}");
    for codec in [&on_cpu, &on_emulator] {
        let one = dropped(codec, &codes, &rate::Stages { of: vec![1; codes.frames], hold: 1 });
        let fewer = Codes { codebooks: 1, values: codes.values[..codes.frames].to_vec(), ..codes.clone() };
        assert_eq!(codec.decode(&one).unwrap(), codec.decode(&fewer).unwrap());
        assert_ne!(codec.decode(&mixed).unwrap(), codec.decode(&codes).unwrap());
    }
}

#[test]
fn codes_that_are_not_there_add_nothing_on_the_emulator_either() {
    let (n, k, stages) = (33, 7, 9);
    let device = Device::open("emulator").expect("the emulator needs a C++ compiler");
    for d in [5, 8] {
        let value = |i: usize| ((i * 37 % 101) as f32 - 50.0) / 16.0;
        let code = |i: usize| if i % stages >= i / stages % (stages + 1) { rate::NONE } else { (i * 5 % k) as i32 };
        let codes: Vec<i32> = (0..n * stages).map(code).collect();
        let on = |device: &Device, codes: &[i32]| {
            let book = |s: usize| Tensor::from_slice(device, &(0..k * d).map(|i| value(i + s)).collect::<Vec<_>>(), [k, d]).unwrap();
            let books: Vec<Tensor> = (0..stages).map(book).collect();
            let books = Codebooks::new(&books.iter().collect::<Vec<_>>()).unwrap();
            books.decode_present(&Tensor::from_slice(device, codes, [n, stages]).unwrap(), 0..stages).map(|y| y.to_vec::<f32>().unwrap())
        };
        let expected = on(&Device::Cpu, &codes).unwrap();
        assert_eq!(on(&device, &codes).unwrap(), expected);
        assert!(expected[..d].iter().all(|&v| v == 0.0));
        let mut stray = codes.clone();
        stray[stages] = -2;
        assert!(on(&Device::Cpu, &stray).is_err());
        let found = on(&device, &stray).unwrap();
        assert!(found[d..2 * d].iter().all(|v| v.is_nan()) && found[2 * d..] == expected[2 * d..]);
    }
}
