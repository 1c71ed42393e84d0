//! What this machine can do at most, measured: the scale for the benchmarks.
#![allow(unsafe_code)] // Vector instructions, behind run-time detection.

use std::time::Instant;

use langevin::backend::cpu::Pool;

/// Fused multiply-adds of registers alone, on all threads of the pool, in flop/s.
pub fn flops(pool: &Pool) -> f64 {
    let kernel = kernel();
    let rounds = 1 << 16;
    let mut best: f64 = 0.0;
    for _ in 0..10 {
        let start = Instant::now();
        let tasks = pool.threads() * 8;
        let flops_of_task = kernel(rounds);
        pool.run(tasks - 1, &|_| {
            std::hint::black_box(kernel(rounds));
        });
        best = best.max((flops_of_task * tasks) as f64 / start.elapsed().as_secs_f64());
    }
    best
}

/// Runs `rounds` rounds and returns how many operations that was.
type Kernel = fn(usize) -> usize;

#[cfg(target_arch = "x86_64")]
fn kernel() -> Kernel {
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f")]
    fn wide(rounds: usize) -> usize {
        let (a, b) = (_mm512_set1_ps(0.999), _mm512_set1_ps(1e-3));
        // Opaque, or equal sums would be computed once.
        let mut sums = std::hint::black_box([_mm512_set1_ps(1.0); 16]);
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, a, b);
            }
        }
        std::hint::black_box(sums);
        rounds * 16 * 16 * 2
    }

    #[target_feature(enable = "avx2,fma")]
    fn narrow(rounds: usize) -> usize {
        let (a, b) = (_mm256_set1_ps(0.999), _mm256_set1_ps(1e-3));
        let mut sums = std::hint::black_box([_mm256_set1_ps(1.0); 12]);
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, a, b);
            }
        }
        std::hint::black_box(sums);
        rounds * 12 * 8 * 2
    }

    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the feature was just detected.
        |rounds| unsafe { wide(rounds) }
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the features were just detected.
        |rounds| unsafe { narrow(rounds) }
    } else {
        portable
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn kernel() -> Kernel {
    portable
}

fn portable(rounds: usize) -> usize {
    let mut sums = std::hint::black_box([1f32; 64]);
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = *sum * 0.999 + 1e-3;
        }
    }
    std::hint::black_box(sums);
    rounds * 64 * 2
}
