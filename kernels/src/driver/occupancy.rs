//! How many warps of a kernel a multiprocessor can hold.
//!
//! Limits are those of the table "Technical Specifications per Compute Capability" of NVIDIA's CUDA C++ Programming Guide; how
//! registers and shared memory are portioned is that of `cuda_occupancy.h`.

use super::Arch;

/// One multiprocessor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Multiprocessor {
    warps: u32,
    blocks: u32,
    shared_bytes: u32,
    /// Shared memory comes in portions of this size.
    shared_portion: u32,
    /// What the system takes of a block's shared memory.
    shared_reserved: u32,
}

const REGISTERS: u32 = 65536;
/// Registers come in portions of this size, to warps.
const REGISTER_PORTION: u32 = 256;
/// Each has its share of the registers.
const PARTITIONS: u32 = 4;
const WARP: u32 = 32;

/// What keeps a multiprocessor from holding more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limiter {
    Registers,
    SharedMemory,
    Warps,
    Blocks,
}

impl Limiter {
    pub fn name(self) -> &'static str {
        match self {
            Limiter::Registers => "registers",
            Limiter::SharedMemory => "shared memory",
            Limiter::Warps => "warps",
            Limiter::Blocks => "blocks",
        }
    }
}

/// Blocks and warps of one kernel that are resident on one multiprocessor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occupancy {
    pub blocks: u32,
    pub warps: u32,
    pub max_warps: u32,
    pub limiter: Limiter,
}

impl Occupancy {
    pub fn share(&self) -> f64 {
        f64::from(self.warps) / f64::from(self.max_warps)
    }
}

impl Arch {
    fn multiprocessor(self) -> Option<Multiprocessor> {
        let (warps, blocks, kilobytes) = match self.0 {
            75 => (32, 16, 64),
            80 => (64, 32, 164),
            86 => (48, 16, 100),
            87 => (48, 16, 164),
            89 => (48, 24, 100),
            90 | 100 | 103 => (64, 32, 228),
            120 | 121 => (48, 24, 100),
            _ => return None,
        };
        let ampere = self.has_ampere_features();
        Some(Multiprocessor {
            warps,
            blocks,
            shared_bytes: kilobytes << 10,
            shared_portion: if ampere { 128 } else { 256 },
            shared_reserved: if ampere { 1 << 10 } else { 0 },
        })
    }

    /// Most shared memory of one block, after opting in; of an architecture that is not in the table, what all have.
    pub fn shared_bytes_per_block(self) -> u32 {
        self.multiprocessor().map_or(48 << 10, |m| m.shared_bytes - m.shared_reserved)
    }
}

