//! What CUDA text means on the emulator, under every schedule.

use swara_kernels::driver::emulator::{Schedule, open};
use swara_kernels::driver::source::ALL_ARCHS;
use swara_kernels::driver::{Arch, Driver, Launch, Source};
use swara_kernels::{DType, Device, Tensor, args};

use super::{emulator, launch, shape, upload, values};

static SOURCE: Source = Source { path: "language.cu", text: include_str!("language.cu"), archs: ALL_ARCHS };

fn every_schedule(test: impl Fn(&Device)) {
    for schedule in Schedule::ALL.into_iter().chain([Schedule::Random(99)]) {
        test(&emulator(90, schedule));
    }
}

#[test]
fn threads_and_blocks_know_where_they_are() {
    every_schedule(|device| {
        let mut y = Tensor::empty(device, DType::I32, [2 * 3 * 4 * 40]).unwrap();
        launch(device, &SOURCE, "indices", Launch { grid: [2, 3, 4], block: [5, 4, 2], ..shape(1, 1) }, args![&mut y]).unwrap();
        let expected: Vec<i32> = (0..24).flat_map(|b| (0..40).map(move |t| b * 1000 + t)).collect();
        assert_eq!(y.to_vec::<i32>().unwrap(), expected);
    });
}

#[test]
fn shuffles_follow_the_definition() {
    every_schedule(|device| {
        let mut y = Tensor::empty(device, DType::I32, [320]).unwrap();
        launch(device, &SOURCE, "shuffles", shape(1, 32), args![&mut y]).unwrap();
        let y = y.to_vec::<i32>().unwrap();
        let expected: [&dyn Fn(i32) -> i32; 10] = [
            &|_| 105,
            &|l| 100 + l / 8 * 8 + 3,
            &|l| 100 + if l < 2 { l } else { l - 2 },
            &|l| 100 + if l % 16 < 2 { l } else { l - 2 },
            &|l| 100 + if l > 28 { l } else { l + 3 },
            &|l| 100 + if l % 4 > 0 { l } else { l + 3 },
            &|l| 100 + (l ^ 16),
            &|l| 100 + if l ^ 9 >= l / 8 * 8 + 8 { l } else { l ^ 9 },
            &|l| l ^ 1,
            &|l| 100 + if l < 16 { l ^ 1 } else { l ^ 2 },
        ];
        for (row, f) in expected.iter().enumerate() {
            let wanted: Vec<i32> = (0..32).map(f).collect();
            assert_eq!(y[32 * row..32 * row + 32], wanted, "row {row}");
        }
    });
}

#[test]
fn votes_count_and_bits_follow_the_definition() {
    every_schedule(|device| {
        let y = upload(device, &[0i32; 128]);
        launch(device, &SOURCE, "votes", shape(1, 32), args![&y]).unwrap();
        let y = y.to_vec::<i32>().unwrap();
        assert!(y[..32].iter().all(|&v| v as u32 == (0..32).step_by(3).fold(0, |m, i| m | 1u32 << i)));
        assert!(y[32..64].iter().all(|&v| v == 1 + 4));
        assert!(y[64..96].iter().all(|&v| v == 7 + 100 + 400));
        assert!(y[96..].iter().all(|&v| v == 8 + 400 + 31000 + 100000));
    });
}

#[test]
fn threads_that_exit_early_leave_barriers_and_votes() {
    every_schedule(|device| {
        for n in [1, 31, 33, 40] {
            let mut y = upload(device, &[0i32; 64]);
            launch(device, &SOURCE, "early_exit", shape(1, 45), args![&mut y, n]).unwrap();
            let y = y.to_vec::<i32>().unwrap();
            let lanes = |t: i32| if t >= n { 0 } else { (n - t / 32 * 32).min(32) };
            assert!((0..64).all(|t| y[t as usize] == lanes(t)), "{n}: {y:?}");
        }
    });
}

