use serde_json::json;
use swara_kernels::Device;
use swara_kernels::driver::doctor::{Fact, facts};

use crate::cli::Common;
use crate::failure::Result;
use crate::terminal;

pub fn run(common: &Common) -> Result {
    let mut all = vec![cpu()];
    all.extend(facts());
    all.push(Fact::new("emulator", Device::open("emulator").map(|device| device.name())));
    let usable = Device::open("auto")?;
    all.push(Fact::new("--device auto", Ok(format!("becomes {}", usable.name()))));
    if common.json {
        let items: Vec<_> = all.iter().map(|f| json!({ "item": f.item, "works": f.works, "finding": f.finding, "hint": f.hint })).collect();
        return terminal::say_json(&json!({ "version": env!("CARGO_PKG_VERSION"), "facts": items }));
    }
    let width = all.iter().map(|f| f.item.len()).max().unwrap_or(0);
    for fact in &all {
        let mark = if fact.works { "ok" } else { "no" };
        terminal::say(format!("{mark}  {:width$}  {}", fact.item, fact.finding.replace('\n', "; ")))?;
        if let Some(hint) = &fact.hint {
            terminal::say(format!("    {:width$}  -> {hint}", ""))?;
        }
    }
    Ok(())
}

fn cpu() -> Fact {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    Fact::new("CPU", Ok(format!("{}, {threads} threads, {}", std::env::consts::ARCH, features().join(" "))))
}

#[cfg(target_arch = "x86_64")]
fn features() -> Vec<&'static str> {
    let found = [
        ("avx2", std::is_x86_feature_detected!("avx2")),
        ("fma", std::is_x86_feature_detected!("fma")),
        ("f16c", std::is_x86_feature_detected!("f16c")),
        ("avx512f", std::is_x86_feature_detected!("avx512f")),
    ];
    named(&found)
}

#[cfg(target_arch = "aarch64")]
fn features() -> Vec<&'static str> {
    named(&[("neon", std::arch::is_aarch64_feature_detected!("neon")), ("fp16", std::arch::is_aarch64_feature_detected!("fp16"))])
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn features() -> Vec<&'static str> {
    named(&[])
}

fn named(found: &[(&'static str, bool)]) -> Vec<&'static str> {
    let names: Vec<_> = found.iter().filter(|(_, has)| *has).map(|(name, _)| *name).collect();
    if names.is_empty() { vec!["no vector extensions that are used"] } else { names }
}
