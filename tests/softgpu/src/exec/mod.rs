//! Runs a kernel: blocks over workers in a seeded order, warps of a block interleaved.
#![allow(unsafe_code)] // Warps live in raw register storage.

mod access;
mod addresses;
mod atomics;
mod block;
mod copies;
pub mod counters;
mod global;
mod local;
mod matrix;
mod pattern;
mod printf;
mod shared;
mod state;
mod step;
mod sync;
pub mod tensor;

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering as Atomic};

use block::BlockRun;
use counters::{AccessCount, LaunchStats};
pub use state::Dims;
use state::{Context, Fault, Ordering, Warp};

use crate::finding::{Finding, FindingKind};
use crate::isa::Program;
use crate::memory::{DeviceMemory, SharedMemory, race};
use crate::settings::{AsyncMode, Settings};

/// Local memory for the frames of called functions, a thread.
const CALL_STACK_BYTES: u32 = 16 << 10;

/// A launch ready to run.
pub struct Launch<'a> {
    /// The kernel.
    pub program: &'a Program,
    /// Parameter bytes, laid out as the program says.
    pub params: &'a [u8],
    /// Grid, block, dynamic shared memory.
    pub dims: Dims,
    /// All blocks run at once, so that they can wait for each other.
    pub cooperative: bool,
    /// Address of the workspace of a cooperative launch, or 0.
    pub workspace: u64,
    /// Count unique bytes (a pass over live allocations).
    pub unique_bytes: bool,
}

/// Buffers a worker keeps between launches.
struct Worker {
    shared: SharedMemory,
    local: Vec<u8>,
    local_init: Vec<u8>,
    warps: Vec<Warp>,
}

/// Keeps workers between launches.
#[derive(Default)]
pub struct Executor {
    idle: Mutex<Vec<Worker>>,
}

struct Shared<'a> {
    launch: &'a Launch<'a>,
    settings: &'a Settings,
    memory: &'a DeviceMemory,
    next: AtomicU64,
    stop: AtomicBool,
    fault: Mutex<Option<Fault>>,
    ordering: Ordering,
    epoch: u64,
    blocks: u64,
    multiplier: u64,
    offset: u64,
}

impl Executor {
    /// Runs a launch to its end, or to the first finding.
    pub fn run(
        &self,
        launch: &Launch<'_>,
        memory: &mut DeviceMemory,
        settings: &Settings,
    ) -> Result<LaunchStats, Box<Finding>> {
        let epoch = memory.next_epoch();
        let memory: &DeviceMemory = memory;
        let [gx, gy, gz] = launch.dims.grid.map(u64::from);
        let blocks = gx * gy * gz;
        let (multiplier, offset) = permutation(blocks, settings.seed);
        let shared = Shared {
            launch,
            settings,
            memory,
            next: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            fault: Mutex::new(None),
            ordering: Ordering::default(),
            epoch,
            blocks,
            multiplier,
            offset,
        };
        let cores = match settings.threads {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
            n => n,
        };
        let warps = blocks * u64::from(launch.dims.threads().div_ceil(32));
        // A thread costs more to start than a few warps cost to run.
        let workers = if warps < 16 { 1 } else { cores.min(blocks as usize) };
        let parts = if launch.cooperative && blocks > 1 {
            self.work_together(&shared)
        } else if workers <= 1 {
            vec![self.work(&shared)]
        } else {
            std::thread::scope(|scope| {
                let handles: Vec<_> =
                    (1..workers).map(|_| scope.spawn(|| self.work(&shared))).collect();
                let mut parts = vec![self.work(&shared)];
                for handle in handles {
                    match handle.join() {
                        Ok(part) => parts.push(part),
                        Err(panic) => std::panic::resume_unwind(panic),
                    }
                }
                parts
            })
        };
        if let Some(fault) = shared.fault.lock().ok().and_then(|mut f| f.take()) {
            return Err(fault);
        }
        let mut parts = parts.into_iter();
        let (mut hits, mut counts) = parts.next().unwrap_or_default();
        for (h, c) in parts {
            for (a, b) in hits.iter_mut().zip(h) {
                *a += b;
            }
            for (a, b) in counts.iter_mut().zip(c) {
                a.requests += b.requests;
                a.sectors += b.sectors;
                a.bytes += b.bytes;
                a.wavefronts += b.wavefronts;
                a.ideal_wavefronts += b.ideal_wavefronts;
                a.bytes_128 += b.bytes_128;
            }
        }
        let mut stats = LaunchStats::build(launch.program, &hits, &counts, blocks);
        let shared = launch.program.shared_bytes + launch.dims.dynamic_shared;
        stats.shared_bytes_a_block = u64::from(shared);
        if launch.unique_bytes {
            (stats.unique_bytes_read, stats.unique_bytes_written) = memory.unique_bytes(epoch);
        }
        Ok(stats)
    }

    fn take_worker(&self) -> Option<Worker> {
        if let Some(worker) = self.idle.lock().ok().and_then(|mut idle| idle.pop()) {
            return Some(worker);
        }
        Some(Worker {
            shared: SharedMemory::new()?,
            local: Vec::new(),
            local_init: Vec::new(),
            warps: Vec::new(),
        })
    }

    fn return_worker(&self, context: Context<'_>, warps: Vec<Warp>) -> Part {
        let Context { mut shared, local, local_init, hits, accesses, clock, .. } = context;
        shared.finish(clock);
        if let Ok(mut idle) = self.idle.lock() {
            idle.push(Worker { shared, local, local_init, warps });
        }
        (hits, accesses)
    }

