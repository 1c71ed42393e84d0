//! The kernels that nvcc built, as typed constants: which struct an entry takes, how
//! many threads its blocks have, which image holds it. Made by build.rs from the
//! `ENTRY` lines of the sources and checked there against the PTX.

use std::marker::PhantomData;

/// The structs of `kernels/params.h`.
#[allow(missing_docs, non_camel_case_types, non_upper_case_globals, dead_code)]
#[allow(clippy::all, clippy::undocumented_unsafe_blocks, unsafe_code)] // Generated.
pub mod params {
    include!(concat!(env!("OUT_DIR"), "/params.rs"));
}

/// A kernel that takes one `P` by value.
#[derive(Debug)]
pub struct Entry<P> {
    /// Its name in the module.
    pub name: &'static str,
    /// Index of its [`Image`].
    pub image: usize,
    /// Threads of a block, along x.
    pub threads: u32,
    params: PhantomData<fn(P)>,
}

impl<P> Entry<P> {
    const fn new(name: &'static str, image: usize, threads: u32) -> Self {
        Entry { name, image, threads, params: PhantomData }
    }
}

/// The code of one source file.
#[derive(Debug)]
pub struct Image {
    /// Stem of the file.
    pub name: &'static str,
    /// PTX, for every card from compute capability 8.0 on.
    pub ptx: &'static str,
    /// Machine code by compute capability (86 for 8.6).
    pub cubins: &'static [(u32, &'static [u8])],
}

include!(concat!(env!("OUT_DIR"), "/entries.rs"));
