//! Pictures: waveforms, spectrograms and curves as PNG, and a canvas that `plotters` can draw on.

mod axis;
mod backend;
mod canvas;
mod chart;
mod curves;
mod sound;

use std::path::Path;

pub use backend::Pixels;
pub use canvas::Canvas;
pub use chart::{chart, ink};
pub use curves::{Panel, curves};
pub use sound::{Sound, sounds, sounds_png};

use crate::failure::{Failure, Result};

/// Refuses names that promise another format, before any work is done.
pub fn check_name(path: &Path) -> Result {
    match path.extension().and_then(|e| e.to_str()) {
        Some(e) if !e.eq_ignore_ascii_case("png") => Err(Failure::usage(format!("--plot: writes PNG, found .{e} ({})", path.display()))),
        _ => Ok(()),
    }
}

pub fn save(canvas: &Canvas, path: &Path) -> Result {
    Ok(swara_loader::output::write(path, &png(canvas)?)?)
}

fn png(canvas: &Canvas) -> Result<Vec<u8>> {
    canvas.png().map_err(|e| Failure::work(format!("cannot draw: {e}")))
}
