//! Samplers that decide image by image: predictor-corrector, annealed Langevin,
//! adaptive Runge-Kutta; and stages without an evaluation.

use langevin::diffusion::denoiser::{Denoiser, Prediction};
use langevin::diffusion::process::{Cosine, Edm, Flow, Pair, Process, SubVp, Ve, Vp};
use langevin::diffusion::sampler::run::{NetworkInputs, Request, step_plan};
use langevin::diffusion::sampler::{Control, Kind, Options, Program, Setup};
use langevin::diffusion::schedule::BetaSchedule;
use langevin::diffusion::scheduler::{FinalSigmas, SchedulerConfig};
use langevin::plan::DType;
use langevin::random::{Purpose, fill_normal, image_keys};

use crate::exact::{Gaussian, power, run, settings};

fn gaussians(rho: f64) -> [Gaussian; 2] {
    [
        Gaussian::new(Vp::new(0.1, 20.0).unwrap(), false, rho),
        Gaussian::new(Ve::new(0.01, 50.0).unwrap(), true, rho),
    ]
}

fn normals(count: usize, len: usize) -> Vec<f32> {
    let mut all = vec![0f32; count * len];
    for (i, image) in (0..).zip(all.chunks_exact_mut(len)) {
        fill_normal(image_keys(3, i), Purpose::SampleStart, 0, 0, image);
    }
    all
}

/// Images `[1, 2, c]` as coordinates along (1, 1) and (1, -1), over sqrt(2).
fn rotated(images: &[f32], channels: usize) -> [Vec<f64>; 2] {
    let mut axes = [Vec::new(), Vec::new()];
    for image in images.chunks_exact(2 * channels) {
        for c in 0..channels {
            let (a, b) = (f64::from(image[c]), f64::from(image[channels + c]));
            axes[0].push((a + b) / 2f64.sqrt());
            axes[1].push((a - b) / 2f64.sqrt());
        }
    }
    axes
}

#[test]
fn rk45_follows_the_exact_ode_of_correlated_gaussians_within_its_tolerance() {
    let (count, channels) = (5, 3);
    let start = normals(count, 2 * channels);
    for gaussian in gaussians(0.9) {
        let mut last: Option<(f64, u64)> = None;
        for tolerance in [1e-2, 1e-3, 1e-4, 1e-5] {
            let options = Options {
                atol: Some(tolerance),
                rtol: Some(tolerance),
                end: Some(FinalSigmas::SigmaMin),
                ..Options::default()
            };
            let program = Program::new(Kind::OdeRk45, &gaussian.setup(options)).unwrap();
            let request = Request { count, start: Some(&start), ..Request::default() };
            let found = gaussian.draw(&program, 2, channels, &request).unwrap();
            let process = &gaussian.process;
            let (first, end) = (process.pair(process.end()), process.pair(process.earliest()));
            let begun: Vec<f32> = start.iter().map(|&x| x * process.prior_std() as f32).collect();
            let (from, to) = (rotated(&begun, channels), rotated(&found.images, channels));
            let mut error = 0f64;
            for axis in 0..2 {
                let factor = (gaussian.totals(end)[axis] / gaussian.totals(first)[axis]).sqrt();
                for (from, to) in from[axis].iter().zip(&to[axis]) {
                    error = error.max((to - factor * from).abs());
                }
            }
            println!(
                "{} tolerance {tolerance:e}: error {error:.1e}, {} evaluations of {count} images",
                process.name(),
                found.evaluations
            );
            // The last digits are those of single precision.
            assert!(error < 20.0 * tolerance + 2e-5, "{} {tolerance}: {error}", process.name());
            let evaluations = found.evaluations;
            assert!((1 + 6 * 5..500).contains(&(evaluations / count as u64)), "{evaluations}");
            if let Some((_, fewer)) = last {
                assert!(evaluations >= fewer, "{evaluations} {fewer}");
            }
            last = Some((error, evaluations));
        }
        assert!(last.unwrap().0 < 1.5e-4);
    }
}

