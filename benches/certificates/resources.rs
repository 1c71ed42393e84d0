//! What every kernel of every image takes of a multiprocessor, on six architectures, and how
//! much shared memory launches ask for beside what is in the code.

use std::collections::BTreeMap;

use langevin::backend::cuda::Cuda;
use langevin::backend::cuda::entries::{IMAGES, Image};
use langevin::backend::{Engine, Precision};
use langevin::config::{self, Config};
use langevin::diffusion::sampler::{Kind, Options, Setup};
use langevin::ops::conv2d::{ConvOptions, Padding};
use langevin::ops::norm::{Domain, NormOperands};
use langevin::plan::{DType, DiskLayout, Init, Mode, Plan, Role, Wrt};
use langevin::sample::Drawing;
use langevin::train::step::{Images, StepPrograms};

use crate::counters::Gpu;
use crate::machine::{self, ARCHS, Resources};
use crate::table::Target::{AtMost, Is};
use crate::table::{Table, Target};

/// Images whose kernels read, compute and write element by element.
const ELEMENTWISE: [&str; 8] =
    ["pointwise", "broadcast", "concat", "dropout", "cast", "check", "noising", "embedding"];

/// Kernels of such images that are reductions, and elementwise kernels of others.
const REDUCTIONS: [&str; 1] = ["sum_per_image"];
const ALSO_ELEMENTWISE: [&str; 4] =
    ["loss_backward", "sampler_step_", "sampler_blend", "sampler_estimate"];

/// Shared memory that a block may ask for on sm_86, 89 and 120.
const MOST_SHARED_BYTES: f64 = 99.0 * 1024.0;

/// The promise for the registers of a kernel of an image, if there is one.
fn most_registers(image: &str, kernel: &str) -> Option<f64> {
    let starts = |names: &[&str]| names.iter().any(|name| kernel.starts_with(name));
    match image {
        "optimizer" if kernel.starts_with("adamw") => Some(64.0),
        image if image.starts_with("norm") && kernel.contains("group") => Some(64.0),
        _ if starts(&REDUCTIONS) => None,
        image if ELEMENTWISE.contains(&image) || starts(&ALSO_ELEMENTWISE) => Some(40.0),
        _ => None,
    }
}

pub fn certify(table: &mut Table, gpu: &Gpu) {
    if let Some(why) = machine::missing() {
        table.not_measured(3, "registers and spills", why);
        return;
    }
    table.note("the worst of every image's kernels on sm_80, 86, 89, 90, 100, 120");
    table.note("shared bytes: what the code declares and the most that a launch adds, of training");
    table.note("and sampling ddpm-cifar10 and the presets, convolutions of 1 to 7 taps a side,");
    table.note("attention over heads of 8 to 256, norms of 3 to 2048 channels, in every precision");
    let asked = dynamic_shared_bytes(gpu);
    for image in &IMAGES {
        let all: Vec<Found> = ARCHS.into_iter().flat_map(|arch| found(image, arch)).collect();
        let kernels = all.len() / ARCHS.len();
        let mut worst = |what: &str, of: &dyn Fn(&Resources) -> u32, target: Option<Target>| {
            let most = all.iter().max_by_key(|f| of(&f.kernel)).expect("images have kernels");
            let value = f64::from(of(&most.kernel));
            let what = match value {
                0.0 => format!("{}, {kernels} kernels: {what}", image.name),
                _ => format!("{}: {what} ({} on sm_{})", image.name, most.kernel.name, most.arch),
            };
            match target {
                Some(target) => table.line(3, &what, value, target),
                None => table.value(3, &what, value),
            }
        };
        worst("spilled bytes", &|k| k.spill_bytes, Some(Is(0.0)));
        worst("local memory of a thread", &|k| k.stack_bytes, Some(Is(0.0)));
        let shared = |k: &Resources| {
            k.static_shared_bytes + asked.get(k.name.as_str()).copied().unwrap_or(0)
        };
        worst("shared bytes of a block", &shared, Some(AtMost(MOST_SHARED_BYTES)));
        registers(table, image.name, &all);
    }
    let all = IMAGES.iter().flat_map(|image| found(image, ARCHS[0]));
    let names: Vec<String> = all.map(|f| f.kernel.name).collect();
    table.value(3, "kernels in all", names.len() as f64);
    let launched = names.iter().filter(|name| asked.contains_key(name.as_str())).count();
    table.value(3, "of these launched by the plans that shared bytes are of", launched as f64);
}

/// One kernel on one architecture.
struct Found {
    kernel: Resources,
    arch: &'static str,
}

fn found(image: &Image, arch: &'static str) -> Vec<Found> {
    let compiled = machine::compile(image, arch);
    compiled.resources.iter().map(|kernel| Found { kernel: kernel.clone(), arch }).collect()
}

/// The most registers of the kernels that something is promised of, and of the others.
fn registers(table: &mut Table, image: &str, all: &[Found]) {
    let promise = |f: &&Found| most_registers(image, &f.kernel.name);
    let (bound, free): (Vec<&Found>, Vec<&Found>) = all.iter().partition(|f| promise(f).is_some());
    for part in [bound, free] {
        let Some(most) = part.iter().max_by_key(|f| f.kernel.registers) else { continue };
        let what = format!("{image}: registers ({} on sm_{})", most.kernel.name, most.arch);
        let value = f64::from(most.kernel.registers);
        match promise(most) {
            Some(target) => table.line(3, &what, value, AtMost(target)),
            None => table.value(3, &what, value),
        }
    }
}

