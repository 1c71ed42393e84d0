//! What a profiler would count.

use serde::Serialize;

use crate::isa::{CLASS_NAMES, Class, MemSpace, Op, Program};

/// Counts of one memory instruction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AccessCount {
    /// Warp instructions with at least one active lane.
    pub requests: u64,
    /// Distinct 32-byte sectors touched, summed over requests.
    pub sectors: u64,
    /// Bytes asked for by lanes.
    pub bytes: u64,
    /// Passes over the shared-memory banks.
    pub wavefronts: u64,
    /// Passes a conflict-free access of as many bytes would take.
    pub ideal_wavefronts: u64,
    /// Bytes moved by 16-byte lanes.
    pub bytes_128: u64,
}

impl AccessCount {
    fn add(&mut self, o: &AccessCount) {
        self.requests += o.requests;
        self.sectors += o.sectors;
        self.bytes += o.bytes;
        self.wavefronts += o.wavefronts;
        self.ideal_wavefronts += o.ideal_wavefronts;
        self.bytes_128 += o.bytes_128;
    }
}

/// Sums over the accesses of one space.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct SpaceStats {
    /// Warp instructions.
    pub requests: u64,
    /// 32-byte sectors.
    pub sectors: u64,
    /// Bytes asked for.
    pub bytes: u64,
    /// bytes / (32 x sectors).
    pub sector_efficiency: f64,
    /// Sectors a request.
    pub sectors_per_request: f64,
    /// Share of bytes moved by 128-bit lanes.
    pub share_128_bit: f64,
    /// Shared memory: wavefronts.
    pub wavefronts: u64,
    /// Shared memory: wavefronts / ideal.
    pub conflict_ratio: f64,
}

impl From<AccessCount> for SpaceStats {
    fn from(c: AccessCount) -> Self {
        let ratio = |a: u64, b: u64| if b == 0 { 0.0 } else { a as f64 / b as f64 };
        SpaceStats {
            requests: c.requests,
            sectors: c.sectors,
            bytes: c.bytes,
            sector_efficiency: ratio(c.bytes, 32 * c.sectors),
            sectors_per_request: ratio(c.sectors, c.requests),
            share_128_bit: ratio(c.bytes_128, c.bytes),
            wavefronts: c.wavefronts,
            conflict_ratio: ratio(c.wavefronts, c.ideal_wavefronts),
        }
    }
}

/// One memory instruction in the report.
#[derive(Debug, Clone, Serialize)]
pub struct AccessLine {
    /// PTX line.
    pub line: u32,
    /// The PTX.
    pub text: String,
    /// Its counts.
    #[serde(flatten)]
    pub stats: SpaceStats,
}

