//! Tensor cores and asynchronous copies.

use half::{bf16, f16};
use softgpu::exec::tensor::dot;
use softgpu::isa::MmaType;
use softgpu::settings::{AsyncMode, MmaMode, Settings};

use super::common::{Args, BUILDS, Host, Rng, compile};

const M: usize = 32;
const N: usize = 24;
const K: usize = 48;

/// What chained mma instructions of depth `step` give.
fn reference(a: &[f32], b: &[f32], k: usize, step: usize, ty: MmaType, mode: MmaMode) -> f32 {
    (0..k).step_by(step).fold(0.0, |c, s| dot(&a[s..s + step], &b[s..s + step], c, ty, mode))
}

fn hosts(test: impl Fn(&mut Host, MmaMode)) {
    for (k, build) in BUILDS.into_iter().enumerate() {
        let Some(ptx) = compile("corpus", build) else { return };
        for mma in [MmaMode::Fast, MmaMode::A100, MmaMode::H100] {
            let asynchrony = if k % 2 == 0 { AsyncMode::Late } else { AsyncMode::Eager };
            let settings = Settings {
                compute: (9, 0),
                mma,
                asynchrony,
                seed: k as u64,
                ..Settings::default()
            };
            test(&mut Host::new(&ptx, settings), mma);
        }
    }
}

#[test]
fn fragments_of_every_type_land_where_the_isa_says() {
    let (a, b) = (Rng(41).units(M * K), Rng(42).units(N * K));
    let round = |v: &[f32], f: fn(f32) -> f32| v.iter().map(|&x| f(x)).collect::<Vec<f32>>();
    hosts(|h, mode| {
        let out = h.alloc::<f32>(M * N);
        let dims = [N as u32 / 8, M as u32 / 16, 1];
        let check = |h: &mut Host,
                     kernel: &str,
                     da: u64,
                     db: u64,
                     a: &[f32],
                     b: &[f32],
                     step: usize,
                     ty: MmaType| {
            let args = Args::new().ptr(out).ptr(da).ptr(db).int(N as i32).int(K as i32);
            h.try_launch3(kernel, dims, [32, 1, 1], 0, &args).unwrap_or_else(|f| panic!("{f}"));
            let got: Vec<f32> = h.download(out, M * N);
            for m in 0..M {
                for n in 0..N {
                    let want = reference(&a[m * K..][..K], &b[n * K..][..K], K, step, ty, mode);
                    assert_eq!(
                        got[m * N + n].to_bits(),
                        want.to_bits(),
                        "{kernel} {m},{n} {mode:?}"
                    );
                }
            }
        };
        let ha: Vec<bf16> = a.iter().map(|&x| bf16::from_f32(x)).collect();
        let hb: Vec<bf16> = b.iter().map(|&x| bf16::from_f32(x)).collect();
        let (da, db) = (h.upload(&ha), h.upload(&hb));
        let f = |x| bf16::from_f32(x).to_f32();
        check(h, "gemm_bf16", da, db, &round(&a, f), &round(&b, f), 16, MmaType::BF16);
        let ha: Vec<f16> = a.iter().map(|&x| f16::from_f32(x)).collect();
        let hb: Vec<f16> = b.iter().map(|&x| f16::from_f32(x)).collect();
        let (da, db) = (h.upload(&ha), h.upload(&hb));
        let f = |x| f16::from_f32(x).to_f32();
        check(h, "gemm_f16", da, db, &round(&a, f), &round(&b, f), 16, MmaType::F16);
        // f16 sums: close to the f32 ones.
        let small = h.alloc::<f16>(M * N);
        let args = Args::new().ptr(small).ptr(da).ptr(db).int(N as i32).int(K as i32);
        h.try_launch3("gemm_f16_f16", dims, [32, 1, 1], 0, &args).unwrap_or_else(|f| panic!("{f}"));
        let wide: Vec<f32> = h.download(out, M * N);
        for (s, w) in h.download::<u16>(small, M * N).iter().zip(&wide) {
            assert!((f16::from_bits(*s).to_f32() - w).abs() < 0.02);
        }
        let (da, db) = (h.upload(&a), h.upload(&b));
        let f = |x: f32| f32::from_bits(x.to_bits().wrapping_add(0x1000) & !0x1fff);
        check(h, "gemm_tf32", da, db, &round(&a, f), &round(&b, f), 8, MmaType::TF32);
    });
}

#[test]
fn pipelined_gemm_matches_and_has_no_bank_conflicts() {
    let (m, n, k) = (40, 64, 96);
    let (a, b) = (Rng(43).units(m * k), Rng(44).units(k * n));
    let to = |v: &[f32]| v.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>();
    let (ha, hb) = (to(&a), to(&b));
    hosts(|h, mode| {
        let (da, db) = (h.upload(&ha), h.upload(&hb));
        let out = h.alloc::<f32>(m * n);
        let args = Args::new().ptr(out).ptr(da).ptr(db).int(m as i32).int(n as i32).int(k as i32);
        let stats = h
            .try_launch3("gemm_pipeline", [2, 2, 1], [64, 1, 1], 0, &args)
            .unwrap_or_else(|f| panic!("{f}"));
        let got: Vec<f32> = h.download(out, m * n);
        for r in 0..m {
            for c in 0..n {
                let x: Vec<f32> = (0..k).map(|i| ha[r * k + i].to_f32()).collect();
                let y: Vec<f32> = (0..k).map(|i| hb[i * n + c].to_f32()).collect();
                let want = reference(&x, &y, k, 16, MmaType::BF16, mode);
                assert_eq!(got[r * n + c].to_bits(), want.to_bits(), "{r},{c} {mode:?}");
            }
        }
        // The pitch of 40 elements spreads eight rows over all banks.
        let matrix = stats.accesses.iter().filter(|l| l.text.contains("ldmatrix"));
        assert!(matrix.clone().count() > 0);
        assert!(matrix.into_iter().all(|l| l.stats.conflict_ratio == 1.0));
        assert!(stats.mma_share > 0.0);
    });
}

#[test]
fn pipeline_primitives_copy() {
    let a: Vec<i32> = (0..256).map(|i| i * 3 + 1).collect();
    hosts(|h, _| {
        let (da, out) = (h.upload(&a), h.alloc::<i32>(64));
        h.launch("pipeline_copy", 1, 64, 0, &Args::new().ptr(out).ptr(da).int(1));
        let got: Vec<i32> = h.download(out, 64);
        for i in 0..64 {
            assert_eq!(got[i], (0..4).map(|k| a[k * 64 + 63 - i] * (k as i32 + 1)).sum::<i32>());
        }
    });
}
