//! Plans put together by hand that ask for what is not there: an error that names the op,
//! on every backend and in every precision; no panic, no launch.

use langevin::backend::cpu::Cpu;
use langevin::backend::{Backend, Precision};
use langevin::ops::Op;
use langevin::ops::axis_map::AxisMap;
use langevin::ops::conv2d::{Conv2d, ConvOptions};
use langevin::ops::pointwise::{Add, Scale};
use langevin::plan::{DType, Mode, Plan, Role, TensorId, Write};

use super::gpu;

const PRECISIONS: [Precision; 3] = [Precision::F32, Precision::Tf32, Precision::Bf16];

/// The CPU, and CUDA in every precision where the kernels are built in.
fn backends() -> Vec<Box<dyn Backend>> {
    let mut all: Vec<Box<dyn Backend>> = vec![Box::new(Cpu::new(1))];
    all.extend(PRECISIONS.into_iter().filter_map(gpu::backend_in));
    all
}

/// An f32 input and a transient result.
fn operands(plan: &mut Plan, x: &[usize], y: &[usize]) -> (TensorId, TensorId) {
    (plan.input("x", x, DType::F32), plan.transient("y", y))
}

fn write(tensor: TensorId) -> Option<Write> {
    Some(Write { tensor, mode: Mode::Write })
}

/// Asserts that a backend refuses the plan with these words.
#[track_caller]
fn assert_refused(backend: &dyn Backend, plan: Plan, words: &[&str]) {
    let on = format!("{} in {}", backend.info().name, backend.info().precision);
    let error = backend.lower(plan).expect_err(&on).to_string();
    assert!(words.iter().all(|w| error.contains(w)), "{on}: {words:?} in {error}");
}

#[test]
fn a_descriptor_that_its_operands_do_not_follow_is_refused() {
    let scale = |len| Op::Scale(Scale { len, scale: 1.0, offset: 0.0 });
    let conv = |kernel, c_out| {
        let options = ConvOptions::default();
        Op::Conv2d(Conv2d { n: 1, h: 4, w: 4, c_in: 2, c_out, kernel, options })
    };
    for backend in backends() {
        let refused = |op: Op, words: &[&str]| {
            let mut plan = Plan::new();
            let (x, y) = operands(&mut plan, &[1, 4, 4, 2], &[1, 4, 4, 2]);
            plan.push(op, vec![Some(x), Some(x)], vec![write(y)]);
            plan.keep(y);
            assert_refused(&*backend, plan, words);
        };
        // One input too many; more elements than there are; no kernel; another weight.
        refused(scale(32), &["scale", "input 1", "nothing at this position"]);
        refused(scale(1 << 40), &["scale", "values of"]);
        refused(conv([0, 1], 2), &["conv2d_forward", "at least 1"]);
        refused(conv([1, 1], 2), &["conv2d_forward", "input 1"]);
        refused(conv([5, 5], 2), &["conv2d_forward", "holds the kernel"]);

        let refused = |inputs: &dyn Fn(TensorId, TensorId) -> Vec<Option<TensorId>>, words| {
            let mut plan = Plan::new();
            let (x, y) = operands(&mut plan, &[6], &[6]);
            plan.push(scale(6), inputs(x, y), vec![write(y)]);
            assert_refused(&*backend, plan, words);
        };
        refused(&|_, _| vec![], &["input 0 is missing"]);
        refused(&|_, _| vec![Some(TensorId(99))], &["not of this plan"]);
        refused(&|_, y| vec![Some(y)], &["read and written"]);
        let mut plan = Plan::new();
        let x = plan.input("x", &[6], DType::U32);
        let y = plan.transient("y", &[6]);
        plan.push(scale(6), vec![Some(x)], vec![write(y)]);
        assert_refused(&*backend, plan, &["scale", "U32"]);
    }
}

#[test]
fn bf16_where_no_kernel_writes_or_reads_it_is_refused() {
    for backend in backends() {
        // Written by an op that has f32 alone, whatever the precision.
        let mut plan = Plan::new();
        let x = plan.input("x", &[2, 8], DType::F32);
        let matrix = plan.input("matrix", &[4, 8], DType::F32);
        let y = plan.activation("y", &[2, 4], DType::BF16, Role::Transient);
        let op = AxisMap { outer: 2, from: 8, to: 4, inner: 1, transposed: false };
        plan.push_forward(Op::AxisMap(op), &[Some(x), Some(matrix)], &[y]);
        assert_refused(&*backend, plan, &["axis_map", "output 0 `y` (BF16)"]);

        // Beside f32: casts stand between them where the network is bf16, and else nothing.
        let mut plan = Plan::new();
        let x = plan.input("x", &[64], DType::F32);
        let half = plan.cast(x, DType::BF16);
        let y = plan.transient("y", &[64]);
        let op = Op::Add(Add { len: 64, scale: 1.0 });
        plan.push_forward(op, &[Some(x), Some(half)], &[y]);
        plan.keep(y);
        match backend.info().precision {
            Precision::Bf16 => {
                backend.lower(plan).expect("casts are put in");
            }
            _ => assert_refused(&*backend, plan, &["add", "BF16"]),
        }
    }
}
