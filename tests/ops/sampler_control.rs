//! What decides about a stage image by image: norms and Langevin rows, error
//! control, blends, estimates and residuals, alone.

use langevin::backend::cpu::isa::Isa;
use langevin::ops::sampler_blend::{BlendOperands, column as blend};
use langevin::ops::sampler_langevin::rule;
use langevin::ops::sampler_rk45::{
    self as rk45, Rk45Operands, Rk45Settings, curve, slot, state as control,
};
use langevin::ops::sampler_step::{SamplerOperands, column};
use langevin::plan::{DType, Plan, Role, TensorId};
use langevin::random::{Purpose, fill_normal, image_keys};

use crate::common::{
    Case, Input, Machine, Terms, assert_close, assert_same_bits, on_every_backend, rounding, values,
};

const SEED: u64 = 5;
const FIRST: u64 = 7;

fn keys(n: usize) -> Vec<u32> {
    (0..n as u64).flat_map(|i| image_keys(SEED, FIRST + i)).collect()
}

fn normals(purpose: Purpose, draw: u32, n: usize, len: usize) -> Vec<f32> {
    let mut z = vec![0f32; n * len];
    for (i, z) in (0..).zip(z.chunks_exact_mut(len)) {
        fill_normal(image_keys(SEED, FIRST + i), purpose, draw, 0, z);
    }
    z
}

fn state(plan: &mut Plan, name: &str, shape: &[usize]) -> TensorId {
    plan.activation(name, shape, DType::F32, Role::State)
}

/// Tensors that every sampler's update has.
fn operands(plan: &mut Plan, shape: &[usize], stages: usize, slots: usize) -> SamplerOperands {
    let n = shape[0];
    SamplerOperands {
        prediction: state(plan, "prediction", shape),
        table: state(plan, "table", &[stages, 1, column::COLUMNS]),
        stage: plan.activation("stage", &[1], DType::U32, Role::State),
        advance: None,
        keys: plan.activation("keys", &[n, 4], DType::U32, Role::State),
        noise: None,
        label: state(plan, "label", &[n]),
        input: None,
        slots: (0..slots).map(|j| state(plan, &format!("slot {j}"), shape)).collect(),
        threshold: None,
    }
}

struct Langevin {
    n: usize,
    len: usize,
    guided: bool,
    given_noise: bool,
    batch_norm: bool,
}

impl Langevin {
    const STAGES: usize = 3;

    fn predicted(&self) -> usize {
        if self.guided { 2 * self.n } else { self.n }
    }

    /// Prediction, table, state, noise.
    fn data(&self) -> [Vec<f32>; 4] {
        let mut table = values(3, Self::STAGES * column::COLUMNS);
        for row in table.chunks_exact_mut(column::COLUMNS) {
            row[column::INPUT_SLOT] = 0.0;
            row[column::DRAW] = 4.0;
        }
        let mut noise = normals(Purpose::SampleStep, 4, self.n, self.len);
        if self.given_noise {
            noise.iter_mut().for_each(|z| *z = 0.5 - *z);
        }
        [values(1, self.predicted() * self.len), table, values(2, self.n * self.len), noise]
    }

    fn run(&self, data: &[Vec<f32>; 4], stage: u32, threads: usize, isa: Isa) -> Vec<f32> {
        let (n, len) = (self.n, self.len);
        let mut plan = Plan::new();
        let mut o = operands(&mut plan, &[n, len, 1], Self::STAGES, 1);
        o.prediction = state(&mut plan, "both", &[self.predicted(), len, 1]);
        o.label = state(&mut plan, "labels", &[self.predicted()]);
        o.noise = self.given_noise.then(|| state(&mut plan, "noise", &[n, len, 1]));
        let rules = state(&mut plan, "rules", &[Self::STAGES]);
        let rows = plan.sampler_langevin(&o, rules, self.batch_norm).unwrap();
        plan.keep(rows);
        let mut machine = Machine::with_isa(plan, threads, isa);
        machine.upload(o.prediction, &data[0]);
        machine.upload(o.table, &data[1]);
        machine.upload(o.slots[0], &data[2]);
        if let Some(noise) = o.noise {
            machine.upload(noise, &data[3]);
        }
        machine.upload(rules, &[rule::NONE, rule::LANGEVIN, rule::LANGEVIN]);
        machine.upload_u32(o.stage, &[stage]);
        machine.upload_u32(o.keys, &keys(n));
        machine.run();
        machine.assert_only_tensors_were_written();
        machine.download(rows)
    }

