//! One kernel a check; a check that stopped working is noticed here.

use swara_kernels::device::Arg;
use swara_kernels::driver::emulator::Schedule;
use swara_kernels::driver::source::ALL_ARCHS;
use swara_kernels::driver::{Launch, Source};
use swara_kernels::{DType, Device, Error, Tensor, args};

use super::{emulator, launch, shape, upload, values};

pub(crate) static SOURCE: Source = Source { path: "must_fail.cu", text: include_str!("../must_fail/must_fail.cu"), archs: ALL_ARCHS };

fn ascending() -> Device {
    emulator(90, Schedule::Ascending)
}

/// `kernel(y, x)` on 128 threads under each schedule.
fn outputs(kernel: &str) -> Vec<Vec<f32>> {
    let run = |schedule| {
        let device = emulator(90, schedule);
        let x = upload(&device, &values(512));
        let mut y = Tensor::empty(&device, DType::F32, [128]).unwrap();
        launch(&device, &SOURCE, kernel, shape(1, 128), args![&mut y, &x]).unwrap();
        y.to_vec::<f32>().unwrap()
    };
    Schedule::ALL.map(run).into()
}

#[test]
fn a_missing_barrier_reads_nan_and_the_barrier_cures_it() {
    let expected: Vec<f32> = values(128).into_iter().rev().collect();
    assert!(outputs("barrier").iter().all(|y| *y == expected));
    assert!(outputs("no_barrier").iter().all(|y| y.iter().any(|v| v.is_nan())));
}

#[test]
fn a_wait_for_too_little_or_no_trailing_barrier_reads_poison() {
    let x = values(512);
    let expected: Vec<f32> = (0..128).map(|t| (0..4).map(|i| x[128 * i + 127 - t]).sum()).collect();
    assert!(outputs("waits").iter().all(|y| *y == expected));
    assert!(outputs("wrong_wait").iter().all(|y| y.iter().any(|v| v.is_nan())));
    assert!(outputs("no_trailing_barrier").iter().all(|y| *y != expected));
}

/// Launches `kernel(y, ..)` and returns what the emulator says; the device must be as good as new afterwards.
fn fault(device: &Device, kernel: &str, shape_of: Launch, more: &mut [Arg]) -> String {
    let y = upload(device, &[0f32; 64]);
    let mut arguments = vec![Arg::from(&y)];
    arguments.extend_from_slice(more);
    let error = launch(device, &SOURCE, kernel, shape_of, &mut arguments).and_then(|()| device.synchronize()).expect_err(kernel);
    assert!(matches!(&error, Error::Fault { kernel: k, .. } if k == kernel), "{error:?}");

    let x = upload(device, &values(32));
    let mut copy = Tensor::empty(device, DType::F32, [32]).unwrap();
    launch(device, &SOURCE, "copies", shape(1, 32), args![&mut copy, &x]).unwrap();
    assert_eq!(copy.to_vec::<f32>().unwrap(), values(32), "after {kernel}");
    error.to_string()
}

#[track_caller]
fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    }
}

#[test]
fn threads_at_different_barriers_are_named() {
    let text = fault(&ascending(), "divergent_barrier", shape(2, 64), &mut []);
    assert_says(&text, &["divergent_barrier: block [", "thread [", "divergent barrier", "must_fail.cu:4"]);
}

#[test]
fn a_dead_lock_says_who_waits_for_whom() {
    let text = fault(&ascending(), "dead_lock", shape(1, 32), &mut []);
    assert_says(&text, &["block [0, 0, 0], thread [0, 0, 0]", "dead-lock", "__syncwarp", "thread [16, 0, 0] waits in __syncthreads"]);
    let text = fault(&ascending(), "spins_forever", shape(1, 1), &mut []);
    assert_says(&text, &["dead-lock", "spins"]);
}

#[test]
fn shuffles_stay_inside_their_mask() {
    let text = fault(&ascending(), "outside_its_mask", shape(1, 32), &mut []);
    assert_says(&text, &["thread [16, 0, 0]", "__shfl_xor_sync", "outside its mask 0x0000ffff"]);
    let text = fault(&ascending(), "reads_outside_the_mask", shape(1, 32), &mut []);
    assert_says(&text, &["thread [0, 0, 0]", "__shfl_sync", "lane 20"]);
    let text = fault(&ascending(), "reads_an_exited_lane", shape(1, 32), &mut []);
    assert_says(&text, &["thread [8, 0, 0]", "lane 24", "has exited"]);
}

