//! A private Redis, and a proxy in front of it that can cut every connection.

use std::net::TcpListener;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

/// A Redis of this test's own, on a port that the system picked; ends with it.
pub struct Server {
    pub port: u16,
    _process: Child,
}

impl Server {
    pub async fn start() -> Self {
        // Between picking the port and binding it somebody else may take it: then try again.
        for _ in 0..10 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let process = Command::new("redis-server")
                .args(["--bind", "127.0.0.1", "--port", &port.to_string()])
                .args(["--save", "", "--appendonly", "no"])
                .stdout(Stdio::null())
                .kill_on_drop(true)
                .spawn()
                .expect("these tests need `redis-server` (7.0 or newer) on the PATH: run ./test.sh, which installs it");
            let server = Self { port, _process: process };
            let deadline = Instant::now() + Duration::from_secs(5);
            while Instant::now() < deadline {
                if server.try_connection().await.is_some() {
                    return server;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        panic!("redis-server did not start");
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub async fn connection(&self) -> redis::aio::MultiplexedConnection {
        self.try_connection().await.expect("the test's own redis answers")
    }

    async fn try_connection(&self) -> Option<redis::aio::MultiplexedConnection> {
        let client = redis::Client::open(self.url()).unwrap();
        let config = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(Duration::from_secs(5)))
            .set_response_timeout(Some(Duration::from_secs(5)));
        client.get_multiplexed_async_connection_with_config(&config).await.ok()
    }
}

/// Stands between a journal and its Redis.
pub struct Proxy {
    pub port: u16,
    connections: Arc<Mutex<Vec<JoinHandle<()>>>>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    pub async fn to(server: &Server) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, target) = (listener.local_addr().unwrap().port(), server.port);
        let connections: Arc<Mutex<Vec<JoinHandle<()>>>> = Arc::default();
        let taken = Arc::clone(&connections);
        let accepting = tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let piping = tokio::spawn(async move {
                    if let Ok(mut far) = TcpStream::connect(("127.0.0.1", target)).await {
                        // Else the end of a long script waits 40 ms for an acknowledgement, and is cut.
                        near.set_nodelay(true).unwrap();
                        far.set_nodelay(true).unwrap();
                        drop(tokio::io::copy_bidirectional(&mut near, &mut far).await);
                    }
                });
                taken.lock().unwrap().push(piping);
            }
        });
        Self { port, connections, accepting }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Cuts every connection, wherever it is: requests on their way, and answers.
    pub fn cut(&self) {
        for connection in self.connections.lock().unwrap().drain(..) {
            connection.abort();
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}
