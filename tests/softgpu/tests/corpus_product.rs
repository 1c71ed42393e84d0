//! What the product's kernels rest on: numbers that repeat bit for bit with contraction off, the forms
//! of warp-wide and vector instructions, and tensor cores against arithmetic written a second time.
#![allow(unsafe_code)] // Plain data seen as bytes.

mod common;

use common::{Args, BUILDS, Build, Host, Rng, compile, compile_with};
use half::{bf16, f16};
use softgpu::settings::{AsyncMode, MmaMode, Settings};

/// Runs `test` on the kernels compiled in every way, without contraction.
fn each_build(test: impl Fn(&mut Host)) {
    for (k, build) in BUILDS.into_iter().enumerate() {
        let Some(ptx) = compile_with("product", build, &["-fmad=false"]) else { return };
        let asynchrony = if k % 2 == 0 { AsyncMode::Late } else { AsyncMode::Eager };
        let settings =
            Settings { compute: (9, 0), seed: k as u64, asynchrony, ..Settings::default() };
        test(&mut Host::new(&ptx, settings));
    }
}

/// Philox4x32-10 as its paper writes it.
fn philox(mut c: [u32; 4], mut k: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let p0 = u64::from(c[0]) * 0xD251_1F53;
        let p1 = u64::from(c[2]) * 0xCD9E_8D57;
        c = [
            (p1 >> 32) as u32 ^ c[1] ^ k[0],
            p1 as u32,
            (p0 >> 32) as u32 ^ c[3] ^ k[1],
            p0 as u32,
        ];
        k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
    }
    c
}

#[test]
fn philox_gives_the_published_words() {
    // The known answers of Random123 for philox4x32-10.
    let known = [
        ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
        ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
        (
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0],
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
        ),
    ];
    let mut rng = Rng(51);
    let mut word = || rng.next() as u32;
    let mut counters: Vec<[u32; 4]> = known.iter().map(|k| k.0).collect();
    let mut keys: Vec<[u32; 2]> = known.iter().map(|k| k.1).collect();
    counters.extend((0..97).map(|_| [word(), word(), word(), word()]));
    keys.extend((0..97).map(|_| [word(), word()]));
    each_build(|h| {
        let (dc, dk, out) = (h.upload(&counters), h.upload(&keys), h.alloc::<[u32; 4]>(100));
        h.launch("philox_blocks", 2, 64, 0, &Args::new().ptr(out).ptr(dc).ptr(dk).int(100));
        let got: Vec<[u32; 4]> = h.download(out, 100);
        for i in 0..100 {
            assert_eq!(got[i], philox(counters[i], keys[i]), "block {i}");
        }
        for (got, (.., want)) in got.iter().zip(known) {
            assert_eq!(*got, want);
        }
    });
}

/// The product's normals, as its `random::normal::pair` defines them: Horner's rule with one rounding a
/// step, every other operation rounded by itself.
fn pair(radius: u32, angle: u32) -> [f32; 2] {
    const TWO_THIRDS: u32 = 0x3f2a_aaab;
    let poly = |x: f32, c: &[u32]| {
        c.iter().rev().map(|&b| f32::from_bits(b)).reduce(|y, c| y.mul_add(x, c)).expect("terms")
    };
    let unit = 2f32.powi(-32);
    let u = (radius as f32).mul_add(unit, 0.5 * unit);
    let bits = u.to_bits().wrapping_sub(TWO_THIRDS);
    let exponent = ((bits as i32) >> 23) as f32;
    let f = f32::from_bits((bits & 0x007f_ffff) + TWO_THIRDS) - 1.0;
    let log = [
        0xc000_0000,
        0x3f7f_ffeb,
        0xbf2a_aa7e,
        0x3f00_0a27,
        0xbecc_e9d8,
        0x3ea8_1c70,
        0xbe8f_544d,
        0x3e9d_862f,
        0xbe8f_9401,
    ];
    let r = exponent.mul_add(f32::from_bits(0xbfb1_7218), f * poly(f, &log)).sqrt();
    let t = ((angle << 2) as i32) as f32 * unit;
    let sin = r * (t * poly(t * t, &[0x3fc9_0fdb, 0xbf25_5df6, 0x3da3_3591, 0xbb97_ad0e]));
    let cos = r * poly(t * t, &[0x3f80_0000, 0xbf9d_e9ce, 0x3e81_d82c, 0xbca7_3c5f]);
    let cos = f32::from_bits(cos.to_bits() ^ (angle & 0x8000_0000));
    if angle & 0x4000_0000 == 0 { [cos, sin] } else { [sin, cos] }
}

