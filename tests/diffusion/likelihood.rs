//! Likelihoods against exact ones.

use std::sync::Arc;

use langevin::Result;
use langevin::backend::cpu::Cpu;
use langevin::backend::{Engine, WeightSet};
use langevin::diffusion::denoiser::{Denoiser, Prediction};
use langevin::diffusion::empirical;
use langevin::diffusion::likelihood::bound::{self, Variance};
use langevin::diffusion::likelihood::ode::{self, Probe};
use langevin::diffusion::likelihood::{Answer, Ask, Question};
use langevin::diffusion::process::{
    Amplitude, Cosine, Edm, Flow, Given, Pair, SharedProcess, SubVp, Ve, Vp,
};
use langevin::diffusion::schedule::{BetaSchedule, Table};
use langevin::diffusion::vlb;
use langevin::likelihood::Asking;
use langevin::model::{EmpiricalConfig, MlpConfig, Network, UNetConfig};
use langevin::plan::Space;
use langevin::random::{Purpose, fill_normal, image_keys};

const DIM: usize = 4;

/// Every kind of process, with an earliest time of very little noise.
fn processes() -> Vec<SharedProcess> {
    let rows: Vec<(f64, f64, f64)> = (0..=20)
        .map(|i| {
            let t = f64::from(i) / 20.0;
            (t, 1.0 - 0.9 * t, 1e-3 + 2.0 * t * t)
        })
        .collect();
    vec![
        Arc::new(Vp::new(0.1, 20.0).unwrap()),
        Arc::new(SubVp::new(0.1, 20.0).unwrap()),
        Arc::new(Ve::new(0.01, 50.0).unwrap()),
        Arc::new(Cosine::new(0.008, 0.9946).unwrap()),
        Arc::new(Amplitude::new(5.0).unwrap()),
        Arc::new(Edm::new(0.002, 80.0).unwrap()),
        Arc::new(Flow::new(1.0).unwrap()),
        Arc::new(Table::new(BetaSchedule::Linear.betas(1000, 1e-4, 0.02)).unwrap()),
        Arc::new(Table::smld(100, 0.01, 50.0).unwrap()),
        Arc::new(Given::new(&rows).unwrap()),
    ]
}

/// N(mean, Q diag(spread) Q^T) of correlated elements: Q is a Householder
/// reflection.
struct Gaussian {
    mean: [f64; DIM],
    spread: [f64; DIM],
    axes: [[f64; DIM]; DIM],
}

impl Gaussian {
    fn new() -> Self {
        let v = [0.5, -0.1, 0.7, 0.5];
        let norm: f64 = v.iter().map(|v| v * v).sum();
        let axes = std::array::from_fn(|i| {
            std::array::from_fn(|j| f64::from(u8::from(i == j)) - 2.0 * v[i] * v[j] / norm)
        });
        Gaussian { mean: [0.3, -0.2, 0.0, 0.5], spread: [0.9, 0.25, 0.04, 0.4], axes }
    }

    fn coordinates(&self, x: &[f64], signal: f64) -> [f64; DIM] {
        std::array::from_fn(|i| {
            (0..DIM).map(|e| self.axes[i][e] * (x[e] - signal * self.mean[e])).sum()
        })
    }

    /// ln of the marginal's density at a pair.
    fn log_density(&self, pair: Pair, x: &[f64]) -> f64 {
        let coordinates = self.coordinates(x, pair.signal());
        let terms = coordinates.iter().zip(&self.spread).map(|(c, s)| {
            let variance = pair.signal().powi(2) * s + pair.variance();
            -0.5 * (c * c / variance + (2.0 * std::f64::consts::PI * variance).ln())
        });
        terms.sum()
    }

    /// E[x_0 | x] is `mean + gain (x - signal mean)`.
    fn gain(&self, pair: Pair) -> [[f64; DIM]; DIM] {
        let of_axis = |s: f64| pair.signal() * s / (pair.signal().powi(2) * s + pair.variance());
        std::array::from_fn(|i| {
            std::array::from_fn(|j| {
                (0..DIM).map(|k| self.axes[k][i] * of_axis(self.spread[k]) * self.axes[k][j]).sum()
            })
        })
    }
}

/// The exact network for Gaussian data, of any prediction under any process.
struct Exact {
    data: Gaussian,
    process: SharedProcess,
    prediction: Prediction,
    batch: usize,
}

