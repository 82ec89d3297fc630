//! Small language models (verify/reference/moshi_lm.py), as they are stored, and what is asked of them.

use std::path::{Path, PathBuf};

use swara_engine::lm::{Condition, ConditionRows, Conditions, Config, Drawing, Given, Lm, Session, Step, Widths};
use swara_kernels::{Device, Tensor};
use swara_loader::weights::Weights;

pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../verify/golden/moshi_lm").join(name)
}

pub struct Case {
    pub file: Weights,
    pub batch: usize,
    pub steps: usize,
}

impl Case {
    pub fn open(name: &str) -> Case {
        let file = Weights::open(golden(name).with_extension("safetensors")).unwrap();
        let shape = file.view("user").unwrap().shape.to_vec();
        Case { file, batch: shape[0], steps: shape[1] }
    }

    /// Greedy, under the conditions of the case.
    pub fn session<'a>(&self, lm: &'a Lm) -> Session<'a> {
        let facts: serde_json::Value = serde_json::from_str(&self.file.metadata()["case"]).unwrap();
        let drawing = vec![Drawing::GREEDY; self.batch];
        let words = |of: &serde_json::Value| -> Conditions {
            of.as_object().unwrap().iter().filter_map(|(name, word)| Some((name.clone(), word.as_str()?.into()))).collect()
        };
        let [given, against] = ["conditions", "against"].map(|key| Some(facts[key].as_array()?.iter().map(words).collect::<Vec<_>>()));
        let Some(mut given) = given else { return Session::new(lm, &drawing).unwrap() };
        for tensor in self.file.names().filter(|name| name.starts_with("condition.") && !name.ends_with(".mask")) {
            let (name, b) = tensor["condition.".len()..].split_once('.').unwrap();
            let (shape, there) = (self.file.view(tensor).unwrap().shape, self.file.to_i32(&format!("{tensor}.mask")).unwrap());
            let there = there.iter().map(|&there| there != 0).collect();
            let rows = ConditionRows::new(self.file.to_f32(tensor).unwrap().into_owned(), shape[1], Some(there)).unwrap();
            given[b.parse::<usize>().unwrap()].insert(name.to_owned(), Condition::Rows(rows));
        }
        let against = facts["cfg_coef"].as_f64().zip(against.as_deref());
        Session::conditioned(lm, &drawing, &given, against).unwrap()
    }

    /// A step in which what the case hears and is given arrives.
    pub fn step(&self, session: &mut Session, lm: &Lm, step: usize) -> Step {
        let heard = self.heard(lm.device(), step);
        match self.file.contains("given") {
            true => session.step_given(&heard, &Given::new(lm, &self.ids("given", step), None).unwrap()).unwrap(),
            false => session.step(&heard, None).unwrap(),
        }
    }

    /// Step `step` of a tensor `[B, S, ..]`.
    pub fn ids(&self, name: &str, step: usize) -> Vec<i32> {
        let (width, values) = (self.file.view(name).unwrap().shape[2], self.file.to_i32(name).unwrap());
        (0..self.batch).flat_map(|b| values[(b * self.steps + step) * width..][..width].to_vec()).collect()
    }

    pub fn f32(&self, name: &str, step: usize) -> Vec<f32> {
        let (shape, values) = (self.file.view(name).unwrap().shape.to_vec(), self.file.to_f32(name).unwrap());
        let width: usize = shape[2..].iter().product();
        (0..self.batch).flat_map(|b| values[(b * self.steps + step) * width..][..width].to_vec()).collect()
    }

    pub fn heard(&self, device: &Device, step: usize) -> Tensor {
        let ids = self.ids("user", step);
        Tensor::from_slice(device, &ids, [self.batch, ids.len() / self.batch]).unwrap()
    }
}

fn deviation(values: &[f32]) -> f32 {
    let mean = values.iter().sum::<f32>() / values.len() as f32;
    (values.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / values.len() as f32).sqrt()
}

/// The largest difference over the spread of what is expected.
pub fn distance(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / deviation(expected)
}

/// Moshi's layers in few and narrow ones, whose depth transformer is one launch a step.
pub fn tiny_moshi() -> Config {
    Config {
        dim: 64,
        num_heads: 2,
        num_layers: 1,
        hidden_scale: 3.0,
        n_q: 8,
        dep_q: 4,
        card: 32,
        text_card: 40,
        context: Some(8),
        delays: vec![0, 0, 1, 1, 1, 0, 1, 1, 1],
        depformer_dim: 64,
        depformer_num_heads: Some(2),
        depformer_num_layers: Some(2),
        depformer_dim_feedforward: Some(Widths::All(96)),
        ..Config::moshi()
    }
}