/// Words and the bits the product pins for them in tests/random.rs.
const PINNED: [([u32; 2], [u32; 2]); 16] = [
    ([0x0000_0000, 0x0000_0000], [0x40d8_7047, 0x0000_0000]),
    ([0x0000_0001, 0x1fff_ffff], [0x4095_531c, 0x4095_531c]),
    ([0x2aaa_aaaa, 0x2000_0000], [0x3fab_5623, 0xbfab_5623]),
    ([0x2aaa_aaab, 0x3fff_ffff], [0x3ff2_4e6e, 0xb13e_4e96]),
    ([0x5555_5555, 0x4000_0000], [0x0000_0000, 0x3fbd_bc22]),
    ([0x5555_5556, 0x5fff_ffff], [0x3f86_29af, 0x3f86_29af]),
    ([0x7fff_ffff, 0x6000_0000], [0xbf55_224c, 0x3f55_224c]),
    ([0x8000_0000, 0x7fff_ffff], [0xb0ec_bb7a, 0x3f96_b55f]),
    ([0xaaaa_aaaa, 0x8000_0000], [0xbf66_8841, 0x0000_0000]),
    ([0xaaaa_aaab, 0x9fff_ffff], [0xbf23_02cb, 0x3f23_02cb]),
    ([0xffff_ff7f, 0xa000_0000], [0xb97f_ffff, 0xb97f_ffff]),
    ([0xffff_ff80, 0xbfff_ffff], [0x0000_0000, 0x0000_0000]),
    ([0xffff_ffff, 0xc000_0000], [0x8000_0000, 0x0000_0000]),
    ([0x1234_5678, 0xdfff_ffff], [0x3fd0_1d19, 0xbfd0_1d19]),
    ([0x9abc_def0, 0xe000_0000], [0xbf35_a457, 0xbf35_a457]),
    ([0xdead_beef, 0xffff_ffff], [0xb054_5d1c, 0xbf07_31e7]),
];

#[test]
fn normal_pairs_have_the_products_bits() {
    let mut words: Vec<[u32; 2]> = PINNED.iter().map(|p| p.0).collect();
    let mut rng = Rng(52);
    words.extend((0..2000).map(|_| [rng.next() as u32, rng.next() as u32]));
    let n = words.len();
    each_build(|h| {
        let (dw, out) = (h.upload(&words), h.alloc::<[u32; 2]>(n));
        let args = Args::new().ptr(out).ptr(dw).int(n as i32);
        h.launch("normal_pairs", (n as u32).div_ceil(128), 128, 0, &args);
        let got: Vec<[u32; 2]> = h.download(out, n);
        for (got, (words, want)) in got.iter().zip(PINNED) {
            assert_eq!(*got, want, "{words:08x?}");
        }
        for (got, w) in got.iter().zip(&words) {
            assert_eq!(*got, pair(w[0], w[1]).map(f32::to_bits), "{w:08x?}");
        }
    });
}

#[test]
fn an_images_normals_have_the_products_bits() {
    // The first words and the digest that the product pins for image 17 of seed 3, purpose 1.
    let first = [
        0xbfc5_8ea5u32,
        0xbf6d_6e47,
        0xbfd1_2282,
        0xbfe3_5808,
        0xbef6_f654,
        0xbf8d_24a7,
        0xbf48_1af4,
        0x3fa4_6906,
    ];
    let optimised = Build { arch: 80, debug: false };
    let Some(ptx) = compile_with("product", optimised, &["-fmad=false"]) else { return };
    let mut h = Host::new(&ptx, Settings::default());
    let n = 1 << 20;
    let out = h.alloc::<f32>(n);
    let args = Args::new().ptr(out).int(3).int(17).int(1).int(0).int(n as i32 / 4);
    h.launch("normals", n as u32 / 4 / 256, 256, 0, &args);
    let got: Vec<u32> = h.download(out, n);
    assert_eq!(got[..8], first);
    assert_eq!(got.iter().fold(0u32, |sum, z| sum.rotate_left(5) ^ z), 0x479c_2c11);
}

