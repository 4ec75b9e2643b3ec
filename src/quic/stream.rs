//! One bidirectional stream, as a byte stream for the framing above.
//!
//! A clean end is only ever said on purpose, by [`StreamWriter::finish`] or `shutdown`. quinn ends a dropped stream cleanly
//! too; here a dropped writer resets it instead, so that a task which panicked or was cancelled between two frames cannot
//! look to the peer like one that was done.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use quinn::{RecvStream, SendStream, StoppedError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::close::{self, Code};
use super::error::FinishError;
use super::link::Link;

/// Both directions of one stream.
#[derive(Debug)]
pub struct Stream {
    reader: StreamReader,
    writer: StreamWriter,
}

/// The reading half. Dropping it tells the peer to stop sending.
#[derive(Debug)]
pub struct StreamReader {
    inner: RecvStream,
    /// Keeps the link up while there is a stream.
    _link: Link,
}

/// The writing half. Dropping it without [`StreamWriter::finish`] or `shutdown` resets the stream with [`close::DROPPED`].
#[derive(Debug)]
pub struct StreamWriter {
    inner: SendStream,
    link: Link,
    state: State,
}

/// What was said about the end of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing yet.
    Open,
    /// That this was everything.
    Finished,
    /// That there is no more, and what there was is void.
    GivenUp,
}

impl Stream {
    pub(super) fn new(halves: (SendStream, RecvStream), link: &Link) -> Self {
        let (send, receive) = halves;
        Self {
            reader: StreamReader { inner: receive, _link: link.clone() },
            writer: StreamWriter { inner: send, link: link.clone(), state: State::Open },
        }
    }

    /// The halves, to be used by two tasks.
    #[must_use]
    pub fn split(self) -> (StreamReader, StreamWriter) {
        (self.reader, self.writer)
    }

    /// See [`StreamWriter::finish`].
    ///
    /// # Errors
    /// See there.
    pub async fn finish(&mut self) -> Result<(), FinishError> {
        self.writer.finish().await
    }

    /// See [`StreamWriter::reset`].
    pub fn reset(&mut self, code: Code) {
        self.writer.reset(code);
    }

    /// See [`StreamWriter::set_priority`].
    pub fn set_priority(&self, priority: i32) {
        self.writer.set_priority(priority);
    }
}

impl StreamReader {
    /// Tells the peer that nothing more will be read, and why.
    pub fn stop(&mut self, code: Code) {
        // The only error is that the stream is over, which is what was wanted.
        let _ = self.inner.stop(code.var_int());
    }
}

impl StreamWriter {
    /// Says that this was everything, and waits until the peer's QUIC has all of it. Whether the peer's program has read it
    /// is for the protocol above to ask.
    ///
    /// # Errors
    /// [`FinishError::Stopped`] when the peer stopped reading, [`FinishError::Lost`] when the link went first.
    pub async fn finish(&mut self) -> Result<(), FinishError> {
        if self.state == State::GivenUp {
            return Err(FinishError::GivenUp);
        }
        // It fails when it was called before, which does no harm, and when the peer has stopped reading, which comes next.
        let _ = self.inner.finish();
        self.state = State::Finished;
        match self.inner.stopped().await {
            Ok(None) => Ok(()),
            Ok(Some(code)) => Err(FinishError::Stopped { code: code.into_inner() }),
            Err(StoppedError::ConnectionLost(source)) => Err(FinishError::Lost(self.link.lost(source))),
            Err(StoppedError::ZeroRttRejected) => Err(FinishError::GivenUp),
        }
    }

    /// Gives the stream up: what is not delivered yet is thrown away, and the peer's next read fails with `code`.
    pub fn reset(&mut self, code: Code) {
        self.state = State::GivenUp;
        // The only error is that the stream is over already.
        let _ = self.inner.reset(code.var_int());
    }

    /// Higher goes first when several streams of a link have data waiting; 0 is the default. For a control stream or a
    /// fault, which must not queue behind bulk data.
    pub fn set_priority(&self, priority: i32) {
        // The only error is that the stream is over.
        let _ = self.inner.set_priority(priority);
    }
}

impl Drop for StreamWriter {
    fn drop(&mut self) {
        if self.state == State::Open {
            self.reset(close::DROPPED);
        }
    }
}

impl AsyncRead for StreamReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        AsyncRead::poll_read(Pin::new(&mut self.inner), cx, buf)
    }
}

impl AsyncWrite for StreamWriter {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.inner), cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.inner), cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.state == State::Open {
            self.state = State::Finished;
        }
        AsyncWrite::poll_shutdown(Pin::new(&mut self.inner), cx)
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.reader).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.writer).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(cx)
    }
}
