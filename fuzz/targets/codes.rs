#![no_main]
//! What is accepted has every code that it says it has.

use std::path::Path;

use swara_loader::codes::Codes;
use swara_loader::weights::Weights;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(weights) = Weights::from_bytes("x.safetensors", &swara_fuzz::safetensors(data)) else { return };
    let Ok(codes) = Codes::from_weights(&weights) else { return };
    let lengths: Vec<usize> = (0..codes.codebooks).map(|k| codes.codebook(k).len()).collect();
    assert_eq!(lengths.iter().sum::<usize>(), codes.codes.len());
    assert!(lengths[0] == codes.frames() && lengths.iter().all(|n| n % codes.frames() == 0));
    let _ = codes.check(Path::new("x"), &vec![1024; codes.codebooks]);
});
