//! Pictures to learn from: a data SPEC opened as one array of bytes in memory.
//!
//! ```text
//! SPEC            what it reads
//! digits          1,797 real handwritten digits, 8x8, built into the program
//! idx:PATH        IDX images (MNIST and its kin), a file or its folder, .gz too
//! cifar10:DIR     CIFAR-10, binary version: the training batches, or one file
//! folder:DIR      PNG and JPEG files, recursively; subfolders are classes
//! npz:FILE        NumPy arrays `images` and, if there, `labels`
//! points:NAME     points in the plane, drawn by the program: images of 1x1, 2 channels
//! ```
//!
//! Pixels stay bytes until a batch is filled; [`Dataset::fill_batch`] maps byte
//! v of L levels to 2 v / (L - 1) - 1 in [-1, 1]; points are kept as they are.
//! [`Order`] says which image
//! stands at which position of a run, for any position, so that a resumed run
//! goes on exactly.
//!
//! The built-in digits are the test part of *Optical Recognition of Handwritten
//! Digits* by E. Alpaydin and C. Kaynak, UCI Machine Learning Repository,
//! <https://doi.org/10.24432/C50P49>, CC BY 4.0.

mod cifar;
mod digits;
mod folder;
mod idx;
mod npz;
mod order;
pub mod points;

use std::path::{Path, PathBuf};

use image::DynamicImage;
use image::imageops::FilterType;

use crate::{Error, Result};
pub use npz::read_matrix;
pub use order::Order;

/// The forms a data SPEC can take, for messages and help.
pub const SPECS: &str = "digits, idx:PATH, cifar10:DIR, folder:DIR, npz:FILE, points:NAME";

/// A parsed data SPEC; nothing has been opened yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spec {
    /// The digits inside the program.
    Digits,
    /// An IDX file of images, or the folder it lies in.
    Idx(PathBuf),
    /// Folder of CIFAR-10's binary version, or one of its files.
    Cifar10(PathBuf),
    /// Folder of PNG and JPEG files.
    Folder(PathBuf),
    /// A NumPy archive.
    Npz(PathBuf),
    /// Points in the plane.
    Points(points::Points),
}

impl Spec {
    /// Parses a SPEC.
    ///
    /// # Errors
    /// [`Error::Usage`], listing the forms, for anything that is none of them.
    pub fn parse(spec: &str) -> Result<Spec> {
        if spec == "digits" {
            return Ok(Spec::Digits);
        }
        let make = match spec.split_once(':') {
            Some(("idx", path)) => (Spec::Idx as fn(PathBuf) -> Spec, path),
            Some(("cifar10", path)) => (Spec::Cifar10 as _, path),
            Some(("folder", path)) => (Spec::Folder as _, path),
            Some(("npz", path)) => (Spec::Npz as _, path),
            Some(("points", text)) => return Ok(Spec::Points(points::Points::parse(text)?)),
            _ => {
                let hint = if Path::new(spec).is_dir() {
                    format!(" (did you mean `folder:{spec}`?)")
                } else {
                    String::new()
                };
                return Err(Error::Usage(format!(
                    "unknown data `{spec}`; use one of {SPECS}{hint}"
                )));
            }
        };
        match make {
            (_, "") => Err(Error::Usage(format!(
                "data `{spec}` names no file or folder after the colon; use one of {SPECS}"
            ))),
            (form, path) => Ok(form(PathBuf::from(path))),
        }
    }

    /// Short name: `digits`, `cifar10`, `points:NAME`, or the last part of the path.
    pub fn name(&self) -> String {
        match self {
            Spec::Digits => "digits".into(),
            Spec::Cifar10(_) => "cifar10".into(),
            Spec::Points(points) => format!("points:{}", points.shape.name()),
            Spec::Idx(path) | Spec::Folder(path) | Spec::Npz(path) => {
                let path = path.canonicalize().unwrap_or_else(|_| path.clone());
                path.file_stem().map_or("data".into(), |name| name.to_string_lossy().into_owned())
            }
        }
    }
}

/// How pictures are brought to one size and number of channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DataOptions {
    /// Scale to cover `[height, width]`, then crop the centre.
    pub size: Option<[usize; 2]>,
    /// 1 grey, 3 colour; by default as the files are.
    pub channels: Option<usize>,
    /// Use only the first images.
    pub limit: Option<usize>,
    /// Threads that decode a folder; by default the machine's.
    pub threads: Option<usize>,
}

