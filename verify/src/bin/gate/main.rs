//! The compile gate: every kernel, compiled for every architecture it names, against `kernels/budget.toml`. Needs no GPU.
//!
//! `gate [--update] [--kernels DIR]`: NVRTC compiles (found as on any machine, or `SWARA_NVRTC`), its log tells registers, spills
//! and shared memory, and nvdisasm's listing tells the rest: that kernels which may start before the one before has ended wait for it,
//! too. Without NVRTC the gate says so and passes, unless `CI` is set.

mod budget;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use budget::{Budget, Measured, faults};
use swara_kernels::driver::Source;
use swara_kernels::driver::nvrtc::Nvrtc;
use swara_kernels::ops::REGISTRY;
use swara_verify::measure::{Dependent, Report, find_nvdisasm, measure};

const INSTALL: &str = "pip install nvidia-cuda-nvrtc-cu12==12.9.86 nvidia-cuda-nvdisasm";

fn main() -> ExitCode {
    let started = Instant::now();
    let result = arguments().and_then(|(update, kernels)| run(update, &kernels.join("budget.toml")));
    match result {
        Ok(summary) => {
            println!("{summary} ({:.1} s)", started.elapsed().as_secs_f64());
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("error: gate: {why}");
            ExitCode::FAILURE
        }
    }
}

fn arguments() -> Result<(bool, PathBuf), String> {
    let mut update = false;
    let mut kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels");
    let mut arguments = std::env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--update") => update = true,
            Some("--kernels") => kernels = arguments.next().ok_or("--kernels wants a directory")?.into(),
            _ => return Err(format!("unknown argument {argument:?}; usage: gate [--update] [--kernels DIR]")),
        }
    }
    swara_kernels::driver::source::use_directory(kernels.clone());
    Ok((update, kernels))
}

fn run(update: bool, file: &Path) -> Result<String, String> {
    let strict = std::env::var_os("CI").is_some();
    let nvrtc = match Nvrtc::find(|_| Ok(())) {
        Ok(nvrtc) => nvrtc,
        Err(error) if strict => return Err(format!("{error}\nhint: {INSTALL}")),
        Err(error) => return Ok(format!("SKIPPED, nothing was checked: {error}\nhint: {INSTALL}")),
    };
    let nvdisasm = find_nvdisasm(nvrtc.path());
    if nvdisasm.is_none() {
        let missing = format!("no nvdisasm, so machine code cannot be looked at\nhint: {INSTALL}");
        if strict || update {
            return Err(missing);
        }
        println!("SKIPPED in part: {missing}");
    }

    let sources = sources();
    let (measured, mut failures) = measure_all(&nvrtc, nvdisasm.as_deref(), &sources);
    failures.extend(faults(&measured));
    let version = format!("{}.{}", nvrtc.version().0, nvrtc.version().1);
    if measured.is_empty() && failures.is_empty() {
        return Err("no kernels were found".into());
    }
    if update && failures.is_empty() {
        std::fs::write(file, Budget::of(&measured, version.clone()).text()).map_err(|e| format!("{}: {e}", file.display()))?;
        println!("wrote {}", file.display());
    }
    let budget = std::fs::read_to_string(file)
        .map_err(|e| e.to_string())
        .and_then(|text| toml::from_str::<Budget>(&text).map_err(|e| e.to_string()));
    let budget = budget.unwrap_or_else(|why| {
        failures.push(format!("{}: {why}", file.display()));
        Budget { nvrtc: version.clone(), kernels: BTreeMap::new() }
    });
    if budget.nvrtc == version {
        let (worse, better) = budget.judge(&measured);
        failures.extend(worse);
        better.iter().for_each(|line| println!("better than the budget (--update keeps it so): {line}"));
    } else if strict {
        failures.push(format!("the budget is of NVRTC {}, this is {version}", budget.nvrtc));
    } else {
        println!("SKIPPED in part: the budget is of NVRTC {}, this is {version}; only compilation and spills are checked", budget.nvrtc);
    }

    let kernels = measured.values().map(BTreeMap::len).sum::<usize>();
    let archs = sources.iter().flat_map(|(_, source)| source.archs).collect::<BTreeSet<_>>().len();
    let figures = measured.values().flat_map(BTreeMap::values).flat_map(BTreeMap::values);
    let most = figures.map(|figures| figures.registers).max().unwrap_or(0);
    match failures.len() {
        0 => Ok(format!("gate: {kernels} kernels x {archs} archs: 0 spills, at most {most} registers, within budget; NVRTC {version}")),
        n => Err(format!("{kernels} kernels x {archs} archs: {n} failures\n  {}", failures.join("\n  "))),
    }
}

/// Each source once, under the name of the first op that has it.
fn sources() -> Vec<(&'static str, &'static Source)> {
    let mut seen = BTreeSet::new();
    REGISTRY
        .iter()
        .flat_map(|op| op.sources.iter().map(|&source| (op.name, source)))
        .filter(|(_, source)| seen.insert(source.path))
        .collect()
}