    fn check(&self) {
        let data = self.data();
        let [prediction, table, x, noise] = &data;
        let row = |stage: usize| &table[stage * column::COLUMNS..][..column::COLUMNS];
        let rows = self.run(&data, 1, 1, Isa::detect());
        let (now, later) = rows.split_at(self.n * column::COLUMNS);
        let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>().sqrt();
        let norms: Vec<[f64; 2]> = (0..self.n)
            .map(|i| {
                let c = |of: usize| f64::from(row(1)[of]);
                let eps = norm(&mut (0..self.len).map(|e| {
                    let p = |copy: usize| f64::from(prediction[(copy * self.n + i) * self.len + e]);
                    let p = match self.guided {
                        true => p(1) + c(column::GUIDANCE) * (p(0) - p(1)),
                        false => p(0),
                    };
                    let x = f64::from(x[i * self.len + e]);
                    c(column::EPS_STATE) * x + c(column::EPS_PREDICTION) * p
                }));
                let of_image = noise[i * self.len..][..self.len].iter();
                [eps, norm(&mut of_image.map(|&z| f64::from(z)))]
            })
            .collect();
        let mean = |of: usize| norms.iter().map(|n| n[of]).sum::<f64>() / self.n as f64;
        for (i, now) in now.chunks_exact(column::COLUMNS).enumerate() {
            let [eps, z] = if self.batch_norm { [mean(0), mean(1)] } else { norms[i] };
            let mut expected: Vec<f64> = row(1).iter().map(|&v| f64::from(v)).collect();
            for k in 0..2 {
                let c = &mut expected[column::OUTPUT + k * column::COEFFICIENTS..];
                c[column::OF_EPS] *= (z / eps).powi(2);
                c[column::OF_NOISE] *= z / eps;
            }
            assert_close("row", now, &expected, rounding(self.len), 1.0);
        }
        for later in later.chunks_exact(column::COLUMNS) {
            assert_same_bits("the next row", later, row(2));
        }
        for isa in Isa::available() {
            for threads in [1, 3] {
                assert_same_bits("again", &self.run(&data, 1, threads, isa), &rows);
            }
        }
        // A stage of no rule, and the last stage, whose next is itself.
        let plain = self.run(&data, 0, 1, Isa::detect());
        assert_same_bits("a plain row", &plain[..column::COLUMNS], row(0));
        let last = self.run(&data, 2, 1, Isa::detect());
        assert_same_bits("the row after the last", &last[last.len() - column::COLUMNS..], row(2));
    }
}

#[test]
fn langevin_rows_follow_each_images_norms() {
    on_every_backend(|| {
        for (n, len) in [(1, 1), (3, 15), (3, 513), (2, 1100)] {
            for (guided, given_noise) in [(false, false), (true, false), (false, true)] {
                Langevin { n, len, guided, given_noise, batch_norm: false }.check();
            }
        }
        Langevin { n: 3, len: 40, guided: false, given_noise: false, batch_norm: true }.check();
    });
}

#[test]
fn langevin_rows_of_an_image_have_the_same_bits_alone_but_not_with_the_batchs_norm() {
    on_every_backend(|| {
        for batch_norm in [false, true] {
            let all = Langevin { n: 3, len: 70, guided: false, given_noise: false, batch_norm };
            let data = all.data();
            let alone = [0, 2].map(|i| data[i][..70].to_vec());
            let [prediction, x] = alone;
            let one = [prediction, data[1].clone(), x, data[3][..70].to_vec()];
            let together = all.run(&data, 1, 2, Isa::detect());
            let alone = Langevin { n: 1, ..all }.run(&one, 1, 1, Isa::detect());
            let same = alone[..column::COLUMNS] == together[..column::COLUMNS];
            assert_eq!(same, !batch_norm);
        }
    });
}

