//! Builds the CUDA kernels in, where nvcc and libclang are found.
//!
//! - `kernels/*.cu` become PTX for compute_80, which every card from there on can
//!   run, and that PTX becomes machine code for the architectures that
//!   `LANGEVIN_CUDA_ARCHS` names (`80,86,90`): what a card runs is what was tested as
//!   PTX. In parallel, and only what has changed.
//! - `kernels/params.h` becomes Rust structs (bindgen).
//! - `ENTRY(name, Params, threads)` lines become a typed table of entries; that it
//!   says what the PTX says is checked here, and that the structs have the size
//!   of the parameters when the crate is compiled.
//!
//! Without the tools the build succeeds with a warning and `--device cuda` says
//! why it is not available; `LANGEVIN_REQUIRE_CUDA=1` makes that an error.

#![allow(unsafe_code)] // bindgen takes the place of libclang from the environment.

use std::collections::{BTreeSet, hash_map::DefaultHasher};
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

type Outcome<T> = Result<T, String>;

/// What the PTX is compiled for: the oldest architecture with bf16 tensor cores
/// and asynchronous copies.
const OLDEST_ARCH: u32 = 80;

/// From this version on nvcc packs machine code into a tenth of its bytes.
const PACKS_FROM: i32 = 12080;

/// No contraction: the product's random numbers and its CPU agreement rest on
/// each operation being rounded by itself. Kernels write `fmaf` where they want it.
const FLAGS: [&str; 4] = ["-std=c++17", "-O3", "--fmad=false", "-lineinfo"];

/// Options of machine code, packed.
const CODE_FLAGS: [&str; 3] = ["-fatbin", "--compress-mode=size", "--fmad=false"];

fn main() {
    println!("cargo:rustc-check-cfg=cfg(langevin_cuda)");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=kernels");
    for name in [
        "NVCC",
        "CUDA_HOME",
        "CUDA_PATH",
        "CUDA_TOOLCHAIN_DIR",
        "LIBCLANG_PATH",
        "LANGEVIN_REQUIRE_CUDA",
        "LANGEVIN_CUDA_ARCHS",
    ] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    match build() {
        Ok(()) => println!("cargo:rustc-cfg=langevin_cuda"),
        Err(reason) => {
            let required = env::var("LANGEVIN_REQUIRE_CUDA").is_ok_and(|v| v == "1");
            assert!(!required, "LANGEVIN_REQUIRE_CUDA=1, but the kernels are not built: {reason}");
            println!("cargo:warning=built without CUDA kernels: {reason}");
            println!("cargo:rustc-env=LANGEVIN_CUDA_MISSING={}", reason.replace('\n', "; "));
        }
    }
}

fn build() -> Outcome<()> {
    let out = PathBuf::from(env::var("OUT_DIR").map_err(|e| e.to_string())?);
    let home = PathBuf::from(env::var("CARGO_MANIFEST_DIR").map_err(|e| e.to_string())?);
    let toolchain = Toolchain::find(&home)?;
    let kernels = home.join("kernels");
    let sources = files(&kernels, "cu")?;
    let mut headers = files(&kernels, "h")?;
    headers.extend(files(&kernels, "cuh")?);
    bind(&kernels.join("params.h"), &out.join("params.rs"), &toolchain.libclang)?;

    let archs = archs(&env::var("LANGEVIN_CUDA_ARCHS").unwrap_or_default())?;
    let ptx = in_parallel(&sources, |source| toolchain.ptx(source, &headers, &out))?;
    let jobs: Vec<(&Path, &Arch)> =
        ptx.iter().flat_map(|ptx| archs.iter().map(move |arch| (ptx.as_path(), arch))).collect();
    let code = in_parallel(&jobs, |(ptx, arch)| toolchain.machine_code(ptx, arch, &out))?;
    remove_others(&out, &ptx)?;

    let mut table = String::new();
    let mut entries = String::new();
    for (module, (source, ptx)) in sources.iter().zip(&ptx).enumerate() {
        let text = fs::read_to_string(ptx).map_err(|e| e.to_string())?;
        declare_entries(source, module, &text, &mut entries)?;
        let of_source = &code[module * archs.len()..][..archs.len()];
        let name = stem(source);
        write!(table, "    Image {{ name: {name:?}, ptx: include_str!({ptx:?}), cubins: &[")
            .and_then(|()| {
                of_source.iter().zip(&archs).try_for_each(|(path, arch)| {
                    write!(table, "({}, include_bytes!({path:?})), ", arch.number)
                })
            })
            .and_then(|()| writeln!(table, "] }},"))
            .map_err(|e| e.to_string())?;
    }
    let text = format!(
        "/// The compiled kernels, one image a file of kernels/.\n\
         pub static IMAGES: [Image; {}] = [\n{table}];\n\
         /// CUDA version of the compiler, as the driver counts: 13000.\n\
         pub const COMPILER_VERSION: i32 = {};\n\
         {entries}",
        sources.len(),
        toolchain.version
    );
    write_if_changed(&out.join("entries.rs"), &text)
}

