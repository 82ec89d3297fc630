#![no_main]
//! What is accepted has every code that it says it has, and no other.

use std::path::Path;

use swara_loader::codes::{Codes, NONE};
use swara_loader::weights::Weights;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(weights) = Weights::from_bytes("x.safetensors", &swara_fuzz::safetensors(data)) else { return };
    let Ok(codes) = Codes::from_weights(&weights) else { return };
    let lengths: Vec<usize> = (0..codes.codebooks).map(|k| codes.codebook(k).len()).collect();
    assert_eq!(lengths.iter().sum::<usize>(), codes.codes.len());
    assert!(lengths[0] == codes.frames() && lengths.iter().all(|n| n % codes.frames() == 0));
    let is_whole = codes.check(Path::new("x"), &vec![1024; codes.codebooks]).is_ok();
    for (k, frame) in (0..codes.codebooks).flat_map(|k| (0..lengths[k]).map(move |frame| (k, frame))) {
        let (code, absent) = (codes.codebook(k)[frame], codes.stages.as_ref().is_some_and(|stages| k >= stages.at(frame)));
        assert!(codes.stages.is_none() || (code == NONE) == absent);
        assert!(!is_whole || if absent { code == NONE } else { (0..1024).contains(&code) });
    }
});
