//! Modules and functions.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use super::errors::{self, Code};
use super::{Driver, Function, Handle, Kind, enter, give};
use crate::gpu::Gpu;

const ELF: u32 = 0x464c_457f;
const FATBIN: u32 = 0xba55_ed50;
const FATBIN_WRAPPER: u32 = 0x4662_43b1;

// CUjit_option
const JIT_ERROR_LOG: c_uint = 5;
const JIT_ERROR_LOG_BYTES: c_uint = 6;

/// The architecture that machine code is for: 90 for sm_90.
///
/// # Safety
/// `image` is an ELF file for a GPU, or a fat binary.
unsafe fn architecture(image: *const c_void) -> u32 {
    let word = |at: usize| {
        // SAFETY: the headers of both are longer.
        unsafe { image.byte_add(at).cast::<u32>().read_unaligned() }
    };
    match word(0) {
        // Of e_flags the second byte; the first one before the eighth version of the ABI.
        ELF if word(8) & 0xff >= 8 => word(48) >> 8 & 0xff,
        ELF => word(48) & 0xff,
        // A header of that many bytes, then that of the first entry.
        _ => word((word(4) >> 16) as usize + 28),
    }
}

impl Driver {
    /// Loads PTX text; binaries are refused as a card of another architecture would.
    fn load(&mut self, image: *const c_void) -> Result<Handle, (Code, String)> {
        if image.is_null() {
            return Err((errors::INVALID_VALUE, "no image".to_string()));
        }
        // SAFETY: a module image has at least four bytes, and text ends in NUL.
        let bytes = unsafe {
            let magic = image.cast::<u32>().read_unaligned();
            if matches!(magic, ELF | FATBIN) {
                self.refused_code.push(architecture(image));
            }
            if matches!(magic, ELF | FATBIN | FATBIN_WRAPPER) {
                let text = "a binary for a GPU; softgpu takes PTX".to_string();
                return Err((errors::NO_BINARY_FOR_GPU, text));
            }
            CStr::from_ptr(image.cast()).to_bytes()
        };
        let text = std::str::from_utf8(bytes)
            .map_err(|_| (errors::INVALID_PTX, "not text".to_string()))?;
        match self.gpu.load(text) {
            Ok(module) => {
                let handle = self.handle(Kind::Module);
                self.modules.insert(handle, module);
                Ok(handle)
            }
            Err(error) => {
                eprintln!("softgpu: {error}");
                let code = if error.text == ".target" {
                    errors::NO_BINARY_FOR_GPU
                } else {
                    errors::INVALID_PTX
                };
                Err((code, error.to_string()))
            }
        }
    }
}

/// # Safety
/// `out` is valid for writing, `image` is PTX ending in NUL or a binary.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadData(out: *mut Handle, image: *const c_void) -> Code {
    enter("cuModuleLoadData", |d| {
        let handle = d.load(image).map_err(|e| e.0)?;
        // SAFETY: the caller's promise.
        unsafe { give(out, handle) }
    })
}

/// # Safety
/// As cuModuleLoadData; the option arrays have `n` entries.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadDataEx(
    out: *mut Handle,
    image: *const c_void,
    n: c_uint,
    options: *mut c_uint,
    values: *mut *mut c_void,
) -> Code {
    enter("cuModuleLoadDataEx", |d| match d.load(image) {
        // SAFETY: the caller's promise.
        Ok(handle) => unsafe { give(out, handle) },
        Err((code, log)) => {
            let (mut buffer, mut len) = (std::ptr::null_mut::<u8>(), 0usize);
            for k in 0..n as usize {
                // SAFETY: the caller's promise.
                let (option, value) = unsafe { (*options.add(k), *values.add(k)) };
                match option {
                    JIT_ERROR_LOG => buffer = value.cast(),
                    JIT_ERROR_LOG_BYTES => len = value as usize,
                    _ => {}
                }
            }
            // SAFETY: the caller's promise about its buffer.
            unsafe { super::give_text(&log, buffer, len) };
            Err(code)
        }
    })
}

