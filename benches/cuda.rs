//! Single CUDA kernels at the sizes of ddpm-cifar10 and DiT-B/4: bytes/s, flop/s and the share
//! of the device's limits, by events around replayed graphs.
//!
//! ```text
//! cargo bench --bench cuda                 # all, on the system's driver
//! cargo bench --bench cuda -- conv         # cases whose name contains a word
//! tests/softgpu/with cargo bench --bench cuda -- silu
//! ```
//!
//! On the software GPU nothing is timed: it prints what it counted. Limits come from the
//! device's attributes, by the formulas that stand above the table.
#![allow(unsafe_code)] // Loads a library.

#[cfg(not(langevin_cuda))]
fn main() {
    println!("SKIPPED: {}", langevin::backend::cuda::built().unwrap_err());
}

#[cfg(langevin_cuda)]
fn main() {
    bench::main();
}

#[cfg(langevin_cuda)]
mod bench {
    use std::sync::Arc;

    use cudarc::driver::sys;
    use langevin::backend::cuda::{Cuda, Device};
    use langevin::backend::{Engine, Loaded, Precision, WeightSet};
    use langevin::ops::conv2d::{ConvOptions, Padding};
    use langevin::ops::norm::{Domain, NormOperands};
    use langevin::ops::optimizer::AdamW;
    use langevin::ops::pointwise::Activation;
    use langevin::plan::{DType, Plan, Role, TensorId, Wrt};

    /// One plan of a few ops over inputs of these shapes.
    struct Case {
        name: String,
        shapes: Vec<Vec<usize>>,
        precision: Precision,
        backward: bool,
        build: fn(&mut Plan, &[TensorId]) -> langevin::Result<TensorId>,
    }

    /// Replays inside a measurement, and measurements of which the least counts.
    const REPLAYS: usize = 20;
    const REPEATS: usize = 7;

    /// What a device can do at most.
    struct Limits {
        bytes: f64,
        f32_flops: f64,
        bf16_flops: f64,
    }

    impl Limits {
        /// Of `PEAK` multiply-adds a cycle and multiprocessor, dense, with sums in f32, by compute
        /// capability: f32 units, bf16 tensor cores (tf32 has half of it).
        const PEAK: [((i32, i32), f64, f64); 6] = [
            ((8, 0), 64.0, 1024.0),
            ((8, 6), 128.0, 256.0),
            ((8, 9), 128.0, 256.0),
            ((9, 0), 128.0, 2048.0),
            ((10, 0), 128.0, 4096.0),
            ((12, 0), 128.0, 256.0),
        ];

