//! Editing and inverse problems on any network: programs of the same stages as
//! sampling, so that every process and prediction works with them, and an image
//! depends on its seed and index and not on its batch.
//!
//! - [`repaint`]: the unknown part of an image, given the rest.
//! - [`sdedit`]: an image noised to a level and drawn again from there.
//! - [`invert`]: the noise that DDIM turns into an image; [`slerp`] between two.
//! - [`dps`]: an image from a linear measurement of it.

pub mod dps;
pub mod invert;
pub mod repaint;
pub mod sdedit;

pub use dps::Operator;

use super::process::{Pair, Posterior};
use super::sampler::{Coordinates, Kind, Output, Path, Point, Setup};
use crate::error::{Error, Result};

/// DDIM's path: noisiest first, ending at the data.
fn path(setup: &Setup) -> Result<Path> {
    let path = setup.path(Kind::Ddim, Coordinates::Process)?;
    if path.end.pair != Pair::DATA {
        return Err(Error::config(
            "sampler.end",
            "editing ends at the data: leave it out, or sampler.end=data",
        ));
    }
    Ok(path)
}

/// DDIM's step of any eta, 1 for the ancestral one, from a point to a state.
fn step(point: &Point, next: Pair, eta: f64) -> Output {
    let variance = eta * eta * Posterior::between(next, point.pair).variance;
    Output {
        x0: next.signal(),
        eps: (next.variance() - variance).max(0.0).sqrt(),
        noise: variance.sqrt(),
        ..Output::default()
    }
}

fn check_eta(eta: f64) -> Result<()> {
    match (0.0..=1.0).contains(&eta) {
        true => Ok(()),
        false => Err(Error::Usage(format!("--eta {eta} must lie between 0 and 1"))),
    }
}

/// Spherical interpolation from `a` (at 0) to `b` (at 1), two vectors of normals:
/// the norm stays that of normals, which the straight line's does not (Shoemake
/// 1985; Song et al. 2021, DDIM, app. D.5).
pub fn slerp(a: &[f32], b: &[f32], at: f64) -> Vec<f32> {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    let angle = if norms > 0.0 { (dot(a, b) / norms).clamp(-1.0, 1.0).acos() } else { 0.0 };
    let (of_a, of_b) = match angle.sin() {
        sin if sin > 1e-6 => (((1.0 - at) * angle).sin() / sin, (at * angle).sin() / sin),
        // Parallel, or opposite and so without a way between: the straight line.
        _ => (1.0 - at, at),
    };
    let mixed = a.iter().zip(b).map(|(&a, &b)| of_a * f64::from(a) + of_b * f64::from(b));
    mixed.map(|v| v as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::slerp;

    #[test]
    fn slerp_keeps_ends_norm_and_angle() {
        let (a, b) = ([3.0f32, 0.0, 0.0], [0.0f32, 3.0, 0.0]);
        assert_eq!(slerp(&a, &b, 0.0), a);
        let end = slerp(&a, &b, 1.0);
        assert!(end.iter().zip(b).all(|(e, b)| (e - b).abs() < 1e-6));
        let third = slerp(&a, &b, 1.0 / 3.0);
        let angle = std::f64::consts::FRAC_PI_6;
        assert!((f64::from(third[0]) - 3.0 * angle.cos()).abs() < 1e-6);
        assert!((f64::from(third[1]) - 3.0 * angle.sin()).abs() < 1e-6);
        assert_eq!(slerp(&a, &a, 0.3), a);
    }
}
