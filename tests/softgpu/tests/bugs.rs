//! Seeded defects: every one is caught under its own name, and its corrected twin passes under
//! twenty seeds.
#![allow(unsafe_code)] // Plain data seen as bytes.

mod common;

use common::{Args, Build, Host, Rng, compile};
use softgpu::finding::FindingKind::{self, *};
use softgpu::settings::{AsyncMode, Settings};

/// A defect and the launch that shows it.
struct Bug {
    name: &'static str,
    /// Names it may be caught under: more than one where the schedule decides which rule is broken
    /// first.
    kinds: &'static [FindingKind],
    grid: u32,
    block: u32,
    n: usize,
    /// Elements of the input.
    input: usize,
    /// Elements of the output.
    output: usize,
    shared: u32,
    /// The host zeroes the output first.
    zeroed: bool,
}

const ONE: Bug = Bug {
    name: "",
    kinds: &[],
    grid: 1,
    block: 64,
    n: 64,
    input: 64,
    output: 64,
    shared: 0,
    zeroed: false,
};
const MANY: Bug = Bug { grid: 2, n: 100, input: 100, output: 100, ..ONE };
const WARP: Bug = Bug { block: 32, ..ONE };

const BUGS: &[Bug] = &[
    Bug { name: "off_by_one", kinds: &[OutOfBounds], ..MANY },
    Bug { name: "read_past_end", kinds: &[OutOfBounds], ..MANY },
    Bug { name: "read_before_start", kinds: &[OutOfBounds], ..MANY },
    Bug { name: "misaligned_vector", kinds: &[Misaligned], n: 128, input: 128, ..ONE },
    Bug { name: "index_overflow", kinds: &[OutOfBounds], ..MANY },
    Bug { name: "null_pointer", kinds: &[OutOfBounds], ..ONE },
    Bug { name: "uninitialised_global", kinds: &[UninitialisedGlobal], ..MANY },
    Bug { name: "uninitialised_shared", kinds: &[UninitialisedShared], ..ONE },
    Bug { name: "uninitialised_local", kinds: &[UninitialisedLocal], ..ONE },
    Bug { name: "shared_out_of_bounds", kinds: &[OutOfBounds], ..ONE },
    Bug { name: "dynamic_shared_too_small", kinds: &[OutOfBounds], shared: 256, ..ONE },
    Bug { name: "local_out_of_bounds", kinds: &[OutOfBounds], ..ONE },
    Bug { name: "missing_barrier", kinds: &[SharedRace, UninitialisedShared], ..ONE },
    Bug { name: "missing_second_barrier", kinds: &[SharedRace], ..ONE },
    Bug { name: "missing_syncwarp", kinds: &[SharedRace], ..ONE },
    Bug { name: "reduction_without_barrier", kinds: &[SharedRace], ..ONE },
    Bug { name: "same_slot", kinds: &[SharedRace], ..ONE },
    Bug { name: "plain_counter", kinds: &[SharedRace], ..ONE },
    Bug { name: "blocks_share_output", kinds: &[GlobalRace], ..MANY },
    Bug {
        name: "reads_neighbour_block",
        kinds: &[GlobalRace],
        n: 128,
        input: 128,
        output: 128,
        zeroed: true,
        ..MANY
    },
    Bug { name: "global_sum", kinds: &[GlobalRace], grid: 4, zeroed: true, ..MANY },
    Bug { name: "missing_fence", kinds: &[GlobalRace], grid: 4, zeroed: true, ..MANY },
    Bug { name: "read_only_written", kinds: &[ReadOnlyWritten], ..MANY },
    Bug { name: "one_wait_too_few", kinds: &[AsyncCopyNotAwaited], input: 128, ..ONE },
    Bug {
        name: "wait_without_barrier",
        kinds: &[SharedRace, AsyncCopyNotAwaited, UninitialisedShared],
        ..ONE
    },
    Bug { name: "copy_over_readers", kinds: &[SharedRace, AsyncCopyNotAwaited], ..ONE },
    Bug { name: "copy_misaligned", kinds: &[Misaligned], ..ONE },
    Bug { name: "atomic_on_uninitialised", kinds: &[UninitialisedShared], ..ONE },
    Bug { name: "divergent_barrier", kinds: &[BarrierDivergence], ..ONE },
    Bug { name: "barrier_after_return", kinds: &[BarrierDivergence], ..ONE },
    Bug { name: "two_barriers", kinds: &[BarrierDivergence], ..ONE },
    Bug { name: "barrier_count", kinds: &[InvalidOperand], ..ONE },
    Bug { name: "shuffle_in_branch", kinds: &[MissingLanes], ..ONE },
    Bug { name: "shuffle_after_exit", kinds: &[MissingLanes], ..ONE },
    Bug { name: "shuffle_from_absent", kinds: &[MissingLanes], ..ONE },
    Bug { name: "outside_own_mask", kinds: &[MissingLanes], ..ONE },
    Bug { name: "partial_mma", kinds: &[MissingLanes], ..ONE },
    Bug { name: "uninitialised_accumulator", kinds: &[UninitialisedRegister], ..ONE },
    Bug { name: "uninitialised_register", kinds: &[UninitialisedRegister], ..ONE },
    Bug { name: "ldmatrix_misaligned", kinds: &[Misaligned], ..WARP },
    Bug { name: "ldmatrix_without_barrier", kinds: &[SharedRace], ..WARP },
    Bug { name: "endless", kinds: &[StepLimit], ..WARP },
    Bug { name: "asserts", kinds: &[Assertion], ..WARP },
    Bug { name: "traps", kinds: &[Trap], ..WARP },
    Bug { name: "endless_recursion", kinds: &[CallDepth], ..WARP },
];

