//! The Inception-v3 whose features the Frechet and kernel Inception distances are
//! defined by: the network of the file `pt_inception-2015-12-05`, TensorFlow's
//! weights as pytorch-fid and torch-fidelity use them.
//!
//! It differs from torchvision's in its pooling branches: means count the pixels
//! inside the image alone, and the last block takes maxima. Features are the
//! means over the last 8 x 8 activations: 2048 numbers. Images are resized to
//! 299 x 299 bilinearly, without antialiasing and without aligning corners, as
//! bytes first: the convention is defined on saved pictures.
//!
//! Weights are read from safetensors with the state dictionary's own names
//! (`Conv2d_1a_3x3.conv.weight`, `Conv2d_1a_3x3.bn.running_mean`, ...; `fc.*` is
//! not needed). Batch normalisation (eps 0.001) is folded into the convolutions.
//! To convert the published file:
//! ```python
//! import torch
//! from safetensors.torch import save_file
//! weights = torch.load("pt_inception-2015-12-05-6726825d.pth", map_location="cpu")
//! save_file({k: v.contiguous() for k, v in weights.items()}, "inception.safetensors")
//! ```
//! Szegedy et al. 2016; Heusel et al. 2017; Binkowski et al. 2018.

use std::path::Path;

use crate::backend::{Backend, Engine, Loaded, WeightSet};
use crate::checkpoint::tensors::{self, Values};
use crate::error::{Error, Result};
use crate::ops::conv2d::{ConvOptions, Padding};
use crate::ops::pointwise::Activation;
use crate::ops::pooling::Reduction;
use crate::picture::to_byte;
use crate::plan::{DType, DiskLayout, Init, Parameters, Plan, Space, TensorId};

/// Features of an image.
pub const FEATURES: usize = 2048;
/// Height and width of the images that the network sees.
pub const SIDE: usize = 299;
/// Added to the variances of the batch normalisations.
const EPS: f64 = 1e-3;
/// Images of one run.
const BATCH: usize = 8;

/// The network's layers, appended to a plan.
struct Layers<'a> {
    plan: &'a mut Plan,
}

