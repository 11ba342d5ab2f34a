//! The process's one set of compute threads: fork-join over a task index, nothing else. Called by every kernel
//! that is worth splitting. Workers spin for some tens of microseconds after a job (the next one of a decode step
//! comes sooner) and then sleep. How many threads there are never changes a result.

mod cpus;

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use cpus::{CpuTimes, default_threads};

use crate::isa::{self, Isa};

/// How long an idle thread spins before it sleeps.
const SPIN: Duration = Duration::from_micros(60);

thread_local! {
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
}

/// A fork-join pool: the calling thread and `threads - 1` workers.
pub struct Pool {
    shared: Arc<Shared>,
    threads: usize,
    turn: Mutex<()>,
    workers: Vec<JoinHandle<()>>,
    /// CPUs of the process before any of its threads was pinned.
    cpus: OnceLock<Vec<usize>>,
}

/// One published job: a type-erased closure. Written only by the caller holding `turn`, between two jobs.
#[derive(Clone, Copy)]
struct Job {
    call: unsafe fn(*const (), usize),
    data: *const (),
    tasks: usize,
    /// The caller's forced instruction set, which its tasks follow.
    isa: Option<Isa>,
}

struct Shared {
    job: UnsafeCell<Job>,
    /// Tasks of the current job nobody has claimed; storing it publishes `job`.
    unclaimed: AtomicUsize,
    finished: AtomicUsize,
    sleepers: AtomicUsize,
    stop: AtomicBool,
    caller_sleeps: AtomicBool,
    gate: Mutex<()>,
    wake_workers: Condvar,
    wake_caller: Condvar,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is written by the one caller holding `turn` while no task is unclaimed or running, and read only by
// threads that claimed a task of it: the store and the claim on `unclaimed` order the two.
unsafe impl Sync for Shared {}
// SAFETY: the raw pointer in `job` is only followed while its closure is borrowed by `Pool::run`.
unsafe impl Send for Shared {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Pool {
    /// A pool of `threads` threads in all (at least 1), placed by the scheduler until [`pin`](Self::pin).
    pub fn new(threads: usize) -> Self {
        let threads = threads.max(1);
        let shared = Arc::new(Shared {
            job: UnsafeCell::new(Job { call: |_, _| {}, data: std::ptr::null(), tasks: 0, isa: None }),
            unclaimed: AtomicUsize::new(0),
            finished: AtomicUsize::new(0),
            sleepers: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            caller_sleeps: AtomicBool::new(false),
            gate: Mutex::new(()),
            wake_workers: Condvar::new(),
            wake_caller: Condvar::new(),
            panic: Mutex::new(None),
        });
        let workers = (1..threads)
            .filter_map(|index| {
                let shared = Arc::clone(&shared);
                let body = move || {
                    IN_TASK.set(true);
                    shared.work();
                };
                // A machine that refuses a thread gets a smaller pool, with the same results.
                std::thread::Builder::new().name(format!("janus-{index}")).spawn(body).ok()
            })
            .collect::<Vec<_>>();
        Self { threads: workers.len() + 1, shared, turn: Mutex::new(()), workers, cpus: OnceLock::new() }
    }

    /// The process's pool, of [`default_threads`] threads, started on first use.
    pub fn global() -> &'static Pool {
        static GLOBAL: OnceLock<Pool> = OnceLock::new();
        GLOBAL.get_or_init(|| Pool::new(default_threads()))
    }

    /// Pins the workers and the calling thread one to a CPU, if the pool has a thread for every CPU this process may use;
    /// whether it did. Every thread that computes calls it, and no thread that starts others, which would be pinned with it: a
    /// caller that is not pinned might be put on a worker's CPU and stay there. Several of them share a CPU, as they take turns
    /// with the pool. Which CPU that is differs between processes, so that those of one machine do not all wait for the same.
    pub fn pin(&self) -> bool {
        let cpus = self.cpus.get_or_init(|| {
            let mut cpus = cpus::allowed();
            let first = std::process::id() as usize % cpus.len().max(1);
            cpus.rotate_left(first);
            cpus
        });
        cpus.len() == self.threads && cpus::pin(&self.workers, cpus)
    }

    /// Threads that compute, the caller's included.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Calls `task(0)` to `task(tasks - 1)`, each once, on whichever thread is free, and returns when all are done.
    /// Callers from several threads take turns; a call from inside a task runs in place.
    ///
    /// # Panics
    /// With the first panic of a task, after the others are done. The pool stays usable.
    pub fn run<F: Fn(usize) + Sync>(&self, tasks: usize, task: F) {
        if tasks <= 1 || self.threads == 1 || IN_TASK.get() {
            (0..tasks).for_each(task);
            return;
        }
        unsafe fn call<F: Fn(usize)>(data: *const (), index: usize) {
            // SAFETY: `data` is the `&task` below, borrowed until every task is finished.
            unsafe { (*data.cast::<F>())(index) }
        }
        let turn = lock(&self.turn);
        let shared = &*self.shared;
        let job = Job { call: call::<F>, data: (&raw const task).cast(), tasks, isa: isa::forced() };
        // SAFETY: we hold `turn` and the previous job is finished, so nobody reads `job` now.
        unsafe { *shared.job.get() = job };
        shared.finished.store(0, Ordering::Relaxed);
        shared.unclaimed.store(tasks, Ordering::SeqCst);
        if shared.sleepers.load(Ordering::SeqCst) > 0 {
            drop(lock(&shared.gate));
            shared.wake_workers.notify_all();
        }
        IN_TASK.set(true);
        while shared.claim_and_run() {}
        IN_TASK.set(false);
        shared.wait_finished(tasks);
        let panicked = lock(&shared.panic).take();
        drop(turn);
        if let Some(payload) = panicked {
            resume_unwind(payload);
        }
    }