/// Counters of one launch, or of several launches of one kernel.
#[derive(Debug, Clone, Default, Serialize)]
pub struct LaunchStats {
    /// Launches summed.
    pub launches: u64,
    /// Blocks run.
    pub blocks: u64,
    /// Shared memory of a block, static and dynamic, in bytes: the most of any launch.
    pub shared_bytes_a_block: u64,
    /// Warp instructions by class.
    pub instructions: Vec<(&'static str, u64)>,
    /// Warp instructions in all.
    pub warp_instructions: u64,
    /// mma instructions / all.
    pub mma_share: f64,
    /// Loads from global memory, cp.async included.
    pub global_load: SpaceStats,
    /// Stores to global memory.
    pub global_store: SpaceStats,
    /// Shared memory, ldmatrix included.
    pub shared: SpaceStats,
    /// Local memory.
    pub local: SpaceStats,
    /// Atomics.
    pub atomic: SpaceStats,
    /// Bytes of global memory read at least once.
    pub unique_bytes_read: u64,
    /// Bytes of global memory written at least once.
    pub unique_bytes_written: u64,
    /// Memory instructions by line.
    pub accesses: Vec<AccessLine>,
    #[serde(skip)]
    raw: [AccessCount; 5],
}

impl LaunchStats {
    /// Builds the statistics of one launch from the workers' sums.
    pub fn build(program: &Program, hits: &[u64], counts: &[AccessCount], blocks: u64) -> Self {
        let mut by_class = [0u64; CLASS_NAMES.len()];
        for (&class, &n) in program.classes.iter().zip(hits) {
            if class != Class::Hidden {
                by_class[class as usize] += n;
            }
        }
        let mut stats = LaunchStats { launches: 1, blocks, ..LaunchStats::default() };
        stats.set_classes(by_class);
        let offsets = [
            program.mems.len(),
            program.mems.len() + program.atoms.len(),
            program.mems.len() + program.atoms.len() + program.copies.len(),
        ];
        for (pc, instr) in program.code.iter().enumerate() {
            let (at, kind) = match instr.op {
                Op::Ld(k) => {
                    let kind = match program.mems[k as usize].space {
                        MemSpace::Shared => 2,
                        MemSpace::Local => 3,
                        _ => 0,
                    };
                    (k as usize, kind)
                }
                Op::St(k) => {
                    let kind = match program.mems[k as usize].space {
                        MemSpace::Shared => 2,
                        MemSpace::Local => 3,
                        _ => 1,
                    };
                    (k as usize, kind)
                }
                Op::Atom(k) => (offsets[0] + k as usize, 4),
                Op::CpAsync(k) => (offsets[1] + k as usize, 0),
                Op::LdMatrix(k) | Op::StMatrix(k) => (offsets[2] + k as usize, 2),
                _ => continue,
            };
            // As the instruction says, then generic accesses that went to shared or local memory.
            let n = counts.len() / 3;
            for (at, kind) in [(at, kind), (n + at, 2), (2 * n + at, 3)] {
                let Some(count) = counts.get(at).filter(|c| c.requests > 0) else { continue };
                stats.raw[kind].add(count);
                stats.accesses.push(AccessLine {
                    line: program.lines[pc],
                    text: program.quote(pc as u32).to_string(),
                    stats: (*count).into(),
                });
            }
        }
        stats.refresh();
        stats
    }

    fn set_classes(&mut self, by_class: [u64; CLASS_NAMES.len()]) {
        self.warp_instructions = by_class.iter().sum();
        self.instructions =
            CLASS_NAMES.iter().copied().zip(by_class).filter(|&(_, n)| n > 0).collect();
    }

    fn refresh(&mut self) {
        let mma = self.count("mma");
        self.mma_share = if self.warp_instructions == 0 {
            0.0
        } else {
            mma as f64 / self.warp_instructions as f64
        };
        let [load, store, shared, local, atomic] = self.raw;
        self.global_load = load.into();
        self.global_store = store.into();
        self.shared = shared.into();
        self.local = local.into();
        self.atomic = atomic.into();
    }

    /// Warp instructions of a class by name.
    pub fn count(&self, class: &str) -> u64 {
        self.instructions.iter().find(|c| c.0 == class).map_or(0, |c| c.1)
    }

    /// Adds another launch of the same kernel.
    pub fn merge(&mut self, other: &LaunchStats) {
        self.launches += other.launches;
        self.blocks += other.blocks;
        self.shared_bytes_a_block = self.shared_bytes_a_block.max(other.shared_bytes_a_block);
        let mut by_class = [0u64; CLASS_NAMES.len()];
        for (slot, name) in by_class.iter_mut().zip(CLASS_NAMES) {
            *slot = self.count(name) + other.count(name);
        }
        self.set_classes(by_class);
        for (a, b) in self.raw.iter_mut().zip(&other.raw) {
            a.add(b);
        }
        self.unique_bytes_read += other.unique_bytes_read;
        self.unique_bytes_written += other.unique_bytes_written;
        // Lines keep the last launch's ratios: they differ only with the shape.
        self.accesses.clone_from(&other.accesses);
        self.refresh();
    }
}
