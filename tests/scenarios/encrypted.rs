//! A Redis that is reached over TLS only.

use tests::Cluster;
use tests::endpoint::Endpoint;
use tests::process::free_port;
use tests::replica::{Replica, Setup};

/// `rediss://`: the default of the TLS library is to panic at the first handshake.
#[tokio::test]
async fn a_redis_behind_tls_serves_as_any_other() {
    let cluster = Cluster::with_replicas(1).await;
    let dir = tempfile::TempDir::new().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let (cert, key, port) =
        (cert.to_str().unwrap(), key.to_str().unwrap(), free_port().to_string());
    let with_tls = [
        ["tls-cert-file", cert],
        ["tls-key-file", key],
        ["tls-ca-cert-file", cert],
        ["tls-auth-clients", "no"],
        ["tls-port", &port],
    ];
    let words: Vec<&str> = ["CONFIG", "SET"].into_iter().chain(with_tls.concat()).collect();
    let _: String = cluster.redis.run(&words).await;

    let setup = Setup {
        // Where the replica looks for the authorities that it trusts.
        variables: vec![("SSL_CERT_FILE".to_owned(), cert.to_owned())],
        ..Setup::serve(Some(format!("rediss://localhost:{port}")))
    };
    let encrypted = Replica::start(setup).await;
    let mut browser = Endpoint::of(&encrypted).subscribed_to("session:42").await;
    encrypted.publish_numbers("session:42", 0..5).await;
    cluster.replicas[0].publish_numbers("session:42", 5..10).await;

    browser.expect_numbers("session:42", 0..10).await;
}
