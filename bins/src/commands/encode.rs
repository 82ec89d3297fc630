use std::time::Instant;

use serde_json::json;
use swara_engine::codec::rate;
use swara_loader::codes::Codes;

use crate::cli::{Common, Encode};
use crate::codec::{self, Pipe};
use crate::failure::{Failure, Result};
use crate::terminal;

/// Longest recording whose numbers of codebooks are chosen together.
const MOST_SECONDS: u64 = 3600;

pub fn run(common: &Common, args: &Encode) -> Result {
    let mut codec = codec::open(common, &args.model)?;
    let refused = |flag: &str, why: swara_engine::Error| Failure::usage(format!("{flag}: {why}"));
    codec.set_beam(args.beam.into()).map_err(|why| refused("--beam", why))?;
    args.target_kbps.map_or(Ok(()), |_| rate::check_heard(&codec)).map_err(|why| refused("--target-kbps", why))?;
    args.error.map_or(Ok(()), |_| codec.check_measured()).map_err(|why| refused("--error", why))?;
    let codebooks = codec::codebooks(&codec, args.codebooks)?;
    let mut pipe = Pipe::new(&codec, codebooks, args.stream)?;
    let too_long = || format!("--target-kbps: a recording of more than {MOST_SECONDS} s; --error decides frame by frame");
    pipe.most = args.target_kbps.map(|_| (MOST_SECONDS, too_long()));
    pipe.left = args.error.is_some().then(Vec::new);
    let mut rows = Vec::new();
    let mut heard = Vec::new();
    let samples = codec::encode_file(&mut pipe, &args.input, args.stream, &mut |_, x, real, codes| {
        rows.extend_from_slice(codes);
        if args.target_kbps.is_some() {
            heard.extend_from_slice(&x[..real]);
        }
        Ok(())
    })?;
    let began = Instant::now();
    let config = codec.format();
    let frames = rows.len() / config.columns(codebooks);
    let hold = args.hold.unwrap_or(crate::cli::HOLD).into();
    let stages = match (pipe.left.take(), args.target_kbps, args.error) {
        (_, Some(kbps), _) => {
            let codes = swara_engine::codec::Codes { codebooks, frames, values: config.by_codebook(&rows, codebooks), scales: Vec::new() };
            let bar = terminal::progress(Some(codebooks as u64), "search");
            let heard = rate::heard(&codec, &heard, &codes, || bar.inc(1))?;
            bar.finish_and_clear();
            Some(rate::within(&heard, config, codebooks, hold, 1e3 * kbps, 0.0)?)
        }
        (Some(left), _, Some(error)) => Some(rate::until(&left, codebooks, hold, error)?),
        _ => None,
    };
    if let Some(stages) = &stages {
        stages.drop_others(&mut rows, codebooks);
    }
    let took = pipe.encode_times.total() + began.elapsed();
    let bitrate = stages.as_ref().map_or_else(|| config.bitrate(codebooks), |stages| rate::bitrate(stages, config, codebooks, frames));
    let mean = stages.as_ref().map(|stages| stages.mean(frames));
    let levels = config.multi_rate().then(|| config.codes_per_frame[..codebooks].iter().map(|codes| codes * frames).collect());
    let codes = Codes {
        codes: config.by_codebook(&rows, codebooks),
        codebooks,
        levels,
        stages,
        scales: std::mem::take(&mut pipe.scales),
        model: codec.name().to_owned(),
        sample_rate: config.sample_rate,
        frame_rate: config.frame_rate(),
        samples,
    };
    codes.write(&args.output)?;
    if let Some(kbps) = args.target_kbps.filter(|kbps| bitrate > 1e3 * kbps) {
        terminal::warn(format!("--target-kbps {kbps}: one codebook for every frame is {:.2} kbit/s already", bitrate / 1e3));
    }
    let seconds = samples as f64 / f64::from(config.sample_rate);
    let (kbps, factor) = (bitrate / 1e3, seconds / took.as_secs_f64());
    if common.json {
        return terminal::say_json(&json!({
            "model": codec.name(), "device": codec.device().name(), "dtype": codec.stored().name(), "codebooks": codebooks,
            "mean_codebooks": mean, "beam": args.beam, "frames": codes.frames(), "seconds": seconds, "bitrate_kbps": kbps, "real_time_factor": factor,
        }));
    }
    let each = mean.map_or_else(|| codebooks.to_string(), |mean| format!("{mean:.2} of {codebooks}"));
    terminal::say(format!(
        "{}: {seconds:.2} s, {} frames x {each} codebooks, {kbps:.2} kbit/s, {factor:.1} x real time",
        args.output.display(),
        codes.frames()
    ))
}