/// For a kernel of `registers` a thread in blocks of `threads` with `shared_bytes` (static and dynamic) of shared memory. `None` for
/// an architecture that is not in the table, and for a block that it cannot run at all.
pub fn occupancy(arch: Arch, registers: u32, threads: u32, shared_bytes: u32) -> Option<Occupancy> {
    let m = arch.multiprocessor()?;
    if !(1..=1024).contains(&threads) || shared_bytes > arch.shared_bytes_per_block() {
        return None;
    }
    let warps = threads.div_ceil(WARP);
    let shared = (shared_bytes + m.shared_reserved).next_multiple_of(m.shared_portion);
    let registers = registers.checked_mul(WARP)?.checked_next_multiple_of(REGISTER_PORTION)?;
    let resident = (REGISTERS / PARTITIONS).checked_div(registers).map_or(u32::MAX, |warps| warps * PARTITIONS);
    let limits = [
        (Limiter::Warps, m.warps / warps),
        (Limiter::Blocks, m.blocks),
        (Limiter::Registers, resident / warps),
        (Limiter::SharedMemory, m.shared_bytes.checked_div(shared).unwrap_or(u32::MAX)),
    ];
    let (limiter, blocks) = limits.into_iter().min_by_key(|(_, blocks)| *blocks)?;
    (blocks > 0).then_some(Occupancy { blocks, warps: blocks * warps, max_warps: m.warps, limiter })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::source::ALL_ARCHS;

    /// What `cuda_occupancy.h` of CUDA 13 says: architecture, registers, threads, shared bytes; blocks.
    const REFERENCE: &[(u32, u32, u32, u32, u32)] = &[
        (75, 16, 32, 0, 16),
        (75, 32, 256, 0, 4),
        (75, 33, 256, 0, 4),
        (75, 40, 128, 128, 8),
        (75, 64, 256, 4224, 4),
        (75, 70, 128, 8960, 7),
        (75, 80, 96, 2112, 8),
        (75, 112, 128, 33000, 1),
        (75, 128, 512, 0, 1),
        (75, 167, 256, 48000, 1),
        (75, 255, 32, 1, 8),
        (75, 64, 1024, 0, 1),
        (75, 20, 1024, 61440, 1),
        (75, 24, 64, 16384, 4),
        (75, 140, 256, 60000, 1),
        (80, 16, 32, 0, 32),
        (80, 32, 256, 0, 8),
        (80, 33, 256, 0, 6),
        (80, 40, 128, 128, 12),
        (80, 64, 256, 4224, 4),
        (80, 70, 128, 8960, 7),
        (80, 80, 96, 2112, 8),
        (80, 112, 128, 33000, 4),
        (80, 128, 512, 0, 1),
        (80, 167, 256, 48000, 1),
        (80, 255, 32, 1, 8),
        (80, 64, 1024, 0, 1),
        (80, 20, 1024, 61440, 2),
        (80, 24, 64, 16384, 9),
        (80, 140, 256, 60000, 1),
        (86, 16, 32, 0, 16),
        (86, 32, 256, 0, 6),
        (86, 33, 256, 0, 6),
        (86, 40, 128, 128, 12),
        (86, 64, 256, 4224, 4),
        (86, 70, 128, 8960, 7),
        (86, 80, 96, 2112, 8),
        (86, 112, 128, 33000, 3),
        (86, 128, 512, 0, 1),
        (86, 167, 256, 48000, 1),
        (86, 255, 32, 1, 8),
        (86, 64, 1024, 0, 1),
        (86, 20, 1024, 61440, 1),
        (86, 24, 64, 16384, 5),
        (86, 140, 256, 60000, 1),
        (89, 16, 32, 0, 24),
        (89, 32, 256, 0, 6),
        (89, 33, 256, 0, 6),
        (89, 40, 128, 128, 12),
        (89, 64, 256, 4224, 4),
        (89, 70, 128, 8960, 7),
        (89, 80, 96, 2112, 8),
        (89, 112, 128, 33000, 3),
        (89, 128, 512, 0, 1),
        (89, 167, 256, 48000, 1),
        (89, 255, 32, 1, 8),
        (89, 64, 1024, 0, 1),
        (89, 20, 1024, 61440, 1),
        (89, 24, 64, 16384, 5),
        (89, 140, 256, 60000, 1),
        (90, 16, 32, 0, 32),
        (90, 32, 256, 0, 8),
        (90, 33, 256, 0, 6),
        (90, 40, 128, 128, 12),
        (90, 64, 256, 4224, 4),
        (90, 70, 128, 8960, 7),
        (90, 80, 96, 2112, 8),
        (90, 112, 128, 33000, 4),
        (90, 128, 512, 0, 1),
        (90, 167, 256, 48000, 1),
        (90, 255, 32, 1, 8),
        (90, 64, 1024, 0, 1),
        (90, 20, 1024, 61440, 2),
        (90, 24, 64, 16384, 13),
        (90, 140, 256, 60000, 1),
        (100, 16, 32, 0, 32),
        (100, 32, 256, 0, 8),
        (100, 33, 256, 0, 6),
        (100, 40, 128, 128, 12),
        (100, 64, 256, 4224, 4),
        (100, 70, 128, 8960, 7),
        (100, 80, 96, 2112, 8),
        (100, 112, 128, 33000, 4),
        (100, 128, 512, 0, 1),
        (100, 167, 256, 48000, 1),
        (100, 255, 32, 1, 8),
        (100, 64, 1024, 0, 1),
        (100, 20, 1024, 61440, 2),
        (100, 24, 64, 16384, 13),
        (100, 140, 256, 60000, 1),
        (120, 16, 32, 0, 24),
        (120, 32, 256, 0, 6),
        (120, 33, 256, 0, 6),
        (120, 40, 128, 128, 12),
        (120, 64, 256, 4224, 4),
        (120, 70, 128, 8960, 7),
        (120, 80, 96, 2112, 8),
        (120, 112, 128, 33000, 3),
        (120, 128, 512, 0, 1),
        (120, 167, 256, 48000, 1),
        (120, 255, 32, 1, 8),
        (120, 64, 1024, 0, 1),
        (120, 20, 1024, 61440, 1),
        (120, 24, 64, 16384, 5),
        (120, 140, 256, 60000, 1),
    ];

    #[test]
    fn it_is_what_nvidias_own_calculation_gives() {
        for &(arch, registers, threads, shared, blocks) in REFERENCE {
            let found = occupancy(Arch(arch), registers, threads, shared).map_or(0, |o| o.blocks);
            assert_eq!(found, blocks, "sm_{arch}: {registers} registers, {threads} threads, {shared} bytes");
        }
    }

    #[test]
    fn every_architecture_is_in_the_table_and_impossible_blocks_are_none() {
        for &arch in ALL_ARCHS {
            let full = occupancy(Arch(arch), 32, 256, 0).unwrap();
            assert_eq!((full.warps, full.limiter), (full.max_warps, Limiter::Warps), "sm_{arch}");
            for (registers, threads, shared) in [(32, 0, 0), (32, 1025, 0), (32, 64, u32::MAX), (128, 1024, 0), (u32::MAX, 32, 0)] {
                assert_eq!(occupancy(Arch(arch), registers, threads, shared), None, "sm_{arch}: {registers} {threads} {shared}");
            }
        }
        assert_eq!(occupancy(Arch(70), 32, 32, 0), None);
    }
}
