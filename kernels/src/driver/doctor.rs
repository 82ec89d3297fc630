//! What of the GPU path works on this machine, and what to do about the rest: the facts behind `swara doctor`.

use super::cache::Cache;
use super::gpu;
use super::nvrtc::Nvrtc;
use crate::ops::UNPROVEN;
use crate::{Error, Result};

/// One thing that works or does not.
#[derive(Clone, Debug)]
pub struct Fact {
    pub item: String,
    pub works: bool,
    /// What was found, or why it does not work.
    pub finding: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Fact {
    pub fn new(item: impl Into<String>, finding: Result<String>) -> Fact {
        let item = item.into();
        match finding {
            Ok(finding) => Fact { item, works: true, finding, hint: None },
            Err(Error::Unavailable { why, hint, .. }) => Fact { item, works: false, finding: why, hint },
            Err(error) => Fact { item, works: false, finding: error.to_string(), hint: None },
        }
    }
}

/// CUDA driver, its devices, NVRTC, the kernel cache and kernels that are never chosen by default, in this order. Makes no context and compiles nothing.
pub fn facts() -> Vec<Fact> {
    let described = gpu::describe();
    let driver_major = described.as_ref().ok().map(|(version, _)| *version as u32 / 1000);
    let mut facts = Vec::new();
    match described {
        Ok((version, devices)) => {
            facts.push(Fact::new("CUDA driver", Ok(format!("for CUDA {}", gpu::dotted(version)))));
            facts.extend(devices.iter().enumerate().map(|(n, device)| {
                let (major, minor) = (device.arch.0 / 10, device.arch.0 % 10);
                let memory = device.memory_bytes as f64 / (1u64 << 30) as f64;
                Fact::new(format!("cuda:{n}"), Ok(format!("{}, compute capability {major}.{minor}, {memory:.1} GiB", device.name)))
            }));
        }
        Err(error) => facts.push(Fact::new("CUDA driver", Err(error))),
    }
    let nvrtc = Nvrtc::find(|nvrtc| match driver_major {
        Some(driver) if nvrtc.version().0 > driver => Err(format!("is newer ({}) than the driver ({driver})", nvrtc.version().0)),
        _ => Ok(()),
    });
    facts.push(Fact::new("NVRTC", nvrtc.map(|n| format!("{}.{} at {}", n.version().0, n.version().1, n.path().display()))));
    let cache = Cache::open().map(|c| format!("{} ({:.1} MB)", c.dir().display(), c.size() as f64 / 1e6));
    let mut cache = Fact::new("kernel cache", cache);
    if !cache.works {
        cache.hint = Some("kernels are compiled anew in every process; set SWARA_CACHE to a directory of your own".into());
    }
    facts.push(cache);
    let unproven: Vec<String> = UNPROVEN.iter().flat_map(|source| source.kernels().unwrap_or_default()).collect();
    facts.push(Fact::new("only on request", Ok(format!("{}: no GPU has run them yet", unproven.join(" ")))));
    facts
}