#[test]
fn writes_past_shared_memory_are_seen() {
    let text = fault(&ascending(), "past_a_shared_variable", shape(1, 1), args![32]);
    assert_says(&text, &["block [0, 0, 0]", "wrote 0 bytes past the end of __shared__ tile of 128 bytes"]);
    let dynamic = Launch { shared_bytes: 128, ..shape(1, 1) };
    assert_says(
        &fault(&ascending(), "past_dynamic_shared", dynamic, args![35]),
        &["wrote 12 bytes past the end of dynamic shared memory of 128"],
    );
    assert_says(&fault(&ascending(), "past_dynamic_shared", dynamic, args![-1]), &["wrote 1 bytes before dynamic shared memory"]);
    let text = fault(&ascending(), "index_out_of_bounds", shape(1, 1), args![32]);
    assert_says(&text, &["thread [0, 0, 0]", "index 32 is outside", "float [32]", "must_fail.cu:"]);
}

#[test]
fn writes_next_to_an_allocation_are_seen() {
    // 64 floats are in use; the pool's rounding to 256 bytes hides nothing.
    assert_says(&fault(&ascending(), "writes_at", shape(1, 1), args![64]), &["wrote 0 bytes past the end of an allocation of 256 bytes"]);
    assert_says(&fault(&ascending(), "writes_at", shape(1, 1), args![-1]), &["wrote 1 bytes before an allocation of 256 bytes"]);
    let device = ascending();
    let mut y = upload(&device, &[0f32; 33]);
    launch(&device, &SOURCE, "writes_at", shape(1, 1), args![&mut y, 32]).unwrap();
    let text = launch(&device, &SOURCE, "writes_at", shape(1, 1), args![&mut y, 33]).unwrap_err().to_string();
    assert_says(&text, &["wrote 0 bytes past the end of an allocation of 132 bytes"]);
}

#[test]
fn what_was_never_written_is_nan_in_the_output() {
    let device = ascending();
    for (kernel, shared_bytes) in [("reads_unwritten_shared", 0), ("reads_unwritten_dynamic", 128)] {
        let mut y = Tensor::empty(&device, DType::F32, [32]).unwrap();
        launch(&device, &SOURCE, kernel, Launch { shared_bytes, ..shape(1, 32) }, args![&mut y]).unwrap();
        let y = y.to_vec::<f32>().unwrap();
        assert!(y.iter().enumerate().all(|(i, v)| v.is_nan() == (i == 7)), "{kernel}: {y:?}");
    }
    // Fresh device memory, and memory that the pool hands out a second time.
    for _ in 0..2 {
        let x = Tensor::empty(&device, DType::F32, [32]).unwrap();
        let mut y = upload(&device, &[0f32; 32]);
        launch(&device, &SOURCE, "copies", shape(1, 32), args![&mut y, &x]).unwrap();
        assert!(y.to_vec::<f32>().unwrap().iter().all(|v| v.is_nan()));
    }
}

