//! Against moshi's modules in training, draws replayed (verify/reference/rvq_training.py).

use std::collections::BTreeMap;
use std::path::Path;

use swara_loader::weights::Weights as File;

use swara_kernels::{DType, Device};

use super::*;
use crate::train::Initialisation;

struct Golden {
    file: File,
    case: serde_json::Value,
}

impl Golden {
    fn open(name: &str) -> Golden {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../verify/golden/rvq_training").join(name).with_extension("safetensors");
        let file = File::open(file).unwrap();
        let case = serde_json::from_str(&file.metadata()["case"]).unwrap();
        Golden { file, case }
    }

    fn number(&self, key: &str) -> usize {
        self.case[key].as_u64().unwrap() as usize
    }

    fn shape(&self, name: &str) -> Vec<usize> {
        self.file.view(name).unwrap().shape.to_vec()
    }

    fn values(&self, name: &str) -> Vec<f64> {
        match self.file.to_f32(name) {
            Ok(values) => values.iter().map(|&v| f64::from(v)).collect(),
            Err(_) => self.file.to_i32(name).unwrap().iter().map(|&v| f64::from(v)).collect(),
        }
    }

    /// Entry `i` of the first axis.
    fn at(&self, name: &str, i: usize) -> Vec<f64> {
        let values = self.values(name);
        let each = values.len() / self.shape(name)[0];
        values[i * each..][..each].to_vec()
    }
}

fn tensor(values: &[f64], shape: &[usize]) -> Tensor {
    Tensor::from_f64(&Device::Cpu, DType::F64, values, swara_kernels::Shape::try_from(shape).unwrap()).unwrap()
}

fn close(what: &str, found: &[f64], expected: &[f64]) {
    let scale = expected.iter().fold(1.0f64, |m, v| m.max(v.abs()));
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() < 1e-6 * scale, "{what} {i}: {found}, expected {expected}");
    }
}

struct Replay {
    draws: Vec<Vec<i32>>,
    next: usize,
    rows: usize,
}

impl Draws for Replay {
    fn rows(&mut self, rows: usize, count: usize) -> Vec<i32> {
        assert_eq!((rows, count), (self.rows, self.draws[self.next].len()));
        self.next += 1;
        self.draws[self.next - 1].clone()
    }

    fn uniform(&mut self) -> f64 {
        unreachable!()
    }
}

/// Projections that change nothing.
fn identity(dim: usize) -> BTreeMap<String, Var> {
    let eye: Vec<f64> = (0..dim * dim).map(|i| f64::from(u8::from(i % (dim + 1) == 0))).collect();
    let names = ["quantizer.input_proj.weight", "quantizer.output_proj.weight"];
    names.map(|name| (name.to_owned(), Var::from(tensor(&eye, &[1, dim, dim])))).into()
}

/// A quantiser that is not split.
fn one(stages: usize) -> Branch {
    Branch { name: "quantizer", stages: 0..stages, projected: true }
}

/// How many codewords expired.
fn replay(name: &str) -> usize {
    let golden = Golden::open(name);
    let [steps, batch, frames, dim] = golden.shape("x")[..] else { panic!() };
    let (stages, bins) = (golden.number("stages"), golden.number("bins"));
    let rules = CodebookRules {
        start: 0,
        initialise: Initialisation::Stepwise,
        kmeans_iterations: golden.number("iterations"),
        expire_below: golden.case["threshold"].as_f64().unwrap(),
        ..CodebookRules::default()
    };
    let draws = golden.values("draws").chunks(bins).map(|draw| draw.iter().map(|&v| v as i32).collect()).collect();
    let mut replay = Replay { draws, next: 0, rows: batch * frames };
    let empty = |shape: &[usize]| tensor(&vec![0.0; shape.iter().product()], shape);
    let book = || Codebook { usage: empty(&[bins]), sum: empty(&[bins, dim]), averaging: Averaging::Plain };
    let mut books: Vec<Codebook> = (0..stages).map(|_| book()).collect();
    let (parameters, mut expired) = (identity(dim), 0);
    for step in 0..steps {
        let values = golden.at("x", step);
        if step < stages {
            let flat = tensor(&values, &[batch * frames, dim]);
            initialise_stage(&mut books, flat, step, rules.kmeans_iterations, &mut replay).unwrap();
        }
        let tape = Tape::new();
        let x = tape.leaf(Rc::new(tensor(&values, &[batch, frames, dim])));
        let raw = golden.at("raw", step).iter().map(|&v| v != 0.0).collect();
        let plan = Plan { raw, ..Plan::whole(batch, stages, stages) };
        let weights = LossWeights { commitment: 1.0, ..LossWeights::default() };
        let recording = Recording { tape: &tape, parameters: &parameters };
        let q = ema(&recording, &x, &books, &[(one(stages), plan)], &weights, &rules).unwrap();
        // A stage without codewords yet has none but zeros, and what rounding leaves of sums that cancel: any code is as near.
        let there = stages.min(step + 1);
        for (k, (_, codes)) in q.stages[..there].iter().enumerate() {
            let each = batch * frames;
            // [B, K, T] there.
            let all = golden.at("codes", step);
            let expected: Vec<i32> = (0..each).map(|i| all[(i / frames * stages + k) * frames + i % frames] as i32).collect();
            assert_eq!(codes.to_vec::<i32>().unwrap(), expected, "{name} step {step} stage {k}");
        }
        close("output", &q.z.value().to_f64().unwrap(), &golden.at("output", step));
        close("penalty", &q.commitment.value().to_f64().unwrap(), &golden.at("penalty", step));
        let pull = tensor(&golden.values("weights"), &[batch, frames, dim]);
        tape.known_loss(&q.z, tensor(&[0.0], &[1]), pull, 1.0);
        close("gradient", &tape.backward().unwrap().take(&x).unwrap().to_f64().unwrap(), &golden.at("gradient", step));
        for (k, (book, (inputs, codes))) in books.iter_mut().zip(&q.stages).enumerate() {
            let before = book.usage.to_f64().unwrap();
            let check = rules.checks(k, step as u64);
            let mean = before.iter().sum::<f64>() / bins as f64;
            expired += before.iter().filter(|&&u| check && u < rules.expire_below * mean).count();
            update_stage(book, inputs, codes, &rules, check, &mut replay).unwrap();
        }
        for (name, of) in [("usage", (|book| &book.usage) as fn(&Codebook) -> &Tensor), ("sum", |book| &book.sum)] {
            let after: Vec<f64> = books[..there].iter().flat_map(|book| of(book).to_f64().unwrap()).collect();
            close(name, &after, &golden.at(name, step)[..after.len()]);
        }
    }
    assert_eq!(replay.next, replay.draws.len(), "{name}");
    expired
}

