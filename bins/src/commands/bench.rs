use std::path::Path;

use serde::Serialize;
use swara_benches::ceilings::{self, Ceilings};
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
    let device = common.open_device()?;
    let before = measure(&device)?;
    let bar = terminal::progress(Some(0), "bench");
    let selection = Selection { ops: &args.names, dtype: common.dtype };
    let rows = swara_benches::kernels::run(&device, selection, |op, done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
        bar.set_message(op.to_owned());
    })?;
    bar.finish_and_clear();
    if rows.is_empty() {
        return Err(Failure::work("bench: nothing was timed").hint("the CPU computes in f32 only"));
    }
    let ceilings = settle(&device, &before)?;
    let rows: Vec<_> = rows.into_iter().map(|row| row.against(&ceilings)).collect();
    if let Some(path) = &args.json {
        return write(path, &rows);
    }
    let table: Vec<Vec<String>> = rows
        .iter()
        .map(|r| {
            vec![
                r.op.to_owned(),
                r.case.clone(),
                r.dtype.to_owned(),
                format!("{:.1}", r.median_us),
                format!("{:.1}", r.p10_us),
                format!("{:.1}", r.p90_us),
                format!("{:.1}", r.batch_us),
                format!("{:.1}", r.gb_s),
                format!("{:.1}", r.gflop_s),
                format!("{:.0}%", 100.0 * r.share_of_ceiling),
            ]
        })
        .collect();
    terminal::say(terminal::table(&["op", "case", "dtype", "us", "p10", "p90", "warm us", "GB/s", "GFLOP/s", "ceiling"], &table))?;
    say_ceilings(&device, &ceilings)
}

pub fn codec(common: &Common, args: &BenchCodec) -> Result {
    let device = common.open_device()?;
    let before = measure(&device)?;
    let mut rows = Vec::new();
    for model in &args.models {
        let codec = models::open(common, model)?;
        if !codec.config().causal {
            return Err(Failure::usage(format!("bench: {} is not causal and has no frames to time", codec.name())));
        }
        for &batch in &args.batch {
            rows.push(swara_benches::codec::run(&codec, usize::from(batch), args.frames as usize)?);
        }
    }
    let ceilings = settle(&device, &before)?;
    let rows: Vec<_> = rows.into_iter().map(|row| row.against(&ceilings)).collect();
    if let Some(path) = &args.json {
        return write(path, &rows);
    }
    let table: Vec<Vec<String>> = rows
        .iter()
        .map(|r| {
            vec![
                r.model.clone(),
                r.dtype.to_owned(),
                r.batch.to_string(),
                format!("{:.3}", r.encode_ms_p50),
                format!("{:.3}", r.encode_ms_p99),
                format!("{:.3}", r.decode_ms_p50),
                format!("{:.3}", r.decode_ms_p99),
                format!("{:.1} x", r.frame_ms / (r.encode_ms_p50 + r.decode_ms_p50)),
                format!("{:.0}%", 100.0 * r.share_of_ceiling),
            ]
        })
        .collect();
    let head = ["model", "dtype", "streams", "encode ms", "p99", "decode ms", "p99", "real time", "ceiling"];
    terminal::say(terminal::table(&head, &table))?;
    say_ceilings(&device, &ceilings)
}

/// A time on the emulator says nothing about a GPU, so none is given.
fn measure(device: &Device) -> Result<Ceilings> {
    if device.name().starts_with("emulator") {
        return Err(
            Failure::usage("bench: the emulator's times say nothing about a GPU").hint("--device cpu or cuda; swara verify runs there")
        );
    }
    Ok(ceilings::measure(device)?)
}

/// Ceilings once more, after the work; says if the machine was not the same throughout.
fn settle(device: &Device, before: &Ceilings) -> Result<Ceilings> {
    let (ceilings, drift) = Ceilings::around(before, &ceilings::measure(device)?);
    if drift > 0.1 {
        terminal::warn(format!("the ceilings before and after differ by {:.0}%: this machine is busy or throttled", 100.0 * drift));
    }
    Ok(ceilings)
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
