//! What the tests share: the CUDA compiler, its cached output, a small host side.
#![allow(unsafe_code)] // Plain data seen as bytes.
#![allow(dead_code)] // Each test binary uses its part.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use softgpu::exec::Dims;
use softgpu::exec::counters::LaunchStats;
use softgpu::finding::Finding;
use softgpu::gpu::{Gpu, Module};
use softgpu::settings::Settings;

/// The crate's folder.
pub fn here() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Where compiled kernels are kept between runs.
fn cache() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| here().join("../../target"), PathBuf::from);
    target.join("softgpu-kernels")
}

/// The path of nvcc; none, said aloud, where there is no toolchain. With LANGEVIN_REQUIRE_CUDA=1
/// its absence is a failure.
pub fn nvcc() -> Option<PathBuf> {
    let required = std::env::var("LANGEVIN_REQUIRE_CUDA").is_ok_and(|v| v == "1");
    let out = Command::new(here().join("toolchain")).arg("--find").output();
    if let Ok(out) = &out
        && out.status.success()
    {
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let path = text.split_whitespace().find_map(|w| w.strip_prefix("NVCC="));
        return Some(PathBuf::from(path.expect("the toolchain script prints NVCC")));
    }
    assert!(!required, "LANGEVIN_REQUIRE_CUDA=1, but tests/softgpu/toolchain finds no nvcc");
    println!("SKIPPED: no nvcc here; tests/softgpu/toolchain installs it");
    eprintln!("SKIPPED: no nvcc here; tests/softgpu/toolchain installs it");
    None
}

/// How kernels are compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Build {
    /// 80 or 90.
    pub arch: u32,
    /// -G: no optimisation, everything in local memory.
    pub debug: bool,
}

/// Every way the corpus is compiled.
pub const BUILDS: [Build; 4] = [
    Build { arch: 80, debug: false },
    Build { arch: 90, debug: false },
    Build { arch: 80, debug: true },
    Build { arch: 90, debug: true },
];

/// All .cu files of a folder of kernels/ as one translation unit, compiled to PTX.
pub fn compile(folder: &str, build: Build) -> Option<String> {
    compile_with(folder, build, &[])
}

/// As [`compile`], with more flags for nvcc.
pub fn compile_with(folder: &str, build: Build, flags: &[&str]) -> Option<String> {
    let nvcc = nvcc()?;
    let folder = here().join("kernels").join(folder);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .expect("kernel folder")
        .map(|e| e.expect("entry").path())
        .filter(|p| p.extension().is_some_and(|e| e == "cu" || e == "cuh"))
        .collect();
    files.sort();
    let mut hasher = DefaultHasher::new();
    build.hash(&mut hasher);
    flags.hash(&mut hasher);
    let mut unit = String::new();
    for file in &files {
        std::fs::read(file).expect("kernel source").hash(&mut hasher);
        if file.extension().is_some_and(|e| e == "cu") {
            unit.push_str(&format!("#include \"{}\"\n", file.display()));
        }
    }
    Some(compile_unit(&nvcc, &unit, build, flags, hasher.finish()))
}

fn compile_unit(nvcc: &Path, unit: &str, build: Build, flags: &[&str], key: u64) -> String {
    // One compilation at a time: the tests of a binary ask for the same unit at once.
    static COMPILING: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one = COMPILING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let cache = cache();
    std::fs::create_dir_all(&cache).expect("cache folder");
    let ptx = cache.join(format!("{key:016x}.ptx"));
    if let Ok(text) = std::fs::read_to_string(&ptx) {
        return text;
    }
    let source = cache.join(format!("{key:016x}.{}.cu", std::process::id()));
    let partial = cache.join(format!("{key:016x}.{}.partial", std::process::id()));
    std::fs::write(&source, unit).expect("unit");
    let mut command = Command::new(nvcc);
    command.arg("-ptx").arg("-std=c++17").arg(format!("-arch=compute_{}", build.arch));
    command.args(if build.debug { &["-G"][..] } else { &["-O3", "-lineinfo"][..] });
    command.args(flags);
    let out = command.arg("-o").arg(&partial).arg(&source).output().expect("nvcc runs");
    assert!(out.status.success(), "nvcc: {}", String::from_utf8_lossy(&out.stderr));
    std::fs::rename(&partial, &ptx).expect("cache");
    std::fs::remove_file(&source).expect("unit");
    std::fs::read_to_string(&ptx).expect("ptx")
}

/// Kernel arguments as bytes, aligned as nvcc aligns them.
#[derive(Default, Clone)]
pub struct Args(Vec<u8>);

impl Args {
    /// No arguments yet.
    pub fn new() -> Args {
        Args::default()
    }

