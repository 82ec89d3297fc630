//! Hopper's barriers, copies of tiles and products of four warps: against their definitions, and each mistake with them.

use swara_kernels::driver::emulator::{Emulator, Options, Schedule};
use swara_kernels::driver::{Arch, Launch, Source, TensorMap, Tiles};
use swara_kernels::{DType, Device, Error, Tensor, args};

use super::{emulator, launch, shape, upload, values};

static SOURCE: Source = Source { path: "hopper.cu", text: include_str!("hopper.cu"), archs: &[90] };

fn bf16(device: &Device, values: &[f32], shape: [usize; 2]) -> Tensor {
    let values: Vec<f64> = values.iter().map(|&v| v.into()).collect();
    Tensor::from_f64(device, DType::BF16, &values, shape).unwrap()
}

fn map(device: &Device, tiles: &Tiles) -> Result<TensorMap, Error> {
    let Device::Cuda(cuda) = device else { panic!("not a CUDA device") };
    cuda.driver().tensor_map(tiles)
}

#[test]
fn a_product_of_four_warps_is_as_the_layouts_say() {
    let (a, b, c) = (values(64 * 16), values(5000)[5000 - 16 * 256..].to_vec(), values(64 * 256));
    let entry = |i: usize| (0..16).map(|k| a[i / 256 * 16 + k] * b[k * 256 + i % 256]).sum::<f32>() + c[i];
    let expected: Vec<f32> = (0..64 * 256).map(entry).collect();
    for schedule in Schedule::ALL {
        for at in [0, 16, 32, 48] {
            let device = emulator(90, schedule);
            let y = upload(&device, &c);
            let shape = Launch { shared_bytes: (64 + 256) * 128 + 1024, ..shape(1, 128) };
            launch(&device, &SOURCE, "book_wgmma", shape, args![&y, &upload(&device, &a), &upload(&device, &b), at]).unwrap();
            assert_eq!(y.to_vec::<f32>().unwrap(), expected, "from element {at}");
        }
    }
}

#[test]
fn a_tile_is_swizzled_and_zero_outside_of_the_matrix() {
    let (rows, columns) = (37, 88);
    let x = values(rows * columns);
    for schedule in Schedule::ALL {
        let device = emulator(90, schedule);
        let matrix = bf16(&device, &x, [rows, columns]);
        let map = map(&device, &Tiles::of(&matrix, 16)).unwrap();
        for (row, column) in [(0, 0), (16, 0), (32, 64), (30, 31), (40, 0), (0, 88)] {
            let y = Tensor::empty(&device, DType::F32, [16 * 64]).unwrap();
            let shape = Launch { shared_bytes: 16 * 128 + 1024, ..shape(1, 128) };
            launch(&device, &SOURCE, "tile", shape, args![&y, &map, row as i32, column as i32]).unwrap();
            let inside = |r: usize, c: usize| if r < rows && c < columns { x[r * columns + c] } else { 0.0 };
            let expected: Vec<f32> = (0..16 * 64).map(|i| inside(row + i / 64, column + i % 64)).collect();
            assert_eq!(y.to_vec::<f32>().unwrap(), expected, "from {row}, {column}");
        }
    }
}

#[test]
fn what_the_hardware_cannot_map_is_refused() {
    let device = emulator(90, Schedule::Ascending);
    let fits = Tiles::of(&bf16(&device, &values(64), [8, 8]), 8);
    assert!(map(&device, &fits).is_ok());
    let unfit =
        [Tiles { columns: 7, ..fits }, Tiles { data: fits.data + 2, ..fits }, Tiles { tile_rows: 257, ..fits }, Tiles { rows: 0, ..fits }];
    for tiles in unfit.into_iter().chain([Tiles { dtype: DType::F32, ..fits }]) {
        assert!(map(&device, &tiles).is_err(), "{tiles:?}");
    }
    assert!(map(&emulator(80, Schedule::Ascending), &fits).is_err());
}

/// What `relay` gives with a mistake, by number.
fn relay(device: &Device, mistake: i32) -> Result<Vec<f32>, String> {
    let tiles = 3;
    let matrix = bf16(device, &values(tiles * 256 * 64), [tiles * 256, 64]);
    let map = map(device, &Tiles::of(&matrix, 256)).unwrap();
    let y = Tensor::empty(device, DType::F32, [64 * 64]).unwrap();
    let shape = Launch { shared_bytes: 256 * 128 + 2048, ..shape(1, 256) };
    let launched = launch(device, &SOURCE, "relay", shape, args![&y, &map, tiles as i32, mistake]);
    launched.map_err(|error| error.to_string())?;
    Ok(y.to_vec().unwrap())
}

fn checked(schedule: Schedule) -> Device {
    Device::on(Box::new(Emulator::checked(Options { arch: Arch(90), schedule, host_threads: None }).unwrap().0))
}

#[test]
fn tiles_that_are_passed_on_through_barriers_arrive() {
    let x = values(3 * 256 * 64);
    let dot = |t: usize, i: usize, j: usize| -> f32 { (0..64).map(|k| x[(256 * t + i) * 64 + k] * x[(256 * t + j) * 64 + k]).sum() };
    let expected: Vec<f32> = (0..64 * 64).map(|n| (0..3).map(|t| dot(t, n / 64, n % 64)).sum()).collect();
    for schedule in Schedule::ALL {
        assert_eq!(relay(&emulator(90, schedule), 0).unwrap(), expected);
        assert_eq!(relay(&checked(schedule), 0).unwrap(), expected);
    }
}

#[test]
fn every_mistake_with_them_is_found() {
    for schedule in Schedule::ALL {
        let (fast, checked) = (emulator(90, schedule), checked(schedule));
        for (device, mistake, part) in [
            (&checked, 1, "shared memory at"),
            (&checked, 2, ""), // the next tile on its way over one that is read, or its arrival in a phase that others make
            (&checked, 3, "shared memory at"),
            (&fast, 5, "without a wgmma_fence"),
            (&checked, 6, "shared memory at"),
            (&fast, 7, "was not initialised"),
            (&fast, 8, "more arrivals than it was made for"),
            (&fast, 9, "no multiple of 1024"),
        ] {
            let said = relay(device, mistake).expect_err("no fault was found");
            assert!(said.contains(part) && said.contains("hopper.cu:"), "mistake {mistake}: {said}");
        }
    }
    // Products that nobody waited for are not there.
    let device = emulator(90, Schedule::Ascending);
    assert_ne!(relay(&device, 4).unwrap(), relay(&device, 0).unwrap());
}