#[test]
fn langevin_step_without_a_score_moves_nothing() {
    on_every_backend(|| {
        let one = Langevin { n: 1, len: 9, guided: false, given_noise: false, batch_norm: false };
        let mut data = one.data();
        data[0].fill(0.0);
        data[2].fill(0.0);
        let row = one.run(&data, 1, 1, Isa::detect());
        for k in 0..2 {
            let c = &row[column::OUTPUT + k * column::COEFFICIENTS..];
            assert_eq!([c[column::OF_EPS].abs(), c[column::OF_NOISE].abs()], [0.0, 0.0]);
        }
    });
}

/// A control with its tensors, on the machine.
struct Control {
    machine: Machine,
    operands: SamplerOperands,
    control: Rk45Operands,
}

const NODES: usize = 5;
const SETTINGS: Rk45Settings =
    Rk45Settings { first: -2.0, spacing: 1.0, end: -1.5, most: 1.0, atol: 0.01, rtol: 0.1 };

impl Control {
    fn new(n: usize, len: usize, isa: Isa) -> Control {
        let mut plan = Plan::new();
        let operands = operands(&mut plan, &[n, len, 1], rk45::STAGES, rk45::SLOTS);
        let control = Rk45Operands {
            curve: state(&mut plan, "curve", &[NODES, curve::COLUMNS]),
            error: state(&mut plan, "error", &[n]),
            state: state(&mut plan, "state", &[n, control::COLUMNS]),
            running: state(&mut plan, "running", &[1]),
            rows: state(&mut plan, "rows", &[2, n, column::COLUMNS]),
        };
        plan.sampler_rk45(&operands, control, SETTINGS).unwrap();
        let mut machine = Machine::with_isa(plan, 2, isa);
        machine.upload(operands.table, &table());
        machine.upload(control.curve, &values(8, NODES * curve::COLUMNS));
        for (j, &slot) in operands.slots.iter().enumerate() {
            machine.upload(slot, &values(30 + j as u64, n * len));
        }
        Control { machine, operands, control }
    }

    /// Runs a stage with the given control state and error.
    fn run(&mut self, stage: usize, state: &[f32], error: &[f32]) {
        self.machine.upload_u32(self.operands.stage, &[stage as u32]);
        self.machine.upload(self.control.state, state);
        self.machine.upload(self.control.error, error);
        self.machine.run();
        self.machine.assert_only_tensors_were_written();
    }

    fn state(&mut self) -> Vec<f32> {
        self.machine.download(self.control.state)
    }

    fn rows(&mut self) -> Vec<f32> {
        self.machine.download(self.control.rows)
    }
}

fn table() -> Vec<f32> {
    let mut table = values(9, rk45::STAGES * column::COLUMNS);
    for row in table.chunks_exact_mut(column::COLUMNS) {
        row[column::TARGET] = 1.0;
        row[column::TARGET + 1] = 4.0;
    }
    table
}

/// (u, h, status, last, accepts)
fn image((u, h, status, last, accepts): (f32, f32, f32, f32, f32)) -> [f32; control::COLUMNS] {
    [u, h, status, 10.0, 2.0, 1.0, last, accepts]
}