    /// One worker's share: blocks until none is left.
    fn work(&self, shared: &Shared<'_>) -> Part {
        let Some((mut context, mut warps)) = self.take_worker().map(|w| shared.context(w)) else {
            shared.stop_with(launch_fault(shared.launch.program, "no memory for a worker"));
            return Part::default();
        };
        while !shared.stop.load(Atomic::Relaxed) {
            let k = shared.next.fetch_add(1, Atomic::Relaxed);
            if k >= shared.blocks {
                break;
            }
            let mut block = shared.start_block(&mut context, &mut warps, shared.permuted(k));
            let mut run = || {
                let mut done = false;
                while !done && !shared.stop.load(Atomic::Relaxed) {
                    done = context.run_slice(&mut warps, &mut block, 1 << 20)?;
                }
                Ok(())
            };
            if let Err(fault) = run() {
                shared.stop_with(fault);
            }
        }
        self.return_worker(context, warps)
    }

    /// All blocks at once, in turns.
    fn work_together(&self, shared: &Shared<'_>) -> Vec<Part> {
        let mut running = Vec::new();
        for k in 0..shared.blocks {
            let Some((mut context, mut warps)) = self.take_worker().map(|w| shared.context(w))
            else {
                shared.stop_with(launch_fault(shared.launch.program, "no memory for a worker"));
                break;
            };
            let block = shared.start_block(&mut context, &mut warps, shared.permuted(k));
            running.push((context, warps, block, false));
        }
        while running.iter().any(|r| !r.3) && !shared.stop.load(Atomic::Relaxed) {
            for (context, warps, block, done) in running.iter_mut().filter(|r| !r.3) {
                match context.run_slice(warps, block, 4096) {
                    Ok(finished) => *done = finished,
                    Err(fault) => shared.stop_with(fault),
                }
            }
        }
        running.into_iter().map(|(context, warps, ..)| self.return_worker(context, warps)).collect()
    }
}

/// A worker's sums: executions of each instruction, counts of each memory instruction.
type Part = (Vec<u64>, Vec<AccessCount>);

impl<'a> Shared<'a> {
    /// Builds the execution context of a worker.
    fn context(&'a self, worker: Worker) -> (Context<'a>, Vec<Warp>) {
        let launch = self.launch;
        let program = launch.program;
        let kernel = &program.functions[0];
        let calls = program.functions.len() > 1;
        let stack = if calls { CALL_STACK_BYTES } else { 0 };
        let local_stride = (kernel.local_bytes + stack).next_multiple_of(16);
        let threads = launch.dims.threads();
        let accesses = program.mems.len()
            + program.atoms.len()
            + program.copies.len()
            + program.matrices.len();
        let Worker { shared, mut local, mut local_init, mut warps } = worker;
        let local_len = local_stride as usize * threads as usize;
        if local.len() < local_len {
            local.resize(local_len, 0);
            local_init.resize(local_len, 0);
        }
        let mut context = Context {
            program,
            memory: self.memory,
            params: launch.params,
            dims: launch.dims,
            mma: self.settings.mma,
            eager_copies: self.settings.asynchrony == AsyncMode::Eager,
            seed: self.settings.seed,
            max_steps: self.settings.max_steps,
            shared,
            local,
            local_init,
            local_stride,
            hits: vec![0; program.code.len()],
            accesses: vec![AccessCount::default(); 3 * accesses],
            patterns: std::iter::repeat_with(|| None).take(3 * accesses).collect(),
            block: [0; 3],
            accessor: race::Accessor {
                block: 0,
                epoch: self.epoch,
                strong: false,
                read_only: false,
            },
            ordering: &self.ordering,
            known: HashSet::new(),
            fenced: false,
            observed: Vec::new(),
            workspace: launch.workspace,
            barriers: [state::Barrier::default(); 16],
            warps: threads.div_ceil(32) as usize,
            clock: 0,
            rng: 0,
        };
        context.shared.configure(&program.shared_vars, launch.dims.dynamic_shared);
        for warp in &mut warps {
            warp.prepared = false;
        }
        (context, warps)
    }

    fn start_block(
        &self,
        context: &mut Context<'_>,
        warps: &mut Vec<Warp>,
        index: u64,
    ) -> BlockRun {
        context.start_block(warps, self.coordinates(index), index)
    }

    fn stop_with(&self, fault: Fault) {
        self.stop.store(true, Atomic::Relaxed);
        if let Ok(mut slot) = self.fault.lock()
            && slot.is_none()
        {
            *slot = Some(fault);
        }
    }

    fn permuted(&self, k: u64) -> u64 {
        ((u128::from(k) * u128::from(self.multiplier) + u128::from(self.offset))
            % u128::from(self.blocks)) as u64
    }

    fn coordinates(&self, index: u64) -> [u32; 3] {
        let [gx, gy, _] = self.launch.dims.grid.map(u64::from);
        [(index % gx) as u32, (index / gx % gy) as u32, (index / (gx * gy)) as u32]
    }
}

fn launch_fault(program: &Program, detail: &str) -> Fault {
    Box::new(Finding {
        kind: FindingKind::LaunchLimit,
        kernel: program.name.clone(),
        block: [0; 3],
        thread: [0; 3],
        line: 0,
        text: String::new(),
        source: None,
        detail: detail.to_string(),
    })
}

/// A bijection k -> (k * multiplier + offset) mod n; the identity for seed 0 only when n is 1.
fn permutation(n: u64, seed: u64) -> (u64, u64) {
    fn gcd(a: u64, b: u64) -> u64 {
        if b == 0 { a } else { gcd(b, a % b) }
    }
    let mix = (seed.wrapping_add(1)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut multiplier = (mix >> 17) % n.max(1);
    while gcd(multiplier, n) != 1 {
        multiplier = (multiplier + 1) % n.max(2);
    }
    (multiplier.max(1), (mix >> 40) % n.max(1))
}
