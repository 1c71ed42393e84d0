//! Integer and floating-point arithmetic of every width and rounding.

use super::common::{Host, Rng};
use super::rounding::{MODES, divide, fixed, root, round};
use super::{each_build, elementwise};

const N: usize = 333;

fn words(seed: u64) -> Vec<u64> {
    let mut rng = Rng(seed);
    (0..N)
        .map(|i| match i % 9 {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << (rng.next() % 64),
            3 => rng.next() % 100,
            _ => rng.next(),
        })
        .collect()
}

/// Runs an integer kernel and compares with `f` on the same inputs.
fn integers<T: Copy, R: Copy + Default + PartialEq + std::fmt::Debug>(
    host: &mut Host,
    kernel: &str,
    from: impl Fn(u64) -> T,
    f: impl Fn(T, T, T) -> R,
) {
    let [a, b, c] = [1, 2, 3].map(|s| words(s).into_iter().map(&from).collect::<Vec<T>>());
    let got: Vec<R> = elementwise(host, kernel, &a, &b, &c);
    for i in 0..N {
        assert_eq!(got[i], f(a[i], b[i], c[i]), "{kernel} element {i}");
    }
}

#[test]
fn integers_of_every_width_match() {
    each_build(|h| {
        integers(
            h,
            "u32_mix",
            |w| w as u32,
            |x, y, z| {
                (x.wrapping_add(y))
                    .wrapping_mul(2_654_435_761)
                    .wrapping_sub(z ^ (x >> (y & 31)))
                    .wrapping_add(x << (z & 31))
            },
        );
        integers(
            h,
            "s32_mix",
            |w| w as i32,
            |x, y, z| {
                (x.wrapping_div(y | 1))
                    .wrapping_add(x.wrapping_rem(z | 1))
                    .wrapping_add(x >> (y & 31))
                    .wrapping_add(x.min(y))
                    .wrapping_sub(y.max(z))
                    .wrapping_add((x / 2).abs())
            },
        );
        integers(
            h,
            "u64_mix",
            |w| w,
            |x, y, z| {
                x.wrapping_mul(y)
                    .wrapping_add(z >> (x & 63))
                    .wrapping_add(x / (y | 1))
                    .wrapping_add(((u128::from(x) * u128::from(z)) >> 64) as u64)
            },
        );
        integers(
            h,
            "s64_mix",
            |w| w as i64,
            |x, y, z| {
                x.wrapping_mul(y)
                    .wrapping_sub(z.wrapping_div(y | 1))
                    .wrapping_add(x.wrapping_rem(z | 1))
                    .wrapping_add(x >> (y & 63))
                    .wrapping_add(((i128::from(x) * i128::from(y)) >> 64) as i64)
            },
        );
        integers(
            h,
            "s16_mix",
            |w| w as i16,
            |x, y, z| {
                let (x, y, z) = (i32::from(x), i32::from(y), i32::from(z));
                (x * y + (z >> 3) - x.min(y)) as i16
            },
        );
        integers(
            h,
            "u8_mix",
            |w| w as u8,
            |x, y, z| {
                let (x, y, z) = (i32::from(x), i32::from(y), i32::from(z));
                (x * y + (z >> 3) + (x ^ y)) as u8
            },
        );
    });
}

