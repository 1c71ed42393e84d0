//! Editing and inverse problems on Gaussian data with the exact network, where
//! conditional means and variances are known; and DPS's gradient through a network.

use langevin::backend::cpu::Cpu;
use langevin::backend::{Engine, WeightSet};
use langevin::diffusion::denoiser::{Denoiser, Prediction};
use langevin::diffusion::edit::dps::{self, Dps, Operator};
use langevin::diffusion::edit::invert;
use langevin::diffusion::edit::repaint::{self, RePaint};
use langevin::diffusion::edit::sdedit::{self, SdEdit};
use langevin::diffusion::process::Vp;
use langevin::diffusion::sampler::run::{KNOWN, MASK, Request, Settings};
use langevin::diffusion::sampler::{Options, Setup};
use langevin::diffusion::scheduler::SchedulerConfig;
use langevin::model::{self, Network, UNetConfig};
use langevin::plan::Space;
use langevin::random::{Purpose, fill_normal, image_keys};

use crate::exact::{Gaussian, run, settings};

const CHANNELS: usize = 64;
const LEN: usize = 2 * CHANNELS;

fn gaussian(rho: f64) -> Gaussian {
    Gaussian::new(Vp::new(0.1, 20.0).unwrap(), false, rho)
}

fn steps(steps: usize) -> Options {
    // Gaussian data has no bounds.
    Options { steps: Some(steps), clip: Some(f64::INFINITY), ..Options::default() }
}

fn normals(len: usize) -> Vec<f32> {
    let mut all = vec![0f32; len];
    fill_normal(image_keys(21, 0), Purpose::Data, 0, 0, &mut all);
    all
}

/// Of the second pixel b given the first a, both `[count, CHANNELS]`: slope of b on
/// a, and variance of b - rho a.
fn conditional(images: &[f32], known: &[f32], rho: f64) -> (f64, f64) {
    let (mut ab, mut aa, mut rest) = (0.0, 0.0, 0.0);
    for (image, known) in images.chunks_exact(LEN).zip(known.chunks_exact(LEN)) {
        for c in 0..CHANNELS {
            let (a, b) = (f64::from(known[c]), f64::from(image[CHANNELS + c]));
            ab += a * b;
            aa += a * a;
            rest += (b - rho * a).powi(2);
        }
    }
    (ab / aa, rest / (known.len() / 2) as f64)
}

/// 1 on the first pixel of each pair.
fn first_pixels(count: usize) -> Vec<f32> {
    (0..count * LEN).map(|i| f32::from(u8::from(i % LEN < CHANNELS))).collect()
}

#[test]
fn repaint_keeps_known_pixels_and_nears_the_conditional_mean_and_variance() {
    let (count, rho) = (24, 0.8);
    let gaussian = gaussian(rho);
    let (known, mask) = (normals(count * LEN), first_pixels(count));
    let images = [(KNOWN, known.as_slice()), (MASK, mask.as_slice())];
    let draw = |resamples, batch, first: usize, count: usize| {
        let options = RePaint { resamples, jump_length: 5, eta: 1.0 };
        let program = repaint::program(&gaussian.setup(steps(40)), &options).unwrap();
        let part = first * LEN..(first + count) * LEN;
        let images = images.map(|(name, values)| (name, &values[part.clone()]));
        let request = Request { first: first as u64, count, images: &images, ..Request::default() };
        let drawn = gaussian.draw(&program, batch, CHANNELS, &request).unwrap();
        // Seven jumps of 5 levels from 1, 6, .., 31, each resamples - 1 times.
        let jumps = 7 * 5 * (resamples - 1);
        assert_eq!(program.evaluations(), 40 + jumps);
        drawn.images
    };
    let [once, often] = [1, 12].map(|resamples| {
        let drawn = draw(resamples, count, 0, count);
        for ((x, known), &m) in drawn.iter().zip(&known).zip(&mask) {
            assert!(m == 0.0 || x == known, "a known pixel is {x}, not {known}");
        }
        let (slope, variance) = conditional(&drawn, &known, rho);
        println!(
            "{resamples} resamples: slope {slope:.3} (exact {rho}), variance {variance:.3} \
             (exact {:.3})",
            1.0 - rho * rho
        );
        (slope, variance)
    });
    // Its bias at these settings, from tests/golden/edit_bias.py.
    assert!((often.0 - 0.72).abs() < 0.06 && (often.1 - 0.31).abs() < 0.06, "{often:?}");
    // Without resampling: too little regard to what is known.
    assert!((once.0 - 0.475).abs() < 0.06 && (once.1 - 0.52).abs() < 0.1, "{once:?}");
    // And an image does not depend on its batch.
    let all = draw(2, 4, 0, 5);
    assert_eq!(all[3 * LEN..4 * LEN], draw(2, 1, 3, 1));
}

