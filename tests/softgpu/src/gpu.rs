//! A device without the driver's ABI: memory, modules, launches.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::chip::{self, Chip};
use crate::exec::counters::LaunchStats;
use crate::exec::{Dims, Executor, Launch};
use crate::finding::Finding;
use crate::isa::{LoadedVar, Program, link};
use crate::memory::DeviceMemory;
use crate::ptx::ast::{Init, Module as Ast, Space, Var};
use crate::ptx::{PtxError, parse};
use crate::settings::Settings;

const WORKSPACE_BYTES: u64 = 16;

/// A loaded module.
#[derive(Debug, Clone)]
pub struct Module {
    programs: BTreeMap<String, Arc<Program>>,
    vars: HashMap<String, LoadedVar>,
}

impl Module {
    /// A kernel by name.
    pub fn kernel(&self, name: &str) -> Option<Arc<Program>> {
        self.programs.get(name).cloned()
    }

    /// Kernel names.
    pub fn kernels(&self) -> impl Iterator<Item = &str> {
        self.programs.keys().map(String::as_str)
    }

    /// A module-level variable.
    pub fn global(&self, name: &str) -> Option<LoadedVar> {
        self.vars.get(name).copied()
    }
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Program({}, {} instructions)", self.name, self.code.len())
    }
}

/// A device.
pub struct Gpu {
    /// Global memory.
    pub memory: DeviceMemory,
    /// How it behaves.
    pub settings: Settings,
    /// What it claims to be.
    pub chip: Chip,
    /// Count unique bytes on every launch.
    pub count_unique: bool,
    executor: Executor,
    /// Where the barrier of cooperative launches lies, made for the first of them.
    workspace: Option<u64>,
    stats: BTreeMap<String, LaunchStats>,
    findings: Vec<Finding>,
}

impl Gpu {
    /// A device with these settings; an error when the host refuses the address space.
    pub fn new(settings: Settings) -> Result<Gpu, String> {
        let memory = DeviceMemory::new(settings.memory)
            .ok_or_else(|| format!("cannot reserve address space for {} bytes", settings.memory))?;
        Ok(Gpu {
            memory,
            chip: Chip::new(settings.compute),
            count_unique: settings.report.is_some(),
            settings,
            executor: Executor::default(),
            workspace: None,
            stats: BTreeMap::new(),
            findings: Vec::new(),
        })
    }

    /// Parses and decodes PTX and places its variables.
    pub fn load(&mut self, text: &str) -> Result<Module, PtxError> {
        let ast = parse(text)?;
        let (major, minor) = self.chip.compute;
        if ast.target > major * 10 + minor {
            let message = format!("module is for sm_{}, the device is {major}.{minor}", ast.target);
            return Err(PtxError::new(0, message, ".target"));
        }
        let vars = self.place_variables(&ast)?;
        match link(&ast, text, &vars) {
            Ok(programs) => Ok(Module {
                programs: programs.into_iter().map(|p| (p.name.clone(), Arc::new(p))).collect(),
                vars,
            }),
            Err(error) => {
                self.release(&vars);
                Err(error)
            }
        }
    }

    /// Frees a module's variables.
    pub fn unload(&mut self, module: &Module) {
        self.release(&module.vars);
    }

    fn release(&mut self, vars: &HashMap<String, LoadedVar>) {
        for var in vars.values() {
            // The address came from alloc and is freed once.
            let _ = self.memory.free(var.address);
        }
    }

    fn place_variables(&mut self, ast: &Ast<'_>) -> Result<HashMap<String, LoadedVar>, PtxError> {
        let mut vars = HashMap::new();
        let placed = |v: &&Var<'_>| matches!(v.space, Space::Global | Space::Const);
        for var in ast.vars.iter().filter(placed) {
            if var.is_extern {
                self.release(&vars);
                return Err(PtxError::new(
                    var.line,
                    "extern variable without a definition",
                    var.name,
                ));
            }
            let bytes = var.bytes.max(1);
            let Ok(address) = self.memory.alloc(bytes) else {
                self.release(&vars);
                return Err(PtxError::new(var.line, "no memory for the variable", var.name));
            };
            if vars.insert(var.name.to_string(), LoadedVar { address, bytes: var.bytes }).is_some()
            {
                self.release(&vars);
                return Err(PtxError::new(var.line, "variable defined twice", var.name));
            }
        }
        for var in ast.vars.iter().filter(placed) {
            let image = match self.image(var, &vars) {
                Ok(image) => image,
                Err(error) => {
                    self.release(&vars);
                    return Err(error);
                }
            };
            self.memory.write(vars[var.name].address, &image);
        }
        Ok(vars)
    }

