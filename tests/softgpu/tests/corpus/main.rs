//! Small kernels compiled by nvcc, optimised and not, for compute_80 and compute_90, each against a
//! Rust reference.
#![allow(unsafe_code)] // Plain data seen as bytes.

#[path = "../common/mod.rs"]
mod common;

mod arith;
mod collective;
mod control;
mod convert;
mod grid;
mod matrix;
mod rounding;

use common::{Args, BUILDS, Host, compile};
use softgpu::settings::Settings;

/// Runs `test` on the corpus compiled in every way.
pub fn each_build(test: impl Fn(&mut Host)) {
    for (k, build) in BUILDS.into_iter().enumerate() {
        let Some(ptx) = compile("corpus", build) else { return };
        let settings = Settings { compute: (9, 0), seed: k as u64, ..Settings::default() };
        test(&mut Host::new(&ptx, settings));
    }
}

/// Elementwise kernel over three inputs; returns the outputs.
pub fn elementwise<T: Copy, R: Copy + Default>(
    host: &mut Host,
    kernel: &str,
    a: &[T],
    b: &[T],
    c: &[T],
) -> Vec<R> {
    let n = a.len();
    let (da, db, dc) = (host.upload(a), host.upload(b), host.upload(c));
    let out = host.alloc::<R>(n);
    let args = Args::new().ptr(out).ptr(da).ptr(db).ptr(dc).int(n as i32);
    host.launch(kernel, (n as u32).div_ceil(96), 96, 0, &args);
    host.download(out, n)
}

/// Elementwise kernel over one input.
pub fn unary<T: Copy, R: Copy + Default>(host: &mut Host, kernel: &str, a: &[T]) -> Vec<R> {
    let n = a.len();
    let da = host.upload(a);
    let out = host.alloc::<R>(n);
    let args = Args::new().ptr(out).ptr(da).int(n as i32);
    host.launch(kernel, (n as u32).div_ceil(96), 96, 0, &args);
    host.download(out, n)
}
