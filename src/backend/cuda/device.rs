//! One device: its context, the loaded kernels, checked launches and copies.
#![allow(unsafe_code)] // Driver calls: launches and copies.

use std::ffi::c_void;
use std::sync::{Arc, Mutex, OnceLock};

use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaStream, DriverError, result, sys};
use cudarc::nvrtc::Ptx;

use super::device_error;
use super::entries::{COMPILER_VERSION, Entry, IMAGES, Image};
use super::memory::Memory;
use crate::error::{Error, Result};

/// Dynamic shared memory that needs no permission: 48 KiB less what a kernel has of
/// fixed size, for which 16 KiB are left.
const PLAIN_SHARED_BYTES: u32 = 32 << 10;

/// Where a grid is too large for the hardware, by axis.
const MOST_BLOCKS: [usize; 3] = [(1 << 31) - 1, 65_535, 65_535];

/// Counters of a stream, which kernels use in turn ([`Device::counters`]).
pub(super) const COUNTERS: usize = 1 << 16;

/// A device with a stream; kernels are loaded when they are first used.
pub struct Device {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    counters: Memory,
    shared: Arc<Shared>,
}

/// What all streams of a device share.
struct Shared {
    ordinal: usize,
    name: String,
    capability: (i32, i32),
    driver_version: i32,
    modules: [OnceLock<Arc<CudaModule>>; IMAGES.len()],
    /// By address of the entry; a handful of lookups a step when not replayed.
    functions: Mutex<std::collections::HashMap<&'static str, CudaFunction>>,
    sync_each: bool,
}

/// Waits after each op and names the one that failed, when set to 1.
pub const SYNC_VARIABLE: &str = "LANGEVIN_CUDA_SYNC";

impl Device {
    /// Opens device `ordinal`. Says what is missing and what to do about it.
    pub fn open(ordinal: usize) -> Result<Arc<Self>> {
        // SAFETY: opens the library and closes it again.
        if !unsafe { sys::is_culib_present() } {
            return Err(device_error(
                ordinal,
                "no CUDA driver found (libcuda.so does not load); install NVIDIA's driver, \
                 or use --device cpu",
            ));
        }
        let mut driver_version = 0;
        // SAFETY: writes one int; needs no initialised driver.
        unsafe { sys::cuDriverGetVersion(&mut driver_version) }
            .result()
            .map_err(|e| device_error(ordinal, say("the driver does not answer", e)))?;
        if driver_version < COMPILER_VERSION {
            return Err(device_error(
                ordinal,
                format!(
                    "the driver supports CUDA {} and the kernels were built with CUDA {}; \
                     update the driver, or build with an older nvcc",
                    version(driver_version),
                    version(COMPILER_VERSION)
                ),
            ));
        }
        let count = CudaContext::device_count()
            .map_err(|e| device_error(ordinal, say("the driver finds no usable device", e)))?;
        if ordinal >= count.max(0) as usize {
            return Err(device_error(
                ordinal,
                format!("there is no such device: the driver knows {count}; use --device cpu"),
            ));
        }
        let failed = |what: &'static str| move |e| device_error(ordinal, say(what, e));
        let context = CudaContext::new(ordinal).map_err(failed("cannot open the device"))?;
        // SAFETY: everything here runs on one stream, or is ordered by events of its own.
        unsafe { context.disable_event_tracking() };
        let name = context.name().map_err(failed("cannot read the device's name"))?;
        let capability =
            context.compute_capability().map_err(failed("cannot read the compute capability"))?;
        if capability < (8, 0) {
            return Err(device_error(
                ordinal,
                format!(
                    "{name} has compute capability {}.{}; the kernels need 8.0 (Ampere) or \
                     newer; use --device cpu",
                    capability.0, capability.1
                ),
            ));
        }
        let stream = context.new_stream().map_err(failed("cannot make a stream"))?;
        let counters =
            cleared_counters(&context, &stream).map_err(failed("cannot set up counters"))?;
        let shared = Shared {
            ordinal,
            name,
            capability,
            driver_version,
            modules: [const { OnceLock::new() }; IMAGES.len()],
            functions: Mutex::default(),
            sync_each: std::env::var(SYNC_VARIABLE).is_ok_and(|v| v == "1"),
        };
        Ok(Arc::new(Device { context, stream, counters, shared: Arc::new(shared) }))
    }

