//! Nearest-codeword search, residual vector quantisation and its decoder.
//!
//! ```text
//! nearest   code_i = argmin_k |x_i - c_k|^2                        Metric::Euclidean
//!           code_i = argmax_k <x_i / |x_i|, c_k / |c_k|>           Metric::Cosine, norms at least 1e-12
//! search    r = x;  for each stage s:  code_s = nearest(r, C_s);  r -= C_s[code_s]
//! decode    y = sum_s C_s[code_s]
//! ```
//! `x [N, D]`, codebooks `[K_s, D]` of different sizes, codes i32. Ties go to the lowest index; a row of NaN gets code 0. Where a row may
//! have fewer stages than others ([`Codebooks::decode_present`]), a code of -1 adds nothing.
//!
//! Distances are summed directly, `fma(x - c, x - c, sum)` in the order of the dimensions, in f32. The expanded form
//! `|c|^2 - 2 x.c` would halve the arithmetic but cancels: its error is relative to `|x|^2` instead of to the distance, and
//! late stages have small distances. With the direct form the code is the argmin to a few f32 roundings of the distance
//! itself, and because every device sums in the same order, they all find the same code.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::case::{Case, Check, Cost, Fill, Input, Inputs, Op};
use crate::driver::Source;
use crate::driver::source::ALL_ARCHS;
use crate::ops::codebook;
use crate::tolerance::Tolerance;
use crate::{DType, Device, Error, Result, Tensor, dispatch_real, span};

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

pub static SOURCE: Source = Source { path: "ops/rvq_search/rvq_search.cu", text: include_str!("rvq_search.cu"), archs: ALL_ARCHS };
pub static OP: Op = Op { name: NAME, sources: &[&SOURCE], cases };

const NAME: &str = "rvq_search";
/// Smallest norm that [`Metric::Cosine`] divides by (`torch.nn.functional.normalize`).
const COSINE_EPSILON: f64 = 1e-12;

/// What "nearest" means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Least squared distance (EnCodec, Mimi).
    Euclidean,
    /// Largest cosine (DAC's factorised codes).
    Cosine,
}

/// Codes `[N]` of the codewords nearest to the rows of `x [N, D]` in `codebook [K, D]`.
pub fn nearest(x: &Tensor, codebook: &Tensor, metric: Metric) -> Result<Tensor> {
    check(x, &[codebook])?;
    let mut codes = Tensor::empty(&x.device(), DType::I32, [x.shape()[0], 1])?;
    nearest_column(x, codebook, metric, &mut codes, 0)?;
    codes.reshape([x.shape()[0]])
}

/// [`nearest`] into a column of `codes [N, S]`.
pub fn nearest_column(x: &Tensor, codebook: &Tensor, metric: Metric, codes: &mut Tensor, column: usize) -> Result<()> {
    let _span = span::op("rvq_search.nearest");
    check(x, &[codebook])?;
    check_operand("codes", codes, DType::I32, &x.device())?;
    if codes.shape().len() != 2 || codes.shape()[0] != x.shape()[0] || codes.shape()[1] <= column {
        return Err(Error::shape(NAME, "codes", format!("[{}, S > {column}]", x.shape()[0]), codes.shape()));
    }
    match x.device() {
        Device::Cpu => dispatch_real!(NAME, x.dtype(), T => cpu::nearest_column::<T>(x, codebook, metric, codes, column)),
        Device::Cuda(gpu) => cuda::nearest(&gpu, x, codebook, metric, (codes, column)),
    }
}

/// One residual stage: Euclidean codes `[N]` and `x - codebook[codes]`.
pub fn stage(x: &Tensor, codebook: &Tensor) -> Result<(Tensor, Tensor)> {
    let _span = span::op("rvq_search.stage");
    check(x, &[codebook])?;
    match x.device() {
        Device::Cpu => dispatch_real!(NAME, x.dtype(), T => {
            let codes = cpu::nearest::<T>(x, codebook, Metric::Euclidean)?;
            let mut residual = x.copy()?;
            cpu::subtract::<T>(&mut residual, codebook, codes.as_slice()?)?;
            Ok((codes, residual))
        }),
        Device::Cuda(gpu) => cuda::stage(&gpu, x, codebook),
    }
}