/// Sum of 128 threads' values in the kernel's tree.
fn block_total(mut s: Vec<f32>) -> f32 {
    let mut d = s.len() / 2;
    while d > 0 {
        for i in 0..d {
            s[i] += s[i + d];
        }
        d /= 2;
    }
    s[0]
}

#[test]
fn group_norm_in_two_passes_repeats_bit_for_bit() {
    let (images, pixels, channels, groups) = (2usize, 35usize, 24usize, 4usize);
    let eps = 1e-5f32;
    let width = channels / groups;
    let count = pixels * width;
    // A mean far from zero: E[x^2] - E[x]^2 would lose half the digits.
    let x: Vec<f32> = Rng(53).units(images * pixels * channels).iter().map(|v| v + 50.0).collect();
    let (gamma, beta) = (Rng(54).units(channels), Rng(55).units(channels));
    each_build(|h| {
        let (dx, dg, db) = (h.upload(&x), h.upload(&gamma), h.upload(&beta));
        let (y, mean, rstd) = (
            h.alloc::<f32>(x.len()),
            h.alloc::<f32>(images * groups),
            h.alloc::<f32>(images * groups),
        );
        let args = Args::new().ptr(y).ptr(mean).ptr(rstd).ptr(dx).ptr(dg).ptr(db);
        let args = args.int(pixels as i32).int(channels as i32).float(eps);
        let grid = [groups as u32, images as u32, 1];
        h.try_launch3("group_norm", grid, [128, 1, 1], 0, &args).unwrap_or_else(|f| panic!("{f}"));
        let got: Vec<f32> = h.download(y, x.len());
        let (got_mean, got_rstd): (Vec<f32>, Vec<f32>) =
            (h.download(mean, images * groups), h.download(rstd, images * groups));
        for image in 0..images {
            for group in 0..groups {
                let at =
                    |k: usize| (image * pixels + k / width) * channels + group * width + k % width;
                let threads = |f: &dyn Fn(f32) -> f32| -> Vec<f32> {
                    (0..128)
                        .map(|t| (t..count).step_by(128).fold(0.0, |s, k| s + f(x[at(k)])))
                        .collect()
                };
                let m = block_total(threads(&|v| v)) / count as f32;
                let squares = block_total(threads(&|v| (v - m) * (v - m)));
                let r = 1.0 / (squares / count as f32 + eps).sqrt();
                let place = image * groups + group;
                assert_eq!(got_mean[place].to_bits(), m.to_bits());
                assert_eq!(got_rstd[place].to_bits(), r.to_bits());
                let exact_mean =
                    (0..count).map(|k| f64::from(x[at(k)])).sum::<f64>() / count as f64;
                let exact =
                    (0..count).map(|k| (f64::from(x[at(k)]) - exact_mean).powi(2)).sum::<f64>();
                let exact = 1.0 / (exact / count as f64 + f64::from(eps)).sqrt();
                assert!((f64::from(r) / exact - 1.0).abs() < 1e-6);
                for k in 0..count {
                    let c = group * width + k % width;
                    let want = (x[at(k)] - m) * r * gamma[c] + beta[c];
                    assert_eq!(
                        got[at(k)].to_bits(),
                        want.to_bits(),
                        "image {image} group {group} {k}"
                    );
                }
            }
        }
    });
}