#[test]
fn error_norm_matches_f64_and_waits_for_its_stage() {
    on_every_backend(|| {
        for (n, len) in [(1, 1), (3, 17), (2, 700)] {
            let before = vec![0.25; n];
            let running = image((0.0, -0.5, control::RUNNING, 0.0, 1.0)).repeat(n);
            let mut first = Vec::new();
            for isa in Isa::available() {
                let mut c = Control::new(n, len, isa);
                c.run(3, &running, &before);
                let error = c.control.error;
                assert_eq!(c.machine.download(error), before);
                c.run(rk45::ACCEPT, &running, &before);
                let found = c.machine.download(error);
                let of = |j: usize| values(30 + j as u64, n * len);
                let (y, next, e) = (of(slot::STATE), of(slot::ARGUMENT), of(slot::ERROR));
                let expected: Vec<f64> = (0..n)
                    .map(|i| {
                        let squares = (i * len..(i + 1) * len).map(|at| {
                            let scale = f64::from(SETTINGS.atol)
                                + f64::from(SETTINGS.rtol)
                                    * f64::from(y[at].abs().max(next[at].abs()));
                            (f64::from(e[at]) / scale).powi(2)
                        });
                        (squares.sum::<f64>() / len as f64).sqrt()
                    })
                    .collect();
                assert_close("error", &found, &expected, rounding(len), 0.0);
                first.push(found);
            }
            assert!(first.iter().all(|found| *found == first[0]), "{first:?}");
        }
    });
}

#[test]
fn control_accepts_rejects_arrives_and_gives_up() {
    on_every_backend(|| {
        use control::{ARRIVED, RUNNING, STUCK};
        // Errors come from the slots: e scaled so that the norm is what is asked for.
        let mut c = Control::new(1, 1, Isa::detect());
        let mut decide = |error: f32, before: [f32; control::COLUMNS]| {
            let (y, next) = (values(30, 1)[0], values(31, 1)[0]);
            let e = error * (SETTINGS.atol + SETTINGS.rtol * y.abs().max(next.abs()));
            let slot = c.operands.slots[slot::ERROR];
            c.machine.upload(slot, &[e]);
            c.run(rk45::ACCEPT, &before, &[0.0]);
            let running = c.control.running;
            (c.state(), c.machine.download(running)[0])
        };
        let near = |a: f32, b: f64| (f64::from(a) - b).abs() < 1e-5 * (1.0 + b.abs());

        // Accepted: time moves, the step grows by 0.9 error^-0.2, at most tenfold.
        let (s, running) = decide(0.5, image((1.5, -0.125, RUNNING, 0.0, 1.0)));
        assert!(near(s[control::TIME], 1.375));
        assert!(near(s[control::STEP], -0.125 * 0.9 * 0.5f64.powf(-0.2)));
        assert_eq!(s[2..], [RUNNING, 16.0, 3.0, 1.0, 0.0, 1.0]);
        assert_eq!(running, 1.0);
        let (s, _) = decide(0.0, image((1.5, -0.125, RUNNING, 0.0, 1.0)));
        assert!(near(s[control::STEP], -1.0), "the largest there is");
        let (s, _) = decide(0.0, image((1.5, -0.05, RUNNING, 0.0, 1.0)));
        assert!(near(s[control::STEP], -0.5));
        // Not after a rejection.
        let (s, _) = decide(0.5, image((1.5, -0.125, RUNNING, 0.0, 0.0)));
        assert!(near(s[control::STEP], -0.125));

        // Rejected: time stays, the step shrinks, at most fivefold; NaN is no acceptance.
        for (error, factor) in [(2.0, 0.9 * 2f64.powf(-0.2)), (1e9, 0.2), (f32::NAN, 0.2)] {
            let (s, running) = decide(error, image((1.5, -0.125, RUNNING, 0.0, 1.0)));
            assert!(near(s[control::TIME], 1.5) && near(s[control::STEP], -0.125 * factor));
            assert_eq!(s[2..], [RUNNING, 16.0, 2.0, 2.0, 0.0, 0.0]);
            assert_eq!(running, 1.0);
        }

        // A step that would pass the end ends there, exactly.
        let (s, _) = decide(0.5, image((-1.25, -0.2, RUNNING, 0.0, 1.0)));
        assert_eq!(
            (s[control::TIME], s[control::STEP], s[control::LAST]),
            (-1.45, -1.5 + 1.45, 1.0)
        );
        let (s, running) = decide(0.5, image((-1.45, -0.05, RUNNING, 1.0, 1.0)));
        assert_eq!((s[control::TIME], s[control::STATUS], running), (-1.5, ARRIVED, 0.0));
        // And one that is too small to be told from none is given up.
        let (s, running) = decide(f32::NAN, image((1.5, -1e-6, RUNNING, 0.0, 0.0)));
        assert_eq!((s[control::STATUS], running), (STUCK, 0.0));
        // Who has arrived stays.
        let there = image((-1.5, -0.05, ARRIVED, 1.0, 1.0));
        let (s, _) = decide(0.5, there);
        assert_eq!(s[..7], there[..7]);
        assert_eq!(s[control::ACCEPTS], 0.0);
    });
}

