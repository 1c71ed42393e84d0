//! What a worker holds while it runs a block.
#![allow(unsafe_code)] // Register frames are raw lane arrays.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;

use super::addresses::lanes;
use super::counters::AccessCount;
use super::pattern::Pattern;
use crate::finding::{Finding, FindingKind};
use crate::isa::Program;
use crate::memory::{DeviceMemory, SharedMemory, race};
use crate::settings::MmaMode;

/// A finding that stops the launch.
pub type Fault = Box<Finding>;

/// A saved caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    pub return_pc: u32,
    pub base: u32,
    pub pred_base: u32,
    pub local_base: u32,
    pub function: u32,
    pub site: u32,
}

/// Why a path does not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// It runs.
    None,
    /// Other lanes of the warp must reach the same instruction.
    Lanes,
    /// The block's barrier of this number.
    Barrier(u32),
}

/// Lanes that run together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    pub pc: u32,
    pub mask: u32,
    /// Lane offset of the frame's registers.
    pub base: u32,
    /// Index of the frame's predicates.
    pub pred_base: u32,
    /// First byte of the frame's local memory.
    pub local_base: u32,
    pub function: u32,
    pub frames: Vec<Frame>,
    pub wait: Wait,
}

impl Path {
    /// True when the two can go on as one.
    pub fn meets(&self, other: &Path) -> bool {
        self.pc == other.pc && self.base == other.base && self.frames == other.frames
    }
}

/// A cp.async that a warp has issued.
pub struct PendingCopies {
    /// Lanes whose copy has not landed.
    pub lanes: u32,
    /// Each lane's commit count at issue: the group the copy will belong to.
    pub group: [u32; 32],
    pub dst: [u64; 32],
    pub src: [u64; 32],
    pub bytes: u32,
    /// Bytes that come from the source, the rest are zero.
    pub take: [u32; 32],
    pub pc: u32,
}

/// 64 aligned bytes.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub struct Line(pub [u32; 16]);

/// A warp of the current block.
#[derive(Default)]
pub struct Warp {
    pub index: u32,
    pub registers: Vec<Line>,
    pub preds: Vec<u32>,
    pub paths: Vec<Path>,
    /// Lanes that exist in this block.
    pub exists: u32,
    /// Lanes that have not exited.
    pub alive: u32,
    pub clocks: [u32; 32],
    pub safe: u32,
    pub copies: Vec<PendingCopies>,
    pub commits: [u32; 32],
    /// Steps since another ready path last had a turn.
    pub hogged: u32,
    /// The kernel's constants are in the registers.
    pub prepared: bool,
}

impl Warp {
    /// First register word.
    pub fn regs(&mut self) -> *mut u32 {
        self.registers.as_mut_ptr().cast()
    }

    /// Recomputes the least clock after the clocks changed.
    pub fn update_safe(&mut self, warps: usize) {
        self.safe = self.clocks[..warps].iter().copied().min().unwrap_or(0);
    }
}

/// A named barrier of the block.
#[derive(Debug, Clone, Copy, Default)]
pub struct Barrier {
    /// Threads expected; 0 while unused.
    pub expected: u32,
    pub arrived: u32,
    /// Instruction of the first arrival when all threads must use the same one.
    pub pc: Option<u32>,
    pub count: u32,
    pub all: bool,
    pub any: bool,
    pub joined: [u32; 32],
    /// Warps that arrived and wait.
    pub warps: u32,
}

/// Order between blocks made by fences and atomics: who has released to an address.
#[derive(Default)]
pub struct Ordering {
    released: Mutex<HashMap<u64, HashSet<u64>>>,
}

impl Ordering {
    /// A strong store or atomic of `block` on `address` after a fence: publishes what it knows.
    pub fn publish(&self, address: u64, block: u64, known: &HashSet<u64>) {
        let Ok(mut map) = self.released.lock() else { return };
        let entry = map.entry(address).or_default();
        entry.insert(block);
        entry.extend(known);
    }

