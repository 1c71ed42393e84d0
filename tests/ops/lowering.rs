//! What a backend makes of a plan computes the same bits as the plan op by op.

use langevin::backend::Backend;
use langevin::backend::cpu::Cpu;
use langevin::ops::Op;
use langevin::ops::conv2d::{ConvOptions, Padding};
use langevin::ops::pointwise::Activation;
use langevin::plan::{DType, DiskLayout, Init, Mode, Plan, Role, TensorId, Wrt};

use crate::common::{Machine, assert_close, assert_same_bits, in_half, on_every_backend, values};

/// A residual block with a time embedding and a shortcut, and a linear layer
/// around a residual: everything that is fused, forward and backward.
fn block() -> Plan {
    let mut plan = Plan::new();
    let x = plan.activation("x", &[2, 5, 4, 3], DType::F32, Role::State);
    let e = plan.activation("e", &[2, 6], DType::F32, Role::State);
    let mut weight = |name: &str, shape: &[usize]| {
        plan.parameter(name, shape, DiskLayout::Same, Init::Constant(0.0), true)
    };
    let (w1, b1) = (weight("w1", &[6, 3, 3, 3]), weight("b1", &[6]));
    let (w2, w3) = (weight("w2", &[6, 3, 3, 6]), weight("w3", &[6, 1, 1, 3]));
    let (w4, w5) = (weight("w4", &[6, 6]), weight("w5", &[6, 6]));
    let same = ConvOptions { padding: Padding::same(1), ..ConvOptions::default() };
    let fits = "the shapes fit";
    let h = plan.conv2d(x, w1, Some(b1), same).expect(fits);
    // The embedding is ready only after the convolution.
    let e = plan.linear(e, w4, None).expect(fits);
    let h = plan.add_per_image(h, e).expect(fits);
    let h = plan.conv2d(h, w2, None, same).expect(fits);
    let shortcut = plan.conv2d(x, w3, None, ConvOptions::default()).expect(fits);
    let y = plan.add(shortcut, h, 1.0).expect(fits);
    let half = plan.scale(y, 0.5, 0.0);
    let z = plan.linear(half, w5, None).expect(fits);
    let z = plan.add(z, y, 1.0).expect(fits);
    let z = plan.scale(z, 2.0, 0.0);
    plan.tensors[z.index()].name = "z".into();
    plan.keep(z);
    let d_z = plan.activation("d_z", &[2, 5, 4, 6], DType::F32, Role::State);
    plan.derive(&[(z, Some(d_z))], Wrt::Parameters(Mode::Write)).expect("a derivative");
    plan
}

/// Output and all gradients.
fn results(plan: Plan) -> Vec<(String, Vec<f32>)> {
    let wanted: Vec<TensorId> = (0..plan.tensors.len() as u32)
        .map(TensorId)
        .filter(|&t| {
            let t = plan.tensor(t);
            t.name == "z" || t.name.starts_with("d_w") && !t.name.contains('.') || t.name == "d_b1"
        })
        .collect();
    let uploads: Vec<TensorId> = (0..plan.tensors.len() as u32)
        .map(TensorId)
        .filter(|&t| {
            let t = plan.tensor(t);
            ["x", "e", "d_z", "w1", "b1", "w2", "w3", "w4", "w5"].contains(&t.name.as_str())
        })
        .collect();
    let mut machine = Machine::new(plan, 2);
    for (seed, &t) in uploads.iter().enumerate() {
        let len = machine.program.plan.tensor(t).len();
        machine.upload(t, &values(seed as u64, len));
    }
    machine.run();
    let name = |m: &Machine, t: TensorId| m.program.plan.tensor(t).name.clone();
    wanted.iter().map(|&t| (name(&machine, t), machine.download(t))).collect()
}

#[test]
fn a_lowered_plan_has_no_additions_nor_copies_left() {
    let program = Cpu::new(1).lower(block()).expect("the plan lowers");
    let left: Vec<&str> = program
        .plan
        .nodes
        .iter()
        .filter(|n| matches!(&n.op, Op::AddPerImage(_) | Op::Add(_)))
        .map(|n| n.op.name())
        .collect();
    assert!(left.is_empty(), "{left:?}");
    let copies = program.plan.nodes.iter().filter(
        |n| matches!((&n.op, n.outputs[0]), (Op::Scale(op), Some(w)) if op.scale == 1.0 && w.mode == Mode::Write),
    );
    assert_eq!(copies.count(), 0);
}