/// All residual stages: codes `[N, S]` and what is left of `x` after the last one, for `codebooks[s] [K_s, D]`.
///
/// On CUDA up to eight stages are one launch if `N` is small enough for streaming, and one launch a stage otherwise.
pub fn search(x: &Tensor, codebooks: &[&Tensor]) -> Result<(Tensor, Tensor)> {
    let _span = span::op("rvq_search.search");
    check(x, codebooks)?;
    let mut codes = Tensor::empty(&x.device(), DType::I32, [x.shape()[0], codebooks.len()])?;
    let residual = match x.device() {
        Device::Cpu => {
            dispatch_real!(NAME, x.dtype(), T => cpu::search::<T>(x, codebooks.iter().map(|b| cpu::pack::<T>(b)), &mut codes, 0))?
        }
        Device::Cuda(gpu) => cuda::search(&gpu, x, codebooks, (&codes, 0))?,
    };
    Ok((codes, residual))
}

/// Codebooks as their device reads them best: packed once for the CPU's search, the tensors as they are elsewhere.
pub struct Codebooks {
    books: Vec<Tensor>,
    sizes: Vec<usize>,
    width: usize,
    dtype: DType,
    device: Device,
}

impl Codebooks {
    /// Prepares `codebooks[s] [K_s, D]`.
    pub fn new(codebooks: &[&Tensor]) -> Result<Codebooks> {
        check_codebooks(codebooks)?;
        let first = codebooks[0];
        let prepare = |book: &&Tensor| match book.device() {
            Device::Cpu => dispatch_real!(NAME, book.dtype(), T => cpu::pack::<T>(book)),
            Device::Cuda(_) => book.copy(),
        };
        Ok(Codebooks {
            books: codebooks.iter().map(prepare).collect::<Result<_>>()?,
            sizes: codebooks.iter().map(|book| book.shape()[0]).collect(),
            width: first.shape()[1],
            dtype: first.dtype(),
            device: first.device(),
        })
    }

    /// Size of the first `stages` codebooks.
    pub fn bytes(&self, stages: usize) -> usize {
        self.sizes.iter().take(stages).sum::<usize>() * self.width * self.dtype.bytes()
    }

    /// Codewords of each codebook.
    pub fn sizes(&self) -> &[usize] {
        &self.sizes
    }

    /// [`search`] in the first codebooks, as many as there are `columns`, which are those of `codes [N, S]` that it fills; returns
    /// the residual.
    pub fn search(&self, x: &Tensor, codes: &mut Tensor, columns: Range<usize>) -> Result<Tensor> {
        let _span = span::op("rvq_search.search");
        let books = self.books(codes, &columns)?;
        if *x.shape() != [codes.shape()[0], self.width] {
            return Err(Error::shape(NAME, "x", format!("[{}, {}]", codes.shape()[0], self.width), x.shape()));
        }
        check_operand("x", x, self.dtype, &self.device)?;
        match x.device() {
            Device::Cpu => dispatch_real!(NAME, x.dtype(), T => cpu::search::<T>(x, books.iter().map(Ok), codes, columns.start)),
            Device::Cuda(gpu) => cuda::search(&gpu, x, &books.iter().collect::<Vec<_>>(), (codes, columns.start)),
        }
    }

    /// [`decode`] of some columns of `codes [N, S]` by the first codebooks, as many.
    pub fn decode(&self, codes: &Tensor, columns: Range<usize>) -> Result<Tensor> {
        self.decode_columns(codes, columns, false)
    }

    /// [`Codebooks::decode`] to which a code of -1 adds nothing.
    pub fn decode_present(&self, codes: &Tensor, columns: Range<usize>) -> Result<Tensor> {
        self.decode_columns(codes, columns, true)
    }

    fn decode_columns(&self, codes: &Tensor, columns: Range<usize>, absent: bool) -> Result<Tensor> {
        let _span = span::op("rvq_search.decode");
        let books = self.books(codes, &columns)?;
        match codes.device() {
            Device::Cpu => {
                check_values(codes.as_slice()?, codes.shape()[1], &columns, absent, |stage| self.sizes[stage])?;
                dispatch_real!(NAME, self.dtype, T => cpu::decode_packed::<T>(codes, columns.start, books, self.width))
            }
            Device::Cuda(gpu) => cuda::decode(&gpu, (codes, columns.start), &books.iter().collect::<Vec<_>>(), absent),
        }
    }

