//! The likelihood of the probability-flow ODE (Song et al. 2021, sec. 4.3 and
//! app. D.2; Grathwohl et al. 2019 for the divergence).
//!
//! **Coordinates.** Every process of the same noise levels s = sigma/alpha leads
//! along the same path, so the integration is done in coordinates that exist for
//! all of them: u = x / sqrt(alpha^2 + sigma^2), the variance-preserving state at
//! the angle phi = atan(s). There
//! ```text
//! du/dphi = cos(phi) eps - sin(phi) x_0
//! ```
//! is the velocity v, bounded from the data (phi = 0) to no signal at all (phi =
//! pi/2), where a drift or g^2 would be infinite. The variable of integration is
//! w = s^(1/7) / (1 + s^(1/7)), in which equal steps are Karras' at little noise
//! (Karras et al. 2022, eq. 5, rho = 7) and their mirror image at much.
//!
//! **What is scored** is the density of the data with the noise of the process's
//! earliest time, y = x_0 + s eps, at the data itself; signal alpha < 1 there is
//! accounted for. The prior at the process's end is N(0, prior_std^2) or one that
//! is given.
//!
//! **Error control** is per image: Dormand & Prince's pair of order 5(4), with a
//! step size of its own for each image of a batch; images that arrive make room
//! for the next. Or equal steps of Heun's method in w. The divergence is the
//! Jacobian's trace by Hutchinson's estimator with the same probes along the
//! whole path, or exactly with all unit vectors where there are few dimensions.

use super::{Answer, Ask, Question, Watch, not_finite};
use crate::diffusion::denoiser::{Denoiser, Evaluation};
use crate::diffusion::process::{Pair, Process};
use crate::error::{Error, Result};
use crate::random::{Purpose, fill_normal, image_keys, words};

/// Probe vectors of the trace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Probe {
    /// +1 or -1 with equal chances: the least variance of all with independent
    /// elements.
    #[default]
    Rademacher,
    /// Standard normal.
    Gaussian,
    /// Every unit vector: no variance, as many evaluations as dimensions.
    Exact,
}

/// How to integrate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Tolerance of a step: relative and absolute for the state, absolute in nats
    /// a dimension for the density.
    pub tolerance: f64,
    /// Equal steps of Heun's method instead of error control.
    pub steps: Option<usize>,
    /// Probe vectors.
    pub probe: Probe,
    /// Their number for an image, all averaged; not read by [`Probe::Exact`].
    pub probes: usize,
    /// Seed of the probes.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options { tolerance: 1e-5, steps: None, probe: Probe::Rademacher, probes: 1, seed: 0 }
    }
}

/// Most steps of one image under error control, rejected ones counted.
const MOST_STEPS: usize = 10_000;
/// Distance from the end, of the variable of integration, that is rounding.
const ARRIVED: f64 = 1e-14;

impl Options {
    /// Refuses what makes no sense.
    ///
    /// # Errors
    /// Names the flag.
    pub fn validate(&self) -> Result<()> {
        if !(self.tolerance > 0.0 && self.tolerance < 1.0) {
            return Err(Error::Usage(format!(
                "--rtol {}: a tolerance lies between 0 and 1, e.g. 1e-5",
                self.tolerance
            )));
        }
        if self.steps == Some(0) || self.probes == 0 {
            return Err(Error::Usage("--steps and --probes must be at least 1".into()));
        }
        Ok(())
    }

    /// Evaluations for one derivative of an image of `len` elements.
    fn probes(&self, len: usize) -> usize {
        if self.probe == Probe::Exact { len } else { self.probes }
    }
}

/// Fills probe number k of image `index`.
fn fill_probe(options: &Options, index: u64, k: usize, probe: &mut [f32]) {
    let keys = image_keys(options.seed, index);
    match options.probe {
        Probe::Rademacher => {
            let mut bits = vec![0u32; probe.len()];
            words(keys, Purpose::Probe, k as u32, 0, &mut bits);
            for (p, word) in probe.iter_mut().zip(bits) {
                *p = if word >> 31 == 0 { 1.0 } else { -1.0 };
            }
        }
        Probe::Gaussian => fill_normal(keys, Purpose::Probe, k as u32, 0, probe),
        Probe::Exact => {
            probe.fill(0.0);
            probe[k] = 1.0;
        }
    }
}

/// Exponent of the noise level in the variable of integration.
const RHO: f64 = 7.0;

/// The variable of integration at a pair.
fn variable(pair: Pair) -> f64 {
    1.0 / (1.0 + (pair.half_log_snr() / RHO).exp())
}

