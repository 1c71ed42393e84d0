//! Single kernels called from Rust give what the CPU backend's plan gives.

#![cfg(langevin_cuda)]

use langevin::Error;
use langevin::backend::cpu::Cpu;
use langevin::backend::{Arenas, Backend};
use langevin::kernels::{DeviceTensor, Kernels, Output};
use langevin::ops::Op;
use langevin::ops::conv2d::{Conv2d, ConvOptions, Padding};
use langevin::ops::embedding::Lookup;
use langevin::ops::linear::Linear;
use langevin::ops::norm::{Domain, Norm};
use langevin::ops::pointwise::Scale;
use langevin::ops::sampler_step::{SamplerStep, column};
use langevin::plan::{DType, Mode, Plan, Role, Space, TensorId, Write};
use langevin::random::{Purpose, fill_normal, image_keys};

use crate::gpu;

fn kernels() -> Kernels {
    Kernels::on(&gpu::device().expect("built in")).expect("kernels")
}

fn normals(seed: u64, len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    fill_normal(image_keys(seed, 0), Purpose::Probe, 0, 0, &mut values);
    values
}

/// The same ops on the CPU.
fn on_cpu(
    inputs: &[(&[usize], &[f32])],
    build: impl Fn(&mut Plan, &[TensorId]) -> langevin::Result<TensorId>,
) -> Vec<f32> {
    let (mut cpu, mut plan) = (Cpu::new(1), Plan::new());
    let ids: Vec<TensorId> = (0..inputs.len())
        .map(|i| plan.activation(format!("x{i}"), inputs[i].0, DType::F32, Role::State))
        .collect();
    let y = build(&mut plan, &ids).expect("shapes fit");
    plan.keep(y);
    let len = plan.tensor(y).len();
    let program = cpu.lower(plan).expect("lowers");
    let mut allocate = |bytes| Some(cpu.allocate(bytes, "a test").expect("memory"));
    let activations = allocate(program.memory.activation_bytes);
    let packed = allocate(program.memory.packed_bytes);
    let arenas = Arenas { activations, packed, ..Arenas::default() };
    let arena = activations.expect("allocated");
    for (id, (_, values)) in ids.iter().zip(inputs) {
        let bytes = bytemuck::cast_slice(values);
        cpu.upload(&arena, program.place(*id).1, bytes).expect("upload");
    }
    cpu.refresh(&program, &arenas).expect("refresh");
    cpu.run(&program, &arenas).expect("run");
    let mut found = vec![0f32; len];
    let bytes = bytemuck::cast_slice_mut(&mut found);
    cpu.download(&arena, program.place(y).1, bytes).expect("download");
    found
}

fn assert_close(found: &[f32], expected: &[f32]) {
    let scale = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
    for (f, e) in found.iter().zip(expected) {
        assert!((f - e).abs() <= 1e-5 * scale, "{f:e} and {e:e}");
    }
}