#[test]
fn sdedit_draws_from_the_posterior_of_the_noised_image() {
    let gaussian = gaussian(0.0);
    let count = 32;
    let image = normals(LEN).repeat(count);
    let mut last = f64::INFINITY;
    for strength in [0.2, 0.5, 1.0] {
        let options = SdEdit { strength, eta: 1.0 };
        let program = sdedit::program(&gaussian.setup(steps(150)), &options).unwrap();
        assert_eq!(program.evaluations(), (150.0 * strength) as usize);
        let request = Request { count, start: Some(&image), ..Request::default() };
        let drawn = gaussian.draw(&program, 8, CHANNELS, &request).unwrap().images;
        let pair = program.stages[1].pair;
        let total = gaussian.totals(pair)[0];
        // x_t = alpha y + sigma z, and x_0 given x_t has mean alpha x_t / total.
        let slope_exact = pair.signal().powi(2) / total;
        let noise = (pair.signal() / total * pair.std).powi(2) + pair.variance() / total;
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
        };
        let slope = dot(&drawn, &image) / dot(&image, &image);
        let rest: f64 = drawn
            .iter()
            .zip(&image)
            .map(|(&x, &y)| (f64::from(x) - slope_exact * f64::from(y)).powi(2))
            .sum::<f64>()
            / image.len() as f64;
        println!(
            "strength {strength}: slope {slope:.3} (exact {slope_exact:.3}), variance {rest:.3} \
             (exact {noise:.3})"
        );
        assert!((slope - slope_exact).abs() < 0.05, "{slope} {slope_exact}");
        assert!((rest - noise).abs() < 0.1, "{rest} {noise}");
        assert!(slope < last);
        last = slope;
    }
}

#[test]
fn inversion_and_ddim_return_the_image_better_with_steps_and_with_iterations() {
    let gaussian = gaussian(0.9);
    let count = 3;
    let images = normals(count * LEN);
    let error = |count_of_steps, iterations| {
        let setup = gaussian.setup(steps(count_of_steps));
        let there = invert::program(&setup, iterations).unwrap();
        assert_eq!(there.evaluations(), count_of_steps * iterations);
        let request = Request { count, start: Some(&images), ..Request::default() };
        let noise = gaussian.draw(&there, 2, CHANNELS, &request).unwrap().images;
        let back = invert::back(&setup).unwrap();
        let request = Request { start: Some(&noise), ..request };
        let again = gaussian.draw(&back, 2, CHANNELS, &request).unwrap().images;
        let off = again.iter().zip(&images).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        let error = (off / images.len() as f64).sqrt();
        println!("{count_of_steps} steps, {iterations} iterations: error {error:.2e}");
        error
    };
    let errors = [40, 80, 160].map(|steps| error(steps, 1));
    assert!(errors[1] < 0.7 * errors[0] && errors[2] < 0.7 * errors[1], "{errors:?}");
    assert!(errors[2] < 0.25, "{errors:?}");
    let refined = error(80, 6);
    assert!(refined < 0.1 * errors[1], "{refined} {errors:?}");
}

fn dps_request<'a>(
    gaussian: &Gaussian,
    options: &Dps,
    count_of_steps: usize,
    batch: usize,
    request: Request<'a>,
) -> Vec<f32> {
    let program = dps::program(&gaussian.setup(steps(count_of_steps)), options).unwrap();
    let settings = settings(batch, &[1, 2, CHANNELS]);
    let operator = Operator::mask(1, 2);
    let plan =
        dps::plan(&program, &settings, &operator, |plan, inputs| gaussian.network(plan, inputs))
            .unwrap();
    let constants = [Gaussian::constants().as_slice(), &operator.constants()].concat();
    let request = Request { constants: &constants, ..request };
    run(&program, &settings, plan, &request).unwrap().images
}