/// The variance-preserving pair at a value of the variable.
fn pair_at(w: f64) -> Pair {
    Pair::variance_preserving_at(-RHO * (w.ln() - (-w).ln_1p()))
}

/// The variance-preserving pair a `part` of the way between the noise levels of
/// two pairs, evenly in the variable of integration.
pub(super) fn between(first: Pair, last: Pair, part: f64) -> Pair {
    let (from, to) = (variable(first), variable(last));
    pair_at(from + part * (to - from))
}

/// Factors of the derivative du/dw = rate (state u + prediction p), and what the
/// network is asked.
struct Slope {
    rate: f64,
    state: f64,
    prediction: f64,
    evaluation: Evaluation,
}

fn slope(denoiser: &Denoiser, w: f64) -> Result<Slope> {
    let pair = pair_at(w);
    let evaluation = denoiser.matched(pair)?;
    let (cos, sin) = (pair.signal(), pair.std);
    let rate = if w < 1.0 { RHO * sin * cos / (w * (1.0 - w)) } else { 0.0 };
    let (eps, x0) = (evaluation.eps, evaluation.x0);
    Ok(Slope {
        rate,
        state: cos * eps.state - sin * x0.state,
        prediction: cos * eps.prediction - sin * x0.prediction,
        evaluation,
    })
}

/// An explicit Runge-Kutta method.
struct Tableau {
    /// Times of the stages.
    c: &'static [f64],
    /// Row i: factors of the derivatives before it. Where `first_is_last` holds,
    /// the last row is also the step.
    a: &'static [&'static [f64]],
    /// Factors of the step.
    b: &'static [f64],
    /// Factors of its error; empty without an estimate.
    error: &'static [f64],
    /// Whether the last derivative is the next step's first.
    first_is_last: bool,
}

/// Dormand & Prince 1980.
const DORMAND_PRINCE: Tableau = Tableau {
    c: &[0.0, 0.2, 0.3, 0.8, 8.0 / 9.0, 1.0, 1.0],
    a: &[
        &[],
        &[0.2],
        &[3.0 / 40.0, 9.0 / 40.0],
        &[44.0 / 45.0, -56.0 / 15.0, 32.0 / 9.0],
        &[19372.0 / 6561.0, -25360.0 / 2187.0, 64448.0 / 6561.0, -212.0 / 729.0],
        &[9017.0 / 3168.0, -355.0 / 33.0, 46732.0 / 5247.0, 49.0 / 176.0, -5103.0 / 18656.0],
        &[35.0 / 384.0, 0.0, 500.0 / 1113.0, 125.0 / 192.0, -2187.0 / 6784.0, 11.0 / 84.0],
    ],
    b: &[35.0 / 384.0, 0.0, 500.0 / 1113.0, 125.0 / 192.0, -2187.0 / 6784.0, 11.0 / 84.0, 0.0],
    error: &[
        71.0 / 57600.0,
        0.0,
        -71.0 / 16695.0,
        71.0 / 1920.0,
        -17253.0 / 339200.0,
        22.0 / 525.0,
        -1.0 / 40.0,
    ],
    first_is_last: true,
};

const HEUN: Tableau =
    Tableau { c: &[0.0, 1.0], a: &[&[], &[1.0]], b: &[0.5, 0.5], error: &[], first_is_last: false };

/// One scored image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    /// ln p, of the whole image.
    pub log_density: f64,
    /// Steps taken, rejected ones counted.
    pub steps: usize,
    /// Evaluations of the network and its derivative.
    pub evaluations: u64,
}

/// What is scored: images and what goes with them.
#[derive(Clone, Copy, Debug)]
pub struct Images<'a> {
    /// `[count, len]`, dequantised where they were discrete.
    pub x: &'a [f64],
    /// Class of each; empty for networks without.
    pub classes: &'a [u32],
    /// Index of the first, for its probes.
    pub first: u64,
}

/// An image on its way.
struct Traveller {
    image: usize,
    w: f64,
    h: f64,
    /// The state, and behind it the integral of the divergence.
    u: Vec<f64>,
    /// A stage's state.
    trial: Vec<f64>,
    /// Derivatives of the stages.
    k: Vec<Vec<f64>>,
    /// Whether `k[0]` holds the derivative at (w, u).
    begun: bool,
    steps: usize,
    evaluations: u64,
}

/// ln of the density of a state x at the process's end.
pub type Prior<'a> = &'a dyn Fn(&[f64]) -> f64;