#[test]
fn a_lowered_plan_has_the_bits_of_its_ops_one_by_one() {
    on_every_backend(|| {
        let fused = results(block());
        assert_eq!(fused.len(), 7);
        // Intermediate results that someone wants to see are left alone.
        let mut plan = block();
        for i in 0..plan.tensors.len() {
            if plan.tensors[i].role == Role::Transient {
                plan.keep(TensorId(i as u32));
            }
        }
        let nodes = plan.nodes.len();
        let program = Cpu::new(1).lower(plan.clone()).expect("the plan lowers");
        assert_eq!(program.plan.nodes.len(), nodes);
        for ((name, fused), (_, single)) in fused.iter().zip(&results(plan)) {
            assert_same_bits(name, fused, single);
        }
    });
}

#[test]
fn additions_that_cannot_move_stay() {
    let mut plan = Plan::new();
    let x = plan.activation("x", &[1, 3, 3, 2], DType::F32, Role::State);
    let w = plan.parameter("w", &[2, 1, 1, 2], DiskLayout::Same, Init::Constant(0.0), true);
    let h = plan.conv2d(x, w, None, ConvOptions::default()).expect("fits");
    // Scaled sums, and results that someone else reads.
    let scaled = plan.add(h, x, 0.5).expect("fits");
    let twice = plan.conv2d(scaled, w, None, ConvOptions::default()).expect("fits");
    let y = plan.add(twice, twice, 1.0).expect("fits");
    plan.keep(y);
    let program = Cpu::new(1).lower(plan).expect("the plan lowers");
    let adds = program.plan.nodes.iter().filter(|n| matches!(n.op, Op::Add(_))).count();
    assert_eq!(adds, 2);
}

/// A gated branch around a residual: linear, GELU, linear times a vector an image, plus x; and
/// a layer whose sum with a vector a row is activated. With `kept` each op is one by itself.
fn branch(channels: usize, kept: bool) -> (Plan, Vec<(TensorId, usize)>, TensorId) {
    let mut plan = Plan::new();
    let (n, tokens, wide) = (3, 11, 2 * channels);
    let mut uploads = Vec::new();
    let mut state = |plan: &mut Plan, name: &str, shape: &[usize]| {
        let id = plan.activation(name, shape, DType::F32, Role::State);
        uploads.push((id, shape.iter().product()));
        id
    };
    let x = state(&mut plan, "x", &[n, tokens, channels]);
    let [gate, rows] =
        [[n, channels], [n * tokens, channels]].map(|shape| state(&mut plan, "vectors", &shape));
    let mut weight = |plan: &mut Plan, name: &str, shape: &[usize]| {
        let id = plan.parameter(name, shape, DiskLayout::Same, Init::Constant(0.0), true);
        uploads.push((id, shape.iter().product()));
        id
    };
    let w1 = weight(&mut plan, "w1", &[wide, channels]);
    let b1 = weight(&mut plan, "b1", &[wide]);
    let w2 = weight(&mut plan, "w2", &[channels, wide]);
    let (w3, fits) = (weight(&mut plan, "w3", &[channels, channels]), "the shapes fit");
    let a = plan.linear(x, w1, Some(b1)).expect(fits);
    let b = plan.activate(a, Activation::GeluTanh);
    let c = plan.linear(b, w2, None).expect(fits);
    let d = plan.scale_per_image(c, gate).expect(fits);
    let e = plan.add(x, d, 1.0).expect(fits);
    let f = plan.linear(e, w3, None).expect(fits);
    plan.tensors[f.index()].shape = vec![n * tokens, channels];
    let g = plan.add_per_image(f, rows).expect(fits);
    let y = plan.activate(g, Activation::Silu);
    plan.keep(y);
    if kept {
        [a, b, c, d, e, f, g].into_iter().for_each(|t| plan.keep(t));
    }
    (plan, uploads, y)
}