/// What a reader found in its file, before options are applied.
#[derive(Default)]
struct Raw {
    /// `[n, h, w, c]`
    pixels: Vec<u8>,
    shape: [usize; 4],
    labels: Option<Vec<u32>>,
    /// Empty where classes are known by number only.
    classes: Vec<String>,
    levels: usize,
}

/// Images in memory, all of one shape, with or without classes.
#[derive(Clone)]
pub struct Dataset {
    /// The SPEC it was opened from.
    pub spec: String,
    /// Short name, see [`Spec::name`].
    pub name: String,
    /// `[n, h, w, c]`; empty where values are continuous.
    pixels: Vec<u8>,
    /// `[n, h, w, c]` in model range, for continuous values.
    floats: Vec<f32>,
    shape: [usize; 4],
    levels: usize,
    labels: Option<Vec<u32>>,
    classes: Vec<String>,
    /// Model value of each byte.
    values: [f32; 256],
}

impl std::fmt::Debug for Dataset {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Dataset")
            .field("spec", &self.spec)
            .field("shape", &self.shape)
            .field("classes", &self.classes)
            .finish_non_exhaustive()
    }
}

/// Numbers that describe a data set.
#[derive(Clone, Debug, PartialEq)]
pub struct Statistics {
    /// Mean of each channel in model range.
    pub mean: Vec<f64>,
    /// Standard deviation of each channel in model range.
    pub std: Vec<f64>,
    /// Images of each class; empty without labels.
    pub class_counts: Vec<usize>,
}

impl Dataset {
    /// Reads the images that `spec` names into memory.
    ///
    /// # Errors
    /// [`Error::Usage`] for a SPEC or option that makes no sense, otherwise an
    /// error that names the file and what to do about it.
    pub fn open(spec: &str, options: &DataOptions) -> Result<Dataset> {
        let parsed = Spec::parse(spec)?;
        for (key, ok) in [
            ("data.size", options.size.is_none_or(|[h, w]| h > 0 && w > 0 && h.max(w) <= 1 << 15)),
            ("data.channels", matches!(options.channels, None | Some(1 | 3))),
            ("data.limit", options.limit != Some(0)),
        ] {
            if !ok {
                let right = match key {
                    "data.size" => "height and width lie in 1 to 32768",
                    "data.channels" => "must be 1 (grey) or 3 (colour)",
                    _ => "must be at least 1",
                };
                return Err(Error::config(key, right));
            }
        }
        let raw = match &parsed {
            Spec::Digits => digits::read(),
            Spec::Idx(path) => idx::read(path)?,
            Spec::Cifar10(path) => cifar::read(path)?,
            Spec::Folder(path) => folder::read(path, options)?,
            Spec::Npz(path) => npz::read(path)?,
            Spec::Points(points) => return Dataset::of_points(spec, points, options),
        };
        let mut dataset = Dataset {
            spec: spec.to_string(),
            name: parsed.name(),
            pixels: raw.pixels,
            floats: Vec::new(),
            shape: raw.shape,
            levels: raw.levels,
            labels: raw.labels,
            classes: raw.classes,
            values: model_values(raw.levels),
        };
        dataset.name_classes();
        dataset.keep_first(options.limit.unwrap_or(usize::MAX));
        dataset.fit(options)?;
        Ok(dataset)
    }

    fn of_points(spec: &str, points: &points::Points, options: &DataOptions) -> Result<Dataset> {
        for (key, set) in
            [("data.size", options.size.is_some()), ("data.channels", options.channels.is_some())]
        {
            if set {
                return Err(Error::config(key, "points have no size or channels to choose"));
            }
        }
        let count = points.count.min(options.limit.unwrap_or(usize::MAX));
        Ok(Dataset {
            spec: spec.to_string(),
            name: Spec::Points(*points).name(),
            pixels: Vec::new(),
            floats: points::Points { count, ..*points }.coordinates(),
            shape: [count, 1, 1, 2],
            levels: 0,
            labels: None,
            classes: Vec::new(),
            values: [0.0; 256],
        })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.shape[0]
    }

    /// True if there is no image; [`Dataset::open`] never returns such a set.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Height of every image.
    pub fn height(&self) -> usize {
        self.shape[1]
    }

    /// Width of every image.
    pub fn width(&self) -> usize {
        self.shape[2]
    }

    /// Channels of every image.
    pub fn channels(&self) -> usize {
        self.shape[3]
    }

