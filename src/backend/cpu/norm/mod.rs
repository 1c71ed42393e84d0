//! Group and layer normalisation: what both share, and the gradients of the
//! vectors. [`group`] and [`layer`] hold the sweeps.
//!
//! Backward, with v the activation's argument and `dv = d_y f'(v)`: everything
//! follows from two sums an image and channel, `P = sum dv` and
//! `Q = sum dv xhat`: shift gets P, scale gets `gamma Q + beta P`, beta and
//! gamma get `sum_n (1 + scale) P` and `sum_n (1 + scale) Q` in the images'
//! order. With `d_xhat = dv gamma (1 + scale)`,
//! `d_x = rstd (d_xhat - mean(d_xhat) - xhat mean(d_xhat xhat))`.

mod group;
mod layer;

use super::arguments::Arguments;
use super::pointwise::Output;
use super::pool::Pool;
use crate::ops::norm::{Domain, Norm};
use crate::plan::Mode;

/// What forward and backward both read.
pub struct Operands<'a> {
    /// `[n, spatial, channels]`.
    pub x: &'a [f32],
    /// `[channels]`.
    pub gamma: Option<&'a [f32]>,
    /// `[channels]`.
    pub beta: Option<&'a [f32]>,
    /// `[n, 2 channels]`, scale first.
    pub scale_shift: Option<&'a [f32]>,
}

impl<'a> Operands<'a> {
    /// The first four inputs of the node.
    pub fn new(a: &Arguments<'a>) -> Self {
        Operands {
            x: a.input(0),
            gamma: a.optional(1),
            beta: a.optional(2),
            scale_shift: a.optional(3),
        }
    }

    /// `v = xhat gain + bias` for a channel of an image.
    fn affine(&self, op: &Norm, image: usize, channel: usize) -> (f32, f32) {
        let gamma = self.gamma.map_or(1.0, |g| g[channel]);
        let beta = self.beta.map_or(0.0, |b| b[channel]);
        match self.scale_shift {
            None => (gamma, beta),
            Some(s) => {
                let s = &s[image * 2 * op.channels..(image + 1) * 2 * op.channels];
                let scale = 1.0 + s[channel];
                (gamma * scale, beta * scale + s[op.channels + channel])
            }
        }
    }
}

/// y, mean and rstd.
#[allow(clippy::too_many_arguments)]
pub fn norm(
    pool: &Pool,
    op: &Norm,
    operands: &Operands,
    y: Output,
    mean: &mut [f32],
    rstd: &mut [f32],
    workspace: &mut [f32],
) {
    match op.domain {
        Domain::Group(groups) => group::forward(pool, op, groups, operands, y, mean, rstd),
        Domain::Layer => {
            affine_of_images(op, operands, workspace);
            layer::forward(pool, op, operands.x, y, mean, rstd, workspace);
        }
    }
}

/// Floats of scratch for the forward pass: a layer norm's affine maps.
pub fn workspace_len(op: &Norm) -> usize {
    match op.domain {
        Domain::Group(_) => 0,
        Domain::Layer => 2 * op.n * op.channels,
    }
}

/// `[n, 2, channels]`: gain and bias of each image.
fn affine_of_images(op: &Norm, operands: &Operands, maps: &mut [f32]) {
    for (image, maps) in maps.chunks_exact_mut(2 * op.channels).enumerate() {
        let (gain, bias) = maps.split_at_mut(op.channels);
        for (channel, (gain, bias)) in gain.iter_mut().zip(bias).enumerate() {
            (*gain, *bias) = operands.affine(op, image, channel);
        }
    }
}

/// Gain and bias of one image, from [`affine_of_images`].
fn image_maps<'a>(op: &Norm, maps: &'a [f32], image: usize) -> [&'a [f32]; 2] {
    let (gain, bias) =
        maps[image * 2 * op.channels..(image + 1) * 2 * op.channels].split_at(op.channels);
    [gain, bias]
}

/// Mean, what its rounding lost, and 1 / sqrt(variance + eps), from the mean
/// distance and mean squared distance to a centre near the mean.
fn statistics(op: &Norm, centre: f32, first: f64, second: f64) -> (f32, f32, f32) {
    let exact = f64::from(centre) + first;
    let mean = exact as f32;
    let variance = (second - first * first).max(0.0);
    let rstd = 1.0 / (variance + f64::from(op.eps)).sqrt();
    (mean, (exact - f64::from(mean)) as f32, rstd as f32)
}

/// Floats of scratch for the backward pass: P and Q, `[n, channels]` each, and a
/// layer norm's affine maps.
pub fn backward_workspace_len(op: &Norm) -> usize {
    2 * op.n * op.channels + workspace_len(op)
}

/// d_x, d_gamma, d_beta, d_scale_shift; `None` skips one.
#[allow(clippy::too_many_arguments)]
pub fn norm_backward(
    pool: &Pool,
    op: &Norm,
    operands: &Operands,
    mean: &[f32],
    rstd: &[f32],
    d_y: &[f32],
    [d_x, d_gamma, d_beta, d_scale_shift]: [Option<Output>; 4],
    workspace: &mut [f32],
) {
    let of_vectors = d_gamma.is_some() || d_beta.is_some() || d_scale_shift.is_some();
    let (p, rest) = workspace.split_at_mut(op.n * op.channels);
    let (q, maps) = rest.split_at_mut(op.n * op.channels);
    let saved = Saved { mean, rstd, d_y };
    match op.domain {
        Domain::Group(groups) => group::backward(pool, op, groups, operands, &saved, d_x, p, q),
        Domain::Layer => {
            affine_of_images(op, operands, maps);
            if of_vectors {
                layer::sums(pool, op, operands.x, &saved, maps, p, q);
            }
            if let Some(d_x) = d_x {
                layer::backward(pool, op, operands.x, &saved, maps, d_x);
            }
        }
    }
    if of_vectors {
        vectors(op, operands, p, q, [d_gamma, d_beta, d_scale_shift]);
    }
}

/// What backward reads beside the operands.
struct Saved<'a> {
    mean: &'a [f32],
    rstd: &'a [f32],
    d_y: &'a [f32],
}

/// Gradients of the vectors from P and Q: small, so on one thread.
fn vectors(
    op: &Norm,
    operands: &Operands,
    p: &[f32],
    q: &[f32],
    [d_gamma, d_beta, d_scale_shift]: [Option<Output>; 3],
) {
    let c = op.channels;
    let put = |d: &mut f32, v: f32, mode: Mode| match mode {
        Mode::Write => *d = v,
        Mode::Add => *d += v,
    };
    for (sums, output) in [(q, d_gamma), (p, d_beta)] {
        let Some((d, mode)) = output else { continue };
        for (channel, d) in d.iter_mut().enumerate() {
            let total: f64 = (0..op.n)
                .map(|image| {
                    let scale = operands.scale_shift.map_or(0.0, |s| s[image * 2 * c + channel]);
                    f64::from(1.0 + scale) * f64::from(sums[image * c + channel])
                })
                .sum();
            put(d, total as f32, mode);
        }
    }
    let Some((d, mode)) = d_scale_shift else { return };
    for image in 0..op.n {
        let d = &mut d[image * 2 * c..(image + 1) * 2 * c];
        for channel in 0..c {
            let (p, q) = (p[image * c + channel], q[image * c + channel]);
            let gamma = operands.gamma.map_or(1.0, |g| g[channel]);
            let beta = operands.beta.map_or(0.0, |b| b[channel]);
            put(&mut d[channel], gamma.mul_add(q, beta * p), mode);
            put(&mut d[c + channel], p, mode);
        }
    }
}