/// Turns the `ENTRY` lines of a source into constants, after comparing them with
/// the PTX.
fn declare_entries(source: &Path, module: usize, ptx: &str, text: &mut String) -> Outcome<()> {
    let file = source.display();
    let code = fs::read_to_string(source).map_err(|e| format!("{file}: {e}"))?;
    let mut declared = Vec::new();
    for line in code.lines() {
        let Some(rest) = line.strip_prefix("ENTRY(") else { continue };
        let end = rest.find(')').ok_or_else(|| format!("{file}: `{line}` has no `)`"))?;
        let fields: Vec<&str> = rest[..end].split(',').map(str::trim).collect();
        let [name, params, threads, ..] = fields[..] else {
            return Err(format!("{file}: `{line}`: expected ENTRY(name, Params, threads)"));
        };
        let marker = format!(".param .align 8 .b8 {name}_param_0[");
        let at = ptx.find(&marker).ok_or_else(|| {
            format!("{file}: {name} is not in the PTX with one 8-aligned struct of params.h")
        })?;
        let size: String =
            ptx[at + marker.len()..].chars().take_while(char::is_ascii_digit).collect();
        let bounds = format!(".entry {name}(");
        let body = &ptx[ptx.find(&bounds).ok_or_else(|| format!("{file}: no entry {name}"))?..];
        let bound = body[..body.find('{').unwrap_or(body.len())]
            .split_once(".maxntid")
            .map(|(_, b)| b.chars().skip_while(|c| !c.is_ascii_digit()))
            .map(|b| b.take_while(char::is_ascii_digit).collect::<String>());
        let threads = bound.ok_or_else(|| format!("{file}: {name} has no bound ({threads})"))?;
        declared.push(name.to_string());
        writeln!(
            text,
            "/// `{name}` of `kernels/{}.cu`.\n\
             pub static {}: Entry<params::{params}> = Entry::new({name:?}, {module}, {threads});\n\
             const _: () = assert!(size_of::<params::{params}>() == {size});",
            stem(source),
            name.to_uppercase(),
        )
        .map_err(|e| e.to_string())?;
    }
    for line in ptx.lines() {
        if let Some(at) = line.find(".entry ") {
            let name = line[at + 7..].trim_end_matches('(').trim();
            if !declared.iter().any(|d| d == name) {
                return Err(format!("{file}: {name} is not declared by an ENTRY line"));
            }
        }
    }
    Ok(())
}

/// An architecture that machine code is made for.
struct Arch {
    /// As nvcc writes it: `90`, `90a`.
    name: String,
    /// Ten times the major version of the compute capability, and the minor one.
    number: u32,
}

/// The architectures of a list like `80,86,90`.
fn archs(list: &str) -> Outcome<Vec<Arch>> {
    let arch = |name: &str| {
        let number = name.trim_end_matches(|c: char| c.is_ascii_lowercase()).parse();
        match number {
            Ok(number) if number >= OLDEST_ARCH => Ok(Arch { name: name.to_string(), number }),
            _ => Err(format!(
                "LANGEVIN_CUDA_ARCHS={list}: `{name}` is not an architecture from {OLDEST_ARCH} on"
            )),
        }
    };
    let names: BTreeSet<_> = list.split(',').map(str::trim).filter(|n| !n.is_empty()).collect();
    names.into_iter().map(arch).collect()
}

