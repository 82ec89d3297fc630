use std::path::Path;

use swara_engine::codec::Stored;
use swara_kernels::ops::REGISTRY;
use swara_kernels::{DType, Device};
use swara_verify::harness::{self, Selection, Subject};
use swara_verify::{Report, golden};

fn assert_holds(report: &Report) {
    let failed: Vec<_> = report.cases.iter().filter(|c| !c.pass).collect();
    assert!(report.holds(), "{} passed, {} failed: {failed:#?}", report.passed, report.failed);
}

#[test]
fn every_op_on_the_cpu_is_within_its_budget_of_the_f64_oracle() {
    let report = harness::run(&Subject::device(Device::Cpu), Selection::default(), |_, _, _| {});
    assert_holds(&report);
    for op in REGISTRY {
        assert!(report.cases.iter().any(|c| c.op == op.name), "{} has no case for the CPU", op.name);
    }
}

#[test]
fn every_stored_reference_is_met_on_the_cpu() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let report = golden::run(&dir, &Device::Cpu, DType::F32, &[]).unwrap();
    assert_holds(&report);
    for family in golden::families() {
        assert!(report.cases.iter().any(|c| c.op == family), "no reference of {family} was compared");
    }
    for stored in [DType::BF16.into(), Stored::INT8] {
        let narrow = golden::run(&dir, &Device::Cpu, stored, &["mimi".to_owned()]).unwrap();
        assert_holds(&narrow);
        assert!(narrow.cases.iter().all(|c| c.codes.iter().all(|m| m.agreeing.iter().any(|&n| n > 0)) && !c.codes.is_empty()));
    }
    println!(
        "{} references, largest share of a budget {:.3}",
        report.passed,
        report.cases.iter().map(|c| c.budget_used).fold(0.0, f64::max)
    );
}
