//! Pictures of samples and of a run's course, as PNG bytes for the caller to
//! write in whole.

mod curve;
mod plane;

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};

pub use curve::loss_curve;
pub use plane::{Field, field_png, scatter_png, trajectory_png};

/// Least height and width, in pixels, at which a grid shows an image.
const SEEN: usize = 48;
/// A grid is not enlarged past this width or height.
const LARGEST: usize = 4096;
/// Pixels between images of a grid, and around them.
const GUTTER: usize = 2;
/// Grey of the gutters: neither the black of digits nor the white of paper.
const GUTTER_GREY: u8 = 72;

/// Byte of a model value: [-1, 1] to 0..=255, clamped, rounded to nearest with
/// ties to even, as diffusers and NumPy do.
pub fn to_byte(value: f32) -> u8 {
    ((value / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8
}

/// One image as PNG, pixel for pixel. `image: [h, w, c]` in [-1, 1].
///
/// One channel is grey, three are RGB; of any other number (latents) the
/// channels stand side by side in grey.
///
/// # Panics
/// If the length is not h w c or that is zero.
pub fn image_png(image: &[f32], [height, width, channels]: [usize; 3]) -> Vec<u8> {
    let panels = Panels::of([height, width, channels]);
    assert_eq!(image.len(), height * width * channels, "image is [h, w, c]");
    let mut canvas = Canvas::new(height, panels.width, panels.colours, GUTTER_GREY);
    panels.draw(image, &mut canvas, [0, 0], 1);
    canvas.png()
}

/// The samples of a run as one PNG: a scatter plot over `reference` where they
/// are points in the plane (shape `[n, 1, 1, 2]`), else a grid.
///
/// # Panics
/// As [`grid_png`].
pub fn samples_png(images: &[f32], shape: [usize; 4], reference: Option<&[f32]>) -> Vec<u8> {
    match is_plane(&shape[1..]) {
        true => scatter_png(images, reference),
        false => grid_png(images, shape, None),
    }
}

/// Whether images of this shape `[h, w, c]` are points in the plane.
pub fn is_plane(image: &[usize]) -> bool {
    image == [1, 1, 2]
}

/// Images in rows and columns as one PNG. `images: [n, h, w, c]` in [-1, 1];
/// `columns` defaults to the least that make the grid no taller than wide.
///
/// Small images are enlarged by a whole factor, pixel by pixel, so that they
/// can be seen; channels are drawn as in [`image_png`].
///
/// # Panics
/// If the length is not n h w c or that is zero.
pub fn grid_png(images: &[f32], shape: [usize; 4], columns: Option<usize>) -> Vec<u8> {
    let [n, height, width, channels] = shape;
    assert!(n > 0 && images.len() == n * height * width * channels, "images are [n, h, w, c]");
    let panels = Panels::of([height, width, channels]);
    let columns = columns.unwrap_or(n.isqrt() + usize::from(n.isqrt().pow(2) < n)).clamp(1, n);
    let rows = n.div_ceil(columns);
    let extent = |count: usize, len: usize| GUTTER + count * (len + GUTTER);
    let mut factor = SEEN.div_ceil(height.min(width));
    while factor > 1
        && extent(rows, height * factor).max(extent(columns, panels.width * factor)) > LARGEST
    {
        factor -= 1;
    }
    let (tile_height, tile_width) = (height * factor, panels.width * factor);
    let mut canvas = Canvas::new(
        extent(rows, tile_height),
        extent(columns, tile_width),
        panels.colours,
        GUTTER_GREY,
    );
    for (i, image) in images.chunks_exact(height * width * channels).enumerate() {
        let corner = [extent(i / columns, tile_height), extent(i % columns, tile_width)];
        panels.draw(image, &mut canvas, corner, factor);
    }
    canvas.png()
}

/// How the channels of an image become colours: one panel, or one a channel
/// with a line between.
struct Panels {
    shape: [usize; 3],
    /// Channels of the picture: 1 or 3.
    colours: usize,
    /// Width of all panels together.
    width: usize,
}

impl Panels {
    fn of(shape: [usize; 3]) -> Panels {
        let [height, width, channels] = shape;
        assert!(height * width * channels > 0, "an image has a pixel");
        match channels {
            1 | 3 => Panels { shape, colours: channels, width },
            _ => Panels { shape, colours: 1, width: channels * (width + 1) - 1 },
        }
    }

    /// Draws `image` at `corner`, each pixel as `factor` x `factor`.
    fn draw(&self, image: &[f32], canvas: &mut Canvas, corner: [usize; 2], factor: usize) {
        let [height, width, channels] = self.shape;
        for y in 0..height {
            for x in 0..width {
                let pixel = &image[(y * width + x) * channels..][..channels];
                for (panel, colour) in pixel.chunks(self.colours).enumerate() {
                    let at =
                        [corner[0] + y * factor, corner[1] + (panel * (width + 1) + x) * factor];
                    canvas.fill(at, factor, colour);
                }
            }
        }
    }
}

/// Bytes of a picture `[height, width, channels]`.
struct Canvas {
    bytes: Vec<u8>,
    height: usize,
    width: usize,
    channels: usize,
}

impl Canvas {
    fn new(height: usize, width: usize, channels: usize, grey: u8) -> Canvas {
        Canvas { bytes: vec![grey; height * width * channels], height, width, channels }
    }

    /// A square of one colour, given in model range.
    fn fill(&mut self, [y, x]: [usize; 2], side: usize, colour: &[f32]) {
        for row in y..y + side {
            let start = (row * self.width + x) * self.channels;
            for pixel in self.bytes[start..][..side * self.channels].chunks_exact_mut(self.channels)
            {
                for (byte, &value) in pixel.iter_mut().zip(colour) {
                    *byte = to_byte(value);
                }
            }
        }
    }

    fn png(&self) -> Vec<u8> {
        encode(&self.bytes, self.height, self.width, self.channels)
    }
}

/// PNG of `bytes: [height, width, channels]`, 1 or 3 channels.
fn encode(bytes: &[u8], height: usize, width: usize, channels: usize) -> Vec<u8> {
    let colour = if channels == 1 { ExtendedColorType::L8 } else { ExtendedColorType::Rgb8 };
    let mut png = Vec::new();
    PngEncoder::new_with_quality(&mut png, CompressionType::Default, FilterType::Adaptive)
        .write_image(bytes, width as u32, height as u32, colour)
        .expect("a picture of matching size encodes into memory");
    png
}
