use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

pub type Colour = [u8; 3];

pub const BLACK: Colour = [0x1a, 0x1a, 0x1a];
pub const GREY: Colour = [0xc8, 0xc8, 0xc8];
pub const WHITE: Colour = [0xff, 0xff, 0xff];

/// Height of a line of text in pixels.
pub const LINE: usize = 16;

/// A rectangle in pixels.
#[derive(Clone, Copy, Debug)]
pub struct Rect {
    pub x: usize,
    pub y: usize,
    pub width: usize,
    pub height: usize,
}

/// An RGB image to draw on. Whatever falls outside is not drawn.
pub struct Canvas {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Canvas {
    pub fn new(width: usize, height: usize) -> Canvas {
        Canvas { width, height, rgb: vec![0xff; width * height * 3] }
    }

    pub fn set(&mut self, x: usize, y: usize, colour: Colour) {
        if x < self.width && y < self.height {
            let at = 3 * (y * self.width + x);
            self.rgb[at..at + 3].copy_from_slice(&colour);
        }
    }

    pub fn size(&self) -> (usize, usize) {
        (self.width, self.height)
    }

    pub fn blend(&mut self, x: usize, y: usize, colour: Colour, opacity: u8) {
        if x < self.width && y < self.height {
            let at = 3 * (y * self.width + x);
            for (below, above) in self.rgb[at..at + 3].iter_mut().zip(colour) {
                let mixed = u32::from(*below) * (255 - u32::from(opacity)) + u32::from(above) * u32::from(opacity);
                *below = (mixed / 255) as u8;
            }
        }
    }

    pub fn vertical(&mut self, x: usize, y0: usize, y1: usize, colour: Colour) {
        (y0.min(y1)..=y0.max(y1)).for_each(|y| self.set(x, y, colour));
    }

    pub fn horizontal(&mut self, x0: usize, x1: usize, y: usize, colour: Colour) {
        (x0.min(x1)..=x0.max(x1)).for_each(|x| self.set(x, y, colour));
    }

    pub fn frame(&mut self, r: Rect, colour: Colour) {
        self.horizontal(r.x, r.x + r.width, r.y, colour);
        self.horizontal(r.x, r.x + r.width, r.y + r.height, colour);
        self.vertical(r.x, r.y, r.y + r.height, colour);
        self.vertical(r.x + r.width, r.y, r.y + r.height, colour);
    }

    /// A line of one pixel.
    pub fn line(&mut self, from: (f64, f64), to: (f64, f64), colour: Colour) {
        let steps = (to.0 - from.0).abs().max((to.1 - from.1).abs()).ceil().clamp(1.0, 1e5);
        for i in 0..=steps as usize {
            let t = i as f64 / steps;
            let (x, y) = (from.0 + t * (to.0 - from.0), from.1 + t * (to.1 - from.1));
            if x >= 0.0 && y >= 0.0 {
                self.set(x.round() as usize, y.round() as usize, colour);
            }
        }
    }

    /// Text whose upper left corner is at (x, y). Characters that the font lacks become `?`.
    pub fn text(&mut self, x: usize, y: usize, text: &str, colour: Colour) {
        for (i, c) in text.chars().enumerate() {
            let glyph = |c| get_raster(c, FontWeight::Regular, RasterHeight::Size16);
            let Some(glyph) = glyph(c).or_else(|| glyph('?')) else { continue };
            for (dy, row) in glyph.raster().iter().enumerate() {
                for (dx, &opacity) in row.iter().enumerate() {
                    self.blend(x + i * text_width("x") + dx, y + dy, colour, opacity);
                }
            }
        }
    }

    pub fn png(&self) -> Result<Vec<u8>, png::EncodingError> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, self.width as u32, self.height as u32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.write_header()?.write_image_data(&self.rgb)?;
        Ok(bytes)
    }
}

/// Width of `text` in pixels.
pub fn text_width(text: &str) -> usize {
    text.chars().count() * get_raster_width(FontWeight::Regular, RasterHeight::Size16)
}