#[test]
fn control_writes_every_stages_row_of_every_image() {
    on_every_backend(|| {
        let (n, h) = (3, -0.375f32);
        let mut c = Control::new(n, 2, Isa::detect());
        let curve = values(8, NODES * curve::COLUMNS);
        let at = |u: f64, of: usize| {
            let position = (u + 2.0).clamp(0.0, 4.0);
            let below = (position as usize).min(NODES - 2);
            let v = |node: usize| f64::from(curve[node * curve::COLUMNS + of]);
            v(below) + (position - below as f64) * (v(below + 1) - v(below))
        };
        // The second image has arrived, the third is elsewhere.
        let times = [1.2f32, -1.5, 0.3];
        for stage in 0..rk45::STAGES {
            let states: Vec<f32> = [control::RUNNING, control::ARRIVED, control::RUNNING]
                .into_iter()
                .zip(times)
                .flat_map(|(status, u)| image((u, h, status, 0.0, 0.0)))
                .collect();
            // Stage 7 rejects: the slots' errors are far above the tolerances.
            c.run(stage, &states, &[0.0; 3]);
            let (rows, after) = (c.rows(), c.state());
            let base =
                |stage: usize| table()[stage * column::COLUMNS..][..column::COLUMNS].to_vec();
            for (i, u) in times.into_iter().enumerate() {
                let now = &rows[i * column::COLUMNS..][..column::COLUMNS];
                let later = &rows[(n + i) * column::COLUMNS..][..column::COLUMNS];
                let h = after[i * control::COLUMNS + control::STEP];
                let mut expected: Vec<f64> = base(stage).iter().map(|&v| f64::from(v)).collect();
                let is_written = stage == rk45::END || i != 1 && stage != rk45::KEEP;
                if !is_written {
                    expected[column::TARGET] = -1.0;
                    expected[column::TARGET + 1] = -1.0;
                }
                if stage < rk45::ACCEPT {
                    let u = f64::from(u) + rk45::NODES[stage] * f64::from(h);
                    expected[column::X0_STATE] = at(u, curve::X0_STATE);
                    expected[column::X0_PREDICTION] = at(u, curve::X0_PREDICTION);
                    let cosine = at(u, curve::COSINE);
                    expected[column::EPS_STATE] = cosine * cosine;
                    expected[column::EPS_PREDICTION] = 0.0;
                    for k in 0..2 {
                        let c = &mut expected[column::OUTPUT + k * column::COEFFICIENTS..];
                        c[column::OF_X0] = -cosine * c[column::OF_EPS];
                    }
                }
                if stage == rk45::ACCEPT {
                    for k in 0..2 {
                        let c = &mut expected[column::OUTPUT + k * column::COEFFICIENTS..];
                        c.swap(0, 1);
                        c.swap(2, 5);
                    }
                }
                if stage <= rk45::ACCEPT {
                    let c = &mut expected[column::OUTPUT + column::COEFFICIENTS..];
                    c[2..7].iter_mut().for_each(|c| *c *= f64::from(h));
                    c[column::OF_X0] *= f64::from(h);
                    c[column::OF_EPS] *= f64::from(h);
                }
                assert_close(&format!("row {stage}"), now, &expected, 1e-5, 1.0);
                let following = if stage < rk45::ACCEPT { (stage + 1).min(6) } else { 1 };
                let u = f64::from(u) + rk45::NODES[following] * f64::from(h);
                let mut expected: Vec<f64> =
                    base((stage + 1).min(9)).iter().map(|&v| f64::from(v)).collect();
                expected[column::LABEL] = at(u, curve::LABEL);
                expected[column::INPUT_SCALE] = at(u, curve::INPUT_SCALE);
                expected[column::INPUT_SLOT] = 1.0;
                assert_close(&format!("next row {stage}"), later, &expected, 1e-5, 1.0);
            }
        }
    });
}