#[test]
fn kernels_called_alone_agree_with_the_cpu() {
    let k = kernels();
    let options = ConvOptions { padding: Padding::same(1), ..Default::default() };
    let (x, w) = (normals(1, 2 * 5 * 5 * 3), normals(2, 4 * 9 * 3));
    let [sx, sw] = [[2, 5, 5, 3], [4, 3, 3, 3]];
    let build = |p: &mut Plan, t: &[TensorId]| {
        let y = p.conv2d(t[0], t[1], None, options)?;
        Ok(p.scale(y, 0.5, 1.0))
    };
    let [dx, dw] = [(&sx, &x), (&sw, &w)].map(|(s, v)| k.upload(s, v).expect("upload"));
    let y = k.run(&[&dx, &dw], build).expect("runs");
    assert_eq!(y.shape(), [2, 5, 5, 4]);
    let expected = on_cpu(&[(&sx, &x), (&sw, &w)], build);
    assert_close(&k.download(&y).expect("download"), &expected);
    // Gradients: of sum y conv(x) by w, linear in w, so w . d_w = sum y (y - 1).
    let d = k.gradients(&[&dx, &dw], &y, build).expect("runs");
    let d_w = k.download(d[1].as_ref().expect("a gradient")).expect("download");
    let found: f64 = w.iter().zip(&d_w).map(|(a, b)| f64::from(a * b)).sum();
    let values = expected;
    let expected: f64 = values.iter().map(|&y| f64::from(y) * (f64::from(y) - 1.0)).sum();
    assert!((found - expected).abs() <= 1e-5 * expected.abs(), "{found} and {expected}");

    // Into tensors of the caller's own.
    let mut sum = k.upload(&[2, 5, 5, 4], &vec![1.0; 200]).expect("upload");
    k.update(&[&y], &mut [&mut sum], |plan, read, changed| {
        plan.scale_into(read[0], 2.0, changed[0], Mode::Add);
        Ok(())
    })
    .expect("runs");
    let twice: Vec<f32> = values.iter().map(|y| 1.0 + 2.0 * y).collect();
    assert_close(&k.download(&sum).expect("download"), &twice);
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let k = kernels();
    assert!(matches!(k.upload(&[2, 3], &[0.0; 5]), Err(Error::Shape { op: "upload", .. })));
    let x = k.zeros(&[2, 3]).expect("memory");
    let w = k.zeros(&[4, 5]).expect("memory");
    let error = k.run(&[&x, &w], |p, t| p.linear(t[0], t[1], None)).unwrap_err();
    assert!(matches!(error, Error::Shape { op: "linear", .. }), "{error}");
}

#[test]
fn functions_write_and_add_what_the_derived_gradient_holds() {
    let k = kernels();
    let op = Linear::new(3, 5, 4);
    let (x, w, d_y) = (normals(3, 15), normals(4, 20), normals(5, 12));
    let x = k.upload(&[3, 5], &x).expect("upload");
    let w = k.upload(&[4, 5], &w).expect("upload");
    let d_y = k.upload(&[3, 4], &d_y).expect("upload");
    let expected = k.gradients(&[&x, &w], &d_y, |p, t| p.linear(t[0], t[1], None)).expect("runs");
    let mut d_x = k.zeros(&[3, 5]).expect("memory");
    let mut d_w = k.zeros(&[4, 5]).expect("memory");
    k.linear_backward_data(&op, Output::write(&mut d_x), &d_y, &w).expect("runs");
    for _ in 0..2 {
        let d_w = Some(Output::add(&mut d_w));
        k.linear_backward_weight(&op, d_w, None, &x, &d_y).expect("runs");
    }
    let of = |t: &DeviceTensor| k.download(t).expect("download");
    assert_close(&of(&d_x), &of(expected[0].as_ref().expect("a gradient")));
    let once = of(expected[1].as_ref().expect("a gradient"));
    assert_close(&of(&d_w), &once.iter().map(|d| 2.0 * d).collect::<Vec<_>>());
}

