use swara_kernels::ops::REGISTRY;
use swara_verify::harness::{self, Selection, Subject};
use swara_verify::mutants::{Equivalents, Fate};
use swara_verify::{CodeMatch, Outcome, Report, golden};

use crate::cli::{Common, Verify};
use crate::codec;
use crate::failure::{Failure, Result};
use crate::terminal;

pub fn run(common: &Common, args: &Verify) -> Result {
    check_names(&args.names)?;
    if args.mutants {
        return mutants(common, args);
    }
    let subject = subject(common, args)?;
    let mut report = Report::default();
    let bar = terminal::progress(Some(0), "verify");
    let asked = |name: &str| args.names.is_empty() || args.names.iter().any(|n| n == name);
    if REGISTRY.iter().any(|op| asked(op.name)) {
        let (seed, chosen) = (args.seed.unwrap_or_else(fresh_seed), args.shapes.as_deref());
        let selection = Selection { ops: &args.names, dtype: common.dtype()?, shapes: chosen, bench: args.large, seed: Some(seed) };
        terminal::note(format!("fresh inputs: --seed {seed} draws them again"));
        report.append(harness::run(&subject, selection, |op, done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
            bar.set_message(op.to_owned());
        }));
        if !args.large {
            report.skip("large cases", "they take long; --large runs them");
        }
    }
    match &args.golden {
        Some(dir) => report.append(golden::run(dir, subject.first(), codec::stored(common, subject.first())?, &args.names)?),
        None => report.skip("reference outputs", "no folder given; --golden verify/golden compares with those of a checkout"),
    }
    bar.finish_and_clear();
    if common.json {
        terminal::say_json(&report)?;
    } else {
        print(&report)?;
        if let Some(kernel) = &args.trace {
            print_traffic(&report, kernel)?;
        }
    }
    match (report.holds(), report.failed) {
        (true, _) => Ok(()),
        (false, 0) => Err(Failure::work("verify: nothing was run").hint("see what was skipped, and why")),
        (false, _) => Err(Failure::said()),
    }
}

fn mutants(common: &Common, args: &Verify) -> Result {
    let bar = terminal::progress(Some(0), "mutants");
    let report = swara_verify::mutants::run(&args.names, &Equivalents::bundled()?, |op, done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
        bar.set_message(op.to_owned());
    })?;
    bar.finish_and_clear();
    if common.json {
        terminal::say_json(&report)?;
    } else {
        for m in &report.mutants {
            let place = format!("{}:{}:{} {}", m.file, m.line, m.column, m.kind);
            let fate = match &m.fate {
                Fate::Killed { op, case, dtype, how } => {
                    format!("killed by {op} {case} {dtype}: {}", how.lines().next().unwrap_or_default())
                }
                Fate::Equivalent { why } => format!("equivalent: {why}"),
                Fate::Survived => format!("SURVIVED: {}", m.text),
                Fate::Unreached => format!("UNREACHED: {}", m.text),
            };
            terminal::say(format!("{place}: {fate}"))?;
        }
        for stale in &report.stale {
            terminal::say(format!("listed as equivalent, but not there: {stale}"))?;
        }
        let count = |wanted: fn(&Fate) -> bool| report.count(wanted);
        terminal::say(format!(
            "{} mutants: {} killed, {} equivalent, {} survived, {} never reached",
            report.mutants.len(),
            count(|fate| matches!(fate, Fate::Killed { .. })),
            count(|fate| matches!(fate, Fate::Equivalent { .. })),
            count(|fate| matches!(fate, Fate::Survived)),
            count(|fate| matches!(fate, Fate::Unreached)),
        ))?;
    }
    if report.holds() { Ok(()) } else { Err(Failure::said()) }
}

fn check_names(names: &[String]) -> Result {
    let known: Vec<&str> = REGISTRY.iter().map(|op| op.name).chain(golden::families()).collect();
    match names.iter().find(|name| !known.contains(&name.as_str())) {
        Some(name) => Err(Failure::usage(format!("verify: nothing is called {name:?}")).hint(format!("known: {}", known.join(" ")))),
        None => Ok(()),
    }
}

