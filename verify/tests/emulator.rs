use std::path::Path;

use swara_kernels::{DType, Device, Error};
use swara_verify::golden;
use swara_verify::harness::{self, Selection, Subject};

fn holds_on(arch: &str) {
    let emulator = match Subject::emulator(Some(arch), None) {
        Ok(emulator) => emulator,
        Err(Error::Unavailable { why, hint, .. }) => {
            println!("skipped: the emulator, {why}; {}", hint.unwrap_or_default());
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let report = harness::run(&emulator, Selection::default(), |_, _, _| {});
    let failed: Vec<_> = report.cases.iter().filter(|c| !c.pass).collect();
    assert!(report.holds(), "{} passed, {} failed: {failed:#?}", report.passed, report.failed);
    for dtype in ["f32", "bf16", "f16"] {
        assert!(report.cases.iter().any(|c| c.dtype == dtype), "no {dtype} case");
    }
}

#[test]
fn every_op_on_the_emulator_is_within_its_budget_under_three_schedules() {
    holds_on("sm_90");
}

/// No asynchronous copies, no bf16 arithmetic, half as deep products.
#[test]
fn every_op_on_the_oldest_architecture_is_within_its_budget_under_three_schedules() {
    holds_on("sm_75");
}

#[test]
fn published_models_on_the_emulator_meet_their_references() {
    let emulator = match Device::open("emulator") {
        Ok(emulator) => emulator,
        Err(error) => return println!("skipped: the emulator, {error}"),
    };
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let families = ["mimi", "dac", "snac", "encodec", "moshi_lm"];
    let report = golden::run(&dir, &emulator, DType::F32, &families.map(str::to_owned)).unwrap();
    let failed: Vec<_> = report.cases.iter().filter(|c| !c.pass).collect();
    assert!(report.holds(), "{} passed, {} failed: {failed:#?}", report.passed, report.failed);
    for family in families {
        assert!(report.cases.iter().any(|c| c.op == family), "no reference of {family} was compared");
    }
}
