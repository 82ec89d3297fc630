use super::canvas::{BLACK, Canvas, GREY, LINE, Rect, text_width};

/// A range of values along one side of a plot.
#[derive(Clone, Copy, Debug)]
pub struct Axis {
    pub low: f64,
    pub high: f64,
}

impl Axis {
    /// An axis of some length even if there is but one value, or none that is finite.
    pub fn around(values: impl Iterator<Item = f64>) -> Axis {
        let (low, high) =
            values.filter(|v| v.is_finite()).fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        match high - low {
            span if span > 0.0 => Axis { low: low - 0.04 * span, high: high + 0.04 * span },
            0.0 => Axis { low: low - 1.0, high: high + 1.0 },
            _ => Axis { low: 0.0, high: 1.0 },
        }
    }

    /// 0 at the low end, 1 at the high end.
    pub fn position(&self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }

    /// Round values, at most `count` of them: 1, 2 or 5 times a power of ten apart.
    pub fn ticks(&self, count: usize) -> Vec<f64> {
        let span = self.high - self.low;
        if !(span.is_finite() && span > 0.0) {
            return Vec::new();
        }
        let raw = span / count.max(1) as f64;
        let power = 10f64.powf(raw.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|&s| s >= raw * 0.999).unwrap_or(raw);
        let first = (self.low / step).ceil();
        (0..=count).map(|i| (first + i as f64) * step).filter(|&v| v <= self.high + 1e-9 * span).collect()
    }

    /// Labels and grid lines along the left side.
    pub fn draw_left(&self, canvas: &mut Canvas, r: Rect, unit: &str, grid: bool) {
        for tick in self.ticks(r.height / 40) {
            let y = r.y + ((1.0 - self.position(tick)) * r.height as f64).round() as usize;
            if grid {
                canvas.horizontal(r.x + 1, r.x + r.width - 1, y, GREY);
            }
            canvas.horizontal(r.x.saturating_sub(4), r.x, y, BLACK);
            let text = label(tick);
            canvas.text(r.x.saturating_sub(8 + text_width(&text)), y.saturating_sub(LINE / 2), &text, BLACK);
        }
        canvas.text(r.x + r.width + 6, r.y, unit, BLACK);
    }

    /// Labels along the bottom.
    pub fn draw_bottom(&self, canvas: &mut Canvas, r: Rect, unit: &str) {
        for tick in self.ticks(r.width / 90) {
            let x = r.x + (self.position(tick) * r.width as f64).round() as usize;
            canvas.vertical(x, r.y + r.height, r.y + r.height + 4, BLACK);
            let text = label(tick);
            canvas.text(x.saturating_sub(text_width(&text) / 2), r.y + r.height + 6, &text, BLACK);
        }
        canvas.text(r.x + r.width + 6, r.y + r.height + 6, unit, BLACK);
    }
}

pub fn label(value: f64) -> String {
    let value = if value.abs() < 1e-12 { 0.0 } else { value };
    match value.abs() {
        a if a >= 1e6 || (a > 0.0 && a < 1e-3) => format!("{value:.0e}"),
        _ => {
            let text = format!("{value:.3}");
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(Axis { low: 0.0, high: 7.3 }.ticks(8), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        assert_eq!(Axis { low: -0.9, high: 1.1 }.ticks(4), [-0.5, 0.0, 0.5, 1.0]);
        assert!(Axis { low: f64::NAN, high: 1.0 }.ticks(4).is_empty());
    }

    #[test]
    fn labels_are_short() {
        assert_eq!([label(0.30000000000000004), label(2.0), label(-0.0), label(2.5e7)], ["0.3", "2", "0", "2e7"]);
    }
}
