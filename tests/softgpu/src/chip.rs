//! What the device claims to be: limits and attributes by compute capability, from the CUDA C++
//! Programming Guide's table of technical specifications.

/// Limits of a chip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chip {
    /// Compute capability.
    pub compute: (u32, u32),
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Threads a multiprocessor holds.
    pub threads_per_sm: u32,
    /// Blocks a multiprocessor holds.
    pub blocks_per_sm: u32,
    /// Shared memory of a multiprocessor.
    pub shared_per_sm: u32,
    /// Shared memory a block may opt in to.
    pub shared_per_block_optin: u32,
    /// Bytes of L2 cache.
    pub l2_bytes: u32,
    /// Clock in kHz, for the attribute only.
    pub clock_khz: u32,
}

/// Shared memory a block gets without opting in.
pub const SHARED_PER_BLOCK: u32 = 48 << 10;
/// Shared memory the driver keeps of each block.
pub const SHARED_RESERVED: u32 = 1 << 10;
/// Threads a block may have.
pub const MAX_THREADS: u32 = 1024;
/// Largest block.
pub const MAX_BLOCK: [u32; 3] = [1024, 1024, 64];
/// Largest grid.
pub const MAX_GRID: [u32; 3] = [0x7fff_ffff, 65_535, 65_535];
/// Registers of a multiprocessor, and of a block.
pub const REGISTERS: u32 = 65_536;

impl Chip {
    /// The chip of a compute capability.
    pub fn new(compute: (u32, u32)) -> Chip {
        let (multiprocessors, threads_per_sm, blocks_per_sm, shared_kib, l2_mib, clock_khz) =
            match compute {
                (7, 5) => (40, 1024, 16, 64, 4, 1_590_000),
                (8, 6) => (84, 1536, 16, 100, 6, 1_695_000),
                (8, 9) => (128, 1536, 24, 100, 72, 2_520_000),
                (9, 0) => (132, 2048, 32, 228, 50, 1_980_000),
                (10, 0) => (148, 2048, 32, 228, 126, 1_965_000),
                (12, 0) => (170, 1536, 24, 100, 96, 2_407_000),
                _ => (108, 2048, 32, 164, 40, 1_410_000),
            };
        Chip {
            compute,
            multiprocessors,
            threads_per_sm,
            blocks_per_sm,
            shared_per_sm: shared_kib << 10,
            shared_per_block_optin: (shared_kib - 1) << 10,
            l2_bytes: l2_mib << 20,
            clock_khz,
        }
    }

    /// The device's name: nobody can take it for a card.
    pub fn name(&self) -> String {
        format!("softgpu {}.{}", self.compute.0, self.compute.1)
    }

    /// Blocks of this shape that fit a multiprocessor.
    pub fn occupancy(&self, threads: u32, registers: u32, shared: u32) -> u32 {
        if threads == 0 || threads > MAX_THREADS {
            return 0;
        }
        let warps = threads.div_ceil(32);
        let by_threads = self.threads_per_sm / (warps * 32);
        let by_registers = REGISTERS / (registers.next_multiple_of(8).max(8) * 32 * warps);
        let by_shared = self.shared_per_sm / (shared + SHARED_RESERVED);
        by_threads.min(by_registers).min(by_shared).min(self.blocks_per_sm)
    }

    /// A CUdevice_attribute by number; none for one that has no answer here.
    pub fn attribute(&self, number: u32) -> Option<i32> {
        let value = match number {
            1 => MAX_THREADS,
            2..=4 => MAX_BLOCK[number as usize - 2],
            5..=7 => MAX_GRID[number as usize - 5],
            8 => SHARED_PER_BLOCK,
            9 => 64 << 10,
            10 => 32,
            11 => 0x7fff_ffff,
            12 => REGISTERS,
            13 => self.clock_khz,
            14 => 512,
            16 => self.multiprocessors,
            // Timeout, integrated, compute mode, ECC, TCC.
            17 | 18 | 20 | 32 | 35 => 0,
            // Maps host memory, concurrent kernels, unified addressing.
            19 | 31 | 41 => 1,
            33 | 34 | 50 => 0,
            36 => 1_593_000,
            37 => 5120,
            38 => self.l2_bytes,
            39 => self.threads_per_sm,
            40 => 3,
            75 => self.compute.0,
            76 => self.compute.1,
            // Stream priorities, global and local L1.
            78..=80 => 1,
            81 => self.shared_per_sm,
            82 => REGISTERS,
            83 => 0,
            84 | 85 => 0,
            // Pageable and concurrent managed access: not offered.
            88 | 89 => 0,
            95 => 1,
            97 => self.shared_per_block_optin,
            106 => self.blocks_per_sm,
            111 => SHARED_RESERVED,
            115 => 1,
            _ => return None,
        };
        Some(value as i32)
    }
}