impl Exact {
    /// The time of a label, which grows with time.
    fn time(&self, label: f64) -> f64 {
        let (mut low, mut high) = (self.process.earliest(), self.process.end());
        for _ in 0..200 {
            let middle = 0.5 * (low + high);
            if self.process.label(middle) < label {
                low = middle;
            } else {
                high = middle;
            }
        }
        0.5 * (low + high)
    }
}

impl Ask for Exact {
    fn batch(&self) -> usize {
        self.batch
    }

    fn len(&self) -> usize {
        DIM
    }

    fn ask(&mut self, question: &Question, answer: &mut Answer) -> Result<()> {
        for row in 0..self.batch {
            let pair = self.process.pair(self.time(question.labels[row]));
            let (of_x0, of_eps) = self.prediction.target(pair).unwrap();
            let gain = self.data.gain(pair);
            let x = &question.x[row * DIM..][..DIM];
            let probe = &question.probe[row * DIM..][..DIM];
            // p = a x_0 + b (x - alpha x_0) / sigma.
            let (of_x, of_mean) = (of_eps / pair.std, of_x0 - of_eps * pair.signal() / pair.std);
            for i in 0..DIM {
                let entry = |j: usize| f64::from(u8::from(i == j)) * of_x + of_mean * gain[i][j];
                let centred = |j: usize| f64::from(x[j]) - pair.signal() * self.data.mean[j];
                let x0: f64 =
                    self.data.mean[i] + (0..DIM).map(|j| gain[i][j] * centred(j)).sum::<f64>();
                answer.prediction[row * DIM + i] = (of_x * f64::from(x[i]) + of_mean * x0) as f32;
                answer.product[row * DIM + i] =
                    (0..DIM).map(|j| entry(j) * f64::from(probe[j])).sum::<f64>() as f32;
            }
        }
        Ok(())
    }
}

/// Points to score: some of the data's own, and one far off.
fn points(count: usize) -> Vec<f64> {
    let mut normal = vec![0f32; count * DIM];
    fill_normal(image_keys(1, 0), Purpose::Init, 0, 0, &mut normal);
    normal.iter().map(|&v| f64::from(v)).collect()
}

#[test]
fn the_ode_gives_the_exact_density_of_correlated_gaussians_under_every_process() {
    let count = 3;
    let x = points(count);
    for process in processes() {
        for prediction in [Prediction::Epsilon, Prediction::VPrediction, Prediction::Sample] {
            let end = process.pair(process.end());
            if end.signal() == 0.0 && prediction == Prediction::Epsilon {
                continue;
            }
            let denoiser = Denoiser::plain(process.clone(), prediction);
            let data = Gaussian::new();
            let prior = |x: &[f64]| data.log_density(end, x);
            let mut ask =
                Exact { data: Gaussian::new(), process: process.clone(), prediction, batch: 2 };
            let images = ode::Images { x: &x, classes: &[], first: 0 };
            let options = ode::Options { probe: Probe::Exact, ..ode::Options::default() };
            let found = ode::score(
                &mut ask,
                &denoiser,
                &*process,
                images,
                Some(&prior),
                &options,
                &mut |_, _| Ok(()),
            )
            .unwrap();
            let start = process.pair(process.earliest());
            let start = Pair { ln_signal: 0.0, std: (-start.half_log_snr()).exp() };
            for (found, x) in found.iter().zip(x.chunks_exact(DIM)) {
                let exact = data.log_density(start, x);
                let off = (found.log_density - exact).abs() / DIM as f64;
                assert!(
                    off < 1e-3,
                    "{} {}: {} instead of {exact}, {} steps",
                    process.name(),
                    prediction.name(),
                    found.log_density,
                    found.steps
                );
            }
        }
    }
}

