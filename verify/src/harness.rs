//! Operations against their f64 oracle.

use std::collections::BTreeMap;

use swara_kernels::case::{Case, Check, Op};
use swara_kernels::driver::emulator::{self, Emulator, Schedule, Trace};
use swara_kernels::ops::REGISTRY;
use swara_kernels::tolerance::Comparison;
use swara_kernels::{DType, Device, Result, Shape, Tensor};

use crate::report::Traffic;
use crate::{Outcome, Report};

/// What to run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Selection<'a> {
    /// Names of operations; all if empty.
    pub ops: &'a [String],
    /// Only cases of this storage type.
    pub dtype: Option<DType>,
    /// Only cases whose description contains this.
    pub shapes: Option<&'a str>,
    /// Large cases too.
    pub bench: bool,
    /// Each case that passes once more, with inputs drawn from this seed.
    pub seed: Option<u64>,
}

/// Where cases run.
pub struct Subject {
    /// All must give the same bits: they are the same device under other schedules, and a difference is a race.
    devices: Vec<Device>,
    /// What the first one's kernels did to memory.
    trace: Option<Trace>,
}

impl Subject {
    pub fn device(device: Device) -> Subject {
        Subject { devices: vec![device], trace: None }
    }

    /// The emulator under `schedule`; by default under three, with the threads of a block in ascending, descending and random
    /// order.
    ///
    /// # Errors
    /// Those of [`emulator::open`].
    pub fn emulator(arch: Option<&str>, schedule: Option<Schedule>) -> Result<Subject> {
        let options = emulator::open(arch)?.options();
        let device = |schedule| Ok(Device::on(Box::new(Emulator::new(emulator::Options { schedule, ..options })?)));
        let devices = match schedule {
            Some(schedule) => vec![device(schedule)?],
            None => Schedule::ALL.into_iter().map(device).collect::<Result<_>>()?,
        };
        Ok(Subject { devices, trace: None })
    }

    /// The emulator that watches every access.
    ///
    /// # Errors
    /// Those of [`emulator::open`].
    pub fn checked(arch: Option<&str>, schedule: Option<Schedule>) -> Result<Subject> {
        let options = emulator::open(arch)?.options();
        let (emulator, trace) = Emulator::checked(emulator::Options { schedule: schedule.unwrap_or(options.schedule), ..options })?;
        Ok(Subject { devices: vec![Device::on(Box::new(emulator))], trace: Some(trace) })
    }

    pub fn first(&self) -> &Device {
        &self.devices[0]
    }

    /// Forgets what was counted so far.
    fn count(&self) -> BTreeMap<String, emulator::Traffic> {
        self.trace.as_ref().map(Trace::take).unwrap_or_default()
    }
}

/// Runs the selected cases and compares each with the oracle.
///
/// `progress` is called before each case with its operation, its number and how many there are.
pub fn run(subject: &Subject, selection: Selection, mut progress: impl FnMut(&str, usize, usize)) -> Report {
    let mut report = Report::default();
    let device = subject.first();
    let name = device.name();
    let mut chosen: Vec<(&Op, Case)> = Vec::new();
    for op in REGISTRY.iter().filter(|op| selection.ops.is_empty() || selection.ops.iter().any(|o| o == op.name)) {
        for case in (op.cases)() {
            let other_shape = selection.shapes.is_some_and(|text| !case.label.contains(text));
            if selection.dtype.is_some_and(|dtype| dtype != case.dtype) || (case.bench && !selection.bench) || other_shape {
                continue;
            }
            if *device == Device::Cpu && matches!(case.dtype, DType::BF16 | DType::F16) {
                let why = format!("the CPU stores f32 and f64 only; --device emulator runs {}", case.dtype);
                report.skip(format!("{} cases on the CPU", case.dtype), why);
                continue;
            }
            chosen.push((op, case));
        }
    }
    let total = chosen.len();
    for (n, (op, case)) in chosen.iter().enumerate() {
        progress(op.name, n, total);
        let mut outcome = Outcome::new(op.name, &case.label, case.dtype.name(), &name);
        let fixed = seed(op.name, case);
        subject.count();
        if let Err(error) = compare(&subject.devices, case, fixed, &mut outcome) {
            outcome.fail(error.to_string());
        }
        outcome.traffic = subject.trace.is_some().then(|| Traffic::new(case.cost, &subject.count()));
        if let Some(seed) = selection.seed.filter(|_| outcome.pass) {
            afresh(subject, case, seed ^ fixed, &mut outcome);
        }
        report.push(outcome);
    }
    report
}

