//! Raises the limit of open files to what the system allows: every connection is an open file, and the
//! usual soft limit of 1,024 is too low for a relay.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit; how many files may be open then, `None` for no limit.
pub(crate) fn raise_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => raised.current,
        Err(error) => {
            tracing::debug!(%error, "the limit of open files cannot be raised");
            limit.current
        }
    }
}
