//! Page-locked memory through which bytes go to and from the device while both sides
//! work: the host writes the next step's inputs during a step, and reads a step's
//! losses when the step after it is already running.
#![allow(unsafe_code)] // Memory that the driver copies from and to.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaEvent, DriverError, result};

use super::device::Device;
use crate::error::Result;

/// Bytes of one half of the upload memory at first; four times an upload that is larger.
const LEAST_HALF: usize = 256 << 10;

/// Uploads from here on (whole arenas, at the start of a run) go through the driver's
/// own buffers: locking that much memory would cost more than it saves.
const MOST_STAGED: usize = 64 << 20;

/// Uploads start at multiples of this many bytes.
const ALIGNMENT: usize = 256;

/// Page-locked bytes.
struct Pinned {
    context: Arc<CudaContext>,
    first: *mut u8,
    bytes: usize,
}

// SAFETY: the memory belongs to the value alone.
unsafe impl Send for Pinned {}

impl Pinned {
    fn new(context: &Arc<CudaContext>, bytes: usize) -> std::result::Result<Self, DriverError> {
        context.bind_to_thread()?;
        // SAFETY: the context is current; the bytes are initialised before they are read.
        let first = unsafe { result::malloc_host(bytes, 0) }?.cast::<u8>();
        // SAFETY: as many bytes were allocated.
        unsafe { first.write_bytes(0, bytes) };
        Ok(Pinned { context: context.clone(), first, bytes })
    }

    /// All bytes; no copy that the driver still makes may concern those that are used.
    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: allocated and initialised by `new`; borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.first, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // An error here has been reported by the call that met it first.
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: allocated by `new`, freed once, after the copies ([`Staging::drop`]).
            let _ = unsafe { result::free_host(self.first.cast()) };
        }
    }
}

/// One half of the upload memory: filled by the host while the device copies from the
/// other.
struct Half {
    memory: Pinned,
    used: usize,
    /// After the last copy from it.
    copied: CudaEvent,
}

/// Bytes on their way to the host.
struct Slot {
    memory: Pinned,
    arrived: CudaEvent,
    busy: bool,
}

/// The staging memory of one backend.
pub(super) struct Staging {
    device: Arc<Device>,
    halves: Option<[Half; 2]>,
    current: usize,
    slots: Vec<Slot>,
}

impl Staging {
    /// Allocates nothing yet.
    pub fn new(device: Arc<Device>) -> Self {
        Staging { device, halves: None, current: 0, slots: Vec::new() }
    }

    fn pinned(&self, bytes: usize) -> Result<(Pinned, CudaEvent)> {
        let context = self.device.context();
        let memory = Pinned::new(context, bytes)
            .map_err(self.device.failed("no page-locked memory on the host"))?;
        let event = context.new_event(None).map_err(self.device.failed("cannot make an event"))?;
        Ok((memory, event))
    }

    /// Copies bytes to a device address, ordered before later launches. Waits only
    /// where both halves are full of copies that have not been made.
    pub fn upload(&mut self, to: u64, bytes: &[u8]) -> Result<()> {
        if bytes.len() > MOST_STAGED {
            return self.device.copy_in(to, bytes);
        }
        if self.halves.as_ref().is_none_or(|halves| halves[0].memory.bytes < bytes.len()) {
            self.grow(bytes.len())?;
        }
        let failed = |e| self.device.failed("cannot wait for a copy to the device")(e);
        let halves = self.halves.as_mut().expect("just made");
        if halves[self.current].used + bytes.len() > halves[self.current].memory.bytes {
            halves[self.current].copied.record(self.device.stream()).map_err(failed)?;
            self.current = 1 - self.current;
            halves[self.current].copied.synchronize().map_err(failed)?;
            halves[self.current].used = 0;
        }
        let half = &mut halves[self.current];
        let part = &mut half.memory.bytes_mut()[half.used..][..bytes.len()];
        part.copy_from_slice(bytes);
        // Until the half's turn comes again, nothing writes to these bytes.
        self.device.copy_in(to, part)?;
        half.used = (half.used + bytes.len()).next_multiple_of(ALIGNMENT);
        Ok(())
    }

    /// Halves in which `bytes` have room, four times.
    fn grow(&mut self, bytes: usize) -> Result<()> {
        if self.halves.is_some() {
            self.device.synchronize()?;
        }
        self.halves = None;
        let size = (4 * bytes).next_power_of_two().clamp(LEAST_HALF, 2 * MOST_STAGED);
        let half = || {
            let (memory, copied) = self.pinned(size)?;
            Ok(Half { memory, used: 0, copied })
        };
        self.halves = Some([half()?, half()?]);
        self.current = 0;
        Ok(())
    }

    /// Starts to copy `parts` (device address, bytes), one after the other, after
    /// everything before; gives the number to [`Staging::collect`] them by.
    pub fn fetch(&mut self, parts: &[(u64, usize)]) -> Result<usize> {
        let total: usize = parts.iter().map(|(_, bytes)| bytes).sum();
        let fits = |slot: &Slot| !slot.busy && slot.memory.bytes >= total;
        let id = match self.slots.iter().position(fits) {
            Some(id) => id,
            None => {
                let (memory, arrived) = self.pinned(total.next_power_of_two())?;
                self.slots.push(Slot { memory, arrived, busy: false });
                self.slots.len() - 1
            }
        };
        let slot = &mut self.slots[id];
        let mut rest = slot.memory.bytes_mut();
        for &(from, bytes) in parts {
            let (part, after) = rest.split_at_mut(bytes);
            self.device.copy_out(from, part)?;
            rest = after;
        }
        let failed = self.device.failed("cannot record a copy from the device");
        slot.arrived.record(self.device.stream()).map_err(failed)?;
        slot.busy = true;
        Ok(id)
    }

    /// Waits for a fetch, and calls `f` with its bytes, in the order of the parts.
    pub fn collect<T>(&mut self, id: usize, f: impl FnOnce(&[u8]) -> T) -> Result<T> {
        let slot = &mut self.slots[id];
        slot.arrived.synchronize().map_err(|e| self.device.work_failed(e))?;
        slot.busy = false;
        Ok(f(slot.memory.bytes_mut()))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Copies may be under way; an error was reported by the call that met it first.
        let _ = self.device.synchronize();
    }
}
