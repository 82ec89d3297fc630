//! A checked emulator: one kernel a fault that it must find, one beside it that is right, and traffic counted by hand.

use swara_kernels::device::Arg;
use swara_kernels::driver::emulator::{Emulator, Options, Schedule, Trace, Traffic};
use swara_kernels::driver::{Arch, Launch};
use swara_kernels::{DType, Device, Error, Tensor, args};

use super::must_fail::SOURCE;
use super::{launch, shape, upload, values};

fn checked(schedule: Schedule) -> (Device, Trace) {
    let options = Options { arch: Arch(90), schedule, host_threads: None };
    let (emulator, trace) = Emulator::checked(options).expect("these tests need a C++ compiler");
    (Device::on(Box::new(emulator)), trace)
}

/// Every schedule must give the same answer.
fn on_every_schedule(kernel: &str, shape: Launch, arguments: impl Fn(&Device) -> Vec<Tensor>, more: &mut [Arg]) -> Result<(), String> {
    let run = |schedule| {
        let (device, _) = checked(schedule);
        let tensors = arguments(&device);
        let mut all: Vec<Arg> = tensors.iter().map(Arg::from).collect();
        all.extend_from_slice(more);
        match launch(&device, &SOURCE, kernel, shape, &mut all) {
            Ok(()) => Ok(()),
            Err(Error::Fault { kernel: named, what, .. }) if named == kernel => Err(what),
            Err(other) => panic!("{kernel}: {other}"),
        }
    };
    let [first, second, third] = Schedule::ALL.map(run);
    assert_eq!([first.is_ok(); 2], [second.is_ok(), third.is_ok()], "{kernel}: {first:?}, {second:?}, {third:?}");
    first
}

#[track_caller]
fn says(outcome: Result<(), String>, parts: &[&str]) {
    let text = outcome.expect_err("no fault was found");
    for part in parts {
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    }
}

fn y_and_x(device: &Device) -> Vec<Tensor> {
    vec![Tensor::empty(device, DType::F32, [128]).unwrap(), upload(device, &values(512))]
}

fn y(device: &Device) -> Vec<Tensor> {
    vec![Tensor::empty(device, DType::F32, [128]).unwrap()]
}

#[test]
fn a_missing_barrier_is_a_race_and_the_barrier_cures_it() {
    on_every_schedule("barrier", shape(1, 128), y_and_x, &mut []).unwrap();
    says(on_every_schedule("no_barrier", shape(1, 128), y_and_x, &mut []), &["must_fail.cu:10", "nothing has written"]);
    on_every_schedule("waits", shape(1, 128), y_and_x, &mut []).unwrap();
    says(on_every_schedule("no_trailing_barrier", shape(1, 128), y_and_x, &mut []), &["shared memory", "must_fail.cu:"]);
}

#[test]
fn a_vector_at_no_multiple_of_its_size_is_found() {
    says(on_every_schedule("misaligned_pair", shape(1, 32), y_and_x, &mut []), &["8 bytes", "no multiple", "must_fail.cu:"]);
}

#[test]
fn a_race_needs_no_effect_to_be_seen() {
    says(on_every_schedule("race", shape(1, 128), y, &mut []), &["race: writes shared memory", "block 0 has written", "nothing to order"]);
    says(on_every_schedule("race_without_effect", shape(1, 32), y, &mut []), &["race: writes shared memory"]);
    says(on_every_schedule("race_of_blocks", shape(2, 32), y, &mut []), &["race: writes byte 0 of an allocation", "must_fail.cu"]);
}

#[test]
fn lanes_of_a_warp_are_in_step_only_after_syncwarp() {
    on_every_schedule("warp_in_step", shape(1, 32), y, &mut []).unwrap();
    let outcome = on_every_schedule("warp_out_of_step", shape(1, 32), y, &mut []);
    assert!(outcome.is_err());
}

#[test]
fn blocks_are_ordered_by_fences_and_atomics() {
    let cooperative = Launch { cooperative: true, ..shape(4, 64) };
    let arguments = |device: &Device| {
        vec![Tensor::empty(device, DType::F32, [256]).unwrap(), Tensor::empty(device, DType::F32, [4]).unwrap(), upload(device, &[0i32])]
    };
    on_every_schedule("blocks_meet", cooperative, arguments, &mut []).unwrap();
    on_every_schedule("blocks_count", cooperative, arguments, &mut []).unwrap();
    says(on_every_schedule("blocks_without_a_fence", cooperative, arguments, &mut []), &["race: reads byte", "nothing to order"]);
    on_every_schedule("blocks_read_and_meet", cooperative, arguments, &mut []).unwrap();
    says(on_every_schedule("blocks_read", cooperative, arguments, &mut []), &["race: ", "nothing to order"]);
}

#[test]
fn updates_of_others_are_ordered_by_a_barrier_only() {
    let total = |device: &Device| vec![upload(device, &[0i32, 0])];
    on_every_schedule("counts_together", shape(1, 64), total, &mut []).unwrap();
    says(on_every_schedule("reads_own_update", shape(1, 64), total, &mut []), &["race: ", "nothing to order"]);
    says(on_every_schedule("reads_own_update", shape(1, 32), total, &mut []), &["race: ", "nothing to order"]);
}

