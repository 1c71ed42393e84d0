//! `cargo bench --bench streams [FILTER]`: what is bound by memory or by random
//! numbers, as bytes/s and as a share of what copying reaches on this machine.
//! Groups `<op>/<pass>/cpu`; all cores.
#![allow(unsafe_code)] // Tasks write disjoint parts of one slice.

#[path = "peers/streams.rs"]
#[allow(dead_code)] // The comparison with PyTorch uses the rest.
mod streams;

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use langevin::backend::cpu::Pool;
use langevin::backend::cpu::pool::Parts;

/// Bytes read and written each second by copying 128 MiB on all threads.
fn copy_limit(pool: &Pool) -> f64 {
    const PART: usize = 1 << 16;
    const LEN: usize = 1 << 25;
    let (from, mut to) = (vec![1f32; LEN], vec![0f32; LEN]);
    let mut best = f64::INFINITY;
    for _ in 0..10 {
        let start = Instant::now();
        let parts = Parts::new(&mut to);
        pool.run(LEN / PART, &|i| {
            // SAFETY: part i belongs to task i alone.
            unsafe { parts.part(i * PART, PART) }.copy_from_slice(&from[i * PART..][..PART]);
        });
        best = best.min(start.elapsed().as_secs_f64());
    }
    (2 * 4 * LEN) as f64 / best
}

fn all(criterion: &mut Criterion) {
    let pool = Pool::new(0);
    let limit = copy_limit(&pool);
    println!("limit: {:.1} GB/s copied on {} threads", limit / 1e9, pool.threads());
    for stream in streams::streams() {
        let mut group = criterion.benchmark_group(stream.group);
        group.sample_size(10);
        group.warm_up_time(Duration::from_millis(200));
        group.measurement_time(Duration::from_secs(1));
        group.throughput(Throughput::Bytes(stream.bytes as u64));
        let mut best = f64::INFINITY;
        let mut run = (stream.prepare)(pool.threads());
        group.bench_function(stream.shape, |b| {
            b.iter_custom(|iterations| {
                let start = Instant::now();
                for _ in 0..iterations {
                    run();
                }
                let elapsed = start.elapsed();
                best = best.min(elapsed.as_secs_f64() / iterations as f64);
                elapsed
            });
        });
        if best.is_finite() {
            let rate = stream.bytes as f64 / best;
            println!("{:>60.1} GB/s at best, {:.0} % of copying", rate / 1e9, rate / limit * 100.0);
        }
        group.finish();
    }
}

criterion_group!(benches, all);
criterion_main!(benches);