/// # Safety
/// `out` is valid for writing, `path` is a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoad(out: *mut Handle, path: *const c_char) -> Code {
    enter("cuModuleLoad", |d| {
        if path.is_null() {
            return Err(errors::INVALID_VALUE);
        }
        // SAFETY: the caller's promise.
        let path = unsafe { CStr::from_ptr(path) }.to_string_lossy().into_owned();
        let mut image = std::fs::read(path).map_err(|_| errors::FILE_NOT_FOUND)?;
        image.extend([0; 4]);
        let handle = d.load(image.as_ptr().cast()).map_err(|e| e.0)?;
        // SAFETY: the caller's promise.
        unsafe { give(out, handle) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuModuleUnload(module: Handle) -> Code {
    enter("cuModuleUnload", |d| {
        // Work that still runs the module's kernels completes first.
        d.drain_all();
        let loaded = d.modules.remove(&module).ok_or(errors::INVALID_HANDLE)?;
        d.functions.retain(|_, f| f.module != module);
        d.gpu.unload(&loaded);
        Ok(())
    })
}

/// # Safety
/// `out` is valid for writing, `name` is a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(
    out: *mut Handle,
    module: Handle,
    name: *const c_char,
) -> Code {
    enter("cuModuleGetFunction", |d| {
        if name.is_null() {
            return Err(errors::INVALID_VALUE);
        }
        // SAFETY: the caller's promise.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
        let loaded = d.modules.get(&module).ok_or(errors::INVALID_HANDLE)?;
        let program = loaded.kernel(&name).ok_or(errors::NOT_FOUND)?;
        let max_dynamic = Gpu::default_dynamic(&program);
        let handle = d.handle(Kind::Function);
        d.functions.insert(handle, Function { program, module, max_dynamic });
        // SAFETY: the caller's promise.
        unsafe { give(out, handle) }
    })
}

/// # Safety
/// The out-pointers are null or valid for writing, `name` is a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetGlobal_v2(
    address: *mut u64,
    bytes: *mut usize,
    module: Handle,
    name: *const c_char,
) -> Code {
    enter("cuModuleGetGlobal_v2", |d| {
        if name.is_null() {
            return Err(errors::INVALID_VALUE);
        }
        // SAFETY: the caller's promise.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
        let loaded = d.modules.get(&module).ok_or(errors::INVALID_HANDLE)?;
        let var = loaded.global(&name).ok_or(errors::NOT_FOUND)?;
        // SAFETY: the caller's promise.
        unsafe {
            if !address.is_null() {
                give(address, var.address)?;
            }
            if !bytes.is_null() {
                give(bytes, var.bytes as usize)?;
            }
        }
        Ok(())
    })
}

/// # Safety
/// `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncGetAttribute(
    out: *mut c_int,
    attribute: c_uint,
    function: Handle,
) -> Code {
    enter("cuFuncGetAttribute", |d| {
        let (major, minor) = d.gpu.chip.compute;
        let f = d.functions.get(&function).ok_or(errors::INVALID_HANDLE)?;
        let p = &f.program;
        let value = match attribute {
            0 => p.max_threads.map_or(1024, |(m, _)| m[0] * m[1] * m[2]),
            1 => p.shared_bytes,
            2 => 0,
            3 => p.functions[0].local_bytes,
            4 => p.registers,
            5 | 6 => major * 10 + minor,
            7 => 0,
            8 => f.max_dynamic,
            9 => u32::MAX,
            _ => return Err(errors::INVALID_VALUE),
        };
        // SAFETY: the caller's promise.
        unsafe { give(out, value as c_int) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuFuncSetAttribute(function: Handle, attribute: c_uint, value: c_int) -> Code {
    enter("cuFuncSetAttribute", |d| {
        let optin = d.gpu.chip.shared_per_block_optin;
        let f = d.functions.get_mut(&function).ok_or(errors::INVALID_HANDLE)?;
        match attribute {
            8 => {
                let bytes = u32::try_from(value).map_err(|_| errors::INVALID_VALUE)?;
                if bytes + f.program.shared_bytes > optin {
                    return Err(errors::INVALID_VALUE);
                }
                f.max_dynamic = bytes;
                Ok(())
            }
            // Preferred carveout: a hint.
            9 if (-1..=100).contains(&value) => Ok(()),
            _ => Err(errors::INVALID_VALUE),
        }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuFuncSetCacheConfig(function: Handle, config: c_uint) -> Code {
    enter("cuFuncSetCacheConfig", |d| {
        if config > 3 {
            return Err(errors::INVALID_VALUE);
        }
        d.functions.get(&function).map(|_| ()).ok_or(errors::INVALID_HANDLE)
    })
}