impl Layers<'_> {
    /// Convolution (batch normalisation folded in) and rectification.
    fn conv(
        &mut self,
        name: &str,
        x: TensorId,
        c_out: usize,
        kernel: [usize; 2],
        stride: usize,
        padding: [usize; 2],
    ) -> Result<TensorId> {
        let c_in = *self.plan.shape(x).last().expect("images have axes");
        let [kh, kw] = kernel;
        let init = Init::Constant(0.0);
        let weight = self.plan.parameter(
            &format!("{name}.conv.weight"),
            &[c_out, c_in, kh, kw],
            DiskLayout::Convolution,
            init,
            false,
        );
        let bias = format!("{name}.conv.bias");
        let bias = self.plan.parameter(&bias, &[c_out], DiskLayout::Same, init, false);
        let [ph, pw] = padding;
        let padding = Padding { top: ph, bottom: ph, left: pw, right: pw };
        let options = ConvOptions { stride: [stride; 2], padding, ..ConvOptions::default() };
        let y = self.plan.conv2d(x, weight, Some(bias), options)?;
        Ok(self.plan.activate(y, Activation::Relu))
    }

    /// 1 x 1.
    fn one(&mut self, name: &str, x: TensorId, c_out: usize) -> Result<TensorId> {
        self.conv(name, x, c_out, [1, 1], 1, [0, 0])
    }

    /// An odd kernel at stride 1 that keeps the size.
    fn same(
        &mut self,
        name: &str,
        x: TensorId,
        c_out: usize,
        kernel: [usize; 2],
    ) -> Result<TensorId> {
        self.conv(name, x, c_out, kernel, 1, kernel.map(|k| k / 2))
    }

    /// 3 x 3 at stride 2 without padding.
    fn half(&mut self, name: &str, x: TensorId, c_out: usize) -> Result<TensorId> {
        self.conv(name, x, c_out, [3, 3], 2, [0, 0])
    }

    fn half_max(&mut self, x: TensorId) -> Result<TensorId> {
        self.plan.pooling(x, [3, 3], 2, 0, Reduction::Max)
    }

    fn pooled(
        &mut self,
        name: &str,
        x: TensorId,
        c_out: usize,
        reduction: Reduction,
    ) -> Result<TensorId> {
        let pooled = self.plan.pooling(x, [3, 3], 1, 1, reduction)?;
        self.one(&format!("{name}.branch_pool"), pooled, c_out)
    }

    fn concat(&mut self, branches: &[TensorId]) -> Result<TensorId> {
        let mut all = branches[0];
        for &branch in &branches[1..] {
            all = self.plan.concat(all, branch)?;
        }
        Ok(all)
    }

    fn block_a(&mut self, name: &str, x: TensorId, pool_features: usize) -> Result<TensorId> {
        let one = self.one(&format!("{name}.branch1x1"), x, 64)?;
        let five = self.one(&format!("{name}.branch5x5_1"), x, 48)?;
        let five = self.same(&format!("{name}.branch5x5_2"), five, 64, [5, 5])?;
        let double = self.double_start(name, x)?;
        let double = self.same(&format!("{name}.branch3x3dbl_3"), double, 96, [3, 3])?;
        let pool = self.pooled(name, x, pool_features, Reduction::Mean)?;
        self.concat(&[one, five, double, pool])
    }

    /// The first two layers of the doubled 3 x 3 branch.
    fn double_start(&mut self, name: &str, x: TensorId) -> Result<TensorId> {
        let y = self.one(&format!("{name}.branch3x3dbl_1"), x, 64)?;
        self.same(&format!("{name}.branch3x3dbl_2"), y, 96, [3, 3])
    }

    fn block_b(&mut self, name: &str, x: TensorId) -> Result<TensorId> {
        let three = self.half(&format!("{name}.branch3x3"), x, 384)?;
        let double = self.double_start(name, x)?;
        let double = self.half(&format!("{name}.branch3x3dbl_3"), double, 96)?;
        let pool = self.half_max(x)?;
        self.concat(&[three, double, pool])
    }

    fn block_c(&mut self, name: &str, x: TensorId, width: usize) -> Result<TensorId> {
        let (across, down) = ([1, 7], [7, 1]);
        let one = self.one(&format!("{name}.branch1x1"), x, 192)?;
        let seven = self.one(&format!("{name}.branch7x7_1"), x, width)?;
        let seven = self.same(&format!("{name}.branch7x7_2"), seven, width, across)?;
        let seven = self.same(&format!("{name}.branch7x7_3"), seven, 192, down)?;
        let mut double = self.one(&format!("{name}.branch7x7dbl_1"), x, width)?;
        for (i, kernel, c_out) in
            [(2, down, width), (3, across, width), (4, down, width), (5, across, 192)]
        {
            double = self.same(&format!("{name}.branch7x7dbl_{i}"), double, c_out, kernel)?;
        }
        let pool = self.pooled(name, x, 192, Reduction::Mean)?;
        self.concat(&[one, seven, double, pool])
    }

    fn block_d(&mut self, name: &str, x: TensorId) -> Result<TensorId> {
        let three = self.one(&format!("{name}.branch3x3_1"), x, 192)?;
        let three = self.half(&format!("{name}.branch3x3_2"), three, 320)?;
        let seven = self.one(&format!("{name}.branch7x7x3_1"), x, 192)?;
        let seven = self.same(&format!("{name}.branch7x7x3_2"), seven, 192, [1, 7])?;
        let seven = self.same(&format!("{name}.branch7x7x3_3"), seven, 192, [7, 1])?;
        let seven = self.half(&format!("{name}.branch7x7x3_4"), seven, 192)?;
        let pool = self.half_max(x)?;
        self.concat(&[three, seven, pool])
    }

    /// Rows and columns of three, side by side.
    fn cross(&mut self, name: &str, x: TensorId) -> Result<TensorId> {
        let across = self.same(&format!("{name}a"), x, 384, [1, 3])?;
        let down = self.same(&format!("{name}b"), x, 384, [3, 1])?;
        self.concat(&[across, down])
    }

    fn block_e(&mut self, name: &str, x: TensorId, reduction: Reduction) -> Result<TensorId> {
        let one = self.one(&format!("{name}.branch1x1"), x, 320)?;
        let three = self.one(&format!("{name}.branch3x3_1"), x, 384)?;
        let three = self.cross(&format!("{name}.branch3x3_2"), three)?;
        let double = self.one(&format!("{name}.branch3x3dbl_1"), x, 448)?;
        let double = self.same(&format!("{name}.branch3x3dbl_2"), double, 384, [3, 3])?;
        let double = self.cross(&format!("{name}.branch3x3dbl_3"), double)?;
        let pool = self.pooled(name, x, 192, reduction)?;
        self.concat(&[one, three, double, pool])
    }

    /// x `[n, 299, 299, 3]` in [-1, 1] to features `[n, 1, 1, 2048]`.
    fn all(&mut self, x: TensorId) -> Result<TensorId> {
        let x = self.half("Conv2d_1a_3x3", x, 32)?;
        let x = self.conv("Conv2d_2a_3x3", x, 32, [3, 3], 1, [0, 0])?;
        let x = self.same("Conv2d_2b_3x3", x, 64, [3, 3])?;
        let x = self.half_max(x)?;
        let x = self.one("Conv2d_3b_1x1", x, 80)?;
        let x = self.conv("Conv2d_4a_3x3", x, 192, [3, 3], 1, [0, 0])?;
        let mut x = self.half_max(x)?;
        for (name, pool_features) in [("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)] {
            x = self.block_a(name, x, pool_features)?;
        }
        x = self.block_b("Mixed_6a", x)?;
        for (name, width) in
            [("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)]
        {
            x = self.block_c(name, x, width)?;
        }
        x = self.block_d("Mixed_7a", x)?;
        x = self.block_e("Mixed_7b", x, Reduction::Mean)?;
        x = self.block_e("Mixed_7c", x, Reduction::Max)?;
        let [_, h, w, _] = self.plan.image_shape("inception", x)?;
        self.plan.pooling(x, [h, w], 1, 0, Reduction::Mean)
    }
}

/// A plan of n images: itself, x and the features.
fn plan(n: usize) -> Result<(Plan, TensorId, TensorId)> {
    let mut plan = Plan::new();
    let x = plan.input("x", &[n, SIDE, SIDE, 3], DType::F32);
    let features = Layers { plan: &mut plan }.all(x)?;
    plan.keep(features);
    Ok((plan, x, features))
}

/// Gives the values of the tensor of that name and shape, as PyTorch has them.
pub type ReadTensor<'a> = dyn Fn(&str, &[usize]) -> Result<Vec<f32>> + 'a;

/// The network's weights, ready to use.
pub struct Inception {
    parameters: Parameters,
    arena: Vec<f32>,
}

impl Inception {
    /// Reads a safetensors file; see the module's head for its names.
    ///
    /// # Errors
    /// The file is damaged, or a tensor is absent or of another shape.
    pub fn open(path: &Path) -> Result<Inception> {
        let file = tensors::read(path)?;
        Inception::from_tensors(&|name, shape| {
            let wrong = |problem: String| {
                Error::content(
                    path,
                    format!(
                        "tensor `{name}` {problem}; the weights of pt_inception-2015-12-05 are \
                         needed, under the names of their state dictionary"
                    ),
                )
            };
            let tensor = file.get(name).ok_or_else(|| wrong("is absent".into()))?;
            match &tensor.values {
                Values::F32(values) if tensor.shape == shape => Ok(values.clone()),
                _ => Err(wrong(format!("has shape {:?} and not {shape:?}", tensor.shape))),
            }
        })
    }

    /// Takes the weights from `read` and folds the normalisations in.
    ///
    /// # Errors
    /// Those of `read`, or a variance that is not positive.
    pub fn from_tensors(read: &ReadTensor) -> Result<Inception> {
        let parameters = plan(1)?.0.parameters;
        let mut arena = vec![0f32; parameters.arena_len()];
        // A layer's weight comes before its bias.
        for pair in parameters.entries.chunks_exact(2) {
            let (weight, bias) = (&pair[0], &pair[1]);
            let layer = weight.name.trim_end_matches(".conv.weight");
            let channels = bias.len();
            let mut values = read(&weight.name, &weight.disk_shape)?;
            let of = |field: &str| read(&format!("{layer}.bn.{field}"), &[channels]);
            let (gamma, beta) = (of("weight")?, of("bias")?);
            let (mean, variance) = (of("running_mean")?, of("running_var")?);
            let len = weight.len() / channels;
            let mut shift = vec![0f32; channels];
            for (o, values) in values.chunks_exact_mut(len).enumerate() {
                let spread = f64::from(variance[o]) + EPS;
                if spread.is_nan() || spread <= 0.0 {
                    let problem = format!("`{layer}.bn.running_var` holds {}", variance[o]);
                    return Err(Error::Usage(problem));
                }
                let factor = f64::from(gamma[o]) / spread.sqrt();
                values.iter_mut().for_each(|v| *v = (f64::from(*v) * factor) as f32);
                shift[o] = (f64::from(beta[o]) - f64::from(mean[o]) * factor) as f32;
            }
            weight.from_disk(&values, &mut arena[weight.offset..][..weight.len()]);
            arena[bias.offset..][..channels].copy_from_slice(&shift);
        }
        Ok(Inception { parameters, arena })
    }

    /// Features `[n, 2048]` of images `[n, h, w, c]` in model range; c is 1 (grey)
    /// or 3. The result of an image does not depend on the others.
    ///
    /// # Errors
    /// The images have another number of channels, or the backend fails.
    pub fn features(
        &self,
        backend: Box<dyn Backend>,
        images: &[f32],
        [n, h, w, c]: [usize; 4],
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<f32>> {
        if !matches!(c, 1 | 3) || n == 0 || images.len() != n * h * w * c {
            return Err(Error::Shape {
                op: "inception",
                tensor: "images".into(),
                expected: "[n, h, w, 1 or 3]".into(),
                found: vec![n, h, w, c],
            });
        }
        let mut engine = Engine::new(backend, self.parameters.arena_len(), false)?;
        engine.set_arena(Space::Parameters, &self.arena)?;
        let (plan, x, features) = plan(BATCH.min(n))?;
        let program = engine.lower(plan)?;
        let loaded: Loaded = engine.load(program, WeightSet::Raw)?;
        engine.refresh(&loaded)?;
        let batch = BATCH.min(n);
        let mut seen = vec![0f32; batch * SIDE * SIDE * 3];
        let mut out = vec![0f32; batch * FEATURES];
        let mut all = Vec::with_capacity(n * FEATURES);
        for from in (0..n).step_by(batch) {
            let here = batch.min(n - from);
            for (i, seen) in seen.chunks_exact_mut(SIDE * SIDE * 3).enumerate() {
                // The last image again where they end.
                let image = &images[(from + i.min(here - 1)) * h * w * c..][..h * w * c];
                resize(image, [h, w, c], seen);
            }
            engine.set(&loaded, x, &seen)?;
            engine.run(&loaded)?;
            engine.get(&loaded, features, &mut out)?;
            all.extend_from_slice(&out[..here * FEATURES]);
            progress(from + here);
        }
        Ok(all)
    }
}

/// One image `[h, w, c]` in model range as the network sees it, `[299, 299, 3]`:
/// to bytes, bilinear between pixel centres (those outside repeat the edge), grey
/// to three channels.
fn resize(image: &[f32], [h, w, c]: [usize; 3], out: &mut [f32]) {
    // Position of output o: the pixel before it, the one after, and their shares.
    let taps = |len: usize| -> Vec<(usize, usize, f64)> {
        (0..SIDE)
            .map(|o| {
                let at = ((o as f64 + 0.5) * len as f64 / SIDE as f64 - 0.5).max(0.0);
                let low = (at as usize).min(len - 1);
                (low, (low + 1).min(len - 1), at - low as f64)
            })
            .collect()
    };
    let (rows, columns) = (taps(h), taps(w));
    let pixel = |y: usize, x: usize, ch: usize| {
        f64::from(to_byte(image[(y * w + x) * c + ch.min(c - 1)])) / 255.0
    };
    for (row, out) in rows.iter().zip(out.chunks_exact_mut(SIDE * 3)) {
        for (column, out) in columns.iter().zip(out.chunks_exact_mut(3)) {
            for (ch, out) in out.iter_mut().enumerate() {
                let line = |y: usize| {
                    let (a, b) = (pixel(y, column.0, ch), pixel(y, column.1, ch));
                    a + column.2 * (b - a)
                };
                let (a, b) = (line(row.0), line(row.1));
                *out = (2.0 * (a + row.2 * (b - a)) - 1.0) as f32;
            }
        }
    }
}
