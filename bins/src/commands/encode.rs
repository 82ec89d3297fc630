use serde_json::json;
use swara_loader::codes::Codes;

use crate::cli::{Common, Encode};
use crate::codec::{self, Pipe};
use crate::failure::Result;
use crate::terminal;

pub fn run(common: &Common, args: &Encode) -> Result {
    let codec = codec::open(common, &args.model)?;
    let codebooks = codec::codebooks(&codec, args.codebooks)?;
    let mut pipe = Pipe::new(&codec, codebooks, args.stream)?;
    let mut rows = Vec::new();
    let samples = codec::encode_file(&mut pipe, &args.input, args.stream, &mut |_, _, _, codes| {
        rows.extend_from_slice(codes);
        Ok(())
    })?;
    let config = codec.format();
    let frames = rows.len() / config.columns(codebooks);
    let levels = config.multi_rate().then(|| config.codes_per_frame[..codebooks].iter().map(|codes| codes * frames).collect());
    let codes = Codes {
        codes: config.by_codebook(&rows, codebooks),
        codebooks,
        levels,
        scales: std::mem::take(&mut pipe.scales),
        model: codec.name().to_owned(),
        sample_rate: config.sample_rate,
        frame_rate: config.frame_rate(),
        samples,
    };
    codes.write(&args.output)?;
    let seconds = samples as f64 / f64::from(config.sample_rate);
    let (kbps, factor) = (config.bitrate(codebooks) / 1e3, seconds / pipe.encode_times.total().as_secs_f64());
    if common.json {
        return terminal::say_json(&json!({
            "model": codec.name(), "device": codec.device().name(), "dtype": codec.stored().name(), "codebooks": codebooks,
            "frames": codes.frames(), "seconds": seconds, "bitrate_kbps": kbps, "real_time_factor": factor,
        }));
    }
    terminal::say(format!(
        "{}: {seconds:.2} s, {} frames x {codebooks} codebooks, {kbps:.2} kbit/s, {factor:.1} x real time",
        args.output.display(),
        codes.frames()
    ))
}
