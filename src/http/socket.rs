//! Sockets that connections come from: of the network, or of the file system.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::connection::read_off;
use super::tls::{H2, Tls};
use crate::config::Listen;

/// What a connection is told that finds no room. Nothing of its request is looked at.
const NO_ROOM: &str = "the server has as many connections as it allows; come back in a moment, and keep \
    connections rather than opening one a request, or raise `--max-connections`";

/// The refusal in HTTP/1.1, in the form of every error.
fn no_room() -> String {
    let body = format!(
        r#"{{"error":"{NO_ROOM}","error_type":"too_many_connections","message":"{NO_ROOM}","detail":"{NO_ROOM}"}}"#
    );
    format!(
        "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\n\
        content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// The refusal in HTTP/2: empty SETTINGS, which a connection begins with, and a GOAWAY that says that no
/// request was looked at.
fn go_away() -> Vec<u8> {
    let length = u32::try_from(8 + NO_ROOM.len()).expect("a short text");
    // A frame's head: length in 3 bytes, kind, flags, stream.
    let mut frames = vec![0, 0, 0, 4, 0, 0, 0, 0, 0];
    frames.extend_from_slice(&length.to_be_bytes()[1..]);
    frames.extend_from_slice(&[7, 0, 0, 0, 0, 0]);
    // The last stream that was looked at, and the code for "no error".
    frames.extend_from_slice(&[0; 8]);
    frames.extend_from_slice(NO_ROOM.as_bytes());
    frames
}

/// How long a connection that finds no room may take over its handshake.
const HANDSHAKE_TIME: Duration = Duration::from_secs(2);

/// Gives connections.
pub enum Socket {
    /// Of the network.
    Tcp(TcpListener),
    /// Of the file system; the file is removed with it where this program made it.
    Unix(UnixListener, Option<OwnFile>),
}

/// A connection that came in.
pub enum Stream {
    /// Over the network.
    Tcp(TcpStream),
    /// From this machine.
    Unix(UnixStream),
}

impl Socket {
    /// Begins to listen.
    ///
    /// # Errors
    /// When the system does not allow it.
    pub async fn bind(listen: &Listen) -> io::Result<Self> {
        match listen {
            Listen::Tcp(address) => Ok(Self::Tcp(TcpListener::bind(address).await?)),
            Listen::Name(name) => {
                let addresses = lookup(name).await?;
                Ok(Self::Tcp(TcpListener::bind(&addresses[..]).await?))
            }
            Listen::Unix(path) => {
                remove_left_over(path).await?;
                let listener = UnixListener::bind(path)?;
                Ok(Self::Unix(listener, Some(OwnFile(path.clone()))))
            }
        }
    }

    /// Goes on with a socket that somebody else opened for this program.
    ///
    /// # Errors
    /// When the system does not allow it.
    pub fn from_tcp(listener: std::net::TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self::Tcp(TcpListener::from_std(listener)?))
    }

    /// As [`Socket::from_tcp`].
    ///
    /// # Errors
    /// When the system does not allow it.
    pub fn from_unix(listener: std::os::unix::net::UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self::Unix(UnixListener::from_std(listener)?, None))
    }

    /// Where it listens, with the port that the system chose.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn address(&self) -> io::Result<Listen> {
        Ok(match self {
            Self::Tcp(listener) => Listen::Tcp(listener.local_addr()?),
            Self::Unix(listener, _) => {
                let address = listener.local_addr()?;
                Listen::Unix(address.as_pathname().unwrap_or(Path::new("")).into())
            }
        })
    }

    /// The next connection, and who it is from. Outlives errors such as too many open files.
    pub(super) async fn accept(&mut self) -> (Stream, String) {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = Listener::accept(listener).await;
                // An answer is one small write: holding it back for company only adds latency.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%peer, %error, "TCP_NODELAY was refused");
                }
                (Stream::Tcp(stream), peer.to_string())
            }
            Self::Unix(listener, _) => {
                let (stream, _) = Listener::accept(listener).await;
                (Stream::Unix(stream), "unix".to_owned())
            }
        }
    }
}

/// The addresses of `HOST:PORT`, IPv4 first.
///
/// # Errors
/// When the lookup fails.
pub async fn lookup(name: &str) -> io::Result<Vec<SocketAddr>> {
    let mut addresses: Vec<SocketAddr> = tokio::net::lookup_host(name).await?.collect();
    addresses.sort_by_key(SocketAddr::is_ipv6);
    Ok(addresses)
}

impl Stream {
    /// Says why it is not served, and closes the connection.
    pub(super) async fn refuse(self, tls: Option<&Tls>) {
        match self {
            Self::Tcp(stream) => refuse(stream, tls).await,
            Self::Unix(stream) => refuse(stream, tls).await,
        }
    }
}

async fn refuse(stream: impl AsyncRead + AsyncWrite + Unpin, tls: Option<&Tls>) {
    let Some(tls) = tls else {
        return tell(stream, no_room().as_bytes()).await;
    };
    // Whoever does not get to the end of its handshake could not read what it is told.
    let shaken = tokio::time::timeout(HANDSHAKE_TIME, tls.accept_to_refuse(stream)).await;
    if let Ok(Ok(stream)) = shaken {
        match stream.get_ref().1.alpn_protocol() {
            Some(H2) => tell(stream, &go_away()).await,
            _ => tell(stream, no_room().as_bytes()).await,
        }
    }
}

async fn tell(mut stream: impl AsyncRead + AsyncWrite + Unpin, answer: &[u8]) {
    // A new connection has room for so few bytes; where it has not, it is closed all the same.
    if stream.write_all(answer).await.is_ok() && stream.shutdown().await.is_ok() {
        read_off(stream).await;
    }
}

/// Removes the file of a socket that nobody listens on any more; one that is in use, or no socket,
/// is left for the error of binding.
async fn remove_left_over(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|data| data.file_type().is_socket());
    if is_socket
        && let Err(error) = UnixStream::connect(path).await
        && error.kind() == io::ErrorKind::ConnectionRefused
    {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

/// The file of a socket, removed when it is dropped.
pub struct OwnFile(PathBuf);

impl Drop for OwnFile {
    fn drop(&mut self) {
        // Somebody else may have removed it; there is nobody to tell.
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_was_left_is_taken_over_and_one_in_use_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listen = Listen::Unix(path.clone());
        // Left by a program that was killed: there is a file and nobody behind it.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let socket = Socket::bind(&listen).await.unwrap();
        assert_eq!(socket.address().unwrap(), listen);
        let second = Socket::bind(&listen).await;
        assert_eq!(second.err().unwrap().kind(), io::ErrorKind::AddrInUse);
        drop(socket);
        assert!(!path.exists());

        std::fs::write(&path, "a file of somebody").unwrap();
        assert!(Socket::bind(&listen).await.is_err());
        assert!(path.exists());
    }
}
