//! What the software GPU counts while kernels run.

use std::collections::BTreeMap;
use std::ops::{AddAssign, Sub};
use std::sync::Arc;

use langevin::backend::cuda::{Device, Memory};
use langevin::kernels::Kernels;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use serde::Deserialize;

/// Counters of one kernel, or of several together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Launches.
    pub launches: f64,
    /// Blocks.
    pub blocks: f64,
    /// Shared memory of a block, static and dynamic: the most of any launch so far.
    pub shared_bytes: f64,
    /// Loads from global memory, `cp.async` included.
    pub load: Accesses,
    /// Stores to global memory.
    pub store: Accesses,
    /// Shared memory: passes over the banks, and how many there would be without a conflict.
    pub wavefronts: f64,
    /// See `wavefronts`.
    pub ideal_wavefronts: f64,
    /// Bytes of local memory.
    pub local_bytes: f64,
    /// Bytes of global memory that a launch read at least once.
    pub unique_read: f64,
    /// Bytes of global memory that a launch wrote at least once.
    pub unique_written: f64,
    /// Warp instructions of PTX.
    pub instructions: f64,
    /// Those of tensor cores among them.
    pub mma: f64,
}

/// Accesses of one direction to global memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Accesses {
    /// Bytes asked for.
    pub bytes: f64,
    /// Aligned 32 bytes touched, summed over warp instructions.
    pub sectors: f64,
    /// Bytes by 16-byte lanes.
    pub wide_bytes: f64,
}

impl Accesses {
    /// Bytes asked for / (32 x sectors); 1 where there are none.
    pub fn sector_efficiency(&self) -> f64 {
        ratio(self.bytes, 32.0 * self.sectors)
    }

    /// Share of bytes by 16-byte lanes; 1 where there are none.
    pub fn wide_share(&self) -> f64 {
        ratio(self.wide_bytes, self.bytes)
    }

    fn each(&self, o: &Self, f: impl Fn(f64, f64) -> f64) -> Self {
        Accesses {
            bytes: f(self.bytes, o.bytes),
            sectors: f(self.sectors, o.sectors),
            wide_bytes: f(self.wide_bytes, o.wide_bytes),
        }
    }
}

fn ratio(a: f64, b: f64) -> f64 {
    if b == 0.0 { 1.0 } else { a / b }
}

impl Counts {
    /// Shared wavefronts / ideal; 1 where there are none.
    pub fn shared_ratio(&self) -> f64 {
        ratio(self.wavefronts, self.ideal_wavefronts)
    }

    /// Bytes of the sectors that were asked for, both ways: what L1 sees.
    pub fn sector_bytes(&self) -> f64 {
        32.0 * (self.load.sectors + self.store.sectors)
    }

    /// Bytes of global memory touched, both ways: each once a launch.
    pub fn unique(&self) -> f64 {
        self.unique_read + self.unique_written
    }

    fn each(&self, o: &Self, f: impl Fn(f64, f64) -> f64 + Copy) -> Self {
        Counts {
            launches: f(self.launches, o.launches),
            blocks: f(self.blocks, o.blocks),
            shared_bytes: self.shared_bytes.max(o.shared_bytes),
            load: self.load.each(&o.load, f),
            store: self.store.each(&o.store, f),
            wavefronts: f(self.wavefronts, o.wavefronts),
            ideal_wavefronts: f(self.ideal_wavefronts, o.ideal_wavefronts),
            local_bytes: f(self.local_bytes, o.local_bytes),
            unique_read: f(self.unique_read, o.unique_read),
            unique_written: f(self.unique_written, o.unique_written),
            instructions: f(self.instructions, o.instructions),
            mma: f(self.mma, o.mma),
        }
    }
}

impl Sub for Counts {
    type Output = Counts;
    fn sub(self, o: Counts) -> Counts {
        self.each(&o, |a, b| a - b)
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, o: Counts) {
        *self = self.each(&o, |a, b| a + b);
    }
}

/// One instruction that reads or writes global memory, in the last launch of its kernel.
#[derive(Clone, Debug, Deserialize)]
pub struct Access {
    /// PTX.
    pub text: String,
    /// Warp instructions.
    pub requests: f64,
    /// Aligned 32 bytes touched, summed over warp instructions.
    pub sectors: f64,
    /// Bytes asked for.
    pub bytes: f64,
    /// Share of them by 16-byte lanes.
    pub share_128_bit: f64,
}

impl Access {
    fn is_global(&self) -> bool {
        ["ld.global", "st.global", "cp.async"].iter().any(|word| self.text.contains(word))
    }

    /// Whether all lanes read the same few bytes, as they do an image's coefficients.
    fn is_uniform(&self) -> bool {
        self.sectors <= self.requests
    }
}

/// What was launched and asked of the driver.
#[derive(Clone, Debug, Default)]
pub struct Launched {
    /// By kernel.
    pub kernels: BTreeMap<String, Counts>,
    /// Accesses to global memory whose lanes differ, by kernel.
    pub streams: BTreeMap<String, Vec<Access>>,
    /// Calls of the driver's functions.
    pub calls: BTreeMap<String, u64>,
    /// Nodes of the graphs launched, by kind (`kernel`, `copy to the device`, ...).
    pub graph_nodes: BTreeMap<String, u64>,
}