#[test]
fn codebooks_learn_step_by_step_as_in_moshi() {
    assert!(replay("mimi") > 0);
}

#[test]
fn codebooks_learn_as_in_moshi_from_fewer_rows_than_codewords() {
    replay("mimi_few_rows");
}

#[test]
fn rows_are_drawn_once_each_where_there_are_enough() {
    let mut draws = Seeded::new(7);
    for (rows, count) in [(10, 10), (10, 3), (1, 1), (5, 0)] {
        let mut found = draws.rows(rows, count);
        found.sort_unstable();
        found.dedup();
        assert!(found.len() == count && found.iter().all(|&i| (i as usize) < rows), "{rows} {count}");
    }
    let few = draws.rows(3, 20);
    assert!(few.len() == 20 && few.iter().all(|&i| (0..3).contains(&i)));
}

#[test]
fn a_plan_drops_what_its_rules_say() {
    let plan = |rules: CodebookRules, step| Plan::new(&rules, 8, 6, &[1, 2, 6], 1, step);
    let rules = |dropout, dropout_of| CodebookRules { dropout, dropout_of, ..CodebookRules::default() };
    assert_eq!(plan(rules(0.0, DropoutOf::Stages), 3), Plan::whole(8, 6, 6));
    let mut seen = [[false; 7]; 3];
    for step in 0..100 {
        for (kind, of) in [DropoutOf::Batch, DropoutOf::Stages, DropoutOf::Items].into_iter().enumerate() {
            let plan = plan(rules(if kind == 2 { 0.7 } else { 1.0 }, of), step);
            let first = plan.used[0];
            seen[kind][first] = true;
            match of {
                DropoutOf::Batch => assert_eq!(plan, Plan::whole(8, first, 6)),
                DropoutOf::Stages | DropoutOf::Bandwidths => assert_eq!(plan, Plan::whole(8, first, first)),
                // int(8 x 0.7) of them.
                DropoutOf::Items => assert!(plan.used[5..] == [6; 3] && plan.run == 6),
            }
        }
    }
    // EnCodec's: whole batches have stages that make a bitrate, the others neither run nor learn.
    let drawn: std::collections::BTreeSet<usize> = (0..100)
        .map(|step| {
            let plan = plan(rules(1.0, DropoutOf::Bandwidths), step);
            assert_eq!(plan, Plan::whole(8, plan.used[0], plan.used[0]));
            plan.used[0]
        })
        .collect();
    assert_eq!(drawn, [1, 2, 6].into());
    assert_eq!(seen, [[false, true, true, true, true, true, true]; 3]);
    let raw = (0..200).flat_map(|step| plan(CodebookRules { no_quantization_rate: 0.5, ..rules(0.0, DropoutOf::Batch) }, step).raw);
    let share = raw.filter(|raw| *raw).count();
    assert!((700..900).contains(&share), "{share} of 1600");
}

