//! The variational bound by terms (Ho et al. 2020, eq. 5), in nats of a whole
//! image, with the functions of [`vlb`](crate::diffusion::vlb):
//! ```text
//! L_T      KL(q(x_T | x_0) || N(0, prior_std^2))           no network
//! L_t      KL(q(x_s | x_t, x_0) || p(x_s | x_t)), t > 1    one x_t ~ q(x_t | x_0)
//! L_0      -ln p(x_0 | x_1), the discretised Gaussian      one x_1
//! ```
//! A discrete chain has the terms of its own states. A continuous process is cut
//! into that many states between its earliest time and its end, evenly spaced as
//! the ODE's steps are ([`chain`]), with the data before them; the bound is that
//! of this chain. The decoder needs discrete data.
//!
//! The sum over t is estimated from all its terms or from a stratified draw: the
//! states 2..=T in K equal strata, one state of each, weighted by the stratum's
//! size; unbiased, with the standard error over images.

use super::{Answer, Ask, Question, Watch, not_finite, ode};
use crate::diffusion::denoiser::{Denoiser, Evaluation};
use crate::diffusion::process::{Pair, Process};
use crate::diffusion::vlb::{self, Decoder, Step};
use crate::error::{Error, Result};
use crate::random::{Purpose, fill_normal, image_keys, uniform};

/// The variance of the reverse steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Variance {
    /// The posterior's, beta-tilde; at the decoder that of the step before.
    #[default]
    Small,
    /// The forward step's, beta.
    Large,
    /// Between the two by the network's second half of outputs (Nichol & Dhariwal
    /// 2021, eq. 15).
    LearnedRange,
    /// The network's second half of outputs itself; where that is not above 0 the
    /// bound is infinite, and scoring says so.
    Learned,
}

/// What is estimated, and how.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Variance of the reverse steps.
    pub variance: Variance,
    /// x_0 is clamped to `[-range, range]`.
    pub clip: Option<f64>,
    /// States of the sum that are evaluated for an image; `None` for all.
    pub terms: Option<usize>,
    /// Distinct values of the data.
    pub levels: usize,
    /// Seed of the noise and of the strata's draws.
    pub seed: u64,
}

/// The terms of one image, in nats.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Terms {
    /// L_T.
    pub prior: f64,
    /// The sum of L_t, t = 2..=T.
    pub steps: f64,
    /// L_0.
    pub decoder: f64,
}

impl Terms {
    /// The bound.
    pub fn total(&self) -> f64 {
        self.prior + self.steps + self.decoder
    }
}

/// The pairs of states 0..=T: a discrete chain's own, or `states` of a
/// continuous process behind the data.
pub fn chain(process: &dyn Process, states: usize) -> Vec<Pair> {
    if let Some(steps) = process.steps() {
        return (0..=steps).map(|i| process.pair(i as f64)).collect();
    }
    let (first, last) = (process.pair(process.earliest()), process.pair(process.end()));
    let mut pairs = vec![Pair::DATA, first];
    pairs.extend((1..states).map(|i| match i + 1 == states {
        true => last,
        false => {
            let pair = ode::between(first, last, i as f64 / (states - 1) as f64);
            process.pair(process.time_of(pair.half_log_snr()))
        }
    }));
    pairs
}

/// The states, of 2..=T, that image `index` is asked about, and the weight of each.
fn drawn(states: usize, options: &Options, index: u64) -> Vec<(usize, f64)> {
    let all = states.saturating_sub(1);
    let Some(strata) = options.terms.filter(|&terms| terms < all) else {
        return (2..=states).map(|i| (i, 1.0)).collect();
    };
    let keys = image_keys(options.seed, index);
    (0..strata)
        .map(|k| {
            let (from, to) = (all * k / strata, all * (k + 1) / strata);
            let u = uniform(keys, Purpose::TrainTime, k as u32);
            let within = ((u * (to - from) as f64) as usize).min(to - from - 1);
            (2 + from + within, (to - from) as f64)
        })
        .collect()
}

/// Images in model range, at their levels: `x [count, len]`, the first of them
/// image `first` of the data.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Images<'a> {
    pub x: &'a [f32],
    /// Class of each; empty for networks without.
    pub classes: &'a [u32],
    pub first: u64,
}

/// The step from state i = 1..=T of a chain to the one before. At the decoder the
/// smaller variance is that of the step before, as the posterior has none.
fn step(pairs: &[Pair], i: usize) -> Step {
    let mut step = Step::between(pairs[i - 1], pairs[i]);
    if i == 1 {
        step.ln_small = match pairs.get(2) {
            Some(&pair) => Step::between(pairs[1], pair).ln_posterior,
            None => step.ln_large,
        };
    }
    step
}

