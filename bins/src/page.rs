//! The report of a training run: one page that needs nothing beside it.

use std::fmt::Write;
use std::path::Path;

use swara_engine::metrics::Comparison;
use swara_loader::audio::{self, AudioReader};

use crate::failure::{Failure, Result};
use crate::picture::{self, Panel, Sound};
use crate::run_folder::{Line, RunFolder, Sample};
use crate::terminal;

/// So many utterances can be listened to, so many seconds of each, at this rate or lower: 10 MB at most.
const MAX_SAMPLES: usize = 4;
const MAX_SECONDS: usize = 10;
const MAX_RATE: u32 = 24_000;
/// Longest text from a file, characters.
const MAX_TEXT: usize = 20_000;

const STYLE: &str = "
:root{color-scheme:light dark}
body{font:1rem/1.45 system-ui,sans-serif;max-width:72rem;margin:0 auto;padding:1rem}
h1{font-size:1.4rem}h2{font-size:1.15rem;margin-top:2rem}
.verdict{border-left:.4rem solid #2ca02c;padding:.3rem .8rem}.verdict.bad{border-color:#d62728}
.charts{display:grid;gap:1rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr))}
figure{margin:0}figcaption span{white-space:nowrap;margin-right:.8rem}
i{display:inline-block;width:.8rem;height:.8rem;border-radius:.2rem;margin-right:.3rem}
svg,img{max-width:100%;height:auto}svg text{fill:currentColor}
audio{width:100%;max-width:24rem;display:block}
.wide{overflow-x:auto}table{border-collapse:collapse}td,th{padding:.15rem .8rem .15rem 0;text-align:right}th:first-child{text-align:left}
pre{overflow-x:auto}
";

/// The page as HTML. `lines`: the log's, the last one being judged; `since`: the step from which its verdict has held.
pub fn page(run: &RunFolder, lines: &[Line], since: u64) -> Result<String> {
    let Some(last) = lines.last() else { return Err(Failure::work("cannot report: no lines")) };
    let name = run.dir.file_name().unwrap_or(run.dir.as_os_str()).to_string_lossy();
    let mut html = String::from("<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n");
    let mut add = |part: std::fmt::Arguments| {
        // A string takes everything.
        let _ = html.write_fmt(part);
    };
    add(format_args!("<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n"));
    add(format_args!("<title>Training in {}</title>\n<style>{STYLE}</style>\n<h1>Training in {0}</h1>\n", escape(&name)));
    let steps = format!("step {} of {}, model {}", last.step, run.config.train.steps, escape(&run.config.model));
    add(format_args!("<p>{steps}</p>\n"));
    let class = if last.verdict.fails() || run.diverged() { "verdict bad" } else { "verdict" };
    let held = if since < last.step { format!(", since step {since}") } else { String::new() };
    add(format_args!("<p class=\"{class}\"><b>{}</b>{held}: {}</p>\n", last.verdict, escape(last.verdict.advice())));
    for alarm in &last.alarms {
        add(format_args!("<p class=\"verdict bad\">{}</p>\n", escape(&alarm.to_string())));
    }
    if run.diverged() {
        add(format_args!("<p class=\"verdict bad\">{}</p>\n", escape(DIVERGED)));
    }
    add(format_args!("{}", changes(lines)));
    add(format_args!("<h2>Curves</h2>\n<div class=\"charts\">\n"));
    for panel in run.panels() {
        add(format_args!("{}", figure(&panel)?));
    }
    add(format_args!("</div>\n"));
    let samples = run.samples();
    if !samples.is_empty() {
        add(format_args!("<h2>Validation</h2>\n"));
    }
    for sample in samples.iter().take(MAX_SAMPLES) {
        add(format_args!("{}", listen(sample)?));
    }
    let config = serde_json::to_string_pretty(&run.config).map_err(|e| Failure::work(format!("cannot write JSON: {e}")))?;
    add(format_args!("<details><summary>Configuration</summary><pre>{}</pre></details>\n</html>\n", escape(&config)));
    Ok(html)
}

pub const DIVERGED: &str = "a logged value is not finite: lower the learning rate or the gradient clip";

/// The steps at which the verdict became another.
fn changes(lines: &[Line]) -> String {
    const MOST: usize = 12;
    let changed: Vec<&Line> =
        lines.iter().enumerate().filter(|&(i, line)| i == 0 || lines[i - 1].verdict != line.verdict).map(|(_, line)| line).collect();
    let text: Vec<String> =
        changed.iter().skip(changed.len().saturating_sub(MOST)).map(|line| format!("{} from step {}", line.verdict, line.step)).collect();
    if text.len() < 2 { String::new() } else { format!("<p>{}</p>\n", text.join(", ")) }
}

fn figure(panel: &Panel) -> Result<String> {
    let legend: String = panel
        .series
        .iter()
        .enumerate()
        .map(|(n, (name, _))| format!("<span><i style=\"background:{}\"></i>{}</span>", picture::ink(n), escape(name)))
        .collect();
    Ok(format!("<figure><figcaption><b>{}</b> {legend}</figcaption>{}</figure>\n", escape(&panel.title), picture::chart(panel, "step")?))
}

