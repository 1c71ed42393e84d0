//! cudarc, unmodified, on the software GPU: each test runs in a process of its own, with the
//! library preloaded so that a later `dlopen("libcuda.so")` finds it by its soname.
#![allow(unsafe_code)] // dlopen, launches, environment.

#[path = "../common/mod.rs"]
mod common;
mod errors;
mod graphs;

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;

use cudarc::driver::{
    CudaContext, CudaFunction, CudaSlice, CudaStream, DriverError, LaunchConfig, PushKernelArg, sys,
};

/// Adds a number to every element; a second kernel reads its input, a third runs forever, a fourth
/// stores past the end.
const PTX: &str = r#"
.version 8.0
.target sm_80
.address_size 64
.global .align 4 .u32 counter = 7;
.visible .entry add(.param .u64 add_0, .param .f32 add_1, .param .u32 add_2)
{
    .reg .pred %p<2>;
    .reg .b32 %r<6>;
    .reg .f32 %f<4>;
    .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [add_0];
    ld.param.f32 %f1, [add_1];
    ld.param.u32 %r1, [add_2];
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.s32 %r5, %r2, %r3, %r4;
    setp.ge.u32 %p1, %r5, %r1;
    @%p1 bra $done;
    mul.wide.u32 %rd2, %r5, 4;
    add.s64 %rd3, %rd1, %rd2;
    ld.global.f32 %f2, [%rd3];
    add.f32 %f3, %f2, %f1;
    st.global.f32 [%rd3], %f3;
$done:
    ret;
}
.visible .entry forever()
{
$loop:
    bra $loop;
}
.visible .entry beyond(.param .u64 beyond_0)
{
    .reg .b32 %r<2>;
    .reg .b64 %rd<2>;
    ld.param.u64 %rd1, [beyond_0];
    mov.u32 %r1, 5;
    st.global.u32 [%rd1+400], %r1;
    ret;
}
.visible .entry shared(.param .u64 shared_0)
{
    .reg .b32 %r<4>;
    .reg .b64 %rd<2>;
    .extern .shared .align 16 .b8 dynamic[];
    ld.param.u64 %rd1, [shared_0];
    mov.u32 %r1, %dynamic_smem_size;
    mov.u32 %r2, dynamic;
    add.s32 %r2, %r2, %r1;
    st.shared.u32 [%r2+-4], %r1;
    ld.shared.u32 %r3, [%r2+-4];
    st.global.u32 [%rd1], %r3;
    ret;
}
"#;

fn library() -> PathBuf {
    let exe = std::env::current_exe().expect("path of the test");
    let deps = exe.parent().expect("deps folder");
    [deps, deps.parent().expect("profile folder")]
        .iter()
        .map(|d| d.join("libsoftgpu.so"))
        .find(|p| p.exists())
        .expect("libsoftgpu.so beside the test")
}

fn preload() {
    let path = CString::new(library().as_os_str().as_bytes()).expect("path");
    // SAFETY: loading the library under test.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    assert!(!handle.is_null(), "libsoftgpu.so does not load");
}

/// Runs `body` in a child process with these variables and returns what it said.
fn isolated(name: &str, env: &[(&str, &str)], body: impl FnOnce()) -> Option<Output> {
    if std::env::var("SOFTGPU_TEST_CHILD").is_ok_and(|v| v == name) {
        preload();
        body();
        return None;
    }
    let exe = std::env::current_exe().expect("path of the test");
    Some(child(name, Command::new(exe).env("SOFTGPU_TEST_CHILD", name).envs(env.iter().copied())))
}