    fn push(mut self, bytes: &[u8]) -> Args {
        let at = self.0.len().next_multiple_of(bytes.len());
        self.0.resize(at, 0);
        self.0.extend_from_slice(bytes);
        self
    }

    /// A device address.
    pub fn ptr(self, address: u64) -> Args {
        self.push(&address.to_le_bytes())
    }

    /// An int or unsigned.
    pub fn int(self, v: i32) -> Args {
        self.push(&v.to_le_bytes())
    }

    /// A float.
    pub fn float(self, v: f32) -> Args {
        self.push(&v.to_le_bytes())
    }

    /// A 64-bit integer.
    pub fn long(self, v: i64) -> Args {
        self.push(&v.to_le_bytes())
    }
}

/// A device with one module loaded.
pub struct Host {
    pub gpu: Gpu,
    pub module: Module,
    /// The kernels were compiled with optimisation: access patterns mean something.
    pub optimised: bool,
}

impl Host {
    /// Loads PTX on a fresh device.
    pub fn new(ptx: &str, settings: Settings) -> Host {
        let mut gpu = Gpu::new(settings).expect("device");
        let module = gpu.load(ptx).unwrap_or_else(|e| panic!("{e}"));
        Host { gpu, module, optimised: !ptx.contains(", debug") }
    }

    /// Uninitialised memory for `n` elements.
    pub fn alloc<T>(&mut self, n: usize) -> u64 {
        self.gpu.memory.alloc((n * size_of::<T>()) as u64).expect("allocation")
    }

    /// Copies a slice to the device.
    pub fn upload<T: Copy>(&mut self, data: &[T]) -> u64 {
        let address = self.alloc::<T>(data.len());
        assert!(self.gpu.memory.write(address, bytes_of(data)));
        address
    }

    /// Copies back.
    pub fn download<T: Copy + Default>(&self, address: u64, n: usize) -> Vec<T> {
        let mut raw = vec![0u8; n * size_of::<T>()];
        assert!(self.gpu.memory.read(address, &mut raw));
        raw.chunks_exact(size_of::<T>())
            // SAFETY: T is plain data and the chunk has its size.
            .map(|c| unsafe { c.as_ptr().cast::<T>().read_unaligned() })
            .collect()
    }

    /// Launches and returns counters or the finding.
    pub fn try_launch(
        &mut self,
        kernel: &str,
        grid: u32,
        block: u32,
        shared: u32,
        args: &Args,
    ) -> Result<LaunchStats, Box<Finding>> {
        self.try_launch3(kernel, [grid, 1, 1], [block, 1, 1], shared, args)
    }

    /// As try_launch, in three dimensions.
    pub fn try_launch3(
        &mut self,
        kernel: &str,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        args: &Args,
    ) -> Result<LaunchStats, Box<Finding>> {
        let dims = Dims { grid, block, dynamic_shared: shared };
        self.try_launch_dims(kernel, dims, args, false)
    }

    /// One-dimensional, all blocks at once where `cooperative`.
    pub fn try_launch_as(
        &mut self,
        kernel: &str,
        grid: u32,
        block: u32,
        args: &Args,
        cooperative: bool,
    ) -> Result<LaunchStats, Box<Finding>> {
        let dims = Dims { grid: [grid, 1, 1], block: [block, 1, 1], dynamic_shared: 0 };
        self.try_launch_dims(kernel, dims, args, cooperative)
    }

    fn try_launch_dims(
        &mut self,
        kernel: &str,
        dims: Dims,
        args: &Args,
        cooperative: bool,
    ) -> Result<LaunchStats, Box<Finding>> {
        let program = self.module.kernel(kernel).unwrap_or_else(|| panic!("no kernel {kernel}"));
        assert_eq!(self.gpu.refuse(&program, &dims, 200 << 10), None, "{kernel}");
        let mut params = args.0.clone();
        assert!(params.len() <= program.param_bytes as usize, "{kernel}: arguments");
        params.resize(program.param_bytes as usize, 0);
        self.gpu.launch(&program, dims, &params, cooperative)
    }

    /// Launches what must succeed.
    pub fn launch(
        &mut self,
        kernel: &str,
        grid: u32,
        block: u32,
        shared: u32,
        args: &Args,
    ) -> LaunchStats {
        self.try_launch(kernel, grid, block, shared, args).unwrap_or_else(|f| panic!("{f}"))
    }
}

/// A slice's bytes.
pub fn bytes_of<T: Copy>(data: &[T]) -> &[u8] {
    // SAFETY: plain data seen as bytes.
    unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), size_of_val(data)) }
}

/// A small deterministic generator for inputs.
pub struct Rng(pub u64);

impl Rng {
    /// The next 64 bits (splitmix64).
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [-1, 1).
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// Many of them.
    pub fn units(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.unit()).collect()
    }
}
