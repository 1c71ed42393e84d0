//! `cargo bench --bench empirical [FILTER]`: the optimal denoiser of a data set,
//! both passes, as flop/s and as a share of what the machine's multiply-add units
//! can do, where all images weigh the same (`broad`) and where one does
//! (`sharp`, counted as if all were summed). Groups `empirical/<pass>/cpu`.

mod limit;

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use langevin::backend::cpu::Pool;
use langevin::backend::cpu::empirical::{
    Operands, Saved, empirical, empirical_backward, workspace_len,
};
use langevin::ops::empirical::Empirical;
use langevin::plan::Mode;
use langevin::random::{Purpose, fill_normal, image_keys};

fn normal(image: u64, len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    fill_normal(image_keys(0, image), Purpose::Init, 0, 0, &mut values);
    values
}

fn denoiser(criterion: &mut Criterion) {
    let pool = Pool::new(0);
    let limit = limit::flops(&pool);
    println!("limit: {:.1} GFLOP/s on {} threads", limit / 1e9, pool.threads());
    let cases = [("digits", 64, 1797, 64), ("cifar10", 16, 4096, 3072), ("points", 1024, 4096, 2)];
    for (name, n, m, len) in cases {
        let op = Empirical { n, m, len };
        let (x, data, d_y) = (normal(0, n * len), normal(1, m * len), normal(2, n * len));
        let (mut y, mut log_sum, mut d_x) = (vec![0.0; n * len], vec![0.0; 2 * n], x.clone());
        let mut workspace = vec![0.0; workspace_len(&op) + 1];
        // The statistics in front are f64.
        let skip = workspace.as_ptr().align_offset(8);
        let workspace = &mut workspace[skip..];
        for (noise, std) in [("broad", 1e3), ("sharp", 1e-3)] {
            let std = vec![std; n];
            let operands = Operands { x: &x, data: &data, std: &std, signal: None };
            for pass in ["forward", "backward"] {
                let mut group = criterion.benchmark_group(format!("empirical/{pass}/cpu"));
                group.sample_size(10);
                group.warm_up_time(Duration::from_millis(200));
                group.measurement_time(Duration::from_secs(1));
                group.throughput(Throughput::Elements(op.flops()));
                let mut best = f64::INFINITY;
                let case = format!("{name}_{noise}_{n}x{m}x{len}");
                group.bench_function(BenchmarkId::from_parameter(case), |b| {
                    b.iter_custom(|iterations| {
                        let start = Instant::now();
                        for _ in 0..iterations {
                            if pass == "forward" {
                                let y = (y.as_mut_slice(), Mode::Write);
                                empirical(&pool, &op, operands, y, &mut log_sum, workspace);
                            } else {
                                let saved = Saved { y: &y, log_sum: &log_sum, d_y: &d_y };
                                let d_x = (d_x.as_mut_slice(), Mode::Write);
                                empirical_backward(&pool, &op, operands, saved, d_x, workspace);
                            }
                        }
                        let elapsed = start.elapsed();
                        best = best.min(elapsed.as_secs_f64() / iterations as f64);
                        elapsed
                    });
                });
                if best.is_finite() {
                    let rate = op.flops() as f64 / best;
                    println!(
                        "{:>60.1} GFLOP/s at best, {:.0} % of the limit",
                        rate / 1e9,
                        rate / limit * 100.0
                    );
                }
                group.finish();
            }
        }
    }
}

criterion_group!(benches, denoiser);
criterion_main!(benches);
