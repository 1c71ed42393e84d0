//! Divergence, loops, calls, recursion, tables, local arrays.

use super::common::{Args, Host, Rng};
use super::each_build;

const N: usize = 200;

fn inputs() -> Vec<i32> {
    let mut rng = Rng(31);
    (0..N).map(|_| (rng.next() % 5000) as i32 + 1).collect()
}

fn run<R: Copy + Default>(h: &mut Host, kernel: &str, a: &[i32], zero: bool) -> Vec<R> {
    let da = h.upload(a);
    let out = h.alloc::<R>(a.len());
    if zero {
        assert!(h.gpu.memory.fill(out, 0, (a.len() * size_of::<R>()) as u64));
    }
    h.launch(kernel, 3, 96, 0, &Args::new().ptr(out).ptr(da).int(a.len() as i32));
    h.download(out, a.len())
}

fn collatz(a: i32) -> i32 {
    let (mut x, mut steps) = (a as u32, 0);
    while x != 1 {
        x = if x & 1 == 1 { x.wrapping_mul(3).wrapping_add(1) } else { x >> 1 };
        steps += 1;
        if steps > 1000 {
            break;
        }
    }
    steps
}

fn switched(x: i32) -> i32 {
    match x % 11 {
        0 => x + 1,
        1 => x * 3,
        2 => (x ^ 0x55) + x - 7,
        3 => x - 7,
        4 => (0..x % 5).map(|k| k * x).sum(),
        5 => -x,
        6 => x / 3,
        7 => x % 13,
        8 => x << 2,
        _ => 42,
    }
}

fn nested(a: i32, i: i32) -> i32 {
    let mut s = 0;
    for j in 0..a % 7 {
        for k in j..a % 5 {
            if (j + k + i) % 3 == 0 {
                continue;
            }
            if s > 100 {
                return s;
            }
            s += j * 10 + k;
        }
    }
    s
}

fn gcd(a: i32, b: i32) -> i32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn ackermann_like(m: u32, n: u32) -> u32 {
    match (m, n) {
        (0, _) => n + 1,
        (_, 0) => ackermann_like(m - 1, 1),
        _ => ackermann_like(m - 1, n % 3) + n,
    }
}

#[test]
fn divergent_control_flow_matches() {
    let a = inputs();
    each_build(|h| {
        let c: Vec<i32> = run(h, "collatz", &a, false);
        let s: Vec<i32> = run(h, "switched", &a, false);
        let n: Vec<i32> = run(h, "nested_loops", &a, false);
        let e: Vec<i32> = run(h, "early_exit", &a, true);
        for i in 0..N {
            assert_eq!(c[i], collatz(a[i]), "collatz {}", a[i]);
            assert_eq!(s[i], switched(a[i]), "switched {}", a[i]);
            assert_eq!(n[i], nested(a[i], i as i32), "nested {}", a[i]);
            let bound = if a[i] % 3 == 0 { 0 } else { ((a[i] % 300) / 7 + 1).min(100) };
            assert_eq!(e[i], (0..bound).sum::<i32>(), "early_exit {}", a[i]);
        }
    });
}

#[test]
fn calls_recursion_and_local_arrays_match() {
    let a = inputs();
    each_build(|h| {
        let c: Vec<i64> = run(h, "called", &a, false);
        let r: Vec<u32> = run(h, "recursive", &a, false);
        let l: Vec<i32> = run(h, "local_array", &a, false);
        let t: Vec<i32> = run(h, "tables", &a, false);
        for i in 0..N {
            let x = a[i];
            let want = if x & 1 == 1 {
                let extra = x % 9;
                i64::from(x + extra) * 1000 + i64::from(gcd(x + 5, 12 + extra))
            } else {
                i64::from(gcd(x, 30)) * 1000 + i64::from(x + 5)
            };
            assert_eq!(c[i], want, "called {x}");
            assert_eq!(r[i], ackermann_like(x as u32 % 6, x as u32 % 4), "recursive {x}");
            let mut v: Vec<i32> = (0..16).map(|k| a[(i + k) % N] * (k as i32 + 1)).collect();
            v.sort_unstable();
            assert_eq!(l[i], v[(x & 15) as usize] - v[0], "local_array {x}");
            let primes = [2, 3, 5, 7, 11, 13, 17, 19];
            assert_eq!(t[i], primes[(x & 7) as usize] * 100 * ((x & 3) + 1), "tables {x}");
        }
    });
}

#[test]
fn structs_pass_by_value() {
    each_build(|h| {
        let out = h.alloc::<f64>(20);
        // struct Params { int a; float b; double c; short d[5]; unsigned char e; }: 32 bytes.
        let mut p = [0u8; 32];
        p[..4].copy_from_slice(&7i32.to_le_bytes());
        p[4..8].copy_from_slice(&1.5f32.to_le_bytes());
        p[8..16].copy_from_slice(&4.25f64.to_le_bytes());
        for k in 0..5i16 {
            p[16 + 2 * k as usize..18 + 2 * k as usize].copy_from_slice(&(k * 10).to_le_bytes());
        }
        p[26] = 200;
        let mut args = Args::new().ptr(out);
        for word in p.chunks_exact(8) {
            args = args.long(i64::from_le_bytes(word.try_into().expect("8 bytes")));
        }
        h.launch("by_value", 1, 32, 0, &args.int(20));
        let got: Vec<f64> = h.download(out, 20);
        for (i, g) in got.iter().enumerate() {
            assert_eq!(*g, 7.0 + 1.5 * 4.25 + (i % 5 * 10) as f64 + 200.0);
        }
    });
}

#[test]
fn a_lock_taken_by_divergent_lanes_makes_progress() {
    each_build(|h| {
        let counter = h.upload(&[0i32]);
        let lock = h.upload(&[0i32]);
        h.launch("spin_with_lock", 3, 40, 0, &Args::new().ptr(counter).ptr(lock).int(3));
        assert_eq!(h.download::<i32>(counter, 1), [3 * 40 * 3]);
    });
}