/// Runs the case on inputs that nobody has seen. Budgets are four standard deviations of the error, which one element in some
/// millions exceeds; twice as many are allowed here, and outputs too few for an rms that means anything are not judged.
fn afresh(subject: &Subject, case: &Case, seed: u64, outcome: &mut Outcome) {
    const SLACK: f64 = 2.0;
    const ENOUGH: usize = 32;
    let mut fresh = Outcome::new(&outcome.op, &outcome.case, &outcome.dtype, &outcome.device);
    if let Err(error) = compare(&subject.devices, case, seed, &mut fresh) {
        fresh.fail(error.to_string());
    }
    if fresh.error.is_some() || (fresh.budget_used > SLACK && fresh.elements >= ENOUGH) {
        outcome.fail(format!("with fresh inputs: {}", fresh.why()));
    }
}

/// The same inputs for a case on every machine, whatever else is run.
fn seed(op: &str, case: &Case) -> u64 {
    let text = format!("{op}/{}/{}", case.label, case.dtype);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

fn compare(devices: &[Device], case: &Case, seed: u64, outcome: &mut Outcome) -> Result<()> {
    let prepared = Prepared::new(case, seed)?;
    let found = prepared.run(case, &devices[0])?;
    prepared.judge(case, &found, outcome)?;
    for other in devices.iter().skip(1) {
        for (((name, _), first), again) in case.outputs.iter().zip(&found).zip(&prepared.run(case, other)?) {
            if bits(first)? != bits(again)? {
                outcome.fail(format!("{name} differs between {} and {}: a race", devices[0].name(), other.name()));
            }
        }
    }
    Ok(())
}

/// A case's inputs and what must come of them.
pub(crate) struct Prepared {
    values: Vec<Vec<f64>>,
    expected: Vec<(Shape, Vec<f64>)>,
}

impl Prepared {
    /// Inputs that are the same on every machine.
    pub fn fixed(op: &str, case: &Case) -> Result<Prepared> {
        Prepared::new(case, seed(op, case))
    }

    fn new(case: &Case, seed: u64) -> Result<Prepared> {
        let values = case.draw(seed);
        let expected = (case.run)(&case.upload(&Device::Cpu, &values, true)?)?;
        let expected = expected.iter().map(|tensor| Ok((tensor.shape(), tensor.to_f64()?))).collect::<Result<_>>()?;
        Ok(Prepared { values, expected })
    }

    pub fn run(&self, case: &Case, device: &Device) -> Result<Vec<Tensor>> {
        let outputs = (case.run)(&case.upload(device, &self.values, false)?)?;
        device.synchronize()?;
        Ok(outputs)
    }

    pub fn judge(&self, case: &Case, found: &[Tensor], outcome: &mut Outcome) -> Result<()> {
        let expected = &self.expected;
        if expected.len() != case.outputs.len() || found.len() != case.outputs.len() {
            let (e, f) = (expected.len(), found.len());
            outcome.fail(format!("{} outputs described, the oracle gave {e} and the device {f}", case.outputs.len()));
            return Ok(());
        }
        for (((name, check), found), (shape, e)) in case.outputs.iter().zip(found).zip(expected) {
            if found.shape() != *shape {
                outcome.fail(format!("{name} has shape {:?}, expected {shape:?}", found.shape()));
                continue;
            }
            let f = found.to_f64()?;
            let comparison = match check {
                Check::Within(tolerance) => tolerance.compare(&f, e),
                Check::Exact => exact(&f, e),
                Check::Index { margin, epsilon } => match expected.get(*margin) {
                    Some((_, margin)) => index(&f, e, margin, *epsilon),
                    None => {
                        outcome.fail(format!("{name}: no output {margin} to take the margin from"));
                        continue;
                    }
                },
                Check::Ignore => continue,
            };
            outcome.add(name, comparison);
        }
        Ok(())
    }
}

/// All types convert to f64 without loss, and f64's bits tell zeros apart.
fn bits(tensor: &Tensor) -> Result<Vec<u64>> {
    Ok(tensor.to_f64()?.into_iter().map(f64::to_bits).collect())
}

fn exact(found: &[f64], expected: &[f64]) -> Comparison {
    integers(found, expected, |_| f64::INFINITY)
}

/// Integers that may differ where the oracle itself was undecided.
fn index(found: &[f64], expected: &[f64], margins: &[f64], epsilon: f64) -> Comparison {
    integers(found, expected, |i| margins.get(i).map_or(f64::INFINITY, |margin| margin / epsilon))
}

/// `used(i)`: the budget that a difference at `i` uses.
fn integers(found: &[f64], expected: &[f64], used: impl Fn(usize) -> f64) -> Comparison {
    let mut result = Comparison { elements: expected.len(), ..Comparison::default() };
    if found.len() != expected.len() {
        result.budget_used = f64::INFINITY;
        return result;
    }
    let mut differing = 0;
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        if f != e && !(f.is_nan() && e.is_nan()) {
            differing += 1;
            result.max_abs = result.max_abs.max((f - e).abs());
            result.uses(used(i), i, *f, *e);
        }
    }
    result.nmse = differing as f64 / expected.len().max(1) as f64;
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_may_differ_only_where_the_oracle_was_undecided() {
        let margins = [1e-9, 0.5, 0.5];
        assert!(index(&[1.0, 2.0, 3.0], &[0.0, 2.0, 3.0], &margins, 1e-6).holds());
        assert!(!index(&[1.0, 0.0, 3.0], &[1.0, 2.0, 3.0], &margins, 1e-6).holds());
        assert!(!exact(&[1.0], &[2.0]).holds());
        assert!(!exact(&[1.0], &[1.0, 1.0]).holds());
    }

    #[test]
    fn a_selection_that_matches_nothing_does_not_hold() {
        let ops = ["no_such_op".to_owned()];
        let cpu = Subject::device(Device::Cpu);
        assert!(!run(&cpu, Selection { ops: &ops, ..Selection::default() }, |_, _, _| {}).holds());
        assert!(!run(&cpu, Selection { shapes: Some("no such shape"), ..Selection::default() }, |_, _, _| {}).holds());
    }

    #[test]
    fn narrow_types_are_skipped_on_the_cpu_and_said_to_be() {
        let selection = Selection { dtype: Some(DType::BF16), ..Selection::default() };
        let report = run(&Subject::device(Device::Cpu), selection, |_, _, _| {});
        assert!(report.cases.is_empty());
        assert!(report.skipped.iter().any(|s| s.what.contains("bf16") && s.why.contains("emulator")));
    }

    #[test]
    fn a_planted_error_fails() {
        let mut cases = (REGISTRY[0].cases)();
        let mut case = cases.remove(cases.iter().position(|c| c.dtype == DType::F32 && !c.bench).unwrap());
        let honest = std::mem::replace(&mut case.run, Box::new(|_| Ok(Vec::new())));
        case.run = Box::new(move |inputs| {
            let mut outputs = honest(inputs)?;
            if outputs[0].dtype() == DType::F32 {
                outputs[0].as_mut_slice::<f32>()?[0] += 1.0;
            }
            Ok(outputs)
        });
        let mut outcome = Outcome::new("planted", &case.label, "f32", "cpu");
        compare(&[Device::Cpu], &case, 1, &mut outcome).unwrap();
        assert!(!outcome.pass && outcome.budget_used > 1.0, "{outcome:?}");
    }
}