#[test]
fn atomics_are_atomic_between_host_threads() {
    every_schedule(|device| {
        let ints = upload(device, &[0i32; 5]);
        let uints = upload(device, &[0i32; 2]);
        let wide = upload(device, &[0i32; 4]);
        let floats = upload(device, &[0f32]);
        launch(device, &SOURCE, "atomics", shape(50, 64), args![&ints, &uints, &wide, &floats]).unwrap();
        assert_eq!(ints.to_vec::<i32>().unwrap(), [3200, 3199, -3199, 1, 7]);
        assert_eq!(uints.to_vec::<i32>().unwrap(), [(0x8000_0000u32 + 3199) as i32, -1]);
        assert_eq!(wide.to_vec::<i32>().unwrap(), [0, 6400, 0, 3199]);
        assert_eq!(floats.to_vec::<f32>().unwrap(), [3200.0]);
    });
}

#[test]
fn all_blocks_of_a_cooperative_launch_meet_at_the_grid_barrier() {
    every_schedule(|device| {
        let mut state = upload(device, &[0i32]);
        for blocks in [1, 2, 7] {
            let x = values(blocks * 48);
            let mut y = Tensor::empty(device, DType::F32, [x.len()]).unwrap();
            let partial = Tensor::empty(device, DType::F32, [blocks]).unwrap();
            let cooperative = Launch { cooperative: true, ..shape(blocks as u32, 48) };
            launch(device, &SOURCE, "grid_sum", cooperative, args![&mut y, &partial, &upload(device, &x), &mut state]).unwrap();
            let total = 3.0 * x.iter().sum::<f32>();
            assert!(y.to_vec::<f32>().unwrap().iter().all(|&v| v == total), "{blocks} blocks");
        }
    });
}

#[test]
fn shared_variables_are_distinct_and_private_to_a_block() {
    every_schedule(|device| {
        let mut y = Tensor::empty(device, DType::F32, [32]).unwrap();
        launch(device, &SOURCE, "shared_variables", shape(3, 32), args![&mut y]).unwrap();
        let expected: Vec<f32> = (0..32).map(|t| 11100.0 + 5.0 * (31 - t) as f32).collect();
        assert_eq!(y.to_vec::<f32>().unwrap(), expected);
    });
}

#[test]
fn bf16_and_f16_round_like_the_half_crate() {
    let device = emulator(90, Schedule::Ascending);
    let mut x: Vec<f32> = (0..=u16::MAX).map(|b| half::f16::from_bits(b).to_f32()).filter(|v| !v.is_nan()).collect();
    // Neighbours and halves between representable values of both types, subnormals, overflow.
    x.extend((0..200_000u32).map(|i| f32::from_bits(i.wrapping_mul(2_654_435_761))).filter(|v| !v.is_nan()));
    let between: Vec<f32> = x.iter().flat_map(|v| [f32::from_bits(v.to_bits() ^ 0x1000), f32::from_bits(v.to_bits() ^ 0x8000)]).collect();
    x.extend(between.into_iter().filter(|v| !v.is_nan()));
    x.extend([65519.9, 65520.0, -65520.0, 6e-8, 2.98e-8, 2.9802322e-8, 2.9802326e-8, 6.097e-5]);
    let n = x.len();
    let to = Tensor::empty(&device, DType::F32, [131072]).unwrap();
    let (b, h) = (Tensor::empty(&device, DType::BF16, [n]).unwrap(), Tensor::empty(&device, DType::F16, [n]).unwrap());
    launch(&device, &SOURCE, "conversions", shape(1, 256), args![&to, &b, &h, &upload(&device, &x), n as i32]).unwrap();
    for ((&x, b), h) in x.iter().zip(b.to_vec::<half::bf16>().unwrap()).zip(h.to_vec::<half::f16>().unwrap()) {
        assert_eq!(b.to_bits(), half::bf16::from_f32(x).to_bits(), "bf16 of {x:e}");
        assert_eq!(h.to_bits(), half::f16::from_f32(x).to_bits(), "f16 of {x:e}");
    }
    let to = to.to_vec::<f32>().unwrap();
    let same = |a: f32, b: f32| a == b && a.is_sign_negative() == b.is_sign_negative() || a.is_nan() && b.is_nan();
    for bits in 0..=u16::MAX {
        assert!(same(to[bits as usize], half::bf16::from_bits(bits).to_f32()), "bf16 {bits:#x}");
        assert!(same(to[65536 + bits as usize], half::f16::from_bits(bits).to_f32()), "f16 {bits:#x}");
    }
}

