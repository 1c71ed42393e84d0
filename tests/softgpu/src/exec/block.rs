//! A block: setting up its warps and choosing which runs next.
#![allow(unsafe_code)] // Registers are raw lane arrays.

use super::state::{Barrier, Context, Fault, Line, Path, Wait, Warp};
use crate::finding::FindingKind;
use crate::isa::{Function, Special};
use crate::memory::race;

/// Progress of a block.
pub struct BlockRun {
    /// Warp instructions executed.
    pub steps: u64,
    /// Warps not done.
    pub live: Vec<usize>,
}

/// Writes `value` to the lanes of `mask`.
///
/// # Safety
/// `d` points at 32 lanes.
unsafe fn splat<T: Copy>(d: *mut T, value: T, mask: u32) {
    for l in (0..32).filter(|l| mask >> l & 1 != 0) {
        // SAFETY: the caller's promise.
        unsafe { *d.add(l) = value };
    }
}

impl Context<'_> {
    /// Makes sure a warp's storage holds a frame of `function` at these bases, and fills in its
    /// constants, special registers and cleared predicates for the lanes of `mask`.
    pub fn enter(&mut self, warp: &mut Warp, function: u32, base: u32, pred_base: u32, mask: u32) {
        let program = self.program;
        let f = &program.functions[function as usize];
        let lines = (base + f.slots * 32) as usize / 16;
        if warp.registers.len() < lines {
            warp.registers.resize(lines, Line([0; 16]));
        }
        let preds = (pred_base + f.preds) as usize;
        if warp.preds.len() < preds {
            warp.preds.resize(preds, 0);
        }
        for p in &mut warp.preds[pred_base as usize..preds] {
            *p &= !mask;
        }
        let r = warp.regs();
        // SAFETY: the frame was sized above; the decoder keeps slots inside it.
        unsafe {
            let r = r.add(base as usize);
            for &(slot, value) in &f.consts {
                splat(r.add(slot as usize), value, mask);
            }
            for &(slot, value) in &f.consts_wide {
                splat(r.add(slot as usize).cast::<u64>(), value, mask);
            }
        }
        self.write_specials(warp, f, base, mask);
    }

    fn write_specials(&self, warp: &mut Warp, f: &Function, base: u32, mask: u32) {
        for &(slot, which) in &f.specials {
            for lane in (0..32u32).filter(|l| mask >> l & 1 != 0) {
                let value = self.special(which, warp.index, lane);
                // SAFETY: the frame was sized by enter.
                unsafe { *warp.regs().add((base + slot + lane) as usize) = value };
            }
        }
    }

    fn special(&self, which: Special, warp: u32, lane: u32) -> u32 {
        let d = &self.dims;
        match which {
            Special::Tid(k) => d.thread(warp * 32 + lane)[k as usize],
            Special::NTid(k) => d.block[k as usize],
            Special::CtaId(k) => self.block[k as usize],
            Special::NCtaId(k) => d.grid[k as usize],
            Special::LaneId => lane,
            Special::WarpId => warp,
            Special::NWarpId => self.warps as u32,
            Special::SmId => (self.accessor.block % 108) as u32,
            Special::NSmId => 108,
            Special::GridId | Special::Zero => 0,
            Special::One => 1,
            Special::LaneMaskEq => 1 << lane,
            Special::LaneMaskLt => (1 << lane) - 1,
            Special::LaneMaskLe => ((2u64 << lane) - 1) as u32,
            Special::LaneMaskGt => !((2u64 << lane) - 1) as u32,
            Special::LaneMaskGe => !((1u32 << lane) - 1),
            Special::DynamicSharedSize => d.dynamic_shared,
            Special::WorkspaceHigh => (self.workspace >> 32) as u32,
            Special::WorkspaceLow => self.workspace as u32,
            Special::TotalSharedSize => d.dynamic_shared + self.program.shared_bytes,
        }
    }

    /// Sets up the warps of a block.
    pub fn start_block(&mut self, warps: &mut Vec<Warp>, block: [u32; 3], index: u64) -> BlockRun {
        self.block = block;
        self.accessor.block = race::block_name(index);
        self.rng = self.seed.wrapping_mul(0xd134_2543_de82_ef95)
            ^ index.wrapping_mul(0xa076_1d64_78bd_642f);
        self.known.clear();
        self.observed.clear();
        self.fenced = false;
        self.barriers = [Barrier::default(); 16];
        self.clock = self.shared.start_block(self.clock);
        let threads = self.dims.threads();
        while warps.len() < self.warps {
            warps.push(Warp::default());
        }
        let function = &self.program.functions[0];
        for w in 0..self.warps {
            let lanes = (threads - 32 * w as u32).min(32);
            let exists = if lanes == 32 { u32::MAX } else { (1 << lanes) - 1 };
            let mut warp = std::mem::take(&mut warps[w]);
            warp.index = w as u32;
            if warp.prepared {
                // Constants are still there; only what varies by block is written again.
                for p in &mut warp.preds {
                    *p = 0;
                }
                self.write_block_specials(&mut warp, function);
            } else {
                self.enter(&mut warp, 0, 0, 0, u32::MAX);
                warp.prepared = true;
            }
            warp.exists = exists;
            warp.alive = exists;
            warp.clocks = [self.clock; 32];
            warp.safe = self.clock;
            warp.copies.clear();
            warp.commits = [0; 32];
            warp.hogged = 0;
            warp.paths.clear();
            warp.paths.push(Path {
                pc: function.entry,
                mask: exists,
                base: 0,
                pred_base: 0,
                local_base: 0,
                function: 0,
                frames: Vec::new(),
                wait: Wait::None,
            });
            warps[w] = warp;
        }
        let bytes = self.local_stride as usize * threads as usize;
        self.local_init[..bytes].fill(0);
        BlockRun { steps: 0, live: (0..self.warps).collect() }
    }

    fn write_block_specials(&self, warp: &mut Warp, f: &Function) {
        for &(slot, which) in &f.specials {
            if matches!(which, Special::CtaId(_) | Special::SmId) {
                let value = self.special(which, warp.index, 0);
                // SAFETY: enter sized the frame when the warp was prepared.
                unsafe { splat(warp.regs().add(slot as usize), value, u32::MAX) };
            }
        }
    }

    /// Runs about `budget` warp instructions of a block. True when the block is done.
    pub fn run_slice(
        &mut self,
        warps: &mut [Warp],
        run: &mut BlockRun,
        budget: u64,
    ) -> Result<bool, Fault> {
        let mut left = budget as i64;
        while left > 0 {
            if run.live.is_empty() {
                return Ok(true);
            }
            let ready: Vec<usize> = (0..run.live.len())
                .filter(|&k| warps[run.live[k]].paths.iter().any(|p| p.wait == Wait::None))
                .collect();
            if ready.is_empty() {
                return Err(self.stuck(warps, &run.live));
            }
            let draw = self.random();
            let k = ready[(draw % ready.len() as u64) as usize];
            let w = run.live[k];
            // Short and long turns both occur, so that many interleavings are met.
            let quantum = if ready.len() == 1 { 4096 } else { 16 << (draw >> 32 & 7) };
            let mut warp = std::mem::take(&mut warps[w]);
            let mut turn = quantum;
            let result = self.run_warp(&mut warp, &mut turn);
            let done = warp.paths.is_empty();
            warps[w] = warp;
            let used = (quantum - turn).max(1);
            run.steps += used as u64;
            left -= used;
            if let Some(id) = result? {
                self.try_release(warps, id);
            }
            if done {
                run.live.swap_remove(k);
                self.clock = self.clock.max(warps[w].clocks[w]);
            }
            if run.steps > self.max_steps {
                let warp = &warps[w];
                let pc = warp.paths.first().map_or(0, |p| p.pc);
                let lane = warp.paths.first().map_or(0, |p| p.mask.trailing_zeros());
                let text = format!("block executed {} warp instructions without ending", run.steps);
                return Err(self.fault(FindingKind::StepLimit, pc, w as u32, lane, text));
            }
        }
        Ok(run.live.is_empty())
    }

    /// No warp can run: names a barrier some threads never reach.
    fn stuck(&self, warps: &[Warp], live: &[usize]) -> Fault {
        let mut waiting = Vec::new();
        for &w in live {
            for path in &warps[w].paths {
                waiting.push((w as u32, path));
            }
        }
        let threads = |want: Wait| {
            waiting
                .iter()
                .filter(|(_, p)| p.wait == want)
                .map(|(_, p)| p.mask.count_ones())
                .sum::<u32>()
        };
        for &(w, path) in &waiting {
            let lane = path.mask.trailing_zeros();
            if path.wait == Wait::Lanes {
                let text = format!(
                    "lanes 0x{:08x} wait for lanes that never come; 0x{:08x} have exited",
                    path.mask,
                    warps[w as usize].exists & !warps[w as usize].alive
                );
                let kind = match self.program.code[path.pc as usize].op {
                    crate::isa::Op::Bar(_) => FindingKind::BarrierDivergence,
                    _ => FindingKind::MissingLanes,
                };
                return self.fault(kind, path.pc, w, lane, text);
            }
        }
        for &(w, path) in &waiting {
            if let Wait::Barrier(id) = path.wait {
                let lane = path.mask.trailing_zeros();
                let arrived = threads(path.wait);
                let total = self.dims.threads();
                let exited: u32 =
                    warps[..self.warps].iter().map(|x| (x.exists & !x.alive).count_ones()).sum();
                let text = format!(
                    "barrier {id} waits for {} threads, {arrived} arrived; of the block's {total}, {exited} have exited",
                    self.barriers[id as usize & 15].expected
                );
                // The waiting instruction is the one before the saved position.
                return self.fault(
                    FindingKind::BarrierDivergence,
                    path.pc.saturating_sub(1),
                    w,
                    lane,
                    text,
                );
            }
        }
        self.fault(FindingKind::Deadlock, 0, 0, 0, "no warp can run".to_string())
    }
}
