#![no_main]
//! What has no magic number is taken to follow it and the version.

use swara_loader::weights::Weights;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let file = if data.starts_with(b"GGUF") { data.to_vec() } else { [b"GGUF\x03\0\0\0", data].concat() };
    if let Ok(weights) = Weights::from_bytes("x.gguf", &file) {
        swara_fuzz::read_all(&weights);
    }
});
