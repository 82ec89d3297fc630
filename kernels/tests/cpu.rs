//! Every case of every operation, f32 on the CPU against f64.

use swara_kernels::case::{Case, Check};
use swara_kernels::{DType, Device, ops};

fn failures(case: &Case, op: &str) -> Vec<String> {
    let values = case.draw(42);
    let run = |oracle| case.upload(&Device::Cpu, &values, oracle).and_then(|inputs| (case.run)(&inputs));
    let (found, expected) = match (run(false), run(true)) {
        (Ok(found), Ok(expected)) => (found, expected),
        (found, expected) => return vec![format!("{op} {}: {:?} {:?}", case.label, found.err(), expected.err())],
    };
    let mut failures = Vec::new();
    for (i, (name, check)) in case.outputs.iter().enumerate() {
        let (f, e) = (found[i].to_f64().unwrap(), expected[i].to_f64().unwrap());
        let wrong = match check {
            Check::Within(tolerance) => {
                let c = tolerance.compare(&f, &e);
                (!c.holds()).then(|| format!("{c:?}"))
            }
            Check::Exact => (f != e).then(|| "not equal".to_owned()),
            Check::Index { margin, epsilon } => {
                let margin = expected[*margin].to_f64().unwrap();
                f.iter().zip(&e).zip(&margin).any(|((f, e), m)| f != e && m > epsilon).then(|| "index differs beyond its margin".to_owned())
            }
            Check::Ignore => None,
        };
        failures.extend(wrong.map(|w| format!("{op} {} {name}: {w}", case.label)));
    }
    failures
}

#[test]
fn every_case_holds_in_f32() {
    let (mut ran, mut wrong) = (0, Vec::new());
    for op in ops::REGISTRY {
        for case in (op.cases)().iter().filter(|c| c.dtype == DType::F32 && !c.bench) {
            ran += 1;
            wrong.extend(failures(case, op.name));
        }
    }
    assert!(ran > 0, "no case ran");
    assert!(wrong.is_empty(), "{} of {ran}:\n{}", wrong.len(), wrong.join("\n"));
}
