//! Which of the promises about the CUDA kernels hold, from counters of the software GPU,
//! ptxas and SASS: no time is measured, and none is printed.
//!
//!     cargo bench --bench certificates
//!
//! Convolution: the layers of ddpm-cifar10 in bf16. Counters come from slices (one image,
//! by the tile that the layer is given at a batch of 128); how the blocks of a batch of 128 fill
//! a chip is counted without running it. The table's targets are numbered as in the
//! issue: 1 sectors and 128-bit share, 2 shared memory, 3 spills, 4 the main loop, 6 bytes
//! requested and touched, 7 intensity, 8 useful share of the blocks' multiply-adds.
#![allow(unsafe_code)] // Loads a library.

#[cfg(not(langevin_cuda))]
fn main() {
    println!("SKIPPED: {}", langevin::backend::cuda::built().unwrap_err());
}

#[cfg(langevin_cuda)]
fn main() {
    certificates::main();
}

#[cfg(langevin_cuda)]
mod certificates {
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use langevin::backend::cuda::conv2d::{Arithmetic, Convolution, Epilogue, Source};
    use langevin::backend::cuda::entries::IMAGES;
    use langevin::backend::cuda::{Device, Memory};
    use langevin::ops::conv2d::{Conv2d, ConvOptions, Padding};
    use langevin::plan::Mode;
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    use serde_json::Value;

    /// Architectures that everything must compile for.
    const ARCHS: [&str; 6] = ["80", "86", "89", "90", "100", "120"];
    const PASSES: [&str; 3] = ["forward", "backward_data", "backward_weight"];

    pub fn main() {
        counters();
        machine_code();
    }

    /// One line of the table.
    fn line(item: u32, what: &str, value: f64, target: &str, holds: bool) {
        let holds = match (target, holds) {
            ("", _) => "",
            (_, true) => "holds",
            (_, false) => "DOES NOT HOLD",
        };
        println!("{item:>2}  {what:<64} {value:>9.3}  {target:<8} {holds}");
    }

    /// The stand-in driver beside this program.
    fn driver() -> Library {
        let exe = std::env::current_exe().expect("path of the bench");
        let library = exe.parent().expect("its folder").join("libsoftgpu.so");
        // Unique bytes are counted where a report is asked for.
        let report = std::env::temp_dir().join(format!("certificates-{}.json", std::process::id()));
        // SAFETY: no other thread runs yet; the library's initialisers do nothing.
        unsafe {
            std::env::set_var("SOFTGPU_REPORT", report);
            Library::open(Some(library), RTLD_NOW | RTLD_GLOBAL).expect("the software GPU")
        }
    }

    /// All counters so far, summed over kernels whose name starts so.
    #[derive(Clone, Copy, Default)]
    struct Counts {
        load_bytes: f64,
        load_sectors: f64,
        wide_bytes: f64,
        wavefronts: f64,
        ideal: f64,
        unique: f64,
        instructions: f64,
        mma: f64,
    }

    fn counts(driver: &Library, prefix: &str) -> Counts {
        // SAFETY: the library exports it with this type, and the buffer has that size.
        let text = unsafe {
            let report = driver.get::<extern "C" fn(*mut u8, usize) -> usize>(b"softgpu_report\0");
            let report = report.expect("softgpu_report");
            let mut buffer = vec![0; report(std::ptr::null_mut(), 0) + 1];
            report(buffer.as_mut_ptr(), buffer.len());
            buffer.pop();
            String::from_utf8(buffer).expect("JSON")
        };
        let report: Value = serde_json::from_str(&text).expect("JSON");
        let mut sum = Counts::default();
        for (_, k) in report["kernels"]
            .as_object()
            .expect("kernels")
            .iter()
            .filter(|k| k.0.starts_with(prefix))
        {
            let number = |v: &Value| v.as_f64().expect("a number");
            let (load, shared) = (&k["global_load"], &k["shared"]);
            let (bytes, wavefronts) = (number(&load["bytes"]), number(&shared["wavefronts"]));
            sum.load_bytes += bytes;
            sum.load_sectors += number(&load["sectors"]);
            sum.wide_bytes += bytes * number(&load["share_128_bit"]);
            sum.wavefronts += wavefronts;
            sum.ideal += wavefronts / number(&shared["conflict_ratio"]).max(1e-9);
            sum.unique += number(&k["unique_bytes_read"]);
            sum.instructions += number(&k["warp_instructions"]);
            sum.mma += number(&k["mma_share"]) * number(&k["warp_instructions"]);
        }
        sum
    }