#[test]
fn an_image_scores_the_same_bits_in_any_batch_and_equal_steps_converge() {
    let process: SharedProcess = Arc::new(Vp::new(0.1, 20.0).unwrap());
    let denoiser = Denoiser::plain(process.clone(), Prediction::Epsilon);
    let x = points(5);
    let end = process.pair(1.0);
    let score = |batch: usize, options: ode::Options| {
        let data = Gaussian::new();
        let prior = |x: &[f64]| data.log_density(end, x);
        let (process, prediction) = (process.clone(), Prediction::Epsilon);
        let mut ask = Exact { data: Gaussian::new(), process: process.clone(), prediction, batch };
        let images = ode::Images { x: &x, classes: &[], first: 9 };
        let watch = &mut |_, _| Ok(());
        ode::score(&mut ask, &denoiser, &*process, images, Some(&prior), &options, watch).unwrap()
    };
    let options = ode::Options { probes: 3, ..ode::Options::default() };
    let one = score(1, options);
    for batch in [2, 5, 7] {
        assert_eq!(score(batch, options), one);
    }
    let exact = ode::Options { probe: Probe::Exact, ..options };
    let adaptive = score(5, exact);
    let off = |steps: usize| -> f64 {
        let fixed = score(2, ode::Options { steps: Some(steps), ..exact });
        assert!(fixed.iter().all(|f| f.steps == steps && f.evaluations == 8 * steps as u64));
        let gap = |(a, b): (&ode::Scored, &ode::Scored)| (a.log_density - b.log_density).abs();
        fixed.iter().zip(&adaptive).map(gap).fold(0.0, f64::max)
    };
    let (coarse, fine) = (off(100), off(200));
    let order = (coarse / fine).log2();
    assert!((1.7..2.4).contains(&order), "Heun's order: {order} ({coarse}, {fine})");
}

/// A network with weights of its own on the CPU, and its products.
fn engine(network: &Network, arena: Option<Vec<f32>>) -> Engine {
    let parameters = network.parameters().unwrap();
    let mut engine = Engine::new(Box::new(Cpu::new(2)), parameters.arena_len(), false).unwrap();
    let arena = arena.unwrap_or_else(|| {
        let mut arena = vec![0f32; parameters.arena_len()];
        fill_normal(image_keys(7, 0), Purpose::Init, 0, 0, &mut arena);
        arena.iter_mut().for_each(|w| *w *= 0.15);
        arena
    });
    engine.set_arena(Space::Parameters, &arena).unwrap();
    engine
}

fn asked(network: &Network, image: [usize; 3], question: &Question) -> Answer {
    let mut engine = engine(network, None);
    let asking = Asking { network, image, batch: question.labels.len(), products: true };
    let mut ask = asking.prepare(&engine).unwrap().load(&mut engine, WeightSet::Raw).unwrap();
    let mut answer = Answer::of(&ask);
    ask.ask(question, &mut answer).unwrap();
    answer
}

#[test]
fn all_rademacher_vectors_average_to_the_exact_trace() {
    let network =
        Network::Mlp(MlpConfig { channels: DIM, hidden: 16, layers: 2, ..MlpConfig::default() });
    let x = [0.4f32, -1.0, 0.2, 0.9];
    let trace = |probes: &[[f32; DIM]]| -> f64 {
        let question = Question {
            x: x.repeat(probes.len()),
            labels: vec![30.0; probes.len()],
            classes: Vec::new(),
            probe: probes.as_flattened().to_vec(),
        };
        let answer = asked(&network, [1, 1, DIM], &question);
        answer.product.iter().zip(&question.probe).map(|(&a, &b)| f64::from(a * b)).sum()
    };
    let signs: Vec<[f32; DIM]> = (0..1 << DIM)
        .map(|bits| std::array::from_fn(|e| if bits >> e & 1 == 0 { 1.0 } else { -1.0 }))
        .collect();
    let units: Vec<[f32; DIM]> =
        (0..DIM).map(|i| std::array::from_fn(|e| f32::from(u8::from(e == i)))).collect();
    let (estimated, exact) = (trace(&signs) / f64::from(1 << DIM), trace(&units));
    assert!(exact.abs() > 1e-2, "a trace that says something: {exact}");
    assert!((estimated - exact).abs() < 1e-6, "{estimated} {exact}");
}

