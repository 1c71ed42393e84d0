//! Threads together: shared memory, warps, atomics, vectors.

use super::common::{Args, Rng};
use super::each_build;

fn ints(seed: u64, n: usize, below: u64) -> Vec<i32> {
    let mut rng = Rng(seed);
    (0..n).map(|_| (rng.next() % below) as i32).collect()
}

#[test]
fn saxpy_and_sums_match() {
    each_build(|h| {
        let n = 1000;
        let (x, y) = (Rng(1).units(n), Rng(2).units(n));
        let (dx, dy) = (h.upload(&x), h.upload(&y));
        h.launch("saxpy", 8, 128, 0, &Args::new().ptr(dy).ptr(dx).float(2.5).int(n as i32));
        let got: Vec<f32> = h.download(dy, n);
        for i in 0..n {
            assert!((got[i] - (2.5 * x[i] + y[i])).abs() < 1e-6);
        }
        let want: f64 = x.iter().map(|&v| f64::from(v)).sum();
        let out = h.alloc::<f32>(4);
        h.launch("block_sum", 4, 256, 0, &Args::new().ptr(out).ptr(dx).int(n as i32));
        let got: f32 = h.download::<f32>(out, 4).iter().sum();
        assert!((f64::from(got) - want).abs() < 1e-4);
        let (total, partial, done) = (h.alloc::<f32>(1), h.alloc::<f32>(7), h.upload(&[0u32]));
        let args = Args::new().ptr(total).ptr(partial).ptr(done).ptr(dx).int(n as i32);
        h.launch("last_block_sum", 7, 128, 0, &args);
        assert!((f64::from(h.download::<f32>(total, 1)[0]) - want).abs() < 1e-4);
    });
}

/// Blocks that count at the same moment: each has published its part before its own count.
#[test]
fn the_last_of_many_blocks_is_ordered_behind_all_others() {
    each_build(|h| {
        h.gpu.settings.threads = 4;
        let (n, blocks) = (64, 64);
        let x = h.upload(&vec![1f32; n]);
        for _ in 0..50 {
            let (total, done) = (h.alloc::<f32>(1), h.upload(&[0u32]));
            let partial = h.alloc::<f32>(blocks as usize);
            let args = Args::new().ptr(total).ptr(partial).ptr(done).ptr(x).int(n as i32);
            h.launch("last_block_sum", blocks, 128, 0, &args);
            assert_eq!(h.download::<f32>(total, 1), [n as f32]);
        }
    });
}

#[test]
fn transposes_through_shared_memory_without_conflicts() {
    each_build(|h| {
        let (rows, cols) = (45, 70);
        let a = Rng(3).units(rows * cols);
        let da = h.upload(&a);
        let out = h.alloc::<f32>(rows * cols);
        let args = Args::new().ptr(out).ptr(da).int(rows as i32).int(cols as i32);
        let stats = h
            .try_launch3("transpose", [3, 2, 1], [32, 8, 1], 0, &args)
            .unwrap_or_else(|f| panic!("{f}"));
        let got: Vec<f32> = h.download(out, rows * cols);
        for r in 0..rows {
            for c in 0..cols {
                assert_eq!(got[c * rows + r], a[r * cols + c]);
            }
        }
        assert_eq!(stats.shared.conflict_ratio, 1.0, "the padding column avoids every conflict");
    });
}

#[test]
fn warp_primitives_match() {
    each_build(|h| {
        let a: Vec<u32> = (0..32).map(|i| (i * i + 3) % 41).collect();
        let da = h.upload(&a);
        let out = h.alloc::<u32>(32);
        h.launch("warp_primitives", 1, 32, 0, &Args::new().ptr(out).ptr(da));
        let got: Vec<u32> = h.download(out, 32);
        for i in 0..32usize {
            let mut s = a[(a[i] as usize + 3) & 31];
            let mut mix = |v: u32| s = s.wrapping_mul(31).wrapping_add(v);
            mix(a[i.checked_sub(3).unwrap_or(i)]);
            mix(a[if i + 5 < 32 { i + 5 } else { i }]);
            mix(a[i ^ 9]);
            mix((0..32).filter(|&j| a[j] & 1 == 1).fold(0, |m, j| m | 1 << j));
            mix(u32::from(a.contains(&7)) + 2);
            mix((0..32).filter(|&j| a[j] & 3 == a[i] & 3).fold(0, |m, j| m | 1 << j));
            mix(a.iter().sum::<u32>() + a.iter().max().unwrap() + a.iter().fold(0, |x, y| x | y));
            if i & 1 == 1 {
                mix(a[5] + 0xaaaa_aaaa);
            }
            assert_eq!(got[i], s, "lane {i}");
        }
    });
}

