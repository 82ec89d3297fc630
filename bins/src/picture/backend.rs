use std::convert::Infallible;

use plotters_backend::text_anchor::{HPos, VPos};
use plotters_backend::{BackendColor, BackendCoord, BackendTextStyle, DrawingBackend, DrawingErrorKind};

use super::canvas::{Canvas, LINE, text_width};

type Result<T = ()> = std::result::Result<T, DrawingErrorKind<Infallible>>;

/// A canvas as `plotters` sees it. Text is always in the canvas's own face, horizontal, whatever style is asked for.
pub struct Pixels<'a>(pub &'a mut Canvas);

impl DrawingBackend for Pixels<'_> {
    type ErrorType = Infallible;

    fn get_size(&self) -> (u32, u32) {
        let (width, height) = self.0.size();
        (width as u32, height as u32)
    }

    fn ensure_prepared(&mut self) -> Result {
        Ok(())
    }

    fn present(&mut self) -> Result {
        Ok(())
    }

    fn draw_pixel(&mut self, (x, y): BackendCoord, colour: BackendColor) -> Result {
        if let (Ok(x), Ok(y)) = (usize::try_from(x), usize::try_from(y)) {
            let (r, g, b) = colour.rgb;
            self.0.blend(x, y, [r, g, b], (255.0 * colour.alpha.clamp(0.0, 1.0)).round() as u8);
        }
        Ok(())
    }

    fn draw_text<S: BackendTextStyle>(&mut self, text: &str, style: &S, (x, y): BackendCoord) -> Result {
        let (width, height) = (text_width(text) as i32, LINE as i32);
        let left = match style.anchor().h_pos {
            HPos::Left => x,
            HPos::Center => x - width / 2,
            HPos::Right => x - width,
        };
        let top = match style.anchor().v_pos {
            VPos::Top => y,
            VPos::Center => y - height / 2,
            VPos::Bottom => y - height,
        };
        let (r, g, b) = style.color().rgb;
        self.0.text(left.max(0) as usize, top.max(0) as usize, text, [r, g, b]);
        Ok(())
    }

    fn estimate_text_size<S: BackendTextStyle>(&self, text: &str, _style: &S) -> Result<(u32, u32)> {
        Ok((text_width(text) as u32, LINE as u32))
    }
}