    /// Squared distances `[N, K]` of `x [N, D]` to the codewords of one codebook, which [`Codebooks::search`] takes the least of. On the
    /// CPU only.
    pub fn distances(&self, x: &Tensor, stage: usize) -> Result<Tensor> {
        let book = self.book(x, stage)?;
        dispatch_real!(NAME, self.dtype, T => cpu::distances_to::<T>(x, book, self.sizes[stage]))
    }

    /// Takes the codewords `codes [N]` of one codebook from `x [N, D]`, as [`Codebooks::search`] does. On the CPU only.
    pub fn subtract(&self, x: &mut Tensor, stage: usize, codes: &[i32]) -> Result<()> {
        let book = self.book(x, stage)?;
        if codes.len() != x.shape()[0] {
            return Err(Error::argument(NAME, format!("{} codes for {} rows", codes.len(), x.shape()[0])));
        }
        check_values(codes, 1, &(0..1), false, |_| self.sizes[stage])?;
        dispatch_real!(NAME, self.dtype, T => cpu::subtract_packed::<T>(x, book, codes))
    }

    /// One of them, for rows `x [N, D]` on the CPU.
    fn book(&self, x: &Tensor, stage: usize) -> Result<&Tensor> {
        if x.device() != Device::Cpu {
            return Err(Error::argument(NAME, "the distances to all codewords are computed on the CPU only"));
        }
        check_operand("x", x, self.dtype, &self.device)?;
        if x.shape().len() != 2 || x.shape()[1] != self.width {
            return Err(Error::shape(NAME, "x", format!("[N, {}]", self.width), x.shape()));
        }
        self.books.get(stage).ok_or_else(|| Error::argument(NAME, format!("stage {stage} of {}", self.books.len())))
    }

    /// Those of some columns of `codes`.
    fn books(&self, codes: &Tensor, columns: &Range<usize>) -> Result<&[Tensor]> {
        check_operand("codes", codes, DType::I32, &self.device)?;
        let &[_, width] = &*codes.shape() else { return Err(Error::shape(NAME, "codes", "[N, S]", codes.shape())) };
        if columns.is_empty() || columns.end > width || columns.len() > self.books.len() {
            let why = format!("columns {columns:?} of {width}, of {} codebooks", self.books.len());
            return Err(Error::argument(NAME, why));
        }
        Ok(&self.books[..columns.len()])
    }
}

/// `y [N, D]`, the sum of the codewords that `codes [N, S]` name in the first `S` of `codebooks`.
///
/// A code outside its codebook is an error on the CPU and a row of NaN on CUDA.
pub fn decode(codes: &Tensor, codebooks: &[&Tensor]) -> Result<Tensor> {
    let _span = span::op("rvq_search.decode");
    if codes.shape().len() != 2 || codes.shape()[1] == 0 || codes.shape()[1] > codebooks.len() {
        return Err(Error::shape(NAME, "codes", format!("[N, S] with 1 <= S <= {} codebooks", codebooks.len()), codes.shape()));
    }
    let codebooks = &codebooks[..codes.shape()[1]];
    check_codebooks(codebooks)?;
    check_operand("codes", codes, DType::I32, &codebooks[0].device())?;
    match codes.device() {
        Device::Cpu => {
            check_values(codes.as_slice()?, codebooks.len(), &(0..codebooks.len()), false, |stage| codebooks[stage].shape()[0])?;
            dispatch_real!(NAME, codebooks[0].dtype(), T => cpu::decode::<T>(codes, codebooks))
        }
        Device::Cuda(gpu) => cuda::decode(&gpu, (codes, 0), codebooks, false),
    }
}

/// `codebook[codes]` as `[N, D]`, for `codebook [K, D]` and `codes [N]`.
pub fn gather(codebook: &Tensor, codes: &Tensor) -> Result<Tensor> {
    let _span = span::op("rvq_search.gather");
    if codes.shape().len() != 1 {
        return Err(Error::shape(NAME, "codes", "[N]", codes.shape()));
    }
    decode(&codes.copy()?.reshape([codes.elements(), 1])?, &[codebook])
}

/// Backward of [`gather`]: `[K, D]` whose row `k` is the sum of the rows of `dy [N, D]` that have code `k`. Deterministic.
pub fn scatter_add(dy: &Tensor, codes: &Tensor, k: usize) -> Result<Tensor> {
    let _span = span::op("rvq_search.scatter_add");
    Ok(codebook::statistics(dy, codes, k)?.1)
}

