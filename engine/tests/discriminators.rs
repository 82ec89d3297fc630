//! Discriminators against the published ones: maps, losses and every gradient (verify/reference/discriminators.py); gradients
//! against differences.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use swara_engine::codec::model::TensorSpec;
use swara_engine::tape::{Tape, Var};
use swara_engine::train::{
    AdversarialForm, AdversarialRule, BandConfig, DiscriminatorConfig, Discriminators, PeriodConfig, PeriodRules, Recording, Reduction,
    ScaleConfig, StftConfig, adversarial_loss, discriminator_loss, feature_loss,
};
use swara_kernels::case::SplitMix;
use swara_kernels::{DType, Device, Shape, Tensor};
use swara_loader::weights::Weights;

const CASES: [&str; 3] = ["dac", "encodec", "hifi_gan"];
/// Of the features, in the generator's loss.
const FEATURES: f64 = 2.0;

#[derive(Clone, Copy, PartialEq)]
enum Loss {
    Discriminator,
    Generator,
}

type Values = BTreeMap<String, Rc<Tensor>>;

/// What a step gives: values of its terms' sums, maps of the made wave, gradients of the leaves.
struct Found {
    losses: Vec<f64>,
    maps: Vec<Vec<Var>>,
    gradients: BTreeMap<String, Tensor>,
}

/// One step on waves `x` and `y` of `values`, of which those that `leaf` says are differentiated.
fn step(discriminators: &Discriminators, rule: AdversarialRule, values: &Values, loss: Loss, leaf: impl Fn(&str) -> bool) -> Found {
    let tape = Tape::new();
    let variable =
        |(name, value): (&String, &Rc<Tensor>)| (name.clone(), if leaf(name) { tape.leaf(value.clone()) } else { Var::from_shared(value) });
    let variables: BTreeMap<String, Var> = values.iter().map(variable).collect();
    let recording = Recording { tape: &tape, parameters: &variables };
    let real = discriminators.maps(&recording, &variables["x"]).unwrap();
    let maps = discriminators.maps(&recording, &variables["y"]).unwrap();
    let terms = match loss {
        Loss::Discriminator => vec![discriminator_loss(&tape, rule, &real, &maps, 1.0).unwrap()],
        Loss::Generator => {
            vec![adversarial_loss(&tape, rule, &maps, 1.0).unwrap(), feature_loss(&tape, &real, &maps, rule, FEATURES).unwrap()]
        }
    };
    let sum = |terms: &Vec<Var>| terms.iter().map(|term| term.value().to_f64().unwrap()[0]).sum();
    let losses = terms.iter().map(sum).collect();
    let mut found = tape.backward().unwrap();
    let gradients = variables.iter().filter_map(|(name, variable)| Some((name.clone(), found.take(variable)?))).collect();
    Found { losses, maps, gradients }
}

struct Golden {
    file: Weights,
    discriminators: Discriminators,
    specs: BTreeMap<String, TensorSpec>,
    rule: AdversarialRule,
}

impl Golden {
    fn open(name: &str) -> Golden {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../verify/golden/discriminators").join(name).with_extension("safetensors");
        let file = Weights::open(&path).unwrap();
        let case: serde_json::Value = serde_json::from_str(&file.metadata()["case"]).unwrap();
        let config: DiscriminatorConfig = serde_json::from_value(case["config"].clone()).unwrap();
        let discriminators = Discriminators::new(&config).unwrap();
        let rule = serde_json::from_value(case["rule"].clone()).unwrap();
        let specs = discriminators.tensors().into_iter().map(|spec| (spec.name.clone(), spec)).collect();
        Golden { file, discriminators, specs, rule }
    }