/// The product of a network's Jacobian with a probe against central differences
/// of probe . prediction along random directions.
fn check_product(network: &Network, image: [usize; 3]) {
    let len: usize = image.iter().product();
    let normal = |index: u64| {
        let mut values = vec![0f32; len];
        fill_normal(image_keys(2, index), Purpose::Init, 0, 0, &mut values);
        values
    };
    let (x, probe) = (normal(0), normal(1));
    let at = |x: Vec<f32>| {
        let question =
            Question { x, labels: vec![21.0], classes: Vec::new(), probe: probe.clone() };
        asked(network, image, &question)
    };
    let answer = at(x.clone());
    let objective = |answer: &Answer| -> f64 {
        answer.prediction.iter().zip(&probe).map(|(&p, &z)| f64::from(p) * f64::from(z)).sum()
    };
    let scale = answer.product.iter().map(|p| f64::from(*p).powi(2)).sum::<f64>().sqrt();
    for index in 3..6 {
        let direction = normal(index);
        let slope: f64 =
            answer.product.iter().zip(&direction).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
        let moved =
            |h: f32| objective(&at(x.iter().zip(&direction).map(|(x, d)| x + h * d).collect()));
        let h = 1e-2;
        let found = (moved(h) - moved(-h)) / (2.0 * f64::from(h));
        assert!((found - slope).abs() < 5e-3 * scale, "{found} {slope} of {scale}");
    }
}

#[test]
fn products_with_a_whole_networks_jacobian_match_finite_differences() {
    let config = serde_json::json!({
        "in_channels": 2, "out_channels": 2, "block_out_channels": [8, 16],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 8, "sample_size": 8,
    });
    check_product(&Network::UNet(UNetConfig::from_json(&config).unwrap()), [8, 8, 2]);
    let mlp = MlpConfig { channels: 6, hidden: 16, layers: 1, ..MlpConfig::default() };
    check_product(&Network::Mlp(mlp), [1, 1, 6]);
}

#[test]
fn the_ode_gives_the_density_of_a_data_set_through_its_denoisers_derivative() {
    // A mixture of as many normals as images: its density is known at every noise.
    let (images, len) = (9, 6);
    let mut data = vec![0f32; images * len];
    fill_normal(image_keys(5, 0), Purpose::Init, 0, 0, &mut data);
    let network = Network::Empirical(EmpiricalConfig { images, height: 1, width: 3, channels: 2 });
    let parameters = network.parameters().unwrap();
    let mut arena = vec![0f32; parameters.arena_len()];
    arena[..data.len()].copy_from_slice(&data);
    let log_density = |pair: Pair, x: &[f64]| -> f64 {
        let of_image = |image: &[f32]| {
            let centred: Vec<f64> =
                x.iter().zip(image).map(|(x, &v)| x - pair.signal() * f64::from(v)).collect();
            ode::normal(&centred, pair.std)
        };
        let all: Vec<f64> = data.chunks_exact(len).map(of_image).collect();
        let largest = all.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
        largest + (all.iter().map(|l| (l - largest).exp()).sum::<f64>() / images as f64).ln()
    };
    let processes: [SharedProcess; 2] = [
        Arc::new(Vp::new(0.1, 20.0).unwrap().with_earliest(0.3)),
        Arc::new(Edm::new(0.4, 40.0).unwrap()),
    ];
    let x: Vec<f64> = data[..3 * len].iter().map(|&v| 0.9 * f64::from(v) + 0.2).collect();
    for process in processes {
        let end = process.pair(process.end());
        let prior = |x: &[f64]| log_density(end, x);
        let mut engine = engine(&network, Some(arena.clone()));
        let asking = Asking { network: &network, image: [1, 3, 2], batch: 2, products: true };
        let mut ask = asking.prepare(&engine).unwrap().load(&mut engine, WeightSet::Raw).unwrap();
        let images = ode::Images { x: &x, classes: &[], first: 0 };
        let options = ode::Options { probe: Probe::Exact, ..ode::Options::default() };
        let (denoiser, watch) = (empirical::denoiser(), &mut |_, _| Ok(()));
        let found =
            ode::score(&mut ask, &denoiser, &*process, images, Some(&prior), &options, watch)
                .unwrap();
        let start = process.pair(process.earliest());
        let start = Pair { ln_signal: 0.0, std: (-start.half_log_snr()).exp() };
        for (found, x) in found.iter().zip(x.chunks_exact(len)) {
            let exact = log_density(start, x);
            let off = (found.log_density - exact).abs() / len as f64;
            assert!(off < 1e-3, "{}: {} instead of {exact}", process.name(), found.log_density);
        }
    }
}

/// The exact network of one point: eps = (x - alpha m) / sigma.
struct Point {
    at: Vec<f32>,
    process: SharedProcess,
    batch: usize,
}

impl Ask for Point {
    fn batch(&self) -> usize {
        self.batch
    }

    fn len(&self) -> usize {
        self.at.len()
    }

