//! Connections as they come, for ever: an error of one is not the end of all. And their end: a
//! connection whose client never answers would outlive a drain, so each can be cut.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::Stream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::{Connected, TcpConnectInfo};

/// Pause after the system had no connection to give: EMFILE and the like heal by themselves.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections as they come; all of them end when `cut` is tripped.
pub(crate) fn connections(
    listener: TcpListener,
    cut: CancellationToken,
) -> impl Stream<Item = io::Result<Connection>> {
    stream::unfold((listener, cut), |(listener, cut)| async {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    // Small messages leave at once; where this fails the connection is gone anyway.
                    let _ = stream.set_nodelay(true);
                    let connection = Connection {
                        stream,
                        // A token of its own: the one that all share has one lock for all.
                        // A token of its own: the one that all share has one lock for all.
                        cut: Box::pin(cut.child_token().cancelled_owned()),
                    };
                    return Some((Ok(connection), (listener, cut)));
                }
                Err(error) => {
                    tracing::warn!(%error, "no connection accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

/// A connection that can be cut.
pub(crate) struct Connection {
    stream: TcpStream,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Connection {
    /// What the stream says, or that the connection was cut. Looked at only where the stream has
    /// nothing to say, which every connection reaches between any two requests.
    fn unless_cut<T>(
        &mut self,
        said: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if said.is_pending() && self.cut.as_mut().poll(context).is_ready() {
            let error = io::Error::new(io::ErrorKind::ConnectionAborted, "the server has stopped");
            return Poll::Ready(Err(error));
        }
        said
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let said = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.unless_cut(said, context)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let said = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.unless_cut(said, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let said = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.unless_cut(said, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}