    /// The same device and loaded kernels with a stream of its own: work on it is
    /// not ordered with this one's.
    pub fn with_own_stream(&self) -> Result<Arc<Self>> {
        self.bind()?;
        let stream = self.context.new_stream().map_err(self.failed("cannot make a stream"))?;
        let counters = cleared_counters(&self.context, &stream)
            .map_err(self.failed("cannot set up counters"))?;
        let (context, shared) = (self.context.clone(), self.shared.clone());
        Ok(Arc::new(Device { context, stream, counters, shared }))
    }

    /// Its number.
    pub fn ordinal(&self) -> usize {
        self.shared.ordinal
    }

    /// E.g. "NVIDIA A100-SXM4-40GB".
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// E.g. `(8, 0)`.
    pub fn capability(&self) -> (i32, i32) {
        self.shared.capability
    }

    /// E.g. "13.0".
    pub fn driver_version(&self) -> String {
        version(self.shared.driver_version)
    }

    /// Bytes of device memory: free, total.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.context.mem_get_info().map_err(self.failed("cannot ask for free memory"))
    }

    /// The stream that everything runs on.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// [`COUNTERS`] words in device memory that are 0 whenever no kernel of the stream
    /// runs: blocks that share a result count there who is last (`kernels/last_block.cuh`).
    pub(super) fn counters(&self) -> *mut u32 {
        self.counters.address() as *mut u32
    }

    /// Whether every op is waited for.
    pub fn syncs_each_op(&self) -> bool {
        self.shared.sync_each
    }

    /// Turns a driver's error into the library's.
    pub fn failed(&self, what: &'static str) -> impl Fn(DriverError) -> Error {
        let ordinal = self.shared.ordinal;
        move |e| device_error(ordinal, say(what, e))
    }

    /// Zeroed memory.
    pub fn allocate(&self, bytes: usize, what: &str) -> Result<Memory> {
        let memory = Memory::new(&self.context, bytes).map_err(|e| {
            let free = self.memory().map_or_else(|_| "?".into(), |(free, _)| free.to_string());
            let text = format!("no memory for {what}: {bytes} bytes, {free} free");
            device_error(self.shared.ordinal, say(&text, e))
        })?;
        if bytes == 0 {
            return Ok(memory);
        }
        // SAFETY: the allocation has that many bytes.
        unsafe { result::memset_d8_async(memory.address(), 0, bytes, self.stream.cu_stream()) }
            .map_err(self.failed("cannot clear memory"))?;
        Ok(memory)
    }

    /// Copies bytes to the device, ordered before later launches.
    pub fn upload(&self, memory: &Memory, offset: usize, bytes: &[u8]) -> Result<()> {
        self.copy_in(memory.at(offset, bytes.len()), bytes)
    }

    /// Copies bytes from the device after everything before has finished.
    pub fn download(&self, memory: &Memory, offset: usize, bytes: &mut [u8]) -> Result<()> {
        self.copy_out(memory.at(offset, bytes.len()), bytes)?;
        self.synchronize()
    }

    /// Starts a copy to bytes of an allocation ([`Memory::at`]).
    pub(super) fn copy_in(&self, to: u64, bytes: &[u8]) -> Result<()> {
        self.bind()?;
        // SAFETY: the range was checked; the driver has taken pageable memory over
        // when it returns, and page-locked memory is kept by its owner.
        unsafe { result::memcpy_htod_async(to, bytes, self.stream.cu_stream()) }
            .map_err(self.failed("cannot copy to the device"))
    }

    /// Starts a copy from bytes of an allocation ([`Memory::at`]).
    pub(super) fn copy_out(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.bind()?;
        // SAFETY: the range was checked; the caller waits for the stream, or an event
        // after this, before it looks at the bytes or frees them.
        unsafe { result::memcpy_dtoh_async(bytes, from, self.stream.cu_stream()) }
            .map_err(self.failed("cannot copy from the device"))
    }

    /// Waits until everything has finished; reports what failed in between.
    pub fn synchronize(&self) -> Result<()> {
        self.stream.synchronize().map_err(|e| self.work_failed(e))
    }

    /// What a wait reports.
    pub(super) fn work_failed(&self, e: DriverError) -> Error {
        let hint = if self.shared.sync_each {
            String::new()
        } else {
            format!("; {SYNC_VARIABLE}=1 names the operation")
        };
        device_error(self.shared.ordinal, say("work on the device failed", e) + &hint)
    }

    pub(super) fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    pub(super) fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(self.failed("cannot select the device"))
    }

    /// Launches an entry for an op, over a grid of blocks of the entry's threads.
    /// An empty grid launches nothing. With [`SYNC_VARIABLE`] waits for the end.
    ///
    /// # Safety
    /// The addresses in `params` hold what the kernel's struct says, for as long
    /// as the launch may run.
    pub unsafe fn launch<P>(
        &self,
        op: &'static str,
        entry: &Entry<P>,
        grid: [usize; 3],
        shared_bytes: u32,
        params: &P,
    ) -> Result<()> {
        if grid.contains(&0) {
            return Ok(());
        }
        let failed = |problem: String| Error::Launch { op, kernel: entry.name, problem };
        if grid.iter().zip(MOST_BLOCKS).any(|(&g, most)| g > most) {
            return Err(failed(format!(
                "a grid of {grid:?} blocks is more than the hardware's {MOST_BLOCKS:?}; \
                 a smaller batch makes fewer"
            )));
        }
        let function = self.function(entry).map_err(|e| failed(e.to_string()))?;
        if shared_bytes > PLAIN_SHARED_BYTES {
            let attribute =
                sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function
                .set_attribute(attribute, shared_bytes as i32)
                .map_err(|e| failed(say("shared memory is refused", e)))?;
        }
        let [x, y, z] = grid.map(|g| g as u32);
        let params: *const P = params;
        // SAFETY: the entry takes one P (checked at build time); the driver copies it
        // before it returns; the caller answers for the addresses in it.
        let launched = unsafe {
            result::launch_kernel(
                function.cu_function(),
                (x, y, z),
                (entry.threads, 1, 1),
                shared_bytes,
                self.stream.cu_stream(),
                &mut [params as *mut c_void],
            )
        };
        launched.map_err(|e| failed(say("the launch failed", e)))?;
        if self.shared.sync_each {
            self.stream.synchronize().map_err(|e| failed(say("the kernel failed", e)))?;
        }
        Ok(())
    }

    fn function<P>(&self, entry: &Entry<P>) -> Result<CudaFunction> {
        let mut functions = self.shared.functions.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(function) = functions.get(entry.name) {
            return Ok(function.clone());
        }
        let module = self.module(entry.image)?;
        let function = module
            .load_function(entry.name)
            .map_err(self.failed("a kernel is missing from its module"))?;
        functions.insert(entry.name, function.clone());
        Ok(function)
    }

    fn module(&self, image: usize) -> Result<&Arc<CudaModule>> {
        let slot = &self.shared.modules[image];
        if slot.get().is_none() {
            let module = self.load(&IMAGES[image])?;
            // Another thread's module does as well.
            let _ = slot.set(module);
        }
        Ok(slot.get().expect("just set"))
    }

    /// Loads the machine code for this card, or the PTX where there is none or the
    /// driver refuses it.
    ///
    /// # Errors
    /// Failures of the driver other than a refusal, and a refusal of the PTX too.
    pub fn load(&self, image: &Image) -> Result<Arc<CudaModule>> {
        let failed = |e, refusal: &str| {
            let what = format!("cannot load the kernels of `{}`", image.name);
            device_error(self.shared.ordinal, say(&what, e) + refusal)
        };
        let mut refusal = String::new();
        if let Some(cubin) = best_cubin(image.cubins, self.shared.capability) {
            match self.context.load_module(Ptx::from_binary(cubin.to_vec())) {
                Ok(module) => return Ok(module),
                Err(e) if is_refusal(e) => refusal = say("; machine code for it", e),
                Err(e) => return Err(failed(e, "")),
            }
        }
        let ptx = self.context.load_module(Ptx::from_src(image.ptx));
        ptx.map_err(|e| failed(e, &refusal))
    }
}