    impl Counts {
        fn since(self, b: Counts) -> Counts {
            Counts {
                load_bytes: self.load_bytes - b.load_bytes,
                load_sectors: self.load_sectors - b.load_sectors,
                wide_bytes: self.wide_bytes - b.wide_bytes,
                wavefronts: self.wavefronts - b.wavefronts,
                ideal: self.ideal - b.ideal,
                unique: self.unique - b.unique,
                instructions: self.instructions - b.instructions,
                mma: self.mma - b.mma,
            }
        }
    }

    /// Side of the image, channels in and out, kernel, stride; how many a network has.
    const LAYERS: [([usize; 5], usize); 12] = [
        ([32, 3, 128, 3, 1], 1),
        ([32, 128, 128, 3, 1], 6),
        ([32, 256, 128, 3, 1], 3),
        ([32, 128, 128, 3, 2], 1),
        ([16, 128, 256, 3, 1], 1),
        ([16, 256, 256, 3, 1], 8),
        ([16, 512, 256, 3, 1], 2),
        ([8, 256, 256, 3, 1], 8),
        ([8, 512, 256, 3, 1], 3),
        ([4, 256, 256, 3, 1], 11),
        ([4, 512, 256, 3, 1], 3),
        ([32, 128, 3, 3, 1], 1),
    ];

    fn layer(n: usize, [side, c_in, c_out, kernel, stride]: [usize; 5]) -> Conv2d {
        let padding = match stride {
            1 => Padding::same(kernel / 2),
            _ => Padding { bottom: 1, right: 1, ..Padding::default() },
        };
        let options = ConvOptions { stride: [stride; 2], padding, ..ConvOptions::default() };
        Conv2d { n, h: side, w: side, c_in, c_out, kernel: [kernel; 2], options }
    }

