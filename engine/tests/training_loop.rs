//! Twenty steps against discriminators, as PyTorch takes them (verify/reference/training_loop.py).

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use swara_engine::train::{Adversarial, BalancerRules, CodebookRules, Decayed, LossWeights, Optimizer, Schedule, TrainConfig, Trainer};
use swara_kernels::Device;
use swara_loader::weights::{TensorRef, Weights, save};

fn of<T: serde::de::DeserializeOwned>(case: &Value, key: &str) -> T {
    serde_json::from_value(case[key].clone()).unwrap()
}

fn config(case: &Value, batch: usize, samples: usize) -> TrainConfig {
    let codec: swara_engine::codec::Config = of(case, "config");
    let optimizer = |key| Optimizer { warmup: 0, final_rate: 1.0, decayed: Decayed::All, ..of(case, key) };
    TrainConfig {
        train: Schedule { batch, crop_frames: samples / codec.hop(), ..Schedule::default() },
        optimizer: optimizer("optimizer"),
        loss: of::<LossWeights>(case, "loss"),
        codebook: CodebookRules { start: 0, dropout: 0.0, expire_below: 0.0, ..CodebookRules::default() },
        balancer: case["balanced"].as_bool().unwrap().then(BalancerRules::default),
        adversarial: Some(Adversarial {
            start: 0,
            every: 1,
            rule: of(case, "rule"),
            discriminators: of(case, "discriminators"),
            optimizer: optimizer("adversary"),
        }),
        ..TrainConfig::new("loop", Some(codec))
    }
}

/// A checkpoint of step 0: what the dump starts from, moments of zero, averages that are the values.
fn checkpoint(dump: &Weights, config: &TrainConfig, path: &Path) {
    let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = Vec::new();
    for name in dump.names().filter(|name| !["input", "losses"].contains(name)) {
        let (shape, values) = (dump.view(name).unwrap().shape.to_vec(), dump.to_f32(name).unwrap().into_owned());
        if let Some(parameter) = name.strip_prefix("value.") {
            for moment in ["first_moment", "second_moment"] {
                tensors.push((format!("{moment}.{parameter}"), shape.clone(), vec![0.0; values.len()]));
            }
            if !parameter.starts_with("discriminators.") {
                tensors.push((format!("average.{parameter}"), shape.clone(), values.clone()));
            }
        }
        tensors.push((name.to_owned(), shape, values));
    }
    let refs: Vec<TensorRef> = tensors.iter().map(|(name, shape, values)| TensorRef::f32(name, shape, values)).collect();
    let metadata = BTreeMap::from([("step".to_owned(), "0".to_owned()), ("run".to_owned(), serde_json::to_string(config).unwrap())]);
    save(path, &refs, &metadata).unwrap();
}

#[test]
fn twenty_steps_are_those_of_pytorch() {
    for name in ["dac", "balanced"] {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../verify/golden/training_loop").join(name).with_extension("safetensors");
        let dump = Weights::open(&file).unwrap();
        let case: Value = serde_json::from_str(&dump.metadata()["case"]).unwrap();
        let [steps, batch, _, samples] = dump.view("input").unwrap().shape[..] else { panic!() };
        let config = config(&case, batch, samples);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint.safetensors");
        checkpoint(&dump, &config, &path);
        let mut trainer = Trainer::resume(&path, config, &Device::Cpu).unwrap();
        let (inputs, expected) = (dump.to_f32("input").unwrap(), dump.to_f32("losses").unwrap());
        let mut worst: f64 = 0.0;
        for step in 0..steps {
            let l = trainer.train(&inputs[step * batch * samples..][..batch * samples]).unwrap().losses().unwrap();
            let found = [l.mel, l.wave, l.adversarial, l.feature, l.commitment, l.codebook, l.discriminator.unwrap()];
            for (i, (found, &expected)) in found.iter().zip(&expected[step * found.len()..]).enumerate() {
                let far = (found - f64::from(expected)).abs() / f64::from(expected).abs().max(1e-3);
                worst = worst.max(far);
                assert!(far < 1e-3, "{name} step {step}, loss {i}: {found}, expected {expected}");
            }
        }
        println!("{name}: {steps} steps, losses off by {worst:.1e} at most");
    }
}