/// Counters for the kernels of a stream.
fn cleared_counters(
    context: &Arc<CudaContext>,
    stream: &CudaStream,
) -> std::result::Result<Memory, DriverError> {
    let memory = Memory::new(context, 4 * COUNTERS)?;
    // SAFETY: the allocation has that many bytes.
    unsafe { result::memset_d8_async(memory.address(), 0, memory.bytes(), stream.cu_stream()) }?;
    Ok(memory)
}

/// Whether a driver says that machine code is not for its card, or of a form that it
/// does not know: it may still compile the PTX.
fn is_refusal(DriverError(code): DriverError) -> bool {
    use sys::cudaError_enum as error;
    matches!(code, error::CUDA_ERROR_NO_BINARY_FOR_GPU | error::CUDA_ERROR_INVALID_IMAGE)
}

/// The machine code that a card of this capability runs best: code runs on the minor
/// versions from its own on.
fn best_cubin<'a>(cubins: &[(u32, &'a [u8])], (major, minor): (i32, i32)) -> Option<&'a [u8]> {
    let fits = |arch: u32| arch as i32 / 10 == major && arch as i32 % 10 <= minor;
    let best = cubins.iter().filter(|(arch, _)| fits(*arch)).max_by_key(|(arch, _)| *arch);
    best.map(|(_, cubin)| *cubin)
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Device({}, {})", self.shared.ordinal, self.shared.name)
    }
}

