//! Warp instructions a second on one core, checks on. Throughput is in elements: one warp
//! instruction each. Time is this thread's processor time, so that a busy machine measures much the
//! same as a quiet one.
#![allow(unsafe_code)] // The thread's clock is a C call.

use std::time::Duration;

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use softgpu::exec::Dims;
use softgpu::gpu::{Gpu, Module};
use softgpu::settings::{MmaMode, Settings};

/// A kernel whose loop body is `body` repeated; pointers to 4 MiB in %rd1 (this thread's word) and
/// to shared memory in %r3.
fn kernel(body: &str, repeat: usize) -> String {
    let mut text = String::from(
        r#".version 8.0
.target sm_80
.address_size 64
.visible .entry run(.param .u64 run_0, .param .u32 run_1)
{
    .reg .pred %p<2>;
    .reg .b32 %r<30>;
    .reg .f32 %f<20>;
    .reg .b64 %rd<8>;
    .shared .align 16 .b8 tile[16384];
    ld.param.u64 %rd2, [run_0];
    ld.param.u32 %r1, [run_1];
    mov.u32 %r2, %tid.x;
    mov.u32 %r4, %ctaid.x;
    mad.lo.s32 %r5, %r4, 256, %r2;
    mul.wide.u32 %rd3, %r5, 16;
    add.s64 %rd1, %rd2, %rd3;
    mov.u32 %r6, tile;
    mad.lo.s32 %r3, %r2, 16, %r6;
    mov.f32 %f1, 0f3F800000; mov.f32 %f2, 0f3F000000; mov.f32 %f3, 0f00000000; mov.f32 %f4, 0f3F800000;
    mov.f32 %f5, 0f3F800000; mov.f32 %f6, 0f3F000000; mov.f32 %f7, 0f00000000; mov.f32 %f8, 0f3F800000;
    mov.u32 %r10, 0; mov.u32 %r11, 0; mov.u32 %r12, 0; mov.u32 %r13, 0; mov.u32 %r14, 0; mov.u32 %r15, 0;
    st.shared.v4.f32 [%r3], {%f1, %f2, %f3, %f4};
$loop:
"#,
    );
    for _ in 0..repeat {
        text.push_str(body);
        text.push('\n');
    }
    text.push_str("    add.s32 %r1, %r1, -1;\n    setp.ne.s32 %p1, %r1, 0;\n    @%p1 bra $loop;\n    ret;\n}\n");
    text
}

/// Processor time of the calling thread.
struct ThreadTime;

impl ThreadTime {
    fn now() -> Duration {
        let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the clock exists on Linux and `t` is valid for writing.
        let code = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut t) };
        assert_eq!(code, 0);
        Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
    }
}

impl Measurement for ThreadTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        ThreadTime::now()
    }

    fn end(&self, start: Duration) -> Duration {
        ThreadTime::now() - start
    }

    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        *a + *b
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        WallTime.to_f64(value)
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

struct Bench {
    gpu: Gpu,
    module: Module,
    params: Vec<u8>,
}

const BLOCKS: u32 = 8;
const LOOPS: u32 = 100;

impl Bench {
    fn new(text: &str, mma: MmaMode) -> Bench {
        let settings = Settings { threads: 1, mma, ..Settings::default() };
        let mut gpu = Gpu::new(settings).expect("device");
        let module = gpu.load(text).unwrap_or_else(|e| panic!("{e}"));
        let data = gpu.memory.alloc(4 << 20).expect("memory");
        assert!(gpu.memory.fill(data, 0, 4 << 20));
        Bench { gpu, module, params: data.to_le_bytes().to_vec() }
    }

    /// Runs the loop so many times; returns warp instructions.
    fn run(&mut self, loops: u32) -> u64 {
        let program = self.module.kernel("run").expect("kernel");
        let dims = Dims { grid: [BLOCKS, 1, 1], block: [256, 1, 1], dynamic_shared: 0 };
        self.params.truncate(8);
        self.params.extend(loops.to_le_bytes());
        self.gpu.launch(&program, dims, &self.params, false).expect("clean run").warp_instructions
    }
}

fn executor(c: &mut Criterion<ThreadTime>) {
    let mma = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f4,%f5,%f6,%f7}, {%r10,%r11,%r12,%r13}, {%r14,%r15}, {%f4,%f5,%f6,%f7};";
    let ldmatrix = "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r10,%r11,%r12,%r13}, [%r3];";
    let copy = "cp.async.cg.shared.global [%r3], [%rd1], 16;\ncp.async.wait_all;";
    let cases = [
        ("arithmetic/f32", "fma.rn.f32 %f3, %f1, %f2, %f3;\nadd.f32 %f4, %f3, %f1;", MmaMode::Fast),
        (
            "arithmetic/integer",
            "mad.lo.s32 %r10, %r5, %r4, %r10;\nxor.b32 %r11, %r10, %r5;",
            MmaMode::Fast,
        ),
        ("memory/global-load-32", "ld.global.f32 %f3, [%rd3x];", MmaMode::Fast),
        ("memory/global-store-32", "st.global.f32 [%rd3x], %f3;", MmaMode::Fast),
        ("memory/global-load-128", "ld.global.v4.f32 {%f1,%f2,%f3,%f4}, [%rd1];", MmaMode::Fast),
        ("memory/global-store-128", "st.global.v4.f32 [%rd1], {%f1,%f2,%f3,%f4};", MmaMode::Fast),
        ("memory/shared-load-32", "ld.shared.f32 %f3, [%r3x];", MmaMode::Fast),
        ("memory/shared-store-32", "st.shared.f32 [%r3x], %f3;", MmaMode::Fast),
        ("memory/shared-load-128", "ld.shared.v4.f32 {%f1,%f2,%f3,%f4}, [%r3];", MmaMode::Fast),
        ("memory/shared-store-128", "st.shared.v4.f32 [%r3], {%f1,%f2,%f3,%f4};", MmaMode::Fast),
        ("memory/shared-broadcast", "ld.shared.f32 %f3, [tile];", MmaMode::Fast),
        ("memory/shared-strided", "ld.shared.f32 %f3, [%r3];", MmaMode::Fast),
        ("memory/ldmatrix", ldmatrix, MmaMode::Fast),
        ("memory/cp-async-128", copy, MmaMode::Fast),
        ("mma/fast", mma, MmaMode::Fast),
        ("mma/a100", mma, MmaMode::A100),
    ];
    for (name, body, mode) in cases {
        // 32-bit accesses by consecutive lanes need their own addresses.
        let text = kernel(&body.replace("%rd3x", "%rd5").replace("%r3x", "%r7"), 32)
            .replace("$loop:\n", "    mul.wide.u32 %rd4, %r5, 4;\n    add.s64 %rd5, %rd2, %rd4;\n    mad.lo.s32 %r7, %r2, 4, %r6;\n    bar.sync 0;\n$loop:\n");
        let mut bench = Bench::new(&text, mode);
        // Not counted by a full run: that would take long for cases that are filtered out.
        let (one, two) = (bench.run(1), bench.run(2));
        let instructions = one + u64::from(LOOPS - 1) * (two - one);
        let mut group = c.benchmark_group("executor");
        group.throughput(Throughput::Elements(instructions)).sample_size(10);
        group.bench_function(name, |b| b.iter(|| bench.run(LOOPS)));
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(ThreadTime);
    targets = executor
}
criterion_main!(benches);
