//! Conversions; halves are checked against the half crate and integers.

use half::{bf16, f16};

use super::common::{Args, Rng};
use super::rounding::{MODES, Mode, fixed, round};
use super::{each_build, unary};

fn mix(values: [u32; 4]) -> u32 {
    values.iter().enumerate().fold(0, |s, (k, &v)| s ^ v.wrapping_mul(2 * k as u32 + 1))
}

fn mix_long(values: [u64; 4]) -> u64 {
    values.iter().enumerate().fold(0, |s, (k, &v)| s ^ v.wrapping_mul(2 * k as u64 + 1))
}

/// Rounds to an integer by mode.
fn integral(x: f64, mode: Mode) -> f64 {
    match mode {
        Mode::Near => x.round_ties_even(),
        Mode::Zero => x.trunc(),
        Mode::Up => x.ceil(),
        Mode::Down => x.floor(),
    }
}

fn floats() -> Vec<f32> {
    let mut rng = Rng(21);
    let mut list = vec![
        0.0,
        -0.0,
        0.5,
        1.5,
        2.5,
        -0.5,
        -1.5,
        3e9,
        -3e9,
        1e20,
        -1e20,
        f32::INFINITY,
        65504.0,
        65520.0,
        1e-7,
        6e-8,
        3e-8,
        1e-40,
        f32::MAX,
    ];
    for _ in 0..300 {
        list.push(rng.unit() * 2f32.powi((rng.next() % 60) as i32 - 28));
    }
    list
}

#[test]
fn floats_to_integers_match() {
    let a = floats();
    let d: Vec<f64> = a.iter().map(|&x| f64::from(x) * 1.000_000_000_1).collect();
    each_build(|h| {
        let int: Vec<u32> = unary(h, "f32_to_int", &a);
        let uint: Vec<u32> = unary(h, "f32_to_uint", &a);
        let long: Vec<u64> = unary(h, "f32_to_long", &a);
        let from64: Vec<u32> = unary(h, "f64_to_int", &d);
        for i in 0..a.len() {
            let x = f64::from(a[i]);
            assert_eq!(int[i], mix(MODES.map(|m| integral(x, m) as i32 as u32)), "{x}");
            assert_eq!(uint[i], mix(MODES.map(|m| integral(x, m) as u32)), "{x}");
            assert_eq!(long[i], mix_long(MODES.map(|m| integral(x, m) as i64 as u64)), "{x}");
            assert_eq!(from64[i], mix(MODES.map(|m| integral(d[i], m) as i32 as u32)), "{x}");
        }
    });
}

#[test]
fn integers_to_floats_match() {
    let mut rng = Rng(22);
    let longs: Vec<i64> = (0..300).map(|i| rng.next() as i64 >> (i % 60)).collect();
    let ints: Vec<i32> = longs.iter().map(|&x| x as i32).collect();
    each_build(|h| {
        let a: Vec<u32> = unary(h, "int_to_f32", &ints);
        let b: Vec<u32> = unary(h, "long_to_f32", &longs);
        let c: Vec<u64> = unary(h, "long_to_f64", &longs);
        let d: Vec<u32> = unary(h, "int_to_f16", &ints);
        let e: Vec<i64> = unary(h, "narrow_ints", &longs);
        let s: Vec<u32> = unary(h, "small_to_float", &ints);
        for i in 0..ints.len() {
            let (x, y) = (ints[i], longs[i]);
            let bits = |v: f64| (v as f32).to_bits();
            assert_eq!(
                a[i],
                mix(MODES.map(|m| bits(round(i128::from(x), 0, false, 24, m)))),
                "{x}"
            );
            assert_eq!(
                b[i],
                mix(MODES.map(|m| bits(round(i128::from(y), 0, false, 24, m)))),
                "{y}"
            );
            assert_eq!(
                c[i],
                mix_long(MODES.map(|m| round(i128::from(y), 0, false, 53, m).to_bits())),
                "{y}"
            );
            let near = f16::from_f64(f64::from(x)).to_bits();
            let zero = f16::from_f64(
                round(i128::from(x), 0, false, 11, Mode::Zero).clamp(-65504.0, 65504.0),
            )
            .to_bits();
            assert_eq!(d[i], u32::from(near) | u32::from(zero) << 16, "{x}");
            let want = i64::from(y as i8)
                + i64::from(y as u8) * 3
                + i64::from(y as i16) * 5
                + i64::from(y as u16) * 7
                + i64::from(y as i32) * 11
                + i64::from(y as u32) * 13;
            assert_eq!(e[i], want, "{y}");
            let small = [x as i8 as f32, f32::from(x as u8), x as i16 as f32, f32::from(x as u16)];
            assert_eq!(s[i], mix(small.map(f32::to_bits)), "{x}");
        }
    });
}

#[test]
fn doubles_to_floats_round_in_every_mode() {
    let mut rng = Rng(23);
    let d: Vec<f64> = (0..300)
        .map(|_| {
            f64::from_bits(1023 << 52 | rng.next() >> 12)
                * if rng.next() & 1 == 0 { 1.0 } else { -1.0 }
        })
        .collect();
    each_build(|h| {
        let got: Vec<u32> = unary(h, "f64_to_f32", &d);
        for i in 0..d.len() {
            let want = MODES.map(|m| (round(fixed(d[i], 52), 52, false, 24, m) as f32).to_bits());
            assert_eq!(got[i], mix(want), "{}", d[i]);
        }
    });
}