#[test]
fn dps_nears_the_conditional_mean_and_variance_within_its_bias() {
    let (count, rho) = (16, 0.8);
    let gaussian = gaussian(rho);
    let (measured, mask) = (normals(count * LEN), first_pixels(count));
    let images = [(dps::name::MEASURED, measured.as_slice()), (dps::name::MASK, mask.as_slice())];
    let draw = |scale| {
        let options = Dps { scale, eta: 1.0 };
        let request = Request { count, images: &images, ..Request::default() };
        let drawn = dps_request(&gaussian, &options, 200, count, request);
        let residual: f64 = drawn
            .iter()
            .zip(&measured)
            .zip(&mask)
            .map(|((x, y), m)| f64::from(m * (x - y)).powi(2))
            .sum::<f64>()
            / (drawn.len() / 2) as f64;
        let (slope, variance) = conditional(&drawn, &measured, rho);
        println!(
            "scale {scale}: mean square residual {residual:.1e}, slope {slope:.3} (exact {rho}), \
             variance {variance:.3} (exact 0.360)"
        );
        (residual, slope, variance)
    };
    let good = draw(0.3);
    // Its bias at these settings, from tests/golden/edit_bias.py.
    assert!(good.0 < 1e-3, "{good:?}");
    assert!((good.1 - 0.73).abs() < 0.06 && (good.2 - 0.37).abs() < 0.08, "{good:?}");
    // Too large a step: too sure of what it sees, and never at rest.
    let large = draw(3.0);
    assert!((0.03..0.045).contains(&large.0) && (large.1 - 0.98).abs() < 0.06, "{large:?}");
    // No step: no regard to the measurement.
    let none = draw(0.0);
    assert!(none.1.abs() < 0.1, "{none:?}");
}

#[test]
fn dps_gives_an_image_the_same_bits_in_any_batch() {
    let gaussian = gaussian(0.5);
    let (measured, mask) = (normals(3 * LEN), first_pixels(3));
    let draw = |batch, first: usize, count: usize| {
        let part = first * LEN..(first + count) * LEN;
        let images = [
            (dps::name::MEASURED, &measured[part.clone()]),
            (dps::name::MASK, &mask[part.clone()]),
        ];
        let request = Request { first: first as u64, count, images: &images, ..Request::default() };
        dps_request(&gaussian, &Dps::default(), 10, batch, request)
    };
    assert_eq!(draw(2, 0, 3)[2 * LEN..], draw(1, 2, 1));
}

/// A U-Net with attention, so that the derivative by its input passes all its
/// kernels; corrected, so that its input is not the state.
#[test]
fn dps_gradient_matches_finite_differences_through_a_u_net() {
    let config: UNetConfig = serde_json::from_value(serde_json::json!({
        "sample_size": 6, "in_channels": 2, "out_channels": 2, "block_out_channels": [4, 8],
        "layers_per_block": 1, "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"], "norm_num_groups": 2,
        "attention_head_dim": 4
    }))
    .unwrap();
    let network = Network::UNet(config);
    let parameters = network.parameters().unwrap();
    let mut weights = vec![0f32; parameters.arena_len()];
    fill_normal(image_keys(1, 0), Purpose::Init, 0, 0, &mut weights);
    weights.iter_mut().for_each(|w| *w *= 0.3);
    let process: langevin::diffusion::process::SharedProcess =
        std::sync::Arc::new(Vp::new(0.1, 20.0).unwrap());
    let (count, len) = (2, 72);
    for (operator, correction) in [
        (Operator::blur(6, 6, 1.0).unwrap(), false),
        (Operator::downsample(6, 6, 2).unwrap(), true),
    ] {
        let denoiser =
            Denoiser { correction, ..Denoiser::plain(process.clone(), Prediction::Epsilon) };
        let setup =
            Setup::new(denoiser, process.clone(), &SchedulerConfig::default(), steps(5)).unwrap();
        let program = dps::program(&setup, &Dps::default()).unwrap();
        assert_eq!(program.slots, if correction { 3 } else { 2 });
        let settings = Settings { ..settings(count, &[6, 6, 2]) };
        let plan = dps::plan(&program, &settings, &operator, |plan, inputs| {
            network.build(
                plan,
                &model::NetworkInputs { x: inputs.x, t: inputs.label, class: None, keys: None },
            )
        })
        .unwrap();
        let mut engine = Engine::new(Box::new(Cpu::new(2)), parameters.arena_len(), false).unwrap();
        engine.set_arena(Space::Parameters, &weights).unwrap();
        let lowered = engine.lower(plan).unwrap();
        let loaded = engine.load(lowered, WeightSet::Raw).unwrap();
        engine.refresh(&loaded).unwrap();
        let x = normals(count * len);
        let measured = operator.apply(&x.iter().map(|x| 0.3 * x).collect::<Vec<_>>(), 2);
        let stage = 3;
        let row = &program.stages[stage];
        // The residual's norm and its gradient by the state.
        let mut evaluate = |x: &[f32]| {
            let tensor = |name: &str| loaded.tensor(name).unwrap();
            for (name, values) in operator.constants() {
                engine.set(&loaded, tensor(name), values).unwrap();
            }
            engine.set(&loaded, tensor(dps::name::MEASURED), &measured).unwrap();
            engine.set(&loaded, tensor("sampler.table"), &program.table(1.0)).unwrap();
            engine.set_u32(&loaded, tensor("sampler.stage"), &[stage as u32]).unwrap();
            engine.set_u32(&loaded, tensor("sampler.keys"), &vec![0; 4 * count]).unwrap();
            engine.set(&loaded, tensor("sampler.slot.0"), x).unwrap();
            engine.set(&loaded, tensor("sampler.label"), &vec![row.label as f32; count]).unwrap();
            if correction {
                let seen: Vec<f32> = x.iter().map(|x| x * row.input_scale as f32).collect();
                engine.set(&loaded, tensor("sampler.input"), &seen).unwrap();
            }
            engine.run(&loaded).unwrap();
            let mut norms = vec![0f32; count];
            engine.get(&loaded, tensor("sampler.residual_norm"), &mut norms).unwrap();
            let mut gradient = vec![0f32; count * len];
            engine.get(&loaded, tensor("d_sampler.slot.0"), &mut gradient).unwrap();
            if correction {
                let mut by_input = gradient.clone();
                engine.get(&loaded, tensor("d_sampler.input"), &mut by_input).unwrap();
                for (g, by_input) in gradient.iter_mut().zip(by_input) {
                    *g += row.input_scale as f32 * by_input;
                }
            }
            (norms, gradient)
        };
        let (_, gradient) = evaluate(&x);
        assert!(gradient.iter().any(|&g| g.abs() > 1e-3));
        for direction in 0..3 {
            let mut along = vec![0f32; count * len];
            fill_normal(image_keys(5, direction), Purpose::Data, 0, 0, &mut along);
            let h = 2e-3;
            let moved = |sign: f32| -> Vec<f32> {
                x.iter().zip(&along).map(|(x, d)| x + sign * h * d).collect()
            };
            let (after, before) = (evaluate(&moved(1.0)).0, evaluate(&moved(-1.0)).0);
            for i in 0..count {
                let difference = f64::from(after[i] - before[i]) / (2.0 * f64::from(h));
                let part = i * len..(i + 1) * len;
                let exact: f64 = gradient[part.clone()]
                    .iter()
                    .zip(&along[part])
                    .map(|(&g, &d)| f64::from(g) * f64::from(d))
                    .sum();
                let scale: f64 = gradient.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
                assert!(
                    (difference - exact).abs() < 0.01 * scale,
                    "image {i}, correction {correction}: {difference} {exact} of {scale}"
                );
            }
        }
    }
}

