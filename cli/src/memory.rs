//! How much memory this process may use: what the machine has, or less where its control groups say so.

use std::path::{Path, PathBuf};

/// Where neither the machine nor a control group says anything.
const UNKNOWN: usize = 2 * 1024 * 1024 * 1024;
const GROUPS: &str = "/sys/fs/cgroup";

/// Half of it: the other half is for everything that does not wait for a peer.
pub(crate) fn half_of_what_is_allowed() -> usize {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let own = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let limits = group_files(&own).into_iter().filter_map(|path| read(&path)?.trim().parse().ok());
    let machine = read(Path::new("/proc/meminfo")).and_then(|info| total(&info));
    limits.chain(machine).min().unwrap_or(UNKNOWN) / 2
}

/// The files that may bound the process: those of its own group and of every group around it. What they say otherwise
/// than in digits, `max`, is no bound.
fn group_files(own: &str) -> Vec<PathBuf> {
    // Version 1 where it is alone, or seen from within a container.
    let mut files = vec![PathBuf::from(GROUPS).join("memory/memory.limit_in_bytes")];
    let unified = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let group = Path::new(GROUPS).join(unified);
    let around = group.ancestors().take_while(|path| path.starts_with(GROUPS));
    files.extend(around.map(|path| path.join("memory.max")));
    files
}

/// All the memory of the machine, in bytes.
fn total(meminfo: &str) -> Option<usize> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_says_what_it_has() {
        let meminfo = "MemTotal:       16384 kB\nMemFree:         2048 kB\n";
        assert_eq!(total(meminfo), Some(16 * 1024 * 1024));
        assert_eq!(total("MemFree: 1 kB"), None);
    }

    #[test]
    fn every_group_around_the_process_is_asked() {
        let files = group_files("0::/system.slice/relay.service\n");
        let names: Vec<&str> = files.iter().filter_map(|file| file.to_str()).collect();
        assert_eq!(
            names,
            [
                "/sys/fs/cgroup/memory/memory.limit_in_bytes",
                "/sys/fs/cgroup/system.slice/relay.service/memory.max",
                "/sys/fs/cgroup/system.slice/memory.max",
                "/sys/fs/cgroup/memory.max",
            ]
        );
        assert!(half_of_what_is_allowed() > 0);
    }
}