/// Players, spectrograms and figures of one utterance. What cannot be read is said, and is no reason to say nothing else.
fn listen(sample: &Sample) -> Result<String> {
    let title = format!("<h3>{}, step {}</h3>\n", escape(&sample.name), sample.step);
    let read = || Ok::<_, Failure>((sample.input.as_deref().map(|path| read(path, None)).transpose()?, read(&sample.output, None)?));
    let (input, output) = match read() {
        Ok(read) => read,
        Err(error) => {
            let text = error.to_string();
            let why = text.strip_prefix("error: ").unwrap_or(&text);
            terminal::warn(why);
            return Ok(format!("{title}<p>{}</p>\n", escape(why)));
        }
    };
    let (y, rate) = &output;
    let mut html = title;
    let mut sounds = Vec::new();
    if let Some((x, own)) = &input {
        html += &player("input", x, *own);
        sounds.push(Sound { title: "input", samples: x });
        if own == rate {
            html += &likeness(&Comparison::new(x, y, *rate, 0));
        }
    }
    html += &player("output", y, *rate);
    if input.as_ref().is_none_or(|(_, own)| own == rate) {
        sounds.push(Sound { title: "output", samples: y });
        let png = picture::sounds_png(&sample.name, *rate, &sounds)?;
        let _ = writeln!(html, "<img alt=\"waveforms and spectrograms\" src=\"data:image/png;base64,{}\">", base64(&png));
    }
    Ok(html)
}

/// The first seconds of a file, and its rate or a lower one.
fn read(path: &Path, rate: Option<u32>) -> Result<(Vec<f32>, u32)> {
    let reader = AudioReader::open(path, rate)?;
    let rate = reader.rate();
    if rate > MAX_RATE {
        drop(reader);
        return read(path, Some(MAX_RATE));
    }
    let most = MAX_SECONDS * rate as usize;
    let mut samples = Vec::new();
    for piece in reader {
        samples.extend(piece?);
        if samples.len() >= most {
            break;
        }
    }
    samples.truncate(most);
    Ok((samples, rate))
}

fn player(what: &str, samples: &[f32], rate: u32) -> String {
    format!("<p>{what}<audio controls preload=\"none\" src=\"data:audio/wav;base64,{}\"></audio></p>\n", base64(&wav(samples, rate)))
}

fn likeness(c: &Comparison) -> String {
    let number = |v: Option<f64>| v.map_or_else(|| "-".to_owned(), |v| format!("{v:.3}"));
    let cells = [
        ("SI-SDR, dB", Some(c.waveform.si_sdr_db)),
        ("rho", Some(c.waveform.rho)),
        ("amplitude, %", Some(c.waveform.amplitude)),
        ("mel distance", c.mel_distance),
        ("STFT distance", c.stft_distance),
        ("PESQ", c.pesq),
        ("STOI", c.stoi),
        ("F0 error, cents", c.prosody.f0_rmse_cents),
        ("voicing F1", c.prosody.voicing_f1),
    ];
    let names: String = cells.iter().map(|(name, _)| format!("<th>{name}</th>")).collect();
    let values: String = cells.iter().map(|&(_, v)| format!("<td>{}</td>", number(v))).collect();
    format!("<div class=\"wide\"><table><tr>{names}</tr><tr>{values}</tr></table></div>\n")
}

/// A file of 16-bit samples, made here: nothing of a file that was read goes into the page as it is.
fn wav(samples: &[f32], rate: u32) -> Vec<u8> {
    let data = 2 * samples.len() as u32;
    let mut bytes = b"RIFF".to_vec();
    bytes.extend((36 + data).to_le_bytes());
    bytes.extend(b"WAVEfmt ");
    bytes.extend([16, 0, 0, 0, 1, 0, 1, 0]);
    bytes.extend(rate.to_le_bytes());
    bytes.extend((2 * rate).to_le_bytes());
    bytes.extend([2, 0, 16, 0]);
    bytes.extend(b"data");
    bytes.extend(data.to_le_bytes());
    bytes.extend(samples.iter().flat_map(|&v| audio::to_s16(v).to_le_bytes()));
    bytes
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0u32, |bits, &byte| bits << 8 | u32::from(byte)) << (8 * (3 - group.len()));
        let digit = |i: usize| DIGITS[(bits >> (18 - 6 * i) & 63) as usize] as char;
        text.extend((0..4).map(|i| if i <= group.len() { digit(i) } else { '=' }));
    }
    text
}

/// Text that no browser takes for anything else, of bounded length.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len().min(MAX_TEXT));
    for c in text.chars().take(MAX_TEXT) {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' | '\t' => escaped.push(c),
            c if c.is_control() => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_standard() {
        let cases =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("fooba", "Zm9vYmE="), ("foobar", "Zm9vYmFy")];
        cases.into_iter().for_each(|(plain, coded)| assert_eq!(base64(plain.as_bytes()), coded));
        assert_eq!(base64(&[0xff, 0xfe, 0xfb]), "//77");
    }

    #[test]
    fn text_is_text() {
        assert_eq!(escape("<img src='x' onerror=\"a&b\">\u{1b}"), "&lt;img src=&#39;x&#39; onerror=&quot;a&amp;b&quot;&gt;\u{fffd}");
        assert_eq!(escape(&"x".repeat(2 * MAX_TEXT)).len(), MAX_TEXT);
    }

    #[test]
    fn sound_in_a_page_is_a_wav_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.wav");
        std::fs::write(&path, wav(&[0.0, 0.5, -1.0], 16_000)).unwrap();
        let (samples, rate) = read(&path, None).unwrap();
        assert_eq!((samples.len(), rate), (3, 16_000));
        assert!((samples[1] - 0.5).abs() < 1e-4 && (samples[2] + 1.0).abs() < 1e-4);
    }
}
