use serde_json::json;
use swara_loader::audio::{WavFormat, WavWriter};
use swara_loader::codes::Codes;

use crate::cli::{Common, Decode};
use crate::codec::{self, BUNDLED, Pipe};
use crate::failure::{Failure, Result};
use crate::terminal;

pub fn run(common: &Common, args: &Decode) -> Result {
    let codes = Codes::read(&args.input)?;
    let codec = codec::open(common, args.model.as_deref().unwrap_or(BUNDLED))?;
    let config = codec.format();
    if args.model.is_none() && codes.model != codec.name() {
        let why = format!("made by {}, not by {}", codes.model, codec.name());
        return Err(Failure::file("cannot decode", why, &args.input).hint("--model names the codec that made them"));
    }
    if codes.sample_rate != config.sample_rate || codes.frame_rate != config.frame_rate() {
        let found = format!("{} Hz with {} frames a second", codes.sample_rate, codes.frame_rate);
        let why = format!("{found}, expected {} and {} ({})", config.sample_rate, config.frame_rate(), codec.name());
        return Err(Failure::file("cannot decode", why, &args.input));
    }
    let levels =
        |levels: &[usize]| levels.iter().zip(&config.codes_per_frame).all(|(level, per_frame)| *level == codes.frames() * per_frame);
    if codes.levels.as_deref().map_or(config.multi_rate(), |found| !levels(found)) {
        let why = format!("codes of other rates than {:?} a frame ({})", config.codes_per_frame, codec.name());
        return Err(Failure::file("cannot decode", why, &args.input));
    }
    codes.check(&args.input, &config.codebook_sizes)?;
    let codebooks = match args.codebooks {
        None => codes.codebooks,
        Some(n) if (1..=codes.codebooks).contains(&n) => n,
        Some(n) => return Err(Failure::usage(format!("--codebooks: {n}, expected 1 to {} ({})", codes.codebooks, args.input.display()))),
    };
    let mut pipe = Pipe::new(&codec, codebooks, args.stream)?;
    pipe.scales.clone_from(&codes.scales);
    let used = codes.frames() * config.columns(codebooks);
    let rows = config.by_frame(&codes.codes[..used], codebooks);
    let format = if args.float { WavFormat::F32 } else { WavFormat::S16 };
    let mut wav = WavWriter::create(&args.output, config.sample_rate, format)?;
    let mut left = codes.samples;
    codec::decode_frames(&mut pipe, &rows, args.stream, &mut |samples| {
        let n = samples.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        left -= n as u64;
        Ok(wav.write(&samples[..n])?)
    })?;
    wav.finish()?;
    let seconds = codes.samples as f64 / f64::from(config.sample_rate);
    let factor = seconds / pipe.decode_times.total().as_secs_f64();
    if common.json {
        return terminal::say_json(&json!({
            "model": codec.name(), "device": codec.device().name(), "dtype": codec.stored().name(), "codebooks": codebooks,
            "frames": codes.frames(), "seconds": seconds, "real_time_factor": factor,
        }));
    }
    terminal::say(format!("{}: {seconds:.2} s at {} Hz, {factor:.1} x real time", args.output.display(), config.sample_rate))
}
