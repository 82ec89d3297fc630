//! `kernels/README.md` is generated from the operations themselves, the compile gate's budget, a run on the emulator and the
//! figures of GPUs that are in `benches/results`; this test keeps it current, and fails for a kernel that lacks any of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use swara_kernels::case::{Case, Op};
use swara_kernels::driver::emulator::Schedule;
use swara_kernels::driver::nvrtc::target;
use swara_kernels::driver::occupancy::occupancy;
use swara_kernels::driver::{Arch, Source, dry};
use swara_kernels::ops::{REGISTRY, UNPROVEN};
use swara_kernels::span::timeline::{self, LIMIT};
use swara_kernels::{DType, Device};
use swara_verify::harness::{self, Selection, Subject};

const HEAD: &str = "\
# swara-kernels

One folder an operation under [`src/ops`](src/ops): the contract and the cases (`mod.rs`), the plain Rust twin that is the CPU
device in f32 and the oracle in f64 (`cpu.rs`), the kernels (`.cu`) and their launches (`cuda.rs`). Shared CUDA text is in
[`cuda`](cuda), the emulator's runtime in [`emulator`](emulator).

This page is generated: `SWARA_UPDATE=1 cargo test -p swara-verify --test kernel_table`. A kernel that no case launches, that the
[budget](budget.toml) of the compile gate does not name, or whose operation has no timed case with its cost, fails that test.

## A new operation

`kernels/new-op.sh NAME` copies [`template`](template), softsign and its gradient in all types, into `src/ops/NAME` and names the
commands from there to a row of this page; the first of them work at once. How inputs are drawn, outputs judged and errors budgeted is in
[`case.rs`](src/case.rs) and [`tolerance.rs`](src/tolerance.rs); what operations share is in
[`launch.rs`](src/ops/launch.rs), [`check.rs`](src/ops/check.rs), [`testing.rs`](src/ops/testing.rs) and [`cuda`](cuda). Models use an
operation once [`tape.rs`](../engine/src/tape.rs) records it.

## Operations

Versions are those of the ladder in the `.cu` file's header. Bytes and flops are what the timed case must move and compute at
least. Error is the share of its computed tolerance that the worst case uses on the emulator (sm_90). Measured is the share of the
same GPU's ceiling, over the timed cases, when it was last timed (`benches/results`).

| operation | versions | kernels | dtypes | architectures | cases | timed case | MB | MFLOP | error | measured |
|---|---|---|---|---|---|---|---|---|---|---|
";

const KERNELS: &str = "
## Kernels

A row is a kernel in all its types. Registers a thread and bytes of static and dynamic shared memory over those types;
threads a block, and the occupancy that they leave on sm_90a, over all launches of the cases; cases that launch it, timed ones
after the plus. `swara profile --static OP` has each by itself, with its instructions. With a star: of instructions that the
emulator knows from the manual alone, never run on a GPU, and taken only where somebody asks for them.

| kernel | types | registers sm_75 | sm_80 | sm_90a | sm_120 | shared | dynamic | threads | occupancy | cases |
|---|---|---|---|---|---|---|---|---|---|---|
";

/// One below and one above the step from Turing, where launches part.
const DRY: [Arch; 2] = [Arch(75), Arch(90)];

/// How the cases launch one kernel.
#[derive(Default)]
struct Launches {
    cases: BTreeSet<usize>,
    timed: BTreeSet<usize>,
    /// Threads and dynamic shared memory on sm_90.
    shapes: BTreeSet<(u32, u32)>,
}

