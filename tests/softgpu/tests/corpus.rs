//! Small kernels compiled by nvcc, each against a Rust reference.

mod common;

use common::{Args, BUILDS, Host, Rng, compile};
use softgpu::settings::Settings;

#[test]
fn saxpy_and_block_sum_match() {
    for build in BUILDS {
        let Some(ptx) = compile("corpus", build) else { return };
        let settings = Settings { compute: (9, 0), ..Settings::default() };
        let mut host = Host::new(&ptx, settings);
        let n = 1000;
        let x = Rng(1).units(n);
        let y = Rng(2).units(n);
        let (dx, dy) = (host.upload(&x), host.upload(&y));
        host.launch("saxpy", 8, 128, 0, &Args::new().ptr(dy).ptr(dx).float(2.5).int(n as i32));
        let got: Vec<f32> = host.download(dy, n);
        for i in 0..n {
            assert!((got[i] - (2.5 * x[i] + y[i])).abs() < 1e-6);
        }
        let out = host.alloc::<f32>(4);
        host.launch("block_sum", 4, 256, 0, &Args::new().ptr(out).ptr(dx).int(n as i32));
        let got: Vec<f32> = host.download(out, 4);
        let want: f64 = x.iter().map(|&v| f64::from(v)).sum();
        assert!((f64::from(got.iter().sum::<f32>()) - want).abs() < 1e-4);
    }
}
