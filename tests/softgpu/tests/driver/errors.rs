//! What a program that does wrong is told, and errors that are injected.

use std::ffi::CString;

use cudarc::driver::{LaunchConfig, PushKernelArg, sys};

use crate::{Device, PTX, add, isolated, stderr};

#[test]
fn out_of_memory_is_an_error_not_a_crash() {
    isolated(
        "errors::out_of_memory_is_an_error_not_a_crash",
        &[("SOFTGPU_MEMORY", "1048576")],
        || {
            let d = Device::new();
            let big = d.stream.alloc_zeros::<u8>(2 << 20).map(|_| ()).map_err(|e| e.0 as u32);
            assert_eq!(big, Err(2));
            let small = d.stream.alloc_zeros::<u8>(1 << 19);
            assert!(small.is_ok());
        },
    );
}

#[test]
fn bad_launches_are_refused() {
    isolated("errors::bad_launches_are_refused", &[], || {
        let d = Device::new();
        let f = d.function("add");
        let mut x = d.stream.alloc_zeros::<f32>(10).expect("zeros");
        let (v, n) = (1.0f32, 10u32);
        let bad = [
            LaunchConfig { grid_dim: (1, 1, 1), block_dim: (2048, 1, 1), shared_mem_bytes: 0 },
            LaunchConfig { grid_dim: (0, 1, 1), block_dim: (32, 1, 1), shared_mem_bytes: 0 },
            LaunchConfig { grid_dim: (1, 1, 1), block_dim: (32, 1, 1), shared_mem_bytes: 64 << 10 },
        ];
        for config in bad {
            let mut launch = d.stream.launch_builder(&f);
            launch.arg(&mut x).arg(&v).arg(&n);
            // SAFETY: the arguments match; the shape is what is refused.
            let code = unsafe { launch.launch(config) }.map(|_| ()).map_err(|e| e.0 as u32);
            assert_eq!(code, Err(1));
        }
        // With the attribute raised the same shared memory is granted.
        let g = d.function("shared");
        let most = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        g.set_attribute(most, 64 << 10).expect("attribute");
        let mut out = d.stream.alloc_zeros::<u32>(1).expect("zeros");
        let mut launch = d.stream.launch_builder(&g);
        launch.arg(&mut out);
        let config = LaunchConfig { block_dim: (1, 1, 1), ..bad[2] };
        // SAFETY: the arguments match.
        unsafe { launch.launch(config) }.map(|_| ()).expect("launch");
        assert_eq!(d.stream.clone_dtoh(&out).expect("download"), [64 << 10]);
    });
}