/// Largest error, and evaluations, of ODE-RK45 with a tolerance and a largest step.
fn rk45_error(gaussian: &Gaussian, tolerance: f64, most: f64) -> (f64, u64) {
    let (count, channels) = (5, 3);
    let start = normals(count, 2 * channels);
    let options = Options {
        atol: Some(tolerance),
        rtol: Some(tolerance),
        end: Some(FinalSigmas::SigmaMin),
        ..Options::default()
    };
    let mut program = Program::new(Kind::OdeRk45, &gaussian.setup(options)).unwrap();
    let Control::Adaptive(adaptive) = &mut program.control else { panic!("an adaptive program") };
    adaptive.most = most;
    let request = Request { count, start: Some(&start), ..Request::default() };
    let found = gaussian.draw(&program, 2, channels, &request).unwrap();
    let process = &gaussian.process;
    let (first, end) = (process.pair(process.end()), process.pair(process.earliest()));
    let begun: Vec<f32> = start.iter().map(|&x| x * process.prior_std() as f32).collect();
    let (from, to) = (rotated(&begun, channels), rotated(&found.images, channels));
    let mut error = 0f64;
    for axis in 0..2 {
        let factor = (gaussian.totals(end)[axis] / gaussian.totals(first)[axis]).sqrt();
        for (from, to) in from[axis].iter().zip(&to[axis]) {
            error = error.max((to - factor * from).abs());
        }
    }
    (error, found.evaluations / count as u64)
}

#[test]
fn rk45_needs_its_largest_step_to_see_the_hill_of_the_slope() {
    for gaussian in gaussians(0.9) {
        for tolerance in [1e-2, 1e-3] {
            let (free, few) = rk45_error(&gaussian, tolerance, f64::INFINITY);
            let (held, more) = rk45_error(&gaussian, tolerance, 1.5);
            println!(
                "{} tolerance {tolerance:e}: error {free:.1e} with {few} evaluations, {held:.1e} \
                 with {more} where steps are at most 1.5",
                gaussian.process.name()
            );
            assert!(held < 2.0 * tolerance && free > 20.0 * tolerance);
        }
    }
}

#[test]
fn rk45_limits_x0_where_the_sampler_or_the_models_scheduler_says_so() {
    let process: std::sync::Arc<dyn Process> = std::sync::Arc::new(Vp::new(0.1, 20.0).unwrap());
    let drawn = |clip_sample: Option<bool>, clip: Option<f64>| {
        let scheduler = SchedulerConfig { clip_sample, ..SchedulerConfig::default() };
        let options = Options { clip, ..Options::default() };
        let denoiser = Denoiser::plain(process.clone(), Prediction::Sample);
        let setup = Setup::new(denoiser, process.clone(), &scheduler, options).unwrap();
        let program = Program::new(Kind::OdeRk45, &setup).unwrap();
        let settings = settings(2, &[1, 2, 1]);
        // A network that believes in one point outside the range.
        let plan =
            step_plan(&program, &settings, |plan, inputs| Ok(plan.scale(inputs.x, 0.0, 3.0)));
        let request = Request { count: 2, ..Request::default() };
        run(&program, &settings, plan.unwrap(), &request).unwrap().images
    };
    let all_at = |images: Vec<f32>, at: f32| images.iter().all(|x| (x - at).abs() < 1e-3);
    assert!(all_at(drawn(None, None), 3.0));
    assert!(all_at(drawn(Some(true), None), 1.0));
    assert!(all_at(drawn(Some(true), Some(f64::INFINITY)), 3.0));
    assert!(all_at(drawn(None, Some(2.0)), 2.0));
}

#[test]
fn by_noise_level_a_capped_cosine_table_is_entered_before_its_last_leap() {
    let scheduler = SchedulerConfig {
        num_train_timesteps: 250,
        beta_schedule: BetaSchedule::SquaredcosCapV2,
        ..SchedulerConfig::default()
    };
    let level = |kind, options| {
        let setup = Setup::of_scheduler(&scheduler, options).unwrap();
        let program = Program::new(kind, &setup).unwrap();
        let from = match &program.control {
            Control::Adaptive(adaptive) => adaptive.from.exp(),
            _ => program.stages[0].pair.std,
        };
        (from, program.notes.concat())
    };
    for kind in [Kind::Edm, Kind::OdeRk45] {
        let (from, note) = level(kind, Options::default());
        assert!((from - 160.41).abs() < 0.01 && note.contains("32-fold"), "{from} {note}");
        let chosen = Options { sigma_max: Some(20.0), ..Options::default() };
        let (from, note) = level(kind, chosen);
        // ODE-RK45 starts at the nearest state.
        assert!((from / 20.0 - 1.0).abs() < 0.12 && note.is_empty(), "{from} {note}");
        let all = Options { sigma_max: Some(5000.0), ..Options::default() };
        assert!(level(kind, all).0 > 4000.0);
    }
}