    /// `[n, h, w, c]`
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }

    /// Values of one image: h w c.
    pub fn image_len(&self) -> usize {
        self.shape[1] * self.shape[2] * self.shape[3]
    }

    /// Distinct values a byte can take, 0 to levels - 1: 256, digits 17; 0 for
    /// points, whose values are continuous.
    pub fn levels(&self) -> usize {
        self.levels
    }

    /// Class names; empty without labels.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Class of every image, if known.
    pub fn labels(&self) -> Option<&[u32]> {
        self.labels.as_deref()
    }

    /// Bytes of image `index`: `[h, w, c]`.
    ///
    /// # Panics
    /// If the values are continuous ([`Dataset::levels`] is 0).
    pub fn image(&self, index: usize) -> &[u8] {
        &self.pixels[index * self.image_len()..][..self.image_len()]
    }

    /// All images `[n, h, w, c]`: a byte a value, or the bytes of f32 where values are
    /// continuous.
    pub fn bytes(&self) -> &[u8] {
        match self.floats.is_empty() {
            true => &self.pixels,
            false => bytemuck::cast_slice(&self.floats),
        }
    }

    /// Model value, in [-1, 1], of a byte: 2 byte / (levels - 1) - 1.
    pub fn model_value(&self, byte: u8) -> f32 {
        self.values[byte as usize]
    }

    /// Copies images into `out: [indices.len(), h, w, c]` in model range,
    /// image i mirrored left to right where `flip[i]`; an empty `flip` mirrors
    /// none. Allocates nothing.
    ///
    /// # Panics
    /// If the lengths do not agree or an index is out of range.
    pub fn fill_batch(&self, indices: &[usize], flip: &[bool], out: &mut [f32]) {
        assert!(flip.is_empty() || flip.len() == indices.len(), "one flip per image");
        assert_eq!(out.len(), indices.len() * self.image_len(), "out is [n, h, w, c]");
        let [_, _, width, channels] = self.shape;
        if !self.floats.is_empty() {
            // One pixel: its mirror image is itself.
            let len = self.image_len();
            for (&index, out) in indices.iter().zip(out.chunks_exact_mut(len)) {
                out.copy_from_slice(&self.floats[index * len..][..len]);
            }
            return;
        }
        for (i, (&index, out)) in
            indices.iter().zip(out.chunks_exact_mut(self.image_len())).enumerate()
        {
            let image = self.image(index);
            if flip.get(i).copied().unwrap_or(false) {
                let row = width * channels;
                for (from, to) in image.chunks_exact(row).zip(out.chunks_exact_mut(row)) {
                    let mirrored = from.chunks_exact(channels).rev();
                    for (from, to) in mirrored.zip(to.chunks_exact_mut(channels)) {
                        for (&from, to) in from.iter().zip(to) {
                            *to = self.values[from as usize];
                        }
                    }
                }
            } else {
                for (&from, to) in image.iter().zip(out) {
                    *to = self.values[from as usize];
                }
            }
        }
    }

    /// The first images, at most `count`, in model range: `[n, h, w, c]`.
    pub fn first_values(&self, count: usize) -> Vec<f32> {
        let indices: Vec<usize> = (0..count.min(self.len())).collect();
        let mut out = vec![0f32; indices.len() * self.image_len()];
        self.fill_batch(&indices, &[], &mut out);
        out
    }

    /// Mean and standard deviation of each channel, images of each class.
    pub fn statistics(&self) -> Statistics {
        let channels = self.channels();
        if !self.floats.is_empty() {
            let column = |c: usize| self.floats.iter().skip(c).step_by(channels).map(|&v| v as f64);
            let average = |values: &mut dyn Iterator<Item = f64>| {
                values.sum::<f64>() / (self.floats.len() / channels) as f64
            };
            let mean: Vec<f64> = (0..channels).map(|c| average(&mut column(c))).collect();
            let std = (0..channels)
                .map(|c| average(&mut column(c).map(|v| (v - mean[c]).powi(2))).sqrt())
                .collect();
            return Statistics { mean, std, class_counts: Vec::new() };
        }
        let mut counts = vec![[0u64; 256]; channels];
        for pixel in self.pixels.chunks_exact(channels) {
            for (&byte, counts) in pixel.iter().zip(&mut counts) {
                counts[byte as usize] += 1;
            }
        }
        let average = |counts: &[u64; 256], of: &dyn Fn(f64) -> f64| {
            let sum: f64 =
                counts.iter().zip(&self.values).map(|(&k, &v)| k as f64 * of(v as f64)).sum();
            sum / (self.pixels.len() / channels) as f64
        };
        let mean: Vec<f64> = counts.iter().map(|counts| average(counts, &|v| v)).collect();
        let std = counts
            .iter()
            .zip(&mean)
            .map(|(counts, mean)| average(counts, &|v| (v - mean).powi(2)).sqrt())
            .collect();
        let mut class_counts = vec![0; self.classes.len()];
        for &label in self.labels.iter().flatten() {
            class_counts[label as usize] += 1;
        }
        Statistics { mean, std, class_counts }
    }

    /// Classes known by number only are named by it.
    fn name_classes(&mut self) {
        if let Some(labels) = &self.labels {
            let classes = labels.iter().max().map_or(0, |&last| last as usize + 1);
            for number in self.classes.len()..classes {
                self.classes.push(number.to_string());
            }
        }
    }

    fn keep_first(&mut self, limit: usize) {
        let n = self.len().min(limit);
        self.pixels.truncate(n * self.image_len());
        self.shape[0] = n;
        if let Some(labels) = &mut self.labels {
            labels.truncate(n);
        }
    }

    /// Applies size and channels to images that do not have them yet.
    fn fit(&mut self, options: &DataOptions) -> Result<()> {
        let [n, height, width, channels] = self.shape;
        let [new_height, new_width] = options.size.unwrap_or([height, width]);
        let new_channels = options.channels.unwrap_or(channels);
        let new = [n, new_height, new_width, new_channels];
        if new == self.shape {
            return Ok(());
        }
        if !matches!(channels, 1 | 3) {
            return Err(Error::Data {
                spec: self.spec.clone(),
                problem: format!(
                    "only images of 1 or 3 channels can be resized or converted, these have \
                     {channels}; leave `data.size` and `data.channels` unset"
                ),
            });
        }
        let scale = (self.levels - 1) as f64 / 255.0;
        let mut bytes: [u8; 256] = std::array::from_fn(|v| v as u8);
        if self.levels != 256 {
            bytes = std::array::from_fn(|v| (v as f64 / scale).round().min(255.0) as u8);
        }
        let mut pixels = zeroed(new, &self.spec)?;
        for (index, out) in pixels.chunks_exact_mut(new[1..].iter().product()).enumerate() {
            let image = self.image(index).iter().map(|&v| bytes[v as usize]).collect();
            let (w, h) = (width as u32, height as u32);
            let image = match channels {
                1 => image::GrayImage::from_raw(w, h, image).map(DynamicImage::from),
                _ => image::RgbImage::from_raw(w, h, image).map(DynamicImage::from),
            };
            let image = image.expect("the image has h w c bytes");
            write_fitted(image, [new_height, new_width], new_channels, out);
        }
        self.pixels = pixels;
        self.shape = new;
        self.levels = 256;
        self.values = model_values(256);
        Ok(())
    }
}

