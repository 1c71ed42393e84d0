//! Cooperative launches, order between blocks by flags, rare special registers.

use softgpu::finding::FindingKind;

use super::common::{Args, Host, Rng};
use super::each_build;

/// Launches all blocks at once.
fn together(h: &mut Host, kernel: &str, grid: u32, block: u32, args: &Args) {
    let result = h.try_launch_as(kernel, grid, block, args, true);
    result.unwrap_or_else(|f| panic!("{f}"));
}

#[test]
fn the_grid_meets_at_its_barrier() {
    each_build(|h| {
        for (blocks, n) in [(1, 40), (5, 1000)] {
            let a: Vec<f32> = Rng(4).units(n).iter().map(|x| x + 1.5).collect();
            let da = h.upload(&a);
            let (out, part) = (h.alloc::<f32>(n), h.alloc::<f32>(blocks as usize));
            let last = h.alloc::<f32>(1);
            let args = Args::new().ptr(out).ptr(part).ptr(last).ptr(da).int(n as i32);
            // Twice: the barrier's counter is found as the first launch left it or made anew.
            for _ in 0..2 {
                together(h, "grid_normalise", blocks, 96, &args);
            }
            let sum: f64 = a.iter().map(|&x| f64::from(x)).sum();
            let got: Vec<f32> = h.download(out, n);
            for i in 0..n {
                assert!((f64::from(got[i]) - f64::from(a[i]) / sum).abs() < 1e-6);
            }
            assert_eq!(h.download::<f32>(last, 1)[0], got[n - 1]);
        }
    });
}

#[test]
fn a_grid_barrier_in_an_ordinary_launch_traps() {
    each_build(|h| {
        let da = h.upload(&[1f32; 64]);
        let out = h.alloc::<f32>(64);
        let args = Args::new().ptr(out).ptr(out).ptr(out).ptr(da).int(64);
        let found = h.try_launch("grid_normalise", 1, 64, 0, &args).expect_err("no workspace");
        assert_eq!(found.kind, FindingKind::Trap);
    });
}

#[test]
fn flags_order_blocks() {
    for kernel in ["relay", "relay_fences"] {
        each_build(|h| {
            let value = h.alloc::<i32>(9);
            let flag = h.upload(&[0i32; 9]);
            together(h, kernel, 9, 32, &Args::new().ptr(value).ptr(flag));
            let want: Vec<i32> = (1..=9).map(|k| (1 << k) - 1).collect();
            assert_eq!(h.download::<i32>(value, 9), want);
        });
    }
}

#[test]
fn flags_alone_order_nothing() {
    each_build(|h| {
        let value = h.alloc::<i32>(9);
        let flag = h.upload(&[0i32; 9]);
        let args = Args::new().ptr(value).ptr(flag);
        let found = h.try_launch_as("relay_unordered", 9, 32, &args, true).expect_err("a race");
        assert_eq!(found.kind, FindingKind::GlobalRace);
    });
}

#[test]
fn workers_run_blocks_at_the_same_time() {
    each_build(|h| {
        let flag = h.upload(&[0i32; 2]);
        h.gpu.settings.threads = 2;
        h.launch("meet", 2, 512, 0, &Args::new().ptr(flag));
        // One worker runs one block after the other: the first never ends.
        h.gpu.settings.threads = 1;
        h.gpu.settings.max_steps = 100_000;
        let flag = h.upload(&[0i32; 2]);
        let args = Args::new().ptr(flag);
        let found = h.try_launch("meet", 2, 512, 0, &args).expect_err("it never ends");
        assert_eq!(found.kind, FindingKind::StepLimit);
    });
}

#[test]
fn nth_set_bits_match() {
    fn reference(mask: u32, base: u32, n: i32) -> u32 {
        let hits: Vec<u32> = match n.signum() {
            0 => (base..=base).filter(|&b| mask >> b & 1 == 1).collect(),
            1 => (base..32).filter(|&b| mask >> b & 1 == 1).collect(),
            _ => (0..=base).rev().filter(|&b| mask >> b & 1 == 1).collect(),
        };
        hits.get((n.unsigned_abs().max(1) - 1) as usize).copied().unwrap_or(u32::MAX)
    }
    each_build(|h| {
        let mut rng = Rng(11);
        let mask: Vec<u32> = (0..32).map(|_| rng.next() as u32).collect();
        let n: Vec<i32> = (0..32).map(|_| (rng.next() % 9) as i32 - 4).collect();
        let (dm, dn, out) = (h.upload(&mask), h.upload(&n), h.alloc::<u32>(32));
        h.launch("nth_set", 1, 32, 0, &Args::new().ptr(out).ptr(dm).ptr(dn));
        let got: Vec<u32> = h.download(out, 32);
        for i in 0..32 {
            assert_eq!(got[i], reference(mask[i], i as u32, n[i]), "lane {i}");
        }
    });
}

#[test]
fn special_registers_answer() {
    each_build(|h| {
        let out = h.alloc::<u32>(8);
        h.launch("special_registers", 1, 1, 0, &Args::new().ptr(out));
        assert_eq!(h.download::<u32>(out, 8), [1, 1, 0, 0, 0, 32, 0, 1]);
    });
}
