//! One bidirectional stream as bytes in and out.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::QuicError;
use super::error::explain;

/// A stream of a [`super::Link`]. Dropping it without [`Stream::finish`] resets it: the peer sees that it was cut.
#[derive(Debug)]
pub struct Stream {
    host: String,
    send: quinn::SendStream,
    recv: quinn::RecvStream,
    finished: bool,
}

impl Stream {
    pub(super) fn new(host: String, (send, recv): (quinn::SendStream, quinn::RecvStream)) -> Self {
        Self { host, send, recv, finished: false }
    }

    /// Says that nothing more comes and waits until the peer has everything.
    ///
    /// # Errors
    /// The peer stopped the stream or the connection is gone.
    pub async fn finish(&mut self) -> Result<(), QuicError> {
        // A stream that is closed already was finished or stopped: what counts comes from `stopped`.
        let _already_closed = self.send.finish();
        self.finished = true;
        match self.send.stopped().await {
            Ok(None) => Ok(()),
            Ok(Some(code)) => Err(QuicError::Stopped { host: self.host.clone(), code: code.into_inner() }),
            Err(quinn::StoppedError::ConnectionLost(error)) => {
                Err(QuicError::Lost { host: self.host.clone(), why: explain(&error) })
            }
            Err(quinn::StoppedError::ZeroRttRejected) => Err(QuicError::Closed),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.finished {
            // quinn's own drop would finish the stream, which a reader takes for its proper end.
            let _closed_already = self.send.reset(super::close::ABORTED.into());
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        AsyncRead::poll_read(Pin::new(&mut self.recv), cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.send), cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.send), cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.finished = true;
        AsyncWrite::poll_shutdown(Pin::new(&mut self.send), cx)
    }
}