fn run(
    ptx: &str,
    bug: &Bug,
    variant: &str,
    seed: u64,
) -> Result<(), Box<softgpu::finding::Finding>> {
    let asynchrony = if seed & 1 == 0 { AsyncMode::Late } else { AsyncMode::Eager };
    let settings = Settings { seed, asynchrony, max_steps: 200_000, ..Settings::default() };
    let mut host = Host::new(ptx, settings);
    let mut rng = Rng(5);
    let a: Vec<i32> = (0..bug.input).map(|_| (rng.next() % 1000) as i32).collect();
    let da = host.upload(&a);
    let out = host.alloc::<i32>(bug.output);
    if bug.zeroed {
        assert!(host.gpu.memory.fill(out, 0, 4 * bug.output as u64));
    }
    let args = Args::new().ptr(out).ptr(da).int(bug.n as i32);
    let kernel = format!("{}_{variant}", bug.name);
    host.try_launch(&kernel, bug.grid, bug.block, bug.shared, &args).map(|_| ())
}

#[test]
fn every_seeded_bug_is_caught_by_name() {
    let Some(ptx) = compile("bugs", Build { arch: 80, debug: false }) else { return };
    let mut wrong = Vec::new();
    for bug in BUGS {
        for seed in 0..6 {
            match run(&ptx, bug, "bug", seed) {
                Ok(()) => wrong.push(format!("{} passed under seed {seed}", bug.name)),
                Err(f) if !bug.kinds.contains(&f.kind) => {
                    wrong.push(format!("{} under seed {seed}: {f}", bug.name));
                }
                Err(f) => {
                    assert_eq!(f.kernel, format!("{}_bug", bug.name));
                    assert!(f.line > 0 && !f.text.is_empty(), "{f}");
                    assert!(f.source.is_some(), "{f}");
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn corrected_twins_pass_under_twenty_seeds() {
    let Some(ptx) = compile("bugs", Build { arch: 80, debug: false }) else { return };
    let mut wrong = Vec::new();
    for bug in BUGS {
        for seed in 0..20 {
            if let Err(f) = run(&ptx, bug, "ok", seed) {
                wrong.push(format!("{} under seed {seed}: {f}", bug.name));
                break;
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
