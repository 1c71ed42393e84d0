//! Kernels that pass over their tensors once, in f32 and bf16 at a layer of ddpm-cifar10 (one
//! image; they treat a batch as more of the same), and what stands at the network's ends:
//! noising, loss, the check for numbers that are not finite.

use langevin::backend::cuda::Cuda;
use langevin::backend::{Engine, Loaded, Precision, WeightSet};
use langevin::ops::noising::{Picked, coefficient, pick};
use langevin::ops::pointwise::Activation;
use langevin::ops::resample::{Edge, Method};
use langevin::plan::{DType, Plan, Role, TensorId, Wrt};
use langevin::random::image_keys;

use crate::counters::{Gpu, Launched};
use crate::table::Table;
use crate::table::Target::{AtLeast, AtMost, Within};

/// Sides and channels of the layer.
const SIDE: usize = 32;
const CHANNELS: usize = 128;

type Build = fn(&mut Plan, &[TensorId]) -> langevin::Result<TensorId>;

/// An op over tensors of these shapes, and keys last, where it takes them.
struct Case {
    name: &'static str,
    shapes: &'static [&'static [usize]],
    keys: bool,
    build: Build,
}

const X: &[usize] = &[1, SIDE, SIDE, CHANNELS];
const HALF: &[usize] = &[1, SIDE / 2, SIDE / 2, CHANNELS];
const WIDE: &[usize] = &[1, SIDE, SIDE, 2 * CHANNELS];

const CASES: [Case; 10] = [
    Case {
        name: "SiLU",
        shapes: &[X],
        keys: false,
        build: |p, t| Ok(p.activate(t[0], Activation::Silu)),
    },
    Case { name: "(a + b) s", shapes: &[X, X], keys: false, build: |p, t| p.add(t[0], t[1], 0.5) },
    Case { name: "s x", shapes: &[X], keys: false, build: |p, t| Ok(p.scale(t[0], 0.5, 0.0)) },
    Case {
        name: "x s[n]",
        shapes: &[X, &[1, 8]],
        keys: false,
        build: |p, t| p.scale_rows(t[0], t[1], 3, false),
    },
    Case {
        name: "x + e[n]",
        shapes: &[X, &[1, CHANNELS]],
        keys: false,
        build: |p, t| p.add_per_image(t[0], t[1]),
    },
    Case {
        name: "[a, b] 256 + 128",
        shapes: &[WIDE, X],
        keys: false,
        build: |p, t| p.concat(t[0], t[1]),
    },
    Case {
        name: "nearest x2",
        shapes: &[HALF],
        keys: false,
        build: |p, t| p.resample(t[0], Method::Nearest { factor: 2 }),
    },
    Case {
        name: "average 2x2",
        shapes: &[X],
        keys: false,
        build: |p, t| p.resample(t[0], Method::AveragePool { factor: 2 }),
    },
    Case {
        name: "FIR 1 3 3 1",
        shapes: &[X],
        keys: false,
        build: |p, t| {
            let taps = [0.125, 0.375, 0.375, 0.125];
            p.resample(t[0], Method::Fir { up: 1, down: 2, pad: [1, 1], edge: Edge::Zero, taps })
        },
    },
    Case { name: "dropout", shapes: &[X], keys: true, build: |p, t| p.dropout(t[0], t[1], 0.1, 3) },
];

/// An engine without weights.
fn engine(gpu: &Gpu, precision: Precision) -> Engine {
    let backend = Cuda::sharing(&gpu.device).expect("a backend").with_precision(precision);
    Engine::new(Box::new(backend), 1, true).expect("memory")
}

/// What a plan's run launches, once `set` has filled what it reads.
fn measure(
    gpu: &Gpu,
    precision: Precision,
    plan: Plan,
    set: impl FnOnce(&mut Engine, &Loaded),
) -> Launched {
    let mut engine = engine(gpu, precision);
    let lowered = engine.lower(plan).expect("kernels");
    let loaded = engine.load(lowered, WeightSet::Raw).expect("memory");
    set(&mut engine, &loaded);
    let plan = &loaded.program.plan;
    let result = plan.tensors.iter().position(|t| t.role == Role::Output).expect("a result");
    let result = TensorId(result as u32);
    let mut values = vec![0.0; plan.tensor(result).len()];
    gpu.measure(|| {
        engine.run(&loaded).expect("runs");
        engine.get(&loaded, result, &mut values).expect("downloads");
    })
}

