//! Initialisation, devices, contexts, errors by name.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use super::errors::{self, Code};
use super::queue::Stream;
use super::{CURRENT, DRIVER, Driver, Handle, LEGACY, enter, give, initialise, unsupported};
use crate::finding::FindingKind;
use crate::settings::Settings;

fn device(ordinal: c_int) -> Result<(), Code> {
    if ordinal == 0 { Ok(()) } else { Err(errors::INVALID_DEVICE) }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuInit(flags: c_uint) -> Code {
    if flags != 0 {
        return errors::INVALID_VALUE;
    }
    match initialise() {
        0 => enter("cuInit", |_| Ok(())),
        code => code,
    }
}

/// # Safety
/// `version` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> Code {
    // Answers before cuInit, which is who complains of malformed settings.
    let settings = Settings::from_env().unwrap_or_default();
    // SAFETY: the caller's promise.
    match unsafe { give(version, settings.driver) } {
        Ok(()) => 0,
        Err(code) => code,
    }
}

/// # Safety
/// `symbol` is a C string, `pfn` and `status` are valid for writing or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetProcAddress_v2(
    symbol: *const c_char,
    pfn: *mut *mut c_void,
    _version: c_int,
    _flags: u64,
    status: *mut u32,
) -> Code {
    if symbol.is_null() || pfn.is_null() {
        return errors::INVALID_VALUE;
    }
    // SAFETY: the caller's promise; the handle is this library itself, found by an address in it.
    unsafe {
        let name = CStr::from_ptr(symbol);
        let mut info: libc::Dl_info = std::mem::zeroed();
        let here = cuGetProcAddress_v2 as *const c_void;
        let mut found = std::ptr::null_mut();
        if libc::dladdr(here, &mut info) != 0 {
            let library = libc::dlopen(info.dli_fname, libc::RTLD_NOW | libc::RTLD_NOLOAD);
            if !library.is_null() {
                let text = name.to_string_lossy();
                for suffix in ["_v4", "_v3", "_v2", ""] {
                    if let Ok(full) = std::ffi::CString::new(format!("{text}{suffix}")) {
                        found = libc::dlsym(library, full.as_ptr());
                    }
                    if !found.is_null() {
                        break;
                    }
                }
                libc::dlclose(library);
            }
        }
        *pfn = found;
        if !status.is_null() {
            // CU_GET_PROC_ADDRESS_SUCCESS or SYMBOL_NOT_FOUND
            *status = u32::from(found.is_null());
        }
        if found.is_null() { errors::NOT_FOUND } else { 0 }
    }
}

/// # Safety
/// `text` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(code: Code, text: *mut *const c_char) -> Code {
    // SAFETY: the caller's promise; the strings are static.
    unsafe { error_text(code, text, false) }
}

/// # Safety
/// `text` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(code: Code, text: *mut *const c_char) -> Code {
    // SAFETY: the caller's promise; the strings are static.
    unsafe { error_text(code, text, true) }
}

unsafe fn error_text(code: Code, text: *mut *const c_char, long: bool) -> Code {
    let found = errors::describe(code);
    let pointer = match found {
        Some((name, string)) => if long { string } else { name }.as_ptr(),
        None => std::ptr::null(),
    };
    // SAFETY: the caller's promise.
    let given = unsafe { give(text, pointer) };
    if found.is_none() || given.is_err() { errors::INVALID_VALUE } else { 0 }
}

/// # Safety
/// `count` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> Code {
    // SAFETY: the caller's promise.
    enter("cuDeviceGetCount", |_| unsafe { give(count, 1) })
}

/// # Safety
/// `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(out: *mut c_int, ordinal: c_int) -> Code {
    enter("cuDeviceGet", |_| {
        device(ordinal)?;
        // SAFETY: the caller's promise.
        unsafe { give(out, 0) }
    })
}

/// # Safety
/// `name` has `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, len: c_int, dev: c_int) -> Code {
    enter("cuDeviceGetName", |d| {
        device(dev)?;
        if name.is_null() || len <= 0 {
            return Err(errors::INVALID_VALUE);
        }
        // SAFETY: the caller's promise.
        unsafe { super::give_text(&d.gpu.chip.name(), name.cast(), len as usize) };
        Ok(())
    })
}

/// # Safety
/// `bytes` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, dev: c_int) -> Code {
    enter("cuDeviceTotalMem_v2", |d| {
        device(dev)?;
        // SAFETY: the caller's promise.
        unsafe { give(bytes, d.gpu.memory.limit() as usize) }
    })
}

/// # Safety
/// `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(
    out: *mut c_int,
    attribute: c_uint,
    dev: c_int,
) -> Code {
    enter("cuDeviceGetAttribute", |d| {
        device(dev)?;
        let value = d.gpu.chip.attribute(attribute).ok_or_else(|| {
            eprintln!("softgpu: cuDeviceGetAttribute {attribute} is not supported");
            errors::NOT_SUPPORTED
        })?;
        // SAFETY: the caller's promise.
        unsafe { give(out, value) }
    })
}

fn uuid() -> [u8; 16] {
    *b"softgpu-softgpu-"
}

/// # Safety
/// `out` is valid for writing 16 bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetUuid(out: *mut [u8; 16], dev: c_int) -> Code {
    enter("cuDeviceGetUuid", |_| {
        device(dev)?;
        // SAFETY: the caller's promise.
        unsafe { give(out, uuid()) }
    })
}

