//! Beam search for residual codes: of several paths through the stages, the one that leaves least (arXiv 2509.19186).

use swara_kernels::ops::rvq_search::{self, Codebooks, Metric};
use swara_kernels::{Device, Tensor};

use super::left::take;
use super::{Quantizer, Stage};
use crate::{Error, Result};

/// Stages whose residual is a vector on the CPU.
trait Stages {
    /// Codewords of a stage.
    fn size(&self, stage: usize) -> usize;

    /// The code that a search of one path takes for each row of `residual [N, D]`, and the squared norms `[N, K]` of what every codeword
    /// would leave of it.
    fn candidates(&self, stage: usize, residual: &Tensor) -> Result<(Vec<i32>, Vec<f32>)>;

    /// What is left of `residual [N, D]` by a codeword for each row.
    fn subtract(&self, stage: usize, residual: Tensor, codes: &[i32]) -> Result<Tensor>;
}

/// A way to go on from one of a row's paths.
#[derive(Clone, Copy)]
struct Step {
    error: f32,
    path: usize,
    code: i32,
}

/// Elements of errors at a time.
const MOST: usize = 1 << 21;

/// Codes `[N, stages]` of rows `x [N, D]`, of `beam` paths that leave least after every stage. The path that a search of one would take
/// is always among them, so that no row is left more than by that search, but for the rounding of the errors.
fn search(space: &impl Stages, x: &Tensor, stages: usize, beam: usize) -> Result<Vec<i32>> {
    let (n, d) = (x.shape()[0], x.shape()[1]);
    let widest = (0..stages).map(|stage| space.size(stage)).max().unwrap_or(1);
    let block = (MOST / (beam * widest).max(1)).max(1);
    let mut codes = Vec::with_capacity(n * stages);
    for first in (0..n).step_by(block) {
        let rows = block.min(n - first);
        codes.extend(search_rows(space, x.part(first * d, [rows, d])?, stages, beam)?);
    }
    Ok(codes)
}

fn search_rows(space: &impl Stages, mut residual: Tensor, stages: usize, beam: usize) -> Result<Vec<i32>> {
    let (n, d) = (residual.shape()[0], residual.shape()[1]);
    // Of each row so many paths, the first that of the search of one; of each path the codes so far.
    let mut paths = 1;
    let mut codes: Vec<Vec<i32>> = vec![Vec::with_capacity(stages); n];
    for stage in 0..stages {
        let size = space.size(stage);
        let last = stage + 1 == stages;
        let kept = if last { 1 } else { beam.min(paths * size) };
        let (alone, errors) = space.candidates(stage, &residual)?;
        let rows = alone.chunks_exact(paths).zip(errors.chunks_exact(paths * size));
        let steps: Vec<Step> = rows.flat_map(|(alone, errors)| best(alone[0], errors, size, kept, last)).collect();
        let from = |(i, step): (usize, &Step)| i / kept * paths + step.path;
        let parents: Vec<usize> = steps.iter().enumerate().map(from).collect();
        let taken: Vec<i32> = steps.iter().map(|step| step.code).collect();
        if !last {
            let values = residual.as_slice::<f32>()?;
            let values: Vec<f32> = parents.iter().flat_map(|&parent| &values[parent * d..][..d]).copied().collect();
            residual = space.subtract(stage, Tensor::from_slice(&residual.device(), &values, [n * kept, d])?, &taken)?;
        }
        codes = parents.iter().zip(&taken).map(|(&parent, &code)| codes[parent].iter().copied().chain([code]).collect()).collect();
        paths = kept;
    }
    Ok(codes.concat())
}

/// The `kept` steps of least error among those of all paths, `errors [paths, size]`: the first is the step `alone` of the first path, or if
/// it is the last stage, whichever is least. Of equal errors the earlier path's and the lower code is first.
fn best(alone: i32, errors: &[f32], size: usize, kept: usize, last: bool) -> Vec<Step> {
    let first = Step { error: errors[alone as usize], path: 0, code: alone };
    let mut found = Vec::with_capacity(kept + 1);
    for (i, &error) in errors.iter().enumerate() {
        let step = Step { error, path: i / size, code: (i % size) as i32 };
        let taken = !last && step.path == 0 && step.code == alone;
        // Not if the error is NaN.
        let better = error < found.get(kept - 1).map_or(f32::INFINITY, |worst: &Step| worst.error);
        if better && !taken {
            found.insert(found.partition_point(|other| other.error <= error), step);
            found.truncate(kept);
        }
    }
    if !last {
        found.insert(0, first);
        found.truncate(kept);
    }
    found.resize(kept, first);
    found
}