/// Of the columns of rows of `width` codes; -1 is none if codes may be `absent`.
fn check_values(codes: &[i32], width: usize, columns: &Range<usize>, absent: bool, size: impl Fn(usize) -> usize) -> Result<()> {
    for (row, codes) in codes.chunks_exact(width.max(1)).enumerate() {
        for (stage, &code) in codes[columns.clone()].iter().enumerate() {
            if usize::try_from(code).map_or(!(absent && code == -1), |code| code >= size(stage)) {
                return Err(Error::argument(NAME, format!("code {code} of row {row}, stage {stage}, is not below {}", size(stage))));
            }
        }
    }
    Ok(())
}

/// How clearly the nearest codeword of each row of `x` won, `[N]`: the gap to the second best, relative to its squared
/// distance, or as a difference of cosines. Infinite for a codebook of one. For verification; on the CPU only.
pub fn margin(x: &Tensor, codebook: &Tensor, metric: Metric) -> Result<Tensor> {
    check(x, &[codebook])?;
    match x.device() {
        Device::Cpu => dispatch_real!(NAME, x.dtype(), T => cpu::margin::<T>(x, codebook, metric)),
        Device::Cuda(_) => Err(Error::argument(NAME, "margins are computed on the CPU only")),
    }
}

fn check(x: &Tensor, codebooks: &[&Tensor]) -> Result<()> {
    check_codebooks(codebooks)?;
    let d = codebooks[0].shape()[1];
    if x.shape().len() != 2 || x.shape()[1] != d {
        return Err(Error::shape(NAME, "x", format!("[N, {d}]"), x.shape()));
    }
    check_operand("x", x, codebooks[0].dtype(), &codebooks[0].device())
}

/// At least one codebook, none empty, all of one width, dtype and device.
fn check_codebooks(codebooks: &[&Tensor]) -> Result<()> {
    let first = codebooks.first().ok_or_else(|| Error::argument(NAME, "no codebooks"))?;
    for codebook in codebooks {
        let shape = codebook.shape();
        let width = first.shape().last_dim();
        if shape.len() != 2 || shape.contains(&0) || shape[1] != width || shape.elements() > i32::MAX as usize {
            return Err(Error::shape(NAME, "codebook", format!("[K, {width}], at least one of each, below 2^31 elements"), shape));
        }
        check_operand("codebook", codebook, first.dtype(), &first.device())?;
    }
    Ok(())
}

fn check_operand(operand: &'static str, t: &Tensor, dtype: DType, device: &Device) -> Result<()> {
    if t.dtype() != dtype {
        return Err(Error::dtype(NAME, operand, dtype.name(), t.dtype()));
    }
    if t.device() != *device {
        return Err(Error::DeviceMismatch { op: NAME, operand });
    }
    Ok(())
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (n, k, d) in [(1, 1, 1), (31, 33, 8), (33, 127, 64), (70, 500, 31), (5, 65, 130), (9, 1100, 16)] {
        cases.push(nearest_case(n, k, d, Metric::Euclidean, false));
        cases.push(nearest_case(n, k, d, Metric::Cosine, false));
    }
    for metric in [Metric::Euclidean, Metric::Cosine] {
        cases.extend([tie_case(metric, 32), tie_case(metric, 40)]);
    }
    cases.extend([nan_case(), landmark_case(), stray_case(), absent_case(33, 31), absent_case(130, 128)]);
    for (n, sizes, d) in [
        (1, &[33, 16, 16][..], 8),
        (9, &[300, 170], 17),
        (5, &[20, 9], 1),
        (3, &[127, 64, 31, 1], 31),
        (31, &[17; 10], 33),
        (33, &[40; 10], 16),
        (127, &[65, 16], 24),
        (3, &[300, 200, 127], 64),
    ] {
        cases.push(search_case(n, sizes, d, false));
    }
    for (n, sizes, d) in [(31, &[33, 16][..], 33), (300, &[50; 9], 64)] {
        cases.push(decode_case(n, sizes, d));
    }
    cases.push(nearest_case(8192, 1024, 128, Metric::Euclidean, true));
    cases.push(nearest_case(16384, 1024, 8, Metric::Cosine, true));
    cases.push(search_case(1, &[2048, 1024, 1024, 1024, 1024, 1024, 1024, 1024], 64, true));
    cases.push(search_case(1, &[2048; 8], 256, true));
    cases
}

