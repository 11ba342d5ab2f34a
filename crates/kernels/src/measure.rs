//! What this machine can do, measured the way the kernels use it: the floors `janus bench` compares with.

use std::hint::black_box;
use std::time::Instant;

use crate::aligned::AlignedBuf;
use crate::isa::{isa, simd_fn};
use crate::pool::{Pool, Shards};
use crate::simd::{Lanes, lanes_fn};

/// Best streaming read of all threads, in 10^9 bytes per second, over a buffer no cache holds.
pub fn read_bandwidth_gb_s(pool: &Pool) -> f64 {
    const BYTES: usize = 1 << 29;
    const PIECE: usize = 1 << 20;
    let mut buffer = AlignedBuf::<f32>::zeroed(BYTES / 4);
    buffer.fill(1.0);
    let buffer = &buffer;
    best_of(7, || {
        pool.run(BYTES / PIECE, |piece| {
            black_box(sum(&buffer[piece * PIECE / 4..(piece + 1) * PIECE / 4]));
        });
    })
    .recip()
        * BYTES as f64
        / 1e9
}

/// Fused multiply-adds of all threads out of registers, in 10^9 floating point operations (two per fma) per second.
pub fn fma_peak_gflops(pool: &Pool) -> f64 {
    const ROUNDS: usize = 1_000_000;
    let (tasks, isa) = (pool.threads(), isa());
    let mut sums = vec![0.0_f32; tasks];
    let to = Shards(sums.as_mut_ptr());
    let seconds = best_of(5, || {
        pool.run(tasks, |task| {
            // SAFETY: each task writes its own element; isa() names what this CPU has.
            unsafe { spin(isa, &black_box(0.5), ROUNDS, &mut to.part(task, 1)[0]) };
        });
    });
    black_box(&sums);
    (tasks * ROUNDS * CHAINS * 16 * 2) as f64 / seconds / 1e9
}

/// CPU time of the calling thread, in seconds: what a clock would show on a quiet machine, for measuring one thread on
/// a busy one. 0 where the system doesn't tell.
pub fn thread_seconds() -> f64 {
    #[cfg(target_os = "linux")]
    {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the struct is ours to fill.
        unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
        time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
    }
    #[cfg(not(target_os = "linux"))]
    0.0
}

fn best_of(times: usize, run: impl Fn()) -> f64 {
    (0..times)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min)
}

simd_fn! {
    fn sum(x: &[f32]) -> f32 {
        let mut lanes = [0.0_f32; 64];
        for chunk in x.chunks_exact(64) {
            for (lane, &value) in lanes.iter_mut().zip(chunk) {
                *lane += value;
            }
        }
        lanes.iter().sum()
    }
}

/// Independent chains per thread: five pairs of the widest vectors there are.
const CHAINS: usize = 10;

lanes_fn! {
    unsafe fn spin(x: &f32, rounds: usize, sum: &mut f32) = spin_with;
}

#[inline(always)]
unsafe fn spin_with<L: Lanes>(x: &f32, rounds: usize, sum: &mut f32) {
    let mut total = [0.0_f32; 16];
    // SAFETY: lanes_fn enabled the instruction set; 16 lanes fit every vector.
    unsafe {
        let value = L::splat(x);
        let mut chains = [L::zero(); CHAINS];
        for _ in 0..rounds * 16 / L::N {
            for chain in &mut chains {
                *chain = chain.fma(value, value);
            }
        }
        for chain in chains {
            chain.store(total.as_mut_ptr());
            *sum += total[0];
        }
    }
}
