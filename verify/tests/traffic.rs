//! What kernels move, counted by the emulator, is what the operations say that they move; and warps ask for whole sectors.

use std::collections::{BTreeMap, BTreeSet};

use swara_kernels::Error;
use swara_kernels::ops::REGISTRY;
use swara_verify::harness::{self, Selection, Subject};
use swara_verify::{KernelTraffic, Outcome, Report, Traffic};

/// Operations a byte below which memory is the limit of every GPU that kernels are built for. The least ratios of peak to
/// bandwidth are about 10 in f32 (A100: 19.5 Tflop/s beside 1.9 TB/s), and 76 on tensor cores (RTX 3090: 71 beside 0.94).
const RIDGE: f64 = 10.0;
const TENSOR_CORE_RIDGE: f64 = 64.0;
/// Operations whose products of 16-bit types use tensor cores.
const PRODUCTS: [&str; 6] = ["matmul", "conv1d", "conv2d", "conv_transpose1d", "linear", "attention"];
/// Below this the sectors at the ends of tensors weigh too much.
const LEAST_BYTES: usize = 64 << 10;
/// How far counted and stated traffic may be apart.
const SLACK: f64 = 0.05;
const LEAST_COALESCING: f64 = 0.9;
/// A kernel that moves less than this share of a case is not asked to coalesce: the tail of a reduction is one sector.
const TAIL: f64 = 0.05;

/// Kernels that no memory-bound case shows, by the start of their name.
const NEVER_BOUND: &[(&str, &str)] = &[
    ("matmul_nn_128x128_f32", "is chosen for many tiles only: compute-bound"),
    ("linear_128x128_f32", "likewise"),
    ("linear_tf32x3_128x128_f32", "likewise"),
    ("attention_many_64_int8_f32", "its rows have more products than codes have bytes"),
    ("attention_many_128_int8_f32", "likewise"),
    ("clip_scale", "one number"),
    ("delay_", "a few numbers a stream"),
    ("embedding_split", "likewise"),
];

/// Kernels, by the start of their name, and cases, by a part of theirs, that need not coalesce.
const SCATTERED: &[(&str, &str, &str)] = &[
    ("conv1d_dw_64x64", "x1->", "windows of one channel are read element by element"),
    ("conv1d_to_one", "stream", "the position of a stream's ring is read with every element of its past"),
    ("conv1d", "16->40", "rows of 80 bytes begin amid a sector"),
    ("conv1d", "5->129", "odd rows"),
    ("conv1d", "x33->16", "odd rows"),
    ("conv1d_reset", "stream 4x60x32", "a warp reads its stream's mask, a sector for a byte"),
    ("conv1d_prime", "primed", "likewise, and its position"),
    ("matmul", "33x129", "odd rows"),
    ("conv_transpose1d", "33->16", "odd rows"),
    ("linear", "2x500 to", "rows of 1000 bytes do not divide into vectors"),
    ("linear", "16x2051", "odd rows"),
    ("linear", "500x33", "odd rows"),
    ("linear_wgmma", "129x72", "odd rows"),
    ("cross_entropy", "70x1040", "each of a row's warps reads its target and weight, a sector for four bytes"),
    ("attention", "x40 ", "rows of 80 bytes begin amid a sector"),
    ("attention", "x72 ", "rows of 144 bytes begin amid a sector"),
    ("attention_delta", "x16 ", "a row is one sector, and its sum takes another"),
    ("attention_combine", "step", "each of a head's warps reads what lies behind the sums of a span, a sector for eight bytes"),
    ("attention_many_128_f32", "x80 window 1025", "the same eight bytes are written"),
    ("attention", "x34 ", "odd rows"),
    ("attention", "x33 ", "odd rows"),
    ("attention", "x10 ", "odd rows"),
    ("attention_many_128_int8", "x80 window 1025", "80 codes begin amid a sector"),
    ("rope_append_int8", "x6x32", "the factor of 32 codes is four bytes of a sector"),
    ("depth", "4 bits mins", "the scale and the least of 32 codes are four bytes of a sector each"),
    ("embedding_int8", "9 tables", "the scale of a row is four bytes of a sector"),
    ("rvq", "5x130", "odd rows"),
    ("rvq", "31x33", "odd rows"),
    ("relative_softmax", "x", "a row's biases begin amid a sector, one float before those of the row above"),
    ("rvq_decode", "33x16", "a stage's codes lie a row of ten codes apart, for every 64 bytes"),
];

