//! Kernels that are broken on purpose, each a little: the cases of every operation must notice.

use std::fs;
use std::path::Path;

use swara_kernels::driver::source::use_directory;
use swara_kernels::ops::REGISTRY;
use swara_kernels::{DType, Error};
use swara_verify::harness::{self, Selection, Subject};

/// A file below `kernels`, what stands there, and what is put in its place.
const BREAKS: &[(&str, &str, &str)] = &[
    // The sine's leading coefficient in seven digits.
    ("cuda/snake.cuh", "3.1415926369f", "3.141592f"),
    // Accumulators of f32 products that lose their last six bits.
    ("cuda/gemm.cuh", "sum[i][j][r][c] += fa[i][r] * fb[j][c];", "sum[i][j][r][c] = lossy(sum[i][j][r][c] + fa[i][r] * fb[j][c]);"),
    (
        "cuda/gemm.cuh",
        "/// A number written as major",
        "__device__ __forceinline__ float lossy(float x) { return __uint_as_float(__float_as_uint(x) & ~63u); }\n/// A number written as major",
    ),
    // The root of one half in four digits.
    ("cuda/activation.cuh", "0.707106769f", "0.7071f"),
    // A missing barrier.
    (
        "src/ops/weight_norm/weight_norm.cu",
        "shared[thread] += shared[thread + half];\n        __syncthreads();",
        "shared[thread] += shared[thread + half];",
    ),
    // No weight decay.
    ("src/ops/adamw/adamw.cu", "keep * p[j]", "p[j]"),
    // A square that is off by a millionth.
    ("src/ops/loss/loss.cu", "kind == L1 ? fabsf(d) : d * d", "kind == L1 ? fabsf(d) : d * (d + 1e-6f)"),
    ("src/ops/loss/loss.cu", "log10f(x + floor) - log10f(y + floor) : x - y", "log10f(x + floor) - log10f(y + 1.001f * floor) : x - y"),
    // A polynomial without its fourth term.
    ("src/ops/stft/stft.cu", "-1.0f / 5040", "0.0f / 5040"),
    // Sums in bf16.
    (
        "src/ops/codebook/codebook.cu",
        "sum = __fadd_rn(sum, x[(size_t)i * d + column])",
        "sum = to_float(from_float<bf16>(sum + x[(size_t)i * d + column]))",
    ),
    // A factor that is off by one in a million.
    ("src/ops/elementwise/elementwise.cu", "return x * factor;", "return x * (factor * 1.000001f);"),
    // The last row of a block is left out.
    (
        "cuda/block.cuh",
        "end = !active ? 0 : start + rows_per_block < rows ? start + rows_per_block : rows;",
        "end = !active ? 0 : start + rows_per_block < rows ? start + rows_per_block - 1 : rows;",
    ),
    // The last dimension of a distance.
    ("src/ops/rvq_search/rvq_search.cu", "base + j < d;", "base + j < d - 1;"),
    // A draw from logits that other blocks have yet to write.
    ("src/ops/depth/depth.cu", "if (phase.meets)", "if (phase.meets && phase.work != LOGITS)"),
    // A variance without its epsilon.
    ("cuda/norm.cuh", "row_sum(squares) / channels + epsilon", "row_sum(squares) / channels"),
    // A coefficient of the sine in two digits.
    ("src/ops/rope/rope.cu", "0.0796802176f", "0.08f"),
    // A bias that is added twice.
    ("cuda/linear.cuh", "if (bias) sum += bias[n];", "if (bias) sum += 2 * bias[n];"),
    // Sums that are not rescaled when a larger score comes.
    ("cuda/attention.cuh", "sum = fmaf(sum, rescale, weights);", "sum += weights;"),
    // A reflection that repeats the end.
    ("src/ops/pad/pad.cu", "2 * (reflected - 1) - p", "2 * reflected - 1 - p"),
    // A peak that is off by a hundred-thousandth.
    ("src/ops/peak_norm/peak_norm.cu", "level / (block_max(peak, 0.0f) + epsilon)", "level / (1.00001f * block_max(peak, 0.0f) + epsilon)"),
    // A column that is read a step too early.
    ("src/ops/delay/delay.cu", "s <= delay ? initial[k]", "s < delay ? initial[k]"),
    // An output that is not squashed.
    ("src/ops/lstm/lstm.cu", "* tanhf(c[j]);", "* c[j];"),
    // The last three bits of what is added.
    ("src/ops/embedding/embedding.cu", "__fadd_rn(sum[j], v[u][j]);", "sum[j] + __uint_as_float(__float_as_uint(v[u][j]) & ~7u);"),
    // A round of Philox too few.
    ("cuda/rng.cuh", "round < 10", "round < 9"),
    // A right answer that counts for a ten-thousandth less.
    ("src/ops/cross_entropy/cross_entropy.cu", "first + j == target ? 1.0f", "first + j == target ? 0.9999f"),
    // A bias that is off by one distance.
    ("src/ops/relative_softmax/relative_softmax.cu", "bias += queries - 1 - i;", "bias += i > 0 ? queries - i : queries - 1;"),
];

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy(&path, &target);
        } else if path.extension().is_some_and(|e| e == "cu" || e == "cuh") {
            fs::copy(&path, &target).unwrap();
        }
    }
}

#[test]
fn every_op_notices_a_kernel_that_is_slightly_wrong() {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels");
    let scratch = tempfile::tempdir().unwrap();
    for folder in ["cuda", "src"] {
        copy(&kernels.join(folder), &scratch.path().join(folder));
    }
    for (file, from, to) in BREAKS {
        let path = scratch.path().join(file);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{file} no longer has {from:?}");
        fs::write(&path, text.replacen(from, to, 1)).unwrap();
    }
    use_directory(scratch.path().to_owned());
    let emulator = match Subject::emulator(None, None) {
        Ok(emulator) => emulator,
        Err(Error::Unavailable { why, hint, .. }) => {
            println!("skipped: the emulator, {why}; {}", hint.unwrap_or_default());
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let selection = Selection { dtype: Some(DType::F32), ..Selection::default() };
    let report = harness::run(&emulator, selection, |_, _, _| {});
    for op in REGISTRY {
        let of_op = || report.cases.iter().filter(|c| c.op == op.name);
        let (failed, total) = (of_op().filter(|c| !c.pass).count(), of_op().count());
        println!("{}: {failed} of {total} cases fail", op.name);
        // A kernel that does not compile would fail as well, and prove nothing.
        assert!(of_op().all(|c| !c.error.as_ref().is_some_and(|e| e.contains("compiling"))), "{} does not compile", op.name);
        assert!(failed > 0, "{}: no case notices that its kernels are broken", op.name);
    }
}