#[test]
fn operators_are_what_their_names_say() {
    let image: Vec<f32> = (0..4 * 6 * 2).map(|i| i as f32).collect();
    let half = Operator::from_name("downsample:2", 4, 6).unwrap();
    assert_eq!(half.shape(), [2, 3]);
    let y = half.apply(&image, 2);
    // The first square holds (0, 0), (0, 1), (1, 0), (1, 1) of channel 0: 0, 2, 12, 14.
    assert_eq!((y.len(), y[0], y[1]), (12, 7.0, 8.0));
    let blur = Operator::from_name("blur:0.8", 4, 6).unwrap();
    let flat = blur.apply(&[0.5; 48], 2);
    assert!(flat.iter().all(|v| (v - 0.5).abs() < 1e-6), "unit sum, also at the edges");
    assert!(Operator::from_name("mask", 4, 6).unwrap().masked);
    assert_eq!(Operator::mask(4, 6).apply(&image, 2), image);
    for (name, reason) in [
        ("downsample:5", "does not divide"),
        ("downsample:x", "none of"),
        ("blur:0", "above 0"),
        ("mask:2", "none of"),
        ("radon", "none of"),
    ] {
        let error = Operator::from_name(name, 4, 6).unwrap_err().to_string();
        assert!(error.contains(reason), "{name}: {error}");
    }
}

#[test]
fn wrong_choices_are_refused_with_their_reason() {
    let setup = gaussian(0.0).setup(steps(5));
    let repaint = |options| repaint::program(&setup, &options).unwrap_err().to_string();
    let default = RePaint::default();
    assert!(repaint(RePaint { eta: 1.5, ..default }).contains("--eta"));
    assert!(repaint(RePaint { resamples: 0, ..default }).contains("--resamples"));
    assert!(repaint(RePaint { jump_length: 0, ..default }).contains("--jump-length"));
    for strength in [0.0, 1.1, f64::NAN] {
        let error = sdedit::program(&setup, &SdEdit { strength, eta: 1.0 }).unwrap_err();
        assert!(error.to_string().contains("--strength"));
    }
    assert!(invert::program(&setup, 0).unwrap_err().to_string().contains("--iterations"));
    let scale = dps::program(&setup, &Dps { scale: -1.0, eta: 1.0 }).unwrap_err().to_string();
    assert!(scale.contains("--scale"));
}