struct Toolchain {
    nvcc: PathBuf,
    libclang: PathBuf,
    /// 13000 for 13.0.
    version: i32,
}

impl Toolchain {
    fn find(home: &Path) -> Outcome<Self> {
        let installed = env::var_os("CUDA_TOOLCHAIN_DIR")
            .map_or_else(|| home.join("target/cuda-toolchain"), PathBuf::from);
        let mut candidates: Vec<PathBuf> =
            env::var_os("NVCC").map(PathBuf::from).into_iter().collect();
        for name in ["CUDA_HOME", "CUDA_PATH"] {
            candidates.extend(env::var_os(name).map(|v| PathBuf::from(v).join("bin/nvcc")));
        }
        if let Some(path) = env::var_os("PATH") {
            candidates.extend(env::split_paths(&path).map(|p| p.join("nvcc")));
        }
        candidates.push("/usr/local/cuda/bin/nvcc".into());
        candidates.push(installed.join("nvidia/cu13/bin/nvcc"));
        let nvcc = candidates.into_iter().find(|p| p.is_file()).ok_or(
            "no nvcc found (NVCC, CUDA_HOME, PATH, /usr/local/cuda); \
             tests/softgpu/toolchain installs one under target/",
        )?;
        let mut folders: Vec<PathBuf> =
            env::var_os("LIBCLANG_PATH").map(PathBuf::from).into_iter().collect();
        folders.push(installed.join("clang/native"));
        let mut llvm: Vec<PathBuf> = fs::read_dir("/usr/lib")
            .map(|d| d.flatten().map(|e| e.path()).collect())
            .unwrap_or_default();
        llvm.retain(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("llvm-")));
        llvm.sort();
        folders.extend(llvm.into_iter().rev().map(|p| p.join("lib")));
        for folder in ["/usr/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/local/lib"] {
            folders.push(folder.into());
        }
        let libclang = folders.into_iter().find(|f| has_libclang(f)).ok_or(
            "no libclang found (LIBCLANG_PATH, /usr/lib/llvm-*/lib); \
             tests/softgpu/toolchain installs one under target/",
        )?;
        let said = Command::new(&nvcc).arg("--version").output();
        let said = said.map_err(|e| format!("{} does not run: {e}", nvcc.display()))?;
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let release = said.split_once("release ").map_or("", |(_, r)| r);
        let mut numbers = release.split([',', '.']).map(|n| n.trim().parse::<i32>());
        let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
            return Err(format!("{} does not say its version: {said}", nvcc.display()));
        };
        if major < 12 {
            return Err(format!("{} is CUDA {major}.{minor}; 12.0 is needed", nvcc.display()));
        }
        Ok(Toolchain { nvcc, libclang, version: major * 1000 + minor * 10 })
    }

    /// The PTX of one source.
    fn ptx(&self, source: &Path, headers: &[PathBuf], out: &Path) -> Outcome<PathBuf> {
        let mut hasher = DefaultHasher::new();
        for file in headers.iter().map(PathBuf::as_path).chain([source]) {
            fs::read(file).map_err(|e| format!("{}: {e}", file.display()))?.hash(&mut hasher);
        }
        (self.version, FLAGS, OLDEST_ARCH, CODE_FLAGS, PACKS_FROM).hash(&mut hasher);
        let result = out.join(format!("{}-{:016x}.ptx", stem(source), hasher.finish()));
        let arch = format!("-arch=compute_{OLDEST_ARCH}");
        self.compile(source, &result, &[&["-ptx", &arch][..], &FLAGS].concat())
    }

    /// The machine code that PTX becomes on one architecture: a fat binary that holds
    /// it packed, or a plain cubin.
    fn machine_code(&self, ptx: &Path, arch: &Arch, out: &Path) -> Outcome<PathBuf> {
        let result = out.join(format!("{}.sm_{}", stem(ptx), arch.name));
        let code = format!("-gencode=arch=compute_{OLDEST_ARCH},code=sm_{}", arch.name);
        let form = match self.version >= PACKS_FROM {
            true => &CODE_FLAGS[..],
            false => &["-cubin", CODE_FLAGS[2]],
        };
        self.compile(ptx, &result, &[form, &[&code]].concat())
    }

    /// Runs nvcc, unless the file is there: its name tells what it was made of.
    fn compile(&self, source: &Path, result: &Path, arguments: &[&str]) -> Outcome<PathBuf> {
        if result.exists() {
            return Ok(result.to_path_buf());
        }
        let mut partial = result.as_os_str().to_owned();
        partial.push(".partial");
        let said = Command::new(&self.nvcc)
            .args(arguments)
            .arg("-o")
            .arg(&partial)
            .arg(source)
            .output()
            .map_err(|e| format!("{} does not run: {e}", self.nvcc.display()))?;
        if !said.status.success() {
            let text = String::from_utf8_lossy(&said.stderr);
            return Err(format!("nvcc refuses {}:\n{text}", source.display()));
        }
        fs::rename(&partial, result).map_err(|e| e.to_string())?;
        Ok(result.to_path_buf())
    }
}