/// 13000 as "13.0".
fn version(v: i32) -> String {
    format!("{}.{}", v / 1000, v % 1000 / 10)
}

/// "what: NAME, explanation".
pub(super) fn say(what: &str, e: DriverError) -> String {
    let name = e.error_name().map(|n| n.to_string_lossy().into_owned());
    let text = e.error_string().map(|t| t.to_string_lossy().into_owned());
    let name = name.unwrap_or_else(|_| format!("{:?}", e.0));
    match text {
        Ok(text) => format!("{what}: {name}, {text}"),
        Err(_) => format!("{what}: {name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::best_cubin;

    #[test]
    fn a_card_gets_the_newest_code_of_its_own_generation_or_none() {
        let cubins: [(u32, &[u8]); 6] =
            [(80, b"80"), (86, b"86"), (89, b"89"), (90, b"90"), (100, b"100"), (120, b"120")];
        let of = |capability| best_cubin(&cubins, capability);
        assert_eq!(of((8, 0)), Some(&b"80"[..]));
        assert_eq!(of((8, 6)), Some(&b"86"[..]));
        // An Orin runs what an A10 does.
        assert_eq!(of((8, 7)), Some(&b"86"[..]));
        assert_eq!(of((8, 9)), Some(&b"89"[..]));
        assert_eq!(of((9, 0)), Some(&b"90"[..]));
        assert_eq!(of((10, 3)), Some(&b"100"[..]));
        assert_eq!(of((12, 0)), Some(&b"120"[..]));
        // Generations that nothing was compiled for take the PTX.
        assert_eq!(of((11, 0)), None);
        assert_eq!(of((7, 5)), None);
        assert_eq!(best_cubin(&[], (8, 0)), None);
    }
}
