//! How long a frame takes: how often, and with how many streams at once.

use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::{Area, BLACK, CEILING, CHARACTER, GREY, INKS, LINE, Outcome, Plot, cut, line, short, spread, text};
use crate::codec::Row;

const LABEL: i32 = 26 * CHARACTER;
const WIDTH: i32 = 330;
const HEIGHT: i32 = 320;
const HEAD: i32 = 3 * LINE + LINE / 2;
const FOOT: i32 = 3 * LINE;

/// The rows of each model in each type, by their number of streams.
fn groups(rows: &[Row]) -> Vec<Vec<&Row>> {
    let mut groups: Vec<Vec<&Row>> = Vec::new();
    for row in rows.iter().filter(|row| !row.distribution_ms.is_empty()) {
        match groups.iter_mut().find(|group| group[0].model == row.model && group[0].dtype == row.dtype) {
            Some(group) => group.push(row),
            None => groups.push(vec![row]),
        }
    }
    groups.iter_mut().for_each(|group| group.sort_by_key(|row| row.batch));
    groups
}

/// Width and height in pixels.
pub fn latency_size(rows: &[Row]) -> (u32, u32) {
    let high = groups(rows).len() as i32 * (HEAD + HEIGHT + FOOT);
    ((2 * (WIDTH + LABEL) + 2 * LINE) as u32, high.max(HEAD) as u32)
}

/// Beside each other: the time that each share of the frames stays within, and median, 99th percentile and longest against the
/// number of streams. A frame is encoded and decoded.
pub fn latency<B: DrawingBackend>(area: &Area<B>, rows: &[Row]) -> Outcome<B> {
    area.fill(&WHITE)?;
    for (n, group) in groups(rows).into_iter().enumerate() {
        let top = n as i32 * (HEAD + HEIGHT + FOOT);
        let first = group[0];
        let title = format!(
            "{} on {}, {}: encode and decode of a frame of {} ms",
            cut(&first.model, 40),
            cut(&first.device, 40),
            first.dtype,
            short(first.frame_ms)
        );
        text(area, (8, top + LINE), HPos::Left, BLACK, &title)?;
        let times = || group.iter().flat_map(|row| row.distribution_ms.iter().map(|(_, ms)| *ms)).chain([first.frame_ms]);
        let y = (times().fold(f64::INFINITY, f64::min) / 1.5, times().fold(0.0, f64::max) * 1.5);
        distribution(area, top + HEAD, &group, y)?;
        scaling(area, top + HEAD, &group, y)?;
    }
    Ok(())
}

fn deadline<B: DrawingBackend>(area: &Area<B>, plot: &Plot, row: &Row) -> Outcome<B> {
    let (_, y) = plot.place(plot.x.0, row.frame_ms);
    line(area, vec![(plot.left, y), (plot.right(), y)], CEILING, 2)?;
    text(area, (plot.left + 4, y - LINE / 2 - 1), HPos::Left, CEILING, &format!("a frame lasts {} ms", short(row.frame_ms)))
}

fn name<B: DrawingBackend>(area: &Area<B>, plot: &Plot, mut ends: Vec<(i32, RGBColor, String)>) -> Outcome<B> {
    ends.sort_by_key(|(y, ..)| *y);
    let mut heights: Vec<i32> = ends.iter().map(|(y, ..)| *y).collect();
    spread(&mut heights, plot.bottom());
    for ((y, ink, label), height) in ends.iter().zip(heights) {
        line(area, vec![(plot.right(), *y), (plot.right() + 8, height)], *ink, 1)?;
        text(area, (plot.right() + 11, height), HPos::Left, *ink, label)?;
    }
    Ok(())
}

fn distribution<B: DrawingBackend>(area: &Area<B>, top: i32, rows: &[&Row], y: (f64, f64)) -> Outcome<B> {
    text(area, (8, top - LINE / 2), HPos::Left, BLACK, "Time that a share of the frames stays within")?;
    // One in so many frames is longer.
    let rarity = |share: f64, frames: usize| (1.0 / (1.0 - share).max(1e-9)).min(frames as f64);
    let most = rows.iter().map(|row| row.frames as f64).fold(10.0, f64::max);
    let plot = Plot { left: 8, top, width: WIDTH, height: HEIGHT, x: (1.0, most), y };
    let shares = [(2.0, "50%"), (10.0, "90%"), (100.0, "99%"), (1e3, "99.9%"), (1e4, "99.99%"), (1e5, "99.999%")];
    let ticks: Vec<_> = shares.iter().filter(|(x, _)| *x <= most).map(|(x, label)| (*x, (*label).to_owned())).collect();
    plot.grid(area, ("of the frames", "ms"), &ticks)?;
    deadline(area, &plot, rows[0])?;
    let mut ends = Vec::new();
    for (n, row) in rows.iter().enumerate() {
        let ink = INKS[n % INKS.len()];
        let points: Vec<_> = row.distribution_ms.iter().map(|(share, ms)| plot.place(rarity(*share, row.frames), *ms)).collect();
        if let Some(((_, longest), (_, y))) = row.distribution_ms.last().zip(points.last()) {
            ends.push((
                *y,
                ink,
                format!("{} {}, at most {}", row.batch, if row.batch == 1 { "stream" } else { "streams" }, short(*longest)),
            ));
        }
        line(area, points, ink, 2)?;
    }
    name(area, &plot, ends)
}

fn scaling<B: DrawingBackend>(area: &Area<B>, top: i32, rows: &[&Row], y: (f64, f64)) -> Outcome<B> {
    let left = WIDTH + LABEL + LINE;
    text(area, (left, top - LINE / 2), HPos::Left, BLACK, "Time of a frame of so many streams at once")?;
    let (least, most) = (rows[0].batch as f64, rows[rows.len() - 1].batch as f64);
    let plot = Plot { left, top, width: WIDTH, height: HEIGHT, x: (least / 1.3, most * 1.3), y };
    // Of many, those that are powers of two, and far enough from each other.
    let mut ticks: Vec<(f64, String)> = Vec::new();
    for batch in rows.iter().map(|row| row.batch) {
        let apart = |(x, _): &(f64, String)| plot.place(batch as f64, y.0).0 - plot.place(*x, y.0).0;
        if ticks.last().is_none_or(|last| apart(last) > 4 * CHARACTER) {
            ticks.push((batch as f64, batch.to_string()));
        }
    }
    plot.grid(area, ("streams", "ms"), &ticks)?;
    deadline(area, &plot, rows[0])?;
    let shares = [(1.0, "longest", GREY), (0.99, "99 of 100 within", INKS[2]), (0.5, "half within", INKS[0])];
    let mut ends = Vec::new();
    for (share, label, ink) in shares {
        let of = |row: &Row| row.distribution_ms.iter().find(|(s, _)| *s >= share - 1e-9).map(|(_, ms)| *ms);
        let points: Vec<_> = rows.iter().filter_map(|row| Some(plot.place(row.batch as f64, of(row)?))).collect();
        if let (Some(&(_, y)), Some(ms)) = (points.last(), of(rows[rows.len() - 1])) {
            ends.push((y, ink, format!("{label} {} ms", short(ms))));
        }
        for &point in &points {
            area.draw(&Circle::new(point, 3, ink.filled()))?;
        }
        line(area, points, ink, 2)?;
    }
    name(area, &plot, ends)
}