/// Two roundings a term and both scores: beyond this relative gap f32 cannot choose another code than f64.
fn code_epsilon(d: usize, stages: usize) -> f64 {
    (2 * d + 16 * stages) as f64 * DType::F32.epsilon()
}

/// Launches for `stages` codebooks, each with a running sum or residual.
fn passes(stages: usize) -> usize {
    stages.div_ceil(cuda::STAGES_A_LAUNCH)
}

/// Codes, codewords, the sum, and where there are several launches, what it was before each.
fn decode_bytes(n: usize, sizes: &[usize], d: usize) -> usize {
    let codewords: usize = sizes.iter().map(|&k| k.min(n)).sum();
    4 * (n * sizes.len() + codewords * d + (2 * passes(sizes.len()) - 1) * n * d)
}

fn nearest_case(n: usize, k: usize, d: usize, metric: Metric, bench: bool) -> Case {
    Case {
        label: format!("{metric:?} {n}x{d} in {k}"),
        dtype: DType::F32,
        inputs: vec![Input::normal("x", [n, d]), Input::normal("codebook", [k, d])],
        outputs: vec![("codes", Check::Index { margin: 1, epsilon: code_epsilon(d, 1) }), ("margin", Check::Ignore)],
        run: Box::new(move |t| {
            let codes = nearest(&t[0], &t[1], metric)?;
            Ok(vec![codes, oracle_margin(&t[0], &[&t[1]], metric)?.reshape([n])?])
        }),
        // A cosine is between rows that were normalised: read and written once more.
        cost: Cost { bytes: 4 * ((n * d + k * d) * if metric == Metric::Cosine { 3 } else { 1 } + n), flops: 3 * n * k * d },
        bench,
    }
}

/// Of equal codewords, which repeat after `period`, the first is taken, exactly. `n` is few enough for a persistent search.
fn tie_case(metric: Metric, period: usize) -> Case {
    let (n, k, d) = (31, 200, 4);
    let words = (0..period * d).map(|i| (i * 37 % 61) as f64 / 16.0 - 1.8).collect();
    let inputs = vec![Input::normal("x", [n, d]), Input::new("codebook", [k, d], Fill::Values(words))];
    let run = move |t: &Inputs| {
        let one_by_one = nearest(&t[0], &t[1], metric)?;
        let short = if metric == Metric::Euclidean { search(&t[0], &[&t[1]])?.0.reshape([n])? } else { one_by_one.copy()? };
        Ok(vec![one_by_one, short])
    };
    Case {
        label: format!("{metric:?} ties after {period}"),
        inputs,
        outputs: vec![("codes", Check::Exact), ("codes of a search", Check::Exact)],
        run: Box::new(run),
        ..nearest_case(n, k, d, metric, false)
    }
}

/// Vectors at codewords on either side of where blocks and warps change, all others far away.
fn landmark_case() -> Case {
    let (k, d) = (300, 2);
    let landmarks = [0usize, 31, 32, 63, 64, 127, 128, 129, 255, 256, 257, 299];
    let near = |i: usize| [i as f64 / 8.0, -(i as f64) / 4.0];
    let word = |i: usize| if landmarks.contains(&i) { near(i) } else { [1000.0, 1000.0 + i as f64] };
    let n = landmarks.len();
    let inputs = vec![
        Input::new("x", [n, d], Fill::Values(landmarks.into_iter().flat_map(near).collect())),
        Input::new("codebook", [k, d], Fill::Values((0..k).flat_map(word).collect())),
    ];
    let run = move |t: &Inputs| Ok(vec![nearest(&t[0], &t[1], Metric::Euclidean)?, search(&t[0], &[&t[1]])?.0.reshape([n])?]);
    Case {
        label: "Euclidean landmarks".into(),
        inputs,
        outputs: vec![("codes", Check::Exact), ("codes of a search", Check::Exact)],
        run: Box::new(run),
        ..nearest_case(n, k, d, Metric::Euclidean, false)
    }
}

