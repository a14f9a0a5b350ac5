//! Records with `perf` where a process spends its time.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// Records until it is stopped.
#[derive(Debug)]
pub(crate) struct Recording(Child);

impl Recording {
    pub(crate) fn start(process: u32, into: &Path) -> Result<Self> {
        let mut command = Command::new("perf");
        command
            .args(["record", "--quiet", "--call-graph", "fp", "--freq", "997", "--output"])
            .arg(into)
            .args(["--pid", &process.to_string()])
            .stdout(Stdio::null());
        Ok(Self(command.spawn().context("`perf` can be started")?))
    }

    pub(crate) fn stop(mut self) -> Result<()> {
        let pid = Pid::from_raw(self.0.id().cast_signed()).context("a process has an id")?;
        kill_process(pid, Signal::INT)?;
        let status = self.0.wait()?;
        // It ends by the signal that stopped it.
        ensure!(status.code().is_none_or(|code| code == 0 || code == 130), "perf failed: {status}");
        Ok(())
    }
}