impl Launched {
    /// The sum over kernels whose name starts so; all of them for an empty prefix.
    pub fn of(&self, prefix: &str) -> Counts {
        let mut sum = Counts::default();
        let named = self.kernels.iter().filter(|(name, _)| name.starts_with(prefix));
        named.for_each(|(_, counts)| sum += *counts);
        sum
    }

    /// Calls of driver functions whose name starts so.
    pub fn calls_of(&self, prefix: &str) -> u64 {
        self.calls.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, n)| n).sum()
    }

    /// What came since `before`.
    pub fn since(mut self, before: &Launched) -> Launched {
        for (name, counts) in &mut self.kernels {
            *counts = *counts - before.kernels.get(name).copied().unwrap_or_default();
        }
        self.kernels.retain(|_, counts| counts.launches > 0.0);
        self.streams.retain(|name, _| self.kernels.contains_key(name));
        let less = |now: &mut BTreeMap<String, u64>, before: &BTreeMap<String, u64>| {
            now.iter_mut().for_each(|(name, n)| *n -= before.get(name).copied().unwrap_or(0));
            now.retain(|_, n| *n > 0);
        };
        less(&mut self.calls, &before.calls);
        less(&mut self.graph_nodes, &before.graph_nodes);
        self
    }
}

/// The software GPU as the driver of this process.
pub struct Gpu {
    driver: Library,
    /// Its device.
    pub device: Arc<Device>,
    /// Single kernels on it.
    pub kernels: Kernels,
}

impl Gpu {
    /// Loads the library beside this program; nothing may have asked for a driver before.
    pub fn open() -> Gpu {
        let exe = std::env::current_exe().expect("path of the bench");
        let library = exe.parent().expect("its folder").join("libsoftgpu.so");
        // Unique bytes are counted where a report is asked for.
        let report = std::env::temp_dir().join(format!("certificates-{}.json", std::process::id()));
        // SAFETY: no other thread runs yet; the library's initialisers do nothing.
        let driver = unsafe {
            std::env::set_var("SOFTGPU_REPORT", report);
            Library::open(Some(library), RTLD_NOW | RTLD_GLOBAL).expect("the software GPU")
        };
        let device = Device::open(0).expect("the software GPU");
        assert!(device.name().contains("softgpu"), "counters come from the software GPU alone");
        let kernels = Kernels::on(&device).expect("kernels");
        Gpu { driver, device, kernels }
    }

    /// Zeroed memory.
    pub fn memory(&self, bytes: usize) -> Memory {
        self.device.allocate(bytes, "a certificate").expect("memory")
    }

    /// Runs `work` to its end and returns what its launches counted.
    pub fn measure(&self, work: impl FnOnce()) -> Launched {
        let before = self.counts();
        work();
        self.device.synchronize().expect("no finding");
        self.kernels.device().synchronize().expect("no finding");
        self.counts().since(&before)
    }

    /// All counters so far.
    pub fn counts(&self) -> Launched {
        // SAFETY: the library exports it with this type, and the buffer has that size.
        let text = unsafe {
            let report =
                self.driver.get::<extern "C" fn(*mut u8, usize) -> usize>(b"softgpu_report\0");
            let report = report.expect("softgpu_report");
            let mut buffer = vec![0; report(std::ptr::null_mut(), 0) + 1];
            report(buffer.as_mut_ptr(), buffer.len());
            buffer.pop();
            buffer
        };
        let report: Report = serde_json::from_slice(&text).expect("JSON");
        let mut streams = BTreeMap::new();
        let mut kernels = BTreeMap::new();
        for (name, mut kernel) in report.kernels {
            let mut accesses = std::mem::take(&mut kernel.accesses);
            accesses.retain(|a| a.is_global() && !a.is_uniform());
            streams.insert(name.clone(), accesses);
            kernels.insert(name, kernel.into());
        }
        Launched { kernels, streams, calls: report.calls, graph_nodes: report.graph_nodes }
    }
}

/// The library's report, as far as it is read here.
#[derive(Deserialize)]
struct Report {
    kernels: BTreeMap<String, Kernel>,
    calls: BTreeMap<String, u64>,
    graph_nodes: BTreeMap<String, u64>,
}

#[derive(Deserialize)]
struct Kernel {
    launches: f64,
    blocks: f64,
    shared_bytes_a_block: f64,
    warp_instructions: f64,
    mma_share: f64,
    global_load: Space,
    global_store: Space,
    shared: Space,
    local: Space,
    unique_bytes_read: f64,
    unique_bytes_written: f64,
    accesses: Vec<Access>,
}

#[derive(Deserialize)]
struct Space {
    bytes: f64,
    sectors: f64,
    share_128_bit: f64,
    wavefronts: f64,
    conflict_ratio: f64,
}

impl From<Kernel> for Counts {
    fn from(k: Kernel) -> Self {
        let accesses = |s: &Space| Accesses {
            bytes: s.bytes,
            sectors: s.sectors,
            wide_bytes: s.bytes * s.share_128_bit,
        };
        Counts {
            launches: k.launches,
            blocks: k.blocks,
            shared_bytes: k.shared_bytes_a_block,
            load: accesses(&k.global_load),
            store: accesses(&k.global_store),
            wavefronts: k.shared.wavefronts,
            ideal_wavefronts: k.shared.wavefronts / k.shared.conflict_ratio.max(1e-9),
            local_bytes: k.local.bytes,
            unique_read: k.unique_bytes_read,
            unique_written: k.unique_bytes_written,
            instructions: k.warp_instructions,
            mma: k.mma_share * k.warp_instructions,
        }
    }
}