#[test]
fn a_store_past_the_end_is_named_and_sticks() {
    let output = isolated("errors::a_store_past_the_end_is_named_and_sticks", &[], || {
        let d = Device::new();
        let f = d.function("beyond");
        let mut x = d.stream.alloc_zeros::<f32>(100).expect("zeros");
        let mut launch = d.stream.launch_builder(&f);
        launch.arg(&mut x);
        let config =
            LaunchConfig { grid_dim: (1, 1, 1), block_dim: (1, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the arguments match; the kernel's defect is the point.
        unsafe { launch.launch(config) }.map(|_| ()).expect("the launch itself is accepted");
        assert_eq!(d.stream.synchronize().map_err(|e| e.0 as u32), Err(700));
        assert_eq!(d.stream.synchronize().map_err(|e| e.0 as u32), Err(700));
        std::process::exit(finish());
    });
    if let Some(output) = output {
        let text = stderr(&output);
        assert!(text.contains("out-of-bounds"), "{text}");
        assert!(text.contains("kernel beyond"), "{text}");
        assert!(text.contains("0 bytes past the end"), "{text}");
    }
}

/// A child that cannot drop its context (the error sticks) ends here, as passed.
fn finish() -> i32 {
    println!("1 passed");
    0
}

#[test]
fn a_kernel_that_never_ends_is_stopped() {
    let output = isolated(
        "errors::a_kernel_that_never_ends_is_stopped",
        &[("SOFTGPU_MAX_STEPS", "100000")],
        || {
            let d = Device::new();
            let f = d.function("forever");
            let config =
                LaunchConfig { grid_dim: (1, 1, 1), block_dim: (32, 1, 1), shared_mem_bytes: 0 };
            // SAFETY: no arguments.
            unsafe { d.stream.launch_builder(&f).launch(config) }.map(|_| ()).expect("launch");
            assert_eq!(d.stream.synchronize().map_err(|e| e.0 as u32), Err(702));
            std::process::exit(finish());
        },
    );
    if let Some(output) = output {
        assert!(stderr(&output).contains("step-limit"), "{}", stderr(&output));
    }
}

#[test]
fn injected_faults_hit_the_named_call() {
    let env = [("SOFTGPU_FAULT", "cuMemAllocAsync:2:2,cuLaunchKernel:1:719")];
    isolated("errors::injected_faults_hit_the_named_call", &env, || {
        let d = Device::new();
        let mut first = d.stream.alloc_zeros::<f32>(10).expect("the first allocation is spared");
        assert_eq!(d.stream.alloc_zeros::<f32>(10).map(|_| ()).map_err(|e| e.0 as u32), Err(2));
        let f = d.function("add");
        assert_eq!(add(&d.stream, &f, &mut first, 1.0).map_err(|e| e.0 as u32), Err(719));
        add(&d.stream, &f, &mut first, 1.0).expect("the second launch is spared");
        assert_eq!(d.stream.clone_dtoh(&first).expect("download"), vec![1.0; 10]);
    });
}

#[test]
fn a_malformed_module_is_invalid_ptx_and_a_cubin_has_no_binary() {
    isolated("errors::a_malformed_module_is_invalid_ptx_and_a_cubin_has_no_binary", &[], || {
        let d = Device::new();
        let bad = PTX.replace("add.f32", "frobnicate.f32");
        let code = |text: &str| {
            d.ctx
                .load_module(cudarc::nvrtc::Ptx::from_src(text))
                .map(|_| ())
                .map_err(|e| e.0 as u32)
        };
        assert_eq!(code(&bad), Err(218));
        assert_eq!(code("hello"), Err(218));
        assert_eq!(code(&PTX.replace("sm_80", "sm_90")), Err(209));
        let mut elf = [0u8; 64];
        elf[..4].copy_from_slice(b"\x7fELF");
        let mut log = [0u8; 256];
        // SAFETY: the image has its magic; the options describe the buffer.
        unsafe {
            let mut module = std::ptr::null_mut();
            let result = sys::cuModuleLoadData(&mut module, elf.as_ptr().cast());
            assert_eq!(result as u32, 209);
            let text = CString::new(bad).expect("text");
            let mut options = [
                sys::CUjit_option_enum::CU_JIT_ERROR_LOG_BUFFER,
                sys::CUjit_option_enum::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
            ];
            let mut values = [log.as_mut_ptr().cast(), log.len() as *mut std::ffi::c_void];
            let result = sys::cuModuleLoadDataEx(
                &mut module,
                text.as_ptr().cast(),
                2,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            );
            assert_eq!(result as u32, 218);
        }
        let log = String::from_utf8_lossy(&log);
        assert!(log.contains("ptx line 24") && log.contains("frobnicate"), "{log}");
    });
}

#[test]
fn leaks_are_reported_when_the_context_ends() {
    let output = isolated("errors::leaks_are_reported_when_the_context_ends", &[], || {
        let d = Device::new();
        let x = d.stream.alloc_zeros::<f32>(10).expect("zeros");
        let _ = x.leak();
        drop(d);
    });
    if let Some(output) = output {
        assert!(stderr(&output).contains("leak: 1 allocations (40 bytes)"), "{}", stderr(&output));
    }
}

#[test]
fn freeing_twice_is_named() {
    let output = isolated("errors::freeing_twice_is_named", &[], || {
        let _d = Device::new();
        // SAFETY: raw calls; the second free is the point.
        unsafe {
            let p = cudarc::driver::result::malloc_sync(64).expect("alloc");
            cudarc::driver::result::free_sync(p).expect("free");
            let code = cudarc::driver::result::free_sync(p).map_err(|e| e.0 as u32);
            assert_eq!(code, Err(1));
        }
    });
    if let Some(output) = output {
        assert!(stderr(&output).contains("double-free"), "{}", stderr(&output));
    }
}