/// # Safety
/// `out` is valid for writing 16 bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetUuid_v2(out: *mut [u8; 16], dev: c_int) -> Code {
    enter("cuDeviceGetUuid_v2", |_| {
        device(dev)?;
        // SAFETY: the caller's promise.
        unsafe { give(out, uuid()) }
    })
}

/// # Safety
/// `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(out: *mut Handle, dev: c_int) -> Code {
    enter("cuDevicePrimaryCtxRetain", |d| {
        device(dev)?;
        d.context_uses += 1;
        // SAFETY: the caller's promise.
        unsafe { give(out, d.context) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(dev: c_int) -> Code {
    enter("cuDevicePrimaryCtxRelease_v2", |d| {
        device(dev)?;
        if d.context_uses == 0 {
            return Err(errors::INVALID_CONTEXT);
        }
        d.context_uses -= 1;
        if d.context_uses == 0 {
            d.end_context();
        }
        Ok(())
    })
}

impl Driver {
    /// The last user of the context is gone: what it left behind are leaks.
    fn end_context(&mut self) {
        self.drain_all();
        if !self.owned.is_empty() {
            let n = self.owned.len();
            let sizes: u64 = self
                .gpu
                .memory
                .allocations()
                .filter(|a| self.owned.contains_key(&a.0))
                .map(|a| a.1)
                .sum();
            let (address, call) = self.owned.iter().next().map_or((0, ""), |(a, c)| (*a, *c));
            let detail = format!(
                "{n} allocations ({sizes} bytes) were never freed, the first by {call} at 0x{address:x}"
            );
            self.host_finding(FindingKind::Leak, "context end", detail);
            for address in std::mem::take(&mut self.owned).into_keys() {
                // Owned addresses are live; a failure would have removed them.
                let _ = self.gpu.memory.free(address);
            }
        }
        for module in std::mem::take(&mut self.modules).into_values() {
            self.gpu.unload(&module);
        }
        self.functions.clear();
        self.graphs.clear();
        self.execs.clear();
        self.captures.clear();
        self.events.clear();
        self.streams.clear();
        self.streams.insert(LEGACY, Stream::new(true));
        self.write_report();
    }
}

fn current() -> Result<Handle, Code> {
    match CURRENT.get() {
        0 => Err(errors::INVALID_CONTEXT),
        handle => Ok(handle),
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCurrent(context: Handle) -> Code {
    enter("cuCtxSetCurrent", |d| {
        if context != 0 && context != d.context {
            return Err(errors::INVALID_CONTEXT);
        }
        CURRENT.set(context);
        Ok(())
    })
}

/// # Safety
/// `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetCurrent(out: *mut Handle) -> Code {
    // SAFETY: the caller's promise.
    enter("cuCtxGetCurrent", |_| unsafe { give(out, CURRENT.get()) })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSynchronize() -> Code {
    enter("cuCtxSynchronize", |d| {
        current()?;
        d.refuse_unsafe_during_capture()?;
        d.drain_all();
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetFlags(_flags: c_uint) -> Code {
    // Flags choose how the host waits; here it always just does.
    enter("cuCtxSetFlags", |_| current().map(|_| ()))
}

/// # Safety
/// `value` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetLimit(value: *mut usize, limit: c_uint) -> Code {
    enter("cuCtxGetLimit", |d| {
        current()?;
        let default = match limit {
            0 => 1024,
            1 => 1 << 20,
            2 => 8 << 20,
            _ => return Err(errors::INVALID_VALUE),
        };
        // SAFETY: the caller's promise.
        unsafe { give(value, d.limits.get(&limit).copied().unwrap_or(default)) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetLimit(limit: c_uint, value: usize) -> Code {
    enter("cuCtxSetLimit", |d| {
        current()?;
        if limit > 2 {
            return Err(errors::INVALID_VALUE);
        }
        d.limits.insert(limit, value);
        Ok(())
    })
}

/// # Safety
/// `config` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetCacheConfig(config: *mut c_uint) -> Code {
    // SAFETY: the caller's promise. There is no L1 cache to prefer.
    enter("cuCtxGetCacheConfig", |_| unsafe { give(config, 0) })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCacheConfig(config: c_uint) -> Code {
    enter("cuCtxSetCacheConfig", |_| if config > 3 { Err(errors::INVALID_VALUE) } else { Ok(()) })
}

/// # Safety
/// Both pointers are null or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetStreamPriorityRange(
    least: *mut c_int,
    greatest: *mut c_int,
) -> Code {
    enter("cuCtxGetStreamPriorityRange", |_| {
        // SAFETY: the caller's promise.
        unsafe {
            if !least.is_null() {
                give(least, 0)?;
            }
            if !greatest.is_null() {
                give(greatest, -5)?;
            }
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxCreate_v3(
    _ctx: *mut Handle,
    _params: *mut c_void,
    _n: c_int,
    _flags: c_uint,
    _dev: c_int,
) -> Code {
    unsupported("cuCtxCreate_v3")
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxCreate_v4(
    _ctx: *mut Handle,
    _params: *mut c_void,
    _flags: c_uint,
    _dev: c_int,
) -> Code {
    unsupported("cuCtxCreate_v4")
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxDestroy_v2(_ctx: Handle) -> Code {
    unsupported("cuCtxDestroy_v2")
}

#[unsafe(no_mangle)]
pub extern "C" fn cuProfilerStart() -> Code {
    enter("cuProfilerStart", |_| Ok(()))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuProfilerStop() -> Code {
    if let Ok(slot) = DRIVER.lock()
        && let Some(driver) = slot.as_ref()
    {
        driver.write_report();
    }
    enter("cuProfilerStop", |_| Ok(()))
}
