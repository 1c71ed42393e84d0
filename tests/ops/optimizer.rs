//! The gradient norm, and AdamW with averaging.

use langevin::ops::optimizer::{AdamW, control};
use langevin::plan::{DiskLayout, Init, Plan, Space, TensorId};

use super::common::{Machine, assert_close, assert_same_bits, on_every_backend, values};

const BETAS: [f64; 2] = [0.9, 0.999];

fn adamw(clip: Option<f64>, weight_decay: f64) -> AdamW {
    AdamW { ranges: vec![], beta1: BETAS[0], beta2: BETAS[1], eps: 1e-8, weight_decay, clip }
}

/// Weights of the given sizes, every second one frozen, and the optimizer's plan.
struct Optimizer {
    machine: Machine,
    norm: TensorId,
    control: TensorId,
    /// parameters, first moments, second moments, average.
    state: [TensorId; 4],
    gradients: TensorId,
    ranges: Vec<(usize, usize)>,
}

impl Optimizer {
    fn new(sizes: &[usize], op: AdamW, threads: usize) -> Self {
        Optimizer::on(sizes, op, |plan| Machine::new(plan, threads))
    }

    fn on(sizes: &[usize], op: AdamW, machine: impl FnOnce(Plan) -> Machine) -> Self {
        let mut plan = Plan::new();
        for (i, &len) in sizes.iter().enumerate() {
            let name = format!("weight_{i}");
            plan.parameter(&name, &[len], DiskLayout::Same, Init::Constant(0.0), i % 2 == 0);
        }
        let len = plan.parameters.arena_len();
        let ranges = plan.parameters.trainable_ranges();
        let norm = plan.global_norm(ranges.clone(), len);
        let control = plan.adamw(AdamW { ranges: ranges.clone(), ..op }, norm, len);
        let node = plan.nodes.last().unwrap();
        let state = [0, 1, 2, 3].map(|i| node.output(i).unwrap());
        let gradients = node.input(0);
        let mut machine = machine(plan);
        for space in [Space::FirstMoments, Space::SecondMoments] {
            machine.fill(space, 0.0);
        }
        let first = values(1, len);
        machine.upload(state[0], &first);
        machine.upload(state[3], &first);
        Optimizer { machine, norm, control, state, gradients, ranges }
    }

    fn len(&self) -> usize {
        self.machine.program.plan.tensor(self.gradients).len()
    }

    fn step(&mut self, gradients: &[f32], step: i32, learning_rate: f64, ema_decay: f64) -> f32 {
        let mut row = [0f32; control::COLUMNS];
        row[control::LEARNING_RATE] = learning_rate as f32;
        row[control::BIAS_CORRECTION_1] = (1.0 - BETAS[0].powi(step)) as f32;
        row[control::BIAS_CORRECTION_2] = (1.0 - BETAS[1].powi(step)) as f32;
        row[control::EMA_RATE] = (1.0 - ema_decay) as f32;
        self.machine.upload(self.gradients, gradients);
        self.machine.upload(self.control, &row);
        self.machine.run();
        self.machine.download(self.norm)[0]
    }

    fn state(&mut self) -> [Vec<f32>; 4] {
        self.state.map(|id| self.machine.download(id))
    }
}

/// The same in f64, written as `torch.optim.AdamW`, `clip_grad_norm_` and an
/// average are documented.
struct Reference {
    op: AdamW,
    ranges: Vec<(usize, usize)>,
    state: [Vec<f64>; 4],
}

impl Reference {
    fn new(op: AdamW, optimizer: &mut Optimizer) -> Self {
        let state = optimizer.state().map(|v| v.iter().map(|&v| f64::from(v)).collect());
        Reference { op, ranges: optimizer.ranges.clone(), state }
    }

    fn step(&mut self, gradients: &[f32], step: i32, learning_rate: f64, ema_decay: f64) -> f64 {
        let trained = || self.ranges.iter().flat_map(|&(from, len)| from..from + len);
        let norm = trained().map(|i| f64::from(gradients[i]).powi(2)).sum::<f64>().sqrt();
        let clip = self.op.clip.map_or(1.0, |clip| (clip / (norm + 1e-6)).min(1.0));
        let [p, m, v, ema] = &mut self.state;
        for i in self.ranges.iter().flat_map(|&(from, len)| from..from + len) {
            let g = f64::from(gradients[i]) * clip;
            p[i] -= learning_rate * self.op.weight_decay * p[i];
            m[i] = BETAS[0] * m[i] + (1.0 - BETAS[0]) * g;
            v[i] = BETAS[1] * v[i] + (1.0 - BETAS[1]) * g * g;
            let m_hat = m[i] / (1.0 - BETAS[0].powi(step));
            let v_hat = v[i] / (1.0 - BETAS[1].powi(step));
            p[i] -= learning_rate * m_hat / (v_hat.sqrt() + self.op.eps);
            ema[i] = ema_decay * ema[i] + (1.0 - ema_decay) * p[i];
        }
        norm
    }
}

