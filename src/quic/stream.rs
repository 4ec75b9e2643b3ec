//! One bidirectional stream, as a byte stream for the framing above.
//!
//! A clean end is only ever said on purpose, by [`StreamWriter::finish`] or `shutdown`. quinn ends a dropped stream cleanly
//! too; here a dropped writer resets it instead, so that a task which panicked or was cancelled between two frames cannot
//! look to the peer like one that was done.
//!
//! The same care is taken with the other direction. Who has said its own clean end and drops the stream has had all it wanted
//! to read: the peer is told [`close::DONE`], and its `finish` succeeds. Without that, a conversation that both sides end at
//! the same moment would fail or not by which packet is first. Who drops the stream without a clean end tells
//! [`close::DROPPED`], and the peer's `finish` fails.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use quinn::{RecvStream, SendStream, StoppedError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::close::{self, Code};
use super::error::{FinishError, QuicError};
use super::link::Link;

/// Both directions of one stream.
#[derive(Debug)]
pub struct Stream {
    reader: StreamReader,
    writer: StreamWriter,
}

/// The reading half. Dropping it before the end tells the peer to stop sending: with [`close::DONE`] if the writing half has
/// said its clean end by then, with [`close::DROPPED`] otherwise.
#[derive(Debug)]
pub struct StreamReader {
    inner: RecvStream,
    /// Has the writing half said a clean end?
    said_end: Arc<AtomicBool>,
    /// Keeps the link up while there is a stream.
    _link: Link,
}

/// The writing half. Dropping it without [`StreamWriter::finish`] or `shutdown` resets the stream with [`close::DROPPED`].
#[derive(Debug)]
pub struct StreamWriter {
    inner: SendStream,
    link: Link,
    state: State,
    said_end: Arc<AtomicBool>,
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
        let said_end = Arc::new(AtomicBool::new(false));
        let reader = StreamReader { inner: receive, said_end: Arc::clone(&said_end), _link: link.clone() };
        Self {
            reader,
            writer: StreamWriter { inner: send, link: link.clone(), state: State::Open, said_end },
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
    pub async fn finish(&mut self) -> Result<(), QuicError> {
        self.writer.finish().await
    }

    /// See [`StreamWriter::reset`].
    pub fn reset(&mut self, code: Code) {
        self.writer.reset(code);
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
    /// is for the protocol above to ask. A peer that has ended its own direction cleanly and gone had all it wanted.
    ///
    /// # Errors
    /// [`FinishError::Stopped`] when the peer stopped reading, [`FinishError::Lost`] when the link went first.
    pub async fn finish(&mut self) -> Result<(), QuicError> {
        if self.state == State::GivenUp {
            return Err(FinishError::GivenUp.into());
        }
        // It fails when it was called before, which does no harm, and when the peer has stopped reading, which comes next.
        let _ = self.inner.finish();
        self.end();
        match self.inner.stopped().await {
            Ok(None) => Ok(()),
            Ok(Some(code)) if code == close::DONE.var_int() => Ok(()),
            Ok(Some(code)) => Err(FinishError::Stopped { code: code.into_inner() }.into()),
            Err(StoppedError::ConnectionLost(source)) => {
                Err(FinishError::Lost(self.link.lost(source)).into())
            }
            Err(StoppedError::ZeroRttRejected) => Err(FinishError::GivenUp.into()),
        }
    }

    fn end(&mut self) {
        self.state = State::Finished;
        self.said_end.store(true, Ordering::Relaxed);
    }

    /// Gives the stream up: what is not delivered yet is thrown away, and the peer's next read fails with `code`.
    pub fn reset(&mut self, code: Code) {
        self.state = State::GivenUp;
        // The only error is that the stream is over already.
        let _ = self.inner.reset(code.var_int());
    }
}

impl Drop for StreamReader {
    fn drop(&mut self) {
        let said_end = self.said_end.load(Ordering::Relaxed);
        self.stop(if said_end { close::DONE } else { close::DROPPED });
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
            self.end();
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