/// ln p of images; see the module. `prior` is ln of the density of x at the
/// process's end; without it N(0, prior_std^2).
///
/// # Errors
/// The network cannot be asked somewhere on the way, a value stops being finite,
/// or error control needs too many steps.
pub fn score(
    ask: &mut dyn Ask,
    denoiser: &Denoiser,
    process: &dyn Process,
    images: Images,
    prior: Option<Prior>,
    options: &Options,
    watch: Watch,
) -> Result<Vec<Scored>> {
    options.validate()?;
    let len = ask.len();
    let count = images.x.len() / len;
    let (start, end) = (process.pair(process.earliest()), process.pair(process.end()));
    let (from, to) = (variable(start), variable(end));
    let method = if options.steps.is_some() { &HEUN } else { &DORMAND_PRINCE };
    let first_h = (to - from) / options.steps.unwrap_or(20) as f64;
    let cos = pair_at(from).signal();
    let mut question = Question::of(ask, !images.classes.is_empty(), true);
    let mut answer = Answer::of(ask);
    let mut scored: Vec<Option<Scored>> = vec![None; count];
    let mut waiting = 0..count;
    let mut slots: Vec<Option<Traveller>> = (0..ask.batch()).map(|_| None).collect();
    let mut done = 0;
    loop {
        for slot in slots.iter_mut().filter(|slot| slot.is_none()) {
            *slot = waiting.next().map(|image| {
                let y = &images.x[image * len..][..len];
                let u = y.iter().map(|y| cos * y).chain([0.0]).collect::<Vec<f64>>();
                Traveller {
                    image,
                    w: from,
                    h: first_h,
                    trial: u.clone(),
                    k: vec![vec![0.0; len + 1]; method.c.len()],
                    u,
                    begun: false,
                    steps: 0,
                    evaluations: 0,
                }
            });
        }
        if slots.iter().all(Option::is_none) {
            break;
        }
        for stage in 0..method.c.len() {
            for slot in slots.iter_mut().flatten() {
                slot.prepare(method, stage);
            }
            let asked = |slot: &Traveller| stage > 0 || !slot.begun;
            if slots.iter().flatten().any(asked) {
                let asked: Vec<bool> =
                    slots.iter().map(|slot| slot.as_ref().is_some_and(asked)).collect();
                let at = Stage { c: method.c[stage], stage, to, images: &images, asked: &asked };
                derivatives(ask, denoiser, options, &at, &mut slots, (&mut question, &mut answer))?;
            }
        }
        for place in &mut slots {
            let Some(slot) = place else { continue };
            slot.step(method, options.tolerance)?;
            let arrived = match options.steps {
                Some(steps) => slot.steps == steps,
                None => to - slot.w <= ARRIVED,
            };
            if !arrived {
                slot.h = slot.h.min(to - slot.w);
                continue;
            }
            let (u, integral) = slot.u.split_at(len);
            let scale = end.signal().hypot(end.std);
            let x: Vec<f64> = u.iter().map(|u| scale * u).collect();
            let log_prior = match prior {
                Some(prior) => prior(&x),
                None => normal(&x, process.prior_std()),
            };
            // Densities of x, u and y: dx = scale du, du = cos dy.
            let log_density = log_prior + len as f64 * (scale * cos).ln() + integral[0];
            if !log_density.is_finite() {
                return Err(not_finite(format!("the density of image {}", slot.image)));
            }
            let (steps, evaluations) = (slot.steps, slot.evaluations);
            scored[slot.image] = Some(Scored { log_density, steps, evaluations });
            *place = None;
            done += 1;
            watch(done, count)?;
        }
    }
    Ok(scored.into_iter().flatten().collect())
}

/// ln N(x; 0, std^2).
pub fn normal(x: &[f64], std: f64) -> f64 {
    let squares: f64 = x.iter().map(|x| x * x).sum();
    let ln_scale = std.ln() + 0.5 * (2.0 * std::f64::consts::PI).ln();
    -0.5 * squares / (std * std) - x.len() as f64 * ln_scale
}

/// A stage that some travellers are asked about.
struct Stage<'a> {
    c: f64,
    stage: usize,
    /// End of the path.
    to: f64,
    images: &'a Images<'a>,
    asked: &'a [bool],
}

