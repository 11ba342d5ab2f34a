//! How many CPUs this process may really use: its affinity mask, cut by the cgroup quota. Read by `Pool` alone.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

/// Threads a pool should have here: CPUs in the affinity mask, at most the cgroup's quota rounded up, at least 1.
pub fn default_threads() -> usize {
    let cpus = allowed().len().max(1);
    match quota(Path::new("/")) {
        Some(quota) => cpus.min((quota.ceil() as usize).max(1)),
        None => cpus,
    }
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
    fn this_machine_has_a_thread() {
        assert!(default_threads() >= 1);
        assert!(default_threads() <= allowed().len());
    }
}