fn memory_bound(op: &str, dtype: &str, traffic: &Traffic) -> bool {
    let ridge = if PRODUCTS.contains(&op) && dtype != "f32" { TENSOR_CORE_RIDGE } else { RIDGE };
    traffic.cost_bytes >= LEAST_BYTES && (traffic.flops as f64) < ridge * traffic.cost_bytes as f64
}

fn moved(kernel: &KernelTraffic) -> u64 {
    kernel.read_bytes + kernel.written_bytes
}

/// What is wrong with the traffic of a memory-bound case.
fn complaints(case: &str, traffic: &Traffic) -> Vec<String> {
    let mut found = Vec::new();
    let of_cost = traffic.bytes as f64 / traffic.cost_bytes as f64;
    let holds = (of_cost - 1.0).abs() <= SLACK; // NaN does not
    if !holds {
        found.push(format!("{case}: moves {} bytes, {of_cost:.3} of its cost {}", traffic.bytes, traffic.cost_bytes));
    }
    for kernel in scattered(traffic).filter(|k| excuse(case, k).is_none()) {
        found.push(format!("{case}: {} asks for {:.0} % of the sectors it touches", kernel.kernel, 100.0 * kernel.coalescing));
    }
    found
}

fn scattered(traffic: &Traffic) -> impl Iterator<Item = &KernelTraffic> {
    let counts = move |k: &&KernelTraffic| moved(k) as f64 >= TAIL * traffic.bytes as f64;
    let coalesces = |k: &KernelTraffic| k.coalescing >= LEAST_COALESCING;
    traffic.kernels.iter().filter(counts).filter(move |k| !coalesces(k))
}

/// Which of [`SCATTERED`] is about this kernel.
fn excuse(case: &str, kernel: &KernelTraffic) -> Option<usize> {
    SCATTERED.iter().position(|(name, part, _)| kernel.kernel.starts_with(name) && case.contains(part))
}

fn print(case: &Outcome, traffic: &Traffic) {
    println!(
        "{} {} {}: {} bytes, {:.3} of its cost, {:.1} flops a byte",
        case.op,
        case.case,
        case.dtype,
        traffic.bytes,
        traffic.bytes as f64 / traffic.cost_bytes as f64,
        traffic.flops as f64 / traffic.cost_bytes as f64
    );
    for k in &traffic.kernels {
        println!(
            "    {:34} {:8} bytes  coalesced {:3.0} %  asked/moved {:5.2}  bank conflicts {:3.0} %",
            k.kernel,
            moved(k),
            100.0 * k.coalescing,
            k.reuse,
            100.0 * k.bank_conflicts
        );
    }
}

/// Kernels of the registry that no judged case launched, with the reason why that is well.
fn not_shown(judged: &[(&Outcome, &Traffic)]) -> BTreeMap<String, Option<&'static str>> {
    let shown = |name: &str| judged.iter().any(|(_, t)| t.kernels.iter().any(|k| k.kernel == name));
    let kernels = REGISTRY.iter().flat_map(|op| op.sources).flat_map(|source| source.kernels().unwrap());
    let reason = |name: &str| NEVER_BOUND.iter().find(|(start, _)| name.starts_with(start)).map(|(_, why)| *why);
    kernels.filter(|name| !shown(name)).map(|name| (name.clone(), reason(&name))).collect()
}