#[test]
fn rk45_keeps_one_point_at_a_constant_number_of_stds_under_every_process() {
    const MEAN: f32 = 0.6;
    let options = Options { end: Some(FinalSigmas::SigmaMin), ..Options::default() };
    let processes: [std::sync::Arc<dyn Process>; 6] = [
        std::sync::Arc::new(Vp::new(0.1, 20.0).unwrap()),
        std::sync::Arc::new(SubVp::new(0.1, 20.0).unwrap()),
        std::sync::Arc::new(Ve::new(0.01, 50.0).unwrap()),
        std::sync::Arc::new(Edm::new(0.002, 80.0).unwrap()),
        std::sync::Arc::new(Cosine::new(0.008, 1.0).unwrap()),
        std::sync::Arc::new(Flow::new(1.0).unwrap()),
    ];
    let start = normals(3, 4);
    for process in processes {
        let denoiser = Denoiser::plain(process.clone(), Prediction::Sample);
        let setup =
            Setup::new(denoiser, process.clone(), &SchedulerConfig::default(), options).unwrap();
        let program = Program::new(Kind::OdeRk45, &setup).unwrap();
        let settings = settings(3, &[2, 2, 1]);
        let point = |plan: &mut langevin::plan::Plan, inputs: NetworkInputs| {
            Ok(plan.scale(inputs.x, 0.0, MEAN))
        };
        let plan = step_plan(&program, &settings, point).unwrap();
        let request = Request { count: 3, start: Some(&start), ..Request::default() };
        let found = run(&program, &settings, plan, &request).unwrap().images;
        // Where there is no signal the sampler starts next to it.
        let (first, end) = (process.pair(process.end()), process.pair(process.earliest()));
        let number = |x: f64, pair: Pair| (x - pair.signal() * f64::from(MEAN)) / pair.std;
        for (&x, &found) in start.iter().zip(&found) {
            let before = number(f64::from(x) * process.prior_std(), first);
            let after = number(f64::from(found), end);
            // y's error of some 1e-5, in units of the last std.
            let allowed = 1e-3 + 1e-4 / end.std;
            assert!(
                (before - after).abs() < allowed,
                "{}: {before} became {after}, allowed {allowed}",
                process.name()
            );
        }
        // And the jump to the data finds the point.
        let mut setup = setup;
        setup.options = Options::default();
        let program = Program::new(Kind::OdeRk45, &setup).unwrap();
        let plan = step_plan(&program, &settings, point).unwrap();
        let found = run(&program, &settings, plan, &request).unwrap().images;
        assert!(found.iter().all(|x| (x - MEAN).abs() < 1e-4), "{} {found:?}", process.name());
    }
}

#[test]
fn rk45_draws_the_same_bits_and_counts_the_same_evaluations_in_any_batch() {
    let gaussian = &gaussians(0.6)[0];
    let program = Program::new(Kind::OdeRk45, &gaussian.setup(Options::default())).unwrap();
    let draw = |batch, first, count| {
        let request = Request { first, count, ..Request::default() };
        gaussian.draw(&program, batch, 2, &request).unwrap()
    };
    let all = draw(3, 0, 5);
    let mut evaluations = 0;
    for i in 0..5 {
        let alone = draw(1, i as u64, 1);
        assert_eq!(all.images[4 * i..4 * (i + 1)], alone.images);
        evaluations += alone.evaluations;
    }
    assert_eq!(all.evaluations, evaluations);
}

