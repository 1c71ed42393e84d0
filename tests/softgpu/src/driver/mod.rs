//! The libcuda ABI. One lock guards one device; every exported function goes through [`enter`].
#![allow(unsafe_code)] // C functions on raw pointers.

mod capture;
mod context;
pub mod errors;
mod graph_abi;
mod launch;
mod memory_abi;
mod module;
mod queue;
mod stream_abi;

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use capture::{Capture, Node};
use errors::Code;
use queue::{Event, Stream};

use crate::finding::{Finding, FindingKind};
use crate::gpu::{Gpu, Module};
use crate::isa::Program;
use crate::settings::Settings;

/// An opaque handle: the kind in the top byte, so that a stream is not taken for an event.
pub type Handle = u64;

/// Kinds of handles.
#[derive(Clone, Copy)]
#[repr(u64)]
enum Kind {
    Context = 0x11,
    Stream = 0x12,
    Event = 0x13,
    Module = 0x14,
    Function = 0x15,
    Graph = 0x16,
    Exec = 0x17,
    Pool = 0x18,
}

/// A kernel handle.
struct Function {
    program: Arc<Program>,
    module: Handle,
    max_dynamic: u32,
}

/// Device and everything created on it.
pub struct Driver {
    gpu: Gpu,
    next: u64,
    context: Handle,
    context_uses: u32,
    streams: BTreeMap<Handle, Stream>,
    events: HashMap<Handle, Event>,
    modules: HashMap<Handle, Module>,
    functions: HashMap<Handle, Function>,
    graphs: HashMap<Handle, Arc<Vec<Node>>>,
    execs: HashMap<Handle, Arc<Vec<Node>>>,
    captures: HashMap<u64, Capture>,
    pools: HashMap<Handle, HashMap<u32, u64>>,
    pinned: BTreeMap<usize, usize>,
    /// Device allocations made by the program, to tell leaks from module variables.
    owned: BTreeMap<u64, &'static str>,
    limits: HashMap<u32, usize>,
    sticky: Code,
    calls: HashMap<&'static str, u64>,
    /// Nodes of all graphs launched so far, by kind.
    graph_nodes: BTreeMap<&'static str, u64>,
    /// Machine code that was offered and refused: the architecture it is for.
    refused_code: Vec<u32>,
    ticket: u64,
    draws: u64,
}

static DRIVER: Mutex<Option<Driver>> = Mutex::new(None);

thread_local! {
    /// The context current to this thread.
    static CURRENT: Cell<Handle> = const { Cell::new(0) };
    /// Inside a host function, where the driver must not be called.
    static IN_HOST_FUNCTION: Cell<bool> = const { Cell::new(false) };
}

/// The legacy default stream.
pub const LEGACY: Handle = 0;

impl Driver {
    fn new(settings: Settings) -> Result<Driver, String> {
        let gpu = Gpu::new(settings)?;
        let mut driver = Driver {
            gpu,
            next: 1,
            context: 0,
            context_uses: 0,
            streams: BTreeMap::new(),
            events: HashMap::new(),
            modules: HashMap::new(),
            functions: HashMap::new(),
            graphs: HashMap::new(),
            execs: HashMap::new(),
            captures: HashMap::new(),
            pools: HashMap::new(),
            pinned: BTreeMap::new(),
            owned: BTreeMap::new(),
            limits: HashMap::new(),
            sticky: 0,
            calls: HashMap::new(),
            graph_nodes: BTreeMap::new(),
            refused_code: Vec::new(),
            ticket: 0,
            draws: 0,
        };
        driver.streams.insert(LEGACY, Stream::new(true));
        driver.context = driver.handle(Kind::Context);
        Ok(driver)
    }

    fn handle(&mut self, kind: Kind) -> Handle {
        self.next += 1;
        (kind as u64) << 48 | self.next << 4
    }