    fn image(&self, var: &Var<'_>, vars: &HashMap<String, LoadedVar>) -> Result<Vec<u8>, PtxError> {
        let len = usize::try_from(var.bytes.max(1)).unwrap_or(0);
        let mut image = vec![0u8; len];
        let element = var.ty.bytes() as usize;
        for (k, init) in var.init.iter().enumerate() {
            let value = match init {
                Init::Int(v) => *v as u64,
                Init::F32(bits) => u64::from(*bits),
                Init::F64(bits) => *bits,
                Init::Address(name, offset) => {
                    let target = vars.get(*name).ok_or_else(|| {
                        PtxError::new(var.line, "unknown name in initialiser", *name)
                    })?;
                    target.address.wrapping_add(*offset as u64)
                }
            };
            let at = k * element;
            let n = element.min(8);
            if let Some(to) = image.get_mut(at..at + n) {
                to.copy_from_slice(&value.to_le_bytes()[..n]);
            }
        }
        Ok(image)
    }

    /// Why a launch of this shape is refused, if it is.
    pub fn refuse(&self, program: &Program, dims: &Dims, max_dynamic: u32) -> Option<String> {
        let Dims { grid, block, dynamic_shared } = *dims;
        for k in 0..3 {
            let axis = ["x", "y", "z"][k];
            if grid[k] == 0 || grid[k] > chip::MAX_GRID[k] {
                return Some(format!(
                    "grid.{axis} is {}, the limit {}",
                    grid[k],
                    chip::MAX_GRID[k]
                ));
            }
            if block[k] == 0 || block[k] > chip::MAX_BLOCK[k] {
                return Some(format!(
                    "block.{axis} is {}, the limit {}",
                    block[k],
                    chip::MAX_BLOCK[k]
                ));
            }
        }
        let threads = u64::from(block[0]) * u64::from(block[1]) * u64::from(block[2]);
        if threads > u64::from(chip::MAX_THREADS) {
            return Some(format!(
                "a block of {threads} threads, the limit is {}",
                chip::MAX_THREADS
            ));
        }
        if let Some((bound, exact)) = program.max_threads {
            let most = u64::from(bound[0]) * u64::from(bound[1]) * u64::from(bound[2]);
            if threads > most || (exact && bound != block) {
                return Some(format!(
                    "a block of {block:?}, the kernel was compiled for {bound:?}"
                ));
            }
        }
        let shared = u64::from(dynamic_shared) + u64::from(program.shared_bytes);
        let optin = u64::from(self.chip.shared_per_block_optin);
        if dynamic_shared > max_dynamic || shared > optin {
            return Some(format!(
                "{dynamic_shared} bytes of dynamic and {} of static shared memory; dynamic may be {max_dynamic} until raised, both together {optin}",
                program.shared_bytes
            ));
        }
        None
    }

    /// Dynamic shared memory a kernel may have before the attribute is raised.
    pub fn default_dynamic(program: &Program) -> u32 {
        chip::SHARED_PER_BLOCK.saturating_sub(program.shared_bytes)
    }

    /// Runs a kernel to its end or to the first finding, which is also kept.
    pub fn launch(
        &mut self,
        program: &Program,
        dims: Dims,
        params: &[u8],
        cooperative: bool,
    ) -> Result<LaunchStats, Box<Finding>> {
        let workspace = if cooperative { self.workspace() } else { 0 };
        let unique_bytes = self.count_unique;
        let launch = Launch { program, params, dims, cooperative, workspace, unique_bytes };
        match self.executor.run(&launch, &mut self.memory, &self.settings) {
            Ok(stats) => {
                match self.stats.get_mut(&program.name) {
                    Some(sum) => sum.merge(&stats),
                    None => {
                        self.stats.insert(program.name.clone(), stats.clone());
                    }
                }
                Ok(stats)
            }
            Err(finding) => {
                self.report(*finding.clone());
                Err(finding)
            }
        }
    }

    /// The workspace a cooperative launch finds through %envreg1 and %envreg2: its size, then the
    /// counter of the grid's barrier (cooperative_groups/details/driver_abi.h). 0 without memory,
    /// which a kernel takes for a launch that was not cooperative.
    fn workspace(&mut self) -> u64 {
        if self.workspace.is_none() {
            self.workspace = self.memory.alloc(WORKSPACE_BYTES).ok();
        }
        let Some(address) = self.workspace else { return 0 };
        let mut image = [0; WORKSPACE_BYTES as usize];
        image[..4].copy_from_slice(&(WORKSPACE_BYTES as u32).to_le_bytes());
        self.memory.write(address, &image);
        address
    }

    /// Keeps a finding and says it on stderr.
    pub fn report(&mut self, finding: Finding) {
        eprintln!("softgpu: {finding}");
        self.findings.push(finding);
    }

    /// Findings so far.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Sums by kernel.
    pub fn stats(&self) -> &BTreeMap<String, LaunchStats> {
        &self.stats
    }

    /// The report as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "device": self.chip.name(),
            "seed": self.settings.seed,
            "peak_bytes": self.memory.peak(),
            "findings": self.findings,
            "kernels": self.stats,
        })
    }
}