/// By source and kernel.
type Launched = BTreeMap<(&'static str, String), Launches>;

fn survey(op: &Op, cases: &[Case], launched: &mut Launched) {
    for arch in DRY {
        let (device, notes) = dry::open(arch);
        for (n, case) in cases.iter().enumerate() {
            (case.run)(&case.blank(&device).unwrap()).unwrap_or_else(|e| panic!("{} {}: {e}", op.name, case.label));
            for noted in notes.take() {
                let launches = launched.entry((noted.source.path, noted.kernel)).or_default();
                let ours = op.sources.iter().any(|source| source.path == noted.source.path);
                if ours {
                    if case.bench { &mut launches.timed } else { &mut launches.cases }.insert(n);
                }
                if arch == Arch(90) {
                    launches.shapes.insert((noted.launch.block.iter().product(), noted.launch.shared_bytes));
                }
            }
        }
    }
}

/// What the budget says of a kernel.
fn registers(budget: &toml::Table, op: &str, kernel: &str, arch: u32) -> Option<u32> {
    let kernel = budget.get("kernels")?.get(op)?.get(kernel)?;
    u32::try_from(kernel.get("registers")?.get(target(arch))?.as_integer()?).ok()
}

fn shared(budget: &toml::Table, op: &str, kernel: &str) -> Option<u32> {
    u32::try_from(budget.get("kernels")?.get(op)?.get(kernel)?.get("shared")?.as_integer()?).ok()
}

fn kernels(op: &Op) -> Vec<(&'static Source, String)> {
    op.sources.iter().flat_map(|&source| source.kernels().unwrap().into_iter().map(move |kernel| (source, kernel))).collect()
}

/// Everything that an operation or one of its kernels lacks.
fn lacking(op: &Op, cases: &[Case], launched: &Launched, budget: &toml::Table) -> Vec<String> {
    let mut lacking = Vec::new();
    let mut lacks = |what: String| lacking.push(format!("{}: {what}", op.name));
    if !cases.iter().any(|case| !case.bench) {
        lacks("no case to verify".into());
    }
    if !cases.iter().any(|case| case.bench) {
        lacks("no case to time".into());
    }
    for case in cases.iter().filter(|case| case.bench && case.cost.bytes == 0) {
        lacks(format!("{} {} is timed and costs nothing", case.label, case.dtype));
    }
    if op.sources.is_empty() {
        lacks("no kernels".into());
    }
    for (source, kernel) in kernels(op) {
        if launched.get(&(source.path, kernel.clone())).is_none_or(|launches| launches.cases.is_empty()) {
            lacks(format!("no case launches {kernel}"));
        }
        for arch in source.archs.iter().filter(|arch| registers(budget, op.name, &kernel, **arch).is_none()) {
            lacks(format!("{kernel} is not in the budget on {}", target(*arch)));
        }
    }
    lacking
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read_budget() -> toml::Table {
    std::fs::read_to_string(root().join("kernels/budget.toml")).unwrap().parse().unwrap()
}

/// Paths below `kernels/src` of every `.cu` file.
fn files(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "cu") {
            found.push(path.strip_prefix(root().join("kernels/src")).unwrap().to_str().unwrap().to_owned());
        }
    }
    found
}

/// `low to high`, or the one number that both are.
fn span<T: PartialOrd + Copy>(values: impl Iterator<Item = T>, text: impl Fn(T) -> String) -> String {
    let range = values.fold(None, |range: Option<(T, T)>, v| {
        let (low, high) = range.unwrap_or((v, v));
        Some((if v < low { v } else { low }, if v > high { v } else { high }))
    });
    match range.map(|(low, high)| (text(low), text(high))) {
        None => "-".to_owned(),
        Some((low, high)) if low == high => low,
        Some((low, high)) => format!("{low} to {high}"),
    }
}

/// Numbers of the version ladder in the header of its first `.cu` file; a file without one has one version.
fn versions(op: &Op) -> usize {
    let ladder = |line: &&str| {
        let text = line.strip_prefix("//").map(str::trim_start).and_then(|rest| rest.strip_prefix('v')).unwrap_or("");
        text.split_whitespace().next().is_some_and(|word| word.parse::<u32>().is_ok())
    };
    op.sources[0].text.lines().take_while(|line| line.starts_with("//")).filter(ladder).count().max(1)
}

/// Worst share of its budget by operation, in percent, on the emulator; `None` without one.
fn errors() -> Option<BTreeMap<String, f64>> {
    let emulator = match Subject::emulator(Some("sm_90"), Some(Schedule::Ascending)) {
        Ok(emulator) => emulator,
        Err(error) => {
            println!("skipped in part: errors are not checked: {error}");
            return None;
        }
    };
    let report = harness::run(&emulator, Selection::default(), |_, _, _| {});
    assert!(report.holds(), "{} cases fail on the emulator; see swara verify", report.failed);
    let mut worst = BTreeMap::new();
    for case in &report.cases {
        let used = worst.entry(case.op.clone()).or_insert(0.0f64);
        *used = used.max(100.0 * case.budget_used);
    }
    Some(worst)
}