/// Codes outside their codebook, which a GPU cannot refuse: NaN for the whole row.
fn stray_case() -> Case {
    let (n, k, d) = (5, 7, 3);
    let stray = [0.0, k as f64 - 1.0, k as f64, -1.0, 1e9];
    let run = move |t: &Inputs| {
        if t[0].device() != Device::Cpu {
            return Ok(vec![decode(&t[0], &[&t[1]])?]);
        }
        let (codes, book) = (t[0].to_f64()?, t[1].to_f64()?);
        let inside = |code: f64| (0.0..k as f64).contains(&code);
        let row = |code: f64| (0..d).map(move |j| (code, j));
        let value = |(code, j): (f64, usize)| if inside(code) { book[code as usize * d + j] } else { f64::NAN };
        let values: Vec<f64> = codes.into_iter().flat_map(row).map(value).collect();
        Ok(vec![Tensor::from_f64(&Device::Cpu, t[1].dtype(), &values, [n, d])?])
    };
    Case {
        label: "decode stray codes".into(),
        inputs: vec![Input::new("codes", [n, 1], Fill::Values(stray.into())).integer(DType::I32), Input::normal("codebook", [k, d])],
        outputs: vec![("y", Check::Exact)],
        run: Box::new(run),
        ..nearest_case(n, k, d, Metric::Euclidean, false)
    }
}

/// Rows of fewer and fewer codes, over more stages than one launch takes; a stray code among them is NaN still.
fn absent_case(n: usize, d: usize) -> Case {
    let (k, stages, stray) = (40, 9, 7);
    let code = move |row: usize, stage: usize| match stage {
        _ if row == stray && stage == 0 => -2.0,
        _ if stage >= row % (stages + 1) => -1.0,
        _ => ((7 * row + 3 * stage) % k) as f64,
    };
    let codes = (0..n).flat_map(move |row| (0..stages).map(move |stage| code(row, stage))).collect();
    // Each codeword that is wanted comes from memory once.
    let wanted = |stage: usize| (0..n).map(|row| code(row, stage) as i64).filter(|code| *code >= 0).collect::<BTreeSet<_>>().len();
    let codewords: usize = (0..stages).map(wanted).sum();
    let bytes = 4 * (n * stages + codewords * d + (2 * passes(stages) - 1) * n * d);
    let mut inputs = vec![Input::new("codes", [n, stages], Fill::Values(codes)).integer(DType::I32)];
    inputs.extend((0..stages).map(|_| Input::normal("codebook", [k, d])));
    let run = move |t: &Inputs| {
        if t[0].device() != Device::Cpu {
            return Ok(vec![Codebooks::new(&t[1..].iter().collect::<Vec<_>>())?.decode_present(&t[0], 0..stages)?]);
        }
        let books = t[1..].iter().map(Tensor::to_f64).collect::<Result<Vec<_>>>()?;
        let mut y = vec![0.0; n * d];
        for (row, codes) in y.chunks_exact_mut(d).zip(t[0].to_f64()?.chunks_exact(stages)) {
            for (book, &code) in books.iter().zip(codes).filter(|(_, code)| **code != -1.0) {
                let word = |j: usize| book.get(code as usize * d + j).copied().filter(|_| code >= 0.0).unwrap_or(f64::NAN);
                row.iter_mut().enumerate().for_each(|(j, y)| *y += word(j));
            }
        }
        Ok(vec![Tensor::from_f64(&Device::Cpu, t[1].dtype(), &y, [n, d])?])
    };
    Case {
        label: format!("decode {n}x{d} of 0 to {stages} stages"),
        inputs,
        outputs: vec![("y", Check::Within(Tolerance::accumulate(stages)))],
        run: Box::new(run),
        cost: Cost { bytes, flops: n * stages * d },
        ..nearest_case(n, k, d, Metric::Euclidean, false)
    }
}

/// A vector that is nowhere has the first code, and leaves its neighbours theirs.
fn nan_case() -> Case {
    let (n, k, d) = (3, 40, 2);
    let x = Input::new("x", [n, d], Fill::Values(vec![0.5, -1.0, f64::NAN, 0.25, -0.5, 1.5]));
    let run = move |t: &Inputs| Ok(vec![nearest(&t[0], &t[1], Metric::Euclidean)?, search(&t[0], &[&t[1]])?.0.reshape([n])?]);
    Case {
        label: "Euclidean NaN".into(),
        inputs: vec![x, Input::normal("codebook", [k, d])],
        outputs: vec![("codes", Check::Exact), ("codes of a search", Check::Exact)],
        run: Box::new(run),
        ..nearest_case(n, k, d, Metric::Euclidean, false)
    }
}