/// The most shared memory that a launch of each kernel asks for, over many plans. Launchers
/// choose by shapes alone, whatever the card.
fn dynamic_shared_bytes(gpu: &Gpu) -> BTreeMap<&'static str, u32> {
    let mut most: BTreeMap<&'static str, u32> = BTreeMap::new();
    for precision in [Precision::F32, Precision::Tf32, Precision::Bf16] {
        let backend = || Cuda::sharing(&gpu.device).expect("a backend").with_precision(precision);
        let launching = backend();
        let engine = Engine::new(Box::new(backend()), 1, false).expect("memory");
        let mut look = |program: &langevin::backend::Program| {
            for launch in launching.launches(program).expect("kernels") {
                let bytes = most.entry(launch.kernel).or_default();
                *bytes = (*bytes).max(launch.shared_bytes);
            }
        };
        for (preset, batch) in [("cifar10", 1), ("cifar10", 128), ("digits", 64), ("mnist", 64)] {
            networks(&engine, preset, batch, &mut look);
        }
        for plan in single_layers() {
            look(&engine.lower(plan).expect("kernels"));
        }
    }
    most
}

/// The training step of a preset and a step of two samplers.
fn networks(
    engine: &Engine,
    preset: &str,
    batch: usize,
    look: &mut impl FnMut(&langevin::backend::Program),
) {
    let mut config = Config::from_value(config::read(preset).expect("a preset")).expect("valid");
    config.train.batch = batch;
    let network = config.model.clone();
    let image = network.sample_shape().expect("presets name a size");
    let parameters = network.parameters().expect("valid");
    let objective = config.objective(256).expect("a preset is valid");
    let images = Images { shape: image, levels: 256, resident: Some(100) };
    let steps = StepPrograms::new(engine, &network, &parameters, &config.train, &objective, images);
    steps.expect("valid").programs().into_iter().for_each(&mut *look);
    for kind in [Kind::Ddim, Kind::OdeHeun] {
        let options = Options { steps: Some(4), ..Options::default() };
        let drawing = Drawing {
            network: &network,
            kind,
            setup: Setup::of_scheduler(&config.scheduler, options).expect("valid"),
            image,
            batch,
            guidance: 1.0,
            given_noise: false,
        };
        look(drawing.prepare(engine).expect("valid").program());
    }
}

/// Layers of many shapes, forward and backward, a plan each.
fn single_layers() -> Vec<Plan> {
    let mut plans = Vec::new();
    let image = |plan: &mut Plan, name: &str, shape: &[usize]| {
        plan.activation(name, shape, DType::F32, Role::State)
    };
    let finish = |mut plan: Plan, y, wrt: Wrt| {
        plan.keep(y);
        let shape = plan.shape(y).to_vec();
        let d_y = plan.activation("d_y", &shape, DType::F32, Role::State);
        plan.derive(&[(y, Some(d_y))], wrt).expect("derives");
        plan
    };
    for taps in [1, 2, 3, 5, 7] {
        for (c_in, c_out) in
            [(1, 64), (3, 64), (4, 320), (8, 8), (64, 3), (64, 8), (128, 256), (512, 512)]
        {
            for (n, side) in [(1, 4), (4, 16), (2, 64)] {
                let mut plan = Plan::new();
                let x = image(&mut plan, "x", &[n, side, side, c_in]);
                let shape = [c_out, taps, taps, c_in];
                let init = Init::Constant(0.0);
                let w = plan.parameter("w", &shape, DiskLayout::Same, init, true);
                let b = plan.parameter("b", &[c_out], DiskLayout::Same, init, true);
                let options =
                    ConvOptions { padding: Padding::same(taps / 2), ..ConvOptions::default() };
                let y = plan.conv2d(x, w, Some(b), options).expect("fits");
                let again = plan.clone();
                plans.push(finish(plan, y, Wrt::Parameters(Mode::Write)));
                plans.push(finish(again, y, Wrt::Tensors(vec![x])));
            }
        }
    }
    for dim in [8, 16, 24, 32, 40, 48, 64, 72, 80, 96, 128, 160, 192, 256] {
        for len in [16, 64, 256, 1024] {
            let mut plan = Plan::new();
            let [q, k, v] = ["q", "k", "v"].map(|name| image(&mut plan, name, &[2, len, 2 * dim]));
            let y = plan.attention(q, k, v, 2, 0.1).expect("fits");
            plans.push(finish(plan, y, Wrt::Tensors(vec![q, k, v])));
        }
    }
    for channels in [3, 32, 64, 96, 128, 192, 256, 320, 384, 512, 768, 1024, 2048] {
        for spatial in [1, 16, 64, 256, 1024, 4096] {
            let mut domains = vec![Domain::Layer];
            if channels % 32 == 0 {
                domains.push(Domain::Group(32));
            }
            for domain in domains {
                let mut plan = Plan::new();
                let x = image(&mut plan, "x", &[2, spatial, channels]);
                let [gamma, beta] =
                    ["gamma", "beta"].map(|name| image(&mut plan, name, &[channels]));
                let operands =
                    NormOperands { gamma: Some(gamma), beta: Some(beta), ..Default::default() };
                let y = plan.norm(x, domain, 1e-5, operands).expect("fits");
                plans.push(finish(plan, y, Wrt::Tensors(vec![x, gamma, beta])));
            }
        }
    }
    plans
}