/// What a branch makes, and how many nodes that takes.
fn branch_results(channels: usize, kept: bool) -> (Vec<f32>, usize) {
    let (plan, uploads, y) = branch(channels, kept);
    let mut machine = Machine::new(plan, 2);
    for (seed, (id, len)) in uploads.into_iter().enumerate() {
        machine.upload(id, &values(seed as u64 + 1, len));
    }
    machine.run();
    machine.assert_only_tensors_were_written();
    let layers = machine.program.plan.nodes.iter();
    let layers = layers.filter(|n| !matches!(n.op, Op::PackWeight(_) | Op::Cast(_))).count();
    (machine.download(y), layers)
}

#[test]
fn what_follows_a_linear_layer_is_done_as_it_stores_its_result() {
    on_every_backend(|| {
        for channels in [24, 5] {
            let (single, eight) = branch_results(channels, true);
            let (fused, few) = branch_results(channels, false);
            assert_eq!(eight, 8);
            // CUDA's kernels for it take whole chunks of 16 bytes.
            assert!(few == 3 || few == 7 && channels == 5, "{few} nodes");
            assert_same_bits(&format!("y of {channels} channels"), &fused, &single);
        }
    });
    in_half(|| {
        for channels in [24, 5] {
            let (single, _) = branch_results(channels, true);
            let (fused, _) = branch_results(channels, false);
            let single: Vec<f64> = single.iter().map(|&v| f64::from(v)).collect();
            assert_close("y in bf16", &fused, &single, 1.0 / 64.0, 0.0);
        }
    });
}

/// Convolutions of an enlarged image and of two images side by side, forward and
/// backward; with `kept` the images between are wanted, so that they must be made.
#[cfg(langevin_cuda)]
fn in_place(kept: bool) -> Plan {
    use langevin::ops::resample::Method;

    let mut plan = Plan::new();
    let small = plan.activation("small", &[2, 2, 3, 32], DType::F32, Role::State);
    let side = plan.activation("side", &[2, 4, 6, 24], DType::F32, Role::State);
    let mut weight = |name: &str, shape: &[usize]| {
        plan.parameter(name, shape, DiskLayout::Same, Init::Constant(0.0), true)
    };
    let (w1, w2) = (weight("w1", &[64, 3, 3, 32]), weight("w2", &[8, 3, 3, 88]));
    let w3 = weight("w3", &[16, 1, 1, 88]);
    let same = ConvOptions { padding: Padding::same(1), ..ConvOptions::default() };
    let fits = "the shapes fit";
    let large = plan.resample(small, Method::Nearest { factor: 2 }).expect(fits);
    let h = plan.conv2d(large, w1, None, same).expect(fits);
    let both = plan.concat(h, side).expect(fits);
    // The second reads the concatenation enlarged again.
    let y = plan.conv2d(both, w2, None, same).expect(fits);
    let again = plan.resample(both, Method::Nearest { factor: 2 }).expect(fits);
    let z = plan.conv2d(again, w3, None, ConvOptions::default()).expect(fits);
    let mut seeds = Vec::new();
    for (name, result) in [("y", y), ("z", z)] {
        plan.tensors[result.index()].name = name.into();
        plan.keep(result);
        let shape = plan.shape(result).to_vec();
        let d = plan.activation(format!("d_{name}"), &shape, DType::F32, Role::State);
        seeds.push((result, Some(d)));
    }
    plan.derive(&seeds, Wrt::Parameters(Mode::Write)).expect("a derivative");
    if kept {
        [large, both, again].into_iter().for_each(|t| plan.keep(t));
    }
    plan
}

