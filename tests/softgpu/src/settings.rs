//! Settings from the environment.

use std::path::PathBuf;

/// How tensor-core instructions compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MmaMode {
    /// f32 sums in a fixed order: quick, close to every chip, equal to none.
    Fast,
    /// Bit for bit what an A100 returns.
    A100,
    /// Bit for bit what an H100 returns.
    H100,
}

/// When asynchronous copies and launches happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AsyncMode {
    /// At once.
    Eager,
    /// At the last moment the programming model allows.
    Late,
}

/// The n-th call of a driver function returns this error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Driver function, such as `cuMemAlloc_v2`.
    pub function: String,
    /// 1-based call number.
    pub call: u64,
    /// CUDA error code.
    pub code: u32,
}

/// Everything that can be set.
#[derive(Debug, Clone)]
pub struct Settings {
    /// SOFTGPU_MMA
    pub mma: MmaMode,
    /// SOFTGPU_SEED
    pub seed: u64,
    /// SOFTGPU_ASYNC
    pub asynchrony: AsyncMode,
    /// SOFTGPU_REPORT
    pub report: Option<PathBuf>,
    /// SOFTGPU_CC as major, minor
    pub compute: (u32, u32),
    /// SOFTGPU_DRIVER: the CUDA version that the driver claims to be for, 13000 for 13.0
    pub driver: i32,
    /// SOFTGPU_MEMORY
    pub memory: u64,
    /// SOFTGPU_FAULT
    pub faults: Vec<Fault>,
    /// SOFTGPU_MAX_STEPS: warp instructions a block may execute
    pub max_steps: u64,
    /// SOFTGPU_THREADS: workers; 0 for one a core
    pub threads: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            mma: MmaMode::Fast,
            seed: 0,
            asynchrony: AsyncMode::Late,
            report: None,
            compute: (8, 0),
            driver: 13000,
            memory: 8 << 30,
            faults: Vec::new(),
            max_steps: 2_000_000_000,
            threads: 0,
        }
    }
}

impl Settings {
    /// Reads the environment; a malformed value is an error that names the variable.
    pub fn from_env() -> Result<Settings, String> {
        Self::read(|name| std::env::var(name).ok())
    }

    /// Reads settings through `get`.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Result<Settings, String> {
        let mut s = Settings::default();
        if let Some(v) = get("SOFTGPU_MMA") {
            s.mma = match v.as_str() {
                "fast" => MmaMode::Fast,
                "a100" => MmaMode::A100,
                "h100" => MmaMode::H100,
                _ => return Err(format!("SOFTGPU_MMA={v}: expected fast, a100 or h100")),
            };
        }
        if let Some(v) = get("SOFTGPU_SEED") {
            s.seed = v.parse().map_err(|_| format!("SOFTGPU_SEED={v}: expected a number"))?;
        }
        if let Some(v) = get("SOFTGPU_ASYNC") {
            s.asynchrony = match v.as_str() {
                "eager" => AsyncMode::Eager,
                "late" => AsyncMode::Late,
                _ => return Err(format!("SOFTGPU_ASYNC={v}: expected eager or late")),
            };
        }
        s.report = get("SOFTGPU_REPORT").filter(|v| !v.is_empty()).map(PathBuf::from);
        if let Some(v) = get("SOFTGPU_CC") {
            s.compute = match v.as_str() {
                "7.5" => (7, 5),
                "8.0" => (8, 0),
                "8.6" => (8, 6),
                "8.9" => (8, 9),
                "9.0" => (9, 0),
                "10.0" => (10, 0),
                "12.0" => (12, 0),
                _ => {
                    let all = "7.5, 8.0, 8.6, 8.9, 9.0, 10.0 or 12.0";
                    return Err(format!("SOFTGPU_CC={v}: expected {all}"));
                }
            };
        }
        if let Some(v) = get("SOFTGPU_DRIVER") {
            s.driver = v.parse().map_err(|_| format!("SOFTGPU_DRIVER={v}: expected a number"))?;
        }
        if let Some(v) = get("SOFTGPU_MEMORY") {
            s.memory = v.parse().map_err(|_| format!("SOFTGPU_MEMORY={v}: expected bytes"))?;
        }
        if let Some(v) = get("SOFTGPU_MAX_STEPS") {
            s.max_steps =
                v.parse().map_err(|_| format!("SOFTGPU_MAX_STEPS={v}: expected a number"))?;
        }
        if let Some(v) = get("SOFTGPU_THREADS") {
            s.threads = v.parse().map_err(|_| format!("SOFTGPU_THREADS={v}: expected a number"))?;
        }
        if let Some(v) = get("SOFTGPU_FAULT") {
            for part in v.split(',').filter(|p| !p.is_empty()) {
                s.faults.push(parse_fault(part).ok_or_else(|| {
                    format!(
                        "SOFTGPU_FAULT={part}: expected function:call:code, as cuMemAlloc_v2:3:2"
                    )
                })?);
            }
        }
        Ok(s)
    }
}

fn parse_fault(part: &str) -> Option<Fault> {
    let mut fields = part.split(':');
    let function = fields.next()?.to_string();
    let call = fields.next()?.parse().ok()?;
    let code = fields.next()?.parse().ok()?;
    fields.next().is_none().then_some(Fault { function, call, code })
}