/// One evaluation of the network.
struct Job {
    image: usize,
    state: usize,
    weight: f64,
}

/// The bound's terms of every image.
///
/// # Errors
/// Data without levels, a network that cannot be asked at a state, or values
/// that are not finite.
pub fn score(
    ask: &mut dyn Ask,
    denoiser: &Denoiser,
    process: &dyn Process,
    pairs: &[Pair],
    images: Images,
    options: &Options,
    watch: Watch,
) -> Result<Vec<Terms>> {
    let decoder = Decoder::new(options.levels)?;
    let len = ask.len();
    let (count, states) = (images.x.len() / len, pairs.len() - 1);
    let learned = matches!(options.variance, Variance::LearnedRange | Variance::Learned);
    if learned && !ask.learns_variance() {
        return Err(Error::config(
            "scheduler.variance_type",
            "learned and learned_range need a network with twice as many output channels as input \
             channels",
        ));
    }
    if options.terms == Some(0) {
        return Err(Error::Usage("--terms must be at least 1".into()));
    }
    let steps: Vec<Step> = (1..=states).map(|i| step(pairs, i)).collect();
    let evaluations: Vec<Evaluation> =
        pairs[1..].iter().map(|&pair| denoiser.matched(pair)).collect::<Result<_>>()?;
    let mut terms = vec![Terms::default(); count];
    let mut jobs = Vec::new();
    for (image, terms) in terms.iter_mut().enumerate() {
        let x0 = &images.x[image * len..][..len];
        let end = pairs[states];
        let prior = |&x: &f32| vlb::prior(end, process.prior_std(), f64::from(x).powi(2));
        terms.prior = x0.iter().map(prior).sum();
        jobs.push(Job { image, state: 1, weight: 1.0 });
        let drawn = drawn(states, options, images.first + image as u64);
        jobs.extend(drawn.into_iter().map(|(state, weight)| Job { image, state, weight }));
    }
    let mut question = Question::of(ask, !images.classes.is_empty(), false);
    let mut answer = Answer::of(ask);
    let mut noise = vec![0f32; len];
    let mut state = vec![0f64; ask.batch() * len];
    for jobs in jobs.chunks(ask.batch()) {
        for (row, job) in jobs.iter().enumerate() {
            let (pair, evaluation) = (pairs[job.state], &evaluations[job.state - 1]);
            let keys = image_keys(options.seed, images.first + job.image as u64);
            fill_normal(keys, Purpose::TrainNoise, job.state as u32, 0, &mut noise);
            let x0 = &images.x[job.image * len..][..len];
            let x = &mut state[row * len..][..len];
            for ((x, &x0), &eps) in x.iter_mut().zip(x0).zip(&noise) {
                *x = pair.signal() * f64::from(x0) + pair.std * f64::from(eps);
            }
            question.labels[row] = evaluation.label;
            let to = &mut question.x[row * len..][..len];
            for (to, x) in to.iter_mut().zip(x) {
                *to = (evaluation.input_scale * *x) as f32;
            }
            if let Some(class) = question.classes.get_mut(row) {
                *class = images.classes[job.image];
            }
        }
        ask.ask(&question, &mut answer)?;
        for (row, job) in jobs.iter().enumerate() {
            let row = row * len..(row + 1) * len;
            let (x, prediction) = (&state[row.clone()], &answer.prediction[row.clone()]);
            let variance = if learned { &answer.variance[row] } else { &[] };
            let (step, evaluation) = (&steps[job.state - 1], &evaluations[job.state - 1]);
            let x0 = &images.x[job.image * len..][..len];
            let mut nats = 0.0;
            for e in 0..len {
                let mut found = evaluation.x0.state * x[e]
                    + evaluation.x0.prediction * f64::from(prediction[e]);
                if let Some(range) = options.clip {
                    found = found.clamp(-range, range);
                }
                let ln_variance = match options.variance {
                    Variance::Small => step.ln_small,
                    Variance::Large => step.ln_large,
                    Variance::LearnedRange => step.ln_variance(f64::from(variance[e])),
                    Variance::Learned => f64::from(variance[e]).max(0.0).ln(),
                };
                let x0 = f64::from(x0[e]);
                nats += match job.state {
                    1 => decoder.score(x0, found, ln_variance).nats,
                    _ => step.kl((x0 - found).powi(2), ln_variance),
                };
            }
            if !nats.is_finite() {
                return Err(not_finite(format!(
                    "the bound's term {} of image {}",
                    job.state,
                    images.first + job.image as u64
                )));
            }
            let terms = &mut terms[job.image];
            match job.state {
                1 => terms.decoder += nats,
                _ => terms.steps += job.weight * nats,
            }
        }
        watch(jobs.last().map_or(0, |job| job.image), count)?;
    }
    Ok(terms)
}
