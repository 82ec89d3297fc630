//! Pictures: waveforms, spectrograms and curves as PNG.

mod axis;
mod canvas;
mod curves;
mod sound;

use std::path::Path;

pub use curves::{Panel, curves};
pub use sound::{Sound, sounds};

use crate::failure::{Failure, Result};
use canvas::Canvas;

/// Refuses names that promise another format, before any work is done.
pub fn check_name(path: &Path) -> Result {
    match path.extension().and_then(|e| e.to_str()) {
        Some(e) if !e.eq_ignore_ascii_case("png") => Err(Failure::usage(format!("--plot: writes PNG, found .{e} ({})", path.display()))),
        _ => Ok(()),
    }
}

fn save(canvas: &Canvas, path: &Path) -> Result {
    let bytes = canvas.png().map_err(|e| Failure::file("cannot write picture", e, path))?;
    Ok(swara_loader::output::write(path, &bytes)?)
}
