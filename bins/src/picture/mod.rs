//! Pictures: waveforms, spectrograms and curves as PNG, and a canvas that `plotters` can draw on.

mod axis;
mod backend;
mod canvas;
mod curves;
mod sound;

use std::path::Path;

pub use backend::Pixels;
pub use canvas::Canvas;
pub use curves::{Panel, curves};
pub use sound::{Sound, sounds};

use crate::failure::{Failure, Result};

/// Refuses names that promise another format, before any work is done.
pub fn check_name(path: &Path) -> Result {
    match path.extension().and_then(|e| e.to_str()) {
        Some(e) if !e.eq_ignore_ascii_case("png") => Err(Failure::usage(format!("--plot: writes PNG, found .{e} ({})", path.display()))),
        _ => Ok(()),
    }
}

pub fn save(canvas: &Canvas, path: &Path) -> Result {
    let bytes = canvas.png().map_err(|e| Failure::file("cannot write picture", e, path))?;
    Ok(swara_loader::output::write(path, &bytes)?)
}