#[test]
fn bit_operations_match() {
    each_build(|h| {
        integers(
            h,
            "mul_hi",
            |w| w as u32,
            |x, y, z| {
                let high = (u64::from(x) * u64::from(y)) >> 32;
                let signed = (i64::from(x as i32) * i64::from(z as i32)) >> 32;
                (high as u32)
                    .wrapping_add(signed as u32)
                    .wrapping_add((x & 0xff_ffff).wrapping_mul(z & 0xff_ffff))
            },
        );
        integers(
            h,
            "bits",
            |w| w as u32,
            |x, y, z| {
                let all = u64::from(y) << 32 | u64::from(x);
                let byte = |k: u32| (all >> (8 * k)) as u32 & 0xff;
                let permuted = byte(5) | byte(1) << 8 | byte(7) << 16 | byte(3) << 24;
                let ffs = if z == 0 { 0 } else { z.trailing_zeros() + 1 };
                (x.count_ones() + 37 * y.leading_zeros() + 1001 * ffs)
                    .wrapping_add(x.reverse_bits())
                    .wrapping_add(permuted)
            },
        );
        integers(
            h,
            "bits64",
            |w| w,
            |x, y, z| {
                let ffs = if x == 0 { 0 } else { x.trailing_zeros() + 1 };
                u64::from(x.count_ones() + 37 * y.leading_zeros())
                    .wrapping_add(z.reverse_bits())
                    .wrapping_add(u64::from(ffs))
            },
        );
        integers(
            h,
            "funnel",
            |w| w as u32,
            |x, y, z| {
                let all = u64::from(y) << 32 | u64::from(x);
                let left = |s: u32| ((all << s) >> 32) as u32;
                let right = |s: u32| (all >> s) as u32;
                left(z & 31) ^ right(z & 31) ^ left((z & 63).min(32)) ^ right((z & 63).min(32))
            },
        );
        integers(
            h,
            "dot4",
            |w| w as u32,
            |x, y, z| {
                let (a, b) = (x.to_le_bytes(), y.to_le_bytes());
                let mut u = z;
                let mut s = z as i32;
                let mut lo = z as i32;
                let mut hi = z;
                for k in 0..4 {
                    u = u.wrapping_add(u32::from(a[k]) * u32::from(b[k]));
                    s = s.wrapping_add(i32::from(a[k] as i8) * i32::from(b[k] as i8));
                }
                for k in 0..2 {
                    let half = (x >> (16 * k)) as u16;
                    lo = lo.wrapping_add(i32::from(half as i16) * i32::from(b[k] as i8));
                    hi = hi.wrapping_add(u32::from(half) * u32::from(b[k + 2]));
                }
                u.wrapping_add(s as u32).wrapping_add(lo as u32).wrapping_add(hi)
            },
        );
        integers(
            h,
            "sad_mix",
            |w| w as u32,
            |x, y, z| {
                let signed = (x as i32).abs_diff(y as i32);
                x.abs_diff(y).wrapping_add(z).wrapping_add(signed).wrapping_add(z)
            },
        );
        integers(
            h,
            "wide_carry",
            |w| w,
            |x, y, z| {
                let wide = (u128::from(x) * u128::from(y)).wrapping_add(u128::from(z));
                ((wide >> 64) as u64).wrapping_add(wide as u64)
            },
        );
    });
}

/// Magnitudes from 2^-9 to 2^9, both signs.
fn singles(seed: u64) -> Vec<f32> {
    let mut rng = Rng(seed);
    (0..N)
        .map(|_| {
            let x = 1.0 + (rng.next() >> 41) as f32 / (1u64 << 23) as f32;
            let x = x * 2f32.powi((rng.next() % 18) as i32 - 9);
            if rng.next() & 1 == 0 { x } else { -x }
        })
        .collect()
}

fn mix32(values: impl Iterator<Item = f64>) -> u32 {
    values.enumerate().fold(0, |s, (k, v)| s ^ (v as f32).to_bits().wrapping_mul(2 * k as u32 + 1))
}

fn mix64(values: impl Iterator<Item = f64>) -> u64 {
    values.enumerate().fold(0, |s, (k, v)| s ^ v.to_bits().wrapping_mul(2 * k as u64 + 1))
}

#[test]
fn single_precision_rounds_in_every_mode() {
    let [a, b, c] = [4, 5, 6].map(singles);
    each_build(|h| {
        let sums: Vec<u32> = elementwise(h, "f32_round", &a, &b, &c);
        let fmas: Vec<u32> = elementwise(h, "f32_fma_round", &a, &b, &c);
        let quotients: Vec<u32> = elementwise(h, "f32_div_round", &a, &b, &c);
        for i in 0..N {
            let (x, y, z) = (f64::from(a[i]), f64::from(b[i]), f64::from(c[i]));
            let f = |v| fixed(v, 33);
            let add = MODES.map(|m| round(f(x) + f(y), 33, false, 24, m));
            let mul = MODES.map(|m| round(f(x) * f(y), 66, false, 24, m));
            assert_eq!(sums[i], mix32(add.into_iter().chain(mul)), "element {i}");
            let fma = MODES.map(|m| round(f(x) * f(y) + (f(z) << 33), 66, false, 24, m));
            assert_eq!(fmas[i], mix32(fma.into_iter()), "fma element {i}");
            let div = MODES.map(|m| divide(x, y, 33, 24, m));
            let sqrt = MODES.map(|m| root(z, 33, 24, m));
            assert_eq!(quotients[i], mix32(div.into_iter().chain(sqrt)), "division element {i}");
        }
    });
}

#[test]
fn double_precision_rounds_in_every_mode() {
    let doubles = |seed| -> Vec<f64> {
        let mut rng = Rng(seed);
        (0..N)
            .map(|_| {
                let x = f64::from_bits(1023 << 52 | rng.next() >> 12);
                if rng.next() & 1 == 0 { x } else { -x }
            })
            .collect()
    };
    let [a, b, c] = [7, 8, 9].map(doubles);
    each_build(|h| {
        let sums: Vec<u64> = elementwise(h, "f64_round", &a, &b, &c);
        let fmas: Vec<u64> = elementwise(h, "f64_fma_round", &a, &b, &c);
        let quotients: Vec<u64> = elementwise(h, "f64_div_round", &a, &b, &c);
        for i in 0..N {
            let f = |v| fixed(v, 52);
            let (x, y, z) = (a[i], b[i], c[i]);
            let add = MODES.map(|m| round(f(x) + f(y), 52, false, 53, m));
            let mul = MODES.map(|m| round(f(x) * f(y), 104, false, 53, m));
            assert_eq!(sums[i], mix64(add.into_iter().chain(mul)), "element {i}");
            let fma = MODES.map(|m| round(f(x) * f(y) + (f(z) << 52), 104, false, 53, m));
            assert_eq!(fmas[i], mix64(fma.into_iter()), "fma element {i}");
            let div = MODES.map(|m| divide(x, y, 52, 53, m));
            let sqrt = MODES.map(|m| root(z, 52, 53, m));
            assert_eq!(quotients[i], mix64(div.into_iter().chain(sqrt)), "division element {i}");
        }
    });
}