    fn counters() {
        let driver = driver();
        let device = Device::open(0).expect("the software GPU");
        assert!(device.name().contains("softgpu"), "counters come from the software GPU alone");
        let arithmetic = Arithmetic::Bf16;
        let new = |op| Convolution::new(&device, op, arithmetic, Source::default()).expect("fits");
        let memory =
            |bytes: usize| -> Memory { device.allocate(bytes, "a certificate").expect("memory") };
        let mut useful = [[0.0; 2]; 2];
        for (sizes, count) in LAYERS {
            let [side, c_in, c_out, kernel, stride] = sizes;
            let name = format!("{kernel}x{kernel}/{stride} {c_in}->{c_out} at {side}x{side}");
            let (op, whole) = (layer(1, sizes), layer(128, sizes));
            let tiles = new(whole).tiles();
            let (mut y, x) = (memory(op.y_len() * 2), memory(op.x_len() * 2));
            let (weight, mut d_x) = (memory(op.weight_len() * 2), memory(op.x_len() * 2));
            let (d_y, mut d_weight) = (memory(op.y_len() * 2), memory(op.weight_len() * 4));
            for (i, pass) in PASSES.into_iter().enumerate() {
                let (tile, blocks) = tiles[i];
                let convolution = new(op).with_tile(tile[0], tile[1]);
                let mut scratch = memory(convolution.workspace_bytes()[i]);
                let prefix = format!("conv2d_{pass}_bf16");
                let before = counts(&driver, &prefix);
                let none = Epilogue::default();
                match i {
                    0 => convolution.forward(
                        &mut y,
                        &x,
                        None,
                        &weight,
                        none,
                        &mut scratch,
                        Mode::Write,
                    ),
                    1 => convolution.backward_data(
                        &mut d_x,
                        &d_y,
                        &weight,
                        &mut scratch,
                        Mode::Write,
                    ),
                    _ => {
                        let d_weight = Some((&mut d_weight, Mode::Write));
                        convolution.backward_weight(d_weight, None, &x, None, &d_y, &mut scratch)
                    }
                }
                .expect("launch");
                device.synchronize().expect("no finding");
                let c = counts(&driver, &prefix).since(before);
                let what = |text: &str| format!("{pass} {name}: {text}");
                let ratio = c.load_bytes / (32.0 * c.load_sectors);
                line(1, &what("bytes / (32 x sectors) of loads"), ratio, ">= 0.95", ratio >= 0.95);
                let wide = c.wide_bytes / c.load_bytes;
                line(1, &what("share of loads by 128 bits"), wide, ">= 0.95", wide >= 0.95);
                let shared = c.wavefronts / c.ideal;
                line(2, &what("shared wavefronts / ideal"), shared, "1.00", shared < 1.005);
                let (rows, columns, depth) = match i {
                    0 => (op.y_len() / c_out, c_out, kernel * kernel * c_in),
                    1 => (op.x_len() / c_in, c_in, kernel * kernel * c_out / (stride * stride)),
                    _ => (c_out, kernel * kernel * c_in, op.y_len() / c_out),
                };
                let model = 2
                    * depth
                    * (rows * columns.div_ceil(tile[1]) + columns * rows.div_ceil(tile[0]));
                let requested = c.load_bytes / model as f64;
                line(
                    6,
                    &what("bytes requested / tile model"),
                    requested,
                    "<= 1.05",
                    requested <= 1.05,
                );
                let minimal = match i {
                    0 => op.x_len() + op.weight_len(),
                    1 => op.y_len() + op.weight_len(),
                    _ => op.x_len() + op.y_len(),
                } * 2;
                let unique = c.unique / minimal as f64;
                line(6, &what("unique bytes / minimal"), unique, "<= 1.00", unique <= 1.0);
                let intensity = op.flops() as f64 / c.load_bytes;
                line(7, &what("FLOP a byte asked of L2"), intensity, ">= 60", intensity >= 60.0);
                line(4, &what("mma / PTX instructions"), c.mma / c.instructions, "", true);
                for (s, multiprocessors) in [108, 132].into_iter().enumerate() {
                    let waves = blocks.div_ceil(multiprocessors) * multiprocessors;
                    let rows = if i == 2 { rows } else { whole.n * rows };
                    // Each lane of a split reduction is a block.
                    let lanes =
                        blocks as f64 / (rows.div_ceil(tile[0]) * columns.div_ceil(tile[1])) as f64;
                    let filled =
                        (rows * columns) as f64 * lanes / (tile[0] * tile[1] * waves) as f64;
                    let flops = count as f64 * whole.flops() as f64;
                    useful[s][0] += flops;
                    useful[s][1] += flops / filled;
                    let text = format!(
                        "B = 128 useful share on {multiprocessors} SMs, tile {}x{}",
                        tile[0], tile[1]
                    );
                    line(8, &what(&text), filled, ">= 0.80", filled >= 0.80);
                }
            }
        }
        for (s, multiprocessors) in [108, 132].into_iter().enumerate() {
            let share = useful[s][0] / useful[s][1];
            let text = format!("all convolutions of a step: useful share on {multiprocessors} SMs");
            line(8, &text, share, ">= 0.80", share >= 0.80);
        }
    }