/// Compiles everything on all cores.
fn measure_all(nvrtc: &Nvrtc, nvdisasm: Option<&Path>, sources: &[(&str, &Source)]) -> (Measured, Vec<String>) {
    let mut work: Vec<_> = sources.iter().flat_map(|&(op, source)| source.archs.iter().map(move |&arch| (op, source, arch))).collect();
    work.sort_by_key(|(_, source, _)| std::cmp::Reverse(source.text.len())); // the long ones first, so that no core waits at the end
    let (next, results) = (AtomicUsize::new(0), Mutex::new((Measured::new(), Vec::new())));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(&(op, source, arch)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = measure(nvrtc, nvdisasm, source, arch);
                    let mut results = results.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                    match outcome {
                        Ok(Report { kernels, warnings }) => {
                            results.1.extend(warnings);
                            for (kernel, figures) in kernels {
                                results.0.entry(op.to_owned()).or_default().entry(kernel).or_default().insert(arch, figures);
                            }
                        }
                        Err(why) => results.1.push(why),
                    }
                }
            });
        }
    });
    let (measured, mut failures) = results.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    if failures.is_empty() {
        let ops: BTreeSet<&str> = sources.iter().map(|(op, _)| *op).collect();
        failures.extend(ops.into_iter().flat_map(|op| undeclared(op, sources, measured.get(op))));
        failures.extend(dependents(sources, &measured));
    }
    failures.extend(sources.iter().flat_map(|(_, source)| stray_assembly(source)));
    failures.sort();
    (measured, failures)
}

/// Kernels that an op's sources announce and the compiler has not seen, and the other way round: a launch by name would miss them.
fn undeclared<T>(op: &str, sources: &[(&str, &Source)], compiled: Option<&BTreeMap<String, T>>) -> Vec<String> {
    let of_op = sources.iter().filter(|(of, _)| *of == op);
    let declared: BTreeSet<String> = of_op.flat_map(|(_, source)| source.kernels().unwrap_or_default()).collect();
    let compiled: BTreeSet<String> = compiled.map(|kernels| kernels.keys().cloned().collect()).unwrap_or_default();
    let missing = declared.difference(&compiled).map(|kernel| format!("{op}: {kernel} is declared and not compiled"));
    let extra = compiled.difference(&declared).map(|kernel| format!("{op}: {kernel} is compiled and not declared (`// kernels: ...`)"));
    missing.chain(extra).collect()
}

/// Kernels that are launched before the one before has ended, and do not wait for it, or that could be and are not declared so.
fn dependents(sources: &[(&str, &Source)], measured: &Measured) -> Vec<String> {
    const FROM: u32 = 90;
    let declared: BTreeSet<String> = sources.iter().flat_map(|(_, source)| source.dependents().unwrap_or_default()).collect();
    let mut failures = Vec::new();
    for (kernel, archs) in measured.values().flatten() {
        for (&arch, figures) in archs {
            let (Some(code), able) = (figures.code, declared.contains(kernel) && arch >= FROM) else { continue };
            if code.dependent != if able { Dependent::Able } else { Dependent::No } {
                let declared = if able { "" } else { "not " };
                failures.push(format!("{kernel} on sm_{arch} is {declared}one of `// dependents:`, and its code: {:?}", code.dependent));
            }
        }
    }
    failures
}

