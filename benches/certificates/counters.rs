//! What the software GPU counts while kernels run.

use std::collections::BTreeMap;
use std::ops::{AddAssign, Sub};
use std::sync::Arc;

use langevin::backend::cuda::{Device, Memory};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use serde::Deserialize;

/// Counters of one kernel, or of several together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Launches.
    pub launches: f64,
    /// Blocks.
    pub blocks: f64,
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

    fn each(&self, o: &Self, f: impl Fn(f64, f64) -> f64 + Copy) -> Self {
        Counts {
            launches: f(self.launches, o.launches),
            blocks: f(self.blocks, o.blocks),
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

/// What was launched, by kernel.
#[derive(Clone, Debug, Default)]
pub struct Launched(pub BTreeMap<String, Counts>);

impl Launched {
    /// The sum over kernels whose name starts so; all of them for an empty prefix.
    pub fn of(&self, prefix: &str) -> Counts {
        let mut sum = Counts::default();
        self.0.iter().filter(|k| k.0.starts_with(prefix)).for_each(|k| sum += *k.1);
        sum
    }
}

/// The software GPU as the driver of this process.
pub struct Gpu {
    driver: Library,
    /// Its device.
    pub device: Arc<Device>,
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
        Gpu { driver, device }
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
        let mut after = self.counts();
        for (name, counts) in &mut after.0 {
            *counts = *counts - before.0.get(name).copied().unwrap_or_default();
        }
        after.0.retain(|_, counts| counts.launches > 0.0);
        after
    }

    /// All counters so far.
    fn counts(&self) -> Launched {
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
        Launched(report.kernels.into_iter().map(|(name, kernel)| (name, kernel.into())).collect())
    }
}

/// The library's report, as far as it is read here.
#[derive(Deserialize)]
struct Report {
    kernels: BTreeMap<String, Kernel>,
}

#[derive(Deserialize)]
struct Kernel {
    launches: f64,
    blocks: f64,
    warp_instructions: f64,
    mma_share: f64,
    global_load: Space,
    global_store: Space,
    shared: Space,
    local: Space,
    unique_bytes_read: f64,
    unique_bytes_written: f64,
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