#[test]
fn warp_reductions_and_matches_cover_their_masks() {
    let mut rng = Rng(56);
    let a: Vec<u32> = (0..32).map(|_| rng.next() as u32).collect();
    let wide: Vec<u64> = (0..32).map(|_| ((rng.next() % 3) << 32) | (rng.next() % 2)).collect();
    each_build(|h| {
        let (da, out) = (h.upload(&a), h.alloc::<u32>(256));
        h.launch("warp_reductions", 1, 32, 0, &Args::new().ptr(out).ptr(da));
        let got: Vec<u32> = h.download(out, 256);
        for i in 0..32 {
            let group = if i < 8 { &a[..8] } else { &a[8..] };
            let signed = || group.iter().map(|&v| v as i32);
            let want = [
                group.iter().fold(0, |s: u32, &v| s.wrapping_add(v)),
                *group.iter().min().expect("lanes"),
                *group.iter().max().expect("lanes"),
                signed().min().expect("lanes") as u32,
                signed().max().expect("lanes") as u32,
                group.iter().fold(u32::MAX, |s, v| s & v),
                group.iter().fold(0, |s, v| s | v),
                group.iter().fold(0, |s, v| s ^ v),
            ];
            for (k, want) in want.into_iter().enumerate() {
                assert_eq!(got[32 * k + i], want, "reduction {k} of lane {i}");
            }
        }
        let (da, out) = (h.upload(&wide), h.alloc::<u32>(128));
        h.launch("matches", 1, 32, 0, &Args::new().ptr(out).ptr(da));
        let got: Vec<u32> = h.download(out, 128);
        let same =
            |f: &dyn Fn(u64) -> bool| (0..32).fold(0u32, |m, j| m | u32::from(f(wide[j])) << j);
        for i in 0..32 {
            assert_eq!(got[i], same(&|v| v == wide[i]), "match.any 64 of lane {i}");
            assert_eq!(
                got[32 + i],
                same(&|v| v as u32 == wide[i] as u32),
                "match.any 32 of lane {i}"
            );
            assert_eq!(got[64 + i], u32::MAX.wrapping_add(1), "all agree: full mask and 1");
            assert_eq!(got[96 + i], 0, "not all agree: no mask and 0");
        }
    });
}

#[test]
fn wide_shuffles_move_both_halves() {
    let mut rng = Rng(57);
    let a: Vec<i64> = (0..32).map(|_| rng.next() as i64 >> 2).collect();
    let b: Vec<f64> = (0..32).map(|_| rng.next() as f64 / 3.0).collect();
    each_build(|h| {
        let (da, db) = (h.upload(&a), h.upload(&b));
        let (out, sum) = (h.alloc::<i64>(32), h.alloc::<f64>(1));
        h.launch("wide_shuffles", 1, 32, 0, &Args::new().ptr(out).ptr(sum).ptr(da).ptr(db));
        let got: Vec<i64> = h.download(out, 32);
        for i in 0..32 {
            let up = if i % 8 >= 2 { a[i - 2] } else { a[i] };
            let want = a[i ^ 5].wrapping_mul(3).wrapping_add(up).wrapping_add(a[(i & 16) + 9]);
            assert_eq!(got[i], want, "lane {i}");
        }
        let mut x = b.clone();
        for d in [16, 8, 4, 2, 1] {
            for i in 0..d {
                x[i] += x[i + d];
            }
        }
        assert_eq!(h.download::<f64>(sum, 1), [x[0]]);
    });
}

#[test]
fn vectors_keep_their_order_through_every_cache() {
    let n = 29;
    let mut rng = Rng(58);
    let words: Vec<u64> = (0..2 * n).map(|_| rng.next()).collect();
    let bytes: Vec<[u8; 4]> = words[..n].iter().map(|w| (*w as u32).to_le_bytes()).collect();
    let shorts: Vec<[u16; 4]> = words[..n]
        .iter()
        .map(|w| [*w as u16, (w >> 16) as u16, (w >> 32) as u16, (w >> 48) as u16])
        .collect();
    let longs: Vec<[i64; 2]> = words.chunks(2).map(|w| [w[0] as i64, w[1] as i64]).collect();
    each_build(|h| {
        let (da, out) = (h.upload(&words), h.alloc::<u64>(12 * n));
        h.launch("cache_hints", 1, 32, 0, &Args::new().ptr(out).ptr(da).int(n as i32));
        let got: Vec<u64> = h.download(out, 12 * n);
        assert!(got.chunks(2 * n).all(|copy| copy == words));
        let (b, s, l) = (h.alloc::<[u8; 4]>(n), h.alloc::<[u16; 4]>(n), h.alloc::<[i64; 2]>(n));
        let (da, db, dc) = (h.upload(&bytes), h.upload(&shorts), h.upload(&longs));
        let args = Args::new().ptr(b).ptr(s).ptr(l).ptr(da).ptr(db).ptr(dc).int(n as i32);
        h.launch("narrow_vectors", 1, 32, 0, &args);
        let b: Vec<[u8; 4]> = h.download(b, n);
        let s: Vec<[u16; 4]> = h.download(s, n);
        let l: Vec<[i64; 2]> = h.download(l, n);
        for i in 0..n {
            let [x, y, z, w] = bytes[i];
            assert_eq!(b[i], [w, z, y, x]);
            let [x, y, z, w] = shorts[i];
            assert_eq!(s[i], [y, x, w, z]);
            let [x, y] = longs[i];
            assert_eq!(l[i], [y.wrapping_sub(1), x.wrapping_add(1)]);
        }
    });
}

