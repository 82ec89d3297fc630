use std::path::Path;

use serde::Serialize;
use swara_benches::ceilings::Ceilings;
use swara_benches::kernels::Selection;
use swara_kernels::Device;
use swara_kernels::ops::REGISTRY;
use swara_loader::output;

use crate::cli::{BenchCodec, BenchKernels, Common};
use crate::codec as models;
use crate::failure::{Failure, Result};
use crate::terminal;

pub fn kernels(common: &Common, args: &BenchKernels) -> Result {
    let known: Vec<&str> = REGISTRY.iter().map(|op| op.name).collect();
    if let Some(name) = args.names.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(Failure::usage(format!("bench: no operation is called {name:?}")).hint(format!("known: {}", known.join(" "))));
    }
    let device = open(common)?;
    let bar = terminal::progress(Some(0), "bench");
    let selection = Selection { ops: &args.names, dtype: common.dtype };
    let result = swara_benches::kernels::run(&device, selection, |op, done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
        bar.set_message(op.to_owned());
    });
    bar.finish_and_clear();
    let (rows, ceilings) = result?;
    let head = ["op", "case", "dtype", "us", "p10", "p90", "warm us", "GB/s", "GFLOP/s", "ceiling"];
    report(common, args.json.as_deref(), &device, &ceilings, &rows, &head, |r| {
        let numbers = [r.median_us, r.p10_us, r.p90_us, r.batch_us, r.gb_s, r.gflop_s].map(|v| format!("{v:.1}"));
        [r.op.to_owned(), r.case.clone(), r.dtype.to_owned()].into_iter().chain(numbers).chain([percent(r.share_of_ceiling)]).collect()
    })
}

pub fn codec(common: &Common, args: &BenchCodec) -> Result {
    let device = open(common)?;
    let codecs = args.models.iter().map(|model| models::open(common, model)).collect::<Result<Vec<_>>>()?;
    if let Some(codec) = codecs.iter().find(|codec| !codec.config().causal) {
        return Err(Failure::usage(format!("bench: {} is not causal and has no frames to time", codec.name())));
    }
    let jobs: Vec<_> = codecs.iter().flat_map(|codec| args.batch.iter().map(move |&batch| (codec, usize::from(batch)))).collect();
    let (rows, ceilings) = swara_benches::codec::run(&device, &jobs, args.frames as usize)?;
    let head = ["model", "dtype", "streams", "encode ms", "p99", "decode ms", "p99", "real time", "ceiling"];
    report(common, args.json.as_deref(), &device, &ceilings, &rows, &head, |r| {
        let times = [r.encode_ms_p50, r.encode_ms_p99, r.decode_ms_p50, r.decode_ms_p99].map(|v| format!("{v:.3}"));
        let factor = format!("{:.1} x", r.frame_ms / (r.encode_ms_p50 + r.decode_ms_p50));
        [r.model.clone(), r.dtype.to_owned(), r.batch.to_string()]
            .into_iter()
            .chain(times)
            .chain([factor, percent(r.share_of_ceiling)])
            .collect()
    })
}

/// A time on the emulator says nothing about a GPU, so none is given.
fn open(common: &Common) -> Result<Device> {
    let device = common.open_device()?;
    if device.name().starts_with("emulator") {
        return Err(
            Failure::usage("bench: the emulator's times say nothing about a GPU").hint("--device cpu or cuda; swara verify runs there")
        );
    }
    Ok(device)
}

fn percent(share: f64) -> String {
    format!("{:.0}%", 100.0 * share)
}

/// A JSON array to a file, or a table.
fn report<R: Serialize>(
    common: &Common,
    json: Option<&Path>,
    device: &Device,
    ceilings: &Ceilings,
    rows: &[R],
    head: &[&str],
    cells: impl Fn(&R) -> Vec<String>,
) -> Result {
    if rows.is_empty() {
        return Err(Failure::work("bench: nothing was timed").hint("the CPU computes in f32 only"));
    }
    if ceilings.drift > 0.1 {
        let drift = percent(ceilings.drift);
        terminal::warn(format!("the ceilings before and after differ by {drift}: this machine is busy or throttled"));
    }
    match json.or(common.json.then_some(Path::new("-"))) {
        Some(path) => write(path, rows),
        None => {
            terminal::say(terminal::table(head, &rows.iter().map(cells).collect::<Vec<_>>()))?;
            say_ceilings(device, ceilings)
        }
    }
}

fn say_ceilings(device: &Device, c: &Ceilings) -> Result {
    let narrow = if *device == Device::Cpu {
        String::new()
    } else {
        format!(", mma.sync f16 {:.1}, bf16 {:.1}", c.f16_flops * 1e-12, c.bf16_flops * 1e-12)
    };
    let (what, bytes, f32) = (if *device == Device::Cpu { "read" } else { "copy" }, c.bytes * 1e-9, c.f32_flops * 1e-12);
    terminal::say(format!("ceilings measured on {}: {what} {bytes:.1} GB/s; TFLOP/s: f32 {f32:.2}{narrow}", device.name()))
}

fn write<T: Serialize>(path: &Path, rows: &[T]) -> Result {
    if path == Path::new("-") {
        return terminal::say_json(&rows);
    }
    let mut text = serde_json::to_vec_pretty(rows).map_err(|e| Failure::work(format!("cannot write results: {e}")))?;
    text.push(b'\n');
    Ok(output::write(path, &text)?)
}
