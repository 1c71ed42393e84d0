//! Misuse of tensor cores, asynchronous copies, collectives and ordering, and of launches and memory by
//! the host: every defect is named, the corrected twins pass under every seed. Plainer defects are in
//! bugs.rs; those that need the driver (leaks, a missing synchronisation) in driver.rs.
#![allow(unsafe_code)] // Plain data seen as bytes.

mod common;

use common::{Args, Build, Host, compile};
use softgpu::exec::Dims;
use softgpu::finding::{Finding, FindingKind};
use softgpu::gpu::Gpu;
use softgpu::memory::AllocError;
use softgpu::settings::{AsyncMode, Settings};

/// Orders every twin must survive.
const SEEDS: u64 = 20;
/// Elements of every buffer.
const N: usize = 256;

/// Name, grid, block, what must be found.
type Case = (&'static str, u32, u32, FindingKind);

#[rustfmt::skip] // A table.
const CASES: &[Case] = {
    use FindingKind::*;
    &[
        ("misaligned_atomic", 1, 32, Misaligned),
        ("shared_atomic_past_end", 1, 64, OutOfBounds),
        ("constant_past_end", 1, 32, OutOfBounds),
        ("module_variable_past_end", 1, 32, OutOfBounds),
        ("wrong_fragment_index", 1, 32, UninitialisedShared),
        ("ldmatrix_rows_never_written", 1, 32, UninitialisedShared),
        ("counter_never_cleared", 1, 64, UninitialisedGlobal),
        ("shared_kept_between_blocks", 4, 64, UninitialisedShared),
        ("shuffle_of_unwritten_register", 1, 32, UninitialisedRegister),
        ("unwritten_predicate", 1, 32, UninitialisedRegister),
        ("copy_not_awaited", 1, 64, AsyncCopyNotAwaited),
        ("copy_not_committed", 1, 64, AsyncCopyNotAwaited),
        ("copy_read_before_wait", 1, 64, AsyncCopyNotAwaited),
        ("copy_read_by_other_lanes", 1, 32, SharedRace),
        ("copy_overwrites_pending", 1, 32, AsyncCopyMisuse),
        ("store_over_pending_copy", 1, 32, AsyncCopyNotAwaited),
        ("ldmatrix_of_pending_copy", 1, 32, AsyncCopyNotAwaited),
        ("copy_source_size_too_large", 1, 32, AsyncCopyMisuse),
        ("copy_past_the_end", 1, 96, OutOfBounds),
        ("counter_read_without_barrier", 1, 64, SharedRace),
        ("halves_of_a_neighbour", 1, 64, SharedRace),
        ("halves_past_a_neighbour", 1, 32, SharedRace),
        ("store_beside_atomics", 4, 32, GlobalRace),
        ("fence_for_the_block_only", 4, 32, GlobalRace),
        ("atomic_for_the_block_only", 4, 32, GlobalRace),
        ("barrier_skipped_by_a_warp", 1, 64, BarrierDivergence),
        ("barrier_trip_counts_differ", 1, 64, BarrierDivergence),
        ("barrier_waits_for_too_many", 1, 64, BarrierDivergence),
        ("barrier_numbers_differ", 1, 64, BarrierDivergence),
        ("barrier_number_too_large", 1, 64, InvalidOperand),
        ("vote_in_a_branch", 1, 32, MissingLanes),
        ("reduce_in_a_branch", 1, 32, MissingLanes),
        ("syncwarp_in_a_branch", 1, 32, MissingLanes),
        ("shuffle_in_a_partial_warp", 1, 48, MissingLanes),
        ("masks_disagree", 1, 32, MissingLanes),
    ]
};

fn host(ptx: &str, seed: u64) -> Host {
    let asynchrony = if seed & 1 == 0 { AsyncMode::Late } else { AsyncMode::Eager };
    let memory = 64 << 20;
    Host::new(ptx, Settings { seed, asynchrony, memory, max_steps: 100_000, ..Settings::default() })
}

/// Compiled as for release: the defects are in the PTX, not in how it was made.
fn ptx() -> Option<String> {
    compile("misuse", Build { arch: 80, debug: false })
}

/// The arguments every kernel takes, on fresh memory.
fn arguments(host: &mut Host) -> Args {
    let out = host.alloc::<i32>(N);
    let counting: Vec<i32> = (0..N as i32).collect();
    let input = host.upload(&counting);
    Args::new().ptr(out).ptr(input).int(N as i32)
}

fn run(host: &mut Host, case: &Case, twin: &str) -> Result<(), Box<Finding>> {
    let (name, grid, block, _) = *case;
    let args = arguments(host);
    host.try_launch(&format!("{name}_{twin}"), grid, block, 0, &args).map(|_| ())
}

#[test]
fn every_defect_is_named_whatever_the_seed() {
    let Some(ptx) = ptx() else { return };
    let mut wrong = Vec::new();
    for seed in 0..4 {
        let mut host = host(&ptx, seed);
        for case in CASES {
            match run(&mut host, case, "bug") {
                Err(finding) if finding.kind == case.3 => {
                    assert_eq!(finding.kernel, format!("{}_bug", case.0));
                    assert!(finding.line > 0, "{finding}");
                    assert!(!finding.text.is_empty(), "{finding}");
                }
                Err(finding) => wrong.push(format!("{} at seed {seed}: {finding}", case.0)),
                Ok(()) => wrong.push(format!("{} at seed {seed}: nothing found", case.0)),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn corrected_twins_pass_under_every_seed() {
    let Some(ptx) = ptx() else { return };
    let mut wrong = Vec::new();
    for seed in 0..SEEDS {
        let mut host = host(&ptx, seed);
        for case in CASES {
            if let Err(finding) = run(&mut host, case, "fixed") {
                wrong.push(format!("{} at seed {seed}: {finding}", case.0));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn findings_name_the_source_line() {
    let Some(ptx) = ptx() else { return };
    let mut host = host(&ptx, 0);
    let case = CASES.iter().find(|c| c.0 == "copy_past_the_end").expect("case");
    let finding = *run(&mut host, case, "bug").expect_err("a finding");
    let (file, line) = finding.source.clone().expect("-lineinfo was given");
    assert!(file.ends_with("misuse.cu"), "{file}");
    let source = include_str!("../kernels/misuse/misuse.cu");
    let text = source.lines().nth(line as usize - 1).expect("a line of the file");
    assert!(text.contains("cp.async") || text.contains("copy_16"), "{finding}: {text}");
    assert_eq!((finding.block, finding.thread), ([0; 3], [N as u32 / 4, 0, 0]));
}

#[test]
fn freed_memory_is_named_when_a_kernel_uses_it() {
    let Some(ptx) = ptx() else { return };
    let mut host = host(&ptx, 0);
    let out = host.alloc::<i32>(N);
    let input = host.upload(&[7i32; N]);
    let args = Args::new().ptr(out).ptr(input).int(N as i32);
    host.launch("copy_ints", 2, 128, 0, &args);
    assert_eq!(host.gpu.memory.free(input), Ok(()));
    // New allocations do not take the freed address, so the stale pointer stays visible.
    let other = host.upload(&[9i32; N]);
    assert_ne!(other, input);
    let finding = host.try_launch("copy_ints", 2, 128, 0, &args).expect_err("a finding");
    assert_eq!(finding.kind, FindingKind::UseAfterFree, "{finding}");
    let args = Args::new().ptr(out).ptr(other).int(N as i32);
    host.launch("copy_ints", 2, 128, 0, &args);
    assert_eq!(host.download::<i32>(out, N), [9; N]);
}

#[test]
fn a_host_pointer_is_out_of_bounds_for_a_kernel() {
    let Some(ptx) = ptx() else { return };
    let mut host = host(&ptx, 0);
    let out = host.alloc::<i32>(N);
    let here = [1i32; N];
    let args = Args::new().ptr(out).ptr(here.as_ptr() as u64).int(N as i32);
    let finding = host.try_launch("copy_ints", 2, 128, 0, &args).expect_err("a finding");
    assert_eq!(finding.kind, FindingKind::OutOfBounds, "{finding}");
}

#[test]
fn freeing_twice_or_inside_an_allocation_is_refused() {
    let Some(ptx) = ptx() else { return };
    let mut host = host(&ptx, 0);
    let a = host.alloc::<i32>(N);
    assert_eq!(host.gpu.memory.free(a + 4), Err(AllocError::Invalid));
    assert_eq!(host.gpu.memory.free(a), Ok(()));
    assert_eq!(host.gpu.memory.free(a), Err(AllocError::DoubleFree));
}

#[test]
fn launches_past_a_limit_are_refused() {
    let Some(ptx) = ptx() else { return };
    let host = host(&ptx, 0);
    let refuse = |kernel: &str, grid: [u32; 3], block: [u32; 3], dynamic_shared: u32| {
        let program = host.module.kernel(kernel).expect("kernel");
        let dims = Dims { grid, block, dynamic_shared };
        host.gpu.refuse(&program, &dims, Gpu::default_dynamic(&program))
    };
    let one = [1, 1, 1];
    assert_eq!(refuse("copy_ints", one, [1024, 1, 1], 0), None);
    assert_eq!(refuse("copy_ints", one, one, 48 << 10), None);
    assert_eq!(refuse("at_most_128", one, [128, 1, 1], 0), None);
    for (kernel, grid, block, shared) in [
        ("copy_ints", one, [1025, 1, 1], 0),
        ("copy_ints", one, [64, 17, 1], 0),
        ("copy_ints", one, [1, 1, 65], 0),
        ("copy_ints", [1, 65536, 1], one, 0),
        ("copy_ints", [0, 1, 1], one, 0),
        ("copy_ints", one, [0, 1, 1], 0),
        ("at_most_128", one, [129, 1, 1], 0),
        ("copy_ints", one, one, (48 << 10) + 1),
        ("copy_not_awaited_bug", one, [128, 1, 1], 48 << 10),
    ] {
        let why = refuse(kernel, grid, block, shared);
        assert!(why.is_some(), "{kernel} grid {grid:?} block {block:?} shared {shared}");
    }
}
