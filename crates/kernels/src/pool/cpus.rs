//! How many CPUs this process may really use: its affinity mask, cut by the cgroup quota; and how idle they are.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Instant;

/// Threads a pool should have here: CPUs in the affinity mask, at most the cgroup's quota rounded up, at least 1.
pub fn default_threads() -> usize {
    let cpus = allowed().len().max(1);
    match quota(Path::new("/")) {
        Some(quota) => cpus.min((quota.ceil() as usize).max(1)),
        None => cpus,
    }
}

/// Processor time up to a moment: two of them say how many cores had nothing to do in between.
#[derive(Debug, Clone, Copy)]
pub struct CpuTimes {
    at: Instant,
    /// Seconds that the CPUs of the affinity mask were idle, all together.
    idle: f64,
    /// Seconds that this process took.
    used: f64,
}

impl CpuTimes {
    /// Up to now; `None` where the system does not say (elsewhere than on Linux).
    pub fn now() -> Option<Self> {
        let idle = idle_ticks(&std::fs::read_to_string("/proc/stat").ok()?, &allowed())? as f64 / ticks_per_second()?;
        Some(CpuTimes { at: Instant::now(), idle, used: used_seconds()? })
    }

    /// When this was.
    pub fn at(&self) -> Instant {
        self.at
    }

    /// Cores that were idle from `earlier` to this, of those the process may use: neither what others left of its CPUs nor
    /// what it left of its own cgroup's quota is exceeded. The system counts in hundredths of a second.
    pub fn spare_since(&self, earlier: &Self) -> f64 {
        self.spare(earlier, default_threads())
    }

    fn spare(&self, earlier: &Self, threads: usize) -> f64 {
        let seconds = self.at.duration_since(earlier.at).as_secs_f64().max(f64::MIN_POSITIVE);
        let idle = (self.idle - earlier.idle) / seconds;
        let left = threads as f64 - (self.used - earlier.used) / seconds;
        idle.min(left).max(0.0)
    }
}

/// Idle ticks of `cpus` in the text of `/proc/stat`, waiting for disks included (proc(5)); `None` if one of them is missing.
fn idle_ticks(stat: &str, cpus: &[usize]) -> Option<u64> {
    let (mut ticks, mut found) = (0, 0);
    for line in stat.lines() {
        let mut fields = line.split_whitespace();
        let number = fields.next().and_then(|name| name.strip_prefix("cpu")?.parse().ok());
        if number.is_some_and(|cpu: usize| cpus.contains(&cpu)) {
            let (idle, iowait) = (fields.nth(3)?, fields.next()?);
            ticks += idle.parse::<u64>().ok()? + iowait.parse::<u64>().ok()?;
            found += 1;
        }
    }
    (found == cpus.len()).then_some(ticks)
}

#[cfg(target_os = "linux")]
fn ticks_per_second() -> Option<f64> {
    // SAFETY: takes a constant and returns a number.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    (ticks > 0).then_some(ticks as f64)
}

#[cfg(target_os = "linux")]
fn used_seconds() -> Option<f64> {
    // SAFETY: a timespec is plain data, and the call fills it.
    let time = unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        (libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) == 0).then_some(time)?
    };
    Some(time.tv_sec as f64 + time.tv_nsec as f64 / 1e9)
}

#[cfg(not(target_os = "linux"))]
fn ticks_per_second() -> Option<f64> {
    None
}

#[cfg(not(target_os = "linux"))]
fn used_seconds() -> Option<f64> {
    None
}

/// CPUs of the affinity mask, by number.
#[cfg(target_os = "linux")]
pub(super) fn allowed() -> Vec<usize> {
    // SAFETY: cpu_set_t is plain data; sched_getaffinity fills at most the size given.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) != 0 {
            return (0..available()).collect();
        }
        set
    };
    // SAFETY: the index is below CPU_SETSIZE.
    (0..libc::CPU_SETSIZE as usize).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect()
}

#[cfg(not(target_os = "linux"))]
pub(super) fn allowed() -> Vec<usize> {
    (0..available()).collect()
}

fn available() -> usize {
    std::thread::available_parallelism().map_or(1, |count| count.get())
}

/// Pins the calling thread to the first of `cpus` and each worker to one of the rest; whether all was granted.
#[cfg(target_os = "linux")]
pub(super) fn pin(workers: &[JoinHandle<()>], cpus: &[usize]) -> bool {
    use std::os::unix::thread::JoinHandleExt;
    // SAFETY: asks for the calling thread's own handle.
    let mine = unsafe { libc::pthread_self() };
    let threads = std::iter::once(mine).chain(workers.iter().map(JoinHandleExt::as_pthread_t));
    threads.zip(cpus).fold(true, |granted, (thread, &cpu)| {
        // SAFETY: the set is initialised, the CPU comes from `allowed`, the threads are alive: ours and unjoined ones.
        let result = unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(cpu, &mut set);
            libc::pthread_setaffinity_np(thread as libc::pthread_t, size_of::<libc::cpu_set_t>(), &set)
        };
        granted && result == 0
    })
}

