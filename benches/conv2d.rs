//! `cargo bench --bench conv2d [FILTER]`: convolutions and linear layers of the
//! ddpm-cifar10 and digits U-Nets, as flop/s and as a share of what the machine's
//! multiply-add units can do. Groups `<op>/<pass>/cpu`; all cores.

#[path = "peers/cases.rs"]
mod cases;
mod limit;

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use langevin::backend::cpu::Pool;

fn layers(criterion: &mut Criterion) {
    let pool = Pool::new(0);
    let limit = limit::flops(&pool);
    println!("limit: {:.1} GFLOP/s on {} threads", limit / 1e9, pool.threads());
    for case in cases::layers() {
        let mut group = criterion.benchmark_group(case.group());
        group.sample_size(10);
        group.warm_up_time(Duration::from_millis(200));
        group.measurement_time(Duration::from_secs(1));
        group.throughput(Throughput::Elements(case.flops()));
        let mut best = f64::INFINITY;
        let mut run = case.prepare(pool.threads()).expect("layers need nothing from outside");
        group.bench_function(case.shape(), |b| {
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
            let rate = case.flops() as f64 / best;
            println!(
                "{:>60.1} GFLOP/s at best, {:.0} % of the limit",
                rate / 1e9,
                rate / limit * 100.0
            );
        }
        group.finish();
    }
}

criterion_group!(benches, layers);
criterion_main!(benches);