    fn ask(&mut self, question: &Question, answer: &mut Answer) -> Result<()> {
        let len = self.len();
        for (row, &label) in question.labels.iter().enumerate() {
            let pair = self.process.pair(label + 1.0);
            for (e, &m) in self.at.iter().enumerate() {
                let x = f64::from(question.x[row * len + e]);
                let eps = (x - pair.signal() * f64::from(m)) / pair.std;
                answer.prediction[row * len + e] = eps as f32;
            }
        }
        Ok(())
    }
}

fn bound_of_a_point(
    options: bound::Options,
    count: usize,
    batch: usize,
) -> (Vec<bound::Terms>, Vec<Pair>) {
    let table = Table::new(BetaSchedule::Linear.betas(60, 1e-3, 0.3)).unwrap();
    let process: SharedProcess = Arc::new(table);
    let at = vec![-1.0, -0.5, 0.25, 1.0];
    let mut ask = Point { at: at.clone(), process: process.clone(), batch };
    let denoiser = Denoiser::plain(process.clone(), Prediction::Epsilon);
    let pairs = bound::chain(&*process, 0);
    let x = at.repeat(count);
    let images = bound::Images { x: &x, classes: &[], first: 3 };
    let watch = &mut |_, _| Ok(());
    let terms =
        bound::score(&mut ask, &denoiser, &*process, &pairs, images, &options, watch).unwrap();
    (terms, pairs)
}

#[test]
fn the_bound_of_one_point_equals_its_closed_form() {
    let at = [-1.0, -0.5, 0.25, 1.0];
    for variance in [Variance::Small, Variance::Large] {
        let options = bound::Options { variance, clip: None, terms: None, levels: 17, seed: 0 };
        let (terms, pairs) = bound_of_a_point(options, 1, 7);
        let states = pairs.len() - 1;
        let (end, decoder) = (pairs[states], vlb::Decoder::new(17).unwrap());
        // KL(N(alpha m, sigma^2) || N(0, 1)).
        let prior: f64 = at
            .iter()
            .map(|m| 0.5 * (end.signal().powi(2) * m * m + end.variance() - 1.0) - end.std.ln())
            .sum();
        let posterior = |s: Pair, t: Pair| {
            let step = t.variance() - (t.signal() / s.signal()).powi(2) * s.variance();
            (step * s.variance() / t.variance(), step)
        };
        let kl = |i: usize| {
            let (small, large) = posterior(pairs[i - 1], pairs[i]);
            let ratio = if variance == Variance::Small { 1.0 } else { small / large };
            4.0 * 0.5 * (ratio - 1.0 - ratio.ln())
        };
        let steps: f64 = (2..=states).map(kl).sum();
        let ln_variance = match variance {
            Variance::Large => posterior(pairs[0], pairs[1]).1.ln(),
            _ => posterior(pairs[1], pairs[2]).0.ln(),
        };
        let bins: f64 = at.iter().map(|&m| decoder.score(m, m, ln_variance).nats).sum();
        let found = terms[0];
        for (found, exact) in [(found.prior, prior), (found.steps, steps), (found.decoder, bins)] {
            assert!((found - exact).abs() < 1e-5 * (1.0 + exact), "{variance:?} {found} {exact}");
        }
        assert_eq!(found.total(), found.prior + found.steps + found.decoder);
    }
}

/// A network that knows one point and answers a variance of its own.
struct WithVariance {
    point: Point,
    answer: fn(f64) -> f32,
}

impl Ask for WithVariance {
    fn batch(&self) -> usize {
        self.point.batch()
    }

    fn len(&self) -> usize {
        self.point.len()
    }

    fn learns_variance(&self) -> bool {
        true
    }

    fn ask(&mut self, question: &Question, answer: &mut Answer) -> Result<()> {
        let len = self.len();
        for (row, &label) in question.labels.iter().enumerate() {
            answer.variance[row * len..][..len].fill((self.answer)(label));
        }
        self.point.ask(question, answer)
    }
}

