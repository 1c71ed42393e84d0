//! The forward process in one pass: `x_t = signal x_0 + std eps`, with eps drawn
//! in place from Philox and never stored (the loss draws the same bits again). x_0 is
//! given, or picked by number from a set of images, u8 or f32, and mirrored.
//! Ho et al. 2020, eq. 4; Song et al. 2021, eq. 29.

use super::Op;
use crate::error::{Error, Result};
use crate::plan::{DType, Mode, Plan, TensorId, Write};

/// Columns of the per-image coefficient tensor `[n, COLUMNS]` that noising and
/// loss read.
pub mod coefficient {
    /// Factor of x_0 in the network's input (c_in included).
    pub const SIGNAL: usize = 0;
    /// Factor of eps in the network's input (c_in included).
    pub const STD: usize = 1;
    /// Factor of x_0 in the target.
    pub const TARGET_X0: usize = 2;
    /// Factor of eps in the target.
    pub const TARGET_NOISE: usize = 3;
    /// Weight of the image's loss; 0 for padding of the last batch.
    pub const WEIGHT: usize = 4;
    /// Columns of the tensor.
    pub const COLUMNS: usize = 8;
}

/// How the images of a batch are picked from a set `[rows, h, w, c]`: by a tensor
/// `[n, 2]` u32 of [`pick`] columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pick {
    /// Images of the set; a number past the last means the last.
    pub rows: usize,
    /// Pixels of a row of an image.
    pub width: usize,
    /// Values of a pixel.
    pub channels: usize,
    /// Values that a byte can take, 0 to levels - 1 (larger ones count as that),
    /// spread evenly over [-1, 1]; 0 where the set is f32 in model range.
    pub levels: usize,
}

/// Columns of the tensor that picks.
pub mod pick {
    /// Which image of the set.
    pub const ROW: usize = 0;
    /// 1 where its rows are mirrored left to right.
    pub const MIRRORED: usize = 1;
    /// Columns of the tensor.
    pub const COLUMNS: usize = 2;
}

impl Pick {
    /// Model value of a byte, the quotient of two integers rounded once.
    pub fn value(&self, byte: u8) -> f32 {
        let most = self.levels.max(2) as i32 - 1;
        (2 * i32::from(byte).min(most) - most) as f32 / most as f32
    }
}

/// Clean images that an op picks for itself.
#[derive(Clone, Copy, Debug)]
pub struct Picked {
    /// The set, u8 or f32 `[rows, h, w, c]`.
    pub set: TensorId,
    /// `[n, 2]` u32.
    pub picks: TensorId,
    /// Levels of the bytes; 0 for f32.
    pub levels: usize,
}

/// Descriptor. Inputs x_0 `[n, ...]`, or with `pick` the set, coefficients
/// `[n, COLUMNS]`, keys `[n, 4]`, with `pick` the picks `[n, 2]`; outputs x_t, and
/// with `pick` x_0 for ops that cannot pick (optional). eps is purpose
/// [`Purpose::TrainNoise`](crate::random::Purpose), draw 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Noising {
    pub n: usize,
    /// Elements of one image.
    pub len: usize,
    pub pick: Option<Pick>,
}

impl Plan {
    /// Noises x_0; see [`Noising`].
    pub fn noising(
        &mut self,
        x0: TensorId,
        coefficients: TensorId,
        keys: TensorId,
    ) -> Result<TensorId> {
        let shape = self.shape(x0).to_vec();
        let n = shape[0];
        self.expect_shape("noising", coefficients, &[n, coefficient::COLUMNS])?;
        self.expect_shape("noising", keys, &[n, 4])?;
        let op = Noising { n, len: shape[1..].iter().product(), pick: None };
        let x_t = self.transient("x_t", &shape);
        self.push_forward(Op::Noising(op), &[Some(x0), Some(coefficients), Some(keys)], &[x_t]);
        Ok(x_t)
    }

    /// Noises images that are picked from a set; gives x_t `[n, h, w, c]` and, where
    /// `keep` asks for it, x_0.
    pub fn noising_picked(
        &mut self,
        images: Picked,
        coefficients: TensorId,
        keys: TensorId,
        keep: bool,
    ) -> Result<(TensorId, Option<TensorId>)> {
        let (n, len, pick) = self.pick("noising", images)?;
        self.expect_shape("noising", coefficients, &[n, coefficient::COLUMNS])?;
        self.expect_shape("noising", keys, &[n, 4])?;
        let mut shape = self.shape(images.set).to_vec();
        shape[0] = n;
        let x_t = self.transient("x_t", &shape);
        let x0 = keep.then(|| self.transient("x_0", &shape));
        let op = Op::Noising(Noising { n, len, pick: Some(pick) });
        let inputs = [images.set, coefficients, keys, images.picks].map(Some);
        let write = |tensor| Write { tensor, mode: Mode::Write };
        self.push(op, inputs.to_vec(), vec![Some(write(x_t)), x0.map(write)]);
        Ok((x_t, x0))
    }

    /// Images of the batch, elements of one, and the descriptor.
    pub(super) fn pick(&self, op: &'static str, images: Picked) -> Result<(usize, usize, Pick)> {
        let [rows, h, width, channels] = self.image_shape(op, images.set)?;
        let n = self.shape(images.picks)[0];
        self.expect_shape(op, images.picks, &[n, pick::COLUMNS])?;
        let fits = match self.tensor(images.set).dtype {
            DType::U8 => (2..=256).contains(&images.levels),
            dtype => dtype == DType::F32 && images.levels == 0,
        };
        if rows == 0 || !fits {
            let expected = "at least one image, u8 of 2 to 256 levels or f32 of none".to_string();
            let tensor = self.tensor(images.set);
            let (tensor, found) = (tensor.name.clone(), tensor.shape.clone());
            return Err(Error::Shape { op, tensor, expected, found });
        }
        Ok((n, h * width * channels, Pick { rows, width, channels, levels: images.levels }))
    }
}
