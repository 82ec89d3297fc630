//! Where each kernel stands under the ceilings.

use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::{Area, BLACK, CEILING, CHARACTER, GREY, INKS, LINE, Outcome, Plot, cut, decades, line, short, spread, text};
use crate::kernels::Row;

/// Characters of a label.
const LABEL: usize = 40;
const COLUMN: i32 = LABEL as i32 * CHARACTER + 10;
const WIDTH: i32 = 520;
const HEAD: i32 = 2 * LINE;
const FOOT: i32 = 3 * LINE;

/// One panel for each storage type, as their ceilings differ.
fn panels(rows: &[Row]) -> Vec<(&str, Vec<&Row>)> {
    let mut panels: Vec<(&str, Vec<&Row>)> = Vec::new();
    // What computes nothing has no place on a logarithmic axis.
    for row in rows.iter().filter(|row| row.flops > 0 && row.bytes > 0 && row.gflop_s > 0.0) {
        match panels.iter_mut().find(|(dtype, _)| *dtype == row.dtype) {
            Some((_, rows)) => rows.push(row),
            None => panels.push((&row.dtype, vec![row])),
        }
    }
    panels
}

fn height(rows: usize) -> i32 {
    (rows.div_ceil(2) as i32 * LINE + LINE).max(440)
}

/// Width and height in pixels.
pub fn roofline_size(rows: &[Row]) -> (u32, u32) {
    let high = panels(rows).iter().map(|(_, rows)| HEAD + height(rows.len()) + FOOT).sum::<i32>();
    ((2 * COLUMN + WIDTH) as u32, high.max(HEAD) as u32)
}

/// Arithmetic a byte against arithmetic a second, each kernel named beside the plot with its share of the ceiling above it.
pub fn roofline<B: DrawingBackend>(area: &Area<B>, rows: &[Row]) -> Outcome<B> {
    area.fill(&WHITE)?;
    let ops: Vec<&str> = rows.iter().fold(Vec::new(), |mut ops, row| {
        if !ops.contains(&row.op.as_str()) {
            ops.push(&row.op);
        }
        ops
    });
    let mut top = 0;
    for (dtype, rows) in panels(rows) {
        panel(area, top, dtype, &rows, &ops)?;
        top += HEAD + height(rows.len()) + FOOT;
    }
    Ok(())
}

fn panel<B: DrawingBackend>(area: &Area<B>, top: i32, dtype: &str, rows: &[&Row], ops: &[&str]) -> Outcome<B> {
    let most = |of: fn(&Row) -> f64| rows.iter().map(|row| of(row)).fold(0.0, f64::max);
    let least = |of: fn(&Row) -> f64| rows.iter().map(|row| of(row)).fold(f64::INFINITY, f64::min);
    let intensity = |row: &Row| row.flops as f64 / row.bytes as f64;
    let (bandwidth, arithmetic) = (most(|row| row.ceiling_gb_s), most(|row| row.ceiling_gflop_s));
    let ridge = arithmetic / bandwidth;
    let plot = Plot {
        left: COLUMN,
        top: top + HEAD,
        width: WIDTH,
        height: height(rows.len()),
        x: (least(intensity).min(ridge) / 1.6, most(intensity).max(ridge) * 1.6),
        y: (least(|row| row.gflop_s).min(arithmetic) / 2.0, arithmetic.max(most(|row| row.gflop_s)) * 2.0),
    };
    let device = rows.first().map_or("", |row| &row.device);
    text(
        area,
        (8, top + LINE),
        HPos::Left,
        BLACK,
        &format!("{}, {dtype}: each kernel with its share of the ceiling above it", cut(device, 60)),
    )?;
    plot.grid(area, ("floating-point operations a byte", "GFLOP/s"), &decades(plot.x).collect::<Vec<_>>())?;

    let at = |x: f64| plot.place(x, (bandwidth * x).min(arithmetic));
    let foot = (plot.y.0 / bandwidth).max(plot.x.0);
    line(area, vec![at(foot), at(ridge), at(plot.x.1)], CEILING, 2)?;
    let copies = if device == "cpu" { "read" } else { "copy" };
    let (x, y) = at((foot * ridge).sqrt());
    text(area, (x - 8, y - 4), HPos::Right, CEILING, &format!("{copies} {} GB/s", short(bandwidth)))?;
    let flat = at(plot.x.1);
    let library = most(|row| row.sgemm_gflop_s.unwrap_or(0.0));
    let mut name = format!("arithmetic {} GFLOP/s", short(arithmetic));
    if library > 0.0 {
        name += &format!(", gemm library {}", short(library));
        let dashes: Vec<f64> = (0..=40).map(|i| ridge * (plot.x.1 / ridge).powf(f64::from(i) / 40.0)).collect();
        for dash in dashes.chunks_exact(2) {
            line(area, dash.iter().map(|&x| plot.place(x, library)).collect(), CEILING, 1)?;
        }
    }
    text(area, (flat.0 - 6, flat.1 - LINE / 2 - 2), HPos::Right, CEILING, &name)?;

    let mut points: Vec<_> = rows.iter().map(|row| (plot.place(intensity(row), row.gflop_s), *row)).collect();
    points.sort_by_key(|((x, _), _)| *x);
    let right = points.split_off(points.len() / 2);
    for (mut points, left) in [(points, true), (right, false)] {
        points.sort_by_key(|((_, y), _)| *y);
        let mut heights: Vec<i32> = points.iter().map(|((_, y), _)| *y).collect();
        spread(&mut heights, plot.bottom() - LINE / 2);
        for (((x, y), row), height) in points.iter().zip(heights) {
            let ink = ops.iter().position(|op| *op == row.op).map_or(GREY, |n| INKS[n % INKS.len()]);
            let (edge, side, at) =
                if left { (plot.left - 4, HPos::Right, plot.left - 8) } else { (plot.right() + 4, HPos::Left, plot.right() + 8) };
            area.draw(&PathElement::new(vec![(edge, height), (*x, *y)], ink.mix(0.35).stroke_width(1)))?;
            area.draw(&Circle::new((*x, *y), 4, ink.filled()))?;
            text(area, (at, height), side, ink, &label(row, rows))?;
        }
    }
    Ok(())
}

/// The share, and the shortest name: sizes that all variants of this operation have in common are left out.
fn label(row: &Row, rows: &[&Row]) -> String {
    // A file may hold anything: not more words than a label could show.
    let words = |row: &Row| row.case.split(' ').take(16).map(|word| cut(word, LABEL)).collect::<Vec<_>>();
    let kind = |row: &Row| row.case.split(' ').next().map(str::to_owned);
    let like: Vec<&&Row> = rows.iter().filter(|other| other.op == row.op && kind(other) == kind(row)).collect();
    let common = |word: &str| {
        let size =
            word.starts_with('[') || word.ends_with([',', ']']) || word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('x');
        size && like.len() > 1 && like.iter().all(|other| words(other).iter().any(|w| w == word))
    };
    let name = words(row).into_iter().filter(|word| !common(word)).collect::<Vec<_>>().join(" ");
    cut(&format!("{:.0}% {} {name}", 100.0 * row.share_of_ceiling, row.op), LABEL)
}
