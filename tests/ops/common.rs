//! What every op's test does: one op in a tiny plan, against a reference in f64.
//!
//! ```text
//! Case::new(&[Input::image(&[2, 5, 5, 3]), Input::parameter(&[4, 3, 3, 3])],
//!           |plan, t| plan.conv2d(t[0], t[1], None, options).unwrap())
//!     .check(Terms { forward: 27, backward: 50 }, |x| reference(&x[0], &x[1]));
//! ```
//! [`Case::check`] compares the output with the reference and the gradients with
//! its central differences, starting from memory full of NaN; then that add mode
//! adds, that nothing else was written, that narrower vector instructions agree
//! to rounding, and that threads, a second run and the
//! rest of the batch change no bits; then the same on CUDA, where the kernels are
//! built in, in several orders of blocks and warps. [`Machine`] is the level below,
//! for ops that do not fit a case; a test that uses it runs on CUDA as well inside
//! [`on_every_backend`].

mod case;
#[cfg(langevin_cuda)]
mod in_bf16;
mod machine;

use std::cell::Cell;

pub use case::*;
use langevin::Result;
use langevin::backend::cpu::Cpu;
use langevin::backend::cpu::isa::Isa;
use langevin::backend::{Arenas, Backend, Precision, Program};
use langevin::plan::{
    DType, DiskLayout, Init, Mode, Plan, Role, Space, TensorId, Wrt, memory::ALIGNMENT,
};
pub use machine::Machine;

use super::gpu;

/// What memory holds before a test writes to it: a NaN with a payload of its own.
const SENTINEL: u32 = 0x7fc5_a5a5;

/// Deterministic values, uniform in [-1, 1) (SplitMix64).
pub fn values(seed: u64, len: usize) -> Vec<f32> {
    (0..len as u64)
        .map(|i| {
            let word = split_mix(seed.wrapping_mul(0x2545_f491_4f6c_dd1d).wrapping_add(i));
            (word >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

fn split_mix(i: u64) -> u64 {
    let mut z = i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Asserts `max |found - expected| <= tolerance * max(max |expected|, floor)`.
#[track_caller]
pub fn assert_close(what: &str, found: &[f32], expected: &[f64], tolerance: f64, floor: f64) {
    assert_eq!(found.len(), expected.len(), "{what}: number of elements");
    let scale = expected.iter().fold(floor, |m, v| m.max(v.abs()));
    for (i, (&f, &e)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(f) - e).abs();
        assert!(
            error <= tolerance * scale,
            "{what}[{i}] is {f:e}, expected {e:e}: off by {:.3e} of the largest value, allowed {tolerance:.3e}",
            error / scale
        );
    }
}

/// Asserts equality in bits, NaN included.
#[track_caller]
pub fn assert_same_bits(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}: number of elements");
    let differs = found.iter().zip(expected).position(|(f, e)| f.to_bits() != e.to_bits());
    if let Some(i) = differs {
        panic!("{what}[{i}] is {:e}, expected the bits of {:e}", found[i], expected[i]);
    }
}

/// Where machines are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Cpu,
    Cuda,
    /// CUDA with bf16 between ops.
    Half,
    /// CUDA with products in tf32.
    Tf32,
}

thread_local! {
    static TARGET: Cell<Target> = const { Cell::new(Target::Cpu) };
}

/// Runs `test` on CUDA, whatever number of threads it asks for.
fn on_cuda(test: impl FnOnce()) {
    TARGET.set(Target::Cuda);
    test();
    TARGET.set(Target::Cpu);
}

/// Runs `test` on CUDA in bf16, in several orders of blocks and warps, where the kernels
/// are built in. Tensors that a test uploads and downloads stay f32.
pub fn in_half(test: impl Fn()) {
    on_target(Target::Half, test);
}

/// The same in tf32.
pub fn in_tf32(test: impl Fn()) {
    on_target(Target::Tf32, test);
}

fn on_target(target: Target, test: impl Fn()) {
    if gpu::backend().is_some() {
        for seed in 0..gpu::SEEDS {
            gpu::set_seed(seed);
            TARGET.set(target);
            test();
            TARGET.set(Target::Cpu);
        }
    }
}

/// What a kernel of bf16 is given of these values.
pub fn rounded_to_half(values: &[f32]) -> Vec<f32> {
    values.iter().map(|&v| half::bf16::from_f32(v).to_f32()).collect()
}

/// The gradient by the output that [`Case::run`] starts from.
pub fn upstream(len: usize) -> Vec<f32> {
    values(99, len)
}

/// Runs `test` on the CPU, then on CUDA in several orders of blocks and warps,
/// where the kernels are built in.
pub fn on_every_backend(test: impl Fn()) {
    test();
    if gpu::backend().is_some() {
        for seed in 0..gpu::SEEDS {
            gpu::set_seed(seed);
            on_cuda(&test);
        }
    }
}