#[test]
fn rk45_says_what_it_cannot_do() {
    let gaussian = &gaussians(0.6)[0];
    let program = |options| Program::new(Kind::OdeRk45, &gaussian.setup(options));
    let few = Options { max_steps: Some(2), ..Options::default() };
    let request = Request { first: 7, count: 1, ..Request::default() };
    let error = gaussian.draw(&program(few).unwrap(), 1, 1, &request).unwrap_err().to_string();
    assert!(error.contains("image 7") && error.contains("sampler.max_steps"), "{error}");
    let plain = program(Options::default()).unwrap();
    let every = Request { trajectory: Some(1), ..request };
    let error = gaussian.draw(&plain, 1, 1, &every).unwrap_err().to_string();
    assert!(error.contains("--trajectory"), "{error}");
    let rows = langevin::diffusion::sampler::run::Settings {
        label: DType::U32,
        ..settings(1, &[1, 2, 1])
    };
    let error = step_plan(&plain, &rows, |_, inputs| Ok(inputs.x)).unwrap_err().to_string();
    assert!(error.contains("ode-heun"), "{error}");
    let broken = |plan: &mut langevin::plan::Plan, inputs: NetworkInputs| {
        Ok(plan.scale(inputs.x, f32::NAN, 0.0))
    };
    let settings = settings(1, &[1, 2, 1]);
    let plan = step_plan(&plain, &settings, broken).unwrap();
    let error = run(&plain, &settings, plan, &request).unwrap_err().to_string();
    assert!(error.contains("image 7"), "{error}");
}

/// Variance after every stage of a one-slot program with the exact network of
/// N(0, v), in as many dimensions as make norms sharp.
fn variances(program: &Program, v: f64) -> Vec<f64> {
    let first = program.stages[0].pair;
    let mut now = program.start_std.powi(2);
    assert!(first.std > 0.0);
    let variances = program.stages.iter().map(|stage| {
        let output = stage.outputs[0].unwrap();
        let pair = stage.pair;
        let total = pair.signal().powi(2) * v + pair.variance();
        // eps = sigma x / total, x_0 = alpha v x / total.
        let (eps, x0) = (pair.std / total, pair.signal() * v / total);
        let q = if stage.langevin { 1.0 / (eps * eps * now) } else { 1.0 };
        let x = output.slots[0] + output.eps * q * eps + output.x0 * x0;
        now = x * x * now + output.noise * output.noise * q;
        now
    });
    variances.collect()
}

#[test]
fn pc_holds_its_recursion_and_converges_to_its_known_bias() {
    for gaussian in gaussians(0.0) {
        let program = |steps| {
            let options = Options { steps: Some(steps), ..Options::default() };
            Program::new(Kind::Pc, &gaussian.setup(options)).unwrap()
        };
        // What is drawn, against the recursion.
        let coarse = program(20);
        assert_eq!(coarse.evaluations(), 20 + 19);
        let request = Request { count: 2, ..Request::default() };
        let drawn = gaussian.draw(&coarse, 2, 2048, &request).unwrap();
        assert_eq!(drawn.evaluations, 2 * 39);
        let expected = *variances(&coarse, 1.0).last().unwrap();
        let found = power(&drawn.images);
        let name = gaussian.process.name();
        println!("{name} 20 steps: variance {found:.4}, recursion {expected:.4}, data 1");
        assert!((found / expected - 1.0).abs() < 0.08, "{name}: {found} {expected}");
        // More steps: to what the corrector at the last level leaves, 1 + snr^2.
        let off = [100, 400, 1600].map(|steps| {
            let bias = variances(&program(steps), 1.0).last().unwrap() - 1.0;
            println!(
                "{name} {steps} steps, snr 0.16: bias {bias:.4}, known {:.4}",
                0.16f64.powi(2)
            );
            (bias - 0.16f64.powi(2)).abs()
        });
        assert!(off[2] < 1e-3 && off[2] < off[0].max(2e-4), "{name}: {off:?}");
    }
}

#[test]
fn pc_corrector_alone_settles_at_the_data_times_one_plus_alpha_snr2() {
    // Many corrections at a level: its stationary variance.
    let gaussian = &gaussians(0.0)[1];
    let options =
        Options { steps: Some(40), n_steps: Some(300), snr: Some(0.3), ..Options::default() };
    let program = Program::new(Kind::Pc, &gaussian.setup(options)).unwrap();
    let variances = variances(&program, 1.0);
    let last = program.stages.iter().rposition(|stage| stage.langevin).unwrap();
    let total = gaussian.totals(program.stages[last].pair)[0];
    assert!((variances[last] / total - 1.09).abs() < 1e-6, "{} {total}", variances[last]);
}