#[test]
fn matrix_loads_and_small_copies_land_where_the_isa_says() {
    let mut rng = Rng(59);
    let tile: Vec<u16> = (0..256).map(|_| rng.next() as u16).collect();
    let a: Vec<i32> = (0..128).map(|_| rng.next() as i32).collect();
    each_build(|h| {
        let (da, out) = (h.upload(&tile), h.alloc::<u32>(352));
        h.launch("matrix_loads", 1, 32, 0, &Args::new().ptr(out).ptr(da));
        let got: Vec<u32> = h.download(out, 352);
        // Element (row, column) of matrix j.
        let at = |j: usize, row: usize, column: usize| u32::from(tile[64 * j + 8 * row + column]);
        for lane in 0..32 {
            let (g, t) = (lane / 4, lane % 4);
            let plain = |j| at(j, g, 2 * t) | at(j, g, 2 * t + 1) << 16;
            let swapped = |j| at(j, 2 * t, g) | at(j, 2 * t + 1, g) << 16;
            let forms =
                [0, 0, 1, 0, 1, 2, 3].map(plain).into_iter().chain([0, 1, 2, 3].map(swapped));
            for (k, want) in forms.enumerate() {
                assert_eq!(got[32 * k + lane], want, "register {k} of lane {lane}");
            }
        }
        let (da, out) = (h.upload(&a), h.alloc::<i32>(224));
        h.launch("small_copies", 1, 32, 0, &Args::new().ptr(out).ptr(da));
        let got: Vec<i32> = h.download(out, 224);
        let raw = |i: usize, taken: usize| {
            let mut bytes = [0u8; 16];
            bytes.copy_from_slice(common::bytes_of(&a[4 * i..4 * i + 4]));
            bytes[taken..].fill(0);
            bytes
        };
        for i in 0..32 {
            assert_eq!(got[i], a[31 - i]);
            assert_eq!(got[32 + 2 * i..34 + 2 * i], a[2 * i..2 * i + 2]);
            assert_eq!(common::bytes_of(&got[96 + 4 * i..100 + 4 * i]), raw(i, i % 17), "copy {i}");
        }
    });
}

#[test]
fn branch_groups_match() {
    let a: Vec<i32> = (0..64).map(|i| i * 7 % 29).collect();
    each_build(|h| {
        let (da, out) = (h.upload(&a), h.alloc::<i32>(64));
        h.launch("branch_groups", 1, 64, 0, &Args::new().ptr(out).ptr(da));
        let got: Vec<i32> = h.download(out, 64);
        for i in 0..64 {
            let lanes: Vec<usize> =
                (i / 32 * 32..i / 32 * 32 + 32).filter(|&j| a[j] % 3 == 0).collect();
            let want = lanes
                .iter()
                .position(|&j| j == i)
                .map_or(-1, |rank| rank as i32 + 100 * lanes.len() as i32);
            assert_eq!(got[i], want, "lane {i}");
        }
    });
}

#[test]
fn half_depth_fragments_land_where_the_isa_says() {
    // Small integers: every order of summation gives the same bits.
    let mut rng = Rng(60);
    let mut small =
        |n: usize| -> Vec<f32> { (0..n).map(|_| (rng.next() % 31) as f32 - 15.0).collect() };
    let (a, b, c) = (small(16 * 8), small(8 * 8), small(16 * 8));
    let to = |v: &[f32]| v.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>();
    each_build(|h| {
        let (da, db, dc) = (h.upload(&to(&a)), h.upload(&to(&b)), h.upload(&c));
        let out = h.alloc::<f32>(128);
        h.launch("half_depth_mma", 1, 32, 0, &Args::new().ptr(out).ptr(da).ptr(db).ptr(dc));
        let got: Vec<f32> = h.download(out, 128);
        for i in 0..128 {
            let (row, column) = (i / 8, i % 8);
            let want = c[i] + (0..8).map(|k| a[8 * row + k] * b[8 * column + k]).sum::<f32>();
            assert_eq!(got[i], want, "{row},{column}");
        }
    });
}

