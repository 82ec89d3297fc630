use swara_kernels::ops::REGISTRY;
use swara_kernels::{Device, Error};
use swara_verify::harness::{self, Selection};
use swara_verify::{Report, golden};

use crate::cli::{Common, Verify};
use crate::failure::{Failure, Result};
use crate::terminal;

pub fn run(common: &Common, args: &Verify) -> Result {
    check_names(&args.names)?;
    let devices = devices(common)?;
    let mut report = Report::default();
    let bar = terminal::progress(Some(0), "verify");
    let asked = |name: &str| args.names.is_empty() || args.names.iter().any(|n| n == name);
    if REGISTRY.iter().any(|op| asked(op.name)) {
        let selection = Selection { ops: &args.names, dtype: common.dtype, bench: args.large };
        report.append(harness::run(&devices, selection, |op, done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
            bar.set_message(op.to_owned());
        }));
        if !args.large {
            report.skip("large cases", "they take long; --large runs them");
        }
    }
    match &args.golden {
        Some(dir) => report.append(golden::run(dir, &devices[0], &args.names)?),
        None => report.skip("reference outputs", "no folder given; --golden verify/golden compares with those of a checkout"),
    }
    bar.finish_and_clear();
    if common.json {
        terminal::say_json(&report)?;
    } else {
        print(&report)?;
    }
    match (report.holds(), report.failed) {
        (true, _) => Ok(()),
        (false, 0) => Err(Failure::work("verify: nothing was run").hint("see what was skipped, and why")),
        (false, _) => Err(Failure::said()),
    }
}

fn check_names(names: &[String]) -> Result {
    let known: Vec<&str> = REGISTRY.iter().map(|op| op.name).chain(golden::families()).collect();
    match names.iter().find(|name| !known.contains(&name.as_str())) {
        Some(name) => Err(Failure::usage(format!("verify: nothing is called {name:?}")).hint(format!("known: {}", known.join(" ")))),
        None => Ok(()),
    }
}

/// On the emulator, three devices that must agree to the bit.
fn devices(common: &Common) -> Result<Vec<Device>> {
    let spec = common.device_spec();
    match spec.strip_prefix("emulator") {
        Some("") => Ok(harness::emulator_schedules(None)?),
        Some(arch) if arch.starts_with(':') => Ok(harness::emulator_schedules(Some(&arch[1..]))?),
        _ => Ok(vec![common.open_device()?]),
    }
}

fn print(report: &Report) -> Result {
    let rows: Vec<Vec<String>> = report
        .cases
        .iter()
        .map(|c| {
            let used = if c.budget_used.is_finite() { format!("{:.1}%", 100.0 * c.budget_used) } else { "-".to_owned() };
            vec![
                c.op.clone(),
                c.case.clone(),
                c.dtype.clone(),
                format!("{:.1e}", c.nmse),
                format!("{:.1e}", c.max_abs),
                format!("{:.1}", c.max_ulp),
                used,
                if c.pass { "ok" } else { "FAILED" }.to_owned(),
            ]
        })
        .collect();
    if !rows.is_empty() {
        terminal::say(terminal::table(&["op", "case", "dtype", "nmse", "max abs", "max ulp", "budget", ""], &rows))?;
    }
    for c in report.cases.iter().filter(|c| !c.pass) {
        let why = match &c.error {
            Some(error) => error.replace('\n', "\n    "),
            None => format!("{}: {:.3} of its budget", c.output, c.budget_used),
        };
        terminal::say(format!("FAILED {} {} {} on {}: {why}", c.op, c.case, c.dtype, c.device))?;
    }
    for s in &report.skipped {
        terminal::say(format!("skipped {}: {}", s.what, s.why))?;
    }
    let device = report.cases.first().map_or("no device", |c| c.device.as_str());
    terminal::say(format!("{} passed, {} failed, {} kinds of case skipped ({device})", report.passed, report.failed, report.skipped.len()))
}

impl From<golden::Error> for Failure {
    fn from(error: golden::Error) -> Failure {
        match error {
            golden::Error::Kernel(error @ Error::Unavailable { .. }) => error.into(),
            error => Failure::work(error.to_string()),
        }
    }
}
