#![no_main]
//! What is accepted, the reference reader accepts, too.

use swara_loader::weights::Weights;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let file = swara_fuzz::safetensors(data);
    if let Ok(weights) = Weights::from_bytes("x.safetensors", &file) {
        swara_fuzz::read_all(&weights);
        let torch = file.starts_with(b"PK\x03\x04") || file.starts_with(b"\x80");
        assert!(torch || safetensors::SafeTensors::deserialize(&file).is_ok());
    }
});