/// 2 v / (levels - 1) - 1 for each byte v; bytes past the last level hold its value.
fn model_values(levels: usize) -> [f32; 256] {
    std::array::from_fn(|v| {
        let v = v.min(levels - 1);
        (2.0 * v as f64 / (levels - 1) as f64 - 1.0) as f32
    })
}

/// Scales `image` to cover `size`, crops the centre, converts to `channels` (1
/// or 3) and writes `out: [h, w, c]`. Triangle filter: an average over the area
/// when shrinking, bilinear when growing.
fn write_fitted(
    mut image: DynamicImage,
    [height, width]: [usize; 2],
    channels: usize,
    out: &mut [u8],
) {
    let (width, height) = (width as u32, height as u32);
    if (image.width(), image.height()) != (width, height) {
        image = image.resize_to_fill(width, height, FilterType::Triangle);
    }
    match channels {
        1 => out.copy_from_slice(&image.into_luma8()),
        _ => out.copy_from_slice(&image.into_rgb8()),
    }
}

/// Zeroed bytes for images of `shape`, refused with the number where memory
/// does not hold them.
fn zeroed(shape: [usize; 4], spec: &str) -> Result<Vec<u8>> {
    let bytes = shape.iter().try_fold(1usize, |product, &len| product.checked_mul(len));
    match bytes {
        // Asked for first, since an allocation that fails ends the program.
        Some(bytes) if Vec::<u8>::new().try_reserve_exact(bytes).is_ok() => Ok(vec![0; bytes]),
        _ => {
            let [n, h, w, c] = shape;
            Err(Error::Data {
                spec: spec.to_string(),
                problem: format!(
                    "{n} images of {h}x{w}x{c} do not fit in memory; set a smaller \
                     `data.size` or a `data.limit`"
                ),
            })
        }
    }
}
