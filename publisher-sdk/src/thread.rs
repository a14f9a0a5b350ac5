//! The thread on which a process keeps its links and leases: a program that blocks its own executor loses none.
//!
//! [`Link`](crate::Link), [`AgentOptions`](crate::AgentOptions) → **thread**. One for all agents of the process, from
//! the first one on. The program's own code never runs there.

use std::sync::Mutex;

use tokio::runtime::{Builder, Handle, Runtime};

static RUNTIME: Mutex<Option<Runtime>> = Mutex::new(None);

/// The thread; the first call starts it.
pub(crate) fn handle() -> std::io::Result<Handle> {
    let mut runtime = RUNTIME.lock().expect("no code panics with this lock held");
    if runtime.is_none() {
        let mut builder = Builder::new_multi_thread();
        *runtime = Some(builder.worker_threads(1).thread_name("agent-relay").enable_all().build()?);
    }
    Ok(runtime.as_ref().expect("it was just made").handle().clone())
}
