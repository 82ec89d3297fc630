//! Codebooks and a teacher's clusters from what is seen before a step.

use swara_kernels::ops::elementwise;
use swara_kernels::{DType, Tensor};

use super::architecture::Branch;
use super::quantize::{self, Codebook, Drawn, Seeded, mix};
use super::recording::Recording;
use super::{Initialisation, Teacher, Trainer, parameters};
use crate::tape::Tape;
use crate::{Error, Result};

impl Trainer {
    /// Whether the next step needs [`Trainer::initialise_codebooks`] first.
    pub fn needs_codebooks(&self) -> bool {
        let start = self.config.codebook.start;
        match self.config.codebook.initialise {
            Initialisation::Together => !self.has_codebooks() && self.step >= start,
            Initialisation::Stepwise => {
                let all = self.longest();
                self.made < all && self.step.saturating_sub(start) >= self.made as u64 && self.step >= start
            }
        }
    }

    /// k-means over the latents of `batches`, each `[batch * crop]` samples; of more than 2^26 numbers a branch, over rows drawn of them.
    pub fn initialise_codebooks(&mut self, batches: impl IntoIterator<Item = Vec<f32>>) -> Result<()> {
        let seed = self.config.train.seed;
        let drawn = |(n, branch): (usize, &Branch)| {
            let books = &self.architecture.codebooks()[branch.stages.clone()];
            let least = books.iter().map(|book| book[0]).max().unwrap_or(0);
            Drawn::new(books.first().map_or(1, |book| book[1]), least, mix(seed, self.step, 0x1d ^ n as u64))
        };
        let mut rows: Vec<Drawn> = self.branches.iter().enumerate().map(drawn).collect();
        let mut batch_rows = 0;
        for batch in batches {
            let tape = Tape::computing(self.config.train.compute);
            let recording = Recording { tape: &tape, parameters: &parameters::constants(&self.parameters) };
            batch_rows = 0;
            // As much at once as a step has.
            for part in batch.chunks(self.config.train.batch * self.crop) {
                let z = recording.run(&self.model.encoder, self.signal(part)?)?;
                batch_rows += z.value().shape().rows();
                for (branch, rows) in self.branches.iter().zip(&mut rows) {
                    let x = quantize::project(&recording, &z, branch, "input_proj")?;
                    rows.extend(&elementwise::convert(x.value(), DType::F32)?.to_vec::<f32>()?);
                }
            }
        }
        let iterations = self.config.codebook.kmeans_iterations;
        let stepwise = self.config.codebook.initialise == Initialisation::Stepwise;
        for (n, (branch, rows)) in self.branches.iter().zip(rows).enumerate() {
            let shapes = &self.architecture.codebooks()[branch.stages.clone()];
            let (sizes, dim): (Vec<usize>, usize) = (shapes.iter().map(|book| book[0]).collect(), shapes.first().map_or(1, |book| book[1]));
            let rows = rows.rows();
            let count = rows.len() / dim;
            if count == 0 {
                return Err(Error::Argument("k-means needs at least one batch".into()));
            }
            let x = elementwise::convert(&Tensor::from_slice(&self.device, &rows, [count, dim])?, self.dtype())?;
            let seed = seed ^ (n as u64).rotate_left(32);
            let books = &mut self.codebooks[branch.stages.clone()];
            if stepwise {
                let draws = &mut Seeded::new(mix(seed, u64::MAX, self.made as u64));
                quantize::initialise_stage(books, x, self.made, iterations, draws)?;
                books.get_mut(self.made).map_or(Ok(()), |book| quantize::rescale(book, batch_rows, count))?;
            } else {
                for (book, made) in books.iter_mut().zip(quantize::kmeans(x, &sizes, iterations, seed)?) {
                    *book = Codebook { averaging: book.averaging, ..made };
                    quantize::rescale(book, batch_rows, count)?;
                }
            }
        }
        self.made += usize::from(stepwise);
        self.initialised = true;
        Ok(())
    }

    /// Whether steps need [`Trainer::initialise_clusters`] first, and of which rows.
    pub fn needs_clusters(&self) -> Option<Drawn> {
        let [classes, dim] = self.config.teacher.as_ref().filter(|_| self.centroids.is_none())?.clusters()?;
        Some(Drawn::new(dim, classes, mix(self.config.train.seed, u64::MAX, 0x7eb)))
    }

    /// k-means over a teacher's features `[rows, dim]`: their clusters are the labels.
    pub fn initialise_clusters(&mut self, rows: Drawn) -> Result<()> {
        let rows = &rows.rows()[..];
        let Some([classes, dim]) = self.config.teacher.as_ref().and_then(Teacher::clusters) else { return Ok(()) };
        if rows.is_empty() || !rows.len().is_multiple_of(dim) {
            return Err(Error::Argument(format!("clusters of {} numbers in rows of {dim}", rows.len())));
        }
        if rows.len() / dim < classes {
            let why = format!("teacher: {classes} clusters of {} rows; codebook.kmeans_batches says how many there are", rows.len() / dim);
            return Err(Error::Config(why));
        }
        let x = elementwise::convert(&Tensor::from_slice(&self.device, rows, [rows.len() / dim, dim])?, self.dtype())?;
        let seed = mix(self.config.train.seed, u64::MAX, 0x7ea);
        let books = quantize::kmeans(x, &[classes], self.config.codebook.kmeans_iterations, seed)?;
        self.centroids = books.first().map(Codebook::embedding).transpose()?;
        Ok(())
    }
}