/// Codes, and `residual + decode(codes)`, which is `x` again whichever of two near codes was taken.
fn search_case(n: usize, sizes: &[usize], d: usize, bench: bool) -> Case {
    let stages = sizes.len();
    let codewords = sizes.iter().sum::<usize>();
    let passes = if cuda::streams(n, d) { passes(stages) } else { stages };
    let search_bytes = 4 * (2 * passes * n * d + codewords * d + n * stages);
    let bytes = if bench { search_bytes } else { search_bytes + decode_bytes(n, sizes, d) };
    // Each subtraction and each addition rounds an intermediate. Codewords shrink by 0.8 a stage, so all together are at most
    // 1.7 times as large as the input, and what they leave twice.
    let restored = Tolerance::accumulate(2 * stages).of_sum_larger_by(2.0);
    let mut inputs = vec![Input::normal("x", [n, d])];
    inputs.extend(sizes.iter().enumerate().map(|(s, &k)| {
        // Codewords shrink with the residual, as trained ones do.
        Input::new("codebook", [k, d], Fill::Normal(0.8f64.powi(s as i32)))
    }));
    Case {
        label: format!("{n}x{d} through {sizes:?}"),
        dtype: DType::F32,
        inputs,
        outputs: vec![
            ("codes", Check::Index { margin: 1, epsilon: code_epsilon(d, stages) }),
            ("margin", Check::Ignore),
            if bench { ("residual", Check::Ignore) } else { ("residual + decoded", Check::Within(restored)) },
        ],
        run: Box::new(move |t| {
            let codebooks: Vec<&Tensor> = t[1..].iter().collect();
            let (codes, residual) = search(&t[0], &codebooks)?;
            let margins = oracle_margin(&t[0], &codebooks, Metric::Euclidean)?;
            if bench {
                return Ok(vec![codes, margins, residual]);
            }
            let decoded = decode(&codes, &codebooks)?.to_f64()?;
            let sum: Vec<f64> = residual.to_f64()?.iter().zip(decoded).map(|(r, y)| r + y).collect();
            let restored = Tensor::from_f64(&Device::Cpu, DType::F64, &sum, [n, d])?;
            Ok(vec![codes, margins, restored])
        }),
        cost: Cost { bytes, flops: 3 * n * codewords * d },
        bench,
    }
}

fn decode_case(n: usize, sizes: &[usize], d: usize) -> Case {
    // Below the smallest size, so that every code is one of each codebook.
    let codes = Fill::Below(sizes.iter().copied().min().unwrap_or(1));
    let mut inputs = vec![Input::new("codes", [n, sizes.len()], codes).integer(DType::I32)];
    inputs.extend(sizes.iter().map(|&k| Input::normal("codebook", [k, d])));
    Case {
        label: format!("decode {n}x{d} from {sizes:?}"),
        dtype: DType::F32,
        inputs,
        outputs: vec![("y", Check::Within(Tolerance::accumulate(sizes.len())))],
        run: Box::new(|t| Ok(vec![decode(&t[0], &t[1..].iter().collect::<Vec<_>>())?])),
        cost: Cost { bytes: decode_bytes(n, sizes, d), flops: n * sizes.len() * d },
        bench: false,
    }
}

/// Margins `[N, S]`, each no larger than the stage's before it: a code that may differ excuses all that follow. Zero where
/// the device is not the oracle.
fn oracle_margin(x: &Tensor, codebooks: &[&Tensor], metric: Metric) -> Result<Tensor> {
    let (n, stages) = (x.shape()[0], codebooks.len());
    let mut margins = vec![f64::INFINITY; n * stages];
    if x.dtype() != DType::F64 {
        return Tensor::zeros(&x.device(), x.dtype(), [n, stages]);
    }
    let mut residual = x.copy()?;
    for (s, codebook) in codebooks.iter().enumerate() {
        for (row, here) in margins.chunks_exact_mut(stages).zip(margin(&residual, codebook, metric)?.to_f64()?) {
            row[s] = here.min(if s > 0 { row[s - 1] } else { f64::INFINITY });
        }
        residual = stage(&residual, codebook)?.1;
    }
    Tensor::from_f64(&Device::Cpu, DType::F64, &margins, [n, stages])
}