    /// A tool that tests/softgpu/toolchain finds.
    fn tool(variable: &str) -> Option<PathBuf> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/softgpu/toolchain");
        let said = Command::new(script).arg("--find").output().ok()?;
        let said = String::from_utf8(said.stdout).ok()?;
        let value =
            said.split_whitespace().find_map(|w| w.strip_prefix(variable)?.strip_prefix('='));
        value.map(PathBuf::from)
    }

    fn machine_code() {
        let (Some(ptxas), Some(cuobjdump)) = (tool("PTXAS"), tool("CUOBJDUMP")) else {
            println!("SKIPPED: no ptxas and cuobjdump; tests/softgpu/toolchain installs them");
            return;
        };
        let folder = tempfile::tempdir().expect("a folder");
        for image in IMAGES.iter().filter(|i| i.name.starts_with("conv2d")) {
            let ptx = folder.path().join(image.name).with_extension("ptx");
            std::fs::write(&ptx, image.ptx).expect("PTX");
            for arch in ARCHS {
                let cubin = folder.path().join(format!("{}.{arch}.cubin", image.name));
                let said = Command::new(&ptxas)
                    .args(["-v", &format!("-arch=sm_{arch}"), "-o"])
                    .args([&cubin, &ptx])
                    .output()
                    .expect("ptxas runs");
                assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
                let said = String::from_utf8_lossy(&said.stderr).into_owned();
                let spilled: f64 = said
                    .lines()
                    .filter_map(|l| {
                        l.split(", ").find_map(|f| f.strip_suffix(" bytes spill stores"))
                    })
                    .map(|n| n.trim().parse::<f64>().expect("a number"))
                    .sum();
                let text = format!("{} on sm_{arch}: spilled bytes, all kernels", image.name);
                line(3, &text, spilled, "0", spilled == 0.0);
                if arch == "80" {
                    let sass = Command::new(&cuobjdump).arg("-sass").arg(&cubin).output();
                    loops(&String::from_utf8_lossy(&sass.expect("cuobjdump runs").stdout));
                }
            }
        }
    }

    /// The innermost loop with the most HMMA of each kernel of large bf16 tiles.
    fn loops(sass: &str) {
        for function in sass.split("Function : ").skip(1) {
            let name = function.lines().next().expect("a name").trim();
            if !name.contains("_bf16_128x128") {
                continue;
            }
            let code: Vec<(u64, &str)> = function
                .lines()
                .filter_map(|l| {
                    let (address, text) = l.trim().strip_prefix("/*")?.split_once("*/")?;
                    let text = text.trim().split(';').next()?;
                    Some((
                        u64::from_str_radix(address, 16).ok().filter(|_| address.len() >= 4)?,
                        text,
                    ))
                })
                .collect();
            let target =
                |text: &str| u64::from_str_radix(text.rsplit_once("0x")?.1.trim(), 16).ok();
            let count = |body: &[(u64, &str)], word: &str| {
                body.iter().filter(|(_, t)| t.split([' ', '.']).any(|w| w == word)).count()
            };
            let body = code
                .iter()
                .enumerate()
                .filter(|(_, (_, t))| t.contains("BRA"))
                .filter_map(|(end, (at, t))| {
                    let start = target(t).filter(|to| to < at)?;
                    let first = code.iter().position(|(a, _)| *a == start)?;
                    Some(&code[first..=end])
                })
                .max_by_key(|body| (count(body, "HMMA"), usize::MAX - body.len()));
            let Some(body) = body else { continue };
            let share = count(body, "HMMA") as f64 / body.len() as f64;
            let least = if name.contains("weight") { 0.45 } else { 0.5 };
            line(
                4,
                &format!("{name}: HMMA / SASS of the main loop"),
                share,
                &format!(">= {least}"),
                share >= least,
            );
            let ratio = count(body, "HMMA") as f64 / count(body, "LDSM") as f64;
            line(4, &format!("{name}: HMMA / LDSM"), ratio, ">= 4", ratio >= 4.0);
            let divisions = (count(body, "MUFU") + count(body, "I2F")) as f64;
            line(
                4,
                &format!("{name}: divisions in the main loop"),
                divisions,
                "0",
                divisions == 0.0,
            );
            let barriers = count(body, "BAR") as f64;
            line(
                5,
                &format!("{name}: barriers a tile of the reduction"),
                barriers,
                "<= 1",
                barriers <= 1.0,
            );
        }
    }
}
