//! A persistent pool of threads for fork-join loops.
//!
//! Workers spin for a short time between jobs (the gap between two ops of a
//! network is a few microseconds) and then sleep. A worker that wakes too late
//! for a job misses it; nobody waits for a sleeper, so a busy machine costs
//! speed and never results.
#![allow(unsafe_code)] // Tasks write disjoint parts of one slice; a job borrows its caller's stack.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::isa::Isa;

/// Polls of a worker before it sleeps: about 100 microseconds.
const SPINS: usize = 4000;

/// Set in [`Shared::state`] while workers may join the job.
const OPEN: u64 = 1 << 31;
/// The low bits of [`Shared::state`]: workers inside the job. The high 32 bits
/// count jobs.
const ACTIVE: u64 = OPEN - 1;

type Task = dyn Fn(usize) + Sync;

#[derive(Clone, Copy)]
struct Job {
    tasks: usize,
    /// Borrowed from the caller of [`Pool::run`] for as long as the job lives.
    task: *const Task,
}

/// Alone on its cache line.
#[repr(align(128))]
struct Padded<T>(T);

struct Shared {
    state: Padded<AtomicU64>,
    next: Padded<AtomicUsize>,
    job: UnsafeCell<Job>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    sleeping: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
    shutdown: AtomicBool,
}

// SAFETY: `job` is written only by the holder of `Pool::caller`, while the job
// is closed and no worker is inside; workers read it between joining and leaving.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is only followed under the protocol above.
unsafe impl Send for Shared {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Takes tasks until none are left. A panic is kept for the caller and
    /// ends the job early.
    fn work(&self, job: Job) {
        // SAFETY: the caller of `run` keeps the closure alive until every worker
        // has left, and this runs between joining and leaving (or in the caller).
        let task = unsafe { &*job.task };
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let i = self.next.0.fetch_add(1, Ordering::Relaxed);
                if i >= job.tasks {
                    break;
                }
                task(i);
            }
        }));
        if let Err(payload) = result {
            self.next.0.store(job.tasks, Ordering::Relaxed);
            lock(&self.panic).get_or_insert(payload);
        }
    }

    /// Waits for a job other than `seen` and joins it; `None` at shutdown.
    fn join(&self, seen: &mut u64) -> Option<Job> {
        let mut spins = 0;
        loop {
            if self.shutdown.load(Ordering::Acquire) {
                return None;
            }
            let state = self.state.0.load(Ordering::Acquire);
            if state >> 32 != *seen && state & OPEN != 0 {
                let joined = self.state.0.compare_exchange_weak(
                    state,
                    state + 1,
                    Ordering::AcqRel,
                    Ordering::Relaxed,
                );
                if joined.is_ok() {
                    *seen = state >> 32;
                    // SAFETY: the job was written before `state` was opened, and
                    // is not replaced while this worker counts as active.
                    return Some(unsafe { *self.job.get() });
                }
                continue;
            }
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
                continue;
            }
            spins = 0;
            self.sleeping.fetch_add(1, Ordering::SeqCst);
            let mut guard = lock(&self.sleep);
            while self.state.0.load(Ordering::SeqCst) & OPEN == 0
                && !self.shutdown.load(Ordering::SeqCst)
            {
                guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
            }
            drop(guard);
            self.sleeping.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn wake_sleepers(&self) {
        if self.sleeping.load(Ordering::SeqCst) > 0 {
            drop(lock(&self.sleep));
            self.wake.notify_all();
        }
    }
}

/// Threads that wait for work, and the vector instructions that the work may
/// use. Results never depend on the number of threads: callers split work by
/// shape and combine in order.
pub struct Pool {
    threads: usize,
    isa: Isa,
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held by whoever runs a job.
    caller: Mutex<()>,
}

impl Pool {
    /// A pool of that many threads; 0 takes one for each core. The thread that
    /// calls [`Pool::run`] is one of them.
    pub fn new(threads: usize) -> Self {
        let cores = || std::thread::available_parallelism().map_or(1, |n| n.get());
        let threads = if threads == 0 { cores() } else { threads };
        let nothing: &'static Task = &|_| {};
        let shared = Arc::new(Shared {
            state: Padded(AtomicU64::new(0)),
            next: Padded(AtomicUsize::new(0)),
            job: UnsafeCell::new(Job { tasks: 0, task: nothing }),
            panic: Mutex::new(None),
            sleeping: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            shutdown: AtomicBool::new(false),
        });
        let workers = (1..threads)
            .filter_map(|i| {
                let shared = Arc::clone(&shared);
                let body = move || {
                    let mut seen = 0;
                    while let Some(job) = shared.join(&mut seen) {
                        shared.work(job);
                        shared.state.0.fetch_sub(1, Ordering::Release);
                    }
                };
                // Fewer workers than asked for cost speed only.
                std::thread::Builder::new().name(format!("langevin-{i}")).spawn(body).ok()
            })
            .collect();
        Pool { threads, isa: Isa::detect(), shared, workers, caller: Mutex::new(()) }
    }