#[test]
fn the_text_sees_the_chosen_architecture() {
    for arch in [75, 80, 120] {
        let device = emulator(arch, Schedule::Ascending);
        let mut y = Tensor::empty(&device, DType::I32, [4]).unwrap();
        launch(&device, &SOURCE, "architecture", shape(1, 1), args![&mut y]).unwrap();
        assert_eq!(y.to_vec::<i32>().unwrap(), [arch as i32, 10 * arch as i32, 8, 2]);
    }
    assert_eq!(open(Some("sm_75")).unwrap().arch(), Arch(75));
    assert!(open(Some("sm_76")).is_err() && open(Some("75")).is_err());
    assert_eq!("random:7".parse::<Schedule>().unwrap(), Schedule::Random(7));
    assert!("random".parse::<Schedule>().is_err() && "random:x".parse::<Schedule>().is_err());
}

#[test]
fn asynchronous_copies_of_every_size_fill_with_zeros_where_asked() {
    for arch in [75, 80] {
        let device = emulator(arch, Schedule::Ascending);
        let x = upload(&device, &[1i32, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        let mut y = Tensor::empty(&device, DType::I32, [10]).unwrap();
        launch(&device, &SOURCE, "zero_fill", shape(1, 1), args![&mut y, &x]).unwrap();
        assert_eq!(y.to_vec::<i32>().unwrap(), [0, 0, 0, 0, 5, 6, 0, 0, 9, 0], "sm_{arch}");
    }
}

#[test]
fn a_graph_replays_launches_copies_and_fills() {
    let device = emulator(90, Schedule::Ascending);
    let Device::Cuda(cuda) = &device else { unreachable!() };
    let x = upload(&device, &values(100));
    let mut y = upload(&device, &[f32::NAN; 100]);
    let (graph, temporary) = cuda
        .capture(|| {
            let mut n = 100;
            let mut t = x.copy()?;
            launch(&device, &SOURCE, "add_one", shape(2, 64), args![&mut t, n])?;
            n = 0; // the graph holds the value, not the variable
            y.copy_from(&t)?;
            assert!(t.to_vec::<f32>().is_err(), "nothing is read while recording");
            Ok::<_, swara_kernels::Error>((t, n))
        })
        .unwrap();
    assert!(y.to_vec::<f32>().unwrap()[0].is_nan(), "recording runs nothing");
    let plus = |k: f32| values(100).into_iter().map(|v| v + k).collect::<Vec<_>>();
    for _ in 0..3 {
        graph.replay().unwrap();
        assert_eq!(y.to_vec::<f32>().unwrap(), plus(1.0));
    }
    drop(temporary);
    drop(graph);
    let start = cuda.event().unwrap();
    launch(&device, &SOURCE, "add_one", shape(2, 64), args![&mut y, 100]).unwrap();
    assert!(cuda.event().unwrap().since_ms(&start).unwrap() > 0.0);
    assert_eq!(y.to_vec::<f32>().unwrap(), plus(2.0));
}

#[test]
fn host_threads_launch_side_by_side() {
    let device = emulator(90, Schedule::Ascending);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for n in [1usize, 31, 500] {
                    let mut y = upload(&device, &values(n));
                    launch(&device, &SOURCE, "add_one", shape(n.div_ceil(64) as u32, 64), args![&mut y, n as i32]).unwrap();
                    assert_eq!(y.to_vec::<f32>().unwrap(), values(n).iter().map(|v| v + 1.0).collect::<Vec<_>>());
                }
            });
        }
    });
}