impl Stages for Codebooks {
    fn size(&self, stage: usize) -> usize {
        self.sizes()[stage]
    }

    fn candidates(&self, stage: usize, residual: &Tensor) -> Result<(Vec<i32>, Vec<f32>)> {
        let errors = self.distances(residual, stage)?.to_vec::<f32>()?;
        let nearest = |errors: &[f32]| {
            let least = |least: (f32, i32), (code, &error): (usize, &f32)| if error < least.0 { (error, code as i32) } else { least };
            errors.iter().enumerate().fold((f32::INFINITY, 0), least).1
        };
        Ok((errors.chunks_exact(self.sizes()[stage]).map(nearest).collect(), errors))
    }

    fn subtract(&self, stage: usize, mut residual: Tensor, codes: &[i32]) -> Result<Tensor> {
        Codebooks::subtract(self, &mut residual, stage, codes)?;
        Ok(residual)
    }
}

/// Factorised stages, whose residual is among the latents.
struct Factorised<'a>(&'a [Stage]);

impl Stages for Factorised<'_> {
    fn size(&self, stage: usize) -> usize {
        self.0[stage].codebook.shape()[0]
    }

    fn candidates(&self, stage: usize, residual: &Tensor) -> Result<(Vec<i32>, Vec<f32>)> {
        let stage = &self.0[stage];
        let nearest = rvq_search::nearest(&stage.input.apply(residual)?, &stage.codebook, Metric::Cosine)?.to_vec::<i32>()?;
        let (width, dim) = (residual.shape()[1], stage.codebook.shape()[1]);
        let (weight, bias) = (stage.output.weight.to_f64()?, stage.output.bias.to_f64()?);
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let rows: Vec<&[f64]> = weight.chunks_exact(width).collect();
        // |r - b - W c|^2 = |r - b|^2 - 2 W'(r - b) . c + c . W'W c: in as many dimensions as the codewords have.
        let gram: Vec<f64> = rows.iter().flat_map(|a| rows.iter().map(move |b| dot(a, b))).collect();
        let words = stage.codebook.to_f64()?;
        let own = |word: &[f64]| gram.chunks_exact(dim).zip(word).map(|(row, c)| c * dot(row, word)).sum::<f64>();
        let words: Vec<(&[f64], f64)> = words.chunks_exact(dim).map(|word| (word, own(word))).collect();
        let mut errors = Vec::with_capacity(nearest.len() * words.len());
        for row in residual.to_f64()?.chunks_exact(width) {
            let rest: Vec<f64> = row.iter().zip(&bias).map(|(r, b)| r - b).collect();
            let (energy, along): (f64, Vec<f64>) = (dot(&rest, &rest), rows.iter().map(|w| dot(w, &rest)).collect());
            errors.extend(words.iter().map(|(word, own)| (energy - 2.0 * dot(&along, word) + own) as f32));
        }
        Ok((nearest, errors))
    }

    fn subtract(&self, stage: usize, residual: Tensor, codes: &[i32]) -> Result<Tensor> {
        take(&self.0[stage], &residual, codes)
    }
}

impl Quantizer {
    /// Most paths of a search.
    pub const MAX_BEAM: usize = 64;
    /// Widest factorised codewords that a beam is searched among.
    const MAX_FACTORISED: usize = 64;

    /// An error if no search of so many paths exists.
    pub fn check_beam(&self, beam: usize, device: &Device) -> Result<()> {
        let why = match self {
            _ if beam == 1 => return Ok(()),
            _ if !(1..=Self::MAX_BEAM).contains(&beam) => format!("a beam of {beam}, expected 1 to {}", Self::MAX_BEAM),
            _ if *device != Device::Cpu => format!("a beam on {}: it is searched on the CPU only", device.name()),
            Quantizer::Levels(_) => "a beam among stages of several rates".to_owned(),
            Quantizer::Factorised { stages } if stages.iter().any(|stage| stage.codebook.shape()[1] > Self::MAX_FACTORISED) => {
                format!("a beam among factorised codewords of more than {} dimensions", Self::MAX_FACTORISED)
            }
            _ => return Ok(()),
        };
        Err(Error::Argument(why))
    }