#[test]
fn pc_takes_each_images_norms_unless_told_to_take_the_batchs() {
    let gaussian = &gaussians(0.5)[0];
    let draw = |batch_norm, batch| {
        let options = Options { steps: Some(6), batch_norm, ..Options::default() };
        let program = Program::new(Kind::Pc, &gaussian.setup(options)).unwrap();
        assert_eq!(program.notes.len(), usize::from(batch_norm));
        let request = Request { count: 3, ..Request::default() };
        gaussian.draw(&program, batch, 3, &request).unwrap().images
    };
    assert_eq!(draw(false, 3), draw(false, 1));
    assert_ne!(draw(true, 3), draw(true, 1));
    assert_eq!(draw(true, 1), draw(false, 1));
}

#[test]
fn ald_settles_at_its_levels_variance_over_one_minus_a_quarter_step() {
    for gaussian in gaussians(0.0) {
        for r in [0.05, 0.4] {
            let options =
                Options { steps: Some(4), n_steps: Some(600), step: Some(r), ..Options::default() };
            let setup = gaussian.setup(options);
            let program = Program::new(Kind::Ald, &setup).unwrap();
            let variances = variances(&program, 0.0);
            // Before the last step of the first level, which scales it.
            let level = program.stages[0].pair.variance();
            let expected = level / (1.0 - r / 4.0);
            assert!((variances[598] / expected - 1.0).abs() < 1e-6);
            println!("{} r {r}: bias of the level {:.3}", setup.process.name(), expected / level);
        }
    }
}

#[test]
fn ald_draws_its_recursion_and_converges_with_levels() {
    for gaussian in gaussians(0.0) {
        let program = |steps| {
            let options = Options { steps: Some(steps), ..Options::default() };
            Program::new(Kind::Ald, &gaussian.setup(options)).unwrap()
        };
        let coarse = program(12);
        assert_eq!(coarse.evaluations(), 12 * 5 + 1);
        let request = Request { count: 2, ..Request::default() };
        let found = power(&gaussian.draw(&coarse, 2, 2048, &request).unwrap().images);
        let expected = *variances(&coarse, 1.0).last().unwrap();
        let name = gaussian.process.name();
        println!("{name} 12 levels: variance {found:.4}, recursion {expected:.4}, data 1");
        assert!((found / expected - 1.0).abs() < 0.08, "{name}: {found} {expected}");
        // What a level's few steps leave behind goes away with more levels, at
        // about the inverse of their number.
        let biases = [200, 800, 3200].map(|steps| {
            let options = Options { steps: Some(steps), step: Some(0.2), ..Options::default() };
            let program = Program::new(Kind::Ald, &gaussian.setup(options)).unwrap();
            let bias = variances(&program, 1.0).last().unwrap() - 1.0;
            println!("{name} {steps} levels, step 0.2: bias {bias:.4}");
            bias
        });
        assert!(biases[1] < 0.5 * biases[0] && biases[2] < 0.5 * biases[1], "{name}: {biases:?}");
        assert!((0.0..0.03).contains(&biases[2]), "{name}: {biases:?}");
    }
}

#[test]
fn choices_that_do_not_fit_are_refused_with_the_reason() {
    let fails = |kind, key: &str, value: &str| {
        Options::default().set(kind, key, value).unwrap_err().to_string()
    };
    assert!(fails(Kind::Pc, "snr", "1.5").contains("between 0 and 1"));
    assert!(fails(Kind::Pc, "predictor", "euler").contains("ancestral"));
    assert!(fails(Kind::Ald, "n_steps", "0").contains("1 to 1000"));
    assert!(fails(Kind::Ald, "step", "4").contains("below 4"));
    assert!(fails(Kind::OdeRk45, "atol", "0").contains("above 0"));
    assert!(fails(Kind::OdeRk45, "max_steps", "0").contains("1 or more"));
    assert!(fails(Kind::Ddim, "snr", "0.1").contains("pc"));
    assert!(fails(Kind::OdeRk45, "batch_norm", "true").contains("pc"));
}