#[cfg(langevin_cuda)]
#[test]
fn images_that_convolutions_read_in_place_are_not_made() {
    use langevin::backend::Precision;
    use langevin::backend::cuda::Cuda;

    let device = crate::gpu::device().expect("the software GPU");
    let names = ["small", "side", "w1", "w2", "w3", "d_y", "d_z"];
    let wanted = ["y", "z", "d_w1", "d_w2", "d_w3"];
    for precision in [Precision::F32, Precision::Tf32, Precision::Bf16] {
        let run = |kept: bool| {
            let backend = Cuda::sharing(&device).expect("a backend").with_precision(precision);
            let mut machine = Machine::of(Box::new(backend), in_place(kept));
            let find = |m: &Machine, name: &str| m.program.plan.find(name).expect("a tensor");
            for (seed, name) in names.iter().enumerate() {
                let t = find(&machine, name);
                let len = machine.program.plan.tensor(t).len();
                machine.upload(t, &values(seed as u64, len));
            }
            machine.run();
            let results: Vec<Vec<f32>> =
                wanted.iter().map(|name| machine.download(find(&machine, name))).collect();
            let images = machine.program.plan.nodes.iter();
            let made = images.filter(|n| matches!(n.op, Op::Resample(_) | Op::Concat(_))).count();
            (results, made, machine.program.memory.activation_bytes)
        };
        let (fused, made, bytes) = run(false);
        let (single, all, more) = run(true);
        assert_eq!((made, all), (0, 3), "{precision}");
        assert!(bytes < more, "{precision}: {bytes} bytes against {more}");
        for ((name, fused), single) in wanted.iter().zip(&fused).zip(&single) {
            assert_same_bits(&format!("{name} in {precision}"), fused, single);
        }
    }
}

/// The head of a ResNet block on the way up: a norm and a shortcut read two tensors side by
/// side, and the second one is read once more. With `kept` the tensors are joined.
#[cfg(langevin_cuda)]
fn joined(kept: bool) -> Plan {
    use langevin::ops::norm::{Domain, NormOperands};

    let mut plan = Plan::new();
    let x = plan.activation("x", &[2, 5, 4, 8], DType::F32, Role::State);
    let side = plan.activation("side", &[2, 5, 4, 8], DType::F32, Role::State);
    let mut weight = |name: &str, shape: &[usize]| {
        plan.parameter(name, shape, DiskLayout::Same, Init::Constant(0.0), true)
    };
    let (w1, w2) = (weight("w1", &[64, 1, 1, 8]), weight("w2", &[8, 1, 1, 8]));
    let (w3, w4) = (weight("w3", &[16, 3, 3, 72]), weight("w4", &[16, 1, 1, 72]));
    let (gamma, w5) = (weight("gamma", &[72]), weight("w5", &[16, 1, 1, 8]));
    let (one, fits) = (ConvOptions::default(), "the shapes fit");
    let three = ConvOptions { padding: Padding::same(1), ..one };
    let a = plan.conv2d(x, w1, None, one).expect(fits);
    let b = plan.conv2d(side, w2, None, one).expect(fits);
    let again = plan.conv2d(b, w5, None, one).expect(fits);
    let both = plan.concat(a, b).expect(fits);
    let activation = Some(Activation::Silu);
    let operands = NormOperands { gamma: Some(gamma), activation, ..Default::default() };
    let h = plan.norm(both, Domain::Group(4), 1e-5, operands).expect(fits);
    let h = plan.conv2d(h, w3, None, three).expect(fits);
    let shortcut = plan.conv2d(both, w4, None, one).expect(fits);
    let y = plan.add(shortcut, h, 1.0).expect(fits);
    let y = plan.add(y, again, 1.0).expect(fits);
    plan.tensors[y.index()].name = "y".into();
    plan.keep(y);
    let d_y = plan.activation("d_y", &[2, 5, 4, 16], DType::F32, Role::State);
    plan.derive(&[(y, Some(d_y))], Wrt::Parameters(Mode::Write)).expect("a derivative");
    if kept {
        let d_both = plan.gradient(both).expect("derived");
        [both, d_both].into_iter().for_each(|t| plan.keep(t));
    }
    plan
}