const NAMES: [&str; 4] = ["parameters", "first moments", "second moments", "average"];

#[test]
fn adamw_follows_its_formula_in_f64_over_many_steps() {
    on_every_backend(|| {
        for (clip, weight_decay) in [(None, 0.0), (Some(0.5), 0.01), (Some(1e6), 0.1)] {
            let op = adamw(clip, weight_decay);
            let mut optimizer = Optimizer::new(&[3, 16, 777, 5, 33], op.clone(), 2);
            let mut reference = Reference::new(op, &mut optimizer);
            let steps = 300;
            for step in 1..=steps {
                // Gradients over six decades, with a mean, so that the weights move.
                let gradients: Vec<f32> = values(step as u64, optimizer.len())
                    .iter()
                    .enumerate()
                    .map(|(i, v)| (v + 0.3) * 10f32.powi(-(i as i32 % 6)))
                    .collect();
                let learning_rate = 1e-3 * f64::from(step).min(20.0) / 20.0;
                let ema_decay = f64::from(step) / f64::from(10 + step);
                let norm = optimizer.step(&gradients, step, learning_rate, ema_decay);
                let expected = reference.step(&gradients, step, learning_rate, ema_decay);
                assert_close("norm", &[norm], &[expected], f64::from(f32::EPSILON), 0.0);
            }
            // Each step rounds a weight once or twice: half an ulp of a value near 1.
            let tolerance = f64::from(f32::EPSILON) * f64::from(steps).sqrt() * 2.0;
            for ((found, expected), name) in
                optimizer.state().iter().zip(&reference.state).zip(NAMES)
            {
                assert!(expected.iter().any(|&v| v != 0.0));
                assert_close(name, found, expected, tolerance, 0.0);
            }
        }
    });
}

/// Five steps of `torch.optim.AdamW(lr=1/32, weight_decay=1/8)` of PyTorch 2.15 in
/// f64, after `clip_grad_norm_(1)` and followed by `ema.lerp_(p, 1/4)`.
#[test]
fn adamw_ends_where_pytorch_does() {
    on_every_backend(|| {
        let expected = [
            [0.3370427221631698, -1.0973086690412799, 1.8763237067548764, -0.08746313181091658],
            [
                0.3652522945089694,
                -0.034270861852812196,
                -0.0030052220677570605,
                0.00027093399881397007,
            ],
            [
                0.003991764347645317,
                8.102288068356321e-5,
                0.0006215267772569295,
                2.7372406872194414e-9,
            ],
            [0.41155840179770076, -1.1635401031255606, 1.9219722115672417, -0.020143393523899322],
        ];
        let norms = [
            0.8385260878470031,
            1.03832846440806,
            1.5075047079344213,
            2.0625002424242282,
            2.6491745884331594,
        ];
        let mut optimizer = Optimizer::new(&[4], adamw(Some(1.0), 0.125), 1);
        let mut first = vec![0.0; optimizer.len()];
        first[..4].copy_from_slice(&[0.5, -1.25, 2.0, 0.0625]);
        for i in [0, 3] {
            optimizer.machine.upload(optimizer.state[i], &first);
        }
        for (step, norm) in (1..).zip(norms) {
            let k = step as f32;
            let mut gradients = vec![0.0; optimizer.len()];
            gradients[..4].copy_from_slice(&[0.5 * k, -0.25 / k, 1.0 - 0.375 * k, 1e-3]);
            let found = optimizer.step(&gradients, step, 0.03125, 0.75);
            assert_close("norm", &[found], &[norm], f64::from(f32::EPSILON), 0.0);
        }
        for ((found, expected), name) in optimizer.state().iter().zip(expected).zip(NAMES) {
            assert_close(name, &found[..4], &expected, 1e-6, 0.0);
        }
    });
}

#[test]
fn the_first_step_of_adamw_moves_each_weight_by_the_learning_rate() {
    on_every_backend(|| {
        let op = adamw(None, 0.0);
        let mut optimizer = Optimizer::new(&[40], op, 1);
        let before = optimizer.state();
        let gradients: Vec<f32> = values(5, optimizer.len())
            .iter()
            .map(|v| (v + 2.0) * if *v > 0.0 { 1.0 } else { -1.0 })
            .collect();
        optimizer.step(&gradients, 1, 0.125, 0.0);
        let [p, _, _, ema] = optimizer.state();
        for ((p, before), g) in p.iter().zip(&before[0]).zip(&gradients) {
            assert!((before - p - 0.125 * g.signum()).abs() < 1e-6);
        }
        assert_same_bits("the average at decay 0", &ema, &p);
    });
}