    /// A pseudo-random number from the seed.
    fn draw(&mut self) -> u64 {
        self.draws += 1;
        let mut z = (self.gpu.settings.seed ^ 0x5851_f42d_4c95_7f2d)
            .wrapping_add(self.draws.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z ^ (z >> 31)
    }

    /// A finding outside any kernel.
    fn host_finding(&mut self, kind: FindingKind, call: &str, detail: String) {
        self.gpu.report(Finding {
            kind,
            kernel: call.to_string(),
            block: [0; 3],
            thread: [0; 3],
            line: 0,
            text: String::new(),
            source: None,
            detail,
        });
    }

    /// The report: the device's, and what the program asked of the driver.
    fn report(&self) -> serde_json::Value {
        let mut report = self.gpu.json();
        let calls: BTreeMap<_, _> = self.calls.iter().collect();
        report["calls"] = serde_json::json!(calls);
        report["graph_nodes"] = serde_json::json!(self.graph_nodes);
        report["refused_code"] = serde_json::json!(self.refused_code);
        report
    }

    /// Writes SOFTGPU_REPORT, `{pid}` in its name replaced.
    fn write_report(&self) {
        let Some(path) = &self.gpu.settings.report else { return };
        let path = path.to_string_lossy().replace("{pid}", &std::process::id().to_string());
        let text = serde_json::to_string_pretty(&self.report()).unwrap_or_default();
        if let Err(error) = std::fs::write(&path, text) {
            eprintln!("softgpu: cannot write {path}: {error}");
        }
    }
}

extern "C" fn at_exit() {
    if let Ok(driver) = DRIVER.lock()
        && let Some(driver) = driver.as_ref()
    {
        driver.write_report();
    }
}

/// Runs the body of a driver function: lock, injected faults, sticky errors, panics.
fn enter(name: &'static str, body: impl FnOnce(&mut Driver) -> Result<(), Code>) -> Code {
    if IN_HOST_FUNCTION.get() {
        return errors::NOT_PERMITTED;
    }
    let run = catch_unwind(AssertUnwindSafe(|| {
        let mut slot = match DRIVER.lock() {
            Ok(slot) => slot,
            Err(poisoned) => poisoned.into_inner(),
        };
        let Some(driver) = slot.as_mut() else { return errors::NOT_INITIALIZED };
        let calls = driver.calls.entry(name).or_insert(0);
        *calls += 1;
        let calls = *calls;
        let fault =
            driver.gpu.settings.faults.iter().find(|f| f.function == name && f.call == calls);
        if let Some(fault) = fault {
            eprintln!("softgpu: injected error {} at call {calls} of {name}", fault.code);
            return fault.code;
        }
        if driver.sticky != 0 {
            return driver.sticky;
        }
        match body(driver) {
            Ok(()) => driver.sticky,
            Err(code) => code,
        }
    }));
    run.unwrap_or_else(|_| {
        eprintln!("softgpu: internal panic in {name}");
        errors::UNKNOWN
    })
}

/// Says that a function is not implemented.
fn unsupported(name: &'static str) -> Code {
    eprintln!("softgpu: {name} is not supported");
    enter(name, |_| Err(errors::NOT_SUPPORTED))
}

/// Initialises on the first cuInit.
fn initialise() -> Code {
    let mut slot = match DRIVER.lock() {
        Ok(slot) => slot,
        Err(poisoned) => poisoned.into_inner(),
    };
    if slot.is_some() {
        return 0;
    }
    match Settings::from_env().and_then(Driver::new) {
        Ok(driver) => {
            *slot = Some(driver);
            // SAFETY: at_exit is an extern "C" function without arguments.
            unsafe { libc::atexit(at_exit) };
            0
        }
        Err(message) => {
            eprintln!("softgpu: {message}");
            errors::INVALID_VALUE
        }
    }
}

/// Writes through an out-pointer.
///
/// # Safety
/// `p` is null or valid for writing a T.
unsafe fn give<T>(p: *mut T, value: T) -> Result<(), Code> {
    if p.is_null() {
        return Err(errors::INVALID_VALUE);
    }
    // SAFETY: the caller's promise; ABI out-pointers need not be aligned by Rust's rules.
    unsafe { p.write_unaligned(value) };
    Ok(())
}

/// Copies JSON into a buffer of the caller, NUL-terminated; returns the length without NUL.
unsafe fn give_text(text: &str, buffer: *mut u8, len: usize) -> usize {
    if !buffer.is_null() && len > 0 {
        let n = text.len().min(len - 1);
        // SAFETY: the caller passes a buffer of len bytes.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr(), buffer, n);
            *buffer.add(n) = 0;
        }
    }
    text.len()
}

/// Findings so far as JSON, for tests that load the library.
///
/// # Safety
/// `buffer` is null or has `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softgpu_findings(buffer: *mut u8, len: usize) -> usize {
    let text = match DRIVER.lock() {
        Ok(slot) => slot
            .as_ref()
            .and_then(|d| serde_json::to_string(d.gpu.findings()).ok())
            .unwrap_or_else(|| "[]".to_string()),
        Err(_) => "[]".to_string(),
    };
    // SAFETY: forwarded.
    unsafe { give_text(&text, buffer, len) }
}

/// The whole report as JSON.
///
/// # Safety
/// `buffer` is null or has `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softgpu_report(buffer: *mut u8, len: usize) -> usize {
    let text = match DRIVER.lock() {
        Ok(slot) => slot.as_ref().map(|d| d.report().to_string()).unwrap_or_default(),
        Err(_) => String::new(),
    };
    // SAFETY: forwarded.
    unsafe { give_text(&text, buffer, len) }
}

/// Takes this order of blocks, warps and streams from now on, as SOFTGPU_SEED does from the start;
/// for tests that load the library. Nothing happens before the driver is initialised.
#[unsafe(no_mangle)]
pub extern "C" fn softgpu_set_seed(seed: u64) {
    if let Ok(mut slot) = DRIVER.lock()
        && let Some(driver) = slot.as_mut()
    {
        driver.gpu.settings.seed = seed;
    }
}
