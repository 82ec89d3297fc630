//! What the compiler made of the kernels of an operation, without a GPU.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;
use serde_json::json;
use swara_kernels::case::Op;
use swara_kernels::driver::nvrtc::{Nvrtc, target};
use swara_kernels::driver::occupancy::occupancy;
use swara_kernels::driver::{Arch, dry};
use swara_verify::measure::{CLASSES, Code, Figures, find_nvdisasm, measure};

use crate::cli::Common;
use crate::failure::{Failure, Result};
use crate::terminal;

/// One kernel. Bytes unless said otherwise.
#[derive(Serialize)]
struct Row {
    op: &'static str,
    kernel: String,
    arch: String,
    /// A thread.
    registers: u32,
    static_shared: u32,
    stack: u32,
    spilled: u32,
    code: Option<u32>,
    /// Instructions by class, counted once however often they run.
    mix: Option<BTreeMap<&'static str, u32>>,
    /// How the operation's cases launch it on this architecture.
    launches: Vec<Shape>,
}

/// A shape of block.
#[derive(Serialize)]
struct Shape {
    threads: u32,
    dynamic_shared: u32,
    blocks_per_multiprocessor: u32,
    warps_per_multiprocessor: u32,
    occupancy: f64,
    limited_by: &'static str,
}