#[test]
fn halves_match_the_half_crate() {
    let a = floats();
    let all: Vec<u16> = (0..=u16::MAX).step_by(7).collect();
    each_build(|h| {
        let to16: Vec<u32> = unary(h, "f32_to_f16", &a);
        let directed: Vec<u32> = unary(h, "f32_to_f16_directed", &a);
        let tob: Vec<u32> = unary(h, "f32_to_bf16", &a);
        let tf: Vec<u32> = unary(h, "f32_to_tf32", &a);
        for i in 0..a.len() {
            let x = a[i];
            assert_eq!(to16[i] & 0xffff, u32::from(f16::from_f32(x).to_bits()), "{x}");
            let value = |bits: u32| f16::from_bits(bits as u16).to_f32();
            assert!(value(to16[i] >> 16).abs() <= x.abs(), "{x} toward zero");
            assert!(value(directed[i] & 0xffff) >= x || x == f32::INFINITY, "{x} up");
            assert!(value(directed[i] >> 16) <= x, "{x} down");
            assert_eq!(tob[i] & 0xffff, u32::from(bf16::from_f32(x).to_bits()), "{x}");
            assert_eq!(tob[i] >> 16, x.to_bits() >> 16, "{x} toward zero");
            let want = if x.is_finite() {
                x.to_bits().wrapping_add(0x1000) & !0x1fff
            } else {
                x.to_bits()
            };
            assert_eq!(tf[i], want, "{x}");
        }
        let f: Vec<u32> = unary(h, "f16_to_f32", &all);
        let b: Vec<u32> = unary(h, "bf16_to_f32", &all);
        let n: Vec<u32> = unary(h, "f16_to_int", &all);
        for (i, &bits) in all.iter().enumerate() {
            let x = f16::from_bits(bits).to_f32();
            let (got, want) = (f32::from_bits(f[i]), x);
            assert!(
                got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()),
                "{bits:04x}"
            );
            let (got, want) = (f32::from_bits(b[i]), bf16::from_bits(bits).to_f32());
            assert!(
                got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()),
                "{bits:04x}"
            );
            let want =
                (x.round_ties_even() as i32 as u32) ^ (x.trunc() as i32 as u32).wrapping_mul(3);
            assert_eq!(n[i], want, "{x}");
        }
    });
}

#[test]
fn pair_arithmetic_rounds_once() {
    let n = 200;
    each_build(|h| {
        let (x, y) = (Rng(24).units(2 * n), Rng(25).units(2 * n));
        let (ha, hb): (Vec<f16>, Vec<f16>) =
            x.iter().zip(&y).map(|(&x, &y)| (f16::from_f32(x), f16::from_f32(y * 9.0))).unzip();
        let (ba, bb): (Vec<bf16>, Vec<bf16>) =
            x.iter().zip(&y).map(|(&x, &y)| (bf16::from_f32(x), bf16::from_f32(y * 9.0))).unzip();
        let (da, db, out) = (h.upload(&ha), h.upload(&hb), h.alloc::<f16>(8 * n));
        h.launch(
            "half2_arithmetic",
            2,
            128,
            0,
            &Args::new().ptr(out).ptr(da).ptr(db).int(n as i32),
        );
        let got: Vec<u16> = h.download(out, 8 * n);
        let (da, db, out) = (h.upload(&ba), h.upload(&bb), h.alloc::<bf16>(8 * n));
        h.launch(
            "bfloat2_arithmetic",
            2,
            128,
            0,
            &Args::new().ptr(out).ptr(da).ptr(db).int(n as i32),
        );
        let gob: Vec<u16> = h.download(out, 8 * n);
        for i in 0..2 * n {
            let at = |op: usize| 8 * (i / 2) + 2 * op + i % 2;
            let (p, q) = (ha[i].to_f64(), hb[i].to_f64());
            let want = [p + q, p * q, p * q + p, p.max(-q)].map(|v| f16::from_f64(v).to_bits());
            let (p, q) = (ba[i].to_f64(), bb[i].to_f64());
            let wanb =
                [p + q, p * q, p * q + p, p.min(q.abs())].map(|v| bf16::from_f64(v).to_bits());
            for op in 0..4 {
                assert_eq!(got[at(op)], want[op], "f16 operation {op} of {} and {}", ha[i], hb[i]);
                assert_eq!(gob[at(op)], wanb[op], "bf16 operation {op} of {} and {}", ba[i], bb[i]);
            }
        }
        let f = floats();
        let da = h.upload(&f);
        let pairs = f.len() / 2;
        let out = h.alloc::<u32>(pairs);
        h.launch("f32x2_to_bf16x2", 2, 128, 0, &Args::new().ptr(out).ptr(da).int(f.len() as i32));
        let got: Vec<u32> = h.download(out, pairs);
        for i in 0..pairs {
            let [lo, hi] = [f[2 * i], f[2 * i + 1]].map(|v| u32::from(bf16::from_f32(v).to_bits()));
            assert_eq!(got[i], lo | hi << 16, "the first argument is the low half");
        }
    });
}