    /// Runs `kernel` over contiguous groups of the rows of `x` (`width` values each) into those of `out`
    /// (`out_width` each): the way to spread a per-row kernel of this crate over the pool.
    ///
    /// # Panics
    /// If the two don't hold the same whole number of rows.
    pub fn map_rows<F>(&self, x: &[f32], width: usize, out: &mut [f32], out_width: usize, kernel: F)
    where
        F: Fn(&[f32], &mut [f32]) + Sync,
    {
        let rows = x.len() / width;
        assert!(x.len() == rows * width && out.len() == rows * out_width, "map_rows: shapes differ");
        let (tasks, per) = self.row_groups(rows, width.max(out_width));
        let out = Shards(out.as_mut_ptr());
        self.run(tasks, |index| {
            let (first, last) = (index * per, ((index + 1) * per).min(rows));
            // SAFETY: tasks own disjoint ranges of whole rows inside `out`.
            let part = unsafe { out.part(first * out_width, (last - first) * out_width) };
            kernel(&x[first * width..last * width], part);
        });
    }

    /// [`map_rows`](Self::map_rows) in place.
    ///
    /// # Panics
    /// If `x` isn't a whole number of rows.
    pub fn each_row<F: Fn(&mut [f32]) + Sync>(&self, x: &mut [f32], width: usize, kernel: F) {
        let rows = x.len() / width;
        assert!(x.len() == rows * width, "each_row: not a whole number of rows");
        let (tasks, per) = self.row_groups(rows, width);
        let out = Shards(x.as_mut_ptr());
        self.run(tasks, |index| {
            let (first, last) = (index * per, ((index + 1) * per).min(rows));
            // SAFETY: tasks own disjoint ranges of whole rows inside `x`.
            kernel(unsafe { out.part(first * width, (last - first) * width) });
        });
    }

    /// Splits rows so that a task has at least some 16k values; returns (tasks, rows per task).
    fn row_groups(&self, rows: usize, width: usize) -> (usize, usize) {
        let smallest = (16_384 / width.max(1)).max(1);
        let per = rows.div_ceil(self.threads * 4).max(smallest);
        (rows.div_ceil(per), per)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        drop(lock(&self.shared.gate));
        self.shared.wake_workers.notify_all();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn work(&self) {
        loop {
            while self.claim_and_run() {}
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            if spin_until(|| self.unclaimed.load(Ordering::Relaxed) > 0 || self.stop.load(Ordering::Relaxed)) {
                continue;
            }
            let mut gate = lock(&self.gate);
            self.sleepers.fetch_add(1, Ordering::SeqCst);
            while self.unclaimed.load(Ordering::SeqCst) == 0 && !self.stop.load(Ordering::SeqCst) {
                gate = self.wake_workers.wait(gate).unwrap_or_else(std::sync::PoisonError::into_inner);
            }
            self.sleepers.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Claims one task and runs it; false when there was none.
    fn claim_and_run(&self) -> bool {
        let mut left = self.unclaimed.load(Ordering::Relaxed);
        loop {
            if left == 0 {
                return false;
            }
            match self.unclaimed.compare_exchange_weak(left, left - 1, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => left = now,
            }
        }
        // SAFETY: we hold a claimed, unfinished task of the job that the claim's acquire made visible.
        let job = unsafe { *self.job.get() };
        let index = job.tasks - left;
        isa::set_forced(job.isa);
        // SAFETY: the closure is borrowed by `Pool::run`, which waits for this task.
        let outcome = catch_unwind(AssertUnwindSafe(|| unsafe { (job.call)(job.data, index) }));
        if let Err(payload) = outcome {
            lock(&self.panic).get_or_insert(payload);
        }
        if self.finished.fetch_add(1, Ordering::SeqCst) + 1 == job.tasks && self.caller_sleeps.load(Ordering::SeqCst) {
            drop(lock(&self.gate));
            self.wake_caller.notify_one();
        }
        true
    }

    fn wait_finished(&self, tasks: usize) {
        if spin_until(|| self.finished.load(Ordering::Acquire) == tasks) {
            return;
        }
        let mut gate = lock(&self.gate);
        self.caller_sleeps.store(true, Ordering::SeqCst);
        while self.finished.load(Ordering::SeqCst) < tasks {
            gate = self.wake_caller.wait(gate).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        self.caller_sleeps.store(false, Ordering::SeqCst);
    }
}

/// Spins for a bounded time; whether `ready` came true.
fn spin_until(ready: impl Fn() -> bool) -> bool {
    if ready() {
        return true;
    }
    let start = Instant::now();
    while start.elapsed() < SPIN {
        for _ in 0..32 {
            std::hint::spin_loop();
            if ready() {
                return true;
            }
        }
    }
    false
}

/// A mutable slice handed to tasks that write disjoint parts of it.
#[derive(Clone, Copy)]
pub(crate) struct Shards<T>(pub(crate) *mut T);

// SAFETY: a Shards is only a pointer; `part` and its users promise disjoint ranges.
unsafe impl<T: Send> Send for Shards<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shards<T> {}

impl<T> Shards<T> {
    /// # Safety
    /// The range must lie inside the slice this was made from, and no other live part may overlap it.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part<'a>(&self, start: usize, len: usize) -> &'a mut [T] {
        // SAFETY: by this function's contract.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }

    pub(crate) fn ptr(&self) -> *mut T {
        self.0
    }
}