    pub(super) fn encode_beam(&self, z: &Tensor, stages: usize, beam: usize) -> Result<Tensor> {
        let rows = z.shape().rows();
        let flat = || -> Result<Tensor> { Ok(z.copy()?.reshape([rows, z.shape().last_dim()])?) };
        let codes = match self {
            Quantizer::Ema(rvq) => search(&rvq.codebooks, &rvq.latents(z)?, stages, beam)?,
            Quantizer::Plain(books) => search(&**books, &flat()?, stages, beam)?,
            Quantizer::Factorised { stages: all } => search(&Factorised(all), &flat()?, stages, beam)?,
            Quantizer::Split { semantic, acoustic } => {
                let first = semantic.stages().min(stages);
                let own = search(&semantic.codebooks, &semantic.latents(z)?, first, beam)?;
                let rest = search(&acoustic.codebooks, &acoustic.latents(z)?, stages - first, beam)?;
                let row = |i: usize| own[i * first..][..first].iter().chain(&rest[i * (stages - first)..][..stages - first]).copied();
                (0..rows).flat_map(row).collect()
            }
            Quantizer::Levels(_) => return Err(Error::Argument("a beam among stages of several rates".into())),
        };
        Ok(Tensor::from_slice(&z.device(), &codes, [rows, stages])?)
    }
}

#[cfg(test)]
mod tests {
    use swara_kernels::DType;
    use swara_kernels::case::SplitMix;

    use super::super::factorised_tensors;
    use super::*;
    use crate::weights::Weights;

    fn random(rng: &mut SplitMix, shape: [usize; 2], scale: f64) -> Tensor {
        let values: Vec<f64> = (0..shape[0] * shape[1]).map(|_| scale * (rng.uniform() + rng.uniform() - 1.0)).collect();
        Tensor::from_f64(&Device::Cpu, DType::F32, &values, shape).unwrap()
    }

    /// What codes leave of rows.
    fn left(space: &impl Stages, x: &Tensor, codes: &[i32], stages: usize) -> Vec<f64> {
        let mut x = x.copy().unwrap();
        for stage in 0..stages {
            let column: Vec<i32> = codes.iter().skip(stage).step_by(stages).copied().collect();
            x = space.subtract(stage, x, &column).unwrap();
        }
        x.to_f64().unwrap().chunks(x.shape()[1]).map(|row| row.iter().map(|v| v * v).sum()).collect()
    }

    /// The best of all combinations.
    fn least(space: &impl Stages, x: &Tensor, stages: usize) -> Vec<f64> {
        let combinations: usize = (0..stages).map(|stage| space.size(stage)).product();
        let mut least = vec![f64::INFINITY; x.shape()[0]];
        for mut i in 0..combinations {
            let mut digit = |stage: usize| {
                let size = space.size(stage);
                let digit = i % size;
                i /= size;
                digit as i32
            };
            let codes: Vec<i32> = (0..stages).map(&mut digit).collect();
            let found = left(space, x, &codes.repeat(x.shape()[0]), stages);
            least.iter_mut().zip(found).for_each(|(least, found)| *least = least.min(found));
        }
        least
    }

    #[test]
    fn a_beam_of_one_is_the_search_bit_for_bit() {
        let mut rng = SplitMix(1);
        for (n, d, sizes) in [(1, 1, &[2][..]), (70, 7, &[33, 16, 5]), (31, 32, &[100, 64, 64, 3]), (5, 130, &[31, 33])] {
            let books: Vec<Tensor> = sizes.iter().map(|&k| random(&mut rng, [k, d], 1.0)).collect();
            let books = Codebooks::new(&books.iter().collect::<Vec<_>>()).unwrap();
            let x = random(&mut rng, [n, d], 2.0);
            let mut codes = Tensor::zeros(&Device::Cpu, DType::I32, [n, sizes.len()]).unwrap();
            books.search(&x, &mut codes, 0..sizes.len()).unwrap();
            assert_eq!(search(&books, &x, sizes.len(), 1).unwrap(), codes.to_vec::<i32>().unwrap());
        }
    }