    fn values(&self, device: &Device) -> Values {
        let tensor =
            |values: &[f32], shape: &[usize]| Rc::new(Tensor::from_slice(device, values, Shape::try_from(shape).unwrap()).unwrap());
        let parameter = |(name, spec): (&String, &TensorSpec)| {
            assert_eq!(self.file.view(name).unwrap().shape, &spec.published[..], "{name}");
            (name.clone(), tensor(&spec.import(&self.file.to_f32(name).unwrap()), &spec.shape()))
        };
        let wave = |name: &str| {
            let shape = self.file.view(name).unwrap().shape;
            (name.to_owned(), tensor(&self.file.to_f32(name).unwrap(), &[shape[0], shape[2], 1]))
        };
        self.specs.iter().map(parameter).chain([wave("x"), wave("y")]).collect()
    }

    /// Largest difference beside the spread of the published values.
    fn difference(&self, name: &str, found: &[f64]) -> f64 {
        let expected = self.file.to_f32(name).unwrap();
        assert_eq!(found.len(), expected.len(), "{name}");
        let (low, high) = expected.iter().fold((0.0f64, 0.0f64), |(l, h), &v| (l.min(f64::from(v)), h.max(f64::from(v))));
        let error = found.iter().zip(expected.iter()).fold(0.0f64, |m, (f, &e)| m.max((f - f64::from(e)).abs()));
        assert!(high > low, "{name} is all zero");
        error / (high - low)
    }

    /// Of a map `[B, .., C]`, which the file has as `[B, C, ..]`.
    fn map_difference(&self, name: &str, map: &Tensor) -> f64 {
        let (shape, values) = (self.file.view(name).unwrap().shape.to_vec(), map.to_f64().unwrap());
        let (channels, places) = (shape[1], shape[2..].iter().product::<usize>());
        assert_eq!(*map.shape(), [&shape[..1], &shape[2..], &[channels]].concat()[..], "{name}");
        let turned: Vec<f64> = (0..values.len())
            .map(|i| (i / (channels * places), i / places % channels, i % places))
            .map(|(b, c, place)| values[(b * places + place) * channels + c])
            .collect();
        self.difference(name, &turned)
    }

    fn gradient_difference(&self, step: &str, name: &str, gradient: &Tensor) -> f64 {
        let values: Vec<f32> = gradient.to_f64().unwrap().into_iter().map(|v| v as f32).collect();
        let values = self.specs.get(name).map_or(values.clone(), |spec| spec.export(&values));
        self.difference(&format!("{step}.{name}"), &values.into_iter().map(f64::from).collect::<Vec<_>>())
    }
}

fn devices() -> Vec<Device> {
    ["cpu", "emulator"].map(|device| Device::open(device).expect("the emulator needs a C++ compiler")).to_vec()
}

#[test]
fn published_discriminators_give_the_same_maps_losses_and_gradients() {
    for device in devices() {
        for case in CASES {
            let golden = Golden::open(case);
            let values = golden.values(&device);
            let [discriminator, generator] = [Loss::Discriminator, Loss::Generator]
                .map(|loss| step(&golden.discriminators, golden.rule, &values, loss, |name| name != "x"));
            let mut worst = [0.0f64; 3];
            for (d, maps) in generator.maps.iter().enumerate() {
                for (n, map) in maps.iter().enumerate() {
                    worst[0] = worst[0].max(golden.map_difference(&format!("map.{d}.{n}"), map.value()));
                }
                assert!(golden.file.view(&format!("map.{d}.{}", maps.len())).is_err(), "more maps than ours");
            }
            let losses = [&discriminator.losses[..], &generator.losses[..]].concat();
            for (found, &expected) in losses.iter().zip(golden.file.to_f32("losses").unwrap().iter()) {
                worst[1] = worst[1].max((found - f64::from(expected)).abs() / f64::from(expected.abs()));
            }
            assert_eq!(losses.len(), 3);
            for (name, found) in [("discriminator", &discriminator), ("generator", &generator)] {
                assert_eq!(found.gradients.len(), golden.specs.len() + 1, "{case}: a gradient is missing");
                for (parameter, gradient) in &found.gradients {
                    let difference = golden.gradient_difference(name, parameter, gradient);
                    assert!(difference < 1e-4, "{case} on {device:?}: {name}'s gradient of {parameter} is off by {difference:.1e}");
                    worst[2] = worst[2].max(difference);
                }
            }
            println!("{case} on {device:?}: maps {:.1e}, losses {:.1e}, gradients {:.1e}", worst[0], worst[1], worst[2]);
            assert!(worst.iter().all(|&w| w < 1e-4), "{case} on {device:?}: maps, losses, gradients {worst:?}");
        }
    }
}