fn counted() -> Option<Report> {
    match Subject::checked(None, None) {
        Ok(emulator) => Some(harness::run(&emulator, Selection::default(), |_, _, _| {})),
        Err(Error::Unavailable { why, hint, .. }) => {
            println!("skipped: the emulator, {why}; {}", hint.unwrap_or_default());
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn memory_bound_kernels_move_what_their_operation_states_in_whole_sectors() {
    let Some(report) = counted() else { return };
    let judged: Vec<(&Outcome, &Traffic)> =
        report.cases.iter().filter_map(|c| Some((c, c.traffic.as_ref()?))).filter(|(c, t)| memory_bound(&c.op, &c.dtype, t)).collect();
    let (mut found, mut excuses) = (Vec::new(), BTreeSet::new());
    for (case, traffic) in &judged {
        print(case, traffic);
        excuses.extend(scattered(traffic).filter_map(|k| excuse(&case.case, k)));
        found.extend(complaints(&format!("{} {} {}", case.op, case.case, case.dtype), traffic));
    }
    for (n, (kernel, case, why)) in SCATTERED.iter().enumerate() {
        println!("need not coalesce: {kernel} {case}: {why}");
        if !excuses.contains(&n) {
            found.push(format!("{kernel} {case} coalesces: nothing to excuse"));
        }
    }
    let not_shown = not_shown(&judged);
    for (start, _) in NEVER_BOUND {
        assert!(not_shown.keys().any(|kernel| kernel.starts_with(start)), "{start} is judged: nothing to excuse");
    }
    for (kernel, reason) in not_shown {
        match reason {
            Some(why) => println!("not judged: {kernel}: {why}"),
            None => found.push(format!("{kernel}: no memory-bound case of {LEAST_BYTES} bytes launches it")),
        }
    }
    println!("{} of {} cases are judged", judged.len(), report.cases.len());
    let failed: Vec<_> = report.cases.iter().filter(|c| !c.pass).collect();
    assert!(report.holds(), "{} fail: {failed:#?}", report.failed);
    assert!(found.is_empty(), "{} complaints:\n{}", found.len(), found.join("\n"));
}

fn example(cost_bytes: usize, coalescing: f64) -> Traffic {
    let kernel = |kernel: &str, read_bytes, written_bytes, coalescing| KernelTraffic {
        kernel: kernel.to_owned(),
        launches: 1,
        read_bytes,
        written_bytes,
        coalescing,
        reuse: 1.0,
        bank_conflicts: 0.0,
    };
    let kernels = vec![kernel("sum_f32", 90_000, 9_000, coalescing), kernel("finish_sum", 900, 100, 0.1)];
    Traffic { cost_bytes, flops: cost_bytes, bytes: 100_000, kernels }
}

#[test]
fn a_cost_that_is_wrong_by_a_tenth_is_noticed() {
    let judge = |cost, coalescing| complaints("reduce sum f32", &example(cost, coalescing));
    assert!(judge(100_000, 1.0).is_empty() && judge(97_000, 0.9).is_empty() && judge(104_000, 1.0).is_empty());
    assert_eq!(judge(110_000, 1.0).len(), 1);
    assert_eq!(judge(90_000, 1.0).len(), 1);
    assert_eq!(judge(200_000, 0.8).len(), 2);
    assert_eq!(judge(100_000, f64::NAN).len(), 1);
}

#[test]
fn small_and_compute_bound_cases_are_not_judged() {
    let busy = Traffic { flops: 2_000_000, ..example(100_000, 1.0) };
    assert!(memory_bound("matmul", "f32", &example(100_000, 1.0)));
    assert!(!memory_bound("matmul", "f32", &example(60_000, 1.0)));
    assert!(!memory_bound("matmul", "f32", &busy) && memory_bound("matmul", "bf16", &busy) && !memory_bound("snake", "bf16", &busy));
}