impl Case {
    /// The op and its gradients. In bf16 casts stand around them.
    fn run(&self, gpu: &Gpu, precision: Precision) -> Launched {
        let half = precision == Precision::Bf16;
        let mut plan = Plan::new();
        let inputs: Vec<TensorId> = (self.shapes.iter().enumerate())
            .map(|(i, shape)| plan.activation(format!("x{i}"), shape, DType::F32, Role::State))
            .collect();
        let mut operands: Vec<TensorId> = match half {
            true => inputs.iter().map(|&x| plan.cast(x, DType::BF16)).collect(),
            false => inputs.clone(),
        };
        let wanted = operands.clone();
        let keys = self.keys.then(|| plan.activation("keys", &[1, 4], DType::U32, Role::State));
        operands.extend(keys);
        let y = (self.build)(&mut plan, &operands).expect("fits");
        let shape = plan.shape(y).to_vec();
        let upstream = plan.activation("d_y", &shape, DType::F32, Role::State);
        let d_y = if half { plan.cast(upstream, DType::BF16) } else { upstream };
        plan.derive(&[(y, Some(d_y))], Wrt::Tensors(wanted.clone())).expect("derives");
        let mut results = vec![y];
        results.extend(wanted.iter().filter_map(|&x| plan.gradient(x)));
        for result in results {
            if half {
                plan.tensors[result.index()].role = Role::Transient;
                let kept = plan.cast(result, DType::F32);
                plan.keep(kept);
            } else {
                plan.keep(result);
            }
        }
        measure(gpu, precision, plan, |engine, loaded| {
            if let Some(keys) = keys {
                engine.set_u32(loaded, keys, &image_keys(1, 2)).expect("uploads");
            }
        })
    }
}

pub fn certify(table: &mut Table, gpu: &Gpu) {
    table.note("one image of 32x32x128; forward and gradients");
    for precision in [Precision::F32, Precision::Bf16] {
        for case in &CASES {
            let mut launched = case.run(gpu, precision);
            launched.kernels.retain(|name, _| !name.starts_with("cast"));
            passes(table, &format!("{}, {precision}", case.name), &launched);
        }
    }
    table.note("between the types; in bf16 plans of networks none is left but that of the weights");
    let mut casts = CASES[0].run(gpu, Precision::Bf16);
    casts.kernels.retain(|name, _| name.starts_with("cast"));
    passes(table, "32x32x128", &casts);
    check(table, gpu);
}

/// The look at a tensor for numbers that are not finite.
fn check(table: &mut Table, gpu: &Gpu) {
    for precision in [Precision::F32, Precision::Bf16] {
        let mut plan = Plan::new();
        let x = plan.activation("x", X, DType::F32, Role::State);
        let x = if precision == Precision::Bf16 { plan.cast(x, DType::BF16) } else { x };
        let y = plan.scale(x, 0.5, 0.0);
        let y = if precision == Precision::Bf16 { plan.cast(y, DType::F32) } else { y };
        plan.keep(y);
        let mut engine = engine(gpu, precision);
        let lowered = engine.lower(plan).expect("kernels");
        let loaded = engine.load(lowered, WeightSet::Raw).expect("memory");
        let mut launched = gpu.measure(|| {
            engine.run_checked(&loaded).expect("runs");
        });
        launched.kernels.retain(|name, _| name.starts_with("check"));
        passes(table, &format!("finite? {precision}"), &launched);
    }
}

/// Items 1 and 2 of every kernel that moved more than a thousandth of what was moved. Reads
/// that are the same for a whole warp (an image's coefficients and keys) are left out
/// of item 1: they move 32 bytes a warp whatever their width.
pub fn passes(table: &mut Table, name: &str, launched: &Launched) {
    let all = launched.of("").sector_bytes();
    for (kernel, c) in &launched.kernels {
        if c.sector_bytes() < all / 1000.0 {
            continue;
        }
        let what = |text: &str| format!("{kernel}, {name}: {text}");
        let streams = &launched.streams[kernel];
        let bytes: f64 = streams.iter().map(|a| a.bytes).sum();
        let sectors: f64 = streams.iter().map(|a| a.sectors).sum();
        let wide: f64 = streams.iter().map(|a| a.bytes * a.share_128_bit).sum();
        table.line(1, &what("bytes / (32 x sectors)"), bytes / (32.0 * sectors), AtLeast(0.95));
        table.line(1, &what("share of bytes by 128 bits"), wide / bytes, AtLeast(0.95));
        let again = c.sector_bytes() / c.unique();
        table.value(1, &what("bytes of sectors asked for / bytes touched"), again);
        if c.wavefronts > 0.0 {
            table.line(2, &what("shared wavefronts / ideal"), c.shared_ratio(), AtMost(1.005));
        }
    }
}

/// Images of a batch, as noising and loss get them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clean {
    /// f32, uploaded.
    Given,
    /// Bytes on the device.
    Picked,
    /// The same, mirrored left to right.
    Mirrored,
}

/// Images of the measured batch.
const BATCH: usize = 8;
/// Elements of an image.
const LEN: usize = SIDE * SIDE * 3;