/// Removes what earlier texts of the sources were compiled to.
fn remove_others(out: &Path, ptx: &[PathBuf]) -> Outcome<()> {
    let listing = fs::read_dir(out).map_err(|e| format!("{}: {e}", out.display()))?;
    for path in listing.flatten().map(|f| f.path()) {
        let extension = path.extension().map(|e| e.to_string_lossy().into_owned());
        let is_code = extension.is_some_and(|e| e == "ptx" || e.starts_with("sm_"));
        if is_code && ptx.iter().all(|ptx| ptx.file_stem() != path.file_stem()) {
            fs::remove_file(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        }
    }
    Ok(())
}

fn has_libclang(folder: &Path) -> bool {
    let Ok(files) = fs::read_dir(folder) else { return false };
    files.flatten().any(|f| f.file_name().to_string_lossy().starts_with("libclang.so"))
}

fn bind(header: &Path, out: &Path, libclang: &Path) -> Outcome<()> {
    // SAFETY: no other thread runs yet.
    unsafe { env::set_var("LIBCLANG_PATH", libclang) };
    let header = header.to_string_lossy().into_owned();
    let bindings = std::panic::catch_unwind(|| {
        bindgen::Builder::default()
            .header(&header)
            .clang_args(["-x", "c", "-fparse-all-comments"])
            .layout_tests(true)
            .derive_default(true)
            .merge_extern_blocks(false)
            .formatter(bindgen::Formatter::None)
            .generate()
    });
    let bindings =
        bindings.map_err(|_| format!("libclang of {} does not load", libclang.display()))?;
    write_if_changed(out, &bindings.map_err(|e| format!("params.h: {e}"))?.to_string())
}

/// The files of a folder with that extension, by name.
fn files(folder: &Path, extension: &str) -> Outcome<Vec<PathBuf>> {
    let listing = fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut files: Vec<PathBuf> = listing.flatten().map(|f| f.path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == extension));
    files.sort();
    Ok(files)
}

fn stem(source: &Path) -> String {
    source.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default()
}

fn write_if_changed(path: &Path, text: &str) -> Outcome<()> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}

/// Maps jobs on as many threads as cargo allows; results in order.
fn in_parallel<J: Sync, R: Send>(
    jobs: &[J],
    work: impl Fn(&J) -> Outcome<R> + Sync,
) -> Outcome<Vec<R>> {
    let threads = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1usize);
    let next = AtomicUsize::new(0);
    let done = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, jobs.len().max(1)) {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(job) = jobs.get(i) else { return };
                    let result = work(job);
                    done.lock().unwrap_or_else(|e| e.into_inner()).push((i, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(|e| e.into_inner());
    done.sort_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, result)| result).collect()
}