#[test]
fn descriptors_that_their_operands_do_not_follow_are_refused() {
    let k = kernels();
    let x = k.zeros(&[4]).expect("memory");
    let mut y = k.zeros(&[4]).expect("memory");
    let long = Scale { len: 1 << 40, scale: 1.0, offset: 0.0 };
    let refused = |result: langevin::Result<()>, words: &str| {
        let error = result.expect_err("must be refused").to_string();
        assert!(error.contains(words), "`{words}` in {error}");
    };
    refused(k.scale(&long, Output::write(&mut y), &x), "values of");
    let index = k.upload_u32(&[4], &[0; 4]).expect("upload");
    let op = Scale { len: 4, scale: 1.0, offset: 0.0 };
    refused(k.scale(&op, Output::write(&mut y), &index), "U32");
    refused(k.launch(Op::Scale(op), vec![], &[Some(&x)]), "output 0 is missing");
    let huge = Padding { top: usize::MAX, ..Padding::default() };
    let options = ConvOptions { padding: huge, ..ConvOptions::default() };
    let conv = Conv2d { n: 1, h: 1, w: 1, c_in: 2, c_out: 2, kernel: [1, 1], options };
    refused(k.conv2d_forward(&conv, Output::write(&mut y), &x, &x, None), "positions");
    let none = Conv2d { kernel: [0, 1], options: ConvOptions::default(), ..conv };
    refused(k.conv2d_forward(&none, Output::write(&mut y), &x, &x, None), "at least 1");
    let groups = Norm {
        n: 1,
        spatial: 1,
        channels: 4,
        domain: Domain::Group(0),
        eps: 1e-5,
        activation: None,
    };
    let [mut mean, mut rstd] = [(); 2].map(|()| k.zeros(&[1]).expect("memory"));
    let (mean, rstd) = (Output::write(&mut mean), Output::write(&mut rstd));
    let result = k.norm_forward(&groups, Output::write(&mut y), mean, rstd, &x, None, None, None);
    refused(result, "groups divide");

    // The same where a plan is built by hand.
    let write = |tensor| vec![Some(Write { tensor, mode: Mode::Write })];
    let result = k.run(&[&x], |plan, t| {
        let y = plan.transient("y", &[4]);
        plan.push(Op::Scale(long), vec![Some(t[0])], write(y));
        Ok(y)
    });
    refused(result.map(drop), "values of");
    let result = k.run(&[&x], |plan, t| {
        plan.tensors[t[0].index()].shape = vec![8];
        Ok(plan.scale(t[0], 1.0, 0.0))
    });
    refused(result.map(drop), "operand_0");
    refused(k.run(&[&x], |_, t| Ok(t[0])).map(drop), "not what an op writes");
    refused(k.run(&[&x], |_, _| Ok(TensorId(99))).map(drop), "not what an op writes");
    let whole = |plan: &mut Plan| plan.whole("gradients", Space::Gradients, 4);
    let result = k.run(&[&x], |plan, _| {
        let all = whole(plan);
        Ok(plan.scale(all, 1.0, 0.0))
    });
    refused(result.map(drop), "neither an operand");
    assert!(k.upload(&[], &[1.0]).is_err() && k.zeros(&[usize::MAX, 2]).is_err());
}

/// What bf16 keeps of values.
fn rounded(values: &[f32]) -> (Vec<half::bf16>, Vec<f32>) {
    let halves: Vec<half::bf16> = values.iter().map(|&v| half::bf16::from_f32(v)).collect();
    let single = halves.iter().map(|v| v.to_f32()).collect();
    (halves, single)
}

/// Agreement to a rounding of the result to bf16.
fn assert_close_in_half(found: &[half::bf16], expected: &[f32]) {
    let scale = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
    for (f, e) in found.iter().zip(expected) {
        assert!((f.to_f32() - e).abs() <= scale / 256.0, "{f:e} and {e:e}");
    }
}