#[cfg(not(target_os = "linux"))]
pub(super) fn pin(_workers: &[JoinHandle<()>], _cpus: &[usize]) -> bool {
    false
}

/// CPUs the cgroup grants, the smallest on the way up; `None` without a limit. `root` is `/`, or a test's folder.
fn quota(root: &Path) -> Option<f64> {
    let groups = std::fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let mut least: Option<f64> = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let path = path.trim_start_matches('/');
        let found = if controllers.is_empty() {
            climb(&root.join("sys/fs/cgroup"), path, |dir| parse_v2(&read(dir, "cpu.max")?))
        } else if controllers.split(',').any(|name| name == "cpu") {
            climb(&root.join("sys/fs/cgroup/cpu"), path, |dir| {
                let quota: f64 = read(dir, "cpu.cfs_quota_us")?.trim().parse().ok()?;
                let period: f64 = read(dir, "cpu.cfs_period_us")?.trim().parse().ok()?;
                (quota > 0.0 && period > 0.0).then(|| quota / period)
            })
        } else {
            None
        };
        least = match (least, found) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }
    least
}

fn read(dir: &Path, file: &str) -> Option<String> {
    std::fs::read_to_string(dir.join(file)).ok()
}

/// `cpu.max` of cgroup v2: `max 100000` or `150000 100000`.
fn parse_v2(text: &str) -> Option<f64> {
    let mut fields = text.split_whitespace();
    let quota: f64 = fields.next()?.parse().ok()?;
    let period: f64 = fields.next()?.parse().ok()?;
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

fn climb(mount: &Path, path: &str, limit: impl Fn(&Path) -> Option<f64>) -> Option<f64> {
    let mut dir: PathBuf = mount.join(path);
    let mut least: Option<f64> = None;
    loop {
        if let Some(found) = limit(&dir) {
            least = Some(least.map_or(found, |old| old.min(found)));
        }
        if dir == mount || !dir.pop() || !dir.starts_with(mount) {
            return least;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_on_the_way_up_counts() {
        let root = std::env::temp_dir().join(format!("janus-cgroup-{}", std::process::id()));
        let group = root.join("sys/fs/cgroup/a/b");
        std::fs::create_dir_all(&group).unwrap();
        std::fs::create_dir_all(root.join("proc/self")).unwrap();
        std::fs::write(root.join("proc/self/cgroup"), "0::/a/b\n").unwrap();
        std::fs::write(group.join("cpu.max"), "max 100000\n").unwrap();
        assert_eq!(quota(&root), None);
        std::fs::write(root.join("sys/fs/cgroup/a/cpu.max"), "150000 100000\n").unwrap();
        assert_eq!(quota(&root), Some(1.5));
        std::fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn idle_cores_are_those_that_nobody_used_and_the_quota_has_left() {
        let stat = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 1 2 3 400 50 6 7 8 0 0\ncpu1 1 2 3 4000 500 6 7 8 0 0\ncpu10 0 0 0 7 0 0 0 0\nintr 5\n";
        assert_eq!(idle_ticks(stat, &[0]), Some(450));
        assert_eq!(idle_ticks(stat, &[0, 1]), Some(4950));
        assert_eq!(idle_ticks(stat, &[10]), Some(7));
        assert_eq!(idle_ticks(stat, &[2]), None);
        let at = Instant::now();
        let times = |seconds, idle, used| CpuTimes { at: at + std::time::Duration::from_secs(seconds), idle, used };
        let before = times(0, 100.0, 10.0);
        // Four CPUs, half of which others use; a quota of two, of which one and a half are used.
        assert_eq!(times(2, 104.0, 10.0).spare(&before, 4), 2.0);
        assert_eq!(times(2, 104.0, 13.0).spare(&before, 2), 0.5);
        // More was used than granted: ticks are coarse.
        assert_eq!(times(2, 99.9, 15.0).spare(&before, 2), 0.0);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn work_of_our_own_is_no_idle_time() {
        let before = CpuTimes::now().unwrap();
        let mut sum = 0u64;
        while before.at.elapsed().as_millis() < 100 {
            sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(7));
        }
        let after = CpuTimes::now().unwrap();
        assert!(after.at() > before.at() && after.used > before.used);
        assert!(after.spare_since(&before) < default_threads() as f64, "{before:?} {after:?} {sum}");
    }

    #[test]
    fn this_machine_has_a_thread() {
        assert!(default_threads() >= 1);
        assert!(default_threads() <= allowed().len());
    }
}
