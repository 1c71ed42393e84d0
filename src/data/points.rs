//! Points in the plane, the toy data of the literature: every point is a
//! function of (seed, index), so that another count keeps the first points and
//! another seed is a held-out set.
//!
//! Each set is centred and scaled by its own closed-form moments, so that the
//! mean variance of the two axes is 1 (noise apart).

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use crate::random::{Purpose, fill_normal, fill_uniform_f64, image_keys};
use crate::{Error, Result};

/// Points of a set, where the SPEC names no count.
pub const DEFAULT_COUNT: usize = 10_000;
/// Most points a SPEC may ask for.
const MOST: usize = 1 << 24;

/// A set of points in the plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// (theta cos theta, theta sin theta), theta uniform in [1.5 pi, 4.5 pi].
    SwissRoll,
    /// Two half circles that reach into each other.
    Moons,
    /// Eight Gaussians around a circle.
    Gaussians8,
    /// The dark fields of a 4 x 4 board, uniform.
    Checkerboard,
    /// Two arms of a spiral, of one and a half turns.
    Spiral,
}

impl Shape {
    /// All of them.
    pub const ALL: [Shape; 5] =
        [Shape::SwissRoll, Shape::Moons, Shape::Gaussians8, Shape::Checkerboard, Shape::Spiral];

    /// The name in a SPEC.
    pub fn name(self) -> &'static str {
        match self {
            Shape::SwissRoll => "swissroll",
            Shape::Moons => "moons",
            Shape::Gaussians8 => "gaussians8",
            Shape::Checkerboard => "checkerboard",
            Shape::Spiral => "spiral",
        }
    }

    /// The point made of uniforms in (0, 1) and standard normals, one of each an axis
    /// and one uniform for what is left to choose.
    fn point(self, u: [f64; 3], z: [f64; 2]) -> [f64; 2] {
        // Before scaling: where, the mean, the scale, the noise in units of the scale.
        let ([x, y], mean, scale, noise) = match self {
            Shape::SwissRoll => {
                let theta = 1.5 * PI * (1.0 + 2.0 * u[0]);
                // Means 2 and 2 / (3 pi); E theta^2 = 9.75 pi^2.
                let mean = [2.0, 2.0 / (3.0 * PI)];
                let square = 9.75 * PI * PI - mean[0] * mean[0] - mean[1] * mean[1];
                ([theta * theta.cos(), theta * theta.sin()], mean, (square / 2.0).sqrt(), 0.06)
            }
            Shape::Moons => {
                let (sin, cos) = (PI * u[0]).sin_cos();
                let at = if u[1] < 0.5 { [cos, sin] } else { [1.0 - cos, 0.5 - sin] };
                // About the centre the two halves are each other's mirror image.
                let square = 0.75 + (0.5 - 1.0 / PI + 0.0625);
                (at, [0.5, 0.25], (square / 2.0).sqrt(), 0.1)
            }
            Shape::Gaussians8 => {
                let (sin, cos) = ((u[0] * 8.0).floor() * PI / 4.0).sin_cos();
                ([cos, sin], [0.0; 2], FRAC_1_SQRT_2, 0.1)
            }
            Shape::Checkerboard => {
                let column = (u[0] * 4.0).floor();
                let row = 2.0 * (u[2] * 2.0).floor() + (column % 2.0);
                let at = [u[0] * 4.0 - 2.0, row + u[1] - 2.0];
                (at, [0.0; 2], (4.0f64 / 3.0).sqrt(), 0.0)
            }
            Shape::Spiral => {
                let theta = 3.0 * PI * u[0].sqrt();
                let arm = if u[1] < 0.5 { 1.0 } else { -1.0 };
                let at = [arm * theta * theta.cos(), arm * theta * theta.sin()];
                // E theta^2 = 9 pi^2 / 2.
                (at, [0.0; 2], 1.5 * PI, 0.06)
            }
        };
        [(x - mean[0]) / scale + noise * z[0], (y - mean[1]) / scale + noise * z[1]]
    }
}

/// A parsed `points:NAME[:SEED[:COUNT]]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Points {
    /// Which set.
    pub shape: Shape,
    /// Seed of the points; 0 where the SPEC names none.
    pub seed: u64,
    /// Number of points.
    pub count: usize,
}

impl Points {
    /// Parses what follows `points:`.
    ///
    /// # Errors
    /// [`Error::Usage`] with the names there are.
    pub fn parse(text: &str) -> Result<Points> {
        let wrong = |problem: String| {
            let names = Shape::ALL.map(Shape::name).join(", ");
            Error::Usage(format!(
                "data `points:{text}`: {problem}; the form is points:NAME[:SEED[:COUNT]] with \
                 NAME one of {names}"
            ))
        };
        let mut parts = text.split(':');
        let name = parts.next().unwrap_or_default();
        let shape = Shape::ALL.into_iter().find(|shape| shape.name() == name);
        let shape = shape.ok_or_else(|| wrong(format!("there are no points `{name}`")))?;
        let mut number = |what: &str, default: u64| match parts.next() {
            None => Ok(default),
            Some(part) => {
                part.parse().map_err(|_| wrong(format!("`{part}` is no {what}, a whole number")))
            }
        };
        let (seed, count) = (number("seed", 0)?, number("count", DEFAULT_COUNT as u64)?);
        if parts.next().is_some() {
            return Err(wrong("there is more than a name, a seed and a count".into()));
        }
        if !(1..=MOST as u64).contains(&count) {
            return Err(wrong(format!("a count lies in 1 to {MOST}, not {count}")));
        }
        Ok(Points { shape, seed, count: count as usize })
    }

    /// The points, `[count, 2]`.
    pub fn coordinates(&self) -> Vec<f32> {
        let mut out = Vec::with_capacity(2 * self.count);
        for i in 0..self.count {
            let keys = image_keys(self.seed, i as u64);
            let (mut u, mut z) = ([0f64; 3], [0f32; 2]);
            fill_uniform_f64(keys, Purpose::Data, 0, 0, &mut u);
            fill_normal(keys, Purpose::Data, 1, 0, &mut z);
            out.extend(self.shape.point(u, z.map(f64::from)).map(|v| v as f32));
        }
        out
    }
}
