//! What a process asks of the system.

use std::str::FromStr;

use swara_kernels::Device;

use crate::failure::{Failure, Result};

/// Most memory in MiB that this process ever had, where the system says.
pub fn peak_rss_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok().map(|kb| kb / 1024.0)
}

/// Begins [`peak_rss_mb`] anew, where the system lets one.
pub fn forget_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Most memory in MiB that was ever had of a GPU.
pub fn peak_vram_mb(device: &Device) -> Option<f64> {
    match device {
        Device::Cpu => None,
        Device::Cuda(cuda) => Some(cuda.reserved_bytes() as f64 / (1 << 20) as f64),
    }
}

/// CPUs that a set may name.
const MAX_CPUS: usize = 1024;

/// A set of CPUs by number, as `0,2-3`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpus(Vec<usize>);

impl FromStr for Cpus {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Cpus, String> {
        let number = |digits: &str| {
            let plain = (1..=4).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
            digits.parse().ok().filter(|&n: &usize| plain && n < MAX_CPUS).ok_or_else(|| format!("{digits:?} is no CPU below {MAX_CPUS}"))
        };
        let mut cpus = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(format!("{part:?} ends before it begins"));
            }
            if let Some(twice) = (first..=last).find(|cpu| cpus.contains(cpu)) {
                return Err(format!("CPU {twice} is there twice"));
            }
            cpus.extend(first..=last);
        }
        Ok(Cpus(cpus))
    }
}

impl Cpus {
    /// Lets this thread, and those that it starts from now on, run on these CPUs alone.
    ///
    /// # Errors
    /// A CPU that is not there or that this process may not use.
    #[cfg(target_os = "linux")]
    pub fn bind(&self) -> Result {
        let refused = |why: String| Failure::usage(format!("--affinity: {why}"));
        let size = size_of::<libc::cpu_set_t>();
        // SAFETY: a set of CPUs is an array of integers, of which all zeros is one.
        let (mut asked, mut granted): (libc::cpu_set_t, libc::cpu_set_t) = unsafe { std::mem::zeroed() };
        for &cpu in &self.0 {
            // SAFETY: no number is above MAX_CPUS, which is what the set has room for.
            unsafe { libc::CPU_SET(cpu, &mut asked) };
        }
        // SAFETY: both sets are `size` bytes long and outlive the calls; 0 is this thread.
        let done = unsafe { libc::sched_setaffinity(0, size, &asked) == 0 && libc::sched_getaffinity(0, size, &mut granted) == 0 };
        if !done {
            return Err(refused(std::io::Error::last_os_error().to_string()));
        }
        // SAFETY: as above.
        match self.0.iter().find(|&&cpu| !unsafe { libc::CPU_ISSET(cpu, &granted) }) {
            Some(cpu) => Err(refused(format!("CPU {cpu} cannot be used"))),
            None => Ok(()),
        }
    }

    #[cfg(not(target_os = "linux"))]
    pub fn bind(&self) -> Result {
        Err(Failure::usage("--affinity: for Linux only"))
    }
}

/// Keeps all memory that this process has and will have from being paged out.
///
/// # Errors
/// More than the process may lock.
#[cfg(target_os = "linux")]
pub fn lock_memory() -> Result {
    // SAFETY: takes no memory of ours; only moves pages in.
    match unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) } {
        0 => Ok(()),
        _ => {
            let why = std::io::Error::last_os_error();
            Err(Failure::work(format!("cannot lock memory: {why}")).hint("ulimit -l says how much may be locked; unlimited is best"))
        }
    }
}

#[cfg(not(target_os = "linux"))]
pub fn lock_memory() -> Result {
    Err(Failure::usage("--mlock: for Linux only"))
}

/// Has memory that is freed kept for what comes next: giving it back and getting it anew, page by page, costs more than what is done with it,
/// most of all while a model is read. For before there are threads.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn keep_freed_memory() {
    // SAFETY: sets two numbers of the allocator's. Where it refuses, all is as before.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
    }
}

/// Gives back once what is kept.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn release_freed_memory() {
    // SAFETY: pages that nothing is in.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn keep_freed_memory() {}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn release_freed_memory() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_numbers_and_ranges() {
        let cpus = |text: &str| text.parse::<Cpus>().map(|cpus| cpus.0);
        assert_eq!(cpus("0").unwrap(), [0]);
        assert_eq!(cpus("5,0,2-4,1023").unwrap(), [5, 0, 2, 3, 4, 1023]);
        for bad in ["", ",", "0,", "1-", "-1", "3-2", "0,0", "0-4,3", "1024", "99999999999", "+1", " 1", "0x1", "a", "1-2-3", "0;1"] {
            assert!(cpus(bad).is_err(), "{bad:?} is {:?}", cpus(bad));
        }
    }
}
