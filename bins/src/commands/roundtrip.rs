use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use swara_engine::codec::Codec;
use swara_engine::metrics::{Comparison, Usage};
use swara_loader::audio::{WavFormat, WavWriter};

use crate::cli::{Common, Roundtrip};
use crate::codec::{self, Pipe, UnpackedClip};
use crate::failure::{Failure, Result};
use crate::picture::{self, Sound};
use crate::terminal;

/// The report compares this much of a long file, so that its memory stays bounded.
const COMPARED_SECONDS: usize = 600;

pub fn run(common: &Common, args: &Roundtrip) -> Result {
    let output = args.output.clone().unwrap_or_else(|| PathBuf::from("out.wav"));
    let plot = args.plot.clone().or_else(|| args.output.is_none().then(|| output.with_extension("png")));
    plot.as_deref().map_or(Ok(()), picture::check_name)?;
    if plot.as_ref() == Some(&output) {
        return Err(Failure::usage(format!("--plot: names the output, too ({})", output.display())));
    }
    let codec = codec::open(common, &args.model)?;
    let codebooks = codec::codebooks(&codec, args.codebooks)?;
    let bundled;
    let input = match &args.input {
        Some(input) => input,
        None => {
            bundled = UnpackedClip::new()?;
            &bundled.path
        }
    };
    let name = args.input.as_deref().map_or_else(|| "the bundled clip".to_owned(), |p| p.display().to_string());

    let mut pipe = Pipe::new(&codec, codebooks, args.stream)?;
    let format = codec.format();
    let rate = format.sample_rate;
    let limit = COMPARED_SECONDS * rate as usize;
    let mut wav = WavWriter::create(&output, rate, WavFormat::S16)?;
    let (mut original, mut decoded): (Vec<f32>, Vec<f32>) = Default::default();
    let mut usage: Vec<Usage> = format.codebook_sizes[..codebooks].iter().map(|&size| Usage::new(size)).collect();
    let samples = codec::encode_file(&mut pipe, input, args.stream, &mut |pipe, x, real, codes| {
        let y = codec::decode_piece(pipe, codes)?;
        let real_y = &y[..real.min(y.len())];
        wav.write(real_y)?;
        let room = limit - original.len();
        original.extend_from_slice(&x[..real.min(room)]);
        decoded.extend_from_slice(&real_y[..real_y.len().min(limit - decoded.len())]);
        for frame in codes.chunks(format.columns(codebooks)) {
            format.stages().zip(frame).for_each(|(stage, code)| usage[stage].add(&[*code]));
        }
        Ok(())
    })?;
    wav.finish()?;
    let report = Report {
        codec: &codec,
        codebooks,
        seconds: samples as f64 / f64::from(rate),
        compared: Comparison::new(&original, &decoded, rate, format.hop),
        compared_seconds: original.len() as f64 / f64::from(rate),
        usage,
        stream: args.stream,
        pipe: &pipe,
    };
    if let Some(plot) = &plot {
        let title = format!("{} at {:.2} kbit/s, {}", codec.name(), report.kbps(), codec.device().name());
        picture::sounds(
            plot,
            &title,
            rate,
            &[
                Sound { title: &format!("input: {name}"), samples: &original },
                Sound { title: &format!("output: {}", output.display()), samples: &decoded },
            ],
        )?;
    }
    if common.json { terminal::say_json(&report.json()) } else { report.print(&name, &output, plot.as_deref()) }
}

struct Report<'a> {
    codec: &'a Codec,
    codebooks: usize,
    seconds: f64,
    compared: Comparison,
    compared_seconds: f64,
    usage: Vec<Usage>,
    stream: bool,
    pipe: &'a Pipe<'a>,
}

impl Report<'_> {
    fn kbps(&self) -> f64 {
        self.codec.format().bitrate(self.codebooks) / 1e3
    }

    fn rates(&self) -> String {
        let format = self.codec.format();
        match format.multi_rate() {
            false => format!("codebooks x {} Hz", format.frame_rate()),
            true => format!("levels from {:.1} Hz", format.frame_rate()),
        }
    }

    /// Seconds of audio encoded and decoded in one second.
    fn real_time_factor(&self) -> f64 {
        self.seconds / (self.pipe.encode_times.total() + self.pipe.decode_times.total()).as_secs_f64()
    }

    fn json(&self) -> Value {
        let c = &self.compared;
        let mut value = json!({
            "model": self.codec.name(),
            "device": self.codec.device().name(),
            "dtype": self.codec.stored().name(),
            "codebooks": self.codebooks,
            "seconds": self.seconds,
            "bitrate_kbps": self.kbps(),
            "si_sdr_db": c.waveform.si_sdr_db,
            "snr_db": c.waveform.snr_db,
            "rho": c.waveform.rho,
            "amplitude": c.waveform.amplitude,
            "mel_distance": c.mel_distance,
            "stft_distance": c.stft_distance,
            "pesq": c.pesq,
            "stoi": c.stoi,
            "lag": c.lag,
            "compared_seconds": self.compared_seconds,
            "verdict": c.verdict(),
            "perplexity": self.usage.iter().map(Usage::perplexity).collect::<Vec<_>>(),
            "real_time_factor": self.real_time_factor(),
        });
        if self.stream {
            let (e, d) = (&self.pipe.encode_times, &self.pipe.decode_times);
            value["frame_ms"] = json!({
                "encode_p50": e.percentile_ms(0.5), "encode_p99": e.percentile_ms(0.99),
                "decode_p50": d.percentile_ms(0.5), "decode_p99": d.percentile_ms(0.99),
            });
        }
        value
    }

    fn print(&self, input: &str, output: &Path, plot: Option<&Path>) -> Result {
        let (c, w) = (&self.compared, &self.compared.waveform);
        let or_dash = |v: Option<f64>| v.map_or_else(|| "-".to_owned(), |v| format!("{v:.3}"));
        let mut lines = vec![
            ("input", format!("{input}, {:.2} s", self.seconds)),
            ("output", output.display().to_string()),
            ("model", format!("{} on {}, {}", self.codec.name(), self.codec.device().name(), self.codec.stored().name())),
            ("bitrate", format!("{:.2} kbit/s, {} {}", self.kbps(), self.codebooks, self.rates())),
            ("SI-SDR", format!("{:.2} dB", w.si_sdr_db)),
            ("rho", format!("{:.3}", w.rho)),
            ("amplitude", format!("{:.1} %", w.amplitude)),
            ("mel distance", or_dash(c.mel_distance)),
            ("PESQ", or_dash(c.pesq)),
            ("STOI", or_dash(c.stoi)),
            ("verdict", format!("{}: {}", c.verdict(), c.verdict().advice())),
            ("speed", format!("{:.1} x real time", self.real_time_factor())),
        ];
        if let Some(plot) = plot {
            lines.insert(2, ("picture", plot.display().to_string()));
        }
        if self.compared_seconds + 1.0 < self.seconds {
            lines.push(("compared", format!("the first {:.0} s", self.compared_seconds)));
        }
        if self.stream {
            let row = |t: &codec::Times| format!("p50 {:.2} ms, p99 {:.2} ms a frame", t.percentile_ms(0.5), t.percentile_ms(0.99));
            lines.push(("encode", row(&self.pipe.encode_times)));
            lines.push(("decode", row(&self.pipe.decode_times)));
        }
        lines.into_iter().try_for_each(|(what, value)| terminal::say(format!("{what:<13}{value}")))
    }
}