#[cfg(langevin_cuda)]
#[test]
fn norms_read_two_tensors_side_by_side_and_split_their_gradient() {
    use langevin::backend::Precision;
    use langevin::backend::cuda::Cuda;

    let device = crate::gpu::device().expect("the software GPU");
    let uploads = ["x", "side", "w1", "w2", "w3", "w4", "w5", "gamma", "d_y"];
    let wanted = ["y", "d_w1", "d_w2", "d_w3", "d_w4", "d_w5", "d_gamma"];
    for precision in [Precision::F32, Precision::Tf32, Precision::Bf16] {
        let run = |kept: bool, seed: u64| {
            crate::gpu::set_seed(seed);
            let backend = Cuda::sharing(&device).expect("a backend").with_precision(precision);
            let mut machine = Machine::of(Box::new(backend), joined(kept));
            let find = |m: &Machine, name: &str| m.program.plan.find(name).expect("a tensor");
            for (seed, name) in uploads.iter().enumerate() {
                let t = find(&machine, name);
                let len = machine.program.plan.tensor(t).len();
                machine.upload(t, &values(seed as u64, len));
            }
            machine.run();
            let results: Vec<Vec<f32>> =
                wanted.iter().map(|name| machine.download(find(&machine, name))).collect();
            let is_made = |op: &Op| matches!(op, Op::Concat(_) | Op::ConcatBackward(_));
            (results, machine.program.plan.nodes.iter().filter(|n| is_made(&n.op)).count())
        };
        let (single, all) = run(true, 0);
        assert_eq!(all, 2, "{precision}");
        for seed in 0..crate::gpu::SEEDS {
            let (fused, made) = run(false, seed);
            assert_eq!(made, 0, "{precision}");
            for ((name, fused), single) in wanted.iter().zip(&fused).zip(&single) {
                let what = format!("{name} in {precision}");
                if precision != Precision::Bf16 || *name == "y" {
                    assert_same_bits(&what, fused, single);
                } else {
                    // Their sum is rounded to bf16 before it is split.
                    let single: Vec<f64> = single.iter().map(|&v| f64::from(v)).collect();
                    assert_close(&what, fused, &single, 1.0 / 128.0, 0.0);
                }
            }
        }
    }
}

/// What stands between the layers of a network needs no cast: see
/// [`Case::check`](crate::common::Case::check), which tests these ops in bf16 then.
#[cfg(langevin_cuda)]
#[test]
fn ops_between_layers_take_bf16() {
    use crate::common::{Case, Input};
    use langevin::ops::resample::Method;
    let twice = Method::Nearest { factor: 2 };
    let image = || Input::image(&[2, 4, 4, 8]);
    let keys = || Input::words(&[2, 4], &[1, 2, 3, 4, 5, 6, 7, 8]);
    let cases: [(&str, Case); 9] = [
        ("activate", Case::new(&[image()], |p, t| p.activate(t[0], Activation::Silu))),
        ("add", Case::new(&[image(), image()], |p, t| p.add(t[0], t[1], 0.5).unwrap())),
        ("scale", Case::new(&[image()], |p, t| p.scale(t[0], 2.0, 1.0))),
        ("concat", Case::new(&[image(), image()], |p, t| p.concat(t[0], t[1]).unwrap())),
        ("dropout", Case::new(&[image(), keys()], |p, t| p.dropout(t[0], t[1], 0.5, 0).unwrap())),
        ("resample", Case::new(&[image()], |p, t| p.resample(t[0], twice).unwrap())),
        (
            "add_per_image",
            Case::new(&[image(), Input::image(&[2, 8])], |p, t| {
                p.add_per_image(t[0], t[1]).unwrap()
            }),
        ),
        (
            "linear",
            Case::new(&[image(), Input::parameter(&[6, 8])], |p, t| {
                p.linear(t[0], t[1], None).unwrap()
            }),
        ),
        (
            "conv2d",
            Case::new(&[image(), Input::parameter(&[6, 1, 1, 8])], |p, t| {
                p.conv2d(t[0], t[1], None, Default::default()).unwrap()
            }),
        ),
    ];
    for (name, case) in cases {
        assert!(case.takes_halves(), "{name} is computed in f32");
    }
}

