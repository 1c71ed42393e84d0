//! Single kernels called from Rust give what the CPU backend's plan gives.

#![cfg(langevin_cuda)]

use langevin::Error;
use langevin::backend::cpu::Cpu;
use langevin::backend::{Arenas, Backend};
use langevin::kernels::Kernels;
use langevin::ops::conv2d::{ConvOptions, Padding};
use langevin::plan::{DType, Mode, Plan, Role, TensorId};
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