/// Inline PTX anywhere but in `ptx.cuh` cannot run on the emulator.
fn stray_assembly(source: &Source) -> Vec<String> {
    let mut file = String::new();
    let mut strays = Vec::new();
    for line in source.expanded().unwrap_or_default().lines() {
        if let Some(name) = line.strip_prefix("#line ").and_then(|rest| rest.split('"').nth(1)) {
            file = name.to_owned();
        }
        let code = line.split("//").next().unwrap_or(line);
        let words = |word: &str| code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == word);
        if file != "ptx.cuh" && (words("asm") || words("__asm__")) {
            strays.push(format!("{file}: inline PTX outside ptx.cuh: {}", line.trim()));
        }
    }
    strays
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPILLING: &str = "extern \"C\" __global__ void __launch_bounds__(1024) spilling(float* y, int n) {
        float a[64];
        for (int i = 0; i < 64; i++) a[i] = y[i * threadIdx.x];
        for (int j = 0; j < n; j++) for (int i = 0; i < 64; i++) a[i] = a[i] * a[(i * 7 + 3) & 63] + y[j];
        float s = 0;
        for (int i = 0; i < 64; i++) s += a[i];
        y[0] = s;
    }";

    fn compiler() -> Option<Nvrtc> {
        Nvrtc::find(|_| Ok(())).inspect_err(|e| eprintln!("SKIPPED: {e}; {INSTALL}")).ok()
    }

    #[test]
    fn a_planted_spill_is_caught_on_every_architecture() {
        let Some(nvrtc) = compiler() else { return };
        static SOURCE: Source = Source { path: "spilling.cu", text: SPILLING, archs: swara_kernels::driver::source::ALL_ARCHS };
        let nvdisasm = find_nvdisasm(nvrtc.path());
        let (measured, failures) = measure_all(&nvrtc, nvdisasm.as_deref(), &[("op", &SOURCE)]);
        assert!(failures.is_empty(), "{failures:?}");
        assert_eq!(faults(&measured).len(), SOURCE.archs.len());
        if nvdisasm.is_some() {
            assert!(measured["op"]["spilling"].values().all(|figures| figures.code.is_some_and(|code| code.local > 0)));
        }
    }

    #[test]
    fn a_planted_register_is_caught() {
        let Some(nvrtc) = compiler() else { return };
        static LEAN: Source = Source { path: "k.cu", text: "extern \"C\" __global__ void k(float* y) { y[0] += 1.0f; }", archs: &[80] };
        static FAT: Source = Source {
            path: "k.cu",
            text: "extern \"C\" __global__ void k(float* y) { float a = y[0], b = y[1], c = y[2], d = y[3]; __syncthreads(); y[4] = a / b + c / d; }",
            archs: &[80],
        };
        let figures = |source| measure_all(&nvrtc, None, &[("op", source)]).0;
        let budget = Budget::of(&figures(&LEAN), "any".into());
        assert_eq!(budget.judge(&figures(&LEAN)).0, Vec::<String>::new());
        assert!(budget.judge(&figures(&FAT)).0[0].contains("registers"));
    }

    #[test]
    fn a_kernel_that_does_not_compile_or_is_misdeclared_is_a_failure() {
        let Some(nvrtc) = compiler() else { return };
        static BROKEN: Source = Source { path: "broken.cu", text: "extern \"C\" __global__ void k() { nonsense }", archs: &[80] };
        static MISDECLARED: Source = Source {
            path: "mis.cu",
            text: "// kernels: absent\n#define KERNEL(name) extern \"C\" __global__ void name() {}\nKERNEL(present)",
            archs: &[80],
        };
        let failures = |source| measure_all(&nvrtc, None, &[("op", source)]).1;
        assert!(failures(&BROKEN)[0].contains("broken.cu"));
        assert_eq!(failures(&MISDECLARED).len(), 2);
    }

    #[test]
    fn a_dependent_that_does_not_wait_is_a_failure() {
        let Some(nvrtc) = compiler() else { return };
        let Some(nvdisasm) = find_nvdisasm(nvrtc.path()) else { return };
        static SOURCE: Source = Source {
            path: "early.cu",
            text: "#include \"ptx.cuh\"
                // dependents: waits reads_early never
                // kernels: undeclared
                #define KERNEL(name) extern \"C\" __global__ void name(float* y, float* x, int* n)
                KERNEL(waits) { prefetch_l2(x); after_predecessors(); y[threadIdx.x] = x[*n]; }
                KERNEL(reads_early) { const int i = *n; after_predecessors(); y[threadIdx.x] = x[i]; }
                KERNEL(never) { dependents_may_start(); y[threadIdx.x] = x[*n]; }
                KERNEL(undeclared) { after_predecessors(); y[threadIdx.x] = x[*n]; }",
            archs: &[80, 90, 120],
        };
        let failures = measure_all(&nvrtc, Some(&nvdisasm), &[("op", &SOURCE)]).1;
        let of = |kernel: &str| failures.iter().filter(|why| why.starts_with(&format!("{kernel} on sm_"))).count();
        assert_eq!(["waits", "reads_early", "never", "undeclared"].map(of), [0, 2, 2, 2], "{failures:?}");
        assert_eq!(failures.len(), 6, "{failures:?}");
    }

    #[test]
    fn a_warning_is_a_failure() {
        let Some(nvrtc) = compiler() else { return };
        static CARELESS: Source =
            Source { path: "careless.cu", text: "extern \"C\" __global__ void k(float* y) { int unused; y[0] = 1.0f; }", archs: &[80] };
        let (measured, failures) = measure_all(&nvrtc, None, &[("op", &CARELESS)]);
        assert_eq!((measured.len(), failures.len()), (1, 1), "{failures:?}");
        assert!(failures[0].contains("careless.cu") && failures[0].contains("unused"), "{failures:?}");
    }

    #[test]
    fn inline_ptx_outside_its_header_is_found() {
        static STRAY: Source =
            Source { path: "stray.cu", text: "// asm is only named here\nint asmodeus;\nvoid f() { asm(\"\"); }", archs: &[] };
        assert_eq!(stray_assembly(&STRAY), ["stray.cu: inline PTX outside ptx.cuh: void f() { asm(\"\"); }"]);
    }
}
