//! Pictures of results, on any `plotters` backend: an SVG, or pixels.
//!
//! Text is set in a fixed-width face and laid out by its number of characters, so that no picture depends on the fonts of the
//! machine that draws it.

mod latency;
mod roofline;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

pub use latency::{latency, latency_size};
pub use roofline::{roofline, roofline_size};

/// A line of text, and a character of it, in pixels.
const LINE: i32 = 16;
const CHARACTER: i32 = 7;
/// Size that makes characters so wide: `plotters` divides by 1.24 what a font size is elsewhere.
const SIZE: f64 = 11.7 * 1.24;

const BLACK: RGBColor = RGBColor(0x1a, 0x1a, 0x1a);
const GREY: RGBColor = RGBColor(0x6a, 0x6a, 0x6a);
const FAINT: RGBColor = RGBColor(0xe2, 0xe2, 0xe2);
const CEILING: RGBColor = RGBColor(0xc0, 0x20, 0x20);
const INKS: [RGBColor; 10] = [
    RGBColor(0x1f, 0x77, 0xb4),
    RGBColor(0x2c, 0xa0, 0x2c),
    RGBColor(0xd9, 0x6c, 0x00),
    RGBColor(0x94, 0x67, 0xbd),
    RGBColor(0x8c, 0x56, 0x4b),
    RGBColor(0xc8, 0x46, 0xa0),
    RGBColor(0x0e, 0x90, 0x9f),
    RGBColor(0x8a, 0x8a, 0x00),
    RGBColor(0x3d, 0x5a, 0x80),
    RGBColor(0x5c, 0x5c, 0x5c),
];

type Area<B> = DrawingArea<B, Shift>;
type Outcome<B> = Result<(), DrawingAreaErrorKind<<B as DrawingBackend>::ErrorType>>;

fn text<B: DrawingBackend>(area: &Area<B>, at: (i32, i32), side: HPos, ink: RGBColor, text: &str) -> Outcome<B> {
    let style = ("monospace", SIZE).into_font().color(&ink).pos(Pos::new(side, VPos::Center));
    area.draw(&Text::new(text.chars().filter(|c| !c.is_control()).collect::<String>(), at, style))
}

/// `text`, or as much of it as fits.
fn cut(text: &str, characters: usize) -> String {
    match text.chars().count() > characters {
        true => text.chars().take(characters.saturating_sub(2)).chain("..".chars()).collect(),
        false => text.to_owned(),
    }
}

/// Moves ascending heights apart, at least [`LINE`] from one to the next, and up again where they run over `bottom`.
fn spread(heights: &mut [i32], bottom: i32) {
    for i in 1..heights.len() {
        heights[i] = heights[i].max(heights[i - 1] + LINE);
    }
    let mut most = bottom;
    for height in heights.iter_mut().rev() {
        *height = (*height).min(most);
        most = *height - LINE;
    }
}

/// 1234.5 -> "1234", 0.0123 -> "0.012"
fn short(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{:.*}", (1.0 - v.abs().max(1e-9).log10().floor()).clamp(1.0, 9.0) as usize, v),
    }
}

/// The powers of ten between two values, `1` as "1" and 0.01 as "0.01".
fn decades((low, high): (f64, f64)) -> impl Iterator<Item = (f64, String)> {
    let range = low.log10().ceil().max(-12.0) as i32..=high.log10().floor().min(15.0) as i32;
    range.map(|power| {
        (
            10f64.powi(power),
            if power < 0 { format!("{:.*}", -power as usize, 10f64.powi(power)) } else { format!("{:.0}", 10f64.powi(power)) },
        )
    })
}

fn line<B: DrawingBackend>(area: &Area<B>, points: Vec<(i32, i32)>, ink: RGBColor, width: u32) -> Outcome<B> {
    area.draw(&PathElement::new(points, ink.stroke_width(width)))
}

/// A rectangle of pixels and the logarithmic axes along its sides.
struct Plot {
    left: i32,
    top: i32,
    width: i32,
    height: i32,
    x: (f64, f64),
    y: (f64, f64),
}

impl Plot {
    fn right(&self) -> i32 {
        self.left + self.width
    }

    fn bottom(&self) -> i32 {
        self.top + self.height
    }

    /// The frame, and a line with its value at each power of ten.
    fn grid<B: DrawingBackend>(&self, area: &Area<B>, (x_unit, y_unit): (&str, &str), x_ticks: &[(f64, String)]) -> Outcome<B> {
        for (x, label) in x_ticks {
            let (px, _) = self.place(*x, self.y.0);
            line(area, vec![(px, self.top), (px, self.bottom())], FAINT, 1)?;
            text(area, (px, self.bottom() + LINE / 2 + 2), HPos::Center, GREY, label)?;
        }
        for (y, label) in decades(self.y) {
            let (_, py) = self.place(self.x.0, y);
            line(area, vec![(self.left, py), (self.right(), py)], FAINT, 1)?;
            text(area, (self.left + 4, py - LINE / 2), HPos::Left, GREY, &format!("{label} {y_unit}"))?;
        }
        text(area, (self.right(), self.bottom() + LINE / 2 + 2 + LINE), HPos::Right, GREY, x_unit)?;
        let (l, t, r, b) = (self.left, self.top, self.right(), self.bottom());
        line(area, vec![(l, t), (r, t), (r, b), (l, b), (l, t)], GREY, 1)
    }

    fn place(&self, x: f64, y: f64) -> (i32, i32) {
        let along = |v: f64, (low, high): (f64, f64)| ((v / low).ln() / (high / low).ln()).clamp(-0.5, 1.5);
        // Finite even if a range is empty: no picture is worth a panic.
        let along = |v: f64, range| Some(along(v, range)).filter(|p| p.is_finite()).unwrap_or(0.5);
        let px = f64::from(self.left) + along(x, self.x) * f64::from(self.width);
        let py = f64::from(self.top) + (1.0 - along(y, self.y)) * f64::from(self.height);
        (px.round() as i32, py.round() as i32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_keep_their_distance_and_stay_inside() {
        let mut heights = [10, 12, 13, 100, 200, 205];
        spread(&mut heights, 210);
        assert_eq!(heights, [10, 26, 42, 100, 194, 210]);
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!([1234.5, 12.34, 1.234, 0.01234].map(short), ["1234", "12.3", "1.2", "0.012"]);
        assert_eq!(cut("abcdef", 5), "abc..");
        assert_eq!(decades((0.05, 20.0)).map(|(_, label)| label).collect::<Vec<_>>(), ["0.1", "1", "10"]);
        assert_eq!(decades((0.0, f64::INFINITY)).count(), 28);
    }
}
