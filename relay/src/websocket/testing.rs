//! For tests of sockets that take no more.

use tokio::net::{TcpSocket, TcpStream};

/// Our end, and the other one, which holds little.
pub(crate) async fn narrow_pair() -> (TcpStream, TcpStream) {
    let listener = TcpSocket::new_v4().unwrap();
    // The sockets that it accepts have the same.
    listener.set_send_buffer_size(64 * 1024).unwrap();
    listener.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = listener.listen(1).unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4 * 1024).unwrap();
    let peer = socket.connect(listener.local_addr().unwrap()).await.unwrap();
    (listener.accept().await.unwrap().0, peer)
}
