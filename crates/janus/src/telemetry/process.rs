//! What every process says of itself: CPU time, memory, age.

use std::time::Instant;

use opentelemetry::{KeyValue, global};

/// Linux counts CPU time for programs in hundredths of a second, whatever its own clock does.
const TICKS: f64 = 100.0;

/// Registers it. Once in a process.
pub(super) fn observe() {
    let (meter, begun) = (global::meter("janus"), Instant::now());
    let cpu = meter.f64_observable_counter("process.cpu.time").with_unit("s").with_description("CPU time");
    cpu.with_callback(|to| {
        let Some([user, system]) = cpu_seconds() else { return };
        to.observe(user, &[KeyValue::new("cpu.mode", "user")]);
        to.observe(system, &[KeyValue::new("cpu.mode", "system")]);
    })
    .build();
    let memory = meter.u64_observable_gauge("process.memory.usage").with_unit("By").with_description("Resident memory");
    memory.with_callback(|to| resident().into_iter().for_each(|bytes| to.observe(bytes, &[]))).build();
    let age = meter.f64_observable_gauge("process.uptime").with_unit("s").with_description("Age");
    age.with_callback(move |to| to.observe(begun.elapsed().as_secs_f64(), &[])).build();
}

/// Name of this machine.
pub(super) fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map_or_else(|_| "host".to_owned(), |name| name.trim().to_owned())
}

/// Seconds spent in the program and in the kernel for it; none where the system doesn't tell.
fn cpu_seconds() -> Option<[f64; 2]> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the program, in parentheses, may hold anything.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let mut seconds = || Some(fields.next()?.parse::<u64>().ok()? as f64 / TICKS);
    Some([seconds()?, seconds()?])
}

fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_spends_time() {
        assert!(resident().unwrap() > 1 << 20);
        let before = cpu_seconds().unwrap();
        let mut sum = 0_u64;
        while cpu_seconds().unwrap()[0] <= before[0] {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(sum > 0);
    }
}
