use std::path::Path;

use swara_fft::Transform;

use super::axis::Axis;
use super::canvas::{BLACK, Canvas, Colour, GREY, LINE, Rect, WHITE};
use crate::failure::Result;

/// Decibels from black to white.
const RANGE_DB: f32 = 80.0;

/// A signal to be shown.
pub struct Sound<'a> {
    pub title: &'a str,
    /// In [-1, 1].
    pub samples: &'a [f32],
}

/// Waveform and spectrogram of each sound, below each other on one time axis; all spectrograms share one colour scale.
pub fn sounds(path: &Path, title: &str, sample_rate: u32, sounds: &[Sound]) -> Result {
    super::save(&draw(title, sample_rate, sounds), path)
}

/// As [`sounds`], the bytes of a PNG.
pub fn sounds_png(title: &str, sample_rate: u32, sounds: &[Sound]) -> Result<Vec<u8>> {
    super::png(&draw(title, sample_rate, sounds))
}

fn draw(title: &str, sample_rate: u32, sounds: &[Sound]) -> Canvas {
    const LEFT: usize = 56;
    const WIDTH: usize = 1000;
    const RIGHT: usize = 64;
    const WAVE: usize = 80;
    const SPECTRUM: usize = 240;
    const GAP: usize = 14;
    let block = LINE + 6 + WAVE + GAP + SPECTRUM + 3 * LINE;
    let mut canvas = Canvas::new(LEFT + WIDTH + RIGHT, 2 * LINE + sounds.len() * block);
    canvas.text(LEFT, LINE / 2, title, BLACK);
    let longest = sounds.iter().map(|s| s.samples.len()).max().unwrap_or(0).max(1);
    let time = Axis { low: 0.0, high: longest as f64 / f64::from(sample_rate) };
    let kilohertz = Axis { low: 0.0, high: f64::from(sample_rate) / 2000.0 };
    let spectrograms: Vec<Vec<f32>> = sounds.iter().map(|s| spectrogram(s.samples, longest, WIDTH, SPECTRUM, sample_rate)).collect();
    let top = spectrograms.iter().flatten().copied().fold(f32::NEG_INFINITY, f32::max).max(-100.0);
    for (i, (sound, levels)) in sounds.iter().zip(&spectrograms).enumerate() {
        let y = 2 * LINE + i * block;
        canvas.text(LEFT, y, sound.title, BLACK);
        let wave = Rect { x: LEFT, y: y + LINE + 6, width: WIDTH, height: WAVE };
        draw_wave(&mut canvas, wave, sound.samples, longest);
        let spectrum = Rect { x: LEFT, y: wave.y + WAVE + GAP, width: WIDTH, height: SPECTRUM };
        for (x, column) in levels.chunks(SPECTRUM).enumerate() {
            for (row, &level) in column.iter().enumerate() {
                canvas.set(spectrum.x + x, spectrum.y + SPECTRUM - row, heat(1.0 + (level - top) / RANGE_DB));
            }
        }
        canvas.frame(spectrum, BLACK);
        kilohertz.draw_left(&mut canvas, spectrum, "kHz", false);
        time.draw_bottom(&mut canvas, spectrum, "s");
    }
    canvas
}

fn draw_wave(canvas: &mut Canvas, r: Rect, samples: &[f32], longest: usize) {
    const INK: Colour = [0x1f, 0x4e, 0x79];
    let middle = r.y + r.height / 2;
    canvas.horizontal(r.x, r.x + r.width, middle, GREY);
    let at = |x: usize| (x as u128 * longest as u128 / r.width as u128) as usize;
    for x in 0..r.width {
        let (from, to) = (at(x), at(x + 1).max(at(x) + 1));
        let Some(part) = samples.get(from..to.min(samples.len())).filter(|part| !part.is_empty()) else { break };
        let (low, high) = part.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), &v| (l.min(v), h.max(v)));
        let y = |v: f32| (middle as f32 - v.clamp(-1.0, 1.0) * r.height as f32 / 2.0).round() as usize;
        canvas.vertical(r.x + x, y(high), y(low), INK);
    }
    canvas.frame(r, BLACK);
    canvas.text(r.x.saturating_sub(18), r.y, "1", BLACK);
    canvas.text(r.x.saturating_sub(18), middle - LINE / 2, "0", BLACK);
    canvas.text(r.x.saturating_sub(27), r.y + r.height - LINE, "-1", BLACK);
}

/// Decibels, `height` values a column from 0 Hz up, `width` columns over `longest` samples. A column is the mean of up to
/// four windows of 32 ms, so that a long file costs no more than a short one.
fn spectrogram(samples: &[f32], longest: usize, width: usize, height: usize, sample_rate: u32) -> Vec<f32> {
    let window = ((f64::from(sample_rate) * 0.032) as usize).next_power_of_two().clamp(64, 1 << 15);
    let fft = f32::forward_plan(window);
    let hann: Vec<f32> = (0..window).map(|i| 0.5 - 0.5 * (std::f32::consts::TAU * i as f32 / window as f32).cos()).collect();
    let (mut frame, mut spectrum) = (fft.make_input_vec(), fft.make_output_vec());
    let column = longest as f64 / width as f64;
    let windows = (column / (window / 4) as f64).ceil().clamp(1.0, 4.0) as usize;
    let mut levels = Vec::with_capacity(width * height);
    let mut power = vec![0.0f32; spectrum.len()];
    for x in 0..width {
        power.fill(0.0);
        for part in 0..windows {
            let centre = (x as f64 + (part as f64 + 0.5) / windows as f64) * column;
            let first = centre as isize - (window / 2) as isize;
            for (i, (slot, hann)) in frame.iter_mut().zip(&hann).enumerate() {
                let sample = usize::try_from(first + i as isize).ok().and_then(|at| samples.get(at));
                *slot = hann * sample.copied().unwrap_or(0.0);
            }
            if fft.process(&mut frame, &mut spectrum).is_ok() {
                power.iter_mut().zip(&spectrum).for_each(|(p, c)| *p += c.norm_sqr());
            }
        }
        for row in 0..height {
            let from = row * power.len() / height;
            let to = ((row + 1) * power.len() / height).max(from + 1);
            let loudest = power[from..to].iter().copied().fold(0.0, f32::max) / windows as f32;
            levels.push(10.0 * (loudest + 1e-12).log10());
        }
    }
    levels
}

/// Black, purple, orange, white for 0 to 1.
fn heat(level: f32) -> Colour {
    const STOPS: [[f32; 3]; 6] =
        [[0.0, 0.0, 4.0], [61.0, 9.0, 101.0], [147.0, 38.0, 103.0], [221.0, 81.0, 58.0], [252.0, 165.0, 10.0], [252.0, 255.0, 164.0]];
    if level.is_nan() {
        return WHITE;
    }
    let at = level.clamp(0.0, 1.0) * (STOPS.len() - 1) as f32;
    let i = (at as usize).min(STOPS.len() - 2);
    let t = at - i as f32;
    std::array::from_fn(|c| (STOPS[i][c] + t * (STOPS[i + 1][c] - STOPS[i][c])).round() as u8)
}