#[test]
fn kernels_of_bf16_take_tensors_of_it_and_give_them() {
    let k = kernels();
    let options = ConvOptions { padding: Padding::same(1), ..Default::default() };
    let [sx, sw] = [[2, 5, 5, 8], [16, 3, 3, 8]];
    let ((hx, x), (hw, w)) = (rounded(&normals(1, 400)), rounded(&normals(2, 1152)));
    let build = |p: &mut Plan, t: &[TensorId]| {
        let y = p.conv2d(t[0], t[1], None, options)?;
        Ok(p.scale(y, 0.5, 0.0))
    };
    let [dx, dw] = [(&sx, &hx), (&sw, &hw)].map(|(s, v)| k.upload_bf16(s, v).expect("upload"));
    let y = k.run(&[&dx, &dw], build).expect("runs");
    assert_eq!((y.shape(), y.dtype()), (&[2, 5, 5, 16][..], DType::BF16));
    let found = k.download_bf16(&y).expect("download");
    assert_close_in_half(&found, &on_cpu(&[(&sx, &x), (&sw, &w)], build));

    // Gradients by images are bf16, by weights f32; those by f32 tensors are the CPU's.
    let d = k.gradients(&[&dx, &dw], &y, build).expect("runs");
    let [Some(d_x), Some(d_w)] = &d[..] else { panic!("two gradients") };
    assert_eq!((d_x.dtype(), d_w.dtype()), (DType::BF16, DType::F32));
    let single = [(&sx, &x), (&sw, &w)].map(|(s, v)| k.upload(s, v).expect("upload"));
    let up: Vec<f32> = found.iter().map(|v| v.to_f32()).collect();
    let up = k.upload(&[2, 5, 5, 16], &up).expect("upload");
    let exact = k.gradients(&[&single[0], &single[1]], &up, build).expect("runs");
    let [Some(e_x), Some(e_w)] = &exact[..] else { panic!("two gradients") };
    let (d_x, e_x) = (k.download_bf16(d_x).expect("bf16"), k.download(e_x).expect("f32"));
    assert_close_in_half(&d_x, &e_x);
    let (d_w, e_w) = (k.download(d_w).expect("f32"), k.download(e_w).expect("f32"));
    // The upstream gradient was rounded once more on its way through the scaling.
    assert_close_in_half(&rounded(&d_w).0, &e_w);

    // One launch, written and then added to.
    let op = Linear::new(50, 8, 144);
    let flat = k.upload_bf16(&[50, 8], &hx).expect("upload");
    let mut y = k.zeros_of(&[50, 144], DType::BF16).expect("memory");
    k.linear_forward(&op, Output::write(&mut y), &flat, &dw, None).expect("runs");
    let once = on_cpu(&[(&[50, 8], &x), (&[144, 8], &w)], |p, t| p.linear(t[0], t[1], None));
    assert_close_in_half(&k.download_bf16(&y).expect("download"), &once);
    k.linear_forward(&op, Output::add(&mut y), &flat, &dw, None).expect("runs");
    let twice: Vec<f32> = once.iter().map(|v| 2.0 * v).collect();
    assert_close_in_half(&k.download_bf16(&y).expect("download"), &twice);
}

#[test]
fn tensors_of_two_types_are_refused_where_an_op_takes_one() {
    let k = kernels();
    let (single, two_bytes) = (DType::F32, DType::BF16);
    let zeros = |shape: &[usize], dtype| k.zeros_of(shape, dtype).expect("memory");
    let refused = |result: langevin::Result<()>, words: &[&str]| {
        let error = result.expect_err("must be refused").to_string();
        assert!(words.iter().all(|w| error.contains(w)), "{words:?} in {error}");
    };
    let op = Linear::new(2, 8, 4);
    let (x, w) = (zeros(&[2, 8], two_bytes), zeros(&[4, 8], two_bytes));
    let mut y = zeros(&[2, 4], single);
    let result = k.linear_forward(&op, Output::write(&mut y), &x, &w, None);
    refused(result, &["linear_forward", "output 0", "BF16"]);
    let w = zeros(&[4, 8], single);
    let mut y = zeros(&[2, 4], two_bytes);
    refused(k.linear_forward(&op, Output::write(&mut y), &x, &w, None), &["input 1", "BF16"]);
    // A map along an axis, which no kernel has in bf16: by itself, and at the end of a plan.
    let map =
        langevin::ops::axis_map::AxisMap { outer: 2, from: 8, to: 4, inner: 1, transposed: false };
    refused(k.axis_map(&map, Output::write(&mut y), &x, &w), &["axis_map", "F32"]);
    let result = k.run(&[&x, &w], |plan, t| {
        let y = plan.activation("y", &[2, 4], two_bytes, Role::Transient);
        plan.push_forward(Op::AxisMap(map), &[Some(t[0]), Some(t[1])], &[y]);
        Ok(y)
    });
    refused(result.map(drop), &["axis_map", "F32"]);
    let result = k.run(&[&x, &w], |plan, t| plan.linear(t[0], t[1], None));
    refused(result.map(drop), &["linear_forward", "input 1"]);
    refused(k.download(&x).map(drop), &["BF16", "F32"]);
    refused(k.download_bf16(&w).map(drop), &["F32", "BF16"]);
    assert!(k.upload_bf16(&[3], &[half::bf16::ONE; 2]).is_err());
}

