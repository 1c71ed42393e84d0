//! Counter-based randomness: Philox4x32-10 keyed by (seed; purpose, image
//! index, draw, element), so that a number depends on what it is for and never
//! on how work was batched or scheduled. The same on every backend, bit for bit.
//!
//! # Layout
//! Four consecutive elements share one Philox block; element `e` is word
//! `e % 4` of
//! ```text
//! key     = [seed low, seed high]
//! counter = [e / 4, draw, image low, purpose << 24 | image high (24 bits)]
//! ```
//! Elements of an image are counted in NHWC order; an image index has 56 bits,
//! and [`check_images`] refuses larger ones where they enter.
//!
//! # What is made of the words
//! - [`words`]: the words themselves.
//! - [`fill_uniform`]: `((w >> 9) + 1/2) 2^-23`, in (0, 1), exact.
//! - [`fill_uniform_f64`]: from words 2e (low) and 2e + 1 (high),
//!   `((w >> 12) + 1/2) 2^-52`, in (0, 1), exact.
//! - [`fill_normal`]: elements 2p and 2p + 1 are the pair that
//!   [`normal`] makes of words 2p and 2p + 1.
//! - [`HostRng`]: rand's traits, for shuffles, splits and times.

mod host;
mod lanes;
pub mod normal;
pub(crate) mod philox;

pub use host::HostRng;
pub(crate) use philox::Stream;
pub use philox::philox4x32;

use crate::backend::cpu::isa::Isa;
use crate::error::{Error, Result};

/// What a random number is for. Part of the counter: different purposes never
/// share a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Purpose {
    /// Initial weights; image index is the weight's index.
    Init = 0,
    /// x_T of a sampled image.
    SampleStart = 1,
    /// Noise of a sampler's update; draw counts them.
    SampleStep = 2,
    /// eps of a training example.
    TrainNoise = 3,
    /// Time of a training example.
    TrainTime = 4,
    /// Dropout masks; draw is the layer.
    Dropout = 5,
    /// Horizontal flips and other augmentation.
    Augment = 6,
    /// Order of the data in an epoch.
    Shuffle = 7,
    /// Dropping the class for guidance.
    ClassDrop = 8,
    /// Uniform dequantisation.
    Dequantise = 9,
    /// Probe vectors of trace estimators.
    Probe = 10,
    /// Data that the program makes itself; image index is the point's.
    Data = 11,
    /// Noise on the known part of an image that is edited.
    Known = 12,
}

/// Number of image indices: they have 56 bits.
pub const IMAGES: u64 = 1 << 56;

/// Refuses images `first .. first + count` that have no counter, for indices
/// that a user gives.
pub fn check_images(first: u64, count: u64) -> Result<()> {
    if first.checked_add(count).is_some_and(|end| end <= IMAGES) {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "{count} images from index {first}: random numbers are defined for indices below 2^56"
    )))
}

/// The four u32 that a plan's `keys [n, 4]` tensor holds for one image: the
/// seed (low, high) and the image index (low, high), below [`IMAGES`].
pub fn image_keys(seed: u64, image: u64) -> [u32; 4] {
    assert!(image < IMAGES, "image index {image} has no counter");
    [seed as u32, (seed >> 32) as u32, image as u32, (image >> 32) as u32]
}

/// Philox words of elements `first ..` of (keys, purpose, draw).
pub fn words(keys: [u32; 4], purpose: Purpose, draw: u32, first: u64, out: &mut [u32]) {
    fill_words(Stream::new(keys, purpose, draw), first, out);
}

fn fill_words(stream: Stream, first: u64, out: &mut [u32]) {
    let isa = Isa::detect();
    philox::from_edge(first, out, |index, out| philox::fill(isa, stream, index, out));
}

/// Uniforms in (0, 1), 23 bits, of elements `first ..`.
pub fn fill_uniform(keys: [u32; 4], purpose: Purpose, draw: u32, first: u64, out: &mut [f32]) {
    const CHUNK: usize = 512;
    let stream = Stream::new(keys, purpose, draw);
    let mut w = [0; CHUNK];
    for (i, out) in out.chunks_mut(CHUNK).enumerate() {
        let w = &mut w[..out.len()];
        fill_words(stream, first + (i * CHUNK) as u64, w);
        for (u, &w) in out.iter_mut().zip(&*w) {
            *u = ((w >> 9) as f32 + 0.5) * (1.0 / (1 << 23) as f32);
        }
    }
}

/// Uniforms in (0, 1), 52 bits, of elements `first ..`; each takes two words.
pub fn fill_uniform_f64(keys: [u32; 4], purpose: Purpose, draw: u32, first: u64, out: &mut [f64]) {
    const CHUNK: usize = 256;
    let stream = Stream::new(keys, purpose, draw);
    let mut w = [0; 2 * CHUNK];
    for (i, out) in out.chunks_mut(CHUNK).enumerate() {
        let w = &mut w[..2 * out.len()];
        fill_words(stream, 2 * (first + (i * CHUNK) as u64), w);
        for (u, w) in out.iter_mut().zip(w.chunks_exact(2)) {
            *u = uniform_f64(w[0], w[1]);
        }
    }
}

/// One uniform in (0, 1), 52 bits: element 0 of [`fill_uniform_f64`].
pub fn uniform(keys: [u32; 4], purpose: Purpose, draw: u32) -> f64 {
    let [low, high, ..] = Stream::new(keys, purpose, draw).block(0);
    uniform_f64(low, high)
}

/// `((low + 2^32 high >> 12) + 1/2) 2^-52`.
fn uniform_f64(low: u32, high: u32) -> f64 {
    let w = low as u64 | (high as u64) << 32;
    ((w >> 12) as f64 + 0.5) * (1.0 / (1u64 << 52) as f64)
}

/// Standard normals of elements `first ..`; see [`normal`].
pub fn fill_normal(keys: [u32; 4], purpose: Purpose, draw: u32, first: u64, out: &mut [f32]) {
    fill_normal_on(Isa::detect(), keys, purpose, draw, first, out);
}

/// As [`fill_normal`] with the given instructions, which change the time and
/// never the bits.
pub fn fill_normal_on(
    isa: Isa,
    keys: [u32; 4],
    purpose: Purpose,
    draw: u32,
    first: u64,
    out: &mut [f32],
) {
    normal::fill(isa, Stream::new(keys, purpose, draw), first, out);
}
