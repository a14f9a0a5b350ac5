//! The machine under the measurement: cores, processes, and its other load.

use std::fs;
use std::io;
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Where a process runs: what is measured and what loads it never share a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Core {
    /// Measured.
    First,
    /// Loads, and everything else.
    Last,
    /// Where the system chooses.
    Any,
}

impl Core {
    fn set(self) -> io::Result<Option<CpuSet>> {
        // Those of the process, before one of its threads was moved: a child may run where the thread that starts it
        // does, and nowhere else.
        static ALLOWED: OnceLock<CpuSet> = OnceLock::new();
        let allowed = match ALLOWED.get() {
            Some(allowed) => allowed,
            None => {
                let allowed = sched_getaffinity(None)?;
                ALLOWED.get_or_init(|| allowed)
            }
        };
        let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
        let core = match self {
            Self::First => cores.next(),
            Self::Last => cores.next_back(),
            Self::Any => None,
        };
        Ok(core.map(|core| {
            let mut set = CpuSet::new();
            set.set(core);
            set
        }))
    }
}

/// Starts `command` on `core`.
pub(crate) fn spawn_on(core: Core, mut command: Command) -> io::Result<Child> {
    let Some(set) = core.set()? else { return command.spawn() };
    // A child runs where the thread that starts it may run.
    let thread = std::thread::spawn(move || {
        sched_setaffinity(None, &set)?;
        command.spawn()
    });
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the starting thread panicked")))
}

/// Moves this thread, and those that it will start, to `core`.
pub(crate) fn stay_on(core: Core) -> Result<()> {
    if let Some(set) = core.set()? {
        sched_setaffinity(None, &set)?;
    }
    Ok(())
}

/// Waits without looking.
pub(crate) fn pause(time: Duration) {
    #[expect(clippy::disallowed_methods, reason = "no runtime's thread comes here")]
    std::thread::sleep(time);
}

/// The time for which the scheduler has let the threads of `process` run.
pub(crate) fn cpu_of(process: u32) -> Result<Duration> {
    let mut nanos = 0;
    for task in fs::read_dir(format!("/proc/{process}/task"))? {
        // A thread may end between being listed and being read.
        let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
        let run = text.split(' ').next().context("schedstat begins with the time run")?;
        nanos += run.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanos))
}

/// The memory that `process` has resident, in KiB.
pub(crate) fn resident_kib(process: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.context("/proc has VmRSS")?.trim().trim_end_matches(" kB");
    Ok(kib.parse()?)
}

/// What the machine was doing, to be compared with what it did later.
#[derive(Debug)]
pub(crate) struct Surroundings {
    all: u64,
    idle: u64,
    stolen: u64,
}

impl Surroundings {
    pub(crate) fn look() -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat")?;
        let line = stat.lines().next().context("/proc/stat begins with all cores")?;
        let ticks: Vec<u64> =
            line.split_whitespace().skip(1).map(str::parse).collect::<Result<_, _>>()?;
        // The last two, time of guests, are contained in the first.
        Ok(Self {
            all: ticks.iter().take(8).sum(),
            // Idle, and waiting for disks.
            idle: ticks.iter().skip(3).take(2).sum(),
            stolen: ticks.get(7).copied().unwrap_or_default(),
        })
    }

    /// How many cores were in use since, stolen ones too.
    pub(crate) fn cores_in_use(&self) -> Result<f64> {
        let now = Self::look()?;
        let all = (now.all - self.all).max(1);
        Ok((1.0 - (now.idle - self.idle) as f64 / all as f64) * cores()? as f64)
    }

    /// The time since: the share of it that other machines have taken, and the load average.
    pub(crate) fn figures(&self) -> Result<(f64, f64)> {
        let now = Self::look()?;
        let share = (now.stolen - self.stolen) as f64 / (now.all - self.all).max(1) as f64;
        let load = fs::read_to_string("/proc/loadavg")?;
        Ok((share, load.split(' ').next().unwrap_or_default().parse()?))
    }

    /// One line about the time since.
    pub(crate) fn since(&self) -> Result<String> {
        let (share, load) = self.figures()?;
        Ok(format!("{} cores, steal {:.1} %, load average {load}", cores()?, share * 100.0))
    }
}

/// How many cores the machine has.
pub(crate) fn cores() -> Result<usize> {
    let stat = fs::read_to_string("/proc/stat")?;
    Ok(stat.lines().filter(|line| line.starts_with("cpu")).count() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_started_later_still_has_a_core_of_its_own() {
        std::thread::spawn(|| {
            let core_of = |core: Core| core.set().unwrap().unwrap();
            let (first, last) = (core_of(Core::First), core_of(Core::Last));
            stay_on(Core::Last).unwrap();
            assert_eq!((core_of(Core::First), core_of(Core::Last)), (first, last));
        })
        .join()
        .unwrap();
    }
}