/// The error that the page has for an operation.
fn written(page: &str, op: &str) -> Option<f64> {
    let row = page.lines().find(|line| line.starts_with(&format!("| [`{op}`]")))?;
    row.split('|').nth(10)?.trim().strip_suffix('%')?.parse().ok()
}

/// A C++ compiler's mathematics may move the last digit; what is written stands while it is about right.
fn error(found: Option<f64>, written: Option<f64>) -> String {
    let shown = match (found, written) {
        (Some(found), Some(written)) if (found - written).abs() <= 1.0 + 0.2 * written => written,
        (Some(found), _) => found,
        (None, written) => written.unwrap_or(f64::NAN),
    };
    format!("{shown:.0}%")
}

/// Share of the ceiling by operation, with GPU and date, from the newest of the results that `benches/gpu.sh` leaves.
fn measured(results: &Path) -> BTreeMap<String, (String, String)> {
    let mut newest: BTreeMap<String, (String, String)> = BTreeMap::new();
    let mut folders: Vec<PathBuf> = std::fs::read_dir(results).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    folders.sort();
    for folder in folders {
        let Ok(text) = std::fs::read_to_string(folder.join("bench-kernels.json")) else { continue };
        let rows: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let machine = std::fs::read_to_string(folder.join("machine.txt")).unwrap_or_default();
        let date = machine.get(..10).filter(|date| date.bytes().all(|b| b.is_ascii_digit() || b == b'-')).unwrap_or("no date").to_owned();
        let mut shares: BTreeMap<(String, String), Vec<f64>> = BTreeMap::new();
        for row in &rows {
            let (Some(op), Some(gpu), Some(share)) = (row["op"].as_str(), row["device"].as_str(), row["share_of_ceiling"].as_f64()) else {
                continue;
            };
            if gpu != "cpu" {
                shares.entry((op.to_owned(), gpu.to_owned())).or_default().push(100.0 * share);
            }
        }
        for ((op, gpu), shares) in shares {
            let text = format!("{} ({gpu}, {date})", span(shares.into_iter(), |share| format!("{share:.0}%")));
            if newest.get(&op).is_none_or(|(before, _)| *before < date) {
                newest.insert(op, (date.clone(), text));
            }
        }
    }
    newest
}

fn op_row(op: &Op, cases: &[Case], error: &str, measured: Option<&str>) -> String {
    let dtypes: BTreeSet<&str> = cases.iter().map(|c| c.dtype.name()).collect();
    let archs: BTreeSet<u32> = op.sources.iter().flat_map(|source| source.archs).copied().collect();
    let archs: Vec<String> = archs.iter().map(u32::to_string).collect();
    // The largest in f32.
    let timed = cases.iter().filter(|case| case.bench && case.dtype == DType::F32).max_by_key(|case| case.cost.bytes).unwrap();
    format!(
        "| [`{0}`](src/ops/{0}/mod.rs) | {1} | {2} | {3} | {4} | {5} | {6} | {7:.1} | {8:.1} | {error} | {9} |\n",
        op.name,
        versions(op),
        kernels(op).len(),
        Vec::from_iter(dtypes).join(" "),
        archs.join(" "),
        cases.len(),
        timed.label,
        timed.cost.bytes as f64 * 1e-6,
        timed.cost.flops as f64 * 1e-6,
        measured.unwrap_or("not yet"),
    )
}

