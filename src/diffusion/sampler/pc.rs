//! Predictor-corrector sampling (Song et al. 2021, Alg. 2 to 5): a step to the
//! next noise level, then Langevin steps at it.
//!
//! Predictors, from t to s < t with x_t = a x_s + sqrt(v) z:
//! ```text
//! reverse    x_s = (2 - a) x_t + v score + sqrt(v) z         score = -eps / sigma
//! ancestral  x_s = c_0 x_0 + c_x x_t + sqrt(beta-tilde) z    the posterior
//! ```
//! The corrector is `x + e score + sqrt(2 e) z` with `e = 2 alpha (snr |z| /
//! |score|)^2`, alpha the square of the chain's a at that level. The norms are each
//! image's own, so that an image does not depend on its batch; the reference takes
//! the batch's means, which `--set sampler.batch_norm=true` repeats: an image then
//! depends on which others are drawn beside it.
//!
//! The last step jumps to x_0 and is not corrected. The corrector holds its level
//! only approximately: with exact scores of N(0, V) in many dimensions `e = 2 alpha
//! snr^2 V^2 / W` at a state of variance W, and its stationary variance is W = V (1 +
//! alpha snr^2), the known bias.

use super::{Control, Coordinates, Kind, Output, Program, Setup, Stage};
use crate::diffusion::process::{Pair, Posterior};
use crate::error::Result;

/// The reference's signal-to-noise ratio of the corrector.
const SNR: f64 = 0.16;

/// How the noise level falls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Predictor {
    /// The forward chain's increments reversed (Song et al. 2021, eq. 46).
    #[default]
    Reverse,
    /// The posterior of the chain.
    Ancestral,
    /// None: the state is scaled to the next signal, and only corrected.
    None,
}

impl Predictor {
    /// All of them.
    pub const ALL: [Predictor; 3] = [Predictor::Reverse, Predictor::Ancestral, Predictor::None];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Predictor::Reverse => "reverse",
            Predictor::Ancestral => "ancestral",
            Predictor::None => "none",
        }
    }
}

/// The program of predictor and corrector.
pub fn program(setup: &Setup) -> Result<Program> {
    let path = setup.path(Kind::Pc, Coordinates::Process)?;
    let options = &setup.options;
    let snr = options.snr.unwrap_or(SNR);
    let corrections = options.n_steps.unwrap_or(1);
    // Factor of the state from one level to the next noisier one.
    let factor = |less: Pair, more: Pair| (more.ln_signal - less.ln_signal).exp();
    let nexts: Vec<_> = path.steps().map(|(_, _, next)| next).collect();
    let mut stages = Vec::new();
    let mut draws = 0..;
    for (update, point, next) in path.steps() {
        let mut output = Output::default();
        let posterior = Posterior::between(next.pair, point.pair);
        match options.predictor {
            _ if next.pair == Pair::DATA => output.x0 = 1.0,
            Predictor::Reverse => {
                output.slots[0] = 2.0 - factor(next.pair, point.pair);
                output.eps = -posterior.step_variance / point.pair.std;
                output.noise = posterior.step_variance.sqrt();
            }
            Predictor::Ancestral => {
                output.slots[0] = posterior.c_x;
                output.x0 = posterior.c_0;
                output.noise = posterior.variance.sqrt();
            }
            Predictor::None => {
                output.slots[0] = next.pair.signal() / point.pair.signal();
                if !output.slots[0].is_finite() {
                    output.slots[0] = 1.0;
                }
            }
        }
        let last = update + 1 == path.points.len();
        if last {
            output.noise = 0.0;
        }
        let mut stage = Stage { outputs: [Some(output), None], ..Stage::at(point, update) };
        stage.draw = if stage.draws() { draws.next().expect("endless") } else { 0 };
        stages.push(stage);
        if last {
            break;
        }
        let at = &path.points[update + 1];
        let alpha = factor(nexts[update + 1].pair, at.pair).powi(2);
        for _ in 0..corrections {
            let mut output = Output {
                eps: -2.0 * alpha * snr * snr * at.pair.std,
                noise: 2.0 * alpha.sqrt() * snr * at.pair.std,
                ..Output::default()
            };
            output.slots[0] = 1.0;
            stages.push(Stage {
                langevin: true,
                draw: draws.next().expect("endless"),
                outputs: [Some(output), None],
                ..Stage::at(at, update)
            });
        }
    }
    let mut notes = path.notes;
    if options.batch_norm {
        notes.push(
            "sampler.batch_norm: an image depends on the others of its batch, as in the reference"
                .into(),
        );
    }
    Ok(Program {
        name: Kind::Pc.name(),
        slots: 1,
        limit: setup.limit(Kind::Pc),
        start_std: path.start_std,
        stages,
        control: Control::Langevin { batch_norm: options.batch_norm },
        notes,
    })
}