#[test]
fn blend_keeps_known_pixels_exactly_and_noises_them_by_their_own_draws() {
    on_every_backend(|| {
        for (n, len) in [(1, 1), (2, 9), (3, 1030)] {
            let (known, x) = (values(1, n * len), values(2, n * len));
            let mask: Vec<f32> = (0..n * len).map(|i| [1.0, 0.0, 0.25][i % 3]).collect();
            let table = [0.0, 9.0, 9.0, 9.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.5, 2.0, 6.0];
            let z = normals(Purpose::Known, 6, n, len);
            let run = |stage: u32, threads: usize| {
                let mut plan = Plan::new();
                let operands = BlendOperands {
                    table: state(&mut plan, "table", &[3, blend::COLUMNS]),
                    stage: plan.activation("stage", &[1], DType::U32, Role::State),
                    keys: plan.activation("keys", &[n, 4], DType::U32, Role::State),
                    known: state(&mut plan, "known", &[n, len]),
                    mask: state(&mut plan, "mask", &[n, len]),
                    slot: state(&mut plan, "x", &[n, len]),
                };
                plan.sampler_blend(operands).unwrap();
                let mut machine = Machine::new(plan, threads);
                machine.upload(operands.table, &table);
                machine.upload_u32(operands.stage, &[stage]);
                machine.upload_u32(operands.keys, &keys(n));
                machine.upload(operands.known, &known);
                machine.upload(operands.mask, &mask);
                machine.upload(operands.slot, &x);
                machine.run();
                machine.assert_only_tensors_were_written();
                machine.download(operands.slot)
            };
            assert_same_bits("a stage without a blend", &run(0, 1), &x);
            let exact = run(1, 2);
            for (i, &m) in mask.iter().enumerate() {
                if m == 1.0 {
                    assert_eq!(exact[i], known[i]);
                } else if m == 0.0 {
                    assert_eq!(exact[i], x[i]);
                }
            }
            let expected: Vec<f64> = (0..n * len)
                .map(|i| {
                    let [m, known, z, x] = [mask[i], known[i], z[i], x[i]].map(f64::from);
                    m * (0.5 * known + 2.0 * z) + (1.0 - m) * x
                })
                .collect();
            assert_close("blend", &run(2, 1), &expected, rounding(4), 1.0);
            assert_same_bits("on other threads", &run(2, 3), &run(2, 1));
        }
    });
}

#[test]
fn estimate_matches_f64_in_both_passes_guided_and_with_a_wider_prediction() {
    on_every_backend(|| {
        for (guided, wide, spatial) in [(false, 2, 5), (true, 2, 5), (false, 4, 301), (true, 3, 7)]
        {
            let (n, channels) = (2, 2);
            let copies = if guided { 2 } else { 1 };
            let mut table = values(4, 3 * column::COLUMNS);
            table[column::COLUMNS + column::GUIDANCE] = 1.75;
            let row = table[column::COLUMNS..2 * column::COLUMNS].to_vec();
            // The batch is inside one image of the harness, so that it may be guided.
            let inputs = [
                Input::parameter(&[copies * n, spatial, wide]),
                Input::parameter(&[n, spatial, channels]),
                Input::parameter(&[3, 1, column::COLUMNS]).with(&table).fixed(),
                Input::words(&[1], &[1]),
            ];
            let case =
                Case::new(&inputs, |p, t| p.sampler_estimate(t[0], t[2], t[3], t[1]).unwrap());
            case.check(Terms { forward: 4, backward: 4 }, |x| {
                let c = |of: usize| f64::from(row[of]);
                (0..n * spatial * channels)
                    .map(|e| {
                        let (at, channel) = (e / channels, e % channels);
                        let p = |copy: usize| x[0][(copy * n * spatial + at) * wide + channel];
                        let p = match guided {
                            true => p(1) + c(column::GUIDANCE) * (p(0) - p(1)),
                            false => p(0),
                        };
                        c(column::X0_STATE) * x[1][e] + c(column::X0_PREDICTION) * p
                    })
                    .collect()
            });
        }
    });
}

