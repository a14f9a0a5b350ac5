//! HAProxy in front of the replicas, with the configuration that `docker-compose.yml` mounts.

use std::path::PathBuf;
use std::process::Command;

use crate::http::call;
use crate::process::{Process, free_port};
use crate::{Replica, until};

/// A running HAProxy; killed when dropped.
#[derive(Debug)]
pub struct Balancer {
    process: Process,
    address: String,
}

impl Balancer {
    /// Starts it and waits until a replica answers through it.
    ///
    /// # Panics
    /// With its log when it does not come to that.
    pub async fn in_front_of(replicas: &[Replica; 2]) -> Self {
        let address = format!("127.0.0.1:{}", free_port());
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(root.join("deploy/haproxy.cfg"));
        command.env("RELAY_LISTEN", &address);
        command.env("RELAY_A", replicas[0].address()).env("RELAY_B", replicas[1].address());
        let process = Process::spawn("haproxy", command, "Install it: ./test.sh does");
        let balancer = Self { process, address };
        until("a replica is ready behind the balancer", async || {
            let (method, body) = (hyper::Method::GET, hyper::body::Bytes::new());
            let reply = call(&balancer.address, method, "/readyz", &[], body).await.ok()?;
            (reply.status == 200).then_some(())
        })
        .await;
        balancer
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> String {
        self.address.clone()
    }

    /// What it logged.
    pub fn log(&self) -> &crate::process::Log {
        self.process.log()
    }
}