#[test]
fn frozen_weights_and_their_state_are_not_touched() {
    on_every_backend(|| {
        let sizes = [20, 48, 16];
        let mut optimizer = Optimizer::new(&sizes, adamw(None, 0.1), 2);
        assert_eq!(optimizer.ranges, [(0, 32), (80, 16)]);
        let before = optimizer.state();
        let gradients = values(6, optimizer.len());
        optimizer.step(&gradients, 1, 0.1, 0.5);
        for ((after, before), name) in optimizer.state().iter().zip(&before).zip(NAMES) {
            assert_same_bits(name, &after[32..80], &before[32..80]);
            assert!(
                after[..20] != before[..20] && after[80..] != before[80..],
                "{name} did not move"
            );
        }
    });
}

#[test]
fn a_norm_that_is_not_finite_leaves_everything_as_it_was() {
    on_every_backend(|| {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut optimizer = Optimizer::new(&[100], adamw(Some(1.0), 0.1), 2);
            let before = optimizer.state();
            let mut gradients = values(6, optimizer.len());
            gradients[57] = bad;
            let norm = optimizer.step(&gradients, 1, 0.1, 0.5);
            assert!(!norm.is_finite());
            for ((after, before), name) in optimizer.state().iter().zip(&before).zip(NAMES) {
                assert_same_bits(name, after, before);
            }
        }
    });
}

#[test]
fn the_norm_is_exact_to_rounding_for_sizes_around_the_chunks() {
    on_every_backend(|| {
        for len in [1, 15, 16384, 16385, 3 * 16384 + 7, 70 * 16384 + 1] {
            let mut optimizer = Optimizer::new(&[len], adamw(None, 0.0), 2);
            // Padding has no gradient.
            let mut gradients = values(8, optimizer.len());
            gradients[len..].fill(0.0);
            let expected = gradients.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
            let norm = optimizer.step(&gradients, 1, 0.0, 0.0);
            assert_close("norm", &[norm], &[expected], f64::from(f32::EPSILON) / 2.0 * 1.001, 0.0);
        }
    });
}

#[test]
fn the_norm_of_huge_gradients_does_not_overflow() {
    on_every_backend(|| {
        let mut optimizer = Optimizer::new(&[1000], adamw(Some(1.0), 0.0), 1);
        let mut gradients = vec![1e37; optimizer.len()];
        gradients[1000..].fill(0.0);
        let norm = optimizer.step(&gradients, 1, 0.0, 0.0);
        assert_close("norm", &[norm], &[f64::from(1e37f32) * 1000f64.sqrt()], 1e-7, 0.0);
    });
}

#[test]
fn threads_change_no_bits_of_norm_and_state() {
    on_every_backend(|| {
        let run = |threads: usize| {
            let mut optimizer =
                Optimizer::new(&[40_000, 16, 100_003], adamw(Some(1.0), 0.01), threads);
            let mut norms = Vec::new();
            for step in 1..=3 {
                let gradients = values(step as u64, optimizer.len());
                norms.push(optimizer.step(&gradients, step, 1e-3, 0.9));
            }
            (norms, optimizer.state())
        };
        let (norms, state) = run(1);
        for threads in [2, 3] {
            let (norms_again, state_again) = run(threads);
            assert_same_bits("norms", &norms_again, &norms);
            for ((a, b), name) in state_again.iter().zip(&state).zip(NAMES) {
                assert_same_bits(name, a, b);
            }
        }
    });
}

#[cfg(langevin_cuda)]
#[test]
fn adamw_in_bf16_writes_the_rounded_weights_of_its_ranges_alone() {
    use langevin::backend::Precision;
    for seed in 0..super::gpu::SEEDS {
        super::gpu::set_seed(seed);
        let mut o = Optimizer::on(&[5, 3, 20_011, 40, 16], adamw(None, 0.01), |plan| {
            Machine::of(super::gpu::backend_in(Precision::Bf16).expect("built in"), plan)
        });
        let gradients = values(2, o.len());
        o.step(&gradients, 1, 1e-2, 0.9);
        let update = o.machine.program.plan.nodes.last().expect("the update");
        let halves = update.output(4).expect("bf16 weights");
        let (found, weights) = (o.machine.download_half(halves), o.state()[0].clone());
        for (i, (found, weight)) in found.iter().zip(&weights).enumerate() {
            let own = o.ranges.iter().any(|&(start, len)| (start..start + len).contains(&i));
            let rounded = half::bf16::from_f32(*weight);
            assert_eq!(found == &rounded, own, "element {i}: {found} for {weight}");
        }
    }
}