/// Noising and loss, forward and backward; in bf16 with x_t and prediction in bf16.
fn ends(gpu: &Gpu, clean: Clean, precision: Precision) -> Launched {
    let half = precision == Precision::Bf16;
    let mut plan = Plan::new();
    let shape = [BATCH, SIDE, SIDE, 3];
    let rows = plan.input("rows", &[BATCH, coefficient::COLUMNS], DType::F32);
    let keys = plan.input("keys", &[BATCH, 4], DType::U32);
    let uploaded = plan.activation("prediction", &shape, DType::F32, Role::State);
    let prediction = if half { plan.cast(uploaded, DType::BF16) } else { uploaded };
    let mut picked = None;
    let (x_t, loss) = match clean {
        Clean::Given => {
            let x0 = plan.input("x_0", &shape, DType::F32);
            let x_t = plan.noising(x0, rows, keys).expect("fits");
            (x_t, plan.loss(prediction, x0, rows, Some(keys), 1.0).expect("fits"))
        }
        _ => {
            let set = plan.input("images", &shape, DType::U8);
            let picks = plan.input("picks", &[BATCH, pick::COLUMNS], DType::U32);
            let images = Picked { set, picks, levels: 256 };
            picked = Some(images);
            let (x_t, _) = plan.noising_picked(images, rows, keys, false).expect("fits");
            (x_t, plan.loss_picked(prediction, images, rows, keys, 1.0).expect("fits"))
        }
    };
    plan.keep(loss);
    plan.derive(&[(loss, None)], Wrt::Tensors(vec![prediction])).expect("derives");
    let gradient = plan.gradient(prediction).expect("derived");
    for result in [x_t, gradient] {
        if half {
            plan.tensors[result.index()].role = Role::Transient;
            let kept = plan.cast(result, DType::F32);
            plan.keep(kept);
        } else {
            plan.keep(result);
        }
    }
    measure(gpu, precision, plan, |engine, loaded| {
        // The target is a mixture, so that the loss reads the images as well.
        let row = [0.6, 0.8, 0.5, -0.5, 1.0, 0.0, 0.0, 0.0];
        engine.set(loaded, rows, &row.repeat(BATCH)).expect("uploads");
        engine.set_u32(loaded, keys, &[7; 4 * BATCH]).expect("uploads");
        if let Some(images) = picked {
            let picks: Vec<u32> =
                (0..BATCH as u32).flat_map(|i| [i, u32::from(clean == Clean::Mirrored)]).collect();
            engine.set_u32(loaded, images.picks, &picks).expect("uploads");
            engine.set_u8(loaded, images.set, &vec![100; BATCH * LEN]).expect("uploads");
        }
    })
}

/// Item 11, and items 1 and 2 of noising and loss.
pub fn noising(table: &mut Table, gpu: &Gpu) {
    table.note("8 images of 32x32x3; a step of 128 is sixteen times as many blocks");
    table.note("MODEL of an A100: 1555 GB/s; 108 x 4 warp instructions at 1.41 GHz, all of PTX");
    let elements = (BATCH * LEN) as f64;
    for (clean, precision) in [
        (Clean::Given, Precision::F32),
        (Clean::Picked, Precision::F32),
        (Clean::Mirrored, Precision::F32),
        (Clean::Given, Precision::Bf16),
        (Clean::Picked, Precision::Bf16),
        (Clean::Mirrored, Precision::Bf16),
    ] {
        let mut launched = ends(gpu, clean, precision);
        launched.kernels.retain(|name, _| name.starts_with("noising") || name.starts_with("loss"));
        let (read, written) = match (clean, precision) {
            (Clean::Given, _) => (4.0, if precision == Precision::Bf16 { 2.0 } else { 4.0 }),
            (_, Precision::Bf16) => (1.0, 2.0),
            _ => (1.0, 4.0),
        };
        let name = format!("{clean:?}, {precision}");
        passes(table, &name, &launched);
        let c = launched.of("noising");
        let bytes = c.unique() / elements;
        let what = format!("noising, {name}: bytes an element");
        // f32 images into f32 need 8, whoever moves them; no plan that trains in bf16 does.
        if (clean, precision) == (Clean::Given, Precision::F32) {
            table.value(11, &what, bytes);
        } else {
            // The coefficients, keys and picks of an image come on top: 56 bytes.
            table.line(11, &what, bytes, AtMost(6.02));
        }
        let what = format!("noising, {name}: bytes an element / what x_0 and x_t are");
        table.line(11, &what, bytes / (read + written), Within(1.0, 0.02));
        let slots = 32.0 * c.instructions / elements;
        let what = format!("noising, {name}: PTX instructions an element, its normal among them");
        table.value(11, &what, slots);
        let issue = slots / (32.0 * 108.0 * 4.0 * 1.41e9);
        let what = format!("noising, {name}: MODEL, time to issue / time of its bytes");
        table.value(11, &what, issue / (bytes / 1555e9));
        let c = launched.of("loss_forward");
        let what = format!("loss forward, {name}: bytes an element");
        table.value(11, &what, c.unique() / elements);
        let c = launched.of("loss_backward");
        let what = format!("loss backward, {name}: bytes an element");
        table.value(11, &what, c.unique() / elements);
    }
}