/// Items by themselves are quantised as in a batch where each has its own number of stages.
#[test]
fn items_have_stages_of_their_own() {
    let (batch, frames, dim, bins) = (3, 5, 4, 6);
    let mut rng = SplitMix(5);
    let mut random = |n: usize| (0..n).map(|_| rng.uniform() - 0.5).collect::<Vec<f64>>();
    let ones = || tensor(&vec![1.0; bins], &[bins]);
    let book = |values: Vec<f64>| Codebook { usage: ones(), sum: tensor(&values, &[bins, dim]), averaging: Averaging::Plain };
    let books: Vec<Codebook> = (0..3).map(|_| book(random(bins * dim))).collect();
    let x = random(batch * frames * dim);
    let parameters = identity(dim);
    let run = |x: &[f64], plan: &Plan| {
        let tape = Tape::new();
        let leaf = tape.leaf(Rc::new(tensor(x, &[plan.used.len(), frames, dim])));
        let weights = LossWeights { commitment: 1.0, ..LossWeights::default() };
        let recording = Recording { tape: &tape, parameters: &parameters };
        let q = ema(&recording, &leaf, &books, &[(one(3), plan.clone())], &weights, &CodebookRules::default()).unwrap();
        let loss = q.commitment.value().to_f64().unwrap()[0];
        let output = q.z.value().to_f64().unwrap();
        (output, loss, tape.backward().unwrap().take(&leaf).unwrap().to_f64().unwrap())
    };
    let used = [2, 1, 3];
    let (output, loss, gradient) = run(&x, &Plan { used: used.to_vec(), mean: 2.0, ..Plan::whole(batch, 3, 3) });
    let each = frames * dim;
    let mut mean = 0.0;
    for (item, &n) in used.iter().enumerate() {
        let (alone, own, slope) = run(&x[item * each..][..each], &Plan::whole(1, n, 3));
        close("output", &output[item * each..][..each], &alone);
        // The mean over all stages of all items, of which this one has n.
        let share = n as f64 / 6.0;
        mean += own * share;
        close("gradient", &gradient[item * each..][..each], &slope.iter().map(|g| g * share).collect::<Vec<_>>());
    }
    close("loss", &[loss], &[mean]);
}

/// DAC's sums: of each item its own stages, of losses the mean over items.
#[test]
fn items_have_factorised_stages_of_their_own() {
    let (batch, frames, latent, dim, bins) = (3, 4, 6, 3, 5);
    let mut rng = SplitMix(6);
    let mut random = |n: usize| (0..n).map(|_| rng.uniform() - 0.5).collect::<Vec<f64>>();
    let mut tensors = Vec::new();
    for k in 0..3 {
        for (name, shape) in [
            ("in_proj.weight", &[1, latent, dim][..]),
            ("in_proj.bias", &[dim]),
            ("out_proj.weight", &[1, dim, latent]),
            ("out_proj.bias", &[latent]),
            ("codebook.weight", &[bins, dim]),
        ] {
            tensors.push((format!("quantizer.quantizers.{k}.{name}"), Rc::new(tensor(&random(shape.iter().product()), shape))));
        }
    }
    let x = random(batch * frames * latent);
    let run = |x: &[f64], plan: &Plan| {
        let tape = Tape::new();
        let parameters: BTreeMap<String, Var> = tensors.iter().map(|(name, t)| (name.clone(), tape.leaf(t.clone()))).collect();
        let leaf = tape.leaf(Rc::new(tensor(x, &[plan.used.len(), frames, latent])));
        let weights = LossWeights { commitment: 0.25, codebook: 1.0, ..LossWeights::default() };
        let recording = Recording { tape: &tape, parameters: &parameters };
        let q = factorised(&recording, &leaf, &[1; 3], dim, plan, &weights).unwrap();
        let losses = [&q.commitment, q.codebook.as_ref().unwrap()].map(|loss| loss.value().to_f64().unwrap()[0]);
        let output = q.z.value().to_f64().unwrap();
        let mut found = tape.backward().unwrap();
        let book = parameters["quantizer.quantizers.1.codebook.weight"].clone();
        let of_book = found.take(&book).map_or(vec![0.0; bins * dim], |g| g.to_f64().unwrap());
        (output, losses, found.take(&leaf).unwrap().to_f64().unwrap(), of_book)
    };
    let used = [2, 1, 3];
    let (output, losses, gradient, of_book) = run(&x, &Plan { used: used.to_vec(), ..Plan::whole(batch, 3, 3) });
    let each = frames * latent;
    let (mut mean, mut mean_of_book) = ([0.0; 2], vec![0.0; bins * dim]);
    for (item, &n) in used.iter().enumerate() {
        let (alone, own, slope, book) = run(&x[item * each..][..each], &Plan::whole(1, n, 3));
        close("output", &output[item * each..][..each], &alone);
        close("gradient", &gradient[item * each..][..each], &slope.iter().map(|g| g / 3.0).collect::<Vec<_>>());
        mean.iter_mut().zip(own).for_each(|(mean, own)| *mean += own / 3.0);
        mean_of_book.iter_mut().zip(book).for_each(|(mean, own)| *mean += own / 3.0);
    }
    close("losses", &losses, &mean);
    close("codebook", &of_book, &mean_of_book);
}