#[test]
fn atomics_match() {
    each_build(|h| {
        let n = 300;
        let a = ints(5, n, 1 << 20);
        let da = h.upload(&a);
        let start = [0i32, i32::MAX, i32::MIN, -1, 0, 0, 0, 0, 0, 0, 0, 0];
        let out = h.upload(&start);
        h.launch("atomics", 5, 64, 0, &Args::new().ptr(out).ptr(da).int(n as i32));
        let got: Vec<i32> = h.download(out, 12);
        let sum: i64 = a.iter().map(|&x| i64::from(x)).sum();
        assert_eq!(i64::from(got[0]), sum);
        assert_eq!(got[1], *a.iter().min().unwrap());
        assert_eq!(got[2], *a.iter().max().unwrap());
        assert_eq!(got[3], a.iter().fold(-1, |x, y| x & y));
        assert_eq!(got[4], a.iter().fold(0, |x, y| x | y));
        assert_eq!(got[5], a.iter().fold(0, |x, y| x ^ y));
        assert_eq!(got[6], n as i32 % 18);
        assert_eq!(got[7], (18 - n as i32 % 18) % 18);
        assert_eq!(i64::from(got[8] as u32) | i64::from(got[9]) << 32, sum);
        assert_eq!(got[11], 2 * n as i32);
        let f = Rng(6).units(n);
        let (df, s, d) = (h.upload(&f), h.upload(&[0f32]), h.upload(&[0f64]));
        h.launch("float_atomics", 5, 64, 0, &Args::new().ptr(s).ptr(d).ptr(df).int(n as i32));
        let want: f64 = f.iter().map(|&x| f64::from(x)).sum();
        assert!((f64::from(h.download::<f32>(s, 1)[0]) - want).abs() < 1e-3);
        assert!((h.download::<f64>(d, 1)[0] - want).abs() < 1e-10);
    });
}

#[test]
fn histogram_scan_and_softmax_match() {
    each_build(|h| {
        let bytes: Vec<u8> = ints(7, 3000, 256).iter().map(|&x| x as u8).collect();
        let (da, out) = (h.upload(&bytes), h.upload(&[0u32; 256]));
        h.launch("histogram", 3, 160, 0, &Args::new().ptr(out).ptr(da).int(3000));
        let got: Vec<u32> = h.download(out, 256);
        for v in 0..256 {
            assert_eq!(got[v], bytes.iter().filter(|&&b| usize::from(b) == v).count() as u32);
        }
        let a = ints(8, 512, 1000);
        let (da, out) = (h.upload(&a), h.alloc::<i32>(512));
        h.launch("scan", 1, 512, 0, &Args::new().ptr(out).ptr(da));
        let mut sum = 0;
        for (g, x) in h.download::<i32>(out, 512).iter().zip(&a) {
            sum += x;
            assert_eq!(*g, sum);
        }
        let (rows, cols) = (9, 77);
        let a = Rng(9).units(rows * cols);
        let (da, out) = (h.upload(&a), h.alloc::<f32>(rows * cols));
        let args = Args::new().ptr(out).ptr(da).int(rows as i32).int(cols as i32);
        h.try_launch3("softmax", [3, 1, 1], [32, 4, 1], 0, &args).unwrap_or_else(|f| panic!("{f}"));
        let got: Vec<f32> = h.download(out, rows * cols);
        for r in 0..rows {
            let row = &a[r * cols..(r + 1) * cols];
            let total: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
            for c in 0..cols {
                assert!(
                    (f64::from(got[r * cols + c]) - f64::from(row[c]).exp() / total).abs() < 1e-7
                );
            }
        }
    });
}

fn philox(mut c: [u32; 4], mut k: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let p = u64::from(c[0]) * 0xD251_1F53;
        let q = u64::from(c[2]) * 0xCD9E_8D57;
        c = [(q >> 32) as u32 ^ c[1] ^ k[0], q as u32, (p >> 32) as u32 ^ c[3] ^ k[1], p as u32];
        k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
    }
    c
}