#[test]
fn a_class_outside_its_table_is_named_with_its_value() {
    let k = kernels();
    let op = Lookup { n: 3, rows: 4, dim: 2 };
    let table = k.zeros(&[4, 2]).expect("memory");
    let mut y = k.zeros(&[3, 2]).expect("memory");
    let index = k.upload_u32(&[3], &[3, 12, 0]).expect("upload");
    let error = k.lookup_forward(&op, Output::write(&mut y), &table, &index).unwrap_err();
    let said = error.to_string();
    assert!(said.contains("class 12 of image 1") && said.contains("0..4"), "{said}");
    let index = k.upload_u32(&[3], &[3, 2, 0]).expect("upload");
    k.lookup_forward(&op, Output::write(&mut y), &table, &index).expect("reported once");
}

#[test]
fn a_sampler_stays_inside_its_slots_whatever_its_row_says() {
    let k = kernels();
    let op = SamplerStep {
        n: 1,
        spatial: 4,
        channels: 1,
        prediction_channels: 1,
        slots: 1,
        stages: 1,
        per_image: false,
        guided: false,
        label_is_index: false,
    };
    let mut row = [0f32; column::COLUMNS];
    (row[column::INPUT_SLOT], row[column::TARGET]) = (5.0, 6.0);
    row[column::TARGET + 1] = column::LEARNED;
    row[column::OUTPUT + column::OF_NOISE] = 1.0;
    let table = k.upload(&[1, 1, column::COLUMNS], &row).expect("upload");
    let prediction = k.zeros(&[1, 4, 1]).expect("memory");
    let (stage, keys) = (k.upload_u32(&[1], &[900]), k.upload_u32(&[1, 4], &[1, 2, 3, 4]));
    let (stage, keys) = (stage.expect("upload"), keys.expect("upload"));
    let mut label = k.zeros(&[1]).expect("memory");
    let mut slots = [k.zeros(&[1, 4, 1]).expect("memory")];
    let label = Output::write(&mut label);
    let operands = (Some(&stage), &keys);
    k.sampler_step(
        &op,
        label,
        None,
        &mut slots,
        None,
        None,
        &prediction,
        &table,
        operands.0,
        operands.1,
        None,
        None,
    )
    .expect("runs");
    let mut expected = [0f32; 4];
    fill_normal([1, 2, 3, 4], Purpose::SampleStep, 0, 0, &mut expected);
    assert_eq!(k.download(&slots[0]).expect("no finding"), expected);
}

#[test]
fn the_example_of_a_foreign_program_runs() {
    let Some(driver) = crate::driver() else { return };
    let test = std::env::current_exe().expect("path of the test");
    let profile = test.parent().and_then(|deps| deps.parent()).expect("the profile's folder");
    let example = profile.join("examples/kernels");
    if !example.exists() {
        eprintln!("SKIPPED: cargo test builds {} without a filter alone", example.display());
        return;
    }
    let mut command = std::process::Command::new(example);
    let output = command.env("LD_LIBRARY_PATH", crate::library_path(driver.path())).output();
    let output = output.expect("it starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", crate::errors_of(&output));
    assert!(said.contains("d_filter [16, 3, 3, 3]") && said.contains("in bf16"), "{said}");
}
