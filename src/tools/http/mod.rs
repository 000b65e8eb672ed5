//! TCP sockets of the HTTP tools (`load-test`, `mock-openai`): address lookup, listening,
//! connecting, and the limit on open files that bounds the number of connections.

use std::io;
use std::net::{IpAddr, SocketAddr};

use tokio::net::{TcpListener, TcpSocket, TcpStream};

pub(crate) mod open_files;

/// Maximum number of connections that wait to be accepted. A worker can open a thousand connections
/// at once.
const LISTEN_BACKLOG: u32 = 4096;

/// Looks up the first address of a host name or IP address.
pub(crate) async fn resolve(host: &str, port: u16) -> io::Result<SocketAddr> {
    let mut addresses = tokio::net::lookup_host((host, port)).await?;
    addresses
        .next()
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the host has no address"))
}

fn socket_for(address: SocketAddr) -> io::Result<TcpSocket> {
    match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }
}

/// Listens on an address. This succeeds even if connections of an earlier process on this address
/// are still in TIME_WAIT.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket_for(address)?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(LISTEN_BACKLOG)
}

/// Connects to a server, from the local address `source` if it is given. Nagle's algorithm is
/// disabled, so that small frames are sent at once.
pub(crate) async fn connect(server: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = socket_for(server)?;
    if let Some(source) = source {
        // Allows the kernel to choose a local port that an earlier test left in TIME_WAIT.
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::new(source, 0))?;
    }
    let stream = socket.connect(server).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
