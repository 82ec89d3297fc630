#![no_main]
//! A configuration that is accepted describes a model that can be counted.

use swara_engine::codec::model::Model;
use swara_engine::codec::{Config, encodec, mimi, snac};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let models = [
        Config::from_json(text).map(|config| Model::new(&config)),
        mimi::Config::from_json(text).and_then(|config| mimi::model(&config)),
        snac::Config::from_json(text).and_then(|config| snac::model(&config)),
        encodec::Config::from_json(text).and_then(|config| encodec::model(&config)),
    ];
    for model in models.into_iter().flatten() {
        let format = &model.format;
        assert!(format.frame_rate().is_finite() && format.frame_rate() > 0.0);
        assert!(format.bitrate(format.codebook_sizes.len()) > 0.0);
        assert_eq!(format.codebook_sizes.len(), format.codes_per_frame.len());
        for spec in model.tensors(true) {
            assert!(spec.published.iter().try_fold(4usize, |bytes, &n| bytes.checked_mul(n)).is_some());
        }
    }
});
