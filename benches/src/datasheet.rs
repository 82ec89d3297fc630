//! What the makers promise: dense peaks of known GPUs, from their data sheets.

use swara_kernels::DType;

/// Bytes and operations a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peak {
    pub bytes: f64,
    /// f32 outside the tensor cores.
    pub f32_flops: f64,
    /// bf16 and f16 on the tensor cores, accumulated in f32.
    pub half_flops: f64,
}

impl Peak {
    /// The least time of a run of this cost, in seconds.
    pub fn floor(&self, bytes: usize, flops: usize, dtype: DType) -> f64 {
        let rate = if matches!(dtype, DType::BF16 | DType::F16) { self.half_flops } else { self.f32_flops };
        (bytes as f64 / self.bytes).max(flops as f64 / rate)
    }
}

/// The driver's name for the device, TB/s, and TFLOP/s in f32 and in bf16: NVIDIA's data sheets of the H200, H100, A100 and L4,
/// and its architecture papers "Ada" and "RTX Blackwell".
const GPUS: [(&str, f64, f64, f64); 9] = [
    ("NVIDIA H200", 4.8, 67.0, 989.0),
    ("NVIDIA H100 80GB HBM3", 3.35, 67.0, 989.0),
    ("NVIDIA H100 PCIe", 2.0, 51.0, 756.0),
    ("NVIDIA A100-SXM4-80GB", 2.039, 19.5, 312.0),
    ("NVIDIA A100-SXM4-40GB", 1.555, 19.5, 312.0),
    ("NVIDIA A100 80GB PCIe", 1.935, 19.5, 312.0),
    ("NVIDIA L4", 0.3, 30.3, 121.0),
    ("NVIDIA GeForce RTX 4090", 1.008, 82.6, 165.2),
    ("NVIDIA GeForce RTX 5090", 1.792, 104.8, 209.5),
];

/// The peaks of the device of this name, if it is known.
pub fn of(device: &str) -> Option<Peak> {
    let (_, bytes, single, half) = GPUS.iter().find(|(name, ..)| *name == device)?;
    Some(Peak { bytes: bytes * 1e12, f32_flops: single * 1e12, half_flops: half * 1e12 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_of_two_floors_counts() {
        let h200 = of("NVIDIA H200").unwrap();
        assert_eq!(h200.floor(4_800_000, 1, DType::F32), 1e-6);
        assert_eq!(h200.floor(1, 989_000_000, DType::BF16), 1e-6);
        assert_eq!(of("NVIDIA GeForce RTX 4090 Laptop GPU"), None);
    }
}
