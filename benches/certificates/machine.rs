//! What ptxas makes of the PTX: registers, spills, shared memory, and the SASS of main loops.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};

use langevin::backend::cuda::entries::{IMAGES, Image};

/// Architectures that everything must compile for.
pub const ARCHS: [&str; 6] = ["80", "86", "89", "90", "100", "120"];

/// What one kernel takes of a multiprocessor, as ptxas says.
#[derive(Clone, Debug)]
pub struct Resources {
    /// Its name.
    pub name: String,
    /// 32-bit registers a thread.
    pub registers: u32,
    /// Bytes of spill stores and loads.
    pub spill_bytes: u32,
    /// Bytes of local memory a thread.
    pub stack_bytes: u32,
    /// Bytes of shared memory whose size is in the code.
    pub static_shared_bytes: u32,
}

/// An image's machine code for one architecture.
pub struct Compiled {
    /// Of every kernel.
    pub resources: Vec<Resources>,
    cubin: PathBuf,
    /// Where the cubin lies, until the end.
    _folder: Arc<tempfile::TempDir>,
}

/// A tool that tests/softgpu/toolchain finds.
fn tool(variable: &str) -> Option<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/softgpu/toolchain");
    let said = Command::new(script).arg("--find").output().ok()?;
    let said = String::from_utf8(said.stdout).ok()?;
    let value = said.split_whitespace().find_map(|w| w.strip_prefix(variable)?.strip_prefix('='));
    value.map(PathBuf::from)
}

/// ptxas and cuobjdump.
fn tools() -> Option<&'static (PathBuf, PathBuf)> {
    static TOOLS: OnceLock<Option<(PathBuf, PathBuf)>> = OnceLock::new();
    TOOLS.get_or_init(|| Some((tool("PTXAS")?, tool("CUOBJDUMP")?))).as_ref()
}

/// Why there is no machine code to look at, if there is none.
pub fn missing() -> Option<&'static str> {
    match tools() {
        None => Some("no ptxas and cuobjdump; tests/softgpu/toolchain installs them"),
        Some(_) => None,
    }
}

/// The image of that name (`conv2d` for `kernels/conv2d.cu`).
pub fn image(name: &str) -> &'static Image {
    IMAGES.iter().find(|i| i.name == name).unwrap_or_else(|| panic!("no image {name}"))
}

/// Compiles an image for an architecture (`80`), once; ask [`missing`] before.
pub fn compile(image: &Image, arch: &str) -> Arc<Compiled> {
    type Cache = Mutex<HashMap<(String, String), Arc<Compiled>>>;
    static CACHE: OnceLock<Cache> = OnceLock::new();
    static FOLDER: OnceLock<Arc<tempfile::TempDir>> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| Arc::new(tempfile::tempdir().expect("a folder")));
    let mut cache = CACHE.get_or_init(Cache::default).lock().expect("one thread");
    let key = (image.name.to_string(), arch.to_string());
    if let Some(compiled) = cache.get(&key) {
        return compiled.clone();
    }
    let (ptxas, _) = tools().expect("asked for before");
    let ptx = folder.path().join(image.name).with_extension("ptx");
    std::fs::write(&ptx, image.ptx).expect("PTX");
    let cubin = folder.path().join(format!("{}.{arch}.cubin", image.name));
    let said = Command::new(ptxas)
        .args(["-v", &format!("-arch=sm_{arch}"), "-o"])
        .args([&cubin, &ptx])
        .output()
        .expect("ptxas runs");
    let text = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.status.success(), "{text}");
    let resources = resources(&text);
    let compiled = Arc::new(Compiled { resources, cubin, _folder: folder.clone() });
    cache.insert(key, compiled.clone());
    compiled
}

