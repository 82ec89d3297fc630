//! What a hostile file may cost: memory grows with the file, whatever it claims.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use swara_loader::weights::Weights;

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        PEAK.fetch_max(NOW.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Bytes taken, at most, to open a file and to look at all that is in it.
fn peak(file: &[u8]) -> usize {
    let before = NOW.load(Relaxed);
    PEAK.store(before, Relaxed);
    if let Ok(weights) = Weights::from_bytes("x", file) {
        let _ = weights.names().map(|name| weights.view(name).is_ok()).collect::<Vec<_>>();
    }
    PEAK.load(Relaxed) - before
}

/// An instruction of one byte may make an object, in a vector that has just tripled.
const PER_BYTE: usize = 192;
/// Metadata are bounded on their own, since a small pickle may say the same thing often.
const FIXED: usize = 8 << 20;

/// A pickle as a file of before 1.6, which needs no archive.
fn legacy(pickle: &[u8], keys: &[u8], data: &[u8]) -> Vec<u8> {
    let head = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.";
    [&head[..], b"\x80\x02", pickle, b".\x80\x02", keys, b".", data].concat()
}

// One test: the counters are the process's.
#[test]
fn memory_is_bounded_by_the_file() {
    let n = (1 << 20) + 2;
    let memo: Vec<u8> = (0..n as u32 / 5).flat_map(|i| [&b"r"[..], &i.to_le_bytes()].concat()).collect();
    let pickles: [(&str, Vec<u8>); 9] = [
        ("values", b"N".repeat(n)),
        ("lists", b"]".repeat(n)),
        ("dicts", b"}".repeat(n)),
        ("marks", b"(".repeat(n)),
        ("duplicates", [&b"]"[..], &b"2".repeat(n)].concat()),
        ("tuples", b"N\x85".repeat(n / 2)),
        ("items", [&b"]"[..], &b"Na".repeat(n / 2)].concat()),
        ("memo", [&b"N"[..], &memo].concat()),
        ("pairs", [&b"}("[..], &b"NN".repeat(n / 2), b"u"].concat()),
    ];
    for (what, pickle) in pickles {
        let file = legacy(&pickle, b"]", b"");
        let (peak, bound) = (peak(&file), FIXED + PER_BYTE * file.len());
        println!("{what}: {:.1} bytes a byte", peak as f64 / file.len() as f64);
        assert!(peak < bound, "{what}: {peak} of {bound}");
    }
    // {"k": 3^15 times "x", in tuples of tuples, "w": an empty tensor}
    let tripled = [&b"}\x8c\x01k\x8c\x01xq\x010"[..], &b"h\x01h\x01h\x01\x87q\x010".repeat(15), b"h\x01s"].concat();
    let storage = b"(\x8c\x07storagectorch\nFloatStorage\n\x8c\x01aNK\x00tQ";
    let tensor = [&b"\x8c\x01wctorch._utils\n_rebuild_tensor\n("[..], storage, b"K\x00K\x00\x85K\x01\x85tRs"].concat();
    let file = legacy(&[tripled, tensor].concat(), b"]\x8c\x01aa", &[0; 8]);
    assert!(Weights::from_bytes("x", &file).is_ok_and(|w| w.contains("w")));
    let peak_of_tripled = peak(&file);
    println!("tripled: {peak_of_tripled} bytes");
    assert!(peak_of_tripled < FIXED);
    // GGUF: what is metadata becomes JSON, and many small tensors are many entries.
    let text = |text: &[u8]| [&(text.len() as u64).to_le_bytes()[..], text].concat();
    let array = |kind: u32, count: usize| [&kind.to_le_bytes()[..], &(count as u64).to_le_bytes()].concat();
    let pair = |value: &[u8]| [&text(b"k")[..], &9_u32.to_le_bytes(), value].concat();
    let head = |tensors: usize, pairs: usize| [&b"GGUF\x03\0\0\0"[..], &tensors.to_le_bytes(), &pairs.to_le_bytes()].concat();
    let tensors: Vec<u8> = (0..n / 40).flat_map(|i| [&text(format!("{i:08}").as_bytes())[..], b"\x01", &[0; 23]].concat()).collect();
    let files: [(&str, Vec<u8>); 5] = [
        ("bytes", [head(0, 1), pair(&[array(7, n), vec![0; n]].concat())].concat()),
        ("doubles", [head(0, 1), pair(&[array(12, n / 8), (-1.2345678901234567e-300_f64).to_le_bytes().repeat(n / 8)].concat())].concat()),
        ("texts", [head(0, 1), pair(&[array(8, n / 16), text(&[1; 8]).repeat(n / 16)].concat())].concat()),
        ("arrays", [head(0, 1), pair(&[array(9, n / 12), array(0, 0).repeat(n / 12)].concat())].concat()),
        ("tensors", [head(n / 40, 0), tensors, vec![0; 32]].concat()),
    ];
    for (what, file) in files {
        let (peak, bound) = (peak(&file), FIXED + PER_BYTE * file.len());
        println!("GGUF, {what}: {:.1} bytes a byte", peak as f64 / file.len() as f64);
        assert!(peak < bound, "{what}: {peak} of {bound}");
        assert!(Weights::from_bytes("x", &file).is_ok(), "{what}");
    }
    // Small files, damaged: nothing that they claim costs anything.
    let dir = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data"));
    let gguf = "../../../verify/golden/quantized/blocks.gguf";
    let mut seed = 9u64;
    let mut below = |n: usize| {
        seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (seed >> 33) as usize % n
    };
    for name in ["codec.pth", "layouts.pt", "layouts-legacy.pt", "layouts-deflated.pt", "layouts-zip64.pt", "layouts.safetensors", gguf] {
        let good = std::fs::read(dir.join(name)).unwrap();
        for round in 0..2000 {
            let mut file = good.clone();
            for _ in 0..1 << below(4) {
                let at = below(file.len());
                file[at] = if below(2) == 0 { below(256) as u8 } else { 0xff };
            }
            let (peak, bound) = (peak(&file), FIXED + PER_BYTE * file.len());
            assert!(peak < bound, "{name}, round {round}: {peak} of {bound}");
        }
    }
}
