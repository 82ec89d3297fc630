//! A timeline in Chrome's trace format, which Perfetto reads.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};
use swara_kernels::span::Kind;
use swara_kernels::span::timeline::{self, Timeline};
use swara_loader::output;

use super::work::Work;
use super::{RUNS, Subject};
use crate::cli::{Common, Profile};
use crate::failure::{Failure, Result};
use crate::terminal;

/// Rows of the timeline.
const HOST: u32 = 1;
const DEVICE: u32 = 2;

pub fn run(common: &Common, args: &Profile, subject: &Subject, path: &Path) -> Result {
    let work = Work::open(common, args, subject)?;
    let mut recorded = Timeline::default();
    let runs = work.repeat(args.frames.unwrap_or(RUNS), |run| {
        let (runs, timeline) = timeline::record(work.device(), timeline::LIMIT, run)?;
        recorded = timeline;
        runs
    })?;
    if recorded.dropped > 0 {
        terminal::warn(format!("the timeline is full; {} spans and launches at its end are left out", recorded.dropped));
    }
    let device = work.device().name();
    let mut text = serde_json::to_vec(&chrome(&recorded, &device)).map_err(|e| Failure::work(format!("cannot write timeline: {e}")))?;
    text.push(b'\n');
    output::write(path, &text)?;
    let totals = totals(&recorded);
    if common.json {
        return terminal::say_json(&json!({
            "device": device, "runs": runs, "spans": recorded.spans.len(), "launches": recorded.launches.len(),
            "dropped": recorded.dropped, "totals": totals,
        }));
    }
    let head = ["what", "where", "count", "ms in all", "us each"];
    let row = |t: &Total| {
        let (ms, us) = (t.ms, 1e3 * t.ms / t.count as f64);
        vec![t.name.clone(), t.of.to_owned(), t.count.to_string(), format!("{ms:.3}"), format!("{us:.1}")]
    };
    terminal::say(terminal::table(&head, &totals.iter().map(row).collect::<Vec<_>>()))?;
    terminal::note(format!("{runs} runs on {device}; open {} in ui.perfetto.dev", path.display()));
    Ok(())
}

/// Complete events (`X`), in microseconds, and the names of the rows (`M`).
fn chrome(timeline: &Timeline, device: &str) -> Value {
    let us = |ns: u64| ns as f64 / 1e3;
    let name = |what: &str, row: u32, name: &str| json!({ "ph": "M", "pid": 1, "tid": row, "name": what, "args": { "name": name } });
    let mut events = vec![name("process_name", HOST, &format!("swara on {device}")), name("thread_name", HOST, "host")];
    events.extend(timeline.spans.iter().map(|span| {
        let (ts, dur) = (us(span.begin_ns), us(span.duration_ns));
        json!({ "ph": "X", "pid": 1, "tid": HOST, "name": span.name, "cat": span.kind.name(), "ts": ts, "dur": dur })
    }));
    if !timeline.launches.is_empty() {
        events.push(name("thread_name", DEVICE, "device"));
    }
    events.extend(timeline.launches.iter().map(|launched| {
        let (ts, dur) = (us(launched.begin_ns), us(launched.duration_ns));
        let launch = json!({ "grid": launched.launch.grid, "block": launched.launch.block, "shared_bytes": launched.launch.shared_bytes });
        json!({ "ph": "X", "pid": 1, "tid": DEVICE, "name": launched.kernel, "cat": "launch", "ts": ts, "dur": dur, "args": launch })
    }));
    json!({ "displayTimeUnit": "ns", "traceEvents": events })
}

#[derive(Serialize)]
struct Total {
    name: String,
    of: &'static str,
    count: usize,
    ms: f64,
}

/// Time by operation and by kernel, the most first.
fn totals(timeline: &Timeline) -> Vec<Total> {
    let mut sums: BTreeMap<(&'static str, &str), (usize, u64)> = BTreeMap::new();
    let ops = timeline.spans.iter().filter(|span| span.kind == Kind::Op).map(|span| ("host", &*span.name, span.duration_ns));
    let launches = timeline.launches.iter().map(|launched| ("device", &*launched.kernel, launched.duration_ns));
    for (of, name, ns) in ops.chain(launches) {
        let sum = sums.entry((of, name)).or_default();
        *sum = (sum.0 + 1, sum.1 + ns);
    }
    let total =
        |((of, name), (count, ns)): ((&'static str, &str), (usize, u64))| Total { name: name.to_owned(), of, count, ms: ns as f64 * 1e-6 };
    let mut totals: Vec<Total> = sums.into_iter().map(total).collect();
    totals.sort_by(|a, b| a.of.cmp(b.of).then(b.ms.total_cmp(&a.ms)));
    totals
}