/// Fills the stage's derivative of everyone asked.
fn derivatives(
    ask: &mut dyn Ask,
    denoiser: &Denoiser,
    options: &Options,
    at: &Stage,
    slots: &mut [Option<Traveller>],
    (question, answer): (&mut Question, &mut Answer),
) -> Result<()> {
    let len = ask.len();
    let mut slopes = Vec::with_capacity(slots.len());
    for (row, slot) in slots.iter().enumerate() {
        let Some(slot) = slot.as_ref().filter(|_| at.asked[row]) else {
            slopes.push(None);
            continue;
        };
        let slope = slope(denoiser, (slot.w + at.c * slot.h).min(at.to))?;
        question.labels[row] = slope.evaluation.label;
        let scale = slope.evaluation.input_scale;
        for (x, u) in question.x[row * len..][..len].iter_mut().zip(&slot.trial) {
            *x = (scale * u) as f32;
        }
        if let Some(class) = question.classes.get_mut(row) {
            *class = at.images.classes[slot.image];
        }
        slopes.push(Some(slope));
    }
    let probes = options.probes(len);
    for k in 0..probes {
        for (slot, probe) in slots.iter().zip(question.probe.chunks_exact_mut(len)) {
            if let Some(slot) = slot {
                fill_probe(options, at.images.first + slot.image as u64, k, probe);
            }
        }
        ask.ask(question, answer)?;
        for (row, slot) in slots.iter_mut().enumerate() {
            let (Some(slot), Some(slope)) = (slot, &slopes[row]) else { continue };
            let derivative = &mut slot.k[at.stage];
            if k == 0 {
                let prediction = &answer.prediction[row * len..][..len];
                for ((d, u), &p) in derivative.iter_mut().zip(&slot.trial).zip(prediction) {
                    *d = slope.rate * (slope.state * u + slope.prediction * f64::from(p));
                }
                derivative[len] = slope.rate * slope.state * len as f64;
            }
            let product = &answer.product[row * len..][..len];
            let probe = &question.probe[row * len..][..len];
            let quadratic: f64 =
                product.iter().zip(probe).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
            let share = if options.probe == Probe::Exact { 1.0 } else { 1.0 / probes as f64 };
            derivative[len] +=
                slope.rate * slope.prediction * slope.evaluation.input_scale * quadratic * share;
            slot.evaluations += 1;
            if !derivative.iter().all(|d| d.is_finite()) {
                return Err(not_finite(format!("the ODE's slope of image {}", slot.image)));
            }
        }
    }
    Ok(())
}

impl Traveller {
    /// The state of a stage.
    fn prepare(&mut self, method: &Tableau, stage: usize) {
        self.trial.copy_from_slice(&self.u);
        self.add(method.a[stage]);
    }

    /// `trial += h sum_j factors[j] k[j]`.
    fn add(&mut self, factors: &[f64]) {
        for (k, &factor) in self.k.iter().zip(factors) {
            if factor != 0.0 {
                for (t, k) in self.trial.iter_mut().zip(k) {
                    *t += self.h * factor * k;
                }
            }
        }
    }

    /// Takes the step, or makes it smaller.
    fn step(&mut self, method: &Tableau, tolerance: f64) -> Result<()> {
        self.steps += 1;
        self.trial.copy_from_slice(&self.u);
        self.add(method.b);
        let mut factor = 1.0;
        if !method.error.is_empty() {
            if self.steps > MOST_STEPS {
                return Err(Error::Usage(format!(
                    "image {} needs more than {MOST_STEPS} steps; use a larger --rtol, or --steps",
                    self.image
                )));
            }
            let error = self.error(method, tolerance);
            // A fifth order: the error goes with the fifth power of the step.
            factor = (0.9 * error.powf(-0.2)).clamp(0.2, 5.0);
            if error > 1.0 {
                self.h *= factor.min(1.0);
                self.begun = true;
                return Ok(());
            }
        }
        std::mem::swap(&mut self.u, &mut self.trial);
        self.w += self.h;
        self.h *= factor;
        self.begun = method.first_is_last;
        if method.first_is_last {
            let last = self.k.len() - 1;
            self.k.swap(0, last);
        }
        Ok(())
    }

    /// The step's error over what is allowed.
    fn error(&self, method: &Tableau, tolerance: f64) -> f64 {
        let len = self.u.len() - 1;
        let error = |e: usize| -> f64 {
            let sum: f64 = self.k.iter().zip(method.error).map(|(k, f)| f * k[e]).sum();
            self.h * sum
        };
        let squares: f64 = (0..len)
            .map(|e| {
                let size = self.u[e].abs().max(self.trial[e].abs());
                (error(e) / (tolerance * (1.0 + size))).powi(2)
            })
            .sum();
        let state = (squares / len as f64).sqrt();
        let density = error(len).abs() / (tolerance * len as f64);
        let larger = state.max(density);
        // A step so good that it has no error grows by the most there is.
        if larger.is_nan() { f64::INFINITY } else { larger.max(1e-12) }
    }
}
