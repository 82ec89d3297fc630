//! What is asked of every causal codec.

#![allow(dead_code, reason = "each test binary uses a part")]

pub mod lm;

use swara_engine::codec::{Codec, Codes, Session};
use swara_kernels::case::SplitMix;
use swara_kernels::{Device, Tensor};

/// Three streams in random chunks, masked in and out at random, must give the codes of the whole signals; returns the largest
/// difference of their samples.
pub fn streaming_error(codec: &Codec, frames: usize) -> f32 {
    let device = codec.device();
    let (hop, k, batch) = (codec.format().hop, codec.codebooks(), 3);
    let mut rng = SplitMix(5);
    let signals: Vec<Vec<f32>> = (0..batch).map(|_| (0..frames * hop).map(|_| rng.uniform() as f32 - 0.5).collect()).collect();
    let offline: Vec<Codes> = signals.iter().map(|s| codec.encode(s, k).unwrap()).collect();
    let waves: Vec<Vec<f32>> = offline.iter().map(|c| codec.decode(c).unwrap()).collect();

    let mut session = Session::new(codec, batch).unwrap();
    let mut at = vec![0; batch];
    let mut seen: Vec<(Vec<Vec<i32>>, Vec<f32>)> = vec![(Vec::new(), Vec::new()); batch];
    while at.iter().any(|&t| t < frames) {
        let n = 1 + (rng.next() % 7) as usize;
        // A stream sits out at random, and once it has not enough left.
        let mask: Vec<u8> = at.iter().map(|&t| (t + n <= frames && rng.uniform() < 0.7) as u8).collect();
        let n = if mask.iter().all(|&m| m == 0) { 1 } else { n };
        let mask: Vec<u8> = if n == 1 { at.iter().map(|&t| (t < frames) as u8).collect() } else { mask };
        let chunk: Vec<f32> = (0..batch)
            .flat_map(|b| (0..n * hop).map(move |i| (b, i)))
            .map(|(b, i)| if mask[b] == 1 { signals[b][at[b] * hop + i] } else { f32::NAN })
            .collect();
        let mask_tensor = Tensor::from_slice(device, &mask, [batch]).unwrap();
        let codes = session.encode(&codec.signal(&chunk, batch).unwrap(), k, Some(&mask_tensor)).unwrap();
        let values = codes.to_vec::<i32>().unwrap();
        let wave = codec.samples(&session.decode(&codes, Some(&mask_tensor)).unwrap()).unwrap();
        for b in (0..batch).filter(|&b| mask[b] == 1) {
            seen[b].0.extend(values[b * n * k..][..n * k].chunks(k).map(<[i32]>::to_vec));
            seen[b].1.extend(&wave[b * n * hop..][..n * hop]);
            at[b] += n;
        }
    }
    let mut worst: f32 = 0.0;
    for b in 0..batch {
        let expected: Vec<Vec<i32>> = (0..frames).map(|t| (0..k).map(|q| offline[b].values[q * frames + t]).collect()).collect();
        assert_eq!(seen[b].0, expected, "codes of stream {b}");
        assert_eq!(seen[b].1.len(), waves[b].len(), "samples of stream {b}");
        assert!(seen[b].1.iter().all(|v| v.is_finite()), "samples of stream {b}");
        worst = seen[b].1.iter().zip(&waves[b]).map(|(a, b)| (a - b).abs()).fold(worst, f32::max);
    }
    worst
}

/// Frames as graphs, streams masked in and out, must give bit for bit what they give launch by launch.
pub fn replayed_frames_equal_launched_ones(codec: &Codec, frames: usize) {
    let device = codec.device();
    let Device::Cuda(cuda) = device else { panic!("graphs are of CUDA") };
    let (hop, k, batch) = (codec.format().hop, codec.codebooks(), 2);
    let (mut replayed, mut launched) = (Session::new(codec, batch).unwrap(), Session::new(codec, batch).unwrap());
    let mut rng = SplitMix(7);
    for frame in 0..frames {
        let samples: Vec<f32> = (0..batch * hop).map(|_| rng.uniform() as f32 - 0.5).collect();
        let x = codec.signal(&samples, batch).unwrap();
        let mask = Tensor::from_slice(device, &[1u8, (frame % 5 != 3) as u8], [batch]).unwrap();
        if frame == frames / 2 {
            let first = Tensor::from_slice(device, &[1u8, 0], [batch]).unwrap();
            for session in [&mut replayed, &mut launched] {
                session.reset(&first).unwrap();
            }
        }
        let before = [cuda.launches(), cuda.kernels()];
        let codes = replayed.encode(&x, k, Some(&mask)).unwrap();
        let wave = replayed.decode(&codes, Some(&mask)).unwrap();
        let [launches, kernels] = [cuda.launches() - before[0], cuda.kernels() - before[1]];
        if frame == 0 {
            assert_eq!(launches, kernels, "nothing is recorded yet");
        } else {
            assert!(launches == 2 && kernels > 2, "{launches} launches of {kernels} kernels in frame {frame}");
        }
        let mut none = |_: &str, _: &Tensor| Ok(());
        let expected = launched.encode_observed(&x, k, Some(&mask), &mut none).unwrap();
        let runs = if frame % 5 != 3 { batch } else { 1 };
        let same = |a: &Tensor, b: &Tensor| {
            a.to_f64().unwrap()[..a.elements() / batch * runs] == b.to_f64().unwrap()[..b.elements() / batch * runs]
        };
        assert!(same(&codes, &expected), "codes of frame {frame}");
        let expected = launched.decode_observed(&codes, Some(&mask), &mut none).unwrap();
        assert!(same(&wave, &expected), "samples of frame {frame}");
    }
}