/// A network of two convolutions, sampled in three steps of DDIM from the same noise.
#[cfg(langevin_cuda)]
fn samples(backend: Box<dyn Backend>) -> (langevin::backend::Loaded, Vec<f32>) {
    use langevin::backend::{Engine, WeightSet};
    use langevin::diffusion::sampler::run::{Request, Sampling, Settings, step_plan};
    use langevin::diffusion::sampler::{Kind, Options, Program, Setup};

    let options = Options { steps: Some(3), ..Options::default() };
    let setup = Setup::of_scheduler(&Default::default(), options).expect("valid");
    let program = Program::new(Kind::Ddim, &setup).expect("valid");
    let settings = Settings {
        batch: 2,
        shape: vec![5, 8, 3],
        label: DType::F32,
        class: None,
        guidance: 1.0,
        given_noise: false,
    };
    let mut len = 0;
    let plan = step_plan(&program, &settings, |plan, t| {
        let mut weight = |name: &str, shape: &[usize]| {
            plan.parameter(name, shape, DiskLayout::Same, Init::Constant(0.0), true)
        };
        let (w1, w2) = (weight("w1", &[8, 3, 3, 3]), weight("w2", &[3, 3, 3, 8]));
        len = plan.parameters.arena_len();
        let same = ConvOptions { padding: Padding::same(1), ..ConvOptions::default() };
        let h = plan.conv2d(t.x, w1, None, same)?;
        plan.conv2d(h, w2, None, same)
    });
    let mut engine = Engine::new(backend, len, false).expect("memory");
    let weights: Vec<f32> = values(4, len).iter().map(|v| 0.2 * v).collect();
    engine.set_arena(langevin::plan::Space::Parameters, &weights).expect("memory");
    let lowered = engine.lower(plan.expect("fits")).expect("kernels");
    let loaded = engine.load(lowered, WeightSet::Raw).expect("memory");
    engine.refresh(&loaded).expect("runs");
    let sampling = Sampling { program: &program, settings: &settings, loaded: &loaded };
    let request = Request { count: 3, seed: 7, ..Request::default() };
    let drawn = sampling.run(&mut engine, &request, &mut |_, _| Ok(())).expect("runs");
    (loaded, drawn.images)
}

#[cfg(langevin_cuda)]
#[test]
fn a_sampler_in_bf16_hands_its_network_the_state_without_a_cast() {
    use crate::common::assert_close;
    use crate::gpu;
    use langevin::backend::Precision;
    use langevin::ops::sampler_step::INPUT;

    let Some(backend) = gpu::backend_in(Precision::Bf16) else { return };
    let expected: Vec<f64> = samples(Box::new(Cpu::new(1))).1.into_iter().map(f64::from).collect();
    let (loaded, found) = samples(backend);
    let plan = &loaded.program.plan;
    let input = plan.find(INPUT).expect("an input beside the state");
    assert_eq!(plan.tensor(input).dtype, DType::BF16);
    assert!(!plan.nodes.iter().any(|n| matches!(n.op, Op::Cast(_))), "nothing is cast");
    // Roundings of the first prediction grow as its noise is taken away.
    assert_close("samples in bf16", &found, &expected, 3e-2, 1.0);
}

/// The steps of ddpm-cifar10, for one image.
#[cfg(langevin_cuda)]
#[test]
fn the_steps_of_ddpm_cifar10_in_bf16_have_no_cast() {
    use crate::gpu;
    use langevin::backend::{Engine, Precision, Program};
    use langevin::config::{self, Config};
    use langevin::diffusion::sampler::{Kind, Options, Setup};
    use langevin::sample::Drawing;
    use langevin::train::step::{Images, StepPrograms};

    let Some(backend) = gpu::backend_in(Precision::Bf16) else { return };
    let mut config = Config::from_value(config::read("cifar10").expect("a preset")).expect("valid");
    config.train.batch = 1;
    let network = config.model.clone();
    let image = network.sample_shape().expect("presets name a size");
    let parameters = network.parameters().expect("valid");
    let engine = Engine::new(backend, 1, false).expect("memory");
    let casts = |program: &Program| -> Vec<String> {
        let plan = &program.plan;
        let casts = plan.nodes.iter().filter(|n| matches!(n.op, Op::Cast(_)));
        casts.map(|n| plan.tensor(n.input(0)).name.clone()).collect()
    };
    for (levels, resident) in [(0, None), (256, Some(10))] {
        let objective = config.objective(256).expect("a preset is valid");
        let images = Images { shape: image, levels, resident };
        let steps =
            StepPrograms::new(&engine, &network, &parameters, &config.train, &objective, images)
                .expect("valid");
        assert_eq!(casts(steps.programs()[0]), Vec::<String>::new(), "training");
    }
    let options = Options { steps: Some(4), ..Options::default() };
    let drawing = Drawing {
        network: &network,
        kind: Kind::Ddim,
        setup: Setup::of_scheduler(&config.scheduler, options).expect("valid"),
        image,
        batch: 1,
        guidance: 1.0,
        given_noise: false,
    };
    let prepared = drawing.prepare(&engine).expect("valid");
    assert_eq!(casts(prepared.program()), Vec::<String>::new(), "sampling");
}
