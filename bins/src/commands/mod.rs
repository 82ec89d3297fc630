pub mod bench;
pub mod decode;
pub mod diagnose;
pub mod doctor;
pub mod encode;
pub mod inspect;
pub mod prepare;
pub mod profile;
pub mod quantize;
pub mod roundtrip;
pub mod talk;
pub mod train;
pub mod verify;

/// Most memory that this process ever had, where the system says.
fn peak_rss_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok().map(|kb| kb / 1024.0)
}
