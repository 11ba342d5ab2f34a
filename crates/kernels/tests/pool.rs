//! The pool under panics, nesting and several callers.
#![allow(clippy::unwrap_used)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use janus_kernels::Pool;

fn every_task_runs_once(pool: &Pool, tasks: usize) {
    let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
    pool.run(tasks, |task| {
        counts[task].fetch_add(1, Ordering::Relaxed);
    });
    assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
}

#[test]
fn every_task_runs_once_however_many_threads() {
    for threads in [1, 2, 5] {
        let pool = Pool::new(threads);
        for tasks in [0, 1, 2, 3, 100] {
            every_task_runs_once(&pool, tasks);
        }
    }
}

#[test]
fn a_panic_reaches_the_caller_and_the_pool_survives() {
    let pool = Pool::new(3);
    for _ in 0..20 {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            pool.run(50, |task| assert!(task != 33, "task {task} fails"));
        }));
        let payload = outcome.unwrap_err();
        assert_eq!(payload.downcast_ref::<String>().unwrap(), "task 33 fails");
        every_task_runs_once(&pool, 50);
    }
}

#[test]
fn a_run_inside_a_task_runs_in_place() {
    let pool = Pool::new(2);
    let count = AtomicUsize::new(0);
    pool.run(8, |_| {
        pool.run(8, |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
    });
    assert_eq!(count.load(Ordering::Relaxed), 64);
}

#[test]
fn callers_from_several_threads_take_turns() {
    let pool = Pool::new(2);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..200).for_each(|_| every_task_runs_once(&pool, 7)));
        }
    });
}

#[test]
fn sleeping_workers_wake_up() {
    let pool = Pool::new(3);
    for _ in 0..5 {
        every_task_runs_once(&pool, 30);
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn rows_are_mapped_whole() {
    let pool = Pool::new(3);
    let x: Vec<f32> = (0..5000 * 7).map(|i| i as f32).collect();
    let mut sums = vec![0.0; 5000 * 2];
    pool.map_rows(&x, 7, &mut sums, 2, |x, out| {
        for (x, out) in x.chunks_exact(7).zip(out.chunks_exact_mut(2)) {
            (out[0], out[1]) = (x[0], x[6]);
        }
    });
    assert!(sums.chunks_exact(2).enumerate().all(|(row, out)| out == [row as f32 * 7.0, row as f32 * 7.0 + 6.0]));
    let mut y = x.clone();
    pool.each_row(&mut y, 7, |rows| rows.iter_mut().for_each(|x| *x += 1.0));
    assert!(x.iter().zip(&y).all(|(x, y)| x + 1.0 == *y));
}

#[test]
fn a_pinned_pool_still_computes() {
    let pool = Pool::new(janus_kernels::default_threads());
    let before = allowed();
    std::thread::scope(|scope| {
        // Two that take turns.
        for _ in 0..2 {
            scope.spawn(|| {
                if pool.pin() {
                    assert_eq!(allowed().len(), 1, "{:?}", allowed());
                }
                every_task_runs_once(&pool, 30);
            });
        }
    });
    every_task_runs_once(&pool, 30);
    assert_eq!(allowed(), before, "others stay where they are");
}

/// CPUs of the calling thread, as the system lists them; ranges are taken apart.
fn allowed() -> Vec<usize> {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or_default();
    let ranges = list.trim().split(',').filter(|range| !range.is_empty());
    let ends = ranges.map(|range| range.split_once('-').unwrap_or((range, range)));
    ends.flat_map(|(first, last)| first.parse().unwrap()..=last.parse().unwrap()).collect()
}

#[test]
fn a_pool_that_is_smaller_than_the_machine_is_not_pinned() {
    let pool = Pool::new(janus_kernels::default_threads() + 1);
    assert!(!pool.pin());
}