#[test]
fn residual_is_a_unit_vector_of_the_masked_difference_and_zero_without_one() {
    on_every_backend(|| {
        for (n, len) in [(1, 1), (3, 37), (2, 600)] {
            let (z, y) = (values(1, n * len), values(2, n * len));
            let mask: Vec<f32> = (0..n * len).map(|i| (i % 3) as f32 / 2.0).collect();
            let run = |z: &[f32], masked: bool, isa: Isa| {
                let mut plan = Plan::new();
                let tensors = ["z", "y", "mask"].map(|name| state(&mut plan, name, &[n, len]));
                let mask_of = masked.then_some(tensors[2]);
                let (u, norm) = plan.sampler_residual(tensors[0], tensors[1], mask_of).unwrap();
                plan.keep(u);
                plan.keep(norm);
                let mut machine = Machine::with_isa(plan, 2, isa);
                for (tensor, values) in tensors.into_iter().zip([z, &y, &mask]) {
                    machine.upload(tensor, values);
                }
                machine.run();
                machine.assert_only_tensors_were_written();
                (machine.download(u), machine.download(norm))
            };
            for masked in [false, true] {
                let (u, norm) = run(&z, masked, Isa::detect());
                for i in 0..n {
                    let part = i * len..(i + 1) * len;
                    let r: Vec<f64> = part
                        .clone()
                        .map(|e| {
                            let m = if masked { f64::from(mask[e]) } else { 1.0 };
                            m * (f64::from(z[e]) - f64::from(y[e]))
                        })
                        .collect();
                    let length = r.iter().map(|r| r * r).sum::<f64>().sqrt();
                    assert_close("norm", &norm[i..=i], &[length], rounding(len), 1e-30);
                    let expected: Vec<f64> =
                        r.iter().map(|r| if length > 0.0 { r / length } else { 0.0 }).collect();
                    assert_close("direction", &u[part], &expected, rounding(len), 1.0);
                }
                for isa in Isa::available() {
                    assert_eq!(run(&z, masked, isa), (u.clone(), norm.clone()));
                }
            }
            let (u, norm) = run(&y, true, Isa::detect());
            assert!(u.iter().chain(&norm).all(|&v| v == 0.0));
        }
    });
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let mut plan = Plan::new();
    let o = operands(&mut plan, &[2, 3, 1], 4, 2);
    let rules = state(&mut plan, "rules", &[3]);
    assert!(plan.sampler_langevin(&o, rules, false).is_err(), "rules of other stages");
    let control = Rk45Operands {
        curve: state(&mut plan, "curve", &[4, curve::COLUMNS]),
        error: state(&mut plan, "error", &[2]),
        state: state(&mut plan, "state", &[2, control::COLUMNS]),
        running: state(&mut plan, "running", &[1]),
        rows: state(&mut plan, "rows", &[2, 2, column::COLUMNS]),
    };
    assert!(plan.sampler_rk45(&o, control, SETTINGS).is_err(), "a table of other stages");
    let x = state(&mut plan, "x", &[2, 5]);
    assert!(plan.axis_map(x, rules, 1).is_err(), "no matrix");
    assert!(plan.sampler_residual(x, rules, None).is_err(), "another measurement");
}
