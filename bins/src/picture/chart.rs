use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::axis::{Axis, label};
use super::curves::{INKS, Panel};
use crate::failure::{Failure, Result};

const WIDTH: i32 = 480;
const HEIGHT: i32 = 220;
const LEFT: i32 = 56;
const RIGHT: i32 = 12;
const TOP: i32 = 8;
const BOTTOM: i32 = 28;
/// A curve has no more points than can be seen: the least and the most of so many stretches.
const STRETCHES: usize = 400;

/// The curves of a panel as an SVG without title or legend, on no background: it stands on light pages and on dark ones.
pub fn chart(panel: &Panel, x_unit: &str) -> Result<String> {
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, (WIDTH as u32, HEIGHT as u32)).into_drawing_area();
    draw(&area, panel, x_unit).and_then(|()| area.present()).map_err(|e| Failure::work(format!("cannot draw: {e}")))?;
    drop(area);
    // Within a page it needs no name space.
    Ok(svg.replacen(" xmlns=\"http://www.w3.org/2000/svg\"", "", 1))
}

/// The colour of a panel's n-th curve, for CSS.
pub fn ink(n: usize) -> String {
    let [r, g, b] = INKS[n % INKS.len()];
    format!("#{r:02x}{g:02x}{b:02x}")
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Outcome<'a> = std::result::Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

fn draw<'a>(area: &Area<'a>, panel: &Panel, x_unit: &str) -> Outcome<'a> {
    let grey = RGBColor(0x80, 0x80, 0x80);
    let points = || panel.series.iter().flat_map(|(_, points)| points).filter(|p| p.0.is_finite() && p.1.is_finite());
    let (x_axis, y_axis) = (Axis::around(points().map(|p| p.0)), Axis::around(points().map(|p| p.1)));
    let (width, height) = (f64::from(WIDTH - LEFT - RIGHT), f64::from(HEIGHT - TOP - BOTTOM));
    // Finite even if a range is not.
    let along = |axis: &Axis, v: f64| Some(axis.position(v)).filter(|p| p.is_finite()).unwrap_or(0.5).clamp(0.0, 1.0);
    let x = |v: f64| LEFT + (along(&x_axis, v) * width).round() as i32;
    let y = |v: f64| TOP + ((1.0 - along(&y_axis, v)) * height).round() as i32;
    let text = |at: (i32, i32), side: HPos, text: &str| {
        // `plotters` divides by 1.24 what a font size is elsewhere.
        let style = ("sans-serif", 14.0 * 1.24).into_font().color(&grey).pos(Pos::new(side, VPos::Center));
        area.draw(&Text::new(text.to_owned(), at, style))
    };
    for tick in y_axis.ticks(5) {
        area.draw(&PathElement::new(vec![(LEFT, y(tick)), (WIDTH - RIGHT, y(tick))], grey.mix(0.35).stroke_width(1)))?;
        text((LEFT - 6, y(tick)), HPos::Right, &label(tick))?;
    }
    for tick in x_axis.ticks(4) {
        area.draw(&PathElement::new(vec![(x(tick), HEIGHT - BOTTOM), (x(tick), HEIGHT - BOTTOM + 4)], grey.stroke_width(1)))?;
        text((x(tick), HEIGHT - BOTTOM + 13), HPos::Center, &label(tick))?;
    }
    text((WIDTH - RIGHT, HEIGHT - 5), HPos::Right, x_unit)?;
    for ((_, points), &[r, g, b]) in panel.series.iter().zip(INKS.iter().cycle()) {
        let ink = RGBColor(r, g, b);
        let finite: Vec<(f64, f64)> = points.iter().copied().filter(|p| p.0.is_finite() && p.1.is_finite()).collect();
        let placed: Vec<(i32, i32)> = thin(&finite).into_iter().map(|p| (x(p.0), y(p.1))).collect();
        match placed[..] {
            [] => {}
            [only] => area.draw(&Circle::new(only, 3, ink.filled()))?,
            _ => area.draw(&PathElement::new(placed, ink.stroke_width(2)))?,
        }
    }
    Ok(())
}

fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= 2 * STRETCHES {
        return points.to_vec();
    }
    let stretch = |part: &[(f64, f64)]| {
        let order = |a: &(usize, &(f64, f64)), b: &(usize, &(f64, f64))| a.1.1.total_cmp(&b.1.1);
        let mut ends: Vec<(usize, (f64, f64))> = [part.iter().enumerate().min_by(order), part.iter().enumerate().max_by(order)]
            .into_iter()
            .flatten()
            .map(|(i, &p)| (i, p))
            .collect();
        ends.sort_by_key(|end| end.0);
        ends.into_iter().map(|(_, p)| p).collect::<Vec<_>>()
    };
    points.chunks(points.len().div_ceil(STRETCHES)).flat_map(stretch).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_keeps_what_stands_out_and_survives_what_is_no_number() {
        let mut points: Vec<(f64, f64)> = (0..100_000).map(|i| (f64::from(i), 1.0)).collect();
        points[77_777].1 = 50.0;
        let thinned = thin(&points);
        assert!(thinned.len() <= 2 * STRETCHES && thinned.contains(&(77_777.0, 50.0)));
        for values in [vec![], vec![f64::NAN], vec![1.0], vec![1e308, -1e308], vec![f64::INFINITY, 2.0, 2.0]] {
            let points = values.iter().enumerate().map(|(i, &v)| (i as f64, v)).collect();
            let svg = chart(&Panel { title: String::new(), series: vec![("a".into(), points)] }, "step").unwrap();
            assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>") && !svg.contains("NaN"), "{svg}");
        }
    }
}
