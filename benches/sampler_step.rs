//! `cargo bench --bench sampler_step [FILTER]`: one update of 16 pictures of
//! 32x32x3, in bytes the update has to move: prediction and state read, state
//! written. Noise is drawn from its counters and moves none.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use langevin::backend::cpu::Cpu;
use langevin::backend::{Engine, Loaded, WeightSet};
use langevin::diffusion::sampler::run::{Settings, step_plan};
use langevin::diffusion::sampler::{Kind, Options, Program, Setup};
use langevin::diffusion::scheduler::SchedulerConfig;
use langevin::plan::{DType, Role, TensorId};
use langevin::random::image_keys;

const BATCH: usize = 16;
const SHAPE: [usize; 3] = [32, 32, 3];

/// The step of a program with the prediction given, at its first stage.
fn prepare(program: &Program) -> (Engine, Loaded) {
    let settings = Settings {
        batch: BATCH,
        shape: SHAPE.to_vec(),
        label: DType::F32,
        class: None,
        guidance: 1.0,
        given_noise: false,
    };
    let plan = step_plan(program, &settings, |plan, inputs| {
        let shape = plan.shape(inputs.x).to_vec();
        Ok(plan.activation("prediction", &shape, DType::F32, Role::State))
    });
    let mut engine = Engine::new(Box::new(Cpu::new(0)), 0, false).expect("no weights");
    let lowered = engine.lower(plan.expect("shapes fit")).expect("one node");
    let loaded = engine.load(lowered, WeightSet::Raw).expect("small arenas");
    let tensor = |name: &str| -> TensorId { loaded.tensor(name).expect("the step's tensors") };
    let keys: Vec<u32> = (0..BATCH as u64).flat_map(|i| image_keys(0, i)).collect();
    let values = vec![0.5; BATCH * SHAPE.iter().product::<usize>()];
    engine.set(&loaded, tensor("sampler.table"), &program.table(1.0)).expect("upload");
    engine.set_u32(&loaded, tensor("sampler.stage"), &[0]).expect("upload");
    engine.set_u32(&loaded, tensor("sampler.keys"), &keys).expect("upload");
    engine.set(&loaded, tensor("prediction"), &values).expect("upload");
    engine.set(&loaded, tensor("sampler.slot.0"), &values).expect("upload");
    (engine, loaded)
}

fn updates(criterion: &mut Criterion) {
    let clipped = SchedulerConfig::default();
    let thresholded = SchedulerConfig { thresholding: true, ..clipped.clone() };
    let cases = [("ddpm", Kind::Ddpm, &clipped), ("ddim", Kind::Ddim, &clipped)];
    for (name, kind, config) in cases.into_iter().chain([("thresholded", Kind::Ddim, &thresholded)])
    {
        let setup = Setup::of_scheduler(config, Options::default()).expect("valid");
        let program = Program::new(kind, &setup).expect("valid");
        let (mut engine, loaded) = prepare(&program);
        let stage = loaded.tensor("sampler.stage").expect("the step's tensor");
        let mut group = criterion.benchmark_group(format!("sampler_step/{name}/cpu"));
        let bytes = 3 * 4 * BATCH * SHAPE.iter().product::<usize>();
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function("16x32x32x3", |b| {
            b.iter(|| {
                engine.set_u32(&loaded, stage, &[0]).expect("upload");
                engine.run(&loaded).expect("the step runs")
            });
        });
    }
}

criterion_group!(benches, updates);
criterion_main!(benches);