fn kernel_rows(op: &Op, launched: &Launched, budget: &toml::Table) -> String {
    let mut families: BTreeMap<(&str, String), Vec<(String, String)>> = BTreeMap::new();
    for (source, kernel) in kernels(op) {
        let (family, dtype) = match kernel.rsplit_once('_') {
            Some((family, dtype @ ("f32" | "bf16" | "f16"))) => (family.to_owned(), dtype.to_owned()),
            _ => (kernel.clone(), String::new()),
        };
        families.entry((source.path, family)).or_default().push((dtype, kernel));
    }
    let mut rows = String::new();
    for ((path, family), mut kernels) in families {
        kernels.sort();
        let types: Vec<&str> = kernels.iter().map(|(dtype, _)| dtype.as_str()).filter(|dtype| !dtype.is_empty()).collect();
        let regs = |arch: u32| span(kernels.iter().filter_map(|(_, kernel)| registers(budget, op.name, kernel, arch)), |n| n.to_string());
        let of = |kernel: &str| launched.get(&(path, kernel.to_owned()));
        let mark = if UNPROVEN.iter().any(|source| source.path == path) { " *" } else { "" };
        let count = |of_one: fn(&Launches) -> &BTreeSet<usize>| {
            kernels.iter().filter_map(|(_, kernel)| of(kernel)).flat_map(|launches| of_one(launches).iter()).collect::<BTreeSet<_>>().len()
        };
        let shapes: Vec<(&str, u32, u32)> = kernels
            .iter()
            .flat_map(|(_, k)| of(k).into_iter().flat_map(move |l| l.shapes.iter().map(move |&(t, d)| (k.as_str(), t, d))))
            .collect();
        let occupied = shapes.iter().filter_map(|&(kernel, threads, dynamic)| {
            let (registers, shared) = (registers(budget, op.name, kernel, 90)?, shared(budget, op.name, kernel)?);
            Some(occupancy(Arch(90), registers, threads, shared + dynamic)?.share())
        });
        let _ = writeln!(
            rows,
            "| `{family}`{mark} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {}+{} |",
            if types.is_empty() { "-".to_owned() } else { types.join(" ") },
            regs(75),
            regs(80),
            regs(90),
            regs(120),
            span(kernels.iter().filter_map(|(_, kernel)| shared(budget, op.name, kernel)), |n| n.to_string()),
            span(shapes.iter().map(|shape| shape.2), |n| n.to_string()),
            span(shapes.iter().map(|shape| shape.1), |n| n.to_string()),
            span(occupied, |share| format!("{:.0}%", 100.0 * share)),
            count(|launches| &launches.cases),
            count(|launches| &launches.timed),
        );
    }
    rows
}

#[test]
fn the_kernel_table_is_current_and_every_kernel_is_in_it() {
    let budget = read_budget();
    let registered: BTreeSet<&str> = REGISTRY.iter().flat_map(|op| op.sources).map(|source| source.path).collect();
    let mut lacks: Vec<String> = files(&root().join("kernels/src/ops"))
        .into_iter()
        .filter(|file| !registered.contains(file.as_str()))
        .map(|file| format!("{file} belongs to no operation"))
        .collect();
    let mut ops: Vec<(&Op, Vec<Case>)> = REGISTRY.iter().map(|&op| (op, (op.cases)())).collect();
    ops.sort_by_key(|(op, _)| op.name);
    let mut launched = Launched::new();
    ops.iter().for_each(|(op, cases)| survey(op, cases, &mut launched));
    lacks.extend(ops.iter().flat_map(|(op, cases)| lacking(op, cases, &launched, &budget)));
    assert!(lacks.is_empty(), "{lacks:#?}");

    let path = root().join("kernels/README.md");
    let page = std::fs::read_to_string(&path).unwrap_or_default();
    let (errors, measured) = (errors(), measured(&root().join("benches/results")));
    let mut expected = HEAD.to_owned();
    for (op, cases) in &ops {
        let found = errors.as_ref().and_then(|errors| errors.get(op.name).copied());
        expected.push_str(&op_row(op, cases, &error(found, written(&page, op.name)), measured.get(op.name).map(|(_, text)| text.as_str())));
    }
    expected.push_str(KERNELS);
    ops.iter().for_each(|(op, _)| expected.push_str(&kernel_rows(op, &launched, &budget)));
    if std::env::var_os("SWARA_UPDATE").is_some() {
        std::fs::write(&path, expected).unwrap();
    } else {
        let stale = expected.lines().zip(page.lines()).find(|(expected, found)| expected != found);
        let hint = "SWARA_UPDATE=1 cargo test -p swara-verify --test kernel_table";
        assert!(page == expected, "kernels/README.md is not current ({hint}): {stale:#?}");
    }
}

