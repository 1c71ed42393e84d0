//! Counter-based randomness: Philox4x32-10 keyed by (seed; purpose, image
//! index, draw, element), so that a number depends on what it is for and never
//! on how work was batched or scheduled.

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
}

/// The four u32 that a plan's `keys [n, 4]` tensor holds for one image: the
/// seed (low, high) and the image index (low, high).
pub fn image_keys(seed: u64, image: u64) -> [u32; 4] {
    [seed as u32, (seed >> 32) as u32, image as u32, (image >> 32) as u32]
}