#[test]
fn a_network_that_answers_a_variance_is_scored_with_it() {
    let table = || Table::new(BetaSchedule::Linear.betas(60, 1e-3, 0.3)).unwrap();
    let process: SharedProcess = Arc::new(table());
    let options =
        |variance| bound::Options { variance, clip: None, terms: None, levels: 17, seed: 0 };
    let scored = |variance, answer: fn(f64) -> f32| {
        let at = vec![-1.0, -0.5, 0.25, 1.0];
        let point = Point { at: at.clone(), process: process.clone(), batch: 8 };
        let mut ask = WithVariance { point, answer };
        let denoiser = Denoiser::plain(process.clone(), Prediction::Epsilon);
        let pairs = bound::chain(&*process, 0);
        let images = bound::Images { x: &at, classes: &[], first: 3 };
        let (options, watch) = (options(variance), &mut |_, _| Ok(()));
        bound::score(&mut ask, &denoiser, &*process, &pairs, images, &options, watch)
    };
    // The forward step's variance: 1 - alpha_t.
    let beta = |label: f64| (1e-3 + (0.3 - 1e-3) * label / 59.0) as f32;
    let expected = bound_of_a_point(options(Variance::Large), 1, 8).0[0].total();
    for found in [scored(Variance::Learned, beta), scored(Variance::LearnedRange, |_| 1.0)] {
        let found = found.unwrap()[0].total();
        assert!((found / expected - 1.0).abs() < 1e-5, "{found} {expected}");
    }
    let error = scored(Variance::Learned, |_| -0.1).unwrap_err().to_string();
    assert!(error.contains("image 3"), "{error}");
}

#[test]
fn a_stratified_bound_is_unbiased_and_independent_of_the_batch() {
    let all = bound::Options {
        variance: Variance::Large,
        clip: Some(1.0),
        terms: None,
        levels: 17,
        seed: 4,
    };
    let exact = bound_of_a_point(all, 1, 8).0[0];
    let some = bound::Options { terms: Some(6), ..all };
    let found = bound_of_a_point(some, 300, 64).0;
    assert_eq!(found, bound_of_a_point(some, 300, 7).0);
    let steps: Vec<f64> = found.iter().map(|t| t.steps).collect();
    let estimate = langevin::diffusion::likelihood::Estimate::of(&steps);
    let error = estimate.standard_error.unwrap();
    assert!(error > 0.0, "the terms differ");
    assert!((estimate.mean - exact.steps).abs() < 4.0 * error, "{estimate} {}", exact.steps);
    // More terms than there are: all of them.
    assert_eq!(bound_of_a_point(bound::Options { terms: Some(59), ..all }, 1, 8).0[0], exact);
}

#[test]
fn what_cannot_be_scored_is_refused_with_its_reason() {
    let options =
        bound::Options { variance: Variance::Small, clip: None, terms: None, levels: 0, seed: 0 };
    let process: SharedProcess = Arc::new(Table::new(vec![0.1, 0.2]).unwrap());
    let mut ask = Point { at: vec![0.0], process: process.clone(), batch: 1 };
    let denoiser = Denoiser::plain(process.clone(), Prediction::Epsilon);
    let pairs = bound::chain(&*process, 0);
    let mut fails = |options: bound::Options| {
        let images = bound::Images { x: &[0.0], classes: &[], first: 0 };
        let watch = &mut |_, _| Ok(());
        bound::score(&mut ask, &denoiser, &*process, &pairs, images, &options, watch)
            .unwrap_err()
            .to_string()
    };
    assert!(fails(options).contains("levels"));
    let discrete = bound::Options { levels: 17, ..options };
    assert!(fails(bound::Options { terms: Some(0), ..discrete }).contains("--terms"));
    let learned = bound::Options { variance: Variance::LearnedRange, ..discrete };
    assert!(fails(learned).contains("learned_range"));
    for options in [
        ode::Options { tolerance: 0.0, ..ode::Options::default() },
        ode::Options { steps: Some(0), ..ode::Options::default() },
        ode::Options { probes: 0, ..ode::Options::default() },
    ] {
        assert!(options.validate().is_err(), "{options:?}");
    }
}

#[test]
fn a_continuous_process_is_cut_into_falling_snrs_from_the_data_to_its_end() {
    for process in processes() {
        let pairs = bound::chain(&*process, 30);
        assert!(process.steps().is_some() || pairs.len() == 31);
        assert!(pairs.windows(2).all(|w| w[1].half_log_snr() < w[0].half_log_snr()));
        assert_eq!(*pairs.last().unwrap(), process.pair(process.end()), "{}", process.name());
        assert_eq!(
            pairs[0].variance() == 0.0,
            process.pair(0.0).std == 0.0 || process.steps().is_none()
        );
    }
}
