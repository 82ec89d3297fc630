use std::path::Path;

use super::axis::Axis;
use super::canvas::{BLACK, Canvas, Colour, LINE, Rect, text_width};
use crate::failure::Result;

pub const INKS: [Colour; 8] = [
    [0x1f, 0x77, 0xb4],
    [0xd6, 0x27, 0x28],
    [0x2c, 0xa0, 0x2c],
    [0xff, 0x7f, 0x0e],
    [0x94, 0x67, 0xbd],
    [0x8c, 0x56, 0x4b],
    [0xe3, 0x77, 0xc2],
    [0x17, 0xbe, 0xcf],
];

/// One plot: named series of (x, y).
pub struct Panel {
    pub title: String,
    pub series: Vec<(String, Vec<(f64, f64)>)>,
}

/// Panels below each other on one x axis.
pub fn curves(path: &Path, title: &str, x_unit: &str, panels: &[Panel]) -> Result {
    const LEFT: usize = 80;
    const WIDTH: usize = 900;
    const HEIGHT: usize = 180;
    let block = HEIGHT + 3 * LINE + 8;
    let mut canvas = Canvas::new(LEFT + WIDTH + 220, 2 * LINE + panels.len() * block);
    canvas.text(LEFT, LINE / 2, title, BLACK);
    let points = || panels.iter().flat_map(|p| &p.series).flat_map(|(_, points)| points);
    let x_axis = Axis::around(points().map(|p| p.0));
    for (i, panel) in panels.iter().enumerate() {
        let r = Rect { x: LEFT, y: 2 * LINE + i * block + LINE + 4, width: WIDTH, height: HEIGHT };
        canvas.text(LEFT, r.y - LINE - 2, &panel.title, BLACK);
        let y_axis = Axis::around(panel.series.iter().flat_map(|(_, points)| points).map(|p| p.1));
        y_axis.draw_left(&mut canvas, r, "", true);
        x_axis.draw_bottom(&mut canvas, r, x_unit);
        let place = |(x, y): (f64, f64)| {
            let (x, y) = (x_axis.position(x), 1.0 - y_axis.position(y));
            (r.x as f64 + x * r.width as f64, r.y as f64 + y * r.height as f64)
        };
        for ((name, points), (n, ink)) in panel.series.iter().zip(INKS.iter().cycle().enumerate()) {
            let finite: Vec<(f64, f64)> = points.iter().copied().filter(|p| p.0.is_finite() && p.1.is_finite()).map(place).collect();
            finite.windows(2).for_each(|pair| canvas.line(pair[0], pair[1], *ink));
            if let [only] = finite[..] {
                canvas.line((only.0 - 2.0, only.1), (only.0 + 2.0, only.1), *ink);
            }
            let y = r.y + n * LINE;
            if y + LINE <= r.y + r.height + LINE {
                canvas.horizontal(r.x + r.width + 8, r.x + r.width + 22, y + LINE / 2, *ink);
                canvas.text(r.x + r.width + 22 + text_width(" ") / 2, y, name, BLACK);
            }
        }
        canvas.frame(r, BLACK);
    }
    super::save(&canvas, path)
}