/// One block of a tensor core's sum, by exact f64: terms truncated to 23 + `extra` bits below the
/// largest exponent, the sum truncated to f32. Finite values, normal results.
fn truncated_block(a: &[f32], b: &[f32], c: f32, extra: i32) -> f32 {
    let exponent = |x: f32| (x.to_bits() >> 23 & 0xff) as i32 - 127;
    let mut terms = vec![(f64::from(c), exponent(c))];
    for (&x, &y) in a.iter().zip(b) {
        terms.push((f64::from(x) * f64::from(y), exponent(x) + exponent(y)));
    }
    terms.retain(|t| t.0 != 0.0);
    let top = terms.iter().map(|t| t.1).max().expect("a term");
    let unit = 2f64.powi(top - 23 - extra);
    let sum: f64 = terms.iter().map(|t| (t.0 / unit).trunc()).sum::<f64>() * unit;
    f64::from_bits(sum.to_bits() >> 29 << 29) as f32
}

#[test]
fn exact_gemms_match_arithmetic_written_a_second_time() {
    let Some(ptx) = compile("corpus", Build { arch: 80, debug: false }) else { return };
    let (m, n, k) = (32usize, 16usize, 64usize);
    let spread = |seed: u64, len: usize| -> Vec<f32> {
        let mut rng = Rng(seed);
        (0..len).map(|_| rng.unit() * 2f32.powi((rng.next() % 9) as i32 - 4)).collect()
    };
    let (a, b) = (spread(61, m * k), spread(62, n * k));
    // tf32 by cvt.rna: to nearest, ties away.
    let tf32 = |x: f32| f32::from_bits(x.to_bits().wrapping_add(0x1000) & !0x1fff);
    for (mode, extra, block) in [(MmaMode::A100, 1, 8), (MmaMode::H100, 2, 16)] {
        let mut h = Host::new(&ptx, Settings { compute: (9, 0), mma: mode, ..Settings::default() });
        let out = h.alloc::<f32>(m * n);
        let check = |h: &mut Host,
                     kernel: &str,
                     da: u64,
                     db: u64,
                     a: Vec<f32>,
                     b: Vec<f32>,
                     block: usize| {
            let args = Args::new().ptr(out).ptr(da).ptr(db).int(n as i32).int(k as i32);
            let grid = [n as u32 / 8, m as u32 / 16, 1];
            h.try_launch3(kernel, grid, [32, 1, 1], 0, &args).unwrap_or_else(|f| panic!("{f}"));
            let got: Vec<f32> = h.download(out, m * n);
            for (i, got) in got.iter().enumerate() {
                let (x, y) = (&a[i / n * k..][..k], &b[i % n * k..][..k]);
                let want = x
                    .chunks(block)
                    .zip(y.chunks(block))
                    .fold(0.0, |c, (x, y)| truncated_block(x, y, c, extra));
                assert_eq!(got.to_bits(), want.to_bits(), "{kernel} element {i} {mode:?}");
            }
        };
        let to = |v: &[f32]| v.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>();
        let (ha, hb) = (to(&a), to(&b));
        let wide = |v: &[bf16]| v.iter().map(|x| x.to_f32()).collect::<Vec<_>>();
        let (da, db) = (h.upload(&ha), h.upload(&hb));
        check(&mut h, "gemm_bf16", da, db, wide(&ha), wide(&hb), block);
        let to = |v: &[f32]| v.iter().map(|&x| f16::from_f32(x)).collect::<Vec<_>>();
        let (ha, hb) = (to(&a), to(&b));
        let wide = |v: &[f16]| v.iter().map(|x| x.to_f32()).collect::<Vec<_>>();
        let (da, db) = (h.upload(&ha), h.upload(&hb));
        check(&mut h, "gemm_f16", da, db, wide(&ha), wide(&hb), block);
        let (da, db) = (h.upload(&a), h.upload(&b));
        let round = |v: &[f32]| v.iter().map(|&x| tf32(x)).collect::<Vec<_>>();
        check(&mut h, "gemm_tf32", da, db, round(&a), round(&b), block / 2);
    }
}