        fn of(device: &Device) -> Option<Limits> {
            use sys::CUdevice_attribute_enum as attribute;
            let context = device.stream().context();
            let ask = |a| context.attribute(a).ok().map(f64::from);
            let clock = 1e3 * ask(attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)?;
            let memory_clock = 1e3 * ask(attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?;
            let bus = ask(attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)? / 8.0;
            let count = ask(attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
            let (_, units, tensor) = Self::PEAK
                .iter()
                .rev()
                .find(|(capability, ..)| *capability <= device.capability())?;
            let limits = Limits {
                bytes: 2.0 * memory_clock * bus,
                f32_flops: 2.0 * units * count * clock,
                bf16_flops: 2.0 * tensor * count * clock,
            };
            println!(
                "limits: {:.0} GB/s = 2 x {:.0} MHz x {bus} B; {:.1} TFLOP/s f32 = 2 x {units} x \
                 {count} SMs x {:.0} MHz; {:.1} TFLOP/s bf16 = 2 x {tensor} x the same; tf32 half",
                limits.bytes / 1e9,
                memory_clock / 1e6,
                limits.f32_flops / 1e12,
                clock / 1e6,
                limits.bf16_flops / 1e12,
            );
            Some(limits)
        }

        fn flops(&self, precision: Precision) -> f64 {
            match precision {
                Precision::F32 => self.f32_flops,
                Precision::Tf32 => self.bf16_flops / 2.0,
                Precision::Bf16 => self.bf16_flops,
            }
        }
    }

    fn cases(counting: bool) -> Vec<Case> {
        // What is only counted needs no more than a few blocks of each kind.
        let n = if counting { 1 } else { 128 };
        let mut all = Vec::new();
        let mut case = |name: &str, shapes: &[&[usize]], precision, backward, build| {
            let shapes: Vec<Vec<usize>> = shapes.iter().map(|s| s.to_vec()).collect();
            let pass = if backward { " + gradients" } else { "" };
            let name = format!("{name}{pass}, batch {n}, {precision}");
            all.push(Case { name, shapes, precision, backward, build });
        };
        let f32 = Precision::F32;
        let x: &[usize] = &[n, 32, 32, 128];
        case("silu 32x32x128", &[x], f32, false, |p, t| Ok(p.activate(t[0], Activation::Silu)));
        case("add 32x32x128", &[x, x], f32, false, |p, t| p.add(t[0], t[1], 0.5));
        case("concat 32x32x(128 + 128)", &[x, x], f32, false, |p, t| p.concat(t[0], t[1]));
        for backward in [false, true] {
            case("group norm, silu 32x32x128", &[x, &[128], &[128]], f32, backward, |p, t| {
                let operands = NormOperands {
                    gamma: Some(t[1]),
                    beta: Some(t[2]),
                    activation: Some(Activation::Silu),
                    ..NormOperands::default()
                };
                p.norm(t[0], Domain::Group(32), 1e-6, operands)
            });
            case("layer norm 64x768 (DiT-B/4)", &[&[n, 64, 768]], f32, backward, |p, t| {
                p.norm(t[0], Domain::Layer, 1e-6, NormOperands::default())
            });
        }
        for precision in [Precision::F32, Precision::Tf32, Precision::Bf16] {
            let sizes: [(usize, usize, usize); 5] =
                [(32, 128, 128), (32, 3, 128), (16, 256, 256), (8, 256, 256), (4, 256, 256)];
            for (side, from, to) in sizes {
                let shapes: [&[usize]; 2] = [&[n, side, side, from], &[to, 3, 3, from]];
                let name = format!("conv 3x3 {from}->{to} at {side}x{side}");
                for backward in [false, true] {
                    case(&name, &shapes, precision, backward, |p, t| {
                        let padding = Padding::same(1);
                        let options = ConvOptions { padding, ..ConvOptions::default() };
                        p.conv2d(t[0], t[1], None, options)
                    });
                }
            }
            let tokens: [&[usize]; 2] = [&[n, 64, 768], &[3072, 768]];
            case("linear 768->3072 of 64 tokens (DiT-B/4)", &tokens, precision, true, |p, t| {
                p.linear(t[0], t[1], None)
            });
            for backward in [false, true] {
                let q: &[usize] = &[n, 256, 256];
                case("attention, 256 tokens, head 256", &[q; 3], precision, backward, |p, t| {
                    p.attention(t[0], t[1], t[2], 1, 0.0625)
                });
                let q: &[usize] = &[n, 64, 768];
                let name = "attention, 64 tokens, 12 heads of 64 (DiT-B/4)";
                case(name, &[q; 3], precision, backward, |p, t| {
                    p.attention(t[0], t[1], t[2], 12, 0.125)
                });
            }
        }
        all
    }

    /// Counters of the software GPU, all kernels together: warp instructions, those of tensor
    /// cores, bytes asked of global memory.
    fn counted() -> [f64; 3] {
        use libloading::os::unix::{Library, RTLD_NOW};
        // SAFETY: the driver is loaded already; it exports this function with this type, and
        // the buffer has the size it asked for.
        let text = unsafe {
            let library = Library::open(Some("libcuda.so"), RTLD_NOW).expect("the driver");
            let report = library.get::<extern "C" fn(*mut u8, usize) -> usize>(b"softgpu_report\0");
            let report = report.expect("softgpu_report");
            let mut buffer = vec![0; report(std::ptr::null_mut(), 0) + 1];
            report(buffer.as_mut_ptr(), buffer.len());
            buffer.pop();
            buffer
        };
        let report: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        let mut sum = [0.0; 3];
        for k in report["kernels"].as_object().expect("kernels").values() {
            let number = |v: &serde_json::Value| v.as_f64().expect("a number");
            let instructions = number(&k["warp_instructions"]);
            sum[0] += instructions;
            sum[1] += instructions * number(&k["mma_share"]);
            sum[2] += number(&k["global_load"]["bytes"]) + number(&k["global_store"]["bytes"]);
        }
        sum
    }

    /// Milliseconds of one replay, the least of some.
    fn milliseconds(device: &Device, engine: &mut Engine, loaded: &Loaded) -> f64 {
        let timed = Some(sys::CUevent_flags_enum::CU_EVENT_DEFAULT);
        let stream = device.stream();
        let mut least = f64::INFINITY;
        for _ in 0..REPEATS {
            let start = stream.record_event(timed).expect("an event");
            for _ in 0..REPLAYS {
                engine.run(loaded).expect("runs");
            }
            let end = stream.record_event(timed).expect("an event");
            let elapsed = start.elapsed_ms(&end).expect("the events' distance");
            least = least.min(f64::from(elapsed) / REPLAYS as f64);
        }
        least
    }

    pub fn main() {
        let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
        let device = match Device::open(0) {
            Ok(device) => device,
            Err(error) => {
                println!("SKIPPED: {error}");
                return;
            }
        };
        let (major, minor) = device.capability();
        println!(
            "{}, compute capability {major}.{minor}, driver {}",
            device.name(),
            device.driver_version()
        );
        let counting = device.name().contains("softgpu");
        let limits = if counting {
            println!("the software GPU: counters, no times");
            None
        } else {
            Limits::of(&device)
        };
        for case in cases(counting) {
            if words.is_empty() || words.iter().any(|w| case.name.contains(w.as_str())) {
                run(&device, &case, limits.as_ref(), counting);
            }
        }
        if words.is_empty() || words.iter().any(|w| "adamw".contains(w.as_str())) {
            adamw(&device, limits.as_ref(), counting);
        }
    }

    fn engine(device: &Device, precision: Precision, len: usize) -> (Engine, Arc<Device>) {
        let backend = Cuda::sharing(device).expect("a backend").with_precision(precision);
        let own = backend.device().clone();
        (Engine::new(Box::new(backend), len, len > 1).expect("memory"), own)
    }

    fn run(device: &Device, case: &Case, limits: Option<&Limits>, counting: bool) {
        let (mut engine, own) = engine(device, case.precision, 1);
        let mut plan = Plan::new();
        let state = |plan: &mut Plan, name: String, shape: &[usize]| {
            plan.activation(name, shape, DType::F32, Role::State)
        };
        let inputs: Vec<TensorId> = case
            .shapes
            .iter()
            .enumerate()
            .map(|(i, shape)| state(&mut plan, format!("input_{i}"), shape))
            .collect();
        let built = (case.build)(&mut plan, &inputs).and_then(|y| {
            plan.keep(y);
            let mut moved = vec![y];
            if case.backward {
                let shape = plan.shape(y).to_vec();
                let d_y = state(&mut plan, "d_y".into(), &shape);
                plan.derive(&[(y, Some(d_y))], Wrt::Tensors(inputs.clone()))?;
                moved.push(d_y);
                moved.extend(inputs.iter().filter_map(|&t| plan.gradient(t)));
            }
            moved.extend(&inputs);
            let bytes: usize = moved.iter().map(|&t| plan.tensor(t).bytes()).sum();
            let flops = plan.flops();
            Ok((bytes as f64, flops as f64, engine.lower(plan)?))
        });
        let (bytes, flops, program) = match built {
            Ok(built) => built,
            Err(error) => {
                println!("{:<64} SKIPPED: {error}", case.name);
                return;
            }
        };
        let loaded = engine.load(program, WeightSet::Raw).expect("memory");
        engine.refresh(&loaded).expect("runs");
        report(
            &case.name,
            case.precision,
            &own,
            &mut engine,
            &loaded,
            [bytes, flops],
            limits,
            counting,
        );
    }

    /// Times or counts one program and prints its line.
    #[allow(clippy::too_many_arguments)] // What a line says.
    fn report(
        name: &str,
        precision: Precision,
        device: &Device,
        engine: &mut Engine,
        loaded: &Loaded,
        [bytes, flops]: [f64; 2],
        limits: Option<&Limits>,
        counting: bool,
    ) {
        let before = if counting { counted() } else { [0.0; 3] };
        engine.run(loaded).expect("runs");
        device.synchronize().expect("runs to its end");
        if counting {
            let after = counted();
            let [instructions, mma, asked] = [0, 1, 2].map(|i| after[i] - before[i]);
            println!(
                "{name:<64} {instructions:>12.0} warp instructions, {mma:>9.0} mma, {:.2} bytes \
                 asked for / moved",
                asked / bytes
            );
            return;
        }
        // The first run launched kernel by kernel; this one is captured, the next are replays.
        engine.run(loaded).expect("runs");
        let ms = milliseconds(device, engine, loaded);
        let (bytes_s, flops_s) = (bytes / ms * 1e3, flops / ms * 1e3);
        let share = limits.map_or_else(String::new, |l| {
            let memory = bytes_s / l.bytes * 100.0;
            let arithmetic = flops_s / l.flops(precision) * 100.0;
            format!(", {memory:.0} % of the memory's, {arithmetic:.0} % of the arithmetic limit")
        });
        println!(
            "{name:<64} {ms:>8.4} ms {:>8.1} GB/s {:>8.2} TFLOP/s{share}",
            bytes_s / 1e9,
            flops_s / 1e12
        );
    }

    /// The optimizer over the parameters of ddpm-cifar10, or a part of them.
    fn adamw(device: &Device, limits: Option<&Limits>, counting: bool) {
        let len = if counting { 1 << 18 } else { 35_746_307 };
        let (mut engine, own) = engine(device, Precision::F32, len);
        let mut plan = Plan::new();
        let ranges = vec![(0, len)];
        let norm = plan.global_norm(ranges.clone(), len);
        let (beta1, beta2, eps, weight_decay) = (0.9, 0.999, 1e-8, 0.01);
        let clip = Some(1.0);
        plan.adamw(AdamW { ranges, beta1, beta2, eps, weight_decay, clip }, norm, len);
        let program = engine.lower(plan).expect("kernels");
        let loaded = engine.load(program, WeightSet::Raw).expect("memory");
        let name = format!("gradient norm, adamw and average of {len} parameters");
        // The norm reads the gradients once more.
        let bytes = 40.0 * len as f64;
        let f32 = Precision::F32;
        report(&name, f32, &own, &mut engine, &loaded, [bytes, 0.0], limits, counting);
    }
}