#[test]
fn a_kernel_that_lacks_anything_is_named() {
    static SOURCE: Source = Source {
        path: "ops/planted.cu",
        text: "extern \"C\" __global__ void forgotten() {}\nextern \"C\" __global__ void costly() {}\n",
        archs: &[80, 90],
    };
    static PLANTED: Op = Op { name: "planted", sources: &[&SOURCE], cases: Vec::new };
    let budget: toml::Table = "[kernels.planted]\ncostly = { registers = { sm_80 = 8 }, shared = 0 }".parse().unwrap();
    let case = |bench, bytes| Case {
        label: "a".into(),
        dtype: DType::F32,
        inputs: Vec::new(),
        outputs: Vec::new(),
        run: Box::new(|inputs| {
            let device = dry::open(Arch(80)).0;
            assert!(inputs.is_empty() && device != Device::Cpu);
            Ok(Vec::new())
        }),
        cost: swara_kernels::case::Cost { bytes, flops: 0 },
        bench,
    };
    let mut launched = Launched::new();
    launched.insert((SOURCE.path, "costly".into()), Launches { cases: [0].into(), ..Launches::default() });
    let found = lacking(&PLANTED, &[case(false, 0), case(true, 0)], &launched, &budget);
    for lack in [
        "planted: a f32 is timed and costs nothing",
        "planted: no case launches forgotten",
        "planted: forgotten is not in the budget on sm_80",
        "planted: forgotten is not in the budget on sm_90a",
        "planted: costly is not in the budget on sm_90a",
    ] {
        assert!(found.iter().any(|f| f == lack), "{lack:?} not in {found:#?}");
    }
    assert_eq!(found.len(), 5, "{found:#?}");
    let found = lacking(&PLANTED, &[], &Launched::new(), &budget);
    assert!(
        ["planted: no case to verify", "planted: no case to time", "planted: no case launches costly"]
            .iter()
            .all(|l| found.iter().any(|f| f == l))
    );
    // A timed case does not verify.
    launched.insert((SOURCE.path, "costly".into()), Launches { timed: [0].into(), ..Launches::default() });
    assert!(lacking(&PLANTED, &[], &launched, &budget).contains(&"planted: no case launches costly".to_owned()));
}

#[test]
fn results_of_gpus_are_read_newest_first() {
    let dir = tempfile::tempdir().unwrap();
    let row = |op: &str, device: &str, share: f64| serde_json::json!({ "op": op, "device": device, "share_of_ceiling": share });
    for (name, date, rows) in [
        ("b", "2026-01-02T03:04:05Z", vec![row("snake", "GPU B", 0.5), row("snake", "GPU B", 0.75), row("loss", "cpu", 0.9)]),
        ("a", "2026-02-02T03:04:05Z", vec![row("snake", "GPU A", 0.25)]),
        ("c", "2025-01-02T03:04:05Z", vec![row("snake", "GPU C", 0.99), row("stft", "GPU C", 0.1)]),
    ] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
        std::fs::write(dir.path().join(name).join("machine.txt"), date).unwrap();
        std::fs::write(dir.path().join(name).join("bench-kernels.json"), serde_json::to_vec(&rows).unwrap()).unwrap();
    }
    let found: Vec<(String, String)> = measured(dir.path()).into_iter().map(|(op, (_, text))| (op, text)).collect();
    assert_eq!(found, [("snake".into(), "25% (GPU A, 2026-02-02)".into()), ("stft".into(), "10% (GPU C, 2025-01-02)".into())]);
    assert!(measured(Path::new("/nonexistent")).is_empty());
}

#[test]
fn every_operation_says_what_runs() {
    for op in REGISTRY {
        for case in (op.cases)().into_iter().filter(|case| !case.bench && case.dtype == DType::F32).take(1) {
            let inputs = case.upload(&Device::Cpu, &case.draw(1), false).unwrap();
            let (outcome, timeline) = timeline::record(&Device::Cpu, LIMIT, || (case.run)(&inputs).map(drop)).unwrap();
            outcome.unwrap();
            let named = timeline.spans.iter().any(|span| span.name.split('.').next() == Some(op.name));
            assert!(named, "{} {} opens no span of its own", op.name, case.label);
        }
    }
}
