//! Euler-Maruyama on the reverse SDE (Song et al. 2021, eq. 6), from t to s < t:
//! ```text
//! x_s = x - h f x + h g^2 score + g sqrt(h) z,   h = t - s, score = -eps / sigma
//! ```
//! The last step adds no noise. Off a discrete table it ends at the process's
//! earliest time; `--set sampler.end=data` jumps to the data from there, which the
//! equation itself does not.

use super::{Coordinates, Kind, Output, Program, Setup, Stage};
use crate::error::{Error, Result};

/// The program of Euler-Maruyama.
pub fn program(setup: &Setup) -> Result<Program> {
    let path = setup.path(Kind::EulerMaruyama, Coordinates::Process)?;
    let mut stages = Vec::with_capacity(path.points.len());
    for (update, point, next) in path.steps() {
        let h = point.time - next.time;
        let (f, g2) = (setup.process.drift(point.time), setup.process.diffusion2(point.time));
        if !(f.is_finite() && g2.is_finite()) {
            return Err(Error::Usage(format!(
                "euler-maruyama needs a finite drift, and `{}` has none at time {}: start from \
                 less noise with --set sampler.sigma_max=80",
                setup.process.name(),
                point.time
            )));
        }
        let mut output = Output { eps: -h * g2 / point.pair.std, ..Output::default() };
        output.slots[0] = 1.0 - h * f;
        output.noise = if update + 1 == path.points.len() { 0.0 } else { (h * g2).sqrt() };
        stages.push(Stage { outputs: [Some(output), None], ..Stage::at(point, update) });
    }
    Ok(Program {
        name: Kind::EulerMaruyama.name(),
        slots: 1,
        limit: setup.limit(Kind::EulerMaruyama),
        start_std: path.start_std,
        stages,
        control: super::Control::None,
        notes: path.notes,
    })
}