#[test]
fn philox_matches() {
    each_build(|h| {
        let out = h.alloc::<u32>(400);
        let stats =
            h.launch("philox", 1, 128, 0, &Args::new().ptr(out).int(123).int(-456).int(100));
        let got: Vec<u32> = h.download(out, 400);
        for i in 0..100 {
            assert_eq!(got[4 * i..4 * i + 4], philox([i as u32, 0, 7, 9], [123, -456i32 as u32]));
        }
        if h.optimised {
            assert_eq!(stats.global_store.share_128_bit, 1.0);
            assert_eq!(stats.global_store.sector_efficiency, 1.0);
            // 16 bytes a lane: 16 sectors for a full warp; the last warp has four lanes.
            assert_eq!(stats.global_store.sectors, 3 * 16 + 2);
        }
    });
}

#[test]
fn vectors_and_dynamic_shared_memory_match() {
    each_build(|h| {
        let n = 100;
        let a = Rng(10).units(4 * n);
        let b: Vec<i16> = ints(11, 2 * n, 60000).iter().map(|&x| x as i16).collect();
        let c: Vec<f64> = Rng(12).units(2 * n).iter().map(|&x| f64::from(x)).collect();
        let d: Vec<u8> = ints(13, 4 * n, 256).iter().map(|&x| x as u8).collect();
        let (da, db, dc, dd) = (h.upload(&a), h.upload(&b), h.upload(&c), h.upload(&d));
        let out = h.alloc::<f32>(4 * n);
        h.launch(
            "vectors",
            1,
            128,
            0,
            &Args::new().ptr(out).ptr(da).ptr(db).ptr(dc).ptr(dd).int(n as i32),
        );
        let got: Vec<f32> = h.download(out, 4 * n);
        for i in 0..n {
            let want = [
                a[4 * i] + f32::from(b[2 * i]),
                a[4 * i + 1] + f32::from(b[2 * i + 1]),
                a[4 * i + 2] + c[2 * i] as f32 + f32::from(d[4 * i]),
                a[4 * i + 3] + c[2 * i + 1] as f32 + f32::from(d[4 * i + 3]),
            ];
            assert_eq!(got[4 * i..4 * i + 4], want);
        }
        let x = ints(14, 64, 1000);
        let y: Vec<i16> = x.iter().map(|&v| (v * 7) as i16).collect();
        let (dx, dy, out) = (h.upload(&x), h.upload(&y), h.alloc::<i32>(64));
        h.launch("reverse_both", 1, 64, 6 * 64, &Args::new().ptr(out).ptr(dx).ptr(dy).int(64));
        let got: Vec<i32> = h.download(out, 64);
        for i in 0..64 {
            assert_eq!(got[i], x[63 - i] * 3 + i32::from(y[63 - i]));
        }
    });
}

#[test]
fn barriers_of_every_kind_match() {
    each_build(|h| {
        let a = ints(15, 256, 1000);
        let da = h.upload(&a);
        let out = h.alloc::<i32>(256);
        h.launch("named_barriers", 1, 64, 0, &Args::new().ptr(out).ptr(da));
        let got: Vec<i32> = h.download(out, 32);
        for lane in 0..32 {
            let want: i32 = (0..8).map(|k| a[k * 32 + 31 - lane] * (k as i32 + 1)).sum();
            assert_eq!(got[lane], want);
        }
        h.launch("barrier_reduction", 1, 128, 0, &Args::new().ptr(out).ptr(da));
        let odd = a[..128].iter().filter(|&&x| x & 1 == 1).count() as i32;
        let any = i32::from(a[..128].contains(&5));
        assert_eq!(h.download::<i32>(out, 128), vec![odd * 4 + 2 + any; 128]);
        h.launch("tiles", 1, 128, 0, &Args::new().ptr(out).ptr(da));
        assert_eq!(h.download::<i32>(out, 128), vec![0; 128]);
        h.launch("warp_exchange", 1, 64, 0, &Args::new().ptr(out).ptr(da));
        let got: Vec<i32> = h.download(out, 64);
        for i in 0..64 {
            assert_eq!(got[i], 2 * a[i ^ 1 ^ 7]);
        }
    });
}
