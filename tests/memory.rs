//! The memory need printed before a run is what the run then allocates. One
//! test: another one beside it would be counted too.
#![allow(unsafe_code)] // A global allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use langevin::backend::{Devices, Precision};
use langevin::config::{self, Config};
use langevin::train::{Request, train};

struct Peak;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on unchanged; counting does not allocate.
unsafe impl GlobalAlloc for Peak {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Peak = Peak;

#[test]
fn the_printed_memory_need_is_within_5_percent_of_the_bytes_allocated() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut value = config::read("digits").expect("a preset");
    for set in [
        "data.spec=digits",
        "train.steps=2",
        "train.batch=32",
        "sample.count=16",
        "sample.sampler=ddim",
        "sample.steps=2",
    ] {
        config::set(&mut value, set).expect("valid");
    }
    let config = Config::from_value(value).expect("valid");
    let stop = AtomicBool::new(false);
    let out = folder.path().join("run");
    let before = NOW.load(Ordering::SeqCst);
    PEAK.store(before, Ordering::SeqCst);
    let request = Request { config, out, resume: false, init: None, stop: &stop };
    let cpu = Devices::cpu(Precision::F32, 2).expect("f32");
    let summary = train(cpu, request, &mut |_| {}).expect("trains");
    let allocated = PEAK.load(Ordering::SeqCst) - before;
    let printed = summary.memory.total();
    let ratio = allocated as f64 / printed as f64;
    assert!((0.95..=1.05).contains(&ratio), "printed {printed}, allocated {allocated}: {ratio:.3}");
}
