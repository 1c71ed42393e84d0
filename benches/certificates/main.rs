//! Which of the promises about the CUDA kernels hold, from counters of the software GPU,
//! ptxas and SASS: no time is measured, and none is printed.
//!
//! ```text
//! cargo bench --bench certificates              # everything
//! cargo bench --bench certificates -- norm      # sections whose name contains a word
//! cargo bench --bench certificates -- --json=certificates.json   # every line in a file, too
//! ```
//!
//! One file a family of kernels. Its function adds lines to the [`table::Table`]: the item,
//! what was counted, the value, the target and whether it holds; the end of the run sums them up by
//! item. Counters come from [`counters::Gpu`], registers and machine code from [`machine`].
//! The items:
//!
//! 1. global memory: bytes asked for / (32 x sectors), share of bytes by 128-bit accesses;
//! 2. shared memory: wavefronts / ideal;
//! 3. spills, local memory, registers, shared memory of every kernel on six architectures;
//! 4. main loops of tensor-core kernels: share of HMMA, HMMA an ldmatrix, no division;
//! 5. pipelines: at most one barrier a tile of the reduction;
//! 6. convolution: bytes touched and bytes requested against the model of the tiling;
//! 7. FLOP a byte asked of L2;
//! 8. useful share of the blocks' multiply-adds over a whole training step;
//! 9. norms: bytes moved against one read and one write;
//! 10. attention: bytes requested against the tiling's own model, share of HMMA;
//! 11. noising: bytes an element; 12. sampler step: one kernel, minimal bytes;
//! 13. AdamW with the average: bytes a parameter;
//! 14. graph nodes of a sampling and of a training step and of a DiT block, nothing allocated or
//!     copied inside;
//! 15. the bound model of the training step, as a share of the tensor cores' peak;
//! 16. sm_90a.
#![allow(unsafe_code)] // Loads a library.

#[cfg(langevin_cuda)]
use std::path::PathBuf;

#[cfg(langevin_cuda)]
mod attention;
#[cfg(langevin_cuda)]
mod conv2d;
#[cfg(langevin_cuda)]
mod counters;
#[cfg(langevin_cuda)]
mod dit;
#[cfg(langevin_cuda)]
mod elementwise;
#[cfg(langevin_cuda)]
mod graphs;
#[cfg(langevin_cuda)]
mod machine;
#[cfg(langevin_cuda)]
mod model;
#[cfg(langevin_cuda)]
mod norm;
#[cfg(langevin_cuda)]
mod resources;
#[cfg(langevin_cuda)]
mod steps;
#[cfg(langevin_cuda)]
mod table;

/// Adds a section's lines.
#[cfg(langevin_cuda)]
type Section = fn(&mut table::Table, &counters::Gpu);

/// All sections, in the order in which they are printed. Graphs come last: they leave work
/// behind that nobody waits for.
#[cfg(langevin_cuda)]
const SECTIONS: &[(&str, Section)] = &[
    ("resources", resources::certify),
    ("conv2d", conv2d::certify),
    ("attention", attention::attention),
    ("norm", norm::certify),
    ("elementwise", elementwise::certify),
    ("noising", elementwise::noising),
    ("sampler", steps::sampler),
    ("optimizer", steps::optimizer),
    ("dit", dit::certify),
    ("model", model::certify),
    ("graphs", graphs::certify),
];

#[cfg(not(langevin_cuda))]
fn main() {
    println!("SKIPPED: {}", langevin::backend::cuda::built().unwrap_err());
}

#[cfg(langevin_cuda)]
fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let wanted = |name: &str| words.is_empty() || words.iter().any(|w| name.contains(w.as_str()));
    let gpu = counters::Gpu::open();
    let mut table = table::Table::default();
    for (name, certify) in SECTIONS {
        if wanted(name) {
            println!("\n== {name}");
            certify(&mut table, &gpu);
        }
    }
    table.print_summary();
    if let Some(path) = std::env::args().find_map(|a| a.strip_prefix("--json=").map(PathBuf::from))
    {
        table.write_json(&path);
    }
    // Dropping the device would wait for the graphs' work: minutes of whole networks.
    std::process::exit(0);
}