#[test]
fn what_is_not_differentiated_costs_nothing_and_changes_nothing() {
    let device = Device::open("emulator").expect("the emulator needs a C++ compiler");
    let Device::Cuda(cuda) = &device else { panic!("the emulator is a CUDA device") };
    for case in CASES {
        let golden = Golden::open(case);
        let values = golden.values(&device);
        let counted = |loss, leaf: &dyn Fn(&str) -> bool| {
            let before = cuda.kernels();
            let found = step(&golden.discriminators, golden.rule, &values, loss, leaf);
            (found, cuda.kernels() - before)
        };
        let (forward, none) = counted(Loss::Generator, &|_| false);
        assert!(forward.gradients.is_empty());
        for (loss, wave) in [(Loss::Generator, true), (Loss::Discriminator, false)] {
            let (all, most) = counted(loss, &|name| name != "x");
            let (some, fewer) = counted(loss, &|name| if wave { name == "y" } else { name != "x" && name != "y" });
            println!("{case}: {none} kernels forward, {most} with all gradients, {fewer} with those of one side");
            assert!(none < fewer && fewer < most, "{case}: {none}, {fewer}, {most} kernels");
            assert_eq!(some.gradients.len(), if wave { 1 } else { golden.specs.len() });
            for (name, gradient) in some.gradients {
                assert_eq!(gradient.to_f64().unwrap(), all.gradients[&name].to_f64().unwrap(), "{case}: {name}");
            }
        }
    }
}

/// One of every kind.
fn small() -> DiscriminatorConfig {
    DiscriminatorConfig {
        normalise: true,
        period: Some(PeriodConfig { rules: PeriodRules::HifiGan, periods: vec![3], channels: vec![2, 3], ..PeriodConfig::default() }),
        scale: Some(ScaleConfig { scales: 2, layers: vec![[4, 5, 1, 1], [4, 7, 2, 2]], ..ScaleConfig::default() }),
        band: Some(BandConfig { windows: vec![16], bands: vec![(0.0, 0.3), (0.3, 1.0)], channels: 2, ..BandConfig::default() }),
        stft: Some(StftConfig { windows: vec![16], filters: 2, dilations: vec![1, 2], ..StftConfig::default() }),
    }
}

/// Initial values, their gains doubled so that no gradient vanishes, and two waves, in f64.
fn drawn(discriminators: &Discriminators, samples: usize) -> Values {
    let mut initial = discriminators.initial(1);
    let gains = initial.iter_mut().filter(|(name, _)| name.ends_with("weight_g"));
    gains.flat_map(|(_, values)| values).for_each(|gain| *gain *= 2.0);
    let tensor = |values: &[f64], shape: &[usize]| {
        Rc::new(Tensor::from_f64(&Device::Cpu, DType::F64, values, Shape::try_from(shape).unwrap()).unwrap())
    };
    let mut rng = SplitMix(3);
    let mut wave = || (0..2 * samples).map(|_| rng.uniform() - 0.4).collect::<Vec<f64>>();
    let waves = ["x", "y"].map(|name| (name.to_owned(), tensor(&wave(), &[2, samples, 1])));
    discriminators.tensors().iter().map(|spec| (spec.name.clone(), tensor(&initial[&spec.name], &spec.shape()))).chain(waves).collect()
}

