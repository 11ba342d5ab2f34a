//! An idle pool sleeps. Alone in its binary, since it counts the process's CPU time.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use janus_kernels::Pool;

#[cfg(target_os = "linux")]
#[test]
fn an_idle_pool_uses_no_cpu() {
    /// User and system time of this process, in ticks of 10 ms.
    fn cpu_ticks() -> u64 {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }
    let pool = Pool::new(4);
    pool.run(30, |_| {});
    std::thread::sleep(Duration::from_millis(50));
    let before = cpu_ticks();
    std::thread::sleep(Duration::from_millis(300));
    assert!(cpu_ticks() - before <= 2, "an idle pool is busy");
}