#[test]
fn one_warp_does_not_release_what_another_has_read() {
    let cooperative = Launch { cooperative: true, ..shape(2, 64) };
    let arguments =
        |device: &Device| vec![Tensor::empty(device, DType::F32, [64]).unwrap(), upload(device, &values(1)), upload(device, &[0i32])];
    on_every_schedule("hands_over", cooperative, arguments, &mut []).unwrap();
    says(on_every_schedule("hands_over_too_early", cooperative, arguments, &mut []), &["race: ", "nothing to order"]);
}

#[test]
fn a_copy_is_not_there_before_it_was_waited_for() {
    says(on_every_schedule("wrong_wait", shape(1, 128), y_and_x, &mut []), &["while the cp.async of must_fail.cu:"]);
    says(on_every_schedule("reads_a_copy_too_early", shape(1, 32), y_and_x, &mut []), &["reads shared memory", "while the cp.async"]);
}

#[test]
fn reads_are_inside_and_of_something_written() {
    says(
        on_every_schedule("reads_past_shared", shape(1, 32), y, args![1]),
        &["reads 4 bytes", "outside every allocation and variable", "must_fail.cu:"],
    );
    on_every_schedule("reads_past_shared", shape(1, 32), y, args![0]).unwrap();
    let one_short = |device: &Device| vec![Tensor::empty(device, DType::F32, [32]).unwrap(), upload(device, &values(31))];
    says(on_every_schedule("copies", shape(1, 32), one_short, &mut []), &["reads 4 bytes at offset 124 of an allocation of 124 bytes"]);
    // An integer carries no NaN that would tell.
    let unwritten = |device: &Device| [32, 32].map(|n| Tensor::empty(device, DType::I32, [n]).unwrap()).into();
    says(
        on_every_schedule("counts_unwritten", shape(1, 32), unwritten, &mut []),
        &["reads byte 0 of an allocation", "must_fail.cu:", "which nothing has written"],
    );
    says(on_every_schedule("unwritten_but_unused", shape(1, 32), y, &mut []), &["reads shared memory", "nothing has written"]);
    says(on_every_schedule("wild_address", shape(1, 1), y, args![0x10000u64]), &["reads 4 bytes at 0x10000, outside"]);
    let (device, _) = checked(Schedule::Ascending);
    assert!(Tensor::empty(&device, DType::I32, [4]).unwrap().to_f64().unwrap_err().to_string().contains("nothing has written"));
}

fn traffic(kernel: &str, shape: Launch, y: usize, x: usize, more: &mut [Arg]) -> Traffic {
    let (device, trace) = checked(Schedule::Ascending);
    let (y, x) = (Tensor::empty(&device, DType::F32, [y]).unwrap(), upload(&device, &values(x)));
    let mut arguments = vec![Arg::from(&y), Arg::from(&x)];
    arguments.extend_from_slice(more);
    launch(&device, &SOURCE, kernel, shape, &mut arguments).unwrap();
    let found = trace.take();
    assert_eq!(found.keys().collect::<Vec<_>>(), [kernel]);
    assert!(trace.take().is_empty());
    found[kernel]
}

#[test]
fn global_traffic_is_counted_by_sector() {
    let t = traffic("strided", shape(4, 128), 512, 512, args![512, 1]);
    assert_eq!((t.read.requests, t.read.sectors, t.read.distinct, t.write.distinct), (16, 64, 64, 64));
    assert_eq!((t.coalescing(), t.reuse(), t.bytes()), (1.0, 1.0, 4096));
    // Every eighth float: each in a sector of its own.
    let t = traffic("strided", shape(1, 128), 128, 1024, args![128, 8]);
    assert_eq!((t.read.sectors, t.read.bytes, t.read.distinct), (128, 512, 128));
    // One float for all: one sector, read by each warp.
    let t = traffic("strided", shape(1, 128), 128, 1, args![128, 0]);
    assert_eq!((t.read.requests, t.read.sectors, t.read.distinct), (4, 4, 1));
    // A vector is one request.
    let t = traffic("vectors", shape(1, 64), 256, 256, &mut []);
    assert_eq!((t.read.requests, t.read.sectors, t.write.requests, t.write.sectors), (2, 32, 2, 32));
    assert_eq!(t.coalescing(), 1.0);
}

#[test]
fn bank_conflicts_are_counted() {
    let tile = Launch { block: [32, 32, 1], ..shape(1, 1) };
    let t = traffic("transpose_in_conflict", tile, 1024, 1024, &mut []);
    assert_eq!((t.shared.requests, t.shared.ideal, t.shared.wavefronts), (64, 64, 32 + 32 * 32));
    let t = traffic("transpose_padded", tile, 1024, 1024, &mut []);
    assert_eq!((t.shared.wavefronts, t.bank_conflicts()), (64, 0.0));
}

#[test]
fn a_dependent_touches_nothing_before_it_waits_for_the_kernels_before() {
    on_every_schedule("dependent", shape(2, 64), y_and_x, &mut []).unwrap();
    says(
        on_every_schedule("dependent_reads_early", shape(2, 64), y_and_x, &mut []),
        &["reads 4 bytes", "before it waits", "must_fail.cu:"],
    );
    says(on_every_schedule("dependent_writes_early", shape(1, 64), y_and_x, &mut []), &["writes 4 bytes", "before it waits"]);
    says(on_every_schedule("dependent_copies_early", shape(1, 64), y_and_x, &mut []), &["cp_async4", "before it waits"]);
    says(on_every_schedule("dependent_never_waits", shape(1, 64), y_and_x, &mut []), &["never waits"]);
}