#[test]
fn gradients_match_differences() {
    let discriminators = Discriminators::new(&small()).unwrap();
    let values = drawn(&discriminators, 50);
    for form in [AdversarialForm::Lsgan, AdversarialForm::Hinge] {
        for (loss, reduction) in
            [(Loss::Discriminator, Reduction::Mean), (Loss::Generator, Reduction::Sum), (Loss::Generator, Reduction::Mean)]
        {
            let rule = AdversarialRule { form, reduction };
            let total = |values: &Values| {
                let losses = step(&discriminators, rule, values, loss, |_| false).losses;
                losses[0] + FEATURES * losses.get(1).unwrap_or(&0.0)
            };
            // Real maps are constants to the features' loss, whatever they depend on: only the made wave's way is compared.
            let own = |name: &str| if loss == Loss::Discriminator { name != "x" } else { name == "y" };
            let found = step(&discriminators, rule, &values, loss, own).gradients;
            let mut worst: f64 = 0.0;
            for (name, gradient) in &found {
                let gradient = gradient.to_f64().unwrap();
                let largest = gradient.iter().fold(1e-5f64, |m, g| m.max(g.abs()));
                for i in [0, gradient.len() / 2, gradient.len() - 1] {
                    let moved = |by: f64| {
                        let (mut moved, mut changed) = (values[name].to_f64().unwrap(), values.clone());
                        moved[i] += by;
                        changed.insert(name.clone(), Rc::new(Tensor::from_slice(&Device::Cpu, &moved, values[name].shape()).unwrap()));
                        total(&changed)
                    };
                    let h = 1e-6;
                    let expected = (moved(h) - moved(-h)) / (2.0 * h);
                    worst = worst.max((gradient[i] - expected).abs() / largest);
                    // A kink within the step moves a difference by its share of the loss.
                    assert!(worst < 1e-4, "{form:?} {reduction:?}: {name} at {i}: {}, by differences {expected}", gradient[i]);
                }
            }
            println!("{form:?} {reduction:?}: {} gradients, off by {worst:.1e} at most", found.len());
            assert_eq!(found.len(), if loss == Loss::Discriminator { discriminators.tensors().len() + 1 } else { 1 });
        }
    }
}

#[test]
fn initial_values_are_bounded_by_their_inputs_and_depend_on_the_seed_alone() {
    let discriminators = Discriminators::new(&small()).unwrap();
    let (values, again, other) = (discriminators.initial(1), discriminators.initial(1), discriminators.initial(2));
    assert_eq!(values, again);
    assert_ne!(values, other);
    for spec in discriminators.tensors() {
        let found = &values[&spec.name];
        assert_eq!(found.len(), spec.published.iter().product::<usize>(), "{}", spec.name);
        if spec.name.ends_with("weight_v") {
            let bound = (spec.published[1..].iter().product::<usize>() as f64).powf(-0.5);
            let largest = found.iter().fold(0.0f64, |m, v| m.max(v.abs()));
            assert!(largest <= bound * 1.000001 && largest > 0.3 * bound, "{}: {largest}, bound {bound}", spec.name);
            let gains = &values[&spec.name.replace("weight_v", "weight_g")];
            assert!(spec.norms(found).iter().zip(gains).all(|(norm, gain)| (norm - gain).abs() < 1e-6 * norm), "{}", spec.name);
        }
    }
}

#[test]
fn a_wave_too_short_for_a_view_is_an_error() {
    let discriminators = Discriminators::new(&small()).unwrap();
    for samples in [1, 2, 5, 15] {
        let values = drawn(&discriminators, samples);
        let variables: BTreeMap<String, Var> = values.iter().map(|(name, value)| (name.clone(), Var::from_shared(value))).collect();
        let tape = Tape::new();
        let recording = Recording { tape: &tape, parameters: &variables };
        let error = discriminators.maps(&recording, &variables["x"]).err().expect("too short").to_string();
        assert!(error.contains("too short") && !error.contains('\n'), "{samples}: {error}");
    }
    let wrong = Var::from(Tensor::zeros(&Device::Cpu, DType::F64, [2, 50]).unwrap());
    let tape = Tape::new();
    assert!(discriminators.maps(&Recording { tape: &tape, parameters: &BTreeMap::new() }, &wrong).is_err());
}