pub fn run(common: &Common, ops: &[&'static Op], arch: &str) -> Result {
    let arch = parse(arch)?;
    let nvrtc = Nvrtc::find(|nvrtc| nvrtc.target(Arch(arch)).map(drop).ok_or(format!("does not know sm_{arch}")))?;
    let nvdisasm = find_nvdisasm(nvrtc.path());
    if nvdisasm.is_none() {
        terminal::warn("no nvdisasm, so code size and instructions are left out; pip install nvidia-cuda-nvdisasm, or set SWARA_NVDISASM");
    }
    let mut rows = Vec::new();
    for op in ops {
        rows.extend(kernels(op, arch, &nvrtc, nvdisasm.as_deref())?);
    }
    if common.json {
        let (major, minor) = nvrtc.version();
        return terminal::say_json(&json!({ "arch": target(arch), "nvrtc": format!("{major}.{minor}"), "kernels": rows }));
    }
    terminal::say(figures(&rows))?;
    let counted: Vec<&Row> = rows.iter().filter(|row| row.mix.is_some()).collect();
    if !counted.is_empty() {
        terminal::say("")?;
        terminal::say(mixes(&counted))?;
    }
    Ok(())
}

fn parse(text: &str) -> Result<u32> {
    use swara_kernels::driver::source::ALL_ARCHS;
    let number = text.strip_prefix("sm_").map(|rest| rest.strip_suffix('a').unwrap_or(rest)).and_then(|n| n.parse().ok());
    number.filter(|arch| ALL_ARCHS.contains(arch)).ok_or_else(|| {
        let known: Vec<String> = ALL_ARCHS.iter().map(|&arch| target(arch)).collect();
        Failure::usage(format!("--arch: {text:?}, expected one of {}", known.join(" ")))
    })
}

fn kernels(op: &'static Op, arch: u32, nvrtc: &Nvrtc, nvdisasm: Option<&Path>) -> Result<Vec<Row>> {
    let mut compiled = BTreeMap::new();
    for source in op.sources.iter().filter(|source| source.archs.contains(&arch)) {
        let report = measure(nvrtc, nvdisasm, source, arch).map_err(|why| Failure::work(format!("profile: {}: {why}", op.name)))?;
        compiled.extend(report.kernels);
    }
    if compiled.is_empty() {
        return Err(Failure::work(format!("profile: {} has no kernels for {}", op.name, target(arch))));
    }
    let mut launched = launches(op, arch)?;
    let row = |(kernel, f): (String, Figures)| {
        let shapes = launched.remove(&kernel).unwrap_or_default();
        let shape = |(threads, dynamic_shared): (u32, u32)| {
            let o = occupancy(Arch(arch), f.registers, threads, f.shared + dynamic_shared)?;
            Some(Shape {
                threads,
                dynamic_shared,
                blocks_per_multiprocessor: o.blocks,
                warps_per_multiprocessor: o.warps,
                occupancy: o.share(),
                limited_by: o.limiter.name(),
            })
        };
        let mix = |code: &Code| CLASSES.iter().zip(code.mix).filter(|(_, n)| *n > 0).map(|((name, _), n)| (*name, n)).collect();
        Row {
            op: op.name,
            kernel,
            arch: target(arch),
            registers: f.registers,
            static_shared: f.shared,
            stack: f.stack,
            spilled: f.spilled,
            code: f.code.map(|code| code.bytes),
            mix: f.code.as_ref().map(mix),
            launches: shapes.into_iter().filter_map(shape).collect(),
        }
    };
    Ok(compiled.into_iter().map(row).collect())
}

/// Threads and dynamic shared memory of every launch of the operation's cases, by kernel.
fn launches(op: &Op, arch: u32) -> Result<BTreeMap<String, BTreeSet<(u32, u32)>>> {
    let (device, notes) = dry::open(Arch(arch));
    let mut shapes: BTreeMap<String, BTreeSet<(u32, u32)>> = BTreeMap::new();
    for case in (op.cases)() {
        (case.run)(&case.blank(&device)?)?;
        for noted in notes.take() {
            shapes.entry(noted.kernel).or_default().insert((noted.launch.block.iter().product(), noted.launch.shared_bytes));
        }
    }
    Ok(shapes)
}

fn figures(rows: &[Row]) -> String {
    let head = ["kernel", "registers", "shared", "dynamic", "stack", "spilled", "code", "threads", "warps", "occupancy", "limited by"];
    let row = |r: &Row| {
        let span = |of: &dyn Fn(&Shape) -> f64, text: &dyn Fn(f64) -> String| {
            let values = r.launches.iter().map(of);
            match values.clone().reduce(f64::min).zip(values.reduce(f64::max)) {
                None => "-".to_owned(),
                Some((low, high)) if low == high => text(low),
                Some((low, high)) => format!("{}..{}", text(low), text(high)),
            }
        };
        let limiters: BTreeSet<&str> = r.launches.iter().map(|shape| shape.limited_by).collect();
        let limiters = limiters.into_iter().collect::<Vec<_>>().join(", ");
        vec![
            r.kernel.clone(),
            r.registers.to_string(),
            r.static_shared.to_string(),
            span(&|shape| shape.dynamic_shared.into(), &|v| v.to_string()),
            r.stack.to_string(),
            r.spilled.to_string(),
            r.code.map_or("-".to_owned(), |bytes| bytes.to_string()),
            span(&|shape| shape.threads.into(), &|v| v.to_string()),
            span(&|shape| shape.warps_per_multiprocessor.into(), &|v| v.to_string()),
            span(&|shape| shape.occupancy, &|v| format!("{:.0}%", 100.0 * v)),
            if limiters.is_empty() { "-".to_owned() } else { limiters },
        ]
    };
    terminal::table(&head, &rows.iter().map(row).collect::<Vec<_>>())
}

/// Shares in percent of each kernel's instructions; classes that none of them has are left out.
fn mixes(rows: &[&Row]) -> String {
    let count = |row: &Row, class: &str| row.mix.as_ref().and_then(|mix| mix.get(class)).copied().unwrap_or(0);
    let classes: Vec<&str> = CLASSES.iter().map(|(name, _)| *name).filter(|class| rows.iter().any(|row| count(row, class) > 0)).collect();
    let head: Vec<&str> = ["kernel", "instructions"].into_iter().chain(classes.iter().copied()).collect();
    let row = |row: &&Row| {
        let all: u32 = classes.iter().map(|class| count(row, class)).sum();
        let share = |class: &&str| match count(row, class) {
            0 => "-".to_owned(),
            n => format!("{:.1}%", 100.0 * f64::from(n) / f64::from(all.max(1))),
        };
        [row.kernel.clone(), all.to_string()].into_iter().chain(classes.iter().map(share)).collect()
    };
    terminal::table(&head, &rows.iter().map(row).collect::<Vec<_>>())
}