    #[test]
    fn a_beam_leaves_no_row_more_and_a_wide_one_the_least() {
        let mut rng = SplitMix(2);
        for (n, d, sizes) in [(40, 3, &[7, 6, 5][..]), (9, 8, &[12, 12]), (33, 1, &[5, 5, 5]), (20, 4, &[1, 9, 9])] {
            let books: Vec<Tensor> = sizes.iter().enumerate().map(|(i, &k)| random(&mut rng, [k, d], 0.7f64.powi(i as i32))).collect();
            let books = Codebooks::new(&books.iter().collect::<Vec<_>>()).unwrap();
            let x = random(&mut rng, [n, d], 1.5);
            let of = |beam| left(&books, &x, &search(&books, &x, sizes.len(), beam).unwrap(), sizes.len());
            let greedy = of(1);
            for beam in [2, 3, 4, 8, 64] {
                for (row, (&one, &many)) in greedy.iter().zip(&of(beam)).enumerate() {
                    assert!(many <= one * (1.0 + 1e-5) + 1e-12, "{n}x{d} row {row}, beam {beam}: {many} after {one}");
                }
            }
            let (wide, least) = (of(1000), least(&books, &x, sizes.len()));
            assert!(wide.iter().zip(&least).all(|(wide, least)| *wide <= least * (1.0 + 1e-5) + 1e-12), "{n}x{d}");
            assert!(greedy.iter().sum::<f64>() > 1.01 * least.iter().sum::<f64>() || d == 1 || sizes[0] == 1, "{n}x{d}: nothing to find");
        }
    }

    #[test]
    fn a_beam_among_factorised_stages_leaves_no_row_more_and_a_wide_one_the_least() {
        let mut rng = SplitMix(3);
        let (latent, dim, sizes) = (12, 3, [7, 6, 5]);
        let mut weights = Weights::new();
        for spec in factorised_tensors(latent, dim, &sizes, true) {
            let shape = spec.shape();
            let flat = [1, shape.iter().product()];
            let tensor = random(&mut rng, flat, 1.0).reshape(swara_kernels::Shape::try_from(&shape[..]).unwrap()).unwrap();
            weights.insert(spec.name.clone(), tensor);
        }
        let stages: Vec<Stage> = (0..3).map(|k| Stage::new(&weights, k).unwrap()).collect();
        let space = Factorised(&stages);
        let x = random(&mut rng, [30, latent], 3.0);
        let (_, errors) = space.candidates(1, &x).unwrap();
        for (code, column) in (0..6).map(|code| (code, errors.iter().skip(code).step_by(6))) {
            let alone = space.subtract(1, x.copy().unwrap(), &[code as i32; 30]).unwrap().to_f64().unwrap();
            for (row, &error) in alone.chunks(latent).zip(column) {
                let exact: f64 = row.iter().map(|v| v * v).sum();
                assert!((exact - f64::from(error)).abs() <= 1e-5 * exact, "{exact} {error}");
            }
        }
        let quantizer = Quantizer::Factorised { stages };
        let Quantizer::Factorised { stages } = &quantizer else { unreachable!() };
        let z = x.copy().unwrap().reshape([1, 30, latent]).unwrap();
        let of = |beam| {
            let codes = quantizer.encode(&z, 3, beam).unwrap();
            (left(&Factorised(stages), &x, &codes.to_vec::<i32>().unwrap(), 3), quantizer.left(&z, &codes).unwrap())
        };
        let (greedy, least) = (of(1).0, least(&Factorised(stages), &x, 3));
        for beam in [2, 4, 64] {
            let (found, measured) = of(beam);
            assert!(found.iter().zip(&greedy).all(|(many, one)| *many <= one * (1.0 + 1e-5)), "beam {beam}");
            for (found, measured) in found.iter().zip(measured.chunks(4)) {
                assert!((found - f64::from(measured[3])).abs() <= 1e-5 * f64::from(measured[0]));
            }
        }
        let wide = of(64).0;
        assert!(wide.iter().zip(&least).all(|(wide, least)| *wide <= least * (1.0 + 1e-5)));
    }

    #[test]
    fn rows_of_nan_have_codes_and_leave_their_neighbours_theirs() {
        let mut rng = SplitMix(4);
        let books = [9, 5].map(|k| random(&mut rng, [k, 4], 1.0));
        let books = Codebooks::new(&books.iter().collect::<Vec<_>>()).unwrap();
        let mut x = random(&mut rng, [3, 4], 1.0);
        let before = search(&books, &x, 2, 4).unwrap();
        x.as_mut_slice::<f32>().unwrap()[5] = f32::NAN;
        let after = search(&books, &x, 2, 4).unwrap();
        assert_eq!((&after[..2], &after[2..4], &after[4..]), (&before[..2], &[0, 0][..], &before[4..]));
    }
}