/// Runs one test of this binary by a command that ends in the binary's path.
fn child(name: &str, command: &mut Command) -> Output {
    command.args([name, "--exact", "--nocapture", "--test-threads=1"]);
    let output = command.output().expect("child runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{name}:\n{out}\n{text}");
    assert!(out.contains("1 passed"), "{name} did not run in the child");
    output
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

struct Device {
    ctx: Arc<CudaContext>,
    stream: Arc<CudaStream>,
}

impl Device {
    fn new() -> Device {
        let ctx = CudaContext::new(0).expect("context");
        let stream = ctx.new_stream().expect("stream");
        Device { ctx, stream }
    }

    fn function(&self, name: &str) -> CudaFunction {
        let module = self.ctx.load_module(cudarc::nvrtc::Ptx::from_src(PTX)).expect("module");
        module.load_function(name).expect("function")
    }
}

fn add(
    stream: &Arc<CudaStream>,
    f: &CudaFunction,
    x: &mut CudaSlice<f32>,
    v: f32,
) -> Result<(), DriverError> {
    let n = x.len() as u32;
    let mut launch = stream.launch_builder(f);
    launch.arg(x).arg(&v).arg(&n);
    // SAFETY: the arguments match the kernel.
    unsafe { launch.launch(LaunchConfig::for_num_elems(n)) }.map(|_| ())
}

#[test]
fn device_answers_by_its_own_name() {
    isolated("device_answers_by_its_own_name", &[("SOFTGPU_CC", "8.6")], || {
        let d = Device::new();
        assert_eq!(d.ctx.name().expect("name"), "softgpu 8.6");
        assert_eq!(d.ctx.compute_capability().expect("capability"), (8, 6));
        let major = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR;
        assert_eq!(d.ctx.attribute(major).expect("attribute"), 8);
        let optin = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        assert_eq!(d.ctx.attribute(optin).expect("attribute"), 99 << 10);
    });
}

#[test]
fn with_runs_a_program_that_knows_nothing_of_it() {
    let name = "with_runs_a_program_that_knows_nothing_of_it";
    if std::env::var("SOFTGPU_TEST_CHILD").is_ok_and(|v| v == name) {
        let d = Device::new();
        assert_eq!(d.ctx.name().expect("name"), "softgpu 8.0");
        let f = d.function("add");
        let mut x = d.stream.clone_htod(&[1f32; 100]).expect("upload");
        add(&d.stream, &f, &mut x, 2.0).expect("launch");
        assert_eq!(d.stream.clone_dtoh(&x).expect("download"), vec![3.0; 100]);
        return;
    }
    let mut command = Command::new(common::here().join("with"));
    command.arg(std::env::current_exe().expect("path of the test"));
    child(name, command.env("SOFTGPU_TEST_CHILD", name).env("SOFTGPU_LIBRARY", library()));
}

#[test]
fn every_symbol_cudarc_can_ask_for_is_exported() {
    isolated("every_symbol_cudarc_can_ask_for_is_exported", &[], || {
        let list = include_str!("../driver-symbols.txt");
        // 96 that cudarc's safe layer can ask for, and what is used beside it.
        assert_eq!(list.lines().count(), 102);
        let path = CString::new("libcuda.so").expect("name");
        // SAFETY: finds the preloaded library by its soname; looks symbols up.
        unsafe {
            let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
            assert!(!handle.is_null());
            for name in list.lines() {
                let symbol = CString::new(name).expect("symbol");
                assert!(!libc::dlsym(handle, symbol.as_ptr()).is_null(), "{name} is missing");
            }
        }
    });
}

#[test]
fn copies_and_launches_round_trip() {
    for mode in ["eager", "late"] {
        isolated("copies_and_launches_round_trip", &[("SOFTGPU_ASYNC", mode)], || {
            let d = Device::new();
            let f = d.function("add");
            let host: Vec<f32> = (0..1000).map(|i| i as f32).collect();
            let mut x = d.stream.clone_htod(&host).expect("upload");
            add(&d.stream, &f, &mut x, 0.5).expect("launch");
            add(&d.stream, &f, &mut x, 1.0).expect("launch");
            let back = d.stream.clone_dtoh(&x).expect("download");
            assert!(back.iter().zip(&host).all(|(b, h)| *b == h + 1.5));
            let zeros = d.stream.alloc_zeros::<f32>(33).expect("zeros");
            assert_eq!(d.stream.clone_dtoh(&zeros).expect("download"), vec![0.0; 33]);
            let copy = d.stream.clone_dtod(&x).expect("copy");
            assert_eq!(d.stream.clone_dtoh(&copy).expect("download"), back);
        });
    }
}

#[test]
fn two_streams_meet_at_events() {
    for seed in ["0", "1", "2"] {
        isolated("two_streams_meet_at_events", &[("SOFTGPU_SEED", seed)], || {
            let d = Device::new();
            let f = d.function("add");
            let other = d.ctx.new_stream().expect("stream");
            let mut x = d.stream.alloc_zeros::<f32>(256).expect("zeros");
            for k in 0..10 {
                let stream = if k % 2 == 0 { &d.stream } else { &other };
                add(stream, &f, &mut x, 1.0).expect("launch");
                let event = stream.record_event(None).expect("event");
                let next = if k % 2 == 0 { &other } else { &d.stream };
                next.wait(&event).expect("wait");
            }
            let back = d.stream.clone_dtoh(&x).expect("download");
            assert_eq!(back, vec![10.0; 256]);
        });
    }
}

#[test]
fn missing_synchronisation_is_seen_by_the_host() {
    // Pinned memory read by the host before the stream was waited for: late mode has not copied.
    isolated("missing_synchronisation_is_seen_by_the_host", &[("SOFTGPU_ASYNC", "late")], || {
        let d = Device::new();
        let x = d.stream.clone_htod(&[1.0f32; 64]).expect("upload");
        d.stream.synchronize().expect("synchronize");
        use cudarc::driver::DevicePtr;
        let (address, _guard) = x.device_ptr(&d.stream);
        // SAFETY: pinned memory of 256 bytes, filled, then the target of a copy.
        unsafe {
            let p = cudarc::driver::result::malloc_host(256, 0).expect("pinned").cast::<f32>();
            p.write_bytes(0, 64);
            let pinned = std::slice::from_raw_parts_mut(p, 64);
            cudarc::driver::result::memcpy_dtoh_async(pinned, address, d.stream.cu_stream())
                .expect("copy");
            assert_eq!(pinned[0], 0.0, "the copy must not have happened yet");
            d.stream.synchronize().expect("synchronize");
            assert_eq!(pinned[0], 1.0);
            cudarc::driver::result::free_host(p.cast()).expect("free");
        }
    });
}

#[test]
fn a_cooperative_launch_meets_at_the_grids_barrier() {
    for (k, build) in common::BUILDS.into_iter().enumerate() {
        let Some(ptx) = common::compile("corpus", build) else { return };
        let seed = k.to_string();
        let env = [("SOFTGPU_CC", "9.0"), ("SOFTGPU_SEED", &seed)];
        isolated("a_cooperative_launch_meets_at_the_grids_barrier", &env, || {
            let d = Device::new();
            let module = d.ctx.load_module(cudarc::nvrtc::Ptx::from_src(&ptx)).expect("module");
            let f = module.load_function("grid_normalise").expect("function");
            let n = 500;
            let a = d.stream.clone_htod(&vec![2f32; n]).expect("upload");
            let mut out = d.stream.alloc_zeros::<f32>(n).expect("zeros");
            let mut part = d.stream.alloc_zeros::<f32>(7).expect("zeros");
            let mut last = d.stream.alloc_zeros::<f32>(1).expect("zeros");
            let len = n as i32;
            let launch = |grid: u32, out: &mut _, part: &mut _, last: &mut _| {
                let mut launch = d.stream.launch_builder(&f);
                launch.arg(out).arg(part).arg(last).arg(&a).arg(&len);
                let config = LaunchConfig {
                    grid_dim: (grid, 1, 1),
                    block_dim: (64, 1, 1),
                    shared_mem_bytes: 0,
                };
                // SAFETY: the arguments match the kernel.
                unsafe { launch.launch_cooperative(config) }.map(|_| ())
            };
            launch(7, &mut out, &mut part, &mut last).expect("launch");
            let got = d.stream.clone_dtoh(&out).expect("download");
            assert!(got.iter().all(|x| (x - 1.0 / n as f32).abs() < 1e-7));
            assert_eq!(d.stream.clone_dtoh(&last).expect("download"), got[..1]);
            // More blocks than the device holds at once can never meet.
            let code = launch(1 << 20, &mut out, &mut part, &mut last).map_err(|e| e.0 as u32);
            assert_eq!(code, Err(720));
        });
    }
}

#[test]
fn the_report_is_written() {
    let path = std::env::temp_dir().join(format!("softgpu-report-{}.json", std::process::id()));
    let text = path.to_string_lossy().into_owned();
    let output = isolated("the_report_is_written", &[("SOFTGPU_REPORT", &text)], || {
        let d = Device::new();
        let f = d.function("add");
        let mut x = d.stream.alloc_zeros::<f32>(1024).expect("zeros");
        add(&d.stream, &f, &mut x, 1.0).expect("launch");
        d.stream.synchronize().expect("synchronize");
    });
    if output.is_some() {
        let json = std::fs::read_to_string(&path).expect("report");
        std::fs::remove_file(&path).expect("report");
        let json: serde_json::Value = serde_json::from_str(&json).expect("json");
        let add = &json["kernels"]["add"];
        assert_eq!(add["global_load"]["requests"], 32);
        assert_eq!(add["global_load"]["sectors_per_request"], 4.0);
        assert_eq!(add["global_load"]["sector_efficiency"], 1.0);
        assert_eq!(add["unique_bytes_read"], 4096);
        assert_eq!(add["unique_bytes_written"], 4096);
    }
}