/// What `ptxas -v` says of each entry function.
fn resources(said: &str) -> Vec<Resources> {
    let number = |line: &str, unit: &str| {
        line.split(", ").find_map(|f| {
            let f = f.trim().trim_start_matches("ptxas info    : Used ");
            f.strip_suffix(unit)?.trim().parse::<u32>().ok()
        })
    };
    let mut found: Vec<Resources> = Vec::new();
    for line in said.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            found.push(Resources {
                name: rest.split('\'').next().unwrap_or_default().to_string(),
                registers: 0,
                spill_bytes: 0,
                stack_bytes: 0,
                static_shared_bytes: 0,
            });
        }
        let Some(last) = found.last_mut() else { continue };
        if line.contains("bytes stack frame") {
            last.stack_bytes = number(line, " bytes stack frame").unwrap_or(0);
            last.spill_bytes = number(line, " bytes spill stores").unwrap_or(0)
                + number(line, " bytes spill loads").unwrap_or(0);
        }
        if line.contains(" registers") {
            last.registers = number(line, " registers").expect("ptxas says the registers");
            last.static_shared_bytes = number(line, " bytes smem").unwrap_or(0);
        }
    }
    found
}

/// Instructions of a loop: address and text.
pub struct Loop(Vec<(u64, String)>);

impl Loop {
    /// SASS instructions.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// How many have that word (`HMMA`, `LDSM`) as opcode or modifier.
    pub fn count(&self, word: &str) -> usize {
        count(&self.0, word)
    }
}

fn count(body: &[(u64, String)], word: &str) -> usize {
    body.iter().filter(|(_, text)| text.split([' ', '.']).any(|w| w == word)).count()
}

impl Compiled {
    /// For each kernel the shortest loop of those that contain no loop with HMMA and have at
    /// least half as many HMMA as any: what most blocks run, where some add up a bias
    /// beside it. Kernels without a loop are left out.
    pub fn main_loops(&self) -> Vec<(String, Loop)> {
        let (_, cuobjdump) = tools().expect("asked for before");
        let said = Command::new(cuobjdump).arg("-sass").arg(&self.cubin).output();
        let sass = String::from_utf8_lossy(&said.expect("cuobjdump runs").stdout).into_owned();
        sass.split("Function : ").skip(1).filter_map(main_loop).collect()
    }
}

fn main_loop(function: &str) -> Option<(String, Loop)> {
    let name = function.lines().next()?.trim().to_string();
    let code: Vec<(u64, String)> = function.lines().filter_map(instruction).collect();
    let target = |text: &str| u64::from_str_radix(text.rsplit_once("0x")?.1.trim(), 16).ok();
    let loops: Vec<&[(u64, String)]> = code
        .iter()
        .enumerate()
        .filter(|(_, (_, text))| text.contains("BRA"))
        .filter_map(|(end, (at, text))| {
            let start = target(text).filter(|to| to < at)?;
            let first = code.iter().position(|(a, _)| *a == start)?;
            Some(&code[first..=end])
        })
        .collect();
    let inside = |a: &[(u64, String)], b: &[(u64, String)]| {
        a.len() < b.len() && b[0].0 <= a[0].0 && a[a.len() - 1].0 <= b[b.len() - 1].0
    };
    let innermost = |body: &&&[(u64, String)]| {
        !loops.iter().any(|other| inside(other, body) && count(other, "HMMA") > 0)
    };
    let innermost: Vec<_> = loops.iter().filter(innermost).collect();
    let most = innermost.iter().map(|body| count(body, "HMMA")).max()?;
    let main = innermost.iter().filter(|body| 2 * count(body, "HMMA") >= most);
    let body = main.min_by_key(|body| body.len())?;
    Some((name, Loop(body.to_vec())))
}

fn instruction(line: &str) -> Option<(u64, String)> {
    let (address, text) = line.trim().strip_prefix("/*")?.split_once("*/")?;
    let address = u64::from_str_radix(address, 16).ok().filter(|_| address.len() >= 4)?;
    Some((address, text.trim().split(';').next()?.to_string()))
}