#[test]
fn a_race_changes_with_the_schedule() {
    for kernel in ["race", "race_in_a_warp"] {
        let threads = if kernel == "race" { 128 } else { 32 };
        let run = |schedule| {
            let device = emulator(90, schedule);
            let mut y = Tensor::empty(&device, DType::F32, [threads as usize]).unwrap();
            launch(&device, &SOURCE, kernel, shape(1, threads), args![&mut y]).unwrap();
            y.to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let results = Schedule::ALL.map(run);
        assert!(results.iter().any(|r| *r != results[0]), "{kernel}");
        assert_eq!(run(Schedule::Random(5)), run(Schedule::Random(5)), "the same seed repeats");
    }
}

#[test]
fn launches_over_the_limits_of_the_architecture_are_refused() {
    let device = ascending();
    assert_says(&fault(&device, "race", shape(1, 1025), &mut []), &["1025 threads per block; the limit is 1024"]);
    assert_says(&fault(&device, "race", Launch { block: [1, 1, 65], ..shape(1, 1) }, &mut []), &["block [1, 1, 65]"]);
    assert_says(&fault(&device, "race", Launch { grid: [1, 65536, 1], ..shape(1, 1) }, &mut []), &["grid [1, 65536, 1]"]);
    assert_says(
        &fault(&device, "race", Launch { cooperative: true, ..shape(1000, 1024) }, &mut []),
        &["cooperative launch of 1000 blocks"],
    );
    assert_says(&fault(&device, "too_much_static_shared", shape(1, 1), &mut []), &["53248 bytes of static shared memory with tile"]);
    for (arch, kilobytes) in [(75, 64), (80, 163), (86, 99), (89, 99), (90, 227), (100, 227), (120, 99)] {
        let device = emulator(arch, Schedule::Ascending);
        let shared = |shared_bytes| Launch { shared_bytes, ..shape(1, 32) };
        let text = fault(&device, "copies", shared((kilobytes << 10) + 1), args![0u64]);
        assert_says(&text, &["bytes of shared memory; the limit is", &(kilobytes << 10).to_string()]);
        let mut y = upload(&device, &[0f32; 32]);
        launch(&device, &SOURCE, "reads_unwritten_dynamic", shared(kilobytes << 10), args![&mut y]).unwrap();
        // Static memory counts as well.
        let text = fault(&device, "reads_unwritten_shared", shared(kilobytes << 10), &mut []);
        assert_says(&text, &["bytes of static", "of dynamic shared memory exceed"]);
    }
}

#[test]
fn a_crash_is_a_fault_of_the_kernel() {
    let device = ascending();
    let x = upload(&device, &values(64));
    assert_says(&fault(&device, "wild_address", shape(1, 1), args![0x10000u64]), &["accesses 0x10000"]);
    assert_says(&fault(&device, "traps", shape(1, 32), &mut []), &["thread [3, 0, 0]", "__trap() at must_fail.cu"]);
    assert_says(&fault(&device, "overflows_its_stack", shape(1, 1), &mut []), &["stack"]);
    if cfg!(target_arch = "x86_64") {
        // Other processors load vectors from anywhere and divide by zero in silence.
        assert_says(&fault(&device, "misaligned_vector", shape(1, 1), args![&x]), &["thread [0, 0, 0]", "not aligned"]);
        assert_says(&fault(&device, "divides", shape(1, 1), args![0]), &["divides an integer by zero"]);
    }
}

#[test]
fn asynchronous_copies_and_matrix_loads_check_their_addresses() {
    let device = ascending();
    let x = upload(&device, &values(64));
    let shared = Launch { shared_bytes: 1024, ..shape(1, 1) };
    assert_says(
        &fault(&device, "cp_async_misaligned", shared, args![&x]),
        &["cp_async16 at must_fail.cu", "is not aligned to its 16 bytes"],
    );
    let text = fault(&device, "cp_async_past_the_source", shared, args![&x, 64]);
    assert_says(&text, &["reads outside device memory: 16 bytes at offset 256 leave an allocation of 256 bytes"]);
    assert_says(&fault(&device, "cp_async_to_global", shared, args![&x]), &["writes outside shared memory"]);
    let warp = Launch { shared_bytes: 1024, ..shape(1, 32) };
    assert_says(&fault(&device, "ldmatrix_misaligned", warp, &mut []), &["ldmatrix", "not aligned to 16 bytes"]);
    assert_says(&fault(&device, "half_a_warp_multiplies", warp, &mut []), &["mma_m16n8k8_f16", "all 32 lanes"]);
}

#[test]
fn wrong_numbers_of_arguments_and_unknown_kernels_are_errors() {
    let device = ascending();
    let y = upload(&device, &[0f32; 64]);
    let text = launch(&device, &SOURCE, "copies", shape(1, 32), args![&y]).unwrap_err().to_string();
    assert_says(&text, &["copies with 1 arguments; it has 2"]);
    assert_says(
        &launch(&device, &SOURCE, "absent", shape(1, 32), args![&y]).unwrap_err().to_string(),
        &["must_fail.cu", "no kernel absent"],
    );
    static BROKEN: Source = Source { path: "broken.cu", text: "extern \"C\" __global__ void broken(float* y) { y[0] = z; }", archs: &[90] };
    let text = launch(&device, &BROKEN, "broken", shape(1, 1), args![&y]).unwrap_err().to_string();
    assert_says(&text, &["compiling broken.cu", "broken.cu:1:", "error"]);
    let old = emulator(75, Schedule::Ascending);
    assert_says(&launch(&old, &BROKEN, "broken", shape(1, 1), args![]).unwrap_err().to_string(), &["not for sm_75"]);
}