    /// The same threads with at most these instructions, to test every path.
    pub fn limited_to(mut self, isa: Isa) -> Self {
        self.isa = isa.min(Isa::detect());
        self
    }

    /// The instructions that kernels run on this pool use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Calls `f(i)` for every i in 0..tasks, on all threads, and returns when
    /// all calls have returned. Tasks are taken in increasing order. Allocates
    /// nothing. A panic of a task is raised again here. Called from inside a
    /// task, it runs on that task's thread alone.
    pub fn run(&self, tasks: usize, f: &(dyn Fn(usize) + Sync)) {
        let guard = match self.caller.try_lock() {
            Ok(guard) if tasks > 1 && !self.workers.is_empty() => guard,
            Err(std::sync::TryLockError::Poisoned(guard)) if tasks > 1 => guard.into_inner(),
            _ => {
                for i in 0..tasks {
                    f(i);
                }
                return;
            }
        };
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. This function does not return, nor
        // unwind, before the job is closed and every worker has left it.
        let task: *const Task = unsafe {
            std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(f)
        };
        let job = Job { tasks, task };
        // SAFETY: the previous job is closed and left, and the lock is held.
        unsafe { *shared.job.get() = job };
        shared.next.0.store(0, Ordering::Relaxed);
        let epoch = (shared.state.0.load(Ordering::Relaxed) >> 32).wrapping_add(1) & 0xffff_ffff;
        shared.state.0.store(epoch << 32 | OPEN, Ordering::SeqCst);
        shared.wake_sleepers();
        shared.work(job);
        shared.state.0.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0;
        while shared.state.0.load(Ordering::Acquire) & ACTIVE != 0 {
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
        let panic = lock(&shared.panic).take();
        drop(guard);
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.shutdown.store(true, Ordering::SeqCst);
        drop(lock(&self.shared.sleep));
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its tasks, so it ends normally.
            let _ = worker.join();
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

    /// Address of element `from`, the first of a strided part whose last element
    /// is `from + span - 1`. Who writes through it owes what `part` asks for.
    pub fn strided(&self, from: usize, span: usize) -> *mut T {
        assert!(from + span <= self.len, "part outside its slice");
        // SAFETY: inside the slice by the assertion.
        unsafe { self.start.add(from) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_whatever_the_number_of_threads() {
        for threads in [1, 2, 3, 7] {
            let pool = Pool::new(threads);
            for tasks in [0, 1, 2, 5, 1000] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                for _ in 0..20 {
                    pool.run(tasks, &|i| {
                        counts[i].fetch_add(1, Ordering::Relaxed);
                    });
                }
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 20));
            }
        }
    }

    #[test]
    fn sleeping_workers_wake_for_the_next_job() {
        let pool = Pool::new(2);
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(20));
            // Two tasks that wait for each other need two threads.
            let arrived = AtomicUsize::new(0);
            pool.run(2, &|_| {
                arrived.fetch_add(1, Ordering::SeqCst);
                while arrived.load(Ordering::SeqCst) < 2 {
                    std::thread::yield_now();
                }
            });
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_survives_it() {
        let pool = Pool::new(3);
        let caught = catch_unwind(AssertUnwindSafe(|| {
            pool.run(100, &|i| assert!(i != 57, "task fifty-seven"));
        }));
        let payload = caught.expect_err("the panic propagates");
        assert!(payload.downcast_ref::<&str>().is_some_and(|m| m.contains("fifty-seven")));
        let sum = AtomicUsize::new(0);
        pool.run(10, &|i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 45);
    }

    #[test]
    fn a_run_inside_a_task_finishes() {
        let pool = Pool::new(2);
        let sum = AtomicUsize::new(0);
        pool.run(4, &|_| {
            pool.run(8, &|i| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
        });
        assert_eq!(sum.into_inner(), 4 * 28);
    }
}