fn subject(common: &Common, args: &Verify) -> Result<Subject> {
    let device = common.open_device()?; // says what is wrong with the flag
    match common.device_spec().split_once(':').map_or((common.device_spec(), None), |(kind, arch)| (kind, Some(arch))) {
        ("emulator", arch) if args.trace.is_some() => Ok(Subject::checked(arch, args.schedule)?),
        ("emulator", arch) => Ok(Subject::emulator(arch, args.schedule)?),
        _ if args.trace.is_some() || args.schedule.is_some() => {
            Err(Failure::usage("verify: --trace and --schedule are for --device emulator"))
        }
        _ => Ok(Subject::device(device)),
    }
}

fn fresh_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |time| time.as_nanos() as u64 % 1_000_000_000)
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
    // What is wrong with many cases, such as a kernel that does not compile, is said once.
    let mut failures: Vec<(&Outcome, String, usize)> = Vec::new();
    for c in report.cases.iter().filter(|c| !c.pass) {
        let why = c.why();
        match failures.iter_mut().find(|(first, known, _)| first.op == c.op && *known == why) {
            Some((.., more)) => *more += 1,
            None => failures.push((c, why, 0)),
        }
    }
    for (c, why, more) in failures {
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let why = why.trim_end().replace('\n', "\n    ");
        terminal::say(format!("FAILED {} {} {}{more} on {}: {why}", c.op, c.case, c.dtype, c.device))?;
    }
    print_codes(report)?;
    for s in &report.skipped {
        terminal::say(format!("skipped {}: {}", s.what, s.why))?;
    }
    let device = report.cases.first().map_or("no device", |c| c.device.as_str());
    terminal::say(format!("{} passed, {} failed, {} kinds of case skipped ({device})", report.passed, report.failed, report.skipped.len()))
}

/// The share of the codes that are those of the reference, in all and by codebook.
fn print_codes(report: &Report) -> Result {
    let share = |agreeing: usize, codes: usize| format!("{:.1}%", 100.0 * agreeing as f64 / codes.max(1) as f64);
    let row = |c: &Outcome, m: &CodeMatch| {
        let of_all = share(m.agreeing.iter().sum(), m.codes * m.agreeing.len());
        let each: Vec<String> = m.agreeing.iter().map(|&n| share(n, m.codes)).collect();
        vec![format!("{} {} {}", c.op, c.case, m.layout), c.dtype.clone(), of_all, each.join(" ")]
    };
    let rows: Vec<Vec<String>> = report.cases.iter().flat_map(|c| c.codes.iter().map(move |m| row(c, m))).collect();
    match rows.is_empty() {
        true => Ok(()),
        false => terminal::say(terminal::table(&["codes as in f32", "dtype", "all", "by codebook"], &rows)),
    }
}

/// What the kernels whose name contains `wanted` did to memory; `all` for every kernel.
fn print_traffic(report: &Report, wanted: &str) -> Result {
    let mut rows = Vec::new();
    for (c, traffic) in report.cases.iter().filter_map(|c| Some((c, c.traffic.as_ref()?))) {
        let of_cost = if traffic.cost_bytes == 0 { f64::NAN } else { traffic.bytes as f64 / traffic.cost_bytes as f64 };
        for k in traffic.kernels.iter().filter(|k| wanted == "all" || k.kernel.contains(wanted)) {
            rows.push(vec![
                k.kernel.clone(),
                c.case.clone(),
                k.launches.to_string(),
                k.read_bytes.to_string(),
                k.written_bytes.to_string(),
                traffic.cost_bytes.to_string(),
                format!("{of_cost:.3}"),
                format!("{:.0}%", 100.0 * k.coalescing),
                format!("{:.2}", k.reuse),
                format!("{:.0}%", 100.0 * k.bank_conflicts),
            ]);
        }
    }
    if rows.is_empty() {
        return Err(Failure::work(format!("verify --trace: no kernel that ran is called {wanted:?}")));
    }
    let head = ["kernel", "case", "launches", "read", "written", "cost", "moved/cost", "coalesced", "asked/moved", "conflicts"];
    terminal::say(terminal::table(&head, &rows))
}