    /// A strong load or atomic of `address` before a fence: learns what others published there.
    pub fn learn(&self, address: u64, known: &mut HashSet<u64>) {
        let Ok(map) = self.released.lock() else { return };
        if let Some(entry) = map.get(&address) {
            known.extend(entry);
        }
    }
}

/// The shape of a launch.
#[derive(Debug, Clone, Copy)]
pub struct Dims {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub dynamic_shared: u32,
}

impl Dims {
    /// Threads of a block.
    pub fn threads(&self) -> u32 {
        self.block[0] * self.block[1] * self.block[2]
    }

    /// Thread index by its number in the block.
    pub fn thread(&self, k: u32) -> [u32; 3] {
        let [x, y, _] = self.block;
        [k % x, k / x % y, k / (x * y)]
    }
}

/// Everything but the warps.
pub struct Context<'a> {
    pub program: &'a Program,
    pub memory: &'a DeviceMemory,
    pub params: &'a [u8],
    pub dims: Dims,
    pub mma: MmaMode,
    pub eager_copies: bool,
    pub seed: u64,
    pub max_steps: u64,
    pub shared: SharedMemory,
    pub local: Vec<u8>,
    pub local_init: Vec<u8>,
    pub local_stride: u32,
    pub hits: Vec<u64>,
    pub accesses: Vec<AccessCount>,
    /// Address patterns, one beside each count.
    pub patterns: Vec<Option<Box<Pattern>>>,
    pub block: [u32; 3],
    pub accessor: race::Accessor,
    pub ordering: &'a Ordering,
    /// Blocks whose writes are ordered before this block's accesses.
    pub known: HashSet<u64>,
    /// The block executed a fence.
    pub fenced: bool,
    /// Addresses read by strong loads since the last fence: a fence makes them acquires.
    pub observed: Vec<u64>,
    /// Address of the workspace of a cooperative launch, or 0.
    pub workspace: u64,
    pub barriers: [Barrier; 16],
    pub warps: usize,
    /// Highest vector clock of the last block.
    pub clock: u32,
    pub rng: u64,
}

impl Context<'_> {
    /// A finding at an instruction and lane.
    #[cold]
    pub fn fault(&self, kind: FindingKind, pc: u32, warp: u32, lane: u32, detail: String) -> Fault {
        Box::new(Finding {
            kind,
            kernel: self.program.name.clone(),
            block: self.block,
            thread: self.dims.thread(warp * 32 + lane),
            line: self.program.lines.get(pc as usize).copied().unwrap_or(0),
            text: self.program.quote(pc).to_string(),
            source: self.program.source_of(pc),
            detail,
        })
    }

    /// A fence orders what strong loads before it saw, and what strong stores after it publish.
    pub fn fence(&mut self) {
        self.fenced = true;
        for address in std::mem::take(&mut self.observed) {
            self.ordering.learn(address, &mut self.known);
        }
    }

    /// Order made by strong accesses of lanes `m` to global memory.
    pub fn note_strong(&mut self, a: &[u64; 32], m: u32, write: bool) {
        for l in lanes(m) {
            if !write && !self.observed.contains(&a[l]) {
                self.observed.push(a[l]);
            }
            if write && self.fenced {
                self.ordering.publish(a[l], self.accessor.block, &self.known);
            }
        }
    }

    /// A pseudo-random number (splitmix64).
    pub fn random(&mut self) -> u64 {
        self.rng = self.rng.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.rng;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Index of an access in the counters: loads and stores, atomics, copies, matrices.
    pub fn access_index(&self, table: AccessTable, index: u32) -> usize {
        let p = self.program;
        let base = match table {
            AccessTable::Mem => 0,
            AccessTable::Atom => p.mems.len(),
            AccessTable::Copy => p.mems.len() + p.atoms.len(),
            AccessTable::Matrix => p.mems.len() + p.atoms.len() + p.copies.len(),
        };
        base + index as usize
    }
}

/// Tables of memory instructions.
#[derive(Debug, Clone, Copy)]
pub enum AccessTable {
    Mem,
    Atom,
    Copy,
    Matrix,
}