/// Compares with a reference in f64 to `tolerance` of the larger of 1 and the value.
fn close(kernel: &str, got: f64, want: f64, tolerance: f64, i: usize) {
    let off = (got - want).abs() / want.abs().max(1.0);
    assert!(off <= tolerance, "{kernel} element {i}: {got} for {want}");
}

#[test]
fn float_functions_are_close_to_double_references() {
    each_build(|h| {
        let [a, b, c] = [10, 11, 12].map(|s| Rng(s).units(N));
        let d = |v: &[f32]| v.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let (da, db, dc) = (d(&a), d(&b), d(&c));
        let basic = |x: f64, y: f64, z: f64| {
            x * y + z - x / (y * y + 1.0) + z.abs().sqrt() + x.min(y) + y.max(z)
        };
        let approx = |x: f64, y: f64, z: f64| {
            x.exp()
                + y.sin()
                + z.cos()
                + (x.abs() + 1.0).log2()
                + 1.0 / (y.abs() + 1.0).sqrt()
                + x / z
        };
        let library = |x: f64, y: f64, z: f64| x.exp() + (y.abs() + 0.5).ln() + z.tanh();
        let g: Vec<f32> = elementwise(h, "f32_basic", &a, &b, &c);
        let g64: Vec<f64> = elementwise(h, "f64_basic", &da, &db, &dc);
        let ap: Vec<f32> = elementwise(h, "f32_approx", &a, &b, &c);
        let lib: Vec<f32> = elementwise(h, "f32_library", &a, &b, &c);
        let lib64: Vec<f64> = elementwise(h, "f64_library", &da, &db, &dc);
        for i in 0..N {
            let (x, y, z) = (da[i], db[i], dc[i]);
            close("f32_basic", f64::from(g[i]), basic(x, y, z), 1e-6, i);
            close("f64_basic", g64[i], basic(x, y, z), 1e-15, i);
            close("f32_approx", f64::from(ap[i]), approx(x, y, z), 2e-6, i);
            close("f64_library", lib64[i], library(x, y, z) + x.cos(), 1e-14, i);
            let erf = f64::from(lib[i]) - library(x, y, z) - x.sin() - (y.abs() + 0.1).powf(z);
            // What remains is erf(x): odd, bounded, and near 2x/sqrt(pi) for small x.
            assert!(
                erf.abs() <= 0.8428 + 1e-5 && erf.signum() == x.signum(),
                "erf element {i}: {erf}"
            );
        }
    });
}

#[test]
fn comparisons_and_special_values_match() {
    let special = [0.0f32, -0.0, 1.5, -2.5, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-40, 0.5];
    let pick =
        |k: usize| -> Vec<f32> { (0..N).map(|i| special[i / 9usize.pow(k as u32) % 9]).collect() };
    let (a, b, c) = (pick(0), pick(1), pick(2));
    each_build(|h| {
        let got: Vec<u32> = elementwise(h, "compare", &a, &b, &c);
        let values: Vec<f32> = elementwise(h, "f32_special", &a, &b, &c);
        for i in 0..N {
            let (x, y, z) = (a[i], b[i], c[i]);
            let bits =
                [x < y, x <= y, x > z, x >= z, y == z, x != y, !(x < z), x < y && y < z || x > z];
            let want = bits.iter().enumerate().fold(0, |s, (k, &b)| s | u32::from(b) << k);
            assert_eq!(got[i], want, "element {i}: {x} {y} {z}");
            let saturated = if y > 0.0 { y.min(1.0) } else { 0.0 };
            let want = x.copysign(x).abs().copysign(y)
                + if z.is_nan() { 1.0 } else { 2.0 }
                + if x.is_infinite() { 4.0 } else { 8.0 }
                + saturated
                + (z * 10.0).round_ties_even()
                + (x * 7.0).floor()
                + (y * 7.0).ceil()
                + (z * 7.0).trunc();
            assert!(
                values[i] == want || (values[i].is_nan() && want.is_nan()),
                "element {i}: {} for {want}",
                values[i]
            );
        }
    });
}
