#![no_main]
//! Zip archives and pickles. What is neither is taken as the pickle of a file from before PyTorch 1.6, whose magic number the
//! fuzzer would have to guess.

use swara_loader::weights::Weights;

const HEAD: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.";

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let whole = data.starts_with(b"PK\x03\x04") || data.starts_with(&HEAD[..15]);
    let file = if whole { data.to_vec() } else { [HEAD, data].concat() };
    if let Ok(weights) = Weights::from_bytes("x.pt", &file) {
        swara_fuzz::read_all(&weights);
    }
});
